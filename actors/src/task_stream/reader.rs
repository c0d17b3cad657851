//! A reader of a stream: a cursor in the log and a way out.
//!
//! A reader that keeps up is *live*: it is written to as chunks arrive. One whose connection does not take what is sent
//! falls *behind*: nothing is pushed to it any more; when its connection has room again it goes on from the log where it
//! was, from memory or from the store, until it has caught up. Nothing is skipped, and nobody else waits for it.

use std::sync::Arc;

use muster_protocol::account::Principal;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::json::Json;
use muster_protocol::phoenix::Ref;
use muster_protocol::topic::event::STREAM_CHUNK;

use crate::egress::{Burst, Class, OfOutlet, Outcome, Outlet, OutletId};

/// How a reader stands to the end of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// At the end: written to as chunks arrive.
    Live,
    /// Its connection is full; it goes on when there is room.
    WaitsForRoom {
        /// Since when, monotonic milliseconds.
        since_ms: u64,
        /// What the kernel had taken by then.
        taken_bytes: u64,
    },
    /// The store is reading for it.
    WaitsForStore,
}

/// A join on its way to the stream. Whatever becomes of it, it is answered: one that is dropped, as when the stream
/// crashes, says so.
pub(super) struct Joining {
    principal: Principal,
    outlet: Arc<Outlet>,
    reference: Ref,
    answered: bool,
}

impl Joining {
    pub fn new(principal: Principal, outlet: Arc<Outlet>, reference: Ref) -> Self {
        Self { principal, outlet, reference, answered: false }
    }

    /// Answers the join with ok; what comes after `cursor` is to be sent.
    pub fn answer(mut self, response: &Json, cursor: u64) -> Reader {
        self.answered = true;
        self.outlet.open(&self.reference, response);
        Reader {
            principal: self.principal.clone(),
            outlet: self.outlet.clone(),
            id: self.outlet.id(),
            cursor,
            mode: Mode::Live,
            told_end: false,
            released: false,
        }
    }
}

impl Joining {
    /// Answers the join with a refusal.
    pub fn refuse(mut self, refusal: &Refusal) {
        self.answered = true;
        self.outlet.fail_join(&self.reference, refusal.code.reason());
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        if !self.answered {
            self.outlet.fail_join(&self.reference, ErrorCode::JoinCrashed.reason());
        }
    }
}

/// A reader.
pub(super) struct Reader {
    /// Who reads.
    pub principal: Principal,
    pub outlet: Arc<Outlet>,
    id: OutletId,
    /// Last seq it has been sent.
    pub cursor: u64,
    pub mode: Mode,
    /// Whether it has been told how the task ended.
    pub told_end: bool,
    /// Whether it ends in order; otherwise its stream crashed.
    pub released: bool,
}

impl OfOutlet for Reader {
    fn outlet_id(&self) -> OutletId {
        self.id
    }
}

impl Reader {
    /// Writes chunks to it.
    pub fn send_chunks(&mut self, chunks: &[(u64, Json)]) -> Outcome {
        let events = chunks.iter().map(|(_, body)| (STREAM_CHUNK, body.clone())).collect();
        let bytes = Burst::new(self.outlet.topic(), events).pushes(&self.outlet);
        let outcome = self.outlet.write(Class::Stream, &[bytes]);
        if let (Outcome::Taken, Some((seq, _))) = (outcome, chunks.last()) {
            self.cursor = *seq;
        }
        outcome
    }

    /// Notes that its connection is full.
    pub fn fall_behind(&mut self, now_ms: u64) {
        self.mode = Mode::WaitsForRoom { since_ms: now_ms, taken_bytes: self.outlet.sink().taken_bytes() };
    }

    /// Whether its connection has taken nothing for so long.
    pub fn is_stalled(&mut self, now_ms: u64, stall_ms: u64) -> bool {
        let Mode::WaitsForRoom { since_ms, taken_bytes } = self.mode else {
            return false;
        };
        if self.outlet.sink().taken_bytes() > taken_bytes {
            self.fall_behind(now_ms);
            return false;
        }
        now_ms.saturating_sub(since_ms) >= stall_ms
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.released {
            self.outlet.fail(ErrorCode::ChannelCrash.reason());
        }
    }
}
