//! Messages from one agent to another: what senders write, what is kept, and what clients see of it (agrenting.md N, O).
//!
//! # Layout
//! * this file: a message, its states, and what a sender asks for
//! * [`kinds`]: the types whose payloads are checked

pub mod kinds;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::agent::text_forms;
use crate::error_code::{ErrorCode, Refusal};
use crate::ids::{AgentId, MessageId};
use crate::json::Json;
use crate::limits::Limits;
use crate::protocol_version::{Deprecation, InvalidVersion, Version};
use crate::signing::statement::Digest;
use crate::time::Timestamp;

/// How sure a sender wants to be (R118).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// Pushed once, and done.
    AtMostOnce,
    /// Pushed again until it is acknowledged.
    AtLeastOnce,
    /// The same, and a sender that repeats it under one key has it once; its acknowledgement is the end of it.
    ExactlyOnce,
}

text_forms!(Guarantee {
    AtMostOnce = "at_most_once",
    AtLeastOnce = "at_least_once",
    ExactlyOnce = "exactly_once",
});

/// Where a message is (R116).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MessageStatus {
    /// It waits for its recipient.
    Queued,
    /// It was pushed.
    Delivered,
    /// The recipient has it, and says so.
    Acknowledged,
    /// The recipient does not want it.
    Rejected,
    /// It was pushed as often as may be, and never acknowledged: a dead letter.
    Failed,
    /// It was kept as long as it is kept.
    Expired,
}

text_forms!(MessageStatus {
    Queued = "queued",
    Delivered = "delivered",
    Acknowledged = "acknowledged",
    Rejected = "rejected",
    Failed = "failed",
    Expired = "expired",
});

impl MessageStatus {
    /// Whether the recipient may still acknowledge or reject it: also one that was given up, for it may have come all the
    /// same.
    #[must_use]
    pub const fn may_be_settled(self) -> bool {
        matches!(self, Self::Queued | Self::Delivered | Self::Failed)
    }

    /// What becomes of it when it is not kept any longer (R122): what the recipient has said stands, and so does what was
    /// to be pushed once and was; everything else was never received.
    #[must_use]
    pub const fn when_over(self, guarantee: Guarantee) -> Self {
        match self {
            Self::Acknowledged | Self::Rejected => self,
            Self::Delivered if matches!(guarantee, Guarantee::AtMostOnce) => self,
            _ => Self::Expired,
        }
    }
}

/// What a recipient says of a message (R112).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has it.
    Acknowledged,
    /// It does not want it, and why.
    Rejected(Option<String>),
}

impl Verdict {
    /// The state it leads to.
    #[must_use]
    pub const fn status(&self) -> MessageStatus {
        match self {
            Self::Acknowledged => MessageStatus::Acknowledged,
            Self::Rejected(_) => MessageStatus::Rejected,
        }
    }

    /// A rejection.
    ///
    /// # Errors
    /// The reason is longer than it may be, or has control characters.
    pub fn rejected(reason: Option<String>, limits: &Limits) -> Result<Self, Refusal> {
        let chars_max = limits.message_reason_chars_max;
        let fits = |reason: &String| {
            let plain = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
            reason.chars().count() <= chars_max && reason.chars().all(plain)
        };
        if reason.as_ref().is_none_or(fits) {
            return Ok(Self::Rejected(reason.filter(|reason| !reason.is_empty())));
        }
        let message = format!("at most {chars_max} characters, no control characters");
        Err(Refusal::field(ErrorCode::InvalidPayload, "reason", message))
    }
}

/// A message as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Id.
    pub id: MessageId,
    /// Sender.
    pub from: AgentId,
    /// Recipient.
    pub to: AgentId,
    /// Sort of message.
    pub kind: String,
    /// A JSON object; none any more once it has expired.
    pub payload: Option<Json>,
    /// Protocol version of the two.
    pub version: String,
    /// How sure the sender wants to be.
    pub guarantee: Guarantee,
    /// The sender's own name for it.
    pub dedup_key: Option<String>,
    /// The sender's signature, as it came.
    pub signature: Option<String>,
    /// Where it is.
    pub status: MessageStatus,
    /// Why it was rejected.
    pub reason: Option<String>,
    /// Pushes after the first that were made because no acknowledgement came.
    pub retries: u32,
    /// When it was pushed first.
    pub delivered_at: Option<Timestamp>,
    /// When the recipient said something of it.
    pub acknowledged_at: Option<Timestamp>,
    /// When it was accepted.
    pub inserted_at: Timestamp,
    /// Until when it is kept.
    pub expires_at: Timestamp,
}

impl Message {
    /// As of a time: what is not kept any longer has expired, whether or not that has been written yet.
    #[must_use]
    pub fn as_of(self, now: Timestamp) -> Self {
        if now < self.expires_at {
            return self;
        }
        let status = self.status.when_over(self.guarantee);
        Self { status, payload: None, signature: None, ..self }
    }

