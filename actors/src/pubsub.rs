//! Topics and their subscribers. A topic belongs to one shard, by its name; the shard takes all that waits and writes it
//! straight to each subscriber's connection, what belongs to one topic as one write.
//!
//! The tables outlive the shard's actor: after a crash the next one goes on with them, and only the batch at hand is lost.
//!
//! In a cluster each node says which topics it has subscribers for, and a publication goes to those nodes only. To
//! subscribe is complete once the others know of it.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use muster_protocol::cluster::interest::Interests;
use muster_protocol::cluster::{Interest, Members, Message, NodeKey};
use muster_protocol::json::Json;
use muster_protocol::phoenix::event;
use muster_protocol::topic::without_part;
use muster_protocol::websocket::CloseCode;
use parking_lot::Mutex;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use smol_str::SmolStr;
use tokio::sync::oneshot;

use crate::cluster::Cluster;
use crate::egress::{Burst, Class, OfOutlet, Outcome, Outlet, OutletId, Roster};
use crate::inbox::{Inbox, Wake};
use crate::metric_definitions::Metrics;
use crate::supervisor::ChildSpec;

/// Commands that may wait in front of one shard; further publications are dropped and counted.
const INBOX_COMMANDS_MAX: usize = 262_144;

/// The topics of a node.
pub struct PubSub {
    shards: Vec<Arc<Shard>>,
    cluster: Arc<dyn Cluster>,
    is_clustered: bool,
    /// What is sent about a table is sent under its lock, so that it leaves in the order of the changes.
    interests: Mutex<Table>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Table {
    interests: Interests,
    /// Who waits until a topic is known everywhere; they come from joins, which are bounded by the sockets there are.
    waiting: HashMap<SmolStr, Vec<oneshot::Sender<()>>>,
}

/// Whoever decides by itself what of a topic reaches its connection.
pub trait Listener: Send + Sync + 'static {
    /// Something was published. Called on the shard, so it must not wait.
    fn hear(&self, event: &str, payload: &Json);
}

/// A listener, under the id of the outlet it stands for.
struct Listening {
    outlet: OutletId,
    listener: Arc<dyn Listener>,
}

impl OfOutlet for Listening {
    fn outlet_id(&self) -> OutletId {
        self.outlet
    }
}

struct Shard {
    inbox: Inbox<Command>,
    topics: Mutex<HashMap<SmolStr, Roster<Arc<Outlet>>>>,
    listening: Mutex<HashMap<SmolStr, Roster<Listening>>>,
    metrics: Arc<Metrics>,
}

enum Command {
    Subscribe { topic: SmolStr, outlet: Arc<Outlet> },
    Listen { topic: SmolStr, listening: Listening },
    Unsubscribe { topic: SmolStr, outlet: OutletId },
    Publish { topic: SmolStr, event: Cow<'static, str>, payload: Json },
}

/// A subscription; it ends when this is dropped.
pub struct Subscription {
    pubsub: Arc<PubSub>,
    topic: SmolStr,
    outlet: OutletId,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let topic = std::mem::take(&mut self.topic);
        if self.pubsub.is_clustered {
            let mut table = self.pubsub.interests.lock();
            let (unwanted, was_last) = table.interests.release(&topic);
            self.pubsub.tell(unwanted);
            if was_last {
                table.waiting.remove(&topic);
            }
        }
        let command = Command::Unsubscribe { outlet: self.outlet, topic: topic.clone() };
        // A closed inbox belongs to a node that is going away.
        let _closed = self.pubsub.shard(&topic).inbox.push_always(command);
    }
}

impl PubSub {
    /// With so many shards.
    #[must_use]
    pub fn new(shards: usize, cluster: Arc<dyn Cluster>, metrics: Arc<Metrics>) -> Self {
        let shard = || {
            Arc::new(Shard {
                inbox: Inbox::new(INBOX_COMMANDS_MAX),
                topics: Mutex::default(),
                listening: Mutex::default(),
                metrics: metrics.clone(),
            })
        };
        let shards = (0..shards.max(1)).map(|_| shard()).collect();
        Self { shards, is_clustered: !cluster.is_alone(), cluster, interests: Mutex::default(), metrics }
    }

    /// How its actors are started, one per shard.
    pub fn children(&self) -> impl Iterator<Item = ChildSpec> {
        self.shards.iter().map(|shard| {
            let shard = shard.clone();
            ChildSpec {
                name: "pubsub",
                start: Box::new(move |supervisor| {
                    let shard = shard.clone();
                    Box::pin(async move {
                        let (actor, _) = Actor::spawn_linked(None, ShardActor, shard, supervisor).await?;
                        Ok(actor.get_cell())
                    })
                }),
            }
        })
    }

    /// Subscribes an outlet. What is published after this returns reaches it, on whichever node: the others know of it
    /// by then, but for those that say nothing at the moment.
    pub async fn subscribe(self: &Arc<Self>, topic: &str, outlet: &Arc<Outlet>) -> Subscription {
        let topic = SmolStr::from(topic);
        let command = Command::Subscribe { topic: topic.clone(), outlet: outlet.clone() };
        self.enter(topic, outlet.id(), command).await
    }

