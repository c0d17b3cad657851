//! A node under attack: what it grows by, whether an innocent client is served meanwhile, and what stays afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::Method;

use crate::raw::{Raw, text};
use crate::{Agent, Node};

/// 1,024 bytes.
pub const KIB: u64 = 1_024;
/// 1,024 KiB.
pub const MIB: u64 = 1_024 * KIB;
/// What a joined socket may take besides what its peer makes it hold: tasks, actors, their mailboxes, and what the
/// allocator loses between them. In a build without optimisation.
pub const SOCKET_BYTES: u64 = 48 * KIB;
/// What a node may grow by besides, whatever is done to it: buffers of threads, pages of the store, arenas.
pub const NODE_BYTES: u64 = 8 * MIB;
/// What an answer may take besides a multiple of what it takes in quiet: a build without optimisation unmasks slowly.
const LATE: Duration = Duration::from_secs(2);
/// How long the allocator keeps what was freed, as it is told.
const DECAY: Duration = Duration::from_secs(1);
/// How long memory may take to come back.
const RETURN_TIME: Duration = Duration::from_secs(60);
/// What may stay of what a node grew by, besides half of it: pages that hold a little of something else.
const KEPT_BYTES: u64 = 4 * MIB;
/// How long the node may take to notice that peers are gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// Resident bytes of a process.
#[must_use]
pub fn resident(pid: u32) -> u64 {
    memory(pid, "VmRSS")
}

/// The most resident bytes a process ever had.
#[must_use]
pub fn peak(pid: u32) -> u64 {
    memory(pid, "VmHWM")
}

fn memory(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * KIB
}

/// Files and sockets a process has open.
#[must_use]
pub fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// One value of a node's metrics.
pub async fn metric(node: &Node, name: &str) -> u64 {
    let (_, text) = node.operator.send_with(Method::GET, "/metrics", &[], None).await.unwrap();
    let text = String::from_utf8(text.to_vec()).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
    line.parse().unwrap()
}

