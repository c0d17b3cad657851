// Task streams over sockets, REST and MCP: who may, in which order, how far back, and what survives.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { after, before, describe, test } from "node:test";
import { join, push } from "./lib/phoenix.mjs";
import { RawSocket } from "./lib/raw.mjs";
import { binary, cast, PATIENCE_MS, Server, sleep, until } from "./lib/server.mjs";
import { complete, Connections, emitters, log, metric, range, rate, ROOMY } from "./lib/streams.mjs";

/** A node of its own for some tests. */
function onNode(title, set, define) {
  describe(title, () => {
    const world = { connections: new Connections() };
    before(async () => {
      world.server = await Server.start({ set: [...ROOMY, ...set] });
    });
    after(async () => {
      await world.connections.close();
      await world.server?.end();
    });
    define(world);
  });
}

const refused = (reason) => ({ status: "error", response: { reason } });

const emit = (channel, task, content, more = {}) => push(channel, "task.stream_chunk", { task_id: task.id, content, ...more });

/** An id that no task has, of the form ids have. */
const unknownId = () => `01a00000-0000-7000-8000-${Math.random().toString(16).slice(2, 14).padEnd(12, "0")}`;

/** Pushes chunks first..last in order, some at a time; gives their seqs. */
async function emitMany(channel, task, first, last, { atOnce = 64, content = (n) => `${n} ` } = {}) {
  const seqs = [];
  for (let from = first; from <= last; from += atOnce) {
    const replies = await Promise.all(range(from, Math.min(last, from + atOnce - 1)).map((n) => emit(channel, task, content(n))));
    for (const reply of replies) assert.equal(reply.status, "ok", JSON.stringify(reply));
    seqs.push(...replies.map((reply) => reply.response.seq));
  }
  return seqs;
}

onNode("who may", [], (world) => {
  test("R26: only the task's provider emits, and a refused chunk changes nothing", async () => {
    const { server, connections } = world;
    const { user, client, provider, task } = await cast(server);
    const stranger = await server.agent();
    for (const agent of [client, stranger]) {
      const channel = await connections.agent(server, agent);
      assert.deepEqual(await emit(channel, task, "not mine"), refused("unauthorized"));
      const overRest = await server.emit(task, agent, "not mine");
      assert.equal(overRest.status, 403);
      assert.deepEqual([overRest.error.code, overRest.error.details.reason], ["FORBIDDEN", "unauthorized"]);
      const mcp = await connections.mcp(server, agent);
      const overMcp = await mcp.callTool({ name: "task_emit_chunk", arguments: { task_id: task.id, content: "not mine" } });
      assert.equal(overMcp.isError, true);
      assert.equal(JSON.parse(overMcp.content[0].text).reason, "unauthorized");
    }
    const asUser = await server.request("POST", `/api/v1/tasks/${task.id}/chunk`, { token: user.token, body: { content: "x" } });
    assert.equal(asUser.status, 403);
    const nobody = await server.request("POST", `/api/v1/tasks/${task.id}/chunk`, { body: { content: "x" } });
    assert.equal(nobody.status, 401);

    const now = await server.ok("GET", `/api/v1/tasks/${task.id}`, { key: client.key });
    assert.equal(now.status, "pending");
    assert.deepEqual(await log(server, client, task), []);
    const channel = await connections.agent(server, provider);
    assert.deepEqual(await emit(channel, task, "mine"), { status: "ok", response: { seq: 1 } });
  });

  test("R26 R35: a chunk for a task that is not there is refused as one for somebody else's", async () => {
    const { server, connections } = world;
    const { task } = await cast(server);
    const stranger = await server.agent();
    const channel = await connections.agent(server, stranger);
    const mcp = await connections.mcp(server, stranger);
    for (const id of [task.id, unknownId(), "no-id", 7, null]) {
      assert.deepEqual(await emit(channel, { id }, "x"), refused("unauthorized"), String(id));
    }
    for (const id of [task.id, unknownId(), "no-id"]) {
      const result = await mcp.callTool({ name: "task_emit_chunk", arguments: { task_id: id, content: "x" } });
      assert.deepEqual(JSON.parse(result.content[0].text), { reason: "unauthorized" }, id);
    }
    for (const id of [task.id, unknownId()]) {
      const answer = await server.emit({ id }, stranger, "x");
      assert.deepEqual([answer.status, answer.error.details], [403, { reason: "unauthorized" }], id);
    }
  });

  test("R26 R46: a task that was given to another provider is no longer the first one's to emit", async () => {
    const { server, connections } = world;
    const { client, provider, task } = await cast(server);
    const second = await server.agent();
    const channel = await connections.agent(server, provider);
    const early = await connections.reader(server, provider, task);
    assert.equal(early.joined.status, "ok");
    await server.ok("POST", `/api/v1/tasks/${task.id}/reassign`, { key: client.key, body: { provider_agent_id: second.id } });
    assert.deepEqual(await emit(channel, task, "still me"), refused("unauthorized"));
    assert.equal((await server.emit(task, second, "now me")).status, 202);
    const again = await connections.reader(server, provider, task);
    assert.deepEqual(again.joined, refused("unauthorized"));
  });

  test("R26 R167: a provider that is being replaced either begins the task or loses it, not both", async () => {
    const { server, connections } = world;
    const { client, provider } = await cast(server);
    const second = await server.agent();
    const channel = await connections.agent(server, provider);
    for (let round = 0; round < 20; round++) {
      const task = await server.task(client, provider);
      const reassigning = server.request("POST", `/api/v1/tasks/${task.id}/reassign`, { key: client.key, body: { provider_agent_id: second.id } });
      const emitting = round % 2 ? emit(channel, task, "by the first") : server.emit(task, provider, "by the first");
      const [moved, emitted] = await Promise.all([reassigning, emitting]);
      const both = moved.status === 200 && [202, "ok"].includes(emitted.status);
      assert.ok(!both, `round ${round}: the first provider's chunk is in the second's task`);
      assert.ok(moved.status === 200 || [202, "ok"].includes(emitted.status));
    }
  });

  test("R17 R26: a key that may only read emits nothing", async () => {
    const { server } = world;
    const { client, provider, task } = await cast(server);
    const wish = { key: provider.key, body: { scopes: ["connect", "read"] } };
    const { api_key } = await server.ok("POST", `/api/v1/agents/${provider.id}/credentials`, wish);
    const channel = await world.connections.agent(server, { ...provider, key: api_key });
    assert.equal((await emit(channel, task, "x")).response.reason, "forbidden");
    assert.equal((await server.emit(task, { key: api_key }, "x")).status, 403);
    const reader = await world.connections.reader(server, { ...provider, key: api_key }, task);
    assert.equal(reader.joined.status, "ok");
    assert.deepEqual(await log(server, client, task), []);
  });

  test("R29: one who reads as provider reads no more once the task is another's", async () => {
    const { server, connections } = world;
    const { client, provider, task } = await cast(server);
    const second = await server.agent();
    const early = await connections.reader(server, provider, task);
    const witness = await connections.reader(server, client, task);
    await server.ok("POST", `/api/v1/tasks/${task.id}/reassign`, { key: client.key, body: { provider_agent_id: second.id } });
    await server.emit(task, second, "for the client's eyes");
    await until("the client has it", () => witness.chunks.length === 1);
    // What is written to one socket keeps its order: what would have come is there before this answer.
    assert.equal((await join(early.socket.channel(`agent:${provider.id}`, {}))).status, "ok");
    assert.deepEqual(early.seqs(), []);
  });

  test("R29 R34: provider, client and the client's owner read; nobody else does", async () => {
    const { server, connections } = world;
    const { user, client, provider, task } = await cast(server);
    const providerOwner = await server.user("Provider's owner");
    const ownedProvider = await server.agent({ owner: providerOwner });
    const ownedTask = await server.task(client, ownedProvider);
    for (const who of [user, client, provider]) {
      assert.equal((await connections.reader(server, who, task)).joined.status, "ok", who.name);
    }
    const sibling = await server.agent({ owner: user });
    for (const who of [await server.user("Other"), await server.agent(), sibling, providerOwner]) {
      assert.deepEqual((await connections.reader(server, who, ownedTask)).joined, refused("unauthorized"), who.name);
    }
  });

  test("R34: a user who owns the client agent reads, whenever it became theirs", async () => {
    const { server, connections } = world;
    const [client, provider] = [await server.agent(), await server.agent()];
    const task = await server.task(client, provider);
    const user = await server.user();
    assert.deepEqual((await connections.reader(server, user, task)).joined, refused("unauthorized"));
    await server.ok("POST", "/api/v1/agents/assign", { token: user.token, body: { agents: [{ id: client.id, api_key: client.key }] } });
    assert.equal((await server.ok("GET", `/api/v1/agents/${client.id}`, { token: user.token })).owner_user_id, user.id);
    assert.equal((await connections.reader(server, user, task)).joined.status, "ok");
  });

  test("R29: no other mount has the topic", async () => {
    const { server, connections } = world;
    const { client, task } = await cast(server);
    const socket = await connections.socket(server, "/socket", client.key);
    assert.deepEqual(await join(socket.channel(`task_stream:${task.id}`, {})), refused("unmatched topic"));
  });

  test("R35: unknown tasks, others' tasks and ids that are none give one answer, in one class of time", async () => {
    const { server, connections } = world;
    const { task } = await cast(server);
    const [agent, user] = [await server.agent(), await server.user()];
    const sockets = [await connections.socket(server, "/socket/agent", agent.key), await connections.socket(server, "/socket/hirer", user.token)];
    for (const socket of sockets) {
      for (const id of [task.id, unknownId(), "no-id", ""]) {
        const channel = socket.channel(`task_stream:${id}`, {});
        assert.deepEqual(await join(channel), refused("unauthorized"), id);
        channel.leave();
      }
    }
    const times = { others: [], unknown: [] };
    const absent = unknownId();
    for (let n = 0; n < 100; n++) {
      for (const [sort, id] of [["others", task.id], ["unknown", absent]]) {
        const channel = sockets[0].channel(`task_stream:${id}`, {});
        const begun = process.hrtime.bigint();
        await join(channel);
        times[sort].push(Number(process.hrtime.bigint() - begun) / 1e6);
        channel.leave();
      }
    }
    const median = (list) => list.toSorted((a, b) => a - b)[list.length / 2];
    const [others, unknown] = [median(times.others), median(times.unknown)];
    assert.ok(Math.abs(others - unknown) < 1 + 0.5 * Math.min(others, unknown), `someone else's: ${others} ms, unknown: ${unknown} ms`);
  });

  test("R34 R51: what a hirer or a reader pushes is no chunk", async () => {
    const { server, connections } = world;
    const { user, provider, task } = await cast(server);
    for (const who of [user, provider]) {
      const reader = await connections.reader(server, who, task);
      assert.deepEqual(await emit(reader.channel, task, "x"), refused("unknown_event"));
      assert.equal(reader.socket.isConnected(), true);
    }
  });
});

