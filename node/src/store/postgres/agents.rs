//! Agents and blocks, as SQL.

use std::collections::{HashMap, HashSet};

use muster_actors::store::{Page, PageRequest, StoreError};
use muster_protocol::account::{Credential, SecretHash};
use muster_protocol::agent::{Agent, AgentStatus, PricingModel, reputation};
use muster_protocol::discovery::Query;
use muster_protocol::ids::{AgentId, UserId};
use muster_protocol::json::Json;
use muster_protocol::money::Amount;
use muster_protocol::signing::PublicKey;
use muster_protocol::time::Timestamp;
use muster_protocol::webhook::Happening;
use tokio_postgres::Row;

use super::accounts::{insert_credential, lock_user};
use super::columns::{Id, amount, broken, id, id_bytes, json, number, optional_id, optional_time, time};
use super::pool::{Connection, Failure};
use super::webhooks;
use crate::store::sql::{AGENT_COLUMNS, before, longest, order_by, page, page_rows, whole};

fn read_agent(row: &Row) -> Result<Agent, Failure> {
    let list = |index| -> Result<Vec<String>, Failure> {
        serde_json::from_str(row.try_get(index)?).map_err(|_| broken())
    };
    let public_key = match row.try_get::<_, Option<&[u8]>>(7)? {
        Some(bytes) => {
            let bytes = bytes.try_into().map_err(|_| broken())?;
            Some(PublicKey::from_bytes(bytes).ok_or_else(broken)?)
        }
        None => None,
    };
    Ok(Agent {
        id: AgentId::from_bytes(id_bytes(row, 0)?),
        owner: optional_id(row, 1)?.map(UserId::from_bytes),
        name: row.try_get(2)?,
        did: row.try_get(3)?,
        capabilities: list(4)?,
        pricing_model: PricingModel::parse(row.try_get(5)?).ok_or_else(broken)?,
        base_price: amount(row, 6)?,
        public_key,
        protocol_versions: list(8)?,
        metadata: json(row, 9)?,
        status: AgentStatus::parse(row.try_get(10)?).ok_or_else(broken)?,
        tasks_completed: number(row, 11)?,
        tasks_failed: number(row, 12)?,
        created_at: time(row, 13)?,
        updated_at: time(row, 14)?,
        last_seen_at: optional_time(row, 15)?,
    })
}

/// Adds an agent and its first key.
pub async fn create_agent(
    c: &Connection,
    agent: &Agent,
    key: &Credential,
    hash: SecretHash,
    agents_per_user_max: usize,
) -> Result<(), Failure> {
    if let Some(owner) = agent.owner {
        lock_user(c, owner).await?;
        let owned = c.count("SELECT count(*) FROM agents WHERE owner = $1", &[&id!(owner)]).await?;
        if owned >= agents_per_user_max as u64 {
            return Err(StoreError::LimitReached.into());
        }
    }
    c.execute(
        "INSERT INTO agents (id, owner, name, did, capabilities, pricing_model, base_price, public_key,
            protocol_versions, metadata, status, reputation, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        &[
            &id!(agent.id),
            &agent.owner.map(|owner| id!(owner)),
            &agent.name,
            &agent.did,
            &Json::of(&agent.capabilities).as_str(),
            &agent.pricing_model.as_str(),
            &agent.base_price.micros(),
            &agent.public_key.as_ref().map(|key| key.as_bytes().as_slice()),
            &Json::of(&agent.protocol_versions).as_str(),
            &agent.metadata.as_str(),
            &agent.status.as_str(),
            &agent.reputation(),
            &agent.created_at.unix_ms(),
            &agent.updated_at.unix_ms(),
        ],
    )
    .await?;
    insert_capabilities(c, agent).await?;
    insert_credential(c, key, hash).await
}

async fn insert_capabilities(c: &Connection, agent: &Agent) -> Result<(), Failure> {
    c.execute(
        "INSERT INTO agent_capabilities (capability, agent) SELECT x, $2 FROM unnest($1::text[]) x",
        &[&agent.capabilities, &id!(agent.id)],
    )
    .await?;
    Ok(())
}

