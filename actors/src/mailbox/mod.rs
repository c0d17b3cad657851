//! The way of messages to their recipients: one actor for each agent whose messages are joined on this node.
//!
//! No node owns a mailbox. Each pushes to the connections it has, what the store has counted for it
//! ([`muster_protocol::mailbox`]); nodes only tell each other that there is something new, or that something is settled,
//! and ask the store now and then in case they were not told. So nothing moves when a node goes.
//!
//! What is pushed is written under the lock under which messages are settled. So once a recipient has its answer to an
//! acknowledgement, nothing of that message leaves this node any more, whatever was under way.

mod actor;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use muster_protocol::cluster::{self, NodeKey};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, MessageId};
use muster_protocol::limits::Limits;
use muster_protocol::mailbox::{Mailbox, Step, Terms};
use muster_protocol::topic::{event, messages_topic};
use parking_lot::Mutex;
use ractor::{Actor, ActorRef};

use self::actor::MailboxActor;
use crate::analytics::Analytics;
use crate::cluster::Cluster;
use crate::egress::{Burst, Class, Outcome, Outlet, OutletId};
use crate::inbox::Wake;
use crate::metric_definitions::Metrics;
use crate::ports::Environment;
use crate::pubsub::PubSub;
use crate::store::{Mail, Store};
use crate::supervisor::{Brood, ChildSpec};

/// What mailboxes work with.
pub struct Needs {
    /// Store.
    pub store: Arc<dyn Store>,
    /// The other nodes.
    pub cluster: Arc<dyn Cluster>,
    /// Topics.
    pub pubsub: Arc<PubSub>,
    /// Time and randomness.
    pub environment: Environment,
    /// Bounds.
    pub limits: Arc<Limits>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Figures.
    pub analytics: Arc<Analytics>,
}

struct Registry {
    needs: Needs,
    /// As many as there are joins at most.
    live: Mutex<HashMap<AgentId, Arc<Live>>>,
    brood: Brood,
}

/// The mailboxes that are joined on this node.
#[derive(Clone)]
pub struct Mailboxes(Arc<Registry>);

/// One of them.
struct Live {
    agent: AgentId,
    topic: String,
    /// Bytes that wait for a connection above which it is not pushed to.
    lag_bytes_max: usize,
    inner: Mutex<Inner>,
}

struct Inner {
    mailbox: Mailbox,
    seats: Vec<Seat>,
    actor: Option<ActorRef<Wake>>,
    /// Whether the actor has been woken for what there is to do.
    woken: bool,
}

/// A connection that has joined.
struct Seat {
    outlet: Arc<Outlet>,
    /// When its connection was heard of last, in milliseconds of the node's clock.
    heard_at_ms: Arc<AtomicU64>,
    /// It has been pushed what is under way up to here.
    upto: u64,
    /// Whether it has to be pushed more of what is under way first.
    is_behind: bool,
    /// Whether it is waited for until it has taken what was written.
    is_full: bool,
}

/// What the actor is to do.
enum Todo {
    /// Push these, which are under way, to connections that are behind.
    CatchUp(Vec<u64>),
    Step(Step),
    /// These have enough to write just now.
    WaitFor(Vec<Arc<Outlet>>),
    /// Nobody is joined any more.
    End,
}

/// A joined mailbox; dropping it leaves.
pub struct Membership {
    live: Arc<Live>,
    outlet: OutletId,
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut inner = self.live.inner.lock();
        inner.hear();
        inner.seats.retain(|seat| seat.outlet.id() != self.outlet);
        inner.wake();
    }
}

impl Mailboxes {
    /// None live yet.
    #[must_use]
    pub fn new(needs: Needs) -> Self {
        let brood = Brood::new("mailboxes", "mailbox", needs.metrics.clone());
        Self(Arc::new(Registry { needs, live: Mutex::default(), brood }))
    }

    pub(crate) fn needs(&self) -> &Needs {
        &self.0.needs
    }

    /// How the supervisor of the mailboxes is started.
    #[must_use]
    pub fn child(&self) -> ChildSpec {
        self.0.brood.child()
    }

    /// Lets a connection have an agent's messages: those under way, and then what waits. `heard_at_ms` says when it was heard of
    /// last.
    ///
    /// # Errors
    /// The node is going away.
    pub async fn join(
        &self,
        agent: AgentId,
        outlet: &Arc<Outlet>,
        heard_at_ms: Arc<AtomicU64>,
    ) -> Result<Membership, Refusal> {
        let seat = Seat { outlet: outlet.clone(), heard_at_ms, upto: 0, is_behind: true, is_full: false };
        let (live, is_new) = {
            let mut all = self.0.live.lock();
            let known = all.get(&agent).cloned();
            let is_new = known.is_none();
            let live = known.unwrap_or_else(|| {
                let live = Arc::new(self.0.needs.mailbox(agent));
                all.insert(agent, live.clone());
                live
            });
            // Under the lock under which it would end.
            let mut inner = live.inner.lock();
            inner.seats.push(seat);
            inner.mailbox.news();
            inner.wake();
            drop(inner);
            (live, is_new)
        };
        let membership = Membership { live: live.clone(), outlet: outlet.id() };
        if is_new {
            // From here on its place is given up whatever happens, a caller that is gone included.
            let life = Life { registry: self.0.clone(), live };
            let supervisor = self.0.brood.supervisor().ok_or(ErrorCode::Draining)?;
            Actor::spawn_linked(None, MailboxActor, life, supervisor)
                .await
                .map_err(|_| Refusal::new(ErrorCode::Internal))?;
        }
        Ok(membership)
    }

