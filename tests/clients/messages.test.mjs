// Messages between agents: over REST and on sockets, with what is promised of each (agrenting.md N, O, P, Q).

import assert from "node:assert/strict";
import crypto from "node:crypto";
import { after, before, describe, test } from "node:test";
import WebSocket from "ws";
import { collect, connect, join, push } from "./lib/phoenix.mjs";
import { Server, sleep, until } from "./lib/server.mjs";
import { rate, ROOMY } from "./lib/streams.mjs";

const UNKNOWN_ID = "01a00000-0000-7000-8000-000000000000";
const VERSION = "1.8.16";
const DAY_MS = 86_400_000;
const ISO = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;

/** A session token of an agent. */
const session = async (server, agent) => (await server.ok("POST", "/api/v1/auth/authenticate", { key: agent.key, body: {} })).token;

/** Joins an agent's messages; notes all that comes. `takes` says which are acknowledged as they come. */
async function mailbox(open, server, agent, { takes = () => false, mount = "/user_socket", params, topic, ...options } = {}) {
  const credential = params ?? { agent_id: agent.id, token: await session(server, agent) };
  const socket = await connect(VERSION, server, mount, credential, { rejoinAfterMs: () => 50, reconnectAfterMs: () => 50, timeout: 30_000, ...options });
  open.push(() => socket.disconnect());
  const channel = socket.channel(topic ?? `messages:${agent.id}`, {});
  const box = { socket, channel, seen: [], statuses: collect(channel, "message_status"), errors: [] };
  channel.on("new_message", (message) => {
    box.seen.push(message);
    if (takes(message)) box.ack(message.id);
  });
  channel.onError((reason) => box.errors.push(reason));
  box.ack = (message_id) => push(channel, "acknowledge", { message_id });
  box.reject = (message_id, reason) => push(channel, "reject", { message_id, reason });
  box.send = (to, message) => push(channel, "send_message", { to_agent_id: to.id, type: "note", payload: {}, ...message });
  box.numbers = () => box.seen.map(({ payload }) => payload.n);
  box.of = (id) => box.seen.filter((message) => message.id === id);
  box.joined = await join(channel);
  return box;
}

/** Shows life every so often, so that what it does not acknowledge is given up in time. */
const ALIVE = { heartbeatIntervalMs: 300 };

/** Takes nothing any more and says nothing, as one whose network is gone; the node has not noticed. */
const fallSilent = (box) => box.socket.conn._socket.pause();

/** Goes without a word, and does not come back by itself. */
function vanish(box) {
  box.socket.reconnectTimer.scheduleTimeout = () => {};
  box.socket.conn.terminate();
}

/** A further key of an agent, with these scopes. */
const narrowKey = async (server, agent, scopes) => (await server.ok("POST", `/api/v1/agents/${agent.id}/credentials`, { key: agent.key, body: { scopes } })).api_key;

/** A node of its own for some tests. */
function onNode(title, set, define) {
  describe(title, () => {
    const world = { open: [] };
    before(async () => {
      world.server = await Server.start({ set: [...ROOMY, ...set] });
      world.as = (who) => (who?.token ? { token: who.token, agent: who.agent } : { key: who?.key });
      world.ask = (method, path, who, body, more = {}) => world.server.request(method, `/api/v1${path}`, { ...world.as(who), body, ...more });
      world.ok = (method, path, who, body) => world.server.ok(method, `/api/v1${path}`, { ...world.as(who), body });
      world.box = (agent, options) => mailbox(world.open, world.server, agent, options);
      world.post = (from, to, more = {}, options) => world.ask("POST", "/messages", from, { to_agent_id: to.id, type: "note", payload: {}, ...more }, options);
      world.send = async (from, to, more) => {
        const answer = await world.post(from, to, more);
        assert.equal(answer.status, 201, answer.text);
        return answer.data;
      };
      world.pair = async (more) => [await world.server.agent({ name: "Sender", more }), await world.server.agent({ name: "Recipient", more })];
      world.status = (who, id) => world.ok("GET", `/messages/${id}/status`, who);
    });
    after(async () => {
      for (const close of world.open) await close();
      await world.server?.end();
    });
    define(world);
  });
}

function assertRefused(answer, status, code, field) {
  assert.deepEqual([answer.status, answer.error?.code, answer.data], [status, code, null], answer.text);
  if (field) assert.equal(answer.error.field, field, answer.text);
}

/** The key of an agent that signs, and how it signs. */
function signer() {
  const { publicKey, privateKey } = crypto.generateKeyPairSync("ed25519");
  const raw = Buffer.from(publicKey.export({ format: "jwk" }).x, "base64url");
  const signText = (text) => crypto.sign(null, Buffer.from(text), privateKey).toString("base64");
  const sha256 = (text) => crypto.createHash("sha256").update(text).digest("hex");
  return {
    public_key: raw.toString("base64"),
    sign: (from, to, { type = "note", payload, version = "2.0.0", dedup_key = "-" }) => {
      // Payloads here are in their canonical form already: sorted keys, no spaces.
      const statement = ["muster-sig-v1", "message", from.id, to.id, type, version, dedup_key, sha256(JSON.stringify(payload))].join("\n");
      return signText(statement);
    },
    signText,
  };
}

