//! Webhooks and their deliveries, as SQL. What happens is queued by [`queue`] in the transaction in which it happens.

use std::collections::BTreeSet;

use async_trait::async_trait;
use muster_actors::store::{AttemptEntry, Claim, Settled, StoreError, StoreResult, WebhookStore};
use muster_protocol::account::Owner;
use muster_protocol::ids::{AgentId, DeliveryId, UserId, WebhookId};
use muster_protocol::ledger::Entry;
use muster_protocol::task::Task;
use muster_protocol::time::Timestamp;
use muster_protocol::webhook::{
    ATTEMPTS_KEPT, Attempted, Delivery, Events, Happening, Next, PART_MAX, Webhook, part_of,
};
use rusqlite::{Connection, Row, params};

use super::columns::{count, exists, id_bytes, json, optional_id, optional_time, rows, time};
use super::{SqliteStore, sql_error};
use crate::store::sql::whole;

const COLUMNS: &str = "id, agent, user, url, secret, events, created_at, failing_since, disabled_at";

fn read_webhook(row: &Row<'_>) -> rusqlite::Result<Webhook> {
    let owner = match (optional_id(row, 1)?, optional_id(row, 2)?) {
        (Some(agent), _) => Owner::Agent(AgentId::from_bytes(agent)),
        (None, Some(user)) => Owner::User(UserId::from_bytes(user)),
        (None, None) => return Err(rusqlite::Error::InvalidQuery),
    };
    Ok(Webhook {
        id: WebhookId::from_bytes(id_bytes(row, 0)?),
        owner,
        url: row.get(3)?,
        secret: row.get(4)?,
        events: Events::from_bits(row.get(5)?),
        created_at: time(row, 6)?,
        failing_since: optional_time(row, 7)?,
        disabled_at: optional_time(row, 8)?,
    })
}

fn owner_columns(owner: Owner) -> (Option<[u8; 16]>, Option<[u8; 16]>) {
    match owner {
        Owner::Agent(agent) => (Some(*agent.as_bytes()), None),
        Owner::User(user) => (None, Some(*user.as_bytes())),
    }
}

