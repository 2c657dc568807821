// The timeline of the last minute: a lane for each replica, a bar for each hold.
//
// The bars have fixed places on one long strip, and only the strip moves. So a frame costs a composited shift, and only new bars are
// painted. An unfinished hold is drawn beyond the right edge.

import { byId, counted, draw, make, named, time, write } from "./dom.js";
import { MINUTE_MS } from "./model.js";

/** Events are up to a quarter of a second old when they arrive. The right edge is as far behind, so that no bar appears in the past. */
const BEHIND_MS = 300;
/** The approximate height of all lanes, and the bounds of one lane. */
const LANES = 198;
const LANE = [30, 66];
/** The strip restarts before its coordinates become large numbers. */
const STRIP_MS = 2 * MINUTE_MS;
const NARROWEST = 3;

export class Timeline {
  every = 1;
  #lanes = new Map();
  #revision = 0;
  #origin = 0;
  #width = 0;
  #lane = LANE[0];
  #chosen = null;

  constructor(model) {
    this.model = model;
    this.box = byId("lanes");
    this.track = make("div", { class: "track", "aria-hidden": "true" });
    this.strip = draw("svg", { class: "strip" });
    this.track.append(this.strip);
    this.names = make("div", { class: "names" });
    const times = [60, 45, 30, 15, 0].map((seconds) => make("span", {}, seconds ? `${seconds} s ago` : "now"));
    this.box.append(this.names, this.track, make("div", { class: "axis", "aria-hidden": "true" }, ...times));
    new ResizeObserver(([{ contentRect }]) => this.#resize(contentRect.width)).observe(this.track);
    this.track.addEventListener("pointermove", (event) => this.#point(event));
    this.track.addEventListener("pointerdown", (event) => this.#point(event));
    this.box.addEventListener("keydown", (event) => this.#key(event));
    this.box.addEventListener("focus", () => this.#chosen ?? this.#choose(this.#step(null, "ArrowLeft")));
  }

  #resize(width) {
    this.#width = width;
    this.#origin = 0;
  }

  #x(at) {
    return ((at - this.#origin) / MINUTE_MS) * this.#width;
  }

  draw(now) {
    if (!this.#width) return;
    this.#sameLanes();
    const edge = now - BEHIND_MS;
    if (edge - this.#origin > STRIP_MS) {
      this.#origin = edge - MINUTE_MS;
      for (const lane of this.#lanes.values()) lane.group.querySelectorAll("rect.bar").forEach((bar) => (bar.placed = null));
    }
    for (const bar of this.model.expire(edge - MINUTE_MS - 1000)) {
      bar.element?.remove();
      if (bar === this.#chosen) this.#choose(null);
    }
    for (const replica of this.model.replicas.values()) this.#bars(replica);
    this.strip.style.transform = `translateX(${(this.#width - this.#x(edge)).toFixed(1)}px)`;
  }

  #sameLanes() {
    if (this.#revision === this.model.replicasRevision) return;
    this.#revision = this.model.replicasRevision;
    const lanes = this.model.replicas.size;
    for (const replica of this.model.replicas.values()) for (const bar of replica.bars) bar.element = null;
    this.#lanes.clear();
    this.#lane = Math.min(Math.max(Math.floor(LANES / lanes), LANE[0]), LANE[1]);
    this.strip.replaceChildren();
    this.names.replaceChildren();
    [...this.model.replicas.values()].forEach((replica, at) => {
      const group = draw("g", { class: `r${replica.slot}`, transform: `translate(0 ${at * this.#lane})` }, hatching(replica.slot));
      this.strip.append(group);
      this.names.append(make("div", { class: "lane" }, named(replica)));
      this.#lanes.set(replica.name, { group, open: null });
    });
    this.box.style.setProperty("--lanes", lanes);
    this.box.style.setProperty("--lane", `${this.#lane}px`);
  }

  #bars(replica) {
    const lane = this.#lanes.get(replica.name);
    for (const bar of replica.bars) {
      bar.element ??= lane.group.appendChild(draw("rect", { class: "bar" }));
      if (bar.element.placed !== bar.revision) this.#place(bar.element, bar, replica.slot);
    }
    const open = replica.open;
    if (lane.open?.of !== open) {
      lane.open?.element.remove();
      lane.open = open && { of: open, element: lane.group.appendChild(draw("rect", { class: "bar" })) };
    }
    if (open && lane.open.element.placed !== 0) {
      this.#place(lane.open.element, { ...open, end: open.start + 2 * STRIP_MS, rows: open.kind === "slept" ? 1 : 0, revision: 0 }, replica.slot);
    }
  }

  #place(element, bar, slot) {
    element.placed = bar.revision;
    // The height grows with the logarithm of the rows, up to a thousand.
    const share = bar.kind === "plain" ? 0.3 + 0.7 * Math.min(Math.log10(Math.max(bar.rows / (bar.count ?? 1), 1)) / 3, 1) : 0.8;
    const height = (this.#lane - 8) * share;
    const width = Math.max(this.#x(bar.end) - this.#x(bar.start), NARROWEST);
    const set = (name, value) => element.setAttribute(name, value);
    set("x", this.#x(bar.start).toFixed(1));
    set("width", width.toFixed(1));
    set("y", (this.#lane - 4 - height).toFixed(1));
    set("height", height.toFixed(1));
    set("class", `bar ${bar.kind}${bar === this.#chosen ? " chosen" : ""}`);
    element.style.fill = bar.kind === "slept" || bar.kind === "left" ? `url(#${bar.kind}-${slot})` : "";
  }

  /** The hold nearest to the pointer in its lane. */
  #point({ clientX, clientY }) {
    const box = this.track.getBoundingClientRect();
    const replica = [...this.model.replicas.values()][Math.floor((clientY - box.top) / this.#lane)];
    if (!replica) return;
    const at = Date.now() - BEHIND_MS - ((box.right - clientX) / this.#width) * MINUTE_MS;
    const near = (12 / this.#width) * MINUTE_MS;
    const away = ({ start, end }) => Math.max(start - at, at - end, 0);
    const bar = replica.bars.reduce((best, bar) => (away(bar) <= away(best ?? bar) ? bar : best), null);
    if (bar && away(bar) < near) this.#choose(bar);
  }

  #key(event) {
    if (event.key === "Escape") return this.#choose(null);
    if (!/^(Arrow(Left|Right|Up|Down)|Home|End)$/.test(event.key)) return;
    event.preventDefault();
    const next = this.#step(this.#chosen, event.key);
    if (next) this.#choose(next);
  }

  /** Left and right move within a lane, up and down to the nearest hold of the next lane. */
  #step(from, key) {
    const lanes = [...this.model.replicas.values()].map(({ bars }) => bars);
    const lane = lanes.findIndex((bars) => bars.includes(from));
    if (lane < 0) return lanes.flat().reduce((best, bar) => (best && best.start > bar.start ? best : bar), null);
    const bars = lanes[lane];
    const at = bars.indexOf(from);
    if (key === "Home") return bars[0];
    if (key === "End") return bars.at(-1);
    if (key === "ArrowLeft") return bars[at - 1];
    if (key === "ArrowRight") return bars[at + 1];
    const others = key === "ArrowUp" ? lanes.slice(0, lane).reverse() : lanes.slice(lane + 1);
    const other = others.find((bars) => bars.length > 0) ?? [];
    return other.reduce((best, bar) => (best && Math.abs(best.start - from.start) < Math.abs(bar.start - from.start) ? best : bar), null);
  }

  #choose(bar) {
    if (bar === this.#chosen) return;
    this.#chosen?.element?.classList.remove("chosen");
    this.#chosen = bar;
    bar?.element?.classList.add("chosen");
    if (!bar) return write(byId("hold"), "No hold is chosen.");
    const replica = [...this.model.replicas.values()].find(({ bars }) => bars.includes(bar));
    write(byId("hold"), `${replica.name}: ${this.#say(bar)}`);
  }

  #say(bar) {
    if (bar.kind === "forced") return `took the lock by force${bar.other ? ` from ${bar.other}` : ""}, token ${bar.first}`;
    const how = { slept: ", sleeping", left: ", then abandoned", lost: ", and lost it" }[bar.kind] ?? "";
    const to = bar.other && bar.count === 1 ? `, handed over to ${bar.other}` : "";
    const rows = counted(bar.rows, "row");
    if (bar.count === 1) return `token ${bar.first}, ${rows}, waited ${time(bar.wait)}, held ${time(bar.held)}${how}${to}`;
    const each = `held ${time(bar.held / bar.count)} each`;
    return `${bar.count} holds, tokens ${bar.first} to ${bar.last}, ${rows}, waited up to ${time(bar.wait)}, ${each}`;
  }
}

/** Patterns in the colour of a lane: stripes for a sleep, a thin grid for a hold that was left to expire. */
function hatching(slot) {
  const pattern = (kind, size, ...lines) =>
    draw("pattern", { id: `${kind}-${slot}`, width: size, height: size, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, ...lines);
  return draw("defs", {},
    pattern("slept", 7, draw("rect", { class: "tint", width: 7, height: 7 }), draw("rect", { class: "stripe", width: 3, height: 7 })),
    pattern("left", 6, draw("rect", { class: "stripe", width: 1, height: 6 })),
  );
}
