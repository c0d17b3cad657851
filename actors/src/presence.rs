//! The node's presence: who is on which topic, told to whoever watches it.
//!
//! Snapshot and diffs of a topic leave from here and nowhere else, in one order. Changes are gathered for
//! [`COALESCE_MS`] and told as one diff; newcomers get their snapshot in the same breath, right after that diff went to
//! the others, so that everybody is told of each entry once. The first change after a pause is told at once.
//!
//! Own changes go to the other nodes first, with the same flush. Theirs come in as commands like any other, enter the
//! same topics, and are told with the next flush (`across`).

mod across;
mod asleep;
mod watching;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use muster_protocol::cluster::presence::{Bounds, EntryId, Replicas, Tell};
use muster_protocol::discovery::View;
use muster_protocol::ids::AgentId;
use muster_protocol::json::Json;
use muster_protocol::limits::Limits;
use muster_protocol::phoenix::event;
use muster_protocol::presence::{Diff, Facts, Meta, TrackId, phx_ref};
use parking_lot::Mutex;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use smol_str::SmolStr;

use self::across::FromNode;
use self::asleep::Asleep;
use self::watching::{Topic, Watcher};
use crate::cluster::Cluster;
use crate::egress::{Burst, Outlet, OutletId};
use crate::elsewhere::Elsewhere;
use crate::inbox::{Inbox, Wake};
use crate::metric_definitions::Metrics;
use crate::ports::Environment;
use crate::supervisor::ChildSpec;

/// How long changes are gathered, in milliseconds.
pub const COALESCE_MS: u64 = 50;

/// Commands that may wait; they come from joins and their ends, which are bounded by the sockets there are.
const INBOX_COMMANDS_MAX: usize = 4_194_304;

/// The keys a watcher does not see.
pub type Hidden = HashSet<SmolStr>;

/// The node's presence.
pub struct Presence {
    inbox: Inbox<Command>,
    state: Mutex<State>,
    next_track: AtomicU64,
    environment: Environment,
    metrics: Arc<Metrics>,
    cluster: Arc<dyn Cluster>,
    elsewhere: Elsewhere,
    /// Bytes of what other nodes said that wait in the inbox.
    said_bytes: AtomicUsize,
    said_bytes_max: usize,
    /// Messages dropped because too much waited, since it was last logged.
    said_dropped: AtomicU64,
    tells_bytes_max: usize,
}

struct State {
    topics: HashMap<SmolStr, Topic>,
    asleep: Asleep,
    dirty: BTreeSet<SmolStr>,
    replicas: Replicas,
    /// Events from other nodes, told with the next flush, and their bytes.
    tells: Vec<Tell>,
    tells_bytes: usize,
    /// What of other nodes' presence was not taken, since it was last logged.
    refused: u64,
    salt: u64,
    refs: u64,
    flushed_at_ms: Option<u64>,
    tick_pending: bool,
}

enum Command {
    Track {
        topic: SmolStr,
        key: SmolStr,
        id: TrackId,
        shown: Shown,
    },
    Update {
        topic: SmolStr,
        key: SmolStr,
        id: TrackId,
        shown: Shown,
    },
    Untrack {
        topic: SmolStr,
        key: SmolStr,
        id: TrackId,
    },
    Watch {
        topic: SmolStr,
        watcher: Watcher,
    },
    Unwatch {
        topic: SmolStr,
        outlet: OutletId,
    },
    Hide {
        viewer: AgentId,
        hidden: Option<Arc<Hidden>>,
    },
    Tell {
        topic: SmolStr,
        key: SmolStr,
        event: &'static str,
        payload: Json,
    },
    /// A watcher's connection has room again.
    Drained {
        topic: SmolStr,
        outlet: OutletId,
    },
    /// A second has passed.
    Second,
    /// Something about another node.
    Node(FromNode),
}

/// What is shown of a meta.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// Its fields, an object.
    pub fields: Json,
    /// What views go by.
    pub facts: Arc<Facts>,
}

impl Shown {
    fn meta(self, id: TrackId, phx_ref: SmolStr) -> Meta {
        Meta { id, phx_ref, phx_ref_prev: None, fields: self.fields, facts: self.facts }
    }
}

