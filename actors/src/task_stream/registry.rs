//! The streams that are live on a node, and their supervisor.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use muster_protocol::cluster::stream::What;
use muster_protocol::cluster::{Members, NodeKey};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, TaskId};
use muster_protocol::limits::Limits;
use muster_protocol::rate_limiter::TokenBucket;
use muster_protocol::task::Task;
use parking_lot::{Mutex, RwLock};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{oneshot, watch};

use super::ack::Peer;
use super::actor::StreamActor;
use super::command::{Command, Reading};
use super::{Handle, INBOX_COMMANDS_MAX, Slot, Tail, refusal_of};
use crate::analytics::Analytics;
use crate::cluster::Cluster;
use crate::inbox::{Inbox, Wake};
use crate::metric_definitions::Metrics;
use crate::ports::Environment;
use crate::pubsub::PubSub;
use crate::rate_limits::Buckets;
use crate::settings::StreamSettings;
use crate::store::{Store, StreamHead};

/// The streams that are live, and what they need.
pub(super) struct Registry {
    pub live: Mutex<HashMap<TaskId, Arc<Slot>>>,
    pub supervisor: RwLock<Option<ActorCell>>,
    pub agent_buckets: Buckets<AgentId>,
    pub memory: AtomicUsize,
    /// Changes of ownership so far.
    pub claims: AtomicU64,
    pub store: Arc<dyn Store>,
    pub cluster: Arc<dyn Cluster>,
    pub pubsub: Arc<PubSub>,
    pub members: watch::Receiver<Arc<Members>>,
    /// Streams being let go elsewhere, so that this node can claim them.
    pub releases: Mutex<HashMap<u64, Release>>,
    /// Streams that are being opened for other nodes, and what those said meanwhile.
    pub asked: Mutex<HashMap<TaskId, Vec<Said>>>,
    /// Readings of epochs at once.
    pub verifying: tokio::sync::Semaphore,
    pub numbers: AtomicU64,
    pub environment: Environment,
    pub limits: Arc<Limits>,
    pub settings: StreamSettings,
    pub metrics: Arc<Metrics>,
    pub analytics: Arc<Analytics>,
}

/// What a node said by which attempt to follow.
pub(super) type Said = (NodeKey, u64, What);

/// A stream that other nodes are asked to let go of.
pub(super) struct Release {
    /// Those that have not answered.
    pub waiting_for: Vec<NodeKey>,
    pub done: oneshot::Sender<()>,
}

/// How long other nodes have to let go of a stream, in milliseconds; then it is taken from them.
const RELEASE_MS: u64 = 1_000;

impl Registry {
    /// A number that this process has not given out yet.
    pub fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// A node, to be told something about a stream.
    pub fn peer(&self, node: NodeKey, task: TaskId, follow: u64) -> Peer {
        Peer { cluster: self.cluster.clone(), node, task, follow }
    }

    /// Claims a stream for this node, and tells it.
    pub fn claim(self: Arc<Self>, handle: Arc<Handle>, follow: u64, epoch: u64) {
        tokio::spawn(async move {
            // One that nobody ever had needs nobody's leave.
            if epoch > 0 {
                self.release_elsewhere(handle.task).await;
            }
            let (chunks_max, bytes_max) = self.head_bounds();
            let result = self.store.claim_stream(handle.task, chunks_max, bytes_max).await;
            let _stream_gone = handle.inbox.push_always(Command::Claimed { follow, result });
        });
    }

    /// Lets whoever holds a stream store what they have, so that nothing is taken from under their hands.
    async fn release_elsewhere(&self, task: TaskId) {
        let me = self.cluster.me();
        let members = self.members.borrow().clone();
        let others: Vec<NodeKey> = members
            .nodes
            .iter()
            .filter(|member| member.key != *me && !member.suspect)
            .map(|member| member.key.clone())
            .collect();
        if others.is_empty() {
            return;
        }
        let number = self.next_number();
        let (done, released) = oneshot::channel();
        self.releases.lock().insert(number, Release { waiting_for: others.clone(), done });
        for node in others {
            if !self.peer(node.clone(), task, number).tell(What::Release) {
                self.released(&node, number);
            }
        }
        if tokio::time::timeout(Duration::from_millis(RELEASE_MS), released).await.is_err() {
            self.releases.lock().remove(&number);
        }
    }

