// What is known, folded from events and from answers of /lock. It knows no page, and all that grows in it is bounded.

/** How much of the past the timeline shows. */
export const MINUTE_MS = 60_000;
/** How much of the past the rates show; a point comes every second. */
export const RATES_MS = 300_000;
/** Marks and colours there are. */
export const SLOTS = 8;
const ROWS_MAX = 30;
const BARS_MAX = 400;
/** Short holds that follow each other closely share a bar of at most this length: so a busy minute has a bounded number of bars. */
const BAR_MS = 500;
const BAR_GAP_MS = 60;
/** Changes that are over at once are shown for so long. */
const SHOWN_MS = { lost: 4000, forced: 4000, handed: 1200 };
/** A replica that said nothing for this long is said to be silent. */
export const SILENT_MS = 3000;
/** Replicas that are seen this soon get their marks by name, so that all pages show the same ones; later ones get what is free. */
const SETTLING_MS = 3000;
/** A clock that is off by less is taken to be right: then bars of all replicas stand where they belong. */
const SKEW_MS = 1000;

export class Model {
  hello = null;
  /** By name, in the order of names. */
  replicas = new Map();
  /** Grows when a replica comes, goes, or gets another mark. */
  replicasRevision = 0;
  file = null;
  points = [];
  /** Refusals by code, since this page was opened. */
  refusals = new Map();
  rows = [];
  rowsSeen = 0;
  /** Grows with each change, so that who draws it sees that there is something new. */
  rowsRevision = 0;
  holdsSeen = 0;
  lock = { state: "unknown", holder: null, token: null, expires: null, slept: false };
  waiters = [];
  waitersAt = 0;
  /** Since when Redis is away; null while it is not. */
  awaySince = null;
  /** What was seen last of each kind: `handed`, `lost`, `forced`, `abandoned`, `ended`. */
  last = {};
  #settled = null;
  #newest = 0;
  #changed = 0;
  #lockAway = false;

  /** A stream began: what was known of the lock may be old. */
  greet(hello) {
    this.hello = hello;
    this.#newest = 0;
    this.replica(hello.replica);
    for (const replica of this.replicas.values()) Object.assign(replica, { open: null, skew: Infinity });
  }

  replica(name) {
    let replica = this.replicas.get(name);
    if (!replica) {
      const taken = new Set([...this.replicas.values()].map(({ slot }) => slot));
      const free = [...Array(SLOTS).keys()].find((slot) => !taken.has(slot)) ?? this.replicas.size % SLOTS;
      replica = { name, slot: free, figures: null, heard: 0, bars: [], open: null, skew: Infinity };
      const all = [...this.replicas, [name, replica]].sort(([a], [b]) => (a < b ? -1 : 1));
      this.replicas = new Map(all);
      this.#settled ??= Date.now() + SETTLING_MS;
      if (Date.now() < this.#settled) all.forEach(([, one], at) => (one.slot = at % SLOTS));
      this.replicasRevision += 1;
    }
    return replica;
  }

  takeRows({ offset, count, rows }) {
    // What is known already comes again where a stream began anew, or the file did.
    if (offset <= this.rows[0]?.offset) this.rows = [];
    else this.rowsSeen += count;
    this.rowsRevision += 1;
    this.rows = rows.slice(-ROWS_MAX).reverse().concat(this.rows).slice(0, ROWS_MAX);
  }

  takeStats({ replicas, file }) {
    const now = Date.now();
    this.file = file;
    const point = { at: now, rows: new Map(), perSync: null, wait: {}, sync: {}, refused: 0 };
    let [synced, syncs] = [0, 0];
    for (const figures of replicas) {
      const replica = this.replica(figures.replica);
      this.#countRefusals(point, replica.figures, figures);
      replica.figures = figures;
      replica.heard = now - figures.seen_ms_ago;
      if (figures.seen_ms_ago > SILENT_MS) continue;
      point.rows.set(replica.name, figures.rows_per_s);
      if (figures.rows_per_sync) {
        synced += figures.rows_per_s;
        syncs += figures.rows_per_s / figures.rows_per_sync;
      }
      // The worst of all replicas is what a client may meet.
      for (const name of ["wait", "sync"]) {
        for (const part of ["p50", "p99"]) {
          const value = figures[`${name}_ms`][part];
          if (value !== null) point[name][part] = Math.max(point[name][part] ?? 0, value);
        }
      }
    }
    if (syncs > 0) point.perSync = synced / syncs;
    this.points.push(point);
    while (this.points[0].at < now - RATES_MS) this.points.shift();
    this.#forget(replicas);
    this.#judgeReach(now);
  }

  #countRefusals(point, before, { errors, uptime_s }) {
    if (!before) return;
    // One that was started anew counts from 0.
    const old = uptime_s < before.uptime_s ? {} : before.errors;
    for (const [code, total] of Object.entries(errors)) {
      const more = total - (old[code] ?? 0);
      if (more <= 0) continue;
      point.refused += more;
      this.refusals.set(code, (this.refusals.get(code) ?? 0) + more);
    }
  }

