//! The topics on which work is given and done.

use super::schemas::*;
use super::{EventEntry, TopicEntry, pushed};
use crate::topic::{Mount, event};

pub(super) const AGENT: TopicEntry = TopicEntry {
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
};

pub(super) const HIRER: TopicEntry = TopicEntry {
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
};

pub(super) const TASK_STREAM: TopicEntry = TopicEntry {
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
};

pub(super) const TASK_CHANNEL: TopicEntry = TopicEntry {
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
};
