// Would a call work, why not, and which way it goes.

import { query as address, read } from "../api.js";
import { h } from "../dom.js";
import { NONE, rtt } from "../format.js";
import { icon } from "../icons.js";
import { card, failure, otherFields, pairs, route } from "../parts.js";

const KNOWN = ["allowed", "code", "why", "route"];

/** The answer of `/api/v1/explain`. */
export function explanation(answer) {
  return h("section", { class: `card verdict ${answer.allowed ? "yes" : "no"}`, "aria-label": "Answer", role: "status" },
    h("h2", {}, icon(answer.allowed ? "yes" : "no"), answer.allowed ? "The relays would carry this call" : "This call would not get through",
      answer.code ? h("code", {}, answer.code) : null),
    h("p", {}, answer.why),
    answer.route?.length > 0 ? h("p", { class: "route big" }, route(answer.route)) : null,
    hops(answer.hops),
    pairs(otherFields(answer, [...KNOWN, ...(Array.isArray(answer.hops) ? ["hops"] : [])])));
}

/** Round trips from relay to relay, where the answer has them. */
function hops(rows) {
  if (!Array.isArray(rows) || rows.length === 0) return null;
  return pairs(rows.map((hop) => [`${hop.from ?? NONE} → ${hop.to ?? NONE}`, rtt(hop.rtt_us)]));
}

export function open({ query, scope, replace }) {
  const field = (name, label, placeholder, required) => h("label", {}, h("span", {}, label), h("input", {
    type: "text", name, value: query[name] ?? "", placeholder, required, spellcheck: "false", autocapitalize: "off", autocomplete: "off", maxlength: "63",
  }));
  const answer = h("div", {});
  const form = h("form", { class: "ask", on: { submit: (event) => {
    event.preventDefault();
    const values = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, value.trim()]));
    replace("explain", values);
    ask(values);
  } } }, field("from", "From", "terminal that calls", true), field("to", "To", "terminal that is called", true),
    field("service", "Service", "ssh", false), h("button", { type: "submit", class: "primary" }, "Explain"));
  let turn = 0;
  scope.add(() => { turn += 1; });

  async function ask(values) {
    turn += 1;
    const mine = turn;
    try {
      const said = await read(address("/api/v1/explain", values));
      if (mine === turn) answer.replaceChildren(explanation(said));
    } catch (error) {
      if (error.name !== "ApiError") throw error;
      if (mine === turn) answer.replaceChildren(failure(error));
    }
  }

  if (query.from && query.to) ask({ from: query.from, to: query.to, service: query.service ?? "" });
  return {
    title: "Explain",
    element: h("div", { class: "view page" }, h("h1", { class: "unseen" }, "Explain"), card("May A call B, and which way", form), answer),
    start: () => [...form.querySelectorAll("[required]")].find((input) => input.value === "")?.focus(),
  };
}
