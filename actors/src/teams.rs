//! Teams: agents that work on something together (agrenting.md R129). The rules are `muster_protocol::team`.

use std::sync::Arc;

use async_trait::async_trait;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, EntryId, TeamId};
use muster_protocol::json::Json;
use muster_protocol::limits::Limits;
use muster_protocol::team::{Action, Change, Command, Entry, EntryKind, Team, Told};
use muster_protocol::time::Timestamp;
use muster_protocol::topic::{agent_topic, event, hirer_topic, team_member_topic, team_topic};
use serde::Deserialize;

use crate::metric_definitions::Metrics;
use crate::ports::Environment;
use crate::pubsub::PubSub;
use crate::rate_limits::Buckets;
use crate::session::{Decision, Rules, Sessions};
use crate::store::{Page, PageRequest, Store, StoreError, StoreResult};
use crate::supervisor::ChildSpec;
use crate::task_stream::refusal_of;

/// Teams.
pub struct Teams {
    sessions: Sessions<TeamRules>,
    environment: Environment,
    /// What each agent does.
    buckets: Buckets<AgentId>,
}

struct TeamRules {
    store: Arc<dyn Store>,
    pubsub: Arc<PubSub>,
    limits: Arc<Limits>,
}

#[async_trait]
impl Rules for TeamRules {
    type Id = TeamId;
    type Record = Team;
    type Command = Command;
    type Change = Change;
    type Answer = Json;

    const NAME: &'static str = "team";

    async fn load(&self, id: TeamId) -> StoreResult<Team> {
        self.store.team(id).await
    }

    fn decide(&self, team: &Team, command: &Command, now: Timestamp) -> Decision<Self> {
        let (change, answer) = team.decide(command, now, &self.limits);
        Decision { change, answer }
    }

    async fn save(&self, _before: &Team, change: &Change) -> StoreResult<Team> {
        let (team, entries) = (change.team.clone(), change.entries.clone());
        let most = (self.limits.team_entries_max, self.limits.team_entries_bytes_max);
        self.store.save_team(team, entries, most).await?;
        Ok(change.team.clone())
    }

    fn tell(&self, after: &Team, change: &Change) {
        let topic = team_topic(after.id);
        for (told, payload) in &change.told {
            self.pubsub.publish(&topic, event_of(*told), payload.clone());
        }
    }

    async fn due(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<TeamId>> {
        self.store.teams_due(now, limit).await
    }

    fn when_due(&self) -> Command {
        Command::Due
    }
}

const fn event_of(told: Told) -> &'static str {
    match told {
        Told::Message => event::TEAM_MESSAGE,
        Told::VoteOpened => event::VOTE_OPENED,
        Told::VoteCast => event::VOTE_CAST,
        Told::VoteClosed => event::VOTE_CLOSED,
        Told::KnowledgeAdded => event::KNOWLEDGE_ADDED,
        Told::Escalated => event::ESCALATED,
        Told::MemberAdded => event::MEMBER_ADDED,
        Told::MemberRemoved => event::MEMBER_REMOVED,
    }
}

/// As what the rules answer.
#[derive(Deserialize)]
struct Kept {
    id: EntryId,
}

impl Teams {
    /// None in use yet.
    pub fn new(
        (store, pubsub): (Arc<dyn Store>, Arc<PubSub>),
        environment: Environment,
        limits: Arc<Limits>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (live_max, buckets) = (limits.sessions_live_max, Buckets::new(limits.team_actions_per_agent));
        let rules = TeamRules { store, pubsub, limits };
        Self { sessions: Sessions::new(rules, live_max, environment.clone(), metrics), environment, buckets }
    }

    /// How their supervisor is started.
    #[must_use]
    pub fn child(&self) -> ChildSpec {
        self.sessions.child()
    }

