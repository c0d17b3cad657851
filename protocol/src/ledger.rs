//! The ledger (agrenting.md R141, R142): double entry, in integer micro-units. Every movement of money is one entry of
//! postings that add up to nothing, and has an operation that names it: nothing of one name happens twice.
//!
//! What each operation posts is said here; the store applies an entry in the transaction of what it belongs to.

mod paid;

pub use self::paid::Paid;

use std::fmt;

use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::agent::text_forms;
use crate::ids::{AgentId, IdEntropy, LedgerEntryId, PaymentChannelId, TaskId, UserId};
use crate::money::Amount;
use crate::task::{Task, TaskStatus};
use crate::time::Timestamp;

/// A side of a payment channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Who opened it.
    A,
    /// The other.
    B,
}

impl Side {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// Where money is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    /// An agent's own.
    Agent(AgentId),
    /// A user's own.
    User(UserId),
    /// Held for a task until it ends; `holder` is the client it was taken from.
    Escrow {
        /// Which task.
        task: TaskId,
        /// Who gave it.
        holder: AgentId,
    },
    /// One side of a payment channel; `holder` is the agent of that side.
    Channel {
        /// Which channel.
        channel: PaymentChannelId,
        /// Which side.
        side: Side,
        /// Whose.
        holder: AgentId,
    },
    /// The world outside: what the operator has credited, less what was withdrawn. The only one below zero.
    External,
    /// The platform's.
    Fees,
}

/// An account as a store names it: its sort, an id, and which side.
pub type AccountKey = (&'static str, [u8; 16], i16);

impl Account {
    /// As a store names it.
    #[must_use]
    pub fn key(&self) -> AccountKey {
        match self {
            Self::Agent(id) => ("agent", *id.as_bytes(), 0),
            Self::User(id) => ("user", *id.as_bytes(), 0),
            Self::Escrow { task, .. } => ("escrow", *task.as_bytes(), 0),
            Self::Channel { channel, side: Side::A, .. } => ("channel", *channel.as_bytes(), 1),
            Self::Channel { channel, side: Side::B, .. } => ("channel", *channel.as_bytes(), 2),
            Self::External => ("external", [0; 16], 0),
            Self::Fees => ("fees", [0; 16], 0),
        }
    }

    /// Whose money it is that is held there.
    #[must_use]
    pub const fn holder(&self) -> Option<AgentId> {
        match self {
            Self::Escrow { holder, .. } | Self::Channel { holder, .. } => Some(*holder),
            _ => None,
        }
    }

    /// Reads what [`Self::key`] and [`Self::holder`] gave.
    #[must_use]
    pub fn from_key((kind, id, side): (&str, [u8; 16], i16), holder: Option<AgentId>) -> Option<Self> {
        Some(match (kind, side, holder) {
            ("agent", 0, None) => Self::Agent(AgentId::from_bytes(id)),
            ("user", 0, None) => Self::User(UserId::from_bytes(id)),
            ("escrow", 0, Some(holder)) => Self::Escrow { task: TaskId::from_bytes(id), holder },
            ("channel", 1 | 2, Some(holder)) => Self::Channel {
                channel: PaymentChannelId::from_bytes(id),
                side: if side == 1 { Side::A } else { Side::B },
                holder,
            },
            ("external", 0, None) => Self::External,
            ("fees", 0, None) => Self::Fees,
            _ => return None,
        })
    }

    /// Whether it may be below zero.
    #[must_use]
    pub const fn may_owe(&self) -> bool {
        matches!(self, Self::External)
    }
}

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = LedgerEntryKind)]
pub enum EntryKind {
    /// The operator put money in.
    Credit,
    /// The operator took money out.
    Debit,
    /// A user moved money between their own accounts.
    Transfer,
    /// A client's money is held for a task.
    EscrowHold,
    /// It went to the provider.
    EscrowRelease,
    /// It went back to the client.
    EscrowRefund,
    /// A side of a payment channel made its deposit.
    ChannelDeposit,
    /// From one side of a payment channel to the other.
    ChannelTransfer,
    /// A payment channel was paid out.
    ChannelPayout,
}

impl EntryKind {
    /// Whether whoever it gives money to pays here from then on: what others pay makes nobody a payer.
    #[must_use]
    pub const fn funds(self) -> bool {
        matches!(self, Self::Credit | Self::Transfer)
    }
}

text_forms!(EntryKind {
    Credit = "credit",
    Debit = "debit",
    Transfer = "transfer",
    EscrowHold = "escrow_hold",
    EscrowRelease = "escrow_release",
    EscrowRefund = "escrow_refund",
    ChannelDeposit = "channel_deposit",
    ChannelTransfer = "channel_transfer",
    ChannelPayout = "channel_payout",
});

/// A change of one account, in micro-units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posting {
    /// Which account.
    pub account: Account,
    /// By how much; never 0.
    pub delta: Delta,
}

/// A signed number of micro-units, shown as a decimal string.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Delta(pub i64);

