// Payment channels: opened over REST, used over `payment:<id>` by the unmodified clients, signed by Node's own Ed25519.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, describe, test } from "node:test";
import { assertSound, money, openChannel, Pair, signingAgent } from "./lib/money.mjs";
import { join, push } from "./lib/phoenix.mjs";
import { Server, sleep, until } from "./lib/server.mjs";
import { Signer, statements } from "./lib/signer.mjs";
import { Connections, range, rate, ROOMY } from "./lib/streams.mjs";

const UNKNOWN_ID = "01a00000-0000-7000-8000-000000000000";
const HOUR_MS = 3_600_000;

/** A node of its own for some tests. */
function onNode(title, set, define) {
  describe(title, () => {
    const world = { connections: new Connections() };
    before(async () => {
      world.server = await Server.start({ set: [...ROOMY, ...set] });
      world.operator = { token: world.server.adminToken };
      world.open = (who, body) => world.server.request("POST", "/api/v1/payment-channels", { key: who.key, body });
      world.accept = (who, id) => world.server.request("POST", `/api/v1/payment-channels/${id}/accept`, { key: who.key, body: {} });
      world.show = (who, id) => world.server.request("GET", `/api/v1/payment-channels/${id}`, who);
      world.resolve = (id, body, as = world.operator) => world.server.request("POST", `/api/v1/admin/payment-channels/${id}/resolve`, { ...as, body });
      world.advance = (ms) => world.server.ok("POST", "/api/v1/admin/drills/clock", { ...world.operator, body: { advance_ms: ms } });
    });
    after(async () => {
      await world.connections.close();
      if (world.server) await assertSound(world.server);
      await world.server?.end();
    });
    define(world);
  });
}

function assertRefused(answer, status, code, reason) {
  assert.deepEqual([answer.status, answer.error?.code, answer.data], [status, code, null], answer.text);
  if (reason) assert.equal(answer.error.details.reason, reason, answer.text);
}

const state = ({ status, nonce, balance_a, balance_b }) => [status, nonce, balance_a, balance_b];

test("R137 R138: the texts that these tests sign are those of the vectors", async () => {
  const vectors = await readFile(new URL("../../protocol/src/signing/vectors.txt", import.meta.url), "utf8");
  const transfer = { channel: "chan-1", nonce: 1, from: "agent-a", to: "agent-b", amount: "2.5", a: "7.5", b: "12.5" };
  for (const text of [statements.propose(transfer), statements.ack(transfer), statements.close("chan-1", 1, "7.5", "12.5")]) {
    assert.ok(vectors.includes(JSON.stringify(text)), text);
  }
});

