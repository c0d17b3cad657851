//! Users and credentials, as SQL.

use muster_actors::store::{Page, PageRequest, StoreError, StoreResult};
use muster_protocol::account::{Credential, CredentialKind, Owner, Scopes, SecretHash, User};
use muster_protocol::agent::Agent;
use muster_protocol::ids::{AgentId, CredentialId, UserId};
use muster_protocol::time::Timestamp;
use rusqlite::{Connection, Row, params};

use super::columns::{count, exists, id_bytes, optional_id, optional_time, rows, time};
use super::{agents, sql_error};
use crate::store::sql::{before, page, page_rows, whole};

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

const CREDENTIAL_COLUMNS: &str =
    "id, kind, agent, user, label, scopes, created_at, expires_at, revoked_at, parent";

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
        parent: optional_id(row, 9)?.map(CredentialId::from_bytes),
    })
}

fn owner_columns(owner: Owner) -> (Option<[u8; 16]>, Option<[u8; 16]>) {
    match owner {
        Owner::Agent(agent) => (Some(*agent.as_bytes()), None),
        Owner::User(user) => (None, Some(*user.as_bytes())),
    }
}

pub(super) fn insert_credential(
    c: &Connection,
    credential: &Credential,
    hash: SecretHash,
) -> StoreResult<()> {
    let (agent, user) = owner_columns(credential.owner);
    c.prepare_cached(
        "INSERT INTO credentials (id, hash, kind, agent, user, label, scopes, created_at, expires_at, parent)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
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
            credential.parent.as_ref().map(CredentialId::as_bytes),
        ])
    })
    .map_err(sql_error)?;
    Ok(())
}

/// Adds a credential; gives the sessions that had to make room for it.
pub fn create_credential(
    c: &Connection,
    credential: &Credential,
    hash: SecretHash,
    live_max: usize,
) -> StoreResult<Vec<CredentialId>> {
    let (agent, user) = owner_columns(credential.owner);
    if let Some(parent) = credential.parent {
        let live = "SELECT 1 FROM credentials WHERE id = ?1 AND revoked_at IS NULL";
        if !exists(c, live, &[parent.as_bytes()])? {
            return Err(StoreError::NotFound);
        }
    }
    let is_session = credential.kind == CredentialKind::Session;
    let now = credential.created_at.unix_ms();
    let live = count(
        c,
        "SELECT count(*) FROM credentials WHERE (agent = ?1 OR user = ?2) AND (kind = 'session') = ?3
         AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?4)",
        &[&agent, &user, &is_session, &now],
    )?;
    let mut revoked = Vec::new();
    if live >= live_max as u64 {
        if !is_session {
            return Err(StoreError::LimitReached);
        }
        let over = whole(live - live_max as u64 + 1);
        revoked = rows(
            c,
            "UPDATE credentials SET revoked_at = ?1 WHERE id IN (
                SELECT id FROM credentials WHERE agent = ?2 AND kind = 'session' AND revoked_at IS NULL
                AND (expires_at IS NULL OR expires_at > ?1) ORDER BY id LIMIT ?3) RETURNING id",
            &[&now, &agent, &over],
            |row| id_bytes(row, 0).map(CredentialId::from_bytes),
        )?;
    }
    insert_credential(c, credential, hash)?;
    Ok(revoked)
}

/// Forgets credentials that ended before a time.
pub fn purge_credentials(c: &Connection, ended_before: Timestamp, rows_max: usize) -> StoreResult<usize> {
    c.prepare_cached(
        "DELETE FROM credentials WHERE id IN (SELECT id FROM credentials
            WHERE revoked_at < ?1 OR expires_at < ?1 LIMIT ?2)",
    )
    .and_then(|mut s| s.execute(params![ended_before.unix_ms(), whole(rows_max)]))
    .map_err(sql_error)
}

/// The credential of a hash.
fn credential_by_hash(c: &Connection, hash: SecretHash) -> StoreResult<Credential> {
    let sql = format!("SELECT {CREDENTIAL_COLUMNS}, hash FROM credentials WHERE hash = ?1");
    let (credential, stored) = c
        .prepare_cached(&sql)
        .and_then(|mut s| s.query_row([hash.as_bytes()], |row| Ok((read_credential(row)?, row.get(10)?))))
        .map_err(sql_error)?;
    // The index found it by prefix comparison; this one takes the same time whatever differs.
    if SecretHash::from_bytes(stored) == hash { Ok(credential) } else { Err(StoreError::NotFound) }
}

/// The same, with the agent whose credential it is.
pub fn caller_by_hash(c: &Connection, hash: SecretHash) -> StoreResult<(Credential, Option<Agent>)> {
    let credential = credential_by_hash(c, hash)?;
    let agent = match credential.owner {
        Owner::Agent(agent) => Some(agents::agent(c, agent)?),
        Owner::User(_) => None,
    };
    Ok((credential, agent))
}

/// All credentials of an owner, newest first.
pub fn credentials_of(c: &Connection, owner: Owner) -> StoreResult<Vec<Credential>> {
    let (agent, user) = owner_columns(owner);
    let sql = format!(
        "SELECT {CREDENTIAL_COLUMNS} FROM credentials WHERE agent = ?1 OR user = ?2 ORDER BY id DESC"
    );
    rows(c, &sql, &[&agent, &user], read_credential)
}

/// Credentials that were revoked from a time on, oldest first.
pub fn credentials_ended_since(
    c: &Connection,
    (since, after): (Timestamp, Option<CredentialId>),
    limit: usize,
) -> StoreResult<Vec<(Timestamp, CredentialId)>> {
    let after = after.map_or([0; 16], |after| *after.as_bytes());
    rows(
        c,
        "SELECT revoked_at, id FROM credentials WHERE (revoked_at, id) > (?1, ?2) ORDER BY revoked_at, id LIMIT ?3",
        &[&since.unix_ms(), &after, &whole(limit)],
        |row| Ok((time(row, 0)?, CredentialId::from_bytes(id_bytes(row, 1)?))),
    )
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
            "UPDATE credentials SET revoked_at = ?1 WHERE parent = ?2 AND revoked_at IS NULL RETURNING id",
            &[&now.unix_ms(), id.as_bytes()],
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
