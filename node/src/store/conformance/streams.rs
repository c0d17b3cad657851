//! The logs of task streams.

use std::sync::Arc;

use muster_actors::store::{Append, Finish, Store, StoreError, StoreResult};
use muster_protocol::ids::TaskId;
use muster_protocol::json::Json;
use muster_protocol::task::{Ending, TaskStatus};
use muster_protocol::task_stream::Chunk;
use tokio::sync::oneshot;

use super::{Fixture, add_agent, append, append_of, at, task};

pub fn chunk(seq: u64) -> Chunk {
    let body = Json::of(&serde_json::json!({ "seq": seq, "content": "x" }));
    Chunk { seq, body, idempotency_key: seq.is_multiple_of(2).then(|| format!("k{seq}").into()) }
}

fn chunks_of(task: TaskId, epoch: u64, seqs: std::ops::RangeInclusive<u64>) -> Append {
    append_of(task, epoch, seqs.map(chunk).collect())
}

/// A task, and the epoch of whoever owns its stream.
async fn owned_task(store: &dyn Store) -> (TaskId, u64) {
    let (client, provider) = (add_agent(store, 1, None).await, add_agent(store, 2, None).await);
    let order = task(1, &client, &provider);
    store.create_task(order.clone(), None).await.unwrap();
    (order.id, claim(store, order.id).await)
}

async fn claim(store: &dyn Store, id: TaskId) -> u64 {
    store.claim_stream(id, 0, 0).await.unwrap().epoch
}

async fn seqs(store: &dyn Store, id: TaskId, after: u64, upto: u64, bytes_max: usize) -> Vec<u64> {
    let chunks = store.read_chunks(id, after, upto, bytes_max).await.unwrap();
    chunks.iter().map(|chunk| chunk.seq).collect()
}

pub async fn chunks_are_appended_in_order(store: &dyn Store) {
    let (id, epoch) = owned_task(store).await;
    let head = store.stream_head(id, 10, 1_000).await.unwrap();
    assert_eq!((head.last_seq, head.first_seq, head.newest.len()), (0, 1, 0));
    assert_eq!(append(store, chunks_of(id, epoch, 1..=3)).await, Ok(()));
    assert_eq!(store.task(id).await.unwrap().status, TaskStatus::InProgress);
    assert_eq!(append(store, chunks_of(id, epoch, 4..=5)).await, Ok(()));
    let head = store.stream_head(id, 3, 100_000).await.unwrap();
    assert_eq!((head.last_seq, head.first_seq), (5, 1));
    assert_eq!(head.newest, [chunk(3), chunk(4), chunk(5)], "the newest, oldest first");
    assert_eq!(store.stream_head(id, 10, 0).await.unwrap().newest, []);
    let nowhere = TaskId::from_bytes([7; 16]);
    assert_eq!(store.stream_head(nowhere, 1, 1).await.unwrap_err(), StoreError::NotFound);
    let events: Vec<_> = store.timeline(id).await.unwrap().into_iter().map(|entry| entry.event).collect();
    assert_eq!(events, ["task_created", "task_started"]);
}

pub async fn a_task_begins_once(store: &dyn Store) {
    let (id, epoch) = owned_task(store).await;
    let begin = |seq| Append { begins_task: true, ..chunks_of(id, epoch, seq..=seq) };
    // Both are on their way before either is stored.
    let (first, second) = tokio::join!(append(store, begin(1)), append(store, begin(2)));
    let wrong = Err(StoreError::WrongStatus(TaskStatus::InProgress));
    assert_eq!((first, second), (Ok(()), wrong.clone()));
    assert_eq!(append(store, begin(2)).await, wrong);
    assert_eq!(append(store, chunks_of(id, epoch, 2..=2)).await, Ok(()));
    assert_eq!(store.timeline(id).await.unwrap().len(), 2);
}

