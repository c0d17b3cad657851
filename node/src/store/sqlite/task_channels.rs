//! The channels of tasks: chunks of both directions, progress, checkpoints.

use std::collections::hash_map::Entry;

use async_trait::async_trait;
use muster_actors::store::{
    ChannelState, ChunkRange, CloseStream, StoreError, StoreResult, StoredChunk, TaskChannelStore,
};
use muster_protocol::error_code::Refusal;
use muster_protocol::ids::{AgentId, TaskId};
use muster_protocol::task_channel::batch::{Batch, PutChunk, TaskFacts};
use muster_protocol::task_channel::{
    ChannelChunk, Checkpoint, Checksum, Closing, Direction, Progress, Side, StreamBounds, StreamState, Taken,
};
use muster_protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use super::columns::json;
use super::{SqliteStore, sql_error, tasks};
use crate::store::sql::{CHANNEL_CHUNK_COLUMNS, CHANNEL_STREAM_COLUMNS, whole};

/// Rows of a channel dropped in one write: each may have 256 KiB.
const PURGE_ROWS_MAX: usize = 256;

fn execute(c: &Connection, sql: &str, parameters: &[&dyn ToSql]) -> StoreResult<usize> {
    c.prepare_cached(sql).and_then(|mut s| s.execute(parameters)).map_err(sql_error)
}

fn stream(c: &Connection, task: TaskId, direction: Direction) -> StoreResult<StreamState> {
    let read = |row: &Row<'_>| {
        let checksum: Option<[u8; 32]> = row.get(5)?;
        let total_size: Option<u64> = row.get(6)?;
        let closing = checksum.zip(total_size);
        Ok(StreamState {
            base: row.get(1)?,
            last_seq: row.get(2)?,
            chunks: row.get(3)?,
            bytes: row.get(4)?,
            closing: closing.map(|(sum, total_size)| Closing { checksum: Checksum(sum), total_size }),
        })
    };
    let sql = format!(
        "SELECT {CHANNEL_STREAM_COLUMNS} FROM task_channel_streams WHERE task = ?1 AND direction = ?2"
    );
    let found = c
        .prepare_cached(&sql)
        .and_then(|mut s| s.query_row(params![task.as_bytes(), direction.number()], read).optional());
    Ok(found.map_err(sql_error)?.unwrap_or_default())
}

fn put_stream(c: &Connection, task: TaskId, direction: Direction, state: &StreamState) -> StoreResult<()> {
    execute(
        c,
        "INSERT INTO task_channel_streams (task, direction, base, last_seq, chunks, bytes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (task, direction) DO UPDATE
         SET base = excluded.base, last_seq = excluded.last_seq, chunks = excluded.chunks, bytes = excluded.bytes",
        &[&task.as_bytes(), &direction.number(), &state.base, &state.last_seq, &state.chunks, &state.bytes],
    )?;
    Ok(())
}

fn checkpoint(c: &Connection, task: TaskId) -> StoreResult<Option<Checkpoint>> {
    c.prepare_cached("SELECT seq, state FROM task_checkpoints WHERE task = ?1")
        .and_then(|mut s| {
            let read = |row: &Row<'_>| Ok(Checkpoint { seq: row.get(0)?, state: json(row, 1)? });
            s.query_row([task.as_bytes()], read).optional()
        })
        .map_err(sql_error)
}

fn facts(c: &Connection, task: TaskId) -> StoreResult<TaskFacts> {
    let task = tasks::task(c, task)?;
    Ok(TaskFacts { status: task.status, client: task.client, provider: task.provider })
}

fn digest(c: &Connection, task: TaskId, direction: Direction, seq: u64) -> StoreResult<Option<Checksum>> {
    c.prepare_cached("SELECT digest FROM task_channel_chunks WHERE task = ?1 AND direction = ?2 AND seq = ?3")
        .and_then(|mut s| {
            let of = params![task.as_bytes(), direction.number(), seq];
            s.query_row(of, |row| Ok(Checksum(row.get(0)?))).optional()
        })
        .map_err(sql_error)
}