    /// Subscribes a listener that stands for an outlet, which is not subscribed itself. As [`Self::subscribe`].
    pub async fn listen(
        self: &Arc<Self>,
        topic: &str,
        outlet: OutletId,
        listener: Arc<dyn Listener>,
    ) -> Subscription {
        let topic = SmolStr::from(topic);
        let command = Command::Listen { topic: topic.clone(), listening: Listening { outlet, listener } };
        self.enter(topic, outlet, command).await
    }

    async fn enter(self: &Arc<Self>, topic: SmolStr, outlet: OutletId, command: Command) -> Subscription {
        let _closed = self.shard(&topic).inbox.push_always(command);
        let waits = if self.is_clustered {
            let mut table = self.interests.lock();
            let (wanted, known) = table.interests.want(&topic);
            self.tell(wanted);
            (!known).then(|| {
                let (sender, receiver) = oneshot::channel();
                table.waiting.entry(topic.clone()).or_default().push(sender);
                receiver
            })
        } else {
            None
        };
        let subscription = Subscription { pubsub: self.clone(), topic, outlet };
        if let Some(known) = waits {
            // It is never dropped unanswered while the topic is wanted.
            let _known = known.await;
        }
        subscription
    }

    /// Publishes to everybody subscribed, on every node: at most once, in the order of the calls of one caller.
    pub fn publish(&self, topic: &str, event: &'static str, payload: Json) {
        if self.is_clustered {
            self.publish_elsewhere(topic, event, &payload);
        }
        self.publish_here(topic.into(), event.into(), payload);
    }

    /// Ends the joins of everybody subscribed, on every node, as if they had left.
    pub fn dismiss(&self, topic: &str) {
        self.publish(topic, event::CLOSE, Json::empty_object());
    }

    fn publish_elsewhere(&self, topic: &str, event: &'static str, payload: &Json) {
        let nodes: Vec<NodeKey> = self.interests.lock().interests.wanted_by(topic).to_vec();
        if nodes.is_empty() {
            return;
        }
        let (topic, event, payload) = (topic.into(), event.into(), payload.clone());
        let dropped = self.cluster.send_each(&nodes, Message::Publish { topic, event, payload });
        self.metrics.publications_dropped.inc_by(dropped as u64);
    }

    /// The other nodes that want a topic.
    #[must_use]
    pub fn wanted_by(&self, topic: &str) -> Vec<NodeKey> {
        if self.is_clustered { self.interests.lock().interests.wanted_by(topic).to_vec() } else { Vec::new() }
    }

    /// A node is up, or may have missed something: it is told everything.
    pub fn node_up(&self, node: &NodeKey) {
        let mut table = self.interests.lock();
        let all = table.interests.tell_all(node);
        self.tell(all.into_iter().map(|interest| (node.clone(), interest)).collect());
    }

    /// A node is gone.
    pub fn node_down(&self, node: &NodeKey) {
        let mut table = self.interests.lock();
        let known = table.interests.down(node);
        table.answer(known);
    }

    /// A node wants topics, or does not want them any more.
    pub fn node_wants(&self, node: &NodeKey, interest: &Interest) {
        let mut table = self.interests.lock();
        if !table.interests.note(node, interest) {
            tracing::error!(%node, "it wants more topics than are kept; it misses what is published on them");
        }
        if interest.token != 0 {
            // A node that is gone meanwhile waits for nothing.
            let _gone = self.cluster.send(node, Message::InterestNoted { token: interest.token });
        }
    }

    /// A node has noted what this one wants.
    pub fn node_noted(&self, node: &NodeKey, token: u64) {
        let mut table = self.interests.lock();
        let known = table.interests.noted(node, token);
        table.answer(known);
    }

    /// Publishes to everybody subscribed here.
    pub fn publish_here(&self, topic: SmolStr, event: Cow<'static, str>, payload: Json) {
        self.metrics.published.inc();
        let shard = self.shard(&topic);
        if shard.inbox.push(Command::Publish { topic, event, payload }).is_err() {
            self.metrics.publications_dropped.inc();
            tracing::warn!("publication dropped: the shard is behind");
        }
    }

    /// Takes note of which nodes say nothing at the moment: no join waits for those.
    pub fn members_changed(&self, members: &Members) {
        let suspects: BTreeSet<NodeKey> =
            members.nodes.iter().filter(|member| member.suspect).map(|member| member.key.clone()).collect();
        let mut table = self.interests.lock();
        let known = table.interests.suspects(&suspects);
        table.answer(known);
    }

    fn tell(&self, interests: Vec<(NodeKey, Interest)>) {
        for (node, interest) in interests {
            // One that is going down is told everything when it comes back.
            let _gone = self.cluster.send(&node, Message::Interest(interest));
        }
    }

