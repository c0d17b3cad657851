// Event streams, read as the standard says: by fetch, by curl, by the npm package.

import { spawn } from "node:child_process";
import { EventSource } from "eventsource";
import { until } from "./server.mjs";

/** Splits an event stream into events; lines without a meaning are counted as comments. */
class Parser {
  events = [];
  comments = 0;
  #text = "";
  #event = { data: [] };

  feed(text) {
    const lines = (this.#text + text).split("\n");
    this.#text = lines.pop();
    for (const line of lines) this.#line(line);
  }

  #line(line) {
    if (line === "") {
      const { data, ...event } = this.#event;
      if (data.length > 0) this.events.push({ ...event, data: JSON.parse(data.join("\n")) });
      this.#event = { data: [] };
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) {
      this.comments++;
      return;
    }
    const [field, value] = colon < 0 ? [line, ""] : [line.slice(0, colon), line.slice(colon + 1).replace(/^ /, "")];
    if (field === "data") this.#event.data.push(value);
    else if (field === "event" || field === "id") this.#event[field] = value;
    else if (field === "retry") this.retry = Number(value);
    else throw new Error(`a line that no reader understands: ${JSON.stringify(line)}`);
  }
}

const address = (server, task, after) => `${server.url}/api/v1/tasks/${task.id}/stream${after === undefined ? "" : `?after=${after}`}`;

const credentials = (who) => (who.token ? { authorization: `Bearer ${who.token}` } : { "x-api-key": who.key });

class Reader {
  parser = new Parser();
  ended = false;

  get events() {
    return this.parser.events;
  }

  named(event) {
    return this.events.filter((one) => one.event === event);
  }

  seqs() {
    return this.named("stream.chunk").map((event) => event.data.seq);
  }

  names() {
    return this.events.map((event) => event.event);
  }

  /** Takes a part of the body; what no reader would understand ends it. */
  take(text) {
    try {
      if (!this.failure) this.parser.feed(text);
    } catch (error) {
      this.failure = error;
      this.ended = true;
    }
  }

  async joined() {
    await until("the stream is joined", () => this.named("stream.joined").length > 0 || this.ended);
    return this;
  }
}

/** Opens an event stream by fetch. */
export async function readByFetch(server, who, task, { after, lastEventId } = {}) {
  const reader = new Reader();
  const control = new AbortController();
  const headers = { accept: "text/event-stream", ...credentials(who) };
  if (lastEventId !== undefined) headers["last-event-id"] = String(lastEventId);
  reader.response = await fetch(address(server, task, after), { headers, signal: control.signal });
  reader.close = () => control.abort();
  const decoder = new TextDecoder();
  const pump = async () => {
    for await (const part of reader.response.body) reader.take(decoder.decode(part, { stream: true }));
  };
  pump()
    .catch((error) => (reader.failure ??= error))
    .finally(() => (reader.ended = true));
  return reader;
}

/** Opens an event stream by curl. */
export function readByCurl(server, who, task, { after, lastEventId, more = [] } = {}) {
  const reader = new Reader();
  const headers = { accept: "text/event-stream", ...credentials(who) };
  if (lastEventId !== undefined) headers["last-event-id"] = String(lastEventId);
  const flags = Object.entries(headers).flatMap(([name, value]) => ["-H", `${name}: ${value}`]);
  reader.process = spawn("curl", ["-sN", ...more, ...flags, address(server, task, after)], { stdio: ["ignore", "pipe", "inherit"] });
  reader.process.stdout.setEncoding("utf8");
  reader.process.stdout.on("data", (text) => reader.take(text));
  reader.exited = new Promise((resolve) => reader.process.on("close", (code) => resolve(code)));
  reader.exited.then(() => (reader.ended = true));
  reader.close = () => reader.process.kill("SIGKILL");
  return reader;
}

/** Opens an event stream by the npm package, which comes back by itself. */
export function readByPackage(server, who, task, { after } = {}) {
  const asked = [];
  const source = new EventSource(address(server, task, after), {
    fetch: (url, init) => {
      asked.push(init.headers["Last-Event-ID"] ?? null);
      return fetch(url, { ...init, headers: { ...init.headers, ...credentials(who) } });
    },
  });
  const reader = { source, asked, chunks: [], ends: [], joined: [], errors: [] };
  source.addEventListener("stream.joined", (event) => reader.joined.push(JSON.parse(event.data)));
  source.addEventListener("stream.chunk", (event) => reader.chunks.push({ id: event.lastEventId, ...JSON.parse(event.data) }));
  for (const name of ["stream.done", "stream.error"]) {
    source.addEventListener(name, (event) => {
      reader.ends.push({ event: name, data: JSON.parse(event.data) });
      source.close();
    });
  }
  source.addEventListener("error", (event) => reader.errors.push(event));
  reader.close = () => source.close();
  reader.seqs = () => reader.chunks.map((chunk) => chunk.seq);
  return reader;
}
