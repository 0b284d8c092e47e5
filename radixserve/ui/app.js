// Starts the page: keeps the connection to the server, holds what has arrived, and tells the parts.
//
// Everything that is kept is bounded, because the page may stay open for days: ten minutes of
// samples, MAX_REQUESTS of the last minute, and one view of the tree.

import { Explain } from "./explain.js";
import { Budget } from "./budget.js";
import { Charts } from "./charts.js";
import { Timeline } from "./timeline.js";
import { Losses } from "./losses.js";
import { Pins } from "./pins.js";
import { Tiers } from "./tiers.js";
import { Tree } from "./tree.js";
import { bytes, count, element, share } from "./text.js";
import { Refused, events, setKey } from "./server.js";

const SAMPLES = 600;
const REQUEST_SECONDS = 60;
const MAX_REQUESTS = 2000;
const RETRY_SECONDS = 3;
const TREE_SECONDS = 5;

const state = { samples: [], requests: new Map(), server: null };
const charts = new Charts();
const timeline = new Timeline();
const tree = new Tree(ask, () => pins.refresh());
const budget = new Budget(ask);
const losses = new Losses();
const pins = new Pins(ask, () => tree.refresh());
const tiers = new Tiers((tier) => tree.show(tier));
new Explain(ask, () => state.server?.model);

/** Ask the server; a refused key shows the form for another one. */
async function ask(call) {
  try {
    return await call();
  } catch (error) {
    if (error instanceof Refused) showKeyForm(error.message);
    throw error;
  }
}

function showKeyForm(why) {
  const form = element("key-form");
  element("key-note").textContent = sessionStorage.length ? why : "";
  if (!form.hidden) return;
  form.hidden = false;
  element("content").hidden = true;
  element("key").focus();
}

element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(element("key").value.trim());
  element("key-form").hidden = true;
  element("content").hidden = false;
  refresh();
  restart?.();
});

function tell(text, ready) {
  const server = element("server");
  server.className = ready ? "ready" : "unready";
  if (server.textContent !== text) server.textContent = text;
}

function take(news) {
  if (news.server) {
    state.server = news.server;
    budget.refresh();
  }
  state.samples = [...state.samples, ...news.samples].slice(-SAMPLES);
  keepRequests(news.requests);
  tell(news.state === "ready" ? "ready" : news.state, news.state === "ready");
  if (!document.hidden) draw();
}

/** Every event names all requests that run, so one that it does not name and that has no end is gone. */
function keepRequests(told) {
  const now = Date.now() / 1000, { requests } = state;
  const named = new Set(told.map((request) => request.id));
  for (const request of told) requests.set(request.id, request);
  for (const [id, { ended }] of requests) {
    const old = ended ? ended < now - REQUEST_SECONDS - 5 : !named.has(id);
    if (old || requests.size > MAX_REQUESTS) requests.delete(id);
  }
}

function draw() {
  showFacts();
  showTiles();
  tiers.draw(state.samples.at(-1));
  charts.draw(state.samples);
  losses.draw(state.samples);
  timeline.draw([...state.requests.values()], state.samples.at(-1)?.at ?? Date.now() / 1000);
}

function showFacts() {
  const { version, model, engine } = state.server ?? {};
  if (!model) return;
  const parts = [model, `version ${version}`];
  if (engine) {
    const exact = engine.exact ? "exact: a hit equals a miss bit for bit" : "not exact";
    parts.push(engine.device, engine.dtype, exact, `${count(engine.num_slots)} tokens of room`);
  }
  element("facts").textContent = parts.join(" · ");
}

function showTiles() {
  const last = state.samples.at(-1);
  if (!last) return;
  const five = state.samples.slice(-300);
  const sum = (samples, name) => d3.sum(samples, (sample) => sample[name]);
  const cached = sum(five, "cached"), prompt = cached + sum(five, "computed");
  element("tile-share").textContent = prompt ? share(cached / prompt) : "-";
  element("tile-saved").textContent = count(sum(state.samples, "cached"));
  element("tile-running").textContent = count(last.running);
  element("tile-waiting").textContent = count(last.waiting);
  const used = last.budget_bytes ? share(last.used_bytes / last.budget_bytes) : "-";
  element("tile-bytes").replaceChildren(used, small(` of ${bytes(last.budget_bytes)}`));
  element("tile-speed").textContent = count(Math.round(sum(state.samples.slice(-5), "generated") / 5));
  element("tile-ghost").textContent = prompt ? `+${share(sum(five, "ghosts") / prompt)}` : "-";
}

function small(text) {
  const node = document.createElement("small");
  node.textContent = text;
  return node;
}

function refresh() {
  tree.refresh();
  pins.refresh();
}

// The connection. After an end or an error it is opened again, also after a refused key was replaced.

let restart = null;

async function follow() {
  for (;;) {
    const stopped = new AbortController();
    restart = () => stopped.abort();
    try {
      state.samples = [];
      state.requests.clear();
      for await (const news of await ask(() => events("ui/events", stopped.signal))) take(news);
      tell("the server has ended the connection", false);
    } catch (error) {
      if (error instanceof Refused) await keyGiven();
      else if (!stopped.signal.aborted) tell("the server does not answer", false);
    }
    await new Promise((done) => setTimeout(done, RETRY_SECONDS * 1000));
  }
}

function keyGiven() {
  return new Promise((done) => { restart = done; });
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) { draw(); refresh(); } });
window.addEventListener("resize", () => { draw(); tree.draw(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { draw(); tree.draw(); });
setInterval(() => { if (!document.hidden && state.samples.length) refresh(); }, TREE_SECONDS * 1000);

refresh();
follow();
