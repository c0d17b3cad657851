//! Changes of agents' records, and what agents say of themselves (agrenting.md R64, R128).

use std::sync::Arc;

use muster_protocol::agent::Agent;
use muster_protocol::agent_status;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::AgentId;
use muster_protocol::json::Json;
use muster_protocol::limits::Limits;
use muster_protocol::time::Timestamp;
use muster_protocol::topic::{DISCOVERY, event};
use serde::Serialize;

use crate::notices::Notices;
use crate::ports::Environment;
use crate::presence::Presence;
use crate::store::{Store, StoreError};
use crate::task_stream::refusal_of;

/// Locks that changes of agents' records share.
const CHANGE_STRIPES: usize = 64;
/// Times a change is tried again when one of another node came first.
const CHANGE_ATTEMPTS_MAX: usize = 8;

/// Changes agents' records.
pub struct AgentChanges {
    store: Arc<dyn Store>,
    environment: Environment,
    limits: Arc<Limits>,
    notices: Arc<Notices>,
    presence: Arc<Presence>,
    /// Changes on this node, one at a time for each agent.
    changing: [tokio::sync::Mutex<()>; CHANGE_STRIPES],
}

impl AgentChanges {
    /// With these parts of a node.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        environment: Environment,
        limits: Arc<Limits>,
        (notices, presence): (Arc<Notices>, Arc<Presence>),
    ) -> Arc<Self> {
        let changing = std::array::from_fn(|_| tokio::sync::Mutex::default());
        Arc::new(Self { store, environment, limits, notices, presence, changing })
    }

    /// Changes an agent's record and tells those who watch it.
    ///
    /// # Errors
    /// What `new` refuses; or the store cannot be written.
    pub async fn change(
        &self,
        id: AgentId,
        new: impl Fn(Agent) -> Result<Agent, Refusal>,
    ) -> Result<Arc<Agent>, Refusal> {
        let change = |agent| new(agent).map(Some);
        self.change_unless(id, change).await?.ok_or_else(|| ErrorCode::Internal.into())
    }

    /// The same; gives nothing if nothing is to be changed.
    async fn change_unless(
        &self,
        id: AgentId,
        new: impl Fn(Agent) -> Result<Option<Agent>, Refusal>,
    ) -> Result<Option<Arc<Agent>>, Refusal> {
        // The last byte of an id is random.
        let _alone = self.changing[usize::from(id.as_bytes()[15]) % CHANGE_STRIPES].lock().await;
        for _ in 0..CHANGE_ATTEMPTS_MAX {
            let read = self.store.agent(id).await.map_err(refusal_of)?;
            // Distinct from the time it was read with, so that of two changes in one millisecond the second is noticed.
            let updated_at = self.environment.now().max(read.updated_at.plus_ms(1));
            let Some(new) = new(read.clone())? else { return Ok(None) };
            let changed = Agent { updated_at, ..new };
            match self.store.update_agent(&read, changed.clone()).await {
                Ok(()) => {
                    let agent = Arc::new(changed);
                    self.notices.agent_changed(&agent);
                    return Ok(Some(agent));
                }
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(refusal_of(error)),
            }
        }
        Err(ErrorCode::Overloaded.into())
    }

    /// Tells everybody who may see it what an agent says of itself now. An agent that is not published says nothing.
    pub fn announce(&self, agent: &Agent) {
        #[derive(Serialize)]
        struct Updated<'a> {
            agent_id: AgentId,
            capabilities: &'a [String],
            metadata: &'a Json,
        }
        // Through presence, which knows who does not see whom.
        if agent.status.is_discoverable() {
            let (capabilities, metadata) = (&agent.capabilities, &agent.metadata);
            let updated = Json::of(&Updated { agent_id: agent.id, capabilities, metadata });
            self.presence.tell(DISCOVERY, &agent.id.to_string(), event::AGENT_UPDATED, updated);
        }
    }

    /// Whether an agent may say this of itself.
    ///
    /// # Errors
    /// Its metadata would be too large with it.
    pub async fn check_status(&self, id: AgentId, payload: &Json) -> Result<(), Refusal> {
        let agent = self.store.agent(id).await.map_err(refusal_of)?;
        agent_status::said(&agent.metadata, payload, self.environment.now(), &self.limits).map(drop)
    }

    /// Notes what an agent has said of itself at a time, and tells those who watch it; unless it has said something newer.
    ///
    /// # Errors
    /// As for [`Self::check_status`]; the store cannot be written.
    pub async fn set_status(&self, id: AgentId, payload: &Json, at: Timestamp) -> Result<(), Refusal> {
        let said = |agent: Agent| {
            let metadata = agent_status::said(&agent.metadata, payload, at, &self.limits)?;
            Ok(metadata.map(|metadata| Agent { metadata, ..agent }))
        };
        if let Some(agent) = self.change_unless(id, said).await? {
            self.announce(&agent);
        }
        Ok(())
    }
}
