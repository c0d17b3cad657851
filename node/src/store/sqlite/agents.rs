//! Agents and blocks, as SQL.

use std::collections::{HashMap, HashSet};

use muster_actors::store::{Page, PageRequest, StoreError, StoreResult};
use muster_protocol::account::{Credential, SecretHash};
use muster_protocol::agent::{Agent, AgentStatus, PricingModel, reputation};
use muster_protocol::discovery::Query;
use muster_protocol::ids::{AgentId, UserId};
use muster_protocol::json::Json;
use muster_protocol::money::Amount;
use muster_protocol::signing::PublicKey;
use muster_protocol::time::Timestamp;
use muster_protocol::webhook::Happening;
use rusqlite::{Connection, Row, params};

use super::accounts::insert_credential;
use super::columns::{amount, count, id_bytes, json, optional_id, optional_time, rows, time};
use super::sql_error;
use super::webhooks;
use crate::store::sql::{AGENT_COLUMNS, before, longest, order_by, page, page_rows, whole};

fn read_agent(row: &Row<'_>) -> rusqlite::Result<Agent> {
    let broken = || rusqlite::Error::InvalidQuery;
    let list = |index| -> rusqlite::Result<Vec<String>> {
        serde_json::from_str(row.get_ref(index)?.as_str()?).map_err(|_| broken())
    };
    let (pricing_model, status): (String, String) = (row.get(5)?, row.get(10)?);
    let public_key: Option<[u8; 32]> = row.get(7)?;
    Ok(Agent {
        id: AgentId::from_bytes(id_bytes(row, 0)?),
        owner: optional_id(row, 1)?.map(UserId::from_bytes),
        name: row.get(2)?,
        did: row.get(3)?,
        capabilities: list(4)?,
        pricing_model: PricingModel::parse(&pricing_model).ok_or_else(broken)?,
        base_price: amount(row, 6)?,
        public_key: public_key.map(|bytes| PublicKey::from_bytes(bytes).ok_or_else(broken)).transpose()?,
        protocol_versions: list(8)?,
        metadata: json(row, 9)?,
        status: AgentStatus::parse(&status).ok_or_else(broken)?,
        tasks_completed: row.get(11)?,
        tasks_failed: row.get(12)?,
        created_at: time(row, 13)?,
        updated_at: time(row, 14)?,
        last_seen_at: optional_time(row, 15)?,
    })
}

/// Adds an agent and its first key.
pub fn create_agent(
    c: &Connection,
    agent: &Agent,
    key: &Credential,
    hash: SecretHash,
    agents_per_user_max: usize,
) -> StoreResult<()> {
    if let Some(owner) = agent.owner {
        check_owned(c, owner, agents_per_user_max)?;
    }
    c.prepare_cached(
        "INSERT INTO agents (id, owner, name, did, capabilities, pricing_model, base_price, public_key,
            protocol_versions, metadata, status, reputation, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
    )
    .and_then(|mut s| {
        s.execute(params![
            agent.id.as_bytes(),
            agent.owner.as_ref().map(UserId::as_bytes),
            agent.name,
            agent.did,
            Json::of(&agent.capabilities).as_str(),
            agent.pricing_model.as_str(),
            agent.base_price.micros(),
            agent.public_key.as_ref().map(PublicKey::as_bytes),
            Json::of(&agent.protocol_versions).as_str(),
            agent.metadata.as_str(),
            agent.status.as_str(),
            agent.reputation(),
            agent.created_at.unix_ms(),
            agent.updated_at.unix_ms(),
        ])
    })
    .map_err(sql_error)?;
    insert_capabilities(c, agent)?;
    insert_credential(c, key, hash)
}

fn check_owned(c: &Connection, owner: UserId, agents_max: usize) -> StoreResult<()> {
    let owned = count(c, "SELECT count(*) FROM agents WHERE owner = ?1", &[owner.as_bytes()])?;
    if owned < agents_max as u64 { Ok(()) } else { Err(StoreError::LimitReached) }
}

