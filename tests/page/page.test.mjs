// The live page as people meet it: three replicas, a real Redis, and Chromium.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import { browser, Fleet, PATIENCE_MS } from "./fleet.mjs";

const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const SIZES = [{ width: 360, height: 800 }, { width: 1920, height: 1080 }];
const THEMES = ["light", "dark"];

let chromium;
before(async () => (chromium = await browser()));
after(() => chromium?.close());

/** A page of a replica, and what went wrong in it. */
async function open(replica, options = {}) {
  const context = await chromium.newContext({ viewport: SIZES[1], reducedMotion: "no-preference", ...options });
  context.setDefaultTimeout(PATIENCE_MS);
  const page = await context.newPage();
  page.wrong = [];
  page.on("pageerror", (error) => page.wrong.push(String(error)));
  page.on("console", (message) => /Content Security Policy|Trusted/i.test(message.text()) && page.wrong.push(message.text()));
  page.on("request", (request) => request.url().startsWith(replica.url) || page.wrong.push(`asks ${request.url()}`));
  await page.goto(replica.url);
  return page;
}

async function close(page) {
  await page.context().close();
  assert.deepEqual(page.wrong, []);
}

/** Waits until an element's text is as it should be; a text is a part of it. */
async function says(page, selector, wanted) {
  const [source, flags] = wanted instanceof RegExp ? [wanted.source, wanted.flags] : [wanted.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"), ""];
  const seen = ([selector, source, flags]) => new RegExp(source, flags).test(document.querySelector(selector)?.textContent ?? "");
  await page.waitForFunction(seen, [selector, source, flags], { timeout: PATIENCE_MS }).catch(async () => {
    assert.fail(`${selector} does not say ${wanted}, but: ${await page.locator(selector).textContent()}`);
  });
}

const live = (page) => says(page, "#connection", /^Live$/);
const newest = (page, text) => says(page, "#newest", text);
const replicas = (page, count) => page.waitForFunction((count) => document.querySelectorAll("#replica-cards > li").length === count, count);

async function send(page, { data, sleep, skip, times = 1 }) {
  if (data !== undefined) await page.getByLabel("data", { exact: true }).fill(data);
  await page.getByLabel(/^sleep/).fill(String(sleep ?? 0));
  await page.getByLabel(/^skip_release/).setChecked(Boolean(skip));
  await page.getByRole("radio", { name: String(times), exact: true }).check();
  await page.getByRole("button", { name: "Send" }).click();
}

describe("three replicas", () => {
  let [fleet, one, two, three, page] = [];
  before(async () => {
    fleet = await Fleet.start(["one", "two", "three"], { ROWLOCK_LOCK_TTL: "3s" });
    [one, two, three] = fleet.replicas;
  });
  after(() => fleet?.end());
  beforeEach(async () => {
    page = await open(one);
    await live(page);
    await replicas(page, 3);
  });
  afterEach(() => close(page));

  test("a row sent by the form appears, and the holder is seen to change", async () => {
    await send(page, { data: "by the form", sleep: 1.5 });
    await says(page, "#state-word", "Held");
    await says(page, "#state-who", /by one · token \d+/);
    await says(page, "#life-left", /^[0-3]\.\d s$/);
    await newest(page, "by the form");
    await says(page, "#summary", /Written by one under token \d+: waited .*, held 1\.5 s\./);
    await says(page, "#answer", '"released": true');
    await says(page, "#curl", `curl --data-urlencode 'data=by the form' -d sleep=1.5 ${one.url}/append`);
    const elsewhere = two.append({ data: "elsewhere", sleep: "1.5" });
    await says(page, "#state-who", /by two · token \d+/);
    await says(page, "#state-more", "it sleeps");
    await newest(page, "elsewhere");
    assert.equal((await elsewhere).status, 201);
    await says(page, "#state-word", "Free");
    await says(page, "#state-who", "last held by two");
    for (const lane of [0, 1]) assert.ok(await page.locator("#lanes g").nth([0, 2][lane]).locator("rect.bar.slept").count());
  });

  test("a hundred are sent at once, and all of them are written", async () => {
    const before = await (await fetch(`${one.url}/rows?last=10000`)).json();
    await send(page, { data: "one of many", times: 100 });
    await says(page, "#summary", /^100 of 100 written in .*, in \d+ holds?; the median wait/);
    const all = (await (await fetch(`${one.url}/rows?last=10000`)).json()).rows;
    assert.equal(all.filter(({ fields }) => fields.data === "one of many").length, 100);
    assert.equal(all.length, before.rows.length + 100);
    await says(page, "#rows-count", /\d{3} rows seen/);
    await says(page, "#curl", "for n in $(seq 100); do curl");
    await says(page, "#charts", /Rows a second\d/);
  });

  test("an abandoned lock is counted down to zero, and the next waiter takes over", async () => {
    await page.evaluate(() => {
      window.lefts = [];
      const note = () => document.querySelector("#state").dataset.kind === "abandoned" && window.lefts.push(parseFloat(document.querySelector("#life-left").textContent));
      new MutationObserver(note).observe(document.querySelector("#life-left"), { childList: true });
    });
    await send(page, { data: "left", skip: true });
    await says(page, "#state-word", "Abandoned");
    await says(page, "#summary", "lock left to expire");
    const waiting = two.append({ data: "next", sleep: "1" });
    await says(page, "#waiters", /two.*waits \d+\.\d s/);
    await says(page, "#state-who", /by two/);
    const { status, waited_ms } = await waiting;
    assert.equal(status, 201);
    assert.ok(waited_ms > 1000, `${waited_ms}`);
    const lefts = await page.evaluate(() => window.lefts);
    assert.ok(lefts[0] > 2 && Math.min(...lefts) <= 0.3, `${lefts}`);
    assert.ok(lefts.every((left, at) => at === 0 || left <= lefts[at - 1] + 0.2), `it only falls: ${lefts}`);
    assert.ok(await page.locator("rect.bar.left").count());
    await newest(page, "next");
  });

  test("Redis is lost, and found again", async () => {
    await fleet.redis.stop();
    await says(page, "#state-word", "Redis away");
    await says(page, "#replica-cards", "redis away");
    const waiting = three.append({ data: "waited for Redis" });
    await fleet.redis.start();
    await says(page, "#state-word", "Free");
    assert.equal((await waiting).status, 201);
    await newest(page, "waited for Redis");
    await says(page, "#replica-cards", /one.*ready/);
  });

  test("markup and formulas are shown as the text that they are", async () => {
    const texts = ["<script>window.ran = 1</script>", "<img src=x onerror='window.ran = 1'>", '=HYPERLINK("http://x","y")', "@SUM(1+1)"];
    for (const data of texts) {
      await send(page, { data });
      await newest(page, data);
    }
    const cells = await page.locator("#newest td.text").allTextContents();
    assert.deepEqual(cells.slice(0, 4), [...texts].reverse());
    assert.equal(await page.locator("#newest :is(script, img, a)").count(), 0);
    assert.equal(await page.evaluate(() => window.ran), undefined);
    await page.getByLabel("data", { exact: true }).fill("it's");
    await says(page, "#curl", "'data=it'\\''s'");
  });

  test("a replica that is started anew is found again, and no row is missed", async () => {
    await page.evaluate(() => (window.same = true));
    const resumed = page.waitForRequest((request) => request.url().includes("/events") && request.headers()["last-event-id"]);
    await one.append({ data: "before" });
    await newest(page, "before");
    await one.end();
    await says(page, "#connection", /Connection lost: trying again in \d+ s/);
    for (const n of [1, 2, 3]) await two.append({ data: `meanwhile ${n}` });
    await one.start();
    await live(page);
    await resumed;
    for (const n of [1, 2, 3]) await newest(page, `meanwhile ${n}`);
    await one.append({ data: "afterwards" });
    await newest(page, "afterwards");
    const rows = await page.locator("#newest td.text").allTextContents();
    assert.deepEqual(rows.slice(0, 5), ["afterwards", "meanwhile 3", "meanwhile 2", "meanwhile 1", "before"]);
    assert.equal(await page.evaluate(() => window.same), true, "without a reload");
  });

  test("an admin takes the lock by force, once that is confirmed", async () => {
    const sleeping = two.append({ data: "never", sleep: "25" });
    await says(page, "#state-who", /by two · token/);
    const dialog = page.getByRole("dialog", { name: "Take the lock by force?" });
    await page.getByRole("button", { name: "Take the lock by force…" }).click();
    await says(page, "#force-text", /^two has it, under token \d+/);
    await dialog.getByRole("button", { name: "Leave it" }).click();
    assert.equal(await dialog.isVisible(), false);
    await says(page, "#state-who", /by two · token/);
    await page.getByRole("button", { name: "Take the lock by force…" }).click();
    await dialog.getByRole("button", { name: "Take it" }).click();
    const { status, code } = await sleeping;
    assert.deepEqual([status, code], [503, "lock_lost"]);
    await says(page, "#state-word", /Taken by force|Lost/);
    await says(page, "#state-word", "Free");
    await says(page, "#charts", "lock_lost 1");
  });

  test("all of it is reached by keyboard", async () => {
    await one.append({ data: "to be found" });
    await newest(page, "to be found");
    const focus = () => page.evaluate(() => document.activeElement.id || document.activeElement.textContent.trim());
    const tabTo = async (wanted) => {
      for (let n = 0; n < 40; n += 1) {
        if ((await focus()) === wanted) return;
        await page.keyboard.press("Tab");
      }
      assert.fail(`${wanted} is not reached`);
    };
    await page.keyboard.press("Tab");
    assert.equal(await focus(), "To the content");
    await page.keyboard.press("Enter");
    assert.equal(await focus(), "main");
    await tabTo("force");
    await page.keyboard.press("Enter");
    assert.equal(await focus(), "force-no");
    await page.keyboard.press("Escape");
    assert.equal(await focus(), "force");
    await tabTo("lanes");
    await says(page, "#hold", /^one: token \d+, \d+ rows?, waited/);
    await page.keyboard.press("Home");
    await says(page, "#hold", /^one: /);
    await tabTo("data");
    await page.keyboard.press("Control+A");
    await page.keyboard.type("by keyboard");
    await page.keyboard.press("Enter");
    await newest(page, "by keyboard");
    await tabTo("skip-release");
    await page.keyboard.press("Tab");
    await page.keyboard.press("ArrowRight");
    await says(page, "#curl", "seq 2");
    await tabTo("send");
    await page.keyboard.press("Enter");
    await says(page, "#summary", /^2 of 2 written/);
  });

  test("it rests while it is hidden or paused, and goes on from there", async () => {
    const hide = (hidden) =>
      page.evaluate((hidden) => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
      }, hidden);
    for (const [rest, go] of [[() => hide(true), () => hide(false)], [() => page.getByRole("button", { name: "Pause" }).click(), () => page.getByRole("button", { name: "Go on" }).click()]]) {
      await rest();
      await says(page, "#connection", "Paused");
      let asked = 0;
      const count = () => (asked += 1);
      page.on("request", count);
      const { offset } = await two.append({ data: "while it rested" });
      await page.waitForTimeout(1500);
      assert.equal(asked, 0);
      page.off("request", count);
      await go();
      await live(page);
      await newest(page, "while it rested");
      assert.ok(offset > 0);
    }
  });

  test("no rule of accessibility is broken, and nothing overflows, at either width and in either theme", async () => {
    const axe = await readFile(AXE, "utf8");
    await one.append({ data: "x".repeat(400) });
    for (const viewport of SIZES) {
      for (const colorScheme of THEMES) {
        const seen = await open(one, { viewport, colorScheme });
        await live(seen);
        await replicas(seen, 3);
        await newest(seen, "xxx");
        await seen.waitForFunction(() => document.querySelector("#charts .grid text"));
        await seen.evaluate(axe);
        for (const part of ["page", "dialog"]) {
          if (part === "dialog") await seen.getByRole("button", { name: "Take the lock by force…" }).click();
          const { violations, passes } = await seen.evaluate(() => window.axe.run());
          const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ target, failureSummary }) => `${target} ${failureSummary}`).join("; ")}`);
          assert.deepEqual(found, [], `${viewport.width} ${colorScheme} ${part}`);
          assert.ok(passes.length > 10);
        }
        const width = await seen.evaluate(() => document.documentElement.scrollWidth);
        assert.ok(width <= viewport.width, `${width} of ${viewport.width}`);
        await close(seen);
      }
    }
  });
});

describe("with tokens", () => {
  let [fleet, one] = [];
  before(async () => {
    fleet = await Fleet.start(["one"], { ROWLOCK_API_TOKENS: "read:reader-1,append:appender-1,admin:admin-1" });
    [one] = fleet.replicas;
  });
  after(() => fleet?.end());

  const sections = (page) => page.locator("main > section").evaluateAll((all) => all.filter((one) => one.checkVisibility()).map(({ id }) => id));
  const enter = async (page, token) => {
    await page.getByLabel("API token").fill(token);
    await page.keyboard.press("Enter");
  };
  const SEEN = ["now", "timeline", "rates", "rows"];

  test("it asks for one, keeps it in the tab alone, and shows what its role reaches", async () => {
    const page = await open(one);
    await page.getByRole("heading", { name: "This replica asks for a token" }).waitFor();
    assert.deepEqual(await sections(page), ["token"]);
    await enter(page, "wrong");
    await says(page, "#token-wrong", "none of the replica's");

    await enter(page, "reader-1");
    await live(page);
    assert.deepEqual(await sections(page), [...SEEN, "replicas"]);
    assert.equal(await page.locator("#force").isVisible(), false);
    await page.getByRole("button", { name: "Forget the token" }).click();

    await enter(page, "appender-1");
    await page.locator("#narrow").waitFor();
    assert.deepEqual(await sections(page), ["try"]);
    await send(page, { data: "by an appender" });
    await says(page, "#summary", "Written by one");
    await says(page, "#curl", 'curl -H "Authorization: Bearer $TOKEN" --data-urlencode');
    await page.getByRole("button", { name: "Forget the token" }).click();

    await enter(page, "admin-1");
    await live(page);
    assert.deepEqual(await sections(page), [...SEEN, "try", "replicas"]);
    assert.equal(await page.locator("#force").isVisible(), true);
    const download = page.waitForEvent("download");
    await page.getByRole("link", { name: "The CSV" }).click();
    const csv = await readFile(await (await download).path(), "utf8");
    assert.match(csv, /^timestamp,replica,token,data\n.*by an appender\n$/);
    const kept = await page.evaluate(() => [{ ...localStorage }, document.cookie, Object.keys(sessionStorage)]);
    assert.deepEqual(kept, [{}, "", ["rowlock-token"]]);
    assert.doesNotMatch(await page.content(), /admin-1/);
    await close(page);
  });
});
