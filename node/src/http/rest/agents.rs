//! Agents: registering, finding, changing, and their keys.

use std::sync::Arc;

use muster_actors::channels::find;
use muster_actors::store::StoreError;
use muster_protocol::account::{CredentialKind, Owner, Scope};
use muster_protocol::agent::{
    Agent, AgentStatus, PricingModel, Registration, check_capabilities, merge_metadata,
};
use muster_protocol::discovery::{AvailabilityFilter, Filters, Found, Query, SortBy};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, CredentialId, UserId};
use muster_protocol::json::Json;
use muster_protocol::money::Amount;
use muster_protocol::protocol_version::Version;
use muster_protocol::signing::{PublicKey, public_key_statement};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::admin::NewToken;
use super::extract::{Body, Id, PageParams, Pair, Params, State};
use super::views::{AgentView, CredentialView, Envelope, Issued, Refusals, Registered, Revoked};
use crate::app::App;
use crate::auth::{Caller, Terms};
use crate::http::answer::{Answer, Handled, Refused};
use crate::http::front::Origin;

/// An agent to register.
#[derive(Deserialize, ToSchema)]
pub struct NewAgent {
    /// What it says of itself.
    agent: Registration,
}

const KEY_MESSAGE: &str = "Keep the api_key: it is shown this once.";

/// Registers an agent without an owner. Open, unless the operator has switched it off.
#[utoipa::path(post, path = "/api/v1/agents/register", request_body = NewAgent, security(()),
    responses((status = 201, body = Envelope<Registered>),
        (status = 426, description = "The protocol version is not served any more.", body = Envelope<Json>), Refusals))]
pub async fn register(app: State, origin: Origin, Body(new): Body<NewAgent>) -> Handled {
    if !app.config.accounts.open_registration {
        return Err(ErrorCode::Forbidden.into());
    }
    app.may_register(origin.address).map_err(Refusal::rate_limited)?;
    add(&app, new, None).await
}

/// Registers an agent that belongs to the caller.
#[utoipa::path(post, path = "/api/v1/agents", request_body = NewAgent,
    responses((status = 201, body = Envelope<Registered>),
        (status = 426, description = "The protocol version is not served any more.", body = Envelope<Json>), Refusals))]
pub async fn create(app: State, caller: Caller, Body(new): Body<NewAgent>) -> Handled {
    let user = user_of(&caller)?;
    add(&app, new, Some(user)).await
}

fn user_of(caller: &Caller) -> Result<UserId, Refused> {
    let message =
        || Refusal { message: Some("this takes a user's token".into()), ..ErrorCode::Forbidden.into() };
    caller.principal.user.ok_or_else(|| Refused(message()))
}

async fn add(app: &App, new: NewAgent, owner: Option<UserId>) -> Handled {
    let environment = &app.core.environment;
    let now = environment.now();
    let id = AgentId::new(now, environment.id_entropy());
    let agent = new.agent.into_agent(id, owner, now, &app.config.limits)?;
    app.core.versions.check_declared(&Version::list(&agent.protocol_versions), now)?;
    let (credential, secret) =
        app.auth.issue(CredentialKind::AgentKey, Owner::Agent(agent.id), Terms::default());
    let agents_max = app.config.limits.agents_per_user_max;
    let created = app.core.store.create_agent(agent.clone(), credential, secret.hash(), agents_max).await;
    created.map_err(|error| match error {
        StoreError::AlreadyExists => {
            Refused(Refusal::field(ErrorCode::AlreadyExists, "did", "there is an agent of this DID already"))
        }
        other => other.into(),
    })?;
    Answer::created(&Registered {
        agent: AgentView::new(&agent, false, true),
        api_key: secret.reveal().to_owned(),
        message: KEY_MESSAGE,
    })
}

/// Lists the caller's agents, newest first.
#[utoipa::path(get, path = "/api/v1/agents", params(PageParams),
    responses((status = 200, body = Envelope<Vec<AgentView>>), Refusals))]
