// One message of a chat, as elements.

import { copy } from "./clipboard.js";
import { el, icon, iconButton } from "./dom.js";
import { renderInto } from "./markdown.js";
import { enlarge, speak } from "./notices.js";
import { address, describe } from "./pictures.js";
import { costs, duration } from "./timings.js";

const PHASES = { sending: "Sending", waiting: "Reading", writing: "Writing" };

/** A picture's thumbnail, which opens it; a card with its host for one that the server fetches. */
export function thumbnail(picture) {
  if (!picture) return el("span", { class: "thumb missing" }, "This picture is no longer stored");
  if (picture.url) {
    return el("span", { class: "thumb linked", title: picture.url }, icon("link"), el("span", {}, new URL(picture.url).host), el("span", { class: "hint" }, picture.name));
  }
  const image = el("img", { src: address(picture), alt: describe(picture), width: picture.width, height: picture.height, decoding: "async" });
  return el("button", { type: "button", class: "thumb", "aria-label": `Enlarge: ${describe(picture)}`, onclick: () => enlarge(picture) }, image);
}

/** Copies, and says so on the button. */
async function copyFrom(button, text) {
  const done = await copy(text);
  const [label, was] = [done ? "Copied" : "Could not copy", button.getAttribute("aria-label")];
  const content = [...button.childNodes];
  button.replaceChildren(was ? icon(done ? "check" : "close") : label);
  speak(label);
  setTimeout(() => button.replaceChildren(...content), 1500);
}

/** What a user has asked. `actions`: {edit, remove}, called with the message. */
export function questionView(message, pictures, actions) {
  const name = message.text || "your picture";
  const body = el("div", { class: "bubble" });
  if (pictures.length) body.append(el("div", { class: "thumbs" }, ...pictures.map(thumbnail)));
  if (message.text) body.append(el("p", { class: "said" }, message.text));
  const copyButton = iconButton("copy", "Copy message", () => copyFrom(copyButton, message.text));
  const buttons = el(
    "div",
    { class: "actions", role: "group", "aria-label": "What to do with your message" },
    message.text ? copyButton : null,
    iconButton("edit", "Edit and ask again", () => actions.edit(message)),
    iconButton("delete", "Delete with its answer", () => actions.remove(message)),
  );
  return el("li", { class: "message user", "data-id": message.id }, el("article", { "aria-label": `You: ${name.slice(0, 80)}` }, body, buttons));
}

/** What the model has answered, or is answering: made once, then `update`d. */
export class AnswerView {
  #spoken = 0; // blocks that were read out
  #clock = null;

  /** @param {{retry, remove, askKey}} actions called with the message */
  constructor(message, actions) {
    this.message = message;
    this.body = el("div", { class: "answer" });
    this.state = el("p", { class: "state", hidden: true });
    this.costs = el("p", { class: "costs", hidden: true });
    this.failure = el("div", { class: "failure", role: "alert", hidden: true });
    const copyButton = iconButton("copy", "Copy answer", () => copyFrom(copyButton, message.text));
    this.buttons = el(
      "div",
      { class: "actions", role: "group", "aria-label": "What to do with this answer" },
      copyButton,
      iconButton("retry", "Answer again", () => actions.retry(message)),
      iconButton("delete", "Delete answer", () => actions.remove(message)),
    );
    this.copyButton = copyButton;
    this.actions = actions;
    const foot = el("div", { class: "foot" }, this.costs, this.buttons);
    this.article = el("article", { "aria-label": "Answer" }, this.body, this.state, this.failure, foot);
    this.element = el("li", { class: "message assistant", "data-id": message.id }, this.article);
    this.element.addEventListener("click", (event) => {
      const button = event.target.closest("[data-copy=code]");
      if (button) copyFrom(button, button.closest("figure").querySelector("code").textContent);
    });
  }

  /** @param {Object|undefined} run of `Answers.of`, while the answer is made */
  update(run, nCtx) {
    const { message } = this;
    const isLive = run !== undefined;
    const says = renderInto(this.body, message.text);
    if (isLive) this.#speakUpTo(says, says.length - 1);
    else if (this.wasLive) this.#ended(says);
    this.wasLive = isLive;
    this.article.setAttribute("aria-busy", String(isLive));
    this.element.classList.toggle("live", isLive);
    this.copyButton.hidden = !message.text;
    this.buttons.hidden = isLive;
    this.#showState(run);
    this.#showFailure();
    const line = isLive ? [] : costs(message, nCtx);
    this.costs.hidden = !line.length;
    this.costs.replaceChildren(...line.flatMap((part, i) => (i ? [" · ", el("span", {}, part)] : [el("span", {}, part)])));
  }

  /** A place on the screen is given up: stops the clock. */
  drop() {
    clearInterval(this.#clock);
  }

  #speakUpTo(says, n) {
    for (; this.#spoken < n; this.#spoken++) speak(says[this.#spoken]);
  }

  #ended(says) {
    this.#speakUpTo(says, says.length);
    if (this.message.finish === "stopped") speak("Stopped.");
  }

  #showState(run) {
    clearInterval(this.#clock);
    const { message } = this;
    let words = "";
    if (run && run.phase !== "writing") {
      const show = () => {
        const ms = Date.now() - run.since;
        this.state.textContent = `${PHASES[run.phase]}${ms > 1500 ? ` … ${duration(ms)}` : " …"}`;
      };
      this.#clock = setInterval(show, 500);
      show();
      words = this.state.textContent;
    } else if (message.finish === "stopped") words = "Stopped.";
    else if (message.finish === "length") words = "Cut off: the answer reached its longest length, or the context is full.";
    else if (message.finish === null && !run) words = "This answer was broken off.";
    else if (message.finish === "stop" && !message.text) words = "The model had nothing to say.";
    this.state.hidden = !words;
    this.state.textContent = words;
  }

  #showFailure() {
    const { error } = this.message;
    this.failure.hidden = !error;
    if (!error || this.failure.childElementCount) return;
    const act = (label, run) => el("button", { type: "button", class: "quiet", onclick: run }, label);
    const { message, actions } = this;
    const again = act("Try again", () => actions.retry(message));
    this.failure.append(el("p", {}, error.message));
    if (error.needsKey) this.failure.append(act("Enter API key", () => actions.askKey(message)));
    this.failure.append(again);
    const seconds = () => Math.ceil((error.at + error.retryAfter * 1000 - Date.now()) / 1000);
    if (!error.retryAfter || seconds() <= 0) return;
    const tick = () => {
      again.textContent = seconds() > 0 ? `Try again (best in ${seconds()} s)` : "Try again";
      if (seconds() > 0) setTimeout(tick, 1000);
    };
    tick();
  }
}
