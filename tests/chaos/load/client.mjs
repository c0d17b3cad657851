// A real client of a run, that comes back as it does by itself, and notes what happens to it.

import { createRequire } from "node:module";
import { phoenix, VERSIONS } from "../../clients/lib/phoenix.mjs";

// The packages of the client tests.
const require = createRequire(new URL("../../clients/lib/phoenix.mjs", import.meta.url));
const WebSocket = require("ws");

/** A client of a plan: { c, kind, base, … }; `world` has `note` and `mayRetry`. */
export class Client {
  isUp = false;
  ended = false;

  /** Whether it should be connected and is not. */
  get isDown() {
    return this.socket !== undefined && !this.isUp;
  }

  constructor(plan, world) {
    Object.assign(this, { plan, world });
  }

  note(event) {
    if (!this.ended) this.world.note({ c: this.plan.c, ...event });
  }

  up() {
    if (!this.isUp) this.note({ e: "up", a: this.plan.agent });
    this.isUp = true;
  }

  down() {
    if (this.isUp) this.note({ e: "down", a: this.plan.agent });
    this.isUp = false;
  }

  /** What was answered that is no refusal to be tried again. */
  failed(text) {
    this.note({ e: "failed", text });
  }

  /** Opens a socket and joins one topic; `join` gives the parameters, each time anew. */
  connect(mount, topic, join = () => ({})) {
    const { Socket } = phoenix(VERSIONS[this.plan.number % VERSIONS.length]);
    this.socket = new Socket(`${this.plan.base.replace("http", "ws")}${mount}`, { transport: WebSocket, params: { api_key: this.plan.key } });
    this.channel = this.socket.channel(topic, join);
    this.socket.onClose(() => this.down());
    this.channel.onError(() => this.down());
    this.channel
      .join()
      .receive("ok", () => {
        this.up();
        this.joined?.();
      })
      .receive("error", (response) => {
        if (!this.world.mayRetry(response.reason)) this.failed(`join of ${topic}: ${JSON.stringify(response)}`);
      });
    this.socket.connect();
  }

  end() {
    this.ended = true;
    this.socket?.disconnect();
  }
}
