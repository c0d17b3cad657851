//! A node from start to end: store, actors, listeners, the work of every second, and going away in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use muster_actors::cluster::{Alone, Cluster};
use muster_actors::core::{Core, Parts, ReportParts};
use muster_actors::metric_definitions::Metrics;
use muster_actors::ports::Environment;
use muster_actors::store::{FigureStore, Store};
use muster_protocol::account::{Secret, SecretHash};
use muster_protocol::cluster::NodeKey;
use muster_protocol::signing::ServerKey;
use muster_protocol::websocket::CloseCode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::App;
use crate::background;
use crate::cluster;
use crate::cluster::metric_definitions::ClusterMetrics;
use crate::cluster::nodes::Nodes;
use crate::config::{Config, cluster_secret};
use crate::http::front::Front;
use crate::http::webhook_client::WebhookClient;
use crate::http::{listener, tls};
use crate::metric_definitions::{HttpMetrics, registry};
use crate::store::postgres::PostgresStore;
use crate::store::sqlite::SqliteStore;
use crate::store::sqlite::figures::SqliteFigures;
use crate::system_clock;

/// Why a node does not run.
pub type RunError = Box<dyn std::error::Error + Send + Sync>;

/// A running node.
pub struct Node {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its address, as clients write it.
    pub url: String,
    /// The operator's token, when it was made just now: it is shown this once.
    pub new_operator_token: Option<Secret>,
    app: Arc<App>,
    stop: CancellationToken,
    connections: TaskTracker,
}

/// Rows dropped in one write.
const PURGE_ROWS_MAX: usize = 2_000;
/// How often it is looked for what is not kept any longer.
const PURGE_EVERY: Duration = Duration::from_secs(30);
/// How long credentials that have ended are still listed, in milliseconds: 30 days.
const CREDENTIALS_KEPT_MS: u64 = 30 * 86_400_000;
/// How long keys of requests are kept, in milliseconds.
const KEYS_KEPT_MS: u64 = muster_protocol::idempotency::KEPT_MS.unsigned_abs();
/// How often it is noted which agents went.
const LAST_SEEN_EVERY_SECONDS: u64 = 5;
/// Writes of that which wait for the store at once.
const LAST_SEEN_WRITES_MAX: usize = 256;
/// How long a node that goes away takes for it.
const LAST_SEEN_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts a node. `operator_token` is the operator's own; without it the one made at the first start stands.
///
/// # Errors
/// The configuration cannot be used, the store cannot be opened, or the address cannot be listened on.
pub async fn start(config: Config, operator_token: Option<String>) -> Result<Node, RunError> {
    let tls = tls::acceptor(&config.http)?;
    check_plaintext(&config, tls.is_some())?;
    check_cluster(&config)?;
    let environment = system_clock::environment();
    let (store, figures) = open_store(&config).await?;
    let (operator, new_operator_token) =
        operator(store.as_ref(), operator_token, environment.random()).await?;
    let server_key = ServerKey::from_seed(store.server_seed(environment.random()).await?);
    let mut registry = registry();
    let (cluster, nodes) = join(&config, &environment, &mut registry).await?;
    let reports = ReportParts {
        figures,
        alerts: config.alerts.clone(),
        load: Arc::new(background::system_load),
        webhooks: config.webhooks.clone(),
        caller: Arc::new(WebhookClient::new(&config.webhooks)?),
    };
    let parts = Parts {
        environment,
        limits: config.limits.clone(),
        streams: config.stream.clone(),
        ledger: config.ledger.clone(),
        store,
        cluster,
        metrics: Metrics::register(&mut registry),
        reports,
        shards: std::thread::available_parallelism().map_or(1, usize::from),
        versions: config.protocol.table()?,
        negotiation: config.negotiation.clone(),
        server_key,
        drills: config.drills.enabled,
    };
    // Apart, for it is large, and needed once.
    let core = Box::pin(Core::start(parts)).await?;
    let http_metrics = HttpMetrics::register(&mut registry);
    let scheme = if tls.is_some() { "https" } else { "http" };
    let listen = config.http.listen.clone();
    let metrics_listen = config.http.metrics_listen.clone();
    let app = App::new(core, config, operator, nodes, (http_metrics, registry))?;
    let socket = listener::bind(&listen).map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let address = socket.local_addr()?;
    let (stop, connections) = (CancellationToken::new(), TaskTracker::new());
    let front = Front::new(app.clone());
    let accepting = listener::serve(front, socket, tls, (stop.clone(), connections.clone()));
    tokio::spawn(accepting);
    if let Some(listen) = metrics_listen {
        let socket =
            listener::bind(&listen).map_err(|error| format!("cannot listen on {listen}: {error}"))?;
        tokio::spawn(serve_metrics(app.clone(), socket, stop.clone()));
    }
    tokio::spawn(every_second(app.clone(), stop.clone()));
    tokio::spawn(purge(app.clone(), stop.clone()));
    tokio::spawn(sweep(app.clone(), stop.clone()));
    tokio::spawn(do_what_is_due(app.clone(), stop.clone()));
    tokio::spawn(look_for_ended(app.clone(), stop.clone()));
    background::start(&app, &stop);
    app.set_ready();
    let url = format!("{scheme}://{address}");
    tracing::info!(%address, "serving");
    Ok(Node { address, url, new_operator_token, app, stop, connections })
}

