//! Task streams of several nodes over one store: whole nodes without their front ends, joined by a bus that can be cut.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends by panicking")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use muster_actors::cluster::{Cluster, Event, Receiver};
use muster_actors::core::{Core, Parts, ReportParts};
use muster_actors::metric_definitions::Metrics;
use muster_actors::settings::{LedgerSettings, StreamSettings};
use muster_actors::store::{FigureStore, Store};
use muster_actors::task_stream::ack::Ack;
use muster_node::http::webhook_client::WebhookClient;
use muster_node::store::sqlite::SqliteStore;
use muster_node::store::sqlite::figures::SqliteFigures;
use muster_node::system_clock;
use muster_protocol::account::{Credential, CredentialKind, Owner, Principal, Scopes, SecretHash};
use muster_protocol::agent::{Agent, Registration};
use muster_protocol::alerts::AlertSettings;
use muster_protocol::cluster::stream::{StreamMessage, What};
use muster_protocol::cluster::{Member, Members, Message, NodeKey, owner::owner_of};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::escrow::Payment;
use muster_protocol::ids::{AgentId, CredentialId, TaskId};
use muster_protocol::json::Json;
use muster_protocol::limits::Limits;
use muster_protocol::task::{ChunkRequest, Ending, Task, TaskStatus};
use muster_protocol::time::Timestamp;
use muster_protocol::webhook::WebhookSettings;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

/// Sockets of a credential at all nodes together.
const SOCKETS_MAX: usize = 10;

/// What carries messages between the nodes of a test.
#[derive(Default)]
struct Bus {
    nodes: Mutex<BTreeMap<NodeKey, Arc<Port>>>,
    cut: Mutex<HashSet<(String, String)>>,
    draining: Mutex<HashSet<String>>,
    /// Whether chunks to followers are held up, and those that are.
    holds_chunks: AtomicBool,
    held: Mutex<Vec<(NodeKey, Event)>>,
}

struct Port {
    me: NodeKey,
    bus: Arc<Bus>,
    members: watch::Sender<Arc<Members>>,
    receiver: Mutex<Option<Arc<dyn Receiver>>>,
    incoming: mpsc::Sender<Event>,
}

impl Cluster for Port {
    fn me(&self) -> &NodeKey {
        &self.me
    }

    fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.subscribe()
    }

    fn send(&self, to: &NodeKey, message: Message) -> bool {
        // What is left of a node that was killed is not heard.
        if !self.bus.sees(&self.me, to) || !self.bus.nodes.lock().contains_key(&self.me) {
            return false;
        }
        // As over a wire.
        let message = Message::decode(&message.encode().unwrap()).unwrap();
        let is_chunks = matches!(&message, Message::Stream(StreamMessage { what: What::Chunks { .. }, .. }));
        if is_chunks && self.bus.holds_chunks.load(Ordering::Relaxed) {
            self.bus.held.lock().push((to.clone(), Event::Message(self.me.clone(), Box::new(message))));
            return true;
        }
        let peer = self.bus.nodes.lock().get(to).cloned();
        peer.is_some_and(|peer| {
            peer.incoming.try_send(Event::Message(self.me.clone(), Box::new(message))).is_ok()
        })
    }

    fn start(&self, receiver: Arc<dyn Receiver>) {
        *self.receiver.lock() = Some(receiver);
    }

    fn drain(&self) {
        self.bus.draining.lock().insert(self.me.name.to_string());
        self.bus.tell_members();
    }
}

impl Bus {
    fn sees(&self, a: &NodeKey, b: &NodeKey) -> bool {
        let cut = self.cut.lock();
        let pair = |a: &NodeKey, b: &NodeKey| (a.name.to_string(), b.name.to_string());
        !cut.contains(&pair(a, b)) && !cut.contains(&pair(b, a))
    }

