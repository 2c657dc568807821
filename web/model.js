// The state of the page, computed from events and answers of /lock. It does not know the page, and everything in it is bounded.

/** The period that the timeline shows. */
export const MINUTE_MS = 60_000;
/** The period that the rates show, with a point every second. */
export const RATES_MS = 300_000;
/** The number of shapes and colours. */
export const SLOTS = 8;
const ROWS_MAX = 30;
const BARS_MAX = 400;
/** Short consecutive holds share a bar of at most this length, so that a busy minute has a bounded number of bars. */
const BAR_MS = 500;
const BAR_GAP_MS = 60;
/** How long an instantaneous change is shown. */
const SHOWN_MS = { lost: 4000, forced: 4000, handed: 1200 };
/** A replica that sent nothing for this long is shown as silent. */
export const SILENT_MS = 3000;
/** Replicas that appear within this time get their shapes in the order of their names, so that all pages show the same. Later replicas get free shapes. */
const SETTLING_MS = 3000;
/** Clock differences below this are ignored, and the bars of all replicas stay where their clocks put them. */
const SKEW_MS = 1000;

export class Model {
  hello = null;
  /** Replicas by name, in the order of names. */
  replicas = new Map();
  /** Increases when a replica appears, disappears or gets another shape. */
  replicasRevision = 0;
  file = null;
  points = [];
  /** Refusals by code since the page was opened. */
  refusals = new Map();
  rows = [];
  rowsSeen = 0;
  /** Increases with each change, so that a drawer can skip unchanged state. */
  rowsRevision = 0;
  holdsSeen = 0;
  lock = { state: "unknown", holder: null, token: null, expires: null, slept: false };
  waiters = [];
  waitersAt = 0;
  /** Since when Redis is unreachable; null while it is reachable. */
  awaySince = null;
  /** The last event of each kind: `handed`, `lost`, `forced`, `abandoned`, `ended`. */
  last = {};
  #settled = null;
  #newest = 0;
  #changed = 0;
  #lockAway = false;

  /** A stream has begun. The known state of the lock may be outdated. */
  applyHello(hello) {
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
    // After a reconnect or a new file, known rows may arrive again.
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
      // A client may meet the slowest replica.
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
    // The counter of a restarted replica begins at 0.
    const old = uptime_s < before.uptime_s ? {} : before.errors;
    for (const [code, total] of Object.entries(errors)) {
      const more = total - (old[code] ?? 0);
      if (more <= 0) continue;
      point.refused += more;
      this.refusals.set(code, (this.refusals.get(code) ?? 0) + more);
    }
  }

  /** Removes replicas without stats and without visible holds. */
  #forget(stats) {
    const known = new Set(stats.map(({ replica }) => replica)).add(this.hello?.replica);
    for (const [name, { bars, open }] of this.replicas) {
      if (known.has(name) || open || bars.length) continue;
      this.replicas.delete(name);
      this.replicasRevision += 1;
    }
  }

  /** `redis` or `embedded`; null until known. */
  lockKind() {
    return this.replicas.get(this.hello?.replica)?.figures?.lock;
  }

  #judgeReach(now) {
    const figures = this.replicas.get(this.hello?.replica)?.figures;
    const away = this.#lockAway || figures?.lock_in_reach === false;
    this.awaySince = away ? (this.awaySince ?? now) : null;
  }

  /** A lock event, some tenths of a second old; or one from before this page was open, which has an age. */
  takeChange(change) {
    const now = Date.now();
    const age = change.age_ms ?? 0;
    const replica = this.replica(change.replica);
    replica.skew = Math.min(replica.skew, now - age - change.at_ms);
    const at = change.at_ms + (Math.abs(replica.skew) < SKEW_MS ? 0 : replica.skew);
    this.#draw(replica, change, at);
    // The answers of /lock know the present state.
    if (age > 0) return;
    this.#changed = now;
    const newest = change.token >= this.#newest;
    this.#newest = Math.max(this.#newest, change.token);
    const { change: what, replica: holder, token, other } = change;
    if (what === "handed_over") this.last.handed = { from: holder, to: other, token, shown: now + SHOWN_MS.handed };
    if (what === "lost" || what === "forced") this.last[what] = { replica: holder, token, other, shown: now + SHOWN_MS[what] };
    if (what !== "acquired" && what !== "forced") this.last.ended = { ...change, at };
    if (!newest) return;
    // An embedded lock stays with its process while that runs.
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

  /** The holder that /lock names is drawn from now on, if no event has told of its hold. Holds that it rules out are not drawn any longer. */
  #drawHolder({ state, holder, token }, now) {
    for (const replica of this.replicas.values()) {
      if (replica.open && (state === "free" || (token !== null && replica.open.token < token))) replica.open = null;
    }
    if (state !== "held" || token === null || this.last.abandoned?.token === token) return;
    const replica = this.replica(holder);
    replica.open ??= { start: now, token, wait: 0, kind: "plain" };
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

  /** The lock was held again before an abandoned hold expired. */
  #cutAbandoned(at) {
    for (const { bars } of this.replicas.values()) {
      const bar = bars.at(-1);
      if (bar?.kind === "left" && bar.end > at) Object.assign(bar, { end: at, revision: bar.revision + 1 });
    }
  }

  /** Removes and returns the bars that are out of view. */
  expire(before) {
    const gone = [];
    for (const { bars } of this.replicas.values()) {
      while (bars.length && (bars[0].end < before || bars.length > BARS_MAX)) gone.push(bars.shift());
    }
    return gone;
  }

  /** An answer of /lock requested at `asked`; null if the lock is unreachable. */
  takeLock(status, asked) {
    const now = Date.now();
    this.#lockAway = status === null;
    this.#judgeReach(now);
    if (!status) return;
    [this.waiters, this.waitersAt] = [status.waiters, now];
    // Events since the request are newer than this answer.
    if (this.#changed >= asked) return;
    const { state, holder, token, ttl_ms } = status;
    const same = token !== null && token === this.lock.token;
    this.lock = { state, holder, token, expires: ttl_ms === null ? null : now + ttl_ms, slept: same && this.lock.slept };
    this.#drawHolder(status, now);
    const left = this.last.abandoned;
    if (left && !(state === "held" && token === left.token)) {
      this.last.abandoned = null;
      if (token !== null || state === "free") this.#cutAbandoned(now);
    }
    this.#newest = Math.max(this.#newest, token ?? 0);
  }

  /** The state of the lock now: a `kind` and its details. */
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
