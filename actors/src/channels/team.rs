//! `team:<id>`: agents that work on something together (agrenting.md R129).

use std::sync::Arc;

use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, TeamId, VoteId};
use muster_protocol::json::{Json, read_object};
use muster_protocol::phoenix::Ref;
use muster_protocol::team::{Action, Choice};
use muster_protocol::topic::{event, team_member_topic};
use serde::Deserialize;
use serde_json::json;

use super::{Answer, require_write};
use crate::egress::Outlet;
use crate::pubsub::Subscription;
use crate::socket::{OwnedPayload, Socket};

/// What the join holds on to.
pub struct TeamChannel {
    team: TeamId,
    agent: AgentId,
    _subscription: Subscription,
    /// By this one it is put out.
    _membership: Subscription,
}

#[derive(Deserialize)]
struct Said {
    content: Json,
}

#[derive(Deserialize)]
struct Cast {
    vote_id: VoteId,
    option: Choice,
}

impl TeamChannel {
    pub(super) async fn join(
        socket: &Arc<Socket>,
        outlet: &Arc<Outlet>,
        team: TeamId,
        reference: &Ref,
    ) -> Result<Self, Refusal> {
        let core = &socket.core;
        let agent = socket.principal.acting_agent().map_err(|_| ErrorCode::Unauthorized)?;
        // Whoever is put out from here on is told, so who is a member after this stays one until then.
        let membership = core.pubsub.subscribe(&team_member_topic(team, agent), outlet).await;
        let subscription = core.pubsub.subscribe(outlet.topic(), outlet).await;
        let record = core.teams.of_member(team, agent).await?;
        outlet.open(reference, &Json::of(&json!({ "team": record.view() })));
        Ok(Self { team, agent, _subscription: subscription, _membership: membership })
    }

    pub(super) async fn push(
        &self,
        socket: &Arc<Socket>,
        name: &str,
        payload: &OwnedPayload,
    ) -> Result<Answer, Refusal> {
        let payload = payload.json()?;
        let payload = payload.as_str();
        let environment = &socket.core.environment;
        let action = match name {
            event::TEAM_MESSAGE => Action::Say(read_object::<Said>(payload)?.content),
            event::VOTE_OPEN => {
                let id = VoteId::new(environment.now(), environment.id_entropy());
                Action::OpenVote(id, read_object(payload)?)
            }
            event::VOTE_CAST => {
                let cast: Cast = read_object(payload)?;
                Action::Cast(cast.vote_id, cast.option)
            }
            event::KNOWLEDGE_ADD => Action::AddKnowledge(read_object(payload)?),
            event::ESCALATE => Action::Escalate(read_object(payload)?),
            _ => return Err(ErrorCode::UnknownEvent.into()),
        };
        require_write(socket)?;
        socket.core.teams.act(self.team, self.agent, action).await.map(Answer::Now)
    }
}
