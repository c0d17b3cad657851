//! Many streams with few readers each, and none at all.

use std::time::Duration;

use muster_tests::raw;

use super::{CONTENT, Measured, Scale, chunk_frame, drive, measure};
use crate::door::{self, Entry};
use crate::fleet::Fleet;
use crate::node::{self, Node, cpu_of};

/// Many streams with one reader each.
pub fn streams(scale: &Scale) -> Vec<Measured> {
    let mut rows = vec![one_frame_each(scale, scale.many.min(2_000))];
    for (ack, name) in [("memory", "from memory"), ("durable", "from disk")] {
        let mut node = Node::start(&[&format!("stream.ack={ack}")]);
        let (client, count) = (node.agent(), scale.many.min(2_000));
        let address = node.address();
        let providers = node.agents(20);
        let tasks = node.tasks(&client, (0..count).map(|number| &providers[number % providers.len()]));
        let topics: Vec<String> = tasks.iter().map(|task| format!("task_stream:{task}")).collect();
        let mut streams = door::open(address, 0..count, |number| Entry::agent(&client.key, &topics[number]));
        for (number, provider) in providers.iter().enumerate() {
            let topic = format!("agent:{}", provider.id);
            streams.push(door::join(address, number, &Entry::agent(&provider.key, &topic)));
        }
        let mut fleet = Fleet::of(streams);
        fleet.settle(Duration::from_millis(300));
        let (server, own) = (node.process.cpu(), cpu_of("self"));
        // One to the reader, one to the producer.
        let driven = drive(&mut fleet, (2, 200), scale.time, |fleet, n| {
            let at = usize::try_from(n).unwrap() % count;
            let provider = at % providers.len();
            let chunk = chunk_frame(n, &providers[provider].id, &tasks[at], CONTENT);
            fleet.send(count + provider, &chunk);
        });
        let (frames, took, latencies) = driven;
        let used = (node.process.cpu() - server, cpu_of("self") - own);
        // What counts is what readers get.
        rows.push(measure(
            format!("{count} streams, acknowledged {name}"),
            (frames / 2, took, latencies),
            used,
        ));
    }
    rows
}

/// The floor of it: one small message comes, and one frame goes to one of as many connections.
fn one_frame_each(scale: &Scale, count: usize) -> Measured {
    let floor = node::floor();
    let mut fleet = Fleet::of((0..count).map(|number| door::connect(floor.address, number)).collect());
    let (server, own) = (floor.cpu(), cpu_of("self"));
    let driven = drive(&mut fleet, (1, 200), scale.time, |fleet, n| {
        fleet.send(usize::try_from(n).unwrap() % count, b"e");
    });
    let used = (floor.cpu() - server, cpu_of("self") - own);
    measure(format!("the floor, one frame to one of {count} connections"), driven, used)
}

/// One socket that asks and waits for the answer.
pub fn ping(scale: &Scale) -> Vec<Measured> {
    let mut node = Node::start(&[]);
    let agent = node.agent();
    let mut fleet = Fleet::of(vec![door::join(node.address(), 0, &Entry::agent(&agent.key, ""))]);
    let (server, own) = (node.process.cpu(), cpu_of("self"));
    let beat = raw::text(r#"[null,"1","phoenix","heartbeat",{}]"#);
    let driven = drive(&mut fleet, (1, 1), scale.time, |fleet, _| fleet.send(0, &beat));
    vec![measure("heartbeat and answer".into(), driven, (node.process.cpu() - server, cpu_of("self") - own))]
}
