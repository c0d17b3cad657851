//! WebSocket handshakes of the Phoenix mounts, in Phoenix's own order: query, origin, token and sub-protocol, version,
//! credential, and only then whether it is an upgrade at all.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use fastwebsockets::upgrade::{UpgradeFut, is_upgrade_request, upgrade};
use http::header::{
    CACHE_CONTROL, HeaderMap, HeaderName, HeaderValue, ORIGIN, RETRY_AFTER, SEC_WEBSOCKET_PROTOCOL,
};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use muster_actors::connections::Place;
use muster_actors::socket::{Socket, SocketParts};
use muster_protocol::account::{Principal, Secret};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::join_rules;
use muster_protocol::phoenix::Version;
use muster_protocol::phoenix::handshake;
use muster_protocol::phoenix::params::{Param, Params};
use muster_protocol::topic::Mount;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::addresses::client_address;
use super::front::presented_secret;
use super::listener::Peer;
use super::patience::Patient;
use crate::app::App;
use crate::websocket::Connection;
use crate::websocket::io::{Io, Plain, Tls, WayOut};

/// What a handshake has settled.
struct Opening {
    mount: Mount,
    version: Version,
    principal: Principal,
    place: Place,
    answer_subprotocol: bool,
}

/// Answers a request on a mount's WebSocket path.
pub async fn handle(
    app: Arc<App>,
    mut request: Request<Incoming>,
    mount: Mount,
    peer: Peer,
) -> Response<Body> {
    if request.method() != Method::GET {
        return empty(StatusCode::BAD_REQUEST);
    }
    let address = client_address(peer.address, request.headers(), &app.trusted_proxies);
    if address != peer.address.to_canonical() && !app.may_connect(address) {
        return empty(StatusCode::TOO_MANY_REQUESTS);
    }
    let opening = match open(&app, &request, mount, address).await {
        Ok(opening) => opening,
        Err(response) => return *response,
    };
    if let Some(problem) = not_an_upgrade(&request) {
        return text(StatusCode::BAD_REQUEST, problem);
    }
    if app.core.is_draining() {
        return empty(StatusCode::SERVICE_UNAVAILABLE);
    }
    let Ok((response, upgraded)) = upgrade(&mut request) else {
        return text(StatusCode::BAD_REQUEST, "not a WebSocket handshake".into());
    };
    let mut response = response.map(|_| Body::empty());
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("max-age=0, private, must-revalidate"));
    if opening.answer_subprotocol {
        let phoenix = HeaderValue::from_static(handshake::SUBPROTOCOL);
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, phoenix);
    }
    // What only the opening needs is let go of with it: a connection is small.
    let opened = Box::pin(begin(app, upgraded, opening, peer));
    tokio::spawn(async move {
        if let Some(connection) = opened.await {
            connection.await;
        }
    });
    response
}

async fn open<B>(
    app: &App,
    request: &Request<B>,
    mount: Mount,
    address: IpAddr,
) -> Result<Opening, Box<Response<Body>>> {
    let refuse = |status| Err(Box::new(empty(status)));
    let Ok(params) = Params::parse(request.uri().query().unwrap_or_default()) else {
        return refuse(StatusCode::BAD_REQUEST);
    };
    if !app.origins.allows(header(request.headers(), &ORIGIN)) {
        return refuse(StatusCode::FORBIDDEN);
    }
    let offered = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let Ok(subprotocol) = handshake::subprotocol(offered.filter_map(|value| value.to_str().ok())) else {
        return refuse(StatusCode::FORBIDDEN);
    };
    let Some(version) = version(&params) else {
        return refuse(StatusCode::FORBIDDEN);
    };
    let shown = shown_secret(mount, &params, subprotocol.token.as_deref(), request.headers());
    let (principal, place) = match connect(app, mount, (&params, shown.as_ref()), address).await {
        Ok(connecting) => connecting,
        Err(refusal) => return Err(Box::new(refused(&refusal))),
    };
    Ok(Opening { mount, version, principal, place, answer_subprotocol: subprotocol.answer })
}

/// When whoever has as many sockets as it may is told to come back, in milliseconds.
const SOCKETS_RETRY_MS: u64 = 10_000;

/// Which messages a client asks for; `None` when they are not served.
pub(super) fn version(params: &Params) -> Option<Version> {
    match params.get("vsn") {
        Some(Param::Map(_)) => None,
        _ => handshake::version(params.text("vsn")),
    }
}

