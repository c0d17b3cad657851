//! `messages:<agent id>`: messages from other agents, and what becomes of one's own (agrenting.md N).

use std::sync::Arc;

use muster_protocol::account::Scope;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, MessageId};
use muster_protocol::json::{Json, read_object};
use muster_protocol::message::{MessageRequest, Receipt, Verdict};
use muster_protocol::phoenix::Ref;
use muster_protocol::topic::event;
use serde::Deserialize;

use super::{Answer, require_write};
use crate::egress::Outlet;
use crate::mailbox::Membership;
use crate::messages::{Waiter, status_of};
use crate::pubsub::Subscription;
use crate::socket::{OwnedPayload, Socket};

/// What the join holds on to.
pub struct MessagesChannel {
    agent: AgentId,
    _membership: Membership,
    _subscription: Subscription,
}

#[derive(Deserialize)]
struct Named {
    message_id: MessageId,
    #[serde(default)]
    reason: Option<String>,
}

impl MessagesChannel {
    pub(super) async fn join(
        socket: &Arc<Socket>,
        outlet: &Arc<Outlet>,
        agent: AgentId,
        reference: &Ref,
    ) -> Result<Self, Refusal> {
        let core = &socket.core;
        // To be given messages is to take them from the queue.
        require_write(socket)?;
        // First the others know that this node is to be told; then what waits is asked for.
        let subscription = core.pubsub.subscribe(outlet.topic(), outlet).await;
        let membership = core.mailboxes.join(agent, outlet, socket.heard_at_ms()).await?;
        outlet.open(reference, &Json::empty_object());
        Ok(Self { agent, _membership: membership, _subscription: subscription })
    }

    pub(super) async fn push(
        &mut self,
        socket: &Arc<Socket>,
        outlet: &Arc<Outlet>,
        name: &str,
        payload: &OwnedPayload,
        reference: &Ref,
    ) -> Result<Answer, Refusal> {
        let messages = &socket.core.messages;
        let verdict = match name {
            event::SEND_MESSAGE => {
                let request: MessageRequest = read_object(payload.json()?.as_str())?;
                let response = |receipt: &Receipt| Json::of(receipt);
                let waiter = Waiter::push(outlet.clone(), reference.clone(), response);
                messages.send(&socket.principal, request, None, waiter).await;
                return Ok(Answer::Later);
            }
            event::ACKNOWLEDGE => Verdict::Acknowledged,
            event::REJECT => Verdict::Rejected(None),
            _ => return Err(ErrorCode::UnknownEvent.into()),
        };
        socket.principal.require(Scope::Write)?;
        let Named { message_id, reason } = read_object(payload.json()?.as_str())?;
        let verdict = match verdict {
            Verdict::Acknowledged => Verdict::Acknowledged,
            Verdict::Rejected(_) => Verdict::rejected(reason, &socket.core.limits)?,
        };
        let waiter = Waiter::push(outlet.clone(), reference.clone(), status_of);
        messages.settle(self.agent, message_id, verdict, waiter).await;
        Ok(Answer::Later)
    }
}
