// Tasks and hirings over REST, and what their parties are told on their sockets.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { listen } from "./lib/events.mjs";
import { join } from "./lib/phoenix.mjs";
import { cast, leniently, Server, until } from "./lib/server.mjs";
import { Connections, range, ROOMY } from "./lib/streams.mjs";

/** A node of its own for some tests. */
function onNode(title, set, define) {
  describe(title, () => {
    const world = { connections: new Connections() };
    before(async () => {
      world.server = await Server.start({ set: [...ROOMY, ...set] });
      world.as = (who) => (who?.token ? { token: who.token, agent: who.agent } : { key: who?.key });
      world.ask = (method, path, who, body) => world.server.request(method, `/api/v1${path}`, { ...world.as(who), body });
      world.ok = (method, path, who, body) => world.server.ok(method, `/api/v1${path}`, { ...world.as(who), body });
      world.listen = (who) => listen(world.connections, world.server, who);
      /** A task with its parties and their owners, and somebody of each sort who has nothing to do with it. */
      world.company = async () => {
        const { server } = world;
        const [clientOwner, providerOwner] = [await server.user("Client's owner"), await server.user("Provider's owner")];
        const client = await server.agent({ owner: clientOwner, name: "Client" });
        const provider = await server.agent({ owner: providerOwner, name: "Provider" });
        const sibling = await server.agent({ owner: clientOwner, name: "Sibling" });
        const strangers = [await server.agent({ name: "Stranger" }), await server.user("Other"), sibling];
        return { clientOwner, providerOwner, client, provider, strangers, parties: [client, clientOwner, provider, providerOwner] };
      };
      world.newTask = (client, provider, more = {}) =>
        world.ok("POST", "/tasks", client, { provider_agent_id: provider.id, capability: "code", input: {}, ...more });
      world.hire = (who, agent, more = {}) => world.ok("POST", `/agents/${encodeURIComponent(agent.did)}/hire`, who, { input: { n: 1 }, ...more });
    });
    after(async () => {
      await world.connections.close();
      await world.server?.end();
    });
    define(world);
  });
}

const UNKNOWN_ID = "01a00000-0000-7000-8000-000000000000";
const ISO = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const HIRING_FIELDS = ["id", "status", "agent_id", "agent_did", "task_id", "created_at", "updated_at"];
const TASK_FIELDS = [
  ...["id", "status", "client_agent_id", "provider_agent_id", "capability", "input", "output", "error_reason"],
  ...["progress_percent", "progress_message", "created_at", "updated_at", "completed_at"],
];

const hasFields = (thing, fields) => assert.deepEqual(fields.filter((field) => !(field in thing)), [], "missing fields");

function assertRefused(answer, status, code, field) {
  assert.deepEqual([answer.status, answer.error?.code, answer.data], [status, code, null], answer.text);
  if (field) assert.equal(answer.error.field, field, answer.text);
}

