//! The other nodes, as the actors know them: the port's other side.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use muster_actors::cluster::{Cluster, Event, Receiver};
use muster_actors::ports::Environment;
use muster_protocol::cluster::frame::{Frame, Header, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN};
use muster_protocol::cluster::membership::{Change, Heard, Known, Membership, Refusal, Timing};
use muster_protocol::cluster::session::Bounds;
use muster_protocol::cluster::sight::Sighting;
use muster_protocol::cluster::{Members, Message, NodeKey};
use muster_protocol::limits::Limits;
use parking_lot::Mutex;
use ractor::{Actor, ActorRef, ActorRuntime};
use smol_str::SmolStr;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fabric::{Connection, Fabric, Watcher};
use super::hints::Hints;
use super::hub::{Hub, Nothing};
use super::link::Link;
use super::metric_definitions::ClusterMetrics;
use super::peer::{Notice, Peer, Via};
use super::slots::Slots;
use super::status::log_apart;
use super::transport::{Inbound, Transport};
use crate::config::{ClusterConfig, TransportChoice};

/// How often links look after what time brings.
const TICK: Duration = Duration::from_millis(100);
/// How long the last words have to get out.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// How many times as much as a peer may have under way may wait here for its link: more is a peer that keeps to nothing.
const PENDING_WINDOWS_MAX: usize = 4;

/// The nodes of the cluster, with the links to them.
pub struct Nodes {
    pub(super) me: NodeKey,
    pub(super) cluster: SmolStr,
    pub(super) config: ClusterConfig,
    pub(super) limits: Limits,
    pub(super) environment: Environment,
    pub(super) metrics: ClusterMetrics,
    pub(super) bounds: Bounds,
    pub(super) fallback: Option<Arc<dyn Transport>>,
    pub(super) slots: Slots,
    pub(super) hints: Hints,
    pub(super) address: Option<SmolStr>,
    pub(super) fabric: OnceLock<Fabric>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
    failed: CancellationToken,
    hub: OnceLock<ActorRef<Nothing>>,
    receiver: OnceLock<Arc<dyn Receiver>>,
    membership: Mutex<Membership>,
    members: watch::Sender<Arc<Members>>,
    peers: Mutex<BTreeMap<SmolStr, Arc<Peer>>>,
    epochs: AtomicU64,
    has_left: AtomicBool,
    begin: Mutex<Option<Begin>>,
    this: Weak<Self>,
}

/// What begins when somebody listens.
pub(super) type Begin = Box<dyn FnOnce(Arc<Nodes>) + Send>;

/// What a node brings to its cluster.
pub struct Parts {
    /// This process.
    pub me: NodeKey,
    /// `[cluster]`.
    pub config: ClusterConfig,
    /// Bounds.
    pub limits: Limits,
    /// Time and randomness.
    pub environment: Environment,
    /// Metrics.
    pub metrics: ClusterMetrics,
    /// What reaches nodes that are not reached directly.
    pub fallback: Option<Arc<dyn Transport>>,
}

