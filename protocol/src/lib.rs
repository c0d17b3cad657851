//! What is said: frames, topics, events, limits, error codes, and the pure state machines behind them.
//!
//! Nothing here knows tokio, actors, I/O or a clock: time and randomness are arguments, so that every rule can be
//! tested by a table or by a property, and replayed from a seed.
//!
//! # Layout
//! * what travels: [`websocket`] frames, [`phoenix`] messages, [`json`], [`error_code`]
//! * who and what: [`ids`], [`account`], [`signing`], [`agent`], [`task`], [`hiring`], [`message`],
//!   [`handoff`], [`agent_status`], [`topic`], [`join_rules`], [`protocol_version`]
//! * what is counted and told of it: [`analytics`], [`alerts`], [`webhook`]
//! * money: [`money`], [`ledger`], [`escrow`]
//! * state machines: [`presence`], [`task_stream`], [`task_channel`], [`mailbox`], [`negotiation`],
//!   [`payment_channel`], [`rate_limiter`], [`idempotency`]
//! * between nodes: [`cluster`]
//! * bounds: [`limits`]
//! * what is documented from code: [`catalog`]

pub mod account;
pub mod agent;
pub mod agent_status;
pub mod alerts;
pub mod analytics;
pub mod catalog;
pub mod cluster;
pub mod discovery;
pub mod error_code;
pub mod escrow;
pub mod handoff;
pub mod hiring;
pub mod idempotency;
pub mod ids;
pub mod join_rules;
pub mod json;
pub mod ledger;
pub mod limits;
pub mod mailbox;
pub mod message;
pub mod money;
pub mod negotiation;
pub mod payment_channel;
pub mod phoenix;
pub mod presence;
pub mod protocol_version;
pub mod rate_limiter;
pub mod schema;
pub mod signing;
pub mod task;
pub mod task_channel;
pub mod task_stream;
pub mod team;
pub mod time;
pub mod topic;
pub mod webhook;
pub mod websocket;
