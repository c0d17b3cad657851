//! What each command does to a payment channel: the rules of R92 to R100, and nothing else.

use serde::Serialize;
use serde_json::json;

use super::request::{CloseRequest, Objection, Rejection, Resolution, SignedTransfer};
use super::{Channel, ChannelStatus, Closing, CoSigned, Dispute, Proposal};
use crate::error_code::{ErrorCode, Refusal};
use crate::ids::AgentId;
use crate::json::Json;
use crate::ledger::{Entry, Side};
use crate::money::Amount;
use crate::signing::{PublicKey, statement};
use crate::time::Timestamp;
use crate::topic::event;

/// What a party does.
#[derive(Clone, Debug)]
pub enum Action {
    /// The other side accepts, with this key.
    Accept(Option<PublicKey>),
    /// Takes back what was never accepted, as its opener, or declines it, as the other side.
    Cancel,
    /// Pays.
    Propose(SignedTransfer),
    /// Signs what the other side pays.
    Acknowledge(SignedTransfer),
    /// Does not take it, or takes it back.
    Reject(Rejection),
    /// Has the operator decide.
    Dispute(Objection),
    /// Shows that both want it closed.
    Close(CloseRequest),
}

/// What is asked of a channel.
#[derive(Clone, Debug)]
pub enum Command {
    /// A party does something.
    Party(AgentId, Action),
    /// The operator resolves a dispute.
    Resolve(Resolution),
    /// What is due is done.
    Due,
}

/// Who is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Both sides.
    Both,
    /// One.
    Only(Side),
}

/// What is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Whom.
    pub to: Audience,
    /// Name of the event.
    pub event: &'static str,
    /// What it carries.
    pub payload: Json,
}

/// A change: what is stored together, and told afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The channel from then on.
    pub after: Channel,
    /// What moves with it in the ledger.
    pub entry: Option<Entry>,
    /// What is told, in order.
    pub told: Vec<Told>,
}

/// Periods of a channel, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// How long a proposal can be acknowledged.
    pub proposal_ms: i64,
}

type Applied = Result<(Option<Step>, Json), Refusal>;

impl Channel {
    /// What a command does. What is due is done first, and stays done where the command itself is refused.
    pub fn decide(
        &self,
        command: &Command,
        now: Timestamp,
        periods: Periods,
    ) -> (Option<Step>, Result<Json, Refusal>) {
        let due = self.due(now);
        let current = due.as_ref().map_or(self, |step| &step.after);
        match current.apply(command, now, periods) {
            Ok((step, answer)) => (joined(due, step), Ok(answer)),
            Err(refusal) => (due, Err(refusal)),
        }
    }

    /// What has become due.
    fn due(&self, now: Timestamp) -> Option<Step> {
        if self.due_at().is_none_or(|due_at| now < due_at) {
            return None;
        }
        if self.status == ChannelStatus::Pending {
            return Some(self.given_back(ChannelStatus::Expired, now));
        }
        Some(self.burnt(None, Some("lapsed"), now))
    }

    fn apply(&self, command: &Command, now: Timestamp, periods: Periods) -> Applied {
        match command {
            Command::Due => Ok((None, Json::null())),
            Command::Resolve(resolution) => self.resolve(*resolution, now),
            Command::Party(agent, action) => {
                let side = self.side_of(*agent).ok_or(ErrorCode::Unauthorized)?;
                match action {
                    Action::Accept(key) => self.accept(side, *key, now),
                    Action::Cancel => self.cancel(now),
                    Action::Propose(transfer) => self.propose(side, transfer, now, periods),
                    Action::Acknowledge(transfer) => self.acknowledge(side, transfer, now),
                    Action::Reject(rejection) => self.reject(side, rejection, now),
                    Action::Dispute(objection) => self.object(side, objection, now),
                    Action::Close(request) => self.close(request, now),
                }
            }
        }
    }

    /// Transfers, disputes and closing need an open channel.
    fn check_open(&self) -> Result<(), Refusal> {
        match self.status {
            ChannelStatus::Open => Ok(()),
            ChannelStatus::Disputed => Err(ErrorCode::ChannelDisputed.into()),
            other => Err(Refusal::wrong_status(ErrorCode::ChannelNotOpen, other.as_str())),
        }
    }

    fn changed(&self, now: Timestamp) -> Self {
        Self { version: self.version + 1, updated_at: now, ..self.clone() }
    }

