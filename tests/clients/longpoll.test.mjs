// The long-poll transport: by hand, request by request, and with each version of the npm client.

import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import { after, afterEach, before, describe, test } from "node:test";
import WebSocket from "ws";
import { Bare, Line } from "./lib/bare.mjs";
import { connectByPolling, NoUpgrades, opened, Poller, sendBy } from "./lib/longpoll.mjs";
import { collect, connect, join, phoenix, push, resuming, VERSIONS } from "./lib/phoenix.mjs";
import { cast, leniently, Server, sleep, until } from "./lib/server.mjs";
import { metric, range, ROOMY } from "./lib/streams.mjs";

const WINDOW_MS = 2_000;
const WINDOW = `limits.longpoll_window_ms=${WINDOW_MS}`;
// No test should wait for this one.
const LONG_MS = 20_000;
const LONG = `limits.longpoll_window_ms=${LONG_MS}`;

const AGENT = "/socket/agent/longpoll";
const MOUNTS = ["/socket/agent", "/socket/hirer", "/socket", "/user_socket"];

const servers = [];
const start = async (options) => {
  const server = await Server.start(options);
  servers.push(server);
  return server;
};
after(() => Promise.all(servers.map((server) => server.end())));

const heartbeat = (ref, payload = {}) => [null, ref, "phoenix", "heartbeat", payload];
const refs = (poller) => poller.messages.map((message) => message[1]);
const took = async (work) => {
  const begun = performance.now();
  const result = await work();
  return [performance.now() - begun, result];
};
const isNewSession = (answer) => assert.deepEqual([answer.status, answer.body.status, answer.body.messages], [200, 410, []]);
const alive = async (poller) => (await poller.post([])).body.status === 200;

