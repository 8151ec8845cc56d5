// A browser with an empty profile that notes everything a page does that it should not.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
/** Generous: a debug build shares two cores with other tests. */
export const SOON = 60_000;

export class Browser {
  /** What was wrong so far. */
  faults = [];
  /** Errors of the page's console that belong to what the test does at the moment. */
  expected = null;
  requests = 0;
  /** Whether the relay wants the token for reads. */
  readsNeedToken = false;

  static async open(url, { width = 1280, height = 800, colorScheme = "dark" } = {}) {
    const browser = new Browser();
    browser.origin = new URL(url).origin;
    browser.profile = await mkdtemp(join(tmpdir(), "tasuki-console-"));
    browser.context = await chromium.launchPersistentContext(browser.profile, {
      executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      headless: true, args: FLAGS, viewport: { width, height }, colorScheme, timeout: SOON,
    });
    browser.page = browser.context.pages()[0];
    browser.page.setDefaultTimeout(SOON);
    await browser.#watch();
    return browser;
  }

  async close() {
    await this.context.close();
    await rm(this.profile, { recursive: true, force: true });
  }

  async #watch() {
    const { page } = this;
    this.context.on("request", (request) => {
      this.requests += 1;
      const url = new URL(request.url());
      if (url.protocol !== "data:" && url.origin !== this.origin) this.faults.push(`a request left the origin: ${url}`);
      if (/token|bearer/i.test(url.search)) this.faults.push(`a token in an address: ${url}`);
      const token = request.headers().authorization;
      if (token && request.method() === "GET" && !this.readsNeedToken) this.faults.push(`a read carried the token: ${url}`);
    });
    page.on("pageerror", (error) => this.faults.push(`exception: ${error.stack}`));
    page.on("console", (said) => {
      if (said.type() === "error" && !this.expected?.test(said.text())) this.faults.push(`console: ${said.text()}`);
    });
    await page.exposeFunction("noteViolation", (text) => this.faults.push(`policy: ${text}`));
    await page.addInitScript(() => document.addEventListener("securitypolicyviolation", (event) =>
      window.noteViolation(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`)));
  }

  /** Runs `action` while console errors like this are no faults. */
  async expecting(pattern, action) {
    this.expected = pattern;
    try {
      await action();
    } finally {
      this.expected = null;
    }
  }

  /** Nothing can be scrolled sideways. */
  async fits(what) {
    let wide = [];
    // The page hears of another size with a later frame.
    await eventually(() => `${what} can be scrolled sideways: ${wide}`, async () => {
      wide = await this.page.evaluate(() => [document.scrollingElement, ...document.querySelectorAll("main, .view, .scroller")]
        .filter((element) => element.scrollWidth > element.clientWidth + 1).map((element) => `${element.className || element.tagName} ${element.scrollWidth} > ${element.clientWidth}`));
      return wide.length === 0;
    }, 10_000);
  }
}

export function check(holds, text) {
  if (!holds) throw new Error(text);
}

/** Looks until `probe` gives something true; `what` is a text, or makes it when the time is over. */
export async function eventually(what, probe, limit = SOON) {
  const end = Date.now() + limit;
  for (;;) {
    const found = await probe();
    if (found) return found;
    check(Date.now() < end, `${typeof what === "function" ? what() : what}: not within ${limit} ms`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
