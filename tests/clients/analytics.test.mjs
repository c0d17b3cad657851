// Figures and alerts on the topics `analytics:…`, and over REST.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { onCluster } from "./lib/cluster.mjs";
import { credit, openChannel } from "./lib/money.mjs";
import { collect, join, push } from "./lib/phoenix.mjs";
import { leniently, Server, until } from "./lib/server.mjs";
import { Connections, rate, ROOMY } from "./lib/streams.mjs";

const PERIODS = ["1h", "24h", "7d", "30d", "90d", "all"];
const UNKNOWN_ID = "01a00000-0000-7000-8000-000000000000";
const ISO = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;
const HOUR_MS = 3_600_000;

const secret = (who) => who.key ?? who.token;

/** What the tests do with a node. */
function tools(world) {
  /** A joined channel of a topic on the main socket, or why it was refused. */
  world.join = async (who, topic, server = world.server) => {
    // Shows life often: what it does not acknowledge is given up in time.
    const socket = await world.connections.socket(server, "/socket", secret(who), { heartbeatIntervalMs: 300 });
    const channel = socket.channel(topic, {});
    const alerts = collect(channel, "alert");
    const stats = collect(channel, "global_stats");
    const joined = await join(channel);
    return { channel, joined, alerts, stats, socket };
  };
  world.figures = async (who, topic, server) => {
    const joined = await world.join(who, topic, server);
    assert.equal(joined.joined.status, "ok", `${topic}: ${JSON.stringify(joined.joined)}`);
    const ask = (event, payload) => push(joined.channel, event, payload);
    const ok = async (event, payload = {}) => {
      const answer = await ask(event, payload);
      assert.equal(answer.status, "ok", `${event}: ${JSON.stringify(answer)}`);
      return answer.response;
    };
    return { ...joined, ask, ok };
  };
  world.complete = (task, provider, server = world.server) => server.ok("PUT", `/api/v1/tasks/${task.id}/complete`, { key: provider.key, body: { output: 1 } });
  world.fail = (task, provider) => world.server.ok("PUT", `/api/v1/tasks/${task.id}/fail`, { key: provider.key, body: { error_reason: "no" } });
  world.cancel = (task, client) => world.server.ok("POST", `/api/v1/tasks/${task.id}/cancel`, { key: client.key, body: {} });
  world.advance = (ms, server = world.server) => server.ok("POST", "/api/v1/admin/drills/clock", { token: server.adminToken, body: { advance_ms: ms } });
}

function onNode(title, set, define) {
  describe(title, () => {
    const world = { connections: new Connections() };
    tools(world);
    before(async () => {
      world.server = await Server.start({ set: [...ROOMY, "drills.enabled=true", ...set] });
    });
    after(async () => {
      await world.connections.close();
      await world.server?.end();
    });
    define(world);
  });
}

