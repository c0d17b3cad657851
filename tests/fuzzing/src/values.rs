//! JSON that is passed on, and values that are written as text: ids, amounts, times, topics, keys.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use muster_protocol::account::{Secret, check_name};
use muster_protocol::agent::{AgentStatus, PricingModel, check_capabilities, check_did};
use muster_protocol::ids::{AgentId, TaskId, UserId};
use muster_protocol::json::{
    Json, LossyString, deeper_than, has_poisoned_key, read_object, without_lone_surrogates, write_string,
};
use muster_protocol::limits::Limits;
use muster_protocol::money::Amount;
use muster_protocol::signing::PublicKey;
use muster_protocol::task::{TaskStatus, check_note};
use muster_protocol::time::Timestamp;
use muster_protocol::topic::{Mount, Topic};
use serde_json::Value;

use crate::echo;

/// The deepest nesting that is tried.
const DEPTH_MAX: usize = 64;

/// Any text as JSON.
pub fn json_values(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut quoted = Vec::new();
    write_string(&mut quoted, text);
    assert_eq!(serde_json::from_slice::<String>(&quoted).expect("a string"), text);

    let clean = without_lone_surrogates(text);
    assert_eq!(without_lone_surrogates(&clean), clean, "what is clean stays");
    echo::never_echoes(text, |text| read_object::<Object>(text).err());
    let Ok(json) = serde_json::from_str::<Json>(text) else {
        assert!(serde_json::from_str::<Value>(text).is_err(), "JSON is taken");
        return;
    };
    is_passed_on(text, &json);
    if let Ok(LossyString(read)) = json.parse() {
        // Once passed on it has no lone surrogates, so that everybody reads the same.
        assert_eq!(json.parse::<String>().expect("a string"), read);
        assert_eq!(serde_json::from_str::<LossyString>(text).expect("the same").0, read);
    }
    let Ok(value) = json.parse::<Value>() else { return };
    nesting(&json, &value);
}

type Object = std::collections::BTreeMap<String, Json>;

