//! Frames over the channels of Redis or Valkey: to nodes whose direct link is down or not allowed, and to all, for nodes to
//! find each other.
//!
//! Each process has a channel, `muster:CLUSTER:NODE#INCARNATION`, and there is one for all, `muster:CLUSTER`. One connection
//! does everything: it publishes, and what is published for this process comes back over it. It is of use while something
//! comes round, as the node's own announcements do with every heartbeat; when nothing does, or Redis takes too long, it is
//! opened again. What was under way then is lost, and the session sends it again.
//!
//! What waits for Redis is bounded (`limits.cluster_redis_queue_bytes_max`), and let go of when Redis is gone. What comes is
//! handed on as it is read: nothing is gathered here.
//!
//! # Layout
//! * [`envelope`]: what frames are in, so that Redis need not be trusted
//! * [`connect`]: address, credentials, TLS
//! * [`metric_definitions`]: what operators see

mod connect;
mod envelope;
pub mod metric_definitions;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use muster_actors::ports::Environment;
use muster_protocol::cluster::NodeKey;
use muster_protocol::cluster::frame::{FRAME_OVERHEAD_BYTES_MAX, ITEM_OVERHEAD_BYTES};
use muster_protocol::limits::Limits;
use parking_lot::Mutex;
use redis::aio::{AsyncPushSender, MultiplexedConnection, SendError};
use redis::{PushInfo, PushKind, Value};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use self::connect::Server;
use self::envelope::{Opener, Refused, Sealer, Secret};
use self::metric_definitions::RedisMetrics;
use super::retry;
use super::transport::{Inbound, Transport, TransportStatus};
use crate::config::{ClusterConfig, ConfigError};
use crate::run::RunError;

/// Bytes of the shortest secret: what Redis sees lets whoever reads there try secrets at leisure.
const SECRET_BYTES_MIN: usize = 32;
/// Bytes of frames that are published at once, one frame more or less.
const BATCH_BYTES: usize = 512 * 1_024;
/// Frames that are published at once.
const BATCH_FRAMES_MAX: usize = 128;
/// Wait after a connection that has held fails, in milliseconds; doubled with each after it that has not.
const RETRY_AFTER_MS: u64 = 200;
/// Most that is doubled to, in milliseconds: well below the time after which a silent node is gone.
const RETRY_AFTER_MS_MAX: u64 = 1_000;
/// How long a connection has to last to have held, in milliseconds.
const STEADY_MS: u64 = 10_000;
/// How often at most messages that are refused are logged, in milliseconds.
const LOG_EVERY_MS: u64 = 10_000;
/// Bytes that a message of Redis has around an envelope, and an answer to what is published at once, at most.
const SLACK_BYTES: usize = 64 * 1_024;
/// How long the last frames have to get out.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// How often it is looked whether they have.
const CLOSE_LOOK: Duration = Duration::from_millis(5);
/// What a frame that waits takes beside its bytes.
const QUEUED_OVERHEAD_BYTES: usize = 96;

/// The channel of a process; that of all without one. Names have neither `:` nor `#` in them.
fn channel(cluster: &str, key: Option<&NodeKey>) -> String {
    key.map_or_else(|| format!("muster:{cluster}"), |key| format!("muster:{cluster}:{key}"))
}

/// A frame that waits for Redis.
struct Queued {
    /// For whom; nobody in particular when for all.
    to: Option<NodeKey>,
    channel: String,
    frame: Bytes,
}

impl Queued {
    fn bytes(&self) -> usize {
        self.channel.len() + self.frame.len() + QUEUED_OVERHEAD_BYTES
    }
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Queued>,
    bytes: usize,
}

/// See the module.
pub struct Redis(Arc<Inner>);

struct Inner {
    server: Server,
    environment: Environment,
    metrics: RedisMetrics,
    cluster: String,
    /// The channels of this process and of all.
    own: String,
    all: String,
    heartbeat_ms: u64,
    silent_after_ms: u64,
    queue_bytes_max: usize,
    queue: Mutex<Queue>,
    wake: Notify,
    is_publishing: AtomicBool,
    sealer: Mutex<Sealer>,
    opener: Mutex<Opener>,
    /// Counts connections; while there is none, or it cannot be used yet, `is_up` is not set.
    connection: AtomicU64,
    is_up: AtomicBool,
    since_ms: AtomicU64,
    heard_at_ms: AtomicU64,
    problem: Mutex<String>,
    /// Messages that were refused since it was logged last, and when that was.
    muffled: Mutex<(u64, Option<u64>)>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What the transport rests on.
pub struct Parts<'a> {
    /// `[cluster]`.
    pub config: &'a ClusterConfig,
    /// Where Redis is.
    pub url: &'a str,
    /// The secret that the nodes share.
    pub secret: Option<&'a str>,
    /// Bounds.
    pub limits: &'a Limits,
    /// This process.
    pub me: &'a NodeKey,
    /// Time and randomness.
    pub environment: &'a Environment,
    /// Metrics.
    pub metrics: RedisMetrics,
}