/// The stores that the settings name: PostgreSQL by its URL, otherwise the embedded one.
async fn open_store(config: &Config) -> Result<(Arc<dyn Store>, Arc<dyn FigureStore>), RunError> {
    let (store, limits) = (&config.store, &config.limits);
    let Some(url) = &store.url else {
        // First the one that locks the folder.
        let opened = SqliteStore::open(&store.data_dir, limits)?;
        return Ok((Arc::new(opened), Arc::new(SqliteFigures::open(&store.data_dir)?)));
    };
    let opened = PostgresStore::open(url.reveal(), store.tls_ca.as_deref(), limits).await?;
    let figures = opened.figures(limits)?;
    Ok((Arc::new(opened), Arc::new(figures)))
}

/// Plain HTTP beyond this machine shows every credential to whoever listens on the way (agrenting.md R170).
fn check_plaintext(config: &Config, has_tls: bool) -> Result<(), RunError> {
    let address: SocketAddr = config
        .http
        .listen
        .parse()
        .map_err(|_| format!("http.listen: {:?} is not ADDR:PORT", config.http.listen))?;
    if has_tls || config.http.allow_plaintext || address.ip().is_loopback() {
        return Ok(());
    }
    Err("http.listen is not loopback, and TLS is not configured: give http.tls_certificate and http.tls_key, or set \
         http.allow_plaintext = true if something in front ends TLS"
        .into())
}

/// What one node keeps in its folder the others do not see.
fn check_cluster(config: &Config) -> Result<(), RunError> {
    if config.cluster.is_clustered() && config.store.is_embedded() {
        return Err("cluster.listen and cluster.transport = \"redis\" make this node one of several, which share a store: the \
                    embedded one (store.data_dir) is a single node's; give store.url, or MUSTER_STORE_URL, of a PostgreSQL"
            .into());
    }
    Ok(())
}

/// The other nodes, if there are to be any.
async fn join(
    config: &Config,
    environment: &Environment,
    registry: &mut Registry,
) -> Result<(Arc<dyn Cluster>, Option<Arc<Nodes>>), RunError> {
    if !config.cluster.is_clustered() {
        // Nobody else sees the name of a node that is alone, so none is asked for.
        let me = cluster::identity(&config.cluster, environment)
            .unwrap_or_else(|_| NodeKey { name: "alone".into(), incarnation: 1 });
        return Ok((Arc::new(Alone::new(me)), None));
    }
    let metrics = ClusterMetrics::register(registry);
    let nodes =
        cluster::open(&config.cluster, cluster_secret(), &config.limits, environment, metrics).await?;
    Ok((nodes.clone(), Some(nodes)))
}

