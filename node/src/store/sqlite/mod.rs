//! The embedded store: SQLite with a write-ahead log, `synchronous=FULL`, one writer with group commit, and a few
//! readers.
//!
//! # Layout
//! * [`writer`]: group commit; [`journal`]: chunks on their way to the table; [`readers`]: the pool; [`schema`]: migrations
//! * [`task_channels`], [`idempotency`]: the same with its part of the port
//! * `messages`: the same, and what is a write and what is a read of it
//! * [`webhooks`]: what waits for them; [`figures`]: a database of its own
//! * [`accounts`], [`agents`], [`tasks`], [`streams`], [`teams`], [`negotiations`], [`ledger`], [`payments`]: the SQL of
//!   each transaction, over one connection
//! * [`columns`]: reading columns and rows
//! * this file: what is a write and what is a read

pub mod accounts;
pub mod agents;
pub mod columns;
pub mod figures;
pub mod handoffs;
pub mod idempotency;
pub mod journal;
pub mod ledger;
mod messages;
pub mod negotiations;
pub mod payments;
pub mod readers;
pub mod schema;
pub mod streams;
pub mod task_channels;
pub mod tasks;
pub mod teams;
pub mod webhooks;
pub mod writer;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

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
use parking_lot::Mutex;
use rusqlite::Connection;
use smol_str::SmolStr;
use tokio::sync::oneshot;

use self::journal::{Journal, Memtable};
use self::readers::Readers;
use self::writer::{Answer, Write, Writer};
use super::answer::AppendAnswer;

/// The embedded store.
pub struct SqliteStore {
    writer: Writer,
    readers: Arc<Readers>,
    /// Chunks that are durable but not in their table yet.
    memtable: Arc<Mutex<Memtable>>,
    /// Held as long as the store is open: two processes on one folder would fence each other off in turns.
    _lock: File,
}

/// Connections that read.
const READERS: usize = 4;
/// Pages of 4 KiB that the write-ahead log gathers before they are copied into the database.
const WAL_PAGES: i64 = 8_192;

impl SqliteStore {
    /// Opens the database in a folder, creating both if need be.
    ///
    /// # Errors
    /// The folder cannot be written, is in use by another process, or holds a newer database.
    pub fn open(folder: &Path, limits: &Limits) -> StoreResult<Self> {
        let failed = |what: &str, error: std::io::Error| {
            StoreError::Unavailable(format!("{what} {}: {error}", folder.display()))
        };
        // What is in it is nobody else's on this machine.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| failed("cannot create", error))?;
        let lock = File::create(folder.join("muster.lock")).map_err(|error| failed("cannot lock", error))?;
        lock.try_lock().map_err(|_| {
            StoreError::Unavailable(format!("{} is in use by another process", folder.display()))
        })?;
        let path = folder.join("muster.db");
        let mut connection = Connection::open(&path).map_err(sql_error)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(sql_error)?;
        // Every commit reaches the disk before it is answered: kill -9 is not the worst that happens to a machine.
        connection.pragma_update(None, "synchronous", "FULL").map_err(sql_error)?;
        // Logs of many streams grow at once, so the same pages change again and again: gathered longer, they are copied
        // back less often.
        connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES).map_err(sql_error)?;
        connection.pragma_update(None, "foreign_keys", true).map_err(sql_error)?;
        configure(&connection)?;
        schema::migrate(&mut connection)?;
        let readers = Arc::new(Readers::open(&path, READERS)?);
        let journal = Journal::load(&connection, limits.store_journal_bytes_max)?;
        let memtable = journal.memtable();
        let writer = Writer::start(connection, journal, limits)
            .map_err(|error| failed("cannot start a thread for", error))?;
        Ok(Self { writer, readers, memtable, _lock: lock })
    }

    /// Runs a write and gives its result once it is durable.
    async fn write<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Connection) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        self.write_settled(None, run).await
    }

    /// Runs a write before which every chunk of a task is moved to the table.
    async fn write_settled<T: Send + 'static>(
        &self,
        settled: Option<TaskId>,
        run: impl FnOnce(&Connection) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let (reply, answer) = oneshot::channel();
        let run = Box::new(move |connection: &Connection| {
            let result = run(connection);
            let outcome = result.as_ref().map(|_| ()).map_err(Clone::clone);
            let answer: Answer = Box::new(move |failed| {
                // A refusal stands whether or not the rest was committed.
                let result = match (result, failed) {
                    (Ok(_), Some(error)) => Err(error.clone()),
                    (result, _) => result,
                };
                let _caller_gone = reply.send(result);
            });
            (outcome, answer)
        });
        self.writer.submit(Write::Rows { settled, run }).await;
        answer.await.unwrap_or_else(|_| Err(StoreError::Unavailable("closed".into())))
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        self.readers.read(read).await
    }
}

