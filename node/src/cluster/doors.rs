//! How connections to other nodes come about: the listener, and the dialler.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::cluster::NodeKey;
use rustls::pki_types::{CertificateDer, ServerName};
use smol_str::SmolStr;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

use super::nodes::Nodes;
use super::preamble::{self, Failure};
use super::retry;
use super::stream::Io;
use super::tls::Certificates;

/// How often the dialler looks.
const LOOK: Duration = Duration::from_millis(100);
/// First wait after a dial that failed, in milliseconds; doubled each time.
const RETRY_AFTER_MS: u64 = 200;
/// Most that is doubled to, in milliseconds.
const RETRY_AFTER_MS_MAX: u64 = 3_000;
/// How long a way that leads back to this process is not tried, in milliseconds.
const ONESELF_MS: u64 = 60_000;
/// How often the name that stands for all nodes is asked for, in milliseconds.
const DNS_EVERY_MS: u64 = 5_000;
/// How long an answer may take.
const DNS_TIMEOUT: Duration = Duration::from_secs(3);
/// How long one dial may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Dials under way at once.
const DIALS_MAX: usize = 32;

/// Takes connections from other nodes.
pub async fn listen(nodes: Arc<Nodes>, listener: TcpListener, tls: Option<Arc<Certificates>>) {
    let places = Arc::new(Semaphore::new(nodes.limits.cluster_handshakes_max));
    while let Some(accepted) = nodes.stop.run_until_cancelled(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept other nodes");
                tokio::time::sleep(LOOK).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            nodes.metrics.connection("refused");
            continue;
        };
        let (nodes, tls) = (nodes.clone(), tls.clone());
        nodes.clone().tasks.spawn(async move {
            let _place = place;
            let address = stream.peer_addr().map(|address| address.to_string()).unwrap_or_default();
            if let Err(failure) = accept(&nodes, stream, tls).await {
                nodes.metrics.connection(outcome(&failure));
                match failure {
                    Failure::Oneself | Failure::Linked(_) => {}
                    failure => tracing::warn!(address, %failure, "a connection from another node does not become a link"),
                }
            }
        });
    }
}

async fn accept(
    nodes: &Arc<Nodes>,
    stream: TcpStream,
    tls: Option<Arc<Certificates>>,
) -> Result<(), Failure> {
    set_options(nodes, &stream)?;
    within(nodes, async {
        let (mut io, certificate): (Io, _) = match tls {
            None => (Box::new(stream), None),
            Some(tls) => {
                let stream = tls.current().acceptor.accept(stream).await?;
                let certificate = first(stream.get_ref().1.peer_certificates())?;
                (Box::new(stream), Some(certificate))
            }
        };
        let connection = preamble::agree(nodes, &mut io, certificate.as_ref(), false).await?;
        open(nodes, &connection, io, true);
        Ok(())
    })
    .await
}

async fn dial(nodes: &Arc<Nodes>, place: &str, tls: Option<Arc<Certificates>>) -> Result<NodeKey, Failure> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(place)).await;
    let stream = stream.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    set_options(nodes, &stream)?;
    within(nodes, async {
        let (mut io, certificate): (Io, _) = match tls {
            None => (Box::new(stream), None),
            Some(tls) => {
                let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
                let stream = tls.current().connector.connect(name, stream).await?;
                let certificate = first(stream.get_ref().1.peer_certificates())?;
                (Box::new(stream), Some(certificate))
            }
        };
        let connection = preamble::agree(nodes, &mut io, certificate.as_ref(), true).await?;
        let key = connection.peer.clone();
        open(nodes, &connection, io, false);
        Ok(key)
    })
    .await
}

