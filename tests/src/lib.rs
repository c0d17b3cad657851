//! What the whole-system tests share: real nodes as processes, and who works with them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time and read the environment")]
#![allow(clippy::print_stdout, reason = "figures are for people")]

pub mod gate;
pub mod links;
pub mod raw;
pub mod redis;
pub mod requirements;
pub mod siege;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http::Method;
use muster_node::http::client::Client;
pub use muster_test_postgres::{free_port, free_ports};
use rustls::RootCertStore;
use serde_json::{Value, json};

/// The operator's token of every test node.
pub const OPERATOR: &str = "op_whole_system_tests";

/// The root of the checkout.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// The binary that was built beside this test.
#[must_use]
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let found = test.parent().and_then(Path::parent).unwrap().join("muster");
    assert!(found.exists(), "{} is missing: run `cargo build` first", found.display());
    found
}

/// Sends a process a signal, such as `STOP`.
pub fn signal(pid: u32, signal: &str) {
    let sent = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status().unwrap();
    assert!(sent.success(), "{signal} was not sent to {pid}");
}

/// A running node. It is killed when this is dropped.
pub struct Node {
    /// Host and port.
    pub address: String,
    /// The operator's way in.
    pub operator: Client,
    folder: PathBuf,
    settings: Vec<String>,
    wrapper: Vec<String>,
    child: Option<Child>,
}

impl Node {
    /// Starts a node on a folder, with settings such as `stream.ack=memory`.
    pub async fn start(folder: &Path, settings: &[&str]) -> Self {
        Self::start_under(&[], folder, settings).await
    }

    /// The same under another program, such as a tracer.
    pub async fn start_under(wrapper: &[&str], folder: &Path, settings: &[&str]) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let operator =
            Client::new(&format!("http://{address}"), Some(OPERATOR.to_owned()), RootCertStore::empty());
        let owned = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        let (settings, wrapper) = (owned(settings), owned(wrapper));
        let mut node = Self { address, operator, folder: folder.to_owned(), settings, wrapper, child: None };
        node.launch().await;
        node
    }

    /// Starts it again, after it was killed, on the same port and folder.
    pub async fn launch(&mut self) {
        let mut words = self.wrapper.clone();
        words.push(binary().display().to_string());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["serve", "--listen", &self.address, "--data-dir"]).arg(&self.folder);
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        let log = std::fs::File::options().create(true).append(true).open(self.log_path()).unwrap();
        command.env("MUSTER_ADMIN_TOKEN", OPERATOR).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        let end = Instant::now() + Duration::from_secs(60);
        while self.operator.send(Method::GET, "/ready", None).await.is_err() {
            let exited = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(exited.is_none() && Instant::now() < end, "the node did not start:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
    }

    fn log_path(&self) -> PathBuf {
        self.folder.with_extension("log")
    }

    /// Everything it has logged, through all its lives.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Registers an agent; gives its id and its way in.
    pub async fn agent(&self, name: &str) -> Agent {
        let agent = json!({
            "name": name,
            "did": format!("did:test:{name}"),
            "capabilities": ["code"],
            "pricing_model": "fixed",
        });
        let body = json!({ "agent": agent });
        let registered =
            self.operator.send(Method::POST, "/api/v1/agents/register", Some(&body)).await.unwrap();
        let key = registered["api_key"].as_str().unwrap().to_owned();
        Agent {
            id: registered["agent"]["id"].as_str().unwrap().to_owned(),
            client: self.operator.with_token(&key),
            key,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An agent.
pub struct Agent {
    /// Its id.
    pub id: String,
    /// Its key.
    pub key: String,
    /// Its way in.
    pub client: Client,
}

impl Agent {
    /// Gives a task to another agent; its id.
    pub async fn task_for(&self, provider: &Self) -> String {
        let body = json!({ "provider_agent_id": provider.id, "capability": "code", "input": null });
        let task = self.client.send(Method::POST, "/api/v1/tasks", Some(&body)).await.unwrap();
        task["id"].as_str().unwrap().to_owned()
    }

    /// Reads a task's stream after a seq, to its end: the chunks.
    pub async fn read_stream(&self, task: &str, mut after: u64) -> Vec<Value> {
        let mut chunks = Vec::new();
        loop {
            let path = format!("/api/v1/tasks/{task}/stream?after={after}");
            let mut part = self.client.send(Method::GET, &path, None).await.unwrap();
            chunks.append(part["chunks"].as_array_mut().unwrap());
            if part["more"] != true {
                return chunks;
            }
            after = chunks.last().unwrap()["seq"].as_u64().unwrap();
        }
    }
}
