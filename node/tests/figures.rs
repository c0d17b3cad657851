//! Figures from where they are counted to where they are shown, over real stores: what was earned, and what becomes of
//! them while their store is away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use muster_actors::analytics::{Analytics, Whose};
use muster_actors::metric_definitions::Metrics;
use muster_actors::ports::{Clock, Environment};
use muster_actors::store::figures::{Entry, Query};
use muster_actors::store::{AccountStore, FigureStore, StoreError, StoreResult};
use muster_node::store::sqlite::SqliteStore;
use muster_node::store::sqlite::figures::SqliteFigures;
use muster_node::system_clock;
use muster_protocol::account::{Credential, CredentialKind, Owner, Scopes, SecretHash, User};
use muster_protocol::agent::Registration;
use muster_protocol::analytics::{Event, Figures, Interval, Period};
use muster_protocol::ids::{AgentId, CredentialId, UserId};
use muster_protocol::limits::Limits;
use muster_protocol::money::Amount;
use muster_protocol::time::Timestamp;

/// A store that can be cut off.
struct Cut {
    figures: SqliteFigures,
    is_away: AtomicBool,
}

impl Cut {
    fn reach(&self) -> StoreResult<&SqliteFigures> {
        let is_away = self.is_away.load(Ordering::Relaxed);
        if is_away { Err(StoreError::Unavailable("cut off".into())) } else { Ok(&self.figures) }
    }
}

#[async_trait]
impl FigureStore for Cut {
    async fn add_figures(&self, entries: Vec<Entry>) -> StoreResult<()> {
        self.reach()?.add_figures(entries).await
    }

    async fn figures_by_interval(&self, query: Query) -> StoreResult<Vec<(Timestamp, Figures)>> {
        self.reach()?.figures_by_interval(query).await
    }

    async fn figures_by_capability(&self, query: Query) -> StoreResult<Vec<(String, Figures)>> {
        self.reach()?.figures_by_capability(query).await
    }

    async fn figures_by_agent(
        &self,
        interval: Interval,
        since: Timestamp,
        part: (Option<AgentId>, usize),
    ) -> StoreResult<Vec<(AgentId, Figures)>> {
        self.reach()?.figures_by_agent(interval, since, part).await
    }

    async fn purge_figures(&self, now: Timestamp, rows_max: usize) -> StoreResult<usize> {
        self.reach()?.purge_figures(now, rows_max).await
    }

    async fn share_load(&self, node: &str, load: f64, now: Timestamp) -> StoreResult<Vec<f64>> {
        self.reach()?.share_load(node, load, now).await
    }

    async fn close_figures(&self) {
        self.figures.close_figures().await;
    }
}

/// It is always the same time, so that no minute ends while a test counts.
struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(1_700_000_000_000)
    }

    fn monotonic_us(&self) -> u64 {
        1
    }
}

struct World {
    analytics: Arc<Analytics>,
    cut: Arc<Cut>,
    store: Arc<SqliteStore>,
    _folder: tempfile::TempDir,
}

fn world(entries_max: usize) -> World {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(folder.path(), &Limits::default()).unwrap());
    let figures = SqliteFigures::open(folder.path()).unwrap();
    let cut = Arc::new(Cut { figures, is_away: AtomicBool::new(false) });
    let metrics = Arc::new(Metrics::register(&mut prometheus_client::registry::Registry::default()));
    let ports: (Arc<dyn FigureStore>, _) = (cut.clone(), store.clone());
    let environment = Environment::new(Arc::new(Stopped), system_clock::environment().entropy);
    let analytics = Analytics::new((ports.0, ports.1), environment, metrics, (entries_max, 1_000));
    World { analytics, cut, store, _folder: folder }
}