fn insert_capabilities(c: &Connection, agent: &Agent) -> StoreResult<()> {
    let mut statement = c
        .prepare_cached("INSERT INTO agent_capabilities (capability, agent) VALUES (?1, ?2)")
        .map_err(sql_error)?;
    for capability in &agent.capabilities {
        statement.execute(params![capability, agent.id.as_bytes()]).map_err(sql_error)?;
    }
    Ok(())
}

/// An agent.
pub fn agent(c: &Connection, id: AgentId) -> StoreResult<Agent> {
    let sql = format!("SELECT {AGENT_COLUMNS} FROM agents WHERE id = ?1");
    c.prepare_cached(&sql).and_then(|mut s| s.query_row([id.as_bytes()], read_agent)).map_err(sql_error)
}

/// The agent of a DID.
pub fn agent_by_did(c: &Connection, did: &str) -> StoreResult<Agent> {
    let sql = format!("SELECT {AGENT_COLUMNS} FROM agents WHERE did = ?1");
    c.prepare_cached(&sql).and_then(|mut s| s.query_row([did], read_agent)).map_err(sql_error)
}

/// A user's agents, newest first.
pub fn agents_of(c: &Connection, user: UserId, request: &PageRequest) -> StoreResult<Page<Agent>> {
    let total = count(c, "SELECT count(*) FROM agents WHERE owner = ?1", &[user.as_bytes()])?;
    let sql =
        format!("SELECT {AGENT_COLUMNS} FROM agents WHERE owner = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3");
    let items = rows(c, &sql, &[user.as_bytes(), &before(request), &page_rows(request)], read_agent)?;
    Ok(page(items, request.limit, total, |agent| *agent.id.as_bytes()))
}

/// Gives an agent without an owner to a user, and with it the tasks and hirings it has given.
pub fn claim_agent(c: &Connection, id: AgentId, user: UserId, now: Timestamp) -> StoreResult<Agent> {
    let before = agent(c, id)?;
    if before.owner.is_some_and(|owner| owner != user) {
        return Err(StoreError::AlreadyExists);
    }
    c.prepare_cached("UPDATE agents SET owner = ?1, updated_at = max(?2, updated_at + 1) WHERE id = ?3")
        .and_then(|mut s| s.execute(params![user.as_bytes(), now.unix_ms(), id.as_bytes()]))
        .map_err(sql_error)?;
    for sql in [
        "UPDATE tasks SET client_owner = ?1 WHERE client = ?2",
        "UPDATE hirings SET user = ?1 WHERE client = ?2 AND user IS NULL",
    ] {
        c.prepare_cached(sql)
            .and_then(|mut s| s.execute([user.as_bytes(), id.as_bytes()]))
            .map_err(sql_error)?;
    }
    agent(c, id)
}

/// Replaces what an agent says of itself, if nothing else has changed it meanwhile.
pub fn update_agent(c: &Connection, read: &Agent, new: &Agent) -> StoreResult<()> {
    let changed = c
        .prepare_cached(
            "UPDATE agents SET name = ?1, capabilities = ?2, pricing_model = ?3, base_price = ?4, public_key = ?5,
                protocol_versions = ?6, metadata = ?7, status = ?8, updated_at = ?9
             WHERE id = ?10 AND updated_at = ?11",
        )
        .and_then(|mut s| {
            s.execute(params![
                new.name,
                Json::of(&new.capabilities).as_str(),
                new.pricing_model.as_str(),
                new.base_price.micros(),
                new.public_key.as_ref().map(PublicKey::as_bytes),
                Json::of(&new.protocol_versions).as_str(),
                new.metadata.as_str(),
                new.status.as_str(),
                new.updated_at.unix_ms(),
                read.id.as_bytes(),
                read.updated_at.unix_ms(),
            ])
        })
        .map_err(sql_error)?;
    if changed == 0 {
        return Err(StoreError::Conflict);
    }
    if read.capabilities != new.capabilities {
        c.prepare_cached("DELETE FROM agent_capabilities WHERE agent = ?1")
            .and_then(|mut s| s.execute([read.id.as_bytes()]))
            .map_err(sql_error)?;
        insert_capabilities(c, new)?;
    }
    if let Some(former) = read.public_key.filter(|former| Some(*former) != new.public_key) {
        c.prepare_cached(
            "INSERT OR REPLACE INTO former_public_keys (agent, replaced_at, public_key) VALUES (?1, ?2, ?3)",
        )
        .and_then(|mut s| s.execute(params![read.id.as_bytes(), new.updated_at.unix_ms(), former.as_bytes()]))
        .map_err(sql_error)?;
    }
    Ok(())
}

