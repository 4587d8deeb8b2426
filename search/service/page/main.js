// The page: what is chosen, kept in the address; what follows, drawn anew whenever a choice or an answer changes it.

import * as address from "./address.js";
import * as bars from "./bars.js";
import * as tokens from "./token.js";
import { rows } from "./api.js";
import { drawApply } from "./apply.js";
import { BudgetControl } from "./budget.js";
import { drawFronts } from "./chart.js";
import { drawCompare } from "./compare.js";
import { DeviceList } from "./devices.js";
import { find, h, replace, settled } from "./dom.js";
import { drawExplanations } from "./explanation.js";
import { giga, plural } from "./format.js";
import { Planning } from "./planning.js";
import { Questions } from "./questions.js";

const EXPLAIN_AFTER_MS = 350;
const SEARCH_AFTER_MS = 250;
const ADDRESS_AFTER_MS = 150;
const SAID_MS = 5000;

const questions = new Questions(update);
const planning = new Planning(questions);
const list = new DeviceList({
  isChosen: (key) => planning.devices.has(key),
  toggle,
  networkName: (layers) => networks.find((each) => each.layers_fingerprint === layers)?.name,
});
const searched = settled(update, SEARCH_AFTER_MS);
const control = new BudgetControl({ moved, typed: setBudget });
const keepAddress = settled(() => {
  address.write({ ...planning, devices: planning.devices.keys() });
  find("this").href = location.search || "./";
}, ADDRESS_AFTER_MS); // browsers refuse an address that changes with every step of a slider
const hush = settled(() => (find("said").textContent = ""), SAID_MS);
const settle = settled(() => {
  settledAt = planning.budget;
  update();
}, EXPLAIN_AFTER_MS);
let networks = [];
let everything = [];
let settledAt = null;
let latest = []; // the columns drawn last: they stay until those of the next plan are there
let pending = false;

// ---- what is chosen ----------------------------------------------------------------------------------------------
function toggle(device, on) {
  if (!on) planning.remove(device.key);
  const fits = !on || planning.add(device);
  if (!fits) say("Six devices fit side by side. Remove one first.");
  update();
  return on && fits;
}

function moved(budget) {
  planning.budget = budget;
  if (planning.together) searched();
  else update();
}

function setBudget(budget) {
  planning.budget = budget;
  update();
}

async function setNetwork(fingerprint, budget = null) {
  planning.network = fingerprint;
  planning.budget = budget;
  latest = [];
  update();
  const before = planning.devices.size;
  const able = fingerprint ? await rows(`devices?network=${fingerprint}`) : null;
  if (planning.network !== fingerprint) return;
  const keys = able && new Set(able.map((row) => row.key));
  const touched = planning.devices.size !== before; // while the answer was on its way
  for (const key of [...planning.devices.keys()]) if (keys && !keys.has(key)) planning.remove(key);
  if (able?.length === 1 && !touched) planning.add(able[0]);
  list.limit(keys);
  update();
}

// ---- what follows ------------------------------------------------------------------------------------------------
function update() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => {
    pending = false;
    draw();
  });
}

function draw() {
  const ready = planning.network && planning.devices.size > 0;
  find("planned").hidden = !ready;
  find("plan-empty").hidden = Boolean(ready);
  keepAddress();
  if (!ready) return;
  planning.budget ??= planning.start();
  const views = planning.views();
  control.show(planning.stops(), planning.budget, views);
  find("together").checked = planning.together;
  find("together-label").hidden = planning.devices.size < 2;
  drawFronts(views, planning.budget, setBudget);
  drawColumns(views);
  drawCompare(views, { budget: planning.budget, price, remove, retry });
  if (planning.budget !== settledAt) settle();
}

/** The plans side by side: one for all devices, or one for each that has one. */
function columnsOf(views) {
  if (planning.together && views.length > 1) {
    return views[0].entry?.value ? [{ letters: views.map((view) => view.letter), entry: views[0].entry }] : [];
  }
  return views.filter(({ entry }) => entry?.value).map(({ letter, entry }) => ({ letters: [letter], entry }));
}

