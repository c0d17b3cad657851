//! Many connections of one thread, which count what comes and are otherwise as idle as can be.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use super::wire::{Counts, FrameCounter};

/// The connections.
pub struct Fleet<C = FrameCounter> {
    poll: Poll,
    events: Events,
    /// `None` where one was dropped.
    connections: Vec<Option<(mio::net::TcpStream, C)>>,
    buffer: Vec<u8>,
    /// Frames so far.
    pub frames: u64,
    /// Bytes so far.
    pub bytes: u64,
}

impl Fleet {
    /// Of WebSockets on which nothing is under way.
    pub fn of(streams: Vec<TcpStream>) -> Self {
        Self::with(streams.into_iter().map(|stream| (stream, FrameCounter::default())))
    }
}

impl<C: Counts> Fleet<C> {
    /// Of connections on which nothing is under way, and what counts on each.
    pub fn with(streams: impl IntoIterator<Item = (TcpStream, C)>) -> Self {
        let mut fleet = Self {
            poll: Poll::new().unwrap(),
            events: Events::with_capacity(1_024),
            connections: Vec::new(),
            buffer: vec![0; 65_536],
            frames: 0,
            bytes: 0,
        };
        for (stream, counter) in streams {
            fleet.add(stream, counter);
        }
        fleet
    }

    /// Takes one in.
    pub fn add(&mut self, stream: TcpStream, counter: C) {
        stream.set_read_timeout(None).unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut stream = mio::net::TcpStream::from_std(stream);
        let token = Token(self.connections.len());
        self.poll.registry().register(&mut stream, token, Interest::READABLE).unwrap();
        self.connections.push(Some((stream, counter)));
    }

    /// Sends bytes on one connection; the kernel must take them.
    pub fn send(&mut self, at: usize, bytes: &[u8]) {
        let (stream, _) = self.connections[at].as_mut().unwrap();
        let written = stream.write(bytes).unwrap();
        assert_eq!(written, bytes.len(), "the node does not read");
    }

    /// Hangs up.
    pub fn drop_one(&mut self, at: usize) {
        self.connections[at] = None;
    }

    /// What counts on the connections that are left.
    pub fn counters(&self) -> impl Iterator<Item = &C> {
        self.connections.iter().flatten().map(|(_, counter)| counter)
    }

    /// Takes what has come, waiting for something at most so long. `on_frames` is told of frames as they come: on which
    /// connection, how many, and when.
    pub fn take(&mut self, wait: Duration, mut on_frames: impl FnMut(usize, u64, Instant)) {
        self.take_with(wait, |at, _, frames, now| on_frames(at, frames, now));
    }

    /// The same; `on_frames` sees what counts, too.
    pub fn take_with(&mut self, wait: Duration, mut on_frames: impl FnMut(usize, &C, u64, Instant)) {
        self.poll.poll(&mut self.events, Some(wait)).unwrap();
        let now = Instant::now();
        for event in &self.events {
            let at = event.token().0;
            let Some((stream, counter)) = &mut self.connections[at] else { continue };
            loop {
                match stream.read(&mut self.buffer) {
                    Ok(0) => panic!("connection {at} was closed"),
                    Ok(count) => {
                        self.bytes += count as u64;
                        let frames = counter.feed(&self.buffer[..count]);
                        if frames > 0 {
                            self.frames += frames;
                            on_frames(at, counter, frames, now);
                        }
                        if count < self.buffer.len() {
                            break;
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("connection {at}: {error}"),
                }
            }
        }
    }

    /// Takes until so many frames have come in all.
    pub fn take_until(&mut self, frames: u64, patience: Duration) {
        let begun = Instant::now();
        while self.frames < frames {
            self.take(Duration::from_millis(100), |_, _, _| {});
            let missing = frames.saturating_sub(self.frames);
            assert!(begun.elapsed() < patience, "{missing} frames are missing");
        }
    }

    /// Takes until nothing has come for a while.
    pub fn settle(&mut self, quiet: Duration) {
        let mut last = Instant::now();
        while last.elapsed() < quiet {
            let before = self.bytes;
            self.take(quiet / 4, |_, _, _| {});
            if self.bytes != before {
                last = Instant::now();
            }
        }
    }
}

/// Latencies in steps of 10 µs, to 1 s.
pub struct Latencies(Vec<u64>);

const STEP_US: u128 = 10;
const STEPS: usize = 100_000;

impl Latencies {
    /// None yet.
    pub fn new() -> Self {
        Self(vec![0; STEPS])
    }

    /// Notes `count` deliveries that took so long.
    pub fn note(&mut self, took: Duration, count: u64) {
        let step = usize::try_from(took.as_micros() / STEP_US).unwrap_or(STEPS).min(STEPS - 1);
        self.0[step] += count;
    }

    /// Adds those of another measurement.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine += theirs;
        }
    }

    /// What that part of the deliveries took at most, in milliseconds.
    pub fn quantile_ms(&self, part: f64) -> f64 {
        let all: u64 = self.0.iter().sum();
        let mut left = (all as f64 * part) as u64;
        for (step, count) in self.0.iter().enumerate() {
            if *count > left {
                return step as f64 / 100.0;
            }
            left -= count;
        }
        0.0
    }
}
