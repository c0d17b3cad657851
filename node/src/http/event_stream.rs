//! A task's stream as server-sent events. The reader pulls: each time its connection takes more, the next part is read
//! from the stream's log, so a slow reader holds no more than one part.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::Response;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use muster_actors::connections::{Connection, Registered};
use muster_actors::task_stream::{Reading, Tail};
use muster_protocol::account::Principal;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::TaskId;
use muster_protocol::join_rules::may_read_stream;
use muster_protocol::topic::event::STREAM_CHUNK;
use muster_protocol::websocket::CloseCode;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::front::Origin;
use super::patience::Cut;
use crate::app::App;

/// A comment this often keeps proxies from closing a quiet stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// An open event stream.
struct EventStream {
    app: Arc<App>,
    principal: Principal,
    task: TaskId,
    after: Option<u64>,
    tail: watch::Receiver<Tail>,
    state: State,
    /// Read, but not handed on yet.
    unsent: Bytes,
    ended: Arc<Ended>,
    _registered: Registered,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The first reading tells where the stream stands.
    Joining,
    /// Reading on.
    Reading,
    /// Everything has been told.
    Done,
}

/// Bytes handed to the connection at a time: it comes back for more once it has sent about as much.
const PORTION_BYTES: usize = 16 * 1024;
/// How long a stream that was ended waits for its peer to take what was handed on, in milliseconds.
const LINGER_MS: u64 = 2_000;

/// Lets the stream be ended from outside.
struct Ended {
    app: Arc<App>,
    token: CancellationToken,
    cut: Arc<Cut>,
    /// Since when a portion waits for the connection to take it, monotonic milliseconds; 0 when none does.
    handed_at_ms: AtomicU64,
}

impl Connection for Ended {
    fn end(&self, _code: CloseCode, _reason: &str) {
        self.token.cancel();
    }

    /// Cuts off a peer that takes nothing (agrenting.md R45).
    fn end_if_idle(&self, now_ms: u64) {
        let handed_at_ms = self.handed_at_ms.load(Ordering::Relaxed);
        let ended = self.token.is_cancelled();
        let patience_ms = if ended { LINGER_MS } else { self.app.config.limits.reader_stall_timeout_ms };
        if handed_at_ms == 0 || now_ms.saturating_sub(handed_at_ms) < patience_ms || self.cut.is_done() {
            return;
        }
        if ended { self.cut.now() } else { self.cut.stalled() }
    }
}

/// Opens an event stream of a task after a seq.
///
/// # Errors
/// The stream cannot be opened, or the credential has as many open as it may.
pub async fn open(
    app: &Arc<App>,
    (principal, origin): (&Principal, &Origin),
    task: TaskId,
    after: Option<u64>,
) -> Result<Response<Body>, Refusal> {
    if app.core.is_draining() {
        return Err(ErrorCode::Draining.into());
    }
    if app.core.connections.count(principal.credential).streams
        >= app.config.limits.streams_per_credential_max
    {
        return Err(ErrorCode::LimitReached.into());
    }
    let tail = app.core.streams.tail(task).await?;
    let ended = Arc::new(Ended {
        app: app.clone(),
        token: app.closing.child_token(),
        cut: origin.cut.clone(),
        handed_at_ms: AtomicU64::new(0),
    });
    let weak: Weak<Ended> = Arc::downgrade(&ended);
    let registered = app.core.connections.register(principal, weak);
    app.metrics.event_streams.inc();
    let stream = EventStream {
        app: app.clone(),
        principal: principal.clone(),
        task,
        after,
        tail,
        state: State::Joining,
        unsent: Bytes::new(),
        ended,
        _registered: registered,
    };
    let parts = futures_util::stream::unfold(stream, |mut stream| async move {
        let part = stream.portion().await?;
        Some((Ok::<_, std::convert::Infallible>(part), stream))
    });
    let mut response = Response::new(Body::from_stream(parts));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // A proxy that buffers would hold tokens back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

impl EventStream {
    /// The next bytes to hand on; `None` at the end.
    async fn portion(&mut self) -> Option<Bytes> {
        self.ended.handed_at_ms.store(0, Ordering::Relaxed);
        if self.unsent.is_empty() {
            self.unsent = self.next().await?;
        }
        let portion = self.unsent.split_to(self.unsent.len().min(PORTION_BYTES));
        let now_ms = self.app.core.environment.monotonic_ms();
        self.ended.handed_at_ms.store(now_ms.max(1), Ordering::Relaxed);
        Some(portion)
    }

    /// The next bytes there are; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.state == State::Done || self.ended.token.is_cancelled() {
                return None;
            }
            // Noted before reading, so that what comes during the reading is not missed.
            self.tail.mark_unchanged();
            let bytes_max = self.app.config.limits.stream_read_bytes_max;
            let reading = self.app.core.streams.read(self.task, self.after, bytes_max).await;
            // Asked after the reading: the task may have been given to another provider before it.
            let parties = self.app.core.streams.parties(self.task).await.ok()?;
            if !parties.is_some_and(|parties| may_read_stream(&self.principal, &parties)) {
                return None;
            }
            let part = match reading {
                Ok(reading) => self.write(reading),
                Err(refusal) => {
                    self.state = State::Done;
                    event(None, "error", refusal.response().as_bytes())
                }
            };
            if !part.is_empty() {
                return Some(part.into());
            }
            tokio::select! {
                () = self.ended.token.cancelled() => return None,
                changed = self.tail.changed() => if changed.is_err() {
                    // The stream was forgotten, or crashed: it is opened again.
                    self.tail = self.app.core.streams.tail(self.task).await.ok()?;
                },
                () = tokio::time::sleep(KEEP_ALIVE) => return Some(Bytes::from_static(b": keep-alive\n\n")),
            }
        }
    }

    fn write(&mut self, reading: Reading) -> Vec<u8> {
        let mut out = Vec::new();
        if self.state == State::Joining {
            self.state = State::Reading;
            let joined = json!({
                "seq": reading.seq,
                "first_seq": reading.first_seq,
                "status": reading.status,
                "truncated": reading.truncated,
            });
            out.extend(event(None, "stream.joined", joined.to_string().as_bytes()));
        }
        for (seq, body) in &reading.chunks {
            out.extend(event(Some(*seq), STREAM_CHUNK, body.as_bytes()));
            self.after = Some(*seq);
        }
        // From here on the reader has a place, even if there was nothing to read.
        self.after = self.after.or(Some(reading.seq));
        if let Some(ending) = reading.ending {
            let (name, payload) = ending.event();
            out.extend(event(None, name, payload.as_bytes()));
            self.state = State::Done;
        }
        out
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.app.metrics.event_streams.dec();
    }
}

/// One event. JSON has no raw line breaks, so it is one `data` line.
fn event(id: Option<u64>, name: &str, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + 64);
    if let Some(id) = id {
        out.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    out.extend_from_slice(format!("event: {name}\ndata: ").as_bytes());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\n\n");
    out
}
