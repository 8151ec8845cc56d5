// Dark, light, or as the system has it. Loaded first, so that the page does not flash in the other one.

const KEY = "tasuki.theme";
const ORDER = ["auto", "dark", "light"];

export function theme() {
  const kept = localStorage.getItem(KEY);
  return ORDER.includes(kept) ? kept : "auto";
}

function show() {
  if (theme() === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme();
}

/** Goes on to the next of auto, dark, light and returns it. */
export function nextTheme() {
  localStorage.setItem(KEY, ORDER[(ORDER.indexOf(theme()) + 1) % ORDER.length]);
  show();
  return theme();
}

show();
