//! The port to what is kept of webhooks. What happens is queued for them in the transaction in which it happens: see the
//! backends' `create_task`, `finish_task` and the like.

use async_trait::async_trait;
use muster_protocol::account::Owner;
use muster_protocol::ids::{DeliveryId, WebhookId};
use muster_protocol::time::Timestamp;
use muster_protocol::webhook::{Attempted, Delivery, Happening, Next, Webhook};

use super::StoreResult;

/// A delivery that one sender has to itself until its lease ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Where to.
    pub webhook: Webhook,
    /// What.
    pub delivery: Delivery,
    /// Names the claim.
    pub lease: u64,
}

/// What came of a claim.
#[derive(Clone, Debug)]
pub struct Settled {
    /// What was sent.
    pub delivery: DeliveryId,
    /// Name of its event.
    pub event: String,
    /// Which try it was, from 1.
    pub attempt: u32,
    /// How it went.
    pub attempted: Attempted,
    /// What becomes of it.
    pub next: Next,
    /// Since when its webhook has been failing.
    pub failing_since: Option<Timestamp>,
    /// When the webhook was given up, if it is.
    pub disabled_at: Option<Timestamp>,
}

/// An entry of a webhook's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptEntry {
    /// What was sent.
    pub delivery: DeliveryId,
    /// Name of its event.
    pub event: String,
    /// Which try it was, from 1.
    pub attempt: u32,
    /// How it went.
    pub attempted: Attempted,
    /// `delivered`, `retry` or `dead`.
    pub outcome: String,
}

/// Webhooks, what waits for them, and what came of it.
#[async_trait]
pub trait WebhookStore: Send + Sync + 'static {
    /// Adds a webhook, if its owner has fewer than so many.
    async fn create_webhook(&self, webhook: Webhook, webhooks_max: usize) -> StoreResult<()>;
    /// An owner's webhooks, oldest first.
    async fn webhooks_of(&self, owner: Owner) -> StoreResult<Vec<Webhook>>;
    /// Removes a webhook of an owner, with all that waits for it.
    async fn delete_webhook(&self, owner: Owner, id: WebhookId) -> StoreResult<()>;
    /// Queues what happened for every webhook that it concerns.
    async fn queue_happening(&self, happening: Happening) -> StoreResult<()>;
    /// Queues something for one webhook, whatever it is subscribed to.
    async fn queue_delivery(&self, webhook: WebhookId, delivery: Delivery) -> StoreResult<()>;
    /// Claims what is due at `now`: of each webhook that no other claim holds the oldest, at most `limit` in all. The claims
    /// are named by `lease`, and end by themselves at `until`.
    async fn claim_deliveries(
        &self,
        now: Timestamp,
        (lease, until): (u64, Timestamp),
        limit: usize,
    ) -> StoreResult<Vec<Claim>>;
    /// Notes what came of a claim, and gives the webhook free. `Conflict` when the claim has ended meanwhile: whoever has it
    /// now notes what came of theirs.
    async fn settle_delivery(&self, webhook: WebhookId, lease: u64, settled: Settled) -> StoreResult<()>;
    /// The attempts of late, newest first.
    async fn attempts_of(&self, webhook: WebhookId, limit: usize) -> StoreResult<Vec<AttemptEntry>>;
}
