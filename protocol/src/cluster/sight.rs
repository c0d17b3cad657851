//! Whom each node hears, as nodes tell each other: so that where a link is cut between two nodes that a third one hears,
//! what all need to reach belongs to that one, and not to each of the two in turn.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use super::NodeKey;

/// Heartbeats by which another must have heard a node later than oneself to take it for alive, and for which a node must be
/// missed to take its link for cut: longer than between two nodes' noticing that a third has died.
const DIFFERENCE_HEARTBEATS: u64 = 2;
/// Heartbeats for which counts what a node has told last.
const KEPT_HEARTBEATS: u64 = 5;
/// Bytes of names in what one node tells; if there were more, it tells nothing.
pub const SIGHTINGS_BYTES_MAX: usize = 1_024;

/// A node that the sender hears: name, incarnation, and for how long nothing was heard of it, in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting(pub SmolStr, pub u64, pub u64);

/// Of what size sightings are at most, about.
#[must_use]
pub fn are_few(sightings: &[Sighting]) -> bool {
    // Numbers and the array around them.
    const OVERHEAD_BYTES: usize = 20;
    sightings.iter().map(|Sighting(name, ..)| name.len() + OVERHEAD_BYTES).sum::<usize>()
        <= SIGHTINGS_BYTES_MAX
}

/// A node as this one knows it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Which.
    pub key: &'a NodeKey,
    /// When it was heard last, in monotonic milliseconds.
    pub heard_at_ms: u64,
}

/// What the others have told.
#[derive(Debug)]
pub struct Sights {
    heartbeat_ms: u64,
    /// By who told it.
    told: BTreeMap<SmolStr, Told>,
}

#[derive(Debug, Default)]
struct Told {
    at_ms: u64,
    /// When each node was heard there.
    heard: BTreeMap<NodeKey, u64>,
    /// Nodes that are up, not heard there, and since when.
    missed: BTreeMap<NodeKey, u64>,
}

impl Sights {
    /// Nobody has told anything.
    #[must_use]
    pub const fn new(heartbeat_ms: u64) -> Self {
        Self { heartbeat_ms, told: BTreeMap::new() }
    }

    /// What a node has told, unless that is long ago.
    fn told_by(&self, node: &NodeKey, now_ms: u64) -> Option<&Told> {
        let told = self.told.get(&node.name)?;
        (now_ms.saturating_sub(told.at_ms) < KEPT_HEARTBEATS * self.heartbeat_ms).then_some(told)
    }

