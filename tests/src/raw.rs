//! WebSocket clients over bare TCP, as rude as a test wants them.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Opcode of a fragment that is not the first.
pub const CONTINUATION: u8 = 0;
/// Opcode of a text.
pub const TEXT: u8 = 1;
/// Opcode of a close.
pub const CLOSE: u8 = 8;
/// Opcode of a ping.
pub const PING: u8 = 9;

/// A frame as a client sends it, masked with zeroes; it announces `length`, whatever the payload is.
#[must_use]
pub fn frame(is_last: bool, opcode: u8, length: usize, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![u8::from(is_last) << 7 | opcode];
    match length {
        0..126 => frame.push(0x80 | u8::try_from(length).unwrap()),
        126..65_536 => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// A whole text.
#[must_use]
pub fn text(message: &str) -> Vec<u8> {
    frame(true, TEXT, message.len(), message.as_bytes())
}

/// A connection.
pub struct Raw(TcpStream);

impl Raw {
    /// Connects.
    #[must_use]
    pub fn connect(address: &str) -> Self {
        let tcp = TcpStream::connect(address).unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(tcp)
    }

    /// Connects with a receive buffer as small as the kernel allows, so that little is under way to one who does not read.
    #[must_use]
    pub fn connect_deaf(address: &str) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(1).unwrap();
        let address: SocketAddr = address.parse().unwrap();
        socket.connect(&address.into()).unwrap();
        let tcp: TcpStream = socket.into();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(tcp)
    }

    /// Connects and upgrades.
    #[must_use]
    pub fn open(address: &str, key: &str) -> Self {
        Self::connect(address).upgraded(key)
    }

    /// Makes a WebSocket of it, on the agents' mount.
    #[must_use]
    pub fn upgraded(mut self, key: &str) -> Self {
        self.send(
            format!(
                "GET /socket/agent/websocket?api_key={key}&vsn=2.0.0 HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\n\
                 Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            .as_bytes(),
        );
        let head = self.head();
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        self
    }

    /// Reads the head of an answer.
    pub fn head(&mut self) -> String {
        self.read_until("\r\n\r\n")
    }

    /// Reads until what came ends so.
    pub fn read_until(&mut self, end: &str) -> String {
        let mut read = Vec::new();
        while !read.ends_with(end.as_bytes()) {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            read.push(byte[0]);
        }
        String::from_utf8(read).unwrap()
    }

    /// Status of the answer, if one is there or comes soon. It may be asked for again.
    pub fn status_if_any(&mut self) -> Option<u16> {
        self.0.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut head = [0; 12];
        let seen = self.0.peek(&mut head).ok()?;
        std::str::from_utf8(head[..seen].get(9..)?).ok()?.parse().ok()
    }

    /// Sends all of it.
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// Sends until nothing has been taken for `patience`, or `rounds` are through; the bytes that were taken.
    pub fn pour(&mut self, bytes: &[u8], rounds: usize, patience: Duration) -> usize {
        self.0.set_write_timeout(Some(patience)).unwrap();
        let mut taken = 0;
        'rounds: for _ in 0..rounds {
            let mut rest = bytes;
            while !rest.is_empty() {
                match self.0.write(rest) {
                    Ok(count) => {
                        taken += count;
                        rest = &rest[count..];
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                        break 'rounds;
                    }
                    Err(error) if is_gone(&error) => break 'rounds,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        taken
    }

    /// Reads a frame: its opcode and payload.
    pub fn frame(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).unwrap();
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.0.read_exact(&mut length).unwrap();
                usize::from(u16::from_be_bytes(length))
            }
            127 => {
                let mut length = [0; 8];
                self.0.read_exact(&mut length).unwrap();
                usize::try_from(u64::from_be_bytes(length)).unwrap()
            }
            length => usize::from(length),
        };
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).unwrap();
        (head[0] & 0x0F, payload)
    }

    /// Reads a message.
    pub fn message(&mut self) -> Value {
        let (opcode, payload) = self.frame();
        assert_eq!(opcode, TEXT, "{}", String::from_utf8_lossy(&payload));
        serde_json::from_slice(&payload).unwrap()
    }

    /// Joins a topic, and has its answer.
    pub fn join(&mut self, topic: &str, payload: &str) -> Value {
        self.send(&text(&format!(r#"["1","1","{topic}","phx_join",{payload}]"#)));
        self.message()
    }

    /// Reads to the close frame; its code.
    pub fn close_code(&mut self) -> u16 {
        loop {
            let (opcode, payload) = self.frame();
            if opcode == CLOSE {
                return u16::from_be_bytes([payload[0], payload[1]]);
            }
        }
    }

    /// Reads to the end of the connection; the bytes.
    pub fn rest(&mut self) -> usize {
        let mut buffer = [0; 65_536];
        let mut bytes = 0;
        loop {
            match self.0.read(&mut buffer) {
                Ok(0) => return bytes,
                Ok(count) => bytes += count,
                Err(error) if is_gone(&error) => return bytes,
                Err(error) => panic!("{error} instead of the end"),
            }
        }
    }

    /// Hangs up without a goodbye.
    pub fn reset(self) {
        socket2::SockRef::from(&self.0).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}
