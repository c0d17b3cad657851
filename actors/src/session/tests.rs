//! Two nodes over one store that changes under their hands, refuses, crashes and is away.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use prometheus_client::registry::Registry as MetricRegistry;

use super::*;
use crate::ports::{Clock, Entropy};
use crate::store::StoreError;
use crate::supervisor::{self, Supervisor};

struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(0)
    }

    fn monotonic_us(&self) -> u64 {
        0
    }
}

impl Entropy for Still {
    fn fill(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

/// What two nodes share: a counter under each number, with how often it changed.
#[derive(Default)]
struct Shared {
    records: Mutex<HashMap<u32, (u64, u32)>>,
    told: AtomicU32,
    loads: AtomicU32,
    is_away: AtomicBool,
}

enum Command {
    Add(u32),
    /// Refuses, and sets it to 0.
    Reset,
    Read,
    Panic,
}

struct Counting(Arc<Shared>);

#[async_trait]
impl Rules for Counting {
    type Id = u32;
    type Record = (u32, u64, u32);
    type Command = Command;
    type Change = u32;
    type Answer = u32;

    const NAME: &'static str = "counter";

    async fn load(&self, id: u32) -> StoreResult<Self::Record> {
        self.0.loads.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        let found = self.0.records.lock().get(&id).copied();
        found.map(|(version, count)| (id, version, count)).ok_or(StoreError::NotFound)
    }

    #[allow(clippy::panic, reason = "a crash is what is tested")]
    fn decide(&self, record: &Self::Record, command: &Command, _now: Timestamp) -> Decision<Self> {
        match command {
            Command::Add(number) => Decision::changed(record.2 + number, record.2 + number),
            Command::Reset => Decision { change: Some(0), answer: Err(ErrorCode::Forbidden.into()) },
            Command::Read => Decision::unchanged(record.2),
            Command::Panic => panic!("crash"),
        }
    }

    async fn save(&self, before: &Self::Record, change: &u32) -> StoreResult<Self::Record> {
        tokio::task::yield_now().await;
        if self.0.is_away.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("away".into()));
        }
        let mut records = self.0.records.lock();
        let stored = records.get_mut(&before.0).ok_or(StoreError::NotFound)?;
        if stored.0 != before.1 {
            return Err(StoreError::Conflict);
        }
        *stored = (stored.0 + 1, *change);
        Ok((before.0, stored.0, stored.1))
    }

    fn tell(&self, _after: &Self::Record, _change: &u32) {
        self.0.told.fetch_add(1, Ordering::Relaxed);
    }

    async fn due(&self, _now: Timestamp, limit: usize) -> StoreResult<Vec<u32>> {
        Ok(self.0.records.lock().keys().copied().take(limit).collect())
    }

    fn when_due(&self) -> Command {
        Command::Add(100)
    }
}

async fn node(shared: &Arc<Shared>, live_max: usize) -> Arc<Sessions<Counting>> {
    let environment = Environment::new(Arc::new(Still), Arc::new(Still));
    let metrics = Arc::new(Metrics::register(&mut MetricRegistry::default()));
    let sessions = Sessions::new(Counting(shared.clone()), live_max, environment.clone(), metrics.clone());
    let (supervisor, _) = Actor::spawn(None, Supervisor, (environment, metrics)).await.unwrap();
    supervisor::start(&supervisor, sessions.child()).await.unwrap();
    Arc::new(sessions)
}

fn shared() -> Arc<Shared> {
    let shared = Arc::new(Shared::default());
    shared.records.lock().extend((0..4).map(|id| (id, (0, 0))));
    shared
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_change_one_record_and_every_change_counts_once() {
    let shared = shared();
    let nodes = [node(&shared, 10).await, node(&shared, 10).await];
    let asking: Vec<_> = (0..200)
        .map(|n| {
            let node = nodes[n % 2].clone();
            tokio::spawn(async move {
                // Whoever comes late too often is told to come back, and does.
                loop {
                    match node.ask(1, Command::Add(1)).await {
                        Ok(answer) => return answer,
                        Err(refusal) => assert_eq!(refusal.code, ErrorCode::Overloaded),
                    }
                }
            })
        })
        .collect();
    let mut answers = Vec::new();
    for asked in asking {
        answers.push(asked.await.unwrap());
    }
    answers.sort_unstable();
    assert_eq!(answers, (1..=200).collect::<Vec<u32>>());
    assert_eq!(shared.records.lock()[&1], (200, 200));
    assert_eq!(shared.told.load(Ordering::Relaxed), 200);
}

#[tokio::test]
async fn what_is_remembered_is_not_believed_when_it_leads_to_no_change() {
    let shared = shared();
    let nodes = [node(&shared, 10).await, node(&shared, 10).await];
    assert_eq!(nodes[0].ask(1, Command::Add(1)).await, Ok(1));
    assert_eq!(nodes[1].ask(1, Command::Add(1)).await, Ok(2));
    assert_eq!(nodes[0].ask(1, Command::Read).await, Ok(2));
    let loads = shared.loads.load(Ordering::Relaxed);
    assert_eq!(nodes[0].ask(1, Command::Add(1)).await, Ok(3));
    assert_eq!(shared.loads.load(Ordering::Relaxed), loads, "what was just stored is not read");
}

#[tokio::test]
async fn refusals_crashes_and_a_store_that_is_away_reach_whoever_asked() {
    let shared = shared();
    let node = node(&shared, 2).await;
    let code = |asked: Result<u32, Refusal>| asked.unwrap_err().code;
    assert_eq!(code(node.ask(9, Command::Read).await), ErrorCode::NotFound);
    assert_eq!(node.ask(1, Command::Add(5)).await, Ok(5));
    // A refusal can change something too.
    assert_eq!(code(node.ask(1, Command::Reset).await), ErrorCode::Forbidden);
    assert_eq!(node.read(1).await.unwrap().2, 0);
    assert_eq!(code(node.ask(1, Command::Panic).await), ErrorCode::Internal);
    assert_eq!(node.ask(1, Command::Add(5)).await, Ok(5), "it starts anew");
    shared.is_away.store(true, Ordering::Relaxed);
    assert_eq!(code(node.ask(1, Command::Add(5)).await), ErrorCode::StoreUnavailable);
    shared.is_away.store(false, Ordering::Relaxed);
    assert_eq!(node.ask(1, Command::Add(5)).await, Ok(10), "nothing was remembered that was not stored");
    // Record 9 and record 1 are live.
    assert_eq!(code(node.ask(2, Command::Read).await), ErrorCode::Overloaded);
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_has_nothing_to_do_ends_and_what_is_due_is_done() {
    let shared = shared();
    let node = node(&shared, 4).await;
    node.sweep().await.unwrap();
    assert!(shared.records.lock().values().all(|record| *record == (1, 100)));
    assert_eq!(node.0.live.lock().len(), 4);
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert_eq!(node.0.live.lock().len(), 0);
    assert_eq!(node.ask(3, Command::Read).await, Ok(100));
}
