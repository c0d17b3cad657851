//! Agents: what they say of themselves, and what the server knows of them.

use serde::{Deserialize, Serialize};

use crate::account::check_name;
use crate::error_code::{ErrorCode, Refusal};
use crate::ids::{AgentId, UserId};
use crate::json::{Json, has_poisoned_key};
use crate::limits::Limits;
use crate::money::Amount;
use crate::protocol_version::{Version, read_declared};
use crate::signing::PublicKey;
use crate::time::Timestamp;

/// How an agent prices its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PricingModel {
    /// One price.
    Fixed,
    /// By bids.
    Auction,
    /// Both.
    Hybrid,
}

/// Whether an agent takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AgentStatus {
    /// Takes part.
    Active,
    /// Its owner switched it off.
    Inactive,
    /// Not published yet.
    Draft,
    /// Stopped by the operator, for a time.
    Suspended,
    /// Stopped by the operator, for good.
    Banned,
}

macro_rules! text_forms {
    ($name:ident { $($variant:ident = $text:literal),* $(,)? }) => {
        impl $name {
            /// As stored and shown.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// Reads what [`Self::as_str`] gave.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    };
}
pub(crate) use text_forms;

text_forms!(PricingModel { Fixed = "fixed", Auction = "auction", Hybrid = "hybrid" });
text_forms!(AgentStatus {
    Active = "active",
    Inactive = "inactive",
    Draft = "draft",
    Suspended = "suspended",
    Banned = "banned",
});

impl AgentStatus {
    /// Whether the agent may connect and act (R23).
    #[must_use]
    pub const fn may_connect(self) -> bool {
        !matches!(self, Self::Suspended | Self::Banned)
    }

    /// Whether others find it (R23).
    #[must_use]
    pub const fn is_discoverable(self) -> bool {
        matches!(self, Self::Active)
    }
}

/// An agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    /// Id.
    pub id: AgentId,
    /// The user it belongs to, if one does own it.
    pub owner: Option<UserId>,
    /// Name for people.
    pub name: String,
    /// `did:<method>:<id>`, unique.
    pub did: String,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// How it prices its work.
    pub pricing_model: PricingModel,
    /// What it asks.
    pub base_price: Amount,
    /// Key that its signatures verify with.
    pub public_key: Option<PublicKey>,
    /// Protocol versions it speaks.
    pub protocol_versions: Vec<String>,
    /// Whatever else it says of itself: a JSON object.
    pub metadata: Json,
    /// Whether it takes part.
    pub status: AgentStatus,
    /// Tasks it completed.
    pub tasks_completed: u64,
    /// Tasks it failed.
    pub tasks_failed: u64,
    /// When it was registered.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// When it was last online.
    pub last_seen_at: Option<Timestamp>,
}

/// Points of the reputation scale.
const REPUTATION_MAX: f64 = 5.0;

impl Agent {
    /// Reputation from 0 to 5: the share of its ended tasks that it completed, by the rule of succession, so that a
    /// newcomer stands in the middle and one task decides little. Cancelled tasks do not count.
    #[must_use]
    pub fn reputation(&self) -> f64 {
        reputation(self.tasks_completed, self.tasks_failed)
    }

    /// Orders two readings of one agent's record: its own changes first, then the tasks counted for it.
    #[must_use]
    pub fn recency(&self) -> (Timestamp, u64) {
        (self.updated_at, self.tasks_completed + self.tasks_failed)
    }

    /// The key it signs with.
    ///
    /// # Errors
    /// [`ErrorCode::NoPublicKey`] (R22)
    pub fn signing_key(&self) -> Result<&PublicKey, Refusal> {
        self.public_key.as_ref().ok_or_else(|| ErrorCode::NoPublicKey.into())
    }
}

/// See [`Agent::reputation`].
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "counts of tasks stay far below 2^53")]
pub fn reputation(completed: u64, failed: u64) -> f64 {
    let share = (completed as f64 + 1.0) / (completed as f64 + failed as f64 + 2.0);
    (share * REPUTATION_MAX * 100.0).round() / 100.0
}

/// What an agent is registered with (R15).
#[derive(Clone, Debug, Deserialize, utoipa::ToSchema)]
pub struct Registration {
    /// Name for people.
    pub name: String,
    /// `did:<method>:<id>`.
    pub did: String,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// How it prices its work.
    pub pricing_model: PricingModel,
    /// What it asks.
    #[serde(default)]
    pub base_price: Amount,
    /// Key for its signatures.
    #[serde(default)]
    pub public_key: Option<String>,
    /// Protocol versions it speaks.
    #[serde(default)]
    pub protocol_versions: Option<Vec<String>>,
    /// Whatever else it says of itself.
    #[serde(default)]
    pub metadata: Option<Json>,
}

