//! JSON schemas, and events, that several topics share.

use super::{EventEntry, pushed};
use crate::phoenix;
use crate::topic::event;

pub(super) const NOTHING: &str = r#"{"type":"object"}"#;
pub(super) const TASK: &str = r#"{"type":"object","required":["task"],"properties":{"task":{"type":"object","required":["id","status","client_agent_id","provider_agent_id","capability"]}}}"#;
pub(super) const HIRING: &str = r#"{"type":"object","required":["hiring"],"properties":{"hiring":{"type":"object","required":["id","status","agent_id","agent_did","task_id","created_at","updated_at"]}}}"#;
pub(super) const MESSAGE: &str = r#"{"type":"object","required":["id","type","payload","from_agent_id","protocol_version","inserted_at"],"properties":{"id":{"type":"string"},"type":{"type":"string"},"payload":{"type":"object"},"from_agent_id":{"type":["string","null"]},"protocol_version":{"type":"string"},"inserted_at":{"type":"string","format":"date-time"}}}"#;
pub(super) const CHANNEL: &str = r#"{"type":"object","required":["channel"],"properties":{"channel":{"type":"object","required":["id","agent_a","agent_b","balance_a","balance_b","nonce","status","pending","public_keys"]}}}"#;
pub(super) const SIGNED_TRANSFER: &str = r#"{"type":"object","required":["amount","nonce","signature"],"properties":{"amount":{},"nonce":{"type":"integer","minimum":1},"signature":{"type":"string"}}}"#;
pub(super) const MESSAGE_STATUS: &str = r#"{"type":"object","required":["id","status","retry_count"],"properties":{"id":{"type":"string"},"status":{"enum":["queued","delivered","acknowledged","rejected","failed","expired"]},"reason":{"type":"string"},"retry_count":{"type":"integer","minimum":0}}}"#;
pub(super) const HANDOFF_UPDATED: &str = r#"{"type":"object","required":["id","state","task_id"],"properties":{"id":{"type":"string"},"state":{"enum":["pending","accepted","declined","completed","failed"]},"task_id":{"type":"string"},"reason":{"type":"string"}}}"#;
pub(super) const PRESENCE: &str = r#"{"type":"object","additionalProperties":{"type":"object","required":["metas"],"properties":{"metas":{"type":"array","items":{"type":"object","required":["phx_ref","capabilities","reputation","base_price","online_at"]}}}}}"#;
pub(super) const PRESENCE_DIFF: &str = r#"{"type":"object","required":["joins","leaves"],"properties":{"joins":{"type":"object"},"leaves":{"type":"object"}}}"#;