describe("long-polling by hand", () => {
  // Under load a client may be away longer than a short window: only what measures the window has one.
  let server, brief, user, agent;
  before(async () => {
    [server, brief] = await Promise.all([start({ set: [LONG, ...ROOMY] }), start({ set: [WINDOW, ...ROOMY] })]);
    user = await server.user();
    agent = await server.agent({ owner: user });
  });
  const open = (options) => Poller.open(server, AGENT, { api_key: agent.key }, options);

  test("R13 R1: every mount has a long-poll beside its WebSocket", async () => {
    const credentials = { "/socket/agent": { api_key: agent.key }, "/socket/hirer": { api_key: user.token }, "/socket": { api_key: agent.key }, "/user_socket": { token: user.token, agent_id: agent.id } };
    for (const mount of MOUNTS) {
      for (const slash of ["", "/"]) {
        const poller = new Poller(server, `${mount}/longpoll${slash}`, credentials[mount]);
        const answer = await poller.get();
        isNewSession(answer);
        assert.match(answer.body.token, /^[\w-]{43}$/, mount);
        assert.equal(answer.headers.get("content-type"), "application/json; charset=utf-8");
        assert.equal(answer.headers.get("cache-control"), "no-store");
        assert.deepEqual((await poller.post([heartbeat("7")])).body, { status: 200 });
        const fetched = await poller.get();
        const reply = '[null,"7","phoenix","phx_reply",{"status":"ok","response":{}}]';
        assert.deepEqual(fetched.body, { messages: [reply], status: 200, token: answer.body.token }, mount);
      }
    }
    for (const path of ["/longpoll", "/socket/other/longpoll", "/socket/longpoll/x"]) {
      assert.equal((await new Poller(server, path, { api_key: agent.key }).get()).status, 404, path);
    }
  });

  test("R13 R2: vsn chooses the messages, and V1 may come as lines or as a whole body", async () => {
    for (const vsn of [null, "1.0.0"]) {
      const poller = await open({ vsn });
      const beat = (ref) => JSON.stringify({ topic: "phoenix", event: "heartbeat", payload: {}, ref });
      assert.deepEqual((await poller.post([beat("1"), beat("2")])).body, { status: 200 });
      assert.deepEqual((await poller.post([], { body: beat("3"), type: "application/json" })).body, { status: 200 });
      await poller.until("three replies", () => poller.messages.length === 3);
      assert.deepEqual(poller.messages.map(({ ref, event }) => [ref, event]), ["1", "2", "3"].map((ref) => [ref, "phx_reply"]));
    }
  });

  test("R13 R8: who is refused gets 403 in the body, and no session", async () => {
    const before = await metric(server, "muster_longpoll_sessions");
    for (const [params, vsn] of [[{}, "2.0.0"], [{ api_key: "ap_wrong" }, "2.0.0"], [{ api_key: user.token }, "2.0.0"], ...["3.0.0", "2", ""].map((vsn) => [{ api_key: agent.key }, vsn])]) {
      const answer = await new Poller(server, AGENT, params, { vsn }).get();
      assert.deepEqual([answer.status, answer.body], [200, { status: 403 }], JSON.stringify([params, vsn]));
    }
    assert.equal((await fetch(`${server.url}${AGENT}?x=%ff&api_key=${agent.key}`)).status, 400);
    assert.ok((await metric(server, "muster_longpoll_sessions")) <= before);
  });

  test("R13 R9: a credential is taken from the query, from X-Phoenix-AuthToken and from the usual headers", async () => {
    for (const headers of [{ "x-phoenix-authtoken": agent.key }, { "x-api-key": agent.key }, { authorization: `Bearer ${agent.key}` }]) {
      const poller = await Poller.open(server, AGENT, {}, { headers });
      // What names the session is enough from then on: the client shows no header with a POST.
      assert.deepEqual((await poller.post([heartbeat("1")], { headers: Object.fromEntries(Object.keys(headers).map((name) => [name, ""])) })).body, { status: 200 });
      await poller.until("the reply", () => poller.messages.length === 1);
    }
  });

  test("R13: a GET with nothing to bring waits for its window, and one with a message does not", async () => {
    const hasty = await Poller.open(brief, AGENT, { api_key: (await brief.agent()).key });
    const { token } = hasty;
    const [waited, nothing] = await took(() => hasty.get());
    assert.deepEqual([nothing.status, nothing.body], [200, { messages: [], status: 204, token }]);
    assert.ok(waited > WINDOW_MS * 0.9 && waited < LONG_MS / 2, `${waited} ms`);
    const patient = await open();
    const hanging = await patient.waiting();
    await patient.post([heartbeat("1")]);
    const answer = await hanging.answer;
    assert.equal(answer.body.status, 200);
    const ms = performance.now() - hanging.begun;
    assert.ok(ms < LONG_MS / 2, `${ms} ms`);
  });

  test("R13: the token may come by header, which goes before the query", async () => {
    const poller = await open();
    const { token } = poller;
    const header = { "x-phoenix-longpoll-token": token };
    for (const inQuery of [null, "nonsense", "A".repeat(43)]) {
      assert.deepEqual((await poller.post([heartbeat("1")], { token: inQuery, headers: header })).body, { status: 200 });
      const answer = await poller.get({ token: inQuery, headers: header });
      assert.deepEqual([answer.body.status, answer.body.token], [200, token]);
    }
    assert.deepEqual((await poller.post([heartbeat("1")], { token, headers: { "x-phoenix-longpoll-token": "A".repeat(43) } })).body, { status: 410 });
  });

  test("R13: a POST to no session is 410, and a GET begins another", async () => {
    const poller = await open();
    const flipped = poller.token.slice(0, -2) + (poller.token.at(-2) === "A" ? "B" : "A") + poller.token.at(-1);
    for (const token of [null, "", "undefined", "null", "x", "A".repeat(43), "A".repeat(5_000), "%00", flipped]) {
      const posted = await poller.post([heartbeat("1")], { token });
      assert.deepEqual([posted.status, posted.body], [200, { status: 410 }], `${token}`);
      const other = new Poller(server, AGENT, poller.params);
      const answer = await other.get({ token });
      isNewSession(answer);
      assert.notEqual(answer.body.token, poller.token);
    }
    assert.ok(await alive(poller));
  });

  test("R13 R167: a token is worth nothing beside somebody else's credential, or at another mount", async () => {
    const mine = await open();
    await mine.post([heartbeat("secret")]);
    const stranger = await server.agent();
    const theirs = new Poller(server, AGENT, { api_key: stranger.key });
    assert.deepEqual((await theirs.post([heartbeat("1")], { token: mine.token })).body, { status: 410 });
    isNewSession(await theirs.get({ token: mine.token }));
    const byHeader = new Poller(server, AGENT, {}, { headers: { "x-phoenix-authtoken": stranger.key } });
    assert.deepEqual((await byHeader.post([heartbeat("1")], { token: mine.token })).body, { status: 410 });
    const wrong = new Poller(server, AGENT, { api_key: "ap_wrong" });
    assert.deepEqual((await wrong.get({ token: mine.token })).body, { status: 403 });
    const elsewhere = new Poller(server, "/socket/longpoll", { api_key: agent.key });
    assert.deepEqual((await elsewhere.post([heartbeat("1")], { token: mine.token })).body, { status: 410 });
    await mine.get();
    assert.deepEqual(refs(mine), ["secret"], "and nobody has taken anything");
  });

  test("R13: a parameter that is called token too does no harm", async () => {
    const poller = await Poller.open(server, "/user_socket/longpoll", { token: user.token, agent_id: agent.id });
    assert.ok(await alive(poller));
    await poller.post([heartbeat("1")]);
    await poller.get();
    assert.deepEqual(refs(poller), ["1"]);
  });

  test("R13: preflights of browsers are answered, other methods are not", async () => {
    const headers = { origin: "https://app.example", "access-control-request-method": "POST", "access-control-request-headers": "content-type,x-phoenix-authtoken" };
    const answer = await fetch(`${server.url}${AGENT}?token=x`, { method: "OPTIONS", headers });
    assert.deepEqual([answer.status, await answer.text()], [200, ""]);
    assert.equal(answer.headers.get("access-control-allow-origin"), "*");
    assert.equal(answer.headers.get("access-control-allow-headers"), "content-type,x-phoenix-authtoken");
    assert.match(answer.headers.get("access-control-allow-methods").toLowerCase(), /get, post, options/);
    assert.equal(answer.headers.get("access-control-max-age"), "3600");
    const poller = await open({ headers: { origin: "https://app.example" } });
    assert.equal((await poller.post([heartbeat("1")])).headers.get("access-control-allow-origin"), "*");
    for (const method of ["PUT", "DELETE", "PATCH"]) {
      const answer = await fetch(server.url + poller.target(), { method });
      assert.deepEqual([answer.status, await answer.text()], [400, ""], method);
    }
    assert.ok(await alive(poller));
  });

  test("R13 R12: an origin that may not connect may neither poll, post, nor ask", async () => {
    const strict = await start({ set: [LONG, 'http.origins=["https://app.example"]'] });
    const agent = await strict.agent();
    const good = await Poller.open(strict, AGENT, { api_key: agent.key }, { headers: { origin: "https://app.example" } });
    assert.ok(await alive(good));
    const bad = new Poller(strict, AGENT, { api_key: agent.key }, { headers: { origin: "https://evil.example" } });
    for (const token of [null, good.token]) {
      assert.deepEqual((await bad.get({ token })).body, { status: 403 });
      assert.deepEqual((await bad.post([heartbeat("1")], { token })).body, { status: 403 });
    }
    const preflight = await fetch(strict.url + AGENT, { method: "OPTIONS", headers: { origin: "https://evil.example", "access-control-request-method": "POST" } });
    assert.deepEqual([await preflight.json(), preflight.headers.get("access-control-allow-origin")], [{ status: 403 }, null]);
  });

  test("R13: lines end as they like, empty ones are none, and all of them are taken, however many", async () => {
    const poller = await open();
    const lines = range(1, 1_000).map((n) => JSON.stringify(heartbeat(String(n))));
    const bodies = [lines.slice(0, 10).join("\n"), `${lines.slice(10, 20).join("\r\n")}\r\n`, `\n\n${lines.slice(20, 30).join("\n\n")}\n \n`, lines.slice(30).join("\n")];
    for (const body of bodies) assert.deepEqual((await poller.post([], { body })).body, { status: 200 });
    await poller.until("all replies", () => poller.messages.length >= lines.length);
    assert.deepEqual(refs(poller), range(1, 1_000).map(String));
    const whole = JSON.stringify(heartbeat("last"), null, 2);
    for (const type of ["application/json", "text/plain; charset=utf-8"]) {
      assert.deepEqual((await poller.post([], { body: whole, type })).body, { status: 200 });
    }
    assert.deepEqual((await poller.post([], { body: lines.slice(0, 2).join("\n"), type: "application/x-ndjson; charset=utf-8" })).body, { status: 200 });
    await poller.until("the rest", () => poller.messages.length >= lines.length + 4);
    assert.deepEqual(refs(poller).slice(1_000), ["last", "last", "1", "2"]);
  });

  test("R13 R7: a binary push comes as a line of base64", async () => {
    const poller = await open();
    const topic = `agent:${agent.id}`;
    assert.equal((await poller.join(topic)).status, "ok");
    const names = ["1", "22", topic, "announce"];
    const binary = Buffer.concat([Buffer.from([0, ...names.map((name) => name.length)]), Buffer.from(names.join("")), Buffer.from([1, 2, 3])]);
    for (const line of [binary.toString("base64"), binary.toString("base64").replaceAll("=", "")]) {
      assert.deepEqual((await poller.post([heartbeat("a"), line, heartbeat("b")])).body, { status: 200 });
      await poller.until("the replies", () => refs(poller).includes("22") && refs(poller).includes("b"));
      const reply = poller.messages.find((message) => message[1] === "22");
      assert.equal(reply[3], "phx_reply");
      poller.messages = [];
    }
  });

  test("R13 R7: what is no message ends that session, at once, and no other", async () => {
    const neighbour = await open();
    const bad = {
      "no JSON": { body: "[not json" },
      "no message": { body: "[]" },
      "no base64": { body: `${JSON.stringify(heartbeat("1"))}\nnot base64!` },
      "a binary reply": { body: Buffer.from([1, 0, 0, 0, 0]).toString("base64") },
      "an empty binary push": { body: "AA==" },
      "no UTF-8": { body: Buffer.from([0x5b, 0x22, 0xff, 0x22, 0x5d]) },
      "lines where one message is said to be": { body: `${JSON.stringify(heartbeat("1"))}\n${JSON.stringify(heartbeat("2"))}`, type: "application/json" },
      "depth": { body: `["1","1","phoenix","heartbeat",${"[".repeat(500)}${"]".repeat(500)}]` },
      "over 1 MiB": { body: JSON.stringify(heartbeat("1", "x".repeat(1_100_000))) },
      "over 1 MiB in base64": { body: Buffer.alloc(1_100_000).toString("base64") },
    };
    for (const [what, options] of Object.entries(bad)) {
      const poller = await open();
      const [ms, answer] = await took(() => poller.post([], options));
      assert.deepEqual([answer.status, answer.body], [200, { status: 408 }], what);
      assert.ok(ms < 10_000, what);
      assert.deepEqual((await poller.post([heartbeat("1")])).body, { status: 410 }, what);
      // What was answered before still arrives; then it is gone.
      const { token } = poller;
      const last = await poller.get();
      assert.ok([200, 410].includes(last.body.status), what);
      if (last.body.status === 200) assert.equal((await poller.get()).body.status, 410, what);
      assert.notEqual(poller.token, token, what);
    }
    await neighbour.post([heartbeat("1")]);
    await neighbour.get();
    assert.deepEqual(refs(neighbour), ["1"]);
  });

  test("R13: a body of nearly 8 MB is taken, a larger one is 400 and changes nothing", async () => {
    const poller = await open();
    const filler = "x".repeat(980_000);
    const lines = range(1, 8).map((n) => JSON.stringify(heartbeat(String(n), filler)));
    assert.deepEqual((await poller.post(lines)).body, { status: 200 });
    await poller.until("the replies", () => poller.messages.length === 8);
    const line = await Line.open(server);
    line.write(`POST ${poller.target()} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: 8000001\r\n\r\n`);
    const announced = await line.answer();
    assert.deepEqual([announced.status, announced.body], [400, ""]);
    line.end();
    const chunked = await Line.open(server);
    chunked.write(`POST ${poller.target()} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n`);
    for (let sent = 0; sent <= 8_000_000; sent += 1_000_000) chunked.write(`f4240\r\n${"\n".repeat(1_000_000)}\r\n`);
    assert.equal((await chunked.answer()).status, 400);
    chunked.end();
    assert.ok(await alive(poller));
  });

  test("R13: of two GETs the newest gets the messages, and the older one ends at once with 204", async () => {
    const slow = await start({ set: [LONG] });
    const owner = await slow.agent();
    const poller = await Poller.open(slow, AGENT, { api_key: owner.key });
    for (let round = 0; round < 3; round++) {
      const older = await poller.waiting();
      const newer = poller.get();
      assert.equal((await older.answer).body.status, 204);
      const ms = performance.now() - older.begun;
      assert.ok(ms < LONG_MS / 2, `${ms} ms`);
      await poller.post([heartbeat(String(round))]);
      const second = await newer;
      assert.deepEqual([second.body.status, second.body.messages.length], [200, 1]);
    }
  });

  test("R13: a GET that is given up takes nothing once the node has noticed", async () => {
    const poller = await open();
    for (let round = 0; round < 10; round++) {
      const given = await Line.open(server);
      given.write(`GET ${poller.target()} HTTP/1.1\r\nHost: x\r\n\r\n`);
      await sleep(50);
      const connections = await metric(server, "muster_connections");
      given.end();
      await until("the node has noticed", async () => (await metric(server, "muster_connections")) < connections);
      await poller.post([heartbeat(String(round))]);
      await poller.get();
    }
    assert.deepEqual(refs(poller), range(0, 9).map(String));
  });

  test("R13: a session ends one and a half windows after its last GET, POSTs or not, and its joins with it", async () => {
    const watcher = await Bare.open(brief, "/socket/websocket", { api_key: (await brief.agent()).key });
    await watcher.join("agents:discovery");
    const leaves = () => watcher.events("agents:discovery", "presence_diff").flatMap(({ leaves }) => Object.keys(leaves));
    const polls = await brief.agent();
    const poller = await Poller.open(brief, AGENT, { api_key: polls.key });
    assert.equal((await poller.join(`agent:${polls.id}`)).status, "ok");
    // As long as a GET waits it lives.
    let begun;
    for (let quiet = 0; quiet < 3;) {
      begun = performance.now();
      const { status } = (await poller.get()).body;
      assert.ok([200, 204].includes(status), `${status}`);
      if (status === 204) quiet++;
    }
    assert.ok(!leaves().includes(polls.id));
    while (await alive(poller)) {
      assert.ok(performance.now() - begun < LONG_MS, "POSTs do not keep it");
      await sleep(WINDOW_MS / 20);
    }
    // Since the last GET was sent: that waited for a window itself.
    const lived = performance.now() - begun;
    assert.ok(lived > WINDOW_MS * 2.4, `${lived} ms`);
    await until("the agent is offline", () => leaves().includes(polls.id));
    const again = await poller.get();
    isNewSession(again);
    watcher.end();
  });

  test("R13 R6: who polls is not idle, even where a socket may be silent for less than a window", async () => {
    const hasty = await start({ set: ["limits.socket_idle_timeout_ms=3000", LONG] });
    const owner = await hasty.agent();
    const poller = await Poller.open(hasty, AGENT, { api_key: owner.key });
    const end = performance.now() + 7_000;
    while (performance.now() < end) assert.equal((await poller.get()).body.status, 204);
    assert.ok(await alive(poller));
  });
});

