// What the plots of a load test show; `plot.js` draws them.

const phases = JSON.parse(document.getElementById("data").textContent);
const color = (i) => `var(--p${i % 5})`;
const timed = (phase) => phase.requests.filter((request) => request.timed);
const BINS = 40;

function legend() {
  phases.forEach((phase, i) => {
    const [entry, mark] = [document.createElement("span"), document.createElement("i")];
    mark.style.background = color(i);
    entry.append(mark, phase.name);
    document.getElementById("legend").append(entry);
  });
}

function numbers() {
  const judged = phases.some((phase) => phase.summary.good_per_second !== null);
  const names = ["phase", "answered", "wall", "requests/s", ...(judged ? ["goodput/s"] : []), "tokens/s", "hit share", "TTFT p50", "p90", "p99", "per token p50", "end to end p50", "p99", "errors"];
  const rows = phases.map(({ name, summary: s }) => {
    const { ttft, tpot, e2e } = s.latency;
    const time = (quantiles, key) => (quantiles ? seconds(quantiles[key]) : "-");
    const errors = Object.entries(s.errors).map(([kind, count]) => `${count} × ${kind}`);
    const others = [[s.refused, "rightly refused"], [s.left, "left early"], [s.slow, "read slowly"], [s.unsent, "not sent"]];
    const counts = [`${s.answered} of ${s.requests}`, ...others.filter(([count]) => count).map(([count, how]) => `${count} ${how}`)];
    const good = judged ? [`${s.good_per_second.toFixed(2)},\n${percent(s.good_share ?? 0)}`] : [];
    return [name, counts.join(",\n"), seconds(s.wall_seconds), s.requests_per_second.toFixed(2), ...good, s.tokens_per_second.toFixed(1),
      s.hit_share === null ? "not reported" : percent(s.hit_share), time(ttft, "p50"), time(ttft, "p90"), time(ttft, "p99"),
      time(tpot, "p50"), time(e2e, "p50"), time(e2e, "p99"), errors.join(", ") || "none"];
  });
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const name of names) head.append(Object.assign(document.createElement("th"), { textContent: name }));
  const body = table.createTBody();
  for (const cells of rows) {
    const row = body.insertRow();
    cells.forEach((cell) => (row.insertCell().textContent = cell));
    if (cells.at(-1) !== "none") row.lastChild.className = "bad";
  }
  document.getElementById("numbers").append(table);
  for (const { name, left_out: fields } of phases) {
    const counts = Object.entries(fields).map(([field, count]) => `${field} (${count} ×)`);
    const note = Object.assign(document.createElement("p"), { className: "note", textContent: `${name}: left out of requests, for this dialect: ${counts.join(", ")}` });
    if (counts.length) document.getElementById("numbers").append(note);
  }
}

function shares(id, key, label) {
  const series = phases.map((phase, i) => {
    const values = timed(phase).map((request) => request[key]).filter((value) => value !== null).sort((a, b) => a - b);
    return { color: color(i), steps: true, points: values.flatMap((value, n) => (n ? [] : [[value, 0]]).concat([[value, (n + 1) / values.length]])) };
  });
  plot(id, series, { x: { log: true, show: seconds, label }, y: { high: 1, show: percent } });
}

function hits() {
  const series = phases.map((phase, i) => {
    const end = phase.summary.wall_seconds || 1;
    const bins = Array.from({ length: BINS }, () => [0, 0]);
    for (const request of phase.requests) {
      if (request.cached === null || !request.prompt) continue;
      const bin = bins[Math.min(Math.floor(((request.due + (request.ttft ?? request.e2e)) / end) * BINS), BINS - 1)];
      bin[0] += request.cached;
      bin[1] += request.prompt;
    }
    const points = bins.map(([cached, prompt], n) => [((n + 0.5) / BINS) * end, cached / prompt]);
    return { color: color(i), points: points.filter((point) => !Number.isNaN(point[1])) };
  });
  plot("hits", series, { x: { show: plain, label: "seconds since the start of the phase" }, y: { high: 1, show: percent } });
}

