//! Several nodes in one process, wired by a transport that loses, holds back and is cut on demand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use muster_protocol::cluster::{Member, Members, Message};
use tokio::sync::watch;

use super::*;
use crate::cluster::Receiver;
use crate::egress::outlet::tests::messages;
use crate::online::Online;

/// What is under way between nodes, as bytes.
#[derive(Default)]
pub(super) struct Wires {
    under_way: VecDeque<(NodeKey, NodeKey, Vec<u8>)>,
    /// The others that each node holds to be up.
    up: BTreeSet<(NodeKey, NodeKey)>,
}

/// One node's end of the wires.
pub(super) struct End {
    me: NodeKey,
    wires: Arc<Mutex<Wires>>,
    members: watch::Sender<Arc<Members>>,
}

impl Cluster for End {
    fn me(&self) -> &NodeKey {
        &self.me
    }

    fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.subscribe()
    }

    fn send(&self, to: &NodeKey, message: Message) -> bool {
        let mut wires = self.wires.lock();
        let is_up = wires.up.contains(&(self.me.clone(), to.clone()));
        if is_up {
            wires.under_way.push_back((self.me.clone(), to.clone(), message.encode().unwrap()));
        }
        is_up
    }

    fn start(&self, _receiver: Arc<dyn Receiver>) {}

    fn drain(&self) {}
}

pub(super) struct Node {
    pub(super) me: NodeKey,
    pub(super) end: Arc<End>,
    pub(super) presence: Arc<Presence>,
    pub(super) online: Arc<Online>,
}

impl Node {
    /// Its actor's work, with what waits told at once.
    pub(super) fn work(&self) {
        let mut state = self.presence.state.lock();
        for command in self.presence.inbox.take() {
            state.apply(command, &self.presence);
        }
        state.flush(&self.presence);
    }

    /// One command after the other, each told at once; after each there is a look.
    pub(super) fn work_singly(&self, look: impl Fn()) {
        let mut state = self.presence.state.lock();
        for command in self.presence.inbox.take() {
            state.apply(command, &self.presence);
            state.flush(&self.presence);
            look();
        }
    }

    pub(super) fn metric(&self, what: &'static str) -> u64 {
        self.presence.metrics.presence_refused.get_or_create(&[("what", what)]).get()
    }
}

pub(super) struct Fleet {
    pub(super) wires: Arc<Mutex<Wires>>,
    pub(super) nodes: Vec<Node>,
    pub(super) limits: Limits,
    pub(super) watchers: u64,
}

impl Fleet {
    pub(super) fn new(count: u8) -> Self {
        Self::with(count, Limits::default())
    }

    pub(super) fn with(count: u8, limits: Limits) -> Self {
        let mut fleet = Self { wires: Arc::default(), nodes: Vec::new(), limits, watchers: 0 };
        (0..count).for_each(|n| fleet.start(n, 1));
        fleet
    }

    /// A node starts, and is noticed by all.
    pub(super) fn start(&mut self, n: u8, incarnation: u64) {
        let me = NodeKey { name: format!("node-{n}").into(), incarnation };
        let members = watch::Sender::new(Arc::default());
        let end = Arc::new(End { me: me.clone(), wires: self.wires.clone(), members });
        let entropy = u8::try_from(incarnation * 16).unwrap() + n;
        let environment =
            Environment::new(Arc::new(Hand::default()), Arc::new(Counted(entropy, AtomicU64::new(0))));
        let metrics = Arc::new(Metrics::register(&mut Registry::default()));
        let presence = Presence::new(environment.clone(), metrics.clone(), end.clone(), &self.limits);
        let online = Online::new(presence.clone(), environment, metrics);
        self.nodes.push(Node { me: me.clone(), end, presence, online });
        let others: Vec<NodeKey> =
            self.nodes.iter().map(|node| node.me.clone()).filter(|key| *key != me).collect();
        others.iter().for_each(|other| self.link(&me, other));
    }

    pub(super) fn at(&self, key: &NodeKey) -> Option<&Node> {
        self.nodes.iter().find(|node| node.me == *key)
    }

    /// Two nodes notice each other.
    pub(super) fn link(&self, a: &NodeKey, b: &NodeKey) {
        for (a, b) in [(a, b), (b, a)] {
            self.wires.lock().up.insert((a.clone(), b.clone()));
            self.at(a).unwrap().presence.node_up(b.clone());
        }
        self.tell_members();
    }

    /// Two nodes hold each other to be gone, whether they are or not.
    pub(super) fn cut(&self, a: &NodeKey, b: &NodeKey) {
        for (a, b) in [(a, b), (b, a)] {
            self.wires.lock().up.remove(&(a.clone(), b.clone()));
            if let Some(node) = self.at(a) {
                node.presence.node_down(b.clone());
            }
        }
        self.wires.lock().under_way.retain(|(from, to, _)| !([a, b].contains(&from) && [a, b].contains(&to)));
        self.tell_members();
    }

