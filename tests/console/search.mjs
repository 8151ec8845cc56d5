// How soon the console shows what a search finds, against a relay with a large table.
//
//   node search.mjs URL [SEARCHES]       (default 50; `tasuki-bench http --browser` starts a relay and this)
//
// Its last line is a flat JSON object: from the last key until the rows are drawn, and the parts of it: the wait for
// another key, the relay's answer, and the drawing. Times depend on the machine and are not judged.

import { Browser, check } from "./browser.mjs";

const url = process.argv[2];
const searches = Number(process.argv[3] ?? 50);
const browser = await Browser.open(url);
const { page } = browser;

/** Types `text` at once, and waits for the frame in which nothing but what it finds is drawn. */
function search(text) {
  return page.evaluate((text) => new Promise((resolve, reject) => {
    const input = document.querySelector(".search input");
    performance.clearResourceTimings();
    const begun = performance.now();
    input.value = text;
    input.dispatchEvent(new Event("input", { bubbles: true }));
    const look = (now) => {
      const ids = [...document.querySelectorAll(".space .row:not([hidden]) .id")].map((id) => id.textContent).filter((id) => id !== "");
      const found = document.querySelector(".found").textContent;
      if (ids.length > 0 && ids.every((id) => id.includes(text)) && found.includes("found")) {
        const request = performance.getEntriesByType("resource").find(({ name }) => new URL(name).searchParams.get("q") === text);
        resolve({ shown: now - begun, wait: request.startTime - begun, answer: request.duration, draw: now - request.responseEnd });
      } else if (now - begun > 30_000) reject(new Error(`${text}: ${found}; ${ids.slice(0, 5)}`));
      else requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  }), text);
}

async function run() {
  await page.goto(new URL("/#/terminals", url).href);
  await page.locator(".space .row .state").first().waitFor();
  // Four figures that stand in few names, each another than before.
  const times = [];
  for (let n = 0; n < searches; n += 1) times.push(await search(String((n * 7919 + 1234) % 10_000).padStart(4, "0")));
  check(browser.faults.length === 0, browser.faults.join("\n"));
  const figures = {};
  for (const [key, name] of [["shown", "search_shown"], ["wait", "wait_for_keys"], ["answer", "answer"], ["draw", "draw"]]) {
    const sorted = times.map((time) => time[key]).sort((one, other) => one - other);
    for (const share of [50, 99]) figures[`${name}_p${share}_ms`] = Number(sorted[Math.round((sorted.length - 1) * share / 100)].toFixed(1));
  }
  console.log(JSON.stringify(figures));
}

let failure = null;
try {
  await run();
} catch (error) {
  failure = error;
  console.log(`FAILED: ${error.stack}`);
}
await browser.close();
process.exit(failure === null ? 0 : 1);
