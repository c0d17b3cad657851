//! Group commit: a few tasks, each with the appends of its share of the streams. A task takes all that waits, of however
//! many streams, and stores it in one transaction of a handful of statements.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures_util::future::try_join;
use muster_actors::store::{Append, StoreError, StoreResult};
use muster_protocol::ids::TaskId;
use muster_protocol::limits::Limits;
use muster_protocol::task::TaskStatus;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::columns::{Id, id, id_bytes};
use super::pool::{Connection, Failure, Pool};
use super::streams::{HEAD_COLUMNS, read_head};
use super::tasks;
use crate::store::answer::AppendAnswer;
use crate::store::head::Head;
use crate::store::queue::{COMPANY, Queue};
use crate::store::sql::whole;

/// Tasks that append, each over a connection of its own.
pub const APPENDERS: usize = 4;
/// Bytes of one transaction, as [`Append::weight`] counts them; one append may be more.
const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What waits for an appender.
enum Waiting {
    Append(Append, AppendAnswer),
    /// Told when everything before is done.
    Settled(oneshot::Sender<()>),
}

impl Waiting {
    fn rows(&self) -> usize {
        match self {
            Self::Append(append, _) => append.chunks.len(),
            Self::Settled(_) => 0,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Append(append, _) => append.weight(),
            Self::Settled(_) => 0,
        }
    }

    fn is_awaited(&self) -> bool {
        match self {
            Self::Append(append, _) => append.is_awaited,
            Self::Settled(_) => true,
        }
    }
}

/// The ways to the appenders.
pub struct Appends {
    queues: Vec<Queue<Waiting>>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl Appends {
    /// Starts them.
    #[must_use]
    pub fn start(pool: &Arc<Pool>, limits: &Limits) -> Self {
        let places = (limits.store_queue_writes_max / APPENDERS).max(1);
        let (mut queues, mut workers) = (Vec::new(), Vec::new());
        for _ in 0..APPENDERS {
            let (queue, waiting) = Queue::new(places);
            queues.push(queue);
            let appender = Appender { pool: pool.clone(), waiting, rows_max: limits.store_batch_rows_max };
            workers.push(tokio::spawn(appender.run()));
        }
        Self { queues, workers: Mutex::new(workers) }
    }

    /// Queues an append, waiting for a place.
    pub async fn append(&self, append: Append, done: AppendAnswer) {
        self.queue(append.task).submit(Waiting::Append(append, done)).await;
    }

    /// Waits until every append to that stream that was asked for before is done.
    ///
    /// # Errors
    /// The store is closed.
    pub async fn settle(&self, task: TaskId) -> StoreResult<()> {
        let (tell, told) = oneshot::channel();
        self.queue(task).submit(Waiting::Settled(tell)).await;
        told.await.map_err(|_| StoreError::Unavailable("closed".into()))
    }

    fn queue(&self, task: TaskId) -> &Queue<Waiting> {
        // The last byte of an id is random.
        &self.queues[usize::from(task.as_bytes()[15]) % APPENDERS]
    }

    /// Finishes what is queued and ends the appenders.
    pub async fn close(&self) {
        self.queues.iter().for_each(Queue::close);
        let workers = std::mem::take(&mut *self.workers.lock());
        for worker in workers {
            if worker.await.is_err() {
                tracing::error!("an appender of the store did not end in order");
            }
        }
    }
}

struct Appender {
    pool: Arc<Pool>,
    waiting: mpsc::Receiver<Waiting>,
    rows_max: usize,
}

impl Appender {
    async fn run(mut self) {
        while let Some(first) = self.waiting.recv().await {
            let batch = self.gather(first).await;
            self.store(batch).await;
        }
    }

    /// What waits, as far as it goes into one transaction; if nobody waits for any of it, with a little company.
    async fn gather(&mut self, first: Waiting) -> Vec<Waiting> {
        let (mut rows, mut bytes) = (first.rows(), first.bytes());
        let mut is_awaited = first.is_awaited();
        let mut batch = vec![first];
        let until = tokio::time::sleep(COMPANY);
        tokio::pin!(until);
        while rows < self.rows_max && bytes < BATCH_BYTES_MAX {
            let next = match self.waiting.try_recv() {
                Ok(next) => next,
                Err(_) if is_awaited => break,
                Err(_) => {
                    let next = tokio::select! {
                        biased;
                        next = self.waiting.recv() => next,
                        () = &mut until => None,
                    };
                    let Some(next) = next else { break };
                    next
                }
            };
            rows += next.rows();
            bytes += next.bytes();
            is_awaited |= next.is_awaited();
            batch.push(next);
        }
        batch
    }

