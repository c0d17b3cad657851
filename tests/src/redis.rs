//! A real Redis server for tests, on a port of its own, with nothing on disk. It ends with whoever started it.
//! `TEST_REDIS_SERVER` names another program that does the same, such as `valkey-server`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::free_port;

/// How long the server may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running server.
pub struct Server {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Default for Server {
    fn default() -> Self {
        Self::start()
    }
}

fn program() -> String {
    std::env::var("TEST_REDIS_SERVER").unwrap_or_else(|_| "redis-server".into())
}

impl Server {
    /// Whether there is a program to start.
    #[must_use]
    pub fn is_installed() -> bool {
        Command::new(program()).arg("--version").stdout(Stdio::null()).status().is_ok()
    }

    /// Starts a server.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with further arguments, such as `--requirepass`.
    #[must_use]
    pub fn start_with(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let folder = tempfile::tempdir().unwrap();
        let mut server = Self { port: free_port(), folder, arguments, child: None };
        server.launch();
        server
    }

    /// Starts it, after it was stopped, on the same port.
    pub fn launch(&mut self) {
        let port = self.port.to_string();
        let mut command = Command::new("setpriv");
        // The kernel tells it when whoever started it has ended, however that was.
        command.args(["--pdeathsig", "KILL", "--", &program(), "--port", &port, "--bind", "127.0.0.1"]);
        command
            .args(["--save", "", "--appendonly", "no", "--loglevel", "warning", "--dir"])
            .arg(self.folder.path());
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let exited = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(exited.is_none() && Instant::now() < end, "Redis did not start: is it installed?");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills it.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended already.
            let _killed = child.kill();
            let _ended = child.wait();
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Sends it a signal, such as STOP.
    pub fn signal(&self, signal: &str) {
        crate::signal(self.pid(), signal);
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Gives it one command; the first line it answers.
    pub fn command(&self, words: &[&[u8]]) -> String {
        let mut client = Client::new(self.port);
        client.say(words);
        client.line()
    }

    /// Publishes; gives how many heard it.
    pub fn publish(&self, channel: &str, message: &[u8]) -> u64 {
        let answer = self.command(&[b"PUBLISH", channel.as_bytes(), message]);
        answer.strip_prefix(':').and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
    }

    /// Listens to all channels that begin like this.
    #[must_use]
    pub fn listen(&self, prefix: &str) -> Listener {
        let mut client = Client::new(self.port);
        client.say(&[b"PSUBSCRIBE", format!("{prefix}*").as_bytes()]);
        client.array();
        Listener(client)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Hears what is published.
pub struct Listener(Client);

impl Listener {
    /// The channel and the message of the next publication.
    #[allow(clippy::should_implement_trait, reason = "it never ends: it waits")]
    pub fn next(&mut self) -> (String, Vec<u8>) {
        let mut parts = self.0.array();
        let message = parts.pop().unwrap();
        (String::from_utf8(parts.pop().unwrap()).unwrap(), message)
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn new(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    fn say(&mut self, words: &[&[u8]]) {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend(format!("${}\r\n", word.len()).into_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        self.0.get_mut().write_all(&bytes).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn array(&mut self) -> Vec<Vec<u8>> {
        let count: usize = self.line()[1..].parse().unwrap();
        let part = |client: &mut Self| {
            let head = client.line();
            if head.starts_with(':') {
                return head.into_bytes();
            }
            let mut part = vec![0; head[1..].parse::<usize>().unwrap() + 2];
            client.0.read_exact(&mut part).unwrap();
            part.truncate(part.len() - 2);
            part
        };
        (0..count).map(|_| part(self)).collect()
    }
}
