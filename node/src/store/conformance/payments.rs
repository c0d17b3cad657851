//! Payment channels.

use ed25519_key::key;
use muster_actors::store::{PageRequest, Store, StoreError};
use muster_protocol::ids::{AgentId, PaymentChannelId};
use muster_protocol::json::Json;
use muster_protocol::ledger::{Account, Entry, Side};
use muster_protocol::payment_channel::machine::{Action, Command, Periods, Step};
use muster_protocol::payment_channel::request::{OpenRequest, Resolution};
use muster_protocol::payment_channel::{Channel, ChannelStatus};

use super::ledger::{amount, assert_sound, both, credit, has};
use super::{add_agent, at, entropy};

mod ed25519_key {
    use muster_protocol::signing::PublicKey;

    /// That of the vectors.
    pub fn key() -> PublicKey {
        PublicKey::parse("iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w=").unwrap()
    }
}

pub fn pending(n: u8, a: AgentId, b: AgentId, deposits: (&str, &str)) -> (Channel, Option<Entry>) {
    let request = OpenRequest {
        counterparty_agent_id: b,
        deposit: amount(deposits.0),
        counterparty_deposit: Some(amount(deposits.1)),
        channel_id: None,
    };
    let id = PaymentChannelId::new(at(i64::from(n)), entropy(n));
    request.open((id, a, Some(key())), at(1), at(1_000 * i64::from(n))).unwrap()
}

pub fn step(channel: &Channel, command: &Command) -> Step {
    channel.decide(command, at(2), Periods { proposal_ms: 300_000 }).0.unwrap()
}

pub fn accepted(channel: &Channel) -> Step {
    step(channel, &Command::Party(channel.agent_b, Action::Accept(Some(key()))))
}

pub async fn save(store: &dyn Store, before: &Channel, step: &Step) -> Result<(), StoreError> {
    store.save_payment_channel(before.version, step.after.clone(), step.entry.clone()).await
}

async fn parties(store: &dyn Store) -> (AgentId, AgentId) {
    let (a, b) = (add_agent(store, 1, None).await.id, add_agent(store, 2, None).await.id);
    store.post_entry(credit(Account::Agent(a), "10", "a")).await.unwrap();
    store.post_entry(credit(Account::Agent(b), "5", "b")).await.unwrap();
    (a, b)
}

