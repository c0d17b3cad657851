//! The lines that the demo prints to be pasted.

use std::fmt;

/// What the lines speak of: an open task between Ada's agent and the coder.
pub struct Lines<'a> {
    /// Host and port.
    pub address: &'a str,
    /// Ada's token.
    pub user_token: &'a str,
    /// The task.
    pub task: &'a str,
    /// The coder.
    pub provider_id: &'a str,
    /// The coder's key.
    pub provider_key: &'a str,
}

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, user_token, task, provider_id, provider_key } = self;
        write!(
            f,
            r#"
Now you. A task waits for its first words. Each block below can be pasted into a terminal of its own.

# 1. Watch it with curl, as server-sent events (goes on until the task is completed):
curl -sN -H 'Authorization: Bearer {user_token}' -H 'Accept: text/event-stream' http://{address}/api/v1/tasks/{task}/stream

# 2. Watch it with the phoenix client, in Node:
mkdir -p /tmp/muster-try && cd /tmp/muster-try && npm install --silent phoenix ws && cat > watch.mjs <<'END'
import {{ createRequire }} from "node:module";
import WebSocket from "ws";
const {{ Socket }} = createRequire(import.meta.url)("phoenix");
const socket = new Socket("ws://{address}/socket/hirer", {{ transport: WebSocket, params: {{ api_key: "{user_token}" }} }});
socket.connect();
const stream = socket.channel("task_stream:{task}", {{}});
stream.on("stream.chunk", (c) => console.log(c.seq, c.kind, c.content));
stream.on("stream.done", (d) => {{ console.log("done", d.result); socket.disconnect(); }});
stream.join().receive("ok", (r) => console.log("joined at seq", r.seq));
END
node watch.mjs

# 3. Speak as the provider, with curl; the answer comes when the chunk is on disk:
curl -s -X POST http://{address}/api/v1/tasks/{task}/chunk -H 'X-API-Key: {provider_key}' -H 'Content-Type: application/json' -d '{{"content":"Hello from curl","kind":"chat"}}'; echo

# 4. Speak as the provider, with the phoenix client, in Node:
cd /tmp/muster-try && npm install --silent phoenix ws && cat > speak.mjs <<'END'
import {{ createRequire }} from "node:module";
import WebSocket from "ws";
const {{ Socket }} = createRequire(import.meta.url)("phoenix");
const socket = new Socket("ws://{address}/socket/agent", {{ transport: WebSocket, params: {{ api_key: "{provider_key}" }} }});
socket.connect();
const agent = socket.channel("agent:{provider_id}", {{}});
agent.join();
agent.push("task.stream_chunk", {{ task_id: "{task}", content: "Hello from Node", kind: "chat" }})
  .receive("ok", ({{ seq }}) => {{ console.log("stored as seq", seq); socket.disconnect(); }});
END
node speak.mjs

# 5. Complete it: both watchers end:
curl -s -X PUT http://{address}/api/v1/tasks/{task}/complete -H 'X-API-Key: {provider_key}' -H 'Content-Type: application/json' -d '{{"output":"all said"}}'; echo

# 6. Look again, as JSON; and what the node says of itself:
curl -s -H 'Authorization: Bearer {user_token}' 'http://{address}/api/v1/tasks/{task}/stream?after=0'; echo
curl -s http://{address}/metrics | grep -E '^muster_(chunks|sockets|agents)'"#
        )
    }
}