    /// A node does not hold the stream (any more).
    pub fn released(&self, node: &NodeKey, number: u64) {
        let mut releases = self.releases.lock();
        let Some(release) = releases.get_mut(&number) else { return };
        release.waiting_for.retain(|waiting| waiting != node);
        if release.waiting_for.is_empty()
            && let Some(release) = releases.remove(&number)
        {
            let _given_up = release.done.send(());
        }
    }

    /// A node will not answer.
    pub fn gone(&self, node: &NodeKey) {
        let numbers: Vec<u64> = self.releases.lock().keys().copied().collect();
        for number in numbers {
            self.released(node, number);
        }
    }

    pub fn head_bounds(&self) -> (usize, usize) {
        let bytes_max = if self.memory_is_short() { 0 } else { self.limits.stream_buffer_bytes_max };
        (self.limits.stream_buffer_chunks_max, bytes_max)
    }

    /// Reads which epoch of a stream is the newest, and tells it.
    pub fn read_epoch(self: Arc<Self>, handle: Arc<Handle>) {
        tokio::spawn(async move {
            let Ok(_place) = self.verifying.acquire().await else { return };
            match self.store.stream_head(handle.task, 0, 0).await {
                Ok(head) => {
                    let _stream_gone = handle.inbox.push_always(Command::Verified(head.epoch));
                }
                Err(error) => tracing::warn!(%error, "cannot read whose a stream is"),
            }
        });
    }

    /// Reads a task's record, and tells its stream.
    pub fn read_task(self: Arc<Self>, handle: Arc<Handle>) {
        tokio::spawn(async move {
            let mut read = self.store.task(handle.task).await;
            if read.is_err() {
                tokio::time::sleep(Duration::from_millis(READ_AGAIN_MS)).await;
                read = self.store.task(handle.task).await;
            }
            let command = match read {
                // Its end stands behind its last chunk, and the owner may have said less so far.
                Ok(task) if task.status.is_final() => {
                    let (chunks_max, bytes_max) = self.head_bounds();
                    match self.store.stream_head(task.id, chunks_max, bytes_max).await {
                        Ok(head) => Command::EndRead(Box::new(head)),
                        Err(error) => Command::TaskRead(Err(error)),
                    }
                }
                read => Command::TaskRead(read),
            };
            let _stream_gone = handle.inbox.push_always(command);
        });
    }

    /// Answers a caller with the task as the store has it.
    pub fn answer_with_task(self: Arc<Self>, task: TaskId, reply: oneshot::Sender<Result<Task, Refusal>>) {
        tokio::spawn(async move {
            let _caller_gone = reply.send(self.store.task(task).await.map_err(refusal_of));
        });
    }

    pub fn memory_is_short(&self) -> bool {
        self.memory.load(Ordering::Relaxed) > self.limits.stream_memory_bytes_max
    }

    pub fn count_bytes(&self, before: usize, now: usize) {
        self.memory.fetch_add(now, Ordering::Relaxed);
        let sum = self.memory.fetch_sub(before, Ordering::Relaxed).saturating_sub(before);
        self.metrics.stream_bytes.set(i64::try_from(sum).unwrap_or(i64::MAX));
    }

    pub fn forget(&self, handle: &Arc<Handle>) {
        let mut live = self.live.lock();
        if live
            .get(&handle.task)
            .is_some_and(|slot| slot.get().is_some_and(|known| Arc::ptr_eq(known, handle)))
        {
            live.remove(&handle.task);
        }
    }

