//! Sockets as such: opening them, having them, losing them all.

use std::time::{Duration, Instant};

use muster_tests::raw;

use super::{Measured, Scale, mib};
use crate::door::{self, Entry};
use crate::fleet::Fleet;
use crate::node::{Agent, Node};
use crate::wire::FrameCounter;

/// How long the node may take to notice what its clients did.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node, and an agent with a task: what sockets need to join its stream.
struct House {
    node: Node,
    client: Agent,
    topic: String,
}

impl House {
    fn new() -> Self {
        let mut node = Node::start(&[]);
        let (client, provider) = (node.agent(), node.agent());
        let topic = format!("task_stream:{}", node.task(&client, &provider));
        Self { node, client, topic }
    }

    fn open(&self, numbers: std::ops::Range<usize>) -> Vec<std::net::TcpStream> {
        let opened =
            door::open(self.node.address(), numbers, |_| Entry::agent(&self.client.key, &self.topic));
        assert!(opened.iter().all(|socket| socket.take_error().unwrap().is_none()));
        opened
    }

    /// Both gauges: each socket, and its one join.
    fn has(&self, count: usize) {
        self.node.until("muster_sockets", count as u64, PATIENCE);
        self.node.until("muster_joins", count as u64, PATIENCE);
    }
}

/// Sockets that connect at a time.
const CROWD: usize = 64;

/// Sockets that connect and join, a crowd at a time.
pub fn connects(scale: &Scale) -> Vec<Measured> {
    let house = House::new();
    let count = scale.many.min(5_000);
    let (begun, server) = (Instant::now(), house.node.process.cpu());
    let mut sockets = Vec::new();
    while sockets.len() < count {
        let crowd = sockets.len()..count.min(sockets.len() + CROWD);
        let entry = |_| Entry::agent(&house.client.key, &house.topic);
        sockets.extend(door::open(house.node.address(), crowd, entry));
    }
    let cpu_ms = (house.node.process.cpu() - server) * 1_000.0 / sockets.len() as f64;
    let per_second = sockets.len() as f64 / begun.elapsed().as_secs_f64();
    let note = format!("{cpu_ms:.3} ms of CPU per socket; {per_second:.0} a second, {CROWD} at a time");
    vec![Measured { name: format!("connect and join, {count} sockets"), note, ..Measured::default() }]
}

/// What a joined socket weighs right after it was active and once it is quiet, as the slope between a few and many.
pub fn idle(scale: &Scale) -> Vec<Measured> {
    let house = House::new();
    let few = scale.many / 4;
    let beat = raw::text(r#"[null,"1","phoenix","heartbeat",{}]"#);
    let mut fleet = Fleet::of(Vec::new());
    let mut held = 0;
    let mut weigh = |count: usize| {
        for socket in house.open(held..count) {
            fleet.add(socket, FrameCounter::default());
        }
        held = count;
        let answers = fleet.frames + count as u64;
        for at in 0..count {
            fleet.send(at, &beat);
        }
        fleet.take_until(answers, PATIENCE);
        let active = house.node.process.resident();
        std::thread::sleep(scale.pause);
        house.has(count);
        (active as f64, house.node.process.resident() as f64)
    };
    let (low, high) = (weigh(few), weigh(scale.many));
    let each = |low: f64, high: f64| (high - low) / (scale.many - few) as f64 / 1_024.0;
    let note = format!(
        "{:.1} KiB per joined socket, {:.1} KiB right after a heartbeat, between {few} and {} of them",
        each(low.1, high.1),
        each(low.0, high.0),
        scale.many
    );
    vec![Measured { name: "idle sockets".into(), note, ..Measured::default() }]
}

/// As many sockets as can be: opened, held, dropped, and opened again.
pub fn storm(scale: &Scale) -> Vec<Measured> {
    let house = House::new();
    let mut rounds = Vec::new();
    for _ in 0..2 {
        let begun = Instant::now();
        let sockets = house.open(0..scale.many);
        rounds.push(begun.elapsed().as_secs_f64());
        house.has(scale.many);
        std::thread::sleep(scale.pause / 10);
        house.has(scale.many);
        drop(sockets);
        house.has(0);
    }
    let note = format!(
        "joined in {:.1} s, and once more in {:.1} s; peak {:.0} MiB",
        rounds[0],
        rounds[1],
        mib(house.node.process.peak() as f64)
    );
    let name = format!("storm of {} sockets, twice", scale.many);
    vec![Measured { name, note, ..Measured::default() }]
}

/// All clients lose their connections at once and come back at once.
pub fn reconnect(scale: &Scale) -> Vec<Measured> {
    let house = House::new();
    let count = scale.many.min(10_000);
    let sockets = house.open(0..count);
    std::thread::sleep(scale.pause);
    house.has(count);
    let before = house.node.process.resident();
    let (begun, server) = (Instant::now(), house.node.process.cpu());
    drop(sockets);
    let sockets = house.open(0..count);
    let back = begun.elapsed();
    let cpu = house.node.process.cpu() - server;
    std::thread::sleep(scale.pause);
    house.has(count);
    let after = house.node.process.resident();
    drop(sockets);
    let note = format!(
        "all back and joined in {:.1} s, {:.3} ms of CPU each; memory afterwards {:.3} of what it was ({:.0} MiB)",
        back.as_secs_f64(),
        cpu * 1_000.0 / count as f64,
        after as f64 / before as f64,
        mib(before as f64)
    );
    vec![Measured { name: format!("reconnect of {count} clients"), note, ..Measured::default() }]
}
