//! Who does not see whom (agrenting.md R66): kept true for those who watch while blocks come, go and run out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use muster_protocol::discovery::View;
use muster_protocol::error_code::Refusal;
use muster_protocol::ids::AgentId;
use muster_protocol::time::Timestamp;
use smol_str::SmolStr;

use crate::egress::Outlet;
use crate::ports::Environment;
use crate::presence::{Hidden, Presence, Watching};
use crate::store::Store;
use crate::task_stream::refusal_of;

/// Blocks, as far as they concern those who watch.
pub struct Blocks {
    store: Arc<dyn Store>,
    presence: Arc<Presence>,
    environment: Environment,
    /// Changes so far.
    changes: AtomicU64,
    /// When the first of the blocks that concern a watching agent runs out: one entry an agent.
    ends: parking_lot::Mutex<HashMap<AgentId, Timestamp>>,
    /// What was read last is told last.
    telling: tokio::sync::Mutex<()>,
}

impl Blocks {
    /// Blocks of a store, for those who watch a presence.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, presence: Arc<Presence>, environment: Environment) -> Self {
        let (ends, telling) = (parking_lot::Mutex::default(), tokio::sync::Mutex::default());
        Self { store, presence, environment, changes: AtomicU64::new(0), ends, telling }
    }

    /// The agents that one blocks or is blocked by.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn hidden_from(&self, agent: AgentId) -> Result<HashSet<AgentId>, Refusal> {
        let pairs = self.store.blocked_pairs(agent, self.environment.now()).await.map_err(refusal_of)?;
        Ok(pairs.into_keys().collect())
    }

    /// Lets an outlet watch a topic's presence as an agent sees it; as a user without an agent it sees everybody.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn watch(
        &self,
        topic: &str,
        outlet: &Arc<Outlet>,
        viewer: Option<AgentId>,
        view: View,
    ) -> Result<Watching, Refusal> {
        let Some(viewer) = viewer else {
            return Ok(self.presence.watch(topic, outlet, None, (view, None)));
        };
        let changes = self.changes.load(Ordering::Acquire);
        let hidden = self.hidden_keys(viewer).await?;
        let watching = self.presence.watch(topic, outlet, Some(viewer), (view, hidden));
        // A block that came between the reading and the watching was told to nobody.
        if self.changes.load(Ordering::Acquire) != changes {
            self.tell(viewer).await?;
        }
        Ok(watching)
    }

    /// A block between two agents came or went: both see each other go, or come back.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn changed(&self, agents: [AgentId; 2]) -> Result<(), Refusal> {
        self.changes.fetch_add(1, Ordering::Release);
        for agent in agents {
            self.tell(agent).await?;
        }
        Ok(())
    }

    /// Reads the blocks of everybody who watches again: some changes may have been missed.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn read_again(&self) -> Result<(), Refusal> {
        self.changes.fetch_add(1, Ordering::Release);
        for viewer in self.presence.viewers() {
            self.tell(viewer).await?;
        }
        Ok(())
    }

    /// Shows those again whose blocks have run out by now.
    pub async fn end_due(&self, now: Timestamp) {
        let due: Vec<AgentId> =
            self.ends.lock().extract_if(|_, end| *end <= now).map(|(agent, _)| agent).collect();
        for agent in due {
            if let Err(refusal) = self.tell(agent).await {
                tracing::warn!(%refusal, "cannot read the blocks of an agent");
                self.ends.lock().insert(agent, now.plus_ms(1));
            }
        }
    }

    async fn tell(&self, viewer: AgentId) -> Result<(), Refusal> {
        let _one_at_a_time = self.telling.lock().await;
        let hidden = self.hidden_keys(viewer).await?;
        self.presence.hide(viewer, hidden);
        Ok(())
    }

    async fn hidden_keys(&self, viewer: AgentId) -> Result<Option<Arc<Hidden>>, Refusal> {
        let pairs = self.store.blocked_pairs(viewer, self.environment.now()).await.map_err(refusal_of)?;
        if let Some(end) = pairs.values().flatten().min() {
            let mut ends = self.ends.lock();
            let first = ends.entry(viewer).or_insert(*end);
            *first = (*first).min(*end);
        }
        if pairs.is_empty() {
            return Ok(None);
        }
        Ok(Some(Arc::new(pairs.keys().map(|id| SmolStr::from(id.to_string())).collect())))
    }
}
