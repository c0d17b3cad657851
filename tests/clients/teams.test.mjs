// Teams: who belongs to one, what happens in it, and that nobody else gets any of it.

import assert from "node:assert/strict";
import { after, afterEach, before, describe, test } from "node:test";
import { onCluster } from "./lib/cluster.mjs";
import { collect, connect, join, push, VERSIONS } from "./lib/phoenix.mjs";
import { Server, until } from "./lib/server.mjs";
import { rate } from "./lib/streams.mjs";

const SET = ["drills.enabled=true", `limits.joins_per_agent=${rate(100_000)}`, `limits.registrations_per_ip=${rate(100_000)}`];

describe("a team", () => {
  let server;
  let user;
  let owner;
  let member;
  let stranger;
  const sockets = [];

  before(async () => {
    server = await Server.start({ set: SET });
    user = await server.user("Hirer");
    owner = await server.agent({ owner: user, name: "Owner" });
    member = await server.agent({ name: "Member" });
    stranger = await server.agent({ name: "Stranger" });
  });
  after(() => server.end());
  afterEach(() => sockets.splice(0).forEach((socket) => socket.disconnect()));

  const open = async (mount, params, version = VERSIONS.at(-1)) => {
    const socket = await connect(version, server, mount, params);
    sockets.push(socket);
    return socket;
  };
  const make = (others = [member]) => server.ok("POST", "/api/v1/teams", { key: owner.key, body: { name: "Crew", member_agent_ids: others.map((agent) => agent.id) } });
  const enter = async (team, agent, version) => {
    const socket = await open("/socket", { api_key: agent.key }, version);
    const channel = socket.channel(`team:${team.id}`, {});
    return { channel, ...(await join(channel)) };
  };
  const advance = (ms) => server.ok("POST", "/api/v1/admin/drills/clock", { token: server.adminToken, body: { advance_ms: ms } });

  test("R129: its members join it, and nobody else does, whatever they show", async () => {
    const team = await make();
    for (const [n, agent] of [owner, member].entries()) {
      const { status, response } = await enter(team, agent, VERSIONS[n]);
      assert.equal(status, "ok");
      assert.deepEqual(response.team.members, [owner.id, member.id]);
      assert.equal(response.team.owner_agent_id, owner.id);
    }
    const refused = { status: "error", response: { reason: "unauthorized" } };
    const { channel, ...answer } = await enter(team, stranger);
    assert.deepEqual(answer, refused);
    channel.leave();
    const unknown = await enter({ id: "0199b1a2-0000-7000-8000-000000000000" }, member);
    assert.deepEqual({ status: unknown.status, response: unknown.response }, refused);
    // Another user, and one who acts as no agent.
    const other = await server.user("Other");
    for (const token of [other.token, user.token]) {
      const socket = await open("/socket", { api_key: token });
      assert.deepEqual(await join(socket.channel(`team:${team.id}`, {})), refused);
    }
    // A key that is revoked opens nothing, and what it had opened is closed.
    const late = await server.agent({ owner: user, name: "Late" });
    await server.ok("POST", `/api/v1/teams/${team.id}/members`, { key: owner.key, body: { agent_id: late.id } });
    const socket = await open("/socket", { api_key: late.key });
    assert.equal((await join(socket.channel(`team:${team.id}`, {}))).status, "ok");
    const [credential] = await server.ok("GET", `/api/v1/agents/${late.id}/credentials`, { key: late.key });
    await server.ok("DELETE", `/api/v1/agents/${late.id}/credentials/${credential.id}`, { token: user.token });
    await until("the socket of the revoked key is closed", () => socket.recorded.closes.length > 0);
    assert.equal((await server.request("GET", `/api/v1/teams/${team.id}`, { key: late.key })).status, 401);
  });

  test("R129: what a member says reaches all members, in order, and stays", async () => {
    const team = await make();
    const [one, other] = [await enter(team, owner), await enter(team, member)];
    const seen = [one, other].map(({ channel }) => collect(channel, "team_message"));
    for (let n = 0; n < 20; n++) {
      const answer = await push(n % 2 === 0 ? one.channel : other.channel, "team_message", { content: { n } });
      assert.equal(answer.status, "ok", JSON.stringify(answer.response));
    }
    for (const messages of seen) {
      await until("all has come", () => messages.length === 20);
      assert.deepEqual(messages.map(({ content }) => content.n), Array.from({ length: 20 }, (_, n) => n));
    }
    assert.deepEqual([seen[0][0].from_agent_id, seen[0][1].from_agent_id], [owner.id, member.id]);
    const kept = await server.ok("GET", `/api/v1/teams/${team.id}/entries?kind=message&limit=100`, { key: member.key });
    assert.deepEqual(kept.map(({ body }) => body.content.n).reverse(), Array.from({ length: 20 }, (_, n) => n));
    for (const [payload, field] of [[{}, "content"], [{ content: "x".repeat(70_000) }, "content"]]) {
      const { status, response } = await push(one.channel, "team_message", payload);
      assert.deepEqual([status, response.reason, response.field], ["error", "invalid_payload", field]);
    }
    assert.equal((await push(one.channel, "nonsense", {})).response.reason, "unknown_event");
  });

  test("R129: knowledge is added and found, escalations reach the owner and whose agent that is", async () => {
    const team = await make();
    const own = (await open("/socket/agent", { api_key: owner.key })).channel(`agent:${owner.id}`, {});
    const hirer = (await open("/socket/hirer", { api_key: user.token })).channel(`hirer:${user.id}`, {});
    assert.deepEqual([(await join(own)).status, (await join(hirer)).status], ["ok", "ok"]);
    const above = [collect(own, "team.escalated"), collect(hirer, "team.escalated")];
    const [one, other] = [await enter(team, owner), await enter(team, member)];
    const [learnt, escalated] = [collect(one.channel, "knowledge_added"), collect(one.channel, "escalated")];
    assert.equal((await push(other.channel, "knowledge_add", { topic: "api", content: { version: 2 } })).status, "ok");
    assert.equal((await push(other.channel, "escalate", { reason: "stuck", severity: "critical", details: { at: "step 3" } })).status, "ok");
    await until("all has come", () => learnt.length === 1 && escalated.length === 1 && above.every((events) => events.length === 1));
    assert.deepEqual([learnt[0].topic, learnt[0].content], ["api", { version: 2 }]);
    assert.deepEqual([escalated[0].reason, escalated[0].severity, escalated[0].details], ["stuck", "critical", { at: "step 3" }]);
    for (const [event] of above) {
      assert.deepEqual([event.team_id, event.from_agent_id, event.reason, event.severity], [team.id, member.id, "stuck", "critical"]);
    }
    const known = await server.ok("GET", `/api/v1/teams/${team.id}/entries?kind=knowledge`, { key: owner.key });
    assert.deepEqual(known.map(({ body, from_agent_id: by }) => [body.topic, by]), [["api", member.id]]);
    assert.equal((await push(other.channel, "escalate", { reason: "" })).response.field, "reason");
    assert.equal((await push(other.channel, "escalate", { reason: "x", severity: "odd" })).response.reason, "invalid_payload");
  });

  test("R129, R171: a vote takes one ballot of each member, which may change until its time is over, and survives kill -9", async () => {
    const team = await make();
    const [one, other] = [await enter(team, owner), await enter(team, member)];
    const opened = collect(other.channel, "vote_opened");
    const asked = await push(one.channel, "vote_open", { question: "Ship it?", options: ["yes", "no"], period_s: 600 });
    assert.equal(asked.status, "ok", JSON.stringify(asked.response));
    const { vote_id: vote } = asked.response;
    const day = await push(one.channel, "vote_open", { question: "And then?", options: ["rest", "work"] });
    assert.equal(Date.parse(day.response.closes_at) - Date.parse(day.response.opened_at), 86_400_000);
    await until("both are told", () => opened.length === 2);
    const cast = (who, option) => push(who.channel, "vote_cast", { vote_id: vote, option });
    const ballots = collect(one.channel, "vote_cast");
    assert.equal((await cast(one, "no")).status, "ok");
    assert.equal((await cast(other, 0)).status, "ok");
    assert.equal((await cast(one, "yes")).status, "ok");
    assert.equal((await cast(one, "perhaps")).response.field, "option");
    await until("both ballots are told of", () => ballots.length >= 2);
    assert.deepEqual(ballots.map(({ agent_id: by, option }) => [by, option]), [[owner.id, undefined], [member.id, undefined]]);
    await server.kill();
    await server.startAgain();
    const again = await enter(team, member);
    assert.deepEqual(again.response.team.votes.map(({ ballots: count }) => count), [2, 0]);
    const closed = collect(again.channel, "vote_closed");
    await advance(599_000);
    assert.equal((await push(again.channel, "vote_cast", { vote_id: vote, option: "yes" })).status, "ok", "there is time");
    await advance(10_000);
    await until("it is closed", () => closed.length === 1);
    assert.deepEqual([closed[0].winner, closed[0].tally], ["yes", [{ option: "yes", votes: 2 }, { option: "no", votes: 0 }]]);
    assert.equal((await push(again.channel, "vote_cast", { vote_id: vote, option: "no" })).response.reason, "not_found");
    const kept = await server.ok("GET", `/api/v1/teams/${team.id}/entries?kind=vote`, { key: member.key });
    assert.deepEqual(kept.map(({ body }) => body.winner), ["yes"]);
  });

  test("R129: the owner takes in and puts out; who is out hears nothing more", async () => {
    const team = await make([]);
    const own = (await open("/socket/agent", { api_key: member.key })).channel(`agent:${member.id}`, {});
    assert.equal((await join(own)).status, "ok");
    const joined = collect(own, "team.joined");
    const ask = (method, path, who, body) => server.request(method, `/api/v1/teams/${team.id}${path}`, { key: who.key, body });
    assert.equal((await ask("POST", "/members", member, { agent_id: member.id })).status, 404, "not even that it exists");
    assert.equal((await ask("POST", "/members", owner, { agent_id: member.id })).status, 200);
    const again = await ask("POST", "/members", owner, { agent_id: member.id });
    assert.deepEqual([again.status, again.data.members], [200, [owner.id, member.id]], "who is in is in");
    await until("the member is told", () => joined.length === 1);
    assert.equal(joined[0].id, team.id);
    assert.equal((await ask("POST", "/members", owner, { agent_id: member.id })).status, 200, "again changes nothing");
    assert.equal((await ask("POST", "/members", member, { agent_id: stranger.id })).status, 403);
    assert.equal((await ask("POST", "/members", owner, { agent_id: "0199b1a2-0000-7000-8000-000000000000" })).status, 404);
    const [one, other] = [await enter(team, owner), await enter(team, member)];
    const [heard, gone] = [collect(other.channel, "team_message"), collect(one.channel, "member_removed")];
    let closed = false;
    other.channel.onClose(() => (closed = true));
    assert.equal((await ask("DELETE", `/members/${owner.id}`, owner)).status, 422);
    assert.equal((await ask("DELETE", `/members/${member.id}`, owner)).status, 200);
    await until("the member is out", () => closed);
    await until("the others are told", () => gone.length === 1);
    assert.equal((await push(one.channel, "team_message", { content: "secret" })).status, "ok");
    assert.equal((await enter(team, member)).status, "error");
    for (const path of ["", "/entries"]) assert.equal((await ask("GET", path, member)).status, 404, path);
    assert.deepEqual(heard, []);
    assert.equal(joined.length, 1, "told once");
    const listed = await server.ok("GET", "/api/v1/teams", { key: member.key });
    assert.ok(!listed.some(({ id }) => id === team.id));
  });

  test("R66, R129: nobody is taken into a team by whom they block", async () => {
    const shy = await server.agent({ name: "Shy" });
    await server.ok("POST", "/api/v1/blocks", { key: shy.key, body: { agent_id: owner.id } });
    const refused = await server.request("POST", "/api/v1/teams", { key: owner.key, body: { name: "Crew", member_agent_ids: [shy.id] } });
    assert.equal(refused.status, 404);
  });
});

