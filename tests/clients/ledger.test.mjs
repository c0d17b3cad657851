// The ledger and escrow: what the operator credits, what users move, what hirings hold, and what everybody has.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { assertSound, credit, money, openChannel, Pair, signingAgent } from "./lib/money.mjs";
import { Server, until } from "./lib/server.mjs";
import { Connections, range, ROOMY } from "./lib/streams.mjs";

const UNKNOWN_ID = "01a00000-0000-7000-8000-000000000000";

/** A node of its own for some tests. */
function onNode(title, set, define) {
  describe(title, () => {
    const world = { connections: new Connections() };
    before(async () => {
      world.server = await Server.start({ set: [...ROOMY, ...set] });
      world.operator = { token: world.server.adminToken };
      world.as = (who) => (who?.token ? { token: who.token, agent: who.agent } : { key: who?.key });
      world.ask = (method, path, who, body, headers) => world.server.request(method, `/api/v1${path}`, { ...world.as(who), body, headers });
      world.ok = (method, path, who, body) => world.server.ok(method, `/api/v1${path}`, { ...world.as(who), body });
      world.hire = (who, agent, more = {}) => world.ask("POST", `/agents/${agent.id}/hire`, who, { input: {}, queue: true, ...more });
      world.payments = (who, task) => world.ok("GET", `/tasks/${task.id}/payments`, who);
      /** A client with money and its owner, and a provider who is paid `price`. */
      world.company = async ({ price = "3", has = "10" } = {}) => {
        const owner = await world.server.user("Owner");
        const client = await world.server.agent({ owner, name: "Client" });
        const provider = await world.server.agent({ name: "Provider", price });
        if (has) await credit(world.server, client, has);
        return { owner, client, provider, stranger: await world.server.agent({ name: "Stranger" }) };
      };
    });
    after(async () => {
      await world.connections.close();
      if (world.server) await assertSound(world.server);
      await world.server?.end();
    });
    define(world);
  });
}

function assertRefused(answer, status, code) {
  assert.deepEqual([answer.status, answer.error?.code, answer.data], [status, code, null], answer.text);
}

