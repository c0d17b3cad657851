//! Negotiations and what they end in (agrenting.md R, and R139 of S).

use muster_actors::store::{NegotiationFilter, StoreError};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, AgreementId, NegotiationId};
use muster_protocol::json::Json;
use muster_protocol::negotiation::agreement::Document;
use muster_protocol::negotiation::request::{AcceptRequest, OfferRequest, OpenRequest, RejectRequest};
use muster_protocol::negotiation::{Command, Negotiation, Status, View};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Body, Id, PageParams, Params, State};
use super::views::{Envelope, Refusals};
use crate::app::App;
use crate::auth::Caller;
use crate::http::answer::{Answer, Handled, Refused};

/// Whether the caller is one of two agents, or owns one.
async fn is_concerned(app: &App, caller: &Caller, agents: [AgentId; 2]) -> Result<bool, Refused> {
    if caller.principal.agent.is_some_and(|agent| agents.contains(&agent)) {
        return Ok(true);
    }
    let Some(user) = caller.principal.user else { return Ok(false) };
    for id in agents {
        match app.core.store.agent(id).await {
            Ok(agent) if agent.owner == Some(user) => return Ok(true),
            Ok(_) | Err(StoreError::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// The negotiation, if it is any business of the caller's (R136: 404 for one that is not, 403 for somebody else's).
async fn visible(app: &App, caller: &Caller, id: NegotiationId) -> Result<Negotiation, Refused> {
    let negotiation = app.core.negotiations.read(id).await?;
    let agents = [negotiation.client.agent, negotiation.provider.agent];
    if is_concerned(app, caller, agents).await? { Ok(negotiation) } else { Err(ErrorCode::Forbidden.into()) }
}

fn shown(app: &App, negotiation: &Negotiation) -> Json {
    Json::of(&negotiation.view(app.core.environment.now()))
}

/// Begins a negotiation with another agent. The first proposal is round 1.
#[utoipa::path(post, path = "/api/v1/negotiations", request_body = OpenRequest,
    responses((status = 201, body = Envelope<View<'static>>), Refusals))]
pub async fn create(app: State, caller: Caller, Body(request): Body<OpenRequest>) -> Handled {
    let negotiation = app.core.negotiations.open(caller.acting()?, request).await?;
    Answer::created(&shown(&app, &negotiation))
}

/// Which negotiations.
#[derive(Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// Only those that stand so.
    status: Option<Status>,
    /// Items at most.
    limit: Option<usize>,
    /// Where to go on.
    cursor: Option<String>,
}

/// Lists the negotiations of the caller's agent, or of all agents of a user that names none, newest first.
#[utoipa::path(get, path = "/api/v1/negotiations", params(ListParams),
    responses((status = 200, body = Envelope<Vec<View<'static>>>), Refusals))]
pub async fn list(app: State, caller: Caller, Params(params): Params<ListParams>) -> Handled {
    let page = PageParams { limit: params.limit, cursor: params.cursor }.request(&app)?;
    let agent = caller.principal.agent;
    let user = caller.principal.user.filter(|_| agent.is_none());
    let page =
        app.core.store.negotiations(NegotiationFilter { agent, user, status: params.status }, page).await?;
    Answer::page(&page, |negotiation| shown(&app, negotiation))
}

/// Shows a negotiation to its parties and their owners.
#[utoipa::path(get, path = "/api/v1/negotiations/{id}",
    params(("id" = NegotiationId, Path, description = "The negotiation.")),
    responses((status = 200, body = Envelope<View<'static>>), Refusals))]
pub async fn show(app: State, caller: Caller, Id(id): Id<NegotiationId>) -> Handled {
    Answer::ok(&shown(&app, &visible(&app, &caller, id).await?))
}

/// Makes a move, as a party.
async fn ask(
    app: &App,
    caller: &Caller,
    id: NegotiationId,
    command: Command,
) -> Result<muster_actors::negotiations::Outcome, Refused> {
    // First whether it is theirs: what is refused to others takes no place among the live ones.
    let negotiation = app.core.negotiations.read(id).await?;
    negotiation.side_of(caller.principal.acting_agent()?).ok_or(ErrorCode::Forbidden)?;
    Ok(app.core.negotiations.ask(id, command).await?)
}

/// Makes an offer: the same as `offer` on the channel.
#[utoipa::path(post, path = "/api/v1/negotiations/{id}/counter", request_body = OfferRequest,
    params(("id" = NegotiationId, Path, description = "The negotiation.")),
    responses((status = 200, body = Envelope<View<'static>>), Refusals))]
pub async fn counter(
    app: State,
    caller: Caller,
    Id(id): Id<NegotiationId>,
    Body(request): Body<OfferRequest>,
) -> Handled {
    let command = request.command(caller.acting()?);
    Answer::ok(&shown(&app, &ask(&app, &caller, id, command).await?.negotiation))
}

/// Accepts the mean of both sides' latest offers: the same as `accept` on the channel. Answers the agreement.
#[utoipa::path(post, path = "/api/v1/negotiations/{id}/accept", request_body = AcceptRequest,
    params(("id" = NegotiationId, Path, description = "The negotiation.")),
    responses((status = 200, body = Envelope<Document>), Refusals))]
pub async fn accept(
    app: State,
    caller: Caller,
    Id(id): Id<NegotiationId>,
    Body(request): Body<AcceptRequest>,
) -> Handled {
    let command = request.command(caller.acting()?, app.core.negotiations.agreement_id());
    let outcome = ask(&app, &caller, id, command).await?;
    // A command that was taken has made one.
    let agreement = outcome.agreement.ok_or_else(|| Refusal::new(ErrorCode::Internal))?;
    Answer::ok(&agreement)
}

/// Ends the negotiation: the same as `reject` on the channel.
#[utoipa::path(post, path = "/api/v1/negotiations/{id}/reject", request_body = RejectRequest,
    params(("id" = NegotiationId, Path, description = "The negotiation.")),
    responses((status = 200, body = Envelope<View<'static>>), Refusals))]
pub async fn reject(
    app: State,
    caller: Caller,
    Id(id): Id<NegotiationId>,
    Body(request): Body<RejectRequest>,
) -> Handled {
    let command = request.command(caller.acting()?, &app.core.limits)?;
    Answer::ok(&shown(&app, &ask(&app, &caller, id, command).await?.negotiation))
}

/// Shows an agreement to its parties and their owners, byte for byte as it was stored.
#[utoipa::path(get, path = "/api/v1/agreements/{id}",
    params(("id" = AgreementId, Path, description = "The agreement.")),
    responses((status = 200, body = Envelope<Document>), Refusals))]
pub async fn agreement(app: State, caller: Caller, Id(id): Id<AgreementId>) -> Handled {
    let agreement = app.core.store.agreement(id).await?;
    let is_theirs = is_concerned(&app, &caller, [agreement.client, agreement.provider]).await?;
    if is_theirs { Answer::ok(&agreement.document) } else { Err(ErrorCode::NotFound.into()) }
}

/// By what the server's signatures are verified.
#[derive(Debug, Serialize, ToSchema)]
pub struct ServerKeyView {
    /// Always `Ed25519`.
    algorithm: &'static str,
    /// 32 bytes, base64.
    public_key: String,
}

/// Shows the key by which this server signs agreements: the same on all nodes that share a store.
#[utoipa::path(get, path = "/api/v1/server-key", security(()),
    responses((status = 200, body = Envelope<ServerKeyView>)))]
pub async fn server_key(app: State) -> Handled {
    let public_key = app.core.negotiations.server_key().to_base64();
    Answer::ok(&ServerKeyView { algorithm: "Ed25519", public_key })
}