/// Whoever holds this changes what that agent has alone.
pub async fn lock(c: &Connection, id: AgentId) -> Result<(), Failure> {
    c.query("SELECT 1 FROM agents WHERE id = $1 FOR NO KEY UPDATE", &[&id!(id)]).await?;
    Ok(())
}

/// An agent.
pub async fn agent(c: &Connection, id: AgentId) -> Result<Agent, Failure> {
    let sql = format!("SELECT {AGENT_COLUMNS} FROM agents WHERE id = $1");
    read_agent(&c.one(&sql, &[&id!(id)]).await?)
}

/// The agent of a DID.
pub async fn agent_by_did(c: &Connection, did: &str) -> Result<Agent, Failure> {
    // No DID has it, and PostgreSQL's text neither.
    if did.contains('\0') {
        return Err(StoreError::NotFound.into());
    }
    let sql = format!("SELECT {AGENT_COLUMNS} FROM agents WHERE did = $1");
    read_agent(&c.one(&sql, &[&did]).await?)
}

/// A user's agents, newest first.
pub async fn agents_of(c: &Connection, user: UserId, request: &PageRequest) -> Result<Page<Agent>, Failure> {
    let total = c.count("SELECT count(*) FROM agents WHERE owner = $1", &[&id!(user)]).await?;
    let sql =
        format!("SELECT {AGENT_COLUMNS} FROM agents WHERE owner = $1 AND id < $2 ORDER BY id DESC LIMIT $3");
    let rows = c.query(&sql, &[&id!(user), &Id(before(request)), &page_rows(request)]).await?;
    let items = rows.iter().map(read_agent).collect::<Result<Vec<_>, _>>()?;
    Ok(page(items, request.limit, total, |agent| *agent.id.as_bytes()))
}

/// Gives an agent without an owner to a user, and with it the tasks and hirings it has given.
pub async fn claim_agent(
    c: &Connection,
    id: AgentId,
    user: UserId,
    now: Timestamp,
) -> Result<Agent, Failure> {
    lock(c, id).await?;
    let before = agent(c, id).await?;
    if before.owner.is_some_and(|owner| owner != user) {
        return Err(StoreError::AlreadyExists.into());
    }
    c.execute(
        "UPDATE agents SET owner = $1, updated_at = greatest($2, updated_at + 1) WHERE id = $3",
        &[&id!(user), &now.unix_ms(), &id!(id)],
    )
    .await?;
    for sql in [
        "UPDATE tasks SET client_owner = $1 WHERE client = $2",
        "UPDATE hirings SET user_id = $1 WHERE client = $2 AND user_id IS NULL",
    ] {
        c.execute(sql, &[&id!(user), &id!(id)]).await?;
    }
    agent(c, id).await
}

/// Replaces what an agent says of itself, if nothing else has changed it meanwhile.
pub async fn update_agent(c: &Connection, read: &Agent, new: &Agent) -> Result<(), Failure> {
    let changed = c
        .execute(
            "UPDATE agents SET name = $1, capabilities = $2, pricing_model = $3, base_price = $4, public_key = $5,
                protocol_versions = $6, metadata = $7, status = $8, updated_at = $9
             WHERE id = $10 AND updated_at = $11",
            &[
                &new.name,
                &Json::of(&new.capabilities).as_str(),
                &new.pricing_model.as_str(),
                &new.base_price.micros(),
                &new.public_key.as_ref().map(|key| key.as_bytes().as_slice()),
                &Json::of(&new.protocol_versions).as_str(),
                &new.metadata.as_str(),
                &new.status.as_str(),
                &new.updated_at.unix_ms(),
                &id!(read.id),
                &read.updated_at.unix_ms(),
            ],
        )
        .await?;
    if changed == 0 {
        return Err(StoreError::Conflict.into());
    }
    if read.capabilities != new.capabilities {
        c.execute("DELETE FROM agent_capabilities WHERE agent = $1", &[&id!(read.id)]).await?;
        insert_capabilities(c, new).await?;
    }
    if let Some(former) = read.public_key.filter(|former| Some(*former) != new.public_key) {
        c.execute(
            "INSERT INTO former_public_keys (agent, replaced_at, public_key) VALUES ($1, $2, $3)
             ON CONFLICT (agent, replaced_at) DO UPDATE SET public_key = excluded.public_key",
            &[&id!(read.id), &new.updated_at.unix_ms(), &former.as_bytes().as_slice()],
        )
        .await?;
    }
    Ok(())
}

