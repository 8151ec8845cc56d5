// A long list of the API, held in pieces.
//
// The list is cut into pages that lie one behind the other, each beginning behind a cursor. Pages far from what
// is seen are forgotten and read again when they are needed, so that a list of 100,000 rows costs as much as one
// of a few thousand. Events change, insert and remove rows in the pages that are held.

import { query, read } from "./api.js";

const PAGE = 200;
/** Pages held at once. */
const HELD = 24;
/** A page that grew beyond this by events is split. */
const SPLIT = 2 * PAGE;
/** Requests for one page, which may come in parts. */
const PARTS = 50;

export class PagedList {
  /** `{after, count, rows or null, used, reading}`; ids in page n are greater than its `after`, up to the next one's. */
  #pages = [];
  /** Where the list goes on behind the pages: a cursor, or null at its end. */
  #next = "";
  #generation = 0;
  #turn = 0;
  #growing = false;
  /** What events said while a read was under way, whose answer may be older: row by id, null where it is gone. */
  #late = new Map();
  #reads = 0;
  error = null;
  /** False until the first answer. */
  ready = false;

  /** `accepts(row)` says whether an event's row belongs here; `changed()` is called whenever something did. */
  constructor(base, filter, accepts, changed) {
    this.base = base;
    this.filter = filter;
    this.accepts = accepts;
    this.changed = changed;
  }

  get length() {
    return this.#pages.reduce((sum, page) => sum + page.count, 0);
  }

  get isComplete() {
    return this.ready && this.#next === null;
  }

  /** Rows held in memory. */
  get held() {
    return this.#pages.reduce((sum, page) => sum + (page.rows?.length ?? 0), 0);
  }

