//! Nodes that speak over Redis where they do not reach each other, or by nothing else. The servers are real.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends")]
#![allow(clippy::disallowed_methods, reason = "measures real time")]

use std::time::{Duration, Instant};

use muster_tests::gate::{Gate, Way};
use muster_tests::links::{LinkNode, Links};
use muster_tests::redis::Server;

const SECRET: &str = "MUSTER_CLUSTER_SECRET=0123456789abcdef0123456789abcdef";
/// Shorter than they are by default, so that what rests on silence takes less.
const TIMES: [&str; 3] =
    ["cluster.heartbeat_ms=300", "cluster.suspect_after_ms=900", "cluster.down_after_ms=3000"];
const PATIENCE: Duration = Duration::from_secs(20);

/// A node that has Redis, with further settings.
fn start(links: &Links, name: &str, url: &str, settings: &[String]) -> LinkNode {
    let mut all: Vec<String> = TIMES.iter().map(|&time| time.to_owned()).collect();
    all.extend([format!("cluster.node={name}"), format!("cluster.redis_url={url}")]);
    all.extend_from_slice(settings);
    links.start(name, &["env", SECRET], &all)
}

/// A node without direct links.
fn only_redis(links: &Links, name: &str, url: &str) -> LinkNode {
    start(links, name, url, &["cluster.transport=redis".to_owned()])
}

/// Two nodes, of which a dials b through a gate.
fn pair(links: &Links, url: &str) -> (LinkNode, LinkNode, Gate) {
    let gate = Gate::new(links.port("b"));
    let listen = |name| format!("cluster.listen=127.0.0.1:{}", links.port(name));
    // They are told of no way around it.
    let advertise = |port: u16| format!("cluster.advertise=127.0.0.1:{port}");
    let b = start(links, "b", url, &[listen("b"), advertise(gate.port)]);
    let peers = format!("cluster.peers=[\"127.0.0.1:{}\"]", gate.port);
    let a = start(links, "a", url, &[listen("a"), advertise(1), peers]);
    (a, b, gate)
}

