// Nodes behind the load balancers of deploy/: the real programs, on the files as they are shipped.

import { spawn } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { chmod, cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { freePort, Server, until } from "../../clients/lib/server.mjs";
import { deploy } from "./files.mjs";

// Debian keeps both in sbin, which is not on everybody's path.
const PATH = `${process.env.PATH}:/usr/sbin:/sbin`;

/** Nodes that know the same users, agents and tasks, each from a copy of one store. */
export class Fleet {
  static async start({ nodes = 3, set = [], seed = async () => null } = {}) {
    const fleet = new Fleet();
    fleet.folder = await mkdtemp(path.join(os.tmpdir(), "muster-fleet-"));
    const folder = (number) => path.join(fleet.folder, `store-${number}`);
    const first = await Server.start({ set, dataDir: folder(1) });
    fleet.servers = [first];
    try {
      fleet.seed = await seed(first);
      await first.stop();
      for (let number = 2; number <= nodes; number++) await cp(folder(1), folder(number), { recursive: true });
      await first.startAgain();
      for (let number = 2; number <= nodes; number++) fleet.servers.push(await Server.start({ set, dataDir: folder(number) }));
    } catch (error) {
      await fleet.end();
      throw error;
    }
    return fleet;
  }

  async end() {
    await Promise.all(this.servers.map((server) => server.end()));
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** A running load balancer; speaks like a node, for whoever takes its address. */
class Balancer extends Server {
  /** Starts it before nodes; `environment` and `args` may depend on its port. */
  static async launch(name, args, { env = {}, port, folder, ready = `http://127.0.0.1:${port}/ready` }) {
    const balancer = new Balancer();
    Object.assign(balancer, { name, port, folder, url: `http://127.0.0.1:${port}`, ws: `ws://127.0.0.1:${port}`, adminToken: "op_test_operator_token" });
    balancer.log = path.join(folder, `${name}.log`);
    // A file, not a pipe: nginx opens what its standard output is once more.
    const log = openSync(balancer.log, "a");
    balancer.process = spawn(name, args, { env: { ...env, PATH }, stdio: ["ignore", log, log] });
    closeSync(log);
    let failure = null;
    balancer.exited = new Promise((resolve) => {
      balancer.process.on("error", (error) => resolve((failure = error)));
      balancer.process.on("exit", (code) => resolve((failure ??= new Error(`${name} ended with ${code}`))));
    });
    await until(`${name} serves`, async () => {
      if (failure) throw new Error(`${failure.message}\n${await balancer.logged()}`);
      return (await fetch(ready).catch(() => null))?.ok;
    });
    return balancer;
  }

  /** Everything it has logged. */
  logged() {
    return readFile(this.log, "utf8").catch(() => "");
  }

  async end() {
    if (this.process.exitCode === null && this.process.signalCode === null) {
      this.process.kill("SIGTERM");
      await this.exited;
    }
    await rm(this.folder, { recursive: true, force: true });
  }
}

const scratch = (name) => mkdtemp(path.join(os.tmpdir(), `muster-${name}-`));

/** The variables that deploy/haproxy.cfg takes; a node that is not there is a port nobody listens on. */
export async function haproxyVariables(servers, port) {
  const nodes = {};
  for (let number = 1; number <= 3; number++) {
    nodes[`MUSTER_NODE_${number}`] = `127.0.0.1:${servers[number - 1]?.port ?? (await freePort())}`;
  }
  return { ...nodes, MUSTER_BIND: `127.0.0.1:${port}`, MUSTER_STATS: `127.0.0.1:${await freePort()}` };
}

async function haproxy(servers) {
  const port = await freePort();
  const env = await haproxyVariables(servers, port);
  const balancer = await Balancer.launch("haproxy", ["-db", "-f", path.join(deploy, "haproxy.cfg")], { env, port, folder: await scratch("haproxy") });
  balancer.own = `http://${env.MUSTER_STATS}`;
  // It begins with all three places as if they were up: a request could go from one where nobody listens to the other.
  await until("its checks know who is there", async () => {
    const metrics = await (await fetch(`${balancer.own}/metrics`)).text();
    const up = /^haproxy_server_status\{[^}]*state="UP"[^}]*\} 1$/gm;
    return [...metrics.matchAll(up)].length === 2 * servers.length;
  });
  return balancer;
}

/** deploy/nginx.conf with the places of this run; nodes in `down` are marked so. */
export async function nginxFile(servers, { port, folder, down = [] }) {
  let text = await readFile(path.join(deploy, "nginx.conf"), "utf8");
  const replace = (what, by, times) => {
    const parts = text.split(what);
    if (parts.length !== times + 1) throw new Error(`${what} is in nginx.conf ${parts.length - 1} times, not ${times}`);
    text = parts.join(by);
  };
  replace("listen 4000;", `listen 127.0.0.1:${port};`, 1);
  for (let number = 1; number <= 3; number++) {
    const server = servers[number - 1];
    const place = `127.0.0.1:${server?.port ?? (await freePort())}${down.includes(server) ? " down" : ""}`;
    replace(`server muster-${number}:4000`, `server ${place}`, 2);
  }
  text = text.replaceAll("/tmp/nginx", path.join(folder, "nginx"));
  const file = path.join(folder, "nginx.conf");
  await writeFile(file, text);
  return file;
}

async function nginx(servers) {
  const [port, folder] = [await freePort(), await scratch("nginx")];
  // Started by root its workers are somebody else, who keeps large bodies there.
  await chmod(folder, 0o711);
  const file = await nginxFile(servers, { port, folder });
  const balancer = await Balancer.launch("nginx", ["-c", file, "-g", "daemon off;"], { port, folder });
  /** As deploy/nginx.conf says: before a node is taken away it is marked, and nginx reads its file again. */
  balancer.takeOut = async (server) => {
    const workers = () => balancer.workers();
    const before = await workers();
    await nginxFile(servers, { port, folder, down: [server] });
    balancer.process.kill("SIGHUP");
    await until("new workers", async () => (await workers()).some((pid) => !before.includes(pid)));
  };
  balancer.workers = async () => {
    const children = await readFile(`/proc/${balancer.process.pid}/task/${balancer.process.pid}/children`, "utf8");
    return children.trim().split(" ");
  };
  return balancer;
}

/** Each load balancer, by its name: started before some nodes. */
export const BALANCERS = { haproxy, nginx };
