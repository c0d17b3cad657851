//! Messages between agents, as SQL.

mod lists;

use async_trait::async_trait;
use muster_actors::store::{
    Accepted, Mail, MessageFilter, MessageStore, NewMessage, Outcome, Page, PageRequest, Settle, StoreError,
    StoreResult, Waiting, queued_bytes,
};
use muster_protocol::handoff::NOT_ANSWERED;
use muster_protocol::ids::{AgentId, MessageId};
use muster_protocol::json::Json;
use muster_protocol::mailbox::{Attempt, RETRIES_MAX};
use muster_protocol::message::kinds::TASK_HANDOFF;
use muster_protocol::message::{Guarantee, Message, MessageStatus, Verdict};
use muster_protocol::signing::statement::Digest;
use muster_protocol::time::Timestamp;
use muster_protocol::webhook::Happening;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use super::columns::{count, id_bytes, optional_json, optional_time, time};
use super::{SqliteStore, handoffs, sql_error, webhooks};
use crate::store::sql::{MESSAGE_COLUMNS, lost, whole};

fn read_mail_row(row: &Row<'_>) -> rusqlite::Result<Mail> {
    let broken = || rusqlite::Error::InvalidQuery;
    let seq: u64 = row.get(0)?;
    let (guarantee, status): (String, String) = (row.get(6)?, row.get(7)?);
    let message = Message {
        id: MessageId::from_bytes(id_bytes(row, 1)?),
        from: AgentId::from_bytes(id_bytes(row, 2)?),
        to: AgentId::from_bytes(id_bytes(row, 3)?),
        kind: row.get(4)?,
        version: row.get(5)?,
        guarantee: Guarantee::parse(&guarantee).ok_or_else(broken)?,
        status: MessageStatus::parse(&status).ok_or_else(broken)?,
        retries: row.get(8)?,
        inserted_at: time(row, 9)?,
        expires_at: time(row, 10)?,
        delivered_at: optional_time(row, 11)?,
        acknowledged_at: optional_time(row, 12)?,
        reason: row.get(13)?,
        dedup_key: row.get(14)?,
        signature: row.get(15)?,
        payload: optional_json(row, 16)?,
    };
    Ok(Mail { seq, message, is_open: row.get(17)? })
}

fn execute(c: &Connection, sql: &str, parameters: &[&dyn ToSql]) -> StoreResult<usize> {
    c.prepare_cached(sql).and_then(|mut s| s.execute(parameters)).map_err(sql_error)
}

/// The last place that was given to a message.
fn last_seq(c: &Connection) -> StoreResult<u64> {
    let sql = "SELECT max(coalesce((SELECT max(seq) FROM messages), 0), expired_upto) FROM messages_swept";
    count(c, sql, &[])
}

/// Stores messages; says of each what became of it.
pub(super) fn accept(c: &Connection, new: &[NewMessage]) -> StoreResult<Vec<Accepted>> {
    let mut seq = last_seq(c)?;
    let mut accepted = Vec::with_capacity(new.len());
    for one in new {
        let known = match &one.once {
            Some((key, hash)) => known(c, &one.message, key, hash)?,
            None => None,
        };
        if known.is_none() {
            seq += 1;
            insert(c, seq, one)?;
        }
        accepted.push(known.unwrap_or(Accepted::New));
    }
    Ok(accepted)
}

/// What there is under a sender's key. What is not kept any longer gives its key up.
fn known(c: &Connection, new: &Message, key: &str, hash: &Digest) -> StoreResult<Option<Accepted>> {
    let sql =
        format!("SELECT {MESSAGE_COLUMNS}, once_hash FROM messages WHERE from_agent = ?1 AND once_key = ?2");
    let found = c
        .prepare_cached(&sql)
        .and_then(|mut s| {
            s.query_row(params![new.from.as_bytes(), key], |row| {
                Ok((read_mail_row(row)?, row.get::<_, Option<[u8; 32]>>(18)?))
            })
            .optional()
        })
        .map_err(sql_error)?;
    let Some((mail, before)) = found else { return Ok(None) };
    if mail.message.expires_at <= new.inserted_at {
        execute(c, "UPDATE messages SET once_key = NULL WHERE seq = ?1", &[&whole(mail.seq)])?;
        return Ok(None);
    }
    let is_same = before.as_ref() == Some(hash.as_bytes());
    Ok(Some(if is_same { Accepted::Known(Box::new(mail.message)) } else { Accepted::Mismatch }))
}

