// The mesh at a glance: relays, links, load, and how many terminals are in which state.

import { h, s, schedule, setAttr, setText } from "../dom.js";
import { count, rtt, short } from "../format.js";
import { icon, stateLabel } from "../icons.js";
import { arrange, placed, scale } from "../layout.js";
import { Sparkline, follow, relayHref, relayState, state } from "../parts.js";
import { PULSE_S, on, store } from "../store.js";

const STATES = ["logged-in", "in-communication", "logged-out", "unreachable"];
const MOVE_MS = 500;
/** With more links than this, round trips stand only at those of the relay that is looked at. */
const LABELLED_LINKS = 16;
const MARGIN = { x: 52, top: 44, bottom: 84 };
const NARROW = { x: 36, top: 36, bottom: 92 };

export function open({ scope, go }) {
  const summary = summaryStrip();
  const map = new MeshMap(go);
  const list = relayList();
  const render = () => {
    map.update();
    list.update();
  };
  follow(scope, on, ["relays", "status", "resync"], render);
  follow(scope, on, ["summary"], summary.update);
  follow(scope, on, ["pulse"], summary.beat);
  scope.add(() => map.end());
  summary.update();
  summary.beat();
  schedule(render);
  return {
    title: "Map",
    element: h("div", { class: "view map-view" }, h("h1", { class: "unseen" }, "Map"), summary.element,
      h("div", { class: "map-frame" }, map.element, list.element)),
  };
}

function summaryStrip() {
  const parts = STATES.map((name) => {
    const number = h("b", { class: "number" }, "–");
    const bar = s("rect", { class: `bar ${name}`, y: "0", height: "6" });
    const element = h("a", { class: "figure", href: `#/terminals?state=${name}` }, number, state(name));
    return { name, number, bar, element };
  });
  const total = h("b", { class: "number" }, "–");
  const relays = h("b", { class: "number" }, "–");
  const relaysNote = h("span", { class: "quiet" }, "Relays");
  const spark = new Sparkline("Changes per second over the last minute", ["one"], 120, 24);
  const beat = h("b", { class: "number" }, "0");
  const element = h("section", { class: "summary", "aria-label": "Summary" },
    h("div", { class: "figures" },
      h("div", { class: "figure" }, relays, relaysNote),
      h("a", { class: "figure", href: "#/terminals" }, total, h("span", { class: "quiet" }, "Terminals")),
      parts.map((part) => part.element),
      h("div", { class: "figure beat" }, h("div", { class: "with-spark" }, beat, spark.element),
        h("span", { class: "quiet" }, "Changes a second"))),
    s("svg", { class: "bars", viewBox: "0 0 1000 6", preserveAspectRatio: "none", "aria-hidden": "true" }, parts.map((part) => part.bar)));
  return {
    element,
    update() {
      const { summary } = store;
      if (summary === null) return;
      setText(total, count(summary.terminals.total));
      const { total: all, reachable, draining } = summary.relays;
      setText(relays, reachable === all ? count(all) : `${reachable} of ${all}`);
      setText(relaysNote, `${reachable === all ? "Relays" : "Relays reachable"}${draining > 0 ? `, ${draining} draining` : ""}`);
      let x = 0;
      for (const { name, number, bar } of parts) {
        const value = summary.terminals[name] ?? 0;
        setText(number, count(value));
        const width = summary.terminals.total > 0 ? (value / summary.terminals.total) * 1000 : 0;
        setAttr(bar, "x", x.toFixed(1));
        setAttr(bar, "width", width.toFixed(1));
        x += width;
      }
    },
    beat() {
      setText(beat, count(store.pulse.at(-1)));
      spark.draw([store.pulse], PULSE_S);
    },
  };
}

/** Links as both ends tell of them, each once. */
export function linksOf(relays) {
  const links = new Map();
  for (const row of relays.values()) {
    for (const { relay, rtt_us: us } of row.links) {
      const [a, b] = row.name < relay ? [row.name, relay] : [relay, row.name];
      const key = `${a} ${b}`;
      const link = links.get(key);
      if (link) {
        link.rtt = Math.min(link.rtt, us);
        link.ends += 1;
      } else if (relays.has(relay)) {
        links.set(key, { key, a, b, rtt: us, ends: 1 });
      }
    }
  }
  return links;
}

class MeshMap {
  #unit = new Map();
  #now = new Map();
  #shape = "";
  #nodes = new Map();
  #links = new Map();
  #looked = null;
  #animation = null;

  constructor(go) {
    this.go = go;
    this.lines = s("g", { class: "links" });
    this.labels = s("g", { class: "labels", "aria-hidden": "true" });
    this.dots = s("g", { class: "nodes", role: "list", "aria-label": "Relays" });
    this.svg = s("svg", { class: "mesh", role: "group", "aria-label": "Map of the mesh" }, this.lines, this.labels, this.dots);
    this.note = h("p", { class: "note" }, "Reading…");
    this.element = h("section", { class: "canvas", "aria-label": "Map" }, this.svg, this.note, legend());
    this.resized = new ResizeObserver(() => this.update());
    this.resized.observe(this.element);
  }

