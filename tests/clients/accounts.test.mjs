// Users, agents, and what they show for it: tokens, keys, sessions, scopes, statuses, signing keys.

import assert from "node:assert/strict";
import { createHash, createPrivateKey, createPublicKey, generateKeyPairSync, randomUUID, sign } from "node:crypto";
import { after, afterEach, before, describe, test } from "node:test";
import { filesIn } from "./lib/cli.mjs";
import { cast, leniently, Server, sleep, until } from "./lib/server.mjs";
import { readByFetch } from "./lib/sse.mjs";
import { metric, rate } from "./lib/streams.mjs";
import { Bare, handshake, handshakeStatus, query } from "./lib/bare.mjs";
import { within } from "./lib/wire.mjs";

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const ISO = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;
const AP = /^ap_[0-9A-Za-z]{43}$/;
const WITHIN_MS = leniently(2_000);

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

afterEach(() => sockets.splice(0).forEach((socket) => socket.end()));
after(() => Promise.all(servers.map((server) => server.end())));

let server;
before(async () => (server = await start()));

const operator = (method, path, body) => server.request(method, path, { token: server.adminToken, body });
const status = (agent, to) => server.ok("PUT", `/api/v1/admin/agents/${agent.id}/status`, { token: server.adminToken, body: { status: to } });
const session = async (agent, from = server) => (await from.ok("POST", "/api/v1/auth/authenticate", { key: agent.key })).token;
const issueKey = (agent, terms = {}, as = { key: agent.key }, from = server) => from.ok("POST", `/api/v1/agents/${agent.id}/credentials`, { ...as, body: terms });
const issueToken = (user, terms = {}, from = server) => from.ok("POST", `/api/v1/admin/users/${user.id}/tokens`, { token: from.adminToken, body: terms });
const me = (agent, as) => server.request("GET", `/api/v1/agents/${agent.id}`, as);
const later = (ms) => new Date(Date.now() + ms).toISOString();

let made = 0;
const registration = (more = {}) => {
  const agent = { name: "A", did: `did:test:accounts-${process.pid}-${++made}`, capabilities: ["code"], pricing_model: "fixed", base_price: "1", ...more };
  return { agent: Object.fromEntries(Object.entries(agent).filter(([, value]) => value !== undefined)) };
};
const register = (more) => server.request("POST", "/api/v1/agents/register", { body: registration(more) });

function refused(answer, status, code, label = "") {
  assert.equal(answer.status, status, `${label} ${answer.text}`);
  assert.equal(answer.error.code, code, `${label} ${answer.text}`);
  assert.equal(answer.data, null);
}

/** What everybody who is not the operator shows. */
async function strangers() {
  const [user, agent] = [await server.user(), await server.agent()];
  return [
    ["nothing", {}],
    ["a made-up token", { token: "op_somebody_else" }],
    ["a user's token", { token: user.token }],
    ["an agent's key", { key: agent.key }],
    ["an agent's session", { token: await session(agent) }],
  ];
}

describe("operator", () => {
  test("R14: the operator creates users and tokens that are shown once", async () => {
    const created = await operator("POST", "/api/v1/admin/users", { name: "Ada" });
    assert.equal(created.status, 201);
    assert.equal(created.data.name, "Ada");
    assert.match(created.data.id, UUID);

    const issued = await operator("POST", `/api/v1/admin/users/${created.data.id}/tokens`, { label: "laptop" });
    assert.equal(issued.status, 201);
    assert.match(issued.data.token, AP);
    const listed = await operator("GET", `/api/v1/admin/users/${created.data.id}/tokens`);
    assert.equal(listed.data.length, 1);
    assert.equal(listed.data[0].id, issued.data.credential.id);
    assert.equal(listed.data[0].label, "laptop");
    assert.equal(listed.data[0].kind, "user_token");
    assert.ok(!listed.text.includes(issued.data.token));
  });

  test("R14 R167: nobody else does what the operator does", async () => {
    const user = await server.user();
    const agent = await server.agent();
    const requests = [
      ["POST", "/api/v1/admin/users", { name: "X" }],
      ["GET", "/api/v1/admin/users"],
      ["POST", `/api/v1/admin/users/${user.id}/tokens`, {}],
      ["GET", `/api/v1/admin/users/${user.id}/tokens`],
      ["DELETE", `/api/v1/admin/users/${user.id}/tokens/${user.credential.id}`],
      ["PUT", `/api/v1/admin/agents/${agent.id}/status`, { status: "banned" }],
    ];
    for (const [who, as] of await strangers()) {
      for (const [method, path, body] of requests) {
        const [status, code] = /^an? (user|agent)'s/.test(who) ? [403, "FORBIDDEN"] : [401, "UNAUTHORIZED"];
        refused(await server.request(method, path, { ...as, body }), status, code, `${who}: ${method} ${path}`);
      }
    }
    assert.equal((await me(agent, { key: agent.key })).data.status, "active");
    assert.equal((await server.request("GET", "/api/v1/agents", { token: user.token })).status, 200);
  });

  test("R14: the operator's token is not a user's", async () => {
    const agent = await server.agent();
    for (const [method, path, body] of [
      ["GET", "/api/v1/agents"],
      ["POST", "/api/v1/agents", registration()],
      ["GET", `/api/v1/agents/${agent.id}`],
      ["POST", "/api/v1/auth/authenticate"],
    ]) {
      refused(await operator(method, path, body), 401, "UNAUTHORIZED", path);
    }
    for (const mount of ["/socket", "/socket/agent", "/socket/hirer"]) {
      assert.equal(await handshakeStatus(server, `${mount}/websocket${query({ api_key: server.adminToken })}`), 403, mount);
    }
  });

  test("R14: a name that does not fit is refused by field", async () => {
    for (const name of ["", "   ", "x".repeat(129), "a\u0000b", "line\nbreak"]) {
      const answer = await operator("POST", "/api/v1/admin/users", { name });
      refused(answer, 422, "VALIDATION_ERROR", JSON.stringify(name));
      assert.equal(answer.error.field, "name");
    }
    for (const body of [{}, { name: 7 }, { name: null }, []]) {
      refused(await operator("POST", "/api/v1/admin/users", body), 422, "VALIDATION_ERROR", JSON.stringify(body));
    }
    assert.equal((await operator("POST", "/api/v1/admin/users", { name: "é".repeat(128) })).status, 201);
  });

  test("R14: unknown users and tokens of other users are not found", async () => {
    const [one, two] = [await server.user(), await server.user()];
    for (const id of [randomUUID(), "nobody"]) {
      refused(await operator("POST", `/api/v1/admin/users/${id}/tokens`, {}), 404, "NOT_FOUND", id);
      refused(await operator("GET", `/api/v1/admin/users/${id}/tokens`), 404, "NOT_FOUND", id);
      refused(await operator("DELETE", `/api/v1/admin/users/${one.id}/tokens/${id}`), 404, "NOT_FOUND", id);
    }
    refused(await operator("DELETE", `/api/v1/admin/users/${one.id}/tokens/${two.credential.id}`), 404, "NOT_FOUND");
    assert.equal((await server.request("GET", "/api/v1/agents", { token: two.token })).status, 200, "it was not revoked");
  });

  test("R14: users are listed newest first, page by page", async () => {
    const own = await start();
    const made = [];
    for (let n = 0; n < 5; n++) made.unshift((await own.user(`User ${n}`)).id);
    const seen = [];
    let cursor;
    do {
      const page = await own.request("GET", `/api/v1/admin/users?limit=2${cursor ? `&cursor=${cursor}` : ""}`, { token: own.adminToken });
      assert.equal(page.body.meta.pagination.total_count, 5);
      assert.ok(page.data.length <= 2);
      seen.push(...page.data.map((user) => user.id));
      cursor = page.body.meta.pagination.has_more ? page.body.meta.pagination.cursor : null;
    } while (cursor);
    assert.deepEqual(seen, made);
  });

  test("R10 R14: without a token in the environment one is made at the first start, and printed that once", async () => {
    const own = await start({ env: { MUSTER_ADMIN_TOKEN: "" } });
    const [printed, ...more] = own.logs.match(/op_[0-9A-Za-z]{43}/g) ?? [];
    assert.ok(printed, own.logs);
    assert.deepEqual(more, []);
    assert.equal((await own.request("GET", "/api/v1/admin/users", { token: printed })).status, 200);
    assert.equal((await own.request("GET", "/api/v1/admin/users", { token: own.adminToken })).status, 401);
    await own.kill();
    const before = own.logs.length;
    await own.startAgain();
    assert.doesNotMatch(own.logs.slice(before), /op_/);
    assert.equal((await own.request("GET", "/api/v1/admin/users", { token: printed })).status, 200);
    for (const { name, bytes } of await filesIn(own.dataDir)) assert.ok(!bytes.includes(printed), name);
  });
});