describe("long-polling and what ends it", () => {
  test("R13 R18: a revoked key ends its session: the GET that waits returns at once, the next is refused", async () => {
    const server = await start({ set: [LONG] });
    const agent = await server.agent();
    const poller = await Poller.open(server, AGENT, { api_key: agent.key });
    assert.equal((await poller.join(`agent:${agent.id}`)).status, "ok");
    await poller.until("its presence", () => poller.events(`agent:${agent.id}`, "presence_state").length === 1);
    const hanging = await poller.waiting();
    await server.ok("POST", "/api/v1/auth/rotate-key", { key: agent.key });
    assert.equal((await hanging.answer).body.status, 204);
    const ms = performance.now() - hanging.begun;
    assert.ok(ms < LONG_MS / 2, `${ms} ms`);
    assert.deepEqual((await poller.post([heartbeat("1")])).body, { status: 410 });
    assert.deepEqual((await poller.get()).body, { status: 403 });
    await until("no session is left", async () => (await metric(server, "muster_longpoll_sessions")) === 0);
    assert.equal(await metric(server, "muster_sockets"), 0);
  });

  test("R13 R168: a drain lets the GETs that wait return, and the node go", async () => {
    const server = await start({ set: [LONG] });
    const agent = await server.agent();
    const pollers = await Promise.all(range(1, 5).map(() => Poller.open(server, AGENT, { api_key: agent.key })));
    const idle = await Poller.open(server, AGENT, { api_key: agent.key });
    const hanging = await Promise.all(pollers.map((poller) => poller.waiting()));
    const [ms, ended] = await took(() => server.stop());
    assert.deepEqual(ended, { code: 0, signal: null });
    assert.ok(ms < LONG_MS / 2, `${ms} ms`);
    for (const { answer } of hanging) assert.equal((await answer).body.status, 204);
    await server.startAgain();
    isNewSession(await idle.get());
  });

  test("R13 R169: sessions are counted among the sockets of a credential and among those of the node", async () => {
    const server = await start({ set: [LONG, "limits.sockets_per_credential_max=3", "limits.longpoll_sessions_max=5"] });
    const [one, two] = [await server.agent(), await server.agent()];
    const socket = await Bare.open(server, "/socket/agent/websocket", { api_key: one.key });
    // It is counted behind its handshake, of which the client may know before.
    await until("it is counted", async () => (await metric(server, "muster_sockets")) === 1);
    for (let n = 0; n < 2; n++) await Poller.open(server, AGENT, { api_key: one.key });
    const over = await new Poller(server, AGENT, { api_key: one.key }).get();
    assert.deepEqual([over.status, over.text], [429, ""]);
    assert.ok(Number(over.headers.get("retry-after")) > 0);
    socket.end();
    await until("the socket's place is free", async () => (await new Poller(server, AGENT, { api_key: one.key }).get()).body?.status === 410);
    for (let n = 0; n < 2; n++) await Poller.open(server, AGENT, { api_key: two.key });
    const full = await new Poller(server, AGENT, { api_key: two.key }).get();
    assert.deepEqual([full.status, full.text], [503, ""]);
    assert.equal(await metric(server, "muster_longpoll_sessions"), 5);
  });

  test("R13: addresses that are limited cannot flood the node with sessions over one connection", async () => {
    const server = await start({ set: [LONG, "limits.ip_limit_exempt=[]", "limits.connects_per_ip={tokens=1,period_ms=60000,burst=50}"] });
    const agent = await server.agent();
    const statuses = {};
    for (let n = 0; n < 60; n++) {
      const { status } = await new Poller(server, AGENT, { api_key: agent.key }).get().catch(() => ({ status: "closed" }));
      statuses[status] = (statuses[status] ?? 0) + 1;
    }
    assert.ok(statuses[200] < 50 && statuses[429] > 0, JSON.stringify(statuses));
  });
});

