// Widths per group and milliseconds per layer, before and after, a column per plan.

import { bar, find, h, replace } from "./dom.js";
import { ms } from "./format.js";
import { badge } from "./compare.js";

const SHOWN = 40;
const all = { widths: false, layers: false };

/** columns: [{letters, plan}]. A plan for several devices says the milliseconds of the first of them. */
export function drawBars(columns) {
  draw("widths", columns, groups(columns), (group, at) => group.widths[at], width);
  const first = columns.map(({ letters, plan }) => ({ letters: letters.slice(0, 1), plan }));
  draw("layers", first, layers(first), (layer, at) => layer.pairs[at], time);
  find("bars").classList.toggle("wide", columns.length > 1);
}

/** Let the controls of the tables redraw them. */
export function install(redraw) {
  for (const name of ["widths", "layers"]) {
    find(`${name}-order`).addEventListener("change", redraw);
    find(`${name}-more`).addEventListener("click", () => {
      all[name] = !all[name];
      redraw();
    });
  }
}

function draw(name, columns, rows, pair, cell) {
  const shown = all[name] ? rows : rows.slice(0, SHOWN);
  const most = columns.map((_, at) => Math.max(...rows.map((row) => pair(row, at)?.before ?? 0)));
  replace(find(`${name}-head`), h("tr", {},
    h("th", { scope: "col" }, name === "widths" ? "Group" : "Layer"),
    columns.map(({ letters }) => h("th", { scope: "col" }, h("div", {}, h("span", {}, letters.map(badge)), h("span", {}, "planned / full"))))));
  replace(find(`${name}-rows`), shown.map((row) => h("tr", {},
    h("th", { scope: "row", title: row.name }, h("code", {}, row.name), several(row)),
    columns.map(({ letters }, at) => cell(pair(row, at), most[at], letters)))));
  const more = find(`${name}-more`);
  more.hidden = rows.length <= SHOWN;
  more.textContent = all[name] ? `Show the first ${SHOWN}` : `Show all ${rows.length}`;
}

/** A module that is made of several operations says of how many: their milliseconds are summed. */
function several({ pairs }) {
  const calls = pairs?.find(Boolean).calls ?? 1;
  return calls > 1 && h("span", { class: "calls", title: `${calls} operations, summed` }, ` ×${calls}`);
}

function width(pair, most, letters) {
  if (!pair) return h("td", {}, "–");
  const { before, after } = pair;
  return cellOf(letters, before / most, after / most, [h("strong", {}, String(after)), ` / ${before}`], after === before);
}

function time(pair, most, letters) {
  if (!pair) return h("td", {}, "–");
  const { before, after } = pair;
  return cellOf(letters, before / (most || 1), after / (most || 1), [h("strong", {}, ms(after)), ` / ${ms(before)}`]);
}

function cellOf(letters, whole, part, text, same = false) {
  const kind = letters.length === 1 ? `of-${letters[0]}` : "of-all";
  return h("td", { class: same ? "same" : null }, h("div", {}, letters.length === 1 ? badge(letters[0]) : null,
    bar(whole, part, kind), h("span", { class: "pair" }, ...text)));
}

function groups(columns) {
  const names = [...new Set(columns.flatMap(({ plan }) => Object.keys(plan.widths)))];
  const rows = names.map((name) => ({
    name,
    widths: columns.map(({ plan }) => name in plan.widths && { before: plan.importance[name].length, after: plan.widths[name] }),
  }));
  return ordered("widths", rows, (row) => most(row.widths, (pair) => 1 - pair.after / pair.before));
}

function layers(columns) {
  const rows = new Map();
  columns.forEach(({ plan }, at) => {
    for (const { module, name, baseline_ms, ms: planned_ms } of plan.layers) {
      const row = rows.get(module || name) ?? { name: module || name, pairs: [] };
      const { before, after, calls } = row.pairs[at] ?? { before: 0, after: 0, calls: 0 };
      row.pairs[at] = { before: before + baseline_ms, after: after + planned_ms, calls: calls + 1 };
      rows.set(row.name, row);
    }
  });
  const by = find("layers-order").value === "slowest" ? (pair) => pair.after : (pair) => pair.before - pair.after;
  return ordered("layers", [...rows.values()], (row) => most(row.pairs, by));
}

function ordered(name, rows, worth) {
  return find(`${name}-order`).value === "given" ? rows : rows.sort((a, b) => worth(b) - worth(a));
}

const most = (pairs, by) => Math.max(...pairs.filter(Boolean).map(by));
