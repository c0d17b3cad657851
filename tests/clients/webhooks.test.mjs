// Webhooks against a real receiver on loopback.

import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import http from "node:http";
import { after, afterEach, before, describe, test } from "node:test";
import { onCluster } from "./lib/cluster.mjs";
import { listen } from "./lib/events.mjs";
import { credit, openChannel } from "./lib/money.mjs";
import { collect, join } from "./lib/phoenix.mjs";
import { Server, sleep, until } from "./lib/server.mjs";
import { Connections, ROOMY } from "./lib/streams.mjs";

const LOOPBACK = 'webhooks.allow_private=["127.0.0.0/8"]';
const UNKNOWN_ID = "01a00000-0000-7000-8000-000000000000";

/** An HTTP server that notes what it is sent, and answers what it is told to. */
class Receiver {
  requests = [];
  answer = () => 200;
  atOnce = 0;
  mostAtOnce = 0;

  static async start() {
    const receiver = new Receiver();
    receiver.http = http.createServer(async (request, response) => {
      receiver.mostAtOnce = Math.max(receiver.mostAtOnce, (receiver.atOnce += 1));
      const parts = [];
      for await (const part of request) parts.push(part);
      const raw = Buffer.concat(parts);
      const got = { at: Date.now(), method: request.method, path: request.url, headers: request.headers, raw, body: JSON.parse(raw) };
      receiver.requests.push(got);
      const answer = await receiver.answer(got, receiver.requests.length);
      receiver.atOnce -= 1;
      if (typeof answer === "number") response.writeHead(answer).end();
      else if (answer) response.writeHead(answer.status, answer.headers).end(answer.body);
      else request.socket.destroy();
    });
    await new Promise((resolve) => receiver.http.listen(0, "127.0.0.1", resolve));
    receiver.port = receiver.http.address().port;
    receiver.url = `http://127.0.0.1:${receiver.port}/hook`;
    return receiver;
  }

  events = () => this.requests.map(({ body }) => body.event);

  /** Waits for an event, and gives its request. */
  next = (event, fits = () => true) => until(`${event} at the receiver, not ${this.events()}`, () => this.requests.find((one) => one.body.event === event && fits(one)));

  end() {
    this.http.closeAllConnections();
    return new Promise((resolve) => this.http.close(resolve));
  }
}

function verify(request, secret) {
  assert.equal(request.method, "POST");
  assert.equal(request.headers["content-type"], "application/json");
  assert.equal(request.headers["x-webhook-signature"], createHmac("sha256", secret).update(request.raw).digest("base64"));
  assert.equal(request.headers["x-webhook-id"], request.body.id);
  assert.equal(request.headers["x-webhook-event"], request.body.event);
  assert.match(request.headers["x-webhook-timestamp"], /^\d{10}$/);
}

function onNode(title, set, define) {
  describe(title, () => {
    const world = { connections: new Connections(), open: [] };
    before(async () => {
      world.server = await Server.start({ set: [...ROOMY, "drills.enabled=true", "webhooks.poll_ms=50", "webhooks.retry_base_ms=100", ...set] });
      world.as = (who) => (who.token ? { token: who.token, agent: who.agent } : { key: who.key });
      world.ask = (method, path, who, body) => world.server.request(method, `/api/v1${path}`, { ...world.as(who), body });
      world.ok = (method, path, who, body) => world.server.ok(method, `/api/v1${path}`, { ...world.as(who), body });
      world.receiver = async () => {
        const receiver = await Receiver.start();
        world.open.push(receiver);
        return receiver;
      };
    });
    afterEach(async () => {
      for (const receiver of world.open.splice(0)) await receiver.end();
    });
    after(async () => {
      await world.connections.close();
      await world.server?.end();
    });
    define(world);
  });
}