impl Registration {
    /// Checks every field and makes the agent.
    ///
    /// # Errors
    /// The first field that does not fit.
    pub fn into_agent(
        self,
        id: AgentId,
        owner: Option<UserId>,
        now: Timestamp,
        limits: &Limits,
    ) -> Result<Agent, Refusal> {
        check_name(&self.name, limits)?;
        check_did(&self.did, limits)?;
        check_capabilities(&self.capabilities, limits)?;
        let metadata = self.metadata.unwrap_or_else(Json::empty_object);
        let metadata = merge_metadata(&Json::empty_object(), &metadata, limits)?;
        let public_key = self.public_key.as_deref().map(PublicKey::parse).transpose()?;
        let protocol_versions = match self.protocol_versions {
            None => Version::DEFAULT.to_vec(),
            Some(versions) => read_declared(&versions)?,
        };
        let protocol_versions = protocol_versions.iter().map(ToString::to_string).collect();
        Ok(Agent {
            id,
            owner,
            name: self.name,
            did: self.did,
            capabilities: self.capabilities,
            pricing_model: self.pricing_model,
            base_price: self.base_price,
            public_key,
            protocol_versions,
            metadata,
            status: AgentStatus::Active,
            tasks_completed: 0,
            tasks_failed: 0,
            created_at: now,
            updated_at: now,
            last_seen_at: None,
        })
    }
}

/// Checks `did:<method>:<id>` (W3C DID Core §3.1, percent-encoding allowed).
///
/// # Errors
/// It is not of that form, or too long.
pub fn check_did(did: &str, limits: &Limits) -> Result<(), Refusal> {
    let refuse = || Refusal::field(ErrorCode::InvalidPayload, "did", "did:<method>:<id>");
    let mut parts = did.splitn(3, ':');
    let (Some("did"), Some(method), Some(id)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(refuse());
    };
    let method_fits =
        !method.is_empty() && method.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let id_fits = !id.is_empty()
        && !id.ends_with(':')
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'%'));
    if method_fits && id_fits && did.len() <= limits.did_bytes_max { Ok(()) } else { Err(refuse()) }
}

/// Checks a list of capabilities (R65).
///
/// # Errors
/// Too many, or one that is empty, too long, or has control characters.
pub fn check_capabilities(capabilities: &[String], limits: &Limits) -> Result<(), Refusal> {
    let refuse = |message| Err(Refusal::field(ErrorCode::InvalidPayload, "capabilities", message));
    if capabilities.len() > limits.capabilities_max {
        return refuse(format!("at most {}", limits.capabilities_max));
    }
    let fits = |capability: &String| {
        !capability.trim().is_empty()
            && capability.chars().count() <= limits.capability_chars_max
            && !capability.chars().any(char::is_control)
    };
    if !capabilities.iter().all(fits) {
        return refuse(format!("each 1 to {} printable characters", limits.capability_chars_max));
    }
    let distinct: std::collections::BTreeSet<_> = capabilities.iter().collect();
    if distinct.len() != capabilities.len() {
        return refuse("each once".to_owned());
    }
    Ok(())
}

type Fields = std::collections::BTreeMap<String, Json>;

fn read_metadata(metadata: &Json, limits: &Limits) -> Result<Fields, Refusal> {
    let refuse = |message: String| Refusal::field(ErrorCode::InvalidPayload, "metadata", message);
    if metadata.as_bytes().len() > limits.agent_metadata_bytes_max {
        return Err(refuse(format!("at most {} bytes of JSON", limits.agent_metadata_bytes_max)));
    }
    if has_poisoned_key(metadata) {
        return Err(refuse("has a key that is not allowed".into()));
    }
    metadata.parse().map_err(|_| refuse("an object".into()))
}

/// Names that metadata may not carry, so that nobody mistakes a claim for a fact (R64).
pub const PROTECTED_KEYS: [&str; 8] =
    ["id", "agent_id", "did", "status", "reputation", "base_price", "tasks_completed", "tasks_failed"];

/// Merges new metadata into old: keys are replaced, `null` removes one (R64).
///
/// # Errors
/// Not an object, a protected or poisoned key, or too large once merged.
pub fn merge_metadata(old: &Json, new: &Json, limits: &Limits) -> Result<Json, Refusal> {
    let new = read_metadata(new, limits)?;
    if let Some(key) = new.keys().find(|key| PROTECTED_KEYS.contains(&key.as_str())) {
        let message = format!("{key} cannot be set here");
        return Err(Refusal::field(ErrorCode::InvalidPayload, "metadata", message));
    }
    let mut merged = old.parse::<Fields>().unwrap_or_default();
    for (key, value) in new {
        if value == Json::null() {
            merged.remove(&key);
        } else {
            merged.insert(key, value);
        }
    }
    let merged = Json::of(&merged);
    read_metadata(&merged, limits)?;
    Ok(merged)
}

/// Metadata with a value under a key that agents cannot set themselves.
///
/// # Errors
/// A poisoned key in the value, or too large once set.
pub(crate) fn set_protected(
    metadata: &Json,
    key: &str,
    value: Json,
    limits: &Limits,
) -> Result<Json, Refusal> {
    let mut fields = metadata.parse::<Fields>().unwrap_or_default();
    fields.insert(key.to_owned(), value);
    let metadata = Json::of(&fields);
    read_metadata(&metadata, limits)?;
    Ok(metadata)
}

