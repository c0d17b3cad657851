//! The parts of a node, put together once and passed around.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use muster_protocol::alerts::AlertSettings;
use muster_protocol::cluster::{Message, NodeKey};
use muster_protocol::ids::AgentId;
use muster_protocol::limits::Limits;
use muster_protocol::negotiation;
use muster_protocol::protocol_version;
use muster_protocol::signing::ServerKey;
use muster_protocol::webhook::WebhookSettings;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::agent_changes::AgentChanges;
use crate::alerts::Alerts;
use crate::analytics::Analytics;
use crate::blocks::Blocks;
use crate::cluster::{Cluster, Event, Receiver};
use crate::connections::Connections;
use crate::global_stats::{GlobalStats, Load};
use crate::handoffs::Handoffs;
use crate::ledger::Ledger;
use crate::mailbox::{self, Mailboxes};
use crate::messages::Messages;
use crate::messages::addresses::Addresses;
use crate::metric_definitions::Metrics;
use crate::negotiations::{Needs as NegotiationNeeds, Negotiations};
use crate::notices::Notices;
use crate::online::Online;
use crate::payments::Payments;
use crate::ports::Environment;
use crate::presence::Presence;
use crate::pubsub::PubSub;
use crate::rate_limits::Buckets;
use crate::settings::{LedgerSettings, StreamSettings};
use crate::socket::Sockets;
use crate::store::{FigureStore, Store};
use crate::supervisor::{self, Supervisor};
use crate::task_channel::TaskChannels;
use crate::task_stream::{Needs, Streams};
use crate::tasks::Tasks;
use crate::teams::Teams;
use crate::usage::ClusterUsage;
use crate::webhooks::{Caller, Webhooks};

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
    pub blocks: Arc<Blocks>,
    /// Who is told of changes.
    pub notices: Arc<Notices>,
    /// Changes of agents' records.
    pub changes: Arc<AgentChanges>,
    /// Task streams.
    pub streams: Streams,
    /// The channels of tasks.
    pub task_channels: TaskChannels,
    /// Tasks and hirings.
    pub tasks: Arc<Tasks>,
    /// Tasks that agents hand over to each other.
    pub handoffs: Arc<Handoffs>,
    /// Messages between agents.
    pub messages: Messages,
    /// Their way to recipients.
    pub mailboxes: Mailboxes,
    /// Figures.
    pub analytics: Arc<Analytics>,
    /// What is told of them.
    pub alerts: Alerts,
    /// What there is in all.
    pub stats: GlobalStats,
    /// Webhooks.
    pub webhooks: Arc<Webhooks>,
    /// Money.
    pub ledger: Ledger,
    /// Payment channels.
    pub payments: Payments,
    /// Negotiations.
    pub negotiations: Negotiations,
    /// Teams.
    pub teams: Teams,
    /// What is connected.
    pub connections: Arc<Connections>,
    /// The supervisor of sockets.
    pub sockets: Sockets,
    /// What is used of limits that hold for the whole cluster.
    pub usage: ClusterUsage,
    /// Joins of agents on the main socket.
    pub join_buckets: Buckets<AgentId>,
    /// Versions of the agents' protocol.
    pub versions: protocol_version::Table,
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
    /// Settings of the ledger.
    pub ledger: LedgerSettings,
    /// Store.
    pub store: Arc<dyn Store>,
    /// The other nodes.
    pub cluster: Arc<dyn Cluster>,
    /// Metrics.
    pub metrics: Metrics,
    /// Figures, alerts and webhooks.
    pub reports: ReportParts,
    /// Shards of topics: as many as there are processors.
    pub shards: usize,
    /// Versions of the agents' protocol.
    pub versions: protocol_version::Table,
    /// Rules of negotiations.
    pub negotiation: negotiation::Settings,
    /// With which the server signs what it attests.
    pub server_key: ServerKey,
    /// Whether crash drills are allowed.
    pub drills: bool,
}

/// What figures, alerts and webhooks need.
pub struct ReportParts {
    /// Where figures are kept.
    pub figures: Arc<dyn FigureStore>,
    /// Thresholds of alerts.
    pub alerts: AlertSettings,
    /// How much of the machine is in use.
    pub load: Load,
    /// Settings of webhooks.
    pub webhooks: WebhookSettings,
    /// Calls their receivers.
    pub caller: Arc<dyn Caller>,
}

