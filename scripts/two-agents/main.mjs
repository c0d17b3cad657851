// Ada needs a text summarised and Ben can do it. They have never heard of each other: she finds him, they agree on a price
// under their signatures, she pays him word by word out of a payment channel while he works, and they close it. Ada's owner
// watches. Run by scripts/example; by hand:
//
//   MUSTER_URL=http://127.0.0.1:4000 MUSTER_ADMIN_TOKEN=op_… node main.mjs

import { spawnSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { Agent, connect, join, micros, rest, sha256 } from "./agent.mjs";

const url = process.env.MUSTER_URL ?? "http://127.0.0.1:4000";
const operator = process.env.MUSTER_ADMIN_TOKEN;
const say = (who, what) => console.log(`${who.padEnd(6)} ${what}`);
const text = ["Agents meet where their owners", " already are; they speak token", " by token, and nothing is lost."];
const decimal = (amount) => String(amount / 1e6);

// Somebody who owns an agent, and watches. The operator makes the account, and puts money on the agent's.
const user = await rest(url, "POST", "/api/v1/admin/users", { token: operator, body: { name: "Olga" } });
const { token } = await rest(url, "POST", `/api/v1/admin/users/${user.id}/tokens`, { token: operator, body: {} });
const olga = connect(url, "/socket/hirer", { api_key: token });
const own = await join(olga, `hirer:${user.id}`);
own.on("task.submitted", ({ task }) => say("Olga", `sees that Ada has given somebody a task: ${task.capability}`));

const ada = await Agent.register(url, { name: "Ada", capabilities: ["read"], price: "1", owner: token });
const ben = await Agent.register(url, { name: "Ben", capabilities: ["summarise"], price: "0.06" });
await rest(url, "POST", "/api/v1/admin/ledger/credit", { token: operator, body: { agent_id: ada.id, amount: "10", reference: `example-${ada.id}` } });
await ben.connect();
await ada.connect();

// What Ben does when he is spoken to.
const session = randomUUID();
const agreedBen = (async () => {
  const { payload, from_agent_id: from, id } = await ben.messages.next("new_message");
  await ben.messages.push("acknowledge", { message_id: id });
  say("Ben", `has a message from ${from === ada.id ? "Ada" : from}, and joins ${payload.session_id}`);
  const negotiation = await join(ben.socket, `negotiation:${payload.session_id}`);
  say("Ben", `is offered ${negotiation.reply.session.offers[0].amount}, and asks for 0.1`);
  const complete = negotiation.next("negotiation_complete");
  await negotiation.push("offer", ben.offer(payload.session_id, 1, "0.1"));
  return (await complete).agreement;
})();

// Ada looks who can do it, and who of those is there.
const { agents } = await ada.discovery.push("discover", { capability: "summarise", filters: { status: "online" } });
const found = agents.find((agent) => agent.id === ben.id);
say("Ada", `finds ${found.name}, who takes about ${found.base_price}`);

// They agree: 0.08 and 0.1 make 0.09.
await ada.rest("POST", "/api/v1/negotiations", { provider_agent_id: ben.id, session_id: session, ...ada.offer(session, 1, "0.08") });
const negotiation = await join(ada.socket, `negotiation:${session}`);
const asked = negotiation.next("offer");
const agreedAda = negotiation.next("negotiation_complete");
await ada.rest("POST", "/api/v1/messages", { to_agent_id: ben.id, type: "invitation", payload: { session_id: session } });
say("Ada", `is asked for ${(await asked).amount}, and accepts the middle`);
await negotiation.push("accept", ada.accept(session, "0.09", "0.08", "0.1"));
const { agreement } = await agreedAda;
if ((await agreedBen).id !== agreement.id) throw new Error("two agreements");
say("both", `have agreement ${agreement.id} about ${agreement.amount}`);
if (process.env.MUSTER_BIN) {
  // Anybody can check it, without a server.
  const { public_key: serverKey } = await rest(url, "GET", "/api/v1/server-key");
  const verified = spawnSync(process.env.MUSTER_BIN, ["agreement", "verify", "-", "--server-key", serverKey], { input: JSON.stringify(agreement) });
  if (verified.status !== 0) throw new Error(`the agreement does not hold: ${verified.stderr}`);
  say("anyone", "can verify it");
}

// A payment channel: Ada's money in it, and with each transfer a part of it becomes Ben's.
const opened = await ada.rest("POST", "/api/v1/payment-channels", { counterparty_agent_id: ben.id, deposit: agreement.amount });
const channel = opened.channel?.id ?? opened.id;
await ben.rest("POST", `/api/v1/payment-channels/${channel}/accept`, {});
const [adaPays, benPaid] = [await join(ada.socket, `payment:${channel}`), await join(ben.socket, `payment:${channel}`)];
let balances = [micros(agreement.amount), 0];
let nonce = 0;
async function pay(amount) {
  nonce += 1;
  balances = [balances[0] - micros(amount), balances[1] + micros(amount)];
  const transfer = { channel, nonce, from: ada.id, to: ben.id, amount, a: decimal(balances[0]), b: decimal(balances[1]) };
  const complete = benPaid.next("transfer_complete");
  await adaPays.push("propose_transfer", ada.transfer("propose", transfer));
  await benPaid.push("acknowledge_transfer", ben.transfer("ack", transfer));
  await complete;
}

// The task: her text goes in, his comes out, and each piece of it is paid.
const task = await ada.rest("POST", "/api/v1/tasks", { provider_agent_id: ben.id, capability: "summarise", input: { agreement_id: agreement.id } });
const submitted = join(olga, `task_stream:${task.id}`);
const [adaTask, benTask] = [await join(ada.socket, `task:${task.id}`), await join(ben.socket, `task:${task.id}`)];
const watched = await submitted;
watched.on("stream.chunk", ({ seq, content }) => say("Olga", `sees chunk ${seq}: ${JSON.stringify(content)}`));
const received = [];
benTask.on("input_stream", ({ chunk, seq }) => (received[seq] = chunk));
const whole = benTask.next("input_complete");
for (const [seq, chunk] of text.entries()) await adaTask.push("input_stream", { chunk, seq });
await adaTask.push("input_complete", { checksum: sha256(text.join("")), total_size: Buffer.byteLength(text.join("")) });
await whole;
if (received.join("") !== text.join("")) throw new Error("the text came out as another");
say("Ben", `has the text: ${received.length} pieces`);

const completed = adaTask.next("task_completed");
const written = [];
adaTask.on("output_stream", ({ chunk, seq }) => (written[seq] = chunk));
const end = watched.next("stream.done");
const summary = ["Nothing", " is", " lost."];
for (const [seq, chunk] of summary.entries()) {
  await benTask.push("output_stream", { chunk, seq });
  await ben.events.push("task.stream_chunk", { task_id: task.id, content: chunk });
  await pay("0.03");
  say("Ada", `has paid for ${JSON.stringify(chunk)}; Ben has ${decimal(balances[1])}`);
}
await benTask.push("output_complete", { checksum: sha256(summary.join("")), total_size: Buffer.byteLength(summary.join("")) });
await benTask.push("complete", { result: { summary: summary.join("") } });
await Promise.all([completed, end]);
if (written.join("") !== summary.join("")) throw new Error("the summary came out as another");
say("Olga", "sees that it is done");

// The end: both sign what each has, and it is paid out.
const [a, b] = balances.map(decimal);
const closed = benPaid.next("channel_closed");
await adaPays.push("close", { final_balance_a: a, final_balance_b: b, signature_a: ada.close(channel, nonce, a, b), signature_b: ben.close(channel, nonce, a, b) });
await closed;
const balance = await ben.rest("GET", "/api/v1/ledger/balance");
say("Ben", `has ${balance.available} on his account`);
if (micros(balance.available) !== micros(agreement.amount)) throw new Error("the money went elsewhere");
console.log(JSON.stringify({ agreement: agreement.id, transfers: nonce, paid: balance.available }));
for (const one of [ada, ben]) one.disconnect();
olga.disconnect();
