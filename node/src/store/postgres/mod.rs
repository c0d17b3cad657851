//! The store in PostgreSQL, which the nodes of a cluster share. Nothing rests on being its only writer: what is compared is
//! compared under a lock on its row, and a stream's log under the epoch of its last claim.
//!
//! # Layout
//! * [`connect`]: URL and TLS; [`pool`]: connections, and transactions that happen once whatever becomes of them;
//!   [`schema`]: migrations
//! * [`appends`]: group commit of chunks
//! * [`task_channels`], [`idempotency`]: the same with its part of the port
//! * `messages`: the same, and what is a write and what is a read of it
//! * [`webhooks`]: what waits for them; [`figures`]: over connections of their own
//! * [`accounts`], [`agents`], [`tasks`], [`streams`], [`teams`], [`negotiations`], [`ledger`], [`payments`]: the SQL of
//!   each transaction, over one connection
//! * [`columns`]: reading columns and rows
//! * this file: what is a write and what is a read

pub mod accounts;
pub mod agents;
pub mod appends;
pub mod columns;
pub mod connect;
pub mod figures;
pub mod handoffs;
pub mod idempotency;
pub mod ledger;
mod messages;
pub mod negotiations;
pub mod payments;
pub mod pool;
pub mod schema;
pub mod streams;
pub mod task_channels;
pub mod tasks;
pub mod teams;
#[cfg(test)]
mod tests;
pub mod webhooks;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use muster_actors::store::{
    AccountStore, Append, AppendDone, Finish, HiringFilter, Page, PageRequest, Reassign, Store, StoreError,
    StoreResult, StreamHead, StreamStore, TaskFilter, TaskStore,
};
use muster_protocol::account::{Credential, Owner, SecretHash, User};
use muster_protocol::agent::{Agent, AgentStatus};
use muster_protocol::discovery::Query;
use muster_protocol::escrow::RequestHash;
use muster_protocol::hiring::Hiring;
use muster_protocol::ids::{AgentId, CredentialId, HiringId, TaskId, UserId};
use muster_protocol::limits::Limits;
use muster_protocol::signing::PublicKey;
use muster_protocol::task::{Note, Task, TimelineEntry};
use muster_protocol::task_stream::Chunk;
use muster_protocol::time::Timestamp;
use smol_str::SmolStr;

use self::appends::{APPENDERS, Appends};
use self::connect::Target;
use self::figures::PostgresFigures;
use self::pool::{Pool, Tickets};
use super::answer::AppendAnswer;

/// How long the question whether the store works may take: whoever asks waits less than for a call.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// The store in PostgreSQL.
pub struct PostgresStore {
    pool: Arc<Pool>,
    /// Connections of the appenders: chunks do not wait for those who read.
    append_pool: Arc<Pool>,
    appends: Appends,
    tickets: Arc<Tickets>,
    target: Target,
}

/// Connections for figures.
const FIGURE_CONNECTIONS: usize = 2;

impl PostgresStore {
    /// Connects to a database and brings it to the newest version. `tls_ca` names a PEM file with the certificates to trust.
    ///
    /// # Errors
    /// The settings cannot be used, the database cannot be reached or written, or it is a newer one.
    pub async fn open(url: &str, tls_ca: Option<&Path>, limits: &Limits) -> StoreResult<Self> {
        let target = Target::new(url, tls_ca, limits)?;
        let tickets = Tickets::new();
        let connections_max = limits.store_connections_max.saturating_sub(APPENDERS).max(1);
        let pool = Arc::new(Pool::new(&target, connections_max, tickets.clone(), limits)?);
        // The database may be starting too.
        pool.read(|c| async move { c.count("SELECT 1::bigint", &[]).await }).await?;
        pool.once(|c| async move { schema::migrate(&c).await }).await?;
        let life = pool.read(|c| async move { c.count("SELECT nextval('writers')", &[]).await }).await?;
        tickets.begin_life(life);
        let append_pool = Arc::new(Pool::new(&target, APPENDERS, tickets.clone(), limits)?);
        let appends = Appends::start(&append_pool, limits);
        Ok(Self { pool, append_pool, appends, tickets, target })
    }

