//! Types of messages whose payloads have a form (R126). Other types are nobody's business but the two agents'.
//!
//! Only the form is checked: what a field means, where it means something to the server, is looked at by whoever acts on it.
//! Fields that are not named here may be anything.

use serde_json::Value;

use crate::error_code::{ErrorCode, Refusal};
use crate::json::Json;
use crate::money::Amount;

/// An offer or what is said about one.
pub const NEGOTIATION: &str = "negotiation";
/// A task is handed over.
pub const TASK_HANDOFF: &str = "task_handoff";
/// How an agent is doing.
pub const STATUS_UPDATE: &str = "status_update";
/// Work of several.
pub const COLLABORATION: &str = "collaboration";

/// What a field must be.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Id,
    Object,
    Texts,
    Amount,
    /// A number from 0, and up to this if it is one.
    Number(Option<f64>),
    Whole,
    OneOf(&'static [&'static str]),
}

/// Checks the payload of a message of this type; the payload is an object.
///
/// # Errors
/// `invalid_payload` with the field.
pub fn check(kind: &str, payload: &Json) -> Result<(), Refusal> {
    let fields: &[(&'static str, Form)] = match kind {
        NEGOTIATION => &[
            ("session_id", Form::Text),
            ("task_id", Form::Id),
            ("amount", Form::Amount),
            ("terms", Form::Object),
            ("message", Form::Text),
        ],
        TASK_HANDOFF => &[
            ("task_id", Form::Id),
            ("task", Form::Object),
            ("required_capabilities", Form::Texts),
            ("price", Form::Amount),
            ("parent_task_id", Form::Id),
        ],
        STATUS_UPDATE => &[
            ("availability", Form::OneOf(&["online", "offline", "busy", "away"])),
            ("load_percent", Form::Number(Some(100.0))),
            ("health", Form::Object),
            ("active_tasks", Form::Whole),
        ],
        COLLABORATION => &[
            ("team_id", Form::Text),
            ("action", Form::Text),
            ("message", Form::Text),
            ("options", Form::Texts),
            ("period_s", Form::Whole),
        ],
        _ => return Ok(()),
    };
    // A number that no float holds is fine in an opaque payload; here it has no meaning.
    let value: Value = payload.parse().map_err(|_| refuse("payload", "numbers that IEEE 754 has"))?;
    check_fields(&value, fields)?;
    match kind {
        TASK_HANDOFF if value.get("task_id").is_none() && value.get("task").is_none() => {
            Err(refuse("payload", "task_id or task"))
        }
        STATUS_UPDATE => match value.get("health") {
            Some(health) => check_fields(
                health,
                &[("response_time_ms", Form::Number(None)), ("error_rate", Form::Number(Some(1.0)))],
            ),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

fn check_fields(value: &Value, fields: &[(&'static str, Form)]) -> Result<(), Refusal> {
    for (name, form) in fields {
        // Absent and null are the same.
        let Some(field) = value.get(name).filter(|field| !field.is_null()) else { continue };
        if !form.fits(field) {
            return Err(refuse(name, &form.wanted()));
        }
    }
    Ok(())
}

fn refuse(field: &str, wanted: &str) -> Refusal {
    let name = if field == "payload" { field.to_owned() } else { format!("payload.{field}") };
    let message = format!("{name}: expected {wanted}");
    Refusal { field: Some(name.into()), message: Some(message), ..ErrorCode::InvalidPayload.into() }
}

impl Form {
    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::Id => value.as_str().is_some_and(|text| text.parse::<crate::ids::TaskId>().is_ok()),
            Self::Object => value.is_object(),
            Self::Texts => value.as_array().is_some_and(|items| items.iter().all(Value::is_string)),
            Self::Amount => serde_json::from_value::<Amount>(value.clone()).is_ok(),
            Self::Number(most) => {
                value.as_f64().is_some_and(|number| number >= 0.0 && most.is_none_or(|most| number <= most))
            }
            Self::Whole => value.is_u64(),
            Self::OneOf(texts) => value.as_str().is_some_and(|text| texts.contains(&text)),
        }
    }

    fn wanted(self) -> String {
        match self {
            Self::Text => "a string".into(),
            Self::Id => "an id".into(),
            Self::Object => "an object".into(),
            Self::Texts => "an array of strings".into(),
            Self::Amount => "an amount".into(),
            Self::Number(None) => "a number from 0".into(),
            Self::Number(Some(most)) => format!("a number from 0 to {most}"),
            Self::Whole => "a whole number from 0".into(),
            Self::OneOf(texts) => format!("one of {}", texts.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R126: four types have a form; the rest passes as it is.
    #[test]
    fn four_types_are_checked_and_others_are_not() {
        let id = "01a00000-0000-7000-8000-000000000000";
        let handoff = format!(
            r#"{{"task_id":"{id}","context":{{"x":[1]}},"required_capabilities":["code"],"price":"1.5","parent_task_id":null}}"#
        );
        for (kind, payload) in [
            (NEGOTIATION, r#"{"a":1,"b":"x"}"#),
            (NEGOTIATION, r#"{"session_id":"s","amount":"80.00","terms":{}}"#),
            (TASK_HANDOFF, handoff.as_str()),
            (TASK_HANDOFF, r#"{"task":{"capability":"code"}}"#),
            (
                STATUS_UPDATE,
                r#"{"availability":"busy","load_percent":99.5,"health":{"response_time_ms":3,"error_rate":0.1},"active_tasks":2,"progress":{}}"#,
            ),
            (COLLABORATION, r#"{"team_id":"t","action":"vote_open","options":["a","b"],"period_s":60}"#),
            ("anything", r#"{"amount":[],"n":1e999}"#),
        ] {
            assert_eq!(check(kind, &serde_json::from_str(payload).unwrap()), Ok(()), "{kind} {payload}");
        }
        for (kind, payload, field) in [
            (NEGOTIATION, r#"{"amount":"much"}"#, "payload.amount"),
            (NEGOTIATION, r#"{"terms":[]}"#, "payload.terms"),
            (NEGOTIATION, r#"{"n":1e999}"#, "payload"),
            (TASK_HANDOFF, "{}", "payload"),
            (TASK_HANDOFF, r#"{"task_id":"me"}"#, "payload.task_id"),
            (TASK_HANDOFF, r#"{"task":{},"required_capabilities":[1]}"#, "payload.required_capabilities"),
            (TASK_HANDOFF, r#"{"task":{},"price":"-1"}"#, "payload.price"),
            (STATUS_UPDATE, r#"{"availability":"asleep"}"#, "payload.availability"),
            (STATUS_UPDATE, r#"{"load_percent":100.5}"#, "payload.load_percent"),
            (STATUS_UPDATE, r#"{"load_percent":-1}"#, "payload.load_percent"),
            (STATUS_UPDATE, r#"{"health":{"error_rate":2}}"#, "payload.error_rate"),
            (STATUS_UPDATE, r#"{"active_tasks":1.5}"#, "payload.active_tasks"),
            (COLLABORATION, r#"{"options":"a"}"#, "payload.options"),
            (COLLABORATION, r#"{"period_s":-1}"#, "payload.period_s"),
        ] {
            let refusal = check(kind, &serde_json::from_str(payload).unwrap()).unwrap_err();
            assert_eq!(refusal.field.as_deref(), Some(field), "{kind} {payload}");
        }
    }
}
