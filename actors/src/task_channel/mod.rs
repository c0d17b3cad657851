//! The channels of tasks (`task:<id>`): what two agents send each other, stored before it is answered, and told to the
//! other side on whichever node.
//!
//! The store decides, in the transaction that adds a chunk (`muster_protocol::task_channel`), and numbers chunks in the
//! order of their arrival. Nodes tell each other what happened on a topic of their own; each join follows that by the
//! numbers, and reads the store where something is missing, was there before, or did not fit into the connection. So
//! nothing has to be owned or moved, and a publication that is lost is only late.
//!
//! # Layout
//! * this file: joining, checking a stream's end, telling
//! * `writer`: chunks on their way to the store; `feed`: what a join is told

mod feed;
mod writer;

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use muster_protocol::account::Principal;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, TaskId};
use muster_protocol::json::Json;
use muster_protocol::limits::Limits;
use muster_protocol::phoenix::Ref;
use muster_protocol::task::{Task, TaskStatus, TaskView};
use muster_protocol::task_channel::batch::{PutChunk, TaskFacts};
use muster_protocol::task_channel::payloads::JoinRequest;
use muster_protocol::task_channel::{
    ChannelChunk, Checkpoint, Checksum, Closing, Direction, Progress, Side, Verifier,
};
use muster_protocol::topic::{event, task_channel_topic};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use self::feed::Feed;
use self::writer::{Answer, Writer};
use crate::egress::{Outlet, OutletId};
use crate::ports::Environment;
use crate::pubsub::{PubSub, Subscription};
use crate::store::{ChunkRange, CloseStream, Store, StoreError};
use crate::supervisor::ChildSpec;
use crate::task_stream::refusal_of;

/// Who is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Audience {
    /// Whoever speaks for this side.
    Only(Side),
    /// Both sides.
    Both,
}

/// What nodes tell each other about a channel, under the name of the event.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    to: Audience,
    /// Of which stream it is, and how many chunks that has with this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    of: Option<(Direction, u64)>,
    payload: Json,
}

/// Told between nodes alone: the task has another provider.
const REASSIGNED: &str = "reassigned";

fn tell(pubsub: &PubSub, task: TaskId, event: &'static str, told: &Told) {
    pubsub.publish(&task_channel_topic(task), event, Json::of(told));
}

/// The task has ended, by whatever way: both sides are told (R75 to R77).
pub(crate) fn ended(pubsub: &PubSub, task: &Task) {
    let Some(event) = end_event(task.status) else { return };
    tell(pubsub, task.id, event, &Told { to: Audience::Both, of: None, payload: task_payload(task) });
}

/// The task was given to another provider: the one before is out.
pub(crate) fn reassigned(pubsub: &PubSub, task: &Task) {
    let told = Told { to: Audience::Both, of: None, payload: Json::of(&task.provider) };
    tell(pubsub, task.id, REASSIGNED, &told);
}

fn end_event(status: TaskStatus) -> Option<&'static str> {
    match status {
        TaskStatus::Completed => Some(event::CHANNEL_TASK_COMPLETED),
        TaskStatus::Failed => Some(event::CHANNEL_TASK_FAILED),
        TaskStatus::Cancelled => Some(event::CHANNEL_TASK_CANCELLED),
        TaskStatus::Pending | TaskStatus::InProgress => None,
    }
}

/// `{"task": …}`
#[must_use]
pub fn task_payload(task: &Task) -> Json {
    #[derive(Serialize)]
    struct Payload<'a> {
        task: TaskView<'a>,
    }
    Json::of(&Payload { task: task.view() })
}

/// The channels of tasks on this node.
#[derive(Clone)]
pub struct TaskChannels(Arc<Shared>);

struct Shared {
    store: Arc<dyn Store>,
    pubsub: Arc<PubSub>,
    environment: Environment,
    limits: Arc<Limits>,
    writers: Vec<Arc<Writer>>,
    /// Bytes of chunks that may wait for the store, in KiB.
    room: Arc<Semaphore>,
    /// The joins there are.
    feeds: Mutex<HashMap<OutletId, Weak<Feed>>>,
}

/// Writers of a node: a task's chunks go through one, in their order.
const WRITERS: usize = 4;
/// Times the end of a stream is checked anew when chunks came meanwhile.
const CLOSE_ATTEMPTS_MAX: usize = 4;

