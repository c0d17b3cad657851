// deploy/prometheus and deploy/grafana: they ask for metrics that running nodes give, one by itself and those of a cluster, by
// labels that these have.

import assert from "node:assert/strict";
import net from "node:net";
import path from "node:path";
import { writeFile } from "node:fs/promises";
import { after, before, describe, test } from "node:test";
import { Cluster } from "../chaos/cluster.mjs";
import { forget, runFolder } from "../chaos/folders.mjs";
import { Bare } from "../clients/lib/bare.mjs";
import { scratch } from "../clients/lib/cli.mjs";
import { collect, connect, join, push } from "../clients/lib/phoenix.mjs";
import { cast, Server, until } from "../clients/lib/server.mjs";
import { metric } from "../clients/lib/streams.mjs";
import { configuration, deploy, root, run, text, tool, yaml } from "./lib/files.mjs";

/** Series of a text in Prometheus' format: each name with the labels it has. */
function series(exposition) {
  const found = new Map();
  for (const line of exposition.split("\n").filter((line) => line && !line.startsWith("#"))) {
    const [, name, labels = ""] = /^(\w+)(?:\{(.*)\})? \S+$/.exec(line);
    const names = found.get(name) ?? new Set();
    for (const [, label] of labels.matchAll(/(\w+)="/g)) names.add(label);
    found.set(name, names);
  }
  return found;
}

/** Metrics of ours in an expression: { name, labels }, with the labels it is filtered by. */
function asked(expression) {
  const selectors = [...expression.matchAll(/(muster_\w+)(?:\{([^}]*)\})?/g)];
  return selectors.map(([, name, matchers = ""]) => ({ name, labels: [...matchers.matchAll(/(\w+)\s*(?:=~|!~|!=|=)/g)].map(([, label]) => label) }));
}

const grouped = (expression) => [...expression.matchAll(/\bby \(([^)]*)\)/g)].flatMap(([, labels]) => labels.split(",").map((label) => label.trim()));

// What Prometheus adds to all that it fetches from somewhere.
const OF_TARGETS = ["job", "instance"];

/** As Grafana fills them in. */
const filledIn = (expression) => expression.replaceAll("$__rate_interval", "5m").replaceAll("$instance", ".*").replaceAll("$job", "muster");

const exposition = (server) => fetch(`${server.url}/metrics`).then((answer) => answer.text(), () => null);

/** What a Redis answers to these words, its password first. */
function redis({ address, port, password }, ...words) {
  return new Promise((resolve, reject) => {
    const socket = net.connect(port, address, () => socket.end(`AUTH ${password}\r\n${words.join(" ")}\r\nQUIT\r\n`));
    let answer = "";
    socket.setEncoding("utf8").on("data", (text) => (answer += text)).on("error", reject).on("close", () => resolve(answer));
  });
}

/** Nodes of a cluster to which happens what their metrics count; gives what these say. */
async function ofCluster() {
  const folder = runFolder("watching");
  const cluster = await Cluster.start({ count: 2, folder, network: "loopback", balancer: false, set: ["limits.presence_entries_per_peer_max=1"] });
  let twin;
  try {
    const [one, two] = cluster.nodes;
    const sockets = [];
    for (let n = 0; n < 2; n++) {
      const agent = await two.agent();
      const socket = await connect("1.8.16", two, "/socket/agent", { api_key: agent.key });
      sockets.push(socket);
      assert.equal((await join(socket.channel(`agent:${agent.id}`, {}))).status, "ok");
    }
    await until("an entry of presence too many", async () => (await metric(one, "muster_presence_refused_total")) > 0);
    await until("Redis has taken frames", async () => (await metric(one, "muster_cluster_redis_publish_seconds_count")) > 0);
    assert.match(await redis(cluster.redis, "PUBLISH", "muster:muster-test", "nonsense"), /:2\r\n/, "both nodes hear it");
    await until("what is no frame", async () => (await metric(one, "muster_cluster_redis_refused_total")) > 0);
    // What is given to it meanwhile waits, and is let go of.
    cluster.redis.child.signal("SIGSTOP");
    await until("frames for Redis are dropped", async () => (await metric(one, "muster_cluster_redis_dropped_total")) > 0);
    cluster.redis.child.signal("SIGCONT");
    await until("Redis is back", async () => (await metric(one, "muster_cluster_redis_up")) === 1);
    twin = await one.twin();
    await until("another process has its name", async () => (await metric(one, "muster_cluster_frames_refused_total")) > 0);
    sockets.forEach((socket) => socket.disconnect());
    return (await Promise.all(cluster.nodes.map(exposition))).join("\n");
  } finally {
    await twin?.kill();
    await cluster.close();
    forget(folder);
  }
}

