//! What has to be known of senders and recipients to accept a message, kept in memory: so that accepting reads nothing.
//! Whoever changes an agent or its blocks says so ([`crate::notices`]), on this node and the others; and what was read long
//! ago is read again all the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use muster_protocol::agent::Agent;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, UserId};
use muster_protocol::limits::Limits;
use muster_protocol::protocol_version::Version;
use muster_protocol::signing::PublicKey;
use muster_protocol::time::Timestamp;
use parking_lot::RwLock;

use crate::ports::Environment;
use crate::store::Store;
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
    waiting: Arc<Waiting>,
    read_at_ms: u64,
}

impl Address {
    /// Whether it blocks another agent, or is blocked by it.
    #[must_use]
    pub fn is_blocked(&self, other: AgentId, now: Timestamp) -> bool {
        self.blocked.get(&other).is_some_and(|until| until.is_none_or(|until| now < until))
    }
}

/// How many messages wait for an agent, about: what has come since they were counted is added, what has gone is not
/// taken away, so that at the bound they are counted again.
struct Waiting {
    messages: AtomicUsize,
    /// When they were counted; `NEVER` before.
    counted_at_ms: AtomicU64,
}

const NEVER: u64 = u64::MAX;
/// What is older is read again, in milliseconds.
const KEPT_MS: u64 = 5_000;
/// Messages that wait for an agent are counted no more often, in milliseconds.
const COUNT_EVERY_MS: u64 = 1_000;

/// What is known of agents.
pub struct Addresses {
    store: Arc<dyn Store>,
    environment: Environment,
    known_max: usize,
    messages_max: usize,
    known: RwLock<HashMap<AgentId, Arc<Address>>>,
    /// Changes so far: what was read before one is not kept.
    changes: AtomicU64,
}

impl Addresses {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, environment: Environment, limits: &Limits) -> Self {
        let (known_max, messages_max) = (limits.message_addresses_max, limits.mailbox_messages_max);
        Self {
            store,
            environment,
            known_max,
            messages_max,
            known: RwLock::default(),
            changes: AtomicU64::new(0),
        }
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
        let waiting = before.map(|address| address.waiting.clone());
        let address = Arc::new(address(record, blocked, waiting, now_ms));
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

    /// Takes a place in a recipient's queue.
    ///
    /// # Errors
    /// `limit_reached`: as many wait as may.
    pub async fn take_place(&self, to: AgentId, address: &Address) -> Result<(), Refusal> {
        let waiting = &address.waiting;
        let counted_at_ms = waiting.counted_at_ms.load(Ordering::Relaxed);
        let now_ms = self.environment.monotonic_ms();
        let is_full = waiting.messages.load(Ordering::Relaxed) >= self.messages_max;
        if counted_at_ms == NEVER || is_full && now_ms.saturating_sub(counted_at_ms) >= COUNT_EVERY_MS {
            let count = self.store.waiting_mail(to, self.messages_max).await.map_err(refusal_of)?;
            waiting.messages.store(count, Ordering::Relaxed);
            waiting.counted_at_ms.store(now_ms, Ordering::Relaxed);
        }
        if waiting.messages.fetch_add(1, Ordering::Relaxed) >= self.messages_max {
            waiting.messages.store(self.messages_max, Ordering::Relaxed);
            let full = Refusal::field(ErrorCode::LimitReached, "to_agent_id", "its queue is full");
            return Err(full.with("max", &self.messages_max));
        }
        Ok(())
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
    waiting: Option<Arc<Waiting>>,
    read_at_ms: u64,
) -> Address {
    let none = || Arc::new(Waiting { messages: AtomicUsize::new(0), counted_at_ms: AtomicU64::new(NEVER) });
    Address {
        may_connect: agent.status.may_connect(),
        owner: agent.owner,
        versions: Version::list(&agent.protocol_versions),
        public_key: agent.public_key,
        blocked,
        waiting: waiting.unwrap_or_else(none),
        read_at_ms,
    }
}
