//! Who says it: the supervised actors of a node, and the ports they need. Knows no HTTP, no SQL, no Redis.
//!
//! # Layout
//! * from outside: [`ports`] (time, randomness), [`store`], [`cluster`], [`settings`]
//! * the way out: [`egress`]
//! * what is shared by topic: [`pubsub`], [`presence`], [`online`], [`blocks`]
//! * what changed, for every node: [`notices`]; changes of agents' records: [`agent_changes`]
//! * what is shared by task: [`task_stream`], [`tasks`]
//! * messages between agents: [`messages`] (who may send what), [`mailbox`] (how they get to their recipients),
//!   [`handoffs`]
//! * what is counted and told of it: [`analytics`], [`alerts`], [`global_stats`], [`webhooks`]
//! * what several parties change by turns: [`session`], [`negotiations`], [`payments`], [`teams`]
//! * money: [`ledger`]
//! * who is connected: [`socket`] (the socket and join actors), [`channels`] (the rules of each topic), [`connections`]
//! * all together: [`core`], [`supervisor`]

pub mod agent_changes;
pub mod alerts;
pub mod analytics;
pub mod blocks;
pub mod channels;
pub mod cluster;
pub mod connections;
pub mod core;
mod counterpart;
pub mod egress;
mod elsewhere;
pub mod global_stats;
pub mod handoffs;
pub mod inbox;
pub mod ledger;
pub mod mailbox;
pub mod messages;
pub mod metric_definitions;
pub mod negotiations;
pub mod notices;
pub mod online;
pub mod payments;
pub mod ports;
pub mod presence;
pub mod pubsub;
pub mod rate_limits;
pub mod session;
pub mod settings;
pub mod socket;
pub mod store;
pub mod supervisor;
pub mod task_channel;
pub mod task_stream;
pub mod tasks;
pub mod teams;
pub mod usage;
pub mod webhooks;
