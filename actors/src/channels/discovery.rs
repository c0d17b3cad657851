//! `agents:discovery`: who is online and what each can do (agrenting.md I).

use std::collections::HashSet;
use std::sync::Arc;

use muster_protocol::agent::{Agent, check_capabilities, merge_metadata};
use muster_protocol::discovery::{Availability, AvailabilityFilter, Found, Query};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::AgentId;
use muster_protocol::json::{Json, read_object};
use muster_protocol::phoenix::Ref;
use muster_protocol::topic::{DISCOVERY, event};
use serde::Deserialize;
use serde_json::json;
use smol_str::SmolStr;

use super::{Answer, current_agent, require_write};
use crate::core::Core;
use crate::egress::Outlet;
use crate::online::Appearance;
use crate::presence::{Hidden, Watching};
use crate::pubsub::Subscription;
use crate::socket::{OwnedPayload, Socket};
use crate::store::StoreError;
use crate::task_stream::refusal_of;

/// What the join holds on to.
pub struct DiscoveryChannel {
    _subscription: Subscription,
    _watching: Watching,
    _appearance: Option<Appearance>,
}

impl DiscoveryChannel {
    pub(super) async fn join(
        socket: &Arc<Socket>,
        outlet: &Arc<Outlet>,
        reference: &Ref,
    ) -> Result<Self, Refusal> {
        let core = &socket.core;
        // A user without an agent watches, and is not seen.
        let agent = match socket.principal.agent {
            Some(_) => Some(current_agent(socket).await?),
            None => None,
        };
        let hidden = match &agent {
            Some(agent) => hidden_from(core, agent.id).await?,
            None => None,
        };
        let subscription = core.pubsub.subscribe(DISCOVERY, outlet);
        let watching = core.presence.watch(DISCOVERY, outlet, agent.as_ref().map(|agent| agent.id), hidden);
        let appearance = agent.map(|agent| core.online.appear(agent, false));
        outlet.open(reference, &Json::empty_object());
        Ok(Self { _subscription: subscription, _watching: watching, _appearance: appearance })
    }

    pub(super) async fn push(
        &mut self,
        socket: &Arc<Socket>,
        name: &str,
        payload: &OwnedPayload,
    ) -> Result<Answer, Refusal> {
        let response = match name {
            event::DISCOVER => discover(socket, payload).await?,
            event::ANNOUNCE => announce(socket, payload).await?,
            event::UPDATE_METADATA => update_metadata(socket, payload).await?,
            _ => return Err(ErrorCode::UnknownEvent.into()),
        };
        Ok(Answer::Now(response))
    }
}

/// Whom an agent does not see (R66); `None` when it sees everybody.
///
/// # Errors
/// The store cannot be read.
pub async fn hidden_from(core: &Core, agent: AgentId) -> Result<Option<Arc<Hidden>>, Refusal> {
    let now = core.environment.now();
    let blocked = core.store.blocked_pairs(agent, now).await.map_err(refusal_of)?;
    if blocked.is_empty() {
        return Ok(None);
    }
    Ok(Some(Arc::new(blocked.iter().map(|id| SmolStr::from(id.to_string())).collect())))
}

/// Agents that match a query, as one who may be an agent sees them: those online first (R62).
///
/// # Errors
/// The store cannot be read.
pub async fn find(
    core: &Core,
    viewer: Option<AgentId>,
    query: &Query,
    limit: usize,
) -> Result<Vec<Found>, Refusal> {
    let limit = limit.min(core.limits.discover_results_max);
    let now = core.environment.now();
    let mut except: HashSet<AgentId> = match viewer {
        Some(agent) => core.store.blocked_pairs(agent, now).await.map_err(refusal_of)?,
        None => HashSet::new(),
    };
    let mut found = core.online.find(query, &except, limit);
    let wants_offline = matches!(query.availability(), AvailabilityFilter::Any | AvailabilityFilter::Offline);
    if wants_offline && found.len() < limit {
        except.extend(core.online.ids());
        let offline =
            core.store.find_agents(query, &except, limit - found.len()).await.map_err(refusal_of)?;
        found.extend(offline.iter().map(|agent| Found::new(agent, Availability::Offline)));
    }
    Ok(found)
}

async fn discover(socket: &Socket, payload: &OwnedPayload) -> Result<Json, Refusal> {
    let query = Query::parse(payload.json()?.as_str())?;
    let limit = socket.core.limits.discover_results_max;
    let found = find(&socket.core, socket.principal.agent, &query, limit).await?;
    Ok(Json::of(&json!({ "agents": found })))
}

#[derive(Deserialize)]
struct Announce {
    capabilities: Vec<String>,
}

async fn announce(socket: &Socket, payload: &OwnedPayload) -> Result<Json, Refusal> {
    require_write(socket)?;
    let Announce { capabilities } = read_object(payload.json()?.as_str())?;
    check_capabilities(&capabilities, &socket.core.limits)?;
    let agent = change(&socket.core, socket.principal.acting_agent()?, |agent| {
        Ok(Agent { capabilities: capabilities.clone(), ..agent })
    })
    .await?;
    let update = json!({
        "agent_id": agent.id,
        "capabilities": &agent.capabilities,
        "metadata": &agent.metadata,
    });
    socket.core.pubsub.publish(DISCOVERY, event::AGENT_UPDATED, Json::of(&update));
    Ok(Json::empty_object())
}

#[derive(Deserialize)]
struct UpdateMetadata {
    metadata: Json,
}

async fn update_metadata(socket: &Socket, payload: &OwnedPayload) -> Result<Json, Refusal> {
    require_write(socket)?;
    let UpdateMetadata { metadata } = read_object(payload.json()?.as_str())?;
    change(&socket.core, socket.principal.acting_agent()?, |agent| {
        let metadata = merge_metadata(&agent.metadata, &metadata, &socket.core.limits)?;
        Ok(Agent { metadata, ..agent })
    })
    .await?;
    Ok(Json::empty_object())
}

/// Times a change is tried again when another one came first.
const CHANGE_ATTEMPTS_MAX: usize = 8;

/// Changes an agent's record and tells those who watch it.
///
/// # Errors
/// What `new` refuses; or the store cannot be written.
pub async fn change(
    core: &Core,
    id: AgentId,
    new: impl Fn(Agent) -> Result<Agent, Refusal>,
) -> Result<Arc<Agent>, Refusal> {
    for _ in 0..CHANGE_ATTEMPTS_MAX {
        let read = core.store.agent(id).await.map_err(refusal_of)?;
        // Distinct from the time it was read with, so that of two changes in one millisecond the second is noticed.
        let updated_at = core.environment.now().max(read.updated_at.plus_ms(1));
        let changed = Agent { updated_at, ..new(read.clone())? };
        match core.store.update_agent(&read, changed.clone()).await {
            Ok(()) => {
                let agent = Arc::new(changed);
                core.online.refresh(&agent);
                return Ok(agent);
            }
            Err(StoreError::Conflict) => {}
            Err(error) => return Err(refusal_of(error)),
        }
    }
    Err(ErrorCode::Overloaded.into())
}
