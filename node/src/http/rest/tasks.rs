//! Tasks: creating them, ending them, and what their parties say about them.

use muster_actors::store::{StoreError, TaskFilter};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, TaskId};
use muster_protocol::json::Json;
use muster_protocol::task::{Ending, Note, Task, TaskRequest, TaskStatus, TaskView, TimelineEntry};
use muster_protocol::task_channel::Checkpoint;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Body, Id, Key, PageParams, Params, State};
use super::views::{Envelope, Refusals};
use crate::app::App;
use crate::auth::Caller;
use crate::http::answer::{Answer, Handled, Refused};

/// How a caller has to do with a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It wants it done, or owns who does.
    Client,
    /// It does it, or owns who does.
    Provider,
}

/// The task, if it is any business of the caller's: otherwise it does not exist.
///
/// # Errors
/// There is no such task for this caller.
pub async fn visible(app: &App, caller: &Caller, id: TaskId) -> Result<(Task, Vec<Role>), Refused> {
    let task = app.core.store.task(id).await?;
    let roles = roles(app, caller, &task).await?;
    if roles.is_empty() { Err(ErrorCode::NotFound.into()) } else { Ok((task, roles)) }
}

async fn roles(app: &App, caller: &Caller, task: &Task) -> Result<Vec<Role>, Refused> {
    let mut roles = Vec::new();
    let acts_as = |agent: AgentId| caller.principal.agent == Some(agent);
    if acts_as(task.client) || caller.principal.user.is_some() && caller.principal.user == task.client_owner {
        roles.push(Role::Client);
    }
    let owns_provider = match caller.principal.user {
        None => false,
        Some(user) => match app.core.store.agent(task.provider).await {
            Ok(provider) => provider.owner == Some(user),
            Err(StoreError::NotFound) => false,
            Err(error) => return Err(error.into()),
        },
    };
    if acts_as(task.provider) || owns_provider {
        roles.push(Role::Provider);
    }
    Ok(roles)
}

/// The task, if the caller has that role in it.
///
/// # Errors
/// It does not exist for the caller, or the caller has another role.
pub async fn in_role(app: &App, caller: &Caller, id: TaskId, role: Role) -> Result<Task, Refused> {
    let (task, roles) = visible(app, caller, id).await?;
    if roles.contains(&role) { Ok(task) } else { Err(ErrorCode::Forbidden.into()) }
}

/// Creates a task for the caller's agent.
#[utoipa::path(post, path = "/api/v1/tasks", request_body = TaskRequest,
    responses((status = 201, body = Envelope<TaskView<'static>>), Refusals))]
pub async fn create(app: State, caller: Caller, Key(key): Key, Body(request): Body<TaskRequest>) -> Handled {
    let task = app.core.tasks.create(caller.acting()?, request, key).await?;
    Answer::created(&task.view())
}

/// Which tasks.
#[derive(Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// Only those in this state.
    status: Option<TaskStatus>,
    /// `client` or `provider`: only those in which the caller's agent is that.
    #[param(inline)]
    role: Option<ListRole>,
    /// Items at most.
    limit: Option<usize>,
    /// Where to go on.
    cursor: Option<String>,
}

/// A side of a task.
#[derive(Clone, Copy, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ListRole {
    /// Who wants it done.
    Client,
    /// Who does it.
    Provider,
}