describe("credentials", () => {
  test("R17: keys and tokens are ap_ and 43 base-62 digits, and no two are alike", async () => {
    const user = await server.user();
    const secrets = [user.token];
    for (let n = 0; n < 5; n++) secrets.push((await server.agent()).key, (await issueToken(user)).token);
    for (const secret of secrets) assert.match(secret, AP);
    assert.equal(new Set(secrets).size, secrets.length);
  });

  test("R17 R19: only SHA-256 hashes are stored, and no answer shows a secret again", async () => {
    const own = await start();
    const user = await own.user();
    const agent = await own.agent({ owner: user });
    const token = await session(agent, own);
    const second = (await own.ok("POST", `/api/v1/agents/${agent.id}/credentials`, { key: agent.key, body: {} })).api_key;
    const secrets = [user.token, agent.key, token, second, own.adminToken];
    const shown = [
      await own.request("GET", `/api/v1/agents/${agent.id}`, { key: agent.key }),
      await own.request("GET", `/api/v1/agents/${agent.id}/credentials`, { token: user.token }),
      await own.request("GET", "/api/v1/agents", { token: user.token }),
      await own.request("GET", `/api/v1/admin/users/${user.id}/tokens`, { token: own.adminToken }),
    ];
    for (const answer of shown) {
      assert.equal(answer.status, 200);
      for (const secret of secrets) assert.ok(!answer.text.includes(secret.slice(3)));
    }
    // Running, and orderly closed: the log of the database and the database.
    for (const close of [false, true]) {
      if (close) await own.stop();
      const files = await filesIn(own.dataDir);
      assert.ok(files.length > 0);
      for (const { name, bytes } of files) {
        for (const secret of secrets) assert.ok(!bytes.includes(secret.slice(3)), name);
      }
      for (const secret of secrets.slice(0, 4)) {
        const hash = createHash("sha256").update(secret).digest();
        assert.ok(files.some(({ bytes }) => bytes.includes(hash)), "the hash of the whole secret");
      }
    }
  });

  test("R17 C6: keys and tokens look alike, but their stored kind decides", async () => {
    const user = await server.user();
    const agent = await server.agent({ owner: user });
    refused(await server.request("POST", "/api/v1/agents", { key: agent.key, body: registration() }), 403, "FORBIDDEN");
    refused(await server.request("GET", "/api/v1/agents", { key: agent.key }), 403, "FORBIDDEN");
    refused(await server.request("POST", "/api/v1/auth/authenticate", { key: user.token }), 403, "FORBIDDEN");
    refused(await server.request("POST", "/api/v1/agents/assign", { key: agent.key, body: { agents: [] } }), 403, "FORBIDDEN");
  });

  test("R17: what is nearly a key is none", async () => {
    const agent = await server.agent();
    const swapped = agent.key.slice(0, -1) + (agent.key.endsWith("0") ? "1" : "0");
    for (const key of [swapped, agent.key.slice(0, -1), `${agent.key}0`, agent.key.toUpperCase(), agent.key.slice(3), "ap_", "x".repeat(4_096)]) {
      refused(await me(agent, { key }), 401, "UNAUTHORIZED", key);
    }
    for (const authorization of [`Basic ${agent.key}`, agent.key, "Bearer", "Bearer "]) {
      refused(await me(agent, { headers: { authorization } }), 401, "UNAUTHORIZED", authorization);
    }
    for (const headers of [{ "api-key": agent.key }, { authorization: `bearer ${agent.key}` }]) {
      assert.equal((await me(agent, { headers })).status, 200);
    }
    assert.equal((await me(agent, { headers: { cookie: `api_key=${agent.key}; x-api-key=${agent.key}` } })).status, 401, "cookies count for nothing");
  });

  test("R17 R167: a credential does what its scopes say, and no more", async () => {
    const { client, provider, task } = await cast(server);
    const chunk = (key) => server.request("POST", `/api/v1/tasks/${task.id}/chunk`, { key, body: { content: "x" } });
    const connect = (key) => handshakeStatus(server, `/socket/agent/websocket${query({ api_key: key })}`);
    for (const [scope, reads, writes, connects] of [
      ["read", 200, 403, 403],
      ["write", 403, 202, 403],
      ["connect", 403, 403, 101],
    ]) {
      const { api_key: key, credential } = await issueKey(provider, { scopes: [scope] });
      assert.deepEqual(credential.scopes, [scope]);
      assert.equal((await me(provider, { key })).status, reads, `${scope}: read`);
      assert.equal((await chunk(key)).status, writes, `${scope}: write`);
      assert.equal(await connect(key), connects, `${scope}: connect`);
      const more = await server.request("POST", `/api/v1/agents/${provider.id}/credentials`, { key, body: {} });
      refused(more, 403, "FORBIDDEN", `${scope}: a key of every scope`);
    }
    const stream = (key) => server.request("GET", `/api/v1/tasks/${task.id}/stream`, { key, headers: { accept: "text/event-stream" } });
    const reader = await issueKey(client, { scopes: ["read"] });
    assert.equal((await stream(reader.api_key)).status, 403, "an event stream is a connection");
  });

  test("R17 R167: a socket without the write scope changes nothing", async () => {
    const { provider, task } = await cast(server);
    const { api_key: key } = await issueKey(provider, { scopes: ["connect", "read"] });
    const socket = await open(server, "/socket/agent/websocket", { api_key: key });
    assert.equal((await socket.join(`agent:${provider.id}`)).status, "ok");
    const pushed = await socket.ask(`agent:${provider.id}`, "task.stream_chunk", { task_id: task.id, content: "x" }, "1");
    assert.equal(pushed.status, "error");
    assert.equal(pushed.response.reason, "forbidden");
    const main = await open(server, "/socket/websocket", { api_key: key });
    assert.equal((await main.join("agents:discovery")).status, "ok");
    for (const [event, payload] of [
      ["announce", { capabilities: ["stolen"] }],
      ["update_metadata", { metadata: { a: 1 } }],
    ]) {
      assert.equal((await main.ask("agents:discovery", event, payload, "1")).response.reason, "forbidden", event);
    }
    const { data } = await me(provider, { key: provider.key });
    assert.deepEqual([data.capabilities, data.metadata], [["code"], {}]);
    const stream = await server.ok("GET", `/api/v1/tasks/${task.id}/stream`, { key: provider.key });
    assert.equal(stream.seq, 0);
  });

  test("R17: an unknown scope, and terms of another type, are refused", async () => {
    const user = await server.user();
    for (const body of [{ scopes: ["root"] }, { scopes: "read" }, { scopes: [] }, { expires_at: "soon" }, { expires_at: 5 }, { label: "" }, { label: "x".repeat(200) }]) {
      refused(await operator("POST", `/api/v1/admin/users/${user.id}/tokens`, body), 422, "VALIDATION_ERROR", JSON.stringify(body));
    }
  });

  test("R17 R18 R30: a token ends at its time, and so do its sockets", async () => {
    const user = await server.user();
    const spent = await issueToken(user, { expires_at: later(-1_000) });
    assert.equal((await server.request("GET", "/api/v1/agents", { token: spent.token })).status, 401);
    assert.equal(await handshakeStatus(server, `/socket/hirer/websocket${query({ api_key: spent.token })}`), 403);

    const lifetime = 3_000;
    const end = Date.now() + lifetime;
    const { token } = await issueToken(user, { expires_at: later(lifetime) });
    assert.equal((await server.request("GET", "/api/v1/agents", { token })).status, 200);
    const socket = await open(server, "/socket/hirer/websocket", { api_key: token });
    const { code } = await socket.ended(lifetime + WITHIN_MS);
    assert.equal(code, 1001);
    assert.ok(Date.now() >= end, "not before its time");
    assert.equal((await server.request("GET", "/api/v1/agents", { token })).status, 401);
  });

  test("R17 R167: nobody gives out more than they have", async () => {
    const agent = await server.agent();
    const narrow = await issueKey(agent, { scopes: ["write"] });
    const asNarrow = (body) => server.request("POST", `/api/v1/agents/${agent.id}/credentials`, { key: narrow.api_key, body });
    for (const body of [{}, { scopes: ["read"] }, { scopes: ["write", "connect"] }]) refused(await asNarrow(body), 403, "FORBIDDEN", JSON.stringify(body));
    assert.deepEqual((await asNarrow({ scopes: ["write"] })).data.credential.scopes, ["write"]);
  });

  test("R17 R19 R167: what ends gives out nothing that lasts longer", async () => {
    const agent = await server.agent();
    const ends = later(60_000);
    const short = await issueKey(agent, { expires_at: ends });
    const token = await session(agent);
    for (const [what, as] of [
      ["a key that ends", { key: short.api_key }],
      ["a session", { token }],
    ]) {
      for (const terms of [{}, { expires_at: later(10 * 365 * 86_400_000) }]) {
        const answer = await server.request("POST", `/api/v1/agents/${agent.id}/credentials`, { ...as, body: terms });
        const issued = answer.data?.credential;
        const bound = what === "a session" ? later(86_400_000 + 60_000) : ends;
        assert.ok(!issued || (issued.expires_at !== null && issued.expires_at <= bound), `${what} gave ${JSON.stringify(issued)} for ${JSON.stringify(terms)}`);
      }
    }
    const rotated = await server.ok("POST", "/api/v1/auth/rotate-key", { key: short.api_key });
    assert.equal(rotated.credential.expires_at, ends, "rotating buys no time");
  });

  test("R169: an owner has as many live credentials as the limit says", async () => {
    const own = await start({ set: ["limits.credentials_per_owner_max=3"] });
    const user = await own.user();
    const second = await issueToken(user, {}, own);
    await issueToken(user, {}, own);
    const more = () => own.request("POST", `/api/v1/admin/users/${user.id}/tokens`, { token: own.adminToken, body: {} });
    refused(await more(), 409, "LIMIT_REACHED");
    await own.ok("DELETE", `/api/v1/admin/users/${user.id}/tokens/${second.credential.id}`, { token: own.adminToken });
    assert.equal((await more()).status, 201, "a revoked one does not count");
  });
});

