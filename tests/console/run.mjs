// What an operator does with the console, in a browser, against a running mesh.
//
//   node run.mjs URL TOKEN_FILE     the mesh is somebody else's, who is asked over stdout ("ask: WORD") to do what
//                                   a browser cannot, and answers with a line on stdin (tests/tests/console.rs)
//   node run.mjs --fake             the mesh is made up
//
// The mesh: relays r1 (this one), r2, r3; terminals cam-1 (type camera, at r1, an attribute `note` that is markup),
// desk-1 (at r1) and late-1 (account only).

import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { Browser, SOON, check, eventually } from "./browser.mjs";
import { FakeMesh } from "./fakemesh.mjs";

const MARKUP = "<img src=x onerror=\"document.title='broken in'\">";
const fake = process.argv[2] === "--fake" ? await FakeMesh.start(MARKUP) : null;
const url = fake?.url ?? process.argv[2];
const token = fake?.token ?? (await readFile(process.argv[3], "utf8")).trim();
const lines = fake ? null : createInterface({ input: process.stdin })[Symbol.asyncIterator]();

async function ask(word) {
  if (fake) return fake.do(word);
  console.log(`ask: ${word}`);
  const { value } = await lines.next();
  check(value === "done", `${word}: ${value}`);
}

const browser = await Browser.open(url);
const { page } = browser;
const main = page.locator("main");
const row = (name) => page.locator(".space .row:not([hidden])", { hasText: name });
const live = () => page.locator(".live.is-live").waitFor();
const go = async (hash) => {
  await page.evaluate((to) => { location.hash = to; }, hash);
};