onNode("figures", ["ledger.platform_fee_bps=500"], (world) => {
  test("R101: an agent's figures are for itself and its owner, a user's for the user and their agents", async () => {
    const { server } = world;
    const [owner, other] = [await server.user("Owner"), await server.user("Other")];
    const [agent, sibling] = [await server.agent({ owner }), await server.agent({ owner })];
    const stranger = await server.agent({ name: "Stranger" });
    const session = await server.ok("POST", "/api/v1/auth/authenticate", { key: agent.key, body: {} });
    const status = async (who, topic) => {
      const { joined } = await world.join(who, topic);
      if (joined.status !== "ok") assert.deepEqual(joined.response, { reason: "unauthorized" }, topic);
      return joined.status;
    };
    const mine = `analytics:agent:${agent.id}`;
    for (const [who, expected] of [[agent, "ok"], [owner, "ok"], [sibling, "error"], [stranger, "error"], [other, "error"]]) {
      assert.equal(await status(who, mine), expected, `${who.name} of ${mine}`);
    }
    const socket = await world.connections.socket(server, "/socket", undefined, { params: { session_token: session.token } });
    assert.equal((await join(socket.channel(mine, {}))).status, "ok", "by a session");
    const ours = `analytics:user:${owner.id}`;
    for (const [who, expected] of [[owner, "ok"], [agent, "ok"], [sibling, "ok"], [stranger, "error"], [other, "error"]]) {
      assert.equal(await status(who, ours), expected, `${who.name} of ${ours}`);
    }
    for (const who of [agent, stranger, owner]) assert.equal(await status(who, "analytics:global"), "ok");
    // What there is not answers like what is another's.
    for (const topic of [`analytics:agent:${UNKNOWN_ID}`, "analytics:agent:x", `analytics:user:${UNKNOWN_ID}`, `analytics:user:${agent.id}`]) {
      assert.equal(await status(owner, topic), "error", topic);
      assert.equal(await status(stranger, topic), "error", topic);
    }
    const { joined } = await world.join(agent, "analytics:everything");
    assert.equal(joined.response.reason, "unmatched topic");
  });

  test("R101: revoking a key ends what is joined under it, and it joins nothing any more", async () => {
    const { server } = world;
    const agent = await server.agent();
    const { socket } = await world.figures(agent, `analytics:agent:${agent.id}`);
    await server.ok("POST", "/api/v1/auth/rotate-key", { key: agent.key, body: {} });
    await until("the socket is closed", () => socket.recorded.closes.length > 0);
    const refused = await server.request("GET", `/api/v1/analytics/agents/${agent.id}/metrics`, { key: agent.key });
    assert.equal(refused.status, 401);
  });

  test("R102: what an agent does is counted as it happens, for it and its owner and all", async () => {
    const { server } = world;
    const owner = await server.user("Owner");
    const [one, two] = [await server.agent({ owner }), await server.agent({ owner })];
    const client = await server.agent({ name: "Client" });
    const everybody = await world.figures(client, "analytics:global");
    const before = await everybody.ok("request_metrics");
    const mine = await world.figures(one, `analytics:agent:${one.id}`);
    const empty = await mine.ok("request_metrics");
    assert.deepEqual([empty.tasks_total, empty.success_rate, empty.avg_duration_ms, empty.revenue, empty.chunks], [0, null, null, "0", 0]);
    const tasks = [];
    for (let n = 0; n < 5; n++) tasks.push(await server.task(client, one));
    for (const n of [1, 2, 3]) assert.equal((await server.emit(tasks[0], one, `chunk ${n}`)).status < 300, true);
    await world.complete(tasks[0], one);
    await world.complete(tasks[1], one);
    await world.complete(tasks[2], one);
    await world.fail(tasks[3], one);
    await world.cancel(tasks[4], client);
    await server.ok("POST", `/api/v1/tasks/${tasks[0].id}/messages`, { key: client.key, body: { content: "thanks" } });
    await world.complete(await server.task(client, two), two);
    const got = await mine.ok("request_metrics", { period: "1h" });
    assert.deepEqual(
      [got.period, got.tasks_total, got.tasks_completed, got.tasks_failed, got.tasks_cancelled, got.success_rate, got.chunks],
      ["1h", 5, 3, 1, 1, 0.75, 3],
    );
    assert.deepEqual([got.messages_sent, got.messages_received], [0, 1]);
    assert.match(got.from, ISO);
    assert.ok(Date.parse(got.to) - Date.parse(got.from) >= HOUR_MS);
    assert.ok(Number.isInteger(got.avg_duration_ms) && got.avg_duration_ms >= 0 && got.avg_duration_ms < 60_000);
    const sent = await (await world.figures(client, `analytics:agent:${client.id}`)).ok("request_metrics");
    assert.deepEqual([sent.tasks_total, sent.messages_sent, sent.messages_received], [0, 1, 0], "tasks count for their provider");
    const ours = await (await world.figures(owner, `analytics:user:${owner.id}`)).ok("request_metrics");
    assert.deepEqual([ours.tasks_total, ours.tasks_completed, ours.chunks], [6, 4, 3]);
    const all = await everybody.ok("request_metrics");
    assert.deepEqual([all.tasks_total - before.tasks_total, all.chunks - before.chunks], [6, 3]);
    const rest = await server.ok("GET", `/api/v1/analytics/agents/${one.id}/metrics?period=1h`, { token: owner.token });
    assert.deepEqual({ ...rest, from: got.from, to: got.to }, got, "the same over REST");
  });

  test("R103: a metric over time has a point for each interval, at most 1000, and unknown ones are named", async () => {
    const { server } = world;
    const [client, agent] = [await server.agent(), await server.agent()];
    await world.complete(await server.task(client, agent), agent);
    const mine = await world.figures(agent, `analytics:agent:${agent.id}`);
    const minutes = await mine.ok("request_time_series", { metric: "tasks_completed", opts: { period: "1h", interval: "minute" } });
    assert.deepEqual([minutes.metric, minutes.interval], ["tasks_completed", "minute"]);
    assert.ok(minutes.points.length === 61, `${minutes.points.length}`);
    assert.equal(minutes.points.reduce((sum, { v }) => sum + v, 0), 1);
    for (const [n, { t }] of minutes.points.entries()) {
      assert.match(t, ISO);
      if (n > 0) assert.equal(Date.parse(t) - Date.parse(minutes.points[n - 1].t), 60_000);
    }
    for (const period of PERIODS) {
      for (const interval of ["minute", "hour", "day"]) {
        const series = await mine.ok("request_time_series", { metric: "tasks_total", opts: { period, interval } });
        assert.ok(series.points.length >= 1 && series.points.length <= 1000, `${period} ${interval}: ${series.points.length}`);
        assert.equal(series.points.reduce((sum, { v }) => sum + v, 0), 1, `${period} by ${interval}`);
      }
    }
    assert.equal((await mine.ok("request_time_series", { metric: "success_rate" })).points.at(-1).v, 1);
    const refused = await mine.ask("request_time_series", { metric: "secrets", opts: {} });
    assert.equal(refused.response.reason, "unknown_metric");
    assert.ok(refused.response.metrics.includes("tasks_completed") && refused.response.metrics.includes("revenue"));
    for (const name of refused.response.metrics) await mine.ok("request_time_series", { metric: name });
    for (const payload of [{}, { metric: 7 }, { metric: "chunks", opts: { interval: "second" } }, { metric: "chunks", opts: 7 }]) {
      assert.equal((await mine.ask("request_time_series", payload)).response.reason, "invalid_payload", JSON.stringify(payload));
    }
    const rest = await server.ok("GET", `/api/v1/analytics/agents/${agent.id}/time-series?metric=tasks_completed&period=1h`, { key: agent.key });
    assert.equal(rest.points.reduce((sum, { v }) => sum + v, 0), 1);
  });

  test("R104: revenue has a total, a currency, days and capabilities, and names no agent", async () => {
    const { server } = world;
    const agent = await server.agent();
    for (const topic of [`analytics:agent:${agent.id}`, "analytics:global"]) {
      const revenue = await (await world.figures(agent, topic)).ok("request_revenue", { period: "7d" });
      assert.deepEqual(Object.keys(revenue).sort(), ["by_capability", "by_day", "currency", "period", "total"]);
      assert.match(revenue.total, /^\d+(\.\d+)?$/);
      assert.deepEqual([revenue.currency, revenue.period], ["USD", "7d"]);
      assert.ok(!JSON.stringify(revenue).includes(agent.id));
    }
  });

  test("R102 R104: what was paid is its payee's revenue, less the fee, for it and its owner and all; what was given back is nobody's", async () => {
    const { server } = world;
    const owner = await server.user("Owner");
    const provider = await server.agent({ owner, name: "Provider", price: "4" });
    const sibling = await server.agent({ owner, name: "Sibling", price: "1" });
    const client = await server.agent({ name: "Client" });
    await credit(server, client, "100");
    const global = await world.figures(client, "analytics:global");
    const before = await global.ok("request_revenue", { period: "30d" });
    const hire = async (agent) => (await server.ok("POST", `/api/v1/agents/${agent.id}/hire`, { key: client.key, body: { input: {}, queue: true } })).task;
    const [done, again, failed, withdrawn] = [await hire(provider), await hire(provider), await hire(provider), await hire(provider)];
    assert.equal(done.escrow, "held");
    await world.complete(done, provider);
    await world.complete(again, provider);
    await world.fail(failed, provider);
    await world.cancel(withdrawn, client);
    await world.complete(await hire(sibling), sibling);
    const unpaid = await server.task(await server.agent({ name: "Settles elsewhere" }), provider);
    await world.complete(unpaid, provider);
    const mine = await world.figures(provider, `analytics:agent:${provider.id}`);
    const revenue = await mine.ok("request_revenue", { period: "24h" });
    assert.deepEqual([revenue.total, revenue.by_capability], ["7.6", [{ capability: done.capability, amount: "7.6" }]]);
    assert.deepEqual(revenue.by_day.map(({ amount }) => amount).filter((amount) => amount !== "0"), ["7.6"]);
    assert.equal((await mine.ok("request_metrics")).revenue, "7.6");
    const series = await mine.ok("request_time_series", { metric: "revenue", opts: { period: "1h", interval: "hour" } });
    assert.deepEqual(series.points.map(({ v }) => v).filter((v) => v !== "0"), ["7.6"]);
    const ours = await world.figures(owner, `analytics:user:${owner.id}`);
    assert.equal((await ours.ok("request_revenue")).total, "8.55");
    const spent = await world.figures(client, `analytics:agent:${client.id}`);
    assert.equal((await spent.ok("request_revenue")).total, "0", "who pays earns nothing");
    const all = await global.ok("request_revenue", { period: "30d" });
    assert.ok(Math.abs(all.total - before.total - 8.55) < 1e-6, `${before.total} and then ${all.total}`);
    for (const { id } of [provider, sibling, client]) assert.ok(!JSON.stringify(all).includes(id));
    const rest = await server.ok("GET", `/api/v1/analytics/agents/${provider.id}/revenue?period=24h`, { token: owner.token });
    assert.deepEqual(rest, revenue);
  });

  test("R104 R96: a transfer that is executed is the payee's revenue, and a payout what it gives a side beyond its own", async () => {
    const { server } = world;
    const pair = await openChannel(server, { deposit: "10" });
    const sides = await pair.join(world.connections);
    const [a, b] = [await world.figures(pair.a, `analytics:agent:${pair.a.id}`), await world.figures(pair.b, `analytics:agent:${pair.b.id}`)];
    const totals = async () => [(await a.ok("request_revenue")).total, (await b.ok("request_revenue")).total];
    assert.deepEqual(await totals(), ["0", "0"], "what is put in is earned by nobody");
    await pair.pay(sides, pair.a, "2.5");
    await pair.pay(sides, pair.b, "1");
    const { propose } = await pair.transfer(pair.a, "3");
    await sides[0].ask("propose_transfer", propose);
    await sides[1].ask("reject_transfer", {});
    assert.deepEqual(await totals(), ["1", "2.5"]);
    assert.equal((await sides[0].ask("close", pair.closing("8", "12", 3))).status, "closed");
    assert.deepEqual(await totals(), ["1", "3"], "the other had 11.5");
    assert.deepEqual((await b.ok("request_revenue")).by_capability, [{ capability: "payment", amount: "3" }]);
  });

  test("R102: messages count for who sent them and who was sent them, each once", async () => {
    const { server } = world;
    const owner = await server.user("Owner");
    const [from, to] = [await server.agent({ owner }), await server.agent()];
    const global = await world.figures(from, "analytics:global");
    const before = await global.ok("request_metrics");
    const send = (body) => server.request("POST", "/api/v1/messages", { key: from.key, body: { to_agent_id: to.id, type: "note", payload: {}, ...body } });
    for (let n = 0; n < 3; n++) assert.equal((await send({ payload: { n } })).status, 201);
    const once = { delivery_guarantee: "exactly_once", dedup_key: "k" };
    for (let n = 0; n < 4; n++) assert.equal((await send(once)).data.deduplicated, n > 0);
    assert.equal((await send({ ...once, payload: { n: 2 } })).status, 422);
    assert.equal((await send({ to_agent_id: UNKNOWN_ID })).status, 404);
    const batch = { messages: [1, 2].map((n) => ({ to_agent_id: to.id, type: "note", payload: { n } })) };
    await server.ok("POST", "/api/v1/messages/batch", { key: from.key, body: batch });
    const of = async (who, topic) => {
      const { messages_sent, messages_received } = await (await world.figures(who, topic)).ok("request_metrics", { period: "1h" });
      return [messages_sent, messages_received];
    };
    assert.deepEqual(await of(from, `analytics:agent:${from.id}`), [6, 0]);
    assert.deepEqual(await of(to, `analytics:agent:${to.id}`), [0, 6]);
    assert.deepEqual(await of(owner, `analytics:user:${owner.id}`), [6, 0]);
    const after = await global.ok("request_metrics");
    assert.deepEqual([after.messages_sent - before.messages_sent, after.messages_received - before.messages_received], [6, 6]);
  });

  test("R105: the heatmap is 7 by 24 counts, UTC", async () => {
    const { server } = world;
    const [client, agent] = [await server.agent(), await server.agent()];
    const created = [await server.task(client, agent), await server.task(client, agent), await server.task(client, agent)];
    const map = await (await world.figures(agent, `analytics:agent:${agent.id}`)).ok("request_heatmap", { period: "30d" });
    assert.deepEqual([map.counts.length, ...map.counts.map((row) => row.length)], [7, ...Array(7).fill(24)]);
    assert.equal(map.counts.flat().reduce((a, b) => a + b), 3);
    const expected = Array.from({ length: 7 }, () => Array(24).fill(0));
    for (const { created_at } of created) expected[(new Date(created_at).getUTCDay() + 6) % 7][new Date(created_at).getUTCHours()] += 1;
    assert.deepEqual(map.counts, expected);
  });

  test("R108: a period is one of six, 24 hours when there is none, and others are refused", async () => {
    const { server } = world;
    const agent = await server.agent();
    const mine = await world.figures(agent, `analytics:agent:${agent.id}`);
    assert.equal((await mine.ok("request_metrics")).period, "24h");
    for (const event of ["request_metrics", "request_revenue", "request_heatmap"]) {
      for (const period of PERIODS) assert.equal((await mine.ok(event, { period })).period, period);
      for (const period of ["2h", "", "ALL", "1 h"]) {
        const { status, response } = await mine.ask(event, { period });
        assert.deepEqual([status, response.reason, response.periods], ["error", "invalid_period", PERIODS], `${event} ${period}`);
      }
    }
    assert.equal((await mine.ask("request_time_series", { metric: "chunks", opts: { period: "1y" } })).response.reason, "invalid_period");
    assert.equal((await mine.ask("request_everything", {})).response.reason, "unknown_event");
    const rest = await server.request("GET", `/api/v1/analytics/agents/${agent.id}/metrics?period=1y`, { key: agent.key });
    assert.deepEqual([rest.status, rest.error.code, rest.error.details.reason], [422, "VALIDATION_ERROR", "invalid_period"]);
  });

  test("R101: over REST an agent of others is one that there is not", async () => {
    const { server } = world;
    const [owner, other] = [await server.user("Owner"), await server.user("Other")];
    const agent = await server.agent({ owner });
    const stranger = await server.agent();
    for (const path of ["metrics", "time-series?metric=chunks", "revenue", "heatmap"]) {
      for (const who of [{ key: stranger.key }, { token: other.token }]) {
        const mine = await server.request("GET", `/api/v1/analytics/agents/${agent.id}/${path}`, who);
        const none = await server.request("GET", `/api/v1/analytics/agents/${UNKNOWN_ID}/${path}`, who);
        assert.deepEqual([mine.status, mine.error.code, none.status, none.error.code], [404, "NOT_FOUND", 404, "NOT_FOUND"], path);
      }
      for (const who of [{ key: agent.key }, { token: owner.token }]) await server.ok("GET", `/api/v1/analytics/agents/${agent.id}/${path}`, who);
      assert.equal((await server.request("GET", `/api/v1/analytics/agents/${agent.id}/${path}`)).status, 401);
    }
  });
});

