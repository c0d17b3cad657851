// A task's stream over HTTP: as an event stream by fetch, curl and the npm package `eventsource`, and as JSON.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { Proxy } from "./lib/proxy.mjs";
import { cast, leniently, PATIENCE_MS, Server, until } from "./lib/server.mjs";
import { readByCurl, readByFetch, readByPackage } from "./lib/sse.mjs";
import { complete, log, metric, range, ROOMY } from "./lib/streams.mjs";

const WAYS = { fetch: readByFetch, curl: readByCurl };

/** A node of its own for some tests; readers are closed with it. */
function onNode(title, set, define, options = {}) {
  describe(title, options, () => {
    const world = { readers: [] };
    before(async () => {
      world.server = await Server.start({ set: [...ROOMY, ...set] });
    });
    after(async () => {
      world.readers.forEach((reader) => reader.close());
      await world.server?.end();
    });
    world.read = async (way, ...args) => {
      const reader = await way(world.server, ...args);
      world.readers.push(reader);
      return reader;
    };
    define(world);
  });
}

async function emitMany(server, task, provider, first, last, content = (n) => `${n} `) {
  for (const n of range(first, last)) {
    const answer = await server.emit(task, provider, content(n));
    assert.equal(answer.status, 202, answer.text);
  }
}

const unknownId = "01a00000-0000-7000-8000-000000000000";

