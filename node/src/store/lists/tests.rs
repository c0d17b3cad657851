//! What lists read of a long history: each backend's own word for it, so that a scan of a table shows.

use muster_actors::store::{PageRequest, Store};
use muster_protocol::ids::AgentId;
use muster_protocol::ledger::Account;
use muster_protocol::limits::Limits;
use rusqlite::{Connection, StatementStatus, ToSql};
use tokio_postgres::NoTls;
use tokio_postgres::types::ToSql as PostgresToSql;

use super::*;
use crate::store::conformance::{add_agent, user};
use crate::store::postgres::PostgresStore;
use crate::store::sqlite::SqliteStore;

/// Rows of each table for each pair of agents.
const HISTORY: u64 = 20_000;
/// Rows of a page.
const ROWS: i64 = 21;

/// Agents that are none of the user's business.
const STRANGERS: u8 = 100;

/// An agent of a user, one it deals with, and many that are none of theirs.
struct Cast {
    user: UserId,
    own: AgentId,
    other: AgentId,
    strangers: Vec<AgentId>,
}

async fn cast(store: &dyn Store) -> Cast {
    store.create_user(user(1)).await.unwrap();
    let own = add_agent(store, 1, Some(user(1).id)).await.id;
    let other = add_agent(store, 2, None).await.id;
    let mut strangers = Vec::new();
    for n in 0..STRANGERS {
        strangers.push(add_agent(store, 3 + n, None).await.id);
    }
    Cast { user: user(1).id, own, other, strangers }
}

/// Fills the tables: the strangers have dealt with each other, and the user's agent with the other on both sides, always to
/// the same end but for the oldest, which failed, was rejected or is disputed.
fn history(dialect: Dialect, cast: &Cast) -> Vec<String> {
    let id = |bytes: &[u8; 16]| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match dialect {
            Dialect::Sqlite => format!("x'{hex}'"),
            Dialect::Postgres => format!("'{hex}'::uuid"),
        }
    };
    let nth = |from: u64| match dialect {
        Dialect::Sqlite => format!("CAST(printf('%016d', {from} + n) AS BLOB)"),
        Dialect::Postgres => format!("lpad(({from} + n)::text, 32, '0')::uuid"),
    };
    let series = match dialect {
        Dialect::Sqlite => {
            format!(
                "WITH RECURSIVE series (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series LIMIT {HISTORY})"
            )
        }
        Dialect::Postgres => format!("WITH series AS (SELECT generate_series(1, {HISTORY}) AS n)"),
    };
    let (bytes, document, user_column) = match dialect {
        Dialect::Sqlite => ("zeroblob(32)", "'{}'", "user"),
        Dialect::Postgres => ("'\\x00'::bytea", "'\\x7b7d'::bytea", "user_id"),
    };
    let owner = id(cast.user.as_bytes());
    let [own, other] = [cast.own, cast.other].map(|agent| id(agent.as_bytes()));
    // Each with the next one, round and round.
    let strangers: Vec<String> = cast.strangers.iter().map(|agent| id(agent.as_bytes())).collect();
    let crowd = |step: u64| {
        let cases = strangers.iter().enumerate().map(|(nth, agent)| format!("WHEN {nth} THEN {agent}"));
        let cases = cases.collect::<Vec<_>>().join(" ");
        format!("CASE (n + {step}) % {STRANGERS} {cases} END")
    };
    let (one, next) = (crowd(0), crowd(1));
    let mut filling = Vec::new();
    for (place, (client, provider, of)) in
        [(&own, &other, owner.as_str()), (&other, &own, "NULL"), (&one, &next, "NULL")]
            .into_iter()
            .enumerate()
    {
        let record = nth(place as u64 * HISTORY);
        let state = |usual: &str, oldest: &str| {
            let is_own = place < 2;
            format!("CASE WHEN n = 1 AND {is_own} THEN '{oldest}' ELSE '{usual}' END")
        };
        let (ended, rejected, paid) =
            (state("completed", "failed"), state("expired", "rejected"), state("closed", "disputed"));
        filling.extend([
            format!(
                "{series} INSERT INTO tasks (id, status, client, client_owner, provider, capability, input, created_at, updated_at)
                 SELECT {record}, {ended}, {client}, {of}, {provider}, 'code', '{{}}', 1, 1 FROM series"
            ),
            format!(
                "{series} INSERT INTO hirings (id, {user_column}, client, agent, agent_did, task, status, created_at, updated_at)
                 SELECT {record}, {of}, {client}, {provider}, 'did', {record}, {ended}, 1, 1 FROM series"
            ),
            format!(
                "{series} INSERT INTO negotiations (id, listed_as, version, client, provider, opened_by, base_price, terms,
                    terms_sha256, offers, status, created_at, expires_at, updated_at)
                 SELECT {record}, {record}, 1, {client}, {provider}, 'client', 1, '{{}}', {bytes}, '[]', {rejected}, 1, 1, 1
                 FROM series"
            ),
            format!(
                "{series} INSERT INTO payment_channels (id, version, status, agent_a, agent_b, balance_a, balance_b, nonce, document)
                 SELECT {record}, 1, {paid}, {client}, {provider}, 0, 0, 0, {document} FROM series"
            ),
        ]);
    }
    filling.extend([
        format!("INSERT INTO ledger_accounts (kind, account, side, balance) VALUES ('agent', {own}, 0, {HISTORY})"),
        format!(
            "{series} INSERT INTO ledger_entries (id, kind, operation, at) SELECT {}, 'credit', CAST(n AS text), 1 FROM series",
            nth(0)
        ),
        format!(
            "{series} INSERT INTO ledger_postings (kind, account, side, entry, delta) SELECT 'agent', {own}, 0, {}, 1 FROM series",
            nth(0)
        ),
    ]);
    filling
}