    async fn store(&self, batch: Vec<Waiting>) {
        let (mut appends, mut answers, mut settled) = (Vec::new(), Vec::new(), Vec::new());
        for waiting in batch {
            match waiting {
                Waiting::Append(append, answer) => {
                    appends.push(append);
                    answers.push(answer);
                }
                Waiting::Settled(tell) => settled.push(tell),
            }
        }
        let results = if appends.is_empty() {
            Ok(Vec::new())
        } else {
            let appends = &appends;
            self.pool.write(|c| async move { append_all(&c, appends).await }).await
        };
        if let Err(error) = &results {
            tracing::error!(%error, appends = appends.len(), "store transaction failed");
        }
        let mut results = results.map(Vec::into_iter);
        for answer in answers {
            let result = match &mut results {
                Ok(results) => {
                    results.next().unwrap_or_else(|| Err(StoreError::Unavailable("no answer".into())))
                }
                Err(error) => Err(error.clone()),
            };
            // Whoever is told may fail; the others are told, and the appender goes on.
            if catch_unwind(AssertUnwindSafe(|| answer.give(result))).is_err() {
                tracing::error!("the answer of an append crashed");
            }
        }
        for tell in settled {
            let _gone = tell.send(());
        }
    }
}

/// Appends to many streams in one transaction. A refusal concerns one append alone.
async fn append_all(c: &Connection, appends: &[Append]) -> Result<Vec<StoreResult<()>>, Failure> {
    let mut streams: Vec<Id> = appends.iter().map(|append| id!(append.task)).collect();
    // All nodes lock in this order, so that none waits for another in a circle.
    streams.sort_unstable();
    streams.dedup();
    let sql =
        format!("SELECT {HEAD_COLUMNS} FROM streams WHERE task = ANY ($1) ORDER BY task FOR NO KEY UPDATE");
    // Sent together. Keys that are looked up before the lock is had are no staler for that: whoever owned a stream before
    // had stored everything by the time of the claim.
    let (rows, taken) = try_join(async { c.query(&sql, &[&streams]).await }, taken_keys(c, appends)).await?;
    let heads = rows.iter().map(read_head).collect::<Result<HashMap<_, _>, _>>()?;
    let mut verdict = Verdict::of(appends, &heads, &taken, &HashMap::new());
    if !verdict.begun.is_empty() {
        let wrong = begin_tasks(c, appends, &verdict.begun).await?;
        if !wrong.is_empty() {
            verdict = Verdict::of(appends, &heads, &taken, &wrong);
        }
    }
    let accepted: Vec<&Append> = appends
        .iter()
        .zip(&verdict.results)
        .filter(|(_, result)| result.is_ok())
        .map(|(append, _)| append)
        .collect();
    insert(c, &accepted, &verdict).await?;
    Ok(verdict.results)
}

/// Keys of these appends that chunks of before have.
async fn taken_keys(c: &Connection, appends: &[Append]) -> Result<HashSet<(TaskId, String)>, Failure> {
    let (mut of, mut keys) = (Vec::new(), Vec::new());
    for append in appends {
        for key in append.chunks.iter().filter_map(|chunk| chunk.idempotency_key.as_deref()) {
            of.push(id!(append.task));
            keys.push(key);
        }
    }
    if keys.is_empty() {
        return Ok(HashSet::new());
    }
    let sql = "SELECT chunks.task, chunks.key FROM unnest($1::uuid[], $2::text[]) x (task, key)
               JOIN chunks ON chunks.task = x.task AND chunks.key = x.key";
    let rows = c.query(sql, &[&of, &keys]).await?;
    rows.iter().map(|row| Ok((TaskId::from_bytes(id_bytes(row, 0)?), row.try_get(1)?))).collect()
}

/// Moves tasks to in progress; gives the state of those that cannot begin.
async fn begin_tasks(
    c: &Connection,
    appends: &[Append],
    begun: &[usize],
) -> Result<HashMap<TaskId, TaskStatus>, Failure> {
    let asked: Vec<_> = begun.iter().map(|place| (appends[*place].task, appends[*place].now)).collect();
    let began: HashSet<TaskId> = tasks::begin(c, &asked).await?.into_iter().collect();
    let mut wrong = HashMap::new();
    for (task, _) in asked {
        if !began.contains(&task) {
            let status = tasks::task(c, task).await?.status;
            // It may have begun by another way: that is as good.
            if status != TaskStatus::InProgress {
                wrong.insert(task, status);
            }
        }
    }
    Ok(wrong)
}

/// What becomes of each append.
struct Verdict {
    results: Vec<StoreResult<()>>,
    /// Places of the appends that begin their task.
    begun: Vec<usize>,
    /// Where the streams end afterwards, of those that grow.
    ends: HashMap<TaskId, u64>,
    /// Streams that get their first chunk.
    firsts: Vec<Id>,
}

impl Verdict {
    fn of(
        appends: &[Append],
        heads: &HashMap<TaskId, Head>,
        taken: &HashSet<(TaskId, String)>,
        wrong: &HashMap<TaskId, TaskStatus>,
    ) -> Self {
        let mut verdict =
            Self { results: Vec::new(), begun: Vec::new(), ends: HashMap::new(), firsts: Vec::new() };
        let mut keys: HashSet<(TaskId, &str)> = HashSet::new();
        for (place, append) in appends.iter().enumerate() {
            let result = match (heads.get(&append.task), wrong.get(&append.task)) {
                _ if append.chunks.is_empty() => Ok(()),
                (Some(_), Some(status)) if append.begins_task => Err(StoreError::WrongStatus(*status)),
                (Some(head), _) => verdict.admit(place, append, head, taken, &mut keys),
                (None, _) => Err(StoreError::Fenced),
            };
            verdict.results.push(result);
        }
        verdict
    }

