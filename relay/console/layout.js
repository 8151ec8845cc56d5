// Where the relays of the map stand. The same mesh gives the same picture: no chance, no clock.

const ROUNDS = 300;
const MOVED_ROUNDS = 80;
/** What a node takes with its name, px. */
const CELL = { width: 96, height: 78 };
const APART_ROUNDS = 120;
/** Pull to the middle, so that parts without a link to the rest stay near. */
const GRAVITY = 0.9;

/** A number from 0 to 1 out of a name (FNV-1a). */
function spread(name) {
  let hash = 0x811c9dc5;
  for (let at = 0; at < name.length; at += 1) hash = Math.imul(hash ^ name.charCodeAt(at), 0x01000193);
  return (hash >>> 0) / 2 ** 32;
}

/**
 * Positions by name in a box of width 1 and height 1, from forces: all push each other away, links pull, those with
 * a short round trip more. `before` are positions to begin with; what is new begins among its neighbours.
 */
export function arrange(names, links, before = new Map()) {
  const sorted = [...names].sort();
  const at = new Map(sorted.map((name, index) => [name, index]));
  const nodes = sorted.map((name, index) => {
    const kept = before.get(name);
    if (kept) return { x: kept.x - 0.5, y: kept.y - 0.5 };
    const near = links.filter(({ a, b }) => a === name || b === name)
      .map(({ a, b }) => before.get(a === name ? b : a)).filter(Boolean);
    const angle = spread(name) * 2 * Math.PI;
    if (near.length > 0) {
      const mean = (axis) => near.reduce((sum, place) => sum + place[axis], 0) / near.length - 0.5;
      return { x: mean("x") + 0.08 * Math.cos(angle), y: mean("y") + 0.08 * Math.sin(angle) };
    }
    // A sunflower: even, and never two in one place.
    const radius = 0.5 * Math.sqrt((index + 0.5) / sorted.length);
    return { x: radius * Math.cos(index * 2.39996 + 0.1 * angle), y: radius * Math.sin(index * 2.39996 + 0.1 * angle) };
  });
  const pulls = links.filter(({ a, b }) => at.has(a) && at.has(b))
    .map(({ a, b, rtt }) => ({ a: at.get(a), b: at.get(b), far: 0.7 + 0.25 * Math.log10(1 + (rtt ?? 0) / 1000) }));
  const moved = before.size > 0;
  relax(nodes, pulls, moved ? MOVED_ROUNDS : ROUNDS, moved ? 0.03 : 0.12);
  return new Map(boxed(nodes).map((node, index) => [sorted[index], node]));
}

/** Fruchterman and Reingold, with a pull to the middle. */
function relax(nodes, pulls, rounds, heat) {
  const ideal = Math.sqrt(1 / Math.max(1, nodes.length));
  // A node with many links is not to be torn to all of them at once.
  const degree = nodes.map(() => 0);
  for (const { a, b } of pulls) {
    degree[a] += 1;
    degree[b] += 1;
  }
  for (let round = 0; round < rounds; round += 1) {
    const moves = nodes.map(({ x, y }) => ({ x: -GRAVITY * x, y: -GRAVITY * y }));
    for (let i = 0; i < nodes.length; i += 1) {
      for (let j = i + 1; j < nodes.length; j += 1) {
        const x = nodes[i].x - nodes[j].x;
        const y = nodes[i].y - nodes[j].y;
        const force = (ideal * ideal) / Math.max(1e-4, x * x + y * y);
        moves[i].x += x * force;
        moves[i].y += y * force;
        moves[j].x -= x * force;
        moves[j].y -= y * force;
      }
    }
    for (const { a, b, far } of pulls) {
      const x = nodes[a].x - nodes[b].x;
      const y = nodes[a].y - nodes[b].y;
      const force = Math.hypot(x, y) / (ideal * far) / Math.max(1, Math.min(degree[a], degree[b]) / 3);
      moves[a].x -= x * force;
      moves[a].y -= y * force;
      moves[b].x += x * force;
      moves[b].y += y * force;
    }
    const limit = heat * (1 - round / rounds);
    nodes.forEach((node, index) => {
      const length = Math.hypot(moves[index].x, moves[index].y) || 1;
      const step = Math.min(length, limit) / length;
      node.x += moves[index].x * step;
      node.y += moves[index].y * step;
    });
  }
}

function boxed(nodes) {
  if (nodes.length < 2) return nodes.map(() => ({ x: 0.5, y: 0.5 }));
  const range = (axis) => {
    const values = nodes.map((node) => node[axis]);
    const low = Math.min(...values);
    return { low, size: Math.max(...values) - low };
  };
  const [xs, ys] = [range("x"), range("y")];
  // Almost a line: it stays one, in the middle.
  const scale = (value, { low, size }) => (size < 0.02 ? 0.5 : (value - low) / size);
  return nodes.map(({ x, y }) => ({ x: scale(x, xs), y: scale(y, ys) }));
}

/** How much of their full size nodes can have in so many px² each, from 0.45 to 1. */
export function scale(width, height, count) {
  return Math.min(1, Math.max(0.45, Math.sqrt((width * height) / Math.max(1, count)) / 110));
}

/** The same in px, inside a margin, with room for each name. `size` is that of the nodes (`scale`). */
export function placed(unit, width, height, margin, size) {
  const inner = { width: Math.max(1, width - 2 * margin.x), height: Math.max(1, height - margin.top - margin.bottom) };
  const nodes = [...unit].map(([name, { x, y }]) => ({ name, x: margin.x + x * inner.width, y: margin.top + y * inner.height }));
  const longest = Math.max(...nodes.map(({ name }) => name.length), 0);
  const cell = { width: Math.min(CELL.width, Math.max(76, 16 + 7 * longest)) * size, height: CELL.height * size };
  for (let round = 0; round < APART_ROUNDS; round += 1) {
    let moved = false;
    for (let i = 0; i < nodes.length; i += 1) {
      for (let j = i + 1; j < nodes.length; j += 1) moved = apart(nodes[i], nodes[j], cell) || moved;
    }
    for (const node of nodes) {
      node.x = Math.min(margin.x + inner.width, Math.max(margin.x, node.x));
      node.y = Math.min(margin.top + inner.height, Math.max(margin.top, node.y));
    }
    if (!moved) break;
  }
  return new Map(nodes.map(({ name, x, y }) => [name, { x, y }]));
}

/** Pushes two apart along the axis where less is missing. */
function apart(one, other, cell) {
  const x = other.x - one.x;
  const y = other.y - one.y;
  const missing = { x: cell.width - Math.abs(x), y: cell.height - Math.abs(y) };
  if (missing.x <= 0 || missing.y <= 0) return false;
  const axis = missing.x / cell.width < missing.y / cell.height ? "x" : "y";
  const push = ((axis === "x" ? x : y) < 0 ? -1 : 1) * (missing[axis] / 2 + 0.1);
  one[axis] -= push;
  other[axis] += push;
  return true;
}
