//! Figures as they come up: gathered in memory, and given to their store every second by a task of its own, so that
//! counting costs nobody a wait. A kill loses the last second of them; while their store is away they wait here, up to a
//! bound, and what goes beyond is counted as dropped.

use std::collections::HashMap;
use std::sync::Arc;

use muster_protocol::analytics::{
    self, Event, Figures, HeatmapView, Interval, Metric, MetricsView, Period, Point, RevenueView, everybody,
};
use muster_protocol::error_code::Refusal;
use muster_protocol::ids::{AgentId, UserId};
use muster_protocol::time::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;
use smol_str::SmolStr;

use crate::metric_definitions::Metrics;
use crate::ports::Environment;
use crate::store::figures::{Entry, Query};
use crate::store::{FigureStore, PageRequest, Store, StoreError};
use crate::task_stream::refusal_of;

/// Whose figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// One agent's.
    Agent(AgentId),
    /// Those of all agents of a user, together.
    User(UserId),
    /// Those of all, together.
    Everybody,
}

type Key = (AgentId, SmolStr, Timestamp);

/// The figures of a node.
pub struct Analytics {
    figures: Arc<dyn FigureStore>,
    store: Arc<dyn Store>,
    environment: Environment,
    metrics: Arc<Metrics>,
    pending: Mutex<HashMap<Key, Figures>>,
    /// Entries that may wait for the store.
    entries_max: usize,
    agents_per_user_max: usize,
    /// One flush at a time, so that who waits for one finds what was counted before it.
    flushing: tokio::sync::Mutex<()>,
}

/// A time series, as it is answered.
#[derive(Debug, Serialize)]
pub struct Series {
    /// Name of the metric.
    pub metric: &'static str,
    /// At which interval: coarser than asked for, if there would be too many points.
    pub interval: Interval,
    /// Points, oldest first.
    pub points: Vec<Point>,
}

/// Agents of a user that are read at once.
const AGENTS_AT_ONCE: usize = 1_000;
/// Rows that are dropped in one write.
const PURGE_ROWS_MAX: usize = 10_000;

impl Analytics {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(
        (figures, store): (Arc<dyn FigureStore>, Arc<dyn Store>),
        environment: Environment,
        metrics: Arc<Metrics>,
        (entries_max, agents_per_user_max): (usize, usize),
    ) -> Arc<Self> {
        let (pending, flushing) = (Mutex::default(), tokio::sync::Mutex::default());
        Arc::new(Self {
            figures,
            store,
            environment,
            metrics,
            pending,
            entries_max,
            agents_per_user_max,
            flushing,
        })
    }