onNode("figures over time", [], (world) => {
  test("R102 R103: figures of yesterday are in longer periods, after a restart too, and days stay", async () => {
    const { server } = world;
    const [client, agent] = [await server.agent(), await server.agent()];
    await world.complete(await server.task(client, agent), agent);
    const counts = async () => {
      const found = {};
      for (const period of PERIODS) {
        const metrics = await server.ok("GET", `/api/v1/analytics/agents/${agent.id}/metrics?period=${period}`, { key: agent.key });
        found[period] = metrics.tasks_completed;
      }
      return found;
    };
    assert.deepEqual(await counts(), { "1h": 1, "24h": 1, "7d": 1, "30d": 1, "90d": 1, all: 1 });
    await world.advance(2 * HOUR_MS);
    assert.deepEqual(await counts(), { "1h": 0, "24h": 1, "7d": 1, "30d": 1, "90d": 1, all: 1 });
    await world.advance(48 * HOUR_MS);
    assert.deepEqual(await counts(), { "1h": 0, "24h": 0, "7d": 1, "30d": 1, "90d": 1, all: 1 });
    await world.advance(300 * 24 * HOUR_MS);
    assert.deepEqual(await counts(), { "1h": 0, "24h": 0, "7d": 0, "30d": 0, "90d": 0, all: 1 });
    const series = await server.ok("GET", `/api/v1/analytics/agents/${agent.id}/time-series?metric=tasks_completed&period=all`, { key: agent.key });
    assert.ok(series.points.length > 300 && series.points[0].v === 1, `${series.points.length}`);
    await server.stop();
    await server.startAgain();
    assert.equal((await counts()).all, 1, "after a restart");
  });
});

