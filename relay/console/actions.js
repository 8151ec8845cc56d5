// What an operator can do, each with the question before it and the answer after it.

import { ApiError, act, path } from "./api.js";
import { h } from "./dom.js";
import { askForToken, confirm, message } from "./dialogs.js";
import { logIn, resync, store } from "./store.js";

/** Does it, after a log-in where there was none; says what came of it. */
async function perform(where, done) {
  if (!store.operator && !(await askForToken())) return false;
  for (;;) {
    try {
      await act(where);
      message(done);
      return true;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status !== 401) {
        message(error.message, true);
        return false;
      }
      logIn(null);
      if (!(await askForToken("This relay does not take the token of this tab."))) return false;
    }
  }
}

export async function endSession(session) {
  const text = `The session ${session.service} from ${session.caller} to ${session.callee} ends for both terminals.`;
  return await confirm({ title: "End the session?", text, verb: "End it", danger: true })
    && await perform(path`/api/v1/sessions/${session.id}/end`, `The session from ${session.caller} to ${session.callee} was ended.`);
}

export async function kickTerminal(name) {
  const text = `The attachments of ${name} at this relay and elsewhere are cut. It may log in again at once.`;
  return await confirm({ title: `Kick ${name}?`, text, verb: "Kick" })
    && await perform(path`/api/v1/terminals/${name}/kick`, `${name} was kicked.`);
}

export async function revokeTerminal(name) {
  const text = "Its identity is revoked for good: it is cut everywhere and has to be enrolled again with another token.";
  return await confirm({ title: `Revoke ${name}?`, text, verb: "Revoke", type: name, danger: true })
    && await perform(path`/api/v1/terminals/${name}/revoke`, `${name} was revoked.`);
}

export async function kickRelay(name) {
  const text = `The link between this relay and ${name} is cut. It may come back at once.`;
  return await confirm({ title: `Kick ${name}?`, text, verb: "Kick" })
    && await perform(path`/api/v1/relays/${name}/kick`, `The link with ${name} was cut.`);
}

export async function revokeRelay(name) {
  const text = "Its identity is revoked for good: all relays cut it, and it has to join again with another token.";
  return await confirm({ title: `Revoke ${name}?`, text, verb: "Revoke", type: name, danger: true })
    && await perform(path`/api/v1/relays/${name}/revoke`, `${name} was revoked.`);
}

export async function drain(name) {
  const field = h("input", { type: "number", min: "1", step: "1", inputmode: "numeric", placeholder: "stays up" });
  const extra = h("label", {}, h("span", {}, "Then end its process within so many seconds"), field);
  const text = `${name} takes no terminals any longer, and those it has move to other relays, each at its own time.`;
  if (!(await confirm({ title: `Drain ${name}?`, text, verb: "Drain", extra }))) return false;
  const within = field.value === "" ? "" : `?end_within_s=${encodeURIComponent(field.value)}`;
  const done = await perform(`/api/v1/drain${within}`, `${name} drains.`);
  if (done) resync();
  return done;
}

export async function undrain(name) {
  const done = await perform("/api/v1/undrain", `${name} takes terminals again.`);
  if (done) resync();
  return done;
}
