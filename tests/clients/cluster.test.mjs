// Several nodes as one: whatever node a client is at, it sees what clients at the others do.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Node } from "../chaos/cluster.mjs";
import { score } from "../chaos/load/owner.mjs";
import { Bare } from "./lib/bare.mjs";
import { muster, scratch } from "./lib/cli.mjs";
import { allHave, metas, onCluster, sync } from "./lib/cluster.mjs";
import { listen } from "./lib/events.mjs";
import { connectByPolling, Poller } from "./lib/longpoll.mjs";
import * as mcp from "./lib/mcp.mjs";
import { join, resuming, VERSIONS } from "./lib/phoenix.mjs";
import { Proxy } from "./lib/proxy.mjs";
import { freePort, leniently, until } from "./lib/server.mjs";
import { complete, emitters, log, range } from "./lib/streams.mjs";

const PATHS = ["rest", "channel", "mcp"];
const UNAUTHORIZED = { reason: "unauthorized" };

const world = onCluster();

describe("streams on several nodes", () => {
  /** All ways to emit at each node and at the balancer: [{ name, emit(task, chunk) }]. */
  async function everyWay(agent) {
    const ways = [];
    for (const [name, server] of [...world.nodes.map((node) => [node.name, node]), ["balancer", world.front]]) {
      const at = await emitters(world.connections, server, agent);
      ways.push(...PATHS.map((path) => ({ name: `${path} at ${name}`, emit: at[path] })));
    }
    return ways;
  }

  test("the owner is whom the nodes think it is", () => {
    assert.equal(score("muster-0", "00000000-0000-0000-0000-000000000000"), 11375039162614763010n);
  });

  test("R37 R38 R39 R49 R50 R51 R52: whichever node takes a chunk and whichever owns the stream, one seq, and the same to readers everywhere", async () => {
    for (const owner of world.nodes) {
      const { client, provider, task } = await world.cast(owner);
      const readers = await world.readers(client, task);
      const ways = await everyWay(provider);
      for (const [n, { name, emit }] of ways.entries()) {
        assert.deepEqual(await emit(task, { content: `${name};`, idempotency_key: `k${n}` }), { seq: n + 1 }, `${name}, owned by ${owner.name}`);
      }
      // The same key elsewhere is the same chunk.
      for (const n of ways.keys()) {
        const { name, emit } = ways[(n + 4) % ways.length];
        assert.deepEqual(await emit(task, { content: "again", idempotency_key: `k${n}` }), { seq: n + 1 }, `k${n} by ${name}`);
      }
      await allHave(readers, range(1, ways.length));
      const text = ways.map(({ name }) => `${name};`).join("");
      for (const reader of readers) assert.equal(reader.text(), text, reader.name);
      for (const node of world.nodes) assert.equal((await log(node, client, task)).map(({ content }) => content).join(""), text);
      await world.connections.close();
    }
  });

  test("R26 R47 R48: what is refused at the owner is refused the same elsewhere, and changes nothing", async () => {
    const { client, provider, task } = await world.cast(world.two);
    const stranger = await world.one.agent();
    for (const node of world.nodes) {
      const [own, others] = [await emitters(world.connections, node, provider), await emitters(world.connections, node, stranger)];
      for (const path of PATHS) {
        assert.deepEqual(await others[path](task, { content: "not mine" }), UNAUTHORIZED, `${path} at ${node.name}`);
        assert.equal((await own[path](task, { content: "x".repeat(65_537) })).reason, "invalid_content", `${path} at ${node.name}`);
      }
    }
    assert.deepEqual(await log(world.three, client, task), []);
    await complete(world.one, provider, task);
    for (const node of world.nodes) {
      const own = await emitters(world.connections, node, provider);
      for (const path of PATHS) assert.deepEqual(await own[path](task, { content: "late" }), { reason: "task_not_active", status: "completed" }, `${path} at ${node.name}`);
    }
  });

  test("R39 R46: chunks of many at once, at all nodes, get one gap-free seq, and each answer names its own", async () => {
    const { client, provider, task } = await world.cast(world.three);
    const readers = await world.readers(client, task);
    const ways = await everyWay(provider);
    const answers = await Promise.all(ways.map(async ({ name, emit }) => {
      const mine = [];
      for (const n of range(1, 20)) mine.push({ content: `${name} ${n}`, ...(await emit(task, { content: `${name} ${n}` })) });
      return mine;
    }));
    for (const mine of answers) assert.deepEqual(mine.map(({ seq }) => seq), mine.map(({ seq }) => seq).toSorted((a, b) => a - b), "each in its order");
    const bySeq = answers.flat().toSorted((a, b) => a.seq - b.seq);
    assert.deepEqual(bySeq.map(({ seq }) => seq), range(1, ways.length * 20));
    await allHave(readers, range(1, bySeq.length));
    for (const reader of readers) assert.equal(reader.text(), bySeq.map(({ content }) => content).join(""), reader.name);
  });

  test("R41 R42 R43 R44 R140: a task that is ended at any node ends once for readers everywhere, behind its last chunk, and late readers get all of it", async () => {
    const endings = [
      ["complete", (node, { provider, task }) => node.ok("PUT", `/api/v1/tasks/${task.id}/complete`, { key: provider.key, body: { output: { n: 1 } } }), "completed"],
      ["fail", (node, { provider, task }) => node.ok("PUT", `/api/v1/tasks/${task.id}/fail`, { key: provider.key, body: { error_reason: "no luck" } }), "failed"],
      ["cancel", (node, { client, task }) => node.ok("POST", `/api/v1/tasks/${task.id}/cancel`, { key: client.key, body: { reason: "enough" } }), "cancelled"],
    ];
    for (const [n, [name, end, status]] of endings.entries()) {
      const owner = world.nodes[n];
      const company = await world.cast(owner);
      const { client, provider, task } = company;
      const readers = await world.readers(client, task);
      const [near, far] = world.others(owner);
      const seqs = [];
      for (const k of range(1, 10)) seqs.push((await near.emit(task, provider, `${k} `)).data.seq);
      assert.deepEqual(seqs, range(1, 10));
      assert.equal((await end(far, company)).status, status);
      const ends = [];
      for (const reader of readers) {
        await until(`${name} reaches ${reader.name}`, () => reader.ended().length > 0);
        ends.push(reader.ended());
      }
      for (const end of ends) {
        assert.deepEqual(end, ends[0], name);
        assert.deepEqual([end.length, end[0].after], [1, 10], name);
      }
      const late = await world.readers(client, task, { after_seq: 4 });
      for (const reader of late) {
        await until(`${name} reaches ${reader.name}, late`, () => reader.ended().length > 0);
        assert.deepEqual(reader.seqs(), range(5, 10), reader.name);
        assert.deepEqual(reader.ended(), [{ ...ends[0][0], after: 6 }], reader.name);
      }
      for (const node of world.nodes) {
        const task = await node.ok("GET", `/api/v1/tasks/${company.task.id}`, { key: client.key });
        assert.equal(task.status, status, node.name);
        const again = await node.request("POST", `/api/v1/tasks/${task.id}/cancel`, { key: client.key, body: {} });
        assert.equal(again.status, 409, `${name}: final is final on ${node.name}`);
      }
      for (const reader of readers) assert.equal(reader.ended().length, 1, reader.name);
      await world.connections.close();
    }
  });

  test("R79 R140: of endings at the same time at all nodes exactly one wins", async () => {
    for (const owner of world.nodes) {
      const { client, provider, task } = await world.cast(owner);
      const readers = await world.readers(client, task);
      const wins = await Promise.all(world.nodes.flatMap((node) => [
        node.request("PUT", `/api/v1/tasks/${task.id}/complete`, { key: provider.key, body: { output: node.name } }),
        node.request("POST", `/api/v1/tasks/${task.id}/cancel`, { key: client.key, body: {} }),
      ]));
      const statuses = wins.map(({ status }) => status).toSorted();
      assert.deepEqual(statuses, [200, 409, 409, 409, 409, 409]);
      const won = wins.find(({ status }) => status === 200).data;
      for (const node of world.nodes) assert.deepEqual(await node.ok("GET", `/api/v1/tasks/${task.id}`, { key: client.key }), won);
      for (const reader of readers) await until(`the end at ${reader.name}`, () => reader.ended().length === 1);
      await world.connections.close();
    }
  });

  test("R26 R29 R140: a task that is given to another provider at any node is theirs everywhere, and closed to the first", async () => {
    for (const owner of world.nodes) {
      const { client, provider, task } = await world.cast(owner);
      const [near, far] = world.others(owner);
      const second = await near.agent({ name: "Second" });
      const closed = [];
      for (const node of world.nodes) {
        const reader = await world.connections.reader(node, provider, task);
        reader.channel.onClose(() => closed.push(node.name));
      }
      const readers = await world.readers(client, task);
      await far.ok("POST", `/api/v1/tasks/${task.id}/reassign`, { key: client.key, body: { provider_agent_id: second.id } });
      await until("the first provider's readers are closed", () => closed.length === 3);
      for (const [n, node] of world.nodes.entries()) {
        const refused = await node.emit(task, provider, "still me");
        assert.deepEqual([refused.status, refused.error.details], [403, UNAUTHORIZED], node.name);
        assert.equal((await node.emit(task, second, "now me")).data.seq, n + 1, node.name);
      }
      await allHave(readers, [1, 2, 3]);
      await world.connections.close();
    }
  });
});

