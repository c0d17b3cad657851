//! Webhooks: what is queued with what happens, claimed by one, and settled.

use std::collections::BTreeSet;

use futures_util::StreamExt;
use muster_actors::store::{Settled, Store, StoreError};
use muster_protocol::account::Owner;
use muster_protocol::agent::AgentStatus;
use muster_protocol::ids::{DeliveryId, WebhookId};
use muster_protocol::json::Json;
use muster_protocol::ledger::{self, Account, Side};
use muster_protocol::payment_channel::Channel;
use muster_protocol::payment_channel::machine::{Action, Command};
use muster_protocol::payment_channel::request::Objection;
use muster_protocol::task::Ending;
use muster_protocol::time::Timestamp;
use muster_protocol::webhook::{Attempted, Delivery, Events, Next, WAITING_MAX, Webhook};

use super::ledger::{amount, credit};
use super::messages::dead_letter;
use super::payments::{accepted, pending, save, step};
use super::{add_agent, append, append_of, at, entropy, streams::chunk, task, user};

fn webhook(n: u8, owner: Owner, events: &[&str]) -> Webhook {
    let events: Vec<String> = events.iter().map(|event| (*event).to_owned()).collect();
    Webhook {
        id: WebhookId::new(at(i64::from(n)), entropy(n)),
        owner,
        url: format!("https://example.com/{n}"),
        secret: format!("secret {n}"),
        events: Events::of(&events).unwrap(),
        created_at: at(i64::from(n)),
        failing_since: None,
        disabled_at: None,
    }
}

fn delivery(n: u8, created: i64) -> Delivery {
    Delivery {
        id: DeliveryId::from_bytes([n; 16]),
        event: "webhook.test".into(),
        data: Json::of(&serde_json::json!({ "n": n })),
        created_at: at(created),
        attempts: 0,
    }
}

fn settled(delivery: &Delivery, next: Next, failing_since: Option<Timestamp>) -> Settled {
    Settled {
        delivery: delivery.id,
        event: delivery.event.clone(),
        attempt: delivery.attempts + 1,
        attempted: Attempted { at: at(1), status: Some(500), error: Some("é".into()), duration_ms: 7 },
        next,
        failing_since,
        disabled_at: None,
    }
}

/// Claims and settles everything that is due, and gives the events by webhook.
async fn drain(store: &dyn Store) -> BTreeSet<(WebhookId, String)> {
    let mut found = BTreeSet::new();
    for lease in 1.. {
        let claims = store.claim_deliveries(at(10_000), (lease, at(20_000)), 10).await.unwrap();
        if claims.is_empty() {
            break;
        }
        for claim in claims {
            assert!(found.insert((claim.webhook.id, claim.delivery.event.clone())), "once");
            let done = settled(&claim.delivery, Next::Delivered, None);
            store.settle_delivery(claim.webhook.id, claim.lease, done).await.unwrap();
        }
    }
    found
}

pub async fn webhooks_belong_to_their_owner(store: &dyn Store) {
    store.create_user(user(1)).await.unwrap();
    let agent = add_agent(store, 1, Some(user(1).id)).await;
    let (of_agent, of_user) = (Owner::Agent(agent.id), Owner::User(user(1).id));
    let (a, b) = (webhook(1, of_agent, &[]), webhook(2, of_user, &["task.failed"]));
    store.create_webhook(a.clone(), 1).await.unwrap();
    store.create_webhook(b.clone(), 1).await.unwrap();
    assert_eq!(store.create_webhook(webhook(3, of_agent, &[]), 1).await, Err(StoreError::LimitReached));
    assert_eq!(store.webhooks_of(of_agent).await, Ok(vec![a.clone()]));
    assert_eq!(store.webhooks_of(of_user).await, Ok(vec![b.clone()]));
    assert_eq!(store.delete_webhook(of_user, a.id).await, Err(StoreError::NotFound));
    store.queue_delivery(a.id, delivery(1, 1)).await.unwrap();
    store.delete_webhook(of_agent, a.id).await.unwrap();
    assert_eq!(store.delete_webhook(of_agent, a.id).await, Err(StoreError::NotFound));
    assert_eq!(
        store.claim_deliveries(at(10_000), (1, at(20_000)), 10).await,
        Ok(Vec::new()),
        "it went along"
    );
    assert_eq!(store.count_agents().await, Ok(1));
}

