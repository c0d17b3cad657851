//! Sockets of clients that poll: the same [`Socket`] as behind a WebSocket, with a session in place of the connection.
//!
//! What is written to the socket waits in its sink, within the sink's bounds, as it does for a WebSocket that takes
//! nothing; a GET is the moment at which bytes are taken. So fan-out, back-pressure, slow readers and overload are those
//! of every other socket.
//!
//! Messages are delivered at most once: those of an answer that never arrives are lost with it, and a client that notices
//! begins a new session and resumes its streams. A GET that is given up before its answer takes nothing.
//!
//! # Layout
//! * this file: the sessions of a node, and one session from its begin to its end
//! * `post`: what clients bring

mod post;

use std::collections::HashMap;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use muster_actors::egress::Transport;
use muster_actors::egress::sink::Flushed;
use muster_actors::socket::{Socket, SocketParts};
use muster_protocol::account::SecretHash;
use muster_protocol::limits::Limits;
use muster_protocol::phoenix::longpoll::{self, Answer, Lifetime, Outbox, SessionId, Status, Token};
use muster_protocol::topic::Mount;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit};

pub use self::post::Taken;
use crate::app::App;

/// Bodies up to this are held without a place.
const SMALL_BODY_BYTES: usize = 4 * 1024;
/// Unit in which places for larger bodies are counted, in bytes.
const BODY_UNIT_BYTES: usize = 1_024;
/// How long a session that has ended keeps what waits for its client.
const LINGER: Duration = Duration::from_secs(2);

/// The long-poll sessions of a node.
pub struct LongPolls {
    sessions: Mutex<HashMap<SessionId, Arc<Session>>>,
    places: Arc<Semaphore>,
    bodies: Semaphore,
    body_units: usize,
}

impl LongPolls {
    /// Without a session.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        // The body of one request always fits.
        let bytes = limits.longpoll_bodies_bytes_max.max(limits.longpoll_body_bytes_max);
        let body_units = bytes.div_ceil(BODY_UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        Self {
            sessions: Mutex::default(),
            places: Arc::new(Semaphore::new(limits.longpoll_sessions_max.min(Semaphore::MAX_PERMITS))),
            bodies: Semaphore::new(body_units),
            body_units,
        }
    }

    /// A place for one more session, if there is one.
    #[must_use]
    pub fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().try_acquire_owned().ok()
    }

    /// Makes the place of a request body as large as so many bytes; small bodies need none.
    ///
    /// # Errors
    /// Too much is held already.
    pub fn grow<'a>(&'a self, place: &mut Option<SemaphorePermit<'a>>, bytes: usize) -> Result<(), Full> {
        if bytes <= SMALL_BODY_BYTES {
            return Ok(());
        }
        let units = bytes.div_ceil(BODY_UNIT_BYTES).min(self.body_units);
        let held = place.as_ref().map_or(0, SemaphorePermit::num_permits);
        let more = u32::try_from(units.saturating_sub(held)).unwrap_or(u32::MAX);
        let more = self.bodies.try_acquire_many(more).map_err(|_| Full)?;
        match place {
            Some(place) => place.merge(more),
            None => *place = Some(more),
        }
        Ok(())
    }

    /// The session of a token, unless the request shows that it is somebody else's: by its mount, or by a credential that
    /// is not the session's.
    #[must_use]
    pub fn find(&self, token: &Token, mount: Mount, shown: Option<SecretHash>) -> Option<Arc<Session>> {
        let session = self.sessions.lock().get(&token.id()).cloned()?;
        let is_theirs = session.token.matches(token)
            && session.socket.mount == mount
            && shown.is_none_or(|shown| shown == session.opened_by);
        is_theirs.then_some(session)
    }

    /// Begins a session, and looks after it until it ends.
    #[must_use]
    pub fn open(app: &Arc<App>, opening: Opening) -> Arc<Session> {
        let way_out = Arc::new(WayOut::default());
        let transport = Box::new(Exit(way_out.clone()));
        let socket = Socket::start((opening.parts)(transport));
        let limits = &app.config.limits;
        let window_ms = limits.longpoll_window_ms.min(limits.socket_idle_timeout_ms / 2);
        let environment = &app.core.environment;
        app.metrics.longpoll_sessions.inc();
        let session = Arc::new(Session {
            token: Token::generate(environment.random()),
            opened_by: opening.opened_by,
            lifetime: Mutex::new(Lifetime::new(window_ms, environment.monotonic_ms())),
            window: Duration::from_millis(window_ms),
            socket,
            way_out,
            posting: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            over: AtomicBool::new(false),
            counted: app.metrics.longpoll_sessions.clone(),
            _place: opening.place,
        });
        app.longpolls.sessions.lock().insert(session.token.id(), session.clone());
        tokio::spawn(look_after(app.clone(), session.clone()));
        session
    }
}

/// Too much is held already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// What a session is begun with.
pub struct Opening {
    /// The socket, but for its transport.
    pub parts: Box<dyn FnOnce(Box<dyn Transport>) -> SocketParts + Send>,
    /// Hash of the credential that opened it.
    pub opened_by: SecretHash,
    /// Its place among the sessions.
    pub place: OwnedSemaphorePermit,
}