pub async fn old_writers_are_fenced_off(store: &dyn Store) {
    let (id, old) = owned_task(store).await;
    append(store, chunks_of(id, old, 1..=2)).await.unwrap();
    assert_eq!(
        append(store, Append { chunks: vec![key_less(2), chunk(3)], ..chunks_of(id, old, 2..=3) }).await,
        Err(StoreError::Fenced),
        "a seq given out twice"
    );
    assert_eq!(append(store, chunks_of(id, old, 4..=4)).await, Err(StoreError::Fenced), "a gap");
    let new = claim(store, id).await;
    assert!(new > old);
    assert_eq!(append(store, chunks_of(id, old, 3..=3)).await, Err(StoreError::Fenced), "an older epoch");
    assert_eq!(append(store, chunks_of(id, new, 3..=3)).await, Ok(()), "the newer owner");
    assert_eq!(append(store, chunks_of(id, old, 4..=4)).await, Err(StoreError::Fenced), "for good");
    let mut same_key = chunks_of(id, new, 4..=4);
    same_key.chunks[0].idempotency_key = Some("k2".into());
    assert_eq!(append(store, same_key).await, Err(StoreError::Fenced), "a key given out twice");
    assert_eq!(seqs(store, id, 0, 99, 100_000).await, [1, 2, 3], "what was refused left nothing");
    let head = store.stream_head(id, 10, 100_000).await.unwrap();
    assert_eq!((head.last_seq, head.epoch), (3, new));
}

/// A chunk of that seq that is none of [`chunk`]'s.
fn key_less(seq: u64) -> Chunk {
    Chunk { body: Json::of("another"), idempotency_key: None, ..chunk(seq) }
}

pub async fn a_claim_gives_where_the_stream_stands(store: &dyn Store) {
    let (id, first) = owned_task(store).await;
    append(store, chunks_of(id, first, 1..=5)).await.unwrap();
    let head = store.claim_stream(id, 3, 100_000).await.unwrap();
    assert_eq!((head.last_seq, head.first_seq, head.task.id), (5, 1, id));
    assert_eq!(head.newest, [chunk(3), chunk(4), chunk(5)]);
    assert!(head.epoch > first);
    assert_eq!(store.stream_head(id, 3, 100_000).await, Ok(head), "looking claims nothing");
    let nowhere = TaskId::from_bytes([7; 16]);
    assert_eq!(store.claim_stream(nowhere, 1, 1).await.unwrap_err(), StoreError::NotFound);
}

pub async fn a_claim_stands_without_a_chunk(store: &dyn Store) {
    let (id, old) = owned_task(store).await;
    let new = claim(store, id).await;
    assert_eq!(
        append(store, chunks_of(id, old, 1..=1)).await,
        Err(StoreError::Fenced),
        "before the first chunk"
    );
    assert_eq!(store.task(id).await.unwrap().status, TaskStatus::Pending);
    append(store, chunks_of(id, new, 1..=1)).await.unwrap();
    let newest = claim(store, id).await;
    assert_eq!(append(store, chunks_of(id, new, 2..=2)).await, Err(StoreError::Fenced), "after it");
    assert_eq!(append(store, chunks_of(id, newest, 2..=2)).await, Ok(()));
}

pub async fn old_owners_do_not_end_tasks(store: &dyn Store) {
    let (id, old) = owned_task(store).await;
    let new = claim(store, id).await;
    assert_eq!(store.finish_task(cancel(id, old, 0, 60)).await.unwrap_err(), StoreError::Fenced);
    assert_eq!(store.task(id).await.unwrap().status, TaskStatus::Pending);
    assert!(store.finish_task(cancel(id, new, 0, 61)).await.is_ok());
    let ended = store.claim_stream(id, 10, 100_000).await.unwrap();
    assert_eq!((ended.epoch, ended.task.status), (0, TaskStatus::Cancelled), "there is nothing to claim");
    assert_eq!(append(store, chunks_of(id, 0, 1..=1)).await, Err(StoreError::Fenced));
    assert_eq!(store.stream_head(id, 10, 100_000).await.unwrap(), ended);
}

pub async fn claims_outlive_the_store(mut fixture: Fixture) {
    let (id, old) = owned_task(fixture.store.as_ref()).await;
    append(fixture.store.as_ref(), chunks_of(id, old, 1..=2)).await.unwrap();
    let new = claim(fixture.store.as_ref(), id).await;
    assert_eq!(append(fixture.store.as_ref(), chunks_of(id, old, 3..=3)).await, Err(StoreError::Fenced));
    assert_eq!(append(fixture.store.as_ref(), chunks_of(id, new, 3..=3)).await, Ok(()));
    fixture = fixture.reopened().await;
    let store = fixture.store.as_ref();
    assert_eq!(append(store, chunks_of(id, old, 4..=4)).await, Err(StoreError::Fenced));
    assert_eq!(store.finish_task(cancel(id, old, 3, 60)).await.unwrap_err(), StoreError::Fenced);
    assert_eq!(append(store, chunks_of(id, new, 4..=4)).await, Ok(()), "nobody has claimed it since");
    assert!(claim(store, id).await > new);
    assert_eq!(append(store, chunks_of(id, new, 5..=5)).await, Err(StoreError::Fenced));
    assert_eq!(seqs(store, id, 0, 99, 100_000).await, [1, 2, 3, 4]);
    fixture.close().await;
}

