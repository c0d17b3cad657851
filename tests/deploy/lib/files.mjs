// The files of deploy/, read as their programs read them.

import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { muster } from "../../clients/lib/cli.mjs";

const YAML = createRequire(new URL("../../clients/package.json", import.meta.url))("yaml");

export const root = fileURLToPath(new URL("../../../", import.meta.url));
export const deploy = path.join(root, "deploy");
export const run = promisify(execFile);

/** Where scripts/test puts what it installs for these tests. */
export const tool = (name) => path.join(process.env.TEST_DEPLOY_TOOLS ?? path.join(root, "target/deploy-tools"), name);

export const text = (...parts) => readFile(path.join(deploy, ...parts), "utf8");

/** All documents of a YAML text; keys that stand twice are errors. */
export function documents(yaml) {
  return YAML.parseAllDocuments(yaml, { merge: true }).map((document) => {
    if (document.errors.length > 0) throw document.errors[0];
    return document.toJS({ maxAliasCount: -1 });
  });
}

export const yaml = (content) => documents(content)[0];

/** What `muster config` makes of a file and variables: { stdout } with every setting, or a refusal. */
export async function configuration({ file, env = {} } = {}) {
  const { code, stdout, stderr } = await muster(["config", ...(file ? ["--config", file] : [])], { env });
  return { ok: code === 0, settings: code === 0 ? flat(stdout) : null, stderr };
}

/** TOML as `muster config` prints it, by dotted names; lists over several lines are joined. */
function flat(toml) {
  const settings = {};
  let section = "";
  for (const line of toml.replaceAll(/\[\n([^\]]*)\n?\]/g, (_, items) => `[${items.trim().replaceAll(/\s*\n\s*/g, " ")}]`).split("\n")) {
    const head = /^\[([\w.]+)\]$/.exec(line);
    const setting = /^(\w+) = (.*)$/.exec(line);
    if (head) section = head[1];
    else if (setting) settings[`${section}.${setting[1]}`] = setting[2].startsWith('"') ? JSON.parse(setting[2]) : Number.isNaN(Number(setting[2])) ? setting[2] : Number(setting[2]);
  }
  return settings;
}
