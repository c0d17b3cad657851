//! Alerts: looks at figures every few seconds and tells those who have subscribed what has begun, become worse, or is over.
//!
//! What follows from figures is told by one node of a cluster, the first of those that stay; when that changes, the next one
//! tells again what is still so. What a node alone knows (an agent left it, it drops figures) it tells itself.

use std::collections::{BTreeSet, HashMap, HashSet};

use muster_protocol::alerts::{self, AlertSettings, Book, Change, Kind, Severity, WINDOW_MINUTES};
use muster_protocol::analytics::{Figures, Interval};
use muster_protocol::ids::{AgentId, MessageId};
use muster_protocol::json::Json;
use muster_protocol::task::TaskStatus;
use muster_protocol::topic::{AnalyticsScope, Topic, event};
use parking_lot::Mutex;
use serde_json::json;

use crate::core::Core;
use crate::store::{PageRequest, StoreResult, TaskFilter};

/// The alerts of a node.
pub struct Alerts {
    settings: AlertSettings,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    book: Book,
    /// Dropped entries when it was looked last.
    dropped: u64,
    /// Agents that went offline and were not looked at yet; as many as there may be conditions.
    gone: BTreeSet<AgentId>,
    /// Where the last round ended: with those that were told to be offline, with figures, with open tasks.
    left_after: Option<AgentId>,
    window_after: Option<AgentId>,
    open_after: Option<AgentId>,
}

/// Agents whose figures are looked at in one round; the next one goes on behind them.
const AGENTS_MAX: usize = 10_000;
const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 86_400_000;
/// What follows from figures, which all nodes see alike.
const FROM_FIGURES: &[Kind] = &[Kind::FailureRate, Kind::Stalled, Kind::DeadLetters];

impl Alerts {
    /// By these thresholds.
    #[must_use]
    pub fn new(settings: AlertSettings) -> Self {
        Self { settings, told: Mutex::default() }
    }

    /// How often it is to be looked, in milliseconds.
    #[must_use]
    pub fn every_ms(&self) -> u64 {
        self.settings.every_ms.max(100)
    }

    /// Looks at everything once.
    ///
    /// # Errors
    /// A store cannot be read; the rest is looked at the next time.
    pub async fn look(&self, core: &Core) -> StoreResult<()> {
        let dropped = core.analytics.dropped();
        let before = std::mem::replace(&mut self.told.lock().dropped, dropped);
        let is_dropping = (dropped > before).then_some(Severity::Critical);
        self.note(core, None, Kind::FiguresDropped, is_dropping).await;
        let left = {
            let mut told = self.told.lock();
            let all = told.book.agents(Kind::OfflineWithTasks).into_iter().collect();
            alerts::next_part(&all, &mut told.left_after, self.settings.agents_per_round)
        };
        for agent in left {
            if core.online.contains(agent) || in_progress(core, agent).await? == 0 {
                self.note(core, Some(agent), Kind::OfflineWithTasks, None).await;
            }
        }
        self.look_at_gone(core).await?;
        if core.presence.is_first_of_nodes() {
            self.look_at_figures(core).await
        } else {
            self.told.lock().book.forget(FROM_FIGURES);
            Ok(())
        }
    }

    /// Looks at agents in the order of their ids, at so many in a round, until all were looked at; and then again.
    async fn look_at_figures(&self, core: &Core) -> StoreResult<()> {
        let (now, figures) = (core.environment.now(), core.analytics.store());
        let since = |minutes: i64| Interval::Minute.floor(now.plus_ms(-minutes * MINUTE_MS));
        let after = self.told.lock().window_after;
        let part = (after, AGENTS_MAX);
        let window = figures.figures_by_agent(Interval::Minute, since(WINDOW_MINUTES), part).await?;
        let upto = window.last().filter(|_| window.len() >= AGENTS_MAX).map(|(agent, _)| *agent);
        let window: HashMap<AgentId, Figures> = window.into_iter().collect();
        // Of those that are not in this part nothing is known.
        let told = |kind| {
            self.told
                .lock()
                .book
                .agents(kind)
                .into_iter()
                .filter(move |agent| is_between(*agent, after, upto))
        };
        let agents: BTreeSet<AgentId> = window.keys().copied().chain(told(Kind::FailureRate)).collect();
        let of = |agent: &AgentId| window.get(agent).copied().unwrap_or_default();
        for agent in agents {
            let before = self.told.lock().book.told((Some(agent), Kind::FailureRate));
            let severity = alerts::failure_rate(&of(&agent), &self.settings, before);
            self.note(core, Some(agent), Kind::FailureRate, severity).await;
        }
        let agents: BTreeSet<AgentId> = window.keys().copied().chain(told(Kind::DeadLetters)).collect();
        for agent in agents {
            self.note(core, Some(agent), Kind::DeadLetters, alerts::dead_letters(&of(&agent))).await;
        }
        self.told.lock().window_after = upto;
        self.look_at_open(core).await
    }