onNode("global stats", [], (world) => {
  test("R107: whoever joins analytics:global is told what there is in all, and again every 10 s", async () => {
    const { server } = world;
    const [client, agent] = [await server.agent(), await server.agent()];
    await server.task(client, agent);
    const { joined, stats } = await world.join(agent, "analytics:global");
    assert.equal(joined.status, "ok");
    const first = await until("global_stats", () => stats[0]);
    assert.deepEqual(Object.keys(first).sort(), ["system_load", "total_agents", "total_tasks"]);
    assert.deepEqual([first.total_agents, first.total_tasks], [2, 1]);
    assert.ok(first.system_load >= 0, `${first.system_load}`);
    await server.agent();
    await server.task(client, agent);
    const next = await until("what has changed since", () => stats.find(({ total_tasks }) => total_tasks === 2), leniently(10_000));
    assert.equal(next.total_agents, 3);
    // On no other topic.
    const mine = await world.join(agent, `analytics:agent:${agent.id}`);
    assert.deepEqual(mine.stats, []);
  });
});

onNode("alerts", ["alerts.every_ms=200", "limits.message_retry_ms=20"], (world) => {
  test("R106 R119: messages to an agent that were given up are told to it and its owner, and to nobody else", async () => {
    const { server } = world;
    const owner = await server.user("Owner");
    const [from, to] = [await server.agent({ name: "From" }), await server.agent({ owner, name: "To" })];
    const mine = await world.figures(to, `analytics:agent:${to.id}`);
    const ours = await world.figures(owner, `analytics:user:${owner.id}`);
    const sender = await world.figures(from, `analytics:agent:${from.id}`);
    for (const one of [mine, ours, sender]) await one.ok("subscribe_alerts");
    const { joined } = await world.join(to, `messages:${to.id}`);
    assert.equal(joined.status, "ok");
    for (let n = 0; n < 2; n++) await server.ok("POST", "/api/v1/messages", { key: from.key, body: { to_agent_id: to.id, type: "note", payload: { n } } });
    const told = await until("it is told", () => mine.alerts[0]);
    assert.deepEqual([told.severity, told.type, told.agent_id], ["error", "dead_letters", to.id]);
    await until("the owner is told", () => ours.alerts.length === 1);
    await world.advance(20 * 60_000);
    const over = await until("it is over", () => mine.alerts[1]);
    assert.deepEqual([over.severity, over.type], ["info", "dead_letters"]);
    assert.deepEqual([mine.alerts.length, sender.alerts], [2, []]);
  });

  test("R106: who has subscribed is told of a failing agent once, worse, and when it is over; nobody else is", async () => {
    const { server } = world;
    const owner = await server.user("Owner");
    const [client, agent] = [await server.agent({ name: "Client" }), await server.agent({ owner })];
    const mine = await world.figures(agent, `analytics:agent:${agent.id}`);
    const silent = await world.figures(agent, `analytics:agent:${agent.id}`);
    const ours = await world.figures(owner, `analytics:user:${owner.id}`);
    const others = await world.figures(client, `analytics:agent:${client.id}`);
    const all = await world.figures(client, "analytics:global");
    for (const one of [mine, ours, others, all]) assert.deepEqual(await one.ok("subscribe_alerts"), {});
    assert.deepEqual(await mine.ok("subscribe_alerts"), {}, "again is as once");
    for (let n = 0; n < 4; n++) await world.fail(await server.task(client, agent), agent);
    for (let n = 0; n < 9; n++) await world.complete(await server.task(client, agent), agent);
    const warning = await until("a warning", () => mine.alerts[0]);
    assert.deepEqual(Object.keys(warning).sort(), ["agent_id", "at", "id", "message", "severity", "type"]);
    assert.deepEqual([warning.severity, warning.type, warning.agent_id], ["warning", "failure_rate", agent.id]);
    assert.match(warning.at, ISO);
    for (let n = 0; n < 6; n++) await world.fail(await server.task(client, agent), agent);
    await until("an error", () => mine.alerts.find(({ severity }) => severity === "error"));
    await world.advance(20 * 60_000);
    await until("it is over", () => mine.alerts.find(({ severity }) => severity === "info"));
    assert.deepEqual(mine.alerts.map(({ severity }) => severity), ["warning", "error", "info"], "each once");
    assert.equal(new Set(mine.alerts.map(({ id }) => id)).size, 3);
    await until("the owner was told the same", () => ours.alerts.length === 3);
    assert.deepEqual(ours.alerts, mine.alerts);
    assert.deepEqual([silent.alerts, others.alerts, all.alerts], [[], [], []]);
  });

  test("R106: an agent that goes offline with a task in progress, and comes back", async () => {
    const { server } = world;
    const [client, agent] = [await server.agent({ name: "Client" }), await server.agent()];
    const mine = await world.figures(agent, `analytics:agent:${agent.id}`);
    await mine.ok("subscribe_alerts");
    const online = new Connections();
    const channel = await online.agent(server, agent);
    const task = await server.task(client, agent);
    assert.equal((await push(channel, "task.stream_chunk", { task_id: task.id, content: "x" })).status, "ok");
    await online.close();
    const gone = await until("it is told", () => mine.alerts[0]);
    assert.deepEqual([gone.severity, gone.type, gone.agent_id], ["warning", "offline_with_tasks", agent.id]);
    await world.connections.agent(server, agent);
    const back = await until("it is over", () => mine.alerts[1]);
    assert.deepEqual([back.severity, back.type], ["info", "offline_with_tasks"]);
  });
});

