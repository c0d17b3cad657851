//! How a node behaves where more than one way is right. Bounds are in `muster_protocol::limits`.

use serde::{Deserialize, Serialize};

/// When a producer gets its acknowledgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acknowledge {
    /// When the chunk would survive a power cut.
    #[default]
    Durable,
    /// When it is in memory and on its way to the readers.
    Memory,
}

/// Settings of the ledger, under `[ledger]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LedgerSettings {
    /// What amounts are in: shown with balances, and nothing else.
    pub currency: String,
    /// The platform's part of what is released to a provider, in hundredths of a percent; at most 10000.
    pub platform_fee_bps: u16,
    /// Whether every task with a price needs that much in its client's account. When false, a client agent that never had
    /// an account here settles prices elsewhere, and nothing is held.
    pub required: bool,
}

impl Default for LedgerSettings {
    fn default() -> Self {
        Self { currency: "USD".into(), platform_fee_bps: 0, required: false }
    }
}

/// Settings of streams, under `[stream]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamSettings {
    /// When a producer gets its acknowledgement: `durable` or `memory`.
    /// Readers of a cluster have a chunk once it is durable all the same.
    #[serde(rename = "ack")]
    pub acknowledge: Acknowledge,
    /// How long a finished stream stays in memory for late joiners, in milliseconds.
    pub finished_replay_ms: u64,
    /// How long a stream without readers and producers stays in memory, in milliseconds.
    pub idle_unload_ms: u64,
    /// How long the store keeps the chunks of a task that has ended, in milliseconds.
    pub retention_ms: u64,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self {
            acknowledge: Acknowledge::Durable,
            finished_replay_ms: 600_000,
            idle_unload_ms: 60_000,
            retention_ms: 86_400_000,
        }
    }
}
