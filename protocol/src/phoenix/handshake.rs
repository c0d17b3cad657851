//! What decides whether and how a connection opens, besides its credential: version, sub-protocol, origin.

use base64::engine::general_purpose::GeneralPurpose;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use base64::{Engine, alphabet};

use super::Version;

/// Chooses the serializer from `vsn`. Absent means 1.0.0; any 1.0.x and 2.0.x is served.
#[must_use]
pub fn version(vsn: Option<&str>) -> Option<Version> {
    let Some(vsn) = vsn else {
        return Some(Version::V1);
    };
    let mut parts = vsn.split('.');
    let (major, minor, patch) = (parts.next()?, parts.next()?, parts.next()?);
    let is_number =
        |part: &str| !part.is_empty() && part.len() < 10 && part.bytes().all(|b| b.is_ascii_digit());
    if parts.next().is_some() || !is_number(patch) || minor != "0" {
        return None;
    }
    match major {
        "1" => Some(Version::V1),
        "2" => Some(Version::V2),
        _ => None,
    }
}

/// Sub-protocol that carries a token: `base64url.bearer.phx.<token>`.
const TOKEN_PREFIX: &str = "base64url.bearer.phx.";
/// Sub-protocol of Phoenix itself, which the client requires in the answer.
pub const SUBPROTOCOL: &str = "phoenix";

/// The standard alphabet, whatever the prefix of a token says, with padding optional (phoenix.md §1.6).
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What `Sec-WebSocket-Protocol` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subprotocol {
    /// The client's token.
    pub token: Option<String>,
    /// Whether to answer `phoenix`.
    pub answer: bool,
}

/// The handshake cannot be served; Phoenix answers 403.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no common sub-protocol, or a token that does not decode")]
pub struct Refused;

/// Reads the values of `Sec-WebSocket-Protocol`.
///
/// # Errors
/// [`Refused`] when protocols are offered but neither `phoenix` nor a token, or the token does not decode.
pub fn subprotocol<'a>(headers: impl Iterator<Item = &'a str>) -> Result<Subprotocol, Refused> {
    let mut offered = false;
    let mut answer = false;
    let mut tokens = Vec::new();
    for entry in headers.flat_map(|header| header.split(',')).map(str::trim).filter(|entry| !entry.is_empty())
    {
        offered = true;
        if let Some(token) = entry.strip_prefix(TOKEN_PREFIX) {
            tokens.push(token);
        } else if entry == SUBPROTOCOL {
            answer = true;
        }
    }
    if offered && !answer && tokens.is_empty() {
        return Err(Refused);
    }
    // Phoenix takes a token only when there is exactly one.
    let token = match tokens.as_slice() {
        [token] => {
            let bytes = BASE64.decode(token).map_err(|_| Refused)?;
            Some(String::from_utf8(bytes).map_err(|_| Refused)?)
        }
        _ => None,
    };
    Ok(Subprotocol { token, answer })
}

/// Which browser origins may connect. Requests without an `Origin` (native clients) always may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPolicy {
    /// All: credentials are never cookies, so another site gains nothing by connecting (agrenting.md R12).
    Any,
    /// Those that match an entry.
    Only(Vec<OriginPattern>),
}

/// `https://example.com`, `//another.com:888`, `//*.other.com`: a missing scheme or port matches any; `*.` matches the
/// domain itself and everything below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginPattern {
    scheme: Option<String>,
    host: String,
    with_subdomains: bool,
    port: Option<u16>,
}

/// The pattern is not of one of the forms.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("origin pattern {0:?} is not of the form https://host[:port], //host[:port] or //*.host[:port]")]
pub struct InvalidOriginPattern(String);

impl OriginPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// [`InvalidOriginPattern`]
    pub fn parse(text: &str) -> Result<Self, InvalidOriginPattern> {
        let invalid = || InvalidOriginPattern(text.to_owned());
        let (scheme, authority) = text.split_once("//").ok_or_else(invalid)?;
        let scheme = match scheme.strip_suffix(':') {
            Some(name) if !name.is_empty() => Some(name.to_ascii_lowercase()),
            None if scheme.is_empty() => None,
            _ => return Err(invalid()),
        };
        let (host, port) = split_authority(authority).ok_or_else(invalid)?;
        let (with_subdomains, host) = match host.strip_prefix("*.") {
            Some(domain) => (true, domain),
            None => (false, host),
        };
        if host.is_empty() || host.contains('*') {
            return Err(invalid());
        }
        Ok(Self { scheme, host: host.to_ascii_lowercase(), with_subdomains, port })
    }

    fn matches(&self, scheme: &str, host: &str, port: Option<u16>) -> bool {
        let host_matches = self.host == host
            || self.with_subdomains && host.strip_suffix(&self.host).is_some_and(|sub| sub.ends_with('.'));
        host_matches
            && self.scheme.as_deref().is_none_or(|wanted| wanted == scheme)
            && self.port.is_none_or(|wanted| Some(wanted) == port)
    }
}

