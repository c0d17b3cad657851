//! Task streams: one actor per live stream, found by task, opened from the store when first needed and forgotten when
//! idle. All three emission paths end in [`Streams::emit`], all readers begin in [`Streams::attach`], [`Streams::read`]
//! or [`Streams::tail`].
//!
//! # Layout
//! * `command`: what a stream is asked
//! * `actor`: one stream: seq, readers, store, end; its owner, or one that follows another node
//! * `hearing`: what other nodes say
//! * `registry`: which are live, and their supervisor
//! * `reader`: a cursor and a way out
//! * [`ack`]: the answer a producer waits for

pub mod ack;
mod actor;
mod command;
mod hearing;
mod reader;
mod registry;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use muster_protocol::account::Principal;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, TaskId, UserId};
use muster_protocol::join_rules;
use muster_protocol::limits::Limits;
use muster_protocol::phoenix::Ref;
use muster_protocol::rate_limiter::TokenBucket;
use muster_protocol::task::{ChunkRequest, Ending, Task, TaskParties};
use muster_protocol::task_stream::NewChunk;
use parking_lot::{Mutex, RwLock};
use ractor::{Actor, ActorCell};
use tokio::sync::{OnceCell, oneshot, watch};

use self::ack::Ack;
use self::command::Command;
pub use self::command::Reading;
use self::reader::Joining;
use self::registry::{Registry, StreamsActor};
use crate::analytics::Analytics;
use crate::cluster::Cluster;
use crate::egress::Outlet;
use crate::inbox::{Inbox, Refused};
use crate::metric_definitions::Metrics;
use crate::ports::Environment;
use crate::pubsub::PubSub;
use crate::rate_limits::Buckets;
use crate::settings::StreamSettings;
use crate::store::{Store, StoreError};
use crate::supervisor::ChildSpec;

/// Commands that may wait in front of one stream; a further chunk answers `overloaded`.
const INBOX_COMMANDS_MAX: usize = 8_192;

/// Streams of which it is read at once whose they are.
const VERIFYING_MAX: usize = 8;

/// The task streams of a node.
#[derive(Clone)]
pub struct Streams {
    registry: Arc<Registry>,
}

type Slot = OnceCell<Arc<Handle>>;

/// How a stream is reached.
struct Handle {
    task: TaskId,
    parties: RwLock<TaskParties>,
    inbox: Inbox<Command>,
    /// Whether an acknowledgement waits for what the store was given before.
    awaits_store: AtomicBool,
    bucket: Mutex<TokenBucket>,
    tail: watch::Sender<Tail>,
    /// Whether this node has claimed the stream from others, and holds it.
    is_held: AtomicBool,
    /// The actor, for crash supervision.
    actor: RwLock<Option<ActorCell>>,
}

/// Where a stream ends now, for readers that come back for more by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// Seq of the newest chunk that readers may have.
    pub seq: u64,
    /// Whether it is the last.
    pub ended: bool,
}

/// What the streams need.
pub struct Needs {
    /// Store.
    pub store: Arc<dyn Store>,
    /// The other nodes.
    pub cluster: Arc<dyn Cluster>,
    /// Where former providers are told.
    pub pubsub: Arc<PubSub>,
    /// Time and randomness.
    pub environment: Environment,
    /// Bounds.
    pub limits: Arc<Limits>,
    /// Settings.
    pub settings: StreamSettings,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Figures.
    pub analytics: Arc<Analytics>,
}

impl Handle {
    /// Has the stream told once the reader's connection has room.
    fn wake_when_drained(self: &Arc<Self>, outlet: &Arc<Outlet>) {
        let (handle, id) = (self.clone(), outlet.id());
        outlet.sink().when_drained(Box::new(move || {
            let _stream_gone = handle.inbox.push_always(Command::Drained(id));
        }));
    }
}