impl Redis {
    /// Gets ready; nothing is connected before [`Transport::start`].
    ///
    /// # Errors
    /// The settings cannot be used, or the secret is missing or short.
    pub fn new(parts: Parts<'_>) -> Result<Self, RunError> {
        let Parts { config, url, secret, limits, me, environment, metrics } = parts;
        let secret = secret.filter(|secret| secret.len() >= SECRET_BYTES_MIN).ok_or_else(|| {
            ConfigError(format!(
                "cluster.redis_url: needs MUSTER_CLUSTER_SECRET in the environment, the same at all nodes, of at least \
                 {SECRET_BYTES_MIN} bytes (`openssl rand -hex 32` makes one): Redis is trusted with nothing"
            ))
        })?;
        let secret = Secret::new(secret, &config.name);
        let answer_bytes_max = limits.cluster_message_bytes_max
            + ITEM_OVERHEAD_BYTES
            + FRAME_OVERHEAD_BYTES_MAX
            + envelope::OVERHEAD_BYTES
            + SLACK_BYTES;
        let timeout = Duration::from_millis(config.suspect_after_ms);
        let sealer = Sealer::new(&secret, environment.random()).ok_or("the library derives no keys")?;
        Ok(Self(Arc::new(Inner {
            server: Server::new(config, url, timeout, answer_bytes_max)?,
            environment: environment.clone(),
            metrics,
            own: channel(&config.name, Some(me)),
            all: channel(&config.name, None),
            cluster: config.name.clone(),
            heartbeat_ms: config.heartbeat_ms,
            silent_after_ms: config.suspect_after_ms,
            queue_bytes_max: limits.cluster_redis_queue_bytes_max,
            queue: Mutex::default(),
            wake: Notify::new(),
            is_publishing: AtomicBool::new(false),
            sealer: Mutex::new(sealer),
            opener: Mutex::new(Opener::new(secret)),
            connection: AtomicU64::new(0),
            is_up: AtomicBool::new(false),
            since_ms: AtomicU64::new(environment.monotonic_ms()),
            heard_at_ms: AtomicU64::new(0),
            problem: Mutex::new("not connected yet".into()),
            muffled: Mutex::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })))
    }
}

#[async_trait]
impl Transport for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn start(&self, inbound: Arc<dyn Inbound>) {
        self.0.tasks.spawn(self.0.clone().run(inbound));
    }

    fn connection(&self) -> Option<u64> {
        self.0.is_up.load(Ordering::Acquire).then(|| self.0.connection.load(Ordering::Acquire))
    }

    fn send(&self, to: &NodeKey, frame: Bytes) -> bool {
        self.0.push(Queued { to: Some(to.clone()), channel: channel(&self.0.cluster, Some(to)), frame })
    }

    fn announce(&self, frame: Bytes) -> bool {
        self.0.push(Queued { to: None, channel: self.0.all.clone(), frame })
    }

    fn status(&self) -> TransportStatus {
        let now_ms = self.0.environment.monotonic_ms();
        let up = self.0.is_up.load(Ordering::Acquire);
        TransportStatus {
            name: self.name(),
            up,
            since_ms: now_ms.saturating_sub(self.0.since_ms.load(Ordering::Relaxed)),
            problem: Some(self.0.problem.lock().clone()).filter(|_| !up),
            queue_bytes: self.0.queue.lock().bytes,
        }
    }

    async fn close(&self) {
        let is_done = || {
            let is_idle =
                self.0.queue.lock().frames.is_empty() && !self.0.is_publishing.load(Ordering::Acquire);
            is_idle || !self.0.is_up.load(Ordering::Acquire)
        };
        let sent = async {
            while !is_done() {
                tokio::time::sleep(CLOSE_LOOK).await;
            }
        };
        let _in_time = tokio::time::timeout(CLOSE_TIMEOUT, sent).await;
        self.0.stop.cancel();
        self.0.tasks.close();
        let _in_time = tokio::time::timeout(CLOSE_TIMEOUT, self.0.tasks.wait()).await;
    }
}

