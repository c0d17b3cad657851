//! One reader that takes a byte a second, beside a thousand that take what comes.

use std::cell::RefCell;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{CONTENT, Measured, Scale, chunk_frame, drive, measure, mib};
use crate::door::{self, Entry};
use crate::fleet::{Fleet, Latencies};
use crate::node::{Node, cpu_of};
use crate::wire::FrameReader;

/// Readers that are not slow.
const READERS: usize = 1_000;
/// Chunks that are there before anybody reads, and bytes of each: together more than kernels hold for one connection, so
/// that a reader of all of them is behind from the beginning.
const HISTORY: u64 = 200;
const HISTORY_BYTES: usize = 60_000;
/// Turns with the slow reader, and as many without.
const PAIRS: usize = 5;

/// A reader of the whole stream that takes next to nothing.
struct Slow {
    stream: TcpStream,
    frames: FrameReader,
    frame: Vec<u8>,
    last_byte: Instant,
    seq: u64,
}

impl Slow {
    fn join(to: SocketAddr, entry: &Entry<'_>) -> Self {
        use std::io::Write;
        let mut stream = door::connect_with(to, READERS + 1, |socket| {
            socket.set_recv_buffer_size(4_096).unwrap();
        });
        door::upgrade(&mut stream, to, entry);
        stream.write_all(&entry.join_frame()).unwrap();
        Self { stream, frames: FrameReader::default(), frame: Vec::new(), last_byte: Instant::now(), seq: 0 }
    }

    /// One byte, if it is time.
    fn trickle(&mut self) {
        if self.last_byte.elapsed() >= Duration::from_secs(1) {
            self.last_byte = Instant::now();
            self.read(1);
        }
    }

    fn read(&mut self, bytes_max: usize) {
        let mut buffer = vec![0; bytes_max];
        let count = self.stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the slow reader was closed at seq {}", self.seq);
        let Self { frames, frame, seq, .. } = self;
        frames.feed(&buffer[..count], |part, ends| {
            frame.extend_from_slice(part);
            if ends {
                let message: Value = serde_json::from_slice(frame).unwrap();
                frame.clear();
                if message[3] == "stream.chunk" {
                    *seq += 1;
                    assert_eq!(message[4]["seq"], *seq, "a gap or a repeat");
                } else {
                    assert_eq!(message[3], "phx_reply", "{message}");
                }
            }
        });
    }
}

/// What the others wait with and without it, in turns, what it costs in memory, and that it gets every chunk in the end.
pub fn slow_reader(scale: &Scale) -> Vec<Measured> {
    let mut node = Node::start(&["stream.ack=memory"]);
    let (client, provider) = (node.agent(), node.agent());
    let task = node.task(&client, &provider);
    let (topic, own_topic) = (format!("task_stream:{task}"), format!("agent:{}", provider.id));
    let address = node.address();
    let producer = Entry::agent(&provider.key, &own_topic);
    let mut fleet = Fleet::of(vec![door::join(address, READERS, &producer)]);
    let long = "x".repeat(HISTORY_BYTES);
    for n in 0..HISTORY {
        fleet.send(0, &chunk_frame(n, &provider.id, &task, &long));
        fleet.take_until(n + 1, Duration::from_secs(20));
    }
    drop(fleet);

    let after = format!(r#"{{"after_seq":{HISTORY}}}"#);
    let reader = Entry { payload: &after, ..Entry::agent(&client.key, &topic) };
    let mut streams = door::open(address, 0..READERS, |_| reader.clone());
    streams.push(door::join(address, READERS, &producer));
    let mut fleet = Fleet::of(streams);
    fleet.settle(Duration::from_millis(300));

    let all = Entry { payload: r#"{"after_seq":0}"#, ..reader.clone() };
    let mut turns = [Turns::new(), Turns::new()];
    let mut seq = HISTORY;
    let mut last_slow = None;
    for pair in 0..PAIRS {
        // Each goes first as often as the other.
        for has_slow in [pair % 2 == 0, pair % 2 == 1] {
            let slow = RefCell::new(has_slow.then(|| Slow::join(address, &all)));
            fleet.settle(Duration::from_millis(300));
            let own = cpu_of("self");
            let server = node.process.cpu();
            let (frames, took, latencies) =
                drive(&mut fleet, (READERS as u64 + 1, 1), scale.time / 3, |fleet, n| {
                    if let Some(slow) = slow.borrow_mut().as_mut() {
                        slow.trickle();
                    }
                    seq += 1;
                    fleet.send(READERS, &chunk_frame(n, &provider.id, &task, CONTENT));
                });
            let turns = &mut turns[usize::from(has_slow)];
            turns.frames += frames;
            turns.took += took;
            turns.latencies.add(&latencies);
            turns.server += node.process.cpu() - server;
            turns.own += cpu_of("self") - own;
            turns.resident.push(node.process.resident());
            if let Some(slow) = slow.into_inner() {
                assert!(slow.seq < HISTORY, "it was not behind");
                last_slow = Some(slow);
            }
        }
        // The last of them goes on reading below; the others hang up here.
        if pair + 1 < PAIRS {
            last_slow = None;
        }
    }
    let mut slow = last_slow.unwrap();
    let (begun, behind) = (Instant::now(), seq - slow.seq);
    while slow.seq < seq {
        slow.read(65_536);
    }
    let caught_up = begun.elapsed();

    let [without, with] = turns;
    let grown = with.median_resident() - without.median_resident();
    let ratio = with.latencies.quantile_ms(0.99) / without.latencies.quantile_ms(0.99);
    let mut rows = vec![
        without.row(format!("fan-out, {READERS} readers, 1 in flight")),
        with.row("the same beside a reader of 1 byte/s".into()),
    ];
    rows[1].note = format!(
        "p99 {ratio:.2} of that without it; it costs the node {:.2} MiB; then it read {behind} chunks in {:.2} s, each once",
        mib(grown),
        caught_up.as_secs_f64()
    );
    rows
}

/// What the turns of one kind came to.
struct Turns {
    frames: u64,
    took: Duration,
    latencies: Latencies,
    server: f64,
    own: f64,
    /// Bytes at the end of each.
    resident: Vec<u64>,
}

impl Turns {
    fn new() -> Self {
        Self {
            frames: 0,
            took: Duration::ZERO,
            latencies: Latencies::new(),
            server: 0.0,
            own: 0.0,
            resident: Vec::new(),
        }
    }

    fn median_resident(&self) -> f64 {
        let mut resident = self.resident.clone();
        resident.sort_unstable();
        resident[resident.len() / 2] as f64
    }

    fn row(self, name: String) -> Measured {
        measure(name, (self.frames, self.took, self.latencies), (self.server, self.own))
    }
}
