// What the checker lets pass, and what it finds: each failure is made from a history that is right but for one thing.

import assert from "node:assert/strict";
import { test } from "node:test";
import { check, report } from "./checker.mjs";

const PLAN = { t: 0, e: "plan", streams: [{ s: "s1", window: 1, readers: ["r1", "r2"] }], nodes: ["n1", "n2"], direct: [] };

/** Five chunks that two readers get, and the store has. */
function streaming() {
  const events = [PLAN];
  for (let n = 1; n <= 5; n++) {
    const h = `hash${n}`;
    events.push({ t: n * 100, c: "e1", e: "sent", s: "s1", n, h });
    events.push({ t: n * 100 + 10, c: "e1", e: "ack", s: "s1", n, q: n });
    for (const c of ["r1", "r2"]) events.push({ t: n * 100 + 5, c, e: "read", s: "s1", q: n, h });
    events.push({ t: 10_000, e: "stored", s: "s1", q: n, h });
  }
  return events;
}

const kinds = (verdict) => verdict.problems.map((problem) => problem.kind);
const without = (events, fits) => {
  const left = events.filter((event) => !fits(event));
  assert.ok(left.length < events.length);
  return left;
};
const changed = (events, fits, change) => {
  assert.equal(events.filter(fits).length, 1);
  return events.map((event) => (fits(event) ? { ...event, ...change } : event));
};
const read = (c, q) => (event) => event.e === "read" && event.c === c && event.q === q;

test("a history that is right is right, and its figures are counted", () => {
  const verdict = check(streaming());
  assert.deepEqual(verdict.problems, []);
  assert.equal(verdict.ok, true);
  const { sent, acknowledged, read: had, stored, ackMsWorst } = verdict.figures;
  assert.deepEqual([sent, acknowledged, had, stored, ackMsWorst], [5, 5, 10, 5, 10]);
  assert.match(report(verdict, "x"), /All that was acknowledged is there/);
});

test("the order in which histories are put together does not matter", () => {
  assert.deepEqual(check(streaming().reverse()), check(streaming()));
});

test("an acknowledged chunk that is not in the store is lost", () => {
  const verdict = check(without(streaming(), (event) => event.e === "stored" && event.q === 5));
  assert.deepEqual(kinds(verdict), ["acknowledged and lost", "delivered and not stored"]);
  assert.match(report(verdict, "x"), /FAILED/);
  assert.ok(kinds(check(without(streaming(), (event) => event.e === "stored" && event.q === 3))).includes("a gap in the store"));
});

test("a chunk that a reader gets twice, also after a rejoin, is a repeated one", () => {
  const repeated = [...streaming(), { t: 900, c: "r1", e: "down" }, { t: 950, c: "r1", e: "up" }, { t: 1_000, c: "r1", e: "read", s: "s1", q: 5, h: "hash5" }];
  assert.deepEqual(kinds(check(repeated)), ["repeated or out of order"]);
});

test("on a node alone what was read before it was stored may be replaced, by all that comes from there; what was acknowledged may not", () => {
  const alone = (events) => check(changed(events, ({ e }) => e === "plan", { nodes: ["n1"] }));
  // r1 saw two chunks under 4 and 5 that their node lost; others came to stand there.
  const early = [{ t: 350, c: "r1", e: "read", s: "s1", q: 4, h: "lost4" }, { t: 351, c: "r1", e: "read", s: "s1", q: 5, h: "hash4" }];
  const replaced = alone([...streaming(), ...early]);
  assert.deepEqual(replaced.problems, []);
  assert.equal(replaced.figures.replaced, 2);
  // The same again, and not gone on with: a tail is missing.
  assert.deepEqual(kinds(alone(without([...streaming(), ...early], (event) => event.t === 505 && event.c === "r1"))), ["acknowledged and not delivered"]);
  // Chunk 4 was acknowledged under 4, so nothing else may come there, not even for a while.
  const shaken = [...streaming(), { t: 420, c: "r1", e: "read", s: "s1", q: 4, h: "other" }, { t: 421, c: "r1", e: "read", s: "s1", q: 4, h: "hash4" }];
  assert.deepEqual(kinds(alone(shaken)), ["acknowledged and replaced"]);
  // Nodes of a cluster show nothing that they might have to take back.
  assert.deepEqual(kinds(check([...streaming(), ...early])), ["read and replaced"]);
});

