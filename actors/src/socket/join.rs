//! The actor of one joined topic: it joins, handles pushes one after another, and leaves.
//!
//! Between two messages it sleeps: all there is of it is what its channel holds on to, parked here. A message wakes it,
//! and is handled on the spot as far as that goes without waiting; only what has to wait, for the store say, gets a task
//! and a mailbox ([`super::actor`]), until nothing is left to do. So an idle join costs some hundred bytes, and a message
//! that needs not wait costs no hop.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::phoenix::Ref;
use muster_protocol::phoenix::encode::Status;
use muster_protocol::topic::Topic;
use parking_lot::Mutex;
use smol_str::SmolStr;
use tokio::sync::oneshot;

use super::{InFlight, OwnedPayload, Socket};
use crate::channels::{Answer, Channel};
use crate::egress::Outlet;
use crate::metric_definitions::Metrics;

/// What a join is told.
pub(super) enum JoinMessage {
    /// Join.
    Join {
        payload: OwnedPayload,
        /// What the reply must echo.
        reference: Ref,
        /// The join of the same topic that this one replaces, and when that one has been answered.
        before: Option<(Arc<JoinActor>, oneshot::Receiver<()>)>,
        /// Its place among the messages in work.
        permit: InFlight,
    },
    /// The client pushes an event.
    Push { event: SmolStr, payload: OwnedPayload, reference: Ref, permit: InFlight },
    /// The client leaves.
    Leave {
        /// `join_ref` and `ref`, which the reply must echo.
        refs: (Ref, Ref),
        permit: InFlight,
    },
}

/// One message being handled; it gives back what the channel holds on to, if it is still joined.
pub(super) type Turn = Pin<Box<dyn Future<Output = Option<Channel>> + Send>>;

/// The actor.
pub(super) struct JoinActor {
    pub outlet: Arc<Outlet>,
    topic: Topic,
    inner: Mutex<Inner>,
    metrics: Arc<Metrics>,
}

struct Inner {
    phase: Phase,
    /// Messages that wait; they hold places among those in work of their socket, which bounds them.
    queue: VecDeque<JoinMessage>,
    /// Whether it ends once nothing waits.
    ending: bool,
}

enum Phase {
    Asleep(Option<Channel>),
    Awake,
    Ended,
}

impl JoinActor {
    /// Asleep, and not joined yet.
    pub fn new(outlet: Arc<Outlet>, topic: Topic, metrics: Arc<Metrics>) -> Arc<Self> {
        metrics.joins.inc();
        let inner = Inner { phase: Phase::Asleep(None), queue: VecDeque::new(), ending: false };
        Arc::new(Self { outlet, topic, inner: Mutex::new(inner), metrics })
    }

    /// Tells it something; whether it was there to hear it.
    pub fn tell(self: &Arc<Self>, socket: &Arc<Socket>, message: JoinMessage) -> bool {
        let channel = {
            let mut inner = self.inner.lock();
            match std::mem::replace(&mut inner.phase, Phase::Awake) {
                Phase::Asleep(channel) => channel,
                Phase::Awake => {
                    inner.queue.push_back(message);
                    return true;
                }
                Phase::Ended => {
                    inner.phase = Phase::Ended;
                    return false;
                }
            }
        };
        let mut turn = self.turn(socket, channel, message);
        loop {
            let mut context = Context::from_waker(Waker::noop());
            match catch_unwind(AssertUnwindSafe(|| turn.as_mut().poll(&mut context))) {
                Ok(Poll::Ready(channel)) => match self.next_turn(socket, channel) {
                    Some(next) => turn = next,
                    None => return true,
                },
                Ok(Poll::Pending) => {
                    socket.stay_awake(self, turn);
                    return true;
                }
                Err(_panicked) => {
                    self.metrics.crashes.get_or_create(&[("kind", "join")]).inc();
                    tracing::error!("a channel crashed");
                    socket.join_crashed(self);
                    return true;
                }
            }
        }
    }

    /// What to do after a turn: the next message, or sleep.
    pub fn next_turn(self: &Arc<Self>, socket: &Arc<Socket>, channel: Option<Channel>) -> Option<Turn> {
        let mut inner = self.inner.lock();
        if let Some(message) = inner.queue.pop_front() {
            drop(inner);
            return Some(self.turn(socket, channel, message));
        }
        // An idle join holds no buffer.
        inner.queue = VecDeque::new();
        if inner.ending {
            inner.phase = Phase::Ended;
            // What it held on to is given up without the lock.
            drop(inner);
            drop(channel);
        } else {
            inner.phase = Phase::Asleep(channel);
        }
        None
    }