describe("events and presence on several nodes", () => {
  test("R27 R32 R33 R111 R140: events of tasks, hirings and messages reach their parties at every node, once", async () => {
    const { one, two, three } = world;
    const { user, client, provider } = await world.cast(one);
    const [hirers, providers, clients] = [[], [], []];
    for (const node of world.nodes) {
      hirers.push(await listen(world.connections, node, user));
      providers.push(await listen(world.connections, node, provider));
      clients.push(await listen(world.connections, node, client));
    }
    const task = await two.task(client, provider);
    const { hiring, task: hired } = await three.ok("POST", `/api/v1/agents/${provider.id}/hire`, { key: client.key, body: { input: {} } });
    const note = await one.ok("POST", `/api/v1/tasks/${task.id}/messages`, { key: client.key, body: { content: "hello" } });
    const done = await two.ok("PUT", `/api/v1/tasks/${task.id}/complete`, { key: provider.key, body: { output: 1 } });
    for (const each of providers) {
      assert.deepEqual(await each.next("task.created", (payload) => payload.task.id === task.id), { task });
      assert.deepEqual(await each.next("task.created", (payload) => payload.task.id === hired.id), { task: hired });
      assert.deepEqual(await each.next("hiring.created"), { hiring });
      assert.equal((await each.next("new_message")).id, note.id);
    }
    for (const each of clients) assert.deepEqual(await each.next("task.completed"), { task: done });
    for (const each of hirers) {
      assert.deepEqual(await each.next("hiring.created"), { hiring });
      assert.deepEqual(await each.next("task.submitted", (payload) => payload.task.id === task.id), { task });
      assert.equal((await each.next("new_message")).id, note.id);
    }
    const sorted = (listeners) => listeners.map((each) => each.names().toSorted());
    for (const listeners of [hirers, providers, clients]) {
      const [first, ...others] = sorted(listeners);
      for (const other of others) assert.deepEqual(other, first);
      assert.equal(first.filter((name) => name === "hiring.created").length, listeners === clients ? 0 : 1);
    }
  });

  test("R27 R111: what is published at another node right after the reply to a join arrives", async () => {
    const client = await world.one.agent({ name: "Client" });
    const missed = [];
    await Promise.all(range(1, 10).map(async (n) => {
      const provider = await world.one.agent({ name: `Provider ${n}` });
      const task = await world.one.task(client, provider);
      for (const round of range(1, 10)) {
        const at = (n + round) % 3;
        const wire = await world.appear(world.nodes[at], provider);
        const elsewhere = world.nodes[(at + 1 + (round % 2)) % 3];
        const note = await elsewhere.ok("POST", `/api/v1/tasks/${task.id}/messages`, { key: client.key, body: { content: `${n} ${round}` } });
        const isIt = ([, , , event, payload]) => event === "new_message" && payload.id === note.id;
        await wire.find("the message", isIt, leniently(1_000)).catch(() => missed.push(`${n}/${round}`));
        wire.close();
      }
    }));
    assert.deepEqual(missed, []);
  });

  test("R28 R53 R54 R55: an agent at two nodes has two metas everywhere, changes in both, and goes one by one", async () => {
    const user = await world.one.user();
    const agent = await world.two.agent({ owner: user, name: "Twice" });
    const watchers = [];
    for (const node of world.nodes) watchers.push(await world.watch(node, user));
    const online = async (expected) => {
      for (const node of world.nodes) {
        const found = await node.ok("GET", "/api/v1/agents/discover?limit=100", { token: user.token });
        assert.equal(found.find(({ id }) => id === agent.id)?.online ?? false, expected, node.name);
      }
    };
    const [first, second] = [await world.appear(world.one, agent), await world.appear(world.two, agent)];
    for (const watcher of watchers) await metas(watcher, agent, 2);
    const late = await world.watch(world.three, user);
    for (const watcher of watchers) assert.deepEqual(new Set(late.roster.of(agent.id).map(({ phx_ref }) => phx_ref)), new Set(sync(watcher).of(agent.id).map(({ phx_ref }) => phx_ref)), "the same references everywhere");
    await online(true);

    await world.three.ok("PUT", `/api/v1/agents/${agent.id}`, { token: user.token, body: { base_price: "7.5" } });
    for (const watcher of [...watchers, late]) {
      await until(`the change on ${watcher.node.name}`, () => sync(watcher).of(agent.id).length === 2 && sync(watcher).of(agent.id).every((meta) => JSON.stringify(meta).includes("7.5")), leniently(2_000));
    }
    first.send(["1", "2", `agent:${agent.id}`, "phx_leave", {}]);
    for (const watcher of watchers) await metas(watcher, agent, 1);
    await online(true);
    second.close();
    for (const watcher of watchers) await metas(watcher, agent, 0);
    await online(false);
    // The roster fails on what is told twice; that nothing was told again is left.
    for (const watcher of watchers) assert.deepEqual(watcher.roster.repeats, [], watcher.node.name);
  });

  test("R140 R143: an agent that is online at one node is hired at every other, and at none once it is gone", async () => {
    const client = await world.one.agent({ name: "Client" });
    for (const node of world.nodes) {
      const agent = await world.one.agent({ name: "Hired" });
      const hire = (at) => at.request("POST", `/api/v1/agents/${agent.id}/hire`, { key: client.key, body: { input: {} } });
      const wire = await world.appear(node, agent);
      for (const at of world.nodes) {
        await until(`${at.name} hires`, async () => (await hire(at)).data?.hiring?.status === "queued", leniently(2_000));
      }
      wire.close();
      for (const at of world.nodes) await until(`${at.name} knows that it is gone`, async () => (await hire(at)).data?.hiring?.status === "failed", leniently(2_000));
    }
  });

  test("R66: a block that is made at one node hides at all, and is taken back at all", async () => {
    const [a, b] = [await world.one.agent({ name: "A" }), await world.two.agent({ name: "B" })];
    const watchers = [];
    for (const node of world.nodes) watchers.push(await world.watch(node, a));
    await world.appear(world.two, b);
    for (const watcher of watchers) await metas(watcher, b, 1);
    const finds = async (node) => (await node.ok("GET", "/api/v1/agents/discover?limit=100", { key: a.key })).some(({ id }) => id === b.id);
    await world.three.ok("POST", "/api/v1/blocks", { key: a.key, body: { agent_id: b.id } });
    for (const watcher of watchers) await metas(watcher, b, 0);
    for (const node of world.nodes) {
      assert.equal(await finds(node), false, node.name);
      assert.equal((await node.request("POST", "/api/v1/tasks", { key: a.key, body: { provider_agent_id: b.id, capability: "code", input: {} } })).status, 404, node.name);
    }
    await world.one.ok("DELETE", `/api/v1/blocks/${b.id}`, { key: a.key });
    for (const watcher of watchers) await metas(watcher, b, 1);
    for (const node of world.nodes) assert.equal(await finds(node), true, node.name);
  });
});

