// What the page knows: this relay, all relays, the summary, and who listens for changes of which rows.

import { query, read, token, setToken } from "./api.js";
import { EventStream } from "./events.js";
import { schedule } from "./dom.js";

/** Relays are few, so all of them are held; a mesh has at most so many pages of them. */
const RELAY_PAGES = 20;
/** Reads of the summary that events ask for are no closer than this. */
const SUMMARY_MS = 2000;
/** Where the relay has no room for another watcher, lists are read again this often. */
const POLL_MS = 5000;
/** Seconds that the chart of changes shows. */
export const PULSE_S = 60;

const listeners = new Map();

export const store = {
  /** `GET /api/v1/status`, or null. */
  status: null,
  /** Rows of `GET /api/v1/relays` by name. */
  relays: new Map(),
  /** `GET /api/v1/summary`, or null. */
  summary: null,
  /** `{state: "connecting" | "live" | "lost" | "paused", error, retryAt}` */
  connection: { state: "connecting" },
  /** Events of the last seconds, the oldest first. */
  pulse: new Array(PULSE_S).fill(0),
  /** Whether there is a token that the relay has taken. */
  operator: token() !== null,
};

/** Calls `listener` for each change of `topic`; returns what undoes that. */
export function on(topic, listener) {
  if (!listeners.has(topic)) listeners.set(topic, new Set());
  listeners.get(topic).add(listener);
  return () => listeners.get(topic).delete(listener);
}

function tell(topic, value) {
  for (const listener of listeners.get(topic) ?? []) listener(value);
}

export function logIn(word) {
  setToken(word);
  store.operator = word !== null;
  tell("login");
}

let stream = null;
let incarnation = null;
let events = 0;

export function start() {
  stream = new EventStream("/api/v1/events", handle, connected);
  stream.run();
  setInterval(() => {
    store.pulse.push(events);
    store.pulse.shift();
    events = 0;
    schedule(tellPulse);
  }, 1000);
  setInterval(() => {
    const { state, error } = store.connection;
    if (state === "lost" && error.status === 503) resync();
  }, POLL_MS);
}

const tellPulse = () => tell("pulse");

export function hurry() {
  stream.hurry();
}

function connected(connection) {
  store.connection = connection;
  tell("connection");
}

/** One event of the stream. Rows go to whoever shows them; nothing else is held, so memory does not grow. */
function handle(type, data) {
  if (type === "hello") {
    // Another life of the relay, or another relay behind the same address: what was missed is unknown.
    const life = `${data.relay}/${data.incarnation}`;
    if (life !== incarnation) {
      incarnation = life;
      resync();
    }
    return;
  }
  if (type === "resync") {
    resync();
    return;
  }
  events += 1;
  if (type === "relay") putRelay(data.name, data);
  else if (type === "gone" && data.kind === "relay") dropRelay(data.id);
  tell(type, data);
  if (type !== "session") refreshSummary();
}

/** Reads again what the page knows, and has the views do so. */
export function resync() {
  refreshSummary();
  readStatus().catch(ignore);
  readRelays().catch(ignore);
  tell("resync");
}

// Whoever can do something about an error shows it: views for their lists, the banner for a lost relay.
const ignore = () => {};

let summaryTimer = null;
let summaryAt = 0;

function refreshSummary() {
  if (summaryTimer !== null) return;
  const wait = Math.max(0, summaryAt + SUMMARY_MS - Date.now());
  summaryTimer = setTimeout(async () => {
    summaryAt = Date.now();
    try {
      store.summary = await read("/api/v1/summary");
      tell("summary");
    } catch {
      // The next event asks for it again.
    } finally {
      summaryTimer = null;
    }
  }, wait);
}

export async function readStatus() {
  store.status = await read("/api/v1/status");
  tell("status");
}

/** What events said of relays while their list was read, whose answer may be older. */
let lateRelays = null;

/** Nothing is shown before the first list: the map would be laid out around the relay that happens to change first. */
function putRelay(name, row) {
  lateRelays?.set(name, row);
  if (store.relays.size === 0) return;
  if (row === null) store.relays.delete(name);
  else store.relays.set(name, row);
  tell("relays");
}

/** By its id or its name: both are unique, and neither looks like the other. */
function dropRelay(id) {
  const name = [...store.relays.values()].find((row) => row.id === id)?.name ?? id;
  putRelay(name, null);
}

async function readRelays() {
  const rows = new Map();
  const late = new Map();
  lateRelays = late;
  let after = null;
  for (let page = 0; page < RELAY_PAGES; page += 1) {
    const { items, next } = await read(query("/api/v1/relays", { limit: 1000, after }));
    for (const row of items) rows.set(row.name, row);
    after = next;
    if (next === null) break;
  }
  for (const [name, row] of late) {
    if (row !== null) rows.set(name, row);
    else for (const [key, { id }] of rows) if (key === name || id === name) rows.delete(key);
  }
  if (lateRelays === late) lateRelays = null;
  store.relays = rows;
  tell("relays");
}
