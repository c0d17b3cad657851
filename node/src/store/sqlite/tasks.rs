//! Tasks, hirings, timelines and notes, as SQL.

use muster_actors::store::{
    Finish, HiringFilter, Page, PageRequest, Reassign, StoreError, StoreResult, TaskFilter,
};
use muster_protocol::escrow::{Escrow, Payment, RequestHash};
use muster_protocol::hiring::{Hiring, HiringStatus};
use muster_protocol::idempotency::KEPT_MS;
use muster_protocol::ids::{AgentId, HiringId, MessageId, TaskId, UserId};
use muster_protocol::json::Json;
use muster_protocol::money::Amount;
use muster_protocol::task::{Note, Task, TaskAction, TaskStatus, TimelineEntry};
use muster_protocol::task_channel::{Percent, Progress};
use muster_protocol::time::Timestamp;
use rusqlite::{Connection, Row, params};

use super::agents::count_outcome;
use super::columns::{
    amount, count, exists, id_bytes, json, listed, optional_amount, optional_id, optional_json,
    optional_time, rows, time,
};
use super::{ledger, sql_error, streams, webhooks};
use crate::store::lists::{self, Dialect};
use crate::store::sql::{NOTE_COLUMNS, TASK_COLUMNS, whole};

fn read_task(row: &Row<'_>) -> rusqlite::Result<Task> {
    let broken = || rusqlite::Error::InvalidQuery;
    let status: String = row.get(1)?;
    let escrow: String = row.get(17)?;
    Ok(Task {
        id: TaskId::from_bytes(id_bytes(row, 0)?),
        status: TaskStatus::parse(&status).ok_or_else(broken)?,
        client: AgentId::from_bytes(id_bytes(row, 2)?),
        client_owner: optional_id(row, 3)?.map(UserId::from_bytes),
        provider: AgentId::from_bytes(id_bytes(row, 4)?),
        capability: row.get(5)?,
        input: json(row, 6)?,
        output: optional_json(row, 7)?,
        error: optional_json(row, 8)?,
        max_price: optional_amount(row, 9)?,
        external_client: row.get(10)?,
        hiring: optional_id(row, 11)?.map(HiringId::from_bytes),
        created_at: time(row, 12)?,
        updated_at: time(row, 13)?,
        ended_at: optional_time(row, 14)?,
        payment: Payment {
            request: None,
            price: optional_amount(row, 15)?,
            fee: amount(row, 16)?,
            escrow: Escrow::parse(&escrow).ok_or_else(broken)?,
        },
        progress: progress(row)?,
    })
}

fn progress(row: &Row<'_>) -> rusqlite::Result<Option<Progress>> {
    let percent: Option<f64> = row.get(18)?;
    let Some(percent) = percent else { return Ok(None) };
    let percent = Percent::new(percent).ok_or(rusqlite::Error::InvalidQuery)?;
    Ok(Some(Progress { percent, message: row.get(19)? }))
}

/// Adds a task and perhaps its hiring.
pub fn create_task(c: &Connection, task: &Task, hiring: Option<&Hiring>) -> StoreResult<()> {
    insert_task(c, task)?;
    add_timeline(c, task.id, "task_created", task.created_at, Some(task.client))?;
    if task.status == TaskStatus::Failed {
        add_timeline(c, task.id, "task_failed", task.created_at, None)?;
    }
    webhooks::queue_task(c, task, true)?;
    if let Some(hiring) = hiring {
        insert_hiring(c, hiring)?;
    }
    task.entries_at_creation().iter().try_for_each(|entry| ledger::post(c, entry))
}

