//! Links between nodes, each a process of its own: how they come about, who is kept out, and what faults do to them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends")]
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "tests measure real time; figures are for people"
)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use muster_tests::links::{LinkNode, Links, Namespace, tls_without_trust};
use serde_json::json;

const MIB: u64 = 1 << 20;
/// Faster than by default, so that a test does not wait.
const QUICK: [&str; 3] =
    ["cluster.heartbeat_ms=300", "cluster.suspect_after_ms=900", "cluster.down_after_ms=2000"];

fn quick(links: &Links, name: &str, peers: &[&str]) -> LinkNode {
    let mut settings = links.settings(name, peers);
    settings.extend(QUICK.map(str::to_owned));
    links.start(name, &[], &settings)
}

fn both_up(a: &mut LinkNode, b: &mut LinkNode) {
    a.wait_for("up", "b");
    b.wait_for("up", "a");
}

/// Waits until something holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn two_nodes_that_dial_each_other_at_once_have_one_link() {
    for _ in 0..5 {
        let links = Links::new();
        let (mut a, mut b) = (links.node("a", &["b"]), links.node("b", &["a"]));
        both_up(&mut a, &mut b);
        a.tell("send b 0 1000 100");
        assert_eq!(a.next("sent")["taken"], 1_000);
        let taken = b.messages(1_000);
        assert_eq!(taken, (0..1_000).collect::<Vec<u64>>(), "once and in order");
        for node in [&a, &b] {
            let open = node.connections_of(&[links.port("a"), links.port("b")]);
            assert_eq!(open, 1, "one connection between the two");
        }
    }
}

#[test]
fn four_nodes_of_which_each_dials_all_know_each_other_and_a_way_back_is_forgotten() {
    let links = Links::new();
    let names = ["a", "b", "c", "d"];
    let mut nodes: Vec<LinkNode> = names.iter().map(|name| links.node(name, &names)).collect();
    for (node, name) in nodes.iter_mut().zip(names) {
        for peer in names.iter().filter(|peer| **peer != name) {
            node.wait_for("up", peer);
        }
        node.tell("remotable");
        assert_eq!(node.next("remotable")["count"], 1, "one actor can be reached from outside");
        // Some were not there yet when others dialled them; nothing else went wrong.
        let log = node.log();
        let problems: Vec<&str> =
            log.lines().filter(|line| line.contains("WARN") && !line.contains("refused (os error")).collect();
        assert!(problems.is_empty(), "{problems:?}");
    }
    let ports = names.map(|name| links.port(name));
    until("three links each", || nodes.iter().all(|node| node.connections_of(&ports) == 3));
}

#[test]
fn it_is_enough_to_be_told_of_one_node() {
    let links = Links::new();
    let mut nodes =
        [("a", None), ("b", Some("a")), ("c", Some("b")), ("d", Some("a"))].map(|(name, peer)| {
            let peers: Vec<&str> = peer.into_iter().collect();
            (name, quick(&links, name, &peers))
        });
    for (name, node) in &mut nodes {
        for peer in ["a", "b", "c", "d"].iter().filter(|peer| *peer != name) {
            node.wait_for("up", peer);
        }
        assert_eq!(node.status()["isolated"], false);
    }
}

#[test]
fn a_node_that_was_killed_is_back_at_once_as_another_process() {
    let links = Links::new();
    let (mut a, mut b) = (links.node("a", &["b"]), links.node("b", &["a"]));
    both_up(&mut a, &mut b);
    for _ in 0..3 {
        b.kill();
        let begun = Instant::now();
        b = links.node("b", &["a"]);
        let gone = a.wait_for("down", "b");
        let came = a.wait_for("up", "b");
        b.wait_for("up", "a");
        assert_ne!(gone, came);
        assert!(begun.elapsed() < Duration::from_secs(4), "sooner than silence would tell");
        a.tell("send b 7 1 10");
        assert_eq!(b.messages(1), [7]);
    }
}

