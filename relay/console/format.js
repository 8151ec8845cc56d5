// Values as people read them.

const whole = new Intl.NumberFormat("en");
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", {
  year: "numeric", month: "short", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
});

export const NONE = "–";

export function count(value) {
  return typeof value === "number" ? whole.format(value) : NONE;
}

/** At most four characters, for inside a node of the map. */
export function short(value) {
  if (value < 1000) return String(value);
  if (value < 9950) return `${(value / 1000).toFixed(1)}k`;
  if (value < 999500) return `${Math.round(value / 1000)}k`;
  return `${(value / 1e6).toFixed(1)}M`;
}

const STEPS = ["B", "kB", "MB", "GB", "TB"];

export function bytes(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return NONE;
  let step = 0;
  while (value >= 1000 && step < STEPS.length - 1) {
    value /= 1000;
    step += 1;
  }
  const digits = step === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${STEPS[step]}`;
}

export function rate(value) {
  return typeof value === "number" && Number.isFinite(value) ? `${bytes(value)}/s` : NONE;
}

export function rtt(us) {
  if (typeof us !== "number") return NONE;
  if (us < 1000) return `${us} µs`;
  const ms = us / 1000;
  return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

export function span(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** How long ago; clocks of relays differ a little, so what seems to come is "just now". */
export function ago(at, now = Date.now()) {
  if (!at) return NONE;
  const s = Math.floor((now - at) / 1000);
  if (s < 1) return "just now";
  if (s < 60) return `${s} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  return `${Math.floor(s / 86400)} d ago`;
}

export function time(at) {
  return at ? clock.format(at) : NONE;
}

export function date(at) {
  return at ? day.format(at) : NONE;
}

/** "in-communication" as "In communication"; also names of counters. */
export function words(code) {
  const text = String(code ?? "").replaceAll(/[-_]/g, " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}
