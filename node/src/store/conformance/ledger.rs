//! The ledger, and what tasks hold in it.

use muster_actors::store::{Finish, PageRequest, Store, StoreError, StoreResult};
use muster_protocol::agent::Agent;
use muster_protocol::escrow::{Escrow, Payment};
use muster_protocol::hiring::HiringStatus;
use muster_protocol::ids::{HiringId, UserId};
use muster_protocol::json::Json;
use muster_protocol::ledger::{self, Account, Entry, EntryKind};
use muster_protocol::money::Amount;
use muster_protocol::task::{Ending, Task, TaskStatus};

use super::{add_agent, at, entropy, hiring, task, user};

const PAGE: PageRequest = PageRequest { limit: 10, after: None };

pub fn amount(text: &str) -> Amount {
    Amount::parse(text).unwrap()
}

pub fn credit(account: Account, text: &str, name: &str) -> Entry {
    ledger::credit(account, amount(text), name, Some(name.into()), at(1))
}

/// What it has, and what is held for it.
pub async fn has(store: &dyn Store, account: Account) -> (String, String) {
    let balance = store.balance(account).await.unwrap();
    (balance.available.to_string(), balance.escrow.to_string())
}

pub fn both(available: &str, escrow: &str) -> (String, String) {
    (available.into(), escrow.into())
}

/// Everything adds up.
pub async fn assert_sound(store: &dyn Store) {
    let audit = store.audit().await.unwrap();
    assert_eq!(
        (audit.unbalanced_entries, audit.mismatched_accounts, audit.sum_micros),
        (0, 0, 0),
        "{audit:?}"
    );
}

/// R142: an operation is posted once, whole or not at all.
pub async fn entries_are_posted_once_and_whole(store: &dyn Store) {
    let agent = Account::Agent(add_agent(store, 1, None).await.id);
    let mine = Account::User(UserId::new(at(0), entropy(1)));
    assert_eq!(store.balance(agent).await.unwrap(), ledger::Balance::default());
    let first = credit(agent, "10", "a");
    assert_eq!(store.post_entry(first.clone()).await, Ok(None));
    assert_eq!(has(store, agent).await, both("10", "0"));
    let again = Entry { at: at(7), ..first.clone() };
    assert_eq!(store.post_entry(again).await, Ok(Some(first.clone())), "what was posted is given");
    let other = credit(agent, "11", "a");
    assert_eq!(store.post_entry(other).await, Ok(Some(first)));
    assert_eq!(has(store, agent).await, both("10", "0"));

    let by = UserId::new(at(0), entropy(1));
    let over = ledger::transfer(by, (agent, mine), amount("10.000001"), "b", None, at(2));
    assert_eq!(store.post_entry(over).await, Err(StoreError::InsufficientBalance(amount("10"))));
    let none = ledger::transfer(by, (mine, agent), amount("0.000001"), "b", None, at(2));
    assert_eq!(store.post_entry(none).await, Err(StoreError::InsufficientBalance(Amount::ZERO)));
    assert!(!store.balance(mine).await.unwrap().is_funded, "what is refused leaves nothing behind");
    let all = ledger::transfer(by, (agent, mine), amount("10"), "b", None, at(2));
    assert_eq!(store.post_entry(all).await, Ok(None), "its name was not used up");
    assert_eq!((has(store, agent).await, has(store, mine).await), (both("0", "0"), both("10", "0")));
    let debit = ledger::debit(mine, amount("4"), "c", None, at(3));
    assert_eq!(store.post_entry(debit).await, Ok(None));

    let most = credit(mine, "9223372036854.775807", "d");
    assert_eq!(store.post_entry(most).await, Err(StoreError::LimitReached), "more than can be counted");
    let lame = Entry { postings: all_but_one(&credit(mine, "1", "e")), ..credit(mine, "1", "e") };
    assert!(matches!(store.post_entry(lame).await, Err(StoreError::Unavailable(_))), "it does not add up");
    assert_eq!(has(store, mine).await, both("6", "0"));
    assert_sound(store).await;
}

fn all_but_one(entry: &Entry) -> Vec<ledger::Posting> {
    entry.postings[1..].to_vec()
}

