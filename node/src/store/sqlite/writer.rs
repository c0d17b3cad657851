//! The one writer: a thread that takes all writes that wait, runs them in one transaction, and answers them when it is
//! durable. One fsync serves many: that is what makes an acknowledgement after fsync affordable.
//!
//! Chunks go through the [`Journal`]. Any other write has a savepoint of its own, so one that is refused takes nothing with
//! it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::Duration;

use muster_actors::store::{Append, StoreError, StoreResult};
use muster_protocol::ids::TaskId;
use muster_protocol::limits::Limits;
use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use super::journal::Journal;
use super::sql_error;
use crate::store::answer::AppendAnswer;
use crate::store::queue::{COMPANY, Queue};

/// Answers a write: its argument is why nothing was committed, if nothing was.
pub type Answer = Box<dyn FnOnce(Option<&StoreError>) + Send>;

/// Changes rows and gives what is to be said.
pub type Run = Box<dyn FnOnce(&Connection) -> (StoreResult<()>, Answer) + Send>;

/// A write.
pub enum Write {
    /// Chunks of a stream.
    Append {
        /// Which.
        append: Append,
        /// Told when they are durable, or why they are not.
        done: AppendAnswer,
    },
    /// Any other.
    Rows {
        /// The task of which every chunk must be in the table before.
        settled: Option<TaskId>,
        /// Changes the rows and gives what is to be said once that is durable; an error undoes what it changed.
        run: Run,
    },
}

impl Write {
    /// Rows it changes, roughly: what a transaction is bounded by.
    fn rows(&self) -> usize {
        match self {
            Self::Append { append, .. } => append.chunks.len(),
            Self::Rows { .. } => 1,
        }
    }

    /// Whether somebody waits for it.
    fn is_awaited(&self) -> bool {
        match self {
            Self::Append { append, .. } => append.is_awaited,
            Self::Rows { .. } => true,
        }
    }

    /// What it adds to the journal, as [`Append::weight`] counts it.
    fn appended_bytes(&self) -> usize {
        match self {
            Self::Append { append, .. } => append.weight(),
            Self::Rows { .. } => 0,
        }
    }
}

/// What is to be said when the transaction has ended.
enum Pending {
    Append(AppendAnswer, StoreResult<()>),
    Rows(Answer),
}

impl Pending {
    fn give(self, failed: Option<&StoreError>) {
        match self {
            Self::Append(done, result) => done.give(result.and(failed.cloned().map_or(Ok(()), Err))),
            Self::Rows(answer) => answer(failed),
        }
    }
}

