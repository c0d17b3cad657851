//! What clients see of records that are not shown as they are stored, and the bodies of answers.

use muster_protocol::account::{Credential, CredentialKind, Scope, Secret};
use muster_protocol::agent::{Agent, AgentStatus, PricingModel};
use muster_protocol::ids::{AgentId, CredentialId, UserId};
use muster_protocol::json::Json;
use muster_protocol::money::Amount;
use muster_protocol::signing::PublicKey;
use muster_protocol::time::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

/// An agent as clients see it.
#[derive(Debug, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the public API")]
pub struct AgentView {
    pub id: AgentId,
    pub name: String,
    pub did: String,
    pub owner_user_id: Option<UserId>,
    pub capabilities: Vec<String>,
    pub pricing_model: PricingModel,
    pub base_price: Amount,
    pub public_key: Option<String>,
    pub protocol_versions: Vec<String>,
    pub metadata: Json,
    pub status: AgentStatus,
    pub reputation: f64,
    pub tasks_completed: u64,
    pub tasks_failed: u64,
    /// Whether it is connected now.
    pub online: bool,
    pub last_seen_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl AgentView {
    /// As anybody sees it; the owner only for those who may know.
    #[must_use]
    pub fn new(agent: &Agent, online: bool, with_owner: bool) -> Self {
        Self {
            id: agent.id,
            name: agent.name.clone(),
            did: agent.did.clone(),
            owner_user_id: agent.owner.filter(|_| with_owner),
            capabilities: agent.capabilities.clone(),
            pricing_model: agent.pricing_model,
            base_price: agent.base_price,
            public_key: agent.public_key.as_ref().map(PublicKey::to_base64),
            protocol_versions: agent.protocol_versions.clone(),
            metadata: agent.metadata.clone(),
            status: agent.status,
            reputation: agent.reputation(),
            tasks_completed: agent.tasks_completed,
            tasks_failed: agent.tasks_failed,
            online,
            last_seen_at: agent.last_seen_at,
            created_at: agent.created_at,
            updated_at: agent.updated_at,
        }
    }
}

/// A credential without its secret.
#[derive(Debug, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the public API")]
pub struct CredentialView {
    pub id: CredentialId,
    pub kind: CredentialKind,
    pub label: Option<String>,
    pub scopes: Vec<Scope>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

impl From<&Credential> for CredentialView {
    fn from(credential: &Credential) -> Self {
        Self {
            id: credential.id,
            kind: credential.kind,
            label: credential.label.clone(),
            scopes: credential.scopes.list(),
            created_at: credential.created_at,
            expires_at: credential.expires_at,
            revoked_at: credential.revoked_at,
        }
    }
}

/// A newly registered agent.
#[derive(Debug, Serialize, ToSchema)]
pub struct Registered {
    /// The agent.
    pub agent: AgentView,
    /// Its key. Shown this once.
    pub api_key: String,
    /// For people.
    pub message: &'static str,
}

/// A newly issued secret.
#[derive(Debug, Serialize, ToSchema)]
pub struct Issued {
    /// The secret. Shown this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The same, where it is an agent's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
    /// What is known of it afterwards.
    pub credential: CredentialView,
}

impl Issued {
    /// Shows a secret to its owner.
    #[must_use]
    pub fn new(credential: &Credential, secret: &Secret) -> Self {
        let shown = secret.reveal().to_owned();
        let (token, api_key) = match credential.kind {
            CredentialKind::AgentKey => (None, Some(shown)),
            CredentialKind::UserToken | CredentialKind::Session => (Some(shown), None),
        };
        Self { token, api_key, credential: credential.into() }
    }
}

/// Every answer: data, what there is to say about the request, and errors.
#[derive(Debug, Serialize, ToSchema)]
pub struct Envelope<T> {
    /// What was asked for; `null` when it was refused.
    pub data: T,
    /// About the request.
    pub meta: Meta,
    /// Why it was refused; empty when it was not.
    pub errors: Vec<Problem>,
}

/// About a request.
#[derive(Debug, Serialize, ToSchema)]
pub struct Meta {
    /// Names the request, as does the header `x-request-id`.
    pub request_id: String,
    /// When it was answered.
    pub timestamp: Timestamp,
    /// Of a list.
    pub pagination: Option<crate::http::answer::Pagination>,
}

/// Why a request was refused.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// Stable; see the table of errors.
    pub code: String,
    /// For people.
    pub message: String,
    /// The field that is wrong.
    pub field: Option<String>,
    /// `reason` (the code as sockets have it), and `retry_after_ms` or `status` where there is one.
    pub details: Json,
}

/// That a credential has ended.
#[derive(Debug, Serialize, ToSchema)]
pub struct Revoked {
    /// Always true.
    pub revoked: bool,
    /// Connections of this node that were open under it, and are closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_closed: Option<usize>,
}

/// That something is not there any more.
#[derive(Debug, Serialize, ToSchema)]
pub struct Removed {
    /// Always true.
    pub removed: bool,
}

/// Refusals that any endpoint may answer.
#[derive(utoipa::IntoResponses)]
#[allow(dead_code, reason = "stands in the OpenAPI document; answers are written by http::answer")]
pub enum Refusals {
    /// Not HTTP, UTF-8 or JSON, or nested too deep.
    #[response(status = 400)]
    Malformed(Envelope<Json>),
    /// No credential, or one that is unknown, revoked or expired.
    #[response(status = 401)]
    Unauthenticated(Envelope<Json>),
    /// The credential does not allow this.
    #[response(status = 403)]
    Forbidden(Envelope<Json>),
    /// There is no such thing, or it is not yours.
    #[response(status = 404)]
    NotFound(Envelope<Json>),
    /// The thing is in another state, or there is one already.
    #[response(status = 409)]
    Conflict(Envelope<Json>),
    /// A field does not fit.
    #[response(status = 422)]
    Invalid(Envelope<Json>),
    /// Too many; `Retry-After` says when to come back.
    #[response(status = 429)]
    RateLimited(Envelope<Json>),
    /// A fault of the node; the log names it by the request's id.
    #[response(status = 500)]
    Fault(Envelope<Json>),
    /// The node or its store cannot take it now.
    #[response(status = 503)]
    Unavailable(Envelope<Json>),
}
