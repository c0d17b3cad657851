//! Users, credentials, agents, blocks.

use std::collections::{HashMap, HashSet};

use muster_actors::store::{PageRequest, Store, StoreError, StoreResult};
use muster_protocol::account::{Credential, CredentialKind, Owner, SecretHash};
use muster_protocol::agent::{Agent, AgentStatus};
use muster_protocol::discovery::{Query, SortBy};
use muster_protocol::ids::CredentialId;
use muster_protocol::signing::PublicKey;

use super::{add_agent, agent, at, credential, entropy, hash, user};

async fn credential_by_hash(store: &dyn Store, hash: SecretHash) -> StoreResult<Credential> {
    Ok(store.caller_by_hash(hash).await?.0)
}

pub async fn operator_hash_is_kept(store: &dyn Store) {
    assert_eq!(store.operator_hash(hash(1)).await, Ok(hash(1)));
    assert_eq!(store.operator_hash(hash(2)).await, Ok(hash(1)), "the first one stays");
    assert_eq!(store.check(at(0)).await, Ok(()));
}

pub async fn users_are_paged(store: &dyn Store) {
    for n in 1..=5 {
        store.create_user(user(n)).await.unwrap();
    }
    assert_eq!(store.user(user(3).id).await, Ok(user(3)));
    assert_eq!(store.user(user(9).id).await, Err(StoreError::NotFound));
    assert_eq!(store.create_user(user(3)).await, Err(StoreError::AlreadyExists));
    let first = store.users(PageRequest { limit: 3, after: None }).await.unwrap();
    assert_eq!((first.items, first.total), (vec![user(5), user(4), user(3)], 5));
    let second = store.users(PageRequest { limit: 3, after: first.next }).await.unwrap();
    assert_eq!((second.items, second.next), (vec![user(2), user(1)], None));
}

pub async fn credentials_are_found_by_hash_and_end(store: &dyn Store) {
    store.create_user(user(1)).await.unwrap();
    let owner = Owner::User(user(1).id);
    let mut token = credential(1, CredentialKind::UserToken, owner);
    token.expires_at = Some(at(1_000));
    store.create_credential(token.clone(), hash(1), 10).await.unwrap();
    assert_eq!(store.caller_by_hash(hash(1)).await, Ok((token.clone(), None)), "a user's names no agent");
    assert_eq!(store.caller_by_hash(hash(2)).await, Err(StoreError::NotFound));
    assert_eq!(store.credentials_of(owner).await, Ok(vec![token.clone()]));
    let stranger = Owner::User(user(2).id);
    assert_eq!(store.revoke_credential(stranger, token.id, at(5)).await, Err(StoreError::NotFound));
    assert_eq!(store.revoke_credential(owner, token.id, at(5)).await, Ok(vec![token.id]));
    assert_eq!(store.revoke_credential(owner, token.id, at(9)).await, Ok(vec![token.id]), "again is no harm");
    assert_eq!(
        credential_by_hash(store, hash(1)).await.unwrap().revoked_at,
        Some(at(5)),
        "the first time stands"
    );
    let nobody = CredentialId::new(at(1), entropy(77));
    assert_eq!(store.revoke_credential(owner, nobody, at(5)).await, Err(StoreError::NotFound));
}

pub async fn what_was_revoked_is_found_by_time(store: &dyn Store) {
    let agent = add_agent(store, 1, None).await;
    let owner = Owner::Agent(agent.id);
    let keys: Vec<_> = (2..=5).map(|n| credential(n, CredentialKind::AgentKey, owner)).collect();
    let session = Credential { parent: Some(keys[3].id), ..credential(6, CredentialKind::Session, owner) };
    for (key, n) in keys.iter().zip(2..) {
        store.create_credential(key.clone(), hash(n), 10).await.unwrap();
    }
    store.create_credential(session.clone(), hash(6), 10).await.unwrap();
    assert_eq!(store.credentials_ended_since((at(0), None), 10).await, Ok(vec![]), "all are live");
    for (key, ms) in [(&keys[0], 300), (&keys[2], 200), (&keys[3], 300)] {
        store.revoke_credential(owner, key.id, at(ms)).await.unwrap();
    }
    let all =
        vec![(at(200), keys[2].id), (at(300), keys[0].id), (at(300), keys[3].id), (at(300), session.id)];
    assert_eq!(store.credentials_ended_since((at(200), None), 10).await, Ok(all.clone()), "from then on");
    assert_eq!(store.credentials_ended_since((at(201), None), 10).await, Ok(all[1..].to_vec()));
    assert_eq!(store.credentials_ended_since((at(301), None), 10).await, Ok(vec![]));
    // In parts, each from where the one before ended.
    let (mut found, mut since) = (Vec::new(), (at(0), None));
    loop {
        let part = store.credentials_ended_since(since, 2).await.unwrap();
        let Some((time, id)) = part.last() else { break };
        since = (*time, Some(*id));
        found.extend(part);
    }
    assert_eq!(found, all);
}