fn wait_for_transport(node: &mut LinkNode, of: &str, transport: &str) {
    let end = Instant::now() + PATIENCE;
    while node.status_of(of).is_none_or(|status| status["transport"] != transport) {
        assert!(Instant::now() < end, "{of} is not reached by {transport}:\n{}", node.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait_for_redis(node: &mut LinkNode, up: bool) {
    let end = Instant::now() + PATIENCE;
    while node.status()["fallback"]["up"] != up {
        assert!(Instant::now() < end, "Redis is not up = {up}:\n{}", node.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn up_both(a: &mut LinkNode, b: &mut LinkNode) {
    a.wait_for("up", "b");
    b.wait_for("up", "a");
}

/// Sends numbered messages, without a look at how far the last ones are.
#[derive(Default)]
struct Numbers {
    sent: u64,
    seen: u64,
}

impl Numbers {
    fn send(&mut self, from: &mut LinkNode, to: &str, count: u64) {
        from.tell(&format!("send {to} {} {count} 200", self.sent));
        assert_eq!(from.next("sent")["taken"], count, "{}", from.log());
        self.sent += count;
    }

    /// All that were sent since the last look have come, once and in order.
    fn check(&mut self, at: &mut LinkNode) {
        let new = at.messages(usize::try_from(self.sent - self.seen).unwrap());
        assert_eq!(new, (self.seen..self.sent).collect::<Vec<u64>>(), "once and in order");
        self.seen = self.sent;
    }
}

/// Nobody was taken for gone, and nothing was dropped.
fn check_unbroken(nodes: [&mut LinkNode; 2]) {
    for node in nodes {
        for event in ["down", "reset"] {
            assert!(!node.comes(event, Duration::ZERO), "{event}:\n{}", node.log());
        }
    }
}

fn metric(node: &mut LinkNode, name: &str) -> f64 {
    node.tell("metrics");
    let text = node.next("metrics")["text"].as_str().unwrap().to_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

#[test]
fn traffic_goes_over_redis_while_the_direct_link_is_cut_and_back_again() {
    let (redis, links) = (Server::start(), Links::new());
    let (mut a, mut b, gate) = pair(&links, &redis.url());
    up_both(&mut a, &mut b);
    let (mut forth, mut back) = (Numbers::default(), Numbers::default());
    for way in [Way::Closed, Way::Silent, Way::SilentForth, Way::Closed] {
        gate.set(Way::Open);
        for (node, peer) in [(&mut a, "b"), (&mut b, "a")] {
            wait_for_transport(node, peer, "direct");
        }
        let mut send = |a: &mut LinkNode, b: &mut LinkNode| {
            forth.send(a, "b", 500);
            back.send(b, "a", 500);
        };
        send(&mut a, &mut b);
        gate.set(way);
        send(&mut a, &mut b);
        for (node, peer) in [(&mut a, "b"), (&mut b, "a")] {
            wait_for_transport(node, peer, "redis");
        }
        send(&mut a, &mut b);
    }
    forth.check(&mut b);
    back.check(&mut a);
    check_unbroken([&mut a, &mut b]);
}

#[test]
fn nobody_notices_that_redis_is_gone_while_direct_links_stand() {
    let (mut redis, links) = (Server::start(), Links::new());
    let (mut a, mut b, gate) = pair(&links, &redis.url());
    up_both(&mut a, &mut b);
    wait_for_transport(&mut a, "b", "direct");
    wait_for_redis(&mut a, true);
    let mut forth = Numbers::default();
    forth.send(&mut a, "b", 500);
    redis.stop();
    wait_for_redis(&mut a, false);
    for _ in 0..20 {
        forth.send(&mut a, "b", 100);
        assert_eq!(a.status_of("b").unwrap()["transport"], "direct");
    }
    redis.launch();
    wait_for_redis(&mut a, true);
    forth.send(&mut a, "b", 500);
    forth.check(&mut b);
    check_unbroken([&mut a, &mut b]);

    // One that has stopped takes everything and answers nothing.
    redis.signal("STOP");
    wait_for_redis(&mut a, false);
    a.tell("ping b 50");
    a.next("pinged");
    redis.signal("CONT");
    wait_for_redis(&mut a, true);
    wait_for_redis(&mut b, true);

    // With neither, the other one is gone: not at once, and not much later than that takes.
    redis.stop();
    wait_for_redis(&mut a, false);
    let begun = Instant::now();
    gate.set(Way::Silent);
    a.wait_for("down", "b");
    b.wait_for("down", "a");
    let taken = begun.elapsed();
    assert!(taken > Duration::from_secs(2) && taken < Duration::from_secs(9), "{taken:?}");
    assert_eq!(a.status()["isolated"], true);
    redis.launch();
    up_both(&mut a, &mut b);
    wait_for_transport(&mut a, "b", "redis");
}

#[test]
fn three_nodes_find_each_other_by_redis_alone() {
    let (redis, links) = (Server::start(), Links::new());
    let mut nodes = ["a", "b", "c"].map(|name| only_redis(&links, name, &redis.url()));
    for (at, name) in ["a", "b", "c"].into_iter().enumerate() {
        for other in ["a", "b", "c"].into_iter().filter(|other| *other != name) {
            nodes[at].wait_for("up", other);
        }
        assert!(nodes[at].sockets("0A").is_empty(), "nothing listens");
        assert_eq!(nodes[at].connections_of(&[redis.port]), 1);
    }
    let [mut a, mut b, mut c] = nodes;
    let (mut to_b, mut to_c) = (Numbers::default(), Numbers::default());
    to_b.send(&mut a, "b", 2_000);
    to_c.send(&mut a, "c", 2_000);
    to_b.check(&mut b);
    to_c.check(&mut c);

    // One that leaves is gone at once, one that is killed after its silence, and one that comes again is another.
    let begun = Instant::now();
    c.tell("close");
    a.wait_for("down", "c");
    assert!(begun.elapsed() < Duration::from_secs(2));
    let first = b.status()["nodes"][1]["incarnation"].as_u64().unwrap();
    b.kill();
    let begun = Instant::now();
    a.wait_for("down", "b");
    assert!(begun.elapsed() > Duration::from_secs(2), "{:?}", begun.elapsed());
    let mut again = only_redis(&links, "b", &redis.url());
    up_both(&mut a, &mut again);
    assert!(again.status()["nodes"][1]["incarnation"].as_u64().unwrap() > first);
    Numbers::default().send(&mut a, "b", 10);
    assert_eq!(again.messages(10).len(), 10);
}

#[test]
fn a_node_that_is_killed_is_gone_before_one_that_is_only_silent() {
    let (redis, links) = (Server::start(), Links::new());
    let [mut a, mut b, c] = ["a", "b", "c"].map(|name| only_redis(&links, name, &redis.url()));
    for other in ["b", "c"] {
        a.wait_for("up", other);
    }
    // A connection to Redis has to be steady before what it says of others counts.
    let begun = Instant::now();
    while a.status()["fallback"]["since_ms"].as_u64().unwrap() < 10_000 {
        assert!(begun.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(200));
    }
    c.signal("STOP");
    b.kill();
    let mut gone = || a.next("down")["node"].as_str().unwrap().to_owned();
    assert!(gone().starts_with("b#"), "Redis knows that it has no subscription any more");
    assert!(gone().starts_with("c#"));
    c.signal("CONT");
    a.wait_for("up", "c");
}

#[test]
fn what_redis_loses_is_sent_again() {
    let (mut redis, links) = (Server::start(), Links::new());
    let (mut a, mut b) = (only_redis(&links, "a", &redis.url()), only_redis(&links, "b", &redis.url()));
    up_both(&mut a, &mut b);
    let mut forth = Numbers::default();
    for _ in 0..12 {
        forth.send(&mut a, "b", 100);
        // As when what waits for a subscriber is too much.
        assert!(redis.command(&[b"CLIENT", b"KILL", b"TYPE", b"pubsub"]).starts_with(':'));
        forth.send(&mut a, "b", 100);
        // Without a word in between one would be taken for gone.
        forth.check(&mut b);
    }
    wait_for_redis(&mut a, true);
    redis.stop();
    forth.send(&mut a, "b", 100);
    redis.launch();
    forth.send(&mut a, "b", 100);
    forth.check(&mut b);
    check_unbroken([&mut a, &mut b]);
}

#[test]
fn what_others_publish_is_refused() {
    // Redis itself lets go of nobody for what waits.
    let lenient = ["--client-output-buffer-limit", "pubsub 0 0 0"];
    let (redis, links) = (Server::start_with(&lenient), Links::new());
    let mut listener = redis.listen("muster:muster");
    let (mut a, mut b) = (only_redis(&links, "a", &redis.url()), only_redis(&links, "b", &redis.url()));
    up_both(&mut a, &mut b);
    let mut forth = Numbers::default();
    forth.send(&mut a, "b", 10);
    forth.check(&mut b);
    let (to_b, envelope) = std::iter::repeat_with(|| listener.next())
        .find(|(channel, envelope)| channel.starts_with("muster:muster:b#") && envelope.len() > 1_000)
        .unwrap();
    let to_a = std::iter::repeat_with(|| listener.next().0)
        .find(|channel| channel.starts_with("muster:muster:a#"))
        .unwrap();
    assert!(!envelope.windows(5).any(|part| part == b"xxxxx"), "Redis does not see what is said");
    let refused = |node: &mut LinkNode, reason: &str| {
        metric(node, &format!("muster_cluster_redis_refused_total{{reason=\"{reason}\"}}"))
    };
    // Again; changed; to another node; to all; and what is no envelope.
    let mut changed = envelope.clone();
    *changed.last_mut().unwrap() ^= 1;
    assert!(redis.publish(&to_b, &envelope) > 0);
    assert!(redis.publish(&to_b, &changed) > 0);
    assert!(redis.publish(&to_a, &envelope) > 0);
    assert!(redis.publish("muster:muster", &envelope) > 1);
    assert!(redis.publish(&to_b, b"{}") > 0);
    assert!(redis.publish(&to_b, &vec![1; 1_000_000]) > 0);
    forth = Numbers::default();
    forth.send(&mut a, "b", 10);
    forth.check(&mut b);
    assert_eq!([refused(&mut b, "repeated"), refused(&mut b, "malformed")], [1.0, 1.0]);
    assert_eq!([refused(&mut b, "forged"), refused(&mut a, "forged")], [3.0, 2.0]);
    assert!(b.log().contains("messages of Redis are refused"));
    check_unbroken([&mut a, &mut b]);

    // More than any message can be is not even gathered: the connection ends, and another one goes on.
    let before = b.memory();
    redis.publish(&to_b, &vec![1; 200_000_000]);
    forth.send(&mut a, "b", 10);
    assert_eq!(b.messages(10).len(), 10);
    assert!(b.memory() < before + 60_000_000, "{} and then {}", before, b.memory());
    check_unbroken([&mut a, &mut b]);
}

#[test]
fn a_node_of_another_secret_or_cluster_is_not_heard() {
    let (redis, links) = (Server::start(), Links::new());
    let mut a = only_redis(&links, "a", &redis.url());
    let url = format!("cluster.redis_url={}", redis.url());
    let settings = |name: &str, more: &str| {
        ["cluster.transport=redis", &url, &format!("cluster.node={name}"), more].map(str::to_owned)
    };
    let other = "MUSTER_CLUSTER_SECRET=another-secret-of-thirty-two-bytes";
    let mut b = links.start("b", &["env", other], &settings("b", "cluster.heartbeat_ms=200"));
    let mut c = links.start("c", &["env", SECRET], &settings("c", "cluster.name=other"));
    let mut d = only_redis(&links, "d", &redis.url());
    a.wait_for("up", "d");
    d.wait_for("up", "a");
    for node in [&mut a, &mut b, &mut c] {
        assert!(!node.comes("up", Duration::from_secs(1)), "{}", node.log());
    }
    assert!(metric(&mut a, "muster_cluster_redis_refused_total{reason=\"forged\"}") > 0.0);
}

#[test]
fn memory_is_bounded_while_redis_takes_nothing() {
    let (redis, links) = (Server::start(), Links::new());
    let (mut a, mut b) = (only_redis(&links, "a", &redis.url()), only_redis(&links, "b", &redis.url()));
    up_both(&mut a, &mut b);
    redis.signal("STOP");
    let before = a.memory();
    // 200 MB, a dozen times what may wait.
    for _ in 0..20 {
        a.tell("send b 0 1000 10000");
        a.next("sent");
    }
    assert!(a.memory() < before + 80_000_000, "{} and then {}", before, a.memory());
    redis.signal("CONT");
    wait_for_redis(&mut a, true);
    wait_for_redis(&mut b, true);
    // Both are up, or will be again; then messages come.
    let end = Instant::now() + PATIENCE;
    loop {
        a.tell("send b 7 1 10");
        if a.next("sent")["taken"] == 1 && b.comes("message", Duration::from_secs(1)) {
            break;
        }
        assert!(Instant::now() < end, "{}", a.log());
    }
}

#[test]
fn a_password_is_needed_used_and_never_shown() {
    let (redis, links) = (Server::start_with(&["--requirepass", "hush-hush"]), Links::new());
    let url = format!("redis://:hush-hush@127.0.0.1:{}", redis.port);
    let (mut a, mut b) = (only_redis(&links, "a", &url), only_redis(&links, "b", &url));
    up_both(&mut a, &mut b);
    let wrong = format!("redis://:hush-hash@127.0.0.1:{}", redis.port);
    let mut c = only_redis(&links, "c", &wrong);
    c.next("started");
    let end = Instant::now() + PATIENCE;
    let has_tried = |status: &serde_json::Value| status["fallback"]["problem"] != "not connected yet";
    // It cannot know whether it is alone.
    while !(has_tried(&c.status()) && c.status()["isolated"] == true) {
        assert!(Instant::now() < end, "{}", c.status());
        std::thread::sleep(Duration::from_millis(20));
    }
    for node in [&mut a, &mut b, &mut c] {
        let shown = format!("{}{}", node.status(), node.log());
        assert!(!shown.contains("hush"), "{shown}");
    }
}

#[test]
fn redis_is_spoken_to_by_tls_and_has_to_be_who_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let certificate = |name: &str| {
        let made = std::process::Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
            ])
            .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-keyout", &file(&format!("{name}.key")), "-out", &file(&format!("{name}.pem"))])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    };
    certificate("redis");
    certificate("other");
    let port = muster_tests::free_port().to_string();
    let (pem, key) = (file("redis.pem"), file("redis.key"));
    let tls =
        ["--tls-port", &port, "--tls-cert-file", &pem, "--tls-key-file", &key, "--tls-auth-clients", "no"];
    let (_redis, links) = (Server::start_with(&tls), Links::new());
    let url = format!("rediss://localhost:{port}");
    let node = |name: &str, ca: &str| {
        let settings = ["cluster.transport=redis".to_owned(), format!("cluster.redis_ca={}", file(ca))];
        start(&links, name, &url, &settings)
    };
    let (mut a, mut b, mut c) = (node("a", "redis.pem"), node("b", "redis.pem"), node("c", "other.pem"));
    up_both(&mut a, &mut b);
    let mut forth = Numbers::default();
    forth.send(&mut a, "b", 500);
    forth.check(&mut b);
    assert!(!c.comes("up", Duration::from_secs(1)));
    let problem = c.status()["fallback"]["problem"].as_str().unwrap().to_owned();
    assert!(problem.contains("certificate"), "{problem}");
}

#[test]
fn what_cannot_be_used_is_said() {
    let links = Links::new();
    let secret = ["env", SECRET];
    let short = ["env", "MUSTER_CLUSTER_SECRET=short"];
    let cases: [(&[&str], &str, &str); 4] = [
        (&["env", "-u", "MUSTER_CLUSTER_SECRET"], "redis://127.0.0.1:1", "MUSTER_CLUSTER_SECRET"),
        (&short, "redis://127.0.0.1:1", "at least 32 bytes"),
        (&secret, "http://a:hush@127.0.0.1:1", "cluster.redis_url: must be redis://"),
        (&secret, "rediss://a:hush@127.0.0.1:1/#insecure", "cluster.redis_ca"),
    ];
    for (wrapper, url, expected) in cases {
        let settings = ["cluster.transport=redis", &format!("cluster.redis_url={url}"), "cluster.node=a"]
            .map(str::to_owned);
        let mut node = links.start("a", wrapper, &settings);
        let error = node.next("failed")["error"].as_str().unwrap().to_owned();
        assert!(error.contains(expected) && !error.contains("hush"), "{error}");
    }
}
