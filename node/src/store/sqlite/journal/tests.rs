//! The journal against a model: a plain map of what was appended, whatever is folded, refused, undone or read again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use muster_actors::store::{Store, StreamStore};
use muster_protocol::json::Json;
use muster_protocol::limits::Limits;
use muster_protocol::time::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::store::conformance::append;
use crate::store::sqlite::{SqliteStore, schema};

fn task(number: u8) -> TaskId {
    TaskId::from_bytes([number; 16])
}

fn chunk(seq: u64, key: Option<String>, letters: usize) -> Chunk {
    let body = Json::of(&format!("{seq} {}", "x".repeat(letters)));
    Chunk { seq, body, idempotency_key: key.map(Into::into) }
}

fn appended(task: TaskId, epoch: u64, chunks: Vec<Chunk>) -> Append {
    Append { task, epoch, chunks, begins_task: false, is_awaited: true, now: Timestamp::from_unix_ms(0) }
}

#[derive(Clone, Debug)]
enum Step {
    /// So many chunks to a task, `skip` past its end, with keys from a few, of a writer of some epoch.
    Append { task: u8, count: u64, skip: u64, epoch: u64, key: Option<u8>, letters: usize },
    /// Everything of a task into the table, and perhaps the end of its stream.
    Settle { task: u8, closes: bool },
    /// The transaction ends.
    Commit { appended_bytes: usize },
    /// The transaction fails, or the process is killed: what was not committed is gone.
    Crash,
    /// A fold is due.
    Due,
}

