// The requests of the last minute as bars, from arrival to end, coloured by the share of the prompt
// that was found. A mark shows the first token.

import { element, seconds, share, styled, timeAxis, tip, tokens } from "./text.js";

const SECONDS = 60;
const LEAST_MARKED = 6; // pixels; on a shorter bar the mark would hide the colour
const BARS = [7, 16]; // the lowest and the highest, in pixels
const MARGIN = { top: 6, right: 28, bottom: 20, left: 28 }; // room for half a label

export class Timeline {
  constructor() {
    // Bars are made anew each second, so that the pointer may be over one that never says it left.
    element("timeline").addEventListener("pointerleave", (event) => tip(event, ""));
  }

  draw(requests, now) {
    const svg = d3.select("#timeline");
    const { width, height } = svg.node().getBoundingClientRect();
    const x = d3.scaleTime([1000 * (now - SECONDS), 1000 * now], [MARGIN.left, width - MARGIN.right]);
    const shown = inLanes(requests.filter((each) => (each.ended ?? now) > now - SECONDS), now);
    const inside = height - MARGIN.top - MARGIN.bottom, lanes = 1 + (d3.max(shown, (each) => each.lane) ?? 0);
    const bar = Math.max(BARS[0], Math.min(BARS[1], Math.floor(inside / lanes) - 2));
    const room = Math.floor(inside / (bar + 2));
    const colour = d3.scaleLinear([0, 1], [styled("--cold"), styled("--hot")]).clamp(true);
    svg.selectAll("*").remove();
    svg.append("g").attr("class", "axis").attr("transform", `translate(0,${height - MARGIN.bottom})`)
      .call(timeAxis(x));
    const bars = svg.selectAll(".bar-of").data(shown.filter((each) => each.lane < room)).join("g")
      .attr("transform", (each) => `translate(0,${MARGIN.top + each.lane * (bar + 2)})`)
      .on("pointermove click", (event, each) => tip(event, said(each, now)))
      .on("pointerleave", (event) => tip(event, ""));
    const left = (each) => Math.max(MARGIN.left, x(1000 * each.began));
    bars.append("rect").attr("x", left).attr("height", bar).attr("rx", 2)
      .attr("width", (each) => Math.max(2, x(1000 * (each.ended ?? now)) - left(each)))
      .attr("fill", (each) => (failed(each) ? styled("--bad") : colour(foundShare(each))));
    const wide = (each) => x(1000 * (each.ended ?? now)) - left(each) > LEAST_MARKED;
    bars.filter((each) => each.first_token > now - SECONDS && wide(each)).append("rect")
      .attr("x", (each) => x(1000 * each.first_token)).attr("width", 2).attr("height", bar)
      .attr("fill", styled("--ink"));
    if (!shown.length) {
      svg.append("text").attr("class", "none").attr("x", width / 2).attr("y", height / 2)
        .text("no requests in the last minute");
    }
    this.#say(shown, shown.filter((each) => each.lane >= room).length);
  }

  #say(shown, hidden) {
    const running = shown.filter((each) => !each.ended).length;
    element("timeline-hidden").textContent = hidden ? `${hidden} more than there is room for` : "";
    element("timeline-said").textContent =
      `${shown.length} requests, ${running} of them running.` + (hidden ? ` ${hidden} are not drawn.` : "");
  }
}

const failed = (request) => ["error", "abort", "rejected"].includes(request.outcome);

const foundShare = (request) => (request.prompt ? (request.cached ?? 0) / request.prompt : 0);

/** Requests with `lane`: the first row that is free when a request arrives. */
function inLanes(requests, now) {
  const free = []; // when each lane becomes free
  return requests.toSorted((one, other) => one.began - other.began).map((request) => {
    let lane = free.findIndex((until) => until <= request.began);
    if (lane < 0) lane = free.length;
    free[lane] = (request.ended ?? now) + 0.2;
    return { ...request, lane };
  });
}

function said(request, now) {
  const lines = [`${request.endpoint} ${request.id}`];
  if (request.tenant) lines.push(`tenant ${request.tenant}`);
  lines.push(request.cached === null || request.cached === undefined
    ? `${tokens(request.prompt)} in the prompt`
    : `${tokens(request.prompt)} in the prompt, ${share(foundShare(request))} found`);
  if (request.first_token) lines.push(`first token after ${seconds(request.first_token - request.began)}`);
  lines.push(`${tokens(request.generated)} generated in ${seconds((request.ended ?? now) - request.began)}`);
  if (request.outcome) lines.push(request.outcome);
  return lines.join("\n");
}
