//! MCP sessions: whose they are, whether their agent is online by them, and when they end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use muster_actors::connections::{Connection, Registered};
use muster_actors::online::Appearance;
use muster_protocol::account::Principal;
use muster_protocol::ids::AgentId;
use muster_protocol::websocket::CloseCode;
use parking_lot::Mutex;
use rmcp::transport::streamable_http_server::SessionManager;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::auth::Caller;

/// A session. Its agent is online by it as long as it has an event stream open, or was heard of lately.
pub(super) struct Session {
    app: Arc<App>,
    /// Whose it is: nobody else uses it, even with a valid credential of their own.
    pub agent: AgentId,
    appearance: Mutex<Option<Appearance>>,
    /// Whether its credential or its agent was ended.
    ended: AtomicBool,
    /// Event streams that are open.
    streams: AtomicUsize,
    heard_at_ms: AtomicU64,
    registered: OnceLock<Registered>,
}

impl Connection for Session {
    fn end(&self, _code: CloseCode, _reason: &str) {
        self.ended.store(true, Ordering::Release);
        drop(self.appearance.lock().take());
    }
}

impl Session {
    /// Of a caller that acts as an agent.
    pub async fn open(app: &Arc<App>, caller: &Caller) -> Option<Arc<Self>> {
        let session = Arc::new(Self {
            app: app.clone(),
            agent: caller.principal.agent?,
            appearance: Mutex::default(),
            ended: AtomicBool::new(false),
            streams: AtomicUsize::new(0),
            heard_at_ms: AtomicU64::new(app.core.environment.monotonic_ms()),
            registered: OnceLock::new(),
        });
        app.metrics.mcp_sessions.inc();
        session.appear().await;
        let weak: Weak<Self> = Arc::downgrade(&session);
        let _once = session.registered.set(app.core.connections.register(&caller.principal, weak));
        Some(session)
    }

    /// Notes a sign of life.
    async fn heard(&self) {
        self.heard_at_ms.store(self.app.core.environment.monotonic_ms(), Ordering::Relaxed);
        if self.appearance.lock().is_none() {
            self.appear().await;
        }
    }

    async fn appear(&self) {
        let core = &self.app.core;
        let changes = core.online.changes();
        let Ok(agent) = core.store.agent(self.agent).await else { return };
        let appearance = core.online.appear(Arc::new(agent), false);
        if core.online.changes() != changes
            && let Ok(agent) = core.store.agent(self.agent).await
        {
            core.online.note(&Arc::new(agent));
        }
        let mut place = self.appearance.lock();
        if place.is_none() && !self.ended.load(Ordering::Acquire) {
            *place = Some(appearance);
        }
    }

    /// Counts an event stream as long as what this gives is held.
    pub fn open_stream(self: &Arc<Self>) -> OpenStream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        OpenStream(self.clone())
    }

    fn silent_ms(&self, now_ms: u64) -> u64 {
        if self.streams.load(Ordering::Relaxed) > 0 {
            return 0;
        }
        now_ms.saturating_sub(self.heard_at_ms.load(Ordering::Relaxed))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.app.metrics.mcp_sessions.dec();
    }
}

/// An open event stream of a session.
pub(super) struct OpenStream(Arc<Session>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        let now_ms = self.0.app.core.environment.monotonic_ms();
        self.0.heard_at_ms.store(now_ms, Ordering::Relaxed);
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where the handler of `initialize` leaves the session, for whoever learns its id.
#[derive(Clone, Default)]
pub(super) struct Opened(pub Arc<OnceLock<Arc<Session>>>);

/// The sessions of Streamable HTTP, by id.
pub(super) struct Sessions {
    app: Arc<App>,
    manager: Arc<LocalSessionManager>,
    live: Mutex<HashMap<String, Arc<Session>>>,
}

impl Sessions {
    /// None yet. They are looked after until the node closes.
    pub fn new(app: Arc<App>, manager: Arc<LocalSessionManager>) -> Arc<Self> {
        let closing = app.closing.child_token();
        let sessions = Arc::new(Self { app, manager, live: Mutex::default() });
        let looked_after = sessions.clone();
        tokio::spawn(async move {
            let mut timer = tokio::time::interval(Duration::from_secs(1));
            while closing.run_until_cancelled(timer.tick()).await.is_some() {
                looked_after.look_after().await;
            }
        });
        sessions
    }

    /// Keeps a session under the id the library gave it.
    pub fn keep(&self, id: &str, opened: &Opened) {
        if let Some(session) = opened.0.get() {
            self.live.lock().insert(id.to_owned(), session.clone());
        }
    }

    /// The session of that id, if it is this agent's and lives.
    pub async fn find(&self, id: &str, agent: Option<AgentId>) -> Option<Arc<Session>> {
        let session = self.live.lock().get(id).cloned()?;
        if Some(session.agent) != agent || session.ended.load(Ordering::Acquire) {
            return None;
        }
        session.heard().await;
        Some(session)
    }

    /// Ends a session.
    pub async fn close(&self, id: &str) {
        self.live.lock().remove(id);
        if let Err(error) = self.manager.close_session(&id.into()).await {
            tracing::debug!(%error, "an MCP session did not end in order");
        }
    }

    /// Ends the sessions whose credential has ended, or that were silent too long; takes those offline that nothing was
    /// heard of for as long as a socket may be silent (agrenting.md R28).
    async fn look_after(&self) {
        let limits = &self.app.config.limits;
        let now_ms = self.app.core.environment.monotonic_ms();
        let mut over = Vec::new();
        for (id, session) in self.live.lock().iter() {
            let silent_ms = session.silent_ms(now_ms);
            if session.ended.load(Ordering::Acquire) || silent_ms >= limits.mcp_session_idle_ms {
                over.push(id.clone());
            } else if silent_ms >= limits.socket_idle_timeout_ms {
                drop(session.appearance.lock().take());
            }
        }
        for id in over {
            self.close(&id).await;
        }
    }
}

/// Ends an event stream from outside.
pub(super) struct StreamEnd {
    pub token: CancellationToken,
    _registered: Registered,
    _ender: Arc<Ender>,
    _open: Option<OpenStream>,
}

struct Ender(CancellationToken);

impl Connection for Ender {
    fn end(&self, _code: CloseCode, _reason: &str) {
        self.0.cancel();
    }
}

impl StreamEnd {
    /// For a stream of a principal, and of a session if it has one.
    pub fn new(app: &App, principal: &Principal, session: Option<&Arc<Session>>) -> Self {
        let token = app.closing.child_token();
        let ender = Arc::new(Ender(token.clone()));
        let weak: Weak<Ender> = Arc::downgrade(&ender);
        let registered = app.core.connections.register(principal, weak);
        Self { token, _registered: registered, _ender: ender, _open: session.map(Session::open_stream) }
    }
}
