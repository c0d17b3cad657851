//! What a stream is asked.

use muster_protocol::cluster::NodeKey;
use muster_protocol::cluster::stream::What;
use muster_protocol::error_code::Refusal;
use muster_protocol::ids::AgentId;
use muster_protocol::json::Json;
use muster_protocol::task::{Ending, Task};
use muster_protocol::task_stream::{Chunk, NewChunk};
use tokio::sync::oneshot;

use super::ack::Ack;
use super::reader::Joining;
use crate::egress::OutletId;
use crate::store::{StoreError, StreamHead};

/// What a stream is asked.
pub(super) enum Command {
    /// Append a chunk.
    Emit { by: AgentId, chunk: NewChunk, ack: Ack },
    /// Answer a join, and send it everything after a seq.
    Attach { joining: Joining, after: Option<u64> },
    /// A reader has left.
    Detach(OutletId),
    /// A reader's connection has room again.
    Drained(OutletId),
    /// The store has read for a reader.
    Fetched(OutletId, Result<Vec<Chunk>, StoreError>),
    /// Read without staying.
    Read { after: Option<u64>, bytes_max: usize, reply: oneshot::Sender<Result<Reading, Refusal>> },
    /// The store has everything up to a seq that was given to it under an epoch, or could not take it.
    Stored { upto: u64, epoch: u64, result: Result<(), StoreError> },
    /// End the task: `by` an agent, in the name of its `provider` if that is whose right it is.
    Finish {
        ending: Ending,
        by: Option<AgentId>,
        provider: Option<AgentId>,
        /// Whether it may have been done already.
        again: bool,
        reply: oneshot::Sender<Result<Task, Refusal>>,
    },
    /// Give the task to another provider.
    Reassign {
        provider: AgentId,
        by: AgentId,
        /// Whether it may have been done already.
        again: bool,
        reply: oneshot::Sender<Result<Task, Refusal>>,
    },
    /// Crash, for a drill.
    Panic,
    /// Another node says something about the stream.
    Peer { node: NodeKey, follow: u64, what: What },
    /// Other nodes are up now.
    Examine,
    /// A node came or went, or what was said to it and by it may be lost.
    Gone(NodeKey),
    /// This node has claimed the stream, or could not.
    Claimed { follow: u64, result: Result<StreamHead, StoreError> },
    /// The newest epoch of the stream, by the store.
    Verified(u64),
    /// The task's record, by the store.
    TaskRead(Result<Task, StoreError>),
    /// The store has the task, which has ended, and its last chunks.
    EndRead(Box<StreamHead>),
}

impl Command {
    /// Answers whoever waits for it.
    pub fn refuse(self, refusal: &Refusal) {
        match self {
            Self::Emit { ack, .. } => ack.refuse(refusal),
            Self::Finish { reply, .. } | Self::Reassign { reply, .. } => {
                let _caller_gone = reply.send(Err(refusal.clone()));
            }
            Self::Read { reply, .. } => {
                let _reader_gone = reply.send(Err(refusal.clone()));
            }
            Self::Attach { joining, .. } => joining.refuse(refusal),
            _ => {}
        }
    }
}

/// What a [`Command::Read`] found.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Chunks after the cursor, with their seqs.
    pub chunks: Vec<(u64, Json)>,
    /// Seq of the newest chunk there is; 0 when there is none.
    pub seq: u64,
    /// First seq that this reading can reach; 0 when there is none.
    pub first_seq: u64,
    /// Whether chunks before `first_seq` are missing that were asked for.
    pub truncated: bool,
    /// The task's state.
    pub status: &'static str,
    /// How the task ended, once these chunks are the last.
    pub ending: Option<Ending>,
}
