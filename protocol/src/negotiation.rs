//! Negotiations: two agents offer each other amounts by turns until one accepts the middle (agrenting.md K, R134 to R136).
//!
//! [`Negotiation`] is all there is to know of one, [`Negotiation::decide`] what a command does to it. Pure: time, ids and
//! the server's key are arguments.

pub mod agreement;
mod opening;
pub mod request;
mod view;

use serde::{Deserialize, Serialize};

use self::agreement::{Acceptance, Agreement};
pub use self::opening::Opening;
pub use self::view::View;
use crate::agent::text_forms;
use crate::error_code::{ErrorCode, Refusal};
use crate::ids::{AgentId, AgreementId, NegotiationId, TaskId};
use crate::json::Json;
use crate::limits::Limits;
use crate::money::Amount;
use crate::signing::statement::{self, Digest};
use crate::signing::{PublicKey, ServerKey};
use crate::time::Timestamp;

/// Rules that are open to choice, under `[negotiation]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Whether who made the latest offer may accept too (R88). Then one side can bind the other to the mean of its own low
    /// offer and the other's.
    pub allow_self_accept: bool,
    /// Offers of one negotiation, the first included (R85).
    pub rounds_max: usize,
    /// How long a negotiation lasts from its beginning, in milliseconds (R86).
    pub timeout_ms: i64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { allow_self_accept: false, rounds_max: 10, timeout_ms: 1_800_000 }
    }
}

/// A side of a negotiation.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Who wants something done.
    Client,
    /// Who would do it.
    Provider,
}

text_forms!(Side { Client = "client", Provider = "provider" });

impl Side {
    /// The side across.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Provider,
            Self::Provider => Self::Client,
        }
    }
}

/// Where a negotiation stands. All but the first are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = NegotiationStatus)]
pub enum Status {
    /// Offers are made.
    Open,
    /// There is an agreement.
    Accepted,
    /// A side has ended it.
    Rejected,
    /// Its time or its rounds are over.
    Expired,
}

text_forms!(Status { Open = "open", Accepted = "accepted", Rejected = "rejected", Expired = "expired" });

/// Who stands on a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Party {
    /// The agent.
    pub agent: AgentId,
    /// The key it signs with in this negotiation: the one it had at the start or, if it had none, at its first signed
    /// move. A key that it gets later counts for later negotiations.
    pub key: Option<PublicKey>,
}

/// An offer that was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Offer {
    /// Whose.
    pub agent_id: AgentId,
    /// Which of all, from 1.
    pub round: u32,
    /// Which of this agent's, from 1: it is in what is signed.
    pub offer_no: u32,
    /// How much.
    pub amount: Amount,
    /// As it was sent; none for a first proposal that was not signed.
    pub signature: Option<String>,
    /// The text that is signed.
    pub statement: String,
    /// When it was taken.
    pub at: Timestamp,
}

/// All there is to know of a negotiation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiation {
    /// Its name, which the one who opens it may choose (R134).
    pub id: NegotiationId,
    /// By which lists are ordered, as the name need not say when it began.
    pub listed_as: NegotiationId,
    /// One more with every change.
    pub version: u64,
    /// Who wants something done.
    pub client: Party,
    /// Who would do it.
    pub provider: Party,
    /// Who made the first proposal.
    pub opened_by: Side,
    /// What it is about, if that exists already.
    pub task: Option<TaskId>,
    /// The provider's, as it was at the start.
    pub base_price: Amount,
    /// What else is agreed: a JSON object.
    pub terms: Json,
    /// Of the canonical form of the terms.
    pub terms_sha256: Digest,
    /// All that were taken, in order.
    pub offers: Vec<Offer>,
    /// Where it stands.
    pub status: Status,
    /// When it began.
    pub created_at: Timestamp,
    /// When it is over if nobody ends it before.
    pub expires_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
    /// Who rejected or accepted.
    pub ended_by: Option<AgentId>,
    /// Why it was rejected.
    pub reason: Option<String>,
    /// What it has ended in.
    pub agreement: Option<AgreementId>,
}

/// What somebody wants to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Makes an offer.
    Offer {
        /// Who.
        by: AgentId,
        /// How much.
        amount: Amount,
        /// Of [`statement::offer`].
        signature: Option<String>,
        /// The agent's key as it is now: taken if it had none at the start.
        key: Option<PublicKey>,
    },
    /// Accepts the mean of both sides' latest offers.
    Accept {
        /// Who.
        by: AgentId,
        /// How much that is; what is expected when absent.
        amount: Option<Amount>,
        /// Of [`statement::accept`].
        signature: Option<String>,
        /// As for an offer.
        key: Option<PublicKey>,
        /// What the agreement will be called.
        agreement: AgreementId,
    },
    /// Ends it.
    Reject {
        /// Who.
        by: AgentId,
        /// Why.
        reason: Option<String>,
    },
    /// Looks whether its time is over.
    Expire,
}

