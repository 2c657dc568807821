// What the page costs while 5,000 rows a second arrive for 10 minutes. By hand: `node endurance.mjs [MINUTES]`. Writes the table of docs/live-page.md.

import { readFile, writeFile } from "node:fs/promises";
import { Agent, request } from "node:http";
import { cpus, loadavg } from "node:os";
import { join } from "node:path";
import { browser, Fleet, ROOT } from "./fleet.mjs";

const MINUTES = Number(process.argv[2] ?? 10);
const ROWS_A_SECOND = 5000;
/** Rows of one request: several requests share a hold, and the lock passes on all the time. */
const ROWS = 10;
const EVERY_MS = 20;

const body = Array.from({ length: ROWS }, (_, at) => `{"data":"a row of about forty bytes, number ${at}"}\n`).join("");
const agent = new Agent({ keepAlive: true, maxSockets: 64 });
let [sent, refused] = [0, 0];

function append({ url }) {
  const options = { method: "POST", agent, headers: { "Content-Type": "application/x-ndjson", "Content-Length": body.length } };
  const sending = request(`${url}/append/batch`, options, (response) => {
    response.resume();
    if (response.statusCode === 201) sent += ROWS;
    else refused += 1;
  });
  sending.on("error", () => (refused += 1));
  sending.end(body);
}

const fleet = await Fleet.start(["one", "two", "three"]);
const chromium = await browser();
const context = await chromium.newContext({ viewport: { width: 1920, height: 1080 } });
const page = await context.newPage();
const [processes, inside] = [await chromium.newBrowserCDPSession(), await context.newCDPSession(page)];
await inside.send("Performance.enable");
await page.goto(fleet.replicas[0].url);

/** All renderers' seconds: one of them is the page's, the others do nothing. */
async function cpuSeconds() {
  const { processInfo } = await processes.send("SystemInfo.getProcessInfo");
  return processInfo.filter(({ type }) => type === "renderer").reduce((sum, { cpuTime }) => sum + cpuTime, 0);
}

async function sample(began, cpuBefore) {
  const cpu = await cpuSeconds();
  await inside.send("HeapProfiler.collectGarbage");
  const { metrics } = await inside.send("Performance.getMetrics");
  const { JSHeapUsedSize, Nodes } = Object.fromEntries(metrics.map(({ name, value }) => [name, value]));
  const rows = await page.evaluate(() => document.querySelector("#rows-count").textContent);
  return { minute: Math.round((Date.now() - began) / 60_000), cpu, share: cpu - cpuBefore, heap: JSHeapUsedSize, nodes: Nodes, rows, sent };
}

let due = Date.now();
const load = setInterval(() => {
  for (; due < Date.now(); due += (1000 * ROWS) / ROWS_A_SECOND) append(fleet.replicas[Math.floor(Math.random() * 3)]);
}, EVERY_MS);

// The charts and the timeline are filled first, so that what grows afterwards would grow for ever.
await new Promise((resolve) => setTimeout(resolve, 5000));
const began = Date.now();
const samples = [await sample(began, await cpuSeconds())];
for (let minute = 1; minute <= MINUTES; minute += 1) {
  await new Promise((resolve) => setTimeout(resolve, began + minute * 60_000 - Date.now()));
  const before = samples.at(-1);
  samples.push(await sample(began, before.cpu));
  const { share, heap, nodes, rows } = samples.at(-1);
  console.log(`minute ${minute}: ${(share / 0.6).toFixed(1)} % of a core, ${(heap / 2 ** 20).toFixed(2)} MiB, ${nodes} nodes, ${rows}`);
}
clearInterval(load);
const version = chromium.version();
await chromium.close();
await fleet.end();
agent.destroy();

const [first, last] = [samples[0], samples.at(-1)];
const lines = samples.slice(1).map((now, at) =>
  `| ${at + 1} | ${(now.share / 0.6).toFixed(1)} % | ${(now.heap / 2 ** 20).toFixed(2)} MiB | ${now.nodes} | ${Math.round((now.sent - samples[at].sent) / 60)} |`);
const document = join(ROOT, "docs/live-page.md");
const [BEGIN, END] = ["<!-- cost: written by endurance.mjs -->\n", "\n<!-- end of cost -->"];
const old = await readFile(document, "utf8");
const [from, to] = [old.indexOf(BEGIN) + BEGIN.length, old.indexOf(END)];
if (from < BEGIN.length || to < from) throw new Error("docs/live-page.md has no place for the table");
await writeFile(document, `${old.slice(0, from)}Three replicas on one Redis, ${ROWS_A_SECOND} rows a second in requests of ${ROWS}, the page of one of them in Chromium ${version} (headless, no
GPU, 1920 × 1080) on ${cpus().length} cores of ${cpus()[0].model.trim()}, which the replicas, Redis and the load shared (load average at the end:
${loadavg()[1].toFixed(1)}). Measured by the browser: the renderer's CPU time, and the JavaScript heap and DOM nodes after a garbage collection.
Written by \`node tests/page/endurance.mjs ${MINUTES}\`.

| minute | of one core | heap | nodes | rows a second |
|---|---|---|---|---|
${lines.join("\n")}

Over all ${MINUTES} minutes ${((last.cpu - first.cpu) / (MINUTES * 0.6)).toFixed(1)} % of one core; ${last.sent - first.sent} rows, ${refused} requests refused.${old.slice(to)}`);
