// Many things, some at a time.

/** Requests under way at a time while accounts are made. */
const AT_ONCE = 8;

/** Does something for each, some at a time, and keeps the order of what comes out. */
export async function each(items, work) {
  const results = [];
  const queue = items.map((item, index) => [item, index]);
  const hand = async () => {
    for (let next = queue.shift(); next; next = queue.shift()) results[next[1]] = await work(...next);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, hand));
  return results;
}

export const range = (count) => Array.from({ length: Math.max(0, count) }, (_, n) => n);
