// MCP: nodes, the real clients, and by hand single messages and streams, for what no client would send.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import http from "node:http";
import path from "node:path";
import { after, afterEach, before, describe } from "node:test";
import { fileURLToPath } from "node:url";
import { Client as NewClient, SSEClientTransport as NewSse, StreamableHTTPClientTransport as NewHttp } from "@modelcontextprotocol/client";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { PATIENCE_MS, Server, until } from "./server.mjs";
import { ROOMY } from "./streams.mjs";

export const MODERN = "2026-07-28";
export const LEGACY = "2025-11-25";
const META = "io.modelcontextprotocol";

/** The events of an event stream's text: [{ event, id, retry, data }]. */
export function eventsIn(text) {
  const event = (block) => {
    const pairs = block.split("\n").filter((line) => !line.startsWith(":")).map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trimStart()]);
    return Object.fromEntries(pairs);
  };
  return text.split("\n\n").slice(0, -1).map(event).filter((one) => Object.keys(one).length > 0);
}

const messagesIn = (text) => eventsIn(text).filter((event) => event.data).map((event) => JSON.parse(event.data));

export const headersOf = (who, more = {}) => ({
  accept: "application/json, text/event-stream",
  "content-type": "application/json",
  ...(who?.key ? { "x-api-key": who.key } : {}),
  ...(who?.token ? { authorization: `Bearer ${who.token}` } : {}),
  ...more,
});

/** One request with exactly these headers (undefined: without): { status, headers, text, message }. */
export async function send(server, { method = "POST", path = "/mcp", headers = {}, body }) {
  const given = Object.fromEntries(Object.entries(headers).filter(([, value]) => value !== undefined));
  const options = { host: "127.0.0.1", port: server.port, method, path, headers: given, agent: false };
  return new Promise((resolve, reject) => {
    const request = http.request(options, (response) => {
      let text = "";
      const done = () => resolve({ status: response.statusCode, headers: response.headers, text, message: parse(response, text) });
      response.setEncoding("utf8");
      response.on("data", (part) => (text += part));
      response.on("end", done);
      response.on("error", reject);
    });
    // A stream that stays open is no answer; what waits for one has failed.
    request.setTimeout(PATIENCE_MS, () => request.destroy(new Error(`${method} ${path}: no end of the answer`)));
    request.on("error", reject);
    request.end(body === undefined || typeof body === "string" ? body : JSON.stringify(body));
  });
}

function parse(response, text) {
  const type = response.headers["content-type"] ?? "";
  if (type.startsWith("text/event-stream")) return messagesIn(text).at(-1);
  return type.startsWith("application/json") ? JSON.parse(text) : undefined;
}

/** A stream that stays open: { response, text, ended }. */
export async function listen(server, path, headers) {
  const control = new AbortController();
  const stream = { text: "", ended: false, close: () => control.abort() };
  stream.response = await fetch(server.url + path, { headers, signal: control.signal });
  const pump = async () => {
    for await (const part of stream.response.body) stream.text += Buffer.from(part);
  };
  pump().catch(() => {}).finally(() => (stream.ended = true));
  return stream;
}

export const initialize = (version = LEGACY) => ({
  jsonrpc: "2.0",
  id: 1,
  method: "initialize",
  params: { protocolVersion: version, capabilities: {}, clientInfo: { name: "test", version: "1" } },
});

/** A session of Streamable HTTP. */
export class Session {
  static #ids = 1;

  static async open(server, who, version = LEGACY) {
    const session = new Session();
    const answer = await send(server, { headers: headersOf(who), body: initialize(version) });
    Object.assign(session, { server, who, answer, version: answer.message?.result?.protocolVersion, id: answer.headers["mcp-session-id"] });
    if (session.id) await session.send({ jsonrpc: "2.0", method: "notifications/initialized" });
    return session;
  }

  headers(more = {}, who = this.who) {
    return headersOf(who, { "mcp-session-id": this.id, "mcp-protocol-version": this.version, ...more });
  }

  send(body, { method, headers, who } = {}) {
    return send(this.server, { method, headers: this.headers(headers, who), body });
  }

