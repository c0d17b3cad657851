//! `muster demo`: a node in a fresh folder, a small fleet that works, a hirer who watches, and the lines with which a
//! person goes on by hand. Everything goes over real sockets, as any client would do it.
//!
//! # Layout
//! * this file: the story; [`lines`]: what to paste

mod lines;

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use http::Method;
use rustls::RootCertStore;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

use self::lines::Lines;
use crate::config::{Config, LogFormat};
use crate::http::client::Client;
use crate::http::phoenix_client::{Channel, Event};
use crate::run::{self, Node, RunError};
use crate::{cli, logging, system_clock};

/// Where the demo runs.
#[derive(Args)]
pub struct DemoArguments {
    /// Address and port to listen on; another port is taken when this one is in use.
    #[arg(long, default_value = "127.0.0.1:4000", value_name = "ADDR:PORT")]
    listen: String,
    /// End when the story is told, instead of staying up.
    #[arg(long)]
    exit: bool,
}

/// An agent of the fleet.
struct Agent {
    id: String,
    key: String,
    name: &'static str,
    channel: Channel,
}

/// Told once nobody reads any more what the demo says (`muster demo | head`): then it ends.
static UNHEARD: Notify = Notify::const_new();

fn say(text: &str) {
    say_token(text);
    say_token("\n");
}

fn say_token(text: &str) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        UNHEARD.notify_one();
    }
}

/// Tells the story.
///
/// # Errors
/// Something of it does not work.
pub async fn run(arguments: DemoArguments) -> Result<(), RunError> {
    let environment = system_clock::environment();
    let suffix: String = environment.random::<6>().iter().map(|byte| format!("{byte:02x}")).collect();
    let folder = std::env::temp_dir().join(format!("muster-demo-{suffix}"));
    let operator = format!("op_demo_{suffix}");
    let node = Box::pin(start(&arguments.listen, folder.clone(), &operator)).await?;
    say(&format!("A node serves at {} (store: {}).\n", node.url, folder.display()));
    let ended = tokio::select! {
        ended = tell(&node, &operator, arguments.exit) => ended,
        () = cli::asked_to_stop() => Ok(()),
        () = UNHEARD.notified() => Ok(()),
    };
    node.drain().await;
    std::fs::remove_dir_all(&folder)?;
    ended
}

/// Tells the story, and then, unless the demo is to end with it, what to paste; stays up until it is stopped.
async fn tell(node: &Node, operator: &str, exit: bool) -> Result<(), RunError> {
    let (fleet, lines) = story(node, operator).await?;
    if !exit {
        say(&lines);
        say("\nThe node stays up; Ctrl-C ends it.");
        std::future::pending::<()>().await;
    }
    drop(fleet);
    Ok(())
}

async fn start(listen: &str, folder: PathBuf, operator: &str) -> Result<Node, RunError> {
    let mut config = Config::default();
    config.log.format = LogFormat::Text;
    config.log.level = "warn".into();
    config.store.data_dir = folder;
    config.drain.timeout_ms = 3_000;
    logging::start(&config.log)?;
    config.http.listen = free_address(listen)?;
    Box::pin(run::start(config, Some(operator.to_owned()))).await
}

/// The address, or the same with another port where that one is in use.
fn free_address(listen: &str) -> Result<String, RunError> {
    match std::net::TcpListener::bind(listen) {
        Ok(_free) => Ok(listen.to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host);
            Ok(format!("{host}:0"))
        }
        Err(error) => Err(format!("{listen}: {error}").into()),
    }
}

fn text(value: &Value, path: &str) -> Result<String, RunError> {
    let found = value.pointer(path).and_then(Value::as_str);
    Ok(found.ok_or_else(|| format!("the server's answer lacks {path}"))?.to_owned())
}

