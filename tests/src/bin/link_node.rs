//! A node that is nothing but its links, for tests of these: prints what comes as lines of JSON, and does what it is told on
//! standard input. Settings of `[cluster]` and `[limits]` are its arguments, as NAME=VALUE.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends")]
#![allow(clippy::print_stdout, reason = "this is how the test hears of it")]
#![allow(clippy::disallowed_methods, reason = "measures real time")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use muster_actors::cluster::{Cluster, Event, Receiver};
use muster_node::cluster::metric_definitions::ClusterMetrics;
use muster_node::cluster::nodes::Nodes;
use muster_node::cluster::transport::{Inbound, Transport};
use muster_node::config::{LogConfig, LogFormat, Sources, load};
use muster_node::{logging, metric_definitions, system_clock};
use muster_protocol::cluster::{Message, NodeKey};
use muster_protocol::json::Json;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixDatagram;
use tokio::sync::watch;

/// Prints events; answers `ping` with `pong`.
struct Printer {
    nodes: Arc<Nodes>,
    pongs: watch::Sender<u64>,
    taken: AtomicU64,
    is_quiet: bool,
}

fn publish(topic: &str, event: &str, payload: &Value) -> Message {
    let payload = Json::from_trusted_bytes(payload.to_string().into_bytes().into());
    Message::Publish { topic: topic.into(), event: event.into(), payload }
}

impl Receiver for Printer {
    fn receive(&self, event: Event) {
        let line = match event {
            Event::Up(key) => json!({ "event": "up", "node": key.to_string() }),
            Event::Down(key) => json!({ "event": "down", "node": key.to_string() }),
            Event::Reset(key) => json!({ "event": "reset", "node": key.to_string() }),
            Event::Message(key, message) => {
                let Message::Publish { topic, event, payload } = *message else { return };
                match topic.as_str() {
                    "ping" => {
                        self.nodes.send(&key, Message::Publish { topic: "pong".into(), event, payload });
                        return;
                    }
                    "pong" => {
                        self.pongs.send_modify(|pongs| *pongs += 1);
                        return;
                    }
                    _ => {}
                }
                self.taken.fetch_add(1, Ordering::Relaxed);
                if self.is_quiet {
                    return;
                }
                json!({ "event": "message", "node": key.to_string(), "topic": topic.as_str(), "name": event.as_str() })
            }
        };
        println!("{line}");
    }
}

/// A transport of datagrams between processes of one machine: one socket for each node in a folder. It loses what there is
/// no room for.
struct Datagrams {
    folder: PathBuf,
    name: String,
    socket: Arc<UnixDatagram>,
}

/// Bytes of a datagram.
const DATAGRAM_BYTES_MAX: usize = 256 * 1_024;

impl Datagrams {
    fn bind(folder: &Path, me: &NodeKey) -> Self {
        let path = folder.join(me.name.as_str());
        // Left by a process before this one.
        let _left = std::fs::remove_file(&path);
        let socket = Arc::new(UnixDatagram::bind(path).unwrap());
        Self { folder: folder.to_owned(), name: me.name.to_string(), socket }
    }

    /// Whether frames go by it just now: the test takes a file away.
    fn is_open(&self) -> bool {
        self.folder.join("open").exists()
    }
}

#[async_trait::async_trait]
impl Transport for Datagrams {
    fn name(&self) -> &'static str {
        "datagrams"
    }

    fn start(&self, inbound: Arc<dyn Inbound>) {
        let socket = self.socket.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
            while let Ok(length) = socket.recv(&mut buffer).await {
                inbound.receive(Bytes::copy_from_slice(&buffer[..length]));
            }
        });
    }

    fn is_up(&self) -> bool {
        self.is_open()
    }

    fn send(&self, to: &NodeKey, frame: Bytes) -> bool {
        self.is_open() && self.socket.try_send_to(&frame, self.folder.join(to.name.as_str())).is_ok()
    }

    fn announce(&self, frame: Bytes) -> bool {
        let others = std::fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().path());
        let others = others.filter(|path| !path.ends_with(&self.name) && !path.ends_with("open"));
        self.is_open() && others.filter(|path| self.socket.try_send_to(&frame, path).is_ok()).count() > 0
    }

    async fn close(&self) {}
}

