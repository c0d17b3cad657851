//! `[cluster]`: which nodes there are, and how they reach each other.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use muster_protocol::cluster::frame::is_name;
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Where nodes listen for each other when no port is given.
pub const DEFAULT_PORT: u16 = 4_100;

/// `[cluster]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// Name of the cluster: nodes of another one are turned away.
    pub name: String,
    /// Name of this node, which no other has; the name of the machine when absent.
    pub node: Option<String>,
    /// Address to listen on for other nodes, with or without a port (4100). Absent, and with `transport = "auto"`: the node
    /// is alone.
    pub listen: Option<String>,
    /// Where other nodes reach this one, HOST:PORT, if that is not `listen`: it tells those it is linked to, and they tell
    /// others.
    pub advertise: Option<String>,
    /// Other nodes, each HOST:PORT. They need not be all: nodes tell each other where the others are.
    pub peers: Vec<String>,
    /// A name that stands for all nodes, NAME:PORT: all of its addresses are dialled, and asked for again every few seconds.
    pub dns: Option<String>,
    /// PEM file with the certificates of the authority that signs nodes.
    pub ca: Option<PathBuf>,
    /// PEM file with this node's certificate and its chain.
    pub certificate: Option<PathBuf>,
    /// PEM file with the certificate's key.
    pub key: Option<PathBuf>,
    /// Whether nodes may speak without TLS beyond loopback: only on a network that nobody else is on.
    pub allow_plaintext: bool,
    /// `auto`: direct links, and Redis for what they do not reach, if `redis_url` is given. `redis`: Redis alone.
    pub transport: TransportChoice,
    /// Redis (6 or newer) or Valkey: redis://USER:PASSWORD@HOST:PORT, rediss:// for TLS, or redis+unix:///PATH. Needs
    /// `MUSTER_CLUSTER_SECRET` in the environment.
    pub redis_url: Option<RedisUrl>,
    /// PEM file with the certificates of who signs a Redis with TLS; those this machine trusts when absent.
    pub redis_ca: Option<PathBuf>,
    /// How often nodes let each other know that they are there, in milliseconds.
    pub heartbeat_ms: u64,
    /// A node that has not been heard of for this long is not waited for, in milliseconds.
    pub suspect_after_ms: u64,
    /// A node that has not been heard of for this long is gone, in milliseconds.
    pub down_after_ms: u64,
}

/// Where Redis is. There may be a password in it, so that is left out wherever it is shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// All of it: to connect, and for nothing else.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for RedisUrl {
    fn from(url: &str) -> Self {
        Self(url.to_owned())
    }
}

impl std::fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some((scheme, rest)) = self.0.split_once("://") else { return f.write_str("…") };
        let (credentials, place) =
            rest.rsplit_once('@').map_or((None, rest), |(credentials, place)| (Some(credentials), place));
        // Of a socket's path the password is behind the question mark.
        let place = place.split(['?', '#']).next().unwrap_or_default();
        let hidden = if credentials.is_some() { "…@" } else { "" };
        write!(f, "{scheme}://{hidden}{place}")
    }
}

impl std::fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for RedisUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How nodes reach each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportChoice {
    /// Directly where that goes, else by Redis.
    #[default]
    Auto,
    /// By Redis.
    Redis,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            name: "muster".into(),
            node: None,
            listen: None,
            advertise: None,
            peers: Vec::new(),
            dns: None,
            ca: None,
            certificate: None,
            key: None,
            allow_plaintext: false,
            transport: TransportChoice::Auto,
            redis_url: None,
            redis_ca: None,
            heartbeat_ms: 1_000,
            suspect_after_ms: 3_000,
            down_after_ms: 5_000,
        }
    }
}

impl ClusterConfig {
    /// Whether the node is to be one of several.
    #[must_use]
    pub fn is_clustered(&self) -> bool {
        self.listen.is_some() || self.transport == TransportChoice::Redis
    }