onNode("tasks", [], (world) => {
  test("R140: a new task is pending, and has the fields of the public API", async () => {
    const { server } = world;
    const { client, provider } = await world.company();
    const body = { provider_agent_id: provider.id, capability: "code", input: { prompt: "é😀" }, max_price: "12.50", external_client: "ACME" };
    const answer = await world.ask("POST", "/tasks", client, body);
    assert.equal(answer.status, 201);
    assert.deepEqual(answer.body.errors, []);
    assert.match(answer.body.meta.timestamp, ISO);
    assert.equal(answer.body.meta.request_id, answer.headers.get("x-request-id"));
    const task = answer.data;
    hasFields(task, TASK_FIELDS);
    assert.match(task.id, UUID);
    assert.match(task.created_at, ISO);
    assert.equal(task.updated_at, task.created_at);
    assert.deepEqual(
      [task.status, task.client_agent_id, task.provider_agent_id, task.capability, task.input, task.max_price, task.external_client],
      ["pending", client.id, provider.id, "code", { prompt: "é😀" }, "12.5", "ACME"],
    );
    for (const field of ["output", "error_reason", "progress_percent", "progress_message", "completed_at"]) assert.equal(task[field], null, field);
    assert.deepEqual(await world.ok("GET", `/tasks/${task.id}`, provider), task);
    assert.equal((await world.newTask(client, provider, { input: undefined })).input, null);
    for (const input of [null, 7, "text", [1, [2]], true, {}]) assert.deepEqual((await world.newTask(client, provider, { input })).input, input);
    // Numbers that JavaScript cannot hold are not the server's to change.
    const raw = `{"provider_agent_id":"${provider.id}","capability":"code","input":{"n":12345678901234567890.5}}`;
    const big = await server.request("POST", "/api/v1/tasks", { key: client.key, raw });
    assert.ok(big.text.includes("12345678901234567890.5"));
  });

  test("R140: every field of a new task is checked, and what is refused creates nothing", async () => {
    const { client, provider, strangers } = await world.company();
    const [suspended] = strangers;
    await world.ok("PUT", `/admin/agents/${suspended.id}/status`, { token: world.server.adminToken }, { status: "suspended" });
    const cases = [
      [{ provider_agent_id: undefined }, 422, "VALIDATION_ERROR"],
      [{ provider_agent_id: null }, 422, "VALIDATION_ERROR"],
      [{ provider_agent_id: "me" }, 422, "VALIDATION_ERROR"],
      [{ provider_agent_id: 7 }, 422, "VALIDATION_ERROR"],
      [{ provider_agent_id: UNKNOWN_ID }, 404, "NOT_FOUND", "provider_agent_id"],
      [{ provider_agent_id: suspended.id }, 503, "AGENT_UNAVAILABLE"],
      [{ capability: undefined }, 422, "VALIDATION_ERROR"],
      [{ capability: null }, 422, "VALIDATION_ERROR"],
      [{ capability: "" }, 422, "VALIDATION_ERROR", "capability"],
      [{ capability: "  " }, 422, "VALIDATION_ERROR", "capability"],
      [{ capability: "x".repeat(65) }, 422, "VALIDATION_ERROR", "capability"],
      [{ capability: "a\nb" }, 422, "VALIDATION_ERROR", "capability"],
      [{ capability: 7 }, 422, "VALIDATION_ERROR"],
      [{ input: "x".repeat(262_144) }, 422, "VALIDATION_ERROR", "input"],
      [{ external_client: "" }, 422, "VALIDATION_ERROR", "external_client"],
      [{ external_client: "x".repeat(129) }, 422, "VALIDATION_ERROR", "external_client"],
      [{ external_client: 7 }, 422, "VALIDATION_ERROR"],
    ];
    for (const [change, ...refusal] of cases) {
      const answer = await world.ask("POST", "/tasks", client, { provider_agent_id: provider.id, capability: "code", input: {}, ...change });
      assertRefused(answer, ...refusal);
    }
    const capability = "😀".repeat(64);
    assert.equal((await world.newTask(client, provider, { capability })).capability, capability, "characters are counted, not bytes");
    assert.equal((await world.newTask(client, provider, { input: "x".repeat(262_142) })).input.length, 262_142);
    assert.equal((await world.ok("GET", "/tasks", client)).length, 2);
  });

  test("R82 R140: a price that is none is an invalid amount", async () => {
    const { client, provider } = await world.company();
    for (const max_price of ["-1", "1e3", "0.0000001", "x", "", "99999999999999999999", -1, 1e300, true, {}, []]) {
      const answer = await world.ask("POST", "/tasks", client, { provider_agent_id: provider.id, capability: "code", max_price });
      assertRefused(answer, 422, "INVALID_AMOUNT");
      assertRefused(await world.ask("POST", `/agents/${provider.id}/hire`, client, { max_price }), 422, "INVALID_AMOUNT");
    }
    for (const [max_price, shown] of [[1, "1"], [1.5, "1.5"], ["0.000001", "0.000001"], ["0", "0"], [null, null]]) {
      assert.equal((await world.newTask(client, provider, { max_price })).max_price, shown);
    }
  });

  test("R140: bodies that are no JSON object get the documented answers", async () => {
    const { client } = await world.company();
    const send = (raw, headers) => world.server.request("POST", "/api/v1/tasks", { key: client.key, raw, headers });
    assertRefused(await send("{"), 400, "MALFORMED_REQUEST");
    assertRefused(await send(Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d])), 400, "MALFORMED_REQUEST");
    assertRefused(await send(`{"input":${"[".repeat(64)}${"]".repeat(64)}}`), 400, "MALFORMED_REQUEST");
    assertRefused(await send("[]"), 422, "VALIDATION_ERROR");
    assertRefused(await send("null"), 422, "VALIDATION_ERROR");
    assertRefused(await send(""), 422, "VALIDATION_ERROR");
    assertRefused(await send(`{"input":"${"x".repeat(1_048_576)}"}`), 413, "PAYLOAD_TOO_LARGE");
    assertRefused(await world.ask("DELETE", "/tasks", client), 405, "METHOD_NOT_ALLOWED");
  });

  test("R47 R140: JSON that strict readers stumble over is answered like any other, and disturbs nobody", async () => {
    const { server } = world;
    const { client, provider } = await world.company();
    const [told, before] = [await world.listen(provider), server.logs.length];
    const failures = [];
    for (const value of ['"\\ud800"', '{"\\udc00":1}', "1e999999", "-1E400", "1".repeat(400)]) {
      const requests = [
        ["POST", "/tasks", client, `{"provider_agent_id":"${provider.id}","capability":"code","input":${value}}`],
        ["PUT", `/tasks/${(await world.newTask(client, provider)).id}/complete`, provider, `{"output":${value}}`],
        ["PUT", `/tasks/${(await world.newTask(client, provider)).id}/fail`, provider, `{"error":{"type":"t","details":${value}}}`],
      ];
      for (const [method, path, who, raw] of requests) {
        // Taken or refused is the server's choice; hanging up on the client is not.
        const hungUp = (error) => ({ status: error.cause?.message ?? error.message });
        const answer = await server.request(method, `/api/v1${path}`, { key: who.key, raw }).catch(hungUp);
        if (answer.status === 201) await told.next("task.created", ({ task }) => task.id === answer.data.id);
        if (![200, 201, 400, 422].includes(answer.status)) failures.push(`${method} ${path.replaceAll(/[0-9a-f-]{36}/g, ":id")} ${value.slice(0, 20)}: ${answer.status}`);
      }
    }
    assert.deepEqual(failures, []);
    assert.ok(!server.logs.slice(before).includes("panic"));
  });

  test("R140: an agent creates tasks, or a user as one of their agents; nobody else", async () => {
    const { client, provider, clientOwner, strangers } = await world.company();
    const body = { provider_agent_id: provider.id, capability: "code" };
    assert.equal((await world.ask("POST", "/tasks", { ...clientOwner, agent: client.id }, body)).data.client_agent_id, client.id);
    assertRefused(await world.ask("POST", "/tasks", clientOwner, body), 403, "FORBIDDEN");
    assertRefused(await world.ask("POST", "/tasks", { ...clientOwner, agent: provider.id }, body), 403, "FORBIDDEN");
    assertRefused(await world.ask("POST", "/tasks", { ...clientOwner, agent: UNKNOWN_ID }, body), 403, "FORBIDDEN");
    assertRefused(await world.ask("POST", "/tasks", { ...strangers[1], agent: client.id }, body), 403, "FORBIDDEN");
    assertRefused(await world.ask("POST", "/tasks", undefined, body), 401, "UNAUTHORIZED");
    assertRefused(await world.ask("POST", "/tasks", { key: "ap_wrong" }, body), 401, "UNAUTHORIZED");
    assertRefused(await world.ask("POST", "/tasks", { token: world.server.adminToken }, body), 401, "UNAUTHORIZED");
  });

  test("R140 R167: client, provider and their owners see a task; for everybody else it does not exist", async () => {
    const { client, provider, parties, strangers } = await world.company();
    const task = await world.newTask(client, provider);
    const paths = ["", "/timeline", "/messages"];
    for (const path of paths) {
      for (const who of parties) assert.equal((await world.ask("GET", `/tasks/${task.id}${path}`, who)).status, 200, `${who.name} ${path}`);
      const absent = await world.ask("GET", `/tasks/${UNKNOWN_ID}${path}`, strangers[0]);
      assertRefused(absent, 404, "NOT_FOUND");
      for (const who of strangers) {
        const answer = await world.ask("GET", `/tasks/${task.id}${path}`, who);
        assert.deepEqual([answer.status, answer.error], [404, absent.error], `${who.name} ${path}`);
      }
      assert.deepEqual((await world.ask("GET", `/tasks/no-id${path}`, client)).error, absent.error);
      assertRefused(await world.ask("GET", `/tasks/${task.id}${path}`), 401, "UNAUTHORIZED");
    }
  });

  test("R34 R140: who comes to own a client agent sees its tasks, as who comes to own a provider does", async () => {
    const { server } = world;
    const [client, provider, user] = [await server.agent(), await server.agent(), await server.user()];
    const task = await world.newTask(client, provider);
    assertRefused(await world.ask("GET", `/tasks/${task.id}`, user), 404, "NOT_FOUND");
    await world.ok("POST", "/agents/assign", user, { agents: [{ id: client.id, api_key: client.key }] });
    assert.equal((await world.ask("GET", `/tasks/${task.id}`, user)).status, 200);
    assert.deepEqual((await world.ok("GET", "/tasks", user)).map(({ id }) => id), [task.id]);
  });

  test("R140 R167: the provider and its owner end a task by its result, the client and its owner withdraw or reassign it", async () => {
    const { server } = world;
    const { client, provider, clientOwner, providerOwner, strangers } = await world.company();
    const spare = await server.agent();
    const verbs = [
      ["PUT", "complete", [provider, providerOwner], [client, clientOwner], { output: 1 }],
      ["PUT", "fail", [provider, providerOwner], [client, clientOwner], {}],
      ["POST", "cancel", [client, clientOwner], [provider, providerOwner], {}],
      ["POST", "reassign", [client, clientOwner], [provider, providerOwner], { provider_agent_id: spare.id }],
    ];
    for (const [method, verb, may, mayNot, body] of verbs) {
      const [first, second] = [await world.newTask(client, provider), await world.newTask(client, provider)];
      const path = `/tasks/${first.id}/${verb}`;
      for (const who of mayNot) assertRefused(await world.ask(method, path, who, body), 403, "FORBIDDEN");
      for (const who of strangers) assertRefused(await world.ask(method, path, who, body), 404, "NOT_FOUND");
      assertRefused(await world.ask(method, path, undefined, body), 401, "UNAUTHORIZED");
      assert.equal((await world.ok("GET", `/tasks/${first.id}`, client)).status, "pending", `${verb} was refused`);
      assert.equal((await world.ask(method, path, may[0], body)).status, 200, verb);
      assert.equal((await world.ask(method, `/tasks/${second.id}/${verb}`, may[1], body)).status, 200, verb);
      assertRefused(await world.ask(method, `/tasks/${UNKNOWN_ID}/${verb}`, may[0], body), 404, "NOT_FOUND");
    }
  });

  test("R140: a task is completed with any output, from pending as from in progress", async () => {
    const { server } = world;
    const { client, provider } = await world.company();
    for (const output of [{ a: [1] }, "text", 0, false, null, []]) {
      const task = await world.newTask(client, provider);
      if (output === "text") await server.emit(task, provider, "x");
      const done = await world.ok("PUT", `/tasks/${task.id}/complete`, provider, { output });
      assert.deepEqual([done.status, done.output, done.error_reason], ["completed", output, null]);
      assert.match(done.completed_at, ISO);
      assert.ok(done.completed_at >= done.created_at && done.updated_at === done.completed_at);
      assert.deepEqual(await world.ok("GET", `/tasks/${task.id}`, client), done);
    }
    const bare = await world.newTask(client, provider);
    assert.equal((await server.ok("PUT", `/api/v1/tasks/${bare.id}/complete`, { key: provider.key })).output, null, "a body is not needed");
    const task = await world.newTask(client, provider);
    assertRefused(await world.ask("PUT", `/tasks/${task.id}/complete`, provider, { output: "x".repeat(262_144) }), 422, "VALIDATION_ERROR", "output");
    assert.equal((await world.ok("GET", `/tasks/${task.id}`, client)).status, "pending");
  });

  test("R140: a failure carries its reason", async () => {
    const { client, provider } = await world.company();
    const fail = async (body) => world.ask("PUT", `/tasks/${(await world.newTask(client, provider)).id}/fail`, provider, body);
    const cases = [
      [{}, "failed"],
      [{ error_reason: "no tokens left" }, "no tokens left"],
      [{ error: { type: "timeout" } }, "timeout"],
      [{ error: { type: "timeout", message: "took too long", details: { s: 9 } } }, "took too long"],
    ];
    for (const [body, reason] of cases) {
      const { data } = await fail(body);
      assert.deepEqual([data.status, data.error_reason, data.output], ["failed", reason, null]);
      assert.match(data.completed_at, ISO);
    }
    for (const error of ["text", 7, [], {}, { type: 7 }, { message: "no type" }]) assertRefused(await fail({ error }), 422, "VALIDATION_ERROR", "error");
    assertRefused(await fail({ error: { type: "t", details: "x".repeat(16_384) } }), 422, "VALIDATION_ERROR", "error");
    assertRefused(await fail({ error_reason: "x".repeat(16_384) }), 422, "VALIDATION_ERROR");
    assertRefused(await fail({ error_reason: 7 }), 422, "VALIDATION_ERROR");
  });

  test("R41 R140: a withdrawal may say why", async () => {
    const { client, provider } = await world.company();
    const cancel = async (body) => world.ask("POST", `/tasks/${(await world.newTask(client, provider)).id}/cancel`, client, body);
    assert.deepEqual([(await cancel({})).data.status, (await cancel({})).data.error_reason], ["cancelled", "cancelled"]);
    assert.equal((await cancel({ reason: "found another" })).data.error_reason, "found another");
    assertRefused(await cancel({ reason: 7 }), 422, "VALIDATION_ERROR");
    assertRefused(await cancel({ reason: "x".repeat(16_384) }), 422, "VALIDATION_ERROR");
  });

  test("R79 R140: final states are final, and say so", async () => {
    const { server } = world;
    const { client, provider } = await world.company();
    const actions = [
      ["completed", "PUT", "complete", provider, {}],
      ["failed", "PUT", "fail", provider, {}],
      ["cancelled", "POST", "cancel", client, {}],
    ];
    const all = [...actions, [null, "POST", "reassign", client, { provider_agent_id: provider.id }]];
    for (const [status, method, verb, who, body] of actions) {
      const task = await world.newTask(client, provider);
      const ended = await world.ok(method, `/tasks/${task.id}/${verb}`, who, body);
      for (const [, otherMethod, other, otherWho, otherBody] of all) {
        const answer = await world.ask(otherMethod, `/tasks/${task.id}/${other}`, otherWho, otherBody);
        assertRefused(answer, 409, "TASK_NOT_ACTIVE");
        assert.deepEqual(answer.error.details, { reason: "task_not_active", status }, other);
      }
      assert.equal((await server.emit(task, provider, "x")).status, 409);
      assert.deepEqual(await world.ok("GET", `/tasks/${task.id}`, client), ended, "nothing has changed");
    }
  });

  test("R79 R140: of endings at the same time exactly one wins", async () => {
    const { server, connections } = world;
    const { client, provider, clientOwner } = await world.company();
    const winners = new Set();
    for (let round = 0; round < 20; round++) {
      const task = await world.newTask(client, provider);
      const reader = await connections.reader(server, clientOwner, task);
      const endings = [
        ["PUT", "complete", provider, "completed"],
        ["POST", "cancel", client, "cancelled"],
        ["PUT", "fail", provider, "failed"],
        ["POST", "cancel", clientOwner, "cancelled"],
      ];
      // Who asks first differs from round to round.
      const turned = range(0, 3).map((n) => endings[(n + round) % 4]);
      const answers = await Promise.all(turned.map(([method, verb, who]) => world.ask(method, `/tasks/${task.id}/${verb}`, who, {})));
      const won = answers.filter((answer) => answer.status === 200);
      assert.equal(won.length, 1, answers.map((answer) => answer.status).join());
      const { status } = won[0].data;
      winners.add(status);
      for (const lost of answers.filter((answer) => answer !== won[0])) assert.deepEqual([lost.status, lost.error.details.status], [409, status]);
      assert.equal((await world.ok("GET", `/tasks/${task.id}`, client)).status, status);
      const timeline = await world.ok("GET", `/tasks/${task.id}/timeline`, client);
      assert.deepEqual(timeline.map((entry) => entry.event), ["task_created", `task_${status}`]);
      await until("the end", () => reader.ends.length > 0);
      assert.deepEqual(reader.ends.map((end) => end.event), [status === "completed" ? "stream.done" : "stream.error"]);
    }
    assert.ok(winners.size > 1, "the race was one");
  });

  test("R140: the timeline tells what happened, when, and by whom", async () => {
    const { server } = world;
    const { client, provider, clientOwner } = await world.company();
    const second = await server.agent();
    const task = await world.newTask(client, provider);
    await world.ok("POST", `/tasks/${task.id}/reassign`, client, { provider_agent_id: second.id });
    await server.emit(task, second, "x");
    const partial = await world.ok("GET", `/tasks/${task.id}/timeline`, client);
    await world.ok("PUT", `/tasks/${task.id}/complete`, second, {});
    const timeline = await world.ok("GET", `/tasks/${task.id}/timeline`, second);
    assert.deepEqual(
      timeline.map(({ event, agent_id }) => [event, agent_id]),
      [["task_created", client.id], ["task_reassigned", client.id], ["task_started", second.id], ["task_completed", second.id]],
    );
    assert.deepEqual(timeline.slice(0, 3), partial, "lines are only added");
    assert.ok(timeline.every(({ at }) => ISO.test(at)));
    assert.deepEqual(timeline.map(({ at }) => at), timeline.map(({ at }) => at).toSorted());

    const withdrawn = await world.newTask(client, provider);
    await world.ok("POST", `/tasks/${withdrawn.id}/cancel`, clientOwner, {});
    const last = (await world.ok("GET", `/tasks/${withdrawn.id}/timeline`, client)).at(-1);
    assert.deepEqual([last.event, last.agent_id], ["task_cancelled", null], "an owner is no agent");
  });

  test("R140: a pending task can be given to another provider, who then has all of it", async () => {
    const { server } = world;
    const { client, provider, providerOwner } = await world.company();
    const second = await server.agent();
    const task = await world.newTask(client, provider, { input: { keep: "this" } });
    const moved = await world.ok("POST", `/tasks/${task.id}/reassign`, client, { provider_agent_id: second.id });
    assert.deepEqual({ ...moved, updated_at: 0 }, { ...task, provider_agent_id: second.id, updated_at: 0 });
    for (const who of [provider, providerOwner]) assertRefused(await world.ask("GET", `/tasks/${task.id}`, who), 404, "NOT_FOUND");
    assertRefused(await world.ask("PUT", `/tasks/${task.id}/complete`, provider, {}), 404, "NOT_FOUND");
    assert.deepEqual((await world.ok("GET", "/tasks", second)).map(({ id }) => id), [task.id]);
    assert.deepEqual(await world.ok("GET", "/tasks", provider), []);
    await server.emit(task, second, "begun");
    const late = await world.ask("POST", `/tasks/${task.id}/reassign`, client, { provider_agent_id: provider.id });
    assert.deepEqual([late.status, late.error.details.status], [409, "in_progress"]);
    assert.equal((await world.ok("PUT", `/tasks/${task.id}/complete`, second, {})).status, "completed");
  });

  test("R26 R140 R167: a provider that is being replaced either ends the task or loses it, not both", async () => {
    const { server } = world;
    const { client, provider } = await world.company();
    const second = await server.agent();
    for (let round = 0; round < 20; round++) {
      const task = await world.newTask(client, provider);
      const asked = [
        () => world.ask("POST", `/tasks/${task.id}/reassign`, client, { provider_agent_id: second.id }),
        () => world.ask("PUT", `/tasks/${task.id}/complete`, provider, { output: "by the first" }),
      ];
      const answers = await Promise.all((round % 4 ? asked : asked.toReversed()).map((ask) => ask()));
      const statuses = answers.map((answer) => answer.status);
      assert.equal(statuses.filter((status) => status === 200).length, 1, `round ${round}: ${statuses}`);
    }
  });

  test("R140: the new provider of a task is checked as that of a new one", async () => {
    const { client, provider, strangers } = await world.company();
    const task = await world.newTask(client, provider);
    const [suspended] = strangers;
    await world.ok("PUT", `/admin/agents/${suspended.id}/status`, { token: world.server.adminToken }, { status: "suspended" });
    const reassign = (body) => world.ask("POST", `/tasks/${task.id}/reassign`, client, body);
    assertRefused(await reassign({}), 422, "VALIDATION_ERROR");
    assertRefused(await reassign({ provider_agent_id: "x" }), 422, "VALIDATION_ERROR");
    assertRefused(await reassign({ provider_agent_id: UNKNOWN_ID }), 404, "NOT_FOUND", "provider_agent_id");
    assertRefused(await reassign({ provider_agent_id: suspended.id }), 503, "AGENT_UNAVAILABLE");
    assert.equal((await world.ok("GET", `/tasks/${task.id}`, client)).provider_agent_id, provider.id);
  });

  test("R140: parties write messages about a task, and all of them read them, oldest first", async () => {
    const { client, provider, clientOwner, providerOwner, strangers } = await world.company();
    const task = await world.newTask(client, provider);
    const path = `/tasks/${task.id}/messages`;
    const written = [];
    for (const who of [client, provider, clientOwner, providerOwner]) {
      const answer = await world.ask("POST", path, who, { content: `from ${who.name}` });
      assert.equal(answer.status, 201);
      assert.deepEqual([answer.data.from_agent_id, answer.data.from_user_id], who.token ? [null, who.id] : [who.id, null]);
      assert.match(answer.data.inserted_at, ISO);
      written.push(answer.data);
    }
    for (const who of [client, provider, clientOwner, providerOwner]) assert.deepEqual(await world.ok("GET", path, who), written);
    for (const who of strangers) assertRefused(await world.ask("POST", path, who, { content: "x" }), 404, "NOT_FOUND");
    assertRefused(await world.ask("POST", path, undefined, { content: "x" }), 401, "UNAUTHORIZED");
    for (const content of ["", "  \n ", "x".repeat(5_001), undefined, null, 7]) {
      assertRefused(await world.ask("POST", path, client, { content }), 422, "VALIDATION_ERROR");
    }
    assert.equal((await world.ask("POST", path, client, { content: "😀".repeat(5_000) })).status, 201, "characters are counted");
    assert.equal((await world.ok("GET", path, client)).length, 5);
  });

  test("R140: lists are newest first, and hold what the caller has to do with", async () => {
    const { client, provider, clientOwner, providerOwner, strangers } = await world.company();
    const ids = [];
    for (let n = 0; n < 3; n++) ids.unshift((await world.newTask(client, provider)).id);
    const back = await world.newTask(provider, client);
    const list = async (who, query = "") => (await world.ok("GET", `/tasks${query}`, who)).map(({ id }) => id);
    for (const who of [client, provider, clientOwner, providerOwner]) assert.deepEqual(await list(who), [back.id, ...ids], who.name);
    for (const who of strangers.filter((one) => one.key)) assert.deepEqual(await list(who), [], who.name);
    assert.deepEqual(await list({ ...clientOwner, agent: client.id }), [back.id, ...ids]);
    assert.deepEqual(await list({ ...clientOwner, agent: strangers[2].id }), []);
    assert.deepEqual(await list(client, "?role=client"), ids);
    assert.deepEqual(await list(client, "?role=provider"), [back.id]);
    assertRefused(await world.ask("GET", "/tasks"), 401, "UNAUTHORIZED");
  });

  test("R140: a list can be of one state", async () => {
    const { server } = world;
    const { client, provider } = await world.company();
    const byStatus = {};
    for (const status of ["pending", "in_progress", "completed", "failed", "cancelled"]) byStatus[status] = await world.newTask(client, provider);
    await server.emit(byStatus.in_progress, provider, "x");
    await world.ok("PUT", `/tasks/${byStatus.completed.id}/complete`, provider, {});
    await world.ok("PUT", `/tasks/${byStatus.failed.id}/fail`, provider, {});
    await world.ok("POST", `/tasks/${byStatus.cancelled.id}/cancel`, client, {});
    for (const [status, task] of Object.entries(byStatus)) {
      const answer = await world.ask("GET", `/tasks?status=${status}`, client);
      assert.deepEqual(answer.data.map(({ id, status: its }) => [id, its]), [[task.id, status]]);
      assert.equal(answer.body.meta.pagination.total_count, 1);
    }
    for (const query of ["status=done", "status=", "role=owner", "limit=0", "limit=101", "limit=-1", "limit=x", "cursor=x", "cursor=AAAA"]) {
      assertRefused(await world.ask("GET", `/tasks?${query}`, client), 422, "VALIDATION_ERROR");
    }
  });

  test("R140: a list is read page by page, each thing once, also while new ones come", async () => {
    const { client, provider } = await world.company();
    const ids = [];
    for (let n = 0; n < 25; n++) ids.unshift((await world.newTask(client, provider)).id);
    const first = await world.ask("GET", "/tasks", client);
    assert.equal(first.data.length, 20, "20 where nothing else is asked");
    assert.deepEqual({ ...first.body.meta.pagination, cursor: null }, { total_count: 25, cursor: null, has_more: true });
    assert.equal((await world.ok("GET", "/tasks?limit=100", client)).length, 25);
    for (const limit of [1, 7, 25]) {
      const seen = [];
      let cursor = "";
      for (;;) {
        const page = await world.ask("GET", `/tasks?limit=${limit}${cursor}`, client);
        seen.push(...page.data.map(({ id }) => id));
        const { pagination } = page.body.meta;
        assert.equal(pagination.has_more, seen.length < ids.length);
        assert.equal(pagination.cursor === null, !pagination.has_more);
        if (!pagination.has_more) break;
        cursor = `&cursor=${encodeURIComponent(pagination.cursor)}`;
        if (limit === 7 && seen.length === 7) await world.newTask(client, provider);
      }
      assert.deepEqual(seen, ids, `${limit} at a time`);
      if (limit === 7) ids.unshift((await world.ok("GET", "/tasks?limit=1", client))[0].id);
    }
  });
});

