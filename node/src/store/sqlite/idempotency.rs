//! Requests that are done once.

use async_trait::async_trait;
use muster_actors::store::{IdempotencyStore, KeyedRequest, StoreResult};
use muster_protocol::error_code::Refusal;
use muster_protocol::idempotency::{self, Begun, KeptAnswer, KeyState, LEASE_MS, Record};
use muster_protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::columns::time;
use super::{SqliteStore, sql_error};
use crate::store::sql::{KEYED_REQUEST_COLUMNS, whole};

fn read_record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let state: String = row.get(1)?;
    let status: Option<u16> = row.get(4)?;
    let body: Option<Vec<u8>> = row.get(5)?;
    Ok(Record {
        fingerprint: row.get(0)?,
        state: KeyState::parse(&state).ok_or(rusqlite::Error::InvalidQuery)?,
        created_at: time(row, 2)?,
        lease_until: time(row, 3)?,
        answer: status.map(|status| KeptAnswer { status, body }),
    })
}

fn begin(c: &Connection, request: &KeyedRequest, now: Timestamp) -> StoreResult<Result<Begun, Refusal>> {
    let sql = format!("SELECT {KEYED_REQUEST_COLUMNS} FROM keyed_requests WHERE key = ?1");
    let record = c
        .prepare_cached(&sql)
        .and_then(|mut s| s.query_row([request.key], read_record).optional())
        .map_err(sql_error)?;
    let begun = idempotency::begin(record.as_ref(), &request.fingerprint, now);
    if begun == Ok(Begun::Run) {
        c.prepare_cached(
            "INSERT OR REPLACE INTO keyed_requests (key, fingerprint, attempt, state, created_at, lease_until)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .and_then(|mut s| {
            s.execute(params![
                request.key,
                request.fingerprint,
                request.attempt,
                KeyState::Pending.as_str(),
                now.unix_ms(),
                now.plus_ms(LEASE_MS).unix_ms(),
            ])
        })
        .map_err(sql_error)?;
    }
    Ok(begun)
}

fn end(c: &Connection, request: &KeyedRequest, answer: &KeptAnswer) -> StoreResult<()> {
    c.prepare_cached(
        "UPDATE keyed_requests SET state = ?1, status = ?2, body = ?3 WHERE key = ?4 AND attempt = ?5",
    )
    .and_then(|mut s| {
        let state = KeyState::of_status(answer.status).as_str();
        s.execute(params![state, answer.status, answer.body, request.key, request.attempt])
    })
    .map_err(sql_error)?;
    Ok(())
}

fn purge(c: &Connection, before: Timestamp, rows_max: usize) -> StoreResult<usize> {
    c.prepare_cached(
        "DELETE FROM keyed_requests WHERE rowid IN (
            SELECT rowid FROM keyed_requests WHERE created_at < ?1 LIMIT ?2)",
    )
    .and_then(|mut s| s.execute(params![before.unix_ms(), whole(rows_max)]))
    .map_err(sql_error)
}

#[async_trait]
impl IdempotencyStore for SqliteStore {
    async fn begin_request(
        &self,
        request: KeyedRequest,
        now: Timestamp,
    ) -> StoreResult<Result<Begun, Refusal>> {
        self.write(move |c| begin(c, &request, now)).await
    }

    async fn end_request(&self, request: KeyedRequest, answer: KeptAnswer) -> StoreResult<()> {
        self.write(move |c| end(c, &request, &answer)).await
    }

    async fn purge_requests(&self, before: Timestamp, rows_max: usize) -> StoreResult<usize> {
        self.write(move |c| purge(c, before, rows_max)).await
    }
}
