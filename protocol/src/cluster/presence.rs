//! Presence across nodes: what each node shows of the others' connections, as a pure state machine.
//!
//! Each node is the only writer of the entries of its own connections. Every change raises the version of its [`State`],
//! so a state is known by its writer's incarnation and its version, and of two the later one is right: that is the whole
//! of how they merge. The others hold a replica of it, which is always some earlier state of the writer, whole:
//!
//! * Changes are pushed to everybody as runs from one version to another. A replica applies what continues its own
//!   version, drops what it knows, and asks for what is missing.
//! * The writer answers from a bounded history of changes; where that does not reach back, or would be more to say, with
//!   all of one state, in pieces that are put together aside and take effect at once.
//! * Digests (version and a hash of the content) each second, and whenever messages may have been lost, show what was
//!   missed, or differs without a gap.
//!
//! The port below keeps order and loses nothing without saying so ([`Replicas::reset`]). Nothing here rests on it:
//! messages that are lost, repeated or late cost time.
//!
//! # Layout
//! * `state`: entries at a version, and how two such merge
//! * `own`: what a node tells of its own entries
//! * `replica`: what it knows of another's
//! * `wire`: changes as bytes, encoded once for all peers

mod own;
mod replica;
mod state;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use self::own::Own;
use self::replica::Replica;
pub use self::state::{Change, EntryId, State};
pub use self::wire::Run;
use super::NodeKey;
use crate::json::{Json, as_bytes};
use crate::limits::Limits;
use crate::presence::Meta;

/// What nodes tell each other of presence. Whose versions are meant: those of the sender's entries, and in what asks,
/// those of the receiver's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Changes that lead from one version on.
    Changes {
        /// The version they continue.
        from: u64,
        /// How many they are; each raises the version by one.
        count: u64,
        /// What follows.
        rest: Rest,
        /// The changes.
        run: Run,
    },
    /// Where the sender stands.
    Digest {
        /// Version.
        version: u64,
        /// [`State::hash`] at that version.
        hash: u64,
    },
    /// Asks for changes.
    Wanted {
        /// From this version on.
        after: u64,
    },
    /// Asks for all entries.
    WholeWanted {
        /// At this version, or a later one.
        version: u64,
        /// From this entry on, if it is of this version.
        at: u64,
    },
    /// Some of all entries at a version.
    Piece {
        /// Version.
        version: u64,
        /// [`State::hash`] of them all.
        hash: u64,
        /// Entries before these.
        at: u64,
        /// How many these are.
        count: u64,
        /// What follows.
        rest: Rest,
        /// The entries.
        run: Run,
    },
    /// Something to be told to those who watch a key.
    Tell(Tell),
}

/// What follows one of several messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rest {
    /// Nothing: this is the last.
    Nothing,
    /// More, by itself.
    Coming,
    /// More, when it is asked for.
    Ask,
}

impl Rest {
    fn of(has_more: bool, is_end: bool) -> Self {
        match (has_more, is_end) {
            (false, _) => Self::Nothing,
            (true, false) => Self::Coming,
            (true, true) => Self::Ask,
        }
    }
}

/// See [`Message::Tell`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tell {
    /// The version of the sender's entries that it follows.
    pub after: u64,
    /// Topic.
    pub topic: SmolStr,
    /// Key.
    pub key: SmolStr,
    /// Event.
    pub event: SmolStr,
    /// Payload.
    #[serde(with = "as_bytes")]
    pub payload: Json,
}

impl Tell {
    /// Bytes of its texts.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.topic.len() + self.key.len() + self.event.len() + self.payload.as_bytes().len()
    }
}

impl Message {
    /// Bytes it takes, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const HEAD_BYTES: usize = 64;
        HEAD_BYTES
            + match self {
                Self::Changes { run, .. } | Self::Piece { run, .. } => run.len(),
                Self::Tell(tell) => tell.bytes(),
                Self::Digest { .. } | Self::Wanted { .. } | Self::WholeWanted { .. } => 0,
            }
    }
}