impl fmt::Display for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = Amount::from_micros(self.0.saturating_abs()).unwrap_or_default();
        write!(f, "{}{size}", if self.0 < 0 { "-" } else { "" })
    }
}

impl fmt::Debug for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Delta {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One movement of money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Id; follows from the time and the operation, so the same is always the same entry.
    pub id: LedgerEntryId,
    /// What it is about.
    pub kind: EntryKind,
    /// Names it: a second entry of that name is refused by the store.
    pub operation: String,
    /// What whoever made it calls it: of a task or a channel its id.
    pub reference: Option<String>,
    /// When.
    pub at: Timestamp,
    /// By account, each once, in the order in which a store locks them; their sum is 0.
    pub postings: Vec<Posting>,
}

/// Why an account cannot take a posting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpostable {
    /// It has less: this much.
    Short(Amount),
    /// It would hold more than can be counted.
    Overflow,
}

impl Entry {
    fn new(
        kind: EntryKind,
        operation: String,
        reference: Option<String>,
        at: Timestamp,
        moves: &[(Account, i64)],
    ) -> Self {
        let mut postings: Vec<Posting> = Vec::with_capacity(moves.len());
        for (account, micros) in moves.iter().filter(|(_, micros)| *micros != 0) {
            postings.push(Posting { account: *account, delta: Delta(*micros) });
        }
        postings.sort_by_key(|posting| posting.account.key());
        postings.dedup_by(|next, kept| {
            let is_same = next.account.key() == kept.account.key();
            if is_same {
                kept.delta.0 = kept.delta.0.saturating_add(next.delta.0);
            }
            is_same
        });
        postings.retain(|posting| posting.delta.0 != 0);
        Self { id: entry_id(at, &operation), kind, operation, reference, at, postings }
    }

    /// Whether it adds up to nothing, and moves something. A store takes no other.
    #[must_use]
    pub fn is_balanced(&self) -> bool {
        let sum: i128 = self.postings.iter().map(|posting| i128::from(posting.delta.0)).sum();
        sum == 0 && !self.postings.is_empty()
    }

    /// By how much it changes an account; 0 when it does not.
    #[must_use]
    pub fn delta_of(&self, account: &Account) -> Delta {
        let of_it = self.postings.iter().find(|posting| posting.account.key() == account.key());
        of_it.map_or(Delta(0), |posting| posting.delta)
    }
}

impl Posting {
    /// What the account holds afterwards.
    ///
    /// # Errors
    /// It has too little, or would hold too much.
    pub fn after(&self, balance: i64) -> Result<i64, Unpostable> {
        let after = balance.checked_add(self.delta.0).ok_or(Unpostable::Overflow)?;
        if after < 0 && !self.account.may_owe() {
            return Err(Unpostable::Short(Amount::from_micros(balance).unwrap_or_default()));
        }
        Ok(after)
    }
}

fn entry_id(at: Timestamp, operation: &str) -> LedgerEntryId {
    let digest = Sha256::digest(operation.as_bytes());
    let mut entropy: IdEntropy = [0; 10];
    for (byte, of_digest) in entropy.iter_mut().zip(digest.iter()) {
        *byte = *of_digest;
    }
    LedgerEntryId::new(at, entropy)
}

/// What names an entry that its maker gave no name.
#[must_use]
pub fn unnamed(at: Timestamp, entropy: IdEntropy) -> String {
    format!("id:{}", LedgerEntryId::new(at, entropy))
}

fn owner_name(account: &Account) -> String {
    match account {
        Account::Agent(id) => format!("agent:{id}"),
        Account::User(id) => format!("user:{id}"),
        other => other.key().0.to_owned(),
    }
}

/// The operator credits an account. `name` tells entries of the account apart.
#[must_use]
pub fn credit(to: Account, amount: Amount, name: &str, reference: Option<String>, at: Timestamp) -> Entry {
    let operation = format!("credit:{}:{name}", owner_name(&to));
    let moves = [(Account::External, -amount.micros()), (to, amount.micros())];
    Entry::new(EntryKind::Credit, operation, reference, at, &moves)
}

/// The operator takes money out of an account.
#[must_use]
pub fn debit(from: Account, amount: Amount, name: &str, reference: Option<String>, at: Timestamp) -> Entry {
    let operation = format!("debit:{}:{name}", owner_name(&from));
    let moves = [(from, -amount.micros()), (Account::External, amount.micros())];
    Entry::new(EntryKind::Debit, operation, reference, at, &moves)
}

/// A user moves money between two accounts of theirs.
#[must_use]
pub fn transfer(
    by: UserId,
    (from, to): (Account, Account),
    amount: Amount,
    name: &str,
    reference: Option<String>,
    at: Timestamp,
) -> Entry {
    let moves = [(from, -amount.micros()), (to, amount.micros())];
    Entry::new(EntryKind::Transfer, format!("transfer:{by}:{name}"), reference, at, &moves)
}

