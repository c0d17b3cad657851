//! The catalog says what the code says.

use super::*;
use crate::topic::Topic;

#[test]
fn every_schema_is_json() {
    for topic in TOPICS {
        let events = topic.inbound.iter().chain(topic.outbound);
        let schemas = events.flat_map(|event| [Some(event.payload), event.reply]).flatten();
        for schema in schemas.chain([topic.join, topic.joined]) {
            assert!(serde_json::from_str::<serde_json::Value>(schema).is_ok(), "{schema}");
        }
        assert!(topic.inbound.iter().all(|event| event.reply.is_some()), "{}", topic.pattern);
    }
}

#[test]
fn topics_exist_on_their_mounts_and_no_others() {
    for topic in TOPICS {
        let name = topic.pattern.replace(['{', '}'], "");
        for mount in Mount::ALL {
            let expected = topic.mounts.contains(mount);
            assert_eq!(Topic::parse(*mount, &name).is_some(), expected, "{name} on {mount:?}");
        }
    }
}

/// The names of events stand in `topic::event`; each has an entry here.
#[test]
fn every_event_has_an_entry() {
    // What stands before are topics.
    let (_, source) = include_str!("../topic.rs").split_once("pub mod event {").unwrap();
    let named =
        source.lines().filter_map(|line| line.trim().strip_prefix("pub const ")?.split_once("&str = \""));
    let named: Vec<&str> = named.filter_map(|(_, rest)| rest.split('"').next()).collect();
    assert!(named.len() > 10);
    for name in named {
        let found = TOPICS
            .iter()
            .any(|topic| topic.inbound.iter().chain(topic.outbound).any(|event| event.name == name));
        assert!(found, "{name} is not in the catalog");
    }
}

/// The rows of a table in the document for users, cell by cell.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let (_, section) = include_str!("../../../docs/protocol.md").split_once(heading).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// R172: the document says of every topic on which sockets it is, and names none that there is not.
#[test]
fn the_table_of_topics_is_the_catalogs() {
    let rows = rows("## Topics and their sockets");
    assert_eq!(rows.len(), TOPICS.len());
    for topic in TOPICS {
        let fixed = topic.pattern.split('{').next().unwrap();
        let name =
            if fixed.len() < topic.pattern.len() { format!("`{fixed}<id>`") } else { format!("`{fixed}`") };
        let mounts: Vec<String> = topic.mounts.iter().map(|mount| format!("`{}`", mount.path())).collect();
        let row = rows.iter().find(|row| row[0] == name).unwrap_or_else(|| panic!("{name} has no row"));
        assert_eq!(row[1], mounts.join(", "), "{name}");
    }
}

/// R144 R172: the document has every event of webhooks, as the code has it.
#[test]
fn the_table_of_webhook_events_is_the_codes() {
    use crate::webhook::EventKind;

    let named: Vec<&str> =
        rows("## Webhook events").into_iter().map(|row| row[0].trim_matches('`')).collect();
    let there_are: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(named, there_are);
}

/// R125 R130: the versions and times that the document names are the code's.
#[test]
fn versions_and_times_in_the_document_are_the_codes() {
    use crate::protocol_version::{SUNSET_MS, Version};

    let versions: Vec<String> = Version::SPOKEN.iter().map(|version| format!("`{version}`")).collect();
    let named: Vec<&str> = rows("## Versions of the protocol").into_iter().map(|row| row[0]).collect();
    assert_eq!(named, versions);
    assert_eq!((SUNSET_MS, crate::idempotency::KEPT_MS), (180 * 86_400_000, 24 * 3_600_000));
    assert_eq!(crate::limits::Limits::default().message_retention_ms, 7 * 86_400_000);
}
