// What takes a plan to the machine that trains: plan.json as the service keeps it, and the command that applies it.

import { find, h, replace } from "./dom.js";
import { badge } from "./compare.js";

/** columns: [{letters, entry}]; say: tells what was done. */
export function drawApply(columns, say) {
  replace(find("apply"), columns.map(({ letters, entry }) => {
    const { text, plan, fingerprint } = entry.value;
    const several = columns.length > 1;
    const name = several ? `plan-${letters.join("")}-${plan.device}.json` : "plan.json";
    const command = commandOf(plan, name, several ? `thin-${letters.join("")}` : "thin");
    return h("div", { class: "row" },
      letters.map(badge),
      h("code", { class: "command", tabindex: "0" }, command),
      h("button", { type: "button", "data-key": `copy-${letters[0]}`, onclick: (event) => copy(command, event.currentTarget, say) }, "Copy command"),
      h("button", { type: "button", class: "main", "data-key": `download-${letters[0]}`, title: fingerprint, onclick: () => download(name, text) }, `Download ${several ? "plan" : name}`));
  }));
}

/** Words in capitals are for the reader to fill in; the plan itself remembers photos or task, if it knew them. */
function commandOf({ model, feed }, file, folder) {
  const weights = model.weights_sha256 ? ["--weights", "WEIGHTS"] : [];
  const data = feed.images || feed.task ? [] : ["--images", "PHOTOS"];
  return ["apply-plan", file, ...weights, ...data, "-o", folder].join(" ");
}

function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** The clipboard is for secure origins only; elsewhere the older way is left. */
async function copy(text, button, say) {
  const done = await navigator.clipboard?.writeText(text).then(() => true, () => false) || copiedByHand(text);
  say(done ? "The command is in the clipboard." : "The browser refused; select the command and copy it.");
  if (done) marked(button);
}

function copiedByHand(text) {
  const [field, before] = [h("textarea", { class: "hidden", "aria-hidden": "true" }, text), document.activeElement];
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  before?.focus();
  return done;
}

function marked(button) {
  const text = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = text), 1500);
}
