//! What both stores say alike: columns and orders, numbers as SQL has them, and pages.

use std::collections::HashMap;

use muster_actors::store::{MessageFilter, Page, PageRequest, Party, StoreError, StoreResult};
use muster_protocol::discovery::SortBy;
use muster_protocol::ids::AgentId;
use muster_protocol::ledger::Entry;
use muster_protocol::message::MessageStatus;
use muster_protocol::time::Timestamp;

/// Of an agent, in the order in which they are read.
pub const AGENT_COLUMNS: &str = "id, owner, name, did, capabilities, pricing_model, base_price, public_key, \
     protocol_versions, metadata, status, tasks_completed, tasks_failed, created_at, updated_at, last_seen_at";
/// Of a task.
pub const TASK_COLUMNS: &str = "id, status, client, client_owner, provider, capability, input, output, error, max_price, \
     external_client, hiring, created_at, updated_at, ended_at, price, fee, escrow, progress_percent, progress_message";
/// Of a stream of a task's channel.
pub const CHANNEL_STREAM_COLUMNS: &str = "direction, base, last_seq, chunks, bytes, checksum, total_size";
/// Of a chunk of one.
pub const CHANNEL_CHUNK_COLUMNS: &str = "nth, seq, is_base64, content";
/// Of a request that is done once.
pub const KEYED_REQUEST_COLUMNS: &str = "fingerprint, state, created_at, lease_until, status, body";
/// Of a note.
pub const NOTE_COLUMNS: &str = "id, from_agent, from_user, content, inserted_at";
/// Of a negotiation.
pub const NEGOTIATION_COLUMNS: &str = "id, listed_as, version, client, client_key, provider, provider_key, opened_by, task, \
     base_price, terms, terms_sha256, offers, status, created_at, expires_at, updated_at, ended_by, reason, agreement";
/// Of an agreement.
pub const AGREEMENT_COLUMNS: &str = "id, negotiation, client, provider, created_at, document";

/// An entry that must not be posted: a fault of this program, and money stays where it is.
#[must_use]
pub fn unbalanced(entry: &Entry) -> StoreError {
    StoreError::Unavailable(format!("{} does not add up", entry.operation))
}

/// A record as a document.
#[must_use]
pub fn written<T: serde::Serialize>(record: &T) -> String {
    serde_json::to_string(record).unwrap_or_default()
}

/// How agents are sorted.
#[must_use]
pub const fn order_by(sort: SortBy) -> &'static str {
    match sort {
        SortBy::Reputation => "reputation DESC, base_price, id",
        SortBy::Price => "base_price, id",
        SortBy::Name => "name, id",
    }
}

