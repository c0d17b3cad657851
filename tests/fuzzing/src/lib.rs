//! What must hold of every parser of bytes that others send, whatever the bytes are.
//!
//! Each target is a function over bytes that panics when something does not hold. The fuzzer (`tests/fuzz`, by
//! `scripts/fuzz`) looks for such bytes; the ordinary tests run every file of the corpora through the same functions.
//! A new parser gets a target here, an entry in [`TARGETS`], a binary in `tests/fuzz` and a corpus.
//!
//! # Layout
//! * [`frames`]: WebSocket; [`phoenix`]: messages; [`connection`]: what opens a connection
//! * [`longpoll`]: what clients that poll post
//! * [`values`]: JSON, and what is written as text; [`payloads`]: what channels take
//! * [`cluster_frames`], [`cluster_presence`]: what nodes tell each other
//! * `node`: REST, MCP, configuration
//! * [`echo`]: that refusals do not repeat what was sent
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a target says by a panic what does not hold"
)]

pub mod cluster_frames;
pub mod cluster_presence;
pub mod connection;
pub mod echo;
pub mod frames;
pub mod longpoll;
#[cfg(feature = "node")]
pub mod node;
pub mod payloads;
pub mod phoenix;
pub mod values;

pub use cluster_frames::cluster_frames;
pub use cluster_presence::presence_messages;
pub use connection::connection;
pub use frames::websocket_frames;
pub use longpoll::longpoll;
#[cfg(feature = "node")]
pub use node::{config, mcp_messages, request_bodies};
pub use payloads::channel_payloads;
pub use phoenix::{phoenix_binary, phoenix_v1, phoenix_v2};
pub use values::{json_values, names};

/// A target: a name, which is also that of its binary and of its corpus, and what it runs.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("websocket_frames", websocket_frames),
    ("phoenix_v1", phoenix_v1),
    ("phoenix_v2", phoenix_v2),
    ("phoenix_binary", phoenix_binary),
    ("connection", connection),
    ("longpoll", longpoll),
    ("cluster_frames", cluster_frames),
    ("json_values", json_values),
    ("names", names),
    ("channel_payloads", channel_payloads),
    ("presence_messages", presence_messages),
    #[cfg(feature = "node")]
    ("request_bodies", request_bodies),
    #[cfg(feature = "node")]
    ("mcp_messages", mcp_messages),
    #[cfg(feature = "node")]
    ("config", config),
];