/// Of an agent's account, too, no more is counted.
async fn check_account(store: &dyn Store, agent: AgentId) {
    let request = PageRequest { limit: ROWS as usize, after: None };
    let page = store.entries_of(Account::Agent(agent), request).await.unwrap();
    assert_eq!((page.items.len(), page.total), (ROWS as usize, COUNTED_MAX));
    assert!(page.next.is_some());
}

/// Every list with each filter that a request can have; how much it counts, and lists on its first page.
fn lists(dialect: Dialect, cast: &Cast) -> Vec<(String, List, u64, usize)> {
    use muster_protocol::hiring::HiringStatus;
    let (agent, user) = (Some(cast.own), Some(cast.user));
    let (long, page) = (COUNTED_MAX, ROWS as usize);
    let user_column = if dialect == Dialect::Sqlite { "user" } else { "user_id" };
    let tasks = |filter| super::tasks(dialect, &filter);
    let hirings = |filter| super::hirings(dialect, "id, status", user_column, &filter);
    let negotiations = |filter| super::negotiations(dialect, &filter);
    let mut lists = Vec::new();
    for (whose, agent, user) in [("an agent's", agent, None), ("a user's", None, user)] {
        let mut add = |sort: &str, list: List, counted: u64, listed: usize| {
            lists.push((format!("{whose} {sort}"), list, counted, listed));
        };
        let all = TaskFilter { agent, user, ..TaskFilter::default() };
        add("tasks", tasks(all), long, page);
        add("failed tasks", tasks(TaskFilter { status: Some(TaskStatus::Failed), ..all }), 2, 2);
        add("pending tasks", tasks(TaskFilter { status: Some(TaskStatus::Pending), ..all }), 0, 0);
        let all = HiringFilter { agent, user, ..HiringFilter::default() };
        add("hirings", hirings(all), long, page);
        add("failed hirings", hirings(HiringFilter { status: Some(HiringStatus::Failed), ..all }), 2, 2);
        let all = NegotiationFilter { agent, user, ..NegotiationFilter::default() };
        add("negotiations", negotiations(all), long, page);
        add("rejected ones", negotiations(NegotiationFilter { status: Some(Status::Rejected), ..all }), 2, 2);
    }
    for (role, provider, client) in [("provider", agent, None), ("client", None, agent)] {
        let all = TaskFilter { agent, provider, client, ..TaskFilter::default() };
        lists.push((format!("tasks as {role}"), tasks(all), long, page));
        let failed = TaskFilter { status: Some(TaskStatus::Failed), ..all };
        lists.push((format!("failed tasks as {role}"), tasks(failed), 1, 1));
    }
    lists.push(("payment channels".into(), channels(dialect, agent, None), long, page));
    lists.push(("disputes".into(), channels(dialect, None, Some(ChannelStatus::Disputed)), 2, 2));
    lists.push(("open channels".into(), channels(dialect, None, Some(ChannelStatus::Open)), 0, 0));
    lists
}

