// Nodes of a cluster that are killed, drained and restarted under their clients: what was acknowledged stays, and who is at
// another node notices nothing but a pause.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { metas, onCluster, sync } from "./lib/cluster.mjs";
import { join, push, resuming } from "./lib/phoenix.mjs";
import { assertStored, Producer, tryRest } from "./lib/producers.mjs";
import { leniently, sleep, until } from "./lib/server.mjs";
import { complete, log, range } from "./lib/streams.mjs";

// Drains that tests wait for are short; the balancer has to see them all the same.
const world = onCluster({ set: ["drain.unready_ms=2500", "drain.timeout_ms=3000"] });

/** A reader was told what is stored, in order, without a gap and once. */
async function assertRead(reader, stored) {
  const chunks = () => reader.chunks ?? reader.sse.named("stream.chunk").map(({ data }) => data);
  const told = () => new Map(chunks().map(({ seq, content }) => [seq, content]));
  const whole = JSON.stringify(stored.map(({ seq, content }) => [seq, content]));
  await until(`${reader.name} has what is stored`, () => JSON.stringify([...told()]) === whole, 10_000).catch((error) => {
    assert.deepEqual([...told()], JSON.parse(whole), `${reader.name}: ${error.message}`);
  });
  assert.deepEqual(reader.seqs(), range(1, stored.length), `${reader.name} was told twice, or in another order`);
  assert.deepEqual(reader.errors, [], `${reader.name} was told of an error`);
}

describe("nodes that are killed", () => {
  test("R37 R39 R46 R52 R166: kill -9 of the owner while chunks come loses nothing acknowledged, and readers elsewhere stay and go on", async (context) => {
    const owner = world.three;
    const parties = await world.cast(owner);
    const { client, provider, task } = parties;
    const readers = (await world.readers(client, task)).filter(({ node }) => node !== owner);
    const producer = new Producer("a", [world.one, world.two].map((node) => (chunk) => tryRest(node, provider, task, chunk)));
    await producer.more(50);
    await owner.kill();
    await producer.more(50);
    await world.cluster.restart(owner.name);
    await world.cluster.seen();
    // The stream goes back to the node that came back.
    await producer.more(50);
    await producer.stop();
    context.diagnostic(`the longest wait was ${producer.longestMs} ms, with ${producer.retries} retries`);
    const stored = await assertStored(world.cluster.running(), [producer], parties);
    assert.equal(stored.length, producer.acks.size);
    for (const reader of readers) await assertRead(reader, stored);
    await complete(world.one, provider, task);
    for (const reader of readers) await until(`the end at ${reader.name}`, () => reader.ended().length === 1);
  });

  test("R39 R46 R52: several producers at once through the owner's kill -9: each key is one chunk, where it was acknowledged", async () => {
    const owner = world.one;
    const parties = await world.cast(owner);
    const { client, provider, task } = parties;
    const readers = (await world.readers(client, task)).filter(({ node }) => node !== owner);
    const others = world.others(owner);
    const producers = range(1, 6).map((n) => new Producer(`${"abcdef"[n - 1]}-`, [others[n % 2], others[(n + 1) % 2]].map((node) => (chunk) => tryRest(node, provider, task, chunk))));
    await Promise.all(producers.map((producer) => producer.more(20)));
    await owner.kill();
    await Promise.all(producers.map((producer) => producer.more(20)));
    await Promise.all(producers.map((producer) => producer.stop()));
    const stored = await assertStored(world.cluster.running(), producers, parties);
    for (const reader of readers) await assertRead(reader, stored);
  });

  /** Keeps the store from taking chunks of a task until this is resolved; nothing else waits. */
  async function holdUp(task, work) {
    const lock = `BEGIN; SELECT 1 FROM streams WHERE task = '${task.id}' FOR UPDATE; SELECT pg_sleep(120); COMMIT`;
    const held = world.cluster.postgres.query(lock, 130_000).catch(() => null);
    const sleeps = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    const [[pid]] = await until("the stream is locked", async () => {
      const rows = await world.cluster.postgres.query(sleeps);
      return rows.length > 0 && rows;
    });
    try {
      await work();
    } finally {
      await world.cluster.postgres.query(`SELECT pg_terminate_backend(${pid})`);
      await held;
    }
  }

  test("R37 R46 R52: what the store has not taken no reader has seen, so that its owner's kill -9 leaves nothing behind to take back", async () => {
    for (const isSentAgain of [true, false]) {
      const owner = world.two;
      const parties = await world.cast(owner);
      const { client, provider, task } = parties;
      const all = await world.readers(client, task);
      const readers = all.filter(({ node }) => node !== owner);
      for (const n of range(1, 5)) assert.deepEqual(await tryRest(owner, provider, task, { content: `${n} `, idempotency_key: `k${n}` }), { seq: n });
      for (const reader of all) await until(`${reader.name} has what is stored`, () => reader.seqs().length === 5);
      await holdUp(task, async () => {
        // Unanswered, as the store does not take it.
        const unanswered = tryRest(owner, provider, task, { content: "in vain ", idempotency_key: "vain" });
        // A reader that comes now is not shown it either.
        const [late] = (await world.readers(client, task)).filter(({ node }) => node === owner);
        await until(`${late.name} has what is stored`, () => late.seqs().length === 5);
        await sleep(500);
        for (const reader of [...all, late]) assert.deepEqual(reader.seqs(), range(1, 5), reader.name);
        await owner.kill();
        assert.ok((await unanswered).why, "it was not acknowledged");
      });
      const chunk = isSentAgain ? { content: "in vain ", idempotency_key: "vain" } : { content: "other ", idempotency_key: "other" };
      assert.deepEqual(await tryRest(world.one, provider, task, chunk), { seq: 6 });
      assert.deepEqual(await tryRest(world.three, provider, task, { content: "7 ", idempotency_key: "k7" }), { seq: 7 });
      const stored = await log(world.one, client, task);
      assert.deepEqual(stored.map(({ content }) => content), ["1 ", "2 ", "3 ", "4 ", "5 ", chunk.content, "7 "]);
      for (const reader of readers) {
        await assertRead(reader, stored);
        assert.deepEqual(reader.seqs(), range(1, 7), reader.name);
      }
      await world.cluster.restart(owner.name);
      await world.cluster.seen();
      await world.connections.close();
    }
  });

  test("R28 R54 R55: agents at a node that is killed are gone everywhere within 6 s, in one diff", async (context) => {
    const user = await world.one.user();
    const agents = [];
    for (const n of range(1, 10)) agents.push(await world.one.agent({ owner: user, name: `Agent ${n}` }));
    const stays = await world.one.agent({ owner: user, name: "Both" });
    for (const agent of [...agents, stays]) await world.appear(world.two, agent);
    await world.appear(world.three, stays);
    const watchers = [await world.watch(world.one, user), await world.watch(world.three, user)];
    for (const watcher of watchers) {
      for (const agent of agents) await metas(watcher, agent, 1);
      await metas(watcher, stays, 2);
      watcher.before = watcher.roster.frames.length;
    }
    const begun = performance.now();
    await world.two.kill();
    for (const watcher of watchers) for (const agent of agents) await metas(watcher, agent, 0, leniently(6_000));
    context.diagnostic(`all were gone after ${Math.round(performance.now() - begun)} ms`);
    for (const watcher of watchers) {
      await metas(watcher, stays, 1);
      const diffs = sync(watcher).frames.slice(watcher.before);
      assert.equal(diffs.length, 1, `${watcher.node.name} was told in ${diffs.length} diffs`);
      assert.deepEqual(Object.keys(diffs[0].payload.leaves).toSorted(), [...agents, stays].map(({ id }) => id).toSorted());
      assert.deepEqual(diffs[0].payload.joins, {});
    }
    for (const node of [world.one, world.three]) {
      const found = await node.ok("GET", "/api/v1/agents/discover?limit=100", { token: user.token });
      assert.deepEqual(found.filter(({ id, online }) => online && agents.some((agent) => agent.id === id)), [], node.name);
    }
  });
});