    /// Where they are kept.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn FigureStore> {
        &self.figures
    }

    /// Counts something that has happened. Never waits.
    pub fn record(&self, event: Event<'_>) {
        self.record_all(std::iter::once(event));
    }

    /// Counts what has happened together. Never waits.
    pub fn record_all<'a>(&self, events: impl Iterator<Item = Event<'a>>) {
        let minute = Interval::Minute.floor(self.environment.now());
        let mut pending = self.pending.lock();
        for event in events {
            let (agent, capability, figures, global) = event.counts();
            if global {
                self.add(&mut pending, (everybody(), capability.clone(), minute), &figures);
            }
            self.add(&mut pending, (agent, capability, minute), &figures);
        }
    }

    fn add(&self, pending: &mut HashMap<Key, Figures>, key: Key, figures: &Figures) {
        if pending.len() >= self.entries_max && !pending.contains_key(&key) {
            self.metrics.figures_dropped.inc();
            return;
        }
        pending.entry(key).or_default().add(figures);
    }

    /// Gives the store what was counted. What it does not take is kept for the next time.
    ///
    /// # Errors
    /// The store does not take it.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let _alone = self.flushing.lock().await;
        let taken = std::mem::take(&mut *self.pending.lock());
        if taken.is_empty() {
            return Ok(());
        }
        let entries = taken.iter().map(|((agent, capability, minute), figures)| Entry {
            agent: *agent,
            minute: *minute,
            capability: capability.clone(),
            figures: *figures,
        });
        let done = self.figures.add_figures(entries.collect()).await;
        if done.is_err() {
            let mut pending = self.pending.lock();
            for (key, figures) in taken {
                self.add(&mut pending, key, &figures);
            }
        }
        done
    }

    /// Drops what is not kept any longer.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn purge(&self) -> Result<usize, StoreError> {
        self.figures.purge_figures(self.environment.now(), PURGE_ROWS_MAX).await
    }

    /// Entries that were dropped since the node began.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.metrics.figures_dropped.get()
    }

    async fn agents(&self, whose: Whose) -> Result<Vec<AgentId>, Refusal> {
        let user = match whose {
            Whose::Agent(agent) => return Ok(vec![agent]),
            Whose::Everybody => return Ok(vec![everybody()]),
            Whose::User(user) => user,
        };
        let mut agents = Vec::new();
        let mut after = None;
        loop {
            let request = PageRequest { limit: AGENTS_AT_ONCE, after };
            let page = self.store.agents_of(user, request).await.map_err(refusal_of)?;
            agents.extend(page.items.iter().map(|agent| agent.id));
            after = page.next;
            if after.is_none() || agents.len() >= self.agents_per_user_max {
                return Ok(agents);
            }
        }
    }

    /// Figures with what this node has counted up to now; of other nodes up to about a second ago.
    async fn rows(
        &self,
        whose: Whose,
        interval: Interval,
        from: Timestamp,
    ) -> Result<Vec<(Timestamp, Figures)>, Refusal> {
        let query = self.query(whose, interval, from).await?;
        self.figures.figures_by_interval(query).await.map_err(refusal_of)
    }

    async fn query(&self, whose: Whose, interval: Interval, from: Timestamp) -> Result<Query, Refusal> {
        let agents = self.agents(whose).await?;
        self.flush().await.map_err(refusal_of)?;
        Ok(Query { agents, interval, from })
    }

    /// Sums of a period (R102).
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn metrics(&self, whose: Whose, period: Period) -> Result<MetricsView, Refusal> {
        let now = self.environment.now();
        let from = period.from(period.interval(), now);
        let rows = self.rows(whose, period.interval(), from).await?;
        Ok(analytics::metrics(period, (from, now), &rows))
    }

    /// A metric over time (R103).
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn time_series(
        &self,
        whose: Whose,
        metric: Metric,
        (period, asked): (Period, Option<Interval>),
    ) -> Result<Series, Refusal> {
        let now = self.environment.now();
        let interval = analytics::shown_interval(period, asked, now);
        let from = period.from(interval, now);
        let rows = self.rows(whose, interval, from).await?;
        let points = analytics::time_series(metric, (period, interval), (from, now), &rows);
        Ok(Series { metric: metric.name(), interval, points })
    }

    /// What was earned (R104).
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn revenue(&self, whose: Whose, period: Period) -> Result<RevenueView, Refusal> {
        let from = period.from(period.interval(), self.environment.now());
        let query = self.query(whose, period.interval(), from).await?;
        let rows = self.figures.figures_by_interval(query.clone()).await.map_err(refusal_of)?;
        let by_capability = self.figures.figures_by_capability(query).await.map_err(refusal_of)?;
        Ok(analytics::revenue(period, &rows, by_capability))
    }

    /// When tasks were created, by the hour of the week (R105).
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn heatmap(&self, whose: Whose, period: Period) -> Result<HeatmapView, Refusal> {
        let now = self.environment.now();
        let from = period.from(Interval::Hour, now);
        let rows = self.rows(whose, Interval::Hour, from).await?;
        Ok(analytics::heatmap(period, (from, now), &rows))
    }
}