fn cancel(id: TaskId, epoch: u64, last_seq: u64, ms: i64) -> Finish {
    Finish { task: id, epoch, ending: Ending::cancelled(None), by: None, last_seq, now: at(ms) }
}

pub async fn ended_tasks_take_no_chunks(store: &dyn Store) {
    let (id, epoch) = owned_task(store).await;
    append(store, chunks_of(id, epoch, 1..=2)).await.unwrap();
    let early = store.finish_task(cancel(id, epoch, 3, 60)).await;
    assert_eq!(early.unwrap_err(), StoreError::Fenced, "a chunk that was given out is not stored");
    assert!(store.finish_task(cancel(id, epoch, 2, 60)).await.is_ok());
    assert_eq!(append(store, chunks_of(id, epoch, 3..=3)).await, Err(StoreError::Fenced));
    assert_eq!(append(store, chunks_of(id, epoch + 9, 3..=3)).await, Err(StoreError::Fenced));
    assert_eq!(seqs(store, id, 0, 99, 100_000).await, [1, 2]);
}

pub async fn chunks_are_read_in_parts(store: &dyn Store) {
    let (id, epoch) = owned_task(store).await;
    append(store, chunks_of(id, epoch, 1..=10)).await.unwrap();
    assert_eq!(seqs(store, id, 0, 10, usize::MAX).await, (1..=10).collect::<Vec<_>>());
    assert_eq!(seqs(store, id, 4, 7, usize::MAX).await, [5, 6, 7]);
    assert_eq!(seqs(store, id, 4, 7, 1).await, [5], "at least one");
    assert_eq!(seqs(store, id, 0, 10, chunk(1).weight() * 3).await.len(), 2, "the bytes of keys count too");
    assert_eq!(seqs(store, id, 10, 10, usize::MAX).await, Vec::<u64>::new());
    assert_eq!(store.read_chunks(id, 1, 2, 1).await, Ok(vec![chunk(2)]));
}

pub async fn keys_are_found(store: &dyn Store) {
    let (id, epoch) = owned_task(store).await;
    append(store, chunks_of(id, epoch, 1..=4)).await.unwrap();
    let found = store.seqs_of_keys(id, &["k2".into(), "k3".into(), "k4".into()]).await.unwrap();
    assert_eq!(found, [("k2".into(), 2), ("k4".into(), 4)]);
    let other = TaskId::from_bytes([7; 16]);
    assert_eq!(store.seqs_of_keys(other, &["k2".into()]).await, Ok(vec![]), "keys are a task's own");
}

pub async fn streams_are_purged_after_their_time(store: &dyn Store) {
    let (id, epoch) = owned_task(store).await;
    append(store, chunks_of(id, epoch, 1..=3)).await.unwrap();
    assert_eq!(store.purge_streams(at(100_000), 10).await, Ok(0), "it has not ended");
    store.finish_task(cancel(id, epoch, 3, 60)).await.unwrap();
    assert_eq!(store.purge_streams(at(60), 10).await, Ok(0), "not yet");
    assert_eq!(store.purge_streams(at(61), 2).await, Ok(2), "a part of them");
    let head = store.stream_head(id, 10, 100_000).await.unwrap();
    assert_eq!((head.last_seq, head.first_seq, head.newest.len()), (3, 3, 1));
    assert_eq!(store.purge_streams(at(61), 2).await, Ok(1));
    assert_eq!(store.purge_streams(at(61), 2).await, Ok(0), "once");
    let head = store.stream_head(id, 10, 100_000).await.unwrap();
    assert_eq!((head.last_seq, head.first_seq, head.newest.len()), (3, 4, 0));
    assert_eq!(head.task.status, TaskStatus::Cancelled, "the task itself stays");
}

pub async fn appends_and_ends_are_ordered(store: &dyn Store) {
    let (id, epoch) = owned_task(store).await;
    let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let mut answers = Vec::new();
    for seq in 1..=20 {
        let (reply, answer) = oneshot::channel();
        let order = order.clone();
        let done = Box::new(move |result: StoreResult<()>| {
            order.lock().push(seq);
            drop(reply.send(result));
        });
        store.append_chunks(chunks_of(id, epoch, seq..=seq), done).await;
        answers.push(answer);
    }
    // Asked for behind the appends, so it finds all of them.
    assert!(store.finish_task(cancel(id, epoch, 20, 60)).await.is_ok());
    for answer in answers {
        assert_eq!(answer.await, Ok(Ok(())));
    }
    assert_eq!(*order.lock(), (1..=20).collect::<Vec<_>>());
}

