// Connects the parts of the page: events of /events and answers of /lock go into the model, and the parts draw the model.

import { byId, named, show, write } from "./dom.js";
import { Model } from "./model.js";
import { Now } from "./now.js";
import { Rates } from "./rates.js";
import { Replicas } from "./replicas.js";
import { Rows } from "./rows.js";
import { authorization, Stream } from "./stream.js";
import { Timeline } from "./timeline.js";
import { Force, Try } from "./try.js";

/** Milliseconds between two frames, and while there are too many holds to follow each of them. */
const [FRAME_MS, BUSY_FRAME_MS] = [100, 250];
/** Milliseconds between two frames for users who prefer reduced motion. */
const STILL_MS = 500;
/** How often /lock is polled, and how soon after an event of the lock. */
const [POLL_MS, POLL_SOON_MS] = [1000, 250];
/** The least time between two announcements of the lock to screen readers. None are made while the lock passes on all the time. */
const ANNOUNCE_MS = 5000;
/** More holds than this since the last announcement: the lock passes on all the time. */
const BUSY_HOLDS = 10;
/** More holds than this between two frames are too many to follow. */
const MANY_HOLDS = 3;
const TOKEN = "rowlock-token";

const still = matchMedia("(prefers-reduced-motion: reduce)");
const model = new Model();
const token = () => sessionStorage.getItem(TOKEN) ?? "";
const lockPoll = { at: 0, due: false, soon: false, holds: 0, notBefore: 0 };
const tries = new Try(model, token);
const force = new Force(model, token, () => (lockPoll.soon = true));
const now = new Now(model);
const views = [now, new Timeline(model), new Rates(model), new Rows(model), new Replicas(model), tries];
const stream = new Stream({ token, event, state });
let connection = { kind: "connecting" };
let paused = false;

function event(name, data) {
  if (name === "rows") model.takeRows(data);
  else if (name === "stats") model.takeStats(data);
  else if (name === "lock") {
    model.takeChange(data);
    lockPoll.soon = true;
  } else if (name === "hello") applyHello(data);
}

function applyHello(hello) {
  model.applyHello(hello);
  reach(true);
  tries.applyHello(hello);
  force.applyHello(hello);
  show(byId("through"), true);
  show(byId("forget"), hello.by_token);
  document.title = `Rowlock · ${hello.replica}`;
}

/** Shows or hides what needs the role `read`. */
function reach(reads) {
  for (const id of ["now", "timeline", "rates", "rows", "replicas"]) show(byId(id), reads);
  document.body.classList.toggle("reads", reads);
  show(byId("token"), false);
  show(byId("narrow"), !reads);
}

function state(kind, details) {
  connection = { kind, ...details, until: Date.now() + (details.ms ?? 0) };
  if (kind === "refused") refused(details.problem);
  show(byId("again"), kind === "waiting");
  sayConnection();
  if (kind === "live" || (kind === "waiting" && details.tries === 1)) tell(kind === "live" ? "Connected" : "Connection lost, trying again");
}

function sayConnection() {
  const { kind, until, tries, why } = connection;
  const again = tries ? ` (try ${tries + 1})` : "";
  const [mark, text] = {
    connecting: ["wait", `Connecting…${again}`],
    live: ["live", "Live"],
    waiting: ["lost", `${why ? `Refused (${why})` : "Connection lost"}: trying again in ${Math.max(Math.ceil((until - Date.now()) / 1000), 0)} s${again}`],
    refused: ["lost", "Not connected"],
    paused: ["wait", "Paused"],
  }[kind];
  byId("connection").dataset.kind = mark;
  write(byId("connection-text"), text);
}

function refused({ status, code }) {
  if (status === 403 && code === "forbidden") {
    reach(false);
    tries.appendOnly();
    show(byId("forget"), true);
    return;
  }
  reach(false);
  show(byId("narrow"), false);
  show(byId("try"), false);
  show(byId("token"), true);
  write(byId("token-wrong"), token() ? "This token is none of the replica's." : "");
  sessionStorage.removeItem(TOKEN);
  show(byId("forget"), false);
  byId("token-field").focus();
}

