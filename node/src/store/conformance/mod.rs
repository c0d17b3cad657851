//! What every backend must do, written against the port alone. A backend runs the suite by naming a function that opens
//! an empty store: see the end of this file.

mod accounts;
mod figures;
mod handoffs;
mod idempotency;
mod ledger;
mod messages;
mod negotiations;
mod payments;
mod streams;
mod task_channels;
mod tasks;
mod teams;
mod webhooks;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use muster_actors::store::{Append, Store, StoreResult};
use muster_protocol::account::{Credential, CredentialKind, Owner, Scopes, SecretHash, User};
use muster_protocol::agent::{Agent, Registration};
use muster_protocol::escrow::Payment;
use muster_protocol::hiring::{Hiring, HiringStatus};
use muster_protocol::ids::{AgentId, CredentialId, HiringId, MessageId, TaskId, UserId};
use muster_protocol::json::Json;
use muster_protocol::limits::Limits;
use muster_protocol::task::{Note, Task, TaskStatus};
use muster_protocol::task_stream::Chunk;
use muster_protocol::time::Timestamp;
use muster_test_postgres::Server;
use tokio::sync::oneshot;

use crate::store::postgres::PostgresStore;

/// A store, and how another is opened on the same data.
pub struct Fixture {
    pub store: Arc<dyn Store>,
    open: Open,
}

type Open = Box<dyn Fn() -> BoxFuture<'static, Arc<dyn Store>>>;

impl Fixture {
    async fn of(open: Open) -> Self {
        Self { store: open().await, open }
    }

    /// Closes the store and opens it again.
    pub async fn reopened(self) -> Self {
        self.store.close().await;
        drop(self.store);
        Self::of(self.open).await
    }

    pub async fn close(self) {
        self.store.close().await;
    }
}

/// A time of the suite's own.
pub fn at(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(1_700_000_000_000 + ms)
}

/// Ids that differ by a number, and sort by it.
pub fn entropy(n: u8) -> [u8; 10] {
    [n; 10]
}

pub fn user(n: u8) -> User {
    User { id: UserId::new(at(0), entropy(n)), name: format!("User {n}"), created_at: at(0) }
}

pub fn agent(n: u8, owner: Option<UserId>) -> Agent {
    let json = format!(
        r#"{{"name":"Agent {n}","did":"did:x:{n}","capabilities":["code","c{n}"],"pricing_model":"hybrid","base_price":"{n}.5","metadata":{{"n":{n}}}}}"#
    );
    let registration: Registration = serde_json::from_str(&json).unwrap();
    registration.into_agent(AgentId::new(at(0), entropy(n)), owner, at(0), &Limits::default()).unwrap()
}

pub fn credential(n: u8, kind: CredentialKind, owner: Owner) -> Credential {
    Credential {
        id: CredentialId::new(at(i64::from(n)), entropy(n)),
        kind,
        owner,
        parent: None,
        label: Some(format!("label {n}")),
        scopes: Scopes::ALL,
        created_at: at(i64::from(n)),
        expires_at: None,
        revoked_at: None,
    }
}

pub fn hash(n: u8) -> SecretHash {
    SecretHash::of(&format!("secret {n}"))
}

/// Adds an agent with a key of the same number.
pub async fn add_agent(store: &dyn Store, n: u8, owner: Option<UserId>) -> Agent {
    let agent = agent(n, owner);
    let key = credential(n, CredentialKind::AgentKey, Owner::Agent(agent.id));
    store.create_agent(agent.clone(), key, hash(n), 100).await.unwrap();
    agent
}

/// A pending task between two agents.
pub fn task(n: u8, client: &Agent, provider: &Agent) -> Task {
    let created_at = at(i64::from(n));
    Task {
        id: TaskId::new(created_at, entropy(n)),
        status: TaskStatus::Pending,
        client: client.id,
        client_owner: client.owner,
        provider: provider.id,
        capability: "code".into(),
        input: Json::of(&serde_json::json!({ "n": n })),
        output: None,
        error: None,
        max_price: None,
        external_client: None,
        hiring: None,
        payment: Payment::default(),
        created_at,
        updated_at: created_at,
        ended_at: None,
        progress: None,
    }
}

