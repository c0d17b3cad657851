// The Phoenix wire, frame by frame, over raw sockets: what no client library would send is sent too.

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { after, afterEach, before, describe, test } from "node:test";
import { cast, leniently, Server, sleep, until } from "./lib/server.mjs";
import { metric } from "./lib/streams.mjs";
import { frame, OP, Tcp, text, upgradeRequest } from "./lib/tcp.mjs";
import { binaryPush, ok, refused, Wire } from "./lib/wire.mjs";

const MANY = "{tokens=100000,period_ms=1000,burst=100000}";
const RELAXED = ["drills.enabled=true", `limits.auth_failures_per_ip=${MANY}`, `limits.joins_per_agent=${MANY}`];
const DISCOVERY = "agents:discovery";

const wires = [];

async function open(url, options) {
  const wire = await Wire.open(url, options);
  wires.push(wire);
  return wire;
}

const closeAll = () => wires.splice(0).forEach((wire) => wire.close());
const socketUrl = (server, mount, key, vsn = "2.0.0") => `${server.ws}${mount}/websocket?api_key=${key}&vsn=${vsn}`;

/** A server for the tests of one `describe`. */
function serve(set = RELAXED) {
  const shared = {};
  before(async () => {
    shared.server = await Server.start({ set });
  });
  afterEach(closeAll);
  after(() => shared.server?.end());
  return shared;
}

/** Asks for an upgrade; gives { status, headers, body }, and hangs up. */
async function handshake(server, path, headers, method) {
  const tcp = await Tcp.connect(server);
  await tcp.write(upgradeRequest(path, headers, method));
  const answer = await tcp.answer();
  tcp.destroy();
  return answer;
}

describe("the handshake", () => {
  const shared = serve();
  let server, agent, user, target;
  before(async () => {
    ({ server } = shared);
    agent = await server.agent();
    user = await server.user();
    target = `/socket/agent/websocket?api_key=${agent.key}`;
  });

  test("R1: every mount upgrades below /websocket, with a trailing slash too, and so does the bare /user_socket", async () => {
    const { token: session } = await server.ok("POST", "/api/v1/auth/authenticate", { key: agent.key });
    const own = `agent_id=${agent.id}&token=${session}`;
    for (const path of [
      target,
      `/socket/agent/websocket/?api_key=${agent.key}`,
      `/socket/hirer/websocket?api_key=${user.token}`,
      `/socket/websocket?api_key=${agent.key}`,
      `/socket/websocket/?session_token=${session}`,
      `/user_socket/websocket?${own}`,
      `/user_socket?${own}`,
    ]) {
      assert.equal((await handshake(server, path)).status, 101, path.split("?")[0]);
    }
  });

  test("phoenix 1.4: what is not mounted is not found", async () => {
    for (const path of ["/socket", "/socket/other/websocket", "/websocket", "/socket/agent", "/socket/websocket/more"]) {
      assert.equal((await handshake(server, `${path}?api_key=${agent.key}`)).status, 404, path);
    }
  });

  test("phoenix 1.4: a good upgrade has the headers of Phoenix, and no extension though one was offered", async () => {
    const key = randomBytes(16).toString("base64");
    const { status, headers } = await handshake(server, target, {
      "sec-websocket-key": key,
      "sec-websocket-extensions": "permessage-deflate; client_max_window_bits",
      connection: "keep-alive, Upgrade",
      upgrade: "WebSocket",
    });
    assert.equal(status, 101);
    const accept = createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
    assert.equal(headers["sec-websocket-accept"], accept);
    assert.equal(headers.upgrade.toLowerCase(), "websocket");
    assert.equal(headers.connection.toLowerCase(), "upgrade");
    assert.equal(headers["cache-control"], "max-age=0, private, must-revalidate");
    assert.equal(headers["sec-websocket-extensions"], undefined);
    assert.equal(headers["sec-websocket-protocol"], undefined);
  });

  test("R8: a refused credential is 403 without a word", async () => {
    for (const path of [
      "/socket/agent/websocket",
      "/socket/agent/websocket?api_key=",
      "/socket/agent/websocket?api_key=ap_nobody",
      `/socket/agent/websocket?api_key=${user.token}`,
      `/socket/hirer/websocket?api_key=${agent.key}`,
      "/socket/websocket?session_token=st_nobody",
      `/user_socket?agent_id=${agent.id}&token=${agent.key}`,
    ]) {
      const { status, body } = await handshake(server, path);
      assert.deepEqual({ status, body }, { status: 403, body: "" }, path.split("=")[0]);
    }
  });

  test("phoenix 1.4: what is no upgrade is 400 and says what is missing", async () => {
    for (const [headers, says] of [
      [{ connection: "close", upgrade: null }, /connection/],
      [{ connection: "close" }, /connection/],
      [{ upgrade: null }, /upgrade/],
      [{ upgrade: "h2c" }, /upgrade/],
      [{ "sec-websocket-version": "8" }, /sec-websocket-version.*13.*8/],
      [{ "sec-websocket-version": null }, /sec-websocket-version/],
      [{ "sec-websocket-key": null }, /sec-websocket-key/],
    ]) {
      const { status, body } = await handshake(server, target, headers);
      assert.equal(status, 400, JSON.stringify(headers));
      assert.match(body, says);
      assert.ok(!body.includes(agent.key));
    }
  });

  test("phoenix 1.4: any method but GET is 400 and empty", async () => {
    for (const method of ["POST", "PUT", "HEAD", "DELETE"]) {
      const { status, body } = await handshake(server, target, {}, method);
      assert.deepEqual({ status, body }, { status: 400, body: "" }, method);
    }
  });

  test("phoenix 1.4: the credential is asked before the upgrade is looked at", async () => {
    const { status, body } = await handshake(server, "/socket/agent/websocket?api_key=wrong", { connection: "close", upgrade: null });
    assert.deepEqual({ status, body }, { status: 403, body: "" });
  });

  test("R2: versions other than 1.0.x and 2.0.x are 403 without a word", async () => {
    for (const vsn of ["3.0.0", "2.1.0", "1.1.0", "2", "2.0", "2.0.0-rc.1", "2.0.0.0", "", "0.0.0", "v2.0.0", "+2.0.0"]) {
      const { status, body } = await handshake(server, `${target}&vsn=${encodeURIComponent(vsn)}`);
      assert.deepEqual({ status, body }, { status: 403, body: "" }, `vsn=${vsn}`);
    }
    const { status } = await handshake(server, `${target}&vsn%5Ba%5D=1`);
    assert.equal(status, 403, "a map");
  });

  test("R2: without vsn and with 1.0.x frames are objects, with 2.0.x arrays", async () => {
    for (const vsn of [undefined, "1.0.0", "1.0.9"]) {
      const wire = await open(`${server.ws}${target}${vsn ? `&vsn=${vsn}` : ""}`);
      wire.send({ topic: "phoenix", event: "heartbeat", payload: {}, ref: "7" });
      const want = { topic: "phoenix", event: "phx_reply", payload: { status: "ok", response: {} }, ref: "7" };
      assert.deepEqual(await wire.next(), want);
    }
    for (const vsn of ["2.0.0", "2.0.12"]) {
      const wire = await open(`${server.ws}${target}&vsn=${vsn}`);
      wire.send([null, "7", "phoenix", "heartbeat", {}]);
      assert.deepEqual(await wire.next(), ok(null, "7", "phoenix"));
    }
  });

  test("phoenix 1.2: parameters are read as the npm client writes them", async () => {
    const written = "tok=a%20b%26c%3Dd%2F%C3%A9&n=1&b=true&&u=undefined&nest%5Bx%5D%5By%5D=1&arr%5B0%5D=p&arr%5B1%5D=q&";
    for (const query of [
      `${written}&api_key=${agent.key}&vsn=2.0.0`,
      `&&api_key=${agent.key}&&vsn=2.0.0&`,
      `api_key=${agent.key}&vsn=2.0.0&&`,
      `bad=%zz&worse=%&api_key=${agent.key}`,
      `flag&=x&api_key=${agent.key}`,
      `open%5B=1&%5Bx%5D=2&arr%5B%5D=1&arr%5B%5D=2&api_key=${agent.key}`,
      `api%5Fkey=${agent.key}`,
    ]) {
      assert.equal((await handshake(server, `/socket/agent/websocket?${query}`)).status, 101, query.replace(agent.key, "KEY"));
    }
  });

  test("phoenix 1.1: of a parameter given twice the last one counts", async () => {
    const status = async (query) => (await handshake(server, `/socket/agent/websocket?${query}`)).status;
    assert.equal(await status(`api_key=${agent.key}&vsn=9.9.9&vsn=2.0.0`), 101);
    assert.equal(await status(`api_key=${agent.key}&vsn=2.0.0&vsn=9.9.9`), 403);
    assert.equal(await status(`api_key=ap_wrong&api_key=${agent.key}`), 101);
    assert.equal(await status(`api_key=${agent.key}&api_key=ap_wrong`), 403);
  });

  test("phoenix 1.2: a nested parameter is a map, and no credential", async () => {
    for (const query of [`api_key%5Bx%5D=${agent.key}`, `api_key[]=${agent.key}`, `api_key=${agent.key}&api_key%5Bx%5D=1`]) {
      assert.equal((await handshake(server, `/socket/agent/websocket?${query}`)).status, 403, query.split(agent.key)[0]);
    }
  });

  test("phoenix 1.2: a query that is not UTF-8 is 400", async () => {
    for (const more of ["x=%ff", "%ff=x", "x=%C3", "x=%ED%A0%80"]) {
      assert.equal((await handshake(server, `${target}&${more}`)).status, 400, more);
    }
  });

  test("R9: a token travels in the sub-protocols, in standard base64 with or without padding", async () => {
    const base64 = Buffer.from(agent.key).toString("base64");
    const token = (encoded) => `base64url.bearer.phx.${encoded}`;
    const bare = base64.replaceAll("=", "");
    const ask = (protocols, path = "/socket/agent/websocket?vsn=2.0.0") => handshake(server, path, { "sec-websocket-protocol": protocols });
    const outcome = async (...args) => {
      const { status, headers, body } = await ask(...args);
      return { status, protocol: headers["sec-websocket-protocol"], body };
    };
    const taken = { status: 101, protocol: "phoenix", body: "" };
    assert.deepEqual(await outcome(`phoenix,${token(bare)}`), taken, "as the client sends it");
    assert.deepEqual(await outcome(`${token(bare)} , phoenix`), taken, "the other way round");
    assert.deepEqual(await outcome(`phoenix, ${token(base64)}`), taken, "with padding");
    assert.deepEqual(await outcome(token(bare)), { status: 101, protocol: undefined, body: "" }, "the token alone");
    assert.deepEqual(await outcome("phoenix", target), taken, "no token");
    assert.deepEqual(await outcome(`mqtt, phoenix, ${token(bare)}`), taken, "one of several");
    const not = { status: 403, protocol: undefined, body: "" };
    assert.deepEqual(await outcome("mqtt", target), not, "no common one");
    assert.deepEqual(await outcome("phoenix"), not, "no credential at all");
    assert.deepEqual(await outcome(`phoenix,${token(bare)},${token(bare)}`), not, "two tokens are none");
    assert.deepEqual(await outcome(`phoenix,${token(bare)},${token(bare)}`, target), taken, "two tokens and a parameter");
    assert.deepEqual(await outcome(`phoenix,${token("_-__")}`, target), not, "the url-safe alphabet");
    assert.deepEqual(await outcome(`phoenix,${token("!!")}`, target), not, "no base64");
    assert.deepEqual(await outcome(`phoenix,${token(Buffer.from("ap_wrong").toString("base64").replaceAll("=", ""))}`), not);
  });

  test("R9: a credential is taken from the headers, and a parameter decides over it", async () => {
    const ask = async (path, headers) => (await handshake(server, path, headers)).status;
    const path = "/socket/agent/websocket?vsn=2.0.0";
    assert.equal(await ask(path, { "x-api-key": agent.key }), 101);
    assert.equal(await ask(path, { authorization: `Bearer ${agent.key}` }), 101);
    assert.equal(await ask(path, { authorization: `bearer ${agent.key}` }), 101, "the scheme has no case");
    assert.equal(await ask(path, { authorization: `Basic ${agent.key}` }), 403);
    assert.equal(await ask(`${path}&api_key=ap_wrong`, { "x-api-key": agent.key }), 403);
  });

  test("R12: without a list any origin connects", async () => {
    for (const origin of ["https://anything.example", "null"]) {
      assert.equal((await handshake(server, target, { origin })).status, 101, origin);
    }
  });

  test("R10: no credential is in the log", () => {
    for (const secret of [agent.key, user.token]) assert.ok(!server.logs.includes(secret));
  });
});

