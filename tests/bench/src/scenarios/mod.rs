//! What is measured. Each scenario gives figures and judges none of them; that nothing is missing or wrong it asserts.
//!
//! # Layout
//! * this file: which there are, and what they share
//! * [`fan_out`], [`streams`], [`rest`], [`slow_reader`]: chunks
//! * [`messages`]: messages between agents
//! * [`presence`]: who is told of whom
//! * [`cluster`]: the same across nodes
//! * [`sockets`]: connecting, being idle, storms; [`leak`]: what is left after much coming and going

mod cluster;
mod fan_out;
mod leak;
mod messages;
mod presence;
mod rest;
mod slow_reader;
mod sockets;
mod streams;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use muster_tests::raw;

use crate::fleet::{Fleet, Latencies};
use crate::wire::Counts;

/// How much of it.
pub struct Scale {
    /// How long each load lasts.
    pub time: Duration,
    /// Sockets where many are wanted.
    pub many: usize,
    /// How long sockets are left alone before they are weighed.
    pub pause: Duration,
    /// Which part of what is done a number of times is done.
    pub part: f64,
}

impl Scale {
    /// That part of a number.
    pub fn of(&self, count: usize) -> usize {
        (count as f64 * self.part) as usize
    }
}

/// A line of the table.
#[derive(Default)]
pub struct Measured {
    pub name: String,
    pub per_second: Option<f64>,
    pub of_floor: Option<f64>,
    /// Of the deliveries a second with all clients on one node.
    pub of_local: Option<f64>,
    pub cpu_per_million: Option<f64>,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Share of one processor that the generator took: near 100 % it was the bottleneck.
    pub generator_cpu: Option<f64>,
    pub note: String,
}

type Scenario = (&'static str, fn(&Scale) -> Vec<Measured>);

/// All scenarios, by name.
pub const ALL: &[Scenario] = &[
    ("fan-out-1000", |scale| fan_out::fan_out(scale, 1_000)),
    // As many as a generator with both fleets, and a limit of 20,000 descriptors, can hold.
    ("fan-out-9000", |scale| fan_out::fan_out(scale, 9_000.min(scale.many / 2))),
    ("streams", streams::streams),
    ("ping", streams::ping),
    ("rest", rest::rest),
    ("messages", messages::messages),
    ("slow-reader", slow_reader::slow_reader),
    ("presence-1000", |scale| presence::everybody(scale, 1_000)),
    ("presence-5000", |scale| presence::everybody(scale, 5_000)),
    ("presence-watchers", presence::watchers),
    ("connect", sockets::connects),
    ("idle", sockets::idle),
    ("storm", sockets::storm),
    ("reconnect", sockets::reconnect),
    ("leak", leak::leak),
    ("cluster-fan-out", cluster::fan_out::fan_out),
    ("cluster-streams", cluster::streams::streams),
    ("cluster-relay", cluster::relay::direct),
    ("cluster-redis", cluster::relay::by_redis),
    ("cluster-growth", cluster::growth::growth),
    ("cluster-presence", cluster::presence::presence),
];

/// Text of a chunk: the frame that brings it is about as large as the floor's.
const CONTENT: &str = "forty characters of somebody's output...";

/// Drives a load: `publish` sends one message that `each` readers get; `window` of them are under way at once.
fn drive<C: Counts>(
    fleet: &mut Fleet<C>,
    load: (u64, u64),
    time: Duration,
    publish: impl FnMut(&mut Fleet<C>, u64),
) -> (u64, Duration, Latencies) {
    drive_noting(fleet, load, time, |_| true, publish)
}

/// The same; latencies are those of some connections.
fn drive_noting<C: Counts>(
    fleet: &mut Fleet<C>,
    (each, window): (u64, u64),
    time: Duration,
    notes: impl Fn(usize) -> bool,
    mut publish: impl FnMut(&mut Fleet<C>, u64),
) -> (u64, Duration, Latencies) {
    let (mut latencies, mut sent_at) = (Latencies::new(), VecDeque::new());
    let (begun, first) = (Instant::now(), fleet.frames);
    let (mut sent, mut whole) = (0_u64, 0_u64);
    loop {
        let over = begun.elapsed() >= time;
        while !over && sent - whole < window {
            publish(fleet, sent);
            sent_at.push_back(Instant::now());
            sent += 1;
        }
        if over && whole == sent {
            break;
        }
        let oldest = sent_at.front().copied();
        fleet.take(Duration::from_secs(5), |at, frames, now| {
            if let Some(oldest) = oldest.filter(|_| notes(at)) {
                latencies.note(now.duration_since(oldest), frames);
            }
        });
        let now_whole = (fleet.frames - first) / each;
        for _ in whole..now_whole {
            sent_at.pop_front();
        }
        whole = now_whole;
        assert!(begun.elapsed() < time * 10, "deliveries are missing: {whole} of {sent}");
    }
    (fleet.frames - first, begun.elapsed(), latencies)
}

fn measure(
    name: String,
    (deliveries, took, latencies): (u64, Duration, Latencies),
    (server_cpu, own_cpu): (f64, f64),
) -> Measured {
    Measured {
        name,
        per_second: Some(deliveries as f64 / took.as_secs_f64()),
        cpu_per_million: Some(server_cpu * 1e6 / deliveries as f64),
        p50_ms: Some(latencies.quantile_ms(0.5)),
        p99_ms: Some(latencies.quantile_ms(0.99)),
        generator_cpu: Some(own_cpu / took.as_secs_f64()),
        ..Measured::default()
    }
}

/// The frame with which a provider emits a chunk.
fn chunk_frame(reference: u64, provider: &str, task: &str, content: &str) -> Vec<u8> {
    raw::text(&format!(
        r#"["1","{reference}","agent:{provider}","task.stream_chunk",{{"task_id":"{task}","content":"{content}","kind":"chat"}}]"#
    ))
}

/// Bytes, as MiB.
fn mib(bytes: f64) -> f64 {
    bytes / (1_024.0 * 1_024.0)
}