onNode("messages", ["limits.message_retry_ms=60000"], (world) => {
  test("R109: the user socket takes the session of the agent it names, and its owner's token, and no other credential", async () => {
    const { server } = world;
    const [owner, stranger] = [await server.user("Owner"), await server.user("Stranger")];
    const agent = await server.agent({ owner });
    const other = await server.agent();
    const token = await session(server, agent);
    for (const params of [{ agent_id: agent.id, token }, { agent_id: agent.id, token: owner.token }]) {
      assert.equal((await world.box(agent, { params })).joined.status, "ok");
    }
    const opens = async (params) => {
      const query = new URLSearchParams(params);
      const socket = new WebSocket(`${server.ws}/user_socket?${query}`);
      return new Promise((resolve) => {
        socket.onopen = () => (socket.close(), resolve(true));
        socket.onerror = () => resolve(false);
      });
    };
    assert.equal(await opens({ agent_id: agent.id, token }), true);
    const foreign = await session(server, other);
    const loggedOut = await session(server, agent);
    await server.ok("DELETE", "/api/v1/auth/logout", { token: loggedOut });
    for (const [why, params] of [
      ["another agent's session", { agent_id: agent.id, token: foreign }],
      ["another user's token", { agent_id: agent.id, token: stranger.token }],
      ["an agent's key", { agent_id: agent.id, token: agent.key }],
      ["a session that has ended", { agent_id: agent.id, token: loggedOut }],
      ["a user without an agent", { token: owner.token }],
      ["nothing", { agent_id: agent.id }],
    ]) {
      assert.equal(await opens(params), false, why);
    }
  });

  test("R110: only the own messages are joined, on the user socket and on the main socket", async () => {
    const [agent, other] = await world.pair();
    for (const [mount, params] of [["/user_socket", undefined], ["/socket", { api_key: agent.key }]]) {
      assert.equal((await world.box(agent, { mount, params })).joined.status, "ok", mount);
      for (const topic of [`messages:${other.id}`, `messages:${UNKNOWN_ID}`, "messages:me"]) {
        assert.deepEqual((await world.box(agent, { mount, params, topic })).joined, { status: "error", response: { reason: "unauthorized" } }, topic);
      }
    }
    const socket = await connect(VERSION, world.server, "/user_socket", { agent_id: agent.id, token: await session(world.server, agent) });
    world.open.push(() => socket.disconnect());
    assert.equal((await join(socket.channel("agents:discovery", {}))).response.reason, "unmatched topic");
  });

  test("R109 R112 R167: who may only read takes nothing from the queue and settles nothing; a key that was revoked is out", async () => {
    const { server } = world;
    const [from, to] = await world.pair();
    const { id } = await world.send(from, to);
    const key = await narrowKey(server, to, ["connect", "read"]);
    const narrow = await server.ok("POST", "/api/v1/auth/authenticate", { key, body: {} }).then(({ token }) => token, () => undefined);
    for (const [mount, params] of [["/socket", { api_key: key }], ...(narrow ? [["/user_socket", { agent_id: to.id, token: narrow }]] : [])]) {
      const box = await world.box(to, { mount, params });
      assert.deepEqual(box.joined, { status: "error", response: { reason: "forbidden" } }, mount);
      box.channel.leave();
      await sleep(100);
      assert.deepEqual(box.seen, []);
    }
    for (const action of ["acknowledge", "reject"]) assertRefused(await world.ask("POST", `/messages/${id}/${action}`, { key }, {}), 403, "FORBIDDEN");
    assert.equal((await world.status({ key }, id)).status, "queued", "it may look");
    const stranger = await server.agent();
    for (const action of ["acknowledge", "reject"]) assertRefused(await world.ask("POST", `/messages/${id}/${action}`, stranger, {}), 404, "NOT_FOUND");
    const box = await world.box(to, { mount: "/socket", params: { api_key: to.key } });
    await until("it comes", () => box.seen.length === 1);
    await server.ok("POST", "/api/v1/auth/rotate-key", { key: to.key, body: {} });
    await until("the old key's socket is closed", () => box.socket.recorded.closes.length > 0);
    vanish(box);
    for (const [method, path] of [["POST", "/acknowledge"], ["POST", "/reject"], ["GET", "/status"], ["GET", ""]]) {
      assertRefused(await world.ask(method, `/messages/${id}${path}`, to, method === "POST" ? {} : undefined), 401, "UNAUTHORIZED");
    }
    assertRefused(await world.post(to, from), 401, "UNAUTHORIZED");
    assert.notEqual((await world.status(from, id)).status, "acknowledged");
  });

  test("R111 R114: a message is pushed with its fields, as it was sent, to every connection of its recipient", async () => {
    const [from, to] = await world.pair();
    const boxes = [await world.box(to), await world.box(to), await world.box(to, { mount: "/socket", params: { api_key: to.key } })];
    const raw = `{"to_agent_id":"${to.id}","type":"é😀","payload":{"n":12345678901234567890.5},"dedup_key":"k"}`;
    const answer = await world.server.request("POST", "/api/v1/messages", { key: from.key, raw });
    assert.equal(answer.status, 201, answer.text);
    const { id, status, protocol_version, delivery_guarantee, inserted_at, deduplicated } = answer.data;
    assert.deepEqual([status, protocol_version, delivery_guarantee, deduplicated], ["queued", "1.1.0", "at_least_once", false]);
    assert.match(inserted_at, ISO);
    for (const box of boxes) {
      await until("the message", () => box.seen.length === 1);
      const { payload, ...rest } = box.seen[0];
      assert.deepEqual(rest, { id, type: "é😀", from_agent_id: from.id, protocol_version, inserted_at, delivery_guarantee, retry_count: 0, dedup_key: "k" });
      assert.ok(box.socket.recorded.frames.some((frame) => frame.includes("12345678901234567890.5")), "numbers keep their digits");
    }
  });

  test("R112: the recipient acknowledges or rejects, as often as it likes; the sender sees it, and others may not", async () => {
    const [from, to] = await world.pair();
    const third = await world.server.agent();
    const [sender, recipient, stranger] = [await world.box(from), await world.box(to), await world.box(third)];
    const [first, second, queued] = [await world.send(from, to), await world.send(from, to), await world.send(from, third)];
    await until("both", () => recipient.seen.length === 2);
    for (const [box, id] of [[stranger, first.id], [sender, first.id], [recipient, queued.id], [recipient, UNKNOWN_ID]]) {
      assert.deepEqual((await box.ack(id)).response, { reason: "not_found" });
      assert.deepEqual((await box.reject(id)).response, { reason: "not_found" });
    }
    assert.equal((await world.status(from, first.id)).status, "delivered", "nothing has changed");
    const acknowledged = { id: first.id, status: "acknowledged", retry_count: 0 };
    for (const _ of [1, 2]) assert.deepEqual(await recipient.ack(first.id), { status: "ok", response: acknowledged });
    const rejected = { id: second.id, status: "rejected", reason: "not mine", retry_count: 0 };
    for (const _ of [1, 2]) assert.deepEqual(await recipient.reject(second.id, "not mine"), { status: "ok", response: rejected });
    assert.deepEqual((await recipient.ack(second.id)).response, { reason: "message_not_active", status: "rejected" });
    assert.deepEqual((await recipient.reject(first.id)).response, { reason: "message_not_active", status: "acknowledged" });
    await until("the sender hears of both", () => sender.statuses.length === 2);
    assert.deepEqual(sender.statuses, [acknowledged, rejected]);
    const shown = await world.status(from, second.id);
    assert.deepEqual([shown.status, shown.reason], ["rejected", "not mine"]);
    for (const payload of [{}, { message_id: 7 }, { message_id: "me" }]) {
      assert.equal((await push(recipient.channel, "acknowledge", payload)).response.reason, "invalid_payload");
    }
    assert.equal((await recipient.reject(first.id, "x".repeat(1_001))).response.reason, "invalid_payload");
    assert.equal((await push(recipient.channel, "nothing", {})).response.reason, "unknown_event");
  });

  test("R113 R120 R124: what waits is pushed at the join, oldest first, and no more than 100 at once without an acknowledgement", async () => {
    const [from, to] = await world.pair();
    const messages = Array.from({ length: 150 }, (_, n) => ({ to_agent_id: to.id, type: "note", payload: { n } }));
    const items = await world.ok("POST", "/messages/batch", from, { messages });
    assert.ok(items.every(({ data }) => data.status === "queued"));
    const first = await world.box(to);
    await until("the window", () => first.seen.length === 100);
    await sleep(300);
    assert.deepEqual(first.numbers(), Array.from({ length: 100 }, (_, n) => n));
    // A connection that comes later has what is under way too, and then both have what follows.
    const second = await world.box(to);
    await until("the window again", () => second.seen.length === 100);
    for (const n of [3, 5]) await first.ack(first.seen[n].id);
    for (const box of [first, second]) {
      await until("room for two", () => box.seen.length === 102);
      assert.deepEqual(box.numbers().slice(-2), [100, 101]);
    }
    for (const { id } of [...first.seen]) await first.ack(id);
    await until("the rest", () => first.seen.length === 150);
    assert.deepEqual(first.numbers(), Array.from({ length: 150 }, (_, n) => n));
    // Back after it was gone: what was not acknowledged comes again, in order, and no retry was counted.
    await first.socket.disconnect();
    await second.socket.disconnect();
    const back = await world.box(to);
    await until("what is left", () => back.seen.length === 48);
    assert.deepEqual(back.numbers(), Array.from({ length: 48 }, (_, n) => n + 102));
    assert.ok(back.seen.every(({ retry_count }) => retry_count === 0));
    for (const { id } of back.seen) assert.equal((await back.ack(id)).status, "ok");
    const last = await world.box(to);
    await sleep(300);
    assert.deepEqual(last.seen, [], "what is acknowledged is never pushed again");
  });

  test("R116 R120: a connection that breaks leaves what it showed life after where it was, and what it did not is queued again", async () => {
    const [from, to] = await world.pair();
    const box = await world.box(to);
    const heard = await world.send(from, to, { payload: { n: 0 } });
    await until("it has come", () => box.seen.length === 1);
    await push(box.channel, "acknowledge", { message_id: UNKNOWN_ID });
    const unheard = await world.send(from, to, { payload: { n: 1 } });
    await until("it has come", () => box.seen.length === 2);
    vanish(box);
    await until("the node has noticed", async () => (await world.status(from, unheard.id)).status === "queued");
    const { status, delivered_at } = await world.status(from, heard.id);
    assert.deepEqual([status, typeof delivered_at], ["delivered", "string"]);
    const back = await world.box(to);
    await until("both come again", () => back.seen.length === 2);
    assert.deepEqual(back.numbers(), [0, 1]);
  });

  test("R114 R123: a socket sends as REST does, and is answered when the message is durable", async () => {
    const [from, to] = await world.pair();
    const sender = await world.box(from);
    const answers = await Promise.all(Array.from({ length: 50 }, (_, n) => sender.send(to, { payload: { n } })));
    assert.ok(answers.every(({ status, response }) => status === "ok" && response.status === "queued" && response.from_agent_id === from.id));
    const { data } = await world.ask("GET", `/messages?to_agent_id=${to.id}&limit=100`, to);
    assert.deepEqual(data.map(({ payload }) => payload.n).reverse(), Array.from({ length: 50 }, (_, n) => n), "in the order of the pushes");
    assert.equal((await sender.send({ id: UNKNOWN_ID })).response.reason, "not_found");
    assert.equal((await sender.send(to, { from_agent_id: to.id })).response.reason, "forbidden");
    assert.equal((await sender.send(to, { payload: [] })).response.reason, "invalid_payload");
  });

  test("R115: who may send to whom, and what a message may hold", async () => {
    const { server } = world;
    const owner = await server.user();
    const [own, sibling] = [await server.agent({ owner }), await server.agent({ owner })];
    const [from, to] = await world.pair();
    for (const foreign of [to.id, UNKNOWN_ID]) assertRefused(await world.post(from, to, { from_agent_id: foreign }), 403, "FORBIDDEN", "from_agent_id");
    assertRefused(await world.post({ token: owner.token }, to, { from_agent_id: from.id }), 403, "FORBIDDEN", "from_agent_id");
    assertRefused(await world.post({ token: owner.token }, to), 403, "FORBIDDEN");
    assertRefused(await world.post({}, to), 401, "UNAUTHORIZED");
    // An owner sends for its agents, whichever it names.
    assert.equal((await world.post({ token: owner.token }, to, { from_agent_id: own.id })).data.from_agent_id, own.id);
    assert.equal((await world.post({ token: owner.token, agent: own.id }, to, { from_agent_id: sibling.id })).data.from_agent_id, sibling.id);
    assertRefused(await world.post(from, { id: UNKNOWN_ID }), 404, "NOT_FOUND", "to_agent_id");
    for (const [change, field] of [
      [{ type: "" }, "type"],
      [{ type: "x".repeat(65) }, "type"],
      [{ type: "a\u0000b" }, "type"],
      [{ type: 7 }, "type"],
      [{ payload: [] }, "payload"],
      [{ payload: "x" }, "payload"],
      [{ payload: { x: "x".repeat(262_144) } }, "payload"],
      [{ delivery_guarantee: "always" }, "delivery_guarantee"],
      [{ dedup_key: "" }, "dedup_key"],
      [{ to_agent_id: "me" }, undefined],
      [{ payload: undefined }, undefined],
    ]) {
      assertRefused(await world.post(from, to, change), 422, "VALIDATION_ERROR", field);
    }
    assert.equal((await world.post(from, to, { type: "😀".repeat(64), payload: { x: "x".repeat(262_136) } })).status, 201);
    const reader = await server.agent();
    const { api_key: readOnly } = await server.ok("POST", `/api/v1/agents/${reader.id}/credentials`, { key: reader.key, body: { scopes: ["read", "connect"] } });
    assertRefused(await world.post({ key: readOnly }, to), 403, "FORBIDDEN");
    // Blocks work both ways, at once, and end.
    for (const [blocker, blocked] of [[to, from], [from, to]]) {
      await server.ok("POST", "/api/v1/blocks", { key: blocker.key, body: { agent_id: blocked.id } });
      assertRefused(await world.post(from, to), 403, "FORBIDDEN", "to_agent_id");
      await server.ok("DELETE", `/api/v1/blocks/${blocked.id}`, { key: blocker.key });
      assert.equal((await world.post(from, to)).status, 201);
    }
    await server.ok("PUT", `/api/v1/admin/agents/${to.id}/status`, { token: server.adminToken, body: { status: "suspended" } });
    assertRefused(await world.post(from, to), 503, "AGENT_UNAVAILABLE");
  });

  test("R116 R117 R167: parties see a message and what became of it, and nobody else; lists are one's own", async () => {
    const { server } = world;
    const [fromOwner, toOwner, stranger] = [await server.user(), await server.user(), await server.user()];
    const [from, to, sibling] = [await server.agent({ owner: fromOwner }), await server.agent({ owner: toOwner }), await server.agent({ owner: fromOwner })];
    const { id } = await world.send(from, to, { payload: { secret: 1 } });
    const other = await world.send(from, to, { type: "other" });
    const reply = await world.send(to, from);
    for (const who of [from, to, fromOwner, toOwner]) {
      const message = await world.ok("GET", `/messages/${id}`, who);
      assert.deepEqual([message.id, message.status, message.payload, message.retry_count], [id, "queued", { secret: 1 }, 0]);
      const { status, delivered_at, acknowledged_at, retry_count } = await world.status(who, id);
      assert.deepEqual([status, delivered_at, acknowledged_at, retry_count], ["queued", null, null, 0]);
    }
    for (const who of [sibling, await server.agent(), stranger]) {
      for (const path of [`/messages/${id}`, `/messages/${id}/status`]) assertRefused(await world.ask("GET", path, who), 404, "NOT_FOUND");
      for (const what of ["acknowledge", "reject", "redeliver"]) assertRefused(await world.ask("POST", `/messages/${id}/${what}`, who, {}), 404, "NOT_FOUND");
      assert.deepEqual((await world.ok("GET", `/messages?from_agent_id=${from.id}`, who)).filter((one) => one.id === id), []);
    }
    assertRefused(await world.ask("GET", `/messages/${UNKNOWN_ID}`, from), 404, "NOT_FOUND");
    // Only the recipient settles, though the sender sees the message.
    for (const who of [from, fromOwner]) {
      assertRefused(await world.ask("POST", `/messages/${id}/acknowledge`, who, {}), 403, "FORBIDDEN");
      assertRefused(await world.ask("POST", `/messages/${id}/reject`, who, {}), 403, "FORBIDDEN");
    }
    const acknowledged = { id, status: "acknowledged", retry_count: 0 };
    for (const who of [to, toOwner]) assert.deepEqual(await world.ok("POST", `/messages/${id}/acknowledge`, who, {}), acknowledged);
    assert.match((await world.status(from, id)).acknowledged_at, ISO);
    assert.deepEqual(await world.ok("POST", `/messages/${other.id}/reject`, to, { reason: "no" }), { id: other.id, status: "rejected", reason: "no", retry_count: 0 });
    assertRefused(await world.ask("POST", `/messages/${other.id}/acknowledge`, to, {}), 409, "MESSAGE_NOT_ACTIVE");
    const ids = async (who, query) => (await world.ok("GET", `/messages${query}`, who)).map((one) => one.id);
    assert.deepEqual(await ids(from, ""), [reply.id, other.id, id]);
    assert.deepEqual(await ids(fromOwner, ""), [reply.id, other.id, id]);
    assert.deepEqual(await ids(from, `?from_agent_id=${from.id}`), [other.id, id]);
    assert.deepEqual(await ids(to, `?to_agent_id=${to.id}&type=other`), [other.id]);
    assert.deepEqual(await ids(to, "?status=rejected"), [other.id]);
    const page = await world.ask("GET", "/messages?limit=2", from);
    assert.deepEqual(page.data.map((one) => one.id), [reply.id, other.id]);
    const { cursor, has_more, total_count } = page.body.meta.pagination;
    assert.deepEqual([has_more, total_count], [true, 3]);
    assert.deepEqual(await ids(from, `?limit=2&cursor=${cursor}`), [id]);
    assertRefused(await world.ask("GET", "/messages?status=lost", from), 422, "VALIDATION_ERROR", "status");
    // A key that was revoked sees nothing any more.
    const revoked = from.key;
    await server.ok("POST", "/api/v1/auth/rotate-key", { key: from.key, body: {} });
    assertRefused(await world.ask("GET", `/messages/${id}`, { key: revoked }), 401, "UNAUTHORIZED");
    assertRefused(await world.post({ key: revoked }, to), 401, "UNAUTHORIZED");
  });

  test("R114: a batch says of each message what became of it, and keeps their order", async () => {
    const [from, to] = await world.pair();
    const message = (n) => ({ to_agent_id: to.id, type: "note", payload: { n } });
    const messages = [message(0), { ...message(1), to_agent_id: UNKNOWN_ID }, "nothing", { ...message(3), payload: [] }, message(4)];
    const items = await world.ok("POST", "/messages/batch", from, { messages });
    assert.deepEqual(items.map(({ data, error }) => data?.status ?? error.reason), ["queued", "not_found", "invalid_payload", "invalid_payload", "queued"]);
    const { data } = await world.ask("GET", "/messages", to);
    assert.deepEqual(data.map(({ payload }) => payload.n), [4, 0]);
    assertRefused(await world.ask("POST", "/messages/batch", from, { messages: Array(501).fill(message(0)) }), 422, "VALIDATION_ERROR", "messages");
  });

  test("R118: at most once is pushed once and done; there are three guarantees", async () => {
    const [from, to] = await world.pair();
    const { id } = await world.send(from, to, { delivery_guarantee: "at_most_once" });
    const first = await world.box(to);
    await until("the push", () => first.seen.length === 1);
    assert.equal((await world.status(from, id)).status, "delivered");
    const second = await world.box(to);
    const next = await world.send(from, to, { delivery_guarantee: "exactly_once" });
    await until("what comes after it", () => second.seen.length === 1);
    assert.equal(second.seen[0].id, next.id);
    assert.deepEqual(first.seen.map((message) => message.delivery_guarantee), ["at_most_once", "exactly_once"]);
  });

  test("R121: under exactly_once a key gives the first message, and another body under it is refused", async () => {
    const [from, to] = await world.pair();
    const once = { delivery_guarantee: "exactly_once", payload: { n: 1 } };
    const first = await world.send(from, to, { ...once, dedup_key: "k" });
    const answers = await Promise.all(Array.from({ length: 8 }, () => world.post(from, to, { ...once, dedup_key: "k" })));
    for (const { status, data } of answers) assert.deepEqual([status, data.id, data.deduplicated], [201, first.id, true]);
    for (const other of [{ payload: { n: 2 } }, { type: "other" }, { to_agent_id: from.id }]) {
      assertRefused(await world.post(from, to, { ...once, dedup_key: "k", ...other }), 422, "IDEMPOTENCY_MISMATCH");
    }
    const box = await world.box(to, { takes: () => true });
    await until("one message", () => box.seen.length === 1);
    const repeated = (await world.post(from, to, { ...once, dedup_key: "k" })).data;
    assert.deepEqual([repeated.id, repeated.deduplicated], [first.id, true], "also after it was acknowledged");
    // The field decides before the header; another sender has keys of its own.
    const header = { headers: { "x-idempotency-key": "h" } };
    const byHeader = (await world.post(from, to, { ...once, dedup_key: "k2" }, header)).data;
    assert.notEqual(byHeader.id, first.id);
    assert.notEqual((await world.post(to, to, { ...once, dedup_key: "k" })).data.id, first.id);
    // At the same moment, on a key that nobody has used.
    const racing = await Promise.all(Array.from({ length: 8 }, () => world.post(from, to, { ...once, dedup_key: "race" })));
    assert.equal(new Set(racing.map(({ data }) => data.id)).size, 1);
    assert.equal(racing.filter(({ data }) => !data.deduplicated).length, 1);
    await sleep(200);
    assert.equal(new Set(box.seen.map(({ id }) => id)).size, box.seen.length, "nothing twice");
    // Without the guarantee a key is only a name.
    const named = [await world.send(from, to, { dedup_key: "n" }), await world.send(from, to, { dedup_key: "n" })];
    assert.notEqual(named[0].id, named[1].id);
  });

  test("R121: without a dedup_key the request's X-Idempotency-Key is the key", async () => {
    const [from, to] = await world.pair();
    const once = { delivery_guarantee: "exactly_once", payload: { n: 1 } };
    const header = { headers: { "x-idempotency-key": "h" } };
    const first = (await world.post(from, to, once, header)).data;
    assert.equal((await world.post(from, to, once, header)).data.id, first.id);
    assertRefused(await world.post(from, to, { ...once, payload: { n: 2 } }, header), 422, "IDEMPOTENCY_MISMATCH");
  });

  test("R126: four types have a form, others pass as they are", async () => {
    const [from, to] = await world.pair();
    for (const [type, payload, field] of [
      ["negotiation", { amount: "much" }, "payload.amount"],
      ["task_handoff", {}, "payload"],
      ["task_handoff", { task_id: "me" }, "payload.task_id"],
      ["status_update", { availability: "asleep" }, "payload.availability"],
      ["status_update", { load_percent: 101 }, "payload.load_percent"],
      ["collaboration", { options: [1] }, "payload.options"],
    ]) {
      assertRefused(await world.post(from, to, { type, payload }), 422, "VALIDATION_ERROR", field);
    }
    for (const [type, payload] of [
      ["negotiation", { a: 1, b: "x" }],
      ["status_update", { availability: "busy", load_percent: 50, health: { response_time_ms: 3, error_rate: 0 }, active_tasks: 1, progress: {} }],
      ["collaboration", { team_id: "t", action: "escalate" }],
      ["mine", { amount: "much", availability: 7 }],
    ]) {
      assert.equal((await world.post(from, to, { type, payload })).status, 201, type);
    }
  });

  test("R132: 1.0.0 knows at_most_once alone", async () => {
    const [from, to] = await world.pair({ protocol_versions: ["1.0.0"] });
    for (const delivery_guarantee of ["at_least_once", "exactly_once"]) {
      assertRefused(await world.post(from, to, { delivery_guarantee }), 422, "VALIDATION_ERROR", "delivery_guarantee");
    }
    const { protocol_version, delivery_guarantee } = await world.send(from, to);
    assert.deepEqual([protocol_version, delivery_guarantee], ["1.0.0", "at_most_once"]);
    const [usual, other] = await world.pair();
    assertRefused(await world.post(usual, other, { protocol_version: "1.0.0", delivery_guarantee: "exactly_once" }), 422, "VALIDATION_ERROR", "delivery_guarantee");
    assert.equal((await world.post(usual, other, { protocol_version: "2.0.0" })).status, 422);
  });

  test("R132 R138: under 2.0.0 a message is signed by its sender, over all of it, and the signature is passed on", async () => {
    const [a, b] = [signer(), signer()];
    const protocol_versions = ["1.1.0", "2.0.0"];
    const from = await world.server.agent({ more: { protocol_versions, public_key: a.public_key } });
    const to = await world.server.agent({ more: { protocol_versions, public_key: b.public_key } });
    const box = await world.box(to);
    const payload = { a: 1, b: "x" };
    assertRefused(await world.post(from, to, { payload }), 422, "VALIDATION_ERROR", "signature");
    const signature = a.sign(from, to, { payload });
    const { id, protocol_version } = await world.send(from, to, { payload, signature });
    assert.equal(protocol_version, "2.0.0");
    await until("the signed message", () => box.seen.length === 1);
    assert.deepEqual([box.seen[0].id, box.seen[0].signature, box.seen[0].protocol_version], [id, signature, "2.0.0"]);
    const keyed = a.sign(from, to, { payload, dedup_key: "k" });
    assert.equal((await world.post(from, to, { payload, dedup_key: "k", signature: keyed })).status, 201);
    const canonical = Buffer.from(signature, "base64");
    canonical[63] |= 0xe0;
    for (const [why, message] of [
      ["another's key", { payload, signature: b.sign(from, to, { payload }) }],
      ["another payload", { payload: { a: 2, b: "x" }, signature }],
      ["another type", { type: "other", payload, signature }],
      ["another recipient", { to_agent_id: from.id, payload, signature }],
      ["another key of the message", { payload, dedup_key: "other", signature }],
      ["another version", { payload, signature: a.sign(from, to, { payload, version: "1.1.0" }) }],
      ["no key where one was signed", { payload, signature: keyed }],
      ["not canonical", { payload, signature: canonical.toString("base64") }],
      ["no signature", { payload, signature: "AAAA" }],
    ]) {
      const answer = await world.post(from, to, message);
      assert.deepEqual([answer.status, answer.error?.details?.reason], [422, "invalid_signature"], `${why}: ${answer.text}`);
    }
    const unable = await world.server.agent({ more: { protocol_versions } });
    const answer = await world.post(unable, to, { payload, signature });
    assert.deepEqual([answer.status, answer.error.details.reason], [422, "no_public_key"]);
    // A key that was replaced signs nothing any more, at once.
    const next = signer();
    const raw = Buffer.from(next.public_key, "base64").toString("hex");
    const moved = await world.ask("PUT", `/agents/${from.id}/public_key`, from, { public_key: next.public_key, signature: a.signText(`muster-sig-v1\nagent.public_key\n${from.id}\n${raw}`) });
    assert.equal(moved.status, 200, moved.text);
    assert.equal((await world.post(from, to, { payload: { n: 1 }, signature: a.sign(from, to, { payload: { n: 1 } }) })).status, 422);
    assert.equal((await world.post(from, to, { payload: { n: 1 }, signature: next.sign(from, to, { payload: { n: 1 } }) })).status, 201);
  });
});

