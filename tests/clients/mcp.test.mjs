// MCP: real clients on both transports and in both eras of the protocol, and by hand all that no client would send.

import assert from "node:assert/strict";
import { test } from "node:test";
import { CLIENTS, connect, eventsIn, headersOf, initialize, inspect, LEGACY, MODERN, modern, onNode, said, send, Session, TOOLS } from "./lib/mcp.mjs";
import { cast, leniently, sleep, until } from "./lib/server.mjs";
import { readByFetch } from "./lib/sse.mjs";
import { log, metric, range, rate } from "./lib/streams.mjs";

const endpoints = [["POST", "/mcp"], ["GET", "/mcp"], ["DELETE", "/mcp"], ["GET", "/mcp/sse"], ["POST", "/mcp/messages/x"]];

const unknownId = "01a00000-0000-7000-8000-000000000000";

onNode("real clients", [], (world) => {
  for (const [name, { version, ends }] of Object.entries(CLIENTS)) {
    test(`R50 R47 R48: ${name} does the whole job`, async () => {
      const { server } = world;
      const people = await cast(server);
      const { provider, task } = people;
      const doomed = await server.task(people.client, provider);
      const { client, transport, call } = await connect(world, name, provider);
      assert.equal(client.getServerVersion().name, "muster");
      // The older sdk keeps the version in the transport.
      assert.equal(client.getNegotiatedProtocolVersion?.() ?? transport.protocolVersion ?? transport._protocolVersion, version);
      assert.equal(await world.online(provider), version === LEGACY);

      const { tools } = await client.listTools();
      assert.deepEqual(tools.map((tool) => tool.name).sort(), TOOLS);
      const mine = await call("list_my_tasks", {});
      assert.deepEqual(mine.tasks.map(({ id, status }) => [id, status]), [[doomed.id, "pending"], [task.id, "pending"]], "newest first");

      const reader = await readByFetch(server, people.client, task);
      world.closers.push(() => reader.close());
      assert.deepEqual(await call("task_emit_chunk", { task_id: task.id, content: "one" }), { failed: false, seq: 1 });
      assert.equal((await call("get_task", { task_id: task.id })).status, "in_progress", "the first chunk begins it");
      assert.deepEqual(await call("task_emit_chunk", { task_id: task.id, content: "zwö 🚀", kind: "chat", metadata: { a: [1] } }), { failed: false, seq: 2 });
      const chunks = (await log(server, people.client, task)).map(({ seq, content, kind, metadata }) => ({ seq, content, kind, metadata }));
      assert.deepEqual(chunks, [
        { seq: 1, content: "one", kind: "artifact", metadata: {} }, { seq: 2, content: "zwö 🚀", kind: "chat", metadata: { a: [1] } },
      ]);

      const completed = await call("complete_task", { task_id: task.id, output: { ok: [true] } });
      assert.deepEqual([completed.failed, completed.status, completed.output], [false, "completed", { ok: [true] }]);
      await until("the end", () => reader.ended);
      assert.deepEqual([reader.seqs(), reader.events.at(-1)], [[1, 2], { event: "stream.done", data: { result: { ok: [true] } } }]);
      const late = await call("task_emit_chunk", { task_id: task.id, content: "late" });
      assert.deepEqual([late.failed, late.reason, late.status], [true, "task_not_active", "completed"]);

      assert.equal((await call("fail_task", { task_id: doomed.id, reason: "no luck" })).status, "failed");
      const failed = await server.ok("GET", `/api/v1/tasks/${doomed.id}`, { key: people.client.key });
      assert.equal(failed.status, "failed");
      assert.match(JSON.stringify(failed), /no luck/);
      const again = await call("complete_task", { task_id: doomed.id });
      assert.deepEqual([again.failed, again.reason], [true, "task_not_active"]);
      await assert.rejects(client.callTool({ name: "nothing_such", arguments: {} }), (error) => error.code === -32_602);

      const id = transport.sessionId;
      assert.equal(Boolean(id), ends, "who has a session");
      if (ends) {
        await transport.terminateSession();
        const gone = await send(server, { headers: headersOf(provider, { "mcp-session-id": id, "mcp-protocol-version": LEGACY }), body: { jsonrpc: "2.0", id: 1, method: "ping" } });
        assert.equal(gone.status, 404);
      }
      await client.close();
      await until("the agent is gone", async () => !(await world.online(provider)), leniently(2_000));
    });
  }

  test("MCP: the 2.x client in auto mode sends the newest protocol only, and gets no session", async () => {
    const { provider } = await cast(world.server);
    const { client, sent } = await connect(world, "the 2.x client in auto mode", provider);
    await client.listTools();
    assert.deepEqual(sent.map((request) => [request.method, request["mcp-protocol-version"], request["mcp-method"], request["mcp-session-id"]]), [
      ["POST", MODERN, "server/discover", undefined], ["POST", MODERN, "tools/list", undefined],
    ]);
  });

  for (const [where, transport] of [["/mcp", "http"], ["/mcp/sse", "sse"]]) {
    test(`R50: the inspector's command line over ${transport} lists the tools and emits`, async () => {
      const { server } = world;
      const { client, provider, task } = await cast(server);
      const listed = await inspect(server, where, transport, provider, ["--method", "tools/list"]);
      assert.equal(listed.code, 0, listed.stderr);
      assert.deepEqual(JSON.parse(listed.stdout).tools.map((tool) => tool.name).sort(), TOOLS);
      const emit = (id) => ["--method", "tools/call", "--tool-name", "task_emit_chunk", "--tool-arg", `task_id=${id}`, "content=by the inspector", "kind=chat"];
      const emitted = await inspect(server, where, transport, provider, emit(task.id));
      assert.equal(emitted.code, 0, emitted.stderr);
      assert.deepEqual(said(JSON.parse(emitted.stdout)), { failed: false, seq: 1 });
      assert.deepEqual((await log(server, client, task)).map(({ content, kind }) => [content, kind]), [["by the inspector", "chat"]]);
      const refused = await inspect(server, where, transport, provider, emit(unknownId));
      assert.notEqual(refused.code, 0);
      assert.equal(said(JSON.parse(refused.stdout)).failed, true);
    });
  }
});