    /// All there is to know, for its parties.
    #[must_use]
    pub fn view(&self) -> MessageView<'_> {
        MessageView {
            id: self.id,
            from_agent_id: self.from,
            to_agent_id: self.to,
            kind: &self.kind,
            payload: self.payload.as_ref(),
            protocol_version: &self.version,
            delivery_guarantee: self.guarantee,
            dedup_key: self.dedup_key.as_deref(),
            signature: self.signature.as_deref(),
            status: self.status,
            reason: self.reason.as_deref(),
            retry_count: self.retries,
            delivered_at: self.delivered_at,
            acknowledged_at: self.acknowledged_at,
            inserted_at: self.inserted_at,
            expires_at: self.expires_at,
        }
    }

    /// What becomes of it, for whoever asks only that (R116).
    #[must_use]
    pub fn status_view(&self) -> StatusView<'_> {
        StatusView {
            id: self.id,
            status: self.status,
            reason: self.reason.as_deref(),
            retry_count: self.retries,
            delivered_at: self.delivered_at,
            acknowledged_at: self.acknowledged_at,
        }
    }

    /// What its recipient is pushed (R111).
    #[must_use]
    pub fn push(&self) -> Json {
        #[derive(Serialize)]
        struct Push<'a> {
            id: MessageId,
            #[serde(rename = "type")]
            kind: &'a str,
            payload: Option<&'a Json>,
            from_agent_id: AgentId,
            protocol_version: &'a str,
            inserted_at: Timestamp,
            delivery_guarantee: Guarantee,
            retry_count: u32,
            #[serde(skip_serializing_if = "Option::is_none")]
            dedup_key: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            signature: Option<&'a str>,
        }
        Json::of(&Push {
            id: self.id,
            kind: &self.kind,
            payload: self.payload.as_ref(),
            from_agent_id: self.from,
            protocol_version: &self.version,
            inserted_at: self.inserted_at,
            delivery_guarantee: self.guarantee,
            retry_count: self.retries,
            dedup_key: self.dedup_key.as_deref(),
            signature: self.signature.as_deref(),
        })
    }
}

/// A message as its parties see it.
#[derive(Debug, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the public API")]
pub struct MessageView<'a> {
    pub id: MessageId,
    pub from_agent_id: AgentId,
    pub to_agent_id: AgentId,
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// `null` once it has expired.
    pub payload: Option<&'a Json>,
    pub protocol_version: &'a str,
    pub delivery_guarantee: Guarantee,
    pub dedup_key: Option<&'a str>,
    pub signature: Option<&'a str>,
    pub status: MessageStatus,
    /// Why it was rejected.
    pub reason: Option<&'a str>,
    pub retry_count: u32,
    pub delivered_at: Option<Timestamp>,
    pub acknowledged_at: Option<Timestamp>,
    pub inserted_at: Timestamp,
    pub expires_at: Timestamp,
}

/// What becomes of a message.
#[derive(Debug, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the public API")]
pub struct StatusView<'a> {
    pub id: MessageId,
    pub status: MessageStatus,
    /// Why it was rejected.
    pub reason: Option<&'a str>,
    pub retry_count: u32,
    pub delivered_at: Option<Timestamp>,
    pub acknowledged_at: Option<Timestamp>,
}

/// What a sender is told of a message that was accepted.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the public API")]
pub struct Receipt {
    pub id: MessageId,
    pub status: MessageStatus,
    pub protocol_version: String,
    pub delivery_guarantee: Guarantee,
    pub from_agent_id: AgentId,
    pub to_agent_id: AgentId,
    #[serde(rename = "type")]
    pub kind: String,
    pub inserted_at: Timestamp,
    /// Whether it is an earlier one of the same key: nothing was added.
    pub deduplicated: bool,
    /// That its protocol version is going away, if it is (R133).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deprecation: Option<Deprecation>,
}

impl Receipt {
    /// Of a message.
    #[must_use]
    pub fn of(message: &Message, deduplicated: bool) -> Self {
        Self {
            id: message.id,
            status: message.status,
            protocol_version: message.version.clone(),
            delivery_guarantee: message.guarantee,
            from_agent_id: message.from,
            to_agent_id: message.to,
            kind: message.kind.clone(),
            inserted_at: message.inserted_at,
            deduplicated,
            deprecation: None,
        }
    }
}

