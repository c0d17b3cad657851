//! Every bound on what a peer can make the node hold or do, in one place, each named with its unit. All are
//! configurable under `[limits]`; the defaults are those of the specification.

use serde::{Deserialize, Serialize};

use crate::rate_limiter::Rate;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const DAY_MS: u64 = 86_400_000;

/// The bounds of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// TCP connections a node holds at once, of every protocol; a further one is closed at accept.
    pub connections_max: usize,
    /// New connections from one address (IPv6: one /64); a further one is closed at accept.
    pub connects_per_ip: Rate,
    /// Addresses (CIDR) that are not limited per address. Loopback by default: what arrives there comes from this
    /// machine, or from a proxy that `http.trusted_proxies` should name.
    pub ip_limit_exempt: Vec<String>,
    /// Time a client has for a TLS handshake, for a request head, and for a request body, each, in milliseconds.
    pub handshake_timeout_ms: u64,
    /// Bytes of a request head.
    pub http_head_bytes_max: usize,
    /// Headers of a request.
    pub http_headers_max: usize,
    /// Bytes of a REST or MCP request body; a larger one answers 413.
    pub http_body_bytes_max: usize,
    /// Bodies over 64 KiB that are being read at once; a further one answers 503.
    pub http_large_bodies_max: usize,
    /// REST and MCP requests in work at once; a further one answers 503.
    pub http_requests_in_flight_max: usize,
    /// REST requests of one credential.
    pub requests_per_credential: Rate,
    /// Open registrations from one address.
    pub registrations_per_ip: Rate,
    /// Refused credentials from one address before it is locked out.
    pub auth_failures_per_ip: Rate,
    /// How long an address that ran out of `auth_failures_per_ip` is refused, in milliseconds.
    pub auth_lockout_ms: u64,
    /// Sockets of one credential at once; a further connect answers 429.
    pub sockets_per_credential_max: usize,
    /// Event streams (SSE) and MCP sessions of one credential at once.
    pub streams_per_credential_max: usize,
    /// An MCP session without a request or a server stream ends after this, in milliseconds.
    pub mcp_session_idle_ms: u64,

    /// How long a long-poll GET waits for messages, and a POST for its messages to be taken, in milliseconds; at most half
    /// of `socket_idle_timeout_ms`, so that who polls is not silent. A session ends one and a half times this after its
    /// last GET.
    pub longpoll_window_ms: u64,
    /// Long-poll sessions a node holds at once; a further one answers 503.
    pub longpoll_sessions_max: usize,
    /// Bytes of a long-poll request body; a larger one answers 400.
    pub longpoll_body_bytes_max: usize,
    /// Bytes of long-poll request bodies over 64 KiB that are held at once, all together; a further one answers 503.
    pub longpoll_bodies_bytes_max: usize,
    /// Bytes of messages after which an answer to a long-poll GET takes no more; the next GET brings the rest.
    pub longpoll_answer_bytes_max: usize,

    /// Bytes of one WebSocket message, fragments together; a larger one closes the socket with 1009.
    pub message_bytes_max: usize,
    /// Fragments of one WebSocket message; more close the socket with 1009.
    pub message_fragments_max: usize,
    /// Depth to which JSON from a client may nest.
    pub json_depth_max: usize,
    /// Topics joined on one socket at once.
    pub topics_per_socket_max: usize,
    /// Bytes of a topic.
    pub topic_bytes_max: usize,
    /// Bytes of an event name.
    pub event_bytes_max: usize,
    /// Bytes of one `ref` or `join_ref`, as JSON; in a binary message, of its text.
    pub ref_bytes_max: usize,
    /// Messages of one socket; over it each push answers `rate_limited`.
    pub messages_per_socket: Rate,
    /// Messages of one socket that are in work at once; further ones stay unread in the kernel.
    pub requests_in_flight_per_socket_max: usize,
    /// Bytes queued to one socket that the kernel has not taken. Over it a socket is closed with 1013.
    pub outbound_queue_bytes_max: usize,
    /// Bytes queued to one socket above which a stream reader is no longer pushed to, but reads from the log.
    pub reader_lag_bytes_max: usize,
    /// A socket from which no byte came for this long is closed with 1002, in milliseconds.
    pub socket_idle_timeout_ms: u64,
    /// A stream reader whose socket takes no byte for this long is closed with `phx_error`, in milliseconds.
    pub reader_stall_timeout_ms: u64,
    /// Joins and signed events of one agent on the main socket.
    pub joins_per_agent: Rate,

    /// Bytes of one chunk's content.
    pub chunk_content_bytes_max: usize,
    /// Bytes of one chunk's metadata, as JSON.
    pub chunk_metadata_bytes_max: usize,
    /// Bytes of an idempotency key.
    pub idempotency_key_bytes_max: usize,
    /// Bytes of an answer that is kept for requests that come again under their key; larger ones answer `answer_not_kept`.
    pub idempotency_answer_bytes_max: usize,
    /// Chunks of one stream.
    pub chunks_per_stream: Rate,
    /// Chunks of one agent, all its streams together.
    pub chunks_per_agent: Rate,
    /// Chunks of one stream held in memory.
    pub stream_buffer_chunks_max: usize,
    /// Bytes of one stream held in memory.
    pub stream_buffer_bytes_max: usize,
    /// Bytes of all streams held in memory; over it each stream keeps only what is not yet durable.
    pub stream_memory_bytes_max: usize,
    /// Bytes one reader takes from a log at a time.
    pub stream_read_bytes_max: usize,
    /// Payment channels live in a node's memory at once; a further one answers `overloaded`.
    pub payment_channels_live_max: usize,
    /// How long a payment channel that was opened can be accepted, in milliseconds.
    pub payment_channel_accept_ms: u64,
    /// How long a transfer that was proposed can be acknowledged, in milliseconds.
    pub payment_proposal_ms: u64,
    /// Bytes of the evidence of a dispute, as JSON.
    pub dispute_evidence_bytes_max: usize,
    /// Streams live in a node's memory at once; a further one answers `overloaded`.
    pub streams_live_max: usize,

    /// Capabilities of one agent.
    pub capabilities_max: usize,
    /// Characters of one capability.
    pub capability_chars_max: usize,
    /// Characters of a name.
    pub name_chars_max: usize,
    /// Bytes of a DID.
    pub did_bytes_max: usize,
    /// Bytes of an agent's metadata, as JSON.
    pub agent_metadata_bytes_max: usize,
    /// Agents in one answer of `discover`.
    pub discover_results_max: usize,
    /// Live credentials of one agent or user.
    pub credentials_per_owner_max: usize,
    /// Blocks one agent may hold.
    pub blocks_per_agent_max: usize,
    /// Agents one user may own, and agents claimed in one request.
    pub agents_per_user_max: usize,

    /// Bytes of a task's input, and of its output, as JSON.
    pub task_document_bytes_max: usize,
    /// Bytes of a task's failure, as JSON.
    pub task_error_bytes_max: usize,
    /// Bytes of one chunk on the channel of a task, decoded.
    pub task_channel_chunk_bytes_max: usize,
    /// Bytes of one direction of a task's channel, decoded; more answer `stream_too_large`.
    pub task_channel_stream_bytes_max: usize,
    /// Chunks of one direction of a task's channel.
    pub task_channel_chunks_max: usize,
    /// Bytes of chunks of all channels of tasks that wait for the store; further ones stay unread in the kernel.
    pub task_channel_queue_bytes_max: usize,
    /// Bytes of a task's checkpoint, as JSON.
    pub task_checkpoint_bytes_max: usize,
    /// Characters of what a provider says about its progress.
    pub progress_message_chars_max: usize,
    /// Characters of a message about a task or a hiring.
    pub note_chars_max: usize,
    /// Messages about one task or hiring.
    pub notes_per_task_max: usize,
    /// Bytes of a negotiation's terms, as JSON.
    pub negotiation_terms_bytes_max: usize,
    /// Characters of the reason of a rejection.
    pub negotiation_reason_chars_max: usize,
    /// Open negotiations that one agent has begun; a further one answers `limit_reached`.
    pub negotiations_open_per_agent_max: usize,
    /// Payment channels that one agent has opened and that are not over; a further one answers `limit_reached`. Each holds
    /// money of its own until both agree, so an agent that streams payments has one for each agent it works with.
    pub payment_channels_per_agent_max: usize,
    /// Negotiations, and teams, each so many live in a node's memory at once; a further one answers `overloaded`.
    pub sessions_live_max: usize,
    /// Members of one team.
    pub team_members_max: usize,
    /// Teams one agent may have made.
    pub teams_per_agent_max: usize,
    /// Votes of one team that are open at once.
    pub team_open_votes_max: usize,
    /// Bytes of one message, piece of knowledge or detail of a team, as JSON.
    pub team_entry_bytes_max: usize,
    /// Messages, pieces of knowledge, escalations and ended votes of one team; beyond them the oldest are forgotten.
    pub team_entries_max: usize,
    /// Bytes of what one team keeps, as JSON; beyond them the oldest are forgotten.
    pub team_entries_bytes_max: usize,
    /// What one agent does in teams, and to them.
    pub team_actions_per_agent: Rate,
    /// Items of a page when the request does not say, and at most.
    pub page_items_default: usize,
    /// Items of a page at most.
    pub page_items_max: usize,

    /// Bytes of a message's payload, as JSON.
    pub message_payload_bytes_max: usize,
    /// Characters of a message's type.
    pub message_type_chars_max: usize,
    /// Characters of the reason for which a message is rejected.
    pub message_reason_chars_max: usize,
    /// Messages in one request.
    pub message_batch_max: usize,
    /// Messages that one agent sends.
    pub messages_per_agent: Rate,
    /// Messages that wait for one recipient, about: several nodes at once, or requests at the same moment, may exceed it a
    /// little. A further one is refused.
    pub mailbox_messages_max: usize,
    /// Bytes of the payloads of messages that wait for one recipient, about, as for `mailbox_messages_max`.
    pub mailbox_bytes_max: usize,
    /// How much of a recipient's queue, by number and by bytes, what one sender has sent may take, in hundredths; one message
    /// always.
    pub mailbox_sender_percent: usize,
    /// Messages pushed to one recipient that it has not acknowledged.
    pub mailbox_window_max: usize,
    /// Delay before a message is pushed again for the first time, in milliseconds; each further delay is twice as long.
    pub message_retry_ms: u64,
    /// How long a message is kept, in milliseconds; then it expires.
    pub message_retention_ms: u64,
    /// How long what became of a message is known after it has expired, in milliseconds.
    pub message_ids_kept_ms: u64,
    /// Agents that a node remembers as senders and recipients.
    pub message_addresses_max: usize,
    /// Messages that wait to be stored; further ones wait where they are.
    pub message_queue_max: usize,
    /// Entries of figures (an agent's of a minute, by capability) that wait for the analytics store; what needs further ones
    /// is dropped and counted.
    pub analytics_entries_max: usize,
    /// Webhooks of one agent or user.
    pub webhooks_per_owner_max: usize,

    /// Entries of presence that a node takes from one other; further ones are not shown here.
    pub presence_entries_per_peer_max: usize,
    /// Bytes of presence that a node takes from one other, about; further entries are not shown here.
    pub presence_bytes_per_peer_max: usize,
    /// Bytes of changes of presence that a node keeps for others that missed some; who missed more gets all entries.
    pub presence_history_bytes_max: usize,
    /// Bytes of presence in one message between nodes; a larger entry is not shown at other nodes.
    pub presence_piece_bytes_max: usize,
    /// Messages in which a node answers another that asks for presence; the other asks for more.
    pub presence_answer_pieces_max: usize,
    /// Bytes of messages about presence from other nodes that wait here; further ones are dropped, and asked for again.
    pub presence_inbox_bytes_max: usize,
    /// Bytes of events about agents at another node that wait for what they follow; further ones are dropped.
    pub presence_tells_bytes_max: usize,

    /// Writes waiting for the store; further ones wait where they are.
    pub store_queue_writes_max: usize,
    /// Rows of one store transaction.
    pub store_batch_rows_max: usize,
    /// Bytes of chunks that the embedded store holds in memory and in its journal before it moves them to their table.
    pub store_journal_bytes_max: usize,
    /// Connections a node holds to PostgreSQL; four of them are for chunks.
    pub store_connections_max: usize,
    /// How long one statement, and one wait for a lock, may take in PostgreSQL, in milliseconds.
    pub store_statement_timeout_ms: u64,
    /// How long a call of the store may take in all, with waiting for a connection and trying again while PostgreSQL is
    /// away, in milliseconds; then it answers `store_unavailable`.
    pub store_call_timeout_ms: u64,

    /// Other nodes that are known at once; further ones are refused.
    pub cluster_peers_max: usize,
    /// Connections from other nodes that have not said yet who they are; a further one is closed at accept.
    pub cluster_handshakes_max: usize,
    /// Bytes of messages that wait for one node, or are under way to it; more reset the session with it.
    pub cluster_outbox_bytes_max: usize,
    /// Bytes under way to one node that it has not acknowledged: what is held for one that has stopped.
    pub cluster_window_bytes_max: usize,
    /// Bytes of one message to another node.
    pub cluster_message_bytes_max: usize,
    /// Bytes of frames that wait for Redis, to all nodes; further ones are offered again later.
    pub cluster_redis_queue_bytes_max: usize,
}

