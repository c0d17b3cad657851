//! Payment channels, as SQL.

use async_trait::async_trait;
use muster_actors::store::{Page, PageRequest, PaymentStore, StoreError, StoreResult};
use muster_protocol::ids::{AgentId, PaymentChannelId};
use muster_protocol::ledger::Entry;
use muster_protocol::payment_channel::{Channel, ChannelStatus};
use muster_protocol::time::Timestamp;
use muster_protocol::webhook::Happening;
use rusqlite::{Connection, Row, params};

use super::columns::{count, exists, id_bytes, listed, rows};
use super::{SqliteStore, ledger, sql_error, webhooks};
use crate::store::lists::{self, Dialect};
use crate::store::sql::{whole, written};

fn read_channel(row: &Row<'_>) -> rusqlite::Result<Channel> {
    let document: String = row.get(0)?;
    serde_json::from_str(&document).map_err(|_| rusqlite::Error::InvalidQuery)
}

fn create(c: &Connection, channel: &Channel, entry: Option<&Entry>, live_max: usize) -> StoreResult<()> {
    let sql = "SELECT count(*) FROM payment_channels INDEXED BY payment_channels_live
        WHERE agent_a = ?1 AND status IN ('pending', 'open', 'disputed')";
    // A channel that is there already says so, whatever the bound.
    if count(c, sql, &[channel.agent_a.as_bytes()])? >= live_max as u64 {
        let is_there = exists(c, "SELECT 1 FROM payment_channels WHERE id = ?1", &[channel.id.as_bytes()])?;
        return Err(if is_there { StoreError::AlreadyExists } else { StoreError::LimitReached });
    }
    c.prepare_cached(
        "INSERT INTO payment_channels
            (id, version, status, agent_a, agent_b, balance_a, balance_b, nonce, due_at, document)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )
    .and_then(|mut s| {
        s.execute(params![
            channel.id.as_bytes(),
            whole(channel.version),
            channel.status.as_str(),
            channel.agent_a.as_bytes(),
            channel.agent_b.as_bytes(),
            channel.balance_a.micros(),
            channel.balance_b.micros(),
            whole(channel.nonce),
            channel.due_at().map(Timestamp::unix_ms),
            written(channel),
        ])
    })
    .map_err(sql_error)?;
    entry.map_or(Ok(()), |entry| ledger::post(c, entry))
}

fn channel(c: &Connection, id: PaymentChannelId) -> StoreResult<Channel> {
    c.prepare_cached("SELECT document FROM payment_channels WHERE id = ?1")
        .and_then(|mut s| s.query_row([id.as_bytes()], read_channel))
        .map_err(sql_error)
}

fn channels(c: &Connection, agent: AgentId, request: &PageRequest) -> StoreResult<Page<Channel>> {
    let list = lists::channels(Dialect::Sqlite, Some(agent), None);
    listed(c, &list, (request, 0), read_channel, |channel| *channel.id.as_bytes())
}

fn channels_in(c: &Connection, status: ChannelStatus, request: &PageRequest) -> StoreResult<Page<Channel>> {
    let list = lists::channels(Dialect::Sqlite, None, Some(status));
    listed(c, &list, (request, 0), read_channel, |channel| *channel.id.as_bytes())
}

fn save(c: &Connection, version: u64, channel: &Channel, entry: Option<&Entry>) -> StoreResult<()> {
    let changed = c
        .prepare_cached(
            "UPDATE payment_channels SET version = ?1, status = ?2, balance_a = ?3, balance_b = ?4, nonce = ?5,
                due_at = ?6, document = ?7 WHERE id = ?8 AND version = ?9",
        )
        .and_then(|mut s| {
            s.execute(params![
                whole(channel.version),
                channel.status.as_str(),
                channel.balance_a.micros(),
                channel.balance_b.micros(),
                whole(channel.nonce),
                channel.due_at().map(Timestamp::unix_ms),
                written(channel),
                channel.id.as_bytes(),
                whole(version),
            ])
        })
        .map_err(sql_error)?;
    if changed == 0 {
        return Err(StoreError::Conflict);
    }
    if channel.status == ChannelStatus::Disputed {
        webhooks::queue_all(c, || Happening::of_channel(channel))?;
    }
    entry.map_or(Ok(()), |entry| ledger::post(c, entry))
}

fn due(c: &Connection, now: Timestamp, limit: usize) -> StoreResult<Vec<PaymentChannelId>> {
    let sql = "SELECT id FROM payment_channels WHERE due_at <= ?1 ORDER BY due_at LIMIT ?2";
    rows(c, sql, &[&now.unix_ms(), &whole(limit)], |row| id_bytes(row, 0).map(PaymentChannelId::from_bytes))
}

#[async_trait]
impl PaymentStore for SqliteStore {
    async fn create_payment_channel(
        &self,
        channel: Channel,
        entry: Option<Entry>,
        live_max: usize,
    ) -> StoreResult<()> {
        self.write(move |c| create(c, &channel, entry.as_ref(), live_max)).await
    }

    async fn payment_channel(&self, id: PaymentChannelId) -> StoreResult<Channel> {
        self.read(move |c| channel(c, id)).await
    }

    async fn payment_channels(&self, agent: AgentId, page: PageRequest) -> StoreResult<Page<Channel>> {
        self.read(move |c| channels(c, agent, &page)).await
    }

    async fn payment_channels_in(
        &self,
        status: ChannelStatus,
        page: PageRequest,
    ) -> StoreResult<Page<Channel>> {
        self.read(move |c| channels_in(c, status, &page)).await
    }

    async fn save_payment_channel(
        &self,
        version: u64,
        channel: Channel,
        entry: Option<Entry>,
    ) -> StoreResult<()> {
        self.write(move |c| save(c, version, &channel, entry.as_ref())).await
    }

    async fn payment_channels_due(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<PaymentChannelId>> {
        self.read(move |c| due(c, now, limit)).await
    }
}