/// What has happened.
#[derive(Clone, Debug)]
pub enum Happened {
    /// An offer was taken: the last one.
    Offered,
    /// There is an agreement.
    Accepted(Box<Agreement>),
    /// A side has ended it.
    Rejected,
    /// Its time or its rounds are over.
    Expired,
}

/// What changes.
#[derive(Clone, Debug)]
pub struct Change {
    /// What it is from now on.
    pub after: Negotiation,
    /// What has happened.
    pub happened: Happened,
}

/// What comes of a command. A refusal can change something too.
#[derive(Clone, Debug)]
pub struct Step {
    /// What changes, if anything does.
    pub change: Option<Change>,
    /// Why it is refused, if it is.
    pub answer: Result<(), Refusal>,
}

impl Step {
    fn changed(after: Negotiation, happened: Happened) -> Self {
        Self { change: Some(Change { after, happened }), answer: Ok(()) }
    }

    fn refused(refusal: impl Into<Refusal>) -> Self {
        Self { change: None, answer: Err(refusal.into()) }
    }
}

impl From<Result<(Negotiation, Happened), Refusal>> for Step {
    fn from(decided: Result<(Negotiation, Happened), Refusal>) -> Self {
        decided.map_or_else(Self::refused, |(after, happened)| Self::changed(after, happened))
    }
}

/// Checks why something is rejected.
///
/// # Errors
/// Too long, or with a character that no store keeps.
pub fn check_reason(reason: Option<&str>, limits: &Limits) -> Result<(), Refusal> {
    let chars_max = limits.negotiation_reason_chars_max;
    if reason.is_some_and(|reason| reason.chars().count() > chars_max || reason.contains('\0')) {
        let message = format!("at most {chars_max} characters, none of them U+0000");
        return Err(Refusal::field(ErrorCode::InvalidPayload, "reason", message));
    }
    Ok(())
}

fn check_amount(amount: Amount, base_price: Amount) -> Result<(), Refusal> {
    let max = base_price.doubled();
    if amount > max {
        return Err(Refusal::new(ErrorCode::AmountExceedsMaximum).with("max", &max));
    }
    Ok(())
}

fn verify(key: Option<PublicKey>, statement: &str, signature: Option<&str>) -> Result<PublicKey, Refusal> {
    let key = key.ok_or(ErrorCode::NoPublicKey)?;
    match signature {
        Some(signature) => key.verify(statement, signature).map(|()| key),
        None => Err(Refusal::field(ErrorCode::InvalidSignature, "signature", "is missing")),
    }
}

impl Negotiation {
    /// On which side an agent stands.
    #[must_use]
    pub fn side_of(&self, agent: AgentId) -> Option<Side> {
        [Side::Client, Side::Provider].into_iter().find(|side| self.party(*side).agent == agent)
    }

    /// Who stands on a side.
    #[must_use]
    pub const fn party(&self, side: Side) -> &Party {
        match side {
            Side::Client => &self.client,
            Side::Provider => &self.provider,
        }
    }

    /// What a side offered last.
    #[must_use]
    pub fn latest(&self, side: Side) -> Option<&Offer> {
        let agent = self.party(side).agent;
        self.offers.iter().rev().find(|offer| offer.agent_id == agent)
    }

    /// Where it stands: what is not marked as over yet may be.
    #[must_use]
    pub fn status_at(&self, now: Timestamp) -> Status {
        if self.is_due(now) { Status::Expired } else { self.status }
    }

    fn is_due(&self, now: Timestamp) -> bool {
        self.status == Status::Open && now >= self.expires_at
    }

    fn own_offers(&self, side: Side) -> u32 {
        self.latest(side).map_or(0, |offer| offer.offer_no)
    }

    /// What a side would sign for its next offer (R137).
    #[must_use]
    pub fn next_statement(&self, side: Side, amount: Amount) -> String {
        let agent = self.party(side).agent;
        statement::offer(&self.id, &agent, self.own_offers(side) + 1, amount, self.terms_sha256)
    }

    fn add_offer(
        &mut self,
        side: Side,
        (amount, signature, statement): (Amount, Option<String>, String),
        at: Timestamp,
    ) {
        self.offers.push(Offer {
            agent_id: self.party(side).agent,
            round: u32::try_from(self.offers.len() + 1).unwrap_or(u32::MAX),
            offer_no: self.own_offers(side) + 1,
            amount,
            signature,
            statement,
            at,
        });
    }

    fn changed(&self, now: Timestamp) -> Self {
        Self { version: self.version + 1, updated_at: now, ..self.clone() }
    }

    fn expired(&self, now: Timestamp) -> Change {
        let after = Self { status: Status::Expired, ..self.changed(now) };
        Change { after, happened: Happened::Expired }
    }

