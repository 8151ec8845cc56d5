// Building blocks of the page. What the relay says gets in as text nodes and attributes only, never as markup.

/** What a page would obey or hide: control characters, changes of direction, characters without width (proto/src/text.rs). */
const HAZARDS = /[\p{Cc}\u{ad}\u{34f}\u{61c}\u{115f}\u{1160}\u{17b4}\u{17b5}\u{180b}-\u{180f}\u{200b}-\u{200f}\u{2028}-\u{202e}\u{2060}-\u{206f}\u{3164}\u{fe00}-\u{fe0f}\u{feff}\u{ffa0}\u{fff0}-\u{fffb}\u{1bca0}-\u{1bca3}\u{1d173}-\u{1d17a}\u{e0000}-\u{e0fff}]/gu;

/** Text of others as it may be shown: each hazard as `\u{...}`. */
export function shown(text) {
  return String(text).replace(HAZARDS, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
}

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element: `h("a", {class: "x", href: "#/", on: {click}}, "text", child)`. Null children are left out. */
export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function s(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (name === "value" || name === "disabled") {
      element[name] = value;
    } else {
      element.setAttribute(name, value === true ? "" : shown(value));
    }
  }
  const there = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  element.append(...there.map((child) => (child instanceof Node ? child : shown(child))));
  return element;
}

/** Sets the text where it differs: writing the same text again costs a layout. */
export function setText(element, text) {
  const harmless = shown(text);
  if (element.textContent !== harmless) element.textContent = harmless;
}

/** Sets or removes an attribute where it differs. */
export function setAttr(element, name, value) {
  if (value === null || value === undefined || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else if (element.getAttribute(name) !== shown(value)) {
    element.setAttribute(name, shown(value));
  }
}

const dirty = new Set();
let planned = false;

/** Runs `render` once with the next frame, or within a second while the page is hidden and has no frames. */
export function schedule(render) {
  dirty.add(render);
  if (planned) return;
  planned = true;
  if (document.hidden) setTimeout(flush, 1000);
  else requestAnimationFrame(flush);
}

// A page that is hidden just after it asked for a frame would wait for it for as long as it stays hidden.
document.addEventListener("visibilitychange", () => {
  if (planned) setTimeout(flush, 0);
});

function flush() {
  planned = false;
  const renders = [...dirty];
  dirty.clear();
  for (const render of renders) render();
}

/** What a view has to undo when it goes. */
export class Scope {
  #undo = [];

  add(undo) {
    this.#undo.push(undo);
  }

  /** Calls `action` at once and then every `ms`, never twice at a time, not while the page is hidden. */
  every(ms, action) {
    let running = false;
    const turn = async () => {
      if (running || document.hidden) return;
      running = true;
      try {
        await action();
      } finally {
        running = false;
      }
    };
    const timer = setInterval(turn, ms);
    this.add(() => clearInterval(timer));
    turn();
  }

  end() {
    for (const undo of this.#undo.splice(0).reverse()) undo();
  }
}
