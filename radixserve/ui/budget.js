// The K/V budget of the device, which an administrator may change while requests run.

import { Refused, get, put } from "./server.js";
import { element, tokens } from "./text.js";

const MIB = 2 ** 20;

export class Budget {
  #ask;
  #bounds = [0, Infinity]; // in bytes, which need not be whole MiB

  constructor(ask) {
    this.#ask = ask;
    element("budget-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const [least, most] = this.#bounds;
      this.#change(Math.max(least, Math.min(most, MIB * element("budget-value").valueAsNumber)));
    });
  }

  /** Fetch the setting; without one that may change, the form stays hidden. */
  async refresh() {
    try {
      this.#show((await this.#ask(() => get("config"))).settings.kv_budget);
    } catch (error) {
      if (!(error instanceof Refused)) element("budget-note").textContent = error.message;
    }
  }

  #show(setting) {
    element("budget-form").hidden = !setting;
    if (!setting) return;
    const input = element("budget-value");
    input.value = Math.round(setting.value / MIB);
    this.#bounds = [setting.min, setting.max];
    input.min = Math.round(setting.min / MIB);
    input.max = Math.ceil(setting.max / MIB);
  }

  async #change(value) {
    const note = element("budget-note");
    note.textContent = "changing ...";
    try {
      const answer = await this.#ask(() => put("config", { kv_budget: value, why: "the page" }));
      this.#show(answer.settings.kv_budget);
      note.textContent = `The budget is changed; ${tokens(answer.evicted_tokens.device ?? 0)} were evicted.`;
    } catch (error) {
      note.textContent = error.message;
    }
  }
}
