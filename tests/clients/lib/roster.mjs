// What a watcher knows from presence_state and presence_diff, checked as it comes in.

import assert from "node:assert/strict";

const refsOf = (entry) => entry.metas.map((meta) => meta.phx_ref);

export class Roster {
  constructor() {
    this.metas = new Map();
    this.told = new Set();
    /** Metas that were told of again after they had gone: right only where a block was taken back. */
    this.repeats = [];
    this.frames = [];
  }

  /** Takes a V2 presence message; fails on what a correct server never sends. */
  apply([, , , event, payload]) {
    this.frames.push({ event, payload });
    if (event === "presence_state") return this.#state(payload);
    assert.deepEqual(Object.keys(payload).sort(), ["joins", "leaves"]);
    assert.ok(this.synced, "a diff before the state");
    // As Presence.js does it: joins first, and a leave names the metas that go.
    for (const [key, entry] of Object.entries(payload.joins)) this.#add(key, entry);
    for (const [key, entry] of Object.entries(payload.leaves)) this.#remove(key, entry);
  }

  #state(payload) {
    this.metas = new Map();
    this.told = new Set();
    this.synced = true;
    for (const [key, entry] of Object.entries(payload)) this.#add(key, entry);
  }

  #add(key, entry) {
    assert.ok(entry.metas.length > 0);
    const known = this.metas.get(key) ?? new Map();
    for (const meta of entry.metas) {
      assert.equal(typeof meta.phx_ref, "string");
      assert.ok(!known.has(meta.phx_ref), `told of ${meta.phx_ref} twice`);
      if (this.told.has(meta.phx_ref)) this.repeats.push(meta.phx_ref);
      this.told.add(meta.phx_ref);
      known.set(meta.phx_ref, meta);
    }
    this.metas.set(key, known);
  }

  #remove(key, entry) {
    const known = this.metas.get(key);
    for (const ref of refsOf(entry)) assert.ok(known?.delete(ref), `a leave of ${ref}, of which nothing was told`);
    if (known.size === 0) this.metas.delete(key);
  }

  has(key) {
    return this.metas.has(key);
  }

  /** The metas of a key. */
  of(key) {
    return [...(this.metas.get(key)?.values() ?? [])];
  }

  /** Each key with the number of its metas. */
  counts() {
    return Object.fromEntries([...this.metas].map(([key, metas]) => [key, metas.size]).sort());
  }
}
