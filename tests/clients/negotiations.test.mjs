// Negotiations: on the channel and over REST, what is signed in them, and what they end in.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { after, before, describe, test } from "node:test";
import { muster, scratch } from "./lib/cli.mjs";
import { onCluster } from "./lib/cluster.mjs";
import { listen } from "./lib/events.mjs";
import { accept, acceptText, attestedText, offer, offerText, sha256, signing } from "./lib/negotiations.mjs";
import { collect, join, push } from "./lib/phoenix.mjs";
import { Server, sleep, until } from "./lib/server.mjs";
import { NO_TERMS, Signer, verifies } from "./lib/signer.mjs";
import { Connections, rate, ROOMY } from "./lib/streams.mjs";

const UNKNOWN_ID = "01a00000-0000-7000-8000-000000000000";
const EVENTS = ["offer", "negotiation_complete", "negotiation_rejected", "negotiation_expired"];

/** What a party of a negotiation does, on a server and by a way. */
function helpers(connections, server) {
  const call = (method, path, who, body) =>
    server.request(method, `/api/v1${path}`, { ...(who?.token ? { token: who.token, agent: who.agent } : { key: who?.key }), body });
  const ok = async (...all) => {
    const answer = await call(...all);
    assert.ok(answer.status < 300, `${all[1]}: ${answer.status} ${answer.text}`);
    return answer.data;
  };
  return {
    call,
    ok,
    /** A client and a provider who asks 60. */
    pair: async (options) => [await signing(server, { name: "Client", ...options }), await signing(server, { name: "Provider", ...options })],
    /** Begins one with a first proposal that is signed. */
    open: (client, provider, amount, more = {}) => {
      const session_id = randomUUID();
      return ok("POST", "/negotiations", client, { to_agent_id: provider.id, session_id, ...offer(session_id, client, 1, amount, more.hash), ...more.body });
    },
    /** Joins its channel as an agent; collects what is told. */
    channel: async (who, id, at = server) => {
      const socket = await connections.socket(at, "/socket", who.key ?? who.token);
      const channel = socket.channel(`negotiation:${id}`, {});
      const told = Object.fromEntries(EVENTS.map((event) => [event, collect(channel, event)]));
      const joined = await join(channel);
      return { channel, told, joined, session: joined.response?.session, push: (event, payload) => push(channel, event, payload) };
    },
  };
}

function onNode(title, set, define) {
  describe(title, () => {
    const world = { connections: new Connections() };
    before(async () => {
      world.server = await Server.start({ set: [...ROOMY, "drills.enabled=true", ...set] });
      Object.assign(world, helpers(world.connections, world.server));
    });
    after(async () => {
      await world.connections.close();
      await world.server?.end();
    });
    define(world);
  });
}

function assertRefused(answer, status, code, reason, field) {
  assert.deepEqual([answer.status, answer.error?.code, answer.data], [status, code, null], answer.text);
  if (reason) assert.equal(answer.error.details.reason, reason, answer.text);
  if (field) assert.equal(answer.error.field, field, answer.text);
}

const reasonOf = (answer) => {
  assert.equal(answer.status, "error", JSON.stringify(answer));
  return answer.response.reason;
};

