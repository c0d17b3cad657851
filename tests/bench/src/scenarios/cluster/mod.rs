//! What it costs that clients are on several nodes: each load once with all of them on one node, and once across, on the same
//! nodes and in turns.
//!
//! # Layout
//! * this file: how a load is measured
//! * [`fan_out`], [`streams`], [`relay`]: chunks and publications
//! * [`growth`]: what further nodes cost that want nothing
//! * [`presence`]: who is told of whom, and how soon

pub mod fan_out;
pub mod growth;
pub mod presence;
pub mod relay;
pub mod streams;

use std::fmt::Write as _;
use std::time::Duration;

use super::{Measured, measure};
use crate::fleet::Latencies;
use crate::node::{Agent, cpu_of};
use crate::nodes::{NAMES, Nodes};

/// Turns of each load; the median counts.
const TURNS: usize = 3;

/// A task whose stream belongs to this node.
fn task_of(nodes: &Nodes, owner: usize, client: &Agent, provider: &Agent) -> String {
    loop {
        let task = nodes.nodes[0].task(client, provider);
        if nodes.owner(&task) == owner {
            return task;
        }
    }
}

/// What a load took.
pub struct Run {
    measured: Measured,
    /// Deliveries.
    deliveries: u64,
    /// Bytes between the nodes for each message, TCP's own not counted.
    bytes_each: f64,
    /// Seconds of CPU of each node.
    cpu: Vec<f64>,
}

/// Measures a load, which gives its deliveries, how long they took in all, and each.
fn run(nodes: &Nodes, each: u64, load: impl FnOnce() -> (u64, Duration, Latencies)) -> Run {
    let (cpu, own, bytes) = (nodes.cpu(), cpu_of("self"), nodes.bytes_between());
    let driven = load();
    let cpu: Vec<f64> = nodes.cpu().iter().zip(cpu).map(|(now, before)| now - before).collect();
    let (own, bytes) = (cpu_of("self") - own, nodes.bytes_between() - bytes);
    let deliveries = driven.0;
    let measured = measure(String::new(), driven, (cpu.iter().sum(), own));
    let bytes_each = bytes as f64 * each as f64 / deliveries.max(1) as f64;
    Run { measured, deliveries, bytes_each, cpu }
}

impl Run {
    fn per_second(&self) -> f64 {
        self.measured.per_second.unwrap_or_default()
    }

    fn cpu_by_node(&self) -> String {
        let mut text = String::new();
        for (name, cpu) in NAMES.iter().zip(&self.cpu) {
            let separator = if text.is_empty() { "" } else { ", " };
            let _always = write!(text, "{separator}{name} {:.2}", cpu * 1e6 / self.deliveries as f64);
        }
        text
    }
}

/// Rows of loads that were measured in turns, the first being the one the others are compared with: the median run of it, and
/// of each other the one with the median ratio to the first of its turn.
fn rows(names: &[String], mut turns: Vec<Vec<Run>>) -> Vec<Measured> {
    let median = turns.len() / 2;
    let mut rows = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let ratio = |turn: &Vec<Run>| match at {
            0 => turn[0].per_second(),
            _ => turn[at].per_second() / turn[0].per_second(),
        };
        turns.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)));
        let (local, run) = (&turns[median][0], &turns[median][at]);
        let mut row = Measured {
            name: name.clone(),
            per_second: run.measured.per_second,
            of_local: (at > 0).then(|| ratio(&turns[median])),
            cpu_per_million: run.measured.cpu_per_million,
            p50_ms: run.measured.p50_ms,
            p99_ms: run.measured.p99_ms,
            generator_cpu: run.measured.generator_cpu,
            note: format!("CPU s/million by node: {}", run.cpu_by_node()),
            ..Measured::default()
        };
        if at > 0 {
            let added = run.measured.p50_ms.unwrap_or_default() - local.measured.p50_ms.unwrap_or_default();
            let _always =
                write!(row.note, "; p50 {added:+.2} ms; {:.0} bytes a message between nodes", run.bytes_each);
        }
        rows.push(row);
    }
    rows
}
