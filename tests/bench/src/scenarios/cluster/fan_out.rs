//! One stream, and many readers of it on one node: emitted there, or on another node.

use std::time::Duration;

use super::{Run, TURNS, rows, run};
use crate::door::{self, Entry};
use crate::fleet::Fleet;
use crate::node::Agent;
use crate::nodes::{Carried, Nodes};
use crate::order::Ordered;
use crate::scenarios::{CONTENT, Measured, Scale, chunk_frame, drive};

const READERS: usize = 1_000;
/// The node of the readers.
const READING: usize = 1;

/// See the module: with two nodes, and with three.
pub fn fan_out(scale: &Scale) -> Vec<Measured> {
    [2, 3].into_iter().flat_map(|count| among(scale, count)).collect()
}

fn among(scale: &Scale, count: usize) -> Vec<Measured> {
    let mut nodes = Nodes::start(count, &Carried::Directly, &["stream.ack=memory"]);
    let (client, provider) = (nodes.nodes[0].agent(), nodes.nodes[0].agent());
    // A stream for each node that may own one.
    let tasks: Vec<String> =
        (0..count).map(|owner| super::task_of(&nodes, owner, &client, &provider)).collect();
    let to = nodes.nodes[READING].address();
    let topics: Vec<String> = tasks.iter().map(|task| format!("task_stream:{task}")).collect();
    let mut readers = door::open(to, 0..READERS, |_| Entry::agent(&client.key, &topics[0]));
    for topic in &topics[1..] {
        door::join_also(&mut readers, topic);
    }
    let own_topic = format!("agent:{}", provider.id);
    let emitters =
        nodes.nodes.iter().enumerate().map(|(at, node)| {
            door::join(node.address(), READERS + at, &Entry::agent(&provider.key, &own_topic))
        });
    let emitters: Vec<_> = emitters.map(|stream| (stream, Ordered::emitter())).collect();
    let mut fleet =
        Fleet::with(readers.into_iter().map(|stream| (stream, Ordered::reader())).chain(emitters));
    fleet.settle(Duration::from_millis(300));

    // Where it is emitted, and who owns the stream.
    let loads: Vec<(usize, usize)> = [(READING, READING), (0, READING), (0, 0), (0, 2)]
        .into_iter()
        .filter(|load| load.1 < count)
        .collect();
    let mut all = Vec::new();
    for window in [1, 16] {
        let turns = (0..TURNS).map(|_| {
            let runs = loads.iter().map(|&(from, owner)| {
                let load = Load { from, task: &tasks[owner], provider: &provider, window };
                load.run(&nodes, &mut fleet, scale.time / 3)
            });
            runs.collect()
        });
        let turns: Vec<Vec<Run>> = turns.collect();
        let what = format!("{count} nodes, fan-out to {READERS} on b, {window} in flight");
        let names: Vec<String> = loads
            .iter()
            .map(|&(from, owner)| {
                let name = crate::nodes::NAMES;
                format!("{what}: emitted on {}, owned by {}", name[from], name[owner])
            })
            .collect();
        all.extend(rows(&names, turns));
    }
    all
}

struct Load<'a> {
    from: usize,
    task: &'a str,
    provider: &'a Agent,
    window: u64,
}

impl Load<'_> {
    fn run(&self, nodes: &Nodes, fleet: &mut Fleet<Ordered>, time: Duration) -> Run {
        // The producer's acknowledgement counts as a delivery.
        let each = READERS as u64 + 1;
        run(nodes, each, || {
            drive(fleet, (each, self.window), time, |fleet, n| {
                let chunk = chunk_frame(n, &self.provider.id, self.task, CONTENT);
                fleet.send(READERS + self.from, &chunk);
            })
        })
    }
}
