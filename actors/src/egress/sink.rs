//! The way out of one connection: bytes go to the kernel at once, and what it does not take waits in a bounded queue.
//!
//! Whoever has something for the connection writes it here, from any task (DESIGN: frames do not travel through
//! mailboxes). Order is kept because nothing is written past a queue that is not empty. The connection's own loop
//! drains the queue when the kernel takes more.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};

use bytes::{Buf, Bytes};
use muster_protocol::limits::{Limits, OUTBOUND_RESERVE_BYTES};
use muster_protocol::websocket::{CloseCode, encoder};
use parking_lot::Mutex;

/// What a connection can do for the sink: take bytes now, or say that it cannot.
pub trait Transport: Send + Sync + 'static {
    /// Writes what is possible without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when nothing can be written now; anything else means that the connection is dead.
    fn try_write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Whether it holds bytes that it took and could not pass on, as TLS does; the connection's loop brings them out.
    fn holds_back(&self) -> bool {
        false
    }
}

/// Which bound a write is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Chunks of a stream, which has a log to fall back to: refused early.
    Stream,
    /// Broadcasts, which have none.
    Broadcast,
    /// A whole state, shared by all who get it: one at a time, of any size. What follows it is bounded as if it were not
    /// there, so that a peer that takes it steadily is not too slow for what comes meanwhile.
    Snapshot,
    /// Replies and closes: allowed above the bound, by a reserve.
    Control,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel has it, or it waits in the queue.
    Taken,
    /// The queue is full; nothing of it was taken.
    Full,
    /// The connection is closing or closed.
    Gone,
}

/// Bounds of one sink, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct SinkLimits {
    stream_max: usize,
    broadcast_max: usize,
    control_max: usize,
}

impl From<&Limits> for SinkLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            stream_max: limits.reader_lag_bytes_max.min(limits.outbound_queue_bytes_max),
            broadcast_max: limits.outbound_queue_bytes_max,
            control_max: limits.outbound_queue_bytes_max + OUTBOUND_RESERVE_BYTES,
        }
    }
}

/// What to do once there is room again.
pub type Drained = Box<dyn FnOnce() + Send>;

/// The way out of one connection.
pub struct Sink {
    inner: Mutex<Inner>,
    transport: Box<dyn Transport>,
    limits: SinkLimits,
    /// Bytes the kernel has taken so far: how a stalled reader is told from a slow one.
    taken: AtomicU64,
}

#[derive(Default)]
struct Inner {
    queue: VecDeque<Bytes>,
    queued_bytes: usize,
    /// Bytes ever put into the queue.
    enqueued_bytes: u64,
    /// What that was behind the last snapshot.
    snapshot_end: u64,
    state: State,
    waker: Option<Waker>,
    drained: Vec<Drained>,
    /// Whether the connection's loop is at work and writes what there is when it is done.
    corked: bool,
    /// Whether what waits was put there to be joined by more.
    unhurried: bool,
    /// Why we closed, if we did.
    close_code: Option<CloseCode>,
}

impl Inner {
    /// Whether nothing is to leave before what is written now.
    fn may_write_now(&self) -> bool {
        self.queue.is_empty() && !self.corked
    }

    /// Bytes in the queue, without a snapshot and what is before it.
    fn backlog(&self) -> usize {
        let behind_snapshot = self.enqueued_bytes - self.snapshot_end;
        usize::try_from(behind_snapshot).map_or(self.queued_bytes, |behind| behind.min(self.queued_bytes))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// A close frame is the last thing in the queue.
    Closing,
    Dead,
}

/// Parts handed to the kernel at once.
const PARTS_MAX: usize = 64;

impl Sink {
    /// For a connection.
    #[must_use]
    pub fn new(transport: Box<dyn Transport>, limits: SinkLimits) -> Self {
        Self { inner: Mutex::default(), transport, limits, taken: AtomicU64::new(0) }
    }

    /// Writes `parts`, which belong together, or none of them.
    pub fn write(&self, class: Class, parts: &[Bytes]) -> Outcome {
        self.write_if(class, parts, || true)
    }

    /// The same, unless `still_wanted` says no; it is asked under the lock, so its answer holds for the write.
    pub fn write_if(&self, class: Class, parts: &[Bytes], still_wanted: impl FnOnce() -> bool) -> Outcome {
        let mut inner = self.inner.lock();
        if inner.state != State::Open || !still_wanted() {
            return Outcome::Gone;
        }
        self.write_locked(&mut inner, class, parts)
    }