    /// With the key that a side has just signed with.
    fn keyed(mut self, side: Side, key: PublicKey) -> Self {
        match side {
            Side::Client => self.client.key = Some(key),
            Side::Provider => self.provider.key = Some(key),
        }
        self
    }

    /// What a command does. What is over when the command comes is marked so, whatever it was (R86).
    #[must_use]
    pub fn decide(&self, command: &Command, settings: &Settings, server: &ServerKey, now: Timestamp) -> Step {
        let by = match command {
            Command::Offer { by, .. } | Command::Accept { by, .. } | Command::Reject { by, .. } => *by,
            Command::Expire => {
                return Step { change: self.is_due(now).then(|| self.expired(now)), answer: Ok(()) };
            }
        };
        let Some(side) = self.side_of(by) else { return Step::refused(ErrorCode::Forbidden) };
        if self.is_due(now) {
            return Step { change: Some(self.expired(now)), answer: Err(ErrorCode::SessionExpired.into()) };
        }
        match self.status {
            Status::Open => {}
            Status::Expired => return Step::refused(ErrorCode::SessionExpired),
            Status::Accepted | Status::Rejected => {
                return Step::refused(Refusal::wrong_status(ErrorCode::SessionNotOpen, self.status.as_str()));
            }
        }
        match command {
            Command::Offer { amount, signature, key, .. } => {
                self.offer(side, (*amount, signature.as_ref(), *key), settings, now)
            }
            Command::Accept { amount, signature, key, agreement, .. } => {
                let signed = (*amount, signature.as_ref(), *key);
                self.accept(side, signed, (*agreement, server), settings, now).into()
            }
            Command::Reject { reason, .. } => {
                let ended = Self { status: Status::Rejected, ended_by: Some(by), ..self.changed(now) };
                Step::changed(Self { reason: reason.clone(), ..ended }, Happened::Rejected)
            }
            Command::Expire => Step { change: None, answer: Ok(()) },
        }
    }

    /// R81 to R85.
    fn offer(
        &self,
        side: Side,
        (amount, signature, key): (Amount, Option<&String>, Option<PublicKey>),
        settings: &Settings,
        now: Timestamp,
    ) -> Step {
        let statement = self.next_statement(side, amount);
        let verified = check_amount(amount, self.base_price)
            .and_then(|()| verify(self.party(side).key.or(key), &statement, signature.map(String::as_str)));
        let key = match verified {
            Ok(key) => key,
            Err(refusal) => return Step::refused(refusal),
        };
        // Only an offer that would count ends it: what is refused for itself changes nothing.
        if self.offers.len() >= settings.rounds_max {
            let answer = Err(ErrorCode::RoundLimitReached.into());
            return Step { change: Some(self.expired(now)), answer };
        }
        let mut after = self.changed(now).keyed(side, key);
        after.add_offer(side, (amount, signature.cloned(), statement), now);
        Step::changed(after, Happened::Offered)
    }

    /// R87 to R89.
    fn accept(
        &self,
        side: Side,
        (amount, signature, key): (Option<Amount>, Option<&String>, Option<PublicKey>),
        (id, server): (AgreementId, &ServerKey),
        settings: &Settings,
        now: Timestamp,
    ) -> Result<(Self, Happened), Refusal> {
        let by = self.party(side).agent;
        let key = self.party(side).key.or(key).ok_or(ErrorCode::NoPublicKey)?;
        let signed = |side| self.latest(side).filter(|offer| offer.signature.is_some());
        let offers = signed(Side::Client).zip(signed(Side::Provider)).ok_or(ErrorCode::OffersIncomplete)?;
        let is_own = self.offers.last().is_some_and(|latest| latest.agent_id == by);
        if is_own && !settings.allow_self_accept {
            return Err(ErrorCode::CannotAcceptOwnMove.into());
        }
        let expected = offers.0.amount.mean(offers.1.amount);
        if amount.is_some_and(|amount| amount != expected) {
            return Err(Refusal::new(ErrorCode::AmountMismatch).with("expected", &expected));
        }
        let amounts = (offers.0.amount, offers.1.amount);
        let statement = statement::accept(&self.id, &by, expected, amounts, self.terms_sha256);
        verify(Some(key), &statement, signature.map(String::as_str))?;
        let accept =
            Acceptance { agent_id: by, signature: signature.cloned().unwrap_or_default(), statement };
        let mut after = self.changed(now).keyed(side, key);
        let agreement = Agreement::conclude(&after, offers, (expected, accept), (id, server), now)?;
        (after.status, after.ended_by, after.agreement) = (Status::Accepted, Some(by), Some(id));
        Ok((after, Happened::Accepted(Box::new(agreement))))
    }
}

#[cfg(test)]
mod tests;
