// Talks to the server this page came from. The key is kept until the tab is closed.

const KEY = "radixserve-key";
const MODEL = new URLSearchParams(location.search).get("model"); // one of several models

/** The server refuses: it `wantsKey`, or the key it got, if any, is not that of an administrator. */
export class Refused extends Error {
  constructor(sentence, wantsKey) {
    super(sentence);
    this.wantsKey = wantsKey;
  }
}

export const hasKey = () => Boolean(sessionStorage.getItem(KEY));

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** The JSON of an answer. Throws Refused, or Error with the server's sentence. */
export async function get(path, signal) {
  return (await send(path, { signal })).json();
}

export async function post(path, body) {
  return (await send(path, { method: "POST", body: JSON.stringify(body) })).json();
}

export async function put(path, body) {
  return (await send(path, { method: "PUT", body: JSON.stringify(body) })).json();
}

export async function remove(path) {
  return (await send(path, { method: "DELETE" })).json();
}

/** The events of a stream, parsed. EventSource is not used, because it sends no key. */
export async function events(path, signal) {
  const response = await send(path, { signal });
  return parsed(response.body.pipeThrough(new TextDecoderStream()).getReader());
}

async function* parsed(reader) {
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const ended = text.split("\n\n");
    text = ended.pop();
    for (const each of ended) if (each.startsWith("data: ")) yield JSON.parse(each.slice(6));
  }
}

/** The path with the model that this page shows. */
function ofModel(path) {
  if (MODEL === null) return path;
  return `${path}${path.includes("?") ? "&" : "?"}model=${encodeURIComponent(MODEL)}`;
}

async function send(path, options) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (options.method) headers["Content-Type"] = "application/json";
  const response = await fetch(ofModel(path), { ...options, headers, cache: "no-store" });
  if (response.ok) return response;
  const error = await response.json().then((body) => body.error?.message, () => null);
  const sentence = error ?? `The server answers ${response.status}.`;
  if (response.status === 401 || response.status === 403) throw new Refused(sentence, response.status === 401);
  throw new Error(sentence);
}
