// Tests the live page in Chromium, with three replicas and a real Redis.

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

/** Opens the page of a replica. Collects its errors, and requests to other hosts, in `page.errors`. */
async function open(replica, options = {}) {
  const context = await chromium.newContext({ viewport: SIZES[1], reducedMotion: "no-preference", ...options });
  context.setDefaultTimeout(PATIENCE_MS);
  const page = await context.newPage();
  page.errors = [];
  page.on("pageerror", (error) => page.errors.push(String(error)));
  page.on("console", (message) => /Content Security Policy|Trusted/i.test(message.text()) && page.errors.push(message.text()));
  page.on("request", (request) => request.url().startsWith(replica.url) || page.errors.push(`request to ${request.url()}`));
  await page.goto(replica.url);
  return page;
}

async function close(page) {
  await page.context().close();
  assert.deepEqual(page.errors, []);
}

/** Waits until an element's text contains a string or matches a regular expression. */
async function waitForText(page, selector, expected) {
  const [source, flags] = expected instanceof RegExp ? [expected.source, expected.flags] : [expected.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"), ""];
  const matches = ([selector, source, flags]) => new RegExp(source, flags).test(document.querySelector(selector)?.textContent ?? "");
  await page.waitForFunction(matches, [selector, source, flags], { timeout: PATIENCE_MS }).catch(async () => {
    assert.fail(`${selector} does not contain ${expected}, but: ${await page.locator(selector).textContent()}`);
  });
}

const waitForLive = (page) => waitForText(page, "#connection", /^Live$/);
const waitForNewest = (page, text) => waitForText(page, "#newest", text);
const waitForReplicas = (page, count) => page.waitForFunction((count) => document.querySelectorAll("#replica-cards > li").length === count, count);

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
    await waitForLive(page);
    await waitForReplicas(page, 3);
  });
  afterEach(() => close(page));

  test("form_row_appears_and_holder_changes", async () => {
    await send(page, { data: "by the form", sleep: 1.5 });
    await waitForText(page, "#state-word", "Held");
    await waitForText(page, "#state-who", /by one · token \d+/);
    await waitForText(page, "#life-left", /^[0-3]\.\d s$/);
    await waitForNewest(page, "by the form");
    await waitForText(page, "#summary", /Written by one under token \d+: waited .*, held 1\.5 s\./);
    await waitForText(page, "#answer", '"released": true');
    await waitForText(page, "#curl", `curl --data-urlencode 'data=by the form' -d sleep=1.5 ${one.url}/append`);
    const elsewhere = two.append({ data: "elsewhere", sleep: "1.5" });
    await waitForText(page, "#state-who", /by two · token \d+/);
    await waitForText(page, "#state-more", "it sleeps");
    await waitForNewest(page, "elsewhere");
    assert.equal((await elsewhere).status, 201);
    await waitForText(page, "#state-word", "Free");
    await waitForText(page, "#state-who", "last held by two");
    for (const lane of [0, 1]) assert.ok(await page.locator("#lanes g").nth([0, 2][lane]).locator("rect.bar.slept").count());
  });

  test("hundred_rows_at_once_are_all_written", async () => {
    const before = await (await fetch(`${one.url}/rows?last=10000`)).json();
    await send(page, { data: "one of many", times: 100 });
    await waitForText(page, "#summary", /^100 of 100 written in .*, in \d+ holds?; the median wait/);
    const all = (await (await fetch(`${one.url}/rows?last=10000`)).json()).rows;
    assert.equal(all.filter(({ fields }) => fields.data === "one of many").length, 100);
    assert.equal(all.length, before.rows.length + 100);
    await waitForText(page, "#rows-count", /\d{3} rows seen/);
    await waitForText(page, "#curl", "for n in $(seq 100); do curl");
    await waitForText(page, "#charts", /Rows a second\d/);
  });

  test("abandoned_lock_counts_down_and_next_waiter_takes_over", async () => {
    await page.evaluate(() => {
      window.countdown = [];
      const record = () => document.querySelector("#state").dataset.kind === "abandoned" && window.countdown.push(parseFloat(document.querySelector("#life-left").textContent));
      new MutationObserver(record).observe(document.querySelector("#life-left"), { childList: true });
    });
    await send(page, { data: "left", skip: true });
    await waitForText(page, "#state-word", "Abandoned");
    await waitForText(page, "#summary", "lock left to expire");
    const waiting = two.append({ data: "next", sleep: "1" });
    await waitForText(page, "#waiters", /two.*waits \d+\.\d s/);
    await waitForText(page, "#state-who", /by two/);
    const { status, waited_ms } = await waiting;
    assert.equal(status, 201);
    assert.ok(waited_ms > 1000, `${waited_ms}`);
    const countdown = await page.evaluate(() => window.countdown);
    assert.ok(countdown[0] > 2 && Math.min(...countdown) <= 0.3, `${countdown}`);
    assert.ok(countdown.every((left, at) => at === 0 || left <= countdown[at - 1] + 0.2), `the countdown only falls: ${countdown}`);
    assert.ok(await page.locator("rect.bar.left").count());
    await waitForNewest(page, "next");
  });

  test("redis_outage_is_shown_and_ends", async () => {
    await fleet.redis.stop();
    await waitForText(page, "#state-word", "Redis away");
    await waitForText(page, "#replica-cards", "redis away");
    const waiting = three.append({ data: "waited for Redis" });
    await fleet.redis.start();
    await waitForText(page, "#state-word", "Free");
    assert.equal((await waiting).status, 201);
    await waitForNewest(page, "waited for Redis");
    await waitForText(page, "#replica-cards", /one.*ready/);
  });

  test("markup_and_formulas_are_shown_as_text", async () => {
    const texts = ["<script>window.ran = 1</script>", "<img src=x onerror='window.ran = 1'>", '=HYPERLINK("http://x","y")', "@SUM(1+1)"];
    for (const data of texts) {
      await send(page, { data });
      await waitForNewest(page, data);
    }
    const cells = await page.locator("#newest td.text").allTextContents();
    assert.deepEqual(cells.slice(0, 4), [...texts].reverse());
    assert.equal(await page.locator("#newest :is(script, img, a)").count(), 0);
    assert.equal(await page.evaluate(() => window.ran), undefined);
    await page.getByLabel("data", { exact: true }).fill("it's");
    await waitForText(page, "#curl", "'data=it'\\''s'");
  });

  test("restarted_replica_is_reconnected_without_missing_rows", async () => {
    await page.evaluate(() => (window.notReloaded = true));
    const resumed = page.waitForRequest((request) => request.url().includes("/events") && request.headers()["last-event-id"]);
    await one.append({ data: "before" });
    await waitForNewest(page, "before");
    await one.end();
    await waitForText(page, "#connection", /Connection lost: trying again in \d+ s/);
    for (const n of [1, 2, 3]) await two.append({ data: `meanwhile ${n}` });
    await one.start();
    await waitForLive(page);
    await resumed;
    for (const n of [1, 2, 3]) await waitForNewest(page, `meanwhile ${n}`);
    await one.append({ data: "afterwards" });
    await waitForNewest(page, "afterwards");
    const rows = await page.locator("#newest td.text").allTextContents();
    assert.deepEqual(rows.slice(0, 5), ["afterwards", "meanwhile 3", "meanwhile 2", "meanwhile 1", "before"]);
    assert.equal(await page.evaluate(() => window.notReloaded), true, "the page was reloaded");
  });

  test("forced_release_needs_confirmation", async () => {
    const sleeping = two.append({ data: "never", sleep: "25" });
    await waitForText(page, "#state-who", /by two · token/);
    const dialog = page.getByRole("dialog", { name: "Take the lock by force?" });
    await page.getByRole("button", { name: "Take the lock by force…" }).click();
    await waitForText(page, "#force-text", /^two has it, under token \d+/);
    await dialog.getByRole("button", { name: "Leave it" }).click();
    assert.equal(await dialog.isVisible(), false);
    await waitForText(page, "#state-who", /by two · token/);
    await page.getByRole("button", { name: "Take the lock by force…" }).click();
    await dialog.getByRole("button", { name: "Take it" }).click();
    const { status, code } = await sleeping;
    assert.deepEqual([status, code], [503, "lock_lost"]);
    await waitForText(page, "#state-word", /Taken by force|Lost/);
    await waitForText(page, "#state-word", "Free");
    await waitForText(page, "#charts", "lock_lost 1");
  });

  test("every_control_is_reached_by_keyboard", async () => {
    await one.append({ data: "to be found" });
    await waitForNewest(page, "to be found");
    const focus = () => page.evaluate(() => document.activeElement.id || document.activeElement.textContent.trim());
    const tabTo = async (wanted) => {
      for (let n = 0; n < 40; n += 1) {
        if ((await focus()) === wanted) return;
        await page.keyboard.press("Tab");
      }
      assert.fail(`Tab does not reach ${wanted}`);
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
    await waitForText(page, "#hold", /^one: token \d+, \d+ rows?, waited/);
    await page.keyboard.press("Home");
    await waitForText(page, "#hold", /^one: /);
    await tabTo("data");
    await page.keyboard.press("Control+A");
    await page.keyboard.type("by keyboard");
    await page.keyboard.press("Enter");
    await waitForNewest(page, "by keyboard");
    await tabTo("skip-release");
    await page.keyboard.press("Tab");
    await page.keyboard.press("ArrowRight");
    await waitForText(page, "#curl", "seq 2");
    await tabTo("send");
    await page.keyboard.press("Enter");
    await waitForText(page, "#summary", /^2 of 2 written/);
  });

  test("hidden_or_paused_page_sends_nothing_and_resumes", async () => {
    const hide = (hidden) =>
      page.evaluate((hidden) => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
      }, hidden);
    for (const [rest, resume] of [[() => hide(true), () => hide(false)], [() => page.getByRole("button", { name: "Pause" }).click(), () => page.getByRole("button", { name: "Go on" }).click()]]) {
      await rest();
      await waitForText(page, "#connection", "Paused");
      let requests = 0;
      const count = () => (requests += 1);
      page.on("request", count);
      const { offset } = await two.append({ data: "while the page rested" });
      await page.waitForTimeout(1500);
      assert.equal(requests, 0);
      page.off("request", count);
      await resume();
      await waitForLive(page);
      await waitForNewest(page, "while the page rested");
      assert.ok(offset > 0);
    }
  });

  test("page_is_accessible_and_fits_at_each_width_and_theme", async () => {
    const axe = await readFile(AXE, "utf8");
    await one.append({ data: "x".repeat(400) });
    for (const viewport of SIZES) {
      for (const colorScheme of THEMES) {
        const view = await open(one, { viewport, colorScheme });
        await waitForLive(view);
        await waitForReplicas(view, 3);
        await waitForNewest(view, "xxx");
        await view.waitForFunction(() => document.querySelector("#charts .grid text"));
        await view.evaluate(axe);
        for (const part of ["page", "dialog"]) {
          if (part === "dialog") await view.getByRole("button", { name: "Take the lock by force…" }).click();
          const { violations, passes } = await view.evaluate(() => window.axe.run());
          const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ target, failureSummary }) => `${target} ${failureSummary}`).join("; ")}`);
          assert.deepEqual(found, [], `${viewport.width} ${colorScheme} ${part}`);
          assert.ok(passes.length > 10);
        }
        const width = await view.evaluate(() => document.documentElement.scrollWidth);
        assert.ok(width <= viewport.width, `${width} of ${viewport.width}`);
        await close(view);
      }
    }
  });
});

describe("with tokens", () => {
  let [fleet, one] = [];
  before(async () => {
    fleet = await Fleet.start(["one"], { ROWLOCK_API_TOKENS: "read:token-of-a-reader,append:token-of-an-appender,admin:token-of-an-admin" });
    [one] = fleet.replicas;
  });
  after(() => fleet?.end());

  const sections = (page) => page.locator("main > section").evaluateAll((all) => all.filter((one) => one.checkVisibility()).map(({ id }) => id));
  const enter = async (page, token) => {
    await page.getByLabel("API token").fill(token);
    await page.keyboard.press("Enter");
  };
  const SEEN = ["now", "timeline", "rates", "rows"];

  test("token_is_kept_in_the_tab_and_decides_the_sections", async () => {
    const page = await open(one);
    await page.getByRole("heading", { name: "This replica asks for a token" }).waitFor();
    assert.deepEqual(await sections(page), ["token"]);
    await enter(page, "wrong");
    await waitForText(page, "#token-wrong", "none of the replica's");

    await enter(page, "token-of-a-reader");
    await waitForLive(page);
    assert.deepEqual(await sections(page), [...SEEN, "replicas"]);
    assert.equal(await page.locator("#force").isVisible(), false);
    await page.getByRole("button", { name: "Forget the token" }).click();

    await enter(page, "token-of-an-appender");
    await page.locator("#narrow").waitFor();
    assert.deepEqual(await sections(page), ["try"]);
    await send(page, { data: "by an appender" });
    await waitForText(page, "#summary", "Written by one");
    await waitForText(page, "#curl", 'curl -H "Authorization: Bearer $TOKEN" --data-urlencode');
    await page.getByRole("button", { name: "Forget the token" }).click();

    await enter(page, "token-of-an-admin");
    await waitForLive(page);
    assert.deepEqual(await sections(page), [...SEEN, "try", "replicas"]);
    assert.equal(await page.locator("#force").isVisible(), true);
    const download = page.waitForEvent("download");
    await page.getByRole("link", { name: "The CSV" }).click();
    const csv = await readFile(await (await download).path(), "utf8");
    assert.match(csv, /^timestamp,replica,token,data\n.*by an appender\n$/);
    const kept = await page.evaluate(() => [{ ...localStorage }, document.cookie, Object.keys(sessionStorage)]);
    assert.deepEqual(kept, [{}, "", ["rowlock-token"]]);
    assert.doesNotMatch(await page.content(), /token-of-an-admin/);
    await close(page);
  });
});
