//! The loop of one WebSocket connection: waits until there is something to read or to write, does all of it, and waits
//! again. Between two turns a connection holds no buffer (DESIGN: one loop per connection, cheap when idle).
//!
//! # Layout
//! * this file: the loop
//! * [`io`]: bytes in and out, plain or under TLS

pub mod io;

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use muster_actors::egress::Class;
use muster_actors::egress::sink::{Flushed, Work};
use muster_actors::socket::Socket;
use muster_protocol::phoenix::decode;
use muster_protocol::websocket::decoder::DecoderLimits;
use muster_protocol::websocket::{CloseCode, Decoded, Decoder, encoder};
use tokio::time::Sleep;

use self::io::Io;
use crate::http::listener::{OpenConnection, Place};

/// Bytes read at a time, into a buffer that all connections of a thread share.
const READ_BYTES: usize = 64 * 1024;
/// Reads of one connection before others have their turn.
const READS_PER_TURN: usize = 2;
/// How long the peer has to take what waits for it and to answer, once the connection closes.
const LINGER: Duration = Duration::from_secs(2);

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// One connection: a future that ends with it. What it is dropped for, its joins end.
pub struct Connection {
    socket: Arc<Socket>,
    io: Arc<dyn Io>,
    decoder: Decoder,
    /// Bytes of a frame that is not whole yet.
    pending: Vec<u8>,
    /// Whether `pending` may hold whole messages, which wait until those before them are done.
    held_up: bool,
    /// Whether nothing is read because too much is in work or waits to be taken.
    choked: bool,
    phase: Phase,
    /// Whether our side is shut.
    shut: bool,
    linger: Option<Pin<Box<Sleep>>>,
    _peer: (Place, Arc<OpenConnection>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Messages go both ways.
    Open,
    /// We have said goodbye, or are about to; what still comes is not looked at.
    Closing,
    /// The peer has said goodbye too.
    PeerClosed,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.socket.finish();
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.turn(context)
    }
}

impl Connection {
    /// A connection that has just been opened. `early` is what the peer sent right behind its handshake, and `peer` what
    /// it holds as long as it is open.
    #[must_use]
    pub fn new(
        socket: Arc<Socket>,
        io: Arc<dyn Io>,
        early: &[u8],
        peer: (Place, Arc<OpenConnection>),
    ) -> Self {
        let mut connection = Self {
            socket,
            io,
            decoder: Decoder::default(),
            pending: Vec::new(),
            held_up: false,
            choked: false,
            phase: Phase::Open,
            shut: false,
            linger: None,
            _peer: peer,
        };
        connection.take(&mut early.to_vec());
        connection
    }

    fn limits(&self) -> DecoderLimits {
        let limits = &self.socket.core.limits;
        DecoderLimits {
            message_bytes_max: limits.message_bytes_max,
            fragments_max: limits.message_fragments_max,
        }
    }