onNode("sessions", [], (world) => {
  test("MCP: initialize answers the version asked for if it is known, else the newest with sessions", async () => {
    const agent = await world.server.agent();
    const cases = [["2024-11-05"], ["2025-03-26"], ["2025-06-18"], [LEGACY], ["1999-01-01", LEGACY], ["9999-12-31", LEGACY]];
    for (const [asked, given = asked] of cases) {
      const session = await Session.open(world.server, agent, asked);
      const { result } = session.answer.message;
      assert.equal(result.protocolVersion, given, asked);
      assert.ok(result.capabilities.tools && result.serverInfo.name && result.serverInfo.version);
      assert.match(session.id, /^[\x21-\x7e]{16,}$/, "visible characters only, and not to be guessed");
      assert.deepEqual((await session.request("ping")).message.result, {});
    }
  });

  test("MCP: a session takes notifications without a word, pings, and requests by any kind of id", async () => {
    const session = await Session.open(world.server, await world.server.agent());
    for (const method of ["notifications/initialized", "notifications/cancelled"]) {
      const taken = await session.send({ jsonrpc: "2.0", method, params: { requestId: 99 } });
      assert.deepEqual([taken.status, taken.text], [202, ""]);
    }
    for (const id of [0, 7, "seven", "7"]) {
      const { status, message, headers } = await session.send({ jsonrpc: "2.0", id, method: "ping" });
      assert.deepEqual([status, message], [200, { jsonrpc: "2.0", id, result: {} }]);
      assert.equal(headers["x-accel-buffering"], "no");
    }
    const bare = await session.send({ jsonrpc: "2.0", id: 1, method: "ping" }, { headers: { "mcp-protocol-version": undefined } });
    assert.equal(bare.status, 200, "no version header means 2025-03-26");
  });

  test("MCP: who may use which session: unknown 404, none 400, ended 404, on every method", async () => {
    const session = await Session.open(world.server, await world.server.agent());
    const ping = { jsonrpc: "2.0", id: 1, method: "ping" };
    const ask = async (method, id) => (await session.send(method === "GET" ? undefined : ping, { method, headers: { "mcp-session-id": id } })).status;
    const statuses = async (id) => [await ask("POST", id), await ask("GET", id)];
    assert.deepEqual(await statuses("made-up"), [404, 404]);
    assert.deepEqual(await statuses(unknownId), [404, 404]);
    assert.deepEqual(await statuses(undefined), [400, 400]);
    const ended = await session.end();
    assert.ok(ended.status >= 200 && ended.status < 300);
    assert.deepEqual(await statuses(session.id), [404, 404]);
  });

  test("MCP: a stream begins with how soon to come back, and stays open", async () => {
    const session = await Session.open(world.server, await world.server.agent());
    const stream = await world.listen(session.listen());
    assert.match(stream.response.headers.get("content-type"), /^text\/event-stream/);
    assert.equal(stream.response.headers.get("x-accel-buffering"), "no");
    const [first] = await until("the first event", () => eventsIn(stream.text).length > 0 && eventsIn(stream.text));
    assert.ok(Number(first.retry) > 0, JSON.stringify(first));
    await sleep(200);
    assert.equal(stream.ended, false);
    await session.end();
    await until("the stream ends with its session", () => stream.ended, leniently(2_000));
  });

  test("MCP: an answer that was cut off comes after all to who resumes, and only what came later", async () => {
    const session = await Session.open(world.server, await world.server.agent());
    const answer = await session.call("list_my_tasks", {});
    const events = eventsIn(answer.text);
    assert.equal(events.length, 2, "the event to resume from, and the answer");
    const stream = await world.listen(session.listen({ "last-event-id": events[0].id }));
    await until("the answer", () => stream.ended || eventsIn(stream.text).some((event) => event.data)).catch(() => {});
    assert.deepEqual(eventsIn(stream.text).filter((event) => event.data).map((event) => event.data), [events[1].data]);
    assert.ok(!eventsIn(stream.text).some((event) => event.id === events[0].id), "what was seen is not sent again");
  });

  test("R167: somebody else's session calls no tool and answers nothing", async () => {
    const { provider, client } = await cast(world.server);
    const session = await Session.open(world.server, provider);
    for (const ask of [session.call("list_my_tasks", {}, { who: client }), session.request("tools/list", {}, { who: client }), session.request("ping", {}, { who: client })]) {
      const { status, message } = await ask;
      assert.ok(status >= 400 || message.error, JSON.stringify(message).slice(0, 200));
    }
  });

  test("R167: somebody else's session cannot be listened to", async () => {
    const { provider, client } = await cast(world.server);
    const session = await Session.open(world.server, provider);
    const stream = await world.listen(session.listen({}, client));
    assert.ok(stream.response.status >= 400, `${stream.response.status}`);
  });

  test("R167: somebody else's session cannot be ended", async () => {
    const { provider, client } = await cast(world.server);
    const session = await Session.open(world.server, provider);
    await session.end({ who: client });
    assert.equal((await session.request("ping")).status, 200);
    assert.equal(await world.online(provider), true);
  });
});

