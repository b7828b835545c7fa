/**
 * A safe subset of Markdown, built as DOM nodes while the text is still arriving.
 *
 * Blocks: paragraphs, headings, lists (nested), quotes, rules, tables, fenced code. Inline: code, bold, italic,
 * struck through, links to http(s) and mailto. Model text never passes through an HTML parser.
 */
import { copyButton, h } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^( *)([-*+•]|\d{1,9}[.)])(\s+|$)(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const TABLE_LINE = /^\s*\|?(\s*:?-+:?\s*\|)+\s*(:?-+:?\s*)?$/;
const BLANK = /^\s*$/;
const MAX_DEPTH = 6;
// Emphasis is matched with lazy patterns, quadratic in the worst case: a longer run stays plain text.
const MAX_INLINE_CHARS = 5000;

const INLINE = new RegExp(
  [
    "(`+)(?!`)(.+?)(?<!`)\\1(?!`)",
    "\\*\\*(?=\\S)(.+?)(?<=\\S)\\*\\*(?!\\*)",
    "(?<![\\w_])__(?=\\S)(.+?)(?<=\\S)__(?![\\w_])",
    "\\*(?=[^\\s*])(.+?)(?<=[^\\s*])\\*(?!\\*)",
    "(?<![\\w_])_(?=[^\\s_])(.+?)(?<=[^\\s_])_(?![\\w_])",
    "~~(?=\\S)(.+?)(?<=\\S)~~",
    "\\[([^\\]]+)\\]\\(((?:https?:\\/\\/|mailto:)[^\\s)]+)\\)",
    "(https?:\\/\\/[^\\s<>()\\[\\]]+[^\\s<>()\\[\\].,;:!?'\"])",
  ].join("|"),
  "gs",
);

/** Appends `text` with its inline marks to `parent`. */
function inline(parent, text, depth = 0) {
  if (text.length > MAX_INLINE_CHARS || depth > MAX_DEPTH) {
    parent.append(text);
    return;
  }
  let last = 0;
  for (const match of text.matchAll(INLINE)) {
    parent.append(text.slice(last, match.index));
    last = match.index + match[0].length;
    const [, , code, bold, bold2, italic, italic2, struck, label, href, bare] = match;
    if (code !== undefined) parent.append(h("code", { text: code.replace(/^ (.*) $/s, "$1") }));
    else if (bare !== undefined) parent.append(link(bare, bare, depth));
    else if (href !== undefined) parent.append(link(href, label, depth));
    else {
      const [tag, inner] = bold ?? bold2 ? ["strong", bold ?? bold2] : struck ? ["s", struck] : ["em", italic ?? italic2];
      const element = h(tag);
      inline(element, inner, depth + 1);
      parent.append(element);
    }
  }
  parent.append(text.slice(last));
}

function link(href, label, depth) {
  const anchor = h("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" });
  if (href === label) anchor.textContent = label;
  else inline(anchor, label, depth + MAX_DEPTH);
  return anchor;
}

/** Splits text into blocks `{kind, start, …}`; `start` is the offset of the block's first line. */
function blocksOf(text, depth) {
  const lines = text.split("\n");
  const starts = [];
  let offset = 0;
  for (const line of lines) {
    starts.push(offset);
    offset += line.length + 1;
  }
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (BLANK.test(lines[at])) {
      at += 1;
      continue;
    }
    const [block, next] = readBlock(lines, at, depth);
    block.start = starts[at];
    blocks.push(block);
    at = next;
  }
  return blocks;
}

function readBlock(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return readFence(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return [{ kind: "heading", level: heading[1].length, text: heading[2] }, at + 1];
  if (RULE.test(line)) return [{ kind: "rule" }, at + 1];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return readQuote(lines, at);
  if (depth < MAX_DEPTH && ITEM.test(line)) return readList(lines, at);
  if (line.includes("|") && TABLE_LINE.test(lines[at + 1] ?? "")) return readTable(lines, at);
  return readParagraph(lines, at);
}

function readFence(lines, at, [, mark, language]) {
  const closing = new RegExp(`^ {0,3}${mark[0]}{${mark.length},}\\s*$`);
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) end += 1;
  return [{ kind: "code", language, text: lines.slice(at + 1, end).join("\n") }, end + 1];
}

