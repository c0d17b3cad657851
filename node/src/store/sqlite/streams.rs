//! The logs of task streams, as SQL: the tables, beyond which the journal may hold newer chunks.

use muster_actors::store::{StoreError, StoreResult, StreamHead};
use muster_protocol::ids::TaskId;
use muster_protocol::json::Json;
use muster_protocol::task_stream::Chunk;
use muster_protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::columns::exists;
use super::{sql_error, tasks};
use crate::store::head::Head;
use crate::store::sql::whole;

/// An epoch higher than any before.
fn next_epoch(c: &Connection) -> StoreResult<u64> {
    let last: Option<[u8; 8]> = c
        .query_row("SELECT value FROM meta WHERE key = 'epoch'", [], |row| row.get(0))
        .optional()
        .map_err(sql_error)?;
    let next = last.map_or(0, u64::from_be_bytes) + 1;
    c.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('epoch', ?1)", [next.to_be_bytes()])
        .map_err(sql_error)?;
    Ok(next)
}

fn read_chunk(row: &Row<'_>) -> rusqlite::Result<Chunk> {
    let key: Option<String> = row.get(2)?;
    let body: Vec<u8> = row.get(1)?;
    Ok(Chunk {
        seq: row.get(0)?,
        body: Json::from_trusted_bytes(body.into()),
        idempotency_key: key.map(Into::into),
    })
}

/// Claims a stream that is settled, unless its task has ended.
pub fn claim_stream(
    c: &Connection,
    id: TaskId,
    chunks_max: usize,
    bytes_max: usize,
) -> StoreResult<StreamHead> {
    let head = stream_head(c, id, chunks_max, bytes_max)?;
    if head.task.status.is_final() {
        return Ok(head);
    }
    let epoch = next_epoch(c)?;
    c.prepare_cached(
        "INSERT INTO streams (task, epoch, first_seq, last_seq) VALUES (?1, ?2, 1, 0)
         ON CONFLICT (task) DO UPDATE SET epoch = excluded.epoch",
    )
    .and_then(|mut s| s.execute(params![id.as_bytes(), epoch]))
    .map_err(sql_error)?;
    Ok(StreamHead { epoch, ..head })
}

