//! Figures of what agents do: counted as things happen, kept by minute, hour and day, and shown over periods
//! (agrenting.md M). Pure: counting, aligning and summing; where they are kept is the store's business.

mod view;

pub use self::view::*;

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::error_code::{ErrorCode, Refusal};
use crate::ids::AgentId;
use crate::money::Amount;
use crate::task::{Task, TaskStatus};
use crate::time::Timestamp;

macro_rules! figures {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters, all of which add up.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Figures {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Figures {
            /// Their names, which are those of the store's columns.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)*];

            /// In the order of [`Self::NAMES`].
            #[must_use]
            pub fn values(&self) -> Vec<u64> {
                vec![$(self.$name,)*]
            }

            /// From values in the order of [`Self::NAMES`]; what is missing is 0.
            #[must_use]
            pub fn from_values(values: impl IntoIterator<Item = u64>) -> Self {
                let mut values = values.into_iter();
                Self { $($name: values.next().unwrap_or(0),)* }
            }

            /// Adds others to these.
            pub fn add(&mut self, other: &Self) {
                $(self.$name = self.$name.saturating_add(other.$name);)*
            }
        }
    };
}

figures! {
    /// Tasks given to the agent.
    tasks_created,
    /// Tasks that it completed.
    tasks_completed,
    /// Tasks that failed.
    tasks_failed,
    /// Tasks that were withdrawn.
    tasks_cancelled,
    /// From creation to completion of the completed ones, in milliseconds.
    duration_ms,
    /// Chunks emitted.
    chunks,
    /// Messages the agent sent.
    messages_sent,
    /// Messages the agent was sent.
    messages_received,
    /// Messages to the agent that could not be delivered.
    messages_dead,
    /// What it earned, in millionths of the currency unit.
    revenue,
}

/// Something that is counted. Tasks count for their provider: it does them, and earns by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A task was given to its provider.
    TaskCreated(&'a Task),
    /// A task was passed on to the provider it has now. It counts for both, and once among all.
    TaskReassigned(&'a Task),
    /// A task has ended.
    TaskEnded(&'a Task),
    /// So many chunks were emitted.
    Chunks(&'a Task, u64),
    /// An agent sent a message.
    MessageSent(AgentId),
    /// An agent was sent a message.
    MessageReceived(AgentId),
    /// A message to an agent was given up.
    MessageDead(AgentId),
    /// An agent was paid for something: an escrow was released to it, or a payment channel paid out.
    Earned {
        /// Who.
        agent: AgentId,
        /// For what; empty when it is not known.
        capability: &'a str,
        /// How much.
        amount: Amount,
    },
}

/// Under which the figures of all agents together are kept: an id that no agent has.
#[must_use]
pub fn everybody() -> AgentId {
    AgentId::from_bytes([0; 16])
}

impl Event<'_> {
    /// For which agent it counts, under which capability, what, and whether it counts among all agents too.
    #[must_use]
    pub fn counts(&self) -> (AgentId, SmolStr, Figures, bool) {
        let none = Figures::default();
        let created = Figures { tasks_created: 1, ..none };
        let of =
            |task: &Task, figures, global| (task.provider, task.capability.as_str().into(), figures, global);
        let about = |agent, figures| (agent, SmolStr::default(), figures, true);
        match *self {
            Event::TaskCreated(task) => of(task, created, true),
            Event::TaskReassigned(task) => of(task, created, false),
            Event::TaskEnded(task) => of(task, ended(task), true),
            Event::Chunks(task, chunks) => of(task, Figures { chunks, ..none }, true),
            Event::MessageSent(agent) => about(agent, Figures { messages_sent: 1, ..none }),
            Event::MessageReceived(agent) => about(agent, Figures { messages_received: 1, ..none }),
            Event::MessageDead(agent) => about(agent, Figures { messages_dead: 1, ..none }),
            Event::Earned { agent, capability, amount } => {
                let revenue = u64::try_from(amount.micros()).unwrap_or(0);
                (agent, capability.into(), Figures { revenue, ..none }, true)
            }
        }
    }
}

fn ended(task: &Task) -> Figures {
    let none = Figures::default();
    match task.status {
        TaskStatus::Completed => {
            let lasted = task.ended_at.map_or(0, |end| end.ms_since(task.created_at));
            Figures { tasks_completed: 1, duration_ms: u64::try_from(lasted).unwrap_or(0), ..none }
        }
        TaskStatus::Failed => Figures { tasks_failed: 1, ..none },
        TaskStatus::Cancelled => Figures { tasks_cancelled: 1, ..none },
        TaskStatus::Pending | TaskStatus::InProgress => none,
    }
}

/// How finely figures are kept, or shown.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Interval {
    /// By the minute: kept for [`Interval::kept_ms`].
    Minute,
    /// By the hour.
    Hour,
    /// By the day (UTC).
    Day,
}

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;

impl Interval {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Minute, Self::Hour, Self::Day];

    /// Length in milliseconds.
    #[must_use]
    pub const fn ms(self) -> i64 {
        match self {
            Self::Minute => MINUTE_MS,
            Self::Hour => HOUR_MS,
            Self::Day => DAY_MS,
        }
    }

    /// How long figures of this interval are kept, in milliseconds; days for ever. A little longer than the longest period
    /// that is read from them.
    #[must_use]
    pub const fn kept_ms(self) -> Option<i64> {
        match self {
            Self::Minute => Some(25 * HOUR_MS),
            Self::Hour => Some(92 * DAY_MS),
            Self::Day => None,
        }
    }

    /// The beginning of the interval a time is in.
    #[must_use]
    pub fn floor(self, at: Timestamp) -> Timestamp {
        Timestamp::from_unix_ms(at.unix_ms() - at.unix_ms().rem_euclid(self.ms()))
    }

    const fn coarser(self) -> Self {
        match self {
            Self::Minute => Self::Hour,
            Self::Hour | Self::Day => Self::Day,
        }
    }
}

