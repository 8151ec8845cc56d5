// Sessions that this relay is an end of or passes on, with their rates.

import { endSession } from "../actions.js";
import { h, schedule, setAttr, setText } from "../dom.js";
import { NONE, ago, count, date, rate } from "../format.js";
import { PagedList } from "../list.js";
import { Sparkline, action, failure, link, sessionHref, state, terminalHref } from "../parts.js";
import { SAMPLES, rates, sample } from "../rates.js";
import { on } from "../store.js";
import { VirtualTable } from "../table.js";

const STATES = ["active", "calling", "ended"];
const LABELS = { active: "Active", calling: "Calling", ended: "Ended" };
/** Between two reads of the counters of what is seen. */
const READ_MS = 2000;

const columns = [
  { name: "who", label: "From and to", draw: (cell, row) => cell.replaceChildren(
    link(terminalHref(row.caller), row.caller), h("span", { class: "arrow" }, "→"), link(terminalHref(row.callee), row.callee)) },
  { name: "service", label: "Service", text: (row) => row.service },
  { name: "status", label: "State", draw: (cell, row) => cell.replaceChildren(state(row.state), ...(row.reason ? [h("small", {}, row.reason)] : [])) },
  { name: "path", label: "Path", text: (row) => row.path || NONE },
  { name: "route", label: "Route", text: (row) => row.route.join(" → ") || NONE },
  { name: "rates", label: "Rate", draw: drawRates },
  { name: "started right", label: "Started", ticks: true, draw: (cell, row) => {
    setText(cell, ago(row.started_at));
    setAttr(cell, "title", date(row.started_at));
  } },
  { name: "end right", label: "", draw: (cell, row) => {
    cell.replaceChildren(...(row.state === "ended" ? [link(sessionHref(row.id), "Details")] : [
      action("End", () => endSession(row), "small")]));
  } },
];

function drawRates(cell, row) {
  if (row.state === "ended") {
    cell.replaceChildren();
    cell.spark = null;
    return;
  }
  if (!cell.spark) {
    cell.spark = new Sparkline("Rate of the last minutes", ["up", "down"]);
    cell.figures = h("span", { class: "latest" });
    cell.replaceChildren(cell.spark.element, cell.figures);
  }
  const { ups, downs } = rates(row.id);
  cell.spark.draw([ups, downs], SAMPLES);
  setText(cell.figures, ups.length === 0 ? "" : rate(ups.at(-1) + downs.at(-1)));
}

export function open({ query, scope, go, replace }) {
  const filter = { state: query.state ?? "active" };
  if (filter.state === "all") filter.state = "";
  let list = null;
  let table = null;
  const holder = h("div", { class: "table-holder" });
  const error = h("div", {});
  const found = h("span", { class: "quiet found", role: "status" });
  const chips = [...STATES, ""].map((name) => {
    const element = h("button", { type: "button", class: "chip", "aria-pressed": String(filter.state === name), on: { click: () => {
      filter.state = name;
      for (const chip of chips) setAttr(chip.element, "aria-pressed", String(chip.name === name));
      replace("sessions", { state: name || "all" });
      rebuild();
    } } }, name === "" ? "All" : state(name, LABELS[name]));
    return { name, element };
  });

  function rebuild() {
    table?.end();
    list = new PagedList("/api/v1/sessions", { ...filter }, (row) => filter.state === "" || row.state === filter.state, () => schedule(render));
    table = new VirtualTable({
      label: "Sessions",
      columns,
      source: {
        get length() { return list.length; },
        get isComplete() { return list.isComplete; },
        get ready() { return list.ready; },
        get error() { return list.error; },
        slice(first, last) {
          const rows = list.slice(first, last);
          const now = Date.now();
          for (const row of rows) {
            if (row && row.state !== "ended") sample(row, now);
          }
          return rows;
        },
      },
      open: (row) => go(sessionHref(row.id)),
      empty: () => (filter.state === "active" ? "No session runs over this relay." : "No session is like that."),
      differs: (before, after) => before.state !== after.state,
    });
    holder.replaceChildren(table.element);
    list.load();
  }

  function render() {
    error.replaceChildren(...(list.error ? [failure(list.error, () => list.resync())] : []));
    setText(found, list.ready ? `${count(list.length)}${list.isComplete ? "" : " or more"}` : "");
    table.update();
  }

  rebuild();
  scope.add(on("session", (row) => list.put(row)));
  scope.add(on("gone", ({ kind, id }) => kind === "session" && list.drop(id)));
  scope.add(on("resync", () => list.resync()));
  scope.every(READ_MS, () => (filter.state === "ended" || !list.ready || list.error ? null : list.refresh()));
  const timer = setInterval(() => table.tick(), 1000);
  scope.add(() => {
    clearInterval(timer);
    table.end();
  });
  return {
    title: "Sessions",
    element: h("div", { class: "view full" }, h("h1", { class: "unseen" }, "Sessions"),
      h("div", { class: "toolbar" }, h("div", { class: "chips", role: "group", "aria-label": "State" }, chips.map((chip) => chip.element)), found,
        h("span", { class: "quiet note-right" }, "Those over this relay")), error, holder),
    key: (event) => table.key(event),
  };
}
