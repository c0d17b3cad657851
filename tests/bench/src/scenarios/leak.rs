//! What is left of much coming and going.

use std::time::{Duration, Instant};

use super::{Measured, Scale, mib};
use crate::door::{self, Entry};
use crate::fleet::Fleet;
use crate::node::{Agent, Node};
use crate::wire::client_frame;

/// Sockets that join and leave, each a topic of its own.
const SOCKETS: usize = 50;
/// Joins of one socket under way.
const WINDOW: u64 = 4;
/// Frames that answer a join and a leave: two replies, and the close of the topic.
const ANSWERS: u64 = 3;
/// Sockets that connect and hang up together.
const CONNECTS_AT_ONCE: usize = 500;
const PATIENCE: Duration = Duration::from_secs(60);

/// What there is at one moment.
struct Level {
    resident: f64,
    descriptors: f64,
    gauges: Vec<u64>,
}

const GAUGES: [&str; 6] = [
    "muster_sockets",
    "muster_joins",
    "muster_streams",
    "muster_stream_memory_bytes",
    "muster_agents_online",
    "muster_event_streams",
];

/// The node, and who comes and goes.
struct Traffic {
    node: Node,
    client: Agent,
    topics: Vec<String>,
    fleet: Fleet,
    refs: u64,
}

impl Traffic {
    fn new() -> Self {
        let mut node = Node::start(&[]);
        let (client, provider) = (node.agent(), node.agent());
        let tasks = node.tasks(&client, (0..SOCKETS).map(|_| &provider));
        // Half of them join a stream, half their own topic, which makes and ends a presence too.
        let own = format!("agent:{}", client.id);
        let topic = |(at, task)| if at % 2 == 0 { format!("task_stream:{task}") } else { own.clone() };
        let topics: Vec<String> = tasks.iter().enumerate().map(topic).collect();
        let sockets = door::open(node.address(), 0..SOCKETS, |_| Entry::agent(&client.key, ""));
        let fleet = Fleet::of(sockets);
        Self { node, client, topics, fleet, refs: 0 }
    }

    /// Joins and leaves; how many a second.
    fn joins(&mut self, count: usize) -> f64 {
        let (begun, first) = (Instant::now(), self.fleet.frames);
        let (count, mut sent) = (count as u64, 0);
        loop {
            let done = (self.fleet.frames - first) / ANSWERS;
            if done >= count {
                break;
            }
            while sent < count && sent - done < WINDOW * SOCKETS as u64 {
                let at = usize::try_from(sent).unwrap() % SOCKETS;
                self.refs += 1;
                let (n, topic) = (self.refs, &self.topics[at]);
                let mut frames = client_frame(&format!(r#"["{n}","{n}","{topic}","phx_join",{{}}]"#));
                frames.extend(client_frame(&format!(r#"["{n}","l{n}","{topic}","phx_leave",{{}}]"#)));
                self.fleet.send(at, &frames);
                sent += 1;
            }
            let before = self.fleet.frames;
            self.fleet.take(PATIENCE, |_, _, _| {});
            assert!(self.fleet.frames > before, "{done} of {sent} joins and leaves were answered");
        }
        count as f64 / begun.elapsed().as_secs_f64()
    }

    /// Connects, joins and hangs up.
    fn connects(&self, count: usize) -> f64 {
        let begun = Instant::now();
        let mut number = 0;
        while number < count {
            let next = (number + CONNECTS_AT_ONCE).min(count);
            let topics = &self.topics;
            drop(door::open(self.node.address(), number..next, |number| {
                Entry::agent(&self.client.key, &topics[number % SOCKETS])
            }));
            number = next;
        }
        count as f64 / begun.elapsed().as_secs_f64()
    }

    /// What there is once all that came has gone.
    fn level(&mut self, pause: Duration) -> Level {
        self.fleet.settle(Duration::from_millis(500));
        self.node.until("muster_sockets", SOCKETS as u64, PATIENCE);
        self.node.until("muster_joins", 0, PATIENCE);
        self.node.until("muster_agents_online", 0, PATIENCE);
        std::thread::sleep(pause);
        Level {
            gauges: GAUGES.iter().map(|gauge| self.node.metric(gauge)).collect(),
            resident: self.node.process.resident() as f64,
            descriptors: self.node.process.descriptors() as f64,
        }
    }
}

/// Joins and leaves, connects and hang-ups, and what the node holds afterwards, beside what it held after a quarter of them.
pub fn leak(scale: &Scale) -> Vec<Measured> {
    // In short a fiftieth.
    let (joins, connects) = if scale.part < 1.0 { (20_000, 2_000) } else { (1_000_000, 100_000) };
    let mut traffic = Traffic::new();
    traffic.joins(joins / 4);
    traffic.connects(connects / 4);
    let before = traffic.level(scale.pause);
    let joins_per_second = traffic.joins(joins);
    let connects_per_second = traffic.connects(connects);
    let after = traffic.level(scale.pause);
    assert_eq!(before.gauges, after.gauges, "{GAUGES:?}");
    let note = format!(
        "memory {:.3} of what it was ({:.0} MiB), descriptors {:.3} ({}), no gauge changed; {joins_per_second:.0} joins \
         and leaves a second, {connects_per_second:.0} connects",
        after.resident / before.resident,
        mib(before.resident),
        after.descriptors / before.descriptors,
        before.descriptors,
    );
    let name = format!("{joins} joins and leaves, {connects} connects");
    vec![Measured { name, note, ..Measured::default() }]
}
