//! From a secret to who speaks: credential, agent and user, and addresses that guess.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use muster_actors::core::Core;
use muster_actors::rate_limits::Buckets;
use muster_actors::store::StoreError;
use muster_protocol::account::{Credential, CredentialKind, Owner, Principal, Scopes, Secret, SecretHash};
use muster_protocol::agent::Agent;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, CredentialId};
use muster_protocol::limits::Limits;
use muster_protocol::time::Timestamp;
use parking_lot::Mutex;

use crate::http::addresses::{Networks, limit_key};

/// Who speaks, and the agent as which.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who, and by which credential.
    pub principal: Principal,
    /// The agent it acts as.
    pub agent: Option<Arc<Agent>>,
}

/// Checks secrets.
pub struct Authenticator {
    core: Arc<Core>,
    operator: SecretHash,
    guesses: AddressLimits,
    recent: Mutex<HashMap<[u8; 32], Recent>>,
}

/// An agent's credential that was checked a moment ago. What has ended since is asked for each time, so this saves
/// reading for a fleet that shares a key, and delays nothing.
struct Recent {
    principal: Principal,
    checked_at_ms: u64,
}

/// How long such a check holds, in milliseconds.
const RECENT_MS: u64 = 1_000;
/// Checks remembered; with more, all are forgotten.
const RECENT_MAX: usize = 16_384;

impl Authenticator {
    /// For a node whose operator's token has this hash.
    #[must_use]
    pub fn new(core: Arc<Core>, operator: SecretHash, exempt: Networks) -> Self {
        let guesses = AddressLimits::new(&core.limits, exempt);
        Self { core, operator, guesses, recent: Mutex::default() }
    }

    /// Whether the secret is the operator's.
    ///
    /// # Errors
    /// It is somebody else's, or nobody's, or the address has guessed too often.
    pub async fn operator(&self, secret: Option<&Secret>, from: IpAddr) -> Result<(), Refusal> {
        let now_ms = self.core.environment.monotonic_ms();
        self.guesses.check(from, now_ms)?;
        if self.is_operator(secret) {
            return Ok(());
        }
        if self.known(secret).await?.is_some() {
            return Err(ErrorCode::Forbidden.into());
        }
        self.guesses.failed(from, now_ms);
        Err(ErrorCode::Unauthenticated.into())
    }

    /// The same, without counting a wrong one as a guess: for endpoints that others may call too.
    #[must_use]
    pub fn is_operator(&self, secret: Option<&Secret>) -> bool {
        secret.is_some_and(|secret| secret.hash() == self.operator)
    }

    /// Who opens a connection with this secret: as [`Self::caller`], without the agent's record.
    ///
    /// # Errors
    /// As there.
    pub async fn connecting(
        &self,
        secret: Option<&Secret>,
        choice: Option<&str>,
        from: IpAddr,
    ) -> Result<Principal, Refusal> {
        let hash = secret.filter(|_| choice.is_none()).map(Secret::hash);
        if let Some(principal) = hash.as_ref().and_then(|hash| self.recently(hash, from)) {
            return Ok(principal);
        }
        let principal = self.caller(secret, choice, from).await?.principal;
        if let (Some(hash), None, Some(_)) = (hash, principal.user, principal.agent) {
            let mut recent = self.recent.lock();
            if recent.len() >= RECENT_MAX {
                *recent = HashMap::new();
            }
            let checked_at_ms = self.core.environment.monotonic_ms();
            recent.insert(*hash.as_bytes(), Recent { principal: principal.clone(), checked_at_ms });
        }
        Ok(principal)
    }

    fn recently(&self, hash: &SecretHash, from: IpAddr) -> Option<Principal> {
        let now_ms = self.core.environment.monotonic_ms();
        self.guesses.check(from, now_ms).ok()?;
        let principal = {
            let recent = self.recent.lock();
            let known = recent.get(hash.as_bytes())?;
            (now_ms.saturating_sub(known.checked_at_ms) < RECENT_MS).then(|| known.principal.clone())?
        };
        let expired = principal.expires_at.is_some_and(|end| end <= self.core.environment.now());
        (!expired && !self.core.connections.has_ended(&principal)).then_some(principal)
    }

    /// Who shows this secret. `choice` names the agent a user wants to act as.
    ///
    /// # Errors
    /// The secret is none, or revoked, or expired; the agent is stopped; the user does not own the agent it names; or
    /// the address has guessed too often.
    pub async fn caller(
        &self,
        secret: Option<&Secret>,
        choice: Option<&str>,
        from: IpAddr,
    ) -> Result<Caller, Refusal> {
        let now_ms = self.core.environment.monotonic_ms();
        self.guesses.check(from, now_ms)?;
        // Before anything is read: what ends from here on ends what is opened now, too.
        let as_of = self.core.connections.ends();
        let Some((credential, agent)) = self.credential(secret).await? else {
            self.guesses.failed(from, now_ms);
            return Err(ErrorCode::Unauthenticated.into());
        };
        match credential.owner {
            Owner::Agent(id) => {
                if choice.is_some_and(|choice| choice.parse() != Ok(id)) {
                    return Err(ErrorCode::Forbidden.into());
                }
                let agent = agent.filter(|agent| agent.status.may_connect()).ok_or(ErrorCode::Forbidden)?;
                let agent = Arc::new(agent);
                Ok(Caller { principal: principal(&credential, Some(agent.id), as_of), agent: Some(agent) })
            }
            Owner::User(user) => {
                let agent = match choice {
                    None => None,
                    Some(choice) => {
                        let id = choice.parse().map_err(|_| Refusal::new(ErrorCode::Forbidden))?;
                        let agent = self.agent(id).await?;
                        // Somebody else's agent and one that does not exist give the same answer.
                        Some(agent)
                            .filter(|agent| agent.owner == Some(user))
                            .ok_or(ErrorCode::Forbidden)
                            .map(Some)?
                    }
                };
                let chosen = agent.as_ref().map(|agent| agent.id);
                Ok(Caller { principal: principal(&credential, chosen, as_of), agent })
            }
        }
    }