onNode("the ledger", [], (world) => {
  test("R142 R167: the operator credits and debits, under a reference once, and nobody else does", async () => {
    const { server, operator } = world;
    const { client, owner, stranger } = await world.company({ has: null });
    const adjust = (way, body, who = operator, headers) => world.ask("POST", `/admin/ledger/${way}`, who, body, headers);
    const first = await adjust("credit", { agent_id: client.id, amount: "10.50", reference: "invoice 1" });
    assert.equal(first.status, 201, first.text);
    assert.deepEqual([first.data.transaction.kind, first.data.transaction.amount, first.data.transaction.reference], ["credit", "10.5", "invoice 1"]);
    assert.deepEqual(first.data.balance, { available: "10.5", escrow: "0", total: "10.5", currency: "USD" });
    const again = await adjust("credit", { agent_id: client.id, amount: "10.5", reference: "invoice 1" });
    assert.deepEqual([again.status, again.data.duplicate, again.data.transaction], [200, true, first.data.transaction]);
    assertRefused(await adjust("credit", { agent_id: client.id, amount: "11", reference: "invoice 1" }), 409, "ALREADY_EXISTS");
    const keyed = () => adjust("credit", { user_id: owner.id, amount: 2 }, operator, { "x-idempotency-key": "k1" });
    const replayed = [await keyed(), await keyed()];
    assert.deepEqual(replayed.map(({ status, text }) => [status, text]), [0, 1].map(() => [201, replayed[0].text]), "the answer of the first");
    assert.equal(replayed[1].headers.get("idempotency-replayed"), "true");
    assert.equal((await adjust("debit", { agent_id: client.id, amount: "0.5", reference: "invoice 1" })).data.balance.available, "10", "the other way is another thing");
    assertRefused(await adjust("debit", { agent_id: client.id, amount: "10.000001" }), 422, "INSUFFICIENT_BALANCE");
    const both = range(1, 2).map(() => adjust("credit", { agent_id: client.id, amount: "1" }));
    assert.deepEqual((await Promise.all(both)).map(({ status }) => status), [201, 201], "without a reference each is its own");
    for (const amount of ["0", "-1", "1e3", "x", "0.0000001", true, 1e300]) assertRefused(await adjust("credit", { agent_id: client.id, amount }), 422, "INVALID_AMOUNT");
    for (const body of [{ amount: "1" }, { amount: "1", agent_id: client.id, user_id: owner.id }]) assertRefused(await adjust("credit", body), 422, "VALIDATION_ERROR");
    for (const reference of ["", "x".repeat(129), "a\nb"]) assertRefused(await adjust("credit", { agent_id: client.id, amount: "1", reference }), 422, "VALIDATION_ERROR");
    assertRefused(await adjust("credit", { agent_id: UNKNOWN_ID, amount: "1" }), 404, "NOT_FOUND");
    assertRefused(await adjust("credit", { user_id: UNKNOWN_ID, amount: "1" }), 404, "NOT_FOUND");
    assertRefused(await adjust("credit", { agent_id: client.id, amount: "9223372036854.775807" }), 409, "LIMIT_REACHED");
    for (const who of [client, owner, stranger, {}]) {
      const [status, code] = who.id ? [403, "FORBIDDEN"] : [401, "UNAUTHORIZED"];
      for (const way of ["credit", "debit"]) assertRefused(await adjust(way, { agent_id: client.id, amount: "1" }, who), status, code);
      assertRefused(await world.ask("GET", "/admin/ledger/audit", who), status, code);
    }
    assert.deepEqual([await money(server, client), await money(server, owner)], [["12", "0"], ["2", "0"]]);
  });

  test("R142 R167: an agent and a user see what they have, a user also of own agents, and nobody of others", async () => {
    const { server } = world;
    const { client, owner, provider, stranger } = await world.company({ has: "7" });
    const other = await server.user("Other");
    const seen = async (who, query = "") => (await world.ask("GET", `/ledger/balance${query}`, who)).data?.available;
    assert.equal(await seen(client), "7");
    assert.equal(await seen(stranger), "0", "one that never had an account");
    assert.equal(await seen(owner), "0", "the user's own is another");
    assert.equal(await seen({ token: owner.token, agent: client.id }), "7");
    assert.equal(await seen(owner, `?agent_id=${client.id}`), "7");
    for (const [who, of] of [[other, client], [owner, provider], [client, provider], [stranger, client], [owner, { id: UNKNOWN_ID }]]) {
      for (const path of ["balance", "transactions"]) assertRefused(await world.ask("GET", `/ledger/${path}?agent_id=${of.id}`, who), 403, "FORBIDDEN");
    }
    assertRefused(await world.ask("GET", "/ledger/balance"), 401, "UNAUTHORIZED");
    const suspended = await server.agent();
    await server.ok("PUT", `/api/v1/admin/agents/${suspended.id}/status`, { ...world.operator, body: { status: "suspended" } });
    assert.equal((await world.ask("GET", "/ledger/balance", suspended)).status, 403);
    await server.ok("POST", "/api/v1/auth/rotate-key", { key: client.key });
    assert.equal((await world.ask("GET", "/ledger/balance", client)).status, 401, "a key that was replaced");
  });

  test("R142 R167: users move money between themselves and agents of theirs, and nowhere else", async () => {
    const { server, operator } = world;
    const { client, owner, stranger } = await world.company({ has: null });
    const second = await server.agent({ owner, name: "Second" });
    await world.ok("POST", "/admin/ledger/credit", operator, { user_id: owner.id, amount: "10" });
    const move = (from, to, amount, who = owner, more = {}) => world.ask("POST", "/ledger/transfer", who, { from: from.id, to: to.id, amount, ...more });
    const moved = await move(owner, client, "6");
    assert.deepEqual([moved.status, moved.data.transaction.amount, moved.data.balance.available], [201, "-6", "4"], moved.text);
    assert.equal((await move(client, second, "2.25")).status, 201);
    assert.equal((await move(second, owner, "0.25")).status, 201);
    assert.deepEqual([await money(server, owner), await money(server, client), await money(server, second)], [["4.25", "0"], ["3.75", "0"], ["2", "0"]]);
    const first = await move(owner, client, "1", owner, { reference: "r" });
    const again = await move(owner, client, "1", owner, { reference: "r" });
    assert.deepEqual([again.status, again.data.duplicate, again.data.transaction.id], [200, true, first.data.transaction.id]);
    assertRefused(await move(owner, second, "1", owner, { reference: "r" }), 409, "ALREADY_EXISTS");
    assertRefused(await move(owner, client, "3.250001"), 422, "INSUFFICIENT_BALANCE");
    assertRefused(await move(client, client, "1"), 422, "VALIDATION_ERROR");
    assertRefused(await move(owner, client, "0"), 422, "INVALID_AMOUNT");
    for (const [from, to] of [[client, stranger], [stranger, owner], [owner, { id: UNKNOWN_ID }], [owner, { id: "x" }], [await server.user(), owner]]) {
      assertRefused(await move(from, to, "1"), 404, "NOT_FOUND");
    }
    assertRefused(await move(client, second, "1", client), 403, "FORBIDDEN");
    assertRefused(await move(client, second, "1", await server.user()), 404, "NOT_FOUND");
    const { token } = await server.ok("POST", `/api/v1/admin/users/${owner.id}/tokens`, { ...operator, body: { scopes: ["read"] } });
    assertRefused(await move(owner, client, "1", { token }), 403, "FORBIDDEN");
    assert.deepEqual([await money(server, owner), await money(server, client)], [["3.25", "0"], ["4.75", "0"]]);
  });

  test("R23 R142 R167: what a stopped agent has is moved by nobody but the operator", async () => {
    const { server, operator } = world;
    for (const stopped of ["banned", "suspended"]) {
      const { client, owner, provider } = await world.company({ has: "10" });
      const spare = await server.agent({ owner, name: "Spare" });
      const failed = (await world.hire(client, provider)).data;
      await world.ok("POST", `/hirings/${failed.hiring.id}/cancel`, client, {});
      const { api_key: second } = await server.ok("POST", `/api/v1/agents/${client.id}/credentials`, { key: client.key, body: {} });
      await server.ok("PUT", `/api/v1/admin/agents/${client.id}/status`, { ...operator, body: { status: stopped } });
      const task = { provider_agent_id: provider.id, capability: "code", price: "1" };
      const channel = { counterparty_agent_id: provider.id, deposit: "1" };
      const moves = (who) => [world.hire(who, provider), world.ask("POST", "/tasks", who, task), world.ask("POST", "/payment-channels", who, channel)];
      // By itself, with any of its keys; by its owner who acts as it.
      for (const who of [client, { key: second }, { token: owner.token, agent: client.id }]) {
        for (const move of moves(who)) assertRefused(await move, 403, "FORBIDDEN");
      }
      // By its owner, in its name.
      assertRefused(await world.hire(owner, provider, { client_agent_id: client.id }), 503, "AGENT_UNAVAILABLE");
      assertRefused(await world.ask("POST", `/hirings/${failed.hiring.id}/retry`, owner, { queue: true }), 503, "AGENT_UNAVAILABLE");
      for (const to of [owner, spare]) {
        assertRefused(await world.ask("POST", "/ledger/transfer", owner, { from: client.id, to: to.id, amount: "1" }), 503, "AGENT_UNAVAILABLE");
      }
      assert.equal((await world.ok("GET", `/ledger/balance?agent_id=${client.id}`, owner)).available, "10", "as it was");
      // What the owner has, may go there; and the operator can take it out.
      await world.ok("POST", "/admin/ledger/credit", operator, { user_id: owner.id, amount: "1" });
      assert.equal((await world.ask("POST", "/ledger/transfer", owner, { from: owner.id, to: client.id, amount: "1" })).status, 201);
      assert.equal((await world.ok("POST", "/admin/ledger/debit", operator, { agent_id: client.id, amount: "11" })).balance.available, "0");
    }
  });

  test("R142: movements are listed newest first, page by page, with what each did to the account", async () => {
    const { client, owner } = await world.company({ has: "10" });
    for (const n of range(1, 6)) await world.ok("POST", "/ledger/transfer", owner, { from: client.id, to: owner.id, amount: `0.${n}`, reference: `t${n}` });
    const list = async (query) => world.ask("GET", `/ledger/transactions${query}`, client);
    const all = await list("");
    assert.deepEqual(all.data.map(({ kind, amount }) => [kind, amount]).toSorted(), [["credit", "10"], ...range(1, 6).map((n) => ["transfer", `-0.${n}`])].toSorted());
    assert.deepEqual(all.data.map(({ at }) => at), all.data.map(({ at }) => at).toSorted().toReversed());
    const ids = [];
    for (let cursor = ""; ;) {
      const page = await list(`?limit=3${cursor}`);
      ids.push(...page.data.map(({ id }) => id));
      const { pagination } = page.body.meta;
      assert.equal(pagination.total_count, 7);
      if (!pagination.has_more) break;
      cursor = `&cursor=${pagination.cursor}`;
    }
    assert.deepEqual(ids, all.data.map(({ id }) => id));
    assert.equal((await world.ok("GET", `/ledger/transactions?agent_id=${client.id}`, owner)).length, 7);
  });
});