fn insert(c: &Connection, seq: u64, new: &NewMessage) -> StoreResult<()> {
    let message = &new.message;
    c.prepare_cached(
        "INSERT INTO messages (seq, id, from_agent, to_agent, open, status, guarantee, version, inserted_at, expires_at,
            kind, dedup_key, signature, once_key, once_hash, payload, bytes)
         VALUES (?1, ?2, ?3, ?4, 1, 'queued', ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
    )
    .and_then(|mut s| {
        s.execute(params![
            whole(seq),
            message.id.as_bytes(),
            message.from.as_bytes(),
            message.to.as_bytes(),
            message.guarantee.as_str(),
            message.version,
            message.inserted_at.unix_ms(),
            message.expires_at.unix_ms(),
            message.kind,
            message.dedup_key,
            message.signature,
            new.once.as_ref().map(|(key, _)| key),
            new.once.as_ref().map(|(_, hash)| hash.as_bytes()),
            message.payload.as_ref().map(Json::as_str),
            whole(queued_bytes(message)),
        ])
    })
    .map_err(sql_error)?;
    Ok(())
}

fn settle(c: &Connection, settle: &Settle) -> StoreResult<Outcome> {
    let sql = format!("SELECT {MESSAGE_COLUMNS} FROM messages WHERE id = ?1 AND to_agent = ?2");
    let found = c
        .prepare_cached(&sql)
        .and_then(|mut s| s.query_row([settle.id.as_bytes(), settle.to.as_bytes()], read_mail_row))
        .map_err(sql_error)?;
    let message = found.message.as_of(settle.now);
    if !message.status.may_be_settled() {
        return Ok(Outcome::of(&message, false));
    }
    let reason = match &settle.verdict {
        Verdict::Acknowledged => None,
        Verdict::Rejected(reason) => reason.clone(),
    };
    let status = settle.verdict.status();
    let sql = "UPDATE messages SET status = ?1, reason = ?2, acknowledged_at = ?3, open = 0, lost = ?4 WHERE seq = ?5";
    let now = settle.now.unix_ms();
    execute(c, sql, &[&status.as_str(), &reason, &now, &lost(status), &whole(found.seq)])?;
    if status == MessageStatus::Rejected && message.kind == TASK_HANDOFF {
        handoffs::decline(c, message.id, reason.as_deref(), true, settle.now)?;
    }
    Ok(Outcome::of(&Message { status, reason, ..message }, true))
}

fn one(c: &Connection, id: MessageId) -> StoreResult<Mail> {
    let sql = format!("SELECT {MESSAGE_COLUMNS} FROM messages WHERE id = ?1");
    c.prepare_cached(&sql).and_then(|mut s| s.query_row([id.as_bytes()], read_mail_row)).map_err(sql_error)
}

/// By the index of what waits: SQLite takes that of all a recipient ever got for as good, because it is narrower.
fn fetching() -> String {
    format!(
        "SELECT {MESSAGE_COLUMNS} FROM messages INDEXED BY messages_open
         WHERE to_agent = ?1 AND open = 1 AND expires_at > ?2 AND seq NOT IN (SELECT value FROM json_each(?3))
         ORDER BY seq LIMIT ?4"
    )
}

fn fetch(
    c: &Connection,
    to: AgentId,
    known: &[u64],
    (rows_max, bytes_max): (usize, usize),
    now: Timestamp,
) -> StoreResult<(Vec<Mail>, bool)> {
    let known = Json::of(known);
    let sql = fetching();
    let (mut found, full) = {
        let mut statement = c.prepare_cached(&sql).map_err(sql_error)?;
        let parameters = params![to.as_bytes(), now.unix_ms(), known.as_str(), whole(rows_max)];
        let rows = statement.query_map(parameters, read_mail_row).map_err(sql_error)?;
        bounded(rows, rows_max, bytes_max)?
    };
    for mail in &mut found {
        if mail.message.status == MessageStatus::Queued {
            mail.message.status = MessageStatus::Delivered;
            mail.message.delivered_at.get_or_insert(now);
            mail.is_open = mail.message.guarantee != Guarantee::AtMostOnce;
            let delivered_at = mail.message.delivered_at.map(Timestamp::unix_ms);
            let sql = "UPDATE messages SET status = 'delivered', delivered_at = ?1, open = ?2 WHERE seq = ?3";
            execute(c, sql, &[&delivered_at, &mail.is_open, &whole(mail.seq)])?;
        }
    }
    Ok((found, full))
}

/// Rows up to a number of bytes, but one at least; and whether there may be more.
fn bounded(
    rows: impl Iterator<Item = rusqlite::Result<Mail>>,
    rows_max: usize,
    bytes_max: usize,
) -> StoreResult<(Vec<Mail>, bool)> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    for mail in rows {
        let mail = mail.map_err(sql_error)?;
        bytes += mail.message.payload.as_ref().map_or(0, |payload| payload.as_bytes().len());
        found.push(mail);
        if bytes >= bytes_max {
            return Ok((found, true));
        }
    }
    let full = found.len() >= rows_max;
    Ok((found, full))
}

