//! What both stores of figures do alike: which rows an entry goes to, and the SQL over all columns.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use muster_actors::store::figures::{CAPABILITIES_MAX, Entry, OTHER};
use muster_protocol::analytics::{Figures, Interval};
use muster_protocol::ids::AgentId;
use muster_protocol::time::Timestamp;

/// A row: whose, how long, since when, under which capability. In the order in which rows are written, which is the same at
/// all nodes, so that none waits for another that waits for it.
pub type Row = (AgentId, i64, Timestamp, String);

/// The length of an interval, in minutes: how it is named in the table.
#[must_use]
pub const fn span(interval: Interval) -> i64 {
    interval.ms() / 60_000
}

/// The days that entries fall on, of each agent.
#[must_use]
pub fn days(entries: &[Entry]) -> BTreeSet<(AgentId, Timestamp)> {
    entries.iter().map(|entry| (entry.agent, Interval::Day.floor(entry.minute))).collect()
}

/// What to add to which rows. `known` are the capabilities that the days of [`days`] have already: there are as many as
/// may be, and the rest goes under one name.
#[must_use]
pub fn spread(
    entries: &[Entry],
    mut known: HashMap<(AgentId, Timestamp), BTreeSet<String>>,
) -> BTreeMap<Row, Figures> {
    let mut rows = BTreeMap::<Row, Figures>::new();
    for entry in entries {
        let known = known.entry((entry.agent, Interval::Day.floor(entry.minute))).or_default();
        let is_known = known.contains(entry.capability.as_str());
        let fits = entry.capability.is_empty() || is_known || known.len() < CAPABILITIES_MAX;
        let capability = if fits { entry.capability.as_str() } else { OTHER };
        known.insert(capability.to_owned());
        for interval in Interval::ALL {
            let row = (entry.agent, span(*interval), interval.floor(entry.minute), capability.to_owned());
            rows.entry(row).or_default().add(&entry.figures);
        }
    }
    rows
}

/// The columns of counters, each written as `form` says, with `{}` in place of its name.
#[must_use]
pub fn columns(form: &str) -> String {
    let columns: Vec<String> = Figures::NAMES.iter().map(|name| form.replace("{}", name)).collect();
    columns.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_go_to_minute_hour_and_day_under_a_bounded_number_of_names() {
        let minute = Timestamp::from_unix_ms(1_699_999_980_000);
        let entry = |n: usize| Entry {
            agent: AgentId::from_bytes([1; 16]),
            minute: minute.plus_ms(60_000 * i64::from(n == 0)),
            capability: format!("c{n}").into(),
            figures: Figures { chunks: 1, ..Figures::default() },
        };
        let entries: Vec<Entry> = (0..2 * CAPABILITIES_MAX).map(entry).collect();
        let rows = spread(&entries, HashMap::new());
        let of = |interval: Interval| {
            let rows = rows.iter().filter(move |((_, length, _, _), _)| *length == span(interval));
            rows.map(|(_, figures)| figures.chunks).collect::<Vec<_>>()
        };
        for interval in Interval::ALL {
            assert_eq!(of(*interval).len(), CAPABILITIES_MAX + 1, "{interval:?}");
            assert_eq!(of(*interval).iter().sum::<u64>(), entries.len() as u64, "{interval:?}");
        }
        let known = BTreeSet::from(["c1".to_owned()]);
        let again =
            spread(&entries[1..2], HashMap::from([((entries[1].agent, Interval::Day.floor(minute)), known)]));
        assert_eq!(again.len(), 3);
    }
}
