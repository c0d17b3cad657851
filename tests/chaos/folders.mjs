// Where a run keeps its logs and histories: in the project's own target folder.

import { randomBytes } from "node:crypto";
import { mkdirSync, rmSync } from "node:fs";
import path from "node:path";

export const root = path.resolve(import.meta.dirname, "../..");

/** A new folder for a run. */
export function runFolder(name) {
  const folder = path.join(root, "target", "chaos", `${name}-${randomBytes(4).toString("hex")}`);
  mkdirSync(folder, { recursive: true });
  return folder;
}

/** Of a run that went well nothing has to stay. */
export const forget = (folder) => rmSync(folder, { recursive: true, force: true });
