//! The channels of tasks: chunks of both directions, progress, checkpoints. Whatever changes one holds the row of its task,
//! so that both directions, the end of the task and its provider stay as they were read.

use std::collections::HashMap;

use async_trait::async_trait;
use muster_actors::store::{
    ChannelState, ChunkRange, CloseStream, StoreError, StoreResult, StoredChunk, TaskChannelStore,
};
use muster_protocol::error_code::Refusal;
use muster_protocol::ids::{AgentId, TaskId};
use muster_protocol::task::TaskStatus;
use muster_protocol::task_channel::batch::{Batch, PutChunk, TaskFacts};
use muster_protocol::task_channel::{
    ChannelChunk, Checkpoint, Checksum, Closing, Direction, Progress, Side, StreamBounds, StreamState, Taken,
};
use muster_protocol::time::Timestamp;
use tokio_postgres::Row;

use super::columns::{Id, broken, id, id_bytes, json, number};
use super::pool::{Connection, Failure};
use super::{PostgresStore, tasks};
use crate::store::sql::{CHANNEL_CHUNK_COLUMNS, CHANNEL_STREAM_COLUMNS, whole};

/// Rows of a channel dropped in one write: each may have 256 KiB.
const PURGE_ROWS_MAX: usize = 256;

fn optional_number(row: &Row, index: usize) -> Result<Option<u64>, Failure> {
    let number: Option<i64> = row.try_get(index)?;
    number.map(|number| u64::try_from(number).map_err(|_| broken())).transpose()
}

fn checksum(bytes: &[u8]) -> Result<Checksum, Failure> {
    bytes.try_into().map(Checksum).map_err(|_| broken())
}

/// Reads [`CHANNEL_STREAM_COLUMNS`], with the task behind them.
fn read_stream(row: &Row) -> Result<((TaskId, Direction), StreamState), Failure> {
    let direction = Direction::of_number(row.try_get(0)?).ok_or_else(broken)?;
    let sum = row.try_get::<_, Option<&[u8]>>(5)?.map(checksum).transpose()?;
    let closing = sum.zip(optional_number(row, 6)?);
    let state = StreamState {
        base: optional_number(row, 1)?,
        last_seq: optional_number(row, 2)?,
        chunks: number(row, 3)?,
        bytes: number(row, 4)?,
        closing: closing.map(|(checksum, total_size)| Closing { checksum, total_size }),
    };
    Ok(((TaskId::from_bytes(id_bytes(row, 7)?), direction), state))
}

async fn streams(c: &Connection, tasks: &[Id]) -> Result<HashMap<(TaskId, Direction), StreamState>, Failure> {
    let sql =
        format!("SELECT {CHANNEL_STREAM_COLUMNS}, task FROM task_channel_streams WHERE task = ANY ($1)");
    c.query(&sql, &[&tasks]).await?.iter().map(read_stream).collect()
}

async fn checkpoint(c: &Connection, task: TaskId) -> Result<Option<Checkpoint>, Failure> {
    let row = c.optional("SELECT seq, state FROM task_checkpoints WHERE task = $1", &[&id!(task)]).await?;
    row.map(|row| Ok(Checkpoint { seq: number(&row, 0)?, state: json(&row, 1)? })).transpose()
}

/// Tasks, which nobody else changes until the transaction ends; all transactions lock in this order.
async fn lock(c: &Connection, tasks: &[Id]) -> Result<HashMap<TaskId, TaskFacts>, Failure> {
    let sql =
        "SELECT id, status, client, provider FROM tasks WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE";
    let rows = c.query(sql, &[&tasks]).await?;
    rows.iter()
        .map(|row| {
            let facts = TaskFacts {
                status: TaskStatus::parse(row.try_get(1)?).ok_or_else(broken)?,
                client: AgentId::from_bytes(id_bytes(row, 2)?),
                provider: AgentId::from_bytes(id_bytes(row, 3)?),
            };
            Ok((TaskId::from_bytes(id_bytes(row, 0)?), facts))
        })
        .collect()
}

async fn lock_one(c: &Connection, task: TaskId) -> Result<TaskFacts, Failure> {
    lock(c, &[id!(task)]).await?.remove(&task).ok_or(Failure::Refused(StoreError::NotFound))
}

