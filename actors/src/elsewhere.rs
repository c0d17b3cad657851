//! The agents that are online at other nodes, as presence has it from there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use muster_protocol::cluster::presence::Change;
use muster_protocol::discovery::{Availability, Found, Query};
use muster_protocol::ids::AgentId;
use muster_protocol::presence::{Meta, TrackId};
use muster_protocol::topic::{DISCOVERY, UNPUBLISHED};
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use smol_str::SmolStr;

/// Online at other nodes. Its size is bounded by the entries that presence takes from there.
#[derive(Default)]
pub(crate) struct Elsewhere {
    agents: RwLock<HashMap<AgentId, Vec<Connection>>>,
    /// Agents that went with a node that is gone, since they were last asked for.
    lost: Mutex<HashSet<AgentId>>,
}

/// One connection of an agent.
struct Connection {
    track: TrackId,
    meta: Arc<Meta>,
    /// What others find it by; nothing while it is not published.
    names: Option<Names>,
}

#[derive(Deserialize)]
struct Names {
    name: SmolStr,
    did: SmolStr,
    status: Availability,
}

impl Elsewhere {
    /// Takes in changes of other nodes' entries. `lost`: because a node is gone, which cannot say itself when its agents
    /// were last seen.
    pub fn note(&self, changes: &[Change], lost: bool) {
        let is_agent = |change: &&Change| [DISCOVERY, UNPUBLISHED].contains(&change.id.topic.as_str());
        let mut changes = changes.iter().filter(is_agent).peekable();
        if changes.peek().is_none() {
            return;
        }
        let mut agents = self.agents.write();
        for Change { id, meta } in changes {
            let Ok(agent) = id.key.parse::<AgentId>() else { continue };
            let connections = agents.entry(agent).or_default();
            connections.retain(|connection| connection.track != id.track);
            if let Some(meta) = meta {
                let names = if id.topic == DISCOVERY { meta.fields.parse().ok() } else { None };
                // Mostly it is the only one.
                connections.reserve_exact(1);
                connections.push(Connection { track: id.track, meta: meta.clone(), names });
            } else if connections.is_empty() {
                agents.remove(&agent);
                if lost {
                    self.lost.lock().insert(agent);
                }
            }
        }
    }

    /// Whether an agent is online there.
    pub fn contains(&self, agent: AgentId) -> bool {
        self.agents.read().contains_key(&agent)
    }

    /// Adds all agents that are.
    pub fn add_ids(&self, ids: &mut HashSet<AgentId>) {
        ids.extend(self.agents.read().keys());
    }

    /// Agents that match a query, in no order, but for some.
    pub fn find(&self, query: &Query, except: impl Fn(AgentId) -> bool) -> Vec<Found> {
        let mut found = Vec::new();
        for (agent, connections) in self.agents.read().iter() {
            // The newest knows best.
            if let Some(Connection { meta, names: Some(names), .. }) = connections.last()
                && query.matches_facts(&meta.facts)
                && query.availability().admits(names.status)
                && !except(*agent)
            {
                let Names { name, did, status } = names;
                found.push(Found::connected(*agent, (name, did), *status, &meta.facts));
            }
        }
        found
    }

    /// Takes the agents that went with a node since this was last called.
    pub fn take_lost(&self) -> HashSet<AgentId> {
        std::mem::take(&mut self.lost.lock())
    }
}
