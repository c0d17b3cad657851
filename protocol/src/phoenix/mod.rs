//! The Phoenix channel protocol: what the unmodified npm `phoenix` client speaks.
//!
//! # Layout
//! * [`params`]: nested query parameters; [`handshake`]: version, token and origin of a connection
//! * [`message`] and [`decode`]: client messages in V1, V2 text and V2 binary
//! * [`encode`]: server messages in the same forms
//! * [`longpoll`]: the same messages over GET and POST
//! * [`session`]: which topics a connection has joined, and what each message means for them

pub mod decode;
pub mod encode;
pub mod handshake;
pub mod longpoll;
pub mod message;
pub mod params;
pub mod session;

pub use message::{Inbound, Payload, Ref};

/// Serializer version of a connection, chosen by its `vsn` parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// Object messages, no binary; server messages carry no `join_ref`.
    V1,
    /// Array messages, and binary ones.
    V2,
}

/// Topic of heartbeats.
pub const HEARTBEAT_TOPIC: &str = "phoenix";

/// Event names that belong to the protocol itself.
pub mod event {
    /// Joins a topic.
    pub const JOIN: &str = "phx_join";
    /// Leaves a topic.
    pub const LEAVE: &str = "phx_leave";
    /// Answers a push.
    pub const REPLY: &str = "phx_reply";
    /// A channel crashed; the client joins again.
    pub const ERROR: &str = "phx_error";
    /// A channel ended; the client does not join again.
    pub const CLOSE: &str = "phx_close";
    /// Keeps a connection alive.
    pub const HEARTBEAT: &str = "heartbeat";
    /// The whole presence of a topic.
    pub const PRESENCE_STATE: &str = "presence_state";
    /// What changed in it.
    pub const PRESENCE_DIFF: &str = "presence_diff";
}
