// Connections below the clients: handshakes with every header in the test's hands, bytes that are no HTTP, and a bare
// socket that speaks one Phoenix message at a time. Over TLS where the server has a `ca`.

import { randomBytes } from "node:crypto";
import http from "node:http";
import https from "node:https";
import net from "node:net";
import tls from "node:tls";
import WebSocket from "ws";
import { until } from "./server.mjs";

/** A WebSocket handshake; gives { status, headers, body }, and the open connection if there is one. */
export function handshake(server, target, { method = "GET", headers = {}, omit = [] } = {}) {
  const all = {
    connection: "Upgrade",
    upgrade: "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": randomBytes(16).toString("base64"),
    ...headers,
  };
  for (const name of omit) delete all[name];
  const { request: send } = server.ca ? https : http;
  return new Promise((resolve, reject) => {
    const request = send(server.url + target, { method, headers: all, agent: false, ca: server.ca });
    request.on("upgrade", (response, tcp) => resolve({ status: response.statusCode, headers: response.headers, body: "", tcp }));
    request.on("response", async (response) => {
      let body = "";
      for await (const part of response) body += part;
      resolve({ status: response.statusCode, headers: response.headers, body });
    });
    request.on("error", reject);
    request.end();
  });
}

/** The status of a handshake; what opened is closed again. */
export async function handshakeStatus(server, target, options) {
  const answer = await handshake(server, target, options);
  answer.tcp?.destroy();
  return answer.status;
}

/** A query string. */
export const query = (params) => `?${new URLSearchParams(params)}`;

/** The sub-protocol by which a client shows a token. */
export const tokenProtocol = (token) => `base64url.bearer.phx.${Buffer.from(token).toString("base64").replaceAll("=", "")}`;

/** A TCP (or TLS) connection that sends what it is told. */
export class Line {
  received = "";
  closed = false;

  static async open(server, { secure = Boolean(server.ca) } = {}) {
    const line = new Line();
    const options = { port: server.port, host: "127.0.0.1", ca: server.ca };
    line.tcp = secure ? tls.connect({ ...options, servername: "localhost" }) : net.connect(options);
    line.tcp.setEncoding("latin1");
    line.tcp.on("error", () => {});
    line.tcp.on("data", (data) => (line.received += data));
    line.tcp.on("end", () => line.tcp.destroy());
    line.tcp.on("close", () => (line.closed = true));
    await new Promise((resolve) => {
      line.tcp.once(secure ? "secureConnect" : "connect", resolve);
      line.tcp.once("close", resolve);
    });
    return line;
  }

  write(bytes) {
    if (!this.closed) this.tcp.write(bytes);
  }

  /** The first answer, once it is whole or the connection is closed; null when there was none. */
  async answer(ms) {
    await until("an answer, or the end", () => this.closed || isWhole(parse(this.received)), ms);
    return parse(this.received);
  }

  ended(ms) {
    return until("the connection is closed", () => this.closed, ms);
  }

  end() {
    this.tcp.destroy();
  }
}

function parse(received) {
  const end = received.indexOf("\r\n\r\n");
  if (end < 0) return null;
  const [first, ...lines] = received.slice(0, end).split("\r\n");
  const headers = Object.fromEntries(lines.map((line) => [line.slice(0, line.indexOf(":")).toLowerCase(), line.slice(line.indexOf(":") + 1).trim()]));
  const length = Number(headers["content-length"] ?? 0);
  const body = received.slice(end + 4, end + 4 + length);
  const error = body.length === length && body.startsWith("{") ? JSON.parse(body).errors?.[0] : undefined;
  return { status: Number(first.split(" ")[1]), headers, body, error };
}

const isWhole = (answer) => answer !== null && answer.body.length >= Number(answer.headers["content-length"] ?? 0);

/** Sends bytes on a connection of their own, and gives the answer, or null. */
export async function exchange(server, bytes, ms) {
  const line = await Line.open(server);
  line.write(bytes);
  const answer = await line.answer(ms);
  line.end();
  return answer;
}

/** A WebSocket that speaks Phoenix by hand: V2, or V1 when `vsn` is null or says so. */
export class Bare {
  messages = [];
  #ref = 0;

  static async open(server, path, params = {}, { vsn = "2.0.0", protocols = [], headers } = {}) {
    const bare = new Bare();
    bare.v1 = vsn === null || vsn.startsWith("1.");
    const target = query({ ...params, ...(vsn === null ? {} : { vsn }) });
    bare.ws = new WebSocket(`${server.ws}${path}${target}`, protocols, { headers, ca: server.ca });
    bare.ws.on("message", (data, binary) => bare.messages.push(binary ? { binary: data } : bare.#read(JSON.parse(data.toString()))));
    bare.ws.on("close", (code, reason) => (bare.closed = { code, reason: reason.toString() }));
    await new Promise((resolve, reject) => {
      bare.ws.on("open", resolve);
      bare.ws.on("error", reject);
    });
    return bare;
  }

  #read(frame) {
    if (this.v1) return frame;
    const [join_ref, ref, topic, event, payload] = frame;
    return { join_ref, ref, topic, event, payload };
  }

  send(topic, event, payload = {}, joinRef = null) {
    const ref = String(++this.#ref);
    const join_ref = event === "phx_join" ? ref : joinRef;
    this.ws.send(JSON.stringify(this.v1 ? { topic, event, payload, ref, join_ref } : [join_ref, ref, topic, event, payload]));
    return ref;
  }

  /** Sends, and gives the payload of the reply: { status, response }. */
  async ask(topic, event, payload, joinRef) {
    const ref = this.send(topic, event, payload, joinRef);
    const isReply = (one) => one.event === "phx_reply" && one.topic === topic && one.ref === ref;
    return (await until(`the reply to ${event}`, () => this.messages.find(isReply))).payload;
  }

  join(topic, payload) {
    return this.ask(topic, "phx_join", payload);
  }

  /** Payloads of an event on a topic. */
  events(topic, event) {
    return this.messages.filter((one) => one.topic === topic && one.event === event).map((one) => one.payload);
  }

  /** Waits until it is closed; gives { code, reason }. */
  ended(ms) {
    return until("the socket is closed", () => this.closed, ms);
  }

  end() {
    this.ws.terminate();
  }
}
