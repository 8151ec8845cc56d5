// Drawings, 16 by 16, in the colour of the text around them.

import { s } from "./dom.js";

const PATHS = {
  map: ["M3.5 4.5 12 3M4 5.5l3 6M12.5 4.5l-4 7", "c3,5,1.75", "c12.75,3.25,1.75", "c7.75,12.75,1.75"],
  terminals: ["M2 3.5h12v7H2zM5.5 13.5h5M8 10.5v3"],
  sessions: ["M2.5 5.5h10M10 2.5l3 3-3 3M13.5 10.5h-10M6 7.75l-3 2.75 3 3"],
  relay: ["M2.5 3h11v4h-11zM2.5 9h11v4h-11zM5 5h.01M5 11h.01M8 5h3M8 11h3"],
  explain: ["c8,8,6", "M6.2 6.3a1.9 1.9 0 1 1 2.6 1.9c-.6.25-.8.6-.8 1.3M8 11.4h.01"],
  search: ["c7,7,4.25", "M10.25 10.25 14 14"],
  theme: ["c8,8,5.5", "fM8 2.5a5.5 5.5 0 0 1 0 11z"],
  keys: ["M1.5 4h13v8h-13zM4 6.5h.01M6.5 6.5h.01M9 6.5h.01M11.5 6.5h.01M5 9.5h6"],
  lock: ["M3.5 7.5h9v6h-9zM5.5 7.5V5a2.5 2.5 0 0 1 5 0v2.5"],
  unlock: ["M3.5 7.5h9v6h-9zM5.5 7.5V5a2.5 2.5 0 0 1 4.8-1"],
  close: ["M4 4l8 8M12 4l-8 8"],
  back: ["M9.5 3.5 5 8l4.5 4.5"],
  right: ["M6.5 3.5 11 8l-4.5 4.5"],
  swap: ["M5 2.5v10M2.5 10 5 12.5 7.5 10M11 13.5v-10M8.5 6 11 3.5 13.5 6"],
  "logged-in": ["F8,8,4"],
  "in-communication": ["F8,8,2.75", "c8,8,6"],
  "logged-out": ["c8,8,4"],
  unreachable: ["M4 4l8 8M12 4l-8 8"],
  reachable: ["F8,8,4"],
  draining: ["M8 2.5v8M4.5 7.5 8 11l3.5-3.5M3.5 13.5h9"],
  calling: ["c8,8,5.5", "M8 5v3.25l2 1.25"],
  active: ["F8,8,2.75", "c8,8,6"],
  ended: ["M3.5 8h9"],
  yes: ["M3 8.5 6.5 12 13 4.5"],
  no: ["c8,8,5.75", "M4 12l8-8"],
};

/** The icon of this name; decoration, so it has no name for screen readers. */
export function icon(name, className = "icon") {
  const shapes = (PATHS[name] ?? []).map((path) => {
    if (path[0] === "c" || path[0] === "F") {
      const [cx, cy, r] = path.slice(1).split(",");
      return s("circle", { cx, cy, r, class: path[0] === "F" ? "solid" : null });
    }
    if (path[0] === "f") return s("path", { d: path.slice(1), class: "solid" });
    return s("path", { d: path });
  });
  return s("svg", { class: className, viewBox: "0 0 16 16", "aria-hidden": "true", focusable: "false" }, shapes);
}

/** A sash over a shoulder, tied. */
export function logo() {
  return s(
    "svg",
    { class: "logo", viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" },
    s("path", { d: "M7 3.5C3.5 8 5 15.5 10.5 18.5 15.5 21 20 17 18.5 12 17.2 7.6 11.5 3.2 7 3.5Z", class: "loop" }),
    s("path", { d: "M10.5 18.5 7 22M10.5 18.5 13 22.5", class: "tail" }),
  );
}

/** A state with its sign, so that colour is never all that tells. */
const LABELS = {
  "logged-in": "Logged in",
  "in-communication": "In communication",
  "logged-out": "Logged out",
  unreachable: "Unreachable",
  reachable: "Reachable",
  draining: "Draining",
  calling: "Calling",
  active: "Active",
  ended: "Ended",
};

export function stateLabel(state) {
  return LABELS[state] ?? String(state ?? "");
}
