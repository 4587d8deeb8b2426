// What is planned: a network, some devices, one budget for them all; and what each of them gets for it.

const LETTERS = ["A", "B", "C", "D", "E", "F"];
const ROUNDING = 1e-9;

/** The choices of whoever looks, and the views that follow from them and from the answers there are. */
export class Planning {
  network = "";
  devices = new Map(); // key → {device, letter}
  budget = null; // ms
  together = false;

  constructor(questions) {
    this.questions = questions;
  }

  /** Add a device; false where there is no room beside the others. */
  add(device) {
    const taken = new Set([...this.devices.values()].map((each) => each.letter));
    const letter = LETTERS.find((each) => !taken.has(each));
    if (letter) this.devices.set(device.key, { device, letter });
    return Boolean(letter);
  }

  remove(key) {
    this.questions.drop(this.network, this.devices.get(key).device);
    this.devices.delete(key);
  }

  /** [{device, letter, front}] in the order chosen. */
  fronts() {
    return [...this.devices.values()].map((each) => ({
      ...each, front: this.questions.front(this.network, each.device),
    }));
  }

  /** The budgets at which some device's plan changes, ascending: the milliseconds of every plan of every front. */
  stops() {
    const found = this.fronts().flatMap(({ front }) => front.value?.plans.map((plan) => plan.predicted_ms) ?? []);
    return [...new Set(found)].sort((a, b) => a - b);
  }

  /** Where the slider starts: at the knee of the first front there is. */
  start() {
    const found = this.fronts().find(({ front }) => front.state !== "failed")?.front.value;
    return found ? found.plans[(found.knee ?? found.plans.length) - 1].predicted_ms : null;
  }

  /** Whether the budget is none of the fronts' own, as far as they are known, so that a plan is searched for it. */
  isTyped() {
    if (this.fronts().some(({ front }) => front.state === "asked")) return false;
    return !this.stops().some((stop) => Math.abs(stop - this.budget) <= ROUNDING * stop);
  }

  /** What each device gets: {device, letter, front, entry, row}, entry: of the plan, row: its figures there. */
  views() {
    const fronts = this.fronts();
    if (this.budget === null) return fronts.map((each) => ({ ...each, entry: null, row: null }));
    if (this.together && fronts.length > 1) return this.#shared(fronts);
    const typed = this.isTyped();
    return fronts.map((each) => (each.front.state !== "done" ? { ...each, entry: null, row: null }
      : typed ? this.#exact(each) : this.#nearest(each)));
  }

  #nearest(each) {
    const { plans, baseline_ms } = each.front.value;
    const found = plans.findLast((plan) => plan.predicted_ms <= this.budget * (1 + ROUNDING));
    if (!found) return { ...each, entry: null, row: null, least: plans[0].predicted_ms };
    const { predicted_ms, importance_kept, status, gap } = found;
    const row = { predicted_ms, baseline_ms, importance_kept, status, gap };
    return { ...each, entry: this.questions.kept(found.fingerprint), row };
  }

  #exact(each) {
    const least = each.front.value.plans[0].predicted_ms;
    if (this.budget < least * (1 - 1e-6)) return { ...each, entry: null, row: null, least };
    const entry = this.questions.plan(this.network, [each.device], this.budget);
    return { ...each, entry, row: entry.value && figures(entry.value, entry.value.plan) };
  }

  #shared(fronts) {
    const entry = this.questions.plan(this.network, fronts.map((each) => each.device), this.budget);
    const promises = entry.value ? [entry.value.plan, ...entry.value.plan.others] : [];
    return fronts.map((each, at) => ({ ...each, entry, row: entry.value && figures(entry.value, promises[at]) }));
  }
}

function figures({ plan, kept }, { predicted_ms, baseline_ms }) {
  return { predicted_ms, baseline_ms, importance_kept: kept, status: plan.status, gap: plan.gap };
}
