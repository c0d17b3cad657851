//! The processes under test: a node with what a scenario needs, or the floor.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http::Method;
use muster_node::http::client::Client;
use muster_tests::{free_port, siege};
use rustix::process::{Pid, Signal};
use rustls::RootCertStore;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The operator's token of every node.
const OPERATOR: &str = "op_benchmark_operator";
/// Requests under way at once while a scenario is set up.
const POSTS_AT_ONCE: usize = 32;
/// No rate stands in the way of a measurement.
const UNBOUNDED: &str = "{tokens=100000000,period_ms=1000,burst=100000000}";

/// A process, killed when this is dropped.
pub struct Process {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

impl Process {
    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        let _status = self.child.wait().unwrap();
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
    }

    /// Seconds of CPU so far.
    pub fn cpu(&self) -> f64 {
        cpu_of(&self.child.id().to_string())
    }

    /// Resident bytes.
    pub fn resident(&self) -> u64 {
        siege::resident(self.child.id())
    }

    /// The most resident bytes it ever had.
    pub fn peak(&self) -> u64 {
        siege::peak(self.child.id())
    }

    /// Files and sockets it has open.
    pub fn descriptors(&self) -> usize {
        siege::descriptors(self.child.id())
    }
}

/// Seconds of CPU of a process, `self` for this one.
pub fn cpu_of(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
    // User and system time, in hundredths of a second.
    (ticks(11) + ticks(12)) / 100.0
}

/// An address of loopback that nobody listens on.
pub fn free_address() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

/// Starts the floor.
pub fn floor() -> Process {
    let address = free_address();
    let child =
        Command::new(std::env::current_exe().unwrap()).args(["floor", &address.to_string()]).spawn().unwrap();
    let process = Process { child, address };
    while std::net::TcpStream::connect(address).is_err() {
        std::thread::sleep(Duration::from_millis(5));
    }
    process
}

/// A node, and who works with it.
pub struct Node {
    /// The process.
    pub process: Process,
    runtime: Runtime,
    operator: Client,
    made: usize,
    _folder: TempDir,
}

/// An agent.
pub struct Agent {
    /// Id.
    pub id: String,
    /// Key.
    pub key: String,
}

impl Node {
    /// Starts one with settings.
    pub fn start(settings: &[&str]) -> Self {
        Self::launch(settings, &[]).wait_until_ready()
    }

    /// Starts one with settings and variables of the environment; it may not be ready yet.
    pub fn launch(settings: &[&str], variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free_address();
        let binary = std::env::current_exe().unwrap().with_file_name("muster");
        let mut command = Command::new(&binary);
        command.args(["serve", "--listen", &address.to_string(), "--data-dir"]).arg(folder.path());
        for rate in [
            "chunks_per_stream",
            "chunks_per_agent",
            "messages_per_socket",
            "messages_per_agent",
            "joins_per_agent",
            "requests_per_credential",
        ] {
            command.args(["--set", &format!("limits.{rate}={UNBOUNDED}")]);
        }
        // The generator sends no heartbeats.
        command.args(["--set", "limits.socket_idle_timeout_ms=3600000"]);
        for setting in settings {
            command.args(["--set", setting]);
        }
        command.args(["--set", "log.level=\"warn\""]);
        command.env("MUSTER_ADMIN_TOKEN", OPERATOR).envs(variables.iter().copied()).stdout(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let operator =
            Client::new(&format!("http://{address}"), Some(OPERATOR.into()), RootCertStore::empty());
        Self { process: Process { child, address }, runtime, operator, made: 0, _folder: folder }
    }

    /// Waits until it serves.
    pub fn wait_until_ready(self) -> Self {
        self.wait_until_ready_or_ended().expect("the node did not start")
    }

    /// Waits until it serves; `None` when it has ended instead, as one does that cannot do what its settings ask for.
    pub fn wait_until_ready_or_ended(mut self) -> Option<Self> {
        let end = Instant::now() + Duration::from_secs(20);
        while self.get("/ready").is_none() {
            if self.process.child.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(Instant::now() < end, "the node did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(self)
    }

    /// What the operator gets there, if it is there.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.runtime.block_on(self.operator.send(Method::GET, path, None)).ok()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.process.address
    }

    /// One value of `/metrics`: a gauge, or a counter without labels.
    pub fn metric(&self, name: &str) -> u64 {
        let (_, text) =
            self.runtime.block_on(self.operator.send_with(Method::GET, "/metrics", &[], None)).unwrap();
        let text = String::from_utf8(text.to_vec()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in the metrics")).parse().unwrap()
    }

    /// Waits until a gauge has a value, at most so long; how long it took.
    pub fn until(&self, gauge: &str, wanted: u64, patience: Duration) -> Duration {
        let begun = Instant::now();
        loop {
            let value = self.metric(gauge);
            if value == wanted {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < patience, "{gauge} is {value}, not {wanted}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Registers an agent.
    pub fn agent(&mut self) -> Agent {
        self.agents(1).remove(0)
    }

    /// Registers many, several at once.
    pub fn agents(&mut self, count: usize) -> Vec<Agent> {
        let first = self.made + 1;
        self.made += count;
        let registrations = (first..first + count).map(|number| {
            let agent = json!({
                "name": format!("Agent {number}"),
                "did": format!("did:bench:{number}"),
                "capabilities": ["code"],
                "pricing_model": "fixed",
            });
            (self.operator.clone(), "/api/v1/agents/register", json!({ "agent": agent }))
        });
        let registered = self.post_all(registrations);
        let text = |value: &Value, path: &str| value.pointer(path).unwrap().as_str().unwrap().to_owned();
        registered
            .iter()
            .map(|answer| Agent { id: text(answer, "/agent/id"), key: text(answer, "/api_key") })
            .collect()
    }

    /// A task of one agent for another.
    pub fn task(&self, client: &Agent, provider: &Agent) -> String {
        self.tasks(client, [provider]).remove(0)
    }

    /// Tasks of one agent, one for each of these.
    pub fn tasks<'a>(&self, client: &Agent, providers: impl IntoIterator<Item = &'a Agent>) -> Vec<String> {
        let client = self.operator.with_token(&client.key);
        let tasks = self.post_all(providers.into_iter().map(|provider| {
            let body = json!({ "provider_agent_id": provider.id, "capability": "code", "input": null });
            (client.clone(), "/api/v1/tasks", body)
        }));
        tasks.iter().map(|task| task["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Posts all of them, [`POSTS_AT_ONCE`] at a time; the answers in the same order.
    fn post_all(&self, posts: impl Iterator<Item = (Client, &'static str, Value)>) -> Vec<Value> {
        let mut waiting = posts.enumerate();
        let mut answers: Vec<(usize, Value)> = Vec::new();
        self.runtime.block_on(async {
            let mut under_way = tokio::task::JoinSet::new();
            loop {
                while under_way.len() < POSTS_AT_ONCE
                    && let Some((at, (client, path, body))) = waiting.next()
                {
                    under_way.spawn(async move {
                        (at, client.send(Method::POST, path, Some(&body)).await.unwrap())
                    });
                }
                let Some(answer) = under_way.join_next().await else { break };
                answers.push(answer.unwrap());
            }
        });
        answers.sort_by_key(|(at, _)| *at);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }
}