const parts = {
  async "the map shows the mesh"() {
    const response = await page.goto(url);
    const policy = response.headers()["content-security-policy"] ?? "";
    check(policy.startsWith("default-src 'none'") && !policy.includes("unsafe"), `policy: ${policy}`);
    await live();
    for (const name of ["r1", "r2", "r3"]) await page.locator(".node", { hasText: name }).waitFor();
    await page.locator(".node.here", { hasText: "r1" }).waitFor();
    await page.locator(".who", { hasText: "Read-only" }).waitFor();
    await eventually("the links", async () => await page.locator("line.link").count() >= 2);
    await eventually("the summary", async () => (await page.locator(".figure", { hasText: "Terminals" }).textContent()).includes("3"));
  },

  async "a search finds a terminal, by keyboard alone"() {
    await page.keyboard.press("g");
    await page.keyboard.press("t");
    await row("cam-1").waitFor();
    await row("desk-1").waitFor();
    await page.keyboard.press("/");
    await page.keyboard.type("CAM");
    await row("desk-1").waitFor({ state: "hidden" });
    await row("cam-1").waitFor();
    await page.keyboard.press("Escape");
    await page.keyboard.press("j");
    await page.locator(".row[aria-selected=true]", { hasText: "cam-1" }).waitFor();
    await page.keyboard.press("Enter");
    await page.locator("h1", { hasText: "cam-1" }).waitFor();
  },

  async "what the mesh says stays text"() {
    await main.getByText(MARKUP).waitFor();
    check(await page.locator("img").count() === 0, "markup became an element");
    check(!(await page.title()).includes("broken"), "markup ran");
    await main.getByText("camera", { exact: true }).waitFor();
    await page.keyboard.press("Escape");
    await page.locator(".search input").waitFor();
    check(await page.evaluate(() => location.hash) === "#/terminals", "Esc goes back");
  },

  async "a terminal appears and vanishes live"() {
    await go("#/terminals?state=logged-in");
    await row("cam-1").waitFor();
    check(await row("late-1").count() === 0, "it is not there yet");
    await ask("start-late");
    await row("late-1").waitFor();
    await ask("stop-late");
    await row("late-1").waitFor({ state: "hidden" });
    await go("#/terminals?state=logged-out&q=late");
    await row("late-1").waitFor();
  },

  async "log in"() {
    await page.keyboard.press("l");
    const field = page.locator("dialog input");
    await field.fill("not-the-token-of-this-relay");
    await browser.expecting(/401/, async () => {
      await page.keyboard.press("Enter");
      await page.locator("dialog [role=alert]", { hasText: "does not take that token" }).waitFor();
    });
    await field.fill(token);
    await page.keyboard.press("Enter");
    await page.locator(".who.operator").waitFor();
    const kept = await page.evaluate(() => ({ local: JSON.stringify(localStorage), address: location.href, cookie: document.cookie }));
    check(!JSON.stringify(kept).includes(token), "the token is kept for the tab only");
  },

  async "a session runs and is ended"() {
    await ask("open-session");
    await page.keyboard.press("g");
    await page.keyboard.press("s");
    await row("cam-1").waitFor();
    check((await row("cam-1").textContent()).includes("echo"), "its service");
    await eventually("its rate", async () => /B\/s/.test(await row("cam-1").locator(".rates").textContent()));
    await page.keyboard.press("j");
    await page.keyboard.press("Enter");
    await page.locator("h1", { hasText: "cam-1" }).waitFor();
    await page.getByRole("button", { name: "End session" }).click();
    await page.locator("dialog").getByRole("button", { name: "End it" }).click();
    await page.locator(".message", { hasText: "was ended" }).waitFor();
    await main.getByText("Ended", { exact: true }).first().waitFor();
    await page.keyboard.press("Escape");
    await row("cam-1").waitFor({ state: "hidden" });
    await ask("close-session");
  },

  async "a terminal is kicked, and a revocation wants its name"() {
    await go("#/terminals/desk-1");
    await page.getByRole("button", { name: "Kick" }).click();
    await page.locator("dialog").getByRole("button", { name: "Kick" }).click();
    await page.locator(".message", { hasText: "desk-1 was kicked" }).waitFor();
    await page.getByRole("button", { name: "Revoke" }).click();
    const revoke = page.locator("dialog").getByRole("button", { name: "Revoke" });
    check(await revoke.isDisabled(), "not without the name");
    await page.locator("dialog input").fill("desk-");
    check(await revoke.isDisabled(), "not with half of the name");
    await page.locator("dialog input").fill("desk-1");
    check(await revoke.isEnabled(), "with the name");
    await page.keyboard.press("Escape");
    await page.locator("dialog").waitFor({ state: "detached" });
  },

  async "a refusal says what to do"() {
    await go("#/terminals/late-1");
    await page.getByRole("button", { name: "Kick" }).click();
    await browser.expecting(/409/, async () => {
      await page.locator("dialog").getByRole("button", { name: "Kick" }).click();
      await page.locator(".message.bad", { hasText: "late-1" }).waitFor();
    });
    await page.locator(".message.bad button").click();
    await browser.expecting(/404/, async () => {
      await go("#/terminals/nobody");
      await page.locator(".failure", { hasText: "nobody" }).waitFor();
      // The history is asked for beside, and may be refused later.
      await page.locator(".card", { hasText: "History" }).locator("p.quiet", { hasText: /\S/ }).waitFor();
    });
  },

  async "explain answers"() {
    await page.keyboard.press("g");
    await page.keyboard.press("e");
    await page.locator("input[name=from]").fill("cam-1");
    await page.locator("input[name=to]").fill("late-1");
    await page.keyboard.press("Enter");
    await page.locator(".verdict.no", { hasText: "late-1" }).waitFor();
    await page.locator("input[name=to]").fill("cam-1");
    check((await page.evaluate(() => location.hash)).includes("to=late-1"), "the question is in the address");
  },

  async "a relay's page, and drain"() {
    await page.keyboard.press("Escape");
    await page.keyboard.press("g");
    await page.keyboard.press("r");
    await page.locator("h1", { hasText: "r1" }).waitFor();
    for (const title of ["State", "Load", "Table and gossip", "Drops by reason", "Links of this relay", "History"]) {
      await page.getByRole("heading", { name: title, exact: true }).waitFor();
    }
    await page.getByRole("button", { name: "Drain" }).click();
    await page.locator("dialog").getByRole("button", { name: "Drain" }).click();
    await page.getByRole("button", { name: "Undrain" }).click();
    await page.getByRole("button", { name: "Drain", exact: true }).waitFor();
    await page.locator(".page-head .state.reachable").waitFor();
    await go("#/relays/r2");
    await page.getByRole("button", { name: "Revoke" }).waitFor();
  },

  async "keys, help, colours"() {
    await page.keyboard.press("?");
    await page.locator("dialog", { hasText: "search terminals" }).waitFor();
    await page.keyboard.press("Escape");
    await page.locator("dialog").waitFor({ state: "detached" });
    const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const dark = await background();
    await page.emulateMedia({ colorScheme: "light" });
    const light = await background();
    check(dark !== light, "the system's colours");
    await page.keyboard.press("t");
    check(await background() === dark, "dark by choice");
    await page.keyboard.press("t");
    check(await background() === light, "light by choice");
    await page.keyboard.press("t");
    await page.emulateMedia({ colorScheme: "dark" });
    check(await background() === dark, "as the system has it");
    await page.keyboard.press("g");
    await page.keyboard.press("m");
    await page.locator(".node a").first().focus();
    await page.keyboard.press("Enter");
    await page.locator(".page-head h1").waitFor();
  },

  async "a phone"() {
    await page.setViewportSize({ width: 360, height: 740 });
    for (const hash of ["#/map", "#/terminals", "#/terminals/cam-1", "#/sessions?state=all", "#/relays/r1", "#/relays/r2", "#/explain"]) {
      await go(hash);
      await page.locator(".view").waitFor();
      await page.waitForFunction(() => !document.querySelector("main").innerText.includes("Reading…"));
      await browser.fits(hash);
    }
    await page.setViewportSize({ width: 1280, height: 800 });
  },

  async "the relay is lost and comes back"() {
    await go("#/terminals?q=late");
    await row("late-1").waitFor();
    await browser.expecting(/ERR_|Failed to load/, async () => {
      await ask("kill-relay");
      await page.locator(".banner", { hasText: "lost, trying again" }).waitFor();
      check(await row("late-1").count() === 1, "what was known is still shown");
      await ask("start-late");
      await ask("start-relay");
      await page.locator(".banner").waitFor({ state: "hidden", timeout: 2 * SOON });
      await live();
    });
    await page.locator(".space .row:not([hidden]) .state.logged-in").first().waitFor({ timeout: 2 * SOON });
    await ask("stop-late");
  },
};

let failed = 0;
for (const [what, part] of Object.entries(parts)) {
  const start = Date.now();
  try {
    await part();
    check(browser.faults.length === 0, browser.faults.join("\n"));
    console.log(`ok: ${what} (${Date.now() - start} ms)`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED: ${what}: ${error.stack}`);
    console.log(`the page: ${page.url()}\n${(await page.locator("body").innerText().catch(String)).slice(0, 1500)}`);
    if (process.env.SCREENSHOT) await page.screenshot({ path: process.env.SCREENSHOT });
    break;
  }
}
console.log(`${browser.requests} requests, all to ${browser.origin}`);
await browser.close();
await fake?.stop();
process.exit(failed === 0 ? 0 : 1);