#[test]
fn a_goodbye_is_heard_at_once_and_draining_is_seen() {
    let links = Links::new();
    let (mut a, mut b) = (links.node("a", &["b"]), links.node("b", &[]));
    both_up(&mut a, &mut b);
    b.tell("drain");
    until("a sees that b drains", || a.status_of("b").unwrap()["draining"] == true);
    assert_eq!(a.status_of("b").unwrap()["state"], "up");
    let begun = Instant::now();
    b.tell("close");
    a.wait_for("down", "b");
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(a.status_of("b").unwrap()["state"], "left");
    assert_eq!(a.status()["isolated"], false, "who left is not missed");
    b.next("closed");
}

#[test]
fn a_node_that_has_stopped_is_suspect_then_gone_and_costs_little_memory() {
    let links = Links::new();
    let settings = |name: &str, peer: &str| -> Vec<String> { links.settings(name, &[peer]) };
    let mut a = links.start("a", &[], &settings("a", "b"));
    let mut b = links.start("b", &["env"], &[settings("b", "a"), vec!["quiet".to_owned()]].concat());
    both_up(&mut a, &mut b);
    a.tell("send b 0 10000 1000");
    a.next("sent");
    b.signal("STOP");
    let before = a.memory();
    let stopped = Instant::now();
    let mut most = 0;
    let mut seen = Vec::new();
    while stopped.elapsed() < Duration::from_secs(15) {
        // About 20 MB each second.
        a.tell("send b 0 4000 1000");
        a.next("sent");
        most = most.max(a.memory());
        let state = a.status_of("b").unwrap()["state"].as_str().unwrap().to_owned();
        if seen.last() != Some(&state) {
            seen.push(state);
        }
        std::thread::sleep(Duration::from_millis(150));
    }
    let grown = most.saturating_sub(before);
    println!("a stopped peer cost {} KiB, through {seen:?}", grown / 1_024);
    assert_eq!(seen, ["up", "suspect", "silent"]);
    assert!(grown < 64 * MIB, "{grown} bytes");
    a.wait_for("down", "b");
    assert_eq!(a.status()["isolated"], true);
    b.signal("CONT");
    a.wait_for("up", "b");
    until("both are up for each other", || {
        a.status_of("b").unwrap()["state"] == "up" && b.status_of("a").unwrap()["state"] == "up"
    });
    b.tell("taken");
    let taken = b.next("taken")["count"].as_u64().unwrap();
    a.tell("send b 0 100 10");
    assert_eq!(a.next("sent")["taken"], 100);
    until("what is sent from here on arrives", || {
        b.tell("taken");
        b.next("taken")["count"].as_u64().unwrap() >= taken + 100
    });
}

#[test]
fn too_much_for_a_node_that_pauses_resets_the_session_on_both_sides_and_it_goes_on() {
    let links = Links::new();
    let (mut a, mut b) = (links.node("a", &["b"]), links.node("b", &["a"]));
    both_up(&mut a, &mut b);
    b.signal("STOP");
    // 16 MiB wait at most.
    a.tell("send b 0 200 200000");
    let refused = a.next("sent")["refused"].as_u64().unwrap();
    assert!(refused > 0);
    a.wait_for("reset", "b");
    b.signal("CONT");
    b.wait_for("reset", "a");
    a.tell("send b 5000 10 10");
    until("what comes after the reset arrives", || b.messages(1)[0] == 5_009);
    assert!(!a.comes("down", Duration::from_millis(100)), "it was never gone");
}

#[test]
fn a_way_that_is_shut_in_one_direction_is_noticed_at_both_ends_and_opens_again() {
    let space = Namespace::new();
    let links = Links::new();
    let start = |name: &str, peers: &[&str]| {
        let mut settings = links.settings(name, peers);
        settings.extend(QUICK.map(str::to_owned));
        links.start(name, &space.prefix(), &settings)
    };
    let (mut a, mut b) = (start("a", &["b"]), start("b", &[]));
    both_up(&mut a, &mut b);
    // What a says to b, and not what b says to a.
    links.shut(&space, "a", "b", true);
    b.wait_for("down", "a");
    a.wait_for("down", "b");
    assert_eq!((&a.status()["isolated"], &b.status()["isolated"]), (&json!(true), &json!(true)));
    links.shut(&space, "a", "b", false);
    both_up(&mut a, &mut b);
    a.tell("send b 1 3 10");
    assert_eq!(b.messages(3), [1, 2, 3]);
}

