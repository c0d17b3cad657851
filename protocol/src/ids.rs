//! Identifiers. Records carry a UUIDv7 (sortable by creation, hence cheap to index); secrets are not ids.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::time::Timestamp;

/// Random bytes a new id needs.
pub type IdEntropy = [u8; 10];

macro_rules! record_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A UUIDv7 from the time and randomness given.
            #[must_use]
            pub fn new(now: Timestamp, entropy: IdEntropy) -> Self {
                Self(uuid::Builder::from_unix_timestamp_millis(now.unix_ms_unsigned(), &entropy).into_uuid())
            }

            /// The 16 bytes, for a store column.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// Reads what [`Self::as_bytes`] gave.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            /// Accepts only the canonical hyphenated lower-case form, so that one record has one name in topics.
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let id = Uuid::try_parse(text).map_err(|_| InvalidId)?;
                let mut canonical = Uuid::encode_buffer();
                if id.hyphenated().encode_lower(&mut canonical) != text {
                    return Err(InvalidId);
                }
                Ok(Self(id))
            }
        }
    };
}

/// The text is not a record id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid id")]
pub struct InvalidId;

record_id!(
    /// An agent.
    AgentId
);
record_id!(
    /// A user: the person or company who hires agents or owns them.
    UserId
);
record_id!(
    /// A task.
    TaskId
);
record_id!(
    /// A hiring.
    HiringId
);
record_id!(
    /// An API key, user token or session: the handle by which it is listed and revoked, never the secret itself.
    CredentialId
);
record_id!(
    /// A message: from one agent to another, or about a task or a hiring.
    MessageId
);
record_id!(
    /// A negotiation between two agents.
    NegotiationId
);
record_id!(
    /// What a negotiation has ended in.
    AgreementId
);
record_id!(
    /// A payment channel between two agents.
    PaymentChannelId
);
record_id!(
    /// A webhook.
    WebhookId
);
record_id!(
    /// An event on its way to a webhook: the same for every try, so that its receiver knows it again.
    DeliveryId
);
record_id!(
    /// An entry of the ledger.
    LedgerEntryId
);

record_id!(
    /// A team.
    TeamId
);
record_id!(
    /// What a team keeps: a message, knowledge, an escalation, how a vote ended.
    EntryId
);
record_id!(
    /// A vote of a team.
    VoteId
);

impl EntryId {
    /// The id that sorts right behind this one.
    #[must_use]
    pub const fn successor(self) -> Self {
        Self(Uuid::from_u128(self.0.as_u128().wrapping_add(1)))
    }
}

impl PaymentChannelId {
    /// The one that a request under a key opens: a UUID of version 8 from its hash.
    #[must_use]
    pub fn of_request(hash: [u8; 32]) -> Self {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(hash) {
            *to = from;
        }
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_round_trip() {
        let early = TaskId::new(Timestamp::from_unix_ms(1_000), [0xff; 10]);
        let late = TaskId::new(Timestamp::from_unix_ms(1_001), [0; 10]);
        assert!(early < late);
        assert_eq!(early.to_string().parse::<TaskId>(), Ok(early));
        assert_eq!(TaskId::from_bytes(*early.as_bytes()), early);
    }

    #[test]
    fn only_the_canonical_form_is_an_id() {
        let id = TaskId::new(Timestamp::from_unix_ms(1_764_000_000_000), [0xab; 10]).to_string();
        for bad in [id.to_uppercase(), id.replace('-', ""), format!("{{{id}}}"), String::new(), "x".into()] {
            assert_eq!(bad.parse::<TaskId>(), Err(InvalidId), "{bad}");
        }
    }
}