onNode("webhooks", [LOOPBACK, "ledger.platform_fee_bps=500", "limits.message_retry_ms=20"], (world) => {
  /** A receiver for each of these, by name: who, and what of. */
  world.hooks = async (of) => {
    const hooks = {};
    for (const [name, [who, events]] of Object.entries(of)) {
      hooks[name] = await world.receiver();
      await world.ok("POST", "/webhooks", who, { url: hooks[name].url, events });
    }
    return hooks;
  };
  /** Joins an agent's messages and acknowledges none. */
  world.silent = async (agent) => {
    const socket = await world.connections.socket(world.server, "/socket", agent.key, { heartbeatIntervalMs: 300 });
    const channel = socket.channel(`messages:${agent.id}`, {});
    const taken = collect(channel, "new_message");
    assert.equal((await join(channel)).status, "ok");
    return { channel, taken };
  };


  test("R144: a webhook is added under either names, shown under both, and its secret is shown once", async () => {
    const { server } = world;
    const agent = await server.agent();
    const answer = await world.ask("POST", "/webhooks", agent, { url: "http://127.0.0.1:49999/a", events: ["task.created", "task.failed"], secret: "a secret of mine" });
    assert.equal(answer.status, 201, answer.text);
    const { id, ...shown } = answer.data;
    assert.deepEqual(
      [shown.url, shown.callback_url, shown.events, shown.event_types, shown.secret, shown.status],
      ["http://127.0.0.1:49999/a", "http://127.0.0.1:49999/a", ["task.created", "task.failed"], ["task.created", "task.failed"], "a secret of mine", "active"],
    );
    const other = await world.ok("POST", "/webhooks", agent, { callback_url: "http://127.0.0.1:49999/b", event_types: ["payment.confirmed"] });
    assert.deepEqual([other.url, other.events], ["http://127.0.0.1:49999/b", ["payment.confirmed"]]);
    assert.match(other.secret, /^whsec_[0-9a-f]{64}$/);
    const list = await world.ok("GET", "/webhooks", agent);
    assert.deepEqual(list.map((one) => one.id), [id, other.id]);
    assert.ok(list.every((one) => !("secret" in one)));
    assert.ok(!("secret" in (await world.ok("GET", `/webhooks/${id}`, agent))));
    await world.ok("DELETE", `/webhooks/${id}`, agent);
    assert.deepEqual((await world.ok("GET", "/webhooks", agent)).map((one) => one.id), [other.id]);
    assert.equal((await world.ask("DELETE", `/webhooks/${id}`, agent)).status, 404);
    assert.ok(!server.logs.includes("a secret of mine") && !server.logs.includes(other.secret), "no secret in a log");
  });

  test("R144: what does not fit is refused, and there are so many", async () => {
    const agent = await world.server.agent();
    const url = "http://127.0.0.1:49999/";
    for (const [body, field] of [
      [{}, "url"],
      [{ url: "no url" }, "url"],
      [{ url: "ftp://example.com/" }, "url"],
      [{ url: "http://user:password@127.0.0.1/" }, "url"],
      [{ url: "http://127.0.0.1:25/" }, "url"],
      [{ url: `http://127.0.0.1/${"x".repeat(3_000)}` }, "url"],
      [{ url, callback_url: "http://127.0.0.1:49999/other" }, "callback_url"],
      [{ url, events: ["task.exploded"] }, "events"],
      [{ url, events: ["task.created"], event_types: ["task.failed"] }, "event_types"],
      [{ url, secret: "short" }, "secret"],
    ]) {
      const answer = await world.ask("POST", "/webhooks", agent, body);
      assert.deepEqual([answer.status, answer.error?.code, answer.error?.field], [422, "VALIDATION_ERROR", field], JSON.stringify(body).slice(0, 100));
    }
    for (let n = 0; n < 20; n++) await world.ok("POST", "/webhooks", agent, { url });
    const answer = await world.ask("POST", "/webhooks", agent, { url });
    assert.deepEqual([answer.status, answer.error.code], [409, "LIMIT_REACHED"]);
  });

  test("R144: a webhook is its owner's alone: other agents, other users and who has nothing see none of it", async () => {
    const { server } = world;
    const [owner, other] = [await server.user("Owner"), await server.user("Other")];
    const [agent, sibling] = [await server.agent({ owner }), await server.agent({ owner })];
    const stranger = await server.agent();
    const { id } = await world.ok("POST", "/webhooks", agent, { url: "http://127.0.0.1:49999/" });
    for (const who of [owner, other, sibling, stranger]) {
      assert.deepEqual(await world.ok("GET", "/webhooks", who), []);
      for (const [method, path] of [["GET", ""], ["DELETE", ""], ["GET", "/deliveries"], ["POST", "/test"]]) {
        const [mine, none] = [await world.ask(method, `/webhooks/${id}${path}`, who), await world.ask(method, `/webhooks/${UNKNOWN_ID}${path}`, who)];
        assert.deepEqual([mine.status, none.status], [404, 404], `${method} ${path} by ${who.name}`);
      }
    }
    // The owner acting as the agent is the agent.
    assert.equal((await world.ok("GET", "/webhooks", { token: owner.token, agent: agent.id })).length, 1);
    assert.equal((await server.request("GET", "/api/v1/webhooks")).status, 401);
    const reader = await server.ok("POST", `/api/v1/agents/${agent.id}/credentials`, { key: agent.key, body: { scopes: ["read"] } });
    assert.equal((await world.ask("POST", "/webhooks", { key: reader.api_key }, { url: "http://127.0.0.1:49999/" })).status, 403);
    await server.ok("POST", "/api/v1/auth/rotate-key", { key: agent.key, body: {} });
    assert.equal((await world.ask("GET", "/webhooks", agent)).status, 401, "by a key that was replaced");
  });

  test("R144: what happens to tasks reaches those it concerns, signed, and no others", async () => {
    const { server } = world;
    const [clientOwner, providerOwner] = [await server.user("A"), await server.user("B")];
    const client = await server.agent({ owner: clientOwner, name: "Client" });
    const provider = await server.agent({ owner: providerOwner, name: "Provider" });
    const stranger = await server.agent({ name: "Stranger" });
    const hooks = {};
    for (const [name, who, events] of [
      ["client", client, undefined],
      ["provider", provider, ["task.created", "task.cancelled"]],
      ["owner", providerOwner, ["task.in_progress", "task.completed", "agent.status_changed"]],
      ["stranger", stranger, undefined],
    ]) {
      const receiver = await world.receiver();
      const { secret } = await world.ok("POST", "/webhooks", who, { url: `${receiver.url}?of=${name}`, events });
      hooks[name] = { receiver, secret };
    }
    const task = await server.task(client, provider, { private: "input" });
    await hooks.provider.receiver.next("task.created");
    await server.emit(task, provider, "x");
    await hooks.client.receiver.next("task.in_progress");
    await server.ok("PUT", `/api/v1/tasks/${task.id}/complete`, { key: provider.key, body: { output: { answer: 42 } } });
    const done = await hooks.client.receiver.next("task.completed");
    verify(done, hooks.client.secret);
    assert.equal(done.path, "/hook?of=client");
    assert.deepEqual(Object.keys(done.body).sort(), ["created_at", "data", "event", "id"]);
    assert.deepEqual([done.body.data.task.id, done.body.data.task.status, done.body.data.task.output], [task.id, "completed", { answer: 42 }]);
    assert.equal(done.body.data.task.input, null, "whoever gave it knows it");
    const withdrawn = await server.task(client, provider);
    await server.ok("POST", `/api/v1/tasks/${withdrawn.id}/cancel`, { key: client.key, body: {} });
    await hooks.provider.receiver.next("task.cancelled");
    const failed = await server.task(client, provider);
    await server.ok("PUT", `/api/v1/tasks/${failed.id}/fail`, { key: provider.key, body: { error_reason: "no" } });
    await hooks.client.receiver.next("task.failed");
    await server.ok("PUT", `/api/v1/admin/agents/${provider.id}/status`, { token: server.adminToken, body: { status: "suspended" } });
    const status = await hooks.owner.receiver.next("agent.status_changed");
    assert.deepEqual([status.body.data.agent.id, status.body.data.agent.status], [provider.id, "suspended"]);
    const ofFirst = (name) => hooks[name].receiver.requests.filter(({ body }) => body.data.task?.id === task.id).map(({ body }) => body.event).sort();
    assert.deepEqual(ofFirst("client"), ["task.claimed", "task.completed", "task.created", "task.in_progress"]);
    assert.deepEqual(ofFirst("provider"), ["task.created"]);
    assert.deepEqual(ofFirst("owner"), ["task.completed", "task.in_progress"]);
    assert.deepEqual(hooks.stranger.receiver.requests, []);
    for (const { receiver, secret } of Object.values(hooks)) for (const request of receiver.requests) verify(request, secret);
    const ids = hooks.client.receiver.requests.map(({ body }) => body.id);
    assert.equal(new Set(ids).size, ids.length, "each once");
  });

  test("R144 R142: money that the operator puts in or takes out is told to whose account it is, once, and to nobody else", async () => {
    const { server } = world;
    const [owner, other] = [await server.user("Owner"), await server.user("Other")];
    const agent = await server.agent({ owner });
    const events = ["payment.deposited", "withdrawal.processed"];
    const hooks = await world.hooks({ agent: [agent, events], owner: [owner, events], other: [other, undefined], stranger: [await server.agent(), undefined] });
    const move = (way, body) => server.ok("POST", `/api/v1/admin/ledger/${way}`, { token: server.adminToken, body });
    const { transaction } = await move("credit", { agent_id: agent.id, amount: "10.50", reference: "invoice 7" });
    await move("credit", { agent_id: agent.id, amount: "10.50", reference: "invoice 7" });
    const refused = await server.request("POST", "/api/v1/admin/ledger/debit", { token: server.adminToken, body: { agent_id: agent.id, amount: "11" } });
    assert.equal(refused.status, 422);
    await move("debit", { agent_id: agent.id, amount: "0.5" });
    await move("credit", { user_id: owner.id, amount: "3" });
    const deposited = await hooks.agent.next("payment.deposited");
    assert.deepEqual(deposited.body.data.payment, { id: transaction.id, kind: "credit", amount: "10.5", agent_id: agent.id, reference: "invoice 7", at: transaction.at });
    const withdrawn = (await hooks.agent.next("withdrawal.processed")).body.data.payment;
    assert.deepEqual([withdrawn.kind, withdrawn.amount, withdrawn.agent_id, withdrawn.reference], ["debit", "0.5", agent.id, null]);
    const own = await hooks.owner.next("payment.deposited", ({ body }) => body.data.payment.user_id);
    assert.deepEqual([own.body.data.payment.user_id, own.body.data.payment.amount], [owner.id, "3"]);
    await until("the owner is told all of it", () => hooks.owner.requests.length === 3);
    await sleep(300);
    assert.deepEqual(hooks.agent.events().sort(), ["payment.deposited", "withdrawal.processed"], "what was refused or said twice is not told");
    assert.deepEqual([hooks.other.events(), hooks.stranger.events()], [[], []]);
  });

  test("R144 R141 R96: an escrow that is released and a transfer that is executed are told to payer and payee", async () => {
    const { server } = world;
    const [owner, pair] = [await server.user("Owner"), await openChannel(server, { deposit: "10" })];
    const [client, provider] = [await server.agent({ owner, name: "Client" }), await server.agent({ name: "Provider", price: "4" })];
    await credit(server, client, "20");
    const events = ["payment.confirmed"];
    const hooks = await world.hooks({ client: [client, events], owner: [owner, events], provider: [provider, events], a: [pair.a, events], b: [pair.b, events], stranger: [await server.agent(), undefined] });
    const hire = async () => (await world.ok("POST", `/agents/${provider.id}/hire`, client, { input: {}, queue: true })).task;
    const [done, failed] = [await hire(), await hire()];
    assert.equal(done.escrow, "held");
    await world.ok("PUT", `/tasks/${failed.id}/fail`, provider, { error_reason: "no" });
    await world.ok("PUT", `/tasks/${done.id}/complete`, provider, { output: 1 });
    for (const name of ["client", "owner", "provider"]) {
      const { payment } = (await hooks[name].next("payment.confirmed")).body.data;
      assert.deepEqual(
        [payment.kind, payment.amount, payment.fee, payment.from_agent_id, payment.to_agent_id, payment.reference],
        ["escrow_release", "4", "0.2", client.id, provider.id, done.id],
        name,
      );
    }
    const sides = await pair.join(world.connections);
    const { propose } = await pair.transfer(pair.a, "1");
    await sides[0].ask("propose_transfer", propose);
    assert.deepEqual(await sides[1].ask("reject_transfer", {}), { nonce: 1 });
    assert.equal((await pair.pay(sides, pair.a, "2.5")).balance_b, "12.5");
    for (const name of ["a", "b"]) {
      const { payment } = (await hooks[name].next("payment.confirmed")).body.data;
      assert.deepEqual(
        [payment.kind, payment.amount, payment.fee, payment.from_agent_id, payment.to_agent_id, payment.reference],
        ["channel_transfer", "2.5", "0", pair.a.id, pair.b.id, pair.id],
        name,
      );
    }
    // Closed as it stands nobody pays anybody.
    assert.equal((await sides[0].ask("close", pair.closing("7.5", "12.5", 2))).status, "closed");
    await sleep(300);
    const counts = Object.fromEntries(Object.entries(hooks).map(([name, hook]) => [name, hook.requests.length]));
    assert.deepEqual(counts, { client: 1, owner: 1, provider: 1, a: 1, b: 1, stranger: 0 });
  });

  test("R144 R99: a disputed payment channel is told to both sides and their owners, under both names", async () => {
    const { server } = world;
    const pair = await openChannel(server);
    const names = ["task.disputed", "payment.disputed"];
    const hooks = await world.hooks({ a: [pair.a, names], b: [pair.b, ["task.disputed"]], stranger: [await server.agent(), undefined] });
    const [a] = await pair.join(world.connections);
    assert.equal((await a.ask("dispute", { reason: "not what was said", evidence: { secret: 1 } })).status, "disputed");
    for (const name of names) {
      const { channel, dispute } = (await hooks.a.next(name)).body.data;
      assert.deepEqual([channel.id, channel.status, channel.agent_a, channel.agent_b, channel.balance_a], [pair.id, "disputed", pair.a.id, pair.b.id, "10"]);
      assert.deepEqual([dispute.agent_id, dispute.reason, "evidence" in dispute], [pair.a.id, "not what was said", false]);
    }
    await hooks.b.next("task.disputed");
    await server.ok("POST", `/api/v1/admin/payment-channels/${pair.id}/resolve`, { token: server.adminToken, body: {} });
    await sleep(300);
    assert.deepEqual([hooks.a.events().sort(), hooks.b.events(), hooks.stranger.events()], [["payment.disputed", "task.disputed"], ["task.disputed"], []]);
  });

  test("R144 R119: a message that is given up is told to its sender and its recipient, without what is in it", async () => {
    const { server } = world;
    const owner = await server.user("Owner");
    const [from, to] = [await server.agent({ name: "From" }), await server.agent({ owner, name: "To" })];
    const events = ["message.dead_letter"];
    const hooks = await world.hooks({ from: [from, events], to: [to, events], owner: [owner, events], stranger: [await server.agent(), undefined] });
    const { channel, taken } = await world.silent(to);
    const { id } = await world.ok("POST", "/messages", from, { to_agent_id: to.id, type: "note", payload: { private: "words" } });
    const acknowledged = await world.ok("POST", "/messages", from, { to_agent_id: to.id, type: "note", payload: {} });
    await until("it has come", () => taken.some((message) => message.id === acknowledged.id));
    await world.ok("POST", `/messages/${acknowledged.id}/acknowledge`, to, {});
    for (const name of ["from", "to", "owner"]) {
      const { raw, body } = await hooks[name].next("message.dead_letter");
      const { message } = body.data;
      assert.deepEqual([message.id, message.from_agent_id, message.to_agent_id, message.status, message.retry_count], [id, from.id, to.id, "failed", 5], name);
      assert.ok(!raw.includes("words"));
    }
    // Queued again and given up again is another happening.
    await world.ok("POST", `/messages/${id}/redeliver`, from, {});
    await until("it is told again", () => hooks.from.requests.length === 2);
    assert.notEqual(hooks.from.requests[0].body.id, hooks.from.requests[1].body.id);
    channel.leave();
    assert.deepEqual(hooks.stranger.events(), []);
  });

  test("R144: what does not arrive is tried again under the same id, with pauses that grow, and the log tells", async () => {
    const agent = await world.server.agent();
    const receiver = await world.receiver();
    // The third time the connection breaks.
    const answers = [500, { status: 302, headers: { location: `http://127.0.0.1:${receiver.port}/elsewhere` } }, null, 204];
    receiver.answer = (_, count) => answers[count - 1];
    const { id, secret } = await world.ok("POST", "/webhooks", agent, { url: receiver.url });
    const { delivery_id } = await world.ok("POST", `/webhooks/${id}/test`, agent);
    await until("four attempts", () => receiver.requests.length === 4);
    for (const request of receiver.requests) {
      verify(request, secret);
      assert.deepEqual([request.body.id, request.body.event, request.path], [delivery_id, "webhook.test", "/hook"], "no redirect is followed");
      assert.deepEqual(request.raw, receiver.requests[0].raw);
    }
    const at = receiver.requests.map((request) => request.at);
    assert.ok(at[1] - at[0] >= 70 && at[2] - at[1] >= 145 && at[3] - at[2] >= 295, `pauses: ${at}`);
    const log = await until("the log", async () => {
      const entries = await world.ok("GET", `/webhooks/${id}/deliveries`, agent);
      return entries.length === 4 && entries;
    });
    assert.deepEqual(log.map((entry) => [entry.id, entry.attempt, entry.outcome, entry.status]), [
      [delivery_id, 4, "delivered", 204],
      [delivery_id, 3, "retry", null],
      [delivery_id, 2, "retry", 302],
      [delivery_id, 1, "retry", 500],
    ]);
    assert.ok(log[1].error && log.every((entry) => entry.duration_ms >= 0 && entry.event === "webhook.test"));
    await sleep(300);
    assert.equal(receiver.requests.length, 4, "what has arrived is not sent again");
  });

  test("R144 R140: a task that is given to another provider is told to the one before and to the other", async () => {
    const { server } = world;
    const [client, provider, spare] = [await server.agent(), await server.agent(), await server.agent()];
    const hooks = await world.hooks({ provider: [provider, ["task.cancelled"]], spare: [spare, ["task.created"]], stranger: [await server.agent(), undefined] });
    const task = await server.task(client, provider);
    await world.ok("POST", `/tasks/${task.id}/reassign`, client, { provider_agent_id: spare.id });
    for (const [name, event] of [["provider", "task.cancelled"], ["spare", "task.created"]]) {
      const { body } = await hooks[name].next(event);
      assert.deepEqual([body.data.task.id, body.data.task.provider_agent_id ?? spare.id], [task.id, spare.id]);
    }
    await sleep(200);
    assert.deepEqual([hooks.provider.requests.length, hooks.spare.requests.length, hooks.stranger.events()], [1, 1, []]);
  });

  test("R144 R167: a key that was revoked, or may only read, changes no webhook", async () => {
    const { server } = world;
    const agent = await server.agent();
    const receiver = await world.receiver();
    const { id } = await world.ok("POST", "/webhooks", agent, { url: receiver.url });
    const { api_key: key } = await server.ok("POST", `/api/v1/agents/${agent.id}/credentials`, { key: agent.key, body: { scopes: ["read"] } });
    const changes = [["POST", "/webhooks", { url: receiver.url }], ["POST", `/webhooks/${id}/test`, {}], ["DELETE", `/webhooks/${id}`]];
    for (const [method, path, body] of changes) assert.equal((await world.ask(method, path, { key }, body)).status, 403, `${method} ${path}`);
    assert.equal((await world.ok("GET", `/webhooks/${id}`, { key })).id, id);
    await server.ok("POST", "/api/v1/auth/rotate-key", { key: agent.key, body: {} });
    for (const [method, path, body] of [...changes, ["GET", `/webhooks/${id}`]]) assert.equal((await world.ask(method, path, agent, body)).status, 401, `${method} ${path}`);
    assert.deepEqual(receiver.requests, []);
  });

  test("R144: one delivery of a webhook at a time, and a slow one holds up no other", async () => {
    const { server } = world;
    const [client, provider] = [await server.agent(), await server.agent()];
    const [slow, quick] = [await world.receiver(), await world.receiver()];
    slow.answer = async () => {
      await sleep(100);
      return 200;
    };
    await world.ok("POST", "/webhooks", client, { url: slow.url, events: ["task.created"] });
    await world.ok("POST", "/webhooks", provider, { url: quick.url, events: ["task.created"] });
    for (let n = 0; n < 12; n++) await server.task(client, provider);
    await until("all at the quick one", () => quick.requests.length === 12);
    assert.ok(slow.requests.length < 12, "the slow one is not done yet");
    await until("all at the slow one", () => slow.requests.length === 12);
    assert.equal(slow.mostAtOnce, 1);
  });

  test("R144 R166: what was queued survives kill -9, and arrives once the node is back", async () => {
    const { server } = world;
    const [client, provider] = [await server.agent(), await server.agent()];
    const receiver = await world.receiver();
    receiver.answer = () => 503;
    await world.ok("POST", "/webhooks", client, { url: receiver.url, events: ["task.created"] });
    const task = await server.task(client, provider);
    await server.kill();
    const before = receiver.requests.length;
    receiver.answer = () => 200;
    await server.startAgain();
    // A claim that the killed node held ends by itself: nobody waits for that here.
    await server.ok("POST", "/api/v1/admin/drills/clock", { token: server.adminToken, body: { advance_ms: 60_000 } });
    await until("it arrives", () => receiver.requests.length > before);
    assert.equal(receiver.requests.at(-1).body.data.task.id, task.id);
  });

  test("R144: a webhook that was removed is told nothing any more, and one at which nothing arrives for days is disabled", async () => {
    const { server } = world;
    const [client, provider] = [await server.agent(), await server.agent()];
    const [gone, broken] = [await world.receiver(), await world.receiver()];
    const removed = await world.ok("POST", "/webhooks", client, { url: gone.url });
    const failing = await world.ok("POST", "/webhooks", client, { url: broken.url });
    await world.ok("DELETE", `/webhooks/${removed.id}`, client);
    broken.answer = () => 500;
    await server.task(client, provider);
    await until("it has failed", async () => (await world.ok("GET", `/webhooks/${failing.id}`, client)).failing_since);
    const events = await listen(world.connections, server, client);
    await server.ok("POST", "/api/v1/admin/drills/clock", { token: server.adminToken, body: { advance_ms: 3 * 86_400_000 } });
    const told = await events.next("webhook.disabled");
    assert.deepEqual([told.webhook_id, told.url], [failing.id, broken.url]);
    const shown = await world.ok("GET", `/webhooks/${failing.id}`, client);
    assert.deepEqual([shown.status, shown.disabled_at], ["disabled", told.disabled_at]);
    const count = broken.requests.length;
    await server.task(client, provider);
    await sleep(300);
    assert.deepEqual([broken.requests.length, gone.requests.length], [count, 0]);
    // Nothing is sent to it, whoever asks for it: that is said, and not accepted.
    const tried = await world.ask("POST", `/webhooks/${failing.id}/test`, client);
    assert.deepEqual([tried.status, tried.error.code, tried.error.details.disabled_at], [409, "WEBHOOK_DISABLED", told.disabled_at], tried.text);
    assert.equal((await world.ask("POST", `/webhooks/${failing.id}/test`, provider)).status, 404);
  });
});

