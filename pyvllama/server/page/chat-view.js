// The chat that is looked at: its messages, where it is scrolled to.

import { byId, el } from "./dom.js";
import { AnswerView, questionView } from "./message-view.js";

const NEAR_END = 48; // px: so near, the view follows a growing answer

export class ChatView {
  /** Positions of the model's context, once known. */
  nCtx = null;
  #chat = null;
  #answers = new Map(); // message's id -> AnswerView
  #waiting = new Set(); // messages to be shown anew in the next frame
  #follows = true;
  #top = 0; // px: where the view was scrolled to when last looked at

  /**
   * @param {Chats} chats
   * @param {Answers} answers
   * @param {Object} actions called with a message: {edit, remove, retry, askKey}; and {answer} with none
   */
  constructor(chats, answers, actions) {
    Object.assign(this, { chats, answers, actions });
    this.list = byId("messages");
    this.scroller = byId("scroll");
    this.toEnd = byId("to-end");
    this.scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.toEnd.addEventListener("click", () => this.scrollToEnd());
    new ResizeObserver(() => this.#follow()).observe(byId("column"));
    new ResizeObserver(() => this.#follow()).observe(this.scroller);
  }

  /** Shows a chat from the beginning of its elements on. */
  show(chat) {
    for (const view of this.#answers.values()) view.drop();
    this.#answers.clear();
    this.#waiting.clear();
    const isOther = chat !== this.#chat;
    this.#chat = chat;
    this.list.replaceChildren(...chat.messages.map((message) => this.#element(message)));
    const last = chat.messages.at(-1);
    if (last?.role === "user" && !this.answers.of(chat)) {
      this.list.append(el("li", { class: "message" }, el("button", { type: "button", class: "quiet", onclick: () => this.actions.answer() }, "Get an answer")));
    }
    byId("welcome").hidden = chat.messages.length > 0;
    if (isOther) this.scrollToEnd();
  }

  /** Shows what has changed in an answer, at the next frame; at once if it has ended (hidden pages have no frames). */
  update(chat, message) {
    if (chat !== this.#chat) return;
    if (!this.#answers.has(message.id)) {
      this.show(chat);
      this.scrollToEnd();
      return;
    }
    const isFirst = this.#waiting.size === 0;
    this.#waiting.add(message);
    if (!this.answers.of(chat)) this.#flush();
    else if (isFirst) requestAnimationFrame(() => this.#flush());
  }

  /** Marks the message that is edited, after which all others will be replaced; null: none. */
  markEdited(message) {
    let isAfter = false;
    for (const item of this.list.children) {
      const isEdited = message !== null && item.dataset.id === message.id;
      item.classList.toggle("edited", isEdited);
      item.classList.toggle("replaced", isAfter);
      isAfter ||= isEdited;
    }
  }

  /** Puts the focus where a message was, for the keyboard's sake. */
  focusAt(index) {
    const items = this.list.querySelectorAll(".message");
    const button = items[Math.min(index, items.length - 1)]?.querySelector("button:not([hidden])");
    (button ?? byId("composer-text")).focus();
  }

  scrollToEnd() {
    this.#follows = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#scrolled();
  }

  #element(message) {
    if (message.role === "user") {
      return questionView(message, message.pictures.map((id) => this.chats.picture(id)), this.actions);
    }
    const view = new AnswerView(message, this.actions);
    this.#answers.set(message.id, view);
    view.update(this.#runOf(message), this.nCtx);
    return view.element;
  }

  #runOf(message) {
    const run = this.answers.of(this.#chat);
    return run?.message === message ? run : undefined;
  }

  #flush() {
    for (const message of this.#waiting) this.#answers.get(message.id)?.update(this.#runOf(message), this.nCtx);
    this.#waiting.clear();
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const left = scrollHeight - scrollTop - clientHeight;
    // Being off the end says nothing by itself, the answer may have grown since: only who moved up has left it.
    if (scrollTop < this.#top) this.#follows = left < 2;
    else if (left < NEAR_END) this.#follows = true;
    this.#top = scrollTop;
    this.toEnd.hidden = left < 200;
  }

  #follow() {
    if (this.#follows) this.scroller.scrollTop = this.scroller.scrollHeight;
    else this.#scrolled();
  }
}