    fn admit<'a>(
        &mut self,
        place: usize,
        append: &'a Append,
        head: &Head,
        taken: &HashSet<(TaskId, String)>,
        keys: &mut HashSet<(TaskId, &'a str)>,
    ) -> StoreResult<()> {
        let last_seq = self.ends.get(&append.task).copied().unwrap_or(head.last_seq);
        // A claim stands in its row before anybody writes under it, so an epoch that is not there is nobody's.
        if append.epoch != head.epoch || !(Head { last_seq, ..*head }).admits(append) {
            return Err(StoreError::Fenced);
        }
        let mut own = HashSet::new();
        for key in append.chunks.iter().filter_map(|chunk| chunk.idempotency_key.as_deref()) {
            let known = keys.contains(&(append.task, key)) || taken.contains(&(append.task, key.to_owned()));
            // Another writer gave it out: this one is not the owner any more.
            if known || !own.insert((append.task, key)) {
                return Err(StoreError::Fenced);
            }
        }
        keys.extend(own);
        if append.begins_task {
            self.begun.push(place);
        }
        if last_seq == 0 {
            self.firsts.push(id!(append.task));
        }
        self.ends.insert(append.task, last_seq + append.chunks.len() as u64);
        Ok(())
    }
}

/// Writes the rows, all statements in one round trip.
async fn insert(c: &Connection, accepted: &[&Append], verdict: &Verdict) -> Result<(), Failure> {
    let (mut of, mut seqs, mut keys, mut bodies) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for append in accepted {
        for chunk in &append.chunks {
            of.push(id!(append.task));
            seqs.push(whole(chunk.seq));
            keys.push(chunk.idempotency_key.as_deref());
            bodies.push(chunk.body.as_bytes());
        }
    }
    if of.is_empty() {
        return Ok(());
    }
    let ends: Vec<Id> = verdict.ends.keys().map(|task| id!(task)).collect();
    let last_seqs: Vec<i64> = verdict.ends.values().map(|seq| whole(*seq)).collect();
    let chunks = async {
        let sql = "INSERT INTO chunks (task, seq, key, body)
                   SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::bytea[])";
        c.execute(sql, &[&of, &seqs, &keys, &bodies]).await
    };
    let heads = async {
        let sql = "UPDATE streams SET last_seq = x.last_seq FROM unnest($1::uuid[], $2::bigint[]) x (task, last_seq)
                   WHERE streams.task = x.task";
        c.execute(sql, &[&ends, &last_seqs]).await
    };
    let firsts = async {
        if verdict.firsts.is_empty() {
            return Ok(0);
        }
        c.execute("UPDATE tasks SET has_chunks = true WHERE id = ANY ($1)", &[&verdict.firsts]).await
    };
    try_join(chunks, try_join(heads, firsts)).await?;
    Ok(())
}