function readQuote(lines, at) {
  const inner = [];
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) inner.push(QUOTE.exec(lines[end++])[1]);
  return [{ kind: "quote", text: inner.join("\n") }, end];
}

function readList(lines, at) {
  const [, margin, marker] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(marker);
  const items = [];
  let end = at;
  let indent = 0;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    const item = ITEM.exec(line);
    const isItem = item && item[1].length <= margin.length + 1 && !RULE.test(line);
    if (isItem) {
      if (/\d/.test(item[2]) !== ordered) break;
      indent = item[1].length + item[2].length + 1;
      items.push([item[4]]);
    } else if (BLANK.test(line)) {
      const next = lines.slice(end + 1).find((later) => !BLANK.test(later));
      if (next === undefined || (!/^ {2,}/.test(next) && !ITEM.test(next))) break;
      items.at(-1).push("");
    } else if (/^ {2,}/.test(line) || !startsBlock(line)) {
      items.at(-1).push(line.replace(new RegExp(`^ {0,${indent}}`), ""));
    } else break;
  }
  return [{ kind: "list", ordered, first: parseInt(marker, 10) || 1, items: items.map((rows) => rows.join("\n")) }, end];
}

function readTable(lines, at) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const rows = [];
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) rows.push(cells(lines[end++]));
  return [{ kind: "table", head: cells(lines[at]), rows }, end];
}

function startsBlock(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
}

function readParagraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !BLANK.test(lines[end]) && !startsBlock(lines[end])) {
    if (lines[end].includes("|") && TABLE_LINE.test(lines[end + 1] ?? "")) break;
    end += 1;
  }
  return [{ kind: "paragraph", text: lines.slice(at, end).join("\n") }, end];
}

function renderBlock(block, depth) {
  switch (block.kind) {
    case "code":
      return renderCode(block);
    case "rule":
      return h("hr");
    case "quote": {
      const quote = h("blockquote");
      quote.append(...blocksOf(block.text, depth + 1).map((inner) => renderBlock(inner, depth + 1)));
      return quote;
    }
    case "list": {
      const list = h(block.ordered ? "ol" : "ul", { start: block.ordered && block.first !== 1 ? block.first : null });
      list.append(...block.items.map((text) => renderItem(text, depth + 1)));
      return list;
    }
    case "table":
      return renderTable(block);
    default: {
      // Headings of an answer stand below the page's own h1 and h2.
      const element = h(block.kind === "heading" ? `h${Math.min(block.level + 2, 6)}` : "p");
      inline(element, block.text);
      return element;
    }
  }
}

function renderItem(text, depth) {
  const item = h("li");
  for (const block of blocksOf(text, depth)) {
    if (block.kind === "paragraph" && !item.hasChildNodes()) inline(item, block.text);
    else item.append(renderBlock(block, depth));
  }
  return item;
}

function renderTable({ head, rows }) {
  const row = (cells, tag) => h("tr", {}, ...cells.map((cell) => {
    const element = h(tag);
    inline(element, cell);
    return element;
  }));
  const table = h("table", {}, h("thead", {}, row(head, "th")), h("tbody", {}, ...rows.map((cells) => row(cells, "td"))));
  return h("div", { class: "table-scroll" }, table);
}

function renderCode({ language, text }) {
  const bar = h("figcaption", {}, h("span", { text: language || "text" }), copyButton("Copy", () => text));
  return h("figure", { class: "code" }, bar, h("pre", { tabindex: "0" }, h("code", { text })));
}

/**
 * One growing text as DOM. `update` only parses again what may still change: the last two blocks (the last line can
 * still turn out to continue the block before it).
 */
export class MarkdownView {
  constructor() {
    this.element = h("div", { class: "md" });
    this.text = "";
    this.tail = 0;
    this.settled = 0;
  }

  update(text) {
    if (text === this.text) return;
    if (!text.startsWith(this.text)) this.tail = this.settled = 0;
    this.text = text;
    while (this.element.childNodes.length > this.settled) this.element.lastChild.remove();
    const blocks = blocksOf(text.slice(this.tail), 0);
    this.element.append(...blocks.map((block) => renderBlock(block, 0)));
    const keep = Math.max(blocks.length - 2, 0);
    if (keep > 0) {
      this.settled += keep;
      this.tail += blocks[keep].start;
    }
  }
}
