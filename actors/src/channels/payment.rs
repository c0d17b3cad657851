//! `payment:<id>`: a payment channel, for its two agents (agrenting.md L).

use std::sync::Arc;

use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, PaymentChannelId};
use muster_protocol::join_rules;
use muster_protocol::json::{Json, read_object};
use muster_protocol::payment_channel::ChannelView;
use muster_protocol::payment_channel::machine::Action;
use muster_protocol::phoenix::Ref;
use muster_protocol::topic::{event, part, payment_topic};
use serde::Serialize;

use super::{Answer, require_write};
use crate::egress::Outlet;
use crate::pubsub::Subscription;
use crate::socket::{OwnedPayload, Socket};

/// What the join holds on to.
pub struct PaymentChannel {
    id: PaymentChannelId,
    agent: AgentId,
    _subscription: Subscription,
}

impl PaymentChannel {
    pub(super) async fn join(
        socket: &Arc<Socket>,
        outlet: &Arc<Outlet>,
        id: PaymentChannelId,
        reference: &Ref,
    ) -> Result<Self, Refusal> {
        let payments = &socket.core.payments;
        join_rules::may_join_between(&socket.principal, payments.sides(id).await?)?;
        let agent = socket.principal.acting_agent()?;
        // First this, so that nothing happens between what the reply says and the first event.
        let side = part(&payment_topic(id), &agent.to_string());
        let subscription = socket.core.pubsub.subscribe(&side, outlet).await;
        #[derive(Serialize)]
        struct Joined<'a> {
            channel: ChannelView<'a>,
        }
        let channel = payments.of_party(id, agent).await?;
        outlet.open(reference, &Json::of(&Joined { channel: channel.view() }));
        Ok(Self { id, agent, _subscription: subscription })
    }

    pub(super) async fn push(
        &mut self,
        socket: &Arc<Socket>,
        name: &str,
        payload: &OwnedPayload,
    ) -> Result<Answer, Refusal> {
        let action = match name {
            event::PROPOSE_TRANSFER => Action::Propose(read_object(payload.json()?.as_str())?),
            event::ACKNOWLEDGE_TRANSFER => Action::Acknowledge(read_object(payload.json()?.as_str())?),
            event::REJECT_TRANSFER => Action::Reject(read_object(payload.json()?.as_str())?),
            event::DISPUTE => Action::Dispute(read_object(payload.json()?.as_str())?),
            event::CLOSE => Action::Close(read_object(payload.json()?.as_str())?),
            _ => return Err(ErrorCode::UnknownEvent.into()),
        };
        require_write(socket)?;
        socket.take_signed_event()?;
        socket.core.payments.act(self.id, self.agent, action).await.map(Answer::Now)
    }
}
