// Screenshots of the page under load, at both widths and in both themes. `ROWLOCK_WRITE=1` saves them in docs/.

import assert from "node:assert/strict";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { browser, Fleet, ROOT } from "./fleet.mjs";

const WRITE = Boolean(process.env.ROWLOCK_WRITE);
const SECONDS = WRITE ? 62 : 6;
const SIZES = [{ width: 1920, height: 1490 }, { width: 360, height: 1290 }];
const TEXTS = ["Oslo", "Bergen, rainy", "Tromsø", "Lima, Perú", "Kyōto", 'say "hi", twice', "=SUM(A1:A9)", "<b>bold</b>"];

/** Appends single rows until `ended`, at random intervals of `gapMs` on average. */
async function load(replica, gapMs, ended) {
  for (let n = 0; Date.now() < ended; n += 1) {
    await replica.append({ data: TEXTS[Math.floor(Math.random() * TEXTS.length)] });
    await pause(gapMs * 2 * Math.random());
  }
}

const appendMany = (replica, rows) => Promise.all(Array.from({ length: rows }, (_, at) => replica.append({ data: `one of ${rows}: ${at}` })));

test("screenshots_show_the_page_at_each_width_and_theme", async () => {
  const fleet = await Fleet.start(["north", "south", "west"], { ROWLOCK_LOCK_TTL: WRITE ? "6s" : "1s" });
  const chromium = await browser();
  try {
    const pages = [];
    for (const viewport of SIZES) {
      for (const colorScheme of ["light", "dark"]) {
        const page = await (await chromium.newContext({ viewport, colorScheme })).newPage();
        await page.goto(fleet.replicas[0].url);
        pages.push({ page, name: `page-${viewport.width}-${colorScheme}` });
      }
    }
    const [north, south, west] = fleet.replicas;
    // Until a row waits for the last one that sleeps.
    const ended = Date.now() + SECONDS * 1000 + 2000;
    const loads = [load(north, 40, ended), load(south, 110, ended), load(west, 240, ended)];
    const at = (share, what) => pause(share * SECONDS * 1000).then(what);
    const scenes = [
      at(0.15, () => appendMany(south, 120)),
      at(0.25, () => west.append({ data: "slow", sleep: String(SECONDS / 15) })),
      at(0.45, () => Promise.all(Array.from({ length: 7 }, () => north.append({ data: "wrong", sleep: "for ever" })))),
      at(0.5, () => appendMany(north, 400)),
      at(0.62, () => south.append({ data: "crash", skip_release: "true" })),
      at(0.85, () => appendMany(west, 60)),
      at(0.9, () => Promise.all(pages.map(({ page }) => page.getByRole("button", { name: "Send" }).click()))),
      at(0.94, () => south.append({ data: "asleep", sleep: "7" })),
    ];
    await pause(SECONDS * 1000);
    await pages[0].page.waitForFunction(() => document.querySelector("#state").dataset.kind === "held" && document.querySelectorAll("#waiters li").length === 2);
    if (WRITE) await mkdir(join(ROOT, "docs"), { recursive: true });
    for (const { page, name } of pages) {
      const screenshot = await page.screenshot();
      assert.ok(screenshot.length > 20_000, name);
      if (WRITE) await writeFile(join(ROOT, "docs", `${name}.png`), screenshot);
    }
    await Promise.all([...loads, ...scenes]);
  } finally {
    await chromium.close();
    await fleet.end();
  }
});