pub async fn channels_change_by_compare_and_set(store: &dyn Store) {
    let (a, b) = parties(store).await;
    let (channel, entry) = pending(1, a, b, ("4", "0"));
    store.create_payment_channel(channel.clone(), entry.clone(), 10).await.unwrap();
    assert_eq!(store.payment_channel(channel.id).await, Ok(channel.clone()));
    assert_eq!(
        store.create_payment_channel(channel.clone(), entry, 10).await,
        Err(StoreError::AlreadyExists)
    );
    let other = PaymentChannelId::new(at(9), entropy(9));
    assert_eq!(store.payment_channel(other).await, Err(StoreError::NotFound));
    let open = accepted(&channel);
    assert_eq!(save(store, &channel, &open).await, Ok(()));
    assert_eq!(save(store, &channel, &open).await, Err(StoreError::Conflict), "it has changed since");
    assert_eq!(store.payment_channel(channel.id).await, Ok(open.after.clone()));
    let odd = serde_json::from_str::<Json>(r#"{"a":"\u0000é😀","n":1e999}"#).unwrap();
    let objection =
        serde_json::from_str(&format!(r#"{{"reason":"why","evidence":{}}}"#, odd.as_str())).unwrap();
    let disputed = step(&open.after, &Command::Party(b, Action::Dispute(objection)));
    assert_eq!(save(store, &open.after, &disputed).await, Ok(()));
    let read = store.payment_channel(channel.id).await.unwrap();
    assert_eq!(read.dispute.as_ref().unwrap().evidence, odd, "byte for byte");
    assert_eq!(read, disputed.after);
    // Two at once: one of them is told that it was late.
    let one = step(&read, &Command::Resolve(Resolution::default()));
    let (first, second) = tokio::join!(save(store, &read, &one), save(store, &read, &one));
    let mut outcomes = [first, second];
    outcomes.sort_by_key(Result::is_err);
    assert_eq!(outcomes, [Ok(()), Err(StoreError::Conflict)]);
    assert_sound(store).await;
}

/// R92 R98: money and channel change together, or neither does.
pub async fn what_moves_moves_with_the_channel(store: &dyn Store) {
    let (a, b) = parties(store).await;
    let (dear, entry) = pending(1, a, b, ("10.000001", "0"));
    let refused = store.create_payment_channel(dear.clone(), entry, 10).await;
    assert_eq!(refused, Err(StoreError::InsufficientBalance(amount("10"))));
    assert_eq!(store.payment_channel(dear.id).await, Err(StoreError::NotFound));
    let (channel, entry) = pending(1, a, b, ("4", "6"));
    store.create_payment_channel(channel.clone(), entry, 10).await.unwrap();
    assert_eq!(has(store, Account::Agent(a)).await, both("6", "4"));
    let open = accepted(&channel);
    let refused = save(store, &channel, &open).await;
    assert_eq!(refused, Err(StoreError::InsufficientBalance(amount("5"))));
    assert_eq!(store.payment_channel(channel.id).await, Ok(channel.clone()), "as it was");
    store.post_entry(credit(Account::Agent(b), "5", "c")).await.unwrap();
    save(store, &channel, &open).await.unwrap();
    assert_eq!(has(store, Account::Agent(b)).await, both("4", "6"));
    let paid = open.after.accounts().transfer(Side::A, amount("1.5"), 1, at(3));
    let after = Channel {
        version: open.after.version + 1,
        balance_a: amount("2.5"),
        balance_b: amount("7.5"),
        nonce: 1,
        ..open.after.clone()
    };
    let change = store.save_payment_channel(open.after.version, after.clone(), Some(paid.clone())).await;
    assert_eq!(change, Ok(()));
    assert_eq!(has(store, Account::Agent(a)).await, both("6", "2.5"));
    assert_eq!(has(store, Account::Agent(b)).await, both("4", "7.5"));
    // The same transfer under another version: the ledger has its name.
    let again = Channel { version: after.version + 1, ..after.clone() };
    let twice = store.save_payment_channel(after.version, again, Some(paid)).await;
    assert_eq!(twice, Err(StoreError::AlreadyExists));
    assert_eq!(store.payment_channel(channel.id).await, Ok(after));
    assert_sound(store).await;
}

pub async fn what_is_due_is_found(store: &dyn Store) {
    let (a, b) = parties(store).await;
    let mut channels = Vec::new();
    for n in 1..=3 {
        let (channel, entry) = pending(n, a, b, ("1", "0"));
        store.create_payment_channel(channel.clone(), entry, 10).await.unwrap();
        channels.push(channel);
    }
    let ids: Vec<_> = channels.iter().map(|channel| channel.id).collect();
    assert_eq!(store.payment_channels_due(at(999), 10).await, Ok(Vec::new()));
    assert_eq!(store.payment_channels_due(at(2_000), 10).await.unwrap(), ids[..2]);
    assert_eq!(store.payment_channels_due(at(9_000), 1).await.unwrap(), ids[..1]);
    save(store, &channels[0], &accepted(&channels[0])).await.unwrap();
    assert_eq!(store.payment_channels_due(at(2_000), 10).await.unwrap(), ids[1..2]);
    let page = store.payment_channels(b, PageRequest { limit: 2, after: None }).await.unwrap();
    let of = |items: &[Channel]| items.iter().map(|channel| channel.id).collect::<Vec<_>>();
    assert_eq!((of(&page.items), page.total), (vec![ids[2], ids[1]], 3));
    let rest = store.payment_channels(a, PageRequest { limit: 2, after: page.next }).await.unwrap();
    assert_eq!((of(&rest.items), rest.items[0].status), (vec![ids[0]], ChannelStatus::Open));
    let pending = store.payment_channels_in(ChannelStatus::Pending, PageRequest { limit: 1, after: None });
    let pending = pending.await.unwrap();
    assert_eq!((of(&pending.items), pending.total), (vec![ids[2]], 2));
    let rest = PageRequest { limit: 9, after: pending.next };
    let rest = store.payment_channels_in(ChannelStatus::Pending, rest).await.unwrap();
    assert_eq!((of(&rest.items), rest.next), (vec![ids[1]], None));
    let stranger = add_agent(store, 3, None).await.id;
    assert_eq!(
        store.payment_channels(stranger, PageRequest { limit: 2, after: None }).await.unwrap().total,
        0
    );
}

/// An agent has a bound of channels that it opened and that are not over.
pub async fn channels_that_are_not_over_are_bounded(store: &dyn Store) {
    let (a, b) = parties(store).await;
    let open = |n, from, to, live_max| async move {
        let (channel, entry) = pending(n, from, to, ("1", "0"));
        store.create_payment_channel(channel.clone(), entry, live_max).await.map(|()| channel)
    };
    let first = open(1, a, b, 2).await.unwrap();
    open(2, a, b, 2).await.unwrap();
    assert_eq!(open(3, a, b, 2).await, Err(StoreError::LimitReached));
    assert_eq!(has(store, Account::Agent(a)).await, both("8", "2"), "and nothing is held for it");
    assert_eq!(
        open(1, a, b, 2).await,
        Err(StoreError::AlreadyExists),
        "one that is there is found beyond the bound"
    );
    // The bound is its own: others open channels with it, also such as it opened.
    open(4, b, a, 1).await.unwrap();
    assert_eq!(open(5, b, a, 1).await, Err(StoreError::LimitReached));
    // Open and disputed ones count; one that is paid out does not.
    let accepted = accepted(&first);
    save(store, &first, &accepted).await.unwrap();
    assert_eq!(open(3, a, b, 2).await, Err(StoreError::LimitReached));
    let objection = serde_json::from_str(r#"{"reason":"why"}"#).unwrap();
    let disputed = step(&accepted.after, &Command::Party(b, Action::Dispute(objection)));
    save(store, &accepted.after, &disputed).await.unwrap();
    assert_eq!(open(3, a, b, 2).await, Err(StoreError::LimitReached));
    let resolved = step(&disputed.after, &Command::Resolve(Resolution::default()));
    save(store, &disputed.after, &resolved).await.unwrap();
    // Of two at once one has the place.
    let (one, other) = tokio::join!(open(3, a, b, 2), open(6, a, b, 2));
    assert_eq!([one, other].iter().filter(|made| made.is_ok()).count(), 1);
    assert_sound(store).await;
}
