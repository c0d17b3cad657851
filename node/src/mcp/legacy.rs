//! The older HTTP+SSE transport (2024-11-05): an event stream whose first event names where to post, and posts that are
//! answered on the stream. A session lives as long as its stream.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use muster_protocol::error_code::ErrorCode;
use muster_protocol::ids::AgentId;
use parking_lot::Mutex;
use rmcp::model::{ClientJsonRpcMessage, GetExtensions, ServerJsonRpcMessage};
use rmcp::service::serve_server_with_ct;
use rmcp::transport::sink_stream::SinkStreamTransport;
use rmcp::transport::{Transport, TransportAdapterIdentity};
use rmcp::{RoleServer, ServerHandler};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, PollSendError, PollSender};

use super::envelope::{self, Era, refused, unreadable};
use super::sessions::StreamEnd;
use super::tools::AgentTools;
use crate::app::App;
use crate::auth::Caller;

/// Messages of one session that wait, in each direction; a further post answers 503.
const MESSAGES_MAX: usize = 64;
/// A comment this often keeps proxies from closing a quiet stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The sessions of the older transport.
pub(super) struct LegacySessions {
    app: Arc<App>,
    sessions: Mutex<HashMap<String, LegacySession>>,
}

struct LegacySession {
    agent: AgentId,
    inbound: mpsc::Sender<ClientJsonRpcMessage>,
}

/// The stream's side of a session.
struct Stream {
    sessions: Arc<LegacySessions>,
    id: String,
    outbound: mpsc::Receiver<ServerJsonRpcMessage>,
    greeted: bool,
    end: StreamEnd,
    service: CancellationToken,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.sessions.sessions.lock().remove(&self.id);
        self.service.cancel();
    }
}

impl LegacySessions {
    pub fn new(app: Arc<App>) -> Arc<Self> {
        Arc::new(Self { app, sessions: Mutex::default() })
    }

    /// Opens a session and its event stream.
    pub fn open(self: &Arc<Self>, request: Request<Bytes>, caller: Caller) -> Response<Body> {
        if request.method() != Method::GET {
            return refused(&ErrorCode::MethodNotAllowed.into());
        }
        let Some(agent) = caller.principal.agent else {
            return refused(&ErrorCode::Forbidden.into());
        };
        let connections = &self.app.core.connections;
        if connections.count(caller.principal.credential).streams
            >= self.app.config.limits.streams_per_credential_max
        {
            return refused(&ErrorCode::LimitReached.into());
        }
        let id: String =
            self.app.core.environment.random::<16>().iter().map(|byte| format!("{byte:02x}")).collect();
        let (inbound, from_client) = mpsc::channel::<ClientJsonRpcMessage>(MESSAGES_MAX);
        let (to_client, outbound) = mpsc::channel::<ServerJsonRpcMessage>(MESSAGES_MAX);
        self.sessions.lock().insert(id.clone(), LegacySession { agent, inbound });
        let service = CancellationToken::new();
        spawn(AgentTools::new(self.app.clone()), transport(from_client, to_client), service.clone());
        let end = StreamEnd::new(&self.app, &caller.principal, None);
        let stream = Stream { sessions: self.clone(), id, outbound, greeted: false, end, service };
        let parts = futures_util::stream::unfold(stream, |mut stream| async move {
            let part = stream.next().await?;
            Some((Ok::<_, Infallible>(Bytes::from(part)), stream))
        });
        let mut response = Response::new(Body::from_stream(parts));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    }

    /// Takes a message for a session.
    pub async fn post(&self, id: &str, mut request: Request<Bytes>, caller: &Caller) -> Response<Body> {
        if request.method() != Method::POST {
            return refused(&ErrorCode::MethodNotAllowed.into());
        }
        let inbound = match self.sessions.lock().get(id) {
            // Somebody else's session and one that does not exist give the same answer.
            Some(session) if Some(session.agent) == caller.principal.agent => session.inbound.clone(),
            _ => return refused(&ErrorCode::NotFound.into()),
        };
        if let Err(response) =
            envelope::check(&mut request, Era::Sessions, self.app.config.limits.json_depth_max)
        {
            return *response;
        }
        let (parts, body) = request.into_parts();
        let Ok(mut message) = serde_json::from_slice::<ClientJsonRpcMessage>(&body) else {
            return unreadable();
        };
        // As the other transport does: handlers find who calls in the request's parts.
        match &mut message {
            ClientJsonRpcMessage::Request(inner) => {
                inner.request.extensions_mut().insert(parts);
            }
            ClientJsonRpcMessage::Notification(inner) => {
                inner.notification.extensions_mut().insert(parts);
            }
            _ => {}
        }
        match inbound.try_send(message) {
            Ok(()) => {
                let mut response = Response::new(Body::from("Accepted"));
                *response.status_mut() = StatusCode::ACCEPTED;
                response
            }
            Err(mpsc::error::TrySendError::Full(_)) => refused(&ErrorCode::Overloaded.into()),
            Err(mpsc::error::TrySendError::Closed(_)) => refused(&ErrorCode::NotFound.into()),
        }
    }
}

type FromClient = mpsc::Receiver<ClientJsonRpcMessage>;
type ToClient = mpsc::Sender<ServerJsonRpcMessage>;

/// The session's messages as the library takes them.
fn transport(from_client: FromClient, to_client: ToClient) -> impl Transport<RoleServer> + 'static {
    let stream = futures_util::stream::unfold(from_client, |mut receiver| async move {
        let message = receiver.recv().await?;
        Some((message, receiver))
    });
    SinkStreamTransport::new(PollSender::new(to_client).sink_map_err(closed as fn(_) -> _), stream.boxed())
}

/// Serves a session in a task of its own. Generic, because the compiler cannot see that the library's future may move
/// between threads when it knows the transport (rust-lang/rust issue 96865).
fn spawn<S: ServerHandler, T: Transport<RoleServer> + 'static>(
    handler: S,
    transport: T,
    end: CancellationToken,
) {
    tokio::spawn(async move {
        let serving = serve_server_with_ct::<_, _, _, TransportAdapterIdentity>(handler, transport, end);
        match serving.await {
            Ok(running) => {
                if let Err(error) = running.waiting().await {
                    tracing::warn!(%error, "an MCP session did not end in order");
                }
            }
            Err(error) => tracing::debug!(%error, "an MCP session did not begin"),
        }
    });
}

fn closed(_: PollSendError<ServerJsonRpcMessage>) -> std::io::Error {
    std::io::ErrorKind::BrokenPipe.into()
}

impl Stream {
    async fn next(&mut self) -> Option<String> {
        if !self.greeted {
            self.greeted = true;
            // Relative to the stream's own address, so that a prefix some proxy adds does not matter.
            return Some(format!("event: endpoint\ndata: messages/{}\n\n", self.id));
        }
        tokio::select! {
            message = self.outbound.recv() => {
                let json = serde_json::to_string(&message?).ok()?;
                Some(format!("event: message\ndata: {json}\n\n"))
            }
            () = self.end.token.cancelled() => None,
            () = tokio::time::sleep(KEEP_ALIVE) => Some(": keep-alive\n\n".to_owned()),
        }
    }
}