    /// Where to listen.
    ///
    /// # Errors
    /// `listen` is no address.
    pub fn listen_address(&self) -> Result<Option<SocketAddr>, ConfigError> {
        let Some(listen) = &self.listen else { return Ok(None) };
        let address = listen.parse::<SocketAddr>().ok();
        let address =
            address.or_else(|| listen.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, DEFAULT_PORT)));
        address
            .map(Some)
            .ok_or_else(|| ConfigError(format!("cluster.listen: {listen:?} is neither ADDR nor ADDR:PORT")))
    }

    /// Where this node tells others that it is reached, if it is and can say.
    #[must_use]
    pub fn advertised(&self) -> Option<String> {
        if self.transport == TransportChoice::Redis {
            return None;
        }
        let listen = self.listen_address().ok().flatten();
        let listen = listen.filter(|listen| !listen.ip().is_unspecified() && listen.port() > 0);
        self.advertise.clone().or_else(|| listen.map(|listen| listen.to_string()))
    }

    /// Whether an address that another node tells may be dialled: without TLS none beyond this machine, unless that is
    /// allowed.
    #[must_use]
    pub fn may_dial(&self, place: &str) -> bool {
        is_place(place) && (self.has_tls() || self.allow_plaintext || is_loopback(place))
    }

    /// Whether certificate, key and authority are given.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.certificate.is_some()
    }

    /// The same with no setting absent, to have all their names.
    pub(super) fn with_every_setting(self) -> Self {
        Self {
            node: Some(String::new()),
            listen: Some(String::new()),
            advertise: Some(String::new()),
            dns: Some(String::new()),
            ca: Some(PathBuf::new()),
            certificate: Some(PathBuf::new()),
            key: Some(PathBuf::new()),
            redis_url: Some(RedisUrl(String::new())),
            redis_ca: Some(PathBuf::new()),
            ..self
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let named = |name: &str, problem: &str| Err(ConfigError(format!("cluster.{name}: {problem}")));
        let names = [("name", Some(&self.name)), ("node", self.node.as_ref())];
        for (setting, name) in names {
            if name.is_some_and(|name| !is_name(name)) {
                return named(setting, "1 to 128 letters, digits, '.', '-' and '_'");
            }
        }
        let listen = self.listen_address()?;
        for (setting, place) in self
            .peers
            .iter()
            .map(|peer| ("peers", peer))
            .chain(self.dns.iter().map(|dns| ("dns", dns)))
            .chain(self.advertise.iter().map(|advertise| ("advertise", advertise)))
        {
            if !is_place(place) {
                return named(setting, &format!("{place:?} is not HOST:PORT"));
            }
        }
        if (!self.peers.is_empty() || self.dns.is_some()) && !self.is_clustered() {
            return named("listen", "needed where cluster.peers or cluster.dns is given");
        }
        if self.transport == TransportChoice::Redis && self.redis_url.is_none() {
            return named("redis_url", "needed by cluster.transport = \"redis\"");
        }
        if self.redis_url.is_some() && !self.is_clustered() {
            return named(
                "redis_url",
                "of use where this node is one of several: give cluster.listen, or cluster.transport = \"redis\"",
            );
        }
        let tls = [self.ca.is_some(), self.certificate.is_some(), self.key.is_some()];
        if tls.contains(&true) && tls.contains(&false) {
            return named("ca", "cluster.ca, cluster.certificate and cluster.key are given together");
        }
        let is_direct = listen.is_some() && self.transport == TransportChoice::Auto;
        let is_local = listen.is_none_or(|listen| listen.ip().is_loopback())
            && self.dns.is_none()
            && self.peers.iter().all(|peer| is_loopback(peer));
        if is_direct && !self.has_tls() && !self.allow_plaintext && !is_local {
            return named(
                "certificate",
                "nodes that speak beyond loopback need cluster.ca, cluster.certificate and cluster.key (`muster cluster \
                 cert` makes them), or cluster.allow_plaintext = true on a network that nobody else is on",
            );
        }
        let times = self.heartbeat_ms >= 100
            && self.suspect_after_ms >= 2 * self.heartbeat_ms
            && self.down_after_ms > self.suspect_after_ms
            && self.down_after_ms <= 600_000;
        if !times {
            return named(
                "heartbeat_ms",
                "at least 100; cluster.suspect_after_ms at least twice that, cluster.down_after_ms more still, at most \
                 600000",
            );
        }
        Ok(())
    }
}