impl Inner {
    fn push(&self, queued: Queued) -> bool {
        if !self.is_up.load(Ordering::Acquire) {
            return false;
        }
        let mut queue = self.queue.lock();
        let bytes = queued.bytes();
        if queue.bytes + bytes > self.queue_bytes_max {
            drop(queue);
            self.metrics.dropped("full", 1);
            return false;
        }
        queue.bytes += bytes;
        queue.frames.push_back(queued);
        self.metrics.waits(queue.bytes);
        drop(queue);
        self.wake.notify_one();
        true
    }

    /// Keeps a connection open.
    async fn run(self: Arc<Self>, inbound: Arc<dyn Inbound>) {
        let mut failures = 0_u32;
        loop {
            let served = self.stop.run_until_cancelled(self.serve(&inbound)).await;
            let held_ms = self.go_down();
            let Some(Err(problem)) = served else { return };
            self.metrics.failed.inc();
            if held_ms.is_some() || *self.problem.lock() != problem {
                tracing::warn!(problem, "no frames go over Redis; trying again");
            } else {
                tracing::debug!(problem, "still no frames go over Redis");
            }
            *self.problem.lock() = problem;
            failures = if held_ms.is_some_and(|ms| ms >= STEADY_MS) { 0 } else { failures.saturating_add(1) };
            let wait_ms = retry::wait_ms(&self.environment, failures, RETRY_AFTER_MS, RETRY_AFTER_MS_MAX);
            let wait = tokio::time::sleep(Duration::from_millis(wait_ms));
            if self.stop.run_until_cancelled(wait).await.is_none() {
                return;
            }
        }
    }

