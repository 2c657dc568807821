// The lock's holder, the time of its hold, and the waiters.

import { byId, make, named, show, time, write } from "./dom.js";

const WORDS = {
  unknown: "…", free: "Free", held: "Held", handed: "Handed over", abandoned: "Abandoned", lost: "Lost", forced: "Taken by force",
  foreign: "Held by another client", away: "Redis away",
};

export class Now {
  /** Drawn in every second frame, since each changed text costs a layout and a paint. */
  every = 2;
  #drawn = "";
  #waiters = "";

  constructor(model) {
    this.model = model;
  }

  draw(now) {
    const [seen, state] = [this.model.now(now), byId("state")];
    if (state.dataset.kind !== seen.kind) state.dataset.kind = seen.kind;
    const word = seen.kind === "away" && this.model.lockKind() === "embedded" ? "Lock out of reach" : WORDS[seen.kind];
    write(byId("state-word"), word);
    this.#who(seen, now);
    this.#life(seen);
    this.#wait(now);
  }

  #who(seen, now) {
    const { last } = this.model;
    const parts = {
      free: () => (last.ended ? ["last held by ", this.#name(last.ended.replica), ` · token ${last.ended.token}`] : ["nobody has it"]),
      held: () => ["by ", this.#name(seen.replica), seen.token === null ? "" : ` · token ${seen.token}`],
      handed: () => [this.#name(seen.from), " → ", this.#name(seen.to)],
      abandoned: () => ["by ", this.#name(seen.replica), ` · token ${seen.token}`],
      lost: () => ["by ", this.#name(seen.replica), ` · token ${seen.token}`],
      forced: () => (seen.other ? ["from ", this.#name(seen.other)] : ["from nobody"]),
      foreign: () => ["one that is none of the replicas"],
      away: () => ["rows wait until it is back"],
      unknown: () => [""],
    }[seen.kind]();
    const key = parts.map((part) => part.textContent ?? part).join("") + this.model.replicasRevision;
    if (key !== this.#drawn) {
      this.#drawn = key;
      byId("state-who").replaceChildren(...parts);
      const of = { held: seen.replica, handed: seen.to, abandoned: seen.replica }[seen.kind];
      byId("state").dataset.slot = of ? this.model.replica(of).slot : "";
    }
    write(byId("state-more"), this.#more(seen, now));
  }

  #more(seen, now) {
    const { ended } = this.model.last;
    switch (seen.kind) {
      case "held": return seen.slept ? "it sleeps before its row is written" : "";
      case "abandoned": return "left to expire, as if the replica had crashed";
      case "lost": return "its time ran out, or it was taken: nothing is written under this token any more";
      case "forced": return `token ${seen.token} is recorded: who holds an older one writes nothing any more`;
      case "away": return `for ${time(Math.floor(seen.ms / 1000) * 1000 || 1)} by now`;
      case "handed": return `token ${ended.token}: ${this.#written(ended)}`;
      case "free": return ended ? `${this.#written(ended)}, ${time(Math.max(Math.floor((now - ended.at) / 1000), 0) * 1000)} ago` : "";
      default: return "";
    }
  }

  #written({ rows = 0, held_ms = 0 }) {
    return `${rows === 1 ? "1 row" : `${rows} rows`} in a hold of ${time(held_ms)}`;
  }

  #life({ kind, left }) {
    const counts = left !== null && left !== undefined;
    byId("life").classList.toggle("idle", !counts);
    write(byId("life-label"), kind === "abandoned" ? "Expires in" : "Time to live");
    write(byId("life-left"), counts ? `${(left / 1000).toFixed(1)} s` : "–");
    const share = counts ? Math.min(left / (this.model.hello?.lock_ttl_ms || left || 1), 1) : 0;
    byId("life-bar").style.transform = `scaleX(${share.toFixed(3)})`;
  }

  #wait(now) {
    const { waiters, waitersAt } = this.model;
    const list = byId("waiters");
    const key = waiters.map(({ replica }) => replica).join("\n") + this.model.replicasRevision;
    if (key !== this.#waiters) {
      this.#waiters = key;
      const item = ({ replica }) => make("li", {}, this.#name(replica), make("span", { class: "waits" }));
      list.replaceChildren(...waiters.map(item));
      show(byId("nobody"), waiters.length === 0);
      write(byId("nobody"), this.model.lockKind() === "embedded" ? "The embedded lock does not know who waits." : "Nobody waits.");
    }
    waiters.forEach(({ waited_ms }, at) => {
      write(list.children[at].lastChild, `waits ${((waited_ms + now - waitersAt) / 1000).toFixed(1)} s`);
    });
  }

  #name(replica) {
    return named(this.model.replica(replica));
  }

  /** The state in words for screen readers, without values that change all the time. */
  inWords(now) {
    const { kind, replica, from, to, left } = this.model.now(now);
    if (kind === "handed") return `Lock handed over from ${from} to ${to}`;
    if (kind === "abandoned") return `Lock abandoned by ${replica}, expires in ${Math.ceil((left ?? 0) / 1000)} seconds`;
    if (kind === "free") return "Lock free";
    if (kind === "unknown") return "";
    return replica ? `Lock ${WORDS[kind].toLowerCase()} by ${replica}` : WORDS[kind];
  }
}
