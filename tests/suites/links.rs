//! Links between nodes, each a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends")]

use muster_tests::links::Links;

#[test]
fn two_nodes_that_dial_each_other_at_once_have_one_link() {
    for _ in 0..5 {
        let links = Links::new();
        let (mut a, mut b) = (links.node("a", &["b"]), links.node("b", &["a"]));
        a.wait_for("up", "b");
        b.wait_for("up", "a");
        a.tell("send b 0 1000 100");
        assert_eq!(a.next("sent")["taken"], 1_000);
        let taken = b.messages(1_000);
        assert_eq!(taken, (0..1_000).collect::<Vec<u64>>(), "once and in order");
        for (node, ports) in [(&a, links.port("a")), (&b, links.port("b"))] {
            let open = node.connections_of(&[ports, links.port("a"), links.port("b")]);
            assert_eq!(open, 1, "one connection between the two");
        }
    }
}
