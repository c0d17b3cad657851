//! `X-Idempotency-Key`: a POST or PUT that is sent again under its key is done once, for 24 hours, and answered as it was
//! (agrenting.md R125).
//!
//! A key is its owner's (the agent or user of the credential, so it outlives the credential; or the operator), for one
//! method and path. What is asked under it is the body, the query and the agent that a user acts as. The key is noted
//! before the request is done and its answer afterwards, which are transactions of their own: a node that dies in between
//! leaves a key that is free after a minute, and what the request had stored by then may be stored again. What must not
//! happen twice even then has a key of its own in the same transaction (chunks, messages that are exactly once, nonces,
//! seqs; tasks, hirings and payment channels, by the request's own key: [`Key`]).

use axum::body::Body;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use muster_actors::store::KeyedRequest;
use muster_protocol::account::{Owner, Scope};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::idempotency::{Begun, Hash, KeptAnswer, hash};
use muster_protocol::ids::CredentialId;
use serde::Deserialize;

use super::extract::Key;
use crate::app::App;
use crate::http::answer::Answer;
use crate::http::front::presented_secret;

/// Names a request.
const KEY_HEADER: &str = "x-idempotency-key";
/// When whoever has no request left is to come back, in milliseconds.
const LIMITED_RETRY_MS: u64 = 1_000;
/// Says that an answer was given before.
const REPLAYED_HEADER: &str = "idempotency-replayed";
/// The end of paths whose answers hold secrets: those are shown once, and never stored.
const SECRET_PATHS: &[&str] = &[
    "/agents/register",
    "/agents",
    "/credentials",
    "/tokens",
    "/auth/authenticate",
    "/auth/rotate-key",
    "/webhooks",
];

/// Does a request, once if it has a key. `run` gives whole answers.
pub async fn once<F: Future<Output = Response<Body>>>(
    app: &App,
    mut request: Request<Bytes>,
    request_id: &str,
    run: impl FnOnce(Request<Bytes>) -> F,
) -> Response<Body> {
    let refused = |refusal| Answer::refused(refusal).render(request_id, app.core.environment.now());
    let (keyed, owner) = match keyed(app, &request).await {
        Ok(None) => return run(request).await,
        Ok(Some(keyed)) => keyed,
        Err(refusal) => return refused(refusal),
    };
    let keeps_body = !answers_a_secret(request.uri().path());
    let begun = app.core.store.begin_request(keyed, app.core.environment.now()).await;
    if let (false, Some(credential)) = (matches!(begun, Ok(Ok(Begun::Run))), owner.credential) {
        // It counts as what is done does; that there was one left was seen before.
        let _left = app.core.usage.requests.take(credential, app.core.environment.monotonic_ms());
    }
    match begun {
        Ok(Ok(Begun::Run)) => {}
        Ok(Ok(Begun::Replay(answer))) => return replay(answer).unwrap_or_else(refused),
        Ok(Err(refusal)) => return refused(refusal),
        Err(error) => {
            tracing::error!(%error, "store");
            return refused(ErrorCode::StoreUnavailable.into());
        }
    }
    request.extensions_mut().insert(Key(Some(keyed.key)));
    let (head, body) = run(request).await.into_parts();
    // It is in memory; reading it cannot fail.
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let is_kept = keeps_body && body.len() <= app.config.limits.idempotency_answer_bytes_max;
    let kept = KeptAnswer { status: head.status.as_u16(), body: is_kept.then(|| body.to_vec()) };
    if let Err(error) = app.core.store.end_request(keyed, kept).await {
        tracing::error!(%error, "an answer cannot be kept; its key is free again after a minute");
    }
    Response::from_parts(head, Body::from(body))
}

fn answers_a_secret(path: &str) -> bool {
    let path = path.strip_suffix('/').unwrap_or(path);
    SECRET_PATHS.iter().any(|end| path.ends_with(end))
}

/// Gives an answer again.
fn replay(answer: KeptAnswer) -> Result<Response<Body>, Refusal> {
    let KeptAnswer { status, body } = answer;
    let body = body.ok_or_else(|| Refusal::new(ErrorCode::AnswerNotKept).with("answer_status", &status))?;
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    headers.insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
    Ok(response)
}

