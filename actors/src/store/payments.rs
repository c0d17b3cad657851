//! The payment channels' part of the port.

use async_trait::async_trait;
use muster_protocol::ids::{AgentId, PaymentChannelId};
use muster_protocol::ledger::Entry;
use muster_protocol::payment_channel::{Channel, ChannelStatus};
use muster_protocol::time::Timestamp;

use super::{Page, PageRequest, StoreResult};

/// Payment channels.
#[async_trait]
pub trait PaymentStore: Send + Sync + 'static {
    /// Adds a channel, and posts what its opener puts in, at once. Already exists: one of that id. Limit reached: its opener
    /// has opened `live_max` that are not over.
    async fn create_payment_channel(
        &self,
        channel: Channel,
        entry: Option<Entry>,
        live_max: usize,
    ) -> StoreResult<()>;
    /// A channel.
    async fn payment_channel(&self, id: PaymentChannelId) -> StoreResult<Channel>;
    /// The channels of an agent, newest first by id.
    async fn payment_channels(&self, agent: AgentId, page: PageRequest) -> StoreResult<Page<Channel>>;
    /// The channels in a state, newest first by id.
    async fn payment_channels_in(
        &self,
        status: ChannelStatus,
        page: PageRequest,
    ) -> StoreResult<Page<Channel>>;
    /// Replaces a channel that is still of that version, and posts what moves with it, at once. Conflict: it has changed
    /// since.
    async fn save_payment_channel(
        &self,
        version: u64,
        channel: Channel,
        entry: Option<Entry>,
    ) -> StoreResult<()>;
    /// Channels of which something is due, oldest first.
    async fn payment_channels_due(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<PaymentChannelId>>;
}