describe("origins", () => {
  const shared = serve([...RELAXED, 'http.origins=["https://example.com", "//another.com:888", "//*.other.com"]']);

  test("phoenix 1.5: with a list an origin must match it", async () => {
    const { server } = shared;
    const agent = await server.agent();
    const target = `/socket/agent/websocket?api_key=${agent.key}`;
    for (const [origin, allowed] of [
      [null, true],
      ["https://example.com", true],
      ["https://example.com:444", true],
      ["http://example.com", false],
      ["https://example.com.evil.org", false],
      ["https://evil-example.com", false],
      ["http://another.com:888", true],
      ["http://another.com", false],
      ["https://other.com", true],
      ["https://deep.sub.other.com:99", true],
      ["https://notother.com", false],
      ["null", false],
    ]) {
      const { status, body } = await handshake(server, target, { origin });
      assert.equal(status, allowed ? 101 : 403, `${origin}`);
      assert.equal(body, "");
    }
  });
});

describe("messages", () => {
  const shared = serve();
  let server, agent, topic;
  before(async () => {
    ({ server } = shared);
    agent = await server.agent();
    topic = `agent:${agent.id}`;
  });
  const connect = (vsn) => open(socketUrl(server, "/socket/agent", agent.key, vsn));

  /** Connected and joined with join_ref "1". */
  const joined = async () => {
    const wire = await connect();
    wire.send(["1", "1", topic, "phx_join", {}]);
    assert.deepEqual(await wire.next(), ok("1", "1", topic));
    return wire;
  };

  // Numbers and escapes as text, so that nothing here rounds or rewrites them.
  const REFS = ['"1"', "1", "0", "-7", "1.5", "12345678901234567890123", "null", '""', '"é / ☃ 😀"', '"a\\"b\\\\c"', '"\\u0000\\n"', "true", '"phoenix"'];

  test("phoenix 10.1: refs come back as they went, whatever their type", async () => {
    const wire = await connect();
    const same = (got, want) => {
      const position = got.indexOf(want, 1);
      return position > 0 || JSON.stringify(JSON.parse(got).slice(0, 2)).includes(JSON.stringify(JSON.parse(want)));
    };
    for (const ref of REFS) {
      wire.send(`[null,${ref},"phoenix","heartbeat",{}]`);
      const beat = await wire.frame();
      assert.deepEqual(beat.message, JSON.parse(`[null,${ref},"phoenix","phx_reply",{"status":"ok","response":{}}]`));
      assert.ok(same(beat.text, ref), `${ref} in ${beat.text}`);

      wire.send(`[${ref},${ref},"room:x","phx_leave",{}]`);
      const left = await wire.frame();
      assert.deepEqual(left.message, JSON.parse(`[${ref},${ref},"room:x","phx_reply",{"status":"ok","response":{}}]`));
      assert.ok(same(left.text, ref), `${ref} in ${left.text}`);

      wire.send(`["9",${ref},"room:x","ping",{}]`);
      const unmatched = await wire.frame();
      assert.deepEqual(unmatched.message.slice(0, 2), [null, JSON.parse(ref)]);
      assert.ok(same(unmatched.text, ref), `${ref} in ${unmatched.text}`);
    }
  });

  test("phoenix 10.1: a join's replies, pushes and end carry its join_ref as it was given", async () => {
    for (const [at, ref] of REFS.filter((ref) => ref !== "null").entries()) {
      const wire = await connect();
      const value = JSON.parse(ref);
      wire.send(`[${ref},"j${at}",${JSON.stringify(topic)},"phx_join",{}]`);
      assert.deepEqual(await wire.next(), ok(value, `j${at}`, topic), ref);
      assert.deepEqual((await wire.nextPresence()).slice(0, 2), [value, null], ref);
      wire.send(`[${ref},5,${JSON.stringify(topic)},"nonsense",{}]`);
      assert.deepEqual(await wire.next(), refused(value, 5, topic, "unknown_event"), ref);
      wire.send(`[${ref},"l",${JSON.stringify(topic)},"phx_leave",{}]`);
      assert.deepEqual(await wire.take(2), [ok(value, "l", topic), [value, value, topic, "phx_close", {}]], ref);
      wire.close();
    }
  });

  test("phoenix 2.1: a join_ref of another type is another join_ref; one written otherwise is the same", async () => {
    const wire = await connect();
    wire.send(`[1,"1","${topic}","phx_join",{}]`);
    assert.deepEqual(await wire.next(), ok(1, "1", topic));
    wire.send(["1", "2", topic, "nonsense", {}]);
    await wire.silence();
    wire.send([1, "3", topic, "nonsense", {}]);
    assert.deepEqual(await wire.next(), refused(1, "3", topic, "unknown_event"));

    const other = await joined();
    other.send(`["\\u0031","2","${topic}","nonsense",{}]`);
    assert.deepEqual(await other.next(), refused("1", "2", topic, "unknown_event"));
  });

  test("phoenix 3: a heartbeat takes any payload and any join_ref, and answers with none", async () => {
    const wire = await joined();
    for (const payload of [{}, { a: [1] }, null, "text", [1, 2], 7, true]) {
      wire.send(["1", "hb", "phoenix", "heartbeat", payload]);
      assert.deepEqual(await wire.next(), ok(null, "hb", "phoenix"), JSON.stringify(payload));
    }
    wire.send(["stale", 7, "phoenix", "heartbeat", {}]);
    assert.deepEqual(await wire.next(), ok(null, 7, "phoenix"));
    wire.send([null, null, "phoenix", "heartbeat", {}]);
    assert.deepEqual(await wire.next(), ok(null, null, "phoenix"));
  });

  test("phoenix 3: only heartbeat on phoenix is one", async () => {
    const wire = await joined();
    wire.send([null, "1", "phoenix", "ping", {}]);
    assert.deepEqual(await wire.next(), refused(null, "1", "phoenix", "unmatched topic"));
    wire.send([null, "2", "phoenix", "phx_join", {}]);
    assert.deepEqual(await wire.next(), refused(null, "2", "phoenix", "unmatched topic"));
    wire.send(["1", "3", topic, "heartbeat", {}]);
    assert.deepEqual(await wire.next(), refused("1", "3", topic, "unknown_event"));
  });

  test("R4: no such topic, or a topic not joined, is unmatched and has no join_ref", async () => {
    const wire = await connect();
    for (const [topicName, event] of [
      ["room:lobby", "phx_join"],
      ["room:lobby", "say"],
      ["agent", "phx_join"],
      ["", "phx_join"],
      [topic, "say"],
      [topic, "phx_reply"],
      [topic, "phx_close"],
      [DISCOVERY, "phx_join"],
      ["t".repeat(300), "phx_join"],
      [null, "phx_join"],
      [null, "phx_leave"],
      [topic, null],
    ]) {
      wire.send(["3", "4", topicName, event, {}]);
      assert.deepEqual(await wire.next(), refused(null, "4", topicName, "unmatched topic"), `${topicName} ${event}`);
    }
  });

  test("R4: an event that the channel does not know is an error, and the channel stays", async () => {
    const wire = await joined();
    for (const event of ["nonsense", "", "phx_reply", "phx_close", "phx_error", "disconnect", "phx_drain", "stream.chunk", "presence_state", "Phx_join"]) {
      wire.send(["1", "2", topic, event, {}]);
      assert.deepEqual(await wire.next(), refused("1", "2", topic, "unknown_event"), event);
    }
    wire.send(["1", "3", topic, "task.stream_chunk", { task_id: "none", content: "x" }]);
    assert.equal((await wire.next())[4].status, "error");
  });

  test("phoenix 2.1: any JSON is a payload, and gets an answer", async () => {
    const wire = await joined();
    for (const payload of ['"str"', "[1,2]", "null", "7", "1e2", "12345678901234567890123", "true", '{"a":1,"a":2}', "{}"]) {
      wire.send(`["1","2","${topic}","task.stream_chunk",${payload}]`);
      const [joinRef, ref, , event, reply] = await wire.next();
      assert.deepEqual([joinRef, ref, event, reply.status], ["1", "2", "phx_reply", "error"], payload);
    }
  });

  test("phoenix 2.1: elements beyond the fifth are not looked at, and space is no matter", async () => {
    const wire = await connect();
    wire.send('[null,"7","phoenix","heartbeat",{},"more",{"and":["more"]}]');
    assert.deepEqual(await wire.next(), ok(null, "7", "phoenix"));
    wire.send(' [ null , "8" ,\t"phoenix","heartbeat",\n{ } ]\r\n');
    assert.deepEqual(await wire.next(), ok(null, "8", "phoenix"));
    wire.send('[null,"9","\\u0070hoenix","heart\\u0062eat",{}]');
    assert.deepEqual(await wire.next(), ok(null, "9", "phoenix"));
  });

  test("R7: a text that is no V2 message ends its own connection with 1011 and a reason, and no other", async () => {
    const bystander = await joined();
    const undecodable = [
      "",
      " ",
      "x",
      "{",
      "[",
      "[]",
      "null",
      "7",
      '"text"',
      "{}",
      '{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"1"}',
      '[null,"1","phoenix","heartbeat"]',
      '[null,"1","phoenix","heartbeat",]',
      '[null,"1","phoenix","heartbeat",{}',
      '[null,"1","phoenix","heartbeat",{}]]',
      '[null,"1","phoenix","heartbeat",{}][]',
      '[null,"1","phoenix","heartbeat",{"a":}]',
      "[null,'1','phoenix','heartbeat',{}]",
      '[null,"1","phoenix","heartbeat",nul]',
      '[null,"1","phoenix","heartbeat",01]',
      '[null,"1","phoenix","heartbeat","\u0001"]',
      '[null,"1","\\ud800","heartbeat",{}]',
      `[null,"1","phoenix","heartbeat",${"[".repeat(100)}${"]".repeat(100)}]`,
      `[null,"1","phoenix","heartbeat",${'{"a":'.repeat(5_000)}1${"}".repeat(5_000)}]`,
      "[".repeat(100_000),
    ];
    for (const message of undecodable) {
      const wire = await joined();
      wire.send(message);
      const { code, reason } = await wire.end();
      assert.equal(code, 1011, message.slice(0, 60));
      assert.notEqual(reason, "", message.slice(0, 60));
      assert.deepEqual(wire.inbox, [], "the close frame alone");
    }
    await bystander.silence();
  });

  test("R11: what nests 64 deep is read, what nests deeper is not", async () => {
    const nested = (depth) => `[null,"1","phoenix","heartbeat",${"[".repeat(depth - 1)}${"]".repeat(depth - 1)}]`;
    const wire = await connect();
    wire.send(nested(64));
    assert.deepEqual(await wire.next(), ok(null, "1", "phoenix"));
    wire.send(nested(65));
    assert.equal((await wire.end()).code, 1011);
  });

  test("R7: nothing that follows an undecodable message is looked at", async () => {
    const wire = await joined();
    wire.sendTogether([[null, "a", "phoenix", "heartbeat", {}], "nonsense", [null, "b", "phoenix", "heartbeat", {}]]);
    assert.deepEqual(await wire.next(), ok(null, "a", "phoenix"));
    assert.equal((await wire.end()).code, 1011);
    assert.deepEqual(wire.inbox, []);
  });
});

