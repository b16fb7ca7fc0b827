// Markdown as models write it -> elements. Built node by node: HTML in a text is text, and nothing is ever loaded.
//
// CommonMark with GitHub's tables, but: every line break is shown, `---` is always a rule, nested lists need two spaces,
// indented lines are no code, and pictures are links.

import { el } from "./dom.js";
import { inline } from "./inline.js";

const MAX_DEPTH = 12; // of quotes and lists; deeper ones stay text
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=\s|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:( +)(?=\S)|\s*$)/;
const CELL_RULE = /^\s*:?-+:?\s*$/;

const shown = new WeakMap(); // element -> [{source, node}] of its blocks

/**
 * Shows a text in an element. Blocks that have not changed since the last call are left as they are, so a text that
 * grows is cheap to show and what is selected in it stays selected.
 * @returns {string[]} what each block says
 */
export function renderInto(element, text) {
  const before = shown.get(element) ?? [];
  const now = blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0);
  let same = 0;
  while (same < before.length && same < now.length && before[same].source === now[same].source) same++;
  for (const { node } of before.slice(same)) node.remove();
  const after = now.slice(same).map(({ source, make }) => ({ source, node: make() }));
  element.append(...after.map(({ node }) => node));
  shown.set(element, [...before.slice(0, same), ...after]);
  return shown.get(element).map(({ node }) => node.textContent);
}

/** [{source, make}] of the blocks in some lines. */
function blocks(lines, depth) {
  const found = [];
  let i = 0;
  while (i < lines.length) {
    if (!lines[i].trim()) {
      i++;
      continue;
    }
    const [end, make] = block(lines, i, depth);
    found.push({ source: lines.slice(i, end).join("\n"), make });
    i = end;
  }
  return found;
}