onNode("messages that are not acknowledged", ["limits.message_retry_ms=100"], (world) => {
  test("R119: an unacknowledged message is pushed five more times, later and later, then it is a dead letter and its sender is told", async () => {
    const [from, to] = await world.pair();
    const [sender, box] = [await world.box(from), await world.box(to, ALIVE)];
    const at = [];
    box.channel.on("new_message", () => at.push(performance.now()));
    const { id } = await world.send(from, to);
    await until("all pushes", () => box.of(id).length === 6);
    assert.deepEqual(box.of(id).map(({ retry_count }) => retry_count), [0, 1, 2, 3, 4, 5]);
    for (const [n, delay] of [100, 200, 400, 800, 1_600].entries()) {
      assert.ok(at[n + 1] - at[n] >= delay * 0.8 - 60, `retry ${n + 1} after ${at[n + 1] - at[n]} ms`);
    }
    await until("the sender is told", () => sender.statuses.length === 1);
    assert.deepEqual(sender.statuses, [{ id, status: "failed", retry_count: 5 }]);
    assert.equal((await world.status(from, id)).status, "failed");
    await sleep(500);
    assert.equal(box.of(id).length, 6, "and no more");

    // Dead letters are listed to both parties and nobody else, and either queues it again.
    for (const who of [from, to]) assert.deepEqual((await world.ok("GET", "/messages/dead-letters", who)).map((one) => one.id), [id]);
    const stranger = await world.server.agent();
    assert.deepEqual(await world.ok("GET", "/messages/dead-letters", stranger), []);
    assertRefused(await world.ask("POST", `/messages/${id}/redeliver`, stranger, {}), 404, "NOT_FOUND");
    const revoked = await world.server.agent();
    const readOnly = await narrowKey(world.server, to, ["connect", "read"]);
    assertRefused(await world.ask("POST", `/messages/${id}/redeliver`, { key: readOnly }, {}), 403, "FORBIDDEN");
    await world.server.ok("POST", "/api/v1/auth/rotate-key", { key: revoked.key, body: {} });
    assertRefused(await world.ask("POST", `/messages/${id}/redeliver`, revoked, {}), 401, "UNAUTHORIZED");
    const queued = await world.ok("POST", `/messages/${id}/redeliver`, to, {});
    assert.deepEqual([queued.status, queued.retry_count], ["queued", 0]);
    assertRefused(await world.ask("POST", `/messages/${id}/redeliver`, from, {}), 409, "MESSAGE_NOT_ACTIVE");
    await until("it comes again", () => box.of(id).length === 7);
    assert.equal(box.of(id)[6].retry_count, 0);
    assert.equal((await box.ack(id)).response.status, "acknowledged");
    assert.deepEqual(await world.ok("GET", "/messages/dead-letters", from), []);
  });

  test("R115 R119: a dead letter is queued again only if it could be sent, and once however many ask", async () => {
    const { server } = world;
    const [from, to] = await world.pair();
    const box = await world.box(to, ALIVE);
    const { id } = await world.send(from, to);
    await until("it is given up", async () => (await world.status(from, id)).status === "failed");
    const pushed = box.of(id).length;
    const redeliver = (who) => world.ask("POST", `/messages/${id}/redeliver`, who, {});
    for (const [blocker, blocked] of [[to, from], [from, to]]) {
      await server.ok("POST", "/api/v1/blocks", { key: blocker.key, body: { agent_id: blocked.id } });
      for (const who of [from, to]) assertRefused(await redeliver(who), 403, "FORBIDDEN", "to_agent_id");
      await server.ok("DELETE", `/api/v1/blocks/${blocked.id}`, { key: blocker.key });
    }
    const status = (agent, status) => server.ok("PUT", `/api/v1/admin/agents/${agent.id}/status`, { token: server.adminToken, body: { status } });
    await status(from, "banned");
    assertRefused(await redeliver(to), 503, "AGENT_UNAVAILABLE");
    await status(from, "active");
    assert.deepEqual([(await world.status(to, id)).status, box.of(id).length], ["failed", pushed]);
    const answers = await Promise.all(Array.from({ length: 12 }, (_, n) => redeliver(n % 2 ? from : to)));
    for (const answer of answers) {
      // Whoever asks once it is queued again is told that, as ever.
      assert.ok(answer.status === 200 || answer.error.code === "MESSAGE_NOT_ACTIVE", answer.text);
    }
    assert.ok(answers.some(({ status }) => status === 200));
    await until("it comes again", () => box.of(id).length > pushed);
    await box.ack(id);
    const again = box.of(id).slice(pushed).map(({ retry_count }) => retry_count);
    assert.deepEqual(again, again.map((_, n) => n), "each push once, from the first on");
  });

  test("R119 R121: what is acknowledged between two retries is never pushed again", async () => {
    const [from, to] = await world.pair();
    const box = await world.box(to);
    const sent = await Promise.all(Array.from({ length: 40 }, (_, n) => world.send(from, to, { payload: { n } })));
    const after = new Map();
    for (const [n, { id }] of sent.entries()) {
      await until("a push", () => box.of(id).length > n % 3);
      await box.ack(id);
      after.set(id, box.of(id).length);
    }
    await sleep(800);
    for (const [id, count] of after) assert.equal(box.of(id).length, count, "a push after the answer to its acknowledgement");
  });

  test("R120: while nobody is there no retry is counted, and delivery begins again on return", async () => {
    const [from, to] = await world.pair();
    const first = await world.box(to);
    const { id } = await world.send(from, to);
    await until("two pushes", () => first.seen.length === 2);
    await first.socket.disconnect();
    const { retry_count } = await until("it is gone", async () => world.status(from, id));
    await sleep(1_500);
    const now = await world.status(from, id);
    assert.ok(now.retry_count <= Math.max(retry_count, 2), `${now.retry_count} retries while nobody was there`);
    assert.equal(now.status, "delivered");
    const back = await world.box(to);
    await until("it comes again", () => back.seen.length === 1);
    assert.equal(back.seen[0].retry_count, now.retry_count);
    await back.ack(id);
  });
});

