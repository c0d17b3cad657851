//! Teams: who belongs to them, what they keep, and that two changes at once do not both happen.

use muster_actors::store::{PageRequest, Store, StoreError};
use muster_protocol::ids::{EntryId, TeamId};
use muster_protocol::json::Json;
use muster_protocol::limits::Limits;
use muster_protocol::team::{Action, Command, Entry, EntryKind, Team, VoteRequest};

use super::{Fixture, add_agent, agent, at, entropy};

const PAGE: PageRequest = PageRequest { limit: 2, after: None };

fn team(n: u8, owner: u8, others: &[u8]) -> Team {
    let others: Vec<_> = others.iter().map(|other| agent(*other, None).id).collect();
    let id = TeamId::new(at(i64::from(n)), entropy(n));
    Team::new((id, format!("Team {n}\0")), agent(owner, None).id, &others, at(0), &Limits::default()).unwrap()
}

fn entry(n: u8, kind: EntryKind) -> Entry {
    let body = Json::of(&serde_json::json!({ "n": n, "text": "a\0b" }));
    let id = EntryId::new(at(i64::from(n)), entropy(n));
    Entry { id, kind, author: agent(1, None).id, body, inserted_at: at(i64::from(n)) }
}

pub async fn teams_are_kept_with_what_they_keep(fixture: Fixture) {
    let store = &*fixture.store;
    for n in 1..=3 {
        add_agent(store, n, None).await;
    }
    let mut crew = team(1, 1, &[2]);
    assert_eq!(store.team(crew.id).await, Err(StoreError::NotFound));
    store.create_team(crew.clone(), 2).await.unwrap();
    store.create_team(team(2, 1, &[]), 2).await.unwrap();
    assert_eq!(store.create_team(team(3, 1, &[]), 2).await, Err(StoreError::LimitReached));
    store.create_team(team(3, 2, &[1]), 2).await.unwrap();
    assert_eq!(store.team(crew.id).await, Ok(crew.clone()));
    let first = store.teams_of(agent(1, None).id, PAGE).await.unwrap();
    assert_eq!((first.total, first.items.len()), (3, 2));
    let rest = store.teams_of(agent(1, None).id, PageRequest { after: first.next, ..PAGE }).await.unwrap();
    assert_eq!((rest.items, rest.next), (vec![crew.clone()], None));

    // One is exchanged for another.
    crew.members = vec![agent(1, None).id, agent(3, None).id];
    crew.version += 1;
    let kinds = [EntryKind::Message, EntryKind::Knowledge, EntryKind::Message, EntryKind::Vote];
    let entries: Vec<_> = (1..).zip(kinds).map(|(n, kind)| entry(n, kind)).collect();
    store.save_team(crew.clone(), entries.clone(), (3, 1_000_000)).await.unwrap();
    assert_eq!(
        store.save_team(crew.clone(), vec![entry(9, EntryKind::Message)], (3, 1_000_000)).await,
        Err(StoreError::Conflict)
    );
    assert_eq!(store.team(crew.id).await, Ok(crew.clone()));
    assert_eq!(store.teams_of(agent(2, None).id, PAGE).await.unwrap().total, 1);
    assert_eq!(store.teams_of(agent(3, None).id, PAGE).await.unwrap().items, vec![crew.clone()]);

    let fixture = fixture.reopened().await;
    let store = &*fixture.store;
    // The oldest of the four is forgotten, as three may stay; newest first.
    let all = store.team_entries(crew.id, None, PageRequest { limit: 10, after: None }).await.unwrap();
    assert_eq!(
        (all.total, all.items.iter().collect()),
        (3, entries.iter().skip(1).rev().collect::<Vec<_>>())
    );
    let messages = store.team_entries(crew.id, Some(EntryKind::Message), PAGE).await.unwrap();
    assert_eq!(messages.items, [entries[2].clone()]);

    // Bytes bound what stays too, over what was kept before: the oldest go, and what has just come stays however long it is.
    let bytes = entries[0].body.as_bytes().len();
    let kept = async |crew: &mut Team, new: Vec<Entry>, bytes_max| {
        crew.version += 1;
        store.save_team(crew.clone(), new, (3, bytes_max)).await.unwrap();
        let all = store.team_entries(crew.id, None, PageRequest { limit: 10, after: None }).await.unwrap();
        all.items.iter().map(|entry| entry.inserted_at.ms_since(at(0))).collect::<Vec<_>>()
    };
    assert_eq!(kept(&mut crew, vec![entry(5, EntryKind::Vote)], 2 * bytes + 1).await, [5, 4]);
    assert_eq!(kept(&mut crew, vec![entry(6, EntryKind::Vote)], 3 * bytes).await, [6, 5, 4]);
    assert_eq!(kept(&mut crew, vec![], 1).await, [6, 5, 4], "nothing has come");
    assert_eq!(kept(&mut crew, vec![entry(7, EntryKind::Vote)], 1).await, [7]);
    assert_eq!(kept(&mut crew, vec![entry(8, EntryKind::Vote)], 2 * bytes).await, [8, 7]);
    fixture.close().await;
}

pub async fn votes_fall_due(store: &dyn Store) {
    for n in 1..=2 {
        add_agent(store, n, None).await;
    }
    let limits = Limits::default();
    let mut due = Vec::new();
    for (n, period_s) in [(1, 30), (2, 10), (3, 90)] {
        let crew = team(n, 1, &[]);
        store.create_team(crew.clone(), 10).await.unwrap();
        let options = vec!["a".into(), "b".into()];
        let request = VoteRequest { question: "Which?".into(), options, period_s: Some(period_s) };
        let vote = muster_protocol::ids::VoteId::new(at(0), entropy(n));
        let entry = EntryId::new(at(0), entropy(n));
        let command = Command::Act { by: crew.owner, entry, action: Action::OpenVote(vote, request) };
        let (change, _) = crew.decide(&command, at(0), &limits);
        store.save_team(change.unwrap().team, vec![], (10, 1_000_000)).await.unwrap();
        due.push(crew.id);
    }
    assert_eq!(store.teams_due(at(9_999), 10).await, Ok(vec![]));
    assert_eq!(store.teams_due(at(30_000), 10).await, Ok(vec![due[1], due[0]]));
    assert_eq!(store.teams_due(at(30_000), 1).await, Ok(vec![due[1]]));
    let (change, _) = store.team(due[1]).await.unwrap().decide(&Command::Due, at(30_000), &limits);
    let change = change.unwrap();
    store.save_team(change.team, change.entries, (10, 1_000_000)).await.unwrap();
    assert_eq!(store.teams_due(at(30_000), 10).await, Ok(vec![due[0]]));
}
