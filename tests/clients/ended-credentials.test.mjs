// Tasks, hirings, negotiations, payment channels and money, asked for with what has ended or may not do it: nothing moves.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, before, describe, test } from "node:test";
import { handshakeStatus, query } from "./lib/bare.mjs";
import { assertSound, Pair, signingAgent } from "./lib/money.mjs";
import { offer } from "./lib/negotiations.mjs";
import { join, push } from "./lib/phoenix.mjs";
import { Server, until } from "./lib/server.mjs";
import { Connections, ROOMY } from "./lib/streams.mjs";

const HOUR_MS = 3_600_000;

describe("credentials that have ended, or may not", () => {
  const connections = new Connections();
  const cast = {};
  let server;
  let ended;
  let reader;

  const as = (who) => (who.token ? { token: who.token, agent: who.agent } : { key: who.key });
  const ask = (method, path, who, body) => server.request(method, `/api/v1${path}`, { ...as(who), body });
  const ok = (method, path, who, body) => server.ok(method, `/api/v1${path}`, { ...as(who), body });

  before(async () => {
    server = await Server.start({ set: [...ROOMY, "drills.enabled=true"] });
    const operator = { token: server.adminToken };
    const owner = await server.user("Owner");
    const client = await signingAgent(server, { owner, name: "Client", credit: "100" });
    const provider = await signingAgent(server, { name: "Provider", credit: "100" });
    const third = await signingAgent(server, { name: "Third" });
    Object.assign(cast, { operator, owner, client, provider, third });

    // Those that end by their time, which goes on.
    const soon = { expires_at: new Date(Date.now() + HOUR_MS).toISOString() };
    const expired = {
      "a session after its time": { token: (await ok("POST", "/auth/authenticate", client)).token },
      "a key after its time": { key: (await ok("POST", `/agents/${client.id}/credentials`, client, soon)).api_key },
      "the owner's token after its time": { token: (await ok("POST", `/admin/users/${owner.id}/tokens`, operator, soon)).token, agent: client.id },
    };
    for (const [what, who] of Object.entries(expired)) assert.equal((await ask("GET", "/tasks", who)).status, 200, what);
    await ok("POST", "/admin/drills/clock", operator, { advance_ms: 25 * HOUR_MS });
    // Those that somebody has ended.
    const revoked = await ok("POST", `/agents/${client.id}/credentials`, client, {});
    await ok("DELETE", `/agents/${client.id}/credentials/${revoked.credential.id}`, client);
    const rotated = await ok("POST", `/agents/${client.id}/credentials`, client, {});
    await ok("POST", "/auth/rotate-key", { key: rotated.api_key });
    const left = await ok("POST", "/auth/authenticate", client);
    await ok("DELETE", "/auth/logout", { token: left.token });
    const withdrawn = await ok("POST", `/admin/users/${owner.id}/tokens`, operator, {});
    await ok("DELETE", `/admin/users/${owner.id}/tokens/${withdrawn.credential.id}`, operator);
    ended = {
      ...expired,
      "a revoked key": { key: revoked.api_key },
      "a key that was replaced": { key: rotated.api_key },
      "a session that was left": { token: left.token },
      "the owner's revoked token": { token: withdrawn.token, agent: client.id },
      "the owner's revoked token, as no agent": { token: withdrawn.token },
      "nothing": {},
    };
    reader = { key: (await ok("POST", `/agents/${client.id}/credentials`, client, { scopes: ["read", "connect"] })).api_key };

    // What they would move.
    cast.task = await ok("POST", "/tasks", client, { provider_agent_id: provider.id, capability: "code", price: "1" });
    cast.hired = await ok("POST", `/agents/${provider.id}/hire`, client, { queue: true, price: "2" });
    cast.cancelled = await ok("POST", `/agents/${provider.id}/hire`, client, { queue: true, price: "2" });
    await ok("POST", `/hirings/${cast.cancelled.hiring.id}/cancel`, client, {});
    // Begun by the provider, so that it would be the client's to accept and to answer.
    const session_id = randomUUID();
    const about = await ok("POST", "/tasks", client, { provider_agent_id: provider.id, capability: "code" });
    cast.negotiation = await ok("POST", "/negotiations", provider, { to_agent_id: client.id, task_id: about.id, session_id, ...offer(session_id, provider, 1, "1") });
    cast.offered = await ok("POST", "/payment-channels", provider, { counterparty_agent_id: client.id, deposit: "3", counterparty_deposit: "4" });
    const opened = await ok("POST", "/payment-channels", client, { counterparty_agent_id: provider.id, deposit: "5", counterparty_deposit: "5" });
    await ok("POST", `/payment-channels/${opened.id}/accept`, provider, {});
    cast.pair = new Pair(server, opened.id, client, provider);
  });

  after(async () => {
    await connections.close();
    if (server) await assertSound(server);
    await server?.end();
  });

  /** All there is to do, as the client: [method, path, body]. */
  const writes = () => {
    const { task, hired, cancelled, negotiation, offered, client, owner, provider, third } = cast;
    const work = { provider_agent_id: provider.id, capability: "code", price: "1" };
    return [
      ["POST", "/tasks", work],
      ["PUT", `/tasks/${task.id}/complete`, { output: 1 }],
      ["PUT", `/tasks/${task.id}/fail`, {}],
      ["POST", `/tasks/${task.id}/cancel`, {}],
      ["POST", `/tasks/${task.id}/reassign`, { provider_agent_id: third.id }],
      ["POST", `/tasks/${task.id}/messages`, { content: "hello" }],
      ["POST", `/agents/${provider.id}/hire`, { queue: true }],
      ["POST", `/hirings/${hired.hiring.id}/result`, { output: 1 }],
      ["POST", `/hirings/${hired.hiring.id}/failure`, { reason: "other" }],
      ["POST", `/hirings/${hired.hiring.id}/cancel`, {}],
      ["POST", `/hirings/${cancelled.hiring.id}/retry`, { queue: true }],
      ["POST", `/hirings/${hired.hiring.id}/messages`, { content: "hello" }],
      ["POST", "/negotiations", { to_agent_id: provider.id, amount: "1" }],
      ["POST", `/negotiations/${negotiation.id}/counter`, offer(negotiation.id, client, 1, "1")],
      ["POST", `/negotiations/${negotiation.id}/accept`, { amount: "1", signature: "x" }],
      ["POST", `/negotiations/${negotiation.id}/reject`, {}],
      ["POST", "/payment-channels", { counterparty_agent_id: provider.id, deposit: "1" }],
      ["POST", `/payment-channels/${offered.id}/accept`, {}],
      ["POST", `/payment-channels/${offered.id}/cancel`, {}],
      ["POST", "/ledger/transfer", { from: client.id, to: owner.id, amount: "1" }],
    ];
  };

  const reads = () => {
    const { task, hired, negotiation, offered } = cast;
    return [
      ...["/tasks", `/tasks/${task.id}`, `/tasks/${task.id}/timeline`, `/tasks/${task.id}/messages`, `/tasks/${task.id}/payments`],
      ...["/hirings", `/hirings/${hired.hiring.id}`, `/hirings/${hired.hiring.id}/messages`],
      ...["/negotiations", `/negotiations/${negotiation.id}`, "/payment-channels", `/payment-channels/${offered.id}`],
      ...["/ledger/balance", "/ledger/transactions"],
    ].map((path) => ["GET", path]);
  };

  /** Everything as the client and the provider see it. */
  const everything = async () => {
    const answers = [];
    for (const [method, path] of reads()) answers.push((await ask(method, path, cast.client)).data);
    answers.push(await ok("GET", "/ledger/balance", cast.provider), await cast.pair.show());
    return answers;
  };

  test("R80 R92 R134 R135 R140 R141 R142 R167: what has ended moves nothing and sees nothing", async () => {
    const before = await everything();
    for (const [what, who] of Object.entries(ended)) {
      for (const [method, path, body] of [...writes(), ...reads()]) {
        const answer = await ask(method, path, who, body);
        assert.deepEqual([answer.status, answer.error?.code, answer.data], [401, "UNAUTHORIZED", null], `${what}: ${method} ${path} ${answer.text}`);
      }
    }
    assert.deepEqual(await everything(), before);
  });

  test("R92 R135 R140 R141 R142 R167: a key that may only read sees all, and moves nothing", async () => {
    const before = await everything();
    for (const [method, path, body] of writes()) {
      const answer = await ask(method, path, reader, body);
      assert.deepEqual([answer.status, answer.error?.code, answer.data], [403, "FORBIDDEN", null], `${method} ${path} ${answer.text}`);
    }
    for (const [method, path] of reads()) assert.equal((await ask(method, path, reader)).status, 200, path);
    assert.deepEqual(await everything(), before);
    const blind = { key: (await ok("POST", `/agents/${cast.client.id}/credentials`, cast.client, { scopes: ["connect"] })).api_key };
    for (const [method, path] of reads()) assert.equal((await ask(method, path, blind)).status, 403, path);
  });

  test("R93 R94 R96 R97 R99 R100 R167: on a payment channel a key that may only read is told all, and moves nothing", async () => {
    const { pair, client } = cast;
    const side = await pair.joinAs(connections, { ...client, key: reader.key });
    const { propose } = await pair.transfer(client, "1");
    const [a, b] = [await pair.joinAs(connections, client), await pair.joinAs(connections, cast.provider)];
    // One that waits for the client, so that there is something to take and to refuse.
    const theirs = await pair.transfer(cast.provider, "1");
    const closing = pair.closing("5", "5", 0);
    const tries = [["propose_transfer", propose], ["reject_transfer", {}], ["dispute", { reason: "why" }], ["close", closing]];
    for (const [event, payload] of tries) assert.deepEqual((await side.ask(event, payload)).refused, { reason: "forbidden" }, event);
    await b.ask("propose_transfer", theirs.propose);
    for (const [event, payload] of [["acknowledge_transfer", theirs.ack], ...tries]) assert.deepEqual((await side.ask(event, payload)).refused, { reason: "forbidden" }, event);
    await until("it is told", () => side.of("transfer_proposed").length === 1);
    assert.equal((await a.ask("acknowledge_transfer", theirs.ack)).balance_a, "6", "what it could not, its agent can");
    await until("it is told", () => side.of("transfer_complete").length === 1);
  });

  test("R23 R80 R93 R167: what is joined under a key ends with it, and what has ended joins nothing", async () => {
    const { client, pair, negotiation } = cast;
    const extra = await ok("POST", `/agents/${client.id}/credentials`, client, {});
    const socket = await connections.socket(server, "/socket", extra.api_key);
    const channels = [pair.topic, `negotiation:${negotiation.id}`].map((topic) => socket.channel(topic, {}));
    for (const channel of channels) assert.equal((await join(channel)).status, "ok");
    let closed = false;
    socket.onClose(() => (closed = true));
    const before = await everything();
    await ok("DELETE", `/agents/${client.id}/credentials/${extra.credential.id}`, client);
    await until("its socket is closed", () => closed);
    for (const [channel, event, payload] of [[channels[0], "dispute", { reason: "why" }], [channels[1], "reject", {}]]) {
      assert.equal((await push(channel, event, payload, 500)).status, "timeout", event);
    }
    assert.deepEqual(await everything(), before);
    for (const [what, who] of Object.entries(ended)) {
      if (!who.key && !who.token) continue;
      const params = who.agent ? { api_key: who.token, agent_id: who.agent } : who.token ? { session_token: who.token } : { api_key: who.key };
      const status = await handshakeStatus(server, `/socket/websocket${query({ vsn: "2.0.0", ...params })}`);
      assert.equal(status, 403, what);
    }
  });
});