describe("registration", () => {
  test("R15: an agent registers without a credential and gets its key", async () => {
    const { privateKey } = keyPair();
    const body = registration({
      capabilities: ["code", "Übersetzen"],
      pricing_model: "hybrid",
      base_price: "0.000001",
      public_key: raw(privateKey).toString("base64"),
      protocol_versions: ["1.0.0", "2.0.0"],
      metadata: { model: "m", nested: { deep: [1, null] } },
    });
    const answer = await server.request("POST", "/api/v1/agents/register", { body });
    assert.equal(answer.status, 201);
    assert.deepEqual(Object.keys(answer.data).sort(), ["agent", "api_key", "message"]);
    assert.equal(typeof answer.data.message, "string");
    assert.match(answer.data.api_key, AP);
    for (const [field, value] of Object.entries(body.agent)) assert.deepEqual(answer.data.agent[field], value, field);
    assert.match(answer.data.agent.id, UUID);
    assert.equal(answer.data.agent.status, "active");
    assert.match(answer.data.agent.created_at, ISO);
    assert.equal(answer.body.errors.length, 0);
    assert.match(answer.body.meta.timestamp, ISO);
    assert.equal(answer.body.meta.request_id, answer.headers.get("x-request-id"));
    const { data } = await me(answer.data.agent, { key: answer.data.api_key });
    assert.equal(data.did, body.agent.did);
  });

  test("R15 R82 R131: what may be left out has its default, and numbers are written as decimal strings", async () => {
    const { agent } = (await register({ base_price: undefined })).data;
    assert.equal(agent.base_price, "0");
    assert.deepEqual(agent.protocol_versions, ["1.0.0", "1.1.0"]);
    assert.deepEqual(agent.metadata, {});
    assert.equal(agent.public_key, null);
    for (const [price, want] of [
      [1.5, "1.5"],
      [12, "12"],
      ["12.50", "12.5"],
      ["0.000001", "0.000001"],
    ]) {
      assert.equal((await register({ base_price: price })).data.agent.base_price, want);
    }
  });

  const wrong = {
    name: [undefined, null, 1, "", " ", "x".repeat(129), "a\u0007b", ["a"]],
    did: [undefined, null, 5, "", "did", "did:test", "did:test:", "did::x", "did:Test:x", "urn:test:x", "did:test:a b", "did:test:é", "did:test:a/b", `did:test:${"x".repeat(250)}`],
    capabilities: [undefined, null, "code", { 0: "code" }, [1], [""], [" "], ["x".repeat(65)], ["a\nb"], ["a", "a"], Array.from({ length: 101 }, (_, n) => `c${n}`)],
    pricing_model: [undefined, null, "free", "Fixed", 1],
    public_key: ["", "zz", "AAAA", 5, "A".repeat(44)],
    protocol_versions: [[], ["9.9.9"], "1.0.0", [1], ["1.0.0", ""]],
    metadata: [[], "x", 5, { big: "x".repeat(4_096) }, { reputation: 5 }, { base_price: "0" }, { id: "x" }, { a: { constructor: 1 } }, { prototype: 1, a: { ["__proto__x"]: 1, constructor: {} } }],
  };
  for (const [field, values] of Object.entries(wrong)) {
    test(`R11 R15: a registration whose ${field} does not fit is refused, and makes nothing`, async () => {
      for (const value of values) {
        const body = registration({ [field]: value });
        const answer = await server.request("POST", "/api/v1/agents/register", { body });
        const label = `${field}=${JSON.stringify(value)?.slice(0, 40)}`;
        refused(answer, 422, "VALIDATION_ERROR", label);
        assert.equal(answer.error.details.reason, "invalid_payload", label);
        // The DID is still free.
        if (field !== "did") assert.equal((await server.request("POST", "/api/v1/agents/register", { body: registration({ did: body.agent.did }) })).status, 201, label);
      }
    });
  }

  test("R15: a refusal names the field that does not fit", async () => {
    const unnamed = [];
    for (const [field, values] of Object.entries(wrong)) {
      for (const value of values) {
        const { error } = await register({ [field]: value });
        if (error.field !== field && !error.message.includes(field)) unnamed.push(`${field}=${JSON.stringify(value).slice(0, 20)}: ${error.message}`);
      }
    }
    assert.deepEqual(unnamed, []);
  });

  test("R15: a body that holds no registration is refused", async () => {
    const post = (raw) => server.request("POST", "/api/v1/agents/register", { raw });
    for (const raw of ["{}", "[]", "null", '"x"', "7", '{"agent":null}', '{"agent":[]}', '{"agent":"x"}', "", '{"agent":{"name":"A","name":"B","did":"did:test:twice","capabilities":[],"pricing_model":"fixed"}}']) {
      refused(await post(raw), 422, "VALIDATION_ERROR", raw);
    }
    for (const raw of ["{", "{'agent':{}}", '{"agent":{}} x', "\ufeff{}", "NaN"]) refused(await post(raw), 400, "MALFORMED_REQUEST", raw);
  });

  test("R15 R82: an amount that is none is refused as such", async () => {
    for (const base_price of ["-1", -1, "1e3", "+1", "", " 1", "1.", ".5", "0.1234567", 0.1234567, "NaN", "Infinity", "99999999999999999999", 1e300]) {
      const answer = await register({ base_price });
      assert.equal(answer.status, 422, `${JSON.stringify(base_price)} ${answer.text}`);
      assert.equal(answer.error.code, "INVALID_AMOUNT", `${JSON.stringify(base_price)} ${answer.text}`);
      assert.equal(answer.error.details.reason, "invalid_amount");
    }
  });

  test("R11 R15: keys that poison objects go nowhere, in whatever spelling", async () => {
    for (const metadata of ['{"__proto__":{"x":1}}', '{"a":[{"\\u005f_proto__":{}}]}', '{"a":{"constructor":{"prototype":{}}}}']) {
      const { agent } = registration();
      const text = JSON.stringify({ agent }).replace(/}}$/, `,"metadata":${metadata}}}`);
      refused(await server.request("POST", "/api/v1/agents/register", { raw: text }), 422, "VALIDATION_ERROR", metadata);
    }
  });

  test("R131: the protocol versions of an agent are a set", async () => {
    const answer = await register({ protocol_versions: ["1.0.0", "1.0.0"] });
    assert.ok(answer.status === 422 || answer.data.agent.protocol_versions.length === 1, answer.text);
  });

  test("R15: what only the server says is not taken from the agent", async () => {
    const { agent } = (await register({ status: "draft", reputation: 5, id: randomUUID(), owner_user_id: randomUUID(), tasks_completed: 99 })).data;
    assert.equal(agent.status, "active");
    assert.equal(agent.owner_user_id, null);
    assert.equal(agent.tasks_completed, 0);
    assert.ok(agent.reputation < 5);
  });

  test("R15: a DID is taken once", async () => {
    const body = registration();
    assert.equal((await server.request("POST", "/api/v1/agents/register", { body })).status, 201);
    const answer = await server.request("POST", "/api/v1/agents/register", { body });
    refused(answer, 409, "ALREADY_EXISTS");
    assert.equal(answer.error.field, "did");
    const raced = registration();
    const all = await Promise.all(Array.from({ length: 8 }, () => server.request("POST", "/api/v1/agents/register", { body: raced })));
    assert.deepEqual(all.map((one) => one.status).sort(), [201, ...Array(7).fill(409)]);
  });

  test("R15 R16 R167: open registration can be switched off, and owners still register", async () => {
    const own = await start({ set: ["accounts.open_registration=false"] });
    const user = await own.user();
    refused(await own.request("POST", "/api/v1/agents/register", { body: registration() }), 403, "FORBIDDEN");
    refused(await own.request("POST", "/api/v1/agents/register", { token: user.token, body: registration() }), 403, "FORBIDDEN");
    assert.equal((await own.request("POST", "/api/v1/agents", { token: user.token, body: registration() })).status, 201);
  });

  test("R15 R169: an address registers as many agents as the limit says", async () => {
    const own = await start({ set: ["limits.ip_limit_exempt=[]", `limits.registrations_per_ip=${rate(2, 1, 60_000)}`, 'http.trusted_proxies=["127.0.0.1"]'] });
    const from = (address, body = registration()) => own.request("POST", "/api/v1/agents/register", { headers: { "x-forwarded-for": address }, body });
    assert.equal((await from("203.0.113.1")).status, 201);
    assert.equal((await from("203.0.113.1")).status, 201);
    const third = await from("203.0.113.1");
    refused(third, 429, "RATE_LIMIT_EXCEEDED");
    assert.equal(third.error.details.reason, "rate_limited");
    const seconds = Number(third.headers.get("retry-after"));
    assert.ok(seconds > 0 && seconds <= 60, `Retry-After: ${seconds}`);
    assert.ok(third.error.details.retry_after_ms > 0);
    assert.equal((await from("203.0.113.2")).status, 201, "another address");
    assert.equal((await from("6.6.6.6, 203.0.113.1")).status, 429, "what a client claims before its proxy does not help");
    const user = await own.user();
    assert.equal((await own.request("POST", "/api/v1/agents", { token: user.token, body: registration() })).status, 201, "owned agents are not registered openly");
  });

  test("R15 R169: X-Forwarded-For of somebody who is no proxy is not believed", async () => {
    const own = await start({ set: ["limits.ip_limit_exempt=[]", `limits.registrations_per_ip=${rate(1, 1, 60_000)}`] });
    const from = (address) => own.request("POST", "/api/v1/agents/register", { headers: { "x-forwarded-for": address }, body: registration() });
    assert.equal((await from("203.0.113.1")).status, 201);
    assert.equal((await from("203.0.113.2")).status, 429);
  });
});

