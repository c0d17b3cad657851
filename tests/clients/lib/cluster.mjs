// A cluster for the tests of a file: three real nodes on one PostgreSQL behind the balancer, all on loopback.

import assert from "node:assert/strict";
import { after, afterEach, before } from "node:test";
import { Cluster } from "../../chaos/cluster.mjs";
import { forget, runFolder } from "../../chaos/folders.mjs";
import { ownerOf } from "../../chaos/load/owner.mjs";
import { Roster } from "./roster.mjs";
import { cast, leniently, until } from "./server.mjs";
import { readByFetch } from "./sse.mjs";
import { Connections } from "./streams.mjs";
import { ok, Wire } from "./wire.mjs";

/** A world with a cluster, for the tests of the `describe` around it: nodes `one`, `two`, `three`, and `front`. */
export function onCluster(options = {}) {
  const world = { connections: new Connections(), open: [] };
  let failed = false;
  before(async () => {
    world.folder = runFolder("clients");
    world.cluster = await Cluster.start({ count: 3, folder: world.folder, network: "loopback", redis: false, ...options });
    world.nodes = world.cluster.nodes;
    [world.one, world.two, world.three] = world.nodes;
    world.front = world.cluster.front;
  });
  afterEach(async (context) => {
    for (const close of world.open.splice(0)) await close();
    await world.connections.close();
    // What a test has killed is there for the next one.
    await Promise.all(world.nodes.filter(({ alive }) => !alive).map(({ name }) => world.cluster.restart(name)));
    await world.cluster.seen();
    failed ||= context.error !== undefined && context.error !== null;
    assert.deepEqual(world.cluster.problems.map(({ text }) => text), [], "nothing ended by itself");
  });
  after(async () => {
    await world.cluster?.close();
    // Logs of what failed stay.
    if (!failed) forget(world.folder);
  });

  /** The others, in turn behind a node. */
  world.others = (node) => [1, 2].map((n) => world.nodes[(world.nodes.indexOf(node) + n) % 3]);

  /** A user, their client agent, a provider, and a task whose stream this node owns. */
  world.cast = async (owner) => {
    const parties = await cast(world.one);
    return { ...parties, task: await world.taskOf(owner, parties.client, parties.provider) };
  };

  /** A task whose stream this node owns. */
  world.taskOf = async (owner, client, provider) => {
    const names = world.nodes.map(({ name }) => name);
    for (;;) {
      const task = await world.one.task(client, provider);
      if (ownerOf(task.id, names) === owner.name) return task;
    }
  };

  world.sse = async (node, who, task, options) => {
    const reader = await readByFetch(node, who, task, options);
    world.open.push(() => reader.close());
    return reader.joined();
  };

  /** Readers of a task on every node: over sockets and over event streams, each with `seqs` and `ends`. */
  world.readers = async (who, task, params) => {
    const readers = [];
    for (const node of world.nodes) {
      const channel = await world.connections.reader(node, who, task, params);
      assert.equal(channel.joined.status, "ok", JSON.stringify(channel.joined));
      readers.push(Object.assign(channel, { name: `a socket on ${node.name}`, node, ended: () => channel.ends }));
      const sse = await world.sse(node, who, task, params?.after_seq === undefined ? {} : { after: params.after_seq });
      const name = `an event stream on ${node.name}`;
      const isEnd = ({ event }) => event === "stream.done" || event === "stream.error";
      const chunksBefore = (at) => sse.events.slice(0, at).filter(({ event }) => event === "stream.chunk").length;
      const ended = () => sse.events.flatMap(({ event, data }, at) => (isEnd({ event }) ? [{ event, payload: data, after: chunksBefore(at) }] : []));
      readers.push({ name, node, sse, errors: [], seqs: () => sse.seqs(), text: () => sse.named("stream.chunk").map(({ data }) => data.content).join(""), ended });
    }
    return readers;
  };

  /** A raw socket that stands on agents:discovery, with a roster that fails on what is told twice or never was. */
  world.watch = async (node, who) => {
    const wire = await Wire.open(`${node.ws}/socket/websocket?api_key=${who.key ?? who.token}&vsn=2.0.0`);
    world.open.push(() => wire.close());
    wire.send(["1", "1", DISCOVERY, "phx_join", {}]);
    assert.deepEqual(await wire.next(), ok("1", "1", DISCOVERY));
    wire.roster = new Roster();
    wire.roster.apply(await wire.nextPresence());
    wire.node = node;
    return wire;
  };

  /** An agent's own socket on its own topic: it is online by it. */
  world.appear = async (node, agent) => {
    const wire = await Wire.open(`${node.ws}/socket/agent/websocket?api_key=${agent.key}&vsn=2.0.0`);
    world.open.push(() => wire.close());
    wire.send(["1", "1", `agent:${agent.id}`, "phx_join", {}]);
    assert.deepEqual(await wire.next(), ok("1", "1", `agent:${agent.id}`));
    return wire;
  };
  return world;
}

const DISCOVERY = "agents:discovery";

/** What a watcher knows after all that has come. */
export function sync(wire) {
  while (wire.presence.length > 0) wire.roster.apply(wire.presence.shift().message);
  return wire.roster;
}

/** Waits until a watcher knows so many metas of an agent. */
export const metas = (wire, agent, count, ms = leniently(2_000)) =>
  until(`${count} metas of ${agent.name} on ${wire.node.name}, not ${JSON.stringify(sync(wire).of(agent.id))}`, () => sync(wire).of(agent.id).length === count, ms);

/** All readers have this, and each the same. */
export async function allHave(readers, seqs, ms) {
  for (const reader of readers) {
    await until(`${reader.name} has ${seqs.length} chunks, not ${reader.seqs().length}`, () => reader.seqs().length >= seqs.length, ms);
    assert.deepEqual(reader.seqs(), seqs, reader.name);
    assert.deepEqual(reader.errors, [], reader.name);
  }
}