onNode("opening", ["drills.enabled=true"], (world) => {
  test("R92 R141: who opens a channel puts its deposit in, who accepts its own; then it is open, and both are told", async () => {
    const { server } = world;
    const [a, b] = [await signingAgent(server, { credit: "10" }), await signingAgent(server, { credit: "5" })];
    const opened = await world.open(a, { counterparty_agent_id: b.id, deposit: "4.5", counterparty_deposit: "2" });
    assert.equal(opened.status, 201, opened.text);
    const { id } = opened.data;
    assert.deepEqual(state(opened.data), ["pending", 0, "4.5", "0"]);
    assert.deepEqual([await money(server, a), await money(server, b)], [["5.5", "4.5"], ["5", "0"]]);
    const pair = new Pair(server, id, a, b);
    const [one, other] = await pair.join(world.connections);
    const { propose } = pair.signed(a, "1", { a: "4.5", b: "2", nonce: 1 });
    assert.deepEqual((await one.ask("propose_transfer", propose)).refused, { reason: "channel_not_open", status: "pending" });
    assertRefused(await world.accept(a, id), 403, "FORBIDDEN");
    const accepted = await world.accept(b, id);
    assert.deepEqual(state(accepted.data), ["open", 0, "4.5", "2"]);
    assert.deepEqual(accepted.data.public_keys, { [a.id]: a.signer.publicKey, [b.id]: b.signer.publicKey });
    assert.deepEqual([await money(server, a), await money(server, b)], [["5.5", "4.5"], ["3", "2"]]);
    for (const side of [one, other]) {
      await until("channel_opened", () => side.of("channel_opened").length === 1);
      assert.deepEqual(state(side.of("channel_opened")[0].channel), ["open", 0, "4.5", "2"]);
    }
    assertRefused(await world.accept(b, id), 409, "CHANNEL_NOT_OPEN");
    assert.deepEqual((await server.ok("GET", "/api/v1/payment-channels", { key: b.key })).map((one) => one.id), [id]);
  });

  test("R22 R92 R167: no key, no money, nobody to open it to: nothing is held", async () => {
    const { server } = world;
    const [a, b] = [await signingAgent(server, { credit: "10" }), await signingAgent(server)];
    const [keyless, user] = [await server.agent(), await server.user()];
    await server.ok("POST", "/api/v1/admin/ledger/credit", { ...world.operator, body: { agent_id: keyless.id, amount: "10" } });
    const body = { counterparty_agent_id: b.id, deposit: "1" };
    assertRefused(await world.open(keyless, body), 422, "VALIDATION_ERROR", "no_public_key");
    assertRefused(await world.open(a, { ...body, deposit: "10.000001" }), 422, "INSUFFICIENT_BALANCE", "insufficient_balance");
    assertRefused(await world.open(b, { ...body, counterparty_agent_id: a.id }), 422, "INSUFFICIENT_BALANCE");
    assertRefused(await world.open(a, { ...body, counterparty_agent_id: UNKNOWN_ID }), 404, "NOT_FOUND");
    assertRefused(await world.open(a, { ...body, counterparty_agent_id: a.id }), 422, "VALIDATION_ERROR");
    for (const deposit of ["0", "-1", "1e3", "0.0000001", "x", true]) assertRefused(await world.open(a, { ...body, deposit }), 422, "INVALID_AMOUNT");
    assertRefused(await server.request("POST", "/api/v1/payment-channels", { token: user.token, body }), 403, "FORBIDDEN");
    assertRefused(await server.request("POST", "/api/v1/payment-channels", { body }), 401, "UNAUTHORIZED");
    const shy = await signingAgent(server);
    await server.ok("POST", "/api/v1/blocks", { key: shy.key, body: { agent_id: a.id } });
    assertRefused(await world.open(a, { ...body, counterparty_agent_id: shy.id }), 404, "NOT_FOUND");
    assert.deepEqual(await money(server, a), ["10", "0"]);

    const id = "0190aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee";
    const opened = await world.open(a, { counterparty_agent_id: keyless.id, deposit: "1", counterparty_deposit: "11", channel_id: id });
    assert.equal(opened.data.id, id, "the opener may choose it");
    assertRefused(await world.open(a, { ...body, channel_id: id }), 409, "ALREADY_EXISTS");
    assertRefused(await world.accept(keyless, id), 422, "VALIDATION_ERROR", "no_public_key");
    await server.ok("PUT", `/api/v1/agents/${keyless.id}/public_key`, { key: keyless.key, body: { public_key: new Signer().publicKey } });
    assertRefused(await world.accept(keyless, id), 422, "INSUFFICIENT_BALANCE");
    assertRefused(await world.accept(b, id), 404, "NOT_FOUND");
    assert.equal((await world.show({ key: a.key }, id)).data.status, "pending");
  });

  test("R92 R134 R140 R127: nobody deals with themselves, however they ask", async () => {
    const { server } = world;
    const owner = await server.user("Owner");
    const self = await signingAgent(server, { owner, credit: "10" });
    const other = await signingAgent(server, {});
    const ask = (method, path, body, who = { key: self.key }) => server.request(method, `/api/v1${path}`, { ...who, body });
    const task = await server.ok("POST", "/api/v1/tasks", { key: self.key, body: { provider_agent_id: other.id, capability: "code" } });
    const acting = { token: owner.token, agent: self.id };
    const handoff = { to_agent_id: self.id, type: "task_handoff", payload: { task: { capability: "code" } } };
    for (const [field, refused] of [
      ["provider_agent_id", await ask("POST", "/tasks", { provider_agent_id: self.id, capability: "code", price: "1" })],
      ["provider_agent_id", await ask("POST", "/tasks", { provider_agent_id: self.id, capability: "code" }, acting)],
      ["provider_agent_id", await ask("POST", `/tasks/${task.id}/reassign`, { provider_agent_id: self.id })],
      ["provider_agent_id", await ask("POST", `/agents/${self.id}/hire`, { queue: true })],
      ["provider_agent_id", await ask("POST", `/agents/${encodeURIComponent(self.did)}/hire`, { queue: true, client_agent_id: self.id }, { token: owner.token })],
      ["counterparty_agent_id", await ask("POST", "/payment-channels", { counterparty_agent_id: self.id, deposit: "1" })],
      ["to_agent_id", await ask("POST", "/negotiations", { to_agent_id: self.id, amount: "1" })],
      ["to_agent_id", await ask("POST", "/messages", handoff)],
    ]) {
      assertRefused(refused, 422, "VALIDATION_ERROR");
      assert.equal(refused.error.field, field, refused.text);
    }
    assert.deepEqual(await money(server, self), ["10", "0"]);
    assert.equal((await server.ok("GET", "/api/v1/tasks", { key: self.key })).length, 1);
  });

  test("R35 R93 R167: a channel is for its two agents; for anybody else there is none", async () => {
    const { server } = world;
    const owner = await server.user();
    const a = await signingAgent(server, { owner, credit: "5" });
    const [b, stranger] = [await signingAgent(server), await signingAgent(server)];
    const { id } = (await world.open(a, { counterparty_agent_id: b.id, deposit: "5" })).data;
    const others = [{ key: stranger.key }, { token: owner.token, agent: (await signingAgent(server, { owner })).id }];
    for (const who of others) assert.equal((await world.show(who, id)).status, 404);
    assert.equal((await world.show({ token: owner.token, agent: a.id }, id)).status, 200, "as that agent");
    assertRefused(await world.show({ key: a.key }, UNKNOWN_ID), 404, "NOT_FOUND");
    const refusals = [];
    const tried = [[stranger.key, id], [owner.token, id], [a.key, UNKNOWN_ID], [a.key, "nothing"], [a.key, `${id}#${a.id}`]];
    for (const [credential, of] of tried) {
      const socket = await world.connections.socket(server, "/socket", credential);
      refusals.push(await join(socket.channel(`payment:${of}`, {})));
    }
    for (const refusal of refusals) assert.deepEqual(refusal, { status: "error", response: { reason: "unauthorized" } });
    const pair = new Pair(server, id, a, b);
    const side = await pair.joinAs(world.connections, b);
    const { channel } = side.joined.response;
    for (const field of ["id", "agent_a", "agent_b", "balance_a", "balance_b", "nonce", "status", "pending", "public_keys"]) assert.ok(field in channel, field);
    assert.deepEqual([channel.id, channel.agent_a, channel.agent_b, channel.pending], [id, a.id, b.id, null]);
    // A session sees it as long as it lasts, and a rotated key not any more.
    const session = await server.ok("POST", "/api/v1/auth/authenticate", { key: a.key });
    assert.equal((await world.show({ token: session.token }, id)).status, 200);
    await server.ok("POST", "/api/v1/auth/rotate-key", { key: a.key });
    assert.equal((await world.show({ key: a.key }, id)).status, 401);
    assert.equal((await world.show({ token: session.token }, id)).status, 401, "it ends with the key it was had by");
  });

  test("R92 R167: until it is accepted either side cancels a channel, and what was put in is given back at once", async () => {
    const { server } = world;
    const cancel = (as, id) => server.request("POST", `/api/v1/payment-channels/${id}/cancel`, { ...as, body: {} });
    const [a, b, stranger] = [await signingAgent(server, { credit: "10" }), await signingAgent(server, { credit: "10" }), await signingAgent(server)];
    const offer = async () => (await world.open(a, { counterparty_agent_id: b.id, deposit: "4", counterparty_deposit: "1" })).data.id;
    for (const [who, other] of [[a, b], [b, a]]) {
      const id = await offer();
      assert.deepEqual(await money(server, a), ["6", "4"]);
      const sides = await new Pair(server, id, a, b).join(world.connections);
      assertRefused(await cancel({ key: stranger.key }, id), 404, "NOT_FOUND");
      assertRefused(await cancel({}, id), 401, "UNAUTHORIZED");
      assertRefused(await cancel({ token: (await server.user()).token }, id), 403, "FORBIDDEN");
      const cancelled = await cancel({ key: who.key }, id);
      assert.equal(cancelled.status, 200, cancelled.text);
      assert.deepEqual(state(cancelled.data), ["cancelled", 0, "4", "0"]);
      assert.deepEqual([await money(server, a), await money(server, b)], [["10", "0"], ["10", "0"]]);
      for (const side of sides) {
        await until("channel_closed", () => side.of("channel_closed").length === 1);
        assert.equal(side.of("channel_closed")[0].status, "cancelled");
      }
      for (const again of [who, other]) assert.equal((await cancel({ key: again.key }, id)).data.status, "cancelled", "its answer may have been lost");
      assertRefused(await world.accept(b, id), 409, "CHANNEL_NOT_OPEN");
      assert.deepEqual([await money(server, a), await money(server, b)], [["10", "0"], ["10", "0"]]);
    }
    const id = await offer();
    await world.accept(b, id);
    const refused = await cancel({ key: a.key }, id);
    assertRefused(refused, 409, "CHANNEL_NOT_OPEN");
    assert.equal(refused.error.details.status, "open");
    assert.deepEqual([await money(server, a), await money(server, b)], [["6", "4"], ["9", "1"]]);
  });

  test("R92 R167 R171: what nobody has accepted within an hour is given back", async () => {
    const { server } = world;
    const [a, b] = [await signingAgent(server, { credit: "10" }), await signingAgent(server, { credit: "10" })];
    const { id } = (await world.open(a, { counterparty_agent_id: b.id, deposit: "4", counterparty_deposit: "1" })).data;
    const side = await new Pair(server, id, a, b).joinAs(world.connections, a);
    await world.advance(HOUR_MS - 60_000);
    await sleep(1_500);
    assert.equal((await world.show({ key: a.key }, id)).data.status, "pending");
    await world.advance(60_000);
    await until("it has expired", async () => (await world.show({ key: a.key }, id)).data.status === "expired");
    assert.deepEqual(await money(server, a), ["10", "0"]);
    await until("channel_closed", () => side.of("channel_closed").length === 1);
    assert.deepEqual([side.of("channel_closed")[0].status, side.of("channel_closed")[0].balance_a], ["expired", "4"]);
    assertRefused(await world.accept(b, id), 409, "CHANNEL_NOT_OPEN");
    assert.deepEqual(await money(server, b), ["10", "0"]);
    // A session that has expired sees nothing any more, and acts for nobody.
    const { token } = await server.ok("POST", "/api/v1/auth/authenticate", { key: a.key });
    assert.equal((await world.show({ token }, id)).status, 200);
    await world.advance(25 * HOUR_MS);
    assertRefused(await world.show({ token }, id), 401, "UNAUTHORIZED");
    assertRefused(await server.request("GET", "/api/v1/ledger/balance", { token }), 401, "UNAUTHORIZED");
  });
});

