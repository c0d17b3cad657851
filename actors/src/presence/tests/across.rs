//! Presence of several nodes: what is told on one of what happens on the others.

use std::collections::BTreeMap;

use muster_protocol::agent::{Agent, AgentStatus, Registration};
use muster_protocol::discovery::Query;
use muster_protocol::topic::{DISCOVERY, event};

use super::fleet::{Fleet, Node};
use super::*;
use crate::online::Appearance;

fn shown(n: u64) -> Shown {
    Shown { fields: Json::of(&serde_json::json!({ "n": n })), facts: Arc::default() }
}

fn agent(n: u8, status: AgentStatus) -> Agent {
    let json = format!(
        r#"{{"name":"Agent {n}","did":"did:x:{n}","capabilities":["code","c{n}"],"pricing_model":"fixed","base_price":"{n}"}}"#
    );
    let registration: Registration = serde_json::from_str(&json).unwrap();
    let now = Timestamp::from_unix_ms(1_000);
    let id = AgentId::new(now, [n; 10]);
    Agent { status, ..registration.into_agent(id, None, now, &Limits::default()).unwrap() }
}

fn appear(node: &Node, agent: &Agent) -> Appearance {
    node.online.appear(Arc::new(agent.clone()), true)
}

#[test]
fn what_is_tracked_on_one_node_is_told_on_all_and_once() {
    let mut fleet = Fleet::new(3);
    let early = fleet.nodes[0].presence.track("t", "early", shown(0));
    let mut watchers: Vec<_> = (0..3).map(|n| fleet.watch(n, "t")).collect();
    fleet.settle();
    let mut tracked: Vec<_> =
        (0..30).map(|n| fleet.nodes[1].presence.track("t", &format!("k{n}"), shown(n))).collect();
    fleet.settle();
    tracked[3].update(&shown(100));
    fleet.settle();
    tracked.truncate(10);
    // One of the same key on another node is a second meta.
    let second = fleet.nodes[2].presence.track("t", "k0", shown(0));
    fleet.settle();
    watchers.push(fleet.watch(0, "t"));
    drop(early);
    fleet.settle();
    for watcher in &mut watchers {
        watcher.sync();
        let keys = watcher.keys();
        assert_eq!((keys.len(), keys["k0"], keys["k3"]), (10, 2, 1), "{keys:?}");
    }
    assert!(
        watchers.iter().all(|watcher| watcher.held == watchers[0].held),
        "the same references everywhere"
    );
    drop(second);
    drop(tracked);
    fleet.settle();
    for watcher in &mut watchers {
        watcher.sync();
        assert!(watcher.held.is_empty());
    }
}

#[test]
fn a_join_and_a_leave_are_one_diff_on_another_node() {
    let mut fleet = Fleet::new(2);
    let mut watcher = fleet.watch(1, "t");
    fleet.settle();
    assert_eq!(watcher.sync(), ["presence_state"]);
    let tracked: Vec<_> =
        (0..200).map(|n| fleet.nodes[0].presence.track("t", &format!("k{n}"), shown(n))).collect();
    fleet.settle();
    assert_eq!(watcher.sync(), ["presence_diff"]);
    assert_eq!(watcher.held.len(), 200);
    drop(tracked);
    fleet.settle();
    assert_eq!(watcher.sync(), ["presence_diff"]);
    assert!(watcher.held.is_empty());
}

