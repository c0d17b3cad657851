//! What the two agents of a task send each other on its channel (agrenting.md J), as a pure state machine: input from the
//! client, output from the provider, each under the sender's own seqs, checked by a checksum at the end; progress; and a
//! checkpoint. The bytes themselves are the store's: what is here tells what may be added to them, and checks them piece
//! by piece.
//!
//! # Layout
//! * this file: one direction: chunks, their order of arrival, the end; [`batch`]: chunks of many streams at once
//! * [`payloads`]: what clients push, and its bounds

pub mod batch;
pub mod payloads;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error_code::{ErrorCode, Refusal};
use crate::json::Json;
use crate::limits::Limits;
use crate::topic::event;

/// The largest seq there is: all JSON readers can hold it.
pub const SEQ_MAX: u64 = (1 << 53) - 1;
/// Missing seqs that one answer names.
pub const MISSING_SEQS_MAX: usize = 100;

/// A side of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Who wants it done.
    Client,
    /// Who does it.
    Provider,
}

impl Side {
    /// The one across.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Provider,
            Self::Provider => Self::Client,
        }
    }
}

/// One of the two streams of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the client.
    Input,
    /// From the provider.
    Output,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Input, Self::Output];

    /// Who sends (R69).
    #[must_use]
    pub const fn sender(self) -> Side {
        match self {
            Self::Input => Side::Client,
            Self::Output => Side::Provider,
        }
    }

    /// The event of a chunk.
    #[must_use]
    pub const fn chunk_event(self) -> &'static str {
        match self {
            Self::Input => event::INPUT_STREAM,
            Self::Output => event::OUTPUT_STREAM,
        }
    }

    /// The event of its end.
    #[must_use]
    pub const fn complete_event(self) -> &'static str {
        match self {
            Self::Input => event::INPUT_COMPLETE,
            Self::Output => event::OUTPUT_COMPLETE,
        }
    }

    /// As stored: 0 or 1.
    #[must_use]
    pub const fn number(self) -> i16 {
        match self {
            Self::Input => 0,
            Self::Output => 1,
        }
    }

    /// Reads what [`Self::number`] gave.
    #[must_use]
    pub const fn of_number(number: i16) -> Option<Self> {
        match number {
            0 => Some(Self::Input),
            1 => Some(Self::Output),
            _ => None,
        }
    }
}

/// SHA-256 of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum(pub [u8; 32]);