describe("joins and leaves", () => {
  const shared = serve();
  let server, user, agent, client, task, topic, stream;
  before(async () => {
    ({ server } = shared);
    ({ user, client, provider: agent, task } = await cast(server));
    topic = `agent:${agent.id}`;
    stream = `task_stream:${task.id}`;
  });
  const connect = (key = agent.key, mount = "/socket/agent", vsn) => open(socketUrl(server, mount, key, vsn));

  test("phoenix 10.2: a second join of a topic: its reply, then the close of the first with the first's join_ref", async () => {
    const wire = await connect();
    wire.send(["5", "5", topic, "phx_join", {}]);
    assert.deepEqual(await wire.next(), ok("5", "5", topic));
    wire.send(["6", "60", topic, "phx_join", {}]);
    assert.deepEqual(await wire.take(2), [ok("6", "60", topic), ["5", "5", topic, "phx_close", {}]]);
    wire.send(["5", "7", topic, "nonsense", {}]);
    wire.send(["5", "8", topic, "phx_leave", {}]);
    await wire.silence();
    wire.send(["6", "9", topic, "nonsense", {}]);
    assert.deepEqual(await wire.next(), refused("6", "9", topic, "unknown_event"));
  });

  test("phoenix 10.2: the same in one segment, many times over", async () => {
    const wire = await connect();
    for (let n = 0; n < 50; n++) {
      wire.sendTogether([
        [`a${n}`, "1", topic, "phx_join", {}],
        [`b${n}`, "2", topic, "phx_join", {}],
        [`c${n}`, "3", topic, "phx_join", {}],
        [`c${n}`, "4", topic, "phx_leave", {}],
      ]);
      const messages = [];
      while (messages.at(-1)?.[3] !== "phx_close" || messages.at(-1)?.[0] !== `c${n}`) messages.push(await wire.next());
      const of = (joinRef) => messages.filter((message) => message[0] === joinRef).map((message) => `${message[1]} ${message[3]}`);
      assert.deepEqual(of(`c${n}`), ["3 phx_reply", "4 phx_reply", `c${n} phx_close`]);
      const replies = messages.filter((message) => message[1] === "3" || message[3] === "phx_close").map((message) => message[0]);
      const closesOfB = messages.findIndex((message) => message[0] === `b${n}` && message[3] === "phx_close");
      assert.ok(closesOfB > messages.findIndex((message) => message[1] === "3"), JSON.stringify(replies));
    }
    await wire.silence();
  });

  test("R3 phoenix 4.3: of joins in one segment each is answered, and closed after the answer of the next", async () => {
    const wire = await connect();
    wire.sendTogether([
      ["5", "5", topic, "phx_join", {}],
      ["6", "6", topic, "phx_join", {}],
    ]);
    assert.deepEqual(await wire.take(3), [ok("5", "5", topic), ok("6", "6", topic), ["5", "5", topic, "phx_close", {}]]);
  });

  test("R3 R36 phoenix 4.3: of joins of a stream in one segment each is answered, and so is a leave behind a join", async () => {
    const wire = await connect();
    const refs = Array.from({ length: 6 }, (_, n) => `s${n}`);
    wire.sendTogether([...refs.map((ref) => [ref, ref, stream, "phx_join", {}]), ["s5", "left", stream, "phx_leave", {}]]);
    const messages = await wire.take(13);
    const answers = messages.filter(([, , , event]) => event === "phx_reply").map(([joinRef, ref, , , { status }]) => [joinRef, ref, status]);
    assert.deepEqual(answers, [...refs.map((ref) => [ref, ref, "ok"]), ["s5", "left", "ok"]]);
    const closed = messages.filter(([, , , event]) => event === "phx_close").map(([joinRef]) => joinRef);
    assert.deepEqual(closed, refs);
    await wire.silence();
  });

  test("phoenix 4.3: joins of one join_ref replace each other just so", async () => {
    const wire = await connect();
    wire.send(["5", "5", topic, "phx_join", {}]);
    assert.deepEqual(await wire.next(), ok("5", "5", topic));
    wire.send(["5", "6", topic, "phx_join", {}]);
    assert.deepEqual(await wire.take(2), [ok("5", "6", topic), ["5", "5", topic, "phx_close", {}]]);
    wire.send(["5", "7", topic, "nonsense", {}]);
    assert.deepEqual(await wire.next(), refused("5", "7", topic, "unknown_event"));
  });

  test("phoenix 4.3: the old join is gone though the new one is refused", async () => {
    const wire = await connect();
    wire.send(["5", "5", stream, "phx_join", {}]);
    assert.equal((await wire.next())[4].status, "ok");
    wire.send(["6", "6", stream, "phx_join", { after_seq: "none" }]);
    const [reply, close] = await wire.take(2);
    assert.deepEqual([reply[0], reply[1], reply[4].status], ["6", "6", "error"]);
    assert.deepEqual(close, ["5", "5", stream, "phx_close", {}]);
    for (const joinRef of ["5", "6", null]) {
      wire.send([joinRef, "7", stream, "nonsense", {}]);
      assert.deepEqual(await wire.next(), refused(null, "7", stream, "unmatched topic"));
    }
  });

  test("phoenix 10.3: a leave is answered, and then closed; afterwards the topic is free", async () => {
    for (const joinRef of ["1", null]) {
      const wire = await connect();
      wire.send(["1", "1", topic, "phx_join", {}]);
      assert.deepEqual(await wire.next(), ok("1", "1", topic));
      wire.send([joinRef, "2", topic, "phx_leave", {}]);
      assert.deepEqual(await wire.take(2), [ok("1", "2", topic), ["1", "1", topic, "phx_close", {}]]);
      wire.send(["1", "3", topic, "nonsense", {}]);
      assert.deepEqual(await wire.next(), refused(null, "3", topic, "unmatched topic"));
      wire.send(["4", "4", topic, "phx_join", {}]);
      assert.deepEqual(await wire.next(), ok("4", "4", topic));
    }
  });

  test("phoenix 10.3: a leave of a topic that is not joined, or does not exist, is ok and echoes both refs", async () => {
    const wire = await connect();
    for (const name of [topic, "room:none", DISCOVERY]) {
      wire.send(["3", "4", name, "phx_leave", {}]);
      assert.deepEqual(await wire.next(), ok("3", "4", name));
      wire.send([null, 4, name, "phx_leave", {}]);
      assert.deepEqual(await wire.next(), ok(null, 4, name));
    }
  });

  test("phoenix 10.3: a stale join_ref gets silence, none at all is accepted", async () => {
    const wire = await connect();
    wire.send(["5", "5", topic, "phx_join", {}]);
    assert.deepEqual(await wire.next(), ok("5", "5", topic));
    for (const stale of ["4", 5, "", "05", true, "5 "]) {
      wire.send([stale, "6", topic, "nonsense", {}]);
      wire.send([stale, "7", topic, "phx_leave", {}]);
    }
    await wire.silence();
    wire.send([null, "13", topic, "nonsense", {}]);
    assert.deepEqual(await wire.next(), refused("5", "13", topic, "unknown_event"), "with the channel's join_ref");
    wire.send([null, null, topic, "nonsense", {}]);
    assert.deepEqual(await wire.next(), refused("5", null, topic, "unknown_event"));
  });

  test("phoenix 4.2: a join without a join_ref answers with none, and later pushes carry its ref", async () => {
    const wire = await connect();
    wire.send([null, "9", topic, "phx_join", {}]);
    assert.deepEqual(await wire.next(), ok(null, "9", topic));
    const [joinRef, ref, , event] = await wire.nextPresence();
    assert.deepEqual([joinRef, ref, event], ["9", null, "presence_state"]);
    wire.send(["9", "10", topic, "nonsense", {}]);
    await wire.silence();
    wire.send([null, "11", topic, "nonsense", {}]);
    const [, replyRef, , , reply] = await wire.next();
    assert.deepEqual([replyRef, reply], ["11", { status: "error", response: { reason: "unknown_event" } }]);
  });

  test("phoenix 10.4: pushes behind a join in one segment are answered after it and in order", async () => {
    for (let round = 0; round < 20; round++) {
      const wire = await connect();
      const pushes = Array.from({ length: 30 }, (_, n) => ["1", `p${n}`, topic, "nonsense", {}]);
      wire.sendTogether([["1", "j", topic, "phx_join", {}], ...pushes, ["1", "l", topic, "phx_leave", {}]]);
      const messages = await wire.take(33);
      const refs = messages.map((message) => message[1]);
      assert.deepEqual(refs, ["j", ...pushes.map((push) => push[1]), "l", "1"]);
      assert.equal(messages.at(-1)[3], "phx_close");
      wire.close();
    }
  });

  test("phoenix 4.2: pushes behind a join that is refused are unmatched, every one of them", async () => {
    const stranger = await server.agent();
    const foreign = `agent:${stranger.id}`;
    for (let round = 0; round < 60; round++) {
      const wire = await connect();
      const pushes = Array.from({ length: 20 }, (_, n) => ["1", `p${n}`, foreign, "nonsense", {}]);
      wire.sendTogether([["1", "j", foreign, "phx_join", {}], ...pushes]);
      const messages = await wire.take(21);
      assert.deepEqual(messages[0], refused("1", "j", foreign, "unauthorized"));
      assert.deepEqual(messages.slice(1), pushes.map((push) => refused(null, push[1], foreign, "unmatched topic")));
      wire.close();
    }
  });

  test("phoenix 10.3: a leave behind a join that is refused is answered, as for any topic that is not joined", async () => {
    const stranger = await server.agent();
    const foreign = `agent:${stranger.id}`;
    const wire = await connect();
    wire.sendTogether([["1", "j", foreign, "phx_join", {}], ["1", "l", foreign, "phx_leave", {}]]);
    assert.deepEqual(await wire.take(2), [refused("1", "j", foreign, "unauthorized"), ok("1", "l", foreign)]);
  });

  test("R35: a join of somebody else's topic, or of none, is refused alike", async () => {
    const stranger = await server.agent();
    const wire = await connect(stranger.key);
    const unknown = "01890000-0000-7000-8000-000000000000";
    for (const name of [topic, `agent:${unknown}`, "agent:", "agent:x", stream, `task_stream:${unknown}`, "task_stream:nonsense"]) {
      wire.send(["1", "1", name, "phx_join", {}]);
      assert.deepEqual(await wire.next(), refused("1", "1", name, "unauthorized"), name);
    }
  });

  test("phoenix 10.5: a channel that crashes says phx_error with its join_ref, and nothing after it", async () => {
    const wire = await connect();
    wire.send(["5", "5", topic, "phx_join", {}]);
    wire.send(["s", "s", stream, "phx_join", {}]);
    await wire.take(2);
    wire.send(["5", "6", topic, "muster.drill.crash", {}]);
    assert.deepEqual(await wire.next(), ["5", "5", topic, "phx_error", { reason: "channel_crash" }]);
    await wire.silence();
    wire.send(["5", "7", topic, "nonsense", {}]);
    assert.deepEqual(await wire.next(), refused(null, "7", topic, "unmatched topic"));
    wire.send(["s", "8", stream, "nonsense", {}]);
    assert.deepEqual(await wire.next(), refused("s", "8", stream, "unknown_event"), "the neighbour lives");
    wire.send(["9", "9", topic, "phx_join", {}]);
    assert.deepEqual(await wire.next(), ok("9", "9", topic), "and it can be joined again");
    await server.task(client, agent);
    const created = await wire.next();
    assert.deepEqual([created[0] ?? null, created[1], created[3]], [created[0] ?? null, null, "task.created"]);
    await wire.silence();
  });

  test("phoenix 10.5: a crashed channel tells the presence of its agent that it is gone", async () => {
    const watcher = await open(socketUrl(server, "/socket", user.token));
    watcher.send(["1", "1", DISCOVERY, "phx_join", {}]);
    await watcher.next();
    await watcher.nextPresence();
    const lone = await server.agent();
    const wire = await connect(lone.key);
    wire.send(["1", "1", `agent:${lone.id}`, "phx_join", {}]);
    const diff = async (side) => {
      for (;;) {
        const [, , , event, payload] = await watcher.nextPresence();
        if (event === "presence_diff" && payload[side][lone.id]) return payload;
      }
    };
    await diff("joins");
    wire.send(["1", "2", `agent:${lone.id}`, "muster.drill.crash", {}]);
    await diff("leaves");
  });

  test("phoenix 10.5: a leave behind a push that crashes is answered", async () => {
    const wire = await connect();
    const task = await server.task(client, agent);
    for (let round = 0; round < 10; round++) {
      const joinRef = `l${round}`;
      wire.send([joinRef, joinRef, topic, "phx_join", {}]);
      for (let message = await wire.next(); message[1] !== joinRef; message = await wire.next());
      wire.sendTogether([
        // The first makes the join wait for the store, so that the others wait behind it.
        [joinRef, "a", topic, "task.stream_chunk", { task_id: round === 0 ? task.id : "01890000-0000-7000-8000-000000000000", content: "x" }],
        [joinRef, "b", topic, "muster.drill.crash", {}],
        [joinRef, "left", topic, "phx_leave", {}],
      ]);
      for (;;) {
        const message = await wire.next();
        if (message[1] !== "left") continue;
        assert.deepEqual([message[3], message[4].status], ["phx_reply", "ok"]);
        break;
      }
    }
  });

  test("phoenix 10.5: a crash with pushes behind it: the error once, and no answer that names the dead join", async () => {
    const wire = await connect();
    for (let round = 0; round < 20; round++) {
      const joinRef = `j${round}`;
      wire.send([joinRef, joinRef, topic, "phx_join", {}]);
      assert.deepEqual(await wire.next(), ok(joinRef, joinRef, topic));
      wire.sendTogether([
        [joinRef, "a", topic, "nonsense", {}],
        [joinRef, "b", topic, "muster.drill.crash", {}],
        [joinRef, "c", topic, "nonsense", {}],
        [joinRef, "d", topic, "nonsense", {}],
      ]);
      const [answered, error] = await wire.take(2);
      assert.deepEqual(answered, refused(joinRef, "a", topic, "unknown_event"));
      assert.deepEqual(error, [joinRef, joinRef, topic, "phx_error", { reason: "channel_crash" }]);
      // What was queued at the dead channel is lost, as at Phoenix; what came later is unmatched.
      wire.send([null, `fence${round}`, "phoenix", "heartbeat", {}]);
      for (let message = await wire.next(); message[1] !== `fence${round}`; message = await wire.next()) {
        assert.deepEqual(message, refused(null, message[1], topic, "unmatched topic"));
      }
    }
  });

  test("phoenix 4.5: a broadcast has neither ref, for the one who made it too", async () => {
    const wire = await connect(agent.key, "/socket");
    wire.send(["5", "5", DISCOVERY, "phx_join", {}]);
    assert.deepEqual(await wire.next(), ok("5", "5", DISCOVERY));
    wire.send(["5", "6", DISCOVERY, "announce", { capabilities: ["code"] }]);
    const update = await wire.find("the broadcast", (message) => message[3] === "agent_updated");
    assert.deepEqual(update, [null, null, DISCOVERY, "agent_updated", { agent_id: agent.id, capabilities: ["code"], metadata: {} }]);
    assert.deepEqual(await wire.next(), ok("5", "6", DISCOVERY));
  });

  test("phoenix 10.4: the reply of a join comes before any event of it, whatever goes on", async () => {
    const speaker = await connect(agent.key, "/socket");
    speaker.send(["1", "1", DISCOVERY, "phx_join", {}]);
    let going = true;
    const chatter = (async () => {
      for (let n = 0; going; n++) {
        speaker.send(["1", `a${n}`, DISCOVERY, "announce", { capabilities: [`c${n}`] }]);
        await speaker.find("a reply", (message) => message[1] === `a${n}`);
      }
    })();
    try {
      for (let round = 0; round < 40; round++) {
        const wire = await connect(user.token, "/socket");
        wire.send(["1", "1", DISCOVERY, "phx_join", {}]);
        assert.deepEqual(await wire.next(), ok("1", "1", DISCOVERY));
        assert.equal((await wire.nextPresence())[3], "presence_state");
        await wire.find("something of the topic", (message) => message[3] === "agent_updated");
        wire.close();
      }
    } finally {
      going = false;
      await chatter;
    }
  });

  test("phoenix 4.1: a hundred topics on one socket and not one more; a join again and a place that was left are taken", async () => {
    const wire = await connect();
    const tasks = [];
    while (tasks.length < 101) {
      tasks.push(...(await Promise.all(Array.from({ length: Math.min(20, 101 - tasks.length) }, () => server.task(client, agent)))));
    }
    const names = tasks.map((each) => `task_stream:${each.id}`);
    for (const [n, name] of names.slice(0, 100).entries()) wire.send([`${n}`, `${n}`, name, "phx_join", {}]);
    const replies = await wire.take(100);
    assert.equal(replies.filter((reply) => reply[4].status === "ok").length, 100);
    const last = names[100];
    wire.send(["x", "x", last, "phx_join", {}]);
    assert.deepEqual(await wire.next(), refused("x", "x", last, "too many channels joined"));
    wire.send(["y", "y", names[0], "phx_join", {}]);
    const [again, close] = await wire.take(2);
    assert.deepEqual([again[0], again[4].status, close[0], close[3]], ["y", "ok", "0", "phx_close"]);
    wire.send(["1", "z", names[1], "phx_leave", {}]);
    await wire.take(2);
    wire.send(["x", "x2", last, "phx_join", {}]);
    assert.equal((await wire.next())[4].status, "ok");
    for (const [n, name] of [...names.slice(2, 100).entries()]) wire.send([`${n + 2}`, `q${n}`, name, "nonsense", {}]);
    const answers = await wire.take(98);
    assert.deepEqual(new Set(answers.map((answer) => answer[4].response.reason)), new Set(["unknown_event"]));
  });
});