#[test]
fn a_node_that_is_gone_takes_its_entries_in_one_diff_for_each_topic() {
    let mut fleet = Fleet::new(3);
    let mut watchers: Vec<_> = [(1, "t"), (1, "u"), (2, "t")].map(|(n, topic)| fleet.watch(n, topic)).into();
    let stays = fleet.nodes[1].presence.track("t", "stays", shown(0));
    let track = |n: u64, topic: &str| fleet.nodes[0].presence.track(topic, &format!("k{n}"), shown(n));
    let tracked: Vec<_> = (0..100).flat_map(|n| [track(n, "t"), track(n, "u")]).collect();
    fleet.settle();
    let held: Vec<_> = watchers
        .iter_mut()
        .map(|watcher| {
            watcher.sync();
            watcher.held.len()
        })
        .collect();
    assert_eq!(held, [101, 100, 101]);
    let gone = fleet.kill(0);
    // A flush after every single command shows that it is one.
    fleet.nodes.iter().for_each(|node| node.work_singly(|| ()));
    fleet.settle();
    for (watcher, left) in watchers.iter_mut().zip([1, 0, 1]) {
        assert_eq!(watcher.sync(), ["presence_diff"]);
        assert_eq!(watcher.held.len(), left);
    }
    // It starts again, and is another one: nothing of the old one comes back.
    fleet.start(0, 2);
    fleet.settle();
    fleet.second();
    fleet.settle();
    assert!(watchers.iter_mut().all(|watcher| watcher.sync().is_empty()));
    drop((tracked, gone, stays));
}

#[test]
fn what_was_lost_is_repaired_at_the_next_digest_and_at_once_after_a_reset() {
    for reset in [false, true] {
        let mut fleet = Fleet::new(2);
        let mut watcher = fleet.watch(1, "t");
        fleet.settle();
        let mut tracked = vec![fleet.nodes[0].presence.track("t", "first", shown(0))];
        fleet.nodes[0].work();
        assert_eq!(fleet.lose(), 1);
        fleet.settle();
        watcher.sync();
        assert!(watcher.held.is_empty());
        if reset {
            let [a, b] = [fleet.nodes[0].me.clone(), fleet.nodes[1].me.clone()];
            fleet.nodes[0].presence.node_reset(b);
            fleet.nodes[1].presence.node_reset(a);
        } else {
            fleet.second();
        }
        fleet.settle();
        watcher.sync();
        assert_eq!(watcher.held.len(), 1);
        // A later change that arrives shows the gap before it by itself.
        tracked.push(fleet.nodes[0].presence.track("t", "second", shown(0)));
        fleet.nodes[0].work();
        assert_eq!(fleet.lose(), 1);
        tracked.push(fleet.nodes[0].presence.track("t", "third", shown(0)));
        fleet.settle();
        watcher.sync();
        assert_eq!(watcher.held.len(), 3);
    }
}

#[test]
fn nodes_that_lost_each_other_come_together_again() {
    let mut fleet = Fleet::new(2);
    let mut watchers = [fleet.watch(0, "t"), fleet.watch(1, "t")];
    let [a, b] = [fleet.nodes[0].me.clone(), fleet.nodes[1].me.clone()];
    let first = fleet.nodes[0].presence.track("t", "first", shown(0));
    fleet.settle();
    fleet.cut(&a, &b);
    fleet.settle();
    watchers.iter_mut().for_each(|watcher| drop(watcher.sync()));
    assert_eq!([watchers[0].held.len(), watchers[1].held.len()], [1, 0]);
    let second = fleet.nodes[1].presence.track("t", "second", shown(0));
    fleet.settle();
    fleet.link(&a, &b);
    fleet.settle();
    watchers.iter_mut().for_each(|watcher| drop(watcher.sync()));
    assert_eq!([watchers[0].held.len(), watchers[1].held.len()], [2, 2]);
    drop((first, second));
}

#[test]
fn an_event_about_an_agent_is_told_on_all_nodes_after_its_change() {
    let mut fleet = Fleet::new(2);
    let mut tracked = fleet.nodes[0].presence.track("t", "k", shown(0));
    let mut watchers = [fleet.watch(0, "t"), fleet.watch(1, "t")];
    fleet.settle();
    watchers.iter_mut().for_each(|watcher| drop(watcher.sync()));
    tracked.update(&shown(1));
    fleet.nodes[0].presence.tell("t", "k", event::AGENT_UPDATED, Json::empty_object());
    fleet.settle();
    assert_eq!(watchers[1].sync(), ["presence_diff", event::AGENT_UPDATED]);
    assert_eq!(watchers[0].sync().len(), 2);
    // The change is lost, the event is not: it waits.
    tracked.update(&shown(2));
    fleet.nodes[0].work();
    assert_eq!(fleet.lose(), 1);
    fleet.nodes[0].presence.tell("t", "k", event::AGENT_UPDATED, Json::empty_object());
    fleet.nodes[0].work();
    fleet.deliver();
    fleet.nodes[1].work();
    assert!(watchers[1].sync().is_empty());
    fleet.second();
    fleet.settle();
    assert_eq!(watchers[1].sync(), ["presence_diff", event::AGENT_UPDATED]);
}

