// A node that serves TLS, and clients that trust its certificate.

import { spawn } from "node:child_process";
import { mkdtemp } from "node:fs/promises";
import https from "node:https";
import os from "node:os";
import path from "node:path";
import WebSocket from "ws";
import { binary, freePort, Server, until } from "./server.mjs";

export class TlsServer extends Server {
  /** `certificate` is { cert, key, ca }: two files and the text to trust. */
  static async start({ certificate, set = [], host = "127.0.0.1" }) {
    const server = new TlsServer();
    server.adminToken = "op_test_operator_token";
    server.ownsDir = true;
    server.dataDir = await mkdtemp(path.join(os.tmpdir(), "muster-test-"));
    server.port = await freePort();
    server.url = `https://localhost:${server.port}`;
    server.ws = `wss://localhost:${server.port}`;
    server.ca = certificate.ca;
    server.logs = "";
    const settings = [`http.tls_certificate=${certificate.cert}`, `http.tls_key=${certificate.key}`, ...set];
    const args = ["serve", "--listen", `${host}:${server.port}`, "--data-dir", server.dataDir, ...settings.flatMap((setting) => ["--set", setting])];
    server.process = spawn(binary(), args, { env: { PATH: process.env.PATH, MUSTER_ADMIN_TOKEN: server.adminToken }, stdio: ["ignore", "pipe", "pipe"] });
    server.exited = new Promise((resolve) => server.process.on("exit", (code, signal) => resolve({ code, signal })));
    for (const stream of [server.process.stdout, server.process.stderr]) stream.on("data", (data) => (server.logs += data));
    await until("the node is ready", async () => {
      if (server.process.exitCode !== null) throw new Error(`the node ended:\n${server.logs}`);
      return (await server.request("GET", "/ready").catch(() => null))?.status === 200;
    });
    return server;
  }

  /** As of every server; fetch cannot be told whom to trust. */
  request(method, target, { key, token, agent, body, headers = {}, raw } = {}) {
    const all = { ...headers };
    if (key) all["x-api-key"] = key;
    if (token) all.authorization = `Bearer ${token}`;
    if (agent) all["x-agent-id"] = agent;
    const text = raw ?? (body === undefined ? undefined : JSON.stringify(body));
    if (text !== undefined) all["content-type"] ??= "application/json";
    return new Promise((resolve, reject) => {
      const request = https.request(this.url + target, { method, headers: all, ca: this.ca, agent: false }, async (response) => {
        const parts = [];
        for await (const part of response) parts.push(part);
        const answer = Buffer.concat(parts).toString();
        const parsed = answer.startsWith("{") ? JSON.parse(answer) : null;
        resolve({ status: response.statusCode, headers: new Headers(response.headers), text: answer, body: parsed, data: parsed?.data, error: parsed?.errors?.[0] });
      });
      request.on("error", reject);
      request.end(text);
    });
  }

  /** A WebSocket for the phoenix client that trusts this server. */
  transport() {
    const { ca } = this;
    return class extends WebSocket {
      constructor(address, protocols) {
        super(address, protocols, { ca });
      }
    };
  }
}
