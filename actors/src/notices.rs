//! Changes of the store that nodes keep things of in memory: told here, and to every other node.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use muster_protocol::agent::Agent;
use muster_protocol::cluster::{Message, Notice};
use muster_protocol::error_code::Refusal;
use muster_protocol::ids::{AgentId, CredentialId, UserId};
use muster_protocol::time::Timestamp;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::blocks::Blocks;
use crate::cluster::Cluster;
use crate::connections::Connections;
use crate::messages::addresses::Addresses;
use crate::online::Online;
use crate::store::{Store, StoreError};
use crate::task_stream::Streams;

/// Notices of other nodes that may wait for the store. One that does not fit is counted as missed: what it was about is
/// read again.
const NOTICES_MAX: usize = 65_536;

/// Tells changes.
pub struct Notices {
    cluster: Arc<dyn Cluster>,
    connections: Arc<Connections>,
    online: Arc<Online>,
    blocks: Arc<Blocks>,
    addresses: Arc<Addresses>,
    streams: Streams,
    store: Arc<dyn Store>,
    /// What the store told of lately.
    known_ended: Mutex<(Known<CredentialId>, Known<AgentId>)>,
    /// What cannot be done without waiting for the store.
    reading: mpsc::Sender<Reading>,
}

/// How far back it is looked for ended credentials, in milliseconds: further than the clocks of two nodes are apart.
const LOOK_BACK_MS: i64 = 30_000;
/// Ended credentials and stopped agents read at once.
const ENDED_AT_ONCE: usize = 1_000;

/// What the store told of lately, and when each ended.
struct Known<T>(HashMap<T, Timestamp>);

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Copy + Eq + Hash> Known<T> {
    /// Notes what was found; gives what is new.
    fn note(&mut self, found: &[(Timestamp, T)], now: Timestamp) -> Vec<T> {
        self.0.retain(|_, at| *at >= now.plus_ms(-2 * LOOK_BACK_MS));
        let is_new = found.iter().filter(|(at, id)| self.0.insert(*id, *at) != Some(*at));
        is_new.map(|(_, id)| *id).collect()
    }
}

/// From where the next part is read, unless this one is the last.
fn next_part<T: Copy>(found: &[(Timestamp, T)]) -> Option<(Timestamp, Option<T>)> {
    let (at, id) = found.last().filter(|_| found.len() == ENDED_AT_ONCE)?;
    Some((*at, Some(*id)))
}

enum Reading {
    Agent(AgentId),
    Blocks([AgentId; 2]),
    /// Some notices were missed.
    Everything,
}

impl Notices {
    /// For these parts of a node. Runs until it is dropped.
    #[must_use]
    pub fn new(
        (cluster, store): (Arc<dyn Cluster>, Arc<dyn Store>),
        connections: Arc<Connections>,
        (online, blocks, addresses): (Arc<Online>, Arc<Blocks>, Arc<Addresses>),
        streams: Streams,
    ) -> Arc<Self> {
        let (reading, mut readings) = mpsc::channel(NOTICES_MAX);
        let known_ended = Mutex::default();
        let notices = Arc::new(Self {
            cluster,
            connections,
            online,
            blocks,
            addresses,
            streams,
            store,
            known_ended,
            reading,
        });
        let weak = Arc::downgrade(&notices);
        tokio::spawn(async move {
            while let Some(reading) = readings.recv().await {
                let Some(notices) = weak.upgrade() else { return };
                notices.read(reading).await;
            }
        });
        notices
    }

    /// These credentials have ended: everything under them is closed. Gives how much that was on this node.
    pub fn credentials_ended(&self, credentials: &[CredentialId], reason: &str) -> usize {
        if !credentials.is_empty() {
            let credentials = credentials.to_vec();
            self.tell(Notice::CredentialsEnded { credentials, reason: reason.into() });
        }
        self.end_credentials(credentials, reason)
    }

    /// The same for what another node has ended and told the store.
    pub fn end_credentials(&self, credentials: &[CredentialId], reason: &str) -> usize {
        credentials.iter().map(|credential| self.connections.end_credential(*credential, reason)).sum()
    }

    /// Ends what stands on credentials and agents that another node has ended, though its notice did not come: the store
    /// tells. To be called every second.
    pub async fn look_for_ended(&self, now: Timestamp) {
        if self.cluster.is_alone() {
            return;
        }
        if let Err(error) = self.read_ended(now).await {
            tracing::warn!(%error, "cannot read which credentials and agents have ended");
        }
    }