pub async fn what_happens_is_queued_for_those_it_concerns(store: &dyn Store) {
    for n in 1..=3 {
        store.create_user(user(n)).await.unwrap();
    }
    let client = add_agent(store, 1, Some(user(1).id)).await;
    let provider = add_agent(store, 2, Some(user(2).id)).await;
    let stranger = add_agent(store, 3, Some(user(3).id)).await;
    let hooks = [
        webhook(1, Owner::Agent(client.id), &["task.created", "task.completed"]),
        webhook(2, Owner::Agent(provider.id), &[]),
        webhook(3, Owner::User(user(1).id), &["task.failed"]),
        webhook(4, Owner::User(user(2).id), &["task.claimed", "agent.status_changed"]),
        webhook(5, Owner::Agent(stranger.id), &[]),
        webhook(6, Owner::User(user(3).id), &[]),
    ];
    for hook in &hooks {
        store.create_webhook(hook.clone(), 10).await.unwrap();
    }
    let heard = |expected: &[(usize, &str)]| {
        expected.iter().map(|(n, event)| (hooks[n - 1].id, (*event).to_owned())).collect::<BTreeSet<_>>()
    };
    let order = task(1, &client, &provider);
    store.create_task(order.clone(), None).await.unwrap();
    assert_eq!(drain(store).await, heard(&[(1, "task.created"), (2, "task.created")]));
    let epoch = store.claim_stream(order.id, 10, 1_000).await.unwrap().epoch;
    append(store, append_of(order.id, epoch, vec![chunk(1)])).await.unwrap();
    assert_eq!(
        drain(store).await,
        heard(&[(2, "task.claimed"), (2, "task.in_progress"), (4, "task.claimed")])
    );
    let finish = muster_actors::store::Finish {
        task: order.id,
        epoch,
        ending: Ending::completed(Json::of("done")),
        by: Some(provider.id),
        last_seq: 1,
        now: at(500),
    };
    store.finish_task(finish.clone()).await.unwrap();
    assert!(store.finish_task(finish).await.is_err());
    assert_eq!(drain(store).await, heard(&[(1, "task.completed"), (2, "task.completed")]));
    // What is given to another is told to whom it is taken from, and to whom it is given.
    let given = task(3, &client, &provider);
    store.create_task(given.clone(), None).await.unwrap();
    drain(store).await;
    let epoch = store.claim_stream(given.id, 10, 1_000).await.unwrap().epoch;
    let to = |provider| muster_actors::store::Reassign {
        task: given.id,
        epoch,
        provider,
        by: client.id,
        now: at(550),
    };
    store.reassign_task(to(stranger.id)).await.unwrap();
    assert_eq!(drain(store).await, heard(&[(2, "task.cancelled"), (5, "task.created"), (6, "task.created")]));
    store.reassign_task(to(stranger.id)).await.unwrap();
    assert_eq!(drain(store).await, heard(&[]), "it is the same again");
    let failed = muster_protocol::task::Task {
        status: muster_protocol::task::TaskStatus::Failed,
        ..task(2, &client, &provider)
    };
    store.create_task(failed, None).await.unwrap();
    let expected = [(1, "task.created"), (2, "task.created"), (2, "task.failed"), (3, "task.failed")];
    assert_eq!(drain(store).await, heard(&expected));
    store.set_agent_status(provider.id, AgentStatus::Suspended, at(600)).await.unwrap();
    assert_eq!(drain(store).await, heard(&[(2, "agent.status_changed"), (4, "agent.status_changed")]));
}