/// Waits until a gauge has a value.
pub async fn until(node: &Node, gauge: &str, wanted: u64) {
    let end = Instant::now() + PATIENCE;
    loop {
        let value = metric(node, gauge).await;
        if value == wanted {
            return;
        }
        assert!(Instant::now() < end, "{gauge} is {value}, not {wanted}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Looks at something again and again, in a thread of its own.
struct Sampler<T> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Sampler<T> {
    fn start(run: impl FnOnce(&AtomicBool) -> T + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        Self { stop, thread: std::thread::spawn(move || run(&seen)) }
    }

    fn end(self) -> T {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// A client that asks every few milliseconds; what nine of ten answers took at most.
fn beats(address: String, key: String) -> Sampler<Duration> {
    let mut socket = Raw::open(&address, &key);
    Sampler::start(move |stop| {
        let mut times = Vec::new();
        while !stop.load(Ordering::Relaxed) || times.len() < 10 {
            let begun = Instant::now();
            socket.send(&text(r#"[null,"1","phoenix","heartbeat",{}]"#));
            socket.message();
            times.push(begun.elapsed());
            std::thread::sleep(Duration::from_millis(5));
        }
        times.sort_unstable();
        times[times.len() * 9 / 10]
    })
}

/// A node that is about to be attacked.
pub struct Siege {
    /// The node.
    pub node: Node,
    /// Who attacks.
    pub agent: Agent,
    innocent: Agent,
    quiet: Duration,
    name: &'static str,
    _folder: tempfile::TempDir,
}

impl Siege {
    /// Starts a node, and sees how it serves an innocent client when nothing else is going on.
    pub async fn lay(name: &'static str, settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The allocator gives back what was freed a second ago, instead of ten: nobody learns more by waiting longer.
        let decay = format!("_RJEM_MALLOC_CONF=dirty_decay_ms:{}", DECAY.as_millis());
        let wrapper = ["env", decay.as_str()];
        let node = Node::start_under(&wrapper, &folder.path().join("data"), settings).await;
        let (agent, innocent) = (node.agent("attacker").await, node.agent("innocent").await);
        // What is made once is made before anything is weighed.
        for _ in 0..3 {
            let sockets: Vec<Raw> = (0..50).map(|_| Raw::open(&node.address, &agent.key)).collect();
            drop(sockets);
        }
        until(&node, "muster_sockets", 0).await;
        let asking = beats(node.address.clone(), innocent.key.clone());
        std::thread::sleep(Duration::from_millis(300));
        let quiet = asking.end();
        Self { node, agent, innocent, quiet, name, _folder: folder }
    }

    /// So many connections that say nothing yet.
    #[must_use]
    pub fn connections(&self, count: u64) -> Vec<Raw> {
        (0..count).map(|_| Raw::connect(&self.node.address)).collect()
    }

    /// So many WebSockets of the attacker.
    #[must_use]
    pub fn sockets(&self, count: u64) -> Vec<Raw> {
        (0..count).map(|_| Raw::open(&self.node.address, &self.agent.key)).collect()
    }

    /// So many connections with little room for what comes.
    #[must_use]
    pub fn deaf_connections(&self, count: u64) -> Vec<Raw> {
        (0..count).map(|_| Raw::connect_deaf(&self.node.address)).collect()
    }

    /// So many WebSockets of the attacker with little room for what comes.
    #[must_use]
    pub fn deaf_sockets(&self, count: u64) -> Vec<Raw> {
        self.deaf_connections(count).into_iter().map(|raw| raw.upgraded(&self.agent.key)).collect()
    }

    /// Attacks twice. Each time the node must grow by `bound` bytes at most, from before the first time on, answer an
    /// innocent client meanwhile, and let go of everything when what `attack` gives is dropped.
    pub async fn attack<T>(&self, bound: u64, mut attack: impl FnMut(&Self) -> T) {
        let pid = self.node.pid();
        until(&self.node, "muster_sockets", 0).await;
        // What was freed so far has been given back by then.
        tokio::time::sleep(DECAY + DECAY / 2).await;
        let (idle, open) = (resident(pid), descriptors(pid));
        let mut grown: Vec<u64> = Vec::new();
        let mut latest = Duration::ZERO;
        for _ in 0..2 {
            let peak = Arc::new(AtomicU64::new(0));
            let highest = peak.clone();
            let watching = Sampler::start(move |stop| {
                while !stop.load(Ordering::Relaxed) {
                    highest.fetch_max(resident(pid), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
            let asking = beats(self.node.address.clone(), self.innocent.key.clone());
            let held = attack(self);
            // As long as what was sent last needs to have its effect.
            std::thread::sleep(Duration::from_millis(200));
            let answered = asking.end();
            watching.end();
            drop(held);
            until(&self.node, "muster_sockets", 0).await;
            grown.push(peak.load(Ordering::Relaxed).saturating_sub(idle));
            self.served(answered);
            latest = latest.max(answered);
        }
        let kept = self.after(pid, idle, grown[1]).await;
        let open = i64::try_from(descriptors(pid)).unwrap() - i64::try_from(open).unwrap();
        println!(
            "{}: grew by {} and {} KiB of {} allowed; {} KiB stay; an innocent's p90: {:.1} ms, {:.1} ms before",
            self.name,
            grown[0] / KIB,
            grown[1] / KIB,
            bound / KIB,
            kept / KIB,
            latest.as_secs_f64() * 1_000.0,
            self.quiet.as_secs_f64() * 1_000.0,
        );
        assert!(grown.iter().all(|grown| *grown <= bound), "{}: grew by {grown:?}, bound {bound}", self.name);
        assert!(open.abs() <= 4, "{open} more descriptors than before");
        assert!(!self.node.log().contains("\"panic\""), "{}", self.node.log());
    }

    /// Waits until a counter has stood still for a second; its value.
    #[must_use]
    pub fn settled(&self, counter: &str) -> u64 {
        let read = || {
            let reading = metric(&self.node, counter);
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(reading))
        };
        let end = Instant::now() + PATIENCE;
        let mut last = read();
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let now = read();
            if now == last {
                return now;
            }
            assert!(Instant::now() < end, "{counter} does not come to rest");
            last = now;
        }
    }

    /// An innocent client was answered, if perhaps later than when nothing else was going on.
    pub fn served(&self, answered: Duration) {
        let most = self.quiet * 30 + LATE;
        assert!(answered <= most, "{}: p90 of an innocent: {answered:?}, quiet {:?}", self.name, self.quiet);
    }

    /// Waits for memory to come back: what stays is little, or less than half of what the node grew by.
    async fn after(&self, pid: u32, idle: u64, grown: u64) -> u64 {
        let end = Instant::now() + RETURN_TIME;
        loop {
            let kept = resident(pid).saturating_sub(idle);
            if kept <= KEPT_BYTES.max(grown / 2) {
                return kept;
            }
            let (kept_kib, grown_kib) = (kept / KIB, grown / KIB);
            assert!(Instant::now() < end, "{}: {kept_kib} KiB stay of {grown_kib}", self.name);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// As [`beats`], while something runs.
pub fn while_beating<T>(node: &Node, key: &str, run: impl FnOnce() -> T) -> (T, Duration) {
    let asking = beats(node.address.clone(), key.to_owned());
    let done = run();
    (done, asking.end())
}
