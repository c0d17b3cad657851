//! How soon one node knows of the agents of others: when they come, when they leave, and when their node goes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::door::{self, Entry};
use crate::fleet::Fleet;
use crate::node::Agent;
use crate::nodes::{Carried, Nodes};
use crate::roster::Roster;
use crate::scenarios::{Measured, Scale};
use crate::wire::FrameCounter;

const TOPIC: &str = "agents:discovery";
/// Agents on the first node.
const MEMBERS: usize = 1_000;
/// Agents on the third node.
const FEW: usize = 100;
/// Joins a second.
const JOINS_PER_SECOND: u32 = 200;
/// Agents that leave at once.
const LEAVING: usize = 50;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// One who watches everybody on each of two nodes: the first, and the second.
struct Watchers(Fleet<Roster>);

impl Watchers {
    fn open(nodes: &Nodes, agents: &[Agent]) -> Self {
        let watchers = agents.iter().enumerate().map(|(at, agent)| {
            let to = nodes.nodes[at].address();
            let stream = door::open(to, at..at + 1, |_| entry(agent, "")).remove(0);
            (stream, Roster::checked())
        });
        let mut fleet = Fleet::with(watchers);
        for at in 0..agents.len() {
            fleet.send(at, &Entry { topic: TOPIC, payload: "{}", ..Entry::default() }.join_frame());
        }
        Self(fleet)
    }

    /// Takes until each that is asked knows of so many; how long each took, from `since`.
    fn until(&mut self, asked: &[usize], present: usize, since: Instant) -> Vec<Duration> {
        let mut took = vec![None; 2];
        while asked.iter().any(|at| took[*at].is_none()) {
            for (at, roster) in self.0.counters().enumerate() {
                if roster.known == present && took[at].is_none() {
                    took[at] = Some(since.elapsed());
                }
            }
            self.0.take(Duration::from_millis(1), |_, _, _| {});
            let known: Vec<usize> = self.0.counters().map(|roster| roster.known).collect();
            assert!(since.elapsed() < PATIENCE, "they know of {known:?}, not of {present}");
        }
        took.into_iter().flatten().collect()
    }
}

fn entry<'a>(agent: &'a Agent, topic: &'a str) -> Entry<'a> {
    Entry { mount: "/socket", key: &agent.key, topic, payload: r#"{"presence":"none"}"# }
}

/// Three nodes: agents come to the first, of whom some leave; then the third goes, by its own word, and the first, by none.
pub fn presence(_: &Scale) -> Vec<Measured> {
    // As soon as its sockets are closed a node that is told to end does.
    let mut nodes = Nodes::start(3, &Carried::Directly, &["drain.timeout_ms=100"]);
    let members = nodes.nodes[0].agents(MEMBERS);
    let few = nodes.nodes[0].agents(FEW);
    let watching = nodes.nodes[0].agents(2);
    let mut watchers = Watchers::open(&nodes, &watching);
    watchers.until(&[0, 1], 2, Instant::now());

    let streams = door::open(nodes.nodes[0].address(), 0..MEMBERS, |number| entry(&members[number], ""));
    let mut crowd: Fleet<FrameCounter> = Fleet::of(streams);
    let (begun, cpu, bytes) = (Instant::now(), nodes.cpu(), nodes.bytes_between());
    for (number, member) in members.iter().enumerate() {
        let due = begun + Duration::from_secs(1) * u32::try_from(number).unwrap() / JOINS_PER_SECOND;
        while Instant::now() < due {
            watchers.0.take(Duration::from_millis(1), |_, _, _| {});
        }
        crowd.send(number, &entry(member, TOPIC).join_frame());
    }
    let joined = watchers.until(&[0, 1], MEMBERS + 2, Instant::now());
    let cpu: Vec<f64> = nodes.cpu().iter().zip(cpu).map(|(now, before)| now - before).collect();
    let bytes = nodes.bytes_between() - bytes;
    let mut there: BTreeSet<&str> = members.iter().chain(&watching).map(|agent| agent.id.as_str()).collect();
    check(&watchers, &there, &[0, 1]);

    for (number, member) in members.iter().enumerate().take(LEAVING) {
        crowd.drop_one(number);
        there.remove(member.id.as_str());
    }
    let left = watchers.until(&[0, 1], MEMBERS + 2 - LEAVING, Instant::now());
    check(&watchers, &there, &[0, 1]);

    let third = nodes.nodes[2].address();
    let _held = door::open(third, 0..FEW, |number| entry(&few[number], TOPIC));
    watchers.until(&[0, 1], MEMBERS + 2 - LEAVING + FEW, Instant::now());
    nodes.nodes[2].process.terminate();
    let drained = watchers.until(&[0, 1], MEMBERS + 2 - LEAVING, Instant::now());
    check(&watchers, &there, &[0, 1]);

    // Nothing is taken of what the first node has said.
    nodes.nodes[0].process.kill();
    let killed = Instant::now();
    watchers.0.drop_one(0);
    let gone = watchers.until_gone(killed);
    let alone = BTreeSet::from([watching[1].id.as_str()]);
    check(&watchers, &alone, &[0]);

    let ms = |took: &Duration| took.as_secs_f64() * 1e3;
    let row = |name: String, note: String| Measured { name, note, ..Measured::default() };
    vec![
        row(
            format!("3 nodes, presence: {MEMBERS} agents join on a, {JOINS_PER_SECOND} a second"),
            format!(
                "all known on a {:.0} ms, on b {:.0} ms after the last join; {:.0} bytes between nodes for each; CPU: a {:.2} \
                 s, b {:.2} s, c {:.2} s",
                ms(&joined[0]),
                ms(&joined[1]),
                bytes as f64 / MEMBERS as f64,
                cpu[0],
                cpu[1],
                cpu[2],
            ),
        ),
        row(
            format!("3 nodes, presence: {LEAVING} agents leave a at once"),
            format!("known on a {:.0} ms, on b {:.0} ms later", ms(&left[0]), ms(&left[1])),
        ),
        row(
            format!("3 nodes, presence: c is told to end, with {FEW} agents"),
            format!("they are gone on a {:.0} ms, on b {:.0} ms later", ms(&drained[0]), ms(&drained[1])),
        ),
        row(
            "3 nodes, presence: a is killed".into(),
            format!("its agents are gone on b {:.0} ms later", ms(&gone)),
        ),
    ]
}

fn check(watchers: &Watchers, there: &BTreeSet<&str>, asked: &[usize]) {
    let rosters: Vec<&Roster> = watchers.0.counters().collect();
    assert!(asked.iter().all(|at| rosters[*at].check(there)), "what a watcher was told was not kept");
}

impl Watchers {
    /// Takes until the one that is left knows of itself alone.
    fn until_gone(&mut self, since: Instant) -> Duration {
        while self.0.counters().any(|roster| roster.known != 1) {
            self.0.take(Duration::from_millis(1), |_, _, _| {});
            assert!(since.elapsed() < PATIENCE, "agents of a node that was killed are still there");
        }
        since.elapsed()
    }
}
