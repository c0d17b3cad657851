//! Messages between agents, as SQL: a few statements for as many messages as there are.

pub(super) mod lists;

use std::collections::{HashMap, HashSet};

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
use muster_protocol::time::Timestamp;
use muster_protocol::webhook::Happening;
use tokio_postgres::Row;

use super::columns::{Id, broken, id, id_bytes, number, optional_json, optional_time, time};
use super::pool::{Connection, Failure};
use super::{PostgresStore, handoffs, webhooks};
use crate::store::sql::{MESSAGE_COLUMNS, lost, whole};

fn read_mail_row(row: &Row) -> Result<Mail, Failure> {
    let message = Message {
        id: MessageId::from_bytes(id_bytes(row, 1)?),
        from: AgentId::from_bytes(id_bytes(row, 2)?),
        to: AgentId::from_bytes(id_bytes(row, 3)?),
        kind: row.try_get(4)?,
        version: row.try_get(5)?,
        guarantee: Guarantee::parse(row.try_get(6)?).ok_or_else(broken)?,
        status: MessageStatus::parse(row.try_get(7)?).ok_or_else(broken)?,
        retries: u32::try_from(number(row, 8)?).map_err(|_| broken())?,
        inserted_at: time(row, 9)?,
        expires_at: time(row, 10)?,
        delivered_at: optional_time(row, 11)?,
        acknowledged_at: optional_time(row, 12)?,
        reason: row.try_get(13)?,
        dedup_key: row.try_get(14)?,
        signature: row.try_get(15)?,
        payload: optional_json(row, 16)?,
    };
    Ok(Mail { seq: number(row, 0)?, message, is_open: row.try_get(17)? })
}

fn read_all(rows: &[Row]) -> Result<Vec<Mail>, Failure> {
    rows.iter().map(read_mail_row).collect()
}

/// Stores messages; says of each what became of it.
pub(super) async fn accept(c: &Connection, new: &[NewMessage]) -> Result<Vec<Accepted>, Failure> {
    let keyed: Vec<(Id, &str, i64)> = new
        .iter()
        .filter_map(|one| {
            let (key, _) = one.once.as_ref()?;
            Some((id!(one.message.from), key.as_str(), one.message.inserted_at.unix_ms()))
        })
        .collect();
    if !keyed.is_empty() {
        // What is not kept any longer gives its key up.
        let (mut of, mut keys, mut times) = (Vec::new(), Vec::new(), Vec::new());
        for (from, key, now) in &keyed {
            of.push(*from);
            keys.push(*key);
            times.push(*now);
        }
        let sql = "UPDATE messages SET once_key = NULL FROM unnest($1::uuid[], $2::text[], $3::bigint[]) x (agent, key, now)
                   WHERE from_agent = x.agent AND once_key = x.key AND expires_at <= x.now";
        c.execute(sql, &[&of, &keys, &times]).await?;
    }
    let inserted = insert(c, new).await?;
    let mut accepted = Vec::with_capacity(new.len());
    for one in new {
        accepted.push(match &one.once {
            Some((key, hash)) if !inserted.contains(one.message.id.as_bytes()) => {
                let sql = format!(
                    "SELECT {MESSAGE_COLUMNS}, once_hash FROM messages WHERE from_agent = $1 AND once_key = $2"
                );
                let row = c.one(&sql, &[&id!(one.message.from), key]).await?;
                let before: Option<&[u8]> = row.try_get(18)?;
                if before == Some(hash.as_bytes().as_slice()) {
                    Accepted::Known(Box::new(read_mail_row(&row)?.message))
                } else {
                    Accepted::Mismatch
                }
            }
            _ => Accepted::New,
        });
    }
    Ok(accepted)
}