pub async fn money_disputes_and_dead_letters_are_queued(store: &dyn Store) {
    for n in 1..=2 {
        store.create_user(user(n)).await.unwrap();
    }
    let a = add_agent(store, 1, Some(user(1).id)).await.id;
    let b = add_agent(store, 2, Some(user(2).id)).await.id;
    let stranger = add_agent(store, 3, None).await.id;
    let hooks = [
        webhook(1, Owner::Agent(a), &[]),
        webhook(2, Owner::Agent(b), &["payment.confirmed", "task.disputed", "message.dead_letter"]),
        webhook(
            3,
            Owner::User(user(1).id),
            &["payment.deposited", "withdrawal.processed", "payment.disputed"],
        ),
        webhook(4, Owner::User(user(2).id), &["payment.deposited"]),
        webhook(5, Owner::Agent(stranger), &[]),
    ];
    for hook in &hooks {
        store.create_webhook(hook.clone(), 10).await.unwrap();
    }
    let heard = |expected: &[(usize, &str)]| {
        expected.iter().map(|(n, event)| (hooks[n - 1].id, (*event).to_owned())).collect::<BTreeSet<_>>()
    };
    let deposit = credit(Account::Agent(a), "10", "a");
    assert_eq!(store.post_entry(deposit.clone()).await, Ok(None));
    assert_eq!(drain(store).await, heard(&[(1, "payment.deposited"), (3, "payment.deposited")]));
    assert_eq!(store.post_entry(deposit.clone()).await, Ok(Some(deposit)));
    assert_eq!(drain(store).await, heard(&[]), "the same again moves nothing");
    let of_user = credit(Account::User(user(2).id), "1", "u");
    store.post_entry(of_user).await.unwrap();
    assert_eq!(drain(store).await, heard(&[(4, "payment.deposited")]), "its own account, no agent's");
    let debit = |text| ledger::debit(Account::Agent(a), amount(text), text, None, at(1));
    assert!(store.post_entry(debit("11")).await.is_err());
    assert_eq!(drain(store).await, heard(&[]), "what is refused is not told");
    store.post_entry(debit("1")).await.unwrap();
    assert_eq!(drain(store).await, heard(&[(1, "withdrawal.processed"), (3, "withdrawal.processed")]));

    let (mut channel, entry) = pending(1, a, b, ("4", "0"));
    store.create_payment_channel(channel.clone(), entry, 10).await.unwrap();
    let change = accepted(&channel);
    save(store, &channel, &change).await.unwrap();
    assert_eq!(drain(store).await, heard(&[]), "money is held, nobody is paid");
    channel = change.after;
    let entry = channel.accounts().transfer(Side::A, amount("1"), 1, at(3));
    let after = Channel { version: channel.version + 1, nonce: 1, ..channel.clone() };
    let late = store.save_payment_channel(channel.version + 7, after.clone(), Some(entry.clone())).await;
    assert_eq!(late, Err(StoreError::Conflict));
    assert_eq!(drain(store).await, heard(&[]));
    store.save_payment_channel(channel.version, after.clone(), Some(entry)).await.unwrap();
    assert_eq!(drain(store).await, heard(&[(1, "payment.confirmed"), (2, "payment.confirmed")]));
    let objection = Objection { reason: "why".into(), evidence: Json::null() };
    let change = step(&after, &Command::Party(b, Action::Dispute(objection)));
    save(store, &after, &change).await.unwrap();
    assert!(save(store, &after, &change).await.is_err());
    let disputed =
        [(1, "payment.disputed"), (1, "task.disputed"), (2, "task.disputed"), (3, "payment.disputed")];
    assert_eq!(drain(store).await, heard(&disputed));

    dead_letter(store, a, b).await;
    assert_eq!(drain(store).await, heard(&[(1, "message.dead_letter"), (2, "message.dead_letter")]));
}

pub async fn one_sender_has_a_webhook_at_a_time(store: &dyn Store) {
    let agent = add_agent(store, 1, None).await;
    let hook = webhook(1, Owner::Agent(agent.id), &[]);
    store.create_webhook(hook.clone(), 10).await.unwrap();
    for (n, created) in [(1, 100), (2, 200)] {
        store.queue_delivery(hook.id, delivery(n, created)).await.unwrap();
        // The same again is the same.
        assert!(store.queue_delivery(hook.id, delivery(n, created)).await.is_err());
    }
    assert_eq!(store.claim_deliveries(at(99), (1, at(1_000)), 10).await, Ok(Vec::new()), "not due yet");
    let claims = store.claim_deliveries(at(300), (1, at(1_000)), 10).await.unwrap();
    assert_eq!(claims.len(), 1);
    assert_eq!(claims[0].delivery, delivery(1, 100), "the oldest");
    assert_eq!(claims[0].webhook, hook);
    assert_eq!(store.claim_deliveries(at(999), (2, at(2_000)), 10).await, Ok(Vec::new()), "held");
    // The first holder is late: another has it now.
    let again = store.claim_deliveries(at(1_000), (3, at(2_000)), 10).await.unwrap();
    assert_eq!(again[0].delivery, delivery(1, 100));
    let late = store.settle_delivery(hook.id, 1, settled(&claims[0].delivery, Next::Delivered, None)).await;
    assert_eq!(late, Err(StoreError::Conflict));
    let retry = settled(&again[0].delivery, Next::Retry(at(5_000)), Some(at(1)));
    store.settle_delivery(hook.id, 3, retry).await.unwrap();
    let second = store.claim_deliveries(at(1_100), (4, at(2_000)), 10).await.unwrap();
    assert_eq!(second[0].delivery, delivery(2, 200), "while the first waits");
    assert_eq!(second[0].webhook.failing_since, Some(at(1)));
    let done = settled(&second[0].delivery, Next::Delivered, None);
    store.settle_delivery(hook.id, 4, done).await.unwrap();
    assert_eq!(store.claim_deliveries(at(4_999), (5, at(9_000)), 10).await, Ok(Vec::new()));
    let first = store.claim_deliveries(at(5_000), (6, at(9_000)), 10).await.unwrap();
    assert_eq!(first[0].delivery, Delivery { attempts: 1, ..delivery(1, 100) });
    assert_eq!(first[0].webhook.failing_since, None);
    let log = store.attempts_of(hook.id, 10).await.unwrap();
    let outcomes: Vec<_> = log.iter().map(|entry| (entry.attempt, entry.outcome.as_str())).collect();
    assert_eq!(outcomes, [(1, "delivered"), (1, "retry")]);
    assert_eq!(log[1].attempted, settled(&delivery(1, 100), Next::Dead, None).attempted);
}

