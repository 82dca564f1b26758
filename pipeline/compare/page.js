// The state of the page is in the URL's hash: a link shows what its sender saw.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const averages = Object.keys(data.averages), places = [...averages.toReversed(), ...Object.keys(data.metrics)];
const LIMITS = { kB: row => row.bytes / 1000, s: row => row.seconds };
const INITIAL = { kB: "", s: "", task: places[0], filter: "", sort: "score:desc" };
for (const row of data.results) Object.assign(row, { these_low: row.these.low, new_low: row.new.low }); // to sort by
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
const kilo = value => none(value) ? "–" : (value / 1000).toLocaleString("en", { maximumFractionDigits: 1 });
const signed = value => (value >= 0 ? "+" : "") + value.toFixed(2);
const half = (mean, high) => none(mean) ? "–" : fixed(mean) + (none(high) ? "" : " ± " + fixed(high - mean));
const score = row => none(row.score) ? row.status : half(row.score, row.score_high);
const between = (low, high) => none(low) ? "–" : `${signed(low)} to ${signed(high)}`;
const said = (found, word = found.word) => between(found.low, found.high) + (word ? `, ${word}` : "");
const difference = row => row.method === data.baseline ? "baseline" : none(row.difference) ? "–" : signed(row.difference);
const errors = row => none(row.error_seeds) ? "–" : `${fixed(row.error_seeds)}, ${fixed(row.error_examples)}`;
const probable = value => none(value) ? "–" : value < 0.0001 ? "< 0.0001" : value.toFixed(4);
const rate = row => none(row.rate) ? "–" : Number(row.rate.toPrecision(3)) + (row.rate_at_edge ? " (edge)" : "");
const COLUMNS = [
  ["method", "method", row => row.method],
  ["score", "score, %", score],
  ["bytes", "kB", row => kilo(row.bytes)],
  ["seconds", "seconds", row => whole(row.seconds)],
  ["difference", `difference from ${data.baseline}`, difference],
  ["these_low", "on these tasks", row => said(row.these)],
  ["new_low", "on new ones", row => said(row.new)],
  ["error_seeds", "errors: seeds, examples", errors],
  ...(data.results.some(row => "loss" in row) ? [["loss", "loss", row => none(row.loss) ? "–" : row.loss.toFixed(3)]] : []),
  ["trained", "trained", row => whole(row.trained)],
  ["stored", "stored", row => whole(row.stored)],
  ["precision", "precision", row => row.precision ?? "–"],
  ["score_at_bytes", "score at these kB", row => half(row.score_at_bytes, row.score_at_bytes_high)],
  ["trainings", "seeds", row => `${Object.keys(row.scores).length} of ${row.trainings}`],
  ["rate", "learning rate", rate],
  ["reason", "what did not finish", row => row.reason],
];
for (const [key, title] of COLUMNS) {
  const header = element("th", title, { "data-key": key, scope: "col" });
  header.addEventListener("click", () => {
    const [sorted, direction] = state.sort.split(":");
    const first = ["score", "difference", "these_low", "new_low", "score_at_bytes"].includes(key) ? "desc" : "asc";
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
      if (key === "these_low" && row.these.word || key === "new_low" && row.new.word) cell.className = "strong";
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
const hover = row => `${row.method}: ${score(row)}; difference ${difference(row)}, on these tasks ${said(row.these)}, on new ones ${said(row.new)}; trained ${whole(row.trained)}; ${kilo(row.bytes)} kB, ${row.precision}: ${half(row.score_at_bytes, row.score_at_bytes_high)}; ${whole(row.seconds)} s`;
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
// Names one by one where none is yet, the first of some places that is free; those that find none are shown at their dots.
function naming(left, width, height) {
  const taken = [];
  const isFree = box => box.x >= left && box.x + box.w <= width && box.y >= 0 && box.y + box.h <= height
    && taken.every(one => box.x + box.w <= one.x || one.x + one.w <= box.x || box.y + box.h <= one.y || one.y + one.h <= box.y);
  const avoid = (x, y, r = 5) => taken.push({ x: x - r, y: y - r, w: 2 * r, h: 2 * r });
  const named = (row, tries) => {
    const w = 5.6 * row.method.length, h = 12;
    const box = tries.map(([x, y, end]) => ({ x: end ? x - w : x, y: y - 9, w, h })).find(isFree);
    if (!box) return [];
    taken.push(box);
    return [drawn("text", { x: box.x, y: box.y + 9, class: group(row) }, row.method)];
  };
  return { avoid, named };
}
function pareto(size, score, title, all, unit = 1) {
  const width = 560, height = 360, left = 40, bottom = 30, parts = [], names = [];
  const done = all.filter(row => !none(row[score])), limit = lowest(done.map(row => row[score]));
  const rows = done.filter(row => row[score] >= limit), sized = rows.filter(row => row[size] > 0);
  if (!sized.length) return chart(size, width, 20, [drawn("text", { x: 0, y: 14 }, done.length ? "no method here has such a size" : "nothing finished")]);
  const means = rows.map(row => row[score]), spare = Math.max(0.3, 0.12 * (Math.max(...means) - Math.min(...means)));
  const low = Math.min(...means) - spare, high = Math.max(...means) + spare;  // long intervals are cut
  const sizes = sized.map(row => Math.log10(row[size] / unit));
  const [first, last] = [Math.min(...sizes) - 0.2, Math.max(...sizes) + 0.2];
  const across = power => left + (power - first) / (last - first) * (width - left - 10), x = row => across(Math.log10(row[size] / unit));
  const y = value => height - bottom - (Math.max(low, Math.min(high, value)) - low) / (high - low) * (height - bottom - 10);
  const { avoid, named } = naming(left, width, height - bottom);
  for (const value of ticks(low, high)) parts.push(drawn("line", { x1: left, x2: width, y1: y(value), y2: y(value), class: "grid" }), drawn("text", { x: left - 4, y: y(value) + 3, "text-anchor": "end" }, value));
  for (let power = Math.ceil(first); power <= last; power++) parts.push(drawn("line", { x1: across(power), x2: across(power), y1: 0, y2: height - bottom, class: "grid" }), drawn("text", { x: across(power), y: height - bottom + 12, "text-anchor": "middle" }, (10 ** power).toLocaleString("en", { notation: "compact" })));
  parts.push(drawn("text", { x: width / 2, y: height - 4, "text-anchor": "middle" }, title));
  for (const row of sized) avoid(x(row), y(row[score]));
  let best = -Infinity, path = "";
  const front = [];
  for (const row of sized.sort((a, b) => a[size] - b[size] || b[score] - a[score])) {
    if (!none(row[`${score}_low`])) parts.push(drawn("line", { x1: x(row), x2: x(row), y1: y(row[`${score}_low`]), y2: y(row[`${score}_high`]), class: group(row) + " bar" }));
    names.push(point(x(row), y(row[score]), row, size !== "bytes" || row.precision !== "as trained"));
    if (row[score] <= best) continue;
    path += path ? `H${x(row)}V${y(row[score])}` : `M${x(row)},${y(row[score])}`;
    best = row[score];
    front.push(row);
  }
  for (const row of [...front.reverse(), ...sized.filter(one => !front.includes(one))]) {
    const [at, up] = [x(row), y(row[score])];
    names.push(...named(row, [-7, 3, 13].flatMap(down => [[at + 7, up + down, false], [at - 7, up + down, true]])));
  }
  for (const row of rows.filter(one => !(one[size] > 0))) {
    parts.push(drawn("line", { x1: left, x2: width, y1: y(row[score]), y2: y(row[score]), class: "front" }));
    names.push(...named(row, Array.from({ length: 20 }, (_, at) => [left + 4 + 20 * at, y(row[score]) - 3, false])));
  }
  parts.push(drawn("path", { d: path, class: "front" }));
  chart(size, width, height, [...parts, ...names]);
}
function differences(all) {
  const rows = all.filter(row => !none(row.difference)).sort((a, b) => b.difference - a.difference);
  const width = 900, left = 230, line = 18, height = line * rows.length + 30, parts = [];
  if (!rows.length) return chart("differences", width, 20, [drawn("text", { x: 0, y: 14 }, "no method has a seed in common with the baseline")]);
  const far = lowest(all.filter(row => !none(row.score)).map(row => row.score));
  const near = rows.filter(row => row.score >= far), shown = near.length ? near : rows;
  const ends = shown.flatMap(row => [0, row.difference, row.these.low ?? 0, row.these.high ?? 0, data.margin, -data.margin]);
  const low = Math.min(...ends), high = Math.max(...ends);
  const x = value => left + (Math.max(low, Math.min(high, value)) - low) / (high - low || 1) * (width - left - 20);
  parts.push(drawn("rect", { x: x(-data.margin), width: x(data.margin) - x(-data.margin), y: 0, height: height - 24, class: "margin" }));
  for (const value of ticks(low, high)) parts.push(drawn("line", { x1: x(value), x2: x(value), y1: 0, y2: height - 24, class: value ? "grid" : "other" }), drawn("text", { x: x(value), y: height - 10, "text-anchor": "middle" }, signed(value)));
  rows.forEach((row, place) => {
    const y = line * (place + 0.5);
    parts.push(drawn("text", { x: left - 8, y: y + 3, "text-anchor": "end" }, row.method));
    for (const [found, kind] of [[row.these, " thick"], [row.new, ""]]) if (!none(found.low)) parts.push(drawn("line", { x1: x(found.low), x2: x(found.high), y1: y, y2: y, class: group(row) + kind }));
    parts.push(point(x(row.difference), y, row, ["ahead", "behind"].includes(row.these.word)));
  });
  chart("differences", width, height, parts);
}

// ---- everything together -----------------------------------------------------------------------------------------
function show() {
  $("task").value = state.task;
  for (const key of ["filter", ...Object.keys(LIMITS)]) if ($(key).value !== state[key]) $(key).value = state[key];
  const all = data.results.filter(row => row.task === state.task);
  const isWithin = row => Object.entries(LIMITS).every(([key, of]) => state[key] === "" || (row.score !== null && of(row) <= Number(state[key])));
  const rows = all.filter(row => isWithin(row) && (row.method === data.baseline || row.method.toLowerCase().includes(state.filter.toLowerCase())));
  $("counted").textContent = `${rows.length} of ${all.length} methods`;
  const [best] = rows.filter(row => !none(row.score)).sort((a, b) => b.score - a.score);
  $("best").textContent = best ? `Highest score here: ${best.method}, ${score(best)} %, ${kilo(best.bytes)} kB, ${whole(best.seconds)} s` : "Nothing that has finished is within these limits.";
  showTable(rows);
  pareto("bytes", "score_at_bytes", "kB of the adapter's file, with the head", rows, 1000);
  pareto("trained", "score", "trained parameters of the adapter", rows);
  differences(rows);
  toHash();
}
$("title").textContent = `${data.preset}: ${data.methods.length} methods on ${Object.keys(data.metrics).length} tasks`;
$("baseline").textContent = data.baseline;
$("margin").textContent = data.margin;
$("notes").append(...data.notes.map(note => element("li", note)));
for (const place of places) $("task").append(new Option(place in data.averages ? `${place}: mean of ${data.averages[place].length} tasks` : `${place}, ${data.metrics[place]}`, place));
for (const one of data.hypotheses) {
  const line = element("li", `${one.method} is ${one.expected} ${one.expected === "better" ? "than" : "to"} ${one.versus} on ${one.on}: `);
  const kinds = [["these", "on these tasks"], ["new", "on new ones"]].filter(([kind]) => one[kind].word);
  const found = kinds.map(([kind, on]) => `${on} ${one.held.includes(kind) ? "it holds" : "it does not hold"} (${said(one[kind])}, p ${probable(one[kind].p_holm)})`);
  line.append(element("b", found.join("; ") || "not tested"), none(one.difference) ? "" : `; difference ${signed(one.difference)}, errors ${errors(one)}`);
  $("hypotheses").append(line);
}
$("expected").hidden = !data.hypotheses.length;
for (const [name, values] of Object.entries(data.made)) $("made").append(element("dt", name), element("dd", values.join(name === "date" ? " to " : ", ")));
$("task").addEventListener("change", () => { state.task = $("task").value; show(); });
for (const key of ["filter", ...Object.keys(LIMITS)]) $(key).addEventListener("input", () => { state[key] = $(key).value; show(); });
$("controls").addEventListener("submit", event => event.preventDefault());
$("controls").addEventListener("reset", event => { event.preventDefault(); state = { ...INITIAL }; show(); });
addEventListener("hashchange", () => { state = fromHash(); show(); });
show();
document.documentElement.dataset.ready = "yes";