/// A message that was pushed and waits for its acknowledgement.
fn open_mail(c: &Connection, to: AgentId, seq: u64) -> StoreResult<Option<Mail>> {
    let sql = format!(
        "SELECT {MESSAGE_COLUMNS} FROM messages WHERE seq = ?1 AND to_agent = ?2 AND open = 1 AND status = 'delivered'"
    );
    c.prepare_cached(&sql)
        .and_then(|mut s| s.query_row(params![whole(seq), to.as_bytes()], read_mail_row).optional())
        .map_err(sql_error)
}

fn retry(c: &Connection, to: AgentId, attempts: &[Attempt], now: Timestamp) -> StoreResult<Vec<Mail>> {
    let mut found = Vec::with_capacity(attempts.len());
    for attempt in attempts {
        let Some(mut mail) = open_mail(c, to, attempt.seq)? else { continue };
        if mail.message.expires_at <= now {
            continue;
        }
        if mail.message.retries == attempt.retries && attempt.retries < RETRIES_MAX {
            mail.message.retries += 1;
            execute(c, "UPDATE messages SET retries = retries + 1 WHERE seq = ?1", &[&whole(mail.seq)])?;
        }
        found.push(mail);
    }
    Ok(found)
}

fn read_again(c: &Connection, to: AgentId, seqs: &[u64], bytes_max: usize) -> StoreResult<Vec<Mail>> {
    let rows = seqs.iter().filter_map(|seq| open_mail(c, to, *seq).transpose());
    let (mut found, mut bytes) = (Vec::new(), 0);
    for mail in rows {
        let mail = mail?;
        bytes += mail.message.payload.as_ref().map_or(0, |payload| payload.as_bytes().len());
        found.push(mail);
        if bytes >= bytes_max {
            break;
        }
    }
    Ok(found)
}

fn fail(c: &Connection, to: AgentId, seqs: &[u64], now: Timestamp) -> StoreResult<Vec<Outcome>> {
    let mut failed = Vec::new();
    for seq in seqs {
        let Some(mail) = open_mail(c, to, *seq)?.filter(|mail| mail.message.retries >= RETRIES_MAX) else {
            continue;
        };
        let sql = "UPDATE messages SET status = 'failed', lost = 'failed', open = 0 WHERE seq = ?1";
        execute(c, sql, &[&whole(*seq)])?;
        webhooks::queue_all(c, || vec![Happening::of_dead_letter(&mail.message, now)])?;
        failed.push(Outcome::of(&Message { status: MessageStatus::Failed, ..mail.message }, true));
    }
    Ok(failed)
}

fn requeue(c: &Connection, to: AgentId, pushed: &[Attempt]) -> StoreResult<()> {
    let sql = "UPDATE messages SET status = 'queued', retries = 0, delivered_at = NULL
               WHERE seq = ?1 AND to_agent = ?2 AND open = 1 AND status = 'delivered' AND retries = ?3";
    for attempt in pushed {
        execute(c, sql, &[&whole(attempt.seq), to.as_bytes(), &attempt.retries])?;
    }
    Ok(())
}

fn redeliver(c: &Connection, id: MessageId, now: Timestamp) -> StoreResult<Message> {
    let mail = one(c, id)?;
    if mail.message.status != MessageStatus::Failed || mail.message.expires_at <= now {
        return Err(StoreError::Conflict);
    }
    let sql = "UPDATE messages SET status = 'queued', lost = NULL, open = 1, retries = 0, delivered_at = NULL WHERE seq = ?1";
    execute(c, sql, &[&whole(mail.seq)])?;
    Ok(Message { status: MessageStatus::Queued, retries: 0, delivered_at: None, ..mail.message })
}

