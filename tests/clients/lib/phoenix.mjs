// The npm `phoenix` clients, unmodified, with the `ws` package as their WebSocket.

import { createRequire } from "node:module";
import WebSocket from "ws";
import { PATIENCE_MS } from "./server.mjs";

const require = createRequire(import.meta.url);

export const VERSIONS = ["1.7.23", "1.8.15", "1.8.16"];

/** The client library of a version. */
export const phoenix = (version) => require(`phoenix-${version}`);

/** Opens a socket; resolves once it is open. Extra options go to the client. */
export function connect(version, server, mount, params, options = {}) {
  const { Socket } = phoenix(version);
  const closes = [];
  const frames = [];
  class Recorder extends WebSocket {
    constructor(...args) {
      super(...args);
      this.addEventListener("close", (event) => closes.push({ code: event.code, reason: event.reason }));
      this.addEventListener("message", (event) => frames.push(event.data));
    }
  }
  const socket = new Socket(`${server.ws}${mount}`, { transport: Recorder, params, ...options });
  socket.recorded = { closes, frames };
  return new Promise((resolve, reject) => {
    socket.onOpen(() => resolve(socket));
    const timer = setTimeout(() => reject(new Error("the socket did not open")), PATIENCE_MS);
    socket.onOpen(() => clearTimeout(timer));
    socket.connect();
  });
}

/** Joins; resolves with { status, response }. */
export function join(channel) {
  return new Promise((resolve) => {
    channel
      .join()
      .receive("ok", (response) => resolve({ status: "ok", response }))
      .receive("error", (response) => resolve({ status: "error", response }))
      .receive("timeout", () => resolve({ status: "timeout" }));
  });
}

/** Pushes; resolves with { status, response }. */
export function push(channel, event, payload, timeout) {
  return new Promise((resolve) => {
    channel
      .push(event, payload, timeout)
      .receive("ok", (response) => resolve({ status: "ok", response }))
      .receive("error", (response) => resolve({ status: "error", response }))
      .receive("timeout", () => resolve({ status: "timeout" }));
  });
}

/** A channel of a task's stream that joins again where it was, with the seqs it saw. */
export function resuming(socket, task) {
  const seen = [];
  let last = 0;
  const channel = socket.channel(`task_stream:${task.id}`, () => ({ after_seq: last }));
  channel.on("stream.chunk", ({ seq }) => {
    seen.push(seq);
    last = seq;
  });
  return { channel, seen };
}

/** Collects an event's payloads. */
export function collect(channel, event) {
  const seen = [];
  channel.on(event, (payload) => seen.push(payload));
  return seen;
}