    /// The same with those that have tasks open.
    async fn look_at_open(&self, core: &Core) -> StoreResult<()> {
        let (now, figures) = (core.environment.now(), core.analytics.store());
        let after = self.told.lock().open_after;
        let part = (after, AGENTS_MAX);
        let yesterday = Interval::Day.floor(now.plus_ms(-DAY_MS));
        let days = figures.figures_by_agent(Interval::Day, yesterday, part).await?;
        let upto = days.last().filter(|_| days.len() >= AGENTS_MAX).map(|(agent, _)| *agent);
        let minutes = i64::try_from(self.settings.stalled_minutes).unwrap_or(WINDOW_MINUTES);
        let since = Interval::Minute.floor(now.plus_ms(-minutes * MINUTE_MS));
        // Whoever has some of a minute has some of its day, so these are all of the same part.
        let recent = figures.figures_by_agent(Interval::Minute, since, part).await?;
        let recent: HashMap<AgentId, Figures> = recent.into_iter().collect();
        let is_open = |(_, days): &(AgentId, Figures)| {
            let ended = days.tasks_completed + days.tasks_failed + days.tasks_cancelled;
            days.tasks_created.saturating_sub(ended) >= self.settings.stalled_open_min
        };
        let told = self.told.lock().book.agents(Kind::Stalled);
        let told = told.into_iter().filter(|agent| is_between(*agent, after, upto));
        let candidates: BTreeSet<AgentId> =
            days.into_iter().filter(is_open).map(|(agent, _)| agent).chain(told).collect();
        let mut ended = after;
        for agent in alerts::next_part(&candidates, &mut ended, self.settings.agents_per_round) {
            let recent = recent.get(&agent).copied().unwrap_or_default();
            let open = count(core, agent, TaskStatus::Pending).await? + in_progress(core, agent).await?;
            // Those it was given just now it could not have completed.
            let open = open.saturating_sub(recent.tasks_created);
            let before = self.told.lock().book.told((Some(agent), Kind::Stalled)).is_some();
            let severity = alerts::stalled(open, recent.tasks_completed, &self.settings, before);
            self.note(core, Some(agent), Kind::Stalled, severity).await;
        }
        // The rest of this part first, then the next part, and from the beginning when there is none.
        self.told.lock().open_after = ended.or(upto);
        Ok(())
    }

    /// Agents went offline.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn went(&self, core: &Core, agents: &HashSet<AgentId>) -> StoreResult<()> {
        {
            let mut told = self.told.lock();
            let room = self.settings.conditions_max.saturating_sub(told.gone.len());
            told.gone.extend(agents.iter().take(room));
        }
        self.look_at_gone(core).await
    }

    /// Looks at some of those that went offline; the others' turn comes.
    async fn look_at_gone(&self, core: &Core) -> StoreResult<()> {
        let part = {
            let mut told = self.told.lock();
            let part: Vec<AgentId> =
                told.gone.iter().take(self.settings.agents_per_round.max(1)).copied().collect();
            part.iter().for_each(|agent| {
                told.gone.remove(agent);
            });
            part
        };
        for agent in part {
            if in_progress(core, agent).await? > 0 && !core.online.contains(agent) {
                self.note(core, Some(agent), Kind::OfflineWithTasks, Some(Severity::Warning)).await;
            }
        }
        Ok(())
    }

    async fn note(&self, core: &Core, agent: Option<AgentId>, kind: Kind, now: Option<Severity>) {
        let change = self.told.lock().book.note((agent, kind), now, self.settings.conditions_max);
        let (severity, message) = match change {
            None => return,
            Some(Change::Raised(severity)) => (severity, kind.message().to_owned()),
            Some(Change::Cleared) => (Severity::Info, format!("Over: {}", kind.message())),
        };
        let at = core.environment.now();
        let alert = Json::of(&json!({
            "id": MessageId::new(at, core.environment.id_entropy()),
            "severity": severity,
            "type": kind.as_str(),
            "message": message,
            "agent_id": agent,
            "at": at,
        }));
        let publish = |scope, alert| {
            if let Some(topic) = Topic::Analytics(scope).name() {
                core.pubsub.publish(&topic, event::ALERT, alert);
            }
        };
        let Some(agent) = agent else {
            publish(AnalyticsScope::Global, alert);
            return;
        };
        publish(AnalyticsScope::Agent(Some(agent)), alert.clone());
        match core.store.agent(agent).await {
            Ok(agent) if agent.owner.is_some() => publish(AnalyticsScope::User(agent.owner), alert),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot read whose agent an alert is about"),
        }
    }
}

fn is_between(agent: AgentId, after: Option<AgentId>, upto: Option<AgentId>) -> bool {
    after.is_none_or(|after| agent > after) && upto.is_none_or(|upto| agent <= upto)
}

async fn in_progress(core: &Core, agent: AgentId) -> StoreResult<u64> {
    count(core, agent, TaskStatus::InProgress).await
}

async fn count(core: &Core, provider: AgentId, status: TaskStatus) -> StoreResult<u64> {
    let filter = TaskFilter { provider: Some(provider), status: Some(status), ..TaskFilter::default() };
    Ok(core.store.tasks(filter, PageRequest { limit: 1, after: None }).await?.total)
}