#[test]
fn what_waits_is_bounded_and_what_is_dropped_comes_again() {
    let limits =
        Limits { presence_inbox_bytes_max: 3_000, presence_piece_bytes_max: 1_000, ..Limits::default() };
    let mut fleet = Fleet::with(2, limits);
    let mut watcher = fleet.watch(1, "t");
    fleet.settle();
    let tracked: Vec<_> =
        (0..100).map(|n| fleet.nodes[0].presence.track("t", &format!("k{n}"), shown(n))).collect();
    fleet.nodes[0].work();
    fleet.deliver();
    assert!(fleet.nodes[1].metric("inbox") > 0);
    assert!(fleet.nodes[1].presence.said_bytes.load(Ordering::Relaxed) <= 3_000);
    for _ in 0..40 {
        fleet.settle();
        fleet.second();
    }
    fleet.settle();
    watcher.sync();
    assert_eq!(watcher.held.len(), 100);
    assert_eq!(fleet.nodes[1].presence.said_bytes.load(Ordering::Relaxed), 0);
    drop(tracked);
}

/// Topics that nobody here watches take little; whoever begins to watch one sees all that is on it.
#[test]
fn a_topic_sleeps_while_nobody_watches_it() {
    let mut fleet = Fleet::new(2);
    let track = |topic: String| fleet.nodes[0].presence.track(&topic, "k", shown(0));
    let mut tracked: Vec<_> = (0..100).map(|n| track(format!("topic {n}"))).collect();
    tracked.extend((0..10).map(|_| track("many".into())));
    let count = |fleet: &Fleet| fleet.nodes[1].presence.state.lock().topics.len();
    fleet.settle();
    assert_eq!(count(&fleet), 1, "the one with many");
    let mut watchers = [fleet.watch(1, "topic 5"), fleet.watch(1, "many")];
    fleet.settle();
    assert_eq!(count(&fleet), 2);
    watchers.iter_mut().for_each(|watcher| drop(watcher.sync()));
    assert_eq!([watchers[0].held.len(), watchers[1].held.len()], [1, 10]);
    tracked[5].update(&shown(1));
    tracked[6].update(&shown(1));
    fleet.settle();
    assert_eq!(watchers[0].sync(), ["presence_diff"]);
    drop(watchers);
    let own = fleet.nodes[1].presence.track("topic 5", "k", shown(2));
    fleet.settle();
    assert_eq!(count(&fleet), 2, "somebody of this node is on it");
    drop(own);
    fleet.settle();
    assert_eq!(count(&fleet), 1);
    let mut watchers = [5, 6, 7].map(|n| fleet.watch(1, &format!("topic {n}")));
    fleet.settle();
    for watcher in &mut watchers {
        watcher.sync();
        assert_eq!(watcher.held.len(), 1);
    }
    drop((watchers, tracked));
    fleet.settle();
    assert_eq!(count(&fleet), 0);
}

#[test]
fn a_peer_shows_no_more_entries_than_it_may() {
    let limits = Limits { presence_entries_per_peer_max: 10, ..Limits::default() };
    let mut fleet = Fleet::with(2, limits);
    let mut watcher = fleet.watch(1, "t");
    let mut tracked: Vec<_> =
        (0..15).map(|n| fleet.nodes[0].presence.track("t", &format!("k{n}"), shown(n))).collect();
    fleet.settle();
    watcher.sync();
    assert_eq!((watcher.held.len(), fleet.nodes[1].metric("entries")), (10, 5));
    assert_eq!(fleet.nodes[1].presence.metrics.presence_remote_entries.get(), 10);
    tracked.drain(..8);
    fleet.settle();
    fleet.second();
    fleet.settle();
    watcher.sync();
    assert_eq!(watcher.held.len(), 7);
}

