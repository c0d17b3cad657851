//! Users and credentials: who may speak, and how the secret they show is checked.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error_code::{ErrorCode, Refusal};
use crate::ids::{AgentId, CredentialId, UserId};
use crate::limits::Limits;
use crate::time::Timestamp;

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct User {
    /// Id.
    pub id: UserId,
    /// Name, as the operator gave it.
    pub name: String,
    /// When it was created.
    pub created_at: Timestamp,
}

/// What a credential is for. API keys and user tokens share the prefix `ap_`; the stored kind tells them apart (C6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CredentialKind {
    /// An agent's API key.
    AgentKey,
    /// A user's token.
    UserToken,
    /// An agent's session, from `POST /api/v1/auth/authenticate`.
    Session,
}

impl CredentialKind {
    /// As stored and shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AgentKey => "agent_key",
            Self::UserToken => "user_token",
            Self::Session => "session",
        }
    }

    /// Reads what [`Self::as_str`] gave.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::AgentKey, Self::UserToken, Self::Session].into_iter().find(|kind| kind.as_str() == text)
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::AgentKey | Self::UserToken => "ap_",
            Self::Session => "as_",
        }
    }
}

/// What a credential may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Open sockets and event streams.
    Connect,
    /// Read over REST and MCP.
    Read,
    /// Change things, by any transport.
    Write,
}

/// A set of scopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scopes(u8);

impl Scopes {
    /// Every scope.
    pub const ALL: Self = Self(0b111);

    /// Those of the list.
    #[must_use]
    pub fn of(list: &[Scope]) -> Self {
        Self(list.iter().fold(0, |bits, scope| bits | Self::bit(*scope)))
    }

    /// Whether the scope is in it.
    #[must_use]
    pub const fn allows(self, scope: Scope) -> bool {
        self.0 & Self::bit(scope) != 0
    }

    /// As a store column.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Reads what [`Self::bits`] gave.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// The scopes by name.
    #[must_use]
    pub fn list(self) -> Vec<Scope> {
        [Scope::Connect, Scope::Read, Scope::Write].into_iter().filter(|scope| self.allows(*scope)).collect()
    }

    const fn bit(scope: Scope) -> u8 {
        match scope {
            Scope::Connect => 1,
            Scope::Read => 2,
            Scope::Write => 4,
        }
    }
}

/// A stored credential: everything but the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Names it for listing and revoking.
    pub id: CredentialId,
    /// Kind.
    pub kind: CredentialKind,
    /// Whose it is.
    pub owner: Owner,
    /// The key a session was had by: it does not outlive it.
    pub parent: Option<CredentialId>,
    /// For people.
    pub label: Option<String>,
    /// What it may be used for.
    pub scopes: Scopes,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

impl Credential {
    /// Whether it can be used at `now`.
    #[must_use]
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }
}

/// Whose a credential is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// An agent's.
    Agent(AgentId),
    /// A user's.
    User(UserId),
}

/// SHA-256 of a secret: all that is stored of it. The secrets have 256 random bits, so a slow hash would add nothing
/// (agrenting.md R17).
#[derive(Clone, Copy)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// Hash of a secret as shown.
    #[must_use]
    pub fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    /// For a store column.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads what [`Self::as_bytes`] gave.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl PartialEq for SecretHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretHash {}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(…)")
    }
}

/// A secret on its way to or from a client. Never printed by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A new secret of that kind from 32 random bytes.
    #[must_use]
    pub fn generate(kind: CredentialKind, entropy: [u8; 32]) -> Self {
        Self(format!("{}{}", kind.prefix(), base62(entropy)))
    }

    /// A new operator token from 32 random bytes.
    #[must_use]
    pub fn generate_operator(entropy: [u8; 32]) -> Self {
        Self(format!("op_{}", base62(entropy)))
    }

    /// What a client showed; `None` when it is empty or longer than any secret of ours.
    #[must_use]
    pub fn presented(text: &str) -> Option<Self> {
        (!text.is_empty() && text.len() <= SECRET_BYTES_MAX).then(|| Self(text.to_owned()))
    }

    /// Its hash.
    #[must_use]
    pub fn hash(&self) -> SecretHash {
        SecretHash::of(&self.0)
    }

    /// The text, to be shown once to its owner and nowhere else.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Longest secret that is looked at.
