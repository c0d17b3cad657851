//! Tasks, hirings, timelines and notes, as SQL. Whatever changes a task's state holds the row of its stream, which is locked
//! first.

use muster_actors::store::{Finish, HiringFilter, Page, PageRequest, Reassign, StoreError, TaskFilter};
use muster_protocol::escrow::{Escrow, Payment, RequestHash};
use muster_protocol::hiring::{Hiring, HiringStatus};
use muster_protocol::idempotency::KEPT_MS;
use muster_protocol::ids::{AgentId, HiringId, MessageId, TaskId, UserId};
use muster_protocol::json::Json;
use muster_protocol::money::Amount;
use muster_protocol::task::{Note, Task, TaskAction, TaskStatus, TimelineEntry};
use muster_protocol::task_channel::{Percent, Progress};
use muster_protocol::time::Timestamp;
use tokio_postgres::Row;

use super::agents::count_outcome;
use super::columns::{
    Id, amount, broken, id, id_bytes, json, listed, optional_amount, optional_id, optional_json,
    optional_time, time,
};
use super::pool::{Connection, Failure};
use super::{ledger, streams, webhooks};
use crate::store::lists::{self, Dialect};
use crate::store::sql::{NOTE_COLUMNS, TASK_COLUMNS, whole};

fn read_task(row: &Row) -> Result<Task, Failure> {
    Ok(Task {
        id: TaskId::from_bytes(id_bytes(row, 0)?),
        status: TaskStatus::parse(row.try_get(1)?).ok_or_else(broken)?,
        client: AgentId::from_bytes(id_bytes(row, 2)?),
        client_owner: optional_id(row, 3)?.map(UserId::from_bytes),
        provider: AgentId::from_bytes(id_bytes(row, 4)?),
        capability: row.try_get(5)?,
        input: json(row, 6)?,
        output: optional_json(row, 7)?,
        error: optional_json(row, 8)?,
        max_price: optional_amount(row, 9)?,
        external_client: row.try_get(10)?,
        hiring: optional_id(row, 11)?.map(HiringId::from_bytes),
        created_at: time(row, 12)?,
        updated_at: time(row, 13)?,
        ended_at: optional_time(row, 14)?,
        payment: Payment {
            request: None,
            price: optional_amount(row, 15)?,
            fee: amount(row, 16)?,
            escrow: Escrow::parse(row.try_get(17)?).ok_or_else(broken)?,
        },
        progress: progress(row)?,
    })
}

fn progress(row: &Row) -> Result<Option<Progress>, Failure> {
    let percent: Option<f64> = row.try_get(18)?;
    let Some(percent) = percent else { return Ok(None) };
    let message: Option<Vec<u8>> = row.try_get(19)?;
    let message = message.map(String::from_utf8).transpose().map_err(|_| broken())?;
    Ok(Some(Progress { percent: Percent::new(percent).ok_or_else(broken)?, message }))
}

/// Adds a task and perhaps its hiring.
pub async fn create_task(c: &Connection, task: &Task, hiring: Option<&Hiring>) -> Result<(), Failure> {
    insert_task(c, task).await?;
    add_timeline(c, task.id, "task_created", task.created_at, Some(task.client)).await?;
    if task.status == TaskStatus::Failed {
        add_timeline(c, task.id, "task_failed", task.created_at, None).await?;
    }
    webhooks::queue_task(c, task, true).await?;
    if let Some(hiring) = hiring {
        insert_hiring(c, hiring).await?;
    }
    for entry in task.entries_at_creation() {
        ledger::post(c, &entry).await?;
    }
    Ok(())
}

async fn insert_hiring(c: &Connection, hiring: &Hiring) -> Result<(), Failure> {
    c.execute(
        "INSERT INTO hirings (id, user_id, client, agent, agent_did, task, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        &[
            &id!(hiring.id),
            &hiring.user.map(|user| id!(user)),
            &id!(hiring.client),
            &id!(hiring.agent),
            &hiring.agent_did,
            &id!(hiring.task),
            &hiring.created_at.unix_ms(),
            &hiring.updated_at.unix_ms(),
        ],
    )
    .await?;
    Ok(())
}

