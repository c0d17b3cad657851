//! Chunks are written twice: at once, all of a transaction in one row of a journal, and later, many of a task together,
//! into the table. Streams grow by a chunk here and a chunk there; written to the table at once, each would change a page
//! or two of its own.
//!
//! The writer owns the [`Journal`]. Within a transaction it only stages what will change; [`Journal::committed`] makes that
//! true in the [`Memtable`], which readers see too. After a transaction that failed, memory is read from the journal again,
//! as at the start ([`Journal::load`]).
//!
//! **Folding** moves chunks to the table: the tasks of the memtable, sorted as the table is, a slice in each transaction.
//! A slice is at least twice what the transaction appends, so the memtable shrinks whatever the load, and never holds more
//! than its bound and a few transactions. Then the journal rows of before are dropped, a few in each transaction.

mod codec;
mod memtable;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use muster_actors::store::{Append, StoreError, StoreResult};
use muster_protocol::ids::TaskId;
use muster_protocol::task_stream::Chunk;
use parking_lot::Mutex;
use rusqlite::{Connection, params};

use self::memtable::Tail;
pub use self::memtable::{Memtable, joined, newest};
use super::{sql_error, streams, tasks};
use crate::store::head::Head;

/// Bytes that a slice of a fold moves at least, as [`Chunk::weight`] counts them.
const SLICE_BYTES_MIN: usize = 64 * 1024;
/// Bytes of the buffer of a row that are kept for the next.
const ROW_KEPT_BYTES: usize = 1024 * 1024;
/// Journal rows that one transaction drops, if that ends within [`DROP_TRANSACTIONS_MAX`] transactions; else more.
const DROP_ROWS: i64 = 64;
/// Transactions in which the journal rows of a fold are dropped, at most: the next fold cannot begin before.
const DROP_TRANSACTIONS_MAX: i64 = 16;
/// Bytes of one append, as [`Append::weight`] counts them, that fill pages of the table by themselves: they skip the journal.
const DIRECT_BYTES: usize = 16 * 1024;

/// The journal, as the writer has it.
pub struct Journal {
    memtable: Arc<Mutex<Memtable>>,
    /// Bytes of the memtable above which a fold begins.
    bytes_max: usize,
    staged: Staged,
    fold: Option<Fold>,
    /// Id of the oldest row.
    first_row: i64,
    /// Id of the next row.
    next_row: i64,
    /// Bytes of the rows written since the last fold began.
    bytes_since_fold: usize,
}

/// What a transaction will have changed once it is committed.
#[derive(Default)]
struct Staged {
    /// Appended behind the memtable, or behind the table if the task is settled.
    tails: HashMap<TaskId, Tail>,
    /// Tasks of which the table has every chunk that was appended before.
    settled: HashSet<TaskId>,
    /// Tasks to be settled before the commit, whose chunks are not all in `row`.
    large: HashSet<TaskId>,
    /// Tasks and the last seq the table now has.
    folded: Vec<(TaskId, u64)>,
    /// The row to be written.
    row: Vec<u8>,
}

/// A fold under way.
struct Fold {
    /// Tasks whose chunks are still to be moved, the next one last.
    tasks: Vec<TaskId>,
    /// The id after the last row of which everything is in the table when that is done.
    rows_end: i64,
    /// Rows to be dropped by one transaction.
    drop_rows: i64,
}

impl Journal {
    /// Reads what an earlier life of this store left in the journal.
    ///
    /// # Errors
    /// The database cannot be read, or the journal does not fit to its streams.
    pub fn load(c: &Connection, bytes_max: usize) -> StoreResult<Self> {
        let mut journal = Self {
            memtable: Arc::default(),
            bytes_max,
            staged: Staged::default(),
            fold: None,
            first_row: 1,
            next_row: 1,
            bytes_since_fold: 0,
        };
        journal.reload(c)?;
        Ok(journal)
    }