pub async fn epochs_rise_over_all_streams(store: &dyn Store) {
    let (client, provider) = (add_agent(store, 1, None).await, add_agent(store, 2, None).await);
    let mut epochs = Vec::new();
    for n in 1..=3 {
        let order = task(n, &client, &provider);
        store.create_task(order.clone(), None).await.unwrap();
        assert_eq!(store.stream_head(order.id, 1, 1).await.unwrap().epoch, 0, "nobody's yet");
        epochs.extend([claim(store, order.id).await, claim(store, order.id).await]);
    }
    assert!(epochs[0] > 0 && epochs.is_sorted_by(|a, b| a < b), "{epochs:?}");
}

pub async fn streams_grow_side_by_side(store: &dyn Store) {
    let (client, provider) = (add_agent(store, 1, None).await, add_agent(store, 2, None).await);
    let mut ids = Vec::new();
    for n in 1..=5 {
        let order = task(n, &client, &provider);
        store.create_task(order.clone(), None).await.unwrap();
        ids.push((order.id, claim(store, order.id).await));
    }
    for round in 0..30_u64 {
        for ((id, epoch), grows_by) in ids.iter().zip(1..) {
            let (first, last) = (round * grows_by + 1, (round + 1) * grows_by);
            assert_eq!(append(store, chunks_of(*id, *epoch, first..=last)).await, Ok(()));
        }
    }
    for ((id, epoch), grows_by) in ids.iter().zip(1_u64..) {
        let last = 30 * grows_by;
        let chunks = store.read_chunks(*id, 0, u64::MAX >> 1, usize::MAX).await.unwrap();
        assert_eq!(chunks, (1..=last).map(chunk).collect::<Vec<_>>());
        assert_eq!(seqs(store, *id, last - 2, last, usize::MAX).await, [last - 1, last]);
        let head = store.stream_head(*id, 2, 100_000).await.unwrap();
        assert_eq!((head.last_seq, head.newest), (last, vec![chunk(last - 1), chunk(last)]));
        assert!(store.finish_task(cancel(*id, *epoch, last, 60)).await.is_ok());
        assert_eq!(append(store, chunks_of(*id, *epoch, last + 1..=last + 1)).await, Err(StoreError::Fenced));
    }
    let mut dropped = 0;
    loop {
        match store.purge_streams(at(61), 20).await.unwrap() {
            0 => break,
            some => dropped += some,
        }
    }
    assert!(dropped >= 450, "{dropped} of 30 times 15 chunks");
    for (id, _) in ids {
        assert_eq!(seqs(store, id, 0, 999, usize::MAX).await, Vec::<u64>::new());
    }
}

pub async fn keys_are_given_out_once(store: &dyn Store) {
    let (id, epoch) = owned_task(store).await;
    let mut twice = chunks_of(id, epoch, 1..=2);
    twice.chunks[0].idempotency_key = Some("k2".into());
    assert_eq!(append(store, twice).await, Err(StoreError::Fenced), "in one append");
    assert_eq!(store.task(id).await.unwrap().status, TaskStatus::Pending, "what was refused begins nothing");
    append(store, chunks_of(id, epoch, 1..=20)).await.unwrap();
    for key in ["k2", "k20"] {
        let mut again = chunks_of(id, epoch, 21..=22);
        again.chunks[1].idempotency_key = Some(key.into());
        assert_eq!(append(store, again).await, Err(StoreError::Fenced), "{key}, of another append");
    }
    assert_eq!(append(store, chunks_of(id, epoch, 21..=22)).await, Ok(()));
    let gap = Append { chunks: vec![chunk(23), chunk(25)], ..chunks_of(id, epoch, 23..=23) };
    assert_eq!(append(store, gap).await, Err(StoreError::Fenced), "a gap within one append");
    let nothing = Append { chunks: vec![], ..chunks_of(id, epoch, 23..=23) };
    assert_eq!(append(store, nothing).await, Ok(()));
    assert_eq!(seqs(store, id, 0, 99, usize::MAX).await, (1..=22).collect::<Vec<_>>());
}
