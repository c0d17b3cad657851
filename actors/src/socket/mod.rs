//! Sockets: one actor per connection, one per joined topic.
//!
//! The connection's own loop (in `node`) reads messages and gives them to [`Socket::receive`], which decides by the
//! pure [`Session`] what each means: heartbeats and refusals are answered on the spot, the rest is for a join's actor.
//! Actors sleep while they have nothing to wait for; the socket actor supervises those that are awake. A join that
//! crashes is told to its client, and nobody else notices.
//!
//! # Layout
//! * this file: the socket and its messages
//! * `join`: the actor of one joined topic, asleep between messages
//! * `actor`: what is awake: the socket actor, its joins, and its supervisor

mod actor;
mod join;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use muster_protocol::account::Principal;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::json::Json;
use muster_protocol::phoenix::encode::Status;
use muster_protocol::phoenix::session::{Join, Route, Session};
use muster_protocol::phoenix::{Inbound, Payload, Ref, Version};
use muster_protocol::rate_limiter::TokenBucket;
use muster_protocol::topic::{Mount, Topic};
use muster_protocol::websocket::CloseCode;
use parking_lot::Mutex;
use smol_str::SmolStr;

use self::actor::Awake;
pub use self::actor::Sockets;
use self::join::{JoinActor, JoinMessage};
use crate::connections::{Connection, Place, Registered};
use crate::core::Core;
use crate::egress::outlet::{JoinOwner, reply_frame};
use crate::egress::{Class, Outlet, OutletId, Sink, SinkLimits, Transport};

/// One connection that speaks Phoenix.
pub struct Socket {
    /// The node.
    pub core: Arc<Core>,
    /// Where it connected.
    pub mount: Mount,
    /// Who speaks.
    pub principal: Principal,
    version: Version,
    sink: Arc<Sink>,
    session: Mutex<Session<Arc<JoinActor>>>,
    bucket: Mutex<TokenBucket>,
    in_flight: AtomicUsize,
    heard_at_ms: Arc<AtomicU64>,
    awake: Mutex<Awake>,
    registered: OnceLock<Registered>,
    myself: std::sync::Weak<Self>,
}

/// What a socket is made of.
pub struct SocketParts {
    /// The node.
    pub core: Arc<Core>,
    /// Where it connected.
    pub mount: Mount,
    /// Who speaks.
    pub principal: Principal,
    /// What was kept for it among the sockets of its credential.
    pub place: Place,
    /// Which messages it speaks.
    pub version: Version,
    /// Its way to the kernel.
    pub transport: Box<dyn Transport>,
}

/// A message's place among those in work; it is given up when this is dropped.
pub struct InFlight(Arc<Socket>);

impl Drop for InFlight {
    fn drop(&mut self) {
        let max = self.0.core.limits.requests_in_flight_per_socket_max;
        if self.0.in_flight.fetch_sub(1, Ordering::Relaxed) == max {
            self.0.sink.wake();
        }
    }
}

enum Action {
    Heartbeat,
    Start(Topic),
    Refuse(ErrorCode),
    Push(Arc<JoinActor>),
    Leave(Arc<JoinActor>),
    LeaveUnjoined,
    Unmatched,
    Ignore,
}

static NEXT_OUTLET: AtomicU64 = AtomicU64::new(1);

impl Socket {
    /// A new connection. Its actors sleep until there is something to do.
    #[must_use]
    pub fn start(parts: SocketParts) -> Arc<Self> {
        let SocketParts { core, mount, principal, place, version, transport } = parts;
        let now_ms = core.environment.monotonic_ms();
        let socket = Arc::new_cyclic(|myself| Self {
            sink: Arc::new(Sink::new(transport, SinkLimits::from(core.limits.as_ref()))),
            session: Mutex::default(),
            bucket: Mutex::new(TokenBucket::new(core.limits.messages_per_socket, now_ms)),
            in_flight: AtomicUsize::new(0),
            heard_at_ms: Arc::new(AtomicU64::new(now_ms)),
            awake: Mutex::default(),
            registered: OnceLock::new(),
            myself: myself.clone(),
            core,
            mount,
            principal,
            version,
        });
        let weak: std::sync::Weak<dyn Connection> = socket.myself.clone();
        let _once =
            socket.registered.set(socket.core.connections.register_in(Some(place), &socket.principal, weak));
        socket.core.metrics.sockets.inc();
        socket
    }

    /// Its way out.
    #[must_use]
    pub fn sink(&self) -> &Arc<Sink> {
        &self.sink
    }

    /// Which messages it speaks.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Notes that bytes came from the peer.
    pub fn heard(&self) {
        self.heard_at_ms.store(self.core.environment.monotonic_ms(), Ordering::Relaxed);
    }

    /// When bytes came from the peer last, in milliseconds of the node's clock.
    #[must_use]
    pub fn heard_at_ms(&self) -> Arc<AtomicU64> {
        self.heard_at_ms.clone()
    }

