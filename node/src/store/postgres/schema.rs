//! Migrations: forward only, numbered, each in its own transaction, under a lock that all nodes share.

use muster_actors::store::StoreError;

use super::pool::{Connection, Failure};
use crate::store::sql::{check_version, whole};

/// Migrations in order; their numbers are their places, from 1.
pub(super) const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/postgres/0001_initial.sql"),
    include_str!("../migrations/postgres/0002_stopped_agents.sql"),
    include_str!("../migrations/postgres/0003_ledger.sql"),
    include_str!("../migrations/postgres/0004_negotiations.sql"),
    include_str!("../migrations/postgres/0005_messages.sql"),
    include_str!("../migrations/postgres/0006_task_channel.sql"),
    include_str!("../migrations/postgres/0007_idempotency.sql"),
    include_str!("../migrations/postgres/0008_webhooks.sql"),
    include_str!("../migrations/postgres/0009_teams.sql"),
    include_str!("../migrations/postgres/0010_handoffs.sql"),
    include_str!("../migrations/postgres/0011_lists.sql"),
    include_str!("../migrations/postgres/0012_queues.sql"),
];
/// Of the lock that is held while migrating: `muster` in ASCII.
const LOCK: i64 = 0x6d_75_73_74_65_72;
/// How long one migration, and waiting for those of another node, may take, in milliseconds.
const MIGRATION_MS: u64 = 600_000;

/// Brings the database to the newest version.
///
/// # Errors
/// The database is newer than this program, has another encoding than UTF-8, or cannot be written.
pub async fn migrate(c: &Connection) -> Result<(), Failure> {
    let encoding: String = c.one("SELECT current_setting('server_encoding')", &[]).await?.try_get(0)?;
    if encoding != "UTF8" {
        let problem = format!("the database has the encoding {encoding}, and must have UTF8");
        return Err(StoreError::Unavailable(problem).into());
    }
    while migrate_next(c).await? {}
    Ok(())
}

/// Runs the next migration, if there is one.
async fn migrate_next(c: &Connection) -> Result<bool, Failure> {
    c.batch(&format!(
        "BEGIN; SET LOCAL statement_timeout = {MIGRATION_MS}; SET LOCAL lock_timeout = {MIGRATION_MS}"
    ))
    .await?;
    let migrated = migrate_locked(c).await;
    c.batch(if migrated.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
    if let Ok(Some(version)) = migrated {
        tracing::info!(version, "store migrated");
    }
    Ok(migrated?.is_some())
}

async fn migrate_locked(c: &Connection) -> Result<Option<usize>, Failure> {
    c.query("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    c.batch("CREATE TABLE IF NOT EXISTS muster_schema (version bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())")
        .await?;
    let row = c.one("SELECT coalesce(max(version), 0) FROM muster_schema", &[]).await?;
    let current = usize::try_from(row.try_get::<_, i64>(0)?).unwrap_or(usize::MAX);
    check_version(current, MIGRATIONS.len())?;
    let Some(migration) = MIGRATIONS.get(current) else { return Ok(None) };
    c.batch(migration).await?;
    let version = whole(current + 1);
    c.execute("INSERT INTO muster_schema (version) VALUES ($1)", &[&version]).await?;
    Ok(Some(current + 1))
}
