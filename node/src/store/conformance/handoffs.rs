//! Handoffs: with their message, their task and the money or not at all; answered once.

use muster_actors::store::{Accepted, Append, Finish, NewMessage, Settle, Store, StoreError};
use muster_protocol::escrow::{Escrow, Payment};
use muster_protocol::handoff::{Answer, Handoff, NOT_ANSWERED};
use muster_protocol::ids::{MessageId, TaskId};
use muster_protocol::json::Json;
use muster_protocol::ledger::Account;
use muster_protocol::message::{Guarantee, Message, MessageStatus, Verdict};
use muster_protocol::money::Amount;
use muster_protocol::signing::statement::Digest;
use muster_protocol::task::{Ending, Task, TaskStatus};

use super::streams::chunk;
use super::{add_agent, agent, append, append_of, at, entropy, ledger, task};

const CONTEXT: &str = r#"{ "z":1.50,  "a":[1e400,"\u0000é"],"z":2 }"#;

fn amount(text: &str) -> Amount {
    Amount::parse(text).unwrap()
}

/// What agent 1 hands to agent 2, under a key of its own.
fn handed(n: u8, price: Option<&str>) -> (NewMessage, Task, Handoff) {
    let (from, to) = (agent(1, None), agent(2, None));
    let price = price.map(amount);
    let task = task(n, &from, &to);
    let task = Task { payment: Payment::new(price, None, 0, true).unwrap(), ..task };
    let id = MessageId::new(at(i64::from(n)), entropy(n));
    let message = Message {
        id,
        from: from.id,
        to: to.id,
        kind: "task_handoff".into(),
        payload: Some(Json::of(&serde_json::json!({ "n": n }))),
        version: "1.1.0".into(),
        guarantee: Guarantee::ExactlyOnce,
        dedup_key: Some("key".into()),
        signature: None,
        status: MessageStatus::Queued,
        reason: None,
        retries: 0,
        delivered_at: None,
        acknowledged_at: None,
        inserted_at: at(i64::from(n)),
        expires_at: at(1_000_000),
    };
    let handoff = Handoff {
        message: id,
        task: task.id,
        parent: None,
        from: from.id,
        to: to.id,
        context: Some(serde_json::from_str(CONTEXT).unwrap()),
        required_capabilities: vec!["code".into(), "c\u{0}\"".into()],
        price,
        created_at: at(i64::from(n)),
        accepted_at: None,
        declined_at: None,
        reason: None,
    };
    let key = format!("key {n}");
    let once = Some((key, Digest::of(b"same")));
    (NewMessage { message, once }, task, handoff)
}

async fn available(store: &dyn Store, n: u8) -> [Amount; 2] {
    let balance = store.balance(Account::Agent(agent(n, None).id)).await.unwrap();
    [balance.available, balance.escrow]
}

async fn credit(store: &dyn Store, text: &str) {
    let entry = ledger::credit(Account::Agent(agent(1, None).id), text, "given");
    assert_eq!(store.post_entry(entry).await, Ok(None));
}

pub async fn handoffs_happen_whole_or_not_at_all(store: &dyn Store) {
    for n in 1..=2 {
        add_agent(store, n, None).await;
    }
    credit(store, "5").await;
    let (message, task, handoff) = handed(1, Some("3"));
    let accepted = store.create_handoff(message.clone(), task.clone(), handoff.clone()).await;
    assert_eq!(accepted, Ok(Accepted::New));
    assert_eq!(store.handoff(handoff.message).await, Ok(handoff.clone()));
    assert_eq!(store.handoff(handoff.message).await.unwrap().context.unwrap().as_str(), CONTEXT);
    assert_eq!(store.handoff_of_task(task.id).await, Ok(Some(handoff.clone())));
    assert_eq!(store.task(task.id).await, Ok(task.clone()));
    assert_eq!(store.message(handoff.message).await, Ok(message.message.clone()));
    assert_eq!(available(store, 1).await, [amount("2"), amount("3")]);

    // A repeat under the same key is the first; nothing comes of it.
    let (again, other_task, other) = handed(2, Some("1"));
    let again = NewMessage { once: message.once.clone(), ..again };
    let known = store.create_handoff(again.clone(), other_task.clone(), other.clone()).await;
    assert_eq!(known, Ok(Accepted::Known(Box::new(message.message))));
    let once = again.once.clone().map(|(key, _)| (key, Digest::of(b"other")));
    let mismatch = NewMessage { once, ..again };
    assert_eq!(
        store.create_handoff(mismatch, other_task.clone(), other.clone()).await,
        Ok(Accepted::Mismatch)
    );
    assert_eq!(store.task(other_task.id).await, Err(StoreError::NotFound));
    assert_eq!(available(store, 1).await, [amount("2"), amount("3")]);

    // Without the money there is neither task nor message.
    let (message, task, handoff) = handed(3, Some("2.000001"));
    let short = store.create_handoff(message.clone(), task.clone(), handoff.clone()).await;
    assert_eq!(short, Err(StoreError::InsufficientBalance(amount("2"))));
    assert_eq!(store.task(task.id).await, Err(StoreError::NotFound));
    assert_eq!(store.message(message.message.id).await, Err(StoreError::NotFound));
    assert_eq!(store.handoff(handoff.message).await, Err(StoreError::NotFound));
    assert_eq!(store.handoff_of_task(task.id).await, Ok(None));
    let waiting = store.waiting_mail(agent(2, None).id, 10, (9, 9_999)).await.map(|waiting| waiting.messages);
    assert_eq!(waiting, Ok(1), "the first alone");
}