    /// Whether an agent's messages are joined on this node.
    #[must_use]
    pub fn is_joined(&self, agent: AgentId) -> bool {
        self.0.live.lock().contains_key(&agent)
    }

    /// There is something for these agents: told here and at the nodes that have them joined.
    pub fn news(&self, agents: impl Iterator<Item = AgentId> + Clone) {
        self.news_here(agents.clone());
        self.tell(agents, |agent| agent, |mail, agent| mail.news.push(agent));
    }

    /// These messages are settled: the same.
    pub fn settled(&self, settled: impl Iterator<Item = (AgentId, MessageId)> + Clone) {
        self.settled_here(settled.clone());
        self.tell(settled, |(agent, _)| agent, |mail, one| mail.settled.push(one));
    }

    /// Another node tells of messages.
    pub fn hear(&self, mail: cluster::Mail) {
        self.settled_here(mail.settled.into_iter());
        self.news_here(mail.news.into_iter());
    }

    /// Another node may have told of messages, and was not heard: all that are joined look for themselves.
    pub fn missed(&self) {
        let agents: Vec<AgentId> = self.0.live.lock().keys().copied().collect();
        self.news_here(agents.into_iter());
    }

    fn news_here(&self, agents: impl Iterator<Item = AgentId>) {
        for agent in agents {
            let live = self.0.live.lock().get(&agent).cloned();
            if let Some(live) = live {
                let mut inner = live.inner.lock();
                inner.mailbox.news();
                inner.wake();
            }
        }
    }

    fn settled_here(&self, settled: impl Iterator<Item = (AgentId, MessageId)>) {
        for (agent, message) in settled {
            let live = self.0.live.lock().get(&agent).cloned();
            if let Some(live) = live {
                let mut inner = live.inner.lock();
                if inner.mailbox.settle(message) {
                    inner.wake();
                }
            }
        }
    }

    fn tell<T>(
        &self,
        items: impl Iterator<Item = T>,
        of: impl Fn(T) -> AgentId,
        add: impl Fn(&mut cluster::Mail, T),
    ) where
        T: Copy,
    {
        let needs = &self.0.needs;
        if needs.cluster.is_alone() {
            return;
        }
        let mut mails: BTreeMap<NodeKey, cluster::Mail> = BTreeMap::new();
        for item in items {
            for node in needs.pubsub.wanted_by(&messages_topic(of(item))) {
                add(mails.entry(node).or_default(), item);
            }
        }
        for (node, mail) in mails {
            // One that does not hear it asks the store by itself.
            let _missed = needs.cluster.send(&node, cluster::Message::Mail(mail));
        }
    }
}

impl Needs {
    fn mailbox(&self, agent: AgentId) -> Live {
        let terms =
            Terms { window: self.limits.mailbox_window_max, first_delay_ms: self.limits.message_retry_ms };
        let inner = Inner { mailbox: Mailbox::new(terms), seats: Vec::new(), actor: None, woken: false };
        let lag_bytes_max = self.limits.reader_lag_bytes_max.min(self.limits.outbound_queue_bytes_max);
        Live { agent, topic: messages_topic(agent), lag_bytes_max, inner: Mutex::new(inner) }
    }
}

/// Messages that a connection which is behind is pushed at once.
const CATCH_UP_AT_ONCE: usize = 25;

impl Inner {
    /// Wakes the actor, unless it has been.
    fn wake(&mut self) {
        if let Some(actor) = self.actor.as_ref().filter(|_| !self.woken) {
            // One that is gone has given up its place.
            let _gone = actor.send_message(Wake::Work);
            self.woken = true;
        }
    }

    /// Notes when the recipient was heard of.
    fn hear(&mut self) {
        let heard = self.seats.iter().map(|seat| seat.heard_at_ms.load(Ordering::Relaxed)).max();
        heard.into_iter().for_each(|at_ms| self.mailbox.heard(at_ms));
    }

