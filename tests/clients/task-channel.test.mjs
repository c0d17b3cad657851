// The channel of a task: what its two agents send each other, over real sockets.

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { after, before, describe, test } from "node:test";
import { onCluster } from "./lib/cluster.mjs";
import { listen } from "./lib/events.mjs";
import { join, push } from "./lib/phoenix.mjs";
import { Server, until } from "./lib/server.mjs";
import { Connections, range, rate, ROOMY } from "./lib/streams.mjs";

const UNKNOWN_ID = "01a00000-0000-7000-8000-000000000000";
const sha256 = (...parts) => {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest("hex");
};
const closing = (...parts) => ({ checksum: sha256(...parts), total_size: parts.reduce((sum, part) => sum + Buffer.byteLength(part), 0) });

/** A joined channel of a task, with all that came on it. */
async function sit(connections, server, who, task, params = {}) {
  const socket = await connections.socket(server, "/socket", who.key ?? who.token, who.agent ? { params: { api_key: who.token, agent_id: who.agent } } : {});
  const channel = socket.channel(`task:${task.id}`, params);
  const events = [];
  const ends = [];
  channel.onMessage = (event, payload) => {
    const ours = event && !event.startsWith("phx_") && !event.startsWith("chan_reply");
    if (ours) events.push({ event, payload });
    return payload;
  };
  channel.onClose(() => ends.push("close"));
  channel.onError(() => ends.push("error"));
  const seat = {
    socket,
    channel,
    events,
    ends,
    named: (name) => events.filter(({ event }) => event === name).map(({ payload }) => payload),
    next: (name, count = 1) => until(`${count} of ${name}, not ${JSON.stringify(events.map(({ event }) => event).slice(-20))}`, () => (seat.named(name).length >= count ? seat.named(name)[count - 1] : null)),
    push: (event, payload) => push(channel, event, payload),
    ok: async (event, payload) => {
      const answer = await push(channel, event, payload);
      assert.equal(answer.status, "ok", `${event}: ${JSON.stringify(answer)}`);
      return answer.response;
    },
    refused: async (event, payload) => {
      const answer = await push(channel, event, payload);
      assert.equal(answer.status, "error", `${event}: ${JSON.stringify(answer)}`);
      return answer.response;
    },
  };
  seat.joined = await join(channel);
  return seat;
}

/** A server of its own for some tests. */
function onNode(title, set, define) {
  describe(title, () => {
    const world = { connections: new Connections() };
    before(async () => {
      world.server = await Server.start({ set: [...ROOMY, ...set] });
      world.company = async () => {
        const { server } = world;
        const owner = await server.user("Owner");
        const client = await server.agent({ owner, name: "Client" });
        const provider = await server.agent({ name: "Provider" });
        return { owner, client, provider, task: await server.task(client, provider) };
      };
      world.sit = async (who, task, params) => {
        const seat = await sit(world.connections, world.server, who, task, params);
        assert.equal(seat.joined.status, "ok", JSON.stringify(seat.joined));
        return seat;
      };
      /** A task with both of its agents on the channel. */
      world.table = async () => {
        const parties = await world.company();
        return { ...parties, client: await world.sit(parties.client, parties.task), provider: await world.sit(parties.provider, parties.task), agents: parties };
      };
      world.show = (who, task) => world.server.ok("GET", `/api/v1/tasks/${task.id}`, { key: who.key });
    });
    after(async () => {
      await world.connections.close();
      await world.server?.end();
    });
    define(world);
  });
}

