// Requests that are done once under their key, over REST.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { onCluster } from "./lib/cluster.mjs";
import { Server, until } from "./lib/server.mjs";
import { range, rate, ROOMY } from "./lib/streams.mjs";

const key = (name) => ({ "x-idempotency-key": name });
const REPLAYED = "idempotency-replayed";

/** A server of its own for some tests. */
function onNode(title, set, define) {
  describe(title, () => {
    const world = {};
    before(async () => {
      world.server = await Server.start({ set: [...ROOMY, ...set] });
      const { server } = world;
      world.owner = await server.user("Owner");
      world.client = await server.agent({ owner: world.owner, name: "Client" });
      world.provider = await server.agent({ name: "Provider" });
      world.body = (input = {}) => ({ provider_agent_id: world.provider.id, capability: "code", input });
      world.create = (name, input, who = { key: world.client.key }) => server.request("POST", "/api/v1/tasks", { ...who, body: world.body(input), headers: key(name) });
      world.count = async () => (await server.request("GET", "/api/v1/tasks?limit=1", { key: world.client.key })).body.meta.pagination.total_count;
    });
    after(() => world.server?.end());
    define(world);
  });
}

onNode("one node", ["drills.enabled=true"], (world) => {
  test("R125: a request that is sent again under its key is done once, and answered as it was", async () => {
    const before = await world.count();
    const first = await world.create("k1", { n: 1 });
    assert.deepEqual([first.status, first.headers.get(REPLAYED)], [201, null]);
    for (let again = 0; again < 3; again += 1) {
      const answer = await world.create("k1", { n: 1 });
      assert.deepEqual([answer.status, answer.text, answer.headers.get(REPLAYED)], [201, first.text, "true"]);
      assert.match(answer.headers.get("content-type"), /^application\/json/);
    }
    assert.equal(await world.count(), before + 1);
    // Without a key, and under another, it is another request.
    assert.notEqual((await world.create("k2", { n: 1 })).data.id, first.data.id);
    assert.equal((await world.server.request("POST", "/api/v1/tasks", { key: world.client.key, body: world.body({ n: 1 }) })).headers.get(REPLAYED), null);
    assert.equal(await world.count(), before + 3);
  });

  test("R125: PUT is done once too, and what it was answered stays", async () => {
    const { server, client, provider } = world;
    const task = await server.task(client, provider);
    const complete = (output) => server.request("PUT", `/api/v1/tasks/${task.id}/complete`, { key: provider.key, body: { output }, headers: key("done") });
    const [first, again] = [await complete(1), await complete(1)];
    assert.deepEqual([first.status, again.status, again.text], [200, 200, first.text]);
    const bare = await server.request("PUT", `/api/v1/tasks/${task.id}/complete`, { key: provider.key, body: { output: 1 } });
    assert.equal(bare.status, 409, "without the key it is refused");
  });

  test("R125: another body, query or acting agent under the same key is a mismatch, and does nothing", async () => {
    const { server, owner, client } = world;
    const sibling = await server.agent({ owner, name: "Sibling" });
    const before = await world.count();
    assert.equal((await world.create("m1", { n: 1 })).status, 201);
    const answer = await world.create("m1", { n: 2 });
    assert.deepEqual([answer.status, answer.error.code, answer.error.details.reason], [422, "IDEMPOTENCY_MISMATCH", "idempotency_mismatch"]);
    assert.equal(await world.count(), before + 1);
    const as = (agent) => world.create("m2", {}, { token: owner.token, agent: agent.id });
    assert.equal((await as(client)).status, 201);
    assert.equal((await as(sibling)).error.code, "IDEMPOTENCY_MISMATCH");
    assert.equal((await as(client)).headers.get(REPLAYED), "true");
  });

  test("R125 R167: a key is its owner's, for one method and path; a new credential keeps it, and a stranger gets nothing", async () => {
    const { server, provider } = world;
    const [one, two] = [await server.agent(), await server.agent()];
    const ask = (who, name = "shared") => world.create(name, {}, { key: who.key });
    const [first, other] = [await ask(one), await ask(two)];
    assert.deepEqual([other.status, other.headers.get(REPLAYED)], [201, null]);
    assert.notEqual(other.data.id, first.data.id);
    const cancelled = await server.request("POST", `/api/v1/tasks/${first.data.id}/cancel`, { key: one.key, body: world.body(), headers: key("shared") });
    assert.deepEqual([cancelled.status, cancelled.headers.get(REPLAYED)], [200, null]);
    const rotated = await server.ok("POST", "/api/v1/auth/rotate-key", { key: one.key, body: {} });
    const revoked = await ask(one);
    assert.deepEqual([revoked.status, revoked.headers.get(REPLAYED)], [401, null], "the old credential is none");
    const again = await ask({ key: rotated.api_key ?? rotated.key });
    assert.deepEqual([again.status, again.headers.get(REPLAYED), again.data.id], [201, "true", first.data.id]);
    assert.equal((await ask({ key: "ap_wrong" })).status, 401);
    const made = await server.ok("POST", `/api/v1/agents/${two.id}/credentials`, { key: two.key, body: { scopes: ["connect", "read"] } });
    const reader = await ask({ key: made.api_key ?? made.key });
    assert.deepEqual([reader.status, reader.headers.get(REPLAYED)], [403, null]);
    await server.ok("PUT", `/api/v1/admin/agents/${two.id}/status`, { token: server.adminToken, body: { status: "suspended" } });
    const suspended = await ask(two);
    assert.deepEqual([suspended.status, suspended.headers.get(REPLAYED)], [403, null]);
    assert.ok(provider.id);
  });

  test("R125: refusals that stand are given again; GET, chunks and keys that are none are not touched", async () => {
    const { server, client, provider } = world;
    const bad = (capability) => server.request("POST", "/api/v1/tasks", { key: client.key, body: { ...world.body(), capability }, headers: key("bad") });
    const [first, again] = [await bad(""), await bad("")];
    assert.deepEqual([first.status, again.status, again.headers.get(REPLAYED), again.text], [422, 422, "true", first.text]);
    for (const name of ["", " ", "x".repeat(129), "é"]) {
      const answer = await server.request("POST", "/api/v1/tasks", { key: client.key, body: world.body(), headers: key(name) });
      assert.deepEqual([answer.status, answer.error.field], [422, "x-idempotency-key"], name.slice(0, 3));
    }
    const shown = await server.request("GET", "/api/v1/tasks", { key: client.key, headers: key("bad") });
    assert.deepEqual([shown.status, shown.headers.get(REPLAYED)], [200, null]);
    const task = await server.task(client, provider);
    const emit = () => server.request("POST", `/api/v1/tasks/${task.id}/chunk`, { key: provider.key, body: { content: "x" }, headers: key("chunk") });
    const chunks = [await emit(), await emit()];
    assert.deepEqual(chunks.map(({ data, headers }) => [data.seq, headers.get(REPLAYED)]), [[1, null], [1, null]]);
  });

  test("R10 R17 R125: an answer with a secret is not stored: the request is not done again, and says so", async () => {
    const { server, client } = world;
    const make = () => server.request("POST", `/api/v1/agents/${client.id}/credentials`, { key: client.key, body: {}, headers: key("secret") });
    const list = async () => (await server.ok("GET", `/api/v1/agents/${client.id}/credentials`, { key: client.key })).length;
    const before = await list();
    assert.equal((await make()).status, 201);
    const again = await make();
    assert.deepEqual([again.status, again.error.code, again.error.details.answer_status], [409, "IDEMPOTENCY_ANSWER_NOT_KEPT", 201]);
    assert.equal(await list(), before + 1);
  });

  test("R125: of many at once one is done; the others wait their turn or get its answer", async () => {
    const before = await world.count();
    for (const round of range(1, 5)) {
      const answers = await Promise.all(range(1, 20).map(() => world.create(`many ${round}`, { round })));
      const created = answers.filter(({ status, headers }) => status === 201 && !headers.get(REPLAYED));
      assert.equal(created.length, 1);
      for (const { status, data, error, headers } of answers) {
        if (status === 409) assert.equal(error.code, "IDEMPOTENCY_PENDING");
        else assert.deepEqual([status, data.id], [201, created[0].data.id], headers.get(REPLAYED) ?? "first");
      }
      const later = await world.create(`many ${round}`, { round });
      assert.deepEqual([later.headers.get(REPLAYED), later.data.id], ["true", created[0].data.id]);
    }
    assert.equal(await world.count(), before + 5);
  });

  test("R125: a key survives kill -9, and a request that was cut off does not keep it for ever", async () => {
    const { server } = world;
    const first = await world.create("survives", { n: 1 });
    const before = await world.count();
    const names = range(1, 40).map((n) => `cut ${n}`);
    const cut = names.map((name) => world.create(name, { name }).catch(() => null));
    await cut[0];
    await server.kill();
    const answered = (await Promise.all(cut)).filter((answer) => answer?.status === 201);
    await server.startAgain();
    const again = await world.create("survives", { n: 1 });
    assert.deepEqual([again.status, again.headers.get(REPLAYED), again.data.id], [201, "true", first.data.id]);
    for (const answer of answered) {
      const replayed = await world.create(answer.data.input.name, { name: answer.data.input.name });
      assert.equal(replayed.data.id, answer.data.id, "what was answered is not done again");
    }
    await server.ok("POST", "/api/v1/admin/drills/clock", { token: server.adminToken, body: { advance_ms: 61_000 } });
    for (const name of names) assert.equal((await world.create(name, { name })).status, 201, `${name} is free after its lease`);
    const made = (await world.count()) - before;
    assert.equal(made, 40, "also what was stored and not answered");
  });

  test("R125: after 24 hours a key is another one", async () => {
    const { server } = world;
    const first = await world.create("daily", { n: 1 });
    const advance = (advance_ms) => server.ok("POST", "/api/v1/admin/drills/clock", { token: server.adminToken, body: { advance_ms } });
    await advance(24 * 3_600_000 - 60_000);
    assert.equal((await world.create("daily", { n: 1 })).data.id, first.data.id);
    await advance(61_000);
    const next = await world.create("daily", { n: 2 });
    assert.deepEqual([next.status, next.headers.get(REPLAYED)], [201, null]);
    assert.notEqual(next.data.id, first.data.id);
  });
});

