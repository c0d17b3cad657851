//! What channels take: joins, questions, chunks, announcements.

use muster_protocol::agent::{PROTECTED_KEYS, Registration, merge_metadata};
use muster_protocol::discovery::{Query, View};
use muster_protocol::error_code::Refusal;
use muster_protocol::ids::AgentId;
use muster_protocol::json::{Json, deeper_than, has_poisoned_key, read_object};
use muster_protocol::limits::Limits;
use muster_protocol::money::Amount;
use muster_protocol::negotiation::request::{AcceptRequest, OfferRequest, OpenRequest, RejectRequest};
use muster_protocol::negotiation::{agreement, check_reason};
use muster_protocol::presence::Facts;
use muster_protocol::signing::ServerKey;
use muster_protocol::task::ChunkRequest;
use muster_protocol::task_stream::{Read, StreamLog, join_cursor};
use muster_protocol::time::Timestamp;
use serde_json::Value;

use crate::echo::never_echoes;

/// A payload as a connection hands it to a channel: checked JSON, in the form that is passed on.
pub fn channel_payloads(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let limits = Limits::default();
    if deeper_than(data, limits.json_depth_max) {
        return;
    }
    let Ok(json) = serde_json::from_str::<Json>(text) else { return };
    let text = json.as_str();
    view(text);
    cursor(text);
    query(text);
    chunk(text, &limits);
    metadata(&json, &limits);
    registration(text, &limits);
    negotiation(text, &limits);
}

/// What agents send to negotiate; and agreements, which anybody may show to anybody.
fn negotiation(text: &str, limits: &Limits) {
    let open = |text: &str| {
        let request: OpenRequest = read_object(text)?;
        Ok::<_, Refusal>((request.other()?, request.chosen_id()?, request))
    };
    never_echoes(text, |text| open(text).err());
    if let Ok((other, id, request)) = open(text) {
        assert_eq!(id.map(|id| id.to_string()), request.session_id, "a session has one name");
        assert!(request.signature.is_none() || id.is_some());
        assert!(request.to_agent_id.is_none_or(|to| other == Some(to)));
    }
    never_echoes(text, |text| read_object::<OfferRequest>(text).err());
    never_echoes(text, |text| read_object::<AcceptRequest>(text).err());
    never_echoes(text, |text| {
        let request: RejectRequest = read_object(text).ok()?;
        check_reason(request.reason.as_deref(), limits).err()
    });
    if let Ok(document) = agreement::read(text) {
        // Whatever it says, it holds or it does not; and it does not hold of a server that has never signed.
        let stranger = ServerKey::from_seed([9; 32]).public();
        assert!(document.verify(Some(&stranger)).is_err() || document.verify(None).is_ok());
    }
}

fn view(text: &str) {
    never_echoes(text, |text| View::parse(text).err());
    let asked = serde_json::from_str::<Value>(text);
    let Ok(Value::Object(fields)) = asked else {
        if asked.is_ok() {
            assert_eq!(View::parse(text), Ok(View::Full), "what is no object asks for nothing");
        }
        return;
    };
    let plain = View::parse(&Value::Object(fields.clone()).to_string());
    match fields.get("presence") {
        None | Some(Value::Null) => assert_eq!(plain, Ok(View::Full)),
        Some(Value::String(word)) if word == "full" => assert_eq!(plain, Ok(View::Full)),
        Some(Value::String(word)) if word == "none" => assert_eq!(plain, Ok(View::Nobody)),
        Some(Value::Object(_)) => assert!(matches!(plain, Err(_) | Ok(View::Some(_)))),
        Some(_) => assert!(plain.is_err()),
    }
    // What is not understood must not be taken for the wish to be told of everybody.
    if let Ok(View::Full) = View::parse(text) {
        assert_eq!(plain, Ok(View::Full), "{text}");
    }
    let facts = Facts { capabilities: vec!["code".into()], reputation: 2.5, base_price: Amount::ZERO };
    if let Ok(view) = plain {
        assert!(view != View::Nobody || !view.shows(&facts));
        assert!(view != View::Full || view.shows(&facts));
    }
}

