// Helpers: elements made of text, never of markup, and the format of numbers.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element with classes, attributes and children. Strings become text. */
export function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Sets a text only if it has changed, since each assignment costs a layout. */
export function write(element, text) {
  if (element.written !== text) element.textContent = element.written = text;
}

export function show(element, shown) {
  if (element.hidden === shown) element.hidden = !shown;
}

/** The shape and the name of a replica. */
export function named(replica) {
  return make("span", { class: `who r${replica.slot}` }, mark(replica.slot), replica.name);
}

export function mark(slot) {
  return draw("svg", { class: `mark r${slot}`, "aria-hidden": "true" }, draw("use", { href: `#mark-${slot}` }));
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });

export function count(number) {
  return Math.abs(number) < 10 && number % 1 ? fine.format(number) : whole.format(number);
}

export function counted(number, one, many = `${one}s`) {
  return `${whole.format(number)} ${number === 1 ? one : many}`;
}

export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(Math.floor(Math.log2(Math.max(number, 1)) / 10), units.length - 1);
  const value = number / 1024 ** power;
  return `${power && value < 10 ? value.toFixed(1) : whole.format(value)} ${units[power]}`;
}

/** Milliseconds in a short format. */
export function time(ms) {
  if (ms < 1) return `${fine.format(ms)} ms`;
  if (ms < 1000) return `${whole.format(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`;
  return age(ms / 1000);
}

/** Whole seconds, in the two largest units. */
export function age(seconds) {
  const parts = [[86_400, "d"], [3_600, "h"], [60, "min"], [1, "s"]];
  const first = Math.max(parts.findIndex(([size]) => seconds >= size), 0);
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const [[large, name], [small, other]] = [parts[first], parts[first + 1]];
  return `${Math.floor(seconds / large)} ${name} ${Math.floor((seconds % large) / small)} ${other}`;
}
