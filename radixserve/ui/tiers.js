// How full each tier is, and the choice of the tier whose tree is shown.

import { bytes, element, made } from "./text.js";

export class Tiers {
  #choose;
  #chosen = "device";
  #shown = new Map(); // by tier: its meter and its text

  /** `choose` is called with the name of a tier. */
  constructor(choose) {
    this.#choose = choose;
  }

  /** Another server may answer from now on, with other tiers. */
  forget() {
    this.#shown.clear();
  }

  /** From the newest sample; hidden where there is a device only. While there is no engine no tier is told;
   * those that were there stay. */
  draw(sample) {
    if (!sample) return;
    const below = Object.entries(sample.tiers ?? {});
    const all = [["device", [sample.used_bytes, sample.budget_bytes]], ...below];
    if (all.some(([name]) => !this.#shown.has(name))) this.#make(all.map(([name]) => name));
    for (const [name, [used, budget]] of all) {
      const { meter, text } = this.#shown.get(name);
      meter.max = budget || 1;
      meter.value = used;
      text.textContent = `${bytes(used)} of ${bytes(budget)}`;
    }
    element("tiers").hidden = element("colour-tier").hidden = this.#shown.size < 2;
  }

  #make(names) {
    this.#shown.clear();
    if (!names.includes(this.#chosen)) this.#take("device");
    element("tier-choices").replaceChildren(...names.map((name) => {
      const meter = made("meter", "", { "aria-label": `${name}, used`, min: 0 });
      const text = made("small");
      const radio = made("input", "", { type: "radio", name: "tier", value: name });
      radio.checked = name === this.#chosen;
      radio.addEventListener("change", () => this.#take(name));
      this.#shown.set(name, { meter, text });
      return made("label", [radio, made("span", [`${name} `, text]), meter]);
    }));
  }

  #take(name) {
    this.#chosen = name;
    this.#choose(name);
  }
}
