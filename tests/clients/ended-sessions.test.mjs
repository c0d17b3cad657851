// A session that has expired, one that was logged out and a key that was revoked open nothing of what agents tell each other,
// and what they had opened ends.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import WebSocket from "ws";
import { join } from "./lib/phoenix.mjs";
import { Server, until } from "./lib/server.mjs";
import { Connections, ROOMY } from "./lib/streams.mjs";

const DAY_MS = 86_400_000;

describe("credentials that have ended", () => {
  let server;
  const connections = new Connections();
  before(async () => {
    server = await Server.start({ set: [...ROOMY, "drills.enabled=true"] });
  });
  after(async () => {
    await connections.close();
    await server?.end();
  });

  /** An agent with a task, a message, a team and a webhook: where they are joined, and how they are asked for. */
  async function furnished() {
    const [client, agent] = [await server.agent(), await server.agent({ more: { capabilities: ["code"] } })];
    const task = await server.task(client, agent);
    const ok = (method, path, who, body) => server.ok(method, `/api/v1${path}`, { key: who.key, body });
    const message = await ok("POST", "/messages", client, { to_agent_id: agent.id, type: "note", payload: {} });
    const payload = { task: { capability: "code", input: {} }, context: {}, required_capabilities: ["code"] };
    const handoff = await ok("POST", "/messages", client, { to_agent_id: agent.id, type: "task_handoff", payload });
    const team = await ok("POST", "/teams", agent, { name: "Crew", member_agent_ids: [client.id] });
    const webhook = await ok("POST", "/webhooks", agent, { url: "https://1.1.1.1/hook" });
    const topics = [`task:${task.id}`, `messages:${agent.id}`, `analytics:agent:${agent.id}`, "analytics:global", `team:${team.id}`];
    const requests = [
      ["GET", `/tasks/${task.id}`],
      ["GET", "/messages"],
      ["GET", "/messages/dead-letters"],
      ["POST", "/messages", { to_agent_id: client.id, type: "note", payload: {} }],
      ["GET", `/messages/${message.id}`],
      ["GET", `/messages/${message.id}/status`],
      ...["acknowledge", "reject", "redeliver"].map((what) => ["POST", `/messages/${message.id}/${what}`, {}]),
      ["GET", `/messages/${handoff.id}/handoff`],
      ...["accept", "decline", "complete", "fail"].map((what) => ["POST", `/messages/${handoff.id}/handoff/${what}`, {}]),
      ...["metrics", "revenue", "heatmap", "time-series?metric=chunks"].map((what) => ["GET", `/analytics/agents/${agent.id}/${what}`]),
      ["POST", "/teams", { name: "More", member_agent_ids: [] }],
      ["GET", `/teams/${team.id}`],
      ["GET", `/teams/${team.id}/entries`],
      ["POST", `/teams/${team.id}/members`, { agent_id: client.id }],
      ["DELETE", `/teams/${team.id}/members/${client.id}`],
      ["POST", "/webhooks", { url: "https://1.1.1.1/other" }],
      ["GET", `/webhooks/${webhook.id}`],
      ["GET", `/webhooks/${webhook.id}/deliveries`],
      ["POST", `/webhooks/${webhook.id}/test`, {}],
      ["DELETE", `/webhooks/${webhook.id}`],
    ];
    return { client, agent, message, handoff, topics, requests };
  }

  /** Joins everything, on a socket each for what is said over it. */
  async function seated(topics, params) {
    const socket = await connections.socket(server, "/socket", undefined, { params });
    for (const topic of topics) assert.equal((await join(socket.channel(topic, {}))).status, "ok", topic);
    return socket;
  }

  const opens = (mount, params) =>
    new Promise((resolve) => {
      const socket = new WebSocket(`${server.ws}${mount}?${new URLSearchParams(params)}`);
      socket.onopen = () => (socket.close(), resolve(true));
      socket.onerror = () => resolve(false);
    });

  /** Nothing is open any more, and nothing has come of asking. */
  async function assertOut({ client, message, handoff, requests, agent }, socket, credential, sockets) {
    await until("what it had opened is closed", () => socket.recorded.closes.length > 0);
    for (const [mount, params] of sockets) assert.equal(await opens(mount, params), false, mount);
    for (const [method, path, body] of requests) {
      const answer = await server.request(method, `/api/v1${path}`, { ...credential, body });
      assert.deepEqual([answer.status, answer.error?.code], [401, "UNAUTHORIZED"], `${method} ${path}: ${answer.text}`);
    }
    const of = (path) => server.ok("GET", `/api/v1${path}`, { key: client.key });
    assert.ok(["queued", "delivered"].includes((await of(`/messages/${message.id}/status`)).status));
    assert.equal((await of(`/messages/${handoff.id}/handoff`)).state, "pending");
    assert.equal((await of(`/messages?from_agent_id=${agent.id}`)).length, 0);
  }

  test("R67 R101 R109 R112 R115 R117 R119 R127 R129 R144 R167: a key that was revoked", async () => {
    const all = await furnished();
    const { api_key: key, credential } = await server.ok("POST", `/api/v1/agents/${all.agent.id}/credentials`, { key: all.agent.key, body: {} });
    const socket = await seated(all.topics, { api_key: key });
    await server.ok("DELETE", `/api/v1/agents/${all.agent.id}/credentials/${credential.id}`, { key: all.agent.key });
    await assertOut(all, socket, { key }, [["/socket", { api_key: key }]]);
  });

  test("R67 R101 R109 R112 R115 R117 R119 R127 R129 R144 R167: a session that was logged out", async () => {
    const all = await furnished();
    const { token } = await server.ok("POST", "/api/v1/auth/authenticate", { key: all.agent.key, body: {} });
    const socket = await seated(all.topics, { session_token: token });
    await server.ok("DELETE", "/api/v1/auth/logout", { token });
    await assertOut(all, socket, { token }, [["/socket", { session_token: token }], ["/user_socket", { agent_id: all.agent.id, token }]]);
  });

  test("R67 R101 R109 R112 R115 R117 R119 R127 R129 R144 R167: a session that has expired", async () => {
    const all = await furnished();
    const { token, expires_at } = await server.ok("POST", "/api/v1/auth/authenticate", { key: all.agent.key, body: {} });
    assert.ok(Date.parse(expires_at) - Date.now() <= DAY_MS);
    const socket = await seated(all.topics, { session_token: token });
    assert.equal(await opens("/user_socket", { agent_id: all.agent.id, token }), true);
    await server.ok("POST", "/api/v1/admin/drills/clock", { token: server.adminToken, body: { advance_ms: DAY_MS + 60_000 } });
    await assertOut(all, socket, { token }, [["/socket", { session_token: token }], ["/user_socket", { agent_id: all.agent.id, token }]]);
    const again = await server.ok("POST", "/api/v1/auth/authenticate", { key: all.agent.key, body: {} });
    assert.equal(await opens("/user_socket", { agent_id: all.agent.id, token: again.token }), true, "its key is as good as ever");
  });
});
