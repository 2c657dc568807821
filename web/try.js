// The form that sends rows to this replica, and the forced release of the lock.

import { byId, counted, show, time, write } from "./dom.js";
import { authorization, problemOf } from "./stream.js";

/**
 * The most requests at once. A browser opens 6 connections to a host: one for the events, one for the lock, and these for rows. Further
 * rows wait in the page instead of the replica.
 */
const AT_ONCE = 4;

export class Try {
  every = 1;
  #sending = null;

  constructor(model, token) {
    Object.assign(this, { model, token });
    this.form = byId("try-form");
    this.form.addEventListener("input", () => this.#curl());
    this.form.addEventListener("submit", (event) => (event.preventDefault(), this.#send()));
    byId("hang-up").addEventListener("click", () => this.#sending?.stop.abort());
    byId("copy").addEventListener("click", () => this.#copy());
    this.#curl();
  }

  /** Applies the settings of the replica and the roles of the token. */
  applyHello({ roles, simulation, sleep_max_ms }) {
    show(byId("try"), roles.includes("append"));
    show(byId("simulation"), simulation);
    byId("sleep").max = sleep_max_ms / 1000;
  }

  /** Shows the form for a token that may append but not read. */
  appendOnly() {
    show(byId("try"), true);
  }

  /** The fields to send, without those that have their default. */
  #fields() {
    const { data, sleep, skip_release } = this.form.elements;
    const fields = new URLSearchParams({ data: data.value });
    const simulates = !byId("simulation").hidden;
    if (simulates && Number(sleep.value) !== 0) fields.set("sleep", sleep.value);
    if (simulates && skip_release.checked) fields.set("skip_release", "true");
    return fields;
  }

  #curl() {
    const quote = (text) => (/^[\w.=:/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
    const fields = [...this.#fields()].map(([name, value]) => `${name === "data" ? "--data-urlencode" : "-d"} ${quote(`${name}=${value}`)}`);
    const token = this.token() ? '-H "Authorization: Bearer $TOKEN" ' : "";
    const one = `curl ${token}${fields.join(" ")} ${location.origin}/append`;
    const times = Number(this.form.elements.times.value);
    write(byId("curl"), times === 1 ? one : `for n in $(seq ${times}); do ${one} & done; wait`);
  }

  tokenChanged() {
    this.#curl();
  }

  async #copy() {
    const done = await navigator.clipboard?.writeText(byId("curl").textContent).then(() => true, () => false);
    write(byId("copy"), done ? "Copied" : "Not copied");
    setTimeout(() => write(byId("copy"), "Copy"), 1500);
  }

  async #send() {
    if (this.#sending || !this.form.reportValidity()) return;
    const times = Number(this.form.elements.times.value);
    const [fields, began, stop] = [this.#fields(), performance.now(), new AbortController()];
    const sending = (this.#sending = { times, answers: [], stop });
    // Disabling the button would lose the focus.
    byId("send").setAttribute("aria-disabled", "true");
    show(byId("hang-up"), true);
    write(byId("summary"), times === 1 ? "Sent; the answer comes once the row is synced." : `${times} are sent.`);
    let left = times;
    const worker = async () => {
      while (left-- > 0 && !stop.signal.aborted) sending.answers.push(await this.#append(fields, stop.signal));
    };
    await Promise.all(Array.from({ length: Math.min(times, AT_ONCE) }, worker));
    this.#sending = null;
    byId("send").removeAttribute("aria-disabled");
    if (document.activeElement === byId("hang-up")) byId("send").focus();
    show(byId("hang-up"), false);
    this.#tell(sending.answers, times, performance.now() - began);
  }

  async #append(fields, signal) {
    try {
      const response = await fetch("/append", { method: "POST", body: fields, headers: authorization(this.token()), signal });
      return response.ok ? { status: response.status, body: await response.json() } : { status: response.status, body: await problemOf(response) };
    } catch {
      return { status: 0, body: { code: signal.aborted ? "hung_up" : "no_answer", outcome: "unknown" } };
    }
  }

  /** Shows how many of several requests are answered. */
  draw() {
    const { answers, times } = this.#sending ?? {};
    if (times > 1) write(byId("curl-title"), `The same by curl · ${answers.length} of ${times} answered`);
    else write(byId("curl-title"), "The same by curl");
  }

  #tell(answers, times, took) {
    const written = answers.filter(({ status }) => status === 201);
    const codes = new Map();
    for (const { status, body } of answers) if (status !== 201) codes.set(body.code, (codes.get(body.code) ?? 0) + 1);
    const refused = [...codes].map(([code, number]) => (times === 1 ? code : `${number} × ${code}`)).join(", ");
    const parts = [];
    if (times === 1 && written.length) {
      const { token, waited_ms, held_ms, replica, released } = written[0].body;
      parts.push(`Written by ${replica} under token ${token}: waited ${time(waited_ms)}, held ${time(held_ms)}${released ? "" : ", lock left to expire"}.`);
    } else if (written.length) {
      const waits = written.map(({ body }) => body.waited_ms).sort((a, b) => a - b);
      const tokens = new Set(written.map(({ body }) => body.token)).size;
      parts.push(`${written.length} of ${times} written in ${time(took)}, in ${counted(tokens, "hold")}; the median wait ${time(waits[waits.length >> 1])}, the longest ${time(waits.at(-1))}.`);
    }
    if (refused) parts.push(`Not written: ${refused}.`);
    if (answers.length < times) parts.push(`${times - answers.length} were not sent any more.`);
    write(byId("summary"), parts.join(" "));
    const last = answers.findLast(({ status }) => status !== 201) ?? answers.at(-1);
    show(byId("answer"), Boolean(last));
    if (last) write(byId("answer"), `${last.status || "no answer"}\n${JSON.stringify(last.body, null, 2)}`);
  }
}

/** Takes the lock from its holder after a confirmation. */
export class Force {
  constructor(model, token, done) {
    this.model = model;
    const dialog = byId("force-dialog");
    byId("force").addEventListener("click", () => {
      write(byId("force-wrong"), "");
      write(byId("force-text"), this.#warning());
      dialog.showModal();
    });
    byId("force-no").addEventListener("click", () => dialog.close());
    byId("force-yes").addEventListener("click", async () => {
      const failed = await take(token());
      write(byId("force-wrong"), failed ?? "");
      if (failed) return;
      dialog.close();
      done();
    });
  }

  applyHello({ roles }) {
    show(byId("force"), roles.includes("admin"));
  }

  #warning() {
    const { holder, token } = this.model.lock;
    const who = holder ? `${holder} has it${token === null ? "" : `, under token ${token}`}. ` : "Nobody is known to have it. ";
    return `${who}A newer token is recorded first, so that whoever has the lock writes nothing any more, and a row that sleeps under it is refused. Then the longest waiter gets it.`;
  }
}

async function take(token) {
  try {
    const response = await fetch("/lock", { method: "DELETE", headers: authorization(token) });
    if (response.ok) return null;
    const { code, detail } = await problemOf(response);
    return `Not done: ${code}. ${detail ?? ""}`;
  } catch {
    return "No answer: whether it was done is not known.";
  }
}