/// Sets an agent's status.
pub fn set_agent_status(
    c: &Connection,
    id: AgentId,
    status: AgentStatus,
    now: Timestamp,
) -> StoreResult<Agent> {
    c.prepare_cached("UPDATE agents SET status = ?1, updated_at = max(?2, updated_at + 1) WHERE id = ?3")
        .and_then(|mut s| s.execute(params![status.as_str(), now.unix_ms(), id.as_bytes()]))
        .map_err(sql_error)?;
    let agent = agent(c, id)?;
    webhooks::queue(c, &Happening::of_agent(&agent))?;
    Ok(agent)
}

/// Agents that may not connect and were changed from a time on, oldest first.
pub fn agents_stopped_since(
    c: &Connection,
    (since, after): (Timestamp, Option<AgentId>),
    limit: usize,
) -> StoreResult<Vec<(Timestamp, AgentId)>> {
    let after = after.map_or([0; 16], |after| *after.as_bytes());
    rows(
        c,
        "SELECT updated_at, id FROM agents WHERE status IN ('suspended', 'banned') AND (updated_at, id) > (?1, ?2)
         ORDER BY updated_at, id LIMIT ?3",
        &[&since.unix_ms(), &after, &whole(limit)],
        |row| Ok((time(row, 0)?, AgentId::from_bytes(id_bytes(row, 1)?))),
    )
}

/// Notes when an agent was last online.
pub fn set_last_seen(c: &Connection, id: AgentId, now: Timestamp) -> StoreResult<()> {
    c.prepare_cached("UPDATE agents SET last_seen_at = ?1 WHERE id = ?2")
        .and_then(|mut s| s.execute(params![now.unix_ms(), id.as_bytes()]))
        .map_err(sql_error)?;
    Ok(())
}

/// Counts an ended task for its provider.
pub fn count_outcome(c: &Connection, id: AgentId, completed: bool) -> StoreResult<()> {
    let read = agent(c, id)?;
    let done = read.tasks_completed + u64::from(completed);
    let failed = read.tasks_failed + u64::from(!completed);
    c.prepare_cached(
        "UPDATE agents SET tasks_completed = ?1, tasks_failed = ?2, reputation = ?3 WHERE id = ?4",
    )
    .and_then(|mut s| s.execute(params![done, failed, reputation(done, failed), id.as_bytes()]))
    .map_err(sql_error)?;
    Ok(())
}

