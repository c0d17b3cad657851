//! Which agents are online: at once, for discovery and hiring, and through [`Presence`] for those who watch.
//!
//! An agent is online as long as one of its connections is (agrenting.md R55, C2), to whichever node: of those to other
//! nodes presence knows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use muster_protocol::agent::Agent;
use muster_protocol::agent_status;
use muster_protocol::discovery::{Availability, Found, PresenceFields, Query};
use muster_protocol::ids::AgentId;
use muster_protocol::json::Json;
use muster_protocol::presence::Facts;
use muster_protocol::time::Timestamp;
use muster_protocol::topic::{DISCOVERY, UNPUBLISHED, agent_topic};
use parking_lot::RwLock;

use crate::metric_definitions::Metrics;
use crate::ports::Environment;
use crate::presence::{Presence, Shown, Tracked};

/// The agents online.
pub struct Online {
    /// By connections to this node.
    agents: RwLock<HashMap<AgentId, Entry>>,
    /// Agents that went since they were last asked for.
    gone: RwLock<HashSet<AgentId>>,
    presence: Arc<Presence>,
    environment: Environment,
    metrics: Arc<Metrics>,
    changes: AtomicU64,
}

struct Entry {
    agent: Arc<Agent>,
    /// What it says of itself.
    said: Availability,
    connections: Vec<Connection>,
    /// Whether it was when its connections were shown last.
    published: bool,
}

struct Connection {
    id: u64,
    online_at: Timestamp,
    /// Whether it is also present on the agent's own topic.
    own_topic: bool,
    /// What watchers see of it; while the agent is not published, nodes alone.
    tracked: Vec<Tracked>,
}

