//! Lists of messages, and what waits for a recipient, as SQL.

use muster_actors::store::{COUNTED_MAX, MessageFilter, Page, PageRequest, Party, StoreResult, Waiting};
use muster_protocol::ids::AgentId;
use muster_protocol::message::{Message, MessageStatus};
use rusqlite::{Connection, Row, ToSql, params_from_iter};

use super::super::columns::{id_bytes, rows};
use super::super::sql_error;
use super::read_mail_row;
use crate::store::sql::{lost, message_lists, page, page_rows, place_after, place_bytes, sides, whole};

/// Statements that count and list messages, and their values but for the last two of the list: only what is asked for is in
/// them, so that each has its index.
fn lists(filter: &MessageFilter) -> (String, String, Vec<Box<dyn ToSql>>) {
    let mut values: Vec<Box<dyn ToSql>> = Vec::new();
    let party = match filter.party {
        Party::Agent(agent) => *agent.as_bytes(),
        Party::User(user) => *user.as_bytes(),
    };
    values.push(Box::new(party));
    let mut conditions = String::new();
    let mut add = |column: &str, value: Box<dyn ToSql>| {
        values.push(value);
        conditions += &format!(" AND {column} = ?{}", values.len());
    };
    if let Some(from) = filter.from {
        add("from_agent", Box::new(*from.as_bytes()));
    }
    if let Some(to) = filter.to {
        add("to_agent", Box::new(*to.as_bytes()));
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
            conditions += " AND open = 1";
        }
    }
    let own = match filter.party {
        Party::Agent(_) => "= ?1",
        Party::User(_) => "IN (SELECT id FROM agents WHERE owner = ?1)",
    };
    // SQLite takes the index of all for as good, because it is narrower.
    let is_queued = filter.status == Some(MessageStatus::Queued);
    let received = if is_queued { "messages INDEXED BY messages_open" } else { "messages" };
    let own = (own, sides(filter), received);
    let (counting, listing) =
        message_lists(own, &conditions, COUNTED_MAX, |at| format!("?{at}"), values.len());
    (counting, listing, values)
}

/// Messages, newest first.
pub fn list(c: &Connection, filter: &MessageFilter, request: &PageRequest) -> StoreResult<Page<Message>> {
    if sides(filter) == (false, false) {
        return Ok(Page { items: Vec::new(), total: 0, next: None });
    }
    let (counting, listing, mut values) = lists(filter);
    let total = c
        .prepare_cached(&counting)
        .and_then(|mut s| s.query_row(params_from_iter(values.iter()), |row| row.get::<_, u64>(0)))
        .map_err(sql_error)?;
    values.push(Box::new(place_after(request)));
    values.push(Box::new(page_rows(request)));
    let items = c
        .prepare_cached(&listing)
        .and_then(|mut s| {
            s.query_map(params_from_iter(values.iter()), read_mail_row)?.collect::<rusqlite::Result<Vec<_>>>()
        })
        .map_err(sql_error)?;
    let page = page(items, request.limit, total, |mail| place_bytes(mail.seq));
    let items = page.items.into_iter().map(|mail| mail.message).collect();
    Ok(Page { items, total: page.total, next: page.next })
}

/// Reads the index of what waits, and no message.
const WAITING: &str = "SELECT from_agent, count(*), sum(bytes) FROM
    (SELECT from_agent, bytes FROM messages INDEXED BY messages_open WHERE to_agent = ?1 AND open = 1
     ORDER BY seq LIMIT ?2) GROUP BY from_agent";

/// What waits for a recipient.
pub fn waiting(c: &Connection, to: AgentId, most: usize, heavy: (usize, usize)) -> StoreResult<Waiting> {
    let read = |row: &Row<'_>| {
        Ok((AgentId::from_bytes(id_bytes(row, 0)?), (row.get::<_, usize>(1)?, row.get::<_, usize>(2)?)))
    };
    let senders = rows(c, WAITING, &[to.as_bytes(), &whole(most)], read)?;
    Ok(Waiting::of(senders.into_iter(), heavy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::schema::migrate;

    fn plan(c: &Connection, sql: &str, parameters: usize) -> Vec<String> {
        let values = vec![rusqlite::types::Value::Integer(1); parameters];
        let mut statement = c.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let rows = statement.query_map(params_from_iter(values), |row| row.get(3)).unwrap();
        rows.collect::<rusqlite::Result<_>>().unwrap()
    }

    /// R117 R119: dead letters are found among many others, and a list looks only where there can be something.
    #[test]
    fn lists_go_by_the_index_of_what_is_asked_for() {
        let mut c = Connection::open_in_memory().unwrap();
        migrate(&mut c).unwrap();
        let (own, other) = (AgentId::from_bytes([1; 16]), AgentId::from_bytes([2; 16]));
        let all = MessageFilter { party: Party::Agent(own), from: None, to: None, kind: None, status: None };
        let status = |status| MessageFilter { status: Some(status), ..all.clone() };
        let failed = &[
            "messages_lost_by_sender (from_agent=? AND lost=?",
            "messages_lost_by_recipient (to_agent=? AND lost=?",
        ][..];
        let cases = [
            (all.clone(), &["messages_by_sender (from_agent=?", "messages_by_recipient (to_agent=?"][..]),
            (status(MessageStatus::Failed), failed),
            (status(MessageStatus::Rejected), failed),
            (status(MessageStatus::Queued), &["messages_open (to_agent=?"][..]),
            (MessageFilter { to: Some(own), ..all.clone() }, &["messages_by_recipient (to_agent=?"][..]),
            (
                MessageFilter { from: Some(other), ..status(MessageStatus::Failed) },
                &["(to_agent=? AND lost=?"][..],
            ),
        ];
        for (filter, expected) in cases {
            let (counting, listing, values) = lists(&filter);
            for (sql, parameters) in [(counting, values.len()), (listing, values.len() + 2)] {
                let plan = plan(&c, &sql, parameters);
                for index in expected {
                    assert!(plan.iter().any(|step| step.contains(index)), "{filter:?}: {index} in {plan:#?}");
                }
                assert!(plan.iter().all(|step| !step.starts_with("SCAN messages")), "{plan:#?}");
            }
        }
        let one_side = lists(&MessageFilter { to: Some(own), ..all }).1;
        assert!(!one_side.contains("UNION"), "{one_side}");
        let fetching = plan(&c, &super::super::fetching(), 4);
        let by_place = "SEARCH messages USING INDEX messages_open (to_agent=?)";
        assert!(fetching.iter().any(|step| step == by_place), "{fetching:#?}");
        assert!(!fetching.iter().any(|step| step.contains("TEMP B-TREE FOR ORDER BY")), "{fetching:#?}");
        let waiting = plan(&c, WAITING, 2);
        assert!(waiting.iter().any(|step| step.contains("COVERING INDEX messages_open")), "{waiting:#?}");
    }
}
