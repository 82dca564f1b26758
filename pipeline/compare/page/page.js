// The state of the page is in the URL's hash: a link shows what its sender saw.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const averages = Object.keys(data.averages), places = [...averages.toReversed(), ...Object.keys(data.metrics)];
const INITIAL = { task: places[0], filter: "", sort: "score:desc" };
let state = fromHash();

function fromHash() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const known = Object.fromEntries(Object.entries(given).filter(([key]) => key in INITIAL));
  if (!places.includes(known.task)) delete known.task;
  return { ...INITIAL, ...known };
}
function toHash() {
  const changed = new URLSearchParams(Object.entries(state).filter(([key, value]) => value !== INITIAL[key])).toString();
  if (changed !== location.hash.slice(1)) history.replaceState(null, "", changed ? "#" + changed : location.pathname + location.search);
}
function element(name, text = "", attributes = {}, kind = "http://www.w3.org/1999/xhtml") {
  const made = document.createElementNS(kind, name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
const drawn = (name, attributes, text = "") => element(name, text, attributes, "http://www.w3.org/2000/svg");

// ---- the table ---------------------------------------------------------------------------------------------------
const none = value => value === null || value === undefined;
const fixed = value => none(value) ? "–" : value.toFixed(2);
const whole = value => none(value) ? "–" : Math.round(value).toLocaleString("en");
const signed = value => (value >= 0 ? "+" : "") + value.toFixed(2);
const half = (mean, high) => none(mean) ? "–" : fixed(mean) + (none(high) ? "" : " ± " + fixed(high - mean));
const score = row => none(row.score) ? row.status : half(row.score, row.score_high);
const between = (low, high) => none(low) ? "" : ` (${signed(low)} to ${signed(high)})`;
const ahead = row => row.method === data.baseline ? "baseline" : none(row.difference) ? "–" : signed(row.difference) + between(row.difference_low, row.difference_high);
const errors = row => none(row.error_seeds) ? "–" : `${fixed(row.error_seeds)}, ${fixed(row.error_examples)}`;
const probable = value => none(value) ? "–" : value < 0.0001 ? "< 0.0001" : value.toFixed(4);
const rate = row => none(row.rate) ? "–" : Number(row.rate.toPrecision(3)) + (row.rate_at_edge ? " (edge)" : "");
const COLUMNS = [
  ["method", "method", row => row.method],
  ["score", "score, %", score],
  ["difference", `lead over ${data.baseline}`, ahead],
  ["error_seeds", "errors: seeds, examples", errors],
  ["p_holm", "p (Holm)", row => probable(row.p_holm)],
  ["verdict", "verdict", row => row.verdict ?? "–"],
  ...(data.results.some(row => "loss" in row) ? [["loss", "loss", row => none(row.loss) ? "–" : row.loss.toFixed(3)]] : []),
  ["trained", "trained", row => whole(row.trained)],
  ["stored", "stored", row => whole(row.stored)],
  ["bytes", "bytes", row => whole(row.bytes)],
  ["precision", "precision", row => row.precision ?? "–"],
  ["score_at_bytes", "score at bytes", row => half(row.score_at_bytes, row.score_at_bytes_high)],
  ["seconds", "seconds", row => whole(row.seconds)],
  ["trainings", "seeds", row => `${Object.keys(row.scores).length} of ${row.trainings}`],
  ["rate", "learning rate", rate],
  ["reason", "what did not finish", row => row.reason],
];
for (const [key, title] of COLUMNS) {
  const header = element("th", title, { "data-key": key, scope: "col" });
  header.addEventListener("click", () => {
    const [sorted, direction] = state.sort.split(":");
    const first = ["score", "difference", "score_at_bytes"].includes(key) ? "desc" : "asc";
    state.sort = `${key}:${sorted === key ? (direction === "asc" ? "desc" : "asc") : first}`;
    show();
  });
  $("table").tHead.append(header);
}
function sorted(rows) {
  const [key, direction] = state.sort.split(":"), sign = direction === "asc" ? 1 : -1;
  const order = (a, b) => typeof a === "string" ? a.localeCompare(b) : a - b;
  return [...rows].sort((a, b) => none(a[key]) ? none(b[key]) ? 0 : 1 : none(b[key]) ? -1 : sign * order(a[key], b[key]));
}
function showTable(rows) {
  const [key, direction] = state.sort.split(":");
  for (const header of $("table").tHead.children) {
    if (header.dataset.key === key) header.setAttribute("aria-sort", direction === "asc" ? "ascending" : "descending");
    else header.removeAttribute("aria-sort");
  }
  $("table").tBodies[0].replaceChildren(...sorted(rows).map(row => {
    const line = element("tr");
    for (const [key, , text] of COLUMNS) {
      const cell = element("td", key === "method" ? "" : text(row));
      if (key === "reason") cell.className = "text";
      if (key === "verdict" && !["undecided", undefined, null].includes(row.verdict)) cell.className = "strong";
      if (key === "method") cell.append(opener(row, line));
      line.append(cell);
    }
    return line;
  }));
}
function opener(row, line) {
  const button = element("button", row.method, { type: "button", class: "name", "aria-expanded": "false" });
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    if (open) line.nextSibling.remove(); else line.after(detail(row));
  });
  return button;
}
function detail(row) {
  const line = element("tr"), cell = element("td", "", { class: "detail", colspan: COLUMNS.length }), box = element("div");
  const seeds = Object.entries(row.scores).map(([seed, value]) => `seed ${seed}: ${fixed(value)}`).join(", ");
  const title = row.task in data.averages ? `: ${row.method}` : `${row.task}: ${row.method}`;
  box.append(element("div", seeds || "no score"), element("pre", `python -m pipeline.arena ${data.preset} --only '${title}'`));
  cell.append(box);
  line.append(cell);
  return line;
}