fn create(c: &Connection, webhook: &Webhook, webhooks_max: usize) -> StoreResult<()> {
    let (agent, user) = owner_columns(webhook.owner);
    let sql = "SELECT count(*) FROM webhooks WHERE agent = ?1 OR user = ?2";
    if count(c, sql, &[&agent, &user])? >= webhooks_max as u64 {
        return Err(StoreError::LimitReached);
    }
    c.prepare_cached(
        "INSERT INTO webhooks (id, agent, user, url, secret, events, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )
    .and_then(|mut s| {
        s.execute(params![
            webhook.id.as_bytes(),
            agent,
            user,
            webhook.url,
            webhook.secret,
            webhook.events.bits(),
            webhook.created_at.unix_ms()
        ])
    })
    .map_err(sql_error)?;
    Ok(())
}

fn of(c: &Connection, owner: Owner) -> StoreResult<Vec<Webhook>> {
    let (agent, user) = owner_columns(owner);
    let sql = format!("SELECT {COLUMNS} FROM webhooks WHERE agent = ?1 OR user = ?2 ORDER BY id");
    rows(c, &sql, &[&agent, &user], read_webhook)
}

fn delete(c: &Connection, owner: Owner, id: WebhookId) -> StoreResult<()> {
    let (agent, user) = owner_columns(owner);
    let changed = c
        .prepare_cached("DELETE FROM webhooks WHERE id = ?1 AND (agent = ?2 OR user = ?3)")
        .and_then(|mut s| s.execute(params![id.as_bytes(), agent, user]))
        .map_err(sql_error)?;
    if changed == 0 { Err(StoreError::NotFound) } else { Ok(()) }
}

/// Queues what a change of a task is for the webhooks it concerns.
pub fn queue_task(c: &Connection, task: &Task, is_new: bool) -> StoreResult<()> {
    queue_all(c, || Happening::of_task(task, is_new))
}

/// The same of a movement of money.
pub fn queue_entry(c: &Connection, entry: &Entry) -> StoreResult<()> {
    if !Happening::tells_of(entry.kind) {
        return Ok(());
    }
    queue_all(c, || Happening::of_entry(entry).into_iter().collect())
}

/// The same of a task that was given to another provider.
pub fn queue_reassigned(c: &Connection, task: &Task, before: AgentId) -> StoreResult<()> {
    queue_all(c, || Happening::of_reassignment(task, before))
}

/// Queues what happened, if anybody has a webhook at all: it is made only then.
pub fn queue_all(c: &Connection, happened: impl FnOnce() -> Vec<Happening>) -> StoreResult<()> {
    if !exists(c, "SELECT 1 FROM webhooks LIMIT 1", &[])? {
        return Ok(());
    }
    happened().iter().try_for_each(|happening| queue(c, happening))
}

/// Queues what happened for the webhooks it concerns: those of its agents, of their owners, and of its users.
pub fn queue(c: &Connection, happening: &Happening) -> StoreResult<()> {
    let bit = i64::from(happening.event.bit());
    let read = |row: &Row<'_>| id_bytes(row, 0);
    let mut found = BTreeSet::new();
    for agent in &happening.agents {
        found.extend(rows(
            c,
            "SELECT id FROM webhooks WHERE disabled_at IS NULL AND events & ?2 <> 0
             AND (agent = ?1 OR user = (SELECT owner FROM agents WHERE id = ?1))",
            &[agent.as_bytes(), &bit],
            read,
        )?);
    }
    for user in &happening.users {
        found.extend(rows(
            c,
            "SELECT id FROM webhooks WHERE disabled_at IS NULL AND events & ?2 <> 0 AND user = ?1",
            &[user.as_bytes(), &bit],
            read,
        )?);
    }
    for webhook in found.into_iter().map(WebhookId::from_bytes) {
        let delivery = Delivery {
            id: happening.delivery(webhook),
            event: happening.event.as_str().to_owned(),
            data: happening.data.clone(),
            created_at: happening.at,
            attempts: 0,
        };
        insert(c, webhook, &delivery)?;
    }
    Ok(())
}

/// Looks at one part of what waits, however much there is: this runs in the transactions of tasks and of money.
const INSERT: &str = "INSERT OR IGNORE INTO deliveries (id, webhook, event, data, created_at, due_at)
    SELECT ?1, w.id, ?3, ?4, ?5, ?5 FROM webhooks w WHERE w.id = ?2 AND w.disabled_at IS NULL
    AND (SELECT count(*) FROM (SELECT 1 FROM deliveries d WHERE d.webhook = ?2 AND d.id BETWEEN ?7 AND ?8 LIMIT ?6)) < ?6";

/// Whether there was a place for it.
fn insert(c: &Connection, webhook: WebhookId, delivery: &Delivery) -> StoreResult<bool> {
    let (first, last) = part_of(delivery.id);
    let inserted = c
        .prepare_cached(INSERT)
        .and_then(|mut s| {
            s.execute(params![
                delivery.id.as_bytes(),
                webhook.as_bytes(),
                delivery.event,
                delivery.data.as_str(),
                delivery.created_at.unix_ms(),
                whole(PART_MAX),
                first,
                last
            ])
        })
        .map_err(sql_error)?;
    Ok(inserted > 0)
}

/// Goes from one webhook for which something waits to the next by the index, and looks at no other, and at one delivery of each.
const DUE: &str = "WITH RECURSIVE waited (webhook) AS (
        SELECT min(webhook) FROM deliveries
        UNION ALL
        SELECT (SELECT min(d.webhook) FROM deliveries d WHERE d.webhook > waited.webhook) FROM waited
        WHERE waited.webhook IS NOT NULL
    )
    SELECT w.id FROM waited CROSS JOIN webhooks w ON w.id = waited.webhook
    WHERE w.disabled_at IS NULL AND w.leased_until <= ?1
        AND EXISTS (SELECT 1 FROM deliveries d WHERE d.webhook = w.id AND d.due_at <= ?1)
    ORDER BY w.claimed_at LIMIT ?2";

