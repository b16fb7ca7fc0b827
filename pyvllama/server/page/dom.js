// Elements, made without a line of markup: what a model or a file says only ever becomes text.

/** The element of an id in index.html. */
export const byId = (id) => document.getElementById(id);

/**
 * A new element.
 * @param {string} tag
 * @param {Object} attributes `class`, `aria-label` ...; true stands for an empty one, false, null and undefined for
 *     none; `onclick` and other functions are listeners.
 * @param {...(Node|string|null)} children strings become text.
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** An icon of index.html's, hidden from screen readers. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** A button that is an icon; its label is what is read out and shown on hover. */
export function iconButton(name, label, onclick, attributes = {}) {
  return el("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick, ...attributes }, icon(name));
}

/** A name that nobody else has. (crypto.randomUUID is missing where the page comes over plain HTTP.) */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Calls `run`, with what it was last called with, once things have been quiet for `ms`. `.now()`: at once if it waits. */
export function later(run, ms) {
  let timer = null;
  let given = [];
  const fire = () => {
    timer = null;
    run(...given);
  };
  const schedule = (...args) => {
    clearTimeout(timer);
    given = args;
    timer = setTimeout(fire, ms);
  };
  schedule.now = () => {
    if (timer === null) return;
    clearTimeout(timer);
    fire();
  };
  return schedule;
}