#[tokio::main]
async fn main() {
    let mut flags: Vec<(String, String)> = Vec::new();
    let (mut is_quiet, mut folder) = (false, None);
    for argument in std::env::args().skip(1) {
        match argument.split_once('=') {
            Some(("datagrams", path)) => folder = Some(PathBuf::from(path)),
            Some((name, value)) => flags.push((name.to_owned(), value.to_owned())),
            None => is_quiet = argument == "quiet",
        }
    }
    let config = load(&Sources { flags, ..Sources::default() }).expect("settings");
    logging::start(&LogConfig { format: LogFormat::Text, ..config.log.clone() }).unwrap();
    let mut registry = metric_definitions::registry();
    let metrics = ClusterMetrics::register(&mut registry);
    let environment = system_clock::environment();
    let me = muster_node::cluster::identity(&config.cluster, &environment).unwrap();
    let fallback = folder.map(|folder| Arc::new(Datagrams::bind(&folder, &me)) as Arc<dyn Transport>);
    let opened =
        muster_node::cluster::open(&config.cluster, &config.limits, &environment, metrics, fallback).await;
    let nodes = match opened {
        Ok(nodes) => nodes,
        Err(error) => {
            println!("{}", json!({ "event": "failed", "error": error.to_string() }));
            return;
        }
    };
    let (pongs, _) = watch::channel(0);
    let printer =
        Arc::new(Printer { nodes: nodes.clone(), pongs: pongs.clone(), taken: AtomicU64::new(0), is_quiet });
    nodes.start(printer.clone());
    println!("{}", json!({ "event": "started", "node": nodes.me().to_string() }));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let words: Vec<&str> = line.split_whitespace().collect();
        let to = |name: &str| -> Option<NodeKey> {
            let members = nodes.members().borrow().clone();
            members.nodes.iter().map(|member| member.key.clone()).find(|key| key.name == name)
        };
        match words[..] {
            // From a number on, so many messages of so many bytes.
            ["send", name, first, count, bytes] => {
                let (first, count): (u64, u64) = (first.parse().unwrap(), count.parse().unwrap());
                let payload = json!("x".repeat(bytes.parse().unwrap()));
                let key = to(name);
                let is_taken = |n: u64| {
                    key.as_ref().is_some_and(|key| nodes.send(key, publish("t", &n.to_string(), &payload)))
                };
                let taken = (first..first + count).filter(|n| is_taken(*n)).count();
                println!("{}", json!({ "event": "sent", "taken": taken, "refused": count - taken as u64 }));
            }
            ["ping", name, count] => {
                let (key, mut heard) = (to(name).expect("up"), pongs.subscribe());
                let mut taken = Vec::new();
                for _ in 0..count.parse::<u64>().unwrap() {
                    let (begun, before) = (Instant::now(), *heard.borrow_and_update());
                    nodes.send(&key, publish("ping", "p", &json!(1)));
                    while *heard.borrow_and_update() == before {
                        heard.changed().await.unwrap();
                    }
                    taken.push(u64::try_from(begun.elapsed().as_micros()).unwrap());
                }
                taken.sort_unstable();
                let at = |of: usize| taken[taken.len() * of / 100];
                println!(
                    "{}",
                    json!({ "event": "pinged", "p50_us": at(50), "p90_us": at(90), "p99_us": at(99) })
                );
            }
            ["taken"] => {
                println!("{}", json!({ "event": "taken", "count": printer.taken.load(Ordering::Relaxed) }));
            }
            ["status"] => println!("{}", json!({ "event": "status", "status": nodes.status() })),
            ["remotable"] => {
                println!("{}", json!({ "event": "remotable", "count": Nodes::remotable_actors() }))
            }
            ["drain"] => nodes.drain(),
            ["close"] => break,
            _ => panic!("what is {line:?}?"),
        }
    }
    nodes.close().await;
    println!("{}", json!({ "event": "closed" }));
}
