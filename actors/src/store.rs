//! The port to the store: one method per transaction. Decisions are made by `muster-protocol` and by callers; the store
//! compares and sets, and refuses what no longer fits. Time is an argument. Every backend passes the same conformance
//! suite.

pub mod figures;
mod handoffs;
mod idempotency;
mod ledger;
mod messages;
mod negotiations;
mod payments;
mod task_channel;
mod teams;
mod webhooks;

use async_trait::async_trait;
use muster_protocol::account::{Credential, Owner, SecretHash, User};
use muster_protocol::agent::{Agent, AgentStatus};
use muster_protocol::discovery::Query;
use muster_protocol::escrow::RequestHash;
use muster_protocol::hiring::{Hiring, HiringStatus};
use muster_protocol::ids::{AgentId, CredentialId, HiringId, TaskId, UserId};
use muster_protocol::money::Amount;
use muster_protocol::signing::PublicKey;
use muster_protocol::task::{Ending, Note, Task, TaskStatus, TimelineEntry};
use muster_protocol::task_stream::Chunk;
use muster_protocol::time::Timestamp;
use smol_str::SmolStr;
use std::collections::{HashMap, HashSet};

pub use self::figures::FigureStore;
pub use self::handoffs::HandoffStore;
pub use self::idempotency::{IdempotencyStore, KeyedRequest};
pub use self::ledger::LedgerStore;
pub use self::messages::{
    Accepted, COUNTED_MAX, Mail, MessageFilter, MessageStore, NewMessage, Outcome, Party, Settle, Waiting,
    queued_bytes,
};
pub use self::negotiations::{NegotiationFilter, NegotiationStore};
pub use self::payments::PaymentStore;
pub use self::task_channel::{ChannelState, ChunkRange, CloseStream, StoredChunk, TaskChannelStore};
pub use self::teams::TeamStore;
pub use self::webhooks::{AttemptEntry, Claim, Settled, WebhookStore};

/// Why a transaction did not happen. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// What it speaks of is not there.
    #[error("not found")]
    NotFound,
    /// There is one of that name already.
    #[error("already exists")]
    AlreadyExists,
    /// The owner has as many of these as it may.
    #[error("limit reached")]
    LimitReached,
    /// The task is in another state than the caller believed.
    #[error("the task is {}", .0.as_str())]
    WrongStatus(TaskStatus),
    /// The record changed since it was read.
    #[error("changed since it was read")]
    Conflict,
    /// An account has only so much, which is less than is to be taken from it.
    #[error("insufficient balance")]
    InsufficientBalance(Amount),
    /// Another owner has claimed the stream since: this one's epoch or seq is old.
    #[error("fenced off by a newer owner")]
    Fenced,
    /// The store cannot be reached or written now.
    #[error("store unavailable: {0}")]
    Unavailable(String),
}

/// A result of the store.
pub type StoreResult<T> = Result<T, StoreError>;

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// Newest first.
    pub items: Vec<T>,
    /// Of the whole list.
    pub total: u64,
    /// Where the next part begins, if there is one.
    pub next: Option<[u8; 16]>,
}

/// Which part of a list.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest {
    /// Items at most.
    pub limit: usize,
    /// What [`Page::next`] said.
    pub after: Option<[u8; 16]>,
}

/// Which tasks.
#[derive(Clone, Copy, Debug, Default)]
pub struct TaskFilter {
    /// Of which this agent is client or provider.
    pub agent: Option<AgentId>,
    /// Of which this user's agent is the client, or of which the agent of this user is the provider.
    pub user: Option<UserId>,
    /// In this state.
    pub status: Option<TaskStatus>,
    /// Of which this agent is the provider.
    pub provider: Option<AgentId>,
    /// Of which this agent is the client.
    pub client: Option<AgentId>,
}

/// Which hirings.
#[derive(Clone, Copy, Debug, Default)]
pub struct HiringFilter {
    /// Which this user ordered, or in which an agent of this user is hired.
    pub user: Option<UserId>,
    /// In which this agent is the client or is hired.
    pub agent: Option<AgentId>,
    /// In this state.
    pub status: Option<HiringStatus>,
    /// Without so many of the newest.
    pub skip: u32,
}

