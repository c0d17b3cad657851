//! Requests that are done once.

use async_trait::async_trait;
use muster_actors::store::{IdempotencyStore, KeyedRequest, StoreResult};
use muster_protocol::error_code::Refusal;
use muster_protocol::idempotency::{self, Begun, KeptAnswer, KeyState, LEASE_MS, Record};
use muster_protocol::time::Timestamp;
use tokio_postgres::Row;

use super::PostgresStore;
use super::columns::{broken, time};
use super::pool::{Connection, Failure};
use crate::store::sql::{KEYED_REQUEST_COLUMNS, whole};

fn read_record(row: &Row) -> Result<Record, Failure> {
    let status: Option<i32> = row.try_get(4)?;
    let status = status.map(u16::try_from).transpose().map_err(|_| broken())?;
    let body: Option<Vec<u8>> = row.try_get(5)?;
    Ok(Record {
        fingerprint: row.try_get::<_, &[u8]>(0)?.try_into().map_err(|_| broken())?,
        state: KeyState::parse(row.try_get(1)?).ok_or_else(broken)?,
        created_at: time(row, 2)?,
        lease_until: time(row, 3)?,
        answer: status.map(|status| KeptAnswer { status, body }),
    })
}

async fn begin(
    c: &Connection,
    request: &KeyedRequest,
    now: Timestamp,
) -> Result<Result<Begun, Refusal>, Failure> {
    let (key, fingerprint, attempt) =
        (request.key.as_slice(), request.fingerprint.as_slice(), request.attempt.as_slice());
    let (state, until) = (KeyState::Pending.as_str(), now.plus_ms(LEASE_MS).unix_ms());
    // Of several at once one inserts; the others wait here until it has, and then read what it wrote.
    let inserted = c
        .execute(
            "INSERT INTO keyed_requests (key, fingerprint, attempt, state, created_at, lease_until)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (key) DO NOTHING",
            &[&key, &fingerprint, &attempt, &state, &now.unix_ms(), &until],
        )
        .await?;
    if inserted == 1 {
        return Ok(Ok(Begun::Run));
    }
    let sql = format!("SELECT {KEYED_REQUEST_COLUMNS} FROM keyed_requests WHERE key = $1 FOR UPDATE");
    let record = c.optional(&sql, &[&key]).await?.map(|row| read_record(&row)).transpose()?;
    let begun = idempotency::begin(record.as_ref(), &request.fingerprint, now);
    if begun == Ok(Begun::Run) {
        c.execute(
            "INSERT INTO keyed_requests (key, fingerprint, attempt, state, created_at, lease_until)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (key) DO UPDATE
             SET fingerprint = excluded.fingerprint, attempt = excluded.attempt, state = excluded.state,
                created_at = excluded.created_at, lease_until = excluded.lease_until, status = NULL, body = NULL",
            &[&key, &fingerprint, &attempt, &state, &now.unix_ms(), &until],
        )
        .await?;
    }
    Ok(begun)
}

async fn end(c: &Connection, request: &KeyedRequest, answer: &KeptAnswer) -> Result<(), Failure> {
    c.execute(
        "UPDATE keyed_requests SET state = $1, status = $2, body = $3 WHERE key = $4 AND attempt = $5",
        &[
            &KeyState::of_status(answer.status).as_str(),
            &i32::from(answer.status),
            &answer.body,
            &request.key.as_slice(),
            &request.attempt.as_slice(),
        ],
    )
    .await?;
    Ok(())
}

async fn purge(c: &Connection, before: Timestamp, rows_max: usize) -> Result<usize, Failure> {
    let dropped = c
        .execute(
            "DELETE FROM keyed_requests WHERE key = ANY (ARRAY(
                SELECT key FROM keyed_requests WHERE created_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED))",
            &[&before.unix_ms(), &whole(rows_max)],
        )
        .await?;
    Ok(usize::try_from(dropped).unwrap_or(usize::MAX))
}

#[async_trait]
impl IdempotencyStore for PostgresStore {
    async fn begin_request(
        &self,
        request: KeyedRequest,
        now: Timestamp,
    ) -> StoreResult<Result<Begun, Refusal>> {
        let request = &request;
        self.pool.write(|c| async move { begin(&c, request, now).await }).await
    }

    async fn end_request(&self, request: KeyedRequest, answer: KeptAnswer) -> StoreResult<()> {
        let (request, answer) = (&request, &answer);
        self.pool.write(|c| async move { end(&c, request, answer).await }).await
    }

    async fn purge_requests(&self, before: Timestamp, rows_max: usize) -> StoreResult<usize> {
        self.pool.write(|c| async move { purge(&c, before, rows_max).await }).await
    }
}