/// Lists the caller's tasks, newest first.
#[utoipa::path(get, path = "/api/v1/tasks", params(ListParams),
    responses((status = 200, body = Envelope<Vec<TaskView<'static>>>), Refusals))]
pub async fn list(app: State, caller: Caller, Params(params): Params<ListParams>) -> Handled {
    let page = PageParams { limit: params.limit, cursor: params.cursor }.request(&app)?;
    let mut filter = TaskFilter { status: params.status, ..TaskFilter::default() };
    match (caller.principal.agent, caller.principal.user) {
        (Some(agent), _) => filter.agent = Some(agent),
        (None, user) => filter.user = user,
    }
    match (params.role, caller.principal.agent) {
        (None, _) => {}
        (Some(ListRole::Provider), Some(agent)) => filter.provider = Some(agent),
        (Some(ListRole::Client), Some(agent)) => filter.client = Some(agent),
        (Some(_), None) => {
            let message = "needs an agent: X-Agent-ID";
            return Err(Refusal::field(ErrorCode::InvalidPayload, "role", message).into());
        }
    }
    let page = app.core.store.tasks(filter, page).await?;
    // Written out here, because a view borrows its task.
    Answer::page(&page, |task| Json::of(&task.view()))
}

/// A task, and from where its provider would go on.
#[derive(Serialize, ToSchema)]
pub struct TaskWithCheckpoint<'a> {
    #[serde(flatten)]
    task: TaskView<'a>,
    /// The newest checkpoint of its channel, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<Checkpoint>,
}

/// Shows a task to its parties.
#[utoipa::path(get, path = "/api/v1/tasks/{id}", params(("id" = TaskId, Path, description = "The task.")),
    responses((status = 200, body = Envelope<TaskWithCheckpoint<'static>>), Refusals))]
pub async fn show(app: State, caller: Caller, Id(id): Id<TaskId>) -> Handled {
    let (task, _) = visible(&app, &caller, id).await?;
    let checkpoint = app.core.store.checkpoint(id).await?;
    Answer::ok(&TaskWithCheckpoint { task: task.view(), checkpoint })
}

/// What a task gave.
#[derive(Deserialize, ToSchema)]
pub struct Completion {
    /// The result.
    #[serde(default)]
    output: Option<Json>,
}

/// Completes a task, as its provider. Its stream ends with `stream.done`.
#[utoipa::path(put, path = "/api/v1/tasks/{id}/complete", request_body = Completion,
    params(("id" = TaskId, Path, description = "The task.")),
    responses((status = 200, body = Envelope<TaskView<'static>>), Refusals))]
pub async fn complete(
    app: State,
    caller: Caller,
    Id(id): Id<TaskId>,
    Body(done): Body<Completion>,
) -> Handled {
    let provider = in_role(&app, &caller, id, Role::Provider).await?.provider;
    let ending = Ending::completed(done.output.unwrap_or_else(Json::null));
    let task = app.core.tasks.finish(id, ending, (caller.principal.agent, Some(provider))).await?;
    Answer::ok(&task.view())
}

/// Why a task failed: a sentence, or an object with a `type`.
#[derive(Deserialize, ToSchema)]
pub struct Failure {
    /// In a sentence.
    #[serde(default)]
    error_reason: Option<String>,
    /// `{"type", "message"?, "details"?}`.
    #[serde(default)]
    error: Option<Json>,
}

impl Failure {
    /// How the task ends by it.
    ///
    /// # Errors
    /// `error` is no object with a type.
    pub(super) fn ending(self) -> Result<Ending, Refusal> {
        #[derive(Deserialize)]
        struct Typed {
            #[serde(rename = "type")]
            _kind: String,
        }
        let error = match (self.error, self.error_reason) {
            (Some(error), _) => {
                let typed = error.as_bytes().starts_with(b"{") && error.parse::<Typed>().is_ok();
                if !typed {
                    return Err(Refusal::field(ErrorCode::InvalidPayload, "error", "an object with a type"));
                }
                error
            }
            (None, Some(reason)) => Json::of(&serde_json::json!({ "type": "failed", "message": reason })),
            (None, None) => Json::of(&serde_json::json!({ "type": "failed" })),
        };
        Ok(Ending::failed(error))
    }
}

/// Gives a task up, as its provider. Its stream ends with `stream.error`.
#[utoipa::path(put, path = "/api/v1/tasks/{id}/fail", request_body = Failure,
    params(("id" = TaskId, Path, description = "The task.")),
    responses((status = 200, body = Envelope<TaskView<'static>>), Refusals))]
pub async fn fail(app: State, caller: Caller, Id(id): Id<TaskId>, Body(failure): Body<Failure>) -> Handled {
    let provider = in_role(&app, &caller, id, Role::Provider).await?.provider;
    let by = (caller.principal.agent, Some(provider));
    let task = app.core.tasks.finish(id, failure.ending()?, by).await?;
    Answer::ok(&task.view())
}

/// Why something is withdrawn.
#[derive(Deserialize, ToSchema)]
pub struct Withdrawal {
    /// In a sentence.
    #[serde(default)]
    pub(super) reason: Option<String>,
}

/// Withdraws a task, as its client. Its stream ends with `stream.error` of type `cancelled`.
#[utoipa::path(post, path = "/api/v1/tasks/{id}/cancel", request_body = Withdrawal,
    params(("id" = TaskId, Path, description = "The task.")),
    responses((status = 200, body = Envelope<TaskView<'static>>), Refusals))]
pub async fn cancel(app: State, caller: Caller, Id(id): Id<TaskId>, Body(body): Body<Withdrawal>) -> Handled {
    in_role(&app, &caller, id, Role::Client).await?;
    let ending = Ending::cancelled(body.reason.as_deref());
    let task = app.core.tasks.finish(id, ending, (caller.principal.agent, None)).await?;
    Answer::ok(&task.view())
}

/// Who is to do a task instead.
#[derive(Deserialize, ToSchema)]
pub struct Reassignment {
    /// The agent.
    provider_agent_id: AgentId,
}

/// Gives a pending task to another provider, as its client.
#[utoipa::path(post, path = "/api/v1/tasks/{id}/reassign", request_body = Reassignment,
    params(("id" = TaskId, Path, description = "The task.")),
    responses((status = 200, body = Envelope<TaskView<'static>>), Refusals))]
pub async fn reassign(
    app: State,
    caller: Caller,
    Id(id): Id<TaskId>,
    Body(body): Body<Reassignment>,
) -> Handled {
    let task = in_role(&app, &caller, id, Role::Client).await?;
    let client = app.core.store.agent(task.client).await?;
    let task = app.core.tasks.reassign(&client, id, body.provider_agent_id).await?;
    Answer::ok(&task.view())
}

/// What happened to a task, oldest first.
#[utoipa::path(get, path = "/api/v1/tasks/{id}/timeline", params(("id" = TaskId, Path, description = "The task.")),
    responses((status = 200, body = Envelope<Vec<TimelineEntry>>), Refusals))]
pub async fn timeline(app: State, caller: Caller, Id(id): Id<TaskId>) -> Handled {
    visible(&app, &caller, id).await?;
    Answer::ok(&app.core.store.timeline(id).await?)
}

/// The messages about a task, oldest first.
#[utoipa::path(get, path = "/api/v1/tasks/{id}/messages", params(("id" = TaskId, Path, description = "The task.")),
    responses((status = 200, body = Envelope<Vec<Note>>), Refusals))]
pub async fn list_messages(app: State, caller: Caller, Id(id): Id<TaskId>) -> Handled {
    visible(&app, &caller, id).await?;
    Answer::ok(&app.core.store.notes(id).await?)
}

/// A message about a task or a hiring.
#[derive(Deserialize, Serialize, ToSchema)]
pub struct NewMessage {
    /// Text.
    #[serde(alias = "message")]
    pub(super) content: String,
}

/// Writes a message about a task to its other parties; they get it as `new_message`.
#[utoipa::path(post, path = "/api/v1/tasks/{id}/messages", request_body = NewMessage,
    params(("id" = TaskId, Path, description = "The task.")),
    responses((status = 201, body = Envelope<Note>), Refusals))]
pub async fn add_message(
    app: State,
    caller: Caller,
    Id(id): Id<TaskId>,
    Body(new): Body<NewMessage>,
) -> Handled {
    let (task, _) = visible(&app, &caller, id).await?;
    write_message(&app, &caller, &task, new).await
}

/// Writes a message about a task.
///
/// # Errors
/// It does not fit.
pub async fn write_message(app: &App, caller: &Caller, task: &Task, new: NewMessage) -> Handled {
    let from = (caller.principal.agent, caller.principal.user);
    let note = app.core.tasks.add_note(task, from, new.content).await?;
    Answer::created(&note)
}
