//! The metrics of this crate: name, unit, labels and help text, in one place. No agent, user or topic is ever a label.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// One label of a few fixed values.
pub type Label = [(&'static str, &'static str); 1];

/// Metrics of sockets, channels, streams and presence.
pub struct Metrics {
    /// Sockets open now.
    pub sockets: Gauge,
    /// Joins open now.
    pub joins: Gauge,
    /// Joins, by outcome.
    pub joins_total: Family<Label, Counter>,
    /// Messages from clients, by what became of them.
    pub messages_received: Family<Label, Counter>,
    /// Sockets closed, by close code.
    pub closes: Family<Label, Counter>,
    /// Crashed actors, by kind.
    pub crashes: Family<Label, Counter>,
    /// Chunks appended.
    pub chunks: Counter,
    /// Retried chunks that were known already.
    pub chunks_deduplicated: Counter,
    /// Chunks refused, by reason.
    pub chunks_refused: Family<Label, Counter>,
    /// Chunks written to readers.
    pub chunks_delivered: Counter,
    /// Time from a chunk's arrival to its acknowledgement.
    pub chunk_ack_seconds: Histogram,
    /// Streams in memory.
    pub streams: Gauge,
    /// Streams that went from this node to another.
    pub streams_moved: Counter,
    /// Bytes of streams in memory.
    pub stream_bytes: Gauge,
    /// Readers that fell behind and went on from the log.
    pub readers_lagged: Counter,
    /// Readers closed because they took nothing.
    pub readers_stalled: Counter,
    /// Agents online by a connection to this node.
    pub agents_online: Gauge,
    /// Presence diffs made.
    pub presence_diffs: Counter,
    /// Entries of presence that other nodes have told of.
    pub presence_remote_entries: Gauge,
    /// Times another node was asked for presence, by for how much, and times a difference was found.
    pub presence_repairs: Family<Label, Counter>,
    /// What of presence across nodes was refused, by what it was.
    pub presence_refused: Family<Label, Counter>,
    /// Broadcasts published.
    pub published: Counter,
    /// Broadcasts written to connections.
    pub delivered: Counter,
    /// Messages between agents, by what was done with them.
    pub agent_messages: Family<Label, Counter>,
    /// Broadcasts dropped because their topic's shard is behind.
    pub publications_dropped: Counter,
    /// Entries of figures dropped because their store is away or behind.
    pub figures_dropped: Counter,
    /// Attempts to deliver to webhooks, by what became of the delivery.
    pub webhook_attempts: Family<Label, Counter>,
    /// Connections closed because what was due to them did not fit their queue.
    pub overloaded: Counter,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            sockets: Gauge::default(),
            joins: Gauge::default(),
            joins_total: Family::default(),
            messages_received: Family::default(),
            closes: Family::default(),
            crashes: Family::default(),
            chunks: Counter::default(),
            chunks_deduplicated: Counter::default(),
            chunks_refused: Family::default(),
            chunks_delivered: Counter::default(),
            chunk_ack_seconds: Histogram::new(exponential_buckets(0.000_25, 2.0, 16)),
            streams: Gauge::default(),
            streams_moved: Counter::default(),
            stream_bytes: Gauge::default(),
            readers_lagged: Counter::default(),
            readers_stalled: Counter::default(),
            agents_online: Gauge::default(),
            presence_diffs: Counter::default(),
            presence_remote_entries: Gauge::default(),
            presence_repairs: Family::default(),
            presence_refused: Family::default(),
            published: Counter::default(),
            delivered: Counter::default(),
            agent_messages: Family::default(),
            publications_dropped: Counter::default(),
            figures_dropped: Counter::default(),
            webhook_attempts: Family::default(),
            overloaded: Counter::default(),
        };
        metrics.register_sockets(registry);
        metrics.register_presence(registry);
        metrics.register_streams(registry);
        metrics.register_reports(registry);
        metrics
    }

    fn register_sockets(&self, registry: &mut Registry) {
        registry.register("sockets", "Sockets open now", self.sockets.clone());
        registry.register("joins", "Joined topics now", self.joins.clone());
        registry.register("join_attempts", "Joins by outcome", self.joins_total.clone());
        registry.register(
            "messages_received",
            "Messages from clients, by what became of them",
            self.messages_received.clone(),
        );
        registry.register(
            "socket_closes",
            "Sockets closed by the server, by close code",
            self.closes.clone(),
        );
        registry.register("actor_crashes", "Actors that crashed, by kind", self.crashes.clone());
        registry.register("broadcasts_published", "Broadcasts published", self.published.clone());
        registry.register(
            "broadcasts_delivered",
            "Broadcasts written to connections",
            self.delivered.clone(),
        );
        registry.register(
            "agent_messages",
            "Messages between agents that were accepted, pushed, pushed again, given up, or queued again when nobody had taken them",
            self.agent_messages.clone(),
        );
        registry.register(
            "broadcasts_dropped",
            "Broadcasts dropped because their topic was behind",
            self.publications_dropped.clone(),
        );
        registry.register(
            "sockets_overloaded",
            "Sockets closed because what was due to them did not fit their queue",
            self.overloaded.clone(),
        );
    }

    fn register_reports(&self, registry: &mut Registry) {
        registry.register(
            "figures_dropped",
            "Entries of figures dropped because their store is away or behind",
            self.figures_dropped.clone(),
        );
        registry.register(
            "webhook_attempts",
            "Attempts to deliver to webhooks, by what became of the delivery",
            self.webhook_attempts.clone(),
        );
    }

    fn register_presence(&self, registry: &mut Registry) {
        registry.register(
            "agents_online",
            "Agents online by a connection to this node",
            self.agents_online.clone(),
        );
        registry.register("presence_diffs", "Presence diffs made", self.presence_diffs.clone());
        registry.register(
            "presence_remote_entries",
            "Entries of presence that other nodes have told of",
            self.presence_remote_entries.clone(),
        );
        registry.register(
            "presence_repairs",
            "Times another node was asked for changes or the whole of its presence, and times a difference was found",
            self.presence_repairs.clone(),
        );
        registry.register(
            "presence_refused",
            "What of presence across nodes was refused: entries, events, messages, what waits",
            self.presence_refused.clone(),
        );
    }

    fn register_streams(&self, registry: &mut Registry) {
        registry.register("chunks_appended", "Chunks appended to streams", self.chunks.clone());
        registry.register(
            "chunks_deduplicated",
            "Chunks that an idempotency key showed to be known",
            self.chunks_deduplicated.clone(),
        );
        registry.register("chunks_refused", "Chunks refused, by reason", self.chunks_refused.clone());
        registry.register("chunks_delivered", "Chunks written to readers", self.chunks_delivered.clone());
        registry.register_with_unit(
            "chunk_acknowledgement",
            "Time from a chunk's arrival to its acknowledgement",
            Unit::Seconds,
            self.chunk_ack_seconds.clone(),
        );
        registry.register("streams", "Streams in memory", self.streams.clone());
        registry.register(
            "streams_moved",
            "Streams that went from this node to another",
            self.streams_moved.clone(),
        );
        registry.register_with_unit(
            "stream_memory",
            "Memory that stream logs take",
            Unit::Bytes,
            self.stream_bytes.clone(),
        );
        registry.register(
            "readers_lagged",
            "Stream readers that fell behind and went on from the log",
            self.readers_lagged.clone(),
        );
        registry.register(
            "readers_stalled",
            "Readers of streams and of answers closed because they took nothing",
            self.readers_stalled.clone(),
        );
    }
}
