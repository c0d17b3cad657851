//! Tasks: their life as a pure state machine, and what is shown of them.

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::agent::text_forms;
use crate::error_code::{ErrorCode, Refusal};
use crate::escrow::{Escrow, Payment};
use crate::ids::{AgentId, HiringId, MessageId, TaskId, UserId};
use crate::json::{Json, LossyString};
use crate::limits::Limits;
use crate::money::Amount;
use crate::task_stream::{ChunkKind, NewChunk};
use crate::time::Timestamp;

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskStatus {
    /// Created; the provider has not begun.
    Pending,
    /// The provider has emitted something.
    InProgress,
    /// Done; final.
    Completed,
    /// Given up by the provider; final.
    Failed,
    /// Withdrawn by the client; final.
    Cancelled,
}

text_forms!(TaskStatus {
    Pending = "pending",
    InProgress = "in_progress",
    Completed = "completed",
    Failed = "failed",
    Cancelled = "cancelled",
});

/// What can happen to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskAction {
    /// The provider emits a chunk.
    Emit,
    /// The provider completes it.
    Complete,
    /// The provider gives it up.
    Fail,
    /// The client withdraws it.
    Cancel,
    /// The client gives it to another provider.
    Reassign,
}

impl TaskStatus {
    /// The state after an action.
    ///
    /// # Errors
    /// [`ErrorCode::TaskNotActive`] with the state it is in: final states are final (R79), and a task that has begun is
    /// not handed to somebody else, because its output so far is another's.
    pub fn after(self, action: TaskAction) -> Result<Self, Refusal> {
        use TaskAction::{Cancel, Complete, Emit, Fail, Reassign};
        match (self, action) {
            (Self::Pending | Self::InProgress, Emit) => Ok(Self::InProgress),
            (Self::Pending | Self::InProgress, Complete) => Ok(Self::Completed),
            (Self::Pending | Self::InProgress, Fail) => Ok(Self::Failed),
            (Self::Pending | Self::InProgress, Cancel) => Ok(Self::Cancelled),
            (Self::Pending, Reassign) => Ok(Self::Pending),
            _ => Err(Refusal::wrong_status(ErrorCode::TaskNotActive, self.as_str())),
        }
    }

    /// Whether nothing more happens to it.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Id.
    pub id: TaskId,
    /// State.
    pub status: TaskStatus,
    /// Who wants it done.
    pub client: AgentId,
    /// The user who owned the client when the task was created: who sees it on the hirer socket.
    pub client_owner: Option<UserId>,
    /// Who does it.
    pub provider: AgentId,
    /// What is asked of the provider.
    pub capability: String,
    /// Given to the provider.
    pub input: Json,
    /// Given back, once completed.
    pub output: Option<Json>,
    /// Why it failed or was cancelled: `{"type", "message"?, "details"?}`.
    pub error: Option<Json>,
    /// What the client would pay at most.
    pub max_price: Option<Amount>,
    /// A name the client uses for whoever it works for.
    pub external_client: Option<String>,
    /// The hiring it belongs to.
    pub hiring: Option<HiringId>,
    /// What it costs.
    pub payment: Payment,
    /// Creation.
    pub created_at: Timestamp,
    /// Last change.
    pub updated_at: Timestamp,
    /// When it reached a final state.
    pub ended_at: Option<Timestamp>,
}

/// Who has to do with a task: what authorisation needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskParties {
    /// Who wants it done.
    pub client: AgentId,
    /// The client's owner.
    pub client_owner: Option<UserId>,
    /// Who does it.
    pub provider: AgentId,
}

impl Task {
    /// Its parties.
    #[must_use]
    pub fn parties(&self) -> TaskParties {
        TaskParties { client: self.client, client_owner: self.client_owner, provider: self.provider }
    }

    /// What clients see.
    #[must_use]
    pub fn view(&self) -> TaskView<'_> {
        TaskView {
            id: self.id,
            status: self.status,
            client_agent_id: self.client,
            provider_agent_id: self.provider,
            capability: &self.capability,
            input: &self.input,
            output: self.output.as_ref(),
            error_reason: self.error.as_ref().and_then(error_reason),
            error: self.error.as_ref(),
            progress_percent: None,
            progress_message: None,
            max_price: self.max_price,
            external_client: self.external_client.as_deref(),
            hiring_id: self.hiring,
            price: self.payment.price,
            escrow: self.payment.escrow,
            created_at: self.created_at,
            updated_at: self.updated_at,
            completed_at: self.ended_at,
        }
    }
}