describe("V1", () => {
  const shared = serve();
  let server, agent, client, topic, task;
  before(async () => {
    ({ server } = shared);
    ({ provider: agent, client, task } = await cast(server));
    topic = `agent:${agent.id}`;
  });
  const connect = (mount = "/socket/agent", key = agent.key) => open(`${server.ws}${mount}/websocket?api_key=${key}`);
  const say = (event, ref, more = {}) => ({ topic, event, payload: {}, ref, ...more });
  const reply = (ref, status, response = {}) => ({ topic, event: "phx_reply", payload: { status, response }, ref });

  test("phoenix 10.7: frames have four fields, and never a join_ref", async () => {
    const wire = await connect();
    wire.send(say("phx_join", "1"));
    assert.deepEqual(await wire.next(), reply("1", "ok"));
    const state = await wire.nextPresence();
    assert.deepEqual(Object.keys(state).sort(), ["event", "payload", "ref", "topic"]);
    assert.equal(state.ref, null);
    wire.send(say("nonsense", "2"));
    assert.deepEqual(await wire.next(), reply("2", "error", { reason: "unknown_event" }));
    wire.send(say("phx_leave", "3"));
    assert.deepEqual(await wire.take(2), [reply("3", "ok"), { topic, event: "phx_close", payload: {}, ref: null }]);
    wire.send(say("nonsense", "4"));
    assert.deepEqual(await wire.next(), reply("4", "error", { reason: "unmatched topic" }));
  });

  test("phoenix 2.2: refs come back as they went", async () => {
    const wire = await connect();
    for (const ref of ['"1"', "1", "null", '"é\\"\\\\"', "12345678901234567890123", "1.0"]) {
      wire.send(`{"topic":"phoenix","event":"heartbeat","payload":{},"ref":${ref}}`);
      const got = await wire.frame();
      assert.deepEqual(got.message, { topic: "phoenix", event: "phx_reply", payload: { status: "ok", response: {} }, ref: JSON.parse(ref) });
      if (!ref.startsWith('"')) assert.ok(got.text.includes(`"ref":${ref}`), got.text);
    }
  });

  test("phoenix 2.2: a join_ref is read, and a stale one is met with silence", async () => {
    const wire = await connect();
    wire.send(say("phx_join", "1", { join_ref: "1" }));
    assert.deepEqual(await wire.next(), reply("1", "ok"));
    wire.send(say("nonsense", "2", { join_ref: "0" }));
    wire.send(say("phx_leave", "3", { join_ref: "0" }));
    await wire.silence();
    wire.send(say("nonsense", "4", { join_ref: "1" }));
    assert.deepEqual(await wire.next(), reply("4", "error", { reason: "unknown_event" }));
    wire.send(say("nonsense", "5", { join_ref: null, other: 7 }));
    assert.deepEqual(await wire.next(), reply("5", "error", { reason: "unknown_event" }));
  });

  test("phoenix 2.2: a crash carries the join_ref as its ref, null if there was none", async () => {
    for (const joinRef of [undefined, "3"]) {
      const wire = await connect();
      wire.send(say("phx_join", "1", { join_ref: joinRef }));
      assert.deepEqual(await wire.next(), reply("1", "ok"));
      wire.send(say("muster.drill.crash", "2", { join_ref: joinRef }));
      assert.deepEqual(await wire.next(), { topic, event: "phx_error", payload: { reason: "channel_crash" }, ref: joinRef ?? null });
    }
  });

  test("R5: a second join replaces the first without a close, which would hit the new one", async () => {
    const wire = await connect();
    wire.send(say("phx_join", "1"));
    wire.send(say("phx_join", "2"));
    const first = await wire.next();
    if (first.ref === "1") assert.deepEqual(await wire.next(), reply("2", "ok"));
    else assert.deepEqual(first, reply("2", "ok"));
    await wire.silence();
    wire.send(say("nonsense", "3"));
    assert.deepEqual(await wire.next(), reply("3", "error", { reason: "unknown_event" }));
  });

  test("phoenix 2.2: broadcasts and pushes have a null ref", async () => {
    const wire = await connect();
    wire.send(say("phx_join", "1"));
    assert.deepEqual(await wire.next(), reply("1", "ok"));
    const created = await server.task(client, agent);
    const event = await wire.next();
    assert.deepEqual([event.topic, event.event, event.ref, event.payload.task.id], [topic, "task.created", null, created.id]);
    assert.ok(!("join_ref" in event));
  });

  test("R7: what is no V1 message ends the connection with 1011 and a reason", async () => {
    const whole = { topic: "phoenix", event: "heartbeat", payload: {}, ref: "1" };
    const without = (name) => Object.fromEntries(Object.entries(whole).filter(([key]) => key !== name));
    for (const message of [
      ...Object.keys(whole).map((name) => JSON.stringify(without(name))),
      "null",
      "{}",
      "{",
      `${JSON.stringify(whole)},`,
      Buffer.from(JSON.stringify(whole)),
      binaryPush("1", "2", topic, "nonsense"),
    ]) {
      const wire = await connect();
      wire.send(message);
      const { code, reason } = await wire.end();
      assert.equal(code, 1011, String(message));
      assert.notEqual(reason, "", String(message));
    }
  });

  test("phoenix 2.2: an array is no V1 message, whatever is in it", async () => {
    for (const message of ['[null,"1","phoenix","heartbeat",{}]', '["phoenix","heartbeat",{},"9","1"]', `["${topic}","phx_join",{},"1",null]`]) {
      const wire = await connect();
      wire.send(message);
      const { code } = await wire.end();
      assert.equal(code, 1011, message);
    }
  });

  test("R38: a stream reads the same on V1", async () => {
    await server.emit(task, agent, "one");
    const wire = await connect();
    const stream = `task_stream:${task.id}`;
    wire.send({ topic: stream, event: "phx_join", payload: { after_seq: 0 }, ref: "1" });
    const joined = await wire.next();
    assert.deepEqual([joined.ref, joined.payload.status, joined.payload.response.seq], ["1", "ok", 1]);
    const chunk = await wire.next();
    assert.deepEqual([chunk.event, chunk.ref, chunk.payload.seq, chunk.payload.content], ["stream.chunk", null, 1, "one"]);
  });
});

