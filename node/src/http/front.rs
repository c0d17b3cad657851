//! Sends each request where it belongs: a WebSocket or long-poll mount, MCP, or the REST routes; and gives every answer what all of
//! them have: an id, the envelope, CORS, metrics.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request as AxumRequest};
use axum::middleware::Next;
use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ALLOW,
    AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use muster_protocol::account::Secret;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::phoenix::handshake::OriginPolicy;
use muster_protocol::topic::Mount;
use tower::ServiceExt;

use super::addresses::client_address;
use super::answer::Answer;
use super::listener::Peer;
use super::patience::Cut;
use super::{longpoll, rest, upgrade};
use crate::app::App;
use crate::mcp::Mcp;
use crate::metric_definitions::RequestLabels;

/// The front end.
pub struct Front {
    /// The node.
    pub app: Arc<App>,
    router: Router,
    mcp: Mcp,
}

/// Where a request comes from, as handlers see it.
#[derive(Clone)]
pub struct Origin {
    /// The client's address.
    pub address: std::net::IpAddr,
    /// What is left of the caller's requests, once that is known: limit and rest.
    pub allowance: Arc<OnceLock<(u32, u32)>>,
    /// Cuts the connection off: for a peer that does not take its answer.
    pub cut: Arc<Cut>,
}

impl Front {
    /// With all routes.
    #[must_use]
    pub fn new(app: Arc<App>) -> Arc<Self> {
        let router = rest::router(app.clone()).layer(axum::middleware::from_fn(keep_route));
        Arc::new(Self { router, mcp: Mcp::new(app.clone()), app })
    }

    async fn handle(&self, request: Request<Bytes>, is_mcp: bool) -> Response<Body> {
        if is_mcp {
            return self.mcp.serve(request).await;
        }
        // A router never fails: its error type is empty.
        let response = self.router.clone().oneshot(request.map(Body::from)).await;
        response.unwrap_or_else(|never| match never {})
    }
}

/// Notes the matched route on the answer, for the metrics.
async fn keep_route(request: AxumRequest, next: Next) -> Response<Body> {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if let Some(route) = route {
        response.extensions_mut().insert(route);
    }
    response
}

/// Answers one request.
pub async fn serve(front: Arc<Front>, request: Request<Incoming>, peer: Peer) -> Response<Body> {
    let app = front.app.clone();
    let started_ms = app.core.environment.monotonic_ms();
    let method = request.method().clone();
    let request_origin = request.headers().get(ORIGIN).cloned();
    let path = request.uri().path();
    let mut waits = false;
    let (mut response, route) = match (Mount::of_websocket_path(path), Mount::of_longpoll_path(path)) {
        (Some(mount), _) => {
            (Box::pin(upgrade::handle(app.clone(), request, mount, peer)).await, "websocket".to_owned())
        }
        (None, Some(mount)) => {
            waits = true;
            (Box::pin(longpoll::handle(app.clone(), request, mount, peer)).await, "longpoll".to_owned())
        }
        (None, None) => Box::pin(answer(&front, request, peer)).await,
    };
    allow_origin(&app.origins, request_origin.as_ref(), response.headers_mut());
    let labels = RequestLabels { method: method_label(&method), route, status: response.status().as_u16() };
    app.metrics.requests.get_or_create(&labels).inc();
    if !waits {
        // A poll takes as long as nothing happens, which says nothing about the node.
        let took_ms = app.core.environment.monotonic_ms().saturating_sub(started_ms);
        app.metrics.request_seconds.observe(Duration::from_millis(took_ms).as_secs_f64());
    }
    response
}

/// Methods a client invents are not labels.
fn method_label(method: &Method) -> String {
    let known = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::OPTIONS,
        Method::HEAD,
        Method::PATCH,
    ];
    if known.contains(method) { method.to_string() } else { "other".to_owned() }
}

async fn answer(front: &Arc<Front>, request: Request<Incoming>, peer: Peer) -> (Response<Body>, String) {
    let app = &front.app;
    let request_id = request_id(app);
    let is_mcp = Mcp::serves(request.uri().path());
    let mut route = if is_mcp { "mcp" } else { "none" }.to_owned();
    let mut response = match prepare(app, request, &peer).await {
        Err(refusal) => Answer::refused(refusal).render(&request_id, app.core.environment.now()),
        Ok(Prepared::Preflight(response)) => response,
        Ok(Prepared::Request(request, allowance)) => {
            let handler = front.clone();
            // In a task of its own: a peer that hangs up does not stop a request half way, with what it changed stored
            // and nobody told.
            let id = request_id.clone();
            let handled = app.handlers.spawn(async move {
                let app = &handler.app;
                let run =
                    async |request| in_envelope(app, handler.handle(request, is_mcp).await, &id, is_mcp);
                Box::pin(rest::idempotency::once(app, request, &id, run)).await
            });
            let mut response = handled.await.unwrap_or_else(|_panicked| {
                Answer::refused(ErrorCode::Internal.into()).render(&request_id, app.core.environment.now())
            });
            if let Some(matched) = response.extensions().get::<MatchedPath>() {
                matched.as_str().clone_into(&mut route);
            }
            if let Some((limit, remaining)) = allowance.get() {
                response.headers_mut().insert("x-ratelimit-limit", HeaderValue::from(*limit));
                response.headers_mut().insert("x-ratelimit-remaining", HeaderValue::from(*remaining));
            }
            response
        }
    };
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert("x-request-id", value);
    }
    (response, route)
}

/// Largest body that is read before its request has a place.
const SMALL_BODY_BYTES: u64 = 64 * 1024;