/// A tracked meta; it goes when this is dropped.
pub struct Tracked {
    presence: Arc<Presence>,
    topic: SmolStr,
    key: SmolStr,
    id: TrackId,
    shown: Shown,
}

impl Tracked {
    /// Gives it new fields; the same again are no news.
    pub fn update(&mut self, shown: &Shown) {
        if self.shown == *shown {
            return;
        }
        self.shown = shown.clone();
        let (topic, key) = (self.topic.clone(), self.key.clone());
        let command = Command::Update { topic, key, id: self.id, shown: shown.clone() };
        let _closed = self.presence.inbox.push_always(command);
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let (topic, key) = (std::mem::take(&mut self.topic), std::mem::take(&mut self.key));
        let _closed = self.presence.inbox.push_always(Command::Untrack { topic, key, id: self.id });
    }
}

/// A watched topic; it ends when this is dropped.
pub struct Watching {
    presence: Arc<Presence>,
    topic: SmolStr,
    outlet: OutletId,
}

impl Drop for Watching {
    fn drop(&mut self) {
        let command = Command::Unwatch { topic: std::mem::take(&mut self.topic), outlet: self.outlet };
        let _closed = self.presence.inbox.push_always(command);
    }
}

impl Presence {
    /// Nobody present.
    #[must_use]
    pub fn new(
        environment: Environment,
        metrics: Arc<Metrics>,
        cluster: Arc<dyn Cluster>,
        limits: &Limits,
    ) -> Arc<Self> {
        let salt = u64::from_be_bytes(environment.random());
        Arc::new(Self {
            inbox: Inbox::new(INBOX_COMMANDS_MAX),
            state: Mutex::new(State::new(Replicas::new(cluster.me(), Bounds::from(limits)), salt)),
            next_track: AtomicU64::new(1),
            environment,
            metrics,
            cluster,
            elsewhere: Elsewhere::default(),
            said_bytes: AtomicUsize::new(0),
            said_dropped: AtomicU64::new(0),
            said_bytes_max: limits.presence_inbox_bytes_max,
            tells_bytes_max: limits.presence_tells_bytes_max,
        })
    }

    /// How its actor is started.
    #[must_use]
    pub fn child(self: &Arc<Self>) -> ChildSpec {
        let presence = self.clone();
        ChildSpec {
            name: "presence",
            start: Box::new(move |supervisor| {
                let presence = presence.clone();
                Box::pin(async move {
                    let (actor, _) = Actor::spawn_linked(None, PresenceActor, presence, supervisor).await?;
                    Ok(actor.get_cell())
                })
            }),
        }
    }

    /// Tracks a meta under a key.
    #[must_use]
    pub fn track(self: &Arc<Self>, topic: &str, key: &str, shown: Shown) -> Tracked {
        let id = self.next_track.fetch_add(1, Ordering::Relaxed);
        let (topic, key) = (SmolStr::from(topic), SmolStr::from(key));
        let command = Command::Track { topic: topic.clone(), key: key.clone(), id, shown: shown.clone() };
        let _closed = self.inbox.push_always(command);
        Tracked { presence: self.clone(), topic, key, id, shown }
    }

    /// Sends `presence_state` to an outlet, and then every diff. `viewer` is the agent that watches, if one does, and
    /// `hidden` whom it does not see; `view` says how much it wants to.
    #[must_use]
    pub fn watch(
        self: &Arc<Self>,
        topic: &str,
        outlet: &Arc<Outlet>,
        viewer: Option<AgentId>,
        (view, hidden): (View, Option<Arc<Hidden>>),
    ) -> Watching {
        let topic = SmolStr::from(topic);
        let watcher = Watcher { outlet: outlet.clone(), viewer, view: Arc::new(view), hidden };
        let _closed = self.inbox.push_always(Command::Watch { topic: topic.clone(), watcher });
        Watching { presence: self.clone(), topic, outlet: outlet.id() }
    }

    /// The agents that watch something here.
    #[must_use]
    pub fn viewers(&self) -> HashSet<AgentId> {
        let state = self.state.lock();
        let topics = state.topics.values();
        topics.flat_map(Topic::viewers).collect()
    }

