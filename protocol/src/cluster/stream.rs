//! What nodes say about one task's stream: a node that does not own it follows the one that does, passes on what its own
//! clients want of it, and serves them what comes back.
//!
//! A follower numbers its attempts to follow, so that what belongs to an earlier one is told apart. Its requests are
//! answered by number; those without an answer are sent again, in order, to whoever owns the stream next, and none of
//! them does twice what it did once: chunks by their keys, the rest by what they find.

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::error_code::{ErrorCode, Refusal};
use crate::ids::{AgentId, TaskId};
use crate::json::{Json, as_bytes};
use crate::task::{Ending, TaskStatus};
use crate::task_stream::{Chunk, ChunkKind, NewChunk};
use crate::time::Timestamp;

/// Something about the stream of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StreamMessage {
    /// Whose stream.
    pub task: TaskId,
    /// Which attempt to follow it belongs to.
    pub follow: u64,
    /// What.
    pub what: What,
}

/// See [`StreamMessage`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum What {
    /// To the owner: I follow.
    Follow {
        /// I have everything up to this seq.
        after: u64,
        /// The newest epoch of the stream that I have heard of: an owner of an older one is none any more.
        epoch: u64,
        /// Whether I want chunks; else only answers.
        chunks: bool,
    },
    /// To the owner: I do not follow any more.
    Unfollow,
    /// To the owner: do this.
    Request {
        /// Numbers it, for its answer.
        number: u64,
        /// Whether it was sent before, to this owner or another, and may have been done.
        again: bool,
        /// What to do.
        request: Request,
    },
    /// To a follower: where the stream stands; chunks follow.
    Following {
        /// What the owner writes under.
        epoch: u64,
        /// The oldest seq that is kept anywhere.
        first_seq: u64,
        /// Seq after which chunks follow: later than asked for when the owner has those in between in the store only.
        from: u64,
        /// When the task's record was changed last: whoever has an older one reads it again.
        updated_at: Timestamp,
    },
    /// To a follower: new chunks, in order, all of them durable.
    Chunks {
        /// These.
        chunks: Vec<WireChunk>,
    },
    /// To a follower: the task's record in the store has changed, after everything that was said before. It may have
    /// ended.
    Changed,
    /// To a follower: I do not own this stream (any more).
    NotOwner,
    /// To a follower: what came of a request.
    Answers(Vec<(u64, Answer)>),
    /// To anybody: I am about to own this stream. Whoever holds it stores what it has, and lets go.
    Release,
    /// The answer to [`What::Release`]: I do not hold it (any more).
    Released,
}

/// What a follower wants done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Append a chunk.
    Emit {
        /// As this agent.
        by: AgentId,
        /// The chunk.
        chunk: WireNewChunk,
    },
    /// End the task.
    Finish {
        /// Its final state.
        status: TaskStatus,
        /// Result or error.
        #[serde(with = "as_bytes")]
        document: Json,
        /// The agent that ends it, if one does.
        by: Option<AgentId>,
        /// In whose name, if that is whose right it is.
        provider: Option<AgentId>,
    },
    /// Give it to another provider.
    Reassign {
        /// Which.
        provider: AgentId,
        /// By whom.
        by: AgentId,
    },
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// The chunk has this seq and is safe.
    Seq(u64),
    /// Done; the store has the task as it is now.
    Done,
    /// Refused.
    Refused(WireRefusal),
}

/// A chunk of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WireChunk {
    /// Its place.
    #[serde(rename = "s")]
    pub seq: u64,
    /// As clients get it.
    #[serde(rename = "b", with = "as_bytes")]
    pub body: Json,
    /// As its producer named it.
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    pub key: Option<SmolStr>,
}

impl From<Chunk> for WireChunk {
    fn from(chunk: Chunk) -> Self {
        Self { seq: chunk.seq, body: chunk.body, key: chunk.idempotency_key }
    }
}

impl From<WireChunk> for Chunk {
    fn from(chunk: WireChunk) -> Self {
        Self { seq: chunk.seq, body: chunk.body, idempotency_key: chunk.key }
    }
}

