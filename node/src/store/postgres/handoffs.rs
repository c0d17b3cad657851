//! Handoffs, as SQL.

use async_trait::async_trait;
use muster_actors::store::{Accepted, HandoffStore, NewMessage, StoreError, StoreResult};
use muster_protocol::handoff::{Answer, Handoff};
use muster_protocol::ids::{AgentId, MessageId, TaskId};
use muster_protocol::json::Json;
use muster_protocol::money::Amount;
use muster_protocol::task::Task;
use muster_protocol::time::Timestamp;
use tokio_postgres::Row;

use super::columns::{
    Id, broken, id, id_bytes, json, optional_amount, optional_id, optional_json, optional_time, time,
};
use super::pool::{Connection, Failure};
use super::{PostgresStore, messages, tasks};
use crate::store::sql::{HANDOFF_COLUMNS, whole};

#[async_trait]
impl HandoffStore for PostgresStore {
    async fn create_handoff(
        &self,
        message: NewMessage,
        task: Task,
        handoff: Handoff,
    ) -> StoreResult<Accepted> {
        let (message, task, handoff) = (&[message], &task, &handoff);
        self.pool.write(|c| async move { create(&c, message, task, handoff).await }).await
    }

    async fn handoff(&self, id: MessageId) -> StoreResult<Handoff> {
        let sql = &format!("SELECT {HANDOFF_COLUMNS} FROM handoffs WHERE message = $1");
        self.pool.read(|c| async move { read_handoff(&c.one(sql, &[&id!(id)]).await?) }).await
    }

    async fn handoff_of_task(&self, task: TaskId) -> StoreResult<Option<Handoff>> {
        let sql = &format!("SELECT {HANDOFF_COLUMNS} FROM handoffs WHERE task = $1");
        let read = |c: Connection| async move {
            c.optional(sql, &[&id!(task)]).await?.as_ref().map(read_handoff).transpose()
        };
        self.pool.read(read).await
    }

    async fn answer_handoff(&self, id: MessageId, answer: Answer, now: Timestamp) -> StoreResult<Handoff> {
        let answer = &answer;
        self.pool.write(|c| async move { answer_handoff(&c, id, answer, now).await }).await
    }

    async fn handoffs_to_cancel(&self, limit: usize) -> StoreResult<Vec<MessageId>> {
        let sql = "SELECT message FROM handoffs WHERE to_cancel ORDER BY message LIMIT $1";
        let read = |c: Connection| async move {
            let rows = c.query(sql, &[&whole::<usize>(limit)]).await?;
            rows.iter().map(|row| id_bytes(row, 0).map(MessageId::from_bytes)).collect()
        };
        self.pool.read(read).await
    }

    async fn handoff_cancelled(&self, id: MessageId) -> StoreResult<()> {
        let sql = "UPDATE handoffs SET to_cancel = false WHERE message = $1 AND to_cancel";
        let done = |c: Connection| async move {
            c.execute(sql, &[&id!(id)]).await?;
            Ok(())
        };
        self.pool.write(done).await
    }
}

fn read_handoff(row: &Row) -> Result<Handoff, Failure> {
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
        reason: row.try_get(11)?,
    })
}

async fn create(
    c: &Connection,
    message: &[NewMessage],
    task: &Task,
    handoff: &Handoff,
) -> Result<Accepted, Failure> {
    let accepted = messages::accept(c, message).await?.pop().unwrap_or(Accepted::Mismatch);
    if accepted != Accepted::New {
        return Ok(accepted);
    }
    tasks::create_task(c, task, None).await?;
    c.execute(
        "INSERT INTO handoffs (message, task, parent_task, from_agent, to_agent, context, required_capabilities, price,
            created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        &[
            &id!(handoff.message),
            &id!(handoff.task),
            &handoff.parent.map(|task| id!(task)),
            &id!(handoff.from),
            &id!(handoff.to),
            &handoff.context.as_ref().map(Json::as_str),
            &Json::of(&handoff.required_capabilities).as_str(),
            &handoff.price.map(Amount::micros),
            &handoff.created_at.unix_ms(),
        ],
    )
    .await?;
    Ok(accepted)
}

async fn answer_handoff(
    c: &Connection,
    id: MessageId,
    answer: &Answer,
    now: Timestamp,
) -> Result<Handoff, Failure> {
    // Of two at once the second sees what the first has done.
    let sql = format!("SELECT {HANDOFF_COLUMNS} FROM handoffs WHERE message = $1 FOR UPDATE");
    let before = read_handoff(&c.one(&sql, &[&id!(id)]).await?)?;
    let task = tasks::task(c, before.task).await?;
    let after = match before.answered(answer, &task, now) {
        Ok(Some(after)) => after,
        Ok(None) => return Ok(before),
        Err(_) => return Err(StoreError::Conflict.into()),
    };
    c.execute(
        "UPDATE handoffs SET accepted_at = $1, declined_at = $2, reason = $3, to_cancel = $4 WHERE message = $5",
        &[
            &after.accepted_at.map(Timestamp::unix_ms),
            &after.declined_at.map(Timestamp::unix_ms),
            &after.reason,
            &after.declined_at.is_some(),
            &id!(id),
        ],
    )
    .await?;
    Ok(after)
}

/// Their messages were rejected, or nobody answered in time: unanswered handoffs are declined, and a sweep cancels their
/// tasks. Those on which work has begun only where `begun_too`.
pub(super) async fn decline(
    c: &Connection,
    of: &[(MessageId, Option<&str>)],
    begun_too: bool,
    now: Timestamp,
) -> Result<(), Failure> {
    if of.is_empty() {
        return Ok(());
    }
    let (ids, reasons): (Vec<Id>, Vec<Option<&str>>) =
        of.iter().map(|(message, reason)| (id!(*message), *reason)).unzip();
    let sql = "UPDATE handoffs SET declined_at = $3, reason = x.reason, to_cancel = true
               FROM unnest($1::uuid[], $2::text[]) x (message, reason)
               WHERE handoffs.message = x.message AND accepted_at IS NULL AND declined_at IS NULL AND EXISTS
                  (SELECT 1 FROM tasks WHERE id = handoffs.task AND provider = handoffs.to_agent
                      AND (status = 'pending' OR $4 AND status = 'in_progress'))";
    c.execute(sql, &[&ids, &reasons, &now.unix_ms(), &begun_too]).await?;
    Ok(())
}
