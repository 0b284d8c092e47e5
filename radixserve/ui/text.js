// Numbers and times as people read them, and a few ways to make elements.

const round = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const element = (id) => document.getElementById(id);

export const count = (number) => round.format(number);

export const tokens = (number) => `${count(number)} ${number === 1 ? "token" : "tokens"}`;

export const share = (ratio) => `${(100 * ratio).toFixed(ratio < 0.995 && ratio > 0 ? 1 : 0)}\u00a0%`;

// Characters that cannot be seen, or that turn the direction of others.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/** Text of users as it can be shown among other text. */
export const plain = (text) => (text ?? "").replace(UNSEEN, "·");

/** The same in one line. */
export const line = (text) => plain(text).replace(/\s+/g, " ").trim();

export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (Math.round(number) >= 1024 && unit < units.length - 1) { number /= 1024; unit += 1; }
  return `${number.toFixed(number < 10 && unit ? 1 : 0)} ${units[unit]}`;
}

export function seconds(number) {
  if (number < 1) return `${Math.round(1000 * number)} ms`;
  if (number < 90) return `${number.toFixed(number < 10 ? 1 : 0)} s`;
  if (number < 5400) return `${Math.round(number / 60)} min`;
  if (number < 172800) return `${Math.round(number / 3600)} h`;
  return `${Math.round(number / 86400)} days`;
}

const clock = d3.timeFormat("%H:%M:%S");
const CLOCK = 62; // pixels that a time of the day needs

/** An axis of time for a scale, with as many labels as there is room for. */
export function timeAxis(scale) {
  const [first, last] = scale.range(), all = scale.ticks((last - first) / (2 * CLOCK));
  const step = Math.ceil((all.length * CLOCK) / (last - first));
  return d3.axisBottom(scale).tickValues(all.filter((_, index) => index % step === 0)).tickFormat(clock).tickSizeOuter(0);
}

/** An element with text or children; text is never read as HTML. */
export function made(tag, content = "", attributes = {}) {
  const node = document.createElement(tag);
  node.append(...(Array.isArray(content) ? content : [content]));
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** A list of terms and descriptions; those without a value are left out. */
export function described(pairs) {
  const known = pairs.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return made("dl", known.flatMap(([term, value]) => [made("dt", term), made("dd", value)]));
}

/** Text in a box at the pointer. */
export function tip(event, text) {
  const box = element("tip");
  box.hidden = !text;
  if (!text) return;
  box.textContent = text;
  box.style.left = `${Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8)}px`;
  box.style.top = `${Math.min(event.clientY + 14, innerHeight - box.offsetHeight - 8)}px`;
}

/** The value of a custom property of the style sheet, for colours that are computed. */
export const styled = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
