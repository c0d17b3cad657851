// The OpenAPI document against a node: what is sent and answered fits it, and those may call whom it says.

import assert from "node:assert/strict";
import { createHash, randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import { after, before, describe, test } from "node:test";
import { signingAgent } from "./lib/money.mjs";
import { accept, offer, signing } from "./lib/negotiations.mjs";
import { Contract, fits, joinMisfit, misfit, operations } from "./lib/openapi.mjs";
import { join, push } from "./lib/phoenix.mjs";
import { Server, until } from "./lib/server.mjs";
import { Signer, statements } from "./lib/signer.mjs";
import { Connections, ROOMY } from "./lib/streams.mjs";

const schema = (name) => ["components", "schemas", name];

describe("the OpenAPI document", () => {
  let server;
  let contract;
  let operator;
  const connections = new Connections();
  before(async () => {
    server = await Server.start({ set: [...ROOMY, "drills.enabled=true", "ledger.platform_fee_bps=100", "limits.message_retry_ms=20", 'webhooks.allow_private=["127.0.0.0/8"]'] });
    contract = new Contract(server);
    operator = { token: server.adminToken };
  });
  after(async () => {
    await connections.close();
    await server.end();
  });

  const v1 = (name, options) => contract.ok(name.replace(" ", " /api/v1"), options);
  const as = (agent) => ({ key: agent.key });

  test("R172: users, agents, keys, sessions and blocks are as it says", async () => {
    const user = await v1("POST /admin/users", { ...operator, body: { name: "Ada" } });
    const { token } = await v1("POST /admin/users/{id}/tokens", { ...operator, id: user.id, body: { label: "main", scopes: ["connect", "read", "write"] } });
    const short = await v1("POST /admin/users/{id}/tokens", { ...operator, id: user.id, body: { expires_at: "2099-01-01T00:00:00Z" } });
    await v1("GET /admin/users", { ...operator, query: { limit: 1 } });
    await v1("GET /admin/users/{id}/tokens", { ...operator, id: user.id });
    await v1("DELETE /admin/users/{id}/tokens/{token}", { ...operator, in: { token: short.credential.id }, id: user.id });

    const owned = await v1("POST /agents", { token, body: { agent: { name: "Owned", did: `did:test:owned-${process.pid}`, capabilities: ["code"], base_price: 1.5, pricing_model: "fixed", metadata: { region: "eu" } } } });
    const free = await v1("POST /agents/register", { body: { agent: { name: "Free", did: `did:test:free-${process.pid}`, capabilities: ["code"], base_price: "2", pricing_model: "fixed" } } });
    const [mine, other] = [{ key: owned.api_key }, { key: free.api_key }];
    const id = owned.agent.id;
    await v1("GET /agents", { token });
    await v1("GET /agents/{id}", { ...mine, id });
    await v1("PUT /agents/{id}", { ...mine, id, body: { base_price: "3", metadata: { region: null } } });
    await v1("POST /agents/assign", { token, body: { agents: [{ agent_id: free.agent.id, api_key: free.api_key }] } });
    await v1("GET /agents/discover", { ...mine, query: { capability: "code", status: "any", min_reputation: 0 } });
    await v1("GET /capabilities", mine);
    const spare = await v1("POST /agents/{id}/credentials", { ...mine, id, body: { label: "spare" } });
    await v1("GET /agents/{id}/credentials", { ...mine, id });
    await v1("DELETE /agents/{id}/credentials/{credential}", { ...mine, id, credential: spare.credential.id });
    await v1("PUT /agents/{id}/public_key", { ...mine, id, body: { public_key: new Signer().publicKey } });
    const session = await v1("POST /auth/authenticate", mine);
    await v1("DELETE /auth/logout", { token: session.token });
    await v1("POST /blocks", { ...mine, body: { agent_id: free.agent.id, expires_at: "2099-01-01T00:00:00Z" } });
    await v1("GET /blocks", mine);
    await v1("DELETE /blocks/{id}", { ...mine, id: free.agent.id });
    await v1("POST /auth/rotate-key", other);
    await v1("PUT /admin/agents/{id}/status", { ...operator, id, body: { status: "suspended" } });
  });

  test("R172: tasks, streams and hirings are as it says", async () => {
    const owner = await server.user();
    const client = await server.agent({ owner, name: "Client" });
    const provider = await server.agent({ name: "Provider" });
    const second = await server.agent({ name: "Second" });
    await v1("POST /admin/ledger/credit", { ...operator, body: { agent_id: client.id, amount: 100 } });
    const create = (more = {}) => v1("POST /tasks", { ...as(client), body: { provider_agent_id: provider.id, capability: "code", input: { prompt: "…" }, ...more } });
    const task = await create({ price: "2.5", max_price: 3 });
    const chunk = { content: "Hello", kind: "chat", metadata: { n: 1 }, idempotency_key: "1" };
    await v1("POST /tasks/{id}/chunk", { ...as(provider), id: task.id, body: chunk });
    await v1("GET /tasks/{id}/stream", { ...as(client), id: task.id, query: { after: 0 } });
    await v1("POST /tasks/{id}/messages", { ...as(client), id: task.id, body: { content: "Well?" } });
    await v1("GET /tasks/{id}/messages", { ...as(provider), id: task.id });
    await v1("PUT /tasks/{id}/complete", { ...as(provider), id: task.id, body: { output: "done" } });
    await v1("GET /tasks/{id}", { ...as(client), id: task.id });
    await v1("GET /tasks/{id}/timeline", { ...as(client), id: task.id });
    await v1("GET /tasks/{id}/payments", { ...as(client), id: task.id });
    await v1("GET /tasks", { ...as(client), query: { status: "completed", role: "client" } });
    const [moved, withdrawn] = [await create(), await create()];
    await v1("POST /tasks/{id}/reassign", { ...as(client), id: moved.id, body: { provider_agent_id: second.id } });
    await v1("PUT /tasks/{id}/fail", { ...as(second), id: moved.id, body: { error: { type: "odd" }, error_reason: "it is odd" } });
    await v1("GET /tasks/{id}", { ...as(client), id: moved.id });
    await v1("POST /tasks/{id}/cancel", { ...as(client), id: withdrawn.id, body: { reason: "no more" } });

    const { fees } = await v1("GET /admin/ledger", operator);
    await v1("POST /admin/ledger/fees/withdraw", { ...operator, body: { amount: fees, reference: "payout 1" } });

    const acting = { token: owner.token };
    const hire = () => v1("POST /agents/{did}/hire", { ...acting, did: provider.did, body: { capability: "code", client_agent_id: client.id, input: {}, max_price: "5", queue: true } });
    const [done, failed, cancelled] = [await hire(), await hire(), await hire()].map(({ hiring }) => hiring);
    await v1("POST /hirings/{id}/messages", { ...acting, id: done.id, body: { content: "When?" } });
    await v1("GET /hirings/{id}/messages", { ...acting, id: done.id });
    await v1("POST /hirings/{id}/result", { ...as(provider), id: done.id, body: { output: { text: "done" } } });
    await v1("POST /hirings/{id}/failure", { ...as(provider), id: failed.id, body: { reason: "other", message: "no" } });
    await v1("POST /hirings/{id}/retry", { ...acting, id: failed.id, body: { queue: true } });
    await v1("POST /hirings/{id}/cancel", { ...acting, id: cancelled.id, body: { reason: "no more" } });
    await v1("GET /hirings/{id}", { ...acting, id: done.id });
    await v1("GET /hirings", { ...acting, query: { limit: 2 } });

    const figures = { ...as(provider), id: provider.id };
    await until("the figures are written", async () => (await v1("GET /analytics/agents/{id}/metrics", figures)).tasks_completed > 0);
    await v1("GET /analytics/agents/{id}/revenue", { ...figures, query: { period: "7d" } });
    await v1("GET /analytics/agents/{id}/heatmap", figures);
    for (const metric of ["tasks_total", "success_rate", "revenue"]) {
      const { points } = await v1("GET /analytics/agents/{id}/time-series", { ...figures, query: { metric, period: "1h", interval: "minute" } });
      assert.ok(points.length > 0);
    }

    const crashed = await create();
    await v1("POST /tasks/{id}/chunk", { ...as(provider), id: crashed.id, body: chunk });
    await v1("POST /admin/drills/streams/{id}/crash", { ...operator, id: crashed.id });
  });

  test("R172: messages, handoffs and teams are as it says", async () => {
    const [from, to] = [await server.agent({ name: "From" }), await server.agent({ name: "To" })];
    const note = { to_agent_id: to.id, type: "note", payload: { text: "…" } };
    const send = (more = {}) => v1("POST /messages", { ...as(from), body: { ...note, ...more } });
    const hand = () => send({ type: "task_handoff", payload: { task: { capability: "code" } } });
    const read = await send({ delivery_guarantee: "exactly_once", dedup_key: "1", protocol_version: "1.1.0" });
    const refused = await send();
    await v1("POST /messages/batch", { ...as(from), body: { messages: [note, { ...note, type: "other" }] } });
    await contract.call("POST /api/v1/messages", { ...as(from), body: { ...note, to_agent_id: from.id.replace(/^0/, "1") } });
    await v1("POST /messages/{id}/acknowledge", { ...as(to), id: read.id });
    await v1("POST /messages/{id}/reject", { ...as(to), id: refused.id, body: { reason: "no" } });
    await v1("GET /messages/{id}", { ...as(from), id: refused.id });
    await v1("GET /messages/{id}/status", { ...as(from), id: refused.id });
    await v1("GET /messages", { ...as(from), query: { status: "acknowledged" } });
    const handed = [await hand(), await hand(), await hand()];
    for (const { id } of handed.slice(0, 2)) await v1("POST /messages/{id}/handoff/accept", { ...as(to), id });
    await v1("POST /messages/{id}/handoff/complete", { ...as(to), id: handed[0].id, body: { result: { text: "done" } } });
    await v1("POST /messages/{id}/handoff/fail", { ...as(to), id: handed[1].id, body: { error: { type: "odd" } } });
    await v1("POST /messages/{id}/handoff/decline", { ...as(to), id: handed[2].id, body: { reason: "busy" } });
    await v1("GET /messages/{id}/handoff", { ...as(from), id: handed[0].id });

    const team = await v1("POST /teams", { ...as(from), body: { name: "Crew", member_agent_ids: [to.id] } });
    const third = await server.agent({ name: "Third" });
    await v1("POST /teams/{id}/members", { ...as(from), id: team.id, body: { agent_id: third.id } });
    await v1("DELETE /teams/{id}/members/{agent_id}", { ...as(from), id: team.id, agent_id: third.id });
    const socket = await connections.socket(server, "/socket", from.key);
    const channel = socket.channel(`team:${team.id}`, {});
    assert.equal((await join(channel)).status, "ok");
    for (const [event, payload] of [["team_message", { content: "Hello" }], ["vote_open", { question: "Go?", options: ["yes", "no"] }], ["knowledge_add", { topic: "t", content: {} }]]) {
      assert.equal((await push(channel, event, payload)).status, "ok", event);
    }
    const shown = await v1("GET /teams/{id}", { ...as(to), id: team.id });
    assert.equal(shown.votes.length, 1);
    await v1("GET /teams", as(to));
    const entries = await v1("GET /teams/{id}/entries", { ...as(to), id: team.id });
    assert.ok(entries.length >= 2);
  });

  test("R172: negotiations, payment channels and the ledger are as it says", async () => {
    const [client, provider] = [await signing(server, { name: "Client" }), await signing(server, { name: "Provider" })];
    const begin = async () => {
      const session = randomUUID();
      const begun = await v1("POST /negotiations", { ...as(client), body: { to_agent_id: provider.id, session_id: session, ...offer(session, client, 1, "80") } });
      return begun.id;
    };
    const id = await begin();
    await v1("POST /negotiations/{id}/counter", { ...as(provider), id, body: offer(id, provider, 1, 100) });
    await v1("POST /negotiations/{id}/accept", { ...as(client), id, body: accept(id, client, "90", ["80", "100"]) });
    const agreed = await v1("GET /negotiations/{id}", { ...as(client), id });
    await v1("GET /agreements/{id}", { ...as(client), id: agreed.agreement_id });
    await v1("GET /server-key");
    await v1("POST /negotiations/{id}/reject", { ...as(provider), id: await begin(), body: { reason: "no" } });
    await v1("GET /negotiations", { ...as(client), query: { status: "accepted" } });

    const [a, b] = [await signingAgent(server, { name: "A", credit: "100" }), await signingAgent(server, { name: "B", credit: "100" })];
    const open = () => v1("POST /payment-channels", { ...as(a), body: { counterparty_agent_id: b.id, deposit: 10, counterparty_deposit: "5" } });
    const channel = await open();
    await v1("POST /payment-channels/{id}/accept", { ...as(b), id: channel.id });
    await v1("POST /payment-channels/{id}/cancel", { ...as(b), id: (await open()).id });
    const socket = await connections.socket(server, "/socket", a.key);
    const joined = socket.channel(`payment:${channel.id}`, {});
    assert.equal((await join(joined)).status, "ok");
    const transfer = { channel: channel.id, nonce: 1, from: a.id, to: b.id, amount: "1", a: "9", b: "6" };
    const proposed = await push(joined, "propose_transfer", { amount: "1", nonce: 1, signature: a.signer.sign(statements.propose(transfer)) });
    assert.equal(proposed.status, "ok", JSON.stringify(proposed));
    const { pending } = await v1("GET /payment-channels/{id}", { ...as(b), id: channel.id });
    assert.ok(pending);
    assert.equal((await push(joined, "dispute", { reason: "no" })).status, "ok");
    await v1("GET /payment-channels", as(a));
    await v1("GET /admin/payment-channels", { ...operator, query: { status: "disputed" } });
    await v1("POST /admin/payment-channels/{id}/resolve", { ...operator, id: channel.id, body: { balance_a: 10, balance_b: "5" } });

    const owner = await server.user();
    const owned = await server.agent({ owner });
    const reference = { reference: "invoice 7" };
    await v1("POST /admin/ledger/credit", { ...operator, body: { user_id: owner.id, amount: "7.25", ...reference } });
    await v1("POST /admin/ledger/debit", { ...operator, body: { user_id: owner.id, amount: 0.25 } });
    await v1("POST /ledger/transfer", { token: owner.token, body: { from: owner.id, to: owned.id, amount: 2 } });
    await v1("GET /ledger/balance", { token: owner.token });
    const moved = await v1("GET /ledger/transactions", { token: owner.token });
    assert.ok(moved.length >= 3);
    await v1("GET /admin/ledger/audit", operator);
  });

  test("R172: webhooks, health and the operator's endpoints are as it says", async () => {
    const agent = await server.agent();
    const receiver = createServer((_, answer) => answer.end()).listen(0, "127.0.0.1");
    await once(receiver, "listening");
    const webhook = await v1("POST /webhooks", { ...as(agent), body: { url: `http://127.0.0.1:${receiver.address().port}/`, events: ["task.completed"] } });
    const id = webhook.id;
    await v1("POST /webhooks/{id}/test", { ...as(agent), id });
    await until("it was tried", async () => (await v1("GET /webhooks/{id}/deliveries", { ...as(agent), id })).length > 0);
    await v1("GET /webhooks", as(agent));
    await v1("GET /webhooks/{id}", { ...as(agent), id });
    await v1("DELETE /webhooks/{id}", { ...as(agent), id });
    receiver.close();
    for (const path of ["/live", "/ready", "/healthz", "/readyz", "/metrics"]) await contract.call(`GET ${path}`);
    for (const path of ["openapi", "asyncapi", "errors"]) await contract.call(`GET /api/v1/${path}.json`);
    await v1("GET /admin/cluster", operator);
    await v1("POST /admin/drills/clock", { ...operator, body: { advance_ms: 1 } });

    // A message that nobody takes becomes a dead letter.
    const to = await server.agent({ name: "Silent" });
    // That it lives shows by its heartbeats: whoever is silent altogether is not given up on.
    const socket = await connections.socket(server, "/socket", to.key, { heartbeatIntervalMs: 100 });
    const lost = await v1("POST /messages", { ...as(agent), body: { to_agent_id: to.id, type: "note", payload: {} } });
    assert.equal((await join(socket.channel(`messages:${to.id}`, {}))).status, "ok");
    await until("it is given up", async () => (await v1("GET /messages/{id}/status", { ...as(agent), id: lost.id })).status === "failed");
    await v1("GET /messages/dead-letters", as(agent));
    await v1("POST /messages/{id}/redeliver", { ...as(agent), id: lost.id });
  });

  test("R172: events that go both ways are as the AsyncAPI document says, each way", async () => {
    const [client, provider] = [await signing(server, { name: "Client" }), await signing(server, { name: "Provider" })];
    /** Both on a topic: `ask(0 or 1, event, payload)` pushes, and waits for what the other is told when `told` says of what. */
    const both = async (topic, channelName) => {
      const sides = [];
      for (const who of [client, provider]) {
        const channel = (await connections.socket(server, "/socket", who.key)).channel(topic, {});
        const heard = [];
        channel.onMessage = (event, payload) => {
          heard.push([event, payload]);
          return payload;
        };
        assert.equal((await join(channel)).status, "ok", topic);
        sides.push({ channel, heard });
      }
      return async (n, event, payload, told = event) => {
        const { status, response } = await push(sides[n].channel, event, payload);
        assert.equal(status, "ok", `${topic} ${event}: ${JSON.stringify(response)}`);
        fits(channelName, `receive.${event}`, payload, response);
        if (!told) return response;
        const found = await until(`${told} is told`, () => sides[1 - n].heard.find(([name]) => name === told));
        fits(channelName, `send.${told}`, found[1]);
        return response;
      };
    };

    const task = await server.task(client, provider);
    const asked = await both(`task:${task.id}`, "task");
    await asked(0, "input_stream", { chunk: "a", seq: 1 });
    assert.equal((await asked(0, "input_stream", { chunk: "a", seq: 1 })).duplicate, true);
    await asked(1, "output_stream", { chunk: "YQ==", seq: 0, encoding: "base64" });
    const checksum = createHash("sha256").update("a").digest("hex");
    await asked(0, "input_complete", { checksum, total_size: 1 });
    await asked(1, "output_complete", { checksum, total_size: 1 });
    await asked(1, "progress", { percent: 50, message: "half" });
    await asked(1, "checkpoint", { seq: 1, state: {} }, null);
    await asked(1, "error", { type: "odd", message: "it is odd", details: {} }, "task_failed");
    const other = await server.task(client, provider);
    await (await both(`task:${other.id}`, "task"))(0, "cancel", { reason: "no more" });

    const team = await server.ok("POST", "/api/v1/teams", { key: client.key, body: { name: "Crew", member_agent_ids: [provider.id] } });
    const said = await both(`team:${team.id}`, "team");
    await said(0, "team_message", { content: "Hello" });
    const vote = await said(0, "vote_open", { question: "Go?", options: ["yes", "no"] }, "vote_opened");
    await said(1, "vote_cast", { vote_id: vote.vote_id, option: "yes" });
    await said(1, "knowledge_add", { topic: "t", content: {} }, "knowledge_added");
    await said(1, "escalate", { reason: "stuck" }, "escalated");

    const session = randomUUID();
    const { id } = await server.ok("POST", "/api/v1/negotiations", { key: client.key, body: { to_agent_id: provider.id, session_id: session, ...offer(session, client, 1, "80") } });
    const bargained = await both(`negotiation:${id}`, "negotiation");
    await bargained(1, "offer", offer(id, provider, 1, "100"));
    await bargained(0, "accept", accept(id, client, "90", ["80", "100"]), "negotiation_complete");

    for (const presence of [null, "full", { capability: "code", max_price: "5" }]) {
      const channel = (await connections.socket(server, "/socket", client.key)).channel("agents:discovery", { presence });
      assert.equal((await join(channel)).status, "ok");
      assert.equal(joinMisfit("agents.discovery", { presence }), undefined);
    }
    assert.match(joinMisfit("agents.discovery", { presence: "some" }), /presence/);
  });

  test("R172: every operation was tried", () => {
    const missing = operations.map(([method, path]) => `${method} ${path}`).filter((name) => !contract.done.has(name));
    assert.deepEqual(missing, []);
  });

  test("R172: those may call whom it says, and refusals are as it says", async () => {
    const agent = await server.agent();
    const nobody = "01a00000-0000-7000-8000-000000000000";
    const path = { in: { id: nobody, did: "did:none:at-all", token: nobody, credential: nobody, agent_id: nobody } };
    for (const [method, target, { security, requestBody }] of operations) {
      const name = `${method} ${target}`;
      const ask = (who) => contract.call(name, { ...path, ...who, ...(requestBody ? { raw: '{"public_key":"none"}' } : {}) });
      const anybody = security.some((way) => Object.keys(way).length === 0);
      const { status } = await ask({});
      assert.equal(status === 401, !anybody, `${name}: ${status}`);
      // The rotated key would be no key any more.
      if (anybody || target.endsWith("rotate-key")) continue;
      const isOperators = security.every((way) => "operator" in way);
      const shown = await ask({ key: agent.key });
      assert.equal([401, 403].includes(shown.status) && isOperators, isOperators, `${name}: ${shown.status}`);
      if (isOperators) continue;
      assert.notEqual(shown.status, 401, name);
      assert.notEqual((await ask({ token: agent.key })).status, 401, name);
    }
  });

  test("R172: what does not fit is found", () => {
    assert.equal(misfit(schema("NewTransfer"), { from: "a", to: "b", amount: 1 }), undefined);
    assert.equal(misfit(schema("NewTransfer"), { from: "a", to: "b", amount: "1.5" }), undefined);
    assert.match(misfit(schema("NewTransfer"), { from: "a", to: "b", amount: "1e3" }), /pattern/);
    assert.match(misfit(schema("NewTransfer"), { from: "a", to: "b", amount: [] }), /must be string,number/);
    assert.match(misfit(schema("PaymentChannelRequest"), { amount: "1" }), /counterparty_agent_id/);
    assert.match(misfit(schema("Removed"), { removed: true, more: 1 }, { exact: true }), /not described/);
  });
});
