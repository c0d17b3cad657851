//! The one table of sockets, topics and events. `docs/asyncapi.json` is generated from it, and a test compares it with
//! the names the code uses.

mod dealings;
mod figures;
mod schemas;
mod work;

use crate::topic::Mount;

/// A topic and what is said on it.
#[derive(Clone, Copy, Debug)]
pub struct TopicEntry {
    /// Name, with its id in braces.
    pub pattern: &'static str,
    /// Where it can be joined.
    pub mounts: &'static [Mount],
    /// What it is for, and who may join.
    pub description: &'static str,
    /// What the payload of a join may hold, as a JSON schema.
    pub join: &'static str,
    /// What the reply to a join holds, as a JSON schema.
    pub joined: &'static str,
    /// What clients push.
    pub inbound: &'static [EventEntry],
    /// What the server pushes.
    pub outbound: &'static [EventEntry],
}

/// An event.
#[derive(Clone, Copy, Debug)]
pub struct EventEntry {
    /// Name.
    pub name: &'static str,
    /// When it is sent.
    pub description: &'static str,
    /// Its payload, as a JSON schema.
    pub payload: &'static str,
    /// What the reply holds when it is ok, as a JSON schema; none for what the server pushes.
    pub reply: Option<&'static str>,
}

const fn pushed(name: &'static str, description: &'static str, payload: &'static str) -> EventEntry {
    EventEntry { name, description, payload, reply: None }
}

/// Every topic.
pub const TOPICS: &[TopicEntry] = &[
    work::AGENT,
    work::HIRER,
    work::TASK_STREAM,
    dealings::PAYMENT,
    work::TASK_CHANNEL,
    dealings::MESSAGES,
    figures::DISCOVERY_TOPIC,
    dealings::NEGOTIATION_TOPIC,
    figures::ANALYTICS_AGENT,
    figures::ANALYTICS_USER,
    figures::ANALYTICS_GLOBAL,
    dealings::TEAM_TOPIC,
];

#[cfg(test)]
mod tests;