/// How much of all this there may be: see [`Limits`], where each has its name.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Entries of one peer.
    pub entries_max: usize,
    /// Bytes of one peer's entries.
    pub entries_bytes_max: usize,
    /// Bytes of changes kept for peers that missed some.
    pub history_bytes_max: usize,
    /// Bytes of one run or piece.
    pub piece_bytes_max: usize,
    /// Runs or pieces in one answer.
    pub answer_pieces_max: usize,
    /// Bytes of events of one peer that wait for the change they follow.
    pub tells_bytes_max: usize,
    /// Bytes of a topic or a key.
    pub name_bytes_max: usize,
}

impl From<&Limits> for Bounds {
    fn from(limits: &Limits) -> Self {
        Self {
            entries_max: limits.presence_entries_per_peer_max,
            entries_bytes_max: limits.presence_bytes_per_peer_max,
            history_bytes_max: limits.presence_history_bytes_max,
            piece_bytes_max: limits.presence_piece_bytes_max,
            answer_pieces_max: limits.presence_answer_pieces_max,
            tells_bytes_max: limits.presence_tells_bytes_max,
            name_bytes_max: limits.topic_bytes_max,
        }
    }
}

/// What a step has led to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// To be sent, in this order.
    pub messages: Vec<(NodeKey, Message)>,
    /// What has changed of other nodes' entries, in this order. The tracks are ids of this process.
    pub changes: Vec<Change>,
    /// To be told to those who watch here, after the changes.
    pub tells: Vec<Tell>,
    /// What there is to count.
    pub counts: Counts,
}

/// What is counted in [`Outcome`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Times changes were asked for.
    pub asked_for_changes: u64,
    /// Times all entries were asked for.
    pub asked_for_all: u64,
    /// Times a replica was found to differ without a gap.
    pub diverged: u64,
    /// Entries of peers not taken, because there are too many or too many bytes.
    pub entries_refused: u64,
    /// Messages of peers that are not as they must be.
    pub malformed: u64,
    /// Events of peers that could not wait for the change they follow.
    pub tells_refused: u64,
    /// Entries of this node that are too large to be told.
    pub too_large: u64,
}

/// What a node tells the others of its own entries, and what it knows of theirs.
#[derive(Debug)]
pub struct Replicas {
    own: Own,
    peers: BTreeMap<SmolStr, Replica>,
    bounds: Bounds,
    /// Events of this node that have not been sent.
    tells: Vec<Tell>,
    too_large: u64,
}

impl Replicas {
    /// Of a node without peers.
    #[must_use]
    pub fn new(me: &NodeKey, bounds: Bounds) -> Self {
        let own = Own::new(me.incarnation);
        Self { own, peers: BTreeMap::new(), bounds, tells: Vec::new(), too_large: 0 }
    }

    /// Whether own entries are recorded: a node that never had a peer has nobody to tell.
    #[must_use]
    pub fn is_recording(&self) -> bool {
        self.own.is_recording()
    }

    /// Records from now on, beginning with the own entries there are.
    pub fn record(&mut self, entries: impl Iterator<Item = (EntryId, Arc<Meta>)>) {
        self.own.begin();
        for (id, meta) in entries {
            self.put(id, meta);
        }
    }

    /// An own entry is new, or has changed.
    pub fn put(&mut self, id: EntryId, meta: Arc<Meta>) {
        if self.is_recording() && !self.own.put(id, meta, &self.bounds) {
            self.too_large += 1;
        }
    }

    /// An own entry is gone.
    pub fn remove(&mut self, id: EntryId) {
        if self.is_recording() {
            self.own.remove(id, &self.bounds);
        }
    }

    /// Tells those who watch a key at the other nodes something, after all changes so far.
    pub fn tell(&mut self, topic: &SmolStr, key: &SmolStr, event: &str, payload: &Json) {
        if !self.peers.is_empty() {
            let (topic, key, payload) = (topic.clone(), key.clone(), payload.clone());
            self.tells.push(Tell { after: self.own.version(), topic, key, event: event.into(), payload });
        }
    }

