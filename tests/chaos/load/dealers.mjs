// Who there is to send messages, agree on prices and pay each other: accounts, keys and money, and the plans of the
// clients; and what has become of it all, past the clients.

import { micros, Signer } from "../../clients/lib/signer.mjs";
import { rate } from "../../clients/lib/streams.mjs";
import { each, range } from "./many.mjs";

/** Deals a second of one client. */
const PER_SENDER = 10;
const PER_PAIR = 2;
/** Messages, and negotiations, that one client may have under way. */
const WINDOW = 8;
const DEPOSIT = "1000";
const TRANSFER = "0.01";

/** Rates that deals need of a node: they are about faults, not about limits. */
export const DEAL_LIMITS = [
  `limits.joins_per_agent=${rate(1_000_000)}`,
];

export class Dealers {
  /** `deals`: { messages, negotiations, transfers } a second. */
  constructor({ cluster, deals, note }) {
    Object.assign(this, { cluster, deals, note });
  }

  async #agent(name) {
    const { front } = this.cluster;
    const signer = new Signer();
    const agent = await front.agent({ name, price: "60", more: { public_key: signer.publicKey } });
    return { id: agent.id, key: agent.key, seed: signer.seed.toString("hex") };
  }

  /** Makes the accounts; `add` takes the plan of each client. */
  async start(add) {
    const { messages, negotiations, transfers } = this.deals;
    const senders = Math.ceil(messages / PER_SENDER);
    await each(range(senders), async (_, n) => {
      const [from, to] = [await this.#agent(`Sender ${n}`), await this.#agent(`Mailbox ${n}`)];
      add({ c: `mailbox-${n}`, kind: "mailbox", key: to.key, inbox: to.id });
      add({ c: `sender-${n}`, kind: "sender", key: from.key, to: to.id, everyMs: Math.round((senders * 1_000) / messages), window: WINDOW });
    });
    const pairs = Math.ceil(negotiations / PER_PAIR);
    await each(range(pairs), async (_, n) => {
      const [client, provider] = [await this.#agent(`Client ${n}`), await this.#agent(`Provider ${n}`)];
      add({ c: `negotiators-${n}`, kind: "negotiators", key: client.key, client, provider, everyMs: Math.round((pairs * 1_000) / negotiations), window: WINDOW });
    });
    const payers = Math.ceil(transfers / PER_PAIR);
    this.channels = await each(range(payers), async (_, n) => this.#channel(n));
    for (const [n, { id, sides }] of this.channels.entries()) {
      const everyMs = Math.round((payers * 1_000) / transfers);
      add({ c: `payers-${n}`, kind: "payers", key: sides[0].key, channel: id, sides, amount: TRANSFER, deposits: [DEPOSIT, DEPOSIT], everyMs });
    }
    const planned = this.channels.map(({ id }) => [id, { deposits: [DEPOSIT, DEPOSIT].map((amount) => String(micros(amount))), amount: String(micros(TRANSFER)) }]);
    this.note({ e: "dealers", channels: Object.fromEntries(planned) });
  }

  async #channel(n) {
    const { front } = this.cluster;
    const sides = [await this.#agent(`Payer ${n}`), await this.#agent(`Paid ${n}`)];
    for (const { id } of sides) {
      await front.ok("POST", "/api/v1/admin/ledger/credit", { token: front.adminToken, body: { agent_id: id, amount: DEPOSIT, reference: `chaos-${id}` } });
    }
    const body = { counterparty_agent_id: sides[1].id, deposit: DEPOSIT, counterparty_deposit: DEPOSIT };
    const opened = await front.ok("POST", "/api/v1/payment-channels", { key: sides[0].key, body });
    const { id } = opened.channel ?? opened;
    await front.ok("POST", `/api/v1/payment-channels/${id}/accept`, { key: sides[1].key, body: {} });
    return { id, sides };
  }

  /** What has become of everything, as the store and both sides have it. */
  async outcome() {
    const { front, postgres } = this.cluster;
    for (const [id, status] of await postgres.query("SELECT id, status FROM messages", 120_000)) this.note({ e: "kept", id, status });
    const sessions = await postgres.query(SESSIONS, 120_000);
    for (const [x, status, agreements, amount] of sessions) this.note({ e: "session", x, status, agreements: Number(agreements), amount: amount || undefined });
    await each(this.channels, async ({ id, sides }) => {
      for (const [side, { key }] of sides.entries()) {
        const shown = await front.ok("GET", `/api/v1/payment-channels/${id}`, { key });
        const { nonce, status, balance_a: a, balance_b: b } = shown.channel ?? shown;
        this.note({ e: "channel", ch: id, side, nonce, status, a: String(micros(a)), b: String(micros(b)) });
      }
    });
    const [[sum, skewed, strayed]] = await postgres.query(LEDGER, 120_000);
    this.note({ e: "ledger", sum, skewed: Number(skewed), strayed: Number(strayed) });
  }
}

const SESSIONS = `
  SELECT n.id, n.status, count(a.id), coalesce(max(a.document::json->>'amount'), '')
  FROM negotiations n LEFT JOIN agreements a ON a.negotiation = n.id GROUP BY n.id, n.status`;
const LEDGER = `
  SELECT (SELECT sum(balance) FROM ledger_accounts),
    (SELECT count(*) FROM (SELECT entry FROM ledger_postings GROUP BY entry HAVING sum(delta) <> 0) skewed),
    (SELECT count(*) FROM payment_channels c JOIN ledger_accounts l ON l.account = c.id
      WHERE l.balance <> CASE l.side WHEN 1 THEN c.balance_a ELSE c.balance_b END)`;