pub async fn live_credentials_are_bounded(store: &dyn Store) {
    store.create_user(user(1)).await.unwrap();
    let owner = Owner::User(user(1).id);
    for n in 1..=2 {
        store.create_credential(credential(n, CredentialKind::UserToken, owner), hash(n), 2).await.unwrap();
    }
    let third = credential(3, CredentialKind::UserToken, owner);
    assert_eq!(store.create_credential(third.clone(), hash(3), 2).await, Err(StoreError::LimitReached));
    let first = credential(1, CredentialKind::UserToken, owner);
    store.revoke_credential(owner, first.id, at(4)).await.unwrap();
    assert_eq!(store.create_credential(third, hash(3), 2).await, Ok(vec![]), "a revoked one makes room");
}

pub async fn sessions_make_room_for_each_other(store: &dyn Store) {
    let agent = add_agent(store, 1, None).await;
    let owner = Owner::Agent(agent.id);
    let session = |n| credential(n, CredentialKind::Session, owner);
    for n in [2, 3] {
        assert_eq!(store.create_credential(session(n), hash(n), 2).await, Ok(vec![]));
    }
    assert_eq!(store.create_credential(session(4), hash(4), 2).await, Ok(vec![session(2).id]), "the oldest");
    assert!(!credential_by_hash(store, hash(2)).await.unwrap().is_live(at(10)));
    let key = credential(5, CredentialKind::AgentKey, owner);
    assert_eq!(store.create_credential(key, hash(5), 2).await, Ok(vec![]), "sessions are no keys");
    assert_eq!(store.purge_credentials(at(4), 10).await, Ok(0), "it was revoked at 4");
    assert_eq!(store.purge_credentials(at(5), 10).await, Ok(1));
    assert_eq!(store.caller_by_hash(hash(2)).await, Err(StoreError::NotFound));
    assert!(credential_by_hash(store, hash(3)).await.is_ok());
}

pub async fn rotation_and_revocation_take_sessions_along(store: &dyn Store) {
    let agent = add_agent(store, 1, None).await;
    let owner = Owner::Agent(agent.id);
    let key = credential(1, CredentialKind::AgentKey, owner);
    let session = Credential { parent: Some(key.id), ..credential(2, CredentialKind::Session, owner) };
    store.create_credential(session.clone(), hash(2), 10).await.unwrap();
    let next = credential(3, CredentialKind::AgentKey, owner);
    let revoked = store.rotate_credential(key.id, next.clone(), hash(3)).await.unwrap();
    assert_eq!(revoked, [key.id, session.id]);
    assert!(!credential_by_hash(store, hash(1)).await.unwrap().is_live(at(10)));
    assert!(!credential_by_hash(store, hash(2)).await.unwrap().is_live(at(10)));
    assert!(credential_by_hash(store, hash(3)).await.unwrap().is_live(at(10)));
    let late = credential(4, CredentialKind::AgentKey, owner);
    assert_eq!(
        store.rotate_credential(key.id, late, hash(4)).await,
        Err(StoreError::NotFound),
        "dead already"
    );
    assert_eq!(credential_by_hash(store, hash(4)).await, Err(StoreError::NotFound), "nothing was added");
    let orphan = Credential { parent: Some(key.id), ..credential(6, CredentialKind::Session, owner) };
    assert_eq!(
        store.create_credential(orphan, hash(6), 10).await,
        Err(StoreError::NotFound),
        "its key is revoked"
    );
    let session = Credential { parent: Some(next.id), ..credential(5, CredentialKind::Session, owner) };
    store.create_credential(session.clone(), hash(5), 10).await.unwrap();
    let other = credential(7, CredentialKind::AgentKey, owner);
    store.create_credential(other.clone(), hash(7), 10).await.unwrap();
    let revoked = store.revoke_credential(owner, other.id, at(6)).await;
    assert_eq!(revoked, Ok(vec![other.id]), "sessions of another key stay");
    assert_eq!(store.revoke_credential(owner, session.id, at(6)).await, Ok(vec![session.id]));
    assert!(
        credential_by_hash(store, hash(3)).await.unwrap().is_live(at(10)),
        "a session takes no key along"
    );
}