describe("alerts and dashboard", () => {
  let server, found, rules, dashboard, panels;
  before(async () => {
    const nodes = ofCluster();
    // Its failure is seen where it is waited for.
    nodes.catch(() => {});
    // Little is allowed, so that all that can be refused is.
    const set = ["drills.enabled=true", "limits.connections_max=24", "limits.chunks_per_stream={tokens=1,period_ms=60000,burst=3}"];
    server = await Server.start({ set });
    const { user, provider, task } = await cast(server);
    const socket = await connect("1.8.16", server, "/socket", { api_key: provider.key });
    const discovery = socket.channel("agents:discovery", {});
    const updates = collect(discovery, "agent_updated");
    assert.equal((await join(discovery)).status, "ok");
    const agentSocket = await connect("1.8.16", server, "/socket/agent", { api_key: provider.key });
    const own = agentSocket.channel(`agent:${provider.id}`, {});
    assert.equal((await join(own)).status, "ok");
    assert.equal((await join(agentSocket.channel(`agent:${user.id}`, {}))).status, "error");
    assert.equal((await push(discovery, "announce", { capabilities: ["draw"] })).status, "ok");
    await until("the announcement", () => updates.length === 1);
    const answers = [];
    for (let n = 0; n < 5; n++) answers.push((await server.emit(task, provider, `${n}`)).status);
    assert.ok(answers.includes(202) && answers.includes(429), `${answers}`);
    own.push("muster.drill.crash", {});
    await until("a crash", async () => (await metric(server, "muster_actor_crashes_total")) > 0);
    const bad = await Bare.open(server, "/socket/websocket", { api_key: provider.key });
    bad.ws.send("no message");
    await bad.ended();
    const lines = Array.from({ length: 30 }, () => net.connect(server.port, "127.0.0.1").on("error", () => {}));
    await until("some are turned away", () => lines.filter((line) => line.closed).length > 3);
    lines.forEach((line) => line.destroy());
    const alone = await until("there is room again", () => exposition(server));
    found = series(`${alone}\n${await nodes}`);
    [socket, agentSocket].forEach((one) => one.disconnect());
    rules = yaml(await text("prometheus/alerts.yaml")).groups.flatMap((group) => group.rules);
    dashboard = JSON.parse(await text("grafana/dashboard.json"));
    panels = dashboard.panels.filter(({ type }) => type !== "row");
  });
  after(() => server?.end());

  const expressions = () => [...rules.map(({ alert, expr }) => [alert, expr]), ...panels.flatMap(({ title, targets }) => targets.map(({ expr }) => [title, expr]))];

  test("every metric that is asked for is one of a running node's, and has the labels", () => {
    for (const [where, expression] of expressions()) {
      const metrics = asked(expression);
      assert.ok(metrics.length > 0 || /\bup\b/.test(expression), `${where} asks for nothing`);
      for (const { name, labels } of metrics) {
        assert.ok(found.has(name), `${where}: no metric ${name}`);
        for (const label of [...labels, ...grouped(expression)]) {
          assert.ok(OF_TARGETS.includes(label) || found.get(name).has(label), `${where}: ${name} has no label ${label}`);
        }
      }
    }
    // What is compared can differ.
    assert.equal(found.has("muster_no_such_metric"), false);
  });

  test("every metric of a node is on the dashboard", () => {
    const shown = new Set(panels.flatMap(({ targets }) => targets.flatMap(({ expr }) => asked(expr).map(({ name }) => name))));
    // A histogram's are its buckets.
    const counted = [...found.keys()].filter((name) => name.startsWith("muster_") && !/_(sum|count)$/.test(name));
    assert.ok(counted.some((name) => name.startsWith("muster_cluster_")), "those of a cluster too");
    assert.deepEqual(counted.filter((name) => !shown.has(name)), [], "no panel shows these");
  });

  test("promtool takes the rules, and they say what they should of given metrics", async () => {
    await run(tool("promtool"), ["check", "rules", path.join(deploy, "prometheus/alerts.yaml")]);
    const tests = path.join(root, "tests/deploy/alerts.yaml");
    await run(tool("promtool"), ["test", "rules", tests]);
    const tried = yaml(await text("../tests/deploy/alerts.yaml")).tests.find(({ name }) => name === "each has its alert").promql_expr_test[0].exp_samples;
    assert.deepEqual(tried.map(({ labels }) => /alertname="(\w+)"/.exec(labels)[1]), rules.map(({ alert }) => alert).sort());
  });

  test("promtool takes every expression of the dashboard", async () => {
    const { file, remove } = await scratch();
    try {
      const write = (list) => writeFile(file("dashboard.yaml"), JSON.stringify({ groups: [{ name: "dashboard", rules: list.map((expr, n) => ({ record: `panel:${n}`, expr })) }] }));
      const check = () => run(tool("promtool"), ["check", "rules", file("dashboard.yaml")]);
      const all = panels.flatMap(({ targets }) => targets.map(({ expr }) => filledIn(expr)));
      assert.ok(all.every((expression) => !expression.includes("$")), "variables that are no more than named");
      await write(all);
      await check();
      await write([...all, "sum(rate(muster_sockets[5m])"]);
      await assert.rejects(check());
    } finally {
      await remove();
    }
  });

  test("every alert says what it is about and what to do, and its thresholds are the limits' defaults", async () => {
    for (const { alert, labels, annotations } of rules) {
      assert.match(alert, /^Muster[A-Z]\w+$/);
      assert.ok(["critical", "warning"].includes(labels.severity), alert);
      assert.ok(annotations.summary.length > 10 && annotations.description.length > 20, alert);
    }
    assert.equal(new Set(rules.map(({ alert }) => alert)).size, rules.length);
    const { settings } = await configuration();
    const threshold = (alert) => Number(/\* (\d+)$/.exec(rules.find((rule) => rule.alert === alert).expr)[1]);
    assert.equal(threshold("MusterNodeOutbox"), settings["limits.cluster_outbox_bytes_max"]);
    assert.equal(threshold("MusterAlmostFull"), settings["limits.connections_max"]);
    assert.equal(threshold("MusterStreamMemory"), settings["limits.stream_memory_bytes_max"]);
    const named = rules.flatMap(({ annotations }) => annotations.description.match(/(limits|cluster)\.\w+/g) ?? []);
    assert.ok(named.length > 3);
    for (const name of [...named, ...JSON.stringify(panels).match(/limits\.\w+/g)]) {
      assert.ok(Object.keys(settings).some((setting) => setting === name || setting.startsWith(`${name}.`)), name);
    }
  });

  test("the dashboard's panels have ids, places and questions of their own", () => {
    const ids = dashboard.panels.map(({ id }) => id);
    assert.equal(new Set(ids).size, ids.length);
    assert.equal(new Set(panels.map(({ title }) => title)).size, panels.length);
    const variables = dashboard.templating.list.map(({ name }) => name);
    const taken = new Set();
    for (const { title, gridPos, targets = [], datasource, type } of dashboard.panels) {
      for (let x = gridPos.x; x < gridPos.x + gridPos.w; x++) {
        for (let y = gridPos.y; y < gridPos.y + gridPos.h; y++) {
          assert.ok(x < 24 && !taken.has(`${x},${y}`), `${title} lies on another`);
          taken.add(`${x},${y}`);
        }
      }
      if (type === "row") continue;
      assert.ok(targets.length > 0, title);
      assert.equal(new Set(targets.map(({ refId }) => refId)).size, targets.length, title);
      for (const one of [datasource, ...targets.map((target) => target.datasource)]) assert.deepEqual(one, { type: "prometheus", uid: "${datasource}" });
      for (const { expr, legendFormat } of targets) {
        assert.ok(expr.length > 0 && legendFormat.length > 0, title);
        for (const [, name] of expr.matchAll(/\$(\w+)/g)) assert.ok(name.startsWith("__") || variables.includes(name), `${title}: $${name}`);
      }
    }
  });
});
