// A process of ours: in a network namespace where there is one, with a log file, and gone when the runner is gone.

import { spawn } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";
import { existsSync } from "node:fs";
import { sleep, until } from "../clients/lib/server.mjs";

/** Where a program may be that is not on every PATH. */
const PLACES = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/local/bin"];

/** The path of a program, or null. */
export function find(program, places = []) {
  const folders = [...(process.env.PATH ?? "").split(":"), ...PLACES, ...places];
  const found = folders.filter(Boolean).map((folder) => `${folder}/${program}`);
  return found.find((path) => existsSync(path)) ?? null;
}

/** What a process needs of the environment. */
export const environment = (more = {}) => ({ PATH: [process.env.PATH, ...PLACES].join(":"), LANG: "C.UTF-8", ...more });

/** The last lines of a file. */
export function tail(file, lines = 20) {
  try {
    return readFileSync(file, "utf8").trimEnd().split("\n").slice(-lines).join("\n");
  } catch {
    return "";
  }
}

export class Child {
  /**
   * `wrap` puts the command where it belongs (see network.mjs). `deathSignal` is what the kernel sends when the runner is
   * gone, however that came: no process outlives it.
   */
  constructor({ name, command, args = [], env = {}, cwd, log, wrap = (words) => words, user = null, deathSignal = "KILL" }) {
    this.name = name;
    this.log = log;
    /** Whether its end is wanted; any other end is a problem. */
    this.mayEnd = false;
    const words = wrap([...leash(user, deathSignal), command, ...args]);
    const file = openSync(log, "a");
    this.process = spawn(words[0], words.slice(1), { env: environment(env), cwd, stdio: ["ignore", file, file] });
    closeSync(file);
    this.pid = this.process.pid;
    this.ended = null;
    this.exited = new Promise((resolve) => {
      const end = (code, signal) => resolve((this.ended = { code, signal }));
      this.process.on("exit", end);
      this.process.on("error", (error) => end(error.message, null));
    });
  }

  get alive() {
    return this.ended === null && this.pid !== undefined;
  }

  signal(signal) {
    if (this.alive) this.process.kill(signal);
  }

  /** Sends a signal and waits for the end; what takes longer is killed, which gives false. */
  async end(signal = "SIGTERM", ms = 30_000) {
    this.mayEnd = true;
    this.signal(signal);
    // One that is stopped hears nothing but SIGKILL.
    if (signal !== "SIGKILL") this.signal("SIGCONT");
    const inTime = await Promise.race([this.exited.then(() => true), sleep(ms).then(() => false)]);
    if (!inTime) {
      this.signal("SIGKILL");
      await this.exited;
    }
    return inTime;
  }

  /** Waits until `check` holds; fails at once when the process has ended. */
  async until(what, check, ms) {
    await until(`${this.name}: ${what}`, async () => {
      if (!this.alive) throw new Error(`${this.name} ended (${this.ended?.code ?? this.ended?.signal}); ${this.log} ends:\n${tail(this.log)}`);
      return check();
    }, ms);
  }

  /** Memory in KiB: what it has now and the most it ever had. */
  memory() {
    try {
      const status = readFileSync(`/proc/${this.pid}/status`, "utf8");
      const field = (name) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(status)?.[1] ?? 0);
      return { now: field("VmRSS"), most: field("VmHWM") };
    } catch {
      return { now: 0, most: 0 };
    }
  }
}

/** The words before a command that change its user and tie it to the runner's life. */
function leash(user, deathSignal) {
  if (process.platform !== "linux" || find("setpriv") === null) return [];
  const identity = user === null ? [] : [`--reuid=${user}`, `--regid=${user}`, "--clear-groups"];
  return [find("setpriv"), ...identity, `--pdeathsig=${deathSignal}`];
}
