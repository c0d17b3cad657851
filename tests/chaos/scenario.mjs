// The language of scenarios: a step a line, plain data, and the generator that writes such lines from a seed. Pure.
//
//   # a comment                        behind a step too
//   nodes 3   clients 60   rate 100    what the run has, each on a line of its own; a command line may say otherwise
//   deals 200 50 50                    messages, negotiations and transfers a second besides
//   transport redis   without redis    how nodes speak
//   kill n2                            SIGKILL; `any` instead of a name is one of those that run
//   restart n2                         a new process, after SIGTERM if the old one runs; `restart all`: all that are down
//   stop n2                            SIGTERM, and its orderly end
//   pause n1 [15s]   resume n1         SIGSTOP and SIGCONT; with a time it is resumed after that
//   partition n1 n2 [10s]              nothing goes either way; also with redis, postgres
//   partition n1 -> n3 [10s]           nothing goes from n1 to n3
//   isolate n1 [10s]                   nothing goes to or from the other nodes
//   flap n1 n2 200ms 10s               cut and whole by turns, for so long
//   slow n1 n2 64KiB/s [10s]           so much a second each way
//   lossy n1 n2 20% [10s]              so many packets get lost each way
//   heal   heal n1 n2                  all that lies between hosts is as it was; also resumes nodes (without names)
//   redis kill|start   postgres kill|start|restart   balancer kill|start
//   rolling-restart                    each node in turn: stopped, started, ready, before the next
//   wait 5s
//   expect ready within 60s            every node that runs is ready and sees the others
//   expect presence within 5s          every node shows who is online
//   expect streams exact [within 30s]  every reader has what is acknowledged
//   expect clients 95% within 10s      so many clients are back
//   expect memory below 400MiB         of each node, all through the run
//   expect silence below 5s            between two messages of a pair on one node
//   repeat 3 … end                     the lines between, so many times

/** A scenario that cannot be read: which line, and why. */
export class ScenarioError extends Error {
  constructor(line, reason) {
    super(`line ${line}: ${reason}`);
    this.line = line;
  }
}

/** Steps of a scenario, after repeats. */
const STEPS_MAX = 10_000;
/** Longest wait of one step, ms. */
const WAIT_MS_MAX = 3_600_000;
export const NODES_MAX = 9;
export const CLIENTS_MAX = 5_000;
export const RATE_MAX = 20_000;

const UNITS = { ms: 1, s: 1_000, min: 60_000 };
const SIZES = { KiB: 1024, MiB: 1024 ** 2, GiB: 1024 ** 3 };
const SERVICES = ["redis", "postgres", "balancer"];

class Words {
  constructor(line, text) {
    Object.assign(this, { line, words: text.split(/\s+/).filter(Boolean), at: 0 });
  }

  fail(reason) {
    throw new ScenarioError(this.line, reason);
  }

  get isDone() {
    return this.at === this.words.length;
  }

  peek() {
    return this.words[this.at];
  }

  next(what) {
    return this.isDone ? this.fail(`${what} is missing`) : this.words[this.at++];
  }

  word(...allowed) {
    const word = this.next(allowed.join(" or "));
    return allowed.includes(word) ? word : this.fail(`"${word}" where ${allowed.map((one) => `"${one}"`).join(" or ")} must be`);
  }

  #measure(what, units, most) {
    const text = this.next(what);
    const [, digits, unit] = /^(\d+(?:\.\d+)?)([A-Za-z%/]+)$/.exec(text) ?? [];
    const value = Math.round(Number(digits) * (units[unit] ?? NaN));
    if (!(value > 0)) this.fail(`"${text}" is no ${what}, which is a number with ${Object.keys(units).join(", ")}`);
    return value <= most ? value : this.fail(`"${text}" is more than there may be`);
  }

  time(what = "time") {
    return this.#measure(what, UNITS, WAIT_MS_MAX);
  }

  optionalTime() {
    return this.isDone ? null : this.time();
  }

  size(what = "size") {
    return this.#measure(what, SIZES, 2 ** 40);
  }

  speed() {
    return this.#measure("speed", Object.fromEntries(Object.entries(SIZES).map(([unit, size]) => [`${unit}/s`, size])), 2 ** 40);
  }

  percent() {
    return this.#measure("share", { "%": 1 }, 100);
  }

  count(what, least, most) {
    const text = this.next(what);
    const value = Number(text);
    return /^\d+$/.test(text) && value >= least && value <= most ? value : this.fail(`${what} is a whole number from ${least} to ${most}, not "${text}"`);
  }

  node() {
    const name = this.next("a node");
    return name === "any" || /^n[1-9]$/.test(name) ? name : this.fail(`"${name}" is no node: n1 to n${NODES_MAX}, or any`);
  }

  /** One end of a link. */
  host() {
    return ["redis", "postgres"].includes(this.peek()) ? this.next() : this.node();
  }

  pair() {
    const [from, to] = [this.host(), this.host()];
    if (from === to && from !== "any") this.fail(`${from} has no link to itself`);
    if (![from, to].some((end) => end.startsWith("n") || end === "any")) this.fail("one end of a link is a node");
    return { from, to };
  }

  end() {
    if (!this.isDone) this.fail(`"${this.peek()}" is too much`);
  }
}