/// Where a stream stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamHead {
    /// What its owner writes under: given by the last claim; 0 when it was never claimed, or nothing is written any more.
    pub epoch: u64,
    /// The task it belongs to.
    pub task: Task,
    /// Seq of its newest chunk; 0 when it never had one.
    pub last_seq: u64,
    /// Its newest chunks, oldest first, as many as were asked for.
    pub newest: Vec<Chunk>,
    /// First seq the store still has; `last_seq + 1` when it has none.
    pub first_seq: u64,
}

/// Chunks to append to one stream.
#[derive(Clone, Debug)]
pub struct Append {
    /// Which task's.
    pub task: TaskId,
    /// Given to the writer when it claimed the stream; whoever holds an older one than the last is fenced off.
    pub epoch: u64,
    /// Without a gap, from one past the stored last seq.
    pub chunks: Vec<Chunk>,
    /// Whether this begins the task: it moves from pending to in progress.
    pub begins_task: bool,
    /// Whether somebody waits until they are durable; else they may wait some milliseconds for company.
    pub is_awaited: bool,
    /// When.
    pub now: Timestamp,
}

impl Append {
    /// Bytes of its chunks, as [`Chunk::weight`] counts them.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.chunks.iter().map(Chunk::weight).sum()
    }
}

/// Called once with the outcome of an [`Append`], when it is durable or has failed.
pub type AppendDone = Box<dyn FnOnce(StoreResult<()>) + Send>;

/// How a task ends.
#[derive(Clone, Debug)]
pub struct Finish {
    /// Which task.
    pub task: TaskId,
    /// Given to the caller when it claimed the task's stream.
    pub epoch: u64,
    /// How.
    pub ending: Ending,
    /// The agent that ended it, if one did.
    pub by: Option<AgentId>,
    /// Last seq the caller has given out: every chunk must be stored before the end is.
    pub last_seq: u64,
    /// When.
    pub now: Timestamp,
}

/// Who gets a task instead.
#[derive(Clone, Debug)]
pub struct Reassign {
    /// Which task.
    pub task: TaskId,
    /// Given to the caller when it claimed the task's stream.
    pub epoch: u64,
    /// Who does it from now on.
    pub provider: AgentId,
    /// Who has decided that.
    pub by: AgentId,
    /// When.
    pub now: Timestamp,
}

