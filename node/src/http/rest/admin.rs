//! What the operator does: users, their tokens, and stopping agents.

use muster_protocol::account::{CredentialKind, Owner, Scope, Scopes, User, check_name};
use muster_protocol::agent::AgentStatus;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, CredentialId, TaskId, UserId};
use muster_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{Body, Id, Operator, PageParams, Pair, Params, State};
use super::views::{AgentView, CredentialView, Envelope, Issued, Refusals, Revoked};
use crate::auth::Terms;
use crate::cluster::status::Status;
use crate::http::answer::{Answer, Handled, Refused};

/// A user to create.
#[derive(Deserialize, ToSchema)]
pub struct NewUser {
    /// For people.
    name: String,
}

/// Creates a user.
#[utoipa::path(post, path = "/api/v1/admin/users", request_body = NewUser,
    responses((status = 201, body = Envelope<User>), Refusals))]
pub async fn create_user(app: State, _: Operator, Body(new): Body<NewUser>) -> Handled {
    check_name(&new.name, &app.config.limits)?;
    let environment = &app.core.environment;
    let now = environment.now();
    let user = User { id: UserId::new(now, environment.id_entropy()), name: new.name, created_at: now };
    app.core.store.create_user(user.clone()).await?;
    Answer::created(&user)
}

/// Lists users, newest first.
#[utoipa::path(get, path = "/api/v1/admin/users", params(PageParams),
    responses((status = 200, body = Envelope<Vec<User>>), Refusals))]
pub async fn list_users(app: State, _: Operator, Params(page): Params<PageParams>) -> Handled {
    let page = app.core.store.users(page.request(&app)?).await?;
    Answer::page(&page, User::clone)
}

/// What a token is limited to.
#[derive(Default, Deserialize, ToSchema)]
pub struct NewToken {
    /// For people.
    #[serde(default)]
    pub(super) label: Option<String>,
    /// What it may be used for: one at least; everything when absent.
    #[serde(default)]
    pub(super) scopes: Option<Vec<Scope>>,
    /// When it ends by itself.
    #[serde(default)]
    pub(super) expires_at: Option<Timestamp>,
}

impl NewToken {
    pub(super) fn terms(self, app: &crate::app::App) -> Result<Terms, Refused> {
        if let Some(label) = &self.label {
            check_name(label, &app.config.limits)?;
        }
        let scopes = match &self.scopes {
            None => Scopes::ALL,
            Some(list) if list.is_empty() => {
                return Err(Refusal::field(ErrorCode::InvalidPayload, "scopes", "one at least").into());
            }
            Some(list) => Scopes::of(list),
        };
        Ok(Terms { label: self.label, scopes, expires_at: self.expires_at, ..Terms::default() })
    }
}

/// Issues a token to a user; it is shown this once.
#[utoipa::path(post, path = "/api/v1/admin/users/{id}/tokens", request_body = NewToken,
    params(("id" = UserId, Path, description = "The user.")),
    responses((status = 201, body = Envelope<Issued>), Refusals))]
pub async fn create_token(app: State, _: Operator, Id(id): Id<UserId>, Body(new): Body<NewToken>) -> Handled {
    let user = app.core.store.user(id).await?;
    let (credential, secret) =
        app.auth.issue(CredentialKind::UserToken, Owner::User(user.id), new.terms(&app)?);
    let live_max = app.config.limits.credentials_per_owner_max;
    app.core.store.create_credential(credential.clone(), secret.hash(), live_max).await?;
    Answer::created(&Issued::new(&credential, &secret))
}

/// Lists a user's tokens, without their secrets.
#[utoipa::path(get, path = "/api/v1/admin/users/{id}/tokens",
    params(("id" = UserId, Path, description = "The user.")),
    responses((status = 200, body = Envelope<Vec<CredentialView>>), Refusals))]
pub async fn list_tokens(app: State, _: Operator, Id(id): Id<UserId>) -> Handled {
    let user = app.core.store.user(id).await?;
    let credentials = app.core.store.credentials_of(Owner::User(user.id)).await?;
    Answer::ok(&credentials.iter().map(CredentialView::from).collect::<Vec<_>>())
}

