//! The long-poll transport: what a WebSocket does on `…/websocket`, by GET and POST on `…/longpoll` (phoenix.md §5).
//!
//! The HTTP status is 200, and the outcome is the `status` of the JSON body. To a GET that says 200, 204, 403 or 410 and
//! nothing else: with any other the npm client falls silent for ever. What is refused for a while therefore is an HTTP
//! status without a body, on which every client tries again later.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, ORIGIN};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body as _, Incoming};
use muster_actors::socket::SocketParts;
use muster_protocol::account::{Secret, SecretHash};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::phoenix::longpoll::{
    AUTH_TOKEN_HEADER, BodyForm, Status, TOKEN_HEADER, Token, bare_answer, split_query,
};
use muster_protocol::phoenix::params::Params;
use muster_protocol::topic::Mount;
use tokio::sync::SemaphorePermit;

use super::addresses::client_address;
use super::front::preflight;
use super::listener::Peer;
use super::upgrade::{self, empty, header};
use crate::app::App;
use crate::longpoll::{LongPolls, Opening, Session};

/// What every request says about itself.
struct Asked {
    mount: Mount,
    params: Params,
    token: Option<Token>,
    /// The credential it shows.
    shown: Option<Secret>,
}

impl Asked {
    /// The session it names, unless it shows the credential of somebody else.
    fn session(&self, app: &App) -> Option<Arc<Session>> {
        let shown: Option<SecretHash> = self.shown.as_ref().map(Secret::hash);
        app.longpolls.find(self.token.as_ref()?, self.mount, shown)
    }
}