/// Users, credentials and agents.
#[async_trait]
pub trait AccountStore: Send + Sync + 'static {
    /// Keeps the hash of the operator's token, unless one is kept already; gives the one that is.
    async fn operator_hash(&self, first: SecretHash) -> StoreResult<SecretHash>;

    /// Adds a user.
    async fn create_user(&self, user: User) -> StoreResult<()>;
    /// A user.
    async fn user(&self, id: UserId) -> StoreResult<User>;
    /// All users.
    async fn users(&self, page: PageRequest) -> StoreResult<Page<User>>;

    /// Adds a credential. An owner has `live_max` live keys and tokens at most, and as many sessions: a further key is
    /// refused, a further session takes the place of the oldest, which is revoked and given back. Not found: its parent
    /// is not live any more.
    async fn create_credential(
        &self,
        credential: Credential,
        hash: SecretHash,
        live_max: usize,
    ) -> StoreResult<Vec<CredentialId>>;
    /// Forgets at most `rows_max` credentials that ended before a time; gives how many.
    async fn purge_credentials(&self, ended_before: Timestamp, rows_max: usize) -> StoreResult<usize>;
    /// The credential of that hash, with the agent whose credential it is, if it is one's.
    async fn caller_by_hash(&self, hash: SecretHash) -> StoreResult<(Credential, Option<Agent>)>;
    /// The credentials of an owner, revoked ones too.
    async fn credentials_of(&self, owner: Owner) -> StoreResult<Vec<Credential>>;
    /// Credentials that were revoked since a time, and of those of that very time the ones beyond an id: when, and which,
    /// oldest first. Clocks of nodes differ, and transactions take their time, so whoever asks again and again goes back a
    /// little each time.
    async fn credentials_ended_since(
        &self,
        since: (Timestamp, Option<CredentialId>),
        limit: usize,
    ) -> StoreResult<Vec<(Timestamp, CredentialId)>>;
    /// Revokes a credential of that owner and, if it is an agent's key, the sessions that were had by it. Gives
    /// everything that was revoked.
    async fn revoke_credential(
        &self,
        owner: Owner,
        id: CredentialId,
        now: Timestamp,
    ) -> StoreResult<Vec<CredentialId>>;
    /// Revokes one credential, as [`Self::revoke_credential`] does, and adds another of the same owner, at once.
    async fn rotate_credential(
        &self,
        old: CredentialId,
        new: Credential,
        hash: SecretHash,
    ) -> StoreResult<Vec<CredentialId>>;

    /// Adds an agent with its first key. Its DID must be new.
    async fn create_agent(
        &self,
        agent: Agent,
        key: Credential,
        hash: SecretHash,
        agents_per_user_max: usize,
    ) -> StoreResult<()>;
    /// An agent.
    async fn agent(&self, id: AgentId) -> StoreResult<Agent>;
    /// The agent of that DID.
    async fn agent_by_did(&self, did: &str) -> StoreResult<Agent>;
    /// A user's agents.
    async fn agents_of(&self, user: UserId, page: PageRequest) -> StoreResult<Page<Agent>>;
    /// Gives an agent that has no owner to a user, and with it the tasks and hirings it has given.
    async fn claim_agent(&self, id: AgentId, user: UserId, now: Timestamp) -> StoreResult<Agent>;
    /// Replaces an agent's own fields, if it has not changed since `read.updated_at`.
    async fn update_agent(&self, read: &Agent, new: Agent) -> StoreResult<()>;
    /// Whether an agent signed with a key that was replaced since.
    async fn was_key_of(&self, id: AgentId, key: PublicKey) -> StoreResult<bool>;
    /// Sets an agent's status.
    async fn set_agent_status(&self, id: AgentId, status: AgentStatus, now: Timestamp) -> StoreResult<Agent>;
    /// Agents that may not connect and were changed since a time, as [`Self::credentials_ended_since`] gives credentials:
    /// when, and which, oldest first.
    async fn agents_stopped_since(
        &self,
        since: (Timestamp, Option<AgentId>),
        limit: usize,
    ) -> StoreResult<Vec<(Timestamp, AgentId)>>;
    /// Notes when an agent was last online.
    async fn set_last_seen(&self, id: AgentId, now: Timestamp) -> StoreResult<()>;
    /// Agents that match, best first, without those of `except`.
    async fn find_agents(
        &self,
        query: &Query,
        except: &HashSet<AgentId>,
        limit: usize,
    ) -> StoreResult<Vec<Agent>>;
    /// Capabilities of active agents, and how many have each, most first.
    async fn capabilities(&self, limit: usize) -> StoreResult<Vec<(String, u64)>>;

    /// Lets an agent block another, until a time or for good.
    async fn block(
        &self,
        by: AgentId,
        other: AgentId,
        until: Option<Timestamp>,
        blocks_max: usize,
    ) -> StoreResult<()>;
    /// Takes a block back.
    async fn unblock(&self, by: AgentId, other: AgentId) -> StoreResult<()>;
    /// The blocks an agent holds: whom, and until when.
    async fn blocks_by(
        &self,
        agent: AgentId,
        now: Timestamp,
    ) -> StoreResult<Vec<(AgentId, Option<Timestamp>)>>;
    /// Everybody an agent blocks or is blocked by.
    async fn blocked_pairs(
        &self,
        agent: AgentId,
        now: Timestamp,
    ) -> StoreResult<HashMap<AgentId, Option<Timestamp>>>;
}

