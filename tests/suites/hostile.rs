//! Slow and hostile clients: what each can make a node hold is bounded, an innocent client beside them is served, and
//! memory comes back. Each test prints its figure (`cargo nextest run -p muster-tests hostile --success-output immediate`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends")]
#![allow(clippy::print_stdout, reason = "figures are for people")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time and read the environment")]

use std::time::{Duration, Instant};

use http::Method;
use muster_protocol::limits::{Limits, OUTBOUND_RESERVE_BYTES};
use muster_tests::raw::{CONTINUATION, PING, Raw, TEXT, frame, text};
use muster_tests::siege::{
    KIB, MIB, NODE_BYTES, SOCKET_BYTES, Siege, metric, resident, until, while_beating,
};
use serde_json::json;

/// No rate stands in the way of an attack on memory.
const UNBOUNDED: &str = "{tokens=100000000,period_ms=1000,burst=100000000}";
/// How long a socket that takes nothing more is tried.
const CLOGGED: Duration = Duration::from_millis(300);

fn limits() -> Limits {
    Limits::default()
}

/// A bound of `limits`, as bytes.
fn bytes(limit: usize) -> u64 {
    limit as u64
}

fn unbounded(limit: &str) -> String {
    format!("limits.{limit}={UNBOUNDED}")
}

/// A5 R169: a connection that does not come to its request costs its head at most, and goes in time.
#[tokio::test(flavor = "multi_thread")]
async fn half_open_handshakes() {
    const COUNT: u64 = 600;
    let siege = Siege::lay("half-open handshakes", &["limits.handshake_timeout_ms=2000"]).await;
    let each = bytes(limits().http_head_bytes_max) + SOCKET_BYTES;
    let long = format!("GET / HTTP/1.1\r\nHost: test\r\nX-Long: {}", "x".repeat(20_000));
    siege
        .attack(COUNT * each + NODE_BYTES, |siege| {
            let mut open = siege.connections(COUNT);
            for (at, connection) in open.iter_mut().enumerate() {
                match at % 3 {
                    0 => {}
                    1 => connection.send(b"GET /socket/agent/websocket HTTP/1.1\r\nHo"),
                    _ => connection.send(long.as_bytes()),
                }
            }
            // The node ends each of them by itself.
            for connection in &mut open {
                connection.rest();
            }
        })
        .await;
    // Whoever asks is the only one.
    until(&siege.node, "muster_connections", 1).await;
}

/// A1 R11: what a frame announces is not what it costs.
#[tokio::test(flavor = "multi_thread")]
async fn lies_about_lengths() {
    const COUNT: u64 = 300;
    let siege = Siege::lay("lies about lengths", &[]).await;
    let announced = limits().message_bytes_max;
    siege
        .attack(COUNT * SOCKET_BYTES + NODE_BYTES, |siege| {
            let mut open = siege.sockets(COUNT);
            for (at, socket) in open.iter_mut().enumerate() {
                // Whole, or as a fragment of which the first was little.
                if at % 2 == 1 {
                    socket.send(&frame(false, TEXT, 1, b"["));
                    socket.send(&frame(true, CONTINUATION, announced - 1, b"0123456789"));
                } else {
                    socket.send(&frame(true, TEXT, announced, b"0123456789"));
                }
            }
            open
        })
        .await;
}

/// A1 A4 R11: a message that does not come to its end costs what has come of it, in a buffer that may have doubled.
#[tokio::test(flavor = "multi_thread")]
async fn messages_without_an_end() {
    const COUNT: u64 = 40;
    let siege = Siege::lay("messages without an end", &[]).await;
    let (most, fragments) = (limits().message_bytes_max, limits().message_fragments_max);
    let whole = frame(true, TEXT, most, &vec![b'x'; most - 1]);
    let piece = vec![b'x'; most / fragments];
    let mut pieces = frame(false, TEXT, piece.len(), &piece);
    for _ in 2..fragments {
        pieces.extend(frame(false, CONTINUATION, piece.len(), &piece));
    }
    siege
        .attack(COUNT * (2 * bytes(most) + SOCKET_BYTES) + NODE_BYTES, |siege| {
            let mut open = siege.sockets(COUNT);
            for (at, socket) in open.iter_mut().enumerate() {
                socket.send(if at % 2 == 0 { &whole } else { &pieces });
            }
            open
        })
        .await;
}

