//! Which nodes are up, by what is heard of them and when.
//!
//! A node is up when something is heard of it, suspect after some silence, and gone after more, or when it says goodbye. A
//! node that has started again is another process, of a higher incarnation: it replaces the old one at once, and the old one
//! is not listened to any more.

use std::collections::{BTreeMap, BTreeSet};

use smol_str::SmolStr;

use super::sight::{Seen, Sighting, Sights, are_few};
use super::{Member, Members, NodeKey};

/// How long a process that is gone keeps older ones of its name away, in milliseconds. After that an older one is let in:
/// the clock of its machine has been set back.
const OLDER_REFUSED_FOR_MS: u64 = 60_000;

/// What silence means, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Time between two heartbeats.
    pub heartbeat_ms: u64,
    /// Silence after which a node is suspect.
    pub suspect_after_ms: u64,
    /// Silence after which it is gone.
    pub down_after_ms: u64,
}

/// Something that was heard of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Of which process.
    pub key: NodeKey,
    /// Whether it is going away.
    pub draining: bool,
    /// Whether it is gone with that.
    pub goodbye: bool,
    /// Whom it hears, if it said.
    pub sightings: Option<Vec<Sighting>>,
}

/// A node came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is up.
    Up(NodeKey),
    /// It is gone.
    Down(NodeKey),
}

/// Why a process is not listened to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is this process: a way that leads back.
    #[error("this is the same process")]
    Oneself,
    /// Another process has this node's name.
    #[error("the name {name} is this node's, in another process: every node needs a name of its own")]
    OurName {
        /// The name.
        name: SmolStr,
    },
    /// A later process of that name is known.
    #[error(
        "{key} is older than incarnation {known}, which is known: two processes have one name, or a clock went back"
    )]
    Older {
        /// Who was refused.
        key: NodeKey,
        /// The later one.
        known: u64,
    },
    /// As many nodes as may be are known.
    #[error("{most} other nodes are known already (limits.cluster_peers_max)")]
    Full {
        /// How many.
        most: usize,
    },
}

/// Where a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is heard.
    Up,
    /// It has been silent for a while.
    Suspect,
    /// It has been silent for too long.
    Silent,
    /// It said goodbye.
    Left,
}

/// A node as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its last process.
    pub key: NodeKey,
    /// Where it stands.
    pub standing: Standing,
    /// Whether it is going away.
    pub draining: bool,
    /// When it was heard last, in monotonic milliseconds.
    pub heard_at_ms: u64,
    /// Whether its machine, or what carries frames, has said since that nobody is there.
    pub is_refused: bool,
    /// Since when what carries frames has not reached it, in monotonic milliseconds, if it has not.
    pub absent_since_ms: Option<u64>,
}

/// Silence after which a node is gone where nobody listens any more, in milliseconds; longer where heartbeats are rarer. A
/// process that was killed is known to be gone by that; one that is paused or cut off says nothing at all.
const REFUSED_DOWN_AFTER_MS: u64 = 1_500;
/// How late a heartbeat may come before its node is gone by that, in milliseconds.
const HEARTBEAT_LATE_MS: u64 = 500;

impl Known {
    /// Whether it is up, suspect or not.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.standing, Standing::Up | Standing::Suspect)
    }
}

/// The nodes that one node knows.
pub struct Membership {
    me: NodeKey,
    draining: bool,
    timing: Timing,
    peers_max: usize,
    /// Addresses by configuration where nobody has answered yet.
    unanswered: usize,
    known: BTreeMap<SmolStr, Known>,
    /// Whom those that are up hear.
    sights: Sights,
    /// Those that all hear, by name.
    central: BTreeSet<SmolStr>,
    /// Whether [`Self::members`] may give something else than before.
    has_changed: bool,
}

impl Membership {
    /// A node that knows nobody.
    #[must_use]
    pub fn new(me: NodeKey, timing: Timing, peers_max: usize) -> Self {
        let central = BTreeSet::from([me.name.clone()]);
        Self {
            me,
            draining: false,
            timing,
            peers_max,
            unanswered: 0,
            known: BTreeMap::new(),
            sights: Sights::new(timing.heartbeat_ms),
            central,
            has_changed: true,
        }
    }

