//! MCP for agents: Streamable HTTP at `/mcp` (protocol versions up to 2025-11-25 with sessions, and 2026-07-28 without),
//! and the older HTTP+SSE transport at `/mcp/sse`. The protocol itself is the `rmcp` crate's; what it leaves to its user
//! is done here: credentials, origins, errors in JSON-RPC, the ends of revoked sessions.
//!
//! # Layout
//! * this file: who may, and Streamable HTTP
//! * [`legacy`]: HTTP+SSE
//! * [`tools`]: what agents can do; [`presence`]: an agent with a session is online

mod legacy;
mod presence;
mod tools;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{CONTENT_TYPE, HeaderValue, ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use muster_protocol::account::Scope;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::json::{deeper_than, without_lone_surrogates};
use rmcp::transport::streamable_http_server::session::local::{LocalSessionManager, SessionConfig};
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use serde_json::json;

use self::legacy::LegacySessions;
use self::presence::StreamEnd;
use self::tools::AgentTools;
use crate::app::App;
use crate::auth::Caller;
use crate::http::front::{Origin, presented_secret};

/// The MCP endpoints.
pub struct Mcp {
    app: Arc<App>,
    service: StreamableHttpService<AgentTools, LocalSessionManager>,
    legacy: Arc<LegacySessions>,
}

/// Path of Streamable HTTP.
const PATH: &str = "/mcp";
/// Path of the older transport's event stream.
const SSE_PATH: &str = "/mcp/sse";
/// Path below which the older transport's messages are posted.
const MESSAGES_PATH: &str = "/mcp/messages/";

/// JSON-RPC error codes.
const PARSE_ERROR: i32 = -32_700;
const INVALID_REQUEST: i32 = -32_600;
const REFUSED: i32 = -32_000;

impl Mcp {
    /// For a node.
    #[must_use]
    pub fn new(app: Arc<App>) -> Self {
        let mut sessions = LocalSessionManager::default();
        sessions.session_config = SessionConfig::default();
        // An open event stream does not count as activity to the library: the limit has to be long.
        sessions.session_config.keep_alive =
            Some(Duration::from_millis(app.config.limits.mcp_session_idle_ms));
        let hosts = app.config.mcp.allowed_hosts.clone();
        let config = StreamableHttpServerConfig::default()
            // Empty allows every name: what DNS rebinding would gain it has no credential for.
            .with_allowed_hosts(hosts)
            .with_cancellation_token(app.closing.child_token())
            .with_max_request_body_bytes(app.config.limits.http_body_bytes_max);
        let tools_app = app.clone();
        let service = StreamableHttpService::new(
            move || Ok(AgentTools::new(tools_app.clone())),
            Arc::new(sessions),
            config,
        );
        Self { service, legacy: LegacySessions::new(app.clone()), app }
    }

    /// Whether a path is MCP's.
    #[must_use]
    pub fn serves(path: &str) -> bool {
        let path = path.strip_suffix('/').unwrap_or(path);
        path == PATH || path == SSE_PATH || path.starts_with(MESSAGES_PATH)
    }

    /// Answers a request.
    pub async fn serve(&self, request: Request<Bytes>) -> Response<Body> {
        let path = request.uri().path().strip_suffix('/').unwrap_or(request.uri().path()).to_owned();
        let mut request = match self.admit(request).await {
            Ok(request) => request,
            Err(response) => return *response,
        };
        let Some(caller) = request.extensions().get::<Caller>().cloned() else {
            return refused(&ErrorCode::Internal.into());
        };
        if path == SSE_PATH {
            return self.legacy.open(request, caller);
        }
        if let Some(session) = path.strip_prefix(MESSAGES_PATH) {
            return self.legacy.post(session, request, &caller).await;
        }
        if request.method() == Method::POST {
            if let Err(response) = sanitise(&mut request, self.app.config.limits.json_depth_max) {
                return *response;
            }
        }
        let response = self.service.handle(request.map(Full::new)).await.map(Body::new);
        self.ends_with_credential(response, &caller)
    }

