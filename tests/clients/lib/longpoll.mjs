// The npm clients over long-polling, which expects a browser around it; and the transport by hand.

import http from "node:http";
import net from "node:net";
import { phoenix } from "./phoenix.mjs";
import { PATIENCE_MS, until } from "./server.mjs";

const agent = new http.Agent({ keepAlive: true, maxSockets: Infinity });

/** As much of XMLHttpRequest as the clients use, with its order of events. */
class Xhr {
  readyState = 0;
  responseText = "";
  #headers = {};

  open(method, url) {
    this.method = method;
    this.url = url;
  }

  setRequestHeader(name, value) {
    this.#headers[name] = value;
  }

  send(body) {
    this.request = http.request(this.url, { method: this.method, headers: this.#headers, agent }, async (response) => {
      try {
        let text = "";
        for await (const part of response.setEncoding("utf8")) text += part;
        this.#done(text);
      } catch {
        this.#failed();
      }
    });
    this.request.on("error", () => this.#failed());
    if (this.timeout) {
      this.timer = setTimeout(() => {
        this.#stop();
        this.ontimeout?.();
      }, this.timeout);
    }
    this.request.end(body ?? undefined);
  }

  abort() {
    if (this.#stop()) this.onreadystatechange?.();
  }

  #stop() {
    if (this.readyState === 4) return false;
    this.readyState = 4;
    clearTimeout(this.timer);
    this.request?.destroy();
    return true;
  }

  #failed() {
    if (!this.#stop()) return;
    this.onreadystatechange?.();
    this.onerror?.();
  }

  #done(text) {
    if (this.readyState === 4) return;
    this.responseText = text;
    this.readyState = 4;
    clearTimeout(this.timer);
    this.onreadystatechange?.();
  }
}

// What the clients take for the browser's window; 1.7 knows nothing but XMLHttpRequest.
globalThis.self = { fetch: (...args) => fetch(...args), AbortController };

/** By which function of the browser a version sends its requests. */
export function sendBy(version) {
  globalThis.self.XMLHttpRequest = version.startsWith("1.7") ? Xhr : undefined;
}

/** Opens a socket over long-polling; resolves once it is open. Extra options go to the client. */
export function connectByPolling(version, base, mount, params, options = {}) {
  sendBy(version);
  const { LongPoll, Socket } = phoenix(version);
  const socket = new Socket(`${base.replace("http", "ws")}${mount}`, { transport: LongPoll, params, ...options });
  return opened(socket);
}

/** Connects, and waits until the socket is open. */
export function opened(socket, ms = PATIENCE_MS) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error("the socket did not open")), ms);
    socket.onOpen(() => {
      clearTimeout(timer);
      resolve(socket);
    });
    socket.connect();
  });
}

/** A session by hand, which polls only when it is told to. */
export class Poller {
  token = null;
  messages = [];
  #ref = 0;

  constructor(server, path, params = {}, { vsn = "2.0.0", headers = {} } = {}) {
    Object.assign(this, { server, path, params, vsn, headers });
  }

  static async open(...args) {
    const poller = new Poller(...args);
    const answer = await poller.get();
    if (answer.body?.status !== 410) throw new Error(`no session: ${answer.status} ${answer.text}`);
    return poller;
  }

  /** The address, as the client writes it. */
  target(token = this.token) {
    const query = new URLSearchParams({ ...this.params, ...(this.vsn === null ? {} : { vsn: this.vsn }) });
    return `${this.path}?${query}&${token === null ? "" : `token=${token}`}`;
  }

  async #send(method, { token = this.token, headers = {}, ...options } = {}) {
    const response = await fetch(this.server.url + this.target(token), { method, headers: { ...this.headers, ...headers }, ...options });
    const text = await response.text();
    return { status: response.status, headers: response.headers, text, body: text.startsWith("{") ? JSON.parse(text) : null };
  }

  /** One GET; keeps the token and what came. */
  async get(options) {
    const answer = await this.#send("GET", options);
    if (answer.body?.token) this.token = answer.body.token;
    this.messages.push(...(answer.body?.messages ?? []).map((text) => JSON.parse(text)));
    return answer;
  }

  /** A GET that surely waits at the node, as it has overtaken another; gives { answer, begun }. */
  async waiting(options) {
    let before = this.get(options);
    for (;;) {
      const begun = performance.now();
      const two = [before, this.get(options)];
      const ended = await Promise.race(two.map((get, at) => get.then(() => at)));
      if ((await two[ended]).body.status === 204) return { answer: two[1 - ended], begun };
      before = two[1 - ended];
    }
  }

  /** One POST of messages, a line each, or of a body as it is. */
  post(messages, { type = "application/x-ndjson", body, ...options } = {}) {
    body ??= messages.map((message) => (typeof message === "string" ? message : JSON.stringify(message))).join("\n");
    return this.#send("POST", { ...options, body, headers: { "content-type": type, ...options.headers } });
  }

  /** Pushes, and gives the ref. */
  async push(topic, event, payload = {}, joinRef = null) {
    const ref = String(++this.#ref);
    const { body } = await this.post([[event === "phx_join" ? ref : joinRef, ref, topic, event, payload]]);
    if (body?.status !== 200) throw new Error(`${event} was not taken: ${JSON.stringify(body)}`);
    return ref;
  }

  /** Pushes, and polls until the reply is there; gives its payload. */
  async ask(topic, event, payload, joinRef) {
    const ref = await this.push(topic, event, payload, joinRef);
    const isReply = ([, itsRef, itsTopic, itsEvent]) => itsEvent === "phx_reply" && itsTopic === topic && itsRef === ref;
    return (await this.until(`the reply to ${event}`, () => this.messages.find(isReply)))[4];
  }

  join(topic, payload) {
    return this.ask(topic, "phx_join", payload);
  }

  /** Polls until `check` gives something true. */
  until(what, check) {
    return until(what, async () => {
      const value = check();
      if (!value) await this.get();
      return value;
    });
  }

  /** Payloads of an event on a topic. */
  events(topic, event) {
    return this.messages.filter(([, , itsTopic, itsEvent]) => itsTopic === topic && itsEvent === event).map((message) => message[4]);
  }
}

/** A proxy through which no WebSocket gets: upgrades are refused, or are never answered. */
export class NoUpgrades {
  static async before(server, { hang = false } = {}) {
    const proxy = new NoUpgrades();
    proxy.upgrades = 0;
    proxy.sockets = new Set();
    proxy.listener = net.createServer((near) => {
      proxy.sockets.add(near);
      near.on("error", () => {});
      near.once("data", (head) => {
        if (head.includes("/websocket")) {
          proxy.upgrades++;
          if (!hang) near.end("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
          return;
        }
        const far = net.connect(server.port, "127.0.0.1");
        far.on("error", () => {});
        far.on("close", () => near.destroy());
        near.on("close", () => far.destroy());
        far.write(head);
        near.pipe(far);
        far.pipe(near);
      });
    });
    await new Promise((resolve) => proxy.listener.listen(0, "127.0.0.1", resolve));
    proxy.url = `http://127.0.0.1:${proxy.listener.address().port}`;
    return proxy;
  }

  end() {
    this.listener.close();
    this.sockets.forEach((socket) => socket.destroy());
  }
}
