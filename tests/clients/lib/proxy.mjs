// A TCP proxy in front of a node, so that a connection can break without either side wanting it.

import net from "node:net";

export class Proxy {
  static async before(server) {
    const proxy = new Proxy();
    proxy.pairs = new Set();
    proxy.listener = net.createServer((near) => {
      const far = net.connect(server.port, "127.0.0.1");
      const pair = [near, far];
      proxy.pairs.add(pair);
      near.pipe(far);
      far.pipe(near);
      for (const side of pair) {
        side.on("error", () => {});
        side.on("close", () => {
          pair.forEach((one) => one.destroy());
          proxy.pairs.delete(pair);
        });
      }
    });
    await new Promise((resolve) => proxy.listener.listen(0, "127.0.0.1", resolve));
    proxy.url = `http://127.0.0.1:${proxy.listener.address().port}`;
    return proxy;
  }

  /** Breaks every connection. */
  cut() {
    for (const pair of this.pairs) pair.forEach((side) => side.resetAndDestroy());
  }

  end() {
    this.cut();
    this.listener.close();
  }
}
