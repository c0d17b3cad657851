//! What the conformance suite cannot ask: answers that are lost, servers that restart, several nodes on one database.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::future::join_all;
use muster_actors::ports::Environment;
use muster_protocol::account::CredentialKind;
use muster_protocol::json::Json;
use muster_protocol::task::{Ending, TaskStatus};
use muster_test_postgres::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::store::conformance::{
    self, add_agent, agent, append, at, credential, entropy, hash, hiring, note, task, user,
};

async fn open(url: &str) -> PostgresStore {
    PostgresStore::open(url, None, &Limits::default()).await.unwrap()
}

/// Bounds under which calls give up early.
fn impatient() -> Limits {
    Limits { store_statement_timeout_ms: 1_000, store_call_timeout_ms: 2_000, ..Limits::default() }
}

fn monotonic_ms() -> u64 {
    static CLOCK: LazyLock<Environment> = LazyLock::new(crate::system_clock::environment);
    CLOCK.monotonic_ms()
}

fn chunk(seq: u64) -> Chunk {
    Chunk { seq, body: Json::of(&format!("chunk {seq}")), idempotency_key: Some(format!("k{seq}").into()) }
}

fn append_of(task: TaskId, epoch: u64, seqs: std::ops::RangeInclusive<u64>) -> Append {
    conformance::append_of(task, epoch, seqs.map(chunk).collect())
}

/// What a [`Proxy`] does to a COMMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Nothing,
    /// It happens, but nobody is told.
    Answer,
    /// Every other one does not even arrive.
    EveryOther,
}

/// Stands between the store and PostgreSQL, and cuts connections around a COMMIT.
struct Proxy {
    port: u16,
    is_cutting: Arc<AtomicBool>,
    cuts: Arc<AtomicUsize>,
}

impl Proxy {
    async fn start(server_port: u16, cut: Cut) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (is_cutting, cuts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (cutting, counter) = (is_cutting.clone(), cuts.clone());
        let commits = Arc::new(AtomicUsize::new(0));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", server_port)).await.unwrap();
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let (cutting, counter, commits) = (cutting.clone(), counter.clone(), commits.clone());
                tokio::spawn(async move {
                    let cut = || if cutting.load(Ordering::SeqCst) { cut } else { Cut::Nothing };
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    let is_last = Arc::new(AtomicBool::new(false));
                    let back =
                        tokio::spawn(pass_back(from_server, to_client, is_last.clone(), counter.clone()));
                    pass_on(from_client, to_server, is_last, (&commits, &counter), cut).await;
                    let _ended = tokio::time::timeout(Duration::from_secs(5), back).await;
                });
            }
        });
        Self { port, is_cutting, cuts }
    }

    fn url(&self, server: &Server, database: &str) -> String {
        server.url(database).replace(&format!(":{}/", server.port), &format!(":{}/", self.port))
            + "?sslmode=disable"
    }
}

/// A message with its type: one byte of that, four of its length, the rest. The first of a client has no type.
async fn message(from: &mut OwnedReadHalf, has_type: bool) -> std::io::Result<Vec<u8>> {
    let mut message = vec![0; if has_type { 5 } else { 4 }];
    from.read_exact(&mut message).await?;
    let at = message.len() - 4;
    let length = u32::from_be_bytes(message[at..].try_into().unwrap()) as usize;
    let head = message.len();
    message.resize(head + length - 4, 0);
    from.read_exact(&mut message[head..]).await?;
    Ok(message)
}

/// From the client to the server, until a cut.
async fn pass_on(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    is_last: Arc<AtomicBool>,
    (commits, cuts): (&AtomicUsize, &AtomicUsize),
    cut: impl Fn() -> Cut,
) {
    let mut has_type = false;
    while let Ok(message) = message(&mut from, has_type).await {
        has_type = true;
        if message[0] == b'Q' && message[5..].starts_with(b"COMMIT") && cut() != Cut::Nothing {
            if cut() == Cut::EveryOther {
                if commits.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
                    cuts.fetch_add(1, Ordering::SeqCst);
                    // Dropping both directions is what the kernel does to a node that is cut off.
                    is_last.store(true, Ordering::SeqCst);
                    return;
                }
            } else {
                is_last.store(true, Ordering::SeqCst);
            }
        }
        if to.write_all(&message).await.is_err() {
            return;
        }
    }
}