/// Whether this is HOST:PORT; an IPv6 address is in brackets.
fn is_place(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let host_fits = host.starts_with('[') == host.ends_with(']')
            && (host.starts_with('[') || !host.contains(':'))
            && !host.contains(char::is_whitespace);
        !host.is_empty() && host_fits && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// Whether HOST:PORT is on this machine whatever a resolver says.
fn is_loopback(place: &str) -> bool {
    let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    ip.is_ok_and(|ip| ip.is_loopback()) || host == "localhost"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clustered() -> ClusterConfig {
        ClusterConfig { listen: Some("127.0.0.1".into()), ..ClusterConfig::default() }
    }

    #[test]
    fn without_settings_a_node_is_alone_and_the_port_is_4100() {
        assert!(!ClusterConfig::default().is_clustered());
        assert!(clustered().is_clustered() && clustered().check().is_ok());
        assert_eq!(clustered().listen_address().unwrap().unwrap().to_string(), "127.0.0.1:4100");
        let other = ClusterConfig { listen: Some("[::1]:7".into()), ..clustered() };
        assert_eq!(other.listen_address().unwrap().unwrap().port(), 7);
    }

    #[test]
    fn what_others_tell_is_dialled_only_where_the_configuration_lets_nodes_speak() {
        assert!(clustered().may_dial("127.0.0.1:5") && clustered().may_dial("[::1]:5"));
        for place in
            ["10.0.0.1:5", "example.org:5", "localhost.example.org:5", "127.0.0.1", "127.0.0.1:0", ""]
        {
            assert!(!clustered().may_dial(place), "{place}");
        }
        let secured = ClusterConfig { certificate: Some("c".into()), ..clustered() };
        assert!(secured.may_dial("example.org:5") && !secured.may_dial("a b:5"));
        assert_eq!(clustered().advertised().as_deref(), Some("127.0.0.1:4100"));
        assert_eq!(ClusterConfig { listen: Some("0.0.0.0".into()), ..clustered() }.advertised(), None);
        assert_eq!(ClusterConfig { transport: TransportChoice::Redis, ..clustered() }.advertised(), None);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let cases: [(ClusterConfig, &str); 13] = [
            (ClusterConfig { name: "a b".into(), ..clustered() }, "cluster.name"),
            (ClusterConfig { node: Some(String::new()), ..clustered() }, "cluster.node"),
            (ClusterConfig { listen: Some("here".into()), ..clustered() }, "cluster.listen"),
            (ClusterConfig { peers: vec!["a".into()], ..clustered() }, "cluster.peers"),
            (ClusterConfig { peers: vec!["::1".into()], ..clustered() }, "cluster.peers"),
            (ClusterConfig { dns: Some("a:0".into()), ..clustered() }, "cluster.dns"),
            (ClusterConfig { peers: vec!["a:1".into()], listen: None, ..clustered() }, "cluster.listen"),
            (ClusterConfig { transport: TransportChoice::Redis, ..clustered() }, "cluster.redis_url"),
            (
                ClusterConfig { redis_url: Some("redis://r".into()), ..ClusterConfig::default() },
                "cluster.redis_url",
            ),
            (ClusterConfig { ca: Some("x".into()), ..clustered() }, "cluster.ca"),
            (ClusterConfig { listen: Some("0.0.0.0:1".into()), ..clustered() }, "cluster.certificate"),
            (ClusterConfig { peers: vec!["10.0.0.1:4100".into()], ..clustered() }, "cluster.certificate"),
            (ClusterConfig { suspect_after_ms: 1_500, ..clustered() }, "cluster.heartbeat_ms"),
        ];
        for (config, name) in cases {
            let error = config.check().unwrap_err();
            assert!(error.0.starts_with(name), "{error} does not begin with {name}");
        }
        let allowed =
            ClusterConfig { listen: Some("0.0.0.0:1".into()), allow_plaintext: true, ..clustered() };
        assert_eq!(allowed.check(), Ok(()));
        let local = ClusterConfig { peers: vec!["localhost:1".into(), "[::1]:2".into()], ..clustered() };
        assert_eq!(local.check(), Ok(()));
    }

    #[test]
    fn a_password_in_the_url_of_redis_is_nowhere_shown() {
        let urls = [
            ("redis://r:6379", "redis://r:6379"),
            ("redis://:hush@r:6379/1", "redis://…@r:6379/1"),
            ("rediss://user:hu%40sh@hush@[::1]", "rediss://…@[::1]"),
            ("redis+unix:///run/r.sock?user=u&pass=hush", "redis+unix:///run/r.sock"),
            ("hush", "…"),
        ];
        for (url, shown) in urls {
            let config = ClusterConfig { redis_url: Some(url.into()), ..clustered() };
            let all = format!("{config:?} {}", toml::to_string(&config).unwrap());
            assert!(!all.contains("hush") && all.contains(shown), "{all}");
            assert_eq!(config.redis_url.unwrap().reveal(), url);
        }
    }
}