#[test]
fn a_link_that_one_end_has_lost_is_replaced_although_the_other_still_holds_it() {
    let space = Namespace::new();
    let links = Links::new();
    let start = |name: &str, peers: &[&str]| links.start(name, &space.prefix(), &links.settings(name, peers));
    // b dials, a decides.
    let (mut a, mut b) = (start("a", &[]), start("b", &["a"]));
    both_up(&mut a, &mut b);
    let [(local, _)] = b.sockets("01")[..] else { panic!("one connection") };
    let local = local.to_string();
    // Its end is closed by the kernel, and the other end never hears of it.
    space.run(&["iptables", "-A", "INPUT", "-p", "tcp", "--sport", &local, "-j", "DROP"]);
    space.run(&["ss", "-K", "src", &format!("127.0.0.1:{local}")]);
    until("another connection", || b.sockets("01").iter().any(|(port, _)| port.to_string() != local));
    a.tell("send b 0 20 10");
    assert_eq!(b.messages(20), (0..20).collect::<Vec<u64>>());
    assert!(!a.comes("down", Duration::from_millis(100)) && !b.comes("down", Duration::from_millis(100)));
}

#[test]
fn messages_go_on_by_another_transport_and_come_back_once_and_in_order() {
    let space = Namespace::new();
    let links = Links::new();
    let folder = links.folder().join("datagrams");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("open"), "").unwrap();
    let start = |name: &str, peers: &[&str]| {
        let mut settings = links.settings(name, peers);
        settings.extend(QUICK.map(str::to_owned));
        settings.push(format!("datagrams={}", folder.display()));
        links.start(name, &space.prefix(), &settings)
    };
    let (mut a, mut b) = (start("a", &["b"]), start("b", &[]));
    both_up(&mut a, &mut b);
    until("directly", || a.status_of("b").unwrap()["transport"] == "direct");
    let mut sent = 0;
    let mut send = |a: &mut LinkNode| {
        a.tell(&format!("send b {sent} 100 2000"));
        assert_eq!(a.next("sent")["taken"], 100, "taken whatever the way");
        sent += 100;
        std::thread::sleep(Duration::from_millis(50));
    };
    for _ in 0..2 {
        links.shut(&space, "a", "b", true);
        let shut = Instant::now();
        while a.status_of("b").unwrap()["transport"] != "fallback" {
            assert!(shut.elapsed() < Duration::from_secs(10), "{}", a.log());
            send(&mut a);
        }
        (0..10).for_each(|_| send(&mut a));
        links.shut(&space, "a", "b", false);
        let opened = Instant::now();
        while a.status_of("b").unwrap()["transport"] != "direct" {
            assert!(opened.elapsed() < Duration::from_secs(20), "{}", a.log());
            send(&mut a);
        }
        (0..10).for_each(|_| send(&mut a));
    }
    let taken = b.messages(usize::try_from(sent).unwrap());
    assert_eq!(taken, (0..sent).collect::<Vec<u64>>());
    for event in ["down", "reset"] {
        let none = Duration::from_millis(100);
        assert!(!a.comes(event, none) && !b.comes(event, none), "{event}");
    }
}

