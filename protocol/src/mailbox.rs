//! What is on its way to one recipient, as one node sees it: a window of messages that wait for their acknowledgement, the
//! oldest first, and when each is pushed again (R113, R119, R120).
//!
//! A pure machine. Whoever runs it asks for the next [`Step`], has the store do it, and tells what came of it. The store
//! decides: a message is pushed only after the store has counted the push, and it counts none of a message that is
//! settled. So several nodes may run this for one recipient, and each pushes to the connections it has. What is settled
//! while the store is asked about it ([`Mailbox::settle`]) is not pushed either, however its answer reads.
//!
//! A recipient whose connection has fallen silent cannot acknowledge, and the node finds out late. So a message is given up
//! only if its recipient was heard of since the last push ([`Mailbox::heard`]); one that nobody showed any life after is
//! queued again, as if it had not been pushed, when the connection is gone ([`Mailbox::unheard`]).

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::ids::MessageId;

/// Pushes after the first (R119).
pub const RETRIES_MAX: u32 = 5;
/// Most and least of a random part of a delay, in thousandths of it (R119: 20 % more or less).
pub const JITTER_PER_MILLE: i64 = 200;

/// What bounds the way to a recipient.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Messages that wait for an acknowledgement at once.
    pub window: usize,
    /// Delay before the first retry, in milliseconds; each further one is twice as long.
    pub first_delay_ms: u64,
}

impl Terms {
    /// How long an acknowledgement is waited for after so many retries, with a random part in thousandths. After the last
    /// retry as long as before it.
    #[must_use]
    pub fn delay_ms(&self, retries: u32, jitter_per_mille: i64) -> u64 {
        let doublings = retries.min(RETRIES_MAX - 1);
        let plain = self.first_delay_ms.saturating_mul(1 << doublings);
        let per_mille = 1_000 + jitter_per_mille.clamp(-JITTER_PER_MILLE, JITTER_PER_MILLE);
        plain.saturating_mul(per_mille.unsigned_abs()) / 1_000
    }
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take so many of the oldest messages that are not among these, count their first push, and push them.
    Fetch {
        /// Places in the queue of those under way.
        known: Vec<u64>,
        /// How many.
        room: usize,
    },
    /// Count one more push of these, unless somebody else has, and push them.
    Retry(Vec<Attempt>),
    /// These were pushed as often as may be: give them up.
    Fail(Vec<u64>),
    /// Nothing, until then; nothing at all without a time. In milliseconds of the caller's clock.
    Wait(Option<u64>),
}

/// A push that is to be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Place in the queue.
    pub seq: u64,
    /// Retries that were counted as far as is known here.
    pub retries: u32,
}

/// A message that the store has given, its push counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Place in the queue.
    pub seq: u64,
    /// Which.
    pub id: MessageId,
    /// Retries that are counted.
    pub retries: u32,
    /// Whether it waits for an acknowledgement: not when it is pushed at most once.
    pub is_open: bool,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    id: MessageId,
    retries: u32,
    due_ms: u64,
    pushed_ms: u64,
}

/// The way to one recipient.
#[derive(Debug)]
pub struct Mailbox {
    terms: Terms,
    /// By place in the queue; as many as the window has at most.
    under_way: BTreeMap<u64, Flight>,
    places: HashMap<MessageId, u64>,
    /// Whether there may be messages that are not under way.
    has_more: bool,
    /// What was settled since the store was asked last: as many as settle within one call of the store.
    settled: HashSet<MessageId>,
    asking: bool,
    /// Nothing is asked of the store before this.
    paused_until_ms: u64,
    /// When the recipient was heard of last.
    heard_ms: u64,
}

/// Messages that are tried again, or given up, in one step.
const DUE_AT_ONCE: usize = 50;