    /// What readers look into.
    #[must_use]
    pub fn memtable(&self) -> Arc<Mutex<Memtable>> {
        self.memtable.clone()
    }

    /// Forgets everything and reads the journal again: nobody knows what a failed commit has left.
    ///
    /// # Errors
    /// As [`Self::load`]; memory is as it was before the transaction, and not to be relied on.
    pub fn reload(&mut self, c: &Connection) -> StoreResult<()> {
        self.staged = Staged::default();
        self.fold = None;
        let mut read = Memtable::default();
        let mut statement =
            c.prepare_cached("SELECT id, data FROM chunk_journal ORDER BY id").map_err(sql_error)?;
        let mut rows = statement.query([]).map_err(sql_error)?;
        let (mut first_row, mut next_row) = (None, 1);
        let (mut heads, mut bytes) = (HashMap::new(), 0);
        while let Some(row) = rows.next().map_err(sql_error)? {
            let id: i64 = row.get(0).map_err(sql_error)?;
            first_row.get_or_insert(id);
            next_row = id + 1;
            let data = row.get_ref(1).and_then(|data| Ok(data.as_blob()?)).map_err(sql_error)?;
            bytes += data.len();
            let records =
                codec::decode(data).map_err(|damaged| StoreError::Unavailable(damaged.to_string()))?;
            for record in records {
                restore(c, &mut read, &mut heads, record)?;
            }
        }
        self.first_row = first_row.unwrap_or(next_row);
        self.next_row = next_row;
        self.bytes_since_fold = bytes;
        *self.memtable.lock() = read;
        Ok(())
    }

    /// Appends chunks behind the last one, if nobody newer has, and the task has not ended.
    ///
    /// # Errors
    /// The append is refused, and has changed nothing.
    pub fn append(&mut self, c: &Connection, append: Append) -> StoreResult<()> {
        let Some(first) = append.chunks.first() else { return Ok(()) };
        let head = self.head(c, append.task)?;
        let unwritten = Head { epoch: append.epoch, last_seq: 0, closed: false };
        let behind = head.unwrap_or(unwritten);
        if append.epoch < behind.epoch || !behind.admits(&append) {
            return Err(StoreError::Fenced);
        }
        self.check_keys(c, &append)?;
        let is_first = head.is_none_or(|head| head.last_seq == 0);
        if is_first || append.begins_task {
            begin(c, &append, is_first)?;
        }
        if append.weight() < DIRECT_BYTES {
            codec::encode(&mut self.staged.row, append.task, append.epoch, first.seq, &append.chunks);
        } else {
            self.staged.large.insert(append.task);
        }
        let tail = self.staged.tails.entry(append.task);
        tail.or_insert_with(|| Tail::behind(behind)).extend(append.epoch, append.chunks);
        Ok(())
    }

    /// Where the log of a task ends, seen from within the transaction; none: it never began.
    fn head(&self, c: &Connection, task: TaskId) -> StoreResult<Option<Head>> {
        if let Some(tail) = self.staged.tails.get(&task) {
            return Ok(Some(tail.head()));
        }
        if !self.staged.settled.contains(&task)
            && let Some(tail) = self.memtable.lock().tail(task)
        {
            return Ok(Some(tail.head()));
        }
        streams::head(c, task)
    }

    /// A key that was given out before, or twice: another writer did, and this one is not the owner any more.
    fn check_keys(&self, c: &Connection, append: &Append) -> StoreResult<()> {
        let mut keys = HashSet::new();
        for key in append.chunks.iter().filter_map(|chunk| chunk.idempotency_key.as_ref()) {
            let in_memory = |tail: &Tail| tail.seq_of_key(key).is_some();
            if !keys.insert(key)
                || self.staged.tails.get(&append.task).is_some_and(in_memory)
                || self.memtable.lock().tail(append.task).is_some_and(in_memory)
                || streams::seq_of_key(c, append.task, key)?.is_some()
            {
                return Err(StoreError::Fenced);
            }
        }
        Ok(())
    }

