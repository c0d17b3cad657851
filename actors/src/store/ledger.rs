//! The ledger's part of the port.

use async_trait::async_trait;
use muster_protocol::ledger::{Account, Audit, Balance, Entry, Totals};

use super::{Page, PageRequest, StoreResult};

/// The ledger. Entries of tasks and payment channels are posted in the transactions of those.
#[async_trait]
pub trait LedgerStore: Send + Sync + 'static {
    /// Posts an entry by itself. There is one of that operation already: nothing was posted, and it is given. Insufficient
    /// balance: an account has less than is taken from it. Limit reached: one would hold more than can be counted.
    async fn post_entry(&self, entry: Entry) -> StoreResult<Option<Entry>>;
    /// What an agent or a user has in its account, and what is held for it.
    async fn balance(&self, account: Account) -> StoreResult<Balance>;
    /// The entries of an account, newest first. Of long lists the total stops at [`COUNTED_MAX`](super::COUNTED_MAX).
    async fn entries_of(&self, account: Account, page: PageRequest) -> StoreResult<Page<Entry>>;
    /// What is the platform's, what is outside, and all together.
    async fn ledger_totals(&self) -> StoreResult<Totals>;
    /// Adds everything up.
    async fn audit(&self) -> StoreResult<Audit>;
}
