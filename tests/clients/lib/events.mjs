// Listening to the events of an agent or of a hirer.

import { join } from "./phoenix.mjs";
import { until } from "./server.mjs";

/** Joins the topic of an agent (who has a key) or a user (who has a token), and notes all that comes, in order. */
export async function listen(connections, server, who) {
  const [mount, credential, topic] = who.token ? ["/socket/hirer", who.token, `hirer:${who.id}`] : ["/socket/agent", who.key, `agent:${who.id}`];
  const socket = await connections.socket(server, mount, credential);
  const channel = socket.channel(topic, {});
  const events = [];
  channel.onMessage = (event, payload) => {
    const ours = !event.startsWith("phx_") && !event.startsWith("chan_reply") && !event.startsWith("presence_");
    if (ours) events.push({ event, payload });
    return payload;
  };
  const joined = await join(channel);
  if (joined.status !== "ok") throw new Error(`${topic}: ${JSON.stringify(joined)}`);
  return {
    socket,
    channel,
    events,
    names: () => events.map((one) => one.event),
    /** Waits for an event of that name that fits, and gives its payload. */
    next: (event, fits = () => true) => until(`${event} on ${topic}`, () => events.find((one) => one.event === event && fits(one.payload))?.payload),
    /** What has come so far, and forgets it. */
    take: () => events.splice(0),
  };
}