const deals = (words) => {
  const [messages, negotiations, transfers] = ["messages", "negotiations", "transfers"].map((what) => words.count(what, 1, RATE_MAX));
  return { messages, negotiations, transfers };
};

const HEADERS = {
  nodes: (words) => ({ nodes: words.count("nodes", 1, NODES_MAX) }),
  clients: (words) => ({ clients: words.count("clients", 1, CLIENTS_MAX) }),
  rate: (words) => ({ rate: words.count("rate", 1, RATE_MAX) }),
  deals: (words) => ({ deals: deals(words) }),
  transport: (words) => ({ transport: words.word("auto", "redis") }),
  without: (words) => ({ redis: words.word("redis") !== "redis" }),
};

const EXPECTATIONS = {
  ready: (words) => ({ within: within(words) }),
  presence: (words) => ({ within: within(words) }),
  streams: (words) => {
    words.word("exact");
    return { within: words.isDone ? 30_000 : within(words) };
  },
  clients: (words) => ({ percent: words.percent(), within: within(words) }),
  memory: (words) => {
    words.word("below");
    return { bytes: words.size() };
  },
  silence: (words) => {
    words.word("below");
    return { below: words.time() };
  },
};

function within(words) {
  words.word("within");
  return words.time();
}

const control = (words) => ({ what: words.word("kill", "start") });

const STEPS = {
  kill: (words) => ({ node: words.node() }),
  restart: (words) => (words.peek() === "all" ? { node: words.next() } : { node: words.node() }),
  stop: (words) => ({ node: words.node() }),
  pause: (words) => ({ node: words.node(), ms: words.optionalTime() }),
  resume: (words) => ({ node: words.node() }),
  partition: (words) => {
    if (words.words[2] !== "->") return { ...words.pair(), oneWay: false, ms: words.optionalTime() };
    words.words.splice(2, 1);
    return { ...words.pair(), oneWay: true, ms: words.optionalTime() };
  },
  isolate: (words) => ({ node: words.node(), ms: words.optionalTime() }),
  flap: (words) => ({ ...words.pair(), period: words.time("period"), ms: words.time() }),
  slow: (words) => ({ ...words.pair(), bytes: words.speed(), ms: words.optionalTime() }),
  lossy: (words) => ({ ...words.pair(), percent: words.percent(), ms: words.optionalTime() }),
  heal: (words) => (words.isDone ? { from: null, to: null } : words.pair()),
  redis: control,
  balancer: control,
  postgres: (words) => ({ what: words.word("kill", "start", "restart") }),
  "rolling-restart": () => ({}),
  wait: (words) => ({ ms: words.time() }),
  expect: (words) => {
    const what = words.next("what to expect");
    if (!Object.hasOwn(EXPECTATIONS, what)) words.fail(`"${what}" is nothing to expect: ${Object.keys(EXPECTATIONS).join(", ")}`);
    return { what, ...EXPECTATIONS[what](words) };
  },
};

/** Reads a scenario: { nodes, clients, rate, transport, redis, steps: [{ line, text, do, … }] }. */
export function parse(text) {
  const scenario = { steps: [] };
  let block = null;
  text.split("\n").forEach((raw, index) => {
    const line = index + 1;
    const source = raw.replace(/#.*$/, "").trim();
    if (source === "") return;
    const words = new Words(line, source);
    const name = words.next();
    if (Object.hasOwn(HEADERS, name)) {
      if (scenario.steps.length > 0 || block) words.fail(`"${name}" comes before the steps`);
      Object.assign(scenario, HEADERS[name](words));
    } else if (name === "repeat") {
      if (block) words.fail("a repeat inside a repeat");
      block = { line, count: words.count("how often", 1, 1_000), steps: [] };
    } else if (name === "end") {
      if (!block) words.fail("an end without a repeat");
      for (let n = 0; n < block.count; n++) scenario.steps.push(...block.steps);
      block = null;
    } else if (Object.hasOwn(STEPS, name)) {
      (block ?? scenario).steps.push({ line, text: source, do: name, ...STEPS[name](words) });
    } else {
      words.fail(`"${name}" is no step: ${Object.keys(STEPS).join(", ")}, repeat`);
    }
    words.end();
    if (scenario.steps.length > STEPS_MAX) words.fail(`more than ${STEPS_MAX} steps`);
  });
  if (block) throw new ScenarioError(block.line, "a repeat without an end");
  check(scenario);
  return scenario;
}

/** What a step names must be there. */
function check(scenario) {
  const names = ["any", "all", ...Array.from({ length: scenario.nodes ?? 3 }, (_, n) => `n${n + 1}`), ...SERVICES];
  for (const step of scenario.steps) {
    for (const name of [step.node, step.from, step.to]) {
      if (name && !names.includes(name)) throw new ScenarioError(step.line, `there is no ${name}: the nodes are n1 to n${scenario.nodes ?? 3}`);
    }
    const usesRedis = step.do === "redis" || [step.from, step.to].includes("redis");
    if (usesRedis && scenario.redis === false) throw new ScenarioError(step.line, "this run is without redis");
  }
}

/** Numbers from a seed, the same on every machine: SplitMix32. */
export function random(seed) {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x9e3779b9) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return ((z ^ (z >>> 15)) >>> 0) / 2 ** 32;
  };
  const below = (n) => Math.floor(next() * n);
  return { next, below, between: (from, to) => from + below(to - from + 1), pick: (items) => items[below(items.length)] };
}

