// What clients and the runner note, as lines of JSON in a file.

import { closeSync, createReadStream, openSync, writeSync } from "node:fs";
import readline from "node:readline";

/** Events of one file; a run that notes more than this is one that went wrong. */
const EVENTS_MAX = 5_000_000;
const FLUSH_MS = 200;

export class History {
  #lines = [];
  #count = 0;

  constructor(file) {
    this.file = openSync(file, "a");
    this.timer = setInterval(() => this.flush(), FLUSH_MS);
  }

  note(event) {
    if (++this.#count > EVENTS_MAX) throw new Error("the history is full");
    this.#lines.push(JSON.stringify({ t: Date.now(), ...event }));
  }

  flush() {
    if (this.#lines.length > 0) writeSync(this.file, `${this.#lines.splice(0).join("\n")}\n`);
  }

  close() {
    clearInterval(this.timer);
    this.flush();
    closeSync(this.file);
  }
}

/** All events of some files. */
export async function readHistories(files) {
  const events = [];
  for (const file of files) {
    for await (const line of readline.createInterface({ input: createReadStream(file), crlfDelay: Infinity })) {
      // The last line of one that was killed may be cut short.
      if (line.endsWith("}")) events.push(JSON.parse(line));
    }
  }
  return events;
}