/// Settings of every connection.
fn configure(connection: &Connection) -> StoreResult<()> {
    connection.set_prepared_statement_cache_capacity(128);
    connection.busy_timeout(std::time::Duration::from_secs(5)).map_err(sql_error)?;
    connection.pragma_update(None, "cache_size", -16_384).map_err(sql_error)
}

/// What an error of SQLite means.
fn sql_error(error: rusqlite::Error) -> StoreError {
    match &error {
        rusqlite::Error::QueryReturnedNoRows => StoreError::NotFound,
        rusqlite::Error::SqliteFailure(failure, _)
            if failure.code == rusqlite::ErrorCode::ConstraintViolation
                && matches!(
                    failure.extended_code,
                    rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE | rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY
                ) =>
        {
            StoreError::AlreadyExists
        }
        _ => StoreError::Unavailable(error.to_string()),
    }
}

#[async_trait]
impl AccountStore for SqliteStore {
    async fn operator_hash(&self, first: SecretHash) -> StoreResult<SecretHash> {
        self.write(move |c| accounts::operator_hash(c, first)).await
    }

    async fn create_user(&self, user: User) -> StoreResult<()> {
        self.write(move |c| accounts::create_user(c, &user)).await
    }

    async fn user(&self, id: UserId) -> StoreResult<User> {
        self.read(move |c| accounts::user(c, id)).await
    }

    async fn users(&self, page: PageRequest) -> StoreResult<Page<User>> {
        self.read(move |c| accounts::users(c, &page)).await
    }

    async fn create_credential(
        &self,
        credential: Credential,
        hash: SecretHash,
        live_max: usize,
    ) -> StoreResult<Vec<CredentialId>> {
        self.write(move |c| accounts::create_credential(c, &credential, hash, live_max)).await
    }

    async fn purge_credentials(&self, ended_before: Timestamp, rows_max: usize) -> StoreResult<usize> {
        self.write(move |c| accounts::purge_credentials(c, ended_before, rows_max)).await
    }

    async fn caller_by_hash(&self, hash: SecretHash) -> StoreResult<(Credential, Option<Agent>)> {
        self.read(move |c| accounts::caller_by_hash(c, hash)).await
    }

    async fn credentials_of(&self, owner: Owner) -> StoreResult<Vec<Credential>> {
        self.read(move |c| accounts::credentials_of(c, owner)).await
    }

    async fn credentials_ended_since(
        &self,
        since: (Timestamp, Option<CredentialId>),
        limit: usize,
    ) -> StoreResult<Vec<(Timestamp, CredentialId)>> {
        self.read(move |c| accounts::credentials_ended_since(c, since, limit)).await
    }

    async fn revoke_credential(
        &self,
        owner: Owner,
        id: CredentialId,
        now: Timestamp,
    ) -> StoreResult<Vec<CredentialId>> {
        self.write(move |c| accounts::revoke_credential(c, owner, id, now)).await
    }

    async fn rotate_credential(
        &self,
        old: CredentialId,
        new: Credential,
        hash: SecretHash,
    ) -> StoreResult<Vec<CredentialId>> {
        self.write(move |c| accounts::rotate_credential(c, old, &new, hash)).await
    }

    async fn create_agent(
        &self,
        agent: Agent,
        key: Credential,
        hash: SecretHash,
        agents_per_user_max: usize,
    ) -> StoreResult<()> {
        self.write(move |c| agents::create_agent(c, &agent, &key, hash, agents_per_user_max)).await
    }

    async fn agent(&self, id: AgentId) -> StoreResult<Agent> {
        self.read(move |c| agents::agent(c, id)).await
    }

    async fn agent_by_did(&self, did: &str) -> StoreResult<Agent> {
        let did = did.to_owned();
        self.read(move |c| agents::agent_by_did(c, &did)).await
    }

    async fn agents_of(&self, user: UserId, page: PageRequest) -> StoreResult<Page<Agent>> {
        self.read(move |c| agents::agents_of(c, user, &page)).await
    }