    /// The figures in the same database, over connections of their own.
    ///
    /// # Errors
    /// The pool cannot be built.
    pub fn figures(&self, limits: &Limits) -> StoreResult<PostgresFigures> {
        let pool = Pool::new(&self.target, FIGURE_CONNECTIONS, self.tickets.clone(), limits)?;
        Ok(PostgresFigures::new(pool))
    }
}

#[async_trait]
impl AccountStore for PostgresStore {
    async fn operator_hash(&self, first: SecretHash) -> StoreResult<SecretHash> {
        self.pool.write(|c| async move { accounts::operator_hash(&c, first).await }).await
    }

    async fn create_user(&self, user: User) -> StoreResult<()> {
        let user = &user;
        self.pool.write(|c| async move { accounts::create_user(&c, user).await }).await
    }

    async fn user(&self, id: UserId) -> StoreResult<User> {
        self.pool.read(|c| async move { accounts::user(&c, id).await }).await
    }

    async fn users(&self, page: PageRequest) -> StoreResult<Page<User>> {
        self.pool.read(|c| async move { accounts::users(&c, &page).await }).await
    }

    async fn create_credential(
        &self,
        credential: Credential,
        hash: SecretHash,
        live_max: usize,
    ) -> StoreResult<Vec<CredentialId>> {
        let credential = &credential;
        self.pool
            .write(|c| async move { accounts::create_credential(&c, credential, hash, live_max).await })
            .await
    }

    async fn purge_credentials(&self, ended_before: Timestamp, rows_max: usize) -> StoreResult<usize> {
        let settled = self.tickets.settled();
        self.pool
            .write(|c| async move {
                accounts::purge_writes(&c, settled).await?;
                accounts::purge_credentials(&c, ended_before, rows_max).await
            })
            .await
    }

    async fn caller_by_hash(&self, hash: SecretHash) -> StoreResult<(Credential, Option<Agent>)> {
        self.pool.read(|c| async move { accounts::caller_by_hash(&c, hash).await }).await
    }

    async fn credentials_of(&self, owner: Owner) -> StoreResult<Vec<Credential>> {
        self.pool.read(|c| async move { accounts::credentials_of(&c, owner).await }).await
    }

    async fn credentials_ended_since(
        &self,
        since: (Timestamp, Option<CredentialId>),
        limit: usize,
    ) -> StoreResult<Vec<(Timestamp, CredentialId)>> {
        self.pool.read(|c| async move { accounts::credentials_ended_since(&c, since, limit).await }).await
    }

    async fn revoke_credential(
        &self,
        owner: Owner,
        id: CredentialId,
        now: Timestamp,
    ) -> StoreResult<Vec<CredentialId>> {
        self.pool.write(|c| async move { accounts::revoke_credential(&c, owner, id, now).await }).await
    }

    async fn rotate_credential(
        &self,
        old: CredentialId,
        new: Credential,
        hash: SecretHash,
    ) -> StoreResult<Vec<CredentialId>> {
        let new = &new;
        self.pool.write(|c| async move { accounts::rotate_credential(&c, old, new, hash).await }).await
    }

    async fn create_agent(
        &self,
        agent: Agent,
        key: Credential,
        hash: SecretHash,
        agents_per_user_max: usize,
    ) -> StoreResult<()> {
        let agent = &agent;
        let key = &key;
        self.pool
            .write(|c| async move { agents::create_agent(&c, agent, key, hash, agents_per_user_max).await })
            .await
    }

    async fn agent(&self, id: AgentId) -> StoreResult<Agent> {
        self.pool.read(|c| async move { agents::agent(&c, id).await }).await
    }

    async fn agent_by_did(&self, did: &str) -> StoreResult<Agent> {
        self.pool.read(|c| async move { agents::agent_by_did(&c, did).await }).await
    }

    async fn agents_of(&self, user: UserId, page: PageRequest) -> StoreResult<Page<Agent>> {
        self.pool.read(|c| async move { agents::agents_of(&c, user, &page).await }).await
    }