fn step() -> impl Strategy<Value = Step> {
    let letters = prop_oneof![8 => Just(10_usize), 2 => Just(3_000_usize), 1 => Just(DIRECT_BYTES)];
    let skip = prop_oneof![9 => Just(0_u64), 1 => Just(1_u64)];
    let append = (0..4_u8, 0..4_u64, skip, 1..3_u64, proptest::option::of(0..40_u8), letters);
    prop_oneof![
        6 => append.prop_map(|(task, count, skip, epoch, key, letters)| {
            Step::Append { task, count, skip, epoch, key, letters }
        }),
        1 => (0..4_u8, prop::bool::weighted(0.2)).prop_map(|(task, closes)| Step::Settle { task, closes }),
        4 => prop_oneof![Just(0_usize), Just(SLICE_BYTES_MIN)]
            .prop_map(|appended_bytes| Step::Commit { appended_bytes }),
        1 => Just(Step::Crash),
        1 => Just(Step::Due),
    ]
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Modelled {
    epoch: u64,
    closed: bool,
    chunks: Vec<Chunk>,
}

type Model = BTreeMap<u8, Modelled>;

/// What the port promises of an append, without regard to how chunks are kept.
fn model_append(model: &mut Model, number: u8, append: &Append) -> StoreResult<()> {
    if append.chunks.is_empty() {
        return Ok(());
    }
    let mut log = model.get(&number).cloned().unwrap_or_default();
    let mut keys: HashSet<_> = log.chunks.iter().filter_map(|chunk| chunk.idempotency_key.clone()).collect();
    if log.closed || append.epoch < log.epoch {
        return Err(StoreError::Fenced);
    }
    for chunk in &append.chunks {
        let is_new = chunk.idempotency_key.clone().is_none_or(|key| keys.insert(key));
        if !is_new || chunk.seq != log.chunks.len() as u64 + 1 {
            return Err(StoreError::Fenced);
        }
        log.chunks.push(chunk.clone());
    }
    log.epoch = append.epoch;
    model.insert(number, log);
    Ok(())
}

struct Subject {
    connection: Connection,
    journal: Journal,
}

impl Subject {
    fn new(bytes_max: usize) -> Self {
        let mut connection = Connection::open_in_memory().unwrap();
        // Streams without their tasks' rows.
        connection.pragma_update(None, "foreign_keys", false).unwrap();
        schema::migrate(&mut connection).unwrap();
        let journal = Journal::load(&connection, bytes_max).unwrap();
        connection.execute_batch("BEGIN").unwrap();
        Self { connection, journal }
    }

    fn append(&mut self, append: Append) -> StoreResult<()> {
        self.journal.append(&self.connection, append)
    }

    /// Ends a transaction as the writer does, and begins the next with a slice of a fold.
    fn commit(&mut self, appended_bytes: usize) {
        self.journal.write(&self.connection).unwrap();
        self.connection.execute_batch("COMMIT").unwrap();
        self.journal.committed();
        self.journal.begin_fold(false);
        self.connection.execute_batch("BEGIN").unwrap();
        self.journal.fold(&self.connection, appended_bytes).unwrap();
    }

    fn crash(&mut self, bytes_max: usize, anew: bool) {
        self.connection.execute_batch("ROLLBACK").unwrap();
        if anew {
            self.journal = Journal::load(&self.connection, bytes_max).unwrap();
        } else {
            self.journal.reload(&self.connection).unwrap();
        }
        self.connection.execute_batch("BEGIN").unwrap();
    }

    /// As readers do, who see committed rows only: right after a commit.
    fn read(&self, number: u8, (after, upto): (u64, u64), bytes_max: usize) -> Vec<Chunk> {
        let fresh = self.journal.memtable.lock().read(task(number), (after, upto), bytes_max);
        let before = fresh.first().map_or(upto, |first| first.seq - 1);
        let stored = streams::read_chunks(&self.connection, task(number), (after, before), bytes_max);
        joined(stored.unwrap(), &fresh, bytes_max)
    }

    /// Bytes of the memtable, counted anew.
    fn bytes(&self) -> usize {
        let memtable = self.journal.memtable.lock();
        let tails = memtable.tasks().into_iter().filter_map(|task| memtable.tail(task));
        tails.flat_map(Tail::chunks).map(Chunk::weight).sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn streams_are_what_was_committed(
        bytes_max in prop_oneof![Just(0_usize), Just(2_000_usize), Just(1_000_000_usize)],
        steps in prop::collection::vec(step(), 1..120),
        at in 0..6_u64,
    ) {
        let mut subject = Subject::new(bytes_max);
        let (mut committed, mut model) = (Model::new(), Model::new());
        for step in steps {
            match step {
                Step::Append { task: number, count, skip, epoch, key, letters } => {
                    let last = model.get(&number).map_or(0, |log| log.chunks.len() as u64);
                    let key = |seq| key.map(|key| format!("{}", u64::from(key) + seq % 2));
                    let seqs = last + 1 + skip..last + 1 + skip + count;
                    let chunks = seqs.map(|seq| chunk(seq, key(seq), letters)).collect();
                    let append = appended(task(number), epoch, chunks);
                    let expected = model_append(&mut model, number, &append);
                    prop_assert_eq!(subject.append(append), expected);
                }
                Step::Settle { task: number, closes } => {
                    subject.journal.settle(&subject.connection, task(number)).unwrap();
                    if closes && let Some(log) = model.get_mut(&number) && !log.closed {
                        let last = log.chunks.len() as u64;
                        streams::close(&subject.connection, task(number), log.epoch, last).unwrap();
                        log.closed = true;
                    }
                }
                Step::Commit { appended_bytes } => {
                    subject.commit(appended_bytes);
                    committed.clone_from(&model);
                    // The slice that follows is not committed, but moves nothing that a reader could miss.
                    for (number, log) in &committed {
                        prop_assert_eq!(&subject.read(*number, (0, u64::MAX >> 1), usize::MAX), &log.chunks);
                        let part = subject.read(*number, (at, at + 5), 700);
                        let all = log.chunks.iter().filter(|chunk| (at + 1..=at + 5).contains(&chunk.seq));
                        let all: Vec<Chunk> = all.cloned().collect();
                        prop_assert!(all.starts_with(&part) && part.is_empty() == all.is_empty());
                        let bytes: usize = part.iter().map(Chunk::weight).sum();
                        let next = all.get(part.len()).map_or(usize::MAX, Chunk::weight);
                        prop_assert!(part.len() <= 1 || bytes <= 700, "{} bytes", bytes);
                        prop_assert!(bytes.saturating_add(next) > 700, "fewer than would fit");
                    }
                }
                Step::Crash => {
                    subject.crash(bytes_max, at % 2 == 0);
                    model.clone_from(&committed);
                }
                Step::Due => {
                    subject.commit(0);
                    committed.clone_from(&model);
                    subject.journal.begin_fold(true);
                }
            }
            prop_assert_eq!(subject.journal.memtable.lock().bytes(), subject.bytes());
        }
        // At the end of everything the tables have it all, and the journal is empty.
        subject.commit(0);
        while { subject.journal.begin_fold(true); subject.journal.is_folding() } {
            subject.commit(usize::MAX / 2);
        }
        for (number, log) in &model {
            let stored = streams::read_chunks(&subject.connection, task(*number), (0, u64::MAX >> 1), usize::MAX);
            prop_assert_eq!(&stored.unwrap(), &log.chunks);
        }
        let rows: u64 = subject
            .connection
            .query_row("SELECT count(*) FROM chunk_journal", [], |row| row.get(0))
            .unwrap();
        prop_assert_eq!((rows, subject.journal.memtable.lock().bytes()), (0, 0));
    }

    #[test]
    fn memory_is_bounded_whatever_the_load(
        transactions in prop::collection::vec((0..20_u8, 1..40_u64, 0..200_usize), 1..200),
    ) {
        let bytes_max = 100_000;
        let mut subject = Subject::new(bytes_max);
        let mut last = [0_u64; 20];
        let mut largest = 0;
        for (number, count, letters) in transactions {
            let end = &mut last[usize::from(number)];
            let chunks: Vec<Chunk> = (*end + 1..=*end + count).map(|seq| chunk(seq, None, letters)).collect();
            *end += count;
            let bytes: usize = chunks.iter().map(Chunk::weight).sum();
            largest = bytes.max(largest);
            subject.append(appended(task(number), 1, chunks)).unwrap();
            // A slice is taken before what its transaction appends is known to the memtable.
            subject.commit(bytes);
            let held = subject.bytes();
            let most = bytes_max + largest * (usize::try_from(DROP_TRANSACTIONS_MAX).unwrap() + 2);
            prop_assert!(held <= most, "{} bytes held", held);
        }
    }
}

#[test]
fn rows_are_dropped_in_parts_once_all_of_them_is_moved() {
    let mut subject = Subject::new(usize::MAX);
    for seq in 1..=200 {
        subject.append(appended(task(1), 1, vec![chunk(seq, None, 10)])).unwrap();
        subject.commit(0);
    }
    let rows = |subject: &Subject| -> i64 {
        let count = "SELECT count(*) FROM chunk_journal";
        subject.connection.query_row(count, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(rows(&subject), 200);
    subject.journal.begin_fold(true);
    let mut counts = Vec::new();
    while subject.journal.is_folding() {
        subject.commit(0);
        counts.push(rows(&subject));
    }
    assert_eq!(counts, [200, 136, 72, 8, 0]);
}

#[test]
fn a_transaction_that_ended_by_itself_leaves_no_row() {
    let mut subject = Subject::new(usize::MAX);
    subject.append(appended(task(1), 1, vec![chunk(1, None, 10)])).unwrap();
    // As SQLite does when it cannot go on.
    subject.connection.execute_batch("ROLLBACK").unwrap();
    assert!(matches!(subject.journal.write(&subject.connection), Err(StoreError::Unavailable(_))));
    let rows: i64 =
        subject.connection.query_row("SELECT count(*) FROM chunk_journal", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 0);
    assert!(Journal::load(&subject.connection, 0).is_ok());
}

#[test]
fn rows_of_tasks_that_ended_are_dropped_too() {
    let mut subject = Subject::new(2_000);
    let mut most = 0;
    for number in 1..=200 {
        subject.append(appended(task(number), 1, vec![chunk(1, None, 100)])).unwrap();
        subject.commit(0);
        // Its task ends at once: the memtable never holds much.
        subject.journal.settle(&subject.connection, task(number)).unwrap();
        subject.commit(0);
        let count = "SELECT count(*) FROM chunk_journal";
        let rows: i64 = subject.connection.query_row(count, [], |row| row.get(0)).unwrap();
        most = most.max(rows);
    }
    assert!(most < 80, "{most} rows");
}

#[test]
fn a_journal_that_does_not_fit_is_refused() {
    let mut subject = Subject::new(usize::MAX);
    subject.append(appended(task(1), 1, vec![chunk(1, None, 10)])).unwrap();
    subject.commit(0);
    for (damage, what) in [
        ("UPDATE chunk_journal SET data = CAST(substr(data, 1, length(data) - 1) AS BLOB)", "damaged"),
        ("DELETE FROM streams", "never began"),
        ("UPDATE streams SET closed = 1", "do not follow"),
        (
            "INSERT INTO chunk_journal SELECT id + 1, data FROM chunk_journal; UPDATE streams SET last_seq = 0",
            "do not follow",
        ),
    ] {
        subject.connection.execute_batch("SAVEPOINT damage").unwrap();
        subject.connection.execute_batch(damage).unwrap();
        let refused = Journal::load(&subject.connection, 0).map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains(what), "{damage}: {refused}");
        subject.connection.execute_batch("ROLLBACK TO damage").unwrap();
    }
    assert!(Journal::load(&subject.connection, 0).is_ok(), "undamaged it is read");
}

/// Limits under which a fold is always under way.
fn folding() -> Limits {
    Limits { store_journal_bytes_max: 0, ..Limits::default() }
}

fn stream_of(store: &SqliteStore, number: u8) -> impl Future<Output = StoreResult<TaskId>> + '_ {
    let id = task(number);
    store.write(move |c| {
        c.execute_batch("PRAGMA defer_foreign_keys = 1").map_err(sql_error)?;
        let now = Timestamp::from_unix_ms(0);
        let agent = [number; 16];
        let agents = "INSERT OR IGNORE INTO agents (id, name, did, capabilities, pricing_model, base_price,
            protocol_versions, metadata, status, reputation, created_at, updated_at)
            VALUES (?1, 'a', ?2, '[]', 'fixed', 0, '[]', '{}', 'active', 0, 0, 0)";
        c.execute(agents, params![agent, format!("did:x:{number}")]).map_err(sql_error)?;
        let task =
            "INSERT INTO tasks (id, status, client, provider, capability, input, created_at, updated_at)
            VALUES (?1, 'in_progress', ?2, ?2, 'c', '{}', ?3, ?3)";
        c.execute(task, params![id.as_bytes(), agent, now.unix_ms()]).map_err(sql_error)?;
        Ok(id)
    })
}

async fn bodies(store: &SqliteStore, id: TaskId) -> Vec<Chunk> {
    store.read_chunks(id, 0, u64::MAX >> 1, usize::MAX).await.unwrap()
}

/// R46: what a `kill -9` leaves is a copy of the files as they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_files_has_what_was_acknowledged() {
    for limits in [Limits::default(), folding()] {
        let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = SqliteStore::open(folders.0.path(), &limits).unwrap();
        let mut expected = Vec::new();
        for number in 1..=3 {
            let id = stream_of(&store, number).await.unwrap();
            for seq in 1..=40 {
                let letters = if seq == 20 { DIRECT_BYTES } else { 10 };
                let chunk = chunk(seq, Some(format!("k{seq}")), letters);
                append(&store, appended(id, 4, vec![chunk])).await.unwrap();
            }
            expected.push((id, bodies(&store, id).await));
        }
        // All of it is acknowledged, so nothing is written meanwhile.
        for name in ["muster.db-wal", "muster.db"] {
            std::fs::copy(folders.0.path().join(name), folders.1.path().join(name)).unwrap();
        }
        let copy = SqliteStore::open(folders.1.path(), &limits).unwrap();
        for (id, chunks) in expected {
            assert_eq!(chunks.len(), 40);
            assert_eq!(bodies(&copy, id).await, chunks);
            assert_eq!(copy.seqs_of_keys(id, &["k7".into(), "k39".into()]).await.unwrap().len(), 2);
            let old = append(&copy, appended(id, 3, vec![chunk(41, None, 1)])).await;
            assert_eq!(old, Err(StoreError::Fenced), "the epoch is known");
            let again = append(&copy, appended(id, 5, vec![chunk(41, Some("k40".into()), 1)])).await;
            assert_eq!(again, Err(StoreError::Fenced), "the key is known");
            assert_eq!(append(&copy, appended(id, 5, vec![chunk(41, None, 1)])).await, Ok(()));
        }
        copy.close().await;
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_misses_nothing_while_chunks_are_moved() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(folder.path(), &folding()).unwrap());
    let id = stream_of(&store, 1).await.unwrap();
    let other = stream_of(&store, 2).await.unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let reading = {
        let (store, ended) = (store.clone(), ended.clone());
        tokio::spawn(async move {
            let (mut least, mut readings) = (0, 0_u64);
            while !ended.load(Ordering::Relaxed) {
                let seqs: Vec<u64> = bodies(&store, id).await.iter().map(|chunk| chunk.seq).collect();
                assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "a gap or a repeat");
                assert!(seqs.len() >= least, "{} chunks after {least}", seqs.len());
                least = seqs.len();
                let keys: Vec<_> = (1..=least).map(|seq| format!("k{seq}").into()).collect();
                assert_eq!(store.seqs_of_keys(id, &keys).await.unwrap().len(), least, "a key is missing");
                readings += 1;
            }
            readings
        })
    };
    for seq in 1..=400 {
        append(&*store, appended(id, 1, vec![chunk(seq, Some(format!("k{seq}")), 10)])).await.unwrap();
        append(&*store, appended(other, 1, vec![chunk(seq, None, 300)])).await.unwrap();
    }
    ended.store(true, Ordering::Relaxed);
    assert!(reading.await.unwrap() > 3);
    store.close().await;
}

