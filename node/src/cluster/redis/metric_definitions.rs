//! The metrics of the transport over Redis: name, unit, labels and help text, in one place.

use muster_actors::metric_definitions::Label;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Metrics of the transport over Redis.
#[derive(Clone)]
pub struct RedisMetrics {
    /// 1 while frames can go over it.
    pub up: Gauge,
    /// Connections that could be used.
    pub connected: Counter,
    /// Connections that failed, or did not come about.
    pub failed: Counter,
    /// Envelopes that Redis has taken.
    pub published: Counter,
    /// Envelopes for a node that Redis had no subscriber for.
    pub unheard: Counter,
    /// Envelopes that were opened.
    pub received: Counter,
    queue_bytes: Gauge,
    /// Time Redis takes to take what it is given.
    pub publish_seconds: Histogram,
    refused: Family<Label, Counter>,
    dropped: Family<Label, Counter>,
}

impl RedisMetrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            up: Gauge::default(),
            connected: Counter::default(),
            failed: Counter::default(),
            published: Counter::default(),
            unheard: Counter::default(),
            received: Counter::default(),
            queue_bytes: Gauge::default(),
            // From 100 microseconds to 3 seconds.
            publish_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 15)),
            refused: Family::default(),
            dropped: Family::default(),
        };
        metrics.register_connection(registry);
        metrics.register_envelopes(registry);
        metrics
    }

    fn register_connection(&self, registry: &mut Registry) {
        registry.register(
            "cluster_redis_up",
            "1 while frames for other nodes can go over Redis",
            self.up.clone(),
        );
        registry.register(
            "cluster_redis_connected",
            "Connections to Redis that could be used",
            self.connected.clone(),
        );
        registry.register(
            "cluster_redis_failed",
            "Connections to Redis that failed or did not come about",
            self.failed.clone(),
        );
        registry.register_with_unit(
            "cluster_redis_publish",
            "Time until Redis has taken what it is given",
            Unit::Seconds,
            self.publish_seconds.clone(),
        );
    }

    fn register_envelopes(&self, registry: &mut Registry) {
        registry.register(
            "cluster_redis_published",
            "Envelopes that Redis has taken",
            self.published.clone(),
        );
        registry.register(
            "cluster_redis_unheard",
            "Envelopes that Redis has taken and had no subscriber for",
            self.unheard.clone(),
        );
        registry.register("cluster_redis_received", "Envelopes that were opened", self.received.clone());
        registry.register(
            "cluster_redis_refused",
            "Messages of Redis that were not taken, by reason: forged, repeated, malformed",
            self.refused.clone(),
        );
        registry.register(
            "cluster_redis_dropped",
            "Frames that did not go to Redis, by reason: full, down; they are sent again",
            self.dropped.clone(),
        );
        registry.register_with_unit(
            "cluster_redis_queue",
            "Frames that wait for Redis",
            Unit::Bytes,
            self.queue_bytes.clone(),
        );
    }

    /// A message of Redis was not taken.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }

    /// So many bytes of frames wait for Redis.
    pub fn waits(&self, bytes: usize) {
        self.queue_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Frames did not go to Redis.
    pub fn dropped(&self, reason: &'static str, frames: usize) {
        self.dropped.get_or_create(&[("reason", reason)]).inc_by(frames as u64);
    }
}