describe("long-polling under load", () => {
  test("R13 R45: a peer that reads no answers, however small, is cut off, without a credential too", async () => {
    const limited = await Server.start({ set: ["limits.reader_stall_timeout_ms=1500"] });
    const deaf = [];
    try {
      for (let n = 0; n < 10; n++) {
        const socket = net.connect(limited.port, "127.0.0.1");
        socket.on("error", () => {});
        await once(socket, "connect");
        socket.pause();
        socket.write("POST /socket/agent/longpoll?token=x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n\n\n".repeat(40_000));
        deaf.push(socket);
      }
      await until("some are held", async () => (await metric(limited, "muster_connections")) >= 10);
      // The one that asks is left.
      await until("they are cut off", async () => (await metric(limited, "muster_connections")) <= 2);
    } finally {
      for (const socket of deaf) socket.destroy();
      await limited.end();
    }
  });

  test("R13: lengths that are announced and do not come keep nobody's large body out", async () => {
    const roomy = await Server.start();
    const silent = [];
    try {
      const [liar, honest] = [await roomy.agent(), await roomy.agent()];
      const poller = await Poller.open(roomy, "/socket/agent/longpoll", { api_key: liar.key });
      for (let n = 0; n < 60; n++) {
        const socket = net.connect(roomy.port, "127.0.0.1");
        socket.on("error", () => {});
        await once(socket, "connect");
        socket.write(`POST /socket/agent/longpoll?vsn=2.0.0&api_key=${liar.key}&token=${poller.token} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: 8000000\r\n\r\n`);
        silent.push(socket);
      }
      await sleep(300);
      const other = await Poller.open(roomy, "/socket/agent/longpoll", { api_key: honest.key });
      const answer = await other.post([[null, "1", "phoenix", "heartbeat", { padding: "x".repeat(100_000) }]]);
      assert.deepEqual(answer.body, { status: 200 });
    } finally {
      for (const socket of silent) socket.destroy();
      await roomy.end();
    }
  });

  test("R13 R43: an answer has a bound, and messages come whole and in order", async () => {
    const server = await start({ set: [LONG, "limits.longpoll_answer_bytes_max=1024", ...ROOMY] });
    const { user, provider, task } = await cast(server);
    const topic = `task_stream:${task.id}`;
    const poller = await Poller.open(server, "/socket/hirer/longpoll", { api_key: user.token });
    await poller.join(topic);
    const sizes = range(1, 200).map((n) => (n * 37) % 5_000);
    for (const [at, size] of sizes.entries()) await server.emit(task, provider, `${at}:\u{1F980}"\\\n${"x".repeat(size)}`);
    const answers = [];
    while (poller.events(topic, "stream.chunk").length < sizes.length) {
      const { body } = await poller.get();
      assert.equal(body.status, 200);
      answers.push(body.messages);
    }
    const chunks = poller.events(topic, "stream.chunk");
    assert.deepEqual(chunks.map(({ seq }) => seq), range(1, sizes.length));
    assert.deepEqual(chunks.map(({ content }) => content), sizes.map((size, at) => `${at}:\u{1F980}"\\\n${"x".repeat(size)}`));
    for (const messages of answers) {
      const butLast = messages.slice(0, -1).reduce((sum, text) => sum + Buffer.byteLength(text), 0);
      assert.ok(butLast < 1_024, `${butLast} bytes before the last message`);
    }
  });

  test("R13 R37: GETs that overtake each other share the messages: each comes once, and in order within an answer", async () => {
    const server = await start({ set: [LONG, ...ROOMY] });
    const { user, provider, task } = await cast(server);
    const topic = `task_stream:${task.id}`;
    const poller = await Poller.open(server, "/socket/hirer/longpoll", { api_key: user.token });
    await poller.join(topic);
    const total = 600;
    const seen = poller.events(topic, "stream.chunk").map(({ seq }) => seq);
    let emitted = 0;
    const emitting = (async () => {
      while (emitted < total) {
        await Promise.all(range(1, 20).map(() => server.emit(task, provider, "x")));
        emitted += 20;
      }
    })();
    const statuses = {};
    const polling = range(1, 4).map(async () => {
      while (seen.length < total) {
        const { body } = await poller.get();
        statuses[body.status] = (statuses[body.status] ?? 0) + 1;
        const seqs = body.messages.map((text) => JSON.parse(text)).filter((message) => message[3] === "stream.chunk").map((message) => message[4].seq);
        assert.deepEqual(seqs, seqs.toSorted((a, b) => a - b));
        seen.push(...seqs);
      }
      // Whoever still waits is overtaken by this one, which is given up.
      await poller.get({ signal: AbortSignal.timeout(200) }).catch(() => {});
    });
    await Promise.all([emitting, ...polling]);
    assert.deepEqual(seen.sort((a, b) => a - b), range(1, total));
    assert.ok(statuses[200] > 1 && statuses[204] > 1, JSON.stringify(statuses));
  });

  test("R13: a flood of POSTs waits for the client to take its replies, and loses none", async () => {
    const server = await start({ set: [LONG, "limits.outbound_queue_bytes_max=8192"] });
    const agent = await server.agent();
    const poller = await Poller.open(server, AGENT, { api_key: agent.key });
    const all = range(1, 4_000).map(String);
    let done = false;
    const posted = poller.post(all.map((ref) => heartbeat(ref))).then((answer) => {
      done = true;
      return answer;
    });
    await sleep(300);
    assert.equal(done, false, "it waits");
    await poller.until("all replies", () => poller.messages.length === all.length);
    assert.deepEqual((await posted).body, { status: 200 });
    assert.deepEqual(refs(poller), all);
  });

  test("R13: a client that posts and never polls is told 408, and its session ends", async () => {
    // The POST must be over before the session is, which nobody polls.
    const windowMs = 4_000;
    const server = await start({ set: [`limits.longpoll_window_ms=${windowMs}`, "limits.outbound_queue_bytes_max=8192"] });
    const agent = await server.agent();
    const poller = await Poller.open(server, AGENT, { api_key: agent.key });
    const flood = range(1, 4_000).map((ref) => heartbeat(String(ref)));
    const [ms, answer] = await took(() => poller.post(flood));
    assert.deepEqual([answer.status, answer.body], [200, { status: 408 }]);
    assert.ok(ms > windowMs * 0.9 && ms < LONG_MS, `${ms} ms`);
    const floods = await Promise.all(range(1, 20).map(() => poller.post(flood)));
    for (const { body } of floods) assert.deepEqual(body, { status: 410 });
    // The session alone has ended: its credential may begin another.
    assert.ok(await alive(await Poller.open(server, AGENT, { api_key: agent.key })));
    assert.ok((await metric(server, "muster_sockets_overloaded_total")) >= 1);
  });

  test("R13 R45: a peer that does not take its answer is cut off", async () => {
    const roomy = ["limits.reader_lag_bytes_max=50000000", "limits.outbound_queue_bytes_max=50000000", "limits.longpoll_answer_bytes_max=50000000", "limits.stream_buffer_bytes_max=50000000"];
    const server = await start({ set: [LONG, "limits.reader_stall_timeout_ms=3000", ...roomy, ...ROOMY] });
    const { user, provider, task } = await cast(server);
    // More than the kernel holds.
    const content = "x".repeat(60_000);
    for (let n = 0; n < 40; n++) await Promise.all(range(1, 10).map(() => server.emit(task, provider, content)));
    const bytes = content.length * 400;
    const stalled = () => metric(server, "muster_readers_stalled_total");
    const takeAfter = async (pause) => {
      const delivered = () => metric(server, "muster_chunks_delivered_total");
      const before = await delivered();
      const poller = await Poller.open(server, "/socket/hirer/longpoll", { api_key: user.token });
      await poller.push(`task_stream:${task.id}`, "phx_join", { after_seq: 0 });
      await until("all of it waits", async () => (await delivered()) - before === 400);
      const line = await Line.open(server);
      const begun = new Promise((resolve) => line.tcp.once("data", () => resolve(line.tcp.pause())));
      line.write(`GET ${poller.target()} HTTP/1.1\r\nHost: x\r\n\r\n`);
      await begun;
      await pause();
      line.tcp.resume();
      await until("the end, one or the other", () => line.closed || line.received.endsWith("0\r\n\r\n"), 60_000);
      line.end();
      return line.received.length;
    };
    assert.ok((await takeAfter(() => sleep(200))) > bytes, "who is slow gets all of it");
    assert.equal(await stalled(), 0);
    assert.ok((await takeAfter(() => until("it is cut off", async () => (await stalled()) === 1, 60_000))) < bytes, "who takes nothing does not");
  });

  test("R13: large bodies that wait have a bound together", async () => {
    const server = await start({ set: [LONG, "limits.outbound_queue_bytes_max=8192", "limits.longpoll_body_bytes_max=1000000", "limits.longpoll_bodies_bytes_max=1000000"] });
    const agent = await server.agent();
    const open = () => Poller.open(server, AGENT, { api_key: agent.key });
    const [one, two] = [await open(), await open()];
    const large = range(1, 20_000).map((ref) => heartbeat(String(ref)));
    const taken = () => metric(server, "muster_messages_received_total");
    const before = await taken();
    const waits = one.post(large);
    await until("the first is read", async () => (await taken()) > before);
    const refused = await two.post(large);
    assert.deepEqual([refused.status, refused.text], [503, ""]);
    assert.deepEqual((await two.post([heartbeat("1")])).body, { status: 200 }, "small ones go on");
    await one.until("all replies", () => one.messages.length === large.length);
    assert.deepEqual((await waits).body, { status: 200 });
    assert.deepEqual((await two.post(large.slice(0, 100))).body, { status: 200 });
  });
});

