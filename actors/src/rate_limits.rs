//! Token buckets by key: one per agent, credential or address. Buckets that are full again are forgotten, so the table
//! is as large as what is being limited now.

use std::collections::HashMap;
use std::hash::Hash;

use muster_protocol::rate_limiter::{Rate, TokenBucket};
use parking_lot::Mutex;

/// Buckets of one rate, by key.
pub struct Buckets<K> {
    rate: Rate,
    table: Mutex<Table<K>>,
}

struct Table<K> {
    buckets: HashMap<K, TokenBucket>,
    /// Size at which full buckets are looked for.
    sweep_at: usize,
}

/// Smallest table that is swept.
const SWEEP_MIN: usize = 1_024;

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
        if table.buckets.len() >= table.sweep_at {
            let rate = self.rate;
            table.buckets.retain(|_, bucket| !bucket.is_full(rate, now_ms));
            table.sweep_at = (table.buckets.len() * 2).max(SWEEP_MIN);
        }
        table
            .buckets
            .entry(key)
            .or_insert_with(|| TokenBucket::new(self.rate, now_ms))
            .take(self.rate, 1, now_ms)
    }

    /// Tokens a key has left.
    #[must_use]
    pub fn remaining(&self, key: &K, now_ms: u64) -> u32 {
        let mut table = self.table.lock();
        table.buckets.get_mut(key).map_or(self.rate.burst, |bucket| bucket.remaining(self.rate, now_ms))
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
