//! The laws of merging, tables, and a simulation of several nodes.

mod simulation;

use proptest::prelude::*;

use super::*;
use crate::presence::{Facts, track_id};

pub(super) const BOUNDS: Bounds = Bounds {
    entries_max: 1_000,
    entries_bytes_max: 1 << 20,
    history_bytes_max: 1 << 20,
    piece_bytes_max: 4_096,
    answer_pieces_max: 4,
    tells_bytes_max: 1_000,
    name_bytes_max: 255,
};

pub(super) fn key_of(name: &str, incarnation: u64) -> NodeKey {
    NodeKey { name: name.into(), incarnation }
}

pub(super) fn meta(number: u64, phx_ref: &str, fields: &str) -> Arc<Meta> {
    let facts = Facts { capabilities: vec!["code".into()], reputation: 2.5, ..Facts::default() };
    Arc::new(Meta {
        id: number,
        phx_ref: phx_ref.into(),
        phx_ref_prev: Some("before".into()),
        fields: Json::from_trusted_bytes(fields.as_bytes().to_vec().into()),
        facts: Arc::new(facts),
    })
}

fn id(topic: &str, key: &str, number: u64) -> EntryId {
    EntryId::new(&topic.into(), &key.into(), number)
}

/// Two nodes and what is under way between them, in order.
struct Pair {
    names: [NodeKey; 2],
    nodes: [Replicas; 2],
    changes: Vec<Change>,
    tells: Vec<Tell>,
    counts: Counts,
    messages: usize,
}

impl Pair {
    /// Of which the first has these entries before the second is up.
    fn new(bounds: Bounds, entries: u64) -> Self {
        let names = [key_of("a", 1), key_of("b", 1)];
        let nodes = [Replicas::new(&names[0], bounds), Replicas::new(&names[1], bounds)];
        let mut pair = Self {
            names,
            nodes,
            changes: Vec::new(),
            tells: Vec::new(),
            counts: Counts::default(),
            messages: 0,
        };
        pair.nodes.iter_mut().for_each(|node| node.record(std::iter::empty()));
        (0..entries).for_each(|n| pair.put(n));
        for (from, to) in [(0, 1), (1, 0)] {
            let name = pair.names[to].clone();
            pair.step(from, |node, out| node.up(&name, out));
        }
        pair
    }

    fn put(&mut self, n: u64) {
        let text = format!("{{\"n\":{n},\"text\":\"{}\"}}", "x".repeat(60));
        self.nodes[0].put(id("t", &format!("k{n}"), n), meta(n, &format!("r{n}"), &text));
    }

    /// Lets a node do something, and both all that follows from it.
    fn step(&mut self, at: usize, act: impl FnOnce(&mut Replicas, &mut Outcome)) {
        let mut under_way = std::collections::VecDeque::new();
        let mut out = Outcome::default();
        act(&mut self.nodes[at], &mut out);
        under_way.extend(out.messages.drain(..).map(|(_, message)| (at, message)));
        self.note(at, out);
        while let Some((from, message)) = under_way.pop_front() {
            self.messages += 1;
            assert!(message.bytes() <= 64 + BOUNDS.piece_bytes_max);
            let to = 1 - from;
            let mut out = Outcome::default();
            self.nodes[to].receive(&self.names[from], message, &mut out);
            under_way.extend(out.messages.drain(..).map(|(_, message)| (to, message)));
            self.note(to, out);
        }
    }

    fn note(&mut self, at: usize, out: Outcome) {
        if at == 1 {
            self.changes.extend(out.changes);
            self.tells.extend(out.tells);
            let sum = &mut self.counts;
            sum.asked_for_changes += out.counts.asked_for_changes;
            sum.asked_for_all += out.counts.asked_for_all;
            sum.diverged += out.counts.diverged;
            sum.entries_refused += out.counts.entries_refused;
            sum.malformed += out.counts.malformed;
            sum.tells_refused += out.counts.tells_refused;
        }
        self.counts.too_large += out.counts.too_large;
    }

    fn push(&mut self) {
        self.step(0, Replicas::push);
    }

    fn digest(&mut self) {
        self.step(1, Replicas::digest);
        self.step(0, Replicas::digest);
    }

    fn known(&self) -> Vec<(EntryId, SmolStr)> {
        read(self.nodes[1].of(&self.names[0]).unwrap())
    }

    fn truth(&self) -> Vec<(EntryId, SmolStr)> {
        read(self.nodes[0].own())
    }
}

