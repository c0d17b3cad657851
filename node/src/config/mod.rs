//! Configuration: a file, then `MUSTER_*` variables, then flags, each over the one before. What nobody knows is an
//! error, wherever it stands. `muster config` prints what comes out.

mod cluster;
mod layers;
mod store_url;

use std::collections::BTreeMap;
use std::path::PathBuf;

use muster_actors::settings::{LedgerSettings, StreamSettings};
use muster_protocol::alerts::AlertSettings;
use muster_protocol::limits::Limits;
use muster_protocol::negotiation;
use muster_protocol::phoenix::handshake::{OriginPattern, OriginPolicy};
use muster_protocol::protocol_version::{Table, Version};
use muster_protocol::time::Timestamp;
use muster_protocol::webhook::WebhookSettings;
use serde::{Deserialize, Serialize};

pub use self::cluster::{ClusterConfig, RedisUrl, TransportChoice};
#[cfg(test)]
pub(crate) use self::layers::setting_names;
pub use self::layers::{Sources, combine, load};
pub use self::store_url::StoreUrl;
use crate::http::addresses::Networks;

/// The configuration of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The store.
    pub store: StoreConfig,
    /// The front end.
    pub http: HttpConfig,
    /// Users and agents.
    pub accounts: AccountsConfig,
    /// MCP.
    pub mcp: McpConfig,
    /// Logs.
    pub log: LogConfig,
    /// Going away.
    pub drain: DrainConfig,
    /// Versions of the agents' protocol.
    pub protocol: ProtocolConfig,
    /// Negotiations.
    pub negotiation: negotiation::Settings,
    /// Task streams.
    pub stream: StreamSettings,
    /// Webhooks.
    pub webhooks: WebhookSettings,
    /// Thresholds of alerts.
    pub alerts: AlertSettings,
    /// Money.
    pub ledger: LedgerSettings,
    /// Other nodes.
    pub cluster: ClusterConfig,
    /// Crash drills.
    pub drills: DrillsConfig,
    /// Every bound.
    pub limits: Limits,
}

/// `[store]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// Folder of the embedded store.
    pub data_dir: PathBuf,
    /// PostgreSQL instead of the embedded store: `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=…`, where `sslmode` is
    /// `disable`, `prefer`, `require` or `verify-full`. The nodes of a cluster share one database. It holds a password:
    /// better in the environment or a file than among the arguments.
    pub url: Option<StoreUrl>,
    /// PEM file with the certificates by which the database's server is known; it is verified when this is given.
    pub tls_ca: Option<PathBuf>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { data_dir: "muster-data".into(), url: None, tls_ca: None }
    }
}

impl StoreConfig {
    /// Whether the store is this node's alone.
    #[must_use]
    pub const fn is_embedded(&self) -> bool {
        self.url.is_none()
    }
}

/// `[http]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Address and port to listen on; port 0 takes a free one.
    pub listen: String,
    /// PEM file with the certificate chain; TLS is served when this and `tls_key` are given.
    pub tls_certificate: Option<PathBuf>,
    /// PEM file with the certificate's key.
    pub tls_key: Option<PathBuf>,
    /// Whether plain HTTP may be served on an address that is not loopback: only behind something that ends TLS.
    pub allow_plaintext: bool,
    /// Browser origins that may connect; empty means all.
    pub origins: Vec<String>,
    /// Networks (CIDR) of proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<String>,
    /// Where metrics are served instead of on `listen`.
    pub metrics_listen: Option<String>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:4000".into(),
            tls_certificate: None,
            tls_key: None,
            allow_plaintext: false,
            origins: Vec::new(),
            trusted_proxies: Vec::new(),
            metrics_listen: None,
        }
    }
}

/// `[accounts]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccountsConfig {
    /// Whether agents may register themselves without a credential.
    pub open_registration: bool,
    /// How long a session lasts, in milliseconds.
    pub session_ttl_ms: i64,
}

impl Default for AccountsConfig {
    fn default() -> Self {
        Self { open_registration: true, session_ttl_ms: 86_400_000 }
    }
}