function queue() {
  const series = phases.flatMap((phase, i) => {
    const blink = phase.summary.wall_seconds / 400; // what changes within it is drawn as one change
    const events = phase.requests.flatMap((r) => [[r.due, 1], [r.due + r.e2e, -1]]).sort((a, b) => a[0] - b[0]);
    let count = 0;
    const counts = events.map(([at, change]) => [at, (count += change)]);
    const points = [[0, 0], ...counts.filter(([at], n) => n === counts.length - 1 || counts[n + 1][0] - at > blink)];
    const waiting = phase.server.filter((sample) => sample[1] !== null).map((sample) => [sample[0], sample[1]]);
    return [{ color: color(i), steps: true, points }, { color: color(i), dashed: true, points: waiting }];
  });
  plot("queue", series, { x: { show: plain, label: "seconds since the start of the phase" }, y: { show: plain } });
}

function describe(r) {
  const cached = r.cached === null ? "cached: not reported" : `cached ${r.cached} of ${r.prompt} prompt tokens`;
  const times = [`due at ${plain(+r.due.toFixed(2))} s`, r.ttft === null ? "" : `first token after ${seconds(r.ttft)}`, `end after ${seconds(r.e2e)}`];
  return [`${r.name} (${r.kind})`, cached, `${r.tokens} tokens`, ...times, r.wrong].filter(Boolean).join("\n");
}

function scatter(id, label, value) {
  const series = phases.map((phase, i) => {
    const some = timed(phase).filter((r) => r.ttft !== null && value(r) !== null);
    return { color: color(i), dots: true, points: some.map((r) => [value(r), r.ttft]), tips: some.map(describe) };
  });
  plot(id, series, { x: { show: plain, label }, y: { log: true, show: seconds } });
}

// Each request in the first lane that is free when it is due.
function lanes(requests) {
  const free = [];
  return [...requests].sort((a, b) => a.due - b.due).map((request) => {
    let lane = free.findIndex((end) => end <= request.due);
    if (lane < 0) lane = free.push(0) - 1;
    free[lane] = request.due + request.e2e;
    return { request, lane, count: () => free.length };
  });
}

function shade(r) {
  if (r.wrong) return r.wrong === "left" ? "var(--soft)" : "var(--bad)";
  if (!r.prompt || r.cached === null) return "var(--cold)";
  return `color-mix(in oklab, var(--hot) ${Math.round((r.cached / r.prompt) * 100)}%, var(--cold))`;
}

function timeline() {
  const host = document.getElementById("timeline");
  const longest = Math.max(...phases.map((phase) => phase.summary.wall_seconds), 1e-3);
  phases.forEach((phase, i) => {
    const placed = lanes(phase.requests);
    const row = placed.length > 0 && placed[0].count() > 60 ? 4 : 12;
    const height = (placed.length ? placed[0].count() : 0) * row + 24;
    const x = linear(0, longest, 0, 1120);
    const svg = element("svg", { viewBox: `0 0 1140 ${height}`, role: "img" });
    for (const tick of x.ticks) {
      svg.append(element("line", { class: "grid", x1: x.place(tick), x2: x.place(tick), y1: 0, y2: height - 18 }));
      svg.append(element("text", { x: x.place(tick), y: height - 4, "text-anchor": tick ? anchor(x.place(tick), 1140) : "start" }, seconds(tick)));
    }
    for (const { request: r, lane } of placed) {
      const bar = (from, to, opacity) => element("rect", { x: x.place(from), y: lane * row, width: Math.max(x.place(to) - x.place(from), 0.8),
        height: row - 2, rx: 1.5, fill: shade(r), "fill-opacity": opacity, "data-tip": describe(r) });
      const first = r.due + (r.ttft ?? r.e2e);
      svg.append(bar(r.due, first, r.ttft === null ? 1 : 0.4), bar(first, r.due + r.e2e, 1));
    }
    const title = Object.assign(document.createElement("div"), { className: "phase", textContent: phase.name });
    title.style.color = color(i);
    host.append(title, svg);
  });
  const [left, mark, right] = [document.createElement("span"), document.createElement("i"), document.createElement("span")];
  left.textContent = "nothing cached";
  right.textContent = "all cached (red: error, grey: the client left)";
  document.getElementById("scale").append(left, mark, right);
}

legend();
numbers();
shares("ttft", "ttft", "time to the first token");
shares("tpot", "tpot", "time per token");
hits();
queue();
scatter("load", "requests under way", (r) => r.load);
scatter("work", "prompt tokens computed", (r) => (r.cached === null ? null : r.prompt - r.cached));
timeline();
tips();
