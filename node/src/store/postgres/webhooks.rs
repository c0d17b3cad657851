//! Webhooks and their deliveries, as SQL. What happens is queued by [`queue`] in the transaction in which it happens.

use async_trait::async_trait;
use muster_actors::store::{AttemptEntry, Claim, Settled, StoreError, StoreResult, WebhookStore};
use muster_protocol::account::Owner;
use muster_protocol::ids::{AgentId, DeliveryId, TaskId, UserId, WebhookId};
use muster_protocol::ledger::Entry;
use muster_protocol::task::Task;
use muster_protocol::time::Timestamp;
use muster_protocol::webhook::{
    ATTEMPTS_KEPT, Attempted, Delivery, Events, Happening, Next, PART_MAX, Webhook, part_of,
};
use tokio_postgres::Row;

use super::columns::{Id, broken, id, id_bytes, json, number, optional_id, optional_time, time};
use super::pool::{Connection, Failure};
use super::{PostgresStore, tasks};
use crate::store::sql::whole;

const COLUMNS: &str = "id, agent, user_id, url, secret, events, created_at, failing_since, disabled_at";

fn small<N: TryFrom<u64>>(row: &Row, index: usize) -> Result<N, Failure> {
    N::try_from(number(row, index)?).map_err(|_| broken())
}

fn read_webhook(row: &Row) -> Result<Webhook, Failure> {
    let owner = match (optional_id(row, 1)?, optional_id(row, 2)?) {
        (Some(agent), _) => Owner::Agent(AgentId::from_bytes(agent)),
        (None, Some(user)) => Owner::User(UserId::from_bytes(user)),
        (None, None) => return Err(broken()),
    };
    Ok(Webhook {
        id: WebhookId::from_bytes(id_bytes(row, 0)?),
        owner,
        url: row.try_get(3)?,
        secret: row.try_get(4)?,
        events: Events::from_bits(small(row, 5)?),
        created_at: time(row, 6)?,
        failing_since: optional_time(row, 7)?,
        disabled_at: optional_time(row, 8)?,
    })
}

fn owner_columns(owner: Owner) -> (Option<Id>, Option<Id>) {
    match owner {
        Owner::Agent(agent) => (Some(id!(agent)), None),
        Owner::User(user) => (None, Some(id!(user))),
    }
}

async fn create(c: &Connection, webhook: &Webhook, webhooks_max: usize) -> Result<(), Failure> {
    let (agent, user) = owner_columns(webhook.owner);
    // Whoever adds one holds the owner, so that all are counted.
    match agent {
        Some(agent) => c.one("SELECT 1 FROM agents WHERE id = $1 FOR NO KEY UPDATE", &[&agent]).await?,
        None => c.one("SELECT 1 FROM users WHERE id = $1 FOR NO KEY UPDATE", &[&user]).await?,
    };
    let sql = "SELECT count(*) FROM webhooks WHERE agent = $1 OR user_id = $2";
    if c.count(sql, &[&agent, &user]).await? >= webhooks_max as u64 {
        return Err(StoreError::LimitReached.into());
    }
    c.execute(
        "INSERT INTO webhooks (id, agent, user_id, url, secret, events, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        &[
            &id!(webhook.id),
            &agent,
            &user,
            &webhook.url,
            &webhook.secret,
            &i64::from(webhook.events.bits()),
            &webhook.created_at.unix_ms(),
        ],
    )
    .await?;
    Ok(())
}

/// Queues what changes of tasks are for the webhooks they concern.
pub async fn queue_begun(c: &Connection, begun: &[TaskId]) -> Result<(), Failure> {
    if begun.is_empty() || !any(c).await? {
        return Ok(());
    }
    for task in begun {
        for happening in Happening::of_task(&tasks::task(c, *task).await?, false) {
            queue(c, &happening).await?;
        }
    }
    Ok(())
}

/// The same of one task.
pub async fn queue_task(c: &Connection, task: &Task, is_new: bool) -> Result<(), Failure> {
    queue_all(c, || Happening::of_task(task, is_new)).await
}

