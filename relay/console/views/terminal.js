// One terminal: what the table says of it, its sessions over this relay, its history.

import { kickTerminal, revokeTerminal } from "../actions.js";
import { path, query, read } from "../api.js";
import { Scope, h, schedule } from "../dom.js";
import { NONE, count, date } from "../format.js";
import { History, action, card, failure, link, otherFields, pairs, relayHref, route, sessionHref, since, state, terminalHref } from "../parts.js";
import { on } from "../store.js";

const KNOWN = ["id", "type", "attributes", "state", "sessions", "attachments", "updated_at"];
/** Pages of this relay's sessions that are looked through for those of the terminal. */
const SESSION_PAGES = 5;
const AGAIN_MS = 1000;

export function open({ params: [name], scope }) {
  let row = null;
  let error = null;
  let gone = false;
  const head = h("div", { class: "page-head" });
  const facts = h("div", { class: "cards" });
  const sessions = sessionsCard(name);
  const history = new History(path`/api/v1/terminals/${name}/history`);
  let drawn = null;

  function render() {
    drawn?.end();
    drawn = new Scope();
    if (row === null) {
      facts.replaceChildren();
      head.replaceChildren(h("h1", {}, name), ...(error ? [failure(error, load)] : []));
      return;
    }
    head.replaceChildren(h("h1", {}, row.id), gone ? h("span", { class: "state unreachable" }, "This account is gone") : state(row.state),
      h("span", { class: "spacer" }),
      h("div", { class: "actions" }, link(`#/explain?to=${encodeURIComponent(name)}`, "Explain a call to it", "button"),
        action("Kick", () => kickTerminal(name)), action("Revoke", () => revokeTerminal(name), "danger")));
    const attributes = Object.entries(row.attributes);
    facts.replaceChildren(
      card("Terminal", pairs([
        ["Type", row.type || NONE], ["Sessions", count(row.sessions)], ["Last change", since(drawn, row.updated_at)], ...otherFields(row, KNOWN),
      ]), attributes.length === 0 ? null : pairs(attributes)),
      card("Attachments", row.attachments.length === 0 ? h("p", { class: "quiet" }, "None.") : attachments(row.attachments)));
  }

  async function load() {
    try {
      row = await read(path`/api/v1/terminals/${name}`);
      error = null;
      gone = false;
    } catch (failed) {
      if (failed.name !== "ApiError") throw failed;
      error = failed;
      gone = failed.status === 404;
    }
    schedule(render);
  }

  let again = null;
  const beside = () => {
    again ??= setTimeout(() => {
      again = null;
      history.load();
      sessions.load();
    }, AGAIN_MS);
  };
  scope.add(() => {
    clearTimeout(again);
    drawn?.end();
  });
  scope.add(on("terminal", (changed) => {
    if (changed.id !== name) return;
    row = changed;
    gone = false;
    schedule(render);
    beside();
  }));
  scope.add(on("session", (changed) => (changed.caller === name || changed.callee === name) && beside()));
  scope.add(on("gone", ({ kind, id }) => {
    if (kind !== "terminal" || id !== name) return;
    gone = true;
    schedule(render);
  }));
  scope.add(on("resync", () => {
    load();
    beside();
  }));
  load();
  sessions.load();
  history.load();
  return { title: name, back: "#/terminals", element: h("div", { class: "view page" }, head, facts, sessions.element, history.element) };
}

function attachments(rows) {
  return h("div", { class: "scroll-x" }, h("table", {}, h("thead", {}, h("tr", {}, ["Relay", "Role", "Since", "Address"].map((title) => h("th", { scope: "col" }, title)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, h("td", {}, link(relayHref(row.relay), row.relay)), h("td", {}, row.role),
      h("td", {}, date(row.since)), h("td", { class: "mono" }, row.address))))));
}

function sessionsCard(name) {
  const body = h("div", {}, h("p", { class: "quiet" }, "Reading…"));
  const mine = (row) => row.caller === name || row.callee === name;
  return {
    element: card("Sessions over this relay", body),
    async load() {
      try {
        const rows = [];
        let after = null;
        for (let page = 0; page < SESSION_PAGES; page += 1) {
          const { items, next } = await read(query("/api/v1/sessions", { limit: 1000, after }));
          rows.push(...items.filter(mine));
          after = next;
          if (next === null) break;
        }
        rows.sort((one, other) => other.started_at - one.started_at);
        body.replaceChildren(rows.length === 0 ? h("p", { class: "quiet" }, "None that this relay is an end of or passes on.") : sessionTable(rows, name));
      } catch (failed) {
        if (failed.name !== "ApiError") throw failed;
        body.replaceChildren(failure(failed, this.load.bind(this)));
      }
    },
  };
}

function sessionTable(rows, name) {
  const other = (row) => (row.caller === name ? row.callee : row.caller);
  return h("div", { class: "scroll-x" }, h("table", {}, h("thead", {}, h("tr", {}, ["Session", "State", "With", "Service", "Route", "Started"].map((title) => h("th", { scope: "col" }, title)))),
    h("tbody", {}, rows.slice(0, 50).map((row) => h("tr", {},
      h("td", { class: "mono" }, link(sessionHref(row.id), row.id.slice(-8))),
      h("td", {}, state(row.state), row.reason ? h("small", {}, ` ${row.reason}`) : null),
      h("td", {}, h("span", { class: "quiet" }, row.caller === name ? "to " : "from "), link(terminalHref(other(row)), other(row))),
      h("td", {}, row.service), h("td", {}, route(row.route)), h("td", {}, date(row.started_at)))))));
}
