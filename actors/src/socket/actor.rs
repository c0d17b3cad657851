//! What is awake of a connection: a task for each join that has to wait, and the socket actor that supervises them; and
//! the supervisor of all socket actors. Both end when nothing is left to wait for.

use std::sync::Arc;

use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::websocket::CloseCode;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, ActorRuntime, SupervisionEvent};

use super::Socket;
use super::join::{JoinActor, JoinMessage, Turn};
use crate::inbox::Wake;
use crate::metric_definitions::Metrics;
use crate::supervisor::{Brood, ChildSpec};

/// The socket actor, while one of its joins is awake.
#[derive(Default)]
pub(super) struct Awake {
    actor: Option<ActorCell>,
    /// Joins that are awake.
    joins: usize,
}

struct SocketActor;

struct SocketState {
    socket: Arc<Socket>,
    asleep: bool,
}

impl Drop for SocketState {
    fn drop(&mut self) {
        // However the actor ends, if it is not by falling asleep its connection does not outlive it.
        if !self.asleep {
            self.socket.close(CloseCode::Undecodable, "internal error");
        }
    }
}

impl Actor for SocketActor {
    type Msg = Wake;
    type State = SocketState;
    type Arguments = Arc<Socket>;

    async fn pre_start(
        &self,
        _myself: ActorRef<Wake>,
        socket: Arc<Socket>,
    ) -> Result<SocketState, ActorProcessingErr> {
        Ok(SocketState { socket, asleep: false })
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Wake>,
        event: SupervisionEvent,
        state: &mut SocketState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(_, error) => {
                tracing::error!(%error, "a channel crashed");
                state.socket.core.metrics.crashes.get_or_create(&[("kind", "join")]).inc();
            }
            SupervisionEvent::ActorTerminated(..) => {}
            _ => return Ok(()),
        }
        let mut awake = state.socket.awake.lock();
        awake.joins -= 1;
        if awake.joins == 0 {
            awake.actor = None;
            state.asleep = true;
            myself.stop(None);
        }
        Ok(())
    }
}

/// A join that waits: its turn, and those that come behind it.
struct AwakeJoin;

struct Waiting {
    socket: Arc<Socket>,
    join: Arc<JoinActor>,
    turn: Option<Turn>,
    done: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // It crashed, or was ended from above.
        if !self.done {
            self.socket.join_crashed(&self.join);
        }
    }
}

impl Actor for AwakeJoin {
    type Msg = Wake;
    type State = Waiting;
    type Arguments = Waiting;

    async fn pre_start(
        &self,
        _myself: ActorRef<Wake>,
        waiting: Waiting,
    ) -> Result<Waiting, ActorProcessingErr> {
        Ok(waiting)
    }

    /// Here and not in `pre_start`, because a crash here is supervised.
    async fn post_start(
        &self,
        myself: ActorRef<Wake>,
        waiting: &mut Waiting,
    ) -> Result<(), ActorProcessingErr> {
        while let Some(turn) = waiting.turn.take() {
            let channel = turn.await;
            waiting.turn = waiting.join.next_turn(&waiting.socket, channel);
        }
        waiting.done = true;
        myself.stop(None);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Wake>,
        _event: SupervisionEvent,
        _waiting: &mut Waiting,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

impl Socket {
    /// Gives a join a task, in which its turn goes on.
    pub(super) fn stay_awake(self: &Arc<Self>, join: &Arc<JoinActor>, turn: Turn) {
        let waiting = Waiting { socket: self.clone(), join: join.clone(), turn: Some(turn), done: false };
        let mut awake = self.awake.lock();
        let Some(supervisor) = awake.actor.clone().or_else(|| self.core.sockets.spawn(self.clone())) else {
            drop(awake);
            // The node is going away, and the join with it.
            drop(waiting);
            return;
        };
        awake.actor = Some(supervisor.clone());
        // The lock is held until it is counted, so that the supervisor does not fall asleep in between.
        if ActorRuntime::spawn_linked_instant(None, AwakeJoin, waiting, supervisor).is_ok() {
            awake.joins += 1;
        }
    }

    /// A join has crashed: its client is told, and nobody else notices.
    pub(super) fn join_crashed(&self, join: &JoinActor) {
        let waiting = join.crash();
        let is_joined = self.forget(join.outlet.id()).is_some();
        if join.outlet.is_pending() {
            let reference = join.outlet.push_ref().clone();
            join.outlet.refuse(&reference, &Refusal::new(ErrorCode::JoinCrashed).response());
        } else if is_joined {
            join.outlet.fail(ErrorCode::ChannelCrash.reason());
        } else {
            // It was replaced or is being left: its end is told with that.
            join.outlet.silence();
        }
        for message in waiting {
            if let JoinMessage::Leave { refs: (join_ref, reference), permit: _until_answered } = message {
                self.answer_leave((&join_ref, &reference), Some(join.outlet.topic()));
            }
        }
    }
}

/// The awake sockets of a node: one that crashes closes its connection, and its client comes back.
pub struct Sockets(Brood);

impl Sockets {
    /// Without an actor yet.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self(Brood::new("sockets", "socket", metrics))
    }

    /// How its actor is started.
    #[must_use]
    pub fn child(&self) -> ChildSpec {
        self.0.child()
    }

    fn spawn(&self, socket: Arc<Socket>) -> Option<ActorCell> {
        let (actor, _) =
            ActorRuntime::spawn_linked_instant(None, SocketActor, socket, self.0.supervisor()?).ok()?;
        Some(actor.get_cell())
    }
}
