
// The state of the page is in the URL's hash: a link shows what its sender saw.
const read = id => JSON.parse(document.getElementById(id).textContent);
const data = read("data"), libraries = read("libraries");
async function load(code) {
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const module = await import(url);
  URL.revokeObjectURL(url);
  return module;
}
const { default: DataTable } = await load(libraries.datatables);
await load(libraries.vega);

const $ = id => document.getElementById(id);
const adapters = [...new Set(data.results.map(row => row.adapter))].sort();
for (const word of adapters) $("adapter").append(new Option(word, word));
for (const id of ["first", "second"]) for (const name of data.methods) $(id).append(new Option(name, name));

const INITIAL = { task: data.tasks.length > 1 ? data.average : data.tasks[0], adapter: "", filter: "", sort: "score:desc", first: data.baseline, second: "", kind: "any" };
const FIELDS = ["task", "adapter", "filter", "first", "second", "kind"];

function fromHash() {
  const found = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const state = { ...INITIAL, ...Object.fromEntries(Object.entries(found).filter(([key]) => key in INITIAL)) };
  if (state.task !== data.average && !data.tasks.includes(state.task)) state.task = INITIAL.task;
  return state;
}
function toHash() {
  const changed = Object.entries(state).filter(([key, value]) => value !== INITIAL[key]);
  const hash = new URLSearchParams(changed).toString();
  if (hash !== location.hash.slice(1)) history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
}
let state = fromHash();

// ---- what is shown -----------------------------------------------------------------------------------------------
const rowsOf = task => data.results.filter(row => row.task === task);
function isShown(row) {
  if (data.always.includes(row.method)) return true;
  return (!state.adapter || row.adapter === state.adapter) && row.method.toLowerCase().includes(state.filter.toLowerCase());
}
// Learning rates, curves and examples are of a task: in place of the average the first one.
const oneTask = () => state.task === data.average ? data.tasks[0] : state.task;

