//! The streams that are live on a node, and their supervisor.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, TaskId};
use muster_protocol::limits::Limits;
use muster_protocol::rate_limiter::TokenBucket;
use parking_lot::{Mutex, RwLock};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{oneshot, watch};

use super::actor::{Command, Reading, StreamActor};
use super::{Handle, INBOX_COMMANDS_MAX, Slot, Tail, refusal_of};
use crate::inbox::{Inbox, Wake};
use crate::metric_definitions::Metrics;
use crate::ports::Environment;
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
    pub environment: Environment,
    pub limits: Arc<Limits>,
    pub settings: StreamSettings,
    pub metrics: Arc<Metrics>,
}

impl Registry {
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

    pub async fn start(self: &Arc<Self>, head: StreamHead) -> Result<Arc<Handle>, Refusal> {
        let now_ms = self.environment.monotonic_ms();
        let tail = Tail { seq: head.last_seq, ended: head.task.status.is_final() };
        let handle = Arc::new(Handle {
            task: head.task.id,
            parties: RwLock::new(head.task.parties()),
            inbox: Inbox::new(INBOX_COMMANDS_MAX),
            awaits_store: AtomicBool::new(false),
            bucket: Mutex::new(TokenBucket::new(self.limits.chunks_per_stream, now_ms)),
            tail: watch::Sender::new(tail),
            actor: RwLock::default(),
        });
        let supervisor = self.supervisor.read().clone().ok_or(ErrorCode::Draining)?;
        let arguments = (handle.clone(), self.clone(), head);
        let (actor, _) = Actor::spawn_linked(None, StreamActor, arguments, supervisor)
            .await
            .map_err(|_| Refusal::new(ErrorCode::Internal))?;
        *handle.actor.write() = Some(actor.get_cell());
        Ok(handle)
    }
}

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