    /// Whether there is something to [`Self::push`].
    #[must_use]
    pub fn has_news(&self) -> bool {
        !self.tells.is_empty() || (self.own.has_news() && !self.peers.is_empty())
    }

    /// Tells all peers what has changed here since this was last called.
    pub fn push(&mut self, out: &mut Outcome) {
        out.counts.too_large += std::mem::take(&mut self.too_large);
        let mut messages = self.own.news(&self.bounds, !self.peers.is_empty());
        messages.extend(self.tells.drain(..).map(Message::Tell));
        for peer in self.peers.values() {
            out.messages.extend(messages.iter().map(|message| (peer.node().clone(), message.clone())));
        }
    }

    /// Each second: tells all peers where this node stands, and ends what nobody goes on with.
    pub fn digest(&mut self, out: &mut Outcome) {
        self.push(out);
        self.own.thaw();
        let digest = self.own.digest();
        for peer in self.peers.values_mut() {
            peer.second_passed();
            out.messages.push((peer.node().clone(), digest.clone()));
        }
    }

    /// A node is up. Own entries must be recorded by then ([`Self::record`]).
    pub fn up(&mut self, node: &NodeKey, out: &mut Outcome) {
        match self.peers.get(&node.name) {
            Some(known) if known.node().incarnation >= node.incarnation => {}
            known => {
                let older = known.map(|known| known.node().clone());
                if let Some(older) = older {
                    self.down(&older, out);
                }
                if self.peers.is_empty() {
                    // Who comes asks for what there is.
                    self.own.news(&self.bounds, false);
                }
                let taken = |origin: &u16| self.peers.values().any(|peer| peer.origin() == *origin);
                let Some(origin) = (1..=u16::MAX).find(|origin| !taken(origin)) else { return };
                self.peers.insert(node.name.clone(), Replica::new(node.clone(), origin));
            }
        }
        self.reset(node, out);
    }

    /// A node is gone, and its entries with it.
    pub fn down(&mut self, node: &NodeKey, out: &mut Outcome) {
        if self.peers.get(&node.name).is_some_and(|peer| peer.node() == node)
            && let Some(peer) = self.peers.remove(&node.name)
        {
            out.changes.extend(peer.into_removals());
        }
    }

    /// Messages to and from a node may have been lost: it learns at once where this one stands, and is asked the same,
    /// for either may come too early to be heard.
    pub fn reset(&mut self, node: &NodeKey, out: &mut Outcome) {
        if let Some(peer) = self.peers.get_mut(&node.name).filter(|peer| peer.node() == node) {
            out.messages.push((node.clone(), self.own.digest()));
            peer.ask(out);
        }
    }

    /// A node has said something. What a node says that is not up is passed over.
    pub fn receive(&mut self, from: &NodeKey, message: Message, out: &mut Outcome) {
        let Some(peer) = self.peers.get_mut(&from.name).filter(|peer| peer.node() == from) else { return };
        let answer = match message {
            Message::Wanted { after } => self.own.changes_after(after, &self.bounds),
            Message::WholeWanted { version, at } => self.own.whole(version, at, &self.bounds),
            other => {
                peer.receive(other, &self.bounds, out);
                return;
            }
        };
        out.messages.extend(answer.into_iter().map(|message| (from.clone(), message)));
    }

    /// This node's entries, as far as they are recorded.
    #[must_use]
    pub fn own(&self) -> &State {
        self.own.state()
    }

    /// What is known of a peer's entries.
    #[must_use]
    pub fn of(&self, node: &NodeKey) -> Option<&State> {
        self.peers.get(&node.name).filter(|peer| peer.node() == node).map(Replica::state)
    }

    /// Entries of all peers together.
    #[must_use]
    pub fn remote_entries(&self) -> usize {
        self.peers.values().map(|peer| peer.state().len()).sum()
    }
}

#[cfg(test)]
mod tests;
