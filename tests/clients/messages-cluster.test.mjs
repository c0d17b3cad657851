// Messages between agents at different nodes of a cluster.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { onCluster } from "./lib/cluster.mjs";
import { collect, connect, join, push } from "./lib/phoenix.mjs";
import { leniently, sleep, until } from "./lib/server.mjs";

const world = onCluster({ count: 2 });
const VERSION = "1.8.16";

async function mailbox(node, agent) {
  const { token } = await node.ok("POST", "/api/v1/auth/authenticate", { key: agent.key, body: {} });
  const socket = await connect(VERSION, node, "/user_socket", { agent_id: agent.id, token }, { rejoinAfterMs: () => 50, reconnectAfterMs: () => 50, timeout: 30_000 });
  world.open.push(() => socket.disconnect());
  const channel = socket.channel(`messages:${agent.id}`, {});
  const box = { socket, channel, seen: collect(channel, "new_message"), statuses: collect(channel, "message_status") };
  box.ack = (message_id) => push(channel, "acknowledge", { message_id });
  box.of = (id) => box.seen.filter((message) => message.id === id);
  const joined = await join(channel);
  assert.equal(joined.status, "ok", JSON.stringify(joined));
  return box;
}

const send = (node, from, to, more = {}) => node.ok("POST", "/api/v1/messages", { key: from.key, body: { to_agent_id: to.id, type: "note", payload: {}, ...more } });

describe("messages on several nodes", () => {
  test("R112 R113 R124: a sender at one node, a recipient at another: in order, and the sender hears what became of them", async () => {
    const [from, to] = [await world.one.agent(), await world.one.agent()];
    const [sender, box] = [await mailbox(world.one, from), await mailbox(world.two, to)];
    const sent = [];
    for (let n = 0; n < 20; n += 1) sent.push(await send(world.one, from, to, { payload: { n } }));
    await until("all", () => box.seen.length === 20, leniently(2_000));
    assert.deepEqual(box.seen.map(({ id }) => id), sent.map(({ id }) => id));
    for (const { id } of sent) await box.ack(id);
    await until("the sender hears of all", () => sender.statuses.length === 20);
    assert.ok(sender.statuses.every(({ status }) => status === "acknowledged"));
  });

  test("R121: one key at two nodes at the same moment is one message", async () => {
    const [from, to] = [await world.one.agent(), await world.one.agent()];
    const once = { delivery_guarantee: "exactly_once", dedup_key: "k", payload: { n: 1 } };
    const answers = await Promise.all(Array.from({ length: 12 }, (_, n) => send(world.nodes[n % 2], from, to, once)));
    assert.equal(new Set(answers.map(({ id }) => id)).size, 1);
    assert.equal(answers.filter(({ deduplicated }) => !deduplicated).length, 1);
  });

  test("R121: a recipient that moves to another node has there what it has not acknowledged, and never what it has", async () => {
    const [from, to] = [await world.one.agent(), await world.one.agent()];
    const sent = [];
    for (let n = 0; n < 30; n += 1) sent.push(await send(world.nodes[n % 2], from, to, { payload: { n }, delivery_guarantee: "exactly_once", dedup_key: `k${n}` }));
    const first = await mailbox(world.one, to);
    await until("all at the first node", () => first.seen.length === 30);
    const acknowledged = new Set(sent.slice(0, 15).map(({ id }) => id));
    for (const id of acknowledged) assert.equal((await first.ack(id)).status, "ok");
    // Both at once, as when a client is back before its old connection is missed.
    const second = await mailbox(world.two, to);
    await until("the rest at the second node", () => second.seen.length >= 15);
    const count = first.seen.length;
    await first.socket.disconnect();
    assert.deepEqual(second.seen.slice(0, 15).map(({ id }) => id), sent.slice(15).map(({ id }) => id));
    for (const { id } of sent.slice(15)) assert.equal((await second.ack(id)).status, "ok");
    const total = second.seen.length;
    await sleep(2_500);
    assert.equal(second.seen.length, total, "nothing comes after its acknowledgement");
    assert.ok(second.seen.every(({ id }) => !acknowledged.has(id)));
    assert.ok(first.seen.length >= count);
    assert.deepEqual(await world.two.ok("GET", "/api/v1/messages?status=delivered", { key: to.key }), []);
  });

  test("R113 R119: an agent that is joined at two nodes has each push at both, retries are counted once, and an acknowledgement holds at both", async () => {
    const [from, to] = [await world.one.agent(), await world.one.agent()];
    const boxes = [await mailbox(world.one, to), await mailbox(world.two, to)];
    const { id } = await send(world.one, from, to);
    for (const box of boxes) {
      await until("two retries", () => box.of(id).some(({ retry_count }) => retry_count === 2));
      const counts = box.of(id).map(({ retry_count }) => retry_count);
      assert.deepEqual(counts, [0, 1, 2], "each push once at each node");
    }
    assert.equal((await boxes[0].ack(id)).status, "ok");
    const before = boxes.map((box) => box.of(id).length);
    await sleep(6_000);
    assert.equal(boxes[0].of(id).length, before[0]);
    assert.ok(boxes[1].of(id).length <= before[1] + 1, "at most what was on its way");
    assert.equal((await world.two.ok("GET", `/api/v1/messages/${id}/status`, { key: from.key })).status, "acknowledged");
  });

  test("R120: who falls silent at one node and is cut off has its messages at the other as if they had not been pushed", async () => {
    const [from, to] = [await world.one.agent(), await world.one.agent()];
    const box = await mailbox(world.one, to);
    const { id } = await send(world.two, from, to);
    await until("two pushes", () => box.of(id).length === 2);
    box.socket.reconnectTimer.scheduleTimeout = () => {};
    box.socket.conn.terminate();
    const status = () => world.two.ok("GET", `/api/v1/messages/${id}/status`, { key: from.key });
    const queued = await until("it is queued again", async () => {
      const now = await status();
      return now.status === "queued" && now;
    });
    assert.deepEqual([queued.retry_count, queued.delivered_at], [0, null]);
    const back = await mailbox(world.two, to);
    await until("it comes there", () => back.seen.length > 0);
    assert.deepEqual([back.seen[0].id, back.seen[0].retry_count], [id, 0]);
    await back.ack(id);
    assert.equal((await status()).status, "acknowledged");
  });

  test("R123 R120: a node that is killed takes nothing with it: what it had pushed comes from another", async () => {
    const [from, to] = [await world.two.agent(), await world.two.agent()];
    const box = await mailbox(world.one, to);
    const sent = [];
    for (let n = 0; n < 10; n += 1) sent.push(await send(world.two, from, to, { payload: { n } }));
    await until("all", () => box.seen.length >= 10);
    await box.ack(sent[0].id);
    await world.one.kill();
    box.socket.disconnect();
    const back = await mailbox(world.two, to);
    await until("the rest", () => new Set(back.seen.map(({ id }) => id)).size === 9);
    assert.deepEqual(back.seen.slice(0, 9).map(({ id }) => id), sent.slice(1).map(({ id }) => id));
    for (const { id } of sent.slice(1)) await back.ack(id);
  });
});
