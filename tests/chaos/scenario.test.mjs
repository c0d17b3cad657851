// The language of scenarios and their generator.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { duration, generate, KINDS, parse, random, ScenarioError } from "./scenario.mjs";

const only = (text) => {
  const { steps } = parse(text);
  assert.equal(steps.length, 1);
  const { line, text: source, ...step } = steps[0];
  return step;
};

test("each step is read as what it says", () => {
  const link = { from: "n1", to: "n2" };
  const cases = [
    ["kill n2", { do: "kill", node: "n2" }],
    ["kill any  # whoever runs", { do: "kill", node: "any" }],
    ["restart all", { do: "restart", node: "all" }],
    ["stop n3", { do: "stop", node: "n3" }],
    ["pause n1 15s", { do: "pause", node: "n1", ms: 15_000 }],
    ["pause n1", { do: "pause", node: "n1", ms: null }],
    ["resume n1", { do: "resume", node: "n1" }],
    ["partition n1 n2", { do: "partition", ...link, oneWay: false, ms: null }],
    ["partition n1 -> n2 1.5s", { do: "partition", ...link, oneWay: true, ms: 1_500 }],
    ["partition n1 postgres 2min", { do: "partition", from: "n1", to: "postgres", oneWay: false, ms: 120_000 }],
    ["isolate n1 10s", { do: "isolate", node: "n1", ms: 10_000 }],
    ["flap n1 n2 200ms 10s", { do: "flap", ...link, period: 200, ms: 10_000 }],
    ["slow n1 n2 64KiB/s", { do: "slow", ...link, bytes: 65_536, ms: null }],
    ["lossy n1 n2 20% 5s", { do: "lossy", ...link, percent: 20, ms: 5_000 }],
    ["heal", { do: "heal", from: null, to: null }],
    ["heal n1 n2", { do: "heal", ...link }],
    ["redis kill", { do: "redis", what: "kill" }],
    ["postgres restart", { do: "postgres", what: "restart" }],
    ["balancer start", { do: "balancer", what: "start" }],
    ["rolling-restart", { do: "rolling-restart" }],
    ["wait 5s", { do: "wait", ms: 5_000 }],
    ["expect ready within 1min", { do: "expect", what: "ready", within: 60_000 }],
    ["expect presence within 5s", { do: "expect", what: "presence", within: 5_000 }],
    ["expect streams exact", { do: "expect", what: "streams", within: 30_000 }],
    ["expect clients 95% within 10s", { do: "expect", what: "clients", percent: 95, within: 10_000 }],
    ["expect memory below 400MiB", { do: "expect", what: "memory", bytes: 400 * 1024 ** 2 }],
    ["expect silence below 5s", { do: "expect", what: "silence", below: 5_000 }],
  ];
  for (const [text, step] of cases) assert.deepEqual(only(text), step, text);
});

test("what a run has stands before the steps, and lines are repeated", () => {
  const text = "nodes 5\nclients 60\nrate 100\ntransport redis\n\n# now\nrepeat 3\n  kill n5\n  wait 1s\nend\nheal\n";
  const { steps, ...run } = parse(text);
  assert.deepEqual(run, { nodes: 5, clients: 60, rate: 100, transport: "redis" });
  assert.deepEqual(steps.map((step) => step.do), ["kill", "wait", "kill", "wait", "kill", "wait", "heal"]);
  assert.deepEqual(steps.map((step) => step.line), [8, 9, 8, 9, 8, 9, 11]);
  assert.equal(duration(steps), 3_000);
});