/// Digests of the chunks that are stored under the seqs of these.
async fn known(
    c: &Connection,
    puts: &[PutChunk],
) -> Result<HashMap<(TaskId, Direction, u64), Checksum>, Failure> {
    let of: Vec<Id> = puts.iter().map(|put| id!(put.task)).collect();
    let directions: Vec<i16> = puts.iter().map(|put| put.direction.number()).collect();
    let seqs: Vec<i64> = puts.iter().map(|put| whole(put.chunk.seq)).collect();
    let sql = "SELECT y.task, y.direction, y.seq, y.digest
               FROM unnest($1::uuid[], $2::smallint[], $3::bigint[]) x (task, direction, seq)
               JOIN task_channel_chunks y ON y.task = x.task AND y.direction = x.direction AND y.seq = x.seq";
    let rows = c.query(sql, &[&of, &directions, &seqs]).await?;
    rows.iter()
        .map(|row| {
            let direction = Direction::of_number(row.try_get(1)?).ok_or_else(broken)?;
            let task = TaskId::from_bytes(id_bytes(row, 0)?);
            Ok(((task, direction, number(row, 2)?), checksum(row.try_get(3)?)?))
        })
        .collect()
}

async fn put_chunks(
    c: &Connection,
    puts: &[PutChunk],
    bounds: StreamBounds,
) -> Result<Vec<Result<Taken, Refusal>>, Failure> {
    let mut of: Vec<Id> = puts.iter().map(|put| id!(put.task)).collect();
    of.sort_unstable();
    of.dedup();
    // Read behind the lock, or what another transaction has just added would not be seen.
    let tasks = lock(c, &of).await?;
    let (streams, known) = (streams(c, &of).await?, known(c, puts).await?);
    let mut batch = Batch { tasks, streams, known, ..Batch::default() };
    let results: Vec<_> = puts.iter().map(|put| batch.take(put, bounds)).collect();
    let new: Vec<(&PutChunk, u64)> = puts
        .iter()
        .zip(&results)
        .filter_map(|(put, result)| match result {
            Ok(Taken::New(nth)) => Some((put, *nth)),
            _ => None,
        })
        .collect();
    if new.is_empty() {
        return Ok(results);
    }
    insert(c, &new).await?;
    for (task, direction) in &batch.grown {
        if let Some(state) = batch.streams.get(&(*task, *direction)) {
            put_stream(c, *task, *direction, state).await?;
        }
    }
    let grown: Vec<Id> = batch.grown.iter().map(|(task, _)| id!(task)).collect();
    c.execute("UPDATE tasks SET has_chunks = true WHERE id = ANY ($1) AND NOT has_chunks", &[&grown]).await?;
    if !batch.begun.is_empty() {
        tasks::begin(c, &batch.begun).await?;
    }
    Ok(results)
}

async fn insert(c: &Connection, new: &[(&PutChunk, u64)]) -> Result<(), Failure> {
    let of: Vec<Id> = new.iter().map(|(put, _)| id!(put.task)).collect();
    let directions: Vec<i16> = new.iter().map(|(put, _)| put.direction.number()).collect();
    let seqs: Vec<i64> = new.iter().map(|(put, _)| whole(put.chunk.seq)).collect();
    let nths: Vec<i64> = new.iter().map(|(_, nth)| whole(*nth)).collect();
    let digests: Vec<&[u8]> = new.iter().map(|(put, _)| put.digest.0.as_slice()).collect();
    let encodings: Vec<bool> = new.iter().map(|(put, _)| put.chunk.is_base64).collect();
    let contents: Vec<&[u8]> = new.iter().map(|(put, _)| put.chunk.bytes.as_slice()).collect();
    c.execute(
        "INSERT INTO task_channel_chunks (task, direction, seq, nth, digest, is_base64, content)
         SELECT * FROM unnest($1::uuid[], $2::smallint[], $3::bigint[], $4::bigint[], $5::bytea[], $6::bool[], $7::bytea[])",
        &[&of, &directions, &seqs, &nths, &digests, &encodings, &contents],
    )
    .await?;
    Ok(())
}

