//! Chunks by REST: as many connections as requests under way, each kept open.

use std::time::{Duration, Instant};

use super::{CONTENT, Measured, Scale, measure};
use crate::door::{self, Entry};
use crate::fleet::{Fleet, Latencies};
use crate::node::{Node, cpu_of};
use crate::wire::{AnswerCounter, Either, FrameCounter};

/// Connections, each with one request under way.
const CONNECTIONS: usize = 16;

/// POST of chunks to one stream that has one reader.
pub fn rest(scale: &Scale) -> Vec<Measured> {
    let acks = [("memory", "from memory"), ("durable", "from disk")];
    acks.iter().map(|(ack, name)| run(scale, ack, name)).collect()
}

fn run(scale: &Scale, ack: &str, name: &str) -> Measured {
    let mut node = Node::start(&[&format!("stream.ack={ack}")]);
    let (client, provider) = (node.agent(), node.agent());
    let task = node.task(&client, &provider);
    let topic = format!("task_stream:{task}");
    let address = node.address();
    let body = format!(r#"{{"content":"{CONTENT}","kind":"chat"}}"#);
    let request = format!(
        "POST /api/v1/tasks/{task}/chunk HTTP/1.1\r\nHost: {address}\r\nX-Api-Key: {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        provider.key,
        body.len()
    );
    let posting =
        (0..CONNECTIONS).map(|at| (door::connect(address, at), Either::Answers(AnswerCounter::default())));
    let reader = door::join(address, CONNECTIONS, &Entry::agent(&client.key, &topic));
    let mut fleet = Fleet::with(posting.chain([(reader, Either::Frames(FrameCounter::default()))]));
    fleet.settle(Duration::from_millis(300));

    let (server, own) = (node.process.cpu(), cpu_of("self"));
    let (begun, mut latencies) = (Instant::now(), Latencies::new());
    let mut sent_at = [begun; CONNECTIONS];
    let mut free: Vec<usize> = (0..CONNECTIONS).collect();
    let (mut sent, mut answered, mut read) = (0_u64, 0_u64, 0_u64);
    loop {
        let over = begun.elapsed() >= scale.time;
        if over && answered == sent && read == sent {
            break;
        }
        assert!(begun.elapsed() < scale.time * 10, "of {sent} chunks {answered} answered, {read} read");
        while !over && let Some(at) = free.pop() {
            fleet.send(at, request.as_bytes());
            sent_at[at] = Instant::now();
            sent += 1;
        }
        fleet.take(Duration::from_secs(1), |at, frames, now| {
            if at == CONNECTIONS {
                read += frames;
            } else {
                latencies.note(now.duration_since(sent_at[at]), 1);
                answered += frames;
                free.push(at);
            }
        });
    }
    let took = begun.elapsed();
    let used = (node.process.cpu() - server, cpu_of("self") - own);
    let name = format!("chunks by REST, acknowledged {name}, {CONNECTIONS} connections");
    measure(name, (answered, took, latencies), used)
}