fn put_chunks(
    c: &Connection,
    puts: &[PutChunk],
    bounds: StreamBounds,
) -> StoreResult<Vec<Result<Taken, Refusal>>> {
    let mut batch = Batch::default();
    for put in puts {
        if let Entry::Vacant(entry) = batch.tasks.entry(put.task) {
            match facts(c, put.task) {
                Ok(facts) => {
                    entry.insert(facts);
                }
                Err(StoreError::NotFound) => continue,
                Err(error) => return Err(error),
            }
            for direction in Direction::ALL {
                batch.streams.insert((put.task, direction), stream(c, put.task, direction)?);
            }
        }
        if let Some(digest) = digest(c, put.task, put.direction, put.chunk.seq)? {
            batch.known.insert((put.task, put.direction, put.chunk.seq), digest);
        }
    }
    let mut results = Vec::with_capacity(puts.len());
    for put in puts {
        let taken = batch.take(put, bounds);
        if let Ok(Taken::New(nth)) = taken {
            let chunk = &put.chunk;
            execute(
                c,
                "INSERT INTO task_channel_chunks (task, direction, seq, nth, digest, is_base64, content)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                &[
                    &put.task.as_bytes(),
                    &put.direction.number(),
                    &chunk.seq,
                    &nth,
                    &put.digest.0,
                    &chunk.is_base64,
                    &chunk.bytes,
                ],
            )?;
        }
        results.push(taken);
    }
    for (task, direction) in &batch.grown {
        if let Some(state) = batch.streams.get(&(*task, *direction)) {
            put_stream(c, *task, *direction, state)?;
        }
        execute(c, "UPDATE tasks SET has_chunks = 1 WHERE id = ?1 AND has_chunks = 0", &[&task.as_bytes()])?;
    }
    for (task, at) in &batch.begun {
        tasks::begin(c, *task, *at)?;
    }
    Ok(results)
}

fn read_chunks(
    c: &Connection,
    task: TaskId,
    direction: Direction,
    range: ChunkRange,
    bytes_max: usize,
) -> StoreResult<Vec<StoredChunk>> {
    let (sql, after, nth_max) = match range {
        ChunkRange::BySeq { after, nth_max } => {
            ("seq > ?3 AND nth <= ?4 ORDER BY seq", after.map_or(-1, whole), whole(nth_max))
        }
        ChunkRange::ByArrival { after } => ("nth > ?3 AND nth <= ?4 ORDER BY nth", whole(after), i64::MAX),
    };
    let sql = format!(
        "SELECT {CHANNEL_CHUNK_COLUMNS} FROM task_channel_chunks WHERE task = ?1 AND direction = ?2 AND {sql}"
    );
    let mut statement = c.prepare_cached(&sql).map_err(sql_error)?;
    let mut found =
        statement.query(params![task.as_bytes(), direction.number(), after, nth_max]).map_err(sql_error)?;
    let (mut chunks, mut bytes) = (Vec::new(), 0);
    while let Some(row) = found.next().map_err(sql_error)? {
        let stored = read_chunk(row).map_err(sql_error)?;
        // What a row takes by itself counts too, so that empty chunks come to an end.
        bytes += stored.chunk.bytes.len() + 64;
        if bytes > bytes_max && !chunks.is_empty() {
            break;
        }
        chunks.push(stored);
    }
    Ok(chunks)
}

fn read_chunk(row: &Row<'_>) -> rusqlite::Result<StoredChunk> {
    let chunk = ChannelChunk { seq: row.get(1)?, bytes: row.get(3)?, is_base64: row.get(2)? };
    Ok(StoredChunk { nth: row.get(0)?, chunk })
}

