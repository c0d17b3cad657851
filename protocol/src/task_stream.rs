//! The log of one task's output as a pure state machine: it gives each chunk its seq, keeps the newest in memory, and
//! tells readers where to read.
//!
//! The store holds every chunk; memory holds a suffix of them, and always all that the store has not confirmed. A reader
//! is a cursor: [`StreamLog::read`] says what comes after it, or that the store has it, or that it is at the end.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::error_code::{ErrorCode, Refusal};
use crate::json::{self, Json};
use crate::time::Timestamp;

/// Which view of the conversation a chunk belongs to (agrenting.md R40).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChunkKind {
    /// Shown inline in the conversation.
    Chat,
    /// Shown in the live stream.
    #[default]
    Artifact,
}

impl ChunkKind {
    /// As on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Artifact => "artifact",
        }
    }
}

/// A chunk to be appended; it has no seq yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewChunk {
    /// Text, not empty.
    pub content: String,
    /// Kind.
    pub kind: ChunkKind,
    /// A JSON object.
    pub metadata: Json,
    /// Names the chunk to its producer: the same key is the same chunk.
    pub idempotency_key: Option<SmolStr>,
}

/// A chunk of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its place, from 1.
    pub seq: u64,
    /// `{"seq", "content", "kind", "timestamp", "metadata"}`, the same for every reader and transport.
    pub body: Json,
    /// As its producer named it.
    pub idempotency_key: Option<SmolStr>,
}

impl Chunk {
    fn encode(seq: u64, new: NewChunk, now: Timestamp) -> Self {
        let mut out = Vec::with_capacity(new.content.len() + new.metadata.as_bytes().len() + 96);
        out.extend_from_slice(b"{\"seq\":");
        out.extend_from_slice(seq.to_string().as_bytes());
        out.extend_from_slice(b",\"content\":");
        json::write_string(&mut out, &new.content);
        out.extend_from_slice(b",\"kind\":\"");
        out.extend_from_slice(new.kind.as_str().as_bytes());
        out.extend_from_slice(b"\",\"timestamp\":\"");
        now.write_iso(&mut out);
        out.extend_from_slice(b"\",\"metadata\":");
        out.extend_from_slice(new.metadata.as_bytes());
        out.push(b'}');
        Self { seq, body: Json::from_trusted_bytes(out.into()), idempotency_key: new.idempotency_key }
    }

    /// Bytes it is counted with against the memory bounds.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.body.as_bytes().len()
            + self.idempotency_key.as_ref().map_or(0, |key| key.len())
            + CHUNK_OVERHEAD_BYTES
    }
}

/// What a chunk costs in memory beside its text: the entry itself and its slot in the index of keys.
const CHUNK_OVERHEAD_BYTES: usize = 128;

/// What comes after a reader's cursor.
#[derive(Debug, PartialEq, Eq)]
pub enum Read<'a> {
    /// These, from memory.
    Chunks(Vec<&'a Chunk>),
    /// Chunks that only the store still has: read there from the cursor up to and with `upto`.
    Stored {
        /// Last seq that is not in memory.
        upto: u64,
    },
    /// Nothing: the reader has all there is.
    End,
}

/// How much of a log stays in memory.
#[derive(Clone, Copy, Debug)]
pub struct Retain {
    /// Newest chunks.
    pub chunks_max: usize,
    /// Bytes of them.
    pub bytes_max: usize,
}

/// The log of one task.
#[derive(Debug, Default)]
pub struct StreamLog {
    /// Newest chunks, without a gap, oldest first.
    chunks: VecDeque<Chunk>,
    bytes: usize,
    last_seq: u64,
    durable_seq: u64,
    /// Keys of the chunks in memory.
    keys: HashMap<SmolStr, u64>,
}

impl StreamLog {
    /// A log as the store has it: its last seq, and its newest chunks, oldest first and without a gap.
    #[must_use]
    pub fn restore(last_seq: u64, newest: Vec<Chunk>) -> Self {
        debug_assert!(newest.last().is_none_or(|chunk| chunk.seq == last_seq));
        let mut log = Self { last_seq, durable_seq: last_seq, ..Self::default() };
        for chunk in newest {
            log.hold(chunk);
        }
        log
    }

    /// Gives the chunk its seq and appends it.
    pub fn append(&mut self, new: NewChunk, now: Timestamp) -> Chunk {
        self.last_seq += 1;
        let chunk = Chunk::encode(self.last_seq, new, now);
        self.hold(chunk.clone());
        chunk
    }

    /// Appends a chunk that has its seq, from the store or another node's log, so that it is durable; whether it was the
    /// next.
    pub fn append_given(&mut self, chunk: Chunk) -> bool {
        let is_next = chunk.seq == self.last_seq + 1;
        if is_next {
            self.last_seq += 1;
            self.hold(chunk);
            self.confirm(self.last_seq);
        }
        is_next
    }

