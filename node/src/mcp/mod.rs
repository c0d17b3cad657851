//! MCP for agents: Streamable HTTP at `/mcp` (protocol versions up to 2025-11-25 with sessions, and 2026-07-28 without),
//! and the older HTTP+SSE transport at `/mcp/sse`. The protocol itself is the `rmcp` crate's; what it leaves to its user
//! is done here: credentials, origins and hosts, errors in JSON-RPC, whose a session is, and its end.
//!
//! # Layout
//! * this file: who may, and Streamable HTTP
//! * `legacy`: HTTP+SSE
//! * [`envelope`]: JSON-RPC before the library reads it; `replay`: events for those who resume
//! * `tools`: what agents can do; [`arguments`]: what each tool is given; `sessions`: an agent with a session is online

pub mod arguments;
pub mod envelope;
mod legacy;
mod replay;
mod sessions;
mod tools;

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{CONTENT_TYPE, HOST, HeaderMap, ORIGIN};
use http::{Method, Request, Response};
use http_body_util::Full;
use muster_protocol::account::Scope;
use muster_protocol::error_code::{ErrorCode, Refusal};
use rmcp::transport::streamable_http_server::session::local::{LocalSessionManager, SessionConfig};
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};

use self::envelope::{Era, Kind, refused};
use self::legacy::LegacySessions;
use self::replay::Replay;
use self::sessions::{Opened, Session, Sessions, StreamEnd};
use self::tools::AgentTools;
use crate::app::App;
use crate::auth::Caller;
use crate::http::front::{Origin, presented_secret};

/// The MCP endpoints.
pub struct Mcp {
    app: Arc<App>,
    service: StreamableHttpService<AgentTools, LocalSessionManager>,
    sessions: Arc<Sessions>,
    legacy: Arc<LegacySessions>,
    hosts: Vec<String>,
}

/// Path of Streamable HTTP.
const PATH: &str = "/mcp";
/// Path of the older transport's event stream.
const SSE_PATH: &str = "/mcp/sse";
/// Path below which the older transport's messages are posted.
const MESSAGES_PATH: &str = "/mcp/messages/";

/// First protocol version without sessions.
const STATELESS_FROM: &str = "2026-07-28";
/// Header that names a session.
const SESSION_ID: &str = "mcp-session-id";
/// Names by which a machine reaches itself.
const LOOPBACK_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

impl Mcp {
    /// For a node.
    #[must_use]
    pub fn new(app: Arc<App>) -> Self {
        let mut manager = LocalSessionManager::default()
            .with_event_store(Arc::new(Replay::new(app.core.environment.clone())));
        manager.session_config = SessionConfig::default();
        // To the library an open event stream is no sign of life: idle sessions are ended by `Sessions` instead.
        manager.session_config.keep_alive = None;
        let manager = Arc::new(manager);
        let config = StreamableHttpServerConfig::default()
            // Checked here, for both transports.
            .disable_allowed_hosts()
            .with_cancellation_token(app.closing.child_token())
            .with_max_request_body_bytes(app.config.limits.http_body_bytes_max);
        let tools_app = app.clone();
        let service = StreamableHttpService::new(
            move || Ok(AgentTools::new(tools_app.clone())),
            manager.clone(),
            config,
        );
        let sessions = Sessions::new(app.clone(), manager);
        let hosts = allowed_hosts(&app.config.mcp.allowed_hosts, &app.config.http.listen);
        Self { service, sessions, legacy: LegacySessions::new(app.clone()), hosts, app }
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
        let era = era(request.headers());
        match self.streamable(&mut request, era, &caller).await {
            Ok((kind, session)) => self.handle(request, kind, session, &caller).await,
            Err(response) => *response,
        }
    }

    /// What a request of Streamable HTTP is, and whose session it is in; or its refusal.
    async fn streamable(
        &self,
        request: &mut Request<Bytes>,
        era: Era,
        caller: &Caller,
    ) -> Result<(Kind, Option<Arc<Session>>), Box<Response<Body>>> {
        let refuse = |code: ErrorCode| Err(Box::new(refused(&code.into())));
        let mut session = None;
        if era == Era::Stateless {
            request.headers_mut().remove(SESSION_ID);
            if request.method() != Method::POST {
                return refuse(ErrorCode::MethodNotAllowed);
            }
        } else if let Some(id) = request.headers().get(SESSION_ID) {
            // Somebody else's session and one that does not exist give the same answer.
            session = self.sessions.find(id.to_str().unwrap_or_default(), caller.principal.agent).await;
            if session.is_none() {
                return refuse(ErrorCode::NotFound);
            }
        }
        let kind = if request.method() == Method::POST {
            envelope::check(request, era, self.app.config.limits.json_depth_max)?
        } else {
            Kind::Other
        };
        // What stays open is refused before it is opened.
        let stays = kind == Kind::Initialize || request.method() == Method::GET;
        let open = self.app.core.connections.count(caller.principal.credential).streams;
        if stays && open >= self.app.config.limits.streams_per_credential_max {
            return refuse(ErrorCode::LimitReached);
        }
        Ok((kind, session))
    }