/// Tasks, hirings and their notes.
#[async_trait]
pub trait TaskStore: Send + Sync + 'static {
    /// Adds a task and, if it is hired, its hiring, and posts what is held for it (`Task::entries_at_creation`), at once.
    /// Already exists: the request that its payment names has made one before.
    async fn create_task(&self, task: Task, hiring: Option<Hiring>) -> StoreResult<()>;
    /// A task.
    async fn task(&self, id: TaskId) -> StoreResult<Task>;
    /// The task that a request under a key has made.
    async fn task_of_request(&self, request: RequestHash) -> StoreResult<Task>;
    /// Tasks.
    async fn tasks(&self, filter: TaskFilter, page: PageRequest) -> StoreResult<Page<Task>>;
    /// Ends a task that is pending or in progress, settles what is held for it, and counts it for its provider. Fenced: its stream was claimed by
    /// another since, or the store has not every chunk that was given out.
    async fn finish_task(&self, finish: Finish) -> StoreResult<Task>;
    /// Gives a pending task, and its hiring, to another provider. Fenced: its stream was claimed by another since.
    async fn reassign_task(&self, reassign: Reassign) -> StoreResult<Task>;
    /// What happened to a task, oldest first.
    async fn timeline(&self, id: TaskId) -> StoreResult<Vec<TimelineEntry>>;
    /// Adds a note to a task, unless it has `notes_max`.
    async fn add_note(&self, task: TaskId, note: Note, notes_max: usize) -> StoreResult<()>;
    /// The notes of a task, oldest first.
    async fn notes(&self, task: TaskId) -> StoreResult<Vec<Note>>;
    /// The newest notes of all tasks of a hiring, oldest first.
    async fn notes_of_hiring(&self, hiring: HiringId, notes_max: usize) -> StoreResult<Vec<Note>>;
    /// A hiring.
    async fn hiring(&self, id: HiringId) -> StoreResult<Hiring>;
    /// Hirings.
    async fn hirings(&self, filter: HiringFilter, page: PageRequest) -> StoreResult<Page<Hiring>>;
    /// Gives a failed or cancelled hiring a new task.
    async fn retry_hiring(&self, id: HiringId, task: Task) -> StoreResult<Hiring>;
}

/// The logs of task streams.
#[async_trait]
pub trait StreamStore: Send + Sync + 'static {
    /// Claims a stream, after every append that was asked of this store before, and gives where it stands, with as many
    /// of its newest chunks as fit. Its epoch is higher than any given before, for any stream of the database; from now
    /// on whatever is asked under an older one is fenced off, even if the new owner never writes. The stream of a task
    /// that has ended takes nothing any more: it is not claimed, and the epoch is 0.
    async fn claim_stream(
        &self,
        task: TaskId,
        chunks_max: usize,
        bytes_max: usize,
    ) -> StoreResult<StreamHead>;
    /// The same without a claim: where the stream stood just now.
    async fn stream_head(&self, task: TaskId, chunks_max: usize, bytes_max: usize)
    -> StoreResult<StreamHead>;
    /// Appends; waits only for a place in the queue. `done` is called when the chunks are durable, in the order of the
    /// calls.
    async fn append_chunks(&self, append: Append, done: AppendDone);
    /// Chunks with `after < seq <= upto`, oldest first, at most about `bytes_max` of them but at least one if there is one.
    async fn read_chunks(
        &self,
        task: TaskId,
        after: u64,
        upto: u64,
        bytes_max: usize,
    ) -> StoreResult<Vec<Chunk>>;
    /// Seqs of the chunks of those keys, where there are such.
    async fn seqs_of_keys(&self, task: TaskId, keys: &[SmolStr]) -> StoreResult<Vec<(SmolStr, u64)>>;
    /// Drops chunks of tasks that ended before a time, about `rows_max` of them, oldest of a task first; gives how many, and
    /// 0 once there are none left.
    async fn purge_streams(&self, ended_before: Timestamp, rows_max: usize) -> StoreResult<usize>;
}

/// The whole store.
#[async_trait]
pub trait Store:
    AccountStore
    + TaskStore
    + StreamStore
    + MessageStore
    + LedgerStore
    + PaymentStore
    + TaskChannelStore
    + IdempotencyStore
    + MessageStore
    + HandoffStore
    + NegotiationStore
    + TeamStore
    + WebhookStore
{
    /// How many agents there are.
    async fn count_agents(&self) -> StoreResult<u64>;
    /// Writes and reads something: whether the store works.
    async fn check(&self, now: Timestamp) -> StoreResult<()>;
    /// Finishes what is queued and closes. Nothing is written afterwards.
    async fn close(&self);
}
