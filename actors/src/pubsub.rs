//! Topics and their subscribers. A topic belongs to one shard, by its name; the shard takes all that waits and writes it
//! straight to each subscriber's connection, what belongs to one topic as one write.
//!
//! The tables outlive the shard's actor: after a crash the next one goes on with them, and only the batch at hand is lost.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use muster_protocol::json::Json;
use muster_protocol::websocket::CloseCode;
use parking_lot::Mutex;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use smol_str::SmolStr;

use crate::egress::{Burst, Class, Outcome, Outlet, OutletId, Roster};
use crate::inbox::{Inbox, Wake};
use crate::metric_definitions::Metrics;
use crate::supervisor::ChildSpec;

/// Commands that may wait in front of one shard; further publications are dropped and counted.
const INBOX_COMMANDS_MAX: usize = 262_144;

/// The topics of a node.
pub struct PubSub {
    shards: Vec<Arc<Shard>>,
    metrics: Arc<Metrics>,
}

struct Shard {
    inbox: Inbox<Command>,
    topics: Mutex<HashMap<SmolStr, Roster<Arc<Outlet>>>>,
    metrics: Arc<Metrics>,
}

enum Command {
    Subscribe { topic: SmolStr, outlet: Arc<Outlet> },
    Unsubscribe { topic: SmolStr, outlet: OutletId },
    Publish { topic: SmolStr, event: &'static str, payload: Json },
}

/// A subscription; it ends when this is dropped.
pub struct Subscription {
    shard: Arc<Shard>,
    topic: SmolStr,
    outlet: OutletId,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let command = Command::Unsubscribe { topic: std::mem::take(&mut self.topic), outlet: self.outlet };
        // A closed inbox belongs to a node that is going away.
        let _closed = self.shard.inbox.push_always(command);
    }
}

impl PubSub {
    /// With so many shards.
    #[must_use]
    pub fn new(shards: usize, metrics: Arc<Metrics>) -> Self {
        let shard = || {
            Arc::new(Shard {
                inbox: Inbox::new(INBOX_COMMANDS_MAX),
                topics: Mutex::default(),
                metrics: metrics.clone(),
            })
        };
        Self { shards: (0..shards.max(1)).map(|_| shard()).collect(), metrics }
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

    /// Subscribes an outlet. What is published after this returns reaches it.
    #[must_use]
    pub fn subscribe(&self, topic: &str, outlet: &Arc<Outlet>) -> Subscription {
        let shard = self.shard(topic);
        let topic = SmolStr::from(topic);
        let command = Command::Subscribe { topic: topic.clone(), outlet: outlet.clone() };
        let _closed = shard.inbox.push_always(command);
        Subscription { shard: shard.clone(), topic, outlet: outlet.id() }
    }

    /// Publishes to everybody subscribed: at most once, in the order of the calls of one caller.
    pub fn publish(&self, topic: &str, event: &'static str, payload: Json) {
        self.metrics.published.inc();
        let command = Command::Publish { topic: topic.into(), event, payload };
        if self.shard(topic).inbox.push(command).is_err() {
            self.metrics.publications_dropped.inc();
            tracing::warn!(event, "publication dropped: the shard is behind");
        }
    }

    fn shard(&self, topic: &str) -> &Arc<Shard> {
        let mut hasher = DefaultHasher::new();
        topic.hash(&mut hasher);
        let index = hasher.finish() % self.shards.len() as u64;
        &self.shards[usize::try_from(index).unwrap_or(0)]
    }
}

impl Shard {
    fn work(&self) {
        let commands = self.inbox.take();
        let mut topics = self.topics.lock();
        let mut waiting: HashMap<SmolStr, Vec<(&'static str, Json)>> = HashMap::new();
        for command in commands {
            match command {
                Command::Publish { topic, event, payload } => {
                    waiting.entry(topic).or_default().push((event, payload));
                }
                Command::Subscribe { topic, outlet } => {
                    self.deliver(&mut topics, &mut waiting, &topic);
                    topics.entry(topic).or_default().insert(outlet);
                }
                Command::Unsubscribe { topic, outlet } => {
                    self.deliver(&mut topics, &mut waiting, &topic);
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

    /// Sends what waits for a topic: before somebody comes or goes, so that each gets exactly what is theirs.
    fn deliver(
        &self,
        topics: &mut HashMap<SmolStr, Roster<Arc<Outlet>>>,
        waiting: &mut HashMap<SmolStr, Vec<(&'static str, Json)>>,
        topic: &SmolStr,
    ) {
        let (Some(events), Some(outlets)) = (waiting.remove(topic), topics.get_mut(topic)) else {
            return;
        };
        broadcast(topic, events, outlets, &self.metrics);
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
