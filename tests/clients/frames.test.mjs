// WebSocket frames as no decent client sends them, over bare TCP.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, afterEach, before, describe, test } from "node:test";
import { leniently, Server, until } from "./lib/server.mjs";
import { closing, frame, OP, Tcp, text, upgradeRequest } from "./lib/tcp.mjs";
import { ok, refused, Wire } from "./lib/wire.mjs";

const MANY = "{tokens=1000000,period_ms=1000,burst=1000000}";
const MESSAGE_MAX = 1_048_576;
const FRAGMENTS_MAX = 1_024;

let server, agent, target, topic, bystander;
const connections = [];

before(async () => {
  server = await Server.start({ set: [`limits.messages_per_socket=${MANY}`] });
  agent = await server.agent();
  topic = `agent:${agent.id}`;
  target = `/socket/agent/websocket?api_key=${agent.key}&vsn=2.0.0`;
  bystander = await Wire.open(server.ws + target);
  bystander.send(["1", "1", topic, "phx_join", {}]);
  assert.deepEqual(await bystander.next(), ok("1", "1", topic));
});

// Whatever a test did to its own connection: nobody else noticed, and nothing broke.
afterEach(async () => {
  connections.splice(0).forEach((tcp) => tcp.destroy());
  await bystander.silence();
  assert.deepEqual(faults(), []);
});

after(async () => {
  bystander?.close();
  await server?.end();
});

const faults = () => server.logs.split("\n").filter((line) => /panic|"level":"ERROR"/.test(line));

function kept(tcp) {
  connections.push(tcp);
  return tcp;
}

const upgraded = async (options) => kept(await Tcp.upgraded(server, target, options));
const beat = (ref, padding = "") => text([null, ref, "phoenix", "heartbeat", padding]);
const answer = (ref) => ok(null, ref, "phoenix");

/** The socket works: a heartbeat is answered. */
async function works(tcp, ref = "works") {
  tcp.write(beat(ref));
  assert.deepEqual(await tcp.message(), answer(ref));
}

/** The server ends the connection with that code, and says nothing else. */
async function endsWith(tcp, code, what) {
  const got = await tcp.frame().catch((error) => assert.fail(`${what}: ${error.message}`));
  const end = got.payload.length >= 2 ? got.payload.readUInt16BE(0) : null;
  assert.deepEqual([got.opcode, end], [OP.close, code], `${what}: ${got.payload}`);
  assert.deepEqual([got.fin, got.rsv, got.masked], [true, 0, false], what);
  assert.ok(got.payload.length <= 125, what);
  assert.ok(got.payload.length > 2, `${what}: a reason`);
  await tcp.gone();
  assert.equal(tcp.bytes.length, 0, `${what}: nothing after the close frame`);
}

/** Each of `cases` [what, bytes, code], on a fresh connection and behind messages that are good. */
async function eachEnds(cases) {
  for (const [what, bytes, code] of cases) {
    const fresh = await upgraded();
    fresh.write(bytes);
    await endsWith(fresh, code, what);
    const busy = await upgraded();
    busy.write(Buffer.concat([beat("a"), bytes, beat("never")]));
    assert.deepEqual(await busy.message(), answer("a"), what);
    await endsWith(busy, code, `${what}, behind a message`);
  }
}