describe("bounds of a team", () => {
  test("R129 R169: what one agent does in teams has a rate, and what a team keeps a bound in bytes", async () => {
    const server = await Server.start({ set: [...SET, `limits.team_actions_per_agent=${rate(5, 1, 600_000)}`, "limits.team_entries_bytes_max=2500"] });
    const sockets = [];
    try {
      const [owner, member] = [await server.agent(), await server.agent()];
      const team = await server.ok("POST", "/api/v1/teams", { key: owner.key, body: { name: "Crew", member_agent_ids: [member.id] } });
      const enter = async (agent) => {
        const socket = await connect(VERSIONS.at(-1), server, "/socket", { api_key: agent.key });
        sockets.push(socket);
        const channel = socket.channel(`team:${team.id}`, {});
        assert.equal((await join(channel)).status, "ok");
        return (n) => push(channel, "team_message", { content: `${n}`.repeat(1_000) });
      };
      const [byOwner, byMember] = [await enter(owner), await enter(member)];
      // Making the team was the first.
      for (const n of [1, 2, 3, 4]) assert.equal((await byOwner(n)).status, "ok");
      const refused = await byOwner(5);
      assert.deepEqual([refused.status, refused.response.reason, refused.response.retry_after_ms > 0], ["error", "rate_limited", true]);
      for (const [method, path, body] of [["POST", "/teams", { name: "More", member_agent_ids: [] }], ["POST", `/teams/${team.id}/members`, { agent_id: member.id }], ["DELETE", `/teams/${team.id}/members/${member.id}`]]) {
        const answer = await server.request(method, `/api/v1${path}`, { key: owner.key, body });
        assert.deepEqual([answer.status, answer.error?.code], [429, "RATE_LIMIT_EXCEEDED"], path);
      }
      assert.equal((await byMember(6)).status, "ok", "another agent has its own");
      const entries = await server.ok("GET", `/api/v1/teams/${team.id}/entries`, { key: owner.key });
      assert.deepEqual(entries.map(({ body }) => JSON.stringify(body).match(/(\d)\1{999}/)[1]), ["6", "4"], "the oldest have gone");
    } finally {
      sockets.forEach((socket) => socket.disconnect());
      await server.end();
    }
  });
});