fn insert_hiring(c: &Connection, hiring: &Hiring) -> StoreResult<()> {
    c.prepare_cached(
        "INSERT INTO hirings (id, user, client, agent, agent_did, task, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )
    .and_then(|mut s| {
        s.execute(params![
            hiring.id.as_bytes(),
            hiring.user.as_ref().map(UserId::as_bytes),
            hiring.client.as_bytes(),
            hiring.agent.as_bytes(),
            hiring.agent_did,
            hiring.task.as_bytes(),
            hiring.created_at.unix_ms(),
            hiring.updated_at.unix_ms(),
        ])
    })
    .map_err(sql_error)?;
    Ok(())
}

fn insert_task(c: &Connection, task: &Task) -> StoreResult<()> {
    if let Some(request) = task.payment.request {
        // A key is free again after its time.
        let kept = task.created_at.plus_ms(-KEPT_MS);
        c.prepare_cached("UPDATE tasks SET request = NULL WHERE request = ?1 AND created_at < ?2")
            .and_then(|mut s| s.execute(params![request, kept.unix_ms()]))
            .map_err(sql_error)?;
    }
    c.prepare_cached(
        "INSERT INTO tasks (id, status, client, client_owner, provider, capability, input, output, error, max_price,
            external_client, hiring, created_at, updated_at, ended_at, price, fee, escrow, request)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
    )
    .and_then(|mut s| {
        s.execute(params![
            task.id.as_bytes(),
            task.status.as_str(),
            task.client.as_bytes(),
            task.client_owner.as_ref().map(UserId::as_bytes),
            task.provider.as_bytes(),
            task.capability,
            task.input.as_str(),
            task.output.as_ref().map(Json::as_str),
            task.error.as_ref().map(Json::as_str),
            task.max_price.map(Amount::micros),
            task.external_client,
            task.hiring.as_ref().map(HiringId::as_bytes),
            task.created_at.unix_ms(),
            task.updated_at.unix_ms(),
            task.ended_at.map(Timestamp::unix_ms),
            task.payment.price.map(Amount::micros),
            task.payment.fee.micros(),
            task.payment.escrow.as_str(),
            task.payment.request,
        ])
    })
    .map_err(sql_error)?;
    Ok(())
}

/// A task.
pub fn task(c: &Connection, id: TaskId) -> StoreResult<Task> {
    let sql = format!("SELECT {TASK_COLUMNS} FROM tasks WHERE id = ?1");
    c.prepare_cached(&sql).and_then(|mut s| s.query_row([id.as_bytes()], read_task)).map_err(sql_error)
}

/// The task that a request under a key made.
pub fn task_of_request(c: &Connection, request: RequestHash) -> StoreResult<Task> {
    let sql = format!("SELECT {TASK_COLUMNS} FROM tasks WHERE request = ?1");
    c.prepare_cached(&sql).and_then(|mut s| s.query_row([request], read_task)).map_err(sql_error)
}

/// Tasks, newest first.
pub fn tasks(c: &Connection, filter: &TaskFilter, request: &PageRequest) -> StoreResult<Page<Task>> {
    let list = lists::tasks(Dialect::Sqlite, filter);
    listed(c, &list, (request, 0), read_task, |task| *task.id.as_bytes())
}

/// Ends a task.
pub fn finish_task(c: &Connection, finish: &Finish) -> StoreResult<Task> {
    let before = task(c, finish.task)?;
    before.status.after(finish.ending.action()).map_err(|_| StoreError::WrongStatus(before.status))?;
    streams::close(c, finish.task, finish.epoch, finish.last_seq)?;
    let (output, error) = finish.ending.documents();
    let (settlement, escrow) = before.settlement(finish.ending.status, finish.now);
    c.prepare_cached(
        "UPDATE tasks SET status = ?1, output = ?2, error = ?3, updated_at = ?4, ended_at = ?4, escrow = ?6
         WHERE id = ?5",
    )
    .and_then(|mut s| {
        s.execute(params![
            finish.ending.status.as_str(),
            output.map(Json::as_str),
            error.map(Json::as_str),
            finish.now.unix_ms(),
            finish.task.as_bytes(),
            escrow.as_str(),
        ])
    })
    .map_err(sql_error)?;
    if let Some(hiring) = before.hiring {
        touch_hiring(c, hiring, finish.now)?;
    }
    // A task that its client withdrew says nothing of its provider.
    if finish.ending.status != TaskStatus::Cancelled {
        count_outcome(c, before.provider, finish.ending.status == TaskStatus::Completed)?;
    }
    add_timeline(c, finish.task, finish.ending.timeline_event(), finish.now, finish.by)?;
    if let Some(settlement) = settlement {
        ledger::post(c, &settlement)?;
    }
    let ended = task(c, finish.task)?;
    webhooks::queue_task(c, &ended, false)?;
    Ok(ended)
}