onNode("negotiations", [], (world) => {
  test("R80 R59: its two agents join and are told all that a signer needs; for everybody else it does not exist", async () => {
    const owner = await world.server.user("Owner");
    const [client, provider] = await world.pair({ owner });
    const opened = await world.open(client, provider, "80");
    for (const who of [client, provider]) {
      const { joined, session } = await world.channel(who, opened.id);
      assert.equal(joined.status, "ok", JSON.stringify(joined));
      assert.deepEqual(
        [session.id, session.status, session.round, session.base_price, session.max_amount, session.terms, session.terms_sha256],
        [opened.id, "open", 1, "60", "120", {}, NO_TERMS],
      );
      assert.deepEqual(session.public_keys, { [client.id]: client.signer.publicKey, [provider.id]: provider.signer.publicKey });
      assert.deepEqual([session.client_agent_id, session.provider_agent_id], [client.id, provider.id]);
      assert.equal(Date.parse(session.expires_at) - Date.parse(session.created_at), 1_800_000);
      assert.equal(session.offers[0].statement, offerText(opened.id, client, 1, "80"));
    }
    // As one of their agents the owner does; as nobody, not.
    const acting = await world.connections.socket(world.server, "/socket", owner.token, { params: { api_key: owner.token, agent_id: client.id } });
    assert.equal((await join(acting.channel(`negotiation:${opened.id}`, {}))).status, "ok");
    const stranger = await signing(world.server);
    const sibling = await signing(world.server, { owner });
    for (const who of [stranger, sibling, owner, await world.server.user("Other")]) {
      for (const id of [opened.id, UNKNOWN_ID, "1", `${opened.id}#client`, opened.id.toUpperCase()]) {
        assert.deepEqual((await world.channel(who, id)).joined, { status: "error", response: { reason: "unauthorized" } }, `${who.name} ${id}`);
      }
    }
    const agentSocket = await world.connections.socket(world.server, "/socket/agent", client.key);
    assert.equal((await join(agentSocket.channel(`negotiation:${opened.id}`, {}))).response.reason, "unmatched topic");
  });

  test("R84: an offer is told to the other side, not echoed, and stored; REST and channel are one", async () => {
    const [client, provider] = await world.pair();
    const { id } = await world.open(client, provider, "80");
    const [mine, theirs] = [await world.channel(client, id), await world.channel(provider, id)];
    const body = offer(id, provider, 1, "100");
    const reply = await theirs.push("offer", body);
    assert.equal(reply.status, "ok", JSON.stringify(reply));
    const [told] = await until("the offer", () => (mine.told.offer.length ? mine.told.offer : null));
    assert.deepEqual([told.amount, told.signature, told.agent_id, told.round, told.offer_no], ["100", body.signature, provider.id, 2, 1]);
    assert.deepEqual(reply.response, told);
    const countered = await world.ok("POST", `/negotiations/${id}/counter`, client, offer(id, client, 2, "90.5"));
    assert.deepEqual([countered.round, countered.offers.length, countered.offers[2].amount], [3, 3, "90.5"]);
    await until("the counter-offer", () => theirs.told.offer.length === 1);
    assert.deepEqual(theirs.told.offer[0], countered.offers[2]);
    assert.equal(mine.told.offer.length, 1, "not echoed, neither from the channel nor from REST");
    assert.deepEqual((await world.ok("GET", `/negotiations/${id}`, provider)).offers, countered.offers);
  });

  test("R81 R82: amounts from 0 to twice the base price as it was at the start, exact in millionths", async () => {
    const [client, provider] = await world.pair();
    const { id } = await world.open(client, provider, "80");
    await world.ok("PUT", `/agents/${provider.id}`, provider, { base_price: "1000" });
    const { push } = await world.channel(provider, id);
    const above = await push("offer", offer(id, provider, 1, "120.000001"));
    assert.deepEqual(above.response, { reason: "amount_exceeds_maximum", max: "120" });
    for (const amount of ["-1", "1e2", "0.0000001", "NaN", "", " 1", "1,5", true, null, [], {}, -0.5, 1e300]) {
      const reason = reasonOf(await push("offer", { amount, signature: "AAAA" }));
      assert.equal(reason, "invalid_amount", JSON.stringify(amount));
      assertRefused(await world.call("POST", `/negotiations/${id}/counter`, provider, { amount, signature: "AAAA" }), 422, "INVALID_AMOUNT", "invalid_amount");
    }
    assert.equal(reasonOf(await push("offer", { signature: "AAAA" })), "invalid_payload");
    for (const [no, amount, shown] of [[1, "120", "120"], [2, 0, "0"], [3, 0.1, "0.1"], [4, "0.000001", "0.000001"]]) {
      const reply = await push("offer", offer(id, provider, no, amount));
      assert.equal(reply.response.amount, shown, JSON.stringify(reply));
    }
    assert.equal((await world.ok("GET", `/negotiations/${id}`, client)).offers.length, 5);
  });

  test("R83 R137 R138: only the sender's own signature over this very offer counts", async () => {
    const [client, provider] = await world.pair();
    const [{ id }, other] = [await world.open(client, provider, "80"), await world.open(client, provider, "80")];
    const { push } = await world.channel(provider, id);
    const right = offerText(id, provider, 1, "100");
    const signature = provider.signer.bytes(right);
    const flipped = Buffer.from(signature);
    flipped[3] ^= 1;
    // The same point by another number: what lax verifiers take.
    const order = (1n << 252n) + 27742317777372353535851937790883648493n;
    const scalar = BigInt(`0x${Buffer.from(signature.subarray(32)).reverse().toString("hex")}`) + order;
    const malleable = Buffer.concat([signature.subarray(0, 32), Buffer.from(scalar.toString(16).padStart(64, "0"), "hex").reverse()]);
    const wrong = {
      none: undefined,
      empty: "",
      "not base64": "?",
      short: signature.subarray(1).toString("base64"),
      flipped: flipped.toString("base64"),
      "not canonical": malleable.toString("base64"),
      "of the other side": client.signer.sign(right),
      "of another key": new Signer().sign(right),
      "over another amount": provider.signer.sign(offerText(id, provider, 1, "100.000001")),
      "over another number": provider.signer.sign(offerText(id, provider, 2, "100")),
      "of another session": provider.signer.sign(offerText(other.id, provider, 1, "100")),
      "of other terms": provider.signer.sign(offerText(id, provider, 1, "100", sha256("{\"a\":1}"))),
      "of an acceptance": provider.signer.sign(acceptText(id, provider, "100", ["80", "100"])),
      "as the client": provider.signer.sign(offerText(id, client, 1, "100")),
      zeros: Buffer.alloc(64).toString("base64"),
    };
    for (const [what, one] of Object.entries(wrong)) {
      assert.equal(reasonOf(await push("offer", { amount: "100", signature: one })), "invalid_signature", what);
      assertRefused(await world.call("POST", `/negotiations/${id}/counter`, provider, { amount: "100", signature: one }), 422, "VALIDATION_ERROR", "invalid_signature");
    }
    assert.equal((await world.ok("GET", `/negotiations/${id}`, client)).round, 1, "nothing was changed");
    // Hex and base64url are other spellings of the same.
    assert.equal((await push("offer", { amount: "100", signature: signature.toString("hex") })).status, "ok");
    assert.equal(reasonOf(await push("offer", { amount: "100", signature: signature.toString("hex") })), "invalid_signature", "sent again");
    const next = provider.signer.bytes(offerText(id, provider, 2, "99")).toString("base64url");
    assert.equal((await push("offer", { amount: "99", signature: next })).status, "ok");
    const mine = await world.channel(client, id);
    const asAccept = { amount: "89.5", signature: provider.signer.sign(acceptText(id, provider, "89.5", ["80", "99"])) };
    assert.equal(reasonOf(await mine.push("accept", asAccept)), "invalid_signature", "the other side's");
    const offered = { amount: "89.5", signature: client.signer.sign(offerText(id, client, 2, "89.5")) };
    assert.equal(reasonOf(await mine.push("accept", offered)), "invalid_signature", "an offer does not accept");
  });

  test("R85: the eleventh offer, by whatever way, ends it", async () => {
    const [client, provider] = await world.pair();
    const { id } = await world.open(client, provider, "50");
    const [mine, theirs] = [await world.channel(client, id), await world.channel(provider, id)];
    for (let no = 1; no <= 9; no++) {
      const body = offer(id, provider, no, "60");
      const answer = no % 2 ? await theirs.push("offer", body) : await world.call("POST", `/negotiations/${id}/counter`, provider, body);
      assert.ok(["ok", 200].includes(answer.status), JSON.stringify(answer));
    }
    assert.equal((await world.ok("GET", `/negotiations/${id}`, client)).round, 10);
    assert.deepEqual((await mine.push("offer", offer(id, client, 2, "55"))).response, { reason: "round_limit_reached" });
    for (const { told } of [mine, theirs]) {
      await until("negotiation_expired", () => told.negotiation_expired.length === 1);
      assert.deepEqual(told.negotiation_expired, [{ session_id: id, round: 10 }]);
    }
    assert.equal((await world.ok("GET", `/negotiations/${id}`, client)).status, "expired");
    assert.equal(reasonOf(await mine.push("accept", accept(id, client, "55", ["50", "60"]))), "session_expired");
    assertRefused(await world.call("POST", `/negotiations/${id}/counter`, client, offer(id, client, 2, "55")), 409, "SESSION_EXPIRED", "session_expired");
  });

  test("R87 R91: an acceptance names the mean of both sides' latest offers, rounded down, and that very pair", async () => {
    const [client, provider] = await world.pair();
    const { id } = await world.open(client, provider, "80");
    const [mine, theirs] = [await world.channel(client, id), await world.channel(provider, id)];
    assert.equal(reasonOf(await theirs.push("accept", accept(id, provider, "80", ["80", "0"]))), "offers_incomplete");
    await theirs.push("offer", offer(id, provider, 1, "100.000001"));
    assert.deepEqual((await mine.push("accept", accept(id, client, "90.000001", ["80", "100.000001"]))).response, { reason: "amount_mismatch", expected: "90" });
    const superseded = accept(id, client, "90", ["80", "100.000001"]);
    await theirs.push("offer", offer(id, provider, 2, "110"));
    assert.equal((await mine.push("accept", superseded)).response.expected, "95");
    // Another pair with the same mean: the statement tells them apart.
    await mine.push("offer", offer(id, client, 2, "70.000001"));
    assert.equal((await theirs.push("offer", offer(id, provider, 3, "110"))).status, "ok");
    assert.equal(reasonOf(await mine.push("accept", superseded)), "invalid_signature");
    const done = await mine.push("accept", accept(id, client, "90", ["70.000001", "110"]));
    assert.equal(done.response.amount, "90", JSON.stringify(done));
  });

  test("R88: who made the latest offer cannot accept", async () => {
    const [client, provider] = await world.pair();
    const { id } = await world.open(client, provider, "80");
    const theirs = await world.channel(provider, id);
    await theirs.push("offer", offer(id, provider, 1, "100"));
    assert.equal(reasonOf(await theirs.push("accept", accept(id, provider, "90", ["80", "100"]))), "cannot_accept_own_move");
    assertRefused(await world.call("POST", `/negotiations/${id}/accept`, provider, accept(id, provider, "90", ["80", "100"])), 409, "CANNOT_ACCEPT_OWN_MOVE");
    assert.equal((await world.ok("GET", `/negotiations/${id}`, client)).status, "open");
  });

  test("R89 R135 R137 R139: an agreement is told to both once, stays as it is, and anybody can check it", async () => {
    const owner = await world.server.user("Owner");
    const client = await signing(world.server, { owner });
    const provider = await signing(world.server);
    const task = await world.server.task(client, provider);
    const terms = { z: [1, 2.5e3], a: "é" };
    const hash = sha256(JSON.stringify({ a: "é", z: [1, 2500] }));
    const opened = await world.open(client, provider, "80", { hash, body: { terms, task_id: task.id } });
    const { id } = opened;
    assert.deepEqual([opened.terms, opened.terms_sha256, opened.task_id], [terms, hash, task.id]);
    const [mine, theirs] = [await world.channel(client, id), await world.channel(provider, id)];
    await theirs.push("offer", offer(id, provider, 1, "100", hash));
    const [first, second] = [opened.offers[0], (await world.ok("GET", `/negotiations/${id}`, client)).offers[1]];
    const { signature } = accept(id, client, "90", ["80", "100"], hash);
    const agreement = await world.ok("POST", `/negotiations/${id}/accept`, client, { signature });
    for (const { told } of [mine, theirs]) {
      await until("negotiation_complete", () => told.negotiation_complete.length === 1);
      assert.deepEqual(told.negotiation_complete, [{ session_id: id, agreement_id: agreement.id, amount: "90", agreement }]);
    }
    const shown = await world.ok("GET", `/negotiations/${id}`, provider);
    assert.deepEqual([shown.status, shown.agreement_id, shown.ended_by], ["accepted", agreement.id, client.id]);

    // By other code than the server's.
    const { public_key: serverKey } = (await world.call("GET", "/server-key")).data;
    assert.deepEqual(agreement.public_keys, { [client.id]: client.signer.publicKey, [provider.id]: provider.signer.publicKey });
    assert.deepEqual(agreement.client_offer, { amount: "80", own_offer_no: 1, signature: first.signature, statement: offerText(id, client, 1, "80", hash) });
    assert.deepEqual(agreement.provider_offer, { amount: "100", own_offer_no: 1, signature: second.signature, statement: offerText(id, provider, 1, "100", hash) });
    assert.deepEqual(agreement.accept, { agent_id: client.id, signature, statement: acceptText(id, client, "90", ["80", "100"], hash) });
    assert.ok(verifies(client.signer.publicKey, agreement.client_offer.statement, agreement.client_offer.signature));
    assert.ok(verifies(provider.signer.publicKey, agreement.provider_offer.statement, agreement.provider_offer.signature));
    assert.ok(verifies(client.signer.publicKey, agreement.accept.statement, agreement.accept.signature));
    assert.deepEqual([agreement.server_key, agreement.server_statement], [serverKey, attestedText(agreement)]);
    assert.ok(verifies(serverKey, agreement.server_statement, agreement.server_signature));
    assert.deepEqual([agreement.task_id, agreement.base_price, agreement.terms, agreement.terms_sha256], [task.id, "60", terms, hash]);

    // Over.
    assert.deepEqual((await theirs.push("offer", offer(id, provider, 2, "100", hash))).response, { reason: "session_not_open", status: "accepted" });
    assertRefused(await world.call("POST", `/negotiations/${id}/accept`, client, { signature }), 409, "SESSION_NOT_OPEN");
    assertRefused(await world.call("POST", `/negotiations/${id}/reject`, client, {}), 409, "SESSION_NOT_OPEN");
    await sleep(200);
    assert.equal(mine.told.negotiation_complete.length, 1);

    // Shown to its parties and their owners.
    for (const who of [client, provider, owner]) {
      const answer = await world.call("GET", `/agreements/${agreement.id}`, who);
      assert.deepEqual(answer.data, agreement);
      const stored = JSON.stringify(agreement);
      assert.ok(answer.text.includes(stored.slice(0, stored.indexOf("\"terms\""))), "the same bytes");
    }
    for (const who of [await signing(world.server), await world.server.user("Other")]) {
      const answer = await world.call("GET", `/agreements/${agreement.id}`, who);
      assertRefused(answer, 404, "NOT_FOUND");
      assert.deepEqual(answer.error, (await world.call("GET", `/agreements/${UNKNOWN_ID}`, who)).error);
    }
    assertRefused(await world.call("GET", `/agreements/${agreement.id}`), 401, "UNAUTHORIZED");

    // And from the command line, without a server.
    const { file, remove } = await scratch();
    const check = async (content, ...more) => {
      await writeFile(file("agreement.json"), JSON.stringify(content));
      return muster(["agreement", "verify", file("agreement.json"), ...more]);
    };
    const envelope = (await world.call("GET", `/agreements/${agreement.id}`, client)).body;
    for (const content of [agreement, envelope]) {
      const held = await check(content, "--server-key", serverKey);
      assert.deepEqual([held.code, held.stderr], [0, ""]);
      assert.match(held.stdout, new RegExp(`agreement ${agreement.id} holds`));
      assert.match(held.stdout, /the amount 90 is the mean/);
    }
    assert.equal((await check(agreement)).code, 0);
    const forgeries = [
      [{ amount: "91" }, /mean/],
      [{ terms: { ...terms, a: "e" } }, /terms_sha256/],
      [{ provider_agent_id: client.id }, /one agent/],
      [{ client_offer: { ...agreement.client_offer, amount: "81" } }, /client_offer: the statement/],
      [{ accept: { ...agreement.accept, agent_id: provider.id } }, /accept: the statement/],
      [{ provider_offer: { ...agreement.provider_offer, signature: agreement.client_offer.signature } }, /provider_offer: the signature/],
      [{ base_price: "49" }, /twice the base price/],
      [{ base_price: "61" }, /server_statement/],
      [{ created_at: "2020-01-01T00:00:00.000Z" }, /server_statement/],
      [{ server_signature: agreement.accept.signature }, /server's statement: the signature/],
      [{ paid: true }, /not an agreement/],
    ];
    for (const [change, problem] of forgeries) {
      const broken = await check({ ...agreement, ...change });
      assert.deepEqual([broken.code, broken.stdout], [1, ""], JSON.stringify(change));
      assert.match(broken.stderr, problem);
    }
    assert.match((await check(agreement, "--server-key", client.signer.publicKey)).stderr, /another server/);
    assert.equal((await muster(["agreement", "verify", file("absent.json")])).code, 1);
    await remove();
  });

  test("R90: either side ends it, and it stays ended", async () => {
    for (const rejects of [0, 1]) {
      const pair = await world.pair();
      const { id } = await world.open(...pair, "80");
      const [mine, theirs] = [await world.channel(pair[0], id), await world.channel(pair[1], id)];
      const reason = "too much 😀";
      const long = await theirs.push("reject", { reason: "x".repeat(501) });
      assert.equal(reasonOf(long), "invalid_payload");
      if (rejects === 0) assert.deepEqual((await mine.push("reject", { reason })).response, { session_id: id, status: "rejected" });
      else assert.equal((await world.ok("POST", `/negotiations/${id}/reject`, pair[1], { reason })).status, "rejected");
      for (const { told } of [mine, theirs]) {
        await until("negotiation_rejected", () => told.negotiation_rejected.length === 1);
        assert.deepEqual(told.negotiation_rejected, [{ session_id: id, reason, agent_id: pair[rejects].id }]);
      }
      const refused = { reason: "session_not_open", status: "rejected" };
      assert.deepEqual((await theirs.push("offer", offer(id, pair[1], 1, "100"))).response, refused);
      assert.deepEqual((await mine.push("reject", {})).response, refused);
      assert.equal((await world.channel(pair[0], id)).session.status, "rejected");
    }
  });

  test("R134: an unsigned proposal counts, and is accepted only once it is signed", async () => {
    const [client, provider] = await world.pair();
    const opened = await world.ok("POST", "/negotiations", client, { provider_agent_id: provider.id, amount: 80 });
    const { id } = opened;
    assert.deepEqual([opened.round, opened.offers[0].signature, opened.offers[0].offer_no], [1, null, 1]);
    await world.ok("POST", `/negotiations/${id}/counter`, provider, offer(id, provider, 1, "100"));
    const tooEarly = accept(id, client, "90", ["80", "100"]);
    assertRefused(await world.call("POST", `/negotiations/${id}/accept`, client, tooEarly), 409, "OFFERS_INCOMPLETE", "offers_incomplete");
    await world.ok("POST", `/negotiations/${id}/counter`, client, offer(id, client, 2, "80"));
    const agreement = await world.ok("POST", `/negotiations/${id}/accept`, provider, accept(id, provider, "90", ["80", "100"]));
    assert.equal(agreement.client_offer.own_offer_no, 2);
  });

  test("R134 R136: what does not fit begins nothing", async () => {
    const [client, provider] = await world.pair();
    const [blocking, stopped] = [await signing(world.server), await signing(world.server)];
    await world.ok("POST", "/blocks", blocking, { agent_id: client.id });
    await world.ok("PUT", `/admin/agents/${stopped.id}/status`, { token: world.server.adminToken }, { status: "inactive" });
    const task = await world.server.task(blocking, provider);
    const used = (await world.open(client, provider, "80")).id;
    const session_id = randomUUID();
    const cases = [
      [{ to_agent_id: UNKNOWN_ID }, 404, "NOT_FOUND", "to_agent_id"],
      [{ to_agent_id: blocking.id }, 404, "NOT_FOUND", "to_agent_id"],
      [{ to_agent_id: stopped.id }, 503, "AGENT_UNAVAILABLE"],
      [{ to_agent_id: client.id }, 422, "VALIDATION_ERROR", "to_agent_id"],
      [{ to_agent_id: undefined }, 422, "VALIDATION_ERROR", "to_agent_id"],
      [{ provider_agent_id: client.id }, 422, "VALIDATION_ERROR", "provider_agent_id"],
      [{ amount: undefined }, 422, "VALIDATION_ERROR", "amount"],
      [{ amount: "120.1" }, 422, "INVALID_AMOUNT"],
      [{ amount: "-1" }, 422, "INVALID_AMOUNT", "amount"],
      [{ terms: [] }, 422, "VALIDATION_ERROR", "terms"],
      [{ terms: { a: "x".repeat(16_384) } }, 422, "VALIDATION_ERROR", "terms"],
      [{ task_id: UNKNOWN_ID }, 404, "NOT_FOUND", "task_id"],
      [{ task_id: task.id }, 404, "NOT_FOUND", "task_id"],
      [{ session_id: used }, 409, "ALREADY_EXISTS", "session_id"],
      [{ session_id: "1" }, 422, "VALIDATION_ERROR", "session_id"],
      [{ session_id: session_id.toUpperCase() }, 422, "VALIDATION_ERROR", "session_id"],
      [{ signature: client.signer.sign("x") }, 422, "VALIDATION_ERROR", "session_id"],
      [{ session_id, signature: client.signer.sign(offerText(session_id, client, 2, "80")) }, 422, "VALIDATION_ERROR"],
      [{ session_id, signature: provider.signer.sign(offerText(session_id, client, 1, "80")) }, 422, "VALIDATION_ERROR"],
    ];
    for (const [change, status, code, field] of cases) {
      assertRefused(await world.call("POST", "/negotiations", client, { to_agent_id: provider.id, amount: "80", ...change }), status, code, undefined, field);
    }
    assertRefused(await world.call("POST", "/negotiations", undefined, { to_agent_id: provider.id, amount: "80" }), 401, "UNAUTHORIZED");
    assertRefused(await world.call("POST", "/negotiations", await world.server.user(), { to_agent_id: provider.id, amount: "80" }), 403, "FORBIDDEN");
    assert.equal((await world.ok("GET", "/negotiations", client)).length, 1);
  });

  test("R134: a task says who is client; the other side hears of it on its own topic and on the main socket", async () => {
    const [client, provider] = await world.pair();
    const task = await world.server.task(client, provider);
    const own = await listen(world.connections, world.server, client);
    const main = await world.connections.socket(world.server, "/socket", client.key);
    const discovery = main.channel("agents:discovery", {});
    const seen = collect(discovery, "negotiation_started");
    await join(discovery);
    const stranger = await world.connections.socket(world.server, "/socket", (await signing(world.server)).key);
    const strangers = stranger.channel("agents:discovery", {});
    const seenByStrangers = collect(strangers, "negotiation_started");
    await join(strangers);
    const opened = await world.ok("POST", "/negotiations", provider, { task_id: task.id, amount: "70" });
    assert.deepEqual([opened.client_agent_id, opened.provider_agent_id, opened.opened_by], [client.id, provider.id, provider.id]);
    assert.deepEqual((await own.next("negotiation_started")).session, opened);
    await until("negotiation_started", () => seen.length === 1);
    assert.deepEqual(seen, [{ session: opened }]);
    assert.deepEqual(seenByStrangers, []);
    assertRefused(await world.call("POST", "/negotiations", provider, { task_id: task.id, to_agent_id: provider.id, amount: "70" }), 422, "VALIDATION_ERROR", undefined, "to_agent_id");
  });

  test("R134: lists hold an agent's or a user's own, newest first, by state and page by page, and say how many there are", async () => {
    const { server } = world;
    const owner = await server.user("Owner");
    const [client, provider] = await world.pair();
    const owned = await signing(server, { owner, name: "Owned" });
    const opened = [];
    for (const [from, to] of [[client, provider], [owned, provider], [client, owned], [client, provider], [owned, provider]]) opened.push((await world.open(from, to, "80")).id);
    const [first, second, third, fourth, fifth] = opened;
    for (const id of [first, second]) await world.ok("POST", `/negotiations/${id}/reject`, provider, {});
    const list = async (who, query = "") => {
      const { data, body } = await world.call("GET", `/negotiations${query}`, who);
      return [data.map(({ id }) => id), body.meta.pagination.total_count];
    };
    assert.deepEqual(await list(client), [[fourth, third, first], 3]);
    assert.deepEqual(await list(provider), [[fifth, fourth, second, first], 4]);
    assert.deepEqual(await list(owner), [[fifth, third, second], 3], "of all agents of the user, on either side");
    assert.deepEqual(await list({ token: owner.token, agent: owned.id }), [[fifth, third, second], 3]);
    assert.deepEqual(await list(client, "?status=rejected"), [[first], 1]);
    assert.deepEqual(await list(provider, "?status=open"), [[fifth, fourth], 2]);
    assert.deepEqual(await list(owner, "?status=rejected"), [[second], 1]);
    assert.deepEqual(await list(owner, "?status=accepted"), [[], 0]);
    assert.deepEqual(await list(await server.user("Other")), [[], 0]);
    assert.deepEqual(await list(await server.agent()), [[], 0]);
    const seen = [];
    for (let cursor = ""; ;) {
      const { data, body } = await world.call("GET", `/negotiations?limit=3${cursor}`, provider);
      seen.push(...data.map(({ id }) => id));
      const { pagination } = body.meta;
      assert.equal(pagination.total_count, 4, "on every page");
      if (!pagination.has_more) break;
      cursor = `&cursor=${pagination.cursor}`;
    }
    assert.deepEqual(seen, [fifth, fourth, second, first]);
    assertRefused(await world.call("GET", "/negotiations?status=lost", client), 422, "VALIDATION_ERROR");
    assertRefused(await world.call("GET", "/negotiations"), 401, "UNAUTHORIZED");
  });

  test("R135 R136 R167: parties move, their owners watch; others are refused, and unknown ids are not found", async () => {
    const [clientOwner, other] = [await world.server.user("Owner"), await world.server.user("Other")];
    const client = await signing(world.server, { owner: clientOwner });
    const [sibling, provider, stranger] = [await signing(world.server, { owner: clientOwner }), await signing(world.server), await signing(world.server)];
    const { id } = await world.open(client, provider, "80");
    const moves = (who, session = id) => [
      ["counter", offer(session, who, 1, "100")],
      ["accept", accept(session, who, "80", ["80", "80"])],
      ["reject", {}],
    ];
    for (const who of [stranger, sibling]) {
      for (const [move, body] of moves(who)) assertRefused(await world.call("POST", `/negotiations/${id}/${move}`, who, body), 403, "FORBIDDEN");
      assertRefused(await world.call("GET", `/negotiations/${id}`, who), 403, "FORBIDDEN");
    }
    for (const [move, body] of moves(client)) {
      assertRefused(await world.call("POST", `/negotiations/${UNKNOWN_ID}/${move}`, client, body), 404, "NOT_FOUND");
      assertRefused(await world.call("POST", `/negotiations/no-id/${move}`, client, body), 404, "NOT_FOUND");
      assertRefused(await world.call("POST", `/negotiations/${id}/${move}`, undefined, body), 401, "UNAUTHORIZED");
      assertRefused(await world.call("POST", `/negotiations/${id}/${move}`, clientOwner, body), 403, "FORBIDDEN");
      assertRefused(await world.call("POST", `/negotiations/${id}/${move}`, { ...clientOwner, agent: sibling.id }, body), 403, "FORBIDDEN");
      assertRefused(await world.call("POST", `/negotiations/${id}/${move}`, { ...other, agent: client.id }, body), 403, "FORBIDDEN");
    }
    assertRefused(await world.call("GET", `/negotiations/${UNKNOWN_ID}`, client), 404, "NOT_FOUND");
    assert.equal((await world.ok("GET", `/negotiations/${id}`, clientOwner)).id, id);
    assertRefused(await world.call("GET", `/negotiations/${id}`, other), 403, "FORBIDDEN");
    // As one of their agents a user moves.
    const acting = { ...clientOwner, agent: client.id };
    assert.equal((await world.ok("POST", `/negotiations/${id}/counter`, acting, offer(id, client, 2, "90"))).round, 2);
    assert.deepEqual((await world.ok("GET", "/negotiations", clientOwner)).map((one) => one.id), [id]);
    assert.deepEqual(await world.ok("GET", "/negotiations", stranger), []);
    assert.deepEqual(await world.ok("GET", "/negotiations", other), []);
    const second = await world.open(client, provider, "80");
    const page = await world.call("GET", "/negotiations?limit=1", provider);
    assert.deepEqual([page.data[0].id, page.body.meta.pagination.total_count], [second.id, 2]);
    const rest = await world.call("GET", `/negotiations?limit=1&cursor=${page.body.meta.pagination.cursor}`, provider);
    assert.deepEqual([rest.data[0].id, rest.body.meta.pagination.has_more], [id, false]);
    assert.deepEqual(await world.ok("GET", "/negotiations?status=accepted", provider), []);
  });

  test("R22: who has no key can neither offer nor accept; who gets one can", async () => {
    const client = await signing(world.server);
    const signer = new Signer();
    const provider = { ...(await world.server.agent({ price: "60" })), signer };
    const { id, public_keys } = await world.open(client, provider, "80");
    assert.equal(public_keys[provider.id], null);
    const theirs = await world.channel(provider, id);
    assert.equal(reasonOf(await theirs.push("offer", offer(id, provider, 1, "100"))), "no_public_key");
    assert.equal(reasonOf(await theirs.push("accept", accept(id, provider, "80", ["80", "80"]))), "no_public_key");
    await world.ok("PUT", `/agents/${provider.id}/public_key`, provider, { public_key: signer.publicKey });
    assert.equal((await theirs.push("offer", offer(id, provider, 1, "100"))).status, "ok");
    const shown = await world.ok("GET", `/negotiations/${id}`, provider);
    assert.equal(shown.public_keys[provider.id], signer.publicKey);
  });

  test("R83 R167: a key that an agent gets later does not count in a negotiation that has begun", async () => {
    const [client, provider] = await world.pair();
    const { id } = await world.open(client, provider, "80");
    const later = new Signer();
    const signature = provider.signer.sign(`muster-sig-v1\nagent.public_key\n${provider.id}\n${later.raw.toString("hex")}`);
    await world.ok("PUT", `/agents/${provider.id}/public_key`, provider, { public_key: later.publicKey, signature });
    const renewed = { ...provider, signer: later };
    assertRefused(await world.call("POST", `/negotiations/${id}/counter`, provider, offer(id, renewed, 1, "100")), 422, "VALIDATION_ERROR", "invalid_signature");
    assert.equal((await world.ok("POST", `/negotiations/${id}/counter`, provider, offer(id, provider, 1, "100"))).round, 2);
    const next = await world.open(client, provider, "80");
    assert.equal((await world.ok("POST", `/negotiations/${next.id}/counter`, provider, offer(next.id, renewed, 1, "100"))).round, 2);
  });

  test("R167: revoked keys, ended sessions and credentials that may not write move nothing", async () => {
    const [client, provider] = await world.pair();
    const { id } = await world.open(client, provider, "80");
    const body = offer(id, provider, 1, "100");
    const session = await world.ok("POST", "/auth/authenticate", provider);
    const extra = await world.ok("POST", `/agents/${provider.id}/credentials`, provider, {});
    const reader = await world.ok("POST", `/agents/${provider.id}/credentials`, provider, { scopes: ["read", "connect"] });
    const reading = await world.channel({ key: reader.api_key }, id);
    assert.equal(reading.joined.status, "ok");
    assert.equal(reasonOf(await reading.push("offer", body)), "forbidden");
    assert.equal(reasonOf(await reading.push("reject", {})), "forbidden");
    assertRefused(await world.call("POST", `/negotiations/${id}/counter`, { key: reader.api_key }, body), 403, "FORBIDDEN");
    await world.ok("DELETE", `/agents/${provider.id}/credentials/${extra.credential.id}`, provider);
    assertRefused(await world.call("POST", `/negotiations/${id}/counter`, { key: extra.api_key }, body), 401, "UNAUTHORIZED");
    assert.equal((await world.server.request("DELETE", "/api/v1/auth/logout", { token: session.token })).status, 200);
    assertRefused(await world.server.request("POST", `/api/v1/negotiations/${id}/counter`, { token: session.token, body }), 401, "UNAUTHORIZED");
    assert.equal((await world.ok("GET", `/negotiations/${id}`, client)).round, 1);
  });

  test("R4 R11: whatever is pushed, the channel stays", async () => {
    const [client, provider] = await world.pair();
    const { id } = await world.open(client, provider, "80");
    const theirs = await world.channel(provider, id);
    assert.equal(reasonOf(await theirs.push("propose", {})), "unknown_event");
    for (const payload of [[], "x", 7, null, { amount: "1", signature: 7 }, { amount: "1", signature: [] }]) {
      assert.equal(reasonOf(await theirs.push("offer", payload)), "invalid_payload", JSON.stringify(payload));
    }
    assert.equal(reasonOf(await theirs.push("reject", { reason: 7 })), "invalid_payload");
    assert.equal((await theirs.push("offer", offer(id, provider, 1, "100"))).status, "ok");
  });

  test("R91: of an acceptance and an offer at the same instant the one that comes first counts, and the books agree", async () => {
    for (let n = 0; n < 20; n++) {
      const [client, provider] = await world.pair();
      const { id } = await world.open(client, provider, "80");
      await world.ok("POST", `/negotiations/${id}/counter`, provider, offer(id, provider, 1, "100"));
      const path = `/negotiations/${id}`;
      const moves = [
        () => world.call("POST", `${path}/accept`, client, accept(id, client, "90", ["80", "100"])),
        () => world.call("POST", `${path}/counter`, provider, offer(id, provider, 2, "110")),
      ];
      const [first, second] = await Promise.all((n % 2 ? moves : moves.reverse()).map((move) => move()));
      const [accepted, countered] = n % 2 ? [first, second] : [second, first];
      const shown = await world.ok("GET", path, client);
      if (accepted.status === 200) {
        assert.deepEqual([countered.status, shown.status, shown.round], [409, "accepted", 2]);
      } else {
        assert.deepEqual([accepted.error.details.reason, accepted.error.details.expected], ["amount_mismatch", "95"]);
        assert.deepEqual([countered.status, shown.status, shown.round], [200, "open", 3]);
      }
    }
  });
});

onNode("a literal reading", ["negotiation.allow_self_accept=true", "negotiation.rounds_max=3", "limits.negotiations_open_per_agent_max=2"], (world) => {
  test("R88 R89: where both may accept and do at once, there is one agreement", async () => {
    const [client, provider] = await world.pair();
    const { id } = await world.open(client, provider, "80");
    const [mine, theirs] = [await world.channel(client, id), await world.channel(provider, id)];
    await theirs.push("offer", offer(id, provider, 1, "100"));
    const answers = await Promise.all([mine.push("accept", accept(id, client, "90", ["80", "100"])), theirs.push("accept", accept(id, provider, "90", ["80", "100"]))]);
    assert.deepEqual(answers.map(({ status }) => status).sort(), ["error", "ok"]);
    assert.equal(answers.find(({ status }) => status === "error").response.reason, "session_not_open");
    await until("negotiation_complete", () => mine.told.negotiation_complete.length === 1 && theirs.told.negotiation_complete.length === 1);
  });

  test("R169: rounds and open negotiations are as many as the configuration says", async () => {
    const [client, provider] = await world.pair();
    const { id } = await world.open(client, provider, "80");
    for (const no of [1, 2]) await world.ok("POST", `/negotiations/${id}/counter`, provider, offer(id, provider, no, "100"));
    const open = await world.open(client, provider, "80");
    assertRefused(await world.call("POST", "/negotiations", client, { to_agent_id: provider.id, amount: "1" }), 409, "LIMIT_REACHED");
    assertRefused(await world.call("POST", `/negotiations/${id}/counter`, provider, offer(id, provider, 3, "100")), 409, "ROUND_LIMIT_REACHED");
    await world.open(client, provider, "80");
    assert.equal((await world.ok("GET", `/negotiations/${open.id}`, client)).status, "open");
  });
});

onNode("few joins", [`limits.joins_per_agent=${rate(4, 1, 60_000)}`], (world) => {
  test("R60: joins and signed events of an agent share one limit", async () => {
    const [client, provider] = await world.pair();
    const { id } = await world.open(client, provider, "80");
    const theirs = await world.channel(provider, id);
    for (const no of [1, 2, 3]) assert.equal((await theirs.push("offer", offer(id, provider, no, "100"))).status, "ok");
    const limited = await theirs.push("offer", offer(id, provider, 4, "100"));
    assert.equal(reasonOf(limited), "rate_limited");
    assert.ok(limited.response.retry_after_ms > 0);
    assert.equal(reasonOf(await theirs.push("accept", {})), "rate_limited");
    assert.equal((await world.channel(provider, id)).joined.response.reason, "rate_limited");
    assert.equal((await world.ok("GET", `/negotiations/${id}`, client)).round, 4);
    assert.equal((await world.channel(client, id)).joined.status, "ok", "the other agent has a limit of its own");
  });
});

onNode("time and crashes", [], (world) => {
  test("R166 R86: what was acknowledged is there after kill -9, the same key signs, and the time goes on", async () => {
    const [client, provider] = await world.pair();
    const [open, done] = [await world.open(client, provider, "80"), await world.open(client, provider, "80")];
    for (const { id } of [open, done]) await world.ok("POST", `/negotiations/${id}/counter`, provider, offer(id, provider, 1, "100"));
    const agreement = await world.ok("POST", `/negotiations/${done.id}/accept`, client, accept(done.id, client, "90", ["80", "100"]));
    const before = await world.ok("GET", `/negotiations/${open.id}`, client);
    const key = await world.ok("GET", "/server-key");
    await world.server.kill();
    await world.server.startAgain();
    assert.deepEqual(await world.ok("GET", `/negotiations/${open.id}`, client), before);
    assert.deepEqual(await world.ok("GET", `/agreements/${agreement.id}`, client), agreement);
    assert.deepEqual(await world.ok("GET", "/server-key"), key);
    const second = await world.ok("POST", `/negotiations/${open.id}/accept`, client, accept(open.id, client, "90", ["80", "100"]));
    assert.equal(second.server_key, agreement.server_key);
  });

  test("R89 R166: killed in the midst of acceptances, each negotiation has its agreement, the one that was answered, or goes on", async () => {
    for (let round = 0; round < 3; round++) {
      const [client, provider] = await world.pair();
      const ids = [];
      for (let n = 0; n < 30; n++) {
        const { id } = await world.open(client, provider, "80");
        await world.ok("POST", `/negotiations/${id}/counter`, provider, offer(id, provider, 1, "100"));
        ids.push(id);
      }
      const accepting = (id) => world.call("POST", `/negotiations/${id}/accept`, client, accept(id, client, "90", ["80", "100"]));
      let answered = 0;
      const count = (answer) => ((answered += 1), answer);
      const answers = Promise.all(ids.map((id) => accepting(id).then(count, () => null)));
      await until("some are answered", () => answered > round * 5);
      await world.server.kill();
      const before = await answers;
      await world.server.startAgain();
      for (const [n, id] of ids.entries()) {
        const shown = await world.ok("GET", `/negotiations/${id}`, provider);
        const known = before[n]?.status === 200 ? before[n].data : null;
        if (known) assert.deepEqual([shown.status, shown.agreement_id], ["accepted", known.id]);
        // What was not answered happened or it did not, and never by halves.
        if (shown.status === "open") assert.equal((await accepting(id)).status, 200);
        const { agreement_id } = await world.ok("GET", `/negotiations/${id}`, provider);
        const agreement = await world.ok("GET", `/agreements/${agreement_id}`, provider);
        assert.deepEqual(agreement, known ?? agreement);
        assert.ok(verifies(agreement.server_key, attestedText(agreement), agreement.server_signature));
        assert.equal((await accepting(id)).error.details.reason, "session_not_open");
      }
    }
  });

  test("R86 R171: after thirty minutes both are told, everything is refused, and it stays so", async () => {
    const [client, provider] = await world.pair();
    const { id } = await world.open(client, provider, "80");
    const [mine, theirs] = [await world.channel(client, id), await world.channel(provider, id)];
    await theirs.push("offer", offer(id, provider, 1, "100"));
    const advance = (advance_ms) => world.ok("POST", "/admin/drills/clock", { token: world.server.adminToken }, { advance_ms });
    await advance(1_700_000);
    assert.equal((await theirs.push("offer", offer(id, provider, 2, "99"))).status, "ok");
    await advance(100_000);
    for (const { told } of [mine, theirs]) {
      await until("negotiation_expired", () => told.negotiation_expired.length === 1);
      assert.deepEqual(told.negotiation_expired, [{ session_id: id, round: 3 }]);
    }
    for (const [event, body] of [["offer", offer(id, client, 2, "90")], ["accept", accept(id, client, "89.5", ["80", "99"])], ["reject", {}]]) {
      assert.equal(reasonOf(await mine.push(event, body)), "session_expired", event);
      const path = event === "offer" ? "counter" : event;
      assertRefused(await world.call("POST", `/negotiations/${id}/${path}`, client, body), 409, "SESSION_EXPIRED");
    }
    assert.equal((await world.channel(client, id)).session.status, "expired");
    // The clock is back where it was, and it is over all the same.
    await world.server.kill();
    await world.server.startAgain();
    assert.equal((await world.ok("GET", `/negotiations/${id}`, client)).status, "expired");
    assertRefused(await world.call("POST", `/negotiations/${id}/reject`, client, {}), 409, "SESSION_EXPIRED");
  });
});

describe("negotiations on several nodes", () => {
  const cluster = onCluster({ balancer: false, set: ["drills.enabled=true"] });

  test("R86: many that are over at once expire each once, whichever node's time it is, and their parties are told where they are", async () => {
    const MANY = 200;
    const { one, two, three, connections } = cluster;
    const at = [one, two, three].map((node) => helpers(connections, node));
    const [client, provider] = await at[0].pair();
    const ids = [];
    for (let n = 0; n < MANY; n += 20) {
      const opened = await Promise.all(Array.from({ length: 20 }, () => at[n % 3].open(client, provider, "80")));
      ids.push(...opened.map(({ id }) => id));
    }
    const ended = (await at[0].open(client, provider, "80")).id;
    await at[0].ok("POST", `/negotiations/${ended}/reject`, client, {});
    const told = [];
    for (const id of [ids[0], ids[MANY - 1], ended]) told.push((await at[2].channel(provider, id, three)).told);
    const total = async (node, status) => (await node.call("GET", `/negotiations?limit=1&status=${status}`, client)).body.meta.pagination.total_count;
    assert.deepEqual([await total(at[1], "open"), await total(at[1], "expired")], [MANY, 0]);
    // Two nodes see at once that their time is over.
    for (const node of [one, two]) await node.ok("POST", "/api/v1/admin/drills/clock", { token: node.adminToken, body: { advance_ms: 1_800_000 } });
    await until("all have expired", async () => (await total(at[2], "expired")) === MANY);
    assert.equal(await total(at[2], "open"), 0);
    assert.equal(await total(at[2], "rejected"), 1, "what was over otherwise stays that");
    await until("they are told", () => told[0].negotiation_expired.length > 0 && told[1].negotiation_expired.length > 0);
    await sleep(300);
    assert.deepEqual(told.map(({ negotiation_expired }) => negotiation_expired.map((one) => one.session_id)), [[ids[0]], [ids[MANY - 1]], []]);
  });

  test("R84 R89 R135: an offer by REST at one node reaches the channel at another; acceptances at two nodes make one agreement", async () => {
    const { one, two, three, connections } = cluster;
    const at = [one, two, three].map((node) => helpers(connections, node));
    for (let round = 0; round < 5; round++) {
      const [client, provider] = await at[0].pair();
      const started = await listen(connections, three, provider);
      const { id } = await at[0].open(client, provider, "80");
      assert.equal((await started.next("negotiation_started")).session.id, id);
      const [mine, theirs] = [await at[1].channel(client, id, two), await at[2].channel(provider, id, three)];
      await at[0].ok("POST", `/negotiations/${id}/counter`, provider, offer(id, provider, 1, "100"));
      await until("the offer", () => mine.told.offer.length === 1);
      assert.equal(mine.told.offer[0].amount, "100");
      assert.deepEqual(theirs.told.offer, []);
      // Each node knew it in another state; whoever comes late decides anew.
      const countered = await mine.push("offer", offer(id, client, 2, "70"));
      assert.equal(countered.response.round, 3, JSON.stringify(countered));
      await until("the counter-offer", () => theirs.told.offer.length === 1);
      const body = accept(id, provider, "85", ["70", "100"]);
      const answers = await Promise.all([...at, ...at].map(({ call }) => call("POST", `/negotiations/${id}/accept`, provider, body)));
      assert.deepEqual(answers.map(({ status }) => status).sort(), [200, 409, 409, 409, 409, 409]);
      const agreement = answers.find(({ status }) => status === 200).data;
      for (const { told } of [mine, theirs]) {
        await until("negotiation_complete", () => told.negotiation_complete.length > 0);
        assert.deepEqual(told.negotiation_complete.map((one) => one.agreement), [agreement]);
      }
      for (const { ok } of at) {
        assert.deepEqual(await ok("GET", `/agreements/${agreement.id}`, client), agreement);
        assert.equal((await ok("GET", "/server-key")).public_key, agreement.server_key);
      }
    }
  });
});