/// Gives the fleet, which stays online as long as it is held, and the lines to paste.
async fn story(node: &Node, operator: &str) -> Result<(Vec<Agent>, String), RunError> {
    let address = node.address.to_string();
    let admin = Client::new(&node.url, Some(operator.to_owned()), RootCertStore::empty());

    let user = admin.send(Method::POST, "/api/v1/admin/users", Some(&json!({ "name": "Ada" }))).await?;
    let user_id = text(&user, "/id")?;
    let path = format!("/api/v1/admin/users/{user_id}/tokens");
    let token = text(&admin.send(Method::POST, &path, Some(&json!({}))).await?, "/token")?;
    let ada = admin.with_token(&token);
    say(&format!("A user, Ada:            {user_id}"));

    let (client_id, client_key) = register(&ada, "Ada's planner", "planner", &["plan"], true).await?;
    say(&format!("Her agent, a client:    {client_id}"));

    let mut fleet = Vec::new();
    for (name, slug, capabilities) in [
        ("Poet", "poet", ["write", "rhyme"]),
        ("Coder", "coder", ["code", "review"]),
        ("Painter", "painter", ["draw", "paint"]),
    ] {
        let (id, key) = register(&admin, name, slug, &capabilities, false).await?;
        let channel =
            Channel::join(&address, "/socket/agent", &key, &format!("agent:{id}"), json!({})).await?;
        fleet.push(Agent { id, key, name, channel });
    }

    say("\nWho is online, as Ada's agent sees it on agents:discovery:");
    show_presence(&address, &client_key).await?;

    let poet = &fleet[0];
    let hire = json!({ "capability": "write", "input": { "prompt": "A haiku about logs" }, "client_agent_id": client_id });
    let hired = ada.send(Method::POST, &format!("/api/v1/agents/{}/hire", poet.id), Some(&hire)).await?;
    let task = text(&hired, "/task/id")?;
    say(&format!("\nAda hires the {}: task {task}", poet.name));
    say("The poet answers over its channel, over REST and over MCP; Ada's socket prints what arrives:\n");
    watch_answer(&address, &token, &admin, poet, &task).await?;

    let coder = &fleet[1];
    let body = json!({ "provider_agent_id": coder.id, "capability": "code", "input": { "prompt": "yours" } });
    let open = admin.with_token(&client_key).send(Method::POST, "/api/v1/tasks", Some(&body)).await?;
    let lines = Lines {
        address: &address,
        user_token: &token,
        task: &text(&open, "/id")?,
        provider_id: &coder.id,
        provider_key: &coder.key,
    };
    let lines = lines.to_string();
    Ok((fleet, lines))
}

/// Registers an agent; gives its id and key.
async fn register(
    client: &Client,
    name: &str,
    slug: &str,
    capabilities: &[&str],
    owned: bool,
) -> Result<(String, String), RunError> {
    let agent = json!({
        "name": name,
        "did": format!("did:demo:{slug}"),
        "capabilities": capabilities,
        "pricing_model": "fixed",
        "base_price": "0.25",
    });
    let path = if owned { "/api/v1/agents" } else { "/api/v1/agents/register" };
    let registered = client.send(Method::POST, path, Some(&json!({ "agent": agent }))).await?;
    Ok((text(&registered, "/agent/id")?, text(&registered, "/api_key")?))
}

