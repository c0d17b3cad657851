// Running a node: configuration, commands, health, documents, drain, TLS, limits, bad HTTP, and secrets that stay so.

import assert from "node:assert/strict";
import { randomBytes, randomUUID, X509Certificate } from "node:crypto";
import { readdir, readFile, stat, writeFile } from "node:fs/promises";
import net from "node:net";
import path from "node:path";
import { after, afterEach, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { Bare, exchange, handshake, handshakeStatus, Line, query, tokenProtocol } from "./lib/bare.mjs";
import { certificate, filesIn, muster, scratch } from "./lib/cli.mjs";
import { collect, connect, join, push, VERSIONS } from "./lib/phoenix.mjs";
import { cast, freePort, leniently, Server, sleep, until } from "./lib/server.mjs";
import { readByFetch } from "./lib/sse.mjs";
import { Connections, emitters, rate } from "./lib/streams.mjs";
import { TlsServer } from "./lib/tls.mjs";

const docs = (name) => readFile(path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../docs", name), "utf8");

const servers = [];
const sockets = [];
const keep = (server) => {
  servers.push(server);
  return server;
};
const start = async (options) => keep(await Server.start(options));
const open = async (...args) => {
  const socket = await Bare.open(...args);
  sockets.push(socket);
  return socket;
};

let files;
before(async () => (files = await scratch()));
afterEach(() => sockets.splice(0).forEach((socket) => socket.end()));
after(async () => {
  await Promise.all(servers.map((server) => server.end()));
  await files.remove();
});

const AGENT = "/socket/agent/websocket";
const HIRER = "/socket/hirer/websocket";
const MAIN = "/socket/websocket";

/** The setting of a name in what `muster config` prints. */
function setting(toml, name) {
  const [section, key] = name.split(".");
  let current = "";
  for (const line of toml.split("\n")) {
    if (line.startsWith("[")) current = line.slice(1, -1);
    else if (current === section && line.startsWith(`${key} = `)) return JSON.parse(line.slice(key.length + 3));
  }
  return undefined;
}

function assertEnvelope(answer, label) {
  assert.match(answer.headers.get("content-type"), /^application\/json/, label);
  assert.deepEqual(Object.keys(answer.body).sort(), ["data", "errors", "meta"], label);
  assert.equal(answer.body.meta.request_id, answer.headers.get("x-request-id"), label);
  assert.ok(answer.body.meta.request_id.length > 0, label);
  assert.ok(Math.abs(Date.parse(answer.body.meta.timestamp) - Date.now()) < 60_000, label);
  if (answer.status >= 400) {
    assert.equal(answer.body.data, null, label);
    const [error] = answer.body.errors;
    assert.equal(typeof error.code, "string", label);
    assert.ok(error.message.length > 0, label);
    assert.equal(typeof error.details.reason, "string", label);
  } else {
    assert.deepEqual(answer.body.errors, [], label);
  }
}

function refused(answer, status, code, label = "") {
  assert.equal(answer.status, status, `${label}: ${answer.text}`);
  assert.equal(answer.error.code, code, `${label}: ${answer.text}`);
  assertEnvelope(answer, label);
}

describe("configuration", () => {
  const config = (args = [], env = {}) => muster(["config", ...args], { env });

  test("R169: file, then variables, then flags, each over the one before", async () => {
    await writeFile(files.file("layers.toml"), '[log]\nlevel = "warn"\n[stream]\nack = "memory"\n[limits]\nmessage_bytes_max = 2048\nhttp_headers_max = 20\n[limits.joins_per_agent]\ntokens = 1\nperiod_ms = 2\nburst = 3\n');
    const file = ["--config", files.file("layers.toml")];
    const env = { MUSTER_LIMITS_MESSAGE_BYTES_MAX: "4096", MUSTER_LIMITS_HTTP_HEADERS_MAX: "30" };
    const { code, stdout, stderr } = await config([...file, "--set", "limits.http_headers_max=40"], env);
    assert.equal(code, 0, stderr);
    assert.equal(setting(stdout, "log.level"), "warn", "only in the file");
    assert.equal(setting(stdout, "stream.ack"), "memory");
    assert.equal(setting(stdout, "limits.message_bytes_max"), 4096, "a variable over the file");
    assert.equal(setting(stdout, "limits.http_headers_max"), 40, "a flag over both");
    assert.match(stdout, /\[limits\.joins_per_agent\]\ntokens = 1\nperiod_ms = 2\nburst = 3/);
    assert.equal(setting(stdout, "drain.timeout_ms"), 10_000, "the rest as by default");
    const byVariable = await config([], { ...env, MUSTER_CONFIG: files.file("layers.toml") });
    assert.equal(setting(byVariable.stdout, "log.level"), "warn", "the file may be named by a variable");
    assert.equal(setting(byVariable.stdout, "limits.http_headers_max"), 30);
  });

  test("R169: the short flags are settings too", async () => {
    const { stdout } = await config(["--listen", "127.0.0.1:5", "--data-dir", "a b", "--set", 'http.origins=["https://x.example"]', "--set", "log.format=text"]);
    assert.equal(setting(stdout, "http.listen"), "127.0.0.1:5");
    assert.equal(setting(stdout, "store.data_dir"), "a b");
    assert.deepEqual(setting(stdout, "http.origins"), ["https://x.example"]);
    assert.equal(setting(stdout, "log.format"), "text");
  });

  test("R169: the defaults are those of the document, and what is printed can be read again", async () => {
    const { stdout } = await config();
    const [, documented] = (await docs("configuration.md")).match(/```toml\n([^]*?)```/);
    assert.equal(stdout.trim(), documented.trim());
    await writeFile(files.file("again.toml"), stdout);
    const again = await config(["--config", files.file("again.toml")]);
    assert.equal(again.stdout, stdout, again.stderr);
  });

  test("R169: what nobody knows, or cannot be, is an error in every layer, and named", async () => {
    const written = {
      "section.toml": ["[htttp]\nlisten = 'x'", "htttp"],
      "key.toml": ["[http]\nlissten = 'x'", "lissten"],
      "top.toml": ["listen = 'x'", "listen"],
      "rate.toml": ["[limits.joins_per_agent]\ntokens = 1\nperiod_ms = 1\nburst = 1\nextra = 1", "extra"],
      "half.toml": ["[limits.joins_per_agent]\ntokens = 1", "period_ms"],
      "type.toml": ["[limits]\nmessage_bytes_max = 'many'", "message_bytes_max"],
      "syntax.toml": ["[http\n", "syntax.toml"],
    };
    for (const [name, [text, named]] of Object.entries(written)) {
      await writeFile(files.file(name), text);
      const { code, stdout, stderr } = await config(["--config", files.file(name)]);
      assert.notEqual(code, 0, name);
      assert.equal(stdout, "", name);
      assert.ok(stderr.includes(named), `${name}: ${stderr}`);
    }
    const missing = await config(["--config", files.file("none.toml")]);
    assert.notEqual(missing.code, 0);
    for (const variable of ["MUSTER_HTTP_LISSTEN", "MUSTER_LISTEN", "MUSTER_HTTP", "MUSTER_X", "MUSTER_ADMIN_TOKEN_"]) {
      const { code, stderr } = await config([], { [variable]: "hidden-value" });
      assert.notEqual(code, 0, variable);
      assert.ok(stderr.includes(variable) && !stderr.includes("hidden-value"), stderr);
    }
    for (const [flag, named] of [
      ["http.lissten=x", "http.lissten"],
      ["listen=x", "listen"],
      ["http=x", "http"],
      ["http.listen.x=1", "http.listen.x"],
      ["limits.message_bytes_max=-1", "message_bytes_max"],
      ["limits.message_bytes_max=1.5", "message_bytes_max"],
      ["limits.message_bytes_max=99999999999999999999", "message_bytes_max"],
      ["limits.message_bytes_max=1", "message_bytes_max"],
      ["stream.ack=never", "ack"],
      ["log.format=xml", "format"],
      ["http.tls_certificate=/only", "tls_key"],
      ['http.trusted_proxies=["nowhere"]', "trusted_proxies"],
      ["nothing", "NAME=VALUE"],
    ]) {
      const { code, stderr } = await config(["--set", flag]);
      assert.notEqual(code, 0, flag);
      assert.ok(stderr.includes(named), `${flag}: ${stderr}`);
    }
  });

  test("R169: a node does not start on a configuration that is wrong", async () => {
    const folder = path.join(files.folder, "untouched");
    const { code, stderr } = await muster(["serve", "--listen", `127.0.0.1:${await freePort()}`, "--data-dir", folder, "--set", "http.lissten=x"]);
    assert.notEqual(code, 0);
    assert.match(stderr, /http\.lissten/);
    await assert.rejects(filesIn(folder), /ENOENT/, "and makes nothing");
    const level = await muster(["serve", "--data-dir", folder, "--listen", `127.0.0.1:${await freePort()}`, "--set", "log.level=[["]);
    assert.notEqual(level.code, 0);
    assert.match(level.stderr, /log\.level/);
  });

  test("R10 R14: the operator's token is no setting and is not printed", async () => {
    const { code, stdout, stderr } = await config([], { MUSTER_ADMIN_TOKEN: "op_do_not_print" });
    assert.equal(code, 0);
    assert.ok(!(stdout + stderr).includes("op_do_not_print"));
    const flag = await config(["--set", "admin.token=op_do_not_print"]);
    assert.notEqual(flag.code, 0);
  });

  test("R169: each limit can be set, and holds", async () => {
    const own = await start({
      set: [
        "limits.http_body_bytes_max=2000",
        "limits.json_depth_max=5",
        "limits.name_chars_max=10",
        "limits.page_items_max=3",
        "limits.page_items_default=2",
        "limits.capabilities_max=2",
        "limits.capability_chars_max=4",
        "limits.did_bytes_max=40",
        "limits.agent_metadata_bytes_max=20",
        "limits.agents_per_user_max=1",
        "limits.task_document_bytes_max=50",
        "limits.note_chars_max=5",
        "limits.notes_per_task_max=1",
        "limits.chunk_content_bytes_max=8",
        "limits.blocks_per_agent_max=1",
      ],
    });
    const user = await own.user();
    const agent = await own.agent({ owner: user });
    const provider = await own.agent();
    const task = await own.task(agent, provider);
    const registration = (more) => ({ agent: { name: "A", did: `did:test:${randomUUID().slice(0, 8)}`, capabilities: [], pricing_model: "fixed", ...more } });
    const register = (more) => own.request("POST", "/api/v1/agents/register", { body: registration(more) });
    refused(await own.request("POST", "/api/v1/agents/register", { raw: " ".repeat(2_001) }), 413, "PAYLOAD_TOO_LARGE", "http_body_bytes_max");
    refused(await own.request("POST", "/api/v1/agents/register", { raw: '{"a":[[[[[]]]]]}' }), 400, "MALFORMED_REQUEST", "json_depth_max");
    for (const [more, name] of [
      [{ name: "x".repeat(11) }, "name"],
      [{ capabilities: ["a", "b", "c"] }, "capabilities"],
      [{ capabilities: ["abcde"] }, "capabilities"],
      [{ did: `did:test:${"x".repeat(40)}` }, "did"],
      [{ metadata: { key: "x".repeat(20) } }, "metadata"],
    ]) {
      const answer = await register(more);
      refused(answer, 422, "VALIDATION_ERROR", name);
      assert.equal(answer.error.field, name);
    }
    refused(await own.request("POST", "/api/v1/agents", { token: user.token, body: registration() }), 409, "LIMIT_REACHED", "agents_per_user_max");
    refused(await own.request("GET", "/api/v1/tasks?limit=4", { key: agent.key }), 422, "VALIDATION_ERROR", "page_items_max");
    refused(await own.request("POST", "/api/v1/tasks", { key: agent.key, body: { provider_agent_id: provider.id, capability: "code", input: { x: "x".repeat(60) } } }), 422, "VALIDATION_ERROR", "task_document_bytes_max");
    const note = (content) => own.request("POST", `/api/v1/tasks/${task.id}/messages`, { key: agent.key, body: { content } });
    refused(await note("123456"), 422, "VALIDATION_ERROR", "note_chars_max");
    assert.equal((await note("12345")).status, 201);
    refused(await note("x"), 409, "LIMIT_REACHED", "notes_per_task_max");
    refused(await own.emit(task, provider, "123456789"), 422, "VALIDATION_ERROR", "chunk_content_bytes_max");
    assert.equal((await own.emit(task, provider, "12345678")).status, 202);
    for (let n = 0; n < 2; n++) await own.task(agent, provider);
    assert.equal((await own.ok("GET", "/api/v1/tasks", { key: agent.key })).length, 2, "page_items_default");
    const block = async () => own.request("POST", "/api/v1/blocks", { key: agent.key, body: { agent_id: (await own.agent()).id } });
    assert.equal((await block()).status, 201);
    refused(await block(), 409, "LIMIT_REACHED", "blocks_per_agent_max");
  });

  test("R169: a credential has its share of requests, and is told what is left", async () => {
    const own = await start({ set: [`limits.requests_per_credential=${rate(3, 1, 5_000)}`] });
    const [agent, other] = [await own.agent(), await own.agent()];
    const ask = (who) => own.request("GET", "/api/v1/tasks", { key: who.key });
    const left = [];
    for (let n = 0; n < 3; n++) {
      const answer = await ask(agent);
      assert.equal(answer.headers.get("x-ratelimit-limit"), "3");
      left.push(Number(answer.headers.get("x-ratelimit-remaining")));
    }
    assert.deepEqual(left, [2, 1, 0]);
    const late = await ask(agent);
    refused(late, 429, "RATE_LIMIT_EXCEEDED");
    assert.ok(late.error.details.retry_after_ms > 0);
    assert.equal(late.headers.get("retry-after"), `${Math.ceil(late.error.details.retry_after_ms / 1_000)}`);
    assert.equal((await ask(other)).status, 200, "another credential has its own");
    await until("there is a place again", async () => (await ask(agent)).status === 200);
  });

  test("R169: an address opens as many connections as the limits say", async () => {
    const own = await start({ set: ["limits.ip_limit_exempt=[]", `limits.connects_per_ip=${rate(40, 1, 60_000)}`] });
    const lines = await Promise.all(Array.from({ length: 50 }, () => Line.open(own)));
    await until("those too many are closed", () => lines.filter((line) => line.closed).length >= 10);
    const kept = lines.find((line) => !line.closed);
    kept.write("GET /live HTTP/1.1\r\nHost: x\r\n\r\n");
    assert.equal((await kept.answer()).status, 200, "those within it are served");
    for (const line of lines) line.end();
  });

  test("R169: a node holds as many connections as the limit says, and takes more when some go", async () => {
    const own = await start({ set: ["limits.connections_max=8", "limits.handshake_timeout_ms=60000"] });
    const lines = await Promise.all(Array.from({ length: 12 }, () => Line.open(own)));
    await until("those too many are closed", () => lines.filter((line) => line.closed).length >= 4);
    for (const line of lines) line.end();
    await until("there is a place again", async () => (await exchange(own, "GET /live HTTP/1.1\r\nHost: x\r\n\r\n"))?.status === 200);
  });
});

describe("commands", () => {
  let server;
  before(async () => (server = await start()));
  const as = (token) => ({ MUSTER_URL: server.url, ...(token ? { MUSTER_ADMIN_TOKEN: token } : {}) });
  const run = async (args, token = server.adminToken) => {
    const ended = await muster(args, { env: as(token) });
    return { ...ended, data: ended.code === 0 ? JSON.parse(ended.stdout) : null };
  };
  const works = async (args, token) => {
    const { code, data, stderr } = await run(args, token);
    assert.equal(code, 0, `${args.join(" ")}: ${stderr}`);
    return data;
  };

  test("R14: muster user create and list", async () => {
    const user = await works(["user", "create", "Grace Hopper"]);
    assert.equal(user.name, "Grace Hopper");
    const listed = await works(["user", "list"]);
    assert.ok(listed.some((one) => one.id === user.id));
    assert.equal((await server.ok("GET", "/api/v1/admin/users", { token: server.adminToken }))[0].id, user.id, "REST shows the same");
  });

  test("R14 R17 R18: muster token create, list and revoke", async () => {
    const user = await works(["user", "create", "Token owner"]);
    const plain = await works(["token", "create", user.id]);
    assert.match(plain.token, /^ap_[0-9A-Za-z]{43}$/);
    const expires = new Date(Date.now() + 60_000).toISOString();
    const narrow = await works(["token", "create", user.id, "--label", "ci", "--scope", "read", "--scope", "connect", "--expires-at", expires]);
    assert.deepEqual(narrow.credential.scopes, ["connect", "read"]);
    assert.equal(narrow.credential.expires_at, expires);
    assert.equal((await server.request("GET", "/api/v1/agents", { token: narrow.token })).status, 200);
    const { data: listed, stdout } = await run(["token", "list", user.id]);
    assert.deepEqual(listed.map((one) => one.label), ["ci", null]);
    assert.ok(!stdout.includes(plain.token) && !stdout.includes(narrow.token));
    const socket = await open(server, HIRER, { api_key: narrow.token });
    await works(["token", "revoke", user.id, narrow.credential.id]);
    assert.equal((await socket.ended(leniently(2_000))).code, 1001);
    assert.equal((await server.request("GET", "/api/v1/agents", { token: narrow.token })).status, 401);
    assert.equal((await server.request("GET", "/api/v1/agents", { token: plain.token })).status, 200);
  });

  test("R15 R16 R23: muster agent register, list and status", async () => {
    const user = await works(["user", "create", "Agent owner"]);
    const { token } = await works(["token", "create", user.id]);
    const describeAgent = (name) => ["agent", "register", "--name", name, "--did", `did:test:${randomUUID()}`, "--capability", "code", "--capability", "write docs"];
    const free = await works(describeAgent("Free"), null);
    assert.match(free.api_key, /^ap_/);
    assert.equal(free.agent.owner_user_id, null);
    assert.deepEqual(free.agent.capabilities, ["code", "write docs"]);
    assert.deepEqual([free.agent.pricing_model, free.agent.base_price], ["fixed", "0"]);
    const owned = await works([...describeAgent("Owned"), "--owned", "--pricing-model", "hybrid", "--base-price", "2.5", "--public-key", "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"], token);
    assert.equal(owned.agent.owner_user_id, user.id);
    assert.deepEqual([owned.agent.pricing_model, owned.agent.base_price], ["hybrid", "2.5"]);
    assert.equal(owned.agent.public_key, Buffer.from("8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c", "hex").toString("base64"));
    assert.deepEqual((await works(["agent", "list"], token)).map((one) => one.id), [owned.agent.id]);
    assert.equal((await works(["agent", "status", free.agent.id, "suspended"])).status, "suspended");
    assert.equal(await handshakeStatus(server, AGENT + query({ api_key: free.api_key })), 403);
    assert.equal((await works(["agent", "status", free.agent.id, "active"])).status, "active");
  });

  test("R14 R167: commands fail, say why, and show no secret", async () => {
    const user = await server.user();
    const secret = "op_not_the_operator";
    for (const [args, token, why] of [
      [["user", "list"], secret, "401"],
      [["user", "list"], null, "401"],
      [["user", "create", ""], server.adminToken, "422"],
      [["token", "create", "nobody"], server.adminToken, "404"],
      [["token", "create", user.id, "--scope", "root"], server.adminToken, "422"],
      [["token", "create", user.id, "--expires-at", "soon"], server.adminToken, "422"],
      [["token", "revoke", user.id, randomUUID()], server.adminToken, "404"],
      [["token", "list", user.id], user.token, "403"],
      [["agent", "status", randomUUID(), "banned"], server.adminToken, "404"],
      [["agent", "status", randomUUID(), "gone"], server.adminToken, "422"],
      [["agent", "register", "--name", "x", "--did", "x"], null, "422"],
      [["agent", "list"], secret, "401"],
    ]) {
      const { code, stdout, stderr } = await run(args, token);
      assert.notEqual(code, 0, args.join(" "));
      assert.equal(stdout, "", args.join(" "));
      assert.ok(stderr.includes(why), `${args.join(" ")}: ${stderr}`);
      if (token) assert.ok(!stderr.includes(token), stderr);
    }
    const unreachable = await muster(["user", "list", "--url", `http://127.0.0.1:${await freePort()}`, "--token", secret]);
    assert.notEqual(unreachable.code, 0);
    assert.ok(unreachable.stderr.length > 0 && !unreachable.stderr.includes(secret));
    for (const args of [["user"], ["user", "destroy"], ["no-such-command"], ["agent", "register"]]) assert.notEqual((await muster(args)).code, 0, args.join(" "));
    const help = await muster(["user", "create", "--help"], { env: { MUSTER_ADMIN_TOKEN: secret } });
    assert.ok(!help.stdout.includes(secret), "help shows no value of a secret");
  });

  test("R14 R168: muster cluster status shows the nodes, to the operator alone", async () => {
    const status = await works(["cluster", "status"]);
    const [node, ...others] = status.nodes;
    assert.deepEqual(others, []);
    assert.equal(node.name, status.node);
    assert.deepEqual([node.is_self, node.state, status.isolated], [true, "up", false]);
    assert.ok((await run(["cluster", "status"], "op_not_the_operator")).stderr.includes("401"));
  });

  test("R170: muster cluster cert makes an authority and certificates once, for their owner alone", async () => {
    const folder = files.file("nodes");
    const make = (...args) => muster(["cluster", "cert", folder, ...args]);
    const made = await make("--node", "a", "--node", "b", "--san", "b.example", "--san", "10.0.0.9");
    assert.equal(made.code, 0, made.stderr);
    assert.match(made.stdout, /ca\.pem goes to every node/);
    const names = (await readdir(folder)).sort();
    assert.deepEqual(names, ["a-key.pem", "a.pem", "b-key.pem", "b.pem", "ca-key.pem", "ca.pem"]);
    for (const name of names) assert.equal((await stat(path.join(folder, name))).mode & 0o777, 0o600, name);
    const certificate = new X509Certificate(await readFile(path.join(folder, "b.pem")));
    const authority = new X509Certificate(await readFile(path.join(folder, "ca.pem")));
    assert.ok(certificate.verify(authority.publicKey) && certificate.checkIssued(authority) && authority.ca);
    assert.equal(certificate.subjectAltName, "URI:muster://node/b, DNS:b, DNS:b.example, IP Address:10.0.0.9");
    assert.ok(new Date(certificate.validTo) > Date.now() + 300 * 86_400_000 && new Date(certificate.validFrom) < Date.now());
    const again = await make("--node", "c", "--node", "a");
    assert.notEqual(again.code, 0);
    assert.match(again.stderr, /a\.pem is there already/);
    assert.deepEqual((await readdir(folder)).sort(), names, "nothing was written");
    assert.equal((await make("--node", "c")).code, 0, "the authority signs again");
  });

  test("R168: muster ready says by its exit code whether a node serves", async () => {
    assert.equal((await muster(["ready", "--url", server.url])).code, 0);
    assert.notEqual((await muster(["ready", "--url", `http://127.0.0.1:${await freePort()}`])).code, 0);
  });
});

describe("health, metrics, documents", () => {
  let server;
  before(async () => (server = await start()));

  test("R168: health and readiness, under both names, need no credential", async () => {
    for (const target of ["/live", "/healthz", "/ready", "/readyz"]) {
      const answer = await server.request("GET", target);
      assert.equal(answer.status, 200, target);
      assertEnvelope(answer, target);
      assert.equal((await server.request("GET", target, { key: "ap_wrong" })).status, 200, `${target} with a wrong key`);
      assert.equal((await server.request("HEAD", target)).text, "");
    }
  });

  test("R168: metrics are Prometheus text, all named muster_", async () => {
    await cast(server);
    const { status, headers, text } = await server.request("GET", "/metrics");
    assert.equal(status, 200);
    assert.match(headers.get("content-type"), /^(application\/openmetrics-text|text\/plain)/);
    const lines = text.trimEnd().split("\n");
    assert.equal(lines.pop(), "# EOF");
    const described = new Set();
    for (const line of lines) {
      const comment = line.match(/^# (HELP|TYPE|UNIT) (\S+) \S/);
      if (comment) described.add(comment[2]);
      else assert.match(line, /^muster_[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? -?(\d+(\.\d+)?(e[+-]?\d+)?|NaN)$/i, line);
    }
    for (const name of described) assert.match(name, /^muster_/);
    assert.match(text, /^muster_http_requests_total\{.*route="\/api\/v1\/tasks".*status="201"\} \d+$/m);
  });

  test("R10 R168: no label holds an id, a name, an address or what a client made up", async () => {
    const { user, client, provider, task } = await cast(server);
    const socket = await open(server, AGENT, { api_key: provider.key });
    await socket.join(`agent:${provider.id}`);
    await socket.join(`made-up-topic:${task.id}`);
    await socket.ask(`agent:${provider.id}`, "made-up-event", {}, "1");
    for (const target of [`/api/v1/tasks/${task.id}`, `/api/v1/agents/${provider.did}`, "/made-up-path", "/api/v1/tasks/made-up-path", `/mcp/messages/made-up-path`]) {
      await server.request("GET", target, { key: client.key });
    }
    await exchange(server, "MADEUP /live HTTP/1.1\r\nHost: x\r\n\r\n");
    const { text } = await server.request("GET", "/metrics");
    for (const value of [user.id, client.id, provider.id, task.id, provider.did, client.key, user.token, "127.0.0.1"]) assert.ok(!text.includes(value), value);
    assert.doesNotMatch(text, /made-up|MADEUP|did:test|ap_|[0-9a-f]{8}-[0-9a-f]{4}-/);
  });

  test("R168: metrics can have an address of their own", async () => {
    const port = await freePort();
    const own = await start({ set: [`http.metrics_listen=127.0.0.1:${port}`] });
    refused(await own.request("GET", "/metrics"), 404, "ROUTE_NOT_FOUND");
    const answer = await fetch(`http://127.0.0.1:${port}/metrics`);
    assert.equal(answer.status, 200);
    assert.match(await answer.text(), /^muster_/m);
    assert.equal((await fetch(`http://127.0.0.1:${port}/api/v1/tasks`)).status, 404, "and nothing else is there");
  });

  test("R172: the documents that are served are those in the repository", async () => {
    for (const name of ["openapi.json", "asyncapi.json"]) {
      const answer = await server.request("GET", `/api/v1/${name}`);
      assert.equal(answer.status, 200);
      assert.match(answer.headers.get("content-type"), /^application\/json/);
      assert.deepEqual(answer.body, JSON.parse(await docs(name)), name);
    }
    const served = (await server.request("GET", "/api/v1/errors.json")).body;
    const rows = (await docs("errors.md")).split("\n").filter((line) => /^\| `/.test(line));
    const documented = rows.map((row) => {
      const [reason, code, status, retryable, meaning] = row.split("|").slice(1, -1).map((cell) => cell.trim());
      return { reason: reason.slice(1, -1), rest_code: code.slice(1, -1), http_status: Number(status), retryable: retryable === "yes", meaning };
    });
    assert.deepEqual(served, documented);
  });

  test("R167 R172: every endpoint that wants a credential refuses none and a wrong one", async () => {
    const { paths } = JSON.parse(await docs("openapi.json"));
    let checked = 0;
    for (const [template, methods] of Object.entries(paths)) {
      const target = template.replace(/\{[^}]+\}/g, randomUUID());
      for (const [method, operation] of Object.entries(methods)) {
        if (operation.security?.some((one) => Object.keys(one).length === 0)) continue;
        for (const as of [{}, { key: "ap_wrong" }, { token: "op_wrong" }]) {
          const body = ["post", "put"].includes(method) ? { public_key: "x" } : undefined;
          refused(await server.request(method.toUpperCase(), target, { ...as, body }), 401, "UNAUTHORIZED", `${method} ${template}`);
        }
        checked++;
      }
    }
    assert.ok(checked > 35, `${checked} endpoints`);
  });

  test("R172: endpoints answer as documented, whoever asks", async () => {
    const { paths } = JSON.parse(await docs("openapi.json"));
    const errors = new Map((await server.request("GET", "/api/v1/errors.json")).body.map((one) => [one.reason, one]));
    const { user, client } = await cast(server);
    const callers = { agent: { key: client.key }, user: { token: user.token }, "user as agent": { token: user.token, agent: client.id }, operator: { token: server.adminToken } };
    const unexpected = [];
    for (const [template, methods] of Object.entries(paths)) {
      for (const id of [randomUUID(), "no-id"]) {
        const target = template.replace(/\{[^}]+\}/g, id);
        for (const [method, operation] of Object.entries(methods)) {
          // These two end what the others are shown by.
          if (/rotate-key|logout/.test(template)) continue;
          for (const [who, as] of Object.entries(callers)) {
            const answer = await server.request(method.toUpperCase(), target, { ...as, body: ["post", "put"].includes(method) ? {} : undefined });
            if (!(String(answer.status) in operation.responses)) unexpected.push(`${method} ${target} as ${who}: ${answer.status}`);
            if (answer.status >= 400) {
              const { code, details } = answer.error;
              assert.equal(errors.get(details.reason)?.rest_code, code, `${method} ${target}: ${answer.text}`);
              assert.equal(errors.get(details.reason)?.http_status, answer.status);
            }
          }
        }
      }
    }
    assert.deepEqual(unexpected, []);
  });

  test("R172: unknown routes and methods are told in the envelope", async () => {
    const agent = await server.agent();
    for (const target of ["/", "/api", "/api/v1", "/api/v2/tasks", "/api/v1/nothing", "/api/v1/tasks/", "//live", "/live/", "/api/v1/tasks/x/y/z", "/metrics/x", "/%00", "/favicon.ico"]) {
      refused(await server.request("GET", target, { key: agent.key }), 404, "ROUTE_NOT_FOUND", target);
    }
    const { paths } = JSON.parse(await docs("openapi.json"));
    for (const [template, methods] of Object.entries(paths)) {
      const target = template.replace(/\{[^}]+\}/g, randomUUID());
      for (const method of ["get", "put", "post", "delete", "patch"]) {
        // A template may be another one's case: its methods are routed there.
        if (method in methods || template === "/api/v1/agents/{id}") continue;
        refused(await server.request(method.toUpperCase(), target, { key: agent.key }), 405, "METHOD_NOT_ALLOWED", `${method} ${template}`);
      }
    }
  });

  test("R172: a refused method comes with those that are allowed", async () => {
    for (const [method, target, allowed] of [
      ["DELETE", "/live", "GET"],
      ["PATCH", "/api/v1/tasks", "POST"],
    ]) {
      const answer = await server.request(method, target);
      assert.equal(answer.status, 405);
      // RFC 9110 §15.5.6: the answer must say them.
      assert.match(answer.headers.get("allow") ?? "", new RegExp(allowed), `${method} ${target}`);
    }
  });
});

describe("starting", () => {
  test("R166: two processes on one folder are one too many", async () => {
    const first = await start();
    const second = await muster(["serve", "--listen", `127.0.0.1:${await freePort()}`, "--data-dir", first.dataDir], { env: { MUSTER_ADMIN_TOKEN: "op_x" } });
    assert.notEqual(second.code, 0);
    assert.ok(second.stderr.length > 0);
    assert.doesNotMatch(second.stderr + second.stdout, /panic/i);
    await first.user("still writes");
    await first.kill();
    await first.startAgain();
    assert.equal((await first.ok("GET", "/api/v1/admin/users", { token: first.adminToken })).length, 1, "a dead process keeps nobody out");
  });

  test("R168: a port that is taken is told, and nothing is left running", async () => {
    const first = await start();
    const second = await muster(["serve", "--listen", `127.0.0.1:${first.port}`, "--data-dir", path.join(files.folder, "second")], { env: { MUSTER_ADMIN_TOKEN: "op_x" } });
    assert.notEqual(second.code, 0);
    assert.match(second.stderr, new RegExp(`${first.port}`));
    assert.equal((await first.request("GET", "/ready")).status, 200);
  });

  test("R170: beyond loopback plain HTTP is refused unless it is allowed", async () => {
    for (const host of ["0.0.0.0", "[::]"]) {
      const { code, stderr } = await muster(["serve", "--listen", `${host}:${await freePort()}`, "--data-dir", path.join(files.folder, "plain")], { env: { MUSTER_ADMIN_TOKEN: "op_x" } });
      assert.notEqual(code, 0, host);
      assert.match(stderr, /allow_plaintext/, host);
    }
    const port = await freePort();
    const allowed = await start({ port, set: ["http.allow_plaintext=true", `http.listen="0.0.0.0:${port}"`], args: [] });
    assert.equal((await allowed.request("GET", "/ready")).status, 200);
  });

  test("R170: an address that is none is told", async () => {
    for (const listen of ["nowhere", "127.0.0.1", "127.0.0.1:99999", ":4000", ""]) {
      const { code, stderr } = await muster(["serve", "--listen", listen, "--data-dir", path.join(files.folder, "nowhere")], { env: { MUSTER_ADMIN_TOKEN: "op_x" } });
      assert.notEqual(code, 0, listen);
      assert.match(stderr, /listen/, listen);
    }
  });
});

describe("drain", () => {
  test("R168: SIGTERM makes a node unready, ends sockets with 1012, streams and sessions, and the process with 0", async () => {
    const own = await start({ set: ["drain.unready_ms=3000", "drain.timeout_ms=60000"] });
    const { user, client, provider, task } = await cast(own);
    await own.emit(task, provider, "before");
    const all = [
      await open(own, AGENT, { api_key: provider.key }),
      await open(own, AGENT, { api_key: client.key }, { vsn: null }),
      await open(own, HIRER, { api_key: user.token }),
      await open(own, MAIN, { api_key: provider.key }),
    ];
    assert.equal((await all[0].join(`agent:${provider.id}`)).status, "ok");
    assert.equal((await all[2].join(`task_stream:${task.id}`)).status, "ok");
    const sse = await (await readByFetch(own, client, task)).joined();
    const legacy = await fetch(`${own.url}/mcp/sse`, { headers: { "x-api-key": provider.key, accept: "text/event-stream" } });
    const legacyEnded = legacy.text().then(() => true, () => true);
    const session = await fetch(`${own.url}/mcp`, {
      method: "POST",
      headers: { "x-api-key": provider.key, "content-type": "application/json", accept: "application/json, text/event-stream" },
      body: JSON.stringify({ jsonrpc: "2.0", id: 1, method: "initialize", params: { protocolVersion: "2025-06-18", capabilities: {}, clientInfo: { name: "t", version: "1" } } }),
    });
    await session.text();
    const listening = await fetch(`${own.url}/mcp`, { headers: { "x-api-key": provider.key, accept: "text/event-stream", "mcp-session-id": session.headers.get("mcp-session-id") } });
    assert.equal(listening.status, 200);
    const listeningEnded = listening.text().then(() => true, () => true);

    assert.equal((await own.request("GET", "/ready?unready=404")).status, 200);
    const began = Date.now();
    own.process.kill("SIGTERM");
    const unready = await until("the node is unready", async () => {
      const answer = await own.request("GET", "/ready");
      return answer.status === 503 && answer;
    });
    refused(unready, 503, "DRAINING");
    assert.equal((await own.request("GET", "/readyz")).status, 503);
    assert.equal((await own.request("GET", "/ready?unready=404")).status, 404, "as HAProxy asks");
    assert.equal((await own.request("GET", "/live")).status, 200, "it lives while it drains");
    assert.notEqual((await muster(["ready", "--url", own.url])).code, 0);
    assert.equal(await handshakeStatus(own, AGENT + query({ api_key: provider.key })), 503, "no new sockets");

    for (const socket of all) assert.equal((await socket.ended()).code, 1012);
    await until("the event stream ends", () => sse.ended);
    assert.ok(await legacyEnded && (await listeningEnded));
    assert.deepEqual(await own.exited, { code: 0, signal: null });
    assert.ok(Date.now() - began < 30_000, `${Date.now() - began} ms`);
    assert.doesNotMatch(own.logs, /panic/i);
    await own.startAgain();
    assert.equal((await own.ok("GET", `/api/v1/tasks/${task.id}/stream`, { key: client.key })).seq, 1, "what was acknowledged is there");
  });

  test("R168: a request that is in work is finished", async () => {
    const own = await start();
    const line = await Line.open(own);
    const body = JSON.stringify({ agent: { name: "Late", did: "did:test:late", capabilities: [], pricing_model: "fixed" } });
    line.write(`POST /api/v1/agents/register HTTP/1.1\r\nHost: x\r\nContent-Length: ${body.length}\r\n\r\n${body.slice(0, 10)}`);
    await own.request("GET", "/live");
    own.process.kill("SIGTERM");
    await until("nobody new is let in", () => new Promise((resolve) => {
      const probe = net.connect(own.port, "127.0.0.1");
      probe.on("connect", () => resolve(false) || probe.destroy());
      probe.on("error", () => resolve(true));
    }));
    line.write(body.slice(10));
    assert.equal((await line.answer()).status, 201);
    assert.deepEqual(await own.exited, { code: 0, signal: null });
  });

  for (const signal of ["SIGTERM", "SIGINT"]) {
    test(`R168: ${signal} ends a node in time, whatever its peers do`, async () => {
      const own = await start({ set: ["drain.timeout_ms=1500"] });
      const { user, provider, task } = await cast(own);
      const stuck = [await open(own, AGENT, { api_key: provider.key }), await open(own, HIRER, { api_key: user.token })];
      await stuck[1].join(`task_stream:${task.id}`);
      // Peers that answer nothing any more.
      for (const socket of stuck) socket.ws._socket.pause();
      const idle = await Line.open(own);
      const slow = await Line.open(own);
      slow.write("POST /api/v1/agents/register HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{");
      const began = Date.now();
      own.process.kill(signal);
      assert.deepEqual(await own.exited, { code: 0, signal: null });
      assert.ok(Date.now() - began < 1_500 + leniently(2_500), `${Date.now() - began} ms`);
      for (const line of [idle, slow]) line.end();
    });
  }

  test("R168: an agent that was online until a node stopped was last seen then", async () => {
    const own = await start({ set: ["drain.unready_ms=0"] });
    const { provider } = await cast(own);
    const socket = await open(own, AGENT, { api_key: provider.key });
    assert.equal((await socket.join(`agent:${provider.id}`)).status, "ok");
    const look = () => own.ok("GET", `/api/v1/agents/${provider.id}`, { key: provider.key });
    assert.equal((await look()).online, true);
    assert.equal((await look()).last_seen_at, null);
    assert.equal((await own.stop()).code, 0);
    await own.startAgain();
    const after = await look();
    assert.equal(after.online, false);
    assert.ok(Date.parse(after.last_seen_at) > 0, JSON.stringify(after));
  });

  test("R168: told to stop twice, a node stops at once", async () => {
    const own = await start({ set: ["drain.unready_ms=60000"] });
    const began = Date.now();
    own.process.kill("SIGTERM");
    await until("it drains", async () => (await own.request("GET", "/ready")).status === 503);
    own.process.kill("SIGTERM");
    const { code } = await own.exited;
    assert.notEqual(code, 0, "that was no orderly end");
    assert.ok(Date.now() - began < 30_000, `${Date.now() - began} ms`);
  });
});

describe("TLS", () => {
  let server, made;
  before(async () => {
    made = await certificate(files.folder);
    server = keep(await TlsServer.start({ certificate: made, set: ["limits.handshake_timeout_ms=3000"] }));
  });

  test("R170: REST over TLS, and commands that are told whom to trust", async () => {
    const { client, provider, task } = await cast(server);
    assert.equal((await server.emit(task, provider, "secret")).status, 202);
    const stream = await server.ok("GET", `/api/v1/tasks/${task.id}/stream`, { key: client.key });
    assert.equal(stream.chunks[0].content, "secret");
    assert.equal((await muster(["ready", "--url", server.url, "--ca", made.cert])).code, 0);
    const untrusting = await muster(["ready", "--url", server.url]);
    assert.notEqual(untrusting.code, 0, "a certificate that nobody vouches for");
    const created = await muster(["user", "create", "Over TLS", "--url", server.url, "--ca", made.cert], { env: { MUSTER_ADMIN_TOKEN: server.adminToken } });
    assert.equal(JSON.parse(created.stdout).name, "Over TLS");
  });

  for (const version of VERSIONS) {
    test(`R3 R170: phoenix ${version} over wss, with big messages both ways`, async () => {
      const { user, provider, task } = await cast(server);
      const options = { transport: server.transport() };
      const agent = await connect(version, server, "/socket/agent", { api_key: provider.key }, options);
      const hirer = await connect(version, server, "/socket/hirer", { api_key: user.token }, options);
      sockets.push({ end: () => (agent.disconnect(), hirer.disconnect()) });
      const channel = agent.channel(`agent:${provider.id}`, {});
      assert.equal((await join(channel)).status, "ok");
      const stream = hirer.channel(`task_stream:${task.id}`, {});
      const chunks = collect(stream, "stream.chunk");
      assert.equal((await join(stream)).status, "ok");
      // 64 KiB is the most a chunk may be; forty are more than any buffer on the way.
      const contents = Array.from({ length: 40 }, (_, n) => String.fromCharCode(97 + (n % 26)).repeat(65_536));
      const replies = await Promise.all(contents.map((content) => push(channel, "task.stream_chunk", { task_id: task.id, content }, 20_000)));
      assert.deepEqual(replies.map((reply) => reply.response), contents.map((_, n) => ({ seq: n + 1 })));
      await until("all have come", () => chunks.length === contents.length);
      assert.deepEqual(chunks.map((chunk) => chunk.content), contents);
      // Nearly as large as a frame may be.
      const big = await push(channel, "no.such.event", { filler: "é".repeat(480_000) }, 20_000);
      assert.deepEqual(big, { status: "error", response: { reason: "unknown_event" } });
    });
  }

  test("R11 R170: raw sockets over TLS: binary, too large, and closed with their code", async () => {
    const { provider } = await cast(server);
    const socket = await open(server, AGENT, { api_key: provider.key });
    assert.equal((await socket.join(`agent:${provider.id}`)).status, "ok");
    const topic = `agent:${provider.id}`;
    const [joinRef, ref, event] = ["1", "77", "no.such.event"];
    const header = Buffer.concat([Buffer.from([0, joinRef.length, ref.length, topic.length, event.length]), Buffer.from(joinRef + ref + topic + event)]);
    socket.ws.send(Buffer.concat([header, randomBytes(900_000)]));
    const reply = await until("the reply", () => socket.messages.find((one) => one.ref === ref));
    assert.deepEqual(reply.payload, { status: "error", response: { reason: "unknown_event" } });
    socket.ws.send("x".repeat(1_048_577));
    assert.equal((await socket.ended()).code, 1009);

    const rotated = await open(server, AGENT, { api_key: provider.key });
    await server.ok("POST", "/api/v1/auth/rotate-key", { key: provider.key });
    assert.equal((await rotated.ended(leniently(2_000))).code, 1001);
  });

  test("R8 R170: refusals over TLS are as without", async () => {
    for (const path of [AGENT, HIRER, MAIN]) {
      const answer = await handshake(server, path + query({ api_key: "ap_wrong" }));
      assert.deepEqual([answer.status, answer.body], [403, ""], path);
    }
  });

  test("R170: what is no TLS, or a handshake that stops, is closed and disturbs nobody", async () => {
    const plain = await Line.open(server, { secure: false });
    plain.write("GET /live HTTP/1.1\r\nHost: x\r\n\r\n");
    await plain.ended();
    assert.doesNotMatch(plain.received, /HTTP\/1.1 200/);
    const began = Date.now();
    const stalled = await Line.open(server, { secure: false });
    stalled.write(Buffer.from("1603010200", "hex"));
    await stalled.ended();
    assert.ok(Date.now() - began >= 2_900);
    assert.equal((await server.request("GET", "/live")).status, 200);
    assert.doesNotMatch(server.logs, /panic/i);
  });

  test("R168 R170: a drain over TLS says 1012 to each", async () => {
    const own = keep(await TlsServer.start({ certificate: made }));
    const { user, provider } = await cast(own);
    const all = [await open(own, AGENT, { api_key: provider.key }), await open(own, HIRER, { api_key: user.token })];
    assert.deepEqual(await own.stop(), { code: 0, signal: null });
    for (const socket of all) assert.equal((await socket.ended()).code, 1012);
  });

  test("R170: with TLS a node may listen beyond loopback; with half of it, or a wrong half, it does not start", async () => {
    const own = keep(await TlsServer.start({ certificate: made, host: "0.0.0.0" }));
    assert.equal((await own.request("GET", "/live")).status, 200);
    const serve = async (...set) => muster(["serve", "--listen", `127.0.0.1:${await freePort()}`, "--data-dir", path.join(files.folder, "tls"), ...set.flatMap((one) => ["--set", one])], { env: { MUSTER_ADMIN_TOKEN: "op_x" } });
    await writeFile(files.file("empty.pem"), "");
    for (const set of [
      [`http.tls_certificate=${made.cert}`],
      [`http.tls_certificate=${made.cert}`, `http.tls_key=${files.file("none.pem")}`],
      [`http.tls_certificate=${made.cert}`, `http.tls_key=${files.file("empty.pem")}`],
      [`http.tls_certificate=${made.key}`, `http.tls_key=${made.key}`],
      [`http.tls_certificate=${files.file("empty.pem")}`, `http.tls_key=${made.key}`],
    ]) {
      const { code, stderr } = await serve(...set);
      assert.notEqual(code, 0, set.join(" "));
      assert.match(stderr, /^muster: .+/m, set.join(" "));
      assert.doesNotMatch(stderr, /PRIVATE KEY/);
    }
  });
});

describe("bad HTTP", () => {
  let server, agent;
  before(async () => {
    server = await start({ set: ["limits.handshake_timeout_ms=1000"] });
    agent = await server.agent();
  });
  // Whatever was sent, the node serves on and has not crashed anywhere.
  afterEach(async () => {
    assert.equal((await server.request("GET", "/ready")).status, 200);
    assert.doesNotMatch(server.logs, /panic/i);
  });

  const post = (headers, body = "") => `POST /api/v1/agents/register HTTP/1.1\r\nHost: x\r\n${headers.map((line) => `${line}\r\n`).join("")}\r\n${body}`;
  const operator = (raw) => server.request("POST", "/api/v1/admin/users", { token: server.adminToken, raw });

  test("R169: a head that does not come, or comes slowly, ends its connection in time", async () => {
    const heads = { "nothing": "", "half a line": "GET /li", "half a head": "GET /live HTTP/1.1\r\nHost: x\r\n", "half a WebSocket's": `GET ${AGENT}?api_key=${agent.key} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n` };
    const began = Date.now();
    const lines = await Promise.all(Object.values(heads).map(async (head) => {
      const line = await Line.open(server);
      line.write(head);
      return line;
    }));
    const trickling = await Line.open(server);
    trickling.write("GET /live HTTP/1.1\r\n");
    const trickle = setInterval(() => trickling.write("X-Slow: 1\r\n"), 100);
    for (const [at, what] of Object.keys(heads).entries()) await lines[at].ended().catch(() => assert.fail(`still open: ${what}`));
    await trickling.ended().finally(() => clearInterval(trickle));
    assert.ok(Date.now() - began >= 900, "not before its time");
    for (const line of [...lines, trickling]) assert.doesNotMatch(line.received, /^HTTP\/1.1 200/);
  });

  test("R169: a body that does not come, or comes slowly, is answered 408 in time", async () => {
    for (const [what, head, drip] of [
      ["a length", post(["Content-Length: 100"], "{"), ""],
      ["drops", post(["Content-Length: 100"]), " "],
      ["chunks", post(["Transfer-Encoding: chunked"], "1\r\n{\r\n"), "1\r\n \r\n"],
    ]) {
      const began = Date.now();
      const line = await Line.open(server);
      line.write(head);
      const dripping = drip && setInterval(() => line.write(drip), 100);
      const answer = await line.answer().finally(() => clearInterval(dripping));
      assert.equal(answer?.status, 408, what);
      assert.equal(answer.error.code, "TIMEOUT");
      assert.ok(Date.now() - began >= 900, what);
      await line.ended();
    }
  });

  test("R169: slow heads and bodies keep nobody else waiting", async () => {
    const patient = await start({ set: ["limits.handshake_timeout_ms=60000"] });
    const lines = await Promise.all(Array.from({ length: 200 }, async (_, n) => {
      const line = await Line.open(patient);
      line.write(n % 2 ? "GET /live HTTP/1.1\r\nHost: x\r\n" : post(["Content-Length: 1000"], "{"));
      return line;
    }));
    const quick = await patient.request("POST", "/api/v1/admin/users", { token: patient.adminToken, body: { name: "Quick" } });
    assert.equal(quick.status, 201);
    assert.deepEqual(lines.filter((line) => line.closed || line.received !== ""), [], "none of them had to go for it");
    for (const line of lines) line.end();
  });

  test("R169: too many headers, and heads that are too large, are refused", async () => {
    const many = Array.from({ length: 65 }, (_, n) => `X-${n}: 1`);
    const large = [`X-A: ${"a".repeat(70_000)}`];
    for (const [what, bytes] of [
      ["too many", post(many)],
      ["too large", post(large)],
      ["a long target", `GET /${"a".repeat(70_000)} HTTP/1.1\r\nHost: x\r\n\r\n`],
      ["a long query", `GET ${AGENT}?api_key=${"a".repeat(70_000)} HTTP/1.1\r\nHost: x\r\n\r\n`],
    ]) {
      const line = await Line.open(server);
      line.write(bytes);
      const answer = await line.answer();
      assert.ok([414, 431].includes(answer?.status), `${what}: ${answer?.status}`);
      await line.ended();
    }
    assert.equal((await exchange(server, `GET /live HTTP/1.1\r\nHost: x\r\n${many.slice(0, 60).map((line) => `${line}\r\n`).join("")}\r\n`)).status, 200);
  });

  test("R169: a body that is too large is refused, however it is sent", async () => {
    const max = 1_048_576;
    refused(await server.request("POST", "/api/v1/agents/register", { raw: " ".repeat(max + 1) }), 413, "PAYLOAD_TOO_LARGE");
    const chunked = await Line.open(server);
    chunked.write(post(["Transfer-Encoding: chunked"]));
    for (let sent = 0; sent <= max; sent += 65_536) chunked.write(`10000\r\n${" ".repeat(65_536)}\r\n`);
    assert.equal((await chunked.answer()).error.code, "PAYLOAD_TOO_LARGE");
    chunked.end();
    assert.notEqual((await server.request("POST", "/api/v1/agents/register", { raw: "{}".padEnd(max) })).status, 413, "the largest that is allowed");
  });

  test("R169: a length that is too large is refused before the body comes", async () => {
    for (const length of [1_048_577, 99_999_999_999_999]) {
      const line = await Line.open(server);
      line.write(post([`Content-Length: ${length}`], "{"));
      const answer = await line.answer(3_000);
      line.end();
      assert.equal(answer?.status, 413, `Content-Length: ${length}: ${answer?.status}`);
      assert.equal(answer.error.code, "PAYLOAD_TOO_LARGE");
    }
  });

  test("R11 R172: bytes that are no HTTP get 400 and the end of their connection", async () => {
    for (const [what, bytes] of Object.entries({
      "TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03hello\r\n\r\n",
      "no version": "GET /live\r\n\r\n",
      "a version to come": "GET /live HTTP/3.0\r\nHost: x\r\n\r\n",
      "a method that is none": "GE(T /live HTTP/1.1\r\nHost: x\r\n\r\n",
      "a target that is none": "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
      "a target that is no text": "GET /live\xff HTTP/1.1\r\nHost: x\r\n\r\n",
      "two lengths": post(["Content-Length: 2", "Content-Length: 3"], "{}x"),
      "a negative length": post(["Content-Length: -2"], "{}"),
      "an endless length": post(["Content-Length: 99999999999999999999999"], "{}"),
      "another coding": post(["Transfer-Encoding: gzip"], "{}"),
      "a chunk that is none": post(["Transfer-Encoding: chunked"], "zz\r\n{}\r\n0\r\n\r\n"),
      "a NUL in a header": "GET /live HTTP/1.1\r\nHost: x\r\nX-A: a\0b\r\n\r\n",
      "a folded header": "GET /live HTTP/1.1\r\nHost: x\r\nX-A: a\r\n b\r\n\r\n",
      "a space before the colon": "GET /live HTTP/1.1\r\nHost: x\r\nX-A : a\r\n\r\n",
      "no colon": "GET /live HTTP/1.1\r\nHost: x\r\nX-A\r\n\r\n",
    })) {
      const line = await Line.open(server);
      line.write(Buffer.from(bytes, "latin1"));
      const answer = await line.answer();
      assert.equal(answer?.status, 400, what);
      await line.ended();
    }
    const preface = await Line.open(server);
    preface.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    await preface.ended();
    assert.doesNotMatch(preface.received, /HTTP\/1.1 200/);
  });

  test("R172: HTTP/1.1 without exactly one Host is refused", async () => {
    // RFC 9112 §3.2.
    for (const bytes of ["GET /live HTTP/1.1\r\n\r\n", "GET /live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"]) {
      assert.equal((await exchange(server, bytes))?.status, 400, JSON.stringify(bytes));
    }
  });

  test("R172: odd requests that are HTTP are answered, and the next one on the connection too", async () => {
    const line = await Line.open(server);
    for (const [bytes, status] of [
      ["BREW /live HTTP/1.1\r\nHost: x\r\n\r\n", 405],
      ["OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404],
      ["GET http://elsewhere.example/live HTTP/1.1\r\nHost: x\r\n\r\n", 200],
      ["GET /live?%00=%ff HTTP/1.1\r\nHost: x\r\n\r\n", 200],
      ["GET /live HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 200],
      ["GET /api/../live HTTP/1.1\r\nHost: x\r\n\r\n", 404],
      ["GET /live HTTP/1.1\r\nHost: x\r\n\r\n", 200],
    ]) {
      line.received = "";
      line.write(bytes);
      assert.equal((await line.answer()).status, status, bytes);
      assert.equal(line.closed, false, bytes);
    }
    line.end();
    const pipelined = await Line.open(server);
    pipelined.write("GET /live HTTP/1.1\r\nHost: x\r\n\r\n".repeat(10));
    await until("ten answers", () => pipelined.received.split("HTTP/1.1 200").length === 11);
    pipelined.end();
  });

  test("R11 R172: bodies that are no JSON are malformed", async () => {
    for (const [what, raw] of Object.entries({
      "half an object": '{"name":"x"',
      "something behind": '{"name":"x"},',
      "a form": "name=x&other=y",
      "XML": "<name>x</name>",
      "single quotes": "{'name':'x'}",
      "a comment": '{/* */"name":"x"}',
      "NaN": '{"name":NaN}',
      "a control character": '{"name":"a\nb"}',
      "a byte order mark": '\ufeff{"name":"x"}',
      "no UTF-8": Buffer.from('{"name":"\xff"}', "latin1"),
      "UTF-8 too long": Buffer.from('{"name":"\xc0\x80"}', "latin1"),
      "UTF-16": Buffer.from('{"name":"x"}', "utf16le"),
      "NUL": "\0",
      "too deep": `{"name":${"[".repeat(64)}${"]".repeat(64)}}`,
      "too deep, objects": `${'{"a":'.repeat(65)}1${"}".repeat(65)}`,
      "far too deep": "[".repeat(500_000),
    })) {
      refused(await operator(raw), 400, "MALFORMED_REQUEST", what);
    }
  });

  test("R11 R172: JSON that does not fit is invalid, and answered as such", async () => {
    for (const [what, raw] of Object.entries({
      "a list": "[]",
      "null": "null",
      "a number": "7",
      "a text": '"name"',
      "nothing": "",
      "a number that is too large": '{"name":1e999}',
      "a number that is far too large": `{"name":${"9".repeat(400)}}`,
      "half a character": '{"name":"\\ud800"}',
      "as deep as allowed": `{"name":${"[".repeat(63)}${"]".repeat(63)}}`,
      "a list for a text": '{"name":["x"]}',
      "twice": '{"name":"a","name":"b"}',
    })) {
      refused(await operator(raw), 422, "VALIDATION_ERROR", what);
    }
  });

  test("R172: queries that do not fit are invalid", async () => {
    for (const target of ["/tasks?limit=0", "/tasks?limit=101", "/tasks?limit=-1", "/tasks?limit=1.5", "/tasks?limit=x", "/tasks?limit=", "/tasks?limit=99999999999999999999999", "/tasks?limit=1&limit=2", "/tasks?cursor=zzz", "/tasks?status=nope", "/tasks?role=boss", "/hirings?status=nope", "/agents/discover?limit=101", "/agents/discover?status=asleep", "/agents/discover?min_reputation=x", "/agents/discover?sort_by=luck"]) {
      refused(await server.request("GET", `/api/v1${target}`, { key: agent.key }), 422, "VALIDATION_ERROR", target);
    }
    for (const price of ["-1", "1e3", "x", "0.1234567"]) {
      for (const name of ["min_price", "max_price"]) refused(await server.request("GET", `/api/v1/agents/discover?${name}=${price}`, { key: agent.key }), 422, "INVALID_AMOUNT", `${name}=${price}`);
    }
    for (const id of ["%00", "%ff", "%zz", "..%2f..", "a".repeat(9_000), "did:test:nobody", "'; DROP TABLE agents; --"]) {
      refused(await server.request("GET", `/api/v1/agents/${id}`, { key: agent.key }), 404, "NOT_FOUND", id);
    }
  });

  test("R172: a reputation that is no number is invalid", async () => {
    for (const value of ["nan", "inf", "-inf", "1e999"]) {
      refused(await server.request("GET", `/api/v1/agents/discover?min_reputation=${value}`, { key: agent.key }), 422, "VALIDATION_ERROR", value);
    }
  });

  test("R12 R172: preflights are answered for every endpoint, without a credential", async () => {
    const answer = await server.request("OPTIONS", "/api/v1/tasks", { headers: { origin: "https://app.example", "access-control-request-method": "POST", "access-control-request-headers": "x-api-key, content-type" } });
    assert.equal(answer.status, 204);
    assert.equal(answer.headers.get("access-control-allow-origin"), "*");
    assert.match(answer.headers.get("access-control-allow-methods"), /POST/);
    assert.match(answer.headers.get("access-control-allow-headers"), /x-api-key/);
    assert.match((await server.request("GET", "/live", { headers: { origin: "https://app.example" } })).headers.get("access-control-expose-headers"), /retry-after/);
  });

  test("R169: a connection that is left between two requests is closed", async () => {
    const line = await Line.open(server);
    line.write("GET /live HTTP/1.1\r\nHost: x\r\n\r\n");
    assert.equal((await line.answer()).status, 200);
    await line.ended();
  });
});

describe("secrets and logs", () => {
  const canary = `CANARY${randomBytes(16).toString("hex")}`;

  /** Sends a secret in every place where one could stand; gives the answers that show it. */
  async function showEverywhere(server, secret, { user, client, task }, shown = [secret]) {
    const leaks = [];
    const note = (what, text) => {
      if (shown.some((one) => text.includes(one))) leaks.push(`${what}: ${text.slice(0, 200)}`);
    };
    const escaped = encodeURIComponent(secret);
    const request = async (method, target, options) => note(`${method} ${target.replace(escaped, "…")}`, (await server.request(method, target, options)).text);
    const headers = [
      { "x-api-key": secret },
      { "api-key": secret },
      { authorization: `Bearer ${secret}` },
      { authorization: `Basic ${Buffer.from(`x:${secret}`).toString("base64")}` },
      { authorization: secret },
      { cookie: `token=${secret}` },
      { "x-agent-id": secret, "x-api-key": client.key },
      { "x-idempotency-key": secret, "x-api-key": client.key },
      { "x-request-id": secret },
      { "user-agent": secret },
      { referer: `https://x.example/?api_key=${secret}` },
    ];
    for (const one of headers) {
      for (const [method, target] of [["GET", "/api/v1/tasks"], ["GET", "/api/v1/admin/users"], ["POST", "/api/v1/auth/authenticate"], ["POST", "/mcp"], ["GET", "/mcp/sse/x"], ["GET", "/nothing"], ["PUT", `/api/v1/agents/${client.id}/public_key`], ["POST", `/api/v1/tasks/${task.id}/chunk`]]) {
        await request(method, target, { headers: one, body: method === "GET" ? undefined : { content: "x" } });
      }
    }
    const names = ["api_key", "token", "session_token", "key"];
    for (const name of names) {
      for (const target of ["/api/v1/tasks", "/api/v1/agents/discover", "/nothing", "/mcp", "/ready", "/metrics"]) await request("GET", `${target}?${name}=${escaped}`);
      for (const mount of [AGENT, HIRER, MAIN, "/user_socket", "/socket/nothing/websocket"]) {
        for (const more of [{}, { vsn: "2.0.0" }, { vsn: "9" }, { agent_id: client.id }]) {
          const answer = await handshake(server, mount + query({ [name]: secret, ...more }));
          answer.tcp?.destroy();
          note(`${mount} ${name}`, answer.body + JSON.stringify(answer.headers));
        }
      }
    }
    for (const mount of [AGENT, HIRER, MAIN, "/user_socket"]) {
      for (const more of [{ "sec-websocket-protocol": `phoenix, ${tokenProtocol(secret)}` }, { "sec-websocket-protocol": secret }, { "x-api-key": secret }, { authorization: `Bearer ${secret}` }, { "sec-websocket-key": secret }]) {
        const answer = await handshake(server, mount, { headers: more });
        answer.tcp?.destroy();
        note(`${mount} ${Object.keys(more)}`, answer.body + JSON.stringify(answer.headers));
      }
      note(`${mount} POST`, (await handshake(server, mount + query({ api_key: secret }), { method: "POST" })).body);
      note(`${mount} no upgrade`, (await handshake(server, mount + query({ api_key: secret }), { omit: ["upgrade"], headers: { connection: "close" } })).body);
    }
    for (const target of [`/api/v1/agents/${escaped}`, `/api/v1/tasks/${escaped}`, `/api/v1/agents/${client.id}/credentials/${escaped}`, `/mcp/messages/${escaped}`, `/${escaped}`, `/api/v1/hirings/${escaped}`]) {
      for (const method of ["GET", "DELETE", "POST"]) await request(method, target, { key: client.key, body: method === "POST" ? {} : undefined });
    }
    const claims = [{ agent_id: client.id, api_key: secret }, { agent_id: secret, api_key: client.id }, { agent_id: client.id, api_key: [secret] }, { agent_id: client.id, api_key: { [secret]: 1 } }, { api_key: secret }];
    for (const claim of claims) await request("POST", "/api/v1/agents/assign", { token: user.token, body: { agents: [claim] } });
    await request("POST", "/api/v1/agents/assign", { token: user.token, raw: `{"agents":[{"agent_id":"${client.id}","api_key":"${secret}"}` });
    for (const body of [{ api_key: secret }, { agent: { api_key: secret } }, { token: secret, agent: { name: 1, key: secret } }]) await request("POST", "/api/v1/agents/register", { body });
    await request("POST", "/api/v1/auth/logout", { body: { token: secret } });

    const socket = await open(server, MAIN, { api_key: client.key });
    for (const [topic, event, payload] of [
      ["agents:discovery", "phx_join", { api_key: secret, token: secret }],
      [`agents:${secret}`, "phx_join", {}],
      ["agents:discovery", "discover", { token: secret, filters: 1 }],
      ["agents:discovery", secret, { api_key: secret }],
    ]) {
      // A reply repeats the topic that was asked for; only what the server says beside it counts.
      note(`${event} on a socket`, JSON.stringify(await socket.ask(topic, event, payload, "1")));
    }
    socket.ws.send(`{"api_key":"${secret}"`);
    const { reason } = await socket.ended();
    note("an undecodable message", reason);
    const malformed = await exchange(server, `GET ${AGENT}?api_key=${secret} HTTP/9\r\nX-Api-Key: ${secret}\r\n\r\n`);
    note("no HTTP", JSON.stringify(malformed));
    return leaks;
  }

  test("R10: a secret that nobody has, in every place, is in no answer, log line or metric", async () => {
    const server = await start({ set: ["log.level=debug", "limits.requests_per_credential={tokens=100000,period_ms=1000,burst=100000}"] });
    const people = await cast(server);
    const leaks = [];
    for (const prefix of ["ap_", "op_", "as_", ""]) leaks.push(...(await showEverywhere(server, prefix + canary, people, [canary])));
    const metrics = (await server.request("GET", "/metrics")).text;
    assert.ok(!metrics.includes(canary), "metrics");
    assert.deepEqual(await server.stop(), { code: 0, signal: null });
    assert.ok(!server.logs.includes(canary), server.logs.split("\n").find((line) => line.includes(canary)));
    assert.deepEqual(leaks, []);
  });

  test("R10: a key that stands where something else belongs is not repeated by the refusal", async () => {
    const server = await start();
    const { user, client } = await cast(server);
    const secret = `ap_${canary}`;
    const leaks = [];
    for (const [target, body] of [
      ["/api/v1/agents/assign", { agents: [secret] }],
      ["/api/v1/agents/assign", { agents: secret }],
      ["/api/v1/agents/assign", { agents: [[secret]] }],
      ["/api/v1/agents/assign", secret],
      ["/api/v1/agents", { agent: secret }],
    ]) {
      const { status, text } = await server.request("POST", target, { token: user.token, body });
      assert.equal(status, 422);
      if (text.includes(secret)) leaks.push(`${target} ${JSON.stringify(body)}`);
    }
    const socket = await open(server, MAIN, { api_key: client.key });
    await socket.join("agents:discovery");
    const reply = await socket.ask("agents:discovery", "discover", { filters: secret }, "1");
    if (JSON.stringify(reply).includes(secret)) leaks.push("discover");
    assert.deepEqual(leaks, []);
  });

  test("R10: secrets that do open something are in no log line, metric or later answer either", async () => {
    const operatorToken = `op_${canary}`;
    const server = await start({ set: ["log.level=trace", "limits.requests_per_credential={tokens=100000,period_ms=1000,burst=100000}"], env: { MUSTER_ADMIN_TOKEN: operatorToken } });
    server.adminToken = operatorToken;
    const people = await cast(server);
    const session = (await server.ok("POST", "/api/v1/auth/authenticate", { key: people.client.key })).token;
    const connections = new Connections();
    const emit = await emitters(connections, server, people.provider);
    for (const path of ["rest", "channel", "mcp"]) await emit[path](people.task, { content: path });
    const secrets = [operatorToken, people.user.token, people.client.key, people.provider.key, session];
    const leaks = [];
    for (const secret of secrets) leaks.push(...(await showEverywhere(server, secret, people, secrets)));
    await connections.close();
    const metrics = (await server.request("GET", "/metrics")).text;
    await server.ok("POST", "/api/v1/auth/rotate-key", { key: people.provider.key });
    assert.deepEqual(await server.stop(), { code: 0, signal: null });
    for (const secret of secrets) {
      assert.ok(!metrics.includes(secret));
      assert.ok(!server.logs.includes(secret), server.logs.split("\n").find((line) => line.includes(secret)));
    }
    assert.deepEqual(leaks, []);
  });

  test("R10 R168: every line a node logs is one JSON object, with time, level and message, and none is a panic", async () => {
    const server = await start({ set: ["log.level=debug"] });
    const { client, provider, task } = await cast(server);
    const socket = await open(server, AGENT, { api_key: provider.key });
    await socket.join(`agent:${provider.id}`);
    await socket.ask(`agent:${provider.id}`, "task.stream_chunk", { task_id: task.id, content: "x\n\u2028\"\\" }, "1");
    socket.ws.send("no JSON");
    await socket.ended();
    await server.request("POST", "/api/v1/agents/register", { raw: "\0" });
    await exchange(server, "no HTTP\r\n\r\n");
    await server.request("GET", "/nothing\n", { key: client.key });
    await server.kill();
    await server.startAgain();
    await server.stop();
    const lines = server.logs.trimEnd().split("\n");
    assert.ok(lines.length >= 4, server.logs);
    for (const line of lines) {
      const entry = JSON.parse(line);
      assert.ok(Date.parse(entry.timestamp) > 0, line);
      assert.match(entry.level, /^(TRACE|DEBUG|INFO|WARN|ERROR)$/);
      assert.equal(typeof entry.message, "string");
      assert.notEqual(entry.level, "ERROR", line);
      assert.doesNotMatch(line, /panic/i);
    }
  });

  test("R10: logs for people hold no secret either", async () => {
    const server = await start({ set: ["log.format=text", "log.level=debug"] });
    await handshake(server, AGENT + query({ api_key: `ap_${canary}` }));
    await server.request("GET", `/api/v1/tasks?token=${canary}`, { key: `ap_${canary}` });
    await server.stop();
    assert.match(server.logs, /serving/);
    assert.throws(() => JSON.parse(server.logs.split("\n")[0]));
    assert.ok(!server.logs.includes(canary));
  });

  test("R10: a node that does not start shows no operator's token", async () => {
    const token = `op_${canary}${"x".repeat(300)}`;
    const { code, stdout, stderr } = await muster(["serve", "--listen", `127.0.0.1:${await freePort()}`, "--data-dir", path.join(files.folder, "long")], { env: { MUSTER_ADMIN_TOKEN: token } });
    assert.notEqual(code, 0, "a token that no request could show");
    assert.ok(!(stdout + stderr).includes(canary));
  });
});
