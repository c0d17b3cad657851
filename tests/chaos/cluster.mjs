// A real cluster that can be broken: nodes, PostgreSQL, Redis, a balancer, and the network between them. Under
// scripts/dev-cluster and scripts/chaos alike.

import { execFile } from "node:child_process";
import { mkdirSync } from "node:fs";
import path from "node:path";
import { promisify } from "node:util";
import { binary, freePort, Server, sleep, until } from "../clients/lib/server.mjs";
import { Child, tail } from "./child.mjs";
import { bestNetwork, Loopback, sweep } from "./network.mjs";
import { Balancer, Postgres, Redis, secret } from "./services.mjs";

const run = promisify(execFile);

const LIMIT = "{tokens=1000000,period_ms=1000,burst=1000000}";

/** Settings of every node of ours: no limit on rates is met by accident, and logs are to be read by people. */
const SETTINGS = [
  ...["joins_per_agent", "chunks_per_stream", "chunks_per_agent", "requests_per_credential", "registrations_per_ip", "connects_per_ip"].map((name) => `limits.${name}=${LIMIT}`),
  "limits.stream_buffer_chunks_max=200000",
  "limits.stream_buffer_bytes_max=67108864",
  "log.format=text",
];

/** A node that is started, stopped and broken; a new process each time, of the same name and with the same store. */
export class Node extends Server {
  launches = 0;
  #shape;

  constructor(name, shape) {
    super();
    this.#shape = shape;
    Object.assign(this, { name, host: shape.host, address: shape.host.address, port: shape.port, adminToken: shape.adminToken });
    this.url = `http://${this.address}:${this.port}`;
    this.ws = `ws://${this.address}:${this.port}`;
    this.dataDir = path.join(shape.folder, `${name}-data`);
    this.log = path.join(shape.folder, `${name}.log`);
    /** Most memory of any of its lives, KiB. */
    this.memoryMost = 0;
    this.paused = false;
  }

  get alive() {
    return this.child?.alive ?? false;
  }

  get pid() {
    return this.child.pid;
  }

  /** Starts a process; it is ready some time later. */
  launch() {
    const { set, env, host, before } = this.#shape;
    // In its first life it may be of an older version.
    const command = this.launches === 0 && before ? before : binary();
    mkdirSync(this.dataDir, { recursive: true });
    const args = ["serve", "--listen", `${this.address}:${this.port}`, "--data-dir", this.dataDir, ...set.flatMap((setting) => ["--set", setting])];
    this.child = new Child({ name: this.name, command, args, env, log: this.log, wrap: host.wrap });
    this.launches++;
    this.restartedAt = Date.now();
    this.paused = false;
    this.child.exited.then(() => this.onEnd?.(this));
  }

  /** Another process by the same name, reached over Redis alone: a mistake that cannot be made on purpose otherwise. */
  async twin() {
    const shape = this.#shape;
    const twin = new Node(this.name, { ...shape, port: await freePort(), set: [...shape.set, "cluster.transport=redis"], folder: path.join(shape.folder, "twin") });
    twin.launch();
    await twin.ready();
    return twin;
  }

  async isReady() {
    if (!this.alive || this.paused) return false;
    return (await fetch(`${this.url}/ready`, { signal: AbortSignal.timeout(2_000) }).catch(() => null))?.ok ?? false;
  }

  ready(ms = 60_000) {
    return this.child.until("is ready", () => this.isReady(), ms);
  }

  noteMemory() {
    const { now, most } = this.child?.memory() ?? { now: 0, most: 0 };
    this.memoryMost = Math.max(this.memoryMost, most);
    return now;
  }

  /** SIGKILL. */
  async kill() {
    this.noteMemory();
    await this.child.end("SIGKILL");
  }

  /** SIGTERM, and its orderly end; false when it had to be killed. */
  async stop(ms = 60_000) {
    this.noteMemory();
    this.paused = false;
    return this.child.end("SIGTERM", ms);
  }

  /** SIGSTOP: it is there, and does nothing. */
  pause() {
    this.paused = true;
    this.child.signal("SIGSTOP");
  }

  resume() {
    this.child.signal("SIGCONT");
    this.paused = false;
  }

  /** What it says of the cluster, or null. */
  async view() {
    const answer = await this.request("GET", "/api/v1/admin/cluster", { token: this.adminToken }).catch(() => null);
    return answer?.status === 200 ? answer.data : null;
  }

  /** Names of the nodes that are up in its eyes, itself among them. */
  async membersUp() {
    const view = await this.view();
    return (view?.nodes ?? []).filter((node) => node.state === "up").map((node) => node.name).sort();
  }
}

/** Certificates for the links between the nodes, by the binary's own command; gives a node's settings. */
async function certificates(folder, names, addresses) {
  const place = path.join(folder, "certificates");
  const sans = [...new Set(addresses)].flatMap((address) => ["--san", address]);
  await run(binary(), ["cluster", "cert", place, ...names.flatMap((name) => ["--node", name]), ...sans], { timeout: 20_000 });
  const file = (name) => path.join(place, name);
  return (name) => [`cluster.ca=${file("ca.pem")}`, `cluster.certificate=${file(`${name}.pem`)}`, `cluster.key=${file(`${name}-key.pem`)}`];
}

export class Cluster {
  nodes = [];
  /** What ended by itself: nothing here should. */
  problems = [];
  #closing = false;

