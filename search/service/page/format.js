// How figures are written.

/** Milliseconds to four digits. */
export function ms(value) {
  if (!Number.isFinite(value)) return "–";
  return value >= 1000 ? value.toFixed(0) : value >= 100 ? value.toFixed(1) : value >= 10 ? value.toFixed(2) : value.toFixed(3);
}

/** A share as a percentage. */
export function percent(share, digits = 1) {
  return Number.isFinite(share) ? `${(100 * share).toFixed(digits)} %` : "–";
}

/** 1,234. */
export const count = (value) => Math.round(value).toLocaleString("en");

/** 54.4 G, of operations. */
export function giga(value) {
  const [size, unit] = value >= 1e9 ? [1e9, "G"] : [1e6, "M"];
  return `${Number((value / size).toPrecision(3))} ${unit}`;
}

/** A small share to two digits, as a percentage. */
export function fine(share) {
  if (!Number.isFinite(share)) return "–";
  return `${share >= 1 || share === 0 ? (100 * share).toFixed(0) : (100 * share).toPrecision(2)} %`;
}

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

const STEPS = [["min", 60], ["h", 60], ["d", 24], ["mo", 30.4], ["y", 12]];

/** How long ago; empty for what is no time. */
export function ago(stamp, now = Date.now()) {
  let [amount, name] = [(now - Date.parse(stamp)) / 1000, "s"];
  if (!Number.isFinite(amount)) return "";
  if (amount < 60) return "just now";
  for (const [unit, size] of STEPS) {
    if (amount < size) break;
    [amount, name] = [amount / size, unit];
  }
  return `${Math.floor(amount)} ${name} ago`;
}

/** A stamp as date and minute, in UTC; as it was sent where it is no time. */
export function date(stamp) {
  const parsed = new Date(/Z|[+-]\d\d:\d\d$/.test(stamp) ? stamp : `${stamp}Z`);
  return Number.isNaN(parsed.valueOf()) ? String(stamp) : parsed.toISOString().slice(0, 16).replace("T", " ");
}
