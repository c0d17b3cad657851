// A process of the load: runs the clients it is given, answers the runner's questions, and ends when the runner does.

import { History } from "../history.mjs";
import { client, NodeWatcher, Watcher } from "./clients.mjs";

/** Clients started in one breath, and the pause between, ms: a fleet does not come in one moment. */
const START_AT_ONCE = 10;
const START_PAUSE_MS = 50;

const clients = [];
let history = null;

const emitters = () => clients.filter((one) => one.pending !== undefined);
const readers = () => clients.filter((one) => one.last !== undefined);

const answers = {
  async start({ plans, file, retryable }) {
    history = new History(file);
    const known = new Set(retryable);
    const world = { note: (event) => history.note(event), mayRetry: (reason) => known.has(reason) };
    for (const [index, plan] of plans.entries()) {
      const one = client(plan, world);
      clients.push(one);
      one.start();
      if (index % START_AT_ONCE === 0) await new Promise((resolve) => setTimeout(resolve, START_PAUSE_MS));
    }
    return clients.length;
  },
  /** What is under way. */
  state() {
    return {
      down: clients.filter((one) => one.isDown).map((one) => one.plan.c),
      online: clients.filter((one) => one.plan.agent && one.isUp).map((one) => one.plan.agent),
      pending: emitters().reduce((sum, one) => sum + one.pending.length, 0),
      acked: Object.fromEntries(emitters().filter((one) => one.plan.s).map((one) => [one.plan.s, one.lastSeq])),
      read: Object.fromEntries(readers().map((one) => [one.plan.c, [one.plan.s, one.last, one.done]])),
    };
  },
  /** What each node shows to those who look at it directly. */
  views() {
    return Object.fromEntries(clients.filter((one) => one instanceof NodeWatcher && one.isUp).map((one) => [one.plan.node, one.roster.counts()]));
  },
  /** No more new chunks. */
  quiet() {
    for (const one of emitters()) one.quiet = true;
  },
  /** What those see who watch presence through the balancer. */
  watched() {
    return Object.fromEntries(clients.filter((one) => one instanceof Watcher && one.isUp).map((one) => [one.plan.c, one.counts()]));
  },
  finish() {
    for (const one of clients) one.end();
    history?.close();
    setTimeout(() => process.exit(0), 100);
  },
};

process.on("message", async ({ id, ask, ...more }) => {
  const answer = await answers[ask](more);
  if (process.connected) process.send({ id, answer });
});
// The runner is gone, however that came.
process.on("disconnect", () => process.exit(1));