    /// Runs `change` and then writes the parts it gives, under one lock: what others write comes before or after both.
    pub fn write_with(&self, class: Class, change: impl FnOnce() -> Vec<Bytes>) -> Outcome {
        let mut inner = self.inner.lock();
        let parts = change();
        if inner.state != State::Open {
            return Outcome::Gone;
        }
        self.write_locked(&mut inner, class, &parts)
    }

    /// Writes `parts` soon: the connection's loop does it, after whatever else is ready to run now. What many tasks have
    /// for one connection, such as the acknowledgements of one producer's streams, leaves as one write.
    pub fn write_soon(&self, class: Class, parts: &[Bytes]) -> Outcome {
        let mut inner = self.inner.lock();
        if inner.state != State::Open {
            return Outcome::Gone;
        }
        if let Err(refused) = self.admit(&mut inner, class) {
            return refused;
        }
        inner.unhurried |= inner.queue.is_empty();
        enqueue(&mut inner, parts, 0);
        Outcome::Taken
    }

    /// From here on what is written waits for [`Self::uncork`]. Called by the connection's loop, around its own work.
    pub fn cork(&self) {
        self.inner.lock().corked = true;
    }

    /// Ends [`Self::cork`]; whether something waits.
    pub fn uncork(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.corked = false;
        !inner.queue.is_empty() || inner.state != State::Open || self.transport.holds_back()
    }

    fn has_room(&self, inner: &Inner) -> bool {
        inner.queued_bytes <= self.limits.stream_max / 2
    }

    fn write_locked(&self, inner: &mut Inner, class: Class, parts: &[Bytes]) -> Outcome {
        if let Err(refused) = self.admit(inner, class) {
            return refused;
        }
        let written = if inner.may_write_now() { self.write_now(inner, parts) } else { 0 };
        enqueue(inner, parts, written);
        if class == Class::Snapshot {
            inner.snapshot_end = inner.enqueued_bytes;
        }
        Outcome::Taken
    }

    /// Holds a write to its bound.
    fn admit(&self, inner: &mut Inner, class: Class) -> Result<(), Outcome> {
        let (waiting, queue_max) = match class {
            Class::Stream => (inner.queued_bytes, self.limits.stream_max),
            // As long as `when_drained` would wait: whoever is told to wait by it has room afterwards.
            Class::Snapshot if inner.backlog() < inner.queued_bytes && !self.has_room(inner) => {
                return Err(Outcome::Full);
            }
            Class::Snapshot | Class::Broadcast => (inner.backlog(), self.limits.broadcast_max),
            Class::Control => (inner.backlog(), self.limits.control_max),
        };
        if waiting > queue_max {
            if class == Class::Control {
                // Not even replies get out: the peer asks and asks and does not read.
                self.close_locked(inner, CloseCode::Overloaded, "replies are not read");
            }
            return Err(Outcome::Full);
        }
        Ok(())
    }

    /// Writes to the kernel past the empty queue; gives the bytes it took.
    fn write_now(&self, inner: &mut Inner, parts: &[Bytes]) -> usize {
        if parts.len() > PARTS_MAX {
            return 0;
        }
        let mut slices = [IoSlice::new(&[]); PARTS_MAX];
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        match self.transport.try_write(&slices[..parts.len()]) {
            Ok(written) => {
                self.taken.fetch_add(written as u64, Ordering::Relaxed);
                if self.transport.holds_back() {
                    wake(inner);
                }
                written
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => {
                // The loop finds out by itself when it reads; it only has to wake.
                inner.state = State::Dead;
                0
            }
        }
    }

    /// Drains the queue as far as the kernel takes it. Called by the connection's loop.
    ///
    /// # Errors
    /// The connection is dead.
    pub fn flush(&self) -> io::Result<Flushed> {
        let (result, drained) = {
            let mut inner = self.inner.lock();
            let result = self.flush_locked(&mut inner);
            let drained = if self.has_room(&inner) { std::mem::take(&mut inner.drained) } else { Vec::new() };
            (result, drained)
        };
        for call in drained {
            call();
        }
        result
    }

    fn flush_locked(&self, inner: &mut Inner) -> io::Result<Flushed> {
        while !inner.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); PARTS_MAX];
            let parts = inner.queue.len().min(PARTS_MAX);
            for (slice, part) in slices.iter_mut().zip(&inner.queue) {
                *slice = IoSlice::new(part);
            }
            match self.transport.try_write(&slices[..parts]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.taken.fetch_add(written as u64, Ordering::Relaxed);
                    dequeue(inner, written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Flushed::Blocked),
                Err(error) => {
                    inner.state = State::Dead;
                    return Err(error);
                }
            }
        }
        match inner.state {
            State::Open => Ok(Flushed::Empty),
            State::Closing => Ok(Flushed::Closed),
            State::Dead => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Closes the WebSocket: a close frame follows what is queued, and nothing follows it.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.close_locked(&mut self.inner.lock(), code, reason);
    }

