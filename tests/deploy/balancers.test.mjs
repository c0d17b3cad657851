// The load balancers of deploy/, in front of real nodes: what the real clients do through them, what their logs say, and
// that a node goes away without a request noticing.

import assert from "node:assert/strict";
import http from "node:http";
import net from "node:net";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { query, tokenProtocol } from "../clients/lib/bare.mjs";
import { scratch } from "../clients/lib/cli.mjs";
import { connectByPolling, Poller } from "../clients/lib/longpoll.mjs";
import { collect, connect, join, push, VERSIONS } from "../clients/lib/phoenix.mjs";
import { sleep, until } from "../clients/lib/server.mjs";
import { readByCurl, readByFetch } from "../clients/lib/sse.mjs";
import { complete, Connections, metric, range, rate, ROOMY } from "../clients/lib/streams.mjs";
import { BALANCERS, Fleet, haproxyVariables, nginxFile } from "./lib/balancers.mjs";
import { deploy, run } from "./lib/files.mjs";

const NODES = 3;
// More than the checks of haproxy.cfg take to notice, with room for a machine that is busy.
const UNREADY_MS = 4_000;
const SET = [...ROOMY, `limits.registrations_per_ip=${rate(100_000)}`, "limits.longpoll_window_ms=4000", `drain.unready_ms=${UNREADY_MS}`];

/** What every node knows: agents, and tasks between them, one of them finished. */
async function seed(server) {
  const user = await server.user();
  const agents = [];
  for (let n = 0; n < 12; n++) agents.push(await server.agent({ name: `Agent ${n}`, owner: n === 0 ? user : undefined }));
  const [client, provider] = agents;
  const finished = await server.task(client, provider);
  for (const n of range(1, 20)) await server.emit(finished, provider, `word ${n}`);
  await complete(server, provider, finished, "done");
  return { user, agents, client, provider, finished, open: await server.task(client, provider) };
}

const UPGRADE = { connection: "Upgrade", upgrade: "websocket", "sec-websocket-version": "13", "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==" };
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
const onEach = (fleet, name) => Promise.all(fleet.servers.map((server) => metric(server, name)));

/** One request on a connection of its own, from an address of this machine: its status and body. */
function once(server, target, { method = "GET", headers = {}, body, from } = {}) {
  return new Promise((resolve, reject) => {
    const options = { host: "127.0.0.1", port: server.port, path: target, method, headers, agent: false, localAddress: from };
    const request = http.request(options, async (response) => {
      try {
        let text = "";
        for await (const part of response.setEncoding("utf8")) text += part;
        resolve({ status: response.statusCode, text });
      } catch (error) {
        reject(error);
      }
    });
    request.on("upgrade", (response, socket) => {
      socket.destroy();
      resolve({ status: response.statusCode, text: "" });
    });
    request.on("error", reject);
    request.end(body);
  });
}

/** Bytes as they are; resolves when the other side has closed. */
const raw = (server, bytes) =>
  new Promise((resolve) => {
    const socket = net.connect(server.port, "127.0.0.1", () => socket.end(bytes));
    socket.on("error", resolve);
    socket.on("close", resolve);
    socket.resume();
  });

test("both files pass the checks of their programs", async () => {
  const env = { PATH: `${process.env.PATH}:/usr/sbin` };
  await run("haproxy", ["-c", "-f", path.join(deploy, "haproxy.cfg")], { env: { ...env, ...(await haproxyVariables([], 4000)) } });
  // What is checked can fail.
  await assert.rejects(run("haproxy", ["-c", "-f", path.join(deploy, "nginx.conf")], { env }));
  const { folder, file, remove } = await scratch();
  try {
    // Its standard output has to be a file here as well.
    const check = (config) => run("sh", ["-c", 'nginx -t -c "$1" > "$2"', "sh", config, file("output")], { env });
    await check(await nginxFile([], { port: 4000, folder }));
    await assert.rejects(check(path.join(deploy, "haproxy.cfg")));
  } finally {
    await remove();
  }
});

