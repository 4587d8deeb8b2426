// What is looked at stands in the address, so that a view can be kept, sent and reloaded. A token never does.

const PATTERNS = { network: /^[0-9a-f]{64}$/, device: /^[0-9a-f]{16}$/ };

/** The view that the address names: {network, devices, budget, together}. */
export function read() {
  const query = new URLSearchParams(location.search);
  const network = query.get("network") ?? "";
  const budget = Number.parseFloat(query.get("budget"));
  return {
    network: PATTERNS.network.test(network) ? network : "",
    devices: query.getAll("device").filter((key) => PATTERNS.device.test(key)),
    budget: budget > 0 && Number.isFinite(budget) ? budget : null,
    together: query.get("together") === "1",
  };
}

/** Name this view in the address, without a step in the history. */
export function write({ network, devices, budget, together }) {
  const query = new URLSearchParams();
  if (network) query.set("network", network);
  for (const key of devices) query.append("device", key);
  if (budget) query.set("budget", String(budget));
  if (together) query.set("together", "1");
  history.replaceState(null, "", query.size ? `?${query}` : "./");
}
