// Answers while they are made: asked for, collected, kept. They go on when another chat is looked at.

import { ask } from "./api.js";
import { newMessage } from "./chats.js";
import { source } from "./pictures.js";

const KEEP_MS = 1000; // how often an answer is written to the database while it grows

export class Answers {
  /** Called with (chat, message) whenever there is something new to show. */
  onChange = () => {};
  #running = new Map(); // chat's id -> {controller, message, phase, since}

  /**
   * @param {Chats} chats
   * @param {Settings} settings
   */
  constructor(chats, settings) {
    this.chats = chats;
    this.settings = settings;
  }

  /** {message, phase: "sending" | "waiting" | "writing", since} of a chat's answer that is being made, or undefined. */
  of(chat) {
    return this.#running.get(chat.id);
  }

  stop(chat) {
    this.#running.get(chat.id)?.controller.abort();
  }

  /** Adds an answer to a chat and fills it. Resolves when it has ended, however it did: the message says how. */
  async make(chat) {
    const message = Object.assign(newMessage("assistant", ""), { model: this.settings.model, finish: null });
    const run = { controller: new AbortController(), message, phase: "sending", since: Date.now() };
    this.#running.set(chat.id, run);
    const before = [...chat.messages];
    chat.messages.push(message);
    chat.updated = Date.now();
    let saved = Date.now();
    this.chats.keep(chat);
    this.onChange(chat, message);
    const started = performance.now();
    const elapsed = () => (performance.now() - started) / 1000;
    try {
      const body = await request(chat, before, this.settings, this.chats);
      for await (const piece of ask(body, run.controller.signal)) {
        if (piece.accepted) run.phase = "waiting";
        if (piece.text) {
          if (!message.text) message.seconds = { first: elapsed() };
          message.text += piece.text;
          run.phase = "writing";
        }
        if (piece.finish) message.finish = piece.finish;
        if (piece.usage) message.usage = piece.usage;
        if (piece.timings) message.timings = piece.timings;
        this.onChange(chat, message);
        if (Date.now() - saved > KEEP_MS) {
          saved = Date.now();
          this.#keep(chat);
        }
      }
    } catch (error) {
      if (error.name === "AbortError") {
        message.finish = "stopped";
      } else {
        message.finish = "error";
        const { message: words, retryAfter = null, needsKey = false } = error;
        message.error = { message: words, retryAfter, needsKey, at: Date.now() };
      }
    }
    message.seconds = { ...message.seconds, total: elapsed() };
    chat.updated = Date.now();
    this.#running.delete(chat.id);
    this.onChange(chat, message);
    await this.#keep(chat);
  }

  /** Writes a chat, unless it was deleted while it was answered. */
  async #keep(chat) {
    if (this.chats.get(chat.id)) await this.chats.keep(chat);
  }
}

/** The body of the request: the messages so far, and the options that are set. */
async function request(chat, before, settings, chats) {
  const messages = [];
  if (chat.system.trim()) messages.push({ role: "system", content: chat.system });
  for (const { role, text, pictures } of before) {
    if (role === "assistant") {
      if (text) messages.push({ role, content: text }); // an answer that failed at once is no part of the talk
      continue;
    }
    const parts = [];
    for (const id of pictures) {
      const picture = chats.picture(id);
      if (!picture) throw new Error("A picture of this chat is no longer in the browser's storage. Remove it from its message first.");
      parts.push({ type: "image_url", image_url: { url: await source(picture) } });
    }
    if (text) parts.push({ type: "text", text });
    messages.push({ role, content: pictures.length ? parts : text });
  }
  return { model: settings.model || undefined, messages, ...settings.options };
}
