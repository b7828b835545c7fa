/** Small DOM builders. Text only ever becomes text nodes: nothing here parses HTML. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Builds an element. `props` keys: `class`, `text`, `on` (event handlers), `data` (data-* attributes);
 * everything else becomes an attribute (`true` → empty, `false`/null → left out).
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") element.className = value;
    else if (key === "text") element.textContent = value;
    else if (key === "on") for (const [type, handler] of Object.entries(value)) element.addEventListener(type, handler);
    else if (key === "data") Object.assign(element.dataset, value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An icon of the sprite in index.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export const byId = (id) => document.getElementById(id);

/** Writes text only when it differs, so that an unchanged label costs no layout. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Sets an attribute only when it differs; null removes it. */
export function setAttribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, String(value));
}

/** A copy button that says that it worked; falls back to a selection where the clipboard is refused. */
export function copyButton(label, getText) {
  const caption = h("span", { text: label });
  const button = h("button", { class: "quiet small copy", type: "button" }, icon("copy"), caption);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(getText());
      caption.textContent = "Copied";
    } catch {
      caption.textContent = "Not allowed here";
    }
    setTimeout(() => { caption.textContent = label; }, 1500);
  });
  return button;
}

/** Runs `paint` once in the next animation frame, however often it is asked for. */
export function framePainter(paint) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      paint();
    });
  };
}

export const count = (n) => n.toLocaleString("en");

export function pretty(value) {
  return JSON.stringify(value, null, 2) ?? "null";
}