/// The credential a client shows: by parameter, by the transport's own token, or by header, in this order (R9).
pub(super) fn shown_secret(
    mount: Mount,
    params: &Params,
    token: Option<&str>,
    headers: &HeaderMap,
) -> Option<Secret> {
    let names: &[&str] = match mount {
        Mount::Agent | Mount::Hirer => &["api_key"],
        Mount::Main => &["api_key", "session_token"],
        Mount::User => &["token"],
    };
    names
        .iter()
        .find_map(|name| params.text(name).filter(|text| !text.is_empty()))
        .or(token)
        .and_then(Secret::presented)
        .or_else(|| presented_secret(headers))
}

/// Who connects by this secret (R24, R30, R57, R109), and the place kept for the socket.
pub(super) async fn connect(
    app: &App,
    mount: Mount,
    (params, shown): (&Params, Option<&Secret>),
    address: IpAddr,
) -> Result<(Principal, Place), Refusal> {
    let choice = match mount {
        Mount::Main | Mount::User => params.text("agent_id"),
        Mount::Agent | Mount::Hirer => None,
    };
    let principal = app.auth.connecting(shown, choice, address).await?;
    if !join_rules::may_connect(mount, &principal) {
        return Err(ErrorCode::Forbidden.into());
    }
    let most = app.config.limits.sockets_per_credential_max;
    let place = app.core.connections.place(principal.credential, most);
    let place = place.ok_or_else(|| Refusal::rate_limited(SOCKETS_RETRY_MS))?;
    Ok((principal, place))
}

/// A refused connection says nothing but its status (R8).
pub(super) fn refused(refusal: &Refusal) -> Response<Body> {
    match refusal.code {
        ErrorCode::RateLimited => {
            let mut response = empty(StatusCode::TOO_MANY_REQUESTS);
            let seconds = refusal.retry_after_ms.unwrap_or_default().div_ceil(1_000);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            response
        }
        ErrorCode::StoreUnavailable | ErrorCode::Overloaded => empty(StatusCode::SERVICE_UNAVAILABLE),
        _ => empty(StatusCode::FORBIDDEN),
    }
}

pub(super) fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    // A header that is no text matches no pattern.
    headers.get(name).map(|value| value.to_str().unwrap_or("null"))
}

/// What keeps a request from being an upgrade, in Phoenix's words as far as they help.
fn not_an_upgrade<B>(request: &Request<B>) -> Option<String> {
    let shown = |name: &str| {
        let values: Vec<_> =
            request.headers().get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes())).collect();
        format!("{values:?}")
    };
    let has = |name: &str, token: &str| {
        request
            .headers()
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    if !has("connection", "upgrade") {
        return Some(format!("'connection' header must contain 'upgrade', got {}", shown("connection")));
    }
    if !is_upgrade_request(request) {
        return Some(format!("'upgrade' header must contain 'websocket', got {}", shown("upgrade")));
    }
    let key = request.headers().get("sec-websocket-key");
    if key.is_none_or(|key| key.as_bytes().len() != WEBSOCKET_KEY_BYTES) {
        return Some("'sec-websocket-key' header is absent or malformed".into());
    }
    if !has("sec-websocket-version", "13") {
        return Some(format!(
            "'sec-websocket-version' header must equal '13', got {}",
            shown("sec-websocket-version")
        ));
    }
    None
}

/// A WebSocket key is 16 bytes in base64.
const WEBSOCKET_KEY_BYTES: usize = 24;

pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

async fn begin(app: Arc<App>, upgraded: UpgradeFut, opening: Opening, peer: Peer) -> Option<Connection> {
    let (io, early) = take_apart(upgraded).await?;
    let parts = SocketParts {
        core: app.core.clone(),
        mount: opening.mount,
        principal: opening.principal,
        place: opening.place,
        version: opening.version,
        transport: Box::new(WayOut(io.clone())),
    };
    Some(Connection::new(Socket::start(parts), io, &early, (peer.place, peer.open)))
}

/// The stream below an upgraded connection, and what the peer sent right behind its handshake (A6).
async fn take_apart(upgraded: UpgradeFut) -> Option<(Arc<dyn Io>, Bytes)> {
    let upgraded = upgraded.await.ok()?.into_inner().into_inner();
    match upgraded.downcast::<TokioIo<Patient<TcpStream>>>() {
        Ok(parts) => Some((Arc::new(Plain(parts.io.into_inner().into_inner())), parts.read_buf)),
        Err(upgraded) => {
            let parts = upgraded.downcast::<TokioIo<Patient<TlsStream<TcpStream>>>>().ok()?;
            let (tcp, session) = parts.io.into_inner().into_inner().into_inner();
            Some((Arc::new(Tls::new(tcp, session)), parts.read_buf))
        }
    }
}
