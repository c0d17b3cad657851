//! Payment channels (agrenting.md L, R92 to R100): two agents put money in, and move it between their sides by transfers
//! that both have signed, one after another. Pure: time and ids are arguments, and nothing is read or written.
//!
//! # Layout
//! * this file: the record, and what is shown of it
//! * [`request`]: what is sent to it
//! * [`machine`]: what each command does to it

pub mod machine;
pub mod request;

use std::collections::BTreeMap;

use request::OpenRequest;
use serde::{Deserialize, Serialize};

use crate::agent::{check_other, text_forms};
use crate::error_code::{ErrorCode, Refusal};
use crate::ids::{AgentId, PaymentChannelId};
use crate::json::Json;
use crate::ledger::{ChannelAccounts, Entry, Side};
use crate::money::Amount;
use crate::signing::PublicKey;
use crate::signing::statement::Transfer;
use crate::time::Timestamp;

/// Where a payment channel is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChannelStatus {
    /// Opened by one; the other has not accepted.
    Pending,
    /// Transfers can be made.
    Open,
    /// Nothing moves until the operator has resolved it.
    Disputed,
    /// Paid out; final.
    Closed,
    /// Never accepted, and given back; final.
    Expired,
    /// Taken back or declined before it was accepted, and given back; final.
    Cancelled,
}

text_forms!(ChannelStatus {
    Pending = "pending",
    Open = "open",
    Disputed = "disputed",
    Closed = "closed",
    Expired = "expired",
    Cancelled = "cancelled",
});

/// A transfer that waits for the other side's signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// Which transfer of the channel.
    pub nonce: u64,
    /// How much.
    pub amount: Amount,
    /// Who pays.
    pub from: AgentId,
    /// The payer's, over `statement`.
    pub signature: String,
    /// What the payer signed, byte for byte.
    pub statement: String,
    /// When.
    pub proposed_at: Timestamp,
    /// From then on it cannot be acknowledged any more (R95).
    pub lapses_at: Timestamp,
}

/// A transfer that both sides have signed: the state they agree on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoSigned {
    /// Which transfer of the channel.
    pub nonce: u64,
    /// How much.
    pub amount: Amount,
    /// Who paid.
    pub from: AgentId,
    /// Who was paid.
    pub to: AgentId,
    /// What the payer signed, byte for byte.
    pub propose_statement: String,
    /// The payer's signature over that.
    pub propose_signature: String,
    /// What the payee signed, byte for byte.
    pub ack_statement: String,
    /// The payee's signature over that.
    pub ack_signature: String,
    /// When it was executed.
    pub at: Timestamp,
}

/// Why nothing moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispute {
    /// Who disputes.
    pub agent_id: AgentId,
    /// In a sentence.
    pub reason: String,
    /// What is to show it.
    pub evidence: Json,
    /// When.
    pub at: Timestamp,
}

/// How it was closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closing {
    /// What both signed, byte for byte; none when the operator decided.
    pub statement: Option<String>,
    /// The opener's signature over that.
    pub signature_a: Option<String>,
    /// The other's.
    pub signature_b: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// A payment channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    /// Id.
    pub id: PaymentChannelId,
    /// Rises with each change: by this a store tells whether it has changed.
    pub version: u64,
    /// State.
    pub status: ChannelStatus,
    /// Who opened it.
    pub agent_a: AgentId,
    /// The other.
    pub agent_b: AgentId,
    /// Key of `agent_a` as it was when the channel was opened: what it has signed stays valid for the channel's life,
    /// whatever becomes of the key elsewhere.
    #[serde(with = "key_text")]
    pub key_a: PublicKey,
    /// The same of `agent_b`, since it accepted.
    #[serde(with = "optional_key_text")]
    pub key_b: Option<PublicKey>,
    /// What `agent_b` is to put in.
    pub deposit_b: Amount,
    /// What `agent_a` has in it.
    pub balance_a: Amount,
    /// What `agent_b` has in it.
    pub balance_b: Amount,
    /// Of the last transfer that was executed or burnt; 0 at first.
    pub nonce: u64,
    /// What waits for a signature.
    pub pending: Option<Proposal>,
    /// The last transfer that both have signed.
    pub last: Option<CoSigned>,
    /// Why it was disputed, if it was.
    pub dispute: Option<Dispute>,
    /// How it was closed, if it is.
    pub closing: Option<Closing>,
    /// Until when the other side can accept.
    pub accept_until: Timestamp,
    /// Creation.
    pub created_at: Timestamp,
    /// Last change.
    pub updated_at: Timestamp,
}