/// Whether an agent signed with a key that was replaced since.
pub async fn was_key_of(c: &Connection, id: AgentId, key: PublicKey) -> Result<bool, Failure> {
    let sql = "SELECT count(*) FROM former_public_keys WHERE agent = $1 AND public_key = $2";
    Ok(c.count(sql, &[&id!(id), &key.as_bytes().as_slice()]).await? > 0)
}

/// Sets an agent's status.
pub async fn set_agent_status(
    c: &Connection,
    id: AgentId,
    status: AgentStatus,
    now: Timestamp,
) -> Result<Agent, Failure> {
    c.execute(
        "UPDATE agents SET status = $1, updated_at = greatest($2, updated_at + 1) WHERE id = $3",
        &[&status.as_str(), &now.unix_ms(), &id!(id)],
    )
    .await?;
    let agent = agent(c, id).await?;
    webhooks::queue(c, &Happening::of_agent(&agent)).await?;
    Ok(agent)
}

/// Agents that may not connect and were changed from a time on, oldest first.
pub async fn agents_stopped_since(
    c: &Connection,
    (since, after): (Timestamp, Option<AgentId>),
    limit: usize,
) -> Result<Vec<(Timestamp, AgentId)>, Failure> {
    let after = after.map_or(Id([0; 16]), |after| id!(after));
    let rows = c
        .query(
            "SELECT updated_at, id FROM agents WHERE status IN ('suspended', 'banned') AND (updated_at, id) > ($1, $2)
             ORDER BY updated_at, id LIMIT $3",
            &[&since.unix_ms(), &after, &whole(limit)],
        )
        .await?;
    rows.iter().map(|row| Ok((time(row, 0)?, AgentId::from_bytes(id_bytes(row, 1)?)))).collect()
}

/// Notes when an agent was last online; of several nodes the latest word stands.
pub async fn set_last_seen(c: &Connection, id: AgentId, now: Timestamp) -> Result<(), Failure> {
    c.execute(
        "UPDATE agents SET last_seen_at = greatest($1, coalesce(last_seen_at, $1)) WHERE id = $2",
        &[&now.unix_ms(), &id!(id)],
    )
    .await?;
    Ok(())
}

/// Counts an ended task for its provider.
pub async fn count_outcome(c: &Connection, id: AgentId, completed: bool) -> Result<(), Failure> {
    lock(c, id).await?;
    let read = agent(c, id).await?;
    let done = read.tasks_completed + u64::from(completed);
    let failed = read.tasks_failed + u64::from(!completed);
    c.execute(
        "UPDATE agents SET tasks_completed = $1, tasks_failed = $2, reputation = $3 WHERE id = $4",
        &[&whole(done), &whole(failed), &reputation(done, failed), &id!(id)],
    )
    .await?;
    Ok(())
}