describe("owners", () => {
  const assign = (as, agents) => server.request("POST", "/api/v1/agents/assign", { ...as, body: { agents } });

  test("R16: a user's token makes agents that belong to the user", async () => {
    const [user, other] = [await server.user(), await server.user()];
    const made = await server.request("POST", "/api/v1/agents", { token: user.token, body: registration() });
    assert.equal(made.status, 201);
    assert.equal(made.data.agent.owner_user_id, user.id);
    assert.match(made.data.api_key, AP);
    const ids = async (who) => (await server.ok("GET", "/api/v1/agents", { token: who.token })).map((agent) => agent.id);
    assert.deepEqual(await ids(user), [made.data.agent.id]);
    assert.deepEqual(await ids(other), []);
  });

  test("R16 R167: only a user makes owned agents", async () => {
    const agent = await server.agent();
    refused(await server.request("POST", "/api/v1/agents", { body: registration() }), 401, "UNAUTHORIZED");
    refused(await server.request("POST", "/api/v1/agents", { key: agent.key, body: registration() }), 403, "FORBIDDEN");
    refused(await server.request("POST", "/api/v1/agents", { token: await session(agent), body: registration() }), 403, "FORBIDDEN");
  });

  test("R16: a user claims agents by id and key, each with its own result", async () => {
    const [user, other] = [await server.user(), await server.user()];
    const [free, second, taken] = [await server.agent(), await server.agent(), await server.agent({ owner: other })];
    const unknown = randomUUID();
    const answer = await assign({ token: user.token }, [
      { agent_id: free.id, api_key: free.key },
      { agent_id: second.id, api_key: free.key },
      { agent_id: taken.id, api_key: taken.key },
      { agent_id: unknown, api_key: free.key },
      { agent_id: second.id, api_key: "ap_wrong" },
      { agent_id: second.id, api_key: await session(second) },
      { agent_id: second.id, api_key: user.token },
    ]);
    assert.equal(answer.status, 200);
    assert.deepEqual(answer.data.map((one) => one.assigned), [true, false, false, false, false, false, false]);
    for (const one of answer.data.slice(1)) assert.equal(typeof one.reason, "string");
    assert.deepEqual(answer.data.map((one) => one.agent_id), [free.id, second.id, taken.id, unknown, second.id, second.id, second.id]);
    assert.equal((await me(free, { key: free.key })).data.owner_user_id, user.id);
    assert.equal((await me(second, { key: second.key })).data.owner_user_id, null);
    assert.equal((await me(taken, { key: taken.key })).data.owner_user_id, other.id);
    const again = await assign({ token: user.token }, [{ agent_id: free.id, api_key: free.key }]);
    assert.equal(again.data[0].assigned, true, "one's own, once more");
  });

  test("R16 R20: a claimed agent keeps its key, and its user may act as it", async () => {
    const user = await server.user();
    const agent = await server.agent();
    await assign({ token: user.token }, [{ agent_id: agent.id, api_key: agent.key }]);
    assert.equal((await me(agent, { key: agent.key })).status, 200);
    const provider = await server.agent();
    const body = { provider_agent_id: provider.id, capability: "code", input: {} };
    const task = await server.request("POST", "/api/v1/tasks", { token: user.token, agent: agent.id, body });
    assert.equal(task.status, 201);
    assert.equal(task.data.client_agent_id, agent.id);
  });

  test("R16 R17 R167: a key that only reads gives no agent away", async () => {
    const user = await server.user();
    const agent = await server.agent();
    for (const scopes of [["read"], ["connect"], ["connect", "read"]]) {
      const { api_key } = await issueKey(agent, { scopes });
      const answer = await assign({ token: user.token }, [{ agent_id: agent.id, api_key }]);
      assert.equal(answer.data[0].assigned, false, `a key of ${scopes} made its agent somebody's`);
    }
  });

  test("R16 R167: a revoked key, a stopped agent's key and bad claims assign nothing", async () => {
    const user = await server.user();
    const [agent, stopped] = [await server.agent(), await server.agent()];
    const { api_key, credential } = await issueKey(agent);
    await server.ok("DELETE", `/api/v1/agents/${agent.id}/credentials/${credential.id}`, { key: agent.key });
    await status(stopped, "suspended");
    const { data } = await assign({ token: user.token }, [{ agent_id: agent.id, api_key }, { agent_id: stopped.id, api_key: stopped.key }]);
    assert.deepEqual(data.map((one) => one.assigned), [false, false]);
    const claims = Array.from({ length: 101 }, () => ({ agent_id: agent.id, api_key: agent.key }));
    for (const agents of [undefined, null, "x", [1], [{ agent_id: agent.id }], [{ api_key: agent.key }], [{ agent_id: "x", api_key: agent.key }], claims]) {
      refused(await assign({ token: user.token }, agents), 422, "VALIDATION_ERROR", JSON.stringify(agents)?.slice(0, 60));
    }
    assert.equal((await me(agent, { key: agent.key })).data.owner_user_id, null);
  });

  test("R20: X-Agent-ID picks one of the user's agents", async () => {
    const user = await server.user();
    const [one, two] = [await server.agent({ owner: user }), await server.agent({ owner: user })];
    const provider = await server.agent();
    const body = { provider_agent_id: provider.id, capability: "code", input: {} };
    for (const agent of [one, two]) {
      const task = await server.request("POST", "/api/v1/tasks", { token: user.token, agent: agent.id, body });
      assert.equal(task.data.client_agent_id, agent.id);
    }
    refused(await server.request("POST", "/api/v1/tasks", { token: user.token, body }), 403, "FORBIDDEN", "none is named");
    const listed = await server.ok("GET", "/api/v1/tasks", { token: user.token, agent: two.id });
    assert.deepEqual(listed.map((task) => task.client_agent_id), [two.id]);
  });

  test("R20 R167: an agent that is not the user's cannot be picked, whether it exists or not", async () => {
    const [user, other] = [await server.user(), await server.user()];
    const own = await server.agent({ owner: user });
    const [foreign, free] = [await server.agent({ owner: other }), await server.agent()];
    const answers = [];
    for (const agent of [foreign.id, free.id, randomUUID(), "nobody", " ", `${own.id}, ${foreign.id}`]) {
      const answer = await server.request("GET", "/api/v1/tasks", { token: user.token, agent });
      refused(answer, 403, "FORBIDDEN", agent);
      answers.push(JSON.stringify(answer.body.errors));
      assert.equal(await handshakeStatus(server, `/socket/websocket${query({ api_key: user.token, agent_id: agent })}`), 403, agent);
    }
    assert.equal(new Set(answers).size, 1, "one answer for all");
    refused(await server.request("GET", "/api/v1/tasks", { key: own.key, agent: foreign.id }), 403, "FORBIDDEN", "an agent's key is for that agent");
    assert.equal((await server.request("GET", "/api/v1/tasks", { key: own.key, agent: own.id })).status, 200);
    assert.equal(await handshakeStatus(server, `/socket/websocket${query({ api_key: own.key, agent_id: foreign.id })}`), 403);
    assert.equal(await handshakeStatus(server, `/socket/websocket${query({ api_key: user.token, agent_id: own.id })}`), 101);
  });

  test("R20: on a socket agent_id decides as whom a user speaks", async () => {
    const user = await server.user();
    const agent = await server.agent({ owner: user });
    const socket = await open(server, "/socket/websocket", { api_key: user.token, agent_id: agent.id });
    await socket.join("agents:discovery");
    const reply = await socket.ask("agents:discovery", "announce", { capabilities: ["chosen"] }, "1");
    assert.equal(reply.status, "ok");
    assert.deepEqual((await me(agent, { key: agent.key })).data.capabilities, ["chosen"]);
    const nobody = await open(server, "/socket/websocket", { api_key: user.token });
    await nobody.join("agents:discovery");
    assert.equal((await nobody.ask("agents:discovery", "announce", { capabilities: ["x"] }, "1")).status, "error", "as no agent");
  });

  test("R16 R167: an agent, its keys and its signing key are its own and its owner's", async () => {
    const [user, other] = [await server.user(), await server.user()];
    const agent = await server.agent({ owner: user });
    const stranger = await server.agent({ owner: other });
    const { credential } = await issueKey(agent, { label: "second" });
    const requests = [
      ["PUT", `/api/v1/agents/${agent.id}`, { name: "Stolen" }],
      ["GET", `/api/v1/agents/${agent.id}/credentials`],
      ["POST", `/api/v1/agents/${agent.id}/credentials`, {}],
      ["DELETE", `/api/v1/agents/${agent.id}/credentials/${credential.id}`],
      ["PUT", `/api/v1/agents/${agent.id}/public_key`, { public_key: raw(keyPair().privateKey).toString("base64") }],
    ];
    for (const [method, path, body] of requests) {
      for (const as of [{ key: stranger.key }, { token: other.token }, { token: other.token, agent: stranger.id }, { token: await session(stranger) }]) {
        refused(await server.request(method, path, { ...as, body }), 404, "NOT_FOUND", `${method} ${path}`);
      }
      refused(await server.request(method, path, { body }), 401, "UNAUTHORIZED", `${method} ${path}`);
    }
    const { data } = await me(agent, { key: agent.key });
    assert.deepEqual([data.name, data.public_key], ["Agent", null]);
    assert.equal((await server.ok("GET", `/api/v1/agents/${agent.id}/credentials`, { token: user.token })).length, 2);
    refused(await server.request("DELETE", `/api/v1/agents/${stranger.id}/credentials/${credential.id}`, { key: stranger.key }), 404, "NOT_FOUND", "another agent's key by one's own path");
  });
});

