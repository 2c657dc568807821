// Subscribes to /events and reconnects when the connection is lost. `EventSource` cannot send a token.

/** The first and the longest wait before a reconnect. */
const BACK_OFF_MS = [500, 15_000];
/** Stats arrive every second, so a stream that is silent for this long is dead. */
const SILENT_MS = 8_000;
/** After a longer interruption, the stream continues with new rows instead of the missed ones. */
const RESUME_MS = 120_000;
const ROWS = 30;

/** Yields `{name, id, data}` from a body of server-sent events, however it is cut into pieces. */
async function* events(body) {
  const [reader, decoder] = [body.getReader(), new TextDecoder()];
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += decoder.decode(value, { stream: true });
    let from = 0;
    for (let end; (end = text.indexOf("\n\n", from)) >= 0; from = end + 2) yield parse(text.slice(from, end));
    text = text.slice(from);
  }
}

function parse(block) {
  const event = { name: "", id: null, data: "" };
  for (const line of block.split("\n")) {
    if (line.startsWith("data: ")) event.data += line.slice(6);
    else if (line.startsWith("event: ")) event.name = line.slice(7);
    else if (line.startsWith("id: ")) event.id = line.slice(4);
  }
  return event;
}

export function authorization(token) {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/** The problem of a refusal; for an answer from elsewhere, its status. */
export async function problemOf(response) {
  const problem = await response.json().catch(() => ({}));
  return { code: "", detail: response.statusText, ...problem, status: response.status };
}

export class Stream {
  #stop = null;
  #lastId = null;
  #lastHeard = 0;
  #wake = () => {};

  /**
   * `token()` is called at each attempt, `event(name, data)` for each event, and `state(kind, details)` for each change of state:
   * `connecting`, `live`, `waiting` (for `ms`, after `tries`, with the code of a refusal), `refused` (with the `problem`).
   */
  constructor({ token, event, state }) {
    Object.assign(this, { token, event, state });
  }

  start() {
    if (this.#stop) return;
    this.#stop = new AbortController();
    this.#run(this.#stop.signal);
  }

  stop() {
    this.#stop?.abort();
    this.#stop = null;
    this.#wake();
  }

  tryNow() {
    this.#wake();
  }

  async #run(stopped) {
    let tries = 0;
    while (!stopped.aborted) {
      this.state("connecting", { tries });
      let [wait, why] = [null, null];
      try {
        [wait, why] = await this.#listen(stopped, () => (tries = 0));
      } catch (e) {
        if (e.problem && !stopped.aborted) {
          this.#stop = null;
          return this.state("refused", { problem: e.problem });
        }
      }
      if (stopped.aborted) return;
      wait ??= Math.min(BACK_OFF_MS[0] * 2 ** tries, BACK_OFF_MS[1]) * (0.75 + Math.random() / 2);
      tries += 1;
      this.state("waiting", { tries, ms: wait, why });
      await this.#pause(wait);
    }
  }

  /** Reads the stream to its end. Returns how long to wait before the next attempt, and the code of a refusal. */
  async #listen(stopped, heard) {
    const silent = new AbortController();
    const watch = setInterval(() => Date.now() - this.#lastHeard > SILENT_MS && silent.abort(), 1000);
    try {
      if (Date.now() - this.#lastHeard > RESUME_MS) this.#lastId = null;
      this.#lastHeard = Date.now();
      const headers = authorization(this.token());
      if (this.#lastId) headers["Last-Event-ID"] = this.#lastId;
      const signal = AbortSignal.any([stopped, silent.signal]);
      const response = await fetch(`/events?rows=${ROWS}&last=${ROWS}`, { headers, signal, cache: "no-store" });
      if ([401, 403].includes(response.status)) throw Object.assign(new Error(), { problem: await problemOf(response) });
      if (!response.ok) return [Number(response.headers.get("Retry-After")) * 1000 || null, (await problemOf(response)).code];
      for await (const { name, id, data } of events(response.body)) {
        this.#lastHeard = Date.now();
        if (id) this.#lastId = id;
        if (name === "hello") {
          heard();
          this.state("live", {});
        }
        if (data) this.event(name, JSON.parse(data));
      }
      return [null, null];
    } finally {
      clearInterval(watch);
      silent.abort();
    }
  }

  #pause(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => (clearTimeout(timer), resolve());
    });
  }
}
