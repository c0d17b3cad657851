//! Watchers whose connections are full; and, in `across`, several nodes.

mod across;
mod fleet;

use std::sync::atomic::{AtomicU64, Ordering};

use muster_protocol::cluster::NodeKey;
use muster_protocol::time::Timestamp;
use prometheus_client::registry::Registry;

use super::watching::STALL_MS;
use super::*;
use crate::cluster::Alone;
use crate::egress::outlet::tests::outlet;
use crate::egress::sink::tests::{Pipe, sink};
use crate::ports::{Clock, Entropy};

#[derive(Default)]
struct Hand(AtomicU64);

impl Clock for Hand {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(0)
    }

    fn monotonic_us(&self) -> u64 {
        self.0.load(Ordering::Relaxed) * 1_000
    }
}

struct Zeroes;

impl Entropy for Zeroes {
    fn fill(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

struct World {
    clock: Arc<Hand>,
    presence: Arc<Presence>,
    state: State,
    tracked: u64,
}

impl World {
    fn new() -> Self {
        let clock = Arc::new(Hand::default());
        let environment = Environment::new(clock.clone(), Arc::new(Zeroes));
        let metrics = Arc::new(Metrics::register(&mut Registry::default()));
        let me = NodeKey { name: "alone".into(), incarnation: 1 };
        let limits = Limits::default();
        let state = State::new(Replicas::new(&me, Bounds::from(&limits)), 0);
        let presence = Presence::new(environment, metrics, Arc::new(Alone::new(me)), &limits);
        Self { clock, presence, state, tracked: 0 }
    }

    fn flush(&mut self) {
        for command in self.presence.inbox.take() {
            self.state.apply(command, &self.presence);
        }
        self.state.flush(&self.presence);
    }

    /// Somebody new, with a meta of about that many bytes.
    fn come(&mut self, bytes: usize) {
        self.tracked += 1;
        let fields = Json::of(&serde_json::json!({ "x": "y".repeat(bytes) }));
        let (topic, key) = ("t".into(), SmolStr::from(format!("key {}", self.tracked)));
        self.state.apply(
            Command::Track { topic, key, id: self.tracked, shown: Shown { fields, facts: Arc::default() } },
            &self.presence,
        );
    }
}

/// How many messages of each event are in what a pipe took, and how many keys were named.
fn told(pipe: &Pipe) -> (usize, usize, usize) {
    let text = String::from_utf8_lossy(&pipe.taken()).into_owned();
    (
        text.matches("presence_state").count(),
        text.matches("presence_diff").count(),
        text.matches("\"key ").count(),
    )
}

#[test]
fn a_slow_watcher_gets_the_state_whole_and_again_when_it_has_room() {
    let mut world = World::new();
    let pipe = Pipe::default();
    let sink = Arc::new(sink(&pipe, 1_000));
    let outlet = outlet(&sink, 1, "1", None);
    for _ in 0..20 {
        world.come(200);
    }
    let _watching = world.presence.watch("t", &outlet, None, (View::Full, None));
    world.flush();
    assert_eq!(sink.queued_bytes(), 0, "a join that is not answered yet waits for its state");
    outlet.open(&muster_protocol::phoenix::Ref::from_text("1"), &Json::empty_object());
    world.flush();
    assert!(sink.queued_bytes() > 4_000, "the state is larger than the queue may be");
    for _ in 0..10 {
        world.come(200);
        world.flush();
    }
    assert_eq!(world.state.topics["t"].behind.len(), 1);
    assert!(!sink.is_closed(), "it is behind, not too slow");
    // It takes a little now and then: that is progress.
    for _ in 0..4 {
        world.clock.0.fetch_add(STALL_MS, Ordering::Relaxed);
        pipe.allow(100);
        sink.flush().unwrap();
        world.presence.every_second();
        world.flush();
    }
    assert!(!sink.is_closed());
    pipe.allow(1_000_000);
    sink.flush().unwrap();
    let (states, diffs, _) = told(&pipe);
    assert_eq!(states, 1);
    assert!((1..10).contains(&diffs), "some diffs fitted behind it: {diffs}");
    world.flush();
    assert_eq!(told(&pipe), (1, 0, 30), "then the whole state again");
    world.come(200);
    world.flush();
    assert_eq!(told(&pipe), (0, 1, 1), "and diffs as for everybody");
}

#[test]
fn a_watcher_that_takes_nothing_is_closed() {
    let mut world = World::new();
    let pipe = Pipe::default();
    let sink = Arc::new(sink(&pipe, 1_000));
    let outlet = outlet(&sink, 1, "1", None);
    outlet.open(&muster_protocol::phoenix::Ref::from_text("1"), &Json::empty_object());
    let _watching = world.presence.watch("t", &outlet, None, (View::Full, None));
    for _ in 0..10 {
        world.come(300);
        world.flush();
    }
    for (waited_ms, closed) in [(0, false), (STALL_MS - 1, false), (1, true)] {
        world.clock.0.fetch_add(waited_ms, Ordering::Relaxed);
        world.presence.every_second();
        world.flush();
        assert_eq!(sink.is_closed(), closed);
    }
    assert_eq!(sink.close_code(), Some(muster_protocol::websocket::CloseCode::Overloaded));
    assert!(world.state.topics["t"].behind.is_empty());
}
