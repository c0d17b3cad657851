//! A small Phoenix client: one socket, one channel. The demo's agents and its hirer speak through it.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fastwebsockets::handshake;
use fastwebsockets::{FragmentCollector, Frame, OpCode, Payload, Role, WebSocket};
use http::Request;
use http_body_util::Empty;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::run::RunError;

/// An event from the server.
pub struct Event {
    /// Its name.
    pub name: String,
    /// Its payload.
    pub payload: Value,
}

/// Who waits for which reply; `None` once the socket is gone and nobody is answered any more.
type Replies = Arc<Mutex<Option<HashMap<String, oneshot::Sender<Value>>>>>;

/// A joined channel.
pub struct Channel {
    topic: String,
    refs: AtomicU64,
    replies: Replies,
    outgoing: mpsc::Sender<String>,
    events: mpsc::Receiver<Event>,
}

/// Events that wait to be looked at, and pushes that wait to be sent.
const QUEUE_MAX: usize = 1_024;
/// How long a reply may take.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the client says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// What this channel's messages carry.
const JOIN_REF: &str = "1";

impl Channel {
    /// Connects with a credential and joins a topic.
    ///
    /// # Errors
    /// The server refuses, or cannot be reached.
    pub async fn join(
        address: &str,
        mount: &str,
        credential: &str,
        topic: &str,
        payload: Value,
    ) -> Result<Self, RunError> {
        let socket = connect(address, mount, credential).await?;
        let (outgoing, to_send) = mpsc::channel(QUEUE_MAX);
        let (deliver, events) = mpsc::channel(QUEUE_MAX);
        let replies: Replies = Arc::new(Mutex::new(Some(HashMap::new())));
        let (read, write) = tokio::io::split(socket);
        tokio::spawn(receive_all(read, deliver, replies.clone()));
        tokio::spawn(send_all(write, to_send));
        let channel = Self { topic: topic.to_owned(), refs: AtomicU64::new(1), replies, outgoing, events };
        channel.push("phx_join", payload).await?;
        Ok(channel)
    }

    /// Pushes an event and waits for its reply.
    ///
    /// # Errors
    /// The server refuses, or is gone.
    pub async fn push(&self, event: &str, payload: Value) -> Result<Value, RunError> {
        self.send(event, payload).await
    }

    /// Sends an event now; the future is its reply. Events are sent in the order of the calls.
    ///
    /// # Errors
    /// The server refuses, or is gone; or more wait to be sent than may.
    pub fn send(
        &self,
        event: &str,
        payload: Value,
    ) -> impl Future<Output = Result<Value, RunError>> + Send + 'static {
        let reference = self.refs.fetch_add(1, Ordering::Relaxed).to_string();
        let (reply, answer) = oneshot::channel();
        let described = format!("{event} on {}", self.topic);
        let message = json!([JOIN_REF, reference, self.topic, event, payload]).to_string();
        let sent = match self.replies.lock().as_mut() {
            Some(waiting) => {
                let sent = self.outgoing.try_send(message).is_ok();
                if sent {
                    waiting.insert(reference, reply);
                }
                sent
            }
            None => false,
        };
        async move {
            if !sent {
                return Err("the socket is gone, or full".into());
            }
            let answer = tokio::time::timeout(REPLY_TIMEOUT, answer).await.map_err(|_| "no reply")?;
            let answer = answer.map_err(|_| "the socket is gone")?;
            if answer["status"] == "ok" {
                return Ok(answer["response"].clone());
            }
            Err(format!("{described}: {}", answer["response"]).into())
        }
    }

    /// The next event.
    ///
    /// # Errors
    /// The socket is gone.
    pub async fn next(&mut self) -> Result<Event, RunError> {
        Ok(self.events.recv().await.ok_or("the socket is gone")?)
    }

    /// The payload of the next event of that name.
    ///
    /// # Errors
    /// The socket is gone.
    pub async fn wait_for(&mut self, name: &str) -> Result<Value, RunError> {
        loop {
            let event = self.next().await?;
            if event.name == name {
                return Ok(event.payload);
            }
        }
    }
}

struct Spawn;

impl<F> hyper::rt::Executor<F> for Spawn
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        tokio::spawn(future);
    }
}

type Stream = TokioIo<Upgraded>;

async fn connect(address: &str, mount: &str, credential: &str) -> Result<Stream, RunError> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let request = Request::builder()
        .uri(format!("http://{address}{mount}/websocket?vsn=2.0.0"))
        .header("host", address)
        .header("upgrade", "websocket")
        .header("connection", "upgrade")
        .header("sec-websocket-key", handshake::generate_key())
        .header("sec-websocket-version", "13")
        .header("x-api-key", credential)
        .body(Empty::<Bytes>::new())?;
    let (socket, _) = handshake::client(&Spawn, request, stream).await?;
    Ok(socket.into_inner())
}

/// Hands out what comes. The library's reader must not be given up half-way, so it has a task of its own.
async fn receive_all(stream: ReadHalf<Stream>, deliver: mpsc::Sender<Event>, replies: Replies) {
    let socket = WebSocket::after_handshake(tokio::io::join(stream, tokio::io::sink()), Role::Client);
    let mut socket = FragmentCollector::new(socket);
    while let Ok(frame) = socket.read_frame().await {
        if frame.opcode == OpCode::Close || !receive(&frame.payload, &deliver, &replies).await {
            break;
        }
    }
    // Nobody answers any more.
    *replies.lock() = None;
}

/// Sends what waits, and a heartbeat now and then.
async fn send_all(stream: WriteHalf<Stream>, mut messages: mpsc::Receiver<String>) {
    let mut socket = WebSocket::after_handshake(tokio::io::join(tokio::io::empty(), stream), Role::Client);
    loop {
        let message = match tokio::time::timeout(HEARTBEAT, messages.recv()).await {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(_) => json!([null, "hb", "phoenix", "heartbeat", {}]).to_string(),
        };
        let frame = Frame::text(Payload::Owned(message.into_bytes()));
        if socket.write_frame(frame).await.is_err() {
            return;
        }
    }
}

/// Whether anybody still listens.
async fn receive(text: &[u8], deliver: &mpsc::Sender<Event>, replies: &Replies) -> bool {
    let Ok(Value::Array(message)) = serde_json::from_slice(text) else { return true };
    let [_, reference, _, name, payload] = message.as_slice() else { return true };
    let name = name.as_str().unwrap_or_default();
    if name != "phx_reply" {
        let event = Event { name: name.to_owned(), payload: payload.clone() };
        return deliver.send(event).await.is_ok();
    }
    if let Some(reply) = reference.as_str().and_then(|reference| replies.lock().as_mut()?.remove(reference)) {
        // Whoever asked may have stopped waiting.
        let _gone = reply.send(payload.clone());
    }
    true
}
