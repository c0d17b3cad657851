// deploy/Dockerfile and deploy/compose.yaml, as far as they can be checked without a daemon that builds and runs them.

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { cp, mkdir, readFile } from "node:fs/promises";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { muster, scratch } from "../clients/lib/cli.mjs";
import { Server } from "../clients/lib/server.mjs";
import { configuration, deploy, root, run, text, yaml } from "./lib/files.mjs";

/** Instructions of a Dockerfile: { name, flags, words }; lists in JSON are taken as such. */
function instructions(dockerfile) {
  const lines = dockerfile.split("\n").filter((line) => !line.startsWith("#"));
  const joined = lines.join("\n").replaceAll(/\\\n\s*/g, "").split("\n").filter((line) => line.trim() !== "");
  return joined.map((line) => {
    const [, name, rest] = /^([A-Z]+)\s+(.*)$/.exec(line);
    const flags = Object.fromEntries([...rest.matchAll(/(?:^|\s)--([\w-]+)=(\S+)/g)].map(([, flag, value]) => [flag, value]));
    const bare = rest.replaceAll(/(?:^|\s)--[\w-]+=\S+/g, "").trim();
    return { name, flags, words: bare.startsWith("[") ? JSON.parse(bare) : bare.split(/\s+/), bare };
  });
}

const stages = (all) => all.reduce((found, one) => (one.name === "FROM" ? [...found, [one]] : [...found.slice(0, -1), [...(found.at(-1) ?? []), one]]), []);
const only = (stage, name) => {
  const found = stage.filter((one) => one.name === name);
  assert.equal(found.length, 1, name);
  return found[0];
};

describe("the image", () => {
  let build, last;
  before(async () => {
    [build, last] = stages(instructions(await text("Dockerfile")));
  });

  test("is made from images of a stated version, by the compiler that everybody has", async () => {
    for (const stage of [build, last]) assert.match(stage[0].words[0], /^[\w./-]+:[\w.-]+$/);
    const [, channel] = /channel = "([\d.]+)"/.exec(await readFile(path.join(root, "rust-toolchain.toml"), "utf8"));
    assert.equal(build[0].words[0], `rust:${channel}-bookworm`);
    // glibc of the same Debian, or the binary does not start.
    assert.match(last[0].words[0], /debian12/);
  });

  test("what is copied is there, and is all that the build reads", async () => {
    const ignored = (await text("Dockerfile.dockerignore")).split("\n").filter((line) => line && !line.startsWith("#"));
    assert.equal(ignored[0], "*", "nothing goes along by accident");
    const admitted = ignored.filter((line) => line.startsWith("!")).map((line) => line.slice(1));
    const leftOut = ignored.slice(1).filter((line) => !line.startsWith("!"));
    const { folder, remove } = await scratch();
    try {
      const copied = build.filter(({ name }) => name === "COPY").flatMap(({ words }) => words.slice(0, -1));
      assert.deepEqual(copied.toSorted(), admitted.toSorted());
      const unwanted = (relative) => leftOut.some((line) => (line.startsWith("**/") ? relative.split("/").includes(line.slice(3)) : relative === line));
      for (const one of copied) {
        assert.ok(existsSync(path.join(root, one)), one);
        await mkdir(path.dirname(path.join(folder, one)), { recursive: true });
        await cp(path.join(root, one), path.join(folder, one), { recursive: true, filter: (from) => !unwanted(path.relative(root, from)) });
      }
      const { stdout } = await run("cargo", ["metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"], { cwd: folder, maxBuffer: 1 << 26 });
      const { packages, workspace_root } = JSON.parse(stdout);
      assert.equal(path.basename(workspace_root), path.basename(folder));
      const node = packages.find(({ name }) => name === "muster");
      const sources = node.targets.map(({ src_path }) => src_path);
      assert.ok(sources.length >= 2 && sources.every((file) => file.startsWith(workspace_root) && existsSync(file)));
      assert.match(only(build, "RUN").bare, new RegExp(`cargo build --release --locked --package ${node.name} `));
      // What is read at compile time from beyond the crates would be missing there.
      const { stdout: files } = await run("grep", ["-roE", "include_(str|bytes)!\\(\"[^\"]+\"", ...["node/src", "actors/src", "protocol/src"].map((crate) => path.join(folder, crate))], { maxBuffer: 1 << 22 });
      const included = files
        .trim()
        .split("\n")
        .map((line) => /^([^:]+):.*\("([^"]+)"$/.exec(line))
        // What only the tests read, the image's build does not.
        .filter(([, file]) => !/\/tests(\.rs$|\/)/.test(path.relative(folder, file)))
        .map(([, file, name]) => path.resolve(path.dirname(file), name));
      assert.ok(included.length > 20);
      for (const file of included) assert.ok(file.startsWith(`${folder}/`) && existsSync(file), file);
    } finally {
      await remove();
    }
  });

  test("it runs as a user of its own, the one that Kubernetes names, who owns what it writes to", async () => {
    const [user, group] = only(last, "USER").words[0].split(":").map(Number);
    const pod = yaml(await text("kubernetes/base/statefulset.yaml")).spec.template.spec.securityContext;
    assert.deepEqual([user, group], [pod.runAsUser, pod.runAsGroup]);
    const [volume] = only(last, "VOLUME").words;
    const owned = last.filter(({ name, flags }) => name === "COPY" && flags.chown === `${user}:${group}`).map(({ words }) => words.at(-1));
    assert.deepEqual(owned, [volume, "/etc/muster-cluster"]);
    const sets = Object.fromEntries(only(last, "ENV").words.map((word) => word.split("=")));
    assert.equal(sets.MUSTER_STORE_DATA_DIR, volume);
    const { ok, stderr, settings } = await configuration({ env: { ...sets, MUSTER_HTTP_ALLOW_PLAINTEXT: "true" } });
    assert.ok(ok, stderr);
    const [, port] = settings["http.listen"].split(":");
    assert.ok(only(last, "EXPOSE").words.includes(port));
  });

  test("the binary knows its commands", async () => {
    const binary = only(last, "ENTRYPOINT").words;
    const health = only(last, "HEALTHCHECK").bare.replace(/^.*CMD /, "");
    const [program, ...check] = JSON.parse(health);
    assert.deepEqual([program], binary);
    const copied = last.filter(({ name, flags }) => name === "COPY" && flags.from === "build").map(({ words }) => words.at(-1));
    assert.ok(copied.includes(program));
    for (const command of [only(last, "CMD").words, check]) {
      assert.equal((await muster([...command, "--help"])).code, 0, `${command}`);
    }
    assert.notEqual((await muster(["no-such-command", "--help"])).code, 0);
    const server = await Server.start();
    try {
      assert.equal((await muster(check, { env: { MUSTER_URL: server.url } })).code, 0);
      await server.stop();
      assert.notEqual((await muster(check, { env: { MUSTER_URL: server.url } })).code, 0);
    } finally {
      await server.end();
    }
  });
});

