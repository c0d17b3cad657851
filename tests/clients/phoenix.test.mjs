// The end-to-end script of issue "one node, live", with each version of the npm client.

import assert from "node:assert/strict";
import { after, afterEach, before, describe, test } from "node:test";
import { collect, connect, join, phoenix, push, resuming, VERSIONS } from "./lib/phoenix.mjs";
import { cast, leniently, Server, sleep, until } from "./lib/server.mjs";

for (const version of VERSIONS) {
  describe(`phoenix ${version}`, () => {
    let server, people;
    const sockets = [];
    const open = async (...args) => {
      const socket = await connect(version, ...args);
      sockets.push(socket);
      return socket;
    };

    before(async () => {
      server = await Server.start({ set: ["drills.enabled=true"] });
      people = await cast(server);
    });
    afterEach(() => sockets.splice(0).forEach((socket) => socket.disconnect()));
    after(() => server?.end());

    test("joins, pushes, gets replies, and streams to a hirer in order", async () => {
      const { user, provider, task } = people;
      const agentSocket = await open(server, "/socket/agent", { api_key: provider.key });
      const channel = agentSocket.channel(`agent:${provider.id}`, {});
      assert.equal((await join(channel)).status, "ok");

      const early = await push(channel, "task.stream_chunk", { task_id: task.id, content: "one ", kind: "chat" });
      assert.deepEqual(early, { status: "ok", response: { seq: 1 } });

      const hirerSocket = await open(server, "/socket/hirer", { api_key: user.token });
      const stream = hirerSocket.channel(`task_stream:${task.id}`, {});
      const chunks = collect(stream, "stream.chunk");
      const joined = await join(stream);
      assert.deepEqual(joined.response, { seq: 1, first_seq: 1, status: "in_progress", truncated: false });

      const pushed = [];
      for (let n = 2; n <= 50; n++) {
        pushed.push(push(channel, "task.stream_chunk", { task_id: task.id, content: `word ${n} ` }));
      }
      const seqs = (await Promise.all(pushed)).map((reply) => reply.response.seq);
      assert.deepEqual(seqs, Array.from({ length: 49 }, (_, n) => n + 2));
      await until("all chunks have come", () => chunks.length === 50);
      assert.deepEqual(chunks.map((chunk) => chunk.seq), Array.from({ length: 50 }, (_, n) => n + 1));
      assert.equal(chunks[0].kind, "chat");
      assert.equal(chunks[1].kind, "artifact");
      assert.deepEqual(chunks[1].metadata, {});
      assert.match(chunks[1].timestamp, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
    });

    test("broadcasts reach everybody on the topic", async () => {
      const [one, two] = [await server.agent({ name: "One" }), await server.agent({ name: "Two" })];
      const channels = [];
      for (const agent of [one, two]) {
        const socket = await open(server, "/socket", { api_key: agent.key });
        const channel = socket.channel("agents:discovery", {});
        channels.push({ channel, updates: collect(channel, "agent_updated") });
        assert.equal((await join(channel)).status, "ok");
      }
      const reply = await push(channels[0].channel, "announce", { capabilities: ["paint", "draw"] });
      assert.equal(reply.status, "ok");
      for (const { updates } of channels) {
        await until("the announcement", () => updates.length === 1);
        assert.equal(updates[0].agent_id, one.id);
        assert.deepEqual(updates[0].capabilities, ["paint", "draw"]);
      }
    });

    test("presence syncs, and an agent that disconnects is gone within a second", async () => {
      const { Presence } = phoenix(version);
      const watcher = await server.agent({ name: "Watcher" });
      const watcherSocket = await open(server, "/socket", { api_key: watcher.key });
      const channel = watcherSocket.channel("agents:discovery", {});
      const presence = new Presence(channel);
      await join(channel);
      const online = () => presence.list((id) => id);
      await until("the watcher sees itself", () => online().includes(watcher.id));

      const agent = await server.agent({ name: "Comes and goes", capabilities: ["sing"] });
      const agentSocket = await open(server, "/socket/agent", { api_key: agent.key });
      await join(agentSocket.channel(`agent:${agent.id}`, {}));
      await until("the agent is seen", () => online().includes(agent.id), leniently(1_000));
      const [meta] = presence.state[agent.id].metas;
      assert.deepEqual(meta.capabilities, ["sing"]);
      assert.equal(meta.base_price, "1");
      assert.equal(typeof meta.reputation, "number");
      assert.ok(Date.parse(meta.online_at) <= Date.now());
      assert.equal(meta.phx_ref.length, 16);
      agentSocket.disconnect();
      await until("the agent is gone", () => !online().includes(agent.id), leniently(1_000));
    });

    test("a refused join and an unmatched topic are errors, and the socket goes on", async () => {
      const { provider } = people;
      const other = await server.agent();
      const socket = await open(server, "/socket/agent", { api_key: provider.key });
      const refused = socket.channel(`agent:${other.id}`, {});
      assert.deepEqual(await join(refused), { status: "error", response: { reason: "unauthorized" } });
      refused.leave();
      const unmatched = socket.channel("room:lobby", {});
      assert.deepEqual(await join(unmatched), { status: "error", response: { reason: "unmatched topic" } });
      unmatched.leave();
      const own = socket.channel(`agent:${provider.id}`, {});
      assert.equal((await join(own)).status, "ok");
      assert.deepEqual(await push(own, "no.such.event", {}), { status: "error", response: { reason: "unknown_event" } });
      assert.equal(socket.isConnected(), true);
    });

    test("a crashed channel comes back, and its neighbour notices nothing", async () => {
      const { provider } = people;
      const socket = await open(server, "/socket/agent", { api_key: provider.key });
      const channel = socket.channel(`agent:${provider.id}`, {});
      const joins = [];
      channel.join().receive("ok", () => joins.push(Date.now()));
      await until("joined", () => joins.length === 1);
      const neighbour = socket.channel(`task_stream:${people.task.id}`, {});
      assert.equal((await join(neighbour)).status, "ok");
      let errors = 0;
      channel.onError(() => errors++);
      let neighbourErrors = 0;
      neighbour.onError(() => neighbourErrors++);
      channel.push("muster.drill.crash", {});
      await until("the crash is told", () => errors === 1);
      await until("the client joined again", () => joins.length === 2);
      assert.equal(neighbourErrors, 0);
      assert.equal(socket.isConnected(), true);
    });

    test("a drained server closes with 1012, and the client is back and misses nothing", async () => {
      const { user, provider, task } = await cast(server);
      await server.emit(task, provider, "before");
      const socket = await open(server, "/socket/hirer", { api_key: user.token });
      const { channel: stream, seen } = resuming(socket, task);
      assert.equal((await join(stream)).status, "ok");
      await until("the first chunk", () => seen.length === 1);

      const idle = await open(server, "/socket/hirer", { api_key: user.token });
      const ended = await server.stop();
      assert.deepEqual(ended, { code: 0, signal: null });
      await until("the close is seen", () => socket.recorded.closes.length >= 1 && idle.recorded.closes.length >= 1);
      assert.equal(socket.recorded.closes[0].code, 1012);
      assert.equal(idle.recorded.closes[0].code, 1012, "a socket without channels too");
      await server.startAgain();
      await until("both are back", () => socket.isConnected() && idle.isConnected());
      await server.emit(task, provider, "after");
      await until("the second chunk", () => seen.length === 2);
      await sleep(100);
      assert.deepEqual(seen, [1, 2]);
    });
  });
}
