// The prefixes that are kept, with how long they stay, and a button that ends each.

import { Refused, get, remove } from "./server.js";
import { count, element, line, made, seconds } from "./text.js";

const NAMES = ["", "tenant", "tokens held", "hits", "ends in"]; // before each cell where there is no head

export class Pins {
  #ask;
  #changed;
  #shown = ""; // what was drawn last, so that buttons keep the focus while nothing changes

  /** `changed` is called when a pin was removed. */
  constructor(ask, changed) {
    this.#ask = ask;
    this.#changed = changed;
  }

  /** Fetch the pins and draw them. */
  async refresh() {
    try {
      const { pins } = await this.#ask(() => get("cache/pins"));
      this.#draw(pins);
      this.#say("");
    } catch (error) {
      if (!(error instanceof Refused)) this.#say(error.message);
    }
  }

  #say(text) {
    if (element("pins-trouble").textContent !== text) element("pins-trouble").textContent = text;
  }

  #draw(pins) {
    const rows = pins.map((pin) => [pin.id, ...told(pin)]);
    const shown = JSON.stringify(rows);
    if (shown === this.#shown) return;
    this.#shown = shown;
    element("pins").hidden = !pins.length;
    element("pins-empty").hidden = pins.length > 0;
    element("pins").tBodies[0].replaceChildren(...rows.map(([id, ...cells]) => this.#row(id, cells)));
  }

  #row(id, cells) {
    const button = made("button", "Remove", { type: "button", "aria-label": `Remove the pin on ${cells[0]}` });
    button.addEventListener("click", () => this.#remove(id));
    const data = NAMES.map((name, index) => made("td", [cells[index]], { role: "cell", "data-name": name }));
    return made("tr", [...data, made("td", [button], { role: "cell" })], { role: "row" });
  }

  async #remove(id) {
    try {
      await this.#ask(() => remove(`cache/pin/${encodeURIComponent(id)}`));
      element("pins-note").textContent = "The pin is removed; its tokens stay until room is needed.";
      this.#changed();
    } catch (error) {
      element("pins-note").textContent = error.message;
    }
    await this.refresh();
  }
}

function told(pin) {
  const text = line(pin.text) || pin.id;
  const held = pin.tokens === pin.wanted ? count(pin.tokens) : `${count(pin.tokens)} of ${count(pin.wanted)}`;
  const tenant = pin.namespace?.includes("/") ? pin.namespace.split("/")[0] : "";
  return [text, tenant, held, count(pin.hits), seconds(Math.max(0, pin.expires - Date.now() / 1000))];
}
