//! Token buckets by key: one per agent, credential or address. Buckets that are full again are forgotten, so the table
//! is as large as what is being limited now.

use std::collections::HashMap;
use std::hash::Hash;

use muster_protocol::cluster::usage::least_told_of;
use muster_protocol::rate_limiter::{Rate, TokenBucket};
use parking_lot::Mutex;

/// Buckets of one rate, by key.
pub struct Buckets<K> {
    rate: Rate,
    table: Mutex<Table<K>>,
}

struct Table<K> {
    buckets: HashMap<K, Bucket>,
    /// Size at which full buckets are looked for.
    sweep_at: usize,
}

/// A bucket, and what was taken from it since other nodes were told.
struct Bucket {
    tokens: TokenBucket,
    untold: u32,
}

impl Bucket {
    fn new(rate: Rate, now_ms: u64) -> Self {
        Self { tokens: TokenBucket::new(rate, now_ms), untold: 0 }
    }
}

/// Smallest table that is swept.
const SWEEP_MIN: usize = 1_024;

impl<K: Eq + Hash> Table<K> {
    /// The bucket of a key.
    fn bucket(&mut self, key: K, rate: Rate, now_ms: u64) -> &mut Bucket {
        if self.buckets.len() >= self.sweep_at {
            self.buckets.retain(|_, bucket| !bucket.tokens.is_full(rate, now_ms));
            self.sweep_at = (self.buckets.len() * 2).max(SWEEP_MIN);
        }
        self.buckets.entry(key).or_insert_with(|| Bucket::new(rate, now_ms))
    }
}

impl<K: Eq + Hash> Buckets<K> {
    /// Of one rate.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { rate, table: Mutex::new(Table { buckets: HashMap::new(), sweep_at: SWEEP_MIN }) }
    }

    /// Takes a token of a key.
    ///
    /// # Errors
    /// There is none; after so many milliseconds there will be.
    pub fn take(&self, key: K, now_ms: u64) -> Result<(), u64> {
        let mut table = self.table.lock();
        let bucket = table.bucket(key, self.rate, now_ms);
        bucket.tokens.take(self.rate, 1, now_ms)?;
        bucket.untold = bucket.untold.saturating_add(1);
        Ok(())
    }

    /// Takes tokens that were used at another node.
    pub fn charge(&self, key: K, tokens: u32, now_ms: u64) {
        self.table.lock().bucket(key, self.rate, now_ms).tokens.charge(self.rate, tokens, now_ms);
    }

    /// What was taken of keys since it was told last, of those where it is much for one node of so many; `most` keys.
    #[must_use]
    pub fn untold(&self, nodes: usize, most: usize) -> Vec<(K, u32)>
    where
        K: Copy,
    {
        let least = least_told_of(self.rate, nodes);
        let mut table = self.table.lock();
        let much = table.buckets.iter_mut().filter(|(_, bucket)| bucket.untold >= least).take(most);
        much.map(|(key, bucket)| (*key, std::mem::take(&mut bucket.untold))).collect()
    }

    /// Tokens a key has left.
    #[must_use]
    pub fn remaining(&self, key: &K, now_ms: u64) -> u32 {
        let mut table = self.table.lock();
        table
            .buckets
            .get_mut(key)
            .map_or(self.rate.burst, |bucket| bucket.tokens.remaining(self.rate, now_ms))
    }

    /// Tokens a full bucket has.
    #[must_use]
    pub fn burst(&self) -> u32 {
        self.rate.burst
    }

    /// Keys in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.lock().buckets.len()
    }

    /// Whether nothing is limited now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_node_tells_of_a_rate_the_others_count() {
        let rate = Rate::per_second(100, 200);
        let nodes = [Buckets::new(rate), Buckets::new(rate), Buckets::new(rate)];
        let mut taken = 0_u32;
        let seconds = 60;
        for at_ms in (0..seconds * 1_000).step_by(5) {
            taken += nodes.iter().map(|node| u32::from(node.take(7, at_ms).is_ok())).sum::<u32>();
            if at_ms % 1_000 == 0 {
                for (at, node) in nodes.iter().enumerate() {
                    for (key, tokens) in node.untold(nodes.len(), 10) {
                        let others = nodes.iter().enumerate().filter(|(other, _)| *other != at);
                        others.for_each(|(_, other)| other.charge(key, tokens, at_ms));
                    }
                }
            }
        }
        let allowed = 100 * u32::try_from(seconds).unwrap();
        // Each node begins with a burst, and hears of the others after a second.
        assert!(taken >= allowed / 2 && taken <= allowed + 3 * 200 + 3 * 100, "{taken} of {allowed}");
        nodes[0].take(8, 0).unwrap();
        assert!(nodes[0].untold(3, 10).iter().all(|(key, _)| *key != 8), "what is little is not told");
        assert!(nodes[0].untold(1_000, 10).contains(&(8, 1)), "nor forgotten");
    }

    #[test]
    fn keys_are_apart_and_full_ones_are_forgotten() {
        let buckets = Buckets::new(Rate::per_second(1, 2));
        assert!(buckets.take(1, 0).is_ok() && buckets.take(1, 0).is_ok());
        assert_eq!(buckets.take(1, 0), Err(1_000));
        assert_eq!((buckets.remaining(&1, 0), buckets.remaining(&2, 0)), (0, 2));
        for key in 10..5_000_u64 {
            buckets.take(key, key * 10_000).unwrap();
        }
        assert!(buckets.len() <= SWEEP_MIN + 1, "all but the newest were full again by then");
    }
}
