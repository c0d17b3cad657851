//! Figures in tables of their own, over a few connections of their own. Nobody waits for their fsync
//! (`synchronous_commit = off`); what several nodes add adds up.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use muster_actors::store::figures::{Entry, LOAD_COUNTS_MS, Query};
use muster_actors::store::{FigureStore, StoreResult};
use muster_protocol::analytics::{Figures, Interval, everybody};
use muster_protocol::ids::AgentId;
use muster_protocol::time::Timestamp;
use tokio_postgres::Row;

use super::columns::{Id, id, id_bytes, time};
use super::pool::{Connection, Failure, Parameter, Pool};
use crate::store::figures::{columns, days, span, spread};
use crate::store::sql::whole;

/// A day, in milliseconds.
const DAY_MS: i64 = 86_400_000;

/// The figures of the nodes that share a database.
pub struct PostgresFigures {
    pool: Arc<Pool>,
}

impl PostgresFigures {
    /// Over connections of its own.
    #[must_use]
    pub fn new(pool: Pool) -> Self {
        Self { pool: Arc::new(pool) }
    }
}

async fn unsynced(c: &Connection) -> Result<(), Failure> {
    c.batch("SET LOCAL synchronous_commit = off").await
}

async fn add(c: &Connection, entries: &[Entry]) -> Result<(), Failure> {
    unsynced(c).await?;
    let days = days(entries);
    let (agents, times): (Vec<Id>, Vec<i64>) =
        days.iter().map(|(agent, day)| (id!(agent), day.unix_ms())).unzip();
    let sql = "SELECT f.agent, f.at, f.capability FROM unnest($1::uuid[], $2::bigint[]) x (agent, at)
               JOIN figures f ON f.agent = x.agent AND f.span = $3 AND f.at = x.at";
    let mut known: HashMap<_, BTreeSet<String>> = HashMap::new();
    for row in c.query(sql, &[&agents, &times, &span(Interval::Day)]).await? {
        let key = (AgentId::from_bytes(id_bytes(&row, 0)?), time(&row, 1)?);
        known.entry(key).or_default().insert(row.try_get(2)?);
    }
    let rows = spread(entries, known);
    let agents: Vec<Id> = rows.keys().map(|(agent, ..)| id!(agent)).collect();
    let spans: Vec<i64> = rows.keys().map(|(_, span, ..)| *span).collect();
    let times: Vec<i64> = rows.keys().map(|(_, _, at, _)| at.unix_ms()).collect();
    let capabilities: Vec<&str> = rows.keys().map(|(.., capability)| capability.as_str()).collect();
    let mut counters: Vec<Vec<i64>> = vec![Vec::with_capacity(rows.len()); Figures::NAMES.len()];
    for figures in rows.values() {
        for (column, value) in counters.iter_mut().zip(figures.values()) {
            column.push(whole(value));
        }
    }
    let arrays: Vec<String> = (5..5 + counters.len()).map(|place| format!("${place}::bigint[]")).collect();
    // In the order of the rows: nodes that write at once lock them alike.
    let sql = format!(
        "INSERT INTO figures (agent, span, at, capability, {}) SELECT * FROM unnest($1::uuid[], $2::bigint[],
            $3::bigint[], $4::text[], {}) ON CONFLICT (agent, span, at, capability) DO UPDATE SET {}",
        columns("{}"),
        arrays.join(", "),
        columns("{} = figures.{} + excluded.{}"),
    );
    let mut parameters: Vec<Parameter<'_>> = vec![&agents, &spans, &times, &capabilities];
    parameters.extend(counters.iter().map(|column| column as Parameter<'_>));
    c.execute(&sql, &parameters).await?;
    Ok(())
}

fn read_figures(row: &Row) -> Result<Figures, Failure> {
    let values = (1..=Figures::NAMES.len()).map(|place| row.try_get::<_, i64>(place));
    let values = values.collect::<Result<Vec<i64>, _>>()?;
    Ok(Figures::from_values(values.into_iter().map(|value| u64::try_from(value).unwrap_or(0))))
}

/// Sums over the rows of a query, by a column.
async fn sums(c: &Connection, by: &str, query: &Query) -> Result<Vec<Row>, Failure> {
    let agents: Vec<Id> = query.agents.iter().map(|agent| id!(agent)).collect();
    let sql = format!(
        "SELECT {by}, {} FROM figures WHERE agent = ANY($1) AND span = $2 AND at >= $3 GROUP BY {by} ORDER BY {by}",
        columns("sum({})::bigint")
    );
    c.query(&sql, &[&agents, &span(query.interval), &query.from.unix_ms()]).await
}

#[async_trait]
impl FigureStore for PostgresFigures {
    async fn add_figures(&self, entries: Vec<Entry>) -> StoreResult<()> {
        let entries = &entries;
        self.pool.write(|c| async move { add(&c, entries).await }).await
    }

    async fn figures_by_interval(&self, query: Query) -> StoreResult<Vec<(Timestamp, Figures)>> {
        let query = &query;
        self.pool
            .read(|c| async move {
                let rows = sums(&c, "at", query).await?;
                rows.iter().map(|row| Ok((time(row, 0)?, read_figures(row)?))).collect()
            })
            .await
    }

    async fn figures_by_capability(&self, query: Query) -> StoreResult<Vec<(String, Figures)>> {
        let query = &query;
        self.pool
            .read(|c| async move {
                let rows = sums(&c, "capability", query).await?;
                rows.iter().map(|row| Ok((row.try_get(0)?, read_figures(row)?))).collect()
            })
            .await
    }

    async fn figures_by_agent(
        &self,
        interval: Interval,
        since: Timestamp,
        (after, limit): (Option<AgentId>, usize),
    ) -> StoreResult<Vec<(AgentId, Figures)>> {
        let sql = &format!(
            "SELECT agent, {} FROM figures WHERE span = $1 AND at >= $2 AND agent <> $3 AND agent > $4
             GROUP BY agent ORDER BY agent LIMIT $5",
            columns("sum({})::bigint")
        );
        self.pool
            .read(|c| async move {
                let (all, span, since) = (id!(everybody()), span(interval), since.unix_ms());
                // Nobody has an id of nothing but zeros.
                let after = id!(after.unwrap_or(AgentId::from_bytes([0; 16])));
                let rows = c.query(sql, &[&span, &since, &all, &after, &whole(limit)]).await?;
                rows.iter()
                    .map(|row| Ok((AgentId::from_bytes(id_bytes(row, 0)?), read_figures(row)?)))
                    .collect()
            })
            .await
    }

    async fn purge_figures(&self, now: Timestamp, rows_max: usize) -> StoreResult<usize> {
        self.pool
            .write(|c| async move {
                unsynced(&c).await?;
                let mut dropped = 0;
                for (interval, kept_ms) in Interval::ALL.iter().filter_map(|i| Some((*i, i.kept_ms()?))) {
                    let before = now.plus_ms(-kept_ms).unix_ms();
                    // One node at a time has a row; the others pass over it.
                    let sql = "DELETE FROM figures WHERE (agent, span, at, capability) IN (
                                   SELECT agent, span, at, capability FROM figures WHERE span = $1 AND at < $2
                                   LIMIT $3 FOR UPDATE SKIP LOCKED)";
                    dropped += c.execute(sql, &[&span(interval), &before, &whole(rows_max)]).await?;
                }
                c.execute("DELETE FROM loads WHERE at < $1", &[&now.plus_ms(-DAY_MS).unix_ms()]).await?;
                Ok(usize::try_from(dropped).unwrap_or(usize::MAX))
            })
            .await
    }

    async fn share_load(&self, node: &str, load: f64, now: Timestamp) -> StoreResult<Vec<f64>> {
        self.pool
            .write(|c| async move {
                unsynced(&c).await?;
                c.execute(
                    "INSERT INTO loads (node, load, at) VALUES ($1, $2, $3)
                     ON CONFLICT (node) DO UPDATE SET load = excluded.load, at = excluded.at",
                    &[&node, &load, &now.unix_ms()],
                )
                .await?;
                let since = now.plus_ms(-LOAD_COUNTS_MS).unix_ms();
                let rows = c.query("SELECT load FROM loads WHERE at >= $1", &[&since]).await?;
                rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
            })
            .await
    }

    async fn close_figures(&self) {
        self.pool.close();
    }
}