describe("nodes that are drained", () => {
  /** A socket by way of the balancer that joins and pushes again wherever it comes back. */
  async function viaBalancer(who, mount, credential) {
    const socket = await world.connections.socket(world.front, mount, credential, { reconnectAfterMs: () => 100, rejoinAfterMs: () => 100 });
    return { who, socket };
  }

  test("R37 R46 R52 R168: all nodes are restarted one after another under load: nothing acknowledged is lost, and all come back elsewhere", async (context) => {
    const streams = [];
    for (const node of world.nodes) {
      const parties = await world.cast(node);
      const { user, client, provider, task } = parties;
      const { socket } = await viaBalancer(provider, "/socket/agent", provider.key);
      const channel = socket.channel(`agent:${provider.id}`, {});
      assert.equal((await join(channel)).status, "ok");
      const byChannel = async (chunk) => {
        if (channel.state !== "joined") return { why: `the channel is ${channel.state}, its socket ${socket.connectionState()}` };
        const { status, response } = await push(channel, "task.stream_chunk", { task_id: task.id, ...chunk }, 2_000);
        return status === "ok" ? response : { why: `${status} ${JSON.stringify(response)}` };
      };
      const producers = [new Producer("rest", [(chunk) => tryRest(world.front, provider, task, chunk)], 20), new Producer("channel", [byChannel], 20)];
      const hirer = await viaBalancer(user, "/socket/hirer", user.token);
      const back = resuming(hirer.socket, task);
      assert.equal((await join(back.channel)).status, "ok");
      const readers = await world.readers(client, task);
      streams.push({ parties, producers, back, readers });
    }
    const all = streams.flatMap(({ producers }) => producers);
    for (const node of world.nodes) {
      await Promise.all(all.map((producer) => producer.more(10)));
      const begun = Date.now();
      assert.equal(await node.stop(60_000), true, `${node.name} ended in order`);
      context.diagnostic(`${node.name} drained in ${Date.now() - begun} ms`);
      assert.equal(node.child.ended.code, 0, node.name);
      // Readers of the other nodes notice nothing.
      for (const { readers } of streams) {
        const others = readers.filter((reader) => reader.node !== node && reader.node.launches === 1);
        for (const reader of others) assert.deepEqual(reader.errors, [], `${reader.name}, while ${node.name} drained`);
      }
      await Promise.all(all.map((producer) => producer.more(10)));
      await world.cluster.restart(node.name);
      await world.cluster.seen();
      // Both checks of the balancer, before the next one goes.
      await sleep(2_500);
    }
    await Promise.all(all.map((producer) => producer.more(10)));
    await Promise.all(all.map((producer) => producer.stop()));
    context.diagnostic(`the longest wait was ${Math.max(...all.map(({ longestMs }) => longestMs))} ms`);
    for (const { parties, producers, back } of streams) {
      const stored = await assertStored(world.cluster.running(), producers, parties);
      assert.equal(stored.length, producers.reduce((sum, { acks }) => sum + acks.size, 0));
      await until("the client that came back has all", () => back.seen.length >= stored.length);
      assert.deepEqual(back.seen, range(1, stored.length));
    }
  });
});
