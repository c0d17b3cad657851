//! Tasks that were handed over with a message of type `task_handoff`: what their recipients say of them.

use muster_actors::messages::Waiter;
use muster_protocol::account::Scope;
use muster_protocol::error_code::ErrorCode;
use muster_protocol::handoff::{Answer as Said, Handoff, HandoffView};
use muster_protocol::ids::MessageId;
use muster_protocol::json::Json;
use muster_protocol::message::Verdict;
use muster_protocol::task::{Ending, Task};
use serde::Deserialize;
use utoipa::ToSchema;

use super::extract::{Body, Id, State};
use super::tasks::{Failure, Withdrawal};
use super::views::{Envelope, Refusals};
use crate::app::App;
use crate::auth::Caller;
use crate::http::answer::{Answer, Handled, Refused};

/// The handoff, if it is any business of the caller's, and whether that is its recipient.
async fn visible(app: &App, caller: &Caller, id: MessageId) -> Result<((Handoff, Task), bool), Refused> {
    let found = app.core.handoffs.of(id).await?;
    let messages = &app.core.messages;
    let received = messages.is_own(&caller.principal, found.0.to).await?;
    if received || messages.is_own(&caller.principal, found.0.from).await? {
        Ok((found, received))
    } else {
        Err(ErrorCode::NotFound.into())
    }
}

async fn as_recipient(app: &App, caller: &Caller, id: MessageId) -> Result<(), Refused> {
    caller.principal.require(Scope::Write)?;
    let (_, received) = visible(app, caller, id).await?;
    if received { Ok(()) } else { Err(ErrorCode::Forbidden.into()) }
}

fn view((handoff, task): &(Handoff, Task)) -> Handled {
    Answer::ok(&handoff.view(task))
}

/// Shows a handoff to its parties, also when the message is not kept any longer.
#[utoipa::path(get, path = "/api/v1/messages/{id}/handoff",
    params(("id" = MessageId, Path, description = "The message.")),
    responses((status = 200, body = Envelope<HandoffView<'static>>), Refusals))]
pub async fn show(app: State, caller: Caller, Id(id): Id<MessageId>) -> Handled {
    let (found, _) = visible(&app, &caller, id).await?;
    view(&found)
}

/// Accepts a handoff, as its recipient. Doing so again changes nothing.
#[utoipa::path(post, path = "/api/v1/messages/{id}/handoff/accept",
    params(("id" = MessageId, Path, description = "The message.")),
    responses((status = 200, body = Envelope<HandoffView<'static>>), Refusals))]
pub async fn accept(app: State, caller: Caller, Id(id): Id<MessageId>) -> Handled {
    as_recipient(&app, &caller, id).await?;
    answer(&app, &caller, id, Said::Accept).await
}

/// Whoever has answered has received: the message is settled with its handoff, and pushed no more.
async fn answer(app: &App, caller: &Caller, id: MessageId, said: Said) -> Handled {
    let verdict = match &said {
        Said::Accept => Verdict::Acknowledged,
        Said::Decline(reason) => Verdict::Rejected(reason.clone()),
    };
    let answered = app.core.handoffs.answer(id, said, caller.principal.agent).await?;
    let (waiter, settled) = Waiter::request();
    app.core.messages.settle(answered.0.to, id, verdict, waiter).await;
    // It may be settled already, over, or gone.
    let _settled = settled.await;
    view(&answered)
}

/// Declines a handoff, as its recipient: the task is cancelled, and what is held for it goes back. Doing so again changes
/// nothing.
#[utoipa::path(post, path = "/api/v1/messages/{id}/handoff/decline", request_body = Withdrawal,
    params(("id" = MessageId, Path, description = "The message.")),
    responses((status = 200, body = Envelope<HandoffView<'static>>), Refusals))]
pub async fn decline(
    app: State,
    caller: Caller,
    Id(id): Id<MessageId>,
    Body(body): Body<Withdrawal>,
) -> Handled {
    as_recipient(&app, &caller, id).await?;
    let said = Said::decline(body.reason, &app.config.limits)?;
    answer(&app, &caller, id, said).await
}

/// What came of a task that was handed over.
#[derive(Deserialize, ToSchema)]
pub struct HandoffResult {
    /// Given back to the sender.
    #[serde(default)]
    result: Option<Json>,
}

/// Completes the task of an accepted handoff, as its recipient, who is paid what is held for it.
#[utoipa::path(post, path = "/api/v1/messages/{id}/handoff/complete", request_body = HandoffResult,
    params(("id" = MessageId, Path, description = "The message.")),
    responses((status = 200, body = Envelope<HandoffView<'static>>), Refusals))]
pub async fn complete(
    app: State,
    caller: Caller,
    Id(id): Id<MessageId>,
    Body(body): Body<HandoffResult>,
) -> Handled {
    as_recipient(&app, &caller, id).await?;
    let ending = Ending::completed(body.result.unwrap_or_else(Json::null));
    view(&app.core.handoffs.finish(id, ending, caller.principal.agent).await?)
}

/// Gives the task of an accepted handoff up, as its recipient: what is held for it goes back.
#[utoipa::path(post, path = "/api/v1/messages/{id}/handoff/fail", request_body = Failure,
    params(("id" = MessageId, Path, description = "The message.")),
    responses((status = 200, body = Envelope<HandoffView<'static>>), Refusals))]
pub async fn fail(
    app: State,
    caller: Caller,
    Id(id): Id<MessageId>,
    Body(failure): Body<Failure>,
) -> Handled {
    as_recipient(&app, &caller, id).await?;
    view(&app.core.handoffs.finish(id, failure.ending()?, caller.principal.agent).await?)
}
