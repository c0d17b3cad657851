// scripts/dev-cluster: a cluster on this machine's loopback interface, to try things on.

import path from "node:path";
import { parseArgs } from "node:util";
import { Cluster } from "./cluster.mjs";
import { forget, runFolder } from "./folders.mjs";

const USAGE = `usage: scripts/dev-cluster [N] [--proxy] [--no-redis] [--transport auto|redis] [--set NAME=VALUE]… [--keep]

  N            nodes (3); 1 is a node alone, on PostgreSQL all the same
  --proxy      HAProxy in front of them
  --no-redis   without the way around a broken link
  --transport  redis: nodes speak over Redis only
  --set        a setting of every node
  --keep       logs and data stay where they are at the end
`;

const NODES_MAX = 9;

/** Says what is wrong with the call, and ends. */
function refuse(problem) {
  process.stderr.write(`${problem}\n${USAGE}`);
  process.exit(2);
}

function read() {
  const options = {
    proxy: { type: "boolean" }, "no-redis": { type: "boolean" }, transport: { type: "string", default: "auto" },
    set: { type: "string", multiple: true, default: [] }, keep: { type: "boolean" }, help: { type: "boolean", short: "h" },
  };
  try {
    const { values, positionals } = parseArgs({ options, allowPositionals: true });
    const count = Number(positionals[0] ?? 3);
    if (values.help) {
      process.stdout.write(USAGE);
      process.exit(0);
    }
    if (positionals.length > 1 || !Number.isInteger(count) || count < 1 || count > NODES_MAX) refuse(`N is a whole number from 1 to ${NODES_MAX}`);
    if (!["auto", "redis"].includes(values.transport)) refuse("--transport is auto or redis");
    if (values.transport === "redis" && values["no-redis"]) refuse("--transport redis needs Redis");
    return { count, ...values };
  } catch (error) {
    return refuse(error.message);
  }
}

const wish = read();
const folder = runFolder("dev-cluster");
let cluster = null;
let ending = null;

/** Stops everything once, whatever the reason. */
function end(code, reason) {
  ending ??= (async () => {
    process.stdout.write(`\n${reason}; stopping …\n`);
    await starting.catch(() => {});
    await cluster?.close({ drain: true });
    if (wish.keep || code !== 0) process.stdout.write(`Logs are in ${path.relative(process.cwd(), folder)}\n`);
    else forget(folder);
    process.exit(code);
  })();
  return ending;
}

for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => end(0, signal));

const starting = Cluster.start({
  count: wish.count, folder, network: "loopback", redis: !wish["no-redis"], transport: wish.transport, balancer: Boolean(wish.proxy), set: wish.set,
}).then((started) => (cluster = started));

try {
  await starting;
} catch (error) {
  await end(1, `It did not start: ${error.message}`);
}
cluster.onProblem = (problem) => end(1, problem.text);
for (const problem of cluster.problems) end(1, problem.text);

const lines = [
  "",
  ...cluster.nodes.map((node) => `${node.name}  ${node.url}  ${path.relative(process.cwd(), node.log)}`),
  ...(cluster.balancer ? [`proxy  ${cluster.balancer.url}  ${cluster.balancer.log}`] : []),
  `PostgreSQL  ${cluster.postgres.url}`,
  ...(cluster.redis ? [`Redis  ${cluster.redis.url}`] : []),
  "",
  `export MUSTER_ADMIN_TOKEN=${cluster.adminToken} MUSTER_URL=${(cluster.balancer ?? cluster.nodes[0]).url}`,
  `curl -s -H "Authorization: Bearer $MUSTER_ADMIN_TOKEN" $MUSTER_URL/api/v1/admin/cluster`,
  "muster user create Ada",
  "",
  "Ctrl-C ends it; so does the end of any of its processes.",
  "",
];
process.stdout.write(lines.join("\n"));
