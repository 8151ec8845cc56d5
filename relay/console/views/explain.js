// Would a call work, why not, and which way it goes.

import { query as address, read } from "../api.js";
import { h } from "../dom.js";
import { ago, rtt, words } from "../format.js";
import { icon } from "../icons.js";
import { card, failure, link, otherFields, pairs, relayHref, route, sessionHref, state, terminalHref } from "../parts.js";

const KNOWN = ["allowed", "code", "why", "advice", "decided_by", "service", "caller", "callee", "route", "hops", "rtt_us", "direct", "session", "last_call"];

/** The answer of `/api/v1/explain`, about a call or about a session. */
export function explanation(answer) {
  const { session, direct, last_call: last } = answer;
  const good = session ? !answer.code : answer.allowed;
  return h("section", { class: `card verdict ${good ? "yes" : "no"}`, "aria-label": "Answer", role: "status" },
    h("h2", {}, icon(good ? "yes" : "no"), verdict(answer), answer.code ? h("code", {}, answer.code) : null),
    h("p", {}, answer.why),
    answer.advice ? h("p", { class: "advice" }, answer.advice) : null,
    way(answer),
    pairs([
      ["Decided by", answer.decided_by ? words(answer.decided_by) : null],
      ["Round trip", typeof answer.rtt_us === "number" ? `${rtt(answer.rtt_us)} over the relays` : null],
      ["Direct path", direct ? `${words(direct.possible)}: ${direct.why}` : null],
      ["Caller", terminal(answer.caller)],
      ["Target", terminal(answer.callee)],
      ["Last such call", last ? [link(sessionHref(last.id), ago(last.started_at)), `, ${last.reason ?? last.state}`] : null],
      ...otherFields(answer, KNOWN),
    ]));
}

function verdict({ session, code, allowed }) {
  if (session) return code ? "The session ended with" : `The session is ${session.state}`;
  return allowed ? "The relays would carry this call" : "This call would not get through";
}

/** The route with the round trip of each hop, where the answer has them. */
function way({ route: names, hops }) {
  if (!names || names.length === 0) return null;
  if (!Array.isArray(hops) || hops.length === 0) return h("p", { class: "route big" }, route(names));
  return h("p", { class: "route big" }, link(relayHref(names[0]), names[0]), hops.map((hop) => [
    h("span", { class: "hop" }, typeof hop.rtt_us === "number" ? rtt(hop.rtt_us) : "not linked"),
    link(relayHref(hop.to), hop.to), hop.draining ? state("draining") : null,
  ]));
}

function terminal(row) {
  if (row === undefined) return null;
  if (row === null) return "Not in the table";
  const at = row.attachments.map(({ relay, role, address: from }) => `${role} at ${relay} from ${from}`).join(", ");
  return [link(terminalHref(row.id), row.id), " ", state(row.state), at ? h("small", {}, ` ${at}`) : null];
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
