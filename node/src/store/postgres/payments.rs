//! Payment channels, as SQL. A change compares the version under the row's lock, and locks accounts afterwards.

use async_trait::async_trait;
use muster_actors::store::{Page, PageRequest, PaymentStore, StoreError, StoreResult};
use muster_protocol::ids::{AgentId, PaymentChannelId};
use muster_protocol::ledger::Entry;
use muster_protocol::payment_channel::{Channel, ChannelStatus};
use muster_protocol::time::Timestamp;
use muster_protocol::webhook::Happening;
use tokio_postgres::Row;

use super::columns::{broken, id, id_bytes, listed};
use super::pool::{Connection, Failure};
use super::{PostgresStore, agents, ledger, webhooks};
use crate::store::lists::{self, Dialect};
use crate::store::sql::{whole, written};

fn read_channel(row: &Row) -> Result<Channel, Failure> {
    let document: &[u8] = row.try_get(0)?;
    serde_json::from_slice(document).map_err(|_| broken())
}

async fn create(
    c: &Connection,
    channel: &Channel,
    entry: Option<&Entry>,
    live_max: usize,
) -> Result<(), Failure> {
    agents::lock(c, channel.agent_a).await?;
    let sql = "SELECT count(*) FROM payment_channels
        WHERE agent_a = $1 AND status IN ('pending', 'open', 'disputed')";
    // A channel that is there already says so, whatever the bound.
    if c.count(sql, &[&id!(channel.agent_a)]).await? >= live_max as u64 {
        let there = c.optional("SELECT 1 FROM payment_channels WHERE id = $1", &[&id!(channel.id)]).await?;
        return Err(if there.is_some() { StoreError::AlreadyExists } else { StoreError::LimitReached }.into());
    }
    c.execute(
        "INSERT INTO payment_channels
            (id, version, status, agent_a, agent_b, balance_a, balance_b, nonce, due_at, document)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        &[
            &id!(channel.id),
            &whole(channel.version),
            &channel.status.as_str(),
            &id!(channel.agent_a),
            &id!(channel.agent_b),
            &channel.balance_a.micros(),
            &channel.balance_b.micros(),
            &whole(channel.nonce),
            &channel.due_at().map(Timestamp::unix_ms),
            &written(channel).into_bytes(),
        ],
    )
    .await?;
    match entry {
        Some(entry) => ledger::post(c, entry).await,
        None => Ok(()),
    }
}

async fn channel(c: &Connection, channel: PaymentChannelId) -> Result<Channel, Failure> {
    let sql = "SELECT document FROM payment_channels WHERE id = $1";
    read_channel(&c.one(sql, &[&id!(channel)]).await?)
}

async fn channels(c: &Connection, agent: AgentId, request: &PageRequest) -> Result<Page<Channel>, Failure> {
    let list = lists::channels(Dialect::Postgres, Some(agent), None);
    listed(c, &list, (request, 0), read_channel, |channel| *channel.id.as_bytes()).await
}

async fn channels_in(
    c: &Connection,
    status: ChannelStatus,
    request: &PageRequest,
) -> Result<Page<Channel>, Failure> {
    let list = lists::channels(Dialect::Postgres, None, Some(status));
    listed(c, &list, (request, 0), read_channel, |channel| *channel.id.as_bytes()).await
}

async fn save(c: &Connection, version: u64, channel: &Channel, entry: Option<&Entry>) -> Result<(), Failure> {
    let changed = c
        .execute(
            "UPDATE payment_channels SET version = $1, status = $2, balance_a = $3, balance_b = $4, nonce = $5,
                due_at = $6, document = $7 WHERE id = $8 AND version = $9",
            &[
                &whole(channel.version),
                &channel.status.as_str(),
                &channel.balance_a.micros(),
                &channel.balance_b.micros(),
                &whole(channel.nonce),
                &channel.due_at().map(Timestamp::unix_ms),
                &written(channel).into_bytes(),
                &id!(channel.id),
                &whole(version),
            ],
        )
        .await?;
    if changed == 0 {
        return Err(StoreError::Conflict.into());
    }
    if channel.status == ChannelStatus::Disputed {
        webhooks::queue_all(c, || Happening::of_channel(channel)).await?;
    }
    match entry {
        Some(entry) => ledger::post(c, entry).await,
        None => Ok(()),
    }
}

async fn due(c: &Connection, now: Timestamp, limit: usize) -> Result<Vec<PaymentChannelId>, Failure> {
    let sql = "SELECT id FROM payment_channels WHERE due_at <= $1 ORDER BY due_at LIMIT $2";
    let rows = c.query(sql, &[&now.unix_ms(), &whole(limit)]).await?;
    rows.iter().map(|row| id_bytes(row, 0).map(PaymentChannelId::from_bytes)).collect()
}

#[async_trait]
impl PaymentStore for PostgresStore {
    async fn create_payment_channel(
        &self,
        new: Channel,
        entry: Option<Entry>,
        live_max: usize,
    ) -> StoreResult<()> {
        let (new, entry) = (&new, entry.as_ref());
        self.pool.write(|c| async move { create(&c, new, entry, live_max).await }).await
    }

    async fn payment_channel(&self, id: PaymentChannelId) -> StoreResult<Channel> {
        self.pool.read(|c| async move { channel(&c, id).await }).await
    }

    async fn payment_channels(&self, agent: AgentId, page: PageRequest) -> StoreResult<Page<Channel>> {
        self.pool.read(|c| async move { channels(&c, agent, &page).await }).await
    }

    async fn payment_channels_in(
        &self,
        status: ChannelStatus,
        page: PageRequest,
    ) -> StoreResult<Page<Channel>> {
        self.pool.read(|c| async move { channels_in(&c, status, &page).await }).await
    }

    async fn save_payment_channel(
        &self,
        version: u64,
        after: Channel,
        entry: Option<Entry>,
    ) -> StoreResult<()> {
        let (after, entry) = (&after, entry.as_ref());
        self.pool.write(|c| async move { save(&c, version, after, entry).await }).await
    }

    async fn payment_channels_due(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<PaymentChannelId>> {
        self.pool.read(|c| async move { due(&c, now, limit).await }).await
    }
}
