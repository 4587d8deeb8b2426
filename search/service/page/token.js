// The token, where the service asks for one: in this tab's session storage and nowhere else.

import { onUnauthorised, token } from "./api.js";
import { find } from "./dom.js";

let waiting = null;

/** Show the field when the service refuses for want of a token. */
export function install() {
  const dialog = find("token-dialog");
  find("token").addEventListener("click", () => open(""));
  find("token-close").addEventListener("click", () => dialog.close());
  find("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    token.set(find("token-field").value.trim());
    given();
  });
  find("token-forget").addEventListener("click", () => {
    token.set(null);
    location.reload();
  });
  find("token").hidden = !token.get();
  onUnauthorised((said) => {
    waiting ??= Promise.withResolvers();
    open(said);
    return waiting.promise;
  });
}

function open(said) {
  find("token").hidden = false;
  find("token-said").hidden = !said;
  find("token-said").textContent = said;
  find("token-field").value = "";
  find("token-forget").hidden = !token.get();
  if (!find("token-dialog").open) find("token-dialog").showModal();
}

function given() {
  find("token-dialog").close();
  waiting?.resolve();
  waiting = null;
}
