// Who may connect where, by which credential in which place, who may join what, and what an agent and a hirer are told.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, afterEach, before, describe, test } from "node:test";
import WebSocket from "ws";
import { Bare, handshake, handshakeStatus, query, tokenProtocol } from "./lib/bare.mjs";
import { collect, connect, join, phoenix, push, VERSIONS } from "./lib/phoenix.mjs";
import { cast, leniently, Server, until } from "./lib/server.mjs";
import { rate } from "./lib/streams.mjs";

const servers = [];
const sockets = [];
const start = async (options) => {
  const server = await Server.start(options);
  servers.push(server);
  return server;
};
const open = async (...args) => {
  const socket = await Bare.open(...args);
  sockets.push(socket);
  return socket;
};
const client = async (version, ...args) => {
  const socket = await connect(version, ...args);
  sockets.push({ end: () => socket.disconnect() });
  return socket;
};

afterEach(() => sockets.splice(0).forEach((socket) => socket.end()));
after(() => Promise.all(servers.map((server) => server.end())));

const AGENT = "/socket/agent/websocket";
const HIRER = "/socket/hirer/websocket";
const MAIN = "/socket/websocket";
const USER = "/user_socket/websocket";
const BARE_USER = "/user_socket";
const LATEST = VERSIONS.at(-1);
const WITHIN_MS = leniently(2_000);

let server;
before(async () => (server = await start()));

const session = async (agent) => (await server.ok("POST", "/api/v1/auth/authenticate", { key: agent.key })).token;
const status = (agent, to) => server.ok("PUT", `/api/v1/admin/agents/${agent.id}/status`, { token: server.adminToken, body: { status: to } });
const joinedAs = async (who, path, params) => {
  const socket = await open(server, path, params);
  assert.equal((await socket.join(who)).status, "ok", who);
  return socket;
};
const agentSocket = (agent) => joinedAs(`agent:${agent.id}`, AGENT, { api_key: agent.key });
const hirerSocket = (user) => joinedAs(`hirer:${user.id}`, HIRER, { api_key: user.token });
const hire = (by, agent, body = {}) => server.ok("POST", `/api/v1/agents/${agent.id}/hire`, { ...by, body: { capability: "code", input: { ask: 1 }, ...body } });

/** A refused handshake says its status and nothing else. */
async function refused(target, options, label = target, want = 403) {
  const answer = await handshake(server, target, options);
  answer.tcp?.destroy();
  assert.deepEqual({ status: answer.status, body: answer.body }, { status: want, body: "" }, label);
  assert.equal(answer.headers["sec-websocket-accept"], undefined, label);
  assert.equal(answer.headers["www-authenticate"], undefined, label);
}

describe("mounts and versions", () => {
  let agent, user, token;
  before(async () => {
    user = await server.user();
    agent = await server.agent({ owner: user });
    token = await session(agent);
  });

  test("R1: every mount upgrades at /websocket, with or without a slash behind, and the bare /user_socket does too", async () => {
    for (const [path, params] of [
      [AGENT, { api_key: agent.key }],
      [HIRER, { api_key: user.token }],
      [MAIN, { api_key: agent.key }],
      [USER, { agent_id: agent.id, token }],
      [BARE_USER, { agent_id: agent.id, token }],
    ]) {
      for (const slash of ["", "/"]) {
        const answer = await handshake(server, `${path}${slash}${query(params)}`);
        assert.equal(answer.status, 101, path + slash);
        assert.equal(answer.headers.upgrade.toLowerCase(), "websocket");
        assert.equal(answer.headers["cache-control"], "max-age=0, private, must-revalidate");
        assert.equal(answer.headers["sec-websocket-protocol"], undefined, "none was offered");
        answer.tcp.destroy();
      }
    }
  });

  test("R1: what is no mount is no endpoint", async () => {
    for (const path of ["/socket", "/socket/agent", "/socket/hirer", "/websocket", "/socket/other/websocket", "/socket/agent/websocket/x", "/socket/websocket/websocket", "/SOCKET/websocket"]) {
      const answer = await handshake(server, path + query({ api_key: agent.key }));
      assert.equal(answer.status, 404, path);
      assert.equal(JSON.parse(answer.body).errors[0].code, "ROUTE_NOT_FOUND", path);
    }
  });

  test("R2: vsn 2.0.x speaks arrays; 1.0.x and no vsn speak objects", async () => {
    for (const vsn of ["2.0.0", "2.0.9"]) {
      const socket = await open(server, AGENT, { api_key: agent.key }, { vsn });
      socket.ws.send(JSON.stringify([null, "7", "phoenix", "heartbeat", {}]));
      const [reply] = await until("the reply", () => socket.messages.length > 0 && socket.messages);
      assert.deepEqual(reply, { join_ref: null, ref: "7", topic: "phoenix", event: "phx_reply", payload: { status: "ok", response: {} } });
    }
    for (const vsn of [null, "1.0.0", "1.0.3"]) {
      const socket = await open(server, AGENT, { api_key: agent.key }, { vsn });
      socket.ws.send(JSON.stringify({ topic: "phoenix", event: "heartbeat", payload: {}, ref: "7" }));
      const [reply] = await until("the reply", () => socket.messages.length > 0 && socket.messages);
      assert.ok(!Array.isArray(reply));
      assert.deepEqual([reply.topic, reply.event, reply.ref, reply.payload], ["phoenix", "phx_reply", "7", { status: "ok", response: {} }]);
    }
  });

  test("R2: every other vsn is refused", async () => {
    for (const vsn of ["3.0.0", "2.1.0", "1.1.0", "0.0.0", "2", "2.0", "2.0.0.0", "2.0.0-rc.1", "v2.0.0", " 2.0.0", "", "2.0.x", "-2.0.0", "99999999999999999999.0.0"]) {
      await refused(AGENT + query({ api_key: agent.key, vsn }), {}, `vsn=${vsn}`);
    }
    await refused(`${AGENT}?api_key=${agent.key}&vsn[a]=1`, {}, "a map");
    assert.equal(await handshakeStatus(server, `${AGENT}?vsn=3.0.0&api_key=${agent.key}&vsn=2.0.0`), 101, "the last one counts");
  });

  test("R1 R8: a query is read as Phoenix reads it", async () => {
    for (const text of [`?&&api_key=${agent.key}&&vsn=2.0.0&`, `?api_key=${agent.key}&x=%zz`, `?api_key=${agent.key}&nest%5Bx%5D%5By%5D=1&arr%5B0%5D=p`, `?x&api_key=${agent.key}`]) {
      assert.equal(await handshakeStatus(server, AGENT + text), 101, text);
    }
    await refused(`${AGENT}?api_key=${agent.key}&x=%ff`, {}, "no UTF-8", 400);
    await refused(`${AGENT}?api_key[x]=${agent.key}`, {}, "a map is no key");
    await refused(`${AGENT}?api_key[]=${agent.key}`, {}, "a list is no key");
  });

  test("R1 R8: what is no upgrade is told so, but only to those who may connect", async () => {
    const good = AGENT + query({ api_key: agent.key });
    for (const [what, options] of [
      ["no Connection", { omit: ["connection"] }],
      ["another Connection", { headers: { connection: "keep-alive" } }],
      ["no Upgrade", { omit: ["upgrade"], headers: { connection: "close" } }],
      ["no key", { omit: ["sec-websocket-key"] }],
      ["a short key", { headers: { "sec-websocket-key": "abc" } }],
      ["no version", { omit: ["sec-websocket-version"] }],
      ["an old version", { headers: { "sec-websocket-version": "8" } }],
    ]) {
      const answer = await handshake(server, good, options);
      assert.equal(answer.status, 400, what);
      await refused(AGENT + query({ api_key: "ap_wrong" }), options, what);
    }
    for (const method of ["POST", "PUT", "DELETE"]) await refused(good, { method }, method, 400);
  });
});