describe("broken frames", () => {
  test("A3 phoenix 4.7: frames without a mask are 1002", async () => {
    await eachEnds([
      ["text", text([null, "1", "phoenix", "heartbeat", {}], { mask: false }), 1002],
      ["empty text", frame(OP.text, "", { mask: false }), 1002],
      ["ping", frame(OP.ping, "x", { mask: false }), 1002],
      ["close", frame(OP.close, closing(1000), { mask: false }), 1002],
      ["the head of a large one", frame(OP.binary, "", { mask: false, length: 100_000 }), 1002],
    ]);
  });

  test("A3 phoenix 4.7: reserved bits are 1002", async () => {
    const cases = [];
    for (let rsv = 1; rsv < 8; rsv++) cases.push([`rsv ${rsv}`, text([null, "1", "phoenix", "heartbeat", {}], { rsv }), 1002]);
    cases.push(["on a ping", frame(OP.ping, "", { rsv: 4 }), 1002]);
    cases.push(["on a continuation", Buffer.concat([frame(OP.text, "[", { fin: false }), frame(OP.continuation, "]", { rsv: 2 })]), 1002]);
    await eachEnds(cases);
  });

  test("A3 phoenix 4.7: opcodes that do not exist are 1002", async () => {
    await eachEnds([3, 4, 5, 6, 7, 11, 12, 13, 14, 15].flatMap((opcode) => [
      [`opcode ${opcode}`, frame(opcode, "x"), 1002],
      [`opcode ${opcode}, empty and not final`, frame(opcode, "", { fin: false }), 1002],
    ]));
  });

  test("A3 phoenix 4.7: a continuation of nothing is 1002", async () => {
    await eachEnds([
      ["final", frame(OP.continuation, "x"), 1002],
      ["not final", frame(OP.continuation, "x", { fin: false }), 1002],
      ["empty", frame(OP.continuation), 1002],
    ]);
    const tcp = await upgraded();
    const whole = Buffer.from(JSON.stringify([null, "1", "phoenix", "heartbeat", {}]));
    tcp.write(Buffer.concat([frame(OP.text, whole.subarray(0, 9), { fin: false }), frame(OP.continuation, whole.subarray(9))]));
    assert.deepEqual(await tcp.message(), answer("1"));
    tcp.write(frame(OP.continuation, "x"));
    await endsWith(tcp, 1002, "behind a whole message");
  });

  test("A3: a new message inside a fragmented one is 1002", async () => {
    const begun = frame(OP.text, "[", { fin: false });
    await eachEnds([
      ["text", Buffer.concat([begun, beat("2")]), 1002],
      ["binary", Buffer.concat([begun, frame(OP.binary, "x")]), 1002],
      ["text, not final", Buffer.concat([begun, frame(OP.text, "x", { fin: false })]), 1002],
      ["inside binary", Buffer.concat([frame(OP.binary, "x", { fin: false }), beat("2")]), 1002],
      ["inside an empty fragment", Buffer.concat([frame(OP.text, "", { fin: false }), beat("2")]), 1002],
    ]);
  });

  test("A3: control frames of more than 125 bytes, and in fragments, are 1002", async () => {
    const cases = [];
    for (const [name, opcode] of [["ping", OP.ping], ["pong", OP.pong], ["close", OP.close]]) {
      cases.push([`${name} of 126 bytes`, frame(opcode, Buffer.alloc(126, 3)), 1002]);
      cases.push([`${name} of 126 bytes, its head alone`, frame(opcode, "", { length: 126 }), 1002]);
      cases.push([`${name} of 70000 bytes, its head alone`, frame(opcode, "", { length: 70_000 }), 1002]);
      cases.push([`${name} that goes on`, frame(opcode, opcode === OP.close ? closing(1000) : "x", { fin: false }), 1002]);
    }
    // A head alone cannot be followed by a message that is none: those are not sent behind another.
    for (const [what, bytes, code] of cases) {
      const tcp = await upgraded();
      tcp.write(bytes);
      await endsWith(tcp, code, what);
    }
  });

  test("A3: a close frame of one byte, or with a code that may not be sent, is 1002", async () => {
    const codes = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535];
    await eachEnds([
      ["one byte", frame(OP.close, "x"), 1002],
      ...codes.map((code) => [`code ${code}`, frame(OP.close, closing(code)), 1002]),
      ...codes.slice(2, 4).map((code) => [`code ${code} and a reason`, frame(OP.close, closing(code, "bye")), 1002]),
    ]);
  });

  test("A3: a close reason that is not UTF-8 is no good close", async () => {
    const tcp = await upgraded();
    tcp.write(frame(OP.close, Buffer.concat([closing(1000), Buffer.from([0xff, 0xfe])])));
    const { code } = await tcp.close();
    assert.ok([1002, 1007].includes(code), `${code}`);
    await tcp.gone();
  });

  const BAD_TEXT = {
    "a byte that never occurs": [0xff],
    "a lone continuation": [0x80],
    "an overlong slash": [0xc0, 0xaf],
    "an overlong of three": [0xe0, 0x80, 0xaf],
    "a surrogate": [0xed, 0xa0, 0x80],
    "beyond the last code point": [0xf4, 0x90, 0x80, 0x80],
    "a character of two bytes cut short": [0xc3],
    "a character of three bytes cut short": [0xe2, 0x82],
    "a character of four bytes cut short": [0xf0, 0x9f, 0x98],
  };

  test("A3 phoenix 4.7: text that is not UTF-8 is 1007, whole and in fragments", async () => {
    const head = Buffer.from('[null,"1","phoenix","heartbeat","');
    const tail = Buffer.from('"]');
    const cases = [];
    for (const [what, bytes] of Object.entries(BAD_TEXT)) {
      const bad = Buffer.from(bytes);
      cases.push([what, frame(OP.text, Buffer.concat([head, bad, tail])), 1007]);
      cases.push([`${what}, at the end`, frame(OP.text, Buffer.concat([head, bad])), 1007]);
      cases.push([`${what}, in a first fragment`, Buffer.concat([frame(OP.text, Buffer.concat([head, bad]), { fin: false }), frame(OP.continuation, tail)]), 1007]);
      cases.push([`${what}, in a last fragment`, Buffer.concat([frame(OP.text, head, { fin: false }), frame(OP.continuation, Buffer.concat([bad, tail]))]), 1007]);
      cases.push([`${what}, at the end of the last fragment`, Buffer.concat([frame(OP.text, head, { fin: false }), frame(OP.continuation, bad)]), 1007]);
      if (bad.length > 1) {
        const [one, two] = [Buffer.concat([head, bad.subarray(0, 1)]), Buffer.concat([bad.subarray(1), tail])];
        cases.push([`${what}, across fragments`, Buffer.concat([frame(OP.text, one, { fin: false }), frame(OP.continuation, two)]), 1007]);
      }
    }
    cases.push(["cut short, then an empty last fragment", Buffer.concat([frame(OP.text, Buffer.concat([head, Buffer.from([0xe2])]), { fin: false }), frame(OP.continuation)]), 1007]);
    await eachEnds(cases);
  });

  test("R7: a message of no bytes is no message", async () => {
    await eachEnds([
      ["text", frame(OP.text), 1011],
      ["binary", frame(OP.binary), 1011],
      ["text of empty fragments", Buffer.concat([frame(OP.text, "", { fin: false }), frame(OP.continuation)]), 1011],
    ]);
  });
});