/// From the server to the client, until the answer that is to be swallowed.
async fn pass_back(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    is_last: Arc<AtomicBool>,
    cuts: Arc<AtomicUsize>,
) {
    while let Ok(message) = message(&mut from, true).await {
        if is_last.load(Ordering::SeqCst) {
            if message[0] == b'C' && message[5..].starts_with(b"COMMIT") {
                cuts.fetch_add(1, Ordering::SeqCst);
                return;
            }
            continue;
        }
        if to.write_all(&message).await.is_err() {
            return;
        }
    }
}

/// Calls every method that writes, those that refuse too; gives what each said.
async fn every_write(store: &dyn Store) -> Vec<String> {
    let mut said = Vec::new();
    macro_rules! say {
        ($($call:expr),* $(,)?) => { $( said.push(format!("{:?}", $call.await)); )* };
    }
    let (one, two) = (agent(1, None), agent(2, None));
    let owner = Owner::Agent(one.id);
    let key = |n| credential(n, CredentialKind::AgentKey, owner);
    let session = |n| Credential { parent: Some(key(1).id), ..credential(n, CredentialKind::Session, owner) };
    say!(
        store.operator_hash(hash(90)),
        store.operator_hash(hash(91)),
        store.create_user(user(1)),
        store.create_user(user(1)),
        store.create_agent(one.clone(), key(1), hash(1), 10),
        store.create_agent(
            two.clone(),
            credential(2, CredentialKind::AgentKey, Owner::Agent(two.id)),
            hash(2),
            10
        ),
        store.create_agent(Agent { id: agent(3, None).id, ..two.clone() }, key(3), hash(3), 10),
        store.create_credential(session(4), hash(4), 1),
        store.create_credential(session(5), hash(5), 1),
        store.create_credential(key(6), hash(6), 1),
        store.create_credential(key(6), hash(6), 10),
        store.revoke_credential(owner, key(6).id, at(60)),
        store.rotate_credential(key(1).id, key(7), hash(7)),
        store.claim_agent(one.id, user(1).id, at(70)),
        store.set_agent_status(two.id, AgentStatus::Inactive, at(71)),
        store.set_last_seen(two.id, at(72)),
        store.block(one.id, two.id, None, 10),
        store.unblock(one.id, two.id),
        store.unblock(one.id, two.id),
    );
    let read = store.agent(two.id).await.unwrap();
    let new =
        Agent { name: "New".into(), capabilities: vec!["sing".into()], updated_at: at(80), ..read.clone() };
    say!(store.update_agent(&read, new.clone()), store.update_agent(&read, new));
    said.extend(every_write_of_tasks(store, &one, &two).await);
    said
}

async fn every_write_of_tasks(store: &dyn Store, one: &Agent, two: &Agent) -> Vec<String> {
    let mut said = Vec::new();
    macro_rules! say {
        ($($call:expr),* $(,)?) => { $( said.push(format!("{:?}", $call.await)); )* };
    }
    let id = HiringId::new(at(1), entropy(1));
    let order = |n| Task { hiring: Some(id), ..task(n, one, two) };
    let (hiring, note) = (hiring(1, &order(1), &two.did), note(1, one));
    say!(
        store.create_task(order(1), Some(hiring.clone())),
        store.create_task(order(1), Some(hiring)),
        store.add_note(order(1).id, note.clone(), 1),
        store.add_note(order(1).id, note, 1),
        store.claim_stream(order(1).id, 10, 10_000),
    );
    let epoch = store.stream_head(order(1).id, 0, 0).await.unwrap().epoch;
    let (first, at_once) = (order(1).id, at(90));
    let reassign = Reassign { task: first, epoch, provider: one.id, by: one.id, now: at_once };
    say!(
        store.reassign_task(reassign.clone()),
        store.reassign_task(Reassign { provider: two.id, ..reassign }),
        append(store, append_of(first, epoch, 1..=3)),
        append(store, append_of(first, epoch, 4..=4)),
        append(store, append_of(first, epoch, 4..=4)),
    );
    let finish = |ending| Finish { task: first, epoch, ending, by: Some(two.id), last_seq: 4, now: at(95) };
    say!(
        store.finish_task(finish(Ending::failed(Json::of("why")))),
        store.finish_task(finish(Ending::completed(Json::null()))),
        store.retry_hiring(id, order(2)),
        store.retry_hiring(id, order(3)),
        store.purge_streams(at(96), 3),
        store.purge_streams(at(96), 3),
        store.purge_streams(at(96), 3),
        store.purge_credentials(at(61), 10),
        store.check(at(99)),
    );
    said
}

