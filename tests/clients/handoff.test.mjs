// Tasks that are handed over with messages, and what agents say of themselves with them.

import assert from "node:assert/strict";
import { after, afterEach, before, describe, test } from "node:test";
import { onCluster } from "./lib/cluster.mjs";
import { assertSound, credit, money } from "./lib/money.mjs";
import { collect, connect, join, push, VERSIONS } from "./lib/phoenix.mjs";
import { leniently, Server, sleep, until } from "./lib/server.mjs";
import { ROOMY } from "./lib/streams.mjs";

const UNKNOWN_ID = "01a00000-0000-7000-8000-000000000000";
const DAY_MS = 86_400_000;
// Spaces, the order of keys, numbers and escapes: what a JSON tree would not keep.
const CONTEXT = '{ "z":1.50,  "a":[1e2,"\\u00e9 \\u0000"],"n":10000000000000000000001 }';

const refused = (answer, status, code, field) => {
  assert.deepEqual([answer.status, answer.error?.code, answer.data], [status, code, null], answer.text);
  if (field) assert.equal(answer.error.field, field, answer.text);
};

/** What can be done at a node, as whoever. */
function at(server) {
  const as = (who) => (who?.token ? { token: who.token, agent: who.agent } : { key: who?.key });
  const api = {
    server,
    ask: (method, path, who, body, more = {}) => server.request(method, `/api/v1${path}`, { ...as(who), body, ...more }),
    ok: (method, path, who, body) => server.ok(method, `/api/v1${path}`, { ...as(who), body }),
    /** Hands a task over; gives the answer. */
    offer: (from, to, payload, more = {}) => api.ask("POST", "/messages", from, { to_agent_id: to.id, type: "task_handoff", payload: { task: { capability: "code" }, ...payload }, ...more }),
    /** The same, taken. */
    hand: async (from, to, payload, more) => {
      const answer = await api.offer(from, to, payload, more);
      assert.equal(answer.status, 201, answer.text);
      return answer.data;
    },
    say: (who, id, what, body = {}) => api.ask("POST", `/messages/${id}/handoff/${what}`, who, body),
    handoff: (who, id) => api.ok("GET", `/messages/${id}/handoff`, who),
  };
  return api;
}

