//! One message at a time from one node to another, over links and by Redis: how long it takes, and how many bytes.

use std::time::{Duration, Instant};

use muster_tests::redis;

use super::{Run, TURNS, rows, run};
use crate::door::{self, Entry};
use crate::fleet::{Fleet, Latencies};
use crate::node::{Agent, cpu_of};
use crate::nodes::{Carried, Nodes};
use crate::order::{Brought, Ordered};
use crate::scenarios::{CONTENT, Measured, Scale, chunk_frame, drive_noting};
use crate::wire::AnswerCounter;

const SETTINGS: &[&str] = &["stream.ack=memory"];

/// Over links.
pub fn direct(scale: &Scale) -> Vec<Measured> {
    alone(scale, Nodes::start(2, &Carried::Directly, SETTINGS), "relay")
}

/// By Redis.
pub fn by_redis(scale: &Scale) -> Vec<Measured> {
    let without = |why: &str| {
        let name = format!("relay by Redis: not measured, {why}");
        vec![Measured { name, ..Measured::default() }]
    };
    if !redis::Server::is_installed() {
        return without("redis-server is not installed");
    }
    let redis = redis::Server::start();
    let Some(nodes) = Nodes::start_if_it_can(2, &Carried::By(&redis), SETTINGS) else {
        return without("the nodes do not start with it");
    };
    let cpu = || cpu_of(&redis.pid().to_string());
    let before = cpu();
    let mut rows = alone(scale, nodes, "relay by Redis");
    if let Some(last) = rows.last_mut() {
        last.note.push_str(&format!("; {:.2} s of CPU of Redis for all rows", cpu() - before));
    }
    rows
}

fn alone(scale: &Scale, mut nodes: Nodes, what: &str) -> Vec<Measured> {
    let (client, provider) = (nodes.nodes[0].agent(), nodes.nodes[0].agent());
    let mut all = Vec::new();
    for window in [1, 16] {
        let mut sides: Vec<Chunks> =
            (0..2).map(|reader| Chunks::new(&nodes, (&client, &provider), reader)).collect();
        let turns = (0..TURNS).map(|_| {
            sides.iter_mut().map(|side| side.run(&nodes, &provider, window, scale.time / 3)).collect()
        });
        let turns: Vec<Vec<Run>> = turns.collect();
        let name = |where_: &str| format!("{what}, {window} chunks in flight, one reader: {where_}");
        all.extend(rows(&[name("all on a"), name("emitted on a, read on b")], turns));
    }
    // Each with a topic of its own.
    let providers = nodes.nodes[0].agents(2);
    let mut sides: Vec<Publications> = providers
        .iter()
        .enumerate()
        .map(|(reader, provider)| Publications::new(&nodes, (&client, provider), reader, 1))
        .collect();
    let turns = (0..TURNS)
        .map(|_| sides.iter_mut().map(|side| side.run(&nodes, scale.time / 3)).collect::<Vec<Run>>());
    let turns: Vec<Vec<Run>> = turns.collect();
    let name = |where_: &str| format!("{what}, one publication at a time, one reader: {where_}");
    all.extend(rows(&[name("all on a"), name("published on a, read on b")], turns));
    all
}

/// A stream of the first node, emitted there, and one reader of it.
pub struct Chunks {
    task: String,
    fleet: Fleet<Ordered>,
}

impl Chunks {
    /// With the reader on this node.
    pub fn new(nodes: &Nodes, (client, provider): (&Agent, &Agent), reader: usize) -> Self {
        let task = super::task_of(nodes, 0, client, provider);
        let topic = format!("task_stream:{task}");
        let own_topic = format!("agent:{}", provider.id);
        let reader = door::join(nodes.nodes[reader].address(), 0, &Entry::agent(&client.key, &topic));
        let emitter = door::join(nodes.nodes[0].address(), 1, &Entry::agent(&provider.key, &own_topic));
        let mut fleet = Fleet::with([(reader, Ordered::reader()), (emitter, Ordered::emitter())]);
        fleet.settle(Duration::from_millis(300));
        Self { task, fleet }
    }