describe("V2 binary", () => {
  const shared = serve();
  let server, agent, client, topic, task;
  before(async () => {
    ({ server } = shared);
    ({ provider: agent, client, task } = await cast(server));
    topic = `agent:${agent.id}`;
  });
  const connect = () => open(socketUrl(server, "/socket/agent", agent.key));
  const empty = Buffer.alloc(0);

  test("phoenix 10.6: a binary push is decoded and gets its answer as text, refs as strings", async () => {
    const wire = await connect();
    wire.send(["12", "12", topic, "phx_join", {}]);
    assert.deepEqual(await wire.next(), ok("12", "12", topic));
    wire.send(binaryPush("12", "123", topic, "bin", [0x65, 0x66, 0x67]));
    const got = await wire.frame();
    assert.equal(got.isBinary, false);
    assert.deepEqual(got.message, refused("12", "123", topic, "unknown_event"));
    wire.send(binaryPush("12", "124", topic, "task.stream_chunk", [0, 255, 254]));
    const [joinRef, ref, , , answer] = await wire.next();
    assert.deepEqual([joinRef, ref, answer.status], ["12", "124", "error"]);
  });

  test("phoenix 2.3: heartbeat, join and leave work in binary too", async () => {
    const wire = await connect();
    wire.send(binaryPush("", "hb", "phoenix", "heartbeat"));
    assert.deepEqual(await wire.next(), ok(null, "hb", "phoenix"));
    wire.send(binaryPush("1", "1", topic, "phx_join"));
    assert.deepEqual(await wire.next(), ok("1", "1", topic));
    wire.send(["1", "2", topic, "nonsense", {}]);
    assert.deepEqual(await wire.next(), refused("1", "2", topic, "unknown_event"), "text and binary mix");
    wire.send(binaryPush("1", "3", topic, "phx_leave"));
    assert.deepEqual(await wire.take(2), [ok("1", "3", topic), ["1", "1", topic, "phx_close", {}]]);
    wire.send(binaryPush("1", "4", topic, "x", "data"));
    assert.deepEqual(await wire.next(), refused(null, "4", topic, "unmatched topic"));
    wire.send(binaryPush("1", "5", topic, "phx_leave"));
    assert.deepEqual(await wire.next(), ok("1", "5", topic));
  });

  test("phoenix 2.3: a stream is joined in binary as without a payload", async () => {
    const wire = await connect();
    const stream = `task_stream:${task.id}`;
    wire.send(binaryPush("1", "1", stream, "phx_join"));
    const [, , , , { status, response }] = await wire.next();
    assert.equal(status, "ok", JSON.stringify(response));
  });

  test("phoenix 2.3: an empty join_ref is the empty string, and stale on a joined topic", async () => {
    const wire = await connect();
    wire.send(["1", "1", topic, "phx_join", {}]);
    assert.deepEqual(await wire.next(), ok("1", "1", topic));
    wire.send(binaryPush("", "2", topic, "bin"));
    await wire.silence();
    wire.send(binaryPush("", "3", "room:x", "bin"));
    assert.deepEqual(await wire.next(), refused(null, "3", "room:x", "unmatched topic"));
  });

  test("phoenix 2.3: names of 255 bytes and names beyond ASCII are read", async () => {
    const wire = await connect();
    const long = "é".repeat(127) + "x";
    wire.send(binaryPush("ü".repeat(127), "日本".repeat(20), long, long, "data"));
    assert.deepEqual(await wire.next(), refused(null, "日本".repeat(20), long, "unmatched topic"));
    wire.send(binaryPush("", '"\\\u0000\n', "room:x", "bin"));
    assert.deepEqual(await wire.next(), refused(null, '"\\\u0000\n', "room:x", "unmatched topic"));
  });

  test("R7: kinds other than 0, frames cut short and names that are not UTF-8 end the connection with 1011", async () => {
    const push = binaryPush("12", "123", topic, "bin", "efg");
    const named = push.length - 3;
    const bad = [empty, ...Array.from({ length: named }, (_, end) => push.subarray(0, end)).filter((_, n) => n < 6 || n % 9 === 0)];
    for (const kind of [1, 2, 3, 7, 91, 255]) bad.push(binaryPush("12", "123", topic, "bin", "efg", kind));
    bad.push(Buffer.from([0, 0, 0, 1, 1, 0xff, 0x61]), Buffer.from([0, 1, 0, 1, 1, 0xc3, 0x61, 0x61]));
    bad.push(Buffer.from([0, 255, 255, 255, 255]), Buffer.from('[null,"7","phoenix","heartbeat",{}]'));
    for (const message of bad) {
      const wire = await connect();
      wire.send(message);
      const { code, reason } = await wire.end();
      assert.equal(code, 1011, message.toString("hex"));
      assert.notEqual(reason, "", message.toString("hex"));
    }
  });
});