onNode("what parties are told", [], (world) => {
  test("R27 R33: a new task is told to its provider and to the client's owner, and to nobody else", async () => {
    const { client, provider, clientOwner, providerOwner, strangers } = await world.company();
    const all = {};
    for (const who of [client, provider, clientOwner, providerOwner, ...strangers]) all[who.name] = await world.listen(who);
    const task = await world.newTask(client, provider, { input: { a: 1 } });
    assert.deepEqual(await all.Provider.next("task.created"), { task });
    assert.deepEqual(await all["Client's owner"].next("task.submitted"), { task });
    // What everybody is told later comes behind what somebody should not have been told.
    await world.newTask(provider, client);
    await all.Client.next("task.created");
    await all["Provider's owner"].next("task.submitted");
    assert.deepEqual(Object.fromEntries(Object.entries(all).map(([name, one]) => [name, one.names()])), {
      Client: ["task.created"],
      Provider: ["task.created"],
      "Client's owner": ["task.submitted"],
      "Provider's owner": ["task.submitted"],
      Stranger: [],
      Other: [],
      Sibling: [],
    });
  });

  test("R27 R140: ends and reassignments are told to the other side", async () => {
    const { server } = world;
    const { client, provider } = await world.company();
    const second = await server.agent({ name: "Second" });
    const [clients, providers, seconds] = [await world.listen(client), await world.listen(provider), await world.listen(second)];
    const cancelled = await world.newTask(client, provider);
    const withdrawn = await world.ok("POST", `/tasks/${cancelled.id}/cancel`, client, { reason: "why" });
    assert.deepEqual(await providers.next("task.cancelled"), { task: withdrawn });
    assert.deepEqual(providers.names(), ["task.created", "task.cancelled"]);

    const moved = await world.newTask(client, provider);
    const reassigned = await world.ok("POST", `/tasks/${moved.id}/reassign`, client, { provider_agent_id: second.id });
    assert.equal((await providers.next("task.cancelled", ({ task }) => task.id === moved.id)).task.id, moved.id);
    assert.deepEqual(await seconds.next("task.created"), { task: reassigned });

    const done = await world.ok("PUT", `/tasks/${moved.id}/complete`, second, { output: 1 });
    assert.deepEqual(await clients.next("task.completed"), { task: done });
    const failed = await world.ok("PUT", `/tasks/${(await world.newTask(client, provider)).id}/fail`, provider, {});
    assert.deepEqual(await clients.next("task.failed"), { task: failed });
    assert.deepEqual(clients.names(), ["task.completed", "task.failed"]);
  });

  test("R27 R140: of reassignments at the same time each takes the task from whoever has it then, and all are told", async () => {
    const { server } = world;
    const { client, provider } = await world.company();
    const others = [await server.agent({ name: "Second" }), await server.agent({ name: "Third" }), await server.agent({ name: "Fourth" })];
    const listeners = new Map();
    for (const agent of [provider, ...others]) listeners.set(agent.id, await world.listen(agent));
    for (const _ of range(1, 8)) {
      const task = await world.newTask(client, provider);
      const moved = await Promise.all(others.map((agent) => world.ask("POST", `/tasks/${task.id}/reassign`, client, { provider_agent_id: agent.id })));
      assert.deepEqual(moved.map(({ status }) => status), [200, 200, 200]);
      const last = (await world.ok("GET", `/tasks/${task.id}`, client)).provider_agent_id;
      const told = (id, event) => listeners.get(id).events.filter((one) => one.event === event && one.payload.task.id === task.id).length;
      for (const { id } of [provider, ...others]) {
        await until(`task.created of ${id}`, () => told(id, "task.created") === 1);
        if (id !== last) await until(`task.cancelled of ${id}`, () => told(id, "task.cancelled") === 1);
      }
      assert.equal(told(last, "task.cancelled"), 0, "who has it has lost nothing");
    }
  });

  test("R27 R111: a message reaches the other parties as new_message, and not its writer", async () => {
    const { client, provider, clientOwner } = await world.company();
    const all = [await world.listen(client), await world.listen(provider), await world.listen(clientOwner)];
    const task = await world.newTask(client, provider);
    const writers = [client, provider, clientOwner];
    for (const [n, who] of writers.entries()) {
      const note = await world.ok("POST", `/tasks/${task.id}/messages`, who, { content: `from ${who.name}` });
      for (const [m, listener] of all.entries()) {
        if (m === n) continue;
        const message = await listener.next("new_message", ({ id }) => id === note.id);
        assert.deepEqual(Object.keys(message).sort(), ["from_agent_id", "id", "inserted_at", "payload", "protocol_version", "type"]);
        assert.deepEqual([message.from_agent_id, message.inserted_at, message.type], [note.from_agent_id, note.inserted_at, "task_message"]);
        assert.deepEqual([message.payload.task_id, message.payload.content], [task.id, `from ${who.name}`]);
        assert.match(message.protocol_version, /^\d+\.\d+\.\d+$/);
      }
    }
    for (const listener of all) assert.equal(listener.names().filter((name) => name === "new_message").length, 2);
  });

  test("R25 R31 R167: nobody joins somebody else's topic", async () => {
    const { server, connections } = world;
    const { client, clientOwner, provider, providerOwner } = await world.company();
    const asAgent = await connections.socket(server, "/socket/agent", client.key);
    const asUser = await connections.socket(server, "/socket/hirer", clientOwner.token);
    const unauthorized = { status: "error", response: { reason: "unauthorized" } };
    for (const id of [provider.id, UNKNOWN_ID, "x", ""]) assert.deepEqual(await join(asAgent.channel(`agent:${id}`, {})), unauthorized);
    for (const id of [providerOwner.id, client.id, UNKNOWN_ID, "x", ""]) assert.deepEqual(await join(asUser.channel(`hirer:${id}`, {})), unauthorized);
    assert.equal((await join(asAgent.channel(`hirer:${clientOwner.id}`, {}))).response.reason, "unmatched topic");
    assert.equal((await join(asUser.channel(`agent:${client.id}`, {}))).response.reason, "unmatched topic");
  });
});

