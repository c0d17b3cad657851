//! Links to the other nodes of a cluster. Only this folder knows ractor_cluster and Redis.
//!
//! # Layout
//! * [`nodes`]: the port's other side: who is up, what goes to whom
//! * [`link`]: one actor for each other node, with the session ([`peer`]); [`hub`]: their supervisor
//! * [`doors`], [`hints`], [`preamble`], [`slots`], [`tls`]: how a connection comes about and becomes the link
//! * [`certificates`]: makes those that nodes show
//! * [`retry`]: how soon what failed is tried again
//! * [`fabric`], [`stream`]: ractor_cluster, which carries frames over connections
//! * [`transport`], [`redis`]: what carries frames beside them
//! * [`status`], [`metric_definitions`]: what operators see

pub mod certificates;
mod doors;
mod fabric;
mod hints;
mod hub;
mod link;
pub mod metric_definitions;
pub mod nodes;
mod peer;
mod preamble;
pub mod redis;
mod retry;
mod slots;
pub mod status;
mod stream;
mod tls;
pub mod transport;

use std::sync::Arc;

use muster_actors::ports::Environment;
use muster_protocol::cluster::NodeKey;
use muster_protocol::cluster::frame::is_name;
use muster_protocol::limits::Limits;

use self::doors::Dialler;
use self::fabric::Fabric;
use self::metric_definitions::ClusterMetrics;
use self::nodes::{Nodes, Parts};
use self::redis::Redis;
use self::tls::Certificates;
use self::transport::Transport;
use crate::config::{ClusterConfig, ConfigError, TransportChoice};
use crate::http::listener;
use crate::run::RunError;

/// This process among all there were of this node and others.
///
/// # Errors
/// The machine's name cannot name a node.
pub fn identity(config: &ClusterConfig, environment: &Environment) -> Result<NodeKey, ConfigError> {
    let name = match &config.node {
        Some(name) => name.clone(),
        None => std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
    };
    if !is_name(&name) {
        return Err(ConfigError(format!(
            "cluster.node: give this node a name; that of the machine, {name:?}, is not of 1 to 128 letters, digits, '.', '-' \
             and '_'"
        )));
    }
    Ok(NodeKey { name: name.into(), incarnation: environment.now().unix_ms_unsigned() })
}

/// Gets ready to be one of several nodes: listens, but takes nobody in before it is started through the port. `secret` is
/// what the nodes share, where they need one.
///
/// # Errors
/// The configuration cannot be used, or the address cannot be listened on.
pub async fn open(
    config: &ClusterConfig,
    secret: Option<String>,
    limits: &Limits,
    environment: &Environment,
    metrics: ClusterMetrics,
) -> Result<Arc<Nodes>, RunError> {
    let me = identity(config, environment)?;
    let tls = Certificates::load(config)?;
    let address = config.listen_address()?.filter(|_| config.transport == TransportChoice::Auto);
    let listener = match address {
        Some(address) => Some(
            listener::bind(&address.to_string())
                .map_err(|error| format!("cannot listen for other nodes on {address}: {error}"))?,
        ),
        None => None,
    };
    let fallback = match &config.redis_url {
        Some(url) => Some(Arc::new(Redis::new(redis::Parts {
            config,
            url: url.reveal(),
            secret: secret.as_deref(),
            limits,
            me: &me,
            environment,
            metrics: metrics.redis.clone(),
        })?) as Arc<dyn Transport>),
        None => None,
    };
    let parts = Parts {
        me,
        config: config.clone(),
        limits: limits.clone(),
        environment: environment.clone(),
        metrics,
        fallback,
    };
    let begin = Box::new(move |nodes: Arc<Nodes>| {
        if let Some(fallback) = &nodes.fallback {
            fallback.start(Arc::new(nodes.clone()));
        }
        if let Some(listener) = listener {
            nodes.tasks.spawn(doors::listen(nodes.clone(), listener, tls.clone()));
            nodes.tasks.spawn(Dialler::new(nodes.clone(), tls).run());
        }
        nodes.tasks.spawn(nodes.clone().look_after());
    });
    let nodes = Nodes::new(parts, begin).await?;
    if let Some(address) = address {
        let fabric = Fabric::start(&nodes.me, &nodes.cluster, Arc::new(nodes.clone())).await?;
        let _only_once = nodes.fabric.set(fabric);
        tracing::info!(%address, node = %nodes.me, cluster = %nodes.cluster, "listening for other nodes");
    }
    Ok(nodes)
}