/// A chunk on its way to the owner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WireNewChunk {
    /// Text.
    #[serde(rename = "c")]
    pub content: String,
    /// Kind.
    #[serde(rename = "t")]
    pub kind: ChunkKind,
    /// A JSON object.
    #[serde(rename = "m", with = "as_bytes")]
    pub metadata: Json,
    /// Names the chunk: its producer's key, or one of the follower's own.
    #[serde(rename = "k")]
    pub key: SmolStr,
}

impl WireNewChunk {
    /// The chunk, under the key it has or else this one.
    #[must_use]
    pub fn new(chunk: NewChunk, key: impl FnOnce() -> SmolStr) -> Self {
        let NewChunk { content, kind, metadata, idempotency_key } = chunk;
        Self { content, kind, metadata, key: idempotency_key.unwrap_or_else(key) }
    }

    /// As it is appended.
    #[must_use]
    pub fn into_chunk(self) -> NewChunk {
        let Self { content, kind, metadata, key } = self;
        NewChunk { content, kind, metadata, idempotency_key: Some(key) }
    }
}

/// A refusal as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireRefusal {
    reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    /// JSON texts by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    details: Vec<(String, String)>,
}

impl From<&Refusal> for WireRefusal {
    fn from(refusal: &Refusal) -> Self {
        Self {
            reason: refusal.code.reason().into(),
            field: refusal.field.as_deref().map(Into::into),
            message: refusal.message.clone(),
            retry_after_ms: refusal.retry_after_ms,
            status: refusal.status.map(Into::into),
            details: refusal
                .details
                .iter()
                .map(|(name, value)| (name.to_string(), value.as_str().into()))
                .collect(),
        }
    }
}

impl From<WireRefusal> for Refusal {
    /// A reason that this version does not know is a fault of the server, to be tried again.
    fn from(wire: WireRefusal) -> Self {
        let known = ErrorCode::ALL.iter().find(|code| code.reason() == wire.reason);
        Self {
            code: known.copied().unwrap_or(ErrorCode::Internal),
            field: wire.field.map(Into::into),
            message: wire.message,
            retry_after_ms: wire.retry_after_ms,
            status: wire.status.as_deref().and_then(TaskStatus::parse).map(TaskStatus::as_str),
            details: wire
                .details
                .into_iter()
                .filter_map(|(name, value)| Some((name.into(), serde_json::from_str(&value).ok()?)))
                .collect(),
        }
    }
}

impl Request {
    /// The ending that a [`Request::Finish`] asks for.
    #[must_use]
    pub fn finish(ending: &Ending, by: Option<AgentId>, provider: Option<AgentId>) -> Self {
        Self::Finish { status: ending.status, document: ending.document.clone(), by, provider }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Message;

    #[test]
    fn messages_round_trip() {
        let chunk = Chunk {
            seq: 3,
            body: Json::from_trusted_bytes(r#"{"seq":3,"content":"hällo"}"#.as_bytes().to_vec().into()),
            idempotency_key: Some("k".into()),
        };
        let task = TaskId::from_bytes([7; 16]);
        for what in [
            What::Follow { after: 5, epoch: 3, chunks: true },
            What::Chunks { chunks: vec![chunk.into()] },
            What::Answers(vec![(1, Answer::Seq(4)), (2, Answer::Done)]),
            What::Release,
            What::Request {
                number: 9,
                again: true,
                request: Request::finish(&Ending::cancelled(Some("why")), None, None),
            },
        ] {
            let message = Message::Stream(StreamMessage { task, follow: 1, what });
            assert_eq!(Message::decode(&message.encode().unwrap()).unwrap(), message);
        }
    }

    #[test]
    fn refusals_arrive_as_they_left() {
        for refusal in [
            Refusal::rate_limited(17),
            Refusal::wrong_status(ErrorCode::TaskNotActive, "completed"),
            Refusal::field(ErrorCode::InvalidPayload, "content", "too long"),
        ] {
            assert_eq!(Refusal::from(WireRefusal::from(&refusal)), refusal);
        }
        let newer = WireRefusal {
            reason: "something new".into(),
            field: None,
            message: None,
            retry_after_ms: None,
            status: None,
            details: Vec::new(),
        };
        assert_eq!(Refusal::from(newer).code, ErrorCode::Internal);
    }
}
