//! Messages: accepted in order and once, pushed as often as was counted, settled for good.

use muster_actors::store::{
    Accepted, MessageFilter, NewMessage, Outcome, PageRequest, Party, Settle, Store, StoreError, Waiting,
};
use muster_protocol::ids::{AgentId, MessageId};
use muster_protocol::json::Json;
use muster_protocol::mailbox::{Attempt, RETRIES_MAX};
use muster_protocol::message::{Guarantee, Message, MessageStatus, Verdict};
use muster_protocol::signing::statement::Digest;
use muster_protocol::time::Timestamp;

use super::{Fixture, add_agent, at, entropy, user};

const KEPT_MS: i64 = 7 * 86_400_000;
const ROOMY: (usize, usize) = (100, 1_000_000);

fn agent(n: u8) -> AgentId {
    AgentId::new(at(0), entropy(n))
}

fn message(n: u8, from: u8, to: u8) -> Message {
    let inserted_at = at(i64::from(n));
    Message {
        id: MessageId::new(inserted_at, entropy(n)),
        from: agent(from),
        to: agent(to),
        kind: format!("kind {}", n % 2),
        payload: Some(
            serde_json::from_str(&format!("{{\"n\":{n},\"big\":1e999,\"zero\":\"\\u0000\"}}")).unwrap(),
        ),
        version: "1.1.0".into(),
        guarantee: Guarantee::AtLeastOnce,
        dedup_key: Some(format!("d{n}")),
        signature: Some("sig".into()),
        status: MessageStatus::Queued,
        reason: None,
        retries: 0,
        delivered_at: None,
        acknowledged_at: None,
        inserted_at,
        expires_at: inserted_at.plus_ms(KEPT_MS),
    }
}

fn new(message: Message) -> NewMessage {
    NewMessage { message, once: None }
}

fn once(message: Message, key: &str, body: &str) -> NewMessage {
    let message = Message { guarantee: Guarantee::ExactlyOnce, ..message };
    NewMessage { message, once: Some((key.to_owned(), Digest::of(body.as_bytes()))) }
}

async fn accept(store: &dyn Store, messages: &[Message]) {
    let accepted = store.accept_messages(messages.iter().cloned().map(new).collect()).await.unwrap();
    assert!(accepted.iter().all(|one| *one == Accepted::New), "{accepted:?}");
}

/// A message between two agents that is pushed as often as may be, and given up.
pub async fn dead_letter(store: &dyn Store, from: AgentId, to: AgentId) {
    accept(store, &[Message { from, to, ..message(1, 1, 1) }]).await;
    let (found, _) = store.fetch_mail(to, Vec::new(), ROOMY, at(500)).await.unwrap();
    let seq = found[0].seq;
    for retries in 0..RETRIES_MAX {
        store.retry_mail(to, vec![Attempt { seq, retries }], at(501)).await.unwrap();
    }
    assert_eq!(store.fail_mail(to, vec![seq], at(502)).await.unwrap().len(), 1);
    assert!(store.fail_mail(to, vec![seq], at(503)).await.unwrap().is_empty());
}

async fn settle(
    store: &dyn Store,
    id: MessageId,
    to: u8,
    verdict: Verdict,
    now: Timestamp,
) -> Result<Outcome, StoreError> {
    let mut settled = store.settle_messages(vec![Settle { id, to: agent(to), verdict, now }]).await.unwrap();
    settled.remove(0)
}

async fn ids(store: &dyn Store, to: u8, known: Vec<u64>, room: usize) -> Vec<MessageId> {
    let (found, _) = store.fetch_mail(agent(to), known, (room, 1_000_000), at(500)).await.unwrap();
    found.iter().map(|mail| mail.message.id).collect()
}

async fn waiting(store: &dyn Store, to: u8, most: usize) -> usize {
    store.waiting_mail(agent(to), most, (usize::MAX, usize::MAX)).await.unwrap().messages
}

