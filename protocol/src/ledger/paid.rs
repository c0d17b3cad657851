//! What of the ledger's entries is a payment of one agent to another: a released escrow, a transfer of a payment channel, and
//! a payout that gives a side more than it had there.

use std::collections::BTreeMap;

use super::{Account, Entry, EntryKind};
use crate::ids::AgentId;
use crate::money::Amount;

/// Money that one agent has paid another, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paid {
    /// Who paid.
    pub from: AgentId,
    /// Who was paid.
    pub to: AgentId,
    /// How much the payer gave.
    pub amount: Amount,
    /// How much of it the platform took.
    pub fee: Amount,
}

impl Paid {
    /// What the payee has got of it.
    #[must_use]
    pub fn earned(&self) -> Amount {
        Amount::from_micros(self.amount.micros().saturating_sub(self.fee.micros())).unwrap_or_default()
    }
}

impl Entry {
    /// The payment it is; none when it only holds money, gives it back, or moves it between accounts of one.
    #[must_use]
    pub fn paid(&self) -> Option<Paid> {
        if !self.kind.may_pay() {
            return None;
        }
        // What an agent has includes what is held for it: a payout of what it had there is no payment.
        let mut changes: BTreeMap<AgentId, i64> = BTreeMap::new();
        let mut fee = 0;
        for posting in &self.postings {
            let agent = match posting.account {
                Account::Agent(agent) => Some(agent),
                Account::Fees => {
                    fee = posting.delta.0;
                    None
                }
                other => other.holder(),
            };
            if let Some(agent) = agent {
                let change = changes.entry(agent).or_default();
                *change = change.saturating_add(posting.delta.0);
            }
        }
        let (from, lost) = changes.iter().find(|(_, change)| **change < 0)?;
        let (to, _) = changes.iter().find(|(_, change)| **change > 0)?;
        let amount = Amount::from_micros(lost.checked_neg()?)?;
        Some(Paid { from: *from, to: *to, amount, fee: Amount::from_micros(fee)? })
    }
}

impl EntryKind {
    /// Whether an entry of this kind may be a payment of one agent to another.
    #[must_use]
    pub const fn may_pay(self) -> bool {
        matches!(self, Self::EscrowRelease | Self::ChannelTransfer | Self::ChannelPayout)
    }
}
