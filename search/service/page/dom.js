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

/** Put these children in place of what was there; the control that had the focus has it again, by its data-key. */
export function replace(container, ...children) {
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