/// The way to the writer thread.
pub struct Writer {
    queue: Queue<Write>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread, or no timer for it, can be started.
    pub fn start(connection: Connection, journal: Journal, limits: &Limits) -> std::io::Result<Self> {
        let (queue, writes) = Queue::new(limits.store_queue_writes_max);
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let work = Work { connection, journal, is_in_doubt: false, rows_max: limits.store_batch_rows_max };
        let thread = std::thread::Builder::new().name("store-writer".into()).spawn(move || {
            match tokio::runtime::Builder::new_current_thread().enable_time().build() {
                Ok(timer) => {
                    let _waits = ready.send(Ok(()));
                    work.run(&timer, writes);
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        started.recv().map_err(std::io::Error::other)??;
        Ok(Self { queue, thread: Mutex::new(Some(thread)) })
    }

    /// Queues a write, waiting for a place. A closed writer answers that it is.
    pub async fn submit(&self, write: Write) {
        self.queue.submit(write).await;
    }

    /// Finishes what is queued and ends the thread.
    pub async fn close(&self) {
        self.queue.close();
        let thread = self.thread.lock().take();
        let joined = tokio::task::spawn_blocking(move || thread.map(JoinHandle::join)).await;
        if !matches!(joined, Ok(None | Some(Ok(())))) {
            tracing::error!("the store's writer did not end in order");
        }
    }
}

/// How long chunks wait in the journal for company, if there are few.
const FOLD_EVERY: Duration = Duration::from_secs(60);
/// Bytes that a transaction moves from the journal to the table when there is nothing else to do.
const IDLE_SLICE_BYTES: usize = 256 * 1024;

/// What the thread works with.
struct Work {
    connection: Connection,
    journal: Journal,
    /// Whether a transaction has failed, and the journal could not be read again since.
    is_in_doubt: bool,
    /// Rows of one transaction.
    rows_max: usize,
}

impl Work {
    fn run(mut self, timer: &Runtime, mut writes: mpsc::Receiver<Write>) {
        let mut due = {
            let _timers = timer.enter();
            tokio::time::interval(FOLD_EVERY)
        };
        // Whether a fold goes on without writes that would take it along.
        let mut folds_alone = false;
        loop {
            folds_alone &= self.journal.is_folding();
            let mut batch = Vec::new();
            match writes.try_recv() {
                Ok(write) => batch.push(write),
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) if folds_alone => {}
                Err(TryRecvError::Empty) => {
                    let arrived = timer.block_on(async {
                        tokio::select! {
                            biased;
                            write = writes.recv() => Some(write),
                            _ = due.tick() => None,
                        }
                    });
                    match arrived {
                        Some(Some(write)) => batch.push(write),
                        Some(None) => break,
                        None => {
                            self.journal.begin_fold(true);
                            folds_alone = true;
                            continue;
                        }
                    }
                }
            }
            let mut rows: usize = batch.iter().map(Write::rows).sum();
            while rows < self.rows_max {
                let Ok(write) = writes.try_recv() else { break };
                rows += write.rows();
                batch.push(write);
            }
            if !batch.is_empty() && !batch.iter().any(Write::is_awaited) {
                timer.block_on(company(&mut writes, &mut batch, self.rows_max - rows.min(self.rows_max)));
            }
            // One that fails is tried again when it is due, not at once.
            folds_alone &= self.commit(batch);
            self.journal.begin_fold(false);
        }
        self.end();
    }

    /// Leaves nothing that the next start has to recover.
    fn end(&mut self) {
        loop {
            self.journal.begin_fold(true);
            if !self.journal.is_folding() || !self.commit(Vec::new()) {
                break;
            }
        }
        if let Err(error) = self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            tracing::warn!(%error, "checkpoint at close");
        }
    }

    /// Runs one transaction and gives its answers. Without writes it moves a slice of the fold under way.
    fn commit(&mut self, batch: Vec<Write>) -> bool {
        let mut answers = Vec::with_capacity(batch.len());
        // Whatever panics outside of a single write's savepoint fails the transaction.
        let ran = catch_unwind(AssertUnwindSafe(|| self.transaction(batch, &mut answers)));
        let committed = ran.unwrap_or_else(|_| Err(StoreError::Unavailable("a transaction crashed".into())));
        if let Err(error) = &committed {
            tracing::error!(%error, writes = answers.len(), "store transaction failed");
            // It may have ended by itself: then there is nothing to undo.
            let _ended = execute(&self.connection, "ROLLBACK");
            self.is_in_doubt = true;
        }
        for answer in answers {
            // Whoever is told may fail; the others are told, and the writer goes on.
            let told = catch_unwind(AssertUnwindSafe(|| answer.give(committed.as_ref().err())));
            if told.is_err() {
                tracing::error!("the answer of a write crashed");
            }
        }
        committed.is_ok()
    }

    fn transaction(&mut self, batch: Vec<Write>, answers: &mut Vec<Pending>) -> StoreResult<()> {
        let (connection, journal) = (&self.connection, &mut self.journal);
        if self.is_in_doubt {
            journal.reload(connection)?;
            self.is_in_doubt = false;
        }
        execute(connection, "BEGIN IMMEDIATE")?;
        let appended = batch.iter().map(Write::appended_bytes).sum();
        journal.fold(connection, if batch.is_empty() { IDLE_SLICE_BYTES } else { appended })?;
        for write in batch {
            match write {
                Write::Append { append, done } => {
                    let result = journal.append(connection, append);
                    let failed =
                        result.clone().err().filter(|error| matches!(error, StoreError::Unavailable(_)));
                    answers.push(Pending::Append(done, result));
                    // Not refused but broken: nobody knows what is left of the transaction.
                    if let Some(error) = failed {
                        return Err(error);
                    }
                }
                Write::Rows { settled, run } => {
                    if let Some(task) = settled {
                        journal.settle(connection, task)?;
                    }
                    answers.extend(changed_rows(connection, run)?.map(Pending::Rows));
                }
            }
        }
        journal.write(connection)?;
        execute(connection, "COMMIT")?;
        journal.committed();
        Ok(())
    }
}

/// Lets writes that nobody waits for have company: until somebody waits for one, or there are enough.
async fn company(writes: &mut mpsc::Receiver<Write>, batch: &mut Vec<Write>, mut rows_left: usize) {
    let until = tokio::time::sleep(COMPANY);
    tokio::pin!(until);
    while rows_left > 0 {
        let write = tokio::select! {
            biased;
            write = writes.recv() => write,
            () = &mut until => return,
        };
        let Some(write) = write else { return };
        rows_left = rows_left.saturating_sub(write.rows());
        let is_awaited = write.is_awaited();
        batch.push(write);
        if is_awaited {
            return;
        }
    }
}

/// Runs a write in a savepoint of its own; gives its answer, or none if it panicked.
fn changed_rows(connection: &Connection, run: Run) -> StoreResult<Option<Answer>> {
    execute(connection, "SAVEPOINT write")?;
    // One that panics is undone, and answered by the drop of what would have answered it; the others go on.
    let ran = catch_unwind(AssertUnwindSafe(|| run(connection))).ok();
    if !ran.as_ref().is_some_and(|(result, _)| result.is_ok()) {
        execute(connection, "ROLLBACK TO write")?;
    }
    execute(connection, "RELEASE write")?;
    Ok(ran.map(|(_, answer)| answer))
}

fn execute(connection: &Connection, sql: &str) -> StoreResult<()> {
    connection.prepare_cached(sql).and_then(|mut statement| statement.execute([])).map_err(sql_error)?;
    Ok(())
}
