// Says from what all clients and the runner have noted whether anything was lost, repeated, reordered or shown wrongly.
// A pure function over events, each { t: ms, e: what, … }, in any order:
//
//   plan     streams: [{ s, window, readers: [c], local: node or absent }], nodes: [name], direct: [c]
//   up, down          client c is connected and joined, or is not; `a` is the agent that is online by it
//   sent     c s n h  chunk n of stream s was made, with a content of hash h
//   again    s n      it had to be sent again (refused, unanswered, or the connection was lost)
//   ack      s n q    it was acknowledged under seq q
//   read     c s q h  a reader got seq q with that content
//   done     c s      a reader was told that the stream has ended
//   failed   c text   something no client should meet
//   view     node all: { a: metas }     all that a node shows as online
//   seen     node a k                   it shows k metas of an agent now
//   blind    node                       nobody looks at it
//   fault    id kind nodes divides      something is broken on purpose; divides: nodes may differ in what they show
//   over     id                         it is mended (a node: ready again)
//   expect   what …                     what must hold from here on (see scenario.mjs)
//   memory   node bytes                 the most it has taken so far
//   stored   s q h                      what the store holds at the end
//   epoch    s was is                   a stream's epoch fell, by the store's own word
//   epochs   raised                     how often streams were taken over
//   streams  ok text                    whether readers had what was acknowledged when they had to
//   late     text                       something was not ready in time
//   crash    text                       something ended by itself
//   quiet                               no new chunks are made from here on
//
// What agents agree on and tell each other has events of its own (deals.mjs).

import { checkDeals } from "./deals.mjs";

/** Texts kept of each kind of problem; all are counted. */
const TEXTS_MAX = 10;
/** How long after a fault a connection that it broke may be noticed as lost, ms. */
const NOTICED_MS = 8_000;
/** What a pair on one node may need to come back after its node did, ms: the clients' own pauses. */
const RETURN_MS = 12_000;

/** What holds unless a scenario says otherwise. */
const BOUNDS = { presence: 5_000, silence: 10_000, memory: Infinity };

class Problems {
  #kinds = new Map();

  add(kind, text) {
    const known = this.#kinds.get(kind) ?? { kind, count: 0, texts: [] };
    known.count++;
    if (known.texts.length < TEXTS_MAX) known.texts.push(text);
    this.#kinds.set(kind, known);
  }