/// Agents that match, best first.
pub async fn find_agents(
    c: &Connection,
    query: &Query,
    except: &HashSet<AgentId>,
    limit: usize,
) -> Result<Vec<Agent>, Failure> {
    // No capability has it, and PostgreSQL's text neither.
    if query.capability.as_ref().is_some_and(|capability| capability.contains('\0')) {
        return Ok(Vec::new());
    }
    let filters = query.filters.clone().unwrap_or_default();
    let order = order_by(query.sort_by);
    let sql = format!(
        "SELECT {AGENT_COLUMNS} FROM agents WHERE status = 'active'
           AND ($1::text IS NULL OR EXISTS (
                SELECT 1 FROM agent_capabilities x WHERE x.capability = $1 AND x.agent = agents.id))
           AND reputation >= $2 AND base_price >= $3 AND base_price <= $4 AND id <> ALL ($5)
         ORDER BY {order} LIMIT $6"
    );
    let except: Vec<Id> = except.iter().map(|agent| id!(agent)).collect();
    let rows = c
        .query(
            &sql,
            &[
                &query.capability,
                &filters.min_reputation.unwrap_or(f64::MIN),
                &filters.min_price.map_or(0, Amount::micros),
                &filters.max_price.map_or(i64::MAX, Amount::micros),
                &except,
                &whole(limit),
            ],
        )
        .await?;
    rows.iter().map(read_agent).collect()
}

/// Capabilities of active agents and how many have each.
pub async fn capabilities(c: &Connection, limit: usize) -> Result<Vec<(String, u64)>, Failure> {
    let rows = c
        .query(
            "SELECT capability, count(*) FROM agent_capabilities JOIN agents ON agents.id = agent
             WHERE status = 'active' GROUP BY capability ORDER BY count(*) DESC, capability LIMIT $1",
            &[&whole(limit)],
        )
        .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, number(row, 1)?))).collect()
}

/// Adds or changes a block.
pub async fn block(
    c: &Connection,
    by: AgentId,
    other: AgentId,
    until: Option<Timestamp>,
    blocks_max: usize,
) -> Result<(), Failure> {
    agent(c, other).await?;
    lock(c, by).await?;
    let held = c
        .count("SELECT count(*) FROM blocks WHERE agent = $1 AND other <> $2", &[&id!(by), &id!(other)])
        .await?;
    if held >= blocks_max as u64 {
        return Err(StoreError::LimitReached.into());
    }
    c.execute(
        "INSERT INTO blocks (agent, other, until) VALUES ($1, $2, $3)
         ON CONFLICT (agent, other) DO UPDATE SET until = excluded.until",
        &[&id!(by), &id!(other), &until.map(Timestamp::unix_ms)],
    )
    .await?;
    Ok(())
}

/// Removes a block.
pub async fn unblock(c: &Connection, by: AgentId, other: AgentId) -> Result<(), Failure> {
    let sql = "DELETE FROM blocks WHERE agent = $1 AND other = $2";
    let changed = c.execute(sql, &[&id!(by), &id!(other)]).await?;
    if changed == 1 { Ok(()) } else { Err(StoreError::NotFound.into()) }
}

/// An agent, and until when.
type Block = (AgentId, Option<Timestamp>);

fn read_block(row: &Row) -> Result<Block, Failure> {
    Ok((AgentId::from_bytes(id_bytes(row, 0)?), optional_time(row, 1)?))
}

/// Live blocks of an agent.
pub async fn blocks_by(c: &Connection, agent: AgentId, now: Timestamp) -> Result<Vec<Block>, Failure> {
    let rows = c
        .query(
            "SELECT other, until FROM blocks WHERE agent = $1 AND (until IS NULL OR until > $2) ORDER BY other",
            &[&id!(agent), &now.unix_ms()],
        )
        .await?;
    rows.iter().map(read_block).collect()
}

/// Everybody an agent blocks or is blocked by, and until when.
pub async fn blocked_pairs(
    c: &Connection,
    agent: AgentId,
    now: Timestamp,
) -> Result<HashMap<AgentId, Option<Timestamp>>, Failure> {
    let rows = c
        .query(
            "SELECT other, until FROM blocks WHERE agent = $1 AND (until IS NULL OR until > $2)
             UNION ALL SELECT agent, until FROM blocks WHERE other = $1 AND (until IS NULL OR until > $2)",
            &[&id!(agent), &now.unix_ms()],
        )
        .await?;
    Ok(longest(rows.iter().map(read_block).collect::<Result<_, _>>()?))
}
