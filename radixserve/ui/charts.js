// Three small charts of the last ten minutes: hit share, queue, and the budget of keys and values.

import { bytes, element, share, timeAxis } from "./text.js";

const MARGIN = { top: 24, right: 28, bottom: 20, left: 56 }; // names of lines stand above the plot
const TIERS = ["device", "host", "disk"];
const WINDOW = 15; // seconds over which a share is smoothed

export class Charts {
  draw(samples) {
    if (!samples.length) return;
    this.#share(samples);
    this.#queue(samples);
    this.#budget(samples);
  }

  #share(samples) {
    const points = smoothed(samples);
    const plot = new Plot("share", samples, [0, 1], (value) => `${100 * value} %`);
    const tiers = TIERS.filter((tier) => samples.some((sample) => sample.found?.[tier]));
    tiers.forEach((tier, index) => {
      const below = (point) => d3.sum(tiers.slice(0, index), (each) => point.by[each]);
      plot.band(points, `area ${tier}`, below, (point) => (point.share === null ? null : below(point) + point.by[tier]));
      if (tiers.length > 1) plot.name(tier, `key ${tier}`, index);
    });
    plot.line(points, "line accent", (point) => point.share);
    const last = points.findLast((point) => point.share !== null);
    if (!last) plot.remark("no prompts in the last ten minutes");
    say("share", last ? `${share(last.share)} of prompt tokens were found lately.` : "No prompts.");
  }

  #queue(samples) {
    const most = Math.max(4, d3.max(samples, (sample) => Math.max(sample.running, sample.waiting)));
    const plot = new Plot("queue", samples, [0, most], (value) => value);
    plot.line(samples, "line accent", (sample) => sample.running);
    plot.line(samples, "line wait", (sample) => sample.waiting);
    const last = samples.at(-1);
    plot.name("running", "accent", 0);
    plot.name("waiting", "wait", 1);
    say("queue", `${last.running} running, ${last.waiting} waiting.`);
  }

  #budget(samples) {
    const last = samples.at(-1);
    const most = d3.max(samples, (each) => each.budget_bytes) || 1;
    const plot = new Plot("budget", samples, [0, most], bytes, quarters(most));
    plot.area(samples, "area", (sample) => sample.used_bytes);
    plot.area(samples, "area leased", (sample) => sample.leased_bytes);
    plot.line(samples, "limit", (sample) => sample.budget_bytes || null);
    plot.name("in use", "key leased", 0);
    plot.name("cached", "key cached", 1);
    plot.name("budget", "limit", 2);
    say("budget", `${bytes(last.used_bytes)} of ${bytes(last.budget_bytes)} are used, ` +
      `${bytes(last.leased_bytes)} of them by running requests.`);
  }
}

/** The share of found prompt tokens over WINDOW seconds; null where there were no prompts. */
function smoothed(samples) {
  return samples.map((sample, index) => {
    const some = samples.slice(Math.max(0, index - WINDOW + 1), index + 1);
    const cached = d3.sum(some, (each) => each.cached);
    const all = cached + d3.sum(some, (each) => each.computed);
    const by = Object.fromEntries(TIERS.map((tier) =>
      [tier, all ? d3.sum(some, (each) => each.found?.[tier] ?? 0) / all : 0]));
    return { at: sample.at, share: all ? cached / all : null, by };
  });
}

/** Round numbers of bytes: multiples of a power of two, at most four of them. */
function quarters(most) {
  const step = 2 ** Math.ceil(Math.log2(most / 4));
  return d3.range(0, most + 1, step);
}

function say(id, text) {
  element(`${id}-said`).textContent = text;
}

class Plot {
  constructor(id, samples, domain, format, ticks = null) {
    this.svg = d3.select(`#${id}`);
    this.svg.selectAll("*").remove();
    const { width, height } = this.svg.node().getBoundingClientRect();
    const last = samples.at(-1).at;
    const first = Math.min(samples[0].at, last - 60);
    this.x = d3.scaleTime([1000 * first, 1000 * last], [MARGIN.left, width - MARGIN.right]);
    this.y = d3.scaleLinear(domain, [height - MARGIN.bottom, MARGIN.top]);
    this.svg.append("g").attr("class", "axis")
      .attr("transform", `translate(0,${height - MARGIN.bottom})`)
      .call(timeAxis(this.x));
    this.svg.append("g").attr("class", "axis").attr("transform", `translate(${MARGIN.left},0)`)
      .call(d3.axisLeft(this.y).ticks(4).tickValues(ticks).tickFormat(format).tickSizeOuter(0));
  }

  line(points, className, value) {
    const line = d3.line((point) => this.x(1000 * point.at), (point) => this.y(value(point)))
      .defined((point) => value(point) !== null);
    this.svg.append("path").attr("class", className).attr("d", line(points));
  }

  area(points, className, value) {
    this.band(points, className, () => 0, value);
  }

  band(points, className, low, value) {
    const area = d3.area((point) => this.x(1000 * point.at), (point) => this.y(low(point)), (point) => this.y(value(point)))
      .defined((point) => value(point) !== null);
    this.svg.append("path").attr("class", className).attr("d", area(points));
  }

  remark(text) {
    const [left, right] = this.x.range(), [bottom, top] = this.y.range();
    this.svg.append("text").attr("class", "none").attr("x", (left + right) / 2).attr("y", (bottom + top) / 2).text(text);
  }

  name(text, className, place) {
    const g = this.svg.append("g").attr("transform", `translate(${MARGIN.left + 80 * place},8)`);
    g.append("path").attr("class", `line ${className}`).attr("d", "M0,0h14");
    g.append("text").attr("x", 19).attr("dy", "0.33em").text(text);
  }
}
