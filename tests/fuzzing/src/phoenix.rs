//! Phoenix messages in their three forms.

use muster_protocol::json::{Json, deeper_than, write_string};
use muster_protocol::limits::Limits;
use muster_protocol::phoenix::decode::{binary, text};
use muster_protocol::phoenix::encode::{self, Status};
use muster_protocol::phoenix::session::Session;
use muster_protocol::phoenix::{Inbound, Payload, Ref, Version};
use serde_json::Value;
use serde_json::value::RawValue;

/// A text message of V1.
pub fn phoenix_v1(data: &[u8]) {
    text_message(Version::V1, data);
}

/// A text message of V2.
pub fn phoenix_v2(data: &[u8]) {
    text_message(Version::V2, data);
}

fn text_message(version: Version, data: &[u8]) {
    let Ok(message) = std::str::from_utf8(data) else { return };
    let limits = Limits::default();
    let decoded = text(version, message, &limits);
    if let Ok(inbound) = &decoded {
        is_sound(inbound, message, &limits);
        // Written anew it says the same.
        let again = written(version, inbound);
        let again = text(version, &again, &limits).expect("what was decoded can be written and decoded");
        assert_eq!(parts(version, inbound), parts(version, &again));
        answers(version, inbound);
    }
    // Where the text is JSON of the right shape, it is a message, and the fields are what any other reader finds.
    let Ok(value) = serde_json::from_str::<Value>(message) else { return };
    let plain = value.to_string();
    let Some([join_ref, reference, topic, event]) = fields(version, &value) else {
        let refused = decoded.err().or(text(version, &plain, &limits).err());
        assert!(refused.is_some(), "{plain} has not the shape of a message");
        return;
    };
    let short = |json: &Value| json.to_string().len() < 200;
    if deeper_than(plain.as_bytes(), limits.json_depth_max) || !short(&join_ref) || !short(&reference) {
        return;
    }
    let inbound = text(version, &plain, &limits).expect("a message");
    assert_eq!((inbound.topic.as_deref(), inbound.event.as_deref()), (topic.as_str(), event.as_str()));
    for (json, found) in [(join_ref, &inbound.join_ref), (reference, &inbound.reference)] {
        assert_eq!(json.is_null(), found.is_null());
        if json.is_string() {
            assert_eq!(*found, Ref::from_text(json.as_str().unwrap_or_default()));
        }
    }
}

/// The fields of a message as another reader finds them; `None` when the shape is another.
fn fields(version: Version, value: &Value) -> Option<[Value; 4]> {
    let found = match version {
        Version::V1 => {
            value.get("payload")?;
            let join_ref = value.get("join_ref").cloned().unwrap_or_default();
            [join_ref, value.get("ref")?.clone(), value.get("topic")?.clone(), value.get("event")?.clone()]
        }
        Version::V2 => match value.as_array()?.as_slice() {
            [join_ref, reference, topic, event, _, ..] => {
                [join_ref.clone(), reference.clone(), topic.clone(), event.clone()]
            }
            _ => return None,
        },
    };
    found[2..].iter().all(|name| name.is_null() || name.is_string()).then_some(found)
}

fn is_sound(inbound: &Inbound<'_>, message: &str, limits: &Limits) {
    for reference in [&inbound.join_ref, &inbound.reference] {
        let json = reference.as_json();
        assert!(json.len() <= limits.ref_bytes_max, "a ref over its bound");
        let raw: &RawValue = serde_json::from_str(json).expect("a ref is JSON");
        assert_eq!(Ref::from_raw(raw), *reference, "a ref has one spelling");
    }
    let Payload::Json(payload) = inbound.payload else { panic!("text has no binary payload") };
    // Borrowed: a message is not copied before it is known to be wanted.
    let (inside, start) = (payload.get().as_ptr() as usize, message.as_ptr() as usize);
    assert!(start <= inside && inside + payload.get().len() <= start + message.len());
    assert!(!deeper_than(payload.get().as_bytes(), limits.json_depth_max));
    let passed_on = Json::from_raw(payload);
    assert!(passed_on.parse::<Box<RawValue>>().is_ok_and(|raw| raw.get() == passed_on.as_str()));
    assert!(!passed_on.as_str().contains(['\n', '\r']));
    // A connection without joins has an answer to all of them.
    let session: Session<()> = Session::default();
    let _route = session.route(inbound, limits.topics_per_socket_max);
}