/// `[mcp]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct McpConfig {
    /// Names under which the node is reached, checked against `Host` to stop DNS rebinding. When empty: a node that
    /// listens on loopback takes only its machine's own names, any other takes all. Behind a proxy on the same machine,
    /// name what the proxy is reached by.
    pub allowed_hosts: Vec<String>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `json` or `text`.
    pub format: LogFormat,
    /// A filter such as `info` or `info,muster_actors=debug`.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Json, level: "info".into() }
    }
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// `[drain]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainConfig {
    /// How long after SIGTERM sockets are closed over and requests may finish, in milliseconds.
    pub timeout_ms: u64,
    /// How long the node goes on serving after it has become unready, so that load balancers notice, in milliseconds.
    pub unready_ms: u64,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self { timeout_ms: 10_000, unready_ms: 0 }
    }
}

/// `[drills]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrillsConfig {
    /// Whether the event `muster.drill.crash` crashes the channel it is pushed to, and operators may crash a stream: to
    /// try out what clients do. Never on a node that others rely on.
    pub enabled: bool,
}

/// `[protocol]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProtocolConfig {
    /// Versions that are going away, and since when, such as `{"1.0.0" = "2026-01-01T00:00:00Z"}`. Agents are told for 180
    /// days; then the version is refused, unless it is of one of the newest two majors. An older version than those that
    /// the server speaks may stand here too: it is served as core messaging until then.
    pub deprecated: BTreeMap<Version, Timestamp>,
}

impl ProtocolConfig {
    /// The versions there are.
    ///
    /// # Errors
    /// One that is above the latest.
    pub fn table(&self) -> Result<Table, ConfigError> {
        Table::new(self.deprecated.clone())
            .map_err(|problem| ConfigError(format!("protocol.deprecated: {problem}")))
    }
}

/// The configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Most that can be let in at once: more than a semaphore counts would end the node at its start.
const PLACES_MAX: usize = tokio::sync::Semaphore::MAX_PERMITS;

/// Most that one message to another node may take: a link ends over a frame of 16 MiB.
const CLUSTER_MESSAGE_BYTES_MAX: usize = 15 * 1_024 * 1_024;

/// A fee of everything, in hundredths of a percent.
const FEE_BPS_MAX: u16 = 10_000;

/// Shortest time limit that makes sense: below it a client on a slow line never gets in.
const TIMEOUT_MS_MIN: u64 = 100;

/// Connections to PostgreSQL without which a node cannot work: those of its appenders, and one.
const STORE_CONNECTIONS_MIN: usize = crate::store::postgres::appends::APPENDERS + 1;

