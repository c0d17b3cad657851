//! Users and credentials, as SQL. What is counted against a bound is counted under a lock on its owner's row.

use muster_actors::store::{Page, PageRequest, StoreError};
use muster_protocol::account::{Credential, CredentialKind, Owner, Scopes, SecretHash, User};
use muster_protocol::agent::Agent;
use muster_protocol::ids::{AgentId, CredentialId, UserId};
use muster_protocol::time::Timestamp;
use tokio_postgres::Row;

use super::agents;
use super::columns::{Id, broken, id, id_bytes, optional_id, optional_time, time};
use super::pool::{Connection, Failure};
use crate::store::sql::{before, page, page_rows, whole};

/// Keeps the first operator hash it is given.
pub async fn operator_hash(c: &Connection, first: SecretHash) -> Result<SecretHash, Failure> {
    c.execute(
        "INSERT INTO meta (key, value) VALUES ('operator_hash', $1) ON CONFLICT (key) DO NOTHING",
        &[&first.as_bytes().as_slice()],
    )
    .await?;
    let row = c.one("SELECT value FROM meta WHERE key = 'operator_hash'", &[]).await?;
    read_hash(&row, 0)
}

fn read_hash(row: &Row, index: usize) -> Result<SecretHash, Failure> {
    let bytes: &[u8] = row.try_get(index)?;
    Ok(SecretHash::from_bytes(bytes.try_into().map_err(|_| broken())?))
}

/// Writes and reads a value.
pub async fn check(c: &Connection, now: Timestamp) -> Result<(), Failure> {
    c.execute(
        "INSERT INTO meta (key, value) VALUES ('checked_at', $1) ON CONFLICT (key) DO UPDATE SET value = $1",
        &[&now.unix_ms().to_be_bytes().as_slice()],
    )
    .await?;
    Ok(())
}

/// Adds a user.
pub async fn create_user(c: &Connection, user: &User) -> Result<(), Failure> {
    c.execute(
        "INSERT INTO users (id, name, created_at) VALUES ($1, $2, $3)",
        &[&id!(user.id), &user.name, &user.created_at.unix_ms()],
    )
    .await?;
    Ok(())
}

fn read_user(row: &Row) -> Result<User, Failure> {
    Ok(User { id: UserId::from_bytes(id_bytes(row, 0)?), name: row.try_get(1)?, created_at: time(row, 2)? })
}

/// A user.
pub async fn user(c: &Connection, id: UserId) -> Result<User, Failure> {
    read_user(&c.one("SELECT id, name, created_at FROM users WHERE id = $1", &[&id!(id)]).await?)
}

/// All users, newest first.
pub async fn users(c: &Connection, request: &PageRequest) -> Result<Page<User>, Failure> {
    let total = c.count("SELECT count(*) FROM users", &[]).await?;
    let rows = c
        .query(
            "SELECT id, name, created_at FROM users WHERE id < $1 ORDER BY id DESC LIMIT $2",
            &[&Id(before(request)), &page_rows(request)],
        )
        .await?;
    let items = rows.iter().map(read_user).collect::<Result<Vec<_>, _>>()?;
    Ok(page(items, request.limit, total, |user| *user.id.as_bytes()))
}

const CREDENTIAL_COLUMNS: &str =
    "id, kind, agent, user_id, label, scopes, created_at, expires_at, revoked_at, parent";

fn read_credential(row: &Row) -> Result<Credential, Failure> {
    let owner = match (optional_id(row, 2)?, optional_id(row, 3)?) {
        (Some(agent), _) => Owner::Agent(AgentId::from_bytes(agent)),
        (None, Some(user)) => Owner::User(UserId::from_bytes(user)),
        (None, None) => return Err(broken()),
    };
    let scopes = u8::try_from(row.try_get::<_, i16>(5)?).map_err(|_| broken())?;
    Ok(Credential {
        id: CredentialId::from_bytes(id_bytes(row, 0)?),
        kind: CredentialKind::parse(row.try_get(1)?).ok_or_else(broken)?,
        owner,
        label: row.try_get(4)?,
        scopes: Scopes::from_bits(scopes),
        created_at: time(row, 6)?,
        expires_at: optional_time(row, 7)?,
        revoked_at: optional_time(row, 8)?,
        parent: optional_id(row, 9)?.map(CredentialId::from_bytes),
    })
}