async fn insert_task(c: &Connection, task: &Task) -> Result<(), Failure> {
    if let Some(request) = task.payment.request {
        // A key is free again after its time.
        let kept = task.created_at.plus_ms(-KEPT_MS).unix_ms();
        c.execute(
            "UPDATE tasks SET request = NULL WHERE request = $1 AND created_at < $2",
            &[&request.as_slice(), &kept],
        )
        .await?;
    }
    c.execute(
        "INSERT INTO tasks (id, status, client, client_owner, provider, capability, input, output, error, max_price,
            external_client, hiring, created_at, updated_at, ended_at, price, fee, escrow, request)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)",
        &[
            &id!(task.id),
            &task.status.as_str(),
            &id!(task.client),
            &task.client_owner.map(|owner| id!(owner)),
            &id!(task.provider),
            &task.capability,
            &task.input.as_str(),
            &task.output.as_ref().map(Json::as_str),
            &task.error.as_ref().map(Json::as_str),
            &task.max_price.map(Amount::micros),
            &task.external_client,
            &task.hiring.map(|hiring| id!(hiring)),
            &task.created_at.unix_ms(),
            &task.updated_at.unix_ms(),
            &task.ended_at.map(Timestamp::unix_ms),
            &task.payment.price.map(Amount::micros),
            &task.payment.fee.micros(),
            &task.payment.escrow.as_str(),
            &task.payment.request.as_ref().map(RequestHash::as_slice),
        ],
    )
    .await?;
    Ok(())
}

/// A task.
pub async fn task(c: &Connection, id: TaskId) -> Result<Task, Failure> {
    let sql = format!("SELECT {TASK_COLUMNS} FROM tasks WHERE id = $1");
    read_task(&c.one(&sql, &[&id!(id)]).await?)
}

/// The task that a request under a key made.
pub async fn task_of_request(c: &Connection, request: RequestHash) -> Result<Task, Failure> {
    let sql = format!("SELECT {TASK_COLUMNS} FROM tasks WHERE request = $1");
    read_task(&c.one(&sql, &[&request.as_slice()]).await?)
}

/// Tasks, newest first.
pub async fn tasks(
    c: &Connection,
    filter: &TaskFilter,
    request: &PageRequest,
) -> Result<Page<Task>, Failure> {
    let list = lists::tasks(Dialect::Postgres, filter);
    listed(c, &list, (request, 0), read_task, |task| *task.id.as_bytes()).await
}

/// Ends a task.
pub async fn finish_task(c: &Connection, finish: &Finish) -> Result<Task, Failure> {
    let head = streams::lock(c, finish.task).await?;
    let before = task(c, finish.task).await?;
    before.status.after(finish.ending.action()).map_err(|_| StoreError::WrongStatus(before.status))?;
    if !head.is_some_and(|head| head.epoch == finish.epoch && head.last_seq == finish.last_seq) {
        return Err(StoreError::Fenced.into());
    }
    c.execute("UPDATE streams SET closed = true WHERE task = $1", &[&id!(finish.task)]).await?;
    let (output, error) = finish.ending.documents();
    let (settlement, escrow) = before.settlement(finish.ending.status, finish.now);
    c.execute(
        "UPDATE tasks SET status = $1, output = $2, error = $3, updated_at = $4, ended_at = $4, escrow = $6
         WHERE id = $5",
        &[
            &finish.ending.status.as_str(),
            &output.map(Json::as_str),
            &error.map(Json::as_str),
            &finish.now.unix_ms(),
            &id!(finish.task),
            &escrow.as_str(),
        ],
    )
    .await?;
    if let Some(hiring) = before.hiring {
        touch_hiring(c, hiring, finish.now).await?;
    }
    // A task that its client withdrew says nothing of its provider.
    if finish.ending.status != TaskStatus::Cancelled {
        count_outcome(c, before.provider, finish.ending.status == TaskStatus::Completed).await?;
    }
    add_timeline(c, finish.task, finish.ending.timeline_event(), finish.now, finish.by).await?;
    if let Some(settlement) = settlement {
        ledger::post(c, &settlement).await?;
    }
    let ended = task(c, finish.task).await?;
    webhooks::queue_task(c, &ended, false).await?;
    Ok(ended)
}

