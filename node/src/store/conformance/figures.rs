//! Figures: that they add up, in every interval, whoever adds them.

use muster_actors::store::FigureStore;
use muster_actors::store::figures::{CAPABILITIES_MAX, Entry, OTHER, Query};
use muster_protocol::analytics::{Figures, Interval, everybody};
use muster_protocol::ids::AgentId;
use muster_protocol::limits::Limits;
use muster_protocol::time::Timestamp;
use muster_test_postgres::Server;

use crate::store::postgres::PostgresStore;
use crate::store::sqlite::figures::SqliteFigures;

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// 2023-11-14T00:00:00Z and so much.
fn at(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(1_699_920_000_000 + ms)
}

fn agent(n: u8) -> AgentId {
    AgentId::from_bytes([n; 16])
}

fn entry(agent: AgentId, minute: i64, capability: &str, chunks: u64) -> Entry {
    let figures = Figures { chunks, revenue: 10 * chunks, ..Figures::default() };
    Entry { agent, minute: at(minute), capability: capability.into(), figures }
}

fn query(agents: &[u8], interval: Interval, from: i64) -> Query {
    Query { agents: agents.iter().map(|n| agent(*n)).collect(), interval, from: at(from) }
}

/// R102 R103: sums hold by minute, hour and day, over agents and over several writers.
async fn figures_add_up(store: &dyn FigureStore) {
    store
        .add_figures(vec![
            entry(agent(1), 0, "a", 1),
            entry(agent(1), 60_000, "a", 2),
            entry(agent(1), HOUR_MS, "b", 4),
            entry(agent(2), 0, "a", 8),
            entry(everybody(), 0, "a", 15),
        ])
        .await
        .unwrap();
    store.add_figures(vec![entry(agent(1), 0, "a", 16), entry(agent(1), DAY_MS, "", 32)]).await.unwrap();
    store.add_figures(Vec::new()).await.unwrap();
    let sums = |interval, from| async move {
        let rows = store.figures_by_interval(query(&[1], interval, from)).await.unwrap();
        assert!(rows.iter().all(|(_, figures)| figures.revenue == 10 * figures.chunks));
        rows.iter().map(|(time, figures)| (time.ms_since(at(0)), figures.chunks)).collect::<Vec<_>>()
    };
    assert_eq!(sums(Interval::Minute, 0).await, [(0, 17), (60_000, 2), (HOUR_MS, 4), (DAY_MS, 32)]);
    assert_eq!(sums(Interval::Hour, 0).await, [(0, 19), (HOUR_MS, 4), (DAY_MS, 32)]);
    assert_eq!(sums(Interval::Hour, HOUR_MS).await, [(HOUR_MS, 4), (DAY_MS, 32)]);
    assert_eq!(sums(Interval::Day, 0).await, [(0, 23), (DAY_MS, 32)]);
    let both = store.figures_by_interval(query(&[1, 2], Interval::Day, 0)).await.unwrap();
    assert_eq!(both[0].1.chunks, 31);
    assert_eq!(store.figures_by_interval(query(&[], Interval::Day, 0)).await, Ok(Vec::new()));
    let by_capability = store.figures_by_capability(query(&[1], Interval::Day, 0)).await.unwrap();
    let by_capability: Vec<_> = by_capability.iter().map(|(name, f)| (name.as_str(), f.chunks)).collect();
    assert_eq!(by_capability, [("", 32), ("a", 19), ("b", 4)]);
    let by_agent = store.figures_by_agent(Interval::Minute, at(60_000), (None, 10)).await.unwrap();
    assert_eq!(by_agent.iter().map(|(agent, f)| (*agent, f.chunks)).collect::<Vec<_>>(), [(agent(1), 38)]);
    let by_agent = store.figures_by_agent(Interval::Day, at(0), (None, 10)).await.unwrap();
    assert_eq!(by_agent.len(), 2, "without those of everybody");
    let first = store.figures_by_agent(Interval::Day, at(0), (None, 1)).await.unwrap();
    assert_eq!(first, by_agent[..1]);
    let rest = store.figures_by_agent(Interval::Day, at(0), (Some(first[0].0), 10)).await.unwrap();
    assert_eq!(rest, by_agent[1..]);
}

