// scripts/dev-cluster: that it stands, and that nothing stays of it.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { after, test } from "node:test";
import { binary, Server, until } from "../clients/lib/server.mjs";

/** What the kernel calls a node's process. */
const NODE = path.basename(binary()).slice(0, 15);
const started = [];
after(() => started.forEach((one) => one.process.kill("SIGKILL")));

/** Starts one, and reads what it prints: its nodes, its proxy, its token, its processes. */
async function start(...args) {
  const dev = { text: "", process: spawn(process.execPath, [path.join(import.meta.dirname, "dev-cluster.mjs"), ...args], { stdio: ["ignore", "pipe", "pipe"] }) };
  started.push(dev);
  for (const stream of [dev.process.stdout, dev.process.stderr]) stream.on("data", (data) => (dev.text += data));
  dev.exited = new Promise((resolve) => dev.process.on("exit", (code) => resolve((dev.code = code))));
  await until("the cluster stands", () => {
    if (dev.code !== undefined) throw new Error(dev.text);
    return dev.text.includes("Ctrl-C ends it");
  }, 90_000);
  dev.urls = Object.fromEntries([...dev.text.matchAll(/^(n\d|proxy) +(http:\S+)/gm)].map(([, name, url]) => [name, url]));
  dev.token = /MUSTER_ADMIN_TOKEN=(\S+)/.exec(dev.text)[1];
  dev.children = processes().filter(({ parent }) => parent === dev.process.pid);
  return dev;
}

/** All processes: { pid, parent, name }. */
function processes() {
  return readdirSync("/proc").filter((name) => /^\d+$/.test(name)).flatMap((pid) => {
    try {
      const [, name, rest] = /^\d+ \((.*)\) (.*)$/s.exec(readFileSync(`/proc/${pid}/stat`, "latin1"));
      return [{ pid: Number(pid), parent: Number(rest.split(" ")[1]), name }];
    } catch {
      // It has just ended.
      return [];
    }
  });
}

const server = (url, adminToken) => Object.assign(new Server(), { url, ws: url.replace("http", "ws"), adminToken });
const leftovers = (dev) => readdirSync(os.tmpdir()).filter((name) => name.includes(`-${dev.process.pid}-`));

test("what is made on one node is there on the others, and SIGTERM takes everything along", { timeout: 180_000 }, async () => {
  const dev = await start("2", "--proxy");
  assert.deepEqual(Object.keys(dev.urls).sort(), ["n1", "n2", "proxy"]);
  assert.deepEqual(dev.children.map(({ name }) => name).sort(), ["haproxy", NODE, NODE, "postgres", "redis-server"].sort());
  const [one, two, front] = ["n1", "n2", "proxy"].map((name) => server(dev.urls[name], dev.token));
  const user = await one.user("Ada");
  const agent = await two.agent({ owner: user });
  assert.equal((await front.ok("GET", `/api/v1/agents/${agent.id}`, { token: user.token })).id, agent.id);
  // No secret is where every user of the machine could read it.
  for (const { pid } of dev.children) assert.ok(!/postgres:\/\/|redis:\/\/|op_/.test(readFileSync(`/proc/${pid}/cmdline`, "latin1")));
  dev.process.kill("SIGTERM");
  assert.equal(await dev.exited, 0, dev.text);
  assert.deepEqual(dev.children.filter(({ pid }) => existsSync(`/proc/${pid}`)), []);
  assert.deepEqual(leftovers(dev), []);
});

test("when something ends by itself, it says which log tells why, and ends", { timeout: 180_000 }, async () => {
  const dev = await start("1", "--no-redis");
  const postgres = dev.children.find(({ name }) => name === "postgres");
  process.kill(postgres.pid, "SIGKILL");
  assert.equal(await dev.exited, 1, dev.text);
  assert.match(dev.text, /postgres ended by itself \(SIGKILL\); \S+postgres\.log/);
  const [, folder] = /Logs are in (\S+)/.exec(dev.text);
  assert.ok(existsSync(path.join(folder, "postgres.log")));
  rmSync(folder, { recursive: true });
  assert.deepEqual(dev.children.filter(({ pid }) => existsSync(`/proc/${pid}`)), []);
  assert.deepEqual(leftovers(dev), []);
});
