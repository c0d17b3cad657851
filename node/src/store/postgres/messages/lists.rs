//! Lists of messages, and what waits for a recipient, as SQL.

use muster_actors::store::{COUNTED_MAX, MessageFilter, Page, PageRequest, Party, Waiting};
use muster_protocol::ids::AgentId;
use muster_protocol::message::{Message, MessageStatus};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::super::columns::{id, id_bytes, number};
use super::super::pool::{Connection, Failure};
use super::read_all;
use crate::store::sql::{lost, message_lists, page, page_rows, place_after, place_bytes, sides, whole};

/// A value of a statement.
pub type Value = Box<dyn ToSql + Sync + Send>;

/// Statements that count and list messages, and their values but for the last two of the list: only what is asked for is in
/// them, so that each has its index.
pub fn statements(filter: &MessageFilter) -> (String, String, Vec<Value>) {
    let (party, own) = match filter.party {
        Party::Agent(agent) => (id!(agent), "= $1"),
        Party::User(user) => (id!(user), "IN (SELECT id FROM agents WHERE owner = $1)"),
    };
    let mut values: Vec<Value> = vec![Box::new(party)];
    let mut conditions = String::new();
    let mut add = |column: &str, value: Value| {
        values.push(value);
        conditions += &format!(" AND {column} = ${}", values.len());
    };
    if let Some(from) = filter.from {
        add("from_agent", Box::new(id!(from)));
    }
    if let Some(to) = filter.to {
        add("to_agent", Box::new(id!(to)));
    }
    if let Some(kind) = &filter.kind {
        add("kind", Box::new(kind.clone()));
    }
    if let Some(status) = filter.status {
        add("status", Box::new(status.as_str()));
        if let Some(lost) = lost(status) {
            add("lost", Box::new(lost));
        }
        if status == MessageStatus::Queued {
            conditions += " AND open";
        }
    }
    let own = (own, sides(filter), "messages");
    let (counting, listing) =
        message_lists(own, &conditions, COUNTED_MAX, |at| format!("${at}"), values.len());
    (counting, listing, values)
}

/// Values as they are handed over.
pub fn borrowed(values: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    values.iter().map(|value| &**value as &(dyn ToSql + Sync)).collect()
}

/// Messages, newest first.
pub async fn list(
    c: &Connection,
    filter: &MessageFilter,
    request: &PageRequest,
) -> Result<Page<Message>, Failure> {
    if sides(filter) == (false, false) {
        return Ok(Page { items: Vec::new(), total: 0, next: None });
    }
    let (counting, listing, mut values) = statements(filter);
    let total = c.count(&counting, &borrowed(&values)).await?;
    values.push(Box::new(place_after(request)));
    values.push(Box::new(page_rows(request)));
    let items = read_all(&c.query(&listing, &borrowed(&values)).await?)?;
    let page = page(items, request.limit, total, |mail| place_bytes(mail.seq));
    let items = page.items.into_iter().map(|mail| mail.message).collect();
    Ok(Page { items, total: page.total, next: page.next })
}

/// Reads the index of what waits, and no message.
pub const WAITING: &str = "SELECT from_agent, count(*), sum(bytes)::bigint FROM
        (SELECT from_agent, bytes FROM messages WHERE to_agent = $1 AND open ORDER BY seq LIMIT $2) AS waiting
    GROUP BY from_agent";

/// What waits for a recipient.
pub async fn waiting(
    c: &Connection,
    to: AgentId,
    most: usize,
    heavy: (usize, usize),
) -> Result<Waiting, Failure> {
    let small = |row: &Row, index| -> Result<usize, Failure> {
        Ok(usize::try_from(number(row, index)?).unwrap_or(usize::MAX))
    };
    let read = |row: &Row| -> Result<_, Failure> {
        Ok((AgentId::from_bytes(id_bytes(row, 0)?), (small(row, 1)?, small(row, 2)?)))
    };
    let rows = c.query(WAITING, &[&id!(to), &whole(most)]).await?;
    let senders = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    Ok(Waiting::of(senders.into_iter(), heavy))
}