describe("ending credentials", () => {
  /** Everything that can be open under an agent's key. */
  async function openAll(agent, key, task) {
    const streams = [await open(server, "/socket/agent/websocket", { api_key: key }), await open(server, "/socket/websocket", { api_key: key })];
    const sse = await readByFetch(server, { key }, task);
    const mcp = await fetch(`${server.url}/mcp/sse`, { headers: { "x-api-key": key, accept: "text/event-stream" } });
    assert.equal(sse.response.status, 200);
    assert.equal(mcp.status, 200);
    const mcpEnded = mcp.text().then(() => "ended", () => "ended");
    return { sockets: streams, sse, mcpEnded };
  }

  async function allEnd({ sockets: closing, sse, mcpEnded }, since) {
    for (const socket of closing) assert.equal((await socket.ended(WITHIN_MS)).code, 1001);
    await until("the event stream ends", () => sse.ended, WITHIN_MS);
    assert.equal(await within(WITHIN_MS, "the MCP stream ends", mcpEnded), "ended");
    assert.ok(Date.now() - since < WITHIN_MS, `${Date.now() - since} ms`);
  }

  test("R18: rotating a key ends it at once, with its sockets, streams and sessions", async () => {
    const { client, task } = await cast(server);
    const token = await session(client);
    const before = await openAll(client, client.key, task);
    const bySession = await open(server, "/socket/websocket", { session_token: token });
    const other = await issueKey(client);
    const untouched = await open(server, "/socket/agent/websocket", { api_key: other.api_key });

    const since = Date.now();
    const answer = await server.request("POST", "/api/v1/auth/rotate-key", { key: client.key });
    assert.equal(answer.status, 200);
    assert.match(answer.data.api_key, AP);
    refused(await me(client, { key: client.key }), 401, "UNAUTHORIZED", "the old key");
    refused(await me(client, { token }), 401, "UNAUTHORIZED", "a session had by it");
    assert.equal((await me(client, { key: answer.data.api_key })).status, 200);
    await allEnd(before, since);
    assert.equal((await bySession.ended(WITHIN_MS)).code, 1001);
    assert.equal(await handshakeStatus(server, `/socket/agent/websocket${query({ api_key: client.key })}`), 403);
    assert.equal((await untouched.ask("phoenix", "heartbeat")).status, "ok", "another key's socket goes on");
  });

  test("R18 R23: revoking one key leaves the others alone", async () => {
    const { client, task } = await cast(server);
    const { api_key: key, credential } = await issueKey(client, { label: "leaked" });
    const doomed = await openAll(client, key, task);
    const safe = await open(server, "/socket/agent/websocket", { api_key: client.key });
    const since = Date.now();
    const answer = await server.request("DELETE", `/api/v1/agents/${client.id}/credentials/${credential.id}`, { key: client.key });
    assert.equal(answer.status, 200);
    assert.equal((await me(client, { key })).status, 401);
    await allEnd(doomed, since);
    assert.equal((await safe.ask("phoenix", "heartbeat")).status, "ok");
    const [listed] = (await server.ok("GET", `/api/v1/agents/${client.id}/credentials`, { key: client.key })).filter((one) => one.id === credential.id);
    assert.match(listed.revoked_at, ISO);
    await server.request("DELETE", `/api/v1/agents/${client.id}/credentials/${credential.id}`, { key: client.key });
    assert.equal((await me(client, { key })).status, 401, "revoked once is revoked for good");
  });

  test("R18 R19: a session goes with the key it was had by, and with no other", async () => {
    const agent = await server.agent();
    const second = await issueKey(agent);
    const [mine, its] = [await session(agent), await session({ key: second.api_key })];
    const socket = await open(server, "/socket/websocket", { session_token: mine });
    await server.ok("DELETE", `/api/v1/agents/${agent.id}/credentials/${second.credential.id}`, { key: agent.key });
    assert.equal((await me(agent, { token: its })).status, 401);
    assert.equal((await me(agent, { token: mine })).status, 200, "a session of a key that stands");
    assert.equal((await socket.ask("phoenix", "heartbeat")).status, "ok");
  });

  test("R16 R18: an owner revokes an agent's last key", async () => {
    const user = await server.user();
    const agent = await server.agent({ owner: user });
    const socket = await open(server, "/socket/agent/websocket", { api_key: agent.key });
    const [credential] = await server.ok("GET", `/api/v1/agents/${agent.id}/credentials`, { token: user.token });
    await server.ok("DELETE", `/api/v1/agents/${agent.id}/credentials/${credential.id}`, { token: user.token });
    assert.equal((await socket.ended(WITHIN_MS)).code, 1001);
    const fresh = await issueKey(agent, {}, { token: user.token });
    assert.equal((await me(agent, { key: fresh.api_key })).status, 200, "and gives it a new one");
  });

  test("R18 R30: a user's token ends by the operator and by rotation, with its sockets", async () => {
    const user = await server.user();
    const agent = await server.agent({ owner: user });
    const hirer = await open(server, "/socket/hirer/websocket", { api_key: user.token });
    const acting = await open(server, "/socket/websocket", { api_key: user.token, agent_id: agent.id });
    const byKey = await open(server, "/socket/agent/websocket", { api_key: agent.key });
    await server.ok("DELETE", `/api/v1/admin/users/${user.id}/tokens/${user.credential.id}`, { token: server.adminToken });
    for (const socket of [hirer, acting]) assert.equal((await socket.ended(WITHIN_MS)).code, 1001);
    assert.equal((await server.request("GET", "/api/v1/agents", { token: user.token })).status, 401);
    assert.equal((await byKey.ask("phoenix", "heartbeat")).status, "ok", "the agent's own key is another credential");

    const { token } = await issueToken(user);
    const second = await open(server, "/socket/hirer/websocket", { api_key: token });
    const rotated = await server.ok("POST", "/api/v1/auth/rotate-key", { token });
    assert.match(rotated.token, AP);
    assert.equal((await second.ended(WITHIN_MS)).code, 1001);
    assert.equal((await server.request("GET", "/api/v1/agents", { token: rotated.token })).status, 200);
    assert.equal((await server.request("GET", "/api/v1/agents", { token })).status, 401);
  });

  test("R18 R167: rotation takes a key or a token, and nothing else", async () => {
    const agent = await server.agent();
    refused(await server.request("POST", "/api/v1/auth/rotate-key", { token: await session(agent) }), 403, "FORBIDDEN");
    refused(await server.request("POST", "/api/v1/auth/rotate-key", {}), 401, "UNAUTHORIZED");
    const raced = await Promise.all(Array.from({ length: 5 }, () => server.request("POST", "/api/v1/auth/rotate-key", { key: agent.key })));
    assert.equal(raced.filter((one) => one.status === 200).length, 1, "of five rotations at once, one");
    const fresh = raced.find((one) => one.status === 200).data.api_key;
    assert.equal((await me(agent, { key: fresh })).status, 200);
  });

  /** Opens sockets by a key while `end` ends it, at many points of the handshake; gives those that opened. */
  async function race(end) {
    const opened = [];
    // On a slow machine longer, until some were quick enough.
    for (let round = 0; round < 12 || (opened.length === 0 && round < 200); round++) {
      const agent = await server.agent();
      const { api_key: key, credential } = await issueKey(agent);
      const racing = Array.from({ length: 20 }, () => open(server, "/socket/agent/websocket", { api_key: key }).catch(() => null));
      await sleep(round);
      await end(agent, credential);
      opened.push(...(await Promise.all(racing)).filter(Boolean));
    }
    assert.ok(opened.length > 0, "some open");
    return opened;
  }

  async function allClose(opened) {
    const open = () => opened.filter((socket) => !socket.closed).length;
    await until("all are closed", () => open() === 0, WITHIN_MS).catch(() => assert.equal(open(), 0, `of ${opened.length} sockets, open after their credential ended`));
    for (const socket of opened) assert.equal(socket.closed.code, 1001);
  }

  test("R18: sockets that open while their key is revoked do not outlive it", async () => {
    const opened = await race(async (agent, credential) => {
      await server.ok("DELETE", `/api/v1/agents/${agent.id}/credentials/${credential.id}`, { key: agent.key });
    });
    await allClose(opened);
  });

  test("R18 R23: sockets that open while their agent is stopped do not outlive that", async () => {
    await allClose(await race((agent) => status(agent, "suspended")));
  });
});