    fn tell_members(&self) {
        let nodes = self.nodes.lock().clone();
        for (me, port) in &nodes {
            let draining = self.draining.lock().clone();
            let member = |key: &NodeKey| Member {
                key: key.clone(),
                draining: draining.contains(key.name.as_str()),
                suspect: false,
                central: nodes.keys().all(|other| self.sees(other, key)),
            };
            let up: Vec<Member> = nodes.keys().filter(|key| self.sees(me, key)).map(member).collect();
            let isolated = up.len() == 1 && nodes.len() > 1;
            port.members.send_replace(Arc::new(Members { nodes: up, isolated }));
        }
    }

    fn event(&self, to: &NodeKey, event: Event) {
        if let Some(port) = self.nodes.lock().get(to) {
            port.incoming.try_send(event).unwrap();
        }
    }

    fn set_cut(&self, a: &str, b: &str, cut: bool) {
        let keys: Vec<NodeKey> = self.nodes.lock().keys().cloned().collect();
        let before: Vec<(NodeKey, NodeKey)> = pairs(&keys).filter(|(a, b)| self.sees(a, b)).collect();
        if cut {
            self.cut.lock().insert((a.into(), b.into()));
        } else {
            self.cut.lock().remove(&(a.into(), b.into()));
        }
        self.tell_members();
        for (from, to) in pairs(&keys) {
            let (was, is) = (before.contains(&(from.clone(), to.clone())), self.sees(&from, &to));
            if was && !is {
                self.event(&from, Event::Down(to));
            } else if is && !was {
                self.event(&from, Event::Up(to));
            }
        }
    }
}

fn pairs(keys: &[NodeKey]) -> impl Iterator<Item = (NodeKey, NodeKey)> {
    let all = keys.iter().flat_map(|a| keys.iter().map(move |b| (a.clone(), b.clone())));
    all.filter(|(a, b)| a != b).collect::<Vec<_>>().into_iter()
}

struct Fleet {
    bus: Arc<Bus>,
    store: Arc<dyn Store>,
    figures: Arc<dyn FigureStore>,
    cores: Mutex<BTreeMap<String, Arc<Core>>>,
    incarnations: AtomicU64,
    _folder: tempfile::TempDir,
}