fn due(c: &Connection, now: Timestamp, limit: usize) -> StoreResult<Vec<[u8; 16]>> {
    rows(c, DUE, &[&now.unix_ms(), &whole(limit)], |row| id_bytes(row, 0))
}

fn claim(
    c: &Connection,
    now: Timestamp,
    (lease, until): (u64, Timestamp),
    limit: usize,
) -> StoreResult<Vec<Claim>> {
    let mut claims = Vec::new();
    for id in due(c, now, limit)? {
        let sql = format!(
            "UPDATE webhooks SET lease = ?1, leased_until = ?2, claimed_at = ?3 WHERE id = ?4 RETURNING {COLUMNS}"
        );
        let webhook = c
            .prepare_cached(&sql)
            .and_then(|mut s| {
                s.query_row(params![whole(lease), until.unix_ms(), now.unix_ms(), id], read_webhook)
            })
            .map_err(sql_error)?;
        let delivery = c
            .prepare_cached(
                "SELECT id, event, data, created_at, attempts FROM deliveries WHERE webhook = ?1 AND due_at <= ?2
                 ORDER BY due_at LIMIT 1",
            )
            .and_then(|mut s| {
                s.query_row(params![id, now.unix_ms()], |row| {
                    Ok(Delivery {
                        id: DeliveryId::from_bytes(id_bytes(row, 0)?),
                        event: row.get(1)?,
                        data: json(row, 2)?,
                        created_at: time(row, 3)?,
                        attempts: row.get(4)?,
                    })
                })
            })
            .map_err(sql_error)?;
        claims.push(Claim { webhook, delivery, lease });
    }
    Ok(claims)
}

