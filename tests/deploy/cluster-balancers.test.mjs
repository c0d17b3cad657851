// The load balancers of deploy/ in front of a real cluster: three nodes on one PostgreSQL, whose streams each have one owner.
// Requests, sockets and event streams are at whatever node the balancer chose, and nobody can tell which.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { allHave, onCluster } from "../clients/lib/cluster.mjs";
import { join, phoenix, resuming, VERSIONS } from "../clients/lib/phoenix.mjs";
import { assertStored, Producer, tryRest } from "../clients/lib/producers.mjs";
import { cast, leniently, sleep, until } from "../clients/lib/server.mjs";
import { readByCurl, readByFetch, readByPackage } from "../clients/lib/sse.mjs";
import { complete, emitters, log, metric, range } from "../clients/lib/streams.mjs";
import { BALANCERS } from "./lib/balancers.mjs";

// A drain that tests wait for is short, and longer than the checks of haproxy.cfg take to notice.
const world = onCluster({ balancer: false, set: ["drain.unready_ms=4000", "drain.timeout_ms=3000"] });

const onEach = (name) => Promise.all(world.nodes.map((node) => metric(node, name)));
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

/** How many chunks by REST each node has answered for. */
const chunksTaken = () =>
  Promise.all(world.nodes.map(async (node) => {
    const text = await (await fetch(`${node.url}/metrics`)).text();
    const lines = text.split("\n").filter((line) => /^muster_http_requests_total\{.*route="[^"]*\/chunk"/.test(line));
    return sum(lines.map((line) => Number(line.split(" ").at(-1))));
  }));

/** Reads an event stream to its end, from where it was whenever it is cut off. */
class Follower {
  openings = 0;
  #readers = [];
  #closed = false;

  constructor(read, server, who, task) {
    this.done = this.#run(read, server, who, task);
    world.open.push(() => this.close());
  }

  async #run(read, server, who, task) {
    while (!this.#closed && this.ends() === 0) {
      const reader = await Promise.resolve(read(server, who, task, { after: this.seqs().at(-1) })).catch(() => null);
      if (reader) {
        this.#readers.push(reader);
        // An answer that is none of a node's is no opening.
        await until("it opens", () => reader.names().includes("stream.joined") || reader.ended);
        if (reader.names().includes("stream.joined")) this.openings++;
        while (!reader.ended && !this.#closed) await sleep(5);
        reader.close();
      }
      await sleep(20);
    }
  }

  seqs() {
    return this.#readers.flatMap((reader) => reader.seqs());
  }

  ends() {
    return this.#readers.flatMap((reader) => reader.names()).filter((name) => name === "stream.done").length;
  }

  close() {
    this.#closed = true;
    return this.done;
  }
}

for (const [name, start] of Object.entries(BALANCERS)) {
  describe(`a cluster behind ${name}`, () => {
    let front;
    before(async () => {
      front = await start(world.nodes);
      front.adminToken = world.cluster.adminToken;
    });
    after(() => front?.end());

    /** Parties, and a task whose stream this node owns. */
    async function castFor(owner) {
      const parties = await cast(front);
      return { ...parties, task: await world.taskOf(owner, parties.client, parties.provider) };
    }

    /** Readers that come back where they were, by kind: each is at whatever node the balancer chose. */
    const KINDS = {
      async phoenix({ user, task }) {
        const socket = await world.connections.socket(front, "/socket/hirer", user.token);
        const { channel, seen } = resuming(socket, task);
        let ends = 0;
        channel.on("stream.done", () => ends++);
        assert.equal((await join(channel)).status, "ok");
        return { seqs: () => seen, ends: () => ends, returns: () => socket.recorded.closes.length };
      },
      async package({ client, task }) {
        const reader = readByPackage(front, client, task);
        world.open.push(() => reader.close());
        await until("the npm package has joined", () => reader.joined.length === 1);
        const ends = () => reader.ends.filter(({ event }) => event === "stream.done").length;
        return { seqs: () => reader.seqs(), ends, returns: () => reader.joined.length - 1 };
      },
      fetch: ({ client, task }) => followed(readByFetch, client, task),
      curl: ({ client, task }) => followed(readByCurl, client, task),
    };

    async function followed(read, client, task) {
      const follower = new Follower(read, front, client, task);
      await until("an event stream has joined", () => follower.openings === 1);
      return { seqs: () => follower.seqs(), ends: () => follower.ends(), returns: () => follower.openings - 1 };
    }

    test("R37 R39 R46 R47 R49 R51 R52: chunks by REST at any node, read at all nodes by sockets, fetch and curl: one seq, one order, one answer for each", async () => {
      for (const owner of world.nodes) {
        const { user, client, provider, task } = await castFor(owner);
        const readers = [];
        for (const n of range(1, 6)) {
          const reader = await world.connections.reader(front, user, task);
          assert.equal(reader.joined.status, "ok");
          readers.push(Object.assign(reader, { name: `socket ${n}`, done: () => reader.ends.length }));
        }
        for (const [kind, read] of Object.entries({ fetch: readByFetch, curl: readByCurl })) {
          for (const n of range(1, 6)) {
            const reader = await read(front, client, task);
            world.open.push(() => reader.close());
            await reader.joined();
            const text = () => reader.named("stream.chunk").map(({ data }) => data.content).join("");
            readers.push({ name: `${kind} ${n}`, errors: [], seqs: () => reader.seqs(), text, done: () => reader.names().filter((event) => event === "stream.done").length });
          }
        }
        // What is compared is at several nodes.
        for (const what of ["muster_sockets", "muster_event_streams"]) {
          const held = await onEach(what);
          assert.ok(held.every((count) => count >= 1), `${what}: ${held}`);
        }

        const takenBefore = await chunksTaken();
        for (const n of range(1, 30)) {
          assert.deepEqual(await tryRest(front, provider, task, { content: `${n} `, idempotency_key: `k${n}` }), { seq: n });
          // Acknowledged is stored, whichever node answered.
          if (n % 10 === 0) assert.deepEqual(await world.cluster.postgres.query(`SELECT count(*), max(seq) FROM chunks WHERE task = '${task.id}' AND seq <= ${n}`), [[`${n}`, `${n}`]]);
        }
        for (const n of range(1, 30)) assert.deepEqual(await tryRest(front, provider, task, { content: "again", idempotency_key: `k${n}` }), { seq: n });
        const taken = (await chunksTaken()).map((count, at) => count - takenBefore[at]);
        assert.ok(sum(taken) === 60 && taken.every((count) => count > 5), `${taken}`);

        const stranger = await front.agent();
        for (const n of range(1, 6)) {
          const refused = await front.emit(task, stranger, `not mine ${n}`);
          assert.deepEqual([refused.status, refused.error.details], [403, { reason: "unauthorized" }]);
          assert.equal((await front.emit(task, provider, "x".repeat(65_537))).error.details.reason, "invalid_content");
        }

        const answers = await Promise.all(range(1, 4).map(async (line) => {
          const mine = [];
          for (const n of range(1, 10)) mine.push({ content: `${line}.${n} `, ...(await tryRest(front, provider, task, { content: `${line}.${n} ` })) });
          return mine;
        }));
        for (const mine of answers) assert.deepEqual(mine.map(({ seq }) => seq), mine.map(({ seq }) => seq).toSorted((a, b) => a - b), "each in its order");
        const bySeq = answers.flat().toSorted((a, b) => a.seq - b.seq);
        assert.deepEqual(bySeq.map(({ seq }) => seq), range(31, 70));
        await allHave(readers, range(1, 70));
        const text = [...range(1, 30).map((n) => `${n} `), ...bySeq.map(({ content }) => content)].join("");
        for (const reader of readers) assert.equal(reader.text(), text, reader.name);
        for (const node of world.nodes) assert.equal((await log(node, client, task)).map(({ content }) => content).join(""), text, node.name);

        await complete(front, provider, task);
        for (const reader of readers) await until(`the end at ${reader.name}`, () => reader.done() === 1);
        for (const n of range(1, 6)) assert.equal((await front.emit(task, provider, `late ${n}`)).error.details.reason, "task_not_active");
        for (const close of world.open.splice(0)) await close();
        await world.connections.close();
        // The next count is of new ones alone.
        await until("nothing is open", async () => sum([...(await onEach("muster_sockets")), ...(await onEach("muster_event_streams"))]) === 0);
      }
    });

    test("R37 R50 R52: a channel, REST and MCP behind the balancer number one stream together", async () => {
      const { client, provider, task } = await castFor(world.three);
      const ways = await emitters(world.connections, front, provider);
      const reader = await world.connections.reader(front, client, task);
      let seq = 0;
      for (const round of range(1, 5)) {
        for (const way of ["rest", "channel", "mcp"]) assert.deepEqual(await ways[way](task, { content: `${way} ${round};` }), { seq: ++seq });
      }
      await allHave([Object.assign(reader, { name: "a socket" })], range(1, 15));
    });

    test("R28 R53 R54 R55: phoenix clients of all versions see each other come and go, whichever nodes they are at", async () => {
      const clients = [];
      for (const n of range(0, 8)) {
        const agent = await front.agent({ name: `Agent ${n}` });
        // Its own topic on one socket, who is there on another: it is present by both.
        const own = await world.connections.socket(front, "/socket/agent", agent.key);
        assert.equal((await join(own.channel(`agent:${agent.id}`, {}))).status, "ok");
        const { Presence } = phoenix(VERSIONS[n % VERSIONS.length]);
        const socket = await world.connections.socket(front, "/socket", agent.key, {}, VERSIONS[n % VERSIONS.length]);
        const channel = socket.channel("agents:discovery", {});
        const presence = new Presence(channel);
        assert.equal((await join(channel)).status, "ok");
        const sees = () => presence.list((id, { metas }) => [id, metas.length]).filter(([id]) => clients.some((one) => one.agent.id === id));
        clients.push({ agent, own, socket, sees, name: `client ${n}` });
      }
      const open = await onEach("muster_sockets");
      assert.ok(sum(open) === 18 && open.every((count) => count >= 2), `${open}`);
      const allSee = async (agents) => {
        const expected = JSON.stringify(agents.map(({ agent }) => agent.id).toSorted().map((id) => [id, 2]));
        for (const { name, sees, socket } of clients) {
          if (!socket.isConnected()) continue;
          await until(`${name} sees ${agents.length} agents, not ${JSON.stringify(sees())}`, () => JSON.stringify(sees().toSorted()) === expected, leniently(2_000));
        }
      };
      await allSee(clients);
      for (const gone of range(0, 2)) {
        clients[gone].own.disconnect();
        clients[gone].socket.disconnect();
        await until("it is gone", () => !clients[gone].socket.isConnected());
        await allSee(clients.slice(gone + 1));
      }
    });

    // What goes through the owner of one of three streams, and through who is no owner of the others.
    const restart = (node) => world.cluster.restart(node.name);
    const FAULTS = [
      { what: "drained", victim: 0, end: async (node) => assert.equal(await node.stop(60_000), true, "it ended in order"), restart },
      { what: "killed", victim: 1, end: (node) => node.kill(), restart },
    ];
    // nginx leaves its sockets attached to it.
    if (name === "haproxy") FAULTS.push({ what: "standing still", victim: 2, end: (node) => node.pause(), restart: (node) => node.resume() });
    for (const { what, victim, end, restart } of FAULTS) {
      test(`R37 R43 R44 R46 R52 R166: a node is ${what} while chunks come: nothing acknowledged is lost, and readers come back and see each chunk once`, async (context) => {
        const going = world.nodes[victim];
        const staying = world.nodes.filter((node) => node !== going);
        const streams = [];
        for (const owner of world.nodes) streams.push({ owner, parties: await castFor(owner), readers: [] });
        // Kind by kind, so that of each there are some on every node.
        for (const [kind, open] of Object.entries(KINDS)) for (const { parties, readers } of streams) readers.push({ kind, ...(await open(parties)) });
        for (const stream of streams) {
          const { provider, task } = stream.parties;
          stream.producer = new Producer(`${stream.owner.name}-`, [(chunk) => tryRest(front, provider, task, chunk)], 20);
        }
        const producers = streams.map(({ producer }) => producer);
        const more = (count) => Promise.all(producers.map((producer) => producer.more(count)));
        await more(20);
        const held = { sockets: await metric(going, "muster_sockets"), streams: await metric(going, "muster_event_streams") };
        assert.ok(held.sockets + held.streams >= 2, `${JSON.stringify(held)}: hardly anything would come back`);
        await end(going);
        await more(20);
        assert.ok(!going.alive || going.paused);
        // They are all there again, on the nodes that stay, and those that were there have noticed nothing.
        const openNow = async (name) => sum(await Promise.all(staying.map((node) => metric(node, name))));
        await until("all sockets are open", async () => (await openNow("muster_sockets")) === streams.length);
        await until("all event streams are open", async () => (await openNow("muster_event_streams")) === 3 * streams.length);
        const returned = (isMeant) => sum(streams.flatMap(({ readers }) => readers.filter(({ kind }) => isMeant(kind)).map(({ returns }) => returns())));
        // Its node counts an event stream before its reader has heard of it.
        await until("readers have noticed", () => returned(() => true) >= held.sockets + held.streams);
        const checkReturns = () => {
          assert.equal(returned((kind) => kind === "phoenix"), held.sockets, "sockets of the node, and no others");
          assert.equal(returned((kind) => kind !== "phoenix"), held.streams, "event streams of the node, and no others");
        };
        checkReturns();
        await restart(going);
        await world.cluster.seen();
        await more(20);
        await Promise.all(producers.map((producer) => producer.stop()));
        checkReturns();
        const longest = Math.max(...producers.map(({ longestMs }) => longestMs));
        context.diagnostic(`${held.sockets} sockets and ${held.streams} event streams came back; the longest wait was ${longest} ms, with ${sum(producers.map(({ retries }) => retries))} retries`);
        for (const { owner, parties, producer, readers } of streams) {
          const stored = await assertStored(world.nodes, [producer], parties);
          assert.equal(stored.length, producer.acks.size);
          await complete(front, parties.provider, parties.task);
          for (const reader of readers) {
            const which = `${reader.kind}, of the stream of ${owner.name}`;
            await until(`the end at ${which}`, () => reader.ends() === 1);
            assert.deepEqual(reader.seqs(), range(1, stored.length), which);
          }
        }
      });
    }
  });
}