    async fn claim_agent(&self, id: AgentId, user: UserId, now: Timestamp) -> StoreResult<Agent> {
        self.write(move |c| agents::claim_agent(c, id, user, now)).await
    }

    async fn update_agent(&self, read: &Agent, new: Agent) -> StoreResult<()> {
        let read = read.clone();
        self.write(move |c| agents::update_agent(c, &read, &new)).await
    }

    async fn was_key_of(&self, id: AgentId, key: PublicKey) -> StoreResult<bool> {
        let sql = "SELECT count(*) FROM former_public_keys WHERE agent = ?1 AND public_key = ?2";
        self.read(move |c| Ok(columns::count(c, sql, &[id.as_bytes(), key.as_bytes()])? > 0)).await
    }

    async fn set_agent_status(&self, id: AgentId, status: AgentStatus, now: Timestamp) -> StoreResult<Agent> {
        self.write(move |c| agents::set_agent_status(c, id, status, now)).await
    }

    async fn agents_stopped_since(
        &self,
        since: (Timestamp, Option<AgentId>),
        limit: usize,
    ) -> StoreResult<Vec<(Timestamp, AgentId)>> {
        self.read(move |c| agents::agents_stopped_since(c, since, limit)).await
    }

    async fn set_last_seen(&self, id: AgentId, now: Timestamp) -> StoreResult<()> {
        self.write(move |c| agents::set_last_seen(c, id, now)).await
    }

    async fn find_agents(
        &self,
        query: &Query,
        except: &HashSet<AgentId>,
        limit: usize,
    ) -> StoreResult<Vec<Agent>> {
        let (query, except) = (query.clone(), except.clone());
        self.read(move |c| agents::find_agents(c, &query, &except, limit)).await
    }

    async fn capabilities(&self, limit: usize) -> StoreResult<Vec<(String, u64)>> {
        self.read(move |c| agents::capabilities(c, limit)).await
    }

    async fn block(
        &self,
        by: AgentId,
        other: AgentId,
        until: Option<Timestamp>,
        blocks_max: usize,
    ) -> StoreResult<()> {
        self.write(move |c| agents::block(c, by, other, until, blocks_max)).await
    }

    async fn unblock(&self, by: AgentId, other: AgentId) -> StoreResult<()> {
        self.write(move |c| agents::unblock(c, by, other)).await
    }

    async fn blocks_by(
        &self,
        agent: AgentId,
        now: Timestamp,
    ) -> StoreResult<Vec<(AgentId, Option<Timestamp>)>> {
        self.read(move |c| agents::blocks_by(c, agent, now)).await
    }

    async fn blocked_pairs(
        &self,
        agent: AgentId,
        now: Timestamp,
    ) -> StoreResult<HashMap<AgentId, Option<Timestamp>>> {
        self.read(move |c| agents::blocked_pairs(c, agent, now)).await
    }
}

#[async_trait]
impl TaskStore for SqliteStore {
    async fn create_task(&self, task: Task, hiring: Option<Hiring>) -> StoreResult<()> {
        self.write(move |c| tasks::create_task(c, &task, hiring.as_ref())).await
    }

    async fn task(&self, id: TaskId) -> StoreResult<Task> {
        self.read(move |c| tasks::task(c, id)).await
    }

    async fn task_of_request(&self, request: RequestHash) -> StoreResult<Task> {
        self.read(move |c| tasks::task_of_request(c, request)).await
    }

    async fn tasks(&self, filter: TaskFilter, page: PageRequest) -> StoreResult<Page<Task>> {
        self.read(move |c| tasks::tasks(c, &filter, &page)).await
    }

    async fn finish_task(&self, finish: Finish) -> StoreResult<Task> {
        self.write_settled(Some(finish.task), move |c| tasks::finish_task(c, &finish)).await
    }

    async fn reassign_task(&self, reassign: Reassign) -> StoreResult<Task> {
        self.write(move |c| tasks::reassign_task(c, &reassign)).await
    }

    async fn timeline(&self, id: TaskId) -> StoreResult<Vec<TimelineEntry>> {
        self.read(move |c| tasks::timeline(c, id)).await
    }

    async fn add_note(&self, task: TaskId, note: Note, notes_max: usize) -> StoreResult<()> {
        self.write(move |c| tasks::add_note(c, task, &note, notes_max)).await
    }