    fn accept(&self, side: Side, key: Option<PublicKey>, now: Timestamp) -> Applied {
        if side == Side::A {
            return Err(ErrorCode::Forbidden.into());
        }
        if self.status != ChannelStatus::Pending {
            return Err(Refusal::wrong_status(ErrorCode::ChannelNotOpen, self.status.as_str()));
        }
        let key = key.ok_or(ErrorCode::NoPublicKey)?;
        let after = Self {
            status: ChannelStatus::Open,
            key_b: Some(key),
            balance_b: self.deposit_b,
            ..self.changed(now)
        };
        let entry = self.accounts().deposit(Side::B, self.deposit_b, now);
        let payload = channel_payload(&after);
        let told = vec![Told { to: Audience::Both, event: event::CHANNEL_OPENED, payload: payload.clone() }];
        Ok((Some(Step { after, entry, told }), payload))
    }

    /// Either side's: the opener's money is locked until then, and the other owes nobody an hour's silence.
    fn cancel(&self, now: Timestamp) -> Applied {
        match self.status {
            ChannelStatus::Cancelled => Ok((None, channel_payload(self))),
            ChannelStatus::Pending => {
                let step = self.given_back(ChannelStatus::Cancelled, now);
                let answer = channel_payload(&step.after);
                Ok((Some(step), answer))
            }
            other => Err(Refusal::wrong_status(ErrorCode::ChannelNotOpen, other.as_str())),
        }
    }

    fn propose(&self, from: Side, transfer: &SignedTransfer, now: Timestamp, periods: Periods) -> Applied {
        self.check_open()?;
        let SignedTransfer { amount, nonce, signature } = transfer;
        if let Some(pending) = &self.pending {
            return Err(Refusal::new(ErrorCode::TransferPending).with("nonce", &pending.nonce));
        }
        self.check_nonce(*nonce, self.nonce + 1)?;
        if *amount == Amount::ZERO {
            return Err(Refusal::field(ErrorCode::InvalidAmount, "amount", "more than nothing"));
        }
        let short = || Refusal::new(ErrorCode::InsufficientBalance).with("available", &self.balance(from));
        // Everything that an acknowledgement could fail of is looked at here, before anybody signs it.
        let (statement, _) = self.statements(from, *amount, *nonce).ok_or_else(short)?;
        self.verify(from, &statement, signature)?;
        let lapses_at = now.plus_ms(periods.proposal_ms);
        let (payer, payee) = (self.agent(from), self.agent(from.other()));
        let balances = self.balances_after(from, *amount).ok_or_else(short)?;
        let told = Told {
            to: Audience::Only(from.other()),
            event: event::TRANSFER_PROPOSED,
            payload: Json::of(&json!({
                "channel_id": self.id, "nonce": nonce, "amount": amount, "from": payer, "to": payee,
                "balance_a": balances.0, "balance_b": balances.1, "signature": signature,
                "statement": statement, "lapses_at": lapses_at,
            })),
        };
        let answer = json!({ "nonce": nonce, "lapses_at": lapses_at });
        let pending = Proposal {
            nonce: *nonce,
            amount: *amount,
            from: payer,
            signature: signature.clone(),
            statement,
            proposed_at: now,
            lapses_at,
        };
        let after = Self { pending: Some(pending), ..self.changed(now) };
        Ok((Some(Step { after, entry: None, told: vec![told] }), Json::of(&answer)))
    }

    fn acknowledge(&self, by: Side, transfer: &SignedTransfer, now: Timestamp) -> Applied {
        self.check_open()?;
        let SignedTransfer { amount, nonce, signature } = transfer;
        if let Some(answer) = self.acknowledged_before(by, transfer)? {
            return Ok((None, answer));
        }
        if *nonce <= self.nonce {
            // Executed with other content, rejected, or lapsed.
            return Err(Refusal::new(ErrorCode::InvalidNonce).with("expected", &(self.nonce + 1)));
        }
        let Some(pending) = &self.pending else {
            return Err(Refusal::new(ErrorCode::NoTransferPending).with("nonce", &self.nonce));
        };
        if pending.from == self.agent(by) {
            return Err(ErrorCode::Unauthorized.into());
        }
        self.check_nonce(*nonce, pending.nonce)?;
        if *amount != pending.amount {
            return Err(Refusal::new(ErrorCode::AmountMismatch).with("expected", &pending.amount));
        }
        let from = by.other();
        let none = || Refusal::new(ErrorCode::InsufficientBalance).with("available", &self.balance(from));
        let (_, ack_statement) = self.statements(from, *amount, *nonce).ok_or_else(none)?;
        self.verify(by, &ack_statement, signature)?;
        let (balance_a, balance_b) = self.balances_after(from, *amount).ok_or_else(none)?;
        let (payer, payee) = (self.agent(from), self.agent(by));
        let entry = self.accounts().transfer(from, *amount, *nonce, now);
        let last = CoSigned {
            nonce: *nonce,
            amount: *amount,
            from: payer,
            to: payee,
            propose_statement: pending.statement.clone(),
            propose_signature: pending.signature.clone(),
            ack_statement,
            ack_signature: signature.clone(),
            at: now,
        };
        let payload = Json::of(&json!({
            "channel_id": self.id, "nonce": nonce, "amount": amount, "from": payer, "to": payee,
            "balance_a": balance_a, "balance_b": balance_b, "ack_signature": signature,
        }));
        let after = Self {
            balance_a,
            balance_b,
            nonce: *nonce,
            pending: None,
            last: Some(last),
            ..self.changed(now)
        };
        let told = vec![Told { to: Audience::Both, event: event::TRANSFER_COMPLETE, payload }];
        let answer = json!({ "nonce": nonce, "balance_a": balance_a, "balance_b": balance_b });
        Ok((Some(Step { after, entry: Some(entry), told }), Json::of(&answer)))
    }

