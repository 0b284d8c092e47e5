// The form that asks why a prompt missed, and its answer.

import { post } from "./server.js";
import { count, described, element, made, plain, seconds, tokens } from "./text.js";

export class Explain {
  #ask;
  #model;

  /** `model` returns the name of the model once it is known. */
  constructor(ask, model) {
    this.#ask = ask;
    this.#model = model;
    element("explain").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#explain(element("explain-body").value);
    });
  }

  async #explain(text) {
    const shown = element("explained");
    shown.replaceChildren(made("p", "asking ...", { class: "note" }));
    try {
      const body = bodyOf(text, this.#model()), tenant = element("explain-tenant").value;
      const answer = await this.#ask(() => post("cache/explain", tenant ? { tenant, ...body } : body));
      shown.replaceChildren(...rendered(answer));
    } catch (error) {
      shown.replaceChildren(made("p", error.message, { class: "bad" }));
    }
  }
}

/** The body as given; text that does not begin like a JSON object is the prompt of a completion. */
function bodyOf(text, model) {
  if (!text.trimStart().startsWith("{")) return { model, prompt: text };
  try {
    const body = JSON.parse(text);
    return "tokens" in body ? body : { model, ...body };
  } catch (error) {
    throw new Error(`This begins like JSON, but it is none: ${error.message}`);
  }
}

function rendered(answer) {
  const { first_difference: difference, compared_with: other, gone } = answer;
  const shown = [
    made("p", [made("strong", answer.cause.replaceAll("_", " ")), `: ${answer.why}`]),
    described([
      ["found", `${tokens(answer.matched_tokens)} of ${count(answer.prompt_tokens)}${byName(answer.matched)}`],
      ["lost", byName(answer.lost).replace(/^: /, "")],
      ["compared with", other && `${NAMES[other.kind]} of ${seconds(other.age_seconds)} ago, ` +
        `${tokens(other.tokens)}, ${count(other.shared)} of them shared`],
      ["made room", gone && `${seconds(gone.seconds_ago)} ago` +
        (gone.room_for_tokens ? ` for ${tokens(gone.room_for_tokens)}` : "")],
      ["first difference", difference && `token ${count(difference.position)}` +
        (difference.region?.words ? `, in ${difference.region.words}` : "")],
    ])];
  if (difference) shown.push(sideBySide(difference));
  shown.push(...answer.hints.map((hint) => made("p", hint)));
  return shown;
}

const NAMES = { session: "a prompt of the same session", recent: "a recent prompt", stored: "a branch of the tree" };

/** Counts by name, such as ": device 120, disk 36"; empty without any. */
function byName(counts) {
  const parts = Object.entries(counts).map(([name, number]) => `${name.replaceAll("_", " ")} ${count(number)}`);
  return parts.length ? `: ${parts.join(", ")}` : "";
}

/** The tokens around the first difference, as they are now and as they were before. */
function sideBySide({ before, prompt, earlier }) {
  const text = (tokens) => plain(tokens.map((token) => token.text).join(""));
  const line = (name, tokens) => [made("dt", name), made("dd", made("pre", [text(before), made("mark", text(tokens) || "(ends here)")]))];
  return made("dl", [...line("this prompt", prompt), ...line("the earlier one", earlier)]);
}
