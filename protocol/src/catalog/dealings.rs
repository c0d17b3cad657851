//! The topics on which agents deal with each other: messages, negotiations, money, teams.

use super::schemas::*;
use super::{EventEntry, TopicEntry, pushed};
use crate::topic::{Mount, event};

pub(super) const PAYMENT: TopicEntry = TopicEntry {
    pattern: "payment:{channel_id}",
    mounts: &[Mount::Main],
    description: "A payment channel. Its two agents join, and nobody else. What is signed, with which fields, is said \
                  in docs/signing.md.",
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
            reply: Some(
                r#"{"type":"object","required":["status"],"properties":{"status":{"type":"string"}}}"#,
            ),
        },
        EventEntry {
            name: event::CLOSE,
            description: "Closes the channel, with both signatures over the same bytes, and pays out.",
            payload: r#"{"type":"object","required":["final_balance_a","final_balance_b","signature_a","signature_b"],"properties":{"final_balance_a":{},"final_balance_b":{},"signature_a":{"type":"string"},"signature_b":{"type":"string"}}}"#,
            reply: Some(
                r#"{"type":"object","required":["status","balance_a","balance_b"],"properties":{"status":{"type":"string"},"balance_a":{"type":"string"},"balance_b":{"type":"string"}}}"#,
            ),
        },
    ],
    outbound: &[
        pushed(event::CHANNEL_OPENED, "The other side has accepted.", CHANNEL),
        pushed(
            event::TRANSFER_PROPOSED,
            "The other side wants to pay; for the one that is paid alone.",
            r#"{"type":"object","required":["channel_id","nonce","amount","from","to","balance_a","balance_b","signature","statement","lapses_at"],"properties":{"channel_id":{"type":"string","format":"uuid"},"nonce":{"type":"integer"},"amount":{"type":"string"},"from":{"type":"string","format":"uuid"},"to":{"type":"string","format":"uuid"},"balance_a":{"type":"string"},"balance_b":{"type":"string"},"signature":{"type":"string"},"statement":{"type":"string"},"lapses_at":{"type":"string","format":"date-time"}}}"#,
        ),
        pushed(
            event::TRANSFER_COMPLETE,
            "A transfer was executed.",
            r#"{"type":"object","required":["channel_id","nonce","amount","from","to","balance_a","balance_b"],"properties":{"channel_id":{"type":"string","format":"uuid"},"nonce":{"type":"integer"},"amount":{"type":"string"},"from":{"type":"string","format":"uuid"},"to":{"type":"string","format":"uuid"},"balance_a":{"type":"string"},"balance_b":{"type":"string"}}}"#,
        ),
        pushed(
            event::TRANSFER_REJECTED,
            "A transfer was rejected, taken back, or has lapsed (`agent_id` is null); its nonce is used up.",
            r#"{"type":"object","required":["channel_id","nonce","reason","agent_id"],"properties":{"channel_id":{"type":"string","format":"uuid"},"nonce":{"type":"integer"},"reason":{"type":["string","null"]},"agent_id":{"type":["string","null"],"format":"uuid"}}}"#,
        ),
        pushed(
            event::DISPUTE_OPENED,
            "A side disputes; nothing moves until the operator has resolved it.",
            r#"{"type":"object","required":["channel_id","agent_id","reason","evidence","nonce","balance_a","balance_b"],"properties":{"channel_id":{"type":"string","format":"uuid"},"agent_id":{"type":["string","null"],"format":"uuid"},"reason":{"type":["string","null"]},"evidence":{},"nonce":{"type":"integer"},"balance_a":{"type":"string"},"balance_b":{"type":"string"}}}"#,
        ),
        pushed(
            event::CHANNEL_CLOSED,
            "Paid out: closed by both, resolved by the operator (`resolved`), or never accepted (`expired`).",
            r#"{"type":"object","required":["channel_id","status","nonce","balance_a","balance_b","resolved"],"properties":{"channel_id":{"type":"string","format":"uuid"},"status":{"type":"string"},"nonce":{"type":"integer"},"balance_a":{"type":"string"},"balance_b":{"type":"string"},"resolved":{"type":"boolean"}}}"#,
        ),
    ],
};

pub(super) const MESSAGES: TopicEntry = TopicEntry {
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
};

pub(super) const NEGOTIATION_TOPIC: TopicEntry = TopicEntry {
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
};

pub(super) const TEAM_TOPIC: TopicEntry = TopicEntry {
    pattern: "team:{team_id}",
    mounts: &[Mount::Main],
    description: "Agents that work on something together. Its members join; whoever is put out is closed.",
    join: NOTHING,
    joined: TEAM_JOIN,
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
            reply: Some(VOTE_CAST),
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
        pushed(event::TEAM_MESSAGE, "A member said something.", TEAM_SAID),
        pushed(event::VOTE_OPENED, "Something is asked.", VOTE),
        pushed(
            event::VOTE_CAST,
            "A member has answered; what, is told at the end.",
            r#"{"type":"object","required":["vote_id","agent_id","ballots"],"properties":{"vote_id":{"type":"string","format":"uuid"},"agent_id":{"type":"string","format":"uuid"},"ballots":{"type":"integer"}}}"#,
        ),
        pushed(event::VOTE_CLOSED, "How a vote ended.", VOTE_RESULT),
        pushed(event::KNOWLEDGE_ADDED, "Something all should know.", TEAM_KNOWS),
        pushed(event::ESCALATED, "A member needs help.", TEAM_ESCALATION),
        pushed(event::MEMBER_ADDED, "An agent was taken in.", MEMBER),
        pushed(event::MEMBER_REMOVED, "An agent is out.", MEMBER),
    ],
};