/// Gives a pending task to another provider.
pub async fn reassign_task(c: &Connection, reassign: &Reassign) -> Result<Task, Failure> {
    let Reassign { task: id, epoch, provider, by, now } = *reassign;
    let head = streams::lock(c, id).await?;
    let before = task(c, id).await?;
    before.status.after(TaskAction::Reassign).map_err(|_| StoreError::WrongStatus(before.status))?;
    if head.is_none_or(|head| head.epoch != epoch) {
        return Err(StoreError::Fenced.into());
    }
    // A task can begin without its stream, by its channel: then its row has changed since it was read.
    let changed = c
        .execute(
            "UPDATE tasks SET provider = $1, updated_at = $2 WHERE id = $3 AND status = 'pending'",
            &[&id!(provider), &now.unix_ms(), &id!(id)],
        )
        .await?;
    if changed == 0 {
        return Err(StoreError::WrongStatus(task(c, id).await?.status).into());
    }
    add_timeline(c, id, "task_reassigned", now, Some(by)).await?;
    if let Some(hiring) = before.hiring {
        c.execute(
            "UPDATE hirings SET agent = $1, agent_did = (SELECT did FROM agents WHERE id = $1), updated_at = $2
             WHERE id = $3",
            &[&id!(provider), &now.unix_ms(), &id!(hiring)],
        )
        .await?;
    }
    let given = task(c, id).await?;
    webhooks::queue_reassigned(c, &given, before.provider).await?;
    Ok(given)
}

/// Moves pending tasks to in progress, each at its time; gives those that were pending.
pub async fn begin(c: &Connection, begun: &[(TaskId, Timestamp)]) -> Result<Vec<TaskId>, Failure> {
    let ids: Vec<Id> = begun.iter().map(|(task, _)| id!(task)).collect();
    let times: Vec<i64> = begun.iter().map(|(_, at)| at.unix_ms()).collect();
    let rows = c
        .query(
            "WITH begun AS (
                UPDATE tasks SET status = 'in_progress', updated_at = x.at FROM unnest($1::uuid[], $2::bigint[]) x (id, at)
                WHERE tasks.id = x.id AND status = 'pending' RETURNING tasks.id, provider, hiring, x.at
             ), hired AS (
                UPDATE hirings SET updated_at = begun.at FROM begun WHERE hirings.id = begun.hiring
             ), told AS (
                INSERT INTO timeline (task, entry, at, event, agent)
                SELECT id, (SELECT coalesce(max(entry), 0) + 1 FROM timeline t WHERE t.task = begun.id), at,
                    'task_started', provider FROM begun
             ) SELECT id FROM begun",
            &[&ids, &times],
        )
        .await?;
    let begun = rows.iter().map(|row| id_bytes(row, 0).map(TaskId::from_bytes));
    let begun = begun.collect::<Result<Vec<_>, _>>()?;
    webhooks::queue_begun(c, &begun).await?;
    Ok(begun)
}

async fn touch_hiring(c: &Connection, id: HiringId, now: Timestamp) -> Result<(), Failure> {
    c.execute("UPDATE hirings SET updated_at = $1 WHERE id = $2", &[&now.unix_ms(), &id!(id)]).await?;
    Ok(())
}

async fn add_timeline(
    c: &Connection,
    task: TaskId,
    event: &str,
    at: Timestamp,
    agent: Option<AgentId>,
) -> Result<(), Failure> {
    c.execute(
        "INSERT INTO timeline (task, entry, at, event, agent)
         VALUES ($1, (SELECT coalesce(max(entry), 0) + 1 FROM timeline WHERE task = $1), $2, $3, $4)",
        &[&id!(task), &at.unix_ms(), &event, &agent.map(|agent| id!(agent))],
    )
    .await?;
    Ok(())
}

/// What happened to a task.
pub async fn timeline(c: &Connection, id: TaskId) -> Result<Vec<TimelineEntry>, Failure> {
    let sql = "SELECT at, event, agent FROM timeline WHERE task = $1 ORDER BY entry";
    let rows = c.query(sql, &[&id!(id)]).await?;
    rows.iter()
        .map(|row| {
            let agent_id = optional_id(row, 2)?.map(AgentId::from_bytes);
            Ok(TimelineEntry { at: time(row, 0)?, event: row.try_get(1)?, agent_id })
        })
        .collect()
}

