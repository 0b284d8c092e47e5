// What each tenant had in the last ten minutes and has now; hidden unless there are several.

import { bytes, count, element, made, share } from "./text.js";

const MOST = 20; // rows

export class Tenants {
  #names = "";

  /** `now` has what the tenants have at the moment, `samples` the prompt tokens of each second. */
  draw(samples, now) {
    const prompts = new Map(now.map(({ name }) => [name, [0, 0]]));
    for (const sample of samples) {
      for (const [name, [cached, computed]] of Object.entries(sample.tenants ?? {})) {
        const sums = prompts.get(name) ?? [0, 0];
        prompts.set(name, [sums[0] + cached, sums[1] + computed]);
      }
    }
    const alone = prompts.size < 2; // without an engine no tenant is told, but the samples have them
    element("tenants-section").hidden = element("explain-tenant-field").hidden = alone;
    if (alone) return;
    const at = new Map(now.map((each) => [each.name, each]));
    const rows = d3.sort(prompts, ([, sums]) => -d3.sum(sums), ([name]) => name);
    element("tenants").tBodies[0].replaceChildren(...rows.slice(0, MOST).map(([name, sums]) => row(name, sums, at.get(name))));
    element("tenants-more").textContent = rows.length > MOST ? `and ${count(rows.length - MOST)} more` : "";
    this.#offer(d3.sort(prompts.keys()));
  }

  /** The choice of the tenant whose prompt is to be explained; it stays as it is while the names do. */
  #offer(names) {
    if (this.#names === names.join()) return;
    this.#names = names.join();
    const select = element("explain-tenant"), chosen = select.value;
    const options = names.map((name) => made("option", name, { value: name }));
    select.replaceChildren(made("option", "the tenant of this key", { value: "" }), ...options);
    if (names.includes(chosen)) select.value = chosen;
  }
}

function row(name, [cached, computed], { kv_bytes, running, waiting } = {}) {
  const all = cached + computed;
  const cells = [count(all), all ? share(cached / all) : "-", bytes(kv_bytes ?? 0), count(running ?? 0), count(waiting ?? 0)];
  return made("tr", [made("th", name, { scope: "row" }), ...cells.map((cell) => made("td", cell))]);
}