/// A task as clients see it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the public API")]
pub struct TaskView<'a> {
    pub id: TaskId,
    pub status: TaskStatus,
    pub client_agent_id: AgentId,
    pub provider_agent_id: AgentId,
    pub capability: &'a str,
    pub input: &'a Json,
    pub output: Option<&'a Json>,
    pub error_reason: Option<String>,
    pub error: Option<&'a Json>,
    pub progress_percent: Option<f64>,
    pub progress_message: Option<&'a str>,
    pub max_price: Option<Amount>,
    pub external_client: Option<&'a str>,
    pub hiring_id: Option<HiringId>,
    pub price: Option<Amount>,
    /// Where the price is: `none` when nothing was held here.
    pub escrow: Escrow,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub completed_at: Option<Timestamp>,
}

fn error_reason(error: &Json) -> Option<String> {
    #[derive(Deserialize)]
    struct Error {
        message: Option<String>,
        #[serde(rename = "type")]
        kind: Option<String>,
    }
    let error: Error = error.parse().ok()?;
    error.message.or(error.kind)
}

/// How a task ended: what `stream.done` or `stream.error` tells its readers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// A final state.
    pub status: TaskStatus,
    /// The result of a completed task, or the error of another.
    pub document: Json,
}

impl Ending {
    /// Completed with a result.
    #[must_use]
    pub fn completed(result: Json) -> Self {
        Self { status: TaskStatus::Completed, document: result }
    }

    /// Failed, with `{"type", …}`.
    #[must_use]
    pub fn failed(error: Json) -> Self {
        Self { status: TaskStatus::Failed, document: error }
    }

    /// Cancelled by the client, perhaps with a reason.
    #[must_use]
    pub fn cancelled(reason: Option<&str>) -> Self {
        let document = match reason {
            Some(reason) => Json::of(&serde_json::json!({"type": "cancelled", "message": reason})),
            None => Json::of(&serde_json::json!({"type": "cancelled"})),
        };
        Self { status: TaskStatus::Cancelled, document }
    }

    /// The ending of a task that has one.
    #[must_use]
    pub fn of(task: &Task) -> Option<Self> {
        let document = match task.status {
            TaskStatus::Completed => task.output.clone(),
            TaskStatus::Failed | TaskStatus::Cancelled => task.error.clone(),
            TaskStatus::Pending | TaskStatus::InProgress => return None,
        };
        Some(Self { status: task.status, document: document.unwrap_or_else(Json::null) })
    }

    /// What it does to the task.
    #[must_use]
    pub const fn action(&self) -> TaskAction {
        match self.status {
            TaskStatus::Completed => TaskAction::Complete,
            TaskStatus::Cancelled => TaskAction::Cancel,
            _ => TaskAction::Fail,
        }
    }

    /// The line of the timeline ([`TimelineEntry::event`]).
    #[must_use]
    pub const fn timeline_event(&self) -> &'static str {
        match self.status {
            TaskStatus::Completed => "task_completed",
            TaskStatus::Cancelled => "task_cancelled",
            _ => "task_failed",
        }
    }

    /// The task's output and its error from now on; of these it has one.
    #[must_use]
    pub fn documents(&self) -> (Option<&Json>, Option<&Json>) {
        match self.status {
            TaskStatus::Completed => (Some(&self.document), None),
            _ => (None, Some(&self.document)),
        }
    }

    /// Name and payload of the event that ends the stream (R41).
    #[must_use]
    pub fn event(&self) -> (&'static str, Json) {
        let (event, field) = match self.status {
            TaskStatus::Completed => (crate::topic::event::STREAM_DONE, "result"),
            _ => (crate::topic::event::STREAM_ERROR, "error"),
        };
        let mut payload = format!("{{\"{field}\":").into_bytes();
        payload.extend_from_slice(self.document.as_bytes());
        payload.push(b'}');
        (event, Json::from_trusted_bytes(payload.into()))
    }
}