fn first(certificates: Option<&[CertificateDer<'_>]>) -> Result<CertificateDer<'static>, Failure> {
    let certificate = certificates.and_then(<[_]>::first);
    certificate.map(|certificate| certificate.clone().into_owned()).ok_or(Failure::Malformed)
}

async fn within<T>(nodes: &Nodes, agreeing: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let timeout = Duration::from_millis(nodes.limits.handshake_timeout_ms);
    let agreed = tokio::time::timeout(timeout, agreeing).await;
    agreed.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

/// Hands an agreed connection over, and sees to it that it opens or ends.
fn open(nodes: &Arc<Nodes>, connection: &Arc<super::fabric::Connection>, io: Io, was_accepted: bool) {
    nodes.metrics.connection("linked");
    let Some(fabric) = nodes.fabric.get() else { return nodes.slots.clear(connection) };
    fabric.open(connection, io, was_accepted);
    let timeout = Duration::from_millis(nodes.config.down_after_ms);
    let connection = connection.clone();
    nodes.tasks.spawn(async move {
        // Ended, or open, or neither, which is one that is stuck.
        let ended = tokio::time::timeout(timeout, connection.gone.cancelled()).await;
        if ended.is_err() && !connection.is_open() {
            connection.cut.cancel();
        }
    });
}

/// Both ends watch the connection: what is written is acknowledged in time, and what is silent is asked.
fn set_options(nodes: &Nodes, stream: &TcpStream) -> io::Result<()> {
    let config = &nodes.config;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let probe = Duration::from_millis(config.heartbeat_ms.max(1_000));
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_millis(config.suspect_after_ms.max(1_000)))
        .with_interval(probe)
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(Duration::from_millis(config.down_after_ms)))
}

fn outcome(failure: &Failure) -> &'static str {
    match failure {
        Failure::Broken(_) => "broken",
        Failure::Malformed => "malformed",
        Failure::Refused(_) => "refused",
        Failure::RefusedByPeer(_) => "refused_by_peer",
        Failure::Oneself => "oneself",
        Failure::Linked(_) => "linked_already",
    }
}

/// One address that is dialled.
#[derive(Default)]
struct Target {
    /// Which node is there, once that is known.
    node: Option<SmolStr>,
    has_answered: bool,
    is_oneself: bool,
    is_dialling: bool,
    failures: u32,
    next_at_ms: u64,
    problem: String,
    source: Source,
}

/// Where an address comes from.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Source {
    #[default]
    Configuration,
    Dns,
    Hint,
}

type Outcome = (String, Result<NodeKey, Failure>);

/// Dials other nodes for as long as there is no link to them.
pub struct Dialler {
    nodes: Arc<Nodes>,
    tls: Option<Arc<Certificates>>,
    targets: BTreeMap<String, Target>,
    dialling: usize,
    outcomes: (mpsc::Sender<Outcome>, mpsc::Receiver<Outcome>),
}

impl Dialler {
    /// A dialler of what the configuration names.
    pub fn new(nodes: Arc<Nodes>, tls: Option<Arc<Certificates>>) -> Self {
        let targets: BTreeMap<_, _> =
            nodes.config.peers.iter().map(|place| (place.clone(), Target::default())).collect();
        nodes.set_unanswered(targets.len());
        Self { nodes, tls, targets, dialling: 0, outcomes: mpsc::channel(DIALS_MAX) }
    }