describe("numbers and text", () => {
  const shared = serve();
  const METADATA = '{"big":12345678901234567890123,"neg":-98765432109876543210,"one":1.0,"exp":1.5e300,"tiny":5e-324,"deep":{"a":[1.10,{"b":2.50}]},"text":"é / ☃ 😀"}';

  test("phoenix 2.1: numbers keep all their digits on their way through, by every path", async () => {
    const { server } = shared;
    const { user, provider, task } = await cast(server);
    const emitter = await open(socketUrl(server, "/socket/agent", provider.key));
    emitter.send(["1", "1", `agent:${provider.id}`, "phx_join", {}]);
    await emitter.next();
    const readers = [];
    for (const vsn of ["2.0.0", "1.0.0"]) {
      const reader = await open(socketUrl(server, "/socket/hirer", user.token, vsn));
      const stream = `task_stream:${task.id}`;
      reader.send(vsn === "2.0.0" ? ["1", "1", stream, "phx_join", {}] : { topic: stream, event: "phx_join", payload: {}, ref: "1" });
      await reader.next();
      readers.push(reader);
    }
    emitter.send(`["1","2","agent:${provider.id}","task.stream_chunk",{"task_id":"${task.id}","content":"x","metadata":${METADATA}}]`);
    assert.deepEqual((await emitter.next())[4], { status: "ok", response: { seq: 1 } });
    await server.ok("POST", `/api/v1/tasks/${task.id}/chunk`, { key: provider.key, raw: `{"content":"y","metadata":${METADATA}}` });
    const digits = (text, where) => {
      for (const number of ["12345678901234567890123", "-98765432109876543210", "1.10", "2.50"]) {
        const value = number.replace(/0$/, "");
        assert.ok(text.includes(value), `${number} in ${where}: ${text}`);
      }
      assert.match(text, /"one":1\.0[,}]/, where);
      assert.ok(text.includes("é / ☃ 😀"), `text unescaped in ${where}`);
    };
    for (const reader of readers) {
      for (let n = 0; n < 2; n++) digits((await reader.frame()).text, `frame ${n}`);
    }
    digits((await server.request("GET", `/api/v1/tasks/${task.id}/stream`, { key: provider.key })).text, "REST");
    await server.ok("PUT", `/api/v1/tasks/${task.id}/complete`, { key: provider.key, raw: `{"output":${METADATA}}` });
    for (const reader of readers) digits((await reader.frame()).text, "stream.done");
    digits((await server.request("GET", `/api/v1/tasks/${task.id}`, { key: provider.key })).text, "the task");
  });

  test("phoenix 2.1: control characters and quotes of a content come out as they went in", async () => {
    const { server } = shared;
    const { user, provider, task } = await cast(server);
    const content = 'a\u0000b\u001f"\\\n\r\t\u007f\u2028é😀';
    const reader = await open(socketUrl(server, "/socket/hirer", user.token));
    reader.send(["1", "1", `task_stream:${task.id}`, "phx_join", {}]);
    await reader.next();
    await server.emit(task, provider, content);
    assert.equal((await reader.next())[4].content, content);
  });

  test("R47: lone surrogates are replaced, and the socket lives", async () => {
    const { server } = shared;
    const { provider, task } = await cast(server);
    const wire = await open(socketUrl(server, "/socket/agent", provider.key));
    wire.send(["1", "1", `agent:${provider.id}`, "phx_join", {}]);
    wire.send(["s", "s", `task_stream:${task.id}`, "phx_join", {}]);
    await wire.take(2);
    wire.send(`["1","2","agent:${provider.id}","task.stream_chunk",{"task_id":"${task.id}","content":"a\\ud800b"}]`);
    const chunk = await wire.find("the chunk", (message) => message[3] === "stream.chunk");
    assert.equal(chunk[4].content, "a\ufffdb");
    assert.equal((await wire.next())[4].status, "ok");
  });

  test("R47: no reader is sent a lone surrogate, which strict JSON parsers refuse, whichever field it came in", async () => {
    const { server } = shared;
    const { user, provider, task } = await cast(server);
    const emitter = await open(socketUrl(server, "/socket/agent", provider.key));
    emitter.send(["1", "1", `agent:${provider.id}`, "phx_join", {}]);
    await emitter.next();
    const reader = await open(socketUrl(server, "/socket/hirer", user.token));
    reader.send(["1", "1", `task_stream:${task.id}`, "phx_join", {}]);
    await reader.next();
    let accepted = 0;
    emitter.send(`["1","2","agent:${provider.id}","task.stream_chunk",{"task_id":"${task.id}","content":"x","metadata":{"m":"\\udc00"}}]`);
    if ((await emitter.next())[4].status === "ok") accepted++;
    const chunk = { key: provider.key, raw: '{"content":"x","metadata":{"m":"\\ud800"}}' };
    if ((await server.request("POST", `/api/v1/tasks/${task.id}/chunk`, chunk)).status === 202) accepted++;
    for (let n = 0; n < accepted; n++) {
      const { text } = await reader.frame();
      assert.doesNotMatch(text, /\\u[dD][89a-fA-F]/, text);
    }
  });

  // Each is JSON by its grammar, and none fits what most parsers make of it.
  const STRANGE = ['"\\ud800"', '{"\\udfff":1}', "1e400", '{"a":[-1e999]}', `1${"0".repeat(400)}`];

  test("R79 R141: strange JSON in a task or a hiring is taken or refused, and those who wait for its end hear of it", async () => {
    const { server } = shared;
    const { user, client, provider } = await cast(server);
    const hirer = await open(socketUrl(server, "/socket/hirer", user.token));
    for (const strange of STRANGE) {
      const answer = (method, path, options) =>
        server.request(method, path, options).catch((error) => assert.fail(`${method} ${path} with ${strange.slice(0, 20)}: ${error.cause ?? error}`));
      const task = await server.task(client, provider);
      const stream = `task_stream:${task.id}`;
      hirer.send(["1", "1", stream, "phx_join", {}]);
      assert.equal((await hirer.find("the join", (message) => message[2] === stream))[4].status, "ok");
      const created = await answer("POST", "/api/v1/tasks", { key: client.key, raw: `{"provider_agent_id":"${provider.id}","capability":"code","input":${strange}}` });
      assert.ok([201, 400, 422].includes(created.status), `input: ${created.status}`);
      const hired = await answer("POST", `/api/v1/agents/${provider.id}/hire`, { token: user.token, agent: client.id, raw: `{"capability":"code","queue":true,"input":${strange}}` });
      assert.ok([201, 400, 422].includes(hired.status), `hire: ${hired.status}`);
      const done = await answer("PUT", `/api/v1/tasks/${task.id}/complete`, { key: provider.key, raw: `{"output":${strange}}` });
      assert.ok([200, 400, 422].includes(done.status), `output: ${done.status}`);
      if (done.status === 200) {
        assert.equal((await hirer.find("the end", (message) => message[2] === stream))[3], "stream.done");
      } else {
        const { status } = await server.ok("GET", `/api/v1/tasks/${task.id}`, { key: client.key });
        assert.equal(status, "pending", "what is refused changes nothing");
      }
    }
  });

  test("R79: a task that holds strange JSON can still be withdrawn", async () => {
    const { server } = shared;
    const { client, provider } = await cast(server);
    for (const strange of STRANGE) {
      const body = { key: client.key, raw: `{"provider_agent_id":"${provider.id}","capability":"code","input":${strange}}` };
      await server.request("POST", "/api/v1/tasks", body).catch(() => null);
    }
    for (const task of await server.ok("GET", "/api/v1/tasks?status=pending", { key: client.key })) {
      const answer = await server.request("POST", `/api/v1/tasks/${task.id}/cancel`, { key: client.key, body: {} }).catch((error) => error.cause);
      assert.equal(answer.status, 200, String(answer));
    }
  });

  test("R7: no input of this kind is a fault of the server", () => {
    const faults = shared.server.logs.split("\n").filter((line) => /panic/.test(line));
    assert.deepEqual(faults, []);
  });
});