#[test]
fn being_online_is_a_matter_of_all_nodes() {
    let fleet = Fleet::new(2);
    let [a, b] = [&fleet.nodes[0], &fleet.nodes[1]];
    let (seen, unpublished) = (agent(1, AgentStatus::Active), agent(2, AgentStatus::Draft));
    let here = appear(a, &seen);
    let there = appear(b, &seen);
    let draft = appear(a, &unpublished);
    fleet.settle();
    for node in [a, b] {
        assert!(node.online.contains(seen.id) && node.online.contains(unpublished.id));
        assert_eq!(node.online.ids(), HashSet::from([seen.id, unpublished.id]));
        let query = |text: &str| Query::parse(text).unwrap();
        let found = node.online.find(&query(r#"{"capability":"c1"}"#), &HashSet::new(), 10);
        assert_eq!(
            found.iter().map(|found| found.id).collect::<Vec<_>>(),
            [seen.id],
            "once, if online twice"
        );
        assert_eq!(
            (found[0].name.as_str(), found[0].did.as_str(), found[0].online),
            ("Agent 1", "did:x:1", true)
        );
        let found = node.online.find(&query(r#"{"filters":{"max_price":"0.5"}}"#), &HashSet::new(), 10);
        assert!(found.is_empty());
        assert!(
            node.online.find(&query("{}"), &HashSet::from([seen.id]), 10).is_empty(),
            "nor who is not published"
        );
    }
    assert!(a.online.is_here(unpublished.id) && !b.online.is_here(unpublished.id));
    assert_eq!(b.presence.metrics.agents_online.get(), 1, "the metric is of this node");
    // It leaves here, and is still there: then it is not gone.
    drop(here);
    fleet.settle();
    assert!(a.online.contains(seen.id));
    assert!(a.online.take_gone().is_empty());
    let found = a.online.find(&Query::default(), &HashSet::new(), 10);
    assert_eq!(found.len(), 1, "found by what the other node says");
    drop(there);
    drop(draft);
    fleet.settle();
    assert!([a, b].iter().all(|node| node.online.ids().is_empty()));
    assert_eq!(b.online.take_gone(), HashSet::from([seen.id]));
    assert_eq!(a.online.take_gone(), HashSet::from([unpublished.id]));
}

#[test]
fn publishing_an_agent_does_not_take_it_offline_in_between() {
    let mut fleet = Fleet::new(2);
    let draft = agent(1, AgentStatus::Draft);
    let mut watcher = fleet.watch(1, DISCOVERY);
    let appearance = appear(&fleet.nodes[0], &draft);
    fleet.settle();
    watcher.sync();
    assert!(watcher.held.is_empty());
    for (status, shown, ms) in [(AgentStatus::Active, 1, 1), (AgentStatus::Inactive, 0, 2)] {
        let changed = Agent { status, updated_at: draft.updated_at.plus_ms(ms), ..draft.clone() };
        fleet.nodes[0].online.refresh(&Arc::new(changed));
        loop {
            let look = || assert!(fleet.nodes[1].online.contains(draft.id));
            fleet.nodes.iter().for_each(|node| node.work_singly(look));
            if !fleet.deliver() {
                break;
            }
        }
        watcher.sync();
        assert_eq!(watcher.held.len(), shown);
    }
    drop(appearance);
}

#[test]
fn agents_of_a_node_that_is_gone_were_last_seen_by_one_of_the_others() {
    let mut fleet = Fleet::new(3);
    let agents: Vec<_> = (1..6).map(|n| agent(n, AgentStatus::Active)).collect();
    let appearances: Vec<_> = agents.iter().map(|agent| appear(&fleet.nodes[0], agent)).collect();
    // One of them is on another node too.
    let other = appear(&fleet.nodes[2], &agents[0]);
    fleet.settle();
    let gone = fleet.kill(0);
    fleet.settle();
    let expected: HashSet<_> = agents[1..].iter().map(|agent| agent.id).collect();
    let noted: Vec<_> = fleet.nodes.iter().map(|node| node.online.take_gone()).collect();
    assert_eq!(noted, [expected, HashSet::new()]);
    assert!(fleet.nodes.iter().all(|node| node.online.ids() == HashSet::from([agents[0].id])));
    drop((appearances, gone, other));
}

#[test]
fn a_change_made_on_one_node_shows_in_the_metas_of_another() {
    let mut fleet = Fleet::new(2);
    let before = agent(1, AgentStatus::Active);
    let appearance = appear(&fleet.nodes[1], &before);
    let mut watcher = fleet.watch(0, DISCOVERY);
    fleet.settle();
    watcher.sync();
    let renamed = Agent { name: "New".into(), updated_at: before.updated_at.plus_ms(5), ..before.clone() };
    let [a, b] = [&fleet.nodes[0].online, &fleet.nodes[1].online];
    a.refresh(&Arc::new(renamed.clone()));
    assert!(!a.changed_elsewhere(before.id), "it has no connection here");
    let changes = b.changes();
    assert!(b.changed_elsewhere(before.id));
    assert_ne!(b.changes(), changes, "who reads a record meanwhile reads it again");
    b.refresh(&Arc::new(renamed));
    // An older reading comes late.
    b.refresh(&Arc::new(before.clone()));
    fleet.settle();
    assert_eq!(watcher.sync(), ["presence_diff"]);
    let found = fleet.nodes[0].online.find(&Query::default(), &HashSet::new(), 10);
    assert_eq!((found.len(), found[0].name.as_str()), (1, "New"));
    drop(appearance);
}

/// SplitMix64.
fn roll(state: &mut u64, sides: u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % sides
}

/// Whatever happens, a watcher is told of each meta once, and in the end of all there are.
#[test]
fn every_watcher_of_every_node_converges() {
    for seed in 0..60 {
        println!("seed {seed}");
        let mut dice = seed;
        let mut fleet = Fleet::new(3);
        let keys: Vec<NodeKey> = fleet.nodes.iter().map(|node| node.me.clone()).collect();
        let mut tracked: Vec<(usize, Tracked)> = Vec::new();
        let mut watchers = Vec::new();
        let topic = |which: usize| ["t", "few"][usize::from(which.is_multiple_of(4))];
        for step in 0..150 {
            let n = usize::try_from(roll(&mut dice, 3)).unwrap();
            let which = usize::try_from(roll(&mut dice, 1_000)).unwrap();
            match roll(&mut dice, 24) {
                0..=6 => {
                    let key = format!("k{}", which % 9);
                    tracked.push((n, fleet.nodes[n].presence.track(topic(which), &key, shown(step))));
                }
                7..=8 if !tracked.is_empty() => {
                    let which = which % tracked.len();
                    tracked[which].1.update(&shown(step));
                }
                9..=11 if !tracked.is_empty() => drop(tracked.remove(which % tracked.len())),
                12..=14 => fleet.nodes[n].work(),
                15..=18 => drop(fleet.deliver()),
                19 => fleet.nodes[n].presence.every_second(),
                20 => drop(fleet.lose()),
                21 if which.is_multiple_of(3) && !watchers.is_empty() => {
                    drop(watchers.remove(which % watchers.len()))
                }
                21 => watchers.push(fleet.watch(n, topic(which))),
                22 => fleet.cut(&keys[n], &keys[(n + 1) % 3]),
                23 => fleet.link(&keys[n], &keys[(n + 1) % 3]),
                _ => {}
            }
            watchers.iter_mut().for_each(|watcher| drop(watcher.sync()));
        }
        (0..3).for_each(|n| fleet.link(&keys[n], &keys[(n + 1) % 3]));
        for _ in 0..3 {
            fleet.second();
            fleet.settle();
        }
        for watcher in &mut watchers {
            watcher.sync();
            let there = tracked.iter().filter(|(_, tracked)| tracked.topic == watcher.watching.topic);
            let mut keys = BTreeMap::<&str, usize>::new();
            there.for_each(|(_, tracked)| *keys.entry(tracked.key.as_str()).or_default() += 1);
            assert_eq!(watcher.keys(), keys);
        }
    }
}
