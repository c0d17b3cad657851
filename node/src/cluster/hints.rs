//! Where nodes are, as they tell it themselves and each other, so that it is enough to be told of one.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use smol_str::SmolStr;

/// How long an address is of use after it was told last, in milliseconds.
const KEPT_MS: u64 = 60_000;

/// Addresses that were told, with when that was last.
pub struct Hints {
    most: usize,
    addresses: Mutex<BTreeMap<SmolStr, u64>>,
}

impl Hints {
    /// None yet, and never more than `most`.
    pub fn new(most: usize) -> Self {
        Self { most, addresses: Mutex::default() }
    }

    /// Notes that an address was told.
    pub fn note(&self, address: &SmolStr, now_ms: u64) {
        let mut addresses = self.addresses.lock();
        if let Some(told_at_ms) = addresses.get_mut(address) {
            *told_at_ms = now_ms;
            return;
        }
        addresses.retain(|_, told_at_ms| now_ms.saturating_sub(*told_at_ms) < KEPT_MS);
        if addresses.len() < self.most {
            addresses.insert(address.clone(), now_ms);
        }
    }

    /// Those that are of use.
    pub fn all(&self, now_ms: u64) -> Vec<SmolStr> {
        let addresses = self.addresses.lock();
        let fresh = addresses.iter().filter(|(_, told_at_ms)| now_ms.saturating_sub(**told_at_ms) < KEPT_MS);
        fresh.map(|(address, _)| address.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_few_and_those_that_nobody_tells_any_more_are_forgotten() {
        let hints = Hints::new(2);
        for address in ["a:1", "b:1", "c:1"] {
            hints.note(&address.into(), 0);
        }
        assert_eq!(hints.all(0), ["a:1", "b:1"]);
        hints.note(&"b:1".into(), KEPT_MS - 1);
        assert_eq!(hints.all(KEPT_MS), ["b:1"]);
        hints.note(&"c:1".into(), KEPT_MS);
        assert_eq!(hints.all(KEPT_MS), ["b:1", "c:1"]);
    }
}
