//! `kill -9` in the middle of 2,000 chunks a second, fifty times over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time and read the environment")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use muster_node::http::phoenix_client::Channel;
use muster_tests::{Agent, Node};
use serde_json::json;

const ROUNDS: u64 = 50;
const ROUNDS_ON_POSTGRESQL: u64 = 10;
const PRODUCERS: usize = 4;
const STREAMS_PER_PRODUCER: usize = 5;
/// Chunks of one stream a second: with 20 streams, 2,000 a second.
const RATE: u64 = 100;
/// What must have been acknowledged before a kill, in chunks: less would be no load.
const ACKNOWLEDGED_MIN: u64 = 250;
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a producer knows of one stream: which chunks were acknowledged, and as which seq.
#[derive(Default)]
struct Book {
    acknowledged: BTreeMap<u64, u64>,
    /// Sent or to be sent, oldest first: retried in this order after a crash.
    waiting: VecDeque<u64>,
    next: u64,
}

type Books = Arc<parking_lot::Mutex<Vec<Book>>>;

/// R43 R46 R52 R166: what was acknowledged survives, seq has no gap and no repeat, and a retry with its key is no
/// second chunk.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_chunks_survive_fifty_kills_amid_two_thousand_a_second() {
    let total = survive_kills(ROUNDS, &[]).await;
    eprintln!("{total} acknowledged chunks survived {ROUNDS} kills");
}

/// R46 R52: the same with PostgreSQL, where what the killed node had under way may still happen.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_chunks_survive_kills_with_postgresql() {
    let server = muster_test_postgres::Server::start();
    let url = format!("store.url={}", server.database("muster"));
    let total = survive_kills(ROUNDS_ON_POSTGRESQL, &[&url]).await;
    eprintln!("{total} acknowledged chunks survived {ROUNDS_ON_POSTGRESQL} kills");
}

/// Gives how many chunks were acknowledged.
async fn survive_kills(rounds: u64, settings: &[&str]) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut node = Node::start(&data, settings).await;
    let client = node.agent("client").await;
    let mut producers = Vec::new();
    for n in 0..PRODUCERS {
        let provider = Arc::new(node.agent(&format!("provider-{n}")).await);
        let mut tasks = Vec::new();
        for _ in 0..STREAMS_PER_PRODUCER {
            tasks.push(client.task_for(&provider).await);
        }
        let books: Books =
            Arc::new(parking_lot::Mutex::new((0..tasks.len()).map(|_| Book::default()).collect()));
        producers.push((provider, Arc::new(tasks), books));
    }
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut checked = vec![vec![0; STREAMS_PER_PRODUCER]; PRODUCERS];
    for round in 0..rounds {
        let stop = Arc::new(AtomicBool::new(false));
        let mut running = Vec::new();
        for (provider, tasks, books) in &producers {
            let produce = produce(
                node.address.clone(),
                provider.clone(),
                tasks.clone(),
                books.clone(),
                (stop.clone(), acknowledged.clone()),
            );
            running.push(tokio::spawn(produce));
        }
        let (begun, before) = (Instant::now(), acknowledged.load(Ordering::Relaxed));
        while acknowledged.load(Ordering::Relaxed) - before < ACKNOWLEDGED_MIN {
            assert!(begun.elapsed() < PATIENCE, "round {round}: this is no load");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Not always at the same point of a commit.
        tokio::time::sleep(Duration::from_millis(round * 37 % 300)).await;
        node.kill();
        stop.store(true, Ordering::Relaxed);
        for producer in running {
            producer.await.unwrap();
        }
        node.launch().await;
        for ((provider, tasks, books), checked) in producers.iter().zip(&mut checked) {
            check(provider, tasks, books, checked).await;
        }
    }
    for (provider, tasks, books) in &producers {
        check(provider, tasks, books, &mut [0; STREAMS_PER_PRODUCER]).await;
    }
    let total = acknowledged.load(Ordering::Relaxed);
    assert!(!node.log().contains("\"panic\""), "{}", node.log());
    total
}

/// Emits at its rate until the node is gone: first what the last life left unacknowledged, in order, with its keys.
async fn produce(
    address: String,
    provider: Arc<Agent>,
    tasks: Arc<Vec<String>>,
    books: Books,
    (stop, acknowledged): (Arc<AtomicBool>, Arc<AtomicU64>),
) {
    let topic = format!("agent:{}", provider.id);
    let Ok(channel) = Channel::join(&address, "/socket/agent", &provider.key, &topic, json!({})).await else {
        return;
    };
    let channel = Arc::new(channel);
    let mut emitting = Vec::new();
    for (index, task) in tasks.iter().enumerate() {
        let retries: Vec<u64> = books.lock()[index].waiting.iter().copied().collect();
        for number in retries {
            emitting.push(emit(&channel, task, &books, index, number, &acknowledged));
        }
    }
    let mut timer = tokio::time::interval(Duration::from_millis(1_000 / RATE));
    while !stop.load(Ordering::Relaxed) {
        timer.tick().await;
        for (index, task) in tasks.iter().enumerate() {
            let number = {
                let book = &mut books.lock()[index];
                book.next += 1;
                let number = book.next;
                book.waiting.push_back(number);
                number
            };
            emitting.push(emit(&channel, task, &books, index, number, &acknowledged));
        }
    }
    for emit in emitting {
        emit.await.unwrap();
    }
}

fn emit(
    channel: &Arc<Channel>,
    task: &str,
    books: &Books,
    index: usize,
    number: u64,
    acknowledged: &Arc<AtomicU64>,
) -> tokio::task::JoinHandle<()> {
    let chunk =
        json!({ "task_id": task, "content": number.to_string(), "idempotency_key": format!("n{number}") });
    // Queued here, in order; only the answer is waited for elsewhere.
    let answer = channel.send("task.stream_chunk", chunk);
    let (books, acknowledged) = (books.clone(), acknowledged.clone());
    tokio::spawn(async move {
        let Ok(response) = answer.await else { return };
        let seq = response["seq"].as_u64().unwrap();
        let book = &mut books.lock()[index];
        if let Some(before) = book.acknowledged.insert(number, seq) {
            assert_eq!(before, seq, "the same key had another seq");
        }
        book.waiting.retain(|waiting| *waiting != number);
        acknowledged.fetch_add(1, Ordering::Relaxed);
    })
}

/// Reads each stream from where it was checked last.
async fn check(provider: &Agent, tasks: &[String], books: &Books, checked: &mut [u64]) {
    for (index, task) in tasks.iter().enumerate() {
        let after = checked[index];
        let chunks = provider.read_stream(task, after).await;
        let mut by_seq = BTreeMap::new();
        let mut contents = std::collections::BTreeSet::new();
        for (place, chunk) in (after + 1..).zip(&chunks) {
            assert_eq!(chunk["seq"].as_u64(), Some(place), "a gap or a repeat");
            let number: u64 = chunk["content"].as_str().unwrap().parse().unwrap();
            assert!(contents.insert(number), "chunk {number} is there twice");
            by_seq.insert(place, number);
        }
        let last = after + chunks.len() as u64;
        let book = &books.lock()[index];
        for (number, seq) in book.acknowledged.iter().filter(|(_, seq)| **seq > after) {
            assert!(*seq <= last, "acknowledged chunk {number} (seq {seq}) is lost; the log ends at {last}");
            assert_eq!(by_seq.get(seq), Some(number), "seq {seq} is another chunk");
        }
        checked[index] = last;
    }
}