pub(super) const CHANNEL_CHUNK: &str = r#"{"type":"object","required":["chunk","seq"],"properties":{"chunk":{"type":"string"},"seq":{"type":"integer","minimum":0,"description":"The sender's; the first is 0 or 1."},"encoding":{"const":"base64","description":"Present when the chunk is base64; otherwise it is text."}}}"#;
pub(super) const CHANNEL_CHUNK_REPLY: &str = r#"{"type":"object","required":["seq"],"properties":{"seq":{"type":"integer"},"duplicate":{"const":true,"description":"Present when this chunk was stored before."}}}"#;
pub(super) const CLOSING: &str = r#"{"type":"object","required":["checksum","total_size"],"properties":{"checksum":{"type":"string","pattern":"^(sha256:)?[0-9a-f]{64}$","description":"SHA-256 of the bytes of all chunks in the order of their seqs."},"total_size":{"type":"integer","minimum":0,"description":"Bytes."}}}"#;
pub(super) const DUPLICATE_REPLY: &str = r#"{"type":"object","properties":{"duplicate":{"const":true,"description":"Present when the same was said before."}}}"#;
pub(super) const TASK_PROGRESS: &str = r#"{"type":"object","required":["percent"],"properties":{"percent":{"type":"number","minimum":0,"maximum":100},"message":{"type":["string","null"]}}}"#;
pub(super) const CHANNEL_ERROR: &str = r#"{"type":"object","required":["type"],"properties":{"type":{"type":"string"},"message":{"type":"string"},"details":{}}}"#;
pub(super) const REASON: &str = r#"{"type":"object","properties":{"reason":{"type":["string","null"]}}}"#;
pub(super) const PERIOD: &str = r#"{"type":"object","properties":{"period":{"enum":["1h","24h","7d","30d","90d","all"],"default":"24h"}}}"#;
pub(super) const WEBHOOK_DISABLED: &str = r#"{"type":"object","required":["webhook_id","url","disabled_at"],"properties":{"webhook_id":{"type":"string"},"url":{"type":"string"},"disabled_at":{"type":"string","format":"date-time"}}}"#;
pub(super) const ALERT: EventEntry = pushed(
    event::ALERT,
    "Something began, became worse, or is over (then its severity is info); to those who subscribed.",
    r#"{"type":"object","required":["id","severity","type","message","agent_id","at"],"properties":{"id":{"type":"string"},"severity":{"enum":["critical","error","warning","info"]},"type":{"enum":["failure_rate","stalled","offline_with_tasks","dead_letters","figures_dropped"]},"message":{"type":"string"},"agent_id":{"type":["string","null"]},"at":{"type":"string","format":"date-time"}}}"#,
);

pub(super) const fn asked(
    name: &'static str,
    description: &'static str,
    payload: &'static str,
    reply: &'static str,
) -> EventEntry {
    EventEntry { name, description, payload, reply: Some(reply) }
}

pub(super) const ANALYTICS_EVENTS: &[EventEntry] = &[
    asked(
        event::REQUEST_METRICS,
        "Sums of a period.",
        PERIOD,
        r#"{"type":"object","required":["period","from","to","tasks_total","tasks_completed","tasks_failed","tasks_cancelled","success_rate","avg_duration_ms","chunks","messages_sent","messages_received","revenue"],"properties":{"success_rate":{"type":["number","null"]},"avg_duration_ms":{"type":["integer","null"]},"revenue":{"type":"string"}}}"#,
    ),
    asked(
        event::REQUEST_TIME_SERIES,
        "A metric over time: a point for each interval, of which there are at most 1000; the interval is coarser than asked \
         for if there would be more.",
        r#"{"type":"object","required":["metric"],"properties":{"metric":{"type":"string"},"opts":{"type":"object","properties":{"period":{"enum":["1h","24h","7d","30d","90d","all"],"default":"24h"},"interval":{"enum":["minute","hour","day"]}}}}}"#,
        r#"{"type":"object","required":["metric","interval","points"],"properties":{"metric":{"type":"string"},"interval":{"enum":["minute","hour","day"]},"points":{"type":"array","maxItems":1000,"items":{"type":"object","required":["t","v"],"properties":{"t":{"type":"string","format":"date-time"},"v":{"type":["number","string","null"]}}}}}}"#,
    ),
    asked(
        event::REQUEST_REVENUE,
        "What was earned.",
        PERIOD,
        r#"{"type":"object","required":["total","currency","by_day","by_capability"],"properties":{"total":{"type":"string"},"currency":{"type":"string"},"by_day":{"type":"array","items":{"type":"object","required":["day","amount"]}},"by_capability":{"type":"array","items":{"type":"object","required":["capability","amount"]}}}}"#,
    ),
    asked(
        event::REQUEST_HEATMAP,
        "Tasks created, by day of the week (Monday first) and hour, UTC; of the last 92 days at most.",
        PERIOD,
        r#"{"type":"object","required":["period","from","to","days","counts"],"properties":{"days":{"type":"array"},"counts":{"type":"array","minItems":7,"maxItems":7,"items":{"type":"array","minItems":24,"maxItems":24,"items":{"type":"integer"}}}}}"#,
    ),
    asked(event::SUBSCRIBE_ALERTS, "Has alerts sent to this join from now on.", NOTHING, NOTHING),
];
pub(super) const SESSION: &str = r#"{"type":"object","required":["session"],"properties":{"session":{"type":"object","required":["id","status","round","client_agent_id","provider_agent_id","base_price","max_amount","terms","terms_sha256","offers","public_keys","expires_at"],"properties":{"id":{"type":"string","format":"uuid"},"status":{"enum":["open","accepted","rejected","expired"]},"round":{"type":"integer"},"base_price":{"type":"string"},"max_amount":{"type":"string"},"terms":{"type":"object"},"terms_sha256":{"type":"string"},"offers":{"type":"array"},"public_keys":{"type":"object","additionalProperties":{"type":["string","null"]}},"expires_at":{"type":"string","format":"date-time"}}}}}"#;
pub(super) const OFFER: &str = r#"{"type":"object","required":["amount","signature","agent_id","round","offer_no","statement","at"],"properties":{"amount":{"type":"string"},"signature":{"type":["string","null"]},"agent_id":{"type":"string","format":"uuid"},"round":{"type":"integer","minimum":1},"offer_no":{"type":"integer","minimum":1},"statement":{"type":"string"},"at":{"type":"string","format":"date-time"}}}"#;
pub(super) const COMPLETE: &str = r#"{"type":"object","required":["session_id","amount","agreement"],"properties":{"session_id":{"type":"string","format":"uuid"},"agreement_id":{"type":"string","format":"uuid"},"amount":{"type":"string"},"agreement":{"type":"object","required":["id","session_id","client_agent_id","provider_agent_id","amount","terms","terms_sha256","client_offer","provider_offer","accept","public_keys","created_at","server_key","server_statement","server_signature"]}}}"#;