    /// Whether more should be read: neither too much is in work, nor too much waits to be taken by the peer.
    #[must_use]
    pub fn may_read(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) < self.core.limits.requests_in_flight_per_socket_max
            && self.sink.backlog() <= self.core.limits.outbound_queue_bytes_max
    }

    /// Acts on one message.
    pub fn receive(&self, message: &Inbound<'_>) {
        match self.decide(message) {
            Action::Heartbeat => {
                self.count("heartbeat");
                let refs = (&Ref::NULL, &message.reference);
                self.reply(refs, message.topic.as_deref(), Status::Ok, &Json::empty_object());
            }
            Action::Start(topic) => {
                self.count("join");
                self.join(message, topic);
            }
            Action::Refuse(code) => self.refuse(message, &code.into()),
            Action::Push(join) => self.push(message, &join),
            Action::Leave(join) => {
                self.count("leave");
                let Some((socket, permit)) = self.permit() else { return };
                let refs = (message.join_ref.clone(), message.reference.clone());
                if !join.tell(&socket, JoinMessage::Leave { refs, permit }) {
                    self.answer_leave(refs_of(message), message.topic.as_deref());
                }
            }
            Action::LeaveUnjoined => {
                self.count("leave");
                self.answer_leave(refs_of(message), message.topic.as_deref());
            }
            Action::Unmatched => {
                self.count("unmatched");
                let refs = (&Ref::NULL, &message.reference);
                let response = Refusal::new(ErrorCode::UnmatchedTopic).response();
                self.reply(refs, message.topic.as_deref(), Status::Error, &response);
            }
            Action::Ignore => self.count("stale"),
        }
    }

    /// Answers the leave of a topic that is not joined, or no more.
    fn answer_leave(&self, refs: (&Ref, &Ref), topic: Option<&str>) {
        self.reply(refs, topic, Status::Ok, &Json::empty_object());
    }

    fn decide(&self, message: &Inbound<'_>) -> Action {
        let limits = &self.core.limits;
        let too_long = |name: &Option<std::borrow::Cow<'_, str>>, max| {
            name.as_ref().is_some_and(|name| name.len() > max)
        };
        if too_long(&message.topic, limits.topic_bytes_max)
            || too_long(&message.event, limits.event_bytes_max)
        {
            return Action::Unmatched;
        }
        let mut session = self.session.lock();
        match session.route(message, limits.topics_per_socket_max) {
            Route::Heartbeat => Action::Heartbeat,
            Route::Join => match message.topic.as_deref().and_then(|name| Topic::parse(self.mount, name)) {
                Some(topic) => Action::Start(topic),
                None => Action::Unmatched,
            },
            Route::TooManyJoins => Action::Refuse(ErrorCode::TooManyChannels),
            Route::Push(join) => Action::Push(join.clone()),
            Route::Leave(join) => {
                // Out of the books at once: what comes behind it finds the topic not joined.
                let left = join.clone();
                session.remove(|join| join.outlet.id() == left.outlet.id());
                Action::Leave(left)
            }
            Route::LeaveUnjoined => Action::LeaveUnjoined,
            Route::Unmatched => Action::Unmatched,
            Route::Stale => Action::Ignore,
        }
    }

    fn push(&self, message: &Inbound<'_>, join: &Arc<JoinActor>) {
        self.count("push");
        let Some((socket, permit)) = self.permit() else { return };
        let rate = self.core.limits.messages_per_socket;
        let now_ms = self.core.environment.monotonic_ms();
        if let Err(wait_ms) = self.bucket.lock().take(rate, 1, now_ms) {
            let response = Refusal::rate_limited(wait_ms).response();
            join.outlet.reply(&message.reference, Status::Error, &response);
            return;
        }
        let push = JoinMessage::Push {
            event: message.event.as_deref().unwrap_or_default().into(),
            payload: OwnedPayload::from(message.payload),
            reference: message.reference.clone(),
            permit,
        };
        // A join that has just ended leaves the push unanswered, as its successor would.
        let _was_there = join.tell(&socket, push);
    }

    fn permit(&self) -> Option<(Arc<Self>, InFlight)> {
        let socket = self.myself.upgrade()?;
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Some((socket.clone(), InFlight(socket)))
    }

    fn join(&self, message: &Inbound<'_>, topic: Topic) {
        if let Err(refusal) = self.admit_join() {
            self.refuse(message, &refusal);
            return;
        }
        let Some((socket, permit)) = self.permit() else { return };
        let name = SmolStr::from(message.topic.as_deref().unwrap_or_default());
        let mut session = self.session.lock();
        let old = session.iter().find(|join| join.topic == name).map(|join| join.handle.clone());
        let replaced = old.as_ref().map(|old| old.outlet.push_ref().clone());
        let owner: std::sync::Weak<dyn JoinOwner> = self.myself.clone();
        let outlet = Arc::new(Outlet::new(
            NEXT_OUTLET.fetch_add(1, Ordering::Relaxed),
            owner,
            (self.sink.clone(), self.version),
            name.clone(),
            (&message.join_ref, &message.reference),
            replaced,
        ));
        let join = JoinActor::new(outlet, topic, self.core.metrics.clone());
        session.insert(name, message.join_ref.clone(), join.clone());
        // In the books before it begins, so that it cannot end before it is there.
        drop(session);
        let mut before = None;
        if let Some(old) = old {
            // Each join is answered: the new one waits until the old one has been.
            match old.outlet.when_answered() {
                Some(answered) => before = Some((old, answered)),
                None => end_join(&old),
            }
        }
        let payload = OwnedPayload::from(message.payload);
        let reference = message.reference.clone();
        join.tell(&socket, JoinMessage::Join { payload, reference, before, permit });
    }

    fn admit_join(&self) -> Result<(), Refusal> {
        let now_ms = self.core.environment.monotonic_ms();
        let rate = self.core.limits.messages_per_socket;
        self.bucket.lock().take(rate, 1, now_ms).map_err(Refusal::rate_limited)?;
        if self.mount == Mount::Main { self.take_signed_event() } else { Ok(()) }
    }

    /// Takes of what an agent may join and sign on the main socket (R60).
    ///
    /// # Errors
    /// `rate_limited`
    pub fn take_signed_event(&self) -> Result<(), Refusal> {
        let Some(agent) = self.principal.agent else { return Ok(()) };
        let now_ms = self.core.environment.monotonic_ms();
        self.core.join_buckets.take(agent, now_ms).map_err(Refusal::rate_limited)
    }

    fn refuse(&self, message: &Inbound<'_>, refusal: &Refusal) {
        self.count("refused");
        self.reply(refs_of(message), message.topic.as_deref(), Status::Error, &refusal.response());
    }

    fn reply(&self, refs: (&Ref, &Ref), topic: Option<&str>, status: Status, response: &Json) {
        let frame = reply_frame(self.version, refs, topic, status, response);
        self.sink.write(Class::Control, &[frame]);
    }

    fn count(&self, kind: &'static str) {
        self.core.metrics.messages_received.get_or_create(&[("kind", kind)]).inc();
    }

    /// Takes a join out of the books, if it is still in them.
    fn forget(&self, outlet: OutletId) -> Option<Join<Arc<JoinActor>>> {
        self.session.lock().remove(|join| join.outlet.id() == outlet)
    }

    /// Closes the connection.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.sink.close(code, reason);
    }

    fn count_close(&self) {
        let metrics = &self.core.metrics;
        let code = match self.sink.close_code() {
            None => return,
            Some(CloseCode::Disconnected) => "1001",
            Some(CloseCode::ProtocolError) => "1002",
            Some(CloseCode::InvalidText) => "1007",
            Some(CloseCode::TooBig) => "1009",
            Some(CloseCode::Undecodable) => "1011",
            Some(CloseCode::Restart) => "1012",
            Some(CloseCode::Overloaded) => {
                metrics.overloaded.inc();
                "1013"
            }
        };
        metrics.closes.get_or_create(&[("code", code)]).inc();
    }

    /// The connection is over: its joins finish what they have been given, and end.
    pub fn finish(&self) {
        self.count_close();
        self.sink.kill();
        let joins = self.session.lock().take_all();
        for join in &joins {
            end_join(&join.handle);
        }
    }
}

