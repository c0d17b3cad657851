//! What has to be known of senders and recipients to accept a message, kept in memory: so that accepting reads nothing.
//! Whoever changes an agent or its blocks says so ([`crate::notices`]), on this node and the others; and what was read long
//! ago is read again all the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use muster_protocol::agent::Agent;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, UserId};
use muster_protocol::limits::Limits;
use muster_protocol::protocol_version::Version;
use muster_protocol::signing::PublicKey;
use muster_protocol::time::Timestamp;
use parking_lot::{Mutex, RwLock};

use crate::ports::Environment;
use crate::store::{self, Store};
use crate::task_stream::refusal_of;

/// What is known of an agent.
pub struct Address {
    /// Whether it takes part: who is stopped is sent nothing.
    pub may_connect: bool,
    /// Its owner.
    pub owner: Option<UserId>,
    /// Protocol versions it speaks.
    pub versions: Vec<Version>,
    /// Key that its signatures verify with.
    pub public_key: Option<PublicKey>,
    blocked: HashMap<AgentId, Option<Timestamp>>,
    queue: Arc<Mutex<Queue>>,
    read_at_ms: u64,
}

impl Address {
    /// Whether it blocks another agent, or is blocked by it.
    #[must_use]
    pub fn is_blocked(&self, other: AgentId, now: Timestamp) -> bool {
        self.blocked.get(&other).is_some_and(|until| until.is_none_or(|until| now < until))
    }
}

/// What waits for an agent, about: what has come since it was counted is added, what has gone is not taken away, so that at a
/// bound it is counted again.
#[derive(Default)]
struct Queue {
    all: Load,
    /// Of senders: those with much in it when it was counted, and those that have added since.
    senders: HashMap<AgentId, Load>,
    /// When it was counted; never before.
    counted_at_ms: Option<u64>,
    /// Whether there was no room when it was counted.
    was_full: bool,
}

/// Messages, and bytes of their payloads.
#[derive(Clone, Copy, Default)]
struct Load {
    messages: usize,
    bytes: usize,
}

impl Load {
    fn add(&mut self, bytes: usize) {
        self.messages = self.messages.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Whether one more fits under a bound; into an empty one always.
    const fn takes(self, bytes: usize, most: Self) -> bool {
        self.messages == 0 || self.messages < most.messages && self.bytes.saturating_add(bytes) <= most.bytes
    }
}

/// What a recipient's queue takes.
#[derive(Clone, Copy)]
struct Bounds {
    all: Load,
    /// Of one sender.
    each: Load,
}

impl Bounds {
    fn of(limits: &Limits) -> Self {
        let all = Load { messages: limits.mailbox_messages_max, bytes: limits.mailbox_bytes_max };
        let share = |whole: usize| {
            (whole / 100).saturating_mul(limits.mailbox_sender_percent.min(100))
                + whole % 100 * limits.mailbox_sender_percent.min(100) / 100
        };
        Self { all, each: Load { messages: share(all.messages).max(1), bytes: share(all.bytes) } }
    }
}

impl Queue {
    /// Takes a place.
    fn take(&mut self, from: AgentId, bytes: usize, bounds: &Bounds) -> Result<(), Refusal> {
        let refused = |message: &str, most: Load| {
            let full = Refusal::field(ErrorCode::LimitReached, "to_agent_id", message);
            Err(full.with("max", &most.messages).with("bytes_max", &most.bytes))
        };
        if !self.all.takes(bytes, bounds.all) {
            return refused("its queue is full", bounds.all);
        }
        let mine = self.senders.get(&from).copied().unwrap_or_default();
        if !mine.takes(bytes, bounds.each) {
            return refused("what this sender has sent it takes up its share of the queue", bounds.each);
        }
        if mine.messages == 0 && self.senders.len() >= SENDERS_MAX {
            // The next message has it counted, after which those with little are not known.
            self.senders.clear();
            self.counted_at_ms = None;
        }
        self.all.add(bytes);
        self.senders.entry(from).or_default().add(bytes);
        Ok(())
    }