onNode("an agent that stands still", ["alerts.every_ms=200", "alerts.stalled_open_min=3"], (world) => {
  test("R106: open tasks of which none is completed for ten minutes are told", async () => {
    const { server } = world;
    const [client, agent] = [await server.agent({ name: "Client" }), await server.agent()];
    const mine = await world.figures(agent, `analytics:agent:${agent.id}`);
    await mine.ok("subscribe_alerts");
    const tasks = [];
    for (let n = 0; n < 4; n++) tasks.push(await server.task(client, agent));
    await world.advance(11 * 60_000);
    const told = await until("it is told", () => mine.alerts[0]);
    assert.deepEqual([told.severity, told.type], ["warning", "stalled"]);
    await world.complete(tasks[0], agent);
    assert.equal((await until("it is over", () => mine.alerts[1])).severity, "info");
  });
});

onNode("figures that are dropped", ["alerts.every_ms=200", "limits.analytics_entries_max=1"], (world) => {
  test("R106: a node that drops figures says so to all, and the work goes on", async () => {
    const { server } = world;
    const [client, agent] = [await server.agent(), await server.agent()];
    const all = await world.figures(client, "analytics:global");
    await all.ok("subscribe_alerts");
    await world.complete(await server.task(client, agent), agent);
    const told = await until("it is told", () => all.alerts[0]);
    assert.deepEqual([told.severity, told.type, told.agent_id], ["critical", "figures_dropped", null]);
    assert.equal((await until("it is over", () => all.alerts[1])).severity, "info");
  });
});

