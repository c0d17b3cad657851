// Holds what is sent and answered against the checked-in OpenAPI and AsyncAPI documents, as strictly as their schemas say.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import Ajv2020 from "ajv/dist/2020.js";
import addFormats from "ajv-formats";

const read = (name) => JSON.parse(readFileSync(new URL(`../../../docs/${name}`, import.meta.url), "utf8"));
export const document = read("openapi.json");
export const events = read("asyncapi.json");

const ajv = new Ajv2020({ allErrors: true, allowUnionTypes: true, strict: true, strictRequired: false, validateFormats: true });
addFormats(ajv);
// What stands around the schemas.
for (const part of Object.keys(document)) ajv.addKeyword(part);
ajv.addSchema(document, "openapi", undefined, false);

const escaped = (part) => encodeURIComponent(part.replaceAll("~", "~0").replaceAll("/", "~1"));

/** Every operation: [method, path, operation]. */
export const operations = Object.entries(document.paths).flatMap(([path, item]) =>
  Object.entries(item).map(([method, operation]) => [method.toUpperCase(), path, operation]),
);

/** A schema and all that it is put together from. */
function parts(schema) {
  const named = schema.$ref ? [document.components.schemas[schema.$ref.split("/").at(-1)]] : [];
  return [schema, ...[...named, ...(schema.allOf ?? []), ...(schema.oneOf ?? []), ...(schema.anyOf ?? [])].flatMap(parts)];
}

/** Fields of a value that no part of its schema names. Where a schema names none, there may be any. */
function unnamed(schema, value, at = "data") {
  const all = parts(schema);
  if (Array.isArray(value)) return value.flatMap((item, n) => unnamed({ anyOf: all.flatMap((part) => part.items ?? []) }, item, `${at}/${n}`));
  if (value === null || typeof value !== "object" || !all.some((part) => part.properties)) return [];
  return Object.entries(value).flatMap(([name, field]) => {
    const fitting = all.flatMap((part) => part.properties?.[name] ?? part.additionalProperties ?? []);
    return fitting.length > 0 ? unnamed({ anyOf: fitting }, field, `${at}/${name}`) : [`${at}/${name}`];
  });
}

/** Says what is wrong with a value at a place of the document; nothing when it fits. `exact`: it has no fields beyond either. */
export function misfit(place, value, { exact = false } = {}) {
  const validate = ajv.getSchema(`openapi#/${place.map(escaped).join("/")}`);
  assert.ok(validate, `no schema at ${place.join(" ")}`);
  if (!validate(value)) return ajv.errorsText(validate.errors, { separator: "\n" });
  const more = exact ? unnamed(place.reduce((part, name) => part[name], document), value) : [];
  return more.length > 0 ? `not described: ${more.join(", ")}` : undefined;
}

/** Speaks to a node by operations of the document, and holds every request and every answer against it. */
export class Contract {
  /** Operations that were answered as they should. */
  done = new Set();

  constructor(server) {
    this.server = server;
  }

  /** `call("GET /api/v1/tasks/{id}", { id, … })`: what is in the path (or in `in`), `query`, and the rest as for `request`. */
  async call(name, { query, ...options } = {}) {
    const [method, path] = name.split(" ");
    const operation = document.paths[path]?.[method.toLowerCase()];
    assert.ok(operation, `${name} is not in the document`);
    const target = path.replaceAll(/\{(\w+)\}/g, (_, part) => encodeURIComponent(options.in?.[part] ?? options[part]));
    if (options.body !== undefined && operation.requestBody) {
      const wrong = misfit(["paths", path, method.toLowerCase(), "requestBody", "content", "application/json", "schema"], options.body);
      assert.equal(wrong, undefined, `${name} ${JSON.stringify(options.body)}`);
    }
    const answer = await this.server.request(method, target + (query ? `?${new URLSearchParams(query)}` : ""), options);
    const described = operation.responses[answer.status];
    assert.ok(described, `${name}: ${answer.status} is not described: ${answer.text}`);
    const type = answer.headers.get("content-type").split(";")[0];
    assert.ok(described.content[type], `${name}: ${answer.status}: ${type} is not described`);
    if (type === "application/json") {
      const place = ["paths", path, method.toLowerCase(), "responses", String(answer.status), "content", type, "schema"];
      assert.equal(misfit(place, answer.body, { exact: true }), undefined, `${name}: ${answer.text}`);
    }
    if (answer.status < 300) this.done.add(name);
    return answer;
  }

  /** The same, of which nothing is refused: gives the data. */
  async ok(name, options) {
    const answer = await this.call(name, options);
    assert.ok(answer.status < 300, `${name}: ${answer.status} ${answer.text}`);
    return answer.data;
  }
}

const eventAjv = new Ajv2020({ allErrors: true, allowUnionTypes: true, strict: true, strictRequired: false, strictTypes: false });
addFormats(eventAjv);

/** `fits("team", "receive.vote_cast", payload, reply)`: a push, and what it was answered; `send.…` is what the server pushes. */
export function fits(channel, name, payload, reply) {
  const message = events.channels[channel]?.messages[name];
  assert.ok(message, `${channel} ${name} is not in the document`);
  for (const [what, value] of [["payload", payload], ["x-reply", reply]]) {
    if (value === undefined) continue;
    assert.ok(message[what], `${channel} ${name} has no ${what}`);
    const validate = eventAjv.compile(message[what]);
    assert.ok(validate(value), `${channel} ${name} ${what}: ${eventAjv.errorsText(validate.errors)}: ${JSON.stringify(value)}`);
    const more = unnamed(message[what], value);
    assert.deepEqual(more, [], `${channel} ${name} ${what} does not describe them`);
    // An object of which nothing is said tells a client nothing.
    assert.ok(message[what].properties || Object.keys(value).length === 0, `${channel} ${name} ${what} describes no field`);
  }
}

/** What is wrong with the payload of a join; nothing when it fits. */
export function joinMisfit(channel, payload) {
  const validate = eventAjv.compile(events.channels[channel]["x-join"]);
  return validate(payload) ? undefined : eventAjv.errorsText(validate.errors);
}