impl Fleet {
    async fn of(names: &[&str]) -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(folder.path(), &Limits::default()).unwrap());
        let figures: Arc<dyn FigureStore> = Arc::new(SqliteFigures::open(folder.path()).unwrap());
        let fleet = Arc::new(Self {
            bus: Arc::default(),
            store,
            cores: Mutex::default(),
            incarnations: AtomicU64::new(1),
            figures,
            _folder: folder,
        });
        for name in names {
            fleet.start(name).await;
        }
        fleet
    }

    async fn start(&self, name: &str) {
        let incarnation = self.incarnations.fetch_add(1, Ordering::Relaxed);
        let me = NodeKey { name: name.into(), incarnation };
        let (incoming, mut events) = mpsc::channel(100_000);
        let port = Arc::new(Port {
            me: me.clone(),
            bus: self.bus.clone(),
            members: watch::Sender::new(Arc::default()),
            receiver: Mutex::default(),
            incoming,
        });
        let others: Vec<NodeKey> = self.bus.nodes.lock().keys().cloned().collect();
        self.bus.nodes.lock().insert(me.clone(), port.clone());
        self.bus.tell_members();
        let limits = Limits {
            // Small, so that logs are trimmed and read from the store too.
            stream_buffer_chunks_max: 16,
            sockets_per_credential_max: SOCKETS_MAX,
            ..Limits::default()
        };
        let parts = Parts {
            environment: system_clock::environment(),
            limits,
            streams: StreamSettings::default(),
            ledger: LedgerSettings::default(),
            store: self.store.clone(),
            cluster: port.clone(),
            metrics: Metrics::register(&mut prometheus_client::registry::Registry::default()),
            reports: ReportParts {
                figures: self.figures.clone(),
                alerts: AlertSettings::default(),
                load: Arc::new(|| 0.0),
                webhooks: WebhookSettings::default(),
                caller: Arc::new(WebhookClient::new(&WebhookSettings::default()).unwrap()),
            },
            shards: 1,
            versions: muster_protocol::protocol_version::Table::default(),
            negotiation: muster_protocol::negotiation::Settings::default(),
            server_key: muster_protocol::signing::ServerKey::from_seed([1; 32]),
            drills: false,
        };
        let core = Core::start(parts).await.unwrap();
        let receiver = port.receiver.lock().clone().unwrap();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                receiver.receive(event);
            }
        });
        for other in others.iter().filter(|other| self.bus.sees(&me, other)) {
            self.bus.event(other, Event::Up(me.clone()));
            self.bus.event(&me, Event::Up(other.clone()));
        }
        self.cores.lock().insert(name.into(), core);
    }

    /// The node is gone, with everything it had not stored.
    fn kill(&self, name: &str) {
        self.cores.lock().remove(name);
        let key = self.bus.nodes.lock().keys().find(|key| key.name == name).cloned().unwrap();
        self.bus.nodes.lock().remove(&key);
        self.bus.draining.lock().remove(name);
        self.bus.tell_members();
        let others: Vec<NodeKey> = self.bus.nodes.lock().keys().cloned().collect();
        for other in others {
            self.bus.event(&other, Event::Down(key.clone()));
        }
    }

    fn core(&self, name: &str) -> Option<Arc<Core>> {
        self.cores.lock().get(name).cloned()
    }

    fn owner(&self, task: TaskId) -> String {
        let key = self.bus.nodes.lock().keys().next().cloned().unwrap();
        let members = self.bus.nodes.lock()[&key].members.borrow().clone();
        owner_of(task, &members.nodes).unwrap().name.to_string()
    }

    async fn task(&self, n: u8) -> (Task, Principal) {
        let at = Timestamp::from_unix_ms(1_700_000_000_000);
        let agent = |n: u8| async move {
            let json = format!(
                r#"{{"name":"Agent {n}","did":"did:x:{n}","capabilities":["code"],"pricing_model":"fixed","base_price":"1"}}"#
            );
            let registration: Registration = serde_json::from_str(&json).unwrap();
            let agent: Agent =
                registration.into_agent(AgentId::new(at, [n; 10]), None, at, &Limits::default()).unwrap();
            let key = Credential {
                id: CredentialId::new(at, [n; 10]),
                kind: CredentialKind::AgentKey,
                owner: Owner::Agent(agent.id),
                parent: None,
                label: None,
                scopes: Scopes::ALL,
                created_at: at,
                expires_at: None,
                revoked_at: None,
            };
            self.store.create_agent(agent.clone(), key, SecretHash::of(&format!("{n}")), 9).await.unwrap();
            agent
        };
        let (client, provider) = (agent(n).await, agent(n + 100).await);
        let task = Task {
            id: TaskId::new(at, [n; 10]),
            status: TaskStatus::Pending,
            client: client.id,
            client_owner: None,
            provider: provider.id,
            capability: "code".into(),
            input: Json::null(),
            output: None,
            error: None,
            max_price: None,
            external_client: None,
            hiring: None,
            payment: Payment::default(),
            created_at: at,
            updated_at: at,
            ended_at: None,
        };
        self.store.create_task(task.clone(), None).await.unwrap();
        let principal = Principal {
            credential: CredentialId::new(at, [n + 100; 10]),
            kind: CredentialKind::AgentKey,
            agent: Some(provider.id),
            user: None,
            scopes: Scopes::ALL,
            expires_at: None,
            as_of: 0,
        };
        (task, principal)
    }
}

async fn emit(core: &Core, principal: &Principal, task: TaskId, text: &str) -> Result<u64, Refusal> {
    let chunk: ChunkRequest = serde_json::from_value(serde_json::json!({ "content": text })).unwrap();
    let (ack, answer) = Ack::request(0);
    core.streams.emit(principal, task, (chunk, Some(text)), ack).await;
    answer.await.unwrap()
}

