//! Whether one agent may begin something with another.

use muster_protocol::agent::{Agent, AgentStatus, check_other};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::AgentId;
use muster_protocol::time::Timestamp;

use crate::store::{Store, StoreError};
use crate::task_stream::refusal_of;

/// The other agent, as `field` of a request names it.
///
/// # Errors
/// It is the same agent; it is unknown, or one blocks the other, which looks the same; it is not active.
pub async fn counterpart(
    store: &dyn Store,
    now: Timestamp,
    from: AgentId,
    (other, field): (AgentId, &'static str),
) -> Result<Agent, Refusal> {
    check_other(from, (other, field))?;
    let unknown = || Refusal::field(ErrorCode::NotFound, field, "there is no such agent");
    let agent = store.agent(other).await.map_err(|error| match error {
        StoreError::NotFound => unknown(),
        other => refusal_of(other),
    })?;
    if agent.status != AgentStatus::Active {
        return Err(ErrorCode::AgentUnavailable.into());
    }
    let blocked = store.blocked_pairs(from, now).await.map_err(refusal_of)?;
    if blocked.contains_key(&other) { Err(unknown()) } else { Ok(agent) }
}
