//! Handoffs, as SQL.

use async_trait::async_trait;
use muster_actors::store::{Accepted, HandoffStore, NewMessage, StoreError, StoreResult};
use muster_protocol::handoff::{Answer, Handoff};
use muster_protocol::ids::{AgentId, MessageId, TaskId};
use muster_protocol::json::Json;
use muster_protocol::money::Amount;
use muster_protocol::task::Task;
use muster_protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::columns::{
    id_bytes, json, optional_amount, optional_id, optional_json, optional_time, rows, time,
};
use super::{SqliteStore, messages, sql_error, tasks};
use crate::store::sql::{HANDOFF_COLUMNS, whole};

#[async_trait]
impl HandoffStore for SqliteStore {
    async fn create_handoff(
        &self,
        message: NewMessage,
        task: Task,
        handoff: Handoff,
    ) -> StoreResult<Accepted> {
        self.write(move |c| create(c, message, &task, &handoff)).await
    }

    async fn handoff(&self, id: MessageId) -> StoreResult<Handoff> {
        self.read(move |c| handoff(c, id)).await
    }

    async fn handoff_of_task(&self, task: TaskId) -> StoreResult<Option<Handoff>> {
        let sql = format!("SELECT {HANDOFF_COLUMNS} FROM handoffs WHERE task = ?1");
        let read = move |c: &Connection| {
            c.prepare_cached(&sql)
                .and_then(|mut s| s.query_row([task.as_bytes()], read_handoff).optional())
                .map_err(sql_error)
        };
        self.read(read).await
    }

    async fn answer_handoff(&self, id: MessageId, answer: Answer, now: Timestamp) -> StoreResult<Handoff> {
        self.write(move |c| answer_handoff(c, id, &answer, now)).await
    }

    async fn handoffs_to_cancel(&self, limit: usize) -> StoreResult<Vec<MessageId>> {
        let sql = "SELECT message FROM handoffs WHERE to_cancel = 1 ORDER BY message LIMIT ?1";
        let read = |row: &Row<'_>| id_bytes(row, 0).map(MessageId::from_bytes);
        self.read(move |c| rows(c, sql, &[&whole::<usize>(limit)], read)).await
    }

    async fn handoff_cancelled(&self, id: MessageId) -> StoreResult<()> {
        let sql = "UPDATE handoffs SET to_cancel = 0 WHERE message = ?1 AND to_cancel = 1";
        let done = move |c: &Connection| {
            c.prepare_cached(sql).and_then(|mut s| s.execute([id.as_bytes()])).map(drop).map_err(sql_error)
        };
        self.write(done).await
    }
}

fn read_handoff(row: &Row<'_>) -> rusqlite::Result<Handoff> {
    let broken = || rusqlite::Error::InvalidQuery;
    Ok(Handoff {
        message: MessageId::from_bytes(id_bytes(row, 0)?),
        task: TaskId::from_bytes(id_bytes(row, 1)?),
        parent: optional_id(row, 2)?.map(TaskId::from_bytes),
        from: AgentId::from_bytes(id_bytes(row, 3)?),
        to: AgentId::from_bytes(id_bytes(row, 4)?),
        context: optional_json(row, 5)?,
        required_capabilities: json(row, 6)?.parse().map_err(|_| broken())?,
        price: optional_amount(row, 7)?,
        created_at: time(row, 8)?,
        accepted_at: optional_time(row, 9)?,
        declined_at: optional_time(row, 10)?,
        reason: row.get(11)?,
    })
}

fn handoff(c: &Connection, id: MessageId) -> StoreResult<Handoff> {
    let sql = format!("SELECT {HANDOFF_COLUMNS} FROM handoffs WHERE message = ?1");
    c.prepare_cached(&sql).and_then(|mut s| s.query_row([id.as_bytes()], read_handoff)).map_err(sql_error)
}

fn create(c: &Connection, message: NewMessage, task: &Task, handoff: &Handoff) -> StoreResult<Accepted> {
    let accepted = messages::accept(c, &[message])?.pop().unwrap_or(Accepted::Mismatch);
    if accepted != Accepted::New {
        return Ok(accepted);
    }
    tasks::create_task(c, task, None)?;
    c.prepare_cached(
        "INSERT INTO handoffs (message, task, parent_task, from_agent, to_agent, context, required_capabilities, price,
            created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )
    .and_then(|mut s| {
        s.execute(params![
            handoff.message.as_bytes(),
            handoff.task.as_bytes(),
            handoff.parent.as_ref().map(TaskId::as_bytes),
            handoff.from.as_bytes(),
            handoff.to.as_bytes(),
            handoff.context.as_ref().map(Json::as_str),
            Json::of(&handoff.required_capabilities).as_str(),
            handoff.price.map(Amount::micros),
            handoff.created_at.unix_ms(),
        ])
    })
    .map_err(sql_error)?;
    Ok(accepted)
}

fn answer_handoff(c: &Connection, id: MessageId, answer: &Answer, now: Timestamp) -> StoreResult<Handoff> {
    let before = handoff(c, id)?;
    let task = tasks::task(c, before.task)?;
    let after = match before.answered(answer, &task, now) {
        Ok(Some(after)) => after,
        Ok(None) => return Ok(before),
        Err(_) => return Err(StoreError::Conflict),
    };
    c.prepare_cached(
        "UPDATE handoffs SET accepted_at = ?1, declined_at = ?2, reason = ?3, to_cancel = ?4 WHERE message = ?5",
    )
    .and_then(|mut s| {
        s.execute(params![
            after.accepted_at.map(Timestamp::unix_ms),
            after.declined_at.map(Timestamp::unix_ms),
            after.reason,
            after.declined_at.is_some(),
            id.as_bytes(),
        ])
    })
    .map_err(sql_error)?;
    Ok(after)
}

/// Its message was rejected, or nobody answered in time: an unanswered handoff is declined, and a sweep cancels its task.
/// One on which work has begun only where `begun_too`.
pub(super) fn decline(
    c: &Connection,
    id: MessageId,
    reason: Option<&str>,
    begun_too: bool,
    now: Timestamp,
) -> StoreResult<()> {
    c.prepare_cached(
        "UPDATE handoffs SET declined_at = ?1, reason = ?2, to_cancel = 1
         WHERE message = ?3 AND accepted_at IS NULL AND declined_at IS NULL AND EXISTS
            (SELECT 1 FROM tasks WHERE id = handoffs.task AND provider = handoffs.to_agent
                AND (status = 'pending' OR ?4 AND status = 'in_progress'))",
    )
    .and_then(|mut s| s.execute(params![now.unix_ms(), reason, id.as_bytes(), begun_too]))
    .map(drop)
    .map_err(sql_error)
}
