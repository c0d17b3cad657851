//! What agents send to negotiate, over REST and on the channel alike.

use serde::Deserialize;

use super::{Command, check_reason};
use crate::agent::Agent;
use crate::error_code::{ErrorCode, Refusal};
use crate::ids::{AgentId, AgreementId, NegotiationId, TaskId};
use crate::json::Json;
use crate::limits::Limits;
use crate::money::Amount;

/// Begins a negotiation (R134).
#[derive(Clone, Debug, Deserialize, utoipa::ToSchema)]
#[schema(as = NegotiationRequest)]
pub struct OpenRequest {
    /// With whom. Without a task the caller is the client and this one the provider.
    #[serde(default)]
    pub to_agent_id: Option<AgentId>,
    /// The same by another name.
    #[serde(default)]
    pub provider_agent_id: Option<AgentId>,
    /// The first proposal: round 1.
    pub amount: Amount,
    /// What else is proposed: an object; `{}` when absent.
    #[serde(default)]
    pub terms: Option<Json>,
    /// A task between the two, which then says who is client and who provider.
    #[serde(default)]
    pub task_id: Option<TaskId>,
    /// A UUID of the caller's choice that nobody has used: the first proposal can be signed only if it is known before.
    #[serde(default)]
    pub session_id: Option<String>,
    /// Of the first proposal. Without one it counts, but cannot be accepted.
    #[serde(default)]
    pub signature: Option<String>,
}

impl OpenRequest {
    /// With whom, if it says so.
    ///
    /// # Errors
    /// It names two.
    pub fn other(&self) -> Result<Option<AgentId>, Refusal> {
        match (self.to_agent_id, self.provider_agent_id) {
            (Some(to), Some(provider)) if to != provider => {
                let message = "not the same as to_agent_id, and both name the other side";
                Err(Refusal::field(ErrorCode::InvalidPayload, "provider_agent_id", message))
            }
            (to, provider) => Ok(to.or(provider)),
        }
    }

    /// The name it is to have, if the caller has chosen one.
    ///
    /// # Errors
    /// It is no UUID in its canonical form, or there is a signature without it.
    pub fn chosen_id(&self) -> Result<Option<NegotiationId>, Refusal> {
        let refuse = |message| Refusal::field(ErrorCode::InvalidPayload, "session_id", message);
        match &self.session_id {
            Some(text) => match text.parse() {
                Ok(id) => Ok(Some(id)),
                Err(_) => Err(refuse("a UUID, hyphenated and in lower case")),
            },
            None if self.signature.is_some() => Err(refuse("is missing: it is in what is signed")),
            None => Ok(None),
        }
    }
}

/// Makes an offer (R81, R135).
#[derive(Clone, Debug, Deserialize, utoipa::ToSchema)]
pub struct OfferRequest {
    /// How much.
    pub amount: Amount,
    /// Of the statement `negotiation.offer`: 64 bytes as base64, base64url or hex.
    #[serde(default)]
    pub signature: Option<String>,
}

impl OfferRequest {
    /// As an agent's command.
    #[must_use]
    pub fn command(self, agent: &Agent) -> Command {
        let Self { amount, signature } = self;
        Command::Offer { by: agent.id, amount, signature, key: agent.public_key }
    }
}

/// Accepts (R87, R135).
#[derive(Clone, Debug, Deserialize, utoipa::ToSchema)]
pub struct AcceptRequest {
    /// The mean of both sides' latest offers; taken as that when absent.
    #[serde(default)]
    pub amount: Option<Amount>,
    /// Of the statement `negotiation.accept`: 64 bytes as base64, base64url or hex.
    #[serde(default)]
    pub signature: Option<String>,
}

impl AcceptRequest {
    /// As an agent's command; the agreement will have that id.
    #[must_use]
    pub fn command(self, agent: &Agent, agreement: AgreementId) -> Command {
        let Self { amount, signature } = self;
        Command::Accept { by: agent.id, amount, signature, key: agent.public_key, agreement }
    }
}

/// Ends it without an agreement (R90, R135).
#[derive(Clone, Debug, Deserialize, utoipa::ToSchema)]
pub struct RejectRequest {
    /// Why, for the other side.
    #[serde(default)]
    pub reason: Option<String>,
}

impl RejectRequest {
    /// As an agent's command.
    ///
    /// # Errors
    /// The reason is too long.
    pub fn command(self, agent: &Agent, limits: &Limits) -> Result<Command, Refusal> {
        check_reason(self.reason.as_deref(), limits)?;
        Ok(Command::Reject { by: agent.id, reason: self.reason })
    }
}
