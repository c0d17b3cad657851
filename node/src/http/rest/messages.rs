//! Messages between agents: sending, reading, and what recipients say of them.

use http::HeaderMap;
use muster_actors::messages::{Waiter, status_of};
use muster_actors::store::{MessageFilter, Party};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, MessageId};
use muster_protocol::json::{Json, read_object};
use muster_protocol::message::{MessageRequest, MessageStatus, MessageView, Receipt, StatusView, Verdict};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Body, Id, PageParams, Params, State};
use super::views::{Envelope, Refusals};
use crate::app::App;
use crate::auth::Caller;
use crate::http::answer::{Answer, Handled, Refused};

/// Under which a repeat of a request is known.
const IDEMPOTENCY_KEY: &str = "x-idempotency-key";

/// Sends a message from the caller's agent to another. Answered when it is durable. Under `exactly_once` a repeat with the
/// same `dedup_key`, or else the same `X-Idempotency-Key`, gives the first message with `deduplicated: true`.
#[utoipa::path(post, path = "/api/v1/messages", request_body = MessageRequest,
    responses((status = 201, body = Envelope<Receipt>),
        (status = 426, description = "The protocol version is not served any more.", body = Envelope<Json>), Refusals))]
pub async fn send(
    app: State,
    caller: Caller,
    headers: HeaderMap,
    Body(request): Body<MessageRequest>,
) -> Handled {
    let key = match headers.get(IDEMPOTENCY_KEY) {
        None => None,
        Some(key) => Some(key.to_str().map_err(|_| Refusal::invalid("X-Idempotency-Key: no text"))?),
    };
    let (waiter, answer) = Waiter::request();
    app.core.messages.send(&caller.principal, request, key, waiter).await;
    let receipt = answer.await.unwrap_or_else(|_| Err(ErrorCode::Internal.into()))?;
    Ok(Answer::created(&receipt)?.deprecated(receipt.deprecation))
}

/// Messages to send together.
#[derive(Deserialize, ToSchema)]
pub struct Batch {
    /// Each as for one; they are accepted in this order.
    #[schema(value_type = Vec<MessageRequest>)]
    messages: Vec<Json>,
}

/// What became of one of several messages.
#[derive(Serialize, ToSchema)]
pub struct BatchItem {
    /// The message, if it was accepted.
    data: Option<Receipt>,
    /// Why it was not, as sockets have it.
    error: Option<Json>,
}

/// Sends messages, up to 500 at once; says of each what became of it. Answered when all are durable.
#[utoipa::path(post, path = "/api/v1/messages/batch", request_body = Batch,
    responses((status = 200, body = Envelope<Vec<BatchItem>>), Refusals))]
pub async fn send_batch(app: State, caller: Caller, Body(batch): Body<Batch>) -> Handled {
    let most = app.config.limits.message_batch_max;
    if batch.messages.len() > most {
        let message = format!("at most {most} messages");
        return Err(Refusal::field(ErrorCode::InvalidPayload, "messages", message).into());
    }
    let mut answers = Vec::with_capacity(batch.messages.len());
    for message in &batch.messages {
        let (waiter, answer) = Waiter::request();
        match read_object(message.as_str()) {
            Ok(request) => app.core.messages.send(&caller.principal, request, None, waiter).await,
            Err(refusal) => waiter.answer(Err(refusal)),
        }
        answers.push(answer);
    }
    let mut items = Vec::with_capacity(answers.len());
    for answer in answers {
        items.push(match answer.await.unwrap_or_else(|_| Err(ErrorCode::Internal.into())) {
            Ok(receipt) => BatchItem { data: Some(receipt), error: None },
            Err(refusal) => BatchItem { data: None, error: Some(refusal.response()) },
        });
    }
    Answer::ok(&items)
}

/// Which messages.
#[derive(Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// Only those of this sender.
    from_agent_id: Option<AgentId>,
    /// Only those to this recipient.
    to_agent_id: Option<AgentId>,
    /// Only those of this type.
    #[serde(rename = "type")]
    #[param(rename = "type")]
    kind: Option<String>,
    /// Only those in this state.
    status: Option<MessageStatus>,
    /// Items at most.
    limit: Option<usize>,
    /// Where to go on.
    cursor: Option<String>,
}