onNode("many agents, looked at two at a time", ["alerts.every_ms=100", "alerts.stalled_open_min=3", "alerts.agents_per_round=2"], (world) => {
  test("R106: however many stand still or go at once, each is told of", { timeout: 120_000 }, async () => {
    const { server } = world;
    const client = await server.agent({ name: "Client" });
    const agents = await Promise.all(Array.from({ length: 7 }, () => server.agent()));
    const online = new Connections();
    const watched = [];
    for (const agent of agents) {
      const mine = await world.figures(agent, `analytics:agent:${agent.id}`);
      await mine.ok("subscribe_alerts");
      watched.push(mine);
      const channel = await online.agent(server, agent);
      const tasks = [];
      for (let n = 0; n < 3; n++) tasks.push(await server.task(client, agent));
      assert.equal((await push(channel, "task.stream_chunk", { task_id: tasks[0].id, content: "x" })).status, "ok");
    }
    await online.close();
    const told = (type, severity) => (mine) => mine.alerts.some((alert) => alert.type === type && alert.severity === severity);
    await until("all that went", () => watched.every(told("offline_with_tasks", "warning")));
    await world.advance(11 * 60_000);
    await until("all that stand still", () => watched.every(told("stalled", "warning")));
    for (const agent of agents) await world.connections.agent(server, agent);
    await until("all that are back", () => watched.every(told("offline_with_tasks", "info")));
    for (const mine of watched) assert.equal(new Set(mine.alerts.map(({ type, severity }) => type + severity)).size, mine.alerts.length, "each once");
  });
});

