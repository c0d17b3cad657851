//! The socket actor, which supervises the joins of one connection, and the supervisor of all socket actors.

use std::sync::Arc;

use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::websocket::CloseCode;
use parking_lot::RwLock;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, Message, SupervisionEvent};

use super::Socket;
use crate::inbox::Wake;
use crate::metric_definitions::Metrics;
use crate::supervisor::ChildSpec;

/// What a socket actor is told.
#[derive(Debug)]
pub enum SocketMessage {
    /// The connection is over.
    Finish,
}

impl Message for SocketMessage {}

struct SocketActor;

struct SocketState {
    socket: Arc<Socket>,
    finished: bool,
}

impl Drop for SocketState {
    fn drop(&mut self) {
        // However the actor ends, its connection does not outlive it.
        if !self.finished {
            self.socket.close(CloseCode::Undecodable, "internal error");
        }
    }
}

impl Actor for SocketActor {
    type Msg = SocketMessage;
    type State = SocketState;
    type Arguments = Arc<Socket>;

    async fn pre_start(
        &self,
        _myself: ActorRef<SocketMessage>,
        socket: Arc<Socket>,
    ) -> Result<SocketState, ActorProcessingErr> {
        Ok(SocketState { socket, finished: false })
    }

    async fn handle(
        &self,
        myself: ActorRef<SocketMessage>,
        SocketMessage::Finish: SocketMessage,
        state: &mut SocketState,
    ) -> Result<(), ActorProcessingErr> {
        state.finished = true;
        if myself.get_children().is_empty() {
            myself.stop(None);
        } else {
            myself.drain_children();
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SocketMessage>,
        event: SupervisionEvent,
        state: &mut SocketState,
    ) -> Result<(), ActorProcessingErr> {
        let ended = match event {
            SupervisionEvent::ActorFailed(cell, error) => {
                tracing::error!(%error, "a channel crashed");
                state.socket.join_crashed(&cell);
                cell
            }
            SupervisionEvent::ActorTerminated(cell, _, _) => cell,
            SupervisionEvent::ActorStarted(cell) if state.finished => {
                // It was on its way when the connection ended.
                let _ended = cell.drain();
                return Ok(());
            }
            _ => return Ok(()),
        };
        if state.finished && myself.get_children().iter().all(|child| child.get_id() == ended.get_id()) {
            myself.stop(None);
        }
        Ok(())
    }
}

impl Socket {
    fn join_crashed(&self, cell: &ActorCell) {
        self.core.metrics.crashes.get_or_create(&[("kind", "join")]).inc();
        let crashed = self.session.lock().remove(|join| join.actor.get_id() == cell.get_id());
        // A join that was replaced in between has nobody to tell.
        let Some(crashed) = crashed else { return };
        let outlet = crashed.handle.outlet;
        if outlet.is_pending() {
            let reference = outlet.push_ref().clone();
            outlet.refuse(&reference, &Refusal::new(ErrorCode::JoinCrashed).response());
        } else {
            outlet.fail(ErrorCode::ChannelCrash.reason());
        }
    }
}

/// The supervisor of all sockets of a node.
pub struct Sockets {
    cell: Arc<RwLock<Option<ActorCell>>>,
    metrics: Arc<Metrics>,
}

impl Sockets {
    /// Without an actor yet.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { cell: Arc::default(), metrics }
    }

    /// How its actor is started.
    #[must_use]
    pub fn child(&self) -> ChildSpec {
        let (cell, metrics) = (self.cell.clone(), self.metrics.clone());
        ChildSpec {
            name: "sockets",
            start: Box::new(move |supervisor| {
                let (cell, metrics) = (cell.clone(), metrics.clone());
                Box::pin(async move {
                    let (actor, _) = Actor::spawn_linked(None, SocketsActor, metrics, supervisor).await?;
                    *cell.write() = Some(actor.get_cell());
                    Ok(actor.get_cell())
                })
            }),
        }
    }

    pub(super) async fn spawn(
        &self,
        socket: Arc<Socket>,
    ) -> Result<ActorRef<SocketMessage>, ActorProcessingErr> {
        let supervisor = self.cell.read().clone().ok_or("the supervisor of sockets has not started")?;
        let (actor, _) = Actor::spawn_linked(None, SocketActor, socket, supervisor).await?;
        Ok(actor)
    }
}

/// A socket that crashes closes its connection; its client comes back. Nothing is started again.
struct SocketsActor;

impl Actor for SocketsActor {
    type Msg = Wake;
    type State = Arc<Metrics>;
    type Arguments = Arc<Metrics>;

    async fn pre_start(
        &self,
        _myself: ActorRef<Wake>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Metrics>, ActorProcessingErr> {
        Ok(metrics)
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Wake>,
        event: SupervisionEvent,
        metrics: &mut Arc<Metrics>,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(_, error) = event {
            tracing::error!(%error, "a socket crashed");
            metrics.crashes.get_or_create(&[("kind", "socket")]).inc();
        }
        Ok(())
    }
}
