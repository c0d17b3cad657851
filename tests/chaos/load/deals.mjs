// Clients that send messages, agree on prices and pay each other, and note what they were told. Each does again what was
// not answered, in the way its sort of deal is meant to be done again.

import { randomUUID } from "node:crypto";
import { decimal, micros, Signer, statements } from "../../clients/lib/signer.mjs";
import { Client } from "./client.mjs";

/** Pause before something is tried again, ms. */
const AGAIN_MS = 200;
/** How long a request may take, ms. */
const REQUEST_MS = 15_000;
/** What a proposal and an acceptance are about. */
const [OFFERED, ASKED, AGREED] = ["80", "100", "90"];

const later = (ms = AGAIN_MS) => new Promise((resolve) => setTimeout(resolve, ms));

/** How often a client looks what is due, for each that it makes. */
const LOOKS = 4;

/**
 * A client that makes something each `everyMs`, with at most `window` under way, until it is told to be quiet. What could
 * not be begun in time, as a node was away, is made up for.
 */
class Maker extends Client {
  made = 0;
  /** What is under way. */
  pending = [];
  lastSeq = 0;
  quiet = false;

  start() {
    const begun = Date.now();
    this.timer = setInterval(() => {
      const due = Math.floor((Date.now() - begun) / this.plan.everyMs);
      while (!this.quiet && !this.ended && this.made < due && this.pending.length < this.plan.window) this.#run({ n: ++this.made });
    }, this.plan.everyMs / LOOKS);
  }

  async #run(deal) {
    this.pending.push(deal);
    await this.make(deal).catch((error) => this.ended || this.failed(`deal ${deal.n}: ${error.stack}`));
    this.pending.splice(this.pending.indexOf(deal), 1);
  }

  /** One request, until it is answered with something that is not to be tried again: { status, data, reason, tries }. */
  async rest(method, path, key, body, headers = {}) {
    for (let tries = 1; !this.ended; tries++) {
      const answer = await this.#once(method, path, key, body, headers).catch((error) => ({ status: 0, reason: error.cause?.code ?? error.name }));
      if (answer.status > 0 && answer.status < 500 && !(answer.reason && this.world.mayRetry(answer.reason))) return { ...answer, tries };
      this.note({ e: "retried", why: answer.reason ?? String(answer.status) });
      await later();
    }
    throw new Error("ended");
  }

  async #once(method, path, key, body, headers) {
    const options = { method, headers: { "x-api-key": key, "content-type": "application/json", ...headers }, signal: AbortSignal.timeout(REQUEST_MS) };
    if (body !== undefined) options.body = JSON.stringify(body);
    const response = await fetch(this.plan.base + path, options);
    const text = await response.text();
    // Of the balancer, when it has nobody to ask, there is nothing to read.
    const parsed = text.startsWith("{") ? JSON.parse(text) : {};
    return { status: response.status, data: parsed.data, text, reason: parsed.errors?.[0]?.details?.reason };
  }

  end() {
    clearInterval(this.timer);
    super.end();
  }
}

/** Sends messages to one agent, each under a key of its own until it is accepted. */
class Sender extends Maker {
  async make({ n }) {
    const m = `${this.plan.c}:${n}`;
    const once = n % 4 !== 0;
    const body = { to_agent_id: this.plan.to, type: "chaos", payload: { m }, delivery_guarantee: once ? "exactly_once" : "at_least_once" };
    if (once) body.dedup_key = m;
    this.note({ e: "mail", m, to: this.plan.to, once });
    const { status, data, text } = await this.rest("POST", "/api/v1/messages", this.plan.key, body, { "x-idempotency-key": m });
    if (status === 201 || status === 200) this.note({ e: "taken", m, id: data.id });
    else this.failed(`message ${m}: ${status} ${text}`);
  }
}

/** Receives an agent's messages and acknowledges each. */
class Mailbox extends Client {
  start() {
    this.connect("/socket", `messages:${this.plan.inbox}`);
    this.channel.on("new_message", ({ id, payload, delivery_guarantee: guarantee }) => {
      this.note({ e: "got", m: payload.m, id, once: guarantee === "exactly_once" });
      this.channel
        .push("acknowledge", { message_id: id })
        .receive("ok", () => this.note({ e: "fenced", id }))
        // It comes again, as it is not acknowledged.
        .receive("error", ({ reason }) => this.world.mayRetry(reason) || this.failed(`acknowledging ${id}: ${reason}`));
    });
  }
}

/** Two agents that agree on a price, again and again; speaks for both. */
class Negotiators extends Maker {
  constructor(plan, world) {
    super(plan, world);
    for (const side of [plan.client, plan.provider]) side.signer = new Signer(Buffer.from(side.seed, "hex"));
  }