/// Reads to the end, each chunk with its text.
async fn read_all(core: &Core, task: TaskId) -> Vec<(u64, String)> {
    let mut seen = Vec::new();
    let mut after = Some(0);
    loop {
        let reading = core.streams.read(task, after, 64 * 1024).await.unwrap();
        if reading.chunks.is_empty() {
            return seen;
        }
        seen.extend(reading.chunks.iter().map(|(seq, body)| (*seq, text_of(body))));
        after = seen.last().map(|(seq, _)| *seq);
    }
}

fn text_of(body: &Json) -> String {
    let body: serde_json::Value = body.parse().unwrap();
    body["content"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_chunk_has_one_seq_wherever_it_is_emitted_and_read() {
    let fleet = Fleet::of(&["a", "b", "c"]).await;
    let (task, principal) = fleet.task(1).await;
    let names = ["a", "b", "c"];
    for n in 0..90_u64 {
        let core = fleet.core(names[usize::try_from(n % 3).unwrap()]).unwrap();
        assert_eq!(emit(&core, &principal, task.id, &format!("{n}")).await, Ok(n + 1));
        // The same chunk by another node.
        let core = fleet.core(names[usize::try_from((n + 1) % 3).unwrap()]).unwrap();
        assert_eq!(emit(&core, &principal, task.id, &format!("{n}")).await, Ok(n + 1));
    }
    for name in names {
        let seen = read_all(&fleet.core(name).unwrap(), task.id).await;
        assert_eq!(seen, (0..90_u64).map(|n| (n + 1, n.to_string())).collect::<Vec<_>>(), "{name}");
    }
    // The end is one end, and follows the last chunk, wherever it is asked for.
    let not_owner = names.into_iter().find(|name| *name != fleet.owner(task.id)).unwrap();
    let core = fleet.core(not_owner).unwrap();
    let ending = Ending::completed(Json::null());
    let by = (Some(task.provider), Some(task.provider));
    let done = core.streams.finish(task.id, ending.clone(), by).await.unwrap();
    assert_eq!(done.status, TaskStatus::Completed);
    for name in names {
        let core = fleet.core(name).unwrap();
        let refused = emit(&core, &principal, task.id, "late").await.unwrap_err();
        assert_eq!((refused.code, refused.status), (ErrorCode::TaskNotActive, Some("completed")), "{name}");
        let mut last = core.streams.read(task.id, Some(90), 1_000).await.unwrap();
        while last.ending.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
            last = core.streams.read(task.id, Some(90), 1_000).await.unwrap();
        }
        assert_eq!((last.seq, last.ending.as_ref()), (90, Some(&ending)), "{name}");
    }
}

#[tokio::test]
async fn a_reader_that_comes_while_a_stream_is_claimed_does_not_have_it_claimed_twice() {
    let fleet = Fleet::of(&["a", "b"]).await;
    for n in 1..=20 {
        let (task, principal) = fleet.task(n).await;
        let core = fleet.core(&fleet.owner(task.id)).unwrap();
        // Of two claims the one that counts at the node may come first in the store, and be fenced off by the other.
        core.streams.read(task.id, Some(0), 1_000).await.unwrap();
        emit(&core, &principal, task.id, "first").await.unwrap();
        // Epochs are counted over all streams: one for each so far.
        assert_eq!(fleet.store.stream_head(task.id, 0, 0).await.unwrap().epoch, u64::from(n));
    }
}

#[tokio::test]
async fn a_stream_moves_with_everything_it_has_and_readers_notice_nothing() {
    let fleet = Fleet::of(&["a", "b", "c"]).await;
    let (task, principal) = fleet.task(1).await;
    let owner = fleet.owner(task.id);
    let others: Vec<&str> = ["a", "b", "c"].into_iter().filter(|name| *name != owner).collect();
    let reader = Reader::start(fleet.clone(), others[0], task.id);
    let emitter = fleet.core(others[1]).unwrap();
    for n in 0..60_u64 {
        if n == 20 {
            fleet.bus.draining.lock().insert(owner.clone());
            fleet.bus.tell_members();
        }
        if n == 40 {
            fleet.bus.draining.lock().clear();
            fleet.bus.tell_members();
        }
        assert_eq!(emit(&emitter, &principal, task.id, &n.to_string()).await, Ok(n + 1), "none is refused");
    }
    reader.has(60).await;
    reader.ends_exactly_with((0..60).map(|n| (n + 1, n.to_string())).collect());
    assert!(fleet.core(&owner).unwrap().metrics.streams_moved.get() > 0);
}

#[tokio::test]
async fn readers_elsewhere_are_told_of_the_end_behind_the_last_chunk_however_late_that_comes() {
    let fleet = Fleet::of(&["a", "b"]).await;
    let (task, principal) = fleet.task(1).await;
    let owner = fleet.owner(task.id);
    let other = if owner == "a" { "b" } else { "a" };
    let (core, there) = (fleet.core(&owner).unwrap(), fleet.core(other).unwrap());
    let mut tail = there.streams.tail(task.id).await.unwrap();
    // Who reads here wants chunks.
    assert_eq!(there.streams.read(task.id, Some(0), 1_000).await.unwrap().seq, 0);
    assert_eq!(emit(&core, &principal, task.id, "first").await, Ok(1));
    let patience = Duration::from_secs(20);
    tokio::time::timeout(patience, tail.wait_for(|tail| tail.seq == 1)).await.unwrap().unwrap();
    fleet.bus.holds_chunks.store(true, Ordering::Relaxed);
    for seq in 2..=5 {
        assert_eq!(emit(&core, &principal, task.id, &seq.to_string()).await, Ok(seq));
    }
    let ending = Ending::completed(Json::of("done"));
    core.streams.finish(task.id, ending.clone(), (Some(task.provider), None)).await.unwrap();
    let ended = tail.wait_for(|tail| tail.ended);
    let tail_at_end = *tokio::time::timeout(patience, ended).await.unwrap().unwrap();
    assert_eq!(tail_at_end.seq, 5);
    let reading = there.streams.read(task.id, Some(1), 100_000).await.unwrap();
    assert_eq!(reading.chunks.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [2, 3, 4, 5]);
    assert_eq!(reading.ending, Some(ending));
    // What comes late says nothing new.
    fleet.bus.holds_chunks.store(false, Ordering::Relaxed);
    for (to, event) in std::mem::take(&mut *fleet.bus.held.lock()) {
        fleet.bus.event(&to, event);
    }
    assert_eq!(read_all(&there, task.id).await.len(), 5);
}

#[tokio::test]
async fn a_node_where_nobody_needs_a_stream_does_not_take_it_from_one_that_is_cut_off() {
    let fleet = Fleet::of(&["a", "b", "c"]).await;
    let (task, principal) = fleet.task(1).await;
    let owner = fleet.owner(task.id);
    let others: Vec<&str> = ["a", "b", "c"].into_iter().filter(|name| *name != owner).collect();
    // They had to do with it once, and then for longer than a second no more.
    for (seq, name) in (1..).zip(&others) {
        assert_eq!(emit(&fleet.core(name).unwrap(), &principal, task.id, name).await, Ok(seq));
    }
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let epoch = fleet.store.stream_head(task.id, 0, 0).await.unwrap().epoch;
    for other in &others {
        fleet.bus.set_cut(&owner, other, true);
    }
    let core = fleet.core(&owner).unwrap();
    for seq in 3..40 {
        assert_eq!(
            emit(&core, &principal, task.id, &seq.to_string()).await,
            Ok(seq),
            "its own clients go on"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(fleet.store.stream_head(task.id, 0, 0).await.unwrap().epoch, epoch);
    // Whoever needs it there gets it.
    assert_eq!(emit(&fleet.core(others[0]).unwrap(), &principal, task.id, "again").await, Ok(40));
}

/// Reads a stream on one node, and goes on where it was when that cannot be.
struct Reader {
    seen: Arc<Mutex<Vec<(u64, String)>>>,
    stop: Arc<AtomicBool>,
}

impl Reader {
    fn start(fleet: Arc<Fleet>, node: &str, task: TaskId) -> Self {
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let reader = Self { seen: seen.clone(), stop: stop.clone() };
        let node = node.to_owned();
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let Some(core) = fleet.core(&node) else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let Ok(mut tail) = core.streams.tail(task).await else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                drop(core);
                while !stop.load(Ordering::Relaxed) {
                    tail.borrow_and_update();
                    let after = seen.lock().last().map_or(0, |(seq, _): &(u64, String)| *seq);
                    let Some(core) = fleet.core(&node) else { break };
                    let Ok(reading) = core.streams.read(task, Some(after), 4_096).await else { break };
                    drop(core);
                    assert!(!reading.truncated);
                    let got_any = !reading.chunks.is_empty();
                    seen.lock().extend(reading.chunks.iter().map(|(seq, body)| (*seq, text_of(body))));
                    if !got_any {
                        let changed = tokio::time::timeout(Duration::from_millis(200), tail.changed()).await;
                        if matches!(changed, Ok(Err(_))) {
                            break;
                        }
                    }
                }
            }
        });
        reader
    }

    async fn has(&self, count: usize) {
        for _ in 0..3_000 {
            if self.seen.lock().len() >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} of {count} chunks: {:?}", self.seen.lock().len(), self.seen.lock().last());
    }

    fn ends_exactly_with(self, expected: Vec<(u64, String)>) {
        self.stop.store(true, Ordering::Relaxed);
        assert_eq!(*self.seen.lock(), expected);
    }
}