    /// Whether a process would be listened to.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(&self, key: &NodeKey, now_ms: u64) -> Result<(), Refusal> {
        if *key == self.me {
            return Err(Refusal::Oneself);
        }
        if key.name == self.me.name {
            return Err(Refusal::OurName { name: key.name.clone() });
        }
        let Some(known) = self.known.get(&key.name) else {
            let is_full = self.known.len() >= self.peers_max && self.known.values().all(Known::is_up);
            return if is_full { Err(Refusal::Full { most: self.peers_max }) } else { Ok(()) };
        };
        let is_past = !known.is_up() && now_ms >= known.heard_at_ms.saturating_add(OLDER_REFUSED_FOR_MS);
        if key.incarnation < known.key.incarnation && !is_past {
            return Err(Refusal::Older { key: key.clone(), known: known.key.incarnation });
        }
        Ok(())
    }

    /// Notes what was heard; gives what has changed with it, in order.
    ///
    /// # Errors
    /// That process is not listened to.
    pub fn heard(&mut self, heard: &Heard, now_ms: u64) -> Result<Vec<Change>, Refusal> {
        let Heard { key, draining, goodbye, sightings } = heard;
        self.admits(key, now_ms)?;
        let mut changes = Vec::new();
        let standing = if *goodbye { Standing::Left } else { Standing::Up };
        let known = Known {
            key: key.clone(),
            standing,
            draining: *draining,
            heard_at_ms: now_ms,
            is_refused: false,
            absent_since_ms: None,
        };
        if let Some(before) = self.known.get(&key.name) {
            let is_same = before.key == *key;
            if is_same && before.standing == Standing::Left {
                // What was under way when it left does not bring it back.
                return Ok(changes);
            }
            if before.is_up() && (!is_same || *goodbye) {
                changes.push(Change::Down(before.key.clone()));
            }
            let was_up = is_same && before.is_up();
            if !(*goodbye || was_up) {
                changes.push(Change::Up(key.clone()));
            }
        } else {
            self.make_room();
            if !*goodbye {
                changes.push(Change::Up(key.clone()));
            }
        }
        let stands = |known: &Known| (known.standing, known.draining);
        let before = self.known.get(&key.name);
        self.has_changed |=
            before.is_none_or(|before| before.key != *key || stands(before) != stands(&known));
        self.known.insert(key.name.clone(), known);
        if let Some(sightings) = sightings {
            let up = self.known.values().filter(|known| known.is_up()).map(|known| &known.key);
            self.sights.note(key, sightings, up.chain([&self.me]), now_ms);
        }
        if *goodbye {
            self.sights.forget(&key.name);
        }
        if sightings.is_some() || !changes.is_empty() {
            self.look_around(now_ms);
        }
        Ok(changes)
    }

    /// All nodes that this one hears, to tell the others; nothing when they are many.
    #[must_use]
    pub fn sightings(&self, now_ms: u64) -> Option<Vec<Sighting>> {
        let up = self.known.values().filter(|known| known.is_up());
        let sightings: Vec<Sighting> = up
            .map(|Known { key, heard_at_ms, .. }| {
                Sighting(key.name.clone(), key.incarnation, now_ms.saturating_sub(*heard_at_ms))
            })
            .collect();
        are_few(&sightings).then_some(sightings)
    }

    /// Finds out again whom all hear: from time to time, for it follows from how long what was not heard.
    pub fn look_around(&mut self, now_ms: u64) {
        let seen = |fits: fn(&Known) -> bool| -> Vec<Seen<'_>> {
            let known = self.known.values().filter(|known| fits(known));
            known.map(|Known { key, heard_at_ms, .. }| Seen { key, heard_at_ms: *heard_at_ms }).collect()
        };
        let silent = seen(|known| known.standing == Standing::Silent);
        let central = self.sights.central(&self.me, &seen(Known::is_up), &silent, now_ms);
        self.has_changed |= central != self.central;
        self.central = central;
    }

    /// Looks at a node after some time; gives what that changes.
    pub fn tick(&mut self, name: &str, now_ms: u64) -> Option<Change> {
        let change = self.listen_for(name, now_ms);
        if change.is_some() {
            self.look_around(now_ms);
        }
        change
    }

    fn listen_for(&mut self, name: &str, now_ms: u64) -> Option<Change> {
        let known = self.known.get_mut(name).filter(|known| known.is_up())?;
        let silent_ms = now_ms.saturating_sub(known.heard_at_ms);
        let down_after_ms = if known.is_refused {
            let after_ms = REFUSED_DOWN_AFTER_MS.max(self.timing.heartbeat_ms + HEARTBEAT_LATE_MS);
            after_ms.min(self.timing.down_after_ms)
        } else {
            self.timing.down_after_ms
        };
        if silent_ms >= down_after_ms {
            known.standing = Standing::Silent;
            self.sights.forget(name);
            self.has_changed = true;
            return Some(Change::Down(known.key.clone()));
        }
        let standing =
            if silent_ms >= self.timing.suspect_after_ms { Standing::Suspect } else { Standing::Up };
        self.has_changed |= known.standing != standing;
        known.standing = standing;
        None
    }

    /// Nobody listens where the node was reached: if it is heard in no other way, it is gone.
    pub fn refused(&mut self, name: &str) {
        if let Some(known) = self.known.get_mut(name) {
            known.is_refused = true;
        }
    }

    /// What carries frames does not reach this process just now. The same, if that stays so from one heartbeat to the next:
    /// it may only be about to connect again.
    pub fn absent(&mut self, key: &NodeKey, now_ms: u64) {
        let heartbeat_ms = self.timing.heartbeat_ms;
        if let Some(known) = self.known.get_mut(&key.name).filter(|known| known.key == *key) {
            let since_ms = *known.absent_since_ms.get_or_insert(now_ms);
            known.is_refused |= now_ms >= since_ms + heartbeat_ms / 2;
        }
    }

    /// This node is going away.
    pub fn drain(&mut self) {
        self.draining = true;
        self.has_changed = true;
    }

    /// Whether this node is going away.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Notes at how many addresses of the configuration nobody has answered yet.
    pub fn set_unanswered(&mut self, addresses: usize) {
        self.has_changed |= self.unanswered != addresses;
        self.unanswered = addresses;
    }

    /// Whether [`Self::members`] may give something else than when this was last asked: each frame is heard, and next to none
    /// changes anything.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    /// The nodes that are up, and whether this one is cut off: there should be others, and none is heard. Others that said
    /// goodbye need not be there.
    #[must_use]
    pub fn members(&self) -> Members {
        let me = Member {
            key: self.me.clone(),
            draining: self.draining,
            suspect: false,
            central: self.central.contains(&self.me.name),
        };
        let up = self.known.values().filter(|known| known.is_up()).map(|known| Member {
            key: known.key.clone(),
            draining: known.draining,
            suspect: known.standing == Standing::Suspect,
            central: self.central.contains(&known.key.name),
        });
        let mut nodes: Vec<Member> = up.chain([me]).collect();
        nodes.sort_by(|a, b| a.key.name.cmp(&b.key.name));
        let is_heard = self.known.values().any(|known| known.standing == Standing::Up);
        let is_awaited =
            self.unanswered > 0 || self.known.values().any(|known| known.standing != Standing::Left);
        Members { isolated: is_awaited && !is_heard, nodes }
    }

    /// All nodes that are known, by name.
    pub fn known(&self) -> impl Iterator<Item = &Known> {
        self.known.values()
    }

    /// Forgets the one that has been gone for longest, if as many as may be are known.
    fn make_room(&mut self) {
        if self.known.len() < self.peers_max {
            return;
        }
        let gone = self.known.values().filter(|known| !known.is_up()).min_by_key(|known| known.heard_at_ms);
        if let Some(name) = gone.map(|known| known.key.name.clone()) {
            self.known.remove(&name);
            self.sights.forget(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing { heartbeat_ms: 1_000, suspect_after_ms: 3_000, down_after_ms: 5_000 };

    fn key(name: &str, incarnation: u64) -> NodeKey {
        NodeKey { name: name.into(), incarnation }
    }

    fn membership() -> Membership {
        Membership::new(key("a", 10), TIMING, 3)
    }

    fn from(name: &str, incarnation: u64) -> Heard {
        Heard { key: key(name, incarnation), draining: false, goodbye: false, sightings: None }
    }

    fn up(name: &str, incarnation: u64) -> Change {
        Change::Up(key(name, incarnation))
    }

    fn down(name: &str, incarnation: u64) -> Change {
        Change::Down(key(name, incarnation))
    }

    #[test]
    fn silence_makes_a_node_suspect_then_gone_and_a_word_brings_it_back() {
        let mut members = membership();
        assert_eq!(members.heard(&from("b", 1), 0), Ok(vec![up("b", 1)]));
        assert_eq!(members.heard(&from("b", 1), 1_000), Ok(vec![]));
        assert_eq!(members.tick("b", 3_999), None);
        assert!(!members.members().nodes[1].suspect);
        assert_eq!(members.tick("b", 4_000), None);
        assert!(members.members().nodes[1].suspect && members.members().isolated);
        assert_eq!(members.tick("b", 6_000), Some(down("b", 1)));
        assert_eq!(members.tick("b", 7_000), None);
        let view = members.members();
        assert_eq!((view.nodes.len(), view.isolated), (1, true));
        assert_eq!(members.heard(&from("b", 1), 8_000), Ok(vec![up("b", 1)]));
        assert!(!members.members().isolated);
    }

    #[test]
    fn what_members_gives_does_not_change_unnoticed_and_most_of_what_is_heard_changes_nothing() {
        let mut members = membership();
        assert!(members.take_changed());
        let mut known = members.members();
        let mut noticed = 0;
        let mut look = |members: &mut Membership, what: &str| {
            let now = members.members();
            let changed = members.take_changed();
            assert!(changed || now == known, "{what} changed something unnoticed");
            noticed += u32::from(changed);
            known = now;
        };
        for at_ms in 0..100 {
            members.heard(&from("b", 1), at_ms).unwrap();
            look(&mut members, "a word");
        }
        members.heard(&Heard { draining: true, ..from("b", 1) }, 100).unwrap();
        look(&mut members, "draining");
        for (at_ms, what) in [(200, "a moment"), (3_200, "silence"), (6_200, "long silence")] {
            members.tick("b", at_ms);
            look(&mut members, what);
        }
        members.heard(&from("b", 2), 7_000).unwrap();
        look(&mut members, "another process");
        members.heard(&Heard { goodbye: true, ..from("b", 2) }, 7_001).unwrap();
        look(&mut members, "a goodbye");
        members.set_unanswered(1);
        look(&mut members, "an address where nobody answers");
        members.drain();
        look(&mut members, "draining oneself");
        assert_eq!(noticed, 8);
    }

    #[test]
    fn a_later_process_replaces_at_once_and_an_older_one_is_refused() {
        let mut members = membership();
        members.heard(&from("b", 5), 0).unwrap();
        assert_eq!(members.heard(&from("b", 6), 1), Ok(vec![down("b", 5), up("b", 6)]));
        let refused = members.heard(&from("b", 5), 2);
        assert_eq!(refused, Err(Refusal::Older { key: key("b", 5), known: 6 }));
        members.tick("b", 5_001);
        assert!(members.heard(&from("b", 5), 5_002).is_err());
        assert_eq!(members.heard(&from("b", 5), 1 + OLDER_REFUSED_FOR_MS), Ok(vec![up("b", 5)]));
    }

    #[test]
    fn a_goodbye_is_the_last_word_and_leaves_nobody_cut_off() {
        let mut members = membership();
        members.heard(&from("b", 1), 0).unwrap();
        let draining = Heard { draining: true, ..from("b", 1) };
        assert_eq!(members.heard(&draining, 1), Ok(vec![]));
        assert!(members.members().nodes[1].draining);
        let goodbye = Heard { goodbye: true, ..from("b", 1) };
        assert_eq!(members.heard(&goodbye, 2), Ok(vec![down("b", 1)]));
        assert_eq!(members.heard(&from("b", 1), 3), Ok(vec![]), "late words do not bring it back");
        assert_eq!(members.members().nodes.len(), 1);
        assert!(!members.members().isolated);
        assert_eq!(members.heard(&from("b", 2), 4), Ok(vec![up("b", 2)]));
    }

    #[test]
    fn who_is_alone_by_configuration_is_not_cut_off_and_who_waits_for_others_is() {
        let mut members = membership();
        assert!(!members.members().isolated);
        members.set_unanswered(2);
        assert!(members.members().isolated);
        members.heard(&from("c", 1), 0).unwrap();
        assert!(!members.members().isolated);
    }

    #[test]
    fn names_are_ones_own_and_room_is_bounded() {
        let mut members = membership();
        assert_eq!(members.admits(&key("a", 10), 0), Err(Refusal::Oneself));
        assert!(matches!(members.heard(&from("a", 11), 0), Err(Refusal::OurName { .. })));
        for name in ["b", "c", "d"] {
            members.heard(&from(name, 1), 0).unwrap();
        }
        assert_eq!(members.heard(&from("e", 1), 1), Err(Refusal::Full { most: 3 }));
        members.tick("c", 5_000);
        assert_eq!(members.heard(&from("e", 1), 5_001), Ok(vec![up("e", 1)]));
        assert_eq!(members.known().count(), 3);
    }

    #[test]
    fn where_a_link_is_cut_between_two_the_one_that_hears_both_is_central_and_they_know_it() {
        let mut members = membership();
        let says = |name: &str, heard: &[(&str, u64, u64)]| Heard {
            sightings: Some(
                heard.iter().map(|(name, life, ms)| Sighting((*name).into(), *life, *ms)).collect(),
            ),
            ..from(name, 1)
        };
        let central = |members: &Membership| -> Vec<SmolStr> {
            members
                .members()
                .nodes
                .into_iter()
                .filter(|node| node.central)
                .map(|node| node.key.name)
                .collect()
        };
        members.heard(&from("b", 1), 0).unwrap();
        members.heard(&from("c", 1), 0).unwrap();
        assert_eq!(central(&members), ["a", "b", "c"]);
        // From now on c is not heard here, but by b.
        for at_ms in (1_000..=6_000).step_by(1_000) {
            members.heard(&says("b", &[("a", 10, 0), ("c", 1, 200)]), at_ms).unwrap();
            members.tick("c", at_ms);
        }
        assert_eq!(members.members().nodes.len(), 2);
        assert_eq!(central(&members), ["b"]);
        members.heard(&from("c", 1), 7_000).unwrap();
        assert_eq!(central(&members), ["a", "b", "c"]);
        assert_eq!(
            members.sightings(7_500).unwrap(),
            [Sighting("b".into(), 1, 1_500), Sighting("c".into(), 1, 500)]
        );
    }

    #[test]
    fn a_node_where_nobody_listens_any_more_is_gone_soon_unless_it_is_heard() {
        let mut members = Membership::new(NodeKey { name: "a".into(), incarnation: 1 }, TIMING, 8);
        let key = NodeKey { name: "b".into(), incarnation: 1 };
        let heard = Heard { key: key.clone(), draining: false, goodbye: false, sightings: None };
        members.heard(&heard, 0).unwrap();
        members.refused("b");
        assert_eq!(members.tick("b", 1_499), None);
        // By another way.
        members.heard(&heard, 1_499).unwrap();
        assert_eq!(members.tick("b", 4_000), None);
        // What is known of another process of that name says nothing of this one.
        let other = NodeKey { incarnation: 2, ..key.clone() };
        members.absent(&other, 3_000);
        members.absent(&other, 4_000);
        assert_eq!(members.tick("b", 4_000), None);
        // It may be about to connect again.
        members.absent(&key, 3_800);
        assert_eq!(members.tick("b", 4_000), None);
        members.absent(&key, 4_300);
        assert_eq!(members.tick("b", 4_300), Some(Change::Down(key)));
    }

    #[test]
    fn between_rare_heartbeats_a_node_is_not_gone_because_nobody_listens() {
        let timing = Timing { heartbeat_ms: 5_000, suspect_after_ms: 12_000, down_after_ms: 20_000 };
        let mut members = Membership::new(key("a", 1), timing, 8);
        for beat in 0..3 {
            assert_eq!(members.heard(&from("b", 1), beat * 5_000).unwrap().len(), usize::from(beat == 0));
            // It is heard by another way than the one that is refused.
            members.refused("b");
            assert_eq!(members.tick("b", beat * 5_000 + 4_999), None);
        }
        assert_eq!(members.tick("b", 15_500), Some(down("b", 1)));
    }
}