    fn close_locked(&self, inner: &mut Inner, code: CloseCode, reason: &str) {
        if inner.state == State::Open {
            inner.close_code = Some(code);
        }
        self.close_with(inner, encoder::close(code, reason));
    }

    /// The code we closed with, if it was us who did.
    #[must_use]
    pub fn close_code(&self) -> Option<CloseCode> {
        self.inner.lock().close_code
    }

    /// Answers the peer's close with its own code.
    pub fn close_echo(&self, number: Option<u16>) {
        self.close_with(&mut self.inner.lock(), encoder::close_echo(number));
    }

    fn close_with(&self, inner: &mut Inner, frame: Bytes) {
        if inner.state != State::Open {
            return;
        }
        let parts = [frame];
        let written = if inner.may_write_now() { self.write_now(inner, &parts) } else { 0 };
        enqueue(inner, &parts, written);
        if inner.state == State::Open {
            inner.state = State::Closing;
        }
        wake(inner);
    }

    /// Ends without a close frame. Nothing is written any more, and what waits is dropped.
    pub fn kill(&self) {
        let mut inner = self.inner.lock();
        inner.state = State::Dead;
        inner.queue = VecDeque::new();
        inner.queued_bytes = 0;
        inner.drained = Vec::new();
        wake(&mut inner);
    }

    /// Whether it is closing or dead.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.lock().state != State::Open
    }

    /// Bytes in the queue that count against its bound.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.inner.lock().backlog()
    }

    /// Bytes in the queue.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.inner.lock().queued_bytes
    }

    /// Bytes the kernel has taken since the start.
    #[must_use]
    pub fn taken_bytes(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Calls back once the queue has room for a stream again: at once if it has.
    pub fn when_drained(&self, call: Drained) {
        let mut inner = self.inner.lock();
        if inner.state == State::Open && !self.has_room(&inner) {
            inner.drained.push(call);
            return;
        }
        drop(inner);
        call();
    }

    /// Registers the connection's loop to be woken when there is something to do, and says what there is already.
    pub fn poll_work(&self, context: &Context<'_>) -> Work {
        let mut inner = self.inner.lock();
        if !inner.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            inner.waker = Some(context.waker().clone());
        }
        if inner.state != State::Open || self.transport.holds_back() {
            return Work::Now;
        }
        let unhurried = std::mem::take(&mut inner.unhurried);
        match inner.queue.is_empty() {
            true => Work::Nothing,
            false if unhurried => Work::Soon,
            false => Work::Now,
        }
    }

    /// Wakes the connection's loop.
    pub fn wake(&self) {
        wake(&mut self.inner.lock());
    }
}

/// What a connection's loop has to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Nothing.
    Nothing,
    /// Something, once what else is ready to run has run: it may have more.
    Soon,
    /// Something.
    Now,
}

/// How far a flush came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// The queue is empty.
    Empty,
    /// The kernel takes no more now.
    Blocked,
    /// The queue is empty and the close frame has gone out.
    Closed,
}

fn wake(inner: &mut Inner) {
    if let Some(waker) = inner.waker.take() {
        waker.wake();
    }
}

fn enqueue(inner: &mut Inner, parts: &[Bytes], mut written: usize) {
    let was_empty = inner.queue.is_empty();
    for part in parts {
        let skip = written.min(part.len());
        written -= skip;
        if skip < part.len() {
            inner.queued_bytes += part.len() - skip;
            inner.enqueued_bytes += (part.len() - skip) as u64;
            inner.queue.push_back(part.slice(skip..));
        }
    }
    if was_empty && !inner.corked && (!inner.queue.is_empty() || inner.state == State::Dead) {
        wake(inner);
    }
}

fn dequeue(inner: &mut Inner, mut written: usize) {
    inner.queued_bytes -= written;
    while let Some(front) = inner.queue.front_mut() {
        if written < front.len() {
            front.advance(written);
            return;
        }
        written -= front.len();
        inner.queue.pop_front();
    }
    // An idle connection holds no buffer.
    inner.queue = VecDeque::new();
}

#[cfg(test)]
pub(crate) mod tests;