for (const [name, start] of Object.entries(BALANCERS)) {
  describe(`behind ${name}`, () => {
    let fleet, balancer, known;
    const connections = new Connections();
    before(async () => {
      fleet = await Fleet.start({ nodes: NODES, set: SET, seed });
      balancer = await start(fleet.servers);
      known = fleet.seed;
    });
    after(async () => {
      await connections.close();
      await balancer?.end();
      await fleet?.end();
    });

    for (const version of VERSIONS) {
      test(`phoenix ${version} connects, joins and pushes, and sockets are on all nodes`, async () => {
        const sockets = [];
        for (const agent of known.agents.slice(0, 6)) {
          const socket = await connect(version, balancer, "/socket", { api_key: agent.key });
          sockets.push(socket);
          const channel = socket.channel("agents:discovery", {});
          const updates = collect(channel, "agent_updated");
          assert.equal((await join(channel)).status, "ok");
          assert.equal((await push(channel, "announce", { capabilities: ["draw"] })).status, "ok");
          await until("the announcement", () => updates.length >= 1);
        }
        const open = await onEach(fleet, "muster_sockets");
        assert.equal(sum(open), 6);
        assert.ok(open.every((count) => count >= 1), `${open}`);
        sockets.forEach((socket) => socket.disconnect());
        await until("all sockets are closed", async () => sum(await onEach(fleet, "muster_sockets")) === 0);
      });
    }

    for (const version of VERSIONS) {
      test(`phoenix ${version} polls, and each session stays with its node`, async () => {
        const sockets = [];
        for (const agent of known.agents) {
          const socket = await connectByPolling(version, balancer.url, "/socket", { api_key: agent.key }, { timeout: 20_000 });
          let losses = 0;
          socket.onError(() => losses++);
          const channel = socket.channel("agents:discovery", {});
          assert.equal((await join(channel)).status, "ok");
          sockets.push({ socket, channel, losses: () => losses });
        }
        const open = await onEach(fleet, "muster_longpoll_sessions");
        assert.equal(sum(open), known.agents.length, "a session for each, and none begun twice");
        assert.ok(open.filter((count) => count > 0).length > 1, `all on one node: ${open}`);
        for (let round = 0; round < 5; round++) {
          const replies = await Promise.all(sockets.map(({ channel }) => push(channel, "announce", { capabilities: [`round ${round}`] })));
          assert.deepEqual(replies.map((reply) => reply.status), sockets.map(() => "ok"));
        }
        assert.deepEqual(await onEach(fleet, "muster_longpoll_sessions"), open);
        assert.equal(sum(sockets.map(({ losses }) => losses())), 0);
        sockets.forEach(({ socket }) => socket.disconnect());
        await until("the sessions have ended", async () => sum(await onEach(fleet, "muster_longpoll_sessions")) === 0, 20_000);
      });
    }

    test("a poller whose credential is in no address stays with its node too", async () => {
      const [agent] = known.agents;
      const socket = await connectByPolling("1.8.16", balancer.url, "/socket", {}, { authToken: agent.key });
      const channel = socket.channel("agents:discovery", {});
      assert.equal((await join(channel)).status, "ok");
      for (let n = 0; n < 10; n++) assert.equal((await push(channel, "announce", { capabilities: [`${n}`] })).status, "ok");
      assert.equal(sum(await onEach(fleet, "muster_longpoll_sessions")), 1);
      socket.disconnect();
    });

    test("on the mount where the credential is called token as well, a session stays with its node too", async () => {
      const poller = await Poller.open(balancer, "/user_socket/longpoll", { token: known.user.token, agent_id: known.client.id });
      for (let n = 0; n < 10; n++) {
        assert.deepEqual((await poller.post([[null, `${n}`, "phoenix", "heartbeat", {}]])).body, { status: 200 });
        await poller.until("the reply", () => poller.messages.length === n + 1);
      }
    });

    test("a poll that is given up takes no message with it", async () => {
      const agent = known.agents[1];
      const poller = await Poller.open(balancer, "/socket/longpoll", { api_key: agent.key });
      for (let n = 0; n < 3; n++) {
        const control = new AbortController();
        const given = poller.get({ signal: control.signal }).catch((error) => error.name);
        await sleep(100);
        control.abort();
        assert.equal(await given, "AbortError");
        // By now the node has been told as well.
        await sleep(200);
        assert.deepEqual((await poller.post([[null, `${n}`, "phoenix", "heartbeat", {}]])).body, { status: 200 });
        await sleep(100);
        await poller.until("the reply", () => poller.messages.length === n + 1);
      }
    });

    test("REST is answered, by all nodes", async () => {
      const counted = () => onEach(fleet, "muster_http_request_seconds_count");
      const before = await counted();
      for (let n = 0; n < 30; n++) {
        const headers = { "x-api-key": known.client.key, "content-type": "application/json" };
        const shown = await once(balancer, `/api/v1/tasks/${known.finished.id}`, { headers });
        assert.equal(shown.status, 200, shown.text);
        const body = JSON.stringify({ provider_agent_id: known.provider.id, capability: "code", input: { n } });
        const made = await once(balancer, "/api/v1/tasks", { method: "POST", headers, body });
        assert.equal(made.status, 201, made.text);
        assert.deepEqual(JSON.parse(made.text).data.input, { n });
      }
      const answered = (await counted()).map((count, at) => count - before[at]);
      // Of sixty; asking for the metrics is one of its own.
      assert.ok(answered.every((count) => count > 5), `${answered}`);
    });

    test("a finished stream is replayed whole, by fetch and by curl", async () => {
      for (const read of [readByFetch, readByCurl]) {
        const reader = await read(balancer, known.client, known.finished);
        await until("the end", () => reader.ended);
        assert.deepEqual(reader.seqs(), range(1, 20));
        assert.equal(reader.names().at(-1), "stream.done");
      }
    });

    test("chunks of an open stream come one by one, from whichever node", async () => {
      const readers = [];
      for (let n = 0; n < 2 * NODES; n++) {
        const reader = await readByFetch(balancer, known.client, known.open);
        await reader.joined();
        readers.push(reader);
      }
      assert.ok((await onEach(fleet, "muster_event_streams")).every((count) => count >= 1));
      for (const seq of range(1, 5)) {
        for (const server of fleet.servers) assert.equal((await server.emit(known.open, known.provider, "x".repeat(20))).status, 202);
        // Each is here before the next is sent: nothing is held back to be sent with more.
        await until(`chunk ${seq} at all readers`, () => readers.every((reader) => reader.seqs().length === seq));
      }
      readers.forEach((reader) => reader.close());
      await until("the streams are closed", async () => sum(await onEach(fleet, "muster_event_streams")) === 0);
    });

    test("MCP sessions stay with their node", async () => {
      const clients = await Promise.all(known.agents.map((agent) => connections.mcp(balancer, agent)));
      const open = await onEach(fleet, "muster_mcp_sessions");
      assert.equal(sum(open), known.agents.length);
      assert.ok(open.filter((count) => count > 0).length > 1, `all on one node: ${open}`);
      for (let round = 0; round < 5; round++) {
        const tools = await Promise.all(clients.map((client) => client.listTools()));
        assert.ok(tools.every((listed) => listed.tools.length > 0));
      }
      assert.equal(sum(await onEach(fleet, "muster_mcp_sessions")), known.agents.length);
    });

    test("metrics stay inside", async () => {
      assert.equal((await once(fleet.servers[0], "/metrics")).status, 200);
      assert.equal((await once(balancer, "/metrics")).status, 404);
      assert.equal((await once(balancer, "/metrics?x=1")).status, 404);
    });

    test("R10: no credential is in any log, whatever becomes of its request", async () => {
      const secret = `SECRET${"0123456789abcdef".repeat(2)}`;
      const shown = { "x-api-key": secret, "api-key": secret, cookie: `session=${secret}`, referer: `http://x/?api_key=${secret}`, "user-agent": secret, "x-phoenix-authtoken": secret, "x-forwarded-for": secret };
      const everywhere = async () => {
        for (const key of [secret, `ap_${secret}`]) {
          for (const target of [
            `/socket/agent/websocket${query({ api_key: key, vsn: "2.0.0" })}`,
            `/socket/websocket${query({ session_token: key, vsn: "2.0.0" })}`,
            `/user_socket/websocket${query({ token: key, vsn: key })}`,
          ]) {
            await once(balancer, target, { headers: UPGRADE }).catch(() => null);
          }
          await once(balancer, "/socket/agent/websocket", { headers: { ...UPGRADE, "sec-websocket-protocol": `phoenix, ${tokenProtocol(secret)}` } }).catch(() => null);
          for (const method of ["GET", "POST"]) {
            await once(balancer, `/socket/agent/longpoll${query({ api_key: key, token: secret, vsn: "2.0.0" })}`, { method, headers: shown }).catch(() => null);
            await once(balancer, `/api/v1/agents?api_key=${key}`, { method, headers: shown }).catch(() => null);
            await once(balancer, `/mcp?api_key=${key}`, { method, headers: { authorization: `Bearer ${secret}` } }).catch(() => null);
          }
        }
        // What is no request.
        await raw(balancer, `GET /socket/websocket?api_key=${secret}\r\nnonsense\r\n\r\n`);
        await raw(balancer, `GET /socket/websocket?api_key=${secret} HTTP/1.1\r\nHost: a\r\nHost: b\r\nX-Api-Key: ${secret}\r\nContent-Length: x\r\n\r\n`);
        await raw(balancer, `GET /x?${"y".repeat(40_000)}&api_key=${secret} HTTP/1.1\r\nHost: a\r\n\r\n`);
        // A body that stops half way.
        await raw(balancer, `POST /api/v1/tasks?api_key=${secret} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n${secret}`);
      };
      await everywhere();
      // Nor when nodes cannot be reached: that is when load balancers have most to say.
      await Promise.all(fleet.servers.map((server) => server.kill()));
      await everywhere();
      await until("the last line is written", async () => /"path":"\/mcp","status":50\d/.test(await balancer.logged()));
      const logs = [await balancer.logged(), ...fleet.servers.map((server) => server.logs)];
      await Promise.all(fleet.servers.map((server) => server.startAgain()));
      await until("nodes are found again", async () => (await once(balancer, "/ready").catch(() => null))?.status === 200);
      const encoded = Buffer.from(secret).toString("base64").replaceAll("=", "");
      for (const log of logs) {
        assert.equal(log.includes(secret), false, `${log.split("\n").filter((line) => line.includes(secret))}`);
        assert.equal(log.includes(encoded), false);
      }
      // They are logged, though, and with what became of them.
      for (const where of ["/socket/agent/websocket", "/socket/agent/longpoll", "/api/v1/agents", "/mcp"]) {
        assert.ok(logs[0].includes(`"path":"${where}"`), where);
      }
      for (const line of logs[0].split("\n").filter((line) => line.startsWith("{"))) JSON.parse(line);
    });
  });
}