fn is_passed_on(text: &str, json: &Json) {
    assert!(!json.as_str().contains(['\n', '\r']), "one line");
    assert!(json.as_bytes().len() <= text.len(), "no longer than it came");
    assert_eq!(json.parse::<Json>().expect("JSON stays JSON"), *json);
    assert_eq!(serde_json::to_string(json).expect("it is written"), json.as_str());
    match (serde_json::from_str::<Value>(text), json.parse::<Value>()) {
        (Ok(before), Ok(after)) => assert_eq!(before, after),
        (Ok(_), Err(error)) => panic!("a reader is lost: {error}"),
        (Err(_), Ok(_)) => {}
        (Err(_), Err(error)) => {
            // Readers without a number of that size, or without a stack of that height.
            let said = error.to_string();
            assert!(said.contains("out of range") || said.contains("recursion limit"), "{said}");
        }
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn poisoned(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(poisoned),
        Value::Object(fields) => fields.iter().any(|(key, inner)| {
            ["__proto__", "constructor", "prototype"].contains(&key.as_str()) || poisoned(inner)
        }),
        _ => false,
    }
}

fn nesting(json: &Json, value: &Value) {
    // Without what a later field of the same name replaced.
    let plain = Json::of(value);
    let exact = depth(value);
    for depth_max in [0, 1, 2, exact.saturating_sub(1), exact, DEPTH_MAX] {
        assert_eq!(deeper_than(plain.as_bytes(), depth_max), exact > depth_max, "{depth_max}");
        assert!(exact <= depth_max || deeper_than(json.as_bytes(), depth_max), "{depth_max}");
    }
    if exact <= DEPTH_MAX {
        assert_eq!(has_poisoned_key(&plain), poisoned(value));
        assert!(has_poisoned_key(json) || !poisoned(value));
        // Where nothing is escaped, a key is a string before a colon.
        if !json.as_str().contains('\\') {
            let spelled = ["__proto__", "constructor", "prototype"].iter().any(|key| {
                let quoted = format!("\"{key}\"");
                json.as_str().match_indices(&quoted).any(|(at, _)| {
                    let rest = json.as_str()[at + quoted.len()..].trim_start();
                    rest.starts_with(':')
                })
            });
            assert_eq!(has_poisoned_key(json), spelled, "{json:?}");
        }
    }
}

/// Any text as an id, an amount, a time, a topic, a path, a key, a name; any bytes as stored ones.
pub fn names(data: &[u8]) {
    if let Some((bytes, _)) = data.split_first_chunk::<16>() {
        let id = TaskId::from_bytes(*bytes);
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    if let Some((bytes, rest)) = data.split_first_chunk::<8>() {
        let time = Timestamp::from_unix_ms(i64::from_be_bytes(*bytes));
        assert_eq!(Timestamp::parse(&time.to_string()), Ok(time));
        if let Some((more, _)) = rest.split_first_chunk::<8>() {
            let later = time.plus_ms(i64::from_be_bytes(*more).saturating_abs());
            assert!(later >= time && later.ms_since(time) >= 0);
        }
        if let Some(amount) = Amount::from_micros(i64::from_be_bytes(*bytes)) {
            assert_eq!(Amount::parse(&amount.to_string()), Ok(amount));
        }
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(id) = text.parse::<AgentId>() {
        assert_eq!(id.to_string(), text, "an id has one spelling");
        assert_eq!(serde_json::to_string(&id).expect("an id is written"), format!("\"{text}\""));
    }
    amounts(text);
    times(text);
    topics(text);
    keys(text);
    words(text);
}

fn amounts(text: &str) {
    let exact = exact_micros(text);
    assert_eq!(Amount::parse(text).ok().map(|amount| i128::from(amount.micros())), exact, "{text}");
    let Ok(amount) = Amount::parse(text) else { return };
    assert_eq!(Amount::parse(&amount.to_string()), Ok(amount));
    let json = serde_json::to_string(&amount).expect("an amount is written");
    assert_eq!(serde_json::from_str::<Amount>(&json).expect("an amount is read"), amount);
    assert_eq!(serde_json::from_str::<Amount>(&format!("\"{text}\"")).expect("a string"), amount);
}

/// Digit by digit, in a type that cannot overflow before the bound is known to be passed.
fn exact_micros(text: &str) -> Option<i128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.len() > 6 {
        return None;
    }
    let mut micros = 0_i128;
    for digit in whole.chars().chain(format!("{fraction:0<6}").chars()) {
        if !digit.is_ascii_digit() {
            return None;
        }
        micros = (micros * 10 + i128::from(digit.to_digit(10)?)).min(i128::from(u64::MAX));
    }
    (micros <= i128::from(i64::MAX)).then_some(micros)
}

fn times(text: &str) {
    let Ok(time) = Timestamp::parse(text) else { return };
    assert_eq!(Timestamp::parse(&time.to_string()), Ok(time));
    let json = serde_json::to_string(&time).expect("a time is written");
    assert_eq!(serde_json::from_str::<Timestamp>(&json).expect("a time is read"), time);
    assert_eq!(time.to_string().len(), 24);
}

fn topics(text: &str) {
    for mount in Mount::ALL {
        let Some(topic) = Topic::parse(*mount, text) else { continue };
        let Some(name) = topic.name() else {
            let (_, id) = text.split_once(':').expect("a sort and an id");
            assert!(id.parse::<UserId>().is_err());
            continue;
        };
        assert_eq!(name, text, "a topic has one name");
    }
}

fn keys(text: &str) {
    match PublicKey::parse(text) {
        Err(refusal) => echo::is_sound(&refusal),
        Ok(key) => {
            assert_eq!(PublicKey::parse(&key.to_base64()), Ok(key));
            assert_eq!(PublicKey::from_bytes(*key.as_bytes()), Some(key));
            let hex: String = key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            let bare = text.trim_end_matches('=');
            let spellings = [STANDARD_NO_PAD.encode(key.as_bytes()), URL_SAFE_NO_PAD.encode(key.as_bytes())];
            assert!(
                text.eq_ignore_ascii_case(&hex) || spellings.iter().any(|spelling| spelling == bare),
                "{text}"
            );
        }
    }
    let key = PublicKey::parse("iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w=").expect("a key");
    let refused = key.verify("statement", text).expect_err("nobody signed that");
    echo::is_sound(&refused);
}

fn words(text: &str) {
    let limits = Limits::default();
    for status in
        [TaskStatus::parse(text).map(TaskStatus::as_str), AgentStatus::parse(text).map(AgentStatus::as_str)]
    {
        assert!(status.is_none_or(|status| status == text));
    }
    assert!(PricingModel::parse(text).is_none_or(|model| model.as_str() == text));
    assert!(Secret::presented(text).is_none_or(|secret| secret.reveal() == text && !text.is_empty()));
    let printable = |text: &str| !text.trim().is_empty() && !text.chars().any(char::is_control);
    for (checked, chars_max) in [
        (check_name(text, &limits), limits.name_chars_max),
        (check_capabilities(&[text.to_owned()], &limits), limits.capability_chars_max),
    ] {
        assert_eq!(checked.is_ok(), printable(text) && text.chars().count() <= chars_max);
        if let Err(refusal) = checked {
            echo::is_sound(&refusal);
        }
    }
    assert!(check_note(text, &limits).is_err() || !text.trim().is_empty());
    if check_did(text, &limits).is_ok() {
        assert!(
            text.starts_with("did:")
                && text.is_ascii()
                && printable(text)
                && text.len() <= limits.did_bytes_max
        );
    }
    assert!(check_capabilities(&[text.to_owned(), text.to_owned()], &limits).is_err(), "each once");
}
