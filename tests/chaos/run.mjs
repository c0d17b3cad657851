// One run: a cluster, its load, the steps of a scenario, and the verdict.

import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { sleep } from "../clients/lib/server.mjs";
import { check, report } from "./checker.mjs";
import { Cluster } from "./cluster.mjs";
import { History, readHistories } from "./history.mjs";
import { hash } from "./load/clients.mjs";
import { DEAL_LIMITS } from "./load/dealers.mjs";
import { Load } from "./load/load.mjs";
import { random } from "./scenario.mjs";

/** How often memory and the store are looked at, ms. */
const LOOK_MS = 1_000;
/** How long is waited once all nodes have been seen to show who is online, ms. */
const SETTLED_MS = 500;
/** At the end: until all that was made is acknowledged, until readers have it, until watchers see who is online, ms. */
const END_MS = { acknowledged: 60_000, told: 60_000, watched: 20_000 };

export class Run {
  #faults = new Map();
  #number = 0;
  skipped = [];

  /** `wish`: { scenario, folder, clients, rate, nodes, seed, network, store, set, bounds, say }. */
  constructor(wish) {
    Object.assign(this, { say: () => {}, seed: 1, bounds: {}, ...wish });
    this.dice = random(this.seed);
  }

  /** { ok, text, folder }. Whatever happens, nothing is left running. */
  async run() {
    mkdirSync(this.folder, { recursive: true });
    const file = path.join(this.folder, "history-runner.jsonl");
    this.history = new History(file);
    this.note = (event) => this.history.note(event);
    let stored = [];
    try {
      await this.#start();
      const looking = setInterval(() => this.#look(), LOOK_MS);
      try {
        for (const step of this.scenario.steps) {
          if (this.stopped) break;
          this.say(`  ${step.text}`);
          await this.#step(step);
        }
        stored = await this.#finish();
      } finally {
        clearInterval(looking);
      }
    } catch (error) {
      this.note({ e: "crash", text: `the run itself: ${error.stack}` });
    } finally {
      await this.end();
      this.history.close();
    }
    const events = await readHistories([file, ...(this.load?.files ?? [])]);
    // Not one by one: there may be more than a call takes.
    const verdict = check(events.concat(stored), this.bounds);
    const text = report(verdict, this.title ?? "chaos");
    writeFileSync(path.join(this.folder, "report.txt"), `${text}\n`);
    return { ok: verdict.ok, text, figures: verdict.figures, folder: this.folder, skipped: this.skipped };
  }

  async #start() {
    const { scenario } = this;
    this.cluster = await Cluster.start({
      count: this.nodes, folder: path.join(this.folder, "logs"), network: this.network ?? "auto", store: this.store ?? "postgres",
      transport: scenario.transport ?? "auto", redis: scenario.redis ?? true, before: this.before, set: [...(scenario.deals ? DEAL_LIMITS : []), ...(this.set ?? [])],
    });
    this.cluster.onProblem = (problem) => this.note({ e: "crash", text: problem.text });
    for (const problem of this.cluster.problems) this.note({ e: "crash", text: problem.text });
    if (this.cluster.without) this.say(`Nothing can be cut: ${this.cluster.without}`);
    if (this.cluster.postgres) await this.#auditEpochs();
    this.load = new Load({ cluster: this.cluster, folder: this.folder, clients: this.clients, rate: this.rate, deals: scenario.deals, note: this.note });
    await this.load.start();
    this.say(`${this.nodes} nodes, ${this.clients} clients, ${this.rate} chunks a second, ${this.cluster.network.kind}`);
  }

  /** Asked once to stop: the step under way is the last. */
  stop() {
    this.stopped = true;
  }

  async end() {
    await this.load?.end();
    await this.cluster?.close();
  }

  // Faults, as the checker is told of them.

