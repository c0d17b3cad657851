//! Users, credentials, agents and blocks, as SQL.

use std::collections::HashSet;

use muster_actors::store::{Page, PageRequest, StoreError, StoreResult};
use muster_protocol::account::{Credential, CredentialKind, Owner, Scopes, SecretHash, User};
use muster_protocol::agent::{Agent, AgentStatus, PricingModel, reputation};
use muster_protocol::discovery::Query;
use muster_protocol::ids::{AgentId, CredentialId, UserId};
use muster_protocol::json::Json;
use muster_protocol::money::Amount;
use muster_protocol::signing::PublicKey;
use muster_protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use super::{before, id_bytes, optional_id, optional_time, page, page_rows, sql_error, time};

/// Keeps the first operator hash it is given.
pub fn operator_hash(c: &Connection, first: SecretHash) -> StoreResult<SecretHash> {
    c.prepare_cached("INSERT OR IGNORE INTO meta (key, value) VALUES ('operator_hash', ?1)")
        .and_then(|mut s| s.execute([first.as_bytes()]))
        .map_err(sql_error)?;
    c.query_row("SELECT value FROM meta WHERE key = 'operator_hash'", [], |row| row.get(0))
        .map(SecretHash::from_bytes)
        .map_err(sql_error)
}

/// Writes and reads a value.
pub fn check(c: &Connection, now: Timestamp) -> StoreResult<()> {
    c.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES ('checked_at', ?1)")
        .and_then(|mut s| s.execute([now.unix_ms().to_be_bytes()]))
        .map_err(sql_error)?;
    Ok(())
}

/// Adds a user.
pub fn create_user(c: &Connection, user: &User) -> StoreResult<()> {
    c.prepare_cached("INSERT INTO users (id, name, created_at) VALUES (?1, ?2, ?3)")
        .and_then(|mut s| s.execute(params![user.id.as_bytes(), user.name, user.created_at.unix_ms()]))
        .map_err(sql_error)?;
    Ok(())
}

fn read_user(row: &Row<'_>) -> rusqlite::Result<User> {
    Ok(User { id: UserId::from_bytes(id_bytes(row, 0)?), name: row.get(1)?, created_at: time(row, 2)? })
}

/// A user.
pub fn user(c: &Connection, id: UserId) -> StoreResult<User> {
    c.prepare_cached("SELECT id, name, created_at FROM users WHERE id = ?1")
        .and_then(|mut s| s.query_row([id.as_bytes()], read_user))
        .map_err(sql_error)
}

/// All users, newest first.
pub fn users(c: &Connection, request: &PageRequest) -> StoreResult<Page<User>> {
    let total = count(c, "SELECT count(*) FROM users", &[])?;
    let items = rows(
        c,
        "SELECT id, name, created_at FROM users WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
        &[&before(request), &page_rows(request)],
        read_user,
    )?;
    Ok(page(items, request.limit, total, |user| *user.id.as_bytes()))
}

