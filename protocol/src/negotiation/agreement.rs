//! What a negotiation ends in: a record that a third party can check without this server (R89, R137, R139).
//!
//! Both latest offers and the acceptance stand in it with the very texts that were signed, and the server signs a text of
//! its own over all the rest, so that no field can be changed by whoever holds the record.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Negotiation, Offer};
use crate::error_code::{ErrorCode, Refusal};
use crate::ids::{AgentId, AgreementId, NegotiationId, TaskId};
use crate::json::Json;
use crate::money::Amount;
use crate::signing::statement::{self, Attested, Digest};
use crate::signing::{PublicKey, ServerKey, signature_bytes};
use crate::time::Timestamp;

/// An agreement as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// Its id.
    pub id: AgreementId,
    /// What it came of.
    pub session: NegotiationId,
    /// Who wants something done.
    pub client: AgentId,
    /// Who does it.
    pub provider: AgentId,
    /// When it was made.
    pub created_at: Timestamp,
    /// A [`Document`], which is never written anew.
    pub document: Json,
}

/// An offer that has become part of an agreement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedOffer {
    /// How much.
    pub amount: Amount,
    /// Which of its author's offers.
    pub own_offer_no: u32,
    /// As it was sent.
    pub signature: String,
    /// The text that was signed.
    pub statement: String,
}

/// The acceptance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Acceptance {
    /// Whose.
    pub agent_id: AgentId,
    /// As it was sent.
    pub signature: String,
    /// The text that was signed.
    pub statement: String,
}

/// An agreement as everybody sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Agreement)]
pub struct Document {
    /// Its id.
    pub id: AgreementId,
    /// The negotiation it came of.
    pub session_id: NegotiationId,
    /// What it is about, if that existed.
    pub task_id: Option<TaskId>,
    /// Who wants something done.
    pub client_agent_id: AgentId,
    /// Who does it.
    pub provider_agent_id: AgentId,
    /// The provider's, as it was at the start of the negotiation.
    pub base_price: Amount,
    /// What was agreed: the mean of the two offers, in micro-units rounded down.
    pub amount: Amount,
    /// What else was agreed.
    pub terms: Json,
    /// SHA-256 of the canonical form (RFC 8785) of the terms, hex.
    pub terms_sha256: String,
    /// The client's latest offer.
    pub client_offer: SignedOffer,
    /// The provider's latest offer.
    pub provider_offer: SignedOffer,
    /// Who accepted.
    pub accept: Acceptance,
    /// The keys of both, base64, by agent.
    pub public_keys: BTreeMap<AgentId, String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// The server's key, base64.
    pub server_key: String,
    /// The text that the server signed.
    pub server_statement: String,
    /// The server's signature, base64.
    pub server_signature: String,
}

impl Agreement {
    /// Makes the record, as the server attests it.
    ///
    /// # Errors
    /// `offers_incomplete`: a side has no key or no signed offer.
    pub(super) fn conclude(
        negotiation: &Negotiation,
        (client_offer, provider_offer): (&Offer, &Offer),
        (amount, accept): (Amount, Acceptance),
        (id, server): (AgreementId, &ServerKey),
        now: Timestamp,
    ) -> Result<Self, Refusal> {
        let incomplete = || Refusal::new(ErrorCode::OffersIncomplete);
        let signed = |offer: &Offer| {
            let signature = offer.signature.clone().ok_or_else(incomplete)?;
            let (amount, own_offer_no, statement) = (offer.amount, offer.offer_no, offer.statement.clone());
            Ok::<_, Refusal>(SignedOffer { amount, own_offer_no, signature, statement })
        };
        let mut public_keys = BTreeMap::new();
        for party in [negotiation.client, negotiation.provider] {
            public_keys.insert(party.agent, party.key.ok_or_else(incomplete)?.to_base64());
        }
        let mut document = Document {
            id,
            session_id: negotiation.id,
            task_id: negotiation.task,
            client_agent_id: negotiation.client.agent,
            provider_agent_id: negotiation.provider.agent,
            base_price: negotiation.base_price,
            amount,
            terms: negotiation.terms.clone(),
            terms_sha256: negotiation.terms_sha256.to_string(),
            client_offer: signed(client_offer)?,
            provider_offer: signed(provider_offer)?,
            accept,
            public_keys,
            created_at: now,
            server_key: server.public().to_base64(),
            server_statement: String::new(),
            server_signature: String::new(),
        };
        document.server_statement = document.attested().map_err(Refusal::invalid)?;
        document.server_signature = server.sign(&document.server_statement);
        Ok(Self {
            id,
            session: negotiation.id,
            client: document.client_agent_id,
            provider: document.provider_agent_id,
            created_at: now,
            document: Json::of(&document),
        })
    }
}

/// Why an agreement does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub String);

impl Document {
    fn key(&self, agent: AgentId) -> Result<PublicKey, String> {
        let text =
            self.public_keys.get(&agent).ok_or_else(|| format!("there is no public key of {agent}"))?;
        PublicKey::parse(text).map_err(|_| format!("the public key of {agent} is none"))
    }