describe("sizes", () => {
  const padded = (bytes) => {
    const bare = JSON.stringify([null, "1", "phoenix", "heartbeat", ""]).length;
    return Buffer.from(JSON.stringify([null, "1", "phoenix", "heartbeat", "x".repeat(bytes - bare)]));
  };

  test("A1 R11: a message of the very limit is read, whole and in fragments", async () => {
    const message = padded(MESSAGE_MAX);
    const tcp = await upgraded();
    tcp.write(frame(OP.text, message));
    assert.deepEqual(await tcp.message(), answer("1"));
    const half = MESSAGE_MAX / 2;
    tcp.write(Buffer.concat([frame(OP.text, message.subarray(0, half), { fin: false }), frame(OP.continuation, message.subarray(half))]));
    assert.deepEqual(await tcp.message(), answer("1"));
  });

  test("A1 R11: a longer one is 1009 by its announced length, before a byte of it is sent", async () => {
    for (const [what, head] of [
      ["one more than the limit", frame(OP.text, "", { length: MESSAGE_MAX + 1 })],
      ["binary", frame(OP.binary, "", { length: MESSAGE_MAX + 1 })],
      ["4 GiB", frame(OP.text, "", { length: 2n ** 32n })],
      ["all 63 bits", frame(OP.text, "", { length: 2n ** 63n - 1n })],
      ["not final", frame(OP.text, "", { length: MESSAGE_MAX + 1, fin: false })],
    ]) {
      const tcp = await upgraded();
      tcp.write(head);
      await endsWith(tcp, 1009, what);
    }
  });

  test("A1: a length with its highest bit set ends the connection", async () => {
    const tcp = await upgraded();
    tcp.write(frame(OP.text, "x", { length: 2n ** 64n - 1n }));
    const { code } = await tcp.close();
    assert.ok([1002, 1009].includes(code), `${code}`);
    await tcp.gone();
  });

  test("A1: a message that is sent whole all the same learns why it is refused", async () => {
    const tcp = await upgraded();
    tcp.write(frame(OP.text, padded(4 * MESSAGE_MAX)));
    assert.equal((await tcp.close()).code, 1009);
    await tcp.gone();
  });

  test("A1: fragments count together, by announced length and by what has come", async () => {
    const half = Buffer.alloc(MESSAGE_MAX / 2, "x");
    const begun = Buffer.concat([frame(OP.text, half, { fin: false }), frame(OP.continuation, half.subarray(1), { fin: false })]);
    for (const [what, bytes] of [
      ["one byte too many", frame(OP.continuation, "xx")],
      ["one byte too many announced", frame(OP.continuation, "", { length: 2 })],
      ["a limit's worth announced", frame(OP.continuation, "", { length: MESSAGE_MAX, fin: false })],
    ]) {
      const tcp = await upgraded();
      tcp.write(Buffer.concat([begun, bytes]));
      await endsWith(tcp, 1009, what);
    }
  });

  test("A1: more fragments than the limit are 1009, however small", async () => {
    const message = padded(FRAGMENTS_MAX * 2);
    const pieces = (count, size) => {
      const frames = [];
      for (let n = 0; n < count; n++) {
        const piece = n === count - 1 ? message.subarray(n * size) : message.subarray(n * size, (n + 1) * size);
        frames.push(frame(n === 0 ? OP.text : OP.continuation, piece, { fin: n === count - 1 }));
      }
      return frames;
    };
    const tcp = await upgraded();
    tcp.write(Buffer.concat(pieces(FRAGMENTS_MAX, 2)));
    assert.deepEqual(await tcp.message(), answer("1"), "as many as may be");
    tcp.write(Buffer.concat(pieces(FRAGMENTS_MAX, 2)));
    assert.deepEqual(await tcp.message(), answer("1"), "and again: the count starts anew");
    tcp.write(Buffer.concat(pieces(FRAGMENTS_MAX + 1, 1)));
    await endsWith(tcp, 1009, "one more");
    const empty = await upgraded();
    empty.write(Buffer.concat([frame(OP.text, "", { fin: false }), ...Array.from({ length: 2_000 }, () => frame(OP.continuation, "", { fin: false }))]));
    await endsWith(empty, 1009, "empty ones");
  });

  test("A1: control frames between fragments do not count as fragments", async () => {
    const tcp = await upgraded();
    const whole = Buffer.from(JSON.stringify([null, "1", "phoenix", "heartbeat", "é".repeat(900)]));
    const frames = [];
    for (let at = 0; at < whole.length; at += 2) {
      frames.push(frame(at === 0 ? OP.text : OP.continuation, whole.subarray(at, at + 2), { fin: at + 2 >= whole.length }), frame(OP.pong));
    }
    tcp.write(Buffer.concat(frames));
    assert.deepEqual(await tcp.message(), answer("1"));
  });

  test("A1 A4: what large messages took is given back", async () => {
    const rss = async () => Number(/VmRSS:\s+(\d+)/.exec(await readFile(`/proc/${server.process.pid}/status`, "utf8"))[1]) / 1_024;
    const message = frame(OP.text, padded(MESSAGE_MAX));
    const first = await upgraded();
    first.write(message);
    await first.message();
    const before = await rss();
    for (let n = 0; n < 100; n++) {
      const tcp = await upgraded();
      // Cut, so that it has to be kept until the rest comes.
      await tcp.write(message.subarray(0, 700_000));
      tcp.write(message.subarray(700_000));
      assert.deepEqual(await tcp.message(), answer("1"));
    }
    const grown = (await rss()) - before;
    assert.ok(grown < 50, `100 idle sockets keep ${Math.round(grown)} MiB`);
  });
});

