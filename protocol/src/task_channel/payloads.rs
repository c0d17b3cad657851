//! What clients say on a task's channel, and what is said to them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{ChannelChunk, Checkpoint, Checksum, Closing, Direction, Percent, Progress, SEQ_MAX};
use crate::error_code::{ErrorCode, Refusal};
use crate::json::{Json, LossyString, read_object};
use crate::limits::Limits;
use crate::task::{Ending, check_document};

fn misfit(field: &'static str, message: impl Into<String>) -> Refusal {
    Refusal::field(ErrorCode::InvalidPayload, field, message)
}

fn check_seq(seq: u64) -> Result<u64, Refusal> {
    if seq <= SEQ_MAX { Ok(seq) } else { Err(misfit("seq", format!("from 0 to {SEQ_MAX}"))) }
}

/// What a join asks to be sent again (R68).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JoinRequest {
    /// Whether stored chunks are sent.
    pub replay: bool,
    /// Of the input only those after this seq.
    pub input_after_seq: Option<u64>,
    /// Of the output only those after this seq.
    pub output_after_seq: Option<u64>,
}

impl JoinRequest {
    /// Reads the payload of a join. What is no object asks for nothing.
    ///
    /// # Errors
    /// `invalid_payload` with the field.
    pub fn parse(payload: &str) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        struct Payload {
            #[serde(default)]
            replay: Option<bool>,
            #[serde(default)]
            input_after_seq: Option<u64>,
            #[serde(default)]
            output_after_seq: Option<u64>,
        }
        if !payload.trim_start().starts_with('{') {
            return Ok(Self::default());
        }
        let Payload { replay, input_after_seq, output_after_seq } = read_object(payload)?;
        Ok(Self { replay: replay.unwrap_or(false), input_after_seq, output_after_seq })
    }

    /// After which seq chunks of a direction are wanted, if that was said.
    #[must_use]
    pub const fn after_seq(&self, direction: Direction) -> Option<u64> {
        match direction {
            Direction::Input => self.input_after_seq,
            Direction::Output => self.output_after_seq,
        }
    }
}

/// Reads a pushed chunk (R69 to R71).
///
/// # Errors
/// `invalid_payload` with the field; `payload_too_large`.
pub fn read_chunk(payload: &str, limits: &Limits) -> Result<ChannelChunk, Refusal> {
    #[derive(Deserialize)]
    struct Push {
        chunk: LossyString,
        seq: u64,
        #[serde(default)]
        encoding: Option<String>,
    }
    let Push { chunk, seq, encoding } = read_object(payload)?;
    let is_base64 = match encoding.as_deref() {
        None => false,
        Some("base64") => true,
        Some(_) => return Err(misfit("encoding", "\"base64\", or absent for text")),
    };
    let bytes = if is_base64 {
        STANDARD.decode(&chunk.0).map_err(|_| misfit("chunk", "not base64, with its padding"))?
    } else {
        chunk.0.into_bytes()
    };
    let bytes_max = limits.task_channel_chunk_bytes_max;
    if bytes.len() > bytes_max {
        return Err(Refusal::field(
            ErrorCode::PayloadTooLarge,
            "chunk",
            format!("at most {bytes_max} bytes, decoded"),
        ));
    }
    Ok(ChannelChunk { seq: check_seq(seq)?, bytes, is_base64 })
}

impl ChannelChunk {
    /// As the other side gets it.
    #[must_use]
    pub fn payload(&self) -> Json {
        #[derive(Serialize)]
        struct Payload<'a> {
            chunk: &'a str,
            seq: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            encoding: Option<&'static str>,
        }
        let encoded;
        let (chunk, encoding) = match std::str::from_utf8(&self.bytes) {
            Ok(text) if !self.is_base64 => (text, None),
            _ => {
                encoded = STANDARD.encode(&self.bytes);
                (encoded.as_str(), Some("base64"))
            }
        };
        Json::of(&Payload { chunk, seq: self.seq, encoding })
    }
}

/// Reads how a stream ends (R72).
///
/// # Errors
/// `invalid_payload` with the field.
pub fn read_closing(payload: &str) -> Result<Closing, Refusal> {
    #[derive(Deserialize)]
    struct Push {
        checksum: String,
        total_size: u64,
    }
    let Push { checksum, total_size } = read_object(payload)?;
    let checksum = Checksum::parse(&checksum)
        .ok_or_else(|| misfit("checksum", "SHA-256 as 64 lower-case hex digits"))?;
    Ok(Closing { checksum, total_size })
}

/// Reads how far a task is (R74).
///
/// # Errors
/// `invalid_payload` with the field.
pub fn read_progress(payload: &str, limits: &Limits) -> Result<Progress, Refusal> {
    #[derive(Deserialize)]
    struct Push {
        percent: f64,
        #[serde(default)]
        message: Option<LossyString>,
    }
    let Push { percent, message } = read_object(payload)?;
    let percent = Percent::new(percent).ok_or_else(|| misfit("percent", "a number from 0 to 100"))?;
    let chars_max = limits.progress_message_chars_max;
    if message.as_ref().is_some_and(|message| message.0.chars().count() > chars_max) {
        return Err(misfit("message", format!("at most {chars_max} characters")));
    }
    Ok(Progress { percent, message: message.map(|message| message.0) })
}

/// Reads a checkpoint (R78).
///
/// # Errors
/// `invalid_payload` with the field.
pub fn read_checkpoint(payload: &str, limits: &Limits) -> Result<Checkpoint, Refusal> {
    #[derive(Deserialize)]
    struct Push {
        state: Json,
        seq: u64,
    }
    let Push { state, seq } = read_object(payload)?;
    check_document(&state, "state", limits.task_checkpoint_bytes_max)?;
    Ok(Checkpoint { seq: check_seq(seq)?, state })
}

/// Reads a result (R75).
///
/// # Errors
/// The payload is no object.
pub fn read_result(payload: &str) -> Result<Ending, Refusal> {
    #[derive(Deserialize)]
    struct Push {
        #[serde(default)]
        result: Option<Json>,
    }
    let Push { result } = read_object(payload)?;
    Ok(Ending::completed(result.unwrap_or_else(Json::null)))
}

/// Characters of the type of an error.
const ERROR_TYPE_CHARS_MAX: usize = 64;

/// Reads why the provider gives up (R76).
///
/// # Errors
/// `invalid_payload` with the field.
pub fn read_error(payload: &str) -> Result<Ending, Refusal> {
    #[derive(Deserialize)]
    struct Push {
        #[serde(rename = "type")]
        kind: LossyString,
        #[serde(default)]
        message: Option<LossyString>,
        #[serde(default)]
        details: Option<Json>,
    }
    #[derive(Serialize)]
    struct Error<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        details: Option<Json>,
    }
    let Push { kind: LossyString(kind), message, details } = read_object(payload)?;
    if kind.trim().is_empty() || kind.chars().count() > ERROR_TYPE_CHARS_MAX {
        return Err(misfit("type", format!("1 to {ERROR_TYPE_CHARS_MAX} characters")));
    }
    let message = message.as_ref().map(|message| message.0.as_str());
    Ok(Ending::failed(Json::of(&Error { kind: &kind, message, details })))
}

/// Reads why the client withdraws (R77).
///
/// # Errors
/// `invalid_payload` with the field.
pub fn read_reason(payload: &str) -> Result<Option<String>, Refusal> {
    #[derive(Deserialize)]
    struct Push {
        #[serde(default)]
        reason: Option<LossyString>,
    }
    let Push { reason } = read_object(payload)?;
    Ok(reason.map(|reason| reason.0))
}
