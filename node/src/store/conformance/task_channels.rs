//! The channels of tasks.

use std::collections::BTreeSet;

use muster_actors::store::{ChunkRange, CloseStream, Finish, Reassign, Store, StoreError};
use muster_protocol::agent::Agent;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::json::Json;
use muster_protocol::task::{Ending, Task, TaskStatus};
use muster_protocol::task_channel::batch::PutChunk;
use muster_protocol::task_channel::{
    ChannelChunk, Checkpoint, Checksum, Closing, Direction, Percent, Progress, StreamBounds, StreamState,
    Taken,
};

use super::{Fixture, add_agent, at, task};

const BOUNDS: StreamBounds = StreamBounds { bytes_max: 1_000, chunks_max: 1_000 };

async fn company(store: &dyn Store) -> (Agent, Agent, Task) {
    let (client, provider) = (add_agent(store, 1, None).await, add_agent(store, 2, None).await);
    let order = task(1, &client, &provider);
    store.create_task(order.clone(), None).await.unwrap();
    (client, provider, order)
}

fn put(task: &Task, direction: Direction, by: &Agent, seq: u64, text: &str) -> PutChunk {
    let bytes = text.as_bytes().to_vec();
    let digest = Checksum::of(&bytes);
    let chunk = ChannelChunk { seq, bytes, is_base64: seq.is_multiple_of(2) };
    PutChunk { task: task.id, direction, by: by.id, chunk, digest, now: at(70) }
}

async fn take(store: &dyn Store, puts: Vec<PutChunk>) -> Vec<Result<Taken, ErrorCode>> {
    let results = store.put_channel_chunks(puts, BOUNDS).await.unwrap();
    results.into_iter().map(|result| result.map_err(|refusal| refusal.code)).collect()
}

async fn read(store: &dyn Store, task: &Task, direction: Direction, range: ChunkRange) -> Vec<(u64, u64)> {
    let chunks = store.read_channel_chunks(task.id, direction, range, 1_000_000).await.unwrap();
    chunks.iter().map(|stored| (stored.nth, stored.chunk.seq)).collect()
}

fn code<T>(result: Result<T, Refusal>) -> Option<ErrorCode> {
    result.err().map(|refusal| refusal.code)
}

pub async fn channel_chunks_are_kept_once_each(store: &dyn Store) {
    let (client, provider, order) = company(store).await;
    let input = |seq, text| put(&order, Direction::Input, &client, seq, text);
    let output = |seq, text| put(&order, Direction::Output, &provider, seq, text);
    let batch = vec![input(3, "c"), input(1, "a"), input(1, "a"), input(1, "x"), output(0, "o\0")];
    let (new, duplicate) = (|nth| Ok(Taken::New(nth)), Ok(Taken::Duplicate));
    assert_eq!(take(store, batch).await, [new(1), new(2), duplicate, Err(ErrorCode::SeqConflict), new(1)]);
    assert_eq!(
        take(store, vec![input(3, "c"), input(2, ""), input(3, "d")]).await,
        [duplicate, new(3), Err(ErrorCode::SeqConflict)]
    );
    let state = store.task_channel(order.id).await.unwrap();
    let input_state = StreamState { base: None, last_seq: Some(3), chunks: 3, bytes: 2, closing: None };
    assert_eq!(state.input, input_state);
    assert_eq!((state.output.base, state.output.last_seq, state.output.bytes), (Some(0), Some(0), 2));
    assert_eq!(state.task.status, TaskStatus::InProgress, "output begins a task");
    assert_eq!(store.timeline(order.id).await.unwrap().len(), 2);
    let by_seq = |after, nth_max| ChunkRange::BySeq { after, nth_max };
    assert_eq!(read(store, &order, Direction::Input, by_seq(None, 9)).await, [(2, 1), (3, 2), (1, 3)]);
    assert_eq!(read(store, &order, Direction::Input, by_seq(Some(1), 2)).await, [(1, 3)]);
    let by_arrival = ChunkRange::ByArrival { after: 1 };
    assert_eq!(read(store, &order, Direction::Input, by_arrival).await, [(2, 1), (3, 2)]);
    let stored = store.read_channel_chunks(order.id, Direction::Output, by_seq(None, 9), 1).await.unwrap();
    assert_eq!(stored[0].chunk, output(0, "o\0").chunk);
    let pieces = store.read_channel_chunks(order.id, Direction::Input, by_seq(None, 9), 100).await.unwrap();
    assert_eq!(pieces.len(), 1, "in pieces, at least one");
}

