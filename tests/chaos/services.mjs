// What stands around the nodes: PostgreSQL, Redis and HAProxy, each a real one of ours that no one else uses.

import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { chownSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { Child, environment, find } from "./child.mjs";
import { root } from "./folders.mjs";
import { ownName } from "./network.mjs";

const run = promisify(execFile);

/** A word nobody guesses, fit for an address. */
export const secret = () => randomBytes(18).toString("hex");

/** Whether somebody listens there. */
export function listens({ address, port }, ms = 1_000) {
  return new Promise((resolve) => {
    const probe = net.connect({ host: address, port, timeout: ms });
    const end = (answer) => {
      probe.destroy();
      resolve(answer);
    };
    probe.on("connect", () => end(true));
    probe.on("error", () => end(false));
    probe.on("timeout", () => end(false));
  });
}

/** Why something cannot be had, with what to do. */
const missing = (program, packages) => new Error(`${program} is not installed (Debian: apt-get install --no-install-recommends ${packages})`);

/** Where Debian and others keep PostgreSQL's programs. */
function postgresPlaces() {
  const base = "/usr/lib/postgresql";
  try {
    return readdirSync(base).sort((a, b) => b - a).map((version) => `${base}/${version}/bin`);
  } catch {
    return [];
  }
}

/** PostgreSQL refuses to be root's. */
const POSTGRES_USER = "postgres";

export class Postgres {
  static async start({ host, network, folder }) {
    const postgres = new Postgres();
    const [initdb, server, psql] = ["initdb", "postgres", "psql"].map((program) => find(program, postgresPlaces()));
    if (!initdb || !server || !psql) throw missing("PostgreSQL", "postgresql");
    Object.assign(postgres, { host, server, psql, log: path.join(folder, "postgres.log"), address: host.address });
    postgres.port = await network.port(5432);
    postgres.password = secret();
    postgres.user = process.getuid() === 0 ? POSTGRES_USER : null;
    postgres.place = path.join(os.tmpdir(), `${ownName("postgres")}-${secret().slice(0, 8)}`);
    postgres.data = path.join(postgres.place, "data");
    mkdirSync(postgres.place, { mode: 0o700 });
    const passwordFile = path.join(postgres.place, "password");
    writeFileSync(passwordFile, postgres.password);
    if (postgres.user) {
      const { stdout } = await run("id", ["-u", POSTGRES_USER]);
      for (const file of [postgres.place, passwordFile]) chownSync(file, Number(stdout), Number(stdout));
    }
    const make = new Child({
      name: "initdb", command: initdb, user: postgres.user, cwd: postgres.place, log: postgres.log,
      args: ["-D", postgres.data, "-U", "muster", "-E", "UTF8", "--locale=C", "-A", "scram-sha-256", `--pwfile=${passwordFile}`],
    });
    const { code } = await make.exited;
    if (code !== 0) throw new Error(`initdb failed; see ${postgres.log}`);
    const rules = ["local all all reject", "host all all all scram-sha-256"];
    writeFileSync(path.join(postgres.data, "pg_hba.conf"), `${rules.join("\n")}\n`);
    await postgres.launch();
    return postgres;
  }

  get url() {
    return `postgres://muster:${this.password}@${this.address}:${this.port}/postgres`;
  }

  async launch() {
    const settings = {
      listen_addresses: this.address, port: this.port, unix_socket_directories: "", max_connections: 200,
      shared_buffers: "64MB", dynamic_shared_memory_type: "mmap", log_line_prefix: "%m [%p] ",
    };
    this.child = new Child({
      name: "postgres", command: this.server, user: this.user, cwd: this.place, log: this.log, wrap: this.host.wrap,
      args: ["-D", this.data, ...Object.entries(settings).flatMap(([name, value]) => ["-c", `${name}=${value}`])],
      // SIGQUIT ends all its processes at once; after SIGKILL they would linger.
      deathSignal: "QUIT",
    });
    await this.child.until("takes queries", () => this.query("SELECT 1").then(() => true, () => false), 60_000);
  }

  /** The rows of a query, as text, column by column. */
  async query(sql, ms = 20_000) {
    const words = ["-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-h", this.address, "-p", String(this.port), "-U", "muster", "-d", "postgres", "-c", sql];
    const env = environment({ PGPASSWORD: this.password, PGCONNECT_TIMEOUT: "5" });
    const { stdout } = await run(this.psql, words, { env, timeout: ms, maxBuffer: 2 ** 30, cwd: os.tmpdir() });
    return stdout.split("\n").filter(Boolean).map((line) => line.split("\t"));
  }

  /** As `pg_ctl stop -m immediate`: no farewell, and a recovery at the next start. */
  kill() {
    return this.child.end("SIGQUIT");
  }

  async close() {
    if (this.child) await this.child.end("SIGQUIT", 10_000);
    rmSync(this.place, { recursive: true, force: true });
  }
}

export class Redis {
  static async start({ host, network, folder }) {
    const redis = new Redis();
    redis.server = find("redis-server") ?? find("valkey-server");
    if (!redis.server) throw missing("Redis", "redis-server");
    Object.assign(redis, { host, folder, log: path.join(folder, "redis.log"), address: host.address });
    redis.port = await network.port(6379);
    redis.password = secret();
    await redis.launch();
    return redis;
  }

  get url() {
    return `redis://:${this.password}@${this.address}:${this.port}`;
  }

  async launch() {
    const { address, port, password, folder } = this;
    const config = [`bind ${address}`, `port ${port}`, `requirepass ${password}`, "save \"\"", "appendonly no", "daemonize no", "maxmemory 256mb"];
    const file = path.join(folder, "redis.conf");
    writeFileSync(file, `${config.join("\n")}\n`, { mode: 0o600 });
    this.child = new Child({ name: "redis", command: this.server, args: [file], cwd: folder, log: this.log, wrap: this.host.wrap });
    await this.child.until("listens", () => listens(this));
  }

  kill() {
    return this.child.end("SIGKILL");
  }

  async close() {
    if (this.child) await this.child.end("SIGTERM", 5_000);
  }
}

/** The configuration as it is shipped, so that this is what is tried. */
const HAPROXY = path.join(root, "deploy/haproxy.cfg");

export class Balancer {
  static async start({ host, network, folder, nodes }) {
    const balancer = new Balancer();
    balancer.command = find("haproxy");
    if (!balancer.command) throw missing("HAProxy", "haproxy");
    Object.assign(balancer, { host, log: path.join(folder, "haproxy.log"), address: host.address });
    balancer.port = await network.port(4000);
    balancer.metrics = await network.port(8404);
    balancer.config = path.join(folder, "haproxy.cfg");
    writeFileSync(balancer.config, withServers(readFileSync(HAPROXY, "utf8"), nodes));
    await balancer.launch();
    return balancer;
  }

  get url() {
    return `http://${this.address}:${this.port}`;
  }

  async launch() {
    const { address, port, metrics, command, config, log } = this;
    const env = { MUSTER_BIND: `${address}:${port}`, MUSTER_STATS: `${address}:${metrics}` };
    this.child = new Child({ name: "haproxy", command, args: ["-db", "-f", config], env, log, wrap: this.host.wrap });
    await this.child.until("listens", () => listens(this));
  }

  kill() {
    return this.child.end("SIGKILL");
  }

  async close() {
    if (this.child) await this.child.end("SIGUSR1", 100);
  }
}

/** The nodes there are in place of those that the file names. */
function withServers(text, nodes) {
  const isServer = (line) => /^\s+server\s/.test(line ?? "");
  const servers = nodes.map((node) => `    server ${node.name} ${node.address}:${node.port}`);
  const lines = text.split("\n");
  if (!lines.some(isServer)) throw new Error(`${HAPROXY} names no server`);
  return lines.flatMap((line, at) => (!isServer(line) ? [line] : isServer(lines[at - 1]) ? [] : servers)).join("\n");
}