/// What a task is created with.
#[derive(Clone, Debug, Deserialize, utoipa::ToSchema)]
pub struct TaskRequest {
    /// Who is to do it.
    pub provider_agent_id: AgentId,
    /// What is asked.
    pub capability: String,
    /// Given to the provider.
    #[serde(default)]
    pub input: Option<Json>,
    /// What the client would pay at most.
    #[serde(default)]
    pub max_price: Option<Amount>,
    /// What the client pays: held until the task ends. Nothing is held when absent.
    #[serde(default)]
    pub price: Option<Amount>,
    /// A name the client uses for whoever it works for.
    #[serde(default)]
    pub external_client: Option<String>,
}

impl TaskRequest {
    /// Checks the fields.
    ///
    /// # Errors
    /// The first that does not fit.
    pub fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        crate::agent::check_capabilities(std::slice::from_ref(&self.capability), limits)
            .map_err(|refusal| Refusal { field: Some("capability".into()), ..refusal })?;
        if let Some(input) = &self.input {
            check_document(input, "input", limits.task_document_bytes_max)?;
        }
        if let Some(name) = &self.external_client {
            crate::account::check_name(name, limits)
                .map_err(|refusal| Refusal { field: Some("external_client".into()), ..refusal })?;
        }
        Ok(())
    }
}

/// Checks the size of a JSON document.
///
/// # Errors
/// It is larger.
pub fn check_document(document: &Json, field: &'static str, bytes_max: usize) -> Result<(), Refusal> {
    if document.as_bytes().len() <= bytes_max {
        return Ok(());
    }
    Err(Refusal::field(ErrorCode::InvalidPayload, field, format!("at most {bytes_max} bytes of JSON")))
}

/// A chunk as its producer sends it, by any of the paths.
#[derive(Clone, Debug, Deserialize, utoipa::ToSchema)]
pub struct ChunkRequest {
    /// The task, where nothing else names it.
    #[serde(default)]
    #[schema(ignore)]
    pub task_id: Option<Json>,
    /// Text.
    pub content: Option<LossyString>,
    /// `chat` or `artifact`.
    #[serde(default)]
    pub kind: Option<Json>,
    /// An object.
    #[serde(default)]
    pub metadata: Option<Json>,
    /// Names the chunk.
    #[serde(default)]
    pub idempotency_key: Option<String>,
}

impl ChunkRequest {
    /// The task it names. An id that is none names no task, and no task is anybody's (R35).
    ///
    /// # Errors
    /// `unauthorized`
    pub fn task(&self) -> Result<TaskId, Refusal> {
        let text: Option<String> = self.task_id.as_ref().and_then(|id| id.parse().ok());
        text.and_then(|id| id.parse().ok()).ok_or_else(|| ErrorCode::Unauthorized.into())
    }

    /// Checks the fields. A key from elsewhere (the `X-Idempotency-Key` header) stands in for a missing one.
    ///
    /// # Errors
    /// `invalid_content`, `invalid_kind`, or `invalid_payload` with the field.
    pub fn into_chunk(self, header_key: Option<&str>, limits: &Limits) -> Result<NewChunk, Refusal> {
        let content_message =
            || format!("a non-empty string of at most {} bytes", limits.chunk_content_bytes_max);
        let content = self
            .content
            .map(|text| text.0)
            .filter(|text| !text.is_empty() && text.len() <= limits.chunk_content_bytes_max)
            .ok_or_else(|| Refusal::field(ErrorCode::InvalidContent, "content", content_message()))?;
        let kind = match self.kind {
            None => ChunkKind::default(),
            Some(kind) => kind
                .parse::<Option<ChunkKind>>()
                .map(Option::unwrap_or_default)
                .map_err(|_| Refusal::field(ErrorCode::InvalidKind, "kind", "\"chat\" or \"artifact\""))?,
        };
        let metadata = self.metadata.unwrap_or_else(Json::empty_object);
        check_document(&metadata, "metadata", limits.chunk_metadata_bytes_max)?;
        if !metadata.as_bytes().starts_with(b"{") {
            return Err(Refusal::field(ErrorCode::InvalidPayload, "metadata", "an object"));
        }
        let key = self.idempotency_key.as_deref().or(header_key);
        Ok(NewChunk {
            content,
            kind,
            metadata,
            idempotency_key: key.map(|key| check_key(key, limits)).transpose()?,
        })
    }
}

fn check_key(key: &str, limits: &Limits) -> Result<SmolStr, Refusal> {
    let fits = !key.is_empty()
        && key.len() <= limits.idempotency_key_bytes_max
        && !key.chars().any(char::is_control);
    if fits {
        return Ok(key.into());
    }
    let message = format!("1 to {} bytes without control characters", limits.idempotency_key_bytes_max);
    Err(Refusal::field(ErrorCode::InvalidPayload, "idempotency_key", message))
}