impl Mailbox {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            under_way: BTreeMap::new(),
            places: HashMap::new(),
            has_more: true,
            settled: HashSet::new(),
            asking: false,
            paused_until_ms: 0,
            heard_ms: 0,
        }
    }

    /// The recipient was heard of then, over any of its connections and whatever it said.
    pub fn heard(&mut self, at_ms: u64) {
        self.heard_ms = self.heard_ms.max(at_ms);
    }

    /// Those under way after whose last push nothing was heard of the recipient, which is gone: they are to be queued again. They
    /// are not under way any more.
    pub fn unheard(&mut self) -> Vec<Attempt> {
        let heard_ms = self.heard_ms;
        let unheard: Vec<Attempt> = self
            .under_way
            .iter()
            .filter(|(_, flight)| flight.pushed_ms >= heard_ms)
            .map(|(seq, flight)| Attempt { seq: *seq, retries: flight.retries })
            .collect();
        for attempt in &unheard {
            self.drop_flight(attempt.seq);
        }
        self.has_more |= !unheard.is_empty();
        unheard
    }

    /// There may be new messages.
    pub const fn news(&mut self) {
        self.has_more = true;
    }

    /// A message was acknowledged, rejected or expired: it is not pushed any more. Whether there is room for others now
    /// that wait.
    pub fn settle(&mut self, id: MessageId) -> bool {
        if self.asking {
            self.settled.insert(id);
        }
        self.forget(id);
        self.has_more
    }

    /// Whether a message may be pushed: it is under way, and not settled.
    #[must_use]
    pub fn is_under_way(&self, seq: u64) -> bool {
        self.under_way.contains_key(&seq)
    }

    /// Those under way behind a place, the oldest first: what a connection that has come since is to be pushed.
    #[must_use]
    pub fn behind(&self, seq: u64, most: usize) -> Vec<u64> {
        self.under_way.range(seq.saturating_add(1)..).map(|(seq, _)| *seq).take(most).collect()
    }

    /// A connection that has come since was pushed these, which counts no retry: their delay begins anew, so that whoever
    /// has come back has time to say something (R120).
    pub fn pushed_again(&mut self, seqs: impl Iterator<Item = u64>, now_ms: u64) {
        for seq in seqs {
            if let Some(flight) = self.under_way.get_mut(&seq) {
                flight.pushed_ms = now_ms;
                flight.due_ms =
                    flight.due_ms.max(now_ms.saturating_add(self.terms.delay_ms(flight.retries, 0)));
            }
        }
    }

    /// What is to be done next, if somebody can take what is pushed. Followed by what came of it, before the next one.
    pub fn step(&mut self, now_ms: u64, can_push: bool) -> Step {
        if !can_push {
            return Step::Wait(None);
        }
        if now_ms < self.paused_until_ms {
            return Step::Wait(Some(self.paused_until_ms));
        }
        let heard_ms = self.heard_ms;
        let due = |flight: &Flight| flight.due_ms <= now_ms;
        let is_last = |flight: &Flight| flight.retries >= RETRIES_MAX;
        let over: Vec<u64> = self
            .under_way
            .iter()
            .filter(|(_, flight)| due(flight) && is_last(flight) && flight.pushed_ms < heard_ms)
            .map(|(seq, _)| *seq)
            .take(DUE_AT_ONCE)
            .collect();
        if !over.is_empty() {
            return self.ask(Step::Fail(over));
        }
        let again: Vec<Attempt> = self
            .under_way
            .iter()
            .filter(|(_, flight)| due(flight) && !is_last(flight))
            .map(|(seq, flight)| Attempt { seq: *seq, retries: flight.retries })
            .take(DUE_AT_ONCE)
            .collect();
        if !again.is_empty() {
            return self.ask(Step::Retry(again));
        }
        let room = self.terms.window.saturating_sub(self.under_way.len());
        if self.has_more && room > 0 {
            // What comes from here on is told again.
            self.has_more = false;
            let known = self.under_way.keys().copied().collect();
            return self.ask(Step::Fetch { known, room });
        }
        // What is left to be given up waits for a sign of life.
        let look_again_ms = now_ms.saturating_add(self.terms.first_delay_ms.max(1));
        let next = |flight: &Flight| if due(flight) { look_again_ms } else { flight.due_ms };
        Step::Wait(self.under_way.values().map(next).min())
    }

    fn ask(&mut self, step: Step) -> Step {
        self.asking = true;
        step
    }

    /// The store gave these for a [`Step::Fetch`], `full` when there may be more. Gives those that are to be pushed, by
    /// their places in the argument. `jitter` draws a number between plus and minus [`JITTER_PER_MILLE`].
    pub fn fetched(
        &mut self,
        found: &[Counted],
        full: bool,
        now_ms: u64,
        jitter: impl FnMut() -> i64,
    ) -> Vec<usize> {
        self.has_more |= full;
        self.take(found, now_ms, jitter)
    }

    /// The store has counted these pushes of a [`Step::Retry`], here or at another node; those that it did not give are
    /// settled. Gives those that are to be pushed, as [`Self::fetched`] does.
    pub fn retried(
        &mut self,
        asked: &[Attempt],
        found: &[Counted],
        now_ms: u64,
        jitter: impl FnMut() -> i64,
    ) -> Vec<usize> {
        for attempt in asked {
            if !found.iter().any(|counted| counted.seq == attempt.seq) {
                self.drop_flight(attempt.seq);
                // One that another node has queued again meanwhile is found anew.
                self.has_more = true;
            }
        }
        self.take(found, now_ms, jitter)
    }

    /// The store has given up what could be given up of these.
    pub fn failed(&mut self, asked: &[u64]) {
        self.answered();
        for seq in asked {
            self.drop_flight(*seq);
        }
        // One that another node has queued again meanwhile is found anew.
        self.has_more = true;
    }

    /// The store could not be asked: it is asked again after a time.
    pub fn failed_to_ask(&mut self, now_ms: u64, pause_ms: u64) {
        self.answered();
        self.has_more = true;
        self.paused_until_ms = now_ms.saturating_add(pause_ms);
    }

    fn take(&mut self, found: &[Counted], now_ms: u64, mut jitter: impl FnMut() -> i64) -> Vec<usize> {
        let mut pushed = Vec::with_capacity(found.len());
        for (at, counted) in found.iter().enumerate() {
            if self.settled.contains(&counted.id) {
                self.drop_flight(counted.seq);
                continue;
            }
            pushed.push(at);
            if counted.is_open {
                let due_ms = now_ms.saturating_add(self.terms.delay_ms(counted.retries, jitter()));
                let flight = Flight { id: counted.id, retries: counted.retries, due_ms, pushed_ms: now_ms };
                self.under_way.insert(counted.seq, flight);
                self.places.insert(counted.id, counted.seq);
            }
        }
        self.answered();
        pushed
    }

    fn answered(&mut self) {
        self.asking = false;
        self.settled = HashSet::new();
    }

    fn forget(&mut self, id: MessageId) {
        if let Some(seq) = self.places.remove(&id) {
            self.under_way.remove(&seq);
        }
    }

    fn drop_flight(&mut self, seq: u64) {
        if let Some(flight) = self.under_way.remove(&seq) {
            self.places.remove(&flight.id);
        }
    }
}

#[cfg(test)]
mod tests;