/// Lists the messages that the caller's agents have sent or were sent, newest first. The total is counted up to 10,000.
#[utoipa::path(get, path = "/api/v1/messages", params(ListParams),
    responses((status = 200, body = Envelope<Vec<MessageView<'static>>>), Refusals))]
pub async fn list(app: State, caller: Caller, Params(params): Params<ListParams>) -> Handled {
    list_of(&app, &caller, params).await
}

/// Lists the dead letters among them: messages that were pushed as often as may be, and never acknowledged.
#[utoipa::path(get, path = "/api/v1/messages/dead-letters", params(ListParams),
    responses((status = 200, body = Envelope<Vec<MessageView<'static>>>), Refusals))]
pub async fn dead_letters(app: State, caller: Caller, Params(params): Params<ListParams>) -> Handled {
    list_of(&app, &caller, ListParams { status: Some(MessageStatus::Failed), ..params }).await
}

async fn list_of(app: &App, caller: &Caller, params: ListParams) -> Handled {
    let page = PageParams { limit: params.limit, cursor: params.cursor }.request(app)?;
    let party = match (caller.principal.agent, caller.principal.user) {
        (Some(agent), _) => Party::Agent(agent),
        (None, Some(user)) => Party::User(user),
        (None, None) => return Err(ErrorCode::Forbidden.into()),
    };
    let (from, to) = (params.from_agent_id, params.to_agent_id);
    let filter = MessageFilter { party, from, to, kind: params.kind, status: params.status };
    let page = app.core.messages.list(filter, page).await?;
    // Written out here, because a view borrows its message.
    Answer::page(&page, |message| Json::of(&message.view()))
}

/// Shows a message to its parties.
#[utoipa::path(get, path = "/api/v1/messages/{id}", params(("id" = MessageId, Path, description = "The message.")),
    responses((status = 200, body = Envelope<MessageView<'static>>), Refusals))]
pub async fn show(app: State, caller: Caller, Id(id): Id<MessageId>) -> Handled {
    let (message, _) = app.core.messages.visible(&caller.principal, id).await?;
    Answer::ok(&message.view())
}

/// Shows what became of a message to its parties.
#[utoipa::path(get, path = "/api/v1/messages/{id}/status", params(("id" = MessageId, Path, description = "The message.")),
    responses((status = 200, body = Envelope<StatusView<'static>>), Refusals))]
pub async fn status(app: State, caller: Caller, Id(id): Id<MessageId>) -> Handled {
    let (message, _) = app.core.messages.visible(&caller.principal, id).await?;
    Answer::ok(&message.status_view())
}

/// What became of a message, as its recipient has it.
#[derive(Serialize, ToSchema)]
#[allow(dead_code, reason = "it describes what status_of writes")]
pub struct Settled {
    id: MessageId,
    status: MessageStatus,
    /// Why it was rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    retry_count: u32,
}

/// Acknowledges a message, as its recipient: it is not pushed any more. Doing so again changes nothing.
#[utoipa::path(post, path = "/api/v1/messages/{id}/acknowledge",
    params(("id" = MessageId, Path, description = "The message.")),
    responses((status = 200, body = Envelope<Settled>), Refusals))]
pub async fn acknowledge(app: State, caller: Caller, Id(id): Id<MessageId>) -> Handled {
    settle(&app, &caller, id, Verdict::Acknowledged).await
}

/// Why a message is rejected.
#[derive(Deserialize, ToSchema)]
pub struct Rejection {
    /// In a sentence; the sender sees it.
    #[serde(default)]
    reason: Option<String>,
}

/// Rejects a message, as its recipient; its sender sees why. Doing so again changes nothing.
#[utoipa::path(post, path = "/api/v1/messages/{id}/reject", request_body = Rejection,
    params(("id" = MessageId, Path, description = "The message.")),
    responses((status = 200, body = Envelope<Settled>), Refusals))]
pub async fn reject(
    app: State,
    caller: Caller,
    Id(id): Id<MessageId>,
    Body(rejection): Body<Rejection>,
) -> Handled {
    let verdict = Verdict::rejected(rejection.reason, &app.config.limits)?;
    settle(&app, &caller, id, verdict).await
}

async fn settle(app: &App, caller: &Caller, id: MessageId, verdict: Verdict) -> Handled {
    let (message, (_, received)) = app.core.messages.visible(&caller.principal, id).await?;
    if !received {
        return Err(Refused::from(ErrorCode::Forbidden));
    }
    let (waiter, answer) = Waiter::request();
    app.core.messages.settle(message.to, id, verdict, waiter).await;
    let outcome = answer.await.unwrap_or_else(|_| Err(ErrorCode::Internal.into()))?;
    Answer::ok(&status_of(&outcome))
}

/// Queues a dead letter again, as its sender or its recipient: it is pushed as if it never had been.
#[utoipa::path(post, path = "/api/v1/messages/{id}/redeliver",
    params(("id" = MessageId, Path, description = "The message.")),
    responses((status = 200, body = Envelope<StatusView<'static>>), Refusals))]
pub async fn redeliver(app: State, caller: Caller, Id(id): Id<MessageId>) -> Handled {
    let message = app.core.messages.redeliver(&caller.principal, id).await?;
    Answer::ok(&message.status_view())
}