describe("a task that is handed over", () => {
  const open = [];
  let api;
  let server;
  before(async () => {
    server = await Server.start({ set: [...ROOMY, "drills.enabled=true", "ledger.platform_fee_bps=0"] });
    api = at(server);
  });
  afterEach(() => open.splice(0).forEach((socket) => socket.disconnect()));
  after(async () => {
    await assertSound(server);
    await server.end();
  });

  /** Who hands over, with 10, and who takes. */
  const pair = async () => {
    const from = await server.agent({ name: "From" });
    await credit(server, from, "10");
    return [from, await server.agent({ name: "To", capabilities: ["code", "review"] })];
  };
  /** An agent's messages, with the updates that it is told. */
  const box = async (agent, node = server) => {
    const socket = await connect(VERSIONS.at(-1), node, "/socket", { api_key: agent.key });
    open.push(socket);
    const channel = socket.channel(`messages:${agent.id}`, {});
    const seen = { channel, messages: collect(channel, "new_message"), updates: collect(channel, "handoff_updated") };
    assert.equal((await join(channel)).status, "ok");
    return seen;
  };

  test("R127: handed over with its money and its context byte for byte, accepted, completed, paid once; both hear of it", async () => {
    const [from, to] = await pair();
    const boxes = [await box(from), await box(to)];
    const parent = await server.task(from, to);
    const payload = `{"task":{"capability":"review","input":{"file":"a.rs"}},"context":${CONTEXT},"required_capabilities":["review","code"],"price":"4","parent_task_id":"${parent.id}"}`;
    const raw = `{"to_agent_id":"${to.id}","type":"task_handoff","payload":${payload}}`;
    const sent = await server.request("POST", "/api/v1/messages", { key: from.key, raw });
    assert.equal(sent.status, 201, sent.text);
    const { id } = sent.data;
    await until("the message has come", () => boxes[1].messages.length === 1);
    assert.deepEqual([boxes[1].messages[0].id, boxes[1].messages[0].type], [id, "task_handoff"]);

    for (const who of [from, to]) {
      const shown = await api.ask("GET", `/messages/${id}/handoff`, who);
      assert.ok(shown.text.includes(`"context":${CONTEXT}`), shown.text);
      const { state, task, required_capabilities, price, parent_task_id, from_agent_id, to_agent_id } = shown.data;
      assert.deepEqual([state, required_capabilities, price, parent_task_id], ["pending", ["review", "code"], "4", parent.id]);
      assert.deepEqual([from_agent_id, to_agent_id], [from.id, to.id]);
      assert.deepEqual([task.client_agent_id, task.provider_agent_id, task.capability, task.input, task.price, task.escrow], [from.id, to.id, "review", { file: "a.rs" }, "4", "held"]);
    }
    assert.deepEqual(await money(server, from), ["6", "4"]);

    refused(await api.say(to, id, "complete", { result: 1 }), 409, "HANDOFF_NOT_ACTIVE");
    refused(await api.say(to, id, "fail"), 409, "HANDOFF_NOT_ACTIVE");
    const accepted = await api.say(to, id, "accept");
    assert.deepEqual([accepted.status, accepted.data.state], [200, "accepted"], accepted.text);
    const again = await api.say(to, id, "accept");
    assert.deepEqual([again.status, again.data.accepted_at], [200, accepted.data.accepted_at], "said before");
    refused(await api.say(to, id, "decline"), 409, "HANDOFF_NOT_ACTIVE");
    const done = await api.say(to, id, "complete", { result: { ok: true } });
    assert.deepEqual([done.status, done.data.state, done.data.task.output, done.data.task.escrow], [200, "completed", { ok: true }, "released"], done.text);
    refused(await api.say(to, id, "complete", { result: 2 }), 409, "HANDOFF_NOT_ACTIVE");
    refused(await api.say(to, id, "fail"), 409, "HANDOFF_NOT_ACTIVE");
    assert.deepEqual([await money(server, from), (await money(server, to))[0]], [["6", "0"], "4"]);
    for (const { updates } of boxes) {
      await until("both are told", () => updates.length >= 2);
      assert.deepEqual(updates, [{ id, state: "accepted", task_id: done.data.task.id }, { id, state: "completed", task_id: done.data.task.id }]);
    }
  });

  test("R127: declined, the task is cancelled and the money is back, once; failed, too", async () => {
    const [from, to] = await pair();
    const sender = await box(from);
    const one = await api.hand(from, to, { price: "3" });
    assert.deepEqual(await money(server, from), ["7", "3"]);
    const declined = await api.say(to, one.id, "decline", { reason: "no time" });
    assert.deepEqual([declined.status, declined.data.state, declined.data.reason, declined.data.task.status, declined.data.task.escrow], [200, "declined", "no time", "cancelled", "refunded"], declined.text);
    assert.equal((await api.say(to, one.id, "decline")).data.reason, "no time", "said before");
    refused(await api.say(to, one.id, "accept"), 409, "HANDOFF_NOT_ACTIVE");
    refused(await api.say(to, one.id, "complete", { result: 1 }), 409, "HANDOFF_NOT_ACTIVE");
    assert.deepEqual(await money(server, from), ["10", "0"]);
    await until("the sender is told", () => sender.updates.length === 1);
    assert.deepEqual([sender.updates[0].state, sender.updates[0].reason], ["declined", "no time"]);
    refused(await api.say(to, (await api.hand(from, to, {})).id, "decline", { reason: "x".repeat(1_001) }), 422, "VALIDATION_ERROR", "reason");

    const other = await api.hand(from, to, { price: "2" });
    await api.say(to, other.id, "accept");
    refused(await api.say(to, other.id, "fail", { error: { no: "type" } }), 422, "VALIDATION_ERROR", "error");
    const failed = await api.say(to, other.id, "fail", { error: { type: "broken", message: "it broke" } });
    assert.deepEqual([failed.status, failed.data.state, failed.data.task.error.type], [200, "failed", "broken"], failed.text);
    refused(await api.say(to, other.id, "complete", { result: 1 }), 409, "HANDOFF_NOT_ACTIVE");
    assert.deepEqual([await money(server, from), (await money(server, to))[0]], [["10", "0"], "0"]);
  });

  test("R112 R127: to answer is to have received; to reject the message is to decline", async () => {
    const [from, to] = await pair();
    const sender = await box(from);
    const [accepted, declined, rejected, begun] = [await api.hand(from, to, {}), await api.hand(from, to, {}), await api.hand(from, to, { price: "4" }), await api.hand(from, to, { price: "1" })];
    const status = async ({ id }) => (await api.ok("GET", `/messages/${id}/status`, from)).status;
    await api.say(to, accepted.id, "accept");
    await api.say(to, declined.id, "decline", { reason: "no time" });
    assert.deepEqual([await status(accepted), await status(declined)], ["acknowledged", "rejected"]);
    await api.ok("PUT", `/tasks/${(await api.handoff(to, begun.id)).task.id}/complete`, to, { output: 1 });
    await api.ok("POST", `/messages/${begun.id}/reject`, to, { reason: "too late" });
    assert.equal((await api.handoff(to, begun.id)).state, "completed", "what is done is done");

    assert.deepEqual(await money(server, from), ["5", "4"]);
    await api.ok("POST", `/messages/${rejected.id}/reject`, to, { reason: "not mine" });
    const { state, reason } = await api.handoff(from, rejected.id);
    assert.deepEqual([state, reason], ["declined", "not mine"]);
    refused(await api.say(to, rejected.id, "accept"), 409, "HANDOFF_NOT_ACTIVE");
    await until("the money is back", async () => (await money(server, from))[0] === "9");
    const { task } = await api.handoff(from, rejected.id);
    assert.deepEqual([task.status, task.escrow], ["cancelled", "refunded"]);
    await until("the sender is told", () => sender.updates.some((update) => update.id === rejected.id && update.state === "declined"));
  });

  test("R127: one that was rejected and given to another at once is the other's", async () => {
    const [from, to] = await pair();
    const other = await server.agent({ name: "Other", capabilities: ["code"] });
    const { id } = await api.hand(from, to, { price: "1" });
    const { task } = await api.handoff(from, id);
    const [, given] = await Promise.all([api.ok("POST", `/messages/${id}/reject`, to, {}), api.ask("POST", `/tasks/${task.id}/reassign`, from, { provider_agent_id: other.id })]);
    // What was declined is cancelled within a second or two.
    await sleep(2_500);
    const now = await api.ok("GET", `/tasks/${task.id}`, from);
    if (given.status === 200) assert.deepEqual([now.status, now.provider_agent_id, now.escrow], ["pending", other.id, "held"]);
    else assert.deepEqual([now.status, now.escrow], ["cancelled", "refunded"]);
  });

  test("R127: the task ends it in whatever way it ends", async () => {
    const [from, to] = await pair();
    const boxes = [await box(from), await box(to)];
    const one = await api.hand(from, to, { price: "1" });
    await api.say(to, one.id, "accept");
    const { task } = await api.handoff(from, one.id);
    await api.ok("POST", `/tasks/${task.id}/cancel`, from, {});
    assert.equal((await api.handoff(to, one.id)).state, "failed", "withdrawn by its sender");
    refused(await api.say(to, one.id, "complete", { result: 1 }), 409, "HANDOFF_NOT_ACTIVE");
    const other = await api.hand(from, to, { price: "1" });
    await api.ok("PUT", `/tasks/${(await api.handoff(to, other.id)).task.id}/complete`, to, { output: 1 });
    assert.equal((await api.handoff(to, other.id)).state, "completed");
    refused(await api.say(to, other.id, "decline"), 409, "HANDOFF_NOT_ACTIVE");
    for (const { updates } of boxes) {
      await until("both are told", () => updates.length >= 3);
      assert.deepEqual(updates.map(({ id, state }) => [id, state]), [[one.id, "accepted"], [one.id, "failed"], [other.id, "completed"]]);
    }
    assert.deepEqual(await money(server, from), ["9", "0"]);
  });

  test("R127: what it is copied from and part of are the sender's own", async () => {
    const [from, to] = await pair();
    const client = await server.agent({ name: "Client" });
    const task = await api.ok("POST", "/tasks", client, { provider_agent_id: from.id, capability: "paint", input: { wall: 1 }, max_price: "1" });
    const { id } = await api.hand(from, to, { task: undefined, task_id: task.id, price: "2" });
    const copied = await api.handoff(to, id);
    assert.deepEqual([copied.task.capability, copied.task.input, copied.parent_task_id, copied.task.client_agent_id], ["paint", { wall: 1 }, task.id, from.id]);
    assert.notEqual(copied.task.id, task.id);
    assert.equal((await api.ok("GET", `/tasks/${task.id}`, client)).status, "pending", "as it was");
    const foreign = await server.task(client, to);
    for (const named of [foreign.id, UNKNOWN_ID]) {
      refused(await api.offer(from, to, { task: undefined, task_id: named }), 404, "NOT_FOUND", "payload.task_id");
      refused(await api.offer(from, to, { parent_task_id: named }), 404, "NOT_FOUND", "payload.parent_task_id");
    }
    assert.deepEqual(await money(server, from), ["8", "2"]);
  });

  test("R127: without the capabilities, the money or a form nothing is left of it", async () => {
    const [from, to] = await pair();
    const seen = await box(to);
    const mismatch = await api.offer(from, to, { required_capabilities: ["code", "sing", "dance"], price: "1" });
    refused(mismatch, 422, "CAPABILITY_MISMATCH");
    assert.deepEqual(mismatch.error.details.missing, ["sing", "dance"], mismatch.text);
    refused(await api.offer(from, to, { price: "10.000001" }), 422, "INSUFFICIENT_BALANCE");
    const poor = await server.agent({ name: "Poor" });
    refused(await api.offer(poor, to, { price: "0.000001" }), 422, "INSUFFICIENT_BALANCE");
    refused(await api.offer(from, to, { task: { capability: "code", max_price: "1" }, price: "2" }), 422, "INVALID_AMOUNT");
    refused(await api.offer(from, to, { task: { capability: " " } }), 422, "VALIDATION_ERROR", "payload.task.capability");
    refused(await api.offer(from, from, {}), 422, "VALIDATION_ERROR", "to_agent_id");
    refused(await api.offer(from, to, { required_capabilities: ["a", "a"] }), 422, "VALIDATION_ERROR", "payload.required_capabilities");
    assert.deepEqual(await money(server, from), ["10", "0"]);
    assert.deepEqual([await api.ok("GET", "/messages", to), await api.ok("GET", "/tasks", to)], [[], []]);
    // Each of a batch by itself, in order, also over a socket.
    const message = (price) => ({ to_agent_id: to.id, type: "task_handoff", payload: { task: { capability: "code" }, price } });
    const note = (n) => ({ to_agent_id: to.id, type: "note", payload: { n } });
    const batch = await api.ok("POST", "/messages/batch", from, { messages: [note(1), message("6"), note(2), message("6"), note(3)] });
    assert.deepEqual(batch.map(({ error }) => error?.reason ?? null), [null, null, null, "insufficient_balance", null]);
    const { channel } = await box(from);
    const pushed = await push(channel, "send_message", message("4.5"));
    assert.deepEqual([pushed.status, pushed.response.reason, pushed.response.available], ["error", "insufficient_balance", "4"]);
    assert.equal((await push(channel, "send_message", message("4"))).status, "ok");
    await until("all have come", () => seen.messages.length === 5);
    assert.deepEqual(seen.messages.map(({ payload }) => payload.n ?? payload.price), [1, "6", 2, 3, "4"]);
    assert.deepEqual(await money(server, from), ["0", "10"]);
  });

  test("R127: its recipient answers it, its sender sees it, and for others there is none", async () => {
    const owner = await server.user("Owner");
    const from = await server.agent({ name: "From" });
    const to = await server.agent({ owner, name: "To" });
    const stranger = await server.agent({ name: "Stranger" });
    const foreign = await server.user("Foreign");
    const { id } = await api.hand(from, to, {});
    const { api_key: reading } = await api.ok("POST", `/agents/${to.id}/credentials`, to, { scopes: ["read"] });
    const revoked = await api.ok("POST", `/agents/${to.id}/credentials`, to, {});
    await api.ok("DELETE", `/agents/${to.id}/credentials/${revoked.credential?.id ?? revoked.id}`, to);
    const session = await server.ok("POST", "/api/v1/auth/authenticate", { key: to.key, body: {} });
    for (const what of ["accept", "decline", "complete", "fail"]) {
      refused(await api.say(stranger, id, what), 404, "NOT_FOUND");
      refused(await api.say({ token: foreign.token }, id, what), 404, "NOT_FOUND");
      refused(await api.say(from, id, what), 403, "FORBIDDEN");
      refused(await api.say({ key: reading }, id, what), 403, "FORBIDDEN");
      refused(await api.say({ key: revoked.api_key }, id, what), 401, "UNAUTHORIZED");
      refused(await api.say({}, id, what), 401, "UNAUTHORIZED");
      refused(await api.say(to, UNKNOWN_ID, what), 404, "NOT_FOUND");
    }
    refused(await api.ask("GET", `/messages/${id}/handoff`, stranger), 404, "NOT_FOUND");
    const note = await api.ok("POST", "/messages", from, { to_agent_id: to.id, type: "note", payload: {} });
    refused(await api.ask("GET", `/messages/${note.id}/handoff`, to), 404, "NOT_FOUND");
    assert.equal((await api.handoff(from, id)).state, "pending", "nothing came of all that");
    assert.equal((await api.say({ token: session.token }, id, "accept")).data.state, "accepted");
    assert.equal((await api.say({ token: owner.token }, id, "complete", { result: 1 })).data.state, "completed", "as its owner");
  });

  test("R127: a repeat under one key hands over once", async () => {
    const [from, to] = await pair();
    const once = { delivery_guarantee: "exactly_once", dedup_key: "k" };
    const sent = await Promise.all(Array.from({ length: 6 }, () => api.hand(from, to, { price: "4" }, once)));
    assert.equal(new Set(sent.map(({ id }) => id)).size, 1);
    assert.equal(sent.filter(({ deduplicated }) => !deduplicated).length, 1);
    refused(await api.offer(from, to, { price: "5" }, once), 422, "IDEMPOTENCY_MISMATCH");
    assert.deepEqual(await money(server, from), ["6", "4"]);
    assert.equal((await api.ok("GET", "/tasks", to)).length, 1);
  });

  test("R127: it outlives kill -9 at every step, and its message", { timeout: 120_000 }, async () => {
    const own = await Server.start({ set: [...ROOMY, "drills.enabled=true", "ledger.platform_fee_bps=0"] });
    try {
      const there = at(own);
      const from = await own.agent({ name: "From" });
      const to = await own.agent({ name: "To" });
      await credit(own, from, "1000");
      const again = async () => {
        await own.kill();
        await own.startAgain();
      };
      const one = await there.hand(from, to, { price: "1", context: { a: 1 } });
      await again();
      assert.equal((await there.handoff(to, one.id)).state, "pending");
      await there.say(to, one.id, "accept");
      await again();
      assert.equal((await there.handoff(to, one.id)).state, "accepted");
      await there.say(to, one.id, "complete", { result: 7 });
      await again();
      assert.deepEqual([(await there.handoff(to, one.id)).state, (await money(own, to))[0]], ["completed", "1"]);

      // Killed while many are sent and declined: each is there whole or not at all, and what was declined is refunded.
      let stop = false;
      const ids = [];
      const answered = new Set();
      const sending = (async () => {
        while (!stop) {
          const sent = await there.offer(from, to, { price: "1" }).catch(() => null);
          if (sent?.data) ids.push(sent.data.id);
        }
      })();
      const declining = (async () => {
        for (let n = 0; !stop; ) {
          const id = ids[n];
          if (id === undefined) {
            await new Promise((resolve) => setTimeout(resolve, 1));
            continue;
          }
          n += 1;
          const said = await there.say(to, id, "decline").catch(() => null);
          if (said?.status === 200) answered.add(id);
        }
      })();
      await until("some are declined", () => answered.size >= 10, leniently(20_000));
      await own.kill();
      stop = true;
      await Promise.allSettled([sending, declining]);
      await own.startAgain();
      const tasks = [];
      for (let cursor = ""; cursor !== null; ) {
        const page = await there.ask("GET", `/tasks?limit=100${cursor}`, from);
        tasks.push(...page.data);
        cursor = page.body.meta.pagination.cursor && `&cursor=${page.body.meta.pagination.cursor}`;
      }
      const messages = [];
      for (let cursor = ""; cursor !== null; ) {
        const page = await there.ask("GET", `/messages?limit=100${cursor}`, from);
        messages.push(...page.data);
        cursor = page.body.meta.pagination.cursor && `&cursor=${page.body.meta.pagination.cursor}`;
      }
      assert.equal(tasks.length, messages.length, "a task for each message");
      for (const id of ids) assert.ok(messages.some((message) => message.id === id), "what was answered is there");
      const state = async (id) => (await there.handoff(from, id)).state;
      await until("what was declined is cancelled", async () => {
        for (const { id } of messages) {
          const { state, task } = await there.handoff(from, id);
          if (state === "declined" && task.status !== "cancelled") return false;
        }
        return true;
      }, leniently(10_000));
      for (const id of answered) assert.equal(await state(id), "declined");
      const states = await Promise.all(messages.map(({ id }) => state(id)));
      const held = states.filter((state) => state === "pending").length;
      assert.deepEqual(await money(own, from), [String(999 - held), held === 0 ? "0" : String(held)]);

      // The message goes; what was handed over stays, and a session that is over answers nothing.
      const open = await there.hand(from, to, {});
      const begun = await there.hand(from, to, {});
      await there.ok("POST", `/tasks/${(await there.handoff(to, begun.id)).task.id}/chunk`, to, { content: "begun" });
      const session = await own.ok("POST", "/api/v1/auth/authenticate", { key: to.key, body: {} });
      await own.ok("POST", "/api/v1/admin/drills/clock", { token: own.adminToken, body: { advance_ms: 7 * DAY_MS + 60_000 } });
      assert.equal((await there.ok("GET", `/messages/${one.id}`, from)).payload, null);
      assert.deepEqual((await there.handoff(from, one.id)).context, { a: 1 });
      refused(await there.say({ token: session.token }, open.id, "accept"), 401, "UNAUTHORIZED");
      // Who has not answered in time has declined, unless it has begun.
      await until("it is over", async () => (await there.handoff(from, open.id)).task.status === "cancelled");
      const over = await there.handoff(from, open.id);
      assert.deepEqual([over.state, over.reason, over.task.status], ["declined", "not answered in time", "cancelled"]);
      refused(await there.say(to, open.id, "accept"), 409, "HANDOFF_NOT_ACTIVE");
      assert.equal((await there.handoff(from, begun.id)).state, "pending");
      await assertSound(own);
    } finally {
      await own.end();
    }
  });

  test("R128: what an agent says of itself is in its presence, is told, and is found by", async () => {
    const [watcher, agent, other] = [await server.agent({ name: "Watcher" }), await server.agent({ name: "Said", capabilities: ["r128"] }), await server.agent({ name: "Other" })];
    const enter = async (who) => {
      const socket = await connect(VERSIONS.at(-1), server, "/socket", { api_key: who.key });
      open.push(socket);
      const channel = socket.channel("agents:discovery", {});
      const seen = { channel, updated: collect(channel, "agent_updated"), diffs: collect(channel, "presence_diff") };
      const states = collect(channel, "presence_state");
      assert.equal((await join(channel)).status, "ok");
      // What happens before the snapshot is in it, and is told no further.
      await until("the snapshot is there", () => states.length === 1);
      return seen;
    };
    const eyes = await enter(watcher);
    const own = await enter(agent);
    assert.equal((await push(own.channel, "update_metadata", { metadata: { region: "eu" } })).status, "ok");
    const mail = await box(other);
    const find = async (status) => {
      const { response } = await push(eyes.channel, "discover", { capability: "r128", filters: { status } });
      return response.agents.map(({ id, status: shown, online }) => [id, shown, online]);
    };
    const tell = (payload, more = {}) => api.ask("POST", "/messages", agent, { to_agent_id: other.id, type: "status_update", payload, ...more });
    assert.deepEqual(await find("online"), [[agent.id, "online", true]]);
    const said = { availability: "busy", load_percent: 80, health: { response_time_ms: 12, error_rate: 0.5 }, active_tasks: 3, progress: { of: 7 } };
    const sent = await tell({ ...said, reputation: 5 });
    assert.equal(sent.status, 201, sent.text);
    await until("all are told", () => eyes.updated.length === 1 && mail.messages.length === 1);
    const { metadata } = eyes.updated[0];
    assert.deepEqual([eyes.updated[0].agent_id, metadata.region], [agent.id, "eu"]);
    const { updated_at, ...status } = metadata.status;
    assert.deepEqual([status, updated_at], [said, sent.data.inserted_at]);
    assert.deepEqual([mail.messages[0].type, mail.messages[0].payload.availability], ["status_update", "busy"], "and delivered");
    const metas = () => eyes.diffs.flatMap(({ joins }) => joins[agent.id]?.metas ?? []);
    await until("presence shows it", () => metas().at(-1)?.status === "busy");
    assert.deepEqual(metas().at(-1).metadata.status, metadata.status);
    for (const [filter, expected] of [["busy", 1], ["online", 0], ["away", 0], ["offline", 0], ["any", 1]]) {
      assert.deepEqual(await find(filter), expected ? [[agent.id, "busy", true]] : [], filter);
    }
    const rest = async (query) => (await api.ok("GET", `/agents/discover?capability=r128&${query}`, other)).map(({ status: shown }) => shown);
    assert.deepEqual([await rest("status=busy"), await rest("online_only=true"), await rest("status=online")], [["busy"], ["busy"], []]);

    // Over a socket; what is not said stays.
    const agentBox = await box(agent);
    assert.equal((await push(agentBox.channel, "send_message", { to_agent_id: other.id, type: "status_update", payload: { availability: "away", progress: null } })).status, "ok");
    assert.deepEqual(await find("away"), [[agent.id, "away", true]]);
    const record = await api.ok("GET", `/agents/${agent.id}`, other);
    assert.deepEqual([record.metadata.status.load_percent, record.metadata.status.progress], [80, undefined]);
    // Nothing else sets it: not the agent by its metadata, and nobody for another.
    assert.equal((await push(own.channel, "update_metadata", { metadata: { status: { availability: "online" } } })).response.reason, "invalid_payload");
    refused(await api.ask("POST", "/messages", other, { from_agent_id: agent.id, to_agent_id: watcher.id, type: "status_update", payload: { availability: "online" } }), 403, "FORBIDDEN");
    refused(await tell({ availability: "asleep" }), 422, "VALIDATION_ERROR", "payload.availability");
    refused(await tell({ progress: "x".repeat(10_000) }), 422, "VALIDATION_ERROR", "payload");
    assert.deepEqual(await find("away"), [[agent.id, "away", true]]);

    // A repeat of what is old brings nothing back.
    const once = { delivery_guarantee: "exactly_once", dedup_key: "s1" };
    assert.equal((await tell({ availability: "busy" }, once)).status, 201);
    assert.equal((await tell({ availability: "online" })).status, 201);
    assert.equal((await tell({ availability: "busy" }, once)).data.deduplicated, true);
    assert.deepEqual(await find("online"), [[agent.id, "online", true]]);
    assert.equal((await tell({ availability: "offline" })).status, 201);
    assert.deepEqual([await find("offline"), await find("online")], [[[agent.id, "offline", false]], []]);
  });
});