/// R169: what waits is told by number and bytes, and who has much of it.
pub async fn what_waits_is_counted_by_sender(store: &dyn Store) {
    let sized = |n, from, bytes: usize| Message {
        payload: Some(Json::of(&"x".repeat(bytes - 2))),
        ..message(n, from, 9)
    };
    let all = [
        sized(1, 1, 10),
        sized(2, 1, 10),
        sized(3, 2, 1_000),
        sized(4, 3, 10),
        sized(5, 3, 10),
        sized(6, 3, 10),
    ];
    accept(store, &all).await;
    let waiting = async |most, heavy| {
        let mut waiting = store.waiting_mail(agent(9), most, heavy).await.unwrap();
        waiting.heavy.sort_unstable();
        (waiting.messages, waiting.bytes, waiting.heavy)
    };
    assert_eq!(waiting(100, (9, 9_999)).await, (6, 1_050, vec![]));
    assert_eq!(waiting(100, (3, 1_000)).await, (6, 1_050, vec![(agent(2), (1, 1_000)), (agent(3), (3, 30))]));
    assert_eq!(waiting(2, (1, 1)).await, (2, 20, vec![(agent(1), (2, 20))]), "the oldest");
    settle(store, all[2].id, 9, Verdict::Acknowledged, at(9)).await.unwrap();
    settle(store, all[0].id, 9, Verdict::Rejected(None), at(9)).await.unwrap();
    assert_eq!(waiting(100, (2, 9_999)).await, (4, 40, vec![(agent(3), (3, 30))]));
    assert_eq!(store.waiting_mail(agent(8), 100, (0, 0)).await.unwrap(), Waiting::default());
}

/// R120: what was pushed to nobody is as if it had not been, unless it was pushed or settled since.
pub async fn what_nobody_took_is_queued_again(store: &dyn Store) {
    let all: Vec<Message> = (1..=3).map(|n| message(n, 1, 9)).collect();
    accept(store, &all).await;
    let (found, _) = store.fetch_mail(agent(9), Vec::new(), ROOMY, at(500)).await.unwrap();
    let attempts = |retries| found.iter().map(|mail| Attempt { seq: mail.seq, retries }).collect::<Vec<_>>();
    store.retry_mail(agent(9), attempts(0), at(501)).await.unwrap();
    store.retry_mail(agent(9), attempts(1)[..1].to_vec(), at(502)).await.unwrap();
    settle(store, all[1].id, 9, Verdict::Acknowledged, at(503)).await.unwrap();
    store.requeue_mail(agent(8), attempts(1)).await.unwrap();
    assert_eq!(store.message(all[2].id).await.unwrap().retries, 1, "not another's");
    store.requeue_mail(agent(9), attempts(1)).await.unwrap();
    let status = async |n: usize| {
        let message = store.message(all[n].id).await.unwrap();
        (message.status, message.retries, message.delivered_at)
    };
    assert_eq!(status(0).await, (MessageStatus::Delivered, 2, Some(at(500))), "it was pushed since");
    assert_eq!(status(1).await.0, MessageStatus::Acknowledged);
    assert_eq!(status(2).await, (MessageStatus::Queued, 0, None));
    assert_eq!(ids(store, 9, Vec::new(), 100).await, [all[0].id, all[2].id]);
    assert_eq!(status(2).await.0, MessageStatus::Delivered);
}