describe("compose", () => {
  let file, example;
  const ofNodes = () => Object.entries(file.services).filter(([name]) => name.startsWith("muster-"));
  before(async () => {
    file = yaml(await text("compose.yaml"));
    example = (await text("compose.env.example")).split("\n").filter((line) => line && !line.startsWith("#"));
  });

  test("every service finds what it depends on, its volumes and its files", () => {
    for (const [name, service] of Object.entries(file.services)) {
      const needs = Array.isArray(service.depends_on) ? service.depends_on : Object.keys(service.depends_on ?? {});
      for (const other of needs) {
        assert.ok(file.services[other], `${name} needs ${other}`);
        if (service.depends_on[other]?.condition === "service_healthy") assert.ok(file.services[other].healthcheck, other);
      }
      for (const volume of service.volumes ?? []) {
        const [from] = volume.split(":");
        assert.ok(from.startsWith("./") ? existsSync(path.join(deploy, from)) : from in file.volumes, `${name}: ${from}`);
      }
      assert.match(service.image, /^[\w./-]+:\d[\w.-]*$/, name);
      if (service.build) assert.ok(existsSync(path.join(deploy, service.build.context, service.build.dockerfile)));
    }
    for (const { ports = [] } of Object.values(file.services)) for (const port of ports) assert.match(port, /^127\.0\.0\.1:/);
  });

  test("every secret is asked for in the example, empty, and git does not take the real file", async () => {
    const asked = [...(await text("compose.yaml")).matchAll(/\$\{(\w+):\?/g)].map(([, name]) => name);
    assert.deepEqual([...new Set(asked)].sort(), example.map((line) => line.replace("=", "")).sort());
    assert.ok(example.every((line) => line.endsWith("=")));
    // Exits 1 where it is not ignored.
    await run("git", ["check-ignore", "deploy/compose.env"], { cwd: root });
    await assert.rejects(run("git", ["check-ignore", "deploy/compose.env.example"], { cwd: root }));
  });

  test("the load balancer's nodes are the nodes, and they believe it", async () => {
    const places = [...(await text("haproxy.cfg")).matchAll(/^ {4}server (\S+) "\$\{MUSTER_NODE_\d-(\S+)\}"$/gm)].map(([, , place]) => place);
    const nodes = ofNodes().map(([name]) => `${name}:4000`);
    assert.deepEqual([...new Set(places)], nodes);
    for (const [name, { environment, hostname, stop_grace_period: grace }] of ofNodes()) {
      assert.deepEqual([hostname, environment.MUSTER_CLUSTER_NODE], [name, name]);
      assert.equal(environment.MUSTER_HTTP_LISTEN, "0.0.0.0:4000");
      assert.deepEqual(JSON.parse(environment.MUSTER_HTTP_TRUSTED_PROXIES), [file.networks.default.ipam.config[0].subnet]);
      assert.ok(JSON.parse(environment.MUSTER_CLUSTER_PEERS).includes(environment.MUSTER_CLUSTER_ADVERTISE));
      assert.ok(Number(environment.MUSTER_DRAIN_UNREADY_MS) + Number(environment.MUSTER_DRAIN_TIMEOUT_MS) < 1_000 * Number.parseInt(grace, 10));
    }
  });

  test("a node takes its variables", async () => {
    for (const [, { environment }] of ofNodes()) {
      const set = Object.entries(environment).map(([name, value]) => [name, value.replaceAll(/\$\{\w+:\?[^}]*\}/g, "0123456789abcdef")]);
      const { ok, stderr } = await configuration({ env: Object.fromEntries(set) });
      assert.ok(ok, stderr);
    }
  });

  test("the command that makes certificates makes those that nodes name", async () => {
    const { folder, remove } = await scratch();
    try {
      const { command } = file.services.certificates;
      const mount = file.services.certificates.volumes[0].split(":")[1];
      const { code, stderr } = await muster(command.map((word) => word.replace(mount, folder)));
      assert.equal(code, 0, stderr);
      for (const [, { environment }] of ofNodes()) {
        for (const setting of ["CA", "CERTIFICATE", "KEY"]) {
          const made = environment[`MUSTER_CLUSTER_${setting}`].replace(mount, folder);
          assert.ok(existsSync(made), made);
        }
      }
    } finally {
      await remove();
    }
  });
});