onNode("the older transport", [], (world) => {
  test("MCP: the first event says where to post, relative to the stream; the answers come on the stream", async () => {
    const session = await world.old(await world.server.agent());
    const { status, headers } = session.stream.response;
    assert.equal(status, 200);
    assert.match(headers.get("content-type"), /^text\/event-stream/);
    assert.equal(headers.get("x-accel-buffering"), "no");
    assert.equal(session.first.event, "endpoint");
    assert.doesNotMatch(session.first.data, /^(\/|[a-z]+:)/, "a proxy's prefix would break an absolute path");
    assert.equal((await session.initialize("2024-11-05")).result.protocolVersion, "2024-11-05");
    assert.equal((await session.post({ jsonrpc: "2.0", method: "notifications/initialized" })).status, 202);
    assert.deepEqual((await session.request("ping")).result, {});
    assert.equal((await session.call("nothing_such", {})).error.code, -32_602);
    assert.equal((await session.request("nothing/such")).error.code, -32_601);
    assert.ok(eventsIn(session.stream.text).slice(1).every((event) => event.event === "message"));
  });

  test("MCP: a message that is none, a session that is none or another's, and no credential are refused", async () => {
    const { provider, client } = await cast(world.server);
    const session = await world.old(provider);
    await session.initialize();
    const cases = [
      ["{nope", provider, 400, -32_700], ["[".repeat(100) + "]".repeat(100), provider, 400, -32_700], ["[]", provider, 400, -32_600], ["7", provider, 400, -32_600],
      ["{}", provider, 400, -32_600], [{ jsonrpc: "2.0", id: 1, method: "ping" }, client, 404, -32_000],
      [{ jsonrpc: "2.0", id: 1, method: "ping" }, {}, 401, -32_000],
    ];
    for (const [body, who, status, code] of cases) {
      const answer = await session.post(body, who);
      assert.deepEqual([answer.status, answer.message.error.code], [status, code], JSON.stringify(body));
    }
    assert.equal((await send(world.server, { path: "/mcp/messages/none", headers: headersOf(provider), body: initialize() })).status, 404);
    assert.equal((await send(world.server, { path: "/mcp/sse", headers: headersOf(provider), body: initialize() })).status, 405);
    assert.equal((await send(world.server, { method: "GET", path: session.path, headers: headersOf(provider) })).status, 405);
    assert.equal((await session.post("x".repeat(1_100_000))).status, 413);
    assert.equal(session.messages().length, 1, "nothing of that was taken");
    assert.deepEqual((await session.request("ping")).result, {}, "and the session goes on");
  });

  test("MCP: the session dies with its stream", async () => {
    const session = await world.old(await world.server.agent());
    await session.initialize();
    session.stream.close();
    await until("the session is gone", async () => (await session.post({ jsonrpc: "2.0", id: 1, method: "ping" })).status === 404, leniently(2_000));
    await until("nothing is left of it", async () => (await metric(world.server, "muster_mcp_sessions")) === 0, leniently(1_000));
  });

  test("MCP: a flood of posts is taken or refused one by one, and each that was taken is answered", async () => {
    const { client, provider, task } = await cast(world.server);
    const session = await world.old(provider);
    await session.initialize();
    const posts = await Promise.all(
      range(1, 300).map((n) => session.post({ jsonrpc: "2.0", id: n, method: "tools/call", params: { name: "task_emit_chunk", arguments: { task_id: task.id, content: `${n}` } } })),
    );
    const taken = range(1, 300).filter((n) => posts[n - 1].status === 202);
    assert.ok(posts.every(({ status }) => [202, 503].includes(status)) && taken.length > 0);
    await until("all answers", () => session.messages().filter(({ id }) => typeof id === "number").length === taken.length);
    const chunks = await log(world.server, client, task);
    assert.deepEqual(chunks.map((chunk) => Number(chunk.content)).sort((a, b) => a - b), taken);
  });
});

