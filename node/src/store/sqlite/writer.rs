//! The one writer: a thread that takes all writes that wait, runs them in one transaction, and answers them when it is
//! durable. One fsync serves many: that is what makes an acknowledgement after fsync affordable.
//!
//! Each write has a savepoint of its own, so one that is refused takes nothing with it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use muster_actors::store::{StoreError, StoreResult};
use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::mpsc;

use super::sql_error;

/// Answers a write: its argument is why nothing was committed, if nothing was.
pub type Answer = Box<dyn FnOnce(Option<&StoreError>) + Send>;

/// Changes rows and gives what is to be said.
pub type Run = Box<dyn FnOnce(&Connection) -> (StoreResult<()>, Answer) + Send>;

/// A write: changes rows and gives what is to be said once that is durable.
pub struct Write {
    /// Rows it changes, roughly: what a transaction is bounded by.
    pub rows: usize,
    /// Changes the rows; an error undoes what it changed.
    pub run: Run,
}

/// The way to the writer thread.
pub struct Writer {
    queue: Mutex<Option<mpsc::Sender<Write>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(connection: Connection, queue_max: usize, rows_max: usize) -> std::io::Result<Self> {
        let (queue, writes) = mpsc::channel(queue_max);
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || run(&connection, writes, rows_max))?;
        Ok(Self { queue: Mutex::new(Some(queue)), thread: Mutex::new(Some(thread)) })
    }

    /// Queues a write, waiting for a place. A closed writer answers that it is.
    pub async fn submit(&self, write: Write) {
        let queue = self.queue.lock().clone();
        let refused = match queue {
            Some(queue) => queue.send(write).await.err().map(|error| error.0),
            None => Some(write),
        };
        // Dropping the write drops its answer, which whoever waits for takes for a refusal.
        drop(refused);
    }

    /// Finishes what is queued and ends the thread.
    pub async fn close(&self) {
        drop(self.queue.lock().take());
        let thread = self.thread.lock().take();
        let joined = tokio::task::spawn_blocking(move || thread.map(JoinHandle::join)).await;
        if !matches!(joined, Ok(None | Some(Ok(())))) {
            tracing::error!("the store's writer did not end in order");
        }
    }
}

fn run(connection: &Connection, mut writes: mpsc::Receiver<Write>, rows_max: usize) {
    while let Some(first) = writes.blocking_recv() {
        let mut batch = vec![first];
        let mut rows = batch[0].rows;
        while rows < rows_max {
            let Ok(write) = writes.try_recv() else { break };
            rows += write.rows;
            batch.push(write);
        }
        commit(connection, batch);
    }
    // So that the next start has nothing to recover.
    if let Err(error) = connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
        tracing::warn!(%error, "checkpoint at close");
    }
}

fn commit(connection: &Connection, batch: Vec<Write>) {
    let mut answers = Vec::with_capacity(batch.len());
    let committed = transaction(connection, batch, &mut answers);
    if let Err(error) = &committed {
        tracing::error!(%error, writes = answers.len(), "store transaction failed");
        // It may have ended by itself: then there is nothing to undo.
        let _ended = execute(connection, "ROLLBACK");
    }
    for answer in answers {
        answer(committed.as_ref().err());
    }
}

fn transaction(connection: &Connection, batch: Vec<Write>, answers: &mut Vec<Answer>) -> StoreResult<()> {
    execute(connection, "BEGIN IMMEDIATE")?;
    for write in batch {
        execute(connection, "SAVEPOINT write")?;
        // One that panics is undone, and answered by the drop of what would have answered it; the others go on.
        let ran = catch_unwind(AssertUnwindSafe(|| (write.run)(connection)));
        let keeps = match ran {
            Ok((result, answer)) => {
                answers.push(answer);
                result.is_ok()
            }
            Err(_panicked) => false,
        };
        if !keeps {
            execute(connection, "ROLLBACK TO write")?;
        }
        execute(connection, "RELEASE write")?;
    }
    execute(connection, "COMMIT")
}

fn execute(connection: &Connection, sql: &str) -> StoreResult<()> {
    connection.prepare_cached(sql).and_then(|mut statement| statement.execute([])).map_err(sql_error)?;
    Ok(())
}