/// The hash of the operator's token, and the token if it was made now.
async fn operator(
    store: &dyn Store,
    given: Option<String>,
    entropy: [u8; 32],
) -> Result<(SecretHash, Option<Secret>), RunError> {
    if let Some(given) = given {
        let secret = Secret::presented(&given).ok_or("the operator's token is empty or too long")?;
        return Ok((secret.hash(), None));
    }
    let fresh = Secret::generate_operator(entropy);
    let kept = store.operator_hash(fresh.hash()).await?;
    let is_new = kept == fresh.hash();
    Ok((kept, is_new.then_some(fresh)))
}

async fn serve_metrics(app: Arc<App>, socket: TcpListener, stop: CancellationToken) {
    let router = axum::Router::new().route(
        "/metrics",
        axum::routing::get(move || {
            let app = app.clone();
            async move { crate::http::rest::operations::metrics_text(&app.registry) }
        }),
    );
    if let Err(error) = axum::serve(socket, router).with_graceful_shutdown(stop.cancelled_owned()).await {
        tracing::error!(%error, "metrics are not served any more");
    }
}

/// What has to be looked after all the time.
async fn every_second(app: Arc<App>, stop: CancellationToken) {
    let mut timer = tokio::time::interval(Duration::from_secs(1));
    let mut second = 0_u64;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = timer.tick() => second += 1,
        }
        let core = &app.core;
        let (now, now_ms) = (core.environment.now(), core.environment.monotonic_ms());
        core.connections.sweep(now, now_ms);
        core.blocks.end_due(now).await;
        core.presence.every_second();
        core.usage.tell();
        if second.is_multiple_of(LAST_SEEN_EVERY_SECONDS) {
            note_gone(core).await;
        }
    }
}

/// Notes when the agents that went were last seen: together, so that those of a node that is gone are few transactions.
async fn note_gone(core: &Core) {
    let now = core.environment.now();
    let gone = core.online.take_gone();
    if let Err(error) = core.alerts.went(core, &gone).await {
        tracing::warn!(%error, "cannot see what the agents that went were doing");
    }
    let gone = futures_util::stream::iter(gone);
    gone.for_each_concurrent(LAST_SEEN_WRITES_MAX, |agent| async move {
        if let Err(error) = core.store.set_last_seen(agent, now).await {
            tracing::warn!(%error, "cannot note when an agent was last seen");
        }
    })
    .await;
}

/// Looks every second for credentials and agents that another node has ended; apart from the rest, for the store may take its time.
async fn look_for_ended(app: Arc<App>, stop: CancellationToken) {
    let mut timer = tokio::time::interval(Duration::from_secs(1));
    while stop.run_until_cancelled(timer.tick()).await.is_some() {
        app.core.notices.look_for_ended(app.core.environment.now()).await;
    }
}

/// How often it is looked for messages that are not kept any longer, whose senders are told.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// Ends and forgets messages that are not kept any longer.
async fn sweep(app: Arc<App>, stop: CancellationToken) {
    let mut timer = tokio::time::interval(SWEEP_EVERY);
    while stop.run_until_cancelled(timer.tick()).await.is_some() {
        match app.core.messages.sweep().await {
            Ok((0, 0)) => {}
            Ok((ended, forgotten)) => tracing::info!(ended, forgotten, "messages are not kept any longer"),
            Err(refusal) => tracing::warn!(%refusal, "cannot end messages that are not kept any longer"),
        }
    }
}

/// Looks every second what is due by the time; apart from the rest, for the store may take its time.
async fn do_what_is_due(app: Arc<App>, stop: CancellationToken) {
    let mut timer = tokio::time::interval(Duration::from_secs(1));
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(timer.tick()).await.is_some() {
        app.core.sweep().await;
    }
}