    /// Whose this secret is, without counting a wrong one as a guess: none for whoever may do nothing.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn known(&self, secret: Option<&Secret>) -> Result<Option<Credential>, Refusal> {
        let Some((credential, agent)) = self.credential(secret).await? else { return Ok(None) };
        let may_act = agent.is_none_or(|agent| agent.status.may_connect());
        Ok(may_act.then_some(credential))
    }

    async fn credential(
        &self,
        secret: Option<&Secret>,
    ) -> Result<Option<(Credential, Option<Agent>)>, Refusal> {
        let Some(secret) = secret else { return Ok(None) };
        match self.core.store.caller_by_hash(secret.hash()).await {
            Ok(found) => {
                Ok(Some(found).filter(|(credential, _)| credential.is_live(self.core.environment.now())))
            }
            Err(StoreError::NotFound) => Ok(None),
            Err(error) => Err(unavailable(&error)),
        }
    }

    async fn agent(&self, id: AgentId) -> Result<Arc<Agent>, Refusal> {
        match self.core.store.agent(id).await {
            Ok(agent) if agent.status.may_connect() => Ok(Arc::new(agent)),
            Ok(_) | Err(StoreError::NotFound) => Err(ErrorCode::Forbidden.into()),
            Err(error) => Err(unavailable(&error)),
        }
    }

    /// Makes a credential and its secret; neither is stored yet.
    #[must_use]
    pub fn issue(&self, kind: CredentialKind, owner: Owner, terms: Terms) -> (Credential, Secret) {
        let environment = &self.core.environment;
        let now = environment.now();
        let credential = Credential {
            id: CredentialId::new(now, environment.id_entropy()),
            kind,
            owner,
            parent: terms.parent,
            label: terms.label,
            scopes: terms.scopes,
            created_at: now,
            expires_at: terms.expires_at,
            revoked_at: None,
        };
        (credential, Secret::generate(kind, environment.random()))
    }
}

/// What a new credential is limited to.
#[derive(Clone, Debug)]
pub struct Terms {
    /// For people.
    pub label: Option<String>,
    /// What it may be used for.
    pub scopes: Scopes,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// The key it does not outlive.
    pub parent: Option<CredentialId>,
}

impl Default for Terms {
    fn default() -> Self {
        Self { label: None, scopes: Scopes::ALL, expires_at: None, parent: None }
    }
}

fn principal(credential: &Credential, agent: Option<AgentId>, as_of: u64) -> Principal {
    let user = match credential.owner {
        Owner::User(user) => Some(user),
        Owner::Agent(_) => None,
    };
    Principal {
        credential: credential.id,
        kind: credential.kind,
        agent,
        user,
        scopes: credential.scopes,
        expires_at: credential.expires_at,
        as_of,
    }
}

fn unavailable(error: &StoreError) -> Refusal {
    tracing::error!(%error, "store");
    ErrorCode::StoreUnavailable.into()
}

/// Addresses that show wrong secrets: a few a minute, then none for a while.
struct AddressLimits {
    exempt: Networks,
    failures: Buckets<IpAddr>,
    locked_until_ms: Mutex<HashMap<IpAddr, u64>>,
    lockout_ms: u64,
}

/// Addresses remembered as locked out; with more, the oldest lockouts are forgotten first.
const LOCKOUTS_MAX: usize = 65_536;

impl AddressLimits {
    fn new(limits: &Limits, exempt: Networks) -> Self {
        Self {
            exempt,
            failures: Buckets::new(limits.auth_failures_per_ip),
            locked_until_ms: Mutex::default(),
            lockout_ms: limits.auth_lockout_ms,
        }
    }

    fn check(&self, from: IpAddr, now_ms: u64) -> Result<(), Refusal> {
        if self.exempt.contains(from) {
            return Ok(());
        }
        match self.locked_until_ms.lock().get(&limit_key(from)) {
            Some(until_ms) if *until_ms > now_ms => Err(Refusal::rate_limited(until_ms - now_ms)),
            _ => Ok(()),
        }
    }

    fn failed(&self, from: IpAddr, now_ms: u64) {
        if self.exempt.contains(from) || self.failures.take(limit_key(from), now_ms).is_ok() {
            return;
        }
        let mut locked = self.locked_until_ms.lock();
        if locked.len() >= LOCKOUTS_MAX {
            locked.retain(|_, until_ms| *until_ms > now_ms);
            if locked.len() >= LOCKOUTS_MAX {
                locked.clear();
            }
        }
        locked.insert(limit_key(from), now_ms + self.lockout_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_guess_are_locked_out_for_a_while() {
        let limits =
            AddressLimits::new(&Limits::default(), Networks::parse(&["127.0.0.0/8".into()]).unwrap());
        let (guesser, other, local): (IpAddr, IpAddr, IpAddr) =
            ("203.0.113.1".parse().unwrap(), "203.0.113.2".parse().unwrap(), "127.0.0.1".parse().unwrap());
        for _ in 0..11 {
            assert_eq!(limits.check(guesser, 0), Ok(()));
            limits.failed(guesser, 0);
            limits.failed(local, 0);
        }
        assert_eq!(limits.check(guesser, 1_000), Err(Refusal::rate_limited(299_000)));
        assert_eq!(limits.check(other, 1_000), Ok(()));
        assert_eq!(limits.check(local, 1_000), Ok(()));
        assert_eq!(limits.check(guesser, 300_000), Ok(()));
    }
}
