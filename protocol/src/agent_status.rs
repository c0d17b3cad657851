//! What agents say of themselves with messages of type `status_update` (agrenting.md R128): kept in their metadata as
//! `status`, which nothing else can set (R64), so that whoever sees an agent sees it.

use std::collections::BTreeMap;

use crate::agent::set_protected;
use crate::discovery::Availability;
use crate::error_code::Refusal;
use crate::json::Json;
use crate::limits::Limits;
use crate::time::Timestamp;
use serde::Deserialize;

/// Where it is in the metadata.
const KEY: &str = "status";
/// When it was said.
const AT: &str = "updated_at";
/// What of a payload is kept.
const FIELDS: [&str; 5] = ["availability", "load_percent", "health", "active_tasks", "progress"];

type Fields = BTreeMap<String, Json>;

fn status_of(metadata: &Json) -> Fields {
    let mut metadata: Fields = metadata.parse().unwrap_or_default();
    metadata.remove(KEY).and_then(|status| status.parse().ok()).unwrap_or_default()
}

/// The availability an agent has said it has; online when it has said nothing.
#[must_use]
pub fn availability(metadata: &Json) -> Availability {
    #[derive(Deserialize)]
    struct Metadata {
        status: Option<Status>,
    }
    #[derive(Deserialize)]
    struct Status {
        availability: Option<Availability>,
    }
    // Mostly nothing was said.
    if memchr::memmem::find(metadata.as_bytes(), b"\"availability\"").is_none() {
        return Availability::Online;
    }
    let said = metadata.parse::<Metadata>().ok().and_then(|metadata| metadata.status?.availability);
    said.unwrap_or(Availability::Online)
}

/// Metadata with what was said at a time: a field that is absent stays as it was, `null` removes it. Nothing if something
/// newer was said already, as when an old message is sent again.
///
/// # Errors
/// It is too large with it.
pub fn said(
    metadata: &Json,
    payload: &Json,
    at: Timestamp,
    limits: &Limits,
) -> Result<Option<Json>, Refusal> {
    let mut status = status_of(metadata);
    let before: Option<Timestamp> = status.get(AT).and_then(|at| at.parse().ok());
    if before.is_some_and(|before| before > at) {
        return Ok(None);
    }
    let mut payload: Fields = payload.parse().map_err(|_| Refusal::invalid("payload: expected an object"))?;
    for name in FIELDS {
        match payload.remove(name) {
            None => {}
            Some(value) if value == Json::null() => drop(status.remove(name)),
            Some(value) => drop(status.insert(name.to_owned(), value)),
        }
    }
    status.insert(AT.to_owned(), Json::of(&at));
    let too_large = |refusal: Refusal| Refusal { field: Some("payload".into()), ..refusal };
    set_protected(metadata, KEY, Json::of(&status), limits).map(Some).map_err(too_large)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        serde_json::from_str(text).unwrap()
    }

    /// R128: what is said is kept beside what else the metadata has, and the newest stands.
    #[test]
    fn what_is_said_is_merged_and_the_newest_stands() {
        let limits = Limits::default();
        let at = Timestamp::from_unix_ms;
        let first = json(r#"{"availability":"busy","load_percent":99.5,"extra":1,"progress":{"n": 1.0}}"#);
        let metadata = said(&json(r#"{"region":"eu"}"#), &first, at(2_000), &limits).unwrap().unwrap();
        assert_eq!(availability(&metadata), Availability::Busy);
        assert_eq!(
            metadata.as_str(),
            r#"{"region":"eu","status":{"availability":"busy","load_percent":99.5,"progress":{"n": 1.0},"updated_at":"1970-01-01T00:00:02.000Z"}}"#
        );
        assert_eq!(said(&metadata, &json(r#"{"availability":"online"}"#), at(1_999), &limits), Ok(None));
        let again = said(&metadata, &first, at(2_000), &limits).unwrap();
        assert_eq!(again, Some(metadata.clone()), "the same again is the same");
        let next = json(r#"{"availability":"away","progress":null,"active_tasks":2}"#);
        let metadata = said(&metadata, &next, at(2_001), &limits).unwrap().unwrap();
        assert_eq!(
            metadata.as_str(),
            r#"{"region":"eu","status":{"active_tasks":2,"availability":"away","load_percent":99.5,"updated_at":"1970-01-01T00:00:02.001Z"}}"#
        );
        assert_eq!(availability(&metadata), Availability::Away);
        let large = json(&format!(r#"{{"progress":"{}"}}"#, "x".repeat(limits.agent_metadata_bytes_max)));
        assert_eq!(
            said(&metadata, &large, at(3_000), &limits).unwrap_err().field.as_deref(),
            Some("payload")
        );
    }

    #[test]
    fn who_has_said_nothing_is_online() {
        for metadata in
            ["{}", r#"{"availability":"busy"}"#, r#"{"status":{}}"#, r#"{"x":{"availability":"busy"}}"#]
        {
            assert_eq!(availability(&json(metadata)), Availability::Online, "{metadata}");
        }
        for (said, availability_is) in [
            ("online", Availability::Online),
            ("offline", Availability::Offline),
            ("busy", Availability::Busy),
            ("away", Availability::Away),
        ] {
            let metadata = json(&format!(r#"{{"status":{{"availability":"{said}"}}}}"#));
            assert_eq!(availability(&metadata), availability_is);
        }
    }
}
