//! The metrics of the front end and the store: name, unit, labels and help text, in one place.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Labels of a request: the route as written in the code, never the path as sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// Method.
    pub method: String,
    /// Route.
    pub route: String,
    /// Status.
    pub status: u16,
}

/// Metrics of the front end.
pub struct HttpMetrics {
    /// TCP connections open now.
    pub connections: Gauge,
    /// Connections turned away, by reason.
    pub connections_refused: Family<muster_actors::metric_definitions::Label, Counter>,
    /// Requests, by method, route and status.
    pub requests: Family<RequestLabels, Counter>,
    /// Time from a request's head to its answer's.
    pub request_seconds: Histogram,
    /// Event streams open now.
    pub event_streams: Gauge,
    /// MCP sessions open now.
    pub mcp_sessions: Gauge,
    /// Long-poll sessions open now; each is a socket too.
    pub longpoll_sessions: Gauge,
}

impl HttpMetrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            connections: Gauge::default(),
            connections_refused: Family::default(),
            requests: Family::default(),
            request_seconds: Histogram::new(exponential_buckets(0.000_25, 2.0, 16)),
            event_streams: Gauge::default(),
            mcp_sessions: Gauge::default(),
            longpoll_sessions: Gauge::default(),
        };
        registry.register("connections", "TCP connections open now", metrics.connections.clone());
        registry.register(
            "connections_refused",
            "TCP connections turned away, by reason",
            metrics.connections_refused.clone(),
        );
        registry.register(
            "http_requests",
            "HTTP requests by method, route and status",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "http_request",
            "Time from a request's head to its answer's",
            Unit::Seconds,
            metrics.request_seconds.clone(),
        );
        registry.register("event_streams", "Event streams (SSE) open now", metrics.event_streams.clone());
        registry.register("mcp_sessions", "MCP sessions open now", metrics.mcp_sessions.clone());
        registry.register(
            "longpoll_sessions",
            "Long-poll sessions open now; each is a socket too",
            metrics.longpoll_sessions.clone(),
        );
        metrics
    }
}

/// A registry whose names all begin with `muster_`.
#[must_use]
pub fn registry() -> Registry {
    Registry::with_prefix("muster")
}
