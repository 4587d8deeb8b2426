// What was asked of the service: fronts, plans, explanations. Each is asked once, and is an entry that fills.

import { ask, send } from "./api.js";

const PLANS_OF_A_FRONT = 24;
const KEPT = 400;

/** Entries are {state: "asked" | "done" | "failed", done, total, value, problem}; `changed` is called as they fill. */
export class Questions {
  #entries = new Map();

  constructor(changed) {
    this.changed = changed;
  }

  /** The front of a network on a device: front.json, with a fingerprint per plan. */
  front(network, device) {
    const question = { network, device: named(device), count: PLANS_OF_A_FRONT };
    return this.#once(`front ${network} ${device.key}`, async (options) => {
      const { answer, response } = await ask("fronts", question, options);
      return answer ?? response.json();
    });
  }

  /** One plan that keeps the budget on every one of these devices: {fingerprint, text, plan, kept}. */
  plan(network, devices, budget) {
    const targets = devices.map((device) => ({ ...named(device), budget: `${budget}ms` }));
    return this.#once(`plan ${JSON.stringify([network, targets])}`, async (options) => {
      const { answer, response } = await ask("plans", { network, devices: targets }, options);
      return fetched(answer?.plan ?? response.headers.get("location").split("/").at(-1));
    });
  }

  /** A plan that is kept, by its fingerprint. */
  kept(fingerprint) {
    return this.#once(`kept ${fingerprint}`, () => fetched(fingerprint));
  }

  /** What a plan's next millisecond costs. */
  explanation(fingerprint) {
    return this.#once(`explanation ${fingerprint}`, async (options) => {
      const { answer, response } = await ask("explanations", { plan: fingerprint }, options);
      return answer ?? response.json();
    });
  }

  /** Stop a front's job, or forget that it failed. */
  drop(network, device) {
    const key = `front ${network} ${device.key}`;
    if (this.#entries.get(key)?.state !== "done") {
      this.#entries.get(key)?.abort.abort();
      this.#entries.delete(key);
    }
  }

  /** Ask anew from now on: tables may have changed. */
  forget() {
    for (const entry of this.#entries.values()) if (entry.state === "asked") entry.abort.abort();
    this.#entries.clear();
  }

  /** The entry of that key, made if there is none; those that nobody looked at for longest are let go. */
  #once(key, work) {
    const entry = this.#entries.get(key) ?? this.#started(work);
    this.#entries.delete(key);
    this.#entries.set(key, entry);
    if (this.#entries.size > KEPT) this.#entries.delete(this.#entries.keys().next().value);
    return entry;
  }

  #started(work) {
    const entry = { state: "asked", done: 0, total: 0, value: null, problem: null, abort: new AbortController() };
    const watch = (done, total) => {
      Object.assign(entry, { done, total });
      this.changed();
    };
    work({ watch, signal: entry.abort.signal })
      .then((value) => Object.assign(entry, { state: "done", value }))
      .catch((problem) => Object.assign(entry, { state: "failed", problem }))
      .finally(() => this.changed());
    return entry;
  }
}

/** A device as a question names it. */
function named({ id, version }) {
  return { device: id, version };
}

async function fetched(fingerprint) {
  const text = await (await send("GET", `plans/${fingerprint}`)).text();
  const plan = JSON.parse(text);
  const whole = sum(Object.values(plan.importance).map(sum)) || 1;
  return { fingerprint, text, plan, kept: plan.objective / whole };
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
