//! What is kept of handoffs.

use async_trait::async_trait;
use muster_protocol::handoff::{Answer, Handoff};
use muster_protocol::ids::{MessageId, TaskId};
use muster_protocol::task::Task;
use muster_protocol::time::Timestamp;

use super::{Accepted, NewMessage, StoreResult};

/// Handoffs.
#[async_trait]
pub trait HandoffStore: Send + Sync + 'static {
    /// Stores a message, its handoff and the new task, and posts what is held for that, at once. Nothing is stored when the
    /// message is known by its key.
    async fn create_handoff(
        &self,
        message: NewMessage,
        task: Task,
        handoff: Handoff,
    ) -> StoreResult<Accepted>;
    /// The handoff that came with a message.
    async fn handoff(&self, id: MessageId) -> StoreResult<Handoff>;
    /// The handoff with which a task was created, if it was with one.
    async fn handoff_of_task(&self, task: TaskId) -> StoreResult<Option<Handoff>>;
    /// Notes what the recipient says, unless it has said so before. The task of one that is declined is to be cancelled from
    /// now on. Conflict: that cannot be said any more ([`Handoff::answered`]).
    async fn answer_handoff(&self, id: MessageId, answer: Answer, now: Timestamp) -> StoreResult<Handoff>;
    /// Declined handoffs whose tasks are to be cancelled.
    async fn handoffs_to_cancel(&self, limit: usize) -> StoreResult<Vec<MessageId>>;
    /// That was done.
    async fn handoff_cancelled(&self, id: MessageId) -> StoreResult<()>;
}
