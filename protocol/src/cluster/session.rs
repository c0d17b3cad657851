//! The session of two processes: what one sends the other gets once and in order, whichever transports carry it and
//! however often that changes, or both sides learn that something is missing.
//!
//! Messages wait in a queue, and leave it as numbered frames of many, a few of which may be under way. A frame is kept
//! until it is acknowledged; when the transport changes, or one that may lose frames has acknowledged nothing in time, all
//! that is kept is sent again. The receiver takes the next number only: repeats and gaps are dropped.
//!
//! Each side has an *epoch*, which it raises when it has to begin anew (too much waits, or it had given the other up). A
//! frame names both epochs, and counts only for that pair, so nothing late can slip into another generation. A side that
//! sees the other's epoch raised begins anew too. No number is used twice in a pair: a side begins at 1 exactly when the
//! pair it knows changes, and epochs only rise. The epoch given to [`Session::new`] must be higher than any this process
//! has used with that peer.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::frame::{Frame, Header, ITEM_OVERHEAD_BYTES, Items};

/// Bytes of messages after which a frame takes no more.
const FRAME_BYTES_TARGET: usize = 64 * 1024;
/// Frames under way at once.
const FRAMES_IN_FLIGHT_MAX: usize = 8;
/// Frames received after which an acknowledgement does not wait for something to go along with.
const ACK_AFTER_FRAMES: u64 = FRAMES_IN_FLIGHT_MAX as u64 / 2;
/// The same of the window's bytes: which part of it.
const ACK_AFTER_WINDOW_PART: usize = 4;
/// How long a transport that may lose frames has to bring an acknowledgement before they are sent again, in milliseconds;
/// doubled each time.
const RETRY_AFTER_MS: u64 = 500;
/// Most that is doubled to, in milliseconds.
const RETRY_AFTER_MS_MAX: u64 = 4_000;

/// Bounds of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of messages that wait or are under way; more reset the session.
    pub outbox_bytes_max: usize,
    /// Bytes under way, which is what a transport can hold for a peer that takes nothing. One frame may always be.
    pub window_bytes_max: usize,
    /// Bytes of one message.
    pub message_bytes_max: usize,
}

/// What carries frames just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// Which: another one, or a new connection of the same, has another id.
    pub id: u64,
    /// Whether it brings all it takes, in order, or ends.
    pub reliable: bool,
}

/// What to put into the header of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The own epoch.
    pub epoch: u64,
    /// The peer's epoch, or 0.
    pub peer_epoch: u64,
    /// Number of the frame, or 0.
    pub number: u64,
    /// Last number received in order.
    pub ack: u64,
    /// The messages.
    pub items: Bytes,
}

impl Outgoing {
    /// Writes it into a header.
    #[must_use]
    pub fn header(&self, header: Header) -> Header {
        let Self { epoch, peer_epoch, number, ack, .. } = *self;
        Header { epoch, peer_epoch, number, ack, ..header }
    }
}

/// What came of a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Whether what was under way, both ways, may be lost; this comes before the messages.
    pub reset: bool,
    /// New messages, in order.
    pub items: Items,
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is larger than a message may be.
    TooLarge,
    /// Too much waits: the session has been reset, and all that waited is dropped with it.
    Reset,
}

/// What has been counted since the session began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Times it began anew.
    pub resets: u64,
    /// Messages dropped by that, or refused for their size.
    pub messages_dropped: u64,
}

struct InFlight {
    number: u64,
    items: Bytes,
    messages: u64,
    was_sent: bool,
}

/// See the module.
pub struct Session {
    bounds: Bounds,
    epoch: u64,
    peer_epoch: Option<u64>,
    queue: VecDeque<Bytes>,
    queue_bytes: usize,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    /// Of those in flight, how many this carrier has been given.
    given: usize,
    next_number: u64,
    received: u64,
    acknowledged: u64,
    /// Bytes of messages received since the last acknowledgement.
    unacknowledged_bytes: usize,
    owes_answer: bool,
    carrier: Option<u64>,
    retry_at_ms: u64,
    retry_after_ms: u64,
    counts: Counts,
}