/// The same of a movement of money.
pub async fn queue_entry(c: &Connection, entry: &Entry) -> Result<(), Failure> {
    if !Happening::tells_of(entry.kind) {
        return Ok(());
    }
    queue_all(c, || Happening::of_entry(entry).into_iter().collect()).await
}

/// The same of a task that was given to another provider.
pub async fn queue_reassigned(c: &Connection, task: &Task, before: AgentId) -> Result<(), Failure> {
    queue_all(c, || Happening::of_reassignment(task, before)).await
}

/// Queues what happened, if anybody has a webhook at all: it is made only then.
pub async fn queue_all(
    c: &Connection,
    happened: impl FnOnce() -> Vec<Happening> + Send,
) -> Result<(), Failure> {
    if !any(c).await? {
        return Ok(());
    }
    for happening in happened() {
        queue(c, &happening).await?;
    }
    Ok(())
}

async fn any(c: &Connection) -> Result<bool, Failure> {
    Ok(c.optional("SELECT 1 FROM webhooks LIMIT 1", &[]).await?.is_some())
}

/// Queues what happened for the webhooks it concerns: those of its agents, of their owners, and of its users.
pub async fn queue(c: &Connection, happening: &Happening) -> Result<(), Failure> {
    let agents: Vec<Id> = happening.agents.iter().map(|agent| id!(agent)).collect();
    let users: Vec<Id> = happening.users.iter().map(|user| id!(user)).collect();
    let sql = "SELECT id FROM webhooks WHERE disabled_at IS NULL AND events & $3 <> 0 AND (agent = ANY($1)
                   OR user_id = ANY($2) OR user_id IN (SELECT owner FROM agents WHERE id = ANY($1))) ORDER BY id";
    for row in c.query(sql, &[&agents, &users, &i64::from(happening.event.bit())]).await? {
        let webhook = WebhookId::from_bytes(id_bytes(&row, 0)?);
        let delivery = Delivery {
            id: happening.delivery(webhook),
            event: happening.event.as_str().to_owned(),
            data: happening.data.clone(),
            created_at: happening.at,
            attempts: 0,
        };
        insert(c, webhook, &delivery).await?;
    }
    Ok(())
}

/// Looks at one part of what waits, however much there is: this runs in the transactions of tasks and of money. A count in the
/// webhook's row would have them wait for each other.
const INSERT: &str = "INSERT INTO deliveries (id, webhook, event, data, created_at, due_at)
    SELECT $1, w.id, $3, $4, $5, $5
    FROM (SELECT id FROM webhooks WHERE id = $2 AND disabled_at IS NULL FOR KEY SHARE) w
    WHERE (SELECT count(*) FROM (SELECT 1 FROM deliveries d WHERE d.webhook = $2 AND d.id BETWEEN $7 AND $8 LIMIT $6) part) < $6
    ON CONFLICT (id) DO NOTHING";

/// Whether there was a place for it. A webhook that is removed meanwhile takes nothing any more, and what happens goes on.
async fn insert(c: &Connection, webhook: WebhookId, delivery: &Delivery) -> Result<bool, Failure> {
    let (first, last) = part_of(delivery.id);
    let inserted = c
        .execute(
            INSERT,
            &[
                &id!(delivery.id),
                &id!(webhook),
                &delivery.event,
                &delivery.data.as_str(),
                &delivery.created_at.unix_ms(),
                &whole(PART_MAX),
                &Id(first),
                &Id(last),
            ],
        )
        .await?;
    Ok(inserted > 0)
}