impl Default for Limits {
    #[allow(clippy::too_many_lines, reason = "one line for each limit")]
    fn default() -> Self {
        Self {
            connections_max: 100_000,
            connects_per_ip: Rate::per_second(100, 1_000),
            ip_limit_exempt: vec!["127.0.0.0/8".into(), "::1/128".into()],
            handshake_timeout_ms: 10_000,
            http_head_bytes_max: 32 * KIB,
            http_headers_max: 64,
            http_body_bytes_max: MIB,
            http_large_bodies_max: 256,
            http_requests_in_flight_max: 4_096,
            requests_per_credential: Rate::per_second(100, 6_000),
            registrations_per_ip: Rate::per_minute(60),
            auth_failures_per_ip: Rate::per_minute(10),
            auth_lockout_ms: 300_000,
            sockets_per_credential_max: 25_000,
            streams_per_credential_max: 1_000,
            mcp_session_idle_ms: 3_600_000,

            longpoll_window_ms: 10_000,
            longpoll_sessions_max: 50_000,
            longpoll_body_bytes_max: 8_000_000,
            longpoll_bodies_bytes_max: 256 * MIB,
            longpoll_answer_bytes_max: 256 * KIB,

            message_bytes_max: MIB,
            message_fragments_max: 1_024,
            json_depth_max: 64,
            topics_per_socket_max: 100,
            topic_bytes_max: 255,
            event_bytes_max: 255,
            ref_bytes_max: 255,
            messages_per_socket: Rate::per_second(5_000, 10_000),
            requests_in_flight_per_socket_max: 256,
            outbound_queue_bytes_max: MIB,
            reader_lag_bytes_max: 128 * KIB,
            socket_idle_timeout_ms: 60_000,
            reader_stall_timeout_ms: 30_000,
            joins_per_agent: Rate::per_minute(30),

            chunk_content_bytes_max: 64 * KIB,
            chunk_metadata_bytes_max: 4 * KIB,
            idempotency_key_bytes_max: 128,
            idempotency_answer_bytes_max: 256 * KIB,
            chunks_per_stream: Rate::per_second(200, 400),
            chunks_per_agent: Rate::per_second(2_000, 4_000),
            stream_buffer_chunks_max: 10_000,
            stream_buffer_bytes_max: 4 * MIB,
            stream_memory_bytes_max: 512 * MIB,
            stream_read_bytes_max: 256 * KIB,
            streams_live_max: 100_000,
            payment_channels_live_max: 100_000,
            payment_channel_accept_ms: 3_600_000,
            payment_proposal_ms: 300_000,
            dispute_evidence_bytes_max: 16 * KIB,

            capabilities_max: 100,
            capability_chars_max: 64,
            name_chars_max: 128,
            did_bytes_max: 256,
            agent_metadata_bytes_max: 4 * KIB,
            discover_results_max: 100,
            credentials_per_owner_max: 100,
            blocks_per_agent_max: 1_000,
            agents_per_user_max: 10_000,

            task_document_bytes_max: 256 * KIB,
            task_error_bytes_max: 16 * KIB,
            task_channel_chunk_bytes_max: 256 * KIB,
            task_channel_stream_bytes_max: 64 * MIB,
            task_channel_chunks_max: 100_000,
            task_channel_queue_bytes_max: 32 * MIB,
            task_checkpoint_bytes_max: 256 * KIB,
            progress_message_chars_max: 1_000,
            note_chars_max: 5_000,
            notes_per_task_max: 1_000,
            negotiation_terms_bytes_max: 16 * KIB,
            negotiation_reason_chars_max: 500,
            negotiations_open_per_agent_max: 1_000,
            payment_channels_per_agent_max: 10_000,
            sessions_live_max: 100_000,
            team_members_max: 100,
            teams_per_agent_max: 1_000,
            team_open_votes_max: 20,
            team_entry_bytes_max: 64 * KIB,
            team_entries_max: 100_000,
            team_entries_bytes_max: 256 * MIB,
            team_actions_per_agent: Rate::per_second(50, 200),
            page_items_default: 20,
            page_items_max: 100,

            message_payload_bytes_max: 256 * KIB,
            message_type_chars_max: 64,
            message_reason_chars_max: 1_000,
            message_batch_max: 500,
            messages_per_agent: Rate::per_second(5_000, 10_000),
            mailbox_messages_max: 100_000,
            mailbox_bytes_max: 256 * MIB,
            mailbox_sender_percent: 10,
            mailbox_window_max: 100,
            message_retry_ms: 1_000,
            message_retention_ms: 7 * DAY_MS,
            message_ids_kept_ms: 30 * DAY_MS,
            message_addresses_max: 65_536,
            message_queue_max: 8_192,
            analytics_entries_max: 100_000,
            webhooks_per_owner_max: 20,

            presence_entries_per_peer_max: 400_000,
            presence_bytes_per_peer_max: 512 * MIB,
            presence_history_bytes_max: 8 * MIB,
            presence_piece_bytes_max: 64 * KIB,
            presence_answer_pieces_max: 8,
            presence_inbox_bytes_max: 32 * MIB,
            presence_tells_bytes_max: MIB,

            store_queue_writes_max: 4_096,
            store_batch_rows_max: 1_000,
            store_journal_bytes_max: 32 * MIB,
            store_connections_max: 20,
            store_statement_timeout_ms: 5_000,
            store_call_timeout_ms: 10_000,

            cluster_peers_max: 256,
            cluster_handshakes_max: 64,
            cluster_outbox_bytes_max: 16 * MIB,
            cluster_window_bytes_max: 512 * KIB,
            cluster_message_bytes_max: 4 * MIB,
            cluster_redis_queue_bytes_max: 16 * MIB,
        }
    }
}

/// Bytes a WebSocket header can take: 2, and 8 of length, and 4 of mask.
pub const WEBSOCKET_HEADER_BYTES_MAX: usize = 14;
/// Bytes of a WebSocket control frame's payload (RFC 6455 §5.5).
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;
/// Room above `outbound_queue_bytes_max` for replies and closes, which must get out where broadcasts may not.
pub const OUTBOUND_RESERVE_BYTES: usize = 64 * KIB;
