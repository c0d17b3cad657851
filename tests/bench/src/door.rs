//! How connections are opened: many at a time, from many addresses, each as a decent client does it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use muster_tests::raw;

/// Connections that are being opened at once.
const AT_ONCE: usize = 256;
/// How long an answer to a handshake or a join may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A WebSocket to be opened.
#[derive(Clone, Default)]
pub struct Entry<'a> {
    /// Where the socket is mounted.
    pub mount: &'a str,
    /// Whose key it shows.
    pub key: &'a str,
    /// The topic it joins; none when empty.
    pub topic: &'a str,
    /// What it joins with.
    pub payload: &'a str,
}

impl<'a> Entry<'a> {
    /// An agent's socket on a topic.
    pub fn agent(key: &'a str, topic: &'a str) -> Self {
        Self { mount: "/socket/agent", key, topic, payload: "{}" }
    }

    fn upgrade(&self, to: SocketAddr) -> String {
        format!(
            "GET {}/websocket?api_key={}&vsn=2.0.0 HTTP/1.1\r\nHost: {to}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.mount, self.key
        )
    }

    /// The frame of the join.
    pub fn join_frame(&self) -> Vec<u8> {
        raw::text(&format!(r#"["1","1","{}","phx_join",{}]"#, self.topic, self.payload))
    }
}

/// Connects from one of many loopback addresses, so that ports do not run out.
pub fn connect(to: SocketAddr, number: usize) -> TcpStream {
    connect_with(to, number, |_| {})
}

/// The same, with options that must be set before.
pub fn connect_with(to: SocketAddr, number: usize, set: impl Fn(&socket2::Socket)) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let from = Ipv4Addr::new(127, 0, 0, u8::try_from(2 + number % 200).unwrap());
    socket.bind(&SocketAddrV4::new(from, 0).into()).unwrap();
    set(&socket);
    socket.connect(&to.into()).unwrap();
    socket.set_tcp_nodelay(true).unwrap();
    socket.into()
}

/// Upgrades a connection; nothing behind the answer's head is read.
pub fn upgrade(stream: &mut TcpStream, to: SocketAddr, entry: &Entry<'_>) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(entry.upgrade(to).as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
}

/// Opens one; see [`open`].
pub fn join(to: SocketAddr, number: usize, entry: &Entry<'_>) -> TcpStream {
    open(to, number..number + 1, |_| entry.clone()).remove(0)
}

/// Opens WebSockets, [`AT_ONCE`] at a time, and joins their topics; what comes behind the answer to a join is dropped.
pub fn open<'a>(
    to: SocketAddr,
    numbers: std::ops::Range<usize>,
    entry: impl Fn(usize) -> Entry<'a>,
) -> Vec<TcpStream> {
    let numbers: Vec<usize> = numbers.collect();
    let mut opened = Vec::with_capacity(numbers.len());
    for batch in numbers.chunks(AT_ONCE) {
        let from = opened.len();
        for number in batch {
            let mut stream = connect(to, *number);
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(entry(*number).upgrade(to).as_bytes()).unwrap();
            opened.push(stream);
        }
        for (stream, number) in opened[from..].iter_mut().zip(batch) {
            expect(stream, b"\r\n\r\n");
            let entry = entry(*number);
            if !entry.topic.is_empty() {
                stream.write_all(&entry.join_frame()).unwrap();
            }
        }
        for (stream, number) in opened[from..].iter_mut().zip(batch) {
            if !entry(*number).topic.is_empty() {
                expect(stream, br#""status":"ok""#);
            }
        }
    }
    opened
}

/// Joins one more topic on each of some WebSockets; what comes behind the answer is dropped.
pub fn join_also(streams: &mut [TcpStream], topic: &str) {
    let entry = Entry { topic, payload: "{}", ..Entry::default() };
    for batch in streams.chunks_mut(AT_ONCE) {
        for stream in &mut *batch {
            stream.write_all(&entry.join_frame()).unwrap();
        }
        for stream in batch {
            expect(stream, br#""status":"ok""#);
        }
    }
}

/// Reads until the bytes hold a pattern.
fn expect(stream: &mut TcpStream, pattern: &[u8]) {
    let mut seen = Vec::new();
    let mut buffer = [0; 4_096];
    while memchr::memmem::find(&seen, pattern).is_none() {
        let count = stream.read(&mut buffer).unwrap_or_else(|error| {
            panic!("{error} instead of an answer, after {:?}", String::from_utf8_lossy(&seen))
        });
        assert!(count > 0, "closed: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..count]);
    }
}
