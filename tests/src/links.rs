//! Nodes that are nothing but their links (`link_node`), as processes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use serde_json::Value;

use crate::{free_port, free_ports, siege};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Lines a node may be ahead of its test.
const LINES_MAX: usize = 100_000;

/// A place for nodes, with a port for each name.
pub struct Links {
    folder: tempfile::TempDir,
    ports: [(&'static str, u16); 4],
}

impl Default for Links {
    fn default() -> Self {
        Self::new()
    }
}

impl Links {
    /// A new place, for nodes a, b, c and d.
    #[must_use]
    pub fn new() -> Self {
        let (names, ports) = (["a", "b", "c", "d"], free_ports(4));
        let ports = std::array::from_fn(|at| (names[at], ports[at]));
        Self { folder: tempfile::tempdir().unwrap(), ports }
    }

    /// Where logs and certificates are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where a node listens for others.
    #[must_use]
    pub fn port(&self, name: &str) -> u16 {
        self.ports.iter().find(|(known, _)| *known == name).unwrap().1
    }

    /// Drops all that one node says to another, or lets it through again; what the other says to it gets there.
    pub fn shut(&self, space: &Namespace, from: &str, to: &str, is_shut: bool) {
        let change = if is_shut { "-A" } else { "-D" };
        // Whichever of the two has dialled.
        for (end, name) in [("--dport", to), ("--sport", from)] {
            let port = self.port(name).to_string();
            space.run(&["iptables", change, "INPUT", "-p", "tcp", end, &port, "-j", "DROP"]);
        }
    }

    /// Settings of a node on loopback that dials these.
    #[must_use]
    pub fn settings(&self, name: &str, peers: &[&str]) -> Vec<String> {
        let peers: Vec<String> = peers.iter().map(|peer| format!("127.0.0.1:{}", self.port(peer))).collect();
        vec![
            format!("cluster.node={name}"),
            format!("cluster.listen=127.0.0.1:{}", self.port(name)),
            format!("cluster.peers={}", serde_json::json!(peers)),
        ]
    }

    /// Starts a node on loopback that dials these.
    #[must_use]
    pub fn node(&self, name: &str, peers: &[&str]) -> LinkNode {
        self.start(name, &[], &self.settings(name, peers))
    }

    /// Starts a node with these settings, under another program if there is one.
    #[must_use]
    pub fn start(&self, name: &str, wrapper: &[&str], settings: &[String]) -> LinkNode {
        let path = self.folder().join(format!("{name}.log"));
        let log = std::fs::File::options().create(true).append(true).open(&path).unwrap();
        let binary = std::env::current_exe().unwrap();
        let binary = binary.parent().and_then(Path::parent).unwrap().join("link_node");
        let mut words: Vec<String> = wrapper.iter().map(|&word| word.to_owned()).collect();
        words.push(binary.display().to_string());
        words.extend_from_slice(settings);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap();
        let (lines, received) = sync_channel(LINES_MAX);
        let output = child.stdout.take().unwrap();
        std::thread::spawn(move || read(BufReader::new(output), &lines));
        let input = child.stdin.take().unwrap();
        LinkNode { name: name.to_owned(), child, input, lines: received, kept: Vec::new(), log: path }
    }
}

impl Links {
    /// Makes certificates for nodes, by the command for it.
    pub fn certificates(&self, folder: &Path, nodes: &[&str]) {
        let mut command = Command::new(crate::binary());
        command.args(["cluster", "cert"]).arg(folder);
        for node in nodes {
            command.args(["--node", node]);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A network of its own, with nothing but loopback, in which packets can be dropped. Needs root.
pub struct Namespace {
    name: String,
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Namespace {
    /// A new one.
    #[must_use]
    pub fn new() -> Self {
        let name = format!("muster-{}-{}", std::process::id(), free_port());
        let added = Command::new("ip").args(["netns", "add", &name]).status().unwrap();
        assert!(added.success(), "a network namespace takes root");
        let space = Self { name };
        space.run(&["ip", "link", "set", "lo", "up"]);
        space
    }

    /// What a program in it is started with.
    #[must_use]
    pub fn prefix(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.name]
    }

    /// Runs a program in it.
    pub fn run(&self, words: &[&str]) {
        let output = Command::new("ip").args(&self.prefix()[1..]).args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // What is left goes with the machine.
        let _deleted = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// Speaks TLS to a port, takes whatever certificate it shows and shows none; gives what it says to these bytes.
#[must_use]
pub fn tls_without_trust(port: u16, bytes: &[u8]) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let session = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = rustls::StreamOwned::new(session, stream);
    // That nothing can be said is as good as that nothing is answered.
    let _said = stream.write_all(bytes);
    let mut heard = Vec::new();
    let _ended = stream.read_to_end(&mut heard);
    heard
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn read(output: impl BufRead, lines: &SyncSender<Value>) {
    for line in output.lines().map_while(Result::ok) {
        if lines.send(serde_json::from_str(&line).unwrap()).is_err() {
            return;
        }
    }
}

/// A running node. It is killed when this is dropped.
pub struct LinkNode {
    name: String,
    child: Child,
    input: ChildStdin,
    lines: Receiver<Value>,
    /// Lines that came before one that was waited for.
    kept: Vec<Value>,
    log: PathBuf,
}

impl LinkNode {
    /// Gives it a command.
    pub fn tell(&mut self, command: &str) {
        writeln!(self.input, "{command}").unwrap();
    }

    /// The next line of a kind, which may have come already.
    pub fn next(&mut self, event: &str) -> Value {
        self.find(PATIENCE, |line| line["event"] == event)
            .unwrap_or_else(|| panic!("no {event} at {}:\n{}", self.name, self.log()))
    }

    /// Waits for an event about a node; gives its process.
    pub fn wait_for(&mut self, event: &str, node: &str) -> String {
        let prefix = format!("{node}#");
        let is_it = |line: &Value| {
            line["event"] == event && line["node"].as_str().is_some_and(|key| key.starts_with(&prefix))
        };
        let line = self.find(PATIENCE, is_it);
        let line = line.unwrap_or_else(|| panic!("{node} is not {event} at {}:\n{}", self.name, self.log()));
        line["node"].as_str().unwrap().to_owned()
    }

    /// Whether an event of a kind comes within a time.
    pub fn comes(&mut self, event: &str, within: Duration) -> bool {
        self.find(within, |line| line["event"] == event).is_some()
    }

    /// The numbers of the next so many messages.
    pub fn messages(&mut self, count: usize) -> Vec<u64> {
        (0..count).map(|_| self.next("message")["name"].as_str().unwrap().parse().unwrap()).collect()
    }

    fn find(&mut self, within: Duration, is_it: impl Fn(&Value) -> bool) -> Option<Value> {
        if let Some(at) = self.kept.iter().position(&is_it) {
            return Some(self.kept.remove(at));
        }
        let end = Instant::now() + within;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if is_it(&line) => return Some(line),
                Ok(line) => self.kept.push(line),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// How the cluster looks from it.
    pub fn status(&mut self) -> Value {
        self.tell("status");
        self.next("status")["status"].clone()
    }

    /// What it says of another node.
    pub fn status_of(&mut self, node: &str) -> Option<Value> {
        let status = self.status();
        status["nodes"].as_array().unwrap().iter().find(|known| known["name"] == node).cloned()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends its process a signal, such as STOP.
    pub fn signal(&self, signal: &str) {
        crate::signal(self.pid(), signal);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Bytes of memory it holds.
    #[must_use]
    pub fn memory(&self) -> u64 {
        siege::resident(self.pid())
    }

    /// Everything it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Its TCP sockets in a state (`01` established, `0A` listening): local and remote port of each.
    #[must_use]
    pub fn sockets(&self, state: &str) -> Vec<(u16, u16)> {
        let held: Vec<String> = std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter_map(|link| {
                Some(link.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned())
            })
            .collect();
        let mut sockets = Vec::new();
        for table in ["tcp", "tcp6"] {
            let text =
                std::fs::read_to_string(format!("/proc/{}/net/{table}", self.pid())).unwrap_or_default();
            for line in text.lines().skip(1) {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let port =
                    |address: &str| u16::from_str_radix(address.rsplit(':').next().unwrap(), 16).unwrap();
                if fields[3] == state && held.iter().any(|inode| inode == fields[9]) {
                    sockets.push((port(fields[1]), port(fields[2])));
                }
            }
        }
        sockets
    }

    /// Connections it has with any of these ports at either end.
    #[must_use]
    pub fn connections_of(&self, ports: &[u16]) -> usize {
        let open = self.sockets("01");
        open.iter().filter(|(local, remote)| ports.contains(local) || ports.contains(remote)).count()
    }
}

impl Drop for LinkNode {
    fn drop(&mut self) {
        // It may have ended already.
        let _killed = self.child.kill();
        let _ended = self.child.wait();
    }
}