    /// Emits, so many under way at once.
    pub fn run(&mut self, nodes: &Nodes, provider: &Agent, window: u64, time: Duration) -> Run {
        let Self { task, fleet } = self;
        run(nodes, 1, || {
            let driven = drive_noting(
                fleet,
                (2, window),
                time,
                |at| at == 0,
                |fleet, n| {
                    fleet.send(1, &chunk_frame(n, &provider.id, task, CONTENT));
                },
            );
            // What counts is what the reader gets.
            (driven.0 / 2, driven.1, driven.2)
        })
    }
}

/// Messages about tasks, written on the first node by HTTP, and one reader of them.
pub struct Publications {
    fleet: Fleet<Brought>,
    /// Head of the requests of each connection, which has a task of its own.
    heads: Vec<String>,
    /// How many each has written.
    written: Vec<u64>,
}

impl Publications {
    /// With the reader on this node, and so many connections that write.
    pub fn new(nodes: &Nodes, (client, provider): (&Agent, &Agent), reader: usize, writers: usize) -> Self {
        let to = nodes.nodes[0].address();
        let tasks = nodes.nodes[0].tasks(client, std::iter::repeat_n(provider, writers));
        let heads = tasks.iter().map(|task| {
            format!(
                "POST /api/v1/tasks/{task}/messages HTTP/1.1\r\nHost: {to}\r\nX-Api-Key: {}\r\n\
                 Content-Type: application/json\r\n",
                client.key
            )
        });
        let heads = heads.collect();
        let topic = format!("agent:{}", provider.id);
        let reader = door::join(nodes.nodes[reader].address(), writers, &Entry::agent(&provider.key, &topic));
        let writing = (0..writers)
            .map(|at| (door::connect(to, at), Brought::Answers(AnswerCounter::default())))
            .chain([(reader, Brought::Ordered(Ordered::reader()))]);
        let mut fleet = Fleet::with(writing);
        fleet.settle(Duration::from_millis(300));
        Self { fleet, heads, written: vec![0; writers] }
    }

    /// Writes, one message at a time on each connection. Latencies are those of the reader when there is one connection,
    /// else those of the answers.
    pub fn run(&mut self, nodes: &Nodes, time: Duration) -> Run {
        run(nodes, 1, || self.load(time))
    }

    fn load(&mut self, time: Duration) -> (u64, Duration, Latencies) {
        let Self { fleet, heads, written } = self;
        let (reader, begun, mut latencies) = (heads.len(), Instant::now(), Latencies::new());
        let mut sent_at = vec![begun; heads.len()];
        let mut free: Vec<usize> = (0..heads.len()).collect();
        let (mut sent, mut answered, mut read) = (0, 0, 0);
        while begun.elapsed() < time || answered < sent || read < sent {
            // One alone begins when the one before has arrived everywhere.
            let may_send = begun.elapsed() < time && (heads.len() > 1 || read == sent);
            while may_send && let Some(at) = free.pop() {
                written[at] += 1;
                let body = format!(r##"{{"content":"#{} {CONTENT}"}}"##, written[at]);
                let request = format!("{}Content-Length: {}\r\n\r\n{body}", heads[at], body.len());
                fleet.send(at, request.as_bytes());
                sent_at[at] = Instant::now();
                sent += 1;
            }
            fleet.take(Duration::from_secs(1), |at, messages, now| {
                if at == reader {
                    read += messages;
                } else {
                    answered += messages;
                    free.push(at);
                }
                if (at == reader) == (sent_at.len() == 1) {
                    latencies.note(now.duration_since(sent_at[at % sent_at.len()]), messages);
                }
            });
            assert!(begun.elapsed() < time * 10, "of {sent} messages {answered} answered, {read} read");
        }
        (read, begun.elapsed(), latencies)
    }
}