    pub(super) fn tell_members(&self) {
        let wires = self.wires.lock();
        for node in &self.nodes {
            let of =
                |key: &NodeKey| Member { key: key.clone(), draining: false, suspect: false, central: true };
            let ups = wires.up.iter().filter(|(me, _)| *me == node.me).map(|(_, other)| of(other));
            let nodes = ups.chain([of(&node.me)]).collect();
            node.end.members.send_replace(Arc::new(Members { nodes, isolated: false }));
        }
    }

    /// A node is gone, and all others notice.
    pub(super) fn kill(&mut self, n: usize) -> Node {
        let node = self.nodes.remove(n);
        let others: Vec<NodeKey> = self.nodes.iter().map(|node| node.me.clone()).collect();
        others.iter().for_each(|other| self.cut(other, &node.me));
        node
    }

    /// Everybody works, and all that follows arrives, until nothing happens any more.
    pub(super) fn settle(&self) {
        loop {
            self.nodes.iter().for_each(Node::work);
            if !self.deliver() {
                return;
            }
        }
    }

    /// What is under way arrives.
    pub(super) fn deliver(&self) -> bool {
        let under_way = std::mem::take(&mut self.wires.lock().under_way);
        let arrives = !under_way.is_empty();
        for (from, to, bytes) in under_way {
            let Message::Presence(message) = Message::decode(&bytes).unwrap() else { panic!() };
            if let Some(node) = self.at(&to) {
                node.presence.node_said(from, message);
            }
        }
        arrives
    }

    pub(super) fn lose(&self) -> usize {
        std::mem::take(&mut self.wires.lock().under_way).len()
    }

    pub(super) fn second(&self) {
        self.nodes.iter().for_each(|node| node.presence.every_second());
    }

    /// Somebody watches a topic on a node.
    pub(super) fn watch(&mut self, n: usize, topic: &str) -> Watched {
        self.watchers += 1;
        let pipe = Pipe::default();
        pipe.allow(usize::MAX / 2);
        let outlet = outlet(&Arc::new(sink(&pipe, 1 << 20)), self.watchers, "1", None);
        outlet.open(&muster_protocol::phoenix::Ref::from_text("1"), &Json::empty_object());
        let watching = self.nodes[n].presence.watch(topic, &outlet, None, (View::Full, None));
        pipe.taken();
        Watched { pipe, _outlet: outlet, watching, has_state: false, held: BTreeMap::new() }
    }
}

/// Never the same, and different for each node.
pub(super) struct Counted(u8, AtomicU64);

impl Entropy for Counted {
    fn fill(&self, buffer: &mut [u8]) {
        let count = self.1.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        // A salt of presence is made of the last bytes.
        buffer.iter_mut().rev().zip([self.0].into_iter().chain(count)).for_each(|(to, from)| *to = from);
    }
}

/// A client that watches, as the npm client does, and minds being told of anything twice.
pub(super) struct Watched {
    pub(super) pipe: Pipe,
    pub(super) _outlet: Arc<Outlet>,
    pub(super) watching: Watching,
    pub(super) has_state: bool,
    /// The key of each reference that is held.
    pub(super) held: BTreeMap<String, String>,
}

impl Watched {
    /// Takes in what has come; gives the events.
    pub(super) fn sync(&mut self) -> Vec<String> {
        let mut events = Vec::new();
        for message in messages(&self.pipe) {
            let (_, _, _, event, payload): (
                Option<String>,
                Option<String>,
                String,
                String,
                serde_json::Value,
            ) = serde_json::from_str(&message).unwrap();
            match event.as_str() {
                "presence_state" => {
                    assert!(!std::mem::replace(&mut self.has_state, true), "one state");
                    self.join(&payload);
                }
                "presence_diff" => {
                    assert!(self.has_state, "the state comes first");
                    self.join(&payload["joins"]);
                    for (key, phx_ref) in refs(&payload["leaves"]) {
                        assert_eq!(self.held.remove(&phx_ref), Some(key), "leaves that never came");
                    }
                }
                _ => {}
            }
            events.push(event);
        }
        events
    }

    pub(super) fn join(&mut self, entries: &serde_json::Value) {
        for (key, phx_ref) in refs(entries) {
            assert_eq!(self.held.insert(phx_ref, key), None, "told twice");
        }
    }

    /// How many metas each key has.
    pub(super) fn keys(&self) -> BTreeMap<&str, usize> {
        let mut keys = BTreeMap::new();
        self.held.values().for_each(|key| *keys.entry(key.as_str()).or_default() += 1);
        keys
    }
}

pub(super) fn refs(entries: &serde_json::Value) -> Vec<(String, String)> {
    let entries = entries.as_object().unwrap().iter();
    let metas = entries.flat_map(|(key, entry)| {
        entry["metas"].as_array().unwrap().iter().map(move |meta| (key.clone(), meta))
    });
    metas.map(|(key, meta)| (key, meta["phx_ref"].as_str().unwrap().to_owned())).collect()
}