    /// Writes and reads as much as can be; ready when the connection is over.
    fn turn(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let work = self.socket.sink().poll_work(context);
        match work {
            Work::Nothing => {}
            // Written in the next turn, behind all that is ready to run.
            Work::Soon => context.waker().wake_by_ref(),
            Work::Now => {
                if self.write(context).is_ready() {
                    return Poll::Ready(());
                }
            }
        }
        // What the messages that are read now are answered leaves as one write.
        self.socket.sink().cork();
        let over = self.read(context).is_ready();
        let answered = self.socket.sink().uncork();
        let writes = answered && (over || work != Work::Soon);
        if writes && self.write(context).is_ready() || over {
            return Poll::Ready(());
        }
        if self.choked && self.socket.may_read() {
            // It was its own answers that waited, and they have gone.
            context.waker().wake_by_ref();
        }
        if self.linger.is_none() && self.socket.sink().is_closed() {
            self.linger = Some(Box::pin(tokio::time::sleep(LINGER)));
        }
        if let Some(linger) = &mut self.linger {
            ready!(linger.as_mut().poll(context));
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Ready when the connection is over.
    fn write(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let flushed = match self.socket.sink().flush() {
                Ok(flushed) => flushed,
                Err(_) => return Poll::Ready(()),
            };
            let out = match self.io.flush() {
                Ok(out) => out,
                Err(_) => return Poll::Ready(()),
            };
            match flushed {
                Flushed::Empty if out => return Poll::Pending,
                Flushed::Closed if out => return self.said_goodbye(),
                _ => {}
            }
            match self.io.tcp().poll_write_ready(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn said_goodbye(&mut self) -> Poll<()> {
        if self.phase == Phase::PeerClosed {
            self.io.shut();
            return Poll::Ready(());
        }
        if !self.shut {
            self.shut = true;
            self.phase = Phase::Closing;
            self.io.shut();
        }
        Poll::Pending
    }

    /// Ready when the connection is over.
    fn read(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.choked = false;
        for _ in 0..READS_PER_TURN {
            if self.phase == Phase::PeerClosed {
                return Poll::Pending;
            }
            if self.phase == Phase::Open && !self.socket.may_read() {
                self.choked = true;
                // Woken again when a message in work is done, or when the peer has taken what waits for it.
                return Poll::Pending;
            }
            if self.held_up {
                self.take(&mut []);
                continue;
            }
            let read = READ_BUFFER.with_borrow_mut(|buffer| match self.io.try_read(buffer) {
                Ok(0) => Some(Poll::Ready(())),
                Ok(count) => {
                    self.socket.heard();
                    self.take(&mut buffer[..count]);
                    None
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Some(Poll::Pending),
                Err(_) => Some(Poll::Ready(())),
            });
            match read {
                None => {}
                Some(Poll::Ready(())) => return Poll::Ready(()),
                Some(Poll::Pending) => match self.io.tcp().poll_read_ready(context) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Acts on every whole message in what has come, and keeps the rest.
    fn take(&mut self, bytes: &mut [u8]) {
        if self.pending.is_empty() {
            let taken = self.messages(bytes);
            self.pending.extend_from_slice(&bytes[taken..]);
        } else {
            let mut pending = std::mem::take(&mut self.pending);
            pending.extend_from_slice(bytes);
            let taken = self.messages(&mut pending);
            pending.drain(..taken);
            self.pending = pending;
        }
        if self.pending.is_empty() {
            // An idle connection holds no buffer.
            self.pending = Vec::new();
        }
    }

    /// Acts on the whole messages at the front; gives the bytes they took.
    fn messages(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        self.held_up = false;
        let core = self.socket.core.clone();
        let (version, limits) = (self.socket.version(), self.limits());
        loop {
            if self.phase != Phase::Open {
                return bytes.len();
            }
            // Asked for each: what one reading brings may be more than the peer is owed answers to.
            if !self.socket.may_read() {
                self.held_up = true;
                return at;
            }
            let decoded = match self.decoder.decode(&mut bytes[at..], limits) {
                Ok(decoded) => decoded,
                Err(error) => {
                    self.close(error.code, error.reason);
                    return bytes.len();
                }
            };
            let (consumed, message) = match decoded {
                Decoded::Incomplete { .. } => return at,
                Decoded::Fragment { consumed } | Decoded::Pong { consumed } => {
                    at += consumed;
                    continue;
                }
                Decoded::Ping { consumed, payload } => {
                    self.socket.sink().write(Class::Control, &[encoder::pong(payload)]);
                    at += consumed;
                    continue;
                }
                Decoded::Close { code } => {
                    self.phase = Phase::PeerClosed;
                    self.socket.sink().close_echo(code);
                    return bytes.len();
                }
                Decoded::Text { consumed, text } => (consumed, decode::text(version, text, &core.limits)),
                Decoded::Binary { consumed, data } => (consumed, decode::binary(version, data, &core.limits)),
            };
            match message {
                Ok(message) => self.socket.receive(&message),
                Err(undecodable) => {
                    self.close(CloseCode::Undecodable, undecodable.0);
                    return bytes.len();
                }
            }
            at += consumed;
        }
    }

    fn close(&mut self, code: CloseCode, reason: &str) {
        self.phase = Phase::Closing;
        self.socket.close(code, reason);
    }
}
