//! The floor: one thread, one epoll, and no work besides writing a ready frame to every reader. What a server of this
//! machine cannot be better than.

use std::io::{ErrorKind, Read, Write};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const LISTENER: Token = Token(usize::MAX);
/// Bytes of the frame that is written: as many as a small chunk of a stream takes.
pub const FRAME_BYTES: usize = 197;

/// Serves until it is killed. A connection whose first byte is `P` publishes: each further byte of it is one frame to each
/// reader. A connection whose first byte is `R` reads. A byte `e` is one frame to the connection itself.
pub fn run(address: &str) {
    let mut poll = Poll::new().unwrap();
    let mut events = Events::with_capacity(1_024);
    let mut listener = TcpListener::bind(address.parse().unwrap()).unwrap();
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE).unwrap();
    let mut connections: Vec<Option<TcpStream>> = Vec::new();
    let mut readers = Vec::new();
    let mut buffer = vec![0; 65_536];
    let mut frame = vec![0x81, 126];
    frame.extend_from_slice(&u16::try_from(FRAME_BYTES - 4).unwrap().to_be_bytes());
    frame.resize(FRAME_BYTES, b'x');
    loop {
        poll.poll(&mut events, None).unwrap();
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true).unwrap();
                    poll.registry()
                        .register(&mut stream, Token(connections.len()), Interest::READABLE)
                        .unwrap();
                    connections.push(Some(stream));
                }
                continue;
            }
            let at = event.token().0;
            let Some(stream) = &mut connections[at] else { continue };
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) if !matches!(stream.peek(&mut [0]), Err(ref error) if error.kind() == ErrorKind::WouldBlock) =>
                {
                    connections[at] = None;
                    readers.retain(|reader| *reader != at);
                }
                Ok(count) => {
                    let publications = buffer[..count].iter().filter(|byte| **byte == b'p').count();
                    if buffer[0] == b'R' {
                        readers.push(at);
                        stream.write_all(b"ok").unwrap();
                    }
                    let asked = buffer[..count].iter().filter(|byte| **byte == b'e').count();
                    if asked > 0 {
                        stream.write_all(&frame.repeat(asked)).unwrap();
                    }
                    if publications > 0 {
                        let burst = frame.repeat(publications);
                        for reader in &readers {
                            if let Some(stream) = &mut connections[*reader] {
                                let written = stream.write(&burst).unwrap();
                                assert_eq!(written, burst.len(), "a reader is too slow for the floor");
                            }
                        }
                    }
                }
                Err(_) => {}
            }
        }
    }
}