fn owner_columns(owner: Owner) -> (Option<Id>, Option<Id>) {
    match owner {
        Owner::Agent(agent) => (Some(id!(agent)), None),
        Owner::User(user) => (None, Some(id!(user))),
    }
}

/// Adds a credential as it is.
pub async fn insert_credential(
    c: &Connection,
    credential: &Credential,
    hash: SecretHash,
) -> Result<(), Failure> {
    let (agent, user) = owner_columns(credential.owner);
    c.execute(
        "INSERT INTO credentials (id, hash, kind, agent, user_id, label, scopes, created_at, expires_at, parent)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        &[
            &id!(credential.id),
            &hash.as_bytes().as_slice(),
            &credential.kind.as_str(),
            &agent,
            &user,
            &credential.label,
            &i16::from(credential.scopes.bits()),
            &credential.created_at.unix_ms(),
            &credential.expires_at.map(Timestamp::unix_ms),
            &credential.parent.map(|parent| id!(parent)),
        ],
    )
    .await?;
    Ok(())
}

/// Whoever holds this adds to what that owner has alone.
async fn lock_owner(c: &Connection, owner: Owner) -> Result<(), Failure> {
    match owner {
        Owner::Agent(agent) => agents::lock(c, agent).await,
        Owner::User(user) => lock_user(c, user).await,
    }
}

/// The same of a user.
pub async fn lock_user(c: &Connection, user: UserId) -> Result<(), Failure> {
    c.query("SELECT 1 FROM users WHERE id = $1 FOR NO KEY UPDATE", &[&id!(user)]).await?;
    Ok(())
}

/// Adds a credential; gives the sessions that had to make room for it.
pub async fn create_credential(
    c: &Connection,
    credential: &Credential,
    hash: SecretHash,
    live_max: usize,
) -> Result<Vec<CredentialId>, Failure> {
    lock_owner(c, credential.owner).await?;
    let (agent, user) = owner_columns(credential.owner);
    if let Some(parent) = credential.parent {
        // Shared: it is not revoked before this is done, which would miss the new session.
        let live = "SELECT 1 FROM credentials WHERE id = $1 AND revoked_at IS NULL FOR SHARE";
        c.one(live, &[&id!(parent)]).await?;
    }
    let is_session = credential.kind == CredentialKind::Session;
    let now = credential.created_at.unix_ms();
    let live = c
        .count(
            "SELECT count(*) FROM credentials WHERE (agent = $1 OR user_id = $2) AND (kind = 'session') = $3
             AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $4)",
            &[&agent, &user, &is_session, &now],
        )
        .await?;
    let mut revoked = Vec::new();
    if live >= live_max as u64 {
        if !is_session {
            return Err(StoreError::LimitReached.into());
        }
        let over = whole(live - live_max as u64 + 1);
        let rows = c
            .query(
                "UPDATE credentials SET revoked_at = $1 WHERE id IN (
                    SELECT id FROM credentials WHERE agent = $2 AND kind = 'session' AND revoked_at IS NULL
                    AND (expires_at IS NULL OR expires_at > $1) ORDER BY id LIMIT $3) RETURNING id",
                &[&now, &agent, &over],
            )
            .await?;
        revoked = credential_ids(&rows)?;
    }
    insert_credential(c, credential, hash).await?;
    Ok(revoked)
}

fn credential_ids(rows: &[Row]) -> Result<Vec<CredentialId>, Failure> {
    rows.iter().map(|row| id_bytes(row, 0).map(CredentialId::from_bytes)).collect()
}

/// Forgets credentials that ended before a time.
pub async fn purge_credentials(
    c: &Connection,
    ended_before: Timestamp,
    rows_max: usize,
) -> Result<usize, Failure> {
    let purged = c
        .execute(
            "DELETE FROM credentials WHERE id IN (SELECT id FROM credentials
                WHERE revoked_at < $1 OR expires_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED)",
            &[&ended_before.unix_ms(), &whole(rows_max)],
        )
        .await?;
    Ok(usize::try_from(purged).unwrap_or(usize::MAX))
}

