//! What a task costs, and where that money is (agrenting.md R141).

use serde::{Deserialize, Serialize};

use crate::agent::text_forms;
use crate::error_code::{ErrorCode, Refusal};
use crate::ledger::{self, Entry};
use crate::money::Amount;
use crate::task::{Task, TaskStatus};
use crate::time::Timestamp;

/// Where the price of a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Escrow {
    /// Nothing is held: there is no price, or it is settled elsewhere.
    #[default]
    None,
    /// Held until the task ends.
    Held,
    /// With the provider.
    Released,
    /// Back with the client.
    Refunded,
}

text_forms!(Escrow { None = "none", Held = "held", Released = "released", Refunded = "refunded" });

/// Hundredths of a percent in a whole.
const BPS: i128 = 10_000;

/// What a task costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Payment {
    /// The price that was agreed; none when nobody spoke of one.
    pub price: Option<Amount>,
    /// The part of it that the platform takes on release, as it was when the task was created.
    pub fee: Amount,
    /// Where it is.
    pub escrow: Escrow,
    /// Of the request that created the task, if it came under an idempotency key: the store takes no second task of it, so
    /// no money is held twice, whatever became of the first answer. Only written.
    pub request: Option<RequestHash>,
}

/// Stands for one request of one owner under one key (R125).
pub type RequestHash = crate::idempotency::Hash;

impl Payment {
    /// A price, and whether it is held here. `fee_bps` is the platform's part in hundredths of a percent, rounded down.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidAmount`]: the price is above what the client would pay at most.
    pub fn new(
        price: Option<Amount>,
        price_max: Option<Amount>,
        fee_bps: u16,
        is_held: bool,
    ) -> Result<Self, Refusal> {
        let Some(price) = price else { return Ok(Self::default()) };
        if let Some(max) = price_max.filter(|max| price > *max) {
            let refusal = Refusal::field(ErrorCode::InvalidAmount, "price", "above max_price");
            return Err(refusal.with("max", &max).with("price", &price));
        }
        // A price of nothing needs no hold.
        let is_held = is_held && price > Amount::ZERO;
        let fee = i128::from(price.micros()) * i128::from(fee_bps) / BPS;
        let fee = i64::try_from(fee).ok().and_then(Amount::from_micros).unwrap_or(price).min(price);
        let escrow = if is_held { Escrow::Held } else { Escrow::None };
        Ok(Self { price: Some(price), fee, escrow, request: None })
    }

    /// What the provider was paid; none unless it was.
    #[must_use]
    pub fn earned(&self) -> Option<Amount> {
        let price = self.price.filter(|_| self.escrow == Escrow::Released)?;
        Amount::from_micros(price.micros().saturating_sub(self.fee.micros()))
    }

    /// The same of a task that has failed as soon as it was created (R143).
    #[must_use]
    pub fn given_back(self) -> Self {
        let escrow = if self.escrow == Escrow::Held { Escrow::Refunded } else { self.escrow };
        Self { escrow, ..self }
    }
}

impl Task {
    /// What the ledger notes when the task is created, in order.
    #[must_use]
    pub fn entries_at_creation(&self) -> Vec<Entry> {
        let price = self.payment.price.unwrap_or_default();
        let hold = || ledger::escrow_hold(self.id, self.client, price, self.created_at);
        match self.payment.escrow {
            Escrow::None | Escrow::Released => Vec::new(),
            Escrow::Held => vec![hold()],
            Escrow::Refunded => vec![hold(), ledger::escrow_settle(self, self.status, self.created_at)],
        }
    }

    /// What the ledger notes when the task ends so, if anything is held, and where its price is from then on.
    #[must_use]
    pub fn settlement(&self, ended: TaskStatus, at: Timestamp) -> (Option<Entry>, Escrow) {
        if self.payment.escrow != Escrow::Held {
            return (None, self.payment.escrow);
        }
        let after = if ended == TaskStatus::Completed { Escrow::Released } else { Escrow::Refunded };
        (Some(ledger::escrow_settle(self, ended, at)), after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(text: &str) -> Amount {
        Amount::parse(text).unwrap()
    }

    /// R141: the fee is rounded down, and a price above the client's bound is refused.
    #[test]
    fn prices_fees_and_bounds() {
        let payment = |price, max, bps| Payment::new(Some(amount(price)), max, bps, true);
        assert_eq!(payment("10", None, 0).unwrap().fee, Amount::ZERO);
        assert_eq!(payment("10", None, 500).unwrap().fee, amount("0.5"));
        assert_eq!(payment("0.000019", None, 500).unwrap().fee, Amount::ZERO);
        assert_eq!(payment("0.00002", None, 500).unwrap().fee, amount("0.000001"));
        assert_eq!(payment("9223372036854.775807", None, 10_000).unwrap().fee.micros(), i64::MAX);
        assert_eq!(payment("10", Some(amount("10")), 0).unwrap().escrow, Escrow::Held);
        let refused = payment("10.000001", Some(amount("10")), 0).unwrap_err();
        assert_eq!(refused.code, ErrorCode::InvalidAmount);
        assert_eq!(payment("0", None, 0).unwrap().escrow, Escrow::None, "nothing to hold");
        assert_eq!(Payment::new(None, None, 500, true), Ok(Payment::default()));
        let held = payment("10", None, 500).unwrap();
        let earned = |escrow| Payment { escrow, ..held }.earned();
        assert_eq!(earned(Escrow::Released), Some(amount("9.5")));
        assert_eq!([Escrow::None, Escrow::Held, Escrow::Refunded].map(earned), [None; 3], "it was not paid");
        assert_eq!(Payment::new(Some(amount("1")), None, 0, false).unwrap().escrow, Escrow::None);
    }
}