for (const [name, start] of Object.entries(BALANCERS)) {
  test(`${name} tells a node who the client is, and is not told by the client`, async () => {
    const alone = `limits.registrations_per_ip=${rate(2, 1, 3_600_000)}`;
    const fleet = await Fleet.start({ nodes: 1, set: [alone, "limits.ip_limit_exempt=[]", 'http.trusted_proxies=["127.0.0.1/32"]'] });
    const balancer = await start(fleet.servers);
    try {
      let number = 0;
      const register = async (from, headers = {}) => {
        const agent = { name: "A", did: `did:test:${name}-${number++}`, capabilities: ["code"], pricing_model: "fixed", base_price: "1" };
        const options = { method: "POST", headers: { "content-type": "application/json", ...headers }, body: JSON.stringify({ agent }), from };
        return (await once(balancer, "/api/v1/agents/register", options)).status;
      };
      assert.deepEqual([await register("127.0.0.2"), await register("127.0.0.2"), await register("127.0.0.2")], [201, 201, 429]);
      assert.equal(await register("127.0.0.2", { "x-forwarded-for": "203.0.113.7" }), 429, "who says to be somebody else");
      assert.equal(await register("127.0.0.3"), 201, "who is somebody else");
    } finally {
      await balancer.end();
      await fleet.end();
    }
  });
}