// ---- the charts --------------------------------------------------------------------------------------------------
const group = row => row.method.startsWith("LSR") ? "lsr" : row.method.startsWith("LoRA r=") ? "lora" : "other";
const hover = row => `${row.method}: ${score(row)}; lead ${ahead(row)}; trained ${whole(row.trained)}; ${whole(row.bytes)} bytes, ${row.precision}: ${half(row.score_at_bytes, row.score_at_bytes_high)}`;
function point(x, y, row, filled = true) {
  const made = drawn("circle", { cx: x, cy: y, r: 4, class: group(row) + (filled ? "" : " hollow") });
  made.append(drawn("title", {}, hover(row)));
  return made;
}
function chart(id, width, height, parts) {
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.append(...parts);
  $(id).replaceChildren(svg);
}
// Far below the others, a method would leave no room for them.
function lowest(scores) {
  const ordered = [...scores].sort((a, b) => a - b), at = place => ordered[Math.floor(place)];
  const median = (at((ordered.length - 1) / 2) + at(ordered.length / 2)) / 2;
  return median - Math.max(2, 3 * (ordered.at(-1) - median));
}
function ticks(low, high) {
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50].find(one => (high - low) / one <= 8) ?? 100;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) found.push(Number(value.toFixed(1)));
  return found;
}
function pareto(size, score, title, all) {
  const width = 560, height = 360, left = 40, bottom = 30, parts = [];
  const done = all.filter(row => !none(row[score])), limit = lowest(done.map(row => row[score]));
  const rows = done.filter(row => row[score] >= limit), sized = rows.filter(row => row[size] > 0);
  if (!sized.length) return chart(size, width, 20, [drawn("text", { x: 0, y: 14 }, "nothing finished")]);
  const means = rows.map(row => row[score]), spare = Math.max(0.3, 0.12 * (Math.max(...means) - Math.min(...means)));
  const low = Math.min(...means) - spare, high = Math.max(...means) + spare;  // long intervals are cut
  const sizes = sized.map(row => Math.log10(row[size]));
  const [first, last] = [Math.min(...sizes) - 0.2, Math.max(...sizes) + 0.2];
  const x = value => left + (Math.log10(value) - first) / (last - first) * (width - left - 10);
  const y = value => height - bottom - (Math.max(low, Math.min(high, value)) - low) / (high - low) * (height - bottom - 10);
  for (const value of ticks(low, high)) parts.push(drawn("line", { x1: left, x2: width, y1: y(value), y2: y(value), class: "grid" }), drawn("text", { x: left - 4, y: y(value) + 3, "text-anchor": "end" }, value));
  for (let power = Math.ceil(first); power <= last; power++) parts.push(drawn("line", { x1: x(10 ** power), x2: x(10 ** power), y1: 0, y2: height - bottom, class: "grid" }), drawn("text", { x: x(10 ** power), y: height - bottom + 12, "text-anchor": "middle" }, (10 ** power).toLocaleString("en", { notation: "compact" })));
  parts.push(drawn("text", { x: width / 2, y: height - 4, "text-anchor": "middle" }, title));
  for (const row of rows.filter(one => !(one[size] > 0))) parts.push(drawn("line", { x1: left, x2: width, y1: y(row[score]), y2: y(row[score]), class: "front" }), drawn("text", { x: left + 4, y: y(row[score]) - 3 }, row.method));
  let best = -Infinity, named = -Infinity, path = "";
  for (const row of sized.sort((a, b) => a[size] - b[size] || b[score] - a[score])) {
    if (!none(row[`${score}_low`])) parts.push(drawn("line", { x1: x(row[size]), x2: x(row[size]), y1: y(row[`${score}_low`]), y2: y(row[`${score}_high`]), class: group(row) }));
    parts.push(point(x(row[size]), y(row[score]), row, size !== "bytes" || row.precision !== "as trained"));
    if (row[score] <= best) continue;
    path += path ? `H${x(row[size])}V${y(row[score])}` : `M${x(row[size])},${y(row[score])}`;
    best = row[score];
    if (best < named + 0.05 * (high - low)) continue;
    named = best;
    const onLeft = x(row[size]) < width / 2;
    parts.push(drawn("text", { x: x(row[size]) + (onLeft ? 6 : -6), y: y(row[score]) - 6, "text-anchor": onLeft ? "start" : "end" }, row.method));
  }
  parts.push(drawn("path", { d: path, class: "front" }));
  chart(size, width, height, parts);
}
function differences(all) {
  const rows = all.filter(row => !none(row.difference)).sort((a, b) => b.difference - a.difference);
  const width = 900, left = 230, line = 18, height = line * rows.length + 30, parts = [];
  if (!rows.length) return chart("differences", width, 20, [drawn("text", { x: 0, y: 14 }, "no method has a seed in common with the baseline")]);
  const far = lowest(all.filter(row => !none(row.score)).map(row => row.score));
  const near = rows.filter(row => row.score >= far), shown = near.length ? near : rows;
  const ends = shown.flatMap(row => [0, row.difference, row.difference_low ?? 0, row.difference_high ?? 0, data.margin, -data.margin]);
  const low = Math.min(...ends), high = Math.max(...ends);
  const x = value => left + (Math.max(low, Math.min(high, value)) - low) / (high - low || 1) * (width - left - 20);
  parts.push(drawn("rect", { x: x(-data.margin), width: x(data.margin) - x(-data.margin), y: 0, height: height - 24, class: "margin" }));
  for (const value of ticks(low, high)) parts.push(drawn("line", { x1: x(value), x2: x(value), y1: 0, y2: height - 24, class: value ? "grid" : "other" }), drawn("text", { x: x(value), y: height - 10, "text-anchor": "middle" }, signed(value)));
  rows.forEach((row, place) => {
    const y = line * (place + 0.5);
    parts.push(drawn("text", { x: left - 8, y: y + 3, "text-anchor": "end" }, row.method));
    for (const [start, end, kind] of [[row.equivalence_low, row.equivalence_high, " thick"], [row.difference_low, row.difference_high, ""]]) if (!none(start)) parts.push(drawn("line", { x1: x(start), x2: x(end), y1: y, y2: y, class: group(row) + kind }));
    parts.push(point(x(row.difference), y, row, ["better", "worse"].includes(row.verdict)));
  });
  chart("differences", width, height, parts);
}