/// What a state holds, whoever knows it.
pub(super) fn read(state: &State) -> Vec<(EntryId, SmolStr)> {
    let plain = |id: &EntryId| EntryId { track: crate::presence::track_number(id.track), ..id.clone() };
    state.iter().map(|(id, meta)| (plain(id), meta.phx_ref.clone())).collect()
}

#[test]
fn a_new_peer_gets_all_entries_and_then_changes() {
    let mut pair = Pair::new(BOUNDS, 200);
    assert_eq!(pair.known(), pair.truth());
    assert_eq!(pair.changes.len(), 200);
    let before = pair.messages;
    pair.put(7);
    pair.put(1_000);
    pair.nodes[0].remove(id("t", "k3", 3));
    pair.push();
    assert_eq!(pair.known(), pair.truth());
    assert_eq!(pair.messages, before + 1, "three changes are one message");
    let (_, taken) = pair.nodes[1].of(&pair.names[0]).unwrap().iter().next().unwrap();
    assert_eq!(taken.id, track_id(1, 0));
    assert_eq!(taken.phx_ref_prev.as_deref(), Some("before"));
    assert_eq!(taken.facts.capabilities, ["code"]);
    pair.digest();
    assert_eq!((pair.counts.diverged, pair.counts.malformed), (0, 0));
}

#[test]
fn what_was_missed_comes_from_the_history_and_all_entries_where_it_does_not_reach() {
    let mut bounds = BOUNDS;
    bounds.history_bytes_max = 3_000;
    for (missed, whole) in [(5, 0), (60, 1)] {
        let mut pair = Pair::new(bounds, 100);
        pair.counts = Counts::default();
        pair.changes.clear();
        (0..missed).for_each(|n| pair.put(1_000 + n));
        // Pushed to nobody.
        pair.nodes[0].push(&mut Outcome::default());
        assert_ne!(pair.known(), pair.truth());
        pair.digest();
        assert_eq!(pair.known(), pair.truth());
        assert_eq!(pair.counts.asked_for_all.min(1), whole, "{missed}");
        assert_eq!(pair.changes.len(), usize::try_from(missed).unwrap(), "only what is new is told");
    }
}

/// A peer gets a state that is not older than its question, whoever asked before.
#[test]
fn all_entries_are_those_of_now() {
    let bounds = Bounds { history_bytes_max: 3_000, ..BOUNDS };
    let mut pair = Pair::new(bounds, 100);
    assert!(pair.counts.asked_for_changes > 0);
    (0..5).for_each(|n| pair.nodes[0].remove(id("t", &format!("k{n}"), n)));
    pair.push();
    let (name, me) = (key_of("c", 1), pair.names[0].clone());
    let mut third = Replicas::new(&name, bounds);
    third.record(std::iter::empty());
    let mut out = Outcome::default();
    pair.nodes[0].up(&name, &mut Outcome::default());
    third.up(&me, &mut out);
    while let Some((to, message)) = out.messages.pop() {
        assert_eq!(to, me);
        let mut answer = Outcome::default();
        pair.nodes[0].receive(&name, message, &mut answer);
        answer.messages.into_iter().for_each(|(_, message)| third.receive(&me, message, &mut out));
    }
    assert_eq!(out.changes.len(), 95, "nobody comes who has gone already");
    assert_eq!(read(third.of(&me).unwrap()), pair.truth());
}

#[test]
fn a_divergence_without_a_gap_is_found_and_mended() {
    // The history does not reach back: a state of the writer is kept that is too old to mend what follows.
    let mut pair = Pair::new(Bounds { history_bytes_max: 3_000, ..BOUNDS }, 50);
    assert!(pair.counts.asked_for_all + pair.counts.asked_for_changes > 0);
    let name = pair.names[0].clone();
    // A change that the writer never made, and one it did that was left out.
    let forged = id("t", "forged", 1);
    let mut writer = wire::Writer::default();
    assert!(writer.add(&forged, Some(&meta(1, "x", "{}")), &BOUNDS));
    let (count, run) = writer.end();
    let message = Message::Changes { from: 50, count, rest: Rest::Nothing, run };
    pair.nodes[1].receive(&name, message, &mut Outcome::default());
    pair.put(50);
    pair.nodes[0].push(&mut Outcome::default());
    assert_eq!(pair.nodes[0].own().version(), pair.nodes[1].of(&name).unwrap().version());
    assert_ne!(pair.known(), pair.truth());
    pair.digest();
    assert_eq!(pair.known(), pair.truth());
    assert_eq!(pair.counts.diverged, 1);
}