impl ReportParts {
    fn analytics(
        &self,
        store: &Arc<dyn Store>,
        environment: &Environment,
        metrics: &Arc<Metrics>,
        limits: &Limits,
    ) -> Arc<Analytics> {
        let bounds = (limits.analytics_entries_max, limits.agents_per_user_max);
        Analytics::new((self.figures.clone(), store.clone()), environment.clone(), metrics.clone(), bounds)
    }

    fn webhooks(
        &self,
        (store, pubsub): (&Arc<dyn Store>, &Arc<PubSub>),
        environment: &Environment,
        metrics: &Arc<Metrics>,
        limits: &Limits,
    ) -> Arc<Webhooks> {
        let ports = (store.clone(), self.caller.clone(), pubsub.clone());
        let settings = (self.webhooks.clone(), limits.webhooks_per_owner_max);
        Webhooks::new(ports, settings, environment.clone(), metrics.clone())
    }
}

impl Core {
    /// Starts the actors of a node.
    ///
    /// # Errors
    /// An actor does not start.
    #[allow(clippy::too_many_lines, reason = "some lines for each part of a node")]
    pub async fn start(parts: Parts) -> Result<Arc<Self>, ActorProcessingErr> {
        let Parts { environment, limits, streams, ledger, store, cluster, metrics, reports, shards, .. } =
            parts;
        let (versions, drills) = (parts.versions, parts.drills);
        let (limits, metrics) = (Arc::new(limits), Arc::new(metrics));
        let arguments = (environment.clone(), metrics.clone());
        let (supervisor, _) = Actor::spawn(None, Supervisor, arguments).await?;
        let pubsub = Arc::new(PubSub::new(shards, cluster.clone(), metrics.clone()));
        for child in pubsub.children() {
            supervisor::start(&supervisor, child).await?;
        }
        let presence = Presence::new(environment.clone(), metrics.clone(), cluster.clone(), &limits);
        supervisor::start(&supervisor, presence.child()).await?;
        let analytics = reports.analytics(&store, &environment, &metrics, &limits);
        let online = Online::new(presence.clone(), environment.clone(), metrics.clone());
        let streams = Streams::new(Needs {
            store: store.clone(),
            cluster: cluster.clone(),
            pubsub: pubsub.clone(),
            environment: environment.clone(),
            limits: limits.clone(),
            settings: streams,
            metrics: metrics.clone(),
            analytics: analytics.clone(),
        });
        supervisor::start(&supervisor, streams.child()).await?;
        let task_channels =
            TaskChannels::new(store.clone(), pubsub.clone(), environment.clone(), limits.clone());
        for child in task_channels.children() {
            supervisor::start(&supervisor, child).await?;
        }
        let sockets = Sockets::new(metrics.clone());
        supervisor::start(&supervisor, sockets.child()).await?;
        let blocks = Arc::new(Blocks::new(store.clone(), presence.clone(), environment.clone()));
        let connections = Arc::new(Connections::default());
        let ports = (cluster.clone(), store.clone());
        let addresses = Arc::new(Addresses::new(store.clone(), environment.clone(), &limits));
        let watched = (online.clone(), blocks.clone(), addresses.clone());
        let notices = Notices::new(ports, connections.clone(), watched, streams.clone());
        let mailboxes = Mailboxes::new(mailbox::Needs {
            store: store.clone(),
            cluster: cluster.clone(),
            pubsub: pubsub.clone(),
            environment: environment.clone(),
            limits: limits.clone(),
            metrics: metrics.clone(),
            analytics: analytics.clone(),
        });
        supervisor::start(&supervisor, mailboxes.child()).await?;
        let tasks = Arc::new(Tasks {
            store: store.clone(),
            streams: streams.clone(),
            pubsub: pubsub.clone(),
            online: online.clone(),
            notices: notices.clone(),
            analytics: analytics.clone(),
            environment: environment.clone(),
            limits: limits.clone(),
            ledger: ledger.clone(),
        });
        let handoffs = Arc::new(Handoffs::new(tasks.clone()));
        let told = (notices.clone(), presence.clone());
        let changes = AgentChanges::new(store.clone(), environment.clone(), limits.clone(), told);
        let meanings = (handoffs.clone(), changes.clone());
        let messages = Messages::new(addresses, &mailboxes, &versions, meanings);
        let ledger = Ledger {
            store: store.clone(),
            environment: environment.clone(),
            limits: limits.clone(),
            settings: ledger,
        };
        let payments = Payments::new(
            (store.clone(), pubsub.clone()),
            environment.clone(),
            limits.clone(),
            metrics.clone(),
            analytics.clone(),
        );
        supervisor::start(&supervisor, payments.child()).await?;
        let negotiations = Negotiations::new(NegotiationNeeds {
            store: store.clone(),
            pubsub: pubsub.clone(),
            environment: environment.clone(),
            limits: limits.clone(),
            settings: parts.negotiation,
            server: parts.server_key,
            metrics: metrics.clone(),
        });
        supervisor::start(&supervisor, negotiations.child()).await?;
        let teams =
            Teams::new((store.clone(), pubsub.clone()), environment.clone(), limits.clone(), metrics.clone());
        supervisor::start(&supervisor, teams.child()).await?;
        let usage = ClusterUsage::new(cluster.clone(), connections.clone(), streams.clone(), limits.clone());
        let core = Arc::new(Self {
            analytics,
            webhooks: reports.webhooks((&store, &pubsub), &environment, &metrics, &limits),
            alerts: Alerts::new(reports.alerts),
            stats: GlobalStats::new(reports.load),
            usage,
            blocks,
            notices,
            messages,
            mailboxes,
            cluster,
            changes,
            join_buckets: Buckets::new(limits.joins_per_agent),
            connections,
            draining: AtomicBool::new(false),
            environment,
            limits,
            store,
            metrics,
            pubsub,
            presence,
            online,
            streams,
            task_channels,
            tasks,
            handoffs,
            ledger,
            payments,
            negotiations,
            teams,
            sockets,
            versions,
            drills,
            supervisor,
        });
        core.join_cluster();
        Ok(core)
    }