onNode("recipients that fall silent", ["limits.message_retry_ms=40", "limits.socket_idle_timeout_ms=15000"], (world) => {
  /** As long as all pushes and the wait for an acknowledgement take, and more. */
  const GIVEN_UP_MS = 47 * 40 * 1.2 + 300;

  test("R119 R120: who says nothing at all is not given up on; when its connection has ended its messages are as if they had not been pushed", async () => {
    const [from, to] = await world.pair();
    const sender = await world.box(from, ALIVE);
    const box = await world.box(to);
    const first = await world.send(from, to, { payload: { n: 0 } });
    await until("it has come", () => box.seen.length > 0);
    fallSilent(box);
    const second = await world.send(from, to, { payload: { n: 1 } });
    await until("it was pushed as often as may be", async () => (await world.status(from, second.id)).retry_count === 5);
    await sleep(GIVEN_UP_MS);
    for (const { id } of [first, second]) assert.equal((await world.status(from, id)).status, "delivered", "nobody knows yet that it is gone");
    assert.deepEqual([await world.ok("GET", "/messages/dead-letters", to), sender.statuses], [[], []]);
    // The node finds out by the silence, and closes the socket.
    for (const { id } of [first, second]) {
      const status = await until("it is queued again", async () => {
        const now = await world.status(from, id);
        return now.status === "queued" && now;
      });
      assert.deepEqual([status.retry_count, status.delivered_at], [0, null]);
    }
    vanish(box);
    const back = await world.box(to);
    await until("both come again", () => back.seen.length >= 2);
    assert.deepEqual(back.seen.slice(0, 2).map(({ id, retry_count }) => [id, retry_count]), [[first.id, 0], [second.id, 0]]);
    for (const { id } of [first, second]) await back.ack(id);
    assert.deepEqual((await world.ok("GET", "/messages?status=acknowledged", from)).map(({ id }) => id), [second.id, first.id]);
  });

  test("R119 R120: whoever comes back before the node knows that they had gone has time to acknowledge", async () => {
    const [from, to] = await world.pair();
    const box = await world.box(to);
    fallSilent(box);
    const { id } = await world.send(from, to);
    await until("it was pushed as often as may be", async () => (await world.status(from, id)).retry_count === 5);
    await sleep(GIVEN_UP_MS);
    const back = await world.box(to);
    await until("it comes again", () => back.seen.length > 0);
    assert.equal((await world.status(from, id)).status, "delivered", "not given up because they have come");
    await back.ack(id);
    assert.equal((await world.status(from, id)).status, "acknowledged");
    vanish(box);
  });

  test("R119: whoever answers heartbeats and never acknowledges is given up on, after five retries", async () => {
    const [from, to] = await world.pair();
    const box = await world.box(to, ALIVE);
    const { id } = await world.send(from, to);
    const status = await until("it is given up", async () => {
      const now = await world.status(from, id);
      return now.status === "failed" && now;
    });
    assert.deepEqual([status.retry_count, box.of(id).map(({ retry_count }) => retry_count)], [5, [0, 1, 2, 3, 4, 5]]);
    // One that has failed stays so when its recipient goes.
    vanish(box);
    await sleep(200);
    assert.equal((await world.status(from, id)).status, "failed");
  });
});