onNode("chunks", [], (world) => {
  test("R36: the join's answer says where the stream stands", async () => {
    const { server, connections } = world;
    const { user, client, provider, task } = await cast(server);
    const joined = async () => (await connections.reader(server, user, task)).joined;
    assert.deepEqual(await joined(), { status: "ok", response: { seq: 0, first_seq: 0, status: "pending", truncated: false } });
    for (const n of range(1, 3)) await server.emit(task, provider, `${n}`);
    assert.deepEqual(await joined(), { status: "ok", response: { seq: 3, first_seq: 1, status: "in_progress", truncated: false } });
    await complete(server, provider, task);
    assert.deepEqual(await joined(), { status: "ok", response: { seq: 3, first_seq: 1, status: "completed", truncated: false } });

    const silent = await server.task(client, provider);
    await server.ok("PUT", `/api/v1/tasks/${silent.id}/fail`, { key: provider.key, body: {} });
    const reader = await connections.reader(server, user, silent);
    assert.deepEqual(reader.joined.response, { seq: 0, first_seq: 0, status: "failed", truncated: false });
  });

  test("R38 R40: a chunk carries seq, content, kind, timestamp and metadata, the same on every way to read", async () => {
    const { server, connections } = world;
    const { client, provider, task } = await cast(server);
    const live = await connections.reader(server, client, task);
    const begun = Date.now();
    await server.emit(task, provider, "plain");
    await server.emit(task, provider, "said", { kind: "chat", metadata: { model: "m", n: [1, { deep: null }] } });
    await server.emit(task, provider, "made", { kind: "artifact" });
    await until("three chunks", () => live.chunks.length === 3);
    const [plain, said, made] = live.chunks;
    assert.deepEqual(Object.keys(plain).sort(), ["content", "kind", "metadata", "seq", "timestamp"]);
    assert.deepEqual({ ...plain, timestamp: null }, { seq: 1, content: "plain", kind: "artifact", timestamp: null, metadata: {} });
    assert.deepEqual([said.kind, said.metadata], ["chat", { model: "m", n: [1, { deep: null }] }]);
    assert.equal(made.kind, "artifact");
    for (const { timestamp } of live.chunks) {
      assert.match(timestamp, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
      assert.ok(Date.parse(timestamp) >= begun - 1 && Date.parse(timestamp) <= Date.now(), timestamp);
    }
    const late = await connections.reader(server, client, task);
    await until("the replay", () => late.chunks.length === 3);
    assert.deepEqual(late.chunks, live.chunks);
    assert.deepEqual(await log(server, client, task), live.chunks);
  });

  test("R40 R49 R50 R51: kinds, contents and metadata that do not fit are refused alike on every path", async () => {
    const { server, connections } = world;
    const { client, provider, task } = await cast(server);
    const paths = await emitters(connections, server, provider);
    const cases = [
      [{ content: "x", kind: "video" }, "invalid_kind"],
      [{ content: "x", kind: "Chat" }, "invalid_kind"],
      [{ content: "x", kind: 7 }, "invalid_kind"],
      [{ content: "" }, "invalid_content"],
      [{}, "invalid_content"],
      [{ content: "x".repeat(65_537) }, "invalid_content"],
      [{ content: "é".repeat(32_769) }, "invalid_content"],
      [{ content: "x", metadata: [] }, "invalid_payload"],
      [{ content: "x", metadata: "text" }, "invalid_payload"],
      [{ content: "x", metadata: { long: "x".repeat(5_000) } }, "invalid_payload"],
      [{ content: 7 }, "invalid_payload"],
      [{ content: "x", idempotency_key: "" }, "invalid_payload"],
      [{ content: "x", idempotency_key: "k".repeat(129) }, "invalid_payload"],
      [{ content: "x", idempotency_key: "a\nb" }, "invalid_payload"],
      [{ content: "x", idempotency_key: 7 }, "invalid_payload"],
    ];
    for (const [name, path] of Object.entries(paths)) {
      for (const [chunk, reason] of cases) {
        assert.equal((await path(task, chunk)).reason, reason, `${name} ${JSON.stringify(chunk).slice(0, 60)}`);
      }
    }
    const { status, error } = await server.emit(task, provider, "x", { kind: "video" });
    assert.deepEqual([status, error.code, error.field], [422, "VALIDATION_ERROR", "kind"]);
    const now = await server.ok("GET", `/api/v1/tasks/${task.id}`, { key: client.key });
    assert.equal(now.status, "pending", "a refused chunk begins nothing (R48)");
    assert.deepEqual(await log(server, client, task), []);
  });

  test("R47: 64 KiB are counted in bytes, and may be filled", async () => {
    const { server, connections } = world;
    const { provider, task } = await cast(server);
    const paths = await emitters(connections, server, provider);
    const contents = ["x".repeat(65_536), "é".repeat(32_768), "😀".repeat(16_384)];
    let seq = 0;
    for (const [name, path] of Object.entries(paths)) {
      for (const content of contents) assert.deepEqual(await path(task, { content }), { seq: ++seq }, name);
    }
    const seen = await log(server, provider, task);
    assert.ok(seen.every((chunk, n) => chunk.content === contents[n % 3]));
  });

  test("R47: lone surrogates are replaced on every path, everything else arrives as it was sent", async () => {
    const { server, connections } = world;
    const { provider, task } = await cast(server);
    const paths = await emitters(connections, server, provider);
    const contents = [
      ["a\ud800b", "a\ufffdb"],
      ["\udc00\ud800", "\ufffd\ufffd"],
      ["\ud83d\ude00", "😀"],
      ["\ud83d", "\ufffd"],
      ["\u0000\u0001\u007f\u2028\u2029\ufeff\\ud800\\", "\u0000\u0001\u007f\u2028\u2029\ufeff\\ud800\\"],
      [" \r\n\t", " \r\n\t"],
      ["__proto__", "__proto__"],
    ];
    const reader = await connections.reader(server, provider, task);
    for (const path of Object.values(paths)) {
      for (const [content] of contents) assert.ok((await path(task, { content })).seq, JSON.stringify(content));
    }
    await until("all chunks", () => reader.chunks.length === 3 * contents.length);
    assert.deepEqual(reader.chunks.map((chunk) => chunk.content), [1, 2, 3].flatMap(() => contents.map(([, want]) => want)));
  });

  test("R48: the first chunk begins the task, in the timeline too", async () => {
    const { server, connections } = world;
    const { client, provider } = await cast(server);
    const paths = await emitters(connections, server, provider);
    for (const [name, path] of Object.entries(paths)) {
      const task = await server.task(client, provider);
      assert.equal(task.status, "pending");
      await path(task, { content: "x" });
      assert.equal((await server.ok("GET", `/api/v1/tasks/${task.id}`, { key: client.key })).status, "in_progress", name);
      await path(task, { content: "y" });
      const timeline = await server.ok("GET", `/api/v1/tasks/${task.id}/timeline`, { key: client.key });
      assert.deepEqual(timeline.map((entry) => entry.event), ["task_created", "task_started"], name);
    }
  });

  test("R48: a task that has ended takes no chunk, on any path, and says in which state it is", async () => {
    const { server, connections } = world;
    const { client, provider } = await cast(server);
    const paths = await emitters(connections, server, provider);
    const endings = {
      completed: (task) => complete(server, provider, task),
      failed: (task) => server.ok("PUT", `/api/v1/tasks/${task.id}/fail`, { key: provider.key, body: {} }),
      cancelled: (task) => server.ok("POST", `/api/v1/tasks/${task.id}/cancel`, { key: client.key, body: {} }),
    };
    for (const [status, end] of Object.entries(endings)) {
      const task = await server.task(client, provider);
      await server.emit(task, provider, "in time");
      await end(task);
      for (const path of Object.values(paths)) {
        assert.deepEqual(await path(task, { content: "late" }), { reason: "task_not_active", status });
      }
      const answer = await server.emit(task, provider, "late");
      assert.deepEqual([answer.status, answer.error.code], [409, "TASK_NOT_ACTIVE"]);
      assert.deepEqual((await log(server, client, task)).map((chunk) => chunk.content), ["in time"]);
    }
  });

  test("R41: completing, failing and cancelling each end the stream once, and nothing follows", async () => {
    const { server, connections } = world;
    const { user, client, provider } = await cast(server);
    const channel = await connections.agent(server, provider);
    const error = { type: "out_of_tokens", message: "sorry", details: { left: 0 } };
    const cases = [
      ["PUT", "complete", provider, { output: { answer: [42] } }, "stream.done", { result: { answer: [42] } }],
      ["PUT", "complete", provider, {}, "stream.done", { result: null }],
      ["PUT", "fail", provider, { error }, "stream.error", { error }],
      ["PUT", "fail", provider, { error_reason: "broke" }, "stream.error", { error: { type: "failed", message: "broke" } }],
      ["POST", "cancel", client, {}, "stream.error", { error: { type: "cancelled" } }],
      ["POST", "cancel", client, { reason: "no need" }, "stream.error", { error: { type: "cancelled", message: "no need" } }],
    ];
    for (const [method, verb, who, body, event, payload] of cases) {
      const task = await server.task(client, provider);
      await server.emit(task, provider, "one");
      const readers = [await connections.reader(server, user, task), await connections.reader(server, provider, task)];
      await server.ok(method, `/api/v1/tasks/${task.id}/${verb}`, { key: who.key, body });
      for (const reader of readers) {
        await until("the end", () => reader.ends.length > 0);
        await emit(channel, task, "too late");
        await server.request(method, `/api/v1/tasks/${task.id}/${verb}`, { key: who.key, body });
        await push(reader.channel, "anything", {});
        assert.deepEqual(reader.ends, [{ event, payload, after: 1 }], verb);
        assert.deepEqual(reader.seqs(), [1]);
      }
    }
  });

  test("R41 R48: chunks that race with the end are before it or refused", async () => {
    const { server, connections } = world;
    const { user, client, provider } = await cast(server);
    const channel = await connections.agent(server, provider);
    for (let round = 0; round < 5; round++) {
      const task = await server.task(client, provider);
      const reader = await connections.reader(server, user, task);
      const racing = range(1, 300).map((n) => emit(channel, task, `${n}`));
      await racing[20 * round];
      await complete(server, provider, task, "end");
      const replies = await Promise.all(racing);
      const taken = replies.filter((reply) => reply.status === "ok").map((reply) => reply.response.seq);
      const turnedAway = replies.filter((reply) => reply.status !== "ok");
      assert.ok(turnedAway.every((reply) => reply.response.reason === "task_not_active"), JSON.stringify(turnedAway[0]));
      await until("the end", () => reader.ends.length > 0);
      assert.deepEqual(taken, range(1, taken.length));
      assert.deepEqual(reader.seqs(), taken);
      assert.deepEqual(reader.ends, [{ event: "stream.done", payload: { result: "end" }, after: taken.length }]);
      assert.equal((await log(server, client, task)).length, taken.length);
    }
  });

  test("R42: who joins after the end gets everything, and then the end", async () => {
    const { server, connections } = world;
    const { user, provider, task } = await cast(server);
    for (const n of range(1, 5)) await server.emit(task, provider, `${n}`);
    await complete(server, provider, task, "all");
    const plain = await connections.reader(server, user, task);
    const resumed = await connections.reader(server, user, task, { after_seq: 3 });
    const done = await connections.reader(server, user, task, { after_seq: 5 });
    for (const [reader, seqs] of [[plain, range(1, 5)], [resumed, [4, 5]], [done, []]]) {
      await until("the end", () => reader.ends.length > 0);
      assert.deepEqual(reader.seqs(), seqs);
      assert.deepEqual(reader.ends, [{ event: "stream.done", payload: { result: "all" }, after: seqs.length }]);
    }
  });
});

onNode("order", [], (world) => {
  test("R39 R49 R50 R51: three paths in turn give one gap-free seq from 1", async () => {
    const { server, connections } = world;
    const { user, client, provider, task } = await cast(server);
    const mcp = await connections.mcp(server, provider);
    const tool = (await mcp.listTools()).tools.find(({ name }) => name === "task_emit_chunk");
    assert.deepEqual(tool.inputSchema.required.toSorted(), ["content", "task_id"]);
    assert.ok(["task_id", "content", "kind"].every((name) => name in tool.inputSchema.properties));
    const overRest = await server.emit(task, provider, "a");
    assert.deepEqual([overRest.status, overRest.data], [202, { seq: 1 }]);
    const result = await mcp.callTool({ name: "task_emit_chunk", arguments: { task_id: task.id, content: "b", kind: "chat" } });
    assert.match(result.content[0].text, /\b2\b/);

    const paths = Object.values(await emitters(connections, server, provider));
    for (const n of range(3, 60)) assert.deepEqual(await paths[n % 3](task, { content: `${n}` }), { seq: n });
    const other = await server.task(client, provider);
    assert.deepEqual(await paths[0](other, { content: "x" }), { seq: 1 }, "each task counts for itself");
    const reader = await connections.reader(server, user, task);
    await until("all chunks", () => reader.chunks.length === 60);
    assert.deepEqual(reader.seqs(), range(1, 60));
    assert.deepEqual(reader.chunks.slice(2).map((chunk) => chunk.content), range(3, 60).map(String));
  });

  test("R37 R39 R51: three paths at once share one gap-free seq, and each answer names its own chunk", async () => {
    const { server, connections } = world;
    const { user, client, provider, task } = await cast(server);
    const paths = await emitters(connections, server, provider);
    const reader = await connections.reader(server, user, task);
    const emitted = Object.entries(paths).flatMap(([name, path]) =>
      range(1, 60).map(async (n) => ({ content: `${name} ${n}`, seq: (await path(task, { content: `${name} ${n}` })).seq })),
    );
    const answers = await Promise.all(emitted);
    assert.deepEqual(answers.map(({ seq }) => seq).toSorted((a, b) => a - b), range(1, 180));
    await until("all chunks", () => reader.chunks.length === 180);
    assert.deepEqual(reader.seqs(), range(1, 180));
    for (const { content, seq } of answers) assert.equal(reader.chunks[seq - 1].content, content);
    assert.deepEqual(await log(server, client, task), reader.chunks);
    // One socket's pushes keep their order.
    const overChannel = reader.chunks.filter(({ content }) => content.startsWith("channel")).map(({ content }) => Number(content.split(" ")[1]));
    assert.deepEqual(overChannel, range(1, 60));
  });

  test("R37: chunks that land during a join are neither missed nor doubled", async () => {
    const { server, connections } = world;
    const { user, client, provider, task } = await cast(server);
    const channel = await connections.agent(server, provider);
    const [total, joiners] = [3_000, 40];
    let emitted = 0;
    const producing = emitMany(channel, task, 1, total, { atOnce: 100, content: (n) => `${(emitted = n)}` });
    const mounts = [["/socket/hirer", user.token], ["/socket/agent", client.key]];
    const sockets = await Promise.all(range(1, joiners).map((n) => connections.socket(server, ...mounts[n % 2])));
    const readers = await Promise.all(
      sockets.map(async (socket, n) => {
        await until("the producer is there", () => emitted >= (n * total) / joiners);
        return connections.follow(socket, task);
      }),
    );
    await producing;
    await complete(server, provider, task);
    for (const reader of readers) {
      await until("the end", () => reader.ends.length > 0);
      assert.deepEqual(reader.seqs(), range(1, total));
      assert.deepEqual(reader.ends.map((end) => end.after), [total]);
    }
    const midway = readers.filter((reader) => reader.joined.response.seq > 0 && reader.joined.response.seq < total);
    assert.ok(midway.length > joiners / 2, `${midway.length} joins fell into the stream`);
  });

  test("R37 R45: readers that come and go disturb nobody", async () => {
    const { server, connections } = world;
    const { user, provider, task } = await cast(server);
    const channel = await connections.agent(server, provider);
    const constant = await connections.reader(server, user, task);
    let over = false;
    const visiting = range(1, 5).map(async () => {
      const socket = await connections.socket(server, "/socket/hirer", user.token);
      let visits = 0;
      for (; !over || visits === 0; visits++) {
        const reader = await connections.follow(socket, task);
        const upto = reader.joined.response.seq;
        await until("its replay", () => reader.chunks.length >= upto);
        assert.deepEqual(reader.seqs(), range(1, reader.chunks.length));
        await new Promise((resolve) => reader.channel.leave().receive("ok", resolve));
      }
    });
    const seqs = await emitMany(channel, task, 1, 1_500, { atOnce: 50 });
    over = true;
    await Promise.all(visiting);
    assert.deepEqual(seqs, range(1, 1_500));
    await until("all chunks", () => constant.chunks.length === 1_500);
    assert.deepEqual(constant.seqs(), range(1, 1_500));
  });
});

onNode("a small memory", ["limits.stream_buffer_chunks_max=10", "limits.stream_read_bytes_max=2048"], (world) => {
  test("R36 R43 R44: a plain join replays what memory holds, after_seq reaches the rest", async () => {
    const { server, connections } = world;
    const { user, client, provider, task } = await cast(server);
    const channel = await connections.agent(server, provider);
    await emitMany(channel, task, 1, 100);
    const cases = [
      [{}, { seq: 100, first_seq: 91, status: "in_progress", truncated: true }, range(91, 100)],
      [{ after_seq: null }, { seq: 100, first_seq: 91, status: "in_progress", truncated: true }, range(91, 100)],
      [{ after_seq: 0 }, { seq: 100, first_seq: 1, status: "in_progress", truncated: false }, range(1, 100)],
      [{ after_seq: 37 }, { seq: 100, first_seq: 38, status: "in_progress", truncated: false }, range(38, 100)],
      [{ after_seq: 90 }, { seq: 100, first_seq: 91, status: "in_progress", truncated: false }, range(91, 100)],
      [{ after_seq: 99 }, { seq: 100, first_seq: 100, status: "in_progress", truncated: false }, [100]],
      [{ after_seq: 100 }, { seq: 100, first_seq: 0, status: "in_progress", truncated: false }, []],
    ];
    const readers = [];
    for (const [params, response, seqs] of cases) {
      const reader = await connections.reader(server, user, task, params);
      assert.deepEqual(reader.joined, { status: "ok", response }, JSON.stringify(params));
      readers.push([reader, seqs]);
    }
    await emitMany(channel, task, 101, 110);
    for (const [reader, seqs] of readers) {
      await until("all chunks", () => reader.chunks.at(-1)?.seq === 110);
      assert.deepEqual(reader.seqs(), [...seqs, ...range(101, 110)]);
    }
    assert.equal((await log(server, client, task)).length, 110);
  });

  test("R44: a cursor that is none is refused, and the socket goes on", async () => {
    const { server, connections } = world;
    const { user, task } = await cast(server);
    const socket = await connections.socket(server, "/socket/hirer", user.token);
    for (const after_seq of [-1, 1.5, "1", true, {}, 1e300]) {
      const { channel, joined } = await connections.follow(socket, task, { after_seq });
      assert.equal(joined.status, "error", String(after_seq));
      assert.equal(joined.response.reason, "invalid_payload", String(after_seq));
      channel.leave();
    }
    assert.equal(socket.isConnected(), true);
    assert.equal((await connections.follow(socket, task)).joined.status, "ok");
  });

  test("R44: after_seq replays nothing up to it, not even when the stream has not come that far", async () => {
    const { server, connections } = world;
    const { user, provider, task } = await cast(server);
    const channel = await connections.agent(server, provider);
    await emitMany(channel, task, 1, 3);
    const ahead = await connections.reader(server, user, task, { after_seq: 5 });
    assert.equal(ahead.joined.status, "ok");
    await emitMany(channel, task, 4, 8);
    await until("the newest", () => ahead.chunks.at(-1)?.seq === 8);
    assert.deepEqual(ahead.seqs(), [6, 7, 8]);
  });

  test("R37 R43 R44: readers that catch up from the store while chunks arrive see each once, in order", async () => {
    const { server, connections } = world;
    const { user, provider, task } = await cast(server);
    const channel = await connections.agent(server, provider);
    const total = 2_000;
    let emitted = 0;
    const producing = emitMany(channel, task, 1, total, { atOnce: 100, content: (n) => `${(emitted = n)}` });
    const readers = await Promise.all(
      range(1, 20).map(async (n) => {
        await until("the producer is there", () => emitted >= n * 90);
        const after_seq = n % 2 ? 0 : n * 40;
        return { reader: await connections.reader(server, user, task, { after_seq }), after_seq };
      }),
    );
    await producing;
    for (const { reader, after_seq } of readers) {
      await until("all chunks", () => reader.chunks.at(-1)?.seq === total);
      assert.deepEqual(reader.seqs(), range(after_seq + 1, total));
    }
  });

  test("R44: a reader whose connection breaks again and again misses nothing and sees nothing twice", async () => {
    const { server, connections } = world;
    const { user, provider, task } = await cast(server);
    const channel = await connections.agent(server, provider);
    let last = 0;
    const reader = await connections.reader(server, user, task, () => ({ after_seq: last }));
    reader.channel.on("stream.chunk", (chunk) => (last = chunk.seq));
    let joins = 0;
    reader.channel.joinPush.receive("ok", () => joins++);
    const producing = emitMany(channel, task, 1, 1_500, { atOnce: 25 });
    for (const breakAt of [200, 500, 900, 1_200]) {
      await until("it has come so far", () => last >= breakAt);
      reader.socket.conn.close();
      const before = joins;
      await until("it is back", () => joins > before);
    }
    await producing;
    await until("all chunks", () => last === 1_500);
    assert.deepEqual(reader.seqs(), range(1, 1_500));
  });

  test("R37 R52: the same keys many times at once are one chunk each, though memory holds none, and readers see what is stored", async () => {
    const { server, connections } = world;
    const { user, client, provider, task } = await cast(server);
    const reader = await connections.reader(server, user, task, { after_seq: 0 });
    const channel = await connections.agent(server, provider);
    for (let round = 0; round < 20; round++) {
      const keys = range(1, 20).map((n) => `${round}-${n}`);
      const sent = [...keys, ...keys, ...keys].map((key) => emit(channel, task, key, { idempotency_key: key }));
      for (const answer of await Promise.all(sent)) assert.equal(answer.status, "ok", JSON.stringify(answer));
    }
    const stored = await log(server, client, task);
    assert.deepEqual([stored.length, new Set(stored.map((chunk) => chunk.content)).size], [400, 400]);
    await until("the reader has all", () => reader.chunks.length >= 400);
    assert.deepEqual(reader.chunks.map((chunk) => [chunk.seq, chunk.content]), stored.map((chunk) => [chunk.seq, chunk.content]));
  });

  test("R52: a key is known after its chunk has left memory", async () => {
    const { server, connections } = world;
    const { client, provider, task } = await cast(server);
    const paths = await emitters(connections, server, provider);
    assert.deepEqual(await paths.rest(task, { content: "first", idempotency_key: "k1" }), { seq: 1 });
    const channel = await connections.agent(server, provider);
    await emitMany(channel, task, 2, 60);
    for (const path of Object.values(paths)) {
      assert.deepEqual(await path(task, { content: "first", idempotency_key: "k1" }), { seq: 1 });
    }
    assert.equal((await log(server, client, task)).length, 60);
  });
});

onNode("memory by bytes", ["limits.stream_buffer_bytes_max=20000"], (world) => {
  test("R43: memory is bounded by bytes too, and the store has what it let go", async () => {
    const { server, connections } = world;
    const { user, client, provider, task } = await cast(server);
    const channel = await connections.agent(server, provider);
    await emitMany(channel, task, 1, 50, { content: () => "x".repeat(2_000) });
    const plain = await connections.reader(server, user, task);
    const { first_seq, truncated } = plain.joined.response;
    assert.equal(truncated, true);
    assert.ok(first_seq > 40 && first_seq <= 50, `${first_seq}`);
    const whole = await connections.reader(server, user, task, { after_seq: 0 });
    await until("all chunks", () => whole.chunks.length === 50 && plain.chunks.length === 51 - first_seq);
    assert.deepEqual(plain.seqs(), range(first_seq, 50));
    assert.deepEqual(whole.seqs(), range(1, 50));
    assert.ok((await metric(server, "muster_stream_memory_bytes")) <= 20_000);
    assert.equal((await log(server, client, task)).length, 50);
  });

  test("R42 R43: a chunk larger than memory may be is replayed from the store, and the end is told", async () => {
    const { server, connections } = world;
    const { user, client, provider, task } = await cast(server);
    await server.emit(task, provider, "x".repeat(60_000));
    await complete(server, provider, task, "end");
    const reader = await connections.reader(server, user, task, { after_seq: 0 });
    await until("the end", () => reader.ends.length > 0);
    assert.deepEqual([reader.seqs(), reader.ends.length], [[1], 1]);
    const part = await server.ok("GET", `/api/v1/tasks/${task.id}/stream?after=0`, { key: client.key });
    assert.deepEqual([part.chunks.length, part.more, part.status], [1, false, "completed"]);
    assert.equal(part.result, "end", "this is the end, so the part says how the task ended");
  });
});

// A token a second, so that what is taken besides the burst can be counted by the clock.
onNode("rates", [`limits.chunks_per_stream=${rate(10, 1)}`, `limits.chunks_per_agent=${rate(100_000)}`], (world) => {
  test("R46: over a stream's rate a push answers rate_limited with a wait that is enough, and nothing is closed", async () => {
    const { server, connections } = world;
    const { client, provider, task } = await cast(server);
    const channel = await connections.agent(server, provider);
    const begun = Date.now();
    const replies = await Promise.all(range(1, 25).map((n) => emit(channel, task, `${n}`)));
    const most = 10 + (Date.now() - begun) / 1_000;
    const taken = replies.filter((reply) => reply.status === "ok");
    const over = replies.filter((reply) => reply.status === "error");
    assert.ok(taken.length >= 10 && taken.length <= most, `${taken.length} taken, of ${most} at most`);
    assert.deepEqual(taken.map((reply) => reply.response.seq), range(1, taken.length), "refused chunks take no seq");
    for (const { response } of over) {
      assert.equal(response.reason, "rate_limited");
      const { retry_after_ms: wait } = response;
      assert.ok(Number.isInteger(wait) && wait > 0 && wait <= 2_500, `${wait}`);
    }
    assert.equal(channel.socket.isConnected(), true);
    assert.equal(channel.state, "joined");
    // The bucket is the stream's own.
    const other = await server.task(client, provider);
    assert.equal((await emit(channel, other, "x")).status, "ok");
    const refusal = await emit(channel, task, "now");
    await sleep(refusal.status === "ok" ? 0 : refusal.response.retry_after_ms);
    assert.equal((await emit(channel, task, "again")).status, "ok");
  });

  test("R46 R49 R50: over the rate REST answers 429 with Retry-After, and MCP an error", async () => {
    const { server, connections } = world;
    const { provider, task } = await cast(server);
    const mcp = await connections.mcp(server, provider);
    const begun = Date.now();
    const answers = await Promise.all(range(1, 20).map((n) => server.emit(task, provider, `${n}`)));
    const over = answers.filter((answer) => answer.status !== 202);
    const least = 10 - (Date.now() - begun) / 1_000;
    assert.ok(over.length >= least && over.length <= 10, `${over.length} refused, of ${least} at least`);
    for (const { status, error, headers } of over) {
      assert.deepEqual([status, error.code, error.details.reason], [429, "RATE_LIMIT_EXCEEDED", "rate_limited"]);
      assert.ok(error.details.retry_after_ms > 0);
      assert.match(headers.get("retry-after"), /^[1-9]\d*$/);
      assert.ok(Number(headers.get("retry-after")) * 1_000 >= error.details.retry_after_ms);
    }
    const calls = await Promise.all(range(1, 20).map(() => mcp.callTool({ name: "task_emit_chunk", arguments: { task_id: task.id, content: "x" } })));
    const refusals = calls.filter((call) => call.isError).map((call) => JSON.parse(call.content[0].text));
    assert.ok(refusals.length > 0, "the same bucket");
    assert.ok(refusals.every(({ reason, retry_after_ms }) => reason === "rate_limited" && retry_after_ms > 0));
  });

  test("R46 R48: a first chunk over the rate begins nothing", async () => {
    const { server } = world;
    const { client, provider, task } = await cast(server);
    const answers = await Promise.all(range(1, 20).map((n) => server.emit(task, provider, `${n}`)));
    assert.ok(answers.some((answer) => answer.status === 429));
    const seen = await log(server, client, task);
    assert.equal(seen.length, answers.filter((answer) => answer.status === 202).length);
    assert.deepEqual(seen.map((chunk) => chunk.seq), range(1, seen.length));
  });
});

onNode("rates of agents", [`limits.chunks_per_agent=${rate(10, 1)}`], (world) => {
  test("R46: an agent's rate covers all its streams and paths, and nobody else's", async () => {
    const { server, connections } = world;
    const { client, provider, task } = await cast(server);
    const [other, second] = [await server.agent(), await server.task(client, provider)];
    const othersTask = await server.task(client, other);
    const paths = await emitters(connections, server, provider);
    const begun = Date.now();
    const answers = await Promise.all(range(1, 30).map((n) => Object.values(paths)[n % 3](n % 2 ? task : second, { content: `${n}` })));
    const most = 10 + (Date.now() - begun) / 1_000;
    const taken = answers.filter((answer) => answer.seq);
    assert.ok(taken.length >= 10 && taken.length <= most, `${taken.length} taken, of ${most} at most`);
    assert.ok(answers.filter((answer) => !answer.seq).every((answer) => answer.reason === "rate_limited" && answer.retry_after_ms > 0));
    assert.equal((await server.emit(othersTask, other, "x")).status, 202);
  });
});

describe("as delivered", () => {
  const config = () => spawnSync(binary(), ["config"], { encoding: "utf8", env: { PATH: process.env.PATH } }).stdout;

  test("R42 R43 R45 R46 R47: the defaults are those of the specification", () => {
    const value = (name) => config().match(new RegExp(`^${name} = (.*)$`, "m"))?.[1];
    const wanted = {
      ack: '"durable"',
      finished_replay_ms: 600_000,
      retention_ms: 86_400_000,
      stream_buffer_chunks_max: 10_000,
      stream_buffer_bytes_max: 4 * 1_048_576,
      outbound_queue_bytes_max: 1_048_576,
      reader_stall_timeout_ms: 30_000,
      chunk_content_bytes_max: 65_536,
    };
    for (const [name, want] of Object.entries(wanted)) assert.equal(value(name), String(want), name);
  });

  test("R46: the defaults are 200/s with a burst of 400 for a stream, 2,000/s with 4,000 for an agent", async () => {
    const section = (name) => {
      const lines = config().split(`[limits.${name}]`)[1].split("[")[0];
      return Object.fromEntries([...lines.matchAll(/(\w+) = (\d+)/g)].map(([, key, value]) => [key, Number(value)]));
    };
    assert.deepEqual(section("chunks_per_stream"), { tokens: 200, period_ms: 1_000, burst: 400 });
    assert.deepEqual(section("chunks_per_agent"), { tokens: 2_000, period_ms: 1_000, burst: 4_000 });
    const server = await Server.start();
    const connections = new Connections();
    try {
      const { provider, task } = await cast(server);
      const channel = await connections.agent(server, provider);
      const begun = Date.now();
      const replies = await Promise.all(range(1, 900).map((n) => emit(channel, task, `${n}`)));
      const taken = replies.filter((reply) => reply.status === "ok").length;
      const seconds = (Date.now() - begun) / 1_000;
      assert.ok(taken >= 400 && taken <= 402 + 200 * seconds, `${taken} taken in ${seconds} s`);
      assert.ok(replies.every((reply) => reply.status === "ok" || reply.response.reason === "rate_limited"));
    } finally {
      await connections.close();
      await server.end();
    }
  });
});

onNode("keys", [], (world) => {
  test("R52: the same key is the same chunk, whichever path it comes by", async () => {
    const { server, connections } = world;
    const { user, client, provider, task } = await cast(server);
    const paths = await emitters(connections, server, provider);
    const reader = await connections.reader(server, user, task);
    let seq = 0;
    for (const first of Object.keys(paths)) {
      const chunk = { content: `first by ${first}`, idempotency_key: `key of ${first}` };
      seq++;
      assert.deepEqual(await paths[first](task, chunk), { seq });
      for (const path of Object.values(paths)) assert.deepEqual(await path(task, { ...chunk, content: "retried" }), { seq });
    }
    await until("the chunks", () => reader.chunks.length === 3);
    assert.equal((await paths.rest(task, { content: "unnamed" })).seq, 4);
    assert.equal((await paths.rest(task, { content: "unnamed" })).seq, 5, "without a key nothing is the same");
    const contents = (await log(server, client, task)).map((chunk) => chunk.content);
    assert.deepEqual(contents, ["first by rest", "first by channel", "first by mcp", "unnamed", "unnamed"]);
    await until("the chunks", () => reader.chunks.length === 5);
    assert.deepEqual(reader.seqs(), range(1, 5));
  });

  test("R52: X-Idempotency-Key is a key as the field is, and both name the same chunk", async () => {
    const { server } = world;
    const { provider, task } = await cast(server);
    const send = (key, body = { content: "x" }) =>
      server.request("POST", `/api/v1/tasks/${task.id}/chunk`, { key: provider.key, body, headers: { "x-idempotency-key": key } });
    assert.equal((await send("a")).data.seq, 1);
    assert.equal((await send("a")).data.seq, 1);
    assert.equal((await server.emit(task, provider, "x", { idempotency_key: "a" })).data.seq, 1);
    assert.equal((await send("b")).data.seq, 2);
    const long = await send("k".repeat(129));
    assert.deepEqual([long.status, long.error.code], [422, "VALIDATION_ERROR"]);
    assert.equal((await send("k".repeat(128))).data.seq, 3);
  });

  test("R52: a key belongs to its task", async () => {
    const { server } = world;
    const { client, provider, task } = await cast(server);
    const other = await server.task(client, provider);
    await server.emit(task, provider, "1");
    assert.equal((await server.emit(task, provider, "x", { idempotency_key: "k" })).data.seq, 2);
    assert.equal((await server.emit(other, provider, "y", { idempotency_key: "k" })).data.seq, 1);
  });

  test("R52: the same key many times at once is one chunk", async () => {
    const { server, connections } = world;
    const { client, provider, task } = await cast(server);
    const paths = Object.values(await emitters(connections, server, provider));
    for (const key of ["k1", "k2", "k3"]) {
      const answers = await Promise.all(range(1, 30).map((n) => paths[n % 3](task, { content: key, idempotency_key: key })));
      assert.equal(new Set(answers.map((answer) => answer.seq)).size, 1, JSON.stringify(answers));
    }
    assert.deepEqual((await log(server, client, task)).map((chunk) => chunk.content), ["k1", "k2", "k3"]);
  });

  test("R48 R52: a retry that arrives after the task's end is answered with its seq; a new chunk is not", async () => {
    const { server, connections } = world;
    const { provider, task } = await cast(server);
    await server.emit(task, provider, "x", { idempotency_key: "k" });
    await complete(server, provider, task);
    const paths = await emitters(connections, server, provider);
    for (const path of Object.values(paths)) {
      assert.deepEqual(await path(task, { content: "x", idempotency_key: "k" }), { seq: 1 });
      assert.equal((await path(task, { content: "x", idempotency_key: "new" })).reason, "task_not_active");
    }
  });
});

describe("over lives of the node", () => {
  test("R43 R46 R52 R166: what was acknowledged is there after kill -9, and retried keys double nothing", async () => {
    const server = await Server.start({ set: ROOMY });
    try {
      const { user, client, provider, task } = await cast(server);
      const seqOf = new Map();
      let next = 1;
      let sent = new Set();
      const lives = 10;
      for (let life = 1; life <= lives; life++) {
        const connections = new Connections();
        const channel = await connections.agent(server, provider);
        // What was sent and not acknowledged before is sent again first, in its order.
        const queue = [...range(1, next - 1).filter((n) => !seqOf.has(n)), ...range(next, next + 399)];
        let acknowledged = 0;
        const pushing = queue.map(async (n) => {
          sent.add(n);
          const reply = await emit(channel, task, `${n}`, { idempotency_key: `k${n}` });
          if (reply.status !== "ok") return;
          assert.ok(!seqOf.has(n) || seqOf.get(n) === reply.response.seq);
          seqOf.set(n, reply.response.seq);
          // Right behind an acknowledgement: what it promised has to be true by now.
          if (++acknowledged === 37 * life && life < lives) server.process.kill("SIGKILL");
        });
        next += 400;
        if (life === lives) {
          await Promise.all(pushing);
          await server.kill();
        }
        await server.exited;
        await connections.close();
        await server.startAgain();
        const stored = await log(server, client, task);
        assert.deepEqual(stored.map((chunk) => chunk.seq), range(1, stored.length));
        for (const [n, seq] of seqOf) assert.equal(stored[seq - 1]?.content, `${n}`);
        assert.equal(new Set(stored.map((chunk) => chunk.content)).size, stored.length, "nothing is doubled");
      }
      assert.equal(seqOf.size, sent.size);
      const connections = new Connections();
      const reader = await connections.reader(server, user, task);
      await until("the replay", () => reader.chunks.length === seqOf.size);
      assert.deepEqual(reader.seqs(), range(1, seqOf.size));
      // Keys and seq go on in a new life.
      const paths = await emitters(connections, server, provider);
      for (const path of Object.values(paths)) assert.deepEqual(await path(task, { content: "x", idempotency_key: "k1" }), { seq: seqOf.get(1) });
      assert.deepEqual(await paths.rest(task, { content: "new" }), { seq: seqOf.size + 1 });
      await connections.close();
    } finally {
      await server.end();
    }
  });

  test("R41 R42 R166: how a task ended survives kill -9", async () => {
    const server = await Server.start({ set: ROOMY });
    const connections = new Connections();
    try {
      const { user, client, provider, task } = await cast(server);
      const [failed, cancelled] = [await server.task(client, provider), await server.task(client, provider)];
      for (const one of [task, failed, cancelled]) await server.emit(one, provider, "x");
      await complete(server, provider, task, { sum: 3 });
      await server.ok("PUT", `/api/v1/tasks/${failed.id}/fail`, { key: provider.key, body: { error: { type: "t", n: 1 } } });
      await server.ok("POST", `/api/v1/tasks/${cancelled.id}/cancel`, { key: client.key, body: {} });
      await server.kill();
      await server.startAgain();
      const ends = [
        [task, "stream.done", { result: { sum: 3 } }],
        [failed, "stream.error", { error: { type: "t", n: 1 } }],
        [cancelled, "stream.error", { error: { type: "cancelled" } }],
      ];
      for (const [one, event, payload] of ends) {
        const reader = await connections.reader(server, user, one);
        await until("the end", () => reader.ends.length > 0);
        assert.deepEqual(reader.ends, [{ event, payload, after: 1 }]);
        assert.equal((await server.emit(one, provider, "late")).status, 409);
      }
    } finally {
      await connections.close();
      await server.end();
    }
  });

  test("R46: stream.ack = memory acknowledges with the same seqs, and an orderly end loses nothing", async () => {
    const server = await Server.start({ set: [...ROOMY, "stream.ack=memory"] });
    const connections = new Connections();
    try {
      const { user, client, provider, task } = await cast(server);
      const channel = await connections.agent(server, provider);
      const reader = await connections.reader(server, user, task);
      assert.deepEqual(await emitMany(channel, task, 1, 500), range(1, 500));
      assert.equal((await emit(channel, task, "k", { idempotency_key: "k" })).response.seq, 501);
      assert.equal((await emit(channel, task, "k", { idempotency_key: "k" })).response.seq, 501);
      await until("all chunks", () => reader.chunks.length === 501);
      await connections.close();
      assert.equal((await server.stop()).code, 0);
      await server.startAgain();
      assert.deepEqual((await log(server, client, task)).map((chunk) => chunk.seq), range(1, 501));
      assert.equal((await server.emit(task, provider, "k", { idempotency_key: "k" })).data.seq, 501);
    } finally {
      await connections.close();
      await server.end();
    }
  });

  test("R42: once the store has dropped a finished stream, a join says truncated and tells the end", async () => {
    const server = await Server.start({ set: [...ROOMY, "stream.retention_ms=1"] });
    const connections = new Connections();
    try {
      const { user, client, provider, task } = await cast(server);
      const running = await server.task(client, provider);
      for (const one of [task, task, running]) await server.emit(one, provider, "x", { idempotency_key: String(Math.random()) });
      await complete(server, provider, task, "kept");
      // Old streams are dropped soon after a start.
      await server.kill();
      await server.startAgain();
      await until("the stream is dropped", () => server.logs.includes("dropped what is not kept"));
      for (const params of [{}, { after_seq: 0 }, { after_seq: 1 }]) {
        const reader = await connections.reader(server, user, task, params);
        assert.deepEqual(reader.joined.response, { seq: 0, first_seq: 0, status: "completed", truncated: true }, JSON.stringify(params));
        await until("the end", () => reader.ends.length > 0);
        assert.deepEqual(reader.ends, [{ event: "stream.done", payload: { result: "kept" }, after: 0 }]);
      }
      const still = await connections.reader(server, user, running);
      assert.deepEqual(still.joined.response, { seq: 1, first_seq: 1, status: "in_progress", truncated: false });
    } finally {
      await connections.close();
      await server.end();
    }
  });
});

onNode("crash drills", ["drills.enabled=true"], (world) => {
  const crash = (task) => world.server.ok("POST", `/api/v1/admin/drills/streams/${task.id}/crash`, { token: world.server.adminToken });

  test("R3 R37 R46: readers of a crashed stream are told, come back, and miss nothing", async () => {
    const { server, connections } = world;
    const { user, client, provider, task } = await cast(server);
    const neighbourTask = await server.task(client, provider);
    await server.emit(neighbourTask, provider, "x");
    const channel = await connections.agent(server, provider);
    let last = 0;
    const reader = await connections.reader(server, user, task, () => ({ after_seq: last }));
    reader.channel.on("stream.chunk", (chunk) => (last = chunk.seq));
    const neighbour = await connections.follow(reader.socket, neighbourTask);
    let total = 0;
    for (let round = 1; round <= 3; round++) {
      await emitMany(channel, task, total + 1, total + 50);
      total += 50;
      await until("the chunks", () => last === total);
      await crash(task);
      await until("the crash is told", () => reader.errors.length === round);
      assert.deepEqual(await emit(channel, task, "after"), { status: "ok", response: { seq: ++total } });
      await until("the reader is back", () => last === total);
    }
    assert.deepEqual(reader.seqs(), range(1, total));
    assert.equal(reader.errors[0].reason, "channel_crash");
    assert.deepEqual((await log(server, client, task)).map((chunk) => chunk.seq), range(1, total));
    assert.deepEqual([neighbour.errors, neighbour.channel.state, reader.socket.recorded.closes], [[], "joined", []]);
  });

  test("R39 R46 R52: a producer that retries in order through crashes loses nothing and doubles nothing", async () => {
    const { server, connections } = world;
    const { user, client, provider, task } = await cast(server);
    const channel = await connections.agent(server, provider);
    let last = 0;
    const reader = await connections.reader(server, user, task, () => ({ after_seq: last }));
    reader.channel.on("stream.chunk", (chunk) => (last = chunk.seq));
    const total = 400;
    let [over, crashes] = [false, 0];
    const crashing = (async () => {
      while (!over) {
        const from = last;
        await crash(task);
        crashes++;
        await until("the stream goes on", () => over || last > from + 10);
      }
    })();
    for (const n of range(1, total)) {
      // However quick it is, it meets three crashes at least.
      if (n === 100 || n === 200 || n === 300) await until("a crash", () => crashes >= n / 100);
      const chunk = { content: `${n}`, idempotency_key: `k${n}` };
      await until(`chunk ${n} is taken`, async () => {
        const reply = await emit(channel, task, chunk.content, chunk);
        assert.ok(reply.status === "ok" || ["internal_error", "store_unavailable"].includes(reply.response.reason), JSON.stringify(reply));
        return reply.status === "ok" && assert.equal(reply.response.seq, n) === undefined;
      });
    }
    over = true;
    await crashing;
    assert.ok(crashes >= 3);
    await until("the reader has all", () => last === total);
    const stored = await log(server, client, task);
    assert.deepEqual(stored.map((chunk) => [chunk.seq, chunk.content]), range(1, total).map((n) => [n, `${n}`]));
    assert.deepEqual(reader.chunks.map((chunk) => [chunk.seq, chunk.content]), range(1, total).map((n) => [n, `${n}`]));
  });

  test("R39 R46 R52: several producers at once through crashes: each key is one chunk, and seq has no gap", async () => {
    const { server } = world;
    const { client, provider, task } = await cast(server);
    let acknowledged = 0;
    const producing = range(1, 8).map(async (who) => {
      for (const n of range(1, 50)) {
        const chunk = { idempotency_key: `${who}.${n}` };
        await until(`chunk ${who}.${n} is taken`, async () => (await server.emit(task, provider, `${who}.${n}`, chunk)).status === 202);
        acknowledged++;
      }
    });
    for (const at of [40, 120, 200, 280]) {
      await until("the producers get on", () => acknowledged >= at);
      await crash(task);
    }
    await Promise.all(producing);
    const stored = await log(server, client, task);
    assert.deepEqual(stored.map((chunk) => chunk.seq), range(1, 400));
    assert.equal(new Set(stored.map((chunk) => chunk.content)).size, 400);
  });

  test("R37 R46 R166: through crashes amid writes, readers are sent what is stored, and the stream opens again each time", async () => {
    const { server, connections } = world;
    const { user, client, provider, task } = await cast(server);
    const channel = await connections.agent(server, provider);
    let last = 0;
    const reader = await connections.reader(server, user, task, () => ({ after_seq: last }), { rejoinAfterMs: () => 0, timeout: 2_000 });
    reader.channel.on("stream.chunk", (chunk) => (last = chunk.seq));
    let next = 1;
    for (let round = 0; round < 200; round++) {
      // Pushes that are on their way: those behind a crash go to the stream's next life.
      const pushing = [];
      for (let burst = 0; burst < 3; burst++) {
        pushing.push(...range(next, next + 49).map((n) => emit(channel, task, `${n}`)));
        next += 50;
        if (burst < 2) pushing.push(server.request("POST", `/api/v1/admin/drills/streams/${task.id}/crash`, { token: server.adminToken }));
      }
      await Promise.all(pushing);
    }
    const stored = await log(server, client, task);
    assert.deepEqual(stored.map((chunk) => chunk.seq), range(1, stored.length));
    await until("the reader has the newest", () => last >= stored.length);
    const contentOf = new Map(stored.map((chunk) => [chunk.seq, chunk.content]));
    const others = reader.chunks.filter((chunk) => contentOf.get(chunk.seq) !== chunk.content);
    const faults = server.logs.split("\n").filter((line) => line.includes("panic") && !line.includes("crash drill"));
    assert.deepEqual({ others: others.length, faults: faults.length }, { others: 0, faults: 0 }, faults[0]);
  });

  test("R3 R37: a join that meets a crash is answered", async () => {
    const { server, connections } = world;
    const { user, provider, task } = await cast(server);
    await server.emit(task, provider, "x");
    const impatient = { timeout: 20_000, rejoinAfterMs: () => 100_000 };
    const sockets = await Promise.all(range(1, 10).map(() => connections.socket(server, "/socket/hirer", user.token, impatient)));
    const unanswered = [];
    for (let round = 1; round <= 30 && unanswered.length === 0; round++) {
      const channels = sockets.map((socket) => socket.channel(`task_stream:${task.id}`, {}));
      // phx_error is an answer too: the client knows that it has to come again.
      const failing = (channel) => new Promise((resolve) => channel.onError(() => resolve({ status: "failed" })));
      const joining = channels.map((channel) => Promise.race([join(channel), failing(channel)]));
      await Promise.all(range(1, 3).map(() => crash(task)));
      const answers = await Promise.all(joining);
      unanswered.push(...answers.filter((answer) => answer.status === "timeout"));
      for (const channel of channels) channel.leave();
    }
    assert.equal(unanswered.length, 0, `${unanswered.length} joins were neither answered nor failed`);
  });

  test("R167: drills are the operator's, and only where they are allowed", async () => {
    const { server } = world;
    const { user, provider, task } = await cast(server);
    for (const [credential, status] of [[{ token: user.token }, 403], [{ key: provider.key }, 403], [{}, 401]]) {
      const answer = await server.request("POST", `/api/v1/admin/drills/streams/${task.id}/crash`, credential);
      assert.equal(answer.status, status);
    }
    const calm = await Server.start();
    try {
      const people = await cast(calm);
      const answer = await calm.request("POST", `/api/v1/admin/drills/streams/${people.task.id}/crash`, { token: calm.adminToken });
      assert.equal(answer.status, 404);
    } finally {
      await calm.end();
    }
  });
});

const MEGABYTES_20 = 320;

/** Streams 20 MB. */
const flood = (channel, task, atOnce = 2) => emitMany(channel, task, 1, MEGABYTES_20, { atOnce, content: (n) => `${n}:`.padEnd(65_536, "x") });

// These wait for the node's clock, so they wait together.
describe("slow readers and quiet streams", { concurrency: true }, () => {
  test("R45: a reader that stops taking bytes holds nobody up, and later gets every chunk once, in order", async () => {
    const server = await Server.start({ set: ROOMY });
    const connections = new Connections();
    try {
      const { user, provider, task } = await cast(server);
      const topic = `task_stream:${task.id}`;
      const slow = await RawSocket.open(server, "/socket/hirer", user.token);
      assert.equal((await slow.ask(topic, "phx_join", {})).status, "ok");
      slow.stopReading();
      const fast = await connections.reader(server, user, task);
      const channel = await connections.agent(server, provider);
      assert.deepEqual(await flood(channel, task), range(1, MEGABYTES_20));
      await until("the fast reader has all", () => fast.chunks.length === MEGABYTES_20);
      assert.deepEqual(fast.seqs(), range(1, MEGABYTES_20));
      assert.ok((await metric(server, "muster_readers_lagged_total")) >= 1);
      assert.ok((await metric(server, "muster_stream_memory_bytes")) <= 4 * 1_048_576, "memory is bounded meanwhile");
      assert.ok(slow.events(topic, "stream.chunk").length < MEGABYTES_20 / 2, "it was slow indeed");

      slow.goOnReading();
      await until("the slow reader has all", () => slow.events(topic, "stream.chunk").length >= MEGABYTES_20, 2 * PATIENCE_MS);
      // Caught up, it is live again.
      await emit(channel, task, "live");
      await until("it is live again", () => slow.events(topic, "stream.chunk").length > MEGABYTES_20);
      const seen = slow.events(topic, "stream.chunk");
      assert.deepEqual(seen.map((chunk) => chunk.seq), range(1, MEGABYTES_20 + 1));
      assert.ok(seen.slice(0, -1).every((chunk) => chunk.content.length === 65_536 && chunk.content.startsWith(`${chunk.seq}:`)));
      assert.deepEqual([slow.closed, slow.events(topic, "phx_error")], [false, []]);
      slow.end();
    } finally {
      await connections.close();
      await server.end();
    }
  });

  test("R45: a reader that takes nothing for too long gets phx_error, one that takes a little does not, and both get all", async () => {
    const server = await Server.start({ set: [...ROOMY, "limits.reader_stall_timeout_ms=3000"] });
    const connections = new Connections();
    try {
      const { user, client, provider, task } = await cast(server);
      const quietTask = await server.task(client, provider);
      const quiet = await connections.reader(server, user, quietTask);
      const topic = `task_stream:${task.id}`;
      const open = () => RawSocket.open(server, "/socket/hirer", user.token);
      const [stalled, dripping] = [await open(), await open()];
      const joinRefs = new Map();
      for (const raw of [stalled, dripping]) {
        const ref = raw.send(topic, "phx_join", {});
        joinRefs.set(raw, ref);
        await until("joined", () => raw.messages.some(([, itsRef, , event]) => itsRef === ref && event === "phx_reply"));
        raw.stopReading();
      }
      const channel = await connections.agent(server, provider);
      // From the first chunk on: the flood alone may take longer than a reader may take nothing.
      let enough;
      const isEnough = new Promise((resolve) => (enough = () => resolve("enough")));
      const dripped = (async () => {
        // As much at a time as makes room: a kernel announces no less than a share of its buffer.
        while ((await Promise.race([dripping.read(1_048_576), isEnough])) !== "enough") await sleep(600);
      })();
      const stalls = () => metric(server, "muster_readers_stalled_total");
      try {
        await flood(channel, task);
        await until("the stall is noticed", async () => (await stalls()) >= 1);
      } finally {
        enough();
      }
      await dripped;
      for (const raw of [stalled, dripping]) raw.goOnReading();
      await until("the stalled reader is told", () => stalled.events(topic, "phx_error").length === 1);
      assert.deepEqual(stalled.events(topic, "phx_error"), [{ reason: "reader_stalled" }]);
      await until("the dripping reader has all", () => dripping.events(topic, "stream.chunk").length === MEGABYTES_20, 2 * PATIENCE_MS);
      assert.deepEqual(dripping.events(topic, "stream.chunk").map((chunk) => chunk.seq), range(1, MEGABYTES_20));
      assert.deepEqual(dripping.events(topic, "phx_error"), []);
      assert.equal(await stalls(), 1);
      assert.deepEqual([quiet.errors, quiet.channel.state], [[], "joined"], "who has nothing to read stalls nothing");

      // The socket lives: the reader joins again where it was.
      assert.equal(stalled.closed, false);
      const got = stalled.events(topic, "stream.chunk").length;
      assert.ok(got < MEGABYTES_20);
      assert.equal((await stalled.ask(topic, "phx_join", { after_seq: got })).status, "ok");
      await until("the stalled reader has all", () => stalled.events(topic, "stream.chunk").length >= MEGABYTES_20, 2 * PATIENCE_MS);
      assert.deepEqual(stalled.events(topic, "stream.chunk").map((chunk) => chunk.seq), range(1, MEGABYTES_20));
      for (const raw of [stalled, dripping]) raw.end();
    } finally {
      await connections.close();
      await server.end();
    }
  });

  test("R45: a reader that falls behind is counted, also when chunks come in larger portions than are read at once", async () => {
    const server = await Server.start({ set: [...ROOMY, "limits.stream_read_bytes_max=65536"] });
    const connections = new Connections();
    try {
      const { user, provider, task } = await cast(server);
      const topic = `task_stream:${task.id}`;
      const slow = await RawSocket.open(server, "/socket/hirer", user.token);
      assert.equal((await slow.ask(topic, "phx_join", {})).status, "ok");
      slow.stopReading();
      const channel = await connections.agent(server, provider);
      await flood(channel, task, 16);
      assert.ok(slow.events(topic, "stream.chunk").length < MEGABYTES_20, "it was slow indeed");
      assert.ok((await metric(server, "muster_readers_lagged_total")) >= 1);
      slow.end();
    } finally {
      await connections.close();
      await server.end();
    }
  });

  test("R42 R43 R44 R52: streams that memory has let go are read again from the store", async () => {
    const forgetful = ["stream.finished_replay_ms=100", "stream.idle_unload_ms=100", "limits.stream_buffer_chunks_max=5"];
    const server = await Server.start({ set: [...ROOMY, ...forgetful] });
    const connections = new Connections();
    try {
      const { user, client, provider, task } = await cast(server);
      const running = await server.task(client, provider);
      for (const one of [task, running]) {
        for (const n of range(1, 12)) await server.emit(one, provider, `${n}`, { idempotency_key: `k${n}` });
      }
      // A reader that has been told the end does not keep a stream in memory, and is not disturbed when it goes.
      const early = await connections.reader(server, user, task);
      await complete(server, provider, task, "end");
      await until("the end", () => early.ends.length === 1);
      await until("both are let go", async () => (await metric(server, "muster_streams")) === 0);
      assert.deepEqual([early.errors, early.channel.state, early.ends.length], [[], "joined", 1]);

      const plain = await connections.reader(server, user, task);
      assert.deepEqual(plain.joined.response, { seq: 12, first_seq: 8, status: "completed", truncated: true });
      const whole = await connections.reader(server, user, task, { after_seq: 0 });
      for (const [reader, seqs] of [[plain, range(8, 12)], [whole, range(1, 12)]]) {
        await until("the end", () => reader.ends.length > 0);
        assert.deepEqual(reader.seqs(), seqs);
        assert.deepEqual(reader.ends, [{ event: "stream.done", payload: { result: "end" }, after: seqs.length }]);
      }
      assert.equal((await server.emit(task, provider, "late")).status, 409);
      assert.deepEqual((await server.emit(task, provider, "1", { idempotency_key: "k1" })).data, { seq: 1 });

      assert.deepEqual((await server.emit(running, provider, "1", { idempotency_key: "k1" })).data, { seq: 1 });
      assert.deepEqual((await server.emit(running, provider, "13")).data, { seq: 13 });
      const reader = await connections.reader(server, user, running, { after_seq: 0 });
      await until("all chunks", () => reader.chunks.length === 13);
      assert.deepEqual(reader.seqs(), range(1, 13));
      assert.equal((await server.ok("GET", `/api/v1/tasks/${running.id}`, { key: client.key })).status, "in_progress");
    } finally {
      await connections.close();
      await server.end();
    }
  });

  test("R42 R43: a stream that somebody reads stays, however quiet it is", async () => {
    const server = await Server.start({ set: [...ROOMY, "stream.finished_replay_ms=100", "stream.idle_unload_ms=100"] });
    const connections = new Connections();
    try {
      const { user, client, provider, task } = await cast(server);
      const unread = await server.task(client, provider);
      const reader = await connections.reader(server, user, task);
      await server.emit(unread, provider, "x");
      // Both were opened at the same time: when the unread one is gone, the other was looked at too.
      await until("the unread one is let go", async () => (await metric(server, "muster_streams")) === 1);
      await server.emit(task, provider, "after a while");
      await until("the chunk", () => reader.chunks.length === 1);
      assert.deepEqual([reader.errors, reader.seqs()], [[], [1]]);
    } finally {
      await connections.close();
      await server.end();
    }
  });
});
