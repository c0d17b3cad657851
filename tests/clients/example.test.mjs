// The example is run as it is, and what it tells is true.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { cp, mkdir, mkdtemp, readFile, rm, symlink } from "node:fs/promises";
import { createRequire } from "node:module";
import os from "node:os";
import path from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { assertSound } from "./lib/money.mjs";
import { VERSIONS } from "./lib/phoenix.mjs";
import { binary, Server } from "./lib/server.mjs";

const require = createRequire(import.meta.url);
const example = path.resolve(import.meta.dirname, "../../scripts/two-agents");
const packages = path.resolve(import.meta.dirname, "node_modules");

test("R87 R89 R96 R100 R72 R75 R113: two agents that never heard of each other agree, work, pay and part, while an owner watches", async () => {
  const folder = await mkdtemp(path.join(os.tmpdir(), "muster-example-"));
  const server = await Server.start();
  try {
    const wanted = JSON.parse(await readFile(path.join(example, "package.json"), "utf8")).dependencies;
    assert.equal(wanted.phoenix, VERSIONS.at(-1), "the version that the other tests use");
    for (const file of ["agent.mjs", "main.mjs", "package.json"]) await cp(path.join(example, file), path.join(folder, file));
    // The packages it asks for are installed already, for the tests.
    await mkdir(path.join(folder, "node_modules"));
    await symlink(path.join(packages, `phoenix-${wanted.phoenix}`), path.join(folder, "node_modules/phoenix"));
    await symlink(path.dirname(require.resolve("ws/package.json")), path.join(folder, "node_modules/ws"));
    const env = { PATH: process.env.PATH, MUSTER_URL: server.url, MUSTER_ADMIN_TOKEN: server.adminToken, MUSTER_BIN: binary() };
    const { stdout } = await promisify(execFile)("node", ["main.mjs"], { cwd: folder, env, timeout: 60_000 });
    const lines = stdout.trim().split("\n");
    const outcome = JSON.parse(lines.at(-1));
    assert.deepEqual([outcome.transfers, outcome.paid], [3, "0.09"]);
    for (const told of ["can verify it", "sees chunk 3", "sees that it is done"]) assert.ok(stdout.includes(told), stdout);
    await assertSound(server);
  } finally {
    await server.end();
    await rm(folder, { recursive: true, force: true });
  }
});