    fn counted(&mut self, waiting: store::Waiting, now_ms: u64) {
        self.all = Load { messages: waiting.messages, bytes: waiting.bytes };
        let heavy = waiting.heavy.into_iter();
        self.senders = heavy.map(|(sender, (messages, bytes))| (sender, Load { messages, bytes })).collect();
        self.counted_at_ms = Some(now_ms);
    }
}

/// Senders to one recipient that are counted one by one before it is counted anew.
const SENDERS_MAX: usize = 1_024;
/// What is older is read again, in milliseconds.
const KEPT_MS: u64 = 5_000;
/// Messages that wait for an agent are counted no more often while there is no room, in milliseconds.
const COUNT_EVERY_MS: u64 = 1_000;

/// What is known of agents.
pub struct Addresses {
    store: Arc<dyn Store>,
    environment: Environment,
    known_max: usize,
    bounds: Bounds,
    known: RwLock<HashMap<AgentId, Arc<Address>>>,
    /// Changes so far: what was read before one is not kept.
    changes: AtomicU64,
}

impl Addresses {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, environment: Environment, limits: &Limits) -> Self {
        let (known_max, bounds) = (limits.message_addresses_max, Bounds::of(limits));
        Self { store, environment, known_max, bounds, known: RwLock::default(), changes: AtomicU64::new(0) }
    }

    /// What is known of an agent.
    ///
    /// # Errors
    /// `not_found`, or the store cannot be read.
    pub async fn of(&self, agent: AgentId) -> Result<Arc<Address>, Refusal> {
        let now_ms = self.environment.monotonic_ms();
        let before = self.known.read().get(&agent).cloned();
        if let Some(address) = &before
            && now_ms.saturating_sub(address.read_at_ms) < KEPT_MS
        {
            return Ok(address.clone());
        }
        let changes = self.changes.load(Ordering::Acquire);
        let record = self.store.agent(agent).await.map_err(refusal_of)?;
        let blocked = self.store.blocked_pairs(agent, self.environment.now()).await.map_err(refusal_of)?;
        let queue = before.map(|address| address.queue.clone());
        let address = Arc::new(address(record, blocked, queue, now_ms));
        let mut known = self.known.write();
        if self.changes.load(Ordering::Acquire) == changes {
            if known.len() >= self.known_max && !known.contains_key(&agent) {
                known.retain(|_, address| now_ms.saturating_sub(address.read_at_ms) < KEPT_MS);
                if known.len() >= self.known_max {
                    known.clear();
                }
            }
            known.insert(agent, address.clone());
        }
        Ok(address)
    }

    /// Takes a place in a recipient's queue for a message of so many bytes, within its sender's share.
    ///
    /// # Errors
    /// `limit_reached`: as much waits as may, of all or of this sender.
    pub async fn take_place(
        &self,
        (from, to): (AgentId, AgentId),
        address: &Address,
        bytes: usize,
    ) -> Result<(), Refusal> {
        let now_ms = self.environment.monotonic_ms();
        let known = {
            let mut queue = address.queue.lock();
            // What has been received meanwhile makes room: one that was not full when it was counted is counted at once.
            let is_old = |at_ms| now_ms.saturating_sub(at_ms) >= COUNT_EVERY_MS;
            let may_count = !queue.was_full || queue.counted_at_ms.is_none_or(is_old);
            match queue.counted_at_ms.map(|_| queue.take(from, bytes, &self.bounds)) {
                Some(Err(_)) if may_count => {
                    // Whoever comes meanwhile need not count too.
                    (queue.counted_at_ms, queue.was_full) = (Some(now_ms), true);
                    None
                }
                known => known,
            }
        };
        if let Some(known) = known {
            return known;
        }
        // Who has less than half a share then counts from nothing: so there are few to remember.
        let heavy = ((self.bounds.each.messages / 2).max(1), (self.bounds.each.bytes / 2).max(1));
        let waiting =
            self.store.waiting_mail(to, self.bounds.all.messages, heavy).await.map_err(refusal_of)?;
        let mut queue = address.queue.lock();
        queue.counted(waiting, now_ms);
        let taken = queue.take(from, bytes, &self.bounds);
        queue.was_full = taken.is_err();
        taken
    }

