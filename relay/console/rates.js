// Rates of sessions, from the differences of their counters between two reads.

/** Samples kept of each session. */
export const SAMPLES = 40;
/** Sessions remembered: more than are seen at once. */
const SESSIONS = 400;

const byId = new Map();

/** Takes the counters of a session as they were at `at` (ms); a row that was taken already says nothing more. */
export function sample(row, at = Date.now()) {
  let kept = byId.get(row.id);
  if (kept === undefined) {
    kept = { row: null, at: 0, up: 0, down: 0, ups: [], downs: [] };
    if (byId.size >= SESSIONS) byId.delete(byId.keys().next().value);
  } else {
    // The one seen last goes to the end, so that the first is the one to forget.
    byId.delete(row.id);
  }
  byId.set(row.id, kept);
  // The same object is the same reading, drawn again.
  if (kept.row === row) return;
  kept.row = row;
  const seconds = (at - kept.at) / 1000;
  if (seconds < 0.5) return;
  if (kept.at > 0) {
    // A relay that was restarted counts from zero again.
    push(kept.ups, Math.max(0, row.bytes_to_callee - kept.up) / seconds);
    push(kept.downs, Math.max(0, row.bytes_to_caller - kept.down) / seconds);
  }
  kept.at = at;
  kept.up = row.bytes_to_callee;
  kept.down = row.bytes_to_caller;
}

function push(series, value) {
  series.push(value);
  if (series.length > SAMPLES) series.shift();
}

/** `{ups, downs}` in bytes a second, the oldest first; empty where nothing is known. */
export function rates(id) {
  return byId.get(id) ?? { ups: [], downs: [] };
}