impl Config {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// The first value that cannot be used, by its name.
    pub fn check(&self) -> Result<(), ConfigError> {
        let named = |name: &str, problem: String| ConfigError(format!("{name}: {problem}"));
        self.origin_policy()?;
        self.protocol.table()?;
        self.check_negotiation()?;
        self.cluster.check()?;
        Networks::parse(&self.http.trusted_proxies).map_err(|error| named("http.trusted_proxies", error))?;
        Networks::parse(&self.limits.ip_limit_exempt)
            .map_err(|error| named("limits.ip_limit_exempt", error))?;
        Networks::parse(&self.webhooks.allow_private)
            .map_err(|error| named("webhooks.allow_private", error))?;
        if self.http.tls_certificate.is_some() != self.http.tls_key.is_some() {
            return Err(named("http.tls_certificate", "needs http.tls_key, and the other way round".into()));
        }
        let rates = [
            ("limits.connects_per_ip", self.limits.connects_per_ip),
            ("limits.requests_per_credential", self.limits.requests_per_credential),
            ("limits.registrations_per_ip", self.limits.registrations_per_ip),
            ("limits.auth_failures_per_ip", self.limits.auth_failures_per_ip),
            ("limits.messages_per_socket", self.limits.messages_per_socket),
            ("limits.joins_per_agent", self.limits.joins_per_agent),
            ("limits.chunks_per_stream", self.limits.chunks_per_stream),
            ("limits.chunks_per_agent", self.limits.chunks_per_agent),
        ];
        for (name, rate) in rates {
            if rate.tokens == 0 || rate.period_ms == 0 || rate.burst == 0 {
                return Err(named(name, "at least 1 of each: a rate of nothing lets nobody in".into()));
            }
        }
        self.check_times()?;
        let at_least = [
            ("limits.connections_max", self.limits.connections_max, 1),
            ("limits.http_headers_max", self.limits.http_headers_max, 8),
            ("limits.http_body_bytes_max", self.limits.http_body_bytes_max, 1_024),
            ("limits.http_large_bodies_max", self.limits.http_large_bodies_max, 1),
            ("limits.http_requests_in_flight_max", self.limits.http_requests_in_flight_max, 1),
            ("limits.sockets_per_credential_max", self.limits.sockets_per_credential_max, 1),
            ("limits.streams_per_credential_max", self.limits.streams_per_credential_max, 1),
            ("limits.topics_per_socket_max", self.limits.topics_per_socket_max, 1),
            ("limits.topic_bytes_max", self.limits.topic_bytes_max, 64),
            ("limits.streams_live_max", self.limits.streams_live_max, 1),
            ("limits.payment_channels_live_max", self.limits.payment_channels_live_max, 1),
            ("limits.stream_read_bytes_max", self.limits.stream_read_bytes_max, 1_024),
            ("limits.http_head_bytes_max", self.limits.http_head_bytes_max, 8_192),
            ("limits.longpoll_sessions_max", self.limits.longpoll_sessions_max, 1),
            ("limits.longpoll_body_bytes_max", self.limits.longpoll_body_bytes_max, 1_024),
            ("limits.longpoll_answer_bytes_max", self.limits.longpoll_answer_bytes_max, 1_024),
            ("limits.message_bytes_max", self.limits.message_bytes_max, 1_024),
            ("limits.outbound_queue_bytes_max", self.limits.outbound_queue_bytes_max, 4_096),
            ("limits.reader_lag_bytes_max", self.limits.reader_lag_bytes_max, 1_024),
            ("limits.requests_in_flight_per_socket_max", self.limits.requests_in_flight_per_socket_max, 1),
            ("limits.store_queue_writes_max", self.limits.store_queue_writes_max, 1),
            ("limits.store_batch_rows_max", self.limits.store_batch_rows_max, 1),
            ("limits.store_connections_max", self.limits.store_connections_max, STORE_CONNECTIONS_MIN),
            ("limits.page_items_max", self.limits.page_items_max, 1),
            ("limits.cluster_peers_max", self.limits.cluster_peers_max, 1),
            ("limits.cluster_handshakes_max", self.limits.cluster_handshakes_max, 1),
            ("limits.cluster_window_bytes_max", self.limits.cluster_window_bytes_max, 64 * 1_024),
            ("limits.cluster_message_bytes_max", self.limits.cluster_message_bytes_max, 1_024 * 1_024),
            (
                "limits.cluster_outbox_bytes_max",
                self.limits.cluster_outbox_bytes_max,
                self.limits.cluster_message_bytes_max + self.limits.cluster_window_bytes_max,
            ),
            (
                "limits.cluster_redis_queue_bytes_max",
                self.limits.cluster_redis_queue_bytes_max,
                self.limits.cluster_message_bytes_max + self.limits.cluster_window_bytes_max,
            ),
        ];
        for (name, value, least) in at_least {
            if value < least {
                return Err(named(name, format!("at least {least}, not {value}")));
            }
        }
        self.check_most()
    }