/// Answers a request on a mount's long-poll path.
pub async fn handle(app: Arc<App>, request: Request<Incoming>, mount: Mount, peer: Peer) -> Response<Body> {
    let mut response = answer(&app, request, mount, &peer).await;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn answer(app: &Arc<App>, request: Request<Incoming>, mount: Mount, peer: &Peer) -> Response<Body> {
    let method = request.method();
    if ![Method::GET, Method::POST, Method::OPTIONS].contains(method) {
        return empty(StatusCode::BAD_REQUEST);
    }
    if !app.origins.allows(header(request.headers(), &ORIGIN)) {
        return outcome(Status::Forbidden);
    }
    if method == Method::OPTIONS {
        // The types of a POST and the headers of a GET are none that browsers send unasked.
        let methods = HeaderValue::from_static("GET, POST, OPTIONS");
        return preflight(request.headers(), StatusCode::OK, methods);
    }
    let Some(asked) = read(&request, mount) else {
        return empty(StatusCode::BAD_REQUEST);
    };
    if method == Method::POST {
        return post(app, request, &asked).await;
    }
    let address = client_address(peer.address, request.headers(), &app.trusted_proxies);
    get(app, &asked, address).await
}

/// Reads the query and the headers; `None` when the query is not UTF-8.
fn read<B>(request: &Request<B>, mount: Mount) -> Option<Asked> {
    let (in_query, rest) = split_query(request.uri().query().unwrap_or_default());
    let params = Params::parse(&rest).ok()?;
    let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let token = text(TOKEN_HEADER).map_or(in_query, Token::presented);
    let auth_token = text(AUTH_TOKEN_HEADER).filter(|text| !text.is_empty());
    let shown = upgrade::shown_secret(mount, &params, auth_token, request.headers());
    Some(Asked { mount, params, token, shown })
}

/// Fetches messages, or begins a session where there is none.
async fn get(app: &Arc<App>, asked: &Asked, address: IpAddr) -> Response<Body> {
    if let Some(session) = asked.session(app)
        && let Some(body) = session.poll().await
    {
        return json(Body::from(body));
    }
    match open(app, asked, address).await {
        Ok(session) => json(Body::from(session.begin())),
        Err(response) => *response,
    }
}

/// The checks of a WebSocket handshake, in their order.
async fn open(app: &Arc<App>, asked: &Asked, address: IpAddr) -> Result<Arc<Session>, Box<Response<Body>>> {
    let refuse = |response| Err(Box::new(response));
    if !app.may_connect(address) {
        return refuse(empty(StatusCode::TOO_MANY_REQUESTS));
    }
    let Some(version) = upgrade::version(&asked.params) else {
        return refuse(outcome(Status::Forbidden));
    };
    let principal =
        match upgrade::connect(app, asked.mount, (&asked.params, asked.shown.as_ref()), address).await {
            Ok(principal) => principal,
            Err(refusal) => return refuse(refused(&refusal)),
        };
    let (Some(shown), Some(place)) = (&asked.shown, app.longpolls.place()) else {
        return refuse(empty(StatusCode::SERVICE_UNAVAILABLE));
    };
    if app.core.is_draining() {
        return refuse(empty(StatusCode::SERVICE_UNAVAILABLE));
    }
    let (core, mount) = (app.core.clone(), asked.mount);
    let opening = Opening {
        parts: Box::new(move |transport| SocketParts { core, mount, principal, version, transport }),
        opened_by: shown.hash(),
        place,
    };
    Ok(LongPolls::open(app, opening))
}

fn refused(refusal: &Refusal) -> Response<Body> {
    match refusal.code {
        ErrorCode::RateLimited | ErrorCode::StoreUnavailable | ErrorCode::Overloaded => {
            upgrade::refused(refusal)
        }
        _ => outcome(Status::Forbidden),
    }
}

/// Brings messages.
async fn post(app: &Arc<App>, request: Request<Incoming>, asked: &Asked) -> Response<Body> {
    let Some(session) = asked.session(app) else {
        return outcome(Status::Gone);
    };
    let form = BodyForm::of(header(request.headers(), &CONTENT_TYPE));
    // In a task of its own: a peer that hangs up does not stop it half way.
    let taken = app.handlers.spawn(take(app.clone(), session, form, request.into_body()));
    match taken.await {
        Ok(Ok(status)) => outcome(status),
        Ok(Err(status)) => empty(status),
        Err(_panicked) => empty(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// Reads the body within its bounds and hands it over.
async fn take(
    app: Arc<App>,
    session: Arc<Session>,
    form: BodyForm,
    body: Incoming,
) -> Result<Status, StatusCode> {
    let limits = &app.config.limits;
    let bytes_max = limits.longpoll_body_bytes_max;
    // A length that is announced is refused before any of it comes.
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(StatusCode::BAD_REQUEST);
    }
    // One POST of a session after another, as clients do it: the others stay unread.
    let Some(_turn) = session.turn().await else {
        return Ok(Status::NotTaken);
    };
    let timeout = Duration::from_millis(limits.handshake_timeout_ms);
    let read = tokio::time::timeout(timeout, read_body(&app.longpolls, Limited::new(body, bytes_max))).await;
    // The place is held until the messages have been taken, which may be a while.
    let (body, _place) = read.map_err(|_elapsed| StatusCode::REQUEST_TIMEOUT)??;
    Ok(session.post(form, &body).await)
}

/// Reads a body, and takes a place for what has come of it: what is only announced costs nothing.
async fn read_body(
    longpolls: &LongPolls,
    mut body: Limited<Incoming>,
) -> Result<(Vec<u8>, Option<SemaphorePermit<'_>>), StatusCode> {
    let (mut read, mut place) = (Vec::new(), None);
    while let Some(frame) = body.frame().await {
        // Too long, or cut off.
        let frame = frame.map_err(|_| StatusCode::BAD_REQUEST)?;
        let Ok(data) = frame.into_data() else { continue };
        read.extend_from_slice(&data);
        longpolls.grow(&mut place, read.len()).map_err(|_full| StatusCode::SERVICE_UNAVAILABLE)?;
    }
    Ok((read, place))
}

/// An answer that says its outcome and nothing else.
fn outcome(status: Status) -> Response<Body> {
    json(Body::from(bare_answer(status)))
}

fn json(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