onNode("event streams", ["drills.enabled=true"], (world) => {
  for (const [name, way] of Object.entries(WAYS)) {
    test(`R36 R37 R38 R41: ${name} gets where the stream stands, the replay, what comes, and the end`, async () => {
      const { server } = world;
      const { client, provider, task } = await cast(server);
      await emitMany(server, task, provider, 1, 3);
      const reader = await world.read(way, client, task);
      await until("the replay", () => reader.seqs().length === 3);
      await server.emit(task, provider, "said", { kind: "chat", metadata: { a: "b\n\nc" } });
      await until("the live chunk", () => reader.seqs().length === 4);
      await complete(server, provider, task, { ok: true });
      await until("the end", () => reader.ended);
      const [joined, ...rest] = reader.events;
      assert.deepEqual(joined, { event: "stream.joined", data: { seq: 3, first_seq: 1, status: "in_progress", truncated: false } });
      assert.deepEqual(rest.map(({ event, id }) => [event, id]), [
        ["stream.chunk", "1"],
        ["stream.chunk", "2"],
        ["stream.chunk", "3"],
        ["stream.chunk", "4"],
        ["stream.done", undefined],
      ]);
      assert.deepEqual(rest.slice(0, 4).map((event) => event.data), await log(server, client, task));
      assert.deepEqual(rest[4].data, { result: { ok: true } });
      assert.equal(reader.failure, undefined);
      if (reader.exited) assert.equal(await reader.exited, 0, "the body ends in order");
    });
  }

  test("R36 R37 R41: the npm package gets the same, with the seq as the event's id", async () => {
    const { server } = world;
    const { client, provider, task } = await cast(server);
    await emitMany(server, task, provider, 1, 3);
    const reader = await world.read(readByPackage, client, task);
    await until("the replay", () => reader.chunks.length === 3);
    await server.emit(task, provider, "live");
    await until("the live chunk", () => reader.chunks.length === 4);
    await complete(server, provider, task, [1]);
    await until("the end", () => reader.ends.length === 1);
    assert.deepEqual(reader.chunks.map(({ id, seq }) => [id, seq]), range(1, 4).map((n) => [`${n}`, n]));
    assert.deepEqual(reader.joined, [{ seq: 3, first_seq: 1, status: "in_progress", truncated: false }]);
    assert.deepEqual(reader.ends, [{ event: "stream.done", data: { result: [1] } }]);
    assert.deepEqual(reader.errors, []);
  });

  test("R41: the answer is an event stream that nobody stores", async () => {
    const { server } = world;
    const { client, task } = await cast(server);
    const { response } = await world.read(readByFetch, client, task);
    assert.equal(response.status, 200);
    assert.match(response.headers.get("content-type"), /^text\/event-stream/);
    assert.match(response.headers.get("cache-control"), /no-store|no-cache/);
  });

  test("R38 R41: JSON that was sent over several lines arrives whole", async () => {
    const { server } = world;
    const { client, provider, task } = await cast(server);
    const [metadata, output] = [{ a: { b: [1, 2] } }, { table: [{ x: 1 }, { y: 2 }] }];
    const raw = (value) => JSON.stringify(value, null, 2);
    await server.ok("POST", `/api/v1/tasks/${task.id}/chunk`, { key: provider.key, raw: `{"content": "x", "metadata": ${raw(metadata)}}` });
    await server.ok("PUT", `/api/v1/tasks/${task.id}/complete`, { key: provider.key, raw: `{"output": ${raw(output).replaceAll("\n", "\r\n")}}` });
    for (const [name, way] of Object.entries(WAYS)) {
      const reader = await world.read(way, client, task);
      await until("the end", () => reader.ended);
      assert.equal(reader.failure, undefined, name);
      assert.deepEqual(reader.events.slice(1).map((event) => event.data.metadata ?? event.data.result), [metadata, output], name);
    }
  });

  test("R41 R42: a stream of a task that has ended is replayed, ends at once, and can be resumed", async () => {
    const { server } = world;
    const { client, provider } = await cast(server);
    const endings = [
      ["PUT", "complete", provider, { output: 1 }, "stream.done", { result: 1 }],
      ["PUT", "fail", provider, { error: { type: "t" } }, "stream.error", { error: { type: "t" } }],
      ["POST", "cancel", client, {}, "stream.error", { error: { type: "cancelled" } }],
    ];
    for (const [method, verb, who, body, event, data] of endings) {
      const task = await server.task(client, provider);
      await emitMany(server, task, provider, 1, 4);
      const live = await world.read(readByFetch, client, task);
      await until("the replay", () => live.seqs().length === 4);
      await server.ok(method, `/api/v1/tasks/${task.id}/${verb}`, { key: who.key, body });
      const late = await world.read(readByFetch, client, task);
      const resumed = await world.read(readByFetch, client, task, { lastEventId: 2 });
      const done = await world.read(readByFetch, client, task, { lastEventId: 4 });
      for (const [reader, seqs] of [[live, range(1, 4)], [late, range(1, 4)], [resumed, [3, 4]], [done, []]]) {
        await until("the end", () => reader.ended);
        assert.deepEqual(reader.seqs(), seqs, verb);
        assert.deepEqual(reader.events.at(-1), { event, data });
        assert.equal(reader.events.filter((one) => ["stream.done", "stream.error"].includes(one.event)).length, 1);
      }
    }
  });

  test("R44: ?after and Last-Event-ID say where to go on; who comes back knows better than the address", async () => {
    const { server } = world;
    const { client, provider, task } = await cast(server);
    await emitMany(server, task, provider, 1, 6);
    const cases = [
      [{ after: 0 }, range(1, 6)],
      [{ after: 4 }, [5, 6]],
      [{ after: 6 }, []],
      [{ lastEventId: 3 }, [4, 5, 6]],
      [{ after: 1, lastEventId: 5 }, [6]],
      [{ after: 5, lastEventId: 0 }, range(1, 6)],
      [{ after: 5, lastEventId: "" }, [6]],
    ];
    const readers = [];
    for (const [from, seqs] of cases) {
      for (const way of Object.values(WAYS)) readers.push([await world.read(way, client, task, from), seqs, JSON.stringify(from)]);
    }
    for (const [reader, , from] of readers) {
      await reader.joined();
      assert.ok(reader.named("stream.joined").length === 1, from);
    }
    await server.emit(task, provider, "7");
    for (const [reader, seqs, from] of readers) {
      await until(`the live chunk ${from}`, () => reader.seqs().at(-1) === 7);
      assert.deepEqual(reader.seqs(), [...seqs, 7], from);
    }
  });

  test("R44: what is no seq is refused", async () => {
    const { server } = world;
    const { client, task } = await cast(server);
    for (const accept of ["text/event-stream", "application/json"]) {
      for (const after of ["-1", "1.5", "x", "1e3", "99999999999999999999999", ""]) {
        const answer = await server.request("GET", `/api/v1/tasks/${task.id}/stream?after=${after}`, { key: client.key, headers: { accept } });
        assert.deepEqual([answer.status, answer.error?.code], [422, "VALIDATION_ERROR"], `${accept} ${after}`);
      }
      const answer = await server.request("GET", `/api/v1/tasks/${task.id}/stream`, { key: client.key, headers: { accept, "last-event-id": "x" } });
      assert.deepEqual([answer.status, answer.error.field], [422, "last-event-id"]);
    }
  });

  test("R44: a reader that is ahead of the stream is sent nothing up to where it was", async () => {
    const { server } = world;
    const { client, provider, task } = await cast(server);
    await emitMany(server, task, provider, 1, 3);
    const reader = await (await world.read(readByFetch, client, task, { lastEventId: 5 })).joined();
    await emitMany(server, task, provider, 4, 7);
    await until("the newest", () => reader.seqs().at(-1) === 7);
    assert.deepEqual(reader.seqs(), [6, 7]);
  });

  test("R29 R34 R35 R167: parties read; for everybody else the task does not exist", async () => {
    const { server } = world;
    const { user, client, provider, task } = await cast(server);
    await server.emit(task, provider, "x");
    for (const who of [client, provider, user]) {
      const reader = await world.read(readByFetch, who, task);
      await until("the replay", () => reader.seqs().length === 1);
    }
    const strangers = [await server.agent(), await server.user(), await server.agent({ owner: user })];
    for (const accept of ["text/event-stream", "application/json"]) {
      const refusals = [];
      for (const who of strangers) {
        for (const id of [task.id, unknownId, "no-id"]) {
          const { status, error, headers } = await server.request("GET", `/api/v1/tasks/${id}/stream`, { ...who, key: who.key, headers: { accept } });
          refusals.push([status, error, headers.get("content-type")]);
        }
      }
      const [first] = refusals;
      assert.deepEqual([first[0], first[1].code], [404, "NOT_FOUND"]);
      assert.match(first[2], /^application\/json/);
      for (const refusal of refusals) assert.deepEqual(refusal, first);
      const nobody = await server.request("GET", `/api/v1/tasks/${task.id}/stream`, { headers: { accept } });
      assert.equal(nobody.status, 401);
      const wrong = await server.request("GET", `/api/v1/tasks/${task.id}/stream`, { key: "ap_wrong", headers: { accept } });
      assert.equal(wrong.status, 401);
    }
  });

  test("R18 R167: a stream ends within two seconds of its credential", async () => {
    const { server } = world;
    const { user, client, provider, task } = await cast(server);
    await server.emit(task, provider, "x");
    const keys = `/api/v1/agents/${client.id}/credentials`;
    const tokens = `/api/v1/admin/users/${user.id}/tokens`;
    const operator = { token: server.adminToken };
    const spare = await server.ok("POST", keys, { token: user.token, body: {} });
    const session = await server.ok("POST", "/api/v1/auth/authenticate", { key: client.key, body: {} });
    const ends = [
      // Revoking a key of an agent ends its sessions too, so this comes first.
      ["session", { token: session.token }, () => server.ok("DELETE", "/api/v1/auth/logout", { token: session.token })],
      ["spare key", { key: spare.api_key }, () => server.ok("DELETE", `${keys}/${spare.credential.id}`, { token: user.token })],
      ["rotated key", client, () => server.ok("POST", "/api/v1/auth/rotate-key", { key: client.key, body: {} })],
      ["user's token", user, () => server.ok("DELETE", `${tokens}/${user.credential.id}`, operator)],
      ["suspended agent", provider, () => server.ok("PUT", `/api/v1/admin/agents/${provider.id}/status`, { ...operator, body: { status: "suspended" } })],
    ];
    const witness = await world.read(readByFetch, await server.ok("POST", tokens, { ...operator, body: {} }), task);
    for (const [name, who, end] of ends) {
      const reader = await world.read(readByFetch, who, task);
      await until(`the replay to the ${name}`, () => reader.seqs().length === 1);
      await end();
      await until(`the end of the ${name}`, () => reader.ended, leniently(2_000));
      const again = await server.request("GET", `/api/v1/tasks/${task.id}/stream`, { ...who, headers: { accept: "text/event-stream" } });
      assert.ok([401, 403].includes(again.status), `${again.status}`);
    }
    assert.equal(witness.ended, false, "other credentials are not touched");
  });

  test("R29: one who reads as provider reads no more once the task is another's", async () => {
    const { server } = world;
    const { client, provider, task } = await cast(server);
    const second = await server.agent();
    const early = await (await world.read(readByFetch, provider, task)).joined();
    const witness = await (await world.read(readByFetch, client, task)).joined();
    await server.ok("POST", `/api/v1/tasks/${task.id}/reassign`, { key: client.key, body: { provider_agent_id: second.id } });
    await emitMany(server, task, second, 1, 3);
    await complete(server, second, task);
    await until("the client has all", () => witness.ended);
    await until("the first provider's stream has ended too", () => early.ended);
    assert.deepEqual(early.seqs(), []);
  });

  test("R37 R46: chunks that land while readers open the stream are neither missed nor doubled", async () => {
    const { server } = world;
    const { client, provider, task } = await cast(server);
    let emitted = 0;
    const producing = emitMany(server, task, provider, 1, 400, (n) => `${(emitted = n)}`);
    const readers = await Promise.all(
      range(1, 30).map(async (n) => {
        await until("the producer is there", () => emitted >= n * 10);
        return world.read(n % 10 ? readByFetch : readByCurl, client, task);
      }),
    );
    await producing;
    await complete(server, provider, task);
    for (const reader of readers) {
      await until("the end", () => reader.ended);
      assert.deepEqual(reader.seqs(), range(1, 400));
      assert.equal(reader.names().at(-1), "stream.done");
    }
  });

  test("R37 R46: a crash of the stream costs a reader nothing", async () => {
    const { server } = world;
    const { client, provider, task } = await cast(server);
    let reader = await world.read(readByFetch, client, task);
    const seen = [];
    const collect = async (upto) => {
      await until(`chunk ${upto}`, async () => {
        seen.push(...reader.events.splice(0).filter((event) => event.event === "stream.chunk").map((event) => event.data.seq));
        if (reader.ended && seen.at(-1) !== upto) reader = await world.read(readByFetch, client, task, { lastEventId: seen.at(-1) ?? 0 });
        return seen.at(-1) === upto;
      });
    };
    for (const round of range(1, 5)) {
      for (const n of range(round * 10 - 9, round * 10)) {
        // Those that meet the crash of the round before are told so, and come again.
        await until(`chunk ${n} is taken`, async () => (await server.emit(task, provider, `${n}`, { idempotency_key: `k${n}` })).status === 202);
      }
      await collect(round * 10);
      await server.ok("POST", `/api/v1/admin/drills/streams/${task.id}/crash`, { token: server.adminToken });
    }
    assert.deepEqual(seen, range(1, 50));
  });

  test("R45: streams that readers have left are not kept", async () => {
    const { server } = world;
    const { client, task } = await cast(server);
    const before = await metric(server, "muster_event_streams");
    const readers = await Promise.all(range(1, 5).map(() => world.read(readByFetch, client, task)));
    await until("they are counted", async () => (await metric(server, "muster_event_streams")) === before + 5);
    readers.forEach((reader) => reader.close());
    await until("they are gone", async () => (await metric(server, "muster_event_streams")) === before);
  });
});