/// R123 R124: what was accepted comes back as it was, in the order in which it came.
pub async fn messages_wait_in_order(store: &dyn Store) {
    let all: Vec<Message> = (1..=6).map(|n| message(n, 1 + n % 2, 9)).collect();
    accept(store, &all[..3]).await;
    accept(store, &all[3..]).await;
    accept(store, &[message(7, 1, 8)]).await;
    assert_eq!(store.message(all[0].id).await.unwrap(), all[0]);
    assert_eq!(store.message(message(8, 1, 1).id).await, Err(StoreError::NotFound));
    assert_eq!(waiting(store, 9, 100).await, 6);
    assert_eq!(waiting(store, 9, 4).await, 4);
    let (first, full) = store.fetch_mail(agent(9), Vec::new(), (4, 1_000_000), at(500)).await.unwrap();
    assert!(full);
    assert_eq!(
        first.iter().map(|mail| mail.message.id).collect::<Vec<_>>(),
        all[..4].iter().map(|m| m.id).collect::<Vec<_>>()
    );
    assert!(first.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    let known: Vec<u64> = first.iter().map(|mail| mail.seq).collect();
    for (mail, sent) in first.iter().zip(&all) {
        let pushed =
            Message { status: MessageStatus::Delivered, delivered_at: Some(at(500)), ..sent.clone() };
        assert_eq!(mail.message, pushed);
        assert!(mail.is_open);
        assert_eq!(store.message(sent.id).await.unwrap(), pushed);
    }
    let (rest, full) = store.fetch_mail(agent(9), known, ROOMY, at(501)).await.unwrap();
    assert!(!full);
    assert_eq!(
        rest.iter().map(|mail| mail.message.id).collect::<Vec<_>>(),
        all[4..].iter().map(|m| m.id).collect::<Vec<_>>()
    );
    // Bytes bound a part too, but one message always fits.
    let (one, full) = store.fetch_mail(agent(9), Vec::new(), (100, 1), at(502)).await.unwrap();
    assert_eq!((one.len(), full), (1, true));
    assert_eq!(one[0].message.delivered_at, Some(at(500)), "the first push stands");
    let (none, full) = store.fetch_mail(agent(7), Vec::new(), ROOMY, at(502)).await.unwrap();
    assert!(none.is_empty() && !full);
}

/// R112: who settles a message, how often, and what others see of it.
pub async fn messages_are_settled_once(store: &dyn Store) {
    let all: Vec<Message> = (1..=3).map(|n| message(n, 1, 9)).collect();
    accept(store, &all).await;
    let mine = settle(store, all[0].id, 9, Verdict::Acknowledged, at(10)).await.unwrap();
    assert_eq!(
        (mine.status, mine.is_new, mine.from, mine.to),
        (MessageStatus::Acknowledged, true, agent(1), agent(9))
    );
    let again = settle(store, all[0].id, 9, Verdict::Rejected(None), at(11)).await.unwrap();
    assert_eq!((again.status, again.is_new), (MessageStatus::Acknowledged, false));
    assert_eq!(store.message(all[0].id).await.unwrap().acknowledged_at, Some(at(10)));
    let reason = Some("not mine".to_owned());
    let rejected = settle(store, all[1].id, 9, Verdict::Rejected(reason.clone()), at(12)).await.unwrap();
    assert_eq!((rejected.status, rejected.reason), (MessageStatus::Rejected, reason.clone()));
    assert_eq!(store.message(all[1].id).await.unwrap().reason, reason);
    for stranger in [1, 2] {
        assert_eq!(
            settle(store, all[2].id, stranger, Verdict::Acknowledged, at(13)).await,
            Err(StoreError::NotFound)
        );
    }
    assert_eq!(
        settle(store, message(9, 1, 9).id, 9, Verdict::Acknowledged, at(13)).await,
        Err(StoreError::NotFound)
    );
    assert_eq!(ids(store, 9, Vec::new(), 100).await, [all[2].id]);
    // Of one batch each is what it would be alone.
    let settle_of = |id, to| Settle { id, to: agent(to), verdict: Verdict::Acknowledged, now: at(14) };
    let batch = vec![settle_of(all[2].id, 9), settle_of(all[2].id, 1), settle_of(all[2].id, 9)];
    let settled = store.settle_messages(batch).await.unwrap();
    assert_eq!(settled[0].as_ref().map(|one| one.is_new), Ok(true));
    assert_eq!(settled[1], Err(StoreError::NotFound));
    assert_eq!(settled[2].as_ref().map(|one| one.is_new), Ok(false));
    assert_eq!(waiting(store, 9, 100).await, 0);
}

/// R119 R121: each retry is counted once, and none of what is settled.
pub async fn pushes_are_counted_once(store: &dyn Store) {
    let all: Vec<Message> = (1..=3).map(|n| message(n, 1, 9)).collect();
    accept(store, &all).await;
    let (found, _) = store.fetch_mail(agent(9), Vec::new(), ROOMY, at(500)).await.unwrap();
    let seqs: Vec<u64> = found.iter().map(|mail| mail.seq).collect();
    let attempts = |retries| seqs.iter().map(|seq| Attempt { seq: *seq, retries }).collect::<Vec<_>>();
    settle(store, all[0].id, 9, Verdict::Acknowledged, at(501)).await.unwrap();
    // Two nodes want the same push: both get the message, and it is counted once.
    for _ in 0..2 {
        let again = store.retry_mail(agent(9), attempts(0), at(502)).await.unwrap();
        let counts: Vec<_> = again.iter().map(|mail| (mail.message.id, mail.message.retries)).collect();
        assert_eq!(counts, [(all[1].id, 1), (all[2].id, 1)], "what is settled is not pushed");
    }
    assert!(store.retry_mail(agent(8), attempts(1), at(502)).await.unwrap().is_empty(), "not another's");
    assert!(store.fail_mail(agent(9), seqs.clone(), at(503)).await.unwrap().is_empty(), "it has pushes left");
    for retries in 1..RETRIES_MAX {
        assert_eq!(store.retry_mail(agent(9), attempts(retries), at(503)).await.unwrap().len(), 2);
    }
    let last = store.retry_mail(agent(9), attempts(RETRIES_MAX), at(504)).await.unwrap();
    assert!(last.iter().all(|mail| mail.message.retries == RETRIES_MAX), "never more than may be");
    let read = store.read_mail(agent(9), seqs.clone(), 1_000_000).await.unwrap();
    assert_eq!(read.iter().map(|mail| mail.message.id).collect::<Vec<_>>(), [all[1].id, all[2].id]);
    assert_eq!(store.read_mail(agent(9), seqs.clone(), 1).await.unwrap().len(), 1);
    let failed = store.fail_mail(agent(9), seqs.clone(), at(505)).await.unwrap();
    assert_eq!(failed.len(), 2);
    assert!(failed.iter().all(|one| one.status == MessageStatus::Failed && one.retries == RETRIES_MAX));
    assert!(store.fail_mail(agent(9), seqs, at(505)).await.unwrap().is_empty());
    let dead = async |party| {
        let filter = MessageFilter {
            party: Party::Agent(agent(party)),
            from: None,
            to: None,
            kind: None,
            status: Some(MessageStatus::Failed),
        };
        let page = store.messages(filter, PageRequest { limit: 10, after: None }).await.unwrap();
        page.items.iter().map(|message| message.id).collect::<Vec<_>>()
    };
    assert_eq!((dead(9).await, dead(1).await), (vec![all[2].id, all[1].id], vec![all[2].id, all[1].id]));
    assert!(ids(store, 9, Vec::new(), 100).await.is_empty());
    // A dead letter is queued again where it was; one that is none is not.
    let queued = store.redeliver_message(all[1].id, at(506)).await.unwrap();
    assert_eq!((queued.status, queued.retries, queued.delivered_at), (MessageStatus::Queued, 0, None));
    assert_eq!((dead(9).await, dead(1).await), (vec![all[2].id], vec![all[2].id]));
    assert_eq!(store.redeliver_message(all[1].id, at(506)).await, Err(StoreError::Conflict));
    assert_eq!(store.redeliver_message(all[0].id, at(506)).await, Err(StoreError::Conflict));
    assert_eq!(store.redeliver_message(message(9, 1, 1).id, at(506)).await, Err(StoreError::NotFound));
    assert_eq!(store.redeliver_message(all[2].id, all[2].expires_at).await, Err(StoreError::Conflict));
    assert_eq!(ids(store, 9, Vec::new(), 100).await, [all[1].id]);
    // It came late, but it came.
    assert_eq!(
        settle(store, all[2].id, 9, Verdict::Acknowledged, at(507)).await.unwrap().status,
        MessageStatus::Acknowledged
    );
    assert!(dead(9).await.is_empty());
}

/// R118: what is pushed at most once is given once.
pub async fn what_is_pushed_at_most_once_is_given_once(store: &dyn Store) {
    let most = Message { guarantee: Guarantee::AtMostOnce, ..message(1, 1, 9) };
    accept(store, &[most.clone(), message(2, 1, 9)]).await;
    let (found, _) = store.fetch_mail(agent(9), Vec::new(), ROOMY, at(500)).await.unwrap();
    assert_eq!(found.iter().map(|mail| mail.is_open).collect::<Vec<_>>(), [false, true]);
    assert_eq!(store.message(most.id).await.unwrap().status, MessageStatus::Delivered);
    assert_eq!(ids(store, 9, Vec::new(), 100).await, [message(2, 1, 9).id]);
    assert_eq!(waiting(store, 9, 100).await, 1);
}

/// R121: a key gives the first message, for as long as it is kept.
pub async fn keys_give_the_first_message(store: &dyn Store) {
    let first = once(message(1, 1, 9), "k", "body");
    let batch =
        vec![first.clone(), once(message(2, 1, 9), "k", "body"), once(message(3, 1, 9), "k", "other")];
    let accepted = store.accept_messages(batch).await.unwrap();
    assert_eq!(accepted[0], Accepted::New);
    assert!(matches!(&accepted[1], Accepted::Known(known) if known.id == first.message.id));
    assert_eq!(accepted[2], Accepted::Mismatch);
    let later = vec![
        once(message(4, 1, 8), "k", "body"),
        once(message(5, 2, 9), "k", "body"),
        once(message(6, 1, 9), "l", "body"),
        new(message(7, 1, 9)),
    ];
    let accepted = store.accept_messages(later).await.unwrap();
    assert!(matches!(&accepted[0], Accepted::Known(known) if known.id == first.message.id));
    assert_eq!(accepted[1..], [Accepted::New, Accepted::New, Accepted::New]);
    assert_eq!(waiting(store, 9, 100).await, 4);
    let known = async |from: u8, key: &str, now| store.is_known(agent(from), key.into(), now).await;
    let end = first.message.expires_at;
    assert_eq!(
        [known(1, "k", at(1)).await, known(1, "m", at(1)).await, known(3, "k", at(1)).await],
        [Ok(true), Ok(false), Ok(false)]
    );
    assert_eq!(known(1, "k", end).await, Ok(false));
    // A week later the key is free, even before anybody has swept.
    let inserted_at = first.message.expires_at;
    let fresh = Message { inserted_at, expires_at: inserted_at.plus_ms(KEPT_MS), ..message(8, 1, 9) };
    assert_eq!(store.accept_messages(vec![once(fresh, "k", "third")]).await.unwrap(), [Accepted::New]);
}

/// R122: after a week payloads go, and what was not received has expired; a month later the rest goes.
pub async fn messages_expire_and_are_forgotten(store: &dyn Store) {
    let all: Vec<Message> = (1..=5).map(|n| message(n, 1, 9)).collect();
    accept(store, &all).await;
    settle(store, all[0].id, 9, Verdict::Acknowledged, at(100)).await.unwrap();
    let end = all[3].expires_at;
    assert_eq!(store.expire_messages(all[0].expires_at.plus_ms(-1), 100).await, Ok((0, Vec::new())));
    let (open, _) = store.fetch_mail(agent(9), Vec::new(), ROOMY, end).await.unwrap();
    assert_eq!(
        open.iter().map(|mail| mail.message.id).collect::<Vec<_>>(),
        [all[4].id],
        "what is over is not pushed"
    );
    let attempt = Attempt { seq: open[0].seq, retries: 0 };
    assert!(store.retry_mail(agent(9), vec![attempt], all[4].expires_at).await.unwrap().is_empty());
    let late = settle(store, all[1].id, 9, Verdict::Acknowledged, end).await.unwrap();
    assert_eq!((late.status, late.is_new), (MessageStatus::Expired, false));
    let (looked, expired) = store.expire_messages(end, 3).await.unwrap();
    assert_eq!((looked, expired.len()), (3, 2));
    let (looked, expired) = store.expire_messages(end, 3).await.unwrap();
    assert_eq!((looked, expired.iter().map(|one| one.id).collect::<Vec<_>>()), (1, vec![all[3].id]));
    assert_eq!(expired[0].status, MessageStatus::Expired);
    assert_eq!(store.expire_messages(end, 3).await, Ok((0, Vec::new())));
    let status = async |n: usize| {
        store.message(all[n].id).await.map(|message| (message.status, message.payload.is_some()))
    };
    assert_eq!(status(0).await, Ok((MessageStatus::Acknowledged, false)));
    assert_eq!(status(1).await, Ok((MessageStatus::Expired, false)));
    assert_eq!(status(4).await, Ok((MessageStatus::Delivered, true)));
    assert_eq!(store.purge_messages(end.plus_ms(-3), 100).await, Ok(1));
    assert_eq!(status(0).await, Err(StoreError::NotFound));
    assert_eq!(store.purge_messages(at(0).plus_ms(10 * KEPT_MS), 2).await, Ok(2));
    assert_eq!(store.purge_messages(at(0).plus_ms(10 * KEPT_MS), 2).await, Ok(1));
    assert_eq!(
        store.purge_messages(at(0).plus_ms(10 * KEPT_MS), 2).await,
        Ok(0),
        "what has not expired stays"
    );
}

/// R123: a store that is opened again goes on where it was, places included.
pub async fn messages_outlive_the_store(fixture: Fixture) {
    accept(fixture.store.as_ref(), &[message(1, 1, 9), message(2, 1, 9)]).await;
    let before = fixture.store.fetch_mail(agent(9), Vec::new(), (1, 1_000), at(500)).await.unwrap().0;
    let end = at(0).plus_ms(2 * KEPT_MS);
    let fixture = fixture.reopened().await;
    let store = fixture.store.as_ref();
    assert_eq!(ids(store, 9, Vec::new(), 100).await, [message(1, 1, 9).id, message(2, 1, 9).id]);
    assert_eq!(store.expire_messages(end, 100).await.unwrap().0, 2);
    assert_eq!(store.purge_messages(end, 100).await, Ok(2));
    let fixture = fixture.reopened().await;
    let store = fixture.store.as_ref();
    let third = Message { inserted_at: end, expires_at: end.plus_ms(KEPT_MS), ..message(3, 1, 9) };
    accept(store, &[third]).await;
    let (after, _) = store.fetch_mail(agent(9), Vec::new(), ROOMY, end).await.unwrap();
    assert!(after[0].seq > before[0].seq + 1, "places are never given again");
    assert_eq!(
        store.expire_messages(end.plus_ms(KEPT_MS), 100).await.unwrap().0,
        1,
        "so what is new expires too"
    );
    fixture.close().await;
}

/// R117: whose lists a message is in, and how lists are narrowed and go on.
pub async fn messages_are_listed_by_party(store: &dyn Store) {
    store.create_user(user(1)).await.unwrap();
    let (own, other) = (add_agent(store, 1, Some(user(1).id)).await, add_agent(store, 2, None).await);
    assert_eq!((own.id, other.id), (agent(1), agent(2)));
    let all = [message(1, 1, 2), message(2, 2, 1), message(3, 2, 9), message(4, 1, 1), message(5, 9, 1)];
    accept(store, &all).await;
    let everything = |party| MessageFilter { party, from: None, to: None, kind: None, status: None };
    let list = async |filter: MessageFilter, limit, after| {
        let page = store.messages(filter, PageRequest { limit, after }).await.unwrap();
        let numbers = page
            .items
            .iter()
            .map(|one| all.iter().position(|m| m.id == one.id).unwrap() + 1)
            .collect::<Vec<_>>();
        (numbers, page.total, page.next)
    };
    for party in [Party::Agent(agent(1)), Party::User(user(1).id)] {
        assert_eq!(list(everything(party), 10, None).await, (vec![5, 4, 2, 1], 4, None));
        let (first, total, next) = list(everything(party), 3, None).await;
        assert_eq!((first, total), (vec![5, 4, 2], 4));
        assert_eq!(list(everything(party), 3, next).await, (vec![1], 4, None));
        let from = MessageFilter { from: Some(agent(1)), ..everything(party) };
        assert_eq!(list(from, 10, None).await.0, [4, 1]);
        let to = MessageFilter { to: Some(agent(1)), kind: Some("kind 1".into()), ..everything(party) };
        assert_eq!(list(to, 10, None).await.0, [5]);
        let foreign = MessageFilter { from: Some(agent(2)), to: Some(agent(9)), ..everything(party) };
        assert_eq!(list(foreign, 10, None).await, (vec![], 0, None));
    }
    assert_eq!(list(everything(Party::Agent(agent(9))), 10, None).await.0, [5, 3]);
    settle(store, all[1].id, 1, Verdict::Acknowledged, at(9)).await.unwrap();
    settle(store, all[3].id, 1, Verdict::Rejected(None), at(9)).await.unwrap();
    let of_status = |status, party| MessageFilter { status: Some(status), ..everything(party) };
    for party in [Party::Agent(agent(1)), Party::User(user(1).id)] {
        assert_eq!(list(of_status(MessageStatus::Rejected, party), 10, None).await, (vec![4], 1, None));
        assert_eq!(list(of_status(MessageStatus::Queued, party), 10, None).await, (vec![5, 1], 2, None));
        assert_eq!(list(of_status(MessageStatus::Failed, party), 10, None).await, (vec![], 0, None));
    }
    let queued =
        MessageFilter { from: Some(agent(2)), ..of_status(MessageStatus::Queued, Party::Agent(agent(9))) };
    assert_eq!(list(queued, 10, None).await, (vec![3], 1, None));
    let acknowledged =
        MessageFilter { status: Some(MessageStatus::Acknowledged), ..everything(Party::Agent(agent(2))) };
    assert_eq!(list(acknowledged, 10, None).await, (vec![2], 1, None));
}
