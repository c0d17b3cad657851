// What is between hosts, and what is left when a runner is gone: on the real kernel, where it lets us.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { sleep, until } from "../clients/lib/server.mjs";
import { Child } from "./child.mjs";
import { Namespaces, ownName, sweep, whyNoNamespaces } from "./network.mjs";
import { listens } from "./services.mjs";

const without = await whyNoNamespaces();
const folder = mkdtempSync(path.join(os.tmpdir(), "muster-test-"));
after(() => rmSync(folder, { recursive: true, force: true }));

/** A server that answers everything with so many bytes. */
const SERVER = `require("net").createServer((tcp) => tcp.on("error", () => {}).on("data", (data) => tcp.write(Buffer.alloc(Number(data))))).listen(4000)`;
/** Asks a server for bytes, and prints how many ms they took, or nothing. */
const CLIENT = `const [, address, bytes] = process.argv; const begun = Date.now(); let got = 0;
const tcp = require("net").connect(4000, address, () => tcp.write(bytes));
tcp.on("data", (data) => (got += data.length) >= Number(bytes) && (console.log(Date.now() - begun), process.exit()));
tcp.on("error", () => process.exit()); setTimeout(() => process.exit(), 8_000);`;

describe("namespaces", { skip: without ?? false }, () => {
  let network;
  const hosts = {};
  const children = [];
  before(async () => {
    network = await Namespaces.open();
    for (const name of ["a", "b", "c"]) {
      hosts[name] = await network.host(name);
      children.push(new Child({ name, command: process.execPath, args: ["-e", SERVER], log: path.join(folder, `${name}.log`), wrap: hosts[name].wrap }));
    }
    for (const host of Object.values(hosts)) await until(`${host.name} listens`, () => listens({ address: host.address, port: 4000 }));
  });
  after(async () => {
    for (const child of children) await child.end("SIGKILL");
    await network?.close();
  });

  /** Milliseconds that one host needs to get bytes of another, or null when it does not get them. */
  async function fetched(from, to, bytes = 1) {
    const words = hosts[from].wrap([process.execPath, "-e", CLIENT, hosts[to].address, String(bytes)]);
    const child = spawn(words[0], words.slice(1), { stdio: ["ignore", "pipe", "inherit"] });
    let text = "";
    child.stdout.on("data", (data) => (text += data));
    const timer = setTimeout(() => child.kill("SIGKILL"), 3_000);
    await new Promise((resolve) => child.on("close", resolve));
    clearTimeout(timer);
    return text === "" ? null : Number(text);
  }

  test("a cut is one way, and what is mended is whole", async () => {
    assert.notEqual(await fetched("a", "b"), null);
    await network.cut("a", "b");
    // Without its packets nothing comes back either, but others are not touched.
    assert.equal(await fetched("a", "b"), null);
    assert.notEqual(await fetched("a", "c"), null);
    assert.notEqual(await fetched("c", "b"), null);
    await network.cut("a", "b");
    await network.clear("a", "b");
    assert.notEqual(await fetched("a", "b"), null);
    await network.cut("b", "c");
    await network.cut("a", "c");
    await network.clear("c", "b");
    assert.notEqual(await fetched("b", "c"), null);
    assert.equal(await fetched("a", "c"), null);
    await network.clear();
    assert.notEqual(await fetched("a", "c"), null);
  });

  test("where all packets get lost nothing comes, and where some do it comes late", async () => {
    await network.lose("a", "b", 1);
    assert.equal(await fetched("a", "b"), null);
    await network.lose("a", "b", 0.01);
    assert.notEqual(await fetched("a", "b"), null);
    await network.clear();
  });

  test("a slow link is slow between those two only, and fast again", async () => {
    const bytes = 100_000;
    const fast = await fetched("a", "b", bytes);
    await network.slow("b", "a", 50_000);
    const slow = await fetched("a", "b", bytes);
    const other = await fetched("c", "b", bytes);
    assert.ok(slow === null || slow > 1_000, `${slow} ms for 2 s worth of bytes`);
    assert.ok(other !== null && other < 1_000, `${other} ms`);
    await network.slow("b", "c", 50_000);
    await network.clear("a", "b");
    const again = await fetched("a", "b", bytes);
    assert.ok(again !== null && again < 1_000, `${again} ms, before ${fast} ms`);
    await network.clear();
  });
});

test("what a runner that was killed has left is ended by the kernel, and swept", { skip: process.platform !== "linux" }, async () => {
  const log = path.join(folder, "left.log");
  const script = `
    import { mkdirSync } from "node:fs";
    import os from "node:os";
    import { Child } from "${import.meta.dirname}/child.mjs";
    import { Namespaces, ownName } from "${import.meta.dirname}/network.mjs";
    mkdirSync(os.tmpdir() + "/" + ownName("left"));
    const wrap = ${without === null} ? (await (await Namespaces.open()).host("x")).wrap : (words) => words;
    console.log(new Child({ name: "sleep", command: "sleep", args: ["1000"], log: "${log}", wrap }).pid);
    setInterval(() => {}, 1_000);`;
  const runner = spawn(process.execPath, ["--input-type=module", "-e", script], { stdio: ["ignore", "pipe", "inherit"] });
  const text = await new Promise((resolve) => runner.stdout.once("data", resolve));
  const pid = Number(text);
  await until("the child sleeps", () => existsSync(`/proc/${pid}`));
  // Another runner's things are not ours to sweep as long as it lives.
  assert.ok(!(await sweep()).some((name) => name.includes(`-${runner.pid}-`)));
  assert.ok(existsSync(`/proc/${pid}`));
  runner.kill("SIGKILL");
  await until("the child is gone", () => !existsSync(`/proc/${pid}`));
  await sleep(100);
  const swept = (await sweep()).filter((name) => name.includes(`-${runner.pid}-`));
  assert.ok(swept.includes(`muster-chaos-${runner.pid}-left`), String(swept));
  assert.equal(swept.length, without === null ? 3 : 1, String(swept));
  assert.ok(!readdirSync(os.tmpdir()).some((name) => name.includes(`-${runner.pid}-left`)));
  assert.match(ownName("x"), new RegExp(`-${process.pid}-x$`));
});