/// Goes from one webhook for which something waits to the next by the index, and looks at no other, and at one delivery of each.
pub(super) const DUE: &str = "WITH RECURSIVE waited (webhook) AS (
        (SELECT webhook FROM deliveries ORDER BY webhook LIMIT 1)
        UNION ALL
        SELECT (SELECT d.webhook FROM deliveries d WHERE d.webhook > waited.webhook ORDER BY d.webhook LIMIT 1) FROM waited
        WHERE waited.webhook IS NOT NULL
    )
    SELECT w.id FROM waited JOIN webhooks w ON w.id = waited.webhook
    WHERE w.disabled_at IS NULL AND w.leased_until <= $1
        AND EXISTS (SELECT 1 FROM deliveries d WHERE d.webhook = w.id AND d.due_at <= $1)
    ORDER BY w.claimed_at LIMIT $2";

async fn claim(
    c: &Connection,
    now: Timestamp,
    (lease, until): (u64, Timestamp),
    limit: usize,
) -> Result<Vec<Claim>, Failure> {
    // What another node is claiming is passed over; what it has claimed meanwhile is not due any more.
    let sql = format!(
        "UPDATE webhooks SET lease = $3, leased_until = $4, claimed_at = $1
         WHERE id IN ({DUE} FOR NO KEY UPDATE OF w SKIP LOCKED) RETURNING {COLUMNS}"
    );
    let rows = c.query(&sql, &[&now.unix_ms(), &whole(limit), &whole(lease), &until.unix_ms()]).await?;
    let mut claims = Vec::new();
    for row in rows {
        let webhook = read_webhook(&row)?;
        let sql =
            "SELECT id, event, data, created_at, attempts FROM deliveries WHERE webhook = $1 AND due_at <= $2
                   ORDER BY due_at LIMIT 1";
        // Whoever held it before may have settled the last one since: the lease ends by itself.
        let Some(row) = c.optional(sql, &[&id!(webhook.id), &now.unix_ms()]).await? else { continue };
        let delivery = Delivery {
            id: DeliveryId::from_bytes(id_bytes(&row, 0)?),
            event: row.try_get(1)?,
            data: json(&row, 2)?,
            created_at: time(&row, 3)?,
            attempts: small(&row, 4)?,
        };
        claims.push(Claim { webhook, delivery, lease });
    }
    Ok(claims)
}

async fn settle(c: &Connection, webhook: WebhookId, lease: u64, settled: &Settled) -> Result<(), Failure> {
    let freed = c
        .execute(
            "UPDATE webhooks SET lease = NULL, leased_until = 0, failing_since = $1, disabled_at = $2
             WHERE id = $3 AND lease = $4",
            &[
                &settled.failing_since.map(Timestamp::unix_ms),
                &settled.disabled_at.map(Timestamp::unix_ms),
                &id!(webhook),
                &whole(lease),
            ],
        )
        .await?;
    if freed == 0 {
        return Err(StoreError::Conflict.into());
    }
    let delivery = id!(settled.delivery);
    let attempt = i64::from(settled.attempt);
    match settled.next {
        _ if settled.disabled_at.is_some() => {
            c.execute("DELETE FROM deliveries WHERE webhook = $1", &[&id!(webhook)]).await?
        }
        Next::Delivered | Next::Dead => {
            c.execute("DELETE FROM deliveries WHERE id = $1", &[&delivery]).await?
        }
        Next::Retry(at) => {
            let sql = "UPDATE deliveries SET attempts = $1, due_at = $2 WHERE id = $3";
            c.execute(sql, &[&attempt, &at.unix_ms(), &delivery]).await?
        }
    };
    let Attempted { at, status, error, duration_ms } = &settled.attempted;
    let number = whole(
        c.count(
            "SELECT coalesce(max(number), 0) + 1 FROM delivery_attempts WHERE webhook = $1",
            &[&id!(webhook)],
        )
        .await?,
    );
    c.execute(
        "INSERT INTO delivery_attempts (webhook, number, delivery, event, attempt, at, status, error, duration_ms, outcome)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        &[
            &id!(webhook),
            &number,
            &delivery,
            &settled.event,
            &attempt,
            &at.unix_ms(),
            &status.map(i64::from),
            error,
            &whole(*duration_ms),
            &settled.next.as_str(),
        ],
    )
    .await?;
    let sql = "DELETE FROM delivery_attempts WHERE webhook = $1 AND number <= $2";
    c.execute(sql, &[&id!(webhook), &(number - whole(ATTEMPTS_KEPT))]).await?;
    Ok(())
}