/// A1: fragments are counted, so that a message of nothing is no endless work; control frames between them neither.
#[tokio::test(flavor = "multi_thread")]
async fn floods_of_fragments() {
    const COUNT: u64 = 200;
    let siege = Siege::lay("floods of fragments", &[]).await;
    let fragments = limits().message_fragments_max;
    let mut flood = frame(false, TEXT, 1, b"[");
    for at in 0..fragments {
        flood.extend(frame(false, CONTINUATION, at % 2, &b"x"[..at % 2]));
        if at % 16 == 0 {
            flood.extend(frame(true, PING, 125, &[b'p'; 125]));
        }
    }
    siege
        .attack(COUNT * SOCKET_BYTES + NODE_BYTES, |siege| {
            let mut open = siege.sockets(COUNT);
            for socket in &mut open {
                socket.send(&flood);
            }
            for socket in &mut open {
                assert_eq!(socket.close_code(), 1_009);
            }
            open
        })
        .await;
}

/// R4 R169: topics that do not exist leave nothing behind, and of those that do a socket joins a bounded number.
#[tokio::test(flavor = "multi_thread")]
async fn topic_bombs() {
    const SOCKETS: u64 = 5;
    const INVENTED: usize = 4_000;
    let siege = Siege::lay("topic bombs", &[&unbounded("requests_per_credential")]).await;
    let most = limits().topics_per_socket_max;
    let provider = siege.node.agent("provider").await;
    let mut tasks = Vec::new();
    for _ in 0..most + 10 {
        tasks.push(siege.agent.task_for(&provider).await);
    }
    let metrics_bytes =
        async || siege.node.operator.send_with(Method::GET, "/metrics", &[], None).await.unwrap().1.len();
    let before = metrics_bytes().await;
    // A join is an actor and its mailbox; a stream is one for all who read it.
    let joins = SOCKETS * bytes(most) * 32 * KIB + bytes(most) * 64 * KIB;
    let run = std::cell::Cell::new(0);
    siege
        .attack(SOCKETS * SOCKET_BYTES + joins + NODE_BYTES, |siege| {
            let mut open = siege.sockets(SOCKETS);
            run.set(run.get() + 1);
            for (number, socket) in open.iter_mut().enumerate() {
                let mut refused = 0;
                for task in &tasks {
                    let answer = socket.join(&format!("task_stream:{task}"), "{}");
                    refused += usize::from(answer[4]["status"] == "error");
                }
                assert_eq!(refused, tasks.len() - most, "so many joins of one socket, and no more");
                for n in 0..INVENTED {
                    let kinds = ["task_stream", "agent", "room", "hirer"];
                    let topic = format!("{}:{}-{number}-{n}-{}", kinds[n % 4], run.get(), "t".repeat(180));
                    socket.send(&text(&format!(r#"["x","x","{topic}","phx_join",{{}}]"#)));
                    if n % 100 == 99 {
                        for _ in 0..100 {
                            assert_eq!(socket.message()[4]["status"], "error");
                        }
                    }
                }
            }
            open
        })
        .await;
    let grown = metrics_bytes().await - before;
    assert!(bytes(grown) < 4 * KIB, "metrics grew by {grown} bytes: topics became labels");
}

/// R45: who asks and does not read is owed a bounded number of bytes, and then is not read either.
#[tokio::test(flavor = "multi_thread")]
async fn askers_that_do_not_read() {
    const COUNT: u64 = 8;
    let siege = Siege::lay("askers that do not read", &[]).await;
    let beat = text(&format!(r#"[null,"{}","phoenix","heartbeat",{{}}]"#, "r".repeat(200)));
    let burst = beat.repeat(200);
    // What waits for the peer, and what came of it behind that; replies of one reading may overlap the bound.
    let owed = limits().outbound_queue_bytes_max + OUTBOUND_RESERVE_BYTES;
    // Small replies wait each in a buffer of its own.
    let each = 2 * bytes(owed) + 256 * KIB + SOCKET_BYTES;
    siege
        .attack(COUNT * each + NODE_BYTES, |siege| {
            let mut open = siege.deaf_sockets(COUNT);
            // More than the kernels hold for both directions.
            let rounds = 64 * usize::try_from(MIB).unwrap() / burst.len();
            for socket in &mut open {
                let taken = socket.pour(&burst, rounds, CLOGGED);
                assert!(taken < rounds * burst.len(), "it reads on and on");
            }
            open
        })
        .await;
}

/// R45: a reader that does not read costs its lag; what it misses is in the log.
#[tokio::test(flavor = "multi_thread")]
async fn readers_that_do_not_read() {
    const COUNT: u64 = 24;
    const CHUNKS: usize = 120;
    let siege =
        Siege::lay("readers that do not read", &["stream.ack=memory", &unbounded("chunks_per_stream")]).await;
    let provider = siege.node.agent("provider").await;
    let task = siege.agent.task_for(&provider).await;
    let content = "x".repeat(60_000);
    let emit = async |count: usize| {
        for _ in 0..count {
            let path = format!("/api/v1/tasks/{task}/chunk");
            let body = json!({ "content": content });
            provider.client.send(Method::POST, &path, Some(&body)).await.unwrap();
        }
    };
    // More than kernels hold for a connection, and than memory keeps of a stream.
    emit(CHUNKS).await;
    // All of the store's readers have their caches by then.
    for _ in 0..4 {
        let read = || siege.agent.read_stream(&task, 0);
        let read = tokio::join!(read(), read(), read(), read(), read(), read(), read(), read());
        assert_eq!((read.0.len(), read.7.len()), (CHUNKS, CHUNKS));
    }
    let limits = limits();
    // A write may overlap the bound by as much as is read at a time, while as much comes from the store, as it was stored
    // and as it is sent; the stream keeps its own part once.
    let each = bytes(limits.reader_lag_bytes_max + 3 * limits.stream_read_bytes_max) + SOCKET_BYTES;
    let bound = COUNT * each + 2 * bytes(limits.stream_buffer_bytes_max) + NODE_BYTES;
    let topic = format!("task_stream:{task}");
    let before = std::cell::Cell::new(siege.settled("muster_chunks_delivered_total"));
    siege
        .attack(bound, |siege| {
            let mut open = siege.deaf_sockets(COUNT);
            for socket in &mut open {
                let joined = socket.join(&topic, r#"{"after_seq":0}"#);
                assert_eq!(joined[4]["status"], "ok", "{joined}");
            }
            let delivered = siege.settled("muster_chunks_delivered_total") - before.get();
            before.set(before.get() + delivered);
            assert!(delivered > COUNT && delivered < COUNT * bytes(CHUNKS), "{delivered}: all are behind");
            open
        })
        .await;
}

/// D3 R11: who pushes and pushes is answered and slowed down, and holds what may be in work.
#[tokio::test(flavor = "multi_thread")]
async fn floods_of_pushes() {
    const COUNT: u64 = 4;
    let siege = Siege::lay("floods of pushes", &[]).await;
    let topic = format!("agent:{}", siege.agent.id);
    let push = format!(r#"["1","n","{topic}","nonsense",{{"x":"{}"}}]"#, "x".repeat(2_000));
    let burst = text(&push).repeat(100);
    // Messages in work, with what each carries, beside a full queue of answers.
    let work = bytes(limits().requests_in_flight_per_socket_max * (push.len() + 4_096));
    let owed = 2 * bytes(limits().outbound_queue_bytes_max + OUTBOUND_RESERVE_BYTES);
    siege
        .attack(COUNT * (work + owed + SOCKET_BYTES) + NODE_BYTES, |siege| {
            let mut open = Vec::new();
            for _ in 0..COUNT {
                let mut socket = Raw::open(&siege.node.address, &siege.agent.key);
                socket.send(&text(&format!(r#"["1","1","{topic}","phx_join",{{}}]"#)));
                open.push(socket);
            }
            // Each as fast as it can, and reading what it is told only at the end.
            let pouring: Vec<_> = open
                .into_iter()
                .map(|mut socket| {
                    std::thread::spawn({
                        let burst = burst.clone();
                        move || {
                            let begun = Instant::now();
                            while begun.elapsed() < Duration::from_secs(1) {
                                if socket.pour(&burst, 20, CLOGGED) < 20 * burst.len() {
                                    break;
                                }
                            }
                            socket
                        }
                    })
                })
                .collect();
            pouring.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        })
        .await;
}

/// R169: connections that come, join and vanish leave nothing, however many in a row.
#[tokio::test(flavor = "multi_thread")]
async fn connection_storms() {
    const AT_ONCE: u64 = 200;
    let siege = Siege::lay("connection storms", &[]).await;
    let topic = format!("agent:{}", siege.agent.id);
    // Those of the storm before may not all be forgotten yet.
    siege
        .attack(2 * AT_ONCE * SOCKET_BYTES + NODE_BYTES, |siege| {
            for _ in 0..5 {
                let mut open = siege.sockets(AT_ONCE);
                for socket in &mut open {
                    socket.send(&text(&format!(r#"["1","1","{topic}","phx_join",{{}}]"#)));
                }
                open.into_iter().for_each(Raw::reset);
            }
        })
        .await;
    until(&siege.node, "muster_joins", 0).await;
    until(&siege.node, "muster_agents_online", 0).await;
}

/// R13 R169: sessions of clients that never poll again end by themselves, and bodies posted to one wait unread.
#[tokio::test(flavor = "multi_thread")]
async fn polling_sessions_that_are_left() {
    const SESSIONS: u64 = 300;
    const BODIES: u64 = 100;
    const BODY_BYTES: usize = 60_000;
    let siege = Siege::lay("polling sessions that are left", &["limits.longpoll_window_ms=1000"]).await;
    let path = format!("/socket/agent/longpoll?vsn=2.0.0&api_key={}", siege.agent.key);
    // One body of a session is read at a time, and what the kernel holds is not the node's.
    siege
        .attack((SESSIONS + BODIES) * SOCKET_BYTES + 4 * bytes(BODY_BYTES) + NODE_BYTES, |siege| {
            let begin = |_| {
                let mut connection = Raw::connect(&siege.node.address);
                connection.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes());
                let answer = connection.read_until("\"}");
                let token = answer.split("\"token\":\"").nth(1).and_then(|rest| rest.split('"').next());
                (connection, token.expect("a token").to_owned())
            };
            let sessions: Vec<(Raw, String)> = (0..SESSIONS).map(begin).collect();
            let token = &sessions[0].1;
            let head = format!(
                "POST {path}&token={token} HTTP/1.1\r\nHost: test\r\nContent-Type: application/x-ndjson\r\n\
                 Content-Length: {BODY_BYTES}\r\n\r\n"
            );
            let mut bodies = siege.connections(BODIES);
            for connection in &mut bodies {
                connection.send(head.as_bytes());
                connection.send(&vec![b' '; BODY_BYTES - 1]);
            }
            (sessions, bodies)
        })
        .await;
    until(&siege.node, "muster_longpoll_sessions", 0).await;
    until(&siege.node, "muster_sockets", 0).await;
}

/// R13 R45: peers that ask by HTTP and read no answer are cut off, with a credential or without.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads() {
    const COUNT: u64 = 6;
    let siege = Siege::lay("answers that nobody reads", &["limits.reader_stall_timeout_ms=2000"]).await;
    let ask = b"POST /socket/agent/longpoll?token=x HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n"
        .repeat(2_000);
    siege
        .attack(COUNT * 2 * SOCKET_BYTES + NODE_BYTES, |siege| {
            let mut deaf = siege.deaf_connections(COUNT);
            for connection in &mut deaf {
                connection.pour(&ask, 50, CLOGGED);
            }
            deaf
        })
        .await;
    let mut deaf = siege.deaf_connections(COUNT);
    for connection in &mut deaf {
        connection.pour(&ask, 50, CLOGGED);
    }
    // The one that asks for the metrics is left.
    until(&siege.node, "muster_connections", 1).await;
}

/// R169: of large bodies so many are read at once; the others are refused, and hold nothing.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_without_an_end() {
    const COUNT: u64 = 64;
    const READ_AT_ONCE: u64 = 8;
    let setting = format!("limits.http_large_bodies_max={READ_AT_ONCE}");
    let siege = Siege::lay("bodies without an end", &[&setting, "limits.handshake_timeout_ms=60000"]).await;
    let most = limits().http_body_bytes_max;
    let request = format!(
        "POST /api/v1/tasks HTTP/1.1\r\nHost: test\r\nX-Api-Key: {}\r\nContent-Type: application/json\r\n\
         Content-Length: {most}\r\n\r\n",
        siege.agent.key
    );
    let body = vec![b' '; most - 1];
    siege
        .attack(READ_AT_ONCE * 2 * bytes(most) + COUNT * SOCKET_BYTES + NODE_BYTES, |siege| {
            let mut open = siege.connections(COUNT);
            for connection in &mut open {
                connection.send(request.as_bytes());
                connection.pour(&body, 1, CLOGGED);
            }
            let end = Instant::now() + Duration::from_secs(60);
            let refused = loop {
                let statuses = open.iter_mut().filter_map(Raw::status_if_any);
                let refused = statuses.filter(|status| *status == 503).count() as u64;
                if refused >= COUNT - READ_AT_ONCE || Instant::now() > end {
                    break refused;
                }
            };
            assert_eq!(refused, COUNT - READ_AT_ONCE, "the rest is refused");
            open
        })
        .await;
}

/// R166 R169: after a kill all clients come back at once, and the node stays what it is.
#[tokio::test(flavor = "multi_thread")]
async fn reconnect_storm_after_a_restart() {
    const CLIENTS: u64 = 400;
    let mut siege = Siege::lay("reconnect storm after a restart", &[]).await;
    let topic = format!("agent:{}", siege.agent.id);
    let innocent = siege.node.agent("another").await;
    let join_all = |siege: &Siege| {
        let mut open = siege.sockets(CLIENTS);
        for socket in &mut open {
            assert_eq!(socket.join(&topic, "{}")[4]["status"], "ok");
        }
        open
    };
    let before = join_all(&siege);
    let held = resident(siege.node.pid());
    siege.node.kill();
    drop(before);
    siege.node.launch().await;
    let fresh = resident(siege.node.pid());
    let begun = Instant::now();
    let (back, answered) = while_beating(&siege.node, &innocent.key, || join_all(&siege));
    let took = begun.elapsed();
    let grown = resident(siege.node.pid()).saturating_sub(fresh);
    let bound = CLIENTS * SOCKET_BYTES + NODE_BYTES;
    println!(
        "reconnect storm after a restart: {CLIENTS} back in {took:?}; grew by {} KiB of {} allowed; {} KiB in all, {} KiB before the kill",
        grown / KIB,
        bound / KIB,
        (fresh + grown) / KIB,
        held / KIB
    );
    siege.served(answered);
    assert!(grown <= bound, "grew by {grown}, bound {bound}");
    assert_eq!(metric(&siege.node, "muster_joins").await, CLIENTS, "all are back");
    drop(back);
}