/// What a sender asks for (R114).
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct MessageRequest {
    /// Sender; the agent that asks when absent.
    #[serde(default)]
    pub from_agent_id: Option<AgentId>,
    /// Recipient.
    pub to_agent_id: AgentId,
    /// Sort of message.
    #[serde(rename = "type")]
    pub kind: String,
    /// A JSON object.
    pub payload: Json,
    /// Protocol version; the highest that both speak when absent.
    #[serde(default)]
    pub protocol_version: Option<String>,
    /// How sure; at least once when absent, and at most once under 1.0.0, which knows no other.
    #[serde(default)]
    pub delivery_guarantee: Option<Guarantee>,
    /// The sender's own name for it: under `exactly_once` a repeat gives the first message.
    #[serde(default)]
    pub dedup_key: Option<String>,
    /// Ed25519 signature over the message's statement; required under 2.0.0.
    #[serde(default)]
    pub signature: Option<String>,
}

impl MessageRequest {
    /// Checks what can be checked without asking who the two are (R115, R126).
    ///
    /// # Errors
    /// A field that does not fit.
    pub fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        let invalid = |field, message| Err(Refusal::field(ErrorCode::InvalidPayload, field, message));
        let chars_max = limits.message_type_chars_max;
        let chars = self.kind.chars().count();
        if chars == 0 || chars > chars_max || self.kind.chars().any(char::is_control) {
            return invalid("type", format!("from 1 to {chars_max} characters, no control characters"));
        }
        let bytes_max = limits.message_payload_bytes_max;
        if self.payload.as_bytes().len() > bytes_max {
            return invalid("payload", format!("at most {bytes_max} bytes of JSON"));
        }
        if self.payload.as_bytes().first() != Some(&b'{') {
            return invalid("payload", "an object".to_owned());
        }
        if let Some(key) = &self.dedup_key {
            check_key(key, limits)?;
        }
        if self.signature.as_ref().is_some_and(|signature| signature.len() > SIGNATURE_BYTES_MAX) {
            return Err(Refusal::field(ErrorCode::InvalidSignature, "signature", "64 bytes"));
        }
        kinds::check(&self.kind, &self.payload)
    }

    /// The guarantee under a version (R118, R132).
    ///
    /// # Errors
    /// 1.0.0 has no guarantees: at most once, and nothing else.
    pub fn guarantee_under(&self, version: Version) -> Result<Guarantee, Refusal> {
        match self.delivery_guarantee {
            guarantee if version >= Version::GUARANTEED => Ok(guarantee.unwrap_or(Guarantee::AtLeastOnce)),
            None | Some(Guarantee::AtMostOnce) => Ok(Guarantee::AtMostOnce),
            Some(_) => {
                let message = format!("protocol version {version} has at_most_once alone");
                Err(Refusal::field(ErrorCode::InvalidPayload, "delivery_guarantee", message))
            }
        }
    }

    /// The protocol version that is asked for, if one is.
    ///
    /// # Errors
    /// It is none.
    pub fn version(&self) -> Result<Option<Version>, Refusal> {
        let read = self.protocol_version.as_deref().map(str::parse).transpose();
        read.map_err(|error: InvalidVersion| {
            Refusal::field(ErrorCode::InvalidPayload, "protocol_version", error.to_string())
        })
    }

    /// By which a repeat under the same key is told from another message (R121).
    #[must_use]
    pub fn fingerprint(&self, from: AgentId) -> Digest {
        #[derive(Serialize)]
        struct Body<'a>(
            AgentId,
            AgentId,
            &'a str,
            &'a Json,
            Option<&'a str>,
            Option<Guarantee>,
            Option<&'a str>,
        );
        let body = Body(
            from,
            self.to_agent_id,
            &self.kind,
            &self.payload,
            self.protocol_version.as_deref(),
            self.delivery_guarantee,
            self.dedup_key.as_deref(),
        );
        Digest::of(Json::of(&body).as_bytes())
    }
}

/// Longest text of a signature: 64 bytes as hex.
const SIGNATURE_BYTES_MAX: usize = 128;