onNode("the newest protocol", [], (world) => {
  test("MCP: server/discover and tools/list say what there is, for how long it holds, and the same each time", async () => {
    const { client, provider } = await cast(world.server);
    const { result } = (await modern(world.server, provider, "server/discover")).message;
    assert.equal(result.resultType, "complete");
    assert.ok(result.supportedVersions.includes(MODERN) && result.supportedVersions.includes(LEGACY));
    assert.ok(result.capabilities.tools);
    assert.equal(result._meta["io.modelcontextprotocol/serverInfo"].name, "muster");
    assert.ok(Number.isInteger(result.ttlMs) && ["public", "private"].includes(result.cacheScope));
    const lists = [];
    for (const who of [provider, client, provider]) lists.push((await modern(world.server, who, "tools/list")).message.result);
    assert.deepEqual([lists[1], lists[2]], [lists[0], lists[0]]);
    assert.equal(lists[0].resultType, "complete");
    assert.ok(Number.isInteger(lists[0].ttlMs) && ["public", "private"].includes(lists[0].cacheScope));
    for (const tool of lists[0].tools) assert.ok(tool.description && tool.inputSchema.type === "object", tool.name);
  });

  test("MCP: a call needs no session, heeds none, and gets none", async () => {
    const { client, provider, task } = await cast(world.server);
    const emit = { name: "task_emit_chunk", arguments: { task_id: task.id, content: "x" } };
    const refused = await modern(world.server, client, "tools/call", emit);
    assert.deepEqual(said(refused.message), { failed: true, reason: "unauthorized" }, "only the provider may");
    for (const [n, headers] of [{}, { "mcp-session-id": "made-up" }, { "last-event-id": "9/9" }, { "mcp-name": `=?base64?${Buffer.from(emit.name).toString("base64")}?=` }].entries()) {
      const answer = await modern(world.server, provider, "tools/call", emit, { headers });
      assert.equal(answer.status, 200, answer.text);
      assert.equal(answer.headers["mcp-session-id"], undefined);
      assert.equal(answer.headers["x-accel-buffering"], "no");
      assert.equal(answer.message.result.resultType, "complete");
      assert.deepEqual(said(answer.message), { failed: false, seq: n + 1 });
    }
    assert.equal(await metric(world.server, "muster_mcp_sessions"), 0);
    assert.equal(await world.online(provider), false, "without a session nobody is connected");
  });

  test("MCP: what the headers say must be what the body says", async () => {
    const { client, provider, task } = await cast(world.server);
    const emit = { name: "task_emit_chunk", arguments: { task_id: task.id, content: "x" } };
    const cases = [
      [{ headers: { "mcp-name": "get_task" } }, 400, -32_020], [{ headers: { "mcp-name": undefined } }, 400, -32_020],
      [{ headers: { "mcp-method": "tools/list" } }, 400, -32_020], [{ headers: { "mcp-method": undefined } }, 400, -32_020],
      [{ headers: { "mcp-protocol-version": undefined } }, 400, -32_020], [{ meta: { protocolVersion: LEGACY } }, 400, -32_020],
      [{ meta: { protocolVersion: undefined } }, 400, -32_602], [{ meta: { clientCapabilities: undefined } }, 400, -32_602],
      [{ meta: { protocolVersion: "2099-01-01" }, headers: { "mcp-protocol-version": "2099-01-01" } }, 400, -32_022],
    ];
    for (const [options, status, code] of cases) {
      const { message, ...answer } = await modern(world.server, provider, "tools/call", emit, options);
      assert.deepEqual([answer.status, message?.error?.code], [status, code], `${JSON.stringify(options)}: ${answer.text}`);
      if (code === -32_022) {
        assert.equal(message.error.data.requested, "2099-01-01");
        assert.ok(message.error.data.supported.includes(MODERN));
      }
    }
    assert.deepEqual(await log(world.server, client, task), [], "nothing was done");
  });

  test("MCP: methods of the older protocols and others that are unknown are 404; GET and DELETE are 405", async () => {
    const agent = await world.server.agent();
    for (const method of ["ping", "logging/setLevel", "nothing/such", "resources/subscribe"]) {
      const { status, message } = await modern(world.server, agent, method);
      assert.deepEqual([status, message?.error?.code], [404, -32_601], method);
    }
    for (const method of ["GET", "DELETE"]) {
      const { status } = await send(world.server, { method, headers: headersOf(agent, { "mcp-protocol-version": MODERN }) });
      assert.equal(status, 405, method);
    }
  });

  test("MCP: initialize under the newest version makes no session", async () => {
    const agent = await world.server.agent();
    const { status, message, headers } = await modern(world.server, agent, "initialize", initialize(MODERN).params);
    assert.equal(headers["mcp-session-id"], undefined);
    assert.deepEqual([status, message?.error?.code], [404, -32_601]);
  });
});