/// Forgets writes whose outcome nobody will ask for: this life's that are settled, and those of lives that ended long ago.
pub async fn purge_writes(c: &Connection, (writer, settled): (i64, i64)) -> Result<(), Failure> {
    c.execute(
        "DELETE FROM writes WHERE writer = $1 AND number < $2 OR at < now() - interval '1 day'",
        &[&writer, &settled],
    )
    .await?;
    Ok(())
}

/// The credential of a hash.
async fn credential_by_hash(c: &Connection, hash: SecretHash) -> Result<Credential, Failure> {
    let sql = format!("SELECT {CREDENTIAL_COLUMNS}, hash FROM credentials WHERE hash = $1");
    let row = c.one(&sql, &[&hash.as_bytes().as_slice()]).await?;
    // The index found it by prefix comparison; this one takes the same time whatever differs.
    if read_hash(&row, 10)? == hash { read_credential(&row) } else { Err(StoreError::NotFound.into()) }
}

/// The same, with the agent whose credential it is.
pub async fn caller_by_hash(
    c: &Connection,
    hash: SecretHash,
) -> Result<(Credential, Option<Agent>), Failure> {
    let credential = credential_by_hash(c, hash).await?;
    let agent = match credential.owner {
        Owner::Agent(agent) => Some(agents::agent(c, agent).await?),
        Owner::User(_) => None,
    };
    Ok((credential, agent))
}

/// All credentials of an owner, newest first.
pub async fn credentials_of(c: &Connection, owner: Owner) -> Result<Vec<Credential>, Failure> {
    let (agent, user) = owner_columns(owner);
    let sql = format!(
        "SELECT {CREDENTIAL_COLUMNS} FROM credentials WHERE agent = $1 OR user_id = $2 ORDER BY id DESC"
    );
    c.query(&sql, &[&agent, &user]).await?.iter().map(read_credential).collect()
}

/// Credentials that were revoked from a time on, oldest first.
pub async fn credentials_ended_since(
    c: &Connection,
    (since, after): (Timestamp, Option<CredentialId>),
    limit: usize,
) -> Result<Vec<(Timestamp, CredentialId)>, Failure> {
    let after = after.map_or(Id([0; 16]), |after| id!(after));
    let rows = c
        .query(
            "SELECT revoked_at, id FROM credentials WHERE (revoked_at, id) > ($1, $2) ORDER BY revoked_at, id LIMIT $3",
            &[&since.unix_ms(), &after, &whole(limit)],
        )
        .await?;
    rows.iter().map(|row| Ok((time(row, 0)?, CredentialId::from_bytes(id_bytes(row, 1)?)))).collect()
}

/// Revokes a credential of an owner, and what was had by it.
pub async fn revoke_credential(
    c: &Connection,
    owner: Owner,
    id: CredentialId,
    now: Timestamp,
) -> Result<Vec<CredentialId>, Failure> {
    let (agent, user) = owner_columns(owner);
    let row = c
        .one(
            "UPDATE credentials SET revoked_at = coalesce(revoked_at, $1)
             WHERE id = $2 AND (agent = $3 OR user_id = $4) RETURNING kind",
            &[&now.unix_ms(), &id!(id), &agent, &user],
        )
        .await?;
    let mut revoked = vec![id];
    if CredentialKind::parse(row.try_get(0)?) == Some(CredentialKind::AgentKey) {
        let sessions = c
            .query(
                "UPDATE credentials SET revoked_at = $1 WHERE parent = $2 AND revoked_at IS NULL RETURNING id",
                &[&now.unix_ms(), &id!(id)],
            )
            .await?;
        revoked.extend(credential_ids(&sessions)?);
    }
    Ok(revoked)
}

/// Revokes one credential and adds its successor.
pub async fn rotate_credential(
    c: &Connection,
    old: CredentialId,
    new: &Credential,
    hash: SecretHash,
) -> Result<Vec<CredentialId>, Failure> {
    let live = "SELECT 1 FROM credentials WHERE id = $1 AND revoked_at IS NULL FOR NO KEY UPDATE";
    c.one(live, &[&id!(old)]).await?;
    let revoked = revoke_credential(c, new.owner, old, new.created_at).await?;
    insert_credential(c, new, hash).await?;
    Ok(revoked)
}
