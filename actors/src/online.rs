//! Which agents are online here: at once, for discovery and hiring, and through [`Presence`] for those who watch.
//!
//! An agent is online as long as one of its connections is (agrenting.md R55, C2).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use muster_protocol::agent::Agent;
use muster_protocol::discovery::{Availability, Found, PresenceFields, Query};
use muster_protocol::ids::AgentId;
use muster_protocol::json::Json;
use muster_protocol::time::Timestamp;
use muster_protocol::topic::{DISCOVERY, agent_topic};
use parking_lot::RwLock;

use crate::metric_definitions::Metrics;
use crate::ports::Environment;
use crate::presence::{Presence, Tracked};

/// The agents online on this node.
pub struct Online {
    agents: RwLock<HashMap<AgentId, Entry>>,
    /// Agents that went since they were last asked for.
    gone: RwLock<HashSet<AgentId>>,
    presence: Arc<Presence>,
    environment: Environment,
    metrics: Arc<Metrics>,
}

struct Entry {
    agent: Arc<Agent>,
    connections: Vec<Connection>,
}

struct Connection {
    id: u64,
    online_at: Timestamp,
    tracked: Vec<Tracked>,
}

/// One connection by which an agent is online; dropping it takes the agent away, unless it has another.
pub struct Appearance {
    online: Arc<Online>,
    agent: AgentId,
    id: u64,
}

impl Drop for Appearance {
    fn drop(&mut self) {
        self.online.vanish(self.agent, self.id);
    }
}

impl Online {
    /// Nobody.
    #[must_use]
    pub fn new(presence: Arc<Presence>, environment: Environment, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { agents: RwLock::default(), gone: RwLock::default(), presence, environment, metrics })
    }

    /// An agent comes online by one more connection. `own_topic`: it is also present on its own `agent:<id>` topic.
    #[must_use]
    pub fn appear(self: &Arc<Self>, agent: Arc<Agent>, own_topic: bool) -> Appearance {
        let online_at = self.environment.now();
        let id = u64::from_be_bytes(self.environment.random());
        let agent_id = agent.id;
        let mut tracked = Vec::new();
        if agent.status.is_discoverable() {
            let (key, fields) = (agent_id.to_string(), fields(&agent, online_at));
            tracked.push(self.presence.track(DISCOVERY, &key, fields.clone()));
            if own_topic {
                tracked.push(self.presence.track(&agent_topic(agent_id), &key, fields));
            }
        }
        let mut agents = self.agents.write();
        let entry =
            agents.entry(agent_id).or_insert_with(|| Entry { agent: agent.clone(), connections: Vec::new() });
        entry.agent = agent;
        entry.connections.push(Connection { id, online_at, tracked });
        self.metrics.agents_online.set(i64::try_from(agents.len()).unwrap_or(i64::MAX));
        Appearance { online: self.clone(), agent: agent_id, id }
    }

    fn vanish(&self, agent: AgentId, id: u64) {
        let mut agents = self.agents.write();
        let Some(entry) = agents.get_mut(&agent) else { return };
        entry.connections.retain(|connection| connection.id != id);
        if entry.connections.is_empty() {
            agents.remove(&agent);
            self.metrics.agents_online.set(i64::try_from(agents.len()).unwrap_or(i64::MAX));
            self.gone.write().insert(agent);
        }
    }

    /// The agent's record changed: everybody who watches is told.
    pub fn refresh(&self, agent: &Arc<Agent>) {
        let mut agents = self.agents.write();
        let Some(entry) = agents.get_mut(&agent.id) else { return };
        entry.agent = agent.clone();
        for connection in &mut entry.connections {
            if agent.status.is_discoverable() {
                let fields = fields(agent, connection.online_at);
                connection.tracked.iter().for_each(|tracked| tracked.update(fields.clone()));
            } else {
                connection.tracked.clear();
            }
        }
    }

    /// Whether the agent is online.
    #[must_use]
    pub fn contains(&self, agent: AgentId) -> bool {
        self.agents.read().contains_key(&agent)
    }

    /// The agent's availability.
    #[must_use]
    pub fn availability(&self, agent: AgentId) -> Availability {
        if self.contains(agent) { Availability::Online } else { Availability::Offline }
    }

    /// Online agents that match, best first, without those of `except`.
    #[must_use]
    pub fn find(&self, query: &Query, except: &HashSet<AgentId>, limit: usize) -> Vec<Found> {
        if !query.availability().admits(Availability::Online) {
            return Vec::new();
        }
        let mut found: Vec<Found> = self
            .agents
            .read()
            .values()
            .filter(|entry| !except.contains(&entry.agent.id) && query.matches(&entry.agent))
            .map(|entry| Found::new(&entry.agent, Availability::Online))
            .collect();
        found.sort_by(Found::order);
        found.truncate(limit);
        found
    }

    /// Everybody online.
    #[must_use]
    pub fn ids(&self) -> HashSet<AgentId> {
        self.agents.read().keys().copied().collect()
    }

    /// Takes the agents that went offline since this was last called.
    #[must_use]
    pub fn take_gone(&self) -> HashSet<AgentId> {
        std::mem::take(&mut self.gone.write())
    }
}

fn fields(agent: &Agent, online_at: Timestamp) -> Json {
    Json::of(&PresenceFields {
        capabilities: &agent.capabilities,
        reputation: agent.reputation(),
        base_price: agent.base_price,
        online_at,
        status: Availability::Online,
        name: &agent.name,
        did: &agent.did,
        metadata: &agent.metadata,
    })
}