async fn put_stream(
    c: &Connection,
    task: TaskId,
    direction: Direction,
    state: &StreamState,
) -> Result<(), Failure> {
    c.execute(
        "INSERT INTO task_channel_streams (task, direction, base, last_seq, chunks, bytes)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (task, direction) DO UPDATE
         SET base = excluded.base, last_seq = excluded.last_seq, chunks = excluded.chunks, bytes = excluded.bytes",
        &[
            &id!(task),
            &direction.number(),
            &state.base.map(whole),
            &state.last_seq.map(whole),
            &whole(state.chunks),
            &whole(state.bytes),
        ],
    )
    .await?;
    Ok(())
}

async fn read_chunks(
    c: &Connection,
    task: TaskId,
    direction: Direction,
    range: ChunkRange,
    bytes_max: usize,
) -> Result<Vec<StoredChunk>, Failure> {
    let (order, after, nth_max) = match range {
        ChunkRange::BySeq { after, nth_max } => ("seq", after.map_or(-1, whole), whole(nth_max)),
        ChunkRange::ByArrival { after } => ("nth", whole(after), i64::MAX),
    };
    // Sizes are known without reading what they are of; what a row takes by itself counts too.
    let sql = format!(
        "SELECT {CHANNEL_CHUNK_COLUMNS} FROM (
            SELECT *, octet_length(content) + 64 AS weight,
                sum(octet_length(content) + 64) OVER (ORDER BY {order}) AS bytes FROM (
                SELECT {CHANNEL_CHUNK_COLUMNS} FROM task_channel_chunks
                WHERE task = $1 AND direction = $2 AND {order} > $3 AND nth <= $4 ORDER BY {order} LIMIT $5) x) y
         WHERE bytes <= $6 OR bytes = weight ORDER BY {order}"
    );
    let rows_max = whole(bytes_max / 64 + 1);
    let parameters: [super::pool::Parameter<'_>; 6] =
        [&id!(task), &direction.number(), &after, &nth_max, &rows_max, &whole(bytes_max)];
    let rows = c.query(&sql, &parameters).await?;
    rows.iter()
        .map(|row| {
            let chunk =
                ChannelChunk { seq: number(row, 1)?, bytes: row.try_get(3)?, is_base64: row.try_get(2)? };
            Ok(StoredChunk { nth: number(row, 0)?, chunk })
        })
        .collect()
}