/// R103: what is kept is bounded, in time and by agent.
async fn figures_are_bounded(store: &dyn FigureStore) {
    let names: Vec<String> = (0..CAPABILITIES_MAX + 20).map(|n| format!("c{n}")).collect();
    store.add_figures(names.iter().map(|name| entry(agent(3), 0, name, 1)).collect()).await.unwrap();
    store.add_figures(vec![entry(agent(3), HOUR_MS, "new", 5), entry(agent(3), 0, "c0", 7)]).await.unwrap();
    let by_capability = store.figures_by_capability(query(&[3], Interval::Day, 0)).await.unwrap();
    assert!(by_capability.len() <= CAPABILITIES_MAX + 1, "{}", by_capability.len());
    let of = |name: &str| by_capability.iter().find(|(known, _)| known == name).map(|(_, f)| f.chunks);
    assert_eq!((of(OTHER), of("c0"), of("new")), (Some(25), Some(8), None));
    let total = |interval| async move {
        let rows = store.figures_by_interval(query(&[3], interval, 0)).await.unwrap();
        rows.iter().map(|(_, figures)| figures.chunks).sum::<u64>()
    };
    assert_eq!(store.purge_figures(at(24 * HOUR_MS), 10_000).await, Ok(0));
    while store.purge_figures(at(2 * DAY_MS), 50).await.unwrap() > 0 {}
    assert_eq!((total(Interval::Minute).await, total(Interval::Hour).await), (0, 132));
    while store.purge_figures(at(93 * DAY_MS), 10_000).await.unwrap() > 0 {}
    assert_eq!((total(Interval::Hour).await, total(Interval::Day).await), (0, 132));
}

/// R107: the loads of all nodes that are there.
async fn loads_are_shared(store: &dyn FigureStore) {
    assert_eq!(store.share_load("a", 0.5, at(0)).await, Ok(vec![0.5]));
    let mut both = store.share_load("b", 1.5, at(10_000)).await.unwrap();
    both.sort_by(f64::total_cmp);
    assert_eq!(both, [0.5, 1.5]);
    assert_eq!(
        store.share_load("b", 2.0, at(31_000)).await,
        Ok(vec![2.0]),
        "the other says nothing any more"
    );
}

async fn all(store: &dyn FigureStore) {
    figures_add_up(store).await;
    figures_are_bounded(store).await;
    loads_are_shared(store).await;
    store.close_figures().await;
    assert!(store.add_figures(vec![entry(agent(1), 0, "a", 1)]).await.is_err());
}

#[tokio::test]
async fn figures_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    all(&SqliteFigures::open(folder.path()).unwrap()).await;
    // What was written is there for the next one.
    let again = SqliteFigures::open(folder.path()).unwrap();
    assert_eq!(again.figures_by_interval(query(&[1], Interval::Day, 0)).await.unwrap()[0].1.chunks, 23);
    again.close_figures().await;
}

#[tokio::test]
async fn figures_on_postgres() {
    let server = Server::start();
    let limits = Limits { store_call_timeout_ms: 10_000, ..Limits::default() };
    let store = PostgresStore::open(&server.database("figures"), None, &limits).await.unwrap();
    // Two nodes at once add up.
    let (one, two) = (store.figures(&limits).unwrap(), store.figures(&limits).unwrap());
    let entries: Vec<Entry> = (0..50).map(|n| entry(agent(9), 60_000 * (n % 7), "x", 1)).collect();
    let mut adding = Vec::new();
    for _ in 0..10 {
        adding.push(futures_util::future::join(
            one.add_figures(entries.clone()),
            two.add_figures(entries.clone()),
        ));
    }
    for (a, b) in futures_util::future::join_all(adding).await {
        assert_eq!((a, b), (Ok(()), Ok(())));
    }
    let sum = two.figures_by_interval(query(&[9], Interval::Day, 0)).await.unwrap()[0].1.chunks;
    assert_eq!(sum, 1_000);
    two.close_figures().await;
    let clean = PostgresStore::open(&server.database("figures_alone"), None, &limits).await.unwrap();
    all(&clean.figures(&limits).unwrap()).await;
}