pub async fn accounts_are_listed_newest_first(store: &dyn Store) {
    let agent = Account::Agent(add_agent(store, 1, None).await.id);
    let other = Account::Agent(add_agent(store, 2, None).await.id);
    let mut entries = Vec::new();
    for n in 1..=5 {
        let entry = ledger::credit(agent, amount("1"), &format!("{n}"), None, at(n));
        store.post_entry(entry.clone()).await.unwrap();
        store.post_entry(ledger::credit(other, amount("1"), &format!("{n}"), None, at(n))).await.unwrap();
        entries.insert(0, entry);
    }
    let first = store.entries_of(agent, PageRequest { limit: 3, after: None }).await.unwrap();
    assert_eq!((first.items, first.total), (entries[..3].to_vec(), 5));
    let second = store.entries_of(agent, PageRequest { limit: 3, after: first.next }).await.unwrap();
    assert_eq!((second.items, second.next), (entries[3..].to_vec(), None));
}

fn priced(n: u8, (client, provider): (&Agent, &Agent), price: &str, fee: &str) -> Task {
    let payment =
        Payment { price: Some(amount(price)), fee: amount(fee), escrow: Escrow::Held, request: None };
    Task { payment, ..task(n, client, provider) }
}

async fn finish(store: &dyn Store, task: &Task, ending: Ending) -> StoreResult<Task> {
    let epoch = store.claim_stream(task.id, 0, 0).await?.epoch;
    store.finish_task(Finish { task: task.id, epoch, ending, by: None, last_seq: 0, now: at(500) }).await
}

/// R141: held with the task, and settled with its end, once.
pub async fn escrows_follow_their_task(store: &dyn Store) {
    let (client, provider) = (add_agent(store, 1, None).await, add_agent(store, 2, None).await);
    let (payer, payee) = (Account::Agent(client.id), Account::Agent(provider.id));
    store.post_entry(credit(payer, "10", "a")).await.unwrap();
    let endings = [
        (Ending::completed(Json::null()), Escrow::Released, ["7", "2.5"]),
        (Ending::failed(Json::empty_object()), Escrow::Refunded, ["7", "2.5"]),
        (Ending::cancelled(None), Escrow::Refunded, ["7", "2.5"]),
    ];
    for (n, (ending, escrow, [left, earned])) in (1..).zip(endings) {
        let order = priced(n, (&client, &provider), "3", "0.5");
        let before = has(store, payer).await;
        store.create_task(order.clone(), None).await.unwrap();
        assert_eq!(store.task(order.id).await.unwrap(), order);
        assert_eq!(has(store, payer).await.1, "3", "held");
        assert_eq!(store.create_task(order.clone(), None).await, Err(StoreError::AlreadyExists));
        let done = finish(store, &order, ending.clone()).await.unwrap();
        assert_eq!(done.payment, Payment { escrow, ..order.payment });
        assert_eq!(has(store, payer).await, both(left, "0"), "{before:?}");
        assert_eq!(has(store, payee).await, both(earned, "0"));
        let late = finish(store, &order, Ending::cancelled(None)).await;
        assert_eq!(late, Err(StoreError::WrongStatus(ending.status)));
        assert_eq!(has(store, payer).await, both(left, "0"), "once");
        let account = Account::Escrow { task: order.id, holder: client.id };
        let kinds: Vec<_> = store.entries_of(account, PAGE).await.unwrap().items;
        let kinds: Vec<_> = kinds.iter().map(|entry| entry.kind).collect();
        let settled =
            if escrow == Escrow::Released { EntryKind::EscrowRelease } else { EntryKind::EscrowRefund };
        assert_eq!(kinds, [settled, EntryKind::EscrowHold]);
    }
    assert_eq!(has(store, Account::Fees).await.0, "0.5");
    assert_sound(store).await;
}