onNode("hirings", [], (world) => {
  test("R27 R32 R140: hiring an agent that is online queues a task for it, and tells both", async () => {
    const { client, provider, clientOwner } = await world.company();
    const [hirer, agent] = [await world.listen(clientOwner), await world.listen(provider)];
    const wish = { input: { do: "it" }, capability: "write" };
    const answer = await world.ask("POST", `/agents/${encodeURIComponent(provider.did)}/hire`, { ...clientOwner, agent: client.id }, wish);
    assert.equal(answer.status, 201);
    const { hiring, task } = answer.data;
    hasFields(hiring, HIRING_FIELDS);
    assert.match(hiring.id, UUID);
    assert.deepEqual([hiring.status, hiring.agent_id, hiring.agent_did, hiring.task_id], ["queued", provider.id, provider.did, task.id]);
    assert.deepEqual([task.status, task.client_agent_id, task.provider_agent_id], ["pending", client.id, provider.id]);
    assert.deepEqual({ capability: task.capability, input: task.input }, wish);
    assert.deepEqual(await hirer.next("hiring.created"), { hiring });
    assert.deepEqual(await agent.next("hiring.created"), { hiring });
    assert.deepEqual(await hirer.next("task.submitted"), { task });
    assert.deepEqual(await agent.next("task.created"), { task });
    assert.deepEqual([hirer.names().toSorted(), agent.names().toSorted()], [["hiring.created", "task.submitted"], ["hiring.created", "task.created"]]);
    assert.deepEqual(await world.ok("GET", `/hirings/${hiring.id}`, clientOwner), { hiring, task });
    // By id as well as by DID.
    assert.equal((await world.ask("POST", `/agents/${provider.id}/hire`, client, {})).data.hiring.agent_id, provider.id);
    assert.equal((await world.ask("POST", `/agents/${provider.id}/hire`, client, {})).data.task.capability, "code", "its first capability");
  });

  test("R32 R140: a hiring goes from queued over in progress to completed", async () => {
    const { server } = world;
    const { client, provider, clientOwner, providerOwner } = await world.company();
    const [hirer] = [await world.listen(clientOwner), await world.listen(provider)];
    const ways = [
      ({ hiring }) => world.ok("POST", `/hirings/${hiring.id}/result`, provider, { output: { sum: 3 } }),
      ({ hiring }) => world.ok("POST", `/hirings/${hiring.id}/result`, providerOwner, { output: { sum: 3 } }),
      async ({ hiring, task }) => {
        await world.ok("PUT", `/tasks/${task.id}/complete`, provider, { output: { sum: 3 } });
        return world.ok("GET", `/hirings/${hiring.id}`, client);
      },
    ];
    for (const finish of ways) {
      const hired = await world.hire(client, provider);
      assert.equal(hired.hiring.status, "queued");
      await server.emit(hired.task, provider, "working");
      const during = await world.ok("GET", `/hirings/${hired.hiring.id}`, clientOwner);
      assert.deepEqual([during.hiring.status, during.task.status], ["in_progress", "in_progress"]);
      const done = await finish(hired);
      assert.deepEqual([done.hiring.status, done.task.status, done.task.output], ["completed", "completed", { sum: 3 }]);
      assert.deepEqual(await hirer.next("hiring.completed", ({ hiring }) => hiring.id === hired.hiring.id), { hiring: done.hiring });
      assert.ok(done.hiring.updated_at >= hired.hiring.updated_at);
    }
    assert.equal(hirer.names().filter((name) => name === "hiring.completed").length, 3);
  });

  test("R140: the reasons for which a hiring fails", async () => {
    const { client, provider, clientOwner } = await world.company();
    const [hirer] = [await world.listen(clientOwner), await world.listen(provider)];
    for (const reason of ["timeout", "capability_mismatch", "agent_unresponsive", "other"]) {
      const { hiring } = await world.hire(client, provider);
      const failed = await world.ok("POST", `/hirings/${hiring.id}/failure`, provider, { reason });
      assert.deepEqual([failed.hiring.status, failed.task.status, failed.task.error_reason], ["failed", "failed", reason]);
      assert.deepEqual(await hirer.next("hiring.failed", (payload) => payload.hiring.id === hiring.id), { hiring: failed.hiring });
    }
    const { hiring } = await world.hire(client, provider);
    const fail = (body) => world.ask("POST", `/hirings/${hiring.id}/failure`, provider, body);
    const misfits = [{}, { reason: "bored" }, { reason: 7 }, { reason: null }];
    const messages = ["x".repeat(5_001), "", 7].map((message) => ({ reason: "other", message }));
    for (const body of [...misfits, ...messages]) assertRefused(await fail(body), 422, "VALIDATION_ERROR");
    const failed = (await fail({ reason: "other", message: "in a sentence" })).data;
    assert.deepEqual([failed.task.error_reason, failed.task.error], ["in a sentence", { type: "other", message: "in a sentence" }]);
  });

  test("R27 R32 R140: a withdrawn hiring is told to both sides", async () => {
    const { client, provider, clientOwner } = await world.company();
    const [hirer, agent] = [await world.listen(clientOwner), await world.listen(provider)];
    for (const cancel of [
      ({ hiring }) => world.ok("POST", `/hirings/${hiring.id}/cancel`, clientOwner, { reason: "why" }),
      ({ task }) => world.ok("POST", `/tasks/${task.id}/cancel`, client, {}),
    ]) {
      const hired = await world.hire(client, provider);
      await cancel(hired);
      const now = await world.ok("GET", `/hirings/${hired.hiring.id}`, provider);
      assert.deepEqual([now.hiring.status, now.task.status], ["cancelled", "cancelled"]);
      for (const listener of [hirer, agent]) {
        const payload = await listener.next("hiring.cancelled", ({ hiring }) => hiring.id === hired.hiring.id);
        assert.deepEqual(payload, { hiring: now.hiring });
      }
      assert.deepEqual(await agent.next("task.cancelled", ({ task }) => task.id === hired.task.id), { task: now.task });
    }
  });

  test("R143: hiring an agent that is offline fails at once, for want of the agent", async () => {
    const { server, connections } = world;
    const { client, provider, clientOwner } = await world.company();
    const hirer = await world.listen(clientOwner);
    const { hiring, task } = await world.hire(client, provider);
    assert.deepEqual([hiring.status, task.status, task.error_reason], ["failed", "failed", "agent_unresponsive"]);
    assert.equal(task.error.type, "agent_unresponsive");
    assert.match(task.completed_at, ISO);
    assert.deepEqual(await hirer.next("hiring.failed"), { hiring });
    assertRefused(await world.ask("POST", `/hirings/${hiring.id}/result`, provider, {}), 409, "TASK_NOT_ACTIVE");
    const reader = await connections.reader(server, clientOwner, task);
    await until("the end", () => reader.ends.length > 0);
    assert.deepEqual(reader.ends[0].payload, { error: { type: "agent_unresponsive" } });
    assert.deepEqual((await world.ok("GET", `/tasks/${task.id}/timeline`, client)).map(({ event }) => event), ["task_created", "task_failed"]);
    // It was never the agent's to do, so it says nothing about the agent.
    assert.equal((await world.ok("GET", `/agents/${provider.id}`, provider)).tasks_failed, 0);
    const agent = await world.listen(provider);
    const second = await world.hire(client, provider);
    await agent.next("task.created");
    assert.equal(second.hiring.status, "queued");
    const isSecond = ({ payload }) => (payload.hiring?.id ?? payload.task.hiring_id) === second.hiring.id;
    assert.ok(agent.events.every(isSecond), "of the failed one it hears nothing");
  });

  test("R143: with queue the hiring waits until the agent is there", async () => {
    const { server } = world;
    const { client, provider } = await world.company();
    const { hiring, task } = await world.hire(client, provider, { queue: true });
    assert.deepEqual([hiring.status, task.status], ["queued", "pending"]);
    await world.listen(provider);
    assert.deepEqual((await world.ok("GET", "/hirings?status=queued", provider)).map(({ id }) => id), [hiring.id]);
    assert.deepEqual((await world.ok("GET", "/tasks?status=pending&role=provider", provider)).map(({ id }) => id), [task.id]);
    assert.equal((await server.emit(task, provider, "at work")).status, 202);
    assert.equal((await world.ok("POST", `/hirings/${hiring.id}/result`, provider, {})).hiring.status, "completed");
  });

  test("R28 R143: an agent is there while it has a socket or an MCP session, and no longer", async () => {
    const { server, connections } = world;
    const { client, provider } = await world.company();
    const status = async () => (await world.hire(client, provider)).hiring.status;
    assert.equal(await status(), "failed");
    const { socket } = await world.listen(provider);
    assert.equal(await status(), "queued");
    socket.disconnect();
    await until("it is gone", async () => (await status()) === "failed", leniently(1_000));
    const mcp = await connections.mcp(server, provider);
    assert.equal(await status(), "queued");
    await mcp.transport.terminateSession();
    await until("it is gone again", async () => (await status()) === "failed", leniently(1_000));
  });

  test("R140: every field of a hiring is checked", async () => {
    const { server } = world;
    const { client, provider, clientOwner, strangers } = await world.company();
    const hire = (who, body, did = provider.did) => world.ask("POST", `/agents/${encodeURIComponent(did)}/hire`, who, body);
    const capabilities = ["", 7, "x".repeat(65)].map((capability) => ({ capability }));
    const misfits = [...capabilities, { input: "x".repeat(262_144) }, { queue: "yes" }, { queue: 1 }, { client_agent_id: "x" }];
    for (const body of misfits) assertRefused(await hire(client, body), 422, "VALIDATION_ERROR");
    assertRefused(await hire(client, {}, "did:test:nobody"), 404, "NOT_FOUND");
    assertRefused(await hire(client, {}, UNKNOWN_ID), 404, "NOT_FOUND");
    await world.ok("PUT", `/admin/agents/${strangers[0].id}/status`, { token: server.adminToken }, { status: "suspended" });
    assertRefused(await hire(client, {}, strangers[0].did), 503, "AGENT_UNAVAILABLE");
    assertRefused(await hire(undefined, {}), 401, "UNAUTHORIZED");
    assert.deepEqual(await world.ok("GET", "/hirings", client), []);

    // In whose name: the agent that asks, or that the user names; with one agent there is nothing to name.
    assertRefused(await hire(clientOwner, {}), 422, "VALIDATION_ERROR", "client_agent_id");
    assert.equal((await hire(clientOwner, { client_agent_id: client.id })).data.task.client_agent_id, client.id);
    const single = await server.user("Single");
    assertRefused(await hire(single, {}), 422, "VALIDATION_ERROR", "client_agent_id");
    const only = await server.agent({ owner: single });
    assert.equal((await hire(single, {})).data.task.client_agent_id, only.id);
    assertRefused(await hire(client, { client_agent_id: only.id }), 403, "FORBIDDEN");
    assert.equal((await hire(client, { client_agent_id: client.id })).status, 201);
  });

  test("R35 R140: in the name of somebody else's agent is refused as in that of none", async () => {
    const { client, provider, strangers } = await world.company();
    const hire = (client_agent_id) => world.ask("POST", `/agents/${provider.id}/hire`, strangers[1], { client_agent_id });
    const [others, unknown] = [await hire(client.id), await hire(UNKNOWN_ID)];
    assert.equal(others.status, 403);
    assert.deepEqual([unknown.status, unknown.error], [others.status, others.error]);
  });

  test("R140 R167: the hirer, the hired and their owners see a hiring; for everybody else it does not exist", async () => {
    const { client, provider, parties, clientOwner, strangers } = await world.company();
    const { hiring } = await world.hire(clientOwner, provider, { client_agent_id: client.id });
    const absent = await world.ask("GET", `/hirings/${UNKNOWN_ID}`, client);
    assertRefused(absent, 404, "NOT_FOUND");
    for (const path of ["", "/messages"]) {
      for (const who of parties) assert.equal((await world.ask("GET", `/hirings/${hiring.id}${path}`, who)).status, 200, who.name);
      for (const who of strangers) {
        const answer = await world.ask("GET", `/hirings/${hiring.id}${path}`, who);
        assert.deepEqual([answer.status, answer.error], [404, absent.error], who.name);
      }
      assertRefused(await world.ask("GET", `/hirings/${hiring.id}${path}`), 401, "UNAUTHORIZED");
    }
    assertRefused(await world.ask("GET", "/hirings/no-id", client), 404, "NOT_FOUND");
    for (const who of [client, clientOwner, provider]) {
      assert.deepEqual((await world.ok("GET", "/hirings", who)).map(({ id }) => id), [hiring.id], who.name);
    }
    for (const who of strangers) assert.deepEqual(await world.ok("GET", "/hirings", who), [], who.name);
  });

  test("R140: the owner of the hired agent finds the hiring in the list too", async () => {
    const { client, provider, providerOwner } = await world.company();
    const { hiring } = await world.hire(client, provider);
    assert.equal((await world.ask("GET", `/hirings/${hiring.id}`, providerOwner)).status, 200);
    assert.deepEqual((await world.ok("GET", "/hirings", providerOwner)).map(({ id }) => id), [hiring.id]);
  });

  test("R140 R167: each side does what is its own to do with a hiring", async () => {
    const { client, provider, clientOwner, providerOwner, strangers } = await world.company();
    await world.listen(provider);
    const verbs = [
      ["result", [provider, providerOwner], [client, clientOwner], {}],
      ["failure", [provider, providerOwner], [client, clientOwner], { reason: "other" }],
      ["cancel", [client, clientOwner], [provider, providerOwner], {}],
    ];
    for (const [verb, may, mayNot, body] of verbs) {
      for (const who of may) {
        const { hiring } = await world.hire(client, provider);
        for (const other of mayNot) assertRefused(await world.ask("POST", `/hirings/${hiring.id}/${verb}`, other, body), 403, "FORBIDDEN");
        for (const other of strangers) assertRefused(await world.ask("POST", `/hirings/${hiring.id}/${verb}`, other, body), 404, "NOT_FOUND");
        assertRefused(await world.ask("POST", `/hirings/${hiring.id}/${verb}`, undefined, body), 401, "UNAUTHORIZED");
        assert.equal((await world.ask("POST", `/hirings/${hiring.id}/${verb}`, who, body)).status, 200, `${verb} ${who.name}`);
        for (const [again, [by], , its] of verbs) {
          assertRefused(await world.ask("POST", `/hirings/${hiring.id}/${again}`, by, its), 409, "TASK_NOT_ACTIVE");
        }
      }
      assertRefused(await world.ask("POST", `/hirings/${UNKNOWN_ID}/${verb}`, may[0], body), 404, "NOT_FOUND");
    }
  });

  test("R79 R140: of a result and a withdrawal at the same time exactly one wins, and one is told", async () => {
    const { client, provider, clientOwner } = await world.company();
    const [hirer] = [await world.listen(clientOwner), await world.listen(provider)];
    for (let round = 0; round < 10; round++) {
      const { hiring } = await world.hire(client, provider);
      const verbs = [["result", provider], ["cancel", client], ["cancel", clientOwner]];
      const turned = round % 2 ? verbs : verbs.toReversed();
      const answers = await Promise.all(turned.map(([verb, who]) => world.ask("POST", `/hirings/${hiring.id}/${verb}`, who, {})));
      assert.deepEqual(answers.map((answer) => answer.status).toSorted(), [200, 409, 409]);
      const { status } = answers.find((answer) => answer.status === 200).data.hiring;
      await hirer.next(`hiring.${status}`, (payload) => payload.hiring.id === hiring.id);
    }
    const ends = hirer.events.filter(({ event }) => ["hiring.completed", "hiring.cancelled"].includes(event));
    assert.equal(new Set(ends.map(({ payload }) => payload.hiring.id)).size, 10);
    assert.equal(ends.length, 10);
  });

  test("R27 R32 R140: messages about a hiring reach its other parties", async () => {
    const { client, provider, clientOwner, providerOwner, strangers } = await world.company();
    const [hirer, agent] = [await world.listen(clientOwner), await world.listen(provider)];
    const { hiring, task } = await world.hire(client, provider);
    const path = `/hirings/${hiring.id}/messages`;
    const written = [];
    for (const who of [clientOwner, provider, client, providerOwner]) {
      written.push(await world.ok("POST", path, who, { content: `from ${who.name}` }));
    }
    for (const [listener, notes] of [[hirer, [written[1], written[2], written[3]]], [agent, [written[0], written[2], written[3]]]]) {
      for (const note of notes) {
        const message = await listener.next("new_message", ({ id }) => id === note.id);
        assert.equal(message.type, "hiring_message");
        assert.deepEqual([message.payload.hiring_id, message.payload.task_id, message.payload.content], [hiring.id, task.id, note.content]);
      }
    }
    for (const who of [client, clientOwner, provider, providerOwner]) assert.deepEqual(await world.ok("GET", path, who), written);
    for (const who of strangers) assertRefused(await world.ask("POST", path, who, { content: "x" }), 404, "NOT_FOUND");
    assertRefused(await world.ask("POST", path, client, { content: "x".repeat(5_001) }), 422, "VALIDATION_ERROR");
    assertRefused(await world.ask("POST", path, client, { content: "" }), 422, "VALIDATION_ERROR");
    assert.equal((await world.ask("POST", path, client, { content: "x".repeat(5_000) })).status, 201);
  });

  test("R140: a failed or withdrawn hiring is tried again with a new task of the same content", async () => {
    const { server } = world;
    const { client, provider, clientOwner, providerOwner, strangers } = await world.company();
    const [hirer, agent] = [await world.listen(clientOwner), await world.listen(provider)];
    for (const [end, by, body] of [["failure", provider, { reason: "timeout" }], ["cancel", client, {}]]) {
      const first = await world.hire(client, provider, { capability: "write", max_price: "2" });
      const path = `/hirings/${first.hiring.id}/retry`;
      const early = await world.ask("POST", path, client, {});
      assertRefused(early, 409, "HIRING_NOT_ACTIVE");
      assert.deepEqual(early.error.details, { reason: "hiring_not_active", status: "queued" });
      await server.emit(first.task, provider, "old output");
      await world.ok("POST", `/hirings/${first.hiring.id}/${end}`, by, body);
      for (const who of [provider, providerOwner]) assertRefused(await world.ask("POST", path, who, {}), 403, "FORBIDDEN");
      for (const who of strangers) assertRefused(await world.ask("POST", path, who, {}), 404, "NOT_FOUND");
      [hirer, agent].forEach((listener) => listener.take());
      const second = await world.ok("POST", path, clientOwner, {});
      assert.deepEqual([second.hiring.id, second.hiring.status, second.hiring.task_id], [first.hiring.id, "queued", second.task.id]);
      assert.notEqual(second.task.id, first.task.id);
      assert.deepEqual([second.task.input, second.task.capability, second.task.max_price, second.task.error_reason], [{ n: 1 }, "write", "2", null]);
      assert.equal(second.hiring.created_at, first.hiring.created_at);
      assert.deepEqual(await agent.next("task.created"), { task: second.task });
      assert.deepEqual(await hirer.next("task.submitted"), { task: second.task });
      assert.ok((await world.ok("GET", `/tasks/${second.task.id}/timeline`, client)).some(({ event }) => event === "task_retried"));
      assertRefused(await world.ask("PUT", `/tasks/${first.task.id}/complete`, provider, {}), 409, "TASK_NOT_ACTIVE");
      assert.equal((await server.emit(second.task, provider, "new output")).data.seq, 1);
      assert.equal((await world.ok("POST", `/hirings/${first.hiring.id}/result`, provider, {})).hiring.status, "completed");
      assertRefused(await world.ask("POST", path, client, {}), 409, "HIRING_NOT_ACTIVE");
    }
  });

  test("R140 R143: a retry finds the agent offline as a hiring does", async () => {
    const { client, provider } = await world.company();
    const { hiring } = await world.hire(client, provider);
    const again = await world.ok("POST", `/hirings/${hiring.id}/retry`, client, {});
    assert.deepEqual([again.hiring.status, again.task.error_reason], ["failed", "agent_unresponsive"]);
    const waiting = await world.ok("POST", `/hirings/${hiring.id}/retry`, client, { queue: true });
    assert.deepEqual([waiting.hiring.status, waiting.task.status], ["queued", "pending"]);
    assertRefused(await world.ask("POST", `/hirings/${hiring.id}/retry`, client, { queue: "x" }), 422, "VALIDATION_ERROR");
  });

  test("R79 R140: of retries at the same time exactly one makes a task", async () => {
    const { client, provider } = await world.company();
    await world.listen(provider);
    for (let round = 0; round < 5; round++) {
      const { hiring } = await world.hire(client, provider);
      await world.ok("POST", `/hirings/${hiring.id}/cancel`, client, {});
      const before = (await world.ask("GET", "/tasks", client)).body.meta.pagination.total_count;
      const answers = await Promise.all(range(1, 5).map(() => world.ask("POST", `/hirings/${hiring.id}/retry`, client, {})));
      assert.deepEqual(answers.map((answer) => answer.status).toSorted(), [200, 409, 409, 409, 409]);
      for (const lost of answers.filter((answer) => answer.status === 409)) assert.equal(lost.error.code, "HIRING_NOT_ACTIVE");
      assert.equal((await world.ask("GET", "/tasks", client)).body.meta.pagination.total_count, before + 1);
    }
  });

  test("R140: the messages of a hiring outlive a retry", async () => {
    const { client, provider } = await world.company();
    await world.listen(provider);
    const { hiring } = await world.hire(client, provider);
    await world.ok("POST", `/hirings/${hiring.id}/messages`, client, { content: "mind the edge cases" });
    await world.ok("POST", `/hirings/${hiring.id}/failure`, provider, { reason: "timeout" });
    await world.ok("POST", `/hirings/${hiring.id}/retry`, client, {});
    assert.deepEqual((await world.ok("GET", `/hirings/${hiring.id}/messages`, provider)).map(({ content }) => content), ["mind the edge cases"]);
  });

  test("R32 R140: the hiring names the agent that does its task, also after a reassignment", async () => {
    const { server } = world;
    const { client, provider } = await world.company();
    const second = await server.agent();
    const [firsts, seconds] = [await world.listen(provider), await world.listen(second)];
    const { hiring, task } = await world.hire(client, provider);
    await world.ok("POST", `/tasks/${task.id}/reassign`, client, { provider_agent_id: second.id });
    const now = await world.ok("GET", `/hirings/${hiring.id}`, second);
    assert.deepEqual([now.hiring.agent_id, now.hiring.agent_did], [second.id, second.did]);
    assert.deepEqual((await world.ok("GET", "/hirings", second)).map(({ id }) => id), [hiring.id]);
    await world.ok("POST", `/hirings/${hiring.id}/cancel`, client, {});
    await seconds.next("hiring.cancelled");
    assert.ok(firsts.events.every(({ event }) => event !== "hiring.cancelled"));
  });

  test("R140: hirings are listed newest first, by state, and page by page", async () => {
    const { server } = world;
    const { client, provider } = await world.company();
    await world.listen(provider);
    const ids = [];
    for (let n = 0; n < 12; n++) ids.unshift((await world.hire(client, provider)).hiring.id);
    const started = await world.ok("GET", `/hirings/${ids[5]}`, client);
    await server.emit(started.task, provider, "x");
    await world.ok("POST", `/hirings/${ids[0]}/result`, provider, {});
    await world.ok("POST", `/hirings/${ids[1]}/failure`, provider, { reason: "other" });
    await world.ok("POST", `/hirings/${ids[2]}/cancel`, client, {});
    const list = async (query) => (await world.ok("GET", `/hirings${query}`, client)).map(({ id }) => id);
    assert.deepEqual(await list(""), ids);
    const [completed, failed, cancelled, first, second, in_progress, ...others] = ids;
    const byStatus = { completed: [completed], failed: [failed], cancelled: [cancelled], in_progress: [in_progress], queued: [first, second, ...others] };
    for (const [status, want] of Object.entries(byStatus)) assert.deepEqual(await list(`?status=${status}`), want, status);
    const seen = [];
    let cursor = "";
    do {
      const page = await world.ask("GET", `/hirings?limit=5${cursor}`, client);
      seen.push(...page.data.map(({ id }) => id));
      assert.equal(page.body.meta.pagination.total_count, 12);
      cursor = page.body.meta.pagination.cursor && `&cursor=${page.body.meta.pagination.cursor}`;
    } while (cursor);
    assert.deepEqual(seen, ids);
    for (const query of ["status=pending", "limit=0", "limit=101", "limit=x", "cursor=x"]) {
      assertRefused(await world.ask("GET", `/hirings?${query}`, client), 422, "VALIDATION_ERROR");
    }
  });

  test("R140: hirings can be listed from an offset, as the public API has it", async () => {
    const { client, provider } = await world.company();
    const ids = [];
    for (let n = 0; n < 5; n++) ids.unshift((await world.hire(client, provider)).hiring.id);
    const list = async (query) => (await world.ok("GET", `/hirings${query}`, client)).map(({ id }) => id);
    assert.deepEqual(await list("?limit=2&offset=0"), ids.slice(0, 2));
    assert.deepEqual(await list("?limit=2&offset=2"), ids.slice(2, 4));
    assert.deepEqual(await list("?limit=2&offset=4"), ids.slice(4));
  });

  test("R140: an agent without an owner hires too", async () => {
    const { server } = world;
    const [client, provider] = [await server.agent(), await server.agent()];
    await world.listen(provider);
    const { hiring } = await world.hire(client, provider);
    assert.equal((await world.ok("GET", `/hirings/${hiring.id}`, client)).hiring.status, "queued");
    assert.equal((await world.ok("POST", `/hirings/${hiring.id}/result`, provider, {})).hiring.status, "completed");
  });
});

