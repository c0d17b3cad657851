//! How the cluster looks from this node, for operators.

use muster_protocol::cluster::membership::{Known, Standing};
use muster_protocol::cluster::{Members, NodeKey};
use serde::Serialize;
use smol_str::SmolStr;
use utoipa::ToSchema;

use super::nodes::Nodes;
use super::peer::Peer;
use super::transport::TransportStatus;

/// The cluster as this node sees it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ClusterStatus)]
pub struct Status {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of this node.
    pub node: String,
    /// Whether this node hears none of those there should be.
    pub isolated: bool,
    /// What carries frames beside direct links, if there is anything.
    pub fallback: Option<TransportStatus>,
    /// All nodes that are known, this one too, by name.
    pub nodes: Vec<NodeStatus>,
}

/// A node and the link to it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its process: Unix milliseconds of its start.
    pub incarnation: u64,
    /// Whether it is the one that answers.
    pub is_self: bool,
    /// Where it stands.
    pub state: NodeState,
    /// Whether it is going away.
    pub draining: bool,
    /// Where it says that it is reached.
    pub address: Option<String>,
    /// Milliseconds since something was heard of it.
    pub heard_ms_ago: u64,
    /// What carries frames to it: `direct` or `redis`.
    pub transport: Option<&'static str>,
    /// Milliseconds since it has been that.
    pub transport_since_ms: Option<u64>,
    /// Last round trip, in microseconds.
    pub round_trip_us: Option<u64>,
    /// Bytes of messages that wait for it or are under way to it.
    pub outbox_bytes: usize,
    /// Frames under way to it.
    pub frames_in_flight: usize,
    /// How often the session with it began anew.
    pub resets: u64,
    /// Epoch of the session with it.
    pub epoch: Option<u64>,
}

/// Where a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It is heard.
    Up,
    /// It has been silent for a while.
    Suspect,
    /// It has been silent for too long.
    Silent,
    /// It said goodbye.
    Left,
}

impl NodeState {
    /// Whether the node is up, suspect or not.
    #[must_use]
    pub fn is_up(self) -> bool {
        matches!(self, Self::Up | Self::Suspect)
    }
}

impl From<Standing> for NodeState {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Up => Self::Up,
            Standing::Suspect => Self::Suspect,
            Standing::Silent => Self::Silent,
            Standing::Left => Self::Left,
        }
    }
}

impl Status {
    /// A node that is alone.
    #[must_use]
    pub fn alone(cluster: &str, me: &NodeKey, draining: bool) -> Self {
        Self {
            cluster: cluster.to_owned(),
            node: me.name.to_string(),
            isolated: false,
            fallback: None,
            nodes: vec![NodeStatus::oneself(me, draining)],
        }
    }
}

impl NodeStatus {
    /// A node of which no more is known than that it is up.
    #[must_use]
    pub fn oneself(key: &NodeKey, draining: bool) -> Self {
        Self {
            name: key.name.to_string(),
            incarnation: key.incarnation,
            is_self: true,
            state: NodeState::Up,
            draining,
            address: None,
            heard_ms_ago: 0,
            transport: None,
            transport_since_ms: None,
            round_trip_us: None,
            outbox_bytes: 0,
            frames_in_flight: 0,
            resets: 0,
            epoch: None,
        }
    }
}

impl Nodes {
    /// How the cluster looks from here.
    #[must_use]
    pub fn status(&self) -> Status {
        let now_ms = self.now_ms();
        let mut nodes: Vec<NodeStatus> = self
            .known()
            .iter()
            .map(|known| self.node_status(known, self.find_peer(&known.key.name).as_deref(), now_ms))
            .collect();
        nodes.push(NodeStatus {
            address: self.address.as_ref().map(ToString::to_string),
            ..NodeStatus::oneself(&self.me, self.is_draining())
        });
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Status {
            cluster: self.cluster.to_string(),
            node: self.me.name.to_string(),
            isolated: self.is_isolated(),
            fallback: self.fallback.as_ref().map(|fallback| fallback.status()),
            nodes,
        }
    }

    fn node_status(&self, known: &Known, peer: Option<&Peer>, now_ms: u64) -> NodeStatus {
        let mut status = NodeStatus {
            is_self: false,
            state: known.standing.into(),
            heard_ms_ago: now_ms.saturating_sub(known.heard_at_ms),
            ..NodeStatus::oneself(&known.key, known.draining)
        };
        let Some(peer) = peer else { return status };
        status.address = peer.address.lock().as_ref().map(ToString::to_string);
        let state = peer.state.lock();
        if let Some(carrier) = state.carrier.filter(|_| known.is_up()) {
            let fallback = self.fallback.as_ref().map(|fallback| fallback.name());
            status.transport = if carrier.reliable { Some("direct") } else { fallback };
            status.transport_since_ms = Some(now_ms.saturating_sub(state.carrier_since_ms));
        }
        status.round_trip_us = state.round_trip_us;
        status.resets = state.resets;
        if let Some(open) = &state.open {
            status.outbox_bytes = open.session.waiting_bytes();
            status.frames_in_flight = open.session.frames_in_flight();
            status.epoch = Some(open.session.epoch());
        }
        status
    }
}

/// Logs which nodes not all others hear, when that changes.
pub fn log_apart(before: &Members, now: &Members) {
    let names = |members: &Members| -> Vec<SmolStr> {
        members.nodes.iter().filter(|member| !member.central).map(|member| member.key.name.clone()).collect()
    };
    match (names(before), names(now)) {
        (before, now) if before == now => {}
        (_, now) if now.is_empty() => tracing::info!("all nodes hear each other again"),
        (_, now) => {
            tracing::warn!(nodes = ?now, "not all nodes hear these: they own no streams while that is so")
        }
    }
}
