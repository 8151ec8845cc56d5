// Parts that several views are made of.

import { read } from "./api.js";
import { h, s, schedule, setText } from "./dom.js";
import { message } from "./dialogs.js";
import { NONE, ago, date, words } from "./format.js";
import { icon, stateLabel } from "./icons.js";

/** A state with its sign. */
export function state(value, label = stateLabel(value)) {
  return h("span", { class: `state ${value}` }, icon(value, "sign"), h("span", {}, label));
}

export function relayState(row) {
  if (!row.reachable) return "unreachable";
  return row.draining ? "draining" : "reachable";
}

export const terminalHref = (name) => `#/terminals/${encodeURIComponent(name)}`;
export const sessionHref = (id) => `#/sessions/${encodeURIComponent(id)}`;
export const relayHref = (name) => `#/relays/${encodeURIComponent(name)}`;

export function link(href, text, className = null) {
  return h("a", { href, class: className }, text);
}

/** Relays with links, an arrow between. */
export function route(names) {
  if (!names || names.length === 0) return [NONE];
  return names.flatMap((name, at) => (at === 0 ? [link(relayHref(name), name)] : [h("span", { class: "arrow" }, "→"), link(relayHref(name), name)]));
}

/** Pairs of a name and a value as a list of definitions. */
export function pairs(rows) {
  return h("dl", { class: "pairs" }, rows
    .filter(([, value]) => value !== undefined && value !== null)
    .map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

/** What a view does not know by name, as pairs: fields of a later version of the API are shown all the same. */
export function otherFields(row, known) {
  return Object.entries(row ?? {})
    .filter(([name, value]) => !known.includes(name) && value !== null && value !== "")
    .map(([name, value]) => [words(name), typeof value === "object" ? h("code", {}, JSON.stringify(value)) : String(value)]);
}

export function card(title, ...children) {
  return h("section", { class: "card", "aria-label": title }, h("h2", {}, title), children);
}

/** An error where a view should be, with a way to try again. */
export function failure(error, again) {
  return h("div", { class: "failure", role: "alert" }, icon("unreachable"), h("p", {}, error.message),
    again ? h("button", { type: "button", on: { click: again } }, "Try again") : null);
}

/** A button for an action. */
export function action(label, perform, className = null) {
  const button = h("button", { type: "button", class: className, on: { click: async () => {
    button.disabled = true;
    try {
      await perform();
    } catch (error) {
      message(error.message, true);
    } finally {
      button.disabled = false;
    }
  } } }, label);
  return button;
}

/** A text that says how long ago `at` was, kept true. */
export function since(scope, at) {
  const element = h("time", { title: date(at) }, ago(at));
  const timer = setInterval(() => setText(element, ago(at)), 1000);
  scope.add(() => clearInterval(timer));
  return element;
}

/** What this relay saw of a terminal or relay since its start, the latest first. */
export class History {
  #busy = false;

  constructor(base) {
    this.base = base;
    this.list = h("ol", { class: "history" });
    this.note = h("p", { class: "quiet" });
    this.element = card("History", this.note, this.list);
  }

  async load() {
    if (this.#busy) return;
    this.#busy = true;
    try {
      const { items } = await read(this.base);
      this.list.replaceChildren(...items.map(({ at, what, detail }) => h("li", {},
        h("time", { title: date(at) }, date(at)), h("b", {}, words(what)), h("span", {}, detail))));
      setText(this.note, items.length === 0 ? "This relay saw nothing since its start." : "");
    } catch (error) {
      if (error.name !== "ApiError") throw error;
      setText(this.note, error.message);
    } finally {
      this.#busy = false;
      this.note.hidden = this.note.textContent === "";
    }
  }
}

/** A small chart of the last values; several series share one scale. */
export class Sparkline {
  constructor(label, series, width = 96, height = 20) {
    this.width = width;
    this.height = height;
    this.lines = series.map((name) => s("polyline", { class: name }));
    this.element = s("svg", {
      class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label,
    }, this.lines);
  }

  draw(values, length) {
    const top = Math.max(1, ...values.flat().filter(Number.isFinite));
    this.lines.forEach((line, at) => {
      const series = values[at];
      const step = this.width / Math.max(1, length - 1);
      const shift = this.width - step * (series.length - 1);
      const y = (value) => (this.height - 1.5 - (value / top) * (this.height - 3)).toFixed(1);
      line.setAttribute("points", series.map((value, n) => `${(shift + n * step).toFixed(1)},${y(value)}`).join(" "));
    });
  }
}

/** Calls `render` with the next frame whenever `topic` changes, for as long as the scope lasts. */
export function follow(scope, subscribe, topics, render) {
  for (const topic of topics) scope.add(subscribe(topic, () => schedule(render)));
}