#[tokio::test]
async fn lists_read_little_of_a_long_history_on_sqlite() {
    /// Steps of SQLite's machine: a page of two sides takes about 3,000, a scan of a history more than 80,000.
    const STEPS_MAX: i32 = 12_000;
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path(), &Limits::default()).unwrap();
    let cast = cast(&store).await;
    let c = Connection::open(folder.path().join("muster.db")).unwrap();
    for sql in history(Dialect::Sqlite, &cast) {
        c.execute(&sql, []).unwrap();
    }
    for (name, list, counted, listed) in lists(Dialect::Sqlite, &cast) {
        let mut values: Vec<&dyn ToSql> = list.values.iter().map(|value| value as &dyn ToSql).collect();
        let mut counting = c.prepare(&list.counting).unwrap();
        let total: u64 = counting.query_row(values.as_slice(), |row| row.get(0)).unwrap();
        assert_eq!(total, counted, "{name}");
        let steps = counting.get_status(StatementStatus::VmStep);
        assert!(counted == COUNTED_MAX || steps < STEPS_MAX, "{name}: {steps} steps to count {total}");
        values.extend([&[0xFF_u8; 16] as &dyn ToSql, &ROWS, &0]);
        let mut listing = c.prepare(&list.listing).unwrap();
        let rows = listing.query_map(values.as_slice(), |_| Ok(())).unwrap().count();
        let steps = listing.get_status(StatementStatus::VmStep);
        assert_eq!(rows, listed, "{name}");
        println!("{name}: {steps} steps");
        assert!(steps < STEPS_MAX, "{name}: {steps} steps to list {rows}\n{}", list.listing);
    }
    check_account(&store, cast.own).await;
    store.close().await;
}

/// Rows that a plan has touched, from `EXPLAIN (ANALYZE)`.
fn touched(plan: &[String]) -> f64 {
    let number = |line: &str, name: &str| {
        let (_, from) = line.split_once(name)?;
        let end = from.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(from.len());
        from[..end].parse::<f64>().ok()
    };
    let mut loops = 1.0;
    let mut sum = 0.0;
    for line in plan {
        if let Some((_, actual)) = line.split_once("(actual") {
            loops = number(actual, "loops=").unwrap();
            sum += loops * number(actual, "rows=").unwrap();
        } else if line.contains("Rows Removed by") {
            sum += loops * number(line, ": ").unwrap();
        }
    }
    sum
}

#[tokio::test]
async fn lists_read_little_of_a_long_history_on_postgres() {
    /// A page of two sides passes through a few nodes of a plan; a scan of a history touches 20,000.
    const TOUCHED_MAX: f64 = 1_000.0;
    let server = muster_test_postgres::Server::start();
    let url = server.database("lists");
    let store = PostgresStore::open(&url, None, &Limits::default()).await.unwrap();
    let cast = cast(&store).await;
    let (c, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let running = tokio::spawn(connection);
    for sql in history(Dialect::Postgres, &cast) {
        c.batch_execute(&sql).await.unwrap();
    }
    c.batch_execute("VACUUM ANALYZE").await.unwrap();
    for (name, list, counted, listed) in lists(Dialect::Postgres, &cast) {
        let mut values: Vec<&(dyn PostgresToSql + Sync)> =
            list.values.iter().map(|value| value as &(dyn PostgresToSql + Sync)).collect();
        let total: i64 = c.query_one(&list.counting, &values).await.unwrap().get(0);
        assert_eq!(total.unsigned_abs(), counted, "{name}");
        let explain = async |sql: &str, values: &[&(dyn PostgresToSql + Sync)]| {
            let plan = c.query(&format!("EXPLAIN (ANALYZE, TIMING OFF) {sql}"), values).await.unwrap();
            let plan: Vec<String> = plan.iter().map(|line| line.get(0)).collect();
            (touched(&plan), plan.join("\n"))
        };
        let (rows, plan) = explain(&list.counting, &values).await;
        assert!(counted == COUNTED_MAX || rows < TOUCHED_MAX, "{name}: {rows} rows to count {total}\n{plan}");
        let after = Value::Id([0xFF; 16]);
        values.extend([&after as &(dyn PostgresToSql + Sync), &ROWS, &0_i64]);
        assert_eq!(c.query(&list.listing, &values).await.unwrap().len(), listed, "{name}");
        let (rows, plan) = explain(&list.listing, &values).await;
        println!("{name}: {rows} rows");
        assert!(rows < TOUCHED_MAX, "{name}: {rows} rows to list {listed}\n{plan}");
    }
    check_account(&store, cast.own).await;
    drop(c);
    running.await.unwrap().unwrap();
    store.close().await;
}