/// How a task is hired out.
pub fn hiring(n: u8, order: &Task, agent_did: &str) -> Hiring {
    Hiring {
        id: HiringId::new(at(i64::from(n)), entropy(n)),
        user: order.client_owner,
        client: order.client,
        agent: order.provider,
        agent_did: agent_did.to_owned(),
        task: order.id,
        status: HiringStatus::Queued,
        created_at: at(i64::from(n)),
        updated_at: at(i64::from(n)),
    }
}

/// What an agent says about a task.
pub fn note(n: u8, from: &Agent) -> Note {
    Note {
        id: MessageId::new(at(i64::from(n)), entropy(n)),
        from_agent_id: Some(from.id),
        from_user_id: None,
        content: format!("note {n}"),
        inserted_at: at(i64::from(n)),
    }
}

/// An append of these chunks, which somebody waits for; the first of all begins the task.
pub fn append_of(task: TaskId, epoch: u64, chunks: Vec<Chunk>) -> Append {
    let begins_task = chunks[0].seq == 1;
    Append { task, epoch, chunks, begins_task, is_awaited: true, now: at(50) }
}

/// Appends, and waits for what comes of it.
pub async fn append(store: &dyn Store, append: Append) -> StoreResult<()> {
    let (reply, answer) = oneshot::channel();
    store.append_chunks(append, Box::new(move |result| drop(reply.send(result)))).await;
    answer.await.expect("an answer, always")
}

/// Runs the whole suite on stores that `$open` opens, each test by itself.
macro_rules! each_by_itself {
    (
        $backend:ident, $open:path, [$($part:ident: $($test:ident),* $(,)?);* $(;)?],
        reopened [$($reopened_part:ident: $($reopened:ident),* $(,)?);* $(;)?]
    ) => {
        mod $backend {
            $($(
                #[tokio::test]
                async fn $test() {
                    let fixture = $open().await;
                    super::$part::$test(fixture.store.as_ref()).await;
                    fixture.close().await;
                }
            )*)*
            $($(
                #[tokio::test]
                async fn $reopened() {
                    super::$reopened_part::$reopened($open().await).await;
                }
            )*)*
        }
    };
}

/// The same with stores in one PostgreSQL server for each part: starting one takes longer than most tests.
macro_rules! one_server_a_part {
    (
        $backend:ident, $open:path, [$($part:ident: $($test:ident),* $(,)?);* $(;)?],
        reopened [$($reopened_part:ident: $($reopened:ident),* $(,)?);* $(;)?]
    ) => {
        mod $backend {
            $(
                #[tokio::test]
                async fn $part() {
                    let server = muster_test_postgres::Server::start();
                    $(
                        println!(stringify!($test));
                        let fixture = $open(&server, stringify!($test)).await;
                        super::$part::$test(fixture.store.as_ref()).await;
                        fixture.close().await;
                    )*
                }
            )*
            #[tokio::test]
            async fn reopened() {
                let server = muster_test_postgres::Server::start();
                $($(
                    println!(stringify!($reopened));
                    super::$reopened_part::$reopened($open(&server, stringify!($reopened)).await).await;
                )*)*
            }
        }
    };
}

