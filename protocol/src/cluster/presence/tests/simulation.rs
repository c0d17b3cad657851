//! Some nodes that come, go, are cut off from each other and start again, over a network that loses, repeats and
//! reorders. At every step what a node knows of another is one of that node's earlier states, whole; and once the network
//! is whole again, every node knows the truth.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::cluster;

/// Which lives of the world are tried.
const SEEDS: u64 = 400;
const STEPS: usize = 600;

/// Small, so that all of them are reached.
const TIGHT: Bounds =
    Bounds { history_bytes_max: 1_500, piece_bytes_max: 400, answer_pieces_max: 2, ..BOUNDS };

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(sides).unwrap()).unwrap()
    }
}

type Entries = Vec<(EntryId, SmolStr)>;

struct Node {
    name: NodeKey,
    replicas: Replicas,
    /// The own entries, as the test keeps them.
    truth: BTreeMap<EntryId, SmolStr>,
    /// What those who watch here have been told of the others.
    told: BTreeMap<EntryId, SmolStr>,
    /// Whom it holds to be up.
    up: BTreeSet<NodeKey>,
    tells: Vec<Tell>,
    tracks: u64,
}

struct World {
    seed: u64,
    dice: Dice,
    nodes: Vec<Option<Node>>,
    incarnations: Vec<u64>,
    /// Pairs that cannot hear each other, the smaller first.
    cuts: BTreeSet<(usize, usize)>,
    under_way: Vec<(NodeKey, NodeKey, Vec<u8>)>,
    /// States each life has had, by its versions.
    past: BTreeMap<(NodeKey, u64), Entries>,
    lossy: bool,
    refs: u64,
    counts: Counts,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let count = 3 + dice.roll(3);
        let mut world = Self {
            seed,
            dice,
            nodes: (0..count).map(|_| None).collect(),
            incarnations: vec![0; count],
            cuts: BTreeSet::new(),
            under_way: Vec::new(),
            past: BTreeMap::new(),
            lossy: true,
            refs: 0,
            counts: Counts::default(),
        };
        (0..count).for_each(|n| world.start(n));
        world
    }

    fn start(&mut self, n: usize) {
        self.incarnations[n] += 1;
        let name = key_of(&format!("node-{n}"), self.incarnations[n]);
        let mut replicas = Replicas::new(&name, TIGHT);
        replicas.record(std::iter::empty());
        self.nodes[n] = Some(Node {
            name,
            replicas,
            truth: BTreeMap::new(),
            told: BTreeMap::new(),
            up: BTreeSet::new(),
            tells: Vec::new(),
            tracks: 0,
        });
        self.remember(n);
    }

    fn remember(&mut self, n: usize) {
        let node = self.nodes[n].as_ref().unwrap();
        let own = node.replicas.own();
        let truth: Entries = node.truth.iter().map(|(id, phx_ref)| (id.clone(), phx_ref.clone())).collect();
        assert_eq!(read(own), truth, "seed {}", self.seed);
        self.past.insert((node.name.clone(), own.version()), truth);
    }

    /// A node does something: what it says is under way, what it tells is noted, and what it knows is looked at.
    fn step(&mut self, n: usize, act: impl FnOnce(&mut Replicas, &mut Outcome)) {
        let Some(node) = self.nodes[n].as_mut() else { return };
        let mut out = Outcome::default();
        act(&mut node.replicas, &mut out);
        for Change { id, meta } in out.changes {
            match meta {
                Some(meta) => {
                    assert_eq!(meta.id, id.track);
                    node.told.insert(id, meta.phx_ref.clone());
                }
                None => assert!(node.told.remove(&id).is_some(), "seed {}: told to go twice", self.seed),
            }
        }
        node.tells.extend(out.tells);
        for peer in &node.up {
            let Some(known) = node.replicas.of(peer) else { continue };
            let then = self.past.get(&(peer.clone(), known.version()));
            if known.version() > 0 {
                assert_eq!(Some(&read(known)), then, "seed {}: of {peer} at {}", self.seed, node.name);
            }
        }
        let known: usize = node.replicas.remote_entries();
        assert_eq!(known, node.told.len(), "seed {}: what is told is what is known", self.seed);
        self.counts.asked_for_all += out.counts.asked_for_all;
        self.counts.asked_for_changes += out.counts.asked_for_changes;
        self.counts.diverged += out.counts.diverged;
        self.counts.malformed += out.counts.malformed;
        let name = node.name.clone();
        for (to, message) in out.messages {
            let bytes = cluster::Message::Presence(message).encode().unwrap();
            self.under_way.push((name.clone(), to, bytes));
        }
    }

    fn place(&self, name: &NodeKey) -> Option<usize> {
        self.nodes.iter().position(|node| node.as_ref().is_some_and(|node| node.name == *name))
    }

    fn deliver(&mut self) {
        if self.under_way.is_empty() {
            return;
        }
        let which = if self.lossy { self.dice.roll(self.under_way.len()) } else { 0 };
        let repeated = self.lossy && self.dice.roll(8) == 0;
        let (from, to, bytes) =
            if repeated { self.under_way[which].clone() } else { self.under_way.remove(which) };
        let (source, place) = (self.place(&from), self.place(&to));
        // A life that has ended may still have said it; it reaches that life alone that it was said to.
        let Some(place) = place else { return };
        let is_cut = source.is_some_and(|source| self.cuts.contains(&(source.min(place), source.max(place))));
        if is_cut || (self.lossy && self.dice.roll(5) == 0) {
            return;
        }
        let cluster::Message::Presence(message) = cluster::Message::decode(&bytes).unwrap() else { panic!() };
        self.step(place, |node, out| node.receive(&from, message, out));
    }

    /// A connection comes, changes or goes.
    fn change(&mut self, n: usize) {
        let (act, which) = (self.dice.roll(5), self.dice.roll(64));
        self.refs += 1;
        let phx_ref = SmolStr::from(format!("ref-{}", self.refs));
        let Some(node) = self.nodes[n].as_mut() else { return };
        let some = node.truth.keys().nth(which % node.truth.len().max(1)).cloned();
        match (act, some) {
            (0, Some(id)) => {
                node.truth.remove(&id);
                node.replicas.remove(id);
            }
            (1, Some(id)) => {
                node.truth.insert(id.clone(), phx_ref.clone());
                node.replicas.put(id.clone(), meta(id.track, &phx_ref, "{\"changed\":true}"));
            }
            _ => {
                node.tracks += 1;
                let (topic, key) = (format!("topic {}", which % 3), format!("key {}", which % 7));
                let id = id(&topic, &key, node.tracks);
                node.truth.insert(id.clone(), phx_ref.clone());
                node.replicas.put(id, meta(node.tracks, &phx_ref, "{\"some\":\"fields of a common size\"}"));
            }
        }
        self.remember(n);
    }

    /// A node notices who of the others is there, or is not.
    fn notice(&mut self, n: usize, other: usize) {
        let Some(node) = self.nodes[n].as_mut() else { return };
        let prefix = format!("node-{other}");
        let held = node.up.iter().find(|peer| peer.name == prefix).cloned();
        let is_cut = self.cuts.contains(&(n.min(other), n.max(other)));
        let there = self.nodes[other].as_ref().filter(|_| !is_cut).map(|node| node.name.clone());
        if held == there {
            return;
        }
        if let Some(held) = held {
            self.nodes[n].as_mut().unwrap().up.remove(&held);
            self.step(n, |node, out| node.down(&held, out));
        }
        if let Some(there) = there {
            self.nodes[n].as_mut().unwrap().up.insert(there.clone());
            self.step(n, |node, out| node.up(&there, out));
        }
    }

    fn random_step(&mut self) {
        let count = self.nodes.len();
        let (n, other) = (self.dice.roll(count), self.dice.roll(count));
        match self.dice.roll(80) {
            0..=30 => self.change(n),
            31..=36 => self.step(n, Replicas::push),
            37..=39 => self.step(n, Replicas::digest),
            40..=70 => self.deliver(),
            71..=74 if n != other => self.notice(n, other),
            75 if n != other => {
                let pair = (n.min(other), n.max(other));
                if !self.cuts.remove(&pair) {
                    self.cuts.insert(pair);
                }
            }
            76 if self.dice.roll(3) == 0 => {
                // It is gone, or starts again: the others have yet to notice.
                let restarts = self.nodes[n].is_none() || self.dice.roll(2) == 0;
                self.nodes[n] = None;
                if restarts {
                    self.start(n);
                }
            }
            77 => {
                let peers: Vec<NodeKey> =
                    self.nodes[n].iter().flat_map(|node| node.up.iter().cloned()).collect();
                for peer in peers {
                    self.step(n, |node, out| node.reset(&peer, out));
                }
            }
            78 => {
                if let Some(node) = self.nodes[n].as_mut() {
                    node.replicas.tell(&"topic 1".into(), &"key 1".into(), "updated", &Json::of("x"));
                }
            }
            _ => {}
        }
    }

    /// The network is whole again, and everybody who is there is noticed.
    fn heal(&mut self) {
        self.lossy = false;
        self.cuts.clear();
        self.under_way.clear();
        let count = self.nodes.len();
        for n in 0..count {
            (0..count).filter(|other| *other != n).for_each(|other| self.notice(n, other));
        }
        for _ in 0..4 {
            (0..count).for_each(|n| self.step(n, Replicas::digest));
            let mut delivered = 0;
            while !self.under_way.is_empty() {
                self.deliver();
                delivered += 1;
                assert!(delivered < 20_000, "seed {}: they never stop talking", self.seed);
            }
        }
    }

    fn check(&self) {
        let live: Vec<&Node> = self.nodes.iter().flatten().collect();
        for node in &live {
            let others = live.iter().filter(|other| other.name != node.name);
            let truth: BTreeSet<&SmolStr> = others.clone().flat_map(|other| other.truth.values()).collect();
            let told: BTreeSet<&SmolStr> = node.told.values().collect();
            assert_eq!(told, truth, "seed {}: what {} was told", self.seed, node.name);
            for other in others {
                let known = read(node.replicas.of(&other.name).unwrap());
                let truth: Entries =
                    other.truth.iter().map(|(id, phx_ref)| (id.clone(), phx_ref.clone())).collect();
                assert_eq!(known, truth, "seed {}: {} of {}", self.seed, node.name, other.name);
                assert_eq!(node.replicas.of(&other.name).unwrap().hash(), other.replicas.own().hash());
            }
        }
    }
}

#[test]
fn every_node_comes_to_know_the_truth() {
    let (mut sum, mut tells) = (Counts::default(), 0);
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.random_step();
        }
        world.heal();
        world.check();
        assert_eq!(world.counts.diverged, 0, "seed {seed}: a replica that was not a state of its writer");
        assert_eq!(world.counts.malformed, 0, "seed {seed}");
        sum.asked_for_all += world.counts.asked_for_all;
        sum.asked_for_changes += world.counts.asked_for_changes;
        tells += world.nodes.iter().flatten().map(|node| node.tells.len()).sum::<usize>();
    }
    // All ways to come right were taken.
    assert!(sum.asked_for_all > SEEDS && sum.asked_for_changes > SEEDS && tells > 0, "{sum:?}, {tells}");
}