describe("on two nodes", () => {
  const world = onCluster({ count: 2, redis: false });
  const agents = async () => {
    const [from, to] = [await world.one.agent({ name: "From" }), await world.one.agent({ name: "To", capabilities: ["code", "r128c"] })];
    await credit(world.one, from, "10");
    return [from, to];
  };
  const enter = async (node, who, topic) => {
    const socket = await connect(VERSIONS.at(-1), node, "/socket", { api_key: who.key });
    world.open.push(() => socket.disconnect());
    const channel = socket.channel(topic, {});
    assert.equal((await join(channel)).status, "ok");
    return channel;
  };

  test("R127: two answers at once at two nodes: one wins, and both parties hear of it wherever they are", async () => {
    const [from, to] = await agents();
    const [one, two] = [at(world.one), at(world.two)];
    const updates = [
      collect(await enter(world.two, from, `messages:${from.id}`), "handoff_updated"),
      collect(await enter(world.one, to, `messages:${to.id}`), "handoff_updated"),
    ];
    const tally = { accepted: 0, declined: 0 };
    for (let n = 0; n < 10; n += 1) {
      const { id } = await one.hand(from, to, { price: "1" });
      const answers = await Promise.all([one.say(to, id, "accept"), two.say(to, id, "decline")]);
      const won = answers.filter(({ status }) => status === 200);
      assert.equal(won.length, 1, answers.map(({ text }) => text).join("\n"));
      refused(answers.find(({ status }) => status !== 200), 409, "HANDOFF_NOT_ACTIVE");
      const { state } = await two.handoff(from, id);
      assert.equal(won[0].data.state, state);
      tally[state] += 1;
      if (state === "accepted") {
        const ends = await Promise.all([one.say(to, id, "complete", { result: n }), two.say(to, id, "fail")]);
        assert.equal(ends.filter(({ status }) => status === 200).length, 1, "ended once");
      }
      const final = (await one.handoff(from, id)).state;
      for (const told of updates) await until("both are told", () => told.some((update) => update.id === id && update.state === final));
    }
    assert.equal(tally.accepted + tally.declined, 10);
    const [available, escrow] = await money(world.two, from);
    const [earned] = await money(world.two, to);
    assert.deepEqual([Number(available) + Number(earned), escrow], [10, "0"]);
    await assertSound(world.one);
  });

  test("R127: what was declined at a node that did not live to cancel the task is cancelled by another, and refunded once", async () => {
    const [from, to] = await agents();
    const api = at(world.two);
    const told = collect(await enter(world.two, from, `messages:${from.id}`), "handoff_updated");
    const { id } = await api.hand(from, to, { price: "4" });
    // As the store is after the first of the two steps.
    await world.cluster.postgres.query(`UPDATE handoffs SET declined_at = created_at, reason = 'gone', to_cancel = true WHERE message = '${id}'`);
    await until("it is cancelled", async () => (await api.handoff(from, id)).task.status === "cancelled", leniently(10_000));
    await until("it is told", () => told.some(({ state, reason }) => state === "declined" && reason === "gone"));
    await until("it is done", async () => (await world.cluster.postgres.query("SELECT 1 FROM handoffs WHERE to_cancel")).length === 0);
    const { state, task } = await api.handoff(to, id);
    assert.deepEqual([state, task.escrow], ["declined", "refunded"]);
    assert.deepEqual(await money(world.one, from), ["10", "0"]);
    await assertSound(world.one);
  });

  test("R127: many accept at once at two nodes: accepted once", async () => {
    const [from, to] = await agents();
    const nodes = [at(world.one), at(world.two)];
    const told = collect(await enter(world.two, from, `messages:${from.id}`), "handoff_updated");
    const { id } = await nodes[0].hand(from, to, { price: "1" });
    const answers = await Promise.all(Array.from({ length: 8 }, (_, n) => nodes[n % 2].say(to, id, "accept")));
    assert.equal(new Set(answers.map(({ data }) => data?.accepted_at)).size, 1, answers.map(({ text }) => text).join("\n"));
    await until("the sender is told", () => told.some(({ state }) => state === "accepted"));
  });

  test("R128: who says at one node that it is busy is busy at the other", async () => {
    const [from, to] = await agents();
    await enter(world.one, to, "agents:discovery");
    const eyes = await enter(world.two, from, "agents:discovery");
    const updated = collect(eyes, "agent_updated");
    const find = async (status) => (await push(eyes, "discover", { capability: "r128c", filters: { status } })).response.agents.filter(({ id }) => id === to.id).map((agent) => agent.status);
    await until("it is there", async () => (await find("online")).length === 1);
    await at(world.two).ok("POST", "/messages", to, { to_agent_id: from.id, type: "status_update", payload: { availability: "busy" } });
    await until("it is busy", async () => (await find("busy")).length === 1);
    assert.deepEqual([await find("online"), await find("any")], [[], ["busy"]]);
    await until("it is told", () => updated.some(({ agent_id, metadata }) => agent_id === to.id && metadata.status.availability === "busy"));
  });
});