onNode("small bounds", ["limits.idempotency_answer_bytes_max=2000", `limits.requests_per_credential=${rate(12, 1, 60_000)}`], (world) => {
  test("R125 R169: an answer that is too large is not kept, and a replay counts as a request", async () => {
    const { server } = world;
    const first = await world.create("large", { text: "x".repeat(2_000) });
    assert.equal(first.status, 201);
    const again = await world.create("large", { text: "x".repeat(2_000) });
    assert.deepEqual([again.status, again.error.details.answer_status], [409, 201]);
    const other = await server.agent();
    const ask = () => world.create("again", {}, { key: other.key });
    const statuses = [];
    for (const _ of range(1, 14)) statuses.push((await ask()).status);
    assert.deepEqual(statuses, [...Array(12).fill(201), 429, 429]);
  });

  test("R125: a request that was refused for the moment is done when it comes again", async () => {
    const { server } = world;
    const other = await server.agent();
    for (const _ of range(1, 12)) await server.request("GET", "/api/v1/tasks", { key: other.key });
    const refused = await world.create("later", {}, { key: other.key });
    assert.equal(refused.status, 429);
    const session = await server.request("POST", "/api/v1/tasks", { key: other.key, body: world.body(), headers: key("later") });
    assert.deepEqual([session.status, session.headers.get(REPLAYED)], [429, null], "not the answer of before, but a new one");
  });
});