/// Runs a query and reads its rows.
pub fn rows<T>(
    c: &Connection,
    sql: &str,
    parameters: &[&dyn ToSql],
    read: fn(&Row<'_>) -> rusqlite::Result<T>,
) -> StoreResult<Vec<T>> {
    let mut statement = c.prepare_cached(sql).map_err(sql_error)?;
    let found = statement.query_map(parameters, read).map_err(sql_error)?;
    found.collect::<rusqlite::Result<Vec<T>>>().map_err(sql_error)
}

/// Runs a query that gives one number.
pub fn count(c: &Connection, sql: &str, parameters: &[&dyn ToSql]) -> StoreResult<u64> {
    let number: i64 = c
        .prepare_cached(sql)
        .and_then(|mut s| s.query_row(parameters, |row| row.get(0)))
        .map_err(sql_error)?;
    Ok(u64::try_from(number).unwrap_or(0))
}

const CREDENTIAL_COLUMNS: &str = "id, kind, agent, user, label, scopes, created_at, expires_at, revoked_at";

fn read_credential(row: &Row<'_>) -> rusqlite::Result<Credential> {
    let owner = match (optional_id(row, 2)?, optional_id(row, 3)?) {
        (Some(agent), _) => Owner::Agent(AgentId::from_bytes(agent)),
        (None, Some(user)) => Owner::User(UserId::from_bytes(user)),
        (None, None) => return Err(rusqlite::Error::InvalidQuery),
    };
    let kind: String = row.get(1)?;
    Ok(Credential {
        id: CredentialId::from_bytes(id_bytes(row, 0)?),
        kind: CredentialKind::parse(&kind).ok_or(rusqlite::Error::InvalidQuery)?,
        owner,
        label: row.get(4)?,
        scopes: Scopes::from_bits(row.get(5)?),
        created_at: time(row, 6)?,
        expires_at: optional_time(row, 7)?,
        revoked_at: optional_time(row, 8)?,
    })
}

fn owner_columns(owner: Owner) -> (Option<[u8; 16]>, Option<[u8; 16]>) {
    match owner {
        Owner::Agent(agent) => (Some(*agent.as_bytes()), None),
        Owner::User(user) => (None, Some(*user.as_bytes())),
    }
}

fn insert_credential(c: &Connection, credential: &Credential, hash: SecretHash) -> StoreResult<()> {
    let (agent, user) = owner_columns(credential.owner);
    c.prepare_cached(
        "INSERT INTO credentials (id, hash, kind, agent, user, label, scopes, created_at, expires_at, revoked_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, NULL)",
    )
    .and_then(|mut s| {
        s.execute(params![
            credential.id.as_bytes(),
            hash.as_bytes(),
            credential.kind.as_str(),
            agent,
            user,
            credential.label,
            credential.scopes.bits(),
            credential.created_at.unix_ms(),
            credential.expires_at.map(Timestamp::unix_ms),
        ])
    })
    .map_err(sql_error)?;
    Ok(())
}

/// Adds a credential, unless its owner has as many live ones as it may.
pub fn create_credential(
    c: &Connection,
    credential: &Credential,
    hash: SecretHash,
    live_max: usize,
) -> StoreResult<()> {
    let (agent, user) = owner_columns(credential.owner);
    let live = count(
        c,
        "SELECT count(*) FROM credentials WHERE (agent = ?1 OR user = ?2) AND revoked_at IS NULL
         AND (expires_at IS NULL OR expires_at > ?3)",
        &[&agent, &user, &credential.created_at.unix_ms()],
    )?;
    if live >= live_max as u64 {
        return Err(StoreError::LimitReached);
    }
    insert_credential(c, credential, hash)
}

/// The credential of a hash.
pub fn credential_by_hash(c: &Connection, hash: SecretHash) -> StoreResult<Credential> {
    let sql = format!("SELECT {CREDENTIAL_COLUMNS}, hash FROM credentials WHERE hash = ?1");
    let (credential, stored) = c
        .prepare_cached(&sql)
        .and_then(|mut s| s.query_row([hash.as_bytes()], |row| Ok((read_credential(row)?, row.get(9)?))))
        .map_err(sql_error)?;
    // The index found it by prefix comparison; this one takes the same time whatever differs.
    if SecretHash::from_bytes(stored) == hash { Ok(credential) } else { Err(StoreError::NotFound) }
}

/// All credentials of an owner, newest first.
pub fn credentials_of(c: &Connection, owner: Owner) -> StoreResult<Vec<Credential>> {
    let (agent, user) = owner_columns(owner);
    let sql = format!(
        "SELECT {CREDENTIAL_COLUMNS} FROM credentials WHERE agent = ?1 OR user = ?2 ORDER BY id DESC"
    );
    rows(c, &sql, &[&agent, &user], read_credential)
}

/// Revokes a credential of an owner, and what was had by it.
pub fn revoke_credential(
    c: &Connection,
    owner: Owner,
    id: CredentialId,
    now: Timestamp,
) -> StoreResult<Vec<CredentialId>> {
    let (agent, user) = owner_columns(owner);
    let kind: String = c
        .prepare_cached(
            "UPDATE credentials SET revoked_at = coalesce(revoked_at, ?1)
             WHERE id = ?2 AND (agent = ?3 OR user = ?4) RETURNING kind",
        )
        .and_then(|mut s| s.query_row(params![now.unix_ms(), id.as_bytes(), agent, user], |row| row.get(0)))
        .map_err(sql_error)?;
    let mut revoked = vec![id];
    if CredentialKind::parse(&kind) == Some(CredentialKind::AgentKey) {
        revoked.extend(rows(
            c,
            "UPDATE credentials SET revoked_at = ?1 WHERE agent = ?2 AND kind = 'session' AND revoked_at IS NULL
             RETURNING id",
            &[&now.unix_ms(), &agent],
            |row| id_bytes(row, 0).map(CredentialId::from_bytes),
        )?);
    }
    Ok(revoked)
}

/// Revokes one credential and adds its successor.
pub fn rotate_credential(
    c: &Connection,
    old: CredentialId,
    new: &Credential,
    hash: SecretHash,
) -> StoreResult<Vec<CredentialId>> {
    if !exists(c, "SELECT 1 FROM credentials WHERE id = ?1 AND revoked_at IS NULL", &[old.as_bytes()])? {
        return Err(StoreError::NotFound);
    }
    let revoked = revoke_credential(c, new.owner, old, new.created_at)?;
    insert_credential(c, new, hash)?;
    Ok(revoked)
}

const AGENT_COLUMNS: &str = "id, owner, name, did, capabilities, pricing_model, base_price, public_key, \
     protocol_versions, metadata, status, tasks_completed, tasks_failed, created_at, updated_at, last_seen_at";

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
        base_price: Amount::from_micros(row.get(6)?).ok_or_else(broken)?,
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

/// A JSON column.
pub fn json(row: &Row<'_>, index: usize) -> rusqlite::Result<Json> {
    Ok(Json::from_trusted_bytes(row.get::<_, String>(index)?.into()))
}

/// A JSON column that may be null.
pub fn optional_json(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<Json>> {
    Ok(row.get::<_, Option<String>>(index)?.map(|text| Json::from_trusted_bytes(text.into())))
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

/// Gives an agent without an owner to a user.
pub fn claim_agent(c: &Connection, id: AgentId, user: UserId, now: Timestamp) -> StoreResult<Agent> {
    let before = agent(c, id)?;
    if before.owner.is_some_and(|owner| owner != user) {
        return Err(StoreError::AlreadyExists);
    }
    c.prepare_cached("UPDATE agents SET owner = ?1, updated_at = max(?2, updated_at + 1) WHERE id = ?3")
        .and_then(|mut s| s.execute(params![user.as_bytes(), now.unix_ms(), id.as_bytes()]))
        .map_err(sql_error)?;
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
    agent(c, id)
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
    let sql = format!(
        "SELECT {AGENT_COLUMNS} FROM agents WHERE status = 'active'
           AND (?1 IS NULL OR EXISTS (SELECT 1 FROM agent_capabilities x WHERE x.capability = ?1 AND x.agent = agents.id))
           AND reputation >= ?2 AND base_price >= ?3 AND base_price <= ?4
         ORDER BY reputation DESC, base_price, id"
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
        &[&i64::try_from(limit).unwrap_or(i64::MAX)],
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

/// Everybody an agent blocks or is blocked by.
pub fn blocked_pairs(c: &Connection, agent: AgentId, now: Timestamp) -> StoreResult<HashSet<AgentId>> {
    let pairs = rows(
        c,
        "SELECT other FROM blocks WHERE agent = ?1 AND (until IS NULL OR until > ?2)
         UNION SELECT agent FROM blocks WHERE other = ?1 AND (until IS NULL OR until > ?2)",
        &[agent.as_bytes(), &now.unix_ms()],
        |row| id_bytes(row, 0).map(AgentId::from_bytes),
    )?;
    Ok(pairs.into_iter().collect())
}

/// Whether a row exists.
pub fn exists(c: &Connection, sql: &str, parameters: &[&dyn ToSql]) -> StoreResult<bool> {
    let found: Option<i64> = c
        .prepare_cached(sql)
        .and_then(|mut s| s.query_row(parameters, |row| row.get(0)).optional())
        .map_err(sql_error)?;
    Ok(found.is_some())
}
