// Where the processes of a cluster are, and what lies between them. Either each has a network namespace of its own, and
// rules of the kernel cut, thin out and slow down what goes from one to the other; or all are on the loopback interface,
// where nothing can be cut.

import { execFile, execFileSync } from "node:child_process";
import { readdirSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { freePort } from "../clients/lib/server.mjs";
import { environment, find } from "./child.mjs";

const run = promisify(execFile);
const options = () => ({ env: environment(), timeout: 20_000 });

/** Namespaces and folders of ours begin so, with the runner's process id behind it. */
const PREFIX = "muster-chaos-";

const isAlive = (pid) => {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM";
  }
};

/** A name no other runner has. */
export const ownName = (what) => `${PREFIX}${process.pid}-${what}`;

/** The owner of a thing by its name, when that is one of ours. */
const ownerOf = (name) => (name.startsWith(PREFIX) ? Number(/^\d+/.exec(name.slice(PREFIX.length))?.[0] ?? 0) : 0);
const isLeftOver = (name) => ownerOf(name) > 0 && !isAlive(ownerOf(name));

/** Removes what runners that are gone have left: namespaces with the processes in them, and temporary folders. */
export async function sweep() {
  const swept = [];
  if (find("ip") !== null) {
    const { stdout } = await run("ip", ["netns", "list"], options()).catch(() => ({ stdout: "" }));
    const names = stdout.split("\n").map((line) => line.split(" ")[0]);
    for (const name of names.filter(isLeftOver)) {
      await removeNamespace(name);
      swept.push(name);
    }
  }
  for (const name of readdirSync(os.tmpdir()).filter(isLeftOver)) {
    rmSync(path.join(os.tmpdir(), name), { recursive: true, force: true });
    swept.push(name);
  }
  return swept;
}

async function removeNamespace(name) {
  const { stdout } = await run("ip", ["netns", "pids", name], options()).catch(() => ({ stdout: "" }));
  for (const pid of stdout.split("\n").filter(Boolean).map(Number)) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // It went by itself.
    }
  }
  await run("ip", ["netns", "delete", name], options()).catch(() => {});
}

/** All on 127.0.0.1, each on ports of its own. */
export class Loopback {
  kind = "loopback";
  canCut = false;

  async host(name) {
    return { name, address: "127.0.0.1", wrap: (words) => words };
  }

  port() {
    return freePort();
  }

  /** Those whose addresses stand for nobody. */
  networks() {
    return ["127.0.0.0/8"];
  }

  async close() {}
}

/** Why there can be no namespaces here, or null. */
export async function whyNoNamespaces() {
  if (process.platform !== "linux") return "this is not Linux";
  if (process.getuid() !== 0) return "this is not run as root";
  for (const program of ["ip", "iptables", "tc"]) {
    if (find(program) === null) return `${program} is not installed`;
  }
  const probe = ownName("probe");
  try {
    await run("ip", ["netns", "add", probe], options());
    const cut = ["netns", "exec", probe, "iptables", "-w", "-A", "INPUT", "-s", "10.0.0.1", "-j", "DROP"];
    await run("ip", cut, options());
    return null;
  } catch (error) {
    return `the kernel refuses: ${String(error.stderr || error.message).trim().split("\n").at(-1)}`;
  } finally {
    await run("ip", ["netns", "delete", probe], options()).catch(() => {});
  }
}

/** Bytes a link that is slow may have waiting, so that slowness becomes delay before it becomes loss. */
const SLOW_QUEUE_BYTES = 256 * 1024;

/** A namespace for each host, joined by a bridge that is in one of its own. */
export class Namespaces {
  kind = "namespaces";
  canCut = true;
  #hosts = new Map();
  /** Rules that are in force: key to the commands that take them back. */
  #rules = new Map();
  #closed = false;

  static async open() {
    const network = new Namespaces();
    // Runs that begin in one moment must not choose one net: at random, and none that is taken.
    const { stdout } = await run("ip", ["-4", "-o", "addr", "show"], options());
    const routes = (await run("ip", ["-4", "route", "show"], options())).stdout;
    do {
      network.net = `10.${200 + Math.floor(Math.random() * 50)}.${Math.floor(Math.random() * 256)}`;
    } while (`${stdout}${routes}`.includes(`${network.net}.`));
    network.hub = ownName("hub");
    // However the runner ends, short of SIGKILL, which leaves it to the next one's sweep.
    process.on("exit", () => network.#removeNow());
    const outside = `mc${process.pid}up`;
    await network.#ip(["netns", "add", network.hub]);
    await network.#in(network.hub, ["ip", "link", "add", "br0", "type", "bridge"]);
    await network.#in(network.hub, ["ip", "link", "set", "br0", "up"]);
    await network.#ip(["link", "add", outside, "type", "veth", "peer", "name", "outer", "netns", network.hub]);
    await network.#in(network.hub, ["ip", "link", "set", "outer", "master", "br0", "up"]);
    await network.#ip(["addr", "add", `${network.net}.1/24`, "dev", outside]);
    await network.#ip(["link", "set", outside, "up"]);
    return network;
  }

  #ip(args) {
    return run("ip", args, options());
  }

