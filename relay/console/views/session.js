// One session.

import { endSession } from "../actions.js";
import { path, read } from "../api.js";
import { h, schedule, setText } from "../dom.js";
import { NONE, bytes, count, date, rate, span } from "../format.js";
import { Sparkline, action, card, failure, link, otherFields, pairs, route, state, terminalHref } from "../parts.js";
import { SAMPLES, rates, sample } from "../rates.js";
import { on } from "../store.js";
import { explanation } from "./explain.js";

const KNOWN = ["id", "caller", "callee", "service", "state", "started_at", "ended_at", "reason", "route", "path",
  "bytes_to_callee", "packets_to_callee", "bytes_to_caller", "packets_to_caller"];
const READ_MS = 2000;

export function open({ params: [id], scope }) {
  let row = null;
  let error = null;
  const head = h("div", { class: "page-head" });
  const facts = h("div", { class: "cards" });
  const why = h("div", {});
  const chart = new Sparkline("Rates to the callee and to the caller", ["up", "down"], 600, 90);
  const up = h("b", {});
  const down = h("b", {});
  const traffic = h("div", { class: "traffic" });
  const figure = h("div", { class: "chart" }, chart.element,
    h("div", { class: "chart-key" }, h("span", { class: "up" }, "To the callee ", up), h("span", { class: "down" }, "To the caller ", down)));

  function render() {
    if (row === null) {
      head.replaceChildren(h("h1", { class: "mono" }, id), ...(error ? [failure(error, load)] : []));
      return;
    }
    const running = row.state !== "ended";
    head.replaceChildren(
      h("h1", {}, link(terminalHref(row.caller), row.caller), h("span", { class: "arrow" }, "→"), link(terminalHref(row.callee), row.callee)),
      state(row.state), h("span", { class: "spacer" }),
      h("div", { class: "actions" }, action("Explain", showWhy), running ? action("End session", () => endSession(row), "danger") : null));
    facts.replaceChildren(
      ...(error ? [failure(error, load)] : []),
      card("Session", pairs([
        ["Service", row.service], ["Path", row.path || NONE], ["Route", h("span", { class: "route" }, route(row.route))],
        ["Started", date(row.started_at)],
        ["Runs for", running ? span((Date.now() - row.started_at) / 1000) : null],
        ["Ended", row.ended_at ? date(row.ended_at) : null],
        ["Lasted", row.ended_at ? span((row.ended_at - row.started_at) / 1000) : null],
        ["Reason", row.reason], ["Session id", h("code", {}, row.id)], ...otherFields(row, KNOWN),
      ])),
      card("Through this relay", traffic, running ? figure : null));
    traffic.replaceChildren(pairs([
      ["To the callee", `${bytes(row.bytes_to_callee)}, ${count(row.packets_to_callee)} packets`],
      ["To the caller", `${bytes(row.bytes_to_caller)}, ${count(row.packets_to_caller)} packets`],
    ]));
    const { ups, downs } = rates(id);
    chart.draw([ups, downs], SAMPLES);
    setText(up, rate(ups.at(-1)));
    setText(down, rate(downs.at(-1)));
  }

  async function showWhy() {
    why.replaceChildren(explanation(await read(`/api/v1/explain?session=${encodeURIComponent(id)}`)));
  }

  async function load() {
    try {
      row = await read(path`/api/v1/sessions/${id}`);
      sample(row);
      error = null;
    } catch (failed) {
      if (failed.name !== "ApiError") throw failed;
      error = failed;
    }
    schedule(render);
  }

  scope.add(on("session", (changed) => {
    if (changed.id !== id) return;
    row = changed;
    schedule(render);
  }));
  scope.add(on("resync", load));
  load();
  scope.every(READ_MS, () => (row !== null && row.state !== "ended" && error?.status !== 404 ? load() : null));
  return { title: "Session", back: "#/sessions", element: h("div", { class: "view page" }, head, facts, why) };
}