    /// The answer to an acknowledgement that was taken already, and whose answer was lost (R96).
    fn acknowledged_before(&self, by: Side, transfer: &SignedTransfer) -> Result<Option<Json>, Refusal> {
        let Some(last) = &self.last else { return Ok(None) };
        let is_same =
            last.nonce == transfer.nonce && last.amount == transfer.amount && last.to == self.agent(by);
        if !is_same {
            return Ok(None);
        }
        self.verify(by, &last.ack_statement, &transfer.signature)?;
        Ok(Some(Json::of(&json!({
            "nonce": last.nonce, "balance_a": self.balance_a, "balance_b": self.balance_b, "duplicate": true,
        }))))
    }

    fn reject(&self, by: Side, rejection: &Rejection, now: Timestamp) -> Applied {
        self.check_open()?;
        let Some(pending) = &self.pending else {
            return Err(Refusal::new(ErrorCode::NoTransferPending).with("nonce", &self.nonce));
        };
        if let Some(nonce) = rejection.nonce {
            self.check_nonce(nonce, pending.nonce)?;
        }
        let answer = Json::of(&json!({ "nonce": pending.nonce }));
        Ok((Some(self.burnt(Some(self.agent(by)), rejection.reason.as_deref(), now)), answer))
    }

    /// The pending transfer will never be executed: its nonce is used up (R97).
    fn burnt(&self, by: Option<AgentId>, reason: Option<&str>, now: Timestamp) -> Step {
        let nonce = self.pending.as_ref().map_or(self.nonce, |pending| pending.nonce);
        let after = Self { nonce, pending: None, ..self.changed(now) };
        let payload =
            Json::of(&json!({ "channel_id": self.id, "nonce": nonce, "reason": reason, "agent_id": by }));
        let told = vec![Told { to: Audience::Both, event: event::TRANSFER_REJECTED, payload }];
        Step { after, entry: None, told }
    }