onNode("blocks", [], (world) => {
  test("R66 R140: of two agents of which one blocks the other, neither gives the other work", async () => {
    const { server } = world;
    const { client, provider } = await world.company();
    const spare = await server.agent();
    await world.listen(provider);
    const running = await world.newTask(client, provider);
    const elsewhere = await world.newTask(client, spare);
    const attempts = [
      () => world.ask("POST", "/tasks", client, { provider_agent_id: provider.id, capability: "code" }),
      () => world.ask("POST", `/agents/${provider.id}/hire`, client, {}),
      () => world.ask("POST", `/tasks/${elsewhere.id}/reassign`, client, { provider_agent_id: provider.id }),
      () => world.ask("POST", "/tasks", provider, { provider_agent_id: client.id, capability: "code" }),
    ];
    for (const [blocker, blocked] of [[client, provider], [provider, client]]) {
      assert.equal((await world.ask("POST", "/blocks", blocker, { agent_id: blocked.id })).status, 201);
      assert.deepEqual((await world.ok("GET", "/blocks", blocker)).map(({ agent_id }) => agent_id), [blocked.id]);
      assert.deepEqual(await world.ok("GET", "/blocks", blocked), [], "who is blocked is not told");
      for (const attempt of attempts) assertRefused(await attempt(), 404, "NOT_FOUND");
      assert.equal((await server.emit(running, provider, "x")).status, 202, "work that was agreed goes on");
      await world.ok("DELETE", `/blocks/${blocked.id}`, blocker);
    }
    for (const attempt of attempts) assert.ok([200, 201].includes((await attempt()).status));
  });

  test("R66 R140: a block ends when it says", async () => {
    const { client, provider } = await world.company();
    const create = () => world.ask("POST", "/tasks", client, { provider_agent_id: provider.id, capability: "code" });
    await world.ok("POST", "/blocks", client, { agent_id: provider.id, expires_at: new Date(Date.now() + 4_000).toISOString() });
    assertRefused(await create(), 404, "NOT_FOUND");
    await until("the block has ended", async () => (await create()).status === 201);
    assert.deepEqual(await world.ok("GET", "/blocks", client), []);
  });

  test("R66 R140: a hiring between agents that block each other is not tried again", async () => {
    const { client, provider } = await world.company();
    const { hiring } = await world.hire(client, provider);
    await world.ok("POST", "/blocks", provider, { agent_id: client.id });
    assertRefused(await world.ask("POST", `/hirings/${hiring.id}/retry`, client, { queue: true }), 404, "NOT_FOUND");
  });
});