    /// Moves all chunks of a task to the table, those of this transaction too.
    ///
    /// # Errors
    /// The transaction has failed.
    pub fn settle(&mut self, c: &Connection, task: TaskId) -> StoreResult<()> {
        let mut chunks = Vec::new();
        let mut head = None;
        if !self.staged.settled.contains(&task)
            && let Some(tail) = self.memtable.lock().tail(task)
        {
            head = Some(tail.head());
            chunks.extend(tail.chunks().cloned());
        }
        if let Some(tail) = self.staged.tails.remove(&task) {
            head = Some(tail.head());
            chunks.extend(tail.into_chunks());
        }
        self.staged.settled.insert(task);
        let Some(head) = head else { return Ok(()) };
        // A slice of this transaction may have moved some already.
        let stored = streams::head(c, task)?.map_or(0, |stored| stored.last_seq);
        chunks.retain(|chunk| chunk.seq > stored);
        streams::store_chunks(c, task, head, &chunks)
    }

    /// Begins a fold if the memtable holds more than its bound, or the rows twice as much, or, if it `is_due`, at all. Chunks
    /// that are in the table before a fold, because their tasks ended, leave rows behind that only a fold drops.
    pub fn begin_fold(&mut self, is_due: bool) {
        if self.fold.is_some() {
            return;
        }
        let rows = self.next_row - self.first_row;
        let mut tasks = {
            let memtable = self.memtable.lock();
            let is_due = is_due && (rows > 0 || !memtable.is_empty());
            let is_full =
                memtable.bytes() > self.bytes_max || self.bytes_since_fold > self.bytes_max.saturating_mul(2);
            if !is_full && !is_due {
                return;
            }
            memtable.tasks()
        };
        // As the table is sorted; the next one is taken from the end.
        tasks.sort_unstable_by(|a, b| b.cmp(a));
        self.bytes_since_fold = 0;
        let drop_rows = DROP_ROWS.max(rows / DROP_TRANSACTIONS_MAX);
        self.fold = Some(Fold { tasks, rows_end: self.next_row, drop_rows });
    }

    /// Whether a fold is under way.
    #[must_use]
    pub fn is_folding(&self) -> bool {
        self.fold.is_some()
    }

    /// Moves the next slice of a fold, if one is under way: twice the bytes that this transaction appends, but some.
    ///
    /// # Errors
    /// The transaction has failed.
    pub fn fold(&mut self, c: &Connection, appended_bytes: usize) -> StoreResult<()> {
        let Some(fold) = &mut self.fold else { return Ok(()) };
        if fold.tasks.is_empty() {
            let end = fold.rows_end.min(self.first_row + fold.drop_rows);
            c.prepare_cached("DELETE FROM chunk_journal WHERE id < ?1")
                .and_then(|mut s| s.execute([end]))
                .map_err(sql_error)?;
            // A transaction that fails after this reads the journal again.
            self.first_row = end;
            if end == fold.rows_end {
                self.fold = None;
            }
            return Ok(());
        }
        let slice = slice_of(fold, &self.memtable.lock(), SLICE_BYTES_MIN.max(appended_bytes * 2));
        for (task, head, chunks) in slice {
            streams::store_chunks(c, task, head, &chunks)?;
            self.staged.folded.push((task, head.last_seq));
        }
        Ok(())
    }

    /// Writes the row of this transaction, just before its commit.
    ///
    /// # Errors
    /// The transaction has failed.
    pub fn write(&mut self, c: &Connection) -> StoreResult<()> {
        for task in std::mem::take(&mut self.staged.large) {
            self.settle(c, task)?;
        }
        if self.staged.row.is_empty() {
            return Ok(());
        }
        // SQLite ends a transaction by itself when it cannot go on: the row would be all that is left of it.
        if c.is_autocommit() {
            return Err(StoreError::Unavailable("the transaction has ended by itself".into()));
        }
        c.prepare_cached("INSERT INTO chunk_journal (id, data) VALUES (?1, ?2)")
            .and_then(|mut s| s.execute(params![self.next_row, self.staged.row]))
            .map_err(sql_error)?;
        self.next_row += 1;
        self.bytes_since_fold += self.staged.row.len();
        self.staged.row.clear();
        self.staged.row.shrink_to(ROW_KEPT_BYTES);
        Ok(())
    }

