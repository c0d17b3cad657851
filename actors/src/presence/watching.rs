//! Who watches a topic, and what each has been told: a snapshot first, then every diff; one whose connection is full is
//! left out until it has room, and gets a snapshot again.

use std::sync::Arc;

use bytes::Bytes;
use muster_protocol::discovery::View;
use muster_protocol::ids::AgentId;
use muster_protocol::json::Json;
use muster_protocol::phoenix::event;
use muster_protocol::presence::{Diff, Meta, TopicPresence};
use muster_protocol::websocket::CloseCode;
use smol_str::SmolStr;

use super::{Command, Hidden, Presence};
use crate::egress::fan_out::around_shared_payload;
use crate::egress::{Burst, Class, OfOutlet, Outcome, Outlet, OutletId, Roster};

/// How long a watcher whose connection is full may take nothing before it is closed with 1013, in milliseconds.
pub(super) const STALL_MS: u64 = 3_000;

/// A topic: who is present, and who watches.
#[derive(Default)]
pub(super) struct Topic {
    pub presence: TopicPresence,
    pub watchers: Roster<Watcher>,
    /// To be sent a snapshot with the next flush.
    pub newcomers: Roster<Watcher>,
    /// Not told of what happens until their connection has room again: then they are newcomers once more.
    pub behind: Roster<Behind>,
}

/// A watcher whose connection is full.
pub(super) struct Behind {
    pub watcher: Watcher,
    /// Since when, monotonic milliseconds, and what the kernel had taken by then.
    since_ms: u64,
    taken_bytes: u64,
}

/// Somebody who watches a topic.
pub(super) struct Watcher {
    pub outlet: Arc<Outlet>,
    pub viewer: Option<AgentId>,
    pub view: Arc<View>,
    pub hidden: Option<Arc<Hidden>>,
}

impl OfOutlet for Watcher {
    fn outlet_id(&self) -> OutletId {
        self.outlet.id()
    }
}

impl OfOutlet for Behind {
    fn outlet_id(&self) -> OutletId {
        self.watcher.outlet.id()
    }
}

impl Watcher {
    /// Whether it may know of a key at all.
    pub fn knows(&self, key: &str) -> bool {
        !self.hidden.as_ref().is_some_and(|hidden| hidden.contains(key))
    }

    fn sees(&self, key: &str, meta: &Meta) -> bool {
        self.view.shows(&meta.facts) && self.knows(key)
    }

    fn sees_all(&self) -> bool {
        *self.view == View::Full && self.hidden.is_none()
    }

    /// Gets it back into the order of things once its connection has room.
    pub fn fall_behind(self, topic: &SmolStr, node: &Arc<Presence>) -> Behind {
        let (presence, topic, outlet) = (node.clone(), topic.clone(), self.outlet.id());
        let taken_bytes = self.outlet.sink().taken_bytes();
        self.outlet.sink().when_drained(Box::new(move || {
            let _closed = presence.inbox.push_always(Command::Drained { topic, outlet });
        }));
        Behind { watcher: self, since_ms: node.environment.monotonic_ms(), taken_bytes }
    }
}

impl Behind {
    /// Whether its connection has taken nothing for too long, and is closed now, or was before.
    pub fn has_stalled(&mut self, now_ms: u64) -> bool {
        let sink = self.watcher.outlet.sink();
        let taken_bytes = sink.taken_bytes();
        if taken_bytes > self.taken_bytes {
            (self.since_ms, self.taken_bytes) = (now_ms, taken_bytes);
        } else if now_ms.saturating_sub(self.since_ms) >= STALL_MS {
            sink.close(CloseCode::Overloaded, "too slow");
        }
        sink.is_closed()
    }
}

impl Topic {
    /// The agents that watch.
    pub fn viewers(&self) -> impl Iterator<Item = AgentId> {
        let behind = self.behind.iter().map(|behind| &behind.watcher);
        self.watchers.iter().chain(self.newcomers.iter()).chain(behind).filter_map(|watcher| watcher.viewer)
    }

    pub fn flush(&mut self, name: &SmolStr, node: &Arc<Presence>) {
        if let Some(diff) = self.presence.flush() {
            node.metrics.presence_diffs.inc();
            self.tell_diff(name, &diff, node);
        }
        for watcher in self.newcomers.take() {
            // Its join is about to be answered.
            if watcher.outlet.is_pending() {
                self.newcomers.insert(watcher);
                continue;
            }
            let snapshot = match *watcher.view {
                View::Nobody => Json::empty_object(),
                _ if watcher.sees_all() => self.presence.snapshot(),
                _ => self.presence.snapshot_of(|key, meta| watcher.sees(key, meta)),
            };
            let parts = around_shared_payload(&watcher.outlet, event::PRESENCE_STATE, &snapshot);
            match watcher.outlet.write(Class::Snapshot, &parts) {
                Outcome::Taken => {
                    node.metrics.delivered.inc();
                    self.watchers.insert(watcher);
                }
                Outcome::Full => self.behind.insert(watcher.fall_behind(name, node)),
                Outcome::Gone => {}
            }
        }
    }

    fn tell_diff(&mut self, name: &SmolStr, diff: &Diff, node: &Arc<Presence>) {
        let Some(everything) = diff.payload(|_, _| true) else { return };
        let mut burst = Burst::new(name, vec![(event::PRESENCE_DIFF, everything)]);
        self.tell(name, node, |watcher| match *watcher.view {
            View::Nobody => None,
            _ if watcher.sees_all() => Some(burst.broadcast(&watcher.outlet)),
            _ => {
                let payload = diff.payload(|key, meta| watcher.sees(key, meta))?;
                Some(Burst::new(name, vec![(event::PRESENCE_DIFF, payload)]).broadcast(&watcher.outlet))
            }
        });
    }

    /// Tells those who know of a key something about it.
    pub fn tell_about(
        &mut self,
        name: &SmolStr,
        key: &str,
        (event, payload): (&str, Json),
        node: &Arc<Presence>,
    ) {
        let mut burst = Burst::new(name, vec![(event, payload)]);
        for watcher in self.newcomers.iter().filter(|watcher| watcher.knows(key)) {
            // One whose connection is full learns it from its state.
            watcher.outlet.write(Class::Broadcast, &[burst.broadcast(&watcher.outlet)]);
        }
        self.tell(
            name,
            node,
            |watcher| {
                if watcher.knows(key) { Some(burst.broadcast(&watcher.outlet)) } else { None }
            },
        );
    }

    /// Writes to each watcher what is for it, and puts those aside whose connection is full.
    pub fn tell(
        &mut self,
        name: &SmolStr,
        node: &Arc<Presence>,
        mut frame: impl FnMut(&Watcher) -> Option<Bytes>,
    ) {
        let mut full = Vec::new();
        self.watchers.retain_mut(|watcher| {
            let outcome = match frame(watcher) {
                Some(bytes) => watcher.outlet.write(Class::Broadcast, &[bytes]),
                None if watcher.outlet.is_closed() => Outcome::Gone,
                None => return true,
            };
            match outcome {
                Outcome::Taken => node.metrics.delivered.inc(),
                Outcome::Full => {
                    full.push(watcher.outlet.id());
                    return true;
                }
                Outcome::Gone => return false,
            };
            true
        });
        for outlet in full {
            if let Some(watcher) = self.watchers.remove(outlet) {
                self.behind.insert(watcher.fall_behind(name, node));
            }
        }
    }

    /// Whether nobody wants to be told of it.
    pub fn is_unwatched(&self) -> bool {
        self.watchers.is_empty() && self.newcomers.is_empty() && self.behind.is_empty()
    }
}
