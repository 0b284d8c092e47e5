// Starts the page: keeps the connection to the server, holds what has arrived, and tells the parts.
//
// Everything that is kept is bounded, because the page may stay open for days: ten minutes of
// samples, MAX_REQUESTS of the last minute, and one view of the tree.

import { Explain } from "./explain.js";
import { Budget } from "./budget.js";
import { Charts } from "./charts.js";
import { Tenants } from "./tenants.js";
import { Summary } from "./summary.js";
import { Timeline } from "./timeline.js";
import { Losses } from "./losses.js";
import { Pins } from "./pins.js";
import { Tiers } from "./tiers.js";
import { Tree } from "./tree.js";
import { whyEmpty } from "./empty.js";
import { count, element } from "./text.js";
import { Refused, events, hasKey, setKey } from "./server.js";

const SAMPLES = 600;
const REQUEST_SECONDS = 60;
const MAX_REQUESTS = 2000;
const RETRY_SECONDS = 3;
const TREE_SECONDS = 5;

const state = { samples: [], requests: new Map(), tenants: [], server: null, ready: false };
const summary = new Summary();
const tenants = new Tenants();
const charts = new Charts();
const timeline = new Timeline();
const tree = new Tree(ask, () => pins.refresh(), (tier) => whyEmpty(tier, state));
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
    if (error instanceof Refused) askForKey(error);
    throw error;
  }
}

/** A server without keys refuses whoever is elsewhere, and no key would help. */
function askForKey({ wantsKey }) {
  element("content").hidden = element("trouble").hidden = true;
  element("server").className = "";
  element("server").textContent = "";
  if (!wantsKey && !hasKey()) {
    const port = location.port || "80";
    element("forward").textContent = `ssh -L ${port}:127.0.0.1:${port} ${location.hostname}`;
    element("elsewhere").hidden = false;
    return;
  }
  const form = element("key-form");
  const why = wantsKey ? "The server does not know this key." : "This key is not that of an administrator.";
  element("key-note").textContent = hasKey() ? why : "";
  if (!form.hidden) return;
  form.hidden = false;
  element("key").focus();
}

element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(element("key").value.trim());
  element("key-form").hidden = true;
  element("content").hidden = false;
  restart?.();
});

function take(news) {
  if (news.server) {
    state.server = news.server;
    budget.refresh();
  }
  state.samples = [...state.samples, ...news.samples].slice(-SAMPLES);
  keepRequests(news.requests);
  state.tenants = news.tenants ?? [];
  tell(news.state);
  if (!document.hidden) draw();
}

/** Without an engine there is nothing to ask; as soon as there is one, everything is asked. */
function tell(said) {
  const before = state.ready;
  state.ready = said !== null && !["loading", "restarting", "failing"].includes(said);
  summary.tellState(said);
  if (state.ready && !before) refresh();
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
  summary.draw(state.samples);
  tiers.draw(state.samples.at(-1));
  charts.draw(state.samples);
  losses.draw(state.samples);
  tenants.draw(state.samples, state.tenants);
  timeline.draw([...state.requests.values()], state.samples.at(-1)?.at ?? Date.now() / 1000);
}

function showFacts() {
  const { version, model, engine } = state.server ?? {};
  if (!model) return;
  const parts = [model, `version ${version}`];
  if (engine) {
    const exact = engine.exact ? "exact: a hit equals a miss bit for bit" : "not exact";
    parts.push(engine.device, engine.dtype, exact, `room for ${count(engine.num_slots)} tokens`);
  }
  element("facts").textContent = parts.join(" · ");
  for (const other of state.server.others) {
    const link = document.createElement("a");
    link.href = `?model=${encodeURIComponent(other)}`;
    link.textContent = other;
    element("facts").append(" · ", link);
  }
}

function refresh() {
  if (!state.ready || document.hidden) return;
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
      const told = await ask(() => events("ui/events", stopped.signal));
      state.samples = [];
      state.requests.clear();
      tiers.forget();
      for await (const news of told) take(news);
      tell(null);
    } catch (error) {
      if (error instanceof Refused) {
        state.ready = false;
        await keyGiven();
        continue;
      }
      if (stopped.signal.aborted) continue;
      tell(null);
    }
    await new Promise((done) => setTimeout(done, RETRY_SECONDS * 1000));
  }
}

function keyGiven() {
  return new Promise((done) => { restart = done; });
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) draw(); refresh(); });
window.addEventListener("resize", () => { draw(); tree.draw(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { draw(); tree.draw(); });
setInterval(refresh, TREE_SECONDS * 1000);

follow();
