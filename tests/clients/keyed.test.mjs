// Requests that move money or give work, under a key: once, whatever becomes of the node or of the answer.

import assert from "node:assert/strict";
import net from "node:net";
import { after, before, describe, test } from "node:test";
import { onCluster } from "./lib/cluster.mjs";
import { assertSound, credit, money, signingAgent } from "./lib/money.mjs";
import { Server, until } from "./lib/server.mjs";
import { range, rate, ROOMY } from "./lib/streams.mjs";

const REPLAYED = "idempotency-replayed";
/** For how long a node that has died keeps a key, and a little more. */
const LEASE_MS = 61_000;

/** What is asked under keys: each holds 1 of the client's money, and answers with what it made. */
const SORTS = {
  task: {
    path: () => "/api/v1/tasks",
    body: ({ provider }) => ({ provider_agent_id: provider.id, capability: "code", price: "1" }),
    made: (data) => data.id,
    list: "/api/v1/tasks",
  },
  hiring: {
    path: ({ provider }) => `/api/v1/agents/${provider.id}/hire`,
    body: () => ({ queue: true, price: "1" }),
    made: (data) => data.hiring.id,
    list: "/api/v1/hirings",
  },
  "payment channel": {
    path: () => "/api/v1/payment-channels",
    body: ({ provider }) => ({ counterparty_agent_id: provider.id, deposit: "1" }),
    made: (data) => data.id,
    list: "/api/v1/payment-channels",
  },
};

/** A client that pays, and a provider. */
const company = async (server) => ({
  client: await signingAgent(server, { name: "Client", credit: "1000" }),
  provider: await signingAgent(server, { name: "Provider" }),
});

const ask = (server, sort, cast, name) =>
  server.request("POST", sort.path(cast), { key: cast.client.key, body: sort.body(cast), headers: { "x-idempotency-key": name } });

const count = async (server, sort, { client }) =>
  (await server.request("GET", `${sort.list}?limit=1`, { key: client.key })).body.meta.pagination.total_count;

const advance = (server, advance_ms) => server.ok("POST", "/api/v1/admin/drills/clock", { token: server.adminToken, body: { advance_ms } });

/**
 * Asks for many, has `kill` end the node in the midst of them, and sends each again to the node that it gives: what was
 * stored is given, what was not is done. Gives how many were stored without an answer.
 */
async function cutAndAskAgain(server, sort, kill) {
  const cast = await company(server);
  const names = range(1, 60).map((n) => `cut ${n}`);
  const cut = names.map((name) => ask(server, sort, cast, name).catch(() => null));
  await Promise.race(cut);
  const next = await kill();
  const answers = await Promise.all(cut);
  const stored = await count(next, sort, cast);
  await advance(next, LEASE_MS);
  const made = new Set();
  for (const [n, name] of names.entries()) {
    const again = await ask(next, sort, cast, name);
    assert.equal(again.status, 201, `${name}: ${again.text}`);
    const id = sort.made(again.data);
    if (answers[n]?.status === 201) assert.equal(id, sort.made(answers[n].data), "what was answered is not done again");
    made.add(id);
  }
  assert.equal(made.size, names.length);
  assert.equal(await count(next, sort, cast), names.length, "each once");
  assert.deepEqual(await money(next, cast.client), [String(1000 - names.length), String(names.length)], "and held once");
  await assertSound(next);
  return stored - answers.filter((answer) => answer?.status === 201).length;
}

/** Sends requests on to a node, and loses every answer; `heard` once there was one. */
async function deaf(server) {
  let answered;
  const heard = new Promise((resolve) => (answered = resolve));
  const listener = net.createServer((near) => {
    const far = net.connect(server.port, server.address ?? "127.0.0.1");
    for (const side of [near, far]) side.on("error", () => {});
    near.pipe(far);
    far.once("data", () => {
      for (const side of [near, far]) side.destroy();
      answered();
    });
  });
  await new Promise((resolve) => listener.listen(0, "127.0.0.1", resolve));
  return { heard, url: `http://127.0.0.1:${listener.address().port}`, end: () => listener.close() };
}

