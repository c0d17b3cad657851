//! What the node reads: bodies and queries of REST, messages of MCP, the configuration.

use http::Uri;
use muster_node::config::{Config, combine};
use muster_node::http::addresses::{Networks, client_address, limit_key};
use muster_node::http::rest::extract::{PageParams, read_body, read_cursor, read_query, write_cursor};
use muster_node::http::rest::{admin, agents, blocks, hirings, streams, tasks};
use muster_node::mcp::arguments::{self, OfHiring, OfTask};
use muster_node::mcp::envelope::{self, Era, Kind};
use muster_protocol::agent::Registration;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::hiring::HireRequest;
use muster_protocol::ids::{AgentId, HiringId, TaskId};
use muster_protocol::json::{deeper_than, read_object};
use muster_protocol::limits::Limits;
use muster_protocol::rate_limiter::TokenBucket;
use muster_protocol::task::{ChunkRequest, TaskRequest};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::echo::{self, never_echoes};

/// Reads a body as one type, up to what the handler checks without the store.
type Reader = fn(&[u8], &Limits) -> Result<(), Refusal>;

fn as_type<T: DeserializeOwned>(body: &[u8], limits: &Limits) -> Result<(), Refusal> {
    read_body::<T>(body, limits.json_depth_max).map(drop)
}

fn as_task(body: &[u8], limits: &Limits) -> Result<(), Refusal> {
    read_body::<TaskRequest>(body, limits.json_depth_max)?.check(limits)
}

fn as_hire(body: &[u8], limits: &Limits) -> Result<(), Refusal> {
    let hire = read_body::<HireRequest>(body, limits.json_depth_max)?;
    hire.task(AgentId::from_bytes([7; 16]), "code").check(limits)
}

fn as_chunk(body: &[u8], limits: &Limits) -> Result<(), Refusal> {
    read_body::<ChunkRequest>(body, limits.json_depth_max)?.into_chunk(None, limits).map(drop)
}

/// Every type that an endpoint takes as body.
const BODIES: &[Reader] = &[
    as_task,
    as_hire,
    as_chunk,
    as_type::<Registration>,
    as_type::<admin::NewUser>,
    as_type::<admin::NewToken>,
    as_type::<admin::NewStatus>,
    as_type::<agents::NewAgent>,
    as_type::<agents::Claims>,
    as_type::<agents::AgentChanges>,
    as_type::<agents::NewPublicKey>,
    as_type::<blocks::Block>,
    as_type::<hirings::HiringResult>,
    as_type::<hirings::HiringFailure>,
    as_type::<hirings::Retry>,
    as_type::<tasks::Completion>,
    as_type::<tasks::Failure>,
    as_type::<tasks::Withdrawal>,
    as_type::<tasks::Reassignment>,
    as_type::<tasks::NewMessage>,
];

type QueryReader = fn(&Uri) -> Result<(), Refusal>;

fn as_query<T: DeserializeOwned>(uri: &Uri) -> Result<(), Refusal> {
    read_query::<T>(uri).map(drop)
}

/// Every type that an endpoint takes as query.
const QUERIES: &[QueryReader] = &[
    as_query::<PageParams>,
    as_query::<agents::DiscoverParams>,
    as_query::<hirings::ListParams>,
    as_query::<streams::ReadParams>,
    as_query::<tasks::ListParams>,
];

/// The first byte chooses the type; the rest is the body, and a query string, and a cursor.
pub fn request_bodies(data: &[u8]) {
    let Some((&chosen, body)) = data.split_first() else { return };
    let limits = Limits::default();
    let read = BODIES[usize::from(chosen) % BODIES.len()];
    let said = std::str::from_utf8(body);
    let is_json = said.is_ok_and(|text| {
        text.trim().is_empty() || serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
    });
    let malformed = !is_json || deeper_than(body, limits.json_depth_max);
    match read(body, &limits) {
        Ok(()) => assert!(!malformed, "what is no JSON was taken"),
        Err(refusal) => {
            assert_eq!(refusal.code == ErrorCode::MalformedRequest, malformed, "{refusal:?}");
            echo::is_sound(&refusal);
        }
    }
    let Ok(text) = said else { return };
    never_echoes(text, |text| read(text.as_bytes(), &limits).err());
    query(QUERIES[usize::from(chosen) % QUERIES.len()], text);
    if let Some(after) = read_cursor(text) {
        assert_eq!(write_cursor(after), text, "a cursor has one spelling");
    }
}

fn query(read: QueryReader, text: &str) {
    let line = text.lines().next().unwrap_or_default();
    if let Ok(uri) = format!("/?{line}").parse::<Uri>()
        && let Err(refusal) = read(&uri)
    {
        echo::is_sound(&refusal);
    }
    for (at, _) in line.match_indices('=').take(8) {
        let end = line[at..].find('&').map_or(line.len(), |end| at + end);
        for marked in ["zqxjvkw", "zqxjvkw:%20x,%20expected%20zqxjvkw", "918273645546372819x"] {
            let marked = format!("/?{}={marked}{}", &line[..at], &line[end..]);
            if let Ok(uri) = marked.parse::<Uri>()
                && let Err(refusal) = read(&uri)
            {
                echo::check(&refusal);
            }
        }
    }
}