pub async fn list(app: State, caller: Caller, Params(page): Params<PageParams>) -> Handled {
    let page = app.core.store.agents_of(user_of(&caller)?, page.request(&app)?).await?;
    Answer::page(&page, |agent| AgentView::new(agent, app.core.online.contains(agent.id), true))
}

/// Agents to claim.
#[derive(Deserialize, ToSchema)]
pub struct Claims {
    /// Each with the key that proves it.
    agents: Vec<Claim>,
}

/// An agent to claim.
#[derive(Deserialize, ToSchema)]
pub struct Claim {
    /// The agent.
    #[serde(alias = "id")]
    agent_id: AgentId,
    /// Its key.
    api_key: String,
}

/// What became of a claim.
#[derive(Serialize, ToSchema)]
pub struct Claimed {
    /// The agent.
    agent_id: AgentId,
    /// Whether it belongs to the caller now.
    assigned: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

/// Claims agents that have no owner, each by its key.
#[utoipa::path(post, path = "/api/v1/agents/assign", request_body = Claims,
    responses((status = 200, body = Envelope<Vec<Claimed>>), Refusals))]
pub async fn assign(app: State, caller: Caller, origin: Origin, Body(claims): Body<Claims>) -> Handled {
    let user = user_of(&caller)?;
    if claims.agents.len() > app.config.limits.page_items_max {
        let message = format!("at most {}", app.config.limits.page_items_max);
        return Err(Refusal::field(ErrorCode::InvalidPayload, "agents", message).into());
    }
    let mut results = Vec::new();
    for claim in claims.agents {
        let reason =
            claim_one(&app, user, &claim, &origin).await.err().map(|refused| refused.0.code.reason());
        results.push(Claimed { agent_id: claim.agent_id, assigned: reason.is_none(), reason });
    }
    Answer::ok(&results)
}

async fn claim_one(app: &App, user: UserId, claim: &Claim, origin: &Origin) -> Result<(), Refused> {
    let secret = muster_protocol::account::Secret::presented(&claim.api_key);
    let holder = app.auth.caller(secret.as_ref(), None, origin.address).await?;
    if holder.principal.kind != CredentialKind::AgentKey || holder.principal.agent != Some(claim.agent_id) {
        return Err(ErrorCode::Unauthenticated.into());
    }
    // Giving an agent away is a change of it.
    holder.principal.require(Scope::Write)?;
    let agent = app.core.store.claim_agent(claim.agent_id, user, app.core.environment.now()).await?;
    app.core.notices.claimed(agent.id, user);
    app.core.notices.agent_changed(&Arc::new(agent));
    Ok(())
}

/// Which agents to find.
#[derive(Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DiscoverParams {
    /// What they must be able to do.
    capability: Option<String>,
    /// Base price from which.
    min_price: Option<String>,
    /// Base price up to which.
    max_price: Option<String>,
    /// Reputation from which.
    min_reputation: Option<f64>,
    /// `online`, `offline`, `busy`, `away` or `any`.
    #[param(value_type = Option<String>)]
    status: Option<AvailabilityFilter>,
    /// Only those that are connected.
    online_only: Option<bool>,
    /// `reputation` (default), `price` or `name`; those online always come first.
    #[param(inline)]
    sort_by: Option<SortBy>,
    /// Agents at most.
    limit: Option<usize>,
}

impl DiscoverParams {
    fn query(&self) -> Result<Query, Refused> {
        let amount = |text: &Option<String>, field| {
            let parsed = text.as_deref().map(Amount::parse).transpose();
            parsed.map_err(|error| Refusal::field(ErrorCode::InvalidAmount, field, error.to_string()))
        };
        if self.min_reputation.is_some_and(|reputation| !reputation.is_finite()) {
            return Err(Refusal::field(ErrorCode::InvalidPayload, "min_reputation", "a number").into());
        }
        let status = match (self.online_only, self.status) {
            (Some(true), None) => AvailabilityFilter::Connected,
            (_, status) => status.unwrap_or_default(),
        };
        let filters = Filters {
            status,
            min_reputation: self.min_reputation,
            min_price: amount(&self.min_price, "min_price")?,
            max_price: amount(&self.max_price, "max_price")?,
        };
        let sort_by = self.sort_by.unwrap_or_default();
        Ok(Query { capability: self.capability.clone(), filters: Some(filters), sort_by })
    }
}