describe("one node", () => {
  let server;
  before(async () => {
    server = await Server.start({ set: [...ROOMY, "drills.enabled=true", "limits.payment_channels_per_agent_max=100000"] });
  });
  after(() => server?.end());

  for (const [name, sort] of Object.entries(SORTS)) {
    test(`R125 R141 R166: a ${name} under a key is made once, though the node is killed between commit and answer`, async () => {
      const kill = async () => {
        await server.kill();
        await server.startAgain();
        return server;
      };
      // Until some were: otherwise nothing was seen.
      let unanswered = 0;
      for (let round = 0; unanswered === 0 && round < 20; round++) {
        // Its clock is right again in the next life.
        await kill();
        unanswered = await cutAndAskAgain(server, sort, kill);
      }
      assert.ok(unanswered > 0, "some were stored and not answered");
    });

    test(`R125 R141: a ${name} under a key is made once, though its answer is lost on the way`, async () => {
      const cast = await company(server);
      const proxy = await deaf(server);
      const lost = fetch(proxy.url + sort.path(cast), {
        method: "POST",
        headers: { "x-api-key": cast.client.key, "x-idempotency-key": "lost", "content-type": "application/json" },
        body: JSON.stringify(sort.body(cast)),
      });
      await assert.rejects(lost);
      await proxy.heard;
      proxy.end();
      const again = await ask(server, sort, cast, "lost");
      assert.deepEqual([again.status, again.headers.get(REPLAYED)], [201, "true"]);
      assert.equal(await count(server, sort, cast), 1);
      assert.deepEqual(await money(server, cast.client), ["999", "1"]);
    });
  }
});

describe("few requests", () => {
  let server;
  before(async () => {
    server = await Server.start({ set: [...ROOMY, `limits.requests_per_credential=${rate(5, 5, 2_000)}`] });
  });
  after(() => server?.end());

  test("R125 R169: a request under a key that meets its rate limit is done once when it comes again", async () => {
    const cast = await company(server);
    const sort = SORTS.task;
    for (const round of range(1, 3)) {
      const name = `limited ${round}`;
      await until("nothing is left", async () => (await server.request("GET", sort.list, { key: cast.client.key })).status === 429);
      const refused = await ask(server, sort, cast, name);
      // Some may be left again by now: then it was done, and what follows holds all the same.
      if (refused.status !== 201) assert.deepEqual([refused.status, refused.error.code, refused.headers.get(REPLAYED)], [429, "RATE_LIMIT_EXCEEDED", null]);
      const first = refused.status === 201 ? refused : await until("it is done", async () => {
        const answer = await ask(server, sort, cast, name);
        return answer.status === 201 && answer;
      });
      const again = await until("it is answered again", async () => {
        const answer = await ask(server, sort, cast, name);
        return answer.status !== 429 && answer;
      });
      assert.deepEqual([again.status, again.headers.get(REPLAYED), again.data.id], [201, "true", first.data.id]);
      // As its owner's operator sees it, who is not limited.
      assert.deepEqual((await server.ok("GET", "/api/v1/admin/ledger", { token: server.adminToken })).sum, "0");
      const held = await until("its balance", async () => (await server.request("GET", "/api/v1/ledger/balance", { key: cast.client.key })).data);
      assert.equal(held.escrow, String(round), "held once each");
    }
  });
});

describe("several nodes", () => {
  const world = onCluster({ set: ["drills.enabled=true"], balancer: false });

  for (const [name, sort] of Object.entries(SORTS)) {
    test(`R125 R141 R166: a ${name} that one node made before it was killed is given by another under its key`, async () => {
      let unanswered = 0;
      for (let round = 0; unanswered === 0 && round < 10; round++) {
        if (!world.one.alive) await world.cluster.restart(world.one.name);
        unanswered = await cutAndAskAgain(world.one, sort, async () => {
          await world.one.kill();
          return world.two;
        });
      }
      assert.ok(unanswered > 0, "some were stored and not answered");
    });
  }
});
