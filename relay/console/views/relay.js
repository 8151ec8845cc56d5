// One relay: everything about the one that serves this page, and of the others what the table shows.

import { drain, kickRelay, revokeRelay, undrain } from "../actions.js";
import { path } from "../api.js";
import { Scope, h, schedule } from "../dom.js";
import { NONE, ago, count, date, rtt, span, words } from "../format.js";
import { History, action, card, failure, link, otherFields, pairs, relayHref, relayState, since, state } from "../parts.js";
import { on, readStatus, store } from "../store.js";

const ROW = ["id", "name", "addresses", "version", "registrar", "reachable", "draining", "terminals", "links", "updated_at"];
const STATUS = ["id", "name", "mesh", "version", "incarnation", "uptime_s", "registrar", "draining", "ends_in_s", "not_ready", "links",
  "terminals", "sessions", "labels", "connections", "handshakes", "handshakes_refused", "table", "gossip_lag_ms", "gossip", "drops"];
const READ_MS = 2000;

export function open({ params, scope, replace }) {
  const own = params.length === 0 || params[0] === "";
  const head = h("div", { class: "page-head" });
  const cards = h("div", { class: "cards" });
  let history = null;
  const place = h("div", {});
  let drawn = null;
  let error = null;
  let shown = null;

  const nameOf = () => (own ? store.status?.name : params[0]);

  function render() {
    const name = nameOf();
    if (own && name) {
      // The address of this page is the same for whoever it is sent to.
      replace(`relays/${encodeURIComponent(name)}`, {});
    }
    if (name && history === null) {
      history = new History(path`/api/v1/relays/${name}/history`);
      place.replaceChildren(history.element);
      history.load();
    }
    const row = store.relays.get(name);
    const status = store.status?.name === name ? store.status : null;
    // Nothing to draw again while somebody reads the same.
    const key = JSON.stringify([row, status, error?.message]);
    if (key === shown) return;
    shown = key;
    drawn?.end();
    drawn = new Scope();
    if (!row && !status) {
      head.replaceChildren(h("h1", {}, name ?? "Relay"), h("p", { class: "quiet" }, error?.message ?? (store.relays.size > 0 ? "No relay has this name." : "Reading…")));
      cards.replaceChildren();
      return;
    }
    head.replaceChildren(h("h1", {}, name), row ? state(relayState(row)) : null, status ? h("span", { class: "badge" }, "this relay") : "",
      (row ?? status).registrar ? h("span", { class: "badge" }, "registrar") : "", h("span", { class: "spacer" }), actions(name, status));
    cards.replaceChildren(...(status ? statusCards(status, drawn) : []), ...(row ? rowCards(row, status, drawn) : []));
    if (error) cards.prepend(failure(error, readOwn));
  }

  async function readOwn() {
    if (store.status !== null && store.status.name !== nameOf()) return;
    try {
      await readStatus();
      error = null;
    } catch (failed) {
      if (failed.name !== "ApiError") throw failed;
      error = failed;
    }
    schedule(render);
  }

  scope.add(() => drawn?.end());
  for (const topic of ["relays", "status", "resync"]) scope.add(on(topic, () => schedule(render)));
  scope.add(on("relay", ({ name }) => name === nameOf() && history?.load()));
  scope.add(on("resync", () => history?.load()));
  scope.every(READ_MS, readOwn);
  schedule(render);
  return { title: params[0] || "This relay", back: "#/map", element: h("div", { class: "view page" }, head, cards, place) };
}

function actions(name, status) {
  const button = status
    ? [status.draining ? action("Undrain", () => undrain(name)) : action("Drain", () => drain(name))]
    : [action("Kick", () => kickRelay(name)), action("Revoke", () => revokeRelay(name), "danger")];
  return h("div", { class: "actions" }, button);
}

function statusCards(status, scope) {
  const ready = status.not_ready === null
    ? h("span", { class: "state reachable" }, "Takes terminals") : h("span", { class: "state draining" }, `Takes no terminals: ${status.not_ready}`);
  const lag = status.gossip_lag_ms;
  return [
    card("State", pairs([
      ["Ready", ready],
      ["Ends in", status.ends_in_s === null ? null : `${span(status.ends_in_s)} at the latest`],
      ["Up for", span(status.uptime_s)], ["Version", status.version], ["Mesh", status.mesh], ["Incarnation", count(status.incarnation)],
      ...otherFields(status, STATUS),
    ])),
    card("Load", pairs([
      ["Terminals", count(status.terminals)], ["Sessions", count(status.sessions)], ["Labels", count(status.labels)],
      ["Connections", count(status.connections)], ["Handshakes", `${count(status.handshakes)} under way, ${count(status.handshakes_refused)} refused`],
    ])),
    card("Table and gossip", pairs([
      ["Rows", `${count(status.table.rows)}: ${count(status.table.terminals)} terminals, ${count(status.table.relays)} relays`],
      ["Hash", h("code", {}, status.table.hash)],
      ["Lag", `half of the updates within ${lag.p50} ms, 99 of 100 within ${lag.p99} ms`],
      ...Object.entries(status.gossip).map(([name, value]) => [words(name), count(value)]),
    ])),
    card("Drops by reason", counters(status.drops)),
    card("Links of this relay", table(["Relay", "RTT", "Address", "Since"], status.links.map((row) => [
      link(relayHref(row.relay), row.relay), rtt(row.rtt_us), h("span", { class: "mono" }, row.address), since(scope, row.since),
    ]), "It has no link.")),
  ];
}

/** Counters that are not zero, the largest first. */
function counters(values) {
  const rows = Object.entries(values).filter(([, value]) => value > 0).sort((one, other) => other[1] - one[1]);
  return rows.length === 0 ? h("p", { class: "quiet" }, "Nothing was dropped or refused.") : pairs(rows.map(([name, value]) => [words(name), count(value)]));
}

function rowCards(row, status, scope) {
  const table_ = card("In the table", pairs([
    ["Addresses", row.addresses.length === 0 ? NONE : row.addresses.map((address) => h("div", { class: "mono" }, address))],
    ["Version", row.version || NONE], ["Terminals", count(row.terminals)], ["Last change", since(scope, row.updated_at)],
    ["Relay id", h("code", {}, row.id)], ...otherFields(row, ROW),
  ]));
  if (status) return [table_];
  return [table_, card("Links", table(["Relay", "RTT"], row.links.map((other) => [link(relayHref(other.relay), other.relay), rtt(other.rtt_us)]), "It has no link."))];
}

function table(titles, rows, empty) {
  if (rows.length === 0) return h("p", { class: "quiet" }, empty);
  return h("div", { class: "scroll-x" }, h("table", {}, h("thead", {}, h("tr", {}, titles.map((title) => h("th", { scope: "col" }, title)))),
    h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell) => h("td", {}, cell)))))));
}
