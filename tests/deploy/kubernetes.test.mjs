// deploy/kubernetes: what is rendered is valid, everything that is named is there, and it says what a node takes.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cp, mkdir, writeFile } from "node:fs/promises";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { scratch } from "../clients/lib/cli.mjs";
import { configuration, deploy, documents, run, text, tool } from "./lib/files.mjs";

/** Kustomize 4.1 is the first with components; older ones come with older clients. */
function whyNot() {
  try {
    const said = execFileSync("kubectl", ["version", "--client", "--output=json"], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
    const [, major, minor] = /v(\d+)\.(\d+)/.exec(JSON.parse(said).kustomizeVersion ?? "v0.0");
    return Number(major) > 4 || (Number(major) === 4 && Number(minor) >= 1) ? false : "the kustomize of this kubectl has no components";
  } catch {
    return "kubectl is not installed";
  }
}
const skip = whyNot();

// The oldest that has the pause before a signal (preStop.sleep) by default, and the newest the schemas are there for.
const VERSIONS = ["1.30", "1.37"];
const OVERLAYS = ["single", "cluster", "try-out"];
const kustomization = (overlay) => path.join(deploy, "kubernetes/overlays", overlay);

const render = async (folder) => {
  const { stdout, stderr } = await run("kubectl", ["kustomize", folder]);
  assert.equal(stderr, "", "warnings");
  return stdout;
};

const validate = (file, version) => run(tool("venv/bin/kubernetes-validate"), ["--strict", "--quiet", "-k", version, file]);

/** Whether a selector picks these labels. */
const picks = (selector, labels) => Object.entries(selector).every(([name, value]) => labels[name] === value);

/** What is rendered, by kind, and its pods. */
class Rendered {
  constructor(yaml) {
    this.all = documents(yaml);
    this.workloads = this.all.filter(({ kind }) => ["StatefulSet", "Deployment"].includes(kind));
  }

  of(kind) {
    return this.all.filter((one) => one.kind === kind);
  }

  get(kind, name) {
    const found = this.of(kind).filter(({ metadata }) => metadata.name === name);
    assert.equal(found.length, 1, `${kind} ${name}`);
    return found[0];
  }

  podsOf(selector) {
    assert.ok(Object.keys(selector).length > 0, "a selector that picks everybody");
    return this.workloads.filter(({ spec }) => picks(selector, spec.template.metadata.labels));
  }

  get node() {
    return this.get("StatefulSet", "muster");
  }

  get podNames() {
    return Array.from({ length: this.node.spec.replicas }, (_, n) => `${this.node.metadata.name}-${n}`);
  }

  /** What the nodes read of their certificates' volume, by its name there. */
  certificateFiles() {
    const folder = this.container.volumeMounts.find(({ name }) => name === "cluster").mountPath;
    const named = this.container.env.filter(({ name }) => /^MUSTER_CLUSTER_(CA|CERTIFICATE|KEY)$/.test(name)).map(({ value }) => value);
    assert.equal(named.length, 3);
    const files = this.podNames.flatMap((pod) => named.map((file) => file.replace("$(POD_NAME)", pod)));
    assert.ok(files.every((file) => path.dirname(file) === folder), `${files}`);
    return [...new Set(files.map((file) => path.basename(file)))].sort();
  }

  get container() {
    const { containers } = this.node.spec.template.spec;
    assert.equal(containers.length, 1);
    return containers[0];
  }
}

const containersOf = ({ spec }) => [...(spec.template.spec.initContainers ?? []), ...spec.template.spec.containers];
const portNames = (workload) => containersOf(workload).flatMap(({ ports = [] }) => ports.map(({ name }) => name));

/** Whether policies let someone in on a port: Kubernetes adds up what each of them allows. */
function admits(rendered, to, from, port) {
  const policies = rendered.of("NetworkPolicy").filter(({ spec }) => picks(spec.podSelector.matchLabels, to.spec.template.metadata.labels));
  if (policies.length === 0) return true;
  const fits = (peer) =>
    peer.namespaceSelector ? picks(peer.namespaceSelector.matchLabels, from.namespace) && (!peer.podSelector || picks(peer.podSelector.matchLabels, from.labels)) : from.here && picks(peer.podSelector.matchLabels, from.labels);
  const rules = policies.flatMap(({ spec }) => spec.ingress);
  return rules.some((rule) => (!rule.from || rule.from.some(fits)) && (!rule.ports || rule.ports.some((one) => one.port === port)));
}

describe("rendered", { skip }, () => {
  const rendered = {};
  let files;
  before(async () => {
    files = await scratch();
    for (const overlay of OVERLAYS) {
      const yaml = await render(kustomization(overlay));
      await writeFile(files.file(`${overlay}.yaml`), yaml);
      rendered[overlay] = new Rendered(yaml);
    }
  });
  after(() => files?.remove());

  test("the schemas refuse what is misspelt", async () => {
    const yaml = (await render(kustomization("single"))).replace("readOnlyRootFilesystem", "readOnlyRootFileSystem");
    await writeFile(files.file("misspelt.yaml"), yaml);
    await assert.rejects(validate(files.file("misspelt.yaml"), VERSIONS[0]), ({ stdout, stderr }) => `${stdout}${stderr}`.includes("readOnlyRootFileSystem"));
  });

  for (const overlay of OVERLAYS) {
    describe(overlay, () => {
      for (const version of VERSIONS) {
        test(`is valid for Kubernetes ${version}`, () => validate(files.file(`${overlay}.yaml`), version));
      }

      test("every workload finds its volumes, configuration, account and name", async () => {
        const all = rendered[overlay];
        const readme = await text("README.md");
        for (const workload of all.workloads) {
          const { name } = workload.metadata;
          const pod = workload.spec.template.spec;
          assert.ok(picks(workload.spec.selector.matchLabels, workload.spec.template.metadata.labels), name);
          assert.deepEqual(all.podsOf(workload.spec.selector.matchLabels), [workload], "nobody else's pods");
          const claims = (workload.spec.volumeClaimTemplates ?? []).map(({ metadata }) => metadata.name);
          const volumes = [...(pod.volumes ?? []).map((volume) => volume.name), ...claims];
          assert.equal(new Set(volumes).size, volumes.length, `${volumes}`);
          const mounted = containersOf(workload).flatMap(({ volumeMounts = [] }) => volumeMounts.map((mount) => mount.name));
          assert.deepEqual(new Set(mounted), new Set(volumes), "what is mounted is what there is");
          for (const { configMap } of pod.volumes ?? []) if (configMap) all.get("ConfigMap", configMap.name);
          if (pod.serviceAccountName) assert.equal(all.get("ServiceAccount", pod.serviceAccountName).automountServiceAccountToken, false);
          assert.equal(pod.automountServiceAccountToken, false);
          if (workload.kind === "StatefulSet") {
            assert.ok(all.podsOf(all.get("Service", workload.spec.serviceName).spec.selector).includes(workload));
          }
          // Secrets are made by hand, so what is made has to be written down: each by its name, with each of its keys.
          const secrets = containersOf(workload).flatMap(({ env = [] }) => env.flatMap(({ valueFrom }) => valueFrom?.secretKeyRef ?? []));
          for (const { secret } of pod.volumes ?? []) if (secret) secrets.push(...all.certificateFiles().map((key) => ({ name: secret.secretName, key })));
          for (const { name: secret, key } of secrets) {
            const made = new RegExp(`kubectl create secret generic ${secret} (?:[^\\n]*\\\\\\n)*[^\\n]*--from-(?:literal|file)=${key.replaceAll(".", "\\.")}=`);
            assert.match(readme, made, `${secret}/${key} is in deploy/README.md`);
          }
        }
      });

      test("every selector picks pods of ours, and every port has a name there", () => {
        const all = rendered[overlay];
        for (const { metadata, spec } of all.of("Service")) {
          const pods = all.podsOf(spec.selector);
          assert.equal(pods.length, 1, metadata.name);
          for (const { targetPort } of spec.ports) assert.ok(portNames(pods[0]).includes(targetPort), `${metadata.name}: ${targetPort}`);
        }
        for (const { metadata, spec } of all.of("NetworkPolicy")) {
          const pods = all.podsOf(spec.podSelector.matchLabels);
          assert.equal(pods.length, 1, metadata.name);
          for (const { ports } of spec.ingress) for (const { port } of ports) assert.ok(portNames(pods[0]).includes(port), `${metadata.name}: ${port}`);
        }
        for (const workload of all.workloads) {
          const names = portNames(workload);
          for (const container of containersOf(workload)) {
            for (const probe of [container.startupProbe, container.livenessProbe, container.readinessProbe]) {
              const port = probe?.httpGet?.port ?? probe?.tcpSocket?.port;
              if (port) assert.ok(names.includes(port), `a probe of ${port}`);
            }
          }
        }
        const constraints = all.node.spec.template.spec.topologySpreadConstraints.map(({ labelSelector }) => labelSelector);
        const apart = all.node.spec.template.spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution;
        for (const { matchLabels } of [...constraints, ...apart.map(({ podAffinityTerm }) => podAffinityTerm.labelSelector)]) {
          assert.deepEqual(all.podsOf(matchLabels), [all.node]);
        }
      });

      test("every container may as little as it needs", () => {
        for (const workload of rendered[overlay].workloads) {
          const { securityContext } = workload.spec.template.spec;
          assert.equal(securityContext.runAsNonRoot, true);
          assert.ok(securityContext.runAsUser > 0);
          assert.deepEqual(securityContext.seccompProfile, { type: "RuntimeDefault" });
          for (const container of containersOf(workload)) {
            assert.match(container.image, /^[\w./-]+:\d[\w.-]*$/, "a version");
            const { allowPrivilegeEscalation, readOnlyRootFilesystem, capabilities, ...more } = container.securityContext;
            assert.deepEqual([allowPrivilegeEscalation, readOnlyRootFilesystem, capabilities, more], [false, true, { drop: ["ALL"] }, {}]);
            assert.ok(container.resources.limits.memory && container.resources.requests.memory && container.resources.requests.cpu);
            assert.ok(container.readinessProbe);
            for (const { name, value = "" } of container.env ?? []) {
              assert.ok(!/password|secret|token|_url$/i.test(name) || value === "", `${name} is no place for a secret`);
            }
          }
        }
      });

      test("a drain of a machine gets on", () => {
        const all = rendered[overlay];
        const budgets = all.of("PodDisruptionBudget");
        assert.equal(budgets.length, 1);
        for (const { spec } of budgets) {
          const [workload, ...others] = all.podsOf(spec.selector.matchLabels);
          assert.deepEqual(others, []);
          const mayGo = spec.maxUnavailable ?? workload.spec.replicas - spec.minAvailable;
          assert.equal(mayGo, 1, "one at a time, and not none");
          assert.equal(spec.unhealthyPodEvictionPolicy, "AlwaysAllow");
        }
        assert.equal(all.node.spec.podManagementPolicy, "Parallel");
        assert.equal(all.node.spec.replicas, overlay === "single" ? 1 : 3);
      });

      test("the file is one that a node takes, and a node has time to go", async () => {
        const all = rendered[overlay];
        const { volumes, terminationGracePeriodSeconds, enableServiceLinks } = all.node.spec.template.spec;
        const name = volumes.find((volume) => volume.configMap).configMap.name;
        const toml = all.get("ConfigMap", name).data["muster.toml"];
        await writeFile(files.file("muster.toml"), toml);
        const { ok, settings, stderr } = await configuration({ file: files.file("muster.toml") });
        assert.ok(ok, stderr);
        const port = (wanted) => all.container.ports.find((one) => one.name === wanted).containerPort;
        assert.equal(settings["http.listen"], `0.0.0.0:${port("http")}`);
        assert.equal(settings["http.metrics_listen"], `0.0.0.0:${port("metrics")}`);
        assert.equal(all.node.spec.template.metadata.annotations["prometheus.io/port"], `${port("metrics")}`);
        assert.equal(all.container.volumeMounts.find((mount) => mount.name === "data").mountPath, settings["store.data_dir"]);
        const mounted = all.container.volumeMounts.find((mount) => mount.name === "config").mountPath;
        assert.equal(all.container.env.find((one) => one.name === "MUSTER_CONFIG").value, `${mounted}/muster.toml`);
        const going = all.container.lifecycle.preStop.sleep.seconds + (settings["drain.unready_ms"] + settings["drain.timeout_ms"]) / 1_000;
        assert.ok(going < terminationGracePeriodSeconds, `${going} s of ${terminationGracePeriodSeconds} s`);
        // Services are named in variables, which no setting is called: a node would not start with them.
        assert.equal(enableServiceLinks, false);
        assert.match((await configuration({ env: { MUSTER_SERVICE_HOST: "10.0.0.1" } })).stderr, /MUSTER_SERVICE_HOST/);
      });

      test("only who should comes in", () => {
        const all = rendered[overlay];
        const ours = { here: true, labels: all.node.spec.template.metadata.labels, namespace: { "kubernetes.io/metadata.name": "muster" } };
        const neighbour = { here: true, labels: { app: "other" }, namespace: ours.namespace };
        const stranger = { here: false, labels: ours.labels, namespace: { "kubernetes.io/metadata.name": "other" } };
        const monitoring = { here: false, labels: {}, namespace: { "kubernetes.io/metadata.name": "monitoring" } };
        const who = [ours, neighbour, stranger, monitoring];
        const may = (workload, port) => who.map((from) => admits(all, workload, from, port));
        assert.deepEqual(may(all.node, "http"), [true, true, true, true]);
        assert.deepEqual(may(all.node, "metrics"), [false, false, false, true]);
        assert.deepEqual(may(all.node, "cluster"), [overlay !== "single", false, false, false]);
        for (const store of all.workloads.filter((workload) => workload !== all.node)) {
          const [port] = portNames(store);
          assert.deepEqual(may(store, port), [true, false, false, false], store.metadata.name);
        }
      });
    });
  }

  test("single: its store is on a volume that outlives it", () => {
    const { spec } = rendered.single.node;
    assert.deepEqual(spec.volumeClaimTemplates.map(({ metadata }) => metadata.name), ["data"]);
    assert.deepEqual(spec.persistentVolumeClaimRetentionPolicy, { whenDeleted: "Retain", whenScaled: "Retain" });
  });

  test("cluster: pods are found before they are ready, and clients stay with one", () => {
    const headless = rendered.cluster.get("Service", "muster-headless").spec;
    assert.deepEqual([headless.clusterIP, headless.publishNotReadyAddresses], ["None", true]);
    assert.equal(rendered.cluster.get("Service", "muster").spec.sessionAffinity, "ClientIP");
    const dns = rendered.cluster.container.env.find(({ name }) => name === "MUSTER_CLUSTER_DNS").value;
    assert.equal(dns, `muster-headless:${headless.ports.find(({ name }) => name === "cluster").port}`);
  });

  test("cluster: the variables are settings that a node takes", async () => {
    for (const overlay of ["cluster", "try-out"]) {
      const all = rendered[overlay];
      const samples = { "postgres-url": "postgres://muster:x@postgres:5432/muster", "redis-url": "redis://:x@valkey:6379" };
      const pod = { POD_NAME: "muster-0" };
      const value = (one) => (one.valueFrom?.secretKeyRef ? (samples[one.valueFrom.secretKeyRef.key] ?? "op_0123456789abcdef0123456789abcdef") : one.value.replaceAll(/\$\((\w+)\)/g, (_, name) => pod[name]));
      const variables = all.container.env.filter(({ name }) => name.startsWith("MUSTER_") && name !== "MUSTER_CONFIG");
      const env = Object.fromEntries(variables.map((one) => [one.name, value(one)]));
      await writeFile(files.file("cluster.toml"), all.of("ConfigMap")[0].data["muster.toml"]);
      const { ok, settings, stderr } = await configuration({ file: files.file("cluster.toml"), env });
      assert.ok(ok, stderr);
      assert.equal(settings["cluster.listen"], `0.0.0.0:${all.container.ports.find(({ name }) => name === "cluster").containerPort}`);
      assert.equal(settings["cluster.node"], "muster-0");
    }
  });

  test("what a pod's variables refer to stands before them", () => {
    for (const overlay of OVERLAYS) {
      const seen = new Set();
      for (const { name, value = "" } of rendered[overlay].container.env) {
        for (const [, referred] of value.matchAll(/\$\((\w+)\)/g)) assert.ok(seen.has(referred), `${name} refers to ${referred}`);
        assert.ok(!seen.has(name), `${name} stands twice`);
        seen.add(name);
      }
    }
  });

  test("an overlay of one's own, as the README has it, and cert-manager: one certificate for the names of all pods, in the secret that they take", async () => {
    const folder = files.file("kubernetes");
    await cp(path.join(deploy, "kubernetes"), folder, { recursive: true });
    const own = path.join(folder, "overlays/own");
    await mkdir(own);
    const blocks = [...(await text("README.md")).matchAll(/```yaml\n([^`]*)```/g)].map(([, lines]) => lines);
    assert.equal(blocks.length, 2);
    await writeFile(path.join(own, "kustomization.yaml"), blocks.join(""));
    const all = new Rendered(await render(own));
    assert.ok(all.all.every(({ metadata }) => metadata.namespace === "muster"));
    assert.equal(all.container.image, "registry.example/muster:0.1.0");
    const secret = all.node.spec.template.spec.volumes.find((volume) => volume.secret).secret.secretName;
    const certificates = all.of("Certificate");
    const issuers = all.of("Issuer");
    const nodes = certificates.find(({ spec }) => spec.secretName === secret);
    assert.deepEqual(nodes.spec.uris, all.podNames.map((pod) => `muster://node/${pod}`));
    assert.deepEqual(all.certificateFiles(), ["ca.crt", "tls.crt", "tls.key"]);
    assert.deepEqual(nodes.spec.usages.filter((usage) => usage.endsWith("auth")), ["server auth", "client auth"]);
    for (const { spec } of certificates) assert.ok(issuers.some(({ metadata }) => metadata.name === spec.issuerRef.name), spec.issuerRef.name);
    for (const { spec } of issuers.filter(({ spec }) => spec.ca)) assert.ok(certificates.some((one) => one.spec.isCA && one.spec.secretName === spec.ca.secretName));
  });
});
