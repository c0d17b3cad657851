//! Limits that hold for the whole cluster without a question to anybody: each node lets the others know every second what
//! is used of them there, and counts what it hears as if it were used here.
//!
//! What is small is not told: a key of which a node uses less than its part of a [`UNTOLD_PART`]th of the limit goes without
//! a word, so that what is said is about the few that come near a limit. What is used within the same second on several
//! nodes is seen too late; of rates that is made up for, as a debt, of sockets it is not.

use std::collections::HashMap;
use std::hash::Hash;

use serde::{Deserialize, Serialize};

use super::NodeKey;
use crate::ids::{AgentId, CredentialId};
use crate::rate_limiter::Rate;

/// What all nodes together leave untold of a limit: one in so many.
const UNTOLD_PART: usize = 8;
/// Keys in one message.
pub const TOLD_AT_ONCE_MAX: usize = 20_000;
/// Keys that are kept of one node; it tells no more.
pub const KEYS_PER_NODE_MAX: usize = 100_000;

/// What is used at the sender.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Whether the sockets are all there are to tell of, in place of what was told before.
    #[serde(default)]
    pub whole: bool,
    /// Sockets that credentials have open now.
    #[serde(default)]
    pub sockets: Vec<(CredentialId, u32)>,
    /// Requests of credentials since it was told last.
    #[serde(default)]
    pub requests: Vec<(CredentialId, u32)>,
    /// Chunks of agents since it was told last.
    #[serde(default)]
    pub chunks: Vec<(AgentId, u32)>,
}

impl Usage {
    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.whole && self.sockets.is_empty() && self.requests.is_empty() && self.chunks.is_empty()
    }
}

/// From how much on of a limit a node of so many tells.
#[must_use]
pub fn least_told(limit: usize, nodes: usize) -> usize {
    (limit / (UNTOLD_PART * nodes.max(1))).max(1)
}

/// The same of a rate: tokens.
#[must_use]
pub fn least_told_of(rate: Rate, nodes: usize) -> u32 {
    let per_second = u64::from(rate.tokens) * 1_000 / u64::from(rate.period_ms.max(1));
    let limit = usize::try_from(per_second).unwrap_or(usize::MAX);
    u32::try_from(least_told(limit, nodes)).unwrap_or(u32::MAX)
}

/// Numbers by key as they were told last, so that changes can be told.
#[derive(Debug)]
pub struct Told<K>(HashMap<K, u32>);

impl<K> Default for Told<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Copy + Eq + Hash> Told<K> {
    /// What has changed of the numbers that are large enough to be told, or were; 0 for those that are not any more. All of
    /// them if `whole`.
    pub fn changes(&mut self, numbers: impl Iterator<Item = (K, u32)>, whole: bool) -> Vec<(K, u32)> {
        let now: HashMap<K, u32> = numbers.take(KEYS_PER_NODE_MAX).collect();
        let before = std::mem::replace(&mut self.0, now);
        let gone = before.keys().filter(|key| !whole && !self.0.contains_key(key)).map(|key| (*key, 0));
        let changed = self.0.iter().filter(|(key, number)| whole || before.get(key) != Some(number));
        changed.map(|(key, number)| (*key, *number)).chain(gone).collect()
    }
}

/// Numbers by key as other nodes have told them.
#[derive(Debug)]
pub struct Elsewhere<K>(HashMap<NodeKey, HashMap<K, u32>>);

impl<K> Default for Elsewhere<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Elsewhere<K> {
    /// Notes what a node has told.
    pub fn note(&mut self, node: &NodeKey, whole: bool, numbers: Vec<(K, u32)>) {
        let known = self.0.entry(node.clone()).or_default();
        if whole {
            known.clear();
        }
        for (key, number) in numbers {
            if number == 0 {
                known.remove(&key);
            } else if known.len() < KEYS_PER_NODE_MAX || known.contains_key(&key) {
                known.insert(key, number);
            }
        }
        if known.is_empty() {
            self.0.remove(node);
        }
    }

    /// A node is gone, and what it had with it.
    pub fn forget(&mut self, node: &NodeKey) {
        self.0.remove(node);
    }

    /// Of a key, at all other nodes.
    #[must_use]
    pub fn sum(&self, key: &K) -> usize {
        self.0.values().filter_map(|known| known.get(key)).map(|number| *number as usize).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(name: &str) -> NodeKey {
        NodeKey { name: name.into(), incarnation: 1 }
    }

    #[test]
    fn nodes_together_leave_little_untold_and_of_few_nothing() {
        for (limit, nodes) in [(25_000, 4), (100, 3), (8, 8), (1, 5)] {
            let untold = (least_told(limit, nodes) - 1) * nodes;
            assert!(untold <= limit / UNTOLD_PART, "{untold} of {limit} at {nodes} nodes");
        }
        assert_eq!(least_told_of(Rate { tokens: 6_000, period_ms: 60_000, burst: 9 }, 2), 6);
    }

    #[test]
    fn a_node_that_is_gone_and_one_that_begins_anew_leave_nothing_behind() {
        let mut elsewhere = Elsewhere::default();
        elsewhere.note(&node("a"), true, vec![(1, 5), (2, 7)]);
        elsewhere.note(&node("b"), false, vec![(1, 1)]);
        assert_eq!((elsewhere.sum(&1), elsewhere.sum(&2), elsewhere.sum(&3)), (6, 7, 0));
        elsewhere.note(&node("a"), true, vec![(2, 1)]);
        assert_eq!((elsewhere.sum(&1), elsewhere.sum(&2)), (1, 1));
        elsewhere.forget(&node("a"));
        elsewhere.note(&node("b"), false, vec![(1, 0)]);
        assert_eq!((elsewhere.sum(&1), elsewhere.sum(&2)), (0, 0));
        assert!(elsewhere.0.is_empty());
    }

    proptest! {
        #[test]
        fn changes_add_up_to_what_there_is(
            seconds in proptest::collection::vec(
                (proptest::collection::hash_map(0_u8..6, 1_u32..4, 0..6), any::<bool>()), 1..20
            )
        ) {
            let (mut told, mut elsewhere) = (Told::default(), Elsewhere::default());
            for (numbers, whole) in seconds {
                let changes = told.changes(numbers.clone().into_iter(), whole);
                elsewhere.note(&node("a"), whole, changes);
                for key in 0..6 {
                    prop_assert_eq!(elsewhere.sum(&key), numbers.get(&key).copied().unwrap_or(0) as usize);
                }
            }
        }
    }
}