impl Session {
    /// A session that begins, with an epoch higher than any before.
    #[must_use]
    pub fn new(epoch: u64, bounds: Bounds) -> Self {
        Self {
            bounds,
            epoch,
            peer_epoch: None,
            queue: VecDeque::new(),
            queue_bytes: 0,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            given: 0,
            next_number: 1,
            received: 0,
            acknowledged: 0,
            unacknowledged_bytes: 0,
            owes_answer: true,
            carrier: None,
            retry_at_ms: 0,
            retry_after_ms: RETRY_AFTER_MS,
            counts: Counts::default(),
        }
    }

    /// Takes a message for the peer. `next_epoch` is what the session goes on with if it has to be reset.
    ///
    /// # Errors
    /// It is too large; or so much waits that the session was reset, which the caller tells its own side.
    pub fn push(&mut self, message: Bytes, next_epoch: u64) -> Result<(), Refused> {
        let bytes = message.len() + ITEM_OVERHEAD_BYTES;
        if message.len() > self.bounds.message_bytes_max {
            self.counts.messages_dropped += 1;
            return Err(Refused::TooLarge);
        }
        if self.waiting_bytes() + bytes > self.bounds.outbox_bytes_max {
            self.counts.messages_dropped += 1;
            self.reset(next_epoch);
            return Err(Refused::Reset);
        }
        self.queue_bytes += bytes;
        self.queue.push_back(message);
        Ok(())
    }

    /// Begins anew, with a higher epoch; gives how many messages that dropped.
    pub fn reset(&mut self, next_epoch: u64) -> u64 {
        let before = self.counts.messages_dropped;
        self.epoch = self.epoch.max(next_epoch);
        self.begin_anew();
        self.counts.messages_dropped - before
    }

    /// The next frame for this carrier, if one may leave. The caller hands it over, or calls [`Self::give_back`].
    pub fn poll(&mut self, now_ms: u64, carrier: Carrier) -> Option<Outgoing> {
        let peer_epoch = self.peer_epoch?;
        if self.carrier != Some(carrier.id) {
            self.carrier = Some(carrier.id);
            self.retry_after_ms = RETRY_AFTER_MS;
            self.given = 0;
        } else if !carrier.reliable
            && self.given > 0
            && self.given == self.in_flight.len()
            && now_ms >= self.retry_at_ms
        {
            self.retry_after_ms = (self.retry_after_ms * 2).min(RETRY_AFTER_MS_MAX);
            self.given = 0;
        }
        if self.given == self.in_flight.len() {
            self.fill()?;
        }
        let frame = self.in_flight.get_mut(self.given)?;
        frame.was_sent = true;
        let (number, items) = (frame.number, frame.items.clone());
        self.given += 1;
        self.retry_at_ms = now_ms.saturating_add(self.retry_after_ms);
        Some(self.outgoing(peer_epoch, number, items))
    }

    /// The carrier did not take the last frame.
    pub fn give_back(&mut self) {
        self.given = self.given.saturating_sub(1);
    }

    /// A frame without messages: a heartbeat, or an acknowledgement.
    pub fn bare(&mut self) -> Outgoing {
        self.outgoing(self.peer_epoch.unwrap_or(0), 0, Bytes::new())
    }

    /// The carrier did not take what [`Self::bare`] gave: what that acknowledged is owed still.
    pub fn give_back_bare(&mut self) {
        self.owes_answer = true;
    }

    /// Whether an acknowledgement should leave now, without waiting for something to go along with.
    #[must_use]
    pub fn must_answer(&self) -> bool {
        self.owes_answer
            || self.received - self.acknowledged >= ACK_AFTER_FRAMES
            || self.unacknowledged_bytes >= self.bounds.window_bytes_max / ACK_AFTER_WINDOW_PART
    }

    /// Whether something was received that has not been acknowledged.
    #[must_use]
    pub fn may_answer(&self) -> bool {
        self.owes_answer || self.received > self.acknowledged
    }

