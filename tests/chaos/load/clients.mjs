// The clients of a run. Each is a real client that comes back as it does by itself, and notes what happens to it.

import { createHash } from "node:crypto";
import { createRequire } from "node:module";
import { phoenix, VERSIONS } from "../../clients/lib/phoenix.mjs";
import { Roster } from "../../clients/lib/roster.mjs";
import { Client } from "./client.mjs";
import { DEALS } from "./deals.mjs";

// The packages of the client tests.
const require = createRequire(new URL("../../clients/lib/phoenix.mjs", import.meta.url));
const { EventSource } = require("eventsource");

const DISCOVERY = "agents:discovery";
/** Pause before chunks that were refused are sent again, ms. */
const AGAIN_MS = 200;
/** How long a request over REST may take, ms. */
const REQUEST_MS = 15_000;
/** Pause before an event stream that was given up is opened again, ms. */
const REOPEN_MS = 1_000;

export const hash = (content) => createHash("sha1").update(content).digest("hex").slice(0, 12);

/** An agent that is online, and no more. */
class Online extends Client {
  start() {
    this.connect("/socket/agent", `agent:${this.plan.agent}`);
  }
}

/** Emits chunks of one stream, each until it is acknowledged, in order. */
class Emitter extends Client {
  made = 0;
  /** Chunks that are not acknowledged, oldest first; never more than the window. */
  pending = [];
  lastSeq = 0;
  quiet = false;

  start() {
    this.open();
    this.timer = setInterval(() => this.tick(), this.plan.everyMs);
  }

  tick() {
    if (this.quiet || this.pending.length >= this.plan.window) return;
    const n = ++this.made;
    const content = `${this.plan.s}:${n}:`.padEnd(this.plan.bytes, "abcdefghij");
    this.note({ e: "sent", s: this.plan.s, n, h: hash(content) });
    this.pending.push({ n, content, key: `k${n}`, isSent: false });
    this.pump();
  }

  acknowledged(chunk, seq) {
    this.note({ e: "ack", s: this.plan.s, n: chunk.n, q: seq });
    this.lastSeq = Math.max(this.lastSeq, seq);
    const at = this.pending.indexOf(chunk);
    if (at >= 0) this.pending.splice(at, 1);
    this.pump();
  }

  again(chunk, why) {
    this.note({ e: "again", s: this.plan.s, n: chunk.n, why });
  }

  get payload() {
    return ({ content, key }) => ({ task_id: this.plan.task, content, idempotency_key: key, kind: "artifact" });
  }

  end() {
    clearInterval(this.timer);
    clearTimeout(this.later);
    super.end();
  }
}

class ChannelEmitter extends Emitter {
  open() {
    this.connect("/socket/agent", `agent:${this.plan.agent}`);
  }

  joined() {
    this.rewind("rejoined");
  }

  /** All that is not acknowledged goes out again, in order. */
  rewind(why) {
    for (const chunk of this.pending.filter((one) => one.isSent)) {
      this.again(chunk, why);
      chunk.isSent = false;
    }
    this.pump();
  }

  pump() {
    if (!this.isUp || this.ended || this.later) return;
    for (const chunk of this.pending.filter((one) => !one.isSent)) {
      chunk.isSent = true;
      this.channel
        .push("task.stream_chunk", this.payload(chunk))
        .receive("ok", ({ seq }) => this.acknowledged(chunk, seq))
        .receive("error", (response) => this.refused(chunk, response.reason))
        .receive("timeout", () => this.refused(chunk, "timeout"));
    }
  }

  refused(chunk, reason) {
    // An answer to what was sent before, which has been acknowledged or sent again since.
    if (this.ended || !this.pending.includes(chunk)) return;
    if (reason !== "timeout" && !this.world.mayRetry(reason)) this.failed(`chunk ${chunk.n} of ${this.plan.s}: ${reason}`);
    if (this.later) return;
    this.later = setTimeout(() => {
      this.later = null;
      this.rewind(reason);
    }, AGAIN_MS);
  }
}

class RestEmitter extends Emitter {
  open() {}

  /** One at a time: the next goes when this one is acknowledged. */
  async pump() {
    if (this.isBusy || this.ended || this.pending.length === 0) return;
    this.isBusy = true;
    const [chunk] = this.pending;
    const why = await this.send(chunk).catch((error) => error.cause?.code ?? error.name);
    this.isBusy = false;
    if (why === null || this.ended) return this.pump();
    this.again(chunk, why);
    this.later = setTimeout(() => this.pump(), AGAIN_MS);
  }