describe("credentials", () => {
  let user, agent, other, kinds;
  before(async () => {
    user = await server.user();
    [agent, other] = [await server.agent({ owner: user }), await server.agent({ owner: await server.user() })];
    kinds = { key: agent.key, "user token": user.token, session: await session(agent) };
  });

  /** Every place a credential can be shown at a mount. */
  function places(mount, secret) {
    const name = { [MAIN]: secret.startsWith("ap_") ? "api_key" : "session_token", [USER]: "token" }[mount] ?? "api_key";
    // The user socket always names its agent.
    const rest = mount === USER ? { agent_id: agent.id } : {};
    const target = mount + query(rest);
    return {
      "the query": [mount + query({ ...rest, [name]: secret })],
      "the sub-protocol": [target, { headers: { "sec-websocket-protocol": `phoenix, ${tokenProtocol(secret)}` } }],
      "X-API-Key": [target, { headers: { "x-api-key": secret } }],
      "Authorization": [target, { headers: { authorization: `Bearer ${secret}` } }],
    };
  }

  const opens = {
    [AGENT]: ["key"],
    [HIRER]: ["user token"],
    [MAIN]: ["key", "user token", "session"],
    // An agent's session, or its owner's token.
    [USER]: ["user token", "session"],
  };
  for (const [mount, allowed] of Object.entries(opens)) {
    test(`R8 R9 R24 R30 R57 R109 R167 C6: ${mount} opens for ${allowed.join(", ")}, wherever it is shown, and for nothing else`, async () => {
      for (const [kind, secret] of Object.entries(kinds)) {
        for (const [place, [target, options]] of Object.entries(places(mount, secret))) {
          const label = `${mount}: ${kind} in ${place}`;
          if (allowed.includes(kind)) assert.equal(await handshakeStatus(server, target, options), 101, label);
          else await refused(target, options, label);
        }
      }
    });

    test(`R8 R9 R167: ${mount} refuses what is no credential, wherever it is shown`, async () => {
      const revokedUser = await server.user();
      await server.ok("DELETE", `/api/v1/admin/users/${revokedUser.id}/tokens/${revokedUser.credential.id}`, { token: server.adminToken });
      const gone = await server.agent();
      const goneSession = await session(gone);
      await server.ok("POST", "/api/v1/auth/rotate-key", { key: gone.key });
      const secrets = ["ap_wrong", "x", `${agent.key}x`, agent.key.slice(0, -1), server.adminToken, "x".repeat(300), "x".repeat(4_000), revokedUser.token, gone.key, goneSession, "\u0000", "ü"];
      for (const secret of secrets) {
        for (const [place, [target, options]] of Object.entries(places(mount, secret))) {
          // A header cannot carry these at all.
          if (/[\0-\x1f\x80-]/.test(secret) && place !== "the query") continue;
          await refused(target, options, `${mount}: ${secret.slice(0, 20)} in ${place}`);
        }
      }
      await refused(mount, {}, "nothing");
      await refused(`${mount}?api_key=&session_token=&token=`, {}, "empty ones");
      await refused(mount, { headers: { cookie: `api_key=${agent.key}; token=${kinds.session}` } }, "a cookie");
      await refused(mount, { headers: { authorization: `Basic ${Buffer.from(agent.key).toString("base64")}` } }, "another scheme");
    });
  }

  for (const version of ["1.8.15", "1.8.16"]) {
    test(`R9: phoenix ${version} with an empty api_key beside its authToken is let in by the token`, async () => {
      const agent = await server.agent();
      const socket = await client(version, server, "/socket/agent", { api_key: "" }, { authToken: agent.key });
      assert.equal(socket.isConnected(), true);
    });

    test(`R9: authToken of phoenix ${version} opens every mount, and shows nothing in the address`, async () => {
      for (const [mount, secret, params] of [
        ["/socket/agent", agent.key],
        ["/socket/hirer", user.token],
        ["/socket", kinds.session],
        ["/user_socket", kinds.session, { agent_id: agent.id }],
      ]) {
        const socket = await client(version, server, mount, params ?? {}, { authToken: secret });
        assert.ok(socket.isConnected(), mount);
        assert.ok(!socket.endPointURL().includes(secret));
        assert.equal(socket.conn.protocol, "phoenix");
      }
    });
  }

  test("R9: a token in the sub-protocol is read as Phoenix reads it", async () => {
    const offer = (value) => ({ headers: { "sec-websocket-protocol": value } });
    const token = tokenProtocol(agent.key);
    for (const value of [`phoenix, ${token}`, `phoenix,${token}`, `${token}, phoenix`, `phoenix, ${token}=`, `mqtt, phoenix, ${token}`]) {
      const answer = await handshake(server, AGENT, offer(value));
      assert.equal(answer.status, 101, value);
      assert.equal(answer.headers["sec-websocket-protocol"], "phoenix", value);
      answer.tcp.destroy();
    }
    for (const value of [`phoenix, ${token}, ${token}`, `phoenix, ${token}, ${tokenProtocol("x")}`, `phoenix, base64url.bearer.phx.***`, `phoenix, base64url.bearer.phx.`, `phoenix, ${tokenProtocol("ap_wrong")}`, "phoenix", `phoenix, base64url.bearer.phx.${agent.key}`, `phoenix, base64url.bearer.phx.gA`]) {
      await refused(AGENT, offer(value), value);
    }
    await refused(AGENT + query({ api_key: agent.key }), offer("mqtt"), "no protocol in common, whatever the query says");
    const plain = await handshake(server, AGENT + query({ api_key: agent.key }), offer("phoenix"));
    assert.deepEqual([plain.status, plain.headers["sec-websocket-protocol"]], [101, "phoenix"]);
    plain.tcp.destroy();
  });

  test("R57: of api_key and session_token, api_key decides", async () => {
    const otherSession = await session(other);
    await refused(MAIN + query({ api_key: "ap_wrong", session_token: kinds.session }), {}, "a wrong key and a good session");
    await refused(MAIN + query({ session_token: kinds.session, api_key: "ap_wrong" }), {}, "in the other order");
    const socket = await open(server, MAIN, { session_token: otherSession, api_key: agent.key });
    await socket.join("agents:discovery");
    assert.equal((await socket.ask("agents:discovery", "announce", { capabilities: ["mine"] }, "1")).status, "ok");
    const capabilities = async (one) => (await server.ok("GET", `/api/v1/agents/${one.id}`, { key: one.key })).capabilities;
    assert.deepEqual(await capabilities(agent), ["mine"]);
    assert.deepEqual(await capabilities(other), ["code"]);
    assert.equal(await handshakeStatus(server, MAIN + query({ api_key: agent.key, session_token: "as_wrong" })), 101, "the session is not looked at");
  });

  test("R24 R30 R57 R109: a mount reads its own parameters, and no other's", async () => {
    for (const [target, label] of [
      [AGENT + query({ token: agent.key }), "token on /socket/agent"],
      [AGENT + query({ session_token: kinds.session }), "session_token on /socket/agent"],
      [HIRER + query({ token: user.token }), "token on /socket/hirer"],
      [HIRER + query({ session_token: user.token }), "session_token on /socket/hirer"],
      [MAIN + query({ token: agent.key }), "token on /socket"],
      [USER + query({ agent_id: agent.id, api_key: kinds.session }), "api_key on /user_socket"],
    ]) {
      await refused(target, {}, label);
    }
  });

  test("R109 R167: on the user socket the token belongs to the agent it names, or to its owner", async () => {
    const otherOwner = await server.user();
    for (const path of [USER, BARE_USER]) {
      const at = (params) => path + query(params);
      assert.equal(await handshakeStatus(server, at({ agent_id: agent.id, token: kinds.session })), 101);
      assert.equal(await handshakeStatus(server, at({ agent_id: agent.id, token: user.token })), 101, "its owner's");
      await refused(at({ agent_id: other.id, token: kinds.session }), {}, "another agent's id");
      await refused(at({ agent_id: agent.id, token: await session(other) }), {}, "another agent's session");
      await refused(at({ agent_id: other.id, token: user.token }), {}, "an agent of another user");
      await refused(at({ agent_id: agent.id, token: otherOwner.token }), {}, "another user's token");
      await refused(at({ agent_id: agent.id, token: agent.key }), {}, "a key is no session");
      for (const id of [randomUUID(), "nobody", "", `${agent.id} `]) await refused(at({ agent_id: id, token: kinds.session }), {}, `agent_id=${id}`);
      await refused(at({ token: user.token }), {}, "an owner who names none");
      await refused(at({ agent_id: agent.id }), {}, "no token");
    }
  });

  test("R20 R57 R167: on the main socket a user may speak as an agent of theirs only", async () => {
    const at = (agent_id) => MAIN + query({ api_key: user.token, agent_id });
    assert.equal(await handshakeStatus(server, at(agent.id)), 101);
    const free = await server.agent();
    for (const id of [other.id, free.id, randomUUID(), "nobody", ""]) await refused(at(id), {}, `agent_id=${id}`);
  });

  test("R24 C6: agent_id does not make a user's token an agent's key", async () => {
    await refused(AGENT + query({ api_key: user.token, agent_id: agent.id }));
    await refused(AGENT + query({ agent_id: agent.id }), { headers: { authorization: `Bearer ${user.token}`, "x-agent-id": agent.id } });
    await refused(HIRER + query({ api_key: agent.key, agent_id: agent.id }));
  });

  test("R8 R23 R167: a suspended agent is refused like a wrong key", async () => {
    const stopped = await server.agent({ owner: user });
    const token = await session(stopped);
    await status(stopped, "suspended");
    const shown = async (target) => {
      const { status: code, headers, body } = await handshake(server, target);
      const { date, ...rest } = headers;
      return { code, body, rest, hadDate: Boolean(date) };
    };
    for (const [stoppedAt, wrongAt] of [
      [AGENT + query({ api_key: stopped.key }), AGENT + query({ api_key: "ap_wrong" })],
      [MAIN + query({ session_token: token }), MAIN + query({ session_token: "as_wrong" })],
      [MAIN + query({ api_key: user.token, agent_id: stopped.id }), MAIN + query({ api_key: user.token, agent_id: randomUUID() })],
      [USER + query({ token, agent_id: stopped.id }), USER + query({ token: "as_wrong", agent_id: stopped.id })],
    ]) {
      assert.deepEqual(await shown(stoppedAt), await shown(wrongAt));
    }
  });

  test("R58 R18: everything an agent has open is closed together", async () => {
    const one = await server.agent({ owner: user });
    const all = [
      await open(server, MAIN, { api_key: one.key }),
      await open(server, MAIN, { session_token: await session(one) }),
      await open(server, AGENT, { api_key: one.key }),
      await open(server, MAIN, { api_key: user.token, agent_id: one.id }),
      await open(server, BARE_USER, { token: await session(one), agent_id: one.id }),
    ];
    const bystander = await open(server, MAIN, { api_key: agent.key });
    await status(one, "banned");
    for (const socket of all) assert.equal((await socket.ended(WITHIN_MS)).code, 1001);
    assert.equal((await bystander.ask("phoenix", "heartbeat")).status, "ok");
  });
});

