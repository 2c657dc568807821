// Small charts of the last minutes, each with a scale.

import { byId, count, draw, make, mark, time, write } from "./dom.js";
import { MINUTE_MS, RATES_MS } from "./model.js";

const HEIGHT = 112;
const TOP = 8;
const BOTTOM = 18;
const LEFT = 46;
/** Points further apart are not joined, since the values between are unknown. */
const GAP_MS = 3500;
const LABELS_EVERY = 5;

export class Rates {
  every = 2;
  #drawn = null;
  #draws = 0;

  constructor(model) {
    this.model = model;
    const of = (name, part) => ({ key: part, name: part, dashed: part === "p99", value: (point) => point[name][part] ?? null });
    this.charts = [
      new Chart({ title: "Rows a second", write: count, of: () => this.#byReplica(), total: true }),
      new Chart({ title: "Rows per sync", write: count, of: () => [{ key: "all", name: "", value: (point) => point.perSync }] }),
      new Chart({ title: "Wait for the lock", write: time, log: true, of: () => ["p50", "p99"].map((part) => of("wait", part)) }),
      new Chart({ title: "One sync", write: time, log: true, of: () => ["p50", "p99"].map((part) => of("sync", part)) }),
      new Chart({
        title: "Refusals a second", write: count, stems: true,
        of: () => [{ key: "all", name: "", value: (point) => point.refused }], note: () => this.#refusals(),
      }),
    ];
    byId("charts").append(...this.charts.map(({ figure }) => figure));
  }

  #byReplica() {
    return [...this.model.replicas.values()].map(({ name, slot }) => ({ key: `${name} ${slot}`, name, slot, value: (point) => point.rows.get(name) ?? null }));
  }

  #refusals() {
    const all = [...this.model.refusals].sort(([, a], [, b]) => b - a);
    return all.length ? all.map(([code, number]) => `${code} ${count(number)}`).join(" · ") : "none since this page was opened";
  }

  /** Draws once a second, when new points arrive. */
  draw() {
    const newest = this.model.points.at(-1);
    if (!newest || newest === this.#drawn) return;
    this.#drawn = newest;
    const label = this.#draws++ % LABELS_EVERY === 0;
    for (const chart of this.charts) chart.draw(this.model.points, newest.at, label);
  }
}

class Chart {
  #width = 0;
  #lines = new Map();