/// Whether an agent may deal with another, as `field` of its request names it: nobody hires, pays, hands a task to or
/// negotiates with themselves.
///
/// # Errors
/// Both are one.
pub fn check_other(agent: AgentId, (other, field): (AgentId, &'static str)) -> Result<(), Refusal> {
    if agent != other {
        return Ok(());
    }
    Err(Refusal::field(ErrorCode::InvalidPayload, field, "another agent than the one that asks"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(json: &str) -> Result<Agent, String> {
        let registration: Registration = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let id = AgentId::new(Timestamp::from_unix_ms(1), [0; 10]);
        registration
            .into_agent(id, None, Timestamp::from_unix_ms(1), &Limits::default())
            .map_err(|refusal| refusal.field.unwrap_or("?".into()).into_owned())
    }

    const GOOD: &str = r#"{"name":"A","did":"did:agrenting:a-1","capabilities":["code"],"pricing_model":"fixed","base_price":"1.5"}"#;

    /// R22: what needs a signature is refused to an agent without a key.
    #[test]
    fn an_agent_without_a_key_cannot_sign() {
        let agent = registration(GOOD).unwrap();
        assert_eq!(agent.signing_key().unwrap_err().response().as_str(), r#"{"reason":"no_public_key"}"#);
        let key = PublicKey::parse("iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w=").unwrap();
        assert_eq!(Agent { public_key: Some(key), ..agent }.signing_key(), Ok(&key));
    }

    #[test]
    fn registration_is_checked_field_by_field() {
        let agent = registration(GOOD).unwrap();
        assert_eq!(agent.protocol_versions, ["1.0.0", "1.1.0"]);
        assert_eq!((agent.base_price.micros(), agent.status), (1_500_000, AgentStatus::Active));
        assert!((agent.reputation() - 2.5).abs() < f64::EPSILON);
        assert_eq!(agent.signing_key().unwrap_err().code, ErrorCode::NoPublicKey);
        for (from, to, field) in [
            (r#""name":"A""#, r#""name":" ""#, "name"),
            ("did:agrenting:a-1", "did:a-1", "did"),
            ("did:agrenting:a-1", "did:UP:a", "did"),
            ("did:agrenting:a-1", "did:a:b c", "did"),
            (r#"["code"]"#, r#"["code","code"]"#, "capabilities"),
            (r#"["code"]"#, r#"[""]"#, "capabilities"),
            (r#""base_price":"1.5""#, r#""public_key":"AAAA""#, "public_key"),
            (r#""base_price":"1.5""#, r#""protocol_versions":["9.0.0"]"#, "protocol_versions"),
            (r#""base_price":"1.5""#, r#""metadata":[1]"#, "metadata"),
            (r#""base_price":"1.5""#, r#""metadata":{"reputation":5}"#, "metadata"),
            (r#""base_price":"1.5""#, r#""metadata":{"a":{"__proto__":1}}"#, "metadata"),
        ] {
            assert_eq!(registration(&GOOD.replace(from, to)).unwrap_err(), field, "{to}");
        }
        for (from, to) in [("fixed", "free"), (r#""1.5""#, "-1"), (r#"["code"]"#, "7")] {
            assert!(registration(&GOOD.replace(from, to)).is_err(), "{to}");
        }
        let many = format!("[{}]", (0..101).map(|n| format!("\"c{n}\"")).collect::<Vec<_>>().join(","));
        assert_eq!(registration(&GOOD.replace(r#"["code"]"#, &many)).unwrap_err(), "capabilities");
    }

    #[test]
    fn metadata_merges_and_guards_its_keys() {
        let limits = Limits::default();
        let json = |text: &str| serde_json::from_str::<Json>(text).unwrap();
        let merged =
            merge_metadata(&json(r#"{"a":1,"b":2}"#), &json(r#"{"b":null,"c":[3]}"#), &limits).unwrap();
        assert_eq!(merged.as_str(), r#"{"a":1,"c":[3]}"#);
        for key in PROTECTED_KEYS {
            let forged = json(&format!("{{\"{key}\":5}}"));
            assert!(merge_metadata(&json("{}"), &forged, &limits).is_err(), "{key}");
        }
        let large = json(&format!("{{\"a\":\"{}\"}}", "x".repeat(3_000)));
        let other = json(&format!("{{\"b\":\"{}\"}}", "x".repeat(3_000)));
        assert!(merge_metadata(&large, &other, &limits).is_err(), "the merged size counts");
    }

    #[test]
    fn reputation_follows_outcomes() {
        assert!((reputation(8, 0) - 4.5).abs() < 1e-9);
        assert!((reputation(0, 8) - 0.5).abs() < 1e-9);
        assert!(AgentStatus::parse("banned").is_some_and(|status| !status.may_connect()));
        assert!(!AgentStatus::Inactive.is_discoverable() && AgentStatus::Inactive.may_connect());
    }
}