test("a reader that rejoins and goes on where it was counts as one", () => {
  const events = streaming();
  const rejoined = [...events, { t: 352, c: "r1", e: "down", a: undefined }, { t: 360, c: "r1", e: "up" }];
  assert.equal(check(rejoined).ok, true);
});

test("chunks out of order are found", () => {
  const swapped = streaming().map((event) => (read("r2", 2)(event) ? { ...event, t: 306 } : event));
  assert.deepEqual(kinds(check(swapped)), ["skipped by a reader", "repeated or out of order"]);
});

test("a reader without the tail is found", () => {
  assert.deepEqual(kinds(check(without(streaming(), read("r2", 5)))), ["acknowledged and not delivered"]);
  // One that never came to read at all, too.
  assert.deepEqual(kinds(check(without(streaming(), (event) => event.e === "read" && event.c === "r1"))), ["acknowledged and not delivered"]);
});

test("one chunk under two seqs is found, by its producer and by its readers", () => {
  const twice = [...streaming(), { t: 800, c: "e1", e: "ack", s: "s1", n: 5, q: 6 }];
  assert.ok(kinds(check(twice)).includes("one chunk under two seqs"));
  const stored = [...streaming(), { t: 10_000, e: "stored", s: "s1", q: 6, h: "hash5" }];
  assert.deepEqual(kinds(check(stored)), ["one chunk under two seqs"]);
});

test("one seq with two contents is found: between readers, to the store, to what was sent", () => {
  const other = { h: "other" };
  assert.ok(kinds(check(changed(streaming(), read("r2", 3), other))).includes("one seq with two contents"));
  assert.ok(kinds(check(changed(streaming(), (event) => event.e === "stored" && event.q === 3, other))).includes("one seq with two contents"));
  assert.ok(kinds(check(changed(streaming(), (event) => event.e === "sent" && event.n === 3, other))).includes("one seq with two contents"));
});

test("a chunk that is never acknowledged is found", () => {
  assert.deepEqual(kinds(check(without(streaming(), (event) => event.e === "ack" && event.n === 5))), ["never acknowledged"]);
});

test("the producer's order holds, but for chunks that were sent again beside others", () => {
  const swap = (window, more = []) => {
    const events = streaming().map((event) => {
      if (event.e === "plan") return { ...event, streams: [{ ...event.streams[0], window }] };
      if (event.e === "ack" && [2, 3].includes(event.n)) return { ...event, q: 5 - event.n };
      if (event.e === "sent" && [2, 3].includes(event.n)) return { ...event, h: `hash${5 - event.n}` };
      return event;
    });
    return kinds(check([...events, ...more]));
  };
  const again = { t: 250, c: "e1", e: "again", s: "s1", n: 2 };
  assert.deepEqual(swap(1), ["out of the producer's order"]);
  assert.deepEqual(swap(1, [again]), ["out of the producer's order"]);
  assert.deepEqual(swap(8), ["out of the producer's order"]);
  assert.deepEqual(swap(8, [again]), []);
});

test("the end of a stream is told once, to all, and last", () => {
  const done = (c, t = 2_000) => ({ t, c, e: "done", s: "s1" });
  assert.equal(check([...streaming(), done("r1"), done("r2")]).ok, true);
  assert.deepEqual(kinds(check([...streaming(), done("r1")])), ["an end not told"]);
  assert.deepEqual(kinds(check([...streaming(), done("r1"), done("r2"), done("r2", 2_001)])), ["an end told twice"]);
  assert.deepEqual(kinds(check([...streaming(), done("r1"), done("r2", 420)])), ["a chunk after the end"]);
});