onNode("refusals", [], (world) => {
  test("MCP: who shows no credential, or one that does not count, gets 401 on every endpoint", async () => {
    const { server } = world;
    const { client, provider } = await cast(server);
    const issued = await server.ok("POST", `/api/v1/agents/${client.id}/credentials`, { key: client.key, body: {} });
    const revoked = { key: issued.api_key };
    assert.equal((await Session.open(server, revoked)).answer.status, 200);
    await server.ok("DELETE", `/api/v1/agents/${client.id}/credentials/${issued.credential.id}`, { key: client.key });
    for (const [method, where] of endpoints) {
      for (const [what, who, query] of [["none", {}, ""], ["unknown", { key: `ap_${"a".repeat(43)}` }, ""], ["revoked", revoked, ""], ["in the query", {}, `?api_key=${provider.key}`]]) {
        const answer = await send(server, { method, path: where + query, headers: headersOf(who), body: method === "POST" ? initialize() : undefined });
        assert.equal(answer.status, 401, `${what}: ${method} ${where}`);
        assert.match(answer.headers["www-authenticate"], /^Bearer\b/);
        assert.ok(answer.message.error);
      }
    }
    assert.doesNotMatch(server.logs, new RegExp(provider.key));
  });

  test("R20 R167: a user's token acts for the agent it names and owns, and for no other", async () => {
    const { server } = world;
    const { user, client, provider } = await cast(server);
    const open = (agent) => send(server, { headers: headersOf(user, { "x-agent-id": agent?.id }), body: initialize() });
    assert.equal((await open()).status, 403, "it has to name one");
    assert.equal((await open(provider)).status, 403);
    assert.equal((await open({ id: unknownId })).status, 403);
    const opened = await open(client);
    assert.equal(opened.status, 200);
    assert.equal(await world.online(client), true);
    await send(server, { method: "DELETE", headers: headersOf(user, { "x-agent-id": client.id, "mcp-session-id": opened.headers["mcp-session-id"] }) });
  });

  test("R17 R167: a key does over MCP what its scopes say, and no more", async () => {
    const { server } = world;
    const { client, provider, task } = await cast(server);
    const key = async (scope) => ({ key: (await server.ok("POST", `/api/v1/agents/${provider.id}/credentials`, { key: provider.key, body: { scopes: [scope] } })).api_key });
    for (const scope of ["read", "write"]) {
      const { answer } = await Session.open(server, await key(scope));
      assert.deepEqual([answer.status, answer.message.error.message], [403, "forbidden"], scope);
    }
    const session = await Session.open(server, await key("connect"));
    for (const [tool, args] of [["task_emit_chunk", { content: "x" }], ["complete_task", {}], ["fail_task", {}], ["get_task", {}], ["list_my_tasks", {}]]) {
      const { message } = await session.call(tool, { task_id: task.id, ...args });
      assert.deepEqual(said(message), { failed: true, reason: "forbidden" }, tool);
    }
    assert.equal((await server.ok("GET", `/api/v1/tasks/${task.id}`, { key: client.key })).status, "pending");
  });

  test("R35 R167: a task or hiring of others is like one that does not exist, to every tool", async () => {
    const { server } = world;
    const { client, provider, task } = await cast(server);
    const hired = await server.ok("POST", `/api/v1/agents/${encodeURIComponent(provider.did)}/hire`, { key: client.key, body: { capability: "code", queue: true } });
    const hiring = hired.hiring ?? hired;
    const session = await Session.open(server, await server.agent({ name: "Stranger" }));
    const cases = [
      ["task_emit_chunk", "task_id", task.id, { content: "x" }], ["get_task", "task_id", task.id, {}], ["complete_task", "task_id", task.id, {}],
      ["fail_task", "task_id", task.id, {}], ["submit_hiring_result", "hiring_id", hiring.id, { output: 1 }],
      ["report_hiring_failure", "hiring_id", hiring.id, { reason: "other" }], ["add_hiring_message", "hiring_id", hiring.id, { content: "x" }],
    ];
    for (const [tool, field, id, more] of cases) {
      const [others, unknown] = [await session.call(tool, { [field]: id, ...more }), await session.call(tool, { [field]: unknownId, ...more })];
      assert.equal(said(others.message).failed, true, tool);
      assert.deepEqual(others.message.result, unknown.message.result, tool);
    }
    assert.deepEqual(said((await session.call("list_my_tasks", {})).message).tasks, []);
    assert.equal((await server.ok("GET", `/api/v1/tasks/${task.id}`, { key: client.key })).status, "pending");
    const own = await Session.open(server, client);
    const notProvider = await own.call("task_emit_chunk", { task_id: task.id, content: "x" });
    assert.deepEqual(said(notProvider.message), { failed: true, reason: "unauthorized" }, "the client emits nothing either");
    assert.equal(said((await own.call("complete_task", { task_id: task.id })).message).failed, true);
  });

  test("MCP: arguments that are missing, of another type or out of bounds are a tool's failure", async () => {
    const { client, provider, task } = await cast(world.server);
    const session = await Session.open(world.server, provider);
    const emits = [{}, { content: undefined }, { content: 7 }, { content: null }, { content: ["x"] }, { content: "x", kind: 7 }, { content: "x", metadata: [] }, { content: "x", idempotency_key: 5 }];
    const cases = [
      ...emits.map((args) => ["task_emit_chunk", { task_id: task.id, ...args }]),
      ["task_emit_chunk", { content: "x" }], ["task_emit_chunk", { task_id: 7, content: "x" }], ["task_emit_chunk", { task_id: "no id", content: "x" }],
      ["list_my_tasks", { limit: "5" }], ["list_my_tasks", { limit: -1 }], ["list_my_tasks", { limit: 1.5 }], ["list_my_tasks", { status: "nothing_such" }],
      ["get_task", {}], ["complete_task", {}], ["fail_task", { task_id: task.id, reason: 7 }],
      ["report_hiring_failure", { hiring_id: unknownId, reason: "nothing_such" }], ["add_hiring_message", { hiring_id: unknownId }],
    ];
    for (const [tool, args] of cases) {
      const { status, message, text } = await session.call(tool, args);
      assert.equal(status, 200, text);
      assert.equal(said(message).failed, true, `${tool} ${JSON.stringify(args)}`);
    }
    assert.deepEqual(await log(world.server, client, task), []);
    assert.equal((await world.server.ok("GET", `/api/v1/tasks/${task.id}`, { key: client.key })).status, "pending");
  });

  test("MCP: arguments that are no object are not answered as if tools/call were unknown", async () => {
    const agent = await world.server.agent();
    const session = await Session.open(world.server, agent);
    const answers = [await session.call("list_my_tasks", [1]), await session.call("list_my_tasks", "x"), await session.request("tools/call"), await modern(world.server, agent, "tools/call", { name: "list_my_tasks", arguments: [1] })];
    for (const { message, status, text } of answers) {
      assert.notEqual(status, 404, text);
      assert.ok(message?.result?.isError || message?.error?.code === -32_602, text);
    }
  });

  test("MCP: what is no message of the protocol is refused, each kind in its way", async () => {
    const session = await Session.open(world.server, await world.server.agent());
    const ping = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "ping" });
    const cases = [
      [{ body: "{nope" }, 400, -32_700], [{ body: "" }, 400, -32_700], [{ body: `${ping} ${ping}` }, 400, -32_700],
      [{ body: "[".repeat(100) + "]".repeat(100) }, 400, -32_700], [{ body: `[${ping}]` }, 400, -32_600], [{ body: "[]" }, 400, -32_600],
      [{ body: "7" }, 400, -32_600], [{ headers: { accept: "application/json" } }, 406], [{ headers: { accept: "text/event-stream" } }, 406],
      [{ headers: { accept: undefined } }, 406], [{ headers: { "content-type": "text/plain" } }, 415], [{ headers: { "content-type": undefined } }, 415],
      [{ headers: { "mcp-protocol-version": "1999-01-01" } }, 400], [{ headers: { "mcp-protocol-version": "latest" } }, 400],
      [{ method: "GET", headers: { accept: "application/json" } }, 406], [{ method: "PUT" }, 405],
      [{ body: `{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"${"x".repeat(1_048_576)}"}}` }, 413],
    ];
    for (const [{ body = ping, method, headers }, status, code] of cases) {
      const answer = await session.send(method === "GET" ? undefined : body, { method, headers });
      const what = `${method ?? "POST"} ${JSON.stringify(headers)} ${body.slice(0, 50)}: ${answer.text.slice(0, 200)}`;
      assert.equal(answer.status, status, what);
      if (code) assert.deepEqual([answer.message.error.code, answer.message.id, answer.message.jsonrpc], [code, null, "2.0"], what);
    }
    assert.deepEqual((await session.request("ping")).message.result, {}, "the session goes on");
    assert.equal((await session.request("nothing/such")).message.error.code, -32_601);
    assert.equal((await session.call("nothing_such", {})).message.error.code, -32_602);
  });

  test("MCP: an object that is no message is an invalid request, in JSON-RPC", async () => {
    const session = await Session.open(world.server, await world.server.agent());
    for (const body of ["{}", '{"jsonrpc":"1.0","id":1,"method":"ping"}', '{"jsonrpc":"2.0","id":1}', '{"jsonrpc":"2.0","id":{},"method":"ping"}']) {
      const { status, message, text } = await session.send(body);
      assert.deepEqual([status, message?.error?.code], [400, -32_600], `${body}: ${text}`);
    }
  });

  test("MCP: on loopback a foreign Host is refused, as one that DNS was bent for would send", async () => {
    const agent = await world.server.agent();
    const ask = (host) => send(world.server, { headers: headersOf(agent, { host }), body: initialize() });
    for (const host of [`127.0.0.1:${world.server.port}`, `localhost:${world.server.port}`]) assert.equal((await ask(host)).status, 200, host);
    for (const host of ["evil.example", `evil.example:${world.server.port}`]) assert.equal((await ask(host)).status, 403, host);
  });
});