fn read_attempt(row: &Row) -> Result<AttemptEntry, Failure> {
    let status: Option<i64> = row.try_get(4)?;
    Ok(AttemptEntry {
        delivery: DeliveryId::from_bytes(id_bytes(row, 0)?),
        event: row.try_get(1)?,
        attempt: small(row, 2)?,
        attempted: Attempted {
            at: time(row, 3)?,
            status: status.map(|status| u16::try_from(status).map_err(|_| broken())).transpose()?,
            error: row.try_get(5)?,
            duration_ms: number(row, 6)?,
        },
        outcome: row.try_get(7)?,
    })
}

#[async_trait]
impl WebhookStore for PostgresStore {
    async fn create_webhook(&self, webhook: Webhook, webhooks_max: usize) -> StoreResult<()> {
        let webhook = &webhook;
        self.pool.write(|c| async move { create(&c, webhook, webhooks_max).await }).await
    }

    async fn webhooks_of(&self, owner: Owner) -> StoreResult<Vec<Webhook>> {
        let sql = &format!("SELECT {COLUMNS} FROM webhooks WHERE agent = $1 OR user_id = $2 ORDER BY id");
        self.pool
            .read(|c| async move {
                let (agent, user) = owner_columns(owner);
                c.query(sql, &[&agent, &user]).await?.iter().map(read_webhook).collect()
            })
            .await
    }

    async fn delete_webhook(&self, owner: Owner, webhook: WebhookId) -> StoreResult<()> {
        self.pool
            .write(|c| async move {
                let (agent, user) = owner_columns(owner);
                let sql = "DELETE FROM webhooks WHERE id = $1 AND (agent = $2 OR user_id = $3)";
                let changed = c.execute(sql, &[&id!(webhook), &agent, &user]).await?;
                if changed == 0 { Err(StoreError::NotFound.into()) } else { Ok(()) }
            })
            .await
    }

    async fn queue_happening(&self, happening: Happening) -> StoreResult<()> {
        let happening = &happening;
        self.pool.write(|c| async move { queue(&c, happening).await }).await
    }

    async fn queue_delivery(&self, webhook: WebhookId, delivery: Delivery) -> StoreResult<()> {
        let delivery = &delivery;
        self.pool
            .write(|c| async move {
                let inserted = insert(&c, webhook, delivery).await?;
                if inserted { Ok(()) } else { Err(StoreError::LimitReached.into()) }
            })
            .await
    }

    async fn claim_deliveries(
        &self,
        now: Timestamp,
        lease: (u64, Timestamp),
        limit: usize,
    ) -> StoreResult<Vec<Claim>> {
        // Most of the time there is nothing, and then nothing is written.
        let due = self.pool.read(|c| async move { c.optional(DUE, &[&now.unix_ms(), &1_i64]).await }).await?;
        if due.is_none() {
            return Ok(Vec::new());
        }
        self.pool.write(|c| async move { claim(&c, now, lease, limit).await }).await
    }

    async fn settle_delivery(&self, webhook: WebhookId, lease: u64, settled: Settled) -> StoreResult<()> {
        let settled = &settled;
        self.pool.write(|c| async move { settle(&c, webhook, lease, settled).await }).await
    }

    async fn attempts_of(&self, webhook: WebhookId, limit: usize) -> StoreResult<Vec<AttemptEntry>> {
        self.pool
            .read(|c| async move {
                let sql = "SELECT delivery, event, attempt, at, status, error, duration_ms, outcome
                           FROM delivery_attempts WHERE webhook = $1 ORDER BY number DESC LIMIT $2";
                c.query(sql, &[&id!(webhook), &whole(limit)]).await?.iter().map(read_attempt).collect()
            })
            .await
    }
}
