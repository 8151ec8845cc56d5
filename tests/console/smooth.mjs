// How the console keeps up: frame times with 20 relays, 5,000 terminals and 500 changes a second, on the map and on
// the table while it is scrolled.
//
//   node smooth.mjs [SECONDS]       for each of both (default 10)
//
// Frame times depend on the machine and what else it does, so they are printed and not judged. What must hold
// everywhere: the changes arrive, the page answers, and neither its elements nor its memory grow.

import { Fake } from "./fake.mjs";
import { Browser, SOON, check, eventually } from "./browser.mjs";

const MESH = { relays: 20, terminals: 5000, rate: 500, sessions: 200 };
/** Elements of the document, whatever the list's length. */
const ELEMENTS = 3000;
/** Growth of the heap over the whole run, after collection. */
const GROWTH = 16e6;
/** From a key to the view that it opens. */
const ANSWER_MS = 5000;
const seconds = Number(process.argv[2] ?? 10);

const fake = new Fake(MESH);
const browser = await Browser.open(await fake.listen());
const { page } = browser;
const cdp = await browser.context.newCDPSession(page);

async function heap() {
  await cdp.send("HeapProfiler.collectGarbage");
  return (await cdp.send("Runtime.getHeapUsage")).usedSize;
}

/** Times between frames over `seconds`, ms; meanwhile the element `scrolled` is scrolled, if it is given. */
function frames(scrolled) {
  return page.evaluate(([ms, selector]) => new Promise((resolve) => {
    const times = [];
    const element = selector && document.querySelector(selector);
    const start = performance.now();
    let last = start;
    const frame = (now) => {
      times.push(now - last);
      last = now;
      if (element) element.scrollTop += 40;
      if (now - start < ms) requestAnimationFrame(frame);
      else resolve(times.slice(1));
    };
    requestAnimationFrame(frame);
  }), [seconds * 1000, scrolled]);
}

function report(what, times) {
  times.sort((one, other) => one - other);
  const at = (share) => times[Math.min(times.length - 1, Math.floor(times.length * share))].toFixed(1);
  console.log(`${what}: ${times.length} frames, ms between them p50 ${at(0.5)}, p99 ${at(0.99)}, longest ${at(1)}`);
}

async function run() {
  await page.goto(fake.url);
  await page.locator(".live.is-live").waitFor();
  await page.locator(".node").nth(MESH.relays - 1).waitFor();
  const before = await heap();
  const said = fake.said;
  const begun = Date.now();
  report("map", await frames(null));

  const pressed = Date.now();
  await page.keyboard.press("g");
  await page.keyboard.press("t");
  await page.locator(".space .row .state").first().waitFor();
  const answer = Date.now() - pressed;
  console.log(`from a key to the table: ${answer} ms`);
  check(answer < ANSWER_MS, `the page answered after ${answer} ms`);
  report("table, scrolled", await frames(".scroller"));

  const typed = Date.now();
  await page.keyboard.press("/");
  await page.keyboard.type("camera-ams");
  await page.locator(".found", { hasText: "found" }).waitFor();
  await eventually("the search", async () => (await page.locator(".space .row:not([hidden]) .id").allTextContents()).every((id) => id === "" || id.includes("camera-ams")));
  console.log(`from the first key of a search to what it found: ${Date.now() - typed} ms`);

  const elapsed = (Date.now() - begun) / 1000;
  const changes = (fake.said - said) / elapsed;
  console.log(`${Math.round(changes)} changes a second over ${elapsed.toFixed(1)} s`);
  check(changes > MESH.rate * 0.1, `the mesh made only ${changes} changes a second`);
  // What was said last arrives: nothing piles up on the way.
  fake.addTerminal("camera-ams-0-first");
  await page.locator(".space .row", { hasText: "camera-ams-0-first" }).waitFor({ timeout: SOON });
  const elements = await page.evaluate(() => document.querySelectorAll("*").length);
  const grown = (await heap()) - before;
  console.log(`${elements} elements, heap ${(before / 1e6).toFixed(1)} MB, grown by ${(grown / 1e6).toFixed(1)} MB`);
  check(elements < ELEMENTS, `${elements} elements`);
  check(grown < GROWTH, `the heap has grown by ${grown} bytes`);
  check(browser.faults.length === 0, browser.faults.join("\n"));
}

let failure = null;
try {
  await run();
} catch (error) {
  failure = error;
  console.log(`FAILED: ${error.stack}`);
}
await browser.close();
await fake.close();
process.exit(failure === null ? 0 : 1);
