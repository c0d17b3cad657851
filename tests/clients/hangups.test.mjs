// Peers that hang up in the middle of a request: what the request has begun is finished, and nobody else notices.

import assert from "node:assert/strict";
import net from "node:net";
import { after, before, describe, test } from "node:test";
import { Bare } from "./lib/bare.mjs";
import { leniently, Server, sleep, until } from "./lib/server.mjs";

const MANY = "{tokens=100000,period_ms=1000,burst=100000}";
const ROUNDS = 25;
/** Rounds until one had its effect, each later than the one before: on a slow machine none may at first. */
const ROUNDS_MAX = 200;

describe("hanging up", () => {
  let server;
  before(async () => (server = await Server.start({ set: [`limits.requests_per_credential=${MANY}`, `limits.registrations_per_ip=${MANY}`] })));
  after(() => server.end());

  /** Sends a request, and resets the connection after so many milliseconds. */
  function rude(method, path, { headers = {}, body, ms = 0 } = {}) {
    const text = body === undefined ? "" : JSON.stringify(body);
    const all = { host: `127.0.0.1:${server.port}`, "content-type": "application/json", "content-length": text.length, ...headers };
    const head = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`).join("");
    return new Promise((resolve) => {
      const tcp = net.connect(server.port, "127.0.0.1");
      tcp.setNoDelay(true);
      tcp.on("error", () => {});
      tcp.on("close", resolve);
      tcp.on("connect", () => {
        tcp.write(`${method} ${path} HTTP/1.1\r\n${head}\r\n${text}`);
        const begun = performance.now();
        const wait = () => (performance.now() - begun >= ms ? tcp.resetAndDestroy() : setImmediate(wait));
        wait();
      });
    });
  }

  const moment = (round) => (round < ROUNDS ? (round % 12) / 2 : round - ROUNDS);
  const online = (agent) => Bare.open(server, "/socket/agent/websocket", { api_key: agent.key });

  test("R18: a key that was rotated has no sockets left, though whoever rotated it did not wait", async () => {
    let rotated = 0;
    for (let round = 0; round < ROUNDS || (rotated === 0 && round < ROUNDS_MAX); round++) {
      const agent = await server.agent();
      const socket = await online(agent);
      await rude("POST", "/api/v1/auth/rotate-key", { headers: { "x-api-key": agent.key }, ms: moment(round) });
      await sleep(20);
      if ((await server.request("GET", "/api/v1/tasks", { key: agent.key })).status === 401) {
        rotated += 1;
        assert.equal((await socket.ended(leniently(2_000))).code, 1001, `round ${round}`);
      }
      socket.end();
    }
    assert.ok(rotated > 0, "some were");
  });

  test("R23: an agent that was banned is cut off and not seen, though the operator did not wait", async () => {
    const viewer = await server.agent();
    let banned = 0;
    for (let round = 0; round < ROUNDS || (banned === 0 && round < ROUNDS_MAX); round++) {
      const agent = await server.agent();
      const socket = await online(agent);
      await socket.join(`agent:${agent.id}`);
      const headers = { authorization: `Bearer ${server.adminToken}` };
      await rude("PUT", `/api/v1/admin/agents/${agent.id}/status`, { headers, body: { status: "banned" }, ms: moment(round) });
      await sleep(20);
      if ((await server.request("GET", "/api/v1/tasks", { key: agent.key })).status === 403) {
        banned += 1;
        assert.equal((await socket.ended(leniently(2_000))).code, 1001, `round ${round}`);
        const found = await server.ok("GET", "/api/v1/agents/discover?limit=100", { key: viewer.key });
        assert.ok(!found.some(({ id }) => id === agent.id));
      }
      socket.end();
    }
    assert.ok(banned > 0, "some were");
  });

  test("R27 R33: a task that was made is told of, though its client did not wait", async () => {
    const user = await server.user();
    const [client, provider] = [await server.agent({ owner: user }), await server.agent()];
    const [agent, hirer] = [await online(provider), await Bare.open(server, "/socket/hirer/websocket", { api_key: user.token })];
    await agent.join(`agent:${provider.id}`);
    await hirer.join(`hirer:${user.id}`);
    const body = { provider_agent_id: provider.id, capability: "code", input: {} };
    const made = async () => (await server.ok("GET", "/api/v1/tasks?limit=100", { key: provider.key })).length;
    let count = 0;
    for (let round = 0; round < ROUNDS || (count === 0 && round < ROUNDS_MAX); round++) {
      await rude("POST", "/api/v1/tasks", { headers: { "x-api-key": client.key }, body, ms: moment(round) });
      if (round >= ROUNDS - 1) count = await made();
    }
    assert.ok(count > 0, "some were made");
    const told = () => [agent.events(`agent:${provider.id}`, "task.created").length, hirer.events(`hirer:${user.id}`, "task.submitted").length];
    const allTold = async () => {
      // What is still in work may be made late.
      count = await made();
      return told().every((events) => events === count);
    };
    for (let look = 0; look < 2; look++) {
      await until("both are told of each", allTold).catch(() => assert.deepEqual(told(), [count, count]));
      await sleep(300);
    }
    agent.end();
    hirer.end();
  });

  test("R170: requests that are given up take nothing from those that are not", async () => {
    const agent = await server.agent();
    let over = false;
    const abandon = async (request) => {
      for (let n = 0; !over; n++) await request(moment(n) / 4);
    };
    const headers = { "x-api-key": agent.key };
    const rudeness = [
      (ms) => rude("GET", "/api/v1/tasks?limit=100", { headers, ms }),
      (ms) => rude("GET", "/api/v1/tasks", { headers: { "x-api-key": "ap_nobodys" }, ms }),
      (ms) => rude("GET", "/socket/agent/websocket?api_key=ap_nobodys&vsn=2.0.0", { ms }),
      (ms) => rude("GET", "/api/v1/agents/discover", { headers, ms }),
    ];
    const abandoning = [...rudeness, ...rudeness].map(abandon);
    const end = Date.now() + 2_000;
    const answers = new Map();
    while (Date.now() < end) {
      const { status } = await server.request("GET", "/api/v1/tasks", { key: agent.key });
      answers.set(status, (answers.get(status) ?? 0) + 1);
    }
    over = true;
    await Promise.all(abandoning);
    assert.deepEqual([...answers.keys()], [200], JSON.stringify([...answers]));
    assert.ok(!server.logs.includes('"level":"ERROR"'), server.logs.split("\n").find((line) => line.includes("ERROR")));
  });

  test("MCP: a session whose client hung up while it was opened ends like any other that is silent", async () => {
    const own = await Server.start({ set: ["limits.mcp_session_idle_ms=1000", "limits.socket_idle_timeout_ms=1000", `limits.requests_per_credential=${MANY}`] });
    const shared = server;
    try {
      server = own;
      const agent = await own.agent();
      const params = { protocolVersion: "2025-11-25", capabilities: {}, clientInfo: { name: "rude", version: "1" } };
      const body = { jsonrpc: "2.0", id: 1, method: "initialize", params };
      const headers = { "x-api-key": agent.key, accept: "application/json, text/event-stream" };
      for (let round = 0; round < 5; round++) await Promise.all(Array.from({ length: 40 }, (_, n) => rude("POST", "/mcp", { headers, body, ms: moment(n) })));
      const gauge = async (name) => Number(new RegExp(`^${name} (\\d+)`, "m").exec((await own.request("GET", "/metrics")).text)[1]);
      await until("no session is left", async () => (await gauge("muster_mcp_sessions")) === 0);
      assert.equal(await gauge("muster_agents_online"), 0);
    } finally {
      server = shared;
      await own.end();
    }
  });
});