describe("sessions", () => {
  test("R19: a key buys a session of a day", async () => {
    const agent = await server.agent({ name: "Sleeper" });
    const { data } = await server.request("POST", "/api/v1/auth/authenticate", { key: agent.key });
    assert.deepEqual(data.agent, { id: agent.id, name: "Sleeper" });
    assert.ok(data.token.length >= 43, "32 random bytes");
    assert.ok(Math.abs(Date.parse(data.expires_at) - Date.now() - 86_400_000) < 60_000);
    assert.equal((await me(agent, { token: data.token })).status, 200);
    assert.notEqual(await session(agent), data.token);
    for (const path of ["/socket/websocket", "/user_socket"]) {
      const name = path === "/user_socket" ? "token" : "session_token";
      assert.equal(await handshakeStatus(server, path + query({ [name]: data.token, agent_id: agent.id })), 101, path);
    }
  });

  test("R19 R167: only an agent's key buys a session", async () => {
    const user = await server.user();
    const agent = await server.agent({ owner: user });
    const authenticate = (as) => server.request("POST", "/api/v1/auth/authenticate", as);
    refused(await authenticate({ token: await session(agent) }), 403, "FORBIDDEN", "a session buys no other");
    refused(await authenticate({ token: user.token }), 403, "FORBIDDEN");
    refused(await authenticate({ token: user.token, agent: agent.id }), 403, "FORBIDDEN", "nor as its owner");
    refused(await authenticate({}), 401, "UNAUTHORIZED");
    refused(await authenticate({ key: "ap_wrong" }), 401, "UNAUTHORIZED");
  });

  test("R19 R18: logout ends that session and its sockets, and nothing else", async () => {
    const agent = await server.agent();
    const [one, two] = [await session(agent), await session(agent)];
    const mine = await open(server, "/socket/websocket", { session_token: one });
    const others = [await open(server, "/socket/websocket", { session_token: two }), await open(server, "/socket/agent/websocket", { api_key: agent.key })];
    assert.equal((await server.request("DELETE", "/api/v1/auth/logout", { token: one })).status, 200);
    assert.equal((await mine.ended(WITHIN_MS)).code, 1001);
    refused(await me(agent, { token: one }), 401, "UNAUTHORIZED");
    refused(await server.request("DELETE", "/api/v1/auth/logout", { token: one }), 401, "UNAUTHORIZED");
    assert.equal((await me(agent, { token: two })).status, 200);
    for (const socket of others) assert.equal((await socket.ask("phoenix", "heartbeat")).status, "ok");
    refused(await server.request("DELETE", "/api/v1/auth/logout", { key: agent.key }), 403, "FORBIDDEN", "a key is no session");
    assert.equal((await me(agent, { key: agent.key })).status, 200);
  });

  test("R19 R169: of too many sessions the oldest goes, with its sockets, and keys are not counted with them", async () => {
    const own = await start({ set: ["limits.credentials_per_owner_max=2"] });
    const agent = await own.agent();
    const first = await session(agent, own);
    const socket = await open(own, "/socket/websocket", { session_token: first });
    const second = await session(agent, own);
    const third = await session(agent, own);
    const read = async (token) => (await own.request("GET", `/api/v1/agents/${agent.id}`, { token })).status;
    assert.deepEqual([await read(first), await read(second), await read(third)], [401, 200, 200]);
    assert.equal((await socket.ended(WITHIN_MS)).code, 1001);
    assert.ok((await issueKey(agent, {}, { key: agent.key }, own)).api_key, "a second key");
  });

  test("R169: a credential has as many sockets as the limit says", async () => {
    const own = await start({ set: ["limits.sockets_per_credential_max=2"] });
    const agent = await own.agent();
    const path = `/socket/agent/websocket${query({ api_key: agent.key })}`;
    const sockets = [await open(own, "/socket/agent/websocket", { api_key: agent.key }), await open(own, "/socket/agent/websocket", { api_key: agent.key })];
    // A socket is counted behind its handshake, of which the client may know before.
    await until("both are counted", async () => (await metric(own, "muster_sockets")) === 2);
    assert.equal(await handshakeStatus(own, path), 429);
    const other = await issueKey(agent, {}, { key: agent.key }, own);
    assert.equal(await handshakeStatus(own, `/socket/agent/websocket${query({ api_key: other.api_key })}`), 101, "another key");
    sockets[0].end();
    await until("there is room again", async () => (await handshakeStatus(own, path)) === 101, WITHIN_MS);
  });

  test("R19 R167: a session ends at its time, and so do its sockets", async () => {
    const own = await start({ set: ["accounts.session_ttl_ms=3000"] });
    const agent = await own.agent();
    const began = Date.now();
    const token = await session(agent, own);
    const socket = await open(own, "/socket/websocket", { session_token: token });
    const read = () => own.request("GET", `/api/v1/agents/${agent.id}`, { token });
    assert.equal((await read()).status, 200);
    assert.equal((await socket.ended(3_000 + WITHIN_MS)).code, 1001);
    assert.ok(Date.now() - began >= 3_000);
    assert.equal((await read()).status, 401);
    assert.equal(await handshakeStatus(own, `/socket/websocket${query({ session_token: token })}`), 403);
    assert.equal(await handshakeStatus(own, `/user_socket${query({ token, agent_id: agent.id })}`), 403);
  });

  test("R17 R19: a session can do what its key can, and no longer", async () => {
    const agent = await server.agent();
    const ends = later(60_000);
    const { api_key } = await issueKey(agent, { scopes: ["write"], expires_at: ends });
    const { data } = await server.request("POST", "/api/v1/auth/authenticate", { key: api_key });
    assert.equal(data.expires_at, ends);
    assert.equal((await me(agent, { token: data.token })).status, 403, "no read scope");
    assert.equal(await handshakeStatus(server, `/socket/websocket${query({ session_token: data.token })}`), 403, "no connect scope");
  });
});

const keyPair = () => generateKeyPairSync("ed25519");
const raw = (privateKey) => createPublicKey(privateKey).export({ type: "spki", format: "der" }).subarray(-32);
const fromSeed = (byte) => createPrivateKey({ key: Buffer.concat([Buffer.from("302e020100300506032b657004220420", "hex"), Buffer.alloc(32, byte)]), format: "der", type: "pkcs8" });

