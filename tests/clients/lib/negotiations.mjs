// Ed25519 keys and the texts that agents sign when they negotiate, by Node's own crypto: nothing of the server's code.

import { createHash, createPrivateKey, createPublicKey, randomBytes, sign, verify } from "node:crypto";

/** What stands before the 32 bytes of a private and of a public key in their DER forms (RFC 8410). */
const PRIVATE = Buffer.from("302e020100300506032b657004220420", "hex");
const PUBLIC = Buffer.from("302a300506032b6570032100", "hex");

/** A key pair, of a seed or any. */
export class Signer {
  constructor(seed = randomBytes(32)) {
    this.privateKey = createPrivateKey({ key: Buffer.concat([PRIVATE, seed]), format: "der", type: "pkcs8" });
    this.raw = createPublicKey(this.privateKey).export({ format: "der", type: "spki" }).subarray(PUBLIC.length);
    this.publicKey = this.raw.toString("base64");
  }

  bytes(text) {
    return sign(null, Buffer.from(text), this.privateKey);
  }

  sign(text) {
    return this.bytes(text).toString("base64");
  }
}

/** Whether a signature (base64) of a text verifies with a key (base64). */
export function verifies(publicKey, text, signature) {
  const key = createPublicKey({ key: Buffer.concat([PUBLIC, Buffer.from(publicKey, "base64")]), format: "der", type: "spki" });
  return verify(null, Buffer.from(text), key, Buffer.from(signature, "base64"));
}

export const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

/** Of `{}`. */
export const NO_TERMS = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

/** Millionths of a decimal amount. */
export function micros(amount) {
  const [whole, fraction = ""] = String(amount).split(".");
  return BigInt(whole) * 1_000_000n + BigInt(fraction.padEnd(6, "0"));
}

export const text = (purpose, ...fields) => ["muster-sig-v1", purpose, ...fields].join("\n");

export const offerText = (session, agent, no, amount, terms = NO_TERMS) => text("negotiation.offer", session, agent.id, no, micros(amount), terms);

export const acceptText = (session, agent, amount, [client, provider], terms = NO_TERMS) =>
  text("negotiation.accept", session, agent.id, micros(amount), micros(client), micros(provider), terms);

/** An agent with a key of its own, which it signs with. */
export async function signing(server, options = {}) {
  const signer = new Signer();
  const { more = {}, ...rest } = options;
  const agent = await server.agent({ price: "60", ...rest, more: { public_key: signer.publicKey, ...more } });
  return { ...agent, signer };
}

/** A signed offer of an agent: its body. */
export const offer = (session, agent, no, amount, terms) => ({ amount, signature: agent.signer.sign(offerText(session, agent, no, amount, terms)) });

/** A signed acceptance of an agent: its body. */
export const accept = (session, agent, amount, offers, terms) => ({ amount, signature: agent.signer.sign(acceptText(session, agent, amount, offers, terms)) });

/** What the server signs of an agreement, built anew from its fields. */
export function attestedText(agreement) {
  const key = (agent) => Buffer.from(agreement.public_keys[agent], "base64").toString("hex");
  const digest = ({ signature }) => sha256(Buffer.from(signature, "base64"));
  const { client_agent_id: client, provider_agent_id: provider } = agreement;
  return text(
    "negotiation.agreement",
    ...[agreement.id, agreement.session_id, agreement.task_id ?? "-", client, provider, key(client), key(provider)],
    ...[micros(agreement.base_price), micros(agreement.amount), agreement.terms_sha256],
    ...[digest(agreement.client_offer), digest(agreement.provider_offer), digest(agreement.accept), agreement.created_at],
  );
}
