//! What is measured.

use std::time::{Duration, Instant};

use super::fleet::{Fleet, Latencies, client_frame, connect, join, join_crowd};
use super::node::{self, Node, cpu_of};

/// How much of it.
pub struct Scale {
    /// How long each load lasts.
    pub time: Duration,
    /// Sockets where many are wanted.
    pub many: usize,
    /// How long idle sockets are left alone before they are weighed.
    pub pause: Duration,
}

/// A line of the table.
#[derive(Default)]
pub struct Measured {
    pub name: String,
    pub per_second: Option<f64>,
    pub of_floor: Option<f64>,
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
    ("fan-out-1000", |scale| fan_out(scale, 1_000)),
    // As many as a generator with both fleets, and a limit of 20,000 descriptors, can hold.
    ("fan-out-9000", |scale| fan_out(scale, 9_000.min(scale.many / 2))),
    ("streams", streams),
    ("ping", ping),
    ("connect", connects),
    ("idle", idle),
];

/// Text of a chunk: the frame that brings it is about as large as the floor's.
const CONTENT: &str = "forty characters of somebody's output...";

/// Drives a load: `publish` sends one message that `each` readers get; `window` of them are under way at once.
fn drive(
    fleet: &mut Fleet,
    (each, window): (u64, u64),
    time: Duration,
    mut publish: impl FnMut(&mut Fleet, u64),
) -> (u64, Duration, Latencies) {
    let (mut latencies, mut sent_at) = (Latencies::new(), std::collections::VecDeque::new());
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
        fleet.take(Duration::from_secs(5), |_, frames, now| {
            if let Some(oldest) = oldest {
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

/// One stream and many readers, and the floor with as many, in turns.
fn fan_out(scale: &Scale, readers: usize) -> Vec<Measured> {
    let floor = node::floor();
    let mut streams: Vec<_> = (0..readers).map(|number| connect(floor.address, number)).collect();
    for stream in &mut streams {
        use std::io::{Read, Write};
        stream.write_all(b"R").unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
    }
    streams.push(connect(floor.address, readers));
    let mut floor_fleet = Fleet::of(streams);

    let mut node = Node::start(&["stream.ack=memory"]);
    let (client, provider) = (node.agent(), node.agent());
    let task = node.task(&client, &provider);
    let topic = format!("task_stream:{task}");
    let address = node.address();
    let mut streams: Vec<_> = (0..readers)
        .map(|number| join(address, number, "/socket/agent", &client.key, &topic, "{}"))
        .collect();
    let own_topic = format!("agent:{}", provider.id);
    streams.push(join(address, readers, "/socket/agent", &provider.key, &own_topic, "{}"));
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
                let push = format!(
                    r#"["1","{n}","{own_topic}","task.stream_chunk",{{"task_id":"{task}","content":"{CONTENT}","kind":"chat"}}]"#
                );
                fleet.send(readers, &client_frame(&push));
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

/// Many streams with one reader each.
fn streams(scale: &Scale) -> Vec<Measured> {
    let mut rows = Vec::new();
    for (ack, name) in [("memory", "from memory"), ("durable", "from disk")] {
        let mut node = Node::start(&[&format!("stream.ack={ack}")]);
        let (client, count) = (node.agent(), scale.many.min(2_000));
        let address = node.address();
        let (mut streams, mut tasks) = (Vec::new(), Vec::new());
        let providers: Vec<_> = (0..20).map(|_| node.agent()).collect();
        for number in 0..count {
            let task = node.task(&client, &providers[number % providers.len()]);
            streams.push(join(
                address,
                number,
                "/socket/agent",
                &client.key,
                &format!("task_stream:{task}"),
                "{}",
            ));
            tasks.push(task);
        }
        for (number, provider) in providers.iter().enumerate() {
            let topic = format!("agent:{}", provider.id);
            streams.push(join(address, number, "/socket/agent", &provider.key, &topic, "{}"));
        }
        let mut fleet = Fleet::of(streams);
        fleet.settle(Duration::from_millis(300));
        let (server, own) = (node.process.cpu(), cpu_of("self"));
        // One to the reader, one to the producer.
        let driven = drive(&mut fleet, (2, 200), scale.time, |fleet, n| {
            let at = usize::try_from(n).unwrap() % count;
            let provider = at % providers.len();
            let push = format!(
                r#"["1","{n}","agent:{}","task.stream_chunk",{{"task_id":"{}","content":"{CONTENT}","kind":"chat"}}]"#,
                providers[provider].id, tasks[at]
            );
            fleet.send(count + provider, &client_frame(&push));
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

/// One socket that asks and waits for the answer.
fn ping(scale: &Scale) -> Vec<Measured> {
    let mut node = Node::start(&[]);
    let agent = node.agent();
    let mut fleet = Fleet::of(vec![join(node.address(), 0, "/socket/agent", &agent.key, "", "")]);
    let (server, own) = (node.process.cpu(), cpu_of("self"));
    let beat = client_frame(r#"[null,"1","phoenix","heartbeat",{}]"#);
    let driven = drive(&mut fleet, (1, 1), scale.time, |fleet, _| fleet.send(0, &beat));
    vec![measure("heartbeat and answer".into(), driven, (node.process.cpu() - server, cpu_of("self") - own))]
}

/// Sockets that connect and join, a crowd at a time.
fn connects(scale: &Scale) -> Vec<Measured> {
    let mut node = Node::start(&[]);
    let (client, provider) = (node.agent(), node.agent());
    let topic = format!("task_stream:{}", node.task(&client, &provider));
    let count = scale.many.min(5_000);
    let (begun, server) = (Instant::now(), node.process.cpu());
    let mut sockets = Vec::new();
    while sockets.len() < count {
        let crowd = CROWD.min(count - sockets.len());
        sockets.extend(join_crowd(node.address(), sockets.len()..sockets.len() + crowd, &client.key, &topic));
    }
    let cpu_ms = (node.process.cpu() - server) * 1_000.0 / sockets.len() as f64;
    let per_second = sockets.len() as f64 / begun.elapsed().as_secs_f64();
    let note = format!("{cpu_ms:.3} ms of CPU per socket; {per_second:.0} a second, {CROWD} at a time");
    vec![Measured { name: format!("connect and join, {count} sockets"), note, ..Measured::default() }]
}

/// Sockets that connect at a time.
const CROWD: usize = 64;

/// What a joined socket weighs once it is quiet, as the slope between a few and many.
fn idle(scale: &Scale) -> Vec<Measured> {
    let mut node = Node::start(&[]);
    let (client, provider) = (node.agent(), node.agent());
    let topic = format!("task_stream:{}", node.task(&client, &provider));
    let few = scale.many / 4;
    let mut sockets = Vec::new();
    let mut weigh = |node: &Node, count: usize| {
        while sockets.len() < count {
            sockets.push(join(node.address(), sockets.len(), "/socket/agent", &client.key, &topic, "{}"));
        }
        std::thread::sleep(scale.pause);
        node.process.resident()
    };
    let (low, high) = (weigh(&node, few), weigh(&node, scale.many));
    let each = (high as f64 - low as f64) / (scale.many - few) as f64;
    let note =
        format!("{:.1} KiB per joined socket, between {few} and {} of them", each / 1_024.0, scale.many);
    vec![Measured { name: "idle sockets".into(), note, ..Measured::default() }]
}
