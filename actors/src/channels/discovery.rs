//! `agents:discovery`: who is online and what each can do (agrenting.md I).

use std::collections::HashSet;
use std::sync::Arc;

use muster_protocol::agent::{Agent, check_capabilities, merge_metadata};
use muster_protocol::discovery::{Availability, AvailabilityFilter, Found, Query, View};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::AgentId;
use muster_protocol::json::{Json, read_object};
use muster_protocol::phoenix::Ref;
use muster_protocol::topic::{DISCOVERY, event};
use serde::Deserialize;
use serde_json::json;

use super::{Answer, current_agent, require_write};
use crate::core::Core;
use crate::egress::Outlet;
use crate::negotiations::discovery_topic;
use crate::online::Appearance;
use crate::presence::Watching;
use crate::pubsub::Subscription;
use crate::socket::{OwnedPayload, Socket};
use crate::task_stream::refusal_of;

/// What the join holds on to.
pub struct DiscoveryChannel {
    _watching: Watching,
    _appearance: Option<Appearance>,
    /// To what concerns this agent alone.
    _subscription: Option<Subscription>,
}

impl DiscoveryChannel {
    pub(super) async fn join(
        socket: &Arc<Socket>,
        outlet: &Arc<Outlet>,
        payload: &OwnedPayload,
        reference: &Ref,
    ) -> Result<Self, Refusal> {
        let core = &socket.core;
        let view = payload.json().map_or(Ok(View::Full), |payload| View::parse(payload.as_str()))?;
        // A user without an agent watches, and is not seen.
        let agent = match socket.principal.agent {
            Some(_) => {
                let changes = core.online.changes();
                Some((current_agent(socket).await?, changes))
            }
            None => None,
        };
        let watching = core.blocks.watch(DISCOVERY, outlet, socket.principal.agent, view).await?;
        let subscription = match &agent {
            Some((agent, _)) => Some(core.pubsub.subscribe(&discovery_topic(agent.id), outlet).await),
            None => None,
        };
        let appearance = match agent {
            Some((agent, changes)) => Some(super::appear(core, agent, changes, false).await?),
            None => None,
        };
        outlet.open(reference, &Json::empty_object());
        Ok(Self { _watching: watching, _appearance: appearance, _subscription: subscription })
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
    let mut except: HashSet<AgentId> = match viewer {
        Some(agent) => core.blocks.hidden_from(agent).await?,
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
    let core = &socket.core;
    let new = |agent| Ok(Agent { capabilities: capabilities.clone(), ..agent });
    let agent = core.changes.change(socket.principal.acting_agent()?, new).await?;
    core.changes.announce(&agent);
    Ok(Json::empty_object())
}

#[derive(Deserialize)]
struct UpdateMetadata {
    metadata: Json,
}

async fn update_metadata(socket: &Socket, payload: &OwnedPayload) -> Result<Json, Refusal> {
    require_write(socket)?;
    let UpdateMetadata { metadata } = read_object(payload.json()?.as_str())?;
    let core = &socket.core;
    let new = |agent: Agent| {
        let metadata = merge_metadata(&agent.metadata, &metadata, &core.limits)?;
        Ok(Agent { metadata, ..agent })
    };
    core.changes.change(socket.principal.acting_agent()?, new).await?;
    Ok(Json::empty_object())
}
