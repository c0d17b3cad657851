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