onNode("escrow", ["ledger.platform_fee_bps=500", "ledger.currency=EUR"], (world) => {
  test("R141: a hiring holds its price with the task, and completion pays the provider less the fee", async () => {
    const { server } = world;
    const { client, provider } = await world.company({ price: "3" });
    const { hiring, task } = (await world.hire(client, provider)).data;
    assert.deepEqual([task.price, task.escrow, hiring.status], ["3", "held", "queued"]);
    assert.deepEqual([await money(server, client), await money(server, provider)], [["7", "3"], ["0", "0"]]);
    await server.emit(task, provider, "x");
    const done = await world.ok("PUT", `/tasks/${task.id}/complete`, provider, { output: 1 });
    assert.equal(done.escrow, "released");
    assert.deepEqual([await money(server, client), await money(server, provider)], [["7", "0"], ["2.85", "0"]]);
    const payments = await world.payments(provider, task);
    assert.deepEqual(payments.map(({ kind, amount, fee, from_agent_id, to_agent_id }) => [kind, amount, fee, from_agent_id, to_agent_id]), [
      ["escrow_release", "3", "0.15", null, provider.id],
      ["escrow_hold", "3", "0", client.id, null],
    ]);
    assert.equal((await world.ok("GET", "/ledger/balance", client)).currency, "EUR");
    assert.equal((await world.ok("GET", "/ledger/transactions", client))[0].reference, task.id);
  });

  test("R142 R167: the operator sees what the platform has earned, and takes it out once; nobody else does", async () => {
    const { server, operator } = world;
    const { client, owner, provider } = await world.company({ price: "4" });
    const { task } = (await world.hire(client, provider)).data;
    const before = await world.ok("GET", "/admin/ledger", operator);
    await world.ok("PUT", `/tasks/${task.id}/complete`, provider, {});
    const totals = await world.ok("GET", "/admin/ledger", operator);
    const [earlier, fees] = [Number(before.fees), Number(totals.fees)];
    assert.ok(Math.abs(fees - earlier - 0.2) < 1e-9, `${earlier} ${fees}`);
    assert.deepEqual([totals.sum, totals.currency, totals.external], ["0", "EUR", before.external]);
    const withdraw = (body, who = operator, headers) => world.ask("POST", "/admin/ledger/fees/withdraw", who, body, headers);
    const first = await withdraw({ amount: "0.15", reference: "payout 1" });
    assert.deepEqual([first.status, first.data.duplicate, first.data.transaction.kind, first.data.transaction.amount], [201, false, "debit", "-0.15"], first.text);
    const again = await withdraw({ amount: "0.15", reference: "payout 1" });
    assert.deepEqual([again.status, again.data.duplicate, again.data.transaction], [200, true, first.data.transaction]);
    assertRefused(await withdraw({ amount: "0.1", reference: "payout 1" }), 409, "ALREADY_EXISTS");
    const keyed = () => withdraw({ amount: "0.000001" }, operator, { "x-idempotency-key": "fees" });
    const [one, other] = [await keyed(), await keyed()];
    assert.deepEqual([one.status, other.text, other.headers.get("idempotency-replayed")], [201, one.text, "true"]);
    const left = await world.ok("GET", "/admin/ledger", operator);
    assert.ok(Math.abs(Number(left.fees) - fees + 0.150001) < 1e-9, left.fees);
    assert.ok(Math.abs(Number(left.external) - Number(totals.external) - 0.150001) < 1e-9, left.external);
    const over = await withdraw({ amount: String(Number(left.fees) + 1) });
    assertRefused(over, 422, "INSUFFICIENT_BALANCE");
    assert.equal(over.error.details.available, left.fees);
    for (const amount of ["0", "-1", "x"]) assertRefused(await withdraw({ amount }), 422, "INVALID_AMOUNT");
    assertRefused(await withdraw({}), 422, "VALIDATION_ERROR");
    const { api_key: session } = await server.ok("POST", `/api/v1/agents/${client.id}/credentials`, { key: client.key, body: {} });
    await server.ok("POST", "/api/v1/auth/rotate-key", { key: session });
    for (const who of [client, owner, provider, { key: session }, { token: "op_another" }, {}]) {
      const [status, code] = who.id ? [403, "FORBIDDEN"] : [401, "UNAUTHORIZED"];
      assertRefused(await withdraw({ amount: "0.01", reference: "payout 1" }, who), status, code);
      assertRefused(await world.ask("GET", "/admin/ledger", who), status, code);
    }
    assert.deepEqual(await world.ok("GET", "/admin/ledger", operator), left, "and nothing has moved");
  });

  test("R141: failure and withdrawal give the price back whole, also of a plain task with a price", async () => {
    const { server } = world;
    const { client, provider } = await world.company({ price: "3" });
    const failed = (await world.hire(client, provider)).data;
    await world.ok("POST", `/hirings/${failed.hiring.id}/failure`, provider, { reason: "other" });
    const cancelled = (await world.hire(client, provider, { price: "4.5" })).data;
    assert.deepEqual([cancelled.task.price, await money(server, client)], ["4.5", ["5.5", "4.5"]]);
    await world.ok("POST", `/hirings/${cancelled.hiring.id}/cancel`, client, {});
    const plain = await world.ok("POST", "/tasks", client, { provider_agent_id: provider.id, capability: "code", price: "1" });
    assert.deepEqual([plain.escrow, await money(server, client)], ["held", ["9", "1"]]);
    await world.ok("PUT", `/tasks/${plain.id}/fail`, provider, {});
    const free = await world.ok("POST", "/tasks", client, { provider_agent_id: provider.id, capability: "code" });
    assert.deepEqual([free.price, free.escrow], [null, "none"]);
    for (const { id } of [failed.task, cancelled.task, plain]) assert.equal((await world.ok("GET", `/tasks/${id}`, client)).escrow, "refunded");
    assert.deepEqual([await money(server, client), await money(server, provider)], [["10", "0"], ["0", "0"]]);
  });

  test("R141 R79: of a completion and a withdrawal at once one happens, and the money moves once", async () => {
    const { server } = world;
    for (const _ of range(1, 8)) {
      const { client, provider } = await world.company({ price: "2" });
      const { task } = (await world.hire(client, provider)).data;
      const ends = await Promise.all([
        ...range(1, 3).map(() => world.ask("PUT", `/tasks/${task.id}/complete`, provider, {})),
        ...range(1, 3).map(() => world.ask("POST", `/tasks/${task.id}/cancel`, client, {})),
      ]);
      assert.equal(ends.filter(({ status }) => status === 200).length, 1);
      const { status, escrow } = await world.ok("GET", `/tasks/${task.id}`, client);
      const [has, earned] = status === "completed" ? [["8", "0"], ["1.9", "0"]] : [["10", "0"], ["0", "0"]];
      assert.deepEqual([escrow, await money(server, client), await money(server, provider)], [status === "completed" ? "released" : "refunded", has, earned]);
      assert.equal((await world.payments(client, task)).length, 2);
    }
  });

  test("R141: too little, or a price above the bound, hires nobody and holds nothing", async () => {
    const { server } = world;
    const { client, provider } = await world.company({ price: "3", has: "5" });
    assertRefused(await world.hire(client, provider, { price: "5.000001" }), 422, "INSUFFICIENT_BALANCE");
    const over = await world.hire(client, provider, { max_price: "2.99" });
    assertRefused(over, 422, "INVALID_AMOUNT");
    assert.deepEqual([over.error.field, over.error.details.max, over.error.details.price], ["price", "2.99", "3"]);
    assert.deepEqual(await world.ok("GET", "/hirings", client), []);
    assert.deepEqual(await world.ok("GET", "/tasks", client), []);
    assert.equal((await world.hire(client, provider, { max_price: "3" })).status, 201);
    const many = await Promise.all(range(1, 6).map(() => world.hire(client, provider, { price: "1" })));
    assert.equal(many.filter(({ status }) => status === 201).length, 2, "as many as can be paid");
    assert.deepEqual(await money(server, client), ["0", "5"]);
  });

  test("R141: another provider takes the hold over, and a retry holds anew", async () => {
    const { server } = world;
    const { client, provider, stranger } = await world.company({ price: "3" });
    const { hiring, task } = (await world.hire(client, provider)).data;
    const moved = await world.ok("POST", `/tasks/${task.id}/reassign`, client, { provider_agent_id: stranger.id });
    assert.deepEqual([moved.escrow, await money(server, client)], ["held", ["7", "3"]]);
    await world.ok("PUT", `/tasks/${task.id}/fail`, stranger, {});
    assert.deepEqual(await money(server, client), ["10", "0"]);
    const again = await world.ok("POST", `/hirings/${hiring.id}/retry`, client, { queue: true });
    assert.deepEqual([again.task.price, again.task.escrow, await money(server, client)], ["3", "held", ["7", "3"]]);
    await world.ok("PUT", `/tasks/${again.task.id}/complete`, stranger, {});
    assert.deepEqual([await money(server, stranger), await money(server, provider)], [["2.85", "0"], ["0", "0"]]);
  });

  test("R143: hiring an agent that is not there gives the price back at once", async () => {
    const { server } = world;
    const { client, provider } = await world.company({ price: "3" });
    const { hiring, task } = (await world.hire(client, provider, { queue: false })).data;
    assert.deepEqual([hiring.status, task.error.type, task.escrow], ["failed", "agent_unresponsive", "refunded"]);
    assert.deepEqual(await money(server, client), ["10", "0"]);
    assert.deepEqual((await world.payments(client, task)).map(({ kind }) => kind).toSorted(), ["escrow_hold", "escrow_refund"]);
    assertRefused(await world.hire(client, provider, { queue: false, price: "11" }), 422, "INSUFFICIENT_BALANCE");
  });

  test("R140 R141 R167: payments of a task are shown to its parties alone", async () => {
    const { client, owner, provider, stranger } = await world.company();
    const { task } = (await world.hire(client, provider)).data;
    for (const who of [client, owner, provider]) assert.equal((await world.payments(who, task)).length, 1);
    for (const who of [stranger, await world.server.user()]) assertRefused(await world.ask("GET", `/tasks/${task.id}/payments`, who), 404, "NOT_FOUND");
    assertRefused(await world.ask("GET", `/tasks/${UNKNOWN_ID}/payments`, client), 404, "NOT_FOUND");
  });

  test("R141: a client that never had an account settles elsewhere; one that has, pays", async () => {
    const { client, provider } = await world.company({ has: null });
    const first = (await world.hire(client, provider)).data.task;
    assert.deepEqual([first.price, first.escrow], ["3", "none"]);
    await credit(world.server, client, "2");
    assertRefused(await world.hire(client, provider), 422, "INSUFFICIENT_BALANCE");
    await world.ok("PUT", `/tasks/${first.id}/complete`, provider, {});
    assert.deepEqual([await money(world.server, client), await money(world.server, provider)], [["2", "0"], ["0", "0"]], "nothing was held, nothing is paid");
  });
});

