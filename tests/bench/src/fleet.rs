//! Many connections of one thread, which count the frames that come and are otherwise as idle as can be.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

/// Counts whole WebSocket frames in a stream of bytes.
#[derive(Default)]
pub struct FrameCounter {
    header: Vec<u8>,
    body_left: u64,
}

impl FrameCounter {
    /// Takes bytes; gives how many frames they complete.
    pub fn feed(&mut self, mut bytes: &[u8]) -> u64 {
        let mut frames = 0;
        while !bytes.is_empty() {
            if self.body_left > 0 {
                let take = usize::try_from(self.body_left).unwrap_or(usize::MAX).min(bytes.len());
                self.body_left -= take as u64;
                bytes = &bytes[take..];
                frames += u64::from(self.body_left == 0);
                continue;
            }
            // Frames mostly begin whole: their header is read in place.
            if self.header.is_empty() && bytes.len() >= 10 {
                let (length, header) = frame_length(bytes).unwrap_or((0, 2));
                self.body_left = length;
                bytes = &bytes[header..];
            } else {
                self.header.push(bytes[0]);
                bytes = &bytes[1..];
                let Some((length, _)) = frame_length(&self.header) else { continue };
                self.header.clear();
                self.body_left = length;
            }
            frames += u64::from(self.body_left == 0);
        }
        frames
    }
}

/// Length of the payload and of the header, once the header is whole.
fn frame_length(bytes: &[u8]) -> Option<(u64, usize)> {
    let short = u64::from(bytes.get(1)? & 0x7F);
    match short {
        126 => Some((u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4)),
        127 => Some((u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10)),
        short => Some((short, 2)),
    }
}

/// A text frame as a client sends it, masked with zeroes.
pub fn client_frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    match text.len() {
        length if length < 126 => frame.push(0x80 | u8::try_from(length).unwrap()),
        length => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// Connects from one of many loopback addresses, so that ports do not run out.
pub fn connect(to: SocketAddr, number: usize) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let from = Ipv4Addr::new(127, 0, 0, u8::try_from(2 + number % 200).unwrap());
    socket.bind(&SocketAddrV4::new(from, 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.set_tcp_nodelay(true).unwrap();
    socket.into()
}

/// Opens a WebSocket and joins a topic; what comes behind the answer to the join is dropped.
pub fn join(to: SocketAddr, number: usize, mount: &str, key: &str, topic: &str, payload: &str) -> TcpStream {
    let mut stream = connect(to, number);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(handshake(to, mount, key).as_bytes()).unwrap();
    expect(&mut stream, b"\r\n\r\n");
    if !topic.is_empty() {
        stream.write_all(&client_frame(&format!(r#"["1","1","{topic}","phx_join",{payload}]"#))).unwrap();
        expect(&mut stream, b"phx_reply");
    }
    stream
}

/// The same for many agents' sockets at once: each step is begun by all before any waits for it.
pub fn join_crowd(to: SocketAddr, numbers: std::ops::Range<usize>, key: &str, topic: &str) -> Vec<TcpStream> {
    let mut crowd: Vec<_> = numbers.map(|number| connect(to, number)).collect();
    let request = handshake(to, "/socket/agent", key);
    for stream in &mut crowd {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
    }
    crowd.iter_mut().for_each(|stream| expect(stream, b"\r\n\r\n"));
    let frame = client_frame(&format!(r#"["1","1","{topic}","phx_join",{{}}]"#));
    crowd.iter_mut().for_each(|stream| stream.write_all(&frame).unwrap());
    crowd.iter_mut().for_each(|stream| expect(stream, b"phx_reply"));
    crowd
}

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

fn handshake(to: SocketAddr, mount: &str, key: &str) -> String {
    format!(
        "GET {mount}/websocket?api_key={key}&vsn=2.0.0 HTTP/1.1\r\nHost: {to}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// Reads until the bytes hold a pattern.
fn expect(stream: &mut TcpStream, pattern: &[u8]) {
    let mut seen = Vec::new();
    let mut buffer = [0; 4_096];
    while !seen.windows(pattern.len()).any(|window| window == pattern) {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "closed: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..count]);
    }
}

/// The connections.
pub struct Fleet {
    poll: Poll,
    events: Events,
    connections: Vec<(mio::net::TcpStream, FrameCounter)>,
    buffer: Vec<u8>,
    /// Frames so far.
    pub frames: u64,
    /// Bytes so far.
    pub bytes: u64,
}

impl Fleet {
    /// Of streams on which nothing is under way.
    pub fn of(streams: Vec<TcpStream>) -> Self {
        let poll = Poll::new().unwrap();
        let mut connections = Vec::with_capacity(streams.len());
        for (at, stream) in streams.into_iter().enumerate() {
            stream.set_read_timeout(None).unwrap();
            stream.set_nonblocking(true).unwrap();
            let mut stream = mio::net::TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(at), Interest::READABLE).unwrap();
            connections.push((stream, FrameCounter::default()));
        }
        Self {
            poll,
            events: Events::with_capacity(1_024),
            connections,
            buffer: vec![0; 65_536],
            frames: 0,
            bytes: 0,
        }
    }

    /// Sends bytes on one connection; the kernel must take them.
    pub fn send(&mut self, at: usize, bytes: &[u8]) {
        let written = self.connections[at].0.write(bytes).unwrap();
        assert_eq!(written, bytes.len(), "the node does not read");
    }

    /// Takes what has come, waiting for something at most so long. `on_frames` is told of frames as they come: on which
    /// connection, how many, and when.
    pub fn take(&mut self, wait: Duration, mut on_frames: impl FnMut(usize, u64, Instant)) {
        self.poll.poll(&mut self.events, Some(wait)).unwrap();
        let now = Instant::now();
        for event in &self.events {
            let at = event.token().0;
            let (stream, counter) = &mut self.connections[at];
            loop {
                match stream.read(&mut self.buffer) {
                    Ok(0) => panic!("connection {at} was closed"),
                    Ok(count) => {
                        self.bytes += count as u64;
                        let frames = counter.feed(&self.buffer[..count]);
                        if frames > 0 {
                            self.frames += frames;
                            on_frames(at, frames, now);
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