/// Without the epoch, which only has to be higher than those before.
fn without_epoch(said: Vec<String>) -> Vec<String> {
    let cut = |said: String| match said.split_once("epoch: ") {
        Some((before, after)) => before.to_owned() + after.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => said,
    };
    said.into_iter().map(cut).collect()
}

/// Everything in a database that a client could see, but epochs.
fn contents(server: &Server, database: &str) -> BTreeMap<String, String> {
    let tables = server.query(
        database,
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'
         AND table_name NOT IN ('writes', 'muster_schema')",
    );
    let rows = |table: &str| {
        server.query(database, &format!("SELECT to_jsonb(t) - 'epoch' FROM {table} t ORDER BY t::text"))
    };
    tables.lines().map(|table| (table.to_owned(), rows(table))).collect()
}

async fn cut_around_each_commit(cut: Cut) {
    let server = Server::start();
    let whole = open(&server.database("whole")).await;
    let expected = without_epoch(every_write(&whole).await);
    whole.close().await;

    let proxy = Proxy::start(server.port, cut).await;
    let _url = server.database("cut");
    let store = open(&proxy.url(&server, "cut")).await;
    proxy.is_cutting.store(true, Ordering::SeqCst);
    let said = without_epoch(every_write(&store).await);
    proxy.is_cutting.store(false, Ordering::SeqCst);
    store.close().await;

    assert_eq!(said, expected);
    let (left, wanted) = (contents(&server, "cut"), contents(&server, "whole"));
    assert!(wanted.values().filter(|rows| !rows.is_empty()).count() >= 8, "{wanted:?}");
    assert_eq!(left, wanted);
    // Refusals do not come as far as a COMMIT.
    let done = expected.iter().filter(|said| said.starts_with("Ok")).count();
    let cuts = proxy.cuts.load(Ordering::SeqCst);
    println!("{cuts} connections cut in {done} writes that happened");
    assert!(cuts >= done, "{cuts} cuts, {done} writes");
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_has_happened_once() {
    cut_around_each_commit(Cut::Answer).await;
}

#[tokio::test]
async fn a_write_that_is_cut_off_before_its_end_is_done_again() {
    cut_around_each_commit(Cut::EveryOther).await;
}

#[tokio::test]
async fn what_postgresql_asks_to_be_tried_again_is() {
    let server = Server::start();
    let store = open(&server.database("retried")).await;
    for code in ["40001", "40P01", "57P01"] {
        let tries = AtomicU64::new(0);
        let (tries, sql) =
            (&tries, format!("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{code}'; END $$"));
        let sql = &sql;
        let done = store.pool.write(|c| async move {
            if tries.fetch_add(1, Ordering::Relaxed) < 3 {
                c.batch(sql).await?;
            }
            c.count("SELECT 7::bigint", &[]).await
        });
        assert_eq!((done.await, tries.load(Ordering::Relaxed)), (Ok(7), 4), "{code}");
    }
    let tries = AtomicU64::new(0);
    let tries = &tries;
    let refused = store.pool.write(|c| async move {
        tries.fetch_add(1, Ordering::Relaxed);
        c.batch("DO $$ BEGIN RAISE EXCEPTION 'never' USING ERRCODE = '22000'; END $$").await
    });
    assert!(matches!(refused.await, Err(StoreError::Unavailable(_))));
    assert_eq!(tries.load(Ordering::Relaxed), 1, "what cannot succeed is not tried again");
    // Two that wait for each other: PostgreSQL ends one, which then comes second.
    for n in 1..=2 {
        store.create_user(user(n)).await.unwrap();
    }
    let both = |first: u8, second: u8| {
        let store = &store;
        store.pool.write(move |c| async move {
            accounts::lock_user(&c, user(first).id).await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
            accounts::lock_user(&c, user(second).id).await
        })
    };
    assert_eq!(tokio::join!(both(1, 2), both(2, 1)), (Ok(()), Ok(())));
    store.close().await;
}

/// A producer that goes on whatever happens; gives the last seq that was acknowledged, and the longest time of a call.
async fn produce(store: &dyn Store, id: TaskId, stop: &AtomicBool, failed: &AtomicUsize) -> (u64, u64) {
    let (mut acknowledged, mut longest, mut owned) = (0, 0, None);
    while !stop.load(Ordering::Relaxed) {
        let begun = monotonic_ms();
        let result = match owned {
            None => store.claim_stream(id, 0, 0).await.map(|head| {
                // What was under way may be there or not; what was acknowledged is.
                assert!(head.last_seq >= acknowledged, "{} of {acknowledged} left", head.last_seq);
                owned = Some((head.epoch, head.last_seq));
            }),
            Some((epoch, last_seq)) => {
                let appended = append(store, append_of(id, epoch, last_seq + 1..=last_seq + 1)).await;
                if appended.is_ok() {
                    acknowledged = last_seq + 1;
                    owned = Some((epoch, acknowledged));
                } else {
                    owned = None;
                }
                appended
            }
        };
        longest = longest.max(monotonic_ms() - begun);
        if let Err(error) = result {
            assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
            failed.fetch_add(1, Ordering::Relaxed);
        }
    }
    (acknowledged, longest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_loses_nothing_that_was_acknowledged() {
    let mut server = Server::start();
    let limits = impatient();
    let store = PostgresStore::open(&server.database("restarted"), None, &limits).await.unwrap();
    let store = Arc::new(store);
    let (client, provider) = (add_agent(&*store, 1, None).await, add_agent(&*store, 2, None).await);
    let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut producers = Vec::new();
    for n in 1..=8 {
        let order = task(n, &client, &provider);
        store.create_task(order.clone(), None).await.unwrap();
        let (store, stop, failed) = (store.clone(), stop.clone(), failed.clone());
        producers.push(tokio::spawn(async move {
            let ended = produce(&*store, order.id, &stop, &failed).await;
            (order.id, ended)
        }));
    }
    for away_ms in [0, 0, 4_000] {
        tokio::time::sleep(Duration::from_millis(700)).await;
        server.stop_immediately();
        if away_ms > 0 {
            let begun = monotonic_ms();
            assert!(
                matches!(store.check(at(1)).await, Err(StoreError::Unavailable(_))),
                "it says that it is away"
            );
            assert!(monotonic_ms() - begun < 4_000);
            tokio::time::sleep(Duration::from_millis(away_ms)).await;
        }
        server.launch();
    }
    let begun = monotonic_ms();
    while store.check(at(1)).await.is_err() {
        assert!(monotonic_ms() - begun < 10_000, "it comes back by itself");
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    stop.store(true, Ordering::Relaxed);
    assert!(failed.load(Ordering::Relaxed) > 0, "longer than calls wait");
    for producer in producers {
        let (id, (acknowledged, longest)) = producer.await.unwrap();
        println!("{acknowledged} acknowledged, the longest call took {longest} ms");
        assert!(acknowledged > 0);
        // A claim waits behind what is queued, then reads, then writes.
        assert!(longest < limits.store_call_timeout_ms * 4, "a call took {longest} ms");
        let chunks = store.read_chunks(id, 0, u64::MAX >> 1, usize::MAX).await.unwrap();
        let seqs: Vec<u64> = chunks.iter().map(|chunk| chunk.seq).collect();
        assert_eq!(seqs, (1..=chunks.len() as u64).collect::<Vec<_>>());
        assert!(chunks.len() as u64 >= acknowledged);
        assert!(chunks.iter().all(|found| *found == chunk(found.seq)));
    }
    store.close().await;
}

#[tokio::test]
async fn nodes_on_one_database_fence_each_other_off_and_share_bounds() {
    let server = Server::start();
    let url = server.database("shared");
    let (here, there) = (open(&url).await, open(&url).await);
    let (client, provider) = (add_agent(&here, 1, None).await, add_agent(&here, 2, None).await);
    let order = task(1, &client, &provider);
    there.create_task(order.clone(), None).await.unwrap();
    let old = here.claim_stream(order.id, 0, 0).await.unwrap().epoch;
    append(&here, append_of(order.id, old, 1..=2)).await.unwrap();
    let new = there.claim_stream(order.id, 10, 10_000).await.unwrap();
    assert_eq!((new.last_seq, new.newest), (2, vec![chunk(1), chunk(2)]));
    assert_eq!(append(&here, append_of(order.id, old, 3..=3)).await, Err(StoreError::Fenced));
    let ending = Ending::cancelled(None);
    let finish = Finish { task: order.id, epoch: old, ending, by: None, last_seq: 2, now: at(9) };
    assert_eq!(here.finish_task(finish.clone()).await, Err(StoreError::Fenced));
    assert_eq!(append(&there, append_of(order.id, new.epoch, 3..=3)).await, Ok(()));
    assert_eq!(
        here.stream_head(order.id, 1, 10_000).await.unwrap().newest,
        [chunk(3)],
        "readers look anywhere"
    );
    let finish = Finish { epoch: new.epoch, last_seq: 3, ..finish };
    assert_eq!(there.finish_task(finish).await.unwrap().status, TaskStatus::Cancelled);
    // Asked of both at once, no more than one bound's worth is let in.
    let owner = Owner::Agent(client.id);
    let keys = (10..40_u8).map(|n| {
        let store = if n.is_multiple_of(2) { &here } else { &there };
        store.create_credential(credential(n, CredentialKind::AgentKey, owner), hash(n), 8)
    });
    let made = join_all(keys).await.into_iter().filter(Result::is_ok).count();
    assert_eq!(made, 7, "with the first one");
    let claims = (0..20).map(|n| {
        let store = if n % 2 == 0 { &here } else { &there };
        store.claim_agent(provider.id, user(1).id, at(n))
    });
    here.create_user(user(1)).await.unwrap();
    assert!(join_all(claims).await.iter().all(Result::is_ok));
    here.close().await;
    there.close().await;
}

#[tokio::test]
async fn tickets_of_writes_are_forgotten() {
    let server = Server::start();
    let store = open(&server.database("tickets")).await;
    for n in 1..=50 {
        store.create_user(user(n)).await.unwrap();
    }
    assert_eq!(server.query("tickets", "SELECT count(*) FROM writes"), "50");
    store.purge_credentials(at(0), 10).await.unwrap();
    assert_eq!(server.query("tickets", "SELECT count(*) FROM writes"), "1", "that of the purge itself");
    store.close().await;
}

#[tokio::test]
async fn calls_that_find_every_connection_in_use_end_in_time() {
    let server = Server::start();
    let limits = Limits { store_connections_max: APPENDERS + 1, ..impatient() };
    let store = PostgresStore::open(&server.database("busy"), None, &limits).await.unwrap();
    store.create_user(user(1)).await.unwrap();
    let begun = monotonic_ms();
    let slow = store.pool.once(|c| async move { c.count("SELECT 1::bigint FROM pg_sleep(60)", &[]).await });
    let (slow, waiting) = tokio::join!(slow, store.user(user(1).id));
    assert!(matches!(slow, Err(StoreError::Unavailable(_))), "its statement takes too long");
    assert_eq!(waiting, Ok(user(1)), "whoever waited has its turn");
    let locked = store.pool.write(|c| async move {
        c.batch("SET LOCAL statement_timeout = 0").await?;
        c.count("SELECT 1::bigint FROM pg_sleep(60)", &[]).await
    });
    let (locked, waiting) = tokio::join!(locked, store.user(user(1).id));
    assert!(matches!(locked, Err(StoreError::Unavailable(_))), "its time is over");
    assert!(matches!(waiting, Err(StoreError::Unavailable(_))), "{waiting:?}");
    assert!(monotonic_ms() - begun < limits.store_call_timeout_ms * 5);
    assert_eq!(store.user(user(1).id).await, Ok(user(1)), "the connection that hung was let go of");
    store.close().await;
}

#[tokio::test]
async fn nodes_that_start_at_once_migrate_once_and_a_newer_database_is_refused() {
    let server = Server::start();
    let url = server.database("migrated");
    let stores = join_all((0..6).map(|_| open(&url))).await;
    let all = super::schema::MIGRATIONS.len();
    assert_eq!(
        server.query("migrated", "SELECT count(*), max(version) FROM muster_schema"),
        format!("{all}|{all}"),
        "each migration once"
    );
    for store in stores {
        assert_eq!(store.check(at(1)).await, Ok(()));
        store.close().await;
    }
    let _none = server.query("migrated", "INSERT INTO muster_schema (version) VALUES (99)");
    let refused = PostgresStore::open(&url, None, &Limits::default()).await.err().unwrap();
    assert!(refused.to_string().contains("use a newer one"), "{refused}");
    let _none = server.query("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0");
    let refused = PostgresStore::open(&server.url("latin"), None, &Limits::default()).await.err().unwrap();
    assert!(refused.to_string().contains("UTF8"), "{refused}");
}

#[tokio::test]
async fn the_server_is_verified_as_the_settings_say() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let elsewhere = rcgen::generate_simple_self_signed(vec!["db.example".into()]).unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (certificate, key) =
        (file("server.crt", made.cert.pem()), file("server.key", made.signing_key.serialize_pem()));
    let wrong = file("other.crt", other.cert.pem());
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    for path in [folder.path(), &certificate, &key] {
        muster_test_postgres::hand_over(path);
    }
    let settings = |certificate: &Path, key: &Path| {
        [
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", certificate.display()),
            format!("ssl_key_file={}", key.display()),
        ]
    };
    let settings = settings(&certificate, &key);
    let server = Server::start_with(&settings.each_ref().map(String::as_str));
    let url = server.url("postgres");
    let opened = async |mode: &str, ca: Option<&Path>| {
        let store = PostgresStore::open(&format!("{url}?sslmode={mode}"), ca, &impatient()).await?;
        let sql = "SELECT ssl::int::bigint FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let encrypted = store.pool.read(|c| async move { c.count(sql, &[]).await }).await;
        store.close().await;
        encrypted
    };
    assert_eq!(opened("disable", None).await, Ok(0));
    assert_eq!(opened("prefer", None).await, Ok(1));
    assert_eq!(opened("require", None).await, Ok(1));
    assert_eq!(opened("verify-full", Some(&certificate)).await, Ok(1));
    assert_eq!(opened("require", Some(&certificate)).await, Ok(1));
    for mode in ["verify-full", "require", "prefer"] {
        assert!(opened(mode, Some(&wrong)).await.is_err(), "{mode} with another's certificate");
    }
    let named = file("named.crt", elsewhere.cert.pem());
    assert!(opened("verify-full", Some(&named)).await.is_err());
    let error = opened("verify-full", None).await.unwrap_err().to_string();
    assert!(error.contains("store.tls_ca") && !error.contains(muster_test_postgres::PASSWORD), "{error}");
    for bad in ["verify-ca", "whatever"] {
        let error = opened(bad, None).await.unwrap_err().to_string();
        assert!(error.contains("sslmode") && !error.contains(muster_test_postgres::PASSWORD), "{error}");
    }
    let wrong_password = url.replace(muster_test_postgres::PASSWORD, "another");
    let error = PostgresStore::open(&wrong_password, None, &impatient()).await.err().unwrap().to_string();
    assert!(error.contains("authentication") && !error.contains("another"), "{error}");
}

#[tokio::test]
async fn gathered_chunks_cost_far_less_than_commits_of_their_own() {
    const STREAMS: u8 = 100;
    const ROUNDS: u64 = 20;
    let server = Server::start();
    let store = open(&server.database("gathered")).await;
    let (client, provider) = (add_agent(&store, 201, None).await, add_agent(&store, 202, None).await);
    let mut streams = Vec::new();
    for n in 1..=STREAMS {
        let order = task(n, &client, &provider);
        store.create_task(order.clone(), None).await.unwrap();
        streams.push((order.id, store.claim_stream(order.id, 0, 0).await.unwrap().epoch));
    }
    let begun = monotonic_ms();
    let alone = 200;
    for seq in 1..=alone {
        append(&store, append_of(streams[0].0, streams[0].1, seq..=seq)).await.unwrap();
    }
    let each_ms = (monotonic_ms() - begun) as f64 / alone as f64;
    let begun = monotonic_ms();
    let producers = streams[1..].iter().map(async |(id, epoch)| {
        for seq in 1..=ROUNDS {
            append(&store, append_of(*id, *epoch, seq..=seq)).await.unwrap();
        }
    });
    join_all(producers).await;
    let chunks = (u64::from(STREAMS) - 1) * ROUNDS;
    let gathered_ms = (monotonic_ms() - begun) as f64 / chunks as f64;
    println!(
        "alone: {each_ms:.3} ms a chunk ({:.0}/s); gathered from {} streams: {gathered_ms:.3} ms ({:.0}/s)",
        1_000.0 / each_ms,
        STREAMS - 1,
        1_000.0 / gathered_ms
    );
    assert!(gathered_ms * 3.0 < each_ms, "{gathered_ms} ms gathered, {each_ms} ms alone");
    store.close().await;
}

/// How a statement is carried out.
async fn plan(
    c: &pool::Connection,
    sql: &str,
    values: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> String {
    let rows = c.query(&format!("EXPLAIN {sql}"), values).await.unwrap();
    rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join("\n")
}

/// Much that was sent by and to two agents, of which little has failed or waits; and much that waits for a webhook.
const HISTORY: &str = "
    INSERT INTO messages (id, from_agent, to_agent, open, status, lost, guarantee, version, inserted_at, expires_at, kind, bytes)
    SELECT gen_random_uuid(), ('01010101-0101-0101-0101-01010101010' || n % 2)::uuid,
        ('01010101-0101-0101-0101-01010101010' || n / 2 % 2)::uuid, n % 100 = 1,
        CASE WHEN n % 100 = 1 THEN 'queued' WHEN n % 100 = 2 THEN 'failed' ELSE 'acknowledged' END,
        CASE WHEN n % 100 = 2 THEN 'failed' END, 'at_least_once', '1.1.0', n, n, 'note', 10
    FROM generate_series(1, 30000) n;
    INSERT INTO deliveries (id, webhook, event, data, created_at, due_at)
    SELECT gen_random_uuid(), webhooks.id, 'task.created', '{}', n, n FROM webhooks, generate_series(1, 10000) n;
    VACUUM ANALYZE messages; ANALYZE deliveries; ANALYZE webhooks";

/// R117 R119 R144: what is looked for often is found by an index, however much else there is.
#[tokio::test]
async fn what_is_looked_for_has_an_index() {
    use messages::lists::{WAITING, borrowed, statements};
    use muster_actors::store::{MessageFilter, Party, WebhookStore};
    use muster_protocol::account::Owner;
    use muster_protocol::ids::{AgentId, WebhookId};
    use muster_protocol::message::MessageStatus;
    use muster_protocol::webhook::{Events, Webhook};
    let server = Server::start();
    let store = open(&server.database("plans")).await;
    let owner = Owner::Agent(add_agent(&store, 1, None).await.id);
    let webhook = Webhook {
        id: WebhookId::new(at(0), entropy(1)),
        owner,
        url: "https://example.com/".into(),
        secret: "secret".into(),
        events: Events::of(&[]).unwrap(),
        created_at: at(0),
        failing_since: None,
        disabled_at: None,
    };
    store.create_webhook(webhook, 1).await.unwrap();
    store
        .pool
        .read(|c| async move {
            for statement in HISTORY.split(';') {
                c.batch(statement).await?;
            }
            let own = AgentId::from_bytes([1; 16]);
            let of_status = |status| MessageFilter {
                party: Party::Agent(own),
                from: None,
                to: None,
                kind: None,
                status: Some(status),
            };
            for (status, indexes) in [
                (MessageStatus::Failed, &["messages_lost_by_sender", "messages_lost_by_recipient"][..]),
                (MessageStatus::Queued, &["messages_open"][..]),
            ] {
                let (counting, listing, mut values) = statements(&of_status(status));
                let counting = plan(&c, &counting, &borrowed(&values)).await;
                values.push(Box::new(i64::MAX));
                values.push(Box::new(9_i64));
                let listing = plan(&c, &listing, &borrowed(&values)).await;
                for plan in [counting, listing] {
                    assert!(!plan.contains("Seq Scan"), "{status:?}: {plan}");
                    assert!(indexes.iter().all(|index| plan.contains(index)), "{status:?}: {plan}");
                }
            }
            let waiting = plan(&c, WAITING, &[&columns::Id([1; 16]), &1_000_i64]).await;
            assert!(waiting.contains("Index Only Scan using messages_open"), "{waiting}");
            let due = plan(&c, webhooks::DUE, &[&9_i64, &9_i64]).await;
            assert!(due.contains("deliveries_by_") && !due.contains("Seq Scan on deliveries"), "{due}");
            let room = plan(
                &c,
                "SELECT 1 FROM deliveries d WHERE d.webhook = $1 AND d.id BETWEEN $2 AND $3 LIMIT 64",
                &[&columns::Id([1; 16]), &columns::Id([1; 16]), &columns::Id([2; 16])],
            )
            .await;
            assert!(room.contains("deliveries_by_part"), "{room}");
            Ok(())
        })
        .await
        .unwrap();
    store.close().await;
}
