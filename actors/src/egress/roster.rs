//! The many who get the same: gone through one after another, and found by their outlet without going through them.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Outlet, OutletId};

/// Something that belongs to one outlet.
pub trait OfOutlet {
    /// Which.
    fn outlet_id(&self) -> OutletId;
}

impl OfOutlet for Arc<Outlet> {
    fn outlet_id(&self) -> OutletId {
        self.id()
    }
}

/// As many are looked through; from more on there is an index.
const UNINDEXED_MAX: usize = 16;

/// Members in no order, one per outlet. Adding, finding and removing one takes the same time however many there are.
#[derive(Debug)]
pub struct Roster<T> {
    members: Vec<T>,
    /// Where each is; empty while there are few.
    places: HashMap<OutletId, usize>,
}

impl<T> Default for Roster<T> {
    fn default() -> Self {
        Self { members: Vec::new(), places: HashMap::new() }
    }
}

impl<T: OfOutlet> Roster<T> {
    /// Adds a member.
    pub fn insert(&mut self, member: T) {
        if !self.places.is_empty() {
            self.places.insert(member.outlet_id(), self.members.len());
        }
        self.members.push(member);
        if self.places.is_empty() && self.members.len() > UNINDEXED_MAX {
            self.places = (0..).zip(&self.members).map(|(at, member)| (member.outlet_id(), at)).collect();
        }
    }

    /// Takes a member out.
    pub fn remove(&mut self, outlet: OutletId) -> Option<T> {
        let at = self.place(outlet)?;
        Some(self.remove_at(at))
    }

    /// Finds a member.
    pub fn get_mut(&mut self, outlet: OutletId) -> Option<&mut T> {
        let at = self.place(outlet)?;
        self.members.get_mut(at)
    }

    /// All members.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.members.iter()
    }

    /// All members, to be changed.
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, T> {
        self.members.iter_mut()
    }

    /// Keeps those for whom `keeps` says so.
    pub fn retain_mut(&mut self, mut keeps: impl FnMut(&mut T) -> bool) {
        let mut at = 0;
        while let Some(member) = self.members.get_mut(at) {
            if keeps(member) {
                at += 1;
            } else {
                drop(self.remove_at(at));
            }
        }
    }

    /// Takes all members out.
    pub fn take(&mut self) -> Vec<T> {
        self.places = HashMap::new();
        std::mem::take(&mut self.members)
    }

    /// Members.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    fn place(&self, outlet: OutletId) -> Option<usize> {
        if self.places.is_empty() {
            self.members.iter().position(|member| member.outlet_id() == outlet)
        } else {
            self.places.get(&outlet).copied()
        }
    }

    fn remove_at(&mut self, at: usize) -> T {
        let removed = self.members.swap_remove(at);
        if !self.places.is_empty() {
            self.places.remove(&removed.outlet_id());
            if let Some(moved) = self.members.get(at) {
                self.places.insert(moved.outlet_id(), at);
            }
        }
        if self.members.is_empty() {
            // What nobody is in holds no memory.
            *self = Self::default();
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl OfOutlet for (OutletId, u32) {
        fn outlet_id(&self) -> OutletId {
            self.0
        }
    }

    proptest! {
        #[test]
        fn as_a_map_would(steps in prop::collection::vec((0..4_u8, 0..64_u64), 0..400)) {
            let mut roster = Roster::default();
            let mut model = HashMap::new();
            for (number, (step, outlet)) in (0..).zip(steps) {
                match step {
                    0 | 1 if !model.contains_key(&outlet) => {
                        roster.insert((outlet, number));
                        model.insert(outlet, number);
                    }
                    2 => {
                        let removed = roster.remove(outlet).map(|(_, number)| number);
                        prop_assert_eq!(removed, model.remove(&outlet));
                    }
                    3 if outlet < 8 => {
                        roster.retain_mut(|(of, _)| *of % 8 != outlet);
                        model.retain(|of, _| *of % 8 != outlet);
                    }
                    _ => {
                        let found = roster.get_mut(outlet).map(|(_, number)| *number);
                        prop_assert_eq!(found, model.get(&outlet).copied());
                    }
                }
                let all: HashMap<OutletId, u32> = roster.iter().copied().collect();
                prop_assert_eq!(&all, &model);
                prop_assert_eq!(roster.len(), model.len());
            }
        }
    }
}