/// What a reply to a message echoes.
fn refs_of<'a>(message: &'a Inbound<'_>) -> (&'a Ref, &'a Ref) {
    (&message.join_ref, &message.reference)
}

/// Ends a join without a word: what it has been given already is still done.
fn end_join(join: &JoinActor) {
    join.outlet.silence();
    join.end();
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.registered.get().is_some() {
            self.core.metrics.sockets.dec();
        }
    }
}

impl Connection for Socket {
    fn end(&self, code: CloseCode, reason: &str) {
        self.close(code, reason);
    }

    fn end_if_idle(&self, now_ms: u64) {
        let silent_ms = now_ms.saturating_sub(self.heard_at_ms.load(Ordering::Relaxed));
        if silent_ms >= self.core.limits.socket_idle_timeout_ms {
            self.close(CloseCode::ProtocolError, "idle timeout");
        }
    }

    fn is_socket(&self) -> bool {
        true
    }
}

impl JoinOwner for Socket {
    fn join_failed(&self, outlet: OutletId) {
        if let Some(join) = self.forget(outlet) {
            join.handle.end();
        }
    }
}

/// A payload that outlives the buffer it was read from.
#[derive(Clone, Debug)]
pub enum OwnedPayload {
    /// Any JSON value.
    Json(Json),
    /// Data of a binary push.
    Binary(Bytes),
}

impl From<Payload<'_>> for OwnedPayload {
    fn from(payload: Payload<'_>) -> Self {
        match payload {
            Payload::Json(raw) => Self::Json(Json::from_raw(raw)),
            Payload::Binary(data) => Self::Binary(Bytes::copy_from_slice(data)),
        }
    }
}

impl OwnedPayload {
    /// The JSON.
    ///
    /// # Errors
    /// It is binary.
    pub fn json(&self) -> Result<&Json, Refusal> {
        match self {
            Self::Json(json) => Ok(json),
            Self::Binary(_) => Err(Refusal::invalid("this event takes JSON")),
        }
    }
}