onNode("as JSON", ["limits.stream_buffer_bytes_max=20000", "limits.stream_buffer_chunks_max=50"], (world) => {
  const read = (server, who, task, query = "") => server.request("GET", `/api/v1/tasks/${task.id}/stream${query}`, { ...who });

  test("R36 R38 R41: a part holds chunks, seq, first_seq, status and truncated", async () => {
    const { server } = world;
    const { user, client, provider, task } = await cast(server);
    const empty = await read(server, client, task);
    assert.equal(empty.status, 200);
    assert.deepEqual(empty.data, { chunks: [], seq: 0, first_seq: 0, status: "pending", truncated: false, more: false });
    await server.emit(task, provider, "one", { kind: "chat" });
    await server.emit(task, provider, "two");
    const { data } = await read(server, client, task);
    assert.deepEqual({ ...data, chunks: data.chunks.length }, { chunks: 2, seq: 2, first_seq: 1, status: "in_progress", truncated: false, more: false });
    assert.deepEqual(Object.keys(data.chunks[0]).sort(), ["content", "kind", "metadata", "seq", "timestamp"]);
    assert.deepEqual((await read(server, { token: user.token }, task)).data, data);
    const rest = (await read(server, client, task, "?after=1")).data;
    assert.deepEqual([rest.chunks.map((chunk) => chunk.seq), rest.first_seq, rest.truncated], [[2], 2, false]);
    const none = (await read(server, client, task, "?after=2")).data;
    assert.deepEqual([none.chunks, none.seq, none.first_seq, none.more], [[], 2, 0, false]);
    const beyond = (await read(server, client, task, "?after=1000")).data;
    assert.deepEqual([beyond.chunks, beyond.seq, beyond.more], [[], 2, false]);
  });

  test("R41 R42: the last part of a finished task says how it ended", async () => {
    const { server } = world;
    const { client, provider } = await cast(server);
    const endings = [
      ["PUT", "complete", provider, { output: { a: 1 } }, { status: "completed", result: { a: 1 } }],
      ["PUT", "fail", provider, { error: { type: "t" } }, { status: "failed", error: { type: "t" } }],
      ["POST", "cancel", client, {}, { status: "cancelled", error: { type: "cancelled" } }],
    ];
    for (const [method, verb, who, body, end] of endings) {
      const task = await server.task(client, provider);
      await server.emit(task, provider, "x");
      await server.ok(method, `/api/v1/tasks/${task.id}/${verb}`, { key: who.key, body });
      for (const query of ["", "?after=0", "?after=1"]) {
        const { chunks, ...rest } = (await read(server, client, task, query)).data;
        assert.equal(chunks.length, query === "?after=1" ? 0 : 1);
        assert.deepEqual(rest, { seq: 1, first_seq: query === "?after=1" ? 0 : 1, truncated: false, more: false, ...end }, query);
      }
    }
  });

  test("R43 R44: a long stream is read in parts, each after the one before, to its end", async () => {
    const { server } = world;
    const { client, provider, task } = await cast(server);
    await emitMany(server, task, provider, 1, 120, (n) => `${n}`.padEnd(1_500, "x"));
    await complete(server, provider, task, "end");
    const plain = (await read(server, client, task)).data;
    assert.equal(plain.truncated, true);
    assert.ok(plain.first_seq > 100 && plain.chunks[0].seq === plain.first_seq);
    const seqs = [];
    let part;
    let parts = 0;
    do {
      part = (await read(server, client, task, `?after=${seqs.at(-1) ?? 0}`)).data;
      assert.deepEqual([part.seq, part.truncated, part.status, part.first_seq], [120, false, "completed", (seqs.at(-1) ?? 0) + 1]);
      assert.equal("result" in part, !part.more, "the end is told at the end");
      seqs.push(...part.chunks.map((chunk) => chunk.seq));
      parts++;
    } while (part.more);
    assert.deepEqual(seqs, range(1, 120));
    assert.ok(parts > 5, `${parts} parts`);
    assert.equal(part.result, "end");
  });

  test("R36 R43 R44: an event stream replays what memory holds, and after=0 everything", async () => {
    const { server } = world;
    const { client, provider, task } = await cast(server);
    await emitMany(server, task, provider, 1, 130);
    const plain = await world.read(readByFetch, client, task);
    const whole = await world.read(readByCurl, client, task, { after: 0 });
    await emitMany(server, task, provider, 131, 135);
    await complete(server, provider, task);
    for (const [reader, first] of [[plain, 81], [whole, 1]]) {
      await until("the end", () => reader.ended);
      assert.deepEqual(reader.seqs(), range(first, 135));
      const [joined] = reader.named("stream.joined");
      assert.deepEqual([joined.data.first_seq, joined.data.truncated], [first, first > 1]);
    }
  });
});

