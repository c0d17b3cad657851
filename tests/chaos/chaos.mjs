// scripts/chaos: runs a scenario, from a file or from a seed, and says what became of it.

import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { forget, runFolder } from "./folders.mjs";
import { Run } from "./run.mjs";
import { CLIENTS_MAX, generate, KINDS, NODES_MAX, parse, RATE_MAX } from "./scenario.mjs";

const USAGE = `usage: scripts/chaos SCENARIO… [options]           scenarios by name (tests/chaos/scenarios) or by file
       scripts/chaos --seed N --minutes M [options]  a random one; the same seed gives the same again
       scripts/chaos --list

  --kinds A,B     kinds of trouble of a random one: ${KINDS.join(", ")}
  --nodes N       nodes (3)
  --clients C     clients (600)
  --rate R        chunks a second, over all (500)
  --network       auto (namespaces where they can be), or loopback
  --store         postgres, or embedded (one node)
  --no-redis      without the way around a broken link; what is done to Redis is left out
  --before BINARY nodes start as this one, of an older version; what is started again is ours (rolling: an upgrade)
  --set NAME=VALUE  a setting of every node; may be given again
  --presence-ms N how long presence may be wrong with nothing broken (5000)
  --print         only prints the scenario
  --keep          keeps logs and histories of a run that went well, too
`;

function refuse(problem) {
  process.stderr.write(`${problem}\n${USAGE}`);
  process.exit(2);
}

const scenarios = path.join(import.meta.dirname, "scenarios");

const options = {
  seed: { type: "string" }, minutes: { type: "string" }, kinds: { type: "string" }, nodes: { type: "string" }, clients: { type: "string" }, rate: { type: "string" },
  network: { type: "string", default: "auto" }, store: { type: "string", default: "postgres" }, set: { type: "string", multiple: true, default: [] }, "no-redis": { type: "boolean" },
  before: { type: "string" }, "presence-ms": { type: "string" }, print: { type: "boolean" }, keep: { type: "boolean" }, list: { type: "boolean" }, help: { type: "boolean", short: "h" },
};

function read() {
  try {
    return parseArgs({ options, allowPositionals: true });
  } catch (error) {
    return refuse(error.message);
  }
}

function number(text, name, most, least = 1) {
  if (text === undefined) return undefined;
  const value = Number(text);
  if (!Number.isInteger(value) || value < least || value > most) refuse(`--${name} is a whole number from ${least} to ${most}`);
  return value;
}

const { values, positionals } = read();
if (values.help) {
  process.stdout.write(USAGE);
  process.exit(0);
}
if (values.list) {
  for (const file of readdirSync(scenarios).filter((one) => one.endsWith(".chaos"))) {
    process.stdout.write(`${file.replace(".chaos", "").padEnd(14)}${readFileSync(path.join(scenarios, file), "utf8").split("\n")[0]}\n`);
  }
  process.exit(0);
}
const given = {
  nodes: number(values.nodes, "nodes", NODES_MAX), clients: number(values.clients, "clients", CLIENTS_MAX), rate: number(values.rate, "rate", RATE_MAX),
};
const seed = number(values.seed, "seed", 2 ** 32 - 1, 0);
const presence = number(values["presence-ms"], "presence-ms", 3_600_000);
if (!["auto", "loopback"].includes(values.network)) refuse("--network is auto or loopback");
if (!["postgres", "embedded"].includes(values.store)) refuse("--store is postgres or embedded");

/** The scenarios that are wanted: [{ title, text }]. */
function wanted() {
  if (positionals.length > 0) {
    return positionals.map((name) => {
      const file = name.includes("/") ? name : path.join(scenarios, `${name}.chaos`);
      try {
        return { title: path.basename(file, ".chaos"), text: readFileSync(file, "utf8") };
      } catch {
        return refuse(`there is no scenario ${name}; --list tells which there are`);
      }
    });
  }
  if (seed === undefined) return refuse("which scenario, or which seed?");
  const minutes = number(values.minutes ?? "5", "minutes", 600);
  const kinds = values.kinds?.split(",") ?? KINDS;
  for (const kind of kinds) if (!KINDS.includes(kind)) refuse(`there is no kind ${kind}: ${KINDS.join(", ")}`);
  const wish = { seed, minutes, kinds, nodes: given.nodes ?? 3, clients: given.clients ?? 600, rate: given.rate ?? 500 };
  return [{ title: `seed-${seed}`, text: generate(wish) }];
}

let failed = false;
let current = null;
let interrupted = 0;
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
  process.on(signal, async () => {
    // Once: an orderly end with a verdict. Twice: at once.
    if (++interrupted === 1 && current) {
      process.stdout.write(`\n${signal}: no further steps\n`);
      current.stop();
    } else {
      await current?.end();
      process.exit(130);
    }
  });
}

for (const { title, text } of wanted()) {
  let scenario;
  try {
    scenario = parse(text);
  } catch (error) {
    refuse(`${title}: ${error.message}`);
  }
  if (values["no-redis"]) scenario.redis = false;
  if (values.print) {
    process.stdout.write(text);
    continue;
  }
  if (interrupted > 0) break;
  const folder = runFolder(title);
  const nodes = given.nodes ?? scenario.nodes ?? 3;
  const say = (line) => process.stdout.write(`${line}\n`);
  say(`\n=== ${title}`);
  current = new Run({
    title, scenario, folder, nodes, say, clients: given.clients ?? scenario.clients ?? 600, rate: given.rate ?? scenario.rate ?? 500,
    seed: seed ?? 1, network: values.network, store: values.store, set: values.set, before: values.before, bounds: presence ? { presence } : {},
  });
  const result = await current.run();
  say(result.text);
  if (result.skipped.length > 0) say(`  Left out: ${result.skipped.join("; ")}`);
  if (!result.ok) {
    failed = true;
    say(`  Histories and logs: ${path.relative(process.cwd(), folder)}`);
    if (positionals.length === 0) say(`  Again: scripts/chaos ${process.argv.slice(2).join(" ")}`);
  } else if (!values.keep) forget(folder);
}
process.exit(interrupted > 0 ? 130 : failed ? 1 : 0);