/// Gives a pending task to another provider.
pub fn reassign_task(c: &Connection, reassign: &Reassign) -> StoreResult<Task> {
    let Reassign { task: id, epoch, provider, by, now } = *reassign;
    let before = task(c, id)?;
    before.status.after(TaskAction::Reassign).map_err(|_| StoreError::WrongStatus(before.status))?;
    streams::check_owned(c, id, epoch)?;
    c.prepare_cached("UPDATE tasks SET provider = ?1, updated_at = ?2 WHERE id = ?3")
        .and_then(|mut s| s.execute(params![provider.as_bytes(), now.unix_ms(), id.as_bytes()]))
        .map_err(sql_error)?;
    add_timeline(c, id, "task_reassigned", now, Some(by))?;
    if let Some(hiring) = before.hiring {
        c.prepare_cached(
            "UPDATE hirings SET agent = ?1, agent_did = (SELECT did FROM agents WHERE id = ?1), updated_at = ?2
             WHERE id = ?3",
        )
        .and_then(|mut s| s.execute(params![provider.as_bytes(), now.unix_ms(), hiring.as_bytes()]))
        .map_err(sql_error)?;
    }
    let given = task(c, id)?;
    webhooks::queue_reassigned(c, &given, before.provider)?;
    Ok(given)
}

/// Moves a pending task to in progress; one that has begun stays as it is: what begins it may come by several ways.
pub fn begin(c: &Connection, id: TaskId, now: Timestamp) -> StoreResult<()> {
    let changed = c
        .prepare_cached(
            "UPDATE tasks SET status = 'in_progress', updated_at = ?1 WHERE id = ?2 AND status = 'pending'",
        )
        .and_then(|mut s| s.execute(params![now.unix_ms(), id.as_bytes()]))
        .map_err(sql_error)?;
    let begun = task(c, id)?;
    if changed == 0 {
        let has_begun = begun.status == TaskStatus::InProgress;
        return if has_begun { Ok(()) } else { Err(StoreError::WrongStatus(begun.status)) };
    }
    if let Some(hiring) = begun.hiring {
        touch_hiring(c, hiring, now)?;
    }
    webhooks::queue_task(c, &begun, false)?;
    add_timeline(c, id, "task_started", now, Some(begun.provider))
}

fn touch_hiring(c: &Connection, id: HiringId, now: Timestamp) -> StoreResult<()> {
    c.prepare_cached("UPDATE hirings SET updated_at = ?1 WHERE id = ?2")
        .and_then(|mut s| s.execute(params![now.unix_ms(), id.as_bytes()]))
        .map_err(sql_error)?;
    Ok(())
}

fn add_timeline(
    c: &Connection,
    task: TaskId,
    event: &str,
    at: Timestamp,
    agent: Option<AgentId>,
) -> StoreResult<()> {
    c.prepare_cached(
        "INSERT INTO timeline (task, entry, at, event, agent)
         VALUES (?1, (SELECT coalesce(max(entry), 0) + 1 FROM timeline WHERE task = ?1), ?2, ?3, ?4)",
    )
    .and_then(|mut s| {
        s.execute(params![task.as_bytes(), at.unix_ms(), event, agent.as_ref().map(AgentId::as_bytes)])
    })
    .map_err(sql_error)?;
    Ok(())
}

/// What happened to a task.
pub fn timeline(c: &Connection, id: TaskId) -> StoreResult<Vec<TimelineEntry>> {
    rows(c, "SELECT at, event, agent FROM timeline WHERE task = ?1 ORDER BY entry", &[id.as_bytes()], |row| {
        let agent_id = optional_id(row, 2)?.map(AgentId::from_bytes);
        Ok(TimelineEntry { at: time(row, 0)?, event: row.get(1)?, agent_id })
    })
}