/// A line of a task's timeline; lines are only ever added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TimelineEntry {
    /// When.
    pub at: Timestamp,
    /// What: `task_created`, `task_started`, `task_completed`, `task_failed`, `task_cancelled`, `task_reassigned`,
    /// `task_retried`.
    pub event: String,
    /// Which agent did it, if one did.
    pub agent_id: Option<AgentId>,
}

/// A message about a task or a hiring, from one of its parties.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Note {
    /// Id.
    pub id: MessageId,
    /// The agent that wrote it, if an agent did.
    pub from_agent_id: Option<AgentId>,
    /// The user that wrote it, if a user did.
    pub from_user_id: Option<UserId>,
    /// Text.
    pub content: String,
    /// When.
    pub inserted_at: Timestamp,
}

/// Checks the text of a note.
///
/// # Errors
/// Empty or too long.
pub fn check_note(content: &str, limits: &Limits) -> Result<(), Refusal> {
    if !content.trim().is_empty() && content.chars().count() <= limits.note_chars_max {
        return Ok(());
    }
    let message = format!("1 to {} characters", limits.note_chars_max);
    Err(Refusal::field(ErrorCode::InvalidContent, "content", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn final_states_are_final_and_begun_work_stays_where_it_is() {
        use TaskAction::*;
        use TaskStatus::*;
        for action in [Emit, Complete, Fail, Cancel, Reassign] {
            for status in [Completed, Failed, Cancelled] {
                let refusal = status.after(action).unwrap_err();
                assert_eq!((refusal.code, refusal.status), (ErrorCode::TaskNotActive, Some(status.as_str())));
            }
            assert!(Pending.after(action).is_ok());
        }
        assert_eq!(Pending.after(Emit), Ok(InProgress));
        assert!(InProgress.after(Reassign).is_err());
        assert_eq!(InProgress.after(Fail), Ok(Failed));
    }

    fn chunk(json: &str) -> Result<NewChunk, ErrorCode> {
        let request: ChunkRequest = serde_json::from_str(json).map_err(|_| ErrorCode::MalformedRequest)?;
        request.into_chunk(Some("header"), &Limits::default()).map_err(|refusal| refusal.code)
    }

    #[test]
    fn chunks_are_checked_alike_on_every_path() {
        let good = chunk(r#"{"content":"a\ud800","kind":"chat","metadata":{"n":1}}"#).unwrap();
        assert_eq!((good.content.as_str(), good.kind), ("a\u{FFFD}", ChunkKind::Chat));
        assert_eq!(good.idempotency_key.as_deref(), Some("header"));
        assert_eq!(chunk(r#"{"content":"a","kind":null}"#).unwrap().kind, ChunkKind::Artifact);
        assert_eq!(
            chunk(r#"{"content":"a","idempotency_key":"k"}"#).unwrap().idempotency_key.as_deref(),
            Some("k")
        );
        let long = format!("{{\"content\":\"{}\"}}", "é".repeat(32 * 1024 + 1));
        for (json, code) in [
            (r#"{"content":""}"#, ErrorCode::InvalidContent),
            ("{}", ErrorCode::InvalidContent),
            (long.as_str(), ErrorCode::InvalidContent),
            (r#"{"content":"a","kind":"video"}"#, ErrorCode::InvalidKind),
            (r#"{"content":"a","kind":7}"#, ErrorCode::InvalidKind),
            (r#"{"content":"a","metadata":[]}"#, ErrorCode::InvalidPayload),
            (r#"{"content":"a","idempotency_key":""}"#, ErrorCode::InvalidPayload),
            (r#"{"content":7}"#, ErrorCode::MalformedRequest),
        ] {
            assert_eq!(chunk(json).unwrap_err(), code, "{json}");
        }
    }

    #[test]
    fn endings_name_their_event() {
        let (event, payload) = Ending::cancelled(None).event();
        assert_eq!((event, payload.as_str()), ("stream.error", r#"{"error":{"type":"cancelled"}}"#));
        let (event, payload) = Ending::completed(Json::null()).event();
        assert_eq!((event, payload.as_str()), ("stream.done", r#"{"result":null}"#));
    }
}
