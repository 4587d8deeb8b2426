// Elements by function. What is data becomes text, never markup.

/** An element with attributes (on… are listeners) and children; null and false are left out of both. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** As `h`, in SVG. */
export function s(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const find = (id) => document.getElementById(id);

// The control that the pointer presses, and the redraws that wait until it is let go: a control that is replaced
// between press and release is never clicked.
let pressed = null;
const waiting = new Map();
addEventListener("pointerdown", ({ target }) => { pressed = target.closest("a, button, input, label, summary, .target"); }, true);
for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => setTimeout(released), true);

function released() {
  pressed = null;
  const late = [...waiting];
  waiting.clear();
  for (const [container, children] of late) replace(container, ...children);
}

/** Put these children in place of what was there; the control that had the focus has it again, by its data-key. */
export function replace(container, ...children) {
  if (container.contains(pressed)) return void waiting.set(container, children);
  waiting.delete(container);
  const key = container.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  container.replaceChildren(...children.flat(2).filter(Boolean));
  if (key) container.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

/** A length within another, both from 0 to 1. Styles are set by property: the policy forbids style attributes. */
export function bar(whole, part, kind) {
  const [outer, inner] = [h("i"), h("b", { class: kind })];
  outer.style.inlineSize = `${100 * Math.min(1, whole)}%`;
  inner.style.inlineSize = `${100 * Math.min(1, part)}%`;
  return h("span", { class: "bar", "aria-hidden": "true" }, outer, inner);
}

/** Call `act` once nothing was asked for so long. */
export function settled(act, ms) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, ms);
  };
}
