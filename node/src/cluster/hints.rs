//! Where nodes are, as they tell it themselves and each other, so that it is enough to be told of one.

use std::collections::BTreeMap;

use muster_protocol::cluster::frame::{Frame, Header, OTHERS_MAX};
use muster_protocol::cluster::sight::Sighting;
use parking_lot::Mutex;
use smol_str::SmolStr;

use super::nodes::Nodes;

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

/// What a node tells of itself and the others from time to time.
pub struct Surroundings {
    /// Where it is reached.
    pub own: Option<SmolStr>,
    /// Where some of the others are.
    pub others: Vec<SmolStr>,
    /// Whom it hears.
    pub sightings: Option<Vec<Sighting>>,
}

impl Nodes {
    /// What this node tells the others; not the same addresses each time.
    pub(super) fn surroundings(&self) -> Surroundings {
        let mut others: Vec<SmolStr> =
            self.all_peers().iter().filter_map(|peer| peer.address_if_up()).collect();
        if others.len() > OTHERS_MAX {
            let random = self.environment.random();
            let turn = u64::from_be_bytes(random) % others.len() as u64;
            others.rotate_left(usize::try_from(turn).unwrap_or(0));
            others.truncate(OTHERS_MAX);
        }
        Surroundings { own: self.address.clone(), others, sightings: self.sightings() }
    }

    /// Lets all nodes that listen know that this one is there.
    pub(super) fn announce(&self) {
        let Some(fallback) = &self.fallback else { return };
        let Surroundings { own, others, .. } = self.surroundings();
        let header = Header { address: own, others, ..self.header(None) };
        if let Ok(frame) = Frame::encode(&header, &[]) {
            // One that is not taken is followed by the next.
            let _taken = fallback.announce(frame);
        }
    }

    /// Notes where nodes are reached.
    pub(super) fn note_addresses(&self, header: &Header) {
        let told = header.others.iter().chain(&header.address);
        for address in told.filter(|address| Some(*address) != self.address.as_ref()) {
            if self.config.may_dial(address) {
                self.hints.note(address, self.now_ms());
            }
        }
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