pub async fn a_webhook_given_up_takes_nothing_and_bounds_hold(store: &dyn Store) {
    let agent = add_agent(store, 1, None).await;
    let (hook, other) = (webhook(1, Owner::Agent(agent.id), &[]), webhook(2, Owner::Agent(agent.id), &[]));
    store.create_webhook(hook.clone(), 10).await.unwrap();
    store.create_webhook(other.clone(), 10).await.unwrap();
    for n in 0..110_u8 {
        store.queue_delivery(hook.id, delivery(n, 1)).await.unwrap();
        let lease = u64::from(n) + 1;
        let claims = store.claim_deliveries(at(10), (lease, at(1_000)), 10).await.unwrap();
        let done = settled(&claims[0].delivery, Next::Dead, Some(at(1)));
        store.settle_delivery(hook.id, lease, done).await.unwrap();
    }
    let log = store.attempts_of(hook.id, 1_000).await.unwrap();
    assert_eq!((log.len(), log[0].delivery), (100, DeliveryId::from_bytes([109; 16])));
    for n in [120, 121] {
        store.queue_delivery(hook.id, delivery(n, 1)).await.unwrap();
    }
    let claims = store.claim_deliveries(at(10), (500, at(1_000)), 10).await.unwrap();
    let mut end = settled(&claims[0].delivery, Next::Dead, Some(at(1)));
    end.disabled_at = Some(at(20));
    store.settle_delivery(hook.id, 500, end).await.unwrap();
    assert_eq!(store.webhooks_of(Owner::Agent(agent.id)).await.unwrap()[0].disabled_at, Some(at(20)));
    let late = store.queue_delivery(hook.id, delivery(122, 1)).await;
    assert_eq!(late, Err(StoreError::LimitReached), "nobody would ever send it");
    store.create_task(task(1, &agent, &agent), None).await.unwrap();
    let claims = store.claim_deliveries(at(10_000), (501, at(20_000)), 10).await.unwrap();
    assert_eq!(claims.iter().map(|claim| claim.webhook.id).collect::<Vec<_>>(), [other.id]);
}

pub async fn a_queue_has_a_bound(store: &dyn Store) {
    let agent = add_agent(store, 1, None).await;
    let hook = webhook(1, Owner::Agent(agent.id), &[]);
    store.create_webhook(hook.clone(), 10).await.unwrap();
    let many = |n: usize| {
        let mut id = [0; 16];
        // Spread over all parts.
        id[..8].copy_from_slice(&n.to_le_bytes());
        Delivery { id: DeliveryId::from_bytes(id), ..delivery(0, 1) }
    };
    let queued = futures_util::stream::iter(0..WAITING_MAX)
        .map(|n| store.queue_delivery(hook.id, many(n)))
        .buffer_unordered(64)
        .filter(|queued| std::future::ready(queued.is_ok()))
        .count();
    assert_eq!(queued.await, WAITING_MAX);
    let over = store.queue_delivery(hook.id, many(WAITING_MAX)).await;
    assert_eq!(over, Err(StoreError::LimitReached));
    // There is room again in the part in which one was settled, and in no other.
    let claims = store.claim_deliveries(at(10_000), (1, at(20_000)), 1).await.unwrap();
    let part = claims[0].delivery.id.as_bytes()[0];
    store.settle_delivery(hook.id, 1, settled(&claims[0].delivery, Next::Delivered, None)).await.unwrap();
    let first_free = WAITING_MAX + usize::from(part);
    let elsewhere = WAITING_MAX + usize::from(part.wrapping_add(1));
    assert_eq!(store.queue_delivery(hook.id, many(elsewhere)).await, Err(StoreError::LimitReached));
    store.queue_delivery(hook.id, many(first_free)).await.unwrap();
    assert_eq!(store.queue_delivery(hook.id, many(first_free + 256)).await, Err(StoreError::LimitReached));
    // What happens goes on; its webhook misses it.
    store.create_task(task(1, &agent, &agent), None).await.unwrap();
    store.delete_webhook(Owner::Agent(agent.id), hook.id).await.unwrap();
}