fn cursor(text: &str) {
    never_echoes(text, |text| join_cursor(text).err());
    if let Ok(Some(after)) = join_cursor(text) {
        let value: Value = serde_json::from_str(text).unwrap_or_default();
        assert!(value.is_null() || value["after_seq"].as_u64() == Some(after), "{text}");
        // Wherever a reader stands, an empty log has nothing for it.
        assert_eq!(StreamLog::default().read(after, u64::MAX, 1), Read::End);
    }
}

fn query(text: &str) {
    never_echoes(text, |text| Query::parse(text).err());
    if let Ok(query) = Query::parse(text) {
        assert!(text.trim_start().starts_with('{'));
        let value: Value = serde_json::from_str(text).unwrap_or_default();
        if value.is_object() {
            assert_eq!(query.capability.as_deref(), value["capability"].as_str());
            assert_eq!(query.filters.is_some(), value["filters"].is_object());
        }
    }
}

fn read_chunk(text: &str) -> Result<ChunkRequest, Refusal> {
    read_object(text)
}

fn chunk(text: &str, limits: &Limits) {
    never_echoes(text, |text| {
        read_chunk(text).and_then(|chunk| chunk.task().and(chunk.into_chunk(Some("key"), limits))).err()
    });
    let Ok(request) = read_chunk(text) else { return };
    if let Ok(task) = request.task() {
        assert!(text.contains(&task.to_string()) || text.contains('\\'));
    }
    let given = request.idempotency_key.is_some();
    let Ok(new) = request.into_chunk(Some("key"), limits) else { return };
    assert!(!new.content.is_empty() && new.content.len() <= limits.chunk_content_bytes_max);
    assert!(new.metadata.as_bytes().len() <= limits.chunk_metadata_bytes_max);
    let key = new.idempotency_key.clone().expect("its own or the header's");
    assert!(given || key == "key");
    assert!(key.len() <= limits.idempotency_key_bytes_max && !key.chars().any(char::is_control));
    // Readers get what was sent, in one line of JSON.
    let mut log = StreamLog::default();
    let chunk = log.append(new.clone(), Timestamp::from_unix_ms(1));
    assert!(!chunk.body.as_str().contains(['\n', '\r']));
    assert_eq!((chunk.seq, log.seq_of_key(&key), log.bytes()), (1, Some(1), chunk.weight()));
    #[derive(serde::Deserialize)]
    struct Body {
        seq: u64,
        content: String,
        metadata: Json,
    }
    let body: Body = chunk.body.parse().expect("a body is JSON");
    assert_eq!((body.seq, body.content, body.metadata), (1, new.content, new.metadata));
}

fn metadata(json: &Json, limits: &Limits) {
    let old: Json = serde_json::from_str(r#"{"a":1,"b":{"c":[2]}}"#).expect("JSON");
    never_echoes(json.as_str(), |text| {
        // Which key may not be set is named: it is one of ours.
        let new = serde_json::from_str::<Json>(text).ok()?;
        merge_metadata(&old, &new, limits).err()
    });
    let Ok(merged) = merge_metadata(&old, json, limits) else { return };
    assert!(merged.as_bytes().len() <= limits.agent_metadata_bytes_max);
    assert!(!has_poisoned_key(&merged) && !merged.as_str().contains(['\n', '\r']));
    let fields: std::collections::BTreeMap<String, Json> = merged.parse().expect("an object");
    assert!(PROTECTED_KEYS.iter().all(|key| !fields.contains_key(*key)));
    assert!(fields.values().all(|value| *value != Json::null()));
    assert_eq!(merge_metadata(&merged, json, limits), Ok(merged), "the same again changes nothing");
}

fn registration(text: &str, limits: &Limits) {
    let read = |text: &str| {
        let (id, now) = (AgentId::from_bytes([7; 16]), Timestamp::from_unix_ms(1));
        read_object::<Registration>(text)?.into_agent(id, None, now, limits)
    };
    never_echoes(text, |text| read(text).err());
    if let Ok(agent) = read(text) {
        assert!(agent.capabilities.len() <= limits.capabilities_max);
        assert!(agent.metadata.as_bytes().starts_with(b"{") && !has_poisoned_key(&agent.metadata));
        assert!(!agent.protocol_versions.is_empty());
    }
}