    fn shard(&self, topic: &str) -> &Arc<Shard> {
        let mut hasher = DefaultHasher::new();
        topic.hash(&mut hasher);
        let index = hasher.finish() % self.shards.len() as u64;
        &self.shards[usize::try_from(index).unwrap_or(0)]
    }
}

impl Table {
    fn answer(&mut self, known: Vec<SmolStr>) {
        for waiting in known.iter().filter_map(|topic| self.waiting.remove(topic)).flatten() {
            // Whoever does not wait any more has left.
            let _left = waiting.send(());
        }
    }
}

impl Shard {
    fn work(&self) {
        let commands = self.inbox.take();
        let mut topics = self.topics.lock();
        let mut waiting: HashMap<SmolStr, Vec<(Cow<'static, str>, Json)>> = HashMap::new();
        for command in commands {
            match command {
                Command::Publish { topic, event, payload } => {
                    waiting.entry(topic).or_default().push((event, payload));
                }
                Command::Subscribe { topic, outlet } => {
                    self.deliver(&mut topics, &mut waiting, &topic);
                    topics.entry(topic).or_default().insert(outlet);
                }
                Command::Listen { topic, listening } => {
                    self.deliver(&mut topics, &mut waiting, &topic);
                    self.listening.lock().entry(topic).or_default().insert(listening);
                }
                Command::Unsubscribe { topic, outlet } => {
                    self.deliver(&mut topics, &mut waiting, &topic);
                    self.stop_listening(&topic, outlet);
                    if let Some(outlets) = topics.get_mut(&topic) {
                        outlets.remove(outlet);
                        if outlets.is_empty() {
                            topics.remove(&topic);
                        }
                    }
                }
            }
        }
        for topic in waiting.keys().cloned().collect::<Vec<_>>() {
            self.deliver(&mut topics, &mut waiting, &topic);
        }
    }

    fn stop_listening(&self, topic: &SmolStr, outlet: OutletId) {
        let mut listening = self.listening.lock();
        let left = listening.get_mut(topic).and_then(|listening| listening.remove(outlet));
        if listening.get(topic).is_some_and(Roster::is_empty) {
            listening.remove(topic);
        }
        drop(listening);
        // What it held on to is given up without the lock.
        drop(left);
    }

    /// Sends what waits for a topic: before somebody comes or goes, so that each gets exactly what is theirs.
    fn deliver(
        &self,
        topics: &mut HashMap<SmolStr, Roster<Arc<Outlet>>>,
        waiting: &mut HashMap<SmolStr, Vec<(Cow<'static, str>, Json)>>,
        topic: &SmolStr,
    ) {
        let Some(events) = waiting.remove(topic) else { return };
        if let Some(listening) = self.listening.lock().get(topic) {
            for one in listening.iter() {
                events.iter().for_each(|(event, payload)| one.listener.hear(event, payload));
            }
        }
        let Some(outlets) = topics.get_mut(topic) else { return };
        if events.iter().any(|(name, _)| name == event::CLOSE) {
            // No publication has that name: it is for the joins themselves.
            outlets.retain_mut(|outlet| {
                outlet.close();
                false
            });
            return;
        }
        let events = events.iter().map(|(event, payload)| (&**event, payload.clone())).collect();
        broadcast(without_part(topic), events, outlets, &self.metrics);
    }
}

/// Writes events to outlets as one write each; forgets outlets that are gone, and closes connections that are full.
pub(crate) fn broadcast(
    topic: &str,
    events: Vec<(&str, Json)>,
    outlets: &mut Roster<Arc<Outlet>>,
    metrics: &Metrics,
) {
    let count = events.len() as u64;
    let mut burst = Burst::new(topic, events);
    outlets.retain_mut(|outlet| {
        let frames = [burst.broadcast(outlet)];
        write_or_close(outlet, &frames, count, metrics)
    });
}

/// Whether the outlet is still there.
pub(crate) fn write_or_close(
    outlet: &Outlet,
    frames: &[bytes::Bytes],
    count: u64,
    metrics: &Metrics,
) -> bool {
    match outlet.write(Class::Broadcast, frames) {
        Outcome::Taken => {
            metrics.delivered.inc_by(count);
            true
        }
        Outcome::Full => {
            outlet.sink().close(CloseCode::Overloaded, "too slow");
            false
        }
        Outcome::Gone => false,
    }
}

struct ShardActor;

impl Actor for ShardActor {
    type Msg = Wake;
    type State = Arc<Shard>;
    type Arguments = Arc<Shard>;

    async fn pre_start(
        &self,
        myself: ActorRef<Wake>,
        shard: Arc<Shard>,
    ) -> Result<Arc<Shard>, ActorProcessingErr> {
        shard.inbox.attach(myself);
        Ok(shard)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Wake>,
        _wake: Wake,
        shard: &mut Arc<Shard>,
    ) -> Result<(), ActorProcessingErr> {
        shard.work();
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Wake>,
        _event: SupervisionEvent,
        _shard: &mut Arc<Shard>,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}