/// Stores messages in one statement, in their order; gives the ids of those that were stored, if one may not have been.
async fn insert(c: &Connection, new: &[NewMessage]) -> Result<HashSet<[u8; 16]>, Failure> {
    let messages = || new.iter().map(|one| &one.message);
    let ids: Vec<Id> = messages().map(|message| id!(message.id)).collect();
    let from: Vec<Id> = messages().map(|message| id!(message.from)).collect();
    let to: Vec<Id> = messages().map(|message| id!(message.to)).collect();
    let guarantees: Vec<&str> = messages().map(|message| message.guarantee.as_str()).collect();
    let versions: Vec<&str> = messages().map(|message| message.version.as_str()).collect();
    let inserted: Vec<i64> = messages().map(|message| message.inserted_at.unix_ms()).collect();
    let expires: Vec<i64> = messages().map(|message| message.expires_at.unix_ms()).collect();
    let kinds: Vec<&str> = messages().map(|message| message.kind.as_str()).collect();
    let keys: Vec<Option<&str>> = messages().map(|message| message.dedup_key.as_deref()).collect();
    let signatures: Vec<Option<&str>> = messages().map(|message| message.signature.as_deref()).collect();
    let payloads: Vec<Option<&str>> =
        messages().map(|message| message.payload.as_ref().map(Json::as_str)).collect();
    let bytes: Vec<i64> = messages().map(|message| whole(queued_bytes(message))).collect();
    let once_keys: Vec<Option<&str>> =
        new.iter().map(|one| one.once.as_ref().map(|(key, _)| key.as_str())).collect();
    let once_hashes: Vec<Option<&[u8]>> =
        new.iter().map(|one| one.once.as_ref().map(|(_, hash)| hash.as_bytes().as_slice())).collect();
    let sql = "INSERT INTO messages (id, from_agent, to_agent, open, status, guarantee, version, inserted_at, expires_at,
                   kind, dedup_key, signature, payload, once_key, once_hash, bytes)
               SELECT id, from_agent, to_agent, true, 'queued', guarantee, version, inserted_at, expires_at,
                   kind, dedup_key, signature, payload, once_key, once_hash, bytes
               FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::bigint[], $7::bigint[],
                   $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::bytea[],
                   $14::bigint[]) WITH ORDINALITY
                   x (id, from_agent, to_agent, guarantee, version, inserted_at, expires_at, kind, dedup_key, signature,
                   payload, once_key, once_hash, bytes, place)
               ORDER BY place
               ON CONFLICT (from_agent, once_key) WHERE once_key IS NOT NULL DO NOTHING RETURNING id";
    let rows = c
        .query(
            sql,
            &[
                &ids,
                &from,
                &to,
                &guarantees,
                &versions,
                &inserted,
                &expires,
                &kinds,
                &keys,
                &signatures,
                &payloads,
                &once_keys,
                &once_hashes,
                &bytes,
            ],
        )
        .await?;
    rows.iter().map(|row| id_bytes(row, 0)).collect()
}

async fn settle_all(c: &Connection, all: &[Settle]) -> Result<Vec<StoreResult<Outcome>>, Failure> {
    let ids: Vec<Id> = all.iter().map(|settle| id!(settle.id)).collect();
    // All nodes lock in this order.
    let sql =
        format!("SELECT {MESSAGE_COLUMNS} FROM messages WHERE id = ANY ($1) ORDER BY seq FOR NO KEY UPDATE");
    let rows = c.query(&sql, &[&ids]).await?;
    let mut known: HashMap<MessageId, Mail> =
        read_all(&rows)?.into_iter().map(|mail| (mail.message.id, mail)).collect();
    let (mut seqs, mut statuses, mut reasons, mut times) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut ends: Vec<Option<&str>> = Vec::new();
    let (mut settled, mut declined) = (Vec::with_capacity(all.len()), Vec::new());
    for settle in all {
        let found = known.get_mut(&settle.id).filter(|mail| mail.message.to == settle.to);
        let Some(mail) = found else {
            settled.push(Err(StoreError::NotFound));
            continue;
        };
        mail.message = mail.message.clone().as_of(settle.now);
        let is_new = mail.message.status.may_be_settled();
        if is_new {
            mail.message.status = settle.verdict.status();
            mail.message.reason = match &settle.verdict {
                Verdict::Acknowledged => None,
                Verdict::Rejected(reason) => reason.clone(),
            };
            seqs.push(whole(mail.seq));
            statuses.push(mail.message.status.as_str());
            ends.push(lost(mail.message.status));
            reasons.push(mail.message.reason.clone());
            times.push(settle.now.unix_ms());
            if mail.message.status == MessageStatus::Rejected && mail.message.kind == TASK_HANDOFF {
                declined.push((settle, mail.message.reason.clone()));
            }
        }
        settled.push(Ok(Outcome::of(&mail.message, is_new)));
    }
    if !seqs.is_empty() {
        let sql =
            "UPDATE messages SET status = x.status, reason = x.reason, acknowledged_at = x.at, open = false, lost = x.lost
                   FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::text[])
                       x (seq, status, reason, at, lost)
                   WHERE messages.seq = x.seq";
        c.execute(sql, &[&seqs, &statuses, &reasons, &times, &ends]).await?;
    }
    for (settle, reason) in declined {
        handoffs::decline(c, &[(settle.id, reason.as_deref())], true, settle.now).await?;
    }
    Ok(settled)
}