describe("signing keys", () => {
  const setKey = (agent, body, as = { key: agent.key }) => server.request("PUT", `/api/v1/agents/${agent.id}/public_key`, { ...as, body });
  const statement = (agent, key) => Buffer.from(["muster-sig-v1", "agent.public_key", agent.id, key.toString("hex")].join("\n"));
  const base64 = (bytes) => bytes.toString("base64");

  test("R21: a key is read as base64, base64url or hex, and shown as base64", async () => {
    const key = raw(fromSeed(1));
    for (const text of [base64(key), base64(key).replaceAll("=", ""), key.toString("base64url"), key.toString("hex"), key.toString("hex").toUpperCase()]) {
      const agent = await server.agent();
      const answer = await setKey(agent, { public_key: text });
      assert.equal(answer.status, 200, answer.text);
      assert.equal(answer.data.public_key, base64(key), text);
    }
    const { data } = await register({ public_key: key.toString("hex") });
    assert.equal(data.agent.public_key, base64(key), "at registration too");
  });

  test("R21: the old key signs for the new one", async () => {
    const [first, second, third] = [fromSeed(1), fromSeed(2), fromSeed(3)];
    const agent = await server.agent({ more: { public_key: base64(raw(first)) } });
    const change = async (signer, to, spelling = "base64", body = {}) =>
      setKey(agent, { public_key: base64(raw(to)), signature: sign(null, statement(agent, raw(to)), signer).toString(spelling), ...body });
    assert.equal((await change(first, second)).data.public_key, base64(raw(second)));
    refused(await change(first, third), 422, "VALIDATION_ERROR", "the key before that is good for old records only");
    assert.equal((await change(second, third, "hex")).data.public_key, base64(raw(third)));
    assert.equal((await change(third, fromSeed(4), "base64url")).data.public_key, base64(raw(fromSeed(4))));
    assert.equal((await setKey(agent, { public_key: base64(raw(fromSeed(4))) })).status, 200, "the key it has already changes nothing");
  });

  test("R21: a key that was replaced does not come back, so that what was signed at the change is not good twice", async () => {
    const [first, second] = [fromSeed(1), fromSeed(2)];
    const agent = await server.agent({ more: { public_key: base64(raw(first)) } });
    const signed = (signer, to) => ({ public_key: base64(raw(to)), signature: base64(sign(null, statement(agent, raw(to)), signer)) });
    const seen = signed(first, second);
    assert.equal((await setKey(agent, seen)).status, 200);
    const back = await setKey(agent, signed(second, first));
    refused(back, 422, "VALIDATION_ERROR", "it was the agent's");
    assert.equal(back.error.field, "public_key");
    assert.equal((await me(agent, { key: agent.key })).data.public_key, base64(raw(second)));
    // From the operator alone, and even then what was signed before is not good again.
    assert.equal((await setKey(agent, { public_key: base64(raw(first)) }, { token: server.adminToken })).status, 200);
    refused(await setKey(agent, seen), 422, "VALIDATION_ERROR", "a replay");
    assert.equal((await me(agent, { key: agent.key })).data.public_key, base64(raw(first)));
    const other = await server.agent({ more: { public_key: base64(raw(fromSeed(3))) } });
    const fresh = { public_key: base64(raw(second)), signature: base64(sign(null, statement(other, raw(second)), fromSeed(3))) };
    assert.equal((await setKey(other, fresh)).status, 200, "it was another agent's");
  });

  test("R21 R167: no signature, a wrong one, or one for something else swaps no key", async () => {
    const [old, thief, next] = [fromSeed(1), fromSeed(9), fromSeed(2)];
    const user = await server.user();
    const agent = await server.agent({ owner: user, more: { public_key: base64(raw(old)) } });
    const other = await server.agent();
    const good = sign(null, statement(agent, raw(next)), old);
    // The same signature with its scalar raised by the group's order: a second spelling, which strict readers refuse.
    const order = 2n ** 252n + 27742317777372353535851937790883648493n;
    const scalar = BigInt(`0x${Buffer.from(good.subarray(32)).reverse().toString("hex")}`) + order;
    const malleable = Buffer.concat([good.subarray(0, 32), Buffer.from(scalar.toString(16).padStart(64, "0"), "hex").reverse()]);
    const bad = {
      "none": undefined,
      "null": null,
      "empty": "",
      "not 64 bytes": base64(good.subarray(1)),
      "the new key's": base64(sign(null, statement(agent, raw(next)), next)),
      "a stranger's": base64(sign(null, statement(agent, raw(next)), thief)),
      "for another agent": base64(sign(null, statement(other, raw(next)), old)),
      "for another key": base64(sign(null, statement(agent, raw(thief)), old)),
      "in upper-case hex": base64(sign(null, Buffer.from(statement(agent, raw(next)).toString().replace(/[^\n]*$/, (hex) => hex.toUpperCase())), old)),
      "with a newline behind": base64(sign(null, Buffer.concat([statement(agent, raw(next)), Buffer.from("\n")]), old)),
      "of another domain": base64(sign(null, Buffer.from(statement(agent, raw(next)).toString().replace("v1", "v2")), old)),
      "in a second spelling": base64(malleable),
    };
    for (const as of [{ key: agent.key }, { token: user.token }, { token: await session(agent) }]) {
      for (const [what, signature] of Object.entries(bad)) {
        const answer = await setKey(agent, { public_key: base64(raw(next)), signature }, as);
        refused(answer, 422, "VALIDATION_ERROR", what);
        assert.equal(answer.error.details.reason, "invalid_signature", what);
      }
    }
    assert.equal((await me(agent, { key: agent.key })).data.public_key, base64(raw(old)));
    assert.equal((await server.request("PUT", `/api/v1/agents/${agent.id}`, { key: agent.key, body: { name: "B", public_key: base64(raw(thief)) } })).status < 500, true);
    assert.equal((await me(agent, { key: agent.key })).data.public_key, base64(raw(old)), "nor by the other door");
    assert.equal((await setKey(agent, { public_key: base64(raw(next)), signature: base64(good) })).status, 200, "the right one does");
  });

  test("R21: the operator may set a key without a signature; a wrong operator's token may not", async () => {
    const agent = await server.agent({ more: { public_key: base64(raw(fromSeed(1))) } });
    const body = { public_key: base64(raw(fromSeed(2))) };
    refused(await setKey(agent, body, { token: "op_wrong" }), 401, "UNAUTHORIZED");
    assert.equal((await setKey(agent, body, { token: server.adminToken })).data.public_key, body.public_key);
    refused(await setKey({ id: randomUUID() }, body, { token: server.adminToken }), 404, "NOT_FOUND");
  });

  test("R21: weak and non-canonical keys are refused, by every way in", async () => {
    const p = 2n ** 255n - 19n;
    const bytes = (y, sign = 0n) => Buffer.from((y | (sign << 255n)).toString(16).padStart(64, "0"), "hex").reverse();
    const order8 = ["c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a", "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"];
    const bad = {
      "order 1": bytes(1n),
      "order 1 with a sign": bytes(1n, 1n),
      "order 2": bytes(p - 1n),
      "order 2 with a sign": bytes(p - 1n, 1n),
      "order 4": bytes(0n),
      "order 4, negative": bytes(0n, 1n),
      "order 8": Buffer.from(order8[0], "hex"),
      "order 8, the other": Buffer.from(order8[1], "hex"),
      "y = p": bytes(p),
      "y = p + 1": bytes(p + 1n),
      "y = p + 3": bytes(p + 3n),
      "y = 2^255 - 1": bytes(2n ** 255n - 1n),
      "no point": bytes(2n),
    };
    const agent = await server.agent();
    for (const [what, key] of Object.entries(bad)) {
      for (const answer of [await setKey(agent, { public_key: base64(key) }), await register({ public_key: key.toString("hex") }), await setKey(agent, { public_key: base64(key) }, { token: server.adminToken })]) {
        refused(answer, 422, "VALIDATION_ERROR", what);
        assert.equal(answer.error.field, "public_key", what);
      }
    }
    assert.equal((await me(agent, { key: agent.key })).data.public_key, null);
  });

  test("R21: a key that is not 32 bytes is refused", async () => {
    const agent = await server.agent();
    const key = raw(fromSeed(1));
    for (const public_key of ["", base64(key.subarray(1)), base64(Buffer.concat([key, key])), `${key.toString("hex")}00`, "+".repeat(64), `-----BEGIN PUBLIC KEY-----`, 5, null, undefined, [base64(key)]]) {
      refused(await setKey(agent, { public_key }), 422, "VALIDATION_ERROR", JSON.stringify(public_key));
    }
  });
});

/** Who a socket on agents:discovery sees. */
function presence(socket) {
  const seen = new Set(Object.keys(socket.events("agents:discovery", "presence_state")[0] ?? {}));
  for (const { joins, leaves } of socket.events("agents:discovery", "presence_diff")) {
    for (const id of Object.keys(leaves)) seen.delete(id);
    for (const id of Object.keys(joins)) seen.add(id);
  }
  return seen;
}