enum Prepared {
    Preflight(Response<Body>),
    Request(Request<Bytes>, Arc<OnceLock<(u32, u32)>>),
}

/// Reads the body, within its bounds of size and time, before anybody looks at it.
async fn prepare(app: &Arc<App>, request: Request<Incoming>, peer: &Peer) -> Result<Prepared, Refusal> {
    if request.method() == Method::OPTIONS && request.headers().contains_key("access-control-request-method")
    {
        let methods = HeaderValue::from_static("GET, POST, PUT, DELETE, OPTIONS");
        let answer = preflight(request.headers(), StatusCode::NO_CONTENT, methods);
        return Ok(Prepared::Preflight(answer));
    }
    let overloaded = |_| Refusal::new(ErrorCode::Overloaded);
    let limits = &app.config.limits;
    let (mut head, body) = request.into_parts();
    if !names_its_host(&head) {
        return Err(ErrorCode::MalformedRequest.into());
    }
    // A length that is announced is refused before any of it comes.
    if body.size_hint().lower() > limits.http_body_bytes_max as u64 {
        return Err(ErrorCode::PayloadTooLarge.into());
    }
    // A small body is read before the request takes its place, so that slow ones keep nobody out; large ones have
    // places of their own, which bounds the memory they take together.
    let small = body.size_hint().upper().is_some_and(|bytes| bytes <= SMALL_BODY_BYTES);
    let large_body = if small { None } else { Some(app.large_bodies.try_acquire().map_err(overloaded)?) };
    let timeout = Duration::from_millis(limits.handshake_timeout_ms);
    let collected =
        tokio::time::timeout(timeout, Limited::new(body, limits.http_body_bytes_max).collect()).await;
    let body = match collected {
        Err(_) => return Err(ErrorCode::RequestTimeout.into()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(ErrorCode::PayloadTooLarge.into()),
        Ok(Err(_)) => return Err(ErrorCode::MalformedRequest.into()),
        Ok(Ok(body)) => body.to_bytes(),
    };
    drop(large_body);
    let permit = app.requests.clone().try_acquire_owned().map_err(overloaded)?;
    let origin = Origin {
        address: client_address(peer.address, &head.headers, &app.trusted_proxies),
        allowance: Arc::default(),
        cut: peer.cut.clone(),
    };
    let allowance = origin.allowance.clone();
    head.extensions.insert(origin);
    // Held by the request: given back when its handler is done, not when its answer has been read.
    head.extensions.insert(Arc::new(permit));
    Ok(Prepared::Request(Request::from_parts(head, body), allowance))
}

/// Whether a request of HTTP/1.1 names its host once (RFC 9112 §3.2).
fn names_its_host(head: &http::request::Parts) -> bool {
    head.version != Version::HTTP_11 || head.headers.get_all(HOST).iter().count() == 1
}

/// Gives an answer its envelope, and one that has none because nobody wrote it, too.
fn in_envelope(app: &App, response: Response<Body>, request_id: &str, is_mcp: bool) -> Response<Body> {
    let route = response.extensions().get::<MatchedPath>().cloned();
    let mut response = with_envelope(app, response, request_id, is_mcp);
    if let Some(route) = route {
        response.extensions_mut().insert(route);
    }
    response
}

fn with_envelope(app: &App, mut response: Response<Body>, request_id: &str, is_mcp: bool) -> Response<Body> {
    let now = app.core.environment.now();
    if let Some(answer) = response.extensions_mut().remove::<Answer>() {
        return answer.render(request_id, now);
    }
    let code = match response.status() {
        _ if is_mcp => return response,
        StatusCode::NOT_FOUND => ErrorCode::RouteNotFound,
        StatusCode::METHOD_NOT_ALLOWED => ErrorCode::MethodNotAllowed,
        status if status.is_client_error() => ErrorCode::MalformedRequest,
        _ => return response,
    };
    let allowed = response.headers_mut().remove(ALLOW);
    let mut response = Answer::refused(code.into()).render(request_id, now);
    if let Some(allowed) = allowed {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

fn request_id(app: &App) -> String {
    let bytes: [u8; 12] = app.core.environment.random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The secret a request shows in its headers.
#[must_use]
pub fn presented_secret(headers: &HeaderMap) -> Option<Secret> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = || {
        let (scheme, token) = text(&AUTHORIZATION)?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    };
    text(&HeaderName::from_static("x-api-key"))
        .or_else(|| text(&HeaderName::from_static("api-key")))
        .or_else(bearer)
        .and_then(Secret::presented)
}

/// Answers what browsers ask first: the methods there are, and every header that they want to send.
pub(super) fn preflight(asked: &HeaderMap, status: StatusCode, methods: HeaderValue) -> Response<Body> {
    let mut response = upgrade::empty(status);
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
    if let Some(wanted) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("3600"));
    response
}

/// Headers that scripts of another origin may read.
const EXPOSED: &str = "idempotency-replayed, mcp-session-id, mcp-protocol-version, retry-after, x-ratelimit-limit, x-ratelimit-remaining, x-request-id";

/// Lets scripts of allowed origins read the answer. No credential is ambient, so all origins may by default.
fn allow_origin(policy: &OriginPolicy, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    let Some(origin) = origin else { return };
    match policy {
        OriginPolicy::Any => {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        }
        OriginPolicy::Only(_) => {
            headers.insert(VARY, HeaderValue::from_static("origin"));
            if !policy.allows(origin.to_str().ok()) {
                return;
            }
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        }
    }
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
}