/// R141 R143: a hiring whose price cannot be held does not happen; one that fails at once gives it back; a retry holds
/// anew.
pub async fn hirings_hold_or_do_not_happen(store: &dyn Store) {
    store.create_user(user(1)).await.unwrap();
    let client = add_agent(store, 1, Some(user(1).id)).await;
    let provider = add_agent(store, 2, None).await;
    let payer = Account::Agent(client.id);
    let id = HiringId::new(at(1), entropy(1));
    let order = Task { hiring: Some(id), ..priced(1, (&client, &provider), "3", "0") };
    let hired = hiring(1, &order, &provider.did);
    let refused = store.create_task(order.clone(), Some(hired.clone())).await;
    assert_eq!(refused, Err(StoreError::InsufficientBalance(Amount::ZERO)));
    assert_eq!(store.task(order.id).await, Err(StoreError::NotFound));
    assert_eq!(store.hiring(id).await, Err(StoreError::NotFound));
    assert_eq!(store.timeline(order.id).await, Ok(Vec::new()));

    store.post_entry(credit(payer, "5", "a")).await.unwrap();
    let failed = Task {
        status: TaskStatus::Failed,
        error: Some(Json::empty_object()),
        ended_at: Some(order.created_at),
        payment: order.payment.given_back(),
        ..order.clone()
    };
    store.create_task(failed.clone(), Some(hired)).await.unwrap();
    assert_eq!(store.task(order.id).await.unwrap().payment.escrow, Escrow::Refunded);
    assert_eq!(has(store, payer).await, both("5", "0"));
    let again = Task { hiring: Some(id), ..priced(2, (&client, &provider), "3", "0") };
    assert_eq!(store.retry_hiring(id, again.clone()).await.unwrap().status, HiringStatus::Queued);
    assert_eq!(has(store, payer).await, both("2", "3"));
    finish(store, &again, Ending::failed(Json::empty_object())).await.unwrap();
    let dear = Task { hiring: Some(id), ..priced(3, (&client, &provider), "6", "0") };
    let refused = store.retry_hiring(id, dear).await;
    assert_eq!(refused, Err(StoreError::InsufficientBalance(amount("5"))));
    assert_eq!(store.hiring(id).await.unwrap().task, again.id, "nothing was changed");
    assert_sound(store).await;
}

/// R142: what many do at once adds up, and nobody pays what it does not have.
pub async fn much_at_once_adds_up(store: &dyn Store) {
    let accounts: Vec<Account> = {
        let mut accounts = Vec::new();
        for n in 1..=4 {
            accounts.push(Account::Agent(add_agent(store, n, None).await.id));
        }
        accounts
    };
    for account in &accounts {
        store.post_entry(credit(*account, "10", "a")).await.unwrap();
    }
    let by = UserId::new(at(0), entropy(1));
    let moves = (0..120_usize).map(|n| {
        let pair = (accounts[n % 4], accounts[(n / 4 + n + 1) % 4]);
        // Each name comes twice, at the same moment.
        ledger::transfer(by, pair, amount("3"), &format!("{}", n / 2), None, at(2))
    });
    let posted =
        futures_util::future::join_all(moves.filter(Entry::is_balanced).map(|entry| store.post_entry(entry)))
            .await;
    for outcome in &posted {
        assert!(matches!(outcome, Ok(_) | Err(StoreError::InsufficientBalance(_))), "{outcome:?}");
    }
    assert!(posted.iter().any(|outcome| matches!(outcome, Ok(Some(_)))), "some came twice");
    let mut sum = 0;
    for account in &accounts {
        sum += store.balance(*account).await.unwrap().available.micros();
    }
    assert_eq!(sum, 40_000_000);
    assert_sound(store).await;
}

/// R142: what the platform keeps is counted, and can be taken out once.
pub async fn fees_are_counted_and_taken_out(store: &dyn Store) {
    let (client, provider) = (add_agent(store, 1, None).await, add_agent(store, 2, None).await);
    let totals = || async move {
        let totals = store.ledger_totals().await.unwrap();
        (totals.fees.to_string(), totals.external.to_string(), totals.sum.to_string())
    };
    let are = |fees: &str, external: &str| (fees.to_owned(), external.to_owned(), "0".to_owned());
    assert_eq!(totals().await, are("0", "0"), "of nothing");
    store.post_entry(credit(Account::Agent(client.id), "10", "a")).await.unwrap();
    assert_eq!(totals().await, are("0", "-10"));
    let order = priced(1, (&client, &provider), "4", "0.25");
    store.create_task(order.clone(), None).await.unwrap();
    finish(store, &order, Ending::completed(Json::null())).await.unwrap();
    assert_eq!(totals().await, are("0.25", "-10"));
    assert_eq!(has(store, Account::Fees).await, both("0.25", "0"));
    let over = ledger::debit(Account::Fees, amount("0.250001"), "over", None, at(2));
    assert_eq!(store.post_entry(over).await, Err(StoreError::InsufficientBalance(amount("0.25"))));
    let part = ledger::debit(Account::Fees, amount("0.2"), "part", None, at(3));
    assert_eq!(store.post_entry(part.clone()).await, Ok(None));
    assert_eq!(store.post_entry(part.clone()).await, Ok(Some(part)), "once");
    assert_eq!(totals().await, are("0.05", "-9.8"));
    assert_sound(store).await;
}