async fn killed(fleet: &Fleet, node: &str, core: &Arc<Core>) {
    while fleet.core(node).is_some_and(|now| Arc::ptr_eq(&now, core)) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One after the other until it has a seq, as a producer does that resends what was not acknowledged.
async fn produce(
    fleet: Arc<Fleet>,
    nodes: Vec<String>,
    task: TaskId,
    principal: Principal,
    stop: Arc<AtomicBool>,
) -> Vec<(u64, String)> {
    let mut acknowledged = Vec::new();
    let mut at = 0;
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let text = n.to_string();
        loop {
            let node = &nodes[at % nodes.len()];
            let result = match fleet.core(node) {
                Some(core) => tokio::select! {
                    result = emit(&core, &principal, task, &text) => result,
                    // Nobody hears from a node that was killed.
                    () = killed(&fleet, node, &core) => Err(ErrorCode::Draining.into()),
                    () = tokio::time::sleep(Duration::from_secs(30)) => panic!("no answer from {node}"),
                },
                None => Err(ErrorCode::Draining.into()),
            };
            match result {
                Ok(seq) => {
                    acknowledged.push((seq, text.clone()));
                    break;
                }
                Err(refusal) => {
                    assert!(refusal.code.retryable(), "{refusal:?}");
                    at += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
        n += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_repeated_or_out_of_order_while_nodes_come_and_go() {
    let seed = std::env::vars().find(|(name, _)| name == "SEED").map_or(7, |(_, seed)| seed.parse().unwrap());
    let mut random = {
        let mut state: u64 = seed;
        move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        }
    };
    let names = ["a", "b", "c"];
    let fleet = Fleet::of(&names).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut producers = Vec::new();
    let mut readers: HashMap<TaskId, Vec<Reader>> = HashMap::new();
    for n in 0..6 {
        let (task, principal) = fleet.task(n).await;
        let mut nodes: Vec<String> = names.iter().map(ToString::to_string).collect();
        nodes.rotate_left(usize::from(n % 3));
        for name in names {
            readers.entry(task.id).or_default().push(Reader::start(fleet.clone(), name, task.id));
        }
        let producing = produce(fleet.clone(), nodes, task.id, principal, stop.clone());
        producers.push((task.id, tokio::spawn(producing)));
    }
    for _ in 0..12 {
        let node = names[usize::try_from(random(3)).unwrap()];
        let other = names[(names.iter().position(|name| *name == node).unwrap() + 1) % 3];
        let pause = Duration::from_millis(50 + random(250));
        match random(4) {
            0 => {
                fleet.kill(node);
                tokio::time::sleep(pause).await;
                fleet.start(node).await;
            }
            1 => {
                fleet.bus.set_cut(node, other, true);
                tokio::time::sleep(pause).await;
                fleet.bus.set_cut(node, other, false);
            }
            2 => {
                let others: Vec<&str> = names.into_iter().filter(|name| *name != node).collect();
                others.iter().for_each(|other| fleet.bus.set_cut(node, other, true));
                tokio::time::sleep(pause).await;
                others.iter().for_each(|other| fleet.bus.set_cut(node, other, false));
            }
            _ => {
                fleet.bus.draining.lock().insert(node.to_owned());
                fleet.bus.tell_members();
                tokio::time::sleep(pause).await;
                fleet.bus.draining.lock().remove(node);
                fleet.bus.tell_members();
            }
        }
        tokio::time::sleep(Duration::from_millis(random(100))).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    for (task, producer) in producers {
        let acknowledged = producer.await.unwrap();
        assert!(acknowledged.len() > 20, "seed {seed}: only {} chunks", acknowledged.len());
        let seqs: Vec<u64> = acknowledged.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "seed {seed}");
        for reader in readers.remove(&task).unwrap() {
            reader.has(acknowledged.len()).await;
            reader.ends_exactly_with(acknowledged.clone());
        }
    }
}

/// Places a credential gets at a node now, which are given up again.
fn places(core: &Core, credential: CredentialId) -> usize {
    std::iter::from_fn(|| core.connections.place(credential, SOCKETS_MAX)).collect::<Vec<_>>().len()
}

async fn wait_for_places(core: &Core, credential: CredentialId, count: usize) {
    tokio::time::timeout(Duration::from_secs(10), async {
        while places(core, credential) != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{} places, not {count}", places(core, credential)));
}

#[tokio::test]
async fn what_is_used_at_one_node_counts_at_the_others() {
    let fleet = Fleet::of(&["a", "b"]).await;
    let (a, b) = (fleet.core("a").unwrap(), fleet.core("b").unwrap());
    let (credential, agent) = (CredentialId::from_bytes([9; 16]), AgentId::from_bytes([8; 16]));
    let here: Vec<_> =
        std::iter::repeat_with(|| a.connections.place(credential, SOCKETS_MAX)).take(6).collect();
    assert!(here.iter().all(Option::is_some));
    let now_ms = a.environment.monotonic_ms();
    let (rate, chunks) = (a.limits.requests_per_credential, a.limits.chunks_per_agent);
    for _ in 0..rate.burst {
        a.usage.requests.take(credential, now_ms).unwrap();
    }
    for _ in 0..chunks.burst {
        a.streams.agent_buckets().take(agent, now_ms).unwrap();
    }
    a.usage.tell();
    wait_for_places(&b, credential, 4).await;
    let left = |core: &Core| {
        let now_ms = core.environment.monotonic_ms();
        (
            core.usage.requests.remaining(&credential, now_ms),
            core.streams.agent_buckets().remaining(&agent, now_ms),
        )
    };
    tokio::time::timeout(Duration::from_secs(10), async {
        while left(&b).0 > rate.burst / 2 || left(&b).1 > chunks.burst / 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{:?} are left", left(&b)));

    // A node that comes later is told too, and one that is cut off counts for nothing until it is back.
    fleet.start("c").await;
    let c = fleet.core("c").unwrap();
    tokio::time::timeout(Duration::from_secs(10), async {
        while places(&c, credential) != 4 {
            a.usage.tell();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    fleet.bus.set_cut("a", "b", true);
    wait_for_places(&b, credential, SOCKETS_MAX).await;
    wait_for_places(&c, credential, 4).await;
    fleet.bus.set_cut("a", "b", false);
    tokio::time::timeout(Duration::from_secs(10), async {
        while places(&b, credential) != 4 {
            a.usage.tell();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    drop(here);
    a.usage.tell();
    wait_for_places(&b, credential, SOCKETS_MAX).await;
    wait_for_places(&c, credential, SOCKETS_MAX).await;
}
