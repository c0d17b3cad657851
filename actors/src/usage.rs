//! What is used of the limits that hold for the whole cluster: told to the other nodes every second, and heard from them
//! (see `muster_protocol::cluster::usage`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use muster_protocol::cluster::usage::{TOLD_AT_ONCE_MAX, Told, Usage, least_told};
use muster_protocol::cluster::{Message, NodeKey};
use muster_protocol::ids::CredentialId;
use muster_protocol::limits::Limits;
use parking_lot::Mutex;

use crate::cluster::Cluster;
use crate::connections::Connections;
use crate::rate_limits::Buckets;
use crate::task_stream::Streams;

/// See the module.
pub struct ClusterUsage {
    cluster: Arc<dyn Cluster>,
    connections: Arc<Connections>,
    streams: Streams,
    limits: Arc<Limits>,
    /// Requests of credentials.
    pub requests: Buckets<CredentialId>,
    told: Mutex<Told<CredentialId>>,
    /// Whether somebody may not know what was told before.
    is_news: AtomicBool,
}

impl ClusterUsage {
    /// Nothing is used yet.
    #[must_use]
    pub fn new(
        cluster: Arc<dyn Cluster>,
        connections: Arc<Connections>,
        streams: Streams,
        limits: Arc<Limits>,
    ) -> Self {
        Self {
            requests: Buckets::new(limits.requests_per_credential),
            cluster,
            connections,
            streams,
            limits,
            told: Mutex::default(),
            is_news: AtomicBool::new(false),
        }
    }

    /// Tells the other nodes. To be called every second.
    pub fn tell(&self) {
        let others = self.cluster.others();
        if others.is_empty() {
            return;
        }
        let nodes = others.len() + 1;
        // Before looking, so that whoever comes meanwhile is told the next time.
        let whole = self.is_news.swap(false, Ordering::AcqRel);
        let least = least_told(self.limits.sockets_per_credential_max, nodes);
        let sockets = self.connections.sockets_from(least);
        let mut sockets = self.told.lock().changes(sockets.into_iter(), whole);
        let mut usage = Usage {
            whole,
            sockets: Vec::new(),
            requests: self.requests.untold(nodes, TOLD_AT_ONCE_MAX),
            chunks: self.streams.agent_buckets().untold(nodes, TOLD_AT_ONCE_MAX),
        };
        loop {
            let rest = sockets.split_off(sockets.len().min(TOLD_AT_ONCE_MAX));
            usage.sockets = std::mem::replace(&mut sockets, rest);
            if usage.is_empty() {
                return;
            }
            // Who misses it counts too little for a while, and is told all when its session begins anew.
            let _missed = self.cluster.send_each(&others, Message::Usage(std::mem::take(&mut usage)));
        }
    }

    /// Takes what another node has told.
    pub fn receive(&self, node: &NodeKey, usage: Usage, now_ms: u64) {
        self.connections.note_elsewhere(node, usage.whole, usage.sockets);
        for (credential, tokens) in usage.requests {
            self.requests.charge(credential, tokens, now_ms);
        }
        for (agent, tokens) in usage.chunks {
            self.streams.agent_buckets().charge(agent, tokens, now_ms);
        }
    }

    /// A node has come, or has missed something: it does not know what the others were told.
    pub fn node_up(&self) {
        self.is_news.store(true, Ordering::Release);
    }

    /// A node is gone.
    pub fn node_down(&self, node: &NodeKey) {
        self.connections.forget_elsewhere(node);
    }
}