onNode("one node", ["drills.enabled=true"], (world) => {
  test("R67 R68: client and provider join, and are told how things stand; nobody else, and unknown ids are the same", async () => {
    const { server, connections } = world;
    const { owner, client, provider, task } = await world.company();
    for (const who of [client, provider, { token: owner.token, agent: client.id }]) {
      const { joined } = await sit(connections, server, who, task);
      assert.equal(joined.status, "ok", JSON.stringify(joined));
      const { task: shown, ...rest } = joined.response;
      assert.deepEqual(rest, { last_input_seq: null, last_output_seq: null, input_complete: false, output_complete: false, checkpoint: null, progress: null });
      assert.deepEqual([shown.id, shown.status, shown.client_agent_id, shown.provider_agent_id], [task.id, "pending", client.id, provider.id]);
    }
    const sibling = await server.agent({ owner, name: "Sibling" });
    const other = await server.user("Other");
    const strangers = [await server.agent({ name: "Stranger" }), sibling, { token: owner.token }, { token: other.token }, { token: owner.token, agent: sibling.id }];
    for (const who of strangers) {
      for (const one of [task, { id: UNKNOWN_ID }, { id: "no-id" }]) {
        const { joined } = await sit(connections, server, who, one);
        assert.deepEqual(joined, { status: "error", response: { reason: "unauthorized" } }, `${who.name} ${one.id}`);
      }
    }
    // It is a topic of the main socket alone.
    const socket = await connections.socket(server, "/socket/agent", provider.key);
    assert.deepEqual(await join(socket.channel(`task:${task.id}`)), { status: "error", response: { reason: "unmatched topic" } });
  });

  test("R69 R70: input goes from client to provider, output back, not echoed; duplicates and conflicts are told apart", async () => {
    const { client, provider } = await world.table();
    for (const [n, seq] of [2, 1, 3].entries()) {
      assert.deepEqual(await client.ok("input_stream", { chunk: `i${seq}`, seq }), { seq });
      assert.deepEqual(await provider.next("input_stream", n + 1), { chunk: `i${seq}`, seq });
    }
    assert.deepEqual(await provider.ok("output_stream", { chunk: "o0", seq: 0 }), { seq: 0 });
    assert.deepEqual(await client.next("output_stream"), { chunk: "o0", seq: 0 });
    assert.deepEqual(await client.ok("input_stream", { chunk: "i2", seq: 2 }), { seq: 2, duplicate: true });
    assert.deepEqual(await client.refused("input_stream", { chunk: "i2!", seq: 2 }), { reason: "seq_conflict", seq: 2 });
    // The same bytes in other words.
    assert.equal((await client.ok("input_stream", { chunk: Buffer.from("i2").toString("base64"), encoding: "base64", seq: 2 })).duplicate, true);
    await client.ok("input_stream", { chunk: "end", seq: 4 });
    await provider.next("input_stream", 4);
    assert.deepEqual(provider.named("input_stream").map(({ seq }) => seq), [2, 1, 3, 4], "nothing twice");
    assert.deepEqual([client.named("input_stream"), provider.named("output_stream")], [[], []], "not echoed");
  });

  test("R70: the first chunk says whether a stream begins at 0 or 1", async () => {
    const { client } = await world.table();
    await client.ok("input_stream", { chunk: "a", seq: 1 });
    assert.equal((await client.refused("input_stream", { chunk: "b", seq: 0 })).field, "seq");
    assert.deepEqual(await client.ok("input_complete", closing("a")), {});
    const other = await world.table();
    for (const seq of [2, 1, 0]) await other.client.ok("input_stream", { chunk: `${seq}`, seq });
    assert.deepEqual(await other.client.ok("input_complete", closing("012")), {});
    const gap = await world.table();
    for (const seq of [0, 2]) await gap.client.ok("input_stream", { chunk: `${seq}`, seq });
    assert.deepEqual((await gap.client.refused("input_complete", closing("02"))).seqs, [1]);
  });

  test("R69 R74 R75 R76 R77 R78 R167: each side sends its own direction, and what is the provider's to say the client cannot", async () => {
    const { client, provider, task, agents } = await world.table();
    const unauthorized = { reason: "unauthorized" };
    assert.deepEqual(await provider.refused("input_stream", { chunk: "x", seq: 1 }), unauthorized);
    assert.deepEqual(await client.refused("output_stream", { chunk: "x", seq: 1 }), unauthorized);
    assert.deepEqual(await provider.refused("input_complete", closing("")), unauthorized);
    assert.deepEqual(await client.refused("output_complete", closing("")), unauthorized);
    assert.deepEqual(await client.refused("progress", { percent: 1 }), unauthorized);
    assert.deepEqual(await client.refused("checkpoint", { state: {}, seq: 1 }), unauthorized);
    assert.deepEqual(await client.refused("complete", { result: 1 }), unauthorized);
    assert.deepEqual(await client.refused("error", { type: "x" }), unauthorized);
    assert.deepEqual(await provider.refused("cancel", { reason: "x" }), unauthorized);
    assert.deepEqual(await client.refused("no_such_event", {}), { reason: "unknown_event" });
    const { status, progress_percent, checkpoint } = await world.show(agents.client, task);
    assert.deepEqual([status, progress_percent, checkpoint], ["pending", null, undefined], "nothing has changed");
  });

  test("R167: a key without the write scope listens and says nothing; a revoked one is out", async () => {
    const { server, connections } = world;
    const { client, provider, task } = await world.company();
    const made = await server.ok("POST", `/api/v1/agents/${provider.id}/credentials`, { key: provider.key, body: { scopes: ["connect", "read"] } });
    const reader = await world.sit({ key: made.api_key ?? made.token ?? made.key }, task);
    assert.deepEqual(await reader.refused("output_stream", { chunk: "x", seq: 1 }), { reason: "forbidden" });
    assert.deepEqual(await reader.refused("progress", { percent: 1 }), { reason: "forbidden" });
    const sender = await world.sit(client, task);
    await sender.ok("input_stream", { chunk: "x", seq: 1 });
    await reader.next("input_stream");
    await server.ok("POST", "/api/v1/auth/rotate-key", { key: client.key, body: {} });
    await until("the old key's socket is closed", () => sender.socket.recorded.closes.length > 0);
    assert.equal((await server.request("GET", `/api/v1/tasks/${task.id}`, { key: client.key })).status, 401, "the key is none any more");
    // A session, until its end.
    const { token } = await server.ok("POST", "/api/v1/auth/authenticate", { key: provider.key, body: {} });
    const session = await connections.socket(server, "/socket", "", { params: { session_token: token } });
    const channel = session.channel(`task:${task.id}`);
    assert.equal((await join(channel)).status, "ok");
    assert.deepEqual(await push(channel, "output_stream", { chunk: "o", seq: 1 }), { status: "ok", response: { seq: 1 } });
    await server.ok("DELETE", "/api/v1/auth/logout", { token });
    await until("the session's socket is closed", () => session.recorded.closes.length > 0);
  });

  test("R71: chunks are text or base64, and their size is that of the bytes", async () => {
    const { client, provider } = await world.table();
    const binary = randomBytes(1_000);
    await client.ok("input_stream", { chunk: binary.toString("base64"), encoding: "base64", seq: 1 });
    assert.deepEqual(await provider.next("input_stream"), { chunk: binary.toString("base64"), encoding: "base64", seq: 1 });
    const text = "é\u0000😀\n\"";
    await client.ok("input_stream", { chunk: text, seq: 2 });
    assert.deepEqual(await provider.next("input_stream", 2), { chunk: text, seq: 2 });
    const large = randomBytes(262_144);
    await client.ok("input_stream", { chunk: large.toString("base64"), encoding: "base64", seq: 3 });
    assert.equal((await provider.next("input_stream", 3)).chunk, large.toString("base64"));
    const over = { chunk: "x".repeat(262_145), seq: 4 };
    assert.equal((await client.refused("input_stream", over)).reason, "payload_too_large");
    for (const [payload, field] of [
      [{ chunk: "?", seq: 4, encoding: "base64" }, "chunk"],
      [{ chunk: "a", seq: 4, encoding: "gzip" }, "encoding"],
      [{ chunk: 7, seq: 4 }, "chunk"],
      [{ chunk: "a", seq: -1 }, "seq"],
      [{ chunk: "a", seq: 1.5 }, "seq"],
      [{ chunk: "a" }, "seq"],
    ]) {
      const { reason, field: named } = await client.refused("input_stream", payload);
      assert.deepEqual([reason, named], ["invalid_payload", field], JSON.stringify(payload));
    }
    assert.deepEqual(await client.ok("input_complete", closing(binary, text, large)), {});
  });

  test("R72 R73: a stream ends when its bytes are what the sender says, and stays open until then", async () => {
    const { client, provider } = await world.table();
    for (const seq of [1, 4]) await provider.ok("output_stream", { chunk: `<${seq}>`, seq });
    const whole = closing("<1>", "<2>", "<3>", "<4>");
    assert.deepEqual(await provider.refused("output_complete", whole), { reason: "missing_chunks", seqs: [2, 3], count: 2 });
    for (const seq of [2, 3]) await provider.ok("output_stream", { chunk: `<${seq}>`, seq });
    const wrong = { ...whole, checksum: sha256("other") };
    assert.deepEqual(await provider.refused("output_complete", wrong), { reason: "checksum_mismatch", expected: wrong.checksum, actual: whole.checksum, size: 12 });
    const short = { ...whole, total_size: 11 };
    assert.equal((await provider.refused("output_complete", short)).reason, "checksum_mismatch");
    for (const checksum of ["x", whole.checksum.toUpperCase(), `md5:${whole.checksum}`]) {
      assert.equal((await provider.refused("output_complete", { ...whole, checksum })).field, "checksum");
    }
    assert.deepEqual(client.named("output_complete"), []);
    assert.deepEqual(await provider.ok("output_complete", { ...whole, checksum: `sha256:${whole.checksum}` }), {});
    assert.deepEqual(await client.next("output_complete"), whole);
    assert.deepEqual(client.events.at(-1).event, "output_complete", "behind the last chunk");
    assert.deepEqual(await provider.ok("output_complete", whole), { duplicate: true });
    assert.deepEqual(await provider.refused("output_complete", short), { reason: "stream_complete", ...whole });
    assert.deepEqual(await provider.refused("output_stream", { chunk: "late", seq: 5 }), { reason: "stream_complete", ...whole });
    assert.equal((await provider.ok("output_stream", { chunk: "<4>", seq: 4 })).duplicate, true);
    assert.deepEqual([client.named("output_complete").length, provider.named("output_complete")], [1, []]);
  });

  test("R72: the end does not overtake chunks that were sent before it", async () => {
    const { client, provider } = await world.table();
    const parts = range(1, 200).map((n) => `part ${n};`);
    const sent = parts.map((chunk, at) => client.push("input_stream", { chunk, seq: at + 1 }));
    const end = client.push("input_complete", closing(...parts));
    assert.deepEqual(await end, { status: "ok", response: {} });
    assert.ok((await Promise.all(sent)).every(({ status }) => status === "ok"));
    await provider.next("input_complete");
    assert.deepEqual(provider.named("input_stream").map(({ seq }) => seq), range(1, 200));
    assert.equal(provider.events.at(-1).event, "input_complete");
    const done = [provider.push("output_stream", { chunk: "last", seq: 1 }), provider.push("complete", { result: 1 })];
    assert.deepEqual((await Promise.all(done)).map(({ status }) => status), ["ok", "ok"]);
    await client.next("task_completed");
    assert.deepEqual(client.events.map(({ event }) => event), ["output_stream", "task_completed"]);
  });

  test("R71 R72: a stream of 1 MiB of bytes, sent without waiting, arrives whole and is checked", async () => {
    const { client, provider } = await world.table();
    const bytes = randomBytes(1_048_576);
    const size = 16_384;
    const parts = range(0, bytes.length / size - 1).map((n) => bytes.subarray(n * size, (n + 1) * size));
    const answers = await Promise.all(parts.map((part, seq) => provider.push("output_stream", { chunk: part.toString("base64"), encoding: "base64", seq })));
    assert.ok(answers.every(({ status }) => status === "ok"), JSON.stringify(answers.find(({ status }) => status !== "ok")));
    assert.deepEqual(await provider.ok("output_complete", closing(bytes)), {});
    const end = await client.next("output_complete");
    const got = client.named("output_stream").toSorted((a, b) => a.seq - b.seq);
    assert.deepEqual(got.map(({ seq }) => seq), range(0, parts.length - 1));
    assert.equal(sha256(...got.map(({ chunk }) => Buffer.from(chunk, "base64"))), end.checksum);
  });

  test("R68: who joins with replay gets what is stored by seq, then what comes, without a gap or a repetition", async () => {
    const { server, connections } = world;
    const { client: clientAgent, provider: providerAgent, task } = await world.company();
    const provider = await world.sit(providerAgent, task);
    const order = [3, 1, 2, ...range(4, 60)];
    for (const seq of order.slice(0, 20)) await provider.ok("output_stream", { chunk: `o${seq}`, seq });
    // Chunks land while others join.
    let sending = true;
    const rest = (async () => {
      for (const seq of order.slice(20)) await provider.ok("output_stream", { chunk: `o${seq}`, seq });
      sending = false;
    })();
    const seats = [];
    while (sending) seats.push(await sit(connections, server, clientAgent, task, { replay: true }));
    await rest;
    await provider.ok("output_complete", closing(range(1, 60).map((seq) => `o${seq}`).join("")));
    seats.push(await world.sit(clientAgent, task, { replay: true }));
    for (const seat of seats) {
      await seat.next("output_complete");
      assert.deepEqual(seat.named("output_stream").map(({ seq }) => seq), range(1, 60));
      assert.equal(seat.events.at(-1).event, "output_complete");
    }
    const { joined } = seats.at(-1);
    assert.deepEqual([joined.response.last_output_seq, joined.response.output_complete], [60, true]);
    const tail = await world.sit(clientAgent, task, { replay: true, output_after_seq: 58 });
    await tail.next("output_complete");
    assert.deepEqual(tail.named("output_stream").map(({ seq }) => seq), [59, 60]);
    const own = await world.sit(providerAgent, task, { replay: true, output_after_seq: 57 });
    await own.next("output_stream", 3);
    assert.deepEqual(own.named("output_stream").map(({ seq }) => seq), [58, 59, 60], "one's own, when asked for");
    const plain = await world.sit(clientAgent, task);
    await plain.refused("input_stream", { chunk: 7, seq: 1 });
    assert.deepEqual(plain.events, []);
    assert.equal((await sit(connections, server, clientAgent, task, { replay: "yes" })).joined.response.reason, "invalid_payload");
  });

  test("R45 R68: a reader that takes nothing for a while gets everything afterwards, each once", async () => {
    const { client, provider } = await world.table();
    const raw = client.socket.conn._socket ?? client.socket.conn;
    raw.pause?.();
    const chunk = "x".repeat(100_000);
    for (const seq of range(1, 60)) await provider.ok("output_stream", { chunk: `${seq}:${chunk}`, seq });
    await provider.ok("progress", { percent: 60 });
    raw.resume?.();
    await client.next("progress");
    await client.next("output_stream", 60);
    assert.deepEqual(client.named("output_stream").map(({ seq }) => seq), range(1, 60));
    assert.deepEqual(client.ends, []);
  });

  test("R74: progress is the provider's to say, is kept in the task, and told to the client", async () => {
    const { client, provider, task, agents } = await world.table();
    assert.deepEqual(await provider.ok("progress", { percent: 40.5, message: "halfway\u0000é" }), {});
    assert.deepEqual(await client.next("progress"), { percent: 40.5, message: "halfway\u0000é" });
    const shown = await world.show(agents.client, task);
    assert.deepEqual([shown.progress_percent, shown.progress_message, shown.status], [40.5, "halfway\u0000é", "in_progress"]);
    await provider.ok("progress", { percent: 10 });
    assert.deepEqual(await client.next("progress", 2), { percent: 10, message: null });
    for (const percent of [-1, 100.5, "7", null]) assert.equal((await provider.refused("progress", { percent })).field, "percent");
    assert.equal((await provider.refused("progress", { percent: 1, message: "x".repeat(1_001) })).field, "message");
    assert.deepEqual((await world.sit(agents.client, task)).joined.response.progress, { percent: 10, message: null });
    assert.deepEqual(provider.named("progress"), []);
  });

  test("R75 R79: complete ends the task for everybody, on every way", async () => {
    const { server, connections } = world;
    const { client, provider, task, agents } = await world.table();
    const stream = await connections.reader(server, agents.client, task);
    const told = await listen(connections, server, agents.client);
    const { task: answered } = await provider.ok("complete", { result: { answer: 42 } });
    assert.deepEqual([answered.status, answered.output], ["completed", { answer: 42 }]);
    for (const seat of [client, provider]) assert.deepEqual((await seat.next("task_completed")).task, answered);
    await until("the end of the stream", () => stream.ends.length > 0);
    assert.deepEqual(stream.ends[0].payload, { result: { answer: 42 } });
    await told.next("task.completed", (payload) => payload.task.id === task.id);
    const refused = { reason: "task_not_active", status: "completed" };
    assert.deepEqual(await provider.refused("complete", {}), refused);
    assert.deepEqual(await provider.refused("error", { type: "x" }), refused);
    assert.deepEqual(await client.refused("cancel", {}), refused);
    assert.deepEqual(await client.refused("input_stream", { chunk: "x", seq: 1 }), refused);
    assert.deepEqual(await provider.refused("output_complete", closing("")), refused);
    assert.deepEqual(await provider.refused("progress", { percent: 1 }), refused);
    assert.deepEqual(await provider.refused("checkpoint", { state: 1, seq: 1 }), refused);
    assert.equal((await world.show(agents.client, task)).status, "completed");
    for (const seat of [client, provider]) assert.equal(seat.named("task_completed").length, 1);
  });

  test("R76: error is the provider's, fails the task, and tells the client why", async () => {
    const { server, connections } = world;
    const { client, provider, task, agents } = await world.table();
    const stream = await connections.reader(server, agents.client, task);
    for (const payload of [{}, { type: "" }, { type: 7 }]) assert.equal((await provider.refused("error", payload)).field, "type");
    assert.equal((await provider.ok("error", { type: "timeout", details: { after_s: 3 } })).task.status, "failed");
    assert.deepEqual(await client.next("error"), { type: "timeout", details: { after_s: 3 } });
    for (const seat of [client, provider]) assert.deepEqual((await seat.next("task_failed")).task.error, { type: "timeout", details: { after_s: 3 } });
    await until("the end of the stream", () => stream.ends.length > 0);
    assert.deepEqual([stream.ends[0].event, stream.ends[0].payload], ["stream.error", { error: { type: "timeout", details: { after_s: 3 } } }]);
    assert.deepEqual(provider.named("error"), []);
  });

  test("R77: cancel is the client's, and the provider is told", async () => {
    const { client, provider, task, agents } = await world.table();
    assert.equal((await client.ok("cancel", { reason: "changed my mind" })).task.status, "cancelled");
    assert.deepEqual(await provider.next("cancel"), { reason: "changed my mind" });
    for (const seat of [client, provider]) assert.equal((await seat.next("task_cancelled")).task.id, task.id);
    assert.deepEqual(client.named("cancel"), []);
    assert.equal((await world.show(agents.client, task)).error.message, "changed my mind");
  });

  test("R75 R76 R77: what ends by REST is told on the channel; the channel never sees the stream", async () => {
    const { server } = world;
    const ends = [
      ["PUT", "complete", "provider", "task_completed"],
      ["PUT", "fail", "provider", "task_failed"],
      ["POST", "cancel", "client", "task_cancelled"],
    ];
    for (const [method, verb, by, event] of ends) {
      const { client, provider, task, agents } = await world.table();
      await server.emit(task, agents.provider, "a chunk of the stream");
      await server.ok(method, `/api/v1/tasks/${task.id}/${verb}`, { key: agents[by].key, body: {} });
      for (const seat of [client, provider]) {
        assert.equal((await seat.next(event)).task.id, task.id);
        assert.deepEqual(seat.events.map(({ event }) => event), [event]);
      }
    }
  });

  test("R79: of complete and cancel at once exactly one wins", async () => {
    for (let round = 0; round < 10; round += 1) {
      const { client, provider, task, agents } = await world.table();
      const both = await Promise.all([provider.push("complete", { result: round }), client.push("cancel", {})]);
      assert.deepEqual(both.map(({ status }) => status).toSorted(), ["error", "ok"]);
      const won = both[0].status === "ok" ? "completed" : "cancelled";
      const lost = both.find(({ status }) => status === "error").response;
      assert.deepEqual(lost, { reason: "task_not_active", status: won });
      assert.equal((await world.show(agents.client, task)).status, won);
      for (const seat of [client, provider]) {
        await seat.next(`task_${won}`);
        assert.equal(seat.events.filter(({ event }) => event.startsWith("task_")).length, 1);
      }
    }
  });

  test("R78: the newest checkpoint is kept, and shown to who joins and who asks", async () => {
    const { client, provider, task, agents } = await world.table();
    assert.deepEqual(await provider.ok("checkpoint", { state: { page: 3 }, seq: 5 }), {});
    assert.deepEqual(await provider.ok("checkpoint", { state: { page: 3 }, seq: 5 }), { duplicate: true });
    assert.deepEqual(await provider.refused("checkpoint", { state: { page: 2 }, seq: 4 }), { reason: "stale_checkpoint", seq: 5 });
    assert.deepEqual(await provider.refused("checkpoint", { state: { page: 4 }, seq: 5 }), { reason: "seq_conflict", seq: 5 });
    await provider.ok("checkpoint", { state: [7, "é"], seq: 9 });
    const large = await provider.refused("checkpoint", { state: "x".repeat(262_144), seq: 10 });
    assert.deepEqual([large.reason, large.field], ["invalid_payload", "state"]);
    assert.equal((await provider.refused("checkpoint", { seq: 10 })).field, "state");
    for (const who of [agents.client, agents.provider]) {
      assert.deepEqual((await world.sit(who, task)).joined.response.checkpoint, { seq: 9, state: [7, "é"] });
      assert.deepEqual((await world.show(who, task)).checkpoint, { seq: 9, state: [7, "é"] });
    }
    assert.deepEqual(client.events, []);
  });

  test("R69 R140: a task that begins by its channel is not given to another; one that has not is, and the first is out", async () => {
    const { server } = world;
    const { client, provider, task, agents } = await world.table();
    const spare = await server.agent({ name: "Spare" });
    const reassign = (one) => server.request("POST", `/api/v1/tasks/${one.id}/reassign`, { key: agents.client.key, body: { provider_agent_id: spare.id } });
    await provider.ok("output_stream", { chunk: "begun", seq: 1 });
    const refused = await reassign(task);
    assert.deepEqual([refused.status, refused.error.details.status], [409, "in_progress"]);
    assert.equal((await server.emit(task, agents.provider, "x")).status, 202, "its stream goes on");
    const other = await server.task(agents.client, agents.provider);
    const seats = [await world.sit(agents.client, other), await world.sit(agents.provider, other)];
    await seats[0].ok("input_stream", { chunk: "i", seq: 1 });
    assert.equal((await reassign(other)).status, 200);
    await until("the first provider is out", () => seats[1].ends.includes("close"));
    assert.deepEqual((await sit(world.connections, server, agents.provider, other)).joined.response, { reason: "unauthorized" });
    const successor = await world.sit(spare, other, { replay: true });
    assert.equal((await successor.next("input_stream")).chunk, "i");
    await successor.ok("output_stream", { chunk: "o", seq: 1 });
    assert.equal((await seats[0].next("output_stream")).chunk, "o");
    assert.equal(client.named("output_stream").length, 1);
  });

  test("R68 R72 R78 R79 R166: chunks that were answered, checkpoints and ends of streams survive kill -9", async () => {
    const { server } = world;
    const { client: clientAgent, provider: providerAgent, task } = await world.company();
    const [client, provider] = [await world.sit(clientAgent, task), await world.sit(providerAgent, task)];
    await client.ok("input_stream", { chunk: "all", seq: 1 });
    await client.ok("input_complete", closing("all"));
    await provider.ok("checkpoint", { state: { at: 1 }, seq: 1 });
    await provider.ok("progress", { percent: 5 });
    const answered = [];
    const text = (seq) => `output ${seq};`;
    const sending = range(1, 300).map((seq) => provider.push("output_stream", { chunk: text(seq), seq }).then(({ status }) => status === "ok" && answered.push(seq)));
    await until("some are answered", () => answered.length >= 50);
    await server.kill();
    const survivors = [...answered];
    await world.connections.close();
    void sending;
    await server.startAgain();
    const [late, again] = [await world.sit(clientAgent, task, { replay: true }), await world.sit(providerAgent, task, { replay: true })];
    const { response } = again.joined;
    assert.deepEqual([response.checkpoint, response.progress, response.input_complete], [{ seq: 1, state: { at: 1 } }, { percent: 5, message: null }, true]);
    assert.deepEqual(await again.next("input_complete"), closing("all"));
    assert.equal(again.named("input_stream")[0].chunk, "all");
    await until("what was answered is replayed", () => {
      const seqs = new Set(late.named("output_stream").map(({ seq }) => seq));
      return survivors.every((seq) => seqs.has(seq));
    });
    // The provider sends what it is not sure of again; the end is checked over both lives.
    const resent = await Promise.all(range(1, 300).map((seq) => again.push("output_stream", { chunk: text(seq), seq })));
    assert.ok(resent.every(({ status }) => status === "ok"));
    for (const seq of survivors) assert.equal(resent[seq - 1].response.duplicate, true, `${seq} was answered before`);
    await again.ok("output_complete", closing(range(1, 300).map(text).join("")));
    await late.next("output_complete");
    assert.deepEqual(late.named("output_stream").map(({ seq }) => seq).toSorted((a, b) => a - b), range(1, 300));
  });
});

