// The load of a run: who there is, spread over processes, with one balancer before all of them.

import { fork } from "node:child_process";
import path from "node:path";
import { sleep, until } from "../../clients/lib/server.mjs";
import { environment } from "../child.mjs";
import { Dealers } from "./dealers.mjs";
import { each, range } from "./many.mjs";
import { ownerOf } from "./owner.mjs";

/** Clients that one process can drive. */
const CLIENTS_PER_PROCESS = 300;
const PROCESSES_MAX = 4;
/** Chunks a producer may have under way. */
const WINDOW = 8;
const PAIR_WINDOW = 64;
const PAIR_EVERY_MS = 250;
/** Tasks made in search of one that a certain node owns. */
const TRIES_MAX = 200;
const CHUNK_BYTES = [40, 200, 60, 1_000];

/** How many there are of each: a fifth emits, two read each stream, a twentieth watches, and the rest is online. */
function shares(clients) {
  const watchers = Math.max(1, Math.floor(clients / 20));
  const emitters = Math.max(1, Math.floor(clients / 5));
  const readers = Math.min(2 * emitters, clients - watchers - emitters);
  return { watchers, emitters, readers, online: Math.max(0, clients - watchers - emitters - readers) };
}

export class Load {
  #workers = [];
  #asked = 0;
  #waiting = new Map();

  constructor({ cluster, folder, clients, rate, deals, note }) {
    Object.assign(this, { cluster, folder, clients, rate, note, files: [], tasks: [] });
    if (deals) this.dealers = new Dealers({ cluster, deals, note });
  }

  /** Makes the accounts and the plan of all clients, and has them connect. */
  async start() {
    const { front, nodes } = this.cluster;
    const { watchers, emitters, readers, online } = shares(this.clients);
    const retryable = await this.#retryable(front);
    const hirer = await front.user("Hirer");
    const buyer = await front.agent({ owner: hirer, name: "Buyer" });
    const plans = [];
    const streams = [];
    const add = (plan) => plans.push({ number: plans.length, base: front.url, ...plan });
    const everyMs = Math.max(10, Math.round((emitters * 1_000) / this.rate));
    await each(range(emitters), async (_, n) => {
      const agent = await front.agent({ name: `Emitter ${n}` });
      const task = await front.task(buyer, agent);
      const s = `s${n}`;
      const [kind, window] = [["channel", WINDOW], ["channel", 1], ["rest", 1]][n % 3];
      const stream = { s, task, agent, window, readers: [] };
      streams[n] = stream;
      const common = { s, task: task.id, everyMs, window, bytes: CHUNK_BYTES[n % CHUNK_BYTES.length] };
      // Over REST nobody is online.
      add({ c: `emitter-${n}`, kind, key: agent.key, agent: kind === "rest" ? undefined : agent.id, ...common });
    });
    for (const n of range(readers)) {
      const stream = streams[n % streams.length];
      const c = `reader-${n}`;
      stream.readers.push(c);
      add({ c, kind: n % 6 === 5 ? "events" : "reader", key: hirer.token, s: stream.s, task: stream.task.id });
    }
    for (const n of range(watchers)) add({ c: `watcher-${n}`, kind: "watcher", key: hirer.token });
    await each(range(online), async (_, n) => {
      const agent = await front.agent({ name: `Online ${n}` });
      add({ c: `online-${n}`, kind: "online", key: agent.key, agent: agent.id });
    });
    const direct = [];
    for (const node of nodes) {
      streams.push(await this.#pair(node, { front, hirer, buyer, add, direct }));
      direct.push(`view-${node.name}`);
      add({ c: `view-${node.name}`, kind: "node", key: hirer.token, node: node.name, base: node.url });
    }
    this.tasks = streams.map(({ s, task, agent }) => ({ s, id: task.id, key: agent.key }));
    const planned = streams.map(({ s, window, readers: names, local }) => ({ s, window, readers: names, local }));
    this.note({ e: "plan", streams: planned, nodes: nodes.map((node) => node.name), direct });
    await this.dealers?.start(add);
    await this.#launch(plans, retryable);
  }

  /** Two clients on one node that only need that node: it owns their stream. */
  async #pair(node, { front, hirer, buyer, add, direct }) {
    const agent = await front.agent({ name: `Pair on ${node.name}` });
    const names = this.cluster.nodes.map((one) => one.name);
    let task = null;
    for (let n = 0; n < TRIES_MAX && (task === null || ownerOf(task.id, names) !== node.name); n++) task = await front.task(buyer, agent);
    const s = `pair-${node.name}`;
    const common = { s, task: task.id, base: node.url };
    add({ c: `${s}-emitter`, kind: "channel", key: agent.key, agent: agent.id, everyMs: PAIR_EVERY_MS, window: PAIR_WINDOW, bytes: 60, ...common });
    add({ c: `${s}-reader`, kind: "reader", key: hirer.token, ...common });
    direct.push(`${s}-emitter`, `${s}-reader`);
    return { s, task, agent, window: PAIR_WINDOW, readers: [`${s}-reader`], local: node.name };
  }

