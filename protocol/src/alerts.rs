//! Alerts (agrenting.md R106): rules over figures, as pure functions. A condition is told once when it begins, once when
//! it becomes worse, and once when it is over; to be over it has to be better by a margin, so that what hovers at a
//! threshold is not told again and again.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;

use serde::{Deserialize, Serialize};

use crate::analytics::Figures;
use crate::ids::AgentId;

/// How bad it is, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing: something is over.
    Info,
    /// Look at it.
    Warning,
    /// Something does not work.
    Error,
    /// The system itself does not work.
    Critical,
}

/// Thresholds of the rules, under `[alerts]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlertSettings {
    /// How often the rules are looked at, in milliseconds.
    pub every_ms: u64,
    /// Percent of failed tasks, of those that were completed or failed within the last 15 minutes, from which on it is an
    /// error.
    pub failure_error_percent: u64,
    /// The same for a warning.
    pub failure_warning_percent: u64,
    /// Ended tasks below which nothing is said about failures.
    pub failure_tasks_min: u64,
    /// Open tasks of an agent that completes none from which on it is a warning.
    pub stalled_open_min: u64,
    /// How long it has completed none, in minutes.
    pub stalled_minutes: u64,
    /// Conditions that are known at once; further ones are not told.
    pub conditions_max: usize,
    /// Agents whose tasks are counted in one round; the next one goes on behind them.
    pub agents_per_round: usize,
}

impl Default for AlertSettings {
    fn default() -> Self {
        Self {
            every_ms: 10_000,
            failure_error_percent: 50,
            failure_warning_percent: 25,
            failure_tasks_min: 5,
            stalled_open_min: 10,
            stalled_minutes: 10,
            conditions_max: 10_000,
            agents_per_round: 100,
        }
    }
}

/// Time over which failures and dead letters are counted, in minutes.
pub const WINDOW_MINUTES: i64 = 15;

/// What an alert is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Many of an agent's tasks fail.
    FailureRate,
    /// An agent has open tasks and completes none.
    Stalled,
    /// An agent went offline with tasks in progress.
    OfflineWithTasks,
    /// Messages to an agent were given up.
    DeadLetters,
    /// A node drops figures: its analytics store does not keep up or is away.
    FiguresDropped,
}

impl Kind {
    /// The `type` of the alert.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FailureRate => "failure_rate",
            Self::Stalled => "stalled",
            Self::OfflineWithTasks => "offline_with_tasks",
            Self::DeadLetters => "dead_letters",
            Self::FiguresDropped => "figures_dropped",
        }
    }

    /// In a sentence, for people.
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::FailureRate => "Many of the agent's tasks failed within the last 15 minutes.",
            Self::Stalled => "The agent has open tasks and has completed none for a while.",
            Self::OfflineWithTasks => "The agent went offline with tasks in progress.",
            Self::DeadLetters => "Messages to the agent could not be delivered.",
            Self::FiguresDropped => "The analytics store is away or behind; figures are lost.",
        }
    }
}

/// Whether many of an agent's tasks fail. `told` is how bad it was said to be.
#[must_use]
pub fn failure_rate(window: &Figures, settings: &AlertSettings, told: Option<Severity>) -> Option<Severity> {
    let ended = window.tasks_completed.saturating_add(window.tasks_failed);
    let reaches = |percent: u64| {
        window.tasks_failed > 0 && window.tasks_failed.saturating_mul(100) >= ended.saturating_mul(percent)
    };
    // What is told goes on until it is better by a fifth, and as long as any of it fell into the window.
    let goes_on = |percent: u64| reaches(percent.saturating_mul(4) / 5);
    let enough = ended >= settings.failure_tasks_min.max(1);
    let (error, warning) = (settings.failure_error_percent, settings.failure_warning_percent);
    if enough && reaches(error) || told == Some(Severity::Error) && goes_on(error) {
        Some(Severity::Error)
    } else if enough && reaches(warning) || told.is_some() && goes_on(warning) {
        Some(Severity::Warning)
    } else {
        None
    }
}

/// Whether an agent with so many open tasks has stalled; `completed` is how many it completed within
/// [`AlertSettings::stalled_minutes`].
#[must_use]
pub fn stalled(open: u64, completed: u64, settings: &AlertSettings, told: bool) -> Option<Severity> {
    let least =
        if told { settings.stalled_open_min.saturating_mul(4) / 5 } else { settings.stalled_open_min };
    (completed == 0 && open >= least.max(1)).then_some(Severity::Warning)
}

/// Whether messages to an agent were given up.
#[must_use]
pub fn dead_letters(window: &Figures) -> Option<Severity> {
    (window.messages_dead > 0).then_some(Severity::Error)
}

/// What is told of a condition that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has begun, or has become worse.
    Raised(Severity),
    /// It is over.
    Cleared,
}

/// A condition: of an agent, or of the system.
pub type Condition = (Option<AgentId>, Kind);

/// The conditions that were told and are not over.
#[derive(Debug, Default)]
pub struct Book {
    told: HashMap<Condition, Severity>,
}

impl Book {
    /// How bad a condition was said to be, if it is not over.
    #[must_use]
    pub fn told(&self, condition: Condition) -> Option<Severity> {
        self.told.get(&condition).copied()
    }

    /// Agents of which a condition of this kind is told.
    #[must_use]
    pub fn agents(&self, kind: Kind) -> Vec<AgentId> {
        self.told.keys().filter(|(_, told)| *told == kind).filter_map(|(agent, _)| *agent).collect()
    }

