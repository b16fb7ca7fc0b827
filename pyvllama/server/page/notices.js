// What the page has to say beside the chat: short lines that go away, questions, pictures at full size.

import { byId, el, iconButton } from "./dom.js";
import { address, describe } from "./pictures.js";

const SHOWN_MS = 9000;

/**
 * A line at the bottom; screen readers read it when they have time. It stays while the pointer or the focus is on it.
 * @param {string} text
 * @param {?{label: string, run: function}} action such as Undo
 */
export function notice(text, action = null) {
  const list = byId("notices");
  const close = () => line.remove();
  const line = el(
    "div",
    { class: "notice" },
    el("p", {}, text),
    action && el("button", { type: "button", class: "quiet", onclick: () => (close(), action.run()) }, action.label),
    iconButton("close", "Dismiss", close),
  );
  for (const old of [...list.children].slice(0, -2)) old.remove();
  list.append(line);
  const wait = () => setTimeout(() => (line.matches(":hover, :focus-within") ? wait() : close()), SHOWN_MS);
  wait();
}

/** A dialog in front of the page, gone when it is closed: by its button, Escape, or a click beside it. */
export function openDialog(title, className, ...content) {
  const titleId = `dialog-${className}`;
  const dialog = el(
    "dialog",
    { class: className, "aria-labelledby": titleId },
    el("div", { class: "dialog-head" }, el("h2", { id: titleId }, title), iconButton("close", "Close", () => dialog.close())),
    ...content,
  );
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Shows a picture as large as it goes. */
export function enlarge(picture) {
  const size = `${picture.width} × ${picture.height}`;
  openDialog(picture.name, "enlarged", el("img", { src: address(picture), alt: describe(picture) }), el("p", { class: "hint" }, size));
}

/** Reads a text out to those who hear the page. */
export function speak(text) {
  const spoken = byId("spoken");
  if (spoken.children.length > 20) spoken.firstChild.remove();
  spoken.append(el("p", {}, text));
}