describe("statuses", () => {
  const discover = async (viewer, more = "") => (await server.ok("GET", `/api/v1/agents/discover?limit=100${more}`, { key: viewer.key })).map((agent) => agent.id);

  for (const stopped of ["suspended", "banned"]) {
    test(`R23 R28 R167: a ${stopped} agent is disconnected, cannot come back, and is found by nobody`, async () => {
      const user = await server.user();
      const viewer = await server.agent();
      const capability = `cap-${stopped}-${process.pid}`;
      const agent = await server.agent({ owner: user, capabilities: [capability] });
      const token = await session(agent);
      const socket = await open(server, "/socket/agent/websocket", { api_key: agent.key });
      await socket.join(`agent:${agent.id}`);
      const acting = await open(server, "/socket/websocket", { api_key: user.token, agent_id: agent.id });
      const hirer = await open(server, "/socket/hirer/websocket", { api_key: user.token });
      const watcher = await open(server, "/socket/websocket", { api_key: viewer.key });
      await watcher.join("agents:discovery");
      await until("the agent is seen", () => presence(watcher).has(agent.id), WITHIN_MS);
      assert.deepEqual(await discover(viewer, `&capability=${capability}`), [agent.id]);

      await status(agent, stopped);
      for (const closed of [socket, acting]) assert.equal((await closed.ended(WITHIN_MS)).code, 1001);
      await until("the agent leaves presence", () => !presence(watcher).has(agent.id), WITHIN_MS);
      assert.equal((await hirer.ask("phoenix", "heartbeat")).status, "ok", "its owner is not stopped");
      for (const path of [
        `/socket/agent/websocket${query({ api_key: agent.key })}`,
        `/socket/websocket${query({ api_key: agent.key })}`,
        `/socket/websocket${query({ session_token: token })}`,
        `/socket/websocket${query({ api_key: user.token, agent_id: agent.id })}`,
        `/user_socket${query({ token, agent_id: agent.id })}`,
      ]) {
        const answer = await handshake(server, path);
        assert.deepEqual([answer.status, answer.body], [403, ""], path);
      }
      for (const as of [{ key: agent.key }, { token }, { token: user.token, agent: agent.id }]) {
        refused(await server.request("GET", "/api/v1/tasks", as), 403, "FORBIDDEN");
        refused(await server.request("POST", "/api/v1/auth/rotate-key", as), 403, "FORBIDDEN");
      }
      assert.equal((await fetch(`${server.url}/mcp/sse`, { headers: { "x-api-key": agent.key } })).status, 403);

      assert.deepEqual(await discover(viewer, `&capability=${capability}`), []);
      for (const state of ["any", "offline", "online"]) {
        const found = await watcher.ask("agents:discovery", "discover", { capability, filters: { status: state } }, "1");
        assert.deepEqual(found.response.agents, [], state);
      }
      for (const name of [agent.id, agent.did]) refused(await server.request("GET", `/api/v1/agents/${name}`, { key: viewer.key }), 404, "NOT_FOUND");
      assert.equal((await server.ok("GET", "/api/v1/capabilities", { key: viewer.key })).some((one) => one.capability === capability), false);
      const hired = await server.request("POST", "/api/v1/tasks", { key: viewer.key, body: { provider_agent_id: agent.id, capability, input: {} } });
      refused(hired, 503, "AGENT_UNAVAILABLE");

      // Only the operator lifts it.
      refused(await server.request("PUT", `/api/v1/agents/${agent.id}`, { token: user.token, body: { status: "active" } }), 403, "FORBIDDEN");
      refused(await server.request("PUT", `/api/v1/agents/${agent.id}`, { key: agent.key, body: { status: "active" } }), 403, "FORBIDDEN");
      await status(agent, "active");
      assert.equal(await handshakeStatus(server, `/socket/agent/websocket${query({ api_key: agent.key })}`), 101);
      assert.deepEqual(await discover(viewer, `&capability=${capability}`), [agent.id]);
    });
  }

  test("R23: inactive and draft agents connect, and are found by nobody", async () => {
    const viewer = await server.agent();
    for (const state of ["inactive", "draft"]) {
      const capability = `cap-${state}-${process.pid}`;
      const agent = await server.agent({ capabilities: [capability] });
      const changed = await server.request("PUT", `/api/v1/agents/${agent.id}`, { key: agent.key, body: { status: state } });
      assert.equal(changed.data.status, state, "its own choice");
      const socket = await open(server, "/socket/agent/websocket", { api_key: agent.key });
      assert.equal((await socket.join(`agent:${agent.id}`)).status, "ok");
      assert.deepEqual(await discover(viewer, `&capability=${capability}`), []);
      assert.deepEqual(await discover(viewer, `&capability=${capability}&online_only=true`), [], `online and ${state}`);
      const main = await open(server, "/socket/websocket", { api_key: viewer.key });
      await main.join("agents:discovery");
      await until("the viewer sees itself", () => presence(main).has(viewer.id));
      assert.ok(!presence(main).has(agent.id), "nor seen in presence");
      await server.ok("PUT", `/api/v1/agents/${agent.id}`, { key: agent.key, body: { status: "active" } });
      assert.deepEqual(await discover(viewer, `&capability=${capability}`), [agent.id]);
    }
  });

  test("R23 R28: an agent that is active again is seen again by those who watch, without coming back itself", async () => {
    const [viewer, agent] = [await server.agent(), await server.agent()];
    const socket = await open(server, "/socket/agent/websocket", { api_key: agent.key });
    await socket.join(`agent:${agent.id}`);
    const watcher = await open(server, "/socket/websocket", { api_key: viewer.key });
    await watcher.join("agents:discovery");
    await until("it is seen", () => presence(watcher).has(agent.id), WITHIN_MS);
    const set = (to) => server.ok("PUT", `/api/v1/agents/${agent.id}`, { key: agent.key, body: { status: to } });
    await set("inactive");
    await until("it is seen no more", () => !presence(watcher).has(agent.id), WITHIN_MS);
    await set("active");
    const found = await server.ok("GET", "/api/v1/agents/discover?online_only=true&limit=100", { key: viewer.key });
    assert.ok(found.some((one) => one.id === agent.id), "discovery says it is online");
    await until("it is seen again", () => presence(watcher).has(agent.id), WITHIN_MS);
  });

  test("R23 R167: an agent and its owner cannot suspend, and nobody sets a status that is none", async () => {
    const user = await server.user();
    const agent = await server.agent({ owner: user });
    for (const as of [{ key: agent.key }, { token: user.token }]) {
      for (const state of ["suspended", "banned"]) {
        refused(await server.request("PUT", `/api/v1/agents/${agent.id}`, { ...as, body: { status: state } }), 403, "FORBIDDEN", state);
      }
    }
    for (const body of [{ status: "gone" }, { status: 1 }, {}, { status: null }]) {
      refused(await operator("PUT", `/api/v1/admin/agents/${agent.id}/status`, body), 422, "VALIDATION_ERROR", JSON.stringify(body));
    }
    for (const id of [randomUUID(), "nobody"]) refused(await operator("PUT", `/api/v1/admin/agents/${id}/status`, { status: "banned" }), 404, "NOT_FOUND", id);
    assert.equal((await me(agent, { key: agent.key })).data.status, "active");
  });
});

describe("addresses that guess", () => {
  const LOCKOUT_MS = 5_000;
  const guarded = [
    "limits.ip_limit_exempt=[]",
    'http.trusted_proxies=["127.0.0.1"]',
    `limits.auth_failures_per_ip=${rate(3, 1, 60_000)}`,
    `limits.auth_lockout_ms=${LOCKOUT_MS}`,
  ];

  test("R17 R169: after too many wrong credentials an address is locked out for a while, and no other", async () => {
    const own = await start({ set: guarded });
    const agent = await own.agent();
    const from = (address, key) => own.request("GET", `/api/v1/agents/${agent.id}`, { key, headers: { "x-forwarded-for": address } });
    const [guesser, other] = ["203.0.113.7", "203.0.113.8"];
    for (let n = 0; n < 10; n++) assert.equal((await from(guesser, agent.key)).status, 200, "right ones are not counted");
    const wrong = [];
    for (let n = 0; n < 6; n++) wrong.push((await from(guesser, `ap_guess${n}`)).status);
    assert.equal(wrong[0], 401);
    assert.equal(wrong.at(-1), 429);
    assert.deepEqual(wrong, wrong.toSorted(), "once locked out, locked out");
    const locked = await from(guesser, agent.key);
    refused(locked, 429, "RATE_LIMIT_EXCEEDED", "even with the right key");
    const seconds = Number(locked.headers.get("retry-after"));
    assert.ok(seconds >= 1 && seconds <= LOCKOUT_MS / 1_000, `Retry-After: ${seconds}`);
    const socket = await handshake(own, `/socket/agent/websocket${query({ api_key: agent.key })}`, { headers: { "x-forwarded-for": guesser } });
    assert.equal(socket.status, 429);
    assert.ok(Number(socket.headers["retry-after"]) >= 1);
    assert.equal(socket.body, "");
    assert.equal((await own.request("GET", "/api/v1/admin/users", { token: own.adminToken, headers: { "x-forwarded-for": guesser } })).status, 429, "the operator's doors too");
    assert.equal((await from(other, agent.key)).status, 200, "somebody else is not");
    assert.equal((await own.request("GET", "/ready", { headers: { "x-forwarded-for": guesser } })).status, 200);
    await until("the lockout ends", async () => (await from(guesser, agent.key)).status === 200);
  });

  for (const [place, guess] of [
    ["sockets", (own, n) => handshakeStatus(own, `/socket/agent/websocket${query({ api_key: `ap_${n}` })}`)],
    ["the operator's endpoints", async (own, n) => (await own.request("GET", "/api/v1/admin/users", { token: `op_${n}` })).status],
    ["MCP", async (own, n) => (await fetch(`${own.url}/mcp`, { method: "POST", headers: { "x-api-key": `ap_${n}` }, body: "{}" })).status],
    ["setting a public key", async (own, n) => (await own.request("PUT", `/api/v1/agents/${randomUUID()}/public_key`, { token: `op_${n}`, body: { public_key: "x" } })).status],
  ]) {
    test(`R17 R169: guesses at ${place} count`, async () => {
      const own = await start({ set: guarded });
      const seen = [];
      for (let n = 0; n < 6; n++) seen.push(await guess(own, n));
      assert.ok([401, 403].includes(seen[0]), String(seen));
      assert.equal(seen.at(-1), 429, String(seen));
    });
  }
});

describe("restarts", () => {
  test("R166: users, agents, keys, sessions, revocations and statuses survive kill -9", async () => {
    const own = await start();
    const user = await own.user("Stays");
    const agent = await own.agent({ owner: user, more: { public_key: raw(fromSeed(1)).toString("base64") } });
    const revoked = await own.ok("POST", `/api/v1/agents/${agent.id}/credentials`, { key: agent.key, body: {} });
    await own.ok("DELETE", `/api/v1/agents/${agent.id}/credentials/${revoked.credential.id}`, { key: agent.key });
    const token = await session(agent, own);
    const banned = await own.agent();
    await own.ok("PUT", `/api/v1/admin/agents/${banned.id}/status`, { token: own.adminToken, body: { status: "banned" } });
    const shown = await own.ok("GET", `/api/v1/agents/${agent.id}`, { key: agent.key });
    await own.kill();
    await own.startAgain();
    assert.deepEqual(await own.ok("GET", `/api/v1/agents/${agent.id}`, { key: agent.key }), shown);
    assert.deepEqual(await own.ok("GET", `/api/v1/agents/${agent.id}`, { token }), shown);
    assert.equal((await own.ok("GET", "/api/v1/agents", { token: user.token })).length, 1);
    assert.equal((await own.request("GET", `/api/v1/agents/${agent.id}`, { key: revoked.api_key })).status, 401);
    assert.equal((await own.request("GET", "/api/v1/tasks", { key: banned.key })).status, 403);
    assert.equal(await handshakeStatus(own, `/socket/agent/websocket${query({ api_key: banned.key })}`), 403);
    assert.equal((await own.ok("GET", "/api/v1/admin/users", { token: own.adminToken }))[0].name, "Stays");
  });
});
