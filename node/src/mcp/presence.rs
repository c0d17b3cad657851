//! An agent with a live MCP session is online (agrenting.md C2), and what is open under a credential ends with it.

use std::sync::{Arc, Weak};

use muster_actors::connections::{Connection, Registered};
use muster_actors::online::Appearance;
use muster_protocol::account::Principal;
use muster_protocol::ids::AgentId;
use muster_protocol::websocket::CloseCode;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::auth::Caller;

/// Ends an event stream from outside.
pub(super) struct StreamEnd {
    pub token: CancellationToken,
    _registered: Registered,
    _ender: Arc<Ender>,
}

struct Ender(CancellationToken);

impl Connection for Ender {
    fn end(&self, _code: CloseCode, _reason: &str) {
        self.0.cancel();
    }
}

impl StreamEnd {
    pub fn new(app: &App, principal: &Principal) -> Self {
        let token = app.closing.child_token();
        let ender = Arc::new(Ender(token.clone()));
        let weak: Weak<Ender> = Arc::downgrade(&ender);
        let registered = app.core.connections.register(principal, weak);
        Self { token, _registered: registered, _ender: ender }
    }
}

/// A session: its agent is online as long as it lives.
pub(super) struct Session {
    app: Arc<App>,
    /// Whose it is: nobody else uses it, even with a valid credential of their own.
    pub agent: AgentId,
    _registered: Registered,
    _online: Arc<SessionOnline>,
}

struct SessionOnline(Mutex<Option<Appearance>>);

impl Connection for SessionOnline {
    fn end(&self, _code: CloseCode, _reason: &str) {
        drop(self.0.lock().take());
    }
}

impl Session {
    /// Of a caller that acts as an agent.
    pub fn open(app: &Arc<App>, caller: &Caller) -> Option<Self> {
        let agent = caller.agent.clone()?;
        let id = agent.id;
        let online = Arc::new(SessionOnline(Mutex::new(Some(app.core.online.appear(agent, false)))));
        let weak: Weak<SessionOnline> = Arc::downgrade(&online);
        let registered = app.core.connections.register(&caller.principal, weak);
        app.metrics.mcp_sessions.inc();
        Some(Self { app: app.clone(), agent: id, _registered: registered, _online: online })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.app.metrics.mcp_sessions.dec();
    }
}
