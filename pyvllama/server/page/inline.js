// What stands within a block of Markdown: emphasis, code, links, line breaks.

import { el } from "./dom.js";

const PUNCTUATION = /[\p{P}\p{S}]/u;
const MAX_DEPTH = 20; // of emphasis; deeper ones stay text
const MAX_ADDRESS = 2000; // characters
const BARE_ADDRESS = /https?:\/\/[^\s<>"`]{1,2000}/y;
const ANGLE_ADDRESS = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/y;
const PLAIN = /[^\\`*_~[\]!<\nh]+/y; // nothing that could begin something

/** A text as nodes, in a fragment. */
export function inline(text) {
  return new Inline(text).parse();
}

/** Whether people may be sent there: an address of the web or of mail, nothing that runs. */
function safeAddress(text) {
  const url = URL.canParse(text) ? new URL(text) : null;
  return ["http:", "https:", "mailto:"].includes(url?.protocol) ? url.href : null;
}

const link = (href, ...content) => el("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...content);

class Inline {
  #out = document.createDocumentFragment();
  #delimiters = []; // {node, mark, n, length, canOpen, canClose}, in order
  #brackets = []; // {node, isPicture, isActive, nDelimiters, end}
  #ticks = null; // length of a run of backticks -> where such runs begin
  #depths = new WeakMap(); // element of emphasis -> how many are in one another

  constructor(text) {
    this.text = text;
    this.at = 0;
  }

  parse() {
    while (this.at < this.text.length) this.#next();
    this.#emphasize(0);
    this.#out.normalize();
    return this.#out;
  }

  #next() {
    const { text, at } = this;
    const plain = this.#match(PLAIN);
    if (plain) return this.#say(plain[0]);
    switch (text[at]) {
      case "\\":
        return this.#escape();
      case "`":
        return this.#code();
      case "*":
      case "_":
      case "~":
        return this.#delimiter();
      case "[":
        return this.#open("[");
      case "!":
        return text[at + 1] === "[" ? this.#open("![") : this.#say("!");
      case "]":
        return this.#close();
      case "<":
        return this.#angle();
      case "h":
        return this.#bare();
      default:
        this.at++;
        return this.#out.append(el("br"));
    }
  }

  #match(pattern) {
    pattern.lastIndex = this.at;
    return pattern.exec(this.text);
  }

  /** Puts a text into the output and goes on after it. */
  #say(text) {
    this.at += text.length;
    this.#out.append(text);
    return this.#out.lastChild;
  }

  #escape() {
    const escaped = this.text[this.at + 1] ?? "";
    if (!/[!-/:-@[-`{-~]/.test(escaped)) return this.#say("\\");
    this.at++;
    return this.#say(escaped);
  }

  #code() {
    const [run] = this.#match(/`+/y);
    if (!this.#ticks) {
      this.#ticks = new Map();
      for (const { 0: ticks, index } of this.text.matchAll(/`+/g)) {
        if (!this.#ticks.has(ticks.length)) this.#ticks.set(ticks.length, []);
        this.#ticks.get(ticks.length).push(index);
      }
    }
    const places = this.#ticks.get(run.length) ?? [];
    while (places.length && places[0] <= this.at) places.shift();
    if (!places.length) return this.#say(run);
    let code = this.text.slice(this.at + run.length, places[0]).replaceAll("\n", " ");
    if (code.startsWith(" ") && code.endsWith(" ") && code.trim()) code = code.slice(1, -1);
    this.at = places[0] + run.length;
    return this.#out.append(el("code", {}, code));
  }

  #delimiter() {
    const mark = this.text[this.at];
    let n = 1;
    while (this.text[this.at + n] === mark) n++;
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[this.at + n] ?? " ";
    const left = flanks(before, after);
    const right = flanks(after, before);
    const node = this.#say(mark.repeat(n));
    if (mark === "~" && n !== 2) return;
    const isWord = mark === "_"; // snake_case is no emphasis
    const canOpen = left && (!isWord || !right || PUNCTUATION.test(before));
    const canClose = right && (!isWord || !left || PUNCTUATION.test(after));
    if (canOpen || canClose) this.#delimiters.push({ node, mark, n, length: n, canOpen, canClose });
  }

  #open(text) {
    const node = this.#say(text);
    const nDelimiters = this.#delimiters.length;
    this.#brackets.push({ node, isPicture: text === "![", isActive: true, nDelimiters });
  }

  #close() {
    const opener = this.#brackets.pop();
    const target = opener?.isActive ? destination(this.text, this.at + 1) : null;
    if (!target) return this.#say("]");
    const href = safeAddress(target.address);
    this.#emphasize(opener.nDelimiters);
    const content = between(opener.node, null);
    const words = opener.isPicture ? [el("span", { "aria-hidden": "true" }, "🖼 "), ...content] : content;
    if (href) {
      if (!words.some((node) => node.textContent.trim())) words.push(target.address);
      opener.node.replaceWith(link(href, ...words));
    } else {
      opener.node.remove(); // the words stay, an address that runs something is not even shown as a link
    }
    if (!opener.isPicture) for (const bracket of this.#brackets) bracket.isActive &&= bracket.isPicture;
    this.at = target.end;
  }

  #angle() {
    const found = this.#match(ANGLE_ADDRESS);
    const href = found && safeAddress(found[1]);
    if (!href) return this.#say("<");
    this.at += found[0].length;
    return this.#out.append(link(href, found[1]));
  }

  #bare() {
    const isWordStart = !/[\p{L}\p{N}_]/u.test(this.text[this.at - 1] ?? " ");
    let address = (isWordStart && this.#match(BARE_ADDRESS)?.[0]) || "";
    for (;;) {
      const last = address.at(-1);
      const isClosed = last === ")" && address.split("(").length >= address.split(")").length;
      if (!address || isClosed || !/[?!.,:;*_~'")\]]/.test(last)) break;
      address = address.slice(0, -1);
    }
    const href = address && safeAddress(address);
    if (!href) return this.#say("h");
    this.at += address.length;
    return this.#out.append(link(href, address));
  }

  /** Turns pairs of delimiters, from the given one on, into elements: CommonMark's "process emphasis". */
  #emphasize(from) {
    const stack = this.#delimiters.splice(from);
    const bottoms = new Map(); // kind of closer -> no opener for it stands below this place
    for (let c = 0; c < stack.length; c++) {
      const closer = stack[c];
      while (closer.canClose && closer.n) {
        const kind = `${closer.mark}${closer.canOpen}${closer.length % 3}`;
        const bottom = bottoms.get(kind) ?? 0;
        let o = c - 1;
        while (o >= bottom && !fits(stack[o], closer)) o--;
        if (o < bottom) {
          bottoms.set(kind, c);
          break;
        }
        this.#wrap(stack[o], closer);
        for (let i = o + 1; i < c; i++) stack[i].n = 0; // what stood between them stays text
        stack.splice(o + 1, c - o - 1);
        c = o + 1;
        for (const [key, place] of bottoms) bottoms.set(key, Math.min(place, c));
      }
    }
  }

  #wrap(opener, closer) {
    const n = closer.mark === "~" || (opener.n >= 2 && closer.n >= 2) ? 2 : 1;
    const content = between(opener.node, closer.node);
    const depth = 1 + content.reduce((most, node) => Math.max(most, this.#depths.get(node) ?? 0), 0);
    for (const delimiter of [opener, closer]) delimiter.n -= n;
    if (depth > MAX_DEPTH) return;
    const element = el(closer.mark === "~" ? "del" : n === 2 ? "strong" : "em");
    for (const { node } of [opener, closer]) node.data = node.data.slice(n);
    opener.node.after(element);
    element.append(...content);
    this.#depths.set(element, depth);
  }
}

/** Whether a run with these neighbours leans on what follows it. */
function flanks(before, after) {
  if (/\s/.test(after)) return false;
  return !PUNCTUATION.test(after) || /\s/.test(before) || PUNCTUATION.test(before);
}

function fits(opener, closer) {
  if (!opener.n || !opener.canOpen || opener.mark !== closer.mark) return false;
  const isBoth = opener.canClose || closer.canOpen;
  return !(isBoth && (opener.length + closer.length) % 3 === 0 && (opener.length % 3 || closer.length % 3));
}

/** The siblings after a node, up to another or the end. */
function between(first, last) {
  const nodes = [];
  for (let node = first.nextSibling; node !== last; node = node.nextSibling) nodes.push(node);
  return nodes;
}

/** {address, end} of `(address "title")` at a place of a text, or null. */
function destination(text, at) {
  if (text[at] !== "(") return null;
  const rest = text.slice(at + 1, at + 1 + MAX_ADDRESS);
  const angle = /^\s*<([^<>\n]*)>/.exec(rest);
  let address = angle?.[1];
  let i = angle ? angle[0].length : rest.length - rest.trimStart().length;
  if (!angle) {
    const begin = i;
    for (let depth = 0; i < rest.length && !/\s/.test(rest[i]); i++) {
      if (rest[i] === "(") depth++;
      else if (rest[i] === ")" && depth-- === 0) break;
    }
    address = rest.slice(begin, i);
  }
  const title = /^(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/.exec(rest.slice(i));
  return title ? { address, end: at + 1 + i + title[0].length } : null;
}
