// What a person wants to know first: whether the server works, what the cache brings, and what
// would help. One sentence for each, then the numbers.

import { CAUSES } from "./losses.js";
import { bytes, count, element, made, share, tokens } from "./text.js";

// What each state of the server means for requests. "ready" means nothing special.
const STATES = {
  loading: "The model is being loaded. Requests are refused until it is there.",
  warming: "Prompts are being computed before the traffic comes (--warm). Requests are answered already.",
  sharing: "Public prefixes are being computed. Requests are answered already.",
  restarting: "The engine process has ended and the next one is starting. Running requests go on in it " +
    "where they were; new ones wait. Device and host memory begin empty: what is missing is read from the disk or computed again.",
  stalled: "The engine has work but does nothing. If that goes on it is ended, and another one continues.",
  failing: "The engine process does not start; it is tried again and again. Requests are refused until it does. " +
    "The log of the server says why.",
  draining: "The server is ending: it finishes what runs and takes no new requests.",
};
const LITTLE = 0.005; // a share that is not worth a sentence

export class Summary {
  /** `samples` are the seconds of the last ten minutes. */
  draw(samples) {
    const last = samples.at(-1);
    if (!last) return;
    const sums = sumOf(samples);
    element("summary").textContent = sums.prompt ? told(sums) : "No prompts in the last ten minutes.";
    show("share", sums.prompt ? share(sums.cached / sums.prompt) : "-");
    show("saved", count(sums.cached), sums.cached === 1 ? "token" : "tokens");
    show("ghost", sums.prompt ? `+${share(sums.ghosts / sums.prompt)}` : "-");
    show("bytes", last.budget_bytes ? share(last.used_bytes / last.budget_bytes) : "-", `of ${bytes(last.budget_bytes)}`);
    show("running", count(last.running));
    show("waiting", count(last.waiting));
    show("speed", count(Math.round(d3.sum(samples.slice(-5), (sample) => sample.generated) / 5)), "each second");
  }

  /** The state of the server, in the header and as a sentence; null for no answer from it. */
  tellState(state) {
    const ready = state === "ready";
    const header = element("server");
    header.className = ready ? "ready" : "unready";
    setText(header, state ?? "no answer");
    const words = state === null ? noAnswer() : STATES[state] ?? `The server is not ready: ${state}.`;
    element("trouble").hidden = ready;
    setText(element("trouble"), ready ? "" : words);
    element("content").classList.toggle("old", !ready);
  }
}

const noAnswer = () => `The server at ${location.host} does not answer. The numbers below are old; ` +
  "the page tries again every three seconds.";

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text; // or it would be read aloud again
}

function sumOf(samples) {
  const sum = (name) => d3.sum(samples, (sample) => sample[name]);
  const lost = d3.rollup(samples.flatMap(({ lost }) => Object.entries(lost ?? {})),
    (entries) => d3.sum(entries, ([, number]) => number), ([cause]) => cause);
  lost.delete("never_seen");
  return { cached: sum("cached"), prompt: sum("cached") + sum("computed"), ghosts: sum("ghosts"), lost };
}

function told({ cached, prompt, ghosts, lost }) {
  const said = [`In the last ten minutes the cache had ${share(cached / prompt)} of ${tokens(prompt)} in prompts.`];
  const [cause, number] = d3.greatest(lost, ([, tokens]) => tokens) ?? ["", 0];
  if (number / prompt > LITTLE) said.push(`The main loss, ${share(number / prompt)}: ${CAUSES[cause] ?? cause}.`);
  said.push(ghosts / prompt > LITTLE ? `Twice the memory would have found ${share(ghosts / prompt)} more.`
    : "Twice the memory would have found hardly more.");
  return said.join(" ");
}

function show(name, number, unit = "") {
  element(`tile-${name}`).replaceChildren(number, made("small", unit && ` ${unit}`));
}
