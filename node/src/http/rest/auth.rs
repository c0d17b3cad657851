//! Sessions and key rotation.

use muster_actors::store::StoreError;
use muster_protocol::account::{CredentialKind, Owner};
use muster_protocol::error_code::ErrorCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::extract::State;
use super::views::{Envelope, Issued, Refusals, Revoked};
use crate::auth::{Caller, Terms};
use crate::http::answer::{Answer, Handled, Refused};

/// A session.
#[derive(Serialize, ToSchema)]
pub struct Session {
    /// Send as `Authorization: Bearer`, or as `session_token` when connecting. Shown this once.
    token: String,
    /// When it ends.
    expires_at: muster_protocol::time::Timestamp,
    /// Whose it is.
    agent: SessionAgent,
}

/// Whose a session is.
#[derive(Serialize, ToSchema)]
pub struct SessionAgent {
    id: muster_protocol::ids::AgentId,
    name: String,
}

/// Exchanges an agent's key for a session.
#[utoipa::path(post, path = "/api/v1/auth/authenticate", responses((status = 200, body = Envelope<Session>), Refusals))]
pub async fn authenticate(app: State, caller: Caller) -> Handled {
    if caller.principal.kind != CredentialKind::AgentKey {
        return Err(ErrorCode::Forbidden.into());
    }
    let agent = caller.acting()?;
    let expires_at = app.core.environment.now().plus_ms(app.config.accounts.session_ttl_ms);
    let expires_at = caller.principal.expires_at.map_or(expires_at, |end| end.min(expires_at));
    // A session can do what its key can, and no longer.
    let parent = Some(caller.principal.credential);
    let terms =
        Terms { scopes: caller.principal.scopes, expires_at: Some(expires_at), parent, ..Terms::default() };
    let (credential, secret) = app.auth.issue(CredentialKind::Session, Owner::Agent(agent.id), terms);
    let live_max = app.config.limits.credentials_per_owner_max;
    let created = app.core.store.create_credential(credential, secret.hash(), live_max).await;
    let evicted = created.map_err(|error| match error {
        // The key has been revoked meanwhile.
        StoreError::NotFound => ErrorCode::Unauthenticated.into(),
        other => Refused::from(other),
    })?;
    app.core.notices.credentials_ended(&evicted, "too many sessions");
    Answer::ok(&Session {
        token: secret.reveal().to_owned(),
        expires_at,
        agent: SessionAgent { id: agent.id, name: agent.name.clone() },
    })
}

/// Ends the session that the request is made with; its sockets close.
#[utoipa::path(delete, path = "/api/v1/auth/logout", responses((status = 200, body = Envelope<Revoked>), Refusals))]
pub async fn logout(app: State, caller: Caller) -> Handled {
    if caller.principal.kind != CredentialKind::Session {
        return Err(ErrorCode::Forbidden.into());
    }
    let owner = owner(&caller)?;
    let (credential, now) = (caller.principal.credential, app.core.environment.now());
    let revoked = app.core.store.revoke_credential(owner, credential, now).await?;
    app.core.notices.credentials_ended(&revoked, "logged out");
    Answer::ok(&Revoked { revoked: true, connections_closed: None })
}

/// Replaces the key that the request is made with; the old one dies at once, and its sockets close.
#[utoipa::path(post, path = "/api/v1/auth/rotate-key", responses((status = 200, body = Envelope<Issued>), Refusals))]
pub async fn rotate_key(app: State, caller: Caller) -> Handled {
    if caller.principal.kind == CredentialKind::Session {
        return Err(ErrorCode::Forbidden.into());
    }
    let old = caller.principal.credential;
    let (scopes, expires_at) = (caller.principal.scopes, caller.principal.expires_at);
    let terms = Terms { scopes, expires_at, ..Terms::default() };
    let (credential, secret) = app.auth.issue(caller.principal.kind, owner(&caller)?, terms);
    let revoked = app.core.store.rotate_credential(old, credential.clone(), secret.hash()).await?;
    app.core.notices.credentials_ended(&revoked, "credential rotated");
    Answer::ok(&Issued::new(&credential, &secret))
}

fn owner(caller: &Caller) -> Result<Owner, Refused> {
    match (caller.principal.user, caller.principal.agent) {
        (Some(user), _) => Ok(Owner::User(user)),
        (None, Some(agent)) => Ok(Owner::Agent(agent)),
        (None, None) => Err(ErrorCode::Forbidden.into()),
    }
}
