//! The acknowledgement follows the fsync: `kill -9` would not show it, a power cut would.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends")]

use http::Method;
use muster_tests::Node;
use serde_json::json;

/// R46: the order of the system calls of one acknowledged chunk.
#[tokio::test(flavor = "multi_thread")]
async fn the_answer_is_written_after_the_log_is_synced() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let calls = "trace=fsync,fdatasync,read,recvfrom,write,writev,sendto,sendmsg";
    let wrapper = ["strace", "-f", "-y", "-s", "4096", "-e", calls, "-o", trace.to_str().unwrap()];
    let mut node = Node::start_under(&wrapper, &folder.path().join("data"), &[]).await;
    let (client, provider) = (node.agent("client").await, node.agent("provider").await);
    let task = client.task_for(&provider).await;
    let chunk = json!({ "content": "the marked chunk" });
    let path = format!("/api/v1/tasks/{task}/chunk");
    provider.client.send(Method::POST, &path, Some(&chunk)).await.unwrap();
    let pid = node.pid();
    // The tracer ends when the traced process does.
    std::process::Command::new("pkill").args(["-TERM", "-P", &pid.to_string()]).status().unwrap();
    node.wait();

    let trace = std::fs::read_to_string(&trace).unwrap();
    let lines: Vec<&str> = trace.lines().collect();
    let position = |from: usize, what: &str, found: &dyn Fn(&str) -> bool| {
        let at = lines[from..].iter().position(|line| found(line));
        from + at.unwrap_or_else(|| panic!("{what} is not in the trace:\n{trace}"))
    };
    let arrived =
        position(0, "the request", &|line| line.contains("the marked chunk") && !line.contains("write"));
    let begun = position(arrived, "the sync of the log", &|line| {
        (line.contains("fsync(") || line.contains("fdatasync(")) && line.contains("muster.db-wal")
    });
    let synced = if lines[begun].contains("unfinished") {
        let thread = lines[begun].split_whitespace().next().unwrap();
        position(begun, "the end of the sync", &|line| {
            line.starts_with(thread) && line.contains("sync resumed") && line.contains("= 0")
        })
    } else {
        begun
    };
    let answered = position(arrived, "the answer", &|line| line.contains("202 Accepted"));
    assert!(synced < answered, "answered in line {answered}, synced in line {synced}:\n{trace}");
}
