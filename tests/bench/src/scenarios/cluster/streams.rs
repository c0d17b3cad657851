//! Many streams with one reader each.

use std::time::Duration;

use super::{Run, TURNS, rows, run};
use crate::door::{self, Entry};
use crate::fleet::Fleet;
use crate::nodes::{Carried, Nodes};
use crate::order::Ordered;
use crate::scenarios::{CONTENT, Measured, Scale, chunk_frame, drive_noting};

/// Those who emit.
const PROVIDERS: usize = 20;
/// Chunks under way at once.
const WINDOW: u64 = 200;

/// Emitted on one node and read on another, owned by any; and all on one, which owns them. With two nodes, and with three.
pub fn streams(scale: &Scale) -> Vec<Measured> {
    [2, 3].into_iter().flat_map(|count| among(scale, count)).collect()
}

fn among(scale: &Scale, count: usize) -> Vec<Measured> {
    let mut nodes = Nodes::start(count, &Carried::Directly, &[]);
    let (client, providers) = (nodes.nodes[0].agent(), nodes.nodes[0].agents(PROVIDERS));
    let streams = scale.of(2_000).max(500);
    // More than are wanted, so that there are as many that the first node owns.
    let made = nodes.nodes[0].tasks(&client, (0..streams * (count + 1)).map(|n| &providers[n % PROVIDERS]));
    let made: Vec<(usize, String)> =
        made.into_iter().enumerate().map(|(n, task)| (n % PROVIDERS, task)).collect();
    let any = made[..streams].to_vec();
    let own: Vec<_> =
        made[streams..].iter().filter(|(_, task)| nodes.owner(task) == 0).take(streams).cloned().collect();
    let loads = [own, any];
    let mut connections = Vec::new();
    for (at, tasks) in loads.iter().enumerate() {
        let topics: Vec<String> = tasks.iter().map(|(_, task)| format!("task_stream:{task}")).collect();
        let to = nodes.nodes[at].address();
        let readers = door::open(to, 0..topics.len(), |number| Entry::agent(&client.key, &topics[number]));
        connections.extend(readers.into_iter().map(|stream| (stream, Ordered::reader())));
    }
    let first_emitter = connections.len();
    for (number, provider) in providers.iter().enumerate() {
        let topic = format!("agent:{}", provider.id);
        let stream = door::join(nodes.nodes[0].address(), number, &Entry::agent(&provider.key, &topic));
        connections.push((stream, Ordered::emitter()));
    }
    let mut fleet = Fleet::with(connections);
    fleet.settle(Duration::from_millis(300));

    let mut turns: Vec<Vec<Run>> = Vec::new();
    for _ in 0..TURNS {
        let runs = loads.iter().map(|tasks| {
            // One to the reader, one to the producer; what counts is what readers get.
            run(&nodes, 1, || {
                let driven = drive_noting(
                    &mut fleet,
                    (2, WINDOW),
                    scale.time / 3,
                    |at| at < first_emitter,
                    |fleet, n| {
                        let (provider, task) = &tasks[usize::try_from(n).unwrap() % tasks.len()];
                        let chunk = chunk_frame(n, &providers[*provider].id, task, CONTENT);
                        fleet.send(first_emitter + provider, &chunk);
                    },
                );
                (driven.0 / 2, driven.1, driven.2)
            })
        });
        turns.push(runs.collect());
    }
    let what = |tasks: usize| format!("{count} nodes, {tasks} streams, durable");
    let names = [
        format!("{}: all on a", what(loads[0].len())),
        format!("{}: emitted on a, read on b, owned by any", what(loads[1].len())),
    ];
    rows(&names, turns)
}