onNode("who pays here", ["ledger.platform_fee_bps=0"], (world) => {
  test("R141 R167: what others pay, and what strangers try, makes nobody one that pays here", async () => {
    const { server } = world;
    const { client, owner, provider, stranger } = await world.company({ price: "3" });
    const hiresFreely = async () => {
      const { task } = (await world.hire(provider, stranger, { price: "1" })).data;
      assert.deepEqual([task.price, task.escrow], ["1", "none"]);
    };
    await hiresFreely();
    // Paid for a task.
    const { task } = (await world.hire(client, provider)).data;
    await world.ok("PUT", `/tasks/${task.id}/complete`, provider, {});
    assert.deepEqual(await money(server, provider), ["3", "0"]);
    await hiresFreely();
    // Paid by a payment channel.
    const pair = await openChannel(server, { counter: "0" });
    await server.ok("POST", `/api/v1/admin/ledger/debit`, { token: server.adminToken, body: { agent_id: pair.b.id, amount: "100" } });
    const fresh = await signingAgent(server, { name: "Fresh" });
    const opened = await world.ok("POST", "/payment-channels", pair.a, { counterparty_agent_id: fresh.id, deposit: "2" });
    await world.ok("POST", `/payment-channels/${opened.id}/accept`, fresh, {});
    const paying = new Pair(server, opened.id, pair.a, fresh);
    const sides = await paying.join(world.connections);
    await paying.pay(sides, pair.a, "2");
    const closed = await sides[0].ask("close", paying.closing("0", "2", 1));
    assert.equal(closed.refused, undefined, JSON.stringify(closed));
    await until("it is paid out", async () => (await money(server, fresh))[0] === "2");
    const order = (await world.hire(fresh, stranger, { price: "1" })).data.task;
    assert.deepEqual([order.escrow, await money(server, fresh)], ["none", ["2", "0"]]);
    // Pushed upon it by a stranger, by another's owner, by itself.
    for (const who of [owner, await server.user("Other"), client, provider]) {
      const pushed = await world.ask("POST", "/ledger/transfer", who, { from: owner.id, to: provider.id, amount: "1" });
      assert.ok([403, 404].includes(pushed.status), pushed.text);
      assertRefused(await world.ask("POST", "/admin/ledger/credit", who, { agent_id: provider.id, amount: "1" }), 403, "FORBIDDEN");
    }
    await hiresFreely();
    // The operator makes it pay.
    await credit(server, provider, "1");
    assert.equal((await world.hire(provider, stranger, { price: "4" })).data.task.escrow, "held", "with all it has");
    assertRefused(await world.hire(provider, stranger, { price: "1" }), 422, "INSUFFICIENT_BALANCE");
  });

  test("R141: the owner makes an own agent pay here, by giving it money", async () => {
    const { server, operator } = world;
    const { client, owner, provider } = await world.company({ has: null });
    assert.equal((await world.hire(client, provider)).data.task.escrow, "none");
    await world.ok("POST", "/admin/ledger/credit", operator, { user_id: owner.id, amount: "3" });
    await world.ok("POST", "/ledger/transfer", owner, { from: owner.id, to: client.id, amount: "3" });
    assert.equal((await world.hire(client, provider)).data.task.escrow, "held");
    assertRefused(await world.hire(client, provider), 422, "INSUFFICIENT_BALANCE");
    assert.deepEqual(await money(server, client), ["0", "3"]);
  });
});