impl Nodes {
    pub(super) async fn new(parts: Parts, begin: Begin) -> Result<Arc<Self>, crate::run::RunError> {
        let Parts { me, config, limits, environment, metrics, fallback } = parts;
        let timing = Timing {
            heartbeat_ms: config.heartbeat_ms,
            suspect_after_ms: config.suspect_after_ms,
            down_after_ms: config.down_after_ms,
        };
        let membership = Membership::new(me.clone(), timing, limits.cluster_peers_max);
        let members = watch::Sender::new(Arc::new(membership.members()));
        let bounds = Bounds {
            outbox_bytes_max: limits.cluster_outbox_bytes_max,
            window_bytes_max: limits.cluster_window_bytes_max,
            message_bytes_max: limits.cluster_message_bytes_max,
        };
        let nodes = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            cluster: config.name.as_str().into(),
            slots: Slots::default(),
            hints: Hints::new(limits.cluster_peers_max),
            address: config.advertised().map(SmolStr::from),
            fabric: OnceLock::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            failed: CancellationToken::new(),
            hub: OnceLock::new(),
            receiver: OnceLock::new(),
            membership: Mutex::new(membership),
            peers: Mutex::default(),
            epochs: AtomicU64::new(1),
            has_left: AtomicBool::new(false),
            begin: Mutex::new(Some(begin)),
            me,
            config,
            limits,
            environment,
            metrics,
            bounds,
            fallback,
            members,
        });
        let (hub, hub_ends) = Actor::spawn(None, Hub { nodes: nodes.clone() }, ()).await?;
        let _only_once = nodes.hub.set(hub);
        let failed = nodes.failed.clone();
        tokio::spawn(async move {
            let _ended = hub_ends.await;
            failed.cancel();
        });
        Ok(nodes)
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.environment.monotonic_ms()
    }

    /// Never 0, which means none.
    pub(super) fn now_us(&self) -> u64 {
        self.environment.monotonic_us() + 1
    }

    /// An epoch higher than any before.
    pub(super) fn next_epoch(&self) -> u64 {
        self.epochs.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn is_draining(&self) -> bool {
        self.membership.lock().is_draining()
    }

    pub(super) fn is_isolated(&self) -> bool {
        self.members.borrow().isolated
    }

    pub(super) fn has_left(&self) -> bool {
        self.has_left.load(Ordering::Relaxed)
    }

    pub(super) fn raise(&self, event: Event) {
        if let Some(receiver) = self.receiver.get() {
            receiver.receive(event);
        }
    }

    /// Whether a process would be listened to.
    pub(super) fn admits(&self, key: &NodeKey) -> Result<(), Refusal> {
        self.membership.lock().admits(key, self.now_ms())
    }

    pub(super) fn heard(&self, heard: &Heard, now_ms: u64) -> Result<Vec<Change>, Refusal> {
        self.change(|membership| membership.heard(heard, now_ms))
    }

    pub(super) fn tick(&self, name: &str, now_ms: u64) -> Option<Change> {
        self.change(|membership| membership.tick(name, now_ms))
    }

    pub(super) fn refused_at(&self, name: &str) {
        self.change(|membership| membership.refused(name));
    }

    pub(super) fn sightings(&self) -> Option<Vec<Sighting>> {
        self.membership.lock().sightings(self.now_ms())
    }

    pub(super) fn set_unanswered(&self, addresses: usize) {
        self.change(|membership| membership.set_unanswered(addresses));
    }

    /// Changes what is known of nodes and publishes what that comes to, in one order.
    fn change<T>(&self, change: impl FnOnce(&mut Membership) -> T) -> T {
        let mut membership = self.membership.lock();
        let changed = change(&mut membership);
        if !membership.take_changed() {
            return changed;
        }
        let members = membership.members();
        self.members.send_if_modified(|published| {
            let is_new = **published != members;
            log_apart(published, &members);
            if is_new {
                *published = Arc::new(members);
            }
            is_new
        });
        changed
    }

    /// Notes that a process is not listened to.
    pub(super) fn refuse(&self, key: &NodeKey, refusal: &Refusal) {
        self.metrics.refused("membership");
        tracing::debug!(peer = %key, %refusal, "passed over a frame");
    }

    /// The link to a node; begun if there is none.
    fn peer(self: &Arc<Self>, name: &SmolStr) -> Arc<Peer> {
        let mut peers = self.peers.lock();
        if let Some(peer) = peers.get(name) {
            return peer.clone();
        }
        let peer = Peer::new(name.clone());
        self.begin_link(&peer);
        peers.insert(name.clone(), peer.clone());
        peer
    }

    pub(super) fn begin_link(self: &Arc<Self>, peer: &Arc<Peer>) {
        let Some(hub) = self.hub.get() else { return };
        let link = Link { peer: peer.clone(), nodes: self.clone() };
        match ActorRuntime::spawn_linked_instant(None, link, (), hub.get_cell()) {
            Ok((actor, _)) => *peer.actor.lock() = Some(actor),
            Err(error) => tracing::error!(peer = %peer.name, %error, "a link does not start"),
        }
    }

    fn send_encoded(&self, to: &NodeKey, message: Bytes) -> bool {
        let is_taken = self.find_peer(&to.name).is_some_and(|peer| peer.send(self, to, message));
        if is_taken {
            self.metrics.sent.inc();
        }
        is_taken
    }

    pub(super) fn all_peers(&self) -> Vec<Arc<Peer>> {
        self.peers.lock().values().cloned().collect()
    }

    /// The process of a node that is up, as far as is known.
    pub(super) fn up(&self, name: &str) -> Option<NodeKey> {
        let membership = self.membership.lock();
        membership
            .known()
            .find(|known| known.is_up() && known.key.name == name)
            .map(|known| known.key.clone())
    }

    /// All nodes that are known.
    pub(super) fn known(&self) -> Vec<Known> {
        self.membership.lock().known().cloned().collect()
    }

    pub(super) fn find_peer(&self, name: &str) -> Option<Arc<Peer>> {
        self.peers.lock().get(name).cloned()
    }

    /// Looks at who sent a frame to whom, and hands it to its link.
    fn take(self: &Arc<Self>, connection: Option<&Arc<Connection>>, bytes: &Bytes) {
        let frame = match Frame::decode(bytes) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::debug!(%error, "passed over a frame");
                return self.metrics.refused("malformed");
            }
        };
        let header = &frame.header;
        if header.cluster != self.cluster {
            return self.metrics.refused("cluster");
        }
        if header.version < PROTOCOL_VERSION_MIN {
            return self.metrics.refused("version");
        }
        if header.to.as_ref().is_some_and(|to| *to != self.me) {
            // For an earlier process of this node.
            return self.metrics.refused("address");
        }
        if let Some(connection) = connection.filter(|connection| connection.peer != header.from) {
            tracing::warn!(peer = %connection.peer, "a node speaks in another's name: its connection is cut");
            connection.cut.cancel();
            return self.metrics.refused("sender");
        }
        if let Err(refusal) = self.admits(&header.from) {
            return self.refuse(&header.from, &refusal);
        }
        self.note_addresses(header);
        let peer = self.peer(&header.from.name);
        if header.address.is_some() {
            peer.address.lock().clone_from(&header.address);
        }
        let pending_max =
            PENDING_WINDOWS_MAX * (self.bounds.window_bytes_max + self.bounds.message_bytes_max);
        let is_too_much = peer.pending_bytes() + bytes.len() > pending_max;
        match connection {
            Some(connection) if is_too_much => {
                tracing::warn!(peer = %connection.peer, "a node sends more than its window: its connection is cut");
                connection.cut.cancel();
                self.metrics.refused("flood");
            }
            None if is_too_much => self.metrics.refused("pending"),
            Some(connection) => peer.take(Via::Direct(connection.id), frame, bytes.len()),
            None => peer.take(Via::Fallback, frame, bytes.len()),
        }
    }

    /// What all links do from time to time.
    pub(super) async fn look_after(self: Arc<Self>) {
        let mut timer = tokio::time::interval(TICK);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut announce_at_ms = 0;
        while self.stop.run_until_cancelled(timer.tick()).await.is_some() {
            let now_ms = self.now_ms();
            self.change(|membership| membership.look_around(now_ms));
            for peer in self.all_peers() {
                peer.tell(Notice::Tick);
            }
            if self.now_ms() >= announce_at_ms {
                announce_at_ms = self.now_ms() + self.config.heartbeat_ms;
                self.announce();
                self.note_silence();
                self.metrics.observe(&self.status());
            }
        }
    }

    /// Where nodes find each other by Redis alone, one that does not reach it waits for others it does not know.
    fn note_silence(&self) {
        if self.config.transport == TransportChoice::Redis {
            let is_up = self.fallback.as_ref().is_some_and(|fallback| fallback.connection().is_some());
            self.set_unanswered(usize::from(!is_up));
        }
    }

    /// What stands at the beginning of every frame from this node.
    pub(super) fn header(&self, to: Option<NodeKey>) -> Header {
        Header {
            version: PROTOCOL_VERSION,
            cluster: self.cluster.clone(),
            from: self.me.clone(),
            to,
            epoch: 0,
            peer_epoch: 0,
            number: 0,
            ack: 0,
            draining: self.is_draining(),
            goodbye: self.has_left(),
            sent_us: 0,
            echo_us: 0,
            held_us: 0,
            address: None,
            others: Vec::new(),
            sightings: None,
            hears: 0,
        }
    }

    /// Forgets a node that is not known any more, if nothing of it is on its way to its link, which asks: whether it ends.
    pub(super) fn forget(&self, peer: &Peer) -> bool {
        let mut peers = self.peers.lock();
        let stays = peer.pending_bytes() > 0
            || peer.state.lock().direct.is_some()
            || self.slots.current(&peer.name).is_some()
            || self.membership.lock().known().any(|known| known.key.name == peer.name);
        if !stays {
            peers.remove(&peer.name);
        }
        !stays
    }

    /// How many actors of this process other nodes can reach: the relay, and no other.
    #[must_use]
    pub fn remotable_actors() -> usize {
        ractor::registry::get_all_pids()
            .iter()
            .filter(|cell| cell.get_id().is_local() && cell.supports_remoting())
            .count()
    }

    /// Waits until the node can have no links any more.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Says goodbye, and ends all links: the last that this process does in the cluster.
    pub async fn close(&self) {
        self.has_left.store(true, Ordering::Relaxed);
        self.stop.cancel();
        for peer in self.all_peers() {
            peer.tell(Notice::Tell);
        }
        self.announce();
        // Whoever has heard it ends the connection.
        let heard = async {
            while !self.slots.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _in_time = tokio::time::timeout(GOODBYE_TIMEOUT, heard).await;
        self.slots.cut_all();
        if let Some(fallback) = &self.fallback {
            fallback.close().await;
        }
        self.tasks.close();
        let _in_time = tokio::time::timeout(GOODBYE_TIMEOUT, self.tasks.wait()).await;
    }
}