pub async fn channels_are_for_their_parties_while_the_task_is_active(store: &dyn Store) {
    let (client, provider, order) = company(store).await;
    let stranger = add_agent(store, 3, None).await;
    let (input, output) = (Direction::Input, Direction::Output);
    let wrong = vec![
        put(&order, input, &provider, 1, "a"),
        put(&order, output, &client, 1, "a"),
        put(&order, input, &stranger, 1, "a"),
        put(&task(9, &client, &provider), input, &client, 1, "a"),
    ];
    assert_eq!(take(store, wrong).await, vec![Err(ErrorCode::Unauthorized); 4]);
    let progress = Progress { percent: Percent::new(12.5).unwrap(), message: Some("a\0b".into()) };
    let set = store.set_progress(order.id, client.id, progress.clone(), at(80)).await.unwrap();
    assert_eq!(code(set), Some(ErrorCode::Unauthorized));
    assert_eq!(store.set_progress(order.id, provider.id, progress.clone(), at(80)).await.unwrap(), Ok(()));
    let state = store.task_channel(order.id).await.unwrap();
    assert_eq!((state.task.progress, state.task.status), (Some(progress.clone()), TaskStatus::InProgress));
    // What has begun by its channel is not handed on, and its stream can still begin.
    let epoch = store.claim_stream(order.id, 0, 0).await.unwrap().epoch;
    let reassign = Reassign { task: order.id, epoch, provider: stranger.id, by: client.id, now: at(81) };
    assert_eq!(store.reassign_task(reassign).await, Err(StoreError::WrongStatus(TaskStatus::InProgress)));
    let ending = Ending::cancelled(None);
    let finish = Finish { task: order.id, epoch, ending, by: Some(client.id), last_seq: 0, now: at(90) };
    store.finish_task(finish).await.unwrap();
    assert_eq!(take(store, vec![put(&order, input, &client, 1, "a")]).await, [Err(ErrorCode::TaskNotActive)]);
    let set = store.set_progress(order.id, provider.id, progress, at(91)).await.unwrap();
    assert_eq!(code(set), Some(ErrorCode::TaskNotActive));
    let checkpoint = Checkpoint { seq: 1, state: Json::null() };
    let set = store.set_checkpoint(order.id, provider.id, checkpoint, at(91)).await.unwrap();
    assert_eq!(code(set), Some(ErrorCode::TaskNotActive));
}

pub async fn channel_streams_close_as_they_were_checked(store: &dyn Store) {
    let (client, provider, order) = company(store).await;
    let input = |seq, text| put(&order, Direction::Input, &client, seq, text);
    take(store, vec![input(1, "a")]).await;
    let checked = store.task_channel(order.id).await.unwrap().input;
    take(store, vec![input(2, "b")]).await;
    let closing = Closing { checksum: Checksum::of(b"a"), total_size: 1 };
    let close = CloseStream { task: order.id, direction: Direction::Input, by: client.id, checked, closing };
    assert_eq!(store.close_channel_stream(close, at(80)).await, Err(StoreError::Conflict), "more came");
    let checked = store.task_channel(order.id).await.unwrap().input;
    let by_other = CloseStream { by: provider.id, checked, ..close };
    let refused = store.close_channel_stream(by_other, at(80)).await.unwrap();
    assert_eq!(code(refused), Some(ErrorCode::Unauthorized));
    let close = CloseStream { checked, ..close };
    assert_eq!(store.close_channel_stream(close, at(80)).await, Ok(Ok(())));
    assert_eq!(store.close_channel_stream(close, at(80)).await, Err(StoreError::Conflict), "once");
    let closed = store.task_channel(order.id).await.unwrap().input;
    assert_eq!(closed, StreamState { closing: Some(closing), ..checked });
    assert_eq!(
        take(store, vec![input(3, "c"), input(2, "b")]).await,
        [Err(ErrorCode::StreamComplete), Ok(Taken::Duplicate)]
    );
    // A stream may be empty.
    let checked = StreamState::default();
    let empty = Closing { checksum: Checksum::of(b""), total_size: 0 };
    let close =
        CloseStream { direction: Direction::Output, by: provider.id, checked, closing: empty, ..close };
    assert_eq!(store.close_channel_stream(close, at(81)).await, Ok(Ok(())));
    assert_eq!(store.task_channel(order.id).await.unwrap().output.closing, Some(empty));
}