onNode("small bounds", [`limits.joins_per_agent=${rate(4)}`, "limits.task_channel_stream_bytes_max=1000", "limits.task_channel_chunks_max=5", `limits.chunks_per_stream=${rate(8, 1, 60_000)}`], (world) => {
  test("R60 R71 R169: streams and rates are bounded", async () => {
    const { client, provider } = await world.table();
    await client.ok("input_stream", { chunk: "x".repeat(900), seq: 1 });
    assert.deepEqual(await client.refused("input_stream", { chunk: "x".repeat(101), seq: 2 }), { reason: "stream_too_large", max_bytes: 1000, max_chunks: 5 });
    assert.equal((await client.refused("input_stream", { chunk: "", seq: Number.MAX_SAFE_INTEGER })).reason, "stream_too_large", "what lies before it never fits");
    for (const seq of range(2, 5)) await client.ok("input_stream", { chunk: "", seq });
    assert.equal((await client.refused("input_stream", { chunk: "", seq: 6 })).reason, "stream_too_large");
    await client.push("input_stream", { chunk: "", seq: 2 });
    const { reason, retry_after_ms } = await client.refused("input_stream", { chunk: "", seq: 2 });
    assert.equal(reason, "rate_limited");
    assert.ok(retry_after_ms > 0);
    // Control events share the bucket of joins.
    const answers = await Promise.all(range(1, 8).map((percent) => provider.push("progress", { percent })));
    assert.ok(answers.some(({ response }) => response.reason === "rate_limited"), JSON.stringify(answers));
    assert.ok(answers.some(({ status }) => status === "ok"));
  });
});

