// The devices: what was measured there, when and how well. A page of rows at a time, however many there are.

import { get } from "./api.js";
import { find, h, replace, settled } from "./dom.js";
import { ago, count, date, ms, percent, plural } from "./format.js";

const PER_PAGE = matchMedia("(max-width: 720px)").matches ? 5 : 10;
const SORTS = {
  name: (row) => row.id,
  runtime: (row) => `${row.runtime} ${row.precision} ${String(row.threads).padStart(4, "0")} ${row.version}`,
  rows: (row) => row.measured.rows,
  networks: (row) => row.measured.networks,
  measured: (row) => row.measured.measured_at,
  spread: (row) => row.measured.spread,
  contention: (row) => row.measured.contention,
};

/** The list of devices; `toggle(key, on)` returns whether the device is chosen then. */
export class DeviceList {
  #rows = [];
  #able = null;
  #shown = [];
  #page = 0;
  #sort = { by: null, down: false };
  #histories = new Map();

  constructor({ isChosen, toggle, networkName }) {
    Object.assign(this, { isChosen, toggle, networkName });
    find("find").addEventListener("input", settled(() => this.#restart(), 60));
    find("able").addEventListener("change", () => this.#restart());
    find("previous").addEventListener("click", () => this.#turn(-1));
    find("next").addEventListener("click", () => this.#turn(1));
    for (const button of document.querySelectorAll("[data-sort]")) {
      button.addEventListener("click", () => this.#sortBy(button));
    }
  }

  /** rows: every device, as far as they are known. */
  show(rows) {
    this.#rows = rows;
    for (const row of rows) row.text ??= words(row);
    this.#filter();
  }

  /** keys: the devices that the chosen network can be searched for; null where none is chosen. */
  limit(keys) {
    this.#able = keys;
    find("able").parentElement.hidden = !keys;
    this.#restart();
  }

  /** Forget the histories that were fetched. */
  forget() {
    this.#histories.clear();
  }

  render() {
    const rows = this.#shown.slice(this.#page * PER_PAGE, (this.#page + 1) * PER_PAGE);
    replace(find("devices-rows"), rows.map((row) => [this.#row(row), this.#history(row)]));
    find("devices-table").hidden = !rows.length;
    this.#renderPager();
    this.#renderEmpty();
  }

  #restart() {
    this.#page = 0;
    this.#filter();
  }

  #filter() {
    const terms = find("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const only = this.#able && find("able").checked ? this.#able : null;
    const { by, down } = this.#sort;
    this.#shown = this.#rows.filter(
      (row) => (!only || only.has(row.key)) && terms.every((term) => row.text.includes(term)),
    );
    if (by) this.#shown.sort((a, b) => (down ? -1 : 1) * compare(SORTS[by](a), SORTS[by](b)));
    this.#page = Math.min(this.#page, this.#last());
    this.render();
  }

  #last = () => Math.max(0, Math.ceil(this.#shown.length / PER_PAGE) - 1);

  #turn(by) {
    this.#page = Math.max(0, Math.min(this.#last(), this.#page + by));
    this.render();
  }

  #sortBy(button) {
    const by = button.dataset.sort;
    this.#sort = { by, down: this.#sort.by === by && !this.#sort.down };
    for (const head of document.querySelectorAll("#devices-table th[aria-sort]")) {
      head.setAttribute("aria-sort", !head.contains(button) ? "none" : this.#sort.down ? "descending" : "ascending");
    }
    this.#restart();
  }

  #row(row) {
    const { measured } = row;
    const box = h("input", { type: "checkbox", id: `choose-${row.key}`, "data-key": `choose-${row.key}` });
    const able = !this.#able || this.#able.has(row.key);
    box.checked = this.isChosen(row.key);
    box.disabled = !able && !box.checked;
    box.setAttribute("aria-label", `Plan for ${row.id}`);
    box.addEventListener("change", () => (box.checked = this.toggle(row, box.checked)));
    return h("tr", { class: able ? null : "unable" },
      h("td", { class: "tick" }, box),
      h("th", { scope: "row" },
        h("label", { for: box.id }, row.machine),
        h("span", { class: "soft" }, [row.accelerator || row.processor, plural(row.cores, "core"), row.features].filter(Boolean).join(" · ")),
        measured.synthetic && h("em", { class: "mark", title: "Computed by a formula, not measured" }, "synthetic"),
        !able && h("em", { class: "mark" }, "has not measured this network")),
      h("td", { "data-label": "Runtime" }, `${row.runtime} ${row.precision}`,
        h("span", { class: "soft" }, `${plural(row.threads, "thread")} · ${row.version}`)),
      h("td", { class: "number", "data-label": "Rows" }, count(measured.rows)),
      h("td", { class: "number", "data-label": "Networks" }, count(measured.networks)),
      h("td", { "data-label": "Measured" }, h("time", { datetime: measured.measured_at }, date(measured.measured_at)),
        h("span", { class: "soft" }, ago(measured.measured_at))),
      h("td", { class: "number", "data-label": "Spread" }, percent(measured.spread)),
      h("td", { class: "number", "data-label": "Others took" }, percent(measured.contention)),
      h("td", { class: "more" },
        h("button", {
          type: "button", class: "quiet", "data-key": `history-${row.key}`, "aria-expanded": String(this.#histories.has(row.key)),
          "aria-label": `History of ${row.id}`, onclick: () => this.#toggleHistory(row.key),
        }, "History")));
  }

  async #toggleHistory(key) {
    if (this.#histories.delete(key)) return this.render();
    this.#histories.set(key, null);
    this.render();
    const found = await get(`devices/${key}`).then((device) => device.history, (error) => error);
    if (!this.#histories.has(key)) return;
    this.#histories.set(key, found);
    this.render();
  }

  #history(row) {
    if (!this.#histories.has(row.key)) return null;
    const found = this.#histories.get(row.key);
    const inside = found === null ? "Loading…" : found instanceof Error ? found.message : this.#profiles(row, found);
    return h("tr", { class: "history" }, h("td", { colspan: 9 }, inside));
  }

  #profiles(row, history) {
    const head = ["Network", "Full, ms", "Configurations", "Rows", "Spread", "Others took", "Measured", "Pushed", "By", ""];
    return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `What ${row.id} pushed` },
      h("table", {},
        h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", {}, history.map((profile) => h("tr", { class: profile.counts ? null : "replaced" },
          h("td", {}, this.networkName(profile.network) ?? h("code", {}, profile.network)),
          h("td", { class: "number" }, ms(profile.baseline_ms)),
          h("td", { class: "number" }, count(profile.configurations)),
          h("td", { class: "number" }, count(profile.rows)),
          h("td", { class: "number" }, percent(profile.spread)),
          h("td", { class: "number" }, percent(profile.contention)),
          h("td", {}, date(profile.measured_at)),
          h("td", {}, date(profile.pushed_at)),
          h("td", {}, profile.pushed_by),
          h("td", {}, profile.counts ? "counts" : "replaced"))))));
  }

  #renderPager() {
    const [last, shown] = [this.#last(), this.#shown.length];
    const first = this.#page * PER_PAGE + 1;
    find("pager").hidden = last === 0;
    find("page").textContent = `${count(first)}–${count(Math.min(shown, first + PER_PAGE - 1))} of ${count(shown)}`;
    // Not disabled: a button that is would lose the focus under the finger that pressed it.
    find("previous").setAttribute("aria-disabled", String(this.#page === 0));
    find("next").setAttribute("aria-disabled", String(this.#page === last));
    const all = this.#rows.length;
    find("devices-count").textContent = !all ? "" : shown === all ? count(all) : `${count(shown)} of ${count(all)}`;
  }

  #renderEmpty() {
    const empty = find("devices-empty");
    empty.hidden = this.#shown.length > 0;
    if (empty.hidden) return;
    const url = new URL("../", document.baseURI).origin;
    const push = h("pre", {}, `profile-device MODEL --input SHAPE --push ${url}`);
    replace(empty, this.#rows.length
      ? ["No device here is called so", this.#able && find("able").checked ? ", or none of them measured this network. On a device that has not:" : ".", this.#able && push]
      : ["No device has pushed yet. On each of them:", push]);
  }
}

function words(row) {
  const { id, processor, features, accelerator, version, runtime, precision } = row;
  return [id, processor, features, accelerator, version, runtime, precision].join(" ").toLowerCase();
}

const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