/// Adds a note.
pub fn add_note(c: &Connection, task: TaskId, note: &Note, notes_max: usize) -> StoreResult<()> {
    if !exists(c, "SELECT 1 FROM tasks WHERE id = ?1", &[task.as_bytes()])? {
        return Err(StoreError::NotFound);
    }
    if count(c, "SELECT count(*) FROM notes WHERE task = ?1", &[task.as_bytes()])? >= notes_max as u64 {
        return Err(StoreError::LimitReached);
    }
    c.prepare_cached(
        "INSERT INTO notes (task, id, from_agent, from_user, content, inserted_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )
    .and_then(|mut s| {
        s.execute(params![
            task.as_bytes(),
            note.id.as_bytes(),
            note.from_agent_id.as_ref().map(AgentId::as_bytes),
            note.from_user_id.as_ref().map(UserId::as_bytes),
            note.content,
            note.inserted_at.unix_ms(),
        ])
    })
    .map_err(sql_error)?;
    Ok(())
}

fn read_note(row: &Row<'_>) -> rusqlite::Result<Note> {
    Ok(Note {
        id: MessageId::from_bytes(id_bytes(row, 0)?),
        from_agent_id: optional_id(row, 1)?.map(AgentId::from_bytes),
        from_user_id: optional_id(row, 2)?.map(UserId::from_bytes),
        content: row.get(3)?,
        inserted_at: time(row, 4)?,
    })
}

/// The notes of a task.
pub fn notes(c: &Connection, task: TaskId) -> StoreResult<Vec<Note>> {
    let sql = format!("SELECT {NOTE_COLUMNS} FROM notes WHERE task = ?1 ORDER BY id");
    rows(c, &sql, &[task.as_bytes()], read_note)
}

/// The newest notes of all tasks of a hiring.
pub fn notes_of_hiring(c: &Connection, hiring: HiringId, notes_max: usize) -> StoreResult<Vec<Note>> {
    let sql = format!(
        "SELECT {NOTE_COLUMNS} FROM notes WHERE task IN (SELECT id FROM tasks WHERE hiring = ?1)
         ORDER BY id DESC LIMIT ?2"
    );
    let mut newest = rows(c, &sql, &[hiring.as_bytes(), &whole(notes_max)], read_note)?;
    newest.reverse();
    Ok(newest)
}

/// Of a hiring; its state is that of its task, which triggers copy.
const HIRING_COLUMNS: &str = "id, user, client, agent, agent_did, task, status, created_at, updated_at";

fn read_hiring(row: &Row<'_>) -> rusqlite::Result<Hiring> {
    let status: String = row.get(6)?;
    let status = TaskStatus::parse(&status).ok_or(rusqlite::Error::InvalidQuery)?;
    Ok(Hiring {
        id: HiringId::from_bytes(id_bytes(row, 0)?),
        user: optional_id(row, 1)?.map(UserId::from_bytes),
        client: AgentId::from_bytes(id_bytes(row, 2)?),
        agent: AgentId::from_bytes(id_bytes(row, 3)?),
        agent_did: row.get(4)?,
        task: TaskId::from_bytes(id_bytes(row, 5)?),
        status: HiringStatus::from(status),
        created_at: time(row, 7)?,
        updated_at: time(row, 8)?,
    })
}

/// A hiring.
pub fn hiring(c: &Connection, id: HiringId) -> StoreResult<Hiring> {
    let sql = format!("SELECT {HIRING_COLUMNS} FROM hirings WHERE id = ?1");
    c.prepare_cached(&sql).and_then(|mut s| s.query_row([id.as_bytes()], read_hiring)).map_err(sql_error)
}

/// Hirings, newest first.
pub fn hirings(c: &Connection, filter: &HiringFilter, request: &PageRequest) -> StoreResult<Page<Hiring>> {
    let list = lists::hirings(Dialect::Sqlite, HIRING_COLUMNS, "user", filter);
    listed(c, &list, (request, filter.skip), read_hiring, |hiring| *hiring.id.as_bytes())
}

/// Gives a failed or cancelled hiring a new task.
pub fn retry_hiring(c: &Connection, id: HiringId, task: &Task) -> StoreResult<Hiring> {
    hiring(c, id)?.status.check_retry().map_err(|_| StoreError::Conflict)?;
    create_task(c, task, None)?;
    add_timeline(c, task.id, "task_retried", task.created_at, Some(task.client))?;
    c.prepare_cached("UPDATE hirings SET task = ?1, updated_at = ?2 WHERE id = ?3")
        .and_then(|mut s| s.execute(params![task.id.as_bytes(), task.created_at.unix_ms(), id.as_bytes()]))
        .map_err(sql_error)?;
    hiring(c, id)
}