  request(method, params, options) {
    return this.send({ jsonrpc: "2.0", id: ++Session.#ids, method, params }, options);
  }

  call(name, args, options) {
    return this.request("tools/call", { name, arguments: args }, options);
  }

  listen(more = {}, who = this.who) {
    return listen(this.server, "/mcp", this.headers(more, who));
  }

  end(options) {
    return this.send(undefined, { method: "DELETE", ...options });
  }
}

/** A session of the older transport. */
class OldSession {
  #ids = 0;

  static async open(server, who) {
    const session = new OldSession();
    session.server = server;
    session.who = who;
    session.stream = await listen(server, "/mcp/sse", headersOf(who));
    const first = await until("the endpoint", () => eventsIn(session.stream.text)[0] ?? (session.stream.ended && {}));
    session.first = first;
    session.path = new URL(first.data, `${server.url}/mcp/sse`).pathname;
    return session;
  }

  post(body, who = this.who) {
    return send(this.server, { path: this.path, headers: headersOf(who), body });
  }

  /** Posts a request, and waits for its answer on the stream. */
  async request(method, params) {
    const id = `old-${++this.#ids}`;
    const posted = await this.post({ jsonrpc: "2.0", id, method, params });
    if (posted.status !== 202) throw new Error(`${method}: ${posted.status} ${posted.text}`);
    return until(`the answer to ${method}`, () => this.messages().find((message) => message.id === id));
  }

  messages() {
    return messagesIn(this.stream.text.slice(this.stream.text.indexOf("\n\n") + 2));
  }

  initialize(version) {
    return this.request("initialize", initialize(version).params);
  }

  call(name, args) {
    return this.request("tools/call", { name, arguments: args });
  }
}

/** A message of the newest protocol, with the headers and the meta it must have; `meta` and `headers` change them. */
export async function modern(server, who, method, params = {}, { meta = {}, headers = {}, verb } = {}) {
  const given = { [`${META}/protocolVersion`]: MODERN, [`${META}/clientCapabilities`]: {}, [`${META}/clientInfo`]: { name: "test", version: "1" } };
  for (const [name, value] of Object.entries(meta)) given[`${META}/${name}`] = value;
  const named = { "mcp-protocol-version": MODERN, "mcp-method": method, "mcp-name": params.name, ...headers };
  return send(server, { method: verb, headers: headersOf(who, named), body: { jsonrpc: "2.0", id: 1, method, params: { ...params, _meta: given } } });
}

/** What a tool said: { failed, ...its JSON }; fails where there is no result. */
export function said(message) {
  const result = message.result ?? message;
  if (!result.content) throw new Error(`no result: ${JSON.stringify(message)}`);
  return { failed: result.isError === true, ...JSON.parse(result.content[0].text) };
}

export const TOOLS = ["task_emit_chunk", "list_my_tasks", "get_task", "complete_task", "fail_task", "submit_hiring_result", "report_hiring_failure", "add_hiring_message"].sort();

/** A node of its own for some tests; after each it has to be well. */
export function onNode(title, set, define) {
  describe(title, () => {
    const world = { closers: [] };
    before(async () => {
      world.server = await Server.start({ set: [...ROOMY, ...set] });
    });
    afterEach(async () => {
      for (const close of world.closers.splice(0)) await close();
      assert.equal((await world.server.request("GET", "/ready")).status, 200, "the node is well");
      assert.doesNotMatch(world.server.logs, /panic/i);
    });
    after(() => world.server?.end());
    world.old = async (who) => {
      const session = await OldSession.open(world.server, who);
      world.closers.push(() => session.stream.close());
      return session;
    };
    world.listen = async (opening) => {
      const stream = await opening;
      world.closers.push(() => stream.close());
      return stream;
    };
    world.online = async (agent) => (await world.server.ok("GET", `/api/v1/agents/${agent.id}`, { key: agent.key })).online;
    define(world);
  });
}

/** The clients as they come: which version they must end on, and whether they have a session that can be ended. */
export const CLIENTS = {
  "the sdk over Streamable HTTP": { Kind: Client, Transport: StreamableHTTPClientTransport, where: "/mcp", version: LEGACY, ends: true },
  "the sdk over the older SSE": { Kind: Client, Transport: SSEClientTransport, where: "/mcp/sse", version: LEGACY, ends: false },
  "the 2.x client over Streamable HTTP": { Kind: NewClient, Transport: NewHttp, where: "/mcp", version: LEGACY, ends: true },
  "the 2.x client over the older SSE": { Kind: NewClient, Transport: NewSse, where: "/mcp/sse", version: LEGACY, ends: false },
  "the 2.x client in auto mode": { Kind: NewClient, Transport: NewHttp, where: "/mcp", version: MODERN, ends: false, options: { versionNegotiation: { mode: "auto" } } },
};

/** One of them, connected, with the headers of all it sends. */
export async function connect(world, name, agent) {
  const { Kind, Transport, where, options } = CLIENTS[name];
  const client = new Kind({ name: "test", version: "1" }, options);
  const sent = [];
  const transport = new Transport(new URL(world.server.url + where), {
    requestInit: { headers: { "x-api-key": agent.key } },
    fetch: (url, init) => {
      sent.push({ method: init?.method ?? "GET", ...Object.fromEntries(new Headers(init?.headers)) });
      return fetch(url, init);
    },
  });
  await client.connect(transport);
  world.closers.push(() => client.close().catch(() => {}));
  const call = async (tool, args) => said(await client.callTool({ name: tool, arguments: args }));
  return { client, transport, sent, call };
}

const inspector = path.join(path.dirname(fileURLToPath(import.meta.url)), "../node_modules/.bin/mcp-inspector");

/** Runs the inspector's command line: { code, stdout, stderr }. */
export const inspect = (server, where, transport, agent, args) =>
  new Promise((resolve) => {
    const all = ["--cli", server.url + where, "--transport", transport, ...args, "--header", `X-API-Key: ${agent.key}`];
    const child = execFile(inspector, all, { timeout: PATIENCE_MS }, (_, stdout, stderr) => resolve({ code: child.exitCode, stdout, stderr }));
  });
