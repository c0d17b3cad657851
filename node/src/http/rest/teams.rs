//! Teams: agents that work on something together. What happens in one happens on its channel, `team:{id}`.

use muster_protocol::error_code::ErrorCode;
use muster_protocol::ids::{AgentId, EntryId, TeamId};
use muster_protocol::json::Json;
use muster_protocol::team::{EntryKind, Team};
use muster_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Body, Id, PageParams, Pair, Params, State};
use super::views::{Envelope, Refusals};
use crate::auth::Caller;
use crate::http::answer::{Answer, Handled, Refused};

/// A team to make.
#[derive(Deserialize, ToSchema)]
pub struct NewTeam {
    /// What it is called.
    name: String,
    /// Who belongs to it, besides the agent that makes it.
    #[serde(default)]
    member_agent_ids: Vec<AgentId>,
}

/// Somebody to take in.
#[derive(Deserialize, ToSchema)]
pub struct NewMember {
    /// Whom.
    agent_id: AgentId,
}

/// A team as its members see it.
#[derive(Serialize, ToSchema)]
#[allow(dead_code, reason = "it describes what Team::view writes")]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the public API")]
pub struct TeamView {
    pub id: TeamId,
    pub name: String,
    pub owner_agent_id: AgentId,
    pub members: Vec<AgentId>,
    #[schema(value_type = Vec<Object>)]
    pub votes: Vec<Json>,
    pub created_at: Timestamp,
}

/// What a team keeps.
#[derive(Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the public API")]
pub struct EntryView {
    pub id: EntryId,
    pub kind: EntryKind,
    pub from_agent_id: AgentId,
    #[schema(value_type = Object)]
    pub body: Json,
    pub inserted_at: Timestamp,
}

/// Makes a team of which the calling agent is the owner.
#[utoipa::path(post, path = "/api/v1/teams", request_body = NewTeam,
    responses((status = 201, body = Envelope<TeamView>), Refusals))]
pub async fn create(app: State, caller: Caller, Body(new): Body<NewTeam>) -> Handled {
    let owner = caller.principal.acting_agent()?;
    let team = app.core.teams.create(owner, new.name, &new.member_agent_ids).await?;
    Answer::created(&team.view())
}

/// Lists the teams of the calling agent, newest first.
#[utoipa::path(get, path = "/api/v1/teams", params(PageParams),
    responses((status = 200, body = Envelope<Vec<TeamView>>), Refusals))]
pub async fn list(app: State, caller: Caller, Params(page): Params<PageParams>) -> Handled {
    let agent = caller.principal.acting_agent()?;
    let page = app.core.teams.of(agent, page.request(&app)?).await?;
    Answer::page(&page, Team::view)
}

/// What is not the caller's does not exist for it.
fn hidden(refusal: muster_protocol::error_code::Refusal) -> Refused {
    if refusal.code == ErrorCode::Unauthorized { ErrorCode::NotFound.into() } else { refusal.into() }
}

/// Shows a team to its members.
#[utoipa::path(get, path = "/api/v1/teams/{id}", params(("id" = TeamId, Path, description = "The team.")),
    responses((status = 200, body = Envelope<TeamView>), Refusals))]
pub async fn show(app: State, caller: Caller, Id(id): Id<TeamId>) -> Handled {
    let agent = caller.principal.acting_agent()?;
    Answer::ok(&app.core.teams.of_member(id, agent).await.map_err(hidden)?.view())
}

/// Takes an agent in, as the owner.
#[utoipa::path(post, path = "/api/v1/teams/{id}/members", request_body = NewMember,
    params(("id" = TeamId, Path, description = "The team.")),
    responses((status = 200, body = Envelope<TeamView>), Refusals))]
pub async fn add_member(
    app: State,
    caller: Caller,
    Id(id): Id<TeamId>,
    Body(member): Body<NewMember>,
) -> Handled {
    let by = caller.principal.acting_agent()?;
    Answer::ok(&app.core.teams.add(id, by, member.agent_id).await.map_err(hidden)?)
}

/// Puts an agent out, as the owner, or leaves.
#[utoipa::path(delete, path = "/api/v1/teams/{id}/members/{agent_id}",
    params(("id" = TeamId, Path, description = "The team."), ("agent_id" = AgentId, Path, description = "Whom.")),
    responses((status = 200, body = Envelope<TeamView>), Refusals))]
pub async fn remove_member(app: State, caller: Caller, Pair(id, agent): Pair<TeamId, AgentId>) -> Handled {
    let by = caller.principal.acting_agent()?;
    Answer::ok(&app.core.teams.remove(id, by, agent).await.map_err(hidden)?)
}

/// Which entries.
#[derive(Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EntryParams {
    /// Of this sort only.
    kind: Option<EntryKind>,
    /// Items at most.
    limit: Option<usize>,
    /// Where to go on.
    cursor: Option<String>,
}

/// What was said, learnt, escalated and decided in a team, newest first.
#[utoipa::path(get, path = "/api/v1/teams/{id}/entries", params(("id" = TeamId, Path, description = "The team."), EntryParams),
    responses((status = 200, body = Envelope<Vec<EntryView>>), Refusals))]
pub async fn entries(
    app: State,
    caller: Caller,
    Id(id): Id<TeamId>,
    Params(params): Params<EntryParams>,
) -> Handled {
    let agent = caller.principal.acting_agent()?;
    let page = PageParams { limit: params.limit, cursor: params.cursor }.request(&app)?;
    let page = app.core.teams.entries(id, agent, params.kind, page).await.map_err(hidden)?;
    Answer::page(&page, |entry| {
        Json::of(&EntryView {
            id: entry.id,
            kind: entry.kind,
            from_agent_id: entry.author,
            body: entry.body.clone(),
            inserted_at: entry.inserted_at,
        })
    })
}