const SECRET_BYTES_MAX: usize = 256;
/// Digits of 32 bytes in base 62.
const BASE62_DIGITS: usize = 43;

fn base62(mut number: [u8; 32]) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut digits = [b'0'; BASE62_DIGITS];
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0_u32;
        for byte in &mut number {
            let value = remainder << 8 | u32::from(*byte);
            *byte = u8::try_from(value / 62).unwrap_or(0);
            remainder = value % 62;
        }
        *digit = DIGITS[remainder as usize];
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

/// Who speaks on a connection or in a request, after its credential was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// By which credential.
    pub credential: CredentialId,
    /// Of which kind.
    pub kind: CredentialKind,
    /// The agent it acts as: its own, or the one its user chose.
    pub agent: Option<AgentId>,
    /// The user, when the credential is a user's.
    pub user: Option<UserId>,
    /// What it may do.
    pub scopes: Scopes,
    /// When the credential ends by itself.
    pub expires_at: Option<Timestamp>,
    /// How many ends of credentials and agents the check took into account: what ended later is not known to it.
    pub as_of: u64,
}

impl Principal {
    /// The agent it acts as.
    ///
    /// # Errors
    /// It acts as none.
    pub fn acting_agent(&self) -> Result<AgentId, Refusal> {
        self.agent.ok_or_else(|| {
            let message = "name the agent to act as: X-Agent-ID header, or agent_id when connecting";
            Refusal { message: Some(message.into()), ..ErrorCode::Forbidden.into() }
        })
    }

    /// Checks a scope.
    ///
    /// # Errors
    /// The credential does not have it.
    pub fn require(&self, scope: Scope) -> Result<(), Refusal> {
        if self.scopes.allows(scope) { Ok(()) } else { Err(ErrorCode::Forbidden.into()) }
    }
}

/// Checks a name for people.
///
/// # Errors
/// Empty, too long, or with control characters.
pub fn check_name(name: &str, limits: &Limits) -> Result<(), Refusal> {
    let fits = !name.trim().is_empty()
        && name.chars().count() <= limits.name_chars_max
        && !name.chars().any(char::is_control);
    if fits {
        return Ok(());
    }
    let message = format!("1 to {} printable characters", limits.name_chars_max);
    Err(Refusal::field(ErrorCode::InvalidPayload, "name", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_prefixed_base62_and_hash_whole() {
        let key = Secret::generate(CredentialKind::AgentKey, [0xFF; 32]);
        assert_eq!(key.reveal().len(), 3 + BASE62_DIGITS);
        assert!(key.reveal().starts_with("ap_"));
        assert!(key.reveal()[3..].bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_ne!(key.hash(), Secret::generate(CredentialKind::AgentKey, [0xFE; 32]).hash());
        assert_eq!(key.hash(), SecretHash::of(key.reveal()));
        let mut one = [0; 32];
        one[31] = 62;
        assert!(Secret::generate(CredentialKind::Session, one).reveal().ends_with("010"));
    }

    #[test]
    fn secrets_do_not_print() {
        let key = Secret::generate(CredentialKind::UserToken, [7; 32]);
        assert!(!format!("{key:?} {:?}", key.hash()).contains(&key.reveal()[3..8]));
        assert_eq!(Secret::presented(""), None);
        assert_eq!(Secret::presented(&"a".repeat(257)), None);
    }

    #[test]
    fn credentials_end_by_time_or_revocation() {
        let at = Timestamp::from_unix_ms;
        let mut credential = Credential {
            id: CredentialId::new(at(1), [0; 10]),
            kind: CredentialKind::Session,
            owner: Owner::Agent(AgentId::new(at(1), [1; 10])),
            parent: None,
            label: None,
            scopes: Scopes::of(&[Scope::Read]),
            created_at: at(1),
            expires_at: Some(at(100)),
            revoked_at: None,
        };
        assert!(credential.is_live(at(99)));
        assert!(!credential.is_live(at(100)));
        credential.revoked_at = Some(at(5));
        assert!(!credential.is_live(at(5)));
        assert!(credential.scopes.allows(Scope::Read) && !credential.scopes.allows(Scope::Write));
        assert!(Scopes::of(&[]).list().is_empty());
        assert_eq!(Scopes::from_bits(Scopes::ALL.bits()).list().len(), 3);
    }
}