test("what cannot be read is told by line and by reason", () => {
  const cases = [
    ["wait 5s\nkil n1", 2, /"kil" is no step/],
    ["kill", 1, /a node is missing/],
    ["kill n0", 1, /"n0" is no node/],
    ["kill n4", 1, /there is no n4/],
    ["nodes 2\nkill n3", 2, /there is no n3/],
    ["kill n1 n2", 1, /"n2" is too much/],
    ["wait 5", 1, /"5" is no time/],
    ["wait 0s", 1, /"0s" is no time/],
    ["wait 5h", 1, /"5h" is no time/],
    ["wait 2000min", 1, /more than there may be/],
    ["partition n1 n1", 1, /no link to itself/],
    ["partition n1 ->", 1, /missing/],
    ["partition redis postgres", 1, /one end of a link is a node/],
    ["flap n1 n2 200ms", 1, /time is missing/],
    ["slow n1 n2 64KiB", 1, /no speed/],
    ["lossy n1 n2 101%", 1, /more than there may be/],
    ["postgres pause", 1, /"kill" or "start" or "restart"/],
    ["expect luck", 1, /nothing to expect/],
    ["expect presence 5s", 1, /"within"/],
    ["expect memory below 400", 1, /no size/],
    ["expect toString within 5s", 1, /nothing to expect/],
    ["constructor", 1, /no step/],
    ["wait 1s\nnodes 3", 2, /before the steps/],
    ["nodes 10", 1, /from 1 to 9/],
    ["nodes many", 1, /whole number/],
    ["without redis\nredis kill", 2, /without redis/],
    ["repeat 2\nwait 1s", 1, /without an end/],
    ["end", 1, /without a repeat/],
    ["repeat 2\nrepeat 2\nend\nend", 2, /inside a repeat/],
    ["repeat 1000\nwait 1s\nwait 1s\nwait 1s\nwait 1s\nwait 1s\nwait 1s\nwait 1s\nwait 1s\nwait 1s\nwait 1s\nwait 1s\nend", 13, /more than 10000 steps/],
  ];
  for (const [text, line, reason] of cases) {
    assert.throws(() => parse(text), (error) => error instanceof ScenarioError && error.line === line && reason.test(error.message), text);
  }
});

test("a seed gives one scenario, another seed another, and each can be read", () => {
  const wish = { minutes: 5, nodes: 3, clients: 60, rate: 50 };
  const texts = new Set();
  const seen = new Set();
  for (let seed = 1; seed <= 200; seed++) {
    const text = generate({ ...wish, seed });
    assert.equal(generate({ ...wish, seed }), text);
    texts.add(text);
    const { steps, ...run } = parse(text);
    assert.deepEqual(run, { nodes: 3, clients: 60, rate: 50 });
    for (const step of steps) seen.add(step.do);
    const ms = duration(steps);
    assert.ok(ms > 60_000 && ms < 8 * 60_000, `${ms} ms for five minutes`);
    // However it went, everything is up and whole before the last word.
    assert.deepEqual(steps.slice(-6).map((step) => step.do), ["heal", "restart", "expect", "wait", "expect", "expect"]);
    // Nobody is killed who is not started again, so one node at most is down at a time.
    let down = 0;
    for (const step of steps.slice(0, -5)) {
      if (["kill", "stop"].includes(step.do)) down++;
      if (step.do === "restart") down--;
      assert.ok(down >= 0 && down <= 1, text);
    }
  }
  assert.equal(texts.size, 200);
  for (const step of ["kill", "stop", "pause", "partition", "isolate", "flap", "slow", "lossy", "redis", "postgres", "restart", "heal"]) assert.ok(seen.has(step), step);
});

test("kinds narrow what is generated, and one node has no links", () => {
  const { steps } = parse(generate({ seed: 3, minutes: 3, kinds: ["pause"], nodes: 2 }));
  assert.ok(steps.filter((step) => step.do === "pause").length > 3);
  assert.ok(!steps.some((step) => ["kill", "partition", "postgres"].includes(step.do)));
  const alone = parse(generate({ seed: 3, minutes: 10, kinds: KINDS, nodes: 1 })).steps;
  assert.ok(alone.every((step) => !["partition", "flap", "redis", "isolate", "slow", "lossy"].includes(step.do)));
  assert.throws(() => generate({ seed: 1, minutes: 1, kinds: ["partition"], nodes: 1 }), /none of partition/);
});

test("dice are fair enough, and the same everywhere", () => {
  const dice = random(7);
  const counts = Array(10).fill(0);
  for (let n = 0; n < 10_000; n++) counts[dice.below(10)]++;
  assert.ok(counts.every((count) => count > 800 && count < 1_200), String(counts));
  const again = random(42);
  assert.deepEqual([again.below(1_000), again.below(1_000), again.below(1_000)], [128, 33, 75]);
});

test("every scenario that comes with the tests can be read", () => {
  const folder = path.join(import.meta.dirname, "scenarios");
  const files = readdirSync(folder).filter((file) => file.endsWith(".chaos"));
  assert.ok(files.length >= 9, String(files));
  for (const file of files) {
    const { steps } = parse(readFileSync(path.join(folder, file), "utf8"));
    assert.ok(steps.some((step) => step.do === "expect"), `${file} expects nothing`);
  }
});