fn expire(c: &Connection, now: Timestamp, rows_max: usize) -> StoreResult<(usize, Vec<Outcome>)> {
    let upto = count(c, "SELECT expired_upto FROM messages_swept", &[])?;
    let sql = format!("SELECT {MESSAGE_COLUMNS} FROM messages WHERE seq > ?1 ORDER BY seq LIMIT ?2");
    let due: Vec<Mail> = {
        let mut statement = c.prepare_cached(&sql).map_err(sql_error)?;
        let rows =
            statement.query_map(params![whole(upto), whole(rows_max)], read_mail_row).map_err(sql_error)?;
        let is_due =
            |mail: &rusqlite::Result<Mail>| mail.as_ref().map_or(true, |mail| mail.message.expires_at <= now);
        rows.take_while(is_due).collect::<rusqlite::Result<_>>().map_err(sql_error)?
    };
    let Some(last) = due.last() else { return Ok((0, Vec::new())) };
    let mut expired = Vec::new();
    for mail in &due {
        let status = mail.message.status.when_over(mail.message.guarantee);
        let sql =
            "UPDATE messages SET status = ?1, lost = ?2, open = 0, payload = NULL, signature = NULL, once_key = NULL,
                       once_hash = NULL WHERE seq = ?3";
        execute(c, sql, &[&status.as_str(), &lost(status), &whole(mail.seq)])?;
        if mail.message.kind == TASK_HANDOFF {
            handoffs::decline(c, mail.message.id, Some(NOT_ANSWERED), false, now)?;
        }
        if status != mail.message.status {
            expired.push(Outcome { status, ..Outcome::of(&mail.message, true) });
        }
    }
    execute(c, "UPDATE messages_swept SET expired_upto = ?1", &[&whole(last.seq)])?;
    Ok((due.len(), expired))
}

fn purge(c: &Connection, expired_before: Timestamp, rows_max: usize) -> StoreResult<usize> {
    let sql = "DELETE FROM messages WHERE expires_at <= ?1 AND seq IN
                   (SELECT seq FROM messages WHERE seq <= (SELECT expired_upto FROM messages_swept)
                    ORDER BY seq LIMIT ?2)";
    execute(c, sql, &[&expired_before.unix_ms(), &whole(rows_max)])
}

#[async_trait]
impl MessageStore for SqliteStore {
    async fn accept_messages(&self, new: Vec<NewMessage>) -> StoreResult<Vec<Accepted>> {
        self.write(move |c| accept(c, &new)).await
    }

    async fn settle_messages(&self, all: Vec<Settle>) -> StoreResult<Vec<StoreResult<Outcome>>> {
        self.write(move |c| {
            let settled = all.iter().map(|one| match settle(c, one) {
                // Not refused but broken: nobody knows what is left of the transaction.
                Err(error @ StoreError::Unavailable(_)) => Err(error),
                result => Ok(result),
            });
            settled.collect()
        })
        .await
    }

    async fn message(&self, id: MessageId) -> StoreResult<Message> {
        self.read(move |c| Ok(one(c, id)?.message)).await
    }

    async fn messages(&self, filter: MessageFilter, page: PageRequest) -> StoreResult<Page<Message>> {
        self.read(move |c| lists::list(c, &filter, &page)).await
    }

    async fn fetch_mail(
        &self,
        to: AgentId,
        known: Vec<u64>,
        most: (usize, usize),
        now: Timestamp,
    ) -> StoreResult<(Vec<Mail>, bool)> {
        self.write(move |c| fetch(c, to, &known, most, now)).await
    }

    async fn retry_mail(
        &self,
        to: AgentId,
        attempts: Vec<Attempt>,
        now: Timestamp,
    ) -> StoreResult<Vec<Mail>> {
        self.write(move |c| retry(c, to, &attempts, now)).await
    }

    async fn read_mail(&self, to: AgentId, seqs: Vec<u64>, bytes_max: usize) -> StoreResult<Vec<Mail>> {
        self.read(move |c| read_again(c, to, &seqs, bytes_max)).await
    }

    async fn fail_mail(&self, to: AgentId, seqs: Vec<u64>, now: Timestamp) -> StoreResult<Vec<Outcome>> {
        self.write(move |c| fail(c, to, &seqs, now)).await
    }

    async fn requeue_mail(&self, to: AgentId, pushed: Vec<Attempt>) -> StoreResult<()> {
        self.write(move |c| requeue(c, to, &pushed)).await
    }

    async fn redeliver_message(&self, id: MessageId, now: Timestamp) -> StoreResult<Message> {
        self.write(move |c| redeliver(c, id, now)).await
    }

    async fn is_known(&self, from: AgentId, key: String, now: Timestamp) -> StoreResult<bool> {
        let sql = "SELECT count(*) FROM messages WHERE from_agent = ?1 AND once_key = ?2 AND expires_at > ?3";
        self.read(move |c| Ok(count(c, sql, &[&from.as_bytes(), &key, &now.unix_ms()])? > 0)).await
    }

    async fn waiting_mail(&self, to: AgentId, most: usize, heavy: (usize, usize)) -> StoreResult<Waiting> {
        self.read(move |c| lists::waiting(c, to, most, heavy)).await
    }

    async fn expire_messages(&self, now: Timestamp, rows_max: usize) -> StoreResult<(usize, Vec<Outcome>)> {
        self.write(move |c| expire(c, now, rows_max)).await
    }

    async fn purge_messages(&self, expired_before: Timestamp, rows_max: usize) -> StoreResult<usize> {
        self.write(move |c| purge(c, expired_before, rows_max)).await
    }
}
