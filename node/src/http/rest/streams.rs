//! Task streams over REST: emitting a chunk, and reading, at once or as an event stream.

use axum::response::IntoResponse;
use http::header::{ACCEPT, HeaderMap};
use muster_actors::task_stream::Reading;
use muster_actors::task_stream::ack::Ack;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::TaskId;
use muster_protocol::join_rules::may_read_stream;
use muster_protocol::json::Json;
use muster_protocol::task::{ChunkRequest, Ending};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::extract::{Body, Id, Params, State};
use super::views::{Envelope, Refusals};
use crate::app::App;
use crate::auth::Caller;
use crate::http::answer::{Answer, Handled, Refused};
use crate::http::event_stream;
use crate::http::front::Origin;

/// Emits a chunk, as the task's provider. Answered when the chunk is durable; the same idempotency key (in the body, or
/// as `X-Idempotency-Key`) is the same chunk and has the same seq.
#[utoipa::path(post, path = "/api/v1/tasks/{id}/chunk", request_body = ChunkRequest,
    params(("id" = TaskId, Path, description = "The task."), ("x-idempotency-key" = Option<String>, Header, description = "Names the chunk.")),
    responses((status = 202, body = Envelope<Json>, description = "`{seq}`"), Refusals))]
pub async fn emit_chunk(
    app: State,
    caller: Caller,
    headers: HeaderMap,
    Id(task): Id<TaskId>,
    Body(chunk): Body<ChunkRequest>,
) -> Handled {
    let key = match headers.get("x-idempotency-key") {
        None => None,
        Some(value) => Some(value.to_str().map_err(|_| {
            Refusal::field(ErrorCode::InvalidPayload, "x-idempotency-key", "printable ASCII")
        })?),
    };
    let seq = emit(&app, &caller, task, (chunk, key)).await?;
    Answer::accepted(&json!({ "seq": seq }))
}

/// Emits a chunk and waits for its acknowledgement.
///
/// # Errors
/// It is refused, or the stream failed before it was durable.
pub async fn emit(
    app: &App,
    caller: &Caller,
    task: TaskId,
    chunk: (ChunkRequest, Option<&str>),
) -> Result<u64, Refused> {
    let (ack, answer) = Ack::request(app.core.environment.monotonic_ms());
    app.core.streams.emit(&caller.principal, task, chunk, ack).await;
    Ok(answer.await.unwrap_or_else(|_| Err(ErrorCode::Internal.into()))?)
}

/// From where to read.
#[derive(Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ReadParams {
    /// Only chunks after this seq; without it, what is in memory.
    after: Option<u64>,
}

/// A part of a stream.
#[derive(Serialize, ToSchema)]
pub struct Part {
    /// Chunks: `{seq, content, kind, timestamp, metadata}`.
    pub chunks: Vec<Json>,
    /// Seq of the newest chunk there is; 0 when there is none.
    pub seq: u64,
    /// First seq this reading reaches; 0 when there is none.
    pub first_seq: u64,
    /// The task's state.
    pub status: &'static str,
    /// Whether chunks that were asked for are missing before `first_seq`.
    pub truncated: bool,
    /// Whether there is more than this part holds: read on after its last seq.
    pub more: bool,
    /// The result, once the task is completed and this is the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Json>,
    /// The error, once the task has failed or been cancelled and this is the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Json>,
}

impl From<Reading> for Part {
    fn from(reading: Reading) -> Self {
        let last = reading.chunks.last().map_or(0, |(seq, _)| *seq);
        let (result, error) = match reading.ending {
            Some(Ending { status: muster_protocol::task::TaskStatus::Completed, document }) => {
                (Some(document), None)
            }
            Some(ending) => (None, Some(ending.document)),
            None => (None, None),
        };
        Self {
            more: !reading.chunks.is_empty() && last < reading.seq,
            chunks: reading.chunks.into_iter().map(|(_, body)| body).collect(),
            seq: reading.seq,
            first_seq: reading.first_seq,
            status: reading.status,
            truncated: reading.truncated,
            result,
            error,
        }
    }
}

/// Reads a task's stream, as one of its parties: as an event stream (SSE) where `Accept` asks for one, which goes on
/// until the task ends and resumes by `Last-Event-ID`; otherwise what there is now, as JSON.
#[utoipa::path(get, path = "/api/v1/tasks/{id}/stream",
    params(("id" = TaskId, Path, description = "The task."), ReadParams,
        ("last-event-id" = Option<String>, Header, description = "Resumes an event stream after this seq.")),
    responses((status = 200, body = Envelope<Part>, description = "As JSON; as text/event-stream: events `stream.joined`, \
        `stream.chunk` (id: its seq), `stream.done`, `stream.error`."), Refusals))]
pub async fn read(
    app: State,
    caller: Caller,
    origin: Origin,
    headers: HeaderMap,
    Id(task): Id<TaskId>,
    Params(params): Params<ReadParams>,
) -> axum::response::Response {
    match read_for(&app, (&caller, &origin), &headers, task, &params).await {
        Ok(response) => response,
        Err(refused) => refused.into_response(),
    }
}

async fn read_for(
    app: &std::sync::Arc<App>,
    (caller, origin): (&Caller, &Origin),
    headers: &HeaderMap,
    task: TaskId,
    params: &ReadParams,
) -> Result<axum::response::Response, Refused> {
    let parties = app.core.streams.parties(task).await?;
    if !parties.is_some_and(|parties| may_read_stream(&caller.principal, &parties)) {
        return Err(ErrorCode::NotFound.into());
    }
    let resumed = match headers.get("last-event-id").map(|value| value.to_str().unwrap_or_default()) {
        None | Some("") => None,
        Some(id) => Some(
            id.parse().map_err(|_| Refusal::field(ErrorCode::InvalidPayload, "last-event-id", "a seq"))?,
        ),
    };
    // A reader that comes back knows better than the address it was given at first.
    let after = resumed.or(params.after);
    let wants_events = headers
        .get_all(ACCEPT)
        .iter()
        .any(|value| value.to_str().unwrap_or_default().contains("text/event-stream"));
    if wants_events {
        caller.principal.require(muster_protocol::account::Scope::Connect)?;
        return Ok(event_stream::open(app, (&caller.principal, origin), task, after).await?);
    }
    let bytes_max = app.config.limits.stream_buffer_bytes_max;
    let reading = app.core.streams.read(task, after, bytes_max).await?;
    Ok(Answer::ok(&Part::from(reading))?.into_response())
}