onNode("a ledger that everybody needs", ["ledger.required=true"], (world) => {
  test("R141: where the ledger is required, whoever has no account cannot hire for a price", async () => {
    const { client, provider } = await world.company({ has: null });
    assertRefused(await world.hire(client, provider), 422, "INSUFFICIENT_BALANCE");
    assert.equal((await world.hire(client, provider, { price: "0" })).data.task.escrow, "none", "for nothing it can");
    await credit(world.server, client, "3");
    assert.equal((await world.hire(client, provider)).data.task.escrow, "held");
  });
});

describe("kill -9", () => {
  test("R141 R142 R166: hirings and their ends are whole after a node was killed at any moment", async () => {
    const server = await Server.start({ set: ROOMY });
    try {
      const owner = await server.user();
      const client = await server.agent({ owner });
      const provider = await server.agent({ price: "1" });
      await credit(server, client, "100000");
      for (const round of range(1, 3)) {
        const [held, released] = [[], []];
        let stop = false;
        const working = range(1, 4).map(async () => {
          while (!stop) {
            const hired = await server.request("POST", `/api/v1/agents/${provider.id}/hire`, { key: client.key, body: { queue: true } }).catch(() => null);
            if (hired?.status !== 201) continue;
            held.push(hired.data.task.id);
            const done = await server.request("PUT", `/api/v1/tasks/${hired.data.task.id}/complete`, { key: provider.key, body: {} }).catch(() => null);
            if (done?.status === 200) released.push(hired.data.task.id);
          }
        });
        await until("some hirings", () => released.length >= 20);
        await server.kill();
        stop = true;
        await Promise.all(working);
        await server.startAgain();
        await assertSound(server);
        for (const id of released) assert.equal((await server.ok("GET", `/api/v1/tasks/${id}`, { key: client.key })).escrow, "released", `round ${round}`);
        for (const id of held) assert.notEqual((await server.ok("GET", `/api/v1/tasks/${id}`, { key: client.key })).escrow, "none");
      }
      // What the agents have is what the tasks say.
      const tasks = [];
      for (let cursor = ""; ;) {
        const page = await server.request("GET", `/api/v1/tasks?limit=100${cursor}`, { key: client.key });
        tasks.push(...page.data);
        if (!page.body.meta.pagination.has_more) break;
        cursor = `&cursor=${page.body.meta.pagination.cursor}`;
      }
      const count = (escrow) => tasks.filter((task) => task.escrow === escrow).length;
      assert.deepEqual(await money(server, client), [String(100_000 - count("held") - count("released")), String(count("held"))]);
      assert.equal((await money(server, provider))[0], String(count("released")));
    } finally {
      await server.end();
    }
  });
});