onNode("limits", ["limits.streams_per_credential_max=3"], (world) => {
  test("R45 R169: a credential has so many event streams open and no more, and room again when one is closed", async () => {
    const { server } = world;
    const { client, provider, task } = await cast(server);
    const readers = [];
    for (let n = 0; n < 3; n++) readers.push(await (await world.read(readByFetch, client, task)).joined());
    const over = await server.request("GET", `/api/v1/tasks/${task.id}/stream`, { key: client.key, headers: { accept: "text/event-stream" } });
    assert.deepEqual([over.status, over.error.code], [409, "LIMIT_REACHED"]);
    assert.equal((await server.request("GET", `/api/v1/tasks/${task.id}/stream`, { key: client.key })).status, 200);
    await (await world.read(readByFetch, provider, task)).joined();
    readers[0].close();
    await until("there is room", async () => (await metric(server, "muster_event_streams")) === 3);
    assert.equal((await world.read(readByFetch, client, task)).response.status, 200);
  });
});

describe("at the end of the node", () => {
  test("R168: an orderly end closes event streams, and does not wait for their readers", async () => {
    const server = await Server.start({ set: [...ROOMY, "drain.timeout_ms=60000"] });
    const readers = [];
    try {
      const { client, provider, task } = await cast(server);
      await server.emit(task, provider, "x");
      for (const way of Object.values(WAYS)) {
        const reader = await way(server, client, task);
        readers.push(reader);
        await until("the replay", () => reader.seqs().length === 1);
      }
      const begun = Date.now();
      assert.deepEqual(await server.stop(), { code: 0, signal: null });
      assert.ok(Date.now() - begun < 30_000, `${Date.now() - begun} ms`);
      for (const reader of readers) await until("the end", () => reader.ended);
      assert.equal(readers[1].named("stream.done").length, 0, "the task has not ended");
      assert.equal(await readers[1].exited, 0, "the body ends in order");
    } finally {
      readers.forEach((reader) => reader.close());
      await server.end();
    }
  });
});

