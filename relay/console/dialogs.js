// Dialogs over the page (HTMLDialogElement, which keeps the focus inside and gives it back), and short messages.

import { ApiError, act } from "./api.js";
import { h, setText } from "./dom.js";
import { icon } from "./icons.js";
import { logIn } from "./store.js";

const MESSAGE_MS = 8000;
const MESSAGES = 4;

/** Shows a dialog; resolves with what closed it, null for Esc and Cancel. */
function show(title, build) {
  return new Promise((resolve) => {
    let result = null;
    const close = (value) => {
      result = value;
      dialog.close();
    };
    const dialog = h("dialog", { class: "dialog", "aria-label": title, on: {
      close: () => {
        dialog.remove();
        resolve(result);
      },
      // A click on the backdrop has the dialog itself as its target.
      click: (event) => event.target === dialog && close(null),
    } }, h("div", { class: "inner" }, h("h2", {}, title), build(close)));
    document.body.append(dialog);
    dialog.showModal();
    dialog.querySelector("[data-first]")?.focus();
  });
}

function buttons(close, ...others) {
  return h("div", { class: "buttons" }, h("button", { type: "button", on: { click: () => close(null) } }, "Cancel"), others);
}

/** Asks for the token until the relay takes it. Resolves true when logged in. */
export async function askForToken(why = null) {
  const done = await show("Log in", (close) => {
    const field = h("input", {
      type: "password", name: "token", autocomplete: "off", spellcheck: "false", "aria-label": "Admin token",
      placeholder: "Admin token", "data-first": true, required: true,
    });
    const note = h("p", { class: "bad", role: "alert" }, why);
    const submit = h("button", { type: "submit", class: "primary" }, "Log in");
    const check = async (event) => {
      event.preventDefault();
      submit.disabled = true;
      const word = field.value.trim();
      try {
        await act("/api/v1/login", word);
        logIn(word);
        close(true);
      } catch (error) {
        setText(note, error instanceof ApiError && error.status === 401
          ? "This relay does not take that token." : error.message);
        field.select();
      } finally {
        submit.disabled = false;
      }
    };
    return h("form", { on: { submit: check } },
      h("p", {}, "Actions need this relay's token: the content of ", h("code", {}, "admin.token"),
        " in its data directory. It is kept until this tab is closed."),
      field, note, buttons(close, submit));
  });
  return done === true;
}

/**
 * Asks before something is done. `type` is a word that has to be typed; `extra` an element of the form.
 * Resolves true when it is to be done.
 */
export async function confirm({ title, text, verb, type = null, danger = false, extra = null }) {
  const done = await show(title, (close) => {
    const submit = h("button", { type: "submit", class: danger ? "danger" : "primary", disabled: type !== null,
      "data-first": type === null && !danger }, verb);
    const field = type === null ? null : h("input", {
      type: "text", autocomplete: "off", autocapitalize: "off", spellcheck: "false", "data-first": true,
      "aria-label": `Type ${type} to go on`, on: { input: (event) => {
        submit.disabled = event.target.value !== type;
      } },
    });
    const send = (event) => {
      event.preventDefault();
      if (!submit.disabled) close(true);
    };
    return h("form", { on: { submit: send } }, h("p", {}, text), extra,
      type === null ? null : h("label", {}, h("span", {}, "Type ", h("code", {}, type), " to go on"), field),
      buttons(close, submit));
  });
  return done === true;
}

const KEYS = [
  ["/", "search terminals"],
  ["g m", "map"],
  ["g t", "terminals"],
  ["g s", "sessions"],
  ["g r", "this relay"],
  ["g e", "explain"],
  ["j k ↓ ↑", "next, previous row"],
  ["Home End", "first, last row"],
  ["Enter", "open the row"],
  ["Esc", "leave a field; go back"],
  ["l", "log in or out"],
  ["t", "auto, dark, light"],
  ["?", "this help"],
];

export function showKeys() {
  return show("Keys", (close) => h("div", {},
    h("dl", { class: "keys" }, KEYS.map(([keys, what]) => [
      h("dt", {}, keys.split(" ").map((key) => h("kbd", {}, key))), h("dd", {}, what),
    ])),
    h("div", { class: "buttons" }, h("button", { type: "button", class: "primary", "data-first": true, on: { click: () => close(null) } }, "Close"))));
}

const messages = h("div", { class: "messages", role: "status", "aria-live": "polite" });

/** A line at the edge of the page that goes by itself; errors stay until they are closed. */
export function message(text, isError = false) {
  if (!messages.isConnected) document.body.append(messages);
  const line = h("div", { class: isError ? "message bad" : "message", role: isError ? "alert" : null },
    icon(isError ? "unreachable" : "yes"), h("span", {}, text),
    h("button", { type: "button", class: "plain", "aria-label": "Close this message", on: { click: () => line.remove() } }, icon("close")));
  messages.append(line);
  while (messages.children.length > MESSAGES) messages.firstChild.remove();
  if (!isError) setTimeout(() => line.remove(), MESSAGE_MS);
}
