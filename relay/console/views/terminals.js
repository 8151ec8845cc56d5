// The table of all terminals.

import { h, schedule, setAttr, setText } from "../dom.js";
import { NONE, ago, count, date } from "../format.js";
import { stateLabel } from "../icons.js";
import { PagedList } from "../list.js";
import { failure, follow, link, relayHref, state, terminalHref } from "../parts.js";
import { on, store } from "../store.js";
import { VirtualTable } from "../table.js";

const STATES = ["logged-in", "in-communication", "logged-out", "unreachable"];
/** After the last key of a search. */
const TYPING_MS = 150;

const columns = [
  { name: "id", label: "Terminal", draw: (cell, row) => cell.replaceChildren(link(terminalHref(row.id), row.id)) },
  { name: "status", label: "State", draw: (cell, row) => cell.replaceChildren(state(row.state)) },
  { name: "type", label: "Type", text: (row) => row.type || NONE },
  { name: "attachments", label: "Attached to", draw: drawAttachments },
  { name: "sessions right", label: "Sessions", text: (row) => (row.sessions > 0 ? count(row.sessions) : NONE) },
  { name: "changed right", label: "Last change", ticks: true, draw: (cell, row) => {
    setText(cell, ago(row.updated_at));
    setAttr(cell, "title", date(row.updated_at));
  } },
];

function drawAttachments(cell, row) {
  cell.replaceChildren(...row.attachments.map(({ relay, role }) =>
    h("span", { class: `attachment ${role}`, title: `${role} at ${relay}` }, link(relayHref(relay), relay))));
}

export function open({ query, scope, go, replace }) {
  const filter = { q: query.q ?? "", state: query.state ?? "", type: query.type ?? "" };
  let list = null;
  let table = null;
  const holder = h("div", { class: "table-holder" });
  const error = h("div", {});
  const controls = filters(filter, () => {
    replace("terminals", filter);
    rebuild();
  });

  function accepts(row) {
    return (filter.state === "" || row.state === filter.state) && (filter.type === "" || row.type === filter.type)
      && row.id.includes(filter.q);
  }

  function rebuild() {
    table?.end();
    list = new PagedList("/api/v1/terminals", { ...filter }, accepts, () => schedule(render));
    table = new VirtualTable({
      label: "Terminals",
      columns,
      source: list,
      open: (row) => go(terminalHref(row.id)),
      empty: () => (filter.q || filter.state || filter.type ? "No terminal is like that." : "There is no terminal yet. Make a token with tasuki-relay token terminal NAME."),
      differs: (before, after) => before.state !== after.state || before.attachments.length !== after.attachments.length,
    });
    holder.replaceChildren(table.element);
    list.load();
  }

  function render() {
    controls.update(list);
    error.replaceChildren(...(list.error ? [failure(list.error, () => list.resync())] : []));
    table.update();
  }

  rebuild();
  scope.add(on("terminal", (row) => list.put(row)));
  scope.add(on("gone", ({ kind, id }) => kind === "terminal" && list.drop(id)));
  scope.add(on("resync", () => list.resync()));
  follow(scope, on, ["summary"], () => controls.update(list));
  const timer = setInterval(() => table.tick(), 1000);
  scope.add(() => {
    clearInterval(timer);
    table.end();
  });
  return {
    title: "Terminals",
    element: h("div", { class: "view full" }, h("h1", { class: "unseen" }, "Terminals"), controls.element, error, holder),
    key: (event) => table.key(event),
    search: () => controls.focus(),
    leaveSearch: () => table.focus(),
    /** For measurements. */
    held: () => list.held,
  };
}

function filters(filter, changed) {
  let typing = null;
  const search = h("input", {
    type: "search", placeholder: "Search by name", "aria-label": "Search terminals by name", value: filter.q, spellcheck: "false",
    autocapitalize: "off", autocomplete: "off", maxlength: "63", "aria-keyshortcuts": "/",
    on: { input: () => {
      clearTimeout(typing);
      typing = setTimeout(() => {
        filter.q = search.value.trim().toLowerCase();
        changed();
      }, TYPING_MS);
    } },
  });
  const chips = ["", ...STATES].map((name) => {
    const number = h("b", {}, "");
    const label = name === "" ? h("span", {}, "All") : state(name);
    const element = h("button", { type: "button", class: "chip", "aria-pressed": String(filter.state === name), "aria-label": name === "" ? "All states" : stateLabel(name), on: { click: () => {
      filter.state = name;
      for (const chip of chips) setAttr(chip.element, "aria-pressed", String(chip.name === name));
      changed();
    } } }, label, number);
    return { name, number, element };
  });
  const types = h("select", { "aria-label": "Type", on: { change: () => {
    filter.type = types.value;
    changed();
  } } }, h("option", { value: "" }, "All types"));
  const found = h("span", { class: "quiet found", role: "status" });
  let known = "";

  function updateTypes() {
    const names = Object.keys(store.summary?.types ?? {});
    if (filter.type !== "" && !names.includes(filter.type)) names.push(filter.type);
    names.sort();
    const key = JSON.stringify(names);
    if (key === known || document.activeElement === types) return;
    known = key;
    types.replaceChildren(h("option", { value: "" }, "All types"), ...names.map((name) => h("option", { value: name }, name || "no type")));
    types.value = filter.type;
  }

  return {
    element: h("div", { class: "toolbar" }, h("div", { class: "search" }, search, h("kbd", { "aria-hidden": "true" }, "/")),
      h("div", { class: "chips", role: "group", "aria-label": "State" }, chips.map((chip) => chip.element)), types, found),
    focus() {
      search.focus();
      search.select();
    },
    update(list) {
      updateTypes();
      for (const { name, number } of chips) setText(number, count(store.summary?.terminals[name || "total"]));
      const filtered = filter.q !== "" || filter.type !== "" || filter.state !== "";
      setText(found, list.ready && filtered ? `${count(list.length)}${list.isComplete ? "" : " or more"} found` : "");
    },
  };
}