    fn check_negotiation(&self) -> Result<(), ConfigError> {
        let negotiation::Settings { rounds_max, timeout_ms, .. } = self.negotiation;
        // All offers of a negotiation are read and written together.
        if !(2..=100).contains(&rounds_max) {
            return Err(ConfigError(format!("negotiation.rounds_max: from 2 to 100, not {rounds_max}")));
        }
        if timeout_ms < 1_000 {
            return Err(ConfigError(format!("negotiation.timeout_ms: at least 1000, not {timeout_ms}")));
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), ConfigError> {
        let times = [
            ("limits.handshake_timeout_ms", self.limits.handshake_timeout_ms),
            ("limits.socket_idle_timeout_ms", self.limits.socket_idle_timeout_ms),
            ("limits.reader_stall_timeout_ms", self.limits.reader_stall_timeout_ms),
            ("limits.mcp_session_idle_ms", self.limits.mcp_session_idle_ms),
            ("limits.longpoll_window_ms", self.limits.longpoll_window_ms),
            ("limits.payment_channel_accept_ms", self.limits.payment_channel_accept_ms),
            ("limits.payment_proposal_ms", self.limits.payment_proposal_ms),
            ("limits.store_statement_timeout_ms", self.limits.store_statement_timeout_ms),
            ("limits.store_call_timeout_ms", self.limits.store_call_timeout_ms),
            ("webhooks.timeout_ms", self.webhooks.timeout_ms),
            ("alerts.every_ms", self.alerts.every_ms),
        ];
        for (name, value) in times {
            if value < TIMEOUT_MS_MIN {
                return Err(ConfigError(format!("{name}: at least {TIMEOUT_MS_MIN}, not {value}")));
            }
        }
        Ok(())
    }

    fn check_most(&self) -> Result<(), ConfigError> {
        let places = [
            ("limits.connections_max", self.limits.connections_max),
            ("limits.http_large_bodies_max", self.limits.http_large_bodies_max),
            ("limits.http_requests_in_flight_max", self.limits.http_requests_in_flight_max),
            ("limits.store_queue_writes_max", self.limits.store_queue_writes_max),
            ("limits.store_connections_max", self.limits.store_connections_max),
            ("webhooks.in_flight_max", self.webhooks.in_flight_max),
            ("limits.cluster_handshakes_max", self.limits.cluster_handshakes_max),
        ];
        for (name, value) in places {
            if value > PLACES_MAX {
                return Err(ConfigError(format!("{name}: at most {PLACES_MAX}, not {value}")));
            }
        }
        if self.limits.cluster_message_bytes_max > CLUSTER_MESSAGE_BYTES_MAX {
            return Err(ConfigError(format!(
                "limits.cluster_message_bytes_max: at most {CLUSTER_MESSAGE_BYTES_MAX}, which is what a link takes at once"
            )));
        }
        if self.ledger.platform_fee_bps > FEE_BPS_MAX {
            let fee = self.ledger.platform_fee_bps;
            return Err(ConfigError(format!("ledger.platform_fee_bps: at most {FEE_BPS_MAX}, not {fee}")));
        }
        let currency = &self.ledger.currency;
        if currency.is_empty() || currency.len() > 16 || currency.chars().any(char::is_control) {
            return Err(ConfigError("ledger.currency: 1 to 16 bytes without control characters".into()));
        }
        if self.accounts.session_ttl_ms < 1 {
            return Err(ConfigError("accounts.session_ttl_ms: at least 1".into()));
        }
        Ok(())
    }

    /// Which origins may connect.
    ///
    /// # Errors
    /// A pattern is malformed.
    pub fn origin_policy(&self) -> Result<OriginPolicy, ConfigError> {
        if self.http.origins.is_empty() {
            return Ok(OriginPolicy::Any);
        }
        let patterns = self.http.origins.iter().map(|text| OriginPattern::parse(text));
        let patterns: Result<Vec<_>, _> = patterns.collect();
        patterns.map(OriginPolicy::Only).map_err(|error| ConfigError(format!("http.origins: {error}")))
    }
}

/// The secret that nodes share, from the environment; like the operator's token it is no setting.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is the module the lint leaves the environment to")]
pub fn cluster_secret() -> Option<String> {
    std::env::var("MUSTER_CLUSTER_SECRET").ok().filter(|secret| !secret.is_empty())
}

/// The operator's token, from the environment; it is a secret, so it is no setting.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is the module the lint leaves the environment to")]
pub fn operator_token() -> Option<String> {
    std::env::var("MUSTER_ADMIN_TOKEN").ok().filter(|token| !token.is_empty())
}