onNode("webhooks without exceptions", [], (world) => {
  test("R144: private and loopback targets are refused, by address and by name", async () => {
    const agent = await world.server.agent();
    const receiver = await world.receiver();
    for (const url of [
      receiver.url,
      `http://localhost:${receiver.port}/`,
      `http://127.1:${receiver.port}/`,
      `http://[::1]:${receiver.port}/`,
      `http://[::ffff:127.0.0.1]:${receiver.port}/`,
      "http://10.0.0.1/",
      "http://192.168.0.1/",
      "https://169.254.169.254/latest/meta-data",
      "http://100.64.0.1/",
      "http://[fd00::1]/",
      "http://0.0.0.0/",
    ]) {
      const answer = await world.ask("POST", "/webhooks", agent, { url });
      assert.deepEqual([answer.status, answer.error?.field], [422, "url"], url);
    }
    assert.equal((await world.ask("POST", "/webhooks", agent, { url: "https://1.1.1.1/hook" })).status, 201);
    assert.deepEqual(receiver.requests, []);
  });
});

onNode("webhooks that give up", [LOOPBACK, "webhooks.attempts_max=2"], (world) => {
  test("R144: after so many attempts a delivery is dead, and the next ones go on", async () => {
    const agent = await world.server.agent();
    const receiver = await world.receiver();
    receiver.answer = (_, count) => (count <= 2 ? 500 : 200);
    const { id } = await world.ok("POST", "/webhooks", agent, { url: receiver.url });
    await world.ok("POST", `/webhooks/${id}/test`, agent);
    const outcomes = async () => (await world.ok("GET", `/webhooks/${id}/deliveries`, agent)).map(({ outcome }) => outcome);
    await until("it is dead", async () => (await outcomes()).join() === "dead,retry");
    await world.ok("POST", `/webhooks/${id}/test`, agent);
    await until("the next arrives", async () => (await outcomes()).join() === "delivered,dead,retry");
    assert.equal(receiver.requests.length, 3);
  });
});