describe("several nodes", () => {
  const world = onCluster();

  test("R125: the same request at several nodes at once is done once", async () => {
    const { client, provider } = await world.cast(world.one);
    const count = async () => (await world.two.request("GET", "/api/v1/tasks?limit=1", { key: client.key })).body.meta.pagination.total_count;
    const before = await count();
    const ask = (node, n) => node.request("POST", "/api/v1/tasks", { key: client.key, body: { provider_agent_id: provider.id, capability: "code", input: n }, headers: key(`n${n}`) });
    for (const n of range(1, 20)) {
      const answers = await Promise.all([...world.nodes, ...world.nodes].map((node) => ask(node, n)));
      const created = answers.filter(({ status, headers }) => status === 201 && !headers.get(REPLAYED));
      assert.equal(created.length, 1, `${n}`);
      const ids = new Set(answers.filter(({ status }) => status === 201).map(({ data }) => data.id));
      assert.equal(ids.size, 1);
      for (const { status, error } of answers) if (status !== 201) assert.equal(error.code, "IDEMPOTENCY_PENDING");
      for (const node of world.nodes) assert.equal((await ask(node, n)).text, created[0].text);
      assert.equal((await ask(world.three, n)).headers.get(REPLAYED), "true");
    }
    assert.equal(await count(), before + 20);
    assert.equal((await until("another body is refused elsewhere", () => world.two.request("POST", "/api/v1/tasks", { key: client.key, body: { provider_agent_id: provider.id, capability: "code", input: "other" }, headers: key("n1") }))).status, 422);
  });
});