function drawColumns(views) {
  const columns = columnsOf(views);
  const waits = views.some(({ entry }) => entry?.state === "asked");
  if (!waits) latest = columns;
  find("bars").setAttribute("aria-busy", String(waits));
  if (waits && latest.length) return;
  const shown = columns.map(({ letters, entry }) => ({ letters, plan: entry.value.plan }));
  find("bars").hidden = !shown.length;
  bars.drawBars(shown);
  drawApply(columns, say);
  if (find("explain").open) drawExplanations(columns.map((each) => ({ ...each, explanation: explained(each.entry) })));
}

const explained = ({ value }) => questions.explanation(value.fingerprint);

/** What a millisecond costs, asked once the budget rests: null until it is known, undefined where there is no price. */
function price({ entry, letter }) {
  if (!entry?.value || planning.budget !== settledAt) return null;
  const isFirst = letter === planning.devices.values().next().value.letter;
  if (planning.together && !isFirst) return undefined; // a plan is explained for its first device
  const explanation = explained(entry);
  return explanation.state === "asked" ? null : (explanation.value?.price_per_ms ?? undefined);
}

function remove(key) {
  planning.remove(key);
  list.render();
  update();
  find("plan").focus();
}

function retry(key) {
  const { device } = planning.devices.get(key);
  const { state } = questions.front(planning.network, device);
  if (state === "asked") return remove(key);
  questions.drop(planning.network, device);
  update();
}


/** Say it aloud and for a moment on the screen. */
function say(text) {
  find("said").textContent = text;
  hush();
}

// ---- what is there -----------------------------------------------------------------------------------------------
async function load(view) {
  const shown = (seen) => {
    list.show(seen);
    performance.mark("narrowgauge-devices");
  };
  [networks, everything] = await Promise.all([rows("networks"), rows("devices", shown)]);
  showNetworks();
  const wanted = networks.find((each) => each.fingerprint === view.network) ?? (networks.length === 1 ? networks[0] : null);
  planning.together = view.together;
  for (const key of view.devices) {
    const device = everything.find((each) => each.key === key);
    if (device) planning.add(device);
  }
  find("network").value = wanted?.fingerprint ?? "";
  if (wanted) await setNetwork(wanted.fingerprint, view.budget);
  performance.mark("narrowgauge-interactive");
}

function showNetworks() {
  const url = new URL("../", document.baseURI).origin;
  replace(find("network"), h("option", { value: "" }, networks.length ? "Choose…" : "None was pushed yet"),
    networks.map((each) => h("option", { value: each.fingerprint },
      `${each.name} · ${plural(each.layers, "layer")} · ${giga(each.macs)}MAC · ${each.fingerprint.slice(0, 7)}`)));
  find("network").disabled = networks.length === 0;
  if (!networks.length) {
    replace(find("plan-empty"), "No network was pushed yet:", h("pre", {}, `search MODEL --input SHAPE --latency-budget 20ms --push ${url} -o plan.json`));
  }
}

async function refresh() {
  questions.forget();
  list.forget();
  const view = address.read();
  planning.devices.clear();
  await guarded(() => load(view));
  say("Loaded anew.");
}

/** Show what went wrong where everybody sees it. */
async function guarded(work) {
  try {
    await work();
    find("failure").hidden = true;
  } catch (error) {
    find("failure").hidden = false;
    find("failure").textContent = error.message;
  }
}

tokens.install();
bars.install(update);
find("network").addEventListener("change", (event) => guarded(() => setNetwork(event.target.value)));
find("together").addEventListener("change", (event) => {
  planning.together = event.target.checked;
  update();
});
find("explain").addEventListener("toggle", update);
find("refresh").addEventListener("click", refresh);
addEventListener("resize", settled(update, 100));
guarded(() => load(address.read()));