  constructor(options) {
    Object.assign(this, options);
    this.value = make("span", { class: "value" });
    this.legend = make("p", { class: "series" });
    this.grid = draw("g", { class: "grid" });
    this.area = draw("g");
    this.plot = draw("svg", { class: "plot", role: "img", "aria-label": this.title, height: HEIGHT }, this.grid, this.area);
    this.figure = make("figure", {}, make("figcaption", {}, make("h3", {}, this.title), this.value), this.plot, this.legend);
    new ResizeObserver(([{ contentRect }]) => (this.#width = contentRect.width)).observe(this.plot);
  }

  draw(points, now, label) {
    const series = this.of();
    const values = points.map((point) => ({ at: point.at, all: series.map(({ value }) => value(point)) }));
    const sum = ({ all }) => (all.some((value) => value !== null) ? all.reduce((a, b) => a + (b ?? 0), 0) : null);
    const highest = Math.max(...values.map((point) => (this.total ? sum(point) : Math.max(...point.all.map((value) => value ?? 0)))), 0);
    const scale = this.log ? logarithmic(values, highest) : linear(highest);
    const newest = values.at(-1);
    this.#say(series, newest, sum(newest), highest, label);
    if (this.#width <= LEFT) return;
    // The axis grows with the data, so that a page that was just opened shows more than a narrow edge.
    const known = Math.ceil((now - points[0].at) / (MINUTE_MS / 2)) / 2;
    const minutes = Math.min(Math.max(known, 1), RATES_MS / MINUTE_MS);
    const x = (at) => LEFT + (1 - (now - at) / (minutes * MINUTE_MS)) * (this.#width - LEFT);
    const y = (value) => TOP + (1 - scale.share(value)) * (HEIGHT - TOP - BOTTOM);
    this.#ticks(scale, x, y, now, minutes);
    const lines = series.map((one, at) => ({ ...one, points: values.map(({ at: when, all }) => [when, all[at]]) }));
    if (this.total && series.length > 1) lines.unshift({ key: " total", total: true, points: values.map((point) => [point.at, sum(point)]) });
    this.#paths(lines, x, y);
  }

  #ticks({ ticks }, x, y, now, minutes) {
    const texts = ticks.map((tick) => this.write(tick));
    const key = `${this.#width} ${minutes} ${texts.join()}`;
    if (this.drawn === key) return;
    this.drawn = key;
    this.grid.replaceChildren(
      ...ticks.flatMap((tick, at) => [
        draw("line", { x1: LEFT, x2: this.#width, y1: y(tick), y2: y(tick) }),
        draw("text", { x: LEFT - 6, y: y(tick) + 3.5, "text-anchor": "end" }, texts[at]),
      ]),
      draw("text", { x: LEFT, y: HEIGHT - 3 }, `${minutes} min ago`),
      draw("text", { x: this.#width, y: HEIGHT - 3, "text-anchor": "end" }, "now"),
      ...Array.from({ length: Math.floor(minutes) + 1 }, (_, at) => x(now - at * MINUTE_MS)).map((at) =>
        draw("line", { class: "minute", x1: at, x2: at, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4 })),
    );
  }

  #paths(lines, x, y) {
    for (const [key, path] of this.#lines) {
      if (!lines.some((line) => line.key === key)) {
        path.remove();
        this.#lines.delete(key);
      }
    }
    for (const { key, slot, dashed, total, points } of lines) {
      let path = this.#lines.get(key);
      if (!path) {
        const kind = this.stems ? "stems" : total ? "total" : `line${slot === undefined ? "" : ` r${slot} dash-${slot}`}${dashed ? " dashed" : ""}`;
        path = draw("path", { class: kind });
        this.#lines.set(key, path);
        this.area.append(path);
      }
      path.setAttribute("d", this.stems ? stems(points, x, y) : joined(points, x, y));
    }
  }

  #say(series, newest, sum, highest, label) {
    const shown = (value) => (value === null ? "–" : this.write(value));
    write(this.value, shown(this.total || series.length === 1 ? sum : newest.all.at(-1)));
    const note = this.note?.() ?? "";
    const key = series.map(({ key }) => key).join("\n");
    if (this.series !== key) {
      this.series = key;
      const one = ({ name, slot, dashed }) => make("span", { class: slot === undefined ? "" : `who r${slot}` },
        slot === undefined ? sample(dashed) : mark(slot), `${name} `, make("b"));
      this.legend.replaceChildren(...(series.length > 1 || this.total ? series.map(one) : [make("span")]));
    }
    if (series.length > 1 || this.total) series.forEach((_, at) => write(this.legend.children[at].lastChild, shown(newest.all[at])));
    else write(this.legend.firstChild, note || `at most ${shown(highest || null)}`);
    if (label) {
      const all = series.map(({ name }, at) => `${name} ${shown(newest.all[at])}`.trim()).join(", ");
      this.plot.setAttribute("aria-label", `${this.title}. Now ${all}. At most ${shown(highest)}. ${note}`.trim());
    }
  }
}

function sample(dashed) {
  return draw("svg", { class: "sample", "aria-hidden": "true" }, draw("line", { x1: 0, x2: 18, y1: 5, y2: 5, class: dashed ? "line dashed" : "line" }));
}

function joined(points, x, y) {
  let [path, before] = ["", null];
  for (const [at, value] of points) {
    if (value === null) continue;
    path += `${before === null || at - before > GAP_MS ? "M" : "L"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    before = at;
  }
  return path;
}

function stems(points, x, y) {
  const base = y(0).toFixed(1);
  return points.filter(([, value]) => value > 0).map(([at, value]) => `M${x(at).toFixed(1)} ${base}V${y(value).toFixed(1)}`).join("");
}

/** A linear scale from 0 with steps of 1, 2 or 5. */
function linear(highest) {
  const rough = Math.max(highest, 1) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough);
  const top = step * 3;
  return { ticks: [0, 1, 2, 3].map((at) => at * step), share: (value) => value / top };
}

/** A logarithmic scale: waits range from parts of a millisecond to half a minute. */
function logarithmic(values, highest) {
  const all = values.flatMap((point) => point.all).filter((value) => value > 0);
  const least = Math.floor(Math.log10(Math.min(...all, highest || 1, 1)));
  const high = Math.max(Math.ceil(Math.log10(highest || 1)), least + 2);
  const every = high - least > 4 ? 2 : 1;
  // The highest tick is the top of the chart.
  const low = high - Math.ceil((high - least) / every) * every;
  const ticks = Array.from({ length: Math.floor((high - low) / every) + 1 }, (_, at) => 10 ** (low + at * every));
  return { ticks, share: (value) => (Math.log10(Math.max(value, 10 ** low)) - low) / (high - low) };
}