    /// Listens to the other nodes from now on.
    fn join_cluster(self: &Arc<Self>) {
        if self.cluster.is_alone() {
            return;
        }
        let mut members = self.cluster.members();
        self.cluster.start(Arc::new(Dispatcher(Arc::downgrade(self))));
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                let now = members.borrow_and_update().clone();
                let Some(core) = weak.upgrade() else { return };
                core.pubsub.members_changed(&now);
                core.streams.members_changed();
                drop(core);
                if members.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// Does what is due by the time.
    pub async fn sweep(&self) {
        // Beside each other: much of one sort does not keep the others waiting.
        let (payments, negotiations, teams) =
            tokio::join!(self.payments.sweep(), self.negotiations.sweep(), self.teams.sweep());
        for (sort, swept) in [("payment", payments), ("negotiation", negotiations), ("team", teams)] {
            if let Err(refusal) = swept {
                tracing::warn!(%refusal, sort, "cannot see what is due");
            }
        }
        if let Err(refusal) = self.handoffs.sweep().await {
            tracing::warn!(%refusal, "cannot cancel the tasks of declined handoffs");
        }
    }

    /// Waits until the supervisor has given up, which a node does not survive.
    pub async fn failed(&self) {
        // Without a timeout there is no error.
        let _never = self.supervisor.wait(None).await;
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

/// Gives what the cluster says to whom it concerns.
struct Dispatcher(Weak<Core>);

impl Receiver for Dispatcher {
    fn receive(&self, event: Event) {
        let Some(core) = self.0.upgrade() else { return };
        match event {
            Event::Message(node, message) => core.hear(node, *message),
            Event::Up(node) => {
                core.presence.node_up(node.clone());
                core.tell_anew(&node);
            }
            Event::Reset(node) => {
                core.presence.node_reset(node.clone());
                core.tell_anew(&node);
            }
            Event::Down(node) => {
                core.presence.node_down(node.clone());
                core.usage.node_down(&node);
                core.pubsub.node_down(&node);
                core.streams.node_changed(&node);
            }
        }
    }
}

impl Core {
    /// Another node says something.
    fn hear(&self, node: NodeKey, message: Message) {
        match message {
            Message::Interest(interest) => self.pubsub.node_wants(&node, &interest),
            Message::InterestNoted { token } => self.pubsub.node_noted(&node, token),
            Message::Publish { topic, event, payload } => {
                self.pubsub.publish_here(topic, Cow::Owned(event.into()), payload);
            }
            Message::Notice(notice) => self.notices.receive(notice),
            Message::Usage(usage) => self.usage.receive(&node, usage, self.environment.monotonic_ms()),
            Message::Stream(message) => self.streams.hear(node, message),
            Message::Mail(mail) => self.mailboxes.hear(mail),
            Message::Presence(message) => self.presence.node_said(node, message),
        }
    }

    /// Another node has come up, or it and this one may have missed something of each other.
    fn tell_anew(&self, node: &NodeKey) {
        self.pubsub.node_up(node);
        self.streams.node_changed(node);
        self.task_channels.missed();
        self.notices.missed();
        self.mailboxes.missed();
        self.usage.node_up();
    }
}