onNode("transfers", ["drills.enabled=true"], (world) => {
  test("R94 R95 R96: a transfer is proposed to the other side alone, executed by its signature, and told to both", async () => {
    const pair = await openChannel(world.server);
    const [one, other] = await pair.join(world.connections);
    const { propose, ack } = await pair.transfer(pair.a, "2.5");
    assert.equal((await one.ask("propose_transfer", propose)).nonce, 1);
    await until("transfer_proposed", () => other.of("transfer_proposed").length === 1);
    const told = other.of("transfer_proposed")[0];
    assert.deepEqual([told.nonce, told.amount, told.from, told.to, told.balance_a, told.balance_b, told.signature], [1, "2.5", pair.a.id, pair.b.id, "7.5", "12.5", propose.signature]);
    assert.equal((await pair.show()).pending.nonce, 1);
    assert.deepEqual(await other.ask("acknowledge_transfer", ack), { nonce: 1, balance_a: "7.5", balance_b: "12.5" });
    for (const side of [one, other]) {
      await until("transfer_complete", () => side.of("transfer_complete").length === 1);
      const { nonce, amount, from, to, balance_a, balance_b } = side.of("transfer_complete")[0];
      assert.deepEqual([nonce, amount, from, to, balance_a, balance_b], [1, "2.5", pair.a.id, pair.b.id, "7.5", "12.5"]);
    }
    assert.deepEqual(one.names(), ["transfer_complete"], "what was proposed is not echoed");
    assert.deepEqual([await money(world.server, pair.a), await money(world.server, pair.b)], [["90", "7.5"], ["90", "12.5"]]);
    const { last_co_signed: last } = await pair.show();
    assert.deepEqual([last.propose_signature, last.ack_signature], [propose.signature, ack.signature]);
    // The answer was lost, so it is asked again: nothing moves.
    assert.deepEqual(await other.ask("acknowledge_transfer", ack), { nonce: 1, balance_a: "7.5", balance_b: "12.5", duplicate: true });
    await pair.pay([one, other], pair.b, "12.5");
    assert.deepEqual(state(await pair.show()), ["open", 2, "20", "0"]);
    assert.deepEqual(await world.server.ok("GET", "/api/v1/ledger/balance", { key: pair.b.key }), { available: "90", escrow: "0", total: "90", currency: "USD" });
  });

  test("R94 R95: a nonce that is not the next, nothing, more than there is, or a second one at a time moves nothing", async () => {
    const pair = await openChannel(world.server);
    const [one, other] = await pair.join(world.connections);
    const at = { a: "10", b: "10" };
    for (const nonce of [0, 2, 9_007_199_254_740_991]) {
      const { propose } = pair.signed(pair.a, "1", { ...at, nonce });
      assert.deepEqual((await one.ask("propose_transfer", propose)).refused, { reason: "invalid_nonce", expected: 1 });
    }
    const good = pair.signed(pair.a, "1", { ...at, nonce: 1 });
    const refusal = async (change) => (await one.ask("propose_transfer", { ...good.propose, ...change })).refused;
    assert.equal((await refusal({ amount: "0" })).reason, "invalid_amount");
    for (const amount of ["-1", "1e0", "x", null, 0.0000001]) assert.equal((await refusal({ amount })).reason, "invalid_amount", `${amount}`);
    assert.deepEqual(await refusal({ amount: "10.000001" }), { reason: "insufficient_balance", available: "10" });
    for (const nonce of ["1", 1.5, -1, null, undefined]) assert.equal((await refusal({ nonce })).reason, "invalid_payload", `${nonce}`);
    assert.equal((await one.ask("propose_transfer", good.propose)).nonce, 1);
    assert.deepEqual((await one.ask("propose_transfer", good.propose)).refused, { reason: "transfer_pending", nonce: 1 });
    assert.equal((await other.ask("propose_transfer", pair.signed(pair.b, "1", { ...at, nonce: 2 }).propose)).refused.reason, "transfer_pending");
    await other.ask("acknowledge_transfer", good.ack);
    assert.deepEqual((await one.ask("propose_transfer", good.propose)).refused, { reason: "invalid_nonce", expected: 2 }, "not even the same again");
    assert.deepEqual(state(await pair.show()), ["open", 1, "9", "11"]);
  });

  test("R83 R96 R137 R167: only the counterparty acknowledges, the same transfer, with a signature of its own over it", async () => {
    const pair = await openChannel(world.server);
    const elsewhere = await openChannel(world.server);
    const [one, other] = await pair.join(world.connections);
    const at = { a: "10", b: "10", nonce: 1 };
    const { propose, ack, text } = pair.signed(pair.a, "2", at);
    const foreign = new Pair(world.server, elsewhere.id, pair.a, pair.b).signed(pair.a, "2", at);
    const wrongly = { ...text, a: "9", b: "11" };
    const zeros = Buffer.alloc(64).toString("base64");
    for (const [what, signature] of Object.entries({
      "of another channel": foreign.propose.signature,
      "of another purpose": pair.a.signer.sign(statements.ack(text)),
      "of other balances": pair.a.signer.sign(statements.propose(wrongly)),
      "the other side's": pair.b.signer.sign(statements.propose(text)),
      "a stranger's": new Signer().sign(statements.propose(text)),
      "none": "", "zeros": zeros, "cut": propose.signature.slice(4),
    })) {
      assert.equal((await one.ask("propose_transfer", { ...propose, signature })).refused?.reason, "invalid_signature", what);
    }
    assert.equal((await other.ask("acknowledge_transfer", ack)).refused.reason, "no_transfer_pending");
    const hex = pair.a.signer.sign(statements.propose(text), "hex");
    assert.equal((await one.ask("propose_transfer", { ...propose, signature: hex })).nonce, 1, "hex is as good as base64");
    assert.equal((await one.ask("acknowledge_transfer", ack)).refused.reason, "unauthorized", "the proposer's own");
    assert.deepEqual((await other.ask("acknowledge_transfer", { ...ack, amount: "2.1" })).refused, { reason: "amount_mismatch", expected: "2" });
    assert.deepEqual((await other.ask("acknowledge_transfer", { ...ack, nonce: 2 })).refused, { reason: "invalid_nonce", expected: 1 });
    for (const signature of [propose.signature, foreign.ack.signature, pair.b.signer.sign(statements.ack(wrongly)), zeros]) {
      assert.equal((await other.ask("acknowledge_transfer", { ...ack, signature })).refused?.reason, "invalid_signature");
    }
    assert.deepEqual(state(await pair.show()), ["open", 0, "10", "10"]);
    assert.equal((await other.ask("acknowledge_transfer", ack)).balance_b, "12");
    // Replayed where it was not made.
    const there = await elsewhere.join(world.connections);
    assert.equal((await there[0].ask("propose_transfer", propose)).refused.reason, "invalid_signature");
    const stranger = await signingAgent(world.server);
    const socket = await world.connections.socket(world.server, "/socket", stranger.key);
    assert.deepEqual(await push(await joined(socket, "agents:discovery"), "propose_transfer", propose), { status: "error", response: { reason: "unknown_event" } });
    assert.deepEqual((await one.ask("no_such_event", {})).refused, { reason: "unknown_event" });
  });

  const joined = async (socket, topic) => {
    const channel = socket.channel(topic, {});
    await join(channel);
    return channel;
  };

  test("R97: a transfer that is rejected or taken back is never executed, and its nonce is used up", async () => {
    const pair = await openChannel(world.server);
    const [one, other] = await pair.join(world.connections);
    for (const [n, who] of [other, one].entries()) {
      const { propose, ack } = await pair.transfer(pair.a, "2");
      await one.ask("propose_transfer", propose);
      assert.deepEqual(await who.ask("reject_transfer", { reason: "not now" }), { nonce: n + 1 });
      for (const side of [one, other]) {
        await until("transfer_rejected", () => side.of("transfer_rejected").length === n + 1);
        const { nonce, reason, agent_id } = side.of("transfer_rejected")[n];
        assert.deepEqual([nonce, reason, agent_id], [n + 1, "not now", who.who.id]);
      }
      assert.deepEqual((await other.ask("acknowledge_transfer", ack)).refused, { reason: "invalid_nonce", expected: n + 2 });
      assert.deepEqual((await one.ask("propose_transfer", propose)).refused, { reason: "invalid_nonce", expected: n + 2 });
    }
    assert.equal((await one.ask("reject_transfer", {})).refused.reason, "no_transfer_pending");
    assert.deepEqual(state(await pair.show()), ["open", 2, "10", "10"]);
    assert.equal((await pair.pay([one, other], pair.a, "2")).nonce, 3);
  });

  test("R95 R171: a proposal lapses after five minutes, and its nonce with it", async () => {
    const pair = await openChannel(world.server);
    const [one, other] = await pair.join(world.connections);
    const { propose, ack } = await pair.transfer(pair.a, "2");
    await one.ask("propose_transfer", propose);
    await world.advance(300_000 - 60_000);
    await sleep(1_500);
    assert.equal((await pair.show()).pending?.nonce, 1, "not before");
    await world.advance(60_000);
    await until("it has lapsed", () => one.of("transfer_rejected").length === 1 && other.of("transfer_rejected").length === 1);
    assert.deepEqual([one.of("transfer_rejected")[0].reason, one.of("transfer_rejected")[0].agent_id], ["lapsed", null]);
    assert.deepEqual((await other.ask("acknowledge_transfer", ack)).refused, { reason: "invalid_nonce", expected: 2 });
    assert.deepEqual(state(await pair.show()), ["open", 1, "10", "10"]);
  });

  test("R21 R96: a key that was replaced since still signs in a channel that was opened with it, and the new one does not", async () => {
    const pair = await openChannel(world.server);
    const [one, other] = await pair.join(world.connections);
    const fresh = new Signer();
    const change = ["muster-sig-v1", "agent.public_key", pair.a.id, Buffer.from(fresh.publicKey, "base64").toString("hex")].join("\n");
    await world.server.ok("PUT", `/api/v1/agents/${pair.a.id}/public_key`, { key: pair.a.key, body: { public_key: fresh.publicKey, signature: pair.a.signer.sign(change) } });
    const { propose, text } = await pair.transfer(pair.a, "1");
    assert.equal((await one.ask("propose_transfer", { ...propose, signature: fresh.sign(statements.propose(text)) })).refused.reason, "invalid_signature");
    assert.equal((await pair.pay([one, other], pair.a, "1")).balance_a, "9");
  });

  test("R98 R99 R167: a dispute stops everything until the operator resolves it", async () => {
    const { server } = world;
    const pair = await openChannel(server);
    const [one, other] = await pair.join(world.connections);
    await pair.pay([one, other], pair.a, "2.5");
    const { propose, ack } = await pair.transfer(pair.a, "1");
    await one.ask("propose_transfer", propose);
    assert.equal((await other.ask("dispute", {})).refused.reason, "invalid_payload", "it needs a reason");
    for (const reason of ["", "x".repeat(5_001)]) assert.equal((await other.ask("dispute", { reason })).refused.reason, "invalid_payload");
    assert.equal((await other.ask("dispute", { reason: "x", evidence: "x".repeat(20_000) })).refused.reason, "invalid_payload");
    assertRefused(await world.resolve(pair.id, {}), 409, "CHANNEL_NOT_OPEN");
    const evidence = { log: ["é", 12345678901234567890] };
    assert.deepEqual(await other.ask("dispute", { reason: "it did not work", evidence }), { status: "disputed" });
    for (const side of [one, other]) {
      await until("dispute_opened", () => side.of("dispute_opened").length === 1);
      const { agent_id, reason, nonce, balance_a, balance_b } = side.of("dispute_opened")[0];
      assert.deepEqual([agent_id, reason, nonce, balance_a, balance_b], [pair.b.id, "it did not work", 2, "7.5", "12.5"]);
    }
    const closing = pair.closing("7.5", "12.5", 2);
    for (const side of [one, other]) {
      for (const [event, payload] of [["propose_transfer", propose], ["acknowledge_transfer", ack], ["reject_transfer", {}], ["dispute", { reason: "again" }], ["close", closing]]) {
        assert.deepEqual((await side.ask(event, payload)).refused, { reason: "channel_disputed" }, event);
      }
    }
    const disputed = await server.ok("GET", "/api/v1/admin/payment-channels", world.operator);
    assert.deepEqual(disputed.map(({ id, dispute }) => [id, dispute.reason, dispute.agent_id]), [[pair.id, "it did not work", pair.b.id]], "the operator sees which");
    for (const as of [{ key: pair.a.key }, { token: (await server.user()).token }]) assertRefused(await server.request("GET", "/api/v1/admin/payment-channels", as), 403, "FORBIDDEN");
    for (const as of [{ key: pair.a.key }, { token: (await server.user()).token }]) assertRefused(await world.resolve(pair.id, {}, as), 403, "FORBIDDEN");
    assertRefused(await world.resolve(UNKNOWN_ID, {}), 404, "NOT_FOUND");
    assertRefused(await world.resolve(pair.id, { balance_a: "1", balance_b: "1" }), 422, "INVALID_AMOUNT");
    const resolved = await world.resolve(pair.id, {});
    assert.deepEqual(state(resolved.data), ["closed", 2, "7.5", "12.5"], "as both signed last");
    for (const side of [one, other]) await until("channel_closed", () => side.of("channel_closed")[0]?.resolved === true);
    assert.deepEqual([await money(server, pair.a), await money(server, pair.b)], [["97.5", "0"], ["102.5", "0"]]);
    assertRefused(await world.resolve(pair.id, {}), 409, "CHANNEL_NOT_OPEN");

    const split = await openChannel(server);
    await (await split.joinAs(world.connections, split.a)).ask("dispute", { reason: "why" });
    assert.deepEqual(state((await world.resolve(split.id, { balance_a: "19.5" })).data), ["closed", 0, "19.5", "0.5"]);
    assert.deepEqual([await money(server, split.a), await money(server, split.b)], [["109.5", "0"], ["90.5", "0"]]);
  });

  test("R100 R167: closing takes both signatures over the same bytes, the whole total, and nothing pending", async () => {
    const { server } = world;
    const pair = await openChannel(server);
    const [one, other] = await pair.join(world.connections);
    await pair.pay([one, other], pair.a, "2.5");
    const [a, b] = [pair.a.signer, pair.b.signer];
    for (const signers of [[a, a], [b, b], [b, a], [a, new Signer()]]) {
      assert.equal((await one.ask("close", pair.closing("7.5", "12.5", 1, signers))).refused.reason, "invalid_signature");
    }
    assert.equal((await one.ask("close", { ...pair.closing("7.5", "12.5", 1), signature_b: undefined })).refused.reason, "invalid_payload", "none closes it alone");
    assert.equal((await one.ask("close", pair.closing("10", "10", 0))).refused.reason, "invalid_signature", "of the state before");
    assert.deepEqual((await one.ask("close", pair.closing("7.5", "12.6", 1))).refused, { reason: "amount_mismatch", expected: "20" });
    const { propose } = await pair.transfer(pair.b, "1");
    await other.ask("propose_transfer", propose);
    assert.equal((await one.ask("close", pair.closing("7.5", "12.5", 1))).refused.reason, "transfer_pending");
    await one.ask("reject_transfer", {});
    assert.deepEqual(await other.ask("close", pair.closing("8", "12", 2)), { status: "closed", balance_a: "8", balance_b: "12" });
    for (const side of [one, other]) await until("channel_closed", () => side.of("channel_closed").length === 1);
    assert.deepEqual([await money(server, pair.a), await money(server, pair.b)], [["98", "0"], ["102", "0"]]);
    assert.deepEqual((await other.ask("close", pair.closing("8", "12", 2))).refused, { reason: "channel_not_open", status: "closed" });
    assert.deepEqual((await one.ask("propose_transfer", propose)).refused, { reason: "channel_not_open", status: "closed" });
    assert.deepEqual((await pair.show()).closing.signature_a, pair.closing("8", "12", 2).signature_a);
  });
});