  async make() {
    const { client, provider } = this.plan;
    const session = randomUUID();
    this.note({ e: "opened", x: session });
    const offer = (side, amount) => ({ amount, signature: side.signer.sign(statements.offer({ session, agent: side.id, no: 1, amount })) });
    const path = `/api/v1/negotiations/${session}`;
    const opening = { provider_agent_id: provider.id, session_id: session, ...offer(client, OFFERED) };
    const opened = await this.rest("POST", "/api/v1/negotiations", client.key, opening);
    // It was there already if an answer got lost.
    if (opened.status !== 201 && !(opened.tries > 1 && opened.status === 409)) return this.failed(`opening: ${opened.status} ${opened.text}`);
    const countered = await this.rest("POST", `${path}/counter`, provider.key, offer(provider, ASKED));
    if (countered.status >= 300 && !(countered.tries > 1 && (await this.#session(path)).offers.some((one) => one.agent_id === provider.id))) {
      return this.failed(`countering: ${countered.status} ${countered.text}`);
    }
    const signature = client.signer.sign(statements.accept({ session, agent: client.id, amount: AGREED, client: OFFERED, provider: ASKED }));
    const accepted = await this.rest("POST", `${path}/accept`, client.key, { amount: AGREED, signature });
    if (accepted.status >= 300 && !(accepted.tries > 1 && (await this.#session(path)).status === "accepted")) {
      return this.failed(`accepting: ${accepted.status} ${accepted.text}`);
    }
    this.note({ e: "agreed", x: session, amount: AGREED });
    return undefined;
  }

  async #session(path) {
    const { data } = await this.rest("GET", path, this.plan.client.key);
    return data.session ?? data;
  }
}

/** Two agents with a payment channel: by turns one proposes a transfer and the other acknowledges it. */
class Payers extends Maker {
  constructor(plan, world) {
    super({ ...plan, window: 1 }, world);
    for (const side of plan.sides) side.signer = new Signer(Buffer.from(side.seed, "hex"));
    this.state = { nonce: 0, balances: plan.deposits.map(micros) };
  }

  start() {
    this.lines = this.plan.sides.map((side, number) => {
      const line = new Client({ ...this.plan, c: `${this.plan.c}-${number}`, key: side.key }, this.world);
      line.connect("/socket", `payment:${this.plan.channel}`);
      line.channel.on("transfer_complete", ({ nonce }) => this.note({ e: "told", ch: this.plan.channel, side: number, nonce }));
      return line;
    });
    super.start();
  }

  get isDown() {
    return this.lines?.some((line) => line.isDown) ?? false;
  }

  /** A push that is answered: "ok", or why not. */
  #push(side, event, payload) {
    const line = this.lines[side];
    if (!line.isUp) return Promise.resolve("down");
    return new Promise((resolve) => {
      line.channel.push(event, payload).receive("ok", () => resolve("ok")).receive("error", ({ reason }) => resolve(reason)).receive("timeout", () => resolve("timeout"));
    });
  }

  async make() {
    const { channel, sides, amount } = this.plan;
    const payer = this.state.nonce % 2;
    const after = this.state.balances.map((balance, side) => (side === payer ? balance - micros(amount) : balance + micros(amount)));
    const nonce = this.state.nonce + 1;
    const transfer = { channel, nonce, from: sides[payer].id, to: sides[1 - payer].id, amount, a: decimal(after[0]), b: decimal(after[1]) };
    const move = (purpose, side) => ({ amount, nonce, signature: sides[side].signer.sign(statements[purpose](transfer)) });
    while (!this.ended) {
      let [what, answer] = ["propose_transfer", await this.#push(payer, "propose_transfer", move("propose", payer))];
      if (answer === "ok" || answer === "transfer_pending") {
        [what, answer] = ["acknowledge_transfer", await this.#push(1 - payer, "acknowledge_transfer", move("ack", 1 - payer))];
        if (answer === "ok") {
          this.note({ e: "moved", ch: channel, nonce });
          break;
        }
      }
      if (!["down", "timeout", "invalid_nonce", "no_transfer_pending", "unmatched topic"].includes(answer) && !this.world.mayRetry(answer)) {
        this.failed(`${what} ${nonce}: ${answer}`);
      }
      this.note({ e: "retried", why: answer });
      await later();
      if ((await this.#stored()).nonce >= nonce) {
        this.note({ e: "moved", ch: channel, nonce });
        break;
      }
    }
    this.state = { nonce, balances: after };
  }

  async #stored() {
    const { data } = await this.rest("GET", `/api/v1/payment-channels/${this.plan.channel}`, this.plan.sides[0].key);
    return data.channel ?? data;
  }

  end() {
    for (const line of this.lines ?? []) line.end();
    super.end();
  }
}

export const DEALS = { sender: Sender, mailbox: Mailbox, negotiators: Negotiators, payers: Payers };