byId("token-form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  sessionStorage.setItem(TOKEN, byId("token-field").value.trim());
  byId("token-field").value = "";
  tries.tokenChanged();
  stream.start();
});

byId("forget").addEventListener("click", () => {
  sessionStorage.removeItem(TOKEN);
  // Forgets all data that was received with the token.
  location.reload();
});

byId("again").addEventListener("click", () => stream.tryNow());
addEventListener("online", () => stream.tryNow());

byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  write(byId("pause"), paused ? "Go on" : "Pause");
  watch();
});

/** A link cannot send a token, so the file is fetched and offered as a download. */
byId("csv").addEventListener("click", async (click) => {
  if (!token()) return;
  click.preventDefault();
  const response = await fetch("/rows.csv", { headers: authorization(token()) }).catch(() => null);
  if (!response?.ok) return tell("The CSV could not be read");
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(await response.blob()), download: "rows.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
});

/** A hidden page closes its stream and draws nothing. */
function watch() {
  if (document.hidden || paused) {
    stream.stop();
    state("paused", {});
  } else if (connection.kind !== "refused") {
    stream.start();
    frame();
  }
}
document.addEventListener("visibilitychange", watch);

let throughRevision = 0;
function sayThrough() {
  if (!model.hello || throughRevision === model.replicasRevision) return;
  throughRevision = model.replicasRevision;
  byId("through").lastElementChild.replaceWith(named(model.replica(model.hello.replica)));
}

const drawn = { due: false, frames: 0, holds: 0 };
function frame() {
  if (drawn.due) return;
  const many = model.holdsSeen - drawn.holds > MANY_HOLDS;
  Object.assign(drawn, { due: true, frames: drawn.frames + 1, holds: model.holdsSeen });
  setTimeout(() => requestAnimationFrame(() => {
    drawn.due = false;
    if (document.hidden || paused) return;
    const at = Date.now();
    for (const view of views) if (drawn.frames % view.every === 0) view.draw(at);
    sayThrough();
    if (connection.kind === "waiting") sayConnection();
    pollLock(at);
    announce(at);
    frame();
  }), still.matches ? STILL_MS : many ? BUSY_FRAME_MS : FRAME_MS);
}

/** Requests /lock, one request at a time. */
async function pollLock(at) {
  const wait = lockPoll.soon && model.holdsSeen - lockPoll.holds < BUSY_HOLDS ? POLL_SOON_MS : POLL_MS;
  if (connection.kind !== "live" || lockPoll.due || at - lockPoll.at < wait || at < lockPoll.notBefore) return;
  Object.assign(lockPoll, { at, due: true, soon: false, holds: model.holdsSeen });
  try {
    const response = await fetch("/lock", { headers: authorization(token()), cache: "no-store" });
    if (response.ok) model.takeLock(await response.json(), at);
    else if (response.status === 503) model.takeLock(null, at);
    else if (response.status === 429) lockPoll.notBefore = at + Number(response.headers.get("Retry-After") ?? 1) * 1000;
  } catch {
    // The stream fails, too, and shows that the replica does not answer.
  }
  lockPoll.due = false;
}

const announced = { at: 0, holds: 0, state: "" };
/** Announces the lock's state to screen readers from time to time. */
function announce(at) {
  if (connection.kind !== "live" || at - announced.at < ANNOUNCE_MS) return;
  const busy = model.holdsSeen - announced.holds > BUSY_HOLDS;
  const text = busy ? "The lock passes on all the time" : now.inWords(at);
  [announced.at, announced.holds] = [at, model.holdsSeen];
  if (!text || text === announced.state) return;
  announced.state = text;
  tell(text);
}

function tell(text) {
  write(byId("told"), text);
}

watch();
