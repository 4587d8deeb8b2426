// Requests to the service: a token where one is asked for, patience where it is busy, questions followed to their end.

const ROOT = new URL("../", document.baseURI);
const KEY = "narrowgauge.token";
const PATIENCE = 20;
const POLL_S = 2;

/** Why the service refused; `status`, and smallest_ms where a budget was too small. */
export class Refusal extends Error {
  constructor(status, problem) {
    super(problem?.detail ?? `the service answered ${status}`);
    this.status = status;
    this.smallestMs = problem?.smallest_ms ?? null;
  }
}

let askForToken = null;

/** ask: shows a refusal and resolves when a token was stored. */
export function onUnauthorised(ask) {
  askForToken = ask;
}

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** The response to a request. Throws Refusal, with status 0 where there is no service. */
export async function send(method, path, body = undefined, signal = undefined) {
  for (let left = PATIENCE; ; left -= 1) {
    const used = token.get();
    const request = { method, signal, ...written(body, used), credentials: "omit" };
    const response = await fetch(new URL(path, ROOT), request).catch((error) => {
      throw error instanceof TypeError ? new Refusal(0, { detail: "The service does not answer. Is it running?" }) : error;
    });
    if (response.ok) return response;
    if (response.status === 401 && askForToken) {
      if (token.get() === used) await askForToken(used ? "That token is not known here, or has ended." : "");
    } else if ([429, 503].includes(response.status) && left > 0) {
      await pause(1000 * Number(response.headers.get("retry-after") ?? 1), signal);
    } else {
      throw new Refusal(response.status, await response.json().catch(() => null));
    }
  }
}

function written(body, used) {
  const headers = {};
  if (used) headers.authorization = `Bearer ${used}`;
  if (body === undefined) return { headers };
  headers["content-type"] = "application/json";
  return { headers, body: JSON.stringify(body) };
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}

export const get = async (path, signal) => (await send("GET", path, undefined, signal)).json();

/** Every row of a list, by its cursor; `seen` is shown what is there so far. */
export async function rows(path, seen = () => {}) {
  const [found, limit] = [[], 1000];
  for (let after = 0; ; after = found.at(-1).cursor) {
    const page = await get(`${path}${path.includes("?") ? "&" : "?"}after=${after}&limit=${limit}`);
    found.push(...page);
    seen(found);
    if (page.length < limit) return found;
  }
}

/** Ask a question and follow its job; `watch(done, total)`. An abort cancels the job. */
export async function ask(path, question, { watch = () => {}, signal } = {}) {
  const response = await send("POST", `${path}?wait=0`, question);
  if (response.status !== 202) return { response };
  const { id } = await response.json();
  const cancel = () => send("POST", `jobs/${id}/cancel`).catch(() => {});
  if (signal?.aborted) cancel();
  signal?.addEventListener("abort", cancel, { once: true });
  try {
    return { answer: await followed(id, watch, signal) };
  } finally {
    signal?.removeEventListener("abort", cancel);
  }
}

async function followed(id, watch, signal) {
  for (let wait = 0.2; ; wait = POLL_S) {
    const job = await get(`jobs/${id}?wait=${wait}`, signal);
    if (job.state === "done") return job.answer;
    if (job.state === "failed") throw new Refusal(422, job.error);
    if (job.state === "cancelled") throw new Refusal(409, { detail: "cancelled" });
    watch(job.done, job.total);
  }
}