onNode("a queue with many senders", ["limits.mailbox_messages_max=20", "limits.mailbox_sender_percent=25", "limits.mailbox_bytes_max=4000"], (world) => {
  const full = (answer, max, bytesMax) => {
    assertRefused(answer, 409, "LIMIT_REACHED", "to_agent_id");
    assert.deepEqual([answer.error.details.max, answer.error.details.bytes_max], [max, bytesMax], answer.text);
  };

  test("R115 R169: one sender fills its share of a queue and no more, by number", async () => {
    const [first, to] = await world.pair();
    const senders = [first, ...(await Promise.all(Array.from({ length: 4 }, () => world.server.agent())))];
    for (const from of senders.slice(0, 4)) {
      for (let n = 0; n < 5; n += 1) assert.equal((await world.post(from, to)).status, 201);
      if (from === first) full(await world.post(from, to), 5, 1_000);
    }
    full(await world.post(senders[4], to), 20, 4_000);
    // Another recipient has a queue of its own.
    assert.equal((await world.post(first, senders[4])).status, 201);
    const box = await world.box(to, { takes: ({ from_agent_id }) => from_agent_id === first.id });
    await until("the first sender's are settled", () => box.seen.length === 20);
    await until("there is room", async () => {
      await sleep(250);
      return (await world.post(senders[4], to)).status === 201;
    });
    full(await world.post(senders[1], to), 5, 1_000);
  });

  test("R115 R169: and by bytes", async () => {
    const [first, to] = await world.pair();
    const large = { payload: { x: "x".repeat(890) } };
    assert.equal((await world.post(first, to, large)).status, 201);
    full(await world.post(first, to, large), 5, 1_000);
    assert.equal((await world.post(first, to)).status, 201, "what is small goes into its share");
    const others = await Promise.all(Array.from({ length: 4 }, () => world.server.agent()));
    for (const from of others.slice(0, 3)) assert.equal((await world.post(from, to, large)).status, 201);
    full(await world.post(others[3], to, large), 20, 4_000);
    assert.equal((await world.post(others[3], to)).status, 201);
  });
});

