// The chats of this browser.
//
// A chat: {id, title ("" until somebody names it), created, updated (ms), system, messages, draft: {text, pictures}}.
// A message: {id, role: "user" | "assistant", text, pictures (ids), created}, and of answers
// {model, finish, timings, usage, seconds, error}; `finish` is null while it is written, or where that was broken off.

import { newId } from "./dom.js";
import { openDatabase } from "./database.js";

const TITLE_LENGTH = 60;
const SNIPPET_LENGTH = 70;

/** What a chat is called: its name, or how it begins. */
export function titleOf(chat) {
  const first = chat.messages.find((message) => message.role === "user");
  const words = (chat.title || first?.text || "").replace(/\s+/g, " ").trim();
  if (!words) return first ? "A picture" : "New chat";
  return words.length > TITLE_LENGTH ? `${words.slice(0, TITLE_LENGTH - 1).trimEnd()}…` : words;
}

/** Ids of every picture in a chat. */
export const picturesOf = (chat) => [...chat.messages.flatMap((message) => message.pictures), ...chat.draft.pictures];

/** What is not sent yet: nothing. */
export const noDraft = () => ({ text: "", pictures: [] });

export const newMessage = (role, text, pictures = []) => ({ id: newId(), role, text, pictures, created: Date.now() });

/** All chats, in memory and in the database; pictures are read when a chat is opened. */
export class Chats {
  /** Called with the id of a chat that another tab has changed. */
  onChangeElsewhere = () => {};
  /** Called with an Error when something could not be kept. */
  onFailure = () => {};
  #database;
  #chats = new Map();
  #pictures = new Map();
  #kept = new Set(); // ids of pictures that are in the database
  #channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("pyvllama-chats") : null;

  static async open() {
    const chats = new Chats();
    chats.#database = await openDatabase();
    // Pictures first: one that another tab adds in between, with its chat, is not taken for a stray.
    const ids = await chats.#database.ids("pictures");
    for (const chat of await chats.#database.all("chats")) chats.#chats.set(chat.id, chat);
    const used = new Set([...chats.#chats.values()].flatMap(picturesOf));
    await chats.#database.remove({ pictures: ids.filter((id) => !used.has(id)) });
    chats.#channel?.addEventListener("message", ({ data }) => chats.#reload(data.changed));
    return chats;
  }

  /** Whether chats outlast the page. */
  get lasting() {
    return this.#database.lasting;
  }

  get(id) {
    return this.#chats.get(id);
  }

  /** Every chat that has begun, the newest first. */
  all() {
    const begun = [...this.#chats.values()].filter((chat) => chat.messages.length);
    return begun.sort((a, b) => b.updated - a.updated);
  }

  /** [{chat, snippet}] of the chats that have all the words, in their title or messages. */
  search(query) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    const found = [];
    for (const chat of this.all()) {
      const texts = chat.messages.map((message) => message.text);
      const whole = [titleOf(chat), ...texts].join("\n").toLowerCase();
      if (words.every((word) => whole.includes(word))) found.push({ chat, snippet: snippet(texts, words) });
    }
    return found;
  }

  /** A chat that has not begun: the one with an unsent draft, if there is one. */
  fresh(system = "") {
    const waiting = [...this.#chats.values()].find((chat) => !chat.messages.length);
    if (waiting) return waiting;
    const now = Date.now();
    return { id: newId(), title: "", created: now, updated: now, system, messages: [], draft: noDraft() };
  }

  /** Writes a chat, with those of its pictures that are new. */
  async keep(chat) {
    this.#chats.set(chat.id, chat);
    const ids = picturesOf(chat).filter((id) => !this.#kept.has(id) && this.#pictures.has(id));
    try {
      await this.#database.put({ chats: [chat], pictures: ids.map((id) => this.#pictures.get(id)) });
      for (const id of ids) this.#kept.add(id);
      this.#channel?.postMessage({ changed: chat.id });
    } catch (error) {
      this.onFailure(error);
    }
  }

  async remove(chat) {
    this.#chats.delete(chat.id);
    const used = new Set([...this.#chats.values()].flatMap(picturesOf));
    const ids = picturesOf(chat).filter((id) => !used.has(id));
    for (const id of ids) this.#kept.delete(id); // they stay in memory: the chat may be brought back
    try {
      await this.#database.remove({ chats: [chat.id], pictures: ids });
      this.#channel?.postMessage({ changed: chat.id });
    } catch (error) {
      this.onFailure(error);
    }
  }

  /** A picture that was added, or whose chat was opened. */
  picture(id) {
    return this.#pictures.get(id);
  }

  addPicture(picture) {
    this.#pictures.set(picture.id, picture);
  }

  /** Reads a chat's pictures, after which `picture` knows them. */
  async loadPictures(chat) {
    for (const id of picturesOf(chat)) {
      if (this.#pictures.has(id)) continue;
      const picture = await this.#database.get("pictures", id);
      if (!picture) continue; // the view says that it is missing
      this.#pictures.set(id, picture);
      this.#kept.add(id);
    }
  }

  /** Has a chat's pictures written again with it: they may have been cleared away meanwhile. */
  forgetKept(chat) {
    for (const id of picturesOf(chat)) this.#kept.delete(id);
  }

  async #reload(id) {
    const chat = await this.#database.get("chats", id);
    if (chat) this.#chats.set(id, chat);
    else this.#chats.delete(id);
    this.onChangeElsewhere(id);
  }
}

/** The text around the first word that is found in a message; "" if only the title has it. */
function snippet(texts, words) {
  for (const text of texts) {
    const flat = text.replace(/\s+/g, " ");
    const at = Math.min(...words.map((word) => flat.toLowerCase().indexOf(word)).filter((i) => i >= 0));
    if (!Number.isFinite(at)) continue;
    const begin = Math.max(0, at - 20);
    return `${begin ? "…" : ""}${flat.slice(begin, begin + SNIPPET_LENGTH)}${begin + SNIPPET_LENGTH < flat.length ? "…" : ""}`;
  }
  return "";
}
