// Which node a task's stream belongs to, as the nodes compute it (protocol/src/cluster/owner.rs): rendezvous hashing.

const MASK = (1n << 64n) - 1n;

export function score(name, task) {
  const bytes = [...Buffer.from(name), 0xff, ...Buffer.from(task.replaceAll("-", ""), "hex")];
  let hash = bytes.reduce((sum, byte) => ((sum ^ BigInt(byte)) * 0x100_0000_01b3n) & MASK, 0xcbf2_9ce4_8422_2325n);
  hash = ((hash ^ (hash >> 30n)) * 0xbf58_476d_1ce4_e5b9n) & MASK;
  hash = ((hash ^ (hash >> 27n)) * 0x94d0_49bb_1331_11ebn) & MASK;
  return hash ^ (hash >> 31n);
}

/** The owner among these nodes. */
export const ownerOf = (task, names) => [...names].sort().reduce((best, name) => (best === null || score(name, task) >= score(best, task) ? name : best), null);
