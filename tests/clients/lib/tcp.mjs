// HTTP and WebSocket frames over a bare TCP connection, as wrong as a test wants them.

import { randomBytes } from "node:crypto";
import net from "node:net";
import { PATIENCE_MS } from "./server.mjs";
import { within } from "./wire.mjs";

export const OP = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 };

/** A frame as a client sends it. `length` lies about the payload's. */
export function frame(opcode, payload = "", { fin = true, mask = true, rsv = 0, length, wide } = {}) {
  const data = Buffer.from(payload);
  const size = BigInt(length ?? data.length);
  const head = [(fin ? 0x80 : 0) | (rsv << 4) | opcode];
  const bit = mask ? 0x80 : 0;
  if (wide === 64 || (!wide && size > 65_535n)) {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64BE(size);
    head.push(bit | 127, ...bytes);
  } else if (wide === 16 || size > 125n) {
    head.push(bit | 126, Number(size >> 8n), Number(size & 255n));
  } else {
    head.push(bit | Number(size));
  }
  if (!mask) return Buffer.concat([Buffer.from(head), data]);
  const key = randomBytes(4);
  const masked = Buffer.from(data);
  for (let at = 0; at < masked.length; at++) masked[at] ^= key[at & 3];
  return Buffer.concat([Buffer.from(head), key, masked]);
}

export const text = (message, options) => frame(OP.text, typeof message === "string" ? message : JSON.stringify(message), options);

/** A close frame's payload. */
export function closing(code, reason = "") {
  const head = Buffer.alloc(2);
  head.writeUInt16BE(code);
  return Buffer.concat([head, Buffer.from(reason)]);
}

/** The request of a handshake; a header set to null is left out. */
export function upgradeRequest(path, headers = {}, method = "GET") {
  const all = {
    host: "localhost",
    connection: "Upgrade",
    upgrade: "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": randomBytes(16).toString("base64"),
    ...headers,
  };
  const lines = Object.entries(all).filter(([, value]) => value !== null);
  return `${method} ${path} HTTP/1.1\r\n${lines.map(([name, value]) => `${name}: ${value}\r\n`).join("")}\r\n`;
}

export class Tcp {
  static async connect(server) {
    const tcp = new Tcp();
    tcp.bytes = Buffer.alloc(0);
    tcp.frames = [];
    tcp.waiting = null;
    tcp.socket = net.connect({ port: server.port, host: "127.0.0.1", allowHalfOpen: true });
    tcp.socket.setNoDelay(true);
    tcp.socket.on("data", (data) => {
      tcp.bytes = Buffer.concat([tcp.bytes, data]);
      tcp.#wake();
    });
    tcp.socket.on("error", () => {});
    tcp.ended = new Promise((resolve) => {
      tcp.socket.on("end", resolve);
      tcp.socket.on("close", resolve);
    });
    tcp.ended.then(() => {
      tcp.isEnded = true;
      tcp.#wake();
    });
    await new Promise((resolve, reject) => {
      tcp.socket.once("connect", resolve);
      tcp.socket.once("error", reject);
    });
    return tcp;
  }

  /** Connected and upgraded; what is `behind` goes in the same segment as the request. */
  static async upgraded(server, path, { headers, behind = Buffer.alloc(0) } = {}) {
    const tcp = await Tcp.connect(server);
    tcp.write(Buffer.concat([Buffer.from(upgradeRequest(path, headers)), behind]));
    const head = await tcp.head();
    if (head.status !== 101) throw new Error(`refused: ${head.status}`);
    return tcp;
  }

  #wake() {
    this.waiting?.();
    this.waiting = null;
  }

  write(data) {
    return new Promise((resolve) => this.socket.write(data, resolve));
  }

  async #until(what, look, ms = PATIENCE_MS) {
    const wait = async () => {
      for (;;) {
        const found = look();
        if (found !== undefined) return found;
        if (this.isEnded) throw new Error(`the connection ended while waiting for ${what}`);
        await new Promise((resolve) => (this.waiting = resolve));
      }
    };
    return within(ms, what, wait());
  }

  /** The head of an answer: { status, headers }. */
  async head() {
    const end = await this.#until("the head of an answer", () => {
      const at = this.bytes.indexOf("\r\n\r\n");
      return at < 0 ? undefined : at;
    });
    const [first, ...lines] = this.bytes.subarray(0, end).toString("latin1").split("\r\n");
    this.bytes = this.bytes.subarray(end + 4);
    const headers = {};
    for (const line of lines) {
      const colon = line.indexOf(":");
      headers[line.slice(0, colon).toLowerCase()] = line.slice(colon + 1).trim();
    }
    return { status: Number(first.split(" ")[1]), headers };
  }

  /** An answer with its body, which has a length. */
  async answer() {
    const head = await this.head();
    const length = Number(head.headers["content-length"] ?? 0);
    await this.#until("the body", () => (this.bytes.length >= length ? true : undefined));
    return { ...head, body: this.bytes.subarray(0, length).toString() };
  }

  /** The next frame of the server: { opcode, fin, payload, text }. */
  async frame(ms) {
    return this.#until(
      "a frame",
      () => {
        if (this.bytes.length < 2) return undefined;
        let length = this.bytes[1] & 0x7f;
        let at = 2;
        if (length === 126) {
          if (this.bytes.length < 4) return undefined;
          length = this.bytes.readUInt16BE(2);
          at = 4;
        } else if (length === 127) {
          if (this.bytes.length < 10) return undefined;
          length = Number(this.bytes.readBigUInt64BE(2));
          at = 10;
        }
        if (this.bytes.length < at + length) return undefined;
        const got = {
          opcode: this.bytes[0] & 15,
          fin: Boolean(this.bytes[0] & 0x80),
          rsv: (this.bytes[0] >> 4) & 7,
          masked: Boolean(this.bytes[1] & 0x80),
          payload: Buffer.from(this.bytes.subarray(at, at + length)),
        };
        this.bytes = this.bytes.subarray(at + length);
        return got;
      },
      ms,
    );
  }

  /** The next text message that is not about presence, parsed. */
  async message(ms) {
    for (;;) {
      const got = await this.frame(ms);
      if (got.opcode !== OP.text) throw new Error(`expected a message, got opcode ${got.opcode} ${describe(got)}`);
      const message = JSON.parse(got.payload.toString());
      if (!String(message[3]).startsWith("presence_")) return message;
    }
  }

  /** The close frame, past whatever comes before it: { code, reason }. */
  async close(ms) {
    for (;;) {
      const got = await this.frame(ms);
      if (got.opcode === OP.close) return describe(got);
    }
  }

  /** Waits until the server has ended the connection. */
  gone(ms = PATIENCE_MS) {
    return within(ms, "the server ends the connection", this.ended);
  }

  destroy() {
    this.socket.destroy();
  }
}

function describe({ payload }) {
  return { code: payload.length >= 2 ? payload.readUInt16BE(0) : null, reason: payload.subarray(2).toString() };
}
