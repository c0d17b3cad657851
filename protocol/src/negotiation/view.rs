//! A negotiation as its parties see it (R80).

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Negotiation, Offer, Party, Status};
use crate::ids::{AgentId, AgreementId, NegotiationId, TaskId};
use crate::json::Json;
use crate::money::Amount;
use crate::signing::PublicKey;
use crate::time::Timestamp;

impl Negotiation {
    /// As its parties see it (R80).
    #[must_use]
    pub fn view(&self, now: Timestamp) -> View<'_> {
        let key = |party: &Party| (party.agent, party.key.as_ref().map(PublicKey::to_base64));
        View {
            id: self.id,
            status: self.status_at(now),
            round: self.offers.len(),
            client_agent_id: self.client.agent,
            provider_agent_id: self.provider.agent,
            opened_by: self.party(self.opened_by).agent,
            task_id: self.task,
            base_price: self.base_price,
            max_amount: self.base_price.doubled(),
            terms: &self.terms,
            terms_sha256: self.terms_sha256.to_string(),
            offers: &self.offers,
            public_keys: BTreeMap::from([key(&self.client), key(&self.provider)]),
            ended_by: self.ended_by,
            reason: self.reason.as_deref(),
            agreement_id: self.agreement,
            created_at: self.created_at,
            updated_at: self.updated_at,
            expires_at: self.expires_at,
        }
    }
}

/// A negotiation as its parties see it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Negotiation)]
pub struct View<'a> {
    /// Its id.
    pub id: NegotiationId,
    /// Where it stands.
    pub status: Status,
    /// Offers so far.
    pub round: usize,
    /// Who wants something done.
    pub client_agent_id: AgentId,
    /// Who would do it.
    pub provider_agent_id: AgentId,
    /// Who made the first proposal.
    pub opened_by: AgentId,
    /// What it is about, if that exists already.
    pub task_id: Option<TaskId>,
    /// The provider's, as it was at the start.
    pub base_price: Amount,
    /// Most that can be offered: twice the base price.
    pub max_amount: Amount,
    /// What else is agreed.
    pub terms: &'a Json,
    /// SHA-256 of the canonical form (RFC 8785) of the terms, hex: it is in what is signed.
    pub terms_sha256: String,
    /// All offers, in order.
    pub offers: &'a [Offer],
    /// By which each side's signatures are verified, base64, by agent.
    pub public_keys: BTreeMap<AgentId, Option<String>>,
    /// Who rejected or accepted.
    pub ended_by: Option<AgentId>,
    /// Why it was rejected.
    pub reason: Option<&'a str>,
    /// What it has ended in.
    pub agreement_id: Option<AgreementId>,
    /// When it began.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
    /// When it is over if nobody ends it before.
    pub expires_at: Timestamp,
}