// ---- tables ------------------------------------------------------------------------------------------------------
const escape = text => String(text).replace(/[&<>"']/g, sign => `&#${sign.charCodeAt(0)};`);
const fixed = (value, digits = 2) => value === null ? "–" : value.toFixed(digits);
const whole = value => value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en");
const signed = value => (value >= 0 ? "+" : "") + value.toFixed(2);
const by = (key, show, missing = -Infinity) => ({ data: key, defaultContent: "–", render: (value, kind, row) => kind === "display" || kind === "filter" ? show(value, row) : value ?? missing });
function number(title, key, show, missing) { return { title, name: key, ...by(key, show, missing) }; }

function score(value, row) {
  if (value === null) return `<span class="badge" title="${escape(row.reason)}">${escape(row.status)}</span>`;
  return fixed(value) + (row.score_high === null ? "" : " ± " + fixed(row.score_high - value));
}
function ahead(value, row) {
  if (row.method === data.baseline) return '<span class="badge base">baseline</span>';
  if (value === null) return "–";
  const range = row.difference_low === null ? "" : ` (${signed(row.difference_low)} to ${signed(row.difference_high)})`;
  return `<span class="${row.p_holm !== null && row.p_holm < 0.05 ? "yes" : ""}">${signed(value)}</span>${range}`;
}
const seeds = (value, row) => `${value} of ${row.trainings}` + (value < row.trainings ? ` <span class="badge" title="${escape(row.reason)}">${escape(row.status)}</span>` : "");
const edge = (value, row) => value === null ? "–" : Number(value.toPrecision(3)) + (row.rate_at_edge ? ' <span title="the lowest or highest that was tried: another may be better">(edge)</span>' : "");

const columns = [
  { title: "method", name: "method", data: "method", render: (value, kind) => kind === "display" ? `<button type="button" class="name" aria-expanded="false">${escape(value)}</button>` : value },
  number("score, %", "score", score),
  number("difference to " + escape(data.baseline), "difference", ahead),
  number("p (Holm)", "p_holm", value => value === null ? "–" : value < 0.0001 ? "< 0.0001" : fixed(value, 4), Infinity),
  number("trained", "trained", whole, Infinity),
  number("stored", "stored", whole, Infinity),
  number("file bytes", "file_bytes", whole, Infinity),
  number("seconds", "seconds", value => value === null ? "–" : value < 10 ? fixed(value, 1) : whole(value), Infinity),
  number("peak MB", "peak_bytes", value => value === null ? "–" : whole(value / 1e6), Infinity),
  number("seeds", "seeds", seeds),
  number("validation", "validation", value => fixed(value)),
  number("last epoch", "last_epoch", value => fixed(value)),
  number("best epoch on test (flatters)", "best_epoch_on_test", value => fixed(value)),
  number("it flatters by", "flattery", value => value === null ? "–" : signed(value)),
  number("learning rate", "rate", edge),
  { title: "what did not finish", name: "reason", data: "reason", className: "text long", render: (value, kind) => kind === "display" ? escape(value) : value },
];
const quiet = { paging: false, searching: false, info: false, autoWidth: false };
const places = Object.fromEntries(columns.map((column, place) => [column.name, place]));
function order() {
  const [name, direction] = state.sort.split(":");
  return name in places ? [[places[name], direction === "asc" ? "asc" : "desc"]] : [[places.score, "desc"]];
}
const table = new DataTable("#table", { ...quiet, columns, data: [], order: order() });
let restoring = false;
table.on("order", () => {
  const [[place, direction]] = table.order().length ? table.order() : [[places.score, "desc"]];
  if (!restoring) { state.sort = `${columns[place].name}:${direction}`; toHash(); }
});
$("table").addEventListener("click", event => {
  const button = event.target.closest(".name");
  if (!button) return;
  const row = table.row(button.closest("tr"));
  const open = row.child.isShown();
  if (open) row.child.hide(); else row.child(detail(row.data())).show();
  button.setAttribute("aria-expanded", String(!open));
});
function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}
function detail(row) {
  const box = element("div", "", "detail");
  const tasks = row.task === data.average ? data.tasks : [row.task];
  for (const task of tasks) {
    const found = data.details[task][row.method];
    if (!found) { box.append(element("div", `${task}: nobody has run it`)); continue; }
    const scores = Object.entries(found.scores).map(([seed, value]) => `seed ${seed}: ${fixed(value)}`).join(", ");
    box.append(element("div", `${task}: ${scores || "no score"}${found.reason ? "; " + found.reason : ""}`));
    if (tasks.length > 1 && task !== tasks[0]) continue;
    const line = element("pre", found.command), copy = element("button", "Copy the line", "copy");
    copy.type = "button";
    copy.addEventListener("click", () => navigator.clipboard.writeText(found.command).then(() => { copy.textContent = "Copied"; }));
    box.append(line, copy, element("pre", found.snippet));
  }
  return box;
}

const text = (title, key) => ({ title, data: key, className: "text", render: (value, kind) => kind === "display" ? escape(value ?? "") : value ?? "" });
new DataTable("#failures", {
  ...quiet, paging: data.unfinished.length > 50, pageLength: 50, data: data.unfinished, order: [],
  language: { emptyTable: "Every training finished." },
  columns: [text("task", "task"), text("method", "method"), number("learning rate", "rate", edge), number("of the head", "head_rate", edge), number("seed", "seed", whole), text("status", "status"), { ...text("reason", "reason"), className: "text long" }],
});
if (data.experiments.length) new DataTable("#experiments", {
  ...quiet, data: data.experiments, order: [[4, "desc"]],
  columns: [text("data", "data"), text("model", "model"), text("adapter", "adapter"), { ...text("differs in", "differs"), className: "text long" }, number("score, %", "score", (value, row) => fixed(value) + (row.score_high === null ? "" : " ± " + fixed(row.score_high - value))), text("seeds", "seeds"), number("trained", "adapter_trained", whole), number("stored", "adapter_stored", whole), number("bytes", "adapter_bytes", whole), { ...text("experiments", "experiments"), className: "text long" }],
});

// ---- charts ------------------------------------------------------------------------------------------------------
const views = {};
async function draw(name) {
  const place = $(name), spec = data.charts[name];
  if (!place) return;
  if (!spec) { place.replaceChildren(element("p", "There is nothing to draw: too few methods or tasks finished.", "empty")); return; }
  spec.params = signals(name).map(([key, value]) => ({ name: key, value }));
  spec.config.legend.columns = Math.max(2, Math.floor(place.clientWidth / 120));
  if (data.several.includes(name)) {
    spec.columns = Math.max(1, Math.floor(place.clientWidth / 250));
    spec.spec.width = Math.floor((place.clientWidth - 30) / spec.columns) - 62;
  }
  spec.config.axis.labelLimit = place.clientWidth > 700 ? 320 : 130;
  if (name in COUNTED) spec.height = height(name);
  const made = await window.vegaEmbed(place, spec, { actions: { export: true, source: false, compiled: false, editor: false }, downloadFileName: name, renderer: "svg", logLevel: 1 });
  views[name] = made.view;
}
// Charts with a line a method are as high as they need.
const COUNTED = { differences: row => row.difference !== null, ranks: row => data.ranked.includes(row.method) };
const height = name => data.height * Math.max(3, rowsOf(state.task).filter(isShown).filter(COUNTED[name]).length);
// What a chart shows: a task, and the methods that are not filtered out.
function signals(name) {
  const task = data.several.includes(name) ? oneTask() : state.task;
  return [["task", task], ["shown", rowsOf(task).filter(isShown).map(row => row.method)]];
}
async function feed(name) {
  const view = views[name];
  if (!view) return;
  for (const [key, value] of signals(name)) view.signal(key, value);
  if (name in COUNTED) view.height(height(name));
  await view.runAsync();
}

// ---- disagreements -----------------------------------------------------------------------------------------------
const examples = new DataTable("#examples", {
  ...quiet, searching: true, paging: true, pageLength: 10, data: [], order: [[1, "desc"]],
  language: { search: "Text has", emptyTable: "There is no such example." },
  columns: [{ ...text("text", "text"), className: "text long" }, number("differ by", "gap", value => fixed(value), 0), text("label", "label"), text("A says", "a"), text("B says", "b")],
});
function disagree() {
  const task = oneTask(), found = data.disagreements[task], names = data.names[task] ?? [];
  const a = found?.methods[state.first], b = found?.methods[state.second];
  examples.clear();
  if (!a || !b) {
    $("agreement").textContent = found ? "Choose two methods that finished on this task." : "The arena left no examples of this task, or nothing finished.";
    examples.draw();
    return;
  }
  const called = value => found.numbers ? String(value) : names[value] ?? `class ${value}`;
  const says = (one, place) => found.numbers ? String(one.answer[place]) : `${called(one.answer[place])} (right: ${Math.round(one.right[place] * one.seeds)} of ${one.seeds} seeds)`;
  const rows = found.shown.map(([number, first, second, label], place) => {
    // Positive where A is better: more seeds right, or a smaller error.
    const gap = found.numbers ? b.right[place] - a.right[place] : a.right[place] - b.right[place];
    return { text: second === null ? first : `${first} ‖ ${second}`, label: called(label), a: says(a, place), b: says(b, place), gap: Math.abs(gap), sign: Math.sign(gap) };
  }).filter(row => row.gap > 0 && (state.kind === "any" || row.sign === (state.kind === "first" ? 1 : -1)));
  const only = found.numbers ? "" : ` Most seeds of A are right and most of B are not on ${whole(found.counts[state.first][found.order.indexOf(state.second)])} of ${whole(found.examples)} examples; the other way round on ${whole(found.counts[state.second][found.order.indexOf(state.first)])}.`;
  const unit = found.numbers ? "error of the seeds' mean" : "share of seeds that are right";
  $("agreement").textContent = `A and B differ in the ${unit} on ${whole(rows.length)} of the ${whole(found.shown.length)} examples that the page holds: those on which all methods differ most.${only}`;
  examples.rows.add(rows).draw();
}

// ---- everything together -----------------------------------------------------------------------------------------
async function show() {
  for (const id of FIELDS) if ($(id).value !== state[id]) $(id).value = state[id];
  for (const place of document.querySelectorAll(".of-task")) place.textContent = oneTask();
  const all = rowsOf(state.task), shown = all.filter(isShown);
  $("counted").textContent = `${shown.length} of ${all.length} methods`;
  restoring = true;
  table.clear().rows.add(shown).order(order()).draw();
  restoring = false;
  disagree();
  toHash();
  await Promise.all(Object.keys(views).map(feed));
}
if (!state.second) {
  const others = rowsOf(oneTask()).filter(row => row.method !== data.baseline && row.score !== null).sort((x, y) => y.score - x.score);
  INITIAL.second = others.length ? others[0].method : data.baseline;
  state.second = INITIAL.second;
}
for (const id of FIELDS) $(id).addEventListener(id === "filter" ? "input" : "change", () => { state[id] = $(id).value; show(); });
$("controls").addEventListener("submit", event => event.preventDefault());
$("pair").addEventListener("submit", event => event.preventDefault());
$("controls").addEventListener("reset", event => { event.preventDefault(); state = { ...INITIAL, first: state.first, second: state.second, kind: state.kind }; show(); });
addEventListener("hashchange", () => { state = { ...fromHash() }; if (!state.second) state.second = INITIAL.second; show(); });
let width = document.body.clientWidth;
addEventListener("resize", () => { if (document.body.clientWidth !== width) { width = document.body.clientWidth; data.several.forEach(draw); } });

await show();
for (const name of ["pareto-trained", "pareto-file_bytes", "differences", "ranks", "rates", "curves"]) await draw(name);
document.documentElement.dataset.ready = "yes";