  /** Why it has to be sent again, or null. */
  async send(chunk) {
    const { task_id: task, ...body } = this.payload(chunk);
    const headers = { "x-api-key": this.plan.key, "content-type": "application/json" };
    const response = await fetch(`${this.plan.base}/api/v1/tasks/${task}/chunk`, { method: "POST", headers, body: JSON.stringify(body), signal: AbortSignal.timeout(REQUEST_MS) });
    const text = await response.text();
    if (response.ok) {
      this.acknowledged(chunk, JSON.parse(text).data.seq);
      return null;
    }
    // Of the balancer, when it has nobody to ask, there is no reason to read.
    const reason = text.startsWith("{") ? JSON.parse(text).errors?.[0]?.details?.reason : null;
    if (response.status < 500 && !this.world.mayRetry(reason)) this.failed(`chunk ${chunk.n} of ${this.plan.s}: ${response.status} ${text}`);
    return reason ?? String(response.status);
  }
}

/** Reads one stream: from where it was, each time it comes back. */
class Reader extends Client {
  last = 0;
  done = false;

  chunk({ seq, content }) {
    this.note({ e: "read", s: this.plan.s, q: seq, h: hash(content) });
    this.last = Math.max(this.last, seq);
  }

  finished() {
    this.note({ e: "done", s: this.plan.s });
    this.done = true;
    this.leave();
  }
}

class ChannelReader extends Reader {
  start() {
    this.connect("/socket/hirer", `task_stream:${this.plan.task}`, () => ({ after_seq: this.last }));
    this.channel.on("stream.chunk", (payload) => this.chunk(payload));
    this.channel.on("stream.done", () => this.finished());
    this.channel.on("stream.error", (payload) => this.failed(`stream.error ${JSON.stringify(payload)}`));
  }

  leave() {
    this.channel.leave();
  }
}

class EventReader extends Reader {
  start() {
    const headers = { authorization: `Bearer ${this.plan.key}` };
    const address = `${this.plan.base}/api/v1/tasks/${this.plan.task}/stream?after=${this.last}`;
    this.source = new EventSource(address, { fetch: (url, init) => fetch(url, { ...init, headers: { ...init.headers, ...headers } }) });
    this.source.addEventListener("stream.joined", () => this.up());
    this.source.addEventListener("stream.chunk", (event) => this.chunk(JSON.parse(event.data)));
    this.source.addEventListener("stream.done", () => this.finished());
    this.source.addEventListener("stream.error", (event) => this.failed(`stream.error ${event.data}`));
    this.source.addEventListener("error", (event) => {
      this.down();
      const { code } = event;
      if (code !== undefined && code >= 400 && code < 500 && code !== 429) this.failed(`event stream: ${code}`);
      // By the standard an answer other than 200 ends it for good; whoever wants to go on opens another.
      if (this.source.readyState === EventSource.CLOSED && !this.ended && !this.done) this.later = setTimeout(() => this.ended || this.start(), REOPEN_MS);
    });
  }

  leave() {
    this.source.close();
  }

  end() {
    this.ended = true;
    clearTimeout(this.later);
    this.source?.close();
  }
}

/** Watches who is online as a user of the npm client does. */
export class Watcher extends Client {
  start() {
    const { Presence } = phoenix(VERSIONS[this.plan.number % VERSIONS.length]);
    this.connect("/socket", DISCOVERY);
    this.presence = new Presence(this.channel);
  }

  /** How many metas it sees of each agent. */
  counts() {
    return Object.fromEntries(this.presence.list((a, { metas }) => [a, metas.length]));
  }
}

/** Watches one node and no other, and notes everything it shows; what no correct server sends is a failure. */
export class NodeWatcher extends Client {
  roster = new Roster();

  start() {
    this.connect("/socket", DISCOVERY);
    this.channel.on("presence_state", (payload) => this.take("presence_state", payload));
    this.channel.on("presence_diff", (payload) => this.take("presence_diff", payload));
  }

  take(event, payload) {
    const { node } = this.plan;
    try {
      this.roster.apply([null, null, DISCOVERY, event, payload]);
      this.roster.frames.length = 0;
    } catch (error) {
      this.failed(`${node}: ${error.message}`);
      return;
    }
    if (event === "presence_state") return this.note({ e: "view", node, all: this.roster.counts() });
    for (const a of new Set([...Object.keys(payload.joins), ...Object.keys(payload.leaves)])) this.note({ e: "seen", node, a, k: this.roster.of(a).length });
  }

  down() {
    if (this.isUp) this.note({ e: "blind", node: this.plan.node });
    super.down();
  }
}

const KINDS = { online: Online, channel: ChannelEmitter, rest: RestEmitter, reader: ChannelReader, events: EventReader, watcher: Watcher, node: NodeWatcher, ...DEALS };

export const client = (plan, world) => new KINDS[plan.kind](plan, world);