pub(super) const NEGOTIATION_STARTED: EventEntry =
    pushed(event::NEGOTIATION_STARTED, "Another agent has begun a negotiation with this one.", SESSION);
pub(super) const TEAM: &str = r#"{"type":"object","required":["id","name","owner_agent_id","members","votes","created_at"],"properties":{"id":{"type":"string","format":"uuid"},"name":{"type":"string"},"owner_agent_id":{"type":"string","format":"uuid"},"members":{"type":"array","items":{"type":"string","format":"uuid"}},"votes":{"type":"array","items":{"type":"object","required":["vote_id","question","options","opened_by","opened_at","closes_at","ballots"],"properties":{"vote_id":{"type":"string","format":"uuid"},"question":{"type":"string"},"options":{"type":"array","items":{"type":"string"}},"opened_by":{"type":"string","format":"uuid"},"opened_at":{"type":"string","format":"date-time"},"closes_at":{"type":"string","format":"date-time"},"ballots":{"type":"integer","description":"How many have answered."}}}},"created_at":{"type":"string","format":"date-time"}}}"#;
pub(super) const TEAM_ESCALATED: &str =
    r#"{"type":"object","required":["team_id","id","from_agent_id","reason","severity"]}"#;
pub(super) const VOTE: &str = r#"{"type":"object","required":["vote_id","question","options","opened_by","opened_at","closes_at","ballots"],"properties":{"vote_id":{"type":"string","format":"uuid"},"question":{"type":"string"},"options":{"type":"array","items":{"type":"string"}},"opened_by":{"type":"string","format":"uuid"},"opened_at":{"type":"string","format":"date-time"},"closes_at":{"type":"string","format":"date-time"},"ballots":{"type":"integer","description":"How many have answered."}}}"#;
pub(super) const TEAM_ENTRY: &str = r#"{"type":"object","required":["id","inserted_at"],"properties":{"id":{"type":"string","format":"uuid"},"inserted_at":{"type":"string","format":"date-time"}}}"#;
pub(super) const TEAM_SAID: &str = r#"{"type":"object","required":["id","from_agent_id","inserted_at","content"],"properties":{"id":{"type":"string","format":"uuid"},"from_agent_id":{"type":"string","format":"uuid"},"inserted_at":{"type":"string","format":"date-time"},"content":{}}}"#;
pub(super) const TEAM_KNOWS: &str = r#"{"type":"object","required":["id","from_agent_id","inserted_at","topic","content"],"properties":{"id":{"type":"string","format":"uuid"},"from_agent_id":{"type":"string","format":"uuid"},"inserted_at":{"type":"string","format":"date-time"},"topic":{"type":"string"},"content":{}}}"#;
pub(super) const TEAM_ESCALATION: &str = r#"{"type":"object","required":["id","from_agent_id","inserted_at","reason","severity"],"properties":{"id":{"type":"string","format":"uuid"},"from_agent_id":{"type":"string","format":"uuid"},"inserted_at":{"type":"string","format":"date-time"},"reason":{"type":"string"},"severity":{"enum":["critical","error","warning","info"]},"details":{}}}"#;
pub(super) const VOTE_CAST: &str = r#"{"type":"object","required":["vote_id","option"],"properties":{"vote_id":{"type":"string","format":"uuid"},"option":{"type":"integer","minimum":0,"description":"Which of the options, from 0."}}}"#;
pub(super) const VOTE_RESULT: &str = r#"{"type":"object","required":["vote_id","question","options","opened_by","opened_at","closes_at","ballots","tally","winner"],"properties":{"vote_id":{"type":"string","format":"uuid"},"question":{"type":"string"},"options":{"type":"array","items":{"type":"string"}},"opened_by":{"type":"string","format":"uuid"},"opened_at":{"type":"string","format":"date-time"},"closes_at":{"type":"string","format":"date-time"},"tally":{"type":"array","items":{"type":"object","required":["option","votes"],"properties":{"option":{"type":"string"},"votes":{"type":"integer"}}}},"winner":{"type":["string","null"],"description":"Null when two have the most, or nobody has answered."},"ballots":{"type":"integer","description":"How many have answered."}}}"#;
pub(super) const TEAM_JOIN: &str = r#"{"type":"object","required":["team"],"properties":{"team":{"type":"object","required":["id","name","owner_agent_id","members","votes","created_at"],"properties":{"id":{"type":"string","format":"uuid"},"name":{"type":"string"},"owner_agent_id":{"type":"string","format":"uuid"},"members":{"type":"array","items":{"type":"string","format":"uuid"}},"votes":{"type":"array","items":{"type":"object","required":["vote_id","question","options","opened_by","opened_at","closes_at","ballots"],"properties":{"vote_id":{"type":"string","format":"uuid"},"question":{"type":"string"},"options":{"type":"array","items":{"type":"string"}},"opened_by":{"type":"string","format":"uuid"},"opened_at":{"type":"string","format":"date-time"},"closes_at":{"type":"string","format":"date-time"},"ballots":{"type":"integer","description":"How many have answered."}}}},"created_at":{"type":"string","format":"date-time"}}}}}"#;
pub(super) const MEMBER: &str = r#"{"type":"object","required":["agent_id"],"properties":{"agent_id":{"type":"string","format":"uuid"}}}"#;

pub(super) const PRESENCE_EVENTS: [EventEntry; 2] = [
    pushed(phoenix::event::PRESENCE_STATE, "Who is present; after every join, before any diff.", PRESENCE),
    pushed(phoenix::event::PRESENCE_DIFF, "Who came and went since.", PRESENCE_DIFF),
];

/// To whom a webhook belongs.
pub(super) const WEBHOOK_GIVEN_UP: EventEntry =
    pushed(event::WEBHOOK_DISABLED, "A webhook was given up: nothing arrived for days.", WEBHOOK_DISABLED);
/// To the agent that made the team, and the user who owns that agent.
pub(super) const TEAM_NEEDS_HELP: EventEntry =
    pushed(event::TEAM_ESCALATED, "A member of one's team needs help.", TEAM_ESCALATED);