describe("origins", () => {
  const tryOrigins = async (at, key, cases) => {
    for (const [origin, allowed] of cases) {
      const answer = await handshake(at, AGENT + query({ api_key: key }), { headers: origin === null ? {} : { origin } });
      answer.tcp?.destroy();
      assert.equal(answer.status, allowed ? 101 : 403, String(origin));
      assert.equal(answer.body, "");
    }
  };

  test("R12: by default any origin may connect, because no credential is a cookie", async () => {
    const agent = await server.agent();
    await tryOrigins(server, agent.key, [[null, true], ["https://evil.example", true], ["null", true], ["file://", true], ["not an origin", true]]);
    const answer = await fetch(`${server.url}/live`, { headers: { origin: "https://evil.example" } });
    assert.equal(answer.headers.get("access-control-allow-origin"), "*");
    assert.equal(answer.headers.get("access-control-allow-credentials"), null);
  });

  test("R12 R167: an allow-list is matched exactly, in Phoenix's forms", async () => {
    const own = await start({ set: ['http.origins=["https://example.com", "//another.com:888", "//*.other.com", "http://[::1]:4000", "https://port.example:8443"]'] });
    const agent = await own.agent();
    await tryOrigins(own, agent.key, [
      [null, true],
      ["https://example.com", true],
      ["https://EXAMPLE.com", true],
      ["https://example.com:8443", true],
      ["http://example.com", false],
      ["https://sub.example.com", false],
      ["https://example.com.evil.example", false],
      ["https://evilexample.com", false],
      ["https://evil.example/https://example.com", false],
      ["https://example.com@evil.example", false],
      ["https://evil.example#https://example.com", false],
      ["http://another.com:888", true],
      ["wss://another.com:888", true],
      ["https://another.com", false],
      ["https://another.com:889", false],
      ["https://other.com", true],
      ["https://a.b.other.com:1", true],
      ["https://another-other.com", false],
      ["http://[::1]:4000", true],
      ["http://[::1]:4001", false],
      ["https://port.example:8443", true],
      ["https://port.example", false],
      ["null", false],
      ["", false],
      ["https://", false],
    ]);
    const good = AGENT + query({ api_key: agent.key });
    assert.equal(await handshakeStatus(own, good, { headers: { origin: "https://evil.example" } }), 403, "a good key does not help");
    assert.equal(await handshakeStatus(own, AGENT + query({ api_key: "ap_wrong" }), { headers: { origin: "https://example.com" } }), 403, "nor a good origin");

    const cors = async (origin) => (await fetch(`${own.url}/live`, { headers: { origin } })).headers;
    assert.equal((await cors("https://example.com")).get("access-control-allow-origin"), "https://example.com");
    assert.equal((await cors("https://evil.example")).get("access-control-allow-origin"), null);
    assert.match((await cors("https://evil.example")).get("vary"), /origin/i);
    const mcp = await fetch(`${own.url}/mcp`, { method: "POST", headers: { origin: "https://evil.example", "x-api-key": agent.key }, body: "{}" });
    assert.equal(mcp.status, 403, "MCP checks it too");
  });

  test("R12: an origin pattern that is none keeps the node from starting", async () => {
    await assert.rejects(Server.start({ set: ['http.origins=["example.com"]'] }), /http\.origins/);
  });
});