onNode("origins and names", ['http.origins=["https://good.example"]', 'mcp.allowed_hosts=["muster.example","127.0.0.1"]'], (world) => {
  const ask = (method, where, headers) => send(world.server, { method, path: where, headers, body: method === "POST" ? initialize() : undefined });

  test("MCP: an Origin that is not allowed is refused on every endpoint, whatever it shows", async () => {
    const agent = await world.server.agent();
    for (const [method, where] of endpoints) {
      for (const origin of ["https://evil.example", "http://good.example", "https://good.example.evil.example", "https://sub.good.example", "null", ""]) {
        const { status, headers } = await ask(method, where, headersOf(agent, { origin }));
        assert.equal(status, 403, `${method} ${where} ${origin}`);
        assert.equal(headers["access-control-allow-origin"], undefined);
      }
    }
    assert.equal(await world.online(agent), false);
  });

  test("MCP: scripts of an allowed Origin may read the answer and its session id", async () => {
    const agent = await world.server.agent();
    const origin = "https://good.example";
    const { status, headers } = await ask("POST", "/mcp", headersOf(agent, { origin }));
    assert.deepEqual([status, headers["access-control-allow-origin"]], [200, origin]);
    assert.match(headers["access-control-expose-headers"], /mcp-session-id/i);
    const wanted = ["authorization", "content-type", "mcp-session-id", "mcp-protocol-version", "mcp-method", "mcp-name", "last-event-id"];
    const preflight = await ask("OPTIONS", "/mcp", { origin, "access-control-request-method": "DELETE", "access-control-request-headers": wanted.join(",") });
    assert.ok([200, 204].includes(preflight.status));
    assert.equal(preflight.headers["access-control-allow-origin"], origin);
    for (const name of wanted) assert.ok(preflight.headers["access-control-allow-headers"].toLowerCase().split(/, */).includes(name), name);
    for (const method of ["GET", "POST", "DELETE"]) assert.match(preflight.headers["access-control-allow-methods"], new RegExp(method));
  });

  test("MCP: a Host that is not allowed is refused over Streamable HTTP", async () => {
    const agent = await world.server.agent();
    for (const host of ["evil.example", "muster.example.evil.example"]) assert.equal((await ask("POST", "/mcp", headersOf(agent, { host }))).status, 403, host);
    for (const host of ["muster.example", "muster.example:4000"]) assert.equal((await ask("POST", "/mcp", headersOf(agent, { host }))).status, 200, host);
  });

  test("MCP: a Host that is not allowed is refused by the older transport too", async () => {
    const agent = await world.server.agent();
    const post = await ask("POST", "/mcp/messages/x", headersOf(agent, { host: "evil.example" }));
    // A stream that opens never ends: that, too, is no refusal.
    const open = await ask("GET", "/mcp/sse", headersOf(agent, { host: "evil.example" })).catch(() => ({ status: "open" }));
    assert.deepEqual([open.status, post.status], [403, 403]);
  });
});