  #in(namespace, words) {
    return run("ip", ["netns", "exec", namespace, ...words], options());
  }

  /** A place for a process: { name, address, wrap }. */
  async host(name) {
    const namespace = ownName(name);
    const number = this.#hosts.size + 2;
    const host = { name, namespace, address: `${this.net}.${number}` };
    host.wrap = (words) => [find("ip"), "netns", "exec", namespace, ...words];
    this.#hosts.set(name, host);
    await this.#ip(["netns", "add", namespace]);
    await this.#ip(["link", "add", "eth0", "netns", namespace, "type", "veth", "peer", "name", `p${number}`, "netns", this.hub]);
    await this.#in(this.hub, ["ip", "link", "set", `p${number}`, "master", "br0", "up"]);
    await this.#in(namespace, ["ip", "addr", "add", `${host.address}/24`, "dev", "eth0"]);
    await this.#in(namespace, ["ip", "link", "set", "lo", "up"]);
    await this.#in(namespace, ["ip", "link", "set", "eth0", "up"]);
    // Without a way out: nothing a test does leaves this machine.
    return host;
  }

  async port(wanted) {
    return wanted;
  }

  networks() {
    return ["127.0.0.0/8", `${this.net}.0/24`];
  }

  /** Packets from one host to another are dropped where they arrive, without a word to anybody. */
  cut(from, to) {
    return this.#rule(`cut ${from} ${to}`, to, ["INPUT", "-s", this.#hosts.get(from).address, "-j", "DROP"]);
  }

  /** Of the packets from one host to another this share (0 to 1) is dropped. */
  lose(from, to, share) {
    const some = ["-m", "statistic", "--mode", "random", "--probability", share.toFixed(4)];
    return this.#rule(`lose ${from} ${to}`, to, ["INPUT", "-s", this.#hosts.get(from).address, ...some, "-j", "DROP"]);
  }

  /** From one host to another go so many bytes a second; more waits, for as long as there is room. */
  async slow(from, to, bytesPerSecond) {
    const { namespace } = this.#hosts.get(from);
    const target = this.#hosts.get(to);
    const key = `slow ${from} ${to}`;
    if (this.#rules.has(key)) await this.#unrule(key);
    const tc = (...words) => this.#in(namespace, ["tc", ...words]);
    const slowed = [...this.#rules.keys()].filter((rule) => rule.startsWith(`slow ${from} `));
    // All else goes as fast as ever.
    if (slowed.length === 0) {
      await tc("qdisc", "add", "dev", "eth0", "root", "handle", "1:", "htb", "default", "1");
      await tc("class", "add", "dev", "eth0", "parent", "1:", "classid", "1:1", "htb", "rate", "10gbit", "quantum", "60000");
    }
    const id = `1:${Number(target.address.split(".").at(-1)) + 0x10}`;
    await tc("class", "add", "dev", "eth0", "parent", "1:", "classid", id, "htb", "rate", `${bytesPerSecond * 8}bit`, "quantum", "3000");
    await tc("qdisc", "add", "dev", "eth0", "parent", id, "bfifo", "limit", String(SLOW_QUEUE_BYTES));
    const match = ["protocol", "ip", "prio", "1", "u32", "match", "ip", "dst", `${target.address}/32`, "flowid", id];
    await tc("filter", "add", "dev", "eth0", "parent", "1:", ...match);
    this.#rules.set(key, { namespace, takeBack: null });
  }

  async #rule(key, host, words) {
    if (this.#rules.has(key)) await this.#unrule(key);
    const { namespace } = this.#hosts.get(host);
    await this.#in(namespace, ["iptables", "-w", "-A", ...words]);
    this.#rules.set(key, { namespace, takeBack: ["iptables", "-w", "-D", ...words] });
  }

  async #unrule(key) {
    const rule = this.#rules.get(key);
    if (!rule) return;
    this.#rules.delete(key);
    if (rule.takeBack) return this.#in(rule.namespace, rule.takeBack);
    // Slowness of one host is taken back as a whole, and what stays of it put up again would be as slow anew.
    const [, from] = key.split(" ");
    for (const other of [...this.#rules.keys()]) if (other.startsWith(`slow ${from} `)) this.#rules.delete(other);
    return this.#in(rule.namespace, ["tc", "qdisc", "del", "dev", "eth0", "root"]);
  }

  /** Everything is as it was: between two hosts, or everywhere. */
  async clear(one = null, other = null) {
    for (const key of [...this.#rules.keys()]) {
      const [, from, to] = key.split(" ");
      const isBetween = one === null || (from === one && to === other) || (from === other && to === one);
      if (isBetween && this.#rules.has(key)) await this.#unrule(key);
    }
  }

  async close() {
    this.#closed = true;
    for (const { namespace } of this.#hosts.values()) await removeNamespace(namespace);
    await removeNamespace(this.hub);
  }

  #removeNow() {
    if (this.#closed) return;
    for (const name of [...[...this.#hosts.values()].map((host) => host.namespace), this.hub]) {
      try {
        execFileSync(find("ip"), ["netns", "delete", name], { stdio: "ignore", timeout: 2_000 });
      } catch {
        // The next runner sweeps.
      }
    }
  }
}

/** The best network there is: { network, without } with the reason when nothing can be cut. */
export async function bestNetwork() {
  const without = await whyNoNamespaces();
  return { network: without === null ? await Namespaces.open() : new Loopback(), without };
}