impl Entry {
    /// Lets watchers see every connection with the record as it is.
    fn show(&mut self, presence: &Arc<Presence>) {
        self.said = agent_status::availability(&self.agent.metadata);
        let (published, said) = (self.agent.status.is_discoverable(), self.said);
        let was_published = std::mem::replace(&mut self.published, published);
        let key = self.agent.id.to_string();
        for connection in &mut self.connections {
            let shown =
                if published { shown(&self.agent, said, connection.online_at) } else { unpublished() };
            if !connection.tracked.is_empty() && was_published == published {
                connection.tracked.iter_mut().for_each(|tracked| tracked.update(&shown));
                continue;
            }
            let topic = if published { DISCOVERY } else { UNPUBLISHED };
            let mut tracked = vec![presence.track(topic, &key, shown.clone())];
            if published && connection.own_topic {
                tracked.push(presence.track(&agent_topic(self.agent.id), &key, shown));
            }
            // The old ones go after the new have come, so that it is not offline in between for other nodes.
            connection.tracked = tracked;
        }
    }
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
        Arc::new(Self {
            agents: RwLock::default(),
            gone: RwLock::default(),
            presence,
            environment,
            metrics,
            changes: AtomicU64::new(0),
        })
    }

    /// Changes of records so far: taken before a record is read, it tells [`Self::appear`] whether that reading may be
    /// old by now.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// An agent comes online by one more connection, with its record as it was read. `own_topic`: it is also present
    /// on its own `agent:<id>` topic.
    #[must_use]
    pub fn appear(self: &Arc<Self>, agent: Arc<Agent>, own_topic: bool) -> Appearance {
        let online_at = self.environment.now();
        let id = u64::from_be_bytes(self.environment.random());
        let agent_id = agent.id;
        let mut agents = self.agents.write();
        let said = Availability::Online;
        let none = || Entry { agent: agent.clone(), said, connections: Vec::new(), published: false };
        let entry = agents.entry(agent_id).or_insert_with(none);
        entry.connections.push(Connection { id, online_at, own_topic, tracked: Vec::new() });
        // The record was read before this lock was taken: what a change told meanwhile is newer.
        if agent.recency() > entry.agent.recency() {
            entry.agent = agent;
        }
        entry.show(&self.presence);
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

    /// The agent's record has changed, here or at another node: everybody who watches is told, by the metas of its
    /// connections to this node. A reading older than the one known changes nothing.
    pub fn refresh(&self, agent: &Arc<Agent>) {
        self.changes.fetch_add(1, Ordering::Release);
        self.note(agent);
    }

    /// The same for a record that was read, not changed.
    pub fn note(&self, agent: &Arc<Agent>) {
        let mut agents = self.agents.write();
        let Some(entry) = agents.get_mut(&agent.id) else { return };
        if agent.recency() >= entry.agent.recency() {
            entry.agent = agent.clone();
            entry.show(&self.presence);
        }
    }

    /// The agents that are connected to this node.
    #[must_use]
    pub fn here(&self) -> Vec<AgentId> {
        self.agents.read().keys().copied().collect()
    }

    /// The agent's record has changed at another node. Whether it has connections here: then its record is to be read, and
    /// given to [`Self::note`].
    #[must_use]
    pub fn changed_elsewhere(&self, agent: AgentId) -> bool {
        self.changes.fetch_add(1, Ordering::Release);
        self.is_here(agent)
    }

    /// Whether the agent is online.
    #[must_use]
    pub fn contains(&self, agent: AgentId) -> bool {
        self.is_here(agent) || self.presence.elsewhere().contains(agent)
    }

    /// Whether the agent is online by a connection to this node.
    #[must_use]
    pub fn is_here(&self, agent: AgentId) -> bool {
        self.agents.read().contains_key(&agent)
    }

    /// Connected agents that match, best first, without those of `except`. Each has the availability it says it has.
    #[must_use]
    pub fn find(&self, query: &Query, except: &HashSet<AgentId>, limit: usize) -> Vec<Found> {
        let wanted = query.availability();
        let agents = self.agents.read();
        // Of an agent that is online in both places, what this node knows itself.
        let known = |agent: AgentId| agents.contains_key(&agent) || except.contains(&agent);
        let mut found = self.presence.elsewhere().find(query, known);
        found.extend(
            agents
                .values()
                .filter(|entry| wanted.admits(entry.said))
                .filter(|entry| !except.contains(&entry.agent.id) && query.matches(&entry.agent))
                .map(|entry| Found::new(&entry.agent, entry.said)),
        );
        drop(agents);
        found.sort_by(|a, b| a.order(b, query.sort_by));
        found.truncate(limit);
        found
    }

    /// Everybody online.
    #[must_use]
    pub fn ids(&self) -> HashSet<AgentId> {
        let mut ids = self.agents.read().keys().copied().collect();
        self.presence.elsewhere().add_ids(&mut ids);
        ids
    }

    /// Takes the agents that went offline since this was last called, for noting when they were last seen: those whose last
    /// connection was to this node, and at one of the nodes those that went with a node that is gone.
    #[must_use]
    pub fn take_gone(&self) -> HashSet<AgentId> {
        let mut gone = std::mem::take(&mut *self.gone.write());
        let lost = self.presence.elsewhere().take_lost();
        if !lost.is_empty() && self.presence.is_first_of_nodes() {
            gone.extend(lost);
        }
        gone.retain(|agent| !self.contains(*agent));
        gone
    }
}

/// What is shown of an agent that is not published: that it is there.
fn unpublished() -> Shown {
    Shown { fields: Json::empty_object(), facts: Arc::default() }
}

fn shown(agent: &Agent, said: Availability, online_at: Timestamp) -> Shown {
    let fields = Json::of(&PresenceFields {
        capabilities: &agent.capabilities,
        reputation: agent.reputation(),
        base_price: agent.base_price,
        online_at,
        status: said,
        name: &agent.name,
        did: &agent.did,
        metadata: &agent.metadata,
    });
    let facts = Facts {
        capabilities: agent.capabilities.clone(),
        reputation: agent.reputation(),
        base_price: agent.base_price,
    };
    Shown { fields, facts: Arc::new(facts) }
}