  end() {
    this.resized.disconnect();
    cancelAnimationFrame(this.#animation);
  }

  update() {
    const { relays } = store;
    this.note.hidden = relays.size > 0;
    const links = linksOf(relays);
    const shape = [...relays.keys()].sort().join() + [...links.keys()].sort().join();
    if (shape !== this.#shape) {
      this.#unit = arrange([...relays.keys()], [...links.values()], this.#unit);
      this.#shape = shape;
    }
    const { clientWidth: width, clientHeight: height } = this.element;
    const size = scale(width, height, relays.size);
    this.#match(links, size);
    this.svg.classList.toggle("small", size < 0.8);
    // No room for names: the list below has them.
    this.svg.classList.toggle("tiny", size < 0.5);
    if (width > 0 && height > 0) {
      setAttr(this.svg, "viewBox", `0 0 ${width} ${height}`);
      this.#move(placed(this.#unit, width, height, width < 520 ? NARROW : MARGIN, size));
    }
    this.#look(this.#looked);
  }

  /** Makes the elements those of the rows. */
  #match(links, size) {
    const most = Math.max(1, ...[...store.relays.values()].map((row) => row.terminals));
    for (const [name, node] of this.#nodes) {
      if (store.relays.has(name)) continue;
      node.element.remove();
      this.#nodes.delete(name);
      this.#now.delete(name);
    }
    for (const [name, row] of store.relays) {
      if (!this.#nodes.has(name)) {
        const node = this.#node(name);
        this.#nodes.set(name, node);
        // In the order of names, which is the order of Tab.
        const behind = [...this.#nodes.keys()].filter((other) => other > name).sort()[0];
        this.dots.insertBefore(node.element, behind ? this.#nodes.get(behind).element : null);
      }
      drawNode(this.#nodes.get(name), row, most, size);
    }
    for (const [key, { line, label }] of this.#links) {
      if (links.has(key)) continue;
      line.remove();
      label.remove();
      this.#links.delete(key);
    }
    for (const [key, link] of links) {
      if (!this.#links.has(key)) {
        const line = s("line", {});
        const label = s("text", { class: "rtt" });
        this.lines.append(line);
        this.labels.append(label);
        this.#links.set(key, { line, label });
      }
      const shown = this.#links.get(key);
      Object.assign(shown, { a: link.a, b: link.b });
      const alive = store.relays.get(link.a).reachable && store.relays.get(link.b).reachable && link.ends === 2;
      const quick = link.rtt < 5000 ? "near" : link.rtt < 50000 ? "mid" : "far";
      setAttr(shown.line, "class", alive ? `link ${quick}` : "link dead");
      setText(shown.label, alive ? rtt(link.rtt) : "");
    }
  }

  #node(name) {
    const node = {
      ring: s("circle", { class: "ring" }),
      disc: s("circle", { class: "disc" }),
      load: s("text", { class: "load", dy: "0.35em" }),
      name: s("text", { class: "name" }),
      state: s("text", { class: "word" }),
      sign: icon("reachable", "sign"),
      kind: "reachable",
    };
    setAttr(node.sign, "width", 14);
    setAttr(node.sign, "height", 14);
    const look = (on) => () => this.#look(on ? name : null);
    node.element = s("g", { class: "node", role: "listitem" }, s("a", { href: relayHref(name), on: {
      mouseenter: look(true), mouseleave: look(false), focus: look(true), blur: look(false),
    } }, s("circle", { class: "target", r: "30" }), node.ring, node.disc, node.load, node.sign, node.name, node.state));
    node.anchor = node.element.firstChild;
    return node;
  }

  /** Shows the links of one relay, and their round trips. */
  #look(name) {
    this.#looked = name;
    const all = this.#links.size <= LABELLED_LINKS;
    for (const { line, label, a, b } of this.#links.values()) {
      const own = name !== null && (a === name || b === name);
      line.classList.toggle("looked", own);
      label.classList.toggle("looked", own);
      setAttr(label, "visibility", own || (all && name === null) ? "visible" : "hidden");
    }
    for (const [other, { element }] of this.#nodes) element.classList.toggle("looked", other === name);
    this.svg.classList.toggle("looking", name !== null);
    this.#draw();
  }

  /** Moves gently to these places; at once when the map is drawn first, or motion is not wanted. */
  #move(places) {
    cancelAnimationFrame(this.#animation);
    const from = new Map([...places].map(([name, place]) => [name, this.#now.get(name) ?? place]));
    const far = [...places].some(([name, { x, y }]) => Math.hypot(from.get(name).x - x, from.get(name).y - y) > 0.5);
    if (!far || this.#now.size === 0 || matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.#now = places;
      this.#draw();
      return;
    }
    const start = performance.now();
    const frame = (now) => {
      const part = Math.min(1, (now - start) / MOVE_MS);
      const eased = 1 - (1 - part) ** 3;
      this.#now = new Map([...places].map(([name, { x, y }]) => {
        const before = from.get(name);
        return [name, { x: before.x + (x - before.x) * eased, y: before.y + (y - before.y) * eased }];
      }));
      this.#draw();
      if (part < 1) this.#animation = requestAnimationFrame(frame);
    };
    this.#animation = requestAnimationFrame(frame);
  }

  #draw() {
    for (const [name, { x, y }] of this.#now) {
      setAttr(this.#nodes.get(name)?.element, "transform", `translate(${x.toFixed(1)} ${y.toFixed(1)})`);
    }
    for (const { line, label, a, b } of this.#links.values()) {
      const [from, to] = [this.#now.get(a), this.#now.get(b)];
      if (!from || !to) continue;
      setAttr(line, "x1", from.x.toFixed(1));
      setAttr(line, "y1", from.y.toFixed(1));
      setAttr(line, "x2", to.x.toFixed(1));
      setAttr(line, "y2", to.y.toFixed(1));
      // Nearer to the other end, where one is looked at: names stand around it.
      const part = a === this.#looked ? 0.6 : b === this.#looked ? 0.4 : 0.5;
      setAttr(label, "x", (from.x + (to.x - from.x) * part).toFixed(1));
      setAttr(label, "y", (from.y + (to.y - from.y) * part + 3.5).toFixed(1));
    }
  }
}

/** Letters of a name that stand at its node; the whole is in the list and in the node's label. */
const NAME = 14;

function drawNode(node, row, most, size) {
  const kind = relayState(row);
  const radius = size * (13 + 11 * Math.sqrt(row.terminals / most));
  const here = store.status?.name === row.name;
  setAttr(node.element, "class", `node ${kind}${here ? " here" : ""}${node.element.classList.contains("looked") ? " looked" : ""}`);
  setAttr(node.disc, "r", radius.toFixed(1));
  setAttr(node.ring, "r", (radius + 4.5).toFixed(1));
  setText(node.load, short(row.terminals));
  setAttr(node.load, "visibility", radius < 9 ? "hidden" : "visible");
  setText(node.name, row.name.length > NAME ? `${row.name.slice(0, NAME - 1)}…` : row.name);
  setAttr(node.name, "y", (radius + 5 + 12 * size).toFixed(1));
  setAttr(node.state, "y", (radius + 5 + 25 * size).toFixed(1));
  const word = kind === "reachable" ? (here ? "this relay" : "") : kind;
  setText(node.state, word);
  if (kind !== node.kind) {
    const sign = icon(kind, "sign");
    setAttr(sign, "width", 14);
    setAttr(sign, "height", 14);
    node.sign.replaceWith(sign);
    node.sign = sign;
    node.kind = kind;
  }
  setAttr(node.sign, "visibility", kind === "reachable" ? "hidden" : "visible");
  setAttr(node.sign, "x", (radius * 0.7 - 3).toFixed(1));
  setAttr(node.sign, "y", (-radius * 0.7 - 11).toFixed(1));
  setAttr(node.anchor, "aria-label",
    `${row.name}, ${stateLabel(kind)}${here ? ", this relay" : ""}, ${count(row.terminals)} terminals, ${row.links.length} links`);
}

function legend() {
  const line = (kind) => s("svg", { viewBox: "0 0 24 8", class: "key", "aria-hidden": "true" }, s("line", { class: `link ${kind}`, x1: 0, y1: 4, x2: 24, y2: 4 }));
  return h("div", { class: "legend" },
    h("span", {}, line("near"), "below 5 ms"), h("span", {}, line("mid"), "below 50 ms"), h("span", {}, line("far"), "slower"),
    h("span", {}, line("dead"), "down"), h("span", {}, "Number and size: terminals"));
}

function relayList() {
  const body = h("tbody", {});
  const element = h("section", { class: "relay-list", "aria-label": "List of relays" },
    h("table", {}, h("thead", {}, h("tr", {}, ["Relay", "State", "Terminals", "Links"].map((title, at) => h("th", { scope: "col", class: at > 1 ? "right" : null }, title)))), body));
  const lines = new Map();
  return {
    element,
    update() {
      for (const [name, line] of lines) {
        if (store.relays.has(name)) continue;
        line.element.remove();
        lines.delete(name);
      }
      let at = null;
      for (const [name, row] of [...store.relays].sort(([one], [other]) => (one < other ? -1 : 1))) {
        if (!lines.has(name)) lines.set(name, relayLine(name));
        const line = lines.get(name);
        const behind = at === null ? body.firstChild : at.nextSibling;
        if (behind !== line.element) body.insertBefore(line.element, behind);
        at = line.element;
        const kind = relayState(row);
        if (line.kind !== kind) line.state.replaceChildren(state(kind));
        line.kind = kind;
        setText(line.terminals, count(row.terminals));
        setText(line.links, count(row.links.length));
        setText(line.note, store.status?.name === name ? "this relay" : row.registrar ? "registrar" : "");
      }
    },
  };
}

function relayLine(name) {
  const line = { state: h("td", {}), terminals: h("td", { class: "right" }), links: h("td", { class: "right" }), note: h("small", {}), kind: null };
  line.element = h("tr", {}, h("th", { scope: "row" }, h("a", { href: relayHref(name) }, name), " ", line.note), line.state, line.terminals, line.links);
  return line;
}