  #fault(kind, nodes, divides) {
    const id = ++this.#number;
    this.#faults.set(id, { id, kind, nodes });
    this.note({ e: "fault", id, kind, nodes, divides });
    return id;
  }

  #over(fits) {
    for (const fault of [...this.#faults.values()].filter(fits)) {
      this.#faults.delete(fault.id);
      this.note({ e: "over", id: fault.id });
    }
  }

  #has(kind, name) {
    return [...this.#faults.values()].some((fault) => fault.kind === kind && fault.nodes.includes(name));
  }

  // Steps.

  #resolve(name, except = null) {
    if (name !== "any") return name;
    const running = this.cluster.running().map((node) => node.name).filter((one) => one !== except);
    if (running.length === 0) throw new Error("a step is for any node, and none runs");
    const chosen = this.dice.pick(running);
    this.say(`    any is ${chosen}`);
    return chosen;
  }

  #step(step) {
    const name = step.do === "rolling-restart" ? "rollingRestart" : step.do;
    return this[`_${name}`](step);
  }

  async _kill({ node: name }) {
    const node = this.cluster.node(this.#resolve(name));
    if (!node.alive) return;
    this.#over((fault) => fault.kind === "pause" && fault.nodes.includes(node.name));
    this.#fault("kill", [node.name], false);
    await node.kill();
  }

  async _stop({ node: name }) {
    const node = this.cluster.node(this.#resolve(name));
    if (!node.alive) return;
    this.#over((fault) => fault.kind === "pause" && fault.nodes.includes(node.name));
    this.#fault("stop", [node.name], false);
    if (!(await node.stop())) this.note({ e: "late", text: `${node.name} had to be killed: it did not end after SIGTERM` });
  }

  async _restart({ node: name }) {
    const down = this.cluster.nodes.filter((node) => !node.alive).map((node) => node.name);
    for (const one of name === "all" ? down : [this.#resolve(name)]) {
      const node = this.cluster.node(one);
      if (node.alive) await this._stop({ node: one });
      await this.#again(node);
    }
  }

  /** A process is up again, and ready; where something it needs is away, it gets ready later (`expect ready`). */
  async #again(node) {
    node.launch();
    await node.ready(60_000).catch((error) => {
      if (!node.alive) throw error;
      this.note({ e: "late", text: error.message });
    });
    this.#over((fault) => ["kill", "stop"].includes(fault.kind) && fault.nodes.includes(node.name));
  }

  async _pause({ node: name, ms }) {
    const node = this.cluster.node(this.#resolve(name));
    if (!node.alive || node.paused) return;
    this.#fault("pause", [node.name], true);
    node.pause();
    if (ms === null) return;
    await sleep(ms);
    await this._resume({ node: node.name });
  }

  async _resume({ node: name }) {
    const node = this.cluster.node(name);
    node.resume();
    this.#over((fault) => fault.kind === "pause" && fault.nodes.includes(name));
  }

  /** Does something between hosts, for as long as is said; where nothing can be cut, says that it was left out. */
  async #between(step, kind, pairs, begin) {
    if (!this.cluster.network.canCut) {
      this.skipped.push(step.text);
      this.say("    skipped: nothing can be cut here");
      return;
    }
    const hosts = [...new Set(pairs.flat())];
    const absent = ["redis", "postgres"].find((name) => hosts.includes(name) && !this.cluster[name]);
    if (absent) {
      this.skipped.push(step.text);
      this.say(`    skipped: there is no ${absent} in this run`);
      return;
    }
    const id = this.#fault(kind, hosts, true);
    this.#faults.get(id).pairs = pairs;
    for (const [from, to] of pairs) await begin(this.cluster.network, from, to);
    if (step.ms === null || step.ms === undefined) return;
    await sleep(step.ms);
    for (const [from, to] of pairs) await this.cluster.network.clear(from, to);
    this.#over((fault) => fault.id === id);
  }

  #pair(step) {
    const from = this.#resolve(step.from);
    return [from, this.#resolve(step.to, from)];
  }

  _partition(step) {
    const [from, to] = this.#pair(step);
    const pairs = step.oneWay ? [[from, to]] : [[from, to], [to, from]];
    return this.#between(step, "partition", pairs, (network, one, other) => network.cut(one, other));
  }

  _isolate(step) {
    const name = this.#resolve(step.node);
    const others = this.cluster.nodes.map((node) => node.name).filter((one) => one !== name);
    const pairs = others.flatMap((other) => [[name, other], [other, name]]);
    return this.#between(step, "isolate", pairs, (network, one, other) => network.cut(one, other));
  }

  _lossy(step) {
    const [from, to] = this.#pair(step);
    return this.#between(step, "lossy", [[from, to], [to, from]], (network, one, other) => network.lose(one, other, step.percent / 100));
  }

  _slow(step) {
    const [from, to] = this.#pair(step);
    return this.#between(step, "slow", [[from, to], [to, from]], (network, one, other) => network.slow(one, other, step.bytes));
  }

  async _flap(step) {
    const [from, to] = this.#pair(step);
    const pairs = [[from, to], [to, from]];
    const end = Date.now() + step.ms;
    await this.#between({ ...step, ms: 0 }, "flap", pairs, async (network, one, other) => {
      // Both ways together, and once for the pair.
      if (one !== from) return;
      while (Date.now() < end) {
        await network.cut(one, other);
        await network.cut(other, one);
        await sleep(Math.min(step.period, Math.max(0, end - Date.now())));
        await network.clear(one, other);
        await sleep(Math.min(step.period, Math.max(0, end - Date.now())));
      }
    });
  }

  async _heal({ from, to }) {
    await this.cluster.network.clear?.(from, to);
    const isBetween = (fault) => fault.pairs?.some((pair) => from === null || (pair.includes(from) && pair.includes(to)));
    this.#over(isBetween);
    if (from !== null) return;
    for (const node of this.cluster.nodes.filter((one) => one.alive && one.paused)) await this._resume({ node: node.name });
    for (const name of ["redis", "postgres", "balancer"]) {
      if (this.#has(name, name)) await this.#service(name, { what: "start" });
    }
  }

  async #service(name, { what }) {
    const service = this.cluster[name];
    if (!service) {
      this.skipped.push(`${name} ${what}`);
      this.say(`    skipped: there is no ${name} in this run`);
      return;
    }
    if (what !== "start" && service.child.alive) {
      // Where Redis carries what nodes say, its end divides them.
      const divides = name === "redis" && (this.cluster.transport === "redis" || [...this.#faults.values()].some((fault) => fault.pairs));
      this.#fault(name, [name], divides);
      await service.kill();
    }
    if (what !== "kill") {
      await this.cluster.launchService(name);
      this.#over((fault) => fault.kind === name);
    }
  }

  _redis(step) {
    return this.#service("redis", step);
  }

  _postgres(step) {
    return this.#service("postgres", step);
  }

  _balancer(step) {
    return this.#service("balancer", step);
  }

  async _rollingRestart() {
    for (const node of this.cluster.nodes) {
      await this._restart({ node: node.name });
      await this.cluster.seen().catch((error) => this.note({ e: "late", text: error.message }));
    }
  }

  _wait({ ms }) {
    return sleep(ms);
  }

  async _expect({ what, line, ...more }) {
    this.note({ e: "expect", what, line, ...more });
    // The checker judges these from what is noted meanwhile.
    if (what === "clients") return sleep(more.within);
    if (what === "presence") {
      const end = Date.now() + more.within;
      await this.load.nodesAgree(more.within);
      // What was seen here in pieces is noted in one moment or another soon.
      return sleep(Math.max(0, Math.min(SETTLED_MS, end - Date.now())));
    }
    if (what === "ready") {
      const end = Date.now() + more.within;
      for (const node of this.cluster.running()) {
        await node.ready(Math.max(1, end - Date.now())).catch((error) => this.note({ e: "late", text: `line ${line}: ${error.message}` }));
      }
      await this.cluster.seen(Math.max(1, end - Date.now())).catch((error) => this.note({ e: "late", text: `line ${line}: ${error.message}` }));
    }
    if (what === "streams") {
      const behind = await this.load.caughtUp(more.within);
      this.note({ e: "streams", ok: behind.length === 0, text: `line ${line}: ${behind.slice(0, 5).join("; ")}` });
    }
  }

  /** What is looked at all the time. */
  #look() {
    for (const node of this.cluster.nodes.filter((one) => one.alive)) {
      node.noteMemory();
      this.note({ e: "memory", node: node.name, bytes: node.memoryMost * 1024 });
    }
  }

  // The store.

  /** Has PostgreSQL itself note every epoch that falls, and count those that rise: no look in between would miss it. */
  async #auditEpochs() {
    await this.cluster.postgres.query(`
      CREATE TABLE chaos_epochs (at timestamptz, by inet, task uuid, was bigint, is_now bigint);
      CREATE FUNCTION chaos_note() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN INSERT INTO chaos_epochs VALUES (clock_timestamp(), inet_client_addr(), OLD.task, OLD.epoch, NEW.epoch); RETURN NEW; END $$;
      CREATE TRIGGER chaos_epochs BEFORE UPDATE ON streams FOR EACH ROW WHEN (NEW.epoch <> OLD.epoch) EXECUTE FUNCTION chaos_note();`);
  }

  async #noteEpochs() {
    const all = await this.cluster.postgres.query("SELECT at, by, task, was, is_now FROM chaos_epochs ORDER BY at LIMIT 100000");
    writeFileSync(path.join(this.folder, "epochs.txt"), `${all.map((row) => row.join(" ")).join("\n")}\n`);
    const [[raised]] = await this.cluster.postgres.query("SELECT count(*) FROM chaos_epochs WHERE is_now > was");
    this.note({ e: "epochs", raised: Number(raised) });
    for (const [task, was, is] of await this.cluster.postgres.query("SELECT task, was, is_now FROM chaos_epochs WHERE is_now < was LIMIT 1000")) {
      this.note({ e: "epoch", s: task, was: Number(was), is: Number(is) });
    }
  }

  /** All chunks as the store has them, past every node: [{ e: "stored", … }]. */
  async #stored() {
    const t = Date.now();
    if (!this.cluster.postgres) return this.#storedByRest(t);
    const names = new Map(this.load.tasks.map(({ s, id }) => [id, s]));
    const rows = await this.cluster.postgres.query("SELECT task, seq, replace(encode(body, 'base64'), E'\\n', '') FROM chunks ORDER BY task, seq", 120_000);
    return rows.filter(([task]) => names.has(task)).map(([task, seq, body]) => ({ t, e: "stored", s: names.get(task), q: Number(seq), h: hash(JSON.parse(Buffer.from(body, "base64").toString()).content) }));
  }

  /** Of a node alone, whose store is inside it. */
  async #storedByRest(t) {
    const stored = [];
    for (const { s, id, key } of this.load.tasks) {
      for (let [after, more] = [0, true]; more; ) {
        const part = await this.cluster.front.ok("GET", `/api/v1/tasks/${id}/stream?after=${after}`, { key });
        stored.push(...part.chunks.map(({ seq, content }) => ({ t, e: "stored", s, q: seq, h: hash(content) })));
        after = part.chunks.at(-1)?.seq ?? after;
        more = part.more;
      }
    }
    return stored;
  }

  async #finish() {
    this.say("  the end: all is mended, and everything has to come together");
    await this._heal({ from: null, to: null });
    await this._restart({ node: "all" });
    const isQuiet = await this.load.quiet(END_MS.acknowledged);
    for (const text of await this.load.watchersAgree(END_MS.watched)) this.note({ e: "failed", c: text.split(" ")[0], text });
    const stored = await this.#stored();
    await this.load.dealers?.outcome();
    // A task is not ended before all of its output is in.
    if (isQuiet) await this.load.complete(END_MS.told);
    if (this.cluster.postgres) await this.#noteEpochs();
    this.#look();
    return stored;
  }
}