fn close(c: &Connection, close: &CloseStream, now: Timestamp) -> StoreResult<Result<(), Refusal>> {
    let CloseStream { task, direction, by, checked, closing } = *close;
    let begins = match facts(c, task)?.admit(by, direction.sender()) {
        Ok(begins) => begins,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if stream(c, task, direction)? != checked {
        return Err(StoreError::Conflict);
    }
    put_stream(c, task, direction, &checked)?;
    execute(
        c,
        "UPDATE task_channel_streams SET checksum = ?1, total_size = ?2, closed_at = ?3
         WHERE task = ?4 AND direction = ?5",
        &[
            &closing.checksum.0,
            &whole(closing.total_size),
            &now.unix_ms(),
            &task.as_bytes(),
            &direction.number(),
        ],
    )?;
    if begins {
        tasks::begin(c, task, now)?;
    }
    Ok(Ok(()))
}

/// Whether a provider may change its task now; the task begins by that.
fn admit_provider(
    c: &Connection,
    task: TaskId,
    by: AgentId,
    now: Timestamp,
) -> StoreResult<Result<(), Refusal>> {
    match facts(c, task)?.admit(by, Side::Provider) {
        Ok(true) => tasks::begin(c, task, now).map(Ok),
        Ok(false) => Ok(Ok(())),
        Err(refusal) => Ok(Err(refusal)),
    }
}

fn set_progress(
    c: &Connection,
    task: TaskId,
    by: AgentId,
    progress: &Progress,
    now: Timestamp,
) -> StoreResult<Result<(), Refusal>> {
    if let Err(refusal) = admit_provider(c, task, by, now)? {
        return Ok(Err(refusal));
    }
    execute(
        c,
        "UPDATE tasks SET progress_percent = ?1, progress_message = ?2, updated_at = ?3 WHERE id = ?4",
        &[&progress.percent.get(), &progress.message, &now.unix_ms(), &task.as_bytes()],
    )?;
    Ok(Ok(()))
}

fn set_checkpoint(
    c: &Connection,
    task: TaskId,
    by: AgentId,
    new: &Checkpoint,
    now: Timestamp,
) -> StoreResult<Result<bool, Refusal>> {
    let facts = facts(c, task)?;
    if let Err(refusal) = facts.admit(by, Side::Provider) {
        return Ok(Err(refusal));
    }
    let is_new = match new.replaces(checkpoint(c, task)?.as_ref()) {
        Ok(is_new) => is_new,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if is_new {
        execute(
            c,
            "INSERT INTO task_checkpoints (task, seq, state, updated_at) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (task) DO UPDATE SET seq = excluded.seq, state = excluded.state,
                updated_at = excluded.updated_at",
            &[&task.as_bytes(), &new.seq, &new.state.as_str(), &now.unix_ms()],
        )?;
        if let Err(refusal) = admit_provider(c, task, by, now)? {
            return Ok(Err(refusal));
        }
    }
    Ok(Ok(is_new))
}

/// Drops chunks of a task's channel, a bounded number; gives how many.
pub fn purge(c: &Connection, task: [u8; 16]) -> StoreResult<usize> {
    execute(
        c,
        "DELETE FROM task_channel_chunks WHERE rowid IN (
            SELECT rowid FROM task_channel_chunks WHERE task = ?1 LIMIT ?2)",
        &[&task, &whole(PURGE_ROWS_MAX)],
    )
}

#[async_trait]
impl TaskChannelStore for SqliteStore {
    async fn task_channel(&self, task: TaskId) -> StoreResult<ChannelState> {
        self.read(move |c| {
            Ok(ChannelState {
                task: tasks::task(c, task)?,
                input: stream(c, task, Direction::Input)?,
                output: stream(c, task, Direction::Output)?,
                checkpoint: checkpoint(c, task)?,
            })
        })
        .await
    }

    async fn checkpoint(&self, task: TaskId) -> StoreResult<Option<Checkpoint>> {
        self.read(move |c| checkpoint(c, task)).await
    }

    async fn put_channel_chunks(
        &self,
        puts: Vec<PutChunk>,
        bounds: StreamBounds,
    ) -> StoreResult<Vec<Result<Taken, Refusal>>> {
        self.write(move |c| put_chunks(c, &puts, bounds)).await
    }

    async fn read_channel_chunks(
        &self,
        task: TaskId,
        direction: Direction,
        range: ChunkRange,
        bytes_max: usize,
    ) -> StoreResult<Vec<StoredChunk>> {
        self.read(move |c| read_chunks(c, task, direction, range, bytes_max)).await
    }

    async fn close_channel_stream(
        &self,
        closing: CloseStream,
        now: Timestamp,
    ) -> StoreResult<Result<(), Refusal>> {
        self.write(move |c| close(c, &closing, now)).await
    }

    async fn set_progress(
        &self,
        task: TaskId,
        by: AgentId,
        progress: Progress,
        now: Timestamp,
    ) -> StoreResult<Result<(), Refusal>> {
        self.write(move |c| set_progress(c, task, by, &progress, now)).await
    }

    async fn set_checkpoint(
        &self,
        task: TaskId,
        by: AgentId,
        checkpoint: Checkpoint,
        now: Timestamp,
    ) -> StoreResult<Result<bool, Refusal>> {
        self.write(move |c| set_checkpoint(c, task, by, &checkpoint, now)).await
    }
}