onNode("bounds of messages", ["limits.mailbox_messages_max=5", "limits.mailbox_sender_percent=100", `limits.messages_per_agent=${rate(40, 1, 60_000)}`], (world) => {
  test("R115 R169: a queue that is full takes no more until there is room, and a sender has a rate", async () => {
    const [from, to] = await world.pair();
    const answers = [];
    for (let n = 0; n < 6; n += 1) answers.push(await world.post(from, to, { payload: { n } }));
    assert.deepEqual(answers.map(({ status }) => status), [201, 201, 201, 201, 201, 409]);
    assertRefused(answers[5], 409, "LIMIT_REACHED", "to_agent_id");
    const [, other] = await world.pair();
    const once = (more) => world.post(from, other, { delivery_guarantee: "exactly_once", dedup_key: "first", ...more });
    const first = await once();
    for (let n = 0; n < 4; n += 1) assert.equal((await world.post(from, other)).status, 201);
    const again = await once();
    assert.deepEqual([again.status, again.data.id, again.data.deduplicated], [201, first.data.id, true], "a repeat takes no place");
    assertRefused(await once({ dedup_key: "second" }), 409, "LIMIT_REACHED", "to_agent_id");
    const box = await world.box(to, { takes: () => true });
    await until("all", () => box.seen.length === 5);
    await until("there is room again", async () => {
      await sleep(250);
      return (await world.post(from, to)).status === 201;
    });
    const refused = await until("the rate", async () => {
      const answer = await world.post(from, to);
      return answer.status === 429 && answer;
    });
    assert.equal(refused.error.code, "RATE_LIMIT_EXCEEDED");
    assert.ok(Number(refused.headers.get("retry-after")) > 0);
  });
});