/// A number as SQL has it; what is larger than all there are is the largest.
pub fn whole<N>(number: N) -> i64
where
    i64: TryFrom<N>,
{
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Rows of a page to ask for: one more than wanted shows whether there are more.
#[must_use]
pub fn page_rows(request: &PageRequest) -> i64 {
    whole(request.limit).saturating_add(1)
}

/// Newest first: ids below the cursor.
#[must_use]
pub fn before(request: &PageRequest) -> [u8; 16] {
    request.after.unwrap_or([0xFF; 16])
}

/// Turns the rows that [`page_rows`] asked for into a page.
pub fn page<T>(mut items: Vec<T>, limit: usize, total: u64, id: impl Fn(&T) -> [u8; 16]) -> Page<T> {
    let more = items.len() > limit;
    items.truncate(limit);
    let next = if more { items.last().map(id) } else { None };
    Page { items, total, next }
}

/// Until when each is blocked: of two blocks, one each way, the longer one counts.
#[must_use]
pub fn longest(blocks: Vec<(AgentId, Option<Timestamp>)>) -> HashMap<AgentId, Option<Timestamp>> {
    let mut blocked = HashMap::new();
    for (other, until) in blocks {
        let longest = blocked.entry(other).or_insert(until);
        *longest = (*longest).zip(until).map(|(a, b)| a.max(b));
    }
    blocked
}

/// Whether this program can work with a database of that version, when it knows `newest`.
///
/// # Errors
/// The database is a newer one.
pub fn check_version(current: usize, newest: usize) -> StoreResult<()> {
    if current <= newest {
        return Ok(());
    }
    Err(StoreError::Unavailable(format!(
        "the database has version {current}, this program knows versions up to {newest}: use a newer one"
    )))
}

/// Of a message: place, then what is in it, then whether it is open.
pub const MESSAGE_COLUMNS: &str = "seq, id, from_agent, to_agent, kind, version, guarantee, status, retries, inserted_at, \
     expires_at, delivered_at, acknowledged_at, reason, dedup_key, signature, payload, open";

/// Entries of a team that are forgotten in one transaction.
pub const FORGOTTEN_AT_ONCE: usize = 100;

/// Of a handoff.
pub const HANDOFF_COLUMNS: &str = "message, task, parent_task, from_agent, to_agent, context, required_capabilities, price, \
     created_at, accepted_at, declined_at, reason";

/// Which of a party's messages a list can hold at all: whether what it has sent, and whether what it was sent.
#[must_use]
pub fn sides(filter: &MessageFilter) -> (bool, bool) {
    let Party::Agent(own) = filter.party else { return (true, true) };
    match (filter.from, filter.to) {
        (None, None) => (true, true),
        (Some(from), _) if from == own => (true, false),
        (_, Some(to)) if to == own => (false, true),
        (Some(_), None) => (false, true),
        (None, Some(_)) => (true, false),
        (Some(_), Some(_)) => (false, false),
    }
}

/// How a message ended, if it was not received: by this it is found in a history that is mostly something else.
#[must_use]
pub fn lost(status: MessageStatus) -> Option<&'static str> {
    use MessageStatus::{Expired, Failed, Rejected};
    matches!(status, Failed | Rejected | Expired).then(|| status.as_str())
}

/// Counts and lists messages a party has sent or was sent, newest first. Takes how the party's agents are told (the right side
/// of a comparison), on which sides they are looked for, from where those are read that it was sent, more conditions, up to how
/// many are counted, how a value is written, and how many values there are; the list takes two more: the place it goes on from,
/// and how many. Each side has an index in the order of places; a query for both at once would read all there are.
#[must_use]
pub fn message_lists(
    (own, sides, received): (&str, (bool, bool), &str),
    conditions: &str,
    counted_max: u64,
    value: impl Fn(usize) -> String,
    values: usize,
) -> (String, String) {
    let sides = match sides {
        (true, true) => vec![
            format!("messages WHERE from_agent {own}"),
            format!("{received} WHERE to_agent {own} AND NOT (from_agent {own})"),
        ],
        (true, false) => vec![format!("messages WHERE from_agent {own}")],
        _ => vec![format!("{received} WHERE to_agent {own}")],
    };
    let of_sides =
        |part: &dyn Fn(&String) -> String| sides.iter().map(part).collect::<Vec<_>>().join(" UNION ALL ");
    let counted = of_sides(&|side| format!("SELECT seq FROM {side}{conditions}"));
    let counting =
        format!("SELECT count(*) FROM (SELECT 1 FROM ({counted}) AS sides LIMIT {counted_max}) AS counted");
    let (after, rows) = (value(values + 1), value(values + 2));
    let listed = of_sides(&|side| {
        format!(
            "SELECT * FROM (SELECT {MESSAGE_COLUMNS} FROM {side}{conditions} AND seq < {after}
             ORDER BY seq DESC LIMIT {rows}) AS side"
        )
    });
    (counting, format!("{listed} ORDER BY seq DESC LIMIT {rows}"))
}

/// A place as the cursor of a list.
#[must_use]
pub fn place_bytes(seq: u64) -> [u8; 16] {
    u128::from(seq).to_be_bytes()
}

/// Newest first: places below the cursor.
#[must_use]
pub fn place_after(request: &PageRequest) -> i64 {
    request.after.map_or(i64::MAX, |after| whole(u128::from_be_bytes(after)))
}
