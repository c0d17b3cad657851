//! Documents made from the code's own tables: what is served, what is checked in under `docs/`, and what a test compares
//! are the same bytes.

mod settings;

use std::fmt::Write;

use muster_protocol::catalog::{EventEntry, TOPICS, TopicEntry};
use muster_protocol::error_code::ErrorCode;
use muster_protocol::websocket::CloseCode;
use serde_json::{Map, Value, json};

/// The REST endpoints, as OpenAPI.
#[must_use]
pub fn openapi() -> String {
    pretty(&crate::http::rest::document())
}

/// The sockets, topics and events, as AsyncAPI 3.
#[must_use]
pub fn asyncapi() -> String {
    let mut channels = Map::new();
    let mut operations = Map::new();
    for topic in TOPICS {
        let name = channel_name(topic.pattern);
        let mut messages = Map::new();
        for (direction, events) in [("receive", topic.inbound), ("send", topic.outbound)] {
            for event in events {
                // An event may go both ways, with another payload each.
                let key = format!("{direction}.{}", event.name);
                messages.insert(key.clone(), message(event));
                let operation = json!({
                    "action": direction,
                    "channel": { "$ref": format!("#/channels/{name}") },
                    "summary": event.description,
                    "messages": [{ "$ref": format!("#/channels/{name}/messages/{key}") }],
                });
                operations.insert(format!("{name}.{key}"), operation);
            }
        }
        channels.insert(name, channel(topic, messages));
    }
    pretty(&json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Muster",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Phoenix channels: each topic below is joined on a socket, with the Phoenix V1 or V2 \
                serializer, by WebSocket or by long-poll. A message `receive.…` is what a client pushes, `send.…` what the \
                server pushes: an event of one name may go both ways. Pushes are answered by phx_reply with `x-reply`; a \
                refusal holds `reason`, one of `x-error-reasons`.",
        },
        "channels": channels,
        "operations": operations,
        "x-error-reasons": errors_value(),
        "x-close-codes": CloseCode::ALL.iter()
            .map(|code| json!({ "code": code.number(), "meaning": code.meaning() }))
            .collect::<Vec<_>>(),
    }))
}

/// `analytics:agent:{agent_id}` is `analytics.agent`.
fn channel_name(pattern: &str) -> String {
    let fixed = pattern.split('{').next().unwrap_or_default();
    fixed.trim_end_matches(':').replace(':', ".")
}

fn schema(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

fn message(event: &EventEntry) -> Value {
    let mut message =
        json!({ "name": event.name, "summary": event.description, "payload": schema(event.payload) });
    if let (Some(reply), Some(fields)) = (event.reply, message.as_object_mut()) {
        fields.insert("x-reply".into(), schema(reply));
    }
    message
}

fn channel(topic: &TopicEntry, messages: Map<String, Value>) -> Value {
    let paths = |transport: &str| -> Vec<String> {
        topic.mounts.iter().map(|mount| format!("{}/{transport}", mount.path())).collect()
    };
    let parameters: Map<String, Value> = topic
        .pattern
        .split('{')
        .skip(1)
        .filter_map(|part| part.split('}').next())
        .map(|name| (name.to_owned(), json!({ "description": "An id." })))
        .collect();
    json!({
        "address": topic.pattern,
        "description": topic.description,
        "parameters": parameters,
        "x-sockets": paths("websocket"),
        "x-longpolls": paths("longpoll"),
        "x-join": schema(topic.join),
        "x-joined": schema(topic.joined),
        "messages": messages,
    })
}

fn errors_value() -> Value {
    let rows = ErrorCode::ALL.iter().map(|code| {
        json!({
            "reason": code.reason(),
            "rest_code": code.rest_code(),
            "http_status": code.http_status(),
            "retryable": code.retryable(),
            "meaning": code.meaning(),
        })
    });
    rows.collect()
}

/// The table of errors, for machines.
#[must_use]
pub fn errors_json() -> String {
    pretty(&errors_value())
}

/// The table of errors and close codes, for people.
#[must_use]
pub fn errors_markdown() -> String {
    let mut out = String::from(
        "# Errors\n\nWritten from the code's own table by `muster docs`; a test compares them.\n\n\
         A refused channel event answers `{\"status\": \"error\", \"response\": {\"reason\": …}}` and changes nothing. A \
         refused request answers the HTTP status with `errors: [{code, message, field, details}]`, where `details.reason` \
         is the same reason. What is retryable can succeed later without a change.\n\n\
         | reason | REST code | HTTP | retryable | meaning |\n| --- | --- | --- | --- | --- |\n",
    );
    for code in ErrorCode::ALL {
        let retryable = if code.retryable() { "yes" } else { "no" };
        // Writing into a String cannot fail.
        let _infallible = writeln!(
            out,
            "| `{}` | `{}` | {} | {retryable} | {} |",
            code.reason(),
            code.rest_code(),
            code.http_status(),
            code.meaning()
        );
    }
    out.push_str("\n## Close codes\n\n1000 is never sent first: Phoenix clients up to 1.8.15 do not come back after it.\n\n| code | meaning |\n| --- | --- |\n");
    for code in CloseCode::ALL {
        let _infallible = writeln!(out, "| {} | {} |", code.number(), code.meaning());
    }
    out
}

/// Every document, by its path in the repository.
#[must_use]
pub fn all() -> Vec<(&'static str, String)> {
    vec![
        ("docs/openapi.json", openapi()),
        ("docs/asyncapi.json", asyncapi()),
        ("docs/errors.md", errors_markdown()),
        ("docs/configuration.md", settings::reference()),
    ]
}

fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    /// What is checked in is what the code says; `muster docs` writes it.
    #[test]
    fn documents_are_up_to_date() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (path, text) in super::all() {
            let checked_in = std::fs::read_to_string(root.join(path)).unwrap_or_default();
            assert!(checked_in == text, "{path} is out of date: run `cargo run -- docs`");
        }
    }

    /// No topic takes the place of another, and what goes both ways has both payloads, and the reply to what is pushed.
    #[test]
    fn asyncapi_has_every_topic_and_both_directions() {
        use muster_protocol::catalog::TOPICS;
        use serde_json::Value;

        let document: Value = serde_json::from_str(&super::asyncapi()).unwrap();
        let channels = document["channels"].as_object().unwrap();
        assert_eq!(channels.len(), TOPICS.len());
        let mut both = 0;
        for topic in TOPICS {
            let found: Vec<&Value> =
                channels.values().filter(|channel| channel["address"] == topic.pattern).collect();
            assert_eq!(found.len(), 1, "{}", topic.pattern);
            let messages = &found[0]["messages"];
            for event in topic.inbound {
                let message = &messages[format!("receive.{}", event.name)];
                assert_eq!(message["name"], event.name);
                assert_eq!(message["payload"], super::schema(event.payload), "{}", event.name);
                assert_eq!(message["x-reply"], super::schema(event.reply.unwrap()), "{}", event.name);
                both += usize::from(topic.outbound.iter().any(|other| other.name == event.name));
            }
            for event in topic.outbound {
                let message = &messages[format!("send.{}", event.name)];
                assert_eq!(message["payload"], super::schema(event.payload), "{}", event.name);
            }
        }
        assert!(both >= 8, "{both}");
        for (name, operation) in document["operations"].as_object().unwrap() {
            let message = operation["messages"][0]["$ref"].as_str().unwrap().trim_start_matches('#');
            assert!(document.pointer(message).is_some(), "{name}: {message}");
        }
        assert!(!super::asyncapi().contains("annex"));
    }
}