#[test]
fn more_entries_than_may_be_are_refused_and_come_when_there_is_room() {
    let mut bounds = BOUNDS;
    bounds.entries_max = 20;
    let mut pair = Pair::new(bounds, 30);
    assert_eq!(pair.known().len(), 20);
    assert_eq!(pair.counts.entries_refused, 10);
    let before = pair.messages;
    pair.digest();
    pair.digest();
    assert_eq!(pair.messages, before + 4, "nothing but digests: it does not ask again and again");
    pair.changes.clear();
    (0..30).step_by(2).for_each(|n| pair.nodes[0].remove(id("t", &format!("k{n}"), n)));
    pair.push();
    assert!(pair.changes.len() < 15, "those that never came do not go");
    pair.digest();
    assert_eq!(pair.known(), pair.truth());
    bounds.entries_max = 1_000;
    bounds.entries_bytes_max = 2_000;
    let pair = Pair::new(bounds, 30);
    let known = pair.nodes[1].of(&pair.names[0]).unwrap();
    assert!(known.bytes() <= 2_000 && known.len() > 2, "{} bytes", known.bytes());
}

#[test]
fn an_entry_that_is_too_large_is_not_told_and_takes_what_was_known_along() {
    let mut pair = Pair::new(BOUNDS, 3);
    let large = format!("{{\"x\":\"{}\"}}", "y".repeat(BOUNDS.piece_bytes_max));
    pair.nodes[0].put(id("t", "k1", 1), meta(1, "large", &large));
    pair.push();
    assert_eq!(pair.counts.too_large, 1);
    assert_eq!(pair.known(), pair.truth());
    assert_eq!(pair.known().len(), 2);
    pair.put(1);
    pair.push();
    assert_eq!(pair.known().len(), 3);
}

#[test]
fn an_event_follows_the_change_before_it_and_is_not_kept_without_bound() {
    let mut pair = Pair::new(BOUNDS, 1);
    let tell = |node: &mut Replicas, text: &str| {
        node.tell(&"t".into(), &"k0".into(), "updated", &Json::of(text));
    };
    pair.put(0);
    tell(&mut pair.nodes[0], "with its change");
    pair.push();
    assert_eq!(pair.tells.len(), 1);
    assert_eq!(pair.changes.len(), 2, "the change came before");
    // The change is lost, its event is not.
    pair.put(0);
    pair.nodes[0].push(&mut Outcome::default());
    tell(&mut pair.nodes[0], "early");
    tell(&mut pair.nodes[0], &"x".repeat(BOUNDS.tells_bytes_max));
    pair.push();
    assert_eq!((pair.tells.len(), pair.counts.tells_refused), (1, 1));
    pair.digest();
    assert_eq!(pair.tells.len(), 2);
    assert_eq!(pair.tells[1].payload.as_str(), "\"early\"");
}

#[test]
fn a_higher_incarnation_replaces_and_an_older_one_is_ignored() {
    let mut pair = Pair::new(BOUNDS, 5);
    let mut out = Outcome::default();
    pair.nodes[1].up(&key_of("a", 2), &mut out);
    assert_eq!(out.changes.len(), 5, "all of the old one leaves at once");
    assert!(out.changes.iter().all(|change| change.meta.is_none()));
    assert_eq!(out.messages.len(), 2, "the new one learns at once where this one stands, and is asked");
    for message in [Message::Digest { version: 9, hash: 9 }, Message::Wanted { after: 0 }] {
        let mut out = Outcome::default();
        pair.nodes[1].up(&key_of("a", 1), &mut out);
        pair.nodes[1].receive(&key_of("a", 1), message, &mut out);
        pair.nodes[1].down(&key_of("a", 1), &mut out);
        assert!(out.messages.is_empty() && out.changes.is_empty());
    }
    assert!(pair.nodes[1].of(&key_of("a", 2)).is_some());
}

