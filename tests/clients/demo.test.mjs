// `muster demo` as a person meets it: what it tells, that it stays, and that every line it prints to be pasted works.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdir, mkdtemp, readdir, rm, symlink } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { after, afterEach, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { binary, freePort, sleep, until } from "./lib/server.mjs";

const modules = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "node_modules");

/** Where the demo's blocks put what they install and write. */
const TRY = "/tmp/muster-try";
const INSTALL = "npm install --silent phoenix ws";
const STAYS = "The node stays up; Ctrl-C ends it.";
const POEM = "Append only, friend —\neach line finds its number; none\nis ever lost.\n";

/** A process whose output is kept. */
class Run {
  constructor(command, args, { env = {}, cwd, input } = {}) {
    this.stdout = "";
    this.stderr = "";
    /** How far the output had come after each write. */
    this.writes = [];
    this.process = spawn(command, args, { env: { PATH: process.env.PATH, ...env }, cwd, stdio: ["pipe", "pipe", "pipe"] });
    this.process.stdin.end(input);
    this.process.stdout.setEncoding("utf8").on("data", (text) => {
      this.stdout += text;
      this.writes.push(this.stdout.length);
    });
    this.process.stderr.setEncoding("utf8").on("data", (text) => (this.stderr += text));
    this.exited = new Promise((resolve) => this.process.on("close", (code, signal) => resolve((this.end = { code, signal }))));
  }

  /** Waits until it has said something, or fails with all it said. */
  async says(what, ms) {
    const said = () => this.stdout.includes(what);
    await until(`${JSON.stringify(what)} is printed`, () => said() || this.end, ms).catch((error) => assert.fail(`${error.message}\n${this}`));
    assert.ok(said(), `it ended without saying ${JSON.stringify(what)}\n${this}`);
  }

  /** Waits until it has ended. */
  async ends(ms) {
    await until("the process ends", () => this.end, ms).catch((error) => assert.fail(`${error.message}\n${this}`));
    return this.end;
  }

  toString() {
    return `${this.stdout}\n${this.stderr}`;
  }
}

/** A demo, with a temporary folder of its own in which it can be seen what it leaves. */
class Demo extends Run {
  static async start(args) {
    const folder = await mkdtemp(path.join(os.tmpdir(), "muster-test-"));
    const demo = new Demo(binary(), ["demo", ...args], { env: { TMPDIR: folder } });
    demo.folder = folder;
    return demo;
  }

  get address() {
    return /^A node serves at http:\/\/(\S+) /m.exec(this.stdout)[1];
  }

