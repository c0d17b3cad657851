//! Blocks: two agents of which one blocks the other do not see each other (agrenting.md R66).

use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::AgentId;
use muster_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{Body, Id, State};
use super::views::{Envelope, Refusals, Removed};
use crate::auth::Caller;
use crate::http::answer::{Answer, Handled};

/// A block.
#[derive(Deserialize, Serialize, ToSchema)]
pub struct Block {
    /// Who is blocked.
    agent_id: AgentId,
    /// Until when; for good when absent.
    #[serde(default)]
    expires_at: Option<Timestamp>,
}

/// Lists the agents that the caller's agent blocks.
#[utoipa::path(get, path = "/api/v1/blocks", responses((status = 200, body = Envelope<Vec<Block>>), Refusals))]
pub async fn list(app: State, caller: Caller) -> Handled {
    let agent = caller.acting()?.id;
    let blocks = app.core.store.blocks_by(agent, app.core.environment.now()).await?;
    let views = blocks.into_iter().map(|(agent_id, expires_at)| Block { agent_id, expires_at });
    Answer::ok(&views.collect::<Vec<_>>())
}

/// Blocks an agent.
#[utoipa::path(post, path = "/api/v1/blocks", request_body = Block,
    responses((status = 201, body = Envelope<Block>), Refusals))]
pub async fn create(app: State, caller: Caller, Body(block): Body<Block>) -> Handled {
    let agent = caller.acting()?.id;
    if block.agent_id == agent {
        return Err(Refusal::field(ErrorCode::InvalidPayload, "agent_id", "another agent").into());
    }
    let blocks_max = app.config.limits.blocks_per_agent_max;
    app.core.store.block(agent, block.agent_id, block.expires_at, blocks_max).await?;
    app.core.notices.blocks_changed([agent, block.agent_id]).await?;
    Answer::created(&block)
}

/// Takes a block back.
#[utoipa::path(delete, path = "/api/v1/blocks/{id}",
    params(("id" = AgentId, Path, description = "Who is blocked.")), responses((status = 200, body = Envelope<Removed>), Refusals))]
pub async fn remove(app: State, caller: Caller, Id(other): Id<AgentId>) -> Handled {
    let agent = caller.acting()?.id;
    app.core.store.unblock(agent, other).await?;
    app.core.notices.blocks_changed([agent, other]).await?;
    Answer::ok(&Removed { removed: true })
}