/** Kinds of trouble for the generator: how long it takes in s at most, and its lines. */
const TROUBLES = {
  kill: (dice, nodes) => {
    const node = dice.pick(nodes);
    return [`kill ${node}`, `wait ${dice.between(1, 8)}s`, `restart ${node}`, "expect ready within 60s"];
  },
  stop: (dice, nodes) => {
    const node = dice.pick(nodes);
    return [`stop ${node}`, `wait ${dice.between(1, 5)}s`, `restart ${node}`, "expect ready within 60s"];
  },
  pause: (dice, nodes) => [`pause ${dice.pick(nodes)} ${dice.pick([1, 3, 5, 8, 15, 20])}s`],
  partition: (dice, nodes) => {
    const [from, to] = two(dice, nodes);
    return [`partition ${from} ${dice.below(2) ? "-> " : ""}${to} ${dice.between(2, 15)}s`];
  },
  isolate: (dice, nodes) => [`isolate ${dice.pick(nodes)} ${dice.between(2, 15)}s`],
  flap: (dice, nodes) => {
    const [from, to] = two(dice, nodes);
    return [`flap ${from} ${to} ${dice.pick([100, 200, 500, 1000, 3000])}ms ${dice.between(5, 15)}s`];
  },
  slow: (dice, nodes) => {
    const [from, to] = two(dice, nodes);
    return [`slow ${from} ${to} ${dice.pick([16, 64, 256])}KiB/s ${dice.between(5, 15)}s`];
  },
  lossy: (dice, nodes) => {
    const [from, to] = two(dice, nodes);
    return [`lossy ${from} ${to} ${dice.pick([5, 15, 30, 60])}% ${dice.between(5, 15)}s`];
  },
  redis: (dice) => ["redis kill", `wait ${dice.between(1, 10)}s`, "redis start"],
  // Nodes speak over Redis while a link is cut; then that goes too.
  fallback: (dice, nodes) => {
    const [from, to] = two(dice, nodes);
    return [`partition ${from} ${to}`, `wait ${dice.between(3, 10)}s`, "redis kill", `wait ${dice.between(1, 5)}s`, "redis start", `wait ${dice.between(1, 5)}s`, "heal"];
  },
  postgres: (dice) => (dice.below(2) ? ["postgres restart"] : ["postgres kill", `wait ${dice.between(1, 5)}s`, "postgres start"]),
  // Two troubles at a time.
  both: (dice, nodes) => {
    const [from, to] = two(dice, nodes);
    return [`partition ${from} ${to}`, `wait ${dice.between(1, 6)}s`, `kill ${to}`, `wait ${dice.between(1, 6)}s`, "heal", `restart ${to}`, "expect ready within 60s"];
  },
};

/** What there is for --kinds. */
export const KINDS = Object.keys(TROUBLES);
const NEED_TWO = ["partition", "isolate", "flap", "slow", "lossy", "fallback", "both"];

function two(dice, nodes) {
  const from = dice.pick(nodes);
  return [from, dice.pick(nodes.filter((node) => node !== from))];
}

/** Milliseconds that steps take by what they say. */
export function duration(steps) {
  return steps.reduce((sum, step) => sum + (step.ms ?? 0), 0);
}

/** A scenario of so many minutes, as text: the same for the same wish. */
export function generate({ seed, minutes, kinds = KINDS, nodes = 3, clients = 600, rate = 500 }) {
  const dice = random(seed);
  const names = Array.from({ length: nodes }, (_, n) => `n${n + 1}`);
  const possible = kinds.filter((kind) => nodes > 1 || (!NEED_TWO.includes(kind) && kind !== "redis"));
  if (possible.length === 0) throw new Error(`none of ${kinds.join(", ")} can be done to ${nodes} node`);
  const lines = [`# seed ${seed}`, `nodes ${nodes}`, `clients ${clients}`, `rate ${rate}`, "wait 5s"];
  let budget = minutes * 60_000;
  while (budget > 0) {
    const trouble = TROUBLES[dice.pick(possible)](dice, names);
    const some = [...trouble, `wait ${dice.between(2, 10)}s`];
    // Now and then it is given the time to come right, and has to.
    if (dice.below(3) === 0) some.push("expect presence within 5s", "expect streams exact within 60s");
    lines.push(...some);
    // A restart takes its time too.
    budget -= Math.max(5_000, duration(parse([`nodes ${nodes}`, ...some].join("\n")).steps));
  }
  lines.push("heal", "restart all", "expect ready within 60s", "wait 10s", "expect presence within 5s", "expect streams exact within 60s");
  return `${lines.join("\n")}\n`;
}