  /**
   * `folder` takes logs and data. `network`: "auto" (namespaces where they can be) or "loopback". `store`: "postgres", or
   * "embedded" for one node alone. `transport`: "auto" or "redis".
   * `before`: the binary that nodes start as; what is started again is ours.
   */
  static async start({ count = 3, folder, network = "auto", redis = true, transport = "auto", store = "postgres", balancer = true, set = [], before }) {
    if (store === "embedded" && count !== 1) throw new Error("nodes share a store only on PostgreSQL");
    if (transport === "redis" && !redis) throw new Error("the transport is Redis, and there is to be none");
    const cluster = new Cluster();
    cluster.folder = folder;
    mkdirSync(folder, { recursive: true });
    await sweep();
    const best = network === "auto" ? await bestNetwork() : { network: new Loopback(), without: "this run is on loopback" };
    Object.assign(cluster, best, { transport, adminToken: `op_${secret()}` });
    try {
      await cluster.#start({ count, redis, store, balancer, set, before });
    } catch (error) {
      await cluster.close();
      throw error;
    }
    return cluster;
  }

  async #start({ count, redis, store, balancer, set, before }) {
    const { network, folder } = this;
    const common = { network, folder };
    if (store === "postgres") this.postgres = await Postgres.start({ host: await network.host("postgres"), ...common });
    // One node has nobody to speak to.
    const isClustered = count > 1;
    if (isClustered && redis) this.redis = await Redis.start({ host: await network.host("redis"), ...common });
    const places = [];
    for (let n = 1; n <= count; n++) {
      const host = await network.host(`n${n}`);
      places.push({ name: `n${n}`, host, port: await network.port(4000), link: await network.port(4100) });
    }
    const certificate = isClustered ? await certificates(folder, places.map(({ name }) => name), places.map(({ host }) => host.address)) : null;
    const clusterSecret = secret();
    for (const place of places) {
      const env = { MUSTER_ADMIN_TOKEN: this.adminToken, NO_COLOR: "1" };
      const settings = [...SETTINGS, "http.allow_plaintext=true", `limits.ip_limit_exempt=${JSON.stringify(network.networks())}`];
      // What holds a password is not for the command line, where everybody sees it.
      if (this.postgres) env.MUSTER_STORE_URL = this.postgres.url;
      if (isClustered) {
        const peers = places.filter((other) => other !== place).map((other) => `${other.host.address}:${other.link}`);
        const own = `${place.host.address}:${place.link}`;
        settings.push("cluster.name=muster-test", `cluster.node=${place.name}`, `cluster.listen=${own}`, `cluster.advertise=${own}`);
        settings.push(`cluster.peers=${JSON.stringify(peers)}`, `cluster.transport=${this.transport}`, ...certificate(place.name));
        env.MUSTER_CLUSTER_SECRET = clusterSecret;
        if (this.redis) env.MUSTER_CLUSTER_REDIS_URL = this.redis.url;
      }
      const node = new Node(place.name, { ...place, env, before, set: [...settings, ...set], folder, adminToken: this.adminToken });
      node.onEnd = () => this.#ended(node.child);
      this.nodes.push(node);
    }
    for (const service of [this.postgres, this.redis]) if (service) this.watch(service.child);
    for (const node of this.nodes) node.launch();
    await Promise.all(this.nodes.map((node) => node.ready()));
    await this.seen();
    if (balancer) {
      this.balancer = await Balancer.start({ host: await network.host("balancer"), nodes: this.nodes, ...common });
      this.watch(this.balancer.child);
      this.front = new Server();
      Object.assign(this.front, { url: this.balancer.url, ws: this.balancer.url.replace("http", "ws"), adminToken: this.adminToken });
      await until("the balancer has a node", async () => (await fetch(`${this.balancer.url}/ready`).catch(() => null))?.ok, 20_000);
    }
  }

  /** An end that nobody asked for is a problem, with the file to look into. */
  watch(child) {
    child.exited.then(() => this.#ended(child));
  }

  #ended(child) {
    if (child.mayEnd || this.#closing) return;
    const how = child.ended.signal ?? `status ${child.ended.code}`;
    const problem = { name: child.name, how, log: child.log, text: `${child.name} ended by itself (${how}); ${child.log} ends:\n${tail(child.log, 10)}` };
    this.problems.push(problem);
    this.onProblem?.(problem);
  }

  node(name) {
    const node = this.nodes.find((one) => one.name === name);
    if (!node) throw new Error(`there is no node ${name}`);
    return node;
  }

  /** Nodes that run and are not paused. */
  running() {
    return this.nodes.filter((node) => node.alive && !node.paused);
  }

  /** Waits until all that run see each other. */
  async seen(ms = 60_000) {
    const expected = this.running().map((node) => node.name).sort();
    if (expected.length < 2) return;
    for (const node of this.running()) {
      await node.child.until(`sees ${expected.join(", ")}`, async () => {
        const up = await node.membersUp();
        if (expected.every((name) => up.includes(name))) return true;
        await sleep(100);
        return false;
      }, ms);
    }
  }

  /** Starts a node again, after it was killed or stopped or instead of that. */
  async restart(name, ms) {
    const node = this.node(name);
    if (node.alive) await node.stop();
    node.launch();
    await node.ready(ms);
  }

  /** Services by the name scenarios give them. */
  service(name) {
    const service = { redis: this.redis, postgres: this.postgres, balancer: this.balancer }[name];
    if (!service) throw new Error(`this cluster has no ${name}`);
    return service;
  }

  async launchService(name) {
    const service = this.service(name);
    if (service.child.alive) return;
    await service.launch();
    this.watch(service.child);
  }

  /** Ends everything, the nodes first so that they may drain. */
  async close({ drain = false } = {}) {
    this.#closing = true;
    await Promise.all(this.nodes.filter((node) => node.alive).map((node) => (drain ? node.stop(15_000) : node.kill())));
    for (const service of [this.balancer, this.redis, this.postgres]) await service?.close();
    await this.network?.close();
  }
}