pub async fn checkpoints_outlive_the_store(fixture: Fixture) {
    let (_, provider, order) = company(fixture.store.as_ref()).await;
    let by = provider.id;
    let of = |seq, text: &str| Checkpoint { seq, state: Json::of(text) };
    let store = fixture.store.clone();
    assert_eq!(store.set_checkpoint(order.id, by, of(5, "a\u{0}"), at(80)).await.unwrap(), Ok(true));
    assert_eq!(store.set_checkpoint(order.id, by, of(5, "a\u{0}"), at(80)).await.unwrap(), Ok(false));
    let stale = store.set_checkpoint(order.id, by, of(4, "b"), at(80)).await.unwrap();
    assert_eq!(code(stale), Some(ErrorCode::StaleCheckpoint));
    assert_eq!(store.set_checkpoint(order.id, by, of(7, "c"), at(80)).await.unwrap(), Ok(true));
    take(store.as_ref(), vec![put(&order, Direction::Output, &provider, 1, "o")]).await;
    drop(store);
    let fixture = fixture.reopened().await;
    let state = fixture.store.task_channel(order.id).await.unwrap();
    assert_eq!((state.checkpoint, state.output.chunks), (Some(of(7, "c")), 1));
    assert_eq!(fixture.store.checkpoint(order.id).await.unwrap(), Some(of(7, "c")));
    fixture.close().await;
}

pub async fn channel_chunks_at_once_are_numbered_without_a_gap(store: &dyn Store) {
    let (client, provider, order) = company(store).await;
    let both = (0..40_u64).flat_map(|n| {
        let text = n.to_string();
        let seq = n % 30;
        let input = put(&order, Direction::Input, &client, seq + 1, &(seq + 1).to_string());
        [vec![input], vec![put(&order, Direction::Output, &provider, n + 1, &text)]]
    });
    let results = futures_util::future::join_all(both.map(|puts| take(store, puts))).await;
    let new: usize = results.iter().flatten().filter(|taken| matches!(taken, Ok(Taken::New(_)))).count();
    assert_eq!(new, 70, "ten were sent twice");
    for (direction, count) in [(Direction::Input, 30), (Direction::Output, 40)] {
        let all = read(store, &order, direction, ChunkRange::ByArrival { after: 0 }).await;
        assert_eq!(all.iter().map(|(nth, _)| *nth).collect::<Vec<_>>(), (1..=count).collect::<Vec<_>>());
        assert_eq!(all.iter().map(|(_, seq)| *seq).collect::<BTreeSet<_>>().len() as u64, count);
    }
}

pub async fn channel_chunks_are_purged_after_their_time(store: &dyn Store) {
    let (client, provider, order) = company(store).await;
    take(store, (1..=300).map(|seq| put(&order, Direction::Input, &client, seq, "a")).collect()).await;
    assert_eq!(store.purge_streams(at(1_000), 100).await, Ok(0), "the task has not ended");
    let epoch = store.claim_stream(order.id, 0, 0).await.unwrap().epoch;
    let ending = Ending::completed(Json::null());
    let by = Some(provider.id);
    store.finish_task(Finish { task: order.id, epoch, ending, by, last_seq: 0, now: at(500) }).await.unwrap();
    assert_eq!(store.purge_streams(at(500), 100).await, Ok(0), "nor is it long ago");
    let mut rounds = 0;
    while store.purge_streams(at(1_000), 100).await.unwrap() > 0 {
        rounds += 1;
    }
    assert!(rounds > 1, "in parts");
    assert!(read(store, &order, Direction::Input, ChunkRange::ByArrival { after: 0 }).await.is_empty());
    assert_eq!(store.task_channel(order.id).await.unwrap().input.chunks, 300);
}