    /// Forgets the chunks after `last_seq`, which were never durable.
    pub fn truncate(&mut self, last_seq: u64) {
        while self.last_seq > last_seq {
            self.last_seq -= 1;
            if let Some(chunk) = self.chunks.pop_back() {
                self.bytes -= chunk.weight();
                if let Some(key) = &chunk.idempotency_key {
                    self.keys.remove(key);
                }
            }
        }
        self.durable_seq = self.durable_seq.min(last_seq);
    }

    /// Goes on after a later seq: what lies between is durable, and is read from the store.
    pub fn skip_to(&mut self, last_seq: u64) {
        if last_seq > self.last_seq {
            *self = Self::restore(last_seq, Vec::new());
        }
    }

    /// Seq of the chunk of that key, if it is in memory.
    #[must_use]
    pub fn seq_of_key(&self, key: &str) -> Option<u64> {
        self.keys.get(key).copied()
    }

    /// Whether chunks, and so their keys, exist that only the store has.
    #[must_use]
    pub fn has_chunks_only_in_store(&self) -> bool {
        self.first_in_memory() > 1
    }

    /// Notes that the store has everything up to `seq`.
    pub fn confirm(&mut self, seq: u64) {
        self.durable_seq = self.durable_seq.max(seq.min(self.last_seq));
    }

    /// Drops the oldest chunks over the bounds, never one that the store has not confirmed; gives the bytes freed.
    pub fn trim(&mut self, retain: Retain) -> usize {
        let before = self.bytes;
        while self.chunks.len() > retain.chunks_max || self.bytes > retain.bytes_max {
            match self.chunks.front() {
                Some(oldest) if oldest.seq <= self.durable_seq => {}
                _ => break,
            }
            if let Some(dropped) = self.chunks.pop_front() {
                self.bytes -= dropped.weight();
                if let Some(key) = &dropped.idempotency_key {
                    self.keys.remove(key);
                }
            }
        }
        before - self.bytes
    }

    /// Whether it holds so much more than the bounds that trimming is worth a turn: an eighth more.
    #[must_use]
    pub fn is_over(&self, retain: Retain) -> bool {
        let slack = |max: usize| max.saturating_add(max / 8);
        self.chunks.len() > slack(retain.chunks_max) || self.bytes > slack(retain.bytes_max)
    }

    /// What comes after `after` and not after `upto`, at most about `bytes_max` bytes of it, but at least one chunk.
    #[must_use]
    pub fn read(&self, after: u64, upto: u64, bytes_max: usize) -> Read<'_> {
        if after >= self.last_seq.min(upto) {
            return Read::End;
        }
        let first = self.first_in_memory();
        if after + 1 < first {
            return Read::Stored { upto: upto.min(first - 1) };
        }
        let skip = usize::try_from(after + 1 - first).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let mut chunks = Vec::new();
        for chunk in self.chunks.iter().skip(skip).take_while(|chunk| chunk.seq <= upto) {
            bytes += chunk.weight();
            if !chunks.is_empty() && bytes > bytes_max {
                break;
            }
            chunks.push(chunk);
        }
        Read::Chunks(chunks)
    }

    /// First seq in memory; one past the last when memory holds none.
    #[must_use]
    pub fn first_in_memory(&self) -> u64 {
        self.chunks.front().map_or(self.last_seq + 1, |chunk| chunk.seq)
    }

    /// Seq of the newest chunk, 0 when there is none.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Seq up to which the store has confirmed.
    #[must_use]
    pub fn durable_seq(&self) -> u64 {
        self.durable_seq
    }

    /// Bytes held in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn hold(&mut self, chunk: Chunk) {
        self.bytes += chunk.weight();
        if let Some(key) = &chunk.idempotency_key {
            self.keys.insert(key.clone(), chunk.seq);
        }
        self.chunks.push_back(chunk);
    }
}

/// Where a reader who joins wants to go on: `after_seq` of its payload. Whatever is no object asks for nothing, as Phoenix
/// takes any payload at a join.
///
/// # Errors
/// `invalid_payload` when it is no whole number.
pub fn join_cursor(payload: &str) -> Result<Option<u64>, Refusal> {
    #[derive(Deserialize)]
    struct JoinPayload {
        // Raw, so that a refusal names this field and nothing inside it.
        #[serde(default)]
        after_seq: Option<Json>,
    }
    if !payload.trim_start().starts_with('{') {
        return Ok(None);
    }
    let JoinPayload { after_seq } = json::read_object(payload)?;
    after_seq
        .map(|seq| seq.parse())
        .transpose()
        .map_err(|_| Refusal::field(ErrorCode::InvalidPayload, "after_seq", "a whole number from 0"))
}

#[cfg(test)]
mod tests;
