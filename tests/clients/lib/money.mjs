// What the tests of money share: agents that sign, credits, and joined payment channels.

import assert from "node:assert/strict";
import { join, push } from "./phoenix.mjs";
import { decimal, micros, Signer, statements } from "./signer.mjs";

/** An agent with a key to sign with, and perhaps some money. */
export async function signingAgent(server, { credit: amount, ...options } = {}) {
  const signer = new Signer();
  const agent = await server.agent({ ...options, more: { public_key: signer.publicKey, ...options.more } });
  if (amount) await credit(server, agent, amount);
  return Object.assign(agent, { signer });
}

export const credit = (server, agent, amount, more = {}) =>
  server.ok("POST", "/api/v1/admin/ledger/credit", { token: server.adminToken, body: { agent_id: agent.id, amount, ...more } });

export const balance = (server, who) => server.ok("GET", "/api/v1/ledger/balance", who.key ? { key: who.key } : { token: who.token, agent: who.agent });

/** [available, escrow] */
export async function money(server, who) {
  const { available, escrow } = await balance(server, who);
  return [available, escrow];
}

/** The whole ledger adds up. */
export async function assertSound(server) {
  const audit = await server.ok("GET", "/api/v1/admin/ledger/audit", { token: server.adminToken });
  assert.deepEqual([audit.unbalanced_entries, audit.mismatched_accounts, audit.sum_micros], [0, 0, 0], JSON.stringify(audit));
  return audit;
}

/** An open payment channel of two agents that have `credit` each and put `deposit` in. */
export async function openChannel(server, { deposit = "10", counter = deposit, credit: each = "100" } = {}) {
  const a = await signingAgent(server, { name: "A", credit: each });
  const b = await signingAgent(server, { name: "B", credit: each });
  const channel = await server.ok("POST", "/api/v1/payment-channels", { key: a.key, body: { counterparty_agent_id: b.id, deposit, counterparty_deposit: counter } });
  await server.ok("POST", `/api/v1/payment-channels/${channel.id}/accept`, { key: b.key, body: {} });
  return new Pair(server, channel.id, a, b);
}

/** Two agents and the channel between them: what they sign, and what they send. */
export class Pair {
  constructor(server, id, a, b) {
    Object.assign(this, { server, id, a, b, topic: `payment:${id}` });
  }

  other(who) {
    return who === this.a ? this.b : this.a;
  }

  show(who = this.a, server = this.server) {
    return server.ok("GET", `/api/v1/payment-channels/${this.id}`, { key: who.key });
  }

  /** The signed messages of a transfer from the state as it is: { propose, ack }. */
  async transfer(from, amount, change = {}) {
    const { balance_a, balance_b, nonce } = await this.show();
    return this.signed(from, amount, { a: balance_a, b: balance_b, nonce: nonce + 1, ...change });
  }

  /** The same from a given state. */
  signed(from, amount, { a, b, nonce }) {
    const to = this.other(from);
    const paid = from === this.a ? micros(amount) : -micros(amount);
    const after = { a: decimal(micros(a) - paid), b: decimal(micros(b) + paid) };
    const text = { channel: this.id, nonce, from: from.id, to: to.id, amount, ...after };
    return {
      propose: { amount, nonce, signature: from.signer.sign(statements.propose(text)) },
      ack: { amount, nonce, signature: to.signer.sign(statements.ack(text)) },
      text,
    };
  }

  closing(a, b, nonce, signers = [this.a.signer, this.b.signer]) {
    const text = statements.close(this.id, nonce, a, b);
    return { final_balance_a: a, final_balance_b: b, signature_a: signers[0].sign(text), signature_b: signers[1].sign(text) };
  }

  /** Joins both sides, each with what it is told; `ask(event, payload)` gives what was answered. */
  async join(connections, servers = [this.server, this.server]) {
    const sides = [];
    for (const [n, who] of [this.a, this.b].entries()) sides.push(await this.joinAs(connections, who, servers[n]));
    return sides;
  }

  async joinAs(connections, who, server = this.server) {
    const socket = await connections.socket(server, "/socket", who.key);
    const channel = socket.channel(this.topic, {});
    const side = { who, socket, channel, events: [] };
    for (const event of EVENTS) channel.on(event, (payload) => side.events.push([event, payload]));
    side.joined = await join(channel);
    assert.equal(side.joined.status, "ok", JSON.stringify(side.joined));
    side.ask = async (event, payload) => {
      const { status, response } = await push(channel, event, payload);
      return status === "ok" ? response : { refused: response };
    };
    side.names = () => side.events.map(([event]) => event);
    side.of = (event) => side.events.filter(([name]) => name === event).map(([, payload]) => payload);
    return side;
  }

  /** A whole transfer over the joined sides; gives the answer to the acknowledgement. */
  async pay([a, b], from, amount) {
    const { propose, ack } = await this.transfer(from, amount);
    const [payer, payee] = from === this.a ? [a, b] : [b, a];
    const proposed = await payer.ask("propose_transfer", propose);
    assert.equal(proposed.refused, undefined, JSON.stringify(proposed));
    return payee.ask("acknowledge_transfer", ack);
  }
}

const EVENTS = ["channel_opened", "transfer_proposed", "transfer_complete", "transfer_rejected", "dispute_opened", "channel_closed"];

