//! The ledger: what the operator and users do with it. What tasks and payment channels move is posted with them.

use std::sync::Arc;

use muster_protocol::account::check_name;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::UserId;
use muster_protocol::ledger::{self, Account, Balance, Entry};
use muster_protocol::limits::Limits;
use muster_protocol::money::Amount;

use crate::ports::Environment;
use crate::settings::LedgerSettings;
use crate::store::Store;
use crate::task_stream::refusal_of;

/// The ledger.
pub struct Ledger {
    /// Store.
    pub store: Arc<dyn Store>,
    /// Time and randomness.
    pub environment: Environment,
    /// Bounds.
    pub limits: Arc<Limits>,
    /// Currency and fee.
    pub settings: LedgerSettings,
}

/// A movement of money that somebody asks for.
#[derive(Clone, Debug)]
pub struct Order {
    /// How much; more than nothing.
    pub amount: Amount,
    /// What whoever asks calls it: the same again is the same movement.
    pub reference: Option<String>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Posted {
    /// The entry.
    pub entry: Entry,
    /// Whether it was there already.
    pub is_duplicate: bool,
}

/// Which way money goes between an account and the world outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into the account.
    Credit,
    /// Out of it.
    Debit,
}

impl Ledger {
    /// The operator puts money into an account, or takes it out.
    ///
    /// # Errors
    /// `invalid_amount` for nothing, `insufficient_balance`, `already_exists` when the reference is that of another
    /// movement, `limit_reached` when more would be in an account than can be counted.
    pub async fn adjust(
        &self,
        account: Account,
        direction: Direction,
        order: Order,
    ) -> Result<Posted, Refusal> {
        let name = self.name(&order)?;
        let now = self.environment.now();
        let entry = match direction {
            Direction::Credit => ledger::credit(account, order.amount, &name, order.reference, now),
            Direction::Debit => ledger::debit(account, order.amount, &name, order.reference, now),
        };
        self.post(entry).await
    }

    /// A user moves money between two of their accounts.
    ///
    /// # Errors
    /// As for [`Self::adjust`]; `invalid_payload` when both are the same.
    pub async fn transfer(
        &self,
        user: UserId,
        (from, to): (Account, Account),
        order: Order,
    ) -> Result<Posted, Refusal> {
        if from == to {
            return Err(Refusal::field(ErrorCode::InvalidPayload, "to", "another account than `from`"));
        }
        let name = self.name(&order)?;
        let now = self.environment.now();
        self.post(ledger::transfer(user, (from, to), order.amount, &name, order.reference, now)).await
    }

    /// What an agent or a user has.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn balance(&self, account: Account) -> Result<Balance, Refusal> {
        self.store.balance(account).await.map_err(refusal_of)
    }

    /// Names a movement: by its reference if it has one.
    fn name(&self, order: &Order) -> Result<String, Refusal> {
        if order.amount == Amount::ZERO {
            return Err(Refusal::field(ErrorCode::InvalidAmount, "amount", "more than nothing"));
        }
        let Some(reference) = &order.reference else {
            return Ok(ledger::unnamed(self.environment.now(), self.environment.id_entropy()));
        };
        check_name(reference, &self.limits)
            .map_err(|refusal| Refusal { field: Some("reference".into()), ..refusal })?;
        Ok(format!("reference:{reference}"))
    }

    async fn post(&self, entry: Entry) -> Result<Posted, Refusal> {
        match self.store.post_entry(entry.clone()).await.map_err(refusal_of)? {
            None => Ok(Posted { entry, is_duplicate: false }),
            Some(before) if before.postings == entry.postings => {
                Ok(Posted { entry: before, is_duplicate: true })
            }
            Some(_) => {
                let message = "there is another movement of this reference";
                Err(Refusal::field(ErrorCode::AlreadyExists, "reference", message))
            }
        }
    }
}
