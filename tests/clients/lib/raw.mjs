// A WebSocket reader that can stop taking bytes from its TCP socket, which no client library lets one do.

import { randomBytes } from "node:crypto";
import net from "node:net";
import { until } from "./server.mjs";

export class RawSocket {
  messages = [];
  closed = false;
  #buffered = [];
  #bytes = 0;
  #ref = 0;

  static async open(server, mount, credential) {
    const raw = new RawSocket();
    raw.tcp = net.connect(server.port, "127.0.0.1");
    raw.tcp.on("error", () => {});
    raw.tcp.on("close", () => (raw.closed = true));
    const key = randomBytes(16).toString("base64");
    raw.tcp.write(
      `GET ${mount}/websocket?vsn=2.0.0&api_key=${credential} HTTP/1.1\r\nHost: 127.0.0.1:${server.port}\r\n` +
        `Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${key}\r\n\r\n`,
    );
    const [head, rest] = await raw.#head();
    if (!head.startsWith("HTTP/1.1 101")) throw new Error(`no upgrade: ${head}`);
    raw.tcp.on("data", (data) => raw.#take(data));
    if (rest.length > 0) raw.#take(rest);
    return raw;
  }

  #head() {
    return new Promise((resolve) => {
      let seen = Buffer.alloc(0);
      const read = (data) => {
        seen = Buffer.concat([seen, data]);
        const end = seen.indexOf("\r\n\r\n");
        if (end < 0) return;
        this.tcp.off("data", read);
        resolve([seen.subarray(0, end).toString(), seen.subarray(end + 4)]);
      };
      this.tcp.on("data", read);
    });
  }

  #take(data) {
    this.#buffered.push(data);
    this.#bytes += data.length;
    if (this.#bytes < (this.wanted ?? 2)) return;
    let all = Buffer.concat(this.#buffered);
    for (;;) {
      const length = frameLength(all);
      this.wanted = length?.total ?? 2;
      if (!length || all.length < length.total) break;
      const payload = all.subarray(length.head, length.total);
      if ((all[0] & 0x0f) === 1) this.messages.push(JSON.parse(payload.toString()));
      all = all.subarray(length.total);
    }
    this.#buffered = [all];
    this.#bytes = all.length;
  }

  /** Sends a Phoenix V2 message; gives its ref. */
  send(topic, event, payload, joinRef = null) {
    const ref = String(++this.#ref);
    const text = Buffer.from(JSON.stringify([event === "phx_join" ? ref : joinRef, ref, topic, event, payload]));
    const mask = randomBytes(4);
    const head = text.length < 126 ? Buffer.from([0x81, 0x80 | text.length]) : Buffer.from([0x81, 0xfe, text.length >> 8, text.length & 0xff]);
    this.tcp.write(Buffer.concat([head, mask, text.map((byte, at) => byte ^ mask[at % 4])]));
    return ref;
  }

  /** Sends, and waits for the reply. */
  async ask(topic, event, payload, joinRef) {
    const ref = this.send(topic, event, payload, joinRef);
    const isReply = ([, itsRef, itsTopic, itsEvent]) => itsEvent === "phx_reply" && itsTopic === topic && itsRef === ref;
    const message = await until(`the reply to ${event}`, () => this.messages.find(isReply));
    return message[4];
  }

  /** Payloads of an event on a topic. */
  events(topic, event) {
    return this.messages.filter(([, , itsTopic, itsEvent]) => itsTopic === topic && itsEvent === event).map((message) => message[4]);
  }

  stopReading() {
    this.tcp.pause();
  }

  goOnReading() {
    if (this.counting) this.tcp.off("data", this.counting);
    this.tcp.resume();
  }

  /** Reads on until so many bytes have come, and stops again. */
  read(bytes) {
    return new Promise((resolve) => {
      let left = bytes;
      this.goOnReading();
      this.counting = (data) => {
        left -= data.length;
        if (left > 0) return;
        this.tcp.off("data", this.counting);
        this.tcp.pause();
        resolve();
      };
      this.tcp.on("data", this.counting);
    });
  }

  end() {
    this.tcp.destroy();
  }
}

/** Where the payload of the first frame begins and ends; null while that is not known. */
function frameLength(bytes) {
  if (bytes.length < 2) return null;
  const short = bytes[1] & 0x7f;
  if (short < 126) return { head: 2, total: 2 + short };
  if (short === 126) return bytes.length < 4 ? null : { head: 4, total: 4 + bytes.readUInt16BE(2) };
  return bytes.length < 10 ? null : { head: 10, total: 10 + Number(bytes.readBigUInt64BE(2)) };
}
