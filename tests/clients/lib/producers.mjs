// Producers that lose no chunk: each is sent under its key until it is acknowledged, whatever becomes of nodes meanwhile.

import assert from "node:assert/strict";
import { sleep, until } from "./server.mjs";
import { log, range } from "./streams.mjs";

/** How long an answer may take before its request is given up, and sent again under its key. */
const ANSWER_MS = 12_000;

/** One chunk by REST at a node: { seq }, or { why } where there was no answer or one that says to come again. */
export async function tryRest(node, provider, task, chunk) {
  const signal = AbortSignal.timeout(ANSWER_MS);
  const headers = { "content-type": "application/json", "x-api-key": provider.key };
  const response = await fetch(`${node.url}/api/v1/tasks/${task.id}/chunk`, { method: "POST", headers, body: JSON.stringify(chunk), signal }).catch((error) => ({ why: error.cause?.code ?? error.name }));
  if (response.why) return response;
  const text = await response.text().catch(() => "");
  if (response.status === 202 && text) return { seq: JSON.parse(text).data.seq };
  // A balancer's own 502 to 504 is no JSON.
  const why = `${response.status} ${text}`;
  assert.ok(response.status >= 500 || [202, 429].includes(response.status), why);
  return { why };
}

/** A producer that sends each chunk, at one node after another, until it is acknowledged, before it goes on. */
export class Producer {
  /** Seq by key, as acknowledged. */
  acks = new Map();
  retries = 0;
  /** The longest that one chunk took until it was acknowledged, in milliseconds. */
  longestMs = 0;
  #on = true;

  constructor(name, ways, pauseMs = 5) {
    this.done = this.#run(name, ways, pauseMs);
    // Whoever waits for it sees the failure.
    this.done.catch(() => {});
  }

  async #run(name, ways, pauseMs) {
    let turn = 0;
    for (let n = 1; this.#on; n++) {
      const chunk = { content: `${name}${n} `, idempotency_key: `${name}${n}` };
      const begun = Date.now();
      let answer;
      for (;;) {
        answer = await ways[turn++ % ways.length](chunk);
        if (answer.seq !== undefined) break;
        this.retries++;
        assert.ok(Date.now() - begun < 40_000, `${chunk.content} was never acknowledged: ${answer.why}`);
        await sleep(20);
      }
      this.longestMs = Math.max(this.longestMs, Date.now() - begun);
      this.acks.set(chunk.idempotency_key, answer.seq);
      await sleep(pauseMs);
    }
  }

  /** So many more have been acknowledged. */
  async more(count) {
    const enough = this.acks.size + count;
    await until("more acknowledged chunks", async () => {
      await Promise.race([this.done, sleep(5)]);
      return this.acks.size >= enough;
    }, 60_000);
  }

  stop() {
    this.#on = false;
    return this.done;
  }
}

/** Everything that was acknowledged is stored where it was acknowledged, without a gap and once, as these nodes say; gives it. */
export async function assertStored(nodes, producers, { client, task }) {
  const logs = await Promise.all(nodes.map((node) => log(node, client, task)));
  const stored = logs[0];
  for (const other of logs) assert.deepEqual(other, stored);
  assert.deepEqual(stored.map(({ seq }) => seq), range(1, stored.length));
  const seqOf = new Map(stored.map(({ seq, content }) => [content.trim(), seq]));
  assert.equal(seqOf.size, stored.length, "nothing is stored twice");
  for (const { acks } of producers) for (const [key, seq] of acks) assert.equal(seqOf.get(key), seq, `${key} was acknowledged as ${seq}`);
  return stored;
}