/// A full disk: the transaction fails as a whole, and memory is what the disk has.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_fails_leaves_memory_as_the_disk_is() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path(), &Limits::default()).unwrap();
    let id = stream_of(&store, 1).await.unwrap();
    append(&store, appended(id, 1, vec![chunk(1, Some("k".into()), 10)])).await.unwrap();
    let pages = |count: i64| {
        store.write(move |c| {
            c.pragma_update_and_check(None, "max_page_count", count, |_| Ok(())).map_err(sql_error)
        })
    };
    // No fewer than there are; the free ones of the table take a few chunks.
    pages(1).await.unwrap();
    let mut last = 1;
    let failed = loop {
        match append(&store, appended(id, 1, vec![chunk(last + 1, None, 2_000)])).await {
            Ok(()) => last += 1,
            Err(error) => break error,
        }
        assert!(last < 100, "the disk is never full");
    };
    assert!(matches!(failed, StoreError::Unavailable(_)), "{failed}");
    assert_eq!(bodies(&store, id).await.len() as u64, last, "what failed is not to be read");
    pages(1_000_000).await.unwrap();
    assert_eq!(
        append(&store, appended(id, 1, vec![chunk(last + 2, None, 1)])).await,
        Err(StoreError::Fenced)
    );
    assert_eq!(
        append(&store, appended(id, 1, vec![chunk(last + 1, Some("k".into()), 1)])).await,
        Err(StoreError::Fenced)
    );
    assert_eq!(append(&store, appended(id, 1, vec![chunk(last + 1, None, 1)])).await, Ok(()));
    assert_eq!(bodies(&store, id).await.len() as u64, last + 1);
    store.close().await;
    // It holds the lock of the folder.
    drop(store);
    let store = SqliteStore::open(folder.path(), &Limits::default()).unwrap();
    assert_eq!(bodies(&store, id).await.len() as u64, last + 1, "after a restart too");
    store.close().await;
}
