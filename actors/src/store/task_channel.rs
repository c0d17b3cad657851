//! What the store keeps of tasks' channels: the chunks of both directions, progress and checkpoints.

use async_trait::async_trait;
use muster_protocol::error_code::Refusal;
use muster_protocol::ids::{AgentId, TaskId};
use muster_protocol::task::Task;
use muster_protocol::task_channel::batch::PutChunk;
use muster_protocol::task_channel::{
    ChannelChunk, Checkpoint, Closing, Direction, Progress, StreamBounds, StreamState, Taken,
};
use muster_protocol::time::Timestamp;

use super::StoreResult;

/// Where a task and its channel stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelState {
    /// The task.
    pub task: Task,
    /// The client's stream.
    pub input: StreamState,
    /// The provider's.
    pub output: StreamState,
    /// The newest checkpoint.
    pub checkpoint: Option<Checkpoint>,
}

impl ChannelState {
    /// Of one direction.
    #[must_use]
    pub const fn stream(&self, direction: Direction) -> &StreamState {
        match direction {
            Direction::Input => &self.input,
            Direction::Output => &self.output,
        }
    }
}

/// A stored chunk, with its number in the order of arrival, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredChunk {
    /// Which to arrive.
    pub nth: u64,
    /// The chunk.
    pub chunk: ChannelChunk,
}

/// Which chunks, and in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkRange {
    /// By seq: those after this one (all when there is none), of the first `nth_max` to arrive.
    BySeq {
        /// After which.
        after: Option<u64>,
        /// The last to arrive of those that count.
        nth_max: u64,
    },
    /// In the order of arrival, after this one.
    ByArrival {
        /// After which.
        after: u64,
    },
}

/// How a stream of a task's channel ends.
#[derive(Clone, Copy, Debug)]
pub struct CloseStream {
    /// Of which task.
    pub task: TaskId,
    /// Which.
    pub direction: Direction,
    /// Who ends it.
    pub by: AgentId,
    /// Where it stood when it was checked.
    pub checked: StreamState,
    /// What it came to.
    pub closing: Closing,
}

/// The channels of tasks. What the inner results refuse has changed nothing.
#[async_trait]
pub trait TaskChannelStore: Send + Sync + 'static {
    /// A task and its channel.
    async fn task_channel(&self, task: TaskId) -> StoreResult<ChannelState>;
    /// The newest checkpoint of a task.
    async fn checkpoint(&self, task: TaskId) -> StoreResult<Option<Checkpoint>>;
    /// Adds chunks of any tasks in one transaction, each by the rules of
    /// [`muster_protocol::task_channel::batch::Batch`], in this order. A provider's begins its task.
    async fn put_channel_chunks(
        &self,
        puts: Vec<PutChunk>,
        bounds: StreamBounds,
    ) -> StoreResult<Vec<Result<Taken, Refusal>>>;
    /// Chunks of a stream, at most about `bytes_max` of them but at least one if there is one.
    async fn read_channel_chunks(
        &self,
        task: TaskId,
        direction: Direction,
        range: ChunkRange,
        bytes_max: usize,
    ) -> StoreResult<Vec<StoredChunk>>;
    /// Ends a stream that still stands as it was checked; conflict: it has changed since.
    async fn close_channel_stream(
        &self,
        close: CloseStream,
        now: Timestamp,
    ) -> StoreResult<Result<(), Refusal>>;
    /// Notes how far a task is, by its provider.
    async fn set_progress(
        &self,
        task: TaskId,
        by: AgentId,
        progress: Progress,
        now: Timestamp,
    ) -> StoreResult<Result<(), Refusal>>;
    /// Keeps a checkpoint of the provider's, unless there is a newer one; gives whether it is new.
    async fn set_checkpoint(
        &self,
        task: TaskId,
        by: AgentId,
        checkpoint: Checkpoint,
        now: Timestamp,
    ) -> StoreResult<Result<bool, Refusal>>;
}
