// Starts real nodes on free ports, and speaks to their REST API.

import { execFile, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../..");

/** The binary under test: MUSTER_BIN, or what cargo built last. */
export function binary() {
  const candidates = [process.env.TEST_MUSTER_BIN, path.join(root, "target/debug/muster"), path.join(root, "target/release/muster")];
  const found = candidates.find((candidate) => candidate && existsSync(candidate));
  if (!found) throw new Error("no muster binary: run cargo build first");
  return found;
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** How long a wait may take that has no promise to keep: on a busy machine everything comes, only later. */
export const PATIENCE_MS = 30_000;

/**
 * How long something may take here that the specification promises within `ms`. It means a machine with nothing else to
 * do, and tests share theirs, also with each other. What breaks such a promise takes the minute that an idle socket has,
 * or never comes, so the difference shows all the same.
 */
export const leniently = (ms) => ms * 10;

/** Waits until `check` gives something true; fails after `ms`. */
export async function until(what, check, ms = PATIENCE_MS) {
  const end = Date.now() + ms;
  for (;;) {
    const value = await check();
    if (value) return value;
    if (Date.now() > end) throw new Error(`timed out after ${ms} ms: ${what}`);
    await sleep(10);
  }
}

export async function freePort() {
  return new Promise((resolve, reject) => {
    const probe = net.createServer();
    probe.on("error", reject);
    probe.listen(0, "127.0.0.1", () => {
      const { port } = probe.address();
      probe.close(() => resolve(port));
    });
  });
}

let databases = 0;

/** A fresh database in the PostgreSQL server at TEST_MUSTER_STORE_URL; undefined without one. */
async function freshDatabase() {
  const server = process.env.TEST_MUSTER_STORE_URL;
  if (!server) return undefined;
  const name = `test_${process.pid}_${Date.now()}_${(databases += 1)}`;
  await promisify(execFile)("psql", ["--no-psqlrc", "--quiet", "--command", `CREATE DATABASE ${name}`, server]);
  const url = new URL(server);
  url.pathname = name;
  return url.href;
}

export class Server {
  static async start({ set = [], env = {}, dataDir, port, args = [] } = {}) {
    const server = new Server();
    server.adminToken = "op_test_operator_token";
    server.ownsDir = !dataDir;
    server.dataDir = dataDir ?? (await mkdtemp(path.join(os.tmpdir(), "muster-test-")));
    server.port = port ?? (await freePort());
    server.url = `http://127.0.0.1:${server.port}`;
    server.ws = `ws://127.0.0.1:${server.port}`;
    const database = await freshDatabase();
    server.launch = { set, env: database ? { MUSTER_STORE_URL: database, ...env } : env, args };
    server.logs = "";
    await server.#spawn();
    return server;
  }

  async #spawn() {
    const { set, env, args } = this.launch;
    const flags = set.flatMap((setting) => ["--set", setting]);
    const listen = ["--listen", `127.0.0.1:${this.port}`, "--data-dir", this.dataDir];
    this.process = spawn(binary(), ["serve", ...listen, ...flags, ...args], {
      env: { PATH: process.env.PATH, MUSTER_ADMIN_TOKEN: this.adminToken, ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.exited = new Promise((resolve) => this.process.on("exit", (code, signal) => resolve({ code, signal })));
    for (const stream of [this.process.stdout, this.process.stderr]) {
      stream.on("data", (data) => (this.logs += data));
    }
    let gone = false;
    this.exited.then(() => (gone = true));
    await until("the node is ready", async () => {
      if (gone) throw new Error(`the node ended:\n${this.logs}`);
      return (await fetch(`${this.url}/ready`).catch(() => null))?.ok;
    });
  }

  /** SIGTERM, and waits for the orderly end. */
  async stop() {
    this.process.kill("SIGTERM");
    return this.exited;
  }

  /** SIGKILL. */
  async kill() {
    this.process.kill("SIGKILL");
    return this.exited;
  }

  /** Starts again on the same port and folder. */
  async startAgain() {
    await this.#spawn();
    this.restartedAt = Date.now();
  }

  async end() {
    if (this.process.exitCode === null && this.process.signalCode === null) {
      this.process.kill("SIGKILL");
      await this.exited;
    }
    if (this.ownsDir) await rm(this.dataDir, { recursive: true, force: true });
  }

  /** One request; gives { status, headers, body, data, error }. */
  async request(method, target, { key, token, agent, body, headers = {}, raw } = {}) {
    const all = { ...headers };
    if (key) all["x-api-key"] = key;
    if (token) all.authorization = `Bearer ${token}`;
    if (agent) all["x-agent-id"] = agent;
    if (body !== undefined || raw !== undefined) all["content-type"] ??= "application/json";
    const send = () => fetch(this.url + target, { method, headers: all, body: raw ?? (body === undefined ? undefined : JSON.stringify(body)) });
    // A connection that was kept open may be to the node before its restart: nothing was answered on it.
    const response = await send().catch((error) => {
      if (Date.now() - (this.restartedAt ?? 0) > 5_000) throw error;
      return send();
    });
    const text = await response.text();
    let parsed = null;
    try {
      parsed = JSON.parse(text);
    } catch {
      // Not every answer is JSON.
    }
    return { status: response.status, headers: response.headers, text, body: parsed, data: parsed?.data, error: parsed?.errors?.[0] };
  }

  async ok(method, target, options) {
    const answer = await this.request(method, target, options);
    if (answer.status >= 300) throw new Error(`${method} ${target}: ${answer.status} ${answer.text}`);
    return answer.data;
  }

  /** A user with a token. */
  async user(name = "User") {
    const user = await this.ok("POST", "/api/v1/admin/users", { token: this.adminToken, body: { name } });
    const { token, credential } = await this.ok("POST", `/api/v1/admin/users/${user.id}/tokens`, { token: this.adminToken, body: {} });
    return { ...user, token, credential };
  }

  /** An agent: owned by a user when a user's token is given. */
  async agent({ owner, name = "Agent", capabilities = ["code"], price = "1", more = {} } = {}) {
    Server.counter = (Server.counter ?? 0) + 1;
    const did = `did:test:${process.pid}-${Date.now()}-${Server.counter}`;
    const agent = { name, did, capabilities, pricing_model: "fixed", base_price: price, ...more };
    const path = owner ? "/api/v1/agents" : "/api/v1/agents/register";
    const registered = await this.ok("POST", path, { token: owner?.token, body: { agent } });
    return { ...registered.agent, key: registered.api_key };
  }

  /** A task of `client` for `provider`. */
  async task(client, provider, input = {}) {
    const body = { provider_agent_id: provider.id, capability: "code", input };
    return this.ok("POST", "/api/v1/tasks", { key: client.key, body });
  }

  async emit(task, provider, content, more = {}) {
    return this.request("POST", `/api/v1/tasks/${task.id}/chunk`, { key: provider.key, body: { content, ...more } });
  }
}

/** A user, a client agent of theirs, a provider, and a task between them. */
export async function cast(server) {
  const user = await server.user("Hirer");
  const client = await server.agent({ owner: user, name: "Client" });
  const provider = await server.agent({ name: "Provider" });
  const task = await server.task(client, provider);
  return { user, client, provider, task };
}
