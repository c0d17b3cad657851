//! The topics that show who there is, and what was done.

use super::schemas::*;
use super::{EventEntry, TopicEntry, pushed};
use crate::topic::{Mount, event};

pub(super) const DISCOVERY_TOPIC: TopicEntry = TopicEntry {
    pattern: "agents:discovery",
    mounts: &[Mount::Main],
    description: "Who is online and what each can do. Any credential joins; an agent that does is online.",
    join: r#"{"type":"object","properties":{"presence":{"description":"Whom presence shows: everybody when absent or null, nobody, or those that fit all conditions.","anyOf":[{"enum":["full","none",null]},{"type":"object","additionalProperties":false,"properties":{"capability":{"type":"string"},"min_reputation":{"type":"number"},"max_price":{"type":["string","number"]}}}]}}}"#,
    joined: NOTHING,
    inbound: &[
        EventEntry {
            name: event::DISCOVER,
            description: "Finds agents: online first, then by reputation, price and id.",
            payload: r#"{"type":"object","properties":{"capability":{"type":"string"},"filters":{"type":"object","additionalProperties":false,"properties":{"status":{"enum":["online","offline","busy","away","any"]},"min_reputation":{"type":"number"},"min_price":{},"max_price":{}}}}}"#,
            reply: Some(
                r#"{"type":"object","required":["agents"],"properties":{"agents":{"type":"array","items":{"type":"object","required":["id","did","name","capabilities","status","reputation","base_price","online"]}}}}"#,
            ),
        },
        EventEntry {
            name: event::UPDATE_METADATA,
            description: "Merges into one's own metadata; null removes a key.",
            payload: r#"{"type":"object","required":["metadata"],"properties":{"metadata":{"type":"object"}}}"#,
            reply: Some(NOTHING),
        },
        EventEntry {
            name: event::ANNOUNCE,
            description: "Replaces one's own capabilities, and tells everybody.",
            payload: r#"{"type":"object","required":["capabilities"],"properties":{"capabilities":{"type":"array","maxItems":100,"items":{"type":"string","maxLength":64}}}}"#,
            reply: Some(NOTHING),
        },
    ],
    outbound: &[
        PRESENCE_EVENTS[0],
        PRESENCE_EVENTS[1],
        pushed(
            event::AGENT_UPDATED,
            "An agent announced its capabilities.",
            r#"{"type":"object","required":["agent_id","capabilities","metadata"],"properties":{"agent_id":{"type":"string"},"capabilities":{"type":"array"},"metadata":{"type":"object"}}}"#,
        ),
        NEGOTIATION_STARTED,
    ],
};

pub(super) const ANALYTICS_AGENT: TopicEntry = TopicEntry {
    pattern: "analytics:agent:{agent_id}",
    mounts: &[Mount::Main],
    description: "Figures of an agent, as the provider of tasks. The agent joins, and its owner.",
    join: NOTHING,
    joined: NOTHING,
    inbound: ANALYTICS_EVENTS,
    outbound: &[ALERT],
};

pub(super) const ANALYTICS_USER: TopicEntry = TopicEntry {
    pattern: "analytics:user:{user_id}",
    mounts: &[Mount::Main],
    description: "Figures of all agents of a user, together. The user joins, and their agents.",
    join: NOTHING,
    joined: NOTHING,
    inbound: ANALYTICS_EVENTS,
    outbound: &[ALERT],
};

pub(super) const ANALYTICS_GLOBAL: TopicEntry = TopicEntry {
    pattern: "analytics:global",
    mounts: &[Mount::Main],
    description: "Figures of all agents, together. Any credential joins.",
    join: NOTHING,
    joined: NOTHING,
    inbound: ANALYTICS_EVENTS,
    outbound: &[
        ALERT,
        pushed(
            event::GLOBAL_STATS,
            "What there is in all: after the join, and every 10 s. The load is that of the last minute for each \
             processor, 1 when all are busy; of a cluster the mean of its nodes.",
            r#"{"type":"object","required":["total_agents","total_tasks","system_load"],"properties":{"total_agents":{"type":"integer"},"total_tasks":{"type":"integer"},"system_load":{"type":"number"}}}"#,
        ),
    ],
};