async fn show_presence(address: &str, key: &str) -> Result<(), RunError> {
    let mut discovery = Channel::join(address, "/socket", key, "agents:discovery", json!({})).await?;
    let state = discovery.wait_for("presence_state").await?;
    let Some(entries) = state.as_object() else { return Err("presence_state is no object".into()) };
    for entry in entries.values() {
        let meta = &entry["metas"][0];
        let can: Vec<&str> =
            meta["capabilities"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        say(&format!(
            "  {:<14} can {:<14} asks {}  reputation {}",
            meta["name"].as_str().unwrap_or_default(),
            can.join(", "),
            meta["base_price"].as_str().unwrap_or_default(),
            meta["reputation"],
        ));
    }
    Ok(())
}

/// The answer, in pieces: by which path each goes, and what it says.
const ANSWER: [(&str, &str); 12] = [
    ("channel", "Append "),
    ("REST", "only, "),
    ("MCP", "friend —\n"),
    ("channel", "each "),
    ("REST", "line "),
    ("MCP", "finds "),
    ("channel", "its "),
    ("REST", "number; "),
    ("MCP", "none\n"),
    ("channel", "is "),
    ("REST", "ever "),
    ("MCP", "lost.\n"),
];

async fn watch_answer(
    address: &str,
    token: &str,
    admin: &Client,
    poet: &Agent,
    task: &str,
) -> Result<(), RunError> {
    let mut stream =
        Channel::join(address, "/socket/hirer", token, &format!("task_stream:{task}"), json!({})).await?;
    let (printed, mut counted) = mpsc::channel(1);
    let watching = tokio::spawn(async move {
        let mut seqs = Vec::new();
        loop {
            match stream.next().await? {
                Event { name, payload } if name == "stream.chunk" => {
                    seqs.extend(payload["seq"].as_u64());
                    say_token(payload["content"].as_str().unwrap_or_default());
                }
                Event { name, payload } if name == "stream.done" => {
                    say(&format!("\nstream.done, result {}", payload["result"]));
                    break;
                }
                Event { name, .. } => return Err(RunError::from(format!("unexpected {name}"))),
            }
        }
        // Only the demo itself waits for this.
        let _told = printed.send(seqs).await;
        Ok(())
    });
    let rest = admin.with_token(&poet.key);
    for (path, content) in ANSWER {
        let seq = match path {
            "channel" => {
                let chunk = json!({ "task_id": task, "content": content, "kind": "chat" });
                poet.channel.push("task.stream_chunk", chunk).await?["seq"].clone()
            }
            "REST" => {
                let chunk = json!({ "content": content, "kind": "chat" });
                rest.send(Method::POST, &format!("/api/v1/tasks/{task}/chunk"), Some(&chunk)).await?["seq"]
                    .clone()
            }
            _ => emit_by_mcp(&rest, task, content).await?,
        };
        if !seq.is_u64() {
            return Err(format!("no seq by {path}: {seq}").into());
        }
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    }
    let done = json!({ "output": { "lines": 3 } });
    rest.send(Method::PUT, &format!("/api/v1/tasks/{task}/complete"), Some(&done)).await?;
    watching.await??;
    let seqs: Vec<u64> = counted.recv().await.unwrap_or_default();
    let expected: Vec<u64> = (1..=ANSWER.len() as u64).collect();
    if seqs != expected {
        return Err(format!("chunks came as {seqs:?}").into());
    }
    say(&format!("{} chunks by three paths, in order: seq 1 to {}.", seqs.len(), seqs.len()));
    Ok(())
}

/// One tool call in the current, session-less form of MCP.
async fn emit_by_mcp(client: &Client, task: &str, content: &str) -> Result<Value, RunError> {
    const VERSION: &str = "2026-07-28";
    let call = json!({
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {
            "name": "task_emit_chunk",
            "arguments": { "task_id": task, "content": content, "kind": "chat" },
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": VERSION,
                "io.modelcontextprotocol/clientCapabilities": {},
                "io.modelcontextprotocol/clientInfo": { "name": "muster-demo", "version": env!("CARGO_PKG_VERSION") },
            },
        },
    });
    let headers = [
        ("accept", "application/json, text/event-stream"),
        ("mcp-protocol-version", VERSION),
        ("mcp-method", "tools/call"),
        ("mcp-name", "task_emit_chunk"),
    ];
    let (status, body) = client.send_with(Method::POST, "/mcp", &headers, Some(&call)).await?;
    let body = String::from_utf8_lossy(&body);
    let answer = body.lines().filter_map(|line| line.strip_prefix("data:")).next_back().unwrap_or(&body);
    let answer: Value =
        serde_json::from_str(answer.trim()).map_err(|_| format!("MCP answered {status}: {body}"))?;
    Ok(answer["result"]["structuredContent"]["seq"].clone())
}