macro_rules! conformance_of {
    ($run:ident, $backend:ident, $open:path) => {
        $run!($backend, $open, [
            accounts: operator_hash_is_kept, users_are_paged, credentials_are_found_by_hash_and_end,
                what_was_revoked_is_found_by_time, live_credentials_are_bounded, sessions_make_room_for_each_other,
                rotation_and_revocation_take_sessions_along,
                agents_are_created_once, agents_change_by_compare_and_set, agents_are_claimed_once,
                agents_are_found_in_order, names_sort_by_their_bytes, blocks_work_both_ways_and_end;
            tasks: tasks_begin_and_end_once, tasks_are_listed_by_party, tasks_are_reassigned_while_pending,
                hirings_are_where_their_task_is, hirings_follow_who_does_and_who_owns, notes_are_bounded, documents_come_back_byte_for_byte, outcomes_count_for_the_provider;
            ledger: entries_are_posted_once_and_whole, accounts_are_listed_newest_first, escrows_follow_their_task,
                hirings_hold_or_do_not_happen, much_at_once_adds_up, fees_are_counted_and_taken_out;
            payments: channels_change_by_compare_and_set, what_moves_moves_with_the_channel, what_is_due_is_found,
                channels_that_are_not_over_are_bounded;
            streams: chunks_are_appended_in_order, a_task_begins_once, old_writers_are_fenced_off, a_claim_gives_where_the_stream_stands,
                a_claim_stands_without_a_chunk, old_owners_do_not_end_tasks, ended_tasks_take_no_chunks,
                chunks_are_read_in_parts, keys_are_found, streams_are_purged_after_their_time,
                appends_and_ends_are_ordered, epochs_rise_over_all_streams, streams_grow_side_by_side,
                keys_are_given_out_once;
            task_channels: channel_chunks_are_kept_once_each, channels_are_for_their_parties_while_the_task_is_active,
                channel_streams_close_as_they_were_checked, channel_chunks_at_once_are_numbered_without_a_gap,
                channel_chunks_are_purged_after_their_time;
            idempotency: a_key_is_used_once, a_key_is_free_again_after_a_passing_failure_or_its_lease,
                of_many_at_once_one_runs, old_keys_are_forgotten;
            messages: messages_wait_in_order, messages_are_settled_once, pushes_are_counted_once,
                what_is_pushed_at_most_once_is_given_once, keys_give_the_first_message, messages_expire_and_are_forgotten,
                messages_are_listed_by_party, what_waits_is_counted_by_sender, what_nobody_took_is_queued_again;
            webhooks: webhooks_belong_to_their_owner, what_happens_is_queued_for_those_it_concerns,
                money_disputes_and_dead_letters_are_queued,
                one_sender_has_a_webhook_at_a_time, a_webhook_given_up_takes_nothing_and_bounds_hold, a_queue_has_a_bound;
            negotiations: negotiations_change_by_compare_and_set, a_negotiation_has_one_agreement,
                negotiations_are_listed_by_party_and_bounded, negotiations_that_are_over_are_due;
            teams: votes_fall_due;
            handoffs: handoffs_happen_whole_or_not_at_all, handoffs_are_answered_once, what_becomes_of_a_message_becomes_of_its_handoff;
        ], reopened [
            messages: messages_outlive_the_store;
            streams: claims_outlive_the_store;
            task_channels: checkpoints_outlive_the_store;
            negotiations: the_servers_key_outlives_the_store;
            teams: teams_are_kept_with_what_they_keep;
        ]);
    };
}

async fn sqlite_with(limits: Limits) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    Fixture::of(Box::new(move || {
        let store = crate::store::sqlite::SqliteStore::open(folder.path(), &limits).unwrap();
        Box::pin(std::future::ready(Arc::new(store) as Arc<dyn Store>))
    }))
    .await
}

async fn sqlite() -> Fixture {
    sqlite_with(Limits::default()).await
}

/// Chunks are moved to their table as soon as can be.
async fn sqlite_folding() -> Fixture {
    sqlite_with(Limits { store_journal_bytes_max: 0, ..Limits::default() }).await
}

async fn postgres(server: &Server, database: &str) -> Fixture {
    let url = server.database(database);
    Fixture::of(Box::new(move || {
        let url = url.clone();
        Box::pin(async move {
            let store = PostgresStore::open(&url, None, &Limits::default()).await.unwrap();
            Arc::new(store) as Arc<dyn Store>
        })
    }))
    .await
}

conformance_of!(each_by_itself, on_sqlite, super::sqlite);
conformance_of!(each_by_itself, on_sqlite_folding, super::sqlite_folding);
conformance_of!(one_server_a_part, on_postgres, super::postgres);