/// The arguments of every tool.
fn tool_arguments(text: &str) {
    let limits = Limits::default();
    never_echoes(text, |text| {
        read_object::<ChunkRequest>(text).and_then(|chunk| chunk.into_chunk(None, &limits)).err()
    });
    never_echoes(text, |text| read_object::<arguments::ListTasks>(text).err());
    never_echoes(text, |text| read_object::<arguments::Output>(text).err());
    never_echoes(text, |text| read_object::<arguments::Failure>(text).err());
    never_echoes(text, |text| read_object::<arguments::HiringFailure>(text).err());
    never_echoes(text, |text| read_object::<arguments::Message>(text).err());
    never_echoes(text, |text| arguments::id::<OfTask, TaskId>(text).err());
    never_echoes(text, |text| arguments::id::<OfHiring, HiringId>(text).err());
}

/// A body as posted to `/mcp`; with a first byte that is odd, without sessions.
pub fn mcp_messages(data: &[u8]) {
    let Some((&chosen, body)) = data.split_first() else { return };
    let era = if chosen & 1 == 0 { Era::Sessions } else { Era::Stateless };
    let limits = Limits::default();
    match envelope::read(body, era, limits.json_depth_max) {
        Err(rejected) => {
            assert!(matches!(rejected.status.as_u16(), 400 | 404));
            assert!(matches!(rejected.code, -32_700 | -32_602..=-32_600));
            // An answer repeats the id, which the protocol allows to be a string or a whole number.
            let id = rejected.id.as_ref().map(|id| id.get());
            assert!(id.is_none_or(|id| id.starts_with('"') || id.parse::<i64>().is_ok()), "{id:?}");
        }
        Ok((kind, clean)) => {
            let text = std::str::from_utf8(clean.as_deref().unwrap_or(body)).expect("text");
            let (same, same_text) =
                envelope::read(text.as_bytes(), era, limits.json_depth_max).expect("the same");
            assert_eq!(same, kind);
            assert!(same_text.is_none_or(|again| again == text), "what is clean stays");
            let Ok(value) = serde_json::from_str::<Value>(text) else {
                // The library's to refuse: a number that no reader takes.
                return;
            };
            assert_eq!(value["jsonrpc"], "2.0");
            assert_eq!(kind == Kind::Initialize, value["method"] == "initialize");
            assert!(kind == Kind::Other || era == Era::Sessions);
            if value["method"] == "tools/call" {
                assert!(value["params"]["name"].is_string());
                let arguments = &value["params"]["arguments"];
                assert!(arguments.is_null() || arguments.is_object());
                tool_arguments(&arguments.to_string());
            }
        }
    }
}

/// Parts, separated by NUL: the file; then `NAME=value` for variables and `name=value` for flags; then addresses as
/// proxies write them.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut parts = text.splitn(4, '\0');
    let mut part = || parts.next().unwrap_or_default();
    let (file, environment, flags, hops) = (part(), part(), part(), part());
    let pairs = |text: &str| -> Vec<(String, String)> {
        let pairs = text.lines().take(16).filter_map(|line| line.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    let (environment, flags) = (pairs(environment), pairs(flags));
    match combine(Some(("file", file)), &environment, &flags) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(config) => is_usable(&config, hops),
    }
}

fn is_usable(config: &Config, hops: &str) {
    assert_eq!(config.check(), Ok(()));
    assert!(config.origin_policy().is_ok_and(|policy| policy.allows(None)));
    // What `muster config` prints is a file that gives the same.
    let printed = toml::to_string(config).expect("a configuration can be printed");
    assert_eq!(combine(Some(("printed", &printed)), &[], &[]).as_ref(), Ok(config));
    for rate in [config.limits.connects_per_ip, config.limits.chunks_per_stream] {
        let mut bucket = TokenBucket::new(rate, 0);
        assert_eq!(bucket.take(rate, 1, 0), Ok(()), "the first is let in");
        assert!(bucket.remaining(rate, u64::MAX) >= rate.burst.saturating_sub(1));
    }
    let limits = &config.limits;
    for places in [limits.connections_max, limits.http_requests_in_flight_max, limits.store_queue_writes_max]
    {
        // What a semaphore of tokio counts, above which it panics.
        assert!((1..=usize::MAX >> 3).contains(&places));
    }
    assert!(config.accounts.session_ttl_ms > 0, "a session is over before it is had");
    let trusted = Networks::parse(&config.http.trusted_proxies).expect("it was checked");
    let mut headers = http::HeaderMap::new();
    if let Ok(value) = hops.parse() {
        headers.insert("x-forwarded-for", value);
    }
    let peer = "10.0.0.1".parse().expect("an address");
    let client = client_address(peer, &headers, &trusted);
    assert!(client == peer || trusted.contains(peer), "only a trusted proxy is believed");
    assert!(client == peer || hops.contains(|c: char| c.is_ascii_hexdigit()));
    assert_eq!(limit_key(limit_key(client)), limit_key(client));
}