pub async fn agents_are_created_once(store: &dyn Store) {
    store.create_user(user(1)).await.unwrap();
    let owner = user(1).id;
    let one = add_agent(store, 1, Some(owner)).await;
    assert_eq!(store.agent(one.id).await, Ok(one.clone()));
    assert_eq!(store.agent_by_did("did:x:1").await, Ok(one.clone()));
    assert_eq!(store.agent_by_did("did:x:2").await, Err(StoreError::NotFound));
    let same_did = Agent { did: one.did.clone(), ..agent(2, None) };
    let key = credential(2, CredentialKind::AgentKey, Owner::Agent(same_did.id));
    let again = store.create_agent(same_did.clone(), key, hash(2), 10).await;
    assert_eq!(again, Err(StoreError::AlreadyExists));
    assert_eq!(store.agent(same_did.id).await, Err(StoreError::NotFound), "nothing of it is there");
    assert_eq!(credential_by_hash(store, hash(2)).await, Err(StoreError::NotFound));
    let third = agent(3, Some(owner));
    let key = credential(3, CredentialKind::AgentKey, Owner::Agent(third.id));
    assert_eq!(store.create_agent(third, key, hash(3), 1).await, Err(StoreError::LimitReached));
    let page = store.agents_of(owner, PageRequest { limit: 10, after: None }).await.unwrap();
    assert_eq!((page.items, page.total), (vec![one], 1));
}

pub async fn agents_change_by_compare_and_set(store: &dyn Store) {
    let read = add_agent(store, 1, None).await;
    let key = PublicKey::parse("iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w=").unwrap();
    let new = Agent {
        name: "New".into(),
        capabilities: vec!["sing".into()],
        public_key: Some(key),
        updated_at: at(7),
        ..read.clone()
    };
    assert_eq!(store.update_agent(&read, new.clone()).await, Ok(()));
    assert_eq!(store.agent(read.id).await, Ok(new.clone()));
    assert_eq!(store.was_key_of(read.id, key).await, Ok(false), "it is the present one");
    let lost = Agent { name: "Lost".into(), updated_at: at(8), ..read.clone() };
    assert_eq!(store.update_agent(&read, lost).await, Err(StoreError::Conflict));
    let query = Query { capability: Some("sing".into()), ..Query::default() };
    assert_eq!(store.find_agents(&query, &HashSet::new(), 10).await, Ok(vec![new]));
    let query = Query { capability: Some("code".into()), ..Query::default() };
    assert_eq!(store.find_agents(&query, &HashSet::new(), 10).await, Ok(vec![]));
    let stopped = store.set_agent_status(read.id, AgentStatus::Banned, at(9)).await.unwrap();
    assert_eq!(stopped.status, AgentStatus::Banned);
    let since = stopped.updated_at;
    assert_eq!(
        store.agents_stopped_since((since, None), 10).await,
        Ok(vec![(since, read.id)]),
        "from then on"
    );
    assert_eq!(store.agents_stopped_since((since, Some(read.id)), 10).await, Ok(vec![]), "nobody beyond");
    assert_eq!(store.agents_stopped_since((since.plus_ms(1), None), 10).await, Ok(vec![]));
    assert_eq!(store.find_agents(&Query::default(), &HashSet::new(), 10).await, Ok(vec![]));
    store.set_last_seen(read.id, at(10)).await.unwrap();
    assert_eq!(store.agent(read.id).await.unwrap().last_seen_at, Some(at(10)));
    let read = store.agent(read.id).await.unwrap();
    let next = "ed4928c628d1c2c6eae90338905995612959273a5c63f93636c14614ac8737d1";
    let next = Agent {
        public_key: PublicKey::parse(next).ok(),
        updated_at: read.updated_at.plus_ms(1),
        ..read.clone()
    };
    store.update_agent(&read, next.clone()).await.unwrap();
    assert_eq!(store.was_key_of(read.id, key).await, Ok(true));
    assert_eq!(store.was_key_of(read.id, next.public_key.unwrap()).await, Ok(false));
    let nobody = agent(9, None);
    assert_eq!(
        store.set_agent_status(nobody.id, AgentStatus::Active, at(9)).await,
        Err(StoreError::NotFound)
    );
    assert_eq!(store.was_key_of(nobody.id, key).await, Ok(false), "it was another's");
}

pub async fn agents_are_claimed_once(store: &dyn Store) {
    for n in 1..=2 {
        store.create_user(user(n)).await.unwrap();
    }
    let free = add_agent(store, 1, None).await;
    let claimed = store.claim_agent(free.id, user(1).id, at(5)).await.unwrap();
    assert_eq!(claimed.owner, Some(user(1).id));
    assert!(store.claim_agent(free.id, user(1).id, at(6)).await.is_ok(), "again by the same user");
    assert_eq!(store.claim_agent(free.id, user(2).id, at(7)).await, Err(StoreError::AlreadyExists));
    assert_eq!(store.agent(free.id).await.unwrap().owner, Some(user(1).id));
}