describe("credentials on several nodes", () => {
  /** Everything that can be open under a key, at a node: [{ name, isOver }]. */
  async function openEverything(node, { agent, client, task }, key) {
    const things = [];
    const keep = (name, close, isOver) => {
      world.open.push(close);
      things.push({ name: `${name} at ${node.name}`, isOver });
    };
    for (const mount of ["/socket/agent/websocket", "/socket/websocket"]) {
      const bare = await Bare.open(node, mount, { api_key: key });
      keep(mount, () => bare.end(), () => bare.closed?.code === 1001);
    }
    const sse = await world.sse(node, { key }, task);
    keep("an event stream", () => sse.close(), () => sse.ended);
    const session = await mcp.Session.open(node, { ...agent, key });
    const stream = await session.listen();
    keep("an MCP stream", () => stream.close(), () => stream.ended);
    const poller = await Poller.open(node, "/socket/agent/longpoll", { api_key: key });
    let polled = false;
    poller.get().catch(() => {}).finally(() => (polled = true));
    keep("a long-poll", () => {}, () => polled);
    return things;
  }

  /** Waits for the end of all, and gives how long the last took, in milliseconds. */
  async function allOver(things, begun) {
    for (const { name, isOver } of things) await until(`the end of ${name}`, isOver, leniently(2_000));
    return Math.round(performance.now() - begun);
  }

  async function company() {
    const { user, client, provider: agent, task } = await world.cast(world.two);
    return { user, client, agent, task };
  }

  test("R18: what is open under a key ends at every node when it is rotated at one, within 2 s", async (context) => {
    const parties = await company();
    const things = [];
    for (const node of world.nodes) things.push(...(await openEverything(node, parties, parties.agent.key)));
    const begun = performance.now();
    const { api_key: key } = await world.one.ok("POST", "/api/v1/auth/rotate-key", { key: parties.agent.key, body: {} });
    context.diagnostic(`all ${things.length} were over after ${await allOver(things, begun)} ms`);
    for (const node of world.nodes) {
      assert.equal((await node.request("GET", `/api/v1/agents/${parties.agent.id}/credentials`, { key: parties.agent.key })).status, 401, node.name);
      assert.equal((await node.request("GET", `/api/v1/agents/${parties.agent.id}/credentials`, { key })).status, 200, node.name);
    }
  });

  test("R18 R19 R30: a session's logout and the end of a user's token reach the other nodes, and leave other credentials alone", async () => {
    const parties = await company();
    const { token: session } = await world.two.ok("POST", "/api/v1/auth/authenticate", { key: parties.agent.key, body: {} });
    const witness = await openEverything(world.three, parties, parties.agent.key);
    const mine = await Bare.open(world.three, "/socket/websocket", { session_token: session });
    world.open.push(() => mine.end());
    await world.one.ok("DELETE", "/api/v1/auth/logout", { token: session });
    assert.equal((await mine.ended(leniently(2_000))).code, 1001);

    const hirer = await Bare.open(world.two, "/socket/hirer/websocket", { api_key: parties.user.token });
    world.open.push(() => hirer.end());
    const reader = await world.sse(world.three, parties.user, parties.task);
    await world.one.ok("DELETE", `/api/v1/admin/users/${parties.user.id}/tokens/${parties.user.credential.id}`, { token: world.one.adminToken });
    assert.equal((await hirer.ended(leniently(2_000))).code, 1001);
    await until("the end of the user's event stream", () => reader.ended, leniently(2_000));
    assert.deepEqual(witness.filter(({ isOver }) => isOver()).map(({ name }) => name), [], "the key is not touched");
  });

  test("R23 R28: an agent that is banned at one node is disconnected at all, and can come back at none", async () => {
    const parties = await company();
    const watchers = [];
    for (const node of world.nodes) watchers.push(await world.watch(node, parties.user));
    const things = [];
    for (const node of world.nodes) things.push(...(await openEverything(node, parties, parties.agent.key)));
    await world.appear(world.three, parties.agent);
    // Its topic, and an MCP session at each node.
    for (const watcher of watchers) await metas(watcher, parties.agent, 4);
    const begun = performance.now();
    await world.one.ok("PUT", `/api/v1/admin/agents/${parties.agent.id}/status`, { token: world.one.adminToken, body: { status: "banned" } });
    await allOver(things, begun);
    for (const watcher of watchers) await metas(watcher, parties.agent, 0);
    for (const node of world.nodes) {
      await assert.rejects(Bare.open(node, "/socket/agent/websocket", { api_key: parties.agent.key }), /403/);
      assert.ok([401, 403].includes((await node.emit(parties.task, parties.agent, "x")).status), node.name);
    }
  });

  /** A node on the same store that is linked to nobody. */
  async function unlinked() {
    const { cluster } = world;
    const [port, link] = [await freePort(), await freePort()];
    const set = [...["cluster.name=muster-test", "cluster.node=apart", `cluster.listen=127.0.0.1:${link}`, "cluster.transport=auto"], "http.allow_plaintext=true"];
    const env = { MUSTER_ADMIN_TOKEN: cluster.adminToken, MUSTER_STORE_URL: cluster.postgres.url, MUSTER_CLUSTER_SECRET: "another secret, so that nobody can be linked" };
    const node = new Node("apart", { host: world.one.host, port, env, set, folder: world.folder, adminToken: cluster.adminToken });
    node.launch();
    world.open.push(() => node.kill());
    await node.ready();
    assert.deepEqual(await node.membersUp(), ["apart"]);
    return node;
  }

  test("R18 R23: without a link between the nodes what is open under a key or of an agent ends as well: the store tells, within 2 s", async (context) => {
    const apart = await unlinked();
    const parties = await company();
    const things = await openEverything(apart, parties, parties.agent.key);
    let begun = performance.now();
    const { api_key: key } = await world.one.ok("POST", "/api/v1/auth/rotate-key", { key: parties.agent.key, body: {} });
    context.diagnostic(`after a key's end all ${things.length} were over after ${await allOver(things, begun)} ms`);

    const more = await openEverything(apart, parties, key);
    begun = performance.now();
    await world.one.ok("PUT", `/api/v1/admin/agents/${parties.agent.id}/status`, { token: world.one.adminToken, body: { status: "suspended" } });
    context.diagnostic(`after the agent's end all ${more.length} were over after ${await allOver(more, begun)} ms`);
  });
});