onNode("limits", ["limits.notes_per_task_max=3"], (world) => {
  test("R140 R169: a task has so many messages and no more", async () => {
    const { client, provider } = await world.company();
    const [task, other] = [await world.newTask(client, provider), await world.newTask(client, provider)];
    const answers = await Promise.all(range(1, 6).map((n) => world.ask("POST", `/tasks/${task.id}/messages`, client, { content: `${n}` })));
    assert.deepEqual(answers.map((answer) => answer.status).toSorted(), [201, 201, 201, 409, 409, 409]);
    assert.equal(answers.find((answer) => answer.status === 409).error.code, "LIMIT_REACHED");
    assert.equal((await world.ask("POST", `/tasks/${other.id}/messages`, client, { content: "x" })).status, 201);
  });
});

onNode("over lives of the node", [], (world) => {
  test("R140 R141 R166: tasks, hirings, messages and timelines survive kill -9, each hiring with its task", async () => {
    const { server } = world;
    const { client, provider, clientOwner } = await world.company();
    const task = await world.newTask(client, provider, { max_price: "3", external_client: "ACME" });
    await server.emit(task, provider, "x");
    await world.ok("POST", `/tasks/${task.id}/messages`, clientOwner, { content: "note" });
    await world.ok("PUT", `/tasks/${task.id}/complete`, provider, { output: { a: 1 } });
    const retried = await world.hire(client, provider);
    await world.ok("POST", `/hirings/${retried.hiring.id}/retry`, client, { queue: true });
    // Some of these are under way at the end of the node.
    const hiring = range(1, 200).map(() => world.hire(client, provider, { queue: true }).catch(() => null));
    await Promise.all(hiring.slice(0, 20));
    const look = async () => ({
      task: await world.ok("GET", `/tasks/${task.id}`, client),
      timeline: await world.ok("GET", `/tasks/${task.id}/timeline`, provider),
      messages: await world.ok("GET", `/tasks/${task.id}/messages`, client),
      hiring: await world.ok("GET", `/hirings/${retried.hiring.id}`, client),
    });
    const before = await look();
    await server.kill();
    const answered = (await Promise.all(hiring)).filter((hired) => hired);
    await server.startAgain();
    assert.deepEqual(await look(), before);
    const pages = [];
    let cursor = "";
    do {
      const page = await world.ask("GET", `/hirings?limit=100${cursor}`, client);
      pages.push(...page.data);
      cursor = page.body.meta.pagination.cursor && `&cursor=${page.body.meta.pagination.cursor}`;
    } while (cursor);
    const listed = new Set(pages.map(({ id }) => id));
    assert.deepEqual(answered.filter((hired) => !listed.has(hired.hiring.id)), [], "what was answered is there");
    for (const one of pages) assert.equal((await world.ok("GET", `/tasks/${one.task_id}`, client)).hiring_id, one.id);
    const tasks = (await world.ask("GET", "/tasks?limit=1", client)).body.meta.pagination.total_count;
    assert.equal(tasks, pages.length + 2, "no task without its hiring: one was given alone, one is an earlier try");
  });
});

describe("one more life", () => {
  test("R79 R140 R166: what has ended stays ended in the next life, and what has not goes on", async () => {
    const server = await Server.start({ set: ROOMY });
    try {
      const { client, provider, task } = await cast(server);
      const [running, pending] = [await server.task(client, provider), await server.task(client, provider)];
      await server.emit(running, provider, "x");
      await server.ok("POST", `/api/v1/tasks/${task.id}/cancel`, { key: client.key, body: {} });
      await server.kill();
      await server.startAgain();
      const complete = (one) => server.request("PUT", `/api/v1/tasks/${one.id}/complete`, { key: provider.key, body: {} });
      const refused = await complete(task);
      assert.deepEqual([refused.status, refused.error.details.status], [409, "cancelled"]);
      for (const one of [running, pending]) assert.equal((await complete(one)).data.status, "completed");
    } finally {
      await server.end();
    }
  });
});
