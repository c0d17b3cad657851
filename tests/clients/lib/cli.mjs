// The binary's commands, and nodes that are started in ways the usual harness does not know: with TLS, or in vain.

import { execFile, spawn } from "node:child_process";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { binary, PATIENCE_MS } from "./server.mjs";

const run = promisify(execFile);

/** Runs a command to its end: { code, stdout, stderr }. */
export function muster(args, { env = {}, cwd, ms = PATIENCE_MS } = {}) {
  const child = spawn(binary(), args, { env: { PATH: process.env.PATH, ...env }, cwd, stdio: ["ignore", "pipe", "pipe"] });
  const ended = { stdout: "", stderr: "" };
  child.stdout.on("data", (data) => (ended.stdout += data));
  child.stderr.on("data", (data) => (ended.stderr += data));
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      child.kill("SIGKILL");
      reject(new Error(`${args.join(" ")} did not end:\n${ended.stdout}${ended.stderr}`));
    }, ms);
    child.on("close", (code, signal) => {
      clearTimeout(timer);
      resolve({ ...ended, code, signal });
    });
  });
}

/** A folder that is gone when the tests are. */
export async function scratch() {
  const folder = await mkdtemp(path.join(os.tmpdir(), "muster-test-"));
  return { folder, file: (name) => path.join(folder, name), remove: () => rm(folder, { recursive: true, force: true }) };
}

/** A certificate for localhost that signs itself, and its key, as files and as text. */
export async function certificate(folder) {
  const [cert, key] = [path.join(folder, "cert.pem"), path.join(folder, "key.pem")];
  // No authority: strict clients take none for a server's own certificate.
  const names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"];
  await run("openssl", ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-keyout", key, "-out", cert, ...names]);
  return { cert, key, ca: await readFile(cert, "utf8") };
}

/** Every file below a folder, in bytes. */
export async function filesIn(folder) {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  return Promise.all(
    entries.filter((entry) => entry.isFile()).map(async (entry) => ({ name: entry.name, bytes: await readFile(path.join(entry.parentPath ?? entry.path, entry.name)) })),
  );
}
