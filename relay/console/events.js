// The event stream, read with fetch() and not with EventSource, which cannot send a header field: a token would
// have to stand in the address, and so in logs.

import { ApiError, read } from "./api.js";

/** The relay sends a comment each 15 s; silence for this long is a dead connection. */
const SILENCE_MS = 40_000;
const LONGEST_WAIT_S = 10;
/** A stream that ends sooner than this, even in good order, is a failure: it would be asked for without a pause. */
const SHORTEST_MS = 1000;
/** One event is one row; a server that sends more than this without a line break is not a relay. */
const LINE_CHARS = 4 * 1024 * 1024;
/** A browser opens six connections to an origin, and this stream is one: a tab that nobody sees gives it back. */
const HIDDEN_MS = 30_000;

/** Splits text/event-stream into events (WHATWG HTML, section 9.2.6), whatever pieces it comes in. */
export class Parser {
  #rest = "";
  #event = { type: "", data: [], id: null };

  constructor(onEvent) {
    this.onEvent = onEvent;
  }

  push(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    if (this.#rest.length > LINE_CHARS) throw new Error("a line of the event stream is too long");
    for (const line of lines) this.#line(line);
  }

  #line(line) {
    if (line === "") {
      const { type, data, id } = this.#event;
      this.#event = { type: "", data: [], id: null };
      if (data.length > 0) this.onEvent({ type: type || "message", data: data.join("\n"), id });
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.#event.type = value;
    else if (field === "data") this.#event.data.push(value);
    else if (field === "id") this.#event.id = value;
  }
}

/**
 * Keeps a stream open for as long as the page is.
 *
 * `onEvent(type, data)` gets every event in order; `onState({state, error, retryAt})` is told `live`, `lost` (with
 * the time of the next try) or `paused` (hidden). After a loss it goes on behind the last event that it saw.
 */
export class EventStream {
  #last = null;
  #failures = 0;
  #abort = null;
  #wake = null;
  #hidden = null;

  constructor(path, onEvent, onState) {
    this.path = path;
    this.onEvent = onEvent;
    this.onState = onState;
    document.addEventListener("visibilitychange", () => this.#visibility());
  }

  async run() {
    for (;;) {
      if (document.hidden && this.#hidden === "paused") await this.#pause(null);
      try {
        const start = Date.now();
        await this.#once();
        if (Date.now() - start < SHORTEST_MS) throw new Error("a stream that ends at once");
        // The relay ends streams in good order now and then: go on without a pause.
        this.#failures = 0;
      } catch (error) {
        if (this.#hidden === "paused") continue;
        this.#failures += 1;
        const seconds = Math.min(2 ** (this.#failures - 1), LONGEST_WAIT_S);
        const why = error instanceof ApiError ? error : new ApiError(0, "no-answer", "the connection broke off");
        this.onState({ state: "lost", error: why, retryAt: Date.now() + seconds * 1000 });
        await this.#pause(seconds * 1000);
      }
    }
  }

  /** Tries again without waiting for the time. */
  hurry() {
    this.#wake?.();
  }

  /** Waits `ms`, or for ever, or until somebody is in a hurry. */
  #pause(ms) {
    return new Promise((resolve) => {
      const timer = ms === null ? null : setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    }).then(() => {
      this.#wake = null;
    });
  }

  #visibility() {
    if (document.hidden) {
      this.#hidden = setTimeout(() => {
        this.#hidden = "paused";
        this.onState({ state: "paused" });
        this.#abort?.abort();
      }, HIDDEN_MS);
    } else {
      if (this.#hidden !== "paused") clearTimeout(this.#hidden);
      this.#hidden = null;
      this.hurry();
    }
  }

  async #once() {
    const abort = new AbortController();
    this.#abort = abort;
    const headers = { Accept: "text/event-stream" };
    if (this.#last !== null) headers["Last-Event-ID"] = this.#last;
    const response = await read(this.path, { headers, signal: abort.signal, stays: true });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const parser = new Parser(({ type, data, id }) => {
      // A stream that goes on names its end first and then what was missed: until that is here, nothing is seen.
      const goesOn = type === "hello" && this.#last?.split("-")[0] === id?.split("-")[0];
      if (id !== null && !goesOn) this.#last = id;
      this.onEvent(type, JSON.parse(data));
    });
    let timer = null;
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => abort.abort(), SILENCE_MS);
    };
    try {
      heard();
      this.onState({ state: "live" });
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        heard();
        parser.push(value);
      }
    } finally {
      clearTimeout(timer);
      abort.abort();
    }
  }
}