    /// After a commit: memory is as the database.
    pub fn committed(&mut self) {
        let mut moved = Vec::new();
        {
            let mut memtable = self.memtable.lock();
            for (task, seq) in self.staged.folded.drain(..) {
                memtable.take_upto(task, seq, &mut moved);
            }
            for task in self.staged.settled.drain() {
                memtable.take_upto(task, u64::MAX, &mut moved);
            }
            for (task, tail) in self.staged.tails.drain() {
                memtable.append(task, tail);
            }
        }
        drop(moved);
    }
}

/// The first append of a stream, or of its task: rows that change once.
fn begin(c: &Connection, append: &Append, is_first: bool) -> StoreResult<()> {
    c.execute_batch("SAVEPOINT beginning").map_err(sql_error)?;
    let mut begun = if is_first { streams::begin(c, append.task, append.epoch) } else { Ok(()) };
    if begun.is_ok() && append.begins_task {
        begun = tasks::begin(c, append.task, append.now);
    }
    if begun.is_err() {
        c.execute_batch("ROLLBACK TO beginning").map_err(sql_error)?;
    }
    c.execute_batch("RELEASE beginning").map_err(sql_error)?;
    begun
}

/// Takes the next chunks of a fold, some tasks' all and the last one's perhaps in part, with the head the table then has.
fn slice_of(fold: &mut Fold, memtable: &Memtable, bytes_min: usize) -> Vec<(TaskId, Head, Vec<Chunk>)> {
    let (mut slice, mut bytes) = (Vec::new(), 0);
    while bytes < bytes_min
        && let Some(task) = fold.tasks.pop()
    {
        // Settled since.
        let Some(tail) = memtable.tail(task) else { continue };
        let mut chunks = Vec::new();
        for chunk in tail.chunks() {
            if bytes >= bytes_min {
                fold.tasks.push(task);
                break;
            }
            bytes += chunk.weight();
            chunks.push(chunk.clone());
        }
        let last_seq = chunks.last().map_or(0, |chunk| chunk.seq);
        slice.push((task, Head { last_seq, ..tail.head() }, chunks));
    }
    slice
}

/// Puts what a record of the journal holds beyond the table behind what was read before.
fn restore(
    c: &Connection,
    read: &mut Memtable,
    heads: &mut HashMap<TaskId, (u64, Head)>,
    record: codec::Record,
) -> StoreResult<()> {
    let misfit = |what: &str| Err(StoreError::Unavailable(format!("the chunk journal holds {what}")));
    // What the table has stays; what was read after it moves on.
    let (stored, head) = match heads.entry(record.task) {
        std::collections::hash_map::Entry::Occupied(occupied) => occupied.into_mut(),
        std::collections::hash_map::Entry::Vacant(vacant) => match streams::head(c, record.task)? {
            Some(head) => vacant.insert((head.last_seq, head)),
            None => return misfit("a stream that never began"),
        },
    };
    let mut tail = Tail::behind(*head);
    let new = record.chunks.into_iter().filter(|chunk| chunk.seq > *stored);
    let new: Vec<Chunk> = new.collect();
    let (Some(first), Some(last)) = (new.first(), new.last()) else { return Ok(()) };
    if first.seq != head.last_seq + 1 || head.closed {
        return misfit("chunks that do not follow their stream");
    }
    *head = Head { epoch: record.epoch, last_seq: last.seq, closed: false };
    tail.extend(record.epoch, new);
    read.append(record.task, tail);
    Ok(())
}