#[test]
fn what_is_not_as_it_must_be_is_refused_and_changes_nothing() {
    #[derive(Serialize)]
    struct Put<'a> {
        t: &'a str,
        k: &'a str,
        n: u64,
        m: Option<Content<'a>>,
    }
    #[derive(Serialize)]
    struct Content<'a> {
        r: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        c: Option<Fields<'a>>,
    }
    #[derive(Serialize, Clone)]
    struct Fields<'a> {
        #[serde(serialize_with = "bytes")]
        f: &'a str,
        s: f64,
        b: i64,
    }
    fn bytes<S: serde::Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(text.as_bytes())
    }
    let good = Fields { f: "{}", s: 1.0, b: 1 };
    let put = |t, k, n, r, c| Put { t, k, n, m: Some(Content { r, c }) };
    let long = "x".repeat(256);
    let cases = [
        (put("t", "k", 1, "r", Some(good.clone())), true),
        (put("", "k", 1, "r", Some(good.clone())), false),
        (put("t", &long, 1, "r", Some(good.clone())), false),
        (put("t", "k", 1 << 48, "r", Some(good.clone())), false),
        (put("t", "k", 1, "", Some(good.clone())), false),
        (put("t", "k", 1, "r", None), false),
        (put("t", "k", 1, "r", Some(Fields { f: "[]", ..good.clone() })), false),
        (put("t", "k", 1, "r", Some(Fields { f: "{", ..good.clone() })), false),
        (put("t", "k", 1, "r", Some(Fields { s: f64::NAN, ..good.clone() })), false),
        (put("t", "k", 1, "r", Some(Fields { b: -1, ..good.clone() })), false),
    ];
    for (n, (put, fits)) in cases.into_iter().enumerate() {
        let mut run = rmp_serde::to_vec_named(&put).unwrap();
        for cut in [0, 1] {
            run.truncate(run.len() - cut);
            let bytes = rmp_serde::to_vec(&serde_bytes(&run)).unwrap();
            let run: Run = rmp_serde::from_slice(&bytes).unwrap();
            let mut pair = Pair::new(BOUNDS, 0);
            let mut out = Outcome::default();
            let name = pair.names[0].clone();
            pair.nodes[1].receive(
                &name,
                Message::Changes { from: 0, count: 1, rest: Rest::Nothing, run },
                &mut out,
            );
            let taken = fits && cut == 0;
            assert_eq!(out.counts.malformed, u64::from(!taken), "case {n}, cut {cut}");
            assert_eq!(pair.known().len(), usize::from(taken));
        }
    }
}

fn serde_bytes(bytes: &[u8]) -> impl Serialize + '_ {
    struct Bytes<'a>(&'a [u8]);
    impl Serialize for Bytes<'_> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(self.0)
        }
    }
    Bytes(bytes)
}

/// What is the same on several topics travels once, and is kept once.
#[test]
fn equal_content_is_shared() {
    let mut pair = Pair::new(BOUNDS, 0);
    let fields = format!("{{\"x\":\"{}\"}}", "y".repeat(1_000));
    let first = meta(1, "r1", &fields);
    let second = Arc::new(Meta { id: 2, phx_ref: "r2".into(), ..(*first).clone() });
    pair.nodes[0].put(id("t", "k", 1), first);
    pair.nodes[0].put(id("u", "k", 2), second);
    let mut out = Outcome::default();
    pair.nodes[0].push(&mut out);
    assert!(out.messages[0].1.bytes() < 1_500);
    let name = pair.names[0].clone();
    pair.nodes[1].receive(&name, out.messages.remove(0).1, &mut Outcome::default());
    let known: Vec<_> = pair.nodes[1].of(&name).unwrap().iter().map(|(_, meta)| meta.clone()).collect();
    assert!(Arc::ptr_eq(&known[0].facts, &known[1].facts));
    assert_eq!(known[0].fields.bytes().as_ptr(), known[1].fields.bytes().as_ptr());
}

