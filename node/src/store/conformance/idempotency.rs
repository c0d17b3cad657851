//! Requests that are done once.

use futures_util::future::join_all;
use muster_actors::store::{KeyedRequest, Store};
use muster_protocol::error_code::ErrorCode;
use muster_protocol::idempotency::{Begun, KEPT_MS, KeptAnswer, LEASE_MS};

use super::at;

fn request(key: u8, fingerprint: u8, attempt: u8) -> KeyedRequest {
    KeyedRequest { key: [key; 32], fingerprint: [fingerprint; 32], attempt: [attempt; 16] }
}

async fn begin(store: &dyn Store, request: KeyedRequest, ms: i64) -> Result<Begun, ErrorCode> {
    store.begin_request(request, at(ms)).await.unwrap().map_err(|refusal| refusal.code)
}

fn answer(status: u16, body: Option<&str>) -> KeptAnswer {
    KeptAnswer { status, body: body.map(|body| body.as_bytes().to_vec()) }
}

pub async fn a_key_is_used_once(store: &dyn Store) {
    assert_eq!(begin(store, request(1, 1, 1), 0).await, Ok(Begun::Run));
    assert_eq!(begin(store, request(1, 1, 2), 1).await, Err(ErrorCode::IdempotencyPending));
    assert_eq!(begin(store, request(1, 2, 2), 1).await, Err(ErrorCode::IdempotencyMismatch));
    assert_eq!(begin(store, request(2, 2, 2), 1).await, Ok(Begun::Run), "another key");
    store.end_request(request(1, 1, 1), answer(201, Some("\0é"))).await.unwrap();
    assert_eq!(begin(store, request(1, 1, 3), 2).await, Ok(Begun::Replay(answer(201, Some("\0é")))));
    store.end_request(request(2, 2, 2), answer(409, None)).await.unwrap();
    assert_eq!(begin(store, request(2, 2, 3), 2).await, Ok(Begun::Replay(answer(409, None))));
    assert_eq!(begin(store, request(1, 1, 4), KEPT_MS).await, Ok(Begun::Run), "a day later");
    assert_eq!(begin(store, request(1, 1, 5), KEPT_MS).await, Err(ErrorCode::IdempotencyPending));
}

pub async fn a_key_is_free_again_after_a_passing_failure_or_its_lease(store: &dyn Store) {
    assert_eq!(begin(store, request(1, 1, 1), 0).await, Ok(Begun::Run));
    store.end_request(request(1, 1, 1), answer(503, Some("{}"))).await.unwrap();
    assert_eq!(begin(store, request(1, 2, 2), 1).await, Err(ErrorCode::IdempotencyMismatch));
    assert_eq!(begin(store, request(1, 1, 2), 1).await, Ok(Begun::Run));
    assert_eq!(begin(store, request(1, 1, 3), 1 + LEASE_MS).await, Ok(Begun::Run), "its node is gone");
    // It was not: what it says now counts no more.
    store.end_request(request(1, 1, 2), answer(200, Some("late"))).await.unwrap();
    assert_eq!(begin(store, request(1, 1, 4), 2 + LEASE_MS).await, Err(ErrorCode::IdempotencyPending));
    store.end_request(request(1, 1, 3), answer(200, Some("x"))).await.unwrap();
    assert_eq!(begin(store, request(1, 1, 4), 2 + LEASE_MS).await, Ok(Begun::Replay(answer(200, Some("x")))));
}

pub async fn of_many_at_once_one_runs(store: &dyn Store) {
    for key in 1..=5 {
        let all = join_all((1..=20).map(|attempt| begin(store, request(key, 1, attempt), 0))).await;
        assert_eq!(all.iter().filter(|begun| **begun == Ok(Begun::Run)).count(), 1);
        let pending = Err(ErrorCode::IdempotencyPending);
        assert_eq!(all.iter().filter(|begun| **begun == pending).count(), 19);
    }
}

pub async fn old_keys_are_forgotten(store: &dyn Store) {
    for key in 1..=5 {
        begin(store, request(key, 1, 1), i64::from(key)).await.unwrap();
    }
    assert_eq!(store.purge_requests(at(4), 2).await, Ok(2));
    assert_eq!(store.purge_requests(at(4), 2).await, Ok(1));
    assert_eq!(store.purge_requests(at(4), 2).await, Ok(0));
    assert_eq!(begin(store, request(4, 1, 2), 6).await, Err(ErrorCode::IdempotencyPending));
    assert_eq!(begin(store, request(1, 2, 2), 6).await, Ok(Begun::Run));
}