    /// Closes the votes whose time is over.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn sweep(&self) -> Result<(), Refusal> {
        self.sessions.sweep().await
    }

    fn within_rate(&self, agent: AgentId) -> Result<(), Refusal> {
        self.buckets.take(agent, self.environment.monotonic_ms()).map_err(Refusal::rate_limited)
    }

    /// Makes a team.
    ///
    /// # Errors
    /// Too much at once; what [`Team::new`] refuses; a member that is no agent, or blocks or is blocked by the owner; too many teams.
    pub async fn create(&self, owner: AgentId, name: String, others: &[AgentId]) -> Result<Team, Refusal> {
        self.within_rate(owner)?;
        let rules = self.sessions.rules();
        let now = self.environment.now();
        let id = TeamId::new(now, self.environment.id_entropy());
        let team = Team::new((id, name), owner, others, now, &rules.limits)?;
        for member in &team.members {
            self.check_member(owner, *member).await?;
        }
        rules.store.create_team(team.clone(), rules.limits.teams_per_agent_max).await.map_err(refusal_of)?;
        for member in &team.members {
            self.tell_joined(&team, *member);
        }
        Ok(team)
    }

    async fn check_member(&self, owner: AgentId, agent: AgentId) -> Result<(), Refusal> {
        let unknown = || Refusal::field(ErrorCode::NotFound, "member_agent_ids", "there is no such agent");
        let store = &self.sessions.rules().store;
        match store.agent(agent).await {
            Err(StoreError::NotFound) => return Err(unknown()),
            found => drop(found.map_err(refusal_of)?),
        }
        let blocked = store.blocked_pairs(owner, self.environment.now()).await.map_err(refusal_of)?;
        if blocked.contains_key(&agent) { Err(unknown()) } else { Ok(()) }
    }

    fn tell_joined(&self, team: &Team, member: AgentId) {
        if member != team.owner {
            self.sessions.rules().pubsub.publish(&agent_topic(member), event::TEAM_JOINED, team.view());
        }
    }

    /// A team, for one of its members.
    ///
    /// # Errors
    /// `unauthorized`: it is not theirs, or there is none (R35).
    pub async fn of_member(&self, id: TeamId, agent: AgentId) -> Result<Team, Refusal> {
        match self.sessions.read(id).await {
            Ok(team) if team.has(agent) => Ok(team),
            Err(refusal) if refusal.code != ErrorCode::NotFound => Err(refusal),
            _ => Err(ErrorCode::Unauthorized.into()),
        }
    }

    /// Takes somebody in, as the owner.
    ///
    /// # Errors
    /// Too much at once; not the owner; the agent is unknown; the team is full.
    pub async fn add(&self, id: TeamId, by: AgentId, agent: AgentId) -> Result<Json, Refusal> {
        self.within_rate(by)?;
        let team = self.of_member(id, by).await?;
        self.check_member(team.owner, agent).await?;
        let answer = self.sessions.ask(id, Command::Add { by, agent }).await?;
        if !team.has(agent) {
            self.tell_joined(&team, agent);
        }
        Ok(answer)
    }

    /// Puts somebody out, as the owner, or leaves.
    ///
    /// # Errors
    /// Too much at once; neither the owner nor oneself; the agent is no member, or the owner.
    pub async fn remove(&self, id: TeamId, by: AgentId, agent: AgentId) -> Result<Json, Refusal> {
        self.within_rate(by)?;
        self.of_member(id, by).await?;
        let answer = self.sessions.ask(id, Command::Remove { by, agent }).await?;
        self.sessions.rules().pubsub.dismiss(&team_member_topic(id, agent));
        Ok(answer)
    }

    /// Does something in a team, as a member. What is escalated reaches the owner of the team, and whose agent that is,
    /// wherever they are.
    ///
    /// # Errors
    /// Too much at once; not a member, or what the rules refuse.
    pub async fn act(&self, id: TeamId, by: AgentId, action: Action) -> Result<Json, Refusal> {
        self.within_rate(by)?;
        let now = self.environment.now();
        let entry = EntryId::new(now, self.environment.id_entropy());
        let escalated = match &action {
            Action::Escalate(request) => Some((request.reason.clone(), request.severity)),
            _ => None,
        };
        let answer = self.sessions.ask(id, Command::Act { by, entry, action }).await?;
        if let Some((reason, severity)) = escalated {
            let kept: Kept = answer.parse().map_err(|_| ErrorCode::Internal)?;
            let payload = serde_json::json!({
                "team_id": id,
                "id": kept.id,
                "from_agent_id": by,
                "reason": reason,
                "severity": severity,
            });
            self.tell_above(id, Json::of(&payload)).await;
        }
        Ok(answer)
    }

    async fn tell_above(&self, id: TeamId, payload: Json) {
        let rules = self.sessions.rules();
        let owner = match self.sessions.read(id).await {
            Ok(team) => team.owner,
            Err(refusal) => return tracing::warn!(%refusal, "cannot read whose a team is"),
        };
        rules.pubsub.publish(&agent_topic(owner), event::TEAM_ESCALATED, payload.clone());
        match rules.store.agent(owner).await {
            Ok(agent) => {
                if let Some(user) = agent.owner {
                    rules.pubsub.publish(&hirer_topic(user), event::TEAM_ESCALATED, payload);
                }
            }
            Err(error) => tracing::warn!(%error, "cannot read whose an agent is"),
        }
    }

    /// The teams of an agent.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn of(&self, agent: AgentId, page: PageRequest) -> Result<Page<Team>, Refusal> {
        self.sessions.rules().store.teams_of(agent, page).await.map_err(refusal_of)
    }

    /// What a team keeps, for one of its members.
    ///
    /// # Errors
    /// As for [`Self::of_member`].
    pub async fn entries(
        &self,
        id: TeamId,
        agent: AgentId,
        kind: Option<EntryKind>,
        page: PageRequest,
    ) -> Result<Page<Entry>, Refusal> {
        self.of_member(id, agent).await?;
        self.sessions.rules().store.team_entries(id, kind, page).await.map_err(refusal_of)
    }

    /// A time and randomness, for ids of what members make.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.environment
    }
}