for (const version of VERSIONS) {
  describe(`phoenix ${version} by long-poll`, () => {
    let server, people;
    const sockets = [];
    const keep = (socket) => {
      sockets.push(socket);
      return socket;
    };
    const open = async (base, mount, params, options) => keep(await connectByPolling(version, base, mount, params, options));

    before(async () => {
      server = await Server.start({ set: ROOMY });
      people = await cast(server);
    });
    afterEach(() => sockets.splice(0).forEach((socket) => socket.disconnect()));
    after(() => server?.end());

    test("R13: joins, pushes more than a batch at once, and streams to a hirer in order", async () => {
      const { user, provider, task } = people;
      const agentSocket = await open(server.url, "/socket/agent", { api_key: provider.key });
      const channel = agentSocket.channel(`agent:${provider.id}`, {});
      assert.equal((await join(channel)).status, "ok");
      const hirerSocket = await open(server.url, "/socket/hirer", { api_key: user.token });
      const stream = hirerSocket.channel(`task_stream:${task.id}`, {});
      const chunks = collect(stream, "stream.chunk");
      assert.equal((await join(stream)).status, "ok");
      const pushed = range(1, 250).map((n) => push(channel, "task.stream_chunk", { task_id: task.id, content: `word ${n} ` }));
      const seqs = (await Promise.all(pushed)).map((reply) => reply.response.seq);
      assert.deepEqual(seqs, range(1, 250));
      await until("all chunks have come", () => chunks.length === 250);
      assert.deepEqual(chunks.map((chunk) => chunk.seq), range(1, 250));
      assert.deepEqual(chunks.map((chunk) => chunk.content), range(1, 250).map((n) => `word ${n} `));
    });

    test("R13 R7: a binary push is answered", async () => {
      const { provider } = people;
      const socket = await open(server.url, "/socket/agent", { api_key: provider.key });
      const channel = socket.channel(`agent:${provider.id}`, {});
      assert.equal((await join(channel)).status, "ok");
      const reply = await push(channel, "task.stream_chunk", new Uint8Array([1, 2, 3]).buffer);
      assert.equal(reply.status, "error");
      assert.equal(socket.isConnected(), true);
    });

    test("R13 R54: presence syncs between a client that polls and one that does not", async () => {
      const { Presence } = phoenix(version);
      const watcher = await server.agent({ name: "Watcher" });
      const socket = await open(server.url, "/socket", { api_key: watcher.key });
      const channel = socket.channel("agents:discovery", {});
      const presence = new Presence(channel);
      await join(channel);
      const online = () => presence.list((id) => id);
      await until("the watcher sees itself", () => online().includes(watcher.id));
      const agent = await server.agent({ name: "Comes and goes" });
      const other = keep(await connect(version, server, "/socket/agent", { api_key: agent.key }));
      await join(other.channel(`agent:${agent.id}`, {}));
      await until("the agent is seen", () => online().includes(agent.id), leniently(2_000));
      other.disconnect();
      await until("the agent is gone", () => !online().includes(agent.id), leniently(2_000));
    });

    test("R13: refused joins are errors, and a credential that ended is refused", async () => {
      const agent = await server.agent();
      const socket = await open(server.url, "/socket/agent", { api_key: agent.key });
      const refused = socket.channel("room:lobby", {});
      assert.deepEqual(await join(refused), { status: "error", response: { reason: "unmatched topic" } });
      refused.leave();
      const own = socket.channel(`agent:${agent.id}`, {});
      assert.equal((await join(own)).status, "ok");
      const errors = [];
      socket.onError((error) => errors.push(error));
      await server.ok("POST", "/api/v1/auth/rotate-key", { key: agent.key });
      await until("the client notices", () => errors.includes(403) && !socket.isConnected());
    });

    test("R13 R44 R168: a node that drains and comes back is joined again, and no chunk is missed or told twice", async () => {
      const { user, provider, task } = await cast(server);
      await server.emit(task, provider, "before");
      const socket = await open(server.url, "/socket/hirer", { api_key: user.token }, { reconnectAfterMs: () => 50, rejoinAfterMs: () => 50 });
      const { channel: stream, seen } = resuming(socket, task);
      assert.equal((await join(stream)).status, "ok");
      await until("the first chunk", () => seen.length === 1);
      for (const how of ["stop", "kill"]) {
        await server[how]();
        await server.startAgain();
        await server.emit(task, provider, how);
        await until(`the chunk after ${how}`, () => seen.length === (how === "stop" ? 2 : 3));
      }
      await sleep(200);
      assert.deepEqual(seen, [1, 2, 3]);
    });

    test("R13: a user socket, whose own parameter is called token", async () => {
      const agent = await server.agent({ owner: people.user });
      const socket = await open(server.url, "/user_socket", { token: people.user.token, agent_id: agent.id });
      const channel = socket.channel("room:lobby", {});
      assert.equal((await join(channel)).response.reason, "unmatched topic");
      channel.leave();
      assert.equal(socket.isConnected(), true);
    });

    for (const hang of [false, true]) {
      test(`R13: longPollFallbackMs falls back where upgrades are ${hang ? "never answered" : "refused"}`, async () => {
        sendBy(version);
        const proxy = await NoUpgrades.before(server, { hang });
        const { Socket } = phoenix(version);
        const agent = await server.agent();
        const options = { params: { api_key: agent.key }, transport: WebSocket, longPollFallbackMs: 300 };
        const socket = keep(new Socket(`${proxy.url.replace("http", "ws")}/socket/agent`, options));
        await opened(socket);
        const channel = socket.channel(`agent:${agent.id}`, {});
        assert.equal((await join(channel)).status, "ok");
        assert.equal(socket.transport.name, "LongPoll");
        assert.ok(proxy.upgrades > 0);
        socket.disconnect();
        proxy.end();
      });
    }

    test("R13: longPollFallbackMs stays with a WebSocket that works", async () => {
      sendBy(version);
      const { Socket } = phoenix(version);
      const agent = await server.agent();
      const socket = keep(new Socket(`${server.ws}/socket/agent`, { params: { api_key: agent.key }, transport: WebSocket, longPollFallbackMs: 3_000 }));
      await opened(socket);
      await sleep(3_500);
      assert.equal(socket.transport, WebSocket);
      assert.equal(socket.isConnected(), true);
    });
  });
}