describe("a machine of its own", () => {
  let files;
  before(async () => (files = await scratch()));
  after(() => files.remove());

  test("load balancers are more patient than nodes, and notice a drain before it closes anything", async () => {
    const { settings } = await configuration();
    const { settings: shipped } = await configuration({ file: path.join(deploy, "muster.toml") });
    const seconds = (text) => (text.endsWith("ms") ? Number(text.slice(0, -2)) / 1_000 : Number(text.slice(0, -1)));
    const haproxy = await text("haproxy.cfg");
    const timeout = (name) => seconds(new RegExp(`^ {4}timeout ${name} (\\S+)$`, "m").exec(haproxy)[1]);
    const idle = settings["limits.socket_idle_timeout_ms"] / 1_000;
    for (const name of ["client", "server", "tunnel"]) assert.ok(timeout(name) > idle, name);
    assert.ok(timeout("http-keep-alive") * 1_000 < settings["limits.handshake_timeout_ms"]);
    const nginx = await text("nginx.conf");
    for (const name of ["proxy_read_timeout", "proxy_send_timeout"]) assert.ok(seconds(new RegExp(`${name} (\\S+);`).exec(nginx)[1]) > idle, name);
    assert.ok(Number(/client_max_body_size (\d+)m;/.exec(nginx)[1]) * 1_048_576 >= settings["limits.longpoll_body_bytes_max"]);
    const [, inter, fall] = /check inter (\S+) .*fall (\d+)/.exec(haproxy);
    const unready = [shipped["drain.unready_ms"], Number(yaml(await text("compose.yaml")).services["muster-1"].environment.MUSTER_DRAIN_UNREADY_MS)];
    for (const ms of unready) assert.ok(seconds(inter) * Number(fall) * 1_000 * 1.5 < ms);
  });
});