onNode("limits of signed events", [`limits.joins_per_agent=${rate(4, 1, 600_000)}`], (world) => {
  test("R60 C3: signed events have the same bucket as joins of the agent on the main socket", async () => {
    const pair = await openChannel(world.server);
    const [one, other] = await pair.join(world.connections);
    const { propose } = await pair.transfer(pair.a, "1");
    const wrong = { ...propose, nonce: 9 };
    for (const _ of range(1, 3)) assert.equal((await one.ask("propose_transfer", wrong)).refused.reason, "invalid_nonce");
    const { refused } = await one.ask("propose_transfer", propose);
    assert.equal(refused.reason, "rate_limited");
    assert.ok(refused.retry_after_ms > 0);
    assert.equal((await pair.show()).pending, null);
    assert.equal((await other.ask("reject_transfer", {})).refused.reason, "no_transfer_pending", "each agent has its own");
  });
});

describe("kill -9", () => {
  test("R98 R166: what was acknowledged before a node is killed is in the ledger once, and the channel goes on", async () => {
    const server = await Server.start({ set: ROOMY });
    const connections = new Connections();
    try {
      const pairs = [await openChannel(server, { deposit: "100", credit: "1000" }), await openChannel(server, { deposit: "100", credit: "1000" })];
      const acked = new Map(pairs.map((pair) => [pair, 0]));
      let stop = false;
      const paying = pairs.map(async (pair) => {
        const sides = await pair.join(connections);
        for (let n = 1; !stop; n++) {
          const from = n % 3 === 0 ? pair.b : pair.a;
          const [a, b] = [100 - balanceOf(n - 1), 100 + balanceOf(n - 1)];
          const { propose, ack } = pair.signed(from, "1", { a: String(a), b: String(b), nonce: n });
          const [payer, payee] = from === pair.a ? sides : [sides[1], sides[0]];
          // Both at once: the acknowledgement may be on its way while the node is killed.
          const proposed = payer.ask("propose_transfer", propose);
          if ((await Promise.race([proposed, gone(() => stop)])) === null) return;
          const answer = await Promise.race([payee.ask("acknowledge_transfer", ack), gone(() => stop)]);
          if (answer?.nonce === n) acked.set(pair, n);
        }
      });
      await until("some transfers", () => [...acked.values()].every((n) => n >= 20));
      await server.kill();
      stop = true;
      await Promise.all(paying);
      await connections.close();
      await server.startAgain();
      await assertSound(server);
      for (const pair of pairs) {
        const shown = await pair.show();
        assert.ok([0, 1].includes(shown.nonce - acked.get(pair)), `${shown.nonce} after ${acked.get(pair)} were acknowledged`);
        assert.deepEqual([shown.balance_a, shown.balance_b], [String(100 - balanceOf(shown.nonce)), String(100 + balanceOf(shown.nonce))]);
        assert.equal((await money(server, pair.a))[1], shown.balance_a);
        assert.equal((await money(server, pair.b))[1], shown.balance_b);
        const sides = await pair.join(connections);
        if (shown.pending) await sides[0].ask("reject_transfer", {});
        assert.equal((await pair.pay(sides, pair.a, "1")).refused, undefined);
      }
      await assertSound(server);
    } finally {
      await connections.close();
      await server.end();
    }
  });

  /** What A has paid in all after so many transfers of 1, of which each third goes back. */
  const balanceOf = (n) => range(1, n).reduce((sum, one) => sum + (one % 3 === 0 ? -1 : 1), 0);
  const gone = async (check) => {
    await until("the node is gone", check);
    return null;
  };
});

