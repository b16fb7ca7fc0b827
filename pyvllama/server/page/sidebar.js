// The list of chats: found, renamed, deleted.

import { byId, el, iconButton, later } from "./dom.js";
import { titleOf } from "./chats.js";
import { count } from "./timings.js";

const DAY = 24 * 60 * 60 * 1000;
const narrow = matchMedia("(max-width: 760px)"); // as in style.css

export class Sidebar {
  #current = null;

  /**
   * @param {Chats} chats
   * @param {Settings} settings
   * @param {{begin, rename, remove}} actions `begin()` a new chat; `rename(chat, title)`, `remove(chat)`
   */
  constructor(chats, settings, actions) {
    Object.assign(this, { chats, settings, actions });
    this.search = byId("search");
    this.search.addEventListener("input", later(() => this.update(), 120));
    byId("new-chat").addEventListener("click", () => actions.begin());
    byId("hide-sidebar").addEventListener("click", () => this.open(false));
    byId("show-sidebar").addEventListener("click", () => this.open(true));
    byId("scrim").addEventListener("click", () => this.open(false));
    narrow.addEventListener("change", () => this.#place(!narrow.matches && settings.sidebar));
    this.#place(!narrow.matches && settings.sidebar);
  }

  /** Whether it lies over the chat, as on phones. */
  get isOver() {
    return narrow.matches && document.body.classList.contains("sidebar-open");
  }

  /** Opens or closes it for the user. */
  open(isOpen) {
    if (!narrow.matches) {
      this.settings.sidebar = isOpen;
      this.settings.save();
    }
    this.#place(isOpen);
    byId(isOpen ? "hide-sidebar" : "show-sidebar").focus();
  }

  /** Closes it where it lies over the chat. */
  leave() {
    if (this.isOver) this.#place(false);
  }

  /** Shows the list anew. */
  update(current = this.#current) {
    this.#current = current;
    const query = this.search.value.trim();
    const found = query ? this.chats.search(query) : this.chats.all().map((chat) => ({ chat, snippet: "" }));
    byId("search-result").textContent = query ? `${count(found.length, "chat")} found` : "";
    const groups = grouped(found);
    const sections = [...groups].map(([name, items]) =>
      el("section", {}, el("h2", {}, name), el("ul", {}, ...items.map(({ chat, snippet }) => this.#item(chat, snippet)))),
    );
    const none = el("p", { class: "hint" }, query ? "No chat has these words." : "No chats yet.");
    byId("chats").replaceChildren(...(found.length ? sections : [none]));
  }

  #item(chat, snippet) {
    const title = titleOf(chat);
    const isCurrent = chat === this.#current;
    const item = el("li", { class: isCurrent ? "current" : null });
    const link = el("a", { href: `#${chat.id}`, "aria-current": isCurrent ? "page" : null, title, onclick: () => this.leave() }, el("span", {}, title));
    if (snippet) link.append(el("small", {}, snippet));
    item.append(
      link,
      iconButton("edit", `Rename: ${title}`, () => this.#rename(item, chat)),
      iconButton("delete", `Delete: ${title}`, () => this.actions.remove(chat)),
    );
    return item;
  }

  #rename(item, chat) {
    const field = el("input", { type: "text", "aria-label": "Name of the chat", maxlength: "200", value: titleOf(chat) });
    let isDone = false;
    const finish = (isKept) => {
      if (isDone) return;
      isDone = true;
      if (isKept) this.actions.rename(chat, field.value.trim());
      this.update();
      byId("chats").querySelector(`a[href="#${chat.id}"]`)?.focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.stopPropagation();
      finish(event.key === "Enter");
    });
    field.addEventListener("blur", () => finish(true));
    item.replaceChildren(field);
    field.select();
    field.focus();
  }

  #place(isOpen) {
    const isOver = narrow.matches && isOpen;
    document.body.classList.toggle("sidebar-open", isOpen);
    byId("sidebar").inert = !isOpen;
    byId("main").inert = isOver;
    byId("hide-sidebar").setAttribute("aria-expanded", String(isOpen));
    byId("show-sidebar").setAttribute("aria-expanded", String(isOpen));
    byId("show-sidebar").hidden = isOpen && !isOver;
  }
}

/** Under which heading a chat stands. */
function age(time) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "Today";
  if (time >= today - DAY) return "Yesterday";
  return time >= today - 7 * DAY ? "Last 7 days" : "Older";
}

/** Heading -> what stands under it. */
function grouped(found) {
  const groups = new Map();
  for (const item of found) {
    const name = age(item.chat.updated);
    groups.set(name, [...(groups.get(name) ?? []), item]);
  }
  return groups;
}
