//! The actor of one joined topic: it joins, handles pushes one after another, and leaves.

use std::sync::Arc;

use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::json::Json;
use muster_protocol::phoenix::Ref;
use muster_protocol::phoenix::encode::Status;
use muster_protocol::topic::Topic;
use ractor::{Actor, ActorProcessingErr, ActorRef, Message, SupervisionEvent};
use smol_str::SmolStr;
use tokio::sync::oneshot;

use super::{InFlight, OwnedPayload, Socket};
use crate::channels::{Answer, Channel};
use crate::egress::Outlet;

/// What a join is told.
pub enum JoinMessage {
    /// The client pushes an event.
    Push {
        /// Its name.
        event: SmolStr,
        /// Its payload.
        payload: OwnedPayload,
        /// What the reply must echo.
        reference: Ref,
        /// Its place among the messages in work.
        permit: InFlight,
    },
    /// The client leaves.
    Leave {
        /// `join_ref` and `ref`, which the reply must echo.
        refs: (Ref, Ref),
        /// Its place among the messages in work.
        permit: InFlight,
    },
    /// Another join of the same topic waits for this one to be answered and gone.
    Replaced(oneshot::Sender<()>),
}

impl Message for JoinMessage {}

/// What a join is started with.
pub struct JoinArguments {
    /// Its connection.
    pub socket: Arc<Socket>,
    /// Its way out.
    pub outlet: Arc<Outlet>,
    /// What is joined.
    pub topic: Topic,
    /// Of the join message.
    pub payload: OwnedPayload,
    /// What the reply must echo.
    pub reference: Ref,
    /// Resolves once the join of the same topic that this one replaces has been answered.
    pub before: Option<oneshot::Receiver<()>>,
    /// Its place among the messages in work, until it is answered.
    pub permit: Option<InFlight>,
}

/// The actor.
pub struct JoinActor;

/// Its state.
pub struct JoinState {
    arguments: JoinArguments,
    /// Once joined, until left.
    channel: Option<Channel>,
}

impl Drop for JoinState {
    fn drop(&mut self) {
        self.arguments.socket.core.metrics.joins.dec();
    }
}

impl Actor for JoinActor {
    type Msg = JoinMessage;
    type State = JoinState;
    type Arguments = JoinArguments;

    async fn pre_start(
        &self,
        _myself: ActorRef<JoinMessage>,
        arguments: JoinArguments,
    ) -> Result<JoinState, ActorProcessingErr> {
        arguments.socket.core.metrics.joins.inc();
        Ok(JoinState { arguments, channel: None })
    }

    /// Joins. Here and not in `pre_start`, because a crash here is supervised.
    async fn post_start(
        &self,
        myself: ActorRef<JoinMessage>,
        state: &mut JoinState,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(before) = state.arguments.before.take() {
            // It has crashed if it does not say so.
            let _answered = before.await;
        }
        let JoinArguments { socket, outlet, topic, payload, reference, .. } = &state.arguments;
        let joined = Channel::join(socket, outlet, *topic, payload, reference).await;
        let outcome = if joined.is_ok() { "ok" } else { "refused" };
        socket.core.metrics.joins_total.get_or_create(&[("outcome", outcome)]).inc();
        match joined {
            Ok(channel) => state.channel = Some(channel),
            Err(refusal) => {
                socket.forget(outlet.id());
                outlet.refuse(reference, &refusal.response());
                let _ending = myself.drain();
            }
        }
        state.arguments.permit = None;
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<JoinMessage>,
        message: JoinMessage,
        state: &mut JoinState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            JoinMessage::Push { event, payload, reference, permit } => {
                state.push(&event, payload, &reference).await;
                drop(permit);
            }
            JoinMessage::Leave { refs: (join_ref, reference), permit: _until_answered } => {
                let JoinArguments { socket, outlet, .. } = &state.arguments;
                if state.channel.is_none() {
                    // It came behind a refused join or another leave.
                    let empty = Json::empty_object();
                    socket.reply((&join_ref, &reference), Some(outlet.topic()), Status::Ok, &empty);
                    return Ok(());
                }
                socket.forget(outlet.id());
                outlet.leave(&reference);
                state.channel = None;
                let _ending = myself.drain();
            }
            JoinMessage::Replaced(replacing) => {
                state.arguments.outlet.silence();
                state.channel = None;
                let _ending = myself.drain();
                let _successor_gone = replacing.send(());
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<JoinMessage>,
        _event: SupervisionEvent,
        _state: &mut JoinState,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

impl JoinState {
    async fn push(&mut self, event: &str, payload: OwnedPayload, reference: &Ref) {
        let JoinArguments { socket, outlet, .. } = &self.arguments;
        let Some(channel) = &mut self.channel else {
            // It came behind a refused join or a leave: the topic is not joined.
            let response = Refusal::new(ErrorCode::UnmatchedTopic).response();
            socket.reply((&Ref::NULL, reference), Some(outlet.topic()), Status::Error, &response);
            return;
        };
        match channel.push(socket, outlet, event, payload, reference).await {
            Ok(Answer::Now(response)) => {
                outlet.reply(reference, Status::Ok, &response);
            }
            Ok(Answer::Later) => {}
            Err(refusal) => {
                outlet.reply(reference, Status::Error, &refusal.response());
            }
        }
    }
}
