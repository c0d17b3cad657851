//! `agent:<id>`: an agent's own events; being here is being online (agrenting.md C, G).

use std::sync::Arc;

use muster_protocol::discovery::View;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::json::{Json, read_object};
use muster_protocol::phoenix::Ref;
use muster_protocol::task::ChunkRequest;
use muster_protocol::topic::event;

use super::{Answer, current_agent};
use crate::egress::Outlet;
use crate::online::Appearance;
use crate::presence::Watching;
use crate::pubsub::Subscription;
use crate::socket::{OwnedPayload, Socket};
use crate::task_stream::ack::Ack;

/// What the join holds on to.
pub struct AgentChannel {
    _subscription: Subscription,
    _watching: Watching,
    _appearance: Appearance,
}

impl AgentChannel {
    pub(super) async fn join(
        socket: &Arc<Socket>,
        outlet: &Arc<Outlet>,
        reference: &Ref,
    ) -> Result<Self, Refusal> {
        let core = &socket.core;
        let changes = core.online.changes();
        let agent = current_agent(socket).await?;
        let subscription = core.pubsub.subscribe(outlet.topic(), outlet).await;
        let watching = core.presence.watch(outlet.topic(), outlet, Some(agent.id), (View::Full, None));
        let appearance = super::appear(core, agent, changes, true).await?;
        outlet.open(reference, &Json::empty_object());
        Ok(Self { _subscription: subscription, _watching: watching, _appearance: appearance })
    }
}

/// Handles an event from the agent.
pub(super) async fn push(
    socket: &Arc<Socket>,
    outlet: &Arc<Outlet>,
    name: &str,
    payload: &OwnedPayload,
    reference: &Ref,
) -> Result<Answer, Refusal> {
    if name != event::TASK_STREAM_CHUNK {
        return Err(ErrorCode::UnknownEvent.into());
    }
    let chunk: ChunkRequest = read_object(payload.json()?.as_str())?;
    let task = chunk.task()?;
    let received_at_ms = socket.core.environment.monotonic_ms();
    let ack = Ack::push(outlet.clone(), reference.clone(), received_at_ms);
    socket.core.streams.emit(&socket.principal, task, (chunk, None), ack).await;
    Ok(Answer::Later)
}