describe("webhooks of a cluster", () => {
  const world = onCluster({ set: [LOOPBACK, "webhooks.poll_ms=20", "limits.message_retry_ms=20"] });
  let receiver;
  before(async () => {
    receiver = await Receiver.start();
  });
  after(() => receiver.end());

  test("R144: whichever node it happens at, one node delivers it, once and one at a time", { timeout: 240_000 }, async () => {
    receiver.answer = async () => {
      await sleep(5);
      return 200;
    };
    const [client, provider] = [await world.one.agent(), await world.two.agent()];
    await world.one.ok("POST", "/api/v1/webhooks", { key: client.key, body: { url: receiver.url, events: ["task.created"] } });
    const tasks = [];
    for (let n = 0; n < 10; n++) for (const node of world.nodes) tasks.push((await node.task(client, provider)).id);
    await until("all have arrived", () => receiver.requests.length >= tasks.length);
    await sleep(500);
    assert.deepEqual(receiver.requests.map(({ body }) => body.data.task.id).sort(), tasks.sort());
    assert.equal(receiver.mostAtOnce, 1);
  });

  test("R144 R96 R119: payments, disputes and dead letters of a cluster are told once each", { timeout: 240_000 }, async () => {
    receiver.answer = () => 200;
    receiver.requests = [];
    const pair = await openChannel(world.one);
    const url = receiver.url;
    await world.two.ok("POST", "/api/v1/webhooks", { key: pair.b.key, body: { url, events: ["payment.confirmed", "payment.disputed", "message.dead_letter"] } });
    const sides = await pair.join(world.connections, [world.one, world.two]);
    for (const amount of ["1", "2"]) await pair.pay(sides, pair.a, amount);
    // Pushed by two nodes, given up once.
    for (const node of [world.two, world.three]) {
      const socket = await world.connections.socket(node, "/socket", pair.b.key, { heartbeatIntervalMs: 300 });
      assert.equal((await join(socket.channel(`messages:${pair.b.id}`, {}))).status, "ok");
    }
    const { id } = await world.one.ok("POST", "/api/v1/messages", { key: pair.a.key, body: { to_agent_id: pair.b.id, type: "note", payload: {} } });
    assert.equal((await sides[0].ask("dispute", { reason: "why" })).status, "disputed");
    await until("all have arrived", () => receiver.requests.length >= 4);
    await sleep(500);
    const told = receiver.requests.map(({ body }) => [body.event, body.data.payment?.amount ?? body.data.channel?.id ?? body.data.message.id].join(" "));
    assert.deepEqual(told.sort(), [`message.dead_letter ${id}`, "payment.confirmed 1", "payment.confirmed 2", `payment.disputed ${pair.id}`]);
  });
});
