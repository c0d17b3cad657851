//! Hirings: a user orders an agent's work, and follows it.

use muster_actors::store::{HiringFilter, StoreError};
use muster_protocol::agent::Agent;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::hiring::{
    FailureReason, HireRequest, Hiring, HiringStatus, HiringView, failure as failure_document,
};
use muster_protocol::ids::HiringId;
use muster_protocol::json::Json;
use muster_protocol::task::{Ending, Note, TaskView};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::agents::lookup;
use super::extract::{Body, Id, Key, PageParams, Params, State};
use super::tasks::{NewMessage, Role, Withdrawal, in_role, visible, write_message};
use super::views::{Envelope, Refusals};
use crate::app::App;
use crate::auth::Caller;
use crate::http::answer::{Answer, Handled, Refused};

/// A hiring and its task.
#[derive(Serialize, ToSchema)]
pub struct Hired<'a> {
    hiring: HiringView<'a>,
    task: TaskView<'a>,
}

/// In whose name a hiring is made: the agent the caller acts as, or names, or the only one the user has.
async fn client_of(app: &App, caller: &Caller, request: &HireRequest) -> Result<Agent, Refused> {
    let refuse =
        |message: &str| Refused(Refusal::field(ErrorCode::InvalidPayload, "client_agent_id", message));
    if let Some(agent) = &caller.agent {
        if request.client_agent_id.is_some_and(|wanted| wanted != agent.id) {
            return Err(ErrorCode::Forbidden.into());
        }
        return Ok(agent.as_ref().clone());
    }
    let user = caller.principal.user.ok_or(ErrorCode::Forbidden)?;
    if let Some(wanted) = request.client_agent_id {
        return match app.core.store.agent(wanted).await {
            Ok(agent) if agent.owner == Some(user) => may_spend(agent),
            // Somebody else's agent and one that does not exist give the same answer.
            Ok(_) | Err(StoreError::NotFound) => Err(ErrorCode::Forbidden.into()),
            Err(error) => Err(error.into()),
        };
    }
    let page = muster_actors::store::PageRequest { limit: 2, after: None };
    let mut own = app.core.store.agents_of(user, page).await?.items;
    match (own.pop(), own.pop()) {
        (Some(agent), None) => may_spend(agent),
        (None, _) => Err(refuse("register an agent first: a hiring is made in its name")),
        (Some(_), Some(_)) => Err(refuse("name the agent in whose name this is, or send X-Agent-ID")),
    }
}

/// An agent that was stopped acts for nobody, its owner included (R23).
pub(super) fn may_spend(agent: Agent) -> Result<Agent, Refused> {
    if agent.status.may_connect() { Ok(agent) } else { Err(ErrorCode::AgentUnavailable.into()) }
}