    /// An agent, or its blocks, have changed.
    pub fn forget(&self, agent: AgentId) {
        let mut known = self.known.write();
        self.changes.fetch_add(1, Ordering::Release);
        known.remove(&agent);
    }

    /// Anything may have changed.
    pub fn forget_all(&self) {
        let mut known = self.known.write();
        self.changes.fetch_add(1, Ordering::Release);
        known.clear();
    }
}

fn address(
    agent: Agent,
    blocked: HashMap<AgentId, Option<Timestamp>>,
    queue: Option<Arc<Mutex<Queue>>>,
    read_at_ms: u64,
) -> Address {
    Address {
        may_connect: agent.status.may_connect(),
        owner: agent.owner,
        versions: Version::list(&agent.protocol_versions),
        public_key: agent.public_key,
        blocked,
        queue: queue.unwrap_or_default(),
        read_at_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(n: u16) -> AgentId {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&n.to_be_bytes());
        AgentId::from_bytes(id)
    }

    fn bounds(messages: usize, bytes: usize, percent: usize) -> Bounds {
        Bounds::of(&Limits {
            mailbox_messages_max: messages,
            mailbox_bytes_max: bytes,
            mailbox_sender_percent: percent,
            ..Limits::default()
        })
    }

    /// R115 R169: by number and by bytes, in all and of each sender; and one message always.
    #[test]
    fn a_queue_takes_so_much_and_of_each_sender_a_share() {
        let bounds = bounds(20, 1_000, 10);
        let (mut queue, mut taken) = (Queue::default(), 0);
        for n in 0..30 {
            let fits = [1, 1, 1].map(|bytes| queue.take(agent(n), bytes, &bounds).is_ok());
            taken += fits.iter().filter(|fits| **fits).count();
            assert_eq!(fits, [n < 10, n < 10, false], "{n}");
        }
        assert_eq!(taken, 20);
        let mut queue = Queue::default();
        assert!(queue.take(agent(1), 5_000, &bounds).is_ok(), "into an empty queue");
        assert!(queue.take(agent(2), 1, &bounds).is_err(), "the queue has its bytes");
        let mut queue = Queue::default();
        assert!(queue.take(agent(1), 99, &bounds).is_ok());
        assert!(queue.take(agent(1), 2, &bounds).is_err(), "the sender has its bytes");
        assert!(queue.take(agent(2), 500, &bounds).is_ok(), "one message always");
    }

    #[test]
    fn shares_are_of_small_and_of_large_bounds() {
        assert_eq!(bounds(5, 7, 10).each.messages, 1);
        assert_eq!(bounds(250, 250, 50).each.bytes, 125);
        assert_eq!(bounds(usize::MAX, usize::MAX, 100).each.bytes, usize::MAX);
        assert_eq!(bounds(100, 100, 900).each.messages, 100);
    }

    #[test]
    fn senders_that_are_remembered_are_bounded() {
        let bounds = bounds(100_000, 1_000_000, 10);
        let mut queue = Queue::default();
        queue.counted(store::Waiting { messages: 7, bytes: 70, heavy: vec![(agent(1), (10_000, 5))] }, 3);
        assert!(queue.take(agent(1), 1, &bounds).is_err(), "as it was counted");
        for n in 0..5_000 {
            queue.take(agent(n.max(2)), 1, &bounds).unwrap();
            assert!(queue.senders.len() <= SENDERS_MAX);
        }
        assert_eq!(queue.all.messages, 5_007);
        assert!(queue.counted_at_ms.is_none(), "it is counted before the next one");
    }
}