/** [the line after it, what makes its element] of the block that begins at a line. */
function block(lines, i, depth) {
  const line = lines[i];
  const fence = FENCE.exec(line);
  if (fence) return fencedCode(lines, i, fence);
  if (RULE.test(line)) return [i + 1, () => el("hr")];
  const heading = HEADING.exec(line);
  if (heading) {
    const level = Math.min(6, heading[1].length + 2); // below the page's own headings
    const words = line.slice(heading[0].length).trim().replace(/(^|\s)#+$/, "");
    return [i + 1, () => el(`h${level}`, {}, inline(words))];
  }
  if (depth < MAX_DEPTH) {
    if (QUOTE.test(line)) return quote(lines, i, depth);
    if (ITEM.test(line)) return list(lines, i, depth);
  }
  return table(lines, i) ?? paragraph(lines, i);
}

function fencedCode(lines, begin, [, mark, info]) {
  const indent = lines[begin].indexOf(mark);
  const closes = (line) => {
    const end = line.trim();
    return end.length >= mark.length && end === mark[0].repeat(end.length);
  };
  let end = begin + 1;
  while (end < lines.length && !closes(lines[end])) end++;
  const code = lines.slice(begin + 1, end).map((line) => dedent(line, indent));
  const language = info.trim().split(/\s+/)[0];
  const make = () =>
    el(
      "figure",
      { class: "code" },
      el("figcaption", {}, el("span", {}, language || "text"), el("button", { type: "button", class: "quiet", "data-copy": "code" }, "Copy")),
      el("pre", { tabindex: "0" }, el("code", {}, code.join("\n"))),
    );
  return [Math.min(end + 1, lines.length), make];
}

function quote(lines, begin, depth) {
  let end = begin;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  const inner = lines.slice(begin, end).map((line) => line.replace(QUOTE, ""));
  return [end, () => el("blockquote", {}, ...children(inner, depth))];
}

function list(lines, begin, depth) {
  const [, , firstMarker] = ITEM.exec(lines[begin]);
  const kind = firstMarker.slice(-1); // "-", "*", "+", "." or ")"
  const items = [];
  let isLoose = false;
  let i = begin;
  while (i < lines.length) {
    const item = ITEM.exec(lines[i]);
    if (!item || item[2].slice(-1) !== kind || RULE.test(lines[i])) break;
    const base = item[1].length;
    const width = base + item[2].length + Math.min(item[3]?.length ?? 1, 4);
    const inner = [lines[i].slice(width)];
    let end = i + 1; // after the last line that is not blank
    for (let k = i + 1; k < lines.length; k++) {
      const isBlank = !lines[k].trim();
      const goesOn = k === end && !begins(lines[k]) && !ITEM.test(lines[k]); // a line of the paragraph before it
      if (!isBlank && indentOf(lines[k]) < base + 2 && !goesOn) break;
      inner.push(dedent(lines[k], width));
      if (!isBlank) end = k + 1;
    }
    inner.length = end - i;
    items.push(inner);
    i = end;
    while (i < lines.length && !lines[i].trim()) i++;
    const next = ITEM.exec(lines[i] ?? "");
    if (!next || next[2].slice(-1) !== kind) {
      i = end;
      break;
    }
    isLoose ||= i > end;
  }
  const start = Number.parseInt(firstMarker, 10);
  const make = () =>
    el(
      Number.isNaN(start) ? "ul" : "ol",
      { start: start > 1 ? start : null, class: isLoose ? "loose" : null },
      ...items.map((inner) => listItem(inner, isLoose, depth)),
    );
  return [i, make];
}

function listItem(lines, isLoose, depth) {
  const task = /^\[([ xX])\] /.exec(lines[0]);
  const inner = task ? [lines[0].slice(task[0].length), ...lines.slice(1)] : lines;
  const parts = children(inner, depth);
  if (!isLoose && parts[0]?.localName === "p") parts.splice(0, 1, ...parts[0].childNodes);
  return el("li", {}, task ? (task[1] === " " ? "☐ " : "☑ ") : null, ...parts);
}

/** A table, or null if these lines are none. */
function table(lines, begin) {
  const head = cells(lines[begin]);
  const rule = lines[begin].includes("|") && lines[begin + 1]?.includes("-") ? cells(lines[begin + 1]) : [];
  if (rule.length !== head.length || !rule.every((cell) => CELL_RULE.test(cell))) return null;
  const align = rule.map((cell) => ({ ":-:": "center", "-:": "right" })[cell.trim().replace(/-+/, "-")] ?? null);
  let end = begin + 2;
  while (end < lines.length && lines[end].trim() && lines[end].includes("|")) end++;
  const row = (tag, line) => {
    const texts = cells(line);
    return el("tr", {}, ...head.map((_, i) => el(tag, { class: align[i], scope: tag === "th" ? "col" : null }, inline((texts[i] ?? "").trim()))));
  };
  const make = () =>
    el(
      "div",
      { class: "table", tabindex: "0", role: "region", "aria-label": "Table" },
      el("table", {}, el("thead", {}, row("th", lines[begin])), el("tbody", {}, ...lines.slice(begin + 2, end).map((line) => row("td", line)))),
    );
  return [end, make];
}

/** Texts between the bars of a line; `\|` is no bar. */
function cells(line) {
  const text = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return text.split(/(?<!\\)\|/).map((cell) => cell.replaceAll("\\|", "|"));
}

function paragraph(lines, begin) {
  let end = begin + 1;
  while (end < lines.length && lines[end].trim() && !begins(lines[end])) end++;
  const text = lines.slice(begin, end).map((line) => line.trimStart()).join("\n").trimEnd();
  return [end, () => el("p", {}, inline(text))];
}

/** Whether a line ends the paragraph before it. */
function begins(line) {
  const item = ITEM.exec(line);
  const isItem = item !== null && item[3] !== undefined && (!/\d/.test(item[2]) || Number.parseInt(item[2], 10) === 1);
  return isItem || !line.trim() || FENCE.test(line) || RULE.test(line) || HEADING.test(line) || QUOTE.test(line);
}

/** Columns of white space that a line begins with; a tab counts for four. */
const indentOf = (line) => /^[ \t]*/.exec(line)[0].replaceAll("\t", "    ").length;

/** A line without its first columns, as far as they are white. */
function dedent(line, columns) {
  let i = 0;
  for (let gone = 0; gone < columns && (line[i] === " " || line[i] === "\t"); i++) gone += line[i] === "\t" ? 4 : 1;
  return line.slice(i);
}

const children = (lines, depth) => blocks(lines, depth + 1).map(({ make }) => make());