onNode("few channels", ["limits.payment_channels_per_agent_max=2"], (world) => {
  test("R92 R169: an agent has so many channels open that it opened, and those that others open do not count", async () => {
    const { server } = world;
    const [a, b] = [await signingAgent(server, { credit: "10" }), await signingAgent(server, { credit: "10" })];
    const open = (from, to) => world.open(from, { counterparty_agent_id: to.id, deposit: "1" });
    const [first, second] = [await open(a, b), await open(a, b)];
    assert.deepEqual([first.status, second.status], [201, 201]);
    assertRefused(await open(a, b), 409, "LIMIT_REACHED");
    assert.deepEqual(await money(server, a), ["8", "2"], "nothing is held for what is refused");
    assert.equal((await open(b, a)).status, 201);
    await world.accept(b, first.data.id);
    assertRefused(await open(a, b), 409, "LIMIT_REACHED");
    const pair = new Pair(server, first.data.id, a, b);
    const [side] = await pair.join(world.connections);
    const closed = await side.ask("close", pair.closing("1", "0", 0));
    assert.equal(closed.refused, undefined, JSON.stringify(closed));
    // What is over makes room, for one.
    const many = await Promise.all(range(1, 4).map(() => open(a, b)));
    assert.deepEqual(many.map(({ status }) => status).toSorted(), [201, 409, 409, 409]);
  });
});
