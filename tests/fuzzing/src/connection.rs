//! What opens a connection: the query, the sub-protocols, the origin, the version, the path.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use muster_protocol::phoenix::Version;
use muster_protocol::phoenix::handshake::{self, OriginPattern, OriginPolicy};
use muster_protocol::phoenix::params::{Param, Params};
use muster_protocol::topic::Mount;

/// Segments of one query, as `Params` bounds them.
const SEGMENTS_MAX: usize = 256;
/// Levels of one name: itself, and what may stand in brackets.
const LEVELS_MAX: usize = 9;

/// Lines: the query; `Sec-WebSocket-Protocol`; the origin; a pattern for origins; the version; the path.
pub fn connection(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.splitn(6, '\n');
    let mut line = || lines.next().unwrap_or_default();
    query(line());
    subprotocols(line());
    let (origin, pattern) = (line(), line());
    origins(origin, pattern);
    version(line());
    path(line());
}

fn query(text: &str) {
    let Ok(params) = Params::parse(text) else {
        assert!(text.contains('%'), "only what is percent-encoded can be no UTF-8");
        return;
    };
    let mut segments = Vec::new();
    write(&params, &mut String::new(), 1, &mut segments);
    assert!(segments.len() <= SEGMENTS_MAX);
    let written = segments.join("&");
    assert_eq!(Params::parse(&written), Ok(params.clone()), "written anew as {written}");
    let taken = text.split('&').filter(|segment| !segment.is_empty()).take(SEGMENTS_MAX);
    for (name, _) in taken.filter_map(|segment| segment.split_once('=')) {
        if name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            assert!(params.get(name).is_some(), "{name} was there");
        }
    }
    // What is appended to a list replaces nothing in it.
    let list = params.iter().find(|(_, value)| matches!(value, Param::Map(_)));
    if let (Some((name, _)), true) = (list, segments.len() < SEGMENTS_MAX) {
        let name = percent(name);
        let longer = Params::parse(&format!("{written}&{name}[]=new")).expect("still UTF-8");
        let mut after = Vec::new();
        write(&longer, &mut String::new(), 1, &mut after);
        assert_eq!(after.len(), segments.len() + 1, "{written} and one more for {name}");
    }
}

/// As the npm client writes parameters: brackets percent-encoded.
fn write(params: &Params, prefix: &mut String, level: usize, out: &mut Vec<String>) {
    assert!(level <= LEVELS_MAX, "nested too deep");
    for (name, value) in params.iter() {
        let before = prefix.len();
        if before == 0 {
            prefix.push_str(&percent(name));
        } else {
            prefix.push_str(&format!("%5B{}%5D", percent(name)));
        }
        match value {
            Param::Text(text) => out.push(format!("{prefix}={}", percent(text))),
            Param::Map(inner) => write(inner, prefix, level + 1, out),
        }
        prefix.truncate(before);
    }
}

fn percent(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

fn subprotocols(header: &str) {
    let entries: Vec<&str> = header.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
    let tokens: Vec<&str> =
        entries.iter().filter_map(|entry| entry.strip_prefix("base64url.bearer.phx.")).collect();
    let offers_phoenix = entries.contains(&"phoenix");
    match handshake::subprotocol([header].into_iter()) {
        Ok(found) => {
            assert_eq!(found.answer, offers_phoenix);
            let [offered] = tokens[..] else {
                assert_eq!(found.token, None, "one token, or none");
                return;
            };
            // One text has one spelling, padding aside.
            let token = found.token.expect("the one token");
            assert_eq!(STANDARD_NO_PAD.encode(&token), offered.trim_end_matches('='));
        }
        Err(_) => assert!(!entries.is_empty() && (!offers_phoenix || tokens.len() == 1)),
    }
    for encoded in [STANDARD.encode(header), STANDARD_NO_PAD.encode(header)] {
        let offer = format!("phoenix, base64url.bearer.phx.{encoded}");
        let found = handshake::subprotocol([offer.as_str()].into_iter()).expect("a token");
        assert_eq!((found.token.as_deref(), found.answer), (Some(header), true));
        // The same in two headers.
        let (first, second) = offer.split_once(", ").expect("two entries");
        assert_eq!(handshake::subprotocol([first, second].into_iter()), Ok(found));
    }
}

fn origins(origin: &str, pattern: &str) {
    assert!(OriginPolicy::Any.allows(Some(origin)));
    let Ok(read) = OriginPattern::parse(pattern) else { return };
    let policy = OriginPolicy::Only(vec![read]);
    assert!(policy.allows(None), "a client that is no browser");
    assert!(!policy.allows(Some("null")));
    if pattern.contains("://") && !pattern.contains("//*.") {
        assert!(policy.allows(Some(pattern)), "{pattern} does not allow itself");
    }
    // Ports are digits: other readers would take a sign for something else.
    let (_, authority) = pattern.split_once("//").expect("a pattern has an authority");
    let after_host = &authority[authority.rfind(']').map_or(0, |bracket| bracket + 1)..];
    if let Some((_, port)) = after_host.split_once(':') {
        assert!(port.bytes().all(|byte| byte.is_ascii_digit()), "{pattern}");
    }
    if policy.allows(Some(origin)) {
        let host = authority.strip_prefix("*.").unwrap_or(authority).to_ascii_lowercase();
        let host =
            host.strip_suffix(after_host.split_once(':').map_or("", |(_, port)| port)).unwrap_or(&host);
        let host = host.trim_end_matches(':');
        assert!(origin.to_ascii_lowercase().contains(host), "{origin} passed as {pattern}");
    }
}

fn version(text: &str) {
    let shown = handshake::version(Some(text));
    let digits = |prefix: &str| {
        text.strip_prefix(prefix)
            .is_some_and(|patch| (1..10).contains(&patch.len()) && patch.bytes().all(|b| b.is_ascii_digit()))
    };
    assert_eq!(shown == Some(Version::V1), digits("1.0."), "{text}");
    assert_eq!(shown == Some(Version::V2), digits("2.0."), "{text}");
}

fn path(text: &str) {
    if let Some(mount) = Mount::of_websocket_path(text) {
        let rest = text.strip_prefix(mount.path()).expect("a path begins with its mount");
        let bare = mount == Mount::User && matches!(rest, "" | "/");
        assert!(bare || matches!(rest, "/websocket" | "/websocket/"), "{text}");
    }
}