    fn todo(&mut self, now_ms: u64, lag_bytes_max: usize) -> Todo {
        if self.seats.is_empty() {
            return Todo::End;
        }
        self.hear();
        // Looked at before the store counts a push: what is pushed at most once is not counted for nobody.
        let mut full = Vec::new();
        for seat in self.seats.iter_mut().filter(|seat| !seat.is_full) {
            if seat.outlet.sink().queued_bytes() > lag_bytes_max {
                (seat.is_full, seat.is_behind) = (true, true);
                full.push(seat.outlet.clone());
            }
        }
        if !full.is_empty() {
            return Todo::WaitFor(full);
        }
        let mailbox = &self.mailbox;
        for seat in self.seats.iter_mut().filter(|seat| seat.is_behind && !seat.is_full) {
            let missing = mailbox.behind(seat.upto, CATCH_UP_AT_ONCE);
            if !missing.is_empty() {
                return Todo::CatchUp(missing);
            }
            seat.is_behind = false;
        }
        let can_push = self.seats.iter().any(|seat| !seat.is_behind && !seat.is_full);
        Todo::Step(self.mailbox.step(now_ms, can_push))
    }
}

impl Live {
    /// Pushes messages to those who have all that is before them; gives the connections that have no room.
    fn push(&self, inner: &mut Inner, mails: &[&Mail]) -> Vec<Arc<Outlet>> {
        let Some(last) = mails.iter().map(|mail| mail.seq).max() else { return Vec::new() };
        let mut burst = self.burst(mails);
        // What is pushed at most once does not come again.
        let class = if mails.iter().all(|mail| mail.is_open) { Class::Stream } else { Class::Broadcast };
        let mut full = Vec::new();
        for seat in inner.seats.iter_mut().filter(|seat| !seat.is_behind && !seat.is_full) {
            if seat.write(class, &mut burst) {
                seat.upto = seat.upto.max(last);
            } else {
                full.push(seat.outlet.clone());
            }
        }
        full
    }

    /// Pushes messages that are under way to those who have not had them yet; gives the connections that have no room.
    fn catch_up(&self, inner: &mut Inner, asked: &[u64], mails: &[Mail], now_ms: u64) -> Vec<Arc<Outlet>> {
        let (Some(first), Some(last_asked)) = (asked.first(), asked.last()) else { return Vec::new() };
        // What did not go into one part comes in the next; of the rest those that are missing are settled.
        let last = mails.last().map_or(*last_asked, |mail| mail.seq);
        let under_way: Vec<&Mail> =
            mails.iter().filter(|mail| inner.mailbox.is_under_way(mail.seq)).collect();
        let mut burst = self.burst(&under_way);
        let mut full = Vec::new();
        for seat in inner.seats.iter_mut().filter(|seat| seat.is_behind && !seat.is_full) {
            if seat.upto >= *first {
                continue;
            }
            if under_way.is_empty() || seat.write(Class::Stream, &mut burst) {
                seat.upto = seat.upto.max(last);
            } else {
                full.push(seat.outlet.clone());
            }
        }
        let again: Vec<u64> = under_way.iter().map(|mail| mail.seq).collect();
        inner.mailbox.pushed_again(again.into_iter(), now_ms);
        full
    }

    fn burst(&self, mails: &[&Mail]) -> Burst<'_> {
        let events = mails.iter().map(|mail| (event::NEW_MESSAGE, mail.message.push())).collect();
        Burst::new(&self.topic, events)
    }

    /// Goes on once a connection has taken what was written to it. Called without the lock.
    fn wait_for(self: &Arc<Self>, outlet: &Arc<Outlet>) {
        let (live, id) = (self.clone(), outlet.id());
        outlet.sink().when_drained(Box::new(move || {
            let mut inner = live.inner.lock();
            if let Some(seat) = inner.seats.iter_mut().find(|seat| seat.outlet.id() == id) {
                seat.is_full = false;
            }
            inner.wake();
        }));
    }
}

impl Seat {
    /// Writes what belongs together; whether it was taken. One that is gone takes everything.
    fn write(&mut self, class: Class, burst: &mut Burst<'_>) -> bool {
        let frames = [burst.pushes(&self.outlet)];
        if self.outlet.write(class, &frames) != Outcome::Full {
            return true;
        }
        self.is_full = true;
        self.is_behind = true;
        false
    }
}

/// A place among the live ones. Dropped when its actor ends or crashes: then whoever is joined has to join again.
struct Life {
    registry: Arc<Registry>,
    live: Arc<Live>,
}

impl Life {
    /// Gives the place up, if nobody is joined; whether it did.
    fn end_if_empty(&self) -> bool {
        let mut all = self.registry.live.lock();
        let is_empty = self.live.inner.lock().seats.is_empty();
        if is_empty {
            all.remove(&self.live.agent);
        }
        is_empty
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let mut all = self.registry.live.lock();
        if all.get(&self.live.agent).is_some_and(|known| Arc::ptr_eq(known, &self.live)) {
            all.remove(&self.live.agent);
        }
        drop(all);
        let seats = std::mem::take(&mut self.live.inner.lock().seats);
        for seat in seats {
            seat.outlet.fail(ErrorCode::ChannelCrash.reason());
        }
    }
}
