// Says whether a message was lost or came again after its acknowledgement, whether a session has more or less than its one
// agreement, whether a transfer happened twice or on one side only, and whether any money appeared or vanished. A pure
// function over events, in the order in which each client noted them:
//
//   dealers  channels: { ch: { deposits: [a, b], amount } }     who pays each other, in millionths as text
//   mail     c m to once    a message was made; once: delivered exactly once
//   taken    m id           its sender was told that it is durable, under this id
//   got      c m id once    it reached a client of its recipient
//   fenced   c id           that client was told that its acknowledgement stands
//   kept     id status      what the store says of it at the end
//   opened   x              a negotiation was begun
//   agreed   x amount       both of its parties were told of the agreement
//   session  x status agreements amount     what the store says of it at the end
//   moved    ch nonce       whoever is paid was told that the transfer stands
//   told     ch side nonce  a side's client was told of it by itself
//   channel  ch side nonce status a b       what a side is shown at the end, in millionths as text
//   ledger   sum skewed strayed             the store's: sum of all accounts; entries that are not 0; sides of channels whose
//                                           account is not their balance
//   retried  why            something had to be asked again

/** The sum of all accounts, the operator's included, is nothing. */
const NOTHING = "0";

/** Adds what is wrong to `problems`; gives figures, none without deals. */
export function checkDeals({ sorted, problems }) {
  const plan = sorted.find((event) => event.e === "dealers");
  if (!plan) return {};
  const retried = sorted.filter((event) => event.e === "retried").length;
  return { deals: { ...checkMessages(sorted, problems), ...checkSessions(sorted, problems), ...checkChannels(plan, sorted, problems), retried } };
}

function checkMessages(sorted, problems) {
  const taken = new Map();
  const got = new Map();
  const fenced = new Set();
  const kept = new Map();
  let repeated = 0;
  for (const event of sorted) {
    if (event.e === "taken") {
      const before = taken.get(event.m);
      if (before !== undefined && before !== event.id) problems.add("a message taken twice", `${event.m} is ${before} and ${event.id}`);
      taken.set(event.m, event.id);
    } else if (event.e === "got") {
      if (got.has(event.id)) repeated++;
      if (event.once && fenced.has(event.id)) problems.add("a message that came after its acknowledgement", `${event.m} (${event.id})`);
      const other = [...(got.get(event.id) ?? [])].find((m) => m !== event.m);
      if (other !== undefined) problems.add("a message that changed", `${event.id} was ${other} and ${event.m}`);
      got.set(event.id, (got.get(event.id) ?? new Set()).add(event.m));
    } else if (event.e === "fenced") fenced.add(event.id);
    else if (event.e === "kept") kept.set(event.id, event.status);
  }
  const ids = new Map();
  for (const [id, names] of got) {
    for (const m of names) {
      if (ids.has(m) && ids.get(m) !== id) problems.add("a message that came under two ids", `${m} as ${ids.get(m)} and ${id}`);
      ids.set(m, id);
    }
  }
  for (const [m, id] of taken) {
    if (!got.has(id)) problems.add("an acknowledged message lost", `${m} (${id}): ${kept.get(id) ?? "not in the store"}`);
    else if (kept.get(id) !== "acknowledged") problems.add("a message that did not come to its end", `${m} (${id}): ${kept.get(id) ?? "not in the store"}`);
  }
  return { messages: taken.size, messagesRepeated: repeated };
}

function checkSessions(sorted, problems) {
  const agreed = new Map();
  const opened = new Set();
  const stored = new Map();
  for (const event of sorted) {
    if (event.e === "opened") opened.add(event.x);
    if (event.e === "agreed") agreed.set(event.x, event.amount);
    if (event.e === "session") stored.set(event.x, event);
  }
  for (const [x, { status, agreements, amount }] of stored) {
    if (!opened.has(x)) problems.add("a session that nobody opened", x);
    if (agreements !== (status === "accepted" ? 1 : 0)) problems.add("a session without its one agreement", `${x} is ${status} with ${agreements}`);
    if (agreed.has(x) && amount !== agreed.get(x)) problems.add("an agreement about something else", `${x}: ${amount} instead of ${agreed.get(x)}`);
  }
  for (const x of agreed.keys()) if (stored.get(x)?.status !== "accepted") problems.add("an agreement lost", `${x}: ${stored.get(x)?.status ?? "not in the store"}`);
  return { sessions: opened.size, agreements: agreed.size };
}

function checkChannels(plan, sorted, problems) {
  const moved = new Map(Object.keys(plan.channels).map((ch) => [ch, new Set()]));
  const shown = new Map();
  const ledgers = [];
  for (const event of sorted) {
    if (event.e === "moved") {
      if (moved.get(event.ch).has(event.nonce)) problems.add("a transfer that happened twice", `${event.ch} ${event.nonce}`);
      moved.get(event.ch).add(event.nonce);
    }
    if (event.e === "told" && event.nonce < 1) problems.add("a transfer that nobody made", `${event.ch} ${event.nonce}`);
    if (event.e === "channel") shown.set(event.ch, [...(shown.get(event.ch) ?? []), event]);
    if (event.e === "ledger") ledgers.push(event);
  }
  let transfers = 0;
  for (const [ch, { deposits, amount }] of Object.entries(plan.channels)) {
    const nonces = moved.get(ch);
    transfers += nonces.size;
    // By turns, so what each has follows from how many there were.
    const [a, b] = balances(deposits.map(BigInt), BigInt(amount), nonces.size);
    const views = shown.get(ch) ?? [];
    if (views.length !== 2) problems.add("a side that shows nothing", `${ch}: ${views.length} of 2`);
    for (const view of views) {
      const is = `nonce ${view.nonce}, ${view.a} and ${view.b}`;
      const must = `nonce ${nonces.size}, ${a} and ${b}`;
      if (is !== must) problems.add("a side that shows something else", `${ch}, side ${view.side}: ${is}, where it must be ${must}`);
    }
  }
  if (ledgers.length === 0) problems.add("a ledger nobody looked at", "at the end");
  for (const { sum, skewed, strayed } of ledgers) {
    if (sum !== NOTHING) problems.add("money that appeared or vanished", `all accounts together are ${sum}`);
    if (skewed !== 0) problems.add("entries that do not add up", `${skewed}`);
    if (strayed !== 0) problems.add("channels whose account is not their balance", `${strayed}`);
  }
  return { transfers, channels: moved.size };
}

/** What the two have after so many transfers of the same amount, by turns. */
function balances([a, b], amount, count) {
  const ahead = count % 2 === 0 ? 0n : amount;
  return [a - ahead, b + ahead].map(String);
}