/** Two agents; both nodes show them 50 ms later; one leaves, and so it goes on both. */
function presence() {
  return [
    PLAN,
    ...["n1", "n2"].map((node) => ({ t: 1, e: "view", node, all: {} })),
    ...["a1", "a2"].map((a) => ({ t: 100, c: `c-${a}`, e: "up", a })),
    ...["n1", "n2"].flatMap((node) => ["a1", "a2"].map((a) => ({ t: 150, e: "seen", node, a, k: 1 }))),
    { t: 20_000, c: "c-a1", e: "down", a: "a1" },
    ...["n1", "n2"].map((node) => ({ t: 20_100, e: "seen", node, a: "a1", k: 0 })),
    { t: 40_000, e: "quiet" },
  ];
}
// Streams have nothing to do with it.
const shown = (events, bounds) => check(events.map((event) => (event.e === "plan" ? { ...event, streams: [] } : event)), bounds);

test("presence that follows is right, and how long it took is told", () => {
  const verdict = shown(presence());
  assert.deepEqual(verdict.problems, []);
  assert.equal(verdict.figures.presenceMsWorst, 100);
});

test("a stale entry is found, whether it goes late or never", () => {
  const isGone = (event) => event.e === "seen" && event.node === "n2" && event.k === 0;
  assert.deepEqual(kinds(shown(without(presence(), isGone))), ["a stale presence entry"]);
  assert.deepEqual(kinds(shown(changed(presence(), isGone, { t: 26_000 }))), ["a stale presence entry"]);
  assert.equal(shown(changed(presence(), isGone, { t: 24_000 })).ok, true);
});

test("a missing entry is found, and so is one agent shown twice", () => {
  const isA2 = (event) => event.e === "seen" && event.node === "n1" && event.a === "a2";
  assert.deepEqual(kinds(shown(without(presence(), isA2))), ["a missing presence entry"]);
  assert.deepEqual(kinds(shown(changed(presence(), isA2, { k: 2 }))), ["a stale presence entry"]);
});

test("while nodes are divided they may differ; from then on the time runs", () => {
  const isGone = (event) => event.e === "seen" && event.node === "n2" && event.k === 0;
  const cut = (until, gone) => [
    ...changed(presence(), isGone, { t: gone }),
    { t: 19_000, e: "fault", id: 1, kind: "partition", nodes: ["n1", "n2"], divides: true },
    { t: until, e: "over", id: 1 },
  ];
  assert.equal(shown(cut(30_000, 34_000)).ok, true);
  assert.equal(shown(cut(30_000, 34_000)).figures.presenceMsWorst, 4_000);
  assert.deepEqual(kinds(shown(cut(30_000, 36_000))), ["a stale presence entry"]);
  assert.deepEqual(kinds(shown(cut(20_500, 30_000))), ["a stale presence entry"]);
});

test("a node that nobody sees is no reason, unless presence is expected of it", () => {
  const isGone = (event) => event.e === "seen" && event.node === "n2" && event.k === 0;
  const blind = [...without(presence(), isGone), { t: 20_050, e: "blind", node: "n2" }];
  assert.equal(shown(blind).ok, true);
  const wish = { t: 25_000, e: "expect", what: "presence", within: 5_000, line: 9 };
  assert.deepEqual(kinds(shown([...blind, wish])), ["presence not settled"]);
  const seen = { t: 29_000, e: "view", node: "n2", all: { a2: 1 } };
  const settled = shown([...blind, wish, seen]);
  assert.equal(settled.ok, true);
  assert.equal(settled.figures.presenceSettledMsWorst, 4_000);
  const killed = { t: 20_020, e: "fault", id: 1, kind: "kill", nodes: ["n2"], divides: false };
  assert.equal(shown([...blind, wish, killed]).ok, true);
});

test("presence that is expected at a moment when it is wrong for too long is told with what was wrong", () => {
  const isGone = (event) => event.e === "seen" && event.node === "n2" && event.k === 0;
  const verdict = shown([...changed(presence(), isGone, { t: 24_000 }), { t: 20_010, e: "expect", what: "presence", within: 2_000, line: 7 }]);
  assert.deepEqual(kinds(verdict), ["presence not settled"]);
  assert.match(verdict.problems[0].texts[0], /line 7: .*n2 shows 1 of a1 instead of 0/);
});

