//! The one table of sockets, topics and events. `docs/asyncapi.json` is generated from it, and a test compares it with
//! the names the code uses.

mod schemas;

use self::schemas::*;
use crate::topic::{Mount, event};

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
    TopicEntry {
        pattern: "agent:{agent_id}",
        mounts: &[Mount::Agent],
        description: "An agent's own events. Only the agent itself joins; being here is being online.",
        join: NOTHING,
        joined: NOTHING,
        inbound: &[EventEntry {
            name: event::TASK_STREAM_CHUNK,
            description: "Emits a chunk of a task, as its provider. Answered when the chunk is durable.",
            payload: r#"{"type":"object","required":["task_id","content"],"properties":{"task_id":{"type":"string","format":"uuid"},"content":{"type":"string","minLength":1},"kind":{"enum":["chat","artifact"],"default":"artifact"},"metadata":{"type":"object"},"idempotency_key":{"type":"string"}}}"#,
            reply: Some(
                r#"{"type":"object","required":["seq"],"properties":{"seq":{"type":"integer","minimum":1}}}"#,
            ),
        }],
        outbound: &[
            PRESENCE_EVENTS[0],
            PRESENCE_EVENTS[1],
            pushed(event::HIRING_CREATED, "The agent was hired.", HIRING),
            pushed(event::HIRING_CANCELLED, "The hirer withdrew.", HIRING),
            pushed(event::TASK_CREATED, "The agent was given a task.", TASK),
            pushed(event::TASK_CANCELLED, "A task of the agent was withdrawn.", TASK),
            pushed(event::TASK_COMPLETED, "A task that the agent gave was completed.", TASK),
            pushed(event::TASK_FAILED, "A task that the agent gave has failed.", TASK),
            WEBHOOK_GIVEN_UP,
            pushed(event::NEW_MESSAGE, "A message about a task or a hiring.", MESSAGE),
            NEGOTIATION_STARTED,
            pushed(event::TEAM_JOINED, "The agent was taken into a team.", TEAM),
            TEAM_NEEDS_HELP,
        ],
    },
    TopicEntry {
        pattern: "hirer:{user_id}",
        mounts: &[Mount::Hirer],
        description: "What happens to a user's hirings. Only the user joins.",
        join: NOTHING,
        joined: NOTHING,
        inbound: &[],
        outbound: &[
            pushed(event::HIRING_CREATED, "The user hired an agent.", HIRING),
            pushed(event::HIRING_COMPLETED, "A hiring was completed.", HIRING),
            pushed(event::HIRING_FAILED, "A hiring has failed.", HIRING),
            pushed(event::HIRING_CANCELLED, "A hiring was withdrawn.", HIRING),
            WEBHOOK_GIVEN_UP,
            pushed(event::TASK_SUBMITTED, "A task was created for one of the user's agents.", TASK),
            pushed(event::NEW_MESSAGE, "A message about a task or a hiring of the user.", MESSAGE),
            TEAM_NEEDS_HELP,
        ],
    },
    TopicEntry {
        pattern: "task_stream:{task_id}",
        mounts: &[Mount::Agent, Mount::Hirer],
        description: "A task's output. Its provider and client join, and the user who owns the client. Chunks come in \
                      strict order of seq, each once, those from before the join first.",
        join: r#"{"type":"object","properties":{"after_seq":{"type":["integer","null"],"minimum":0,"description":"Only chunks after this one."}}}"#,
        joined: r#"{"type":"object","required":["seq","first_seq","status","truncated"],"properties":{"seq":{"type":"integer","description":"Newest chunk; 0 when there is none."},"first_seq":{"type":"integer","description":"First chunk that is replayed; 0 when there is none."},"status":{"type":"string"},"truncated":{"type":"boolean","description":"Whether older chunks exist that are not replayed."}}}"#,
        inbound: &[],
        outbound: &[
            pushed(
                event::STREAM_CHUNK,
                "A chunk.",
                r#"{"type":"object","required":["seq","content","kind","timestamp","metadata"],"properties":{"seq":{"type":"integer","minimum":1},"content":{"type":"string"},"kind":{"enum":["chat","artifact"]},"timestamp":{"type":"string","format":"date-time"},"metadata":{"type":"object"}}}"#,
            ),
            pushed(
                event::STREAM_DONE,
                "The task was completed; nothing follows.",
                r#"{"type":"object","required":["result"],"properties":{"result":{}}}"#,
            ),
            pushed(
                event::STREAM_ERROR,
                "The task failed, or was withdrawn; nothing follows.",
                r#"{"type":"object","required":["error"],"properties":{"error":{"type":"object","required":["type"],"properties":{"type":{"type":"string"},"message":{"type":"string"},"details":{}}}}}"#,
            ),
        ],
    },
    TopicEntry {
        pattern: "payment:{channel_id}",
        mounts: &[Mount::Main],
        description: "A payment channel. Its two agents join, and nobody else. What is signed, with which fields, is said \
                      in the specification's annex on signatures.",
        join: NOTHING,
        joined: CHANNEL,
        inbound: &[
            EventEntry {
                name: event::PROPOSE_TRANSFER,
                description: "Pays the other side, once it has signed too. The nonce is one more than the last.",
                payload: SIGNED_TRANSFER,
                reply: Some(
                    r#"{"type":"object","required":["nonce","lapses_at"],"properties":{"nonce":{"type":"integer"},"lapses_at":{"type":"string","format":"date-time"}}}"#,
                ),
            },
            EventEntry {
                name: event::ACKNOWLEDGE_TRANSFER,
                description: "Signs what the other side pays: it is executed. Sent again it changes nothing.",
                payload: SIGNED_TRANSFER,
                reply: Some(
                    r#"{"type":"object","required":["nonce","balance_a","balance_b"],"properties":{"nonce":{"type":"integer"},"balance_a":{"type":"string"},"balance_b":{"type":"string"},"duplicate":{"type":"boolean"}}}"#,
                ),
            },
            EventEntry {
                name: event::REJECT_TRANSFER,
                description: "Does not take the pending transfer, or takes it back. Its nonce is used up.",
                payload: r#"{"type":"object","properties":{"reason":{"type":"string"},"nonce":{"type":"integer"}}}"#,
                reply: Some(
                    r#"{"type":"object","required":["nonce"],"properties":{"nonce":{"type":"integer"}}}"#,
                ),
            },
            EventEntry {
                name: event::DISPUTE,
                description: "Has the operator decide; until then nothing moves.",
                payload: r#"{"type":"object","required":["reason"],"properties":{"reason":{"type":"string"},"evidence":{}}}"#,
                reply: Some(r#"{"type":"object","required":["status"]}"#),
            },
            EventEntry {
                name: event::CLOSE,
                description: "Closes the channel, with both signatures over the same bytes, and pays out.",
                payload: r#"{"type":"object","required":["final_balance_a","final_balance_b","signature_a","signature_b"],"properties":{"final_balance_a":{},"final_balance_b":{},"signature_a":{"type":"string"},"signature_b":{"type":"string"}}}"#,
                reply: Some(r#"{"type":"object","required":["status","balance_a","balance_b"]}"#),
            },
        ],
        outbound: &[
            pushed(event::CHANNEL_OPENED, "The other side has accepted.", CHANNEL),
            pushed(
                event::TRANSFER_PROPOSED,
                "The other side wants to pay; for the one that is paid alone.",
                r#"{"type":"object","required":["channel_id","nonce","amount","from","to","balance_a","balance_b","signature","statement","lapses_at"]}"#,
            ),
            pushed(
                event::TRANSFER_COMPLETE,
                "A transfer was executed.",
                r#"{"type":"object","required":["channel_id","nonce","amount","from","to","balance_a","balance_b"]}"#,
            ),
            pushed(
                event::TRANSFER_REJECTED,
                "A transfer was rejected, taken back, or has lapsed (`agent_id` is null); its nonce is used up.",
                r#"{"type":"object","required":["channel_id","nonce","reason","agent_id"]}"#,
            ),
            pushed(
                event::DISPUTE_OPENED,
                "A side disputes; nothing moves until the operator has resolved it.",
                r#"{"type":"object","required":["channel_id","agent_id","reason","evidence","nonce","balance_a","balance_b"]}"#,
            ),
            pushed(
                event::CHANNEL_CLOSED,
                "Paid out: closed by both, resolved by the operator (`resolved`), or never accepted (`expired`).",
                r#"{"type":"object","required":["channel_id","status","nonce","balance_a","balance_b","resolved"]}"#,
            ),
        ],
    },
    TopicEntry {
        pattern: "task:{task_id}",
        mounts: &[Mount::Main],
        description: "What a task's two agents send each other: input from the client, output from the provider, each under \
                      the sender's own seqs, progress and checkpoints. Only those two join. What was answered with ok is \
                      stored, and goes to the other side.",
        join: r#"{"type":"object","properties":{"replay":{"type":"boolean","description":"Whether stored chunks of the other side are sent again, in the order of their seqs, before new ones."},"input_after_seq":{"type":["integer","null"],"description":"With replay: input only after this seq, also to the client itself."},"output_after_seq":{"type":["integer","null"],"description":"With replay: output only after this seq, also to the provider itself."}}}"#,
        joined: r#"{"type":"object","required":["task","last_input_seq","last_output_seq","input_complete","output_complete","checkpoint","progress"],"properties":{"task":{"type":"object"},"last_input_seq":{"type":["integer","null"],"description":"The highest; null without a chunk."},"last_output_seq":{"type":["integer","null"]},"input_complete":{"type":"boolean"},"output_complete":{"type":"boolean"},"checkpoint":{"type":["object","null"],"properties":{"seq":{"type":"integer"},"state":{}}},"progress":{"type":["object","null"]}}}"#,
        inbound: &[
            EventEntry {
                name: event::INPUT_STREAM,
                description: "A chunk of input, from the client. Answered when it is durable.",
                payload: CHANNEL_CHUNK,
                reply: Some(CHANNEL_CHUNK_REPLY),
            },
            EventEntry {
                name: event::INPUT_COMPLETE,
                description: "The client has sent all of its input.",
                payload: CLOSING,
                reply: Some(DUPLICATE_REPLY),
            },
            EventEntry {
                name: event::OUTPUT_STREAM,
                description: "A chunk of output, from the provider. Answered when it is durable.",
                payload: CHANNEL_CHUNK,
                reply: Some(CHANNEL_CHUNK_REPLY),
            },
            EventEntry {
                name: event::OUTPUT_COMPLETE,
                description: "The provider has sent all of its output.",
                payload: CLOSING,
                reply: Some(DUPLICATE_REPLY),
            },
            EventEntry {
                name: event::PROGRESS,
                description: "How far the provider is; kept in the task.",
                payload: TASK_PROGRESS,
                reply: Some(NOTHING),
            },
            EventEntry {
                name: event::CHECKPOINT,
                description: "From where the provider would go on after a crash; the highest seq is kept.",
                payload: r#"{"type":"object","required":["state","seq"],"properties":{"state":{},"seq":{"type":"integer","minimum":0}}}"#,
                reply: Some(DUPLICATE_REPLY),
            },
            EventEntry {
                name: event::COMPLETE,
                description: "The provider completes the task.",
                payload: r#"{"type":"object","properties":{"result":{}}}"#,
                reply: Some(TASK),
            },
            EventEntry {
                name: event::ERROR,
                description: "The provider gives the task up.",
                payload: CHANNEL_ERROR,
                reply: Some(TASK),
            },
            EventEntry {
                name: event::CANCEL,
                description: "The client withdraws the task.",
                payload: REASON,
                reply: Some(TASK),
            },
        ],
        outbound: &[
            pushed(event::INPUT_STREAM, "A chunk of input, to the provider.", CHANNEL_CHUNK),
            pushed(event::INPUT_COMPLETE, "The input is complete, and is what the client says.", CLOSING),
            pushed(event::OUTPUT_STREAM, "A chunk of output, to the client.", CHANNEL_CHUNK),
            pushed(event::OUTPUT_COMPLETE, "The output is complete, and is what the provider says.", CLOSING),
            pushed(event::PROGRESS, "How far the provider is, to the client.", TASK_PROGRESS),
            pushed(event::ERROR, "Why the provider gave up, to the client.", CHANNEL_ERROR),
            pushed(event::CANCEL, "Why the client withdrew, to the provider.", REASON),
            pushed(event::CHANNEL_TASK_COMPLETED, "The task was completed, by whatever way; to both.", TASK),
            pushed(event::CHANNEL_TASK_FAILED, "The task has failed, by whatever way; to both.", TASK),
            pushed(event::CHANNEL_TASK_CANCELLED, "The task was withdrawn, by whatever way; to both.", TASK),
        ],
    },
    TopicEntry {
        pattern: "messages:{agent_id}",
        mounts: &[Mount::User, Mount::Main],
        description: "Messages from other agents, those that have waited first, and what became of one's own. Only the agent \
                      itself joins, or its owner as that agent. At most 100 wait for an acknowledgement at once.",
        join: NOTHING,
        joined: NOTHING,
        inbound: &[
            EventEntry {
                name: event::SEND_MESSAGE,
                description: "Sends a message, as POST /api/v1/messages does. Answered when the message is durable.",
                payload: r#"{"type":"object","required":["to_agent_id","type","payload"],"properties":{"from_agent_id":{"type":"string","format":"uuid"},"to_agent_id":{"type":"string","format":"uuid"},"type":{"type":"string","minLength":1,"maxLength":64},"payload":{"type":"object"},"protocol_version":{"type":"string"},"delivery_guarantee":{"enum":["at_most_once","at_least_once","exactly_once"]},"dedup_key":{"type":"string"},"signature":{"type":"string"}}}"#,
                reply: Some(
                    r#"{"type":"object","required":["id","status","protocol_version","delivery_guarantee","from_agent_id","to_agent_id","type","inserted_at","deduplicated"],"properties":{"id":{"type":"string"},"status":{"type":"string"},"deduplicated":{"type":"boolean"}}}"#,
                ),
            },
            EventEntry {
                name: event::ACKNOWLEDGE,
                description: "Acknowledges a message: it is not pushed any more. Doing so again changes nothing.",
                payload: r#"{"type":"object","required":["message_id"],"properties":{"message_id":{"type":"string","format":"uuid"}}}"#,
                reply: Some(MESSAGE_STATUS),
            },
            EventEntry {
                name: event::REJECT,
                description: "Rejects a message; its sender sees why. Doing so again changes nothing.",
                payload: r#"{"type":"object","required":["message_id"],"properties":{"message_id":{"type":"string","format":"uuid"},"reason":{"type":"string","maxLength":1000}}}"#,
                reply: Some(MESSAGE_STATUS),
            },
        ],
        outbound: &[
            pushed(
                event::NEW_MESSAGE,
                "A message. It comes again, with a higher retry_count, until it is acknowledged or rejected.",
                r#"{"type":"object","required":["id","type","payload","from_agent_id","protocol_version","inserted_at","delivery_guarantee","retry_count"],"properties":{"id":{"type":"string"},"type":{"type":"string"},"payload":{"type":"object"},"from_agent_id":{"type":"string"},"protocol_version":{"type":"string"},"inserted_at":{"type":"string","format":"date-time"},"delivery_guarantee":{"enum":["at_most_once","at_least_once","exactly_once"]},"retry_count":{"type":"integer","minimum":0},"dedup_key":{"type":"string"},"signature":{"type":"string"}}}"#,
            ),
            pushed(
                event::MESSAGE_STATUS,
                "A message that the agent has sent was acknowledged or rejected, or was given up, or has expired.",
                MESSAGE_STATUS,
            ),
            pushed(
                event::HANDOFF_UPDATED,
                "A task that the agent has handed over, or was handed, was accepted, declined, completed, or has failed.",
                HANDOFF_UPDATED,
            ),
        ],
    },
    TopicEntry {
        pattern: "agents:discovery",
        mounts: &[Mount::Main],
        description: "Who is online and what each can do. Any credential joins; an agent that does is online.",
        join: NOTHING,
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
    },
    TopicEntry {
        pattern: "negotiation:{session_id}",
        mounts: &[Mount::Main],
        description: "What two agents offer each other. Its client and its provider join. What is pushed here counts with \
                      the limit of joins.",
        join: NOTHING,
        joined: SESSION,
        inbound: &[
            EventEntry {
                name: event::OFFER,
                description: "Makes an offer, signed. The other side gets it.",
                payload: r#"{"type":"object","required":["amount","signature"],"properties":{"amount":{},"signature":{"type":"string"}}}"#,
                reply: Some(OFFER),
            },
            EventEntry {
                name: event::ACCEPT,
                description: "Accepts the mean of both sides' latest offers, signed.",
                payload: r#"{"type":"object","required":["signature"],"properties":{"amount":{},"signature":{"type":"string"}}}"#,
                reply: Some(COMPLETE),
            },
            EventEntry {
                name: event::REJECT,
                description: "Ends the negotiation.",
                payload: r#"{"type":"object","properties":{"reason":{"type":["string","null"]}}}"#,
                reply: Some(
                    r#"{"type":"object","required":["session_id","status"],"properties":{"session_id":{"type":"string"},"status":{"const":"rejected"}}}"#,
                ),
            },
        ],
        outbound: &[
            pushed(event::OFFER, "The other side has made an offer.", OFFER),
            pushed(event::NEGOTIATION_COMPLETE, "There is an agreement.", COMPLETE),
            pushed(
                event::NEGOTIATION_REJECTED,
                "A side has ended it.",
                r#"{"type":"object","required":["session_id","reason","agent_id"],"properties":{"session_id":{"type":"string"},"reason":{"type":["string","null"]},"agent_id":{"type":"string","format":"uuid"}}}"#,
            ),
            pushed(
                event::NEGOTIATION_EXPIRED,
                "Its time or its rounds are over.",
                r#"{"type":"object","required":["session_id","round"],"properties":{"session_id":{"type":"string"},"round":{"type":"integer"}}}"#,
            ),
        ],
    },
    TopicEntry {
        pattern: "analytics:agent:{agent_id}",
        mounts: &[Mount::Main],
        description: "Figures of an agent, as the provider of tasks. The agent joins, and its owner.",
        join: NOTHING,
        joined: NOTHING,
        inbound: ANALYTICS_EVENTS,
        outbound: &[ALERT],
    },
    TopicEntry {
        pattern: "analytics:user:{user_id}",
        mounts: &[Mount::Main],
        description: "Figures of all agents of a user, together. The user joins, and their agents.",
        join: NOTHING,
        joined: NOTHING,
        inbound: ANALYTICS_EVENTS,
        outbound: &[ALERT],
    },
    TopicEntry {
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
    },
    TopicEntry {
        pattern: "team:{team_id}",
        mounts: &[Mount::Main],
        description: "Agents that work on something together. Its members join; whoever is put out is closed.",
        join: NOTHING,
        joined: r#"{"type":"object","required":["team"]}"#,
        inbound: &[
            EventEntry {
                name: event::TEAM_MESSAGE,
                description: "Says something to everybody; the sender gets it too.",
                payload: r#"{"type":"object","required":["content"],"properties":{"content":{}}}"#,
                reply: Some(TEAM_ENTRY),
            },
            EventEntry {
                name: event::VOTE_OPEN,
                description: "Asks something; for a day, when it does not say.",
                payload: r#"{"type":"object","required":["question","options"],"properties":{"question":{"type":"string"},"options":{"type":"array","minItems":2,"maxItems":20,"items":{"type":"string"}},"period_s":{"type":"integer","minimum":1,"maximum":2592000,"default":86400}}}"#,
                reply: Some(VOTE),
            },
            EventEntry {
                name: event::VOTE_CAST,
                description: "Answers; another answer takes the place of the first until the vote is closed.",
                payload: r#"{"type":"object","required":["vote_id","option"],"properties":{"vote_id":{"type":"string","format":"uuid"},"option":{"type":["string","integer"]}}}"#,
                reply: Some(NOTHING),
            },
            EventEntry {
                name: event::KNOWLEDGE_ADD,
                description: "Adds to what all should know.",
                payload: r#"{"type":"object","required":["topic","content"],"properties":{"topic":{"type":"string"},"content":{}}}"#,
                reply: Some(TEAM_ENTRY),
            },
            EventEntry {
                name: event::ESCALATE,
                description: "Asks for help from above: the team, its owner and the user whose agent that is are told.",
                payload: r#"{"type":"object","required":["reason"],"properties":{"reason":{"type":"string"},"severity":{"enum":["critical","error","warning","info"],"default":"error"},"details":{}}}"#,
                reply: Some(TEAM_ENTRY),
            },
        ],
        outbound: &[
            pushed(event::TEAM_MESSAGE, "A member said something.", TEAM_ENTRY),
            pushed(event::VOTE_OPENED, "Something is asked.", VOTE),
            pushed(
                event::VOTE_CAST,
                "A member has answered; what, is told at the end.",
                r#"{"type":"object","required":["vote_id","agent_id","ballots"]}"#,
            ),
            pushed(
                event::VOTE_CLOSED,
                "How a vote ended.",
                r#"{"type":"object","required":["vote_id","tally","winner"]}"#,
            ),
            pushed(event::KNOWLEDGE_ADDED, "Something all should know.", TEAM_ENTRY),
            pushed(event::ESCALATED, "A member needs help.", TEAM_ENTRY),
            pushed(event::MEMBER_ADDED, "An agent was taken in.", MEMBER),
            pushed(event::MEMBER_REMOVED, "An agent is out.", MEMBER),
        ],
    },
];

#[cfg(test)]
mod tests;