    async fn claim_agent(&self, id: AgentId, user: UserId, now: Timestamp) -> StoreResult<Agent> {
        self.pool.write(|c| async move { agents::claim_agent(&c, id, user, now).await }).await
    }

    async fn update_agent(&self, read: &Agent, new: Agent) -> StoreResult<()> {
        let new = &new;
        self.pool.write(|c| async move { agents::update_agent(&c, read, new).await }).await
    }

    async fn was_key_of(&self, id: AgentId, key: PublicKey) -> StoreResult<bool> {
        self.pool.read(|c| async move { agents::was_key_of(&c, id, key).await }).await
    }

    async fn set_agent_status(&self, id: AgentId, status: AgentStatus, now: Timestamp) -> StoreResult<Agent> {
        self.pool.write(|c| async move { agents::set_agent_status(&c, id, status, now).await }).await
    }

    async fn agents_stopped_since(
        &self,
        since: (Timestamp, Option<AgentId>),
        limit: usize,
    ) -> StoreResult<Vec<(Timestamp, AgentId)>> {
        self.pool.read(|c| async move { agents::agents_stopped_since(&c, since, limit).await }).await
    }

    async fn set_last_seen(&self, id: AgentId, now: Timestamp) -> StoreResult<()> {
        self.pool.write(|c| async move { agents::set_last_seen(&c, id, now).await }).await
    }

    async fn find_agents(
        &self,
        query: &Query,
        except: &HashSet<AgentId>,
        limit: usize,
    ) -> StoreResult<Vec<Agent>> {
        self.pool.read(|c| async move { agents::find_agents(&c, query, except, limit).await }).await
    }

    async fn capabilities(&self, limit: usize) -> StoreResult<Vec<(String, u64)>> {
        self.pool.read(|c| async move { agents::capabilities(&c, limit).await }).await
    }

    async fn block(
        &self,
        by: AgentId,
        other: AgentId,
        until: Option<Timestamp>,
        blocks_max: usize,
    ) -> StoreResult<()> {
        self.pool.write(|c| async move { agents::block(&c, by, other, until, blocks_max).await }).await
    }

    async fn unblock(&self, by: AgentId, other: AgentId) -> StoreResult<()> {
        self.pool.write(|c| async move { agents::unblock(&c, by, other).await }).await
    }

    async fn blocks_by(
        &self,
        agent: AgentId,
        now: Timestamp,
    ) -> StoreResult<Vec<(AgentId, Option<Timestamp>)>> {
        self.pool.read(|c| async move { agents::blocks_by(&c, agent, now).await }).await
    }

    async fn blocked_pairs(
        &self,
        agent: AgentId,
        now: Timestamp,
    ) -> StoreResult<HashMap<AgentId, Option<Timestamp>>> {
        self.pool.read(|c| async move { agents::blocked_pairs(&c, agent, now).await }).await
    }
}

#[async_trait]
impl TaskStore for PostgresStore {
    async fn create_task(&self, task: Task, hiring: Option<Hiring>) -> StoreResult<()> {
        let task = &task;
        let hiring = hiring.as_ref();
        self.pool.write(|c| async move { tasks::create_task(&c, task, hiring).await }).await
    }

    async fn task(&self, id: TaskId) -> StoreResult<Task> {
        self.pool.read(|c| async move { tasks::task(&c, id).await }).await
    }

    async fn task_of_request(&self, request: RequestHash) -> StoreResult<Task> {
        self.pool.read(|c| async move { tasks::task_of_request(&c, request).await }).await
    }

    async fn tasks(&self, filter: TaskFilter, page: PageRequest) -> StoreResult<Page<Task>> {
        self.pool.read(|c| async move { tasks::tasks(&c, &filter, &page).await }).await
    }

    async fn finish_task(&self, finish: Finish) -> StoreResult<Task> {
        self.appends.settle(finish.task).await?;
        let finish = &finish;
        self.pool.write(|c| async move { tasks::finish_task(&c, finish).await }).await
    }

    async fn reassign_task(&self, reassign: Reassign) -> StoreResult<Task> {
        self.appends.settle(reassign.task).await?;
        let reassign = &reassign;
        self.pool.write(|c| async move { tasks::reassign_task(&c, reassign).await }).await
    }