describe("how bytes come", () => {
  /** Some of everything: short and long, fragments, control frames between them, a split character. */
  function composition() {
    const long = Buffer.from(JSON.stringify([null, "long", "phoenix", "heartbeat", "é😀".repeat(30)]));
    return Buffer.concat([
      beat("short"),
      frame(OP.ping, "p1"),
      frame(OP.text, long.subarray(0, 60), { fin: false }),
      frame(OP.ping, "p2"),
      frame(OP.continuation, long.subarray(60, 61), { fin: false }),
      frame(OP.continuation, "", { fin: false }),
      frame(OP.pong),
      frame(OP.continuation, long.subarray(61)),
      beat("wide", "x".repeat(150)),
    ]);
  }
  async function answersComposition(tcp, what) {
    const got = [];
    for (let n = 0; n < 5; n++) got.push(await tcp.frame());
    const shown = got.map(({ opcode, payload }) => (opcode === OP.pong ? String(payload) : JSON.parse(String(payload))[1]));
    assert.deepEqual(shown, ["short", "p1", "p2", "long", "wide"], what);
  }

  test("A2: frames are read wherever they are cut", async () => {
    const tcp = await upgraded();
    const bytes = composition();
    for (let at = 1; at < bytes.length; at++) {
      tcp.write(bytes.subarray(0, at));
      // A round trip elsewhere: the first part has been read by then.
      await bystander.silence();
      tcp.write(bytes.subarray(at));
      await answersComposition(tcp, `cut at ${at}`);
    }
  });

  test("A2: frames are read byte by byte", async () => {
    const tcp = await upgraded();
    for (const byte of composition()) {
      tcp.write(Buffer.from([byte]));
      await new Promise(setImmediate);
    }
    await answersComposition(tcp, "byte by byte");
    await works(tcp);
  });

  test("A2: many slow senders do not slow down anybody else", async () => {
    const bytes = composition();
    const slow = await Promise.all(Array.from({ length: 20 }, () => upgraded()));
    let done = false;
    const sending = Promise.all(
      slow.map(async (tcp) => {
        for (const byte of bytes) {
          await tcp.write(Buffer.from([byte]));
          await new Promise((resolve) => setTimeout(resolve, 1));
        }
        await answersComposition(tcp, "slow");
      }),
    ).finally(() => (done = true));
    const begun = performance.now();
    const times = [];
    while (!done) {
      const from = performance.now();
      await bystander.silence();
      times.push(performance.now() - from);
    }
    await sending;
    const lasted = performance.now() - begun;
    times.sort((a, b) => a - b);
    const p90 = times[Math.floor(times.length * 0.9)];
    assert.ok(p90 < lasted / 5, `p90 of ${times.length}: ${p90} ms, while they sent for ${lasted} ms`);
  });

  test("A2: thousands of frames in one segment are each answered, in order", async () => {
    const tcp = await upgraded();
    const count = 5_000;
    tcp.write(Buffer.concat(Array.from({ length: count }, (_, n) => beat(n))));
    for (let n = 0; n < count; n++) assert.deepEqual(await tcp.message(), answer(n));
    tcp.write(Buffer.concat(Array.from({ length: 300 }, (_, n) => frame(OP.ping, `${n}`))));
    for (let n = 0; n < 300; n++) {
      const { opcode, payload } = await tcp.frame();
      assert.deepEqual([opcode, String(payload)], [OP.pong, `${n}`]);
    }
  });

  test("A2: pushes in one segment beyond what may be in work are all answered, in order", async () => {
    const tcp = await upgraded();
    const count = 2_000;
    const pushes = Array.from({ length: count }, (_, n) => text(["1", n, topic, "nonsense", {}]));
    tcp.write(Buffer.concat([text(["1", "j", topic, "phx_join", {}]), ...pushes]));
    assert.deepEqual(await tcp.message(), ok("1", "j", topic));
    for (let n = 0; n < count; n++) assert.deepEqual(await tcp.message(), refused("1", n, topic, "unknown_event"));
  });

  test("A6: what comes in one segment with the handshake is not lost", async () => {
    const behind = Buffer.concat([text(["1", "j", topic, "phx_join", {}]), text(["1", "p", topic, "nonsense", {}]), beat("b"), frame(OP.ping, "x")]);
    for (let round = 0; round < 20; round++) {
      const tcp = await upgraded({ behind });
      const got = [];
      while (got.length < 4) {
        const { opcode, payload } = await tcp.frame();
        if (opcode === OP.pong) got.push("pong");
        else if (JSON.parse(payload)[3] === "phx_reply") got.push(JSON.parse(payload)[1]);
      }
      assert.deepEqual([...got].sort(), ["b", "j", "p", "pong"]);
      assert.ok(got.indexOf("j") < got.indexOf("p"));
      tcp.destroy();
    }
  });

  test("A6: neither is a part of a frame, nor much more than one segment", async () => {
    const whole = beat("cut", "x".repeat(300));
    for (const at of [1, 2, 5, 8, 100, whole.length - 1]) {
      const tcp = await upgraded({ behind: whole.subarray(0, at) });
      tcp.write(whole.subarray(at));
      assert.deepEqual(await tcp.message(), answer("cut"), `cut at ${at}`);
    }
    const large = await upgraded({ behind: Buffer.concat([beat("large", "x".repeat(900_000)), ...Array.from({ length: 500 }, (_, n) => beat(n))]) });
    assert.deepEqual(await large.message(), answer("large"));
    for (let n = 0; n < 500; n++) assert.deepEqual(await large.message(), answer(n));
  });

  test("A6: what is broken behind the handshake is answered as ever", async () => {
    for (const [what, behind, code] of [
      ["no mask", frame(OP.text, "x", { mask: false }), 1002],
      ["no message", text("nonsense"), 1011],
      ["too long", frame(OP.text, "", { length: MESSAGE_MAX + 1 }), 1009],
      ["not UTF-8", frame(OP.text, Buffer.from([0xff])), 1007],
    ]) {
      await endsWith(await upgraded({ behind }), code, what);
    }
    const closed = await upgraded({ behind: frame(OP.close, closing(4000)) });
    assert.deepEqual(await closed.close(), { code: 4000, reason: "" });
    await closed.gone();
  });

  test("A6: a handshake behind another request on the same connection is one too", async () => {
    const tcp = kept(await Tcp.connect(server));
    tcp.write(Buffer.concat([Buffer.from("GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n"), Buffer.from(upgradeRequest(target)), beat("late")]));
    assert.equal((await tcp.answer()).status, 200);
    assert.equal((await tcp.head()).status, 101);
    assert.deepEqual(await tcp.message(), answer("late"));
  });
});

