// The frame around the views: where one is, the state of the connection, keys.

import { Scope, h, schedule, setAttr, setText, shown } from "./dom.js";
import { askForToken, message, showKeys } from "./dialogs.js";
import { icon, logo } from "./icons.js";
import { hurry, logIn, on, start, store } from "./store.js";
import { nextTheme, theme } from "./theme.js";
import * as explain from "./views/explain.js";
import * as map from "./views/map.js";
import * as relay from "./views/relay.js";
import * as session from "./views/session.js";
import * as sessions from "./views/sessions.js";
import * as terminal from "./views/terminal.js";
import * as terminals from "./views/terminals.js";

/** The second key after g. */
const CHORD_MS = 1500;
const PLACES = [
  { key: "m", name: "map", label: "Map", icon: "map" },
  { key: "t", name: "terminals", label: "Terminals", icon: "terminals" },
  { key: "s", name: "sessions", label: "Sessions", icon: "sessions" },
  { key: "r", name: "relays", label: "This relay", icon: "relay" },
  { key: "e", name: "explain", label: "Explain", icon: "explain" },
];
/** Views of a list, and of one item of it. */
const VIEWS = {
  map: [map], terminals: [terminals, terminal], sessions: [sessions, session], relays: [relay, relay], explain: [explain],
};

let view = null;
let scope = new Scope();
/** Set while the address changes without another view. */
let silent = null;

const main = h("main", { id: "main", tabindex: "-1" });
const banner = h("div", { class: "banner", role: "alert", hidden: true });
const mesh = h("span", { class: "mesh-name" });
const where = h("span", { class: "relay-name" });
const live = h("span", { class: "live", role: "status" });
const who = h("button", { type: "button", class: "plain who", "aria-keyshortcuts": "l", on: { click: toggleLogIn } });
const look = h("button", { type: "button", class: "plain", "aria-keyshortcuts": "t", on: { click: changeTheme } });
const help = h("button", { type: "button", class: "plain", "aria-label": "Keys", title: "Keys (?)", "aria-keyshortcuts": "?", on: { click: showKeys } }, icon("keys"));
const links = PLACES.map((place) => h("a", { href: `#/${place.name}`, title: `${place.label} (g ${place.key})`, "aria-keyshortcuts": `g ${place.key}` },
  icon(place.icon), h("span", {}, place.label)));