#[test]
fn what_changes_is_encoded_once_for_all_peers() {
    let mut pair = Pair::new(BOUNDS, 0);
    (0..3).for_each(|n| pair.nodes[0].up(&key_of(&format!("more {n}"), 1), &mut Outcome::default()));
    (0..40).for_each(|n| pair.put(n));
    let mut out = Outcome::default();
    pair.nodes[0].push(&mut out);
    let places: std::collections::BTreeSet<*const u8> = out
        .messages
        .iter()
        .map(|(_, message)| match message {
            Message::Changes { run, .. } => run.place(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(out.messages.len(), 4 * places.len());
    assert!(!pair.nodes[0].has_news());
}

#[test]
fn messages_travel_as_they_are() {
    let mut pair = Pair::new(BOUNDS, 0);
    pair.put(1);
    pair.nodes[0].tell(&"t".into(), &"k1".into(), "updated", &Json::of("x"));
    let mut out = Outcome::default();
    pair.nodes[0].push(&mut out);
    assert_eq!(out.messages.len(), 2);
    for (_, message) in out.messages {
        let message = crate::cluster::Message::Presence(message);
        let bytes = message.encode().unwrap();
        assert_eq!(crate::cluster::Message::decode(&bytes).unwrap(), message);
    }
}

/// A writer's life: what it did, one change each.
#[derive(Clone, Debug)]
struct Life(Vec<(u8, bool)>);

impl Life {
    /// Its state at a version.
    fn at(&self, incarnation: u64, version: usize) -> State {
        let mut state = State::new(incarnation);
        for (n, (key, put)) in self.0.iter().take(version).enumerate() {
            let meta = put.then(|| meta(u64::from(*key), &format!("{incarnation}.{n}"), "{}"));
            state.apply(Change { id: id("t", &format!("k{key}"), u64::from(*key)), meta });
        }
        state
    }
}

fn life() -> impl Strategy<Value = Life> {
    proptest::collection::vec((0_u8..6, any::<bool>()), 1..30).prop_map(Life)
}

/// What a node may know of some writers: of each some version of some incarnation.
fn view() -> impl Strategy<Value = Vec<(u64, prop::sample::Index)>> {
    proptest::collection::vec((0_u64..3, any::<prop::sample::Index>()), 3)
}

fn merged(mut left: Vec<State>, right: &[State]) -> Vec<State> {
    for (state, other) in left.iter_mut().zip(right) {
        let before = state.clone();
        let mut told = state.clone();
        let changes = state.merge(other.clone());
        // What is told of a merge leads from one state to the other.
        for Change { id, meta } in changes {
            match meta {
                Some(meta) => told.put(id, meta),
                None => {
                    assert!(told.get(&id).is_some());
                    told.remove(&id);
                }
            }
        }
        assert_eq!(read(&told), read(state), "from {before:?}");
        assert_eq!(told.hash(), state.hash());
        assert_eq!(told.bytes(), state.bytes());
    }
    left
}

proptest! {
    /// Of three nodes' views of three writers, in any order and grouping, comes the same.
    #[test]
    fn merging_is_commutative_associative_and_idempotent(
        lives in proptest::collection::vec(life(), 9),
        views in proptest::collection::vec(view(), 3),
    ) {
        let states = |view: &[(u64, prop::sample::Index)]| -> Vec<State> {
            let writers = view.iter().enumerate();
            writers.map(|(writer, (incarnation, version))| {
                let life = &lives[writer * 3 + usize::try_from(*incarnation).unwrap()];
                life.at(*incarnation, version.index(life.0.len() + 1))
            }).collect()
        };
        let [a, b, c] = [states(&views[0]), states(&views[1]), states(&views[2])];
        prop_assert_eq!(merged(a.clone(), &b), merged(b.clone(), &a));
        prop_assert_eq!(merged(merged(a.clone(), &b), &c), merged(a.clone(), &merged(b.clone(), &c)));
        prop_assert_eq!(merged(a.clone(), &a), a.clone());
        let all = merged(merged(a.clone(), &b), &c);
        prop_assert_eq!(merged(all.clone(), &b), all);
    }

    /// Runs in any order, repeated and with some left out, then the answers to what is asked for: the writer's state.
    #[test]
    fn runs_in_any_order_lead_to_the_state(
        life in life(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 1..6),
        order in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut pair = Pair::new(BOUNDS, 0);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(life.0.len() + 1)).collect();
        ends.push(life.0.len());
        ends.sort_unstable();
        let (mut done, mut runs) = (0, Vec::new());
        for end in ends {
            for (n, (key, put)) in life.0[done..end].iter().enumerate() {
                let (number, name) = (u64::from(*key), format!("k{key}"));
                if *put {
                    pair.nodes[0].put(id("t", &name, number), meta(number, &format!("{}", done + n), "{}"));
                } else {
                    pair.nodes[0].remove(id("t", &name, number));
                }
            }
            done = end;
            let mut out = Outcome::default();
            pair.nodes[0].push(&mut out);
            runs.extend(out.messages.into_iter().map(|(_, message)| message));
        }
        let name = pair.names[0].clone();
        for index in order {
            if !runs.is_empty() {
                let message = runs[index.index(runs.len())].clone();
                pair.nodes[1].receive(&name, message, &mut Outcome::default());
            }
        }
        pair.digest();
        pair.digest();
        prop_assert_eq!(pair.known(), pair.truth());
        prop_assert_eq!(pair.counts.diverged, 0);
    }
}