  /** Reads the list from its beginning. What is shown stays until the answer is there. */
  async load() {
    this.#generation += 1;
    const generation = this.#generation;
    this.#growing = true;
    try {
      const { rows, next } = await this.#read("", null);
      if (generation !== this.#generation) return;
      this.#pages = [{ after: "", count: rows.length, rows, used: 0, reading: false }];
      this.#next = next;
      this.error = null;
      this.ready = true;
      this.#overlay();
    } catch (error) {
      if (generation !== this.#generation) return;
      this.error = error;
    }
    this.#growing = false;
    this.changed();
  }

  /** Reads again what is seen, and the rest when it is needed: events were missed. */
  async resync() {
    this.error = null;
    if (!this.ready) {
      await this.load();
      return;
    }
    for (const page of this.#pages) {
      if (page.used !== this.#turn) page.rows = null;
    }
    await this.refresh();
  }

  /** The rows from `first` up to `last`, null where one is still to come; reads what is missing. */
  slice(first, last) {
    const out = [];
    this.#turn += 1;
    let start = 0;
    for (const page of this.#pages) {
      const end = start + page.count;
      if (end > first && start < last) {
        page.used = this.#turn;
        if (page.rows === null) this.#refill(page);
        for (let at = Math.max(first, start); at < Math.min(last, end); at += 1) {
          out.push(page.rows?.[at - start] ?? null);
        }
      }
      start = end;
    }
    if (last >= start - PAGE / 2) this.#grow();
    this.#forget();
    return out;
  }

  /** Reads those pages again that the last slice showed, for values that no event tells. */
  async refresh() {
    const shown = this.#pages.filter((page) => page.used === this.#turn && page.rows !== null);
    await Promise.all(shown.map((page) => this.#refill(page)));
  }

  /** A row from an event. */
  put(row) {
    if (this.#reads > 0) this.#late.set(row.id, row);
    const place = this.#find(row.id);
    if (place === null) return;
    const { page, at, found } = place;
    if (!this.accepts(row)) {
      if (found) this.#cut(page, at);
      return;
    }
    if (found) {
      page.rows[at] = row;
    } else {
      page.rows.splice(at, 0, row);
      page.count += 1;
      if (page.count > SPLIT && !page.reading) this.#split(page);
    }
    this.changed();
  }

  /** The row of this id is gone. */
  drop(id) {
    if (this.#reads > 0) this.#late.set(id, null);
    const place = this.#find(id);
    if (place?.found) this.#cut(place.page, place.at);
  }

  #cut(page, at) {
    page.rows.splice(at, 1);
    page.count -= 1;
    this.changed();
  }

  /** Where a row with this id is or would be; null where that is not held. */
  #find(id) {
    if (!this.ready || (this.#next !== null && id > this.#next)) return null;
    const at = lowest(this.#pages, (page) => page.after >= id) - 1;
    const page = this.#pages[Math.max(0, at)];
    if (!page?.rows) return null;
    const place = lowest(page.rows, (row) => row.id >= id);
    return { page, at: place, found: page.rows[place]?.id === id };
  }

  /** Leaves a page's worth in it and returns the page with the rest. */
  #split(page) {
    const rows = page.rows.splice(PAGE);
    page.count = page.rows.length;
    const after = page.rows.at(-1).id;
    const rest = { after, rows, count: rows.length, used: page.used, reading: false };
    this.#pages.splice(this.#pages.indexOf(page) + 1, 0, rest);
    return rest;
  }

  /** Rows behind `after`, up to and with `last` where it is given, otherwise a page of them and where it goes on. */
  async #read(after, last) {
    // What was said before this read began is in its answer.
    if (this.#reads === 0) this.#late.clear();
    this.#reads += 1;
    try {
      return await this.#parts(after, last);
    } finally {
      this.#reads -= 1;
    }
  }

  async #parts(after, last) {
    const rows = [];
    for (let part = 0; part < PARTS; part += 1) {
      const { items, next } = await read(query(this.base, { ...this.filter, limit: PAGE, after }));
      rows.push(...items);
      // A relay may end a page early, even with no row in it, and go on with the next.
      const full = last === null ? rows.length > 0 : next !== null && next >= last;
      if (full || next === null) return { rows: last === null ? rows : rows.filter((row) => row.id <= last), next };
      after = next;
    }
    return { rows, next: after };
  }

  /** Puts what events said meanwhile over an answer. */
  #overlay() {
    for (const [id, row] of this.#late) {
      if (row === null) this.drop(id);
      else this.put(row);
    }
  }

  async #grow() {
    if (this.#growing || !this.ready || this.#next === null || this.error !== null) return;
    this.#growing = true;
    const generation = this.#generation;
    const after = this.#next;
    try {
      const { rows, next } = await this.#read(after, null);
      if (generation !== this.#generation) return;
      this.#pages.push({ after, count: rows.length, rows, used: this.#turn, reading: false });
      this.#next = next;
      this.#overlay();
    } catch (error) {
      if (generation !== this.#generation) return;
      this.error = error;
    }
    this.#growing = false;
    this.changed();
  }

  async #refill(page) {
    if (page.reading) return;
    page.reading = true;
    const first = page;
    const generation = this.#generation;
    try {
      const { rows, next } = await this.#read(page.after, this.#pages[this.#pages.indexOf(page) + 1]?.after ?? this.#next);
      if (generation !== this.#generation) return;
      // The last page may be longer than one read: what is behind it is read when it is needed.
      if (this.#next === null && page === this.#pages.at(-1)) this.#next = next;
      page.rows = rows;
      page.count = rows.length;
      while (page.count > SPLIT) page = this.#split(page);
      this.error = null;
      this.#overlay();
    } catch (error) {
      this.error = error;
    }
    first.reading = false;
    this.changed();
  }

  #forget() {
    const held = this.#pages.filter((page) => page.rows !== null);
    if (held.length <= HELD) return;
    held.sort((one, other) => one.used - other.used);
    for (const page of held.slice(0, held.length - HELD)) {
      if (page.used !== this.#turn) page.rows = null;
    }
  }
}

/** Index of the first item for which `holds`, where it holds for all behind it; the length where there is none. */
export function lowest(items, holds) {
  let low = 0;
  let high = items.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(items[middle])) high = middle;
    else low = middle + 1;
  }
  return low;
}
