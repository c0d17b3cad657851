//! `task:<id>`: what the two agents of a task send each other (agrenting.md J). A bus of its own: nothing of
//! `task_stream:<id>` comes here but the end of the task (C8).

use std::sync::Arc;

use muster_protocol::account::Scope;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::TaskId;
use muster_protocol::json::Json;
use muster_protocol::phoenix::Ref;
use muster_protocol::rate_limiter::TokenBucket;
use muster_protocol::task::Ending;
use muster_protocol::task_channel::payloads::{
    JoinRequest, read_checkpoint, read_chunk, read_closing, read_error, read_progress, read_reason,
    read_result,
};
use muster_protocol::task_channel::{Direction, Side};
use muster_protocol::topic::event;
use serde_json::json;

use super::Answer;
use crate::egress::Outlet;
use crate::socket::{OwnedPayload, Socket};
use crate::task_channel::{Joined, task_payload};

/// What the join holds on to.
pub struct TaskChannel {
    joined: Joined,
    /// Chunks of this join.
    chunks: TokenBucket,
}

impl TaskChannel {
    pub(super) async fn join(
        socket: &Arc<Socket>,
        outlet: &Arc<Outlet>,
        task: TaskId,
        payload: &OwnedPayload,
        reference: &Ref,
    ) -> Result<Self, Refusal> {
        let core = &socket.core;
        let request = match payload {
            OwnedPayload::Json(json) => JoinRequest::parse(json.as_str())?,
            OwnedPayload::Binary(_) => JoinRequest::default(),
        };
        let chunks = TokenBucket::new(core.limits.chunks_per_stream, core.environment.monotonic_ms());
        let joined = core.task_channels.join((&socket.principal, outlet), task, request, reference).await?;
        Ok(Self { joined, chunks })
    }

    pub(super) async fn push(
        &mut self,
        socket: &Arc<Socket>,
        outlet: &Arc<Outlet>,
        name: &str,
        payload: &OwnedPayload,
        reference: &Ref,
    ) -> Result<Answer, Refusal> {
        match name {
            event::INPUT_STREAM => self.chunk(socket, outlet, Direction::Input, payload, reference).await,
            event::OUTPUT_STREAM => self.chunk(socket, outlet, Direction::Output, payload, reference).await,
            event::INPUT_COMPLETE => self.complete_stream(socket, Direction::Input, payload).await,
            event::OUTPUT_COMPLETE => self.complete_stream(socket, Direction::Output, payload).await,
            event::PROGRESS => {
                self.control(socket, Side::Provider)?;
                let progress = read_progress(payload.json()?.as_str(), &socket.core.limits)?;
                socket.core.task_channels.progress(&self.joined, progress).await?;
                Ok(Answer::Now(Json::empty_object()))
            }
            event::CHECKPOINT => {
                self.control(socket, Side::Provider)?;
                let checkpoint = read_checkpoint(payload.json()?.as_str(), &socket.core.limits)?;
                let is_new = socket.core.task_channels.checkpoint(&self.joined, checkpoint).await?;
                Ok(Answer::Now(or_duplicate(!is_new)))
            }
            event::COMPLETE => {
                self.control(socket, Side::Provider)?;
                let ending = read_result(payload.json()?.as_str())?;
                self.finish(socket, ending, Side::Provider).await
            }
            event::ERROR => {
                self.control(socket, Side::Provider)?;
                let ending = read_error(payload.json()?.as_str())?;
                let error = ending.document.clone();
                let answer = self.finish(socket, ending, Side::Provider).await?;
                socket.core.task_channels.relay(self.joined.task, Side::Client, event::ERROR, error);
                Ok(answer)
            }
            event::CANCEL => {
                self.control(socket, Side::Client)?;
                let reason = read_reason(payload.json()?.as_str())?;
                let answer = self.finish(socket, Ending::cancelled(reason.as_deref()), Side::Client).await?;
                let told = Json::of(&json!({ "reason": reason }));
                socket.core.task_channels.relay(self.joined.task, Side::Provider, event::CANCEL, told);
                Ok(answer)
            }
            _ => Err(ErrorCode::UnknownEvent.into()),
        }
    }

    /// Right and rate of an event that is none of a chunk: they share the bucket of joins (C3).
    fn control(&self, socket: &Socket, side: Side) -> Result<(), Refusal> {
        socket.principal.require(Scope::Write)?;
        let now_ms = socket.core.environment.monotonic_ms();
        socket.core.join_buckets.take(self.joined.agent, now_ms).map_err(Refusal::rate_limited)?;
        self.joined.require(side)
    }

    async fn chunk(
        &mut self,
        socket: &Arc<Socket>,
        outlet: &Arc<Outlet>,
        direction: Direction,
        payload: &OwnedPayload,
        reference: &Ref,
    ) -> Result<Answer, Refusal> {
        let core = &socket.core;
        socket.principal.require(Scope::Write)?;
        let now_ms = core.environment.monotonic_ms();
        core.streams.agent_buckets().take(self.joined.agent, now_ms).map_err(Refusal::rate_limited)?;
        self.chunks.take(core.limits.chunks_per_stream, 1, now_ms).map_err(Refusal::rate_limited)?;
        self.joined.require(direction.sender())?;
        let chunk = read_chunk(payload.json()?.as_str(), &core.limits)?;
        core.task_channels.put(&self.joined, direction, chunk, (outlet, reference)).await?;
        Ok(Answer::Later)
    }

    async fn complete_stream(
        &self,
        socket: &Socket,
        direction: Direction,
        payload: &OwnedPayload,
    ) -> Result<Answer, Refusal> {
        self.control(socket, direction.sender())?;
        let closing = read_closing(payload.json()?.as_str())?;
        let known = socket.core.task_channels.complete_stream(&self.joined, direction, closing).await?;
        Ok(Answer::Now(or_duplicate(known)))
    }

    /// Ends the task, behind the chunks that were sent before: the same way as every other end of it.
    async fn finish(&self, socket: &Socket, ending: Ending, side: Side) -> Result<Answer, Refusal> {
        let Joined { task, agent, .. } = self.joined;
        socket.core.task_channels.settle(task).await;
        let provider = (side == Side::Provider).then_some(agent);
        let task = socket.core.tasks.finish(task, ending, (Some(agent), provider)).await?;
        Ok(Answer::Now(task_payload(&task)))
    }
}

fn or_duplicate(is_duplicate: bool) -> Json {
    if is_duplicate { Json::of(&json!({ "duplicate": true })) } else { Json::empty_object() }
}