    async fn handle(
        &self,
        mut request: Request<Bytes>,
        kind: Kind,
        session: Option<Arc<Session>>,
        caller: &Caller,
    ) -> Response<Body> {
        let opened = Opened::default();
        if kind == Kind::Initialize {
            request.extensions_mut().insert(opened.clone());
        }
        let id = request.headers().get(SESSION_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
        let ends = request.method() == Method::DELETE;
        let follows = request.method() == Method::GET;
        let response = self.service.handle(request.map(Full::new)).await.map(Body::new);
        if let Some(id) = response.headers().get(SESSION_ID).and_then(|id| id.to_str().ok()) {
            self.sessions.keep(id, &opened);
        }
        if let (true, Some(id)) = (ends && response.status().is_success(), id) {
            self.sessions.close(&id).await;
        }
        // Only the stream that a client leaves open shows that it is there.
        self.ends_with_credential(response, caller, session.filter(|_| follows).as_ref())
    }

    /// Lets in agents with a credential that may, from origins that may.
    async fn admit(&self, mut request: Request<Bytes>) -> Result<Request<Bytes>, Box<Response<Body>>> {
        let refuse = |refusal: &Refusal| Box::new(refused(refusal));
        if !host_allowed(&self.hosts, request.headers()) {
            return Err(refuse(&ErrorCode::Forbidden.into()));
        }
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
        let taken = self.app.core.usage.requests.take(caller.principal.credential, now_ms);
        taken.map_err(|wait_ms| refuse(&Refusal::rate_limited(wait_ms)))?;
        if self.app.core.is_draining() {
            return Err(refuse(&ErrorCode::Draining.into()));
        }
        request.extensions_mut().insert(caller);
        Ok(request)
    }

    /// An event stream ends when its credential does.
    fn ends_with_credential(
        &self,
        response: Response<Body>,
        caller: &Caller,
        session: Option<&Arc<Session>>,
    ) -> Response<Body> {
        let is_stream = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
        if !is_stream {
            return response;
        }
        let end = StreamEnd::new(&self.app, &caller.principal, session);
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

fn era(headers: &HeaderMap) -> Era {
    let version = headers.get("mcp-protocol-version").and_then(|version| version.to_str().ok());
    // Versions are dates, and compare as text; what is none is the library's to refuse.
    let is_date = |version: &str| version.starts_with(|first: char| first.is_ascii_digit());
    match version {
        Some(version) if is_date(version) && version >= STATELESS_FROM => Era::Stateless,
        _ => Era::Sessions,
    }
}

/// The names a node goes by: as configured, or its own machine's when it listens to nobody else; otherwise any, because
/// what DNS rebinding would gain has no credential.
fn allowed_hosts(configured: &[String], listen: &str) -> Vec<String> {
    let on_loopback = listen.parse::<std::net::SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
    match configured {
        [] if on_loopback => LOOPBACK_HOSTS.map(str::to_owned).to_vec(),
        configured => configured.to_vec(),
    }
}

fn host_allowed(allowed: &[String], headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    // Without the port; a literal IPv6 address keeps its brackets.
    let name = match host.rfind(':') {
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    };
    let same = |one: &String| one.eq_ignore_ascii_case(name) || one.eq_ignore_ascii_case(host);
    allowed.is_empty() || allowed.iter().any(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_compared_without_their_port() {
        let ours = allowed_hosts(&[], "127.0.0.1:4000");
        let open = allowed_hosts(&[], "0.0.0.0:4000");
        let named = allowed_hosts(&["muster.example".into()], "127.0.0.1:4000");
        for (host, by_loopback, by_name) in [
            ("localhost:4000", true, false),
            ("127.0.0.1", true, false),
            ("[::1]:4000", true, false),
            ("Muster.example:443", false, true),
            ("muster.example.evil.example", false, false),
            ("", false, false),
        ] {
            let headers = HeaderMap::from_iter([(HOST, host.parse().unwrap())]);
            assert_eq!(host_allowed(&ours, &headers), by_loopback, "{host}");
            assert_eq!(host_allowed(&named, &headers), by_name, "{host}");
            assert!(host_allowed(&open, &headers), "{host}");
        }
    }
}
