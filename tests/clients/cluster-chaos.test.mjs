// A real cluster under load that is broken in several ways, for a minute or two; scripts/chaos does it for longer.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { forget, root, runFolder } from "../chaos/folders.mjs";
import { Run } from "../chaos/run.mjs";
import { parse } from "../chaos/scenario.mjs";

const SHORT = path.join(root, "tests/chaos/scenarios/short.chaos");
/** A busy machine is no reason to fail: what is generous here is time, never content. */
const BOUNDS = { presence: 20_000, silence: 20_000 };

test("R28 R46: nodes are killed, paused, cut off and restarted, and what was acknowledged is there, once and in order", { timeout: 420_000 }, async (context) => {
  const scenario = parse(readFileSync(SHORT, "utf8"));
  const folder = runFolder("short");
  const run = new Run({ title: "short", scenario, folder, ...scenario, bounds: BOUNDS, say: (line) => context.diagnostic(line) });
  const result = await run.run();
  for (const line of result.text.split("\n")) context.diagnostic(line);
  for (const step of result.skipped) context.diagnostic(`left out: ${step}`);
  assert.ok(result.ok, `${result.text}\nHistories and logs: ${folder}`);
  // The load was there: a run in which nothing happens proves nothing.
  assert.ok(result.figures.acknowledged > 1_000 && result.figures.thrownOut > 10, JSON.stringify(result.figures));
  forget(folder);
});
