// A relay that is none: the API that the console reads, with made-up rows that change as fast as one likes.
//
//   node fake.mjs [--port 8433] [--relays 20] [--terminals 5000] [--rate 500] [--sessions 200] [--seed 1]
//
// Token of actions: "fake-token-of-the-console". The same seed makes the same mesh. Loopback only.

import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { extname, join, normalize } from "node:path";

export const TOKEN = "fake-token-of-the-console";
const FILES = fileURLToPath(new URL("../../relay/console/", import.meta.url));
const TYPES = { ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml" };
/** As relay/src/io/http/console.rs says it. */
const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
const REMEMBERED = 2000;
const TURN_MS = 20;
const KINDS = ["camera", "printer", "sensor", "workstation", "gateway", "till"];
const SERVICES = ["ssh", "http", "rtsp", "modbus", "lan"];
const CITIES = ["ams", "cdg", "dub", "fra", "gru", "hel", "hnd", "iad", "jnb", "lax", "lhr", "mad", "mil", "nrt", "ord", "osl", "sin", "syd", "waw", "zrh"];

/** mulberry32: chance that a seed repeats. */
function chance(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function cities(count) {
  return Array.from({ length: count }, (_, n) => `${CITIES[n % CITIES.length]}-${1 + Math.floor(n / CITIES.length)}`);
}

export class Fake {
  #watchers = new Set();
  #sockets = new Set();
  #log = [];
  #seq = 0;
  #timers = [];
  incarnation = 1;
  started = Date.now();

  constructor({ relays = 20, names = cities(relays), terminals = 5000, rate = 500, sessions = 200, seed = 1, guarded = false } = {}) {
    this.random = chance(seed);
    this.rate = rate;
    /** Whether reads need the token too, as on an address that is not loopback. */
    this.guarded = guarded;
    this.relays = new Map();
    this.terminals = new Map();
    this.sessions = new Map();
    this.#makeRelays(names);
    for (let n = 0; n < terminals; n += 1) this.#makeTerminal(n);
    for (const relay of this.relays.values()) relay.terminals = 0;
    for (const row of this.terminals.values()) this.#count(row, 1);
    this.ids = [...this.terminals.keys()].sort();
    for (let n = 0; n < sessions && this.ids.length > 1; n += 1) this.#makeSession();
    this.server = createServer((request, response) => this.#serve(request, response).catch((error) => {
      console.error(error);
      response.destroy();
    }));
    this.server.on("connection", (socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
    });
  }

  async listen(port = 0) {
    await new Promise((resolve, reject) => {
      this.server.once("error", reject);
      this.server.listen(port, "127.0.0.1", resolve);
    });
    let due = 0;
    let last = performance.now();
    this.#timers.push(setInterval(() => {
      const now = performance.now();
      // After a stall of the machine there is no flood of all that did not happen.
      due = Math.min(this.rate, due + (this.rate * (now - last)) / 1000);
      last = now;
      for (; due >= 1; due -= 1) this.change();
    }, TURN_MS));
    this.#timers.push(setInterval(() => this.#traffic(), 500));
    this.#timers.push(setInterval(() => this.#write(": still here\n\n"), 15000));
    this.url = `http://127.0.0.1:${this.server.address().port}/`;
    return this.url;
  }

  /** As a killed process: every connection is reset. */
  async close() {
    for (const timer of this.#timers.splice(0)) clearInterval(timer);
    const closed = new Promise((resolve) => this.server.close(resolve));
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }

  // The mesh

  #pick(list) {
    return list[Math.floor(this.random() * list.length)];
  }

  #makeRelays(names) {
    const count = names.length;
    names.forEach((name, n) => this.relays.set(name, {
      id: (0x5eed0000 + n).toString(16).padStart(16, "0"), name, addresses: [`203.0.113.${n + 1}:4433`, `[2001:db8::${(n + 1).toString(16)}]:4433`], version: "0.1.0",
      registrar: n === 0, reachable: !(count > 5 && n === count - 3), draining: count > 5 && n === 4, terminals: 0, links: [], updated_at: Date.now(),
    }));
    const places = names.map(() => ({ x: this.random(), y: this.random() }));
    const far = (a, b) => Math.hypot(places[a].x - places[b].x, places[a].y - places[b].y);
    const nearest = (a, among) => among.filter((b) => b !== a).sort((one, other) => far(a, one) - far(a, other));
    const join_ = (a, b) => {
      if (a === b || this.relays.get(names[a]).links.some(({ relay }) => relay === names[b])) return;
      const rtt_us = Math.round(800 + 120000 * far(a, b) ** 1.6);
      this.relays.get(names[a]).links.push({ relay: names[b], rtt_us });
      this.relays.get(names[b]).links.push({ relay: names[a], rtt_us });
    };
    names.forEach((_, a) => {
      for (const b of nearest(a, [...names.keys()]).slice(0, 2)) join_(a, b);
      // One mesh, and not parts of one.
      if (a > 0) join_(a, nearest(a, [...names.keys()].slice(0, a))[0]);
    });
    for (const row of this.relays.values()) row.links.sort((one, other) => (one.relay < other.relay ? -1 : 1));
    this.names = names;
  }

  #makeTerminal(n) {
    const kind = this.#pick(KINDS);
    const id = `${kind}-${this.#pick(CITIES)}-${String(n).padStart(5, "0")}`;
    const row = {
      id, type: kind,
      attributes: n % 3 === 0 ? { site: this.#pick(CITIES), rack: String(n % 40), note: "<img src=x onerror=\"document.title='broken in'\">" } : { site: this.#pick(CITIES) },
      state: "logged-out", sessions: 0, attachments: [], updated_at: Date.now() - Math.floor(this.random() * 7200_000),
    };
    if (this.random() < 0.86) this.#attach(row);
    this.terminals.set(id, row);
    return row;
  }

  #attach(row) {
    const one = this.#pick(this.names);
    const other = this.#pick(this.names);
    const attachment = (relay, role) => ({ relay, role, since: row.updated_at, address: `198.51.100.${1 + Math.floor(this.random() * 254)}:${1024 + Math.floor(this.random() * 60000)}` });
    row.attachments = one === other ? [attachment(one, "primary")] : [attachment(one, "primary"), attachment(other, "standby")].sort((a, b) => (a.relay < b.relay ? -1 : 1));
    row.state = this.relays.get(one).reachable ? "logged-in" : "unreachable";
  }

  #count(row, by) {
    for (const { relay } of row.attachments) this.relays.get(relay).terminals += by;
  }

  #makeSession(given = {}) {
    const [caller, callee] = [this.#pick(this.ids), this.#pick(this.ids)];
    const id = Array.from({ length: 4 }, () => Math.floor(this.random() * 2 ** 32).toString(16).padStart(8, "0")).join("");
    const route = [...new Set([this.#pick(this.names), this.#pick(this.names), this.#pick(this.names)])];
    const row = {
      id, caller, callee, service: this.#pick(SERVICES), state: this.random() < 0.8 ? "active" : "ended", started_at: Date.now() - Math.floor(this.random() * 3600_000),
      ended_at: null, reason: null, route, path: this.random() < 0.7 ? "relayed" : "direct", bytes_to_callee: 0, packets_to_callee: 0, bytes_to_caller: 0, packets_to_caller: 0,
    };
    if (row.state === "ended") Object.assign(row, { ended_at: row.started_at + Math.floor(this.random() * 60_000), reason: this.#pick(["ended-by-peer", "ended-by-operator", "relay-lost"]) });
    const kept = { ...row, ...given, speed: 20_000 * this.random() ** 3 * 300, phase: this.random() * 6 };
    this.sessions.set(id, kept);
    return kept;
  }

  #traffic() {
    const now = Date.now() / 1000;
    for (const row of this.sessions.values()) {
      if (row.state !== "active") continue;
      const up = Math.floor(row.speed * (0.6 + 0.4 * Math.sin(now / 7 + row.phase)) * (0.8 + 0.4 * this.random()));
      const down = Math.floor(up * (0.2 + 0.3 * this.random()));
      row.bytes_to_callee += up;
      row.bytes_to_caller += down;
      row.packets_to_callee += Math.ceil(up / 1200);
      row.packets_to_caller += Math.ceil(down / 1200);
    }
  }

  /** One change, as they happen: mostly a terminal that comes, goes or begins to talk. */
  change() {
    const dice = this.random();
    if (dice < 0.004 && this.sessions.size > 0) {
      const row = this.#pick([...this.sessions.values()]);
      if (row.state === "active") this.endSession(row.id, "ended-by-peer");
      const over = [...this.sessions.values()].find(({ id, state }) => state === "ended" && id !== row.id);
      if (over && this.sessions.size > 400) this.sessions.delete(over.id);
      this.say("session", shown(this.#makeSession()));
      return;
    }
    if (dice < 0.05) {
      const row = this.relays.get(this.#pick(this.names));
      row.updated_at = Date.now();
      this.say("relay", row);
      return;
    }
    const row = this.terminals.get(this.#pick(this.ids));
    if (!row) return;
    row.updated_at = Date.now();
    this.#count(row, -1);
    if (row.state === "logged-out") this.#attach(row);
    else if (this.random() < 0.2) Object.assign(row, { state: "logged-out", attachments: [], sessions: 0 });
    else if (row.state === "logged-in") Object.assign(row, { state: "in-communication", sessions: 1 + Math.floor(this.random() * 3) });
    else if (row.state === "in-communication") Object.assign(row, { state: "logged-in", sessions: 0 });
    this.#count(row, 1);
    this.say("terminal", row);
  }

  addTerminal(id, kind = "camera", attributes = {}) {
    const row = { id, type: kind, attributes, state: "logged-out", sessions: 0, attachments: [], updated_at: Date.now() };
    this.#attach(row);
    this.#count(row, 1);
    this.terminals.set(id, row);
    this.ids = [...this.terminals.keys()].sort();
    this.say("terminal", row);
  }

  logIn(id) {
    const row = this.terminals.get(id);
    row.updated_at = Date.now();
    this.#attach(row);
    this.#count(row, 1);
    this.say("terminal", row);
  }

  logOut(id) {
    const row = this.terminals.get(id);
    this.#count(row, -1);
    Object.assign(row, { state: "logged-out", attachments: [], sessions: 0, updated_at: Date.now() });
    this.say("terminal", row);
  }

  openSession(caller, callee, service) {
    const row = this.#makeSession({ caller, callee, service, state: "active", ended_at: null, reason: null });
    this.say("session", shown(row));
  }

  removeTerminal(id) {
    const row = this.terminals.get(id);
    if (!row) return false;
    this.#count(row, -1);
    this.terminals.delete(id);
    this.ids = this.ids.filter((other) => other !== id);
    this.say("gone", { kind: "terminal", id });
    return true;
  }

  removeRelay(name) {
    this.relays.delete(name);
    this.names = this.names.filter((other) => other !== name);
    this.say("gone", { kind: "relay", id: name });
  }

  endSession(id, reason) {
    const row = this.sessions.get(id);
    if (!row) return false;
    Object.assign(row, { state: "ended", ended_at: Date.now(), reason });
    this.say("session", shown(row));
    return true;
  }

  // Events

  /** Events so far. */
  get said() {
    return this.#seq;
  }

  say(event, data) {
    this.#seq += 1;
    const text = `id: ${this.incarnation}-${this.#seq}\nevent: ${event}\ndata: ${JSON.stringify(data)}\n\n`;
    this.#log.push([this.#seq, text]);
    if (this.#log.length > REMEMBERED) this.#log.shift();
    this.#write(text);
  }

  #write(text) {
    for (const response of this.#watchers) response.write(text);
  }

  #watch(request, response) {
    response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
    const hello = { relay: this.names[0], incarnation: this.incarnation, seq: this.#seq };
    response.write(`id: ${this.incarnation}-${this.#seq}\nevent: hello\ndata: ${JSON.stringify(hello)}\n\n`);
    const [life, seen] = (request.headers["last-event-id"] ?? "").split("-").map(Number);
    if (life === this.incarnation) {
      if (this.#log.length > 0 && this.#log[0][0] > seen + 1) response.write('event: resync\ndata: {"why": "too long ago"}\n\n');
      else for (const [seq, text] of this.#log) if (seq > seen) response.write(text);
    }
    this.#watchers.add(response);
    response.on("close", () => this.#watchers.delete(response));
  }

  // HTTP

  async #serve(request, response) {
    const url = new URL(request.url, "http://localhost");
    const parts = url.pathname.split("/").filter(Boolean).map(decodeURIComponent);
    if (request.method === "POST") {
      if (request.headers.authorization !== `Bearer ${TOKEN}`) return problem(response, 401, "unauthorized", "the token is wrong: send the content of admin.token");
      return this.#act(parts.slice(2), response);
    }
    if (parts[0] !== "api") return file(url.pathname === "/" ? "index.html" : url.pathname.replace(/^\/console\//, ""), response);
    if (this.guarded && request.headers.authorization !== `Bearer ${TOKEN}`) return problem(response, 401, "unauthorized", "this needs the admin token");
    if (url.pathname === "/api/v1/events") return this.#watch(request, response);
    if (parts.at(-1) === "history" && url.search !== "") return problem(response, 400, "bad-request", "no parameter here: it takes none");
    const answer = this.#read(parts.slice(2), url.searchParams);
    if (answer === undefined) return problem(response, 404, "unknown", `${parts.at(-1)}: there is none of this name`);
    return json(response, answer);
  }

  #read([what, name, part], search) {
    const given = (key) => search.get(key) ?? "";
    if (what === "terminals" && name === undefined) {
      const fits = (row) => (!given("state") || row.state === given("state")) && (!given("type") || row.type === given("type")) && row.id.includes(given("q"));
      return page(this.ids.map((id) => this.terminals.get(id)), fits, search, (row) => row.id);
    }
    if (what === "terminals") return part === "history" ? this.#history(name) : this.terminals.get(name);
    if (what === "relays" && name === undefined) return page([...this.relays.values()].sort((one, other) => (one.id < other.id ? -1 : 1)), () => true, search, (row) => row.id);
    if (what === "relays") return this.#history(name);
    if (what === "sessions" && name === undefined) {
      const rows = [...this.sessions.values()].sort((one, other) => (one.id < other.id ? -1 : 1)).map(shown);
      return page(rows, (row) => !given("state") || row.state === given("state"), search, (row) => row.id);
    }
    if (what === "sessions") return this.sessions.has(name) ? shown(this.sessions.get(name)) : undefined;
    if (what === "summary") return this.#summary();
    if (what === "status") return this.#status();
    if (what === "explain") return this.#explain(search);
    return undefined;
  }

  #summary() {
    const terminals = { total: this.terminals.size, "logged-out": 0, "logged-in": 0, "in-communication": 0, unreachable: 0 };
    const types = {};
    for (const row of this.terminals.values()) {
      terminals[row.state] += 1;
      types[row.type] = (types[row.type] ?? 0) + 1;
    }
    const relays = [...this.relays.values()];
    return { terminals, types, relays: { total: relays.length, reachable: relays.filter((row) => row.reachable).length, draining: relays.filter((row) => row.draining).length } };
  }

  #status() {
    const own = this.relays.get(this.names[0]);
    return {
      id: own.id, name: own.name, mesh: "demo", version: own.version, incarnation: this.incarnation, uptime_s: Math.floor((Date.now() - this.started) / 1000) + 93_784, registrar: own.registrar,
      draining: own.draining, ends_in_s: null, not_ready: own.draining ? "draining" : null,
      links: own.links.map(({ relay, rtt_us }, n) => ({ relay, rtt_us, address: `203.0.113.${n + 2}:4433`, since: this.started - 86_400_000 })),
      terminals: own.terminals, sessions: this.sessions.size, labels: this.sessions.size * 2, connections: own.terminals + 3, handshakes: 1, handshakes_refused: 12,
      table: { rows: this.terminals.size * 2 + this.relays.size * 3, relays: this.relays.size, terminals: this.terminals.size, hash: "9f3c1b7ae2d84410" },
      gossip_lag_ms: { p50: 12, p99: 48 }, gossip: { received: 412_893, applied: 201_443, stale: 211_450, sent: 803_112 },
      drops: { "too-slow": 3, "unknown-label": 1204, "rate-limited": 88, "bad-certificate": 0 },
    };
  }

  #history(name) {
    const now = Date.now();
    const items = [["in-communication", "one session"], ["logged-in", `at ${this.names[0]} as primary`], ["logged-out", "silent for 30 s"], ["logged-in", `at ${this.names.at(-1)} as primary`]]
      .map(([what, detail], n) => ({ at: now - 60_000 * (n + 1) ** 3, what, detail }));
    return this.terminals.has(name) || this.relays.has(name) ? { items, next: null } : undefined;
  }

  #explain(search) {
    const session = this.sessions.get(search.get("session") ?? "");
    const caller = this.terminals.get(search.get("from") ?? session?.caller) ?? null;
    const callee = this.terminals.get(search.get("to") ?? session?.callee) ?? null;
    const common = { service: search.get("service") || null, caller, callee, route: [], hops: [], rtt_us: null, direct: null, session: session ? shown(session) : null, last_call: null };
    if (session) return { ...common, allowed: true, code: session.reason, why: "it is what the session's code says", advice: "", decided_by: "session", route: session.route };
    const refused = [[caller, "caller", "from"], [callee, "target", "to"]].find(([row]) => !row || row.attachments.length === 0);
    if (refused) {
      const name = search.get(refused[2]);
      return { ...common, allowed: false, code: refused[0] ? `${refused[1]}-logged-out` : "unknown-target", why: `${name} is not logged in`, advice: "start its agent, or look at its log", decided_by: refused[1] };
    }
    const route = this.names.slice(0, 3);
    const hops = route.slice(1).map((to, n) => ({ from: route[n], to, rtt_us: 12_000 * (n + 1), draining: to === this.names[1] }));
    return {
      ...common, allowed: true, code: null, why: "both are logged in and a route exists; the target's own --expose and --allow decide on the service", advice: "",
      decided_by: "target-agent", route, hops, rtt_us: 36_000, direct: { possible: "likely", why: "both are seen at one address by all relays" },
      last_call: shown([...this.sessions.values()][0] ?? null),
    };
  }

  #act([what, name, verb], response) {
    const own = this.relays.get(this.names[0]);
    if (what === "login") return json(response, { done: true });
    if (what === "sessions" && verb === "end" && this.endSession(name, "ended-by-operator")) return json(response, { done: true });
    if (what === "terminals" && verb === "revoke" && this.removeTerminal(name)) return json(response, { done: true });
    if (what === "terminals" && verb === "kick" && this.terminals.has(name)) {
      const row = this.terminals.get(name);
      if (row.attachments.length === 0) return problem(response, 409, "target-logged-out", `${name}: the terminal is not logged in: start its agent`);
      this.logOut(name);
      return json(response, { done: true });
    }
    if (what === "drain" || what === "undrain") {
      own.draining = what === "drain";
      this.say("relay", own);
      return json(response, { done: true });
    }
    return problem(response, 404, "unknown-path", `${name ?? what}: there is no such path`);
  }
}

/** The row without what only this server needs to know. */
function shown(kept) {
  if (kept === null) return null;
  const { speed, phase, ...row } = kept;
  return row;
}

function page(rows, fits, search, key) {
  const limit = Number(search.get("limit") ?? 100);
  const after = search.get("after") ?? "";
  const found = rows.filter((row) => key(row) > after && fits(row));
  const items = found.slice(0, limit);
  return { items, next: found.length > limit ? key(items.at(-1)) : null };
}

function json(response, body, status = 200, type = "application/json") {
  response.writeHead(status, { "Content-Type": type, "Cache-Control": "no-store" });
  response.end(JSON.stringify(body));
}

function problem(response, status, code, detail) {
  json(response, { status, title: String(status), code, detail }, status, "application/problem+json");
}

async function file(name, response) {
  const path = normalize(join(FILES, name));
  try {
    if (!path.startsWith(FILES)) throw new Error("outside");
    const body = await readFile(path);
    response.writeHead(200, { "Content-Type": TYPES[extname(path)] ?? "application/octet-stream", "Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff" });
    response.end(body);
  } catch {
    problem(response, 404, "unknown-path", `${name}: there is no such file`);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const options = Object.fromEntries(process.argv.slice(2).join(" ").split("--").filter(Boolean).map((pair) => {
    const [name, value] = pair.trim().split(/[ =]/);
    return [name, Number(value)];
  }));
  const fake = new Fake(options);
  console.log(`${await fake.listen(options.port ?? 8433)}  token: ${TOKEN}`);
}