  all() {
    return [...this.#kinds.values()];
  }
}

/** { ok, problems: [{ kind, count, texts }], figures }. */
export function check(events, bounds = {}) {
  const limits = { ...BOUNDS, ...bounds };
  const sorted = [...events].sort((one, other) => one.t - other.t);
  const problems = new Problems();
  const begun = sorted[0]?.t ?? 0;
  const at = (t) => `${((t - begun) / 1_000).toFixed(1)} s`;
  const plan = sorted.find((event) => event.e === "plan") ?? { streams: [], nodes: [], direct: [] };
  const context = { sorted, problems, plan, limits, at };
  for (const event of sorted) {
    if (event.e === "failed") problems.add("what no client should meet", `${at(event.t)} ${event.c}: ${event.text}`);
    if (event.e === "crash") problems.add("an end that nobody wanted", event.text);
    if (event.e === "expect" && event.what === "memory") limits.memory = Math.min(limits.memory, event.bytes);
    if (event.e === "expect" && event.what === "silence") limits.silence = event.below;
    if (event.e === "streams" && !event.ok) problems.add("readers behind", `${at(event.t)} ${event.text}`);
    if (event.e === "late") problems.add("not ready in time", `${at(event.t)} ${event.text}`);
  }
  const figures = {
    seconds: Math.round(((sorted.at(-1)?.t ?? 0) - begun) / 1_000),
    faults: sorted.filter((event) => event.e === "fault").length,
    ...checkStreams(context),
    ...checkPresence(context),
    ...checkReturns(context),
    ...checkSilence(context),
    ...checkMemory(context),
    ...checkEpochs(context),
    ...checkDeals(context),
  };
  return { ok: problems.all().length === 0, problems: problems.all(), figures };
}

/**
 * Acknowledged = read = stored, once each and in order.
 *
 * On a node alone a chunk goes out before it is stored. When the node loses it, another may come to stand under its seq;
 * readers who saw the first are then sent from there on again. That is counted, and right only for what was never
 * acknowledged.
 */
function checkStreams({ sorted, problems, plan, at }) {
  const streams = new Map();
  const newReader = () => ({ seen: [], last: 0, done: false });
  const of = (s) => {
    if (!streams.has(s)) streams.set(s, { sent: new Map(), acks: new Map(), again: new Set(), readers: new Map(), stored: new Map(), replaced: new Map(), window: 1 });
    return streams.get(s);
  };
  for (const { s, window, readers } of plan.streams) {
    const stream = of(s);
    stream.window = window;
    for (const c of readers) stream.readers.set(c, newReader());
  }
  const figures = { streams: plan.streams.length, sent: 0, acknowledged: 0, read: 0, stored: 0, resent: 0, replaced: 0, ackMsWorst: 0 };
  const locals = new Set(plan.streams.filter((stream) => stream.local).map((stream) => stream.s));
  const hasStore = sorted.some((event) => event.e === "stored");
  const read = ({ t, c, s, q, h }) => {
    const stream = of(s);
    if (!stream.readers.has(c)) stream.readers.set(c, newReader());
    const reader = stream.readers.get(c);
    const before = reader.seen[q];
    if (reader.done) problems.add("a chunk after the end", `${at(t)} ${c} of ${s}: seq ${q}`);
    if (q > reader.last + 1) problems.add("skipped by a reader", `${at(t)} ${c} of ${s}: seq ${q} after ${reader.last}`);
    if (q <= reader.last && before === h) problems.add("repeated or out of order", `${at(t)} ${c} of ${s}: seq ${q} after ${reader.last}`);
    if (q <= reader.last && before === undefined) problems.add("repeated or out of order", `${at(t)} ${c} of ${s}: seq ${q} after ${reader.last}, which came without it`);
    if (q <= reader.last && (before === h || before === undefined)) return;
    if (before !== undefined) {
      // From what was replaced on, all comes anew.
      figures.replaced += reader.last - q + 1;
      // A node alone shows chunks before it has stored them; one of several may lose a stream, and does not.
      if (plan.nodes.length > 1) problems.add("read and replaced", `${at(t)} ${c} of ${s}: seq ${q} was ${before} and is ${h}`);
      stream.replaced.set(`${q} ${before}`, `${at(t)} ${c} of ${s}: seq ${q} was ${before} and is ${h}`);
      reader.seen.length = q;
    }
    reader.seen[q] = h;
    reader.last = q;
  };
  for (const event of sorted) {
    const { t, c, s, n, q, h } = event;
    if (event.e === "sent") {
      figures.sent++;
      of(s).sent.set(n, { h, t });
    } else if (event.e === "again") {
      figures.resent++;
      of(s).again.add(n);
    } else if (event.e === "ack") {
      const { acks, sent } = of(s);
      const before = acks.get(n);
      if (before === undefined) {
        acks.set(n, q);
        figures.acknowledged++;
        // Who is at one node alone waits until that is back.
        if (!locals.has(s)) figures.ackMsWorst = Math.max(figures.ackMsWorst, t - (sent.get(n)?.t ?? t));
      } else if (before !== q) {
        problems.add("one chunk under two seqs", `${at(t)} ${s}: chunk ${n} was acknowledged as ${before} and as ${q}`);
      }
    } else if (event.e === "read") {
      figures.read++;
      read(event);
    } else if (event.e === "done") {
      const reader = of(s).readers.get(c);
      if (reader?.done) problems.add("an end told twice", `${at(t)} ${c} of ${s}`);
      if (reader) reader.done = true;
    } else if (event.e === "stored") {
      figures.stored++;
      of(s).stored.set(q, h);
    }
  }
  const ends = sorted.some((event) => event.e === "done");
  for (const [s, stream] of streams) checkStream(s, stream, { problems, hasStore, ends });
  return figures;
}

function checkStream(s, { sent, acks, again, readers, stored, replaced, window }, { problems, hasStore, ends }) {
  // What stands under each seq, by everybody's last word.
  const contents = new Map();
  const seqs = new Map();
  const agree = (q, h, who) => {
    const known = contents.get(q);
    if (known !== undefined && known !== h) problems.add("one seq with two contents", `${who} of ${s}: seq ${q} is ${h}, elsewhere ${known}`);
    contents.set(q, known ?? h);
    const elsewhere = seqs.get(h);
    if (elsewhere !== undefined && elsewhere !== q) problems.add("one chunk under two seqs", `${who} of ${s}: content ${h} is seq ${q} and ${elsewhere}`);
    seqs.set(h, elsewhere ?? q);
  };
  for (const [q, h] of stored) agree(q, h, "the store");
  for (const [c, { seen }] of readers) seen.forEach((h, q) => agree(q, h, c));
  let last = 0;
  for (const [n, q] of acks) {
    last = Math.max(last, q);
    const made = sent.get(n);
    if (made) agree(q, made.h, "what was acknowledged");
    const wrong = made && replaced.get(`${q} ${made.h}`);
    if (wrong) problems.add("acknowledged and replaced", wrong);
    if (hasStore && !stored.has(q)) problems.add("acknowledged and lost", `${s}: chunk ${n}, seq ${q}, is not in the store`);
  }
  for (const n of sent.keys()) if (!acks.has(n)) problems.add("never acknowledged", `${s}: chunk ${n}`);
  for (const [c, { last: has, done }] of readers) {
    if (has < last) problems.add("acknowledged and not delivered", `${c} of ${s} has ${has} of ${last}`);
    if (ends && !done) problems.add("an end not told", `${c} of ${s}`);
  }
  if (hasStore) {
    let total = 0;
    for (const q of stored.keys()) total = Math.max(total, q);
    if (stored.size !== total) problems.add("a gap in the store", `${s}: ${stored.size} chunks up to seq ${total}`);
    for (const [c, { last: has }] of readers) if (has > total) problems.add("delivered and not stored", `${c} of ${s} has ${has}, the store ${total}`);
  }
  // A producer with several chunks under way may have one refused and the next taken; it says that it sent it again.
  const inOrder = [...acks].sort((one, other) => one[0] - other[0]);
  for (let i = inOrder.length - 1, lowest = Infinity; i >= 0; i--) {
    const [n, q] = inOrder[i];
    if (q > lowest && (window === 1 || !again.has(n))) problems.add("out of the producer's order", `${s}: chunk ${n} is seq ${q}, a later one ${lowest}`);
    lowest = Math.min(lowest, q);
  }
}

/** Every node shows who is online, and nobody else, once for each. */
function checkPresence({ sorted, problems, plan, limits, at }) {
  const truth = new Map();
  const nodes = new Map(plan.nodes.map((name) => [name, { view: null, up: true, wrong: new Map() }]));
  const faults = new Map();
  /** Since when nothing is broken, or null. */
  let calm = sorted[0]?.t ?? 0;
  const figures = { presenceMsWorst: 0, presenceExpected: 0, presenceSettledMsWorst: 0 };
  const pending = [];
  const expected = (a) => (truth.get(a) > 0 ? 1 : 0);

  /** A difference is over, or what it is counted from begins anew. */
  const settle = (name, node, a, t) => {
    const since = node.wrong.get(a);
    if (since === undefined) return;
    node.wrong.delete(a);
    if (calm === null) return;
    const took = t - Math.max(since, calm);
    figures.presenceMsWorst = Math.max(figures.presenceMsWorst, took);
    if (took > limits.presence) {
      const shown = node.view?.get(a) ?? 0;
      const kind = shown > expected(a) ? "a stale presence entry" : "a missing presence entry";
      problems.add(kind, `${at(t)} ${name} showed ${shown} of ${a} instead of ${expected(a)} for ${took} ms with nothing broken`);
    }
  };
  const compare = (name, node, a, t) => {
    const isWrong = node.view !== null && (node.view.get(a) ?? 0) !== expected(a);
    if (isWrong && !node.wrong.has(a)) node.wrong.set(a, t);
    if (!isWrong) node.wrong.delete(a);
  };
  const shake = (t) => {
    for (const [name, node] of nodes) for (const a of [...node.wrong.keys()]) settle(name, node, a, t);
    calm = [...faults.values()].some((fault) => fault.divides) ? null : t;
    for (const [name, node] of nodes) compareAll(name, node, t);
  };
  const compareAll = (name, node, t) => {
    for (const a of new Set([...truth.keys(), ...(node.view?.keys() ?? [])])) compare(name, node, a, t);
  };
  const isSettled = () => [...nodes.values()].every((node) => !node.up || (node.view !== null && node.wrong.size === 0));
  const judge = (t) => {
    if (pending.length === 0) return;
    const settled = isSettled();
    for (const wish of pending.splice(0)) {
      const took = t - wish.t;
      if (settled && took <= wish.within) figures.presenceSettledMsWorst = Math.max(figures.presenceSettledMsWorst, took);
      else if (took > wish.within) {
        const wrong = [...nodes].filter(([, node]) => node.up).flatMap(([name, node]) => (node.view === null ? [`${name} was not seen`] : [...node.wrong.keys()].map((a) => `${name} shows ${node.view.get(a) ?? 0} of ${a} instead of ${expected(a)}`)));
        problems.add("presence not settled", `line ${wish.line}: not all nodes were right within ${wish.within} ms: ${wrong.slice(0, 5).join("; ")}${wrong.length > 5 ? `; ${wrong.length} in all` : ""}`);
      } else pending.push(wish);
    }
  };

  for (const event of sorted) {
    const { t, e, a } = event;
    // What was due before this event is judged by what was known then.
    if (pending.some((wish) => t - wish.t > wish.within)) judge(t);
    if ((e === "up" || e === "down") && a) {
      for (const [name, node] of nodes) settle(name, node, a, t);
      truth.set(a, Math.max(0, (truth.get(a) ?? 0) + (e === "up" ? 1 : -1)));
      for (const [name, node] of nodes) compare(name, node, a, t);
    } else if (e === "view" || e === "seen" || e === "blind") {
      const node = nodes.get(event.node);
      if (!node) continue;
      if (e === "seen") {
        if (node.view === null) continue;
        const before = node.view.get(a) ?? 0;
        // What is still wrong goes on being wrong; what is right now was wrong until now.
        if (before !== event.k && event.k === expected(a)) settle(event.node, node, a, t);
        node.view.set(a, event.k);
        compare(event.node, node, a, t);
      } else {
        for (const wrong of [...node.wrong.keys()]) settle(event.node, node, wrong, t);
        node.view = e === "view" ? new Map(Object.entries(event.all)) : null;
        compareAll(event.node, node, t);
      }
    } else if (e === "fault" || e === "over") {
      if (e === "fault") faults.set(event.id, event);
      const fault = faults.get(event.id);
      if (e === "over") faults.delete(event.id);
      if (["kill", "stop", "pause"].includes(fault?.kind)) for (const name of fault.nodes) if (nodes.has(name)) nodes.get(name).up = e === "over";
      shake(t);
    } else if (e === "expect" && event.what === "presence") {
      figures.presenceExpected++;
      pending.push({ t, within: event.within, line: event.line });
    }
    judge(t);
  }
  const end = sorted.at(-1)?.t ?? 0;
  judge(Math.max(end, ...pending.map((wish) => wish.t + wish.within + 1)));
  shake(end);
  return figures;
}

/** The share of clients that a fault threw out and that are back in time. */
function checkReturns({ sorted, problems, plan, at }) {
  const direct = new Set(plan.direct ?? []);
  const faults = sorted.filter((event) => event.e === "fault" && ["kill", "stop", "pause"].includes(event.kind));
  const wishes = sorted.filter((event) => event.e === "expect" && event.what === "clients");
  const moves = new Map();
  for (const event of sorted) {
    if (event.e !== "up" && event.e !== "down") continue;
    if (!moves.has(event.c)) moves.set(event.c, []);
    moves.get(event.c).push(event);
  }
  const figures = { thrownOut: 0, backIn10sShare: 1, backMsWorst: 0 };
  let back10 = 0;
  for (const fault of faults) {
    const next = faults.find((other) => other.t > fault.t);
    const wish = wishes.find((event) => event.t > fault.t && (!next || event.t < next.t));
    const within = wish?.within ?? 10_000;
    // With nobody left there is nobody to come back to.
    const alone = plan.nodes.length === 1 ? sorted.find((event) => event.e === "over" && event.id === fault.id)?.t ?? Infinity : 0;
    const from = Math.max(fault.t, alone);
    let [out, inTime] = [0, 0];
    for (const [c, events] of moves) {
      if (direct.has(c)) continue;
      const down = events.find((event) => event.e === "down" && event.t >= fault.t - 20 && event.t <= fault.t + NOTICED_MS);
      if (!down) continue;
      out++;
      const up = events.find((event) => event.e === "up" && event.t >= down.t);
      const took = up ? Math.max(0, up.t - from) : Infinity;
      if (took <= within) inTime++;
      if (took <= 10_000) back10++;
      if (up) figures.backMsWorst = Math.max(figures.backMsWorst, took);
    }
    figures.thrownOut += out;
    // Nobody thrown out is nobody back: whoever wishes that expects some to be.
    if (wish && out === 0) problems.add("nobody thrown out", `${at(fault.t)} ${fault.kind} ${fault.nodes}`);
    else if (wish && (inTime / out) * 100 < wish.percent) {
      problems.add("clients not back", `${at(fault.t)} ${fault.kind} ${fault.nodes}: ${inTime} of ${out} were back within ${within} ms`);
    }
  }
  if (figures.thrownOut > 0) figures.backIn10sShare = back10 / figures.thrownOut;
  return figures;
}

/** The longest time that a pair of clients on one node heard nothing of each other, while their node was well. */
function checkSilence({ sorted, problems, plan, limits, at }) {
  const quiet = sorted.find((event) => event.e === "quiet")?.t ?? Infinity;
  const figures = { silenceMsWorst: 0, pairs: 0 };
  for (const { s, local, readers } of plan.streams.filter((stream) => stream.local)) {
    figures.pairs++;
    const heard = sorted.filter((event) => event.e === "read" && event.s === s && readers.includes(event.c) && event.t <= quiet).map((event) => event.t);
    if (heard.length === 0) {
      problems.add("a pair that never spoke", `${s} on ${local}`);
      continue;
    }
    // What its own node or the store suffers is no matter of the other nodes.
    const concerns = ({ kind, nodes }) => kind === "postgres" || (nodes.includes(local) && (["kill", "stop", "pause"].includes(kind) || nodes.includes("postgres")));
    const own = sorted.filter((event) => event.e === "fault" && concerns(event));
    const excused = own.map((fault) => [fault.t, (sorted.find((event) => event.e === "over" && event.id === fault.id)?.t ?? Infinity) + RETURN_MS]);
    const times = [...heard, ...(quiet < Infinity ? [quiet] : [])];
    for (let i = 1; i < times.length; i++) {
      const gap = times[i] - times[i - 1] - covered(times[i - 1], times[i], excused);
      figures.silenceMsWorst = Math.max(figures.silenceMsWorst, gap);
      if (gap > limits.silence) problems.add("silence on a node that was well", `${at(times[i])} the pair on ${local} heard nothing for ${gap} ms`);
    }
  }
  return figures;
}

/** How much of a span lies in any of the others. */
function covered(from, to, spans) {
  const cut = spans.map(([begin, end]) => [Math.max(from, begin), Math.min(to, end)]).filter(([begin, end]) => begin < end);
  cut.sort((one, other) => one[0] - other[0]);
  let [sum, reached] = [0, from];
  for (const [begin, end] of cut) {
    if (end <= reached) continue;
    sum += end - Math.max(begin, reached);
    reached = end;
  }
  return sum;
}

function checkMemory({ sorted, problems, limits }) {
  const most = {};
  for (const event of sorted) if (event.e === "memory") most[event.node] = Math.max(most[event.node] ?? 0, event.bytes);
  for (const [node, bytes] of Object.entries(most)) {
    if (bytes > limits.memory) problems.add("too much memory", `${node} took ${mib(bytes)}, the bound is ${mib(limits.memory)}`);
  }
  return { memory: most };
}

const mib = (bytes) => `${Math.round(bytes / 1024 ** 2)} MiB`;

/** A stream's epoch only ever rises: who wakes up with an old one writes nothing. */
function checkEpochs({ sorted, problems, at }) {
  const figures = { epochsRaised: 0 };
  for (const event of sorted) {
    if (event.e === "epoch") problems.add("written under an old epoch", `${at(event.t)} ${event.s}: epoch ${event.is} after ${event.was}`);
    if (event.e === "epochs") figures.epochsRaised = event.raised;
  }
  return figures;
}

const KEEP_LINES = 100;

/** The verdict as text: a table, and what was wrong. */
export function report({ ok, problems, figures }, title) {
  const rows = [
    ["time", `${figures.seconds} s, ${figures.faults} faults`],
    ["streams", `${figures.streams}, ${figures.pairs} of them between two clients on one node`],
    ["chunks sent, acknowledged", `${figures.sent}, ${figures.acknowledged}; sent again ${figures.resent}`],
    ["chunks read, stored", `${figures.read}, ${figures.stored}`],
    ["read before stored, and replaced", `${figures.replaced}`],
    ["longest until acknowledged", `${figures.ackMsWorst} ms`],
    ["longest that presence was wrong", `${figures.presenceMsWorst} ms with nothing broken`],
    ["longest until presence was right", `${figures.presenceSettledMsWorst} ms, of ${figures.presenceExpected} times it had to be`],
    ["clients thrown out", `${figures.thrownOut}; back within 10 s: ${(figures.backIn10sShare * 100).toFixed(1)} %; the last after ${figures.backMsWorst} ms`],
    ["longest silence on a node", `${figures.silenceMsWorst} ms`],
    ["streams that moved", `${figures.epochsRaised}`],
    ["most memory", Object.entries(figures.memory).map(([node, bytes]) => `${node} ${mib(bytes)}`).join(", ")],
  ];
  const { deals } = figures;
  if (deals) {
    rows.push(
      ["messages acknowledged", `${deals.messages}; came more than once before their acknowledgement: ${deals.messagesRepeated}`],
      ["negotiations, agreements", `${deals.sessions}, ${deals.agreements}`],
      ["transfers", `${deals.transfers} in ${deals.channels} payment channels`],
      ["asked again", `${deals.retried}`],
    );
  }
  const width = Math.max(...rows.map(([name]) => name.length));
  const lines = [title, ...rows.map(([name, value]) => `  ${name.padEnd(width)}  ${value}`)];
  for (const { kind, count, texts } of problems) lines.push(`  PROBLEM ${kind}: ${count}`, ...texts.map((text) => `    ${text}`));
  const shown = lines.slice(0, KEEP_LINES);
  if (lines.length > KEEP_LINES) shown.push(`  … ${lines.length - KEEP_LINES} lines more`);
  return [...shown, `  ${ok ? "All that was acknowledged is there, once and in order." : "FAILED"}`].join("\n");
}