function parse(hash) {
  const [where_, search = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const [name, ...rest] = where_.split("/");
  const params = rest.filter((part) => part !== "").map(decode);
  return { name: name in VIEWS ? name : "map", params, query: Object.fromEntries(new URLSearchParams(search)) };
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function navigate() {
  if (location.hash === silent) return;
  silent = null;
  const { name, params, query } = parse(location.hash);
  const [list, item = list] = VIEWS[name];
  scope.end();
  scope = new Scope();
  view = (params.length > 0 ? item : list).open({ params, query, scope, go, replace });
  main.replaceChildren(view.element);
  title();
  for (const [at, place] of PLACES.entries()) setAttr(links[at], "aria-current", place.name === name ? "page" : null);
  main.scrollTop = 0;
  main.focus({ preventScroll: true });
  view.start?.();
}

function title() {
  document.title = shown(`${view?.title ?? "Tasuki"} · ${store.status?.name ?? "Tasuki"}`);
}

function go(href) {
  location.hash = href;
}

/** Changes the address to what the view shows, without another entry in the history. */
function replace(place, values) {
  const pairs = Object.entries(values).filter(([, value]) => value !== "");
  const hash = `#/${place}${pairs.length > 0 ? `?${new URLSearchParams(pairs)}` : ""}`;
  if (location.hash === hash) return;
  silent = hash;
  history.replaceState(null, "", hash);
}

async function toggleLogIn() {
  if (store.operator) {
    logIn(null);
    message("Logged out: read-only.");
  } else if (await askForToken()) {
    message("Logged in as operator.");
  }
}

function changeTheme() {
  nextTheme();
  drawTheme();
}

function drawTheme() {
  const said = { auto: "as the system has it", dark: "dark", light: "light" }[theme()];
  setAttr(look, "aria-label", `Colours: ${said}`);
  setAttr(look, "title", `Colours: ${said} (t)`);
  look.replaceChildren(icon("theme"));
}

function drawLogIn() {
  const name = store.operator ? "Operator" : "Read-only";
  who.replaceChildren(icon(store.operator ? "unlock" : "lock"), h("span", {}, name));
  who.classList.toggle("operator", store.operator);
  setAttr(who, "title", store.operator ? "Log out (l)" : "Log in to act (l)");
  setAttr(who, "aria-label", store.operator ? "Operator: log out" : "Read-only: log in");
}

function drawStatus() {
  const { status } = store;
  if (status === null) return;
  setText(mesh, status.mesh);
  setText(where, status.name);
  title();
}

let countdown = null;

function drawConnection() {
  const { state, error, retryAt } = store.connection;
  clearTimeout(countdown);
  const words = { connecting: "Connecting", live: "Live", lost: "Lost", paused: "Paused" };
  live.className = `live is-${state}`;
  const polled = state === "lost" && error.status === 503;
  setText(live, polled ? "Not live" : words[state]);
  document.body.classList.toggle("stale", state === "lost" && !polled);
  banner.hidden = state !== "lost";
  if (state !== "lost") return;
  const seconds = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
  const again = seconds > 0 ? `trying again in ${seconds} s` : "trying again";
  const relayName = store.status?.name ?? "the relay";
  if (error.status === 401) {
    const text = h("span", {}, "This relay shows its state to operators only.");
    banner.replaceChildren(icon("lock"), text, h("button", { type: "button", on: { click: async () => (await askForToken()) && hurry() } }, "Log in"));
    return;
  }
  const what = polled ? "No live changes: " : `Connection to ${relayName} lost, `;
  const text = polled ? `${what}${error.message}. Read again each 5 s.` : `${what}${again}`;
  banner.replaceChildren(icon("unreachable"), h("span", {}, text),
    h("button", { type: "button", on: { click: hurry } }, "Try now"));
  countdown = setTimeout(drawConnection, 500);
}

let chord = null;

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || document.querySelector("dialog[open]")) return;
  const typing = event.target.closest?.("input, select, textarea");
  if (event.key === "Escape") {
    if (typing) {
      event.target.blur();
      (view.leaveSearch ?? (() => main.focus()))();
    } else if (view.back) {
      go(view.back);
    }
    return;
  }
  if (typing) {
    // From the search down into what it found.
    if ((event.key === "ArrowDown" || event.key === "Enter") && typing.type === "search") {
      view.leaveSearch?.();
      view.key?.(new KeyboardEvent("keydown", { key: "Home" }));
      event.preventDefault();
    }
    return;
  }
  if (chord !== null) {
    clearTimeout(chord);
    chord = null;
    const place = PLACES.find(({ key }) => key === event.key);
    if (place) {
      go(`#/${place.name}`);
      event.preventDefault();
      return;
    }
  }
  const bound = {
    g: () => { chord = setTimeout(() => { chord = null; }, CHORD_MS); },
    "/": search,
    "?": showKeys,
    l: toggleLogIn,
    t: changeTheme,
  }[event.key];
  if (bound) {
    event.preventDefault();
    bound();
  } else if (event.key !== "Enter" || !event.target.closest?.("a, button")) {
    // Wherever the focus was left: a link and a button keep their Enter, all else moves in the view.
    view.key?.(event);
  }
}

function search() {
  if (!view.search) {
    location.hash = "#/terminals";
    navigate();
    silent = location.hash;
  }
  view.search();
}

function frame() {
  document.body.append(
    h("a", { class: "skip", href: "#main", on: { click: (event) => {
      event.preventDefault();
      main.focus();
    } } }, "To the content"),
    h("header", {}, h("a", { class: "brand", href: "#/map", "aria-label": "Tasuki" }, logo(), h("b", {}, "Tasuki")),
      h("span", { class: "here" }, mesh, where),
      h("nav", { "aria-label": "Views" }, links),
      h("div", { class: "tools" }, live, who, look, help)),
    banner, main);
}

frame();
drawTheme();
drawLogIn();
on("login", drawLogIn);
on("status", () => schedule(drawStatus));
on("connection", drawConnection);
drawConnection();
document.addEventListener("keydown", keys);
window.addEventListener("hashchange", navigate);
start();
navigate();
