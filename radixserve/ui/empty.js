// What stands in the place of a tree without boxes: why it is empty, and what would change that.

import { hasKey } from "./server.js";
import { bytes, made } from "./text.js";

/** `state` is that of the page: the samples, the server's facts and the requests that came lately. */
export function whyEmpty(tier, { samples, server, requests }) {
  const last = samples.at(-1);
  const elsewhere = Object.entries(last?.tiers ?? {}).filter(([name, [used]]) => name !== tier && used);
  if (tier !== "device") {
    return [made("p", `The ${tier} tier holds nothing yet. ${TAKES[tier] ?? ""}`)];
  }
  if (elsewhere.length) {
    const held = elsewhere.map(([name, [used]]) => `${name} ${bytes(used)}`).join(", ");
    return [made("p", `The device holds nothing now, but other tiers do (${held}): choose their trees above. ` +
      "What a prompt needs of them is copied to the device.")];
  }
  const came = requests.size || samples.some((sample) => sample.cached + sample.computed);
  if (came) return [made("p", "The device holds nothing now. The next prompt appears here within five seconds.")];
  return [
    made("p", "Nothing is cached yet. Send a request, and its prompt appears here within five seconds:"),
    made("pre", example(server?.model ?? "MODEL"), { tabindex: 0, "aria-label": "An example of a request" }),
  ];
}

const TAKES = {
  host: "It gets what is evicted from the device.",
  disk: "It gets what requests have computed, soon after their end.",
};

function example(model) {
  const body = { model, messages: [{ role: "user", content: "What is the capital of France?" }] };
  const key = hasKey() ? " -H 'authorization: Bearer KEY'" : "";
  return `curl ${location.origin}/v1/chat/completions${key} -H 'content-type: application/json' \\\n` +
    `  -d '${JSON.stringify(body)}'`;
}
