//! Tasks, hirings, notes.

use muster_actors::store::{
    Finish, HiringFilter, PageRequest, Reassign, Store, StoreError, StoreResult, TaskFilter,
};
use muster_protocol::agent::Agent;
use muster_protocol::hiring::HiringStatus;
use muster_protocol::ids::{HiringId, MessageId};
use muster_protocol::json::Json;
use muster_protocol::task::{Ending, Note, Task, TaskStatus};
use muster_protocol::task_stream::Chunk;

use super::{add_agent, append, append_of, at, entropy, hiring, note, task, user};

/// Ends a task as the owner of its stream does.
async fn finish(store: &dyn Store, task: &Task, ending: Ending) -> StoreResult<Task> {
    let epoch = store.claim_stream(task.id, 0, 0).await?.epoch;
    let finish = Finish { task: task.id, epoch, ending, by: Some(task.provider), last_seq: 0, now: at(500) };
    store.finish_task(finish).await
}

/// Gives a task to another as the owner of its stream does.
async fn reassign(store: &dyn Store, task: &Task, provider: &Agent, ms: i64) -> StoreResult<Task> {
    let epoch = store.claim_stream(task.id, 0, 0).await?.epoch;
    let reassign = Reassign { task: task.id, epoch, provider: provider.id, by: task.client, now: at(ms) };
    store.reassign_task(reassign).await
}

const PAGE: PageRequest = PageRequest { limit: 10, after: None };

pub async fn tasks_begin_and_end_once(store: &dyn Store) {
    let (client, provider) = (add_agent(store, 1, None).await, add_agent(store, 2, None).await);
    let pending = task(1, &client, &provider);
    store.create_task(pending.clone(), None).await.unwrap();
    assert_eq!(store.task(pending.id).await, Ok(pending.clone()));
    assert_eq!(store.task(task(9, &client, &provider).id).await, Err(StoreError::NotFound));
    let result = Json::of(&serde_json::json!({ "answer": 42 }));
    let done = finish(store, &pending, Ending::completed(result.clone())).await.unwrap();
    assert_eq!(
        (done.status, &done.output, done.ended_at),
        (TaskStatus::Completed, &Some(result), Some(at(500)))
    );
    assert_eq!(store.task(pending.id).await, Ok(done));
    let late = finish(store, &pending, Ending::cancelled(None)).await;
    assert_eq!(late, Err(StoreError::WrongStatus(TaskStatus::Completed)));
    let timeline = store.timeline(pending.id).await.unwrap();
    let events: Vec<_> = timeline.iter().map(|entry| (entry.event.as_str(), entry.agent_id)).collect();
    assert_eq!(events, [("task_created", Some(client.id)), ("task_completed", Some(provider.id))]);
}

pub async fn tasks_are_listed_by_party(store: &dyn Store) {
    store.create_user(user(1)).await.unwrap();
    store.create_user(user(2)).await.unwrap();
    let owned = add_agent(store, 1, Some(user(1).id)).await;
    let provider = add_agent(store, 2, Some(user(2).id)).await;
    let stranger = add_agent(store, 3, None).await;
    for n in 1..=3 {
        store.create_task(task(n, &owned, &provider), None).await.unwrap();
    }
    store.create_task(task(4, &stranger, &provider), None).await.unwrap();
    let list = |filter: TaskFilter| async move {
        let page = store.tasks(filter, PAGE).await.unwrap();
        assert_eq!(page.items.len() as u64, page.total);
        page.items.iter().map(|task| task.created_at.ms_since(at(0))).collect::<Vec<_>>()
    };
    let all = TaskFilter::default();
    assert_eq!(list(TaskFilter { agent: Some(provider.id), ..all }).await, [4, 3, 2, 1]);
    assert_eq!(list(TaskFilter { agent: Some(owned.id), ..all }).await, [3, 2, 1]);
    assert_eq!(list(TaskFilter { user: Some(user(1).id), ..all }).await, [3, 2, 1]);
    assert_eq!(
        list(TaskFilter { user: Some(user(2).id), ..all }).await,
        [4, 3, 2, 1],
        "as the provider's owner"
    );
    assert_eq!(list(TaskFilter { client: Some(stranger.id), ..all }).await, [4]);
    assert_eq!(list(TaskFilter { provider: Some(owned.id), ..all }).await, Vec::<i64>::new());
    let cancelled = Ending::cancelled(Some("why"));
    finish(store, &task(2, &owned, &provider), cancelled).await.unwrap();
    let status = Some(TaskStatus::Cancelled);
    assert_eq!(list(TaskFilter { agent: Some(owned.id), status, ..all }).await, [2]);
    let filter = TaskFilter { agent: Some(provider.id), ..all };
    let first = store.tasks(filter, PageRequest { limit: 3, after: None }).await.unwrap();
    assert_eq!((first.items.len(), first.total), (3, 4));
    let second = store.tasks(filter, PageRequest { limit: 3, after: first.next }).await.unwrap();
    assert_eq!((second.items.len(), second.next), (1, None));
}

