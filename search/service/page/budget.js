// The budget: a slider over the fronts' plans, and a field for any other number of milliseconds.

import { find } from "./dom.js";
import { ms, percent } from "./format.js";

/** `moved(ms)` when the slider stops somewhere new, `typed(ms)` when a number was given. */
export class BudgetControl {
  #stops = [];

  constructor({ moved, typed }) {
    find("slider").addEventListener("input", () => moved(this.#stops[find("slider").valueAsNumber]));
    find("budget").addEventListener("change", () => {
      const value = find("budget").valueAsNumber;
      if (value > 0 && Number.isFinite(value)) typed(value);
    });
  }

  /** stops: milliseconds, ascending; views: what the budget gives, to be said aloud. */
  show(stops, budget, views) {
    const [slider, field] = [find("slider"), find("budget")];
    this.#stops = stops;
    slider.disabled = field.disabled = stops.length === 0;
    if (!stops.length || budget === null) return;
    slider.max = String(stops.length - 1);
    slider.value = String(Math.max(0, stops.findLastIndex((stop) => stop <= budget * (1 + 1e-9))));
    slider.setAttribute("aria-valuetext", said(budget, views));
    if (document.activeElement !== field || Math.abs(field.valueAsNumber - budget) > 1e-3 * budget) field.value = written(budget);
    find("least").textContent = `${ms(stops[0])} ms`;
    find("most").textContent = `${ms(stops.at(-1))} ms`;
  }
}

/** Rounded up in the sixth digit, so that what is written would keep the plan that it is of. */
function written(budget) {
  const scale = 10 ** (5 - Math.floor(Math.log10(budget)));
  return String(Number((Math.ceil(budget * scale - 1e-6) / scale).toPrecision(12)));
}

function said(budget, views) {
  const parts = views.map(({ letter, row }) => row && `${letter} keeps ${percent(row.importance_kept)}`);
  return [`${ms(budget)} milliseconds`, ...parts.filter(Boolean)].join(", ");
}