async fn close(c: &Connection, close: &CloseStream, now: Timestamp) -> Result<Result<(), Refusal>, Failure> {
    let CloseStream { task, direction, by, checked, closing } = *close;
    let begins = match lock_one(c, task).await?.admit(by, direction.sender()) {
        Ok(begins) => begins,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let stands = streams(c, &[id!(task)]).await?.remove(&(task, direction)).unwrap_or_default();
    if stands != checked {
        return Err(StoreError::Conflict.into());
    }
    put_stream(c, task, direction, &checked).await?;
    c.execute(
        "UPDATE task_channel_streams SET checksum = $1, total_size = $2, closed_at = $3
         WHERE task = $4 AND direction = $5",
        &[
            &closing.checksum.0.as_slice(),
            &whole(closing.total_size),
            &now.unix_ms(),
            &id!(task),
            &direction.number(),
        ],
    )
    .await?;
    if begins {
        tasks::begin(c, &[(task, now)]).await?;
    }
    Ok(Ok(()))
}

/// Whether a provider may change its task now; the task begins by that. Its row is locked from here on.
async fn admit_provider(
    c: &Connection,
    task: TaskId,
    by: AgentId,
    now: Timestamp,
) -> Result<Result<(), Refusal>, Failure> {
    match lock_one(c, task).await?.admit(by, Side::Provider) {
        Ok(begins) => {
            if begins {
                tasks::begin(c, &[(task, now)]).await?;
            }
            Ok(Ok(()))
        }
        Err(refusal) => Ok(Err(refusal)),
    }
}

async fn set_progress(
    c: &Connection,
    task: TaskId,
    by: AgentId,
    progress: &Progress,
    now: Timestamp,
) -> Result<Result<(), Refusal>, Failure> {
    if let Err(refusal) = admit_provider(c, task, by, now).await? {
        return Ok(Err(refusal));
    }
    let message = progress.message.as_ref().map(String::as_bytes);
    c.execute(
        "UPDATE tasks SET progress_percent = $1, progress_message = $2, updated_at = $3 WHERE id = $4",
        &[&progress.percent.get(), &message, &now.unix_ms(), &id!(task)],
    )
    .await?;
    Ok(Ok(()))
}

async fn set_checkpoint(
    c: &Connection,
    task: TaskId,
    by: AgentId,
    new: &Checkpoint,
    now: Timestamp,
) -> Result<Result<bool, Refusal>, Failure> {
    let begins = match lock_one(c, task).await?.admit(by, Side::Provider) {
        Ok(begins) => begins,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let is_new = match new.replaces(checkpoint(c, task).await?.as_ref()) {
        Ok(is_new) => is_new,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if is_new {
        c.execute(
            "INSERT INTO task_checkpoints (task, seq, state, updated_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (task) DO UPDATE SET seq = excluded.seq, state = excluded.state,
                updated_at = excluded.updated_at",
            &[&id!(task), &whole(new.seq), &new.state.as_str(), &now.unix_ms()],
        )
        .await?;
    }
    if is_new && begins {
        tasks::begin(c, &[(task, now)]).await?;
    }
    Ok(Ok(is_new))
}

/// Drops chunks of a task's channel, a bounded number; gives how many.
pub async fn purge(c: &Connection, task: Id) -> Result<u64, Failure> {
    c.execute(
        "DELETE FROM task_channel_chunks WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM task_channel_chunks WHERE task = $1 LIMIT $2))",
        &[&task, &whole(PURGE_ROWS_MAX)],
    )
    .await
}

#[async_trait]
impl TaskChannelStore for PostgresStore {
    async fn task_channel(&self, task: TaskId) -> StoreResult<ChannelState> {
        self.pool
            .read(|c| async move {
                let mut streams = streams(&c, &[id!(task)]).await?;
                let mut stream = |direction| streams.remove(&(task, direction)).unwrap_or_default();
                Ok(ChannelState {
                    input: stream(Direction::Input),
                    output: stream(Direction::Output),
                    checkpoint: checkpoint(&c, task).await?,
                    task: tasks::task(&c, task).await?,
                })
            })
            .await
    }

    async fn checkpoint(&self, task: TaskId) -> StoreResult<Option<Checkpoint>> {
        self.pool.read(|c| async move { checkpoint(&c, task).await }).await
    }

    async fn put_channel_chunks(
        &self,
        puts: Vec<PutChunk>,
        bounds: StreamBounds,
    ) -> StoreResult<Vec<Result<Taken, Refusal>>> {
        let puts = &puts;
        self.pool.write(|c| async move { put_chunks(&c, puts, bounds).await }).await
    }

    async fn read_channel_chunks(
        &self,
        task: TaskId,
        direction: Direction,
        range: ChunkRange,
        bytes_max: usize,
    ) -> StoreResult<Vec<StoredChunk>> {
        self.pool.read(|c| async move { read_chunks(&c, task, direction, range, bytes_max).await }).await
    }

    async fn close_channel_stream(
        &self,
        closing: CloseStream,
        now: Timestamp,
    ) -> StoreResult<Result<(), Refusal>> {
        let closing = &closing;
        self.pool.write(|c| async move { close(&c, closing, now).await }).await
    }

    async fn set_progress(
        &self,
        task: TaskId,
        by: AgentId,
        progress: Progress,
        now: Timestamp,
    ) -> StoreResult<Result<(), Refusal>> {
        let progress = &progress;
        self.pool.write(|c| async move { set_progress(&c, task, by, progress, now).await }).await
    }

    async fn set_checkpoint(
        &self,
        task: TaskId,
        by: AgentId,
        new: Checkpoint,
        now: Timestamp,
    ) -> StoreResult<Result<bool, Refusal>> {
        let new = &new;
        self.pool.write(|c| async move { set_checkpoint(&c, task, by, new, now).await }).await
    }
}
