//! What a message costs all nodes together when one of them has a reader, and more and more others have none.

use std::time::Duration;

use super::relay::{Chunks, Publications};
use super::{Run, TURNS};
use crate::node::Agent;
use crate::nodes::{Carried, Nodes};
use crate::scenarios::{Measured, Scale};

/// Connections that publish at once, and chunks in flight.
const AT_ONCE: usize = 16;

/// Nodes of one number, and the loads on them.
struct Stage {
    nodes: Nodes,
    provider: Agent,
    chunks: Chunks,
    publications: Publications,
    runs: [Vec<Run>; 2],
    /// Seconds of CPU, and bytes between the nodes, each second when there is nothing to do.
    idle: (f64, f64),
}

impl Stage {
    fn new(count: usize) -> Self {
        let mut nodes = Nodes::start(count, &Carried::Directly, &["stream.ack=memory"]);
        let (client, provider, other) =
            (nodes.nodes[0].agent(), nodes.nodes[0].agent(), nodes.nodes[0].agent());
        let reader = 1.min(count - 1);
        let chunks = Chunks::new(&nodes, (&client, &provider), reader);
        let publications = Publications::new(&nodes, (&client, &other), reader, AT_ONCE);
        Self { nodes, provider, chunks, publications, runs: [Vec::new(), Vec::new()], idle: (0.0, 0.0) }
    }

    fn rest(&mut self, time: Duration) {
        let (cpu, bytes) = (self.nodes.cpu(), self.nodes.bytes_between());
        std::thread::sleep(time);
        let spent = self.nodes.cpu().iter().sum::<f64>() - cpu.iter().sum::<f64>();
        let bytes = (self.nodes.bytes_between() - bytes) as f64;
        self.idle = (spent / time.as_secs_f64(), bytes / time.as_secs_f64());
    }
}

/// From one node to five; the reader is on the second. Two are what others are compared with.
pub fn growth(scale: &Scale) -> Vec<Measured> {
    let mut stages: Vec<Stage> = [2, 1, 3, 4, 5].into_iter().map(Stage::new).collect();
    for stage in &mut stages {
        stage.rest(scale.time / 2);
    }
    for _ in 0..TURNS {
        for Stage { nodes, provider, chunks, publications, runs, .. } in &mut stages {
            runs[0].push(chunks.run(nodes, provider, AT_ONCE as u64, scale.time / 3));
            runs[1].push(publications.run(nodes, scale.time / 3));
        }
    }
    let mut rows = Vec::new();
    for (kind, what) in ["chunks", "publications"].into_iter().enumerate() {
        let cpu = |run: &Run| run.cpu.iter().sum::<f64>() / run.deliveries as f64;
        for at in [1, 0, 2, 3, 4] {
            // The median by what it cost beside two nodes in the same turn.
            let mut order: Vec<usize> = (0..TURNS).collect();
            let ratio = |turn: usize| cpu(&stages[at].runs[kind][turn]) / cpu(&stages[0].runs[kind][turn]);
            order.sort_by(|a, b| ratio(*a).total_cmp(&ratio(*b)));
            let turn = order[TURNS / 2];
            let (run, two, idle) =
                (&stages[at].runs[kind][turn], &stages[0].runs[kind][turn], stages[at].idle);
            let of_two = if two.bytes_each > 0.0 { run.bytes_each / two.bytes_each } else { 0.0 };
            rows.push(Measured {
                name: format!(
                    "{} nodes of which one wants it, {AT_ONCE} {what} at once",
                    stages[at].nodes.nodes.len()
                ),
                per_second: run.measured.per_second,
                cpu_per_million: run.measured.cpu_per_million,
                p50_ms: run.measured.p50_ms,
                p99_ms: run.measured.p99_ms,
                generator_cpu: run.measured.generator_cpu,
                note: format!(
                    "CPU of all {:.2} and bytes {of_two:.2} of what they are with 2 nodes; {:.0} bytes a message; idle: {:.1} \
                     ms of CPU and {:.0} bytes each second; CPU s/million by node: {}",
                    ratio(turn),
                    run.bytes_each,
                    idle.0 * 1e3,
                    idle.1,
                    run.cpu_by_node(),
                ),
                ..Measured::default()
            });
        }
    }
    rows
}