    /// Changes whom an agent does not see, wherever it watches.
    pub fn hide(&self, viewer: AgentId, hidden: Option<Arc<Hidden>>) {
        let _closed = self.inbox.push_always(Command::Hide { viewer, hidden });
    }

    /// Sends an event about a key to those who watch the topic and see that key, on all nodes; on the others after all
    /// changes so far.
    pub fn tell(&self, topic: &str, key: &str, event: &'static str, payload: Json) {
        let command = Command::Tell { topic: topic.into(), key: key.into(), event, payload };
        let _closed = self.inbox.push_always(command);
    }

    /// To be called each second: closes the connections of watchers that are behind and take nothing, and tells the other
    /// nodes where this one stands, so that they notice what they missed.
    pub fn every_second(&self) {
        let _closed = self.inbox.push_always(Command::Second);
    }

    fn work(self: &Arc<Self>, myself: &ActorRef<Wake>, wake: &Wake) {
        let mut state = self.state.lock();
        if matches!(wake, Wake::Tick) {
            state.tick_pending = false;
        }
        for command in self.inbox.take() {
            state.apply(command, self);
        }
        if !state.has_news() || state.tick_pending {
            return;
        }
        let now_ms = self.environment.monotonic_ms();
        let due_ms = state.flushed_at_ms.map_or(now_ms, |at| at + COALESCE_MS);
        if due_ms > now_ms {
            state.tick_pending = true;
            myself.send_after(Duration::from_millis(due_ms - now_ms), || Wake::Tick);
            return;
        }
        state.flush(self);
        // From the end of the flush: a large one leaves time for what else there is to do.
        state.flushed_at_ms = Some(self.environment.monotonic_ms());
        if !state.dirty.is_empty() {
            state.tick_pending = true;
            myself.send_after(Duration::from_millis(COALESCE_MS), || Wake::Tick);
        }
    }
}

impl State {
    fn new(replicas: Replicas, salt: u64) -> Self {
        Self {
            topics: HashMap::new(),
            asleep: Asleep::default(),
            dirty: BTreeSet::new(),
            replicas,
            tells: Vec::new(),
            tells_bytes: 0,
            refused: 0,
            salt,
            refs: 0,
            flushed_at_ms: None,
            tick_pending: false,
        }
    }

    /// Whether there is something to flush.
    fn has_news(&self) -> bool {
        !self.dirty.is_empty() || !self.tells.is_empty() || self.replicas.has_news()
    }

    fn apply(&mut self, command: Command, node: &Arc<Presence>) {
        match command {
            Command::Track { topic, key, id, shown } => {
                let phx_ref = self.next_ref();
                let meta = self.topic(&topic).presence.track(&key, shown.meta(id, phx_ref));
                self.replicas.put(EntryId::new(&topic, &key, id), meta);
                self.dirty.insert(topic);
            }
            Command::Update { topic, key, id, shown } => {
                let phx_ref = self.next_ref();
                if let Some(entry) = self.topics.get_mut(&topic)
                    && let Some(meta) = entry.presence.update(&key, shown.meta(id, phx_ref))
                {
                    self.replicas.put(EntryId::new(&topic, &key, id), meta);
                    self.dirty.insert(topic);
                }
            }
            Command::Untrack { topic, key, id } => {
                if let Some(entry) = self.topics.get_mut(&topic) {
                    entry.presence.untrack(&key, id);
                    self.replicas.remove(EntryId::new(&topic, &key, id));
                    self.dirty.insert(topic);
                }
            }
            Command::Watch { topic, watcher } => {
                self.topic(&topic).newcomers.insert(watcher);
                self.dirty.insert(topic);
            }
            Command::Unwatch { topic, outlet } => {
                if let Some(entry) = self.topics.get_mut(&topic) {
                    entry.watchers.remove(outlet);
                    entry.newcomers.remove(outlet);
                    entry.behind.remove(outlet);
                    // So that a topic nobody is on any more is forgotten.
                    self.dirty.insert(topic);
                }
            }
            Command::Hide { viewer, hidden } => self.hide(viewer, hidden.as_ref(), node),
            Command::Tell { topic, key, event, payload } => {
                self.replicas.tell(&topic, &key, event, &payload);
                if let Some(entry) = self.topics.get_mut(&topic) {
                    entry.tell_about(&topic, &key, (event, payload), node);
                }
            }
            Command::Drained { topic, outlet } => {
                if let Some(entry) = self.topics.get_mut(&topic)
                    && let Some(behind) = entry.behind.remove(outlet)
                {
                    entry.newcomers.insert(behind.watcher);
                    self.dirty.insert(topic);
                }
            }
            Command::Second => {
                let now_ms = node.environment.monotonic_ms();
                for entry in self.topics.values_mut() {
                    entry.behind.retain_mut(|behind| !behind.has_stalled(now_ms));
                }
                self.second_across(node);
            }
            Command::Node(from) => self.across(from, node),
        }
    }