const LINES = 4;

/** Requests through a load balancer, one after the other in each of some lines, until it is stopped: how they ended. */
class Load {
  answered = 0;
  failures = [];
  #stopped = false;

  constructor(balancer, known, kinds) {
    const credential = { "x-api-key": known.client.key };
    const requests = {
      GET: () => [`/api/v1/tasks/${known.finished.id}`, { headers: credential }],
      POST: (input) => [
        "/api/v1/tasks",
        { method: "POST", headers: { ...credential, "content-type": "application/json" }, body: JSON.stringify({ provider_agent_id: known.provider.id, capability: "code", input }) },
      ],
      handshake: () => [`/socket/websocket${query({ api_key: known.client.key, vsn: "2.0.0" })}`, { headers: UPGRADE }],
    };
    const expected = { GET: 200, POST: 201, handshake: 101 };
    this.lines = range(1, LINES).map(async (line) => {
      for (let n = 0; !this.#stopped; n++) {
        const kind = kinds[n % kinds.length];
        try {
          const { status, text } = await once(balancer, ...requests[kind]({ line, n }));
          this.answered++;
          if (status !== expected[kind]) this.failures.push(`${kind}: ${status} ${text}`);
        } catch (error) {
          this.failures.push(`${kind}: ${error.message}`);
        }
        await sleep(5);
      }
    });
  }

