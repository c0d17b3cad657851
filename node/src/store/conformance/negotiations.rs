//! Negotiations and agreements.

use muster_actors::store::{NegotiationFilter, PageRequest, Store, StoreError};
use muster_protocol::agent::Agent;
use muster_protocol::ids::{AgreementId, NegotiationId};
use muster_protocol::json::Json;
use muster_protocol::limits::Limits;
use muster_protocol::money::Amount;
use muster_protocol::negotiation::agreement::Agreement;
use muster_protocol::negotiation::{Negotiation, Opening, Party, Settings, Side, Status};
use muster_protocol::signing::ServerKey;

use super::{Fixture, add_agent, at, entropy, task, user};

const PAGE: PageRequest = PageRequest { limit: 10, after: None };

/// The n-th, by the client, with a name that says nothing of when it began.
fn opening(n: u8, client: &Agent, provider: &Agent) -> Opening {
    let key = Some(ServerKey::from_seed([n; 32]).public());
    Opening {
        id: NegotiationId::from_bytes([0xFF - n; 16]),
        listed_as: NegotiationId::new(at(i64::from(n)), entropy(n)),
        client: Party { agent: client.id, key },
        provider: Party { agent: provider.id, key: None },
        by: Side::Client,
        task: None,
        base_price: Amount::parse("50").unwrap(),
        terms: Some(serde_json::from_str(r#"{ "b": 1.0, "a": "é\u0000" }"#).unwrap()),
        amount: Amount::parse("12.5").unwrap(),
        signature: None,
    }
}

fn open(n: u8, client: &Agent, provider: &Agent) -> Negotiation {
    open_as(opening(n, client, provider), n)
}

fn open_as(opening: Opening, n: u8) -> Negotiation {
    opening.open(&Settings::default(), &Limits::default(), at(i64::from(n))).unwrap()
}

fn agreement(n: u8, of: &Negotiation) -> Agreement {
    Agreement {
        id: AgreementId::new(at(i64::from(n)), entropy(n)),
        session: of.id,
        client: of.client.agent,
        provider: of.provider.agent,
        created_at: at(i64::from(n)),
        document: Json::of(&serde_json::json!({ "amount": "1", "n": n })),
    }
}

fn accepted(of: &Negotiation, agreement: &Agreement) -> Negotiation {
    let (status, ended_by) = (Status::Accepted, Some(of.provider.agent));
    Negotiation { version: of.version + 1, status, ended_by, agreement: Some(agreement.id), ..of.clone() }
}

pub async fn negotiations_change_by_compare_and_set(store: &dyn Store) {
    let (client, provider) = (add_agent(store, 1, None).await, add_agent(store, 2, None).await);
    let about = task(1, &client, &provider);
    store.create_task(about.clone(), None).await.unwrap();
    let first = open_as(Opening { task: Some(about.id), ..opening(1, &client, &provider) }, 1);
    assert_eq!(store.negotiation(first.id).await, Err(StoreError::NotFound));
    assert_eq!(store.change_negotiation(1, first.clone(), None).await, Err(StoreError::NotFound));
    store.create_negotiation(first.clone(), 10).await.unwrap();
    assert_eq!(store.negotiation(first.id).await, Ok(first.clone()), "field by field");
    let again = Negotiation { listed_as: open(2, &client, &provider).listed_as, ..first.clone() };
    assert_eq!(store.create_negotiation(again, 10).await, Err(StoreError::AlreadyExists));
    let mut second = Negotiation { version: 2, updated_at: at(9), ..first.clone() };
    second.provider.key = Some(ServerKey::from_seed([9; 32]).public());
    second.offers.push(first.offers[0].clone());
    store.change_negotiation(1, second.clone(), None).await.unwrap();
    assert_eq!(store.negotiation(first.id).await, Ok(second.clone()));
    let stale = Negotiation { version: 2, status: Status::Rejected, ..first.clone() };
    assert_eq!(store.change_negotiation(1, stale, None).await, Err(StoreError::Conflict));
    let reason = Some("é".repeat(10));
    let rejected =
        Negotiation { version: 3, status: Status::Rejected, reason, ended_by: Some(client.id), ..second };
    store.change_negotiation(2, rejected.clone(), None).await.unwrap();
    assert_eq!(store.negotiation(first.id).await, Ok(rejected));
}

pub async fn a_negotiation_has_one_agreement(store: &dyn Store) {
    let (client, provider) = (add_agent(store, 1, None).await, add_agent(store, 2, None).await);
    let first = open(1, &client, &provider);
    store.create_negotiation(first.clone(), 10).await.unwrap();
    let made = agreement(1, &first);
    let after = accepted(&first, &made);
    // Of two nodes that accept at once one is late, and leaves nothing.
    let late = agreement(2, &first);
    let (one, other) = tokio::join!(
        store.change_negotiation(1, after.clone(), Some(made.clone())),
        store.change_negotiation(1, accepted(&first, &late), Some(late.clone())),
    );
    assert_eq!([&one, &other].into_iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert!([&one, &other].contains(&&Err(StoreError::Conflict)));
    let (made, late) = if one.is_ok() { (made, late) } else { (late, made) };
    assert_eq!(store.agreement(made.id).await, Ok(made.clone()));
    assert_eq!(store.agreement(late.id).await, Err(StoreError::NotFound));
    // Whatever a version says: a second agreement of one negotiation is not stored, nor is what came with it.
    let second = Negotiation { version: 3, ..accepted(&after, &late) };
    assert!(store.change_negotiation(2, second, Some(late.clone())).await.is_err());
    assert_eq!(store.negotiation(first.id).await.unwrap().agreement, Some(made.id));
    assert_eq!(store.agreement(late.id).await, Err(StoreError::NotFound));
}

pub async fn negotiations_are_listed_by_party_and_bounded(store: &dyn Store) {
    store.create_user(user(1)).await.unwrap();
    let owned = add_agent(store, 1, Some(user(1).id)).await;
    let (other, stranger) = (add_agent(store, 2, None).await, add_agent(store, 3, None).await);
    for n in 1..=3 {
        store.create_negotiation(open(n, &owned, &other), 3).await.unwrap();
    }
    assert_eq!(store.create_negotiation(open(4, &owned, &other), 3).await, Err(StoreError::LimitReached));
    // Those that others opened with it do not count, nor do those that are over.
    store.create_negotiation(open(5, &other, &owned), 3).await.unwrap();
    let by_provider = open_as(Opening { by: Side::Provider, ..opening(6, &other, &stranger) }, 6);
    store.create_negotiation(by_provider, 1).await.unwrap();
    let later =
        opening(7, &owned, &other).open(&Settings::default(), &Limits::default(), at(1_800_003)).unwrap();
    store.create_negotiation(later, 1).await.unwrap();
    let list = |filter: NegotiationFilter| async move {
        let page = store.negotiations(filter, PAGE).await.unwrap();
        assert_eq!(page.items.len() as u64, page.total);
        page.items.iter().map(|one| 0xFF - one.id.as_bytes()[0]).collect::<Vec<_>>()
    };
    let all = NegotiationFilter::default();
    assert_eq!(list(NegotiationFilter { agent: Some(owned.id), ..all }).await, [7, 5, 3, 2, 1]);
    assert_eq!(list(NegotiationFilter { user: Some(user(1).id), ..all }).await, [7, 5, 3, 2, 1]);
    assert_eq!(list(NegotiationFilter { agent: Some(stranger.id), ..all }).await, [6]);
    let filter = NegotiationFilter { agent: Some(owned.id), status: Some(Status::Accepted), ..all };
    assert_eq!(list(filter).await, Vec::<u8>::new());
    let filter = NegotiationFilter { agent: Some(owned.id), ..all };
    let first = store.negotiations(filter, PageRequest { limit: 3, after: None }).await.unwrap();
    assert_eq!((first.items.len(), first.total), (3, 5));
    let second = store.negotiations(filter, PageRequest { limit: 3, after: first.next }).await.unwrap();
    assert_eq!((second.items.len(), second.next), (2, None));
}

pub async fn negotiations_that_are_over_are_due(store: &dyn Store) {
    let (client, provider) = (add_agent(store, 1, None).await, add_agent(store, 2, None).await);
    let all: Vec<Negotiation> = (1..=3).map(|n| open(n, &client, &provider)).collect();
    for one in &all {
        store.create_negotiation(one.clone(), 10).await.unwrap();
    }
    let rejected = Negotiation { version: 2, status: Status::Rejected, ..all[0].clone() };
    store.change_negotiation(1, rejected, None).await.unwrap();
    let due = |ms| store.negotiations_due(at(ms), 10);
    assert_eq!(due(1_800_001).await.unwrap(), [], "an ended one is never due");
    assert_eq!(due(1_800_002).await.unwrap(), [all[1].id]);
    assert_eq!(due(1_800_003).await.unwrap(), [all[1].id, all[2].id]);
    assert_eq!(store.negotiations_due(at(9_999_999), 1).await.unwrap(), [all[1].id]);
}

/// The server signs with one key, whatever node and however often it starts.
pub async fn the_servers_key_outlives_the_store(fixture: Fixture) {
    assert_eq!(fixture.store.server_seed([1; 32]).await, Ok([1; 32]));
    assert_eq!(fixture.store.server_seed([2; 32]).await, Ok([1; 32]));
    let fixture = fixture.reopened().await;
    assert_eq!(fixture.store.server_seed([3; 32]).await, Ok([1; 32]));
    fixture.close().await;
}