async fn agent(store: &SqliteStore, n: u8, owner: Option<UserId>) -> AgentId {
    let now = Timestamp::from_unix_ms(1_700_000_000_000);
    let json = format!(
        r#"{{"name":"A","did":"did:x:{n}","capabilities":[],"pricing_model":"fixed","base_price":"1"}}"#
    );
    let registration: Registration = serde_json::from_str(&json).unwrap();
    let id = AgentId::new(now, [n; 10]);
    let agent = registration.into_agent(id, owner, now, &Limits::default()).unwrap();
    let key = Credential {
        id: CredentialId::new(now, [n; 10]),
        kind: CredentialKind::AgentKey,
        owner: Owner::Agent(id),
        parent: None,
        label: None,
        scopes: Scopes::ALL,
        created_at: now,
        expires_at: None,
        revoked_at: None,
    };
    store.create_agent(agent, key, SecretHash::of(&format!("{n}")), 1_000).await.unwrap();
    id
}

fn earned(agent: AgentId, capability: &str, amount: &str) -> Event<'static> {
    let capability = Box::leak(capability.to_owned().into_boxed_str());
    Event::Earned { agent, capability, amount: Amount::parse(amount).unwrap() }
}

/// R104: what was earned, of an agent, of a user's agents together, and of all without a word on who.
#[tokio::test]
async fn revenue_is_summed_over_a_users_agents_and_over_all() {
    let world = world(1_000);
    let now = Timestamp::from_unix_ms(1_700_000_000_000);
    let user = User { id: UserId::new(now, [1; 10]), name: "U".into(), created_at: now };
    world.store.create_user(user.clone()).await.unwrap();
    let (one, two) =
        (agent(&world.store, 1, Some(user.id)).await, agent(&world.store, 2, Some(user.id)).await);
    let other = agent(&world.store, 3, None).await;
    for event in [
        earned(one, "code", "1.5"),
        earned(one, "text", "0.000001"),
        earned(two, "code", "2"),
        earned(other, "code", "100"),
    ] {
        world.analytics.record(event);
    }
    for (whose, total, code) in [
        (Whose::Agent(one), "1.500001", "1.5"),
        (Whose::Agent(two), "2", "2"),
        (Whose::User(user.id), "3.500001", "3.5"),
        (Whose::Everybody, "103.500001", "103.5"),
    ] {
        let view = world.analytics.revenue(whose, Period::Week).await.unwrap();
        assert_eq!(view.total.to_string(), total, "{whose:?}");
        assert_eq!(
            (view.by_capability[0].capability.as_str(), view.by_capability[0].amount.to_string()),
            ("code", code.to_owned())
        );
        assert_eq!(view.by_day.len(), 1);
        assert_eq!(view.by_day[0].amount, view.total);
        let text = serde_json::to_string(&view).unwrap();
        assert!(!text.contains(&one.to_string()));
        assert_eq!(world.analytics.metrics(whose, Period::Hour).await.unwrap().revenue, view.total);
    }
}

/// R102: while the store is away counting goes on, up to a bound; nothing of that is lost, and nothing counts twice.
#[tokio::test]
async fn figures_wait_while_their_store_is_away() {
    let world = world(3);
    let agent = AgentId::from_bytes([7; 16]);
    world.analytics.record(Event::MessageSent(agent));
    world.analytics.flush().await.unwrap();
    world.cut.is_away.store(true, Ordering::Relaxed);
    for _ in 0..10 {
        world.analytics.record(Event::MessageSent(agent));
        assert!(world.analytics.flush().await.is_err());
    }
    assert!(world.analytics.metrics(Whose::Agent(agent), Period::Hour).await.is_err());
    assert_eq!(world.analytics.dropped(), 0);
    // An entry for it and one for all; there is place for one more.
    for n in 8..12 {
        world.analytics.record(Event::MessageSent(AgentId::from_bytes([n; 16])));
    }
    assert_eq!(world.analytics.dropped(), 3);
    world.cut.is_away.store(false, Ordering::Relaxed);
    let metrics = world.analytics.metrics(Whose::Agent(agent), Period::Hour).await.unwrap();
    assert_eq!(metrics.messages_sent, 11);
    assert_eq!(world.analytics.metrics(Whose::Everybody, Period::Hour).await.unwrap().messages_sent, 15);
    world.analytics.flush().await.unwrap();
    assert_eq!(world.analytics.metrics(Whose::Agent(agent), Period::Hour).await.unwrap().messages_sent, 11);
}
