//! Every operation adds up to nothing, and nothing has two names.

use super::*;
use crate::escrow::{Escrow, Payment};
use crate::json::Json;

fn at() -> Timestamp {
    Timestamp::from_unix_ms(1_700_000_000_000)
}

fn agent(n: u8) -> AgentId {
    AgentId::new(at(), [n; 10])
}

fn amount(text: &str) -> Amount {
    Amount::parse(text).unwrap()
}

fn task(price: &str, fee: &str) -> Task {
    Task {
        id: TaskId::new(at(), [9; 10]),
        status: TaskStatus::InProgress,
        client: agent(1),
        client_owner: None,
        provider: agent(2),
        capability: "code".into(),
        input: Json::null(),
        output: None,
        error: None,
        max_price: None,
        external_client: None,
        hiring: None,
        payment: Payment {
            price: Some(amount(price)),
            fee: amount(fee),
            escrow: Escrow::Held,
            request: None,
        },
        progress: None,
        created_at: at(),
        updated_at: at(),
        ended_at: None,
    }
}

/// R142: double entry.
#[test]
fn every_operation_adds_up_to_nothing() {
    let user = UserId::new(at(), [5; 10]);
    let channel = ChannelAccounts {
        channel: PaymentChannelId::new(at(), [7; 10]),
        agent_a: agent(1),
        agent_b: agent(2),
    };
    let (one, two, three) = (amount("1"), amount("2"), amount("3"));
    let (mine, theirs) = (Account::User(user), Account::Agent(agent(1)));
    let entries = [
        credit(theirs, one, "x", None, at()),
        debit(theirs, one, "x", None, at()),
        transfer(user, (mine, theirs), one, "x", None, at()),
        escrow_hold(task("2", "0").id, agent(1), two, at()),
        escrow_settle(&task("2", "0.5"), TaskStatus::Completed, at()),
        channel.deposit(Side::A, one, at()).unwrap(),
        channel.deposit(Side::B, two, at()).unwrap(),
        channel.transfer(Side::A, one, 1, at()),
        channel.transfer(Side::B, one, 2, at()),
        channel.payout((one, two), (three, Amount::ZERO), at()).unwrap(),
    ];
    for entry in &entries {
        assert!(entry.is_balanced(), "{entry:?}");
        let keys: Vec<_> = entry.postings.iter().map(|posting| posting.account.key()).collect();
        assert!(
            keys.is_sorted() && keys.iter().all(|key| keys.iter().filter(|other| key == *other).count() == 1)
        );
        for Posting { account, .. } in &entry.postings {
            assert_eq!(Account::from_key(account.key(), account.holder()), Some(*account));
        }
    }
    let mut names: Vec<_> = entries.iter().map(|entry| (&entry.operation, entry.id)).collect();
    names.sort();
    names.dedup_by(|a, b| a.0 == b.0 || a.1 == b.1);
    assert_eq!(names.len(), entries.len());
}

/// R141: released less the fee, or refunded whole, under one name, so that only one of both happens.
#[test]
fn an_escrow_is_settled_once_and_whole() {
    let task = task("2", "0.5");
    let escrow = Account::Escrow { task: task.id, holder: agent(1) };
    let (released, after) = task.settlement(TaskStatus::Completed, at());
    let released = released.unwrap();
    assert_eq!(after, Escrow::Released);
    let deltas = |entry: &Entry| {
        [escrow, Account::Agent(agent(1)), Account::Agent(agent(2)), Account::Fees]
            .map(|account| entry.delta_of(&account).to_string())
    };
    assert_eq!(deltas(&released), ["-2", "0", "1.5", "0.5"]);
    for ended in [TaskStatus::Failed, TaskStatus::Cancelled] {
        let (refunded, after) = task.settlement(ended, at());
        let refunded = refunded.unwrap();
        assert_eq!((after, deltas(&refunded)), (Escrow::Refunded, ["-2", "2", "0", "0"].map(Into::into)));
        assert_eq!(refunded.operation, released.operation);
    }
    let settled = Task { payment: Payment { escrow: after, ..task.payment }, ..task };
    assert_eq!(settled.settlement(TaskStatus::Failed, at()), (None, Escrow::Released));
}

#[test]
fn nothing_but_the_world_outside_owes() {
    let posting = |account, micros| Posting { account, delta: Delta(micros) };
    let own = Account::Agent(agent(1));
    assert_eq!(posting(own, -5).after(5), Ok(0));
    assert_eq!(posting(own, -6).after(5), Err(Unpostable::Short(Amount::from_micros(5).unwrap())));
    assert_eq!(posting(Account::External, -6).after(5), Ok(-1));
    assert_eq!(posting(own, 1).after(i64::MAX), Err(Unpostable::Overflow));
    assert_eq!(posting(Account::External, -2).after(i64::MIN + 1), Err(Unpostable::Overflow));
}

#[test]
fn an_entry_to_oneself_moves_nothing() {
    let own = Account::Agent(agent(1));
    let entry = transfer(UserId::new(at(), [5; 10]), (own, own), amount("1"), "x", None, at());
    assert!(!entry.is_balanced());
    assert_eq!(Delta(-1_500_000).to_string(), "-1.5");
}

/// R104 R144: what one agent paid another, and no other movement.
#[test]
fn what_one_agent_paid_another_is_a_payment() {
    let channel = ChannelAccounts {
        channel: PaymentChannelId::new(at(), [7; 10]),
        agent_a: agent(1),
        agent_b: agent(2),
    };
    let paid = |entry: Entry| {
        entry.paid().map(|paid| (paid.from, paid.to, paid.amount.to_string(), paid.earned().to_string()))
    };
    let of = |from, to, amount: &str, earned: &str| {
        Some((agent(from), agent(to), amount.to_owned(), earned.to_owned()))
    };
    let (one, two, three) = (amount("1"), amount("2"), amount("3"));
    let (user, own) = (UserId::new(at(), [5; 10]), Account::Agent(agent(1)));
    assert_eq!(paid(escrow_settle(&task("2", "0.5"), TaskStatus::Completed, at())), of(1, 2, "2", "1.5"));
    assert_eq!(paid(channel.transfer(Side::B, one, 1, at())), of(2, 1, "1", "1"));
    let payout = |held, got| paid(channel.payout(held, got, at()).unwrap());
    assert_eq!(payout((two, one), (two, one)), None, "each gets what it had");
    assert_eq!(payout((two, one), (Amount::ZERO, three)), of(1, 2, "2", "2"));
    assert_eq!(payout((two, one), (three, Amount::ZERO)), of(2, 1, "1", "1"));
    for entry in [
        credit(own, one, "x", None, at()),
        debit(own, one, "x", None, at()),
        transfer(user, (Account::User(user), own), one, "x", None, at()),
        escrow_hold(task("2", "0").id, agent(1), two, at()),
        escrow_settle(&task("2", "0.5"), TaskStatus::Failed, at()),
        escrow_settle(&task("2", "2"), TaskStatus::Completed, at()),
        channel.deposit(Side::A, one, at()).unwrap(),
    ] {
        assert_eq!(paid(entry.clone()), None, "{entry:?}");
    }
}