fn name(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => write_string(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

fn written(version: Version, inbound: &Inbound<'_>) -> String {
    let Payload::Json(payload) = inbound.payload else { panic!("text has no binary payload") };
    let (mut topic, mut event) = (Vec::new(), Vec::new());
    name(&mut topic, inbound.topic.as_deref());
    name(&mut event, inbound.event.as_deref());
    let [topic, event] = [topic, event].map(|json| String::from_utf8(json).expect("JSON is UTF-8"));
    let (join_ref, reference) = (inbound.join_ref.as_json(), inbound.reference.as_json());
    match version {
        Version::V1 => format!(
            "{{\"topic\":{topic},\"event\":{event},\"payload\":{payload},\"ref\":{reference},\"join_ref\":{join_ref}}}"
        ),
        Version::V2 => format!("[{join_ref},{reference},{topic},{event},{payload}]"),
    }
}

fn parts(version: Version, inbound: &Inbound<'_>) -> (Ref, Ref, String) {
    (inbound.join_ref.clone(), inbound.reference.clone(), written(version, inbound))
}

/// What a server says about the message is a message too, with the refs as they came.
fn answers(version: Version, inbound: &Inbound<'_>) {
    let (refs, topic) = ((&inbound.join_ref, &inbound.reference), inbound.topic.as_deref());
    let mut out = Vec::new();
    encode::reply(&mut out, version, refs, topic, Status::Ok, b"{}");
    let reply = std::str::from_utf8(&out).expect("a reply is text");
    let raw = |text: &str| serde_json::from_str::<Box<RawValue>>(text).expect("a reply is JSON");
    let reference = match version {
        Version::V1 => raw(reply).get().rsplit_once(",\"ref\":").map(|(_, rest)| rest.len()),
        Version::V2 => {
            let fields: Vec<&RawValue> = serde_json::from_str(reply).expect("an array");
            assert_eq!(fields.len(), 5);
            assert_eq!((fields[0].get(), fields[1].get()), (refs.0.as_json(), refs.1.as_json()));
            Some(refs.1.as_json().len() + 1)
        }
    };
    // A ref may hold any JSON, and so this key; the last one is no further left than the message's own.
    assert!(reference.is_some_and(|length| length <= refs.1.as_json().len() + 1));
}

/// A binary message of V2, and the server's own.
pub fn phoenix_binary(data: &[u8]) {
    binary_message(data, &Limits::default());
    binary_message(data, &Limits { ref_bytes_max: 4, ..Limits::default() });
}

fn binary_message(data: &[u8], limits: &Limits) {
    assert!(binary(Version::V1, data, limits).is_err(), "V1 has no binary messages");
    let names = || -> Option<Vec<&str>> {
        let (head, mut rest) = data.split_at_checked(5)?;
        if head[0] != 0 {
            return None;
        }
        let mut names = Vec::new();
        for length in &head[1..] {
            let (name, tail) = rest.split_at_checked(usize::from(*length))?;
            names.push(std::str::from_utf8(name).ok()?);
            rest = tail;
        }
        Some(names)
    };
    let names = names();
    let bound = |name: &str| name.len() <= limits.ref_bytes_max;
    let fits = names.as_ref().is_some_and(|names| bound(names[0]) && bound(names[1]));
    let decoded = binary(Version::V2, data, limits);
    assert_eq!(decoded.is_ok(), fits, "{names:?}");
    let (Ok(inbound), Some(names)) = (decoded, names) else { return };
    let Payload::Binary(payload) = inbound.payload else { panic!("a binary push has data") };
    let found = [inbound.join_ref.to_binary_text(), inbound.reference.to_binary_text()];
    assert_eq!(found[..], names[..2]);
    assert_eq!([inbound.topic.as_deref(), inbound.event.as_deref()], [Some(names[2]), Some(names[3])]);
    let head: usize = 5 + names.iter().map(|name| name.len()).sum::<usize>();
    assert_eq!(payload, &data[head..]);
    // The server's forms: the lengths lead to the data.
    let (join_ref, reference) = (&inbound.join_ref, &inbound.reference);
    let mut out = Vec::new();
    encode::binary::push(&mut out, join_ref, names[2], names[3], payload)
        .expect("names of at most 255 bytes");
    assert_eq!(server_data(&out, 0, 3), (vec![names[0], names[2], names[3]], payload));
    out.clear();
    encode::binary::reply(&mut out, (join_ref, reference), names[2], Status::Error, payload)
        .expect("the same");
    assert_eq!(server_data(&out, 1, 4), (vec![names[0], names[1], names[2], "error"], payload));
    out.clear();
    encode::binary::broadcast(&mut out, names[2], names[3], payload).expect("the same");
    assert_eq!(server_data(&out, 2, 2), (vec![names[2], names[3]], payload));
}

fn server_data(message: &[u8], kind: u8, count: usize) -> (Vec<&str>, &[u8]) {
    assert_eq!(message[0], kind);
    let (lengths, mut rest) = message[1..].split_at(count);
    let mut names = Vec::new();
    for length in lengths {
        let (name, tail) = rest.split_at(usize::from(*length));
        names.push(std::str::from_utf8(name).expect("names are UTF-8"));
        rest = tail;
    }
    (names, rest)
}