  async stop() {
    this.#stopped = true;
    await Promise.all(this.lines);
  }
}

// haproxy asks nodes whether they are ready. nginx does not: without notice it has POSTs that meet the listener's end to
// answer for, so either there are none, or it is told before.
const DRAINS = [
  { name: "haproxy", kinds: ["GET", "POST", "handshake"] },
  { name: "nginx", kinds: ["GET", "handshake"] },
  { name: "nginx", kinds: ["GET", "POST", "handshake"], told: true },
];

for (const { name, kinds, told } of DRAINS) {
  test(`a node is drained behind ${name}${told ? ", which was told" : ""}: no ${kinds.join(", no ")} is lost, and its sockets come back elsewhere`, async () => {
    const fleet = await Fleet.start({ nodes: NODES, set: SET, seed });
    const balancer = await BALANCERS[name](fleet.servers);
    const { seed: known } = fleet;
    const sockets = [];
    let load;
    try {
      for (const agent of known.agents.slice(0, 2 * NODES)) {
        const socket = await connect("1.8.16", balancer, "/socket/agent", { api_key: agent.key }, { reconnectAfterMs: () => 50, rejoinAfterMs: () => 50 });
        const channel = socket.channel(`agent:${agent.id}`, {});
        assert.equal((await join(channel)).status, "ok");
        sockets.push({ socket, channel });
      }
      const [going, ...staying] = fleet.servers;
      const held = await metric(going, "muster_sockets");
      assert.ok(held >= 1);
      load = new Load(balancer, known, kinds);
      await until("requests are under way", () => load.answered > 50);
      if (told) await balancer.takeOut(going);
      assert.deepEqual(await going.stop(), { code: 0, signal: null });
      const atEnd = load.answered;
      await until("requests go on", () => load.answered > atEnd + 100);
      await load.stop();
      assert.deepEqual(load.failures, []);
      const closes = sockets.flatMap(({ socket }) => socket.recorded.closes);
      assert.equal(closes.length, held, "those of the node, and no others");
      assert.ok(closes.every((close) => close.code === 1012));
      await until("all are back", () => sockets.every(({ socket, channel }) => socket.isConnected() && channel.state === "joined"));
      const open = () => Promise.all(staying.map((server) => metric(server, "muster_sockets")));
      await until("they alone are open", async () => sum(await open()) === sockets.length);
      if (told) return;
      // And when it is back, it has work again.
      await going.startAgain();
      const back = new Load(balancer, known, ["GET"]);
      await until("it is given requests", async () => (await metric(going, "muster_http_requests_total")) > 20, 60_000);
      await back.stop();
      assert.deepEqual(back.failures, []);
    } finally {
      await load?.stop();
      sockets.forEach(({ socket }) => socket.disconnect());
      await balancer.end();
      await fleet.end();
    }
  });
}

for (const [name, start] of Object.entries(BALANCERS)) {
  test(`a node is killed behind ${name}: no more is lost than was under way with it, and the rest goes elsewhere`, async () => {
    const fleet = await Fleet.start({ nodes: NODES, set: SET, seed });
    const balancer = await start(fleet.servers);
    let load;
    try {
      load = new Load(balancer, fleet.seed, ["GET", "POST", "handshake"]);
      await until("requests are under way", () => load.answered > 50);
      await fleet.servers[0].kill();
      const atEnd = load.answered;
      await until("requests go on", () => load.answered > atEnd + 300);
      await load.stop();
      assert.ok(load.failures.length <= LINES, `${load.failures}`);
      // What may be sent again is not lost at all.
      assert.deepEqual(load.failures.filter((failure) => failure.startsWith("GET") || failure.startsWith("handshake")), []);
    } finally {
      await load?.stop();
      await balancer.end();
      await fleet.end();
    }
  });
}

test("haproxy says how it is to those inside, and that there is nobody when no node is ready", async () => {
  const fleet = await Fleet.start({ nodes: 1 });
  const balancer = await BALANCERS.haproxy(fleet.servers);
  try {
    assert.equal((await fetch(`${balancer.own}/live`)).status, 200);
    const text = await (await fetch(`${balancer.own}/metrics`)).text();
    assert.match(text, /^haproxy_server_status\{proxy="nodes",server="muster-1",state="UP"\} 1$/m);
    await fleet.servers[0].kill();
    await until("nobody is there", async () => (await fetch(`${balancer.own}/live`)).status === 503);
  } finally {
    await balancer.end();
    await fleet.end();
  }
});