/// Finds agents: those online first, then by what `sort_by` says.
#[utoipa::path(get, path = "/api/v1/agents/discover", params(DiscoverParams),
    responses((status = 200, body = Envelope<Vec<Found>>), Refusals))]
pub async fn discover(app: State, caller: Caller, Params(params): Params<DiscoverParams>) -> Handled {
    let limit = params.limit.unwrap_or(app.config.limits.page_items_default);
    if limit == 0 || limit > app.config.limits.discover_results_max {
        let message = format!("from 1 to {}", app.config.limits.discover_results_max);
        return Err(Refusal::field(ErrorCode::InvalidPayload, "limit", message).into());
    }
    Answer::ok(&find(&app.core, caller.principal.agent, &params.query()?, limit).await?)
}

/// A capability and how many active agents have it.
#[derive(Serialize, ToSchema)]
pub struct Capability {
    /// Name.
    capability: String,
    /// How many have it.
    agents: u64,
}

/// Lists what agents can do, the most common first.
#[utoipa::path(get, path = "/api/v1/capabilities",
    responses((status = 200, body = Envelope<Vec<Capability>>), Refusals))]
pub async fn capabilities(app: State, _: Caller) -> Handled {
    let capabilities = app.core.store.capabilities(app.config.limits.page_items_max).await?;
    let views = capabilities.into_iter().map(|(capability, agents)| Capability { capability, agents });
    Answer::ok(&views.collect::<Vec<_>>())
}

/// Finds an agent by id or DID.
///
/// # Errors
/// There is none.
pub async fn lookup(app: &App, name: &str) -> Result<Agent, Refused> {
    let found = match name.parse() {
        Ok(id) => app.core.store.agent(id).await,
        Err(_) => app.core.store.agent_by_did(name).await,
    };
    Ok(found?)
}

/// Shows an agent, by id or DID.
#[utoipa::path(get, path = "/api/v1/agents/{id}",
    params(("id" = String, Path, description = "The agent's id or DID.")),
    responses((status = 200, body = Envelope<AgentView>), Refusals))]
pub async fn show(app: State, caller: Caller, Id(name): Id<String>) -> Handled {
    let agent = lookup(&app, &name).await?;
    let own = owns(&caller, &agent);
    // Those who are stopped, or not published, are there for their owners only.
    if !own && !agent.status.is_discoverable() {
        return Err(ErrorCode::NotFound.into());
    }
    if let Some(viewer) = caller.principal.agent
        && app.core.blocks.hidden_from(viewer).await?.contains(&agent.id)
    {
        return Err(ErrorCode::NotFound.into());
    }
    Answer::ok(&AgentView::new(&agent, app.core.online.contains(agent.id), own))
}

/// Whether the caller is the agent, or owns it.
fn owns(caller: &Caller, agent: &Agent) -> bool {
    let itself = caller.principal.user.is_none() && caller.principal.agent == Some(agent.id);
    let owner = caller.principal.user.is_some() && caller.principal.user == agent.owner;
    itself || owner
}

/// The caller's own agent of that id.
async fn own_agent(app: &App, caller: &Caller, id: AgentId) -> Result<Agent, Refused> {
    match app.core.store.agent(id).await {
        Ok(agent) if owns(caller, &agent) => Ok(agent),
        // Somebody else's agent and one that does not exist give the same answer.
        Ok(_) | Err(StoreError::NotFound) => Err(ErrorCode::NotFound.into()),
        Err(error) => Err(error.into()),
    }
}