fn settle(c: &Connection, webhook: WebhookId, lease: u64, settled: &Settled) -> StoreResult<()> {
    let freed = c
        .prepare_cached(
            "UPDATE webhooks SET lease = NULL, leased_until = 0, failing_since = ?1, disabled_at = ?2
             WHERE id = ?3 AND lease = ?4",
        )
        .and_then(|mut s| {
            s.execute(params![
                settled.failing_since.map(Timestamp::unix_ms),
                settled.disabled_at.map(Timestamp::unix_ms),
                webhook.as_bytes(),
                whole(lease)
            ])
        })
        .map_err(sql_error)?;
    if freed == 0 {
        return Err(StoreError::Conflict);
    }
    let id = settled.delivery.as_bytes();
    let changed = match settled.next {
        _ if settled.disabled_at.is_some() => c
            .prepare_cached("DELETE FROM deliveries WHERE webhook = ?1")
            .and_then(|mut s| s.execute([webhook.as_bytes()])),
        Next::Delivered | Next::Dead => {
            c.prepare_cached("DELETE FROM deliveries WHERE id = ?1").and_then(|mut s| s.execute([id]))
        }
        Next::Retry(at) => c
            .prepare_cached("UPDATE deliveries SET attempts = ?1, due_at = ?2 WHERE id = ?3")
            .and_then(|mut s| s.execute(params![settled.attempt, at.unix_ms(), id])),
    };
    changed.map_err(sql_error)?;
    let Attempted { at, status, error, duration_ms } = &settled.attempted;
    let number = count(
        c,
        "SELECT coalesce(max(number), 0) + 1 FROM delivery_attempts WHERE webhook = ?1",
        &[webhook.as_bytes()],
    )?;
    c.prepare_cached(
        "INSERT INTO delivery_attempts (webhook, number, delivery, event, attempt, at, status, error, duration_ms, outcome)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )
    .and_then(|mut s| {
        s.execute(params![
            webhook.as_bytes(),
            whole(number),
            id,
            settled.event,
            settled.attempt,
            at.unix_ms(),
            status,
            error,
            whole(*duration_ms),
            settled.next.as_str()
        ])
    })
    .map_err(sql_error)?;
    c.prepare_cached("DELETE FROM delivery_attempts WHERE webhook = ?1 AND number <= ?2")
        .and_then(|mut s| s.execute(params![webhook.as_bytes(), whole(number) - whole(ATTEMPTS_KEPT)]))
        .map_err(sql_error)?;
    Ok(())
}

fn attempts(c: &Connection, webhook: WebhookId, limit: usize) -> StoreResult<Vec<AttemptEntry>> {
    rows(
        c,
        "SELECT delivery, event, attempt, at, status, error, duration_ms, outcome FROM delivery_attempts
         WHERE webhook = ?1 ORDER BY number DESC LIMIT ?2",
        &[webhook.as_bytes(), &whole(limit)],
        |row| {
            Ok(AttemptEntry {
                delivery: DeliveryId::from_bytes(id_bytes(row, 0)?),
                event: row.get(1)?,
                attempt: row.get(2)?,
                attempted: Attempted {
                    at: time(row, 3)?,
                    status: row.get(4)?,
                    error: row.get(5)?,
                    duration_ms: row.get(6)?,
                },
                outcome: row.get(7)?,
            })
        },
    )
}

#[async_trait]
impl WebhookStore for SqliteStore {
    async fn create_webhook(&self, webhook: Webhook, webhooks_max: usize) -> StoreResult<()> {
        self.write(move |c| create(c, &webhook, webhooks_max)).await
    }

    async fn webhooks_of(&self, owner: Owner) -> StoreResult<Vec<Webhook>> {
        self.read(move |c| of(c, owner)).await
    }

    async fn delete_webhook(&self, owner: Owner, id: WebhookId) -> StoreResult<()> {
        self.write(move |c| delete(c, owner, id)).await
    }

    async fn queue_happening(&self, happening: Happening) -> StoreResult<()> {
        self.write(move |c| queue(c, &happening)).await
    }

    async fn queue_delivery(&self, webhook: WebhookId, delivery: Delivery) -> StoreResult<()> {
        self.write(
            move |c| {
                if insert(c, webhook, &delivery)? { Ok(()) } else { Err(StoreError::LimitReached) }
            },
        )
        .await
    }

    async fn claim_deliveries(
        &self,
        now: Timestamp,
        lease: (u64, Timestamp),
        limit: usize,
    ) -> StoreResult<Vec<Claim>> {
        // Most of the time there is nothing, and then nothing is written.
        if self.read(move |c| due(c, now, 1)).await?.is_empty() {
            return Ok(Vec::new());
        }
        self.write(move |c| claim(c, now, lease, limit)).await
    }

    async fn settle_delivery(&self, webhook: WebhookId, lease: u64, settled: Settled) -> StoreResult<()> {
        self.write(move |c| settle(c, webhook, lease, &settled)).await
    }

    async fn attempts_of(&self, webhook: WebhookId, limit: usize) -> StoreResult<Vec<AttemptEntry>> {
        self.read(move |c| attempts(c, webhook, limit)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::schema::migrate;

    /// What reading goes over, as SQLite says it.
    fn plan(c: &Connection, sql: &str, parameters: usize) -> Vec<String> {
        let values = vec![rusqlite::types::Value::Integer(1); parameters];
        let mut statement = c.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let rows = statement.query_map(rusqlite::params_from_iter(values), |row| row.get(3)).unwrap();
        rows.collect::<rusqlite::Result<_>>().unwrap()
    }

    /// R144: neither looking for what is due nor telling of an event reads all that waits, or all webhooks.
    #[test]
    fn what_is_due_and_whether_there_is_room_are_found_by_indexes() {
        let mut c = Connection::open_in_memory().unwrap();
        migrate(&mut c).unwrap();
        for (sql, parameters) in [(DUE, 2), (INSERT, 8)] {
            let plan = plan(&c, sql, parameters);
            assert!(plan.iter().any(|step| step.contains("SEARCH d ")), "{plan:#?}");
            let scans = plan.iter().filter(|step| step.starts_with("SCAN"));
            // The webhooks that were found, and no table.
            assert!(
                scans
                    .clone()
                    .all(|step| ["SCAN waited", "SCAN 1", "SCAN CONSTANT ROW"].contains(&step.as_str())
                        || step.starts_with("SCAN (")),
                "{plan:#?}"
            );
        }
    }
}
