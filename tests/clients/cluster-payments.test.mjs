// Payment channels and escrow on two nodes over one PostgreSQL: whichever node a side is at, it is one channel.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { onCluster } from "./lib/cluster.mjs";
import { assertSound, credit, money, openChannel } from "./lib/money.mjs";
import { until } from "./lib/server.mjs";
import { range } from "./lib/streams.mjs";

describe("money on two nodes", () => {
  const world = onCluster({ count: 2, balancer: false });

  test("R93 R95 R96: the sides are at different nodes, and each is told what the other does", async () => {
    const pair = await openChannel(world.one);
    const [a, b] = await pair.join(world.connections, [world.one, world.two]);
    const { propose, ack } = await pair.transfer(pair.a, "2.5");
    await a.ask("propose_transfer", propose);
    await until("transfer_proposed at the other node", () => b.of("transfer_proposed").length === 1);
    assert.equal((await b.ask("acknowledge_transfer", ack)).balance_b, "12.5");
    for (const side of [a, b]) await until("transfer_complete", () => side.of("transfer_complete").length === 1);
    assert.deepEqual([a.names(), b.names()], [["transfer_complete"], ["transfer_proposed", "transfer_complete"]]);
    assert.equal((await pair.show(pair.a, world.two)).nonce, 1);
    // What the first node remembers is old by now: it decides on what the store has.
    const back = await pair.transfer(pair.b, "1");
    await b.ask("propose_transfer", back.propose);
    await until("transfer_proposed at the first node", () => a.of("transfer_proposed").length === 1);
    assert.equal((await a.ask("acknowledge_transfer", back.ack)).nonce, 2);
    assert.equal((await b.ask("dispute", { reason: "why" })).status, "disputed");
    assert.deepEqual((await a.ask("reject_transfer", {})).refused, { reason: "channel_disputed" });
    await until("dispute_opened", () => a.of("dispute_opened").length === 1);
  });

  test("R94 R96: a nonce that is sent to both nodes at the same instant is taken once, and so is its acknowledgement", async () => {
    const pair = await openChannel(world.one, { deposit: "50" });
    const there = await pair.join(world.connections, [world.one, world.one]);
    const elsewhere = await pair.join(world.connections, [world.two, world.two]);
    for (const n of range(1, 15)) {
      const [mine, theirs] = [await pair.transfer(pair.a, "1"), await pair.transfer(pair.b, "2")];
      // Both sides pay at once, each at both nodes.
      const asked = [there[0].ask("propose_transfer", mine.propose), elsewhere[0].ask("propose_transfer", mine.propose), there[1].ask("propose_transfer", theirs.propose), elsewhere[1].ask("propose_transfer", theirs.propose)];
      const answers = await Promise.all(asked);
      assert.equal(answers.filter(({ refused }) => !refused).length, 1, JSON.stringify(answers));
      for (const { refused } of answers) if (refused) assert.deepEqual(refused, { reason: "transfer_pending", nonce: n });
      const { pending } = await pair.show();
      const [transfer, side] = pending.from === pair.a.id ? [mine, 1] : [theirs, 0];
      const acks = await Promise.all([there[side].ask("acknowledge_transfer", transfer.ack), elsewhere[side].ask("acknowledge_transfer", transfer.ack)]);
      assert.deepEqual(acks.map(({ nonce, duplicate }) => [nonce, duplicate ?? false]).toSorted(), [[n, false], [n, true]]);
    }
    const { nonce, balance_a, balance_b } = await pair.show();
    assert.equal(nonce, 15);
    assert.deepEqual([await money(world.one, pair.a), await money(world.two, pair.b)], [["50", balance_a], ["50", balance_b]]);
    for (const side of [...there, ...elsewhere]) {
      await until("all are told", () => side.of("transfer_complete").length === 15);
      assert.equal(new Set(side.of("transfer_complete").map((one) => one.nonce)).size, 15, "each once");
    }
    await assertSound(world.two);
  });

  test("R97 R100: of an acknowledgement, a rejection and a closing at both nodes, what happens happens for both", async () => {
    for (const _ of range(1, 10)) {
      const pair = await openChannel(world.one);
      const [a, b] = await pair.join(world.connections, [world.one, world.two]);
      const { propose, ack } = await pair.transfer(pair.a, "3");
      await a.ask("propose_transfer", propose);
      const [rejected, acknowledged] = await Promise.all([a.ask("reject_transfer", { nonce: 1 }), b.ask("acknowledge_transfer", ack)]);
      assert.equal([rejected, acknowledged].filter(({ refused }) => !refused).length, 1);
      const paid = !acknowledged.refused;
      const shown = await pair.show(pair.b, world.two);
      assert.deepEqual([shown.nonce, shown.balance_a], [1, paid ? "7" : "10"]);
      const closing = pair.closing(shown.balance_a, shown.balance_b, 1);
      const closed = await Promise.all([a.ask("close", closing), b.ask("close", closing), b.ask("dispute", { reason: "why" })]);
      assert.equal(closed.filter(({ refused }) => !refused).length, 1, JSON.stringify(closed));
    }
    await assertSound(world.one);
  });

  test("R141: one client hires at both nodes at once, as often as it can pay", async () => {
    const client = await world.one.agent();
    const provider = await world.two.agent({ price: "1" });
    await credit(world.one, client, "5");
    const hire = (node) => node.request("POST", `/api/v1/agents/${provider.id}/hire`, { key: client.key, body: { queue: true } });
    const hired = await Promise.all(range(1, 12).map((n) => hire(world.nodes[n % 2])));
    assert.equal(hired.filter(({ status }) => status === 201).length, 5);
    for (const { status, error } of hired) if (status !== 201) assert.equal(error.code, "INSUFFICIENT_BALANCE");
    const tasks = hired.filter(({ status }) => status === 201).map(({ data }) => data.task);
    const ends = tasks.flatMap(({ id }) => [
      world.one.request("PUT", `/api/v1/tasks/${id}/complete`, { key: provider.key, body: {} }),
      world.two.request("POST", `/api/v1/tasks/${id}/cancel`, { key: client.key, body: {} }),
    ]);
    await Promise.all(ends);
    const [[left], [earned]] = [await money(world.one, client), await money(world.two, provider)];
    assert.equal(Number(left) + Number(earned), 5);
    await assertSound(world.one);
  });
});