    /// One connection, until it fails.
    async fn serve(self: &Arc<Self>, inbound: &Arc<dyn Inbound>) -> Result<(), String> {
        let unread = Arc::new(AtomicUsize::new(0));
        let pushed = Pushed { redis: self.clone(), inbound: inbound.clone(), unread: unread.clone() };
        let (mut connection, driver) = self.server.open(pushed, unread.clone()).await?;
        let mut driver = AbortOnDropHandle::new(tokio::spawn(driver));
        let channels = [self.own.as_str(), self.all.as_str()];
        connection.subscribe(&channels[..]).await.map_err(|error| self.server.describe(&error))?;
        self.come_up();
        let mut timer = tokio::time::interval(Duration::from_millis(self.heartbeat_ms));
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ended = &mut driver => return Err("Redis has closed the connection".into()),
                () = self.wake.notified() => {}
                _ = timer.tick() => {
                    let heard_at_ms = self.heard_at_ms.load(Ordering::Relaxed);
                    if self.environment.monotonic_ms().saturating_sub(heard_at_ms) >= self.silent_after_ms {
                        return Err("what this node publishes does not come back".into());
                    }
                }
            }
            self.publish_all(&mut connection, (&unread, inbound.as_ref())).await?;
        }
    }

    fn come_up(&self) {
        let now_ms = self.environment.monotonic_ms();
        self.connection.fetch_add(1, Ordering::AcqRel);
        self.heard_at_ms.store(now_ms, Ordering::Relaxed);
        self.since_ms.store(now_ms, Ordering::Relaxed);
        self.metrics.connected.inc();
        self.metrics.up.set(1);
        self.is_up.store(true, Ordering::Release);
        tracing::info!("frames can go over Redis");
    }

    /// For how long it was up, in milliseconds, if it was.
    fn go_down(&self) -> Option<u64> {
        let was_up = self.is_up.swap(false, Ordering::AcqRel);
        self.is_publishing.store(false, Ordering::Release);
        self.metrics.up.set(0);
        let queue = std::mem::take(&mut *self.queue.lock());
        self.metrics.waits(0);
        if !queue.frames.is_empty() {
            self.metrics.dropped("down", queue.frames.len());
        }
        was_up.then(|| {
            let now_ms = self.environment.monotonic_ms();
            now_ms.saturating_sub(self.since_ms.swap(now_ms, Ordering::Relaxed))
        })
    }

    async fn publish_all(
        &self,
        connection: &mut MultiplexedConnection,
        (unread, inbound): (&AtomicUsize, &dyn Inbound),
    ) -> Result<(), String> {
        while let Some(batch) = self.next_batch() {
            let mut pipeline = redis::Pipeline::with_capacity(batch.len());
            for Queued { channel, frame, .. } in &batch {
                let sealed = self.sealer.lock().seal(channel, frame);
                let envelope = sealed.ok_or("a frame could not be sealed")?;
                pipeline.cmd("PUBLISH").arg(channel).arg(envelope);
            }
            let begun_us = self.environment.monotonic_us();
            let answered = pipeline.query_async::<Vec<u64>>(connection).await;
            unread.store(0, Ordering::Relaxed);
            let receivers = answered.map_err(|error| self.server.describe(&error))?;
            self.note_published(&receivers, self.environment.monotonic_us() - begun_us);
            self.note_absent(&batch, &receivers, inbound);
        }
        self.is_publishing.store(false, Ordering::Release);
        Ok(())
    }

    #[allow(clippy::cast_precision_loss, reason = "far below 2^52 microseconds")]
    fn note_published(&self, receivers: &[u64], taken_us: u64) {
        self.metrics.publish_seconds.observe(taken_us as f64 / 1e6);
        self.metrics.published.inc_by(receivers.len() as u64);
        self.metrics.unheard.inc_by(receivers.iter().filter(|receivers| **receivers == 0).count() as u64);
    }

    /// A process that does not listen to its channel any more has ended, or has lost Redis. While Redis or this connection
    /// is new, the others may only be late.
    fn note_absent(&self, batch: &[Queued], receivers: &[u64], inbound: &dyn Inbound) {
        let now_ms = self.environment.monotonic_ms();
        if now_ms.saturating_sub(self.since_ms.load(Ordering::Relaxed)) < STEADY_MS {
            return;
        }
        for (queued, receivers) in batch.iter().zip(receivers) {
            if let (Some(node), 0) = (&queued.to, receivers) {
                inbound.absent(node);
            }
        }
    }

    /// What is published next; nothing when nothing waits.
    fn next_batch(&self) -> Option<Vec<Queued>> {
        let mut queue = self.queue.lock();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES && batch.len() < BATCH_FRAMES_MAX {
            let Some(queued) = queue.frames.pop_front() else { break };
            bytes += queued.bytes();
            batch.push(queued);
        }
        queue.bytes -= bytes;
        // Under the lock, so that whoever sees the queue empty sees this too.
        self.is_publishing.store(!batch.is_empty(), Ordering::Release);
        self.metrics.waits(queue.bytes);
        (!batch.is_empty()).then_some(batch)
    }

    /// Takes a message of Redis.
    fn receive(&self, push: PushInfo, inbound: &dyn Inbound) {
        if push.kind != PushKind::Message {
            return;
        }
        let taken = match <[Value; 2]>::try_from(push.data) {
            Ok([Value::BulkString(channel), Value::BulkString(envelope)]) => self.open(&channel, envelope),
            _ => Err(Refused::Malformed),
        };
        match taken {
            Ok(frame) => {
                self.heard_at_ms.store(self.environment.monotonic_ms(), Ordering::Relaxed);
                if let Some(frame) = frame {
                    self.metrics.received.inc();
                    inbound.receive(frame);
                }
            }
            Err(refused) => self.refuse(refused),
        }
    }

    /// The frame, unless it is this process's own.
    fn open(&self, channel: &[u8], envelope: Vec<u8>) -> Result<Option<Bytes>, Refused> {
        let channels = [&self.own, &self.all];
        let channel =
            channels.into_iter().find(|known| known.as_bytes() == channel).ok_or(Refused::Malformed)?;
        let opened = self.opener.lock().open(channel, envelope)?;
        let is_own = opened.stream == self.sealer.lock().stream();
        Ok((!is_own).then(|| opened.frame.into()))
    }

    fn refuse(&self, refused: Refused) {
        self.metrics.refused(refused.reason());
        if refused == Refused::Repeated {
            // What an old connection had under way may be overtaken by a new one.
            return;
        }
        let now_ms = self.environment.monotonic_ms();
        let mut muffled = self.muffled.lock();
        muffled.0 += 1;
        if muffled.1.is_none_or(|logged_ms| now_ms >= logged_ms + LOG_EVERY_MS) {
            let messages = std::mem::take(&mut muffled.0);
            muffled.1 = Some(now_ms);
            tracing::warn!(
                messages,
                reason = refused.reason(),
                "messages of Redis are refused: somebody meddles, or a node has another MUSTER_CLUSTER_SECRET"
            );
        }
    }
}

/// Takes what Redis says by itself, as it is read.
struct Pushed {
    redis: Arc<Inner>,
    inbound: Arc<dyn Inbound>,
    unread: Arc<AtomicUsize>,
}

impl AsyncPushSender for Pushed {
    fn send(&self, push: PushInfo) -> Result<(), SendError> {
        self.unread.store(0, Ordering::Relaxed);
        self.redis.receive(push, self.inbound.as_ref());
        Ok(())
    }
}
