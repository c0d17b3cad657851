// Each thing the check of deals finds is made here from a right history.

import assert from "node:assert/strict";
import { test } from "node:test";
import { check } from "./checker.mjs";

const RIGHT = [
  { e: "plan", streams: [], nodes: [], direct: [] },
  { e: "dealers", channels: { c1: { deposits: ["1000", "1000"], amount: "10" } } },
  { e: "mail", c: "sender-0", m: "a", to: "x", once: true },
  { e: "taken", c: "sender-0", m: "a", id: "1" },
  { e: "got", c: "mailbox-0", m: "a", id: "1", once: true },
  { e: "got", c: "mailbox-0", m: "a", id: "1", once: true },
  { e: "fenced", c: "mailbox-0", id: "1" },
  { e: "mail", c: "sender-0", m: "b", to: "x", once: false },
  { e: "taken", c: "sender-0", m: "b", id: "2" },
  { e: "got", c: "mailbox-0", m: "b", id: "2", once: false },
  { e: "fenced", c: "mailbox-0", id: "2" },
  { e: "got", c: "mailbox-0", m: "b", id: "2", once: false },
  { e: "opened", x: "s1" },
  { e: "agreed", x: "s1", amount: "90" },
  { e: "opened", x: "s2" },
  { e: "moved", ch: "c1", nonce: 1 },
  { e: "told", ch: "c1", side: 0, nonce: 1 },
  { e: "moved", ch: "c1", nonce: 2 },
  { e: "moved", ch: "c1", nonce: 3 },
  { e: "kept", id: "1", status: "acknowledged" },
  { e: "kept", id: "2", status: "acknowledged" },
  { e: "session", x: "s1", status: "accepted", agreements: 1, amount: "90" },
  { e: "session", x: "s2", status: "open", agreements: 0 },
  { e: "channel", ch: "c1", side: 0, nonce: 3, status: "open", a: "990", b: "1010" },
  { e: "channel", ch: "c1", side: 1, nonce: 3, status: "open", a: "990", b: "1010" },
  { e: "ledger", sum: "0", skewed: 0, strayed: 0 },
].map((event, t) => ({ t, ...event }));

const kinds = (events) => check(events).problems.map((problem) => problem.kind);
const where = (fields) => RIGHT.findIndex((event) => Object.entries(fields).every(([name, value]) => event[name] === value));
const changed = (fields, more) => RIGHT.map((event, index) => (index === where(fields) ? { ...event, ...more } : event));
const without = (fields) => RIGHT.filter((_, index) => index !== where(fields));
const behind = (fields, event) => RIGHT.flatMap((one, index) => (index === where(fields) ? [one, { t: one.t, ...event }] : [one]));

test("a right history has nothing wrong", () => {
  const { problems, figures } = check(RIGHT);
  assert.deepEqual(problems, []);
  assert.deepEqual(figures.deals, { messages: 2, messagesRepeated: 2, sessions: 2, agreements: 1, transfers: 3, channels: 1, retried: 0 });
});

for (const [kind, events] of Object.entries({
  "an acknowledged message lost": RIGHT.filter((event) => event.e !== "got" || event.id !== "2"),
  "a message that did not come to its end": changed({ e: "kept", id: "2" }, { status: "failed" }),
  "a message that came after its acknowledgement": behind({ e: "fenced", id: "1" }, { e: "got", c: "mailbox-0", m: "a", id: "1", once: true }),
  "a message taken twice": behind({ e: "taken", m: "a" }, { e: "taken", m: "a", id: "9" }),
  "a message that came under two ids": behind({ e: "fenced", id: "1" }, { e: "got", c: "mailbox-0", m: "a", id: "7", once: true }),
  "a message that changed": behind({ e: "fenced", id: "1" }, { e: "got", c: "mailbox-0", m: "z", id: "2", once: false }),
  "an agreement lost": changed({ e: "session", x: "s1" }, { status: "open", agreements: 0 }),
  "a session without its one agreement": changed({ e: "session", x: "s1" }, { agreements: 2 }),
  "an agreement about something else": changed({ e: "session", x: "s1" }, { amount: "91" }),
  "a session that nobody opened": without({ e: "opened", x: "s2" }),
  "a transfer that happened twice": behind({ e: "moved", nonce: 2 }, { e: "moved", ch: "c1", nonce: 2 }),
  "a side that shows something else": changed({ e: "channel", side: 1 }, { nonce: 2 }),
  "a side that shows nothing": without({ e: "channel", side: 1 }),
  "money that appeared or vanished": changed({ e: "ledger" }, { sum: "5" }),
  "entries that do not add up": changed({ e: "ledger" }, { skewed: 1 }),
  "channels whose account is not their balance": changed({ e: "ledger" }, { strayed: 1 }),
  "a ledger nobody looked at": without({ e: "ledger" }),
})) {
  test(`finds ${kind}`, () => {
    assert.ok(kinds(events).includes(kind), kinds(events).join(", "));
  });
}
