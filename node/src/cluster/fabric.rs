//! ractor_cluster: carries frames over the connections it is given.
//!
//! It gets connections that have been authenticated and agreed upon already (see [`super::doors`]), one for each pair of
//! processes, so that its own handshake and its election among rival connections decide nothing. What it would open
//! itself is closed: its listener is on loopback and asks for a certificate of an authority nobody has the key of, and it
//! dials nobody.
//!
//! One actor can be reached from other nodes: the relay, which takes frames. Each frame has the number of its connection in
//! front, so that who sent it is known from the connection and not from the frame.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use muster_protocol::cluster::NodeKey;
use parking_lot::Mutex;
use ractor::message::{BoxedDowncastErr, SerializedMessage};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, Message, SupervisionEvent};
use ractor_cluster::node::NodeConnectionMode;
use ractor_cluster::node::NodeServerSessionInformation;
use ractor_cluster::{IncomingEncryptionMode, NodeEventSubscription, NodeServer, NodeServerMessage};
use tokio_util::sync::CancellationToken;

use super::stream::{Io, Line};
use super::tls;
use crate::run::RunError;

/// The process group by which a node's relay is found.
const RELAY_GROUP: &str = "muster.cluster.relay";
/// Bytes in front of a frame: the connection's number.
const PREFIX_BYTES: usize = 8;

/// One connection to a process of another node.
pub struct Connection {
    /// Drawn by who dialled; both ends know it.
    pub id: u64,
    /// The other end.
    pub peer: NodeKey,
    /// Ends it when cancelled.
    pub cut: CancellationToken,
    /// Cancelled when nothing is left of it.
    pub gone: CancellationToken,
    relay: Mutex<Option<ActorRef<RelayFrame>>>,
}

impl Connection {
    /// A connection that is not open yet.
    pub fn new(id: u64, peer: NodeKey) -> Arc<Self> {
        Arc::new(Self {
            id,
            peer,
            cut: CancellationToken::new(),
            gone: CancellationToken::new(),
            relay: Mutex::new(None),
        })
    }

    /// Whether frames can be sent.
    pub fn is_open(&self) -> bool {
        self.relay.lock().is_some()
    }

    /// Hands over a frame; `false` when the connection is not open. There is no bound here: the session's window is it.
    pub fn send(&self, frame: &Bytes) -> bool {
        let Some(relay) = self.relay.lock().clone() else { return false };
        let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + frame.len());
        bytes.put_u64(self.id);
        bytes.put_slice(frame);
        !self.cut.is_cancelled() && relay.cast(RelayFrame(bytes.into())).is_ok()
    }
}

/// What ractor_cluster calls a connection.
fn label(id: u64) -> String {
    format!("{id:016x}")
}

fn id_of(label: &str) -> Option<u64> {
    u64::from_str_radix(label, 16).ok()
}

/// What becomes of connections, and what comes over them.
pub trait Watcher: Send + Sync + 'static {
    /// Frames can be sent.
    fn opened(&self, connection: &Arc<Connection>);
    /// Nothing is left of it.
    fn closed(&self, connection: &Arc<Connection>);
    /// ractor_cluster has ended, which no node survives.
    fn failed(&self);
    /// A frame came over it.
    fn frame(&self, connection: &Arc<Connection>, frame: Bytes);
}

/// See the module.
pub struct Fabric {
    server: ActorRef<NodeServerMessage>,
    connections: Arc<Connections>,
}

struct Connections {
    by_id: Mutex<HashMap<u64, Arc<Connection>>>,
    watcher: Arc<dyn Watcher>,
    me: NodeKey,
}

/// The name of a process among those of ractor_cluster: a process that starts again is another node to it.
fn node_name(key: &NodeKey) -> String {
    format!("{}.{}", key.name, key.incarnation)
}