    fn object(&self, by: Side, objection: &Objection, now: Timestamp) -> Applied {
        self.check_open()?;
        let agent_id = self.agent(by);
        let cancelled = self.pending.is_some().then(|| self.burnt(Some(agent_id), Some("disputed"), now));
        let current = cancelled.as_ref().map_or(self, |step| &step.after);
        let Objection { reason, evidence } = objection.clone();
        #[derive(Serialize)]
        struct Opened<'a> {
            channel_id: crate::ids::PaymentChannelId,
            agent_id: AgentId,
            reason: &'a str,
            evidence: &'a Json,
            nonce: u64,
            balance_a: Amount,
            balance_b: Amount,
        }
        // Not through a JSON tree: evidence is passed on as it came.
        let payload = Json::of(&Opened {
            channel_id: self.id,
            agent_id,
            reason: &reason,
            evidence: &evidence,
            nonce: current.nonce,
            balance_a: current.balance_a,
            balance_b: current.balance_b,
        });
        let after = Self {
            status: ChannelStatus::Disputed,
            dispute: Some(Dispute { agent_id, reason, evidence, at: now }),
            ..current.changed(now)
        };
        let told = vec![Told { to: Audience::Both, event: event::DISPUTE_OPENED, payload }];
        let step = Step { after, entry: None, told };
        let answer = json!({ "status": ChannelStatus::Disputed });
        Ok((joined(cancelled, Some(step)), Json::of(&answer)))
    }

    fn close(&self, request: &CloseRequest, now: Timestamp) -> Applied {
        self.check_open()?;
        if let Some(pending) = &self.pending {
            return Err(Refusal::new(ErrorCode::TransferPending).with("nonce", &pending.nonce));
        }
        let paid = (request.final_balance_a, request.final_balance_b);
        self.check_total(paid)?;
        let statement = statement::close(&self.id, self.nonce, paid);
        for (side, field, signature) in
            [(Side::A, "signature_a", &request.signature_a), (Side::B, "signature_b", &request.signature_b)]
        {
            self.verify(side, &statement, signature)
                .map_err(|refusal| Refusal { field: Some(field.into()), ..refusal })?;
        }
        let closing = Closing {
            statement: Some(statement),
            signature_a: Some(request.signature_a.clone()),
            signature_b: Some(request.signature_b.clone()),
            at: now,
        };
        let step = self.paid_out(ChannelStatus::Closed, paid, Some(closing), now);
        let answer = json!({ "status": ChannelStatus::Closed, "balance_a": paid.0, "balance_b": paid.1 });
        Ok((Some(step), Json::of(&answer)))
    }

    fn resolve(&self, resolution: Resolution, now: Timestamp) -> Applied {
        if self.status != ChannelStatus::Disputed {
            return Err(Refusal::wrong_status(ErrorCode::ChannelNotOpen, self.status.as_str()));
        }
        let rest = |given: Amount| {
            let rest = self.total().checked_sub(given.micros()).and_then(Amount::from_micros);
            rest.ok_or_else(|| self.wrong_total())
        };
        let paid = match (resolution.balance_a, resolution.balance_b) {
            // Balances change by transfers that both have signed, and by nothing else.
            (None, None) => (self.balance_a, self.balance_b),
            (Some(a), None) => (a, rest(a)?),
            (None, Some(b)) => (rest(b)?, b),
            (Some(a), Some(b)) => (a, b),
        };
        self.check_total(paid)?;
        let closing = Closing { statement: None, signature_a: None, signature_b: None, at: now };
        let step = self.paid_out(ChannelStatus::Closed, paid, Some(closing), now);
        let answer = channel_payload(&step.after);
        Ok((Some(step), answer))
    }

    /// It was never accepted: what is in it is the opener's alone.
    fn given_back(&self, status: ChannelStatus, now: Timestamp) -> Step {
        self.paid_out(status, (self.balance_a, self.balance_b), None, now)
    }

    /// What is held goes to the agents.
    fn paid_out(
        &self,
        status: ChannelStatus,
        paid: (Amount, Amount),
        closing: Option<Closing>,
        now: Timestamp,
    ) -> Step {
        let entry = self.accounts().payout((self.balance_a, self.balance_b), paid, now);
        let by_operator = closing.as_ref().is_some_and(|closing| closing.statement.is_none());
        let after = Self { status, balance_a: paid.0, balance_b: paid.1, closing, ..self.changed(now) };
        let payload = Json::of(&json!({
            "channel_id": self.id, "status": status, "nonce": self.nonce, "balance_a": paid.0,
            "balance_b": paid.1, "resolved": by_operator,
        }));
        Step { after, entry, told: vec![Told { to: Audience::Both, event: event::CHANNEL_CLOSED, payload }] }
    }

    fn check_nonce(&self, nonce: u64, expected: u64) -> Result<(), Refusal> {
        if nonce == expected {
            return Ok(());
        }
        Err(Refusal::new(ErrorCode::InvalidNonce).with("expected", &expected))
    }

    fn check_total(&self, paid: (Amount, Amount)) -> Result<(), Refusal> {
        let sum = paid.0.micros().checked_add(paid.1.micros());
        if sum == Some(self.total()) { Ok(()) } else { Err(self.wrong_total()) }
    }

    fn wrong_total(&self) -> Refusal {
        let total = Amount::from_micros(self.total()).unwrap_or_default();
        Refusal::new(ErrorCode::AmountMismatch).with("expected", &total)
    }

    fn verify(&self, side: Side, statement: &str, signature: &str) -> Result<(), Refusal> {
        self.key(side).ok_or(ErrorCode::NoPublicKey)?.verify(statement, signature)
    }
}

fn channel_payload(channel: &Channel) -> Json {
    #[derive(Serialize)]
    struct Payload<'a> {
        channel: super::ChannelView<'a>,
    }
    Json::of(&Payload { channel: channel.view() })
}

/// Two steps, one after another, as one.
fn joined(first: Option<Step>, second: Option<Step>) -> Option<Step> {
    match (first, second) {
        (Some(first), Some(second)) => {
            let told = first.told.into_iter().chain(second.told).collect();
            // One change of the stored record is one version.
            let after = Channel { version: first.after.version, ..second.after };
            Some(Step { after, entry: first.entry.or(second.entry), told })
        }
        (first, second) => first.or(second),
    }
}