onNode("the rate of questions", [`limits.requests_per_credential=${rate(5, 1, 600_000)}`], (world) => {
  test("R102 R169: a question on a topic takes from the rate of its credential as one over REST does", async () => {
    const agent = await world.server.agent();
    const mine = await world.figures(agent, `analytics:agent:${agent.id}`);
    for (const event of ["request_metrics", "request_revenue", "request_heatmap"]) await mine.ok(event);
    await mine.ok("request_time_series", { metric: "chunks" });
    assert.equal((await world.server.request("GET", `/api/v1/analytics/agents/${agent.id}/metrics`, { key: agent.key })).status, 200);
    const refused = await mine.ask("request_metrics", {});
    assert.deepEqual([refused.status, refused.response.reason], ["error", "rate_limited"]);
    assert.ok(refused.response.retry_after_ms > 0);
    assert.equal((await world.server.request("GET", `/api/v1/analytics/agents/${agent.id}/metrics`, { key: agent.key })).status, 429);
    assert.deepEqual(await mine.ok("subscribe_alerts"), {}, "no question");
    const other = await world.server.agent();
    await (await world.figures(other, `analytics:agent:${other.id}`)).ok("request_metrics");
  });
});

onNode("the limit of joins", [`limits.joins_per_agent=${rate(3, 1, 600_000)}`], (world) => {
  test("R101: joins of figures count against the agent's joins, asking does not", async () => {
    const { server } = world;
    const agent = await server.agent();
    const mine = await world.figures(agent, `analytics:agent:${agent.id}`);
    for (let n = 0; n < 10; n++) await mine.ok("request_metrics");
    for (let n = 0; n < 2; n++) await world.figures(agent, "analytics:global");
    const { joined } = await world.join(agent, "analytics:global");
    assert.equal(joined.response.reason, "rate_limited");
  });
});

