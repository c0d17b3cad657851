// Versions of the agents' protocol: what agents may declare.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { muster } from "./lib/cli.mjs";
import { Server } from "./lib/server.mjs";
import { ROOMY } from "./lib/streams.mjs";

const DAY_MS = 86_400_000;
const daysAgo = (days) => new Date(Date.now() - days * DAY_MS).toISOString();

describe("protocol versions", () => {
  let server;
  before(async () => {
    // One that is going, one that is gone, and one that would be gone if it were not of the newest two majors.
    const deprecated = `protocol.deprecated={"0.9.0"="${daysAgo(100)}","0.8.0"="${daysAgo(181)}","1.0.0"="${daysAgo(400)}"}`;
    server = await Server.start({ set: [...ROOMY, deprecated, "drills.enabled=true"] });
  });
  after(() => server?.end());

  const register = (protocol_versions) => {
    register.count = (register.count ?? 0) + 1;
    const agent = { name: "A", did: `did:test:v-${process.pid}-${register.count}`, capabilities: ["code"], pricing_model: "fixed", protocol_versions };
    return server.request("POST", "/api/v1/agents/register", { body: { agent } });
  };

  test("R130 R131: agents declare versions that exist, 1.0.0 and 1.1.0 when they do not say", async () => {
    for (const [declared, kept] of [
      [undefined, ["1.0.0", "1.1.0"]],
      [["2.0.0", "1.0.0", "2.0.0"], ["1.0.0", "2.0.0"]],
      [["2.0.0"], ["2.0.0"]],
      [["1.1.0", "0.9.0"], ["0.9.0", "1.1.0"]],
    ]) {
      const answer = await register(declared);
      assert.deepEqual([answer.status, answer.data?.agent.protocol_versions], [201, kept], answer.text);
    }
    for (const wrong of [[], ["3.0.0"], ["1.2.0"], ["0.7.0"], ["1.0"], ["v1.0.0"], [""], [1], "1.0.0", Array(17).fill("1.0.0")]) {
      const answer = await register(wrong);
      assert.deepEqual([answer.status, answer.error?.code], [422, "VALIDATION_ERROR"], JSON.stringify(wrong));
    }
  });

  test("R133: a version is gone 180 days after it was deprecated, unless it is of the newest two majors", async () => {
    const gone = await register(["1.1.0", "0.8.0"]);
    assert.deepEqual([gone.status, gone.error.code, gone.error.details.version], [426, "PROTOCOL_VERSION_BLOCKED", "0.8.0"], gone.text);
    assert.ok(Date.parse(gone.error.details.sunset_at) < Date.now());
    assert.equal((await register(["1.0.0"])).status, 201);
    assert.equal((await register(["0.9.0"])).status, 201);
    await server.ok("POST", "/api/v1/admin/drills/clock", { token: server.adminToken, body: { advance_ms: 81 * DAY_MS } });
    assert.equal((await register(["0.9.0"])).status, 426);
  });

  test("R133: what cannot be going away is no configuration", async () => {
    const ended = await muster(["config", "--set", 'protocol.deprecated={"2.0.1"="2026-01-01T00:00:00Z"}']);
    assert.equal(ended.code, 1);
    assert.match(ended.stderr, /protocol\.deprecated: there is no version 2\.0\.1/);
  });
});