// ---- everything together -----------------------------------------------------------------------------------------
function show() {
  $("task").value = state.task;
  if ($("filter").value !== state.filter) $("filter").value = state.filter;
  const all = data.results.filter(row => row.task === state.task);
  const rows = all.filter(row => row.method === data.baseline || row.method.toLowerCase().includes(state.filter.toLowerCase()));
  $("counted").textContent = `${rows.length} of ${all.length} methods`;
  showTable(rows);
  pareto("trained", "score", "trained parameters of the adapter", rows);
  pareto("bytes", "score_at_bytes", "bytes of the adapter's file, with the head", rows);
  differences(rows);
  toHash();
}
$("title").textContent = `${data.preset}: ${data.methods.length} methods on ${Object.keys(data.metrics).length} tasks`;
$("protocol").textContent = data.protocol;
$("notes").append(...data.notes.map(note => element("li", note)));
for (const place of places) $("task").append(new Option(place in data.averages ? `${place}: mean of ${data.averages[place].length} tasks` : `${place}, ${data.metrics[place]}`, place));
for (const one of data.hypotheses) {
  const line = element("li", `${one.method} is ${one.expected} ${one.expected === "better" ? "than" : "to"} ${one.against} on ${one.on}: `);
  const found = none(one.difference) ? "" : ` (${one.verdict}): ${signed(one.difference)}, 90 %${between(one.equivalence_low, one.equivalence_high)}, errors ${errors(one)}, p ${probable(one.p_holm)}`;
  line.append(element("b", none(one.difference) ? "not tested" : one.held ? "held" : "did not hold"), found);
  $("hypotheses").append(line);
}
$("expected").hidden = !data.hypotheses.length;
for (const [name, values] of Object.entries(data.made)) $("made").append(element("dt", name), element("dd", values.join(name === "date" ? " to " : ", ")));
$("task").addEventListener("change", () => { state.task = $("task").value; show(); });
$("filter").addEventListener("input", () => { state.filter = $("filter").value; show(); });
$("controls").addEventListener("submit", event => event.preventDefault());
$("controls").addEventListener("reset", event => { event.preventDefault(); state = { ...INITIAL }; show(); });
addEventListener("hashchange", () => { state = fromHash(); show(); });
show();
document.documentElement.dataset.ready = "yes";
