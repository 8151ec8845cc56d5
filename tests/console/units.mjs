// The parts of the console that need no browser: the parser of the event stream, the long list, the layout.

import assert from "node:assert/strict";
import test from "node:test";

globalThis.sessionStorage = { getItem: () => null };
globalThis.document = { hidden: false, addEventListener() {} };
const { Parser } = await import("../../relay/console/events.js");
const { setText, shown } = await import("../../relay/console/dom.js");
const { PagedList } = await import("../../relay/console/list.js");
const { arrange, placed, scale } = await import("../../relay/console/layout.js");

/** mulberry32. */
function chance(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

test("an event stream is the same in whatever pieces it comes", () => {
  const text = ": hello\nid: 1-1\r\nevent: hello\r\ndata: {\"a\":1}\r\n\r\ndata:x\ndata: y\n\nevent: none\n\nid: 1-2\rdata: é🎽\r\r";
  const expected = [
    { type: "hello", data: '{"a":1}', id: "1-1" },
    { type: "message", data: "x\ny", id: null },
    { type: "message", data: "é🎽", id: "1-2" },
  ];
  for (let size = 1; size <= text.length; size += 1) {
    const seen = [];
    const parser = new Parser((event) => seen.push(event));
    for (let at = 0; at < text.length; at += size) parser.push(text.slice(at, at + size));
    // A carriage return at the very end may be half of a line break.
    parser.push("\n");
    assert.deepEqual(seen, expected, `pieces of ${size}`);
  }
});

test("a line without end is not kept", () => {
  const parser = new Parser(() => {});
  assert.throws(() => {
    for (;;) parser.push("x".repeat(1 << 20));
  });
});

/** A relay's list behind fetch(), and a PagedList over it that hears of every change. */
function world(ids, filter = () => true) {
  const rows = new Map(ids.map((id) => [id, { id, version: 0 }]));
  const pending = [];
  globalThis.fetch = (path) => new Promise((resolve) => {
    const search = new URL(path, "http://localhost").searchParams;
    const after = search.get("after") ?? "";
    const found = [...rows.values()].filter((row) => row.id > after && filter(row)).sort((a, b) => (a.id < b.id ? -1 : 1));
    const items = found.slice(0, Number(search.get("limit")));
    const body = { items: items.map((row) => ({ ...row })), next: found.length > items.length ? items.at(-1).id : null };
    // The answer is of this moment and arrives later.
    pending.push(() => resolve({ ok: true, status: 200, json: async () => body }));
  });
  const list = new PagedList("/rows", {}, filter, () => {});
  const settle = async () => {
    for (let turn = 0; turn < 400; turn += 1) {
      pending.splice(0).forEach((answer) => answer());
      await new Promise((resolve) => setImmediate(resolve));
      if (pending.length === 0 && turn > 3) return;
    }
    throw new Error("the list never settles");
  };
  return { rows, list, pending, settle };
}

const named = (n) => `t${String(n).padStart(6, "0")}`;

test("a long list holds a few pages of itself", async () => {
  const { list, settle } = world(Array.from({ length: 20_000 }, (_, n) => named(n)));
  list.load();
  await settle();
  for (let at = 0; at < 20_000; at += 50) {
    list.slice(at, at + 50);
    await settle();
    assert.deepEqual(list.slice(at, at + 50).map((row) => row?.id), Array.from({ length: 50 }, (_, n) => named(at + n)));
    assert.ok(list.held <= 30 * 200, `${list.held} rows held`);
  }
  assert.ok(list.isComplete);
  list.slice(0, 50);
  await settle();
  assert.equal(list.slice(0, 1)[0].id, named(0), "what was forgotten is read again");
});

test("after any changes, at any moment, the list is the relay's", async () => {
  for (let seed = 1; seed <= 60; seed += 1) {
    const random = chance(seed);
    const pick = (most) => Math.floor(random() * most);
    const { rows, list, pending, settle } = world(Array.from({ length: pick(1500) }, () => named(pick(3000))), (row) => row.version % 5 !== 4);
    list.load();
    for (let turn = 0; turn < 300; turn += 1) {
      const dice = random();
      const id = named(pick(3000));
      if (dice < 0.35) {
        const row = { id, version: (rows.get(id)?.version ?? 0) + 1 };
        rows.set(id, row);
        list.put(row);
      } else if (dice < 0.5) {
        if (rows.delete(id)) list.drop(id);
      } else if (dice < 0.75) {
        const first = pick(list.length + 1);
        list.slice(first, first + 40);
      } else if (dice < 0.8) {
        list.refresh();
      } else if (dice < 0.82) {
        list.resync();
      } else {
        pending.splice(0, 1 + pick(2)).forEach((answer) => answer());
        await new Promise((resolve) => setImmediate(resolve));
      }
    }
    await settle();
    for (let at = 0; !list.isComplete || at < list.length; at += 100) {
      list.slice(at, at + 100);
      await settle();
    }
    const expected = [...rows.values()].filter((row) => row.version % 5 !== 4).sort((a, b) => (a.id < b.id ? -1 : 1));
    assert.deepEqual(list.slice(0, list.length), expected, `seed ${seed}`);
  }
});

test("the map is the same each time, and nodes do not lie on each other", () => {
  for (const count of [0, 1, 2, 3, 20, 60]) {
    const names = Array.from({ length: count }, (_, n) => `relay-${n}`);
    const random = chance(count);
    const links = names.slice(1).map((name, n) => ({ a: names[Math.floor(random() * (n + 1))], b: name, rtt: Math.floor(random() * 80_000) }));
    const one = arrange(names, links);
    assert.deepEqual([...arrange([...names].reverse(), links)], [...one]);
    for (const [width, height, apart] of [[900, 640, 28], [320, 380, 12]]) {
      const places = [...placed(one, width, height, { x: 40, top: 40, bottom: 80 }, scale(width, height, count)).values()];
      assert.equal(places.length, count);
      for (const [at, a] of places.entries()) {
        assert.ok(a.x >= 0 && a.x <= width && a.y >= 0 && a.y <= height, `${count}: outside`);
        for (const b of places.slice(at + 1)) {
          const far = Math.hypot(a.x - b.x, a.y - b.y);
          assert.ok(far > apart, `${count} relays on ${width} px: ${far} px between two`);
        }
      }
    }
  }
});

test("a relay that comes moves the others little", () => {
  const names = Array.from({ length: 12 }, (_, n) => `relay-${n}`);
  const links = names.map((a, n) => ({ a, b: names[(n + 1) % names.length], rtt: 1000 }));
  const before = arrange(names, links);
  const after = arrange([...names, "zulu"], [...links, { a: "zulu", b: "relay-3", rtt: 1000 }], before);
  const moves = names.map((name) => Math.hypot(after.get(name).x - before.get(name).x, after.get(name).y - before.get(name).y));
  assert.ok(moves.reduce((sum, move) => sum + move, 0) / names.length < 0.25, moves.join());
});

test("what peers say cannot steer the page", () => {
  assert.equal(shown("a\u001b[2J\u009b\u202ex\u200b\n"), "a\\u{1b}[2J\\u{9b}\\u{202e}x\\u{200b}\\u{a}");
  assert.equal(shown("plain, 日本語, עברית, 🎽"), "plain, 日本語, עברית, 🎽");
  assert.equal(shown("\u{e0041}\ufeff"), "\\u{e0041}\\u{feff}");
  const element = { textContent: "" };
  setText(element, "\u2066x");
  assert.equal(element.textContent, "\\u{2066}x");
});