/// What to change; what is absent stays.
#[derive(Deserialize, ToSchema)]
pub struct AgentChanges {
    /// Name for people.
    name: Option<String>,
    /// What it can do.
    capabilities: Option<Vec<String>>,
    /// How it prices its work.
    pricing_model: Option<PricingModel>,
    /// What it asks.
    base_price: Option<Amount>,
    /// Merged into what there is; `null` removes a key.
    metadata: Option<Json>,
    /// `active`, `inactive` or `draft`: the others are the operator's.
    status: Option<AgentStatus>,
}

/// Changes one's own agent; those who watch it are told.
#[utoipa::path(put, path = "/api/v1/agents/{id}", request_body = AgentChanges,
    params(("id" = AgentId, Path, description = "The agent.")),
    responses((status = 200, body = Envelope<AgentView>), Refusals))]
pub async fn update(
    app: State,
    caller: Caller,
    Id(id): Id<AgentId>,
    Body(changes): Body<AgentChanges>,
) -> Handled {
    own_agent(&app, &caller, id).await?;
    let limits = &app.config.limits;
    if let Some(name) = &changes.name {
        muster_protocol::account::check_name(name, limits)?;
    }
    if let Some(capabilities) = &changes.capabilities {
        check_capabilities(capabilities, limits)?;
    }
    if changes.status.is_some_and(|status| !status.may_connect()) {
        return Err(Refusal::field(ErrorCode::Forbidden, "status", "only the operator stops an agent").into());
    }
    let agent = app
        .core
        .changes
        .change(id, |agent| {
            if changes.status.is_some() && !agent.status.may_connect() {
                return Err(ErrorCode::Forbidden.into());
            }
            let metadata = match &changes.metadata {
                Some(new) => merge_metadata(&agent.metadata, new, limits)?,
                None => agent.metadata.clone(),
            };
            Ok(Agent {
                name: changes.name.clone().unwrap_or_else(|| agent.name.clone()),
                capabilities: changes.capabilities.clone().unwrap_or_else(|| agent.capabilities.clone()),
                pricing_model: changes.pricing_model.unwrap_or(agent.pricing_model),
                base_price: changes.base_price.unwrap_or(agent.base_price),
                status: changes.status.unwrap_or(agent.status),
                metadata,
                ..agent
            })
        })
        .await?;
    Answer::ok(&AgentView::new(&agent, app.core.online.contains(id), true))
}

/// A new public key.
#[derive(Deserialize, ToSchema)]
pub struct NewPublicKey {
    /// 32 bytes of Ed25519 as base64, base64url or hex.
    public_key: String,
    /// Signature of the old key over `muster-sig-v1`, `agent.public_key`, the agent's id and the new key in lower-case
    /// hex, joined by newlines. Needed when there is an old key.
    #[serde(default)]
    signature: Option<String>,
}

/// Sets the key an agent signs with. A stolen API key must not be able to swap it, so the old key signs for the new
/// one; an operator may set it without. A key that was replaced is not taken again, but from the operator: what was signed
/// at the change would be good once more.
#[utoipa::path(put, path = "/api/v1/agents/{id}/public_key", request_body = NewPublicKey,
    security(("api_key" = []), ("bearer" = []), ("operator" = [])),
    params(("id" = AgentId, Path, description = "The agent.")),
    responses((status = 200, body = Envelope<AgentView>), Refusals))]