/// Checks a sender's name for a message.
///
/// # Errors
/// It is empty, too long, or has control characters.
pub fn check_key(key: &str, limits: &Limits) -> Result<(), Refusal> {
    let bytes_max = limits.idempotency_key_bytes_max;
    if key.is_empty() || key.len() > bytes_max || key.chars().any(char::is_control) {
        let message = format!("from 1 to {bytes_max} bytes, no control characters");
        return Err(Refusal::field(ErrorCode::InvalidPayload, "dedup_key", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(json: &str) -> MessageRequest {
        serde_json::from_str(json).unwrap()
    }

    fn with(more: &str) -> MessageRequest {
        let to = AgentId::from_bytes([2; 16]);
        request(&format!(r#"{{"to_agent_id":"{to}","type":"note","payload":{{"a":1}}{more}}}"#))
    }

    /// R115: the bounds of type and payload.
    #[test]
    fn what_does_not_fit_is_named() {
        let limits = Limits::default();
        assert_eq!(with("").check(&limits), Ok(()));
        let field = |request: MessageRequest| request.check(&limits).unwrap_err().field.unwrap();
        for kind in [String::new(), "x".repeat(65), "a\nb".into()] {
            assert_eq!(field(MessageRequest { kind, ..with("") }), "type");
        }
        assert_eq!(MessageRequest { kind: "é".repeat(64), ..with("") }.check(&limits), Ok(()));
        for payload in ["[]", "null", "7", "\"x\""] {
            assert_eq!(field(MessageRequest { payload: payload.parse_json(), ..with("") }), "payload");
        }
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(256 * 1024 - 8));
        assert_eq!(long.len(), 256 * 1024);
        assert_eq!(MessageRequest { payload: long.parse_json(), ..with("") }.check(&limits), Ok(()));
        let longer = format!(" {long}").replace(" {", "{ ");
        assert_eq!(field(MessageRequest { payload: longer.parse_json(), ..with("") }), "payload");
        for key in ["", &"k".repeat(129), "a\u{0}"] {
            assert_eq!(field(MessageRequest { dedup_key: Some(key.to_owned()), ..with("") }), "dedup_key");
        }
    }

    trait ParseJson {
        fn parse_json(&self) -> Json;
    }

    impl ParseJson for str {
        fn parse_json(&self) -> Json {
            serde_json::from_str(self).unwrap()
        }
    }

    /// R118 R132: at least once by default; 1.0.0 knows at most once alone.
    #[test]
    fn guarantees_depend_on_the_version() {
        use Guarantee::{AtLeastOnce, AtMostOnce, ExactlyOnce};
        assert_eq!(with("").guarantee_under(Version::CORE), Ok(AtMostOnce));
        assert_eq!(with("").guarantee_under(Version::GUARANTEED), Ok(AtLeastOnce));
        let once = with(r#","delivery_guarantee":"exactly_once""#);
        assert_eq!(once.guarantee_under(Version::SIGNED), Ok(ExactlyOnce));
        let refused = once.guarantee_under(Version::CORE).unwrap_err();
        assert_eq!(refused.field.unwrap(), "delivery_guarantee");
        let most = with(r#","delivery_guarantee":"at_most_once""#);
        for version in Version::SPOKEN {
            assert_eq!(most.guarantee_under(version), Ok(AtMostOnce));
        }
        assert_eq!(with(r#","protocol_version":"1.1.0""#).version(), Ok(Some(Version::GUARANTEED)));
        assert_eq!(with("").version(), Ok(None));
        assert!(with(r#","protocol_version":"1.1""#).version().is_err());
    }

    #[test]
    fn a_fingerprint_is_of_all_that_makes_a_message_another_one() {
        let from = AgentId::from_bytes([1; 16]);
        let of = |request: &MessageRequest| request.fingerprint(from);
        let first = with("");
        assert_eq!(of(&first), of(&with("")));
        // A signature may be made anew.
        assert_eq!(of(&first), of(&MessageRequest { signature: Some("x".into()), ..first.clone() }));
        for other in [
            MessageRequest { payload: "{\"a\":2}".parse_json(), ..first.clone() },
            MessageRequest { kind: "other".into(), ..first.clone() },
            MessageRequest { to_agent_id: from, ..first.clone() },
            MessageRequest { delivery_guarantee: Some(Guarantee::ExactlyOnce), ..first.clone() },
            MessageRequest { protocol_version: Some("1.1.0".into()), ..first.clone() },
        ] {
            assert_ne!(of(&first), of(&other), "{other:?}");
        }
        assert_ne!(of(&first), first.fingerprint(first.to_agent_id));
    }

    /// R122: what was said of a message stands; what was not received has expired.
    #[test]
    fn what_is_over_has_expired_unless_it_was_settled() {
        use MessageStatus::*;
        for (status, guarantee, after) in [
            (Queued, Guarantee::AtLeastOnce, Expired),
            (Delivered, Guarantee::ExactlyOnce, Expired),
            (Delivered, Guarantee::AtMostOnce, Delivered),
            (Failed, Guarantee::AtLeastOnce, Expired),
            (Acknowledged, Guarantee::AtLeastOnce, Acknowledged),
            (Rejected, Guarantee::AtMostOnce, Rejected),
        ] {
            assert_eq!(status.when_over(guarantee), after, "{status:?}");
        }
    }

    #[test]
    fn reasons_are_bounded() {
        let limits = Limits::default();
        assert_eq!(Verdict::rejected(Some(String::new()), &limits), Ok(Verdict::Rejected(None)));
        assert!(Verdict::rejected(Some("no\nthanks".into()), &limits).is_ok());
        assert!(Verdict::rejected(Some("x".repeat(1_001)), &limits).is_err());
        assert!(Verdict::rejected(Some("\u{0}".into()), &limits).is_err());
    }
}
