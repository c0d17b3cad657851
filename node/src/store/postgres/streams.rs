//! The heads and logs of task streams, as SQL. Appends are in [`super::appends`].

use muster_actors::store::StreamHead;
use muster_protocol::ids::TaskId;
use muster_protocol::json::Json;
use muster_protocol::task_stream::Chunk;
use muster_protocol::time::Timestamp;
use smol_str::SmolStr;
use tokio_postgres::Row;

use super::columns::{Id, id, id_bytes, number};
use super::pool::{Connection, Failure};
use super::tasks;
use crate::store::head::Head;
use crate::store::sql::whole;

/// Columns of a [`Head`].
pub const HEAD_COLUMNS: &str = "task, epoch, last_seq, closed";

/// Reads a row of [`HEAD_COLUMNS`].
///
/// # Errors
/// It is none.
pub fn read_head(row: &Row) -> Result<(TaskId, Head), Failure> {
    let head = Head { epoch: number(row, 1)?, last_seq: number(row, 2)?, closed: row.try_get(3)? };
    Ok((TaskId::from_bytes(id_bytes(row, 0)?), head))
}

/// The head of a stream, which nobody else changes until the transaction ends; none: it was never claimed.
pub async fn lock(c: &Connection, task: TaskId) -> Result<Option<Head>, Failure> {
    let sql = format!("SELECT {HEAD_COLUMNS} FROM streams WHERE task = $1 FOR NO KEY UPDATE");
    let row = c.optional(&sql, &[&id!(task)]).await?;
    row.map(|row| read_head(&row).map(|(_, head)| head)).transpose()
}

/// Claims a stream, unless its task has ended.
pub async fn claim_stream(
    c: &Connection,
    id: TaskId,
    chunks_max: usize,
    bytes_max: usize,
) -> Result<StreamHead, Failure> {
    // On conflict the row is locked before the epoch is taken, so that whoever comes later has the higher one.
    c.execute(
        "INSERT INTO streams (task, epoch, first_seq, last_seq) VALUES ($1, nextval('stream_epochs'), 1, 0)
         ON CONFLICT (task) DO UPDATE SET epoch = nextval('stream_epochs')",
        &[&id!(id)],
    )
    .await?;
    stream_head(c, id, chunks_max, bytes_max).await
}

/// A stream and its newest chunks.
pub async fn stream_head(
    c: &Connection,
    id: TaskId,
    chunks_max: usize,
    bytes_max: usize,
) -> Result<StreamHead, Failure> {
    let task = tasks::task(c, id).await?;
    let row =
        c.optional("SELECT epoch, first_seq, last_seq FROM streams WHERE task = $1", &[&id!(id)]).await?;
    let (epoch, first_seq, last_seq) = match row {
        Some(row) => (number(&row, 0)?, number(&row, 1)?, number(&row, 2)?),
        None => (0, 1, 0),
    };
    let epoch = if task.status.is_final() { 0 } else { epoch };
    let mut newest = Vec::new();
    if chunks_max > 0 && bytes_max > 0 {
        // None beyond the last seq that was read: more may have been appended since.
        let sql = format!(
            "SELECT seq, body, key FROM (
                SELECT seq, body, key, sum({WEIGHT}) OVER (ORDER BY seq DESC) AS bytes FROM (
                    SELECT seq, body, key FROM chunks WHERE task = $1 AND seq <= $2 ORDER BY seq DESC LIMIT $3) x) y
             WHERE bytes <= $4 ORDER BY seq"
        );
        let rows = rows_max(chunks_max, bytes_max);
        newest = read_rows(&c.query(&sql, &[&id!(id), &whole(last_seq), &rows, &whole(bytes_max)]).await?)?;
    }
    Ok(StreamHead { epoch, task, last_seq, newest, first_seq })
}

/// [`Chunk::weight`], over a row of `chunks`: sizes are known without reading what they are of.
const WEIGHT: &str = "octet_length(body) + coalesce(octet_length(key), 0) + 128";
/// Least that a chunk weighs.
const WEIGHT_MIN: usize = 128;

