// A relay on an address that is not loopback shows nothing without the token: the page asks for it, and then works.

import { Fake, TOKEN } from "./fake.mjs";
import { Browser, check } from "./browser.mjs";

const fake = new Fake({ relays: 3, terminals: 30, rate: 20, sessions: 5, guarded: true });
const browser = await Browser.open(await fake.listen());
const { page } = browser;
let failure = null;
try {
  await browser.expecting(/401/, async () => {
    await page.goto(fake.url);
    await page.locator(".banner").getByRole("button", { name: "Log in" }).click();
    browser.readsNeedToken = true;
    await page.locator("dialog input").fill(TOKEN);
    await page.keyboard.press("Enter");
    await page.locator(".live.is-live").waitFor();
    await page.locator(".node").nth(2).waitFor();
  });
  await page.keyboard.press("g");
  await page.keyboard.press("t");
  await page.locator(".space .row .state").first().waitFor();
  // In this tab the token is still there, in another one it is not.
  await browser.expecting(/401/, async () => {
    await page.reload();
    await page.locator(".space .row .state").first().waitFor();
  });
  const other = await browser.context.newPage();
  await other.goto(fake.url);
  await other.locator(".banner", { hasText: "operators only" }).waitFor();
  check(browser.faults.length === 0, browser.faults.join("\n"));
} catch (error) {
  failure = error;
  console.log(`FAILED: ${error.stack}\n${(await page.locator("body").innerText().catch(String)).slice(0, 800)}`);
}
await browser.close();
await fake.close();
process.exit(failure === null ? 0 : 1);