/// Places of the oldest open messages, and the bytes of each.
async fn oldest(
    c: &Connection,
    to: AgentId,
    known: &[i64],
    rows_max: usize,
    now: Timestamp,
) -> Result<Vec<(i64, i32)>, Failure> {
    let sql = "SELECT seq, coalesce(octet_length(payload), 0) FROM messages
               WHERE to_agent = $1 AND open AND expires_at > $2 AND NOT (seq = ANY ($3)) ORDER BY seq LIMIT $4";
    let rows = c.query(sql, &[&id!(to), &now.unix_ms(), &known, &whole(rows_max)]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// As many as go into so many bytes, but one at least.
fn within(sizes: &[(i64, i32)], bytes_max: usize) -> Vec<i64> {
    let mut bytes = 0;
    let fits = |(_, size): &&(i64, i32)| {
        let fits = bytes < bytes_max;
        bytes += usize::try_from(*size).unwrap_or(0);
        fits
    };
    sizes.iter().take_while(fits).map(|(seq, _)| *seq).collect()
}

async fn fetch(
    c: &Connection,
    to: AgentId,
    known: &[i64],
    (rows_max, bytes_max): (usize, usize),
    now: Timestamp,
) -> Result<(Vec<Mail>, bool), Failure> {
    let sizes = oldest(c, to, known, rows_max, now).await?;
    let seqs = within(&sizes, bytes_max);
    let full = seqs.len() < sizes.len() || sizes.len() >= rows_max;
    if seqs.is_empty() {
        return Ok((Vec::new(), full));
    }
    // All nodes lock in this order.
    c.query("SELECT 1 FROM messages WHERE seq = ANY ($1) ORDER BY seq FOR NO KEY UPDATE", &[&seqs]).await?;
    let sql = "UPDATE messages SET status = 'delivered', delivered_at = coalesce(delivered_at, $2),
                   open = (guarantee <> 'at_most_once')
               WHERE seq = ANY ($1) AND status = 'queued' AND open RETURNING seq";
    let rows = c.query(sql, &[&seqs, &now.unix_ms()]).await?;
    let claimed: Vec<i64> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let sql = format!(
        "SELECT {MESSAGE_COLUMNS} FROM messages WHERE seq = ANY ($1) AND (open OR seq = ANY ($2)) ORDER BY seq"
    );
    Ok((read_all(&c.query(&sql, &[&seqs, &claimed]).await?)?, full))
}

async fn open_mail(c: &Connection, to: AgentId, seqs: &[i64]) -> Result<Vec<Mail>, Failure> {
    let sql = format!(
        "SELECT {MESSAGE_COLUMNS} FROM messages
         WHERE seq = ANY ($1) AND to_agent = $2 AND open AND status = 'delivered' ORDER BY seq"
    );
    read_all(&c.query(&sql, &[&seqs, &id!(to)]).await?)
}

async fn retry(
    c: &Connection,
    to: AgentId,
    attempts: &[Attempt],
    now: Timestamp,
) -> Result<Vec<Mail>, Failure> {
    let seqs: Vec<i64> = attempts.iter().map(|attempt| whole(attempt.seq)).collect();
    let retries: Vec<i64> = attempts.iter().map(|attempt| i64::from(attempt.retries)).collect();
    // All nodes lock in this order.
    c.query("SELECT 1 FROM messages WHERE seq = ANY ($1) ORDER BY seq FOR NO KEY UPDATE", &[&seqs]).await?;
    let sql = "UPDATE messages SET retries = messages.retries + 1
               FROM unnest($1::bigint[], $2::bigint[]) x (seq, retries)
               WHERE messages.seq = x.seq AND to_agent = $3 AND open AND status = 'delivered'
                   AND messages.retries = x.retries AND x.retries < $4 AND expires_at > $5";
    let most = i64::from(RETRIES_MAX);
    c.execute(sql, &[&seqs, &retries, &id!(to), &most, &now.unix_ms()]).await?;
    let mut found = open_mail(c, to, &seqs).await?;
    found.retain(|mail| mail.message.expires_at > now);
    Ok(found)
}

async fn read_again(
    c: &Connection,
    to: AgentId,
    seqs: &[i64],
    bytes_max: usize,
) -> Result<Vec<Mail>, Failure> {
    let sql = "SELECT seq, coalesce(octet_length(payload), 0) FROM messages
               WHERE seq = ANY ($1) AND to_agent = $2 AND open AND status = 'delivered' ORDER BY seq";
    let rows = c.query(sql, &[&seqs, &id!(to)]).await?;
    let sizes: Vec<(i64, i32)> =
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, Failure>>()?;
    open_mail(c, to, &within(&sizes, bytes_max)).await
}

async fn fail(c: &Connection, to: AgentId, seqs: &[i64], now: Timestamp) -> Result<Vec<Outcome>, Failure> {
    let sql = format!(
        "UPDATE messages SET status = 'failed', lost = 'failed', open = false
         WHERE seq IN (SELECT seq FROM messages WHERE seq = ANY ($1) ORDER BY seq FOR NO KEY UPDATE)
             AND to_agent = $2 AND open AND status = 'delivered' AND retries >= $3 RETURNING {MESSAGE_COLUMNS}"
    );
    let rows = c.query(&sql, &[&seqs, &id!(to), &i64::from(RETRIES_MAX)]).await?;
    let failed = read_all(&rows)?;
    if !failed.is_empty() {
        let told = || failed.iter().map(|mail| Happening::of_dead_letter(&mail.message, now)).collect();
        webhooks::queue_all(c, told).await?;
    }
    Ok(failed.iter().map(|mail| Outcome::of(&mail.message, true)).collect())
}

async fn requeue(c: &Connection, to: AgentId, pushed: &[Attempt]) -> Result<(), Failure> {
    let seqs: Vec<i64> = pushed.iter().map(|attempt| whole(attempt.seq)).collect();
    let retries: Vec<i64> = pushed.iter().map(|attempt| i64::from(attempt.retries)).collect();
    // All nodes lock in this order.
    c.query("SELECT 1 FROM messages WHERE seq = ANY ($1) ORDER BY seq FOR NO KEY UPDATE", &[&seqs]).await?;
    let sql = "UPDATE messages SET status = 'queued', retries = 0, delivered_at = NULL
               FROM unnest($1::bigint[], $2::bigint[]) x (seq, retries)
               WHERE messages.seq = x.seq AND to_agent = $3 AND open AND status = 'delivered'
                   AND messages.retries = x.retries";
    c.execute(sql, &[&seqs, &retries, &id!(to)]).await?;
    Ok(())
}

async fn redeliver(c: &Connection, message: MessageId, now: Timestamp) -> Result<Message, Failure> {
    let sql = format!(
        "UPDATE messages SET status = 'queued', lost = NULL, open = true, retries = 0, delivered_at = NULL
         WHERE id = $1 AND status = 'failed' AND expires_at > $2 RETURNING {MESSAGE_COLUMNS}"
    );
    match c.optional(&sql, &[&id!(message), &now.unix_ms()]).await? {
        Some(row) => Ok(read_mail_row(&row)?.message),
        None => {
            c.one("SELECT 1 FROM messages WHERE id = $1", &[&id!(message)]).await?;
            Err(StoreError::Conflict.into())
        }
    }
}

async fn expire(c: &Connection, now: Timestamp, rows_max: usize) -> Result<(usize, Vec<Outcome>), Failure> {
    // One node at a time goes on from where it was.
    let row = c.one("SELECT expired_upto FROM messages_swept FOR UPDATE", &[]).await?;
    let upto: i64 = row.try_get(0)?;
    // First up to where, without a lock and without what they say: most of the time nothing is due.
    let ends = c
        .one(
            "SELECT coalesce(min(seq) FILTER (WHERE expires_at > $3), max(seq) + 1, 0)
             FROM (SELECT seq, expires_at FROM messages WHERE seq > $1 ORDER BY seq LIMIT $2) oldest",
            &[&upto, &whole(rows_max), &now.unix_ms()],
        )
        .await?;
    let ends: i64 = ends.try_get(0)?;
    let sql = format!(
        "SELECT {MESSAGE_COLUMNS} FROM messages WHERE seq > $1 AND seq < $2 ORDER BY seq FOR NO KEY UPDATE"
    );
    let rows = c.query(&sql, &[&upto, &ends]).await?;
    let due = read_all(&rows)?;
    let Some(last) = due.last().map(|mail| whole(mail.seq)) else { return Ok((0, Vec::new())) };
    let (mut seqs, mut statuses, mut expired) = (Vec::new(), Vec::new(), Vec::new());
    let mut ends: Vec<Option<&str>> = Vec::new();
    for mail in &due {
        let status = mail.message.status.when_over(mail.message.guarantee);
        seqs.push(whole(mail.seq));
        statuses.push(status.as_str());
        ends.push(lost(status));
        if status != mail.message.status {
            expired.push(Outcome { status, ..Outcome::of(&mail.message, true) });
        }
    }
    let sql = "UPDATE messages SET status = x.status, lost = x.lost, open = false, payload = NULL, signature = NULL,
                   once_key = NULL, once_hash = NULL
               FROM unnest($1::bigint[], $2::text[], $3::text[]) x (seq, status, lost) WHERE messages.seq = x.seq";
    c.execute(sql, &[&seqs, &statuses, &ends]).await?;
    let handed = due.iter().filter(|mail| mail.message.kind == TASK_HANDOFF);
    let handed: Vec<_> = handed.map(|mail| (mail.message.id, Some(NOT_ANSWERED))).collect();
    handoffs::decline(c, &handed, false, now).await?;
    c.execute("UPDATE messages_swept SET expired_upto = $1", &[&last]).await?;
    Ok((due.len(), expired))
}

async fn purge(c: &Connection, expired_before: Timestamp, rows_max: usize) -> Result<usize, Failure> {
    let sql = "DELETE FROM messages WHERE expires_at <= $1 AND seq IN
                   (SELECT seq FROM messages WHERE seq <= (SELECT expired_upto FROM messages_swept)
                    ORDER BY seq LIMIT $2)";
    let forgotten = c.execute(sql, &[&expired_before.unix_ms(), &whole(rows_max)]).await?;
    Ok(usize::try_from(forgotten).unwrap_or(usize::MAX))
}

fn places(seqs: &[u64]) -> Vec<i64> {
    seqs.iter().map(|seq| whole(*seq)).collect()
}

#[async_trait]
impl MessageStore for PostgresStore {
    async fn accept_messages(&self, new: Vec<NewMessage>) -> StoreResult<Vec<Accepted>> {
        let new = &new;
        self.pool.write(|c| async move { accept(&c, new).await }).await
    }

    async fn settle_messages(&self, all: Vec<Settle>) -> StoreResult<Vec<StoreResult<Outcome>>> {
        let all = &all;
        self.pool.write(|c| async move { settle_all(&c, all).await }).await
    }

    async fn message(&self, id: MessageId) -> StoreResult<Message> {
        self.pool
            .read(|c| async move {
                let sql = format!("SELECT {MESSAGE_COLUMNS} FROM messages WHERE id = $1");
                Ok(read_mail_row(&c.one(&sql, &[&id!(id)]).await?)?.message)
            })
            .await
    }

    async fn messages(&self, filter: MessageFilter, page: PageRequest) -> StoreResult<Page<Message>> {
        let filter = &filter;
        self.pool.read(|c| async move { lists::list(&c, filter, &page).await }).await
    }

    async fn fetch_mail(
        &self,
        to: AgentId,
        known: Vec<u64>,
        most: (usize, usize),
        now: Timestamp,
    ) -> StoreResult<(Vec<Mail>, bool)> {
        let known = &places(&known);
        // Nodes ask now and then whether there is something that nobody told them of; mostly there is nothing.
        let is_empty =
            self.pool.read(|c| async move { Ok(oldest(&c, to, known, 1, now).await?.is_empty()) }).await?;
        if is_empty {
            return Ok((Vec::new(), false));
        }
        self.pool.write(|c| async move { fetch(&c, to, known, most, now).await }).await
    }

    async fn retry_mail(
        &self,
        to: AgentId,
        attempts: Vec<Attempt>,
        now: Timestamp,
    ) -> StoreResult<Vec<Mail>> {
        let attempts = &attempts;
        self.pool.write(|c| async move { retry(&c, to, attempts, now).await }).await
    }

    async fn read_mail(&self, to: AgentId, seqs: Vec<u64>, bytes_max: usize) -> StoreResult<Vec<Mail>> {
        let seqs = &places(&seqs);
        self.pool.read(|c| async move { read_again(&c, to, seqs, bytes_max).await }).await
    }

    async fn fail_mail(&self, to: AgentId, seqs: Vec<u64>, now: Timestamp) -> StoreResult<Vec<Outcome>> {
        let seqs = &places(&seqs);
        self.pool.write(|c| async move { fail(&c, to, seqs, now).await }).await
    }

    async fn requeue_mail(&self, to: AgentId, pushed: Vec<Attempt>) -> StoreResult<()> {
        let pushed = &pushed;
        self.pool.write(|c| async move { requeue(&c, to, pushed).await }).await
    }

    async fn redeliver_message(&self, id: MessageId, now: Timestamp) -> StoreResult<Message> {
        self.pool.write(|c| async move { redeliver(&c, id, now).await }).await
    }

    async fn is_known(&self, from: AgentId, key: String, now: Timestamp) -> StoreResult<bool> {
        let (key, now) = (&key, now.unix_ms());
        let sql = "SELECT count(*) FROM messages WHERE from_agent = $1 AND once_key = $2 AND expires_at > $3";
        self.pool.read(|c| async move { Ok(c.count(sql, &[&id!(from), key, &now]).await? > 0) }).await
    }

    async fn waiting_mail(&self, to: AgentId, most: usize, heavy: (usize, usize)) -> StoreResult<Waiting> {
        self.pool.read(|c| async move { lists::waiting(&c, to, most, heavy).await }).await
    }

    async fn expire_messages(&self, now: Timestamp, rows_max: usize) -> StoreResult<(usize, Vec<Outcome>)> {
        self.pool.write(|c| async move { expire(&c, now, rows_max).await }).await
    }

    async fn purge_messages(&self, expired_before: Timestamp, rows_max: usize) -> StoreResult<usize> {
        self.pool.write(|c| async move { purge(&c, expired_before, rows_max).await }).await
    }
}