  /** The blocks to paste, by their numbers: { title, text }. */
  get blocks() {
    const found = [...this.stdout.matchAll(/^# (\d+)\. (.+):\n((?:.+\n)+)/gm)];
    return Object.fromEntries(found.map(([, number, title, text]) => [number, { title, text }]));
  }

  left() {
    return readdir(this.folder);
  }

  async remove() {
    if (!this.end) this.process.kill("SIGKILL");
    await this.exited;
    await rm(this.folder, { recursive: true, force: true });
  }
}

describe("the demo that stays", () => {
  let demo;
  let home;
  const pasted = [];

  before(async () => {
    demo = await Demo.start(["--listen", `127.0.0.1:${await freePort()}`]);
    await demo.says(STAYS);
    // What `npm install` would bring, without the network.
    home = await mkdtemp(path.join(os.tmpdir(), "muster-test-"));
    await mkdir(path.join(home, "node_modules"));
    await symlink(path.join(modules, "phoenix-1.8.16"), path.join(home, "node_modules/phoenix"));
    await symlink(path.join(modules, "ws"), path.join(home, "node_modules/ws"));
  });

  after(async () => {
    for (const run of pasted) if (!run.end) run.process.kill("SIGKILL");
    await demo?.remove();
    if (home) await rm(home, { recursive: true, force: true });
  });

  /** Types a block into a shell. */
  function paste(number) {
    const { title, text } = demo.blocks[number];
    if (title.includes("in Node")) assert.ok(text.includes(`cd ${TRY} && ${INSTALL} && `), `block ${number} does not install what it needs`);
    const input = text.replaceAll(TRY, home).replaceAll(INSTALL, "true");
    const run = new Run("bash", ["-s"], { cwd: home, input });
    pasted.push(run);
    return run;
  }

  /** Pastes a block that comes to an end; gives what it printed. */
  async function pasteToEnd(number) {
    const run = paste(number);
    assert.deepEqual(await run.ends(), { code: 0, signal: null }, `block ${number}\n${run}`);
    assert.equal(run.stderr, "", `block ${number} complains`);
    return run.stdout;
  }

  const events = (run) => [...run.stdout.matchAll(/^event: ?(.+)$/gm)].map(([, name]) => name);

  const metric = async (start) => {
    const text = await (await fetch(`http://${demo.address}/metrics`)).text();
    const line = text.split("\n").find((one) => one.startsWith(start));
    return Number(line?.split(" ").pop());
  };

  test("demo: says who is online, what they can do and what they ask", () => {
    const online = /^Who is online.*:\n((?: {2}.+\n)+)/m.exec(demo.stdout)?.[1].trimEnd().split("\n");
    const fleet = { "Ada's planner": "plan", Poet: "write, rhyme", Coder: "code, review", Painter: "draw, paint" };
    const lines = Object.entries(fleet).map(([name, can]) => `  ${name.padEnd(14)} can ${can.padEnd(14)} asks 0.25  reputation 2.5`);
    assert.deepEqual(online?.sort(), lines.sort());
  });

  test("demo: the hirer's socket prints the tokens in order, as they come", () => {
    const at = demo.stdout.indexOf(POEM);
    assert.ok(at > 0, demo.stdout);
    const writes = demo.writes.filter((length) => length > at && length <= at + POEM.length);
    // 12 tokens, one by one; a busy machine may read many at once, yet not all.
    assert.ok(writes.length > 1, `the tokens came in ${writes.length} pieces`);
    assert.match(demo.stdout.slice(at), /\nstream\.done, result {"lines":3}\n12 chunks by three paths, in order: seq 1 to 12\.\n/);
  });

  test("demo: the tokens went over the channel, over REST and over MCP, and are stored as printed", async () => {
    const task = /^Ada hires the Poet: task (\S+)$/m.exec(demo.stdout)[1];
    const token = /Bearer (\S+)'/.exec(demo.blocks[1].text)[1];
    const answer = await fetch(`http://${demo.address}/api/v1/tasks/${task}/stream?after=0`, { headers: { authorization: `Bearer ${token}` } });
    const { data } = await answer.json();
    assert.equal(data.status, "completed");
    assert.deepEqual(data.chunks.map((chunk) => chunk.seq), Array.from({ length: 12 }, (_, n) => n + 1));
    assert.equal(data.chunks.map((chunk) => chunk.content).join(""), POEM);
    // A third each; the channel's are those that no HTTP request brought.
    assert.equal(await metric("muster_chunks_appended_total"), 12);
    assert.equal(await metric('muster_http_requests_total{method="POST",route="/api/v1/tasks/{id}/chunk"'), 4);
    assert.equal(await metric('muster_http_requests_total{method="POST",route="mcp"'), 4);
  });

  test("demo: stays up with its fleet online, and says so last", async () => {
    await sleep(1_000);
    assert.equal(demo.end, undefined, `${demo}`);
    assert.equal((await fetch(`http://${demo.address}/ready`)).status, 200);
    assert.equal(await metric("muster_agents_online"), 3);
    assert.equal(demo.stdout.trimEnd().split("\n").pop(), STAYS);
    assert.equal(demo.stderr, "");
  });

  test("demo: prints six blocks to paste, all for the node it runs", () => {
    assert.deepEqual(Object.keys(demo.blocks), ["1", "2", "3", "4", "5", "6"]);
    for (const { title, text } of Object.values(demo.blocks)) {
      for (const [, address] of text.matchAll(/\w+:\/\/([^/]+)\//g)) assert.equal(address, demo.address, title);
      assert.ok(text.includes(demo.address), title);
    }
  });

  test("demo: pasted in turn, the blocks watch, speak and complete, and both watchers end", async () => {
    const [curl, node] = [paste(1), paste(2)];
    await curl.says("event: stream.joined");
    await node.says("joined at seq 0\n");

    assert.equal(JSON.parse(await pasteToEnd(3)).data.seq, 1);
    await curl.says("Hello from curl");
    await node.says("1 chat Hello from curl\n");

    assert.equal(await pasteToEnd(4), "stored as seq 2\n");
    await curl.says("Hello from Node");
    await node.says("2 chat Hello from Node\n");
    assert.equal(curl.end ?? node.end, undefined, "a watcher ended before the task did");

    assert.equal(JSON.parse(await pasteToEnd(5)).data.status, "completed");
    for (const watcher of [curl, node]) {
      assert.deepEqual(await watcher.ends(), { code: 0, signal: null }, `${watcher}`);
      assert.equal(watcher.stderr, "");
    }
    assert.deepEqual(events(curl), ["stream.joined", "stream.chunk", "stream.chunk", "stream.done"]);
    assert.match(curl.stdout, /all said/);
    assert.equal(node.stdout, "joined at seq 0\n1 chat Hello from curl\n2 chat Hello from Node\ndone all said\n");
  });

  test("demo: the last block shows the stream as JSON, and the node's figures on lines of their own", async () => {
    const [json, ...figures] = (await pasteToEnd(6)).trimEnd().split("\n");
    const { data } = JSON.parse(json);
    assert.deepEqual(data.chunks.map(({ seq, content }) => [seq, content]), [[1, "Hello from curl"], [2, "Hello from Node"]]);
    assert.ok(figures.includes("muster_chunks_appended_total 14"), figures.join("\n"));
    assert.ok(figures.includes("muster_agents_online 3"), figures.join("\n"));
    assert.ok(figures.some((line) => line.startsWith("muster_sockets ")), figures.join("\n"));
  });

  test("demo: a watcher that is pasted late gets everything, and ends", async () => {
    const curl = paste(1);
    assert.deepEqual(await curl.ends(), { code: 0, signal: null });
    assert.deepEqual(events(curl), ["stream.joined", "stream.chunk", "stream.chunk", "stream.done"]);
    const lines = (await pasteToEnd(2)).trimEnd().split("\n");
    assert.deepEqual(lines.slice(-3), ["1 chat Hello from curl", "2 chat Hello from Node", "done all said"]);
  });

  test("demo: a second one finds the port in use and takes another, which all it prints names", async () => {
    const second = await Demo.start(["--listen", demo.address]);
    try {
      await second.says(STAYS);
      assert.notEqual(second.address, demo.address);
      assert.ok(!second.stdout.includes(demo.address), second.stdout);
      for (const { title, text } of Object.values(second.blocks)) assert.ok(text.includes(second.address), title);
      assert.equal((await fetch(`http://${second.address}/ready`)).status, 200);
      // Ctrl-C.
      second.process.kill("SIGINT");
      assert.deepEqual(await second.ends(), { code: 0, signal: null }, `${second}`);
      assert.deepEqual(await second.left(), []);
      assert.equal((await fetch(`http://${demo.address}/ready`)).status, 200);
    } finally {
      await second.remove();
    }
  });

  // The last, for it ends the demo of all the others.
  test("demo: SIGTERM ends it with code 0, and nothing is left of it", async () => {
    assert.equal((await demo.left()).length, 1);
    demo.process.kill("SIGTERM");
    assert.deepEqual(await demo.ends(), { code: 0, signal: null }, `${demo}`);
    assert.equal(demo.stderr, "");
    assert.deepEqual(await demo.left(), []);
    await assert.rejects(fetch(`http://${demo.address}/ready`));
  });
});

describe("demos that end early", () => {
  const demos = [];
  const start = async (...args) => {
    const demo = await Demo.start(args);
    demos.push(demo);
    return demo;
  };
  afterEach(async () => {
    while (demos.length > 0) await demos.pop().remove();
  });

  test("demo: --exit ends by itself when the story is told, with code 0, and nothing is left of it", async () => {
    const demo = await start("--exit", "--listen", "127.0.0.1:0");
    assert.deepEqual(await demo.ends(), { code: 0, signal: null }, `${demo}`);
    assert.ok(demo.stdout.includes(POEM), demo.stdout);
    assert.equal(demo.stderr, "");
    assert.deepEqual(await demo.left(), []);
    assert.ok(!demo.stdout.includes(STAYS), demo.stdout);
  });

  for (const signal of ["SIGINT", "SIGTERM"]) {
    test(`demo: ${signal} in the middle of the story ends it with code 0, and nothing is left of it`, async () => {
      const demo = await start("--listen", "127.0.0.1:0");
      await demo.says("Append");
      demo.process.kill(signal);
      assert.deepEqual(await demo.ends(), { code: 0, signal: null });
      assert.ok(!demo.stdout.includes(STAYS), "it was too late for the middle of the story");
      assert.deepEqual(await demo.left(), []);
    });
  }

  test("demo: a reader that goes away, as head does, is no crash, and nothing is left", async () => {
    const demo = await start("--exit", "--listen", "127.0.0.1:0");
    await demo.says("Append");
    demo.process.stdout.destroy();
    const { signal } = await demo.ends();
    assert.equal(signal, null);
    assert.doesNotMatch(demo.stderr, /panic/);
    assert.deepEqual(await demo.left(), []);
  });

  test("demo: an address that cannot be listened on is a plain error", async () => {
    for (const [address, says] of [["nonsense", /^muster: nonsense: /], ["0.0.0.0:0", /^muster: http\.listen is not loopback/], ["192.0.2.1:4000", /^muster: 192\.0\.2\.1:4000: /]]) {
      const demo = await start("--listen", address);
      assert.deepEqual(await demo.ends(), { code: 1, signal: null }, `${demo}`);
      assert.match(demo.stderr, says);
      assert.equal(demo.stderr.trimEnd().split("\n").length, 1, demo.stderr);
      assert.deepEqual(await demo.left(), []);
    }
  });
});