pub async fn tasks_are_reassigned_while_pending(store: &dyn Store) {
    let client = add_agent(store, 1, None).await;
    let (first, second) = (add_agent(store, 2, None).await, add_agent(store, 3, None).await);
    let pending = task(1, &client, &first);
    store.create_task(pending.clone(), None).await.unwrap();
    let stale = Reassign { task: pending.id, epoch: 0, provider: second.id, by: client.id, now: at(4) };
    assert_eq!(store.reassign_task(stale).await, Err(StoreError::Fenced), "its stream was never claimed");
    let moved = reassign(store, &pending, &second, 5).await.unwrap();
    assert_eq!((moved.provider, moved.status), (second.id, TaskStatus::Pending));
    finish(store, &moved, Ending::completed(Json::null())).await.unwrap();
    let late = reassign(store, &pending, &first, 6).await;
    assert_eq!(late, Err(StoreError::WrongStatus(TaskStatus::Completed)));
}

pub async fn hirings_are_where_their_task_is(store: &dyn Store) {
    store.create_user(user(1)).await.unwrap();
    let (client, agent) = (add_agent(store, 1, Some(user(1).id)).await, add_agent(store, 2, None).await);
    let id = HiringId::new(at(1), entropy(1));
    let order = Task { hiring: Some(id), ..task(1, &client, &agent) };
    let hiring = hiring(1, &order, &agent.did);
    store.create_task(order.clone(), Some(hiring.clone())).await.unwrap();
    assert_eq!(store.hiring(id).await, Ok(hiring.clone()));
    let again = Task { hiring: Some(id), ..task(2, &client, &agent) };
    assert_eq!(store.retry_hiring(id, again.clone()).await, Err(StoreError::Conflict), "it has not failed");
    assert_eq!(store.task(again.id).await, Err(StoreError::NotFound));
    let error = Json::of(&serde_json::json!({ "type": "timeout" }));
    finish(store, &order, Ending::failed(error)).await.unwrap();
    let failed = store.hiring(id).await.unwrap();
    assert_eq!((failed.status, failed.updated_at), (HiringStatus::Failed, at(500)));
    let retried = store.retry_hiring(id, again.clone()).await.unwrap();
    assert_eq!((retried.status, retried.task), (HiringStatus::Queued, again.id));
    let list = |filter: HiringFilter| async move { store.hirings(filter, PAGE).await.unwrap().total };
    let all = HiringFilter::default();
    assert_eq!(list(HiringFilter { user: client.owner, ..all }).await, 1);
    assert_eq!(list(HiringFilter { agent: Some(agent.id), ..all }).await, 1);
    assert_eq!(list(HiringFilter { status: Some(HiringStatus::Queued), ..all }).await, 1);
    assert_eq!(list(HiringFilter { status: Some(HiringStatus::Failed), ..all }).await, 0);
    assert_eq!(list(HiringFilter { user: Some(user(2).id), ..all }).await, 0);
    // Its first chunk begins it, and the hiring is found as what it is then.
    let epoch = store.claim_stream(again.id, 0, 0).await.unwrap().epoch;
    let chunk = Chunk { seq: 1, body: Json::of(&"x"), idempotency_key: None };
    append(store, append_of(again.id, epoch, vec![chunk])).await.unwrap();
    for (status, found) in [(HiringStatus::Queued, 0), (HiringStatus::InProgress, 1)] {
        for by in [HiringFilter { user: client.owner, ..all }, HiringFilter { agent: Some(agent.id), ..all }]
        {
            assert_eq!(list(HiringFilter { status: Some(status), ..by }).await, found, "{status:?}");
        }
    }
    let last = Finish {
        task: again.id,
        epoch,
        ending: Ending::completed(Json::null()),
        by: Some(agent.id),
        last_seq: 1,
        now: at(600),
    };
    store.finish_task(last).await.unwrap();
    assert_eq!(store.hiring(id).await.unwrap().status, HiringStatus::Completed);
    assert_eq!(list(HiringFilter { status: Some(HiringStatus::Completed), ..all }).await, 1);
}