/// Agents that match, best first.
pub fn find_agents(
    c: &Connection,
    query: &Query,
    except: &HashSet<AgentId>,
    limit: usize,
) -> StoreResult<Vec<Agent>> {
    let filters = query.filters.clone().unwrap_or_default();
    let order = order_by(query.sort_by);
    let sql = format!(
        "SELECT {AGENT_COLUMNS} FROM agents WHERE status = 'active'
           AND (?1 IS NULL OR EXISTS (SELECT 1 FROM agent_capabilities x WHERE x.capability = ?1 AND x.agent = agents.id))
           AND reputation >= ?2 AND base_price >= ?3 AND base_price <= ?4
         ORDER BY {order}"
    );
    let mut statement = c.prepare_cached(&sql).map_err(sql_error)?;
    let mut found = statement
        .query(params![
            query.capability,
            filters.min_reputation.unwrap_or(f64::MIN),
            filters.min_price.map_or(0, Amount::micros),
            filters.max_price.map_or(i64::MAX, Amount::micros),
        ])
        .map_err(sql_error)?;
    let mut agents = Vec::new();
    while agents.len() < limit {
        let Some(row) = found.next().map_err(sql_error)? else { break };
        if !except.contains(&AgentId::from_bytes(id_bytes(row, 0).map_err(sql_error)?)) {
            agents.push(read_agent(row).map_err(sql_error)?);
        }
    }
    Ok(agents)
}

/// Capabilities of active agents and how many have each.
pub fn capabilities(c: &Connection, limit: usize) -> StoreResult<Vec<(String, u64)>> {
    rows(
        c,
        "SELECT capability, count(*) AS agents FROM agent_capabilities JOIN agents ON agents.id = agent
         WHERE status = 'active' GROUP BY capability ORDER BY agents DESC, capability LIMIT ?1",
        &[&whole(limit)],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Adds or changes a block.
pub fn block(
    c: &Connection,
    by: AgentId,
    other: AgentId,
    until: Option<Timestamp>,
    blocks_max: usize,
) -> StoreResult<()> {
    agent(c, other)?;
    let held = count(
        c,
        "SELECT count(*) FROM blocks WHERE agent = ?1 AND other <> ?2",
        &[by.as_bytes(), other.as_bytes()],
    )?;
    if held >= blocks_max as u64 {
        return Err(StoreError::LimitReached);
    }
    c.prepare_cached("INSERT OR REPLACE INTO blocks (agent, other, until) VALUES (?1, ?2, ?3)")
        .and_then(|mut s| s.execute(params![by.as_bytes(), other.as_bytes(), until.map(Timestamp::unix_ms)]))
        .map_err(sql_error)?;
    Ok(())
}

/// Removes a block.
pub fn unblock(c: &Connection, by: AgentId, other: AgentId) -> StoreResult<()> {
    let changed = c
        .prepare_cached("DELETE FROM blocks WHERE agent = ?1 AND other = ?2")
        .and_then(|mut s| s.execute([by.as_bytes(), other.as_bytes()]))
        .map_err(sql_error)?;
    if changed == 1 { Ok(()) } else { Err(StoreError::NotFound) }
}

/// Live blocks of an agent.
pub fn blocks_by(
    c: &Connection,
    agent: AgentId,
    now: Timestamp,
) -> StoreResult<Vec<(AgentId, Option<Timestamp>)>> {
    rows(
        c,
        "SELECT other, until FROM blocks WHERE agent = ?1 AND (until IS NULL OR until > ?2) ORDER BY other",
        &[agent.as_bytes(), &now.unix_ms()],
        |row| Ok((AgentId::from_bytes(id_bytes(row, 0)?), optional_time(row, 1)?)),
    )
}

/// Everybody an agent blocks or is blocked by, and until when.
pub fn blocked_pairs(
    c: &Connection,
    agent: AgentId,
    now: Timestamp,
) -> StoreResult<HashMap<AgentId, Option<Timestamp>>> {
    let blocks = rows(
        c,
        "SELECT other, until FROM blocks WHERE agent = ?1 AND (until IS NULL OR until > ?2)
         UNION ALL SELECT agent, until FROM blocks WHERE other = ?1 AND (until IS NULL OR until > ?2)",
        &[agent.as_bytes(), &now.unix_ms()],
        |row| Ok((AgentId::from_bytes(id_bytes(row, 0)?), optional_time(row, 1)?)),
    )?;
    Ok(longest(blocks))
}