describe("a team on several nodes", () => {
  const world = onCluster();
  const enter = async (node, team, agent) => {
    const socket = await connect(VERSIONS.at(-1), node, "/socket", { api_key: agent.key });
    const channel = socket.channel(`team:${team.id}`, {});
    assert.equal((await join(channel)).status, "ok");
    return { socket, channel };
  };

  test("R129: its members meet whichever node they are at, count once, and are put out everywhere", async () => {
    const [owner, ...others] = await Promise.all(Array.from({ length: 6 }, () => world.front.agent()));
    const body = { name: "Crew", member_agent_ids: others.map((agent) => agent.id) };
    const team = await world.one.ok("POST", "/api/v1/teams", { key: owner.key, body });
    const nodes = [world.one, world.two, world.three];
    const joined = await Promise.all([owner, ...others].map((agent, n) => enter(nodes[n % 3], team, agent)));
    const heard = joined.map(({ channel }) => collect(channel, "team_message"));
    await Promise.all(joined.map(({ channel }, n) => push(channel, "team_message", { content: n })));
    for (const messages of heard) await until("everybody is heard everywhere", () => messages.length === joined.length);
    assert.deepEqual([...new Set(heard.map((messages) => messages.map(({ content }) => content).sort().join()))], ["0,1,2,3,4,5"]);
    // All at once: each node decides, and the store lets nobody's ballot get lost.
    const { response } = await push(joined[0].channel, "vote_open", { question: "Now?", options: ["yes", "no"], period_s: 60 });
    const cast = await Promise.all(joined.map(({ channel }) => push(channel, "vote_cast", { vote_id: response.vote_id, option: "yes" })));
    assert.deepEqual([...new Set(cast.map(({ status }) => status))], ["ok"]);
    assert.equal((await world.three.ok("GET", `/api/v1/teams/${team.id}`, { key: owner.key })).votes[0].ballots, joined.length);
    const closed = [1, 2].map((n) => new Promise((resolve) => joined[n].channel.onClose(resolve)));
    for (const agent of others.slice(0, 2)) await world.one.ok("DELETE", `/api/v1/teams/${team.id}/members/${agent.id}`, { key: owner.key });
    await Promise.all(closed);
    for (const { socket } of joined) socket.disconnect();
  });
});
