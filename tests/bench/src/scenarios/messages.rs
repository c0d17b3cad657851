//! Messages between agents that are accepted, each answered when it is durable; beside a bare loop that stores the same rows
//! and does nothing else.

use std::time::{Duration, Instant};

use muster_tests::raw;
use rusqlite::{Connection, params};

use super::{CONTENT, Measured, Scale, drive, measure};
use crate::door::{self, Entry};
use crate::fleet::{Fleet, Latencies};
use crate::node::{Agent, Node, cpu_of};
use crate::wire::{AnswerCounter, ReplyCounter};

/// Sockets that send, each an agent's.
const SENDERS: usize = 8;
/// Messages under way on each.
const UNDER_WAY: u64 = 128;
/// Agents that are sent messages; none is there.
const RECIPIENTS: usize = 100;
/// Connections that post batches.
const CONNECTIONS: usize = 4;
/// Messages of one batch.
const BATCH: usize = 250;
/// As in the embedded store.
const WAL_PAGES: u32 = 8_192;

/// Durable messages a second.
pub fn messages(scale: &Scale) -> Vec<Measured> {
    let mut rows = vec![plain(scale.time, 100), plain(scale.time, 1_000)];
    rows.push(by_sockets(scale));
    rows.push(by_batches(scale));
    rows
}

/// One thread, one table with the same columns and indexes, and so many rows a commit.
fn plain(time: Duration, together: u64) -> Measured {
    let folder = tempfile::tempdir().unwrap();
    let connection = Connection::open(folder.path().join("plain.db")).unwrap();
    connection.pragma_update(None, "journal_mode", "WAL").unwrap();
    connection.pragma_update(None, "synchronous", "FULL").unwrap();
    connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES).unwrap();
    connection.pragma_update(None, "cache_size", -16_384).unwrap();
    let schema = include_str!("../../../../node/src/store/migrations/sqlite/0007_messages.sql");
    connection.execute_batch(schema).unwrap();
    let mut insert = connection
        .prepare(
            "INSERT INTO messages (seq, id, from_agent, to_agent, open, status, guarantee, version, inserted_at,
                expires_at, kind, payload)
             VALUES (?1, ?2, ?3, ?4, 1, 'queued', 'at_least_once', '1.1.0', ?5, ?6, 'note', ?7)",
        )
        .unwrap();
    let payload = format!(r#"{{"text":"{CONTENT}"}}"#);
    let (cpu, begun, mut latencies) = (cpu_of("self"), Instant::now(), Latencies::new());
    let mut stored = 0_u64;
    while begun.elapsed() < time {
        let commit = Instant::now();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        for _ in 0..together {
            stored += 1;
            let id = (u128::from(stored) << 64 | u128::from(stored.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
                .to_be_bytes();
            let (from, to) =
                ((stored % SENDERS as u64).to_be_bytes(), (stored % RECIPIENTS as u64).to_be_bytes());
            let now = 1_764_000_000_000_i64 + i64::try_from(stored).unwrap();
            insert
                .execute(params![
                    stored.cast_signed(),
                    id,
                    [from, from].concat(),
                    [to, to].concat(),
                    now,
                    now,
                    payload
                ])
                .unwrap();
        }
        connection.execute_batch("COMMIT").unwrap();
        latencies.note(commit.elapsed(), together);
    }
    let took = begun.elapsed();
    let name = format!("a bare SQLite loop, {together} of these rows a commit");
    let row = measure(name, (stored, took, latencies), (cpu_of("self") - cpu, 0.0));
    Measured { generator_cpu: None, ..row }
}

fn node() -> (Node, Vec<Agent>, Vec<Agent>) {
    let mut node = Node::start(&[
        "limits.mailbox_messages_max=100000000",
        "limits.mailbox_bytes_max=100000000000",
        "limits.mailbox_sender_percent=100",
    ]);
    let (senders, recipients) = (node.agents(SENDERS), node.agents(RECIPIENTS));
    (node, senders, recipients)
}

/// `send_message` on a few sockets.
fn by_sockets(scale: &Scale) -> Measured {
    let (node, senders, recipients) = node();
    let topics: Vec<String> = senders.iter().map(|sender| format!("messages:{}", sender.id)).collect();
    let entry =
        |at: usize| Entry { mount: "/socket", key: &senders[at].key, topic: &topics[at], payload: "{}" };
    let streams = door::open(node.address(), 0..SENDERS, entry);
    let mut fleet = Fleet::with(streams.into_iter().map(|stream| (stream, ReplyCounter::default())));
    fleet.settle(Duration::from_millis(300));
    let (server, own) = (node.process.cpu(), cpu_of("self"));
    let load = (1, UNDER_WAY * SENDERS as u64);
    let driven = drive(&mut fleet, load, scale.time, |fleet, n| {
        let n = usize::try_from(n).unwrap();
        let (at, to) = (n % SENDERS, &recipients[n % RECIPIENTS].id);
        fleet.send(
            at,
            &raw::text(&format!(
                r#"["1","{n}","{}","send_message",{{"to_agent_id":"{to}","type":"note","payload":{{"text":"{CONTENT}"}}}}]"#,
                topics[at]
            )),
        );
    });
    let used = (node.process.cpu() - server, cpu_of("self") - own);
    measure(format!("messages by send_message on {SENDERS} sockets, durable"), driven, used)
}

/// Batches by REST.
fn by_batches(scale: &Scale) -> Measured {
    let (node, senders, recipients) = node();
    let address = node.address();
    let requests: Vec<Vec<u8>> = (0..CONNECTIONS)
        .map(|at| {
            let messages: Vec<String> = (0..BATCH)
                .map(|n| {
                    let to = &recipients[(at * BATCH + n) % RECIPIENTS].id;
                    format!(r#"{{"to_agent_id":"{to}","type":"note","payload":{{"text":"{CONTENT}"}}}}"#)
                })
                .collect();
            let body = format!(r#"{{"messages":[{}]}}"#, messages.join(","));
            format!(
                "POST /api/v1/messages/batch HTTP/1.1\r\nHost: {address}\r\nX-Api-Key: {}\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                senders[at].key,
                body.len()
            )
            .into_bytes()
        })
        .collect();
    let connections = (0..CONNECTIONS).map(|at| (door::connect(address, at), AnswerCounter::default()));
    let mut fleet = Fleet::with(connections);
    let (server, own) = (node.process.cpu(), cpu_of("self"));
    let (begun, mut latencies) = (Instant::now(), Latencies::new());
    let mut sent_at = [begun; CONNECTIONS];
    let mut free: Vec<usize> = (0..CONNECTIONS).collect();
    let (mut sent, mut answered) = (0_u64, 0_u64);
    while begun.elapsed() < scale.time || answered < sent {
        assert!(begun.elapsed() < scale.time * 10, "of {sent} batches {answered} were answered");
        while begun.elapsed() < scale.time
            && let Some(at) = free.pop()
        {
            fleet.send(at, &requests[at]);
            sent_at[at] = Instant::now();
            sent += 1;
        }
        fleet.take(Duration::from_secs(1), |at, answers, now| {
            latencies.note(now.duration_since(sent_at[at]), answers * BATCH as u64);
            answered += answers;
            free.push(at);
        });
    }
    let took = begun.elapsed();
    let used = (node.process.cpu() - server, cpu_of("self") - own);
    let name = format!("messages by REST, {CONNECTIONS} connections, {BATCH} a request, durable");
    measure(name, (answered * BATCH as u64, took, latencies), used)
}
