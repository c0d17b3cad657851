//! How a negotiation begins (R134).

use super::{Negotiation, Party, Settings, Side, Status, check_amount, verify};
use crate::agent::check_other;
use crate::error_code::{ErrorCode, Refusal};
use crate::ids::{NegotiationId, TaskId};
use crate::json::Json;
use crate::limits::Limits;
use crate::money::Amount;
use crate::signing::statement::Digest;
use crate::time::Timestamp;

/// What a negotiation begins with.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Its name.
    pub id: NegotiationId,
    /// See [`Negotiation::listed_as`].
    pub listed_as: NegotiationId,
    /// Who wants something done.
    pub client: Party,
    /// Who would do it.
    pub provider: Party,
    /// Who makes the first proposal.
    pub by: Side,
    /// What it is about.
    pub task: Option<TaskId>,
    /// The provider's.
    pub base_price: Amount,
    /// What else is proposed; `{}` when absent.
    pub terms: Option<Json>,
    /// The first proposal.
    pub amount: Amount,
    /// Its signature: it cannot be accepted without (R134).
    pub signature: Option<String>,
}

fn read_terms(terms: Option<Json>, limits: &Limits) -> Result<(Json, Digest), Refusal> {
    let terms = terms.unwrap_or_else(Json::empty_object);
    let refuse = |message: String| Refusal::field(ErrorCode::InvalidPayload, "terms", message);
    if !terms.as_bytes().starts_with(b"{") {
        return Err(refuse("an object".into()));
    }
    let bytes_max = limits.negotiation_terms_bytes_max;
    if terms.as_bytes().len() > bytes_max {
        return Err(refuse(format!("at most {bytes_max} bytes of JSON")));
    }
    let digest =
        Digest::of_json(&terms).map_err(|refusal| Refusal { field: Some("terms".into()), ..refusal })?;
    Ok((terms, digest))
}

impl Opening {
    /// Begins it, with the first proposal as round 1.
    ///
    /// # Errors
    /// The two sides are one; terms that do not fit; `amount_exceeds_maximum`; and of a proposal that is signed,
    /// `no_public_key` and `invalid_signature`.
    pub fn open(self, settings: &Settings, limits: &Limits, now: Timestamp) -> Result<Negotiation, Refusal> {
        check_other(self.client.agent, (self.provider.agent, "to_agent_id"))?;
        let (terms, terms_sha256) = read_terms(self.terms, limits)?;
        check_amount(self.amount, self.base_price)?;
        let mut negotiation = Negotiation {
            id: self.id,
            listed_as: self.listed_as,
            version: 1,
            client: self.client,
            provider: self.provider,
            opened_by: self.by,
            task: self.task,
            base_price: self.base_price,
            terms,
            terms_sha256,
            offers: Vec::new(),
            status: Status::Open,
            created_at: now,
            expires_at: now.plus_ms(settings.timeout_ms),
            updated_at: now,
            ended_by: None,
            reason: None,
            agreement: None,
        };
        let statement = negotiation.next_statement(self.by, self.amount);
        if self.signature.is_some() {
            verify(negotiation.party(self.by).key, &statement, self.signature.as_deref())?;
        }
        negotiation.add_offer(self.by, (self.amount, self.signature, statement), now);
        Ok(negotiation)
    }
}