describe("closing", () => {
  test("phoenix 4.7: a close is answered with its code, and then the connection ends", async () => {
    for (const code of [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999]) {
      const tcp = await upgraded();
      tcp.write(frame(OP.close, closing(code, "because é")));
      assert.equal((await tcp.close()).code, code);
      await tcp.gone();
    }
    const bare = await upgraded();
    bare.write(frame(OP.close));
    const { code } = await bare.close();
    assert.ok(code === null || code === 1000, `${code}`);
    await bare.gone();
  });

  test("A3: what follows a close is not looked at", async () => {
    const tcp = await upgraded();
    tcp.write(Buffer.concat([beat("before"), frame(OP.close, closing(1000)), beat("after"), frame(OP.ping, "x"), frame(3, "x"), frame(OP.close, closing(4000))]));
    assert.deepEqual(await tcp.message(), answer("before"));
    assert.equal((await tcp.close()).code, 1000);
    await tcp.gone();
    assert.equal(tcp.bytes.length, 0);
  });

  test("A3: a close between fragments is a close", async () => {
    const tcp = await upgraded();
    tcp.write(Buffer.concat([frame(OP.text, "[", { fin: false }), frame(OP.close, closing(1000))]));
    assert.equal((await tcp.close()).code, 1000);
    await tcp.gone();
  });

  test("A3: a peer that is told to go and stays is cut off", async () => {
    const tcp = await upgraded();
    tcp.write(frame(3));
    assert.equal((await tcp.close()).code, 1002);
    const pouring = setInterval(() => tcp.write(beat("still here")), 20);
    try {
      await tcp.gone();
      await until("it is cut off", () => tcp.socket.destroyed || tcp.socket.writableEnded || tcp.socket.errored);
    } finally {
      clearInterval(pouring);
    }
  });

  const online = async () => Number(/^muster_agents_online (\d+)/m.exec((await server.request("GET", "/metrics")).text)[1]);

  test("R28: a peer that hangs up, however it does, is gone within a second", async () => {
    for (const [what, hangUp] of [
      ["a FIN", (tcp) => tcp.socket.end()],
      ["a reset", (tcp) => tcp.socket.resetAndDestroy()],
      ["a FIN inside a frame", (tcp) => tcp.socket.end(beat("cut").subarray(0, 9))],
      ["a FIN behind a message", (tcp) => tcp.socket.end(beat("last"))],
      ["a FIN between fragments", (tcp) => tcp.socket.end(frame(OP.text, "[", { fin: false }))],
      ["a close frame and a reset", (tcp) => tcp.write(frame(OP.close)).then(() => tcp.socket.resetAndDestroy())],
    ]) {
      const guest = await server.agent();
      const before = await online();
      const tcp = kept(await Tcp.upgraded(server, `/socket/agent/websocket?api_key=${guest.key}&vsn=2.0.0`));
      tcp.write(text(["1", "1", `agent:${guest.id}`, "phx_join", {}]));
      assert.deepEqual(await tcp.message(), ok("1", "1", `agent:${guest.id}`));
      assert.equal(await online(), before + 1, what);
      await hangUp(tcp);
      await until(what, async () => (await online()) === before, leniently(1_000));
      await tcp.gone();
    }
  });

  test("R28: a peer that hangs up while its pushes are in work is gone too", async () => {
    const guest = await server.agent();
    const before = await online();
    for (let round = 0; round < 10; round++) {
      const tcp = kept(await Tcp.upgraded(server, `/socket/agent/websocket?api_key=${guest.key}&vsn=2.0.0`));
      const name = `agent:${guest.id}`;
      const pushes = Array.from({ length: 3_000 }, (_, n) => text(["1", `${n}`, name, "nonsense", {}]));
      await tcp.write(Buffer.concat([text(["1", "1", name, "phx_join", {}]), ...pushes]));
      if (round % 2) tcp.socket.resetAndDestroy();
      else tcp.socket.end();
    }
    await until("all are gone", async () => (await online()) === before);
  });
});