describe("sessions that live on one node", () => {
  const took = async (work) => {
    const begun = performance.now();
    const result = await work();
    return [result, performance.now() - begun];
  };

  test("R13: a long-poll request at another node than its session's is answered at once: that the session is not there, or a new one", async () => {
    const agent = await world.one.agent();
    const poller = await Poller.open(world.one, "/socket/agent/longpoll", { api_key: agent.key });
    assert.equal((await poller.join(`agent:${agent.id}`, {})).status, "ok");
    const lost = Object.assign(new Poller(world.two, "/socket/agent/longpoll", { api_key: agent.key }), { token: poller.token });
    const [posted, postMs] = await took(() => lost.post([[null, "1", "phoenix", "heartbeat", {}]]));
    assert.deepEqual([posted.status, posted.body], [200, { status: 410 }]);
    const [got, getMs] = await took(() => lost.get());
    assert.deepEqual([got.status, got.body.status, got.body.messages], [200, 410, []]);
    assert.notEqual(lost.token, poller.token);
    assert.ok(Math.max(postMs, getMs) < leniently(500), `${postMs} ms, ${getMs} ms`);
    // Neither harms the other.
    assert.equal((await lost.join(`agent:${agent.id}`, {})).status, "ok");
    assert.equal((await poller.ask("phoenix", "heartbeat", {})).status, "ok");
  });

  for (const version of VERSIONS) {
    test(`R13 R44: phoenix ${version} that is sent to another node by polling is there again by itself, and misses nothing`, async () => {
      const { user, provider, task } = await world.cast(world.three);
      const front = { port: world.one.port };
      const proxy = await Proxy.before(front);
      world.open.push(() => proxy.end());
      const socket = await connectByPolling(version, proxy.url, "/socket/hirer", { api_key: user.token }, { reconnectAfterMs: () => 50, rejoinAfterMs: () => 50 });
      world.open.push(() => socket.disconnect());
      const { channel, seen } = resuming(socket, task);
      assert.equal((await join(channel)).status, "ok");
      for (const [n, node] of [world.one, world.two, world.three, world.one].entries()) {
        front.port = node.port;
        proxy.cut();
        await world.three.emit(task, provider, "x");
        await until(`chunk ${n + 1} by ${node.name}`, () => seen.length === n + 1);
      }
      assert.deepEqual(seen, [1, 2, 3, 4]);
    });
  }

  test("R50: an MCP request at another node than its session's is told so with 404, upon which clients begin anew; without a session any node does", async () => {
    const { provider, task } = await world.cast(world.three);
    const session = await mcp.Session.open(world.one, provider);
    const stray = (body, method) => mcp.send(world.two, { method, headers: session.headers(), body });
    const [called, callMs] = await took(() => stray({ jsonrpc: "2.0", id: 1, method: "tools/call", params: { name: "task_emit_chunk", arguments: { task_id: task.id, content: "lost" } } }));
    assert.equal(called.status, 404, called.text);
    assert.equal((await stray(undefined, "DELETE")).status, 404);
    const [stream, streamMs] = await took(() => mcp.listen(world.two, "/mcp", session.headers()));
    world.open.push(() => stream.close());
    assert.equal(stream.response.status, 404);
    assert.ok(Math.max(callMs, streamMs) < leniently(500), `${callMs} ms, ${streamMs} ms`);
    assert.deepEqual(await log(world.one, provider, task), [], "it did nothing");
    assert.deepEqual(mcp.said((await session.call("task_emit_chunk", { task_id: task.id, content: "1" })).message).seq, 1, "the session goes on where it is");
    for (const [n, node] of world.nodes.entries()) {
      const { message } = await mcp.modern(node, provider, "tools/call", { name: "task_emit_chunk", arguments: { task_id: task.id, content: "x" } });
      assert.equal(mcp.said(message).seq, n + 2, node.name);
    }
  });

  test("R13 R50: the balancer sends each session's requests to its node", async () => {
    const { provider, task } = await world.cast(world.two);
    const server = Object.assign(Object.create(world.front), { port: Number(new URL(world.front.url).port) });
    const session = await mcp.Session.open(server, provider);
    const poller = await Poller.open(server, "/socket/agent/longpoll", { api_key: provider.key });
    assert.equal((await poller.join(`agent:${provider.id}`, {})).status, "ok");
    const joinRef = poller.messages.find(([, , , event]) => event === "phx_reply")[0];
    for (const n of range(1, 10)) {
      assert.equal(mcp.said((await session.call("task_emit_chunk", { task_id: task.id, content: "x" })).message).seq, 2 * n - 1);
      const reply = await poller.ask(`agent:${provider.id}`, "task.stream_chunk", { task_id: task.id, content: "y" }, joinRef);
      assert.deepEqual(reply, { status: "ok", response: { seq: 2 * n } });
    }
  });
});

