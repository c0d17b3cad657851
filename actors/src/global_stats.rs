//! `global_stats` (agrenting.md R107): what there is in all, told to those on `analytics:global` when they join and every
//! few seconds after.

use std::collections::HashMap;
use std::sync::Arc;

use muster_protocol::analytics::{Interval, everybody, sum};
use muster_protocol::error_code::Refusal;
use muster_protocol::json::Json;
use muster_protocol::time::Timestamp;
use muster_protocol::topic::event;
use parking_lot::Mutex;
use serde_json::json;

use crate::core::Core;
use crate::egress::{Class, Outlet, OutletId};
use crate::store::figures::Query;
use crate::task_stream::refusal_of;

/// How often those who have joined are told, in milliseconds.
pub const REFRESH_MS: u64 = 10_000;
/// How long an answer serves further joins, in milliseconds.
const FRESH_MS: u64 = 1_000;

/// How much of the machine is in use just now: 1 when all of it is.
pub type Load = Arc<dyn Fn() -> f64 + Send + Sync>;

/// Who is told, and what was told last.
pub struct GlobalStats {
    load: Load,
    watchers: Arc<Mutex<HashMap<OutletId, Arc<Outlet>>>>,
    latest: tokio::sync::Mutex<Option<(u64, Json)>>,
}

/// Being told; dropping it ends that.
pub struct WatchingStats {
    watchers: Arc<Mutex<HashMap<OutletId, Arc<Outlet>>>>,
    outlet: OutletId,
}

impl Drop for WatchingStats {
    fn drop(&mut self) {
        self.watchers.lock().remove(&self.outlet);
    }
}

impl GlobalStats {
    /// Nobody is told yet.
    #[must_use]
    pub fn new(load: Load) -> Self {
        Self { load, watchers: Arc::default(), latest: tokio::sync::Mutex::default() }
    }

    /// Tells an outlet from the next refresh on.
    #[must_use]
    pub fn watch(&self, outlet: &Arc<Outlet>) -> WatchingStats {
        self.watchers.lock().insert(outlet.id(), outlet.clone());
        WatchingStats { watchers: self.watchers.clone(), outlet: outlet.id() }
    }

    /// What there is now, or was a second ago.
    ///
    /// # Errors
    /// A store cannot be read.
    pub async fn now(&self, core: &Core) -> Result<Json, Refusal> {
        let mut latest = self.latest.lock().await;
        let now_ms = core.environment.monotonic_ms();
        if let Some((at, stats)) = latest.as_ref()
            && now_ms.saturating_sub(*at) < FRESH_MS
        {
            return Ok(stats.clone());
        }
        core.analytics.flush().await.map_err(refusal_of)?;
        let ever = Timestamp::from_unix_ms(0);
        let query = Query { agents: vec![everybody()], interval: Interval::Day, from: ever };
        let days = core.analytics.store().figures_by_interval(query).await.map_err(refusal_of)?;
        let stats = Json::of(&json!({
            "total_agents": core.store.count_agents().await.map_err(refusal_of)?,
            "total_tasks": sum(days.iter().map(|(_, figures)| figures)).tasks_created,
            "system_load": self.share(core).await?,
        }));
        *latest = Some((now_ms, stats.clone()));
        Ok(stats)
    }

    /// Tells the other nodes this one's load; gives the mean of all.
    async fn share(&self, core: &Core) -> Result<f64, Refusal> {
        let name = core.cluster.me().name.to_string();
        let own = (self.load)();
        let loads = core.analytics.store().share_load(&name, own, core.environment.now()).await;
        let loads = loads.map_err(refusal_of)?;
        #[allow(clippy::cast_precision_loss, reason = "nodes are few")]
        let mean = loads.iter().sum::<f64>() / (loads.len().max(1) as f64);
        Ok((mean * 1_000.0).round() / 1_000.0)
    }

    /// Tells everybody who has joined here; to be called every [`REFRESH_MS`].
    ///
    /// # Errors
    /// A store cannot be read.
    pub async fn refresh(&self, core: &Core) -> Result<(), Refusal> {
        if self.watchers.lock().is_empty() {
            // The others may have some.
            return if core.cluster.is_alone() { Ok(()) } else { self.share(core).await.map(drop) };
        }
        let stats = self.now(core).await?;
        let outlets: Vec<Arc<Outlet>> = self.watchers.lock().values().cloned().collect();
        for outlet in outlets {
            // Whoever has no room for it gets the next one.
            let _full = outlet.push(Class::Broadcast, event::GLOBAL_STATS, &stats);
        }
        Ok(())
    }
}
