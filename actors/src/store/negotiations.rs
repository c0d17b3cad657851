//! What the store does for negotiations and agreements.

use async_trait::async_trait;
use muster_protocol::ids::{AgentId, AgreementId, NegotiationId, UserId};
use muster_protocol::negotiation::agreement::Agreement;
use muster_protocol::negotiation::{Negotiation, Status};
use muster_protocol::time::Timestamp;

use super::{Page, PageRequest, StoreResult};

/// Which negotiations.
#[derive(Clone, Copy, Debug, Default)]
pub struct NegotiationFilter {
    /// In which this agent is a party.
    pub agent: Option<AgentId>,
    /// In which an agent of this user is a party.
    pub user: Option<UserId>,
    /// That are marked as this.
    pub status: Option<Status>,
}

/// Negotiations and agreements.
#[async_trait]
pub trait NegotiationStore: Send + Sync + 'static {
    /// Keeps the seed of the key with which the server signs, unless one is kept already; gives the one that is.
    async fn server_seed(&self, first: [u8; 32]) -> StoreResult<[u8; 32]>;
    /// Adds a negotiation. Already exists: one of that id. Limit reached: the agent that opens it has `open_max` that are
    /// open.
    async fn create_negotiation(&self, negotiation: Negotiation, open_max: usize) -> StoreResult<()>;
    /// A negotiation.
    async fn negotiation(&self, id: NegotiationId) -> StoreResult<Negotiation>;
    /// Negotiations, by when they began.
    async fn negotiations(
        &self,
        filter: NegotiationFilter,
        page: PageRequest,
    ) -> StoreResult<Page<Negotiation>>;
    /// Replaces a negotiation that is still in that version, and adds what it has ended in, at once. Conflict: it is in
    /// another.
    async fn change_negotiation(
        &self,
        version: u64,
        after: Negotiation,
        agreement: Option<Agreement>,
    ) -> StoreResult<()>;
    /// Negotiations that are marked as open and whose time is over, longest over first.
    async fn negotiations_due(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<NegotiationId>>;
    /// An agreement, as it was stored.
    async fn agreement(&self, id: AgreementId) -> StoreResult<Agreement>;
}
