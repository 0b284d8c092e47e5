// Why prompt tokens were not found in the last ten minutes, by cause, those with most tokens first.

import { count, element, made, share } from "./text.js";

export const CAUSES = {
  never_seen: "never seen before: no loss",
  prefix_changed: "the prefix changed",
  not_loaded: "in a tier below, and not loaded in time",
  not_kept: "cached, but without the state or window to go on from",
  evicted: "evicted to make room",
  expired: "evicted after its pin had ended",
  dropped: "dropped by an operator",
  other_namespace: "cached for another tenant or salt",
  too_short: "too short to cache",
  cache_off: "the cache was off",
};

export class Losses {
  draw(samples) {
    const lost = new Map();
    for (const sample of samples) {
      for (const [cause, number] of Object.entries(sample.lost ?? {})) {
        lost.set(cause, (lost.get(cause) ?? 0) + number);
      }
    }
    const all = d3.sum(lost.values());
    const rows = d3.sort(lost, ([, number]) => -number);
    element("losses-empty").hidden = all > 0;
    element("losses-empty").textContent = samples.some((sample) => sample.cached)
      ? "Every token of every prompt was found." : "No prompts came.";
    element("losses").replaceChildren(...rows.flatMap(([cause, number]) => {
      const bar = made("i", "", { class: cause === "never_seen" ? "none-lost" : "" });
      bar.style.width = `${(100 * number) / all}%`;
      return [
        made("dt", CAUSES[cause] ?? cause.replaceAll("_", " ")),
        made("dd", [bar], { class: "bar-of", "aria-hidden": "true" }),
        made("dd", `${count(number)} tokens, ${share(number / all)}`, { class: "number" }),
      ];
    }));
  }
}
