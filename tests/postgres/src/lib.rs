//! A real PostgreSQL server for tests, in a folder of its own, on a port of its own. It ends with whoever started it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time and read the environment")]

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The superuser's password: whoever has it can only reach what a test has made.
pub const PASSWORD: &str = "only-for-tests";
/// How long the server may take to start, or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server. It is ended, and its folder removed, when this is dropped.
pub struct Server {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    folder: tempfile::TempDir,
    settings: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// Starts a server with nothing in it.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with settings such as `ssl=on`.
    #[must_use]
    pub fn start_with(settings: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("muster-postgres-").tempdir().unwrap();
        hand_over(folder.path());
        let mut password = tempfile::NamedTempFile::new_in(folder.path()).unwrap();
        writeln!(password, "{PASSWORD}").unwrap();
        hand_over(password.path());
        let data = folder.path().join("data");
        let mut initdb = unprivileged_command(&program("initdb"));
        initdb.args([
            "--username=postgres",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        ]);
        initdb.arg("--pwfile").arg(password.path()).arg("--pgdata").arg(&data);
        check(&mut initdb);
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut server = Self { port: free_port(), folder, settings, child: None };
        server.launch();
        server
    }

    /// Its folder, which belongs to whoever the server runs as.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it, after it was stopped, on the same port and data.
    pub fn launch(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = server_command();
        command.arg("-D").arg(self.folder.path().join("data")).arg("-k").arg(self.folder.path());
        command.args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        command.args(["-c", "max_connections=200", "-c", "shared_buffers=32MB"]);
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        self.child = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
        let end = Instant::now() + PATIENCE;
        while !self.psql("postgres", "SELECT 1").status.success() {
            let exited = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(exited.is_none() && Instant::now() < end, "PostgreSQL did not start:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it at once, without a checkpoint, as a crash would.
    pub fn stop_immediately(&mut self) {
        self.stop("immediate");
    }

    fn stop(&mut self, mode: &str) {
        let Some(mut child) = self.child.take() else { return };
        let mut command = unprivileged_command(&program("pg_ctl"));
        command.args(["stop", "--silent", "--mode", mode, "--pgdata"]).arg(self.folder.path().join("data"));
        let stopped = command.output();
        if !stopped.is_ok_and(|output| output.status.success()) {
            let _gone = child.kill();
        }
        let _status = child.wait();
    }

    /// Adds a database; gives its URL.
    #[must_use]
    pub fn database(&self, name: &str) -> String {
        let output = self.psql("postgres", &format!("CREATE DATABASE {name} TEMPLATE template0"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.url(name)
    }

    /// The URL of a database.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// Runs SQL in a database, as its superuser; gives what it printed.
    #[must_use]
    pub fn query(&self, database: &str, sql: &str) -> String {
        let output = self.psql(database, sql);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn psql(&self, database: &str, sql: &str) -> Output {
        Command::new(program("psql"))
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--command", sql])
            .arg(self.url(database))
            .output()
            .unwrap()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Everything it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop("immediate");
    }
}

/// Gives a file or folder to whoever the server runs as.
pub fn hand_over(path: &Path) {
    if let Some((user, group)) = unprivileged() {
        std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
    }
}

/// Somebody else, if this is root, whom PostgreSQL does not run as.
fn unprivileged() -> Option<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let ids = |name: &str| {
        let mut fields = users.lines().find(|line| line.starts_with(&format!("{name}:")))?.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let is_root =
        status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"));
    is_root.then(|| ids("postgres").or_else(|| ids("nobody")).expect("a user other than root"))
}

fn unprivileged_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some((user, group)) = unprivileged() {
        command.uid(user).gid(group);
    }
    command.current_dir("/");
    command
}

/// The server, told by the kernel when whoever started it has ended, however that was.
fn server_command() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "INT"]);
    if let Some((user, group)) = unprivileged() {
        command.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".into()]);
    }
    command.arg("--").arg(program("postgres")).current_dir("/");
    command
}

/// A program of the newest PostgreSQL that is installed.
fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin").join(name)))
        })
        .filter(|(_, path)| path.exists())
        .collect();
    versions.sort();
    versions.pop().map_or_else(|| name.into(), |(_, path)| path)
}

fn check(command: &mut Command) {
    let output =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}: is PostgreSQL installed?"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A port of 127.0.0.1 that nobody listens on now.
#[must_use]
pub fn free_port() -> u16 {
    free_ports(1)[0]
}

/// So many of them, no two the same.
#[must_use]
pub fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}