/// Adds a note.
pub async fn add_note(c: &Connection, task: TaskId, note: &Note, notes_max: usize) -> Result<(), Failure> {
    // Whoever adds one holds the task, so that all are counted.
    c.one("SELECT 1 FROM tasks WHERE id = $1 FOR NO KEY UPDATE", &[&id!(task)]).await?;
    if c.count("SELECT count(*) FROM notes WHERE task = $1", &[&id!(task)]).await? >= notes_max as u64 {
        return Err(StoreError::LimitReached.into());
    }
    c.execute(
        "INSERT INTO notes (task, id, from_agent, from_user, content, inserted_at) VALUES ($1, $2, $3, $4, $5, $6)",
        &[
            &id!(task),
            &id!(note.id),
            &note.from_agent_id.map(|agent| id!(agent)),
            &note.from_user_id.map(|user| id!(user)),
            &note.content.as_bytes(),
            &note.inserted_at.unix_ms(),
        ],
    )
    .await?;
    Ok(())
}

fn read_note(row: &Row) -> Result<Note, Failure> {
    Ok(Note {
        id: MessageId::from_bytes(id_bytes(row, 0)?),
        from_agent_id: optional_id(row, 1)?.map(AgentId::from_bytes),
        from_user_id: optional_id(row, 2)?.map(UserId::from_bytes),
        content: String::from_utf8(row.try_get(3)?).map_err(|_| broken())?,
        inserted_at: time(row, 4)?,
    })
}

/// The notes of a task.
pub async fn notes(c: &Connection, task: TaskId) -> Result<Vec<Note>, Failure> {
    let sql = format!("SELECT {NOTE_COLUMNS} FROM notes WHERE task = $1 ORDER BY id");
    c.query(&sql, &[&id!(task)]).await?.iter().map(read_note).collect()
}

/// The newest notes of all tasks of a hiring.
pub async fn notes_of_hiring(
    c: &Connection,
    hiring: HiringId,
    notes_max: usize,
) -> Result<Vec<Note>, Failure> {
    let sql = format!(
        "SELECT {NOTE_COLUMNS} FROM notes WHERE task IN (SELECT id FROM tasks WHERE hiring = $1)
         ORDER BY id DESC LIMIT $2"
    );
    let rows = c.query(&sql, &[&id!(hiring), &whole(notes_max)]).await?;
    rows.iter().rev().map(read_note).collect()
}

/// Of a hiring; its state is that of its task, which triggers copy.
const HIRING_COLUMNS: &str = "id, user_id, client, agent, agent_did, task, status, created_at, updated_at";

fn read_hiring(row: &Row) -> Result<Hiring, Failure> {
    let status = TaskStatus::parse(row.try_get(6)?).ok_or_else(broken)?;
    Ok(Hiring {
        id: HiringId::from_bytes(id_bytes(row, 0)?),
        user: optional_id(row, 1)?.map(UserId::from_bytes),
        client: AgentId::from_bytes(id_bytes(row, 2)?),
        agent: AgentId::from_bytes(id_bytes(row, 3)?),
        agent_did: row.try_get(4)?,
        task: TaskId::from_bytes(id_bytes(row, 5)?),
        status: HiringStatus::from(status),
        created_at: time(row, 7)?,
        updated_at: time(row, 8)?,
    })
}

/// A hiring.
pub async fn hiring(c: &Connection, id: HiringId) -> Result<Hiring, Failure> {
    let sql = format!("SELECT {HIRING_COLUMNS} FROM hirings WHERE id = $1");
    read_hiring(&c.one(&sql, &[&id!(id)]).await?)
}

/// Hirings, newest first.
pub async fn hirings(
    c: &Connection,
    filter: &HiringFilter,
    request: &PageRequest,
) -> Result<Page<Hiring>, Failure> {
    let list = lists::hirings(Dialect::Postgres, HIRING_COLUMNS, "user_id", filter);
    listed(c, &list, (request, filter.skip), read_hiring, |hiring| *hiring.id.as_bytes()).await
}

/// Gives a failed or cancelled hiring a new task.
pub async fn retry_hiring(c: &Connection, id: HiringId, task: &Task) -> Result<Hiring, Failure> {
    c.one("SELECT 1 FROM hirings WHERE id = $1 FOR NO KEY UPDATE", &[&id!(id)]).await?;
    hiring(c, id).await?.status.check_retry().map_err(|_| StoreError::Conflict)?;
    create_task(c, task, None).await?;
    add_timeline(c, task.id, "task_retried", task.created_at, Some(task.client)).await?;
    c.execute(
        "UPDATE hirings SET task = $1, updated_at = $2 WHERE id = $3",
        &[&id!(task.id), &task.created_at.unix_ms(), &id!(id)],
    )
    .await?;
    hiring(c, id).await
}