/// What a store error means to a client.
pub(crate) fn refusal_of(error: StoreError) -> Refusal {
    match error {
        StoreError::NotFound => ErrorCode::NotFound.into(),
        StoreError::AlreadyExists => ErrorCode::AlreadyExists.into(),
        StoreError::LimitReached => ErrorCode::LimitReached.into(),
        StoreError::InsufficientBalance(available) => {
            Refusal::new(ErrorCode::InsufficientBalance).with("available", &available)
        }
        StoreError::WrongStatus(status) => Refusal::wrong_status(ErrorCode::TaskNotActive, status.as_str()),
        StoreError::Conflict | StoreError::Fenced | StoreError::Unavailable(_) => {
            tracing::error!(%error, "store");
            ErrorCode::StoreUnavailable.into()
        }
    }
}

impl Streams {
    /// None live yet.
    #[must_use]
    pub fn new(needs: Needs) -> Self {
        let Needs { store, cluster, pubsub, environment, limits, settings, metrics, analytics } = needs;
        Self {
            registry: Arc::new(Registry {
                live: Mutex::default(),
                supervisor: RwLock::default(),
                agent_buckets: Buckets::new(limits.chunks_per_agent),
                memory: AtomicUsize::new(0),
                claims: AtomicU64::new(0),
                members: cluster.members(),
                cluster,
                pubsub,
                releases: Mutex::default(),
                asked: Mutex::default(),
                verifying: tokio::sync::Semaphore::new(VERIFYING_MAX),
                numbers: AtomicU64::new(1),
                store,
                environment,
                limits,
                settings,
                metrics,
                analytics,
            }),
        }
    }

    /// The rates of agents' chunks.
    #[must_use]
    pub fn agent_buckets(&self) -> &Buckets<AgentId> {
        &self.registry.agent_buckets
    }

    /// How its supervisor is started.
    #[must_use]
    pub fn child(&self) -> ChildSpec {
        let registry = self.registry.clone();
        ChildSpec {
            name: "streams",
            start: Box::new(move |supervisor| {
                let registry = registry.clone();
                Box::pin(async move {
                    let (actor, _) = Actor::spawn_linked(None, StreamsActor, registry, supervisor).await?;
                    Ok(actor.get_cell())
                })
            }),
        }
    }

    /// Appends a chunk, as the task's provider: the one primitive behind channel, REST and MCP. The answer comes
    /// through `ack`; `key` stands in for a missing idempotency key.
    pub async fn emit(
        &self,
        principal: &Principal,
        task: TaskId,
        (chunk, key): (ChunkRequest, Option<&str>),
        ack: Ack,
    ) {
        let (mut handle, chunk, by) = match self.admit(principal, task, chunk, key).await {
            Ok(admitted) => admitted,
            Err(refusal) => return self.refuse_chunk(ack, &refusal),
        };
        let mut command = Command::Emit { by, chunk, ack };
        loop {
            match handle.inbox.push(command) {
                Err(Refused::Full(Command::Emit { ack, .. })) => {
                    return self.refuse_chunk(ack, &ErrorCode::Overloaded.into());
                }
                // The stream was forgotten in between: it is opened again.
                Err(Refused::Closed(Command::Emit { chunk, ack, .. })) => {
                    self.registry.forget(&handle);
                    handle = match self.open(task).await {
                        Ok(handle) => handle,
                        Err(refusal) => return self.refuse_chunk(ack, &refusal),
                    };
                    command = Command::Emit { by, chunk, ack };
                }
                _ => return,
            }
        }
    }

    fn refuse_chunk(&self, ack: Ack, refusal: &Refusal) {
        let reason = [("reason", refusal.code.reason())];
        self.registry.metrics.chunks_refused.get_or_create(&reason).inc();
        ack.refuse(refusal);
    }