describe("joins", () => {
  const REFUSED = { status: "error", response: { reason: "unauthorized" } };
  const UNMATCHED = { status: "error", response: { reason: "unmatched topic" } };
  let mine, theirs;
  before(async () => {
    mine = await cast(server);
    theirs = await cast(server);
  });

  test("R25 R167: an agent joins its own topic, and no other's", async () => {
    const socket = await open(server, AGENT, { api_key: mine.provider.key });
    for (const id of [theirs.provider.id, mine.client.id, mine.user.id, randomUUID(), "nobody", "", "*", `${mine.provider.id} `]) {
      assert.deepEqual(await socket.join(`agent:${id}`), REFUSED, id);
    }
    assert.equal((await socket.join(`agent:${mine.provider.id}`)).status, "ok");
  });

  test("R31 R167: a user joins their own topic, and no other's", async () => {
    const socket = await open(server, HIRER, { api_key: mine.user.token });
    for (const id of [theirs.user.id, mine.client.id, randomUUID(), "nobody", "", "*"]) assert.deepEqual(await socket.join(`hirer:${id}`), REFUSED, id);
    assert.equal((await socket.join(`hirer:${mine.user.id}`)).status, "ok");
  });

  test("R29 R167: an agent reads streams of tasks that it does or gave", async () => {
    for (const [agent, label] of [[mine.provider, "its provider"], [mine.client, "its client"]]) {
      const socket = await open(server, AGENT, { api_key: agent.key });
      const joined = await socket.join(`task_stream:${mine.task.id}`);
      assert.equal(joined.status, "ok", label);
      assert.deepEqual(Object.keys(joined.response).sort(), ["first_seq", "seq", "status", "truncated"]);
      assert.deepEqual(await socket.join(`task_stream:${theirs.task.id}`), REFUSED, label);
    }
    const sister = await server.agent({ owner: mine.user });
    const socket = await open(server, AGENT, { api_key: sister.key });
    assert.deepEqual(await socket.join(`task_stream:${mine.task.id}`), REFUSED, "another agent of the same user");
  });

  test("R34 R167: a user reads streams of tasks that an agent of theirs gave", async () => {
    const owner = await server.user();
    const provider = await server.agent({ owner });
    const task = await server.task(mine.client, provider);
    const hirer = await open(server, HIRER, { api_key: mine.user.token });
    assert.equal((await hirer.join(`task_stream:${task.id}`)).status, "ok");
    const providers = await open(server, HIRER, { api_key: owner.token });
    assert.deepEqual(await providers.join(`task_stream:${task.id}`), REFUSED, "owning the provider is not enough");
    const stranger = await open(server, HIRER, { api_key: theirs.user.token });
    assert.deepEqual(await stranger.join(`task_stream:${task.id}`), REFUSED);
    const unowned = await server.task(await server.agent(), provider);
    assert.deepEqual(await hirer.join(`task_stream:${unowned.id}`), REFUSED, "a task of an agent that nobody owns");
  });

  test("R16 R34: whoever claims an agent reads the streams of the tasks it gave before", async () => {
    const [user, agent, provider] = [await server.user(), await server.agent(), await server.agent()];
    const task = await server.task(agent, provider);
    const before = await open(server, HIRER, { api_key: user.token });
    assert.deepEqual(await before.join(`task_stream:${task.id}`), REFUSED, "not theirs yet");
    const [claimed] = await server.ok("POST", "/api/v1/agents/assign", { token: user.token, body: { agents: [{ agent_id: agent.id, api_key: agent.key }] } });
    assert.equal(claimed.assigned, true);
    assert.equal((await before.join(`task_stream:${task.id}`)).status, "ok");
    assert.equal((await server.request("GET", `/api/v1/tasks/${task.id}`, { token: user.token })).status, 200);
  });

  test("R35: an unknown task and somebody else's get the same answer, on every socket", async () => {
    for (const [path, secret] of [
      [AGENT, mine.client.key],
      [HIRER, mine.user.token],
    ]) {
      const socket = await open(server, path, { api_key: secret });
      const answers = [];
      for (const id of [theirs.task.id, randomUUID(), "nobody", "", mine.task.id.toUpperCase().slice(0, -1)]) {
        const ref = socket.send(`task_stream:${id}`, "phx_join", { after_seq: 0 });
        const [reply] = await until("the reply", () => {
          const found = socket.messages.filter((one) => one.ref === ref);
          return found.length > 0 && found;
        });
        assert.equal(reply.topic, `task_stream:${id}`);
        answers.push(JSON.stringify([reply.event, reply.payload]));
      }
      assert.deepEqual([...new Set(answers)], [JSON.stringify(["phx_reply", REFUSED])]);
      assert.equal(socket.messages.length, answers.length, "and nothing more");
    }
  });

  test("R35: an unknown task and somebody else's are refused in the same time", async () => {
    const socket = await open(server, HIRER, { api_key: mine.user.token });
    const times = { theirs: [], unknown: [] };
    let replied;
    socket.ws.on("message", () => replied());
    const time = async (id) => {
      const began = process.hrtime.bigint();
      const reply = new Promise((resolve) => (replied = resolve));
      socket.send(`task_stream:${id}`, "phx_join");
      await reply;
      return Number(process.hrtime.bigint() - began) / 1e6;
    };
    for (let n = 0; n < 300; n++) {
      times.theirs.push(await time(theirs.task.id));
      times.unknown.push(await time(randomUUID()));
    }
    const median = (list) => list.toSorted((a, b) => a - b)[list.length / 2];
    const [one, two] = [median(times.theirs), median(times.unknown)];
    assert.ok(Math.abs(one - two) < 0.5 + 0.5 * Math.min(one, two), `medians ${one} ms and ${two} ms`);
  });

  test("R26 R35 R167: only the provider of a task emits, and others learn nothing of it", async () => {
    const chunk = (task_id) => ({ task_id, content: "forged", kind: "chat" });
    for (const [agent, label] of [[mine.client, "its client"], [theirs.provider, "a stranger"]]) {
      const socket = await agentSocket(agent);
      const foreign = await socket.ask(`agent:${agent.id}`, "task.stream_chunk", chunk(mine.task.id), "1");
      const unknown = await socket.ask(`agent:${agent.id}`, "task.stream_chunk", chunk(randomUUID()), "1");
      assert.deepEqual(foreign, REFUSED, label);
      assert.deepEqual(unknown, foreign, label);
    }
    const hirer = await hirerSocket(mine.user);
    assert.equal((await hirer.ask(`hirer:${mine.user.id}`, "task.stream_chunk", chunk(mine.task.id), "1")).status, "error", "its hirer");
    const stream = await server.ok("GET", `/api/v1/tasks/${mine.task.id}/stream`, { key: mine.client.key });
    assert.equal(stream.seq, 0, "nothing was emitted");
    const socket = await agentSocket(mine.provider);
    assert.deepEqual(await socket.ask(`agent:${mine.provider.id}`, "task.stream_chunk", chunk(mine.task.id), "1"), { status: "ok", response: { seq: 1 } });
  });

  test("R4 R59: topics that a mount does not have are unmatched", async () => {
    const { client, provider, task, user } = mine;
    const id = randomUUID();
    const foreign = {
      [AGENT]: [`hirer:${user.id}`, "agents:discovery", "room:lobby", "agent", "phoenix", "", `messages:${provider.id}`],
      [HIRER]: [`agent:${client.id}`, "agents:discovery", `messages:${client.id}`],
      [MAIN]: [`agent:${provider.id}`, `task_stream:${task.id}`, `hirer:${user.id}`, "agents", "agents:", "agents:discovery:x", "AGENTS:DISCOVERY"],
    };
    for (const [path, topics] of Object.entries(foreign)) {
      const socket = await open(server, path, { api_key: path === HIRER ? user.token : provider.key });
      for (const topic of topics) assert.deepEqual(await socket.join(topic), UNMATCHED, `${path} ${topic}`);
      assert.equal((await socket.ask("phoenix", "heartbeat")).status, "ok");
    }
    // Sorts that there are, with an id that is somebody else's or nobody's, say no more than that.
    const main = await open(server, MAIN, { api_key: provider.key });
    for (const topic of [`negotiation:${id}`, `payment:${id}`, `team:${id}`, `task:${id}`, `messages:${client.id}`, `analytics:agent:${client.id}`, `analytics:user:${user.id}`]) {
      assert.deepEqual(await main.join(topic), { status: "error", response: { reason: "unauthorized" } }, topic);
    }
  });

  test("R59 R61 R20: every credential joins discovery on the main socket; one without an agent watches unseen", async () => {
    const agent = await server.agent({ owner: mine.user });
    for (const [params, seen] of [
      [{ api_key: agent.key }, true],
      [{ session_token: await session(agent) }, true],
      [{ api_key: mine.user.token, agent_id: agent.id }, true],
      [{ api_key: mine.user.token }, false],
    ]) {
      const socket = await open(server, MAIN, params);
      assert.deepEqual(await socket.join("agents:discovery"), { status: "ok", response: {} });
      const frames = () => [...socket.events("agents:discovery", "presence_state"), ...socket.events("agents:discovery", "presence_diff").map((diff) => diff.joins)];
      await until("presence", () => frames().length > 0);
      if (seen) await until("it sees itself", () => frames().some((frame) => agent.id in frame));
      else assert.ok(!frames().some((frame) => mine.user.id in frame));
      socket.end();
    }
  });

  test("R60 C3: an agent joins 30 times a minute on the main socket, by all its sockets together", async () => {
    const own = await start();
    const [agent, other] = [await own.agent(), await own.agent()];
    const two = [await open(own, MAIN, { api_key: agent.key }), await open(own, MAIN, { api_key: agent.key })];
    const begun = Date.now();
    for (let n = 0; n < 30; n++) assert.equal((await two[n % 2].join("agents:discovery")).status, "ok", `join ${n + 1}`);
    let joined = 30;
    for (const socket of two) {
      let late;
      // One more becomes free every two seconds.
      while ((late = await socket.join("agents:discovery")).status === "ok") joined++;
      assert.ok(joined <= 30 + (Date.now() - begun) / 2_000, `${joined} joins in ${Date.now() - begun} ms`);
      assert.equal(late.response.reason, "rate_limited");
      assert.ok(late.response.retry_after_ms > 0 && late.response.retry_after_ms <= 60_000, JSON.stringify(late.response));
      assert.equal((await socket.ask("phoenix", "heartbeat")).status, "ok", "a refusal, not a disconnect");
    }
    const bystander = await open(own, MAIN, { api_key: other.key });
    assert.equal((await bystander.join("agents:discovery")).status, "ok", "another agent is not held up");
  });

  test("R60: a join that is refused for the rate leaves the one before it as it was", async () => {
    const own = await start({ set: [`limits.joins_per_agent=${rate(1, 1, 60_000)}`] });
    const agent = await own.agent();
    const socket = await open(own, MAIN, { api_key: agent.key });
    assert.equal((await socket.join("agents:discovery")).status, "ok");
    assert.equal((await socket.join("agents:discovery")).response.reason, "rate_limited");
    assert.equal((await socket.ask("agents:discovery", "discover", {}, "1")).status, "ok", "still joined");
  });

  test("R60 R169 C3: the join limit is configurable, and is neither the chunks' nor another socket's", async () => {
    const own = await start({ set: [`limits.joins_per_agent=${rate(2, 1, 5_000)}`] });
    const { provider, task } = await cast(own);
    const main = await open(own, MAIN, { api_key: provider.key });
    for (let n = 0; n < 2; n++) assert.equal((await main.join("agents:discovery")).status, "ok");
    assert.equal((await main.join("agents:discovery")).response.reason, "rate_limited");
    const agent = await open(own, AGENT, { api_key: provider.key });
    assert.equal((await agent.join(`agent:${provider.id}`)).status, "ok");
    for (let n = 1; n <= 40; n++) {
      assert.equal((await agent.join(`task_stream:${task.id}`)).status, "ok");
      const chunk = { task_id: task.id, content: "x" };
      assert.deepEqual(await agent.ask(`agent:${provider.id}`, "task.stream_chunk", chunk, "1"), { status: "ok", response: { seq: n } });
    }
    await until("the bucket fills again", async () => (await main.join("agents:discovery")).status === "ok");
  });
});