    async fn read_ended(&self, now: Timestamp) -> Result<(), StoreError> {
        let from = now.plus_ms(-LOOK_BACK_MS);
        let mut part = Some((from, None));
        while let Some(since) = part {
            let found = self.store.credentials_ended_since(since, ENDED_AT_ONCE).await?;
            let new = self.known_ended.lock().0.note(&found, now);
            self.end_credentials(&new, "credential revoked");
            part = next_part(&found);
        }
        let mut part = Some((from, None));
        while let Some(since) = part {
            let found = self.store.agents_stopped_since(since, ENDED_AT_ONCE).await?;
            let new = self.known_ended.lock().1.note(&found, now);
            for agent in new {
                self.connections.end_agent(agent, "agent stopped");
            }
            part = next_part(&found);
        }
        Ok(())
    }

    /// An agent was stopped: everything of it is closed.
    pub fn agent_ended(&self, agent: AgentId, reason: &str) {
        self.tell(Notice::AgentEnded { agent, reason: reason.into() });
        self.connections.end_agent(agent, reason);
    }

    /// An agent's record has changed: everybody who watches it is told.
    pub fn agent_changed(&self, agent: &Arc<Agent>) {
        self.addresses.forget(agent.id);
        self.online.refresh(agent);
        self.tell(Notice::AgentChanged { agent: agent.id });
    }

    /// A block between two agents came or went.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn blocks_changed(&self, agents: [AgentId; 2]) -> Result<(), Refusal> {
        agents.iter().for_each(|agent| self.addresses.forget(*agent));
        self.tell(Notice::BlocksChanged { agents });
        self.blocks.changed(agents).await
    }

    /// A client agent has come to belong to a user.
    pub fn claimed(&self, agent: AgentId, owner: UserId) {
        self.addresses.forget(agent);
        self.tell(Notice::Claimed { agent, owner });
        self.streams.owned(agent, owner);
    }

    /// Takes note of what another node tells.
    pub fn receive(&self, notice: Notice) {
        match &notice {
            Notice::AgentChanged { agent }
            | Notice::AgentEnded { agent, .. }
            | Notice::Claimed { agent, .. } => {
                self.addresses.forget(*agent);
            }
            Notice::BlocksChanged { agents } => {
                agents.iter().for_each(|agent| self.addresses.forget(*agent));
            }
            Notice::CredentialsEnded { .. } => {}
        }
        match notice {
            Notice::CredentialsEnded { credentials, reason } => {
                self.end_credentials(&credentials, &reason);
            }
            Notice::AgentEnded { agent, reason } => {
                self.connections.end_agent(agent, &reason);
            }
            Notice::Claimed { agent, owner } => self.streams.owned(agent, owner),
            Notice::AgentChanged { agent } => self.read_soon(Reading::Agent(agent)),
            Notice::BlocksChanged { agents } => self.read_soon(Reading::Blocks(agents)),
        }
    }

    /// Notices of other nodes may have been missed.
    pub fn missed(&self) {
        self.addresses.forget_all();
        self.read_soon(Reading::Everything);
    }

    fn tell(&self, notice: Notice) {
        // A node that misses it reads everything again when it is back.
        let _missed = self.cluster.send_each(&self.cluster.others(), Message::Notice(notice));
    }

    fn read_soon(&self, reading: Reading) {
        if self.reading.try_send(reading).is_err() {
            tracing::error!("too many notices of other nodes at once; some agents are shown as they were");
        }
    }

    async fn read(&self, reading: Reading) {
        let result = match reading {
            Reading::Agent(agent) => self.read_agent(agent).await,
            Reading::Blocks(agents) => self.blocks.changed(agents).await,
            Reading::Everything => self.read_everything().await,
        };
        if let Err(refusal) = result {
            tracing::warn!(%refusal, "cannot read what another node has changed");
        }
    }

    async fn read_agent(&self, agent: AgentId) -> Result<(), Refusal> {
        if !self.online.changed_elsewhere(agent) {
            return Ok(());
        }
        match self.store.agent(agent).await {
            Ok(agent) => {
                let agent = Arc::new(agent);
                self.online.note(&agent);
                if !agent.status.may_connect() {
                    self.connections.end_agent(agent.id, "agent stopped");
                }
                Ok(())
            }
            Err(StoreError::NotFound) => Ok(()),
            Err(error) => Err(crate::task_stream::refusal_of(error)),
        }
    }

    async fn read_everything(&self) -> Result<(), Refusal> {
        for agent in self.online.here() {
            self.read_agent(agent).await?;
        }
        self.blocks.read_again().await
    }
}
