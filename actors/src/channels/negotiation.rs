//! `negotiation:<id>`: what two agents offer each other (agrenting.md K). The other side is told of an offer, both of the
//! end.

use std::sync::Arc;

use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::NegotiationId;
use muster_protocol::join_rules::may_join_between;
use muster_protocol::json::{Json, read_object};
use muster_protocol::negotiation::request::{AcceptRequest, OfferRequest, RejectRequest};
use muster_protocol::phoenix::Ref;
use muster_protocol::topic::event;
use serde_json::json;

use super::{Answer, current_agent, require_write};
use crate::egress::Outlet;
use crate::negotiations::{completed, session, side_topic};
use crate::pubsub::Subscription;
use crate::socket::{OwnedPayload, Socket};

/// What the join holds on to.
pub struct NegotiationChannel {
    id: NegotiationId,
    _subscription: Subscription,
}

impl NegotiationChannel {
    pub(super) async fn join(
        socket: &Arc<Socket>,
        outlet: &Arc<Outlet>,
        id: NegotiationId,
        reference: &Ref,
    ) -> Result<Self, Refusal> {
        let core = &socket.core;
        let found = match core.negotiations.read(id).await {
            Ok(found) => Some(found),
            Err(refusal) if refusal.code == ErrorCode::NotFound => None,
            Err(refusal) => return Err(refusal),
        };
        let parties = found.as_ref().map(|found| [found.client.agent, found.provider.agent]);
        may_join_between(&socket.principal, parties)?;
        let side = |agent| found.as_ref().and_then(|found| found.side_of(agent));
        let side = socket.principal.agent.and_then(side).ok_or(ErrorCode::Unauthorized)?;
        let subscription = core.pubsub.subscribe(&side_topic(id, side), outlet).await;
        // Read once more: what has happened before the subscription stands in it, what happens from now on is told.
        let negotiation = core.negotiations.read(id).await?;
        outlet.open(reference, &session(&negotiation, core.environment.now()));
        Ok(Self { id, _subscription: subscription })
    }

    pub(super) async fn push(
        &self,
        socket: &Socket,
        name: &str,
        payload: &OwnedPayload,
    ) -> Result<Answer, Refusal> {
        if ![event::OFFER, event::ACCEPT, event::REJECT].contains(&name) {
            return Err(ErrorCode::UnknownEvent.into());
        }
        require_write(socket)?;
        socket.take_signed_event()?;
        let payload = payload.json()?.as_str();
        let agent = current_agent(socket).await?;
        let core = &socket.core;
        let command = match name {
            event::OFFER => read_object::<OfferRequest>(payload)?.command(&agent),
            event::ACCEPT => {
                read_object::<AcceptRequest>(payload)?.command(&agent, core.negotiations.agreement_id())
            }
            _ => read_object::<RejectRequest>(payload)?.command(&agent, &core.limits)?,
        };
        let outcome = core.negotiations.ask(self.id, command).await?;
        let negotiation = &outcome.negotiation;
        let response = match (name, &outcome.agreement, negotiation.offers.last()) {
            (_, Some(agreement), _) => completed(negotiation, agreement),
            (event::OFFER, None, Some(offer)) => Json::of(offer),
            _ => Json::of(&json!({ "session_id": negotiation.id, "status": negotiation.status })),
        };
        Ok(Answer::Now(response))
    }
}