onNode("short retention", ["stream.retention_ms=1000"], (world) => {
  test("R68 R166: chunks go with the stream of their task; what is known of them stays", { timeout: 100_000 }, async () => {
    const { client, provider, task, agents } = await world.table();
    await client.ok("input_stream", { chunk: "kept a while", seq: 1 });
    await client.ok("input_complete", closing("kept a while"));
    /** What is replayed; its end is always told. */
    const replayed = async () => {
      const seat = await world.sit(agents.provider, task, { replay: true });
      assert.equal(seat.joined.response.last_input_seq, 1);
      await seat.next("input_complete");
      return seat.named("input_stream").length;
    };
    assert.equal(await replayed(), 1);
    await provider.ok("complete", { result: 1 });
    await until("the chunk is gone", async () => (await replayed()) === 0, 90_000);
  });
});

describe("several nodes", () => {
  const world = onCluster();
  const sitAt = async (node, who, task, params) => {
    const seat = await sit(world.connections, node, who, task, params);
    assert.equal(seat.joined.status, "ok", JSON.stringify(seat.joined));
    return seat;
  };

  test("R69 R70 R72 R73 R75 R78 R79: the two agents are at different nodes, and it is the same channel", async () => {
    const { client: clientAgent, provider: providerAgent, task } = await world.cast(world.three);
    const [client, provider] = [await sitAt(world.one, clientAgent, task), await sitAt(world.two, providerAgent, task)];
    const again = await sitAt(world.three, clientAgent, task);
    const parts = range(1, 100).map((n) => `part ${n};`);
    const sent = parts.map((chunk, at) => client.push("input_stream", { chunk, seq: at + 1 }));
    // The same chunks from another node of the same agent: one of each counts.
    const twice = parts.map((chunk, at) => again.push("input_stream", { chunk: at === 49 ? "other bytes" : chunk, seq: at + 1 }));
    const [first, second] = [await Promise.all(sent), await Promise.all(twice)];
    for (const at of range(0, 99)) {
      const outcomes = [first[at], second[at]].map(({ status, response }) => (status === "ok" ? (response.duplicate ? "duplicate" : "new") : response.reason));
      assert.deepEqual(outcomes.toSorted(), at === 49 ? ["new", "seq_conflict"] : ["duplicate", "new"], `chunk ${at + 1}`);
    }
    const fiftieth = first[49].status === "ok" ? parts[49] : "other bytes";
    const whole = closing(...parts.map((part, at) => (at === 49 ? fiftieth : part)));
    await client.ok("input_complete", whole);
    assert.deepEqual(await again.ok("input_complete", whole), { duplicate: true });
    assert.deepEqual(await provider.next("input_complete"), whole);
    assert.deepEqual(provider.named("input_stream").map(({ seq }) => seq).toSorted((a, b) => a - b), range(1, 100));
    await provider.ok("checkpoint", { state: "here", seq: 3 });
    assert.deepEqual((await sitAt(world.three, providerAgent, task)).joined.response.checkpoint, { seq: 3, state: "here" });
    await provider.ok("output_stream", { chunk: "o", seq: 1 });
    for (const seat of [client, again]) await seat.next("output_stream");
    const [completed, cancelled] = await Promise.all([provider.push("complete", { result: 1 }), again.push("cancel", {})]);
    assert.deepEqual([completed.status, cancelled.status].toSorted(), ["error", "ok"]);
    const won = completed.status === "ok" ? "completed" : "cancelled";
    for (const seat of [client, provider, again]) {
      await seat.next(`task_${won}`);
      assert.equal(seat.events.filter(({ event }) => event.startsWith("task_")).length, 1);
    }
  });

  test("R68 R69 R73 R75: what a node missed while the others took it for gone, its joins are told afterwards, each thing once", async () => {
    const { client: clientAgent, provider: providerAgent, task } = await world.cast(world.two);
    const [client, provider] = [await sitAt(world.one, clientAgent, task), await sitAt(world.two, providerAgent, task)];
    await provider.ok("output_stream", { chunk: "o1", seq: 1 });
    await client.next("output_stream");
    world.one.pause();
    try {
      await until("the node is taken for gone", async () => {
        const known = (await world.two.view())?.nodes.find(({ name }) => name === world.one.name);
        return !["up", "suspect"].includes(known?.state);
      }, 60_000);
      for (const seq of range(2, 30)) await provider.ok("output_stream", { chunk: `o${seq}`, seq });
      await provider.ok("output_complete", closing(range(1, 30).map((seq) => `o${seq}`).join("")));
      await provider.ok("complete", { result: "done" });
    } finally {
      world.one.resume();
    }
    await client.next("task_completed");
    assert.deepEqual(client.named("output_stream").map(({ seq }) => seq).toSorted((a, b) => a - b), range(1, 30));
    assert.deepEqual([client.named("output_complete").length, client.named("task_completed").length, client.ends], [1, 1, []]);
    const ends = client.events.findIndex(({ event }) => event === "output_complete");
    assert.equal(client.events.slice(ends).filter(({ event }) => event === "output_stream").length, 0, "its end is behind its chunks");
  });

  test("R68 R166: who was at a node that dies goes on at another, and misses nothing", async () => {
    const { client: clientAgent, provider: providerAgent, task } = await world.cast(world.one);
    const [client, provider] = [await sitAt(world.one, clientAgent, task), await sitAt(world.two, providerAgent, task)];
    for (const seq of range(1, 20)) await provider.ok("output_stream", { chunk: `o${seq}`, seq });
    await client.next("output_stream", 20);
    client.socket.disconnect();
    await world.one.kill();
    for (const seq of range(21, 40)) await provider.ok("output_stream", { chunk: `o${seq}`, seq });
    const later = await sitAt(world.three, clientAgent, task, { replay: true, output_after_seq: 20 });
    await provider.ok("output_stream", { chunk: "o41", seq: 41 });
    await later.next("output_stream", 21);
    assert.deepEqual(later.named("output_stream").map(({ seq }) => seq), range(21, 41));
    await provider.ok("output_complete", closing(range(1, 41).map((seq) => `o${seq}`).join("")));
    await later.next("output_complete");
  });
});