onNode("limits", ["limits.streams_per_credential_max=3"], (world) => {
  test("MCP: a session that is refused for being one too many is not there", async () => {
    const agent = await world.server.agent();
    const answers = [];
    for (const _ of range(1, 8)) answers.push((await Session.open(world.server, agent)).answer);
    const refused = answers.filter((answer) => answer.status !== 200);
    assert.ok(refused.length > 0);
    for (const { status, message } of refused) assert.deepEqual([status, message.error.message], [409, "limit_reached"]);
    assert.equal(await metric(world.server, "muster_mcp_sessions"), answers.length - refused.length);
  });

  test("MCP: a call that is refused for the limit of streams did nothing", async () => {
    const { client, provider, task } = await cast(world.server);
    const session = await Session.open(world.server, provider);
    for (const _ of range(1, 2)) await world.listen(session.listen());
    const answer = await session.call("task_emit_chunk", { task_id: task.id, content: "refused?" });
    const chunks = (await log(world.server, client, task)).map((chunk) => chunk.content);
    assert.deepEqual(chunks, answer.status === 200 ? ["refused?"] : [], answer.text);
  });

  test("MCP: streams of the older transport are counted, and refused over the limit", async () => {
    const agent = await world.server.agent();
    for (const _ of range(1, 3)) assert.equal((await world.old(agent)).stream.response.status, 200);
    const { status, message } = await send(world.server, { method: "GET", path: "/mcp/sse", headers: headersOf(agent) });
    assert.deepEqual([status, message.error.message], [409, "limit_reached"]);
  });
});

const PERIOD_MS = 5_000;

onNode("a rate", [`limits.requests_per_credential=${rate(10, 1, PERIOD_MS)}`], (world) => {
  test("MCP: over the rate of a credential the answer is 429 with Retry-After", async () => {
    const [greedy, modest] = [await world.server.agent(), await world.server.agent()];
    const begun = Date.now();
    const answers = await Promise.all(range(1, 20).map(() => modern(world.server, greedy, "tools/list")));
    const over = answers.filter((answer) => answer.status !== 200);
    const least = 10 - (Date.now() - begun) / PERIOD_MS;
    assert.ok(over.length >= least && over.length <= 10, `${over.length}, at least ${least}`);
    for (const { status, headers, message } of over) {
      assert.deepEqual([status, message.error.message], [429, "rate_limited"]);
      assert.match(headers["retry-after"], /^[1-9]\d*$/);
    }
    assert.equal((await modern(world.server, modest, "tools/list")).status, 200, "others are not meant");
  });
});

onNode("being online", ["limits.mcp_session_idle_ms=3000"], (world) => {
  const offered = async (agent) => (await world.server.ok("GET", "/api/v1/agents/discover?online_only=true&limit=100", { key: agent.key })).some(({ id }) => id === agent.id);

  test("R53 R55: an agent is online from its first session to the end of its last, by either transport", async () => {
    const agent = await world.server.agent();
    assert.deepEqual([await world.online(agent), await offered(agent)], [false, false]);
    const session = await Session.open(world.server, agent);
    assert.deepEqual([await world.online(agent), await offered(agent)], [true, true]);
    const old = await world.old(agent);
    await old.initialize();
    assert.equal(await metric(world.server, "muster_mcp_sessions"), 2);
    await session.end();
    await until("one session is left", async () => (await metric(world.server, "muster_mcp_sessions")) === 1, leniently(1_000));
    assert.deepEqual([await world.online(agent), await offered(agent)], [true, true], "one is left");
    old.stream.close();
    await until("it is gone", async () => !(await world.online(agent)) && !(await offered(agent)), leniently(1_000));
  });

  test("MCP: a session that nobody uses ends, and its agent is gone; use keeps it", async () => {
    const [quiet, busy] = [await world.server.agent(), await world.server.agent()];
    const sessions = [await Session.open(world.server, quiet), await Session.open(world.server, busy)];
    await until("the quiet one is gone", async () => {
      assert.equal((await sessions[1].request("ping")).status, 200);
      return !(await world.online(quiet));
    });
    assert.equal(await world.online(busy), true);
    assert.equal((await sessions[0].request("ping")).status, 404, "the client has to begin again");
    await sessions[1].end();
  });

  test("R18: when its key is revoked a session's agent is gone and its streams end, within 2 s", async () => {
    const agent = await world.server.agent();
    const session = await Session.open(world.server, agent);
    const [stream, old] = [await world.listen(session.listen()), await world.old(agent)];
    await old.initialize();
    const { api_key: key } = await world.server.ok("POST", "/api/v1/auth/rotate-key", { key: agent.key, body: {} });
    await until("the streams end", () => stream.ended && old.stream.ended, leniently(2_000));
    assert.equal((await session.request("ping")).status, 401);
    assert.equal(await world.online({ ...agent, key }), false);
    assert.equal((await old.post({ jsonrpc: "2.0", id: 1, method: "ping" })).status, 401);
  });

  test("R18 R28: a session does not outlive its key: it works on only if its agent is online by it", async () => {
    const agent = await world.server.agent();
    const session = await Session.open(world.server, agent);
    const { api_key: key } = await world.server.ok("POST", "/api/v1/auth/rotate-key", { key: agent.key, body: {} });
    await sleep(500);
    const { status } = await session.request("ping", undefined, { who: { key } });
    assert.equal(await world.online({ ...agent, key }), status === 200, `the session answers ${status}`);
  });
});

