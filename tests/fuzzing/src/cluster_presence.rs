//! What nodes tell each other.

use std::collections::BTreeMap;

use muster_protocol::cluster::presence::{Bounds, EntryId, Outcome, Replicas};
use muster_protocol::cluster::{Message, NodeKey};
use muster_protocol::json::Json;
use muster_protocol::presence::TopicPresence;

/// Small, so that the fuzzer comes to the bounds.
const BOUNDS: Bounds = Bounds {
    entries_max: 8,
    entries_bytes_max: 4_096,
    history_bytes_max: 1_024,
    piece_bytes_max: 512,
    answer_pieces_max: 2,
    tells_bytes_max: 256,
    name_bytes_max: 64,
};

/// What presence makes of messages of another node, whatever they are: each is preceded by its length, two bytes.
pub fn presence_messages(data: &[u8]) {
    let [me, peer] = ["me", "peer"].map(|name| NodeKey { name: name.into(), incarnation: 1 });
    let mut node = Replicas::new(&me, BOUNDS);
    node.record(std::iter::empty());
    for n in 0..4 {
        let id = EntryId::new(&"topic".into(), &"own".into(), n);
        node.put(id, std::sync::Arc::new(own(n)));
    }
    node.up(&peer, &mut Outcome::default());
    let own = (node.own().version(), node.own().hash());
    let mut told = BTreeMap::new();
    let mut topic = TopicPresence::default();
    let mut rest = data;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let (bytes, after) = after.split_at(usize::from(u16::from_be_bytes(*length)).min(after.len()));
        rest = after;
        let Ok(message) = Message::decode(bytes) else { continue };
        assert_eq!(Message::decode(&message.encode().unwrap()).unwrap(), message);
        let Message::Presence(message) = message else { continue };
        let mut out = Outcome::default();
        node.receive(&peer, message, &mut out);
        assert!(out.messages.len() <= BOUNDS.answer_pieces_max);
        for (to, message) in out.messages {
            assert_eq!(to, peer);
            assert!(message.bytes() <= 64 + BOUNDS.piece_bytes_max);
        }
        for change in out.changes {
            match change.meta {
                Some(meta) => {
                    assert_eq!(meta.id, change.id.track);
                    topic.put(&change.id.key, meta.clone());
                    told.insert(change.id, meta);
                }
                None => {
                    topic.untrack(&change.id.key, change.id.track);
                    assert!(told.remove(&change.id).is_some(), "gone, and never came");
                }
            }
        }
        let known = node.of(&peer).unwrap();
        assert!(known.iter().eq(told.iter()), "what is known is what was told");
        assert!(known.len() <= BOUNDS.entries_max && known.bytes() <= BOUNDS.entries_bytes_max);
        assert_eq!((node.own().version(), node.own().hash()), own);
        // Clients can read it.
        topic.flush();
        serde_json::from_slice::<serde_json::Value>(topic.snapshot().as_bytes()).unwrap();
        if node.has_news() {
            node.push(&mut Outcome::default());
        }
    }
    let mut out = Outcome::default();
    node.down(&peer, &mut out);
    assert_eq!(out.changes.len(), told.len(), "all goes with it");
}

fn own(n: u64) -> muster_protocol::presence::Meta {
    muster_protocol::presence::Meta {
        id: n,
        phx_ref: format!("ref {n}").into(),
        phx_ref_prev: None,
        fields: Json::of(&BTreeMap::from([("n", "x".repeat(100))])),
        facts: std::sync::Arc::default(),
    }
}