pub async fn handoffs_are_answered_once(store: &dyn Store) {
    for n in 1..=2 {
        add_agent(store, n, None).await;
    }
    credit(store, "10").await;
    let mut ids = Vec::new();
    for n in 1..=3 {
        let (message, task, handoff) = handed(n, Some("2"));
        store.create_handoff(message, task, handoff.clone()).await.unwrap();
        ids.push(handoff);
    }
    let unknown = MessageId::new(at(0), entropy(9));
    assert_eq!(store.answer_handoff(unknown, Answer::Accept, at(5)).await, Err(StoreError::NotFound));
    let accepted = store.answer_handoff(ids[0].message, Answer::Accept, at(5)).await.unwrap();
    assert_eq!(accepted, Handoff { accepted_at: Some(at(5)), ..ids[0].clone() });
    assert_eq!(store.answer_handoff(ids[0].message, Answer::Accept, at(6)).await, Ok(accepted.clone()));
    let no = Answer::Decline(Some("no time".into()));
    assert_eq!(store.answer_handoff(ids[0].message, no.clone(), at(6)).await, Err(StoreError::Conflict));
    assert_eq!(store.handoff(ids[0].message).await, Ok(accepted));
    assert_eq!(store.handoffs_to_cancel(10).await, Ok(vec![]));

    let declined = store.answer_handoff(ids[1].message, no.clone(), at(7)).await.unwrap();
    assert_eq!((declined.declined_at, declined.reason.as_deref()), (Some(at(7)), Some("no time")));
    assert_eq!(store.answer_handoff(ids[1].message, Answer::Accept, at(8)).await, Err(StoreError::Conflict));
    assert_eq!(
        store.answer_handoff(ids[1].message, Answer::Decline(None), at(8)).await,
        Ok(declined.clone())
    );
    assert_eq!(store.handoffs_to_cancel(10).await, Ok(vec![declined.message]));
    let epoch = store.claim_stream(declined.task, 0, 0).await.unwrap().epoch;
    let ending = Ending::cancelled(None);
    let finish = Finish { task: declined.task, epoch, ending, by: None, last_seq: 0, now: at(9) };
    let task = store.finish_task(finish).await.unwrap();
    assert_eq!((task.status, task.payment.escrow), (TaskStatus::Cancelled, Escrow::Refunded));
    store.handoff_cancelled(declined.message).await.unwrap();
    assert_eq!(store.handoffs_to_cancel(10).await, Ok(vec![]));
    assert_eq!(available(store, 1).await, [amount("6"), amount("4")]);

    // A task that has ended leaves nothing to answer.
    let epoch = store.claim_stream(ids[2].task, 0, 0).await.unwrap().epoch;
    let ending = Ending::completed(Json::null());
    let finish = Finish { task: ids[2].task, epoch, ending, by: None, last_seq: 0, now: at(9) };
    store.finish_task(finish).await.unwrap();
    for answer in [Answer::Accept, no] {
        assert_eq!(store.answer_handoff(ids[2].message, answer, at(10)).await, Err(StoreError::Conflict));
    }
    assert_eq!(store.handoff_of_task(TaskId::new(at(0), entropy(9))).await, Ok(None));
    assert_eq!(available(store, 2).await[0], amount("2"));
}

pub async fn what_becomes_of_a_message_becomes_of_its_handoff(store: &dyn Store) {
    for n in 1..=2 {
        add_agent(store, n, None).await;
    }
    let mut all = Vec::new();
    for n in 1..=5 {
        let (message, task, handoff) = handed(n, None);
        let end = message.message.expires_at;
        store.create_handoff(message, task, handoff.clone()).await.unwrap();
        all.push((handoff, end));
    }
    let [rejected, accepted, begun, silent, acknowledged] = [0, 1, 2, 3, 4].map(|n: usize| all[n].0.message);
    store.answer_handoff(accepted, Answer::Accept, at(5)).await.unwrap();
    let task = all[2].0.task;
    let epoch = store.claim_stream(task, 0, 0).await.unwrap().epoch;
    let first = Append { begins_task: true, ..append_of(task, epoch, vec![chunk(1)]) };
    append(store, first).await.unwrap();
    let to = all[0].0.to;
    let settle = |id, verdict| Settle { id, to, verdict, now: at(6) };
    let no = Verdict::Rejected(Some("not mine".into()));
    let verdicts =
        vec![settle(rejected, no.clone()), settle(accepted, no), settle(acknowledged, Verdict::Acknowledged)];
    let settled = store.settle_messages(verdicts).await.unwrap();
    assert!(settled.iter().all(Result::is_ok), "{settled:?}");
    let declined = store.handoff(rejected).await.unwrap();
    assert_eq!((declined.declined_at, declined.reason.as_deref()), (Some(at(6)), Some("not mine")));
    assert_eq!(store.handoff(accepted).await.unwrap().declined_at, None, "it was taken before");
    assert_eq!(store.handoffs_to_cancel(10).await, Ok(vec![rejected]));

    let end = all.iter().map(|(_, end)| *end).max().unwrap();
    store.expire_messages(end, 100).await.unwrap();
    for silent in [silent, acknowledged] {
        let over = store.handoff(silent).await.unwrap();
        assert_eq!((over.declined_at, over.reason.as_deref()), (Some(end), Some(NOT_ANSWERED)));
    }
    for taken in [accepted, begun] {
        assert_eq!(store.handoff(taken).await.unwrap().declined_at, None, "it is worked on");
    }
    assert_eq!(store.handoff(rejected).await, Ok(declined));
    let mut wanted = vec![rejected, silent, acknowledged];
    wanted.sort_unstable();
    assert_eq!(store.handoffs_to_cancel(10).await, Ok(wanted));
}
