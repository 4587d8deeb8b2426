// Where the next millisecond would come from, and what would be widened first: the service's explanation of a plan.

import { find, h, replace } from "./dom.js";
import { fine, ms } from "./format.js";
import { badge } from "./compare.js";

const SHOWN = 6;

/** columns: [{letters, explanation}], explanation: an entry. */
export function drawExplanations(columns) {
  replace(find("explanations"), columns.map(({ letters, explanation }) => h("section", {},
    h("h4", {}, letters.map(badge), h("span", {}, headline(explanation))),
    explanation.state === "done" && [
      moves("To save, narrow", explanation.value.narrower, "Nothing can be narrowed further."),
      moves("With room, widen", explanation.value.wider, "Nothing can be wider."),
      h("p", { class: "soft" }, ends(explanation.value)),
    ])));
}

function headline({ state, value, problem }) {
  if (state === "failed") return problem.message;
  if (state === "asked") return "asking…";
  return value.price_per_ms === null ? "no price: the network's graph is too wide for one"
    : `a millisecond is worth ${fine(value.price_per_ms)} of all importance here`;
}

function moves(title, found, none) {
  if (!found.length) return h("p", { class: "soft" }, none);
  return h("table", {}, h("caption", {}, title),
    h("thead", {}, h("tr", {}, ["Group", "Channels", "ms", "Importance"].map((name, at) => h("th", { scope: "col", class: at ? "number" : null }, name)))),
    h("tbody", {}, found.slice(0, SHOWN).map((move) => h("tr", {},
      h("th", { scope: "row" }, h("code", {}, move.group)),
      h("td", { class: "number" }, `${move.width} → ${move.to}`),
      h("td", { class: "number" }, signed(move.ms, ms)),
      h("td", { class: "number" }, signed(move.importance, fine))))));
}

const signed = (value, written) => `${value < 0 ? "−" : "+"}${written(Math.abs(value))}`;

function ends({ full, least }) {
  return `${full.length} groups at full width, ${least.length} at the least allowed.`;
}
