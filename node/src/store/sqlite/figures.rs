//! Figures in a database of their own beside the store's, written with `synchronous=NORMAL`: no fsync for each commit, so a
//! power cut takes the last of them, and the store's own writer never waits behind one.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use muster_actors::store::figures::{Entry, LOAD_COUNTS_MS, Query};
use muster_actors::store::{FigureStore, StoreError, StoreResult};
use muster_protocol::analytics::{Figures, Interval, everybody};
use muster_protocol::ids::AgentId;
use muster_protocol::time::Timestamp;
use parking_lot::Mutex;
use rusqlite::{Connection, Row, TransactionBehavior, params, params_from_iter, types::Value};

use super::columns::{id_bytes, rows, time};
use super::readers::Readers;
use super::{configure, schema, sql_error};
use crate::store::figures::{columns, days, span, spread};
use crate::store::sql::whole;

/// Its schema, whose number is its place, from 1.
const MIGRATIONS: &[&str] = &[include_str!("../migrations/analytics/0001_figures.sql")];
/// Connections that read.
const READERS: usize = 2;
/// A day, in milliseconds.
const DAY_MS: i64 = 86_400_000;

/// The figures of a node that is alone.
pub struct SqliteFigures {
    /// None once it is closed.
    writer: Arc<Mutex<Option<Connection>>>,
    readers: Arc<Readers>,
}

impl SqliteFigures {
    /// Opens the database in the store's folder, which has been made and locked.
    ///
    /// # Errors
    /// It cannot be written, or is a newer one.
    pub fn open(folder: &Path) -> StoreResult<Self> {
        let path = folder.join("analytics.db");
        let mut connection = Connection::open(&path).map_err(sql_error)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(sql_error)?;
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(sql_error)?;
        configure(&connection)?;
        schema::apply(&mut connection, MIGRATIONS, |_| ())?;
        let readers = Arc::new(Readers::open(&path, READERS)?);
        Ok(Self { writer: Arc::new(Mutex::new(Some(connection))), readers })
    }

    /// Runs a transaction on a thread that may block.
    async fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Connection) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let writer = self.writer.clone();
        let written = tokio::task::spawn_blocking(move || {
            let mut writer = writer.lock();
            let closed = || StoreError::Unavailable("closed".into());
            let connection = writer.as_mut().ok_or_else(closed)?;
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql_error)?;
            let result = write(&transaction)?;
            transaction.commit().map_err(sql_error)?;
            Ok(result)
        });
        written.await.unwrap_or_else(|_| Err(StoreError::Unavailable("a write crashed".into())))
    }
}

fn add(c: &Connection, entries: &[Entry]) -> StoreResult<()> {
    let mut known = HashMap::new();
    for (agent, day) in days(entries) {
        let names = rows(
            c,
            "SELECT capability FROM figures WHERE agent = ?1 AND span = ?2 AND at = ?3",
            &[agent.as_bytes(), &span(Interval::Day), &day.unix_ms()],
            |row| row.get::<_, String>(0),
        )?;
        known.insert((agent, day), names.into_iter().collect::<BTreeSet<_>>());
    }
    let sql = format!(
        "INSERT INTO figures (agent, span, at, capability, {}) VALUES (?, ?, ?, ?, {})
         ON CONFLICT (agent, span, at, capability) DO UPDATE SET {}",
        columns("{}"),
        vec!["?"; Figures::NAMES.len()].join(", "),
        columns("{} = {} + excluded.{}"),
    );
    let mut statement = c.prepare_cached(&sql).map_err(sql_error)?;
    for ((agent, span, at, capability), figures) in spread(entries, known) {
        let mut values =
            vec![Value::Blob(agent.as_bytes().to_vec()), span.into(), at.unix_ms().into(), capability.into()];
        values.extend(figures.values().into_iter().map(|value| Value::from(whole(value))));
        statement.execute(params_from_iter(values)).map_err(sql_error)?;
    }
    Ok(())
}

fn read_figures(row: &Row<'_>) -> rusqlite::Result<Figures> {
    let values = (1..=Figures::NAMES.len()).map(|place| row.get::<_, i64>(place));
    let values = values.collect::<rusqlite::Result<Vec<i64>>>()?;
    Ok(Figures::from_values(values.into_iter().map(|value| u64::try_from(value).unwrap_or(0))))
}

