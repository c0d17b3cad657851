//! What the store keeps of requests that are done once (R125).

use async_trait::async_trait;
use muster_protocol::error_code::Refusal;
use muster_protocol::idempotency::{Begun, Hash, KeptAnswer};
use muster_protocol::time::Timestamp;

use super::StoreResult;

/// A request that comes with a key.
#[derive(Clone, Copy, Debug)]
pub struct KeyedRequest {
    /// Of the key, and of whose it is for what.
    pub key: Hash,
    /// Of what is asked.
    pub fingerprint: Hash,
    /// Tells this attempt apart from others.
    pub attempt: [u8; 16],
}

/// Keys of requests.
#[async_trait]
pub trait IdempotencyStore: Send + Sync + 'static {
    /// Begins a request, by [`muster_protocol::idempotency::begin`]. Of several at once one runs.
    async fn begin_request(
        &self,
        request: KeyedRequest,
        now: Timestamp,
    ) -> StoreResult<Result<Begun, Refusal>>;
    /// Keeps the answer of a request, unless another attempt has begun since.
    async fn end_request(&self, request: KeyedRequest, answer: KeptAnswer) -> StoreResult<()>;
    /// Forgets at most `rows_max` keys that were first used before a time; gives how many.
    async fn purge_requests(&self, before: Timestamp, rows_max: usize) -> StoreResult<usize>;
}