pub async fn hirings_follow_who_does_and_who_owns(store: &dyn Store) {
    for n in 1..=2 {
        store.create_user(user(n)).await.unwrap();
    }
    let client = add_agent(store, 1, None).await;
    let (first, second) = (add_agent(store, 2, None).await, add_agent(store, 3, Some(user(2).id)).await);
    let id = HiringId::new(at(1), entropy(1));
    let order = Task { hiring: Some(id), ..task(1, &client, &first) };
    store.create_task(order.clone(), Some(hiring(1, &order, &first.did))).await.unwrap();
    reassign(store, &order, &second, 2).await.unwrap();
    let moved = store.hiring(id).await.unwrap();
    assert_eq!((moved.agent, &moved.agent_did), (second.id, &second.did));
    let count = |user, skip| async move {
        let filter = HiringFilter { user: Some(user), skip, ..HiringFilter::default() };
        store.hirings(filter, PAGE).await.unwrap().items.len()
    };
    assert_eq!(count(user(2).id, 0).await, 1, "as the owner of who does it");
    assert_eq!(count(user(2).id, 1).await, 0, "without the newest one");
    assert_eq!(count(user(1).id, 0).await, 0);
    store.claim_agent(client.id, user(1).id, at(3)).await.unwrap();
    assert_eq!(count(user(1).id, 0).await, 1, "as the owner of the client");
    assert_eq!(store.task(order.id).await.unwrap().client_owner, Some(user(1).id));
    let note = |n| note(n, &client);
    store.add_note(order.id, note(4), 10).await.unwrap();
    finish(store, &order, Ending::cancelled(None)).await.unwrap();
    let again = Task { hiring: Some(id), ..task(5, &client, &second) };
    store.retry_hiring(id, again.clone()).await.unwrap();
    store.add_note(again.id, note(6), 10).await.unwrap();
    assert_eq!(store.notes_of_hiring(id, 10).await, Ok(vec![note(4), note(6)]), "of all its tasks");
    assert_eq!(store.notes_of_hiring(id, 1).await, Ok(vec![note(6)]));
}

pub async fn notes_are_bounded(store: &dyn Store) {
    let (client, provider) = (add_agent(store, 1, None).await, add_agent(store, 2, None).await);
    let order = task(1, &client, &provider);
    store.create_task(order.clone(), None).await.unwrap();
    let note = |n| note(n, &client);
    store.add_note(order.id, note(1), 2).await.unwrap();
    store.add_note(order.id, note(2), 2).await.unwrap();
    assert_eq!(store.add_note(order.id, note(3), 2).await, Err(StoreError::LimitReached));
    assert_eq!(store.notes(order.id).await, Ok(vec![note(1), note(2)]));
    let nowhere = task(9, &client, &provider).id;
    assert_eq!(store.add_note(nowhere, note(4), 2).await, Err(StoreError::NotFound));
}

pub async fn documents_come_back_byte_for_byte(store: &dyn Store) {
    let (client, provider) = (add_agent(store, 1, None).await, add_agent(store, 2, None).await);
    let raw = r#"{"b": 1.10,  "a":1e2,"a":"\u0000\u00e9é","n":12345678901234567890123456789}"#;
    let document = || Json::from_trusted_bytes(raw.into());
    let order = Task { input: document(), ..task(1, &client, &provider) };
    store.create_task(order.clone(), None).await.unwrap();
    assert_eq!(store.task(order.id).await.unwrap().input.as_str(), raw);
    let done = finish(store, &order, Ending::completed(document())).await.unwrap();
    assert_eq!(done.output.as_ref().map(Json::as_str), Some(raw));
    let note = Note {
        id: MessageId::new(at(1), entropy(1)),
        from_agent_id: None,
        from_user_id: Some(user(1).id),
        content: "two\nlines, \0 and \u{2028}".into(),
        inserted_at: at(1),
    };
    store.add_note(order.id, note.clone(), 10).await.unwrap();
    assert_eq!(store.notes(order.id).await, Ok(vec![note]));
}

pub async fn outcomes_count_for_the_provider(store: &dyn Store) {
    let (client, provider) = (add_agent(store, 1, None).await, add_agent(store, 2, None).await);
    let endings = [
        Ending::completed(Json::null()),
        Ending::completed(Json::null()),
        Ending::failed(Json::of(&serde_json::json!({ "type": "failed" }))),
        Ending::cancelled(None),
    ];
    for (n, ending) in (1..).zip(endings) {
        let order = task(n, &client, &provider);
        store.create_task(order.clone(), None).await.unwrap();
        finish(store, &order, ending).await.unwrap();
    }
    let after = store.agent(provider.id).await.unwrap();
    assert_eq!((after.tasks_completed, after.tasks_failed), (2, 1));
    assert_eq!(store.agent(client.id).await.unwrap().tasks_completed, 0);
}
