// Signs as an agent does, with nothing but Node's own crypto: Ed25519 over lines of text. Nothing of the server's code.

import { createPrivateKey, createPublicKey, randomBytes, sign, verify } from "node:crypto";

/** What stands before the 32 bytes of a private and of a public key in their DER forms (RFC 8410). */
const PRIVATE = Buffer.from("302e020100300506032b657004220420", "hex");
const PUBLIC = Buffer.from("302a300506032b6570032100", "hex");

/** Of `{}`, which stands for no terms. */
export const NO_TERMS = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

/** A decimal amount in millionths, as it is signed. */
export function micros(amount) {
  const [whole, fraction = ""] = String(amount).split(".");
  return BigInt(whole) * 1_000_000n + BigInt(fraction.padEnd(6, "0"));
}

/** Millionths as a decimal string. */
export function decimal(value) {
  const [whole, fraction] = [value / 1_000_000n, value % 1_000_000n];
  return fraction === 0n ? `${whole}` : `${whole}.${String(fraction).padStart(6, "0").replace(/0+$/, "")}`;
}

/** What is signed: fields, one a line, under what they are for. */
export const text = (purpose, ...fields) => ["muster-sig-v1", purpose, ...fields].join("\n");

/** `a` and `b`: what the two have afterwards. */
const transferred = ({ channel, nonce, from, to, amount, a, b }) => [channel, nonce, from, to, micros(amount), micros(a), micros(b)];

export const statements = {
  offer: ({ session, agent, no, amount, terms = NO_TERMS }) => text("negotiation.offer", session, agent, no, micros(amount), terms),
  accept: ({ session, agent, amount, client, provider, terms = NO_TERMS }) =>
    text("negotiation.accept", session, agent, micros(amount), micros(client), micros(provider), terms),
  propose: (transfer) => text("payment.propose", ...transferred(transfer)),
  ack: (transfer) => text("payment.ack", ...transferred(transfer)),
  close: (channel, nonce, a, b) => text("payment.close", channel, nonce, micros(a), micros(b)),
};

/** A key pair that signs texts: of a seed, or any. */
export class Signer {
  constructor(seed = randomBytes(32)) {
    this.seed = seed;
    this.privateKey = createPrivateKey({ key: Buffer.concat([PRIVATE, seed]), format: "der", type: "pkcs8" });
    this.raw = createPublicKey(this.privateKey).export({ format: "der", type: "spki" }).subarray(PUBLIC.length);
    /** As an agent registers it. */
    this.publicKey = this.raw.toString("base64");
  }

  bytes(signed) {
    return sign(null, Buffer.from(signed), this.privateKey);
  }

  sign(signed, spelling = "base64") {
    return this.bytes(signed).toString(spelling);
  }
}

/** Whether a signature (base64) of a text verifies with a key (base64). */
export function verifies(publicKey, signed, signature) {
  const key = createPublicKey({ key: Buffer.concat([PUBLIC, Buffer.from(publicKey, "base64")]), format: "der", type: "spki" });
  return verify(null, Buffer.from(signed), key, Buffer.from(signature, "base64"));
}