/// One client that polls.
pub struct Session {
    token: Token,
    opened_by: SecretHash,
    socket: Arc<Socket>,
    way_out: Arc<WayOut>,
    /// Whoever takes messages out holds it, so that only the newest GET does.
    lifetime: Mutex<Lifetime>,
    window: Duration,
    /// One POST after another.
    posting: tokio::sync::Mutex<()>,
    /// Something waits, has been taken, or has ended: whoever waits looks again.
    changed: Notify,
    /// Whether the socket is finished; what was written before may still wait.
    over: AtomicBool,
    counted: Gauge,
    _place: OwnedSemaphorePermit,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.counted.dec();
    }
}

/// Where a session's bytes go when a GET takes them.
#[derive(Default)]
struct WayOut(Mutex<Gate>);

#[derive(Default)]
struct Gate {
    outbox: Outbox,
    /// Bytes that may still come through: none, but while a GET takes them.
    room: usize,
}

/// The same, for the sink.
struct Exit(Arc<WayOut>);

impl Transport for Exit {
    fn try_write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut gate = self.0.0.lock();
        let mut written = 0;
        for part in parts {
            let taken = part.len().min(gate.room);
            gate.outbox.push(&part[..taken]);
            gate.room -= taken;
            written += taken;
        }
        if written == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(written) }
    }
}

/// What a GET finds.
enum Found {
    Messages(Answer),
    Nothing,
    /// Another GET takes them now, or the session has ended.
    Never,
}

/// A GET that waits; given up when dropped.
struct Waiting<'a> {
    session: &'a Session,
    poll: longpoll::Poll,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let now_ms = self.session.now_ms();
        self.session.lifetime.lock().end(self.poll, now_ms);
    }
}

impl Session {
    fn now_ms(&self) -> u64 {
        self.socket.core.environment.monotonic_ms()
    }

    /// What the first answer says: here is a session.
    #[must_use]
    pub fn begin(&self) -> Vec<u8> {
        Answer::new(0).finish(Status::Gone, &self.token)
    }

    /// Waits for messages, one window long at most; gives the body of the answer. `None`: the session has ended.
    pub async fn poll(&self) -> Option<Vec<u8>> {
        if self.socket.sink().is_closed() {
            self.end(true);
            if !self.way_out.0.lock().outbox.has_message() {
                return None;
            }
        }
        let waiting = Waiting { session: self, poll: self.lifetime.lock().begin() };
        // One that waits already is not the newest any more.
        self.changed.notify_waiters();
        self.socket.heard();
        let window = tokio::time::sleep(self.window);
        tokio::pin!(window);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.take(waiting.poll) {
                Found::Messages(answer) => return Some(answer.finish(Status::Ok, &self.token)),
                Found::Never => break,
                Found::Nothing => {}
            }
            tokio::select! {
                () = changed => {}
                () = &mut window => break,
            }
        }
        self.socket.heard();
        Some(Answer::new(0).finish(Status::NoMessages, &self.token))
    }

    /// Takes the messages that wait, as many as one answer holds.
    fn take(&self, poll: longpoll::Poll) -> Found {
        let lifetime = self.lifetime.lock();
        if !lifetime.is_newest(poll) {
            return Found::Never;
        }
        let mut answer = Answer::new(self.socket.core.limits.longpoll_answer_bytes_max);
        loop {
            let mut gate = self.way_out.0.lock();
            // A message that is larger than an answer comes alone.
            gate.room = answer.room().saturating_sub(gate.outbox.len()).max(gate.outbox.missing());
            drop(gate);
            let flushed = self.socket.sink().flush();
            let mut gate = self.way_out.0.lock();
            gate.room = 0;
            gate.outbox.fill(&mut answer);
            // What came through may be the begin of a message, or none at all.
            if !answer.is_empty() || !matches!(flushed, Ok(Flushed::Blocked)) {
                break;
            }
        }
        drop(lifetime);
        if !answer.is_empty() {
            // There is room again: a POST may have waited for it.
            self.changed.notify_waiters();
            return Found::Messages(answer);
        }
        if self.socket.sink().is_closed() { Found::Never } else { Found::Nothing }
    }

    /// Ends the socket. What waits for the client is kept, if wanted, for a last GET.
    fn end(&self, keep_rest: bool) {
        let lifetime = self.lifetime.lock();
        if !self.over.swap(true, Ordering::AcqRel) {
            if keep_rest {
                self.way_out.0.lock().room = usize::MAX;
                // A socket that is dead already has nothing left.
                let _flushed = self.socket.sink().flush();
                self.way_out.0.lock().room = 0;
            }
            self.socket.finish();
        }
        drop(lifetime);
        self.changed.notify_waiters();
    }
}

/// Wakes those who wait when there is something for them; ends the session when its socket closes or its client does not
/// come back.
async fn look_after(app: Arc<App>, session: Arc<Session>) {
    let mut left_ms = session.lifetime.lock().left_ms(session.now_ms());
    let closed = loop {
        let closed = poll_fn(|context| {
            let sink = session.socket.sink();
            // Registers for the next time; what there is already is found by those who wait.
            let _has_work = sink.poll_work(context);
            session.changed.notify_waiters();
            if sink.is_closed() { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::select! {
            () = closed => break true,
            () = tokio::time::sleep(Duration::from_millis(left_ms)) => {}
        }
        left_ms = session.lifetime.lock().left_ms(session.now_ms());
        if left_ms == 0 {
            break false;
        }
    };
    session.end(closed);
    if session.way_out.0.lock().outbox.has_message() {
        tokio::time::sleep(LINGER).await;
    }
    app.longpolls.sessions.lock().remove(&session.token.id());
}
