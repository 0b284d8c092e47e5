"use strict";
// Axes, lines and dots in SVG. Knows numbers and colours; knows nothing of load tests.

const BOX = { width: 540, height: 250, left: 52, right: 14, top: 10, bottom: 34 };

function element(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// {place(value), ticks}: where a value stands between two ends, and the values worth a line.
function linear(low, high, from, to) {
  const span = high - low || 1;
  const step = [1, 2, 5, 10].map((n) => n * 10 ** Math.floor(Math.log10(span / 5))).find((s) => span / s <= 6);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + span * 1e-9; i++) ticks.push(i * step);
  return { place: (value) => from + ((value - low) / span) * (to - from), ticks };
}

// Both ends are 1, 2 or 5 times a power of ten, and so are the ticks, or every power of ten where that would be too many.
function logarithmic(low, high, from, to) {
  const round = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high * 10; power++) round.push(...[1, 2, 5].map((n) => n * 10 ** power));
  const first = round.findLastIndex((value) => value <= low * 1.000001);
  const kept = round.slice(first, Math.max(round.findIndex((value) => value >= high), first + 2) + 1);
  const [a, b] = [Math.log10(kept[0]), Math.log10(kept.at(-1))];
  const decades = kept.filter((value) => Math.abs(Math.log10(value) % 1) < 1e-9);
  const place = (value) => from + ((Math.log10(Math.max(value, kept[0])) - a) / (b - a)) * (to - from);
  return { place, ticks: kept.length > 9 ? decades : kept };
}

const seconds = (value) => (value >= 1 || value === 0 ? `${+value.toPrecision(3)} s` : `${+(value * 1000).toPrecision(3)} ms`);
const percent = (value) => `${Math.round(value * 100)} %`;
const plain = (value) => `${+value.toPrecision(6)}`;

// series: [{points: [[x, y], ...], color, dots, dashed, steps, tips}]; axes: {x, y: {log, high, low, show, label}}
function plot(id, series, axes) {
  const host = document.getElementById(id);
  const points = series.flatMap((each) => each.points);
  if (!points.length) return nothing(host);
  const x = scale(points.map((p) => p[0]), axes.x, BOX.left, BOX.width - BOX.right);
  const y = scale(points.map((p) => p[1]), axes.y, BOX.height - BOX.bottom, BOX.top);
  const svg = element("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img" });
  for (const tick of y.ticks) {
    const at = y.place(tick);
    svg.append(element("line", { class: "grid", x1: BOX.left, x2: BOX.width - BOX.right, y1: at, y2: at }));
    svg.append(element("text", { x: BOX.left - 7, y: at + 4, "text-anchor": "end" }, axes.y.show(tick)));
  }
  for (const tick of x.ticks)
    svg.append(element("text", { x: x.place(tick), y: BOX.height - BOX.bottom + 16, "text-anchor": anchor(x.place(tick), BOX.width) }, axes.x.show(tick)));
  svg.append(element("text", { x: (BOX.left + BOX.width - BOX.right) / 2, y: BOX.height - 3, "text-anchor": "middle" }, axes.x.label));
  for (const each of series) draw(svg, each, x, y);
  host.replaceChildren(svg);
}

// A label in the middle of its tick, or ending there where it would be cut off.
const anchor = (at, width) => (at > width - 22 ? "end" : "middle");

function scale(values, axis, from, to) {
  if (axis.log) {
    const some = values.filter((value) => value > 0);
    return logarithmic(Math.min(...some), Math.max(...some), from, to);
  }
  return linear(axis.low ?? 0, axis.high ?? Math.max(...values, 1e-9), from, to);
}

function draw(svg, each, x, y) {
  if (each.dots) {
    each.points.forEach(([a, b], i) => svg.append(element("circle", {
      cx: x.place(a), cy: y.place(b), r: 3.2, fill: each.color, "fill-opacity": 0.55, "data-tip": each.tips[i] })));
    return;
  }
  let path = "";
  each.points.forEach(([a, b], i) => {
    if (i && each.steps) path += `H${x.place(a).toFixed(1)}`;
    path += `${i ? "L" : "M"}${x.place(a).toFixed(1)},${y.place(b).toFixed(1)}`;
  });
  svg.append(element("path", { class: each.dashed ? "line dashed" : "line", d: path, stroke: each.color }));
}

function nothing(host) {
  const said = document.createElement("div");
  said.className = "none";
  said.textContent = "nothing was measured";
  host.replaceChildren(said);
}

function tips() {
  const tip = document.getElementById("tip");
  document.addEventListener("pointermove", (event) => {
    const text = event.target.dataset?.tip;
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
  });
}