  /** Whom nobody tells of any more, and whose holds have gone by, is forgotten. */
  #forget(told) {
    const known = new Set(told.map(({ replica }) => replica)).add(this.hello?.replica);
    for (const [name, { bars, open }] of this.replicas) {
      if (known.has(name) || open || bars.length) continue;
      this.replicas.delete(name);
      this.replicasRevision += 1;
    }
  }

  /** `redis` or `embedded`, once it is known. */
  lockKind() {
    return this.replicas.get(this.hello?.replica)?.figures?.lock;
  }

  #judgeReach(now) {
    const figures = this.replicas.get(this.hello?.replica)?.figures;
    const away = this.#lockAway || figures?.lock_in_reach === false;
    this.awaySince = away ? (this.awaySince ?? now) : null;
  }

  /** Something happened to the lock, some tenths of a second ago. */
  takeChange(change) {
    const now = Date.now();
    const replica = this.replica(change.replica);
    replica.skew = Math.min(replica.skew, now - change.at_ms);
    const at = change.at_ms + (Math.abs(replica.skew) < SKEW_MS ? 0 : replica.skew);
    this.#changed = now;
    this.#draw(replica, change, at);
    const newest = change.token >= this.#newest;
    this.#newest = Math.max(this.#newest, change.token);
    const { change: what, replica: holder, token, other } = change;
    if (what === "handed_over") this.last.handed = { from: holder, to: other, token, shown: now + SHOWN_MS.handed };
    if (what === "lost" || what === "forced") this.last[what] = { replica: holder, token, other, shown: now + SHOWN_MS[what] };
    if (what !== "acquired" && what !== "forced") this.last.ended = { ...change, at };
    if (!newest) return;
    // An embedded lock is its process's own for as long as that lives.
    const expires = this.lockKind() === "embedded" || !this.hello ? null : now + this.hello.lock_ttl_ms;
    this.last.abandoned = what === "abandoned" ? { replica: holder, token } : null;
    if (what === "acquired") this.lock = { state: "held", holder, token, expires, slept: change.slept ?? false };
    else if (what === "abandoned") this.lock = { state: "held", holder, token, expires: now + change.ttl_ms, slept: false };
    else if (what === "handed_over") this.lock = { state: "held", holder: other, token: null, expires: null, slept: false };
    else if (what === "released") this.lock = { state: "free", holder: null, token: null, expires: null, slept: false };
    else this.lock = { ...this.lock, state: "unknown" };
  }

  #draw(replica, change, at) {
    const { change: what, token } = change;
    if (what === "acquired") {
      this.#cutAbandoned(at);
      replica.open = { start: at, token, wait: change.waited_ms, kind: change.slept ? "slept" : "plain" };
      return;
    }
    if (what === "forced") {
      this.#cutAbandoned(at);
      this.#push(replica, { start: at, end: at, count: 0, rows: 0, wait: 0, held: 0, first: token, last: token, kind: "forced", other: change.other });
      return;
    }
    replica.open = null;
    const kind = { abandoned: "left", lost: "lost" }[what] ?? (change.slept ? "slept" : "plain");
    const bar = {
      start: at - change.held_ms, end: at, count: 1 + Math.round((change.skipped ?? 0) / 2), rows: change.rows ?? 0,
      wait: change.waited_ms ?? 0, held: change.held_ms, first: token, last: token, kind, other: change.other,
    };
    if (kind === "left") bar.end = at + change.ttl_ms;
    this.holdsSeen += bar.count;
    this.#push(replica, bar);
  }

  #push(replica, bar) {
    const last = replica.bars.at(-1);
    const together = last && last.kind === "plain" && bar.kind === "plain"
      && bar.start - last.end < BAR_GAP_MS && bar.end - last.start < BAR_MS;
    if (!together) {
      replica.bars.push({ ...bar, revision: 0 });
      return;
    }
    last.end = Math.max(last.end, bar.end);
    last.count += bar.count;
    last.rows += bar.rows;
    last.held += bar.held;
    last.wait = Math.max(last.wait, bar.wait);
    last.last = bar.last;
    last.revision += 1;
  }

  /** Somebody had the lock before the time of an abandoned one was over. */
  #cutAbandoned(at) {
    for (const { bars } of this.replicas.values()) {
      const bar = bars.at(-1);
      if (bar?.kind === "left" && bar.end > at) Object.assign(bar, { end: at, revision: bar.revision + 1 });
    }
  }

  /** Bars that have gone by; answers them, for who drew them. */
  expire(before) {
    const gone = [];
    for (const { bars } of this.replicas.values()) {
      while (bars.length && (bars[0].end < before || bars.length > BARS_MAX)) gone.push(bars.shift());
    }
    return gone;
  }

  /** An answer of /lock that was asked for at `asked`; null: out of reach. */
  takeLock(status, asked) {
    const now = Date.now();
    this.#lockAway = status === null;
    this.#judgeReach(now);
    if (!status) return;
    [this.waiters, this.waitersAt] = [status.waiters, now];
    // What happened meanwhile is newer than this answer.
    if (this.#changed >= asked) return;
    const { state, holder, token, ttl_ms } = status;
    const same = token !== null && token === this.lock.token;
    this.lock = { state, holder, token, expires: ttl_ms === null ? null : now + ttl_ms, slept: same && this.lock.slept };
    const left = this.last.abandoned;
    if (left && !(state === "held" && token === left.token)) {
      this.last.abandoned = null;
      if (token !== null || state === "free") this.#cutAbandoned(now);
    }
    this.#newest = Math.max(this.#newest, token ?? 0);
  }

  /** What there is to say of the lock now: a `kind`, and what belongs to it. */
  now(now) {
    const { lock, last } = this;
    if (this.awaySince !== null) return { kind: "away", ms: now - this.awaySince };
    if (last.forced?.shown > now) return { kind: "forced", ...last.forced };
    if (last.lost?.shown > now) return { kind: "lost", ...last.lost };
    const left = lock.expires === null ? null : Math.max(lock.expires - now, 0);
    if (last.abandoned && lock.token === last.abandoned.token) return { kind: "abandoned", ...last.abandoned, left };
    if (last.handed?.shown > now) return { kind: "handed", ...last.handed, left };
    if (lock.state === "held") return { kind: "held", replica: lock.holder, token: lock.token, left, slept: lock.slept };
    return { kind: lock.state, left };
  }
}
