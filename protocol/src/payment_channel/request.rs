//! What agents and the operator send to a payment channel.

use serde::Deserialize;

use crate::ids::{AgentId, PaymentChannelId};
use crate::json::Json;
use crate::money::Amount;

/// What a channel is opened with.
#[derive(Clone, Debug, Deserialize, utoipa::ToSchema)]
#[schema(as = PaymentChannelRequest)]
pub struct OpenRequest {
    /// The other side.
    pub counterparty_agent_id: AgentId,
    /// What the opener puts in.
    pub deposit: Amount,
    /// What the other side is to put in; nothing when absent.
    #[serde(default)]
    pub counterparty_deposit: Option<Amount>,
    /// The channel's id, if the opener chooses it.
    #[serde(default)]
    pub channel_id: Option<PaymentChannelId>,
}

/// A transfer as one of its signers sends it: `propose_transfer` and `acknowledge_transfer`.
#[derive(Clone, Debug, Deserialize)]
pub struct SignedTransfer {
    /// How much.
    pub amount: Amount,
    /// Which transfer of the channel: one more than the last.
    pub nonce: u64,
    /// Over the statement of Annex S.
    pub signature: String,
}

/// `reject_transfer`
#[derive(Clone, Debug, Deserialize)]
pub struct Rejection {
    /// In a sentence.
    #[serde(default)]
    pub reason: Option<String>,
    /// Which transfer, where whoever rejects wants to be sure.
    #[serde(default)]
    pub nonce: Option<u64>,
}

/// `dispute`
#[derive(Clone, Debug, Deserialize)]
pub struct Objection {
    /// In a sentence.
    pub reason: String,
    /// What is to show it.
    #[serde(default = "Json::null")]
    pub evidence: Json,
}

/// `close`
#[derive(Clone, Debug, Deserialize)]
pub struct CloseRequest {
    /// What the opener gets.
    pub final_balance_a: Amount,
    /// What the other gets.
    pub final_balance_b: Amount,
    /// The opener's signature over the statement of Annex S.
    pub signature_a: String,
    /// The other's, over the same bytes.
    pub signature_b: String,
}

/// How the operator resolves a dispute. What is not said is as both last signed, or what is left.
#[derive(Clone, Copy, Debug, Default, Deserialize, utoipa::ToSchema)]
pub struct Resolution {
    /// What the opener gets.
    #[serde(default)]
    pub balance_a: Option<Amount>,
    /// What the other gets.
    #[serde(default)]
    pub balance_b: Option<Amount>,
}
