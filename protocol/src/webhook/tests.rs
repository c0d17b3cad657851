//! What is sent, and when it is tried again.

use super::*;
use crate::ids::{AgentId, TaskId, UserId};
use crate::ledger::{self, Account, Entry};
use crate::money::Amount;
use crate::task::Task;

fn at(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(1_700_000_000_000 + ms)
}

fn webhook() -> Webhook {
    Webhook {
        id: WebhookId::new(at(0), [1; 10]),
        owner: Owner::Agent(AgentId::from_bytes([1; 16])),
        url: "https://example.com/hook?token=hidden".into(),
        secret: "whsec_hidden".into(),
        events: Events::of(&[]).unwrap(),
        created_at: at(0),
        failing_since: None,
        disabled_at: None,
    }
}

fn delivery(attempts: u32) -> Delivery {
    Delivery {
        id: DeliveryId::from_bytes([7; 16]),
        event: "task.created".into(),
        data: Json::of(&serde_json::json!({ "n": 1 })),
        created_at: at(0),
        attempts,
    }
}

fn task(status: TaskStatus, output: Option<Json>) -> Task {
    Task {
        id: TaskId::new(at(0), [0; 10]),
        status,
        client: AgentId::from_bytes([1; 16]),
        client_owner: Some(UserId::from_bytes([3; 16])),
        provider: AgentId::from_bytes([2; 16]),
        capability: "code".into(),
        input: Json::of("secret input"),
        output,
        error: None,
        max_price: None,
        external_client: None,
        hiring: None,
        payment: crate::escrow::Payment::default(),
        progress: None,
        created_at: at(0),
        updated_at: at(5),
        ended_at: None,
    }
}

fn answered(status: Option<u16>) -> Attempted {
    Attempted { at: at(10), status, error: None, duration_ms: 1 }
}

/// R144
#[test]
fn events_have_names_and_unknown_ones_are_refused() {
    let all = Events::of(&[]).unwrap();
    assert_eq!(all.names().len(), EventKind::ALL.len() - 1, "but for the test");
    let some = Events::of(&["task.created".into(), "task.failed".into()]).unwrap();
    assert_eq!(some.names(), ["task.created", "task.failed"]);
    assert_eq!(Events::from_bits(some.bits()), some);
    for bad in ["task.exploded", "", "webhook.test", "TASK.CREATED"] {
        let refusal = Events::of(&[bad.into()]).unwrap_err();
        assert_eq!((refusal.code, refusal.field.as_deref()), (ErrorCode::InvalidPayload, Some("events")));
    }
}

