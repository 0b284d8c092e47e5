// The form that asks why a prompt missed, and its answer.

import { post } from "./server.js";
import { described, element, made, seconds, tokens } from "./text.js";

export class Explain {
  #ask;

  constructor(ask) {
    this.#ask = ask;
    element("explain").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#explain(element("explain-body").value);
    });
  }

  async #explain(text) {
    const shown = element("explained");
    shown.replaceChildren(made("p", "asking ...", { class: "note" }));
    try {
      const answer = await this.#ask(() => post("cache/explain", bodyOf(text)));
      shown.replaceChildren(...rendered(answer));
    } catch (error) {
      shown.replaceChildren(made("p", error.message, { class: "bad" }));
    }
  }
}

/** The body as given; text that is no JSON object is the prompt of a completion. */
function bodyOf(text) {
  try {
    const body = JSON.parse(text);
    if (typeof body === "object" && body !== null && !Array.isArray(body)) return body;
  } catch { /* plain text */ }
  return { prompt: text };
}

function rendered(answer) {
  return [made("pre", JSON.stringify(answer, null, 2))];
}
