//! What is kept of teams.

use async_trait::async_trait;
use muster_protocol::ids::{AgentId, TeamId};
use muster_protocol::team::{Entry, EntryKind, Team};
use muster_protocol::time::Timestamp;

use super::{Page, PageRequest, StoreResult};

/// Teams and what they keep.
#[async_trait]
pub trait TeamStore: Send + Sync + 'static {
    /// Adds a team, unless its owner has made `teams_max`.
    async fn create_team(&self, team: Team, teams_max: usize) -> StoreResult<()>;
    /// A team.
    async fn team(&self, id: TeamId) -> StoreResult<Team>;
    /// Stores a team that is one version further than the one stored, and what it keeps; of its entries the newest stay,
    /// so many and so many bytes of them. Conflict: another version is stored.
    async fn save_team(&self, team: Team, entries: Vec<Entry>, most: (usize, usize)) -> StoreResult<()>;
    /// The teams an agent belongs to.
    async fn teams_of(&self, agent: AgentId, page: PageRequest) -> StoreResult<Page<Team>>;
    /// What a team keeps, of one sort or of all.
    async fn team_entries(
        &self,
        team: TeamId,
        kind: Option<EntryKind>,
        page: PageRequest,
    ) -> StoreResult<Page<Entry>>;
    /// Teams with a vote whose time is over, the longest over first.
    async fn teams_due(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<TeamId>>;
}
