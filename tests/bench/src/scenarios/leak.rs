//! What is left of much coming and going.

use std::time::{Duration, Instant};

use muster_tests::raw;

use super::{Measured, Scale, mib};
use crate::door::{self, Entry};
use crate::fleet::Fleet;
use crate::node::{Agent, Node};
use crate::wire::ReplyCounter;

/// Sockets that join and leave, each a topic of its own.
const SOCKETS: usize = 200;
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
    fleet: Fleet<ReplyCounter>,
    /// Of the last join of each socket.
    join_refs: Vec<u64>,
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
        let fleet = Fleet::with(sockets.into_iter().map(|socket| (socket, ReplyCounter::default())));
        Self { node, client, topics, fleet, join_refs: vec![0; SOCKETS] }
    }

    /// Joins and leaves, each after the answer to the one before; how many pairs a second.
    fn joins(&mut self, count: usize) -> f64 {
        let begun = Instant::now();
        let (mut begun_pairs, mut done) = (0, 0);
        let mut is_joined = [false; SOCKETS];
        let mut free: Vec<usize> = (0..SOCKETS).collect();
        while done < count {
            for at in free.drain(..) {
                let (reference, event) = if is_joined[at] {
                    ("l", "phx_leave")
                } else if begun_pairs < count {
                    begun_pairs += 1;
                    self.join_refs[at] += 1;
                    ("j", "phx_join")
                } else {
                    continue;
                };
                let (n, topic) = (self.join_refs[at], &self.topics[at]);
                let text = format!(r#"["{n}","{reference}{n}","{topic}","{event}",{{}}]"#);
                self.fleet.send(at, &raw::text(&text));
            }
            let waiting = Instant::now();
            while free.is_empty() {
                self.fleet.take(Duration::from_millis(100), |at, replies, _| {
                    assert_eq!(replies, 1, "more answers than questions");
                    is_joined[at] = !is_joined[at];
                    done += usize::from(!is_joined[at]);
                    free.push(at);
                });
                assert!(waiting.elapsed() < PATIENCE, "{done} of {begun_pairs} joins and leaves are done");
            }
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
    // The warm-up has everything happen once that happens only once.
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