pub async fn set_public_key(
    app: State,
    origin: Origin,
    headers: http::HeaderMap,
    Id(id): Id<AgentId>,
    Body(new): Body<NewPublicKey>,
) -> Handled {
    let secret = crate::http::front::presented_secret(&headers);
    let by_operator = app.auth.is_operator(secret.as_ref());
    if !by_operator {
        let choice = headers.get("x-agent-id").map(|value| value.to_str().unwrap_or("?"));
        let caller = app.auth.caller(secret.as_ref(), choice, origin.address).await?;
        caller.principal.require(Scope::Write)?;
        own_agent(&app, &caller, id).await?;
    }
    let key = PublicKey::parse(&new.public_key)?;
    // What its owner signed at that change could be sent again by anybody, were it in force again.
    if !by_operator && app.core.store.was_key_of(id, key).await? {
        let message = "the agent has had this key before; it needs one that is new";
        return Err(Refusal::field(ErrorCode::InvalidPayload, "public_key", message).into());
    }
    let agent = app
        .core
        .changes
        .change(id, |agent| {
            match (&agent.public_key, &new.signature) {
                (Some(old), _) if *old == key => {}
                (Some(_), _) if by_operator => {}
                (Some(old), Some(signature)) => old.verify(&public_key_statement(id, &key), signature)?,
                (Some(_), None) => {
                    let message = "the old key must sign for the new one";
                    return Err(Refusal::field(ErrorCode::InvalidSignature, "signature", message));
                }
                (None, _) => {}
            }
            Ok(Agent { public_key: Some(key), ..agent })
        })
        .await?;
    Answer::ok(&AgentView::new(&agent, app.core.online.contains(id), true))
}

/// Issues one more key to one's own agent; it is shown this once.
#[utoipa::path(post, path = "/api/v1/agents/{id}/credentials", request_body = NewToken,
    params(("id" = AgentId, Path, description = "The agent.")),
    responses((status = 201, body = Envelope<Issued>), Refusals))]
pub async fn create_key(
    app: State,
    caller: Caller,
    Id(id): Id<AgentId>,
    Body(new): Body<NewToken>,
) -> Handled {
    let agent = own_agent(&app, &caller, id).await?;
    let mut terms = new.terms(&app)?;
    // Nobody gives out more than they have.
    let wanted = terms.scopes.list();
    if !wanted.iter().all(|scope| caller.principal.scopes.allows(*scope)) {
        return Err(ErrorCode::Forbidden.into());
    }
    // Nor for longer: what the agent itself issues ends with what it issued it by.
    if let (Some(mine), None) = (caller.principal.expires_at, caller.principal.user) {
        if terms.expires_at.is_some_and(|end| end > mine) {
            let message = "not after the credential that issues it";
            return Err(Refusal::field(ErrorCode::Forbidden, "expires_at", message).into());
        }
        terms.expires_at = terms.expires_at.or(Some(mine));
    }
    let (credential, secret) = app.auth.issue(CredentialKind::AgentKey, Owner::Agent(agent.id), terms);
    let live_max = app.config.limits.credentials_per_owner_max;
    app.core.store.create_credential(credential.clone(), secret.hash(), live_max).await?;
    Answer::created(&Issued::new(&credential, &secret))
}

/// Lists the credentials of one's own agent, without their secrets.
#[utoipa::path(get, path = "/api/v1/agents/{id}/credentials",
    params(("id" = AgentId, Path, description = "The agent.")),
    responses((status = 200, body = Envelope<Vec<CredentialView>>), Refusals))]
pub async fn list_keys(app: State, caller: Caller, Id(id): Id<AgentId>) -> Handled {
    let agent = own_agent(&app, &caller, id).await?;
    let credentials = app.core.store.credentials_of(Owner::Agent(agent.id)).await?;
    Answer::ok(&credentials.iter().map(CredentialView::from).collect::<Vec<_>>())
}

/// Revokes a credential of one's own agent; its sockets close.
#[utoipa::path(delete, path = "/api/v1/agents/{id}/credentials/{credential}",
    params(("id" = AgentId, Path, description = "The agent."), ("credential" = CredentialId, Path, description = "The credential's id.")),
    responses((status = 200, body = Envelope<Revoked>), Refusals))]
pub async fn revoke_key(
    app: State,
    caller: Caller,
    Pair(agent, credential): Pair<AgentId, CredentialId>,
) -> Handled {
    let agent = own_agent(&app, &caller, agent).await?;
    let now = app.core.environment.now();
    let revoked = app.core.store.revoke_credential(Owner::Agent(agent.id), credential, now).await?;
    let closed = app.core.notices.credentials_ended(&revoked, "credential revoked");
    Answer::ok(&Revoked { revoked: true, connections_closed: Some(closed) })
}
