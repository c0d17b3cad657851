//! The end of a task, and its passing to another provider: ordered after its last chunk.

use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::AgentId;
use muster_protocol::join_rules::may_read_stream;
use muster_protocol::task::{Ending, Task, TaskAction};
use muster_protocol::topic::{agent_topic, event};
use ractor::ActorRef;
use tokio::sync::oneshot;

use super::{Role, State};
use crate::inbox::Wake;
use crate::store::{Finish, Reassign, StoreError};
use crate::task_channel::task_payload;
use crate::task_stream::refusal_of;

impl State {
    pub(super) async fn finish_or_forward(
        &mut self,
        myself: &ActorRef<Wake>,
        (ending, again): (Ending, bool),
        by: (Option<AgentId>, Option<AgentId>),
        reply: oneshot::Sender<Result<Task, Refusal>>,
    ) {
        if matches!(self.role, Role::Owner(_)) {
            let done = self.finish(myself, (ending.clone(), again), by).await;
            // Fenced off while it was done: the next owner is asked.
            if matches!(self.role, Role::Owner(_)) {
                let _caller_gone = reply.send(done);
                return;
            }
        }
        self.forward_finish(&ending, by, reply);
    }

    pub(super) async fn reassign_or_forward(
        &mut self,
        myself: &ActorRef<Wake>,
        (provider, by, again): (AgentId, AgentId, bool),
        reply: oneshot::Sender<Result<Task, Refusal>>,
    ) {
        if matches!(self.role, Role::Owner(_)) {
            let done = self.reassign(myself, (provider, by, again)).await;
            if matches!(self.role, Role::Owner(_)) {
                let _caller_gone = reply.send(done);
                return;
            }
        }
        self.forward_reassign((provider, by), reply);
    }

    /// Ends the task. `again`: it may have been done already, and then is.
    pub(super) async fn finish(
        &mut self,
        myself: &ActorRef<Wake>,
        (ending, again): (Ending, bool),
        (by, provider): (Option<AgentId>, Option<AgentId>),
    ) -> Result<Task, Refusal> {
        if again && self.ending.as_ref() == Some(&ending) {
            return Ok(self.task.clone());
        }
        // Asked before, but the task may have been given to another since.
        if provider.is_some_and(|provider| provider != self.task.provider) {
            return Err(ErrorCode::NotFound.into());
        }
        self.task.status.after(ending.action())?;
        let finish = Finish {
            task: self.task.id,
            epoch: self.epoch,
            ending: ending.clone(),
            by,
            last_seq: self.log.last_seq(),
            now: self.registry.environment.now(),
        };
        let finished = self.registry.store.finish_task(finish).await;
        self.task = finished.map_err(|error| self.refused_by_store(myself, error))?;
        // The store takes an end only behind every chunk.
        self.log.confirm(self.log.last_seq());
        self.show();
        self.ending = Some(ending);
        self.tell_changed();
        self.advance_all();
        Ok(self.task.clone())
    }

    /// Gives the task to another provider. `again`: as in [`Self::finish`].
    pub(super) async fn reassign(
        &mut self,
        myself: &ActorRef<Wake>,
        (provider, by, again): (AgentId, AgentId, bool),
    ) -> Result<Task, Refusal> {
        if again && self.task.provider == provider {
            return Ok(self.task.clone());
        }
        self.task.status.after(TaskAction::Reassign)?;
        let now = self.registry.environment.now();
        let reassign = Reassign { task: self.task.id, epoch: self.epoch, provider, by, now };
        let reassigned = self.registry.store.reassign_task(reassign).await;
        let former = self.task.provider;
        self.task = reassigned.map_err(|error| self.refused_by_store(myself, error))?;
        // Here, where it is known who had it: of several at once each follows another.
        if former != self.task.provider {
            let told = task_payload(&self.task);
            self.registry.pubsub.publish(&agent_topic(former), event::TASK_CANCELLED, told);
        }
        self.tell_changed();
        self.parties_changed();
        self.tell_tail();
        Ok(self.task.clone())
    }

    /// Closes the stream to readers who have nothing to do with its task any more.
    pub(super) fn parties_changed(&mut self) {
        let parties = self.task.parties();
        *self.handle.parties.write() = parties;
        self.readers.retain_mut(|reader| {
            let stays = may_read_stream(&reader.principal, &parties);
            if !stays {
                reader.released = true;
                reader.outlet.close();
            }
            stays
        });
    }

    /// What is answered when the store refuses to change the task. If it knows more than this stream, another has claimed
    /// that.
    fn refused_by_store(&mut self, myself: &ActorRef<Wake>, error: StoreError) -> Refusal {
        if matches!(error, StoreError::Fenced | StoreError::WrongStatus(_)) {
            self.fenced(myself, &error);
        }
        refusal_of(error)
    }
}