/// Sums over the rows of a query, by a column.
fn sums<T>(
    c: &Connection,
    by: &str,
    query: &Query,
    read: fn(&Row<'_>) -> rusqlite::Result<T>,
) -> StoreResult<Vec<T>> {
    let hex = |agent: &AgentId| agent.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let agents = format!(
        "[{}]",
        query.agents.iter().map(|agent| format!("\"{}\"", hex(agent))).collect::<Vec<_>>().join(",")
    );
    let sql = format!(
        "SELECT {by}, {} FROM figures WHERE agent IN (SELECT unhex(value) FROM json_each(?1)) AND span = ?2 AND at >= ?3
         GROUP BY {by} ORDER BY {by}",
        columns("sum({})")
    );
    rows(c, &sql, &[&agents, &span(query.interval), &query.from.unix_ms()], read)
}

#[async_trait]
impl FigureStore for SqliteFigures {
    async fn add_figures(&self, entries: Vec<Entry>) -> StoreResult<()> {
        self.write(move |c| add(c, &entries)).await
    }

    async fn figures_by_interval(&self, query: Query) -> StoreResult<Vec<(Timestamp, Figures)>> {
        self.readers.read(move |c| sums(c, "at", &query, |row| Ok((time(row, 0)?, read_figures(row)?)))).await
    }

    async fn figures_by_capability(&self, query: Query) -> StoreResult<Vec<(String, Figures)>> {
        self.readers
            .read(move |c| sums(c, "capability", &query, |row| Ok((row.get(0)?, read_figures(row)?))))
            .await
    }

    async fn figures_by_agent(
        &self,
        interval: Interval,
        since: Timestamp,
        (after, limit): (Option<AgentId>, usize),
    ) -> StoreResult<Vec<(AgentId, Figures)>> {
        self.readers
            .read(move |c| {
                let sql = format!(
                    "SELECT agent, {} FROM figures WHERE span = ?1 AND at >= ?2 AND agent <> ?3 AND agent > ?4
                     GROUP BY agent ORDER BY agent LIMIT ?5",
                    columns("sum({})")
                );
                let (all, span, since) = (everybody(), span(interval), since.unix_ms());
                // Nobody has an id of nothing but zeros.
                let after = after.unwrap_or(AgentId::from_bytes([0; 16]));
                let parameters: [&dyn rusqlite::ToSql; 5] =
                    [&span, &since, all.as_bytes(), after.as_bytes(), &whole(limit)];
                rows(c, &sql, &parameters, |row| {
                    Ok((AgentId::from_bytes(id_bytes(row, 0)?), read_figures(row)?))
                })
            })
            .await
    }

    async fn purge_figures(&self, now: Timestamp, rows_max: usize) -> StoreResult<usize> {
        self.write(move |c| {
            let mut dropped = 0;
            for (interval, kept_ms) in Interval::ALL.iter().filter_map(|i| Some((*i, i.kept_ms()?))) {
                dropped += c
                    .prepare_cached(
                        "DELETE FROM figures WHERE (agent, span, at, capability) IN (
                            SELECT agent, span, at, capability FROM figures WHERE span = ?1 AND at < ?2 LIMIT ?3)",
                    )
                    .and_then(|mut s| {
                        s.execute(params![span(interval), now.plus_ms(-kept_ms).unix_ms(), whole(rows_max)])
                    })
                    .map_err(sql_error)?;
            }
            c.execute("DELETE FROM loads WHERE at < ?1", [now.plus_ms(-DAY_MS).unix_ms()]).map_err(sql_error)?;
            Ok(dropped)
        })
        .await
    }

    async fn share_load(&self, node: &str, load: f64, now: Timestamp) -> StoreResult<Vec<f64>> {
        let node = node.to_owned();
        self.write(move |c| {
            c.prepare_cached("INSERT OR REPLACE INTO loads (node, load, at) VALUES (?1, ?2, ?3)")
                .and_then(|mut s| s.execute(params![node, load, now.unix_ms()]))
                .map_err(sql_error)?;
            let since = now.plus_ms(-LOAD_COUNTS_MS).unix_ms();
            rows(c, "SELECT load FROM loads WHERE at >= ?1", &[&since], |row| row.get(0))
        })
        .await
    }

    async fn close_figures(&self) {
        let writer = self.writer.clone();
        // It waits for a write under way, and then for the checkpoint.
        let closed = tokio::task::spawn_blocking(move || drop(writer.lock().take())).await;
        if closed.is_err() {
            tracing::warn!("the analytics store did not close in order");
        }
        self.readers.close();
    }
}