describe("figures of a cluster", () => {
  const world = onCluster();
  tools(world);

  test("R102 R104 R106 R107: what happens at several nodes adds up at each, and alerts are told once everywhere", { timeout: 240_000 }, async () => {
    const [client, agent] = [await world.one.agent(), await world.one.agent()];
    const at = [];
    for (const node of world.nodes) {
      const mine = await world.figures(agent, `analytics:agent:${agent.id}`, node);
      await mine.ok("subscribe_alerts");
      at.push(mine);
    }
    for (const node of world.nodes) {
      await world.complete(await node.task(client, agent), agent, node);
      for (let n = 0; n < 3; n++) {
        const task = await node.task(client, agent);
        await node.ok("PUT", `/api/v1/tasks/${task.id}/fail`, { key: agent.key, body: {} });
      }
    }
    for (const [n, mine] of at.entries()) {
      const name = world.nodes[n].name;
      await until(`all figures at ${name}`, async () => (await mine.ok("request_metrics")).tasks_failed === 9);
      assert.equal((await mine.ok("request_metrics")).tasks_completed, 3, name);
      const alert = await until(`the alert at ${name}`, () => mine.alerts[0], leniently(10_000));
      assert.deepEqual([alert.severity, alert.type], ["error", "failure_rate"]);
    }
    assert.deepEqual(at.map(({ alerts }) => alerts.length), [1, 1, 1]);
    const pair = await openChannel(world.one);
    await pair.pay(await pair.join(world.connections, [world.one, world.two]), pair.a, "2.5");
    await pair.pay(await pair.join(world.connections, [world.three, world.one]), pair.a, "1.5");
    for (const node of world.nodes) await node.ok("POST", "/api/v1/messages", { key: pair.a.key, body: { to_agent_id: pair.b.id, type: "note", payload: {} } });
    for (const node of world.nodes) {
      const theirs = await world.figures(pair.b, `analytics:agent:${pair.b.id}`, node);
      await until(`revenue and messages at ${node.name}`, async () => {
        const { revenue, messages_received } = await theirs.ok("request_metrics");
        return revenue === "4" && messages_received === 3;
      });
    }
    const stats = await world.figures(agent, "analytics:global", world.three);
    const { total_tasks } = await until("global_stats", () => stats.stats[0]);
    assert.equal(total_tasks, 12);
  });
});
