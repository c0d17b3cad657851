//! Another node as its link knows it: the session with it, the connection to it, and what its actor is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use muster_protocol::cluster::NodeKey;
use muster_protocol::cluster::frame::Frame;
use muster_protocol::cluster::session::{Carrier, Refused, Session};
use parking_lot::Mutex;
use ractor::ActorRef;
use smol_str::SmolStr;

use super::fabric::Connection;
use super::nodes::Nodes;

/// How a frame came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Over the connection of this number.
    Direct(u64),
    /// By the further transport.
    Fallback,
}

/// What a link is told.
pub enum Notice {
    /// A frame came.
    Frame(Via, Box<Frame>, Held),
    /// A connection is open.
    Opened(Arc<Connection>),
    /// A connection is gone.
    Closed(u64),
    /// Something waits.
    Wake,
    /// Some time has passed.
    Tick,
    /// So much waited that the session with this process was reset.
    Overflowed(NodeKey),
    /// The link's actor crashed while it was at work.
    Crashed,
    /// Let the node know at once how this one stands.
    Tell,
}

impl ractor::Message for Notice {}

/// The bytes of a frame that waits for its link, for as long as it does: until it was looked at, or went with the link.
pub struct Held {
    peer: Arc<Peer>,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.peer.pending_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A node as its link knows it. Outlives the link's actor, should that crash.
pub struct Peer {
    /// Name of the node.
    pub name: SmolStr,
    pub(super) state: Mutex<State>,
    pub(super) actor: Mutex<Option<ActorRef<Notice>>>,
    /// Where it says that it is reached.
    pub(super) address: Mutex<Option<SmolStr>>,
    pub(super) is_woken: AtomicBool,
    /// Bytes of frames that the actor has not got to.
    pending_bytes: AtomicUsize,
}

/// See [`Peer`].
#[derive(Default)]
pub(super) struct State {
    pub(super) open: Option<Open>,
    pub(super) direct: Option<Direct>,
    pub(super) heartbeat_at_ms: u64,
    /// When the peer sent its last frame, by its clock, and when that came, by ours, in microseconds.
    pub(super) echo: Option<(u64, u64)>,
    /// Last round trip, in microseconds.
    pub(super) round_trip_us: Option<u64>,
    /// Since when frames go the way they go, in monotonic milliseconds.
    pub(super) carrier_since_ms: u64,
    pub(super) carrier: Option<Carrier>,
    /// Sessions with this node that were reset.
    pub(super) resets: u64,
}

/// A session with one process.
pub(super) struct Open {
    pub(super) key: NodeKey,
    pub(super) session: Session,
}

/// A connection that is open.
pub(super) struct Direct {
    pub(super) connection: Arc<Connection>,
    /// When something came over it last, in monotonic milliseconds.
    pub(super) heard_at_ms: u64,
    /// When it was opened, or the node last said that it hears this one over it, in monotonic milliseconds.
    pub(super) is_heard_at_ms: u64,
}

impl Peer {
    /// A node of which nothing is known yet.
    pub fn new(name: SmolStr) -> Arc<Self> {
        Arc::new(Self {
            name,
            state: Mutex::default(),
            actor: Mutex::default(),
            address: Mutex::default(),
            is_woken: AtomicBool::new(false),
            pending_bytes: AtomicUsize::new(0),
        })
    }

    /// Where it says that it is reached, while it is up.
    pub fn address_if_up(&self) -> Option<SmolStr> {
        let is_up = self.state.lock().open.is_some();
        if is_up { self.address.lock().clone() } else { None }
    }

    /// Tells the link something.
    pub fn tell(&self, notice: Notice) {
        let actor = self.actor.lock().clone();
        if let Some(actor) = actor {
            // A link that is gone is gone with its node.
            let _gone = actor.cast(notice);
        }
    }

    /// Hands a frame of so many bytes to the link.
    pub fn take(self: &Arc<Self>, via: Via, frame: Frame, bytes: usize) {
        self.pending_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.tell(Notice::Frame(via, Box::new(frame), Held { peer: self.clone(), bytes }));
    }

    /// Bytes of frames that the link has not got to.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn wake(&self) {
        if !self.is_woken.swap(true, Ordering::AcqRel) {
            self.tell(Notice::Wake);
        }
    }

    /// Takes a message for a process; `false` when it is not up, or when it was too much.
    pub fn send(&self, nodes: &Nodes, to: &NodeKey, message: Bytes) -> bool {
        let mut state = self.state.lock();
        let Some(open) = state.open.as_mut().filter(|open| open.key == *to) else { return false };
        let before = open.session.counts();
        let pushed = open.session.push(message, nodes.next_epoch());
        let dropped = open.session.counts().messages_dropped - before.messages_dropped;
        drop(state);
        nodes.metrics.dropped(dropped);
        match pushed {
            Ok(()) => self.wake(),
            Err(Refused::TooLarge) => {
                tracing::error!(peer = %to, "a message was larger than limits.cluster_message_bytes_max");
            }
            Err(Refused::Reset) => self.tell(Notice::Overflowed(to.clone())),
        }
        pushed.is_ok()
    }
}
