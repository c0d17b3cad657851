//! Tables, and a model of what a Phoenix client holds after snapshot and diffs.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn meta(id: TrackId, phx_ref: &str) -> Meta {
    Meta {
        id,
        phx_ref: phx_ref.into(),
        phx_ref_prev: None,
        fields: Json::from_trusted_bytes("{\"n\":1}".into()),
        facts: Arc::default(),
    }
}

fn everyone(diff: Option<Diff>) -> Option<String> {
    diff.and_then(|diff| diff.payload(|_, _| true)).map(|json| json.as_str().to_owned())
}

#[test]
fn the_wire_shapes_are_as_recorded() {
    let mut topic = TopicPresence::default();
    assert_eq!(topic.snapshot().as_str(), "{}");
    topic.track(&"alice".into(), meta(1, "A"));
    topic.track(&"alice".into(), meta(2, "B"));
    topic.track(&"bob".into(), Meta { fields: Json::empty_object(), ..meta(3, "C") });
    assert_eq!(
        everyone(topic.flush()).as_deref(),
        Some(
            r#"{"joins":{"alice":{"metas":[{"n":1,"phx_ref":"A"},{"n":1,"phx_ref":"B"}]},"bob":{"metas":[{"phx_ref":"C"}]}},"leaves":{}}"#
        )
    );
    assert_eq!(
        topic.snapshot().as_str(),
        r#"{"alice":{"metas":[{"n":1,"phx_ref":"A"},{"n":1,"phx_ref":"B"}]},"bob":{"metas":[{"phx_ref":"C"}]}}"#
    );
    let changed = Meta { fields: Json::from_trusted_bytes("{\"n\":2}".into()), ..meta(1, "D") };
    assert!(topic.update(&"alice".into(), changed).is_some());
    assert!(topic.untrack(&"bob".into(), 3));
    assert_eq!(
        everyone(topic.flush()).as_deref(),
        Some(
            r#"{"joins":{"alice":{"metas":[{"n":2,"phx_ref":"D","phx_ref_prev":"A"}]}},"leaves":{"alice":{"metas":[{"n":1,"phx_ref":"A"}]},"bob":{"metas":[{"phx_ref":"C"}]}}}"#
        )
    );
}

#[test]
fn what_comes_and_goes_between_flushes_is_not_told() {
    let mut topic = TopicPresence::default();
    topic.track(&"a".into(), meta(1, "A"));
    assert!(topic.untrack(&"a".into(), 1));
    assert!(topic.has_changes());
    assert_eq!(topic.flush(), None);
    assert!(topic.is_empty());
    assert!(!topic.untrack(&"a".into(), 1));
    assert!(topic.update(&"a".into(), meta(1, "B")).is_none());
}

#[test]
fn a_filtered_view_hides_keys_in_snapshot_and_diff() {
    let mut topic = TopicPresence::default();
    topic.track(&"a".into(), meta(1, "A"));
    topic.track(&"b".into(), meta(2, "B"));
    let diff = topic.flush().unwrap();
    let only_a = diff.payload(|key, _| key == "a").unwrap();
    assert_eq!(only_a.as_str(), r#"{"joins":{"a":{"metas":[{"n":1,"phx_ref":"A"}]}},"leaves":{}}"#);
    assert_eq!(diff.payload(|_, _| false), None);
    assert_eq!(topic.snapshot_of(|key, _| key == "b").as_str(), r#"{"b":{"metas":[{"n":1,"phx_ref":"B"}]}}"#);
}

#[test]
fn ids_of_several_nodes_do_not_clash() {
    let ids = [track_id(0, 1), track_id(1, 1), track_id(1, 2), track_id(u16::MAX, 1)];
    assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), ids.len());
    assert_eq!(ids.map(track_number), [1, 1, 2, 1]);
    assert_eq!(track_id(0, 7), 7);
}

#[test]
fn references_are_unique_and_sixteen_characters() {
    let refs: Vec<_> = (0..1_000).map(|counter| phx_ref(7, counter)).collect();
    assert!(refs.iter().all(|text| text.len() == 16));
    assert_eq!(refs.iter().collect::<std::collections::BTreeSet<_>>().len(), refs.len());
    assert_ne!(phx_ref(7, 1), phx_ref(8, 1));
}

/// What the npm client holds: metas by reference, applied as presence.js does.
#[derive(Default)]
struct Client(BTreeMap<String, Vec<String>>);

impl Client {
    fn of(snapshot: &Json) -> Self {
        Self(read(&snapshot.parse::<serde_json::Value>().unwrap()))
    }

    fn apply(&mut self, diff: &Json) {
        let diff: serde_json::Value = diff.parse().unwrap();
        for (key, refs) in read(&diff["joins"]) {
            let held = self.0.entry(key).or_default();
            held.retain(|present| !refs.contains(present));
            held.extend(refs);
        }
        for (key, refs) in read(&diff["leaves"]) {
            if let Some(held) = self.0.get_mut(&key) {
                held.retain(|present| !refs.contains(present));
                if held.is_empty() {
                    self.0.remove(&key);
                }
            }
        }
    }

    fn sorted(mut self) -> BTreeMap<String, Vec<String>> {
        self.0.values_mut().for_each(|refs| refs.sort());
        self.0
    }
}

fn read(entries: &serde_json::Value) -> BTreeMap<String, Vec<String>> {
    let metas = |entry: &serde_json::Value| {
        entry["metas"]
            .as_array()
            .unwrap()
            .iter()
            .map(|meta| meta["phx_ref"].as_str().unwrap().to_owned())
            .collect()
    };
    entries.as_object().unwrap().iter().map(|(key, entry)| (key.clone(), metas(entry))).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Track(u8, u64),
    Update(u8, u64),
    Untrack(u8, u64),
    Flush,
    Join,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0_u8..4, 0_u64..4).prop_map(|(key, id)| Step::Track(key, id)),
        (0_u8..4, 0_u64..4).prop_map(|(key, id)| Step::Update(key, id)),
        (0_u8..4, 0_u64..4).prop_map(|(key, id)| Step::Untrack(key, id)),
        Just(Step::Flush),
        Just(Step::Join),
    ]
}

proptest! {
    /// Whenever a client joins, snapshot and later diffs bring it to the truth, and no entry is told twice.
    #[test]
    fn every_client_converges(steps in proptest::collection::vec(step(), 1..80)) {
        let mut topic = TopicPresence::default();
        let mut clients: Vec<Client> = Vec::new();
        let mut counter = 0;
        let flush = |topic: &mut TopicPresence, clients: &mut Vec<Client>| {
            if let Some(payload) = topic.flush().and_then(|diff| diff.payload(|_, _| true)) {
                clients.iter_mut().for_each(|client| client.apply(&payload));
            }
        };
        for step in steps {
            counter += 1;
            let key = |key: u8| SmolStr::from(format!("k{key}"));
            match step {
                Step::Track(k, id) => {
                    topic.track(&key(k), meta(id, &format!("r{counter}")));
                }
                Step::Update(k, id) => {
                    topic.update(&key(k), Meta { fields: Json::empty_object(), ..meta(id, &format!("r{counter}")) });
                }
                Step::Untrack(k, id) => {
                    topic.untrack(&key(k), id);
                }
                Step::Flush => flush(&mut topic, &mut clients),
                Step::Join => {
                    flush(&mut topic, &mut clients);
                    clients.push(Client::of(&topic.snapshot()));
                }
            }
        }
        flush(&mut topic, &mut clients);
        let truth = Client::of(&topic.snapshot()).sorted();
        for client in clients {
            prop_assert_eq!(client.sorted(), truth.clone());
        }
    }
}