describe("being online", () => {
  const seen = async (agent) => {
    const viewer = await server.agent();
    const found = await server.ok("GET", "/api/v1/agents/discover?online_only=true&limit=100", { key: viewer.key });
    return found.some((one) => one.id === agent.id);
  };

  test("R28: an agent is discovered when it has joined, and gone within a second of its close", async () => {
    const agent = await server.agent();
    const socket = await open(server, AGENT, { api_key: agent.key });
    assert.equal(await seen(agent), false, "connected is not online");
    await socket.join(`agent:${agent.id}`);
    assert.equal(await seen(agent), true, "at once");
    socket.end();
    await until("it is gone", async () => !(await seen(agent)), leniently(1_000));
  });

  test("R28 R6: an agent that dies silently is gone once its socket has been idle too long", async () => {
    const own = await start({ set: ["limits.socket_idle_timeout_ms=3000"] });
    const [agent, viewer] = [await own.agent(), await own.agent()];
    const began = Date.now();
    const silent = await open(own, AGENT, { api_key: agent.key });
    await silent.join(`agent:${agent.id}`);
    // Nothing more comes from it, not even TCP's farewell.
    silent.ws._socket.pause();
    const online = async () => (await own.ok("GET", "/api/v1/agents/discover?online_only=true", { key: viewer.key })).length === 1;
    assert.equal(await online(), true);
    // R28 gives five seconds to the 60 that a socket may be idle.
    await until("it is gone", async () => !(await online()), 3_000 + leniently(5_000));
    assert.ok(Date.now() - began >= 3_000, "not before");
  });
});