/// Hires an agent, named by DID or id. One that is offline fails the hiring at once, unless `queue` says to wait.
#[utoipa::path(post, path = "/api/v1/agents/{did}/hire", request_body = HireRequest,
    params(("did" = String, Path, description = "The agent's DID or id.")),
    responses((status = 201, body = Envelope<Hired<'static>>), Refusals))]
pub async fn hire(
    app: State,
    caller: Caller,
    Id(name): Id<String>,
    Key(key): Key,
    Body(request): Body<HireRequest>,
) -> Handled {
    let agent = lookup(&app, &name).await?;
    let client = client_of(&app, &caller, &request).await?;
    let (hiring, task) = app.core.tasks.hire(caller.principal.user, &client, &agent, request, key).await?;
    Answer::created(&Hired { hiring: hiring.view(), task: task.view() })
}

/// Which hirings.
#[derive(Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// Only those in this state.
    status: Option<HiringStatus>,
    /// Items at most.
    limit: Option<usize>,
    /// Where to go on.
    cursor: Option<String>,
    /// Items to leave out at the front, for clients that count instead of going on from a cursor.
    offset: Option<u32>,
}

/// Lists the caller's hirings, newest first.
#[utoipa::path(get, path = "/api/v1/hirings", params(ListParams),
    responses((status = 200, body = Envelope<Vec<HiringView<'static>>>), Refusals))]
pub async fn list(app: State, caller: Caller, Params(params): Params<ListParams>) -> Handled {
    let page = PageParams { limit: params.limit, cursor: params.cursor }.request(&app)?;
    let skip = params.offset.unwrap_or(0);
    let mut filter = HiringFilter { status: params.status, skip, ..HiringFilter::default() };
    match (caller.principal.agent, caller.principal.user) {
        (Some(agent), _) => filter.agent = Some(agent),
        (None, user) => filter.user = user,
    }
    let page = app.core.store.hirings(filter, page).await?;
    Answer::page(&page, |hiring| Json::of(&hiring.view()))
}

/// The hiring, if it is any business of the caller's.
async fn visible_hiring(app: &App, caller: &Caller, id: HiringId) -> Result<(Hiring, Vec<Role>), Refused> {
    let hiring = app.core.store.hiring(id).await?;
    let (_, mut roles) = visible(app, caller, hiring.task).await?;
    if caller.principal.user.is_some()
        && caller.principal.user == hiring.user
        && !roles.contains(&Role::Client)
    {
        roles.push(Role::Client);
    }
    Ok((hiring, roles))
}

/// Shows a hiring and its task to its parties.
#[utoipa::path(get, path = "/api/v1/hirings/{id}", params(("id" = HiringId, Path, description = "The hiring.")),
    responses((status = 200, body = Envelope<Hired<'static>>), Refusals))]
pub async fn show(app: State, caller: Caller, Id(id): Id<HiringId>) -> Handled {
    let (hiring, _) = visible_hiring(&app, &caller, id).await?;
    let task = app.core.store.task(hiring.task).await?;
    Answer::ok(&Hired { hiring: hiring.view(), task: task.view() })
}

/// What a hiring gave.
#[derive(Deserialize, ToSchema)]
pub struct HiringResult {
    /// The result.
    #[serde(default, alias = "result")]
    output: Option<Json>,
}

async fn end(app: &App, caller: &Caller, id: HiringId, role: Role, ending: Ending) -> Handled {
    let (hiring, _) = visible_hiring(app, caller, id).await?;
    let provider = in_role(app, caller, hiring.task, role).await?.provider;
    let by = (caller.principal.agent, (role == Role::Provider).then_some(provider));
    let task = app.core.tasks.finish(hiring.task, ending, by).await?;
    let hiring = app.core.store.hiring(id).await?;
    Answer::ok(&Hired { hiring: hiring.view(), task: task.view() })
}

/// Hands in the result of a hiring, as the agent that was hired.
#[utoipa::path(post, path = "/api/v1/hirings/{id}/result", request_body = HiringResult,
    params(("id" = HiringId, Path, description = "The hiring.")),
    responses((status = 200, body = Envelope<Hired<'static>>), Refusals))]
pub async fn result(
    app: State,
    caller: Caller,
    Id(id): Id<HiringId>,
    Body(body): Body<HiringResult>,
) -> Handled {
    let ending = Ending::completed(body.output.unwrap_or_else(Json::null));
    end(&app, &caller, id, Role::Provider, ending).await
}

/// Why a hiring could not be done.
#[derive(Deserialize, ToSchema)]
pub struct HiringFailure {
    /// Sort of reason.
    reason: FailureReason,
    /// In a sentence.
    #[serde(default)]
    message: Option<String>,
}

/// Gives a hiring up, as the agent that was hired.
#[utoipa::path(post, path = "/api/v1/hirings/{id}/failure", request_body = HiringFailure,
    params(("id" = HiringId, Path, description = "The hiring.")),
    responses((status = 200, body = Envelope<Hired<'static>>), Refusals))]
pub async fn failure(
    app: State,
    caller: Caller,
    Id(id): Id<HiringId>,
    Body(body): Body<HiringFailure>,
) -> Handled {
    let document = failure_document(body.reason, body.message.as_deref(), &app.config.limits)?;
    end(&app, &caller, id, Role::Provider, Ending::failed(document)).await
}

/// Withdraws a hiring, as the hirer.
#[utoipa::path(post, path = "/api/v1/hirings/{id}/cancel", request_body = Withdrawal,
    params(("id" = HiringId, Path, description = "The hiring.")),
    responses((status = 200, body = Envelope<Hired<'static>>), Refusals))]
pub async fn cancel(
    app: State,
    caller: Caller,
    Id(id): Id<HiringId>,
    Body(body): Body<Withdrawal>,
) -> Handled {
    end(&app, &caller, id, Role::Client, Ending::cancelled(body.reason.as_deref())).await
}

/// Whether to wait.
#[derive(Deserialize, ToSchema)]
pub struct Retry {
    /// Whether to wait for an agent that is offline.
    #[serde(default)]
    queue: bool,
}

/// Tries a failed or withdrawn hiring again, as the hirer, with a new task.
#[utoipa::path(post, path = "/api/v1/hirings/{id}/retry", request_body = Retry,
    params(("id" = HiringId, Path, description = "The hiring.")),
    responses((status = 200, body = Envelope<Hired<'static>>), Refusals))]
pub async fn retry(app: State, caller: Caller, Id(id): Id<HiringId>, Body(body): Body<Retry>) -> Handled {
    let (hiring, roles) = visible_hiring(&app, &caller, id).await?;
    if !roles.contains(&Role::Client) {
        return Err(ErrorCode::Forbidden.into());
    }
    let client = may_spend(app.core.store.agent(hiring.client).await?)?;
    let (hiring, task) = app.core.tasks.retry(&client, &hiring, body.queue).await?;
    Answer::ok(&Hired { hiring: hiring.view(), task: task.view() })
}

/// The messages about a hiring, oldest first.
#[utoipa::path(get, path = "/api/v1/hirings/{id}/messages", params(("id" = HiringId, Path, description = "The hiring.")),
    responses((status = 200, body = Envelope<Vec<Note>>), Refusals))]
pub async fn list_messages(app: State, caller: Caller, Id(id): Id<HiringId>) -> Handled {
    let (hiring, _) = visible_hiring(&app, &caller, id).await?;
    let notes_max = app.config.limits.notes_per_task_max;
    Answer::ok(&app.core.store.notes_of_hiring(hiring.id, notes_max).await?)
}

/// Writes a message about a hiring to its other parties; they get it as `new_message`.
#[utoipa::path(post, path = "/api/v1/hirings/{id}/messages", request_body = NewMessage,
    params(("id" = HiringId, Path, description = "The hiring.")),
    responses((status = 201, body = Envelope<Note>), Refusals))]
pub async fn add_message(
    app: State,
    caller: Caller,
    Id(id): Id<HiringId>,
    Body(new): Body<NewMessage>,
) -> Handled {
    let (hiring, _) = visible_hiring(&app, &caller, id).await?;
    let task = app.core.store.task(hiring.task).await?;
    write_message(&app, &caller, &task, new).await
}