    /// Lets in agents with a credential that may, from origins that may.
    async fn admit(&self, mut request: Request<Bytes>) -> Result<Request<Bytes>, Box<Response<Body>>> {
        let refuse = |refusal: &Refusal| Box::new(refused(refusal));
        let origin = request.headers().get(ORIGIN).map(|value| value.to_str().unwrap_or("null"));
        if !self.app.origins.allows(origin) {
            return Err(refuse(&ErrorCode::Forbidden.into()));
        }
        let from = request
            .extensions()
            .get::<Origin>()
            .cloned()
            .ok_or_else(|| refuse(&ErrorCode::Internal.into()))?;
        let choice = request.headers().get("x-agent-id").map(|value| value.to_str().unwrap_or("?"));
        let secret = presented_secret(request.headers());
        let caller =
            self.app.auth.caller(secret.as_ref(), choice, from.address).await.map_err(|r| refuse(&r))?;
        caller.acting().map_err(|refusal| refuse(&refusal))?;
        caller.principal.require(Scope::Connect).map_err(|refusal| refuse(&refusal))?;
        let now_ms = self.app.core.environment.monotonic_ms();
        let taken = self.app.credential_buckets.take(caller.principal.credential, now_ms);
        taken.map_err(|wait_ms| refuse(&Refusal::rate_limited(wait_ms)))?;
        if self.app.core.is_draining() {
            return Err(refuse(&ErrorCode::Draining.into()));
        }
        request.extensions_mut().insert(caller);
        Ok(request)
    }

    /// An event stream ends when its credential does.
    fn ends_with_credential(&self, response: Response<Body>, caller: &Caller) -> Response<Body> {
        let is_stream = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
        if !is_stream {
            return response;
        }
        let connections = &self.app.core.connections;
        if connections.count(caller.principal.credential) >= self.app.config.limits.streams_per_credential_max
        {
            return refused(&ErrorCode::LimitReached.into());
        }
        let end = StreamEnd::new(&self.app, &caller.principal);
        response.map(|body| {
            let token = end.token.clone();
            let parts = body.into_data_stream().take_until(token.cancelled_owned());
            // Held by the stream: what registered it goes when the stream does.
            Body::from_stream(parts.map(move |part| {
                let _held = &end;
                part
            }))
        })
    }
}

/// Brings a body into the form the library reads, or answers as JSON-RPC wants it where the library would not.
fn sanitise(request: &mut Request<Bytes>, depth_max: usize) -> Result<(), Box<Response<Body>>> {
    let fail = |code, message: &str| Err(Box::new(json_rpc_error(StatusCode::BAD_REQUEST, code, message)));
    let body = request.body().clone();
    let Ok(text) = std::str::from_utf8(&body) else {
        return fail(PARSE_ERROR, "the body is not UTF-8");
    };
    if deeper_than(&body, depth_max) {
        return fail(PARSE_ERROR, "the body nests too deep");
    }
    if serde_json::from_str::<serde::de::IgnoredAny>(text).is_err() {
        return fail(PARSE_ERROR, "the body is not JSON");
    }
    match text.trim_start().as_bytes().first() {
        Some(b'{') => {}
        Some(b'[') => return fail(INVALID_REQUEST, "batches are not taken: send one message a request"),
        _ => return fail(INVALID_REQUEST, "a JSON-RPC message is an object"),
    }
    let clean = without_lone_surrogates(text);
    if let std::borrow::Cow::Owned(clean) = clean {
        *request.body_mut() = clean.into();
    }
    Ok(())
}

/// A refusal as JSON-RPC has it, with the HTTP status of its code.
fn refused(refusal: &Refusal) -> Response<Body> {
    let status =
        StatusCode::from_u16(refusal.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_rpc_error(status, REFUSED, refusal.code.reason());
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"muster\""));
    }
    if let Some(wait_ms) = refusal.retry_after_ms {
        headers.insert(RETRY_AFTER, HeaderValue::from(wait_ms.div_ceil(1_000).max(1)));
    }
    response
}

fn json_rpc_error(status: StatusCode, code: i32, message: &str) -> Response<Body> {
    let body = json!({ "jsonrpc": "2.0", "id": null, "error": { "code": code, "message": message } });
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
