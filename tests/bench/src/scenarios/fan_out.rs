//! One stream and many readers.

use std::io::{Read, Write};
use std::time::Duration;

use super::{CONTENT, Measured, Scale, chunk_frame, drive, measure};
use crate::door::{self, Entry};
use crate::fleet::Fleet;
use crate::node::{self, Node, cpu_of};

/// One stream and many readers, and the floor with as many, in turns.
pub fn fan_out(scale: &Scale, readers: usize) -> Vec<Measured> {
    let floor = node::floor();
    let mut streams: Vec<_> = (0..readers).map(|number| door::connect(floor.address, number)).collect();
    for stream in &mut streams {
        stream.write_all(b"R").unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
    }
    streams.push(door::connect(floor.address, readers));
    let mut floor_fleet = Fleet::of(streams);

    let mut node = Node::start(&["stream.ack=memory"]);
    let (client, provider) = (node.agent(), node.agent());
    let task = node.task(&client, &provider);
    let topic = format!("task_stream:{task}");
    let address = node.address();
    let mut streams = door::open(address, 0..readers, |_| Entry::agent(&client.key, &topic));
    let own_topic = format!("agent:{}", provider.id);
    streams.push(door::join(address, readers, &Entry::agent(&provider.key, &own_topic)));
    let mut fleet = Fleet::of(streams);
    fleet.settle(Duration::from_millis(300));

    let mut rows = Vec::new();
    for window in [1_u64, 16] {
        let mut pairs = Vec::new();
        // In turns, so that what else the machine does meets both.
        for _ in 0..3 {
            let (server, own) = (floor.cpu(), cpu_of("self"));
            let each = readers as u64;
            let driven = drive(&mut floor_fleet, (each, window), scale.time / 3, |fleet, _| {
                fleet.send(each as usize, b"p")
            });
            let base = measure(String::new(), driven, (floor.cpu() - server, cpu_of("self") - own));
            let (server, own) = (node.process.cpu(), cpu_of("self"));
            // The producer's acknowledgement counts as a delivery.
            let each = readers as u64 + 1;
            let driven = drive(&mut fleet, (each, window), scale.time / 3, |fleet, n| {
                fleet.send(readers, &chunk_frame(n, &provider.id, &task, CONTENT));
            });
            let ours = measure(String::new(), driven, (node.process.cpu() - server, cpu_of("self") - own));
            pairs.push((ours, base));
        }
        // The median by ratio.
        let ratio = |(ours, base): &(Measured, Measured)| ours.per_second.unwrap() / base.per_second.unwrap();
        pairs.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)));
        let (mut ours, mut base) = pairs.swap_remove(1);
        ours.of_floor = Some(ours.per_second.unwrap() / base.per_second.unwrap());
        ours.name = format!("fan-out, {readers} readers, {window} in flight");
        base.name = format!("the floor, {readers} readers, {window} in flight");
        rows.extend([ours, base]);
    }
    rows
}