describe("the cluster itself", () => {
  test("R14 R168: every node and muster cluster status show the same nodes, to the operator alone", async () => {
    const names = world.nodes.map(({ name }) => name);
    for (const node of world.nodes) {
      const view = await node.ok("GET", "/api/v1/admin/cluster", { token: node.adminToken });
      assert.deepEqual([view.cluster, view.node, view.isolated], ["muster-test", node.name, false]);
      assert.deepEqual(view.nodes.map(({ name }) => name).toSorted(), names);
      for (const each of view.nodes) {
        assert.deepEqual([each.state, each.draining, each.is_self], ["up", false, each.name === node.name]);
        assert.equal(each.transport, each.is_self ? null : "direct");
      }
      const { code, stdout, stderr } = await muster(["cluster", "status", "--url", node.url], { env: { MUSTER_ADMIN_TOKEN: node.adminToken } });
      assert.equal(code, 0, stderr);
      for (const name of names) assert.ok(stdout.includes(name), stdout);
      const agent = await node.agent();
      for (const who of [{}, { key: agent.key }]) assert.ok([401, 403].includes((await node.request("GET", "/api/v1/admin/cluster", who)).status));
    }
  });

  test("a node of a cluster does not start on the embedded store, and says what it needs", async () => {
    const files = await scratch();
    world.open.push(() => files.remove());
    const env = { MUSTER_ADMIN_TOKEN: world.one.adminToken, MUSTER_CLUSTER_SECRET: "a secret for nodes that is long enough" };
    const { code, stdout, stderr } = await muster(["serve", "--listen", `127.0.0.1:${await freePort()}`, "--data-dir", files.file("data"), "--set", `cluster.listen=127.0.0.1:${await freePort()}`], { env });
    assert.notEqual(code, 0);
    assert.match(stdout + stderr, /make this node one of several, which share a store.*give store\.url/);
  });
});