/// A stream and its newest chunks, as the tables have it.
pub fn stream_head(
    c: &Connection,
    id: TaskId,
    chunks_max: usize,
    bytes_max: usize,
) -> StoreResult<StreamHead> {
    let task = tasks::task(c, id)?;
    let head: Option<(u64, u64, u64)> = c
        .prepare_cached("SELECT epoch, first_seq, last_seq FROM streams WHERE task = ?1")
        .and_then(|mut s| {
            s.query_row([id.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()
        })
        .map_err(sql_error)?;
    let (epoch, first_seq, last_seq) = head.unwrap_or((0, 1, 0));
    let epoch = if task.status.is_final() { 0 } else { epoch };
    let mut statement = c
        .prepare_cached("SELECT seq, body, key FROM chunks WHERE task = ?1 ORDER BY seq DESC LIMIT ?2")
        .map_err(sql_error)?;
    let mut found = statement.query(params![id.as_bytes(), whole(chunks_max)]).map_err(sql_error)?;
    let (mut newest, mut bytes) = (Vec::new(), 0);
    while let Some(row) = found.next().map_err(sql_error)? {
        let chunk = read_chunk(row).map_err(sql_error)?;
        bytes += chunk.weight();
        if bytes > bytes_max {
            break;
        }
        newest.push(chunk);
    }
    newest.reverse();
    Ok(StreamHead { epoch, task, last_seq, newest, first_seq })
}

/// Where the log of a task ends in the tables; none: it never began.
pub fn head(c: &Connection, task: TaskId) -> StoreResult<Option<Head>> {
    c.prepare_cached("SELECT epoch, last_seq, closed FROM streams WHERE task = ?1")
        .and_then(|mut s| {
            let read =
                |row: &Row<'_>| Ok(Head { epoch: row.get(0)?, last_seq: row.get(1)?, closed: row.get(2)? });
            s.query_row([task.as_bytes()], read).optional()
        })
        .map_err(sql_error)
}

/// Notes the first chunk of a stream.
pub fn begin(c: &Connection, task: TaskId, epoch: u64) -> StoreResult<()> {
    c.prepare_cached(
        "INSERT INTO streams (task, epoch, first_seq, last_seq) VALUES (?1, ?2, 1, 0) ON CONFLICT (task) DO NOTHING",
    )
    .and_then(|mut s| s.execute(params![task.as_bytes(), epoch]))
    .map_err(sql_error)?;
    c.prepare_cached("UPDATE tasks SET has_chunks = 1 WHERE id = ?1")
        .and_then(|mut s| s.execute([task.as_bytes()]))
        .map_err(sql_error)?;
    Ok(())
}

/// Adds chunks that follow those of the table, after which the log ends at this head.
pub fn store_chunks(c: &Connection, task: TaskId, head: Head, chunks: &[Chunk]) -> StoreResult<()> {
    if chunks.is_empty() {
        return Ok(());
    }
    let mut insert = c
        .prepare_cached("INSERT INTO chunks (task, seq, key, body) VALUES (?1, ?2, ?3, ?4)")
        .map_err(sql_error)?;
    for chunk in chunks {
        let key = chunk.idempotency_key.as_deref();
        insert.execute(params![task.as_bytes(), chunk.seq, key, chunk.body.as_bytes()]).map_err(sql_error)?;
    }
    let moved = c
        .prepare_cached("UPDATE streams SET last_seq = ?1, epoch = ?2 WHERE task = ?3 AND last_seq = ?4")
        .and_then(|mut s| s.execute(params![head.last_seq, head.epoch, task.as_bytes(), chunks[0].seq - 1]))
        .map_err(sql_error)?;
    if moved == 1 {
        return Ok(());
    }
    Err(StoreError::Unavailable("chunks do not follow those of the table".into()))
}

/// Closes a stream that is settled at the end of its task, if the caller owns it and the store has every chunk that was
/// given out.
pub fn close(c: &Connection, task: TaskId, epoch: u64, last_seq: u64) -> StoreResult<()> {
    let closed = c
        .prepare_cached("UPDATE streams SET closed = 1 WHERE task = ?1 AND epoch = ?2 AND last_seq = ?3")
        .and_then(|mut s| s.execute(params![task.as_bytes(), epoch, last_seq]))
        .map_err(sql_error)?;
    if closed == 1 { Ok(()) } else { Err(StoreError::Fenced) }
}

/// Whether the caller owns a stream.
pub fn check_owned(c: &Connection, task: TaskId, epoch: u64) -> StoreResult<()> {
    let owned = "SELECT 1 FROM streams WHERE task = ?1 AND epoch = ?2";
    if exists(c, owned, &[task.as_bytes(), &epoch])? { Ok(()) } else { Err(StoreError::Fenced) }
}

/// Chunks of the table with `after < seq <= upto`.
pub fn read_chunks(
    c: &Connection,
    task: TaskId,
    (after, upto): (u64, u64),
    bytes_max: usize,
) -> StoreResult<Vec<Chunk>> {
    let mut statement = c
        .prepare_cached(
            "SELECT seq, body, key FROM chunks WHERE task = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq",
        )
        .map_err(sql_error)?;
    let mut found = statement.query(params![task.as_bytes(), after, upto]).map_err(sql_error)?;
    let (mut chunks, mut bytes) = (Vec::new(), 0);
    while let Some(row) = found.next().map_err(sql_error)? {
        let chunk = read_chunk(row).map_err(sql_error)?;
        bytes += chunk.weight();
        if bytes > bytes_max && !chunks.is_empty() {
            break;
        }
        chunks.push(chunk);
    }
    Ok(chunks)
}

/// Seq of the chunk of a key.
pub fn seq_of_key(c: &Connection, task: TaskId, key: &str) -> StoreResult<Option<u64>> {
    c.prepare_cached("SELECT seq FROM chunks WHERE task = ?1 AND key = ?2")
        .and_then(|mut s| s.query_row(params![task.as_bytes(), key], |row| row.get(0)).optional())
        .map_err(sql_error)
}

/// Drops chunks of a task that ended before a time, a bounded number of rows; gives how many it dropped.
pub fn purge_streams(c: &Connection, ended_before: Timestamp, rows_max: usize) -> StoreResult<usize> {
    let due: Option<[u8; 16]> = c
        .prepare_cached(
            "SELECT id FROM tasks WHERE has_chunks = 1 AND ended_at IS NOT NULL AND ended_at < ?1 LIMIT 1",
        )
        .and_then(|mut s| s.query_row([ended_before.unix_ms()], |row| row.get(0)).optional())
        .map_err(sql_error)?;
    let Some(task) = due else { return Ok(0) };
    let dropped = c
        .prepare_cached(
            "DELETE FROM chunks WHERE task = ?1 AND seq < coalesce(
                (SELECT seq FROM chunks WHERE task = ?1 ORDER BY seq LIMIT 1 OFFSET ?2), 9223372036854775807)",
        )
        .and_then(|mut s| s.execute(params![task, whole(rows_max)]))
        .map_err(sql_error)?;
    let dropped = dropped + super::task_channels::purge(c, task)?;
    c.prepare_cached(
        "UPDATE streams SET first_seq = coalesce((SELECT min(seq) FROM chunks WHERE task = ?1), last_seq + 1)
         WHERE task = ?1",
    )
    .and_then(|mut s| s.execute([task]))
    .map_err(sql_error)?;
    c.prepare_cached(
        "UPDATE tasks SET has_chunks = EXISTS (SELECT 1 FROM chunks WHERE task = ?1)
            OR EXISTS (SELECT 1 FROM task_channel_chunks WHERE task = ?1) WHERE id = ?1",
    )
    .and_then(|mut s| s.execute([task]))
    .map_err(sql_error)?;
    // A stream without a chunk left counts too, so that whoever purges goes on to the next.
    Ok(dropped.max(1))
}