/// Rows that can be within so many bytes, and one.
fn rows_max(chunks_max: usize, bytes_max: usize) -> i64 {
    whole(chunks_max.min((bytes_max / WEIGHT_MIN).saturating_add(1)))
}

fn read_rows(rows: &[Row]) -> Result<Vec<Chunk>, Failure> {
    rows.iter()
        .map(|row| {
            let (body, key): (Vec<u8>, Option<&str>) = (row.try_get(1)?, row.try_get(2)?);
            Ok(Chunk {
                seq: number(row, 0)?,
                body: Json::from_trusted_bytes(body.into()),
                idempotency_key: key.map(SmolStr::new),
            })
        })
        .collect()
}

/// Chunks with `after < seq <= upto`.
pub async fn read_chunks(
    c: &Connection,
    task: TaskId,
    (after, upto): (u64, u64),
    bytes_max: usize,
) -> Result<Vec<Chunk>, Failure> {
    let sql = format!(
        "SELECT seq, body, key FROM (
            SELECT seq, body, key, {WEIGHT} AS weight, sum({WEIGHT}) OVER (ORDER BY seq) AS bytes FROM (
                SELECT seq, body, key FROM chunks WHERE task = $1 AND seq > $2 AND seq <= $3 ORDER BY seq LIMIT $4) x) y
         WHERE bytes <= $5 OR bytes = weight ORDER BY seq"
    );
    let rows = rows_max(usize::MAX, bytes_max);
    let (after, upto) = (whole(after), whole(upto));
    read_rows(&c.query(&sql, &[&id!(task), &after, &upto, &rows, &whole(bytes_max)]).await?)
}

/// Seqs of the chunks of those keys.
pub async fn seqs_of_keys(
    c: &Connection,
    task: TaskId,
    keys: &[SmolStr],
) -> Result<Vec<(SmolStr, u64)>, Failure> {
    let wanted: Vec<&str> = keys.iter().map(SmolStr::as_str).collect();
    let rows = c
        .query(
            "SELECT chunks.key, seq FROM unnest($2::text[]) WITH ORDINALITY x (key, place)
             JOIN chunks ON task = $1 AND chunks.key = x.key ORDER BY place",
            &[&id!(task), &wanted],
        )
        .await?;
    rows.iter().map(|row| Ok((SmolStr::new(row.try_get::<_, &str>(0)?), number(row, 1)?))).collect()
}

/// Drops chunks of a task that ended before a time, a bounded number of rows; gives how many it dropped.
pub async fn purge_streams(
    c: &Connection,
    ended_before: Timestamp,
    rows_max: usize,
) -> Result<usize, Failure> {
    // Of several nodes that purge each takes another task.
    let due = c
        .optional(
            "SELECT id FROM tasks WHERE has_chunks AND ended_at IS NOT NULL AND ended_at < $1 LIMIT 1
             FOR NO KEY UPDATE SKIP LOCKED",
            &[&ended_before.unix_ms()],
        )
        .await?;
    let Some(row) = due else { return Ok(0) };
    let task = Id(id_bytes(&row, 0)?);
    let dropped = c
        .execute(
            "DELETE FROM chunks WHERE task = $1 AND seq < coalesce(
                (SELECT seq FROM chunks WHERE task = $1 ORDER BY seq LIMIT 1 OFFSET $2), 9223372036854775807)",
            &[&task, &whole(rows_max)],
        )
        .await?;
    let dropped = dropped + super::task_channels::purge(c, task).await?;
    c.execute(
        "UPDATE streams SET first_seq = coalesce((SELECT min(seq) FROM chunks WHERE task = $1), last_seq + 1)
         WHERE task = $1",
        &[&task],
    )
    .await?;
    c.execute(
        "UPDATE tasks SET has_chunks = EXISTS (SELECT 1 FROM chunks WHERE task = $1)
            OR EXISTS (SELECT 1 FROM task_channel_chunks WHERE task = $1) WHERE id = $1",
        &[&task],
    )
    .await?;
    // A stream without a chunk left counts too, so that whoever purges goes on to the next.
    Ok(usize::try_from(dropped).unwrap_or(usize::MAX).max(1))
}
