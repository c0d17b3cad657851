// An agent, with what any client has: the npm package `phoenix` for sockets, fetch for REST, Node's crypto for Ed25519.

import { createHash, generateKeyPairSync, sign } from "node:crypto";
import { Socket } from "phoenix";
import WebSocket from "ws";

/** A request to the REST API; gives what is in `data`. */
export async function rest(url, method, path, { key, token, body } = {}) {
  const headers = { "content-type": "application/json" };
  if (key) headers["x-api-key"] = key;
  if (token) headers.authorization = `Bearer ${token}`;
  const response = await fetch(url + path, { method, headers, body: body && JSON.stringify(body) });
  const { data, errors } = await response.json();
  if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${JSON.stringify(errors)}`);
  return data;
}

/** Opens a socket of the server. */
export function connect(url, mount, params) {
  const socket = new Socket(url.replace("http", "ws") + mount, { transport: WebSocket, params });
  socket.connect();
  return socket;
}

const settle = (push) =>
  new Promise((resolve, reject) => {
    push.receive("ok", resolve).receive("error", (response) => reject(new Error(JSON.stringify(response)))).receive("timeout", () => reject(new Error("timeout")));
  });

/** Joins a topic: { reply, push(event, payload), on(event, callback), next(event) }. */
export async function join(socket, topic, params = {}) {
  const channel = socket.channel(topic, params);
  const reply = await settle(channel.join());
  return {
    reply,
    push: (event, payload) => settle(channel.push(event, payload)),
    on: (event, callback) => channel.on(event, callback),
    next: (event) =>
      new Promise((resolve) => {
        const ref = channel.on(event, (payload) => {
          channel.off(event, ref);
          resolve(payload);
        });
      }),
  };
}

/** Millionths of the currency unit, which is how amounts stand in what is signed. */
export const micros = (amount) => Math.round(Number(amount) * 1e6);

export const sha256 = (data) => createHash("sha256").update(data).digest("hex");

/** The hash of no terms. */
const NO_TERMS = sha256("{}");

export class Agent {
  #privateKey;

  /** Registers an agent, and its public key. */
  static async register(url, { name, capabilities, price, owner }) {
    const agent = Object.assign(new Agent(), { url, name });
    const did = `did:example:${name.toLowerCase()}-${Date.now()}`;
    const body = { agent: { name, did, capabilities, pricing_model: "fixed", base_price: price } };
    // Of a user when one is named, or nobody's.
    const registered = owner ? await rest(url, "POST", "/api/v1/agents", { token: owner, body }) : await rest(url, "POST", "/api/v1/agents/register", { body });
    agent.id = registered.agent.id;
    agent.key = registered.api_key;
    const { publicKey, privateKey } = generateKeyPairSync("ed25519");
    agent.#privateKey = privateKey;
    // The last 32 bytes of the standard form are the key itself.
    const raw = publicKey.export({ format: "der", type: "spki" }).subarray(-32);
    await agent.rest("PUT", `/api/v1/agents/${agent.id}/public_key`, { public_key: raw.toString("base64") });
    return agent;
  }

  rest(method, path, body) {
    return rest(this.url, method, path, { key: this.key, body });
  }

  /** Comes online: where its own events arrive, and where it finds others. */
  async connect() {
    this.socket = connect(this.url, "/socket", { api_key: this.key });
    this.agentSocket = connect(this.url, "/socket/agent", { api_key: this.key });
    this.events = await join(this.agentSocket, `agent:${this.id}`);
    this.discovery = await join(this.socket, "agents:discovery", { presence: "none" });
    this.messages = await join(this.socket, `messages:${this.id}`);
  }

  /** Signs fields, one a line, under what they are for. */
  sign(purpose, ...fields) {
    const text = ["muster-sig-v1", purpose, ...fields].join("\n");
    return sign(null, Buffer.from(text), this.#privateKey).toString("base64");
  }

  /** An offer in a negotiation: the how manieth of its own. */
  offer(session, number, amount) {
    return { amount, signature: this.sign("negotiation.offer", session, this.id, number, micros(amount), NO_TERMS) };
  }

  /** Acceptance of the average of the two latest offers. */
  accept(session, amount, clientOffer, providerOffer) {
    return { amount, signature: this.sign("negotiation.accept", session, this.id, micros(amount), micros(clientOffer), micros(providerOffer), NO_TERMS) };
  }

  /** One's half of a transfer: `propose` of who pays, `ack` of who is paid. `a` and `b` are what both have afterwards. */
  transfer(half, { channel, nonce, from, to, amount, a, b }) {
    return { amount, nonce, signature: this.sign(`payment.${half}`, channel, nonce, from, to, micros(amount), micros(a), micros(b)) };
  }

  /** One's signature under the end of a payment channel. */
  close(channel, nonce, a, b) {
    return this.sign("payment.close", channel, nonce, micros(a), micros(b));
  }

  disconnect() {
    this.socket?.disconnect();
    this.agentSocket?.disconnect();
  }
}
