// Who is online, who can do what, and who sees whom.

import assert from "node:assert/strict";
import { after, afterEach, before, describe, test } from "node:test";
import { collect, connect, join, phoenix, push, VERSIONS } from "./lib/phoenix.mjs";
import { Roster } from "./lib/roster.mjs";
import { leniently, Server, until } from "./lib/server.mjs";
import { ok, Wire } from "./lib/wire.mjs";

const MANY = "{tokens=100000,period_ms=1000,burst=100000}";
const RELAXED = ["drills.enabled=true", `limits.joins_per_agent=${MANY}`, `limits.requests_per_credential=${MANY}`, `limits.auth_failures_per_ip=${MANY}`];
const DISCOVERY = "agents:discovery";

const open = [];
const afterwards = (thing) => {
  open.push(thing);
  return thing;
};
afterEach(() => open.splice(0).forEach((thing) => thing.close()));

const urlOf = (server, mount, who, more = "") => `${server.ws}${mount}/websocket?api_key=${who.key ?? who.token}&vsn=2.0.0${more}`;

/** A raw socket of an agent or a user that has joined agents:discovery, with its roster. */
async function watch(server, who, more) {
  const wire = afterwards(await Wire.open(urlOf(server, "/socket", who, more)));
  wire.send(["1", "1", DISCOVERY, "phx_join", {}]);
  assert.deepEqual(await wire.next(), ok("1", "1", DISCOVERY));
  wire.roster = new Roster();
  wire.updates = [];
  wire.refs = 1;
  wire.roster.apply(await wire.nextPresence());
  assert.equal(wire.roster.frames[0].event, "presence_state");
  return wire;
}

/** Takes in what has come. */
function sync(wire) {
  while (wire.presence.length > 0) wire.roster.apply(wire.presence.shift().message);
  return wire.roster;
}

/** An agent's own socket, joined to its own topic. */
async function appear(server, agent) {
  const wire = afterwards(await Wire.open(urlOf(server, "/socket/agent", agent)));
  const topic = `agent:${agent.id}`;
  wire.send(["1", "1", topic, "phx_join", {}]);
  assert.deepEqual(await wire.next(), ok("1", "1", topic));
  return wire;
}

/** Pushes on agents:discovery; gives { status, response }. */
async function say(wire, event, payload) {
  const ref = `s${++wire.refs}`;
  const text = typeof payload === "string" ? payload : JSON.stringify(payload);
  wire.send(`["1","${ref}","${DISCOVERY}","${event}",${text}]`);
  return (await wire.find(`the reply to ${event}`, (message) => message[1] === ref))[4];
}

const found = async (wire, payload) => {
  const { status, response } = await say(wire, "discover", payload);
  assert.equal(status, "ok", JSON.stringify(response));
  return response.agents;
};

const seen = (wire, agent, ms = leniently(2_000)) => until(`${agent.name} is seen`, () => sync(wire).has(agent.id), ms);
const unseen = (wire, agent, ms = leniently(2_000)) => until(`${agent.name} is gone`, () => !sync(wire).has(agent.id), ms);

/** Waits until somebody who came later than anything before has been seen: then all before has been told too. */
async function settle(server, ...wires) {
  const mark = await server.agent({ name: "Mark" });
  const wire = await appear(server, mark);
  for (const watcher of wires) await seen(watcher, mark);
  wire.close();
  for (const watcher of wires) await unseen(watcher, mark);
}

function serve(set = RELAXED) {
  const shared = {};
  before(async () => {
    shared.server = await Server.start({ set });
  });
  after(() => shared.server?.end());
  return shared;
}

for (const version of VERSIONS) {
  describe(`Presence of phoenix ${version}`, () => {
    const shared = serve();
    const sockets = [];
    afterEach(() => sockets.splice(0).forEach((socket) => socket.disconnect()));
    const dial = async (...args) => {
      const socket = await connect(version, shared.server, ...args);
      sockets.push(socket);
      return socket;
    };

    test("R54 R55: syncs, joins, updates and leaves reach its callbacks", async () => {
      const { server } = shared;
      const { Presence } = phoenix(version);
      const user = await server.user();
      const channel = (await dial("/socket", { api_key: user.token })).channel(DISCOVERY, {});
      const presence = new Presence(channel);
      const [joins, leaves] = [[], []];
      let syncs = 0;
      presence.onSync(() => syncs++);
      presence.onJoin((id, current, came) => joins.push({ id, before: current?.metas.length ?? 0, came: came.metas.length }));
      presence.onLeave((id, current, went) => leaves.push({ id, left: current.metas.length, went: went.metas.length }));
      assert.equal((await join(channel)).status, "ok");
      await until("the first sync, empty as it is", () => syncs === 1);
      assert.deepEqual(Object.keys(presence.state), []);

      const agent = await server.agent({ capabilities: ["sing"], price: "2.5" });
      const first = await dial("/socket/agent", { api_key: agent.key });
      await join(first.channel(`agent:${agent.id}`, {}));
      await until("it is seen", () => joins.length === 1);
      assert.deepEqual(joins, [{ id: agent.id, before: 0, came: 1 }]);
      const second = await dial("/socket", { api_key: agent.key });
      const own = second.channel(DISCOVERY, {});
      await join(own);
      await until("twice", () => joins.length === 2);
      assert.deepEqual(joins[1], { id: agent.id, before: 1, came: 1 });
      assert.equal(presence.list((id, { metas }) => metas.length)[0], 2);

      joins.length = 0;
      assert.equal((await push(own, "update_metadata", { metadata: { mood: "good" } })).status, "ok");
      await until("the update", () => presence.state[agent.id].metas.every((meta) => meta.metadata?.mood === "good"));
      assert.equal(presence.state[agent.id].metas.length, 2);
      assert.deepEqual(joins.map(({ id }) => id), [agent.id]);
      assert.ok(leaves.every(({ left }) => left > 0), "an update leaves nobody gone");

      leaves.length = 0;
      first.disconnect();
      await until("one connection less", () => leaves.length === 1);
      assert.deepEqual(leaves[0], { id: agent.id, left: 1, went: 1 });
      second.disconnect();
      await until("gone", () => leaves.length === 2);
      assert.deepEqual(leaves[1], { id: agent.id, left: 0, went: 1 });
      assert.deepEqual(Object.keys(presence.state), []);
    });

    test("R61 phoenix 10.12: a channel that crashed, and a socket that was lost, sync anew when they rejoin", async () => {
      const { server } = shared;
      const { Presence } = phoenix(version);
      const user = await server.user();
      const socket = await dial("/socket", { api_key: user.token }, { reconnectAfterMs: () => 20, rejoinAfterMs: () => 20 });
      const channel = socket.channel(DISCOVERY, {});
      const presence = new Presence(channel);
      let syncs = 0;
      presence.onSync(() => syncs++);
      const states = collect(channel, "presence_state");
      await join(channel);
      await until("synced", () => syncs === 1);
      const agent = await server.agent();
      await appear(server, agent);
      await until("it is seen", () => presence.state[agent.id]);

      channel.push("muster.drill.crash", {});
      await until("a state for the join after the crash", () => states.length === 2);
      assert.deepEqual(Object.keys(presence.state), [agent.id]);

      const late = await server.agent({ name: "Late" });
      socket.conn.terminate();
      await appear(server, late);
      await until("a state for the join after the loss", () => states.length === 3);
      await until("both are seen", () => presence.state[agent.id] && presence.state[late.id]);
      assert.deepEqual(presence.list((id) => id).sort(), [agent.id, late.id].sort());
    });
  });
}