    fn terms_digest(&self) -> Result<Digest, String> {
        Digest::parse(&self.terms_sha256).ok_or_else(|| "terms_sha256 is no SHA-256".to_owned())
    }

    /// What the server signs.
    fn attested(&self) -> Result<String, String> {
        let digest = |what: &str, signature: &str| {
            let bytes = signature_bytes(signature).ok_or_else(|| format!("{what} has no signature"))?;
            Ok::<_, String>(Digest::of(&bytes))
        };
        let attested = Attested {
            agreement: &self.id,
            session: &self.session_id,
            task: self.task_id.as_ref().map(|task| task as &dyn std::fmt::Display),
            client: (&self.client_agent_id, &self.key(self.client_agent_id)?),
            provider: (&self.provider_agent_id, &self.key(self.provider_agent_id)?),
            base_price: self.base_price,
            amount: self.amount,
            terms: self.terms_digest()?,
            signatures: [
                digest("client_offer", &self.client_offer.signature)?,
                digest("provider_offer", &self.provider_offer.signature)?,
                digest("accept", &self.accept.signature)?,
            ],
            created_at: self.created_at,
        };
        Ok(attested.statement())
    }

    /// Checks everything that can be checked without the server: gives what holds, in sentences. `pinned` is the server's
    /// key, if the reader knows it.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(&self, pinned: Option<&PublicKey>) -> Result<Vec<String>, Broken> {
        self.check(pinned).map_err(Broken)
    }

    fn check(&self, pinned: Option<&PublicKey>) -> Result<Vec<String>, String> {
        let (client, provider) = (self.client_agent_id, self.provider_agent_id);
        if client == provider {
            return Err("client and provider are one agent".into());
        }
        if self.public_keys.len() != 2 {
            return Err("there are public keys of others".into());
        }
        let terms = self.terms_digest()?;
        if Digest::of_json(&self.terms).ok() != Some(terms) {
            return Err("terms_sha256 is not that of the terms".into());
        }
        let offered = (self.client_offer.amount, self.provider_offer.amount);
        for (what, agent, offer) in
            [("client_offer", client, &self.client_offer), ("provider_offer", provider, &self.provider_offer)]
        {
            let text = statement::offer(&self.session_id, &agent, offer.own_offer_no, offer.amount, terms);
            same_text(what, &offer.statement, &text)?;
            signed(what, &self.key(agent)?, &text, &offer.signature)?;
            if offer.amount > self.base_price.doubled() {
                return Err(format!("{what} is above twice the base price"));
            }
        }
        if self.amount != offered.0.mean(offered.1) {
            return Err("the amount is not the mean of the two offers".into());
        }
        let accepter = self.accept.agent_id;
        if accepter != client && accepter != provider {
            return Err("who accepted is neither client nor provider".into());
        }
        let text = statement::accept(&self.session_id, &accepter, self.amount, offered, terms);
        same_text("accept", &self.accept.statement, &text)?;
        signed("accept", &self.key(accepter)?, &text, &self.accept.signature)?;
        let server = PublicKey::parse(&self.server_key).map_err(|_| "server_key is no key".to_owned())?;
        if pinned.is_some_and(|pinned| *pinned != server) {
            return Err("it was signed by another server".into());
        }
        let text = self.attested()?;
        same_text("server_statement", &self.server_statement, &text)?;
        signed("the server's statement", &server, &text, &self.server_signature)?;
        let role = if accepter == client { "client" } else { "provider" };
        Ok(vec![
            format!("the terms have the SHA-256 {terms}"),
            format!("client {client} offered {} and signed it", offered.0),
            format!("provider {provider} offered {} and signed it", offered.1),
            format!("neither is above twice the base price of {}", self.base_price),
            format!("the amount {} is the mean of the two", self.amount),
            format!("the {role} accepted and signed it"),
            match pinned {
                Some(_) => "the server you named signed all of it".to_owned(),
                None => format!("a server signed all of it: {}", server.to_base64()),
            },
        ])
    }
}

fn same_text(what: &str, stored: &str, rebuilt: &str) -> Result<(), String> {
    if stored == rebuilt {
        Ok(())
    } else {
        Err(format!("{what}: the statement does not say what the fields say"))
    }
}

fn signed(what: &str, key: &PublicKey, text: &str, signature: &str) -> Result<(), String> {
    key.verify(text, signature).map_err(|_| format!("{what}: the signature does not match"))
}

/// Reads an agreement, bare or as `data` of an answer of the API.
///
/// # Errors
/// It is no such document.
pub fn read(text: &str) -> Result<Document, Broken> {
    #[derive(Deserialize)]
    struct Envelope {
        data: Document,
    }
    let broken = |error: serde_json::Error| Broken(format!("not an agreement: {error}"));
    let fields: BTreeMap<String, Json> = serde_json::from_str(text).map_err(broken)?;
    if fields.contains_key("data") {
        return serde_json::from_str::<Envelope>(text).map(|envelope| envelope.data).map_err(broken);
    }
    serde_json::from_str(text).map_err(broken)
}