    /// Notes all that a node says it hears; `up` are those that are up for this node, itself among them.
    pub fn note<'a>(
        &mut self,
        by: &NodeKey,
        sightings: &[Sighting],
        up: impl Iterator<Item = &'a NodeKey>,
        now_ms: u64,
    ) {
        let told = self.told.entry(by.name.clone()).or_default();
        told.at_ms = now_ms;
        told.heard = sightings
            .iter()
            .map(|Sighting(name, incarnation, silent_ms)| {
                let key = NodeKey { name: name.clone(), incarnation: *incarnation };
                (key, now_ms.saturating_sub(*silent_ms))
            })
            .collect();
        let missed = up.filter(|node| *node != by && !told.heard.contains_key(node));
        told.missed =
            missed.map(|node| (node.clone(), told.missed.get(node).copied().unwrap_or(now_ms))).collect();
    }

    /// Forgets what a node has told.
    pub fn forget(&mut self, by: &str) {
        self.told.remove(by);
    }

    /// The nodes that every living node hears, by name: of those that are up for this node, and this node itself. `silent`
    /// are those that it does not hear any more.
    #[must_use]
    pub fn central(
        &self,
        me: &NodeKey,
        up: &[Seen<'_>],
        silent: &[Seen<'_>],
        now_ms: u64,
    ) -> BTreeSet<SmolStr> {
        let difference_ms = DIFFERENCE_HEARTBEATS * self.heartbeat_ms;
        let hears = |by: &NodeKey, node: Seen<'_>| {
            let heard_at_ms = self.told_by(by, now_ms).and_then(|told| told.heard.get(node.key));
            heard_at_ms.is_some_and(|at_ms| *at_ms >= node.heard_at_ms + difference_ms)
        };
        let alive_elsewhere: Vec<Seen<'_>> =
            silent.iter().copied().filter(|node| up.iter().any(|by| hears(by.key, *node))).collect();
        let misses = |by: &NodeKey, node: Seen<'_>| {
            let since_ms = self.told_by(by, now_ms).and_then(|told| told.missed.get(node.key));
            // Heard since, so it lives.
            since_ms
                .is_some_and(|since_ms| now_ms >= since_ms + difference_ms && node.heard_at_ms > *since_ms)
        };
        let myself = Seen { key: me, heard_at_ms: now_ms };
        let all = || up.iter().copied().chain([myself]);
        let is_central = |node: Seen<'_>| {
            let is_heard = all()
                .all(|other| other.key == node.key || !misses(other.key, node) && !misses(node.key, other));
            is_heard && alive_elsewhere.iter().all(|other| node.key != me && hears(node.key, *other))
        };
        all().filter(|node| is_central(*node)).map(|node| node.key.name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> NodeKey {
        NodeKey { name: name.into(), incarnation: 1 }
    }

    /// What a sees: which nodes are up and silent, by when they were heard.
    fn central(sights: &Sights, up: &[(&str, u64)], silent: &[(&str, u64)], now_ms: u64) -> Vec<String> {
        let keys: Vec<_> = up.iter().chain(silent).map(|(name, at_ms)| (key(name), *at_ms)).collect();
        let seen: Vec<_> =
            keys.iter().map(|(key, heard_at_ms)| Seen { key, heard_at_ms: *heard_at_ms }).collect();
        let (up, silent) = seen.split_at(up.len());
        sights.central(&key("a"), up, silent, now_ms).iter().map(ToString::to_string).collect()
    }

    fn note(sights: &mut Sights, by: &str, heard: &[(&str, u64)], up: &[&str], now_ms: u64) {
        let sightings: Vec<_> = heard.iter().map(|(name, ms)| Sighting((*name).into(), 1, *ms)).collect();
        let up: Vec<_> = up.iter().map(|name| key(name)).collect();
        sights.note(&key(by), &sightings, up.iter(), now_ms);
    }

    #[test]
    fn while_nobody_says_otherwise_all_are_central() {
        let mut sights = Sights::new(1_000);
        assert_eq!(central(&sights, &[("b", 0), ("c", 0)], &[], 0), ["a", "b", "c"]);
        note(&mut sights, "b", &[("a", 0), ("c", 0)], &["a", "b", "c"], 0);
        assert_eq!(central(&sights, &[("b", 0), ("c", 0)], &[], 60_000), ["a", "b", "c"]);
    }

    #[test]
    fn of_two_that_do_not_hear_each_other_neither_is_and_the_one_that_hears_both_knows_it_too() {
        // a and c are cut off from each other; b hears both. As a sees it, once it has given c up:
        let mut sights = Sights::new(1_000);
        note(&mut sights, "b", &[("a", 100), ("c", 100)], &["a", "b"], 15_000);
        assert_eq!(central(&sights, &[("b", 15_000)], &[("c", 10_000)], 15_000), ["b"]);
        // As a sees it when it is the one in the middle, of b and c:
        let mut sights = Sights::new(1_000);
        note(&mut sights, "b", &[("a", 0)], &["a", "b", "c"], 15_000);
        note(&mut sights, "c", &[("a", 0)], &["a", "b", "c"], 15_000);
        let at = |now_ms| central(&sights, &[("b", now_ms), ("c", now_ms)], &[], now_ms);
        assert_eq!(at(16_999), ["a", "b", "c"], "it may just have come");
        assert_eq!(at(17_000), ["a"]);
        // They say nothing any more, as there are too many nodes by now: that does not stand for ever.
        assert_eq!(at(20_000), ["a", "b", "c"]);
        // They hear each other again.
        note(&mut sights, "b", &[("a", 0), ("c", 0)], &["a", "b", "c"], 18_000);
        note(&mut sights, "c", &[("a", 0), ("b", 0)], &["a", "b", "c"], 18_000);
        assert_eq!(central(&sights, &[("b", 18_000), ("c", 18_000)], &[], 18_000), ["a", "b", "c"]);
    }

    #[test]
    fn a_node_that_has_died_makes_nobody_less_central_whoever_notices_first() {
        // c was heard last at 10,000. a has given it up, b has not yet.
        let mut sights = Sights::new(1_000);
        note(&mut sights, "b", &[("a", 0), ("c", 1_400)], &["a", "b"], 11_900);
        assert_eq!(central(&sights, &[("b", 11_900)], &[("c", 10_000)], 11_900), ["a", "b"]);
        // The other way round: b has, a has not.
        let mut sights = Sights::new(1_000);
        note(&mut sights, "b", &[("a", 0)], &["a", "b", "c"], 11_600);
        assert_eq!(central(&sights, &[("b", 14_000), ("c", 10_000)], &[], 14_000), ["a", "b", "c"]);
    }

    #[test]
    fn the_rarer_heartbeats_are_the_later_one_may_notice() {
        let central_at = |heartbeat_ms| {
            let mut sights = Sights::new(heartbeat_ms);
            note(&mut sights, "b", &[("a", 0), ("c", 500)], &["a", "b"], 15_000);
            central(&sights, &[("b", 15_000)], &[("c", 10_000)], 15_000)
        };
        assert_eq!(central_at(1_000), ["b"]);
        assert_eq!(central_at(5_000), ["a", "b"], "b may just not have heard of c again");
    }

    #[test]
    fn what_is_told_of_another_life_or_was_told_long_ago_does_not_count() {
        let mut sights = Sights::new(1_000);
        let sightings = [Sighting("c".into(), 2, 0)];
        sights.note(&key("b"), &sightings, [key("a"), key("b")].iter(), 15_000);
        assert_eq!(central(&sights, &[("b", 15_000)], &[("c", 10_000)], 15_000), ["a", "b"]);
        note(&mut sights, "b", &[("c", 0)], &["a", "b"], 15_000);
        assert_eq!(central(&sights, &[("b", 15_000)], &[("c", 10_000)], 15_000), ["b"]);
        sights.forget("b");
        assert_eq!(central(&sights, &[("b", 15_000)], &[("c", 10_000)], 15_000), ["a", "b"]);
    }

    #[test]
    fn a_large_cluster_tells_nothing() {
        let sightings =
            |count: u32| (0..count).map(|n| Sighting(format!("muster-{n}").into(), 1, 0)).collect::<Vec<_>>();
        assert!(are_few(&sightings(30)));
        assert!(!are_few(&sightings(100)));
    }
}
