// What the tests of task streams share: readers on real sockets, and the three ways to emit.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { collect, connect, join, push } from "./phoenix.mjs";
import { PATIENCE_MS } from "./server.mjs";

const VERSION = "1.8.16";

export const range = (from, to) => Array.from({ length: Math.max(0, to - from + 1) }, (_, n) => from + n);

export const rate = (burst, tokens = burst, period_ms = 1_000) => `{tokens=${tokens},period_ms=${period_ms},burst=${burst}}`;

/** Settings under which no limit is met by accident. */
export const ROOMY = [
  `limits.joins_per_agent=${rate(100_000)}`,
  `limits.chunks_per_stream=${rate(100_000)}`,
  `limits.chunks_per_agent=${rate(100_000)}`,
  `limits.requests_per_credential=${rate(100_000)}`,
];

/** The value of a metric; without labels, the sum over them. */
export async function metric(server, name) {
  const text = await (await fetch(`${server.url}/metrics`)).text();
  const lines = text.split("\n").filter((line) => line.startsWith(`${name} `) || line.startsWith(`${name}{`));
  return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" ") + 1)), 0);
}

/** Opens sockets and MCP sessions, and closes them all together. */
export class Connections {
  #closers = [];

  async socket(server, mount, credential, options = {}, version = VERSION) {
    // Back at once after a crash: the tests wait for it.
    const patience = { rejoinAfterMs: () => 50, reconnectAfterMs: () => 50, timeout: PATIENCE_MS };
    const socket = await connect(version, server, mount, { api_key: credential }, { ...patience, ...options });
    this.#closers.push(() => socket.disconnect());
    return socket;
  }

  /** A joined channel of an agent, on which it may push chunks. */
  async agent(server, agent, options) {
    const socket = await this.socket(server, "/socket/agent", agent.key, options);
    const channel = socket.channel(`agent:${agent.id}`, {});
    const joined = await join(channel);
    if (joined.status !== "ok") throw new Error(`agent join: ${JSON.stringify(joined)}`);
    return channel;
  }

  /** A reader of a task's stream, as a user (who has a token) or as an agent (who has a key), with all it gets. */
  async reader(server, who, task, params = {}, options = {}) {
    const [mount, credential] = who.token ? ["/socket/hirer", who.token] : ["/socket/agent", who.key];
    const socket = await this.socket(server, mount, credential, options);
    return this.follow(socket, task, params);
  }

  /** The same, on a socket that is open. */
  async follow(socket, task, params = {}) {
    const channel = socket.channel(`task_stream:${task.id}`, params);
    const reader = { socket, channel, chunks: collect(channel, "stream.chunk"), ends: [], errors: [] };
    channel.on("stream.done", (payload) => reader.ends.push({ event: "stream.done", payload, after: reader.chunks.length }));
    channel.on("stream.error", (payload) => reader.ends.push({ event: "stream.error", payload, after: reader.chunks.length }));
    channel.onError((reason) => reader.errors.push(reason));
    reader.seqs = () => reader.chunks.map((chunk) => chunk.seq);
    reader.text = () => reader.chunks.map((chunk) => chunk.content).join("");
    reader.joined = await join(channel);
    return reader;
  }

  /** An MCP client with a session. */
  async mcp(server, agent) {
    const client = new Client({ name: "test", version: "1" });
    const requestInit = { headers: { "x-api-key": agent.key } };
    await client.connect(new StreamableHTTPClientTransport(new URL(`${server.url}/mcp`), { requestInit }));
    this.#closers.push(() => client.close());
    return client;
  }

  async close() {
    await Promise.all(this.#closers.splice(0).map((close) => close()));
  }
}

/** The three ways to emit, alike: each gives { seq } or { reason, …}. */
export async function emitters(connections, server, agent) {
  const channel = await connections.agent(server, agent);
  const client = await connections.mcp(server, agent);
  return {
    rest: async (task, chunk) => {
      const { data, error } = await server.request("POST", `/api/v1/tasks/${task.id}/chunk`, { key: agent.key, body: chunk });
      return data ?? error.details;
    },
    channel: async (task, chunk) => (await push(channel, "task.stream_chunk", { task_id: task.id, ...chunk })).response,
    mcp: async (task, chunk) => {
      const result = await client.callTool({ name: "task_emit_chunk", arguments: { task_id: task.id, ...chunk } });
      return JSON.parse(result.content[0].text);
    },
  };
}

/** Everything the stream holds, over REST. */
export async function log(server, agent, task) {
  const chunks = [];
  for (;;) {
    const after = chunks.at(-1)?.seq ?? 0;
    const part = await server.ok("GET", `/api/v1/tasks/${task.id}/stream?after=${after}`, { key: agent.key });
    chunks.push(...part.chunks);
    if (!part.more) return chunks;
  }
}

export const complete = (server, agent, task, output = null) =>
  server.ok("PUT", `/api/v1/tasks/${task.id}/complete`, { key: agent.key, body: { output } });