#[test]
fn nodes_without_a_direct_way_find_each_other_by_the_other_transport() {
    let links = Links::new();
    let folder = links.folder().join("datagrams");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("open"), "").unwrap();
    let start = |name: &str| {
        let mut settings = vec![format!("cluster.node={name}")];
        settings.extend(QUICK.map(str::to_owned));
        settings.push(format!("datagrams={}", folder.display()));
        links.start(name, &[], &settings)
    };
    let (mut a, mut b) = (start("a"), start("b"));
    both_up(&mut a, &mut b);
    a.tell("send b 0 5000 500");
    assert_eq!(a.next("sent")["taken"], 5_000);
    assert_eq!(b.messages(5_000), (0..5_000).collect::<Vec<u64>>());
    // It is gone for a while: each is down for the other, and what follows is another session.
    std::fs::remove_file(folder.join("open")).unwrap();
    a.wait_for("down", "b");
    b.wait_for("down", "a");
    std::fs::write(folder.join("open"), "").unwrap();
    both_up(&mut a, &mut b);
    a.tell("send b 9000 10 10");
    assert_eq!(b.messages(10), (9_000..9_010).collect::<Vec<u64>>());
}

#[test]
fn another_cluster_is_turned_away_and_both_sides_say_so() {
    let links = Links::new();
    let a = links.node("a", &[]);
    let mut settings = links.settings("b", &["a"]);
    settings.push("cluster.name=other".to_owned());
    let mut b = links.start("b", &[], &settings);
    until("b says it", || b.log().contains("is of cluster"));
    until("a says it", || a.log().contains("is of cluster"));
    assert!(!b.comes("up", Duration::from_secs(1)));
    assert!(b.log().matches("WARN").count() <= 2, "it is said once:\n{}", b.log());
}

#[test]
fn of_two_processes_with_one_name_the_older_is_kept_out() {
    let links = Links::new();
    let (mut a, mut old) = (quick(&links, "a", &[]), quick(&links, "b", &["a"]));
    let first = a.wait_for("up", "b");
    old.wait_for("up", "a");
    let mut settings = links.settings("c", &["a"]);
    settings.extend(["cluster.node=b".to_owned()]);
    let mut new = links.start("c", &[], &settings);
    assert_eq!(a.wait_for("down", "b"), first);
    assert_ne!(a.wait_for("up", "b"), first);
    new.wait_for("up", "a");
    until("the older hears why", || old.log().contains("is older than incarnation"));
    until("and a says it", || a.log().contains("is older than incarnation"));
    old.wait_for("down", "a");
    assert!(!a.comes("down", Duration::from_secs(2)), "the newer one stays");
    // And nobody links to a process of its own name.
    let mut settings = links.settings("d", &["b"]);
    settings.extend(["cluster.node=b".to_owned()]);
    let twin = links.start("d", &[], &settings);
    until("the twin hears why", || twin.log().contains("every node needs a name of its own"));
}

#[test]
fn with_certificates_nobody_else_gets_in_on_any_port() {
    let links = Links::new();
    let (ours, theirs) = (links.folder().join("ours"), links.folder().join("theirs"));
    links.certificates(&ours, &["a", "b"]);
    links.certificates(&theirs, &["c"]);
    let secured = |name: &str, peers: &[&str], folder: &std::path::Path, certificate: &str| {
        let file = |name: &str| json!(folder.join(name)).to_string();
        let mut settings = links.settings(name, peers);
        settings.push(format!("cluster.ca={}", file("ca.pem")));
        settings.push(format!("cluster.certificate={}", file(&format!("{certificate}.pem"))));
        settings.push(format!("cluster.key={}", file(&format!("{certificate}-key.pem"))));
        links.start(name, &[], &settings)
    };
    let (mut a, mut b) = (secured("a", &["b"], &ours, "a"), secured("b", &["a"], &ours, "b"));
    both_up(&mut a, &mut b);
    a.tell("send b 0 100 10000");
    assert_eq!(b.messages(100), (0..100).collect::<Vec<u64>>());

    // Another authority; a certificate that names another node; no TLS at all.
    let mut stranger = secured("c", &["a"], &theirs, "c");
    let mut masked = secured("d", &["a"], &ours, "b");
    until("a says who is masked", || a.log().contains("is another node's"));
    until("the masked one hears it", || masked.log().contains("is another node's"));
    until("the stranger hears it", || stranger.log().contains("no link to another node"));
    let mut plain = links.start("d", &[], &links.settings("d", &["a"]));
    for node in [&mut stranger, &mut masked, &mut plain] {
        assert!(!node.comes("up", Duration::from_millis(500)));
    }
    drop((stranger, masked, plain));

    let mut listening: Vec<u16> = a.sockets("0A").into_iter().map(|(local, _)| local).collect();
    listening.sort_unstable();
    assert!(listening.contains(&links.port("a")) && listening.len() == 2, "{listening:?}");
    for port in listening {
        let mut hello = b"muster-l".to_vec();
        hello.extend([0, 1, 0xc0]);
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        // It may be shut while this writes.
        let _sent = stream.write_all(&hello);
        let mut said = Vec::new();
        let _ended = stream.read_to_end(&mut said);
        assert!(said.len() < 64 && !said.starts_with(b"muster-l"), "port {port}: {said:?}");
        assert_eq!(tls_without_trust(port, &hello), Vec::<u8>::new(), "port {port} talks to anybody");
    }
    assert!(!a.comes("down", Duration::from_millis(100)));
}