impl OriginPolicy {
    /// Whether a request with this `Origin` header may go on.
    #[must_use]
    pub fn allows(&self, origin: Option<&str>) -> bool {
        let (Self::Only(patterns), Some(origin)) = (self, origin) else {
            return true;
        };
        let origin = origin.to_ascii_lowercase();
        let Some((scheme, authority)) = origin.split_once("://") else {
            return false;
        };
        let Some((host, port)) = split_authority(authority) else {
            return false;
        };
        let port = port.or(match scheme {
            "http" | "ws" => Some(80),
            "https" | "wss" => Some(443),
            _ => None,
        });
        patterns.iter().any(|pattern| pattern.matches(scheme, host, port))
    }
}

/// `host[:port]`, IPv6 in brackets included.
fn split_authority(authority: &str) -> Option<(&str, Option<u16>)> {
    let host_end = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    let (host, port) = match authority[host_end..].find(':') {
        Some(colon) => {
            let (host, port) = authority.split_at(host_end + colon);
            // Digits only: the standard reader takes a sign too.
            let port = Some(&port[1..]).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))?;
            (host, Some(port.parse().ok()?))
        }
        None => (authority, None),
    };
    (!host.is_empty() && !host.contains('/')).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_full_triples_of_1_0_or_2_0() {
        assert_eq!(version(None), Some(Version::V1));
        for (vsn, want) in [
            ("1.0.0", Some(Version::V1)),
            ("1.0.7", Some(Version::V1)),
            ("2.0.0", Some(Version::V2)),
            ("3.0.0", None),
            ("2.1.0", None),
            ("2", None),
            ("2.0", None),
            ("2.0.0-rc.1", None),
            ("2.0.0.0", None),
            ("", None),
        ] {
            assert_eq!(version(Some(vsn)), want, "{vsn}");
        }
    }

    #[test]
    fn the_token_is_standard_base64_without_padding() {
        let read = |header: &'static str| subprotocol([header].into_iter());
        let ok = |token: Option<&str>, answer| Ok(Subprotocol { token: token.map(Into::into), answer });
        assert_eq!(read("phoenix,base64url.bearer.phx.bXkgdG9rZW4gYWI"), ok(Some("my token ab"), true));
        assert_eq!(read("phoenix, base64url.bearer.phx.bXkgdG9rZW4gYWI="), ok(Some("my token ab"), true));
        assert_eq!(read("base64url.bearer.phx.YQ"), ok(Some("a"), false));
        assert_eq!(read("phoenix"), ok(None, true));
        assert_eq!(read("phoenix,base64url.bearer.phx.YQ,base64url.bearer.phx.Yg"), ok(None, true));
        assert_eq!(read("mqtt"), Err(Refused));
        assert_eq!(read("phoenix,base64url.bearer.phx._-"), Err(Refused));
        assert_eq!(subprotocol(std::iter::empty()), ok(None, false));
        assert_eq!(subprotocol(["phoenix", "base64url.bearer.phx.YQ"].into_iter()), ok(Some("a"), true));
    }

    #[test]
    fn origins_match_by_scheme_host_and_port() {
        let patterns = ["https://example.com", "//another.com:888", "//*.other.com", "http://[::1]:4000"];
        let only =
            OriginPolicy::Only(patterns.iter().map(|text| OriginPattern::parse(text).unwrap()).collect());
        for (origin, allowed) in [
            ("https://example.com", true),
            ("https://EXAMPLE.com:8443", true),
            ("http://example.com", false),
            ("https://sub.example.com", false),
            ("ws://another.com:888", true),
            ("https://another.com", false),
            ("https://other.com", true),
            ("http://a.b.other.com:1", true),
            ("http://another-other.com", false),
            ("http://[::1]:4000", true),
            ("null", false),
            ("", false),
            ("https://", false),
            ("https://example.com/path", false),
        ] {
            assert_eq!(only.allows(Some(origin)), allowed, "{origin}");
        }
        assert!(only.allows(None));
        assert!(OriginPolicy::Any.allows(Some("null")));
        for bad in ["example.com", "https:/x", "//", "//*", "//*.*.com", "://x", "//x:99999", "//x:+80"] {
            assert!(OriginPattern::parse(bad).is_err(), "{bad}");
        }
    }
}