impl Checksum {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Lower-case hex, with or without `sha256:` before it (R72); `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text).as_bytes();
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        if hex.len() != 64 {
            return None;
        }
        let mut out = [0; 32];
        for (byte, pair) in out.iter_mut().zip(hex.chunks_exact(2)) {
            let [high, low] = pair else { return None };
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Self(out))
    }
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Checksum {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How the sender says a stream has ended: what all its bytes come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Closing {
    /// Of the bytes of all chunks in the order of their seqs.
    pub checksum: Checksum,
    /// How many bytes those are.
    pub total_size: u64,
}

/// A chunk of a stream: bytes under the sender's seq.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelChunk {
    /// The sender's (R70).
    pub seq: u64,
    /// Decoded.
    pub bytes: Vec<u8>,
    /// Whether it came as base64, and leaves so; otherwise it is UTF-8.
    pub is_base64: bool,
}

/// Where one direction stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamState {
    /// The first seq, 0 or 1, once that is known: fixed by the first chunk if it bears one of them, else by chunk 0.
    pub base: Option<u64>,
    /// The highest seq; none without a chunk.
    pub last_seq: Option<u64>,
    /// Chunks there are: the number of the newest in the order of arrival, from 1.
    pub chunks: u64,
    /// Their bytes, decoded.
    pub bytes: u64,
    /// How it ended, if it has.
    pub closing: Option<Closing>,
}

/// What becomes of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is new, and has this number in the order of arrival, from 1.
    New(u64),
    /// It is known; nothing changes.
    Duplicate,
}

/// Bounds of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamBounds {
    /// Bytes, decoded.
    pub bytes_max: u64,
    /// Chunks.
    pub chunks_max: u64,
}

impl From<&Limits> for StreamBounds {
    fn from(limits: &Limits) -> Self {
        Self {
            bytes_max: limits.task_channel_stream_bytes_max as u64,
            chunks_max: limits.task_channel_chunks_max as u64,
        }
    }
}

impl StreamState {
    /// Takes a chunk. `is_same` says whether the stored chunk of that seq has the same bytes, if there is one.
    ///
    /// # Errors
    /// `seq_conflict`, `stream_complete`, `stream_too_large`, or a seq before the first (R70, R71). Nothing changes.
    pub fn take(
        &mut self,
        seq: u64,
        size: usize,
        is_same: Option<bool>,
        bounds: StreamBounds,
    ) -> Result<Taken, Refusal> {
        match is_same {
            // Also behind the end: the answer to the first may have been lost.
            Some(true) => return Ok(Taken::Duplicate),
            Some(false) => return Err(Refusal::new(ErrorCode::SeqConflict).with("seq", &seq)),
            None => {}
        }
        if let Some(closing) = &self.closing {
            return Err(already_complete(closing));
        }
        if seq == 0 && self.base == Some(1) {
            return Err(Refusal::field(ErrorCode::InvalidPayload, "seq", "this stream begins at 1"));
        }
        let bytes = self.bytes.saturating_add(size as u64);
        // A seq so far away that the chunks before it do not fit: the stream could never end.
        let reach = seq.saturating_sub(self.first_seq()).saturating_add(1);
        if bytes > bounds.bytes_max || self.chunks >= bounds.chunks_max || reach > bounds.chunks_max {
            let refusal = Refusal::new(ErrorCode::StreamTooLarge);
            return Err(refusal.with("max_bytes", &bounds.bytes_max).with("max_chunks", &bounds.chunks_max));
        }
        if seq == 0 || seq == 1 && self.chunks == 0 {
            self.base = Some(seq);
        }
        self.last_seq = self.last_seq.max(Some(seq));
        self.chunks += 1;
        self.bytes = bytes;
        Ok(Taken::New(self.chunks))
    }

    /// The seq it begins at: 1 as long as nothing says otherwise.
    #[must_use]
    pub fn first_seq(&self) -> u64 {
        self.base.unwrap_or(1)
    }

    /// Whether it has ended just so; no if it has not ended.
    ///
    /// # Errors
    /// `stream_complete`: it has ended otherwise.
    pub fn has_ended_so(&self, closing: &Closing) -> Result<bool, Refusal> {
        match &self.closing {
            None => Ok(false),
            Some(known) if known == closing => Ok(true),
            Some(known) => Err(already_complete(known)),
        }
    }
}

fn already_complete(closing: &Closing) -> Refusal {
    Refusal::new(ErrorCode::StreamComplete)
        .with("checksum", &closing.checksum)
        .with("total_size", &closing.total_size)
}

/// Checks a stream against its closing, chunk by chunk in the order of seqs: it holds a hash and a bounded list, never
/// the bytes.
#[derive(Clone, Debug)]
pub struct Verifier {
    next_seq: u64,
    hash: Sha256,
    size: u64,
    missing: Vec<u64>,
    missing_count: u64,
}

impl Verifier {
    /// Of a stream that stands like this.
    #[must_use]
    pub fn new(state: &StreamState) -> Self {
        let (missing, hash) = (Vec::new(), Sha256::new());
        Self { next_seq: state.first_seq(), hash, size: 0, missing, missing_count: 0 }
    }

    /// The next chunk, by seq.
    pub fn feed(&mut self, seq: u64, bytes: &[u8]) {
        let room = MISSING_SEQS_MAX.saturating_sub(self.missing.len());
        self.missing.extend((self.next_seq..seq).take(room));
        self.missing_count += seq.saturating_sub(self.next_seq);
        self.next_seq = seq.saturating_add(1);
        self.size += bytes.len() as u64;
        if self.missing_count == 0 {
            // With a gap the sum says nothing.
            self.hash.update(bytes);
        }
    }

    /// Whether all that was fed is what the sender says (R72).
    ///
    /// # Errors
    /// `missing_chunks` with the seqs, the first of them if there are many; `checksum_mismatch`.
    pub fn finish(self, closing: &Closing) -> Result<(), Refusal> {
        if self.missing_count > 0 {
            let refusal = Refusal::new(ErrorCode::MissingChunks);
            return Err(refusal.with("seqs", &self.missing).with("count", &self.missing_count));
        }
        let actual = Checksum(self.hash.finalize().into());
        if actual == closing.checksum && self.size == closing.total_size {
            return Ok(());
        }
        Err(Refusal::new(ErrorCode::ChecksumMismatch)
            .with("expected", &closing.checksum)
            .with("actual", &actual)
            .with("size", &self.size))
    }
}

/// How far a task is, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percent(f64);

// It is never NaN.
impl Eq for Percent {}

impl Percent {
    /// From 0 to 100.
    #[must_use]
    pub fn new(percent: f64) -> Option<Self> {
        (0.0..=100.0).contains(&percent).then_some(Self(percent))
    }

    /// As a number.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

/// What the provider last said about how far it is (R74).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// In percent.
    pub percent: Percent,
    /// In words.
    pub message: Option<String>,
}

/// From where the provider would go on after a crash (R78).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Checkpoint {
    /// The provider's own count; the highest wins.
    pub seq: u64,
    /// Whatever the provider needs.
    pub state: Json,
}

impl Checkpoint {
    /// Whether this takes the place of another; no: it is the same.
    ///
    /// # Errors
    /// `stale_checkpoint`: the other is newer. `seq_conflict`: it says something else under the same seq.
    pub fn replaces(&self, stored: Option<&Self>) -> Result<bool, Refusal> {
        match stored {
            Some(stored) if stored.seq > self.seq => {
                Err(Refusal::new(ErrorCode::StaleCheckpoint).with("seq", &stored.seq))
            }
            Some(stored) if stored.seq == self.seq && stored.state == self.state => Ok(false),
            Some(stored) if stored.seq == self.seq => {
                Err(Refusal::new(ErrorCode::SeqConflict).with("seq", &stored.seq))
            }
            _ => Ok(true),
        }
    }
}

#[cfg(test)]
mod tests;
