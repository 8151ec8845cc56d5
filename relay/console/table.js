// A table of any length that holds as many rows in the document as fit on the screen.

import { h, schedule, setAttr, setText } from "./dom.js";

/** Rows drawn above and below what is seen. */
const MARGIN = 6;
let tables = 0;

/**
 * `columns`: `{name, label, text(row) or draw(cell, row), ticks}`; a cell is drawn again when its row is another
 * object, and each second where it `ticks`. `source`: a PagedList. `open(row)` is Enter or a click; `empty()` is what
 * stands where no row is; `differs(before, after)` says whether a row's change is worth a mark.
 */
export class VirtualTable {
  #pool = [];
  #active = -1;
  #activeId = null;
  #rowHeight = 32;

  constructor({ label, columns, source, open, empty, differs = () => false }) {
    this.columns = columns;
    this.source = source;
    this.open = open;
    this.empty = empty;
    this.differs = differs;
    this.prefix = `table${(tables += 1)}`;
    this.render = () => this.#render();
    this.head = h("div", { class: "row head", role: "row", "aria-rowindex": "1" },
      columns.map(({ name, label: title }) => h("div", { class: `cell ${name}`, role: "columnheader" }, title)));
    this.space = h("div", { class: "space", role: "rowgroup" });
    this.note = h("div", { class: "note", role: "status" });
    this.scroller = h("div", { class: "scroller", tabindex: "0", role: "grid", "aria-label": label, on: {
      scroll: () => schedule(this.render),
      keydown: (event) => this.key(event),
      click: (event) => this.#click(event),
    } }, h("div", { role: "rowgroup", class: "heads" }, this.head), this.space, this.note);
    this.element = h("div", { class: "table" }, this.scroller);
    this.resized = new ResizeObserver(() => {
      this.#measure();
      schedule(this.render);
    });
    this.resized.observe(this.scroller);
  }

  end() {
    this.resized.disconnect();
  }

  update() {
    schedule(this.render);
  }

  /** Draws the cells again that tell how long ago something was. */
  tick() {
    for (const { row, cells } of this.#pool) {
      if (row === null) continue;
      this.columns.forEach((column, at) => {
        if (column.ticks) this.#cell(column, cells[at], row);
      });
    }
  }

  focus() {
    this.scroller.focus({ preventScroll: true });
  }

  toTop() {
    this.scroller.scrollTop = 0;
    this.#active = -1;
    this.#activeId = null;
  }

  /** Whether the key was for the table. */
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / this.#rowHeight) - 2);
    const steps = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key in steps) {
      this.#move(steps[event.key]);
    } else if (event.key === "Enter" && this.#active >= 0 && !event.target.closest?.("a, button")) {
      const [row] = this.source.slice(this.#active, this.#active + 1);
      if (row) this.open(row);
    } else {
      return false;
    }
    event.preventDefault();
    event.stopPropagation();
    return true;
  }

  #move(step) {
    const length = this.source.length;
    if (length === 0) return;
    this.focus();
    const from = this.#active < 0 ? (step > 0 ? -1 : 0) : this.#active;
    this.#active = Math.min(length - 1, Math.max(0, from + step));
    this.#activeId = this.source.slice(this.#active, this.#active + 1)[0]?.id ?? null;
    const top = this.#active * this.#rowHeight;
    const view = this.scroller.clientHeight - this.head.offsetHeight;
    if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
    else if (top + this.#rowHeight > this.scroller.scrollTop + view) this.scroller.scrollTop = top + this.#rowHeight - view;
    schedule(this.render);
  }

  #click(event) {
    const line = event.target.closest(".row");
    const drawn = this.#pool.find(({ element }) => element === line);
    if (!drawn?.row || event.target.closest("button")) return;
    this.#active = drawn.index;
    this.#activeId = drawn.row.id;
    schedule(this.render);
    if (!event.target.closest("a")) this.open(drawn.row);
  }

  #measure() {
    const height = parseFloat(getComputedStyle(this.element).getPropertyValue("--row"));
    if (height > 0) this.#rowHeight = height;
  }

  #render() {
    if (!this.element.isConnected) return;
    const { source, scroller } = this;
    const length = source.length;
    const view = Math.ceil(scroller.clientHeight / this.#rowHeight);
    const first = Math.max(0, Math.floor(scroller.scrollTop / this.#rowHeight) - MARGIN);
    const last = Math.min(Math.max(length, 1), first + view + 2 * MARGIN);
    const rows = source.slice(first, last);
    this.space.style.height = `${length * this.#rowHeight}px`;
    setAttr(scroller, "aria-rowcount", source.isComplete ? length + 1 : -1);
    while (this.#pool.length < rows.length) this.#add();
    // Each line keeps its row while that is seen, wherever it is: scrolling draws what comes in and nothing else.
    const drawn = new Set();
    rows.forEach((row, at) => {
      const line = this.#pool[(first + at) % this.#pool.length];
      drawn.add(line);
      this.#line(line, first + at, row);
    });
    for (const line of this.#pool) {
      if (!drawn.has(line)) this.#line(line, -1, null);
    }
    const active = this.#pool.find((line) => line.index === this.#active && line.row !== null);
    setAttr(scroller, "aria-activedescendant", active?.element.id);
    setText(this.note, this.#note(length));
    this.note.hidden = this.note.textContent === "";
  }

  #note(length) {
    const { source } = this;
    if (source.error !== null) return length === 0 ? source.error.message : "";
    if (!source.ready) return "Reading…";
    return length === 0 && source.isComplete ? this.empty() : "";
  }

  #add() {
    const cells = this.columns.map(({ name }) => h("div", { class: `cell ${name}`, role: "gridcell" }));
    const element = h("div", { class: "row", role: "row", id: `${this.prefix}-${this.#pool.length}` }, cells);
    this.space.append(element);
    this.#pool.push({ element, cells, row: null, index: -1 });
  }

  #line(line, index, row) {
    const { element, cells } = line;
    element.hidden = index < 0;
    if (index < 0) {
      line.row = null;
      line.index = -1;
      return;
    }
    if (line.index !== index) {
      element.style.transform = `translateY(${index * this.#rowHeight}px)`;
      setAttr(element, "aria-rowindex", index + 2);
    }
    // The mark follows its row when others come and go above it.
    if (row !== null && row.id === this.#activeId) this.#active = index;
    setAttr(element, "aria-selected", index === this.#active ? "true" : null);
    const changed = line.row !== row;
    if (changed && row !== null && line.row?.id === row.id && this.differs(line.row, row)) blink(element);
    line.index = index;
    if (!changed) return;
    line.row = row;
    element.classList.toggle("waiting", row === null);
    this.columns.forEach((column, at) => {
      if (row === null) cells[at].replaceChildren();
      else this.#cell(column, cells[at], row);
    });
  }

  #cell(column, cell, row) {
    if (column.draw) column.draw(cell, row);
    else setText(cell, column.text(row));
  }
}

/** A short mark that something changed; not where motion is not wanted (style.css). */
function blink(element) {
  for (const animation of element.getAnimations()) animation.cancel();
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
    const colour = getComputedStyle(element).getPropertyValue("--changed");
    element.animate([{ backgroundColor: colour }, {}], { duration: 900, easing: "ease-out" });
  }
}
