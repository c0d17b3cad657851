// What the tests of negotiations share: agents that sign, and what they send.

import { createHash } from "node:crypto";
import { micros, Signer, statements, text } from "./signer.mjs";

export const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

export const offerText = (session, agent, no, amount, terms) => statements.offer({ session, agent: agent.id, no, amount, terms });

export const acceptText = (session, agent, amount, [client, provider], terms) => statements.accept({ session, agent: agent.id, amount, client, provider, terms });

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
