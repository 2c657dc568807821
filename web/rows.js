// The newest rows, each cell as text.

import { byId, counted, make, named, show, write } from "./dom.js";

const SHOWN = 14;
/** The most rows whose arrival is animated at once. */
const SEEN_TO_ARRIVE = 3;
/** Longer cells are truncated, since a cell may be as large as a body. */
const CELL_CHARS = 300;

export class Rows {
  every = 2;
  #revision = -1;
  #columns = null;

  constructor(model) {
    this.model = model;
    this.lines = Array.from({ length: SHOWN }, () => make("tr", { hidden: "" }));
    byId("newest").append(...this.lines);
    byId("newest").addEventListener("animationend", ({ target }) => target.classList.remove("fresh"));
  }

  draw() {
    const { rows, rowsRevision, rowsSeen } = this.model;
    if (this.#revision === rowsRevision) return;
    this.#revision = rowsRevision;
    this.#head(rows[0]);
    show(byId("no-rows"), rows.length === 0);
    write(byId("rows-count"), `${counted(rowsSeen, "row")} seen`);
    this.#arrive(rows);
    this.lines.forEach((line, at) => this.#line(line, rows[at]));
  }

  #head(row) {
    const columns = this.model.hello?.columns ?? (Array.isArray(row?.fields) ? row.fields.map((_, at) => `${at + 1}`) : []);
    const key = columns.join("\n");
    if (key === this.#columns) return;
    this.#columns = key;
    this.columns = columns;
    byId("columns").replaceChildren(...columns.map((name) => make("th", { scope: "col" }, name)));
    for (const line of this.lines) line.replaceChildren(...columns.map((name) => make("td", { class: kind(name) })));
  }

  /** Moves the existing lines down, and reuses the lowest ones at the top. */
  #arrive(rows) {
    const top = this.lines[0].offset;
    const more = rows.findIndex(({ offset }) => offset === top);
    if (more <= 0 || more >= SHOWN) return;
    const above = this.lines.splice(SHOWN - more);
    this.lines.unshift(...above);
    byId("newest").prepend(...above);
    if (more <= SEEN_TO_ARRIVE) for (const line of above) line.classList.add("fresh");
  }

  #line(line, row) {
    show(line, Boolean(row));
    const { replicasRevision } = this.model;
    if (!row || (line.offset === row.offset && line.revision === replicasRevision)) return;
    [line.offset, line.revision] = [row.offset, replicasRevision];
    this.columns.forEach((name, at) => {
      const text = (Array.isArray(row.fields) ? row.fields[at] : row.fields[name]) ?? "";
      this.#cell(line.children[at], kind(name), text.length > CELL_CHARS ? `${text.slice(0, CELL_CHARS)}…` : text);
    });
  }

  #cell(cell, kind, text) {
    if (kind === "timestamp") return stamp(cell, text);
    if (kind !== "replica") return write(cell, text);
    const replica = this.model.replicas.get(text);
    if (cell.written === text && cell.slot === replica?.slot) return;
    [cell.written, cell.slot] = [text, replica?.slot];
    cell.replaceChildren(replica ? named(replica) : text);
  }
}

/** A narrow page shows the time without the date. */
function stamp(cell, text) {
  const [, date, time] = /^(\d{4}-\d\d-\d\d[T ])(.*)$/.exec(text) ?? [null, "", text];
  cell.replaceChildren(make("span", { class: "date" }, date), time);
}

/** The columns that the service fills, by all their names. */
function kind(name) {
  return { timestamp: "timestamp", Timestamp: "timestamp", replica: "replica", ClientID: "replica", token: "number", LockToken: "number" }[name] ?? "text";
}
