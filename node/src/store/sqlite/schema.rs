//! Migrations: forward only, numbered, each in its own transaction.

use muster_actors::store::StoreResult;
use rusqlite::Connection;

use super::sql_error;
use crate::store::sql::check_version;

/// Migrations in order; their numbers are their places, from 1.
const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/sqlite/0001_initial.sql"),
    include_str!("../migrations/sqlite/0002_chunk_journal.sql"),
    include_str!("../migrations/sqlite/0003_revocations.sql"),
    include_str!("../migrations/sqlite/0004_stopped_agents.sql"),
    include_str!("../migrations/sqlite/0005_ledger.sql"),
    include_str!("../migrations/sqlite/0006_negotiations.sql"),
    include_str!("../migrations/sqlite/0007_messages.sql"),
    include_str!("../migrations/sqlite/0008_task_channel.sql"),
    include_str!("../migrations/sqlite/0009_idempotency.sql"),
    include_str!("../migrations/sqlite/0010_webhooks.sql"),
    include_str!("../migrations/sqlite/0011_teams.sql"),
    include_str!("../migrations/sqlite/0012_handoffs.sql"),
    include_str!("../migrations/sqlite/0013_lists.sql"),
    include_str!("../migrations/sqlite/0014_queues.sql"),
];

/// Brings the database to the newest version.
///
/// # Errors
/// The database is newer than this program, or cannot be written.
pub fn migrate(connection: &mut Connection) -> StoreResult<()> {
    apply(connection, MIGRATIONS, |version| tracing::info!(version, "store migrated"))
}

/// Brings a database to the newest of some versions; tells of each once it is reached.
///
/// # Errors
/// As for [`migrate`].
pub fn apply(connection: &mut Connection, migrations: &[&str], reached: impl Fn(usize)) -> StoreResult<()> {
    let current: usize =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sql_error)?;
    check_version(current, migrations.len())?;
    for (index, migration) in migrations.iter().enumerate().skip(current) {
        let transaction = connection.transaction().map_err(sql_error)?;
        transaction.execute_batch(migration).map_err(sql_error)?;
        transaction.pragma_update(None, "user_version", index + 1).map_err(sql_error)?;
        transaction.commit().map_err(sql_error)?;
        reached(index + 1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrating_twice_changes_nothing_and_a_newer_database_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        migrate(&mut connection).unwrap();
        connection.pragma_update(None, "user_version", MIGRATIONS.len() + 1).unwrap();
        let error = migrate(&mut connection).unwrap_err();
        assert!(error.to_string().contains("use a newer one"), "{error}");
    }

    #[test]
    fn hirings_of_before_have_the_state_of_their_task() {
        let mut connection = Connection::open_in_memory().unwrap();
        apply(&mut connection, &MIGRATIONS[..12], |_| {}).unwrap();
        connection
            .execute_batch(
                "PRAGMA foreign_keys = OFF;
                 INSERT INTO tasks (id, status, client, provider, capability, input, hiring, created_at, updated_at)
                 VALUES (zeroblob(16), 'failed', x'01', x'02', 'code', '{}', x'03', 1, 1);
                 INSERT INTO hirings (id, client, agent, agent_did, task, created_at, updated_at)
                 VALUES (x'03', x'01', x'02', 'did', zeroblob(16), 1, 1);",
            )
            .unwrap();
        migrate(&mut connection).unwrap();
        let status = |c: &Connection| -> String {
            c.query_row("SELECT status FROM hirings", [], |row| row.get(0)).unwrap()
        };
        assert_eq!(status(&connection), "failed");
        connection.execute("UPDATE tasks SET status = 'cancelled'", []).unwrap();
        assert_eq!(status(&connection), "cancelled", "whoever changes the task");
    }
}