mod key_text {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::signing::PublicKey;

    pub fn serialize<S: Serializer>(key: &PublicKey, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&key.to_base64())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PublicKey, D::Error> {
        PublicKey::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

mod optional_key_text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::signing::PublicKey;

    pub fn serialize<S: Serializer>(key: &Option<PublicKey>, serializer: S) -> Result<S::Ok, S::Error> {
        key.as_ref().map(PublicKey::to_base64).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PublicKey>, D::Error> {
        let text: Option<String> = Option::deserialize(deserializer)?;
        text.map(|text| PublicKey::parse(&text)).transpose().map_err(serde::de::Error::custom)
    }
}

impl OpenRequest {
    /// The channel it becomes, and the entry that holds the opener's deposit, if there is one to hold.
    ///
    /// # Errors
    /// The opener has no key, or names itself; nothing would be in the channel, or more than can be counted.
    pub fn open(
        &self,
        (id, opener, key): (PaymentChannelId, AgentId, Option<PublicKey>),
        now: Timestamp,
        accept_until: Timestamp,
    ) -> Result<(Channel, Option<Entry>), Refusal> {
        let key_a = key.ok_or(ErrorCode::NoPublicKey)?;
        check_other(opener, (self.counterparty_agent_id, "counterparty_agent_id"))?;
        let deposit_b = self.counterparty_deposit.unwrap_or_default();
        let total = self.deposit.micros().checked_add(deposit_b.micros());
        if total.is_none_or(|total| total == 0) {
            return Err(Refusal::field(
                ErrorCode::InvalidAmount,
                "deposit",
                "both deposits together are more than nothing, and can be counted",
            ));
        }
        let channel = Channel {
            id: self.channel_id.unwrap_or(id),
            version: 1,
            status: ChannelStatus::Pending,
            agent_a: opener,
            agent_b: self.counterparty_agent_id,
            key_a,
            key_b: None,
            deposit_b,
            balance_a: self.deposit,
            balance_b: Amount::ZERO,
            nonce: 0,
            pending: None,
            last: None,
            dispute: None,
            closing: None,
            accept_until,
            created_at: now,
            updated_at: now,
        };
        let entry = channel.accounts().deposit(Side::A, self.deposit, now);
        Ok((channel, entry))
    }
}

impl Channel {
    /// Which side an agent is; none when it is no party.
    #[must_use]
    pub fn side_of(&self, agent: AgentId) -> Option<Side> {
        if agent == self.agent_a {
            Some(Side::A)
        } else if agent == self.agent_b {
            Some(Side::B)
        } else {
            None
        }
    }

    /// The agent of a side.
    #[must_use]
    pub const fn agent(&self, side: Side) -> AgentId {
        match side {
            Side::A => self.agent_a,
            Side::B => self.agent_b,
        }
    }

    /// What a side has.
    #[must_use]
    pub const fn balance(&self, side: Side) -> Amount {
        match side {
            Side::A => self.balance_a,
            Side::B => self.balance_b,
        }
    }

    /// What both have together, in micro-units: the same until it is paid out (R98).
    #[must_use]
    pub fn total(&self) -> i64 {
        self.balance_a.micros().saturating_add(self.balance_b.micros())
    }

    /// When something is due, if nobody does anything before.
    #[must_use]
    pub fn due_at(&self) -> Option<Timestamp> {
        match self.status {
            ChannelStatus::Pending => Some(self.accept_until),
            ChannelStatus::Open => self.pending.as_ref().map(|pending| pending.lapses_at),
            _ => None,
        }
    }

    /// Its accounts in the ledger.
    #[must_use]
    pub const fn accounts(&self) -> ChannelAccounts {
        ChannelAccounts { channel: self.id, agent_a: self.agent_a, agent_b: self.agent_b }
    }

    const fn key(&self, side: Side) -> Option<PublicKey> {
        match side {
            Side::A => Some(self.key_a),
            Side::B => self.key_b,
        }
    }

    /// The balances after a transfer; none when the payer has less.
    fn balances_after(&self, from: Side, amount: Amount) -> Option<(Amount, Amount)> {
        let micros = match from {
            Side::A => amount.micros(),
            Side::B => -amount.micros(),
        };
        let a = self.balance_a.micros().checked_sub(micros).and_then(Amount::from_micros)?;
        let b = self.balance_b.micros().checked_add(micros).and_then(Amount::from_micros)?;
        Some((a, b))
    }

    /// What payer and payee sign for a transfer; none when the payer has less.
    #[must_use]
    pub fn statements(&self, from: Side, amount: Amount, nonce: u64) -> Option<(String, String)> {
        let balances = self.balances_after(from, amount)?;
        let (payer, payee) = (self.agent(from), self.agent(from.other()));
        let transfer = Transfer { channel: &self.id, nonce, from: &payer, to: &payee, amount, balances };
        Some((transfer.propose(), transfer.acknowledge()))
    }

    /// What its parties see (R93).
    #[must_use]
    pub fn view(&self) -> ChannelView<'_> {
        let mut public_keys = BTreeMap::from([(self.agent_a.to_string(), self.key_a.to_base64())]);
        if let Some(key_b) = &self.key_b {
            public_keys.insert(self.agent_b.to_string(), key_b.to_base64());
        }
        ChannelView {
            id: self.id,
            agent_a: self.agent_a,
            agent_b: self.agent_b,
            balance_a: self.balance_a,
            balance_b: self.balance_b,
            nonce: self.nonce,
            status: self.status,
            pending: self.pending.as_ref().map(|pending| PendingView {
                nonce: pending.nonce,
                amount: pending.amount,
                from: pending.from,
                to: if pending.from == self.agent_a { self.agent_b } else { self.agent_a },
                signature: &pending.signature,
                statement: &pending.statement,
                proposed_at: pending.proposed_at,
                lapses_at: pending.lapses_at,
            }),
            public_keys,
            counterparty_deposit: self.deposit_b,
            last_co_signed: self.last.as_ref().map(Json::of),
            dispute: self.dispute.as_ref().map(Json::of),
            closing: self.closing.as_ref().map(Json::of),
            accept_until: self.accept_until,
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

/// A payment channel as its parties see it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the public API")]
pub struct ChannelView<'a> {
    pub id: PaymentChannelId,
    /// Who opened it.
    pub agent_a: AgentId,
    pub agent_b: AgentId,
    pub balance_a: Amount,
    pub balance_b: Amount,
    /// Of the last transfer that was executed or burnt; the next one is one more.
    pub nonce: u64,
    pub status: ChannelStatus,
    pub pending: Option<PendingView<'a>>,
    /// By agent: with what each signs in this channel.
    pub public_keys: BTreeMap<String, String>,
    /// What `agent_b` puts in when it accepts.
    pub counterparty_deposit: Amount,
    /// The last transfer, with both signatures and what was signed, byte for byte.
    pub last_co_signed: Option<Json>,
    pub dispute: Option<Json>,
    pub closing: Option<Json>,
    /// Until when `agent_b` can accept.
    pub accept_until: Timestamp,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A transfer that waits for the other side's signature.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the public API")]
pub struct PendingView<'a> {
    pub nonce: u64,
    pub amount: Amount,
    pub from: AgentId,
    pub to: AgentId,
    pub signature: &'a str,
    /// What the payer signed, byte for byte.
    pub statement: &'a str,
    pub proposed_at: Timestamp,
    pub lapses_at: Timestamp,
}

#[cfg(test)]
mod tests;