const daysAgo = (days) => new Date(Date.now() - days * DAY_MS).toISOString();

onNode("versions of messages", [`protocol.deprecated={"1.1.0"="${daysAgo(100)}","0.9.0"="${daysAgo(181)}"}`], (world) => {
  test("R133 R131: a message in a version that is going away says so, over REST and on a socket; one that is gone is refused", async () => {
    const [from, to] = await world.pair();
    const answer = await world.post(from, to);
    assert.equal(answer.status, 201, answer.text);
    const { deprecated_at, sunset_at } = answer.data.deprecation;
    assert.equal(Date.parse(sunset_at) - Date.parse(deprecated_at), 180 * DAY_MS);
    assert.equal(answer.headers.get("deprecation"), `@${Math.floor(Date.parse(deprecated_at) / 1_000)}`);
    assert.equal(Date.parse(answer.headers.get("sunset")), Math.floor(Date.parse(sunset_at) / 1_000) * 1_000);
    const sender = await world.box(from);
    assert.deepEqual((await sender.send(to)).response.deprecation, answer.data.deprecation);
    const older = await world.post(from, to, { protocol_version: "1.0.0" });
    assert.deepEqual([older.status, older.data.deprecation, older.headers.get("sunset")], [201, undefined, null]);
    assertRefused(await world.post(from, to, { protocol_version: "0.9.0" }), 426, "PROTOCOL_VERSION_BLOCKED");
    assertRefused(await world.post(from, to, { protocol_version: "1.1" }), 422, "VALIDATION_ERROR", "protocol_version");
    const incompatible = await world.post(from, to, { protocol_version: "2.0.0" });
    assert.deepEqual([incompatible.error.details.reason, incompatible.error.details.yours], ["protocol_version_incompatible", ["1.0.0", "1.1.0"]]);
  });
});

