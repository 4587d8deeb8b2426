// The fronts: importance kept over milliseconds, a line per device, and where the budget cuts them.

import { find, replace, s } from "./dom.js";
import { ms, percent } from "./format.js";

const [LEFT, RIGHT, TOP, BOTTOM] = [44, 22, 10, 26];

/** Draw the views' fronts; `choose(ms)` when a plan's point is clicked. */
export function drawFronts(views, budget, choose) {
  const svg = find("front");
  const [width, height] = [svg.clientWidth || 480, svg.clientHeight || 240];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const series = views.filter(({ front }) => front.state === "done");
  const points = series.flatMap(({ front }) => front.value.plans);
  if (!points.length) return replace(svg);
  const across = scale(points.map((plan) => plan.predicted_ms), LEFT, width - RIGHT, (width - LEFT) / 70);
  const up = scale(points.map((plan) => 100 * plan.importance_kept), height - BOTTOM, TOP, height / 45);
  replace(svg,
    grid(across, up, width, height),
    budgetLine(across, budget, height),
    series.map((view) => line(view, across, up, choose)),
    views.map((view) => here(view, across, up)));
}

function grid(across, up, width, height) {
  return [
    ...up.ticks.map((tick) => [
      s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: up.at(tick), y2: up.at(tick) }),
      s("text", { class: "tick end", x: LEFT - 8, y: up.at(tick) + 4 }, String(tick)),
    ]),
    ...across.ticks.map((tick) => s("text", { class: "tick middle", x: across.at(tick), y: height - 6 }, String(tick))),
  ].flat();
}

function budgetLine(across, budget, height) {
  if (budget === null || budget < across.least || budget > across.most) return null;
  return s("line", { class: "budget-line", x1: across.at(budget), x2: across.at(budget), y1: TOP, y2: height - BOTTOM });
}

function line({ letter, front }, across, up, choose) {
  const places = front.value.plans.map((plan) => [across.at(plan.predicted_ms), up.at(100 * plan.importance_kept), plan]);
  const last = places.at(-1);
  return s("g", { class: `of-${letter}` },
    s("polyline", { class: "line", points: places.map(([x, y]) => `${x},${y}`).join(" ") }),
    places.map(([x, y]) => s("circle", { class: "dot", cx: x, cy: y, r: 2.5 })),
    places.map(([x, y, plan]) => s("circle", { class: "target", cx: x, cy: y, r: 9, onclick: () => choose(plan.predicted_ms) },
      s("title", {}, `${letter}: ${ms(plan.predicted_ms)} ms, ${percent(plan.importance_kept)}`))),
    s("text", { class: "letter", x: last[0] + 7, y: last[1] + 4 }, letter));
}

function here({ letter, row }, across, up) {
  if (!row) return null;
  return s("circle", { class: `here of-${letter}`, cx: across.at(row.predicted_ms), cy: up.at(100 * row.importance_kept), r: 5.5 });
}

/** From values to places between two ends, with round numbers for about so many ticks. */
function scale(values, from, to, about) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const step = round((high - low || high || 1) / Math.max(2, about));
  const [least, most] = [Math.floor(low / step + 1e-9) * step, Math.ceil(high / step - 1e-9) * step || step];
  const ticks = [];
  for (let number = Math.round(least / step); number <= Math.round(most / step); number += 1) {
    ticks.push(Number((number * step).toPrecision(6)));
  }
  return { least, most, ticks, at: (value) => from + ((value - least) / (most - least || 1)) * (to - from) };
}

function round(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  return [1, 2, 5, 10].find((factor) => factor * power >= step * 0.999) * power;
}