describe("the handshake as bytes", () => {
  test("A5: a head of too many headers, or too many bytes, is refused", async () => {
    for (const [what, headers] of [
      ["65 headers", Object.fromEntries(Array.from({ length: 65 }, (_, n) => [`x-${n}`, "1"]))],
      ["100 KB", { "x-large": "x".repeat(100_000) }],
    ]) {
      const tcp = kept(await Tcp.connect(server));
      tcp.write(upgradeRequest(target, headers));
      const { status } = await tcp.head();
      assert.ok([400, 431].includes(status), `${what}: ${status}`);
    }
  });

  test("A5: a head that does not come to its end is given up in time, however it trickles", async () => {
    const own = await Server.start({ set: ["limits.handshake_timeout_ms=1000"] });
    try {
      const request = upgradeRequest("/socket/agent/websocket", { "x-slow": "x".repeat(2_000) });
      for (const [what, first] of [["nothing at all", ""], ["half a head", request.slice(0, 60)]]) {
        const from = performance.now();
        const tcp = kept(await Tcp.connect(own));
        if (first) tcp.write(first);
        await tcp.gone().catch((error) => assert.fail(`${what}: ${error.message}`));
        assert.ok(performance.now() - from > 900, what);
      }
      const trickle = kept(await Tcp.connect(own));
      let at = 0;
      const drop = setInterval(() => trickle.write(request[at++]), 20);
      try {
        await trickle.gone();
      } finally {
        clearInterval(drop);
      }
    } finally {
      await own.end();
    }
  });

  test("A4: a peer that hangs up during its handshake leaves nothing behind", async () => {
    const sockets = async () => Number(/^muster_sockets (\d+)/m.exec((await server.request("GET", "/metrics")).text)[1]);
    const before = await sockets();
    for (let round = 0; round < 50; round++) {
      const tcp = await Tcp.connect(server);
      tcp.write(upgradeRequest(target).slice(0, round % 2 ? undefined : 100));
      if (round % 3 === 0) tcp.socket.resetAndDestroy();
      else tcp.socket.end();
    }
    await until("all are gone", async () => (await sockets()) <= before);
  });
});