/// Revokes a user's token; its sockets close.
#[utoipa::path(delete, path = "/api/v1/admin/users/{id}/tokens/{token}",
    params(("id" = UserId, Path, description = "The user."), ("token" = CredentialId, Path, description = "The token's id.")),
    responses((status = 200, body = Envelope<Revoked>), Refusals))]
pub async fn revoke_token(app: State, _: Operator, Pair(user, token): Pair<UserId, CredentialId>) -> Handled {
    let now = app.core.environment.now();
    let revoked = app.core.store.revoke_credential(Owner::User(user), token, now).await?;
    let closed = app.core.notices.credentials_ended(&revoked, "credential revoked");
    Answer::ok(&Revoked { revoked: true, connections_closed: Some(closed) })
}

/// A new status.
#[derive(Deserialize, ToSchema)]
pub struct NewStatus {
    /// The status.
    status: AgentStatus,
}

/// Sets an agent's status. Suspended and banned agents are disconnected, and found by nobody.
#[utoipa::path(put, path = "/api/v1/admin/agents/{id}/status", request_body = NewStatus,
    params(("id" = AgentId, Path, description = "The agent.")),
    responses((status = 200, body = Envelope<AgentView>), Refusals))]
pub async fn set_agent_status(
    app: State,
    _: Operator,
    Id(id): Id<AgentId>,
    Body(new): Body<NewStatus>,
) -> Handled {
    let now = app.core.environment.now();
    let agent = app.core.store.set_agent_status(id, new.status, now).await?;
    if !agent.status.may_connect() {
        app.core.notices.agent_ended(id, "agent stopped");
    }
    let agent = std::sync::Arc::new(agent);
    app.core.notices.agent_changed(&agent);
    Answer::ok(&AgentView::new(&agent, app.core.online.contains(id), true))
}

/// Shows the nodes of the cluster and the links to them, as this node sees them.
#[utoipa::path(get, path = "/api/v1/admin/cluster", responses((status = 200, body = Envelope<Status>), Refusals))]
pub async fn show_cluster(app: State, _: Operator) -> Handled {
    let status = match &app.nodes {
        Some(nodes) => nodes.status(),
        None => Status::alone(&app.config.cluster.name, app.core.cluster.me(), app.core.is_draining()),
    };
    Answer::ok(&status)
}

/// That a stream was crashed.
#[derive(Serialize, ToSchema)]
pub struct Crashed {
    /// Always true.
    crashed: bool,
}

/// Crashes a task's stream, where drills are allowed: its readers see `phx_error` and come back.
#[utoipa::path(post, path = "/api/v1/admin/drills/streams/{id}/crash",
    params(("id" = TaskId, Path, description = "The task.")),
    responses((status = 202, body = Envelope<Crashed>), Refusals))]
pub async fn crash_stream(app: State, _: Operator, Id(id): Id<TaskId>) -> Handled {
    if !app.core.drills {
        return Err(ErrorCode::RouteNotFound.into());
    }
    app.core.streams.crash(id).await?;
    Answer::accepted(&Crashed { crashed: true })
}

/// How far to move the clock.
#[derive(Deserialize, ToSchema)]
pub struct MoveClock {
    /// Milliseconds, forward.
    advance_ms: u64,
}

/// Where the clock stands.
#[derive(Serialize, ToSchema)]
pub struct ClockMoved {
    /// The time at this node.
    now: Timestamp,
}

/// Moves this node's wall clock forward, where drills are allowed: to see what happens after days. Each node of a cluster
/// has its own.
#[utoipa::path(post, path = "/api/v1/admin/drills/clock", request_body = MoveClock,
    responses((status = 200, body = Envelope<ClockMoved>), Refusals))]
pub async fn move_clock(app: State, _: Operator, Body(request): Body<MoveClock>) -> Handled {
    if !app.core.drills {
        return Err(ErrorCode::RouteNotFound.into());
    }
    crate::system_clock::advance(request.advance_ms);
    Answer::ok(&ClockMoved { now: app.core.environment.now() })
}