test("clients that do not come back are counted against what is expected", () => {
  const kill = { t: 1_000, e: "fault", id: 1, kind: "kill", nodes: ["n1"], divides: false };
  const wish = { t: 1_001, e: "expect", what: "clients", percent: 90, within: 10_000 };
  const out = Array.from({ length: 10 }, (_, n) => ({ t: 1_100, c: `c${n}`, e: "down" }));
  const back = (count) => out.slice(0, count).map(({ c }, n) => ({ t: 2_000 + n * 100, c, e: "up" }));
  const bystander = [{ t: 30_000, c: "x", e: "down" }];
  const good = shown([PLAN, kill, wish, ...out, ...back(9), ...bystander]);
  assert.equal(good.ok, true);
  assert.deepEqual([good.figures.thrownOut, good.figures.backIn10sShare, good.figures.backMsWorst], [10, 0.9, 1_800]);
  assert.deepEqual(kinds(shown([PLAN, kill, wish, ...out, ...back(8), ...bystander])), ["clients not back"]);
});

test("silence of a pair counts, but not while its own node is away", () => {
  const plan = { ...PLAN, streams: [{ s: "p1", window: 1, readers: ["r"], local: "n1" }] };
  const heard = [1, 2, 3, 20, 21].map((second, n) => [
    { t: second * 1_000, c: "e", e: "sent", s: "p1", n: n + 1, h: `h${n}` },
    { t: second * 1_000, c: "e", e: "ack", s: "p1", n: n + 1, q: n + 1 },
    { t: second * 1_000, c: "r", e: "read", s: "p1", q: n + 1, h: `h${n}` },
  ]).flat();
  const silent = check([plan, ...heard]);
  assert.deepEqual(kinds(silent), ["silence on a node that was well"]);
  assert.equal(silent.figures.silenceMsWorst, 17_000);
  const fault = (kind, node) => [{ t: 3_500, e: "fault", id: 1, kind, nodes: [node], divides: false }, { t: 6_000, e: "over", id: 1 }];
  assert.equal(check([plan, ...heard, ...fault("kill", "n1")]).ok, true);
  assert.deepEqual(kinds(check([plan, ...heard, ...fault("kill", "n2")])), ["silence on a node that was well"]);
  assert.equal(check([plan, ...heard, { t: 4_000, e: "expect", what: "silence", below: 18_000 }]).ok, true);
  assert.deepEqual(kinds(check([plan])), ["a pair that never spoke"]);
});

test("memory over the bound, an old epoch, a crash, a refusal: each is a problem", () => {
  const more = (event) => kinds(check([...streaming(), event]));
  assert.deepEqual(more({ t: 1, e: "memory", node: "n1", bytes: 1e9 }), []);
  assert.deepEqual(kinds(check([...streaming(), { t: 1, e: "memory", node: "n1", bytes: 1e9 }, { t: 2, e: "expect", what: "memory", bytes: 5e8 }])), ["too much memory"]);
  assert.deepEqual(more({ t: 1, e: "epoch", s: "s1", was: 7, is: 5 }), ["written under an old epoch"]);
  assert.deepEqual(more({ t: 1, e: "crash", text: "n1 ended" }), ["an end that nobody wanted"]);
  assert.deepEqual(more({ t: 1, e: "failed", c: "e1", text: "invalid_content" }), ["what no client should meet"]);
  assert.deepEqual(more({ t: 1, e: "streams", ok: false, text: "r1 is behind" }), ["readers behind"]);
  assert.deepEqual(more({ t: 1, e: "late", text: "n1" }), ["not ready in time"]);
});

test("many problems of a kind are counted, and some are told", () => {
  const verdict = check([...streaming(), ...Array.from({ length: 1_000 }, (_, n) => ({ t: 5_000 + n, c: "r1", e: "read", s: "s1", q: 1, h: "hash1" }))]);
  assert.equal(verdict.problems[0].count, 1_000);
  assert.ok(report(verdict, "x").split("\n").length < 40);
});
