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