onNode("emitting", [], (world) => {
  const emitter = (session) => async (task, args) => said((await session.call("task_emit_chunk", { task_id: task.id, ...args })).message ?? {});

  /** An emitter for each transport and era, with what its answer looks like made the same. */
  async function emitters(agent) {
    const [session, old] = [await Session.open(world.server, agent), await world.old(agent)];
    await old.initialize();
    return [
      emitter(session),
      async (task, args) => said(await old.call("task_emit_chunk", { task_id: task.id, ...args })),
      emitter({ call: (name, args) => modern(world.server, agent, "tools/call", { name, arguments: args }) }),
    ];
  }

  test("R39 R50 R51: chunks of all transports at one time get one gap-free seq, and each its own", async () => {
    const { client, provider, task } = await cast(world.server);
    const emits = await emitters(provider);
    const answers = await Promise.all(range(1, 120).map((n) => emits[n % 3](task, { content: `${n}` })));
    assert.deepEqual(answers.map(({ seq }) => seq).sort((a, b) => a - b), range(1, 120));
    const chunks = await log(world.server, client, task);
    assert.deepEqual(chunks.map(({ seq }) => seq), range(1, 120));
    for (const [n, { seq }] of answers.entries()) assert.equal(chunks[seq - 1].content, `${n + 1}`);
    for (const n of range(121, 150)) assert.deepEqual(await emits[n % 3](task, { content: `${n}` }), { failed: false, seq: n });
  });

  test("R52: an idempotency key is one chunk, on every transport, also at one time; another task's is another", async () => {
    const { client, provider, task } = await cast(world.server);
    const other = await world.server.task(client, provider);
    const emits = await emitters(provider);
    const named = { content: "once", idempotency_key: "k 1" };
    const answers = await Promise.all(range(1, 15).map((n) => emits[n % 3](task, named)));
    assert.ok(answers.every((answer) => !answer.failed && answer.seq === 1), JSON.stringify(answers));
    assert.deepEqual(await emits[0](task, { content: "next" }), { failed: false, seq: 2 });
    assert.deepEqual((await emits[1](task, { ...named, content: "changed" })).seq ?? 1, 1);
    const byRest = await world.server.emit(task, provider, "once", { idempotency_key: "k 1" });
    assert.deepEqual([byRest.status, byRest.data], [202, { seq: 1 }]);
    assert.deepEqual(await emits[2](other, named), { failed: false, seq: 1 });
    assert.deepEqual((await log(world.server, client, task)).map((chunk) => chunk.content), ["once", "next"]);
  });

  test("R40 R47: the bounds of a chunk, to the byte", async () => {
    const { client, provider, task } = await cast(world.server);
    const emit = emitter(await Session.open(world.server, provider));
    const KIB64 = 65_536;
    const fits = [
      { content: "x".repeat(KIB64) }, { content: "ü".repeat(KIB64 / 2) }, { content: "\u0000" }, { content: "x", metadata: { a: "x".repeat(4_000) } },
      { content: "x", idempotency_key: "k".repeat(128) },
    ];
    for (const [n, args] of fits.entries()) assert.deepEqual(await emit(task, args), { failed: false, seq: n + 1 });
    const misfits = [
      [{ content: "" }, "invalid_content"], [{ content: "x".repeat(KIB64 + 1) }, "invalid_content"], [{ content: `${"ü".repeat(KIB64 / 2)}x` }, "invalid_content"],
      [{ content: "x", kind: "video" }, "invalid_kind"], [{ content: "x", kind: "" }, "invalid_kind"],
      [{ content: "x", metadata: { a: "x".repeat(4_096) } }, "invalid_payload"], [{ content: "x", idempotency_key: "" }, "invalid_payload"],
      [{ content: "x", idempotency_key: "k".repeat(129) }, "invalid_payload"],
    ];
    for (const [args, reason] of misfits) {
      const answer = await emit(task, args);
      assert.deepEqual([answer.failed, answer.reason], [true, reason], JSON.stringify(args).slice(0, 80));
    }
    assert.deepEqual((await log(world.server, client, task)).map((chunk) => chunk.content), fits.map(({ content }) => content));
  });

  test("R47: a lone surrogate is replaced, on both transports", async () => {
    const { client, provider, task } = await cast(world.server);
    const [session, old] = [await Session.open(world.server, provider), await world.old(provider)];
    await old.initialize();
    const body = (id) => `{"jsonrpc":"2.0","id":${id},"method":"tools/call","params":{"name":"task_emit_chunk","arguments":{"task_id":"${task.id}","content":"a\\ud800b \\ud83d\\ude80"}}}`;
    assert.equal(said((await session.send(body(50))).message).seq, 1);
    assert.equal((await old.post(body(50))).status, 202);
    await until("the answer", () => old.messages().some(({ id }) => id === 50));
    assert.deepEqual((await log(world.server, client, task)).map(({ content }) => content), ["a\ufffdb 🚀", "a\ufffdb 🚀"]);
  });

  test("R46 R166: what was acknowledged over MCP survives a kill; sessions do not", async () => {
    const { server } = world;
    const { client, provider, task } = await cast(server);
    const session = await Session.open(server, provider);
    const emit = emitter(session);
    const acknowledged = [];
    const running = (async () => {
      for (const n of range(1, 10_000)) acknowledged.push((await emit(task, { content: `${n}` })).seq);
    })().catch(() => {});
    await until("some are acknowledged", () => acknowledged.length > 20);
    await server.kill();
    await running;
    await server.startAgain();
    const chunks = await log(server, client, task);
    assert.ok(chunks.length >= acknowledged.length);
    assert.deepEqual(chunks.map(({ seq, content }) => [seq, content]), range(1, chunks.length).map((n) => [n, `${n}`]));
    assert.equal((await session.request("ping")).status, 404);
    assert.equal(await world.online(provider), false);
    const again = emitter(await Session.open(server, provider));
    assert.deepEqual(await again(task, { content: "on" }), { failed: false, seq: chunks.length + 1 });
  });
});