/// R144
#[test]
fn what_is_sent_is_one_document_with_a_stable_id_and_without_what_is_long() {
    let events = |status, is_new| {
        let happenings = Happening::of_task(&task(status, None), is_new);
        happenings.iter().map(|happening| happening.event.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(events(TaskStatus::Pending, true), ["task.created"]);
    assert_eq!(events(TaskStatus::Failed, true), ["task.created", "task.failed"]);
    assert_eq!(events(TaskStatus::InProgress, false), ["task.claimed", "task.in_progress"]);
    assert_eq!(events(TaskStatus::Cancelled, false), ["task.cancelled"]);
    let long = Json::of(&"x".repeat(OUTPUT_BYTES_MAX));
    for (output, is_omitted) in [(Json::of("done"), false), (long, true)] {
        let done = task(TaskStatus::Completed, Some(output));
        let [happening] = &Happening::of_task(&done, false)[..] else { panic!("one") };
        let data: serde_json::Value = happening.data.parse().unwrap();
        assert_eq!(data["output_omitted"], is_omitted);
        assert_eq!(data["task"]["output"].is_null(), is_omitted);
        assert!(data["task"]["input"].is_null());
        assert!(happening.data.as_bytes().len() < 2 * OUTPUT_BYTES_MAX);
        let again = &Happening::of_task(&done, false)[0];
        assert_eq!(happening.delivery(webhook().id), again.delivery(webhook().id));
        let other = WebhookId::new(at(0), [2; 10]);
        assert_ne!(happening.delivery(webhook().id), happening.delivery(other));
    }
    let body = delivery(0).body();
    let expected = r#"{"id":"07070707-0707-0707-0707-070707070707","event":"task.created","created_at":"2023-11-14T22:13:20.000Z","data":{"n":1}}"#;
    assert_eq!(body.as_str(), expected);
    assert!(!format!("{:?}", webhook()).contains("hidden"));
}

/// R144: the bits are stored with each webhook.
#[test]
fn events_keep_their_bits() {
    let bits: Vec<_> =
        EventKind::ALL.iter().map(|kind| (kind.as_str(), kind.bit().trailing_zeros())).collect();
    assert_eq!(bits[0], ("task.created", 0));
    assert_eq!(bits[11..], [("message.dead_letter", 11), ("webhook.test", 12), ("payment.disputed", 13)]);
}

/// R144
#[test]
fn money_is_told_to_whose_it_is() {
    let (client, provider) = (AgentId::from_bytes([1; 16]), AgentId::from_bytes([2; 16]));
    let user = UserId::from_bytes([3; 16]);
    let amount = |text| Amount::parse(text).unwrap();
    let told = |entry: &Entry| {
        let happening = Happening::of_entry(entry)?;
        assert!(Happening::tells_of(entry.kind));
        assert_eq!(happening.subject, *entry.id.as_bytes());
        let data: serde_json::Value = happening.data.parse().unwrap();
        Some((happening.event.as_str(), happening.agents, happening.users, data["payment"].clone()))
    };
    let credit = ledger::credit(Account::Agent(client), amount("2"), "x", Some("bill".into()), at(0));
    let (event, agents, users, payment) = told(&credit).unwrap();
    assert_eq!((event, agents, users), ("payment.deposited", vec![client], vec![]));
    assert_eq!((&payment["amount"], &payment["reference"]), (&"2".into(), &"bill".into()));
    assert!(payment.get("user_id").is_none() && payment.get("fee").is_none());
    let debit = ledger::debit(Account::User(user), amount("3"), "x", None, at(0));
    let (event, agents, users, payment) = told(&debit).unwrap();
    assert_eq!((event, agents, users), ("withdrawal.processed", vec![], vec![user]));
    assert_eq!(payment["amount"], "3", "not below nothing");
    let payment = crate::escrow::Payment {
        price: Some(amount("4")),
        fee: amount("1"),
        escrow: crate::escrow::Escrow::Held,
        ..crate::escrow::Payment::default()
    };
    let held = Task { payment, ..task(TaskStatus::InProgress, None) };
    let release = ledger::escrow_settle(&held, TaskStatus::Completed, at(0));
    let (event, agents, _, payment) = told(&release).unwrap();
    assert_eq!((event, agents), ("payment.confirmed", vec![client, provider]));
    assert_eq!((&payment["amount"], &payment["fee"]), (&"4".into(), &"1".into()));
    let hold = ledger::escrow_hold(held.id, client, amount("4"), at(0));
    assert!(told(&hold).is_none() && !Happening::tells_of(hold.kind));
    let refund = ledger::escrow_settle(&held, TaskStatus::Failed, at(0));
    assert!(told(&refund).is_none() && !Happening::tells_of(refund.kind));
}

/// R144
#[test]
fn pauses_double_to_a_bound_and_an_end() {
    let settings = WebhookSettings::default();
    let webhook = webhook();
    let pause = |attempts, chance| {
        let now = at(0);
        match after_attempt(&settings, (&webhook, &delivery(attempts)), &answered(Some(500)), (now, chance)).0
        {
            Next::Retry(due) => Some(due.ms_since(now)),
            Next::Delivered => panic!("it did not arrive"),
            Next::Dead => None,
        }
    };
    assert_eq!((pause(0, 0), pause(0, 255)), (Some(750), Some(1_250)));
    assert_eq!((pause(1, 0), pause(3, 0)), (Some(1_500), Some(6_000)));
    assert_eq!(pause(10, 0), Some(768_000));
    assert_eq!(pause(11, 0), Some(1_536_000), "half an hour is not the end");
    assert_eq!(pause(59, 0), None, "there is a bound all the same");
    let patient = WebhookSettings { attempts_max: 100, ..settings.clone() };
    let late = |created: i64, attempts| {
        let delivery = Delivery { created_at: at(created), ..delivery(attempts) };
        after_attempt(&patient, (&webhook, &delivery), &answered(None), (at(0), 0)).0
    };
    assert_eq!(late(0, 50), Next::Retry(at(2_700_000)), "an hour less a quarter, never more");
    assert_eq!(late(-86_400_000, 1), Next::Dead);
}

/// R144: the settings promise a day, whatever the pauses come to.
#[test]
fn a_delivery_is_tried_for_as_long_as_is_said() {
    let settings = WebhookSettings::default();
    let webhook = webhook();
    for chance in [0, 100, 255] {
        let (mut tried, mut now) = (delivery(0), at(0));
        // Each attempt takes as long as it may.
        let took_ms = i64::try_from(settings.timeout_ms).unwrap();
        let mut attempts = vec![0];
        loop {
            let ended = now.plus_ms(took_ms);
            match after_attempt(&settings, (&webhook, &tried), &answered(None), (ended, chance)).0 {
                Next::Retry(due) => now = due.max(ended),
                Next::Delivered => panic!("it did not arrive"),
                Next::Dead => break,
            }
            tried.attempts += 1;
            attempts.push(now.ms_since(at(0)));
        }
        assert_eq!(
            attempts.last(),
            Some(&settings.keep_trying_ms),
            "the last one at the end of the day: {attempts:?}"
        );
        assert!(attempts.len() < usize::try_from(settings.attempts_max).unwrap(), "{}", attempts.len());
        assert!(
            attempts.windows(2).all(|pair| pair[1] - pair[0] <= 5 * 3_600_000 / 4 + took_ms),
            "{attempts:?}"
        );
    }
}

/// R144
#[test]
fn parts_are_looked_for_by_their_first_and_last_id() {
    let (first, last) = part_of(DeliveryId::from_bytes([7; 16]));
    assert_eq!((first[0], last[0]), (7, 7));
    assert!(first < [7; 16] && [7; 16] < last && first[1..] == [0; 15] && last[1..] == [255; 15]);
}

/// R144: whom a task is taken from, and whom it is given to, are told as they are on their sockets.
#[test]
fn a_task_that_is_given_to_another_is_told_to_both() {
    let before = AgentId::from_bytes([9; 16]);
    let given = task(TaskStatus::Pending, None);
    let told: Vec<_> = Happening::of_reassignment(&given, before)
        .into_iter()
        .map(|one| (one.event.as_str(), one.agents, one.users))
        .collect();
    assert_eq!(
        told,
        [("task.cancelled", vec![before], vec![]), ("task.created", vec![given.provider], vec![])]
    );
    assert!(Happening::of_reassignment(&given, given.provider).is_empty(), "it stays where it is");
}

/// R144
#[test]
fn arriving_is_2xx_and_who_fails_for_days_is_disabled() {
    let settings = WebhookSettings::default();
    for (status, arrives) in
        [(Some(200), true), (Some(204), true), (Some(301), false), (Some(199), false), (None, false)]
    {
        assert_eq!(answered(status).arrived(), arrives, "{status:?}");
    }
    let failing = |since: Option<i64>| {
        let webhook = Webhook { failing_since: since.map(at), ..webhook() };
        after_attempt(&settings, (&webhook, &delivery(0)), &answered(Some(503)), (at(20), 0))
    };
    let (next, since, disabled) = failing(None);
    assert_eq!((since, disabled), (Some(at(10)), false));
    assert!(matches!(next, Next::Retry(_)));
    assert_eq!(failing(Some(-3 * 86_400_000)), (Next::Dead, Some(at(-3 * 86_400_000)), true));
    let webhook = Webhook { failing_since: Some(at(-1)), ..webhook() };
    let arrived = after_attempt(&settings, (&webhook, &delivery(3)), &answered(Some(202)), (at(20), 0));
    assert_eq!(arrived, (Next::Delivered, None, false));
}
