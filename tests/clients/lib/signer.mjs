// Signs as an agent does, with nothing but Node's own crypto: Ed25519 over lines of text.

import { createHash, createPrivateKey, createPublicKey, randomBytes, sign } from "node:crypto";
import { decimal, micros } from "./money.mjs";

export { decimal, micros };

/** PKCS #8 around a 32-byte Ed25519 seed (RFC 8410). */
const PKCS8 = Buffer.from("302e020100300506032b657004220420", "hex");
const SPKI_HEAD_BYTES = 12;

/** Of `{}`, which stands for no terms. */
export const NO_TERMS = createHash("sha256").update("{}").digest("hex");

const statement = (purpose, ...fields) => ["muster-sig-v1", purpose, ...fields].join("\n");

export const statements = {
  offer: ({ session, agent, no, amount, terms = NO_TERMS }) => statement("negotiation.offer", session, agent, no, micros(amount), terms),
  accept: ({ session, agent, amount, client, provider, terms = NO_TERMS }) =>
    statement("negotiation.accept", session, agent, micros(amount), micros(client), micros(provider), terms),
  propose: (transfer) => statement("payment.propose", ...transferred(transfer)),
  acknowledge: (transfer) => statement("payment.ack", ...transferred(transfer)),
  close: ({ channel, nonce, a, b }) => statement("payment.close", channel, nonce, micros(a), micros(b)),
};

/** `a` and `b`: what the two have afterwards. */
const transferred = ({ channel, nonce, from, to, amount, a, b }) => [channel, nonce, from, to, micros(amount), micros(a), micros(b)];

export class Signer {
  constructor(seed = randomBytes(32)) {
    this.seed = Buffer.from(seed);
    this.key = createPrivateKey({ key: Buffer.concat([PKCS8, this.seed]), format: "der", type: "pkcs8" });
    /** As an agent registers it. */
    this.publicKey = createPublicKey(this.key).export({ format: "der", type: "spki" }).subarray(SPKI_HEAD_BYTES).toString("base64");
  }

  /** Base64, of a text. */
  sign(text) {
    return sign(null, Buffer.from(text), this.key).toString("base64");
  }
}

for (const purpose of Object.keys(statements)) {
  Signer.prototype[purpose] = function signStatement(fields) {
    return this.sign(statements[purpose](fields));
  };
}