    /// Dials until the node ends.
    pub async fn run(mut self) {
        let stop = self.nodes.stop.clone();
        let mut timer = tokio::time::interval(LOOK);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ask_at_ms = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some((place, result)) = self.outcomes.1.recv() => self.note(&place, result),
                _ = timer.tick() => {
                    let now_ms = self.nodes.now_ms();
                    if now_ms >= ask_at_ms && self.nodes.config.dns.is_some() {
                        ask_at_ms = now_ms + DNS_EVERY_MS;
                        self.ask().await;
                    }
                    self.take_hints(now_ms);
                    self.look(now_ms);
                }
            }
        }
    }

    /// Dials what is due.
    fn look(&mut self, now_ms: u64) {
        for (place, target) in &mut self.targets {
            let is_linked = target.node.as_ref().is_some_and(|node| self.nodes.slots.current(node).is_some());
            if target.is_dialling || is_linked || now_ms < target.next_at_ms || self.dialling >= DIALS_MAX {
                continue;
            }
            target.is_dialling = true;
            self.dialling += 1;
            let (nodes, tls, place) = (self.nodes.clone(), self.tls.clone(), place.clone());
            let outcomes = self.outcomes.0.clone();
            self.nodes.tasks.spawn(async move {
                let dialled = nodes.stop.run_until_cancelled(dial(&nodes, &place, tls)).await;
                if let Some(result) = dialled {
                    // The dialler is gone only when the node is.
                    let _gone = outcomes.send((place, result)).await;
                }
            });
        }
    }

    fn note(&mut self, place: &str, result: Result<NodeKey, Failure>) {
        self.dialling -= 1;
        let now_ms = self.nodes.now_ms();
        if let Err(failure) = &result {
            self.nodes.metrics.connection(outcome(failure));
        }
        let nodes = self.nodes.clone();
        let wait_ms =
            |failures| retry::wait_ms(&nodes.environment, failures, RETRY_AFTER_MS, RETRY_AFTER_MS_MAX);
        let Some(target) = self.targets.get_mut(place) else { return };
        target.is_dialling = false;
        target.is_oneself = matches!(result, Err(Failure::Oneself));
        match result {
            Ok(key) | Err(Failure::Linked(key)) => {
                target.node = Some(key.name);
                target.has_answered = true;
                target.failures = 0;
                target.problem.clear();
                target.next_at_ms = now_ms + wait_ms(0);
            }
            Err(Failure::Oneself) => target.next_at_ms = now_ms + ONESELF_MS,
            Err(failure) => {
                if let (Failure::Broken(error), Some(node)) = (&failure, &target.node)
                    && error.kind() == std::io::ErrorKind::ConnectionRefused
                {
                    self.nodes.refused_at(node);
                }
                let problem = failure.to_string();
                if problem == target.problem {
                    tracing::debug!(place, problem, "still no link");
                } else {
                    tracing::warn!(place, problem, "no link to another node; trying again");
                    target.problem = problem;
                }
                target.next_at_ms = now_ms + wait_ms(target.failures);
                target.failures = target.failures.saturating_add(1);
            }
        }
        self.count_unanswered();
    }

    fn count_unanswered(&self) {
        let is_awaited =
            |target: &&Target| !target.has_answered && !target.is_oneself && target.source != Source::Hint;
        let unanswered = self.targets.values().filter(is_awaited);
        self.nodes.set_unanswered(unanswered.count());
    }

    /// Dials these of a source, and no others of it any more.
    fn set(&mut self, source: Source, places: &[String]) {
        self.targets
            .retain(|place, target| target.source != source || target.is_dialling || places.contains(place));
        for place in places {
            self.targets.entry(place.clone()).or_insert_with(|| Target { source, ..Target::default() });
        }
    }

    /// Dials where others say that nodes are.
    fn take_hints(&mut self, now_ms: u64) {
        let places: Vec<String> = self.nodes.hints.all(now_ms).iter().map(ToString::to_string).collect();
        self.set(Source::Hint, &places);
    }

    /// Asks for the addresses behind the name that stands for all nodes.
    async fn ask(&mut self) {
        let Some(name) = self.nodes.config.dns.clone() else { return };
        let answer = tokio::time::timeout(DNS_TIMEOUT, tokio::net::lookup_host(&name)).await;
        let addresses: Vec<String> = match answer {
            Ok(Ok(found)) => {
                found.take(self.nodes.limits.cluster_peers_max).map(|address| address.to_string()).collect()
            }
            Ok(Err(error)) => return tracing::debug!(name, %error, "no answer to the name of all nodes"),
            Err(_) => return tracing::debug!(name, "no answer in time to the name of all nodes"),
        };
        // An address that is not named any more is not dialled any more; what is linked stays linked.
        self.set(Source::Dns, &addresses);
        self.count_unanswered();
    }
}