/// Over which time figures are shown, up to now (R108).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the API")]
pub enum Period {
    #[serde(rename = "1h")]
    Hour,
    #[default]
    #[serde(rename = "24h")]
    Day,
    #[serde(rename = "7d")]
    Week,
    #[serde(rename = "30d")]
    Month,
    #[serde(rename = "90d")]
    Quarter,
    #[serde(rename = "all")]
    All,
}

impl Period {
    /// The names clients may say.
    pub const NAMES: &'static [&'static str] = &["1h", "24h", "7d", "30d", "90d", "all"];

    /// Reads a name; 24 hours when there is none.
    ///
    /// # Errors
    /// `invalid_period` with those there are.
    pub fn parse(name: Option<&str>) -> Result<Self, Refusal> {
        match name {
            None | Some("24h") => Ok(Self::Day),
            Some("1h") => Ok(Self::Hour),
            Some("7d") => Ok(Self::Week),
            Some("30d") => Ok(Self::Month),
            Some("90d") => Ok(Self::Quarter),
            Some("all") => Ok(Self::All),
            Some(_) => Err(Refusal::new(ErrorCode::InvalidPeriod).with("periods", Self::NAMES)),
        }
    }

    /// The interval whose figures are summed for it: the finest that is kept for so long.
    #[must_use]
    pub const fn interval(self) -> Interval {
        match self {
            Self::Hour | Self::Day => Interval::Minute,
            Self::Week | Self::Month => Interval::Hour,
            Self::Quarter | Self::All => Interval::Day,
        }
    }

    /// Where it begins, at the beginning of an interval.
    #[must_use]
    pub fn from(self, interval: Interval, now: Timestamp) -> Timestamp {
        let days = match self {
            Self::Hour => return interval.floor(now.plus_ms(-HOUR_MS)),
            Self::Day => 1,
            Self::Week => 7,
            Self::Month => 30,
            Self::Quarter => 90,
            Self::All => return Timestamp::from_unix_ms(0),
        };
        interval.floor(now.plus_ms(-days * DAY_MS))
    }
}

/// What can be shown over time (R103).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// A counter of [`Figures`], by its place.
    Counter(usize, &'static str),
    /// Completed of those that ended by their provider, from 0 to 1.
    SuccessRate,
    /// Mean time from creation to completion, in milliseconds.
    AvgDuration,
    /// A decimal amount.
    Revenue,
}

/// Names of metrics, with the counters they show.
const COUNTERS: &[(&str, &str)] = &[
    ("tasks_total", "tasks_created"),
    ("tasks_completed", "tasks_completed"),
    ("tasks_failed", "tasks_failed"),
    ("tasks_cancelled", "tasks_cancelled"),
    ("chunks", "chunks"),
    ("messages_sent", "messages_sent"),
    ("messages_received", "messages_received"),
];
const SUCCESS_RATE: &str = "success_rate";
const AVG_DURATION: &str = "avg_duration_ms";
const REVENUE: &str = "revenue";

impl Metric {
    /// The names clients may say.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        COUNTERS.iter().map(|(name, _)| *name).chain([SUCCESS_RATE, AVG_DURATION, REVENUE]).collect()
    }

    /// Reads a name.
    ///
    /// # Errors
    /// `unknown_metric` with those there are.
    pub fn parse(name: &str) -> Result<Self, Refusal> {
        let counter = COUNTERS.iter().find(|(shown, _)| *shown == name).and_then(|(shown, column)| {
            let place = Figures::NAMES.iter().position(|known| known == column)?;
            Some(Self::Counter(place, shown))
        });
        match (name, counter) {
            (_, Some(counter)) => Ok(counter),
            (SUCCESS_RATE, _) => Ok(Self::SuccessRate),
            (AVG_DURATION, _) => Ok(Self::AvgDuration),
            (REVENUE, _) => Ok(Self::Revenue),
            _ => Err(Refusal::new(ErrorCode::UnknownMetric).with("metrics", &Self::names())),
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter(_, name) => name,
            Self::SuccessRate => SUCCESS_RATE,
            Self::AvgDuration => AVG_DURATION,
            Self::Revenue => REVENUE,
        }
    }

    /// Its value; null where nothing has ended that it could be the rate or the mean of.
    #[must_use]
    pub fn value(self, figures: &Figures) -> serde_json::Value {
        match self {
            Self::Counter(place, _) => figures.values().get(place).copied().unwrap_or(0).into(),
            Self::SuccessRate => success_rate(figures).into(),
            Self::AvgDuration => average(figures).into(),
            Self::Revenue => amount(figures.revenue).to_string().into(),
        }
    }
}

/// Completed of those that were completed or failed; a task that its client withdrew says nothing of its provider.
#[must_use]
pub fn success_rate(figures: &Figures) -> Option<f64> {
    let ended = figures.tasks_completed.saturating_add(figures.tasks_failed);
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    (ended > 0).then(|| figures.tasks_completed as f64 / ended as f64)
}

fn average(figures: &Figures) -> Option<u64> {
    figures.duration_ms.checked_div(figures.tasks_completed)
}

fn amount(micros: u64) -> Amount {
    Amount::from_micros(i64::try_from(micros).unwrap_or(i64::MAX)).unwrap_or_default()
}

/// Figures of a time, summed.
#[must_use]
pub fn sum<'a>(rows: impl IntoIterator<Item = &'a Figures>) -> Figures {
    rows.into_iter().fold(Figures::default(), |mut sum, row| {
        sum.add(row);
        sum
    })
}

#[cfg(test)]
mod tests;
