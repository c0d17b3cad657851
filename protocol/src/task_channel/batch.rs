//! Chunks of many streams, decided together: what a store adds in one transaction. The rules are those of each chunk by
//! itself, one after another.

use std::collections::HashMap;

use super::{ChannelChunk, Checksum, Direction, Side, StreamBounds, StreamState, Taken};
use crate::error_code::{ErrorCode, Refusal};
use crate::ids::{AgentId, TaskId};
use crate::task::{TaskAction, TaskStatus};
use crate::time::Timestamp;

/// A chunk on its way to the store.
#[derive(Clone, Debug)]
pub struct PutChunk {
    /// Of which task.
    pub task: TaskId,
    /// Of which stream.
    pub direction: Direction,
    /// Who sends it.
    pub by: AgentId,
    /// The chunk.
    pub chunk: ChannelChunk,
    /// Of its bytes.
    pub digest: Checksum,
    /// When.
    pub now: Timestamp,
}

/// What a store has to know of a task whose channel changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskFacts {
    /// State.
    pub status: TaskStatus,
    /// Who wants it done.
    pub client: AgentId,
    /// Who does it.
    pub provider: AgentId,
}

impl TaskFacts {
    /// Whether an agent speaks for a side.
    #[must_use]
    pub fn is(&self, agent: AgentId, side: Side) -> bool {
        agent
            == match side {
                Side::Client => self.client,
                Side::Provider => self.provider,
            }
    }

    /// Whether an agent may change the task in the name of a side now; gives whether the task begins by that.
    ///
    /// # Errors
    /// `unauthorized`, or `task_not_active` (R79).
    pub fn admit(&self, agent: AgentId, side: Side) -> Result<bool, Refusal> {
        if !self.is(agent, side) {
            return Err(ErrorCode::Unauthorized.into());
        }
        // What the client adds is no work yet.
        let begun = self.status.after(TaskAction::Emit)?;
        Ok(side == Side::Provider && begun != self.status)
    }
}

/// What is known of that which a batch is about, and what comes of it.
#[derive(Debug, Default)]
pub struct Batch {
    /// Tasks there are.
    pub tasks: HashMap<TaskId, TaskFacts>,
    /// Where the streams stand; those that have not begun need not be here.
    pub streams: HashMap<(TaskId, Direction), StreamState>,
    /// Digests of the chunks that are stored under the seqs at hand.
    pub known: HashMap<(TaskId, Direction, u64), Checksum>,
    /// Tasks that begin by it, and when.
    pub begun: Vec<(TaskId, Timestamp)>,
    /// Streams that have grown.
    pub grown: Vec<(TaskId, Direction)>,
}

impl Batch {
    /// Decides about a chunk. The digest of one that is new is noted, so that the same again in this batch is none.
    ///
    /// # Errors
    /// What [`StreamState::take`] and [`TaskFacts::admit`] refuse. Nothing changes.
    pub fn take(&mut self, put: &PutChunk, bounds: StreamBounds) -> Result<Taken, Refusal> {
        let unknown = Refusal::new(ErrorCode::Unauthorized);
        let task = self.tasks.get_mut(&put.task).ok_or(unknown)?;
        let (stream, seq) = ((put.task, put.direction), put.chunk.seq);
        let is_same = self.known.get(&(put.task, put.direction, seq)).map(|known| *known == put.digest);
        if is_same == Some(true) && task.is(put.by, put.direction.sender()) {
            // Whatever has become of the task meanwhile: the answer to the first may have been lost.
            return Ok(Taken::Duplicate);
        }
        let begins = task.admit(put.by, put.direction.sender())?;
        let state = self.streams.entry(stream).or_default();
        let taken = state.take(seq, put.chunk.bytes.len(), is_same, bounds)?;
        self.known.insert((put.task, put.direction, seq), put.digest);
        if begins {
            task.status = TaskStatus::InProgress;
            self.begun.push((put.task, put.now));
        }
        if !self.grown.contains(&stream) {
            self.grown.push(stream);
        }
        Ok(taken)
    }
}
