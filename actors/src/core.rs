//! The parts of a node, put together once and passed around.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use muster_protocol::ids::AgentId;
use muster_protocol::limits::Limits;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::blocks::Blocks;
use crate::cluster::Cluster;
use crate::connections::Connections;
use crate::metric_definitions::Metrics;
use crate::online::Online;
use crate::ports::Environment;
use crate::presence::Presence;
use crate::pubsub::PubSub;
use crate::rate_limits::Buckets;
use crate::settings::StreamSettings;
use crate::socket::Sockets;
use crate::store::Store;
use crate::supervisor::{self, Supervisor};
use crate::task_stream::{Needs, Streams};
use crate::tasks::Tasks;

/// Locks that changes of agents' records share.
const CHANGE_STRIPES: usize = 64;

/// What a node is made of.
pub struct Core {
    /// Time and randomness.
    pub environment: Environment,
    /// Bounds.
    pub limits: Arc<Limits>,
    /// Store.
    pub store: Arc<dyn Store>,
    /// The other nodes.
    pub cluster: Arc<dyn Cluster>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Topics.
    pub pubsub: Arc<PubSub>,
    /// Presence.
    pub presence: Arc<Presence>,
    /// Who is online.
    pub online: Arc<Online>,
    /// Who does not see whom.
    pub blocks: Blocks,
    /// Changes of agents' records on this node, one at a time for each agent.
    changing: [tokio::sync::Mutex<()>; CHANGE_STRIPES],
    /// Task streams.
    pub streams: Streams,
    /// Tasks and hirings.
    pub tasks: Tasks,
    /// What is connected.
    pub connections: Arc<Connections>,
    /// The supervisor of sockets.
    pub sockets: Sockets,
    /// Joins of agents on the main socket.
    pub join_buckets: Buckets<AgentId>,
    /// Whether crash drills are allowed.
    pub drills: bool,
    draining: AtomicBool,
    supervisor: ActorRef<supervisor::Request>,
}

/// What a node is started with.
pub struct Parts {
    /// Time and randomness.
    pub environment: Environment,
    /// Bounds.
    pub limits: Limits,
    /// Settings of streams.
    pub streams: StreamSettings,
    /// Store.
    pub store: Arc<dyn Store>,
    /// The other nodes.
    pub cluster: Arc<dyn Cluster>,
    /// Metrics.
    pub metrics: Metrics,
    /// Shards of topics: as many as there are processors.
    pub shards: usize,
    /// Whether crash drills are allowed.
    pub drills: bool,
}

impl Core {
    /// Starts the actors of a node.
    ///
    /// # Errors
    /// The store cannot be written, or an actor does not start.
    pub async fn start(parts: Parts) -> Result<Arc<Self>, ActorProcessingErr> {
        let Parts { environment, limits, streams, store, cluster, metrics, shards, drills } = parts;
        let (limits, metrics) = (Arc::new(limits), Arc::new(metrics));
        let epoch = store.next_epoch().await?;
        let arguments = (environment.clone(), metrics.clone());
        let (supervisor, _) = Actor::spawn(None, Supervisor, arguments).await?;
        let pubsub = Arc::new(PubSub::new(shards, metrics.clone()));
        for child in pubsub.children() {
            supervisor::start(&supervisor, child).await?;
        }
        let presence = Presence::new(environment.clone(), metrics.clone());
        supervisor::start(&supervisor, presence.child()).await?;
        let online = Online::new(presence.clone(), environment.clone(), metrics.clone());
        let streams = Streams::new(Needs {
            store: store.clone(),
            environment: environment.clone(),
            limits: limits.clone(),
            settings: streams,
            metrics: metrics.clone(),
            epoch,
        });
        supervisor::start(&supervisor, streams.child()).await?;
        let sockets = Sockets::new(metrics.clone());
        supervisor::start(&supervisor, sockets.child()).await?;
        let tasks = Tasks {
            store: store.clone(),
            streams: streams.clone(),
            pubsub: pubsub.clone(),
            online: online.clone(),
            environment: environment.clone(),
            limits: limits.clone(),
        };
        Ok(Arc::new(Self {
            blocks: Blocks::new(store.clone(), presence.clone(), environment.clone()),
            changing: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            join_buckets: Buckets::new(limits.joins_per_agent),
            connections: Arc::new(Connections::default()),
            draining: AtomicBool::new(false),
            environment,
            limits,
            store,
            cluster,
            metrics,
            pubsub,
            presence,
            online,
            streams,
            tasks,
            sockets,
            drills,
            supervisor,
        }))
    }

    /// Waits until the supervisor has given up, which a node does not survive.
    pub async fn failed(&self) {
        // Without a timeout there is no error.
        let _never = self.supervisor.wait(None).await;
    }

    /// Whoever holds this changes that agent's record alone, as far as this node goes.
    pub async fn change_of(&self, agent: AgentId) -> tokio::sync::MutexGuard<'_, ()> {
        // The last byte of an id is random.
        self.changing[usize::from(agent.as_bytes()[15]) % CHANGE_STRIPES].lock().await
    }

    /// From now on the node takes nothing new.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.cluster.drain();
    }

    /// Whether the node is going away.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