impl Fabric {
    /// Starts it.
    ///
    /// # Errors
    /// An actor does not start.
    pub async fn start(me: &NodeKey, cluster: &str, watcher: Arc<dyn Watcher>) -> Result<Self, RunError> {
        let name = node_name(me);
        let server = NodeServer::new(
            0,
            // Not a secret: who gets here has shown a certificate.
            cluster.to_owned(),
            name.clone(),
            name,
            Some(IncomingEncryptionMode::Tls(tls::closed_door()?)),
            Some(NodeConnectionMode::Isolated),
        )
        .with_listen_addr(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let connections =
            Arc::new(Connections { by_id: Mutex::new(HashMap::new()), watcher, me: me.clone() });
        let (relay, relay_ends) = Actor::spawn(None, Relay { connections: connections.clone() }, ()).await?;
        ractor::pg::join(RELAY_GROUP.to_owned(), vec![relay.get_cell()]);
        let (server, server_ends) = Actor::spawn(None, server, ()).await?;
        let watched = connections.clone();
        tokio::spawn(async move {
            // Either of them; nobody stops them while the node lives.
            let _ended = futures_util::future::select(relay_ends, server_ends).await;
            watched.watcher.failed();
        });
        let subscription = Box::new(Events(connections.clone()));
        server.cast(NodeServerMessage::SubscribeToEvents { id: "muster".to_owned(), subscription })?;
        Ok(Self { server, connections })
    }

    /// Opens a connection on a stream. How that goes, the watcher is told; at last that it is closed.
    pub fn open(&self, connection: &Arc<Connection>, io: Io, was_accepted: bool) {
        self.connections.by_id.lock().insert(connection.id, connection.clone());
        let line = Line::new(io, label(connection.id), connection.cut.clone());
        let message =
            NodeServerMessage::ConnectionOpenedExternal { stream: Box::new(line), is_server: was_accepted };
        if self.server.cast(message).is_err() {
            self.connections.close(connection.id);
        }
    }
}

impl Connections {
    fn open(&self, session: &NodeServerSessionInformation) {
        let Some(connection) = id_of(&session.peer_addr).and_then(|id| self.get(id)) else { return };
        let expected = node_name(&connection.peer);
        let claimed = session.peer_name.as_ref().map(|name| name.name.as_str());
        let relay = remote_relay(session.node_id);
        let is_expected = claimed.is_some_and(|name| name.split('@').next() == Some(expected.as_str()));
        match relay {
            Some(relay) if is_expected && connection.peer != self.me => {
                *connection.relay.lock() = Some(relay);
                self.watcher.opened(&connection);
            }
            _ => {
                tracing::warn!(peer = %connection.peer, claimed, "the other end of a link is not who it said it was");
                connection.cut.cancel();
            }
        }
    }

    fn get(&self, id: u64) -> Option<Arc<Connection>> {
        self.by_id.lock().get(&id).cloned()
    }

    fn close(&self, id: u64) {
        let Some(connection) = self.by_id.lock().remove(&id) else { return };
        connection.relay.lock().take();
        connection.cut.cancel();
        connection.gone.cancel();
        self.watcher.closed(&connection);
    }
}

/// The relay of the node at the other end of a session.
fn remote_relay(session: u64) -> Option<ActorRef<RelayFrame>> {
    let members = ractor::pg::get_members(&RELAY_GROUP.to_owned());
    let is_there = |id: ActorId| matches!(id, ActorId::Remote { node_id, .. } if node_id == session);
    members.into_iter().find(|cell| is_there(cell.get_id())).map(ActorRef::from)
}

struct Events(Arc<Connections>);

impl NodeEventSubscription for Events {
    fn node_session_opened(&self, _session: NodeServerSessionInformation) {}

    fn node_session_disconnected(&self, session: NodeServerSessionInformation) {
        if let Some(id) = id_of(&session.peer_addr) {
            self.0.close(id);
        }
    }

    fn node_session_authenticated(&self, _session: NodeServerSessionInformation) {}

    fn node_session_ready(&self, session: NodeServerSessionInformation) {
        self.0.open(&session);
    }
}

/// A connection's number and a frame.
pub struct RelayFrame(Bytes);

impl Message for RelayFrame {
    fn serializable() -> bool {
        true
    }

    fn serialize(self) -> Result<SerializedMessage, BoxedDowncastErr> {
        Ok(SerializedMessage::Cast { variant: String::new(), args: self.0.into(), metadata: None })
    }

    /// Whatever a peer sends is taken, so that it cannot end the relay: what is no frame is an empty one.
    fn deserialize(message: SerializedMessage) -> Result<Self, BoxedDowncastErr> {
        Ok(match message {
            SerializedMessage::Cast { args, .. } => Self(args.into()),
            _ => Self(Bytes::new()),
        })
    }
}

struct Relay {
    connections: Arc<Connections>,
}

impl Actor for Relay {
    type Msg = RelayFrame;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<RelayFrame>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<RelayFrame>,
        RelayFrame(mut bytes): RelayFrame,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        if bytes.len() > PREFIX_BYTES {
            let connection = self.connections.get(bytes.get_u64());
            if let Some(connection) = connection.filter(|connection| !connection.cut.is_cancelled()) {
                self.connections.watcher.frame(&connection, bytes);
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<RelayFrame>,
        _: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}