describe("ends", () => {
  const shared = serve();
  let server, agent;
  before(async () => {
    ({ server } = shared);
    agent = await server.agent();
  });
  const connect = () => open(socketUrl(server, "/socket/agent", agent.key));

  test("phoenix 4.7: the client's close is answered with its own code, or with none", async () => {
    for (const code of [1000, 1001, 3000, 4999, undefined]) {
      const wire = await connect();
      wire.socket.close(code);
      const end = await wire.end();
      assert.equal(end.code, code ?? 1005);
    }
  });

  test("phoenix 7: a ping is answered with its own bytes, also while nothing is joined", async () => {
    const wire = await connect();
    const payloads = ["", "abc", randomBytes(125)];
    for (const payload of payloads) wire.socket.ping(payload);
    await until("three pongs", () => wire.pongs.length === 3);
    assert.deepEqual(wire.pongs.map(String), payloads.map(String));
    wire.socket.pong("unasked");
    await wire.silence();
  });

  test("R18: a revoked key closes its sockets with 1001 within 2 s, and nothing else goes before", async () => {
    const other = await server.agent();
    const wire = await open(socketUrl(server, "/socket/agent", other.key));
    wire.send(["1", "1", `agent:${other.id}`, "phx_join", {}]);
    await wire.next();
    const bystander = await connect();
    await server.ok("POST", "/api/v1/auth/rotate-key", { key: other.key, body: {} });
    assert.equal((await wire.end(leniently(2_000))).code, 1001);
    assert.deepEqual(wire.inbox, []);
    await bystander.silence();
  });

  test("phoenix 10.15: a drain closes with 1012, with channels and without, and sends nothing before", async () => {
    const own = await Server.start({ set: RELAXED });
    try {
      const guest = await own.agent();
      const idle = await open(socketUrl(own, "/socket/agent", guest.key));
      const joined = await open(socketUrl(own, "/socket/agent", guest.key));
      const old = await open(socketUrl(own, "/socket/agent", guest.key, "1.0.0"));
      joined.send(["1", "1", `agent:${guest.id}`, "phx_join", {}]);
      await joined.next();
      const ended = own.stop();
      for (const wire of [idle, joined, old]) {
        assert.equal((await wire.end()).code, 1012);
        assert.deepEqual(wire.inbox, []);
      }
      assert.deepEqual(await ended, { code: 0, signal: null });
    } finally {
      await own.end();
    }
  });
});

describe("silence", () => {
  const IDLE_MS = 3_000;
  const shared = serve([...RELAXED, `limits.socket_idle_timeout_ms=${IDLE_MS}`]);
  let server, agent;
  before(async () => {
    ({ server } = shared);
    agent = await server.agent();
  });
  const path = () => `/socket/agent/websocket?api_key=${agent.key}&vsn=2.0.0`;

  /** How long it took until the server closed, and with what. */
  async function timed(opening, closing = (tcp) => tcp.close()) {
    const from = performance.now();
    const { code } = await closing(await opening);
    return { code, ms: performance.now() - from };
  }

  /** Does something often, for longer than a silent socket lives; fails when the connection ends. */
  async function keepsAlive(tcp, act) {
    const end = performance.now() + 3 * IDLE_MS;
    for (let n = 0; performance.now() < end; n++) {
      assert.ok(!tcp.isEnded, `alive after ${n} times`);
      await act(n);
      await new Promise((resolve) => setTimeout(resolve, IDLE_MS / 5));
    }
    assert.ok(!tcp.isEnded);
  }

  // Side by side, as each has to wait for real time to pass.
  test("R6 phoenix 10.10: what keeps a socket open is bytes that come, and nothing else", { concurrency: true }, async (t) => {
    await Promise.all([
      t.test("R6: a silent socket is closed with 1002, not before its time and soon after", async () => {
        const opening = Tcp.upgraded(server, path());
        const { code, ms } = await timed(opening);
        assert.equal(code, 1002);
        assert.ok(ms >= IDLE_MS - 50 && ms < IDLE_MS + leniently(2_500), `${ms} ms`);
        await (await opening).gone();
      }),
      t.test("phoenix 10.10: what the server sends does not count", async () => {
        const { user, provider, task } = await cast(server);
        const tcp = await Tcp.upgraded(server, `/socket/hirer/websocket?api_key=${user.token}&vsn=2.0.0`);
        tcp.write(text(["1", "1", `task_stream:${task.id}`, "phx_join", {}]));
        await tcp.message();
        let open = true;
        const closing = timed(tcp).finally(() => (open = false));
        while (open) {
          await server.emit(task, provider, "still here");
          await new Promise((resolve) => setTimeout(resolve, 50));
        }
        const { code, ms } = await closing;
        assert.equal(code, 1002);
        assert.ok(ms < IDLE_MS + leniently(2_500), `${ms} ms`);
      }),
      t.test("R6: heartbeats keep it open", async () => {
        const tcp = await Tcp.upgraded(server, path());
        await keepsAlive(tcp, (n) => tcp.write(text([null, `${n}`, "phoenix", "heartbeat", {}])));
        tcp.destroy();
      }),
      t.test("phoenix 10.10: pings keep it open", async () => {
        const tcp = await Tcp.upgraded(server, path());
        await keepsAlive(tcp, () => tcp.write(frame(OP.ping)));
        tcp.destroy();
      }),
      t.test("phoenix 10.10: pongs keep it open", async () => {
        const tcp = await Tcp.upgraded(server, path());
        await keepsAlive(tcp, () => tcp.write(frame(OP.pong)));
        tcp.destroy();
      }),
      t.test("phoenix 10.10: the bytes of a frame that is not whole yet keep it open", async () => {
        const tcp = await Tcp.upgraded(server, path());
        const slow = text([null, "slow", "phoenix", "heartbeat", { padding: "x".repeat(200) }]);
        await keepsAlive(tcp, (n) => tcp.write(slow.subarray(n, n + 1)));
        tcp.destroy();
      }),
    ]);
  });
});