    /// Notes how bad a condition is now; gives what is to be told. One that becomes milder is not told.
    pub fn note(
        &mut self,
        condition: Condition,
        now: Option<Severity>,
        conditions_max: usize,
    ) -> Option<Change> {
        match (self.told.get(&condition).copied(), now) {
            (None, None) => None,
            (Some(_), None) => {
                self.told.remove(&condition);
                Some(Change::Cleared)
            }
            (None, Some(_)) if self.told.len() >= conditions_max => None,
            (before, Some(severity)) => {
                self.told.insert(condition, severity);
                before.is_none_or(|before| severity > before).then_some(Change::Raised(severity))
            }
        }
    }

    /// Forgets everything: another node tells from now on.
    pub fn forget(&mut self, kinds: &[Kind]) {
        self.told.retain(|(_, kind), _| !kinds.contains(kind));
    }
}

/// So many of these agents, behind where the last round ended; from the beginning once it has come to the end.
pub fn next_part(agents: &BTreeSet<AgentId>, after: &mut Option<AgentId>, most: usize) -> Vec<AgentId> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let part: Vec<AgentId> = agents.range((from, Bound::Unbounded)).take(most.max(1)).copied().collect();
    *after = part.last().copied().filter(|last| agents.last() > Some(last));
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R106: nobody is passed over for good, however many there are and whoever comes and goes meanwhile.
    #[test]
    fn parts_go_on_where_the_last_one_ended() {
        let agent = |n: u8| AgentId::from_bytes([n; 16]);
        let all: BTreeSet<AgentId> = (1..=5).map(agent).collect();
        let mut after = None;
        let mut part = |all: &BTreeSet<AgentId>| next_part(all, &mut after, 2);
        assert_eq!(part(&all), [agent(1), agent(2)]);
        assert_eq!(part(&all), [agent(3), agent(4)]);
        assert_eq!(part(&all), [agent(5)]);
        assert_eq!(part(&all), [agent(1), agent(2)]);
        let rest: BTreeSet<AgentId> = [3, 4].map(agent).into();
        assert_eq!(part(&rest), [agent(3), agent(4)], "to the end exactly");
        assert_eq!(part(&all), [agent(1), agent(2)]);
        assert_eq!(part(&BTreeSet::new()), []);
        assert_eq!(next_part(&all, &mut None, 0), [agent(1)], "one at least");
    }

    fn figures(completed: u64, failed: u64) -> Figures {
        Figures { tasks_completed: completed, tasks_failed: failed, ..Figures::default() }
    }

    /// R106
    #[test]
    fn failures_are_told_by_their_share_of_enough_tasks() {
        let settings = AlertSettings::default();
        for (completed, failed, severity) in [
            (0, 4, None),
            (0, 5, Some(Severity::Error)),
            (5, 5, Some(Severity::Error)),
            (6, 5, Some(Severity::Warning)),
            (9, 3, Some(Severity::Warning)),
            (10, 3, None),
            (100, 0, None),
            (0, 0, None),
        ] {
            assert_eq!(
                failure_rate(&figures(completed, failed), &settings, None),
                severity,
                "{completed}/{failed}"
            );
        }
    }

    /// R106
    #[test]
    fn what_was_told_is_over_only_when_it_is_better_by_a_margin() {
        let settings = AlertSettings::default();
        let now = |completed, failed, told| failure_rate(&figures(completed, failed), &settings, told);
        assert_eq!(now(6, 5, Some(Severity::Error)), Some(Severity::Error), "45 % of 50 %");
        assert_eq!(now(7, 3, Some(Severity::Error)), Some(Severity::Warning), "30 %");
        assert_eq!(now(10, 3, Some(Severity::Warning)), Some(Severity::Warning), "23 % of 25 %");
        assert_eq!(now(17, 3, Some(Severity::Warning)), None, "15 %");
        assert_eq!(now(0, 0, Some(Severity::Error)), None, "nothing ended for 15 minutes");
        assert_eq!(stalled(8, 0, &settings, true), Some(Severity::Warning));
        assert_eq!(stalled(8, 0, &settings, false), None);
        assert_eq!(stalled(10, 0, &settings, false), Some(Severity::Warning));
        assert_eq!(stalled(10, 1, &settings, true), None);
    }

    /// R106
    #[test]
    fn a_condition_is_told_once_until_it_is_worse_or_over() {
        let condition = (Some(AgentId::from_bytes([1; 16])), Kind::FailureRate);
        let mut book = Book::default();
        let mut note = |now| book.note(condition, now, 1);
        assert_eq!(note(None), None);
        assert_eq!(note(Some(Severity::Warning)), Some(Change::Raised(Severity::Warning)));
        assert_eq!(note(Some(Severity::Warning)), None);
        assert_eq!(note(Some(Severity::Error)), Some(Change::Raised(Severity::Error)));
        assert_eq!(note(Some(Severity::Warning)), None, "milder is not news");
        assert_eq!(note(None), Some(Change::Cleared));
        assert_eq!(note(None), None);
        assert_eq!(note(Some(Severity::Error)), Some(Change::Raised(Severity::Error)));
        assert_eq!(book.note((None, Kind::FiguresDropped), Some(Severity::Critical), 1), None, "no place");
        assert_eq!(book.agents(Kind::FailureRate).len(), 1);
        book.forget(&[Kind::FailureRate]);
        assert_eq!(book.told(condition), None);
    }
}