    /// Takes a frame of this peer's process that was meant for this one.
    pub fn receive(&mut self, frame: Frame) -> Received {
        let Header { epoch, peer_epoch, number, ack, .. } = frame.header;
        let mut received = Received::default();
        match self.peer_epoch {
            Some(known) if epoch < known => {
                self.owes_answer = true;
                return received;
            }
            Some(known) if epoch > known => {
                self.begin_anew();
                received.reset = true;
                self.peer_epoch = Some(epoch);
            }
            Some(_) => {}
            None => {
                self.peer_epoch = Some(epoch);
                self.owes_answer = true;
            }
        }
        if peer_epoch != self.epoch {
            // It does not know this generation yet, and is told.
            self.owes_answer = true;
            return received;
        }
        self.take_ack(ack);
        if number == 0 {
            return received;
        }
        if number == self.received + 1 {
            self.received = number;
            self.unacknowledged_bytes += frame.items.as_bytes().len();
            received.items = frame.items;
        } else {
            self.owes_answer = true;
        }
        received
    }

    /// The own epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Bytes of messages that wait or are under way.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.queue_bytes + self.in_flight_bytes
    }

    /// Frames under way.
    #[must_use]
    pub fn frames_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// What has been counted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Drops all that waits; gives how many messages that was.
    pub fn drop_all(&mut self) -> u64 {
        let waiting =
            self.queue.len() as u64 + self.in_flight.iter().map(|frame| frame.messages).sum::<u64>();
        self.counts.messages_dropped += waiting;
        self.queue = VecDeque::new();
        self.in_flight.clear();
        (self.queue_bytes, self.in_flight_bytes, self.given) = (0, 0, 0);
        waiting
    }

    fn begin_anew(&mut self) {
        self.drop_all();
        self.counts.resets += 1;
        (self.next_number, self.received, self.acknowledged) = (1, 0, 0);
        self.unacknowledged_bytes = 0;
        self.owes_answer = true;
    }

    fn outgoing(&mut self, peer_epoch: u64, number: u64, items: Bytes) -> Outgoing {
        self.acknowledged = self.received;
        self.unacknowledged_bytes = 0;
        self.owes_answer = false;
        Outgoing { epoch: self.epoch, peer_epoch, number, ack: self.received, items }
    }

    /// Makes a frame of what waits, if the window has room.
    fn fill(&mut self) -> Option<()> {
        let first = self.queue.front()?;
        let open = self.in_flight.len() < FRAMES_IN_FLIGHT_MAX
            && (self.in_flight.is_empty()
                || self.in_flight_bytes + first.len() + ITEM_OVERHEAD_BYTES <= self.bounds.window_bytes_max);
        if !open {
            return None;
        }
        let room = FRAME_BYTES_TARGET.min(self.bounds.window_bytes_max.saturating_sub(self.in_flight_bytes));
        let bytes = self.queue_bytes.min(room).max(first.len() + ITEM_OVERHEAD_BYTES);
        let (mut items, mut messages) = (BytesMut::with_capacity(bytes), 0);
        while let Some(message) = self.queue.front() {
            let bytes = message.len() + ITEM_OVERHEAD_BYTES;
            if messages > 0 && items.len() + bytes > room {
                break;
            }
            Items::append(&mut items, message);
            messages += 1;
            self.queue_bytes -= bytes;
            self.queue.pop_front();
        }
        if self.queue.is_empty() {
            // What a burst has grown is given back.
            self.queue.shrink_to(64);
        }
        self.in_flight_bytes += items.len();
        let frame = InFlight { number: self.next_number, items: items.freeze(), messages, was_sent: false };
        self.next_number += 1;
        self.in_flight.push_back(frame);
        Some(())
    }

    fn take_ack(&mut self, ack: u64) {
        while let Some(frame) = self.in_flight.front() {
            // What was never sent is not acknowledged, whatever the peer says.
            if frame.number > ack || !frame.was_sent {
                break;
            }
            self.in_flight_bytes -= frame.items.len();
            self.in_flight.pop_front();
            self.given = self.given.saturating_sub(1);
            self.retry_after_ms = RETRY_AFTER_MS;
        }
    }
}

#[cfg(test)]
mod tests;
