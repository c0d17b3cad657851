//! The port to where figures are kept: apart from everything else, so that whatever is written here keeps no
//! acknowledgement waiting.

use async_trait::async_trait;
use muster_protocol::analytics::{Figures, Interval};
use muster_protocol::ids::AgentId;
use muster_protocol::time::Timestamp;
use smol_str::SmolStr;

use super::StoreResult;

/// Figures to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose; [`muster_protocol::analytics::everybody`] for those of all.
    pub agent: AgentId,
    /// Beginning of the minute.
    pub minute: Timestamp,
    /// Under which capability; empty for none.
    pub capability: SmolStr,
    /// What.
    pub figures: Figures,
}

/// Which figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Whose, all together.
    pub agents: Vec<AgentId>,
    /// By which interval they are read.
    pub interval: Interval,
    /// From this time on, which is the beginning of an interval.
    pub from: Timestamp,
}

/// Capabilities under which the figures of one agent are kept on one day; further ones are `OTHER`. With the intervals'
/// own bounds this bounds the rows of an agent.
pub const CAPABILITIES_MAX: usize = 100;
/// See [`CAPABILITIES_MAX`].
pub const OTHER: &str = "(other)";
/// How long what a node says of its load counts, in milliseconds.
pub const LOAD_COUNTS_MS: i64 = 30_000;

/// Figures by minute, hour and day.
#[async_trait]
pub trait FigureStore: Send + Sync + 'static {
    /// Adds entries, each to its minute, hour and day: all of them or none.
    async fn add_figures(&self, entries: Vec<Entry>) -> StoreResult<()>;
    /// Sums by interval, oldest first, without those in which nothing was.
    async fn figures_by_interval(&self, query: Query) -> StoreResult<Vec<(Timestamp, Figures)>>;
    /// Sums by capability.
    async fn figures_by_capability(&self, query: Query) -> StoreResult<Vec<(String, Figures)>>;
    /// Sums of each agent since an interval, in the order of their ids behind one, of at most so many; without those of everybody.
    async fn figures_by_agent(
        &self,
        interval: Interval,
        since: Timestamp,
        part: (Option<AgentId>, usize),
    ) -> StoreResult<Vec<(AgentId, Figures)>>;
    /// Drops what is older than its interval is kept, about so many rows; gives how many.
    async fn purge_figures(&self, now: Timestamp, rows_max: usize) -> StoreResult<usize>;
    /// Notes the load of a node, and gives those of all that said so within [`LOAD_COUNTS_MS`].
    async fn share_load(&self, node: &str, load: f64, now: Timestamp) -> StoreResult<Vec<f64>>;
    /// Ends writing and reading.
    async fn close_figures(&self);
}
