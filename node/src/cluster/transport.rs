//! What carries frames to nodes that are not reached directly.
//!
//! A transport brings frames to a node, or loses them; it may bring them twice, late, and in another order. The session
//! (`muster_protocol::cluster::session`) sees to the rest. It knows nothing of what is in a frame.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use muster_protocol::cluster::NodeKey;
use serde::Serialize;
use utoipa::ToSchema;

/// Carries frames.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Its name, for operators.
    fn name(&self) -> &'static str;

    /// Begins: what comes for this node, or for all, goes to `inbound`. Called once, before anything is sent.
    fn start(&self, inbound: Arc<dyn Inbound>);

    /// Counts its connections: another number means that what was under way may be lost. `None` while it takes no frames,
    /// as far as it knows.
    fn connection(&self) -> Option<u64>;

    /// Takes a frame for one process of a node, without waiting. `false` when it is down or has no room: the frame is
    /// offered again later. What it holds is bounded, by its own account.
    fn send(&self, to: &NodeKey, frame: Bytes) -> bool;

    /// Takes a frame for every node of the cluster, without waiting: how nodes find each other. As [`Self::send`].
    fn announce(&self, frame: Bytes) -> bool;

    /// How it stands.
    fn status(&self) -> TransportStatus;

    /// Sends what it has taken, as far as that goes soon, and ends.
    async fn close(&self);
}

/// How a transport stands, for operators.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TransportStatus {
    /// Its name.
    pub name: &'static str,
    /// Whether it takes frames.
    pub up: bool,
    /// Milliseconds since that has been so.
    pub since_ms: u64,
    /// Why it does not, if it does not.
    pub problem: Option<String>,
    /// Bytes of frames that wait for it.
    pub queue_bytes: usize,
}

/// Takes what a transport brings.
pub trait Inbound: Send + Sync + 'static {
    /// Takes one frame that is known to come from a node of this cluster, without waiting. It looks itself at what is in
    /// there, and passes over what is not for this process.
    fn receive(&self, frame: Bytes);

    /// The transport knows that this process is not connected to it just now.
    fn absent(&self, node: &NodeKey);
}