/// The request as the store knows it; none when it is done as if it had no key.
async fn keyed(app: &App, request: &Request<Bytes>) -> Result<Option<(KeyedRequest, KeyOwner)>, Refusal> {
    let Some(key) = request.headers().get(KEY_HEADER) else { return Ok(None) };
    if ![Method::POST, Method::PUT].contains(request.method()) || has_its_own_keys(request) {
        return Ok(None);
    }
    let Some(owner) = owner(app, request).await? else { return Ok(None) };
    let bytes_max = app.config.limits.idempotency_key_bytes_max;
    let fits = key.to_str().is_ok_and(|key| !key.trim().is_empty() && key.len() <= bytes_max);
    if !fits {
        let message = format!("1 to {bytes_max} bytes of printable ASCII");
        return Err(Refusal::field(ErrorCode::InvalidPayload, KEY_HEADER, message));
    }
    let (uri, method) = (request.uri(), request.method().as_str());
    let acting = request.headers().get("x-agent-id").map(HeaderValue::as_bytes);
    let fingerprint =
        hash(&[request.body(), uri.query().unwrap_or_default().as_bytes(), acting.unwrap_or_default()]);
    let key = hash(&[&owner.id, method.as_bytes(), uri.path().as_bytes(), key.as_bytes()]);
    Ok(Some((KeyedRequest { key, fingerprint, attempt: app.core.environment.random() }, owner)))
}

/// Whether the endpoint itself sees to it that nothing is done twice: chunks, by seq, and messages that are exactly once,
/// for seven days (R52, R121).
fn has_its_own_keys(request: &Request<Bytes>) -> bool {
    #[derive(Deserialize)]
    struct Message {
        delivery_guarantee: Option<String>,
    }
    let path = request.uri().path();
    let path = path.strip_suffix('/').unwrap_or(path);
    let is_exactly_once = || {
        serde_json::from_slice::<Message>(request.body())
            .is_ok_and(|message| message.delivery_guarantee.as_deref() == Some("exactly_once"))
    };
    let is_rest = path.starts_with("/api/");
    !is_rest
        || path.starts_with("/api/v1/tasks/") && path.ends_with("/chunk")
        || path == "/api/v1/messages" && is_exactly_once()
}

/// Whose a key is.
struct KeyOwner {
    id: Hash,
    /// By what it asks; none for the operator, whose requests are not limited.
    credential: Option<CredentialId>,
}

/// Whose key it is. None for whoever is not let in: the endpoint says so itself, and nothing is stored for a stranger.
async fn owner(app: &App, request: &Request<Bytes>) -> Result<Option<KeyOwner>, Refusal> {
    let secret = presented_secret(request.headers());
    if app.auth.is_operator(secret.as_ref()) {
        return Ok(Some(KeyOwner { id: hash(&[b"operator"]), credential: None }));
    }
    let Some(credential) = app.auth.known(secret.as_ref()).await? else { return Ok(None) };
    if !credential.scopes.allows(Scope::Write) {
        return Ok(None);
    }
    // What is replayed is a request too, and whoever has none left gets none.
    let now_ms = app.core.environment.monotonic_ms();
    // Without its key it might pass a moment later, and be done twice.
    if app.core.usage.requests.remaining(&credential.id, now_ms) == 0 {
        return Err(Refusal::rate_limited(LIMITED_RETRY_MS));
    }
    let id = match credential.owner {
        Owner::Agent(agent) => hash(&[b"agent", agent.as_bytes()]),
        Owner::User(user) => hash(&[b"user", user.as_bytes()]),
    };
    Ok(Some(KeyOwner { id, credential: Some(credential.id) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str, body: &'static str) -> Request<Bytes> {
        Request::post(path).body(Bytes::from_static(body.as_bytes())).unwrap()
    }

    /// R125
    #[test]
    fn endpoints_with_keys_of_their_own_keep_them() {
        for (path, body, own) in [
            ("/api/v1/tasks/1/chunk", "{}", true),
            ("/api/v1/tasks", "{}", false),
            ("/api/v1/messages", r#"{"delivery_guarantee":"exactly_once"}"#, true),
            ("/api/v1/messages", r#"{"delivery_guarantee":"at_least_once"}"#, false),
            ("/api/v1/messages", "no JSON", false),
            ("/mcp", "{}", true),
        ] {
            assert_eq!(has_its_own_keys(&request(path, body)), own, "{path} {body}");
        }
    }

    /// R10 R125
    #[test]
    fn answers_with_secrets_are_not_kept() {
        for path in [
            "/api/v1/agents",
            "/api/v1/agents/register",
            "/api/v1/auth/rotate-key",
            "/api/v1/agents/1/credentials/",
        ] {
            assert!(answers_a_secret(path), "{path}");
        }
        assert!(!answers_a_secret("/api/v1/tasks"));
        let kept = |body: Option<&str>| {
            replay(KeptAnswer { status: 201, body: body.map(|body| body.as_bytes().to_vec()) })
        };
        assert_eq!(kept(None).unwrap_err().code, ErrorCode::AnswerNotKept);
        let again = kept(Some("{}")).unwrap();
        assert_eq!(
            (again.status().as_u16(), again.headers()[REPLAYED_HEADER].as_bytes()),
            (201, "true".as_bytes())
        );
    }
}