impl Cluster for Nodes {
    fn me(&self) -> &NodeKey {
        &self.me
    }

    fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.subscribe()
    }

    fn send(&self, to: &NodeKey, message: Message) -> bool {
        self.send_each(std::slice::from_ref(to), message) == 0
    }

    fn send_each(&self, to: &[NodeKey], message: Message) -> usize {
        if to.is_empty() {
            return 0;
        }
        let bytes = match message.encode() {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) => {
                tracing::error!(%error, "a message to other nodes could not be written");
                return to.len();
            }
        };
        to.iter().filter(|node| !self.send_encoded(node, bytes.clone())).count()
    }

    fn start(&self, receiver: Arc<dyn Receiver>) {
        if self.receiver.set(receiver).is_ok()
            && let (Some(begin), Some(this)) = (self.begin.lock().take(), self.this.upgrade())
        {
            begin(this);
        }
    }

    fn drain(&self) {
        self.change(Membership::drain);
        for peer in self.all_peers() {
            peer.tell(Notice::Tell);
        }
        self.announce();
    }
}

impl Inbound for Arc<Nodes> {
    fn receive(&self, frame: Bytes) {
        self.take(None, &frame);
    }

    fn absent(&self, node: &NodeKey) {
        let now_ms = self.now_ms();
        self.change(|membership| membership.absent(node, now_ms));
    }
}

impl Watcher for Arc<Nodes> {
    fn opened(&self, connection: &Arc<Connection>) {
        tracing::info!(peer = %connection.peer, "linked");
        self.peer(&connection.peer.name).tell(Notice::Opened(connection.clone()));
    }

    fn closed(&self, connection: &Arc<Connection>) {
        tracing::info!(peer = %connection.peer, "a link has ended");
        self.slots.clear(connection);
        if let Some(peer) = self.find_peer(&connection.peer.name) {
            peer.tell(Notice::Closed(connection.id));
        }
    }

    fn failed(&self) {
        tracing::error!("what carries the links has ended");
        self.failed.cancel();
    }

    fn frame(&self, connection: &Arc<Connection>, frame: Bytes) {
        self.take(Some(connection), &frame);
    }
}
