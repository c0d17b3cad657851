//! The metrics of the links between nodes: name, unit, labels and help text, in one place.

use muster_actors::metric_definitions::Label;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::status::Status;

/// Metrics of the links.
#[derive(Clone)]
pub struct ClusterMetrics {
    nodes: Gauge,
    isolated: Gauge,
    links: Family<Label, Gauge>,
    outbox_bytes: Gauge,
    round_trip_seconds: Histogram,
    dropped: Counter,
    refused: Family<Label, Counter>,
    connections: Family<Label, Counter>,
    /// Messages taken for other nodes.
    pub sent: Counter,
    /// Messages that came.
    pub received: Counter,
    /// Messages that this version does not know.
    pub passed_over: Counter,
    /// Sessions that began anew.
    pub resets: Counter,
}

impl ClusterMetrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            nodes: Gauge::default(),
            isolated: Gauge::default(),
            links: Family::default(),
            outbox_bytes: Gauge::default(),
            // From 50 microseconds, as on one machine, to 3 seconds.
            round_trip_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 16)),
            dropped: Counter::default(),
            refused: Family::default(),
            connections: Family::default(),
            sent: Counter::default(),
            received: Counter::default(),
            passed_over: Counter::default(),
            resets: Counter::default(),
        };
        metrics.register_nodes(registry);
        metrics.register_messages(registry);
        metrics
    }

    fn register_nodes(&self, registry: &mut Registry) {
        registry.register("cluster_nodes", "Nodes that are up, this one too", self.nodes.clone());
        registry.register(
            "cluster_isolated",
            "1 while this node hears none of those there should be",
            self.isolated.clone(),
        );
        registry.register(
            "cluster_links",
            "Nodes that are up, by what carries frames to them",
            self.links.clone(),
        );
        registry.register_with_unit(
            "cluster_round_trip",
            "Time to another node and back",
            Unit::Seconds,
            self.round_trip_seconds.clone(),
        );
        registry.register(
            "cluster_connections",
            "Connections with other nodes, by what became of them",
            self.connections.clone(),
        );
    }

    fn register_messages(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "cluster_outbox",
            "Messages that wait for other nodes or are under way to them",
            Unit::Bytes,
            self.outbox_bytes.clone(),
        );
        registry.register("cluster_messages_sent", "Messages taken for other nodes", self.sent.clone());
        registry.register("cluster_messages_received", "Messages from other nodes", self.received.clone());
        registry.register(
            "cluster_messages_dropped",
            "Messages that were taken for a node and not delivered: it went, or too much waited for it",
            self.dropped.clone(),
        );
        registry.register(
            "cluster_messages_passed_over",
            "Messages from other nodes that this version does not know",
            self.passed_over.clone(),
        );
        registry.register(
            "cluster_frames_refused",
            "Frames from other nodes that were not taken, by reason",
            self.refused.clone(),
        );
        registry.register(
            "cluster_session_resets",
            "Sessions with other nodes that began anew",
            self.resets.clone(),
        );
    }

    /// Messages were dropped.
    pub fn dropped(&self, messages: u64) {
        self.dropped.inc_by(messages);
    }

    /// A frame was not taken.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }

    /// What became of a connection.
    pub fn connection(&self, outcome: &'static str) {
        self.connections.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// A round trip took so many microseconds.
    #[allow(clippy::cast_precision_loss, reason = "a round trip is far below 2^52 microseconds")]
    pub fn round_trip(&self, microseconds: u64) {
        self.round_trip_seconds.observe(microseconds as f64 / 1e6);
    }

    /// How things stand.
    pub fn observe(&self, status: &Status) {
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let up = || status.nodes.iter().filter(|node| node.state.is_up());
        self.nodes.set(gauge(up().count()));
        self.isolated.set(i64::from(status.isolated));
        for transport in ["direct", "fallback", "none"] {
            let links = up().filter(|node| !node.is_self && node.transport.unwrap_or("none") == transport);
            self.links.get_or_create(&[("transport", transport)]).set(gauge(links.count()));
        }
        self.outbox_bytes.set(gauge(status.nodes.iter().map(|node| node.outbox_bytes).sum()));
    }
}