describe("presence", () => {
  const shared = serve();
  let server, user;
  before(async () => {
    ({ server } = shared);
    user = await server.user();
  });

  test("R53 R61: every join is followed by the whole state, with its join_ref, also when nobody is there", async () => {
    const own = await Server.start({ set: RELAXED });
    try {
      const guest = await own.user();
      const wire = afterwards(await Wire.open(urlOf(own, "/socket", guest)));
      for (const joinRef of ["1", "2", "3"]) {
        wire.send([joinRef, joinRef, DISCOVERY, "phx_join", {}]);
        await wire.find("the reply", (message) => message[1] === joinRef && message[3] === "phx_reply");
        assert.deepEqual(await wire.nextPresence(), [joinRef, null, DISCOVERY, "presence_state", {}]);
      }
    } finally {
      await own.end();
    }
  });

  test("R53: an agent's meta says what it can do, what it asks, how it is esteemed and since when", async () => {
    const from = Date.now();
    const agent = await server.agent({ capabilities: ["code", "sing"], price: "12.345678" });
    const watcher = await watch(server, user);
    const wire = await appear(server, agent);
    await seen(watcher, agent);
    const own = await wire.nextPresence();
    assert.deepEqual(own.slice(0, 4), ["1", null, `agent:${agent.id}`, "presence_state"]);
    for (const meta of [watcher.roster.of(agent.id)[0], own[4][agent.id].metas[0]]) {
      assert.deepEqual(meta.capabilities, ["code", "sing"]);
      assert.equal(meta.base_price, "12.345678");
      assert.equal(meta.reputation, 2.5);
      assert.match(meta.online_at, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
      assert.ok(Date.parse(meta.online_at) >= from - 1 && Date.parse(meta.online_at) <= Date.now() + 1);
      assert.match(meta.phx_ref, /^[A-Za-z0-9_-]{16}$/);
      assert.ok(!("phx_ref_prev" in meta));
    }
  });

  test("R54: what comes after the state are diffs, without refs, with both sides", async () => {
    const watcher = await watch(server, user);
    const agent = await server.agent();
    const wire = await appear(server, agent);
    const [joinRef, ref, topic, event, came] = await watcher.nextPresence();
    assert.deepEqual([joinRef, ref, topic, event], [null, null, DISCOVERY, "presence_diff"]);
    assert.deepEqual([Object.keys(came.joins), came.leaves], [[agent.id], {}]);
    wire.close();
    const [, , , , went] = await watcher.nextPresence(leniently(1_000));
    assert.deepEqual(went, { joins: {}, leaves: came.joins }, "the leave carries the whole meta");
  });

  test("R55: each connection is a meta of its own, and the agent is offline when the last is gone", async () => {
    const watcher = await watch(server, user);
    const agent = await server.agent();
    const wires = [await appear(server, agent), await appear(server, agent), await watch(server, agent), await appear(server, agent)];
    await until("four metas", () => sync(watcher).of(agent.id).length === 4);
    assert.equal(new Set(watcher.roster.of(agent.id).map((meta) => meta.phx_ref)).size, 4);
    const online = async () => (await found(watcher, { filters: { status: "online" } })).some((each) => each.id === agent.id);
    wires[0].close();
    wires[1].send(["1", "9", `agent:${agent.id}`, "phx_leave", {}]);
    wires[2].send(["1", "9", DISCOVERY, "phx_leave", {}]);
    await until("one meta is left", () => sync(watcher).of(agent.id).length === 1);
    assert.equal(await online(), true);
    wires[3].close();
    await unseen(watcher, agent, leniently(1_000));
    assert.equal(await online(), false);
  });

  test("R55: an agent that replaces its join is never told to be gone", async () => {
    const watcher = await watch(server, user);
    const agent = await server.agent();
    const wire = await appear(server, agent);
    await seen(watcher, agent);
    const topic = `agent:${agent.id}`;
    for (let n = 2; n < 12; n++) {
      wire.send([`${n}`, `${n}`, topic, "phx_join", {}]);
      await wire.find("the reply", (message) => message[1] === `${n}` && message[3] === "phx_reply");
    }
    await settle(server, watcher);
    assert.equal(watcher.roster.of(agent.id).length, 1);
    let metas = 0;
    for (const { payload } of watcher.roster.frames.slice(1)) {
      const before = metas;
      metas += (payload.joins[agent.id]?.metas.length ?? 0) - (payload.leaves[agent.id]?.metas.length ?? 0);
      assert.ok(before === 0 || metas > 0, "the leave of the old comes with the join of the new, or after it");
    }
  });

  test("R54 phoenix 10.12: a change is one diff with both sides, and a new phx_ref that names the old one", async () => {
    const watcher = await watch(server, user);
    const agent = await server.agent();
    const wires = [await watch(server, agent), await appear(server, agent)];
    await until("two metas", () => sync(watcher).of(agent.id).length === 2);
    for (const [event, payload] of [
      ["announce", { capabilities: ["new"] }],
      ["update_metadata", { metadata: { a: 1 } }],
      ["update_metadata", { metadata: { a: 2 } }],
    ]) {
      const before = watcher.roster.of(agent.id);
      assert.equal((await say(wires[0], event, payload)).status, "ok");
      const message = await watcher.nextPresence();
      const { joins, leaves } = message[4];
      assert.deepEqual([Object.keys(joins), Object.keys(leaves)], [[agent.id], [agent.id]]);
      assert.deepEqual(leaves[agent.id].metas, before, "the whole old metas");
      assert.deepEqual(joins[agent.id].metas.map((meta) => meta.phx_ref_prev), before.map((meta) => meta.phx_ref));
      for (const [n, meta] of joins[agent.id].metas.entries()) {
        assert.notEqual(meta.phx_ref, before[n].phx_ref);
        assert.equal(meta.online_at, before[n].online_at);
      }
      watcher.roster.apply(message);
    }
    const metas = watcher.roster.of(agent.id);
    assert.deepEqual(metas.map((meta) => [meta.capabilities, meta.metadata]), [[["new"], { a: 2 }], [["new"], { a: 2 }]]);
  });

  test("R54: a newcomer's own join is in its state or in a diff, once", async () => {
    for (let round = 0; round < 10; round++) {
      const agent = await server.agent();
      const wire = await watch(server, agent);
      await settle(server, wire);
      const mentions = wire.roster.frames.filter(({ event, payload }) => (event === "presence_state" ? payload : payload.joins)[agent.id]);
      assert.equal(mentions.length, 1);
      assert.equal(wire.roster.of(agent.id).length, 1);
      wire.close();
    }
  });

  test("R53: agents that only watch are seen, users without an agent are not, users that act as one are", async () => {
    const watcher = await watch(server, user);
    const agent = await server.agent({ owner: user });
    const other = await watch(server, await server.user("Other"));
    const acting = await watch(server, user, `&agent_id=${agent.id}`);
    await seen(watcher, agent);
    await settle(server, watcher);
    assert.equal(Object.keys(watcher.roster.counts()).includes(user.id), false);
    acting.close();
    await unseen(watcher, agent);
    other.close();
  });

  test("R54: a join may ask for a part of presence, or for none, and is told of who comes into it and falls out of it", async () => {
    const watchAs = async (presence) => {
      const wire = afterwards(await Wire.open(urlOf(server, "/socket", user)));
      wire.send(["1", "1", DISCOVERY, "phx_join", { presence }]);
      const [, , , , reply] = await wire.next();
      if (reply.status !== "ok") return reply;
      wire.roster = new Roster();
      wire.roster.apply(await wire.nextPresence());
      return wire;
    };
    const view = { capability: "viewed", max_price: "5" };
    const [agent, dear, other] = [
      await server.agent({ name: "Fits", capabilities: ["viewed"], price: "5" }),
      await server.agent({ name: "Dear", capabilities: ["viewed"], price: "6" }),
      await server.agent({ name: "Other", capabilities: ["else"], price: "1" }),
    ];
    await appear(server, dear);
    const [some, none, everybody] = [await watchAs(view), await watchAs("none"), await watchAs("full")];
    const speakers = [await watch(server, agent), await watch(server, other)];
    await seen(some, agent);
    for (const one of [agent, dear, other]) await seen(everybody, one);
    assert.deepEqual(Object.keys(some.roster.counts()), [agent.id]);
    await say(speakers[1], "announce", { capabilities: ["viewed", "else"] });
    await seen(some, other);
    await say(speakers[0], "announce", { capabilities: ["else"] });
    await unseen(some, agent);
    await seen(everybody, agent);
    const late = await watchAs(view);
    assert.deepEqual(Object.keys(late.roster.counts()), [other.id]);
    assert.deepEqual(none.roster.frames.map(({ payload }) => payload), [{}], "an empty state, and nothing more");
    for (const presence of ["some", 7, { status: "online" }, ["viewed"]]) {
      const { status, response } = await watchAs(presence);
      assert.deepEqual([status, response.reason], ["error", "invalid_payload"], JSON.stringify(presence));
    }
  });

  test("R54: under churn every watcher comes to the truth, and is told of each meta once", { timeout: 300_000 }, async () => {
    const agents = [];
    for (let n = 0; n < 60; n++) agents.push(await server.agent({ name: `Churn ${n}` }));
    const live = new Map(agents.map((agent) => [agent.id, []]));
    // A fixed sequence, so that a failure can be looked at again.
    let seed = 42;
    const random = (below) => {
      seed = (seed * 1_103_515_245 + 12_345) % 2_147_483_648;
      return Math.floor((seed / 2_147_483_648) * below);
    };
    const watchers = [];
    const step = async () => {
      const agent = agents[random(agents.length)];
      const wires = live.get(agent.id);
      if (wires.length > 0 && random(2) === 0) wires.splice(random(wires.length), 1)[0].close();
      else wires.push(await appear(server, agent));
    };
    // On a slow machine longer, until there are watchers enough.
    const churn = (async () => {
      for (let n = 0; n < 80 || watchers.length < 10; n++) await Promise.all(Array.from({ length: 10 }, step));
    })();
    let churning = true;
    churn.finally(() => (churning = false));
    while (churning) {
      watchers.push(await watch(server, user));
      for (const watcher of watchers) sync(watcher);
    }
    await churn;
    const truth = Object.fromEntries([...live].filter(([, wires]) => wires.length > 0).map(([id, wires]) => [id, wires.length]).sort());
    const mine = (roster) => Object.fromEntries(Object.entries(roster.counts()).filter(([id]) => live.has(id)));
    await until(
      "every watcher knows the truth",
      () => watchers.every((watcher) => JSON.stringify(mine(sync(watcher))) === JSON.stringify(truth)),
    ).catch(() => {
      for (const watcher of watchers) assert.deepEqual(mine(watcher.roster), truth);
    });
    for (const watcher of watchers) assert.deepEqual(watcher.roster.repeats, []);
  });

  test("R53 R65: a join and a change at one time leave nobody with the old record", async () => {
    const watcher = await watch(server, user);
    const agent = await server.agent();
    const speaker = await watch(server, agent);
    for (let round = 0; round < 60; round++) {
      const capabilities = [`c${round}`];
      const [, joined] = await Promise.all([say(speaker, "announce", { capabilities }), appear(server, agent)]);
      const current = () => sync(watcher).of(agent.id);
      await until(`round ${round} is told`, () => current().length === 2 && current().every((meta) => meta.capabilities[0] === capabilities[0]), leniently(1_000)).catch(() =>
        assert.deepEqual(current().map((meta) => meta.capabilities), [capabilities, capabilities], `round ${round}`),
      );
      const [self] = await found(speaker, { capability: capabilities[0] });
      assert.equal(self?.id, agent.id, `round ${round}: discover`);
      joined.close();
      await until("gone again", () => current().length === 1);
    }
  });
});

describe("agents:discovery", () => {
  const shared = serve();
  let server, user;
  before(async () => {
    ({ server } = shared);
    user = await server.user();
  });

  /** Completes or fails so many tasks of an agent. */
  async function record(agent, completed, failed) {
    const client = await server.agent();
    for (let n = 0; n < completed + failed; n++) {
      const task = await server.task(client, agent);
      if (n < completed) await server.ok("PUT", `/api/v1/tasks/${task.id}/complete`, { key: agent.key, body: { output: n } });
      else await server.ok("PUT", `/api/v1/tasks/${task.id}/fail`, { key: agent.key, body: { reason: "no" } });
    }
  }

  test("R62 R63: filters, each by itself and together, and the order online, reputation, price, id", async () => {
    const capability = "r62";
    const make = async (name, price, [completed, failed], online) => {
      const agent = await server.agent({ name, price, capabilities: [capability, name] });
      await record(agent, completed, failed);
      if (online) await appear(server, agent);
      return agent;
    };
    const agents = {
      dearGood: await make("dearGood", "9", [3, 0], true),
      cheapGood: await make("cheapGood", "1.000001", [3, 0], true),
      sameGood: await make("sameGood", "1.000001", [3, 0], true),
      poor: await make("poor", "0", [0, 3], true),
      offlineBest: await make("offlineBest", "0.5", [8, 0], false),
      offlineNew: await make("offlineNew", "0", [0, 0], false),
    };
    const watcher = await watch(server, user);
    const names = async (payload) => (await found(watcher, payload)).map((agent) => agent.name);
    const all = ["cheapGood", "sameGood", "dearGood", "poor", "offlineBest", "offlineNew"];
    assert.deepEqual(await names({ capability }), all);
    assert.deepEqual(await names({ capability, filters: { status: "any" } }), all);
    assert.deepEqual(await names({ capability, filters: {} }), all);
    assert.deepEqual(await names({ capability: "poor" }), ["poor"]);
    assert.deepEqual(await names({ capability: "R62" }), [], "a name, letter by letter");
    assert.deepEqual(await names({ capability, filters: { status: "online" } }), all.slice(0, 4));
    assert.deepEqual(await names({ capability, filters: { status: "offline" } }), all.slice(4));
    for (const status of ["busy", "away"]) assert.deepEqual(await names({ capability, filters: { status } }), []);
    assert.deepEqual(await names({ capability, filters: { min_reputation: 4 } }), ["cheapGood", "sameGood", "dearGood", "offlineBest"]);
    assert.deepEqual(await names({ capability, filters: { min_reputation: 4.5 } }), ["offlineBest"], "from, not above");
    assert.deepEqual(await names({ capability, filters: { min_reputation: 5 } }), []);
    assert.deepEqual(await names({ capability, filters: { max_price: 1 } }), ["poor", "offlineBest", "offlineNew"]);
    assert.deepEqual(await names({ capability, filters: { max_price: "1.000001" } }), all.filter((name) => name !== "dearGood"));
    assert.deepEqual(await names({ capability, filters: { max_price: 0 } }), ["poor", "offlineNew"]);
    assert.deepEqual(await names({ capability, filters: { status: "online", min_reputation: 2.5, max_price: 2 } }), ["cheapGood", "sameGood"]);
    const everybody = (await found(watcher, {})).map((agent) => agent.id);
    for (const agent of Object.values(agents)) assert.ok(everybody.includes(agent.id), "no capability means all");
    const [first] = await found(watcher, { capability });
    assert.deepEqual(first, {
      id: agents.cheapGood.id,
      did: agents.cheapGood.did,
      name: "cheapGood",
      capabilities: [capability, "cheapGood"],
      status: "online",
      reputation: 4,
      base_price: "1.000001",
      online: true,
    });
    const last = (await found(watcher, { capability })).at(-1);
    assert.deepEqual([last.status, last.online, last.reputation, last.base_price], ["offline", false, 2.5, "0"]);
  });

  test("R62: what is no query is refused, and the channel stays", async () => {
    const watcher = await watch(server, user);
    for (const payload of [
      { capability: 7 },
      { capability: ["code"] },
      { filters: "online" },
      { filters: { status: "asleep" } },
      { filters: { status: 1 } },
      { filters: { min_reputation: "high" } },
      { filters: { max_price: "cheap" } },
      { filters: { max_price: -1 } },
      { filters: { max_price: true } },
      [],
      null,
      '"code"',
    ]) {
      const { status, response } = await say(watcher, "discover", payload);
      assert.equal(status, "error", JSON.stringify(payload));
      assert.ok(["invalid_payload", "invalid_amount"].includes(response.reason), JSON.stringify(response));
    }
    assert.ok(Array.isArray(await found(watcher, {})));
    assert.ok(Array.isArray(await found(watcher, { capability: null, filters: null })));
  });

  test("R62: filters are named, so a list is none", async () => {
    const watcher = await watch(server, user);
    for (const filters of [[], ["online"], ["any", 5]]) {
      const { status, response } = await say(watcher, "discover", { filters });
      assert.deepEqual([status, response.reason], ["error", "invalid_payload"], JSON.stringify(filters));
    }
  });

  test("R56: a hundred agents at most, the online ones first", async () => {
    const capability = "crowd";
    for (let n = 0; n < 120; n++) await server.agent({ name: `Crowd ${n}`, capabilities: [capability] });
    const [late, later] = [await server.agent({ capabilities: [capability] }), await server.agent({ capabilities: [capability] })];
    await appear(server, late);
    await appear(server, later);
    const watcher = await watch(server, user);
    const agents = await found(watcher, { capability });
    assert.equal(agents.length, 100);
    assert.deepEqual(agents.slice(0, 2).map((agent) => agent.id), [late.id, later.id].sort());
    assert.equal(agents.filter((agent) => agent.online).length, 2);
    assert.equal(new Set(agents.map((agent) => agent.id)).size, 100);
    const ids = agents.slice(2).map((agent) => agent.id);
    assert.deepEqual(ids, [...ids].sort(), "the same in all else, they come by id");
    const rest = await server.request("GET", `/api/v1/agents/discover?capability=${capability}&limit=100`, { token: user.token });
    assert.equal(rest.data.length, 100);
    const over = await server.request("GET", `/api/v1/agents/discover?capability=${capability}&limit=101`, { token: user.token });
    assert.equal(over.status, 422);
  });

  test("R62: an agent's reputation is that of its last task, while it is online too", async () => {
    const agent = await server.agent({ capabilities: ["reputed"] });
    await appear(server, agent);
    const watcher = await watch(server, user);
    assert.equal((await found(watcher, { capability: "reputed" }))[0].reputation, 2.5);
    await record(agent, 3, 0);
    assert.equal((await server.ok("GET", `/api/v1/agents/${agent.id}`, { token: user.token })).reputation, 4);
    assert.equal((await found(watcher, { capability: "reputed" }))[0].reputation, 4);
    await until("presence says so too", () => sync(watcher).of(agent.id)[0].reputation === 4, leniently(2_000));
    assert.equal((await found(watcher, { capability: "reputed", filters: { min_reputation: 4 } })).length, 1);
  });

  test("R64: update_metadata merges, null removes, and presence follows", async () => {
    const watcher = await watch(server, user);
    const agent = await server.agent({ more: { metadata: { kept: 1, gone: 2, replaced: { a: 1 } } } });
    const wire = await watch(server, agent);
    await seen(watcher, agent);
    const metadata = () => sync(watcher).of(agent.id)[0].metadata;
    assert.deepEqual(metadata(), { kept: 1, gone: 2, replaced: { a: 1 } });
    assert.deepEqual(await say(wire, "update_metadata", { metadata: { gone: null, replaced: { b: 2 }, added: [1, { c: null }] } }), { status: "ok", response: {} });
    const want = { kept: 1, replaced: { b: 2 }, added: [1, { c: null }] };
    await until("it is told", () => !("gone" in metadata()));
    assert.deepEqual(metadata(), want);
    assert.deepEqual(await say(wire, "update_metadata", { metadata: {} }), { status: "ok", response: {} });
    assert.deepEqual(await say(wire, "update_metadata", { metadata: { never: null } }), { status: "ok", response: {} });
    assert.deepEqual((await server.ok("GET", `/api/v1/agents/${agent.id}`, { key: agent.key })).metadata, want);
  });

  test("R64: numbers in metadata keep their digits", async () => {
    const watcher = await watch(server, user);
    const agent = await server.agent();
    const wire = await watch(server, agent);
    await seen(watcher, agent);
    const metadata = '{"big":12345678901234567890123,"one":1.0,"price":0.10}';
    assert.equal((await say(wire, "update_metadata", `{"metadata":${metadata}}`)).status, "ok");
    const frame = await until("the diff", () => watcher.presence.shift());
    for (const number of ["12345678901234567890123", "1.0"]) assert.ok(frame.text.includes(number), `${number} in ${frame.text}`);
    const { text } = await server.request("GET", `/api/v1/agents/${agent.id}`, { key: agent.key });
    assert.ok(text.includes("12345678901234567890123"), text);
  });

  test("R64: metadata has a size, which counts after the merge", async () => {
    const agent = await server.agent();
    const wire = await watch(server, agent);
    const sized = (name, bytes) => ({ [name]: "x".repeat(bytes - `{"${name}":""}`.length) });
    const refusedWith = async (payload) => {
      const { status, response } = await say(wire, "update_metadata", payload);
      assert.deepEqual([status, response.reason], ["error", "invalid_payload"], JSON.stringify(payload).slice(0, 80));
    };
    await refusedWith({ metadata: sized("a", 4_097) });
    assert.equal((await say(wire, "update_metadata", { metadata: sized("a", 4_096) })).status, "ok");
    await refusedWith({ metadata: { b: 1 } });
    assert.equal((await say(wire, "update_metadata", { metadata: { a: null, b: 1 } })).status, "ok");
    assert.deepEqual((await server.ok("GET", `/api/v1/agents/${agent.id}`, { key: agent.key })).metadata, { b: 1 });
  });

  test("R64 R11: protected and poisoned keys are refused at any depth, however they are written", async () => {
    const agent = await server.agent({ more: { metadata: { a: 1 } } });
    const wire = await watch(server, agent);
    const attempts = [
      '{"reputation":5}',
      '{"base_price":"0"}',
      '{"id":"x"}',
      '{"reput\\u0061tion":5}',
      '{"reputation":null}',
      '{"__proto__":{"admin":true}}',
      '{"constructor":{"prototype":{}}}',
      '{"\\u005f_proto__":1}',
      '{"deep":{"er":[{"__proto__":1}]}}',
      '{"deep":[[[{"constructor":1}]]]}',
      '{"a":null,"__proto__":null}',
      "[]",
      "7",
      "null",
      '"text"',
    ];
    for (const metadata of attempts) {
      const { status, response } = await say(wire, "update_metadata", `{"metadata":${metadata}}`);
      assert.deepEqual([status, response.reason], ["error", "invalid_payload"], metadata);
      const put = await server.request("PUT", `/api/v1/agents/${agent.id}`, { key: agent.key, raw: `{"metadata":${metadata}}` });
      if (metadata !== "null") assert.equal(put.status, 422, `REST: ${metadata}`);
    }
    for (const payload of ["{}", "[]", "null", '{"metadata":{"x":{"y":1}},"metadata":{"__proto__":1}}']) {
      assert.equal((await say(wire, "update_metadata", payload)).status, "error", payload);
    }
    const shown = await server.ok("GET", `/api/v1/agents/${agent.id}`, { key: agent.key });
    assert.deepEqual([shown.metadata, shown.reputation, shown.base_price], [{ a: 1 }, 2.5, "1"]);
  });

  test("R64: changes at one time from many sockets all count", async () => {
    const agent = await server.agent();
    const wires = [];
    for (let n = 0; n < 5; n++) wires.push(await watch(server, agent));
    const changes = wires.flatMap((wire, w) => Array.from({ length: 10 }, (_, n) => ({ wire, key: `k${w}_${n}` })));
    const replies = await Promise.all(changes.map(({ wire, key }) => say(wire, "update_metadata", { metadata: { [key]: 1 } })));
    assert.deepEqual(replies.filter(({ status }) => status !== "ok"), []);
    const { metadata } = await server.ok("GET", `/api/v1/agents/${agent.id}`, { key: agent.key });
    assert.deepEqual(Object.keys(metadata).sort(), changes.map(({ key }) => key).sort());
  });

  test("R65: announce replaces one's capabilities and tells everybody on the topic", async () => {
    const agent = await server.agent({ capabilities: ["old"], more: { metadata: { m: 1 } } });
    const watchers = [await watch(server, user), await watch(server, await server.agent()), await watch(server, agent)];
    const capabilities = ["paint", "draw", "é😀"];
    assert.deepEqual(await say(watchers[2], "announce", { capabilities }), { status: "ok", response: {} });
    for (const watcher of watchers) {
      const update = await watcher.find("the update", (message) => message[3] === "agent_updated");
      assert.deepEqual(update, [null, null, DISCOVERY, "agent_updated", { agent_id: agent.id, capabilities, metadata: { m: 1 } }]);
      await until("presence says so too", () => sync(watcher).of(agent.id)[0]?.capabilities.length === 3);
    }
    assert.deepEqual((await found(watchers[0], { capability: "é😀" })).map(({ id }) => id), [agent.id]);
    assert.deepEqual(await found(watchers[0], { capability: "old" }), []);
  });

  test("R65: announce takes up to 100 capabilities of 1 to 64 characters", async () => {
    const agent = await server.agent({ capabilities: ["kept"] });
    const wire = await watch(server, agent);
    for (const payload of [
      {},
      { capabilities: "paint" },
      { capabilities: null },
      { capabilities: [1] },
      { capabilities: [null] },
      { capabilities: [["paint"]] },
      { capabilities: [""] },
      { capabilities: ["x".repeat(65)] },
      { capabilities: ["😀".repeat(65)] },
      { capabilities: Array.from({ length: 101 }, (_, n) => `c${n}`) },
      null,
      [],
    ]) {
      const { status, response } = await say(wire, "announce", payload);
      assert.deepEqual([status, response.reason], ["error", "invalid_payload"], JSON.stringify(payload).slice(0, 80));
    }
    assert.deepEqual((await server.ok("GET", `/api/v1/agents/${agent.id}`, { key: agent.key })).capabilities, ["kept"]);
    for (const capabilities of [[], ["😀".repeat(64)], Array.from({ length: 100 }, (_, n) => `${n}`.padEnd(64, "x"))]) {
      assert.equal((await say(wire, "announce", { capabilities })).status, "ok");
      assert.deepEqual((await server.ok("GET", `/api/v1/agents/${agent.id}`, { key: agent.key })).capabilities, capabilities);
    }
    assert.deepEqual(wire.inbox.filter(({ message }) => message[3] === "agent_updated").length, 3, "only what was taken is told");
  });

  test("R64 R65: who is no agent changes none, and who may only read changes nothing", async () => {
    const watcher = await watch(server, user);
    for (const [event, payload] of [["announce", { capabilities: ["x"] }], ["update_metadata", { metadata: { a: 1 } }]]) {
      assert.equal((await say(watcher, event, payload)).status, "error");
    }
    const agent = await server.agent({ owner: user, capabilities: ["mine"] });
    const { api_key: key, token } = await server.ok("POST", `/api/v1/agents/${agent.id}/credentials`, { key: agent.key, body: { scopes: ["connect", "read"] } });
    const reader = await watch(server, { key: key ?? token });
    for (const [event, payload] of [["announce", { capabilities: ["x"] }], ["update_metadata", { metadata: { a: 1 } }]]) {
      assert.equal((await say(reader, event, payload)).status, "error");
    }
    assert.ok(Array.isArray(await found(reader, {})), "but finds");
    assert.deepEqual((await server.ok("GET", `/api/v1/agents/${agent.id}`, { key: agent.key })).capabilities, ["mine"]);
  });

  test("R64 R65: what was announced survives a restart and a kill", async () => {
    const own = await Server.start({ set: RELAXED });
    try {
      const agent = await own.agent();
      for (const [n, end] of ["stop", "kill"].entries()) {
        const wire = await watch(own, agent);
        await say(wire, "announce", { capabilities: [`lasting${n}`] });
        await say(wire, "update_metadata", { metadata: { [`n${n}`]: n } });
        await own[end]();
        await own.startAgain();
      }
      const shown = await own.ok("GET", `/api/v1/agents/${agent.id}`, { key: agent.key });
      assert.deepEqual([shown.capabilities, shown.metadata], [["lasting1"], { n0: 0, n1: 1 }]);
      const wire = await watch(own, agent);
      await until("it is in its own state", () => sync(wire).of(agent.id).length === 1);
      assert.deepEqual(wire.roster.of(agent.id)[0].metadata, { n0: 0, n1: 1 });
      assert.deepEqual((await found(wire, { capability: "lasting1" })).map(({ id }) => id), [agent.id]);
    } finally {
      await own.end();
    }
  });

  test("R60: an agent joins thirty times a minute on the main socket, and is told when to come back", async () => {
    const own = await Server.start();
    try {
      const agent = await own.agent();
      const wire = afterwards(await Wire.open(urlOf(own, "/socket", agent)));
      const begun = Date.now();
      let [joined, reply] = [0];
      for (; (reply = (await wire.ask([`${joined}`, `${joined}`, DISCOVERY, "phx_join", {}]))[4]).status === "ok"; joined++);
      // One more becomes free every two seconds.
      assert.ok(joined >= 30 && joined <= 30 + (Date.now() - begun) / 2_000, `${joined} joins in ${Date.now() - begun} ms`);
      assert.equal(reply.response.reason, "rate_limited");
      assert.ok(reply.response.retry_after_ms > 0 && reply.response.retry_after_ms <= 60_000);
      wire.send([`${joined - 1}`, "x", DISCOVERY, "discover", {}]);
      assert.equal((await wire.find("the reply", (message) => message[1] === "x"))[4].status, "ok", "the join before stands");
    } finally {
      await own.end();
    }
  });
});

describe("who sees whom", () => {
  const shared = serve();
  let server, user;
  before(async () => {
    ({ server } = shared);
    user = await server.user();
  });
  const block = (by, whom, more = {}) => server.ok("POST", "/api/v1/blocks", { key: by.key, body: { agent_id: whom.id, ...more } });
  const unblock = (by, whom) => server.ok("DELETE", `/api/v1/blocks/${whom.id}`, { key: by.key });
  const finds = async (wire, agent) => (await found(wire, {})).some(({ id }) => id === agent.id);
  const findsByRest = async (by, agent) => (await server.ok("GET", "/api/v1/agents/discover?limit=100", { key: by.key })).some(({ id }) => id === agent.id);

  test("R66: a block hides both from each other, at once, and taking it back shows both again", async () => {
    const [one, two, third] = [await server.agent({ name: "One" }), await server.agent({ name: "Two" }), await server.agent({ name: "Third" })];
    const wires = new Map();
    for (const agent of [one, two, third]) wires.set(agent, await watch(server, agent));
    const everybodySees = async (a, b) => {
      await seen(wires.get(a), b);
      await seen(wires.get(b), a);
    };
    await everybodySees(one, two);
    await everybodySees(one, third);
    const before = wires.get(one).roster.of(two.id);
    for (let round = 0; round < 2; round++) {
      await block(one, two);
      await unseen(wires.get(one), two);
      await unseen(wires.get(two), one);
      for (const [a, b] of [[one, two], [two, one]]) {
        assert.equal(await finds(wires.get(a), b), false);
        assert.equal(await findsByRest(a, b), false);
        assert.equal((await server.request("GET", `/api/v1/agents/${b.id}`, { key: a.key })).status, 404);
        const again = await watch(server, a);
        await settle(server, again);
        assert.equal(again.roster.has(b.id), false, "nor in a new state");
        again.close();
        await until("the extra connection is gone", () => sync(wires.get(third)).of(a.id).length === 1);
      }
      for (const agent of [one, two]) assert.equal(sync(wires.get(third)).has(agent.id), true, "others see both");
      assert.equal(await finds(wires.get(third), one), true);
      await unblock(one, two);
      await everybodySees(one, two);
      assert.equal(await finds(wires.get(one), two), true);
      assert.equal(await findsByRest(two, one), true);
    }
    assert.deepEqual(wires.get(one).roster.of(two.id), before, "the same metas as before");
  });

  test("R66: while they block each other, one taking it back changes nothing", async () => {
    const [one, two] = [await server.agent({ name: "One" }), await server.agent({ name: "Two" })];
    const wires = [await watch(server, one), await watch(server, two)];
    await seen(wires[0], two);
    await block(one, two);
    await block(two, one);
    await unblock(one, two);
    await settle(server, ...wires);
    assert.deepEqual([wires[0].roster.has(two.id), wires[1].roster.has(one.id)], [false, false]);
    await unblock(two, one);
    await seen(wires[0], two);
    await seen(wires[1], one);
  });

  test("R66: what a hidden agent does is not told: comings, changes, goings, announcements", async () => {
    const [one, two] = [await server.agent({ name: "One" }), await server.agent({ name: "Two" })];
    await block(one, two);
    const wires = [await watch(server, one), await watch(server, two)];
    const extra = await appear(server, two);
    await say(wires[1], "update_metadata", { metadata: { secret: 1 } });
    extra.close();
    await settle(server, ...wires);
    const told = wires[0].roster.frames.map(({ payload }) => JSON.stringify(payload)).filter((text) => text.includes(two.id));
    assert.deepEqual(told, []);
    await say(wires[1], "announce", { capabilities: ["secret"] });
    await settle(server, ...wires);
    const announced = (wire, by) => wire.inbox.filter(({ message }) => message[3] === "agent_updated" && message[4].agent_id === by.id);
    assert.equal(announced(wires[1], two).length, 1, "itself");
    assert.deepEqual(announced(wires[0], two), [], "the one who blocks it hears nothing of it");
  });

  test("R66: a block that has an end ends, in discover, in a new state, and for those who watch", async () => {
    const [one, two] = [await server.agent({ name: "One" }), await server.agent({ name: "Two" })];
    const wires = [await watch(server, one), await watch(server, two)];
    await seen(wires[0], two);
    await block(one, two, { expires_at: new Date(Date.now() + 4_000).toISOString() });
    await unseen(wires[0], two);
    assert.equal(await finds(wires[0], two), false);
    await until("discover finds it again", () => finds(wires[0], two));
    const again = await watch(server, one);
    await seen(again, two);
    await seen(wires[0], two);
    await seen(wires[1], one);
  });

  test("R66: a block made while a watcher joins holds", async () => {
    for (let round = 0; round < 20; round++) {
      const [one, two] = [await server.agent({ name: "One" }), await server.agent({ name: "Two" })];
      await appear(server, two);
      const wire = afterwards(await Wire.open(urlOf(server, "/socket", one)));
      const blocking = block(two, one);
      // The join lands somewhere in the block's work.
      for (let n = 0; n < round % 6; n++) await new Promise(setImmediate);
      wire.send(["1", "1", DISCOVERY, "phx_join", {}]);
      await Promise.all([blocking, wire.next()]);
      wire.roster = new Roster();
      wire.roster.apply(await wire.nextPresence());
      await settle(server, wire);
      assert.equal(wire.roster.has(two.id), false, `round ${round}`);
      wire.close();
    }
  });

  test("R23: a suspended agent is cut off and vanishes, and is back when it may be", async () => {
    const watcher = await watch(server, user);
    const agent = await server.agent({ name: "Stopped", capabilities: ["stoppable"] });
    const status = (to) => server.ok("PUT", `/api/v1/admin/agents/${agent.id}/status`, { token: server.adminToken, body: { status: to } });
    for (const stop of ["suspended", "banned"]) {
      const wires = [await appear(server, agent), await watch(server, agent)];
      await until("both are seen", () => sync(watcher).of(agent.id).length === 2);
      await status(stop);
      for (const wire of wires) assert.equal((await wire.end(leniently(2_000))).code, 1001);
      await unseen(watcher, agent);
      assert.deepEqual(await found(watcher, { capability: "stoppable" }), []);
      assert.deepEqual(await server.ok("GET", "/api/v1/agents/discover?capability=stoppable", { token: user.token }), []);
      assert.equal((await server.request("GET", `/api/v1/agents/${agent.id}`, { token: user.token })).status, 404);
      await assert.rejects(Wire.open(urlOf(server, "/socket", agent)), /403/);
      await status("active");
      assert.equal((await found(watcher, { capability: "stoppable" }))[0].status, "offline");
    }
    await appear(server, agent);
    await seen(watcher, agent);
  });

  test("R23: an agent that is switched off and on again while connected is hidden, and shown again", async () => {
    const watcher = await watch(server, user);
    const agent = await server.agent({ owner: user, capabilities: ["switched"] });
    const wire = await watch(server, agent);
    await seen(watcher, agent);
    for (const hidden of ["inactive", "draft"]) {
      await server.ok("PUT", `/api/v1/agents/${agent.id}`, { token: user.token, body: { status: hidden } });
      await unseen(watcher, agent);
      assert.deepEqual(await found(watcher, { capability: "switched" }), []);
      await server.ok("PUT", `/api/v1/agents/${agent.id}`, { token: user.token, body: { status: "active" } });
      assert.equal((await found(watcher, { capability: "switched" }))[0]?.status, "online", `after ${hidden}`);
      await seen(watcher, agent);
    }
    wire.close();
    await unseen(watcher, agent);
  });

  test("R23: an agent that joins while it is inactive is shown once it is active", async () => {
    const watcher = await watch(server, user);
    const agent = await server.agent({ owner: user, capabilities: ["sleeper"] });
    const status = (to) => server.ok("PUT", `/api/v1/agents/${agent.id}`, { token: user.token, body: { status: to } });
    await status("inactive");
    await appear(server, agent);
    await settle(server, watcher);
    assert.equal(watcher.roster.has(agent.id), false);
    await status("active");
    assert.equal((await found(watcher, { capability: "sleeper" }))[0]?.online, true);
    await seen(watcher, agent);
  });

  test("R23: an agent that is stopped while it joins is not left behind", async () => {
    const watcher = await watch(server, user);
    for (let round = 0; round < 20; round++) {
      const agent = await server.agent({ name: `Stopped ${round}` });
      const wire = afterwards(await Wire.open(urlOf(server, "/socket/agent", agent)));
      const stopping = server.ok("PUT", `/api/v1/admin/agents/${agent.id}/status`, { token: server.adminToken, body: { status: "suspended" } });
      for (let n = 0; n < round % 5; n++) await new Promise(setImmediate);
      wire.send(["1", "1", `agent:${agent.id}`, "phx_join", {}]);
      await stopping;
      await wire.end(leniently(2_000));
      await settle(server, watcher);
      assert.equal(watcher.roster.has(agent.id), false, `round ${round}`);
    }
  });
});

describe("by other ways", () => {
  const shared = serve();
  let server, user;
  before(async () => {
    ({ server } = shared);
    user = await server.user();
  });

  test("R62: REST discovers the same, by the same filters", async () => {
    const capability = "by-rest";
    const agents = {};
    for (const [name, price] of [["b", "1"], ["a", "5"], ["c", "3"]]) agents[name] = await server.agent({ name, price, capabilities: [capability] });
    const wire = await appear(server, agents.c);
    const client = await server.agent();
    const done = await server.task(client, agents.a);
    await server.ok("PUT", `/api/v1/tasks/${done.id}/complete`, { key: agents.a.key, body: { output: 1 } });
    const names = async (query, auth = { token: user.token }) => (await server.ok("GET", `/api/v1/agents/discover?capability=${capability}${query}`, auth)).map(({ name }) => name);
    assert.deepEqual(await names(""), ["c", "a", "b"]);
    assert.deepEqual(await names("", { key: client.key }), ["c", "a", "b"]);
    assert.deepEqual(await names("&online_only=true"), ["c"]);
    assert.deepEqual(await names("&status=offline"), ["a", "b"]);
    assert.deepEqual(await names("&min_price=2"), ["c", "a"]);
    assert.deepEqual(await names("&max_price=3"), ["c", "b"]);
    assert.deepEqual(await names("&min_reputation=3"), ["a"]);
    assert.deepEqual(await names("&sort_by=price"), ["c", "b", "a"]);
    assert.deepEqual(await names("&limit=2"), ["c", "a"]);
    for (const query of ["&min_price=x", "&min_reputation=x", "&status=gone", "&limit=0", "&limit=x", "&sort_by=fame", "&online_only=perhaps"]) {
      const { status } = await server.request("GET", `/api/v1/agents/discover?capability=${capability}${query}`, { token: user.token });
      assert.ok(status === 422 || status === 400, `${query}: ${status}`);
    }
    assert.equal((await server.request("GET", "/api/v1/agents/discover")).status, 401);
    wire.close();
  });

  test("R62: a limit keeps the first by the order that was asked for", async () => {
    const capability = "sorted";
    const client = await server.agent();
    const dear = await server.agent({ name: "A dear one", price: "9", capabilities: [capability] });
    const done = await server.task(client, dear);
    await server.ok("PUT", `/api/v1/tasks/${done.id}/complete`, { key: dear.key, body: { output: 1 } });
    await server.agent({ name: "B cheap", price: "1", capabilities: [capability] });
    await server.agent({ name: "C cheaper", price: "0.5", capabilities: [capability] });
    const names = async (query) => (await server.ok("GET", `/api/v1/agents/discover?capability=${capability}${query}`, { token: user.token })).map(({ name }) => name);
    assert.deepEqual(await names("&sort_by=price"), ["C cheaper", "B cheap", "A dear one"]);
    assert.deepEqual(await names("&sort_by=price&limit=1"), ["C cheaper"]);
    assert.deepEqual(await names("&sort_by=name&limit=2"), ["A dear one", "B cheap"]);
  });

  test("R62: discovery by REST says how an agent is doing now", async () => {
    const agent = await server.agent({ capabilities: ["now"] });
    const [is] = await server.ok("GET", "/api/v1/agents/discover?capability=now", { token: user.token });
    assert.deepEqual([is.online, is.status], [false, "offline"]);
    const wire = await appear(server, agent);
    const [now] = await server.ok("GET", "/api/v1/agents/discover?capability=now", { token: user.token });
    assert.deepEqual([now.online, now.status], [true, "online"]);
    wire.close();
    await until("gone within a second", async () => !(await server.ok("GET", "/api/v1/agents/discover?capability=now", { token: user.token }))[0].online, leniently(1_000));
  });

  test("R28: an agent whose node was killed is offline when the node is back", async () => {
    const own = await Server.start({ set: RELAXED });
    try {
      const agent = await own.agent();
      await appear(own, agent);
      await own.kill();
      await own.startAgain();
      const watcher = await watch(own, await own.user());
      assert.equal(sync(watcher).has(agent.id), false);
      assert.equal((await own.ok("GET", `/api/v1/agents/${agent.id}`, { key: agent.key })).online, false);
    } finally {
      await own.end();
    }
  });

  test("R53 R55: an MCP session makes its agent online, until it is ended", async () => {
    const watcher = await watch(server, user);
    const agent = await server.agent({ name: "By MCP" });
    const initialize = {
      jsonrpc: "2.0",
      id: 1,
      method: "initialize",
      params: { protocolVersion: "2025-11-25", capabilities: {}, clientInfo: { name: "t", version: "1" } },
    };
    const headers = { accept: "application/json, text/event-stream" };
    const begin = async () => (await server.request("POST", "/mcp", { key: agent.key, body: initialize, headers })).headers.get("mcp-session-id");
    const [first, second] = [await begin(), await begin()];
    await until("both sessions are seen", () => sync(watcher).of(agent.id).length === 2);
    const end = (session) => server.request("DELETE", "/mcp", { key: agent.key, headers: { ...headers, "mcp-session-id": session } });
    await end(first);
    await until("one is left", () => sync(watcher).of(agent.id).length === 1);
    await end(second);
    await unseen(watcher, agent);
  });

  test("R53: an MCP session of the older transport makes its agent online as long as its stream lives", async () => {
    const watcher = await watch(server, user);
    const agent = await server.agent({ name: "By SSE" });
    const stop = new AbortController();
    const stream = await fetch(`${server.url}/mcp/sse`, { headers: { "x-api-key": agent.key, accept: "text/event-stream" }, signal: stop.signal });
    const reader = stream.body.getReader();
    const { value } = await reader.read();
    const endpoint = new URL(/data: (.*)/.exec(Buffer.from(value).toString())[1], `${server.url}/mcp/sse`);
    const initialize = { jsonrpc: "2.0", id: 1, method: "initialize", params: { protocolVersion: "2024-11-05", capabilities: {}, clientInfo: { name: "t", version: "1" } } };
    const posted = await fetch(endpoint, { method: "POST", headers: { "x-api-key": agent.key, "content-type": "application/json" }, body: JSON.stringify(initialize) });
    assert.equal(posted.status, 202);
    await seen(watcher, agent);
    stop.abort();
    await unseen(watcher, agent);
  });

  test("R53: a hundred sockets that come and go at one time leave nobody behind", async () => {
    const watcher = await watch(server, user);
    const agents = [];
    for (let n = 0; n < 20; n++) agents.push(await server.agent({ name: `Gone ${n}` }));
    const wires = await Promise.all(agents.flatMap((agent) => Array.from({ length: 5 }, () => appear(server, agent))));
    await until("all are seen", () => agents.every((agent) => sync(watcher).of(agent.id).length === 5));
    const frames = watcher.roster.frames.length;
    const begun = Date.now();
    for (const wire of wires) wire.close();
    await until("all are gone", () => agents.every((agent) => !sync(watcher).has(agent.id)));
    // They are gathered for 50 ms each.
    const most = 2 + (Date.now() - begun) / 50;
    assert.ok(watcher.roster.frames.length - frames <= most, `${watcher.roster.frames.length - frames} diffs, of ${most} at most`);
  });
});