#[test]
fn a_neighbouring_version_is_understood_and_a_far_one_is_told() {
    let links = Links::new();
    let a = links.node("a", &[]);
    until("a listens", || TcpStream::connect(("127.0.0.1", links.port("a"))).is_ok());
    let greet = |version: u16, version_min: u16| {
        let hello = json!({ "Hello": {
            "version": version, "version_min": version_min, "cluster": "muster", "node": "z", "incarnation": 5,
            "connection": 77, "from_the_future": ["x"],
        }});
        let bytes = rmp_serde::to_vec_named(&hello).unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", links.port("a"))).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(b"muster-l").unwrap();
        stream.write_all(&u16::try_from(bytes.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut head = [0; 10];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(&head[..8], b"muster-l");
        let mut answer = vec![0; usize::from(u16::from_be_bytes([head[8], head[9]]))];
        stream.read_exact(&mut answer).unwrap();
        rmp_serde::from_slice::<serde_json::Value>(&answer).unwrap()
    };
    assert_eq!(greet(2, 1)["Hello"]["connection"], 77);
    let told = greet(9, 8)["Refused"]["reason"].as_str().unwrap().to_owned();
    assert!(told.contains("speaks versions 8 to 9"), "{told}");
    until("a says it too", || a.log().contains("speaks versions 8 to 9"));
}

#[test]
fn connections_that_say_nothing_are_few_and_end() {
    let links = Links::new();
    let mut settings = links.settings("a", &[]);
    settings
        .extend(["limits.cluster_handshakes_max=4", "limits.handshake_timeout_ms=1000"].map(str::to_owned));
    let mut a = links.start("a", &[], &settings);
    a.next("started");
    let silent: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(("127.0.0.1", links.port("a"))).unwrap()).collect();
    until("most are closed at once, the others in time", || a.sockets("01").is_empty());
    drop(silent);
    let mut b = links.node("b", &["a"]);
    b.wait_for("up", "a");
}

#[test]
fn a_message_there_and_back_takes_little() {
    let links = Links::new();
    let (mut a, mut b) = (links.node("a", &["b"]), links.node("b", &["a"]));
    both_up(&mut a, &mut b);
    a.tell("ping b 200");
    a.next("pinged");
    a.tell("ping b 2000");
    let pinged = a.next("pinged");
    println!("there and back: {pinged}");
    // Neither waits for the other's next tick, which comes every 100 ms.
    assert!(pinged["p50_us"].as_u64().unwrap() < 50_000, "{pinged}");
}

#[test]
fn several_nodes_do_not_share_an_embedded_store() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(muster_tests::binary())
        .args(["serve", "--listen", "127.0.0.1:0", "--set", "cluster.listen=127.0.0.1:0", "--data-dir"])
        .arg(folder.path().join("data"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cluster.listen") && said.contains("store"), "{said}");
    assert!(!folder.path().join("data").exists(), "nothing was begun");
}
