// The relay's public API. The token is kept for this tab only and leaves it in one header field: with actions,
// and with reads once the relay has asked for it.

const TOKEN = "tasuki.token";
const ANSWER_MS = 15000;

let readsNeedToken = false;

/** What the relay refused, or that it did not answer (status 0); the message says what to do. */
export class ApiError extends Error {
  constructor(status, code, detail) {
    super(detail);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
  }

  get isLost() {
    return this.status === 0;
  }
}

export function token() {
  return sessionStorage.getItem(TOKEN);
}

export function setToken(value) {
  if (value) sessionStorage.setItem(TOKEN, value);
  else sessionStorage.removeItem(TOKEN);
}

/** A response of the relay, whatever its status. Gives up when nothing came for a while. */
export async function request(method, path, { headers = {}, bearer = null, signal, stays = false } = {}) {
  const patience = new AbortController();
  const timer = setTimeout(() => patience.abort(), ANSWER_MS);
  const fields = { ...headers };
  if (bearer) fields.Authorization = `Bearer ${bearer}`;
  try {
    const response = await fetch(path, {
      method,
      headers: fields,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      referrerPolicy: "no-referrer",
      signal: signal ? AbortSignal.any([signal, patience.signal]) : patience.signal,
    });
    if (!stays && response.ok) return { response, body: await response.json() };
    return { response, body: null };
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, "no-answer", "the relay does not answer: see whether it runs, and the way to it");
  } finally {
    clearTimeout(timer);
  }
}

/** The error in a response that is not a good one. */
export async function problem(response) {
  try {
    const said = await response.json();
    return new ApiError(response.status, String(said.code ?? ""), String(said.detail ?? said.title ?? response.status));
  } catch {
    return new ApiError(response.status, "", `the relay answered with status ${response.status}`);
  }
}

/** A read, with the token where the relay wants it for reads. */
export async function read(path, options = {}) {
  // Another read may learn that the token is needed while this one is under way without it.
  const had = readsNeedToken;
  let answer = await request("GET", path, { ...options, bearer: had ? token() : null });
  if (answer.response.status === 401 && !had && token()) {
    readsNeedToken = true;
    answer = await request("GET", path, { ...options, bearer: token() });
  }
  if (!answer.response.ok) throw await problem(answer.response);
  return options.stays ? answer.response : answer.body;
}

/** Something that changes the mesh, or only tries a token. */
export async function act(path, bearer = token()) {
  const { response, body } = await request("POST", path, { bearer });
  if (!response.ok) throw await problem(response);
  return body;
}

/** Path of the API with its parts encoded. */
export function path(strings, ...parts) {
  return String.raw({ raw: strings }, ...parts.map(encodeURIComponent));
}

/** Path with a query of those values that are not empty. */
export function query(base, values) {
  const pairs = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return pairs.length === 0 ? base : `${base}?${new URLSearchParams(pairs)}`;
}