fn of_task(kind: EntryKind, task: TaskId, step: &str, at: Timestamp, moves: &[(Account, i64)]) -> Entry {
    Entry::new(kind, format!("task:{task}:{step}"), Some(task.to_string()), at, moves)
}

/// The price of a task is held (R141).
#[must_use]
pub fn escrow_hold(task: TaskId, client: AgentId, price: Amount, at: Timestamp) -> Entry {
    let escrow = Account::Escrow { task, holder: client };
    let moves = [(Account::Agent(client), -price.micros()), (escrow, price.micros())];
    of_task(EntryKind::EscrowHold, task, "hold", at, &moves)
}

/// What was held for a task goes where its end says: to the provider less the fee when it was completed, otherwise back
/// to the client. Both under one name, so that a task is settled once.
#[must_use]
pub fn escrow_settle(task: &Task, ended: TaskStatus, at: Timestamp) -> Entry {
    let (price, fee) = (task.payment.price.unwrap_or_default().micros(), task.payment.fee.micros());
    let escrow = Account::Escrow { task: task.id, holder: task.client };
    if ended == TaskStatus::Completed {
        let moves = [(escrow, -price), (Account::Agent(task.provider), price - fee), (Account::Fees, fee)];
        return of_task(EntryKind::EscrowRelease, task.id, "settle", at, &moves);
    }
    let moves = [(escrow, -price), (Account::Agent(task.client), price)];
    of_task(EntryKind::EscrowRefund, task.id, "settle", at, &moves)
}

/// The two agents of a payment channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelAccounts {
    /// Which channel.
    pub channel: PaymentChannelId,
    /// Who opened it.
    pub agent_a: AgentId,
    /// The other.
    pub agent_b: AgentId,
}

impl ChannelAccounts {
    fn agent(&self, side: Side) -> AgentId {
        match side {
            Side::A => self.agent_a,
            Side::B => self.agent_b,
        }
    }

    /// The account of a side.
    #[must_use]
    pub fn side(&self, side: Side) -> Account {
        Account::Channel { channel: self.channel, side, holder: self.agent(side) }
    }

    fn entry(&self, kind: EntryKind, step: &str, at: Timestamp, moves: &[(Account, i64)]) -> Entry {
        let operation = format!("channel:{}:{step}", self.channel);
        Entry::new(kind, operation, Some(self.channel.to_string()), at, moves)
    }

    /// A side's deposit is held; none when there is nothing to hold.
    #[must_use]
    pub fn deposit(&self, side: Side, amount: Amount, at: Timestamp) -> Option<Entry> {
        let step = if side == Side::A { "open" } else { "accept" };
        let moves =
            [(Account::Agent(self.agent(side)), -amount.micros()), (self.side(side), amount.micros())];
        Some(self.entry(EntryKind::ChannelDeposit, step, at, &moves)).filter(Entry::is_balanced)
    }

    /// A transfer that both have signed.
    #[must_use]
    pub fn transfer(&self, from: Side, amount: Amount, nonce: u64, at: Timestamp) -> Entry {
        let moves = [(self.side(from), -amount.micros()), (self.side(from.other()), amount.micros())];
        self.entry(EntryKind::ChannelTransfer, &format!("transfer:{nonce}"), at, &moves)
    }

    /// What is held goes back to the agents, once: `held` is what the sides have, `paid` what the agents get.
    #[must_use]
    pub fn payout(&self, held: (Amount, Amount), paid: (Amount, Amount), at: Timestamp) -> Option<Entry> {
        let moves = [
            (self.side(Side::A), -held.0.micros()),
            (self.side(Side::B), -held.1.micros()),
            (Account::Agent(self.agent_a), paid.0.micros()),
            (Account::Agent(self.agent_b), paid.1.micros()),
        ];
        Some(self.entry(EntryKind::ChannelPayout, "payout", at, &moves)).filter(Entry::is_balanced)
    }
}

/// What an agent or a user has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Balance {
    /// Whether the operator or its owner ever put money in: then it pays here.
    pub is_funded: bool,
    /// In its own account.
    pub available: Amount,
    /// Held for it in tasks and payment channels.
    pub escrow: Amount,
}

/// What the operator sees of the ledger as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Audit {
    /// Accounts.
    pub accounts: u64,
    /// Entries.
    pub entries: u64,
    /// Entries whose postings do not add up to nothing: always 0.
    pub unbalanced_entries: u64,
    /// Accounts that do not hold what was posted to them: always 0.
    pub mismatched_accounts: u64,
    /// What all accounts hold together, in micro-units: always 0.
    pub sum_micros: i64,
}

/// Where the money is that belongs to no agent and no user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// What the platform has kept of payments, and nobody has taken out yet.
    pub fees: Amount,
    /// What the operator has taken out, less what was put in: below zero, by all the money there is here.
    pub external: Delta,
    /// What all accounts hold together: always 0.
    pub sum: Delta,
}

#[cfg(test)]
mod tests;
