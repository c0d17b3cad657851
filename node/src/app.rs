//! What the front end works with: the core, the configuration, and what is shared between requests.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use muster_actors::core::Core;
use muster_actors::rate_limits::Buckets;
use muster_protocol::account::SecretHash;
use muster_protocol::ids::CredentialId;
use muster_protocol::phoenix::handshake::OriginPolicy;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Authenticator;
use crate::cluster::nodes::Nodes;
use crate::config::{Config, ConfigError};
use crate::http::addresses::{Networks, limit_key};
use crate::longpoll::LongPolls;
use crate::metric_definitions::HttpMetrics;

/// The node as its front end sees it.
pub struct App {
    /// Actors and store.
    pub core: Arc<Core>,
    /// Configuration.
    pub config: Config,
    /// The links to other nodes, if this is one of several.
    pub nodes: Option<Arc<Nodes>>,
    /// Checks secrets.
    pub auth: Authenticator,
    /// Which browser origins may connect.
    pub origins: OriginPolicy,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Networks,
    /// Metrics of the front end.
    pub metrics: HttpMetrics,
    /// All metrics.
    pub registry: Registry,
    /// Places for requests in work.
    pub requests: Arc<Semaphore>,
    /// Places for large bodies that are being read.
    pub large_bodies: Semaphore,
    /// REST requests by credential.
    pub credential_buckets: Buckets<CredentialId>,
    /// Long-poll sessions.
    pub longpolls: LongPolls,
    /// Cancelled when event streams and MCP sessions are to end.
    pub closing: CancellationToken,
    /// Requests that are being handled.
    pub handlers: TaskTracker,
    exempt: Networks,
    connect_buckets: Buckets<IpAddr>,
    registration_buckets: Buckets<IpAddr>,
    ready: AtomicBool,
}

impl App {
    /// Puts it together.
    ///
    /// # Errors
    /// The configuration cannot be used.
    pub fn new(
        core: Arc<Core>,
        config: Config,
        operator: SecretHash,
        nodes: Option<Arc<Nodes>>,
        (metrics, registry): (HttpMetrics, Registry),
    ) -> Result<Arc<Self>, ConfigError> {
        let networks = |list: &[String]| Networks::parse(list).map_err(ConfigError);
        let exempt = networks(&config.limits.ip_limit_exempt)?;
        Ok(Arc::new(Self {
            auth: Authenticator::new(core.clone(), operator, exempt.clone()),
            origins: config.origin_policy()?,
            trusted_proxies: networks(&config.http.trusted_proxies)?,
            requests: Arc::new(Semaphore::new(config.limits.http_requests_in_flight_max)),
            large_bodies: Semaphore::new(config.limits.http_large_bodies_max),
            credential_buckets: Buckets::new(config.limits.requests_per_credential),
            connect_buckets: Buckets::new(config.limits.connects_per_ip),
            registration_buckets: Buckets::new(config.limits.registrations_per_ip),
            longpolls: LongPolls::new(&config.limits),
            closing: CancellationToken::new(),
            handlers: TaskTracker::new(),
            ready: AtomicBool::new(false),
            core,
            config,
            nodes,
            metrics,
            registry,
            exempt,
        }))
    }

    /// Whether one more connection may come from an address.
    #[must_use]
    pub fn may_connect(&self, from: IpAddr) -> bool {
        self.within(&self.connect_buckets, from).is_ok()
    }

    /// Whether one more agent may be registered from an address.
    ///
    /// # Errors
    /// After so many milliseconds it may.
    pub fn may_register(&self, from: IpAddr) -> Result<(), u64> {
        self.within(&self.registration_buckets, from)
    }

    fn within(&self, buckets: &Buckets<IpAddr>, from: IpAddr) -> Result<(), u64> {
        if self.exempt.contains(from.to_canonical()) {
            return Ok(());
        }
        buckets.take(limit_key(from), self.core.environment.monotonic_ms())
    }

    /// The listeners are up.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// Whether the node takes work.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) && !self.core.is_draining()
    }
}
