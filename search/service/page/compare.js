// The devices side by side: what each of them gets for the budget, and what a millisecond costs there.

import { find, h, replace } from "./dom.js";
import { fine, ms, percent } from "./format.js";

/** The mark that a device has in chart and tables: a letter, so that it does not hang on colour. */
export const badge = (letter) => h("span", { class: `badge of-${letter}` }, letter);

/** A row per device. price(view): share per ms, null while unknown; remove(key), retry(key). */
export function drawCompare(views, { budget, price, remove, retry }) {
  replace(find("compare-rows"), views.map((view) => {
    const { device, letter } = view;
    return h("tr", {},
      h("th", { scope: "row" }, h("span", { class: "device" }, badge(letter),
        h("span", {}, device.machine, h("span", { class: "soft" }, `${device.runtime} ${device.precision} · ${device.threads} t · ${device.version}`)))),
      cells(view, { budget, price, retry }),
      h("td", { class: "more" }, h("button", {
        type: "button", class: "quiet", "data-key": `remove-${device.key}`, "aria-label": `Remove ${device.id}`,
        onclick: () => remove(device.key),
      }, "×")));
  }));
}

function cells(view, { budget, price, retry }) {
  const { front, row, entry, least, device } = view;
  if (front.state === "asked") return said(progress(front), stop("Cancel", device, retry));
  const failed = front.state === "failed" ? front.problem : entry?.state === "failed" ? entry.problem : null;
  if (failed) return said(failed.message, front.state === "failed" && stop("Try again", device, retry));
  if (least) return said(`cannot keep ${ms(budget)} ms: its fastest plan takes ${ms(least)} ms`);
  if (!row) return said("searching…");
  const cost = price(view);
  return [
    number("Full, ms", ms(row.baseline_ms)),
    number("Planned, ms", h("strong", {}, ms(row.predicted_ms))),
    number("Faster", `${(row.baseline_ms / row.predicted_ms).toFixed(2)}×`),
    number("Importance kept", h("strong", {}, percent(row.importance_kept)), row.status !== "optimal" && h("span", { class: "soft" }, `gap ${fine(row.gap)}`)),
    number("1 ms costs", cost === null ? "…" : cost === undefined ? "–" : fine(cost)),
  ];
}

function progress({ done, total }) {
  const bar = h("progress", { "aria-label": "Plans of the front" });
  if (total) Object.assign(bar, { max: total, value: done });
  return h("span", { class: "progress" }, bar, total ? ` ${done} of ${total} plans` : " queued");
}

const said = (...inside) => h("td", { class: "said", colspan: 5 }, ...inside);
const number = (label, ...inside) => h("td", { class: "number", "data-label": label }, ...inside);
const stop = (text, device, act) => h("button", {
  type: "button", class: "quiet", "data-key": `retry-${device.key}`, onclick: () => act(device.key),
}, text);