    /// Reads from the store for a reader, and tells the stream.
    pub fn fetch(self: Arc<Self>, handle: Arc<Handle>, reader: u64, after: u64, upto: u64) {
        tokio::spawn(async move {
            let bytes_max = self.limits.stream_read_bytes_max;
            let chunks = self.store.read_chunks(handle.task, after, upto, bytes_max).await;
            let _stream_gone = handle.inbox.push_always(Command::Fetched(reader, chunks));
        });
    }

    /// Reads from the store for a reading, and answers it.
    pub fn read_stored(
        self: Arc<Self>,
        task: TaskId,
        (after, upto, bytes_max): (u64, u64, usize),
        mut reading: Reading,
        reply: oneshot::Sender<Result<Reading, Refusal>>,
    ) {
        tokio::spawn(async move {
            let result = self.store.read_chunks(task, after, upto, bytes_max).await;
            let result = result.map_err(refusal_of).map(|chunks| {
                reading.chunks = chunks.into_iter().map(|chunk| (chunk.seq, chunk.body)).collect();
                let last = reading.chunks.last().map(|(seq, _)| *seq);
                if last.is_some_and(|last| last < reading.seq) {
                    reading.ending = None;
                }
                reading
            });
            let _reader_gone = reply.send(result);
        });
    }

    /// Starts a stream as the store has it: as its owner, or as one that finds out who that is.
    pub async fn start(self: &Arc<Self>, head: StreamHead, is_owner: bool) -> Result<Arc<Handle>, Refusal> {
        let now_ms = self.environment.monotonic_ms();
        let tail = Tail { seq: head.last_seq, ended: head.task.status.is_final() };
        let handle = Arc::new(Handle {
            task: head.task.id,
            parties: RwLock::new(head.task.parties()),
            inbox: Inbox::new(INBOX_COMMANDS_MAX),
            awaits_store: AtomicBool::new(false),
            bucket: Mutex::new(TokenBucket::new(self.limits.chunks_per_stream, now_ms)),
            tail: watch::Sender::new(tail),
            is_held: AtomicBool::new(false),
            actor: RwLock::default(),
        });
        let supervisor = self.supervisor.read().clone().ok_or(ErrorCode::Draining)?;
        let arguments = (handle.clone(), self.clone(), head, is_owner);
        let (actor, _) = Actor::spawn_linked(None, StreamActor, arguments, supervisor)
            .await
            .map_err(|_| Refusal::new(ErrorCode::Internal))?;
        *handle.actor.write() = Some(actor.get_cell());
        Ok(handle)
    }
}

/// Pause before a record that could not be read is read again, in milliseconds.
const READ_AGAIN_MS: u64 = 500;

/// The supervisor of the streams: a stream that crashes is forgotten, so that whoever needs it next opens it anew from
/// its log. Its readers and producers have been told by then, because what held their answers was dropped.
pub(super) struct StreamsActor;

impl Actor for StreamsActor {
    type Msg = Wake;
    type State = Arc<Registry>;
    type Arguments = Arc<Registry>;

    async fn pre_start(
        &self,
        myself: ActorRef<Wake>,
        registry: Arc<Registry>,
    ) -> Result<Arc<Registry>, ActorProcessingErr> {
        *registry.supervisor.write() = Some(myself.get_cell());
        // Streams of an earlier life of this actor ended with it.
        let orphans: Vec<_> = std::mem::take(&mut *registry.live.lock()).into_values().collect();
        for handle in orphans.iter().filter_map(|slot| slot.get()) {
            drop(handle.inbox.close());
        }
        Ok(registry)
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Wake>,
        event: SupervisionEvent,
        registry: &mut Arc<Registry>,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(cell, error) = event {
            tracing::error!(%error, "a stream crashed");
            registry.metrics.crashes.get_or_create(&[("kind", "stream")]).inc();
            let crashed = registry.live.lock().values().find_map(|slot| {
                let handle = slot.get()?;
                let is_it = handle.actor.read().as_ref().is_some_and(|actor| actor.get_id() == cell.get_id());
                is_it.then(|| handle.clone())
            });
            if let Some(handle) = crashed {
                registry.forget(&handle);
                drop(handle.inbox.close());
            }
        }
        Ok(())
    }
}
