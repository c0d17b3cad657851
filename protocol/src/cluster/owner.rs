//! Which node a task stream belongs to: the one with the highest score for it among those that are up (rendezvous
//! hashing). A node that comes or goes moves only the streams that go to it or come from it. Nothing rests on all nodes
//! agreeing: two that both think they own a stream are told apart by the store's epochs.

use super::hash::hash;
use super::{Member, NodeKey};
use crate::ids::TaskId;

/// The owner of a task's stream among these nodes. Those that not all hear only count when there are no others, and those
/// that are going away after these.
#[must_use]
pub fn owner_of(task: TaskId, nodes: &[Member]) -> Option<&NodeKey> {
    let rank = |member: &Member| (!member.draining, member.central);
    let first = nodes.iter().map(rank).max()?;
    let candidates = nodes.iter().filter(|member| rank(member) == first);
    candidates
        .max_by_key(|member| (score(&member.key.name, task), &member.key.name))
        .map(|member| &member.key)
}

/// The same at every version: nodes of two versions run side by side. By the node's name, not its incarnation, so that a
/// node that starts again has the streams it had.
fn score(name: &str, task: TaskId) -> u64 {
    hash(name.bytes().chain([0xff]).chain(task.as_bytes().iter().copied()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    fn member(name: &str, draining: bool) -> Member {
        Member { key: NodeKey { name: name.into(), incarnation: 1 }, draining, suspect: false, central: true }
    }

    fn task(n: u32) -> TaskId {
        let mut entropy = [0; 10];
        entropy[6..].copy_from_slice(&n.to_be_bytes());
        TaskId::new(Timestamp::from_unix_ms(1_764_000_000_000), entropy)
    }

    #[test]
    fn streams_are_spread_evenly_and_only_those_of_a_node_that_goes_move() {
        let nodes: Vec<_> = (0..5).map(|n| member(&format!("muster-{n}"), false)).collect();
        let mut counts = std::collections::HashMap::<_, u32>::new();
        for n in 0..10_000 {
            let owner = owner_of(task(n), &nodes).unwrap();
            *counts.entry(owner.name.clone()).or_default() += 1;
            let without: Vec<_> = nodes.iter().filter(|node| node.key.name != "muster-3").cloned().collect();
            let next = owner_of(task(n), &without).unwrap();
            assert!(owner.name == "muster-3" || owner == next);
        }
        assert!(counts.values().all(|count| (1_700..2_300).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_node_going_away_takes_nothing_while_there_is_another() {
        let nodes = [member("a", true), member("b", false)];
        assert!((0..100).all(|n| owner_of(task(n), &nodes).unwrap().name == "b"));
        assert_eq!(owner_of(task(1), &nodes[..1]).unwrap().name, "a");
        assert_eq!(owner_of(task(1), &[]), None);
    }

    #[test]
    fn the_score_is_the_same_at_every_version() {
        assert_eq!(score("muster-0", TaskId::from_bytes([0; 16])), FIXED);
    }

    /// What version 0.1.0 computed.
    const FIXED: u64 = 11_375_039_162_614_763_010;
}
