//! Handing tasks over: what comes with a message of type `task_handoff`, and what its recipient says of it (agrenting.md
//! R127).

use std::sync::Arc;

use muster_protocol::agent::{AgentStatus, check_other};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::handoff::{Answer, Handoff, HandoffRequest, HandoffState};
use muster_protocol::ids::{AgentId, MessageId, TaskId};
use muster_protocol::message::Message;
use muster_protocol::task::{Ending, Task};
use muster_protocol::topic::{event, messages_topic};

use crate::pubsub::PubSub;
use crate::store::StoreError;
use crate::task_stream::refusal_of;
use crate::tasks::Tasks;

/// Declined handoffs whose tasks are cancelled in one round.
const CANCELLED_AT_ONCE: usize = 100;

/// Handoffs.
pub struct Handoffs {
    tasks: Arc<Tasks>,
}

/// Tells both parties where a handoff is.
pub(crate) fn tell(pubsub: &PubSub, handoff: &Handoff, task: &Task) {
    let update = handoff.update(task);
    for party in [handoff.from, handoff.to] {
        pubsub.publish(&messages_topic(party), event::HANDOFF_UPDATED, update.clone());
    }
}

impl Handoffs {
    /// With the tasks.
    #[must_use]
    pub fn new(tasks: Arc<Tasks>) -> Self {
        Self { tasks }
    }

    /// What comes with a message: a task and its handoff, as they are to be stored with it.
    ///
    /// # Errors
    /// The payload does not fit; the recipient is the sender, not active, or cannot do all that is required; a task that is
    /// named is none of the sender's; the price is above what the sender would pay at most.
    pub(crate) async fn prepare(&self, message: &Message) -> Result<(Task, Handoff), Refusal> {
        let (store, limits) = (&self.tasks.store, &self.tasks.limits);
        check_other(message.from, (message.to, "to_agent_id"))?;
        let payload = message.payload.as_ref().ok_or(ErrorCode::Internal)?;
        let request = HandoffRequest::read(payload, limits)?;
        let sender = store.agent(message.from).await.map_err(refusal_of)?;
        let recipient = store.agent(message.to).await.map_err(refusal_of)?;
        if recipient.status != AgentStatus::Active {
            return Err(ErrorCode::AgentUnavailable.into());
        }
        request.check_recipient(&recipient.capabilities)?;
        let mut named = None;
        for (field, id) in request.tasks() {
            let task = self.task_of(message.from, field, id).await?;
            if request.task_id == Some(id) {
                named = Some(task);
            }
        }
        let new = request.new_task(recipient.id, named.as_ref(), limits)?;
        let task = self.tasks.paid_ahead(&sender, new)?;
        let parties = (sender.id, recipient.id);
        let handoff = request.handoff(message.id, task.id, parties, message.inserted_at);
        Ok((task, handoff))
    }

    /// A task of which an agent is a party. What is not its own does not exist for it.
    async fn task_of(&self, agent: AgentId, field: &'static str, id: TaskId) -> Result<Task, Refusal> {
        match self.tasks.store.task(id).await {
            Ok(task) if [task.client, task.provider].contains(&agent) => Ok(task),
            Ok(_) | Err(StoreError::NotFound) => {
                Err(Refusal::field(ErrorCode::NotFound, field, "you have no such task"))
            }
            Err(error) => Err(refusal_of(error)),
        }
    }

    /// A task was created with a message.
    pub(crate) fn created(&self, task: &Task) {
        self.tasks.tell_created(task);
    }

    /// The handoff that came with a message, and its task. Whose business it is the caller knows.
    ///
    /// # Errors
    /// `not_found`: none came with it.
    pub async fn of(&self, id: MessageId) -> Result<(Handoff, Task), Refusal> {
        let handoff = self.tasks.store.handoff(id).await.map_err(refusal_of)?;
        let task = self.tasks.store.task(handoff.task).await.map_err(refusal_of)?;
        Ok((handoff, task))
    }

    /// Notes what the recipient says, and acts upon it. To say the same again changes nothing.
    ///
    /// # Errors
    /// `handoff_not_active`: it has said something else, or the task has ended.
    pub async fn answer(
        &self,
        id: MessageId,
        answer: Answer,
        by: Option<AgentId>,
    ) -> Result<(Handoff, Task), Refusal> {
        let now = self.tasks.environment.now();
        let (before, task) = self.of(id).await?;
        let handoff = match self.tasks.store.answer_handoff(id, answer.clone(), now).await {
            Ok(handoff) => handoff,
            Err(StoreError::Conflict) => {
                // Whatever came between is stored by now.
                let (handoff, task) = self.of(id).await?;
                handoff.answered(&answer, &task, now)?;
                return Err(ErrorCode::Overloaded.into());
            }
            Err(error) => return Err(refusal_of(error)),
        };
        match answer {
            Answer::Accept if before.accepted_at.is_none() => tell(&self.tasks.pubsub, &handoff, &task),
            Answer::Accept => {}
            Answer::Decline(_) => self.cancel(&handoff, by).await?,
        }
        self.of(id).await
    }

    /// Cancels the task of a handoff that was declined; what is held goes back.
    async fn cancel(&self, handoff: &Handoff, by: Option<AgentId>) -> Result<(), Refusal> {
        let ending = Ending::cancelled(handoff.reason.as_deref());
        match self.tasks.finish(handoff.task, ending, (by, Some(handoff.to))).await {
            Ok(_) => {}
            // It has ended otherwise, or by whoever did this before; or its client has given it to another meanwhile.
            Err(refusal)
                if matches!(
                    refusal.code,
                    ErrorCode::TaskNotActive | ErrorCode::NotFound | ErrorCode::Unauthorized
                ) => {}
            Err(refusal) => return Err(refusal),
        }
        self.tasks.store.handoff_cancelled(handoff.message).await.map_err(refusal_of)
    }

    /// Ends the task of a handoff that was accepted.
    ///
    /// # Errors
    /// `handoff_not_active`: it was not, or the task has ended; a document is too large.
    pub async fn finish(
        &self,
        id: MessageId,
        ending: Ending,
        by: Option<AgentId>,
    ) -> Result<(Handoff, Task), Refusal> {
        let (handoff, task) = self.of(id).await?;
        handoff.must_be(HandoffState::Accepted, &task)?;
        match self.tasks.finish(handoff.task, ending, (by, Some(handoff.to))).await {
            Ok(task) => Ok((handoff, task)),
            Err(refusal) if refusal.code == ErrorCode::TaskNotActive => {
                let (handoff, task) = self.of(id).await?;
                handoff.must_be(HandoffState::Accepted, &task)?;
                Err(refusal)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Cancels the tasks of handoffs whose recipient declined at a node that did not live to do it.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub async fn sweep(&self) -> Result<(), Refusal> {
        let declined = self.tasks.store.handoffs_to_cancel(CANCELLED_AT_ONCE).await.map_err(refusal_of)?;
        for id in declined {
            let (handoff, _) = self.of(id).await?;
            self.cancel(&handoff, Some(handoff.to)).await?;
        }
        Ok(())
    }
}