  /** Refusals after which one may try again, by the server's own table; and what a channel that has just gone answers. */
  async #retryable(front) {
    const rows = (await front.request("GET", "/api/v1/errors.json")).body;
    const reasons = rows.filter((row) => row.retryable).map((row) => row.reason);
    if (reasons.length === 0) throw new Error("the node's table of errors has none that may be tried again");
    return [...reasons, "unmatched topic"];
  }

  async #launch(plans, retryable) {
    const count = Math.min(PROCESSES_MAX, Math.ceil(plans.length / CLIENTS_PER_PROCESS));
    for (const n of range(count)) {
      const file = path.join(this.folder, `history-${n}.jsonl`);
      this.files.push(file);
      const worker = fork(path.join(import.meta.dirname, "worker.mjs"), { env: environment(), stdio: ["ignore", "inherit", "inherit", "ipc"], detached: true });
      worker.on("message", ({ id, answer }) => {
        this.#waiting.get(id)?.(answer);
        this.#waiting.delete(id);
      });
      worker.on("exit", (code) => {
        worker.isGone = true;
        if (!this.ended) this.note({ e: "crash", text: `a process of the load ended with ${code}` });
      });
      this.#workers.push(worker);
    }
    const parts = range(count).map((n) => plans.filter((plan) => plan.number % count === n));
    await Promise.all(this.#workers.map((worker, n) => this.#ask(worker, "start", { plans: parts[n], file: this.files[n], retryable })));
    // Who cannot come in at first is no good beginning.
    await until("all clients are up", async () => {
      const { down } = await this.state();
      if (down.length > 0) await sleep(100);
      return down.length === 0;
    }, 60_000);
  }

  #ask(worker, ask, more = {}, ms = 60_000) {
    const id = ++this.#asked;
    return new Promise((resolve, reject) => {
      if (worker.isGone) return reject(new Error("a process of the load is gone"));
      const timer = setTimeout(() => reject(new Error(`a process of the load does not answer: ${ask}`)), ms);
      this.#waiting.set(id, (answer) => {
        clearTimeout(timer);
        resolve(answer);
      });
      worker.send({ id, ask, ...more });
    });
  }

  #askAll(ask) {
    return Promise.all(this.#workers.map((worker) => this.#ask(worker, ask)));
  }

  /** { down, online, pending, acked, read } of all. */
  async state() {
    const parts = await this.#askAll("state");
    return {
      down: parts.flatMap((part) => part.down),
      online: parts.flatMap((part) => part.online),
      pending: parts.reduce((sum, part) => sum + part.pending, 0),
      acked: Object.assign({}, ...parts.map((part) => part.acked)),
      read: Object.assign({}, ...parts.map((part) => part.read)),
    };
  }

  /** Waits until every reader has what is acknowledged at this moment; gives those that have not. */
  async caughtUp(ms) {
    const end = Date.now() + ms;
    const { acked } = await this.state();
    for (;;) {
      const { read } = await this.state();
      const behind = Object.entries(read).filter(([, [s, last]]) => last < (acked[s] ?? 0)).map(([c, [s, last]]) => `${c} of ${s} has ${last} of ${acked[s]}`);
      if (behind.length === 0 || Date.now() > end) return behind;
      await sleep(200);
    }
  }

  /** No more new chunks; waits until all there are is acknowledged; false when that takes too long. */
  async quiet(ms) {
    await this.#askAll("quiet");
    this.note({ e: "quiet" });
    const end = Date.now() + ms;
    while (Date.now() < end) {
      if ((await this.state()).pending === 0) return true;
      await sleep(200);
    }
    return false;
  }

  /** Ends all tasks, so that each reader is told; waits until they have been. */
  async complete(ms) {
    const end = Date.now() + ms;
    await each(this.tasks, async (task) => {
      while (Date.now() < end) {
        const answer = await this.cluster.front.request("PUT", `/api/v1/tasks/${task.id}/complete`, { key: task.key, body: { output: "done" } }).catch(() => null);
        // One that was not answered may have been done.
        if (answer?.status === 200 || answer?.error?.code === "TASK_NOT_ACTIVE") return;
        await sleep(200);
      }
    });
    while (Date.now() < end && Object.values((await this.state()).read).some(([, , done]) => !done)) await sleep(200);
  }

  /** What is wrong with what some show of presence, each by its name. */
  async #differences(ask, expected) {
    const { online } = await this.state();
    const shown = Object.assign({}, ...(await this.#askAll(ask)));
    return Object.entries(shown).concat(expected.filter((name) => !shown[name]).map((name) => [name, {}])).flatMap(([name, counts]) => {
      const missing = online.filter((agent) => counts[agent] !== 1);
      const stale = Object.keys(counts).filter((agent) => !online.includes(agent));
      return missing.length + stale.length === 0 ? [] : [`${name} shows ${missing.length} not once, and ${stale.length} who are not online`];
    });
  }

  async #agree(ask, expected, ms) {
    const end = Date.now() + ms;
    for (;;) {
      const wrong = await this.#differences(ask, expected());
      if (wrong.length === 0 || Date.now() > end) return wrong;
      await sleep(200);
    }
  }

  /** Waits until those who watch presence through the balancer see who is online; gives what is wrong with those who do not. */
  watchersAgree(ms) {
    return this.#agree("watched", () => [], ms);
  }

  /** Waits until every node that runs shows who is online; gives what is wrong with the others. */
  nodesAgree(ms) {
    return this.#agree("views", () => this.cluster.running().map((node) => node.name), ms);
  }

  async end() {
    this.ended = true;
    for (const worker of this.#workers.filter((one) => !one.isGone)) {
      const gone = new Promise((resolve) => worker.on("exit", resolve));
      this.#ask(worker, "finish").catch(() => {});
      if (!(await Promise.race([gone.then(() => true), sleep(5_000)]))) worker.kill("SIGKILL");
    }
  }
}