describe("too much", () => {
  afterEach(closeAll);

  test("R169: over the rate of messages each push is refused with the time to wait, and the socket lives", async () => {
    const server = await Server.start({ set: ["limits.messages_per_socket={tokens=20,period_ms=20000,burst=20}"] });
    try {
      const agent = await server.agent();
      const topic = `agent:${agent.id}`;
      const wire = await open(socketUrl(server, "/socket/agent", agent.key));
      const begun = Date.now();
      wire.send(["1", "1", topic, "phx_join", {}]);
      await wire.next();
      wire.sendTogether(Array.from({ length: 60 }, (_, n) => ["1", `p${n}`, topic, "nonsense", {}]));
      const replies = await wire.take(60);
      assert.equal(new Set(replies.map((reply) => reply[1])).size, 60, "each has its answer");
      const limited = replies.filter((reply) => reply[4].response.reason === "rate_limited");
      // The join took one of 20, and one more becomes free every second.
      const least = 41 - (Date.now() - begun) / 1_000;
      assert.ok(limited.length >= least && limited.length <= 41, `${limited.length} limited, of ${least} at least`);
      for (const reply of limited) {
        const { retry_after_ms: wait } = reply[4].response;
        assert.ok(Number.isInteger(wait) && wait > 0 && wait <= 3_000, `${wait}`);
      }
      await wire.silence();
      const neighbour = await open(socketUrl(server, "/socket/agent", agent.key));
      neighbour.send(["1", "1", topic, "phx_join", {}]);
      neighbour.send(["1", "2", topic, "nonsense", {}]);
      assert.deepEqual((await neighbour.take(2))[1], refused("1", "2", topic, "unknown_event"), "each socket has its own");
      await until("the bucket fills again", async () => {
        wire.send(["1", "again", topic, "nonsense", {}]);
        return (await wire.next())[4].response.reason === "unknown_event";
      });
    } finally {
      await server.end();
    }
  });

  const SMALL_QUEUE = ["limits.outbound_queue_bytes_max=65536", `limits.messages_per_socket=${MANY}`];
  const gauge = async (server, name) => Number(new RegExp(`^${name}\\S* (\\d+)`, "m").exec((await server.request("GET", "/metrics")).text)?.[1] ?? 0);

  /** Whether a counter is the same at five looks within a second. */
  async function standsStill(read) {
    const first = await read();
    for (let look = 0; look < 5; look++) {
      await sleep(200);
      if ((await read()) !== first) return false;
    }
    return true;
  }

  /** Sends so much for which answers are due, without reading one, that the server has to stop somewhere. */
  async function clog(server, tcp, message) {
    tcp.socket.pause();
    const taken = () => metric(server, "muster_messages_received_total");
    const burst = Buffer.concat(Array.from({ length: 500 }, (_, n) => text(message(n))));
    let sent = 0;
    for (let stuck = false; !stuck; ) {
      assert.ok(sent < 400 * 500, "it reads and reads");
      let isSent = false;
      const sending = tcp.write(burst).then(() => (isSent = true));
      sent += 500;
      await Promise.race([sending, sleep(400)]);
      // A server that is only slow goes on taking messages meanwhile.
      await until("the burst is sent, or the server stops", async () => isSent || (stuck = await standsStill(taken)));
      stuck &&= !isSent;
    }
    return sent;
  }

  test("R45: a peer that asks and does not read is not read either, and misses nothing once it reads", async () => {
    const server = await Server.start({ set: SMALL_QUEUE });
    try {
      const agent = await server.agent();
      const bystander = await open(socketUrl(server, "/socket/agent", agent.key));
      const tcp = await Tcp.upgraded(server, `/socket/agent/websocket?api_key=${agent.key}&vsn=2.0.0`);
      const padding = "r".repeat(200);
      const sent = await clog(server, tcp, (n) => [null, padding, "phoenix", "heartbeat", { n }]);
      await bystander.silence();
      tcp.socket.resume();
      for (let n = 0; n < sent; n++) assert.deepEqual(await tcp.message(), ok(null, padding, "phoenix"));
      tcp.destroy();
      await bystander.silence();
    } finally {
      await server.end();
    }
  });

  const residentMiB = (server) => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${server.process.pid}/status`, "utf8"))[1]) / 1024;

  test("R169: a flood of joins costs its sender time, not the node memory", async () => {
    const server = await Server.start({ set: [`limits.messages_per_socket=${MANY}`] });
    try {
      const agent = await server.agent();
      const unknown = "task_stream:01890000-0000-7000-8000-000000000000";
      for (const messages of [
        (n) => [[`${n}`, `${n}`, unknown, "phx_join", {}]],
        (n) => [[`${n}`, `${n}`, `agent:${agent.id}`, "phx_join", {}], [`${n}`, "l", `agent:${agent.id}`, "phx_leave", {}]],
      ]) {
        const tcp = await Tcp.upgraded(server, `/socket/agent/websocket?api_key=${agent.key}&vsn=2.0.0`);
        tcp.socket.resume();
        tcp.socket.removeAllListeners("data");
        const before = residentMiB(server);
        let most = before;
        const end = Date.now() + 2_500;
        for (let n = 1; Date.now() < end; ) {
          const burst = Buffer.concat(Array.from({ length: 500 }, () => messages(n++)).flat().map((message) => text(message)));
          await Promise.race([tcp.write(burst), new Promise((resolve) => setTimeout(resolve, 500))]);
          most = Math.max(most, residentMiB(server));
        }
        tcp.destroy();
        assert.ok(most - before < 100, `${Math.round(before)} MiB became ${Math.round(most)} MiB`);
        assert.equal((await server.request("GET", "/ready")).status, 200);
      }
    } finally {
      await server.end();
    }
  });

  test("R45: a peer that has more answers due than may wait for it is closed with 1013, and nobody else notices", async () => {
    const server = await Server.start({ set: SMALL_QUEUE });
    try {
      const watcher = await server.agent();
      for (let n = 0; n < 100; n++) await server.agent({ name: `Agent ${n}`.padEnd(100, "x") });
      const bystander = await open(socketUrl(server, "/socket", watcher.key));
      const tcp = await Tcp.upgraded(server, `/socket/websocket?api_key=${watcher.key}&vsn=2.0.0`);
      tcp.write(text(["1", "1", DISCOVERY, "phx_join", {}]));
      await tcp.message();
      tcp.socket.pause();
      tcp.write(Buffer.concat(Array.from({ length: 2_000 }, (_, n) => text(["1", `${n}`, DISCOVERY, "discover", {}]))));
      const taken = () => gauge(server, 'muster_messages_received_total{kind="push"}');
      await until("the server takes no more of it", async () => (await taken()) > 0 && standsStill(taken));
      assert.ok((await taken()) < 2_000, "it did not take everything");
      await bystander.silence();
      tcp.socket.resume();
      assert.equal((await tcp.close()).code, 1013);
      tcp.destroy();
      await until("it is forgotten", async () => (await gauge(server, "muster_sockets")) === 1);
      assert.equal(await gauge(server, "muster_sockets_overloaded_total"), 1, "and counted");
      await bystander.silence();
    } finally {
      await server.end();
    }
  });

  test("R6 R28 R45: a peer that has stopped reading for good is let go of, and its agent is offline", async () => {
    const server = await Server.start({ set: [...SMALL_QUEUE, "limits.socket_idle_timeout_ms=5000"] });
    try {
      const agent = await server.agent();
      const tcp = await Tcp.upgraded(server, `/socket/agent/websocket?api_key=${agent.key}&vsn=2.0.0`);
      tcp.write(text(["1", "1", `agent:${agent.id}`, "phx_join", {}]));
      await tcp.message();
      await clog(server, tcp, () => [null, "r".repeat(200), "phoenix", "heartbeat", {}]);
      await until("the agent is offline", async () => (await gauge(server, "muster_agents_online")) === 0);
      await until("the socket is gone", async () => (await gauge(server, "muster_sockets")) === 0);
      assert.ok((await gauge(server, "muster_socket_closes_total")) <= 1, "a close is counted once");
      tcp.destroy();
    } finally {
      await server.end();
    }
  });

  test("R45: a broadcast that finds the queue full ends the socket, its agent's presence, and its place among the sockets", async () => {
    const server = await Server.start({ set: SMALL_QUEUE });
    try {
      const [agent, speaker] = [await server.agent(), await server.agent()];
      const tcp = await Tcp.upgraded(server, `/socket/websocket?api_key=${agent.key}&vsn=2.0.0`);
      tcp.write(text(["1", "1", DISCOVERY, "phx_join", {}]));
      await tcp.message();
      await clog(server, tcp, () => [null, "r".repeat(200), "phoenix", "heartbeat", {}]);
      const wire = await open(socketUrl(server, "/socket", speaker.key));
      wire.send(["1", "1", DISCOVERY, "phx_join", {}]);
      await wire.next();
      for (;;) {
        // Its queue has to stay full for a while: one that is only slow catches up.
        const [, , , event, payload] = await wire.nextPresence();
        if (event === "presence_state" ? !payload[agent.id] : payload.leaves[agent.id]) break;
      }
      await until("the socket is gone", async () => (await gauge(server, "muster_sockets")) === 1);
      assert.equal(await gauge(server, "muster_sockets_overloaded_total"), 1);
      tcp.destroy();
    } finally {
      await server.end();
    }
  });

  test("R18: a revoked key ends a socket whose peer does not read, too", async () => {
    const server = await Server.start({ set: SMALL_QUEUE });
    try {
      const agent = await server.agent();
      const tcp = await Tcp.upgraded(server, `/socket/agent/websocket?api_key=${agent.key}&vsn=2.0.0`);
      tcp.write(text(["1", "1", `agent:${agent.id}`, "phx_join", {}]));
      await tcp.message();
      await clog(server, tcp, () => [null, "r".repeat(200), "phoenix", "heartbeat", {}]);
      await server.ok("POST", "/api/v1/auth/rotate-key", { key: agent.key, body: {} });
      await until("the agent is offline", async () => (await gauge(server, "muster_agents_online")) === 0);
      tcp.destroy();
    } finally {
      await server.end();
    }
  });
});