for (const version of VERSIONS.filter((version) => version.startsWith("1.8"))) {
  test(`R13 R9: authToken of phoenix ${version} opens a long-poll, and shows nothing in the address`, async () => {
    const server = await start();
    const agent = await server.agent();
    const socket = await connectByPolling(version, server.url, "/socket/agent", {}, { authToken: agent.key });
    const channel = socket.channel(`agent:${agent.id}`, {});
    assert.equal((await join(channel)).status, "ok");
    assert.ok(!socket.endPointURL().includes(agent.key));
    socket.disconnect();
  });

  test(`R13: phoenix ${version} takes up a lost session by itself`, async () => {
    const server = await start({ set: [LONG] });
    const { user, provider, task } = await cast(server);
    const socket = await connectByPolling(version, server.url, "/socket/hirer", { api_key: user.token }, { reconnectAfterMs: () => 50, rejoinAfterMs: () => 50 });
    const joins = [];
    const { channel: stream, seen } = resuming(socket, task);
    stream.join().receive("ok", () => joins.push(1));
    await until("joined", () => joins.length === 1);
    await server.emit(task, provider, "one");
    await until("the first chunk", () => seen.length === 1);
    // Somebody who has the token posts nonsense: the session ends under the client.
    const lost = new Poller(server, "/socket/hirer/longpoll", { api_key: user.token });
    lost.token = socket.conn?.token ?? socket.connection?.conn?.token ?? socket.connection?.transport?.token;
    assert.ok(lost.token, "the client's token");
    assert.equal((await lost.post([], { body: "[" })).body.status, 408);
    await server.emit(task, provider, "two");
    await until("joined again", () => joins.length === 2);
    await until("the second chunk", () => seen.length === 2);
    assert.deepEqual(seen, [1, 2]);
    socket.disconnect();
  });
}