    async fn notes(&self, task: TaskId) -> StoreResult<Vec<Note>> {
        self.read(move |c| tasks::notes(c, task)).await
    }

    async fn notes_of_hiring(&self, hiring: HiringId, notes_max: usize) -> StoreResult<Vec<Note>> {
        self.read(move |c| tasks::notes_of_hiring(c, hiring, notes_max)).await
    }

    async fn hiring(&self, id: HiringId) -> StoreResult<Hiring> {
        self.read(move |c| tasks::hiring(c, id)).await
    }

    async fn hirings(&self, filter: HiringFilter, page: PageRequest) -> StoreResult<Page<Hiring>> {
        self.read(move |c| tasks::hirings(c, &filter, &page)).await
    }

    async fn retry_hiring(&self, id: HiringId, task: Task) -> StoreResult<Hiring> {
        self.write(move |c| tasks::retry_hiring(c, id, &task)).await
    }
}

#[async_trait]
impl StreamStore for SqliteStore {
    async fn claim_stream(
        &self,
        task: TaskId,
        chunks_max: usize,
        bytes_max: usize,
    ) -> StoreResult<StreamHead> {
        // Whoever asks for tasks that are not there costs no place in the queue.
        self.read(move |c| tasks::task(c, task)).await?;
        // Behind the appends that wait: those of an earlier life of this stream, which has just crashed, belong to it.
        self.write_settled(Some(task), move |c| streams::claim_stream(c, task, chunks_max, bytes_max)).await
    }

    async fn stream_head(
        &self,
        task: TaskId,
        chunks_max: usize,
        bytes_max: usize,
    ) -> StoreResult<StreamHead> {
        // First what the table may not have yet, as in `read_chunks`.
        let fresh = self.memtable.lock().newest(task, chunks_max);
        let mut head = self.read(move |c| streams::stream_head(c, task, chunks_max, bytes_max)).await?;
        if let Some((last_seq, fresh)) = fresh {
            head.last_seq = head.last_seq.max(last_seq);
            head.newest = journal::newest(head.newest, fresh, chunks_max, bytes_max);
        }
        Ok(head)
    }

    async fn append_chunks(&self, append: Append, done: AppendDone) {
        self.writer.submit(Write::Append { append, done: AppendAnswer::new(done) }).await;
    }

    async fn read_chunks(
        &self,
        task: TaskId,
        after: u64,
        upto: u64,
        bytes_max: usize,
    ) -> StoreResult<Vec<Chunk>> {
        // First what the table may not have yet; the snapshot of the table is taken later.
        let fresh = self.memtable.lock().read(task, (after, upto), bytes_max);
        let before = match fresh.first() {
            Some(first) if first.seq == after + 1 => return Ok(fresh),
            Some(first) => first.seq - 1,
            None => upto,
        };
        let stored = self.read(move |c| streams::read_chunks(c, task, (after, before), bytes_max)).await?;
        Ok(journal::joined(stored, &fresh, bytes_max))
    }

    async fn seqs_of_keys(&self, task: TaskId, keys: &[SmolStr]) -> StoreResult<Vec<(SmolStr, u64)>> {
        let fresh: Vec<Option<u64>> = {
            let memtable = self.memtable.lock();
            let tail = memtable.tail(task);
            keys.iter().map(|key| tail.and_then(|tail| tail.seq_of_key(key))).collect()
        };
        let keys: Vec<_> = keys.iter().cloned().zip(fresh).collect();
        let found = move |c: &Connection| {
            let mut found = Vec::new();
            for (key, fresh) in keys {
                let seq = if fresh.is_some() { fresh } else { streams::seq_of_key(c, task, &key)? };
                found.extend(seq.map(|seq| (key, seq)));
            }
            Ok(found)
        };
        self.read(found).await
    }

    async fn purge_streams(&self, ended_before: Timestamp, rows_max: usize) -> StoreResult<usize> {
        self.write(move |c| streams::purge_streams(c, ended_before, rows_max)).await
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn count_agents(&self) -> StoreResult<u64> {
        self.read(move |c| columns::count(c, "SELECT count(*) FROM agents", &[])).await
    }

    async fn check(&self, now: Timestamp) -> StoreResult<()> {
        self.write(move |c| accounts::check(c, now)).await
    }

    async fn close(&self) {
        self.writer.close().await;
        self.readers.close();
    }
}
