// The page's keys, and the dialog that lists them.

import { byId, el } from "./dom.js";
import { openDialog } from "./notices.js";

const KEYS = [
  [["Enter"], "Send"],
  [["Shift", "Enter"], "New line"],
  [["Esc"], "Stop the answer; leave an edit"],
  [["↑"], "In the empty message field: edit your last message"],
  [["/"], "To the message field"],
  [["?"], "These keys"],
  [["Ctrl", "Shift", "O"], "New chat"],
  [["Ctrl", "K"], "Search chats"],
];
const isMac = /Mac|iPhone|iPad/.test(navigator.platform);

export function openKeys() {
  const rows = KEYS.map(([keys, what]) =>
    el("div", {}, el("dt", {}, ...keys.map((key) => el("kbd", {}, key === "Ctrl" && isMac ? "⌘" : key))), el("dd", {}, what)),
  );
  openDialog("Keyboard", "keys", el("dl", {}, ...rows), el("p", { class: "hint" }, "Single keys can be switched off in the settings."));
}

/**
 * Listens to the whole page.
 * @param {Settings} settings
 * @param {{begin, escape, editLast, search}} actions `escape()` and `editLast()` answer whether there was anything to do
 */
export function listenToKeys(settings, actions) {
  addEventListener("keydown", (event) => {
    if (event.isComposing || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const isCommand = isMac ? event.metaKey : event.ctrlKey;
    const { key, target } = event;
    const isWriting = target.matches?.("input, textarea, select, [contenteditable]");
    const composer = byId("composer-text");
    let isDone = true;
    if (key === "Escape") isDone = actions.escape();
    else if (isCommand && event.shiftKey && key.toLowerCase() === "o") actions.begin();
    else if (isCommand && !event.shiftKey && key.toLowerCase() === "k") actions.search();
    else if (key === "ArrowUp" && target === composer && !composer.value) isDone = actions.editLast();
    else if (event.ctrlKey || event.metaKey || event.altKey || isWriting || !settings.singleKeys) return;
    else if (key === "/") composer.focus();
    else if (key === "?") openKeys();
    else return;
    if (isDone) event.preventDefault();
  });
}
