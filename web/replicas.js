// The state of each replica and of the shared file.

import { age, byId, bytes, counted, make, named, time, write } from "./dom.js";
import { SILENT_MS } from "./model.js";

export class Replicas {
  every = 5;
  #cards = new Map();
  #revision = 0;

  constructor(model) {
    this.model = model;
  }

  draw(now) {
    const all = [...this.model.replicas.values()].filter(({ figures }) => figures);
    this.#sameCards(all);
    for (const replica of all) this.#card(replica, now);
    if (this.model.file) this.#file(this.model.file);
  }

  #sameCards(all) {
    if (this.#revision === this.model.replicasRevision && this.#cards.size === all.length) return;
    this.#revision = this.model.replicasRevision;
    this.#cards.clear();
    for (const replica of all) {
      const state = make("span", { class: "badge" });
      const figures = make("dl", { class: "figures" });
      const here = replica.name === this.model.hello?.replica ? make("span", { class: "hint" }, "this one") : "";
      const card = make("li", { class: `card r${replica.slot}` }, make("h3", {}, named(replica), here, state), figures);
      this.#cards.set(replica.name, { card, state, figures: new Figures(figures) });
    }
    byId("replica-cards").replaceChildren(...[...this.#cards.values()].map(({ card }) => card));
  }

  #card({ name, figures: f, heard }, now) {
    const { state, figures } = this.#cards.get(name);
    const silent = now - heard > SILENT_MS;
    const kind = silent ? "silent" : f.lock_in_reach ? f.state : "away";
    if (state.dataset.kind !== kind) state.dataset.kind = kind;
    write(state, { silent: "silent", ready: "ready", draining: "leaving", away: `${f.lock} away` }[kind]);
    figures.write({
      version: f.version,
      lock: f.lock,
      uptime: age(f.uptime_s),
      queue: f.queue_rows ? `${counted(f.queue_rows, "row")}, ${bytes(f.queue_bytes)}` : "empty",
      "oldest waits": f.queue_rows ? time(f.queue_age_ms) : "–",
      "last seen": silent ? `${time(now - heard)} ago` : "just now",
      written: counted(f.rows, "row"),
    });
  }

  #file(file) {
    this.file ??= new Figures(byId("file"));
    const part = (share) => `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`;
    this.file.write({
      "the CSV": bytes(file.csv_bytes),
      "free space": `${bytes(file.free_bytes)} of ${bytes(file.volume_bytes)} (${part(file.free_bytes / file.volume_bytes)})`,
      journal: bytes(file.journal_bytes),
      "not yet in a checkpoint": `${bytes(file.journal_used_bytes)} (${part(file.journal_used_bytes / file.journal_bytes)})`,
    });
  }
}

/** Names and values as a definition list. */
class Figures {
  #values = new Map();

  constructor(list) {
    this.list = list;
  }

  write(figures) {
    for (const [name, text] of Object.entries(figures)) {
      if (!this.#values.has(name)) {
        const value = make("dd");
        this.list.append(make("div", {}, make("dt", {}, name), value));
        this.#values.set(name, value);
      }
      write(this.#values.get(name), text);
    }
  }
}