describe("messages over restarts and days", () => {
  test("R121 R125: under exactly_once an X-Idempotency-Key gives the first message for seven days, and else the first answer for one", async () => {
    const server = await Server.start({ set: [...ROOMY, "drills.enabled=true"] });
    try {
      const [from, to] = [await server.agent(), await server.agent()];
      const advance = (advance_ms) => server.ok("POST", "/api/v1/admin/drills/clock", { token: server.adminToken, body: { advance_ms } });
      const send = async (key, body) => {
        const more = { key: from.key, headers: { "x-idempotency-key": key } };
        const answer = await server.request("POST", "/api/v1/messages", { ...more, body: { to_agent_id: to.id, type: "note", payload: { n: 1 }, ...body } });
        return { ...answer, replayed: answer.headers.get("idempotency-replayed") };
      };
      const once = { delivery_guarantee: "exactly_once" };
      const [first, plain] = [await send("k1", once), await send("k2", {})];
      assert.deepEqual([first.status, first.data.deduplicated, plain.status, plain.data.deduplicated], [201, false, 201, false]);
      const repeats = async () => {
        const answers = [await send("k1", once), await send("k1", once)];
        for (const { status, data, replayed } of answers) assert.deepEqual([status, data.id, data.deduplicated, replayed], [201, first.data.id, true, null]);
        assertRefused(await send("k1", { ...once, payload: { n: 2 } }), 422, "IDEMPOTENCY_MISMATCH");
      };
      await repeats();
      const again = await send("k2", {});
      assert.deepEqual([again.status, again.data.id, again.data.deduplicated, again.replayed], [201, plain.data.id, false, "true"], "the answer as it was");
      assertRefused(await send("k2", { payload: { n: 2 } }), 422, "IDEMPOTENCY_MISMATCH");
      await advance(2 * DAY_MS);
      await repeats();
      const next = await send("k2", {});
      assert.deepEqual([next.status, next.replayed], [201, null]);
      assert.notEqual(next.data.id, plain.data.id);
      await server.kill();
      await server.startAgain();
      // The clock is the machine's again, and the key is still known.
      await repeats();
      await advance(7 * DAY_MS + 60_000);
      assert.notEqual((await send("k1", once)).data.id, first.data.id, "after seven days it is another message");
      assert.deepEqual((await server.ok("GET", "/api/v1/messages?limit=50", { key: from.key })).length, 4);
    } finally {
      await server.end();
    }
  });

  test("R122 R123 R124: the queue survives kill -9; after 6 days and 23 hours it comes in order; at 7 days it has expired, and senders see it", async () => {
    const open = [];
    const server = await Server.start({ set: [...ROOMY, "drills.enabled=true", "limits.message_retry_ms=60000"] });
    try {
      const [from, to, other] = [await server.agent(), await server.agent(), await server.agent()];
      const send = (n, recipient) => server.ok("POST", "/api/v1/messages", { key: from.key, body: { to_agent_id: recipient.id, type: "note", payload: { n }, delivery_guarantee: "exactly_once", dedup_key: `${recipient.id}-${n}` } });
      const status = (id) => server.ok("GET", `/api/v1/messages/${id}`, { key: from.key });
      const sent = [];
      for (let n = 0; n < 30; n += 1) sent.push(await send(n, to));
      await server.kill();
      await server.startAgain();
      for (let n = 30; n < 40; n += 1) sent.push(await send(n, to));
      assert.equal((await send(3, to)).id, sent[3].id, "keys survive too");
      const lost = await send(0, other);
      const done = await send(1, other);
      const early = await mailbox(open, server, other);
      await until("both", () => early.seen.length === 2);
      await early.ack(done.id);
      await early.socket.disconnect();

      const advance = (advance_ms) => server.ok("POST", "/api/v1/admin/drills/clock", { token: server.adminToken, body: { advance_ms } });
      await advance(7 * DAY_MS - 3_600_000);
      const box = await mailbox(open, server, to);
      await until("the queue", () => box.seen.length === 40);
      assert.deepEqual(box.seen.map(({ id }) => id), sent.map(({ id }) => id));
      for (const { id } of sent.slice(0, 30)) assert.equal((await box.ack(id)).status, "ok");

      const sender = await mailbox(open, server, from);
      await advance(3_600_000 + 60_000);
      const message = await status(lost.id);
      assert.deepEqual([message.status, message.payload], ["expired", null], "nothing is shown of it, swept or not");
      assert.equal((await server.request("POST", `/api/v1/messages/${lost.id}/acknowledge`, { key: other.key, body: {} })).error.code, "MESSAGE_NOT_ACTIVE");
      const late = await mailbox(open, server, other);
      await until("the sender is told of all", () => sender.statuses.length === 11);
      assert.ok(sender.statuses.every(({ status }) => status === "expired"));
      assert.deepEqual(new Set(sender.statuses.map(({ id }) => id)), new Set([lost, ...sent.slice(30)].map(({ id }) => id)));
      assert.deepEqual(late.seen, [], "what has expired is not pushed");
      const acknowledged = await status(done.id);
      assert.deepEqual([acknowledged.status, acknowledged.payload], ["acknowledged", null], "what was said of it stands, its content goes");
      // The key is free again.
      assert.notEqual((await send(0, other)).id, lost.id);
      await advance(30 * DAY_MS);
      await until("it is forgotten", async () => (await server.request("GET", `/api/v1/messages/${done.id}`, { key: from.key })).status === 404);
    } finally {
      for (const close of open) await close();
      await server.end();
    }
  });
});