pub async fn agents_are_found_in_order(store: &dyn Store) {
    let mut agents = Vec::new();
    for n in [3, 1, 2, 4] {
        agents.push(add_agent(store, n, None).await);
    }
    let names = |query: &str, except: Vec<usize>, limit| {
        let query = Query::parse(query).unwrap();
        let except: HashSet<_> = except.into_iter().map(|at| agents[at].id).collect();
        async move {
            let found = store.find_agents(&query, &except, limit).await.unwrap();
            found.into_iter().map(|agent| agent.name).collect::<Vec<_>>()
        }
    };
    assert_eq!(
        names("{}", vec![], 10).await,
        ["Agent 1", "Agent 2", "Agent 3", "Agent 4"],
        "same reputation: by price"
    );
    assert_eq!(names("{}", vec![1], 2).await, ["Agent 2", "Agent 3"]);
    assert_eq!(names(r#"{"capability":"c3"}"#, vec![], 10).await, ["Agent 3"]);
    assert_eq!(names(r#"{"filters":{"max_price":"2.5"}}"#, vec![], 10).await, ["Agent 1", "Agent 2"]);
    assert_eq!(names(r#"{"filters":{"min_price":"3.5"}}"#, vec![], 10).await, ["Agent 3", "Agent 4"]);
    assert_eq!(names(r#"{"filters":{"min_reputation":2.6}}"#, vec![], 10).await, Vec::<String>::new());
    let by_name = Query { sort_by: SortBy::Name, ..Query::default() };
    let first = store.find_agents(&by_name, &HashSet::new(), 1).await.unwrap();
    assert_eq!(first[0].name, "Agent 1");
    let cheapest = Query { sort_by: SortBy::Price, ..Query::default() };
    let except = HashSet::from([first[0].id]);
    assert_eq!(store.find_agents(&cheapest, &except, 1).await.unwrap()[0].name, "Agent 2");
    let capabilities = store.capabilities(2).await.unwrap();
    assert_eq!(capabilities, [("code".to_owned(), 4), ("c1".to_owned(), 1)]);
}

pub async fn names_sort_by_their_bytes(store: &dyn Store) {
    for (n, name) in (1..).zip(["b", "B", "é", "a b", "ab", "Z", "_", "😀"]) {
        let named = Agent { name: name.into(), ..agent(n, None) };
        let key = credential(n, CredentialKind::AgentKey, Owner::Agent(named.id));
        store.create_agent(named, key, hash(n), 10).await.unwrap();
    }
    let by_name = Query { sort_by: SortBy::Name, ..Query::default() };
    let found = store.find_agents(&by_name, &HashSet::new(), 10).await.unwrap();
    let names: Vec<_> = found.iter().map(|agent| agent.name.as_str()).collect();
    assert_eq!(names, ["B", "Z", "_", "a b", "ab", "b", "é", "😀"]);
    let nobody = Query { capability: Some("co\0de".into()), ..Query::default() };
    assert_eq!(store.find_agents(&nobody, &HashSet::new(), 10).await, Ok(vec![]), "nor is that an error");
    assert_eq!(store.agent_by_did("did:x:\0").await, Err(StoreError::NotFound));
}

pub async fn blocks_work_both_ways_and_end(store: &dyn Store) {
    let (one, two) = (add_agent(store, 1, None).await.id, add_agent(store, 2, None).await.id);
    store.block(one, two, Some(at(100)), 10).await.unwrap();
    for (agent, other) in [(one, two), (two, one)] {
        assert_eq!(store.blocked_pairs(agent, at(99)).await, Ok(HashMap::from([(other, Some(at(100)))])));
        assert_eq!(store.blocked_pairs(agent, at(100)).await, Ok(HashMap::new()), "it has ended");
    }
    store.block(two, one, Some(at(200)), 10).await.unwrap();
    let longer = Ok(HashMap::from([(two, Some(at(200)))]));
    assert_eq!(store.blocked_pairs(one, at(0)).await, longer, "of two blocks the longer one counts");
    store.unblock(two, one).await.unwrap();
    assert_eq!(store.blocks_by(one, at(0)).await, Ok(vec![(two, Some(at(100)))]));
    assert_eq!(store.blocks_by(two, at(0)).await, Ok(vec![]));
    store.block(one, two, None, 1).await.unwrap();
    assert_eq!(store.blocks_by(one, at(1_000)).await, Ok(vec![(two, None)]));
    let three = add_agent(store, 3, None).await.id;
    assert_eq!(store.block(one, three, None, 1).await, Err(StoreError::LimitReached));
    assert_eq!(store.block(one, agent(9, None).id, None, 10).await, Err(StoreError::NotFound));
    assert_eq!(store.unblock(two, one).await, Err(StoreError::NotFound), "it is not theirs");
    assert_eq!(store.unblock(one, two).await, Ok(()));
    assert_eq!(store.blocked_pairs(two, at(0)).await, Ok(HashMap::new()));
}