    /// Ends it once everything it has been told is done.
    pub fn end(&self) {
        let mut inner = self.inner.lock();
        inner.ending = true;
        if matches!(inner.phase, Phase::Asleep(_)) {
            let asleep = std::mem::replace(&mut inner.phase, Phase::Ended);
            drop(inner);
            drop(asleep);
        }
    }

    /// Ends it at once; gives what it was told and did not come to.
    pub fn crash(&self) -> VecDeque<JoinMessage> {
        let mut inner = self.inner.lock();
        let phase = std::mem::replace(&mut inner.phase, Phase::Ended);
        let queue = std::mem::take(&mut inner.queue);
        drop(inner);
        drop(phase);
        queue
    }

    fn turn(self: &Arc<Self>, socket: &Arc<Socket>, channel: Option<Channel>, message: JoinMessage) -> Turn {
        let (this, socket) = (self.clone(), socket.clone());
        match message {
            JoinMessage::Join { payload, reference, before, permit } => Box::pin(async move {
                let _until_answered = permit;
                let old = match before {
                    Some((old, answered)) => {
                        // It has crashed if it does not say so.
                        let _answered = answered.await;
                        old.outlet.silence();
                        Some(Replaced(old))
                    }
                    None => None,
                };
                let channel = this.join(&socket, &payload, &reference).await;
                drop(old);
                channel
            }),
            JoinMessage::Push { event, payload, reference, permit } => Box::pin(async move {
                let _until_answered = permit;
                let mut channel = channel;
                this.push(&socket, channel.as_mut(), &event, payload, &reference).await;
                channel
            }),
            JoinMessage::Leave { refs, permit } => Box::pin(async move {
                let _until_answered = permit;
                // A stream answers its joins itself: the leave behind one waits for that.
                if let Some(answered) = this.outlet.when_answered() {
                    let _answered = answered.await;
                }
                this.leave(&socket, channel, &refs);
                None
            }),
        }
    }

    async fn join(&self, socket: &Arc<Socket>, payload: &OwnedPayload, reference: &Ref) -> Option<Channel> {
        let joined = Channel::join(socket, &self.outlet, self.topic, payload, reference).await;
        let outcome = if joined.is_ok() { "ok" } else { "refused" };
        self.metrics.joins_total.get_or_create(&[("outcome", outcome)]).inc();
        match joined {
            Ok(channel) => Some(channel),
            Err(refusal) => {
                socket.forget(self.outlet.id());
                self.outlet.refuse(reference, &refusal.response());
                self.end();
                None
            }
        }
    }

    async fn push(
        &self,
        socket: &Arc<Socket>,
        channel: Option<&mut Channel>,
        event: &str,
        payload: OwnedPayload,
        reference: &Ref,
    ) {
        let outlet = &self.outlet;
        let Some(channel) = channel else {
            // It came behind a refused join or a leave: the topic is not joined.
            let response = Refusal::new(ErrorCode::UnmatchedTopic).response();
            socket.reply((&Ref::NULL, reference), Some(outlet.topic()), Status::Error, &response);
            return;
        };
        match channel.push(socket, outlet, event, payload, reference).await {
            Ok(Answer::Now(response)) => {
                outlet.reply(reference, Status::Ok, &response);
            }
            Ok(Answer::Later) => {}
            Err(refusal) => {
                outlet.reply(reference, Status::Error, &refusal.response());
            }
        }
    }

    fn leave(&self, socket: &Socket, channel: Option<Channel>, (join_ref, reference): &(Ref, Ref)) {
        socket.forget(self.outlet.id());
        // Else it came behind a refused join or another leave, or the join has been closed meanwhile.
        if channel.is_none() || !self.outlet.leave(reference) {
            socket.answer_leave((join_ref, reference), Some(self.outlet.topic()));
        }
        drop(channel);
        self.end();
    }
}

/// A join that is being replaced. It says nothing more, and holds on to what it has until the new one is answered, so that
/// nobody is told that an agent is gone which is not (agrenting.md R55).
struct Replaced(Arc<JoinActor>);

impl Drop for Replaced {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Drop for JoinActor {
    fn drop(&mut self) {
        self.metrics.joins.dec();
    }
}