describe("what agents and hirers are told", () => {
  const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
  const ISO = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;

  function isHiring({ hiring }, agent, status) {
    for (const field of ["id", "status", "agent_id", "agent_did", "task_id", "created_at", "updated_at"]) assert.ok(field in hiring, field);
    assert.match(hiring.id, UUID);
    assert.match(hiring.task_id, UUID);
    assert.match(hiring.created_at, ISO);
    assert.match(hiring.updated_at, ISO);
    assert.deepEqual([hiring.status, hiring.agent_id, hiring.agent_did], [status, agent.id, agent.did]);
    return hiring;
  }

  const one = (socket, topic, event) =>
    until(`${event} on ${topic}`, () => {
      const payloads = socket.events(topic, event);
      assert.ok(payloads.length <= 1, `${event} came ${payloads.length} times`);
      return payloads[0];
    });
  const names = (socket, topic) => socket.messages.filter((message) => message.topic === topic && !/^(phx|presence)_/.test(message.event)).map((message) => message.event);

  /** A user with a client agent, a provider that is online, a stranger of each sort; all listen. */
  async function everybody() {
    const people = await cast(server);
    const stranger = { user: await server.user(), agent: await server.agent() };
    const listening = {
      hirer: await hirerSocket(people.user),
      provider: await agentSocket(people.provider),
      client: await agentSocket(people.client),
      strangeHirer: await hirerSocket(stranger.user),
      strangeAgent: await agentSocket(stranger.agent),
    };
    const topics = { hirer: `hirer:${people.user.id}`, provider: `agent:${people.provider.id}`, client: `agent:${people.client.id}`, strangeHirer: `hirer:${stranger.user.id}`, strangeAgent: `agent:${stranger.agent.id}` };
    const silent = async (...who) => {
      // A reply to a later push comes behind everything that was sent before.
      for (const name of who) {
        await listening[name].ask("phoenix", "heartbeat");
        assert.deepEqual(names(listening[name], topics[name]), [], name);
      }
    };
    const get = (who, event) => one(listening[who], topics[who], event);
    const told = (who) => names(listening[who], topics[who]);
    return { ...people, get, told, silent };
  }

  test("R27 R32 R33: a hiring is told to hirer and agent, from its creation to its result", async () => {
    const { user, provider, get, told, silent } = await everybody();
    const { hiring, task } = await hire({ token: user.token }, provider);
    assert.deepEqual(isHiring(await get("hirer", "hiring.created"), provider, hiring.status).id, hiring.id);
    assert.deepEqual(isHiring(await get("provider", "hiring.created"), provider, hiring.status).id, hiring.id);
    assert.equal((await get("hirer", "task.submitted")).task.id, task.id);
    assert.equal((await get("provider", "task.created")).task.id, task.id);

    await server.ok("POST", `/api/v1/hirings/${hiring.id}/result`, { key: provider.key, body: { output: { answer: 42 } } });
    const completed = isHiring(await get("hirer", "hiring.completed"), provider, "completed");
    assert.equal(completed.id, hiring.id);
    assert.equal(completed.task_id, task.id);
    assert.ok(completed.updated_at >= completed.created_at);
    await get("client", "task.completed");
    assert.deepEqual(told("hirer").toSorted(), ["hiring.completed", "hiring.created", "task.submitted"]);
    await silent("strangeHirer", "strangeAgent");
  });

  test("R32: a hiring that an agent makes by itself is told to its owner", async () => {
    const { client: giver, provider, get } = await everybody();
    const { hiring } = await hire({ key: giver.key }, provider);
    assert.equal(isHiring(await get("hirer", "hiring.created"), provider, hiring.status).id, hiring.id);
    assert.equal((await get("hirer", "task.submitted")).task.client_agent_id, giver.id);
  });

  test("R27 R32: a hiring that its hirer withdraws is told to both", async () => {
    const { user, provider, get, silent } = await everybody();
    const { hiring, task } = await hire({ token: user.token }, provider);
    await server.ok("POST", `/api/v1/hirings/${hiring.id}/cancel`, { token: user.token, body: { reason: "too late" } });
    isHiring(await get("hirer", "hiring.cancelled"), provider, "cancelled");
    isHiring(await get("provider", "hiring.cancelled"), provider, "cancelled");
    assert.deepEqual((await get("provider", "task.cancelled")).task.id, task.id);
    await silent("strangeHirer", "strangeAgent");
  });

  test("R27 R33: a task is told to its provider, and to the user whose agent gave it", async () => {
    const { client, provider, get, told, silent } = await everybody();
    const task = await server.task(client, provider, { ask: "this" });
    const [submitted, created] = [await get("hirer", "task.submitted"), await get("provider", "task.created")];
    for (const payload of [submitted, created]) {
      assert.deepEqual(Object.keys(payload), ["task"]);
      assert.deepEqual(payload.task, task, "as REST shows it");
      assert.deepEqual([payload.task.client_agent_id, payload.task.provider_agent_id, payload.task.status], [client.id, provider.id, "pending"]);
    }
    await server.ok("POST", `/api/v1/tasks/${task.id}/cancel`, { key: client.key, body: {} });
    const cancelled = await get("provider", "task.cancelled");
    assert.deepEqual([cancelled.task.id, cancelled.task.status], [task.id, "cancelled"]);
    assert.deepEqual(told("hirer"), ["task.submitted"], "no hiring, no hiring events");
    await silent("strangeHirer", "strangeAgent", "client");
  });

  test("R27 R111: a message about a task comes as new_message to the other side", async () => {
    const { client, provider, task, get, silent } = await everybody();
    await server.ok("POST", `/api/v1/tasks/${task.id}/messages`, { key: client.key, body: { content: "how far?" } });
    const message = await get("provider", "new_message");
    assert.deepEqual(Object.keys(message).sort(), ["from_agent_id", "id", "inserted_at", "payload", "protocol_version", "type"]);
    assert.match(message.id, UUID);
    assert.match(message.inserted_at, ISO);
    assert.equal(message.from_agent_id, client.id);
    assert.equal(typeof message.type, "string");
    assert.match(message.protocol_version, /^\d+\.\d+\.\d+$/);
    assert.equal(message.payload.content, "how far?");
    await silent("client", "strangeAgent", "strangeHirer");
    const stranger = await server.agent();
    assert.equal((await server.request("POST", `/api/v1/tasks/${task.id}/messages`, { key: stranger.key, body: { content: "x" } })).status, 404);
  });

  test("R32 R33: tasks of agents that belong to nobody are told to no user", async () => {
    const { provider, get, silent } = await everybody();
    const free = await server.agent();
    const task = await server.task(free, provider);
    assert.equal((await get("provider", "task.created")).task.id, task.id);
    await silent("hirer", "strangeHirer");
  });

  test("R27 R143: an agent that is offline is told nothing, and its hirer learns that it did not answer", async () => {
    const { user, get } = await everybody();
    const offline = await server.agent();
    const { hiring } = await hire({ token: user.token }, offline);
    assert.equal(hiring.status, "failed");
    isHiring(await get("hirer", "hiring.created"), offline, "failed");
    const queued = await hire({ token: user.token }, offline, { queue: true });
    assert.notEqual(queued.hiring.status, "failed", "unless the hirer waits for it");
  });

  test("R27 R32 R167: an agent's and a user's topics take no events from outside", async () => {
    const { user, provider } = await cast(server);
    const [agent, hirer] = [await agentSocket(provider), await hirerSocket(user)];
    for (const event of ["hiring.created", "task.created", "new_message", "hiring.cancelled", "no.such.event", "phx_reply", "phx_error"]) {
      const forged = { hiring: { id: randomUUID() } };
      for (const [socket, topic] of [[agent, `agent:${provider.id}`], [hirer, `hirer:${user.id}`]]) {
        assert.deepEqual(await socket.ask(topic, event, forged, "1"), { status: "error", response: { reason: "unknown_event" } }, `${topic} ${event}`);
        assert.equal(socket.events(topic, "hiring.created").length, 0);
      }
    }
  });

  for (const version of VERSIONS) {
    test(`R3 R27 R32 R33: phoenix ${version} hears a hiring from both sides`, async () => {
      const { user, provider } = await cast(server);
      const agentChannel = (await client(version, server, "/socket/agent", { api_key: provider.key })).channel(`agent:${provider.id}`, {});
      const hirerChannel = (await client(version, server, "/socket/hirer", { api_key: user.token })).channel(`hirer:${user.id}`, {});
      const heard = { agent: collect(agentChannel, "hiring.created"), submitted: collect(hirerChannel, "task.submitted"), completed: collect(hirerChannel, "hiring.completed") };
      for (const channel of [agentChannel, hirerChannel]) assert.equal((await join(channel)).status, "ok");
      const { hiring, task } = await hire({ token: user.token }, provider);
      await until("the agent hears", () => heard.agent.length === 1);
      await until("the hirer hears", () => heard.submitted.length === 1);
      assert.deepEqual(await push(agentChannel, "task.stream_chunk", { task_id: task.id, content: "done" }), { status: "ok", response: { seq: 1 } });
      await server.ok("POST", `/api/v1/hirings/${hiring.id}/result`, { key: provider.key, body: { output: "done" } });
      await until("the hirer hears the end", () => heard.completed.length === 1);
      assert.equal(heard.completed[0].hiring.id, hiring.id);
    });
  }

  test("R27 R20: an agent with two sockets is told on both, and one that left on neither", async () => {
    const { client: giver, provider } = await cast(server);
    const both = [await agentSocket(provider), await agentSocket(provider)];
    const topic = `agent:${provider.id}`;
    await server.task(giver, provider);
    for (const socket of both) await one(socket, topic, "task.created");
    await both[0].ask(topic, "phx_leave", {}, "1");
    const last = await server.task(giver, provider);
    await until("the other is told", () => both[1].events(topic, "task.created").some(({ task }) => task.id === last.id));
    await both[0].ask("phoenix", "heartbeat");
    assert.equal(both[0].events(topic, "task.created").length, 1);
  });
});

describe("the newest client", () => {
  test("R24 R30 R8: a refused credential never opens, and the client may try again with another", async () => {
    const agent = await server.agent();
    let key = "ap_wrong";
    const { Socket } = phoenix(LATEST);
    const socket = new Socket(`${server.ws}/socket/agent`, { transport: WebSocket, params: () => ({ api_key: key }), reconnectAfterMs: () => 20 });
    sockets.push({ end: () => socket.disconnect() });
    let [errors, opened] = [0, 0];
    socket.onError(() => errors++);
    socket.onOpen(() => opened++);
    socket.connect();
    await until("it is refused twice", () => errors >= 2);
    assert.equal(opened, 0);
    key = agent.key;
    await until("it opens", () => opened === 1);
  });
});