/** An event stream whose bytes are taken only when `flow` is called. */
async function openUnread(server, who, task, after) {
  const control = new AbortController();
  const headers = { accept: "text/event-stream", "x-api-key": who.key };
  const response = await fetch(`${server.url}/api/v1/tasks/${task.id}/stream?after=${after}`, { headers, signal: control.signal });
  const body = response.body.getReader();
  const seqs = [];
  let text = "";
  const decoder = new TextDecoder();
  const reader = { seqs, ended: false, failed: false, close: () => control.abort() };
  reader.flow = async () => {
    try {
      for (;;) {
        const { done, value } = await body.read();
        if (done) break;
        const lines = (text + decoder.decode(value, { stream: true })).split("\n");
        text = lines.pop();
        for (const line of lines) if (line.startsWith("id: ")) seqs.push(Number(line.slice(4)));
      }
    } catch {
      reader.failed = true;
    }
    reader.ended = true;
  };
  return reader;
}

// These wait for clocks of the node and of the client, so they wait together.
describe("slow readers, quiet streams and broken connections", { concurrency: true }, () => {
  const TOTAL = 320;

  /** Streams 20 MB. */
  const flood = async (server, task, provider) => {
    for (let from = 1; from <= TOTAL; from += 16) {
      const answers = await Promise.all(range(from, from + 15).map((n) => server.emit(task, provider, `${n}:`.padEnd(65_536, "x"))));
      assert.ok(answers.every((answer) => answer.status === 202));
    }
  };

  test("R45: a reader that takes nothing holds nobody up, and later gets every chunk once, in order", async () => {
    const server = await Server.start({ set: ROOMY });
    const readers = [];
    try {
      const { client, provider, task } = await cast(server);
      const slow = await openUnread(server, client, task, 0);
      const fast = await readByFetch(server, client, task, { after: 0 });
      readers.push(slow, fast);
      await flood(server, task, provider);
      await until("the fast reader has all", () => fast.seqs().length === TOTAL);
      assert.deepEqual(fast.seqs(), range(1, TOTAL));
      assert.ok((await metric(server, "muster_stream_memory_bytes")) <= 4 * 1_048_576, "memory is bounded meanwhile");
      await complete(server, provider, task);
      await until("the fast reader's end", () => fast.ended);
      assert.deepEqual(slow.seqs, []);
      slow.flow();
      await until("the slow reader's end", () => slow.ended);
      assert.deepEqual(slow.seqs, range(1, TOTAL));
    } finally {
      readers.forEach((reader) => reader.close());
      await server.end();
    }
  });

  test("R45: a reader that takes nothing for too long is closed, and can resume", async () => {
    const server = await Server.start({ set: [...ROOMY, "limits.reader_stall_timeout_ms=3000"] });
    const readers = [];
    try {
      const { client, provider, task } = await cast(server);
      const stalled = await openUnread(server, client, task, 0);
      const quiet = await readByFetch(server, client, task, { after: TOTAL });
      readers.push(stalled, quiet);
      await flood(server, task, provider);
      await until("the stalled reader is closed", async () => (await metric(server, "muster_event_streams")) === 1);
      stalled.flow();
      await until("its connection has ended", () => stalled.ended);
      assert.ok(stalled.seqs.length < TOTAL);
      assert.deepEqual(stalled.seqs, range(1, stalled.seqs.length));
      assert.equal(quiet.ended, false, "who has nothing to read stalls nothing");
      const resumed = await readByFetch(server, client, task, { lastEventId: stalled.seqs.length });
      readers.push(resumed);
      await until("the rest", () => resumed.seqs().at(-1) === TOTAL);
      assert.deepEqual(resumed.seqs(), range(stalled.seqs.length + 1, TOTAL));
    } finally {
      readers.forEach((reader) => reader.close());
      await server.end();
    }
  });

  test("R44: readers whose connections break come back by Last-Event-ID, and lose and repeat nothing", async () => {
    const server = await Server.start({ set: ROOMY });
    const proxy = await Proxy.before(server);
    const readers = [];
    try {
      const { client, provider, task } = await cast(server);
      // The package comes back by itself.
      const byPackage = readByPackage(proxy, client, task);
      readers.push(byPackage);
      const seen = [];
      let over = false;
      const byFetch = (async () => {
        while (!over) {
          const reader = await readByFetch(proxy, client, task, { lastEventId: seen.at(-1) ?? 0 }).catch(() => null);
          if (!reader) continue;
          readers.push(reader);
          await until("a break or the end", () => reader.ended, 2 * PATIENCE_MS);
          seen.push(...reader.seqs());
          over = reader.names().at(-1) === "stream.done";
        }
      })();
      for (const upto of [100, 200, 300]) {
        await emitMany(server, task, provider, upto - 99, upto);
        await until("the package has something of it", () => byPackage.chunks.length > upto - 99);
        proxy.cut();
      }
      await emitMany(server, task, provider, 301, 310);
      await complete(server, provider, task);
      await until("the package has the end", () => byPackage.ends.length === 1);
      await byFetch;
      assert.deepEqual(byPackage.seqs(), range(1, 310));
      assert.deepEqual(seen, range(1, 310));
      assert.ok(byPackage.asked.length >= 4 && byPackage.asked.slice(1).every((id) => Number(id) > 0), JSON.stringify(byPackage.asked));
    } finally {
      readers.forEach((reader) => reader.close());
      proxy.end();
      await server.end();
    }
  });

  test("R44 R166: after kill -9 readers come back and go on where they were", async () => {
    const server = await Server.start({ set: ROOMY });
    const readers = [];
    try {
      const { client, provider, task } = await cast(server);
      const byPackage = readByPackage(server, client, task);
      readers.push(byPackage);
      await emitMany(server, task, provider, 1, 50);
      await until("the chunks", () => byPackage.chunks.length === 50);
      await server.kill();
      await server.startAgain();
      await emitMany(server, task, provider, 51, 60);
      await complete(server, provider, task);
      await until("the end", () => byPackage.ends.length === 1);
      assert.deepEqual(byPackage.seqs(), range(1, 60));
    } finally {
      readers.forEach((reader) => reader.close());
      await server.end();
    }
  });

  test("R36 R42: comments keep a quiet stream open, and no reader minds them", async () => {
    const server = await Server.start({ set: [...ROOMY, "stream.idle_unload_ms=100"] });
    const readers = [];
    try {
      const { client, provider, task } = await cast(server);
      await server.emit(task, provider, "before");
      const plain = Object.values(WAYS).map((way) => way(server, client, task));
      const [byFetch, byCurl] = await Promise.all(plain);
      const byPackage = readByPackage(server, client, task);
      readers.push(byFetch, byCurl, byPackage);
      await until("comments", () => byFetch.parser.comments > 0 && byCurl.parser.comments > 0, 2 * PATIENCE_MS);
      await server.emit(task, provider, "after");
      await complete(server, provider, task);
      for (const reader of [byFetch, byCurl]) {
        await until("the end", () => reader.ended);
        assert.deepEqual(reader.names(), ["stream.joined", "stream.chunk", "stream.chunk", "stream.done"]);
      }
      await until("the end", () => byPackage.ends.length === 1);
      assert.deepEqual([byPackage.seqs(), byPackage.errors, byPackage.asked.length], [[1, 2], [], 1]);
    } finally {
      readers.forEach((reader) => reader.close());
      await server.end();
    }
  });
});