    async fn timeline(&self, id: TaskId) -> StoreResult<Vec<TimelineEntry>> {
        self.pool.read(|c| async move { tasks::timeline(&c, id).await }).await
    }

    async fn add_note(&self, task: TaskId, note: Note, notes_max: usize) -> StoreResult<()> {
        let note = &note;
        self.pool.write(|c| async move { tasks::add_note(&c, task, note, notes_max).await }).await
    }

    async fn notes(&self, task: TaskId) -> StoreResult<Vec<Note>> {
        self.pool.read(|c| async move { tasks::notes(&c, task).await }).await
    }

    async fn notes_of_hiring(&self, hiring: HiringId, notes_max: usize) -> StoreResult<Vec<Note>> {
        self.pool.read(|c| async move { tasks::notes_of_hiring(&c, hiring, notes_max).await }).await
    }

    async fn hiring(&self, id: HiringId) -> StoreResult<Hiring> {
        self.pool.read(|c| async move { tasks::hiring(&c, id).await }).await
    }

    async fn hirings(&self, filter: HiringFilter, page: PageRequest) -> StoreResult<Page<Hiring>> {
        self.pool.read(|c| async move { tasks::hirings(&c, &filter, &page).await }).await
    }

    async fn retry_hiring(&self, id: HiringId, task: Task) -> StoreResult<Hiring> {
        let task = &task;
        self.pool.write(|c| async move { tasks::retry_hiring(&c, id, task).await }).await
    }
}

#[async_trait]
impl StreamStore for PostgresStore {
    async fn claim_stream(
        &self,
        task: TaskId,
        chunks_max: usize,
        bytes_max: usize,
    ) -> StoreResult<StreamHead> {
        // Behind the appends that wait: those of an earlier life of this stream, which has just crashed, belong to it.
        self.appends.settle(task).await?;
        // Whoever asks for tasks that are not there, or have ended, writes nothing.
        if self.task(task).await?.status.is_final() {
            return self.stream_head(task, chunks_max, bytes_max).await;
        }
        self.pool.write(|c| async move { streams::claim_stream(&c, task, chunks_max, bytes_max).await }).await
    }

    async fn stream_head(
        &self,
        task: TaskId,
        chunks_max: usize,
        bytes_max: usize,
    ) -> StoreResult<StreamHead> {
        self.pool.read(|c| async move { streams::stream_head(&c, task, chunks_max, bytes_max).await }).await
    }

    async fn append_chunks(&self, append: Append, done: AppendDone) {
        self.appends.append(append, AppendAnswer::new(done)).await;
    }

    async fn read_chunks(
        &self,
        task: TaskId,
        after: u64,
        upto: u64,
        bytes_max: usize,
    ) -> StoreResult<Vec<Chunk>> {
        self.pool
            .read(|c| async move { streams::read_chunks(&c, task, (after, upto), bytes_max).await })
            .await
    }

    async fn seqs_of_keys(&self, task: TaskId, keys: &[SmolStr]) -> StoreResult<Vec<(SmolStr, u64)>> {
        self.pool.read(|c| async move { streams::seqs_of_keys(&c, task, keys).await }).await
    }

    async fn purge_streams(&self, ended_before: Timestamp, rows_max: usize) -> StoreResult<usize> {
        self.pool.write(|c| async move { streams::purge_streams(&c, ended_before, rows_max).await }).await
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn count_agents(&self) -> StoreResult<u64> {
        self.pool.read(|c| async move { c.count("SELECT count(*) FROM agents", &[]).await }).await
    }

    async fn check(&self, now: Timestamp) -> StoreResult<()> {
        let check = self.pool.write(|c| async move { accounts::check(&c, now).await });
        let late = |_| Err(StoreError::Unavailable("the database does not answer".into()));
        tokio::time::timeout(CHECK_TIMEOUT, check).await.unwrap_or_else(late)
    }

    async fn close(&self) {
        self.appends.close().await;
        self.pool.close();
        self.append_pool.close();
    }
}