describe("noise", () => {
  test("A3: random bytes end with a code of the protocol, or wait for more", async () => {
    let seed = 7;
    const random = () => (seed = (seed * 1_103_515_245 + 12_345) % 2_147_483_648);
    for (let round = 0; round < 300; round++) {
      const tcp = await upgraded();
      const bytes = Buffer.from(Array.from({ length: 1 + (random() % 200) }, () => (random() >> 8) & 255));
      await tcp.write(bytes);
      tcp.socket.end();
      await tcp.gone();
      if (tcp.bytes.length > 0) {
        const { code } = await tcp.close();
        // Noise may hold a close frame too, which is answered with its own code.
        assert.ok(code === null || (code >= 1_000 && code < 5_000), `${code}`);
      }
      tcp.destroy();
    }
  });

  test("A3: random payloads in good frames end with 1007 or 1011, and good frames bent in one bit never with a fault", async () => {
    let seed = 11;
    const random = () => (seed = (seed * 1_103_515_245 + 12_345) % 2_147_483_648) >> 8;
    for (let round = 0; round < 200; round++) {
      const tcp = await upgraded();
      const payload = Buffer.from(Array.from({ length: 1 + (random() % 60) }, () => random() & 255));
      tcp.write(frame(round % 2 ? OP.text : OP.binary, payload));
      tcp.write(frame(OP.close, closing(4321)));
      const { code } = await tcp.close();
      assert.ok([1007, 1011, 4321].includes(code), `${code} for ${payload.toString("hex")}`);
      tcp.destroy();

      const bent = Buffer.concat([beat("bent", "é"), beat("next")]);
      bent[random() % bent.length] ^= 1 << (random() % 8);
      const other = await upgraded();
      other.write(bent);
      other.socket.end();
      await other.gone();
      other.destroy();
    }
  });

  test("D3: a flood on some connections delays nobody else much", async () => {
    const floods = await Promise.all(Array.from({ length: 4 }, () => upgraded()));
    const p90 = async () => {
      const times = [];
      for (let n = 0; n < 100; n++) {
        const from = performance.now();
        await bystander.silence();
        times.push(performance.now() - from);
      }
      return times.sort((a, b) => a - b)[90];
    };
    const quiet = await p90();
    let going = true;
    const burst = [
      Buffer.concat(Array.from({ length: 300 }, () => frame(OP.ping, "x".repeat(100)))),
      Buffer.concat(Array.from({ length: 300 }, (_, n) => beat(n))),
      Buffer.concat(Array.from({ length: 300 }, (_, n) => text(["1", n, "room:none", "nonsense", { n }]))),
      Buffer.concat(Array.from({ length: 300 }, () => frame(OP.pong, "x"))),
    ];
    const pouring = floods.map(async (tcp, n) => {
      tcp.socket.removeAllListeners("data");
      tcp.socket.resume();
      for (let round = 0; going && round < 400; round++) await Promise.race([tcp.write(burst[n]), tcp.ended]);
    });
    const flooded = await p90();
    going = false;
    await Promise.all(pouring);
    assert.ok(flooded < 2_000 + 30 * quiet, `p90 ${flooded} ms, ${quiet} ms in quiet`);
  });

  test("A3: after all this no fault is in the log, and all sockets but one are gone", async () => {
    const sockets = async () => Number(/^muster_sockets (\d+)/m.exec((await server.request("GET", "/metrics")).text)[1]);
    await until("only the bystander is left", async () => (await sockets()) === 1);
    assert.deepEqual(faults(), []);
  });
});