/// A joined channel: what it holds on to, and whom it speaks for.
pub struct Joined {
    /// The task.
    pub task: TaskId,
    /// The agent that joined.
    pub agent: AgentId,
    facts: TaskFacts,
    _feed: Arc<Feed>,
    _registered: Registered,
}

/// A feed's place among those of the node.
struct Registered {
    shared: Arc<Shared>,
    outlet: OutletId,
    _subscription: Subscription,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.feeds.lock().remove(&self.outlet);
    }
}

impl Joined {
    /// Whether it may speak for a side.
    ///
    /// # Errors
    /// `unauthorized`
    pub fn require(&self, side: Side) -> Result<(), Refusal> {
        if self.facts.is(self.agent, side) { Ok(()) } else { Err(ErrorCode::Unauthorized.into()) }
    }
}

impl TaskChannels {
    /// None joined yet.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        pubsub: Arc<PubSub>,
        environment: Environment,
        limits: Arc<Limits>,
    ) -> Self {
        let room_kib = kib(limits.task_channel_queue_bytes_max).clamp(1, Semaphore::MAX_PERMITS);
        let writer = || Writer::new(store.clone(), pubsub.clone(), &limits);
        let writers = (0..WRITERS).map(|_| writer()).collect();
        let room = Arc::new(Semaphore::new(room_kib));
        let feeds = Mutex::default();
        Self(Arc::new(Shared { writers, store, pubsub, environment, limits, room, feeds }))
    }

    /// How its writers are started.
    pub fn children(&self) -> impl Iterator<Item = ChildSpec> {
        self.0.writers.iter().map(Writer::child)
    }

    /// Something of what other nodes told may be lost: all joins look at the store.
    pub fn missed(&self) {
        let feeds: Vec<_> = self.0.feeds.lock().values().filter_map(Weak::upgrade).collect();
        for feed in feeds {
            feed.missed();
        }
    }

    /// Joins: answers, sends again what was asked for, and then everything as it comes (R67, R68).
    ///
    /// # Errors
    /// The agent is not a party any more, or the store cannot be read; nothing was answered.
    pub async fn join(
        &self,
        (principal, outlet): (&Principal, &Arc<Outlet>),
        task: TaskId,
        request: JoinRequest,
        reference: &Ref,
    ) -> Result<Joined, Refusal> {
        let agent = principal.acting_agent()?;
        let shared = &self.0;
        let feed = Feed::new(shared, task, agent, outlet.clone());
        // From here on nothing is missed; what is read next may come twice, and is told apart by its number.
        let topic = task_channel_topic(task);
        let subscription = shared.pubsub.listen(&topic, outlet.id(), feed.clone()).await;
        shared.feeds.lock().insert(outlet.id(), Arc::downgrade(&feed));
        let registered =
            Registered { shared: shared.clone(), outlet: outlet.id(), _subscription: subscription };
        let state = shared.store.task_channel(task).await.map_err(refusal_of)?;
        let facts = facts_of(&state.task);
        let joined = Joined { task, agent, facts, _feed: feed.clone(), _registered: registered };
        if joined.require(Side::Client).is_err() && joined.require(Side::Provider).is_err() {
            return Err(ErrorCode::Unauthorized.into());
        }
        #[derive(Serialize)]
        struct Reply<'a> {
            task: TaskView<'a>,
            last_input_seq: Option<u64>,
            last_output_seq: Option<u64>,
            input_complete: bool,
            output_complete: bool,
            checkpoint: Option<&'a Checkpoint>,
            progress: Option<&'a Progress>,
        }
        let reply = Json::of(&Reply {
            task: state.task.view(),
            last_input_seq: state.input.last_seq,
            last_output_seq: state.output.last_seq,
            input_complete: state.input.closing.is_some(),
            output_complete: state.output.closing.is_some(),
            checkpoint: state.checkpoint.as_ref(),
            progress: state.task.progress.as_ref(),
        });
        outlet.open(reference, &reply);
        feed.begin(&state, request);
        Ok(joined)
    }

    /// Sends a chunk; it is answered once it is stored. Waits while too much does.
    ///
    /// # Errors
    /// The node is going away.
    pub async fn put(
        &self,
        joined: &Joined,
        direction: Direction,
        chunk: ChannelChunk,
        (outlet, reference): (&Arc<Outlet>, &Ref),
    ) -> Result<(), Refusal> {
        let shared = &self.0;
        let room_kib =
            kib(chunk.bytes.len()).clamp(1, kib(shared.limits.task_channel_queue_bytes_max).max(1));
        let wanted = u32::try_from(room_kib).unwrap_or(u32::MAX);
        let room = shared.room.clone().acquire_many_owned(wanted).await.map_err(|_| ErrorCode::Draining)?;
        let (task, by, now) = (joined.task, joined.agent, shared.environment.now());
        let digest = Checksum::of(&chunk.bytes);
        let answer = Answer::new(outlet.clone(), reference.clone(), room);
        self.writer(task).put(PutChunk { task, direction, by, chunk, digest, now }, answer);
        Ok(())
    }

    /// Waits until all chunks that were sent before are stored or refused: what follows them must not overtake them.
    pub async fn settle(&self, task: TaskId) {
        self.writer(task).settle().await;
    }

    fn writer(&self, task: TaskId) -> &Arc<Writer> {
        // The last byte of an id is random.
        &self.0.writers[usize::from(task.as_bytes()[15]) % WRITERS]
    }

    /// Ends a stream if its bytes are what the sender says; gives whether it had ended so before (R72, R73). The bytes are
    /// read in pieces: there is one of them in memory at a time.
    ///
    /// # Errors
    /// `missing_chunks`, `checksum_mismatch`, `stream_complete`, `task_not_active`; the store.
    pub async fn complete_stream(
        &self,
        joined: &Joined,
        direction: Direction,
        closing: Closing,
    ) -> Result<bool, Refusal> {
        let (shared, task) = (&self.0, joined.task);
        self.settle(task).await;
        for _ in 0..CLOSE_ATTEMPTS_MAX {
            let state = shared.store.task_channel(task).await.map_err(refusal_of)?;
            let checked = *state.stream(direction);
            if checked.has_ended_so(&closing)? {
                return Ok(true);
            }
            facts_of(&state.task).admit(joined.agent, direction.sender())?;
            let mut verifier = Verifier::new(&checked);
            let mut after = None;
            loop {
                let range = ChunkRange::BySeq { after, nth_max: checked.chunks };
                let bytes_max = shared.limits.stream_read_bytes_max;
                let read = shared.store.read_channel_chunks(task, direction, range, bytes_max);
                let chunks = read.await.map_err(refusal_of)?;
                let Some(last) = chunks.last() else { break };
                after = Some(last.chunk.seq);
                chunks.iter().for_each(|stored| verifier.feed(stored.chunk.seq, &stored.chunk.bytes));
            }
            verifier.finish(&closing)?;
            let close = CloseStream { task, direction, by: joined.agent, checked, closing };
            match shared.store.close_channel_stream(close, shared.environment.now()).await {
                Ok(closed) => {
                    closed?;
                    let of = Some((direction, checked.chunks));
                    let to = Audience::Only(direction.sender().other());
                    let told = Told { to, of, payload: Json::of(&closing) };
                    tell(&shared.pubsub, task, direction.complete_event(), &told);
                    return Ok(false);
                }
                // More came meanwhile.
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(refusal_of(error)),
            }
        }
        Err(ErrorCode::Overloaded.into())
    }

    /// Notes how far the task is, and tells the client (R74).
    ///
    /// # Errors
    /// `unauthorized`, `task_not_active`; the store.
    pub async fn progress(&self, joined: &Joined, progress: Progress) -> Result<(), Refusal> {
        let payload = Json::of(&progress);
        let (shared, task) = (&self.0, joined.task);
        let now = shared.environment.now();
        shared.store.set_progress(task, joined.agent, progress, now).await.map_err(refusal_of)??;
        self.relay(task, Side::Client, event::PROGRESS, payload);
        Ok(())
    }

    /// Keeps a checkpoint; gives whether it is new (R78).
    ///
    /// # Errors
    /// `stale_checkpoint`, `seq_conflict`, `unauthorized`, `task_not_active`; the store.
    pub async fn checkpoint(&self, joined: &Joined, checkpoint: Checkpoint) -> Result<bool, Refusal> {
        let shared = &self.0;
        let now = shared.environment.now();
        shared.store.set_checkpoint(joined.task, joined.agent, checkpoint, now).await.map_err(refusal_of)?
    }

    /// Tells one side something that is not kept.
    pub fn relay(&self, task: TaskId, to: Side, event: &'static str, payload: Json) {
        tell(&self.0.pubsub, task, event, &Told { to: Audience::Only(to), of: None, payload });
    }
}

fn facts_of(task: &Task) -> TaskFacts {
    TaskFacts { status: task.status, client: task.client, provider: task.provider }
}

const fn kib(bytes: usize) -> usize {
    bytes.div_ceil(1024)
}