    /// Rate, right and form of a chunk, in this order: what costs least to refuse comes first.
    async fn admit(
        &self,
        principal: &Principal,
        task: TaskId,
        chunk: ChunkRequest,
        key: Option<&str>,
    ) -> Result<(Arc<Handle>, NewChunk, AgentId), Refusal> {
        let registry = &self.registry;
        let now_ms = registry.environment.monotonic_ms();
        if let Some(agent) = principal.agent {
            registry.agent_buckets.take(agent, now_ms).map_err(Refusal::rate_limited)?;
        }
        let (live, parties) = match self.live_handle(task) {
            Some(handle) => {
                let parties = *handle.parties.read();
                (Some(handle), Some(parties))
            }
            None => (None, self.parties(task).await?),
        };
        join_rules::may_emit(principal, parties.as_ref())?;
        let chunk = chunk.into_chunk(key, &registry.limits)?;
        let handle = match live {
            Some(handle) => handle,
            None => self.open(task).await?,
        };
        let rate = registry.limits.chunks_per_stream;
        handle.bucket.lock().take(rate, 1, now_ms).map_err(Refusal::rate_limited)?;
        Ok((handle, chunk, principal.acting_agent()?))
    }

    /// The parties of a task; `None` when there is no such task. Opens nothing.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn parties(&self, task: TaskId) -> Result<Option<TaskParties>, Refusal> {
        if let Some(handle) = self.live_handle(task) {
            return Ok(Some(*handle.parties.read()));
        }
        // One reading, whether there is such a task or not: a stranger learns nothing from how long it takes.
        match self.registry.store.task(task).await {
            Ok(task) => Ok(Some(task.parties())),
            Err(StoreError::NotFound) => Ok(None),
            Err(error) => Err(refusal_of(error)),
        }
    }

    fn live_handle(&self, task: TaskId) -> Option<Arc<Handle>> {
        self.registry.live.lock().get(&task).and_then(|slot| slot.get().cloned())
    }

    /// Answers a join, sends it what the stream has after `after`, and then everything as it comes.
    ///
    /// # Errors
    /// The stream cannot be opened; the join was not answered.
    pub async fn attach(
        &self,
        task: TaskId,
        (principal, outlet): (&Principal, &Arc<Outlet>),
        reference: &Ref,
        after: Option<u64>,
    ) -> Result<Attachment, Refusal> {
        let mut handle = self.open(task).await?;
        let joining = Joining::new(principal.clone(), outlet.clone(), reference.clone());
        let mut command = Command::Attach { joining, after };
        while let Err(Refused::Closed(back) | Refused::Full(back)) = handle.inbox.push_always(command) {
            self.registry.forget(&handle);
            handle = self.open(task).await?;
            command = back;
        }
        Ok(Attachment { handle, outlet: outlet.id() })
    }

    /// Reads what comes after `after` (a plain read: what a plain join would get), without staying.
    ///
    /// # Errors
    /// There is no such task, or the store cannot be read.
    pub async fn read(&self, task: TaskId, after: Option<u64>, bytes_max: usize) -> Result<Reading, Refusal> {
        self.ask(task, |reply| Command::Read { after, bytes_max, reply }).await
    }

    /// Follows the end of a stream: changes when there is more to read.
    ///
    /// # Errors
    /// There is no such task, or the store cannot be read.
    pub async fn tail(&self, task: TaskId) -> Result<watch::Receiver<Tail>, Refusal> {
        Ok(self.open(task).await?.tail.subscribe())
    }

    /// Ends a task, after its last chunk: `by` an agent, in the name of its `provider` if that is whose right it is.
    ///
    /// # Errors
    /// It has ended already, has another provider by now, or the store cannot be written.
    pub async fn finish(
        &self,
        task: TaskId,
        ending: Ending,
        (by, provider): (Option<AgentId>, Option<AgentId>),
    ) -> Result<Task, Refusal> {
        self.ask(task, |reply| Command::Finish { ending: ending.clone(), by, provider, again: false, reply })
            .await
    }

    /// A client agent has come to belong to a user, who from now on reads the streams of its tasks.
    pub fn owned(&self, client: AgentId, owner: UserId) {
        self.registry.claims.fetch_add(1, Ordering::Release);
        for handle in self.registry.live.lock().values().filter_map(|slot| slot.get()) {
            let mut parties = handle.parties.write();
            if parties.client == client {
                parties.client_owner = Some(owner);
            }
        }
    }

    /// Gives a pending task to another provider.
    ///
    /// # Errors
    /// It is not pending, or the store cannot be written.
    pub async fn reassign(&self, task: TaskId, provider: AgentId, by: AgentId) -> Result<Task, Refusal> {
        self.ask(task, |reply| Command::Reassign { provider, by, again: false, reply }).await
    }

    /// Crashes a stream, for a drill.
    ///
    /// # Errors
    /// There is no such task.
    pub async fn crash(&self, task: TaskId) -> Result<(), Refusal> {
        self.command(task, || Command::Panic).await.map(|_| ())
    }

    /// Streams that this node has claimed from other nodes and still holds: a node that goes away waits for them to move.
    #[must_use]
    pub fn held(&self) -> usize {
        let live = self.registry.live.lock();
        let handles = live.values().filter_map(|slot| slot.get());
        handles.filter(|handle| handle.is_held.load(Ordering::Relaxed)).count()
    }

    /// Streams in memory.
    #[must_use]
    pub fn live(&self) -> usize {
        self.registry.live.lock().len()
    }

    async fn ask<T>(
        &self,
        task: TaskId,
        command: impl Fn(oneshot::Sender<Result<T, Refusal>>) -> Command,
    ) -> Result<T, Refusal> {
        let (mut reply, mut answer) = oneshot::channel();
        loop {
            let handle = self.open(task).await?;
            match handle.inbox.push_always(command(reply)) {
                // An answer that never comes: the stream crashed on the way.
                Ok(()) => return answer.await.unwrap_or_else(|_| Err(ErrorCode::Internal.into())),
                Err(_) => {
                    self.registry.forget(&handle);
                    (reply, answer) = oneshot::channel();
                }
            }
        }
    }

    async fn command(&self, task: TaskId, command: impl Fn() -> Command) -> Result<Arc<Handle>, Refusal> {
        loop {
            let handle = self.open(task).await?;
            if handle.inbox.push_always(command()).is_ok() {
                return Ok(handle);
            }
            self.registry.forget(&handle);
        }
    }

    async fn open(&self, task: TaskId) -> Result<Arc<Handle>, Refusal> {
        let slot = {
            let mut live = self.registry.live.lock();
            match live.get(&task) {
                Some(slot) => slot.clone(),
                None if live.len() >= self.registry.limits.streams_live_max => {
                    return Err(ErrorCode::Overloaded.into());
                }
                None => live.entry(task).or_default().clone(),
            }
        };
        if let Some(handle) = slot.get() {
            return Ok(handle.clone());
        }
        let claims = self.registry.claims.load(Ordering::Acquire);
        let opened = slot.get_or_try_init(|| self.start(task)).await.cloned();
        if let Ok(handle) = &opened
            && self.registry.claims.load(Ordering::Acquire) != claims
        {
            // Its client may have come to belong to somebody while the stream was being opened.
            let owner = self.registry.store.task(task).await.map_err(refusal_of)?.client_owner;
            handle.parties.write().client_owner = owner;
        }
        if opened.is_err() {
            let mut live = self.registry.live.lock();
            if live.get(&task).is_some_and(|known| Arc::ptr_eq(known, &slot) && known.get().is_none()) {
                live.remove(&task);
            }
        }
        opened
    }

    async fn start(&self, task: TaskId) -> Result<Arc<Handle>, Refusal> {
        let registry = &self.registry;
        let (chunks_max, bytes_max) = registry.head_bounds();
        if registry.cluster.is_alone() {
            let head = registry.store.claim_stream(task, chunks_max, bytes_max).await.map_err(refusal_of)?;
            return registry.start(head, true).await;
        }
        let head = registry.store.stream_head(task, chunks_max, bytes_max).await.map_err(refusal_of)?;
        // Nothing happens any more to one that has ended: every node serves it from the store.
        let has_ended = head.task.status.is_final();
        registry.start(head, has_ended).await
    }
}

/// A join's place among a stream's readers; it is given up when this is dropped.
pub struct Attachment {
    handle: Arc<Handle>,
    outlet: u64,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let _stream_gone = self.handle.inbox.push_always(Command::Detach(self.outlet));
    }
}