    /// A topic, which may have slept. It is told of with the next flush.
    fn topic(&mut self, name: &SmolStr) -> &mut Topic {
        self.topics.entry(name.clone()).or_insert_with(|| {
            let mut topic = Topic::default();
            for (key, meta) in self.asleep.wake(name) {
                topic.presence.put(&key, meta);
            }
            topic
        })
    }

    fn next_ref(&mut self) -> SmolStr {
        self.refs += 1;
        phx_ref(self.salt, self.refs)
    }

    fn flush(&mut self, node: &Arc<Presence>) {
        // Those who watch here may take a while to tell.
        self.push_across(node);
        for name in std::mem::take(&mut self.dirty) {
            let Some(topic) = self.topics.get_mut(&name) else { continue };
            topic.flush(&name, node);
            if topic.is_unwatched() && self.asleep.takes(&name, &topic.presence) {
                self.topics.remove(&name);
            } else if !topic.newcomers.is_empty() {
                self.dirty.insert(name);
            }
        }
        self.tell_from_across(node);
    }

    /// A viewer's watchers see some keys no more, and others again: as leaves and joins, to them alone.
    fn hide(&mut self, viewer: AgentId, hidden: Option<&Arc<Hidden>>, node: &Arc<Presence>) {
        for (name, topic) in &mut self.topics {
            let behind = topic.behind.iter_mut().map(|behind| &mut behind.watcher);
            for watcher in topic.newcomers.iter_mut().chain(behind) {
                if watcher.viewer == Some(viewer) {
                    watcher.hidden = hidden.cloned();
                }
            }
            let mut diffs = HashMap::new();
            for watcher in topic.watchers.iter_mut().filter(|watcher| watcher.viewer == Some(viewer)) {
                let before = std::mem::replace(&mut watcher.hidden, hidden.cloned());
                let was_hidden = |key: &str| before.as_ref().is_some_and(|set| set.contains(key));
                let appears = |key: &str| was_hidden(key) && watcher.knows(key);
                let vanishes = |key: &str| !was_hidden(key) && !watcher.knows(key);
                let presence = &topic.presence;
                let diff =
                    Diff { joins: presence.told_metas(appears), leaves: presence.told_metas(vanishes) };
                if let Some(payload) = diff.payload(|_, meta| watcher.view.shows(&meta.facts)) {
                    let bytes =
                        Burst::new(name, vec![(event::PRESENCE_DIFF, payload)]).broadcast(&watcher.outlet);
                    diffs.insert(watcher.outlet.id(), bytes);
                }
            }
            topic.tell(name, node, |watcher| diffs.remove(&watcher.outlet.id()));
        }
    }
}

struct PresenceActor;

impl Actor for PresenceActor {
    type Msg = Wake;
    type State = Arc<Presence>;
    type Arguments = Arc<Presence>;

    async fn pre_start(
        &self,
        myself: ActorRef<Wake>,
        presence: Arc<Presence>,
    ) -> Result<Arc<Presence>, ActorProcessingErr> {
        // A tick that an earlier life of this actor waited for does not come.
        presence.state.lock().tick_pending = false;
        presence.inbox.attach(myself.clone());
        // What it had not told yet is told now.
        let _mine = myself.send_message(Wake::Work);
        Ok(presence)
    }

    async fn handle(
        &self,
        myself: ActorRef<Wake>,
        wake: Wake,
        presence: &mut Arc<Presence>,
    ) -> Result<(), ActorProcessingErr> {
        presence.work(&myself, &wake);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Wake>,
        _event: SupervisionEvent,
        _presence: &mut Arc<Presence>,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
