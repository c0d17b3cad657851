// A raw `ws` socket that sends exactly the frames a test says, and keeps every frame that comes.

import assert from "node:assert/strict";
import WebSocket from "ws";
import { PATIENCE_MS } from "./server.mjs";

const PRESENCE = new Set(["presence_state", "presence_diff"]);

/** Waits for a promise at most so long. */
export function within(ms, what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`timed out after ${ms} ms: ${what}`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** What V1 and V2 frames have in common, as [join_ref, ref, topic, event, payload]. */
function parts(message) {
  if (Array.isArray(message)) return message;
  return [undefined, message.ref, message.topic, message.event, message.payload];
}

export class Wire {
  /** Opens; fails when the server refuses. Presence frames go to `presence`, the others to `inbox`. */
  static async open(url, { protocols = [], headers = {} } = {}) {
    const wire = new Wire();
    wire.inbox = [];
    wire.presence = [];
    wire.pongs = [];
    wire.waiting = new Set();
    wire.counter = 0;
    const socket = new WebSocket(url, protocols, { headers });
    wire.socket = socket;
    wire.closed = new Promise((resolve) => socket.on("close", (code, reason) => resolve({ code, reason: String(reason) })));
    wire.closed.then(() => {
      wire.isClosed = true;
      wire.#wake();
    });
    socket.on("pong", (data) => wire.pongs.push(data));
    socket.on("message", (data, isBinary) => wire.#take(data, isBinary));
    const opened = new Promise((resolve, reject) => {
      socket.on("open", resolve);
      socket.on("error", reject);
    });
    await within(PATIENCE_MS, "the socket opens", opened);
    return wire;
  }

  #take(data, isBinary) {
    const text = String(data);
    const message = isBinary ? null : JSON.parse(text);
    const frame = { text, message, isBinary };
    const isPresence = message && PRESENCE.has(parts(message)[3]);
    (isPresence ? this.presence : this.inbox).push(frame);
    this.#wake();
  }

  #wake() {
    for (const resolve of this.waiting) resolve();
    this.waiting.clear();
  }

  /** A string or bytes go as they are, anything else as JSON. */
  send(message) {
    this.socket.send(typeof message === "string" || Buffer.isBuffer(message) ? message : JSON.stringify(message));
  }

  /** All of them in one TCP segment, as far as the kernel allows. */
  sendTogether(messages) {
    const tcp = this.socket._socket;
    tcp.cork();
    for (const message of messages) this.send(message);
    tcp.uncork();
  }

  async #until(what, look, ms = PATIENCE_MS) {
    const end = Date.now() + ms;
    for (;;) {
      const found = look();
      if (found !== undefined) return found;
      if (this.isClosed) throw new Error(`closed while waiting for ${what}: ${JSON.stringify(await this.closed)}`);
      const left = end - Date.now();
      if (left <= 0) throw new Error(`timed out after ${ms} ms: ${what}; had ${JSON.stringify(this.inbox.map((frame) => frame.text))}`);
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, left);
        this.waiting.add(() => {
          clearTimeout(timer);
          resolve();
        });
      });
    }
  }

  /** The next frame, whatever it is, with its text. */
  frame(ms) {
    return this.#until("the next frame", () => this.inbox.shift(), ms);
  }

  /** The next message, parsed. */
  async next(ms) {
    return (await this.frame(ms)).message;
  }

  /** So many messages, in order. */
  async take(count) {
    const messages = [];
    while (messages.length < count) messages.push(await this.next());
    return messages;
  }

  /** The next presence message. */
  async nextPresence(ms) {
    return (await this.#until("a presence frame", () => this.presence.shift(), ms)).message;
  }

  /** The first message that fits, wherever it is in the inbox. */
  find(what, fits, ms) {
    return this.#until(what, () => {
      const at = this.inbox.findIndex((frame) => frame.message && fits(frame.message));
      return at < 0 ? undefined : this.inbox.splice(at, 1)[0].message;
    }, ms);
  }

  /** Asks, and waits for the answer with that very ref. */
  async ask(message) {
    this.send(message);
    const [, ref] = parts(message);
    const reply = await this.find(`the reply to ${JSON.stringify(ref)}`, (got) => parts(got)[3] === "phx_reply" && parts(got)[1] === ref);
    return reply;
  }

  /** Nothing but a heartbeat's answer comes: so what was sent before is answered, or never will be. */
  async silence() {
    const ref = `fence-${++this.counter}`;
    const isV1 = this.socket.url.includes("vsn=1") || !this.socket.url.includes("vsn=");
    this.send(isV1 ? { topic: "phoenix", event: "heartbeat", payload: {}, ref } : [null, ref, "phoenix", "heartbeat", {}]);
    const message = await this.next();
    assert.equal(parts(message)[1], ref, `expected silence, got ${JSON.stringify(message)}`);
  }

  /** Waits for the end; gives { code, reason }. */
  end(ms = PATIENCE_MS) {
    return within(ms, "the socket closes", this.closed);
  }

  close() {
    this.socket.terminate();
  }
}

/** A V2 binary push. */
export function binaryPush(joinRef, ref, topic, event, data = Buffer.alloc(0), kind = 0) {
  const names = [joinRef, ref, topic, event].map((name) => Buffer.from(name));
  return Buffer.concat([Buffer.from([kind, ...names.map((name) => name.length)]), ...names, Buffer.from(data)]);
}

export const ok = (joinRef, ref, topic, response = {}) => [joinRef, ref, topic, "phx_reply", { status: "ok", response }];
export const refused = (joinRef, ref, topic, reason) => [joinRef, ref, topic, "phx_reply", { status: "error", response: { reason } }];
