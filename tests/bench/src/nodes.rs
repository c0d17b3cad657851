//! Several nodes on one PostgreSQL, linked with each other: started here on free ports of loopback, and ended with what holds
//! them.

use std::process::Command;
use std::time::{Duration, Instant};

use muster_protocol::cluster::owner::owner_of;
use muster_protocol::cluster::{Member, NodeKey};
use muster_protocol::ids::TaskId;
use muster_test_postgres::Server;
use muster_tests::{free_ports, redis};
use serde_json::json;

use crate::node::Node;

/// Names of the nodes.
pub const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// How long the nodes may take to find each other.
const PATIENCE: Duration = Duration::from_secs(20);

/// What carries frames between them.
pub enum Carried<'a> {
    /// Links of their own.
    Directly,
    /// This server.
    By(&'a redis::Server),
}

/// Nodes that are linked, [`NAMES`] in order.
pub struct Nodes {
    pub nodes: Vec<Node>,
    /// Ports over which frames go.
    ports: Vec<u16>,
    _postgres: Server,
}

impl Nodes {
    /// Starts so many, and waits until each is linked with all others.
    pub fn start(count: usize, carried: &Carried<'_>, settings: &[&str]) -> Self {
        Self::start_if_it_can(count, carried, settings).expect("a node did not start")
    }

    /// The same; `None` when a node refuses the settings.
    pub fn start_if_it_can(count: usize, carried: &Carried<'_>, settings: &[&str]) -> Option<Self> {
        let postgres = Server::start();
        let url = postgres.database("bench");
        let ports = free_ports(count);
        let launched = (0..count).map(|at| {
            let mut all = vec![
                format!("store.url={url}"),
                format!("cluster.node={}", NAMES[at]),
                // A message is a row; a load of them has no end.
                "limits.notes_per_task_max=100000000".to_owned(),
                // Connections that are kept for later are not hung up on.
                "limits.handshake_timeout_ms=3600000".to_owned(),
            ];
            all.extend(settings.iter().map(|&setting| setting.to_owned()));
            match carried {
                Carried::Directly => {
                    let peers: Vec<String> =
                        ports.iter().take(at).map(|port| format!("127.0.0.1:{port}")).collect();
                    all.push(format!("cluster.listen=127.0.0.1:{}", ports[at]));
                    all.push(format!("cluster.peers={}", json!(peers)));
                }
                Carried::By(redis) => {
                    all.push("cluster.transport=redis".to_owned());
                    all.push(format!("cluster.redis_url={}", redis.url()));
                }
            }
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            let node = Node::launch(&all, &[("MUSTER_CLUSTER_SECRET", "only for a benchmark, on loopback")]);
            node.wait_until_ready_or_ended()
        });
        let nodes: Vec<Node> = launched.collect::<Option<_>>()?;
        let (ports, transport) = match carried {
            Carried::Directly => (ports, "direct"),
            Carried::By(redis) => (vec![redis.port], "redis"),
        };
        let nodes = Self { nodes, ports, _postgres: postgres };
        nodes.wait_until_linked(transport);
        Some(nodes)
    }

    fn wait_until_linked(&self, transport: &str) {
        let end = Instant::now() + PATIENCE;
        let is_linked = |node: &Node| {
            let status = node.get("/api/v1/admin/cluster").unwrap();
            let others = status["nodes"].as_array().unwrap().iter();
            others.filter(|other| other["transport"] == transport && other["state"] == "up").count() + 1
                == self.nodes.len()
        };
        while !self.nodes.iter().all(is_linked) {
            assert!(Instant::now() < end, "the nodes do not find each other");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Which node a task's stream belongs to, by its place.
    pub fn owner(&self, task: &str) -> usize {
        let key = |name: &str| NodeKey { name: name.into(), incarnation: 1 };
        let members: Vec<Member> = NAMES[..self.nodes.len()]
            .iter()
            .map(|name| Member { key: key(name), draining: false, suspect: false, central: true })
            .collect();
        let task: TaskId = task.parse().unwrap();
        let owner = owner_of(task, &members).unwrap();
        NAMES.iter().position(|name| *name == owner.name).unwrap()
    }

    /// Seconds of CPU of each so far.
    pub fn cpu(&self) -> Vec<f64> {
        self.nodes.iter().map(|node| node.process.cpu()).collect()
    }

    /// Bytes that have gone between them so far, those of TCP not counted, as the kernel counts them for each end of each
    /// connection that is open.
    pub fn bytes_between(&self) -> u64 {
        let ports: Vec<String> =
            self.ports.iter().map(|port| format!("sport = :{port} or dport = :{port}")).collect();
        let output = Command::new("ss")
            .args(["--no-header", "--tcp", "--info", "--numeric", "state", "established"])
            .arg(format!("( {} )", ports.join(" or ")))
            .output()
            .expect("ss, of iproute2, is needed");
        let output = String::from_utf8(output.stdout).unwrap();
        let sent = output.split_whitespace().filter_map(|word| word.strip_prefix("bytes_sent:"));
        sent.map(|bytes| bytes.parse::<u64>().unwrap()).sum()
    }
}