/// Drops what is not kept any longer, a little at a time, so that no acknowledgement waits long behind it.
async fn purge(app: Arc<App>, stop: CancellationToken) {
    let mut timer = tokio::time::interval(PURGE_EVERY);
    while stop.run_until_cancelled(timer.tick()).await.is_some() {
        let core = &app.core;
        let before =
            |kept_ms: u64| core.environment.now().plus_ms(-i64::try_from(kept_ms).unwrap_or(i64::MAX));
        let (mut chunks, mut credentials, mut keys) = (0, 0, 0);
        loop {
            let streams =
                core.store.purge_streams(before(app.config.stream.retention_ms), PURGE_ROWS_MAX).await;
            let ended = core.store.purge_credentials(before(CREDENTIALS_KEPT_MS), PURGE_ROWS_MAX).await;
            let requests = core.store.purge_requests(before(KEYS_KEPT_MS), PURGE_ROWS_MAX).await;
            match (streams, ended, requests) {
                (Ok(0), Ok(0), Ok(0)) => break,
                (Ok(more_chunks), Ok(more_credentials), Ok(more_keys)) => {
                    chunks += more_chunks;
                    credentials += more_credentials;
                    keys += more_keys;
                }
                (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => {
                    tracing::warn!(%error, "cannot drop what is not kept any longer");
                    break;
                }
            }
            if stop.is_cancelled() {
                return;
            }
        }
        if chunks + credentials + keys > 0 {
            tracing::info!(chunks, credentials, keys, "dropped what is not kept any longer");
        }
    }
}

impl Node {
    /// Waits until the node cannot go on.
    pub async fn failed(&self) {
        match &self.app.nodes {
            None => self.app.core.failed().await,
            Some(nodes) => tokio::select! {
                () = self.app.core.failed() => {}
                () = nodes.failed() => {}
            },
        }
    }

    /// Goes away in order: unready, then no new connections, sockets closed one by one with 1012, requests finished, the
    /// store closed.
    pub async fn drain(self) {
        let Self { app, stop, connections, .. } = self;
        let drain = app.config.drain.clone();
        tracing::info!("draining");
        app.core.start_draining();
        tokio::time::sleep(Duration::from_millis(drain.unready_ms)).await;
        stop.cancel();
        app.closing.cancel();
        connections.close();
        let timeout = Duration::from_millis(drain.timeout_ms);
        let closing = async {
            close_sockets(&app, timeout / 2).await;
            connections.wait().await;
            app.handlers.close();
            app.handlers.wait().await;
            while !app.core.connections.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(timeout, closing).await.is_err() {
            tracing::warn!(
                left = app.core.connections.len(),
                "drained for as long as allowed; closing what is left"
            );
        }
        let moved = async {
            while app.core.streams.held() > 0 && app.core.cluster.members().borrow().nodes.len() > 1 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(STREAMS_MOVE_WITHIN, moved).await.is_err() {
            tracing::warn!(streams = app.core.streams.held(), "streams that nobody has taken over yet");
        }
        if tokio::time::timeout(LAST_SEEN_TIMEOUT, note_gone(&app.core)).await.is_err() {
            tracing::warn!("did not note of all agents when they were last seen");
        }
        if let Err(error) = app.core.analytics.flush().await {
            tracing::warn!(%error, "the last figures could not be written");
        }
        app.core.analytics.store().close_figures().await;
        app.core.store.close().await;
        if let Some(nodes) = &app.nodes {
            nodes.close().await;
        }
        tracing::info!("drained");
    }
}

/// Closes the sockets spread over a time, so that their clients do not all come back at once.
async fn close_sockets(app: &App, over: Duration) {
    let sockets = app.core.connections.drain("node is going away");
    if sockets.is_empty() {
        return;
    }
    let batches = u32::try_from(over.as_millis() / DRAIN_STEP.as_millis()).unwrap_or(1).max(1);
    let batch = sockets.len().div_ceil(batches as usize).max(DRAIN_BATCH_MIN);
    for sockets in sockets.chunks(batch) {
        for socket in sockets {
            socket.end(CloseCode::Restart, "");
        }
        // Between half of a step and one and a half: nodes that drain together do not close in step.
        let [random] = app.core.environment.random();
        tokio::time::sleep(DRAIN_STEP / 2 + DRAIN_STEP * u32::from(random) / 255).await;
    }
}

/// How long streams have to move to other nodes once everybody has left this one.
const STREAMS_MOVE_WITHIN: Duration = Duration::from_secs(3);
/// Pause between two batches of closes, on average.
const DRAIN_STEP: Duration = Duration::from_millis(20);
/// Sockets closed together at least.
const DRAIN_BATCH_MIN: usize = 10;
