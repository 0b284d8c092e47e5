// The prefix tree as an icicle: one column per level, heights by the tokens of a branch. Shows the
// upper levels below one node; looking inside a box moves there, so that large trees are never sent
// whole. Each tier has a tree of its own, whose nodes say which other tiers have their tokens, too.

import { Refused, get, post, remove } from "./server.js";
import { count, described, element, line, made, plain, seconds, styled, tip, tokens } from "./text.js";

const LEVELS = innerWidth < 600 ? 3 : 5; // columns
const LABEL = 15; // pixels of height that a label needs
const TIERS = ["device", "host", "disk"];
// where tokens can lie, from the fastest on
const DONE = { accepted: "Pinned for an hour", clipped: "Pinned in part, for an hour", refused: "Not pinned" };
const PLACES = ["device", "device + host", "device + disk", "device + host + disk", "host", "host + disk", "disk"];

export class Tree {
  #ask;
  #nodes = []; // as the server sent them
  #tier = "device";
  #path = []; // the nodes above the one in view, from the root on
  #chosen = null; // the id of the node whose facts are shown
  #busy = false;
  #changed;
  #whyEmpty;

  /** `changed` is called when something was pinned or dropped; `whyEmpty` gives what is shown for a tier
   * without boxes. */
  constructor(ask, changed, whyEmpty) {
    this.#ask = ask;
    this.#changed = changed;
    this.#whyEmpty = whyEmpty;
    element("tree").addEventListener("pointerleave", (event) => tip(event, ""));
    element("colours").addEventListener("change", () => this.draw());
    element("tree").addEventListener("keydown", (event) => this.#move(event));
  }

  /** Show the tree of another tier. */
  show(tier) {
    [this.#tier, this.#path] = [tier, []];
    this.#unchoose();
    return this.refresh();
  }

  /** Fetch the view again and draw it. */
  async refresh() {
    if (this.#busy) return;
    this.#busy = true;
    const at = this.#path.at(-1), tier = this.#tier;
    try {
      const place = `tier=${tier}&depth=${LEVELS}${at ? `&node=${at.id}` : ""}`;
      const answer = await this.#ask(() => get(`cache/tree?${place}`));
      if (tier !== this.#tier) return;
      this.#nodes = withoutRoots(answer.nodes);
      element("tree-trouble").textContent = "";
      this.#showWhetherEmpty();
      this.draw();
      this.#showFacts();
    } catch (error) {
      if (at) this.#path = []; // the node is gone: begin at the root again
      if (!(error instanceof Refused)) element("tree-trouble").textContent = error.message;
    } finally {
      this.#busy = false;
      if (tier !== this.#tier) this.refresh();
    }
  }

  #showWhetherEmpty() {
    const isEmpty = !this.#nodes.length && !this.#path.length;
    element("tree-shown").hidden = isEmpty;
    element("tree-empty").hidden = !isEmpty;
    element("tree-empty").replaceChildren(...(isEmpty ? this.#whyEmpty(this.#tier) : []));
  }

  draw() {
    const svg = d3.select("#tree");
    const { width, height } = svg.node().getBoundingClientRect();
    const root = this.#layout(width, height);
    const colour = colours(chosenColour(), this.#nodes);
    showScale(colour);
    const shown = root.descendants().filter((each) => each.data.id !== undefined && each.x1 - each.x0 > 0.7);
    const focused = document.activeElement?.dataset?.node;
    const stays = shown.some((each) => each.data.id == focused);
    const boxes = svg.selectAll("g").data(shown, (each) => each.data.id).join(
      (entered) => {
        const g = entered.append("g").attr("role", "treeitem").attr("data-node", (each) => each.data.id);
        g.append("rect").attr("rx", 2);
        g.append("text").attr("x", 6).attr("y", 14);
        g.append("circle").attr("class", "pin").attr("r", 3.5).attr("cy", 7);
        return g;
      });
    boxes.attr("transform", (each) => `translate(${each.y0},${each.x0})`)
      .attr("aria-level", (each) => each.depth)
      .attr("aria-label", (each) => spoken(each.data))
      .attr("aria-selected", (each) => each.data.id === this.#chosen)
      .attr("tabindex", (each, index) => ((stays ? each.data.id == focused : index === 0) ? 0 : -1))
      .classed("chosen", (each) => each.data.id === this.#chosen)
      .on("click", (event, each) => this.#choose(each.data))
      .on("dblclick", (event, each) => this.#enter(each))
      .on("pointermove", (event, each) => tip(event, spoken(each.data)))
      .on("pointerleave", (event) => tip(event, ""));
    boxes.select("rect").attr("width", (each) => Math.max(1, each.y1 - each.y0 - 1))
      .attr("height", (each) => Math.max(0.5, each.x1 - each.x0 - 0.5))
      .attr("fill", (each) => colour.of(each.data));
    boxes.select("circle").attr("cx", (each) => each.y1 - each.y0 - 9)
      .attr("visibility", (each) => (each.data.pinned ? null : "hidden"));
    boxes.select("text").text((each) => label(each))
      .attr("class", (each) => (d3.lab(colour.of(each.data)).l < 62 ? "on-dark" : "on-light"));
    if (focused && !stays) svg.select("g").node()?.focus();
    this.#showPath();
  }

  /** The boxes: x is the height, y the column. The root of the view is left out if it is no node. */
  #layout(width, height) {
    const ids = new Set(this.#nodes.map((each) => each.id));
    const stratify = d3.stratify().id((each) => each.id ?? "all")
      .parentId((each) => (each.id === undefined ? null : ids.has(each.parent) ? each.parent : "all"));
    const root = stratify([{}, ...this.#nodes]);
    root.eachAfter((each) => {
      const inside = d3.sum(each.children ?? [], (child) => child.value);
      each.value = Math.max(each.data.id === undefined ? 0 : whole(each.data), inside);
    });
    root.sort((one, other) => other.value - one.value);
    const columns = Math.min(LEVELS, Math.max(1, root.height));
    const column = width / columns;
    d3.partition().size([height, column * (root.height + 1)])(root);
    return root.each((each) => { each.y0 -= column; each.y1 -= column; });
  }

  #choose(node) {
    element("tree-note").textContent = "";
    this.#chosen = node.id;
    this.draw();
    this.#showNode(node);
    // On a phone the facts stand below the tree, perhaps out of view.
    element("node").scrollIntoView({ block: "nearest" });
  }

  #unchoose() {
    this.#chosen = null;
    element("node").replaceChildren();
    element("node-none").hidden = false;
  }

  /** Look inside: the box becomes the first column. */
  #enter(box) {
    if (!box.data.children) return;
    this.#path = [...this.#path, ...box.ancestors().reverse().map((each) => each.data)
      .filter((data) => data.id !== undefined && !this.#path.some((above) => above.id === data.id))];
    this.refresh();
  }

  #leave(length) {
    this.#path = this.#path.slice(0, length);
    this.refresh();
  }

  #showPath() {
    const steps = [{ name: "all prefixes" }, ...this.#path.map((node) => ({ name: name(node) }))];
    element("path").replaceChildren(...steps.flatMap((step, index) => {
      const button = made("button", step.name, { type: "button" });
      if (index === steps.length - 1) button.setAttribute("aria-current", "location");
      button.addEventListener("click", () => this.#leave(index));
      return index ? ["›", button] : [button];
    }));
  }

  /** Bring the facts of the chosen node up to date. Its buttons stay, so that they keep the focus. A node
   * that is not in view any more, or that is gone, is not chosen any more. */
  #showFacts() {
    const node = this.#nodes.find((each) => each.id === this.#chosen);
    if (node) element("node").querySelector("dl")?.replaceWith(this.#facts(node));
    else this.#unchoose();
  }

  #facts(node) {
    return described([
      ["tokens", node.below_tokens ? `${tokens(node.tokens)}, ${tokens(whole(node))} with what follows`
        : tokens(node.tokens)],
      ["hits", count(hitsOf(node))],
      ["hit by", hitBy(node, this.#nodes)], ["last used", ago(node)],
      ["lies in", lies(node).map(([tier, number]) => (number === node.tokens ? tier
        : `${tier}: ${count(number)} of ${count(node.tokens)}`)).join(", ")],
      ["tenant", node.tenant], ["namespace", node.namespace],
      ["in use", node.leased && !node.pinned ? "by requests that run" : null], ["pinned", node.pinned ? "yes" : null],
    ]);
  }

  #showNode(node) {
    const inside = made("button", "Look inside", { type: "button" });
    inside.hidden = !node.children;
    inside.addEventListener("click", () => this.#enter(d3.select(`#tree [data-node="${node.id}"]`).datum()));
    const drop = made("button", "Drop", { type: "button", class: "danger" });
    drop.addEventListener("click", () => {
      if (confirm(`Drop ${tokens(whole(node))} from the cache?`)) {
        this.#act("Dropped", () => remove(`cache?node=${node.id}&tier=${this.#tier}`));
      }
    });
    const pin = made("button", "Pin for an hour", { type: "button" });
    pin.hidden = this.#tier !== "device";
    pin.addEventListener("click", () => this.#act("Pinned", () => post("cache/pin", { node: node.id, ttl: 3600 })));
    element("node-none").hidden = true;
    element("node").replaceChildren(
      ...(node.text ? [made("pre", node.text, { tabindex: 0, "aria-label": "First tokens" })] : []),
      this.#facts(node),
      made("div", [inside, pin, drop], { class: "actions" }));
  }

  async #act(done, call) {
    element("tree-note").textContent = "asking the server ...";
    try {
      const answer = await this.#ask(call);
      await this.refresh();
      this.#changed();
      const below = Object.entries(answer.tiers ?? {}).map(([tier, number]) => `${tier}: ${count(number)}`);
      element("tree-note").textContent = `${DONE[answer.status] ?? done}: ${tokens(answer.tokens)}` +
        (below.length ? ` of the device; ${below.join(", ")}` : "") + (answer.why ? `. ${answer.why}` : "") +
        (answer.leased_tokens ? `, and ${tokens(answer.leased_tokens)} that are still in use` : "");
    } catch (error) {
      element("tree-note").textContent = error.message;
    }
  }

  /** Arrow keys move to parent, first child and neighbours; Enter looks inside, Escape goes up. */
  #move(event) {
    const at = d3.select(event.target.closest("g")).datum();
    if (!at) return;
    const beside = (step) => at.parent?.children[at.parent.children.indexOf(at) + step];
    const to = {
      ArrowRight: () => at.children?.[0],
      ArrowLeft: () => (at.parent?.data.id === undefined ? null : at.parent),
      ArrowDown: () => beside(1),
      ArrowUp: () => beside(-1),
    }[event.key]?.();
    if (to) this.#focus(to.data.id);
    else if (event.key === "Enter") { this.#choose(at.data); this.#enter(at); }
    else if (event.key === " ") this.#choose(at.data);
    else if (event.key === "Escape" && this.#path.length) this.#leave(this.#path.length - 1);
    else if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
  }

  #focus(id) {
    const box = document.querySelector(`#tree [data-node="${id}"]`);
    document.querySelectorAll("#tree g").forEach((each) => each.setAttribute("tabindex", -1));
    box?.setAttribute("tabindex", 0);
    box?.focus();
  }
}

/** The nodes that hold tokens, each with its namespace and tenant. The root of a namespace holds none; that
 * of a tenant may stand below public tokens, to which its children are moved. */
function withoutRoots(nodes) {
  const namespaces = new Map(), above = new Map();
  for (const node of nodes) { // parents stand before their children
    node.namespace ??= namespaces.get(node.parent);
    node.parent = above.get(node.parent) ?? node.parent;
    if (!node.tokens) above.set(node.id, node.parent);
    node.tenant = node.namespace?.includes("/") ? node.namespace.split("/")[0] : null;
    node.text = plain(node.text);
    namespaces.set(node.id, node.namespace);
  }
  return nodes.filter((node) => node.tokens);
}

const chosenColour = () => document.querySelector("#colours input:checked").value;

/** Tokens of a node and of everything below it. */
const whole = (node) => node.tokens + (node.below_tokens ?? 0);

/** Requests that found some of a node, or went on below it. */
const hitsOf = (node) => node.hits ?? 0;

/** Who hits a node and what follows it, with how many hits; empty on a server without tenants. Hits of
 * nodes that are not in view count for the tenant of the node above them. */
function hitBy(node, nodes) {
  if (!nodes.some((each) => each.tenant)) return "";
  const below = d3.group(nodes, (each) => each.parent), hits = new Map();
  const visit = (each) => {
    const children = below.get(each.id) ?? [];
    const own = hitsOf(each) - d3.sum(children, hitsOf);
    const name = each.tenant ?? "what is public";
    if (own > 0) hits.set(name, (hits.get(name) ?? 0) + own);
    children.forEach(visit);
  };
  visit(node);
  return d3.sort(hits, ([, number]) => -number).map(([name, number]) => `${name} ${count(number)}`).join(", ");
}

const ago = (node) => (node.age_seconds === undefined ? null
  : node.age_seconds < 0.5 ? "now" : `${seconds(node.age_seconds)} ago`);

function name(node) {
  const text = line(node.text);
  return text ? (text.length > 28 ? `${text.slice(0, 27)}…` : text) : tokens(node.tokens);
}

function label(box) {
  if (box.x1 - box.x0 < LABEL) return "";
  const room = Math.floor((box.y1 - box.y0 - 22) / 6.2);
  const text = line(box.data.text);
  const whole = text ? `${box.data.tokens} · ${text}` : `${box.data.tokens}`;
  return whole.length > room ? `${whole.slice(0, Math.max(0, room - 1))}…` : whole;
}

function spoken(node) {
  const parts = [tokens(node.tokens)];
  if (node.below_tokens) parts.push(`${tokens(whole(node))} with what follows`);
  parts.push(node.hits === 1 ? "1 hit" : `${count(node.hits ?? 0)} hits`);
  if (ago(node)) parts.push(`used ${ago(node)}`);
  if (lies(node).length > 1) parts.push(`in ${lies(node).map(([tier]) => tier).join(", ")}`);
  if (node.tenant) parts.push(`tenant ${node.tenant}`);
  if (node.pinned) parts.push("pinned");
  if (node.text) parts.push(`begins with: ${node.text.slice(0, 200)}`);
  return parts.filter(Boolean).join(", ");
}

/** The tiers that have tokens of a node, each with how many. */
const lies = (node) => TIERS.filter((tier) => node.tiers?.[tier]).map((tier) => [tier, node.tiers[tier]]);

/** Where most of a node's tokens lie, as a name for a colour. */
const mostly = (node) => lies(node).filter(([, number]) => 2 * number >= node.tokens)
  .map(([tier]) => tier).join(" + ");

/** How nodes are coloured: `of` a node, and either `named` colours or the ends of a ramp. */
function colours(by, nodes) {
  const cold = styled("--cold"), hot = styled("--hot");
  if (by === "age") {
    const oldest = Math.max(10, d3.max(nodes, (each) => each.age_seconds ?? 0) ?? 0);
    const scale = d3.scaleSymlog([0, oldest], [hot, cold]).constant(5);
    return { of: (node) => scale(node.age_seconds ?? oldest), ends: [`${seconds(oldest)} ago`, "now"] };
  }
  if (by === "hits") {
    const most = Math.max(1, d3.max(nodes, (each) => each.hits ?? 0) ?? 0);
    const scale = d3.scaleSymlog([0, most], [cold, hot]);
    return { of: (node) => scale(node.hits ?? 0), ends: ["0 hits", `${most}`] };
  }
  if (by === "tier") {
    const scale = d3.scaleOrdinal(PLACES, PLACES.map((_, index) => styled(`--place-${index}`)));
    const there = new Set(nodes.map(mostly));
    return { of: (node) => scale(mostly(node)),
      named: PLACES.filter((each) => there.has(each)).map((each) => [each, scale(each)]) };
  }
  const value = (node) => node[by] ?? node.namespace ?? "none";
  const names = [...new Set(nodes.map(value))].sort();
  const scale = d3.scaleOrdinal(names, d3.schemeTableau10);
  return { of: (node) => scale(value(node)), named: names.map((each) => [each, scale(each)]) };
}

function showScale(colour) {
  const shown = colour.named
    ? colour.named.slice(0, 10).map(([text, fill]) => {
      const swatch = made("span", "", { class: "swatch" });
      swatch.style.background = fill;
      return made("span", [swatch, text]);
    })
    : [colour.ends[0], made("i", "", { class: "ramp" }), colour.ends[1]];
  element("tree-scale").replaceChildren(...shown);
}
