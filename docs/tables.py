"""Fill the tables in README and documentation, from the committed reports and from the code: `python -m docs.tables`.

Between `<!-- figures: NAME -->`, or `<!-- table: NAME -->`, and `<!-- end -->`, a page has the table of that NAME in
TABLES.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

from pydantic import BaseModel
from scipy import stats

from docs import commands, definitions, messages, picture
from docs.markdown import table
from docs.picture import Result
from pipeline.arena import record as arena_records
from pipeline.core.console import Parser
from pipeline.params import labels, sources
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.params.sources import ModelEntry
from pipeline.params.yaml_file import read_yaml

ROOT = Path(__file__).parent.parent
RESULTS = ("sentiment", "other-tasks", "larger-encoder", "tenants", "generation", "robustness")  # pages
REFERENCE = ("params", "commands", "messages", "server", "api")  # pages
PAGES = (
    "README.md",
    "docs/explanation/results.md",
    "docs/explanation/cost.md",
    *(f"docs/reference/results/{page}.md" for page in RESULTS),
    *(f"docs/reference/{page}.md" for page in REFERENCE),
)
PLACE = re.compile(
    r"(?P<begin><!-- (?P<kind>figures|table): (?P<name>[\w ,]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)
PICTURE = "docs/methods.svg"
SPEED = "benchmarks/results/speed.json"
UNSEEN_DOMAINS = "benchmarks/results/unseen_domains.json"
NAMES_OF_HEADS = {"shared": "tenants ignored", "auto": "shared head with deviations"}
SETFIT = "benchmarks/results/setfit.json"
SETFIT_NAME = "SetFit, tenants ignored"
MEAN = "sentiment"  # the average of the preset offline
TIMED_TASK = "amazon-reviews"  # all training runs of the picture's methods on it ran on one idle machine
HEADS = "tenant-heads"  # the preset that compares ways to share a head
TENANTS = 8  # of each task of the preset tenants
JUDGED = ("Δ, these tasks", "Δ, new tasks")  # with 95 % intervals
LEADERS = ("method", "trained", "file, kB", "CPU s", "accuracy, %", "Δ vs LoRA r = 1, these tasks", "Δ, new tasks")
FIRST_SCREEN = ("LSR, 200 directions", "LSR, shared A and B", "LoRA r = 1", "full fine-tuning", "no adapter")


def main() -> None:
    """Fill the tables of all pages, and draw the picture."""
    for name in (*PAGES, PICTURE):
        (ROOT / name).write_text(made(name), encoding="utf-8")


def made(name: str) -> str:
    """Return a page with its tables made anew, or the picture."""
    if name == PICTURE:
        rows = {method: row for (task, method), row in results("offline").items() if task == MEAN}
        return picture.drawn(rows, _comparison("offline")["margin"])
    return filled((ROOT / name).read_text(encoding="utf-8"))


def filled(text: str) -> str:
    """Return the text of a page with its tables made anew.

    Raises:
        KeyError: if there is no such table.
    """
    return PLACE.sub(_filled_place, text)


def _filled_place(place: re.Match[str]) -> str:
    lines = "\n".join(TABLES[place["name"]]()).strip()
    blank = "\n" if place["kind"] == "table" else ""  # it may begin with a heading
    return f"{place['begin']}{blank}{lines}\n{blank}{place['end']}"


def default_run() -> Iterator[str]:
    """Yield the scores of the default run, fractions."""
    found = json.loads(read("reports/evaluate/metrics.json"))
    metrics = found | found["details"][0]
    header = ("test split", "score", f"95 % interval over its {metrics['examples']:,} examples")
    rows = [
        (name, f"{metrics[name]:.3f}", f"{metrics[f'{name}_low']:.3f} to {metrics[f'{name}_high']:.3f}")
        for name in ("accuracy", "f1")
    ]
    return table(header, rows)


def lora_steps() -> Iterator[str]:
    """Yield how many times as fast as PEFT's the same LoRA trains in LSR's layer, and how far their losses differ."""
    figures = json.loads(read(SPEED))["lora"]["figures"]
    cases: dict[tuple[str, ...], dict[str, Result]] = {}
    for row in figures:
        cases.setdefault((row["model"], row["targets"], str(row["rank"])), {})[row["dtype"]] = row
    dtypes = list(dict.fromkeys(row["dtype"] for row in figures))
    header = ("model", "adapted", "r", *dtypes, *(f"max. loss difference, {dtype}" for dtype in dtypes))
    rows = [
        [*case, *(f"{its[name]['speed_to_peft']:.2f}" for name in dtypes)]
        + [f"{its[name]['largest_difference']:.0e}" for name in dtypes]
        for case, its in cases.items()
    ]
    return table(header, rows)


def many() -> Iterator[str]:
    """Yield the milliseconds of a batch in which so many adapters have rows, or one adapter has all."""
    rows = json.loads(read(SPEED))["many"]["figures"]
    times = {(row["method"], row["tokens"], row["adapters"]): f"{1000 * row['seconds']:.0f}" for row in rows}
    counts = list(dict.fromkeys(row["adapters"] for row in rows))
    lengths = sorted({tokens for _, tokens, _ in times}, reverse=True)
    methods = list(dict.fromkeys(method for method, *_ in times))
    return table(
        ("ms per batch of 64 rows", "tokens", *(f"{count:,} adapters" for count in counts)),
        [
            [method, str(tokens), *(times[method, tokens, count] for count in counts)]
            for tokens in lengths
            for method in methods
        ],
    )


def load() -> Iterator[str]:
    """Yield the seconds in which a bank is loaded from its file, and what checksums take of them."""
    header = ("adapters", "form", "file, MB", "load, s", "of which checksums, s", "checksums, s per GB")
    rows = [
        [f"{row['adapters']:,}", row["method"], f"{1000 * row['gigabytes']:.0f}"]
        + [f"{row[name]:.2f}" for name in ("load_seconds", "checksum_seconds", "checksum_seconds_per_gigabyte")]
        for row in json.loads(read(SPEED))["load"]["figures"]
    ]
    return table(header, rows)


def serve() -> Iterator[str]:
    """Yield how many texts a second the server answers, and its bank alone."""
    (row,) = json.loads(read(SPEED))["serve"]["figures"]
    header = ("tenants", "clients", "texts/s", "bank alone, texts/s", "ratio", "median, s", "p99, s")
    rates = [f"{row[name]:.0f}" for name in ("server_per_second", "bank_per_second")]
    seconds = [f"{row[name]:.2f}" for name in ("share", "median_seconds", "p99_seconds")]
    return table(header, [[str(row["tenants"]), str(row["clients"]), *rates, *seconds]])


def writing() -> Iterator[str]:
    """Yield how many tokens a second a language model learns and writes with each method, and the memory it takes."""
    kinds = {"train": "training", "write": "generation"}
    rows = [
        [f"{kinds[row['what']]}, {row['dtype']}", row["method"], f"{row['tokens_per_second']:.0f}"]
        + [f"{row[name]:.2f}" for name in ("to LoRA r = 8", "to no adapter")]
        + [f"{row['peak'] / 1e9:.1f}"]
        for row in json.loads(read(SPEED))["generate"]["figures"]
    ]
    return table(("", "method", "tokens/s", "relative to LoRA", "to no adapter", "peak, GB"), rows)


def leaders() -> Iterator[str]:
    """Yield sizes, seconds and scores of the methods of the picture."""
    return table(LEADERS, [row for _, row in _leaders()])


def first_screen() -> Iterator[str]:
    """Yield what someone in a hurry compares: some of these methods."""
    return table(LEADERS, [row for shown, row in _leaders() if shown in FIRST_SCREEN])


def _leaders() -> Iterator[tuple[str, list[str]]]:
    by_task, seconds = results("offline"), _seconds("offline")
    for shown, method in picture.METHODS.items():
        row = by_task[MEAN, method]
        size = f"{_kilobytes(row):,.1f}"
        yield shown, [shown, f"{row['trained']:,}", size, seconds[method], _scored(row), *_judged(row)]


def _seconds(preset: str) -> Mapping[str, str]:
    """Return the processor time of a training by method of the picture, its short run included."""
    taken = defaultdict(list)
    for record in arena_records.read(ROOT / arena_records.FOLDER / preset).values():
        if record.task == TIMED_TASK and record.method in picture.METHODS.values():
            taken[record.method].append(record.seconds.get("start", 0) + record.seconds["train"])
    return {method: f"{median(every):.0f}" for method, every in taken.items()}


def verdicts(preset: str) -> Iterator[str]:
    """Yield sizes, scores and verdicts of a preset on the mean of its tasks."""
    mean = _mean(preset)
    rows = []
    for (task, method), row in results(preset).items():
        if task == mean and row["score"] is not None:
            size = f"{_kilobytes(row):,.1f} ({row['precision']})"
            rows.append((method, *_sizes(row), size, _scored(row), *_judged(row)))
    return table(("method", "trained", "stored", "file, kB", "score, %", *JUDGED), rows)


def _judged(row: Result) -> tuple[str, str]:
    new = row["new"]
    return _difference(row, "these"), _interval(new, new["word"])


def _difference(row: Result, kind: str) -> str:
    """Return a difference with its interval, and the word that is said of it."""
    if row["difference"] is None:
        return "–"
    word = f", {row[kind]['word']}" if row[kind]["word"] else ""
    return f"{row['difference']:+.1f} ({_interval(row[kind])}){word}"


def _interval(said: Result, word: str | None = None) -> str:
    if said["low"] is None:
        return "–"
    return f"{said['low']:+.1f} to {said['high']:+.1f}" + (f", {word}" if word else "")


def hypotheses(preset: str) -> Iterator[str]:
    """Yield what a preset expected before its training runs, and the verdicts."""
    found = _comparison(preset)["hypotheses"]
    keys = ["method", "expected", "versus", *(["on"] if len({one["on"] for one in found}) > 1 else [])]
    rows = [
        [*(one[key] for key in keys), *(_judged(one) if one["these"]["word"] else ("not tested yet", "–"))]
        for one in found
    ]
    return table([*("vs" if key == "versus" else key for key in keys), *JUDGED], rows)


def tenants() -> Iterator[str]:
    """Yield what methods of the preset take for a tenant and for all in float32, at most, and scores by task."""
    records = arena_records.read(ROOT / arena_records.FOLDER / "tenants").values()
    largest = {one.method: one for one in sorted(records, key=lambda one: one.file_bytes)}
    by_task = results("tenants")
    tasks = _by_size(task for task, _ in by_task)
    rows = []
    for method, one in largest.items():
        each = one.tenant_bytes or one.file_bytes // TENANTS  # of a regression
        sizes = each / 1000, max(0, one.file_bytes - TENANTS * each) / 1000
        rows.append(
            [method, *(f"{size:,.1f}" for size in sizes), *(_mean_score(by_task[task, method]) for task in tasks)]
        )
    return table(("method", "kB per tenant", "kB shared", *tasks), rows)


def differences() -> Iterator[str]:
    """Yield the differences of methods of the preset from its baseline by task, with intervals over tenants."""
    by_task, baseline = results("tenants"), _comparison("tenants")["baseline"]
    tasks, methods = _by_size(task for task, _ in by_task), dict.fromkeys(method for _, method in by_task)
    rows = [
        [method, *(_difference(by_task[task, method], "new") for task in tasks)]
        for method in methods
        if method != baseline
    ]
    return table(("method", *tasks), rows)


def heads() -> Iterator[str]:
    """Yield the scores of ways to share a head by task, each with the number of epochs that was chosen."""
    known = _results_so_far()
    if not known:
        return iter(["No row of this table has been run yet."])
    chosen = read_yaml(ROOT / "pipeline/arena.yaml")[HEADS]
    rows = []
    for method in chosen["methods"]:
        cells = [_with_epochs(known.get((task, method))) for task in chosen["tasks"]]
        rows.append([method, *cells])
    of_setfit = _read_setfit()
    rows.append([SETFIT_NAME, *(_setfit_score(of_setfit.get(task)) for task in chosen["tasks"])])
    return table(("method", *chosen["tasks"]), rows)


def _read_setfit() -> dict[str, Any]:
    path = ROOT / SETFIT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _setfit_score(by_seed: Mapping[str, Any] | None) -> str:
    if not by_seed:
        return "–"
    return f"{_mean_of_samples(one['accuracy'] for one in by_seed.values())} (1)"


def _mean_of_samples(accuracies: Iterable[float]) -> str:
    """Return a mean in percent with half of its 95 % interval, by Student's t, which one seed does not have."""
    values = [100 * accuracy for accuracy in accuracies]
    if len(values) < 2:
        return f"{values[0]:.1f}, one seed"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{mean(values):.1f} ± {half:.1f}"


def _results_so_far() -> dict[tuple[str, str], Result]:
    path = ROOT / f"reports/compare/{HEADS}/comparison.json"
    return results(HEADS) if path.exists() else {}


def _with_epochs(row: Result | None) -> str:
    if row is None or row["score"] is None:
        return "–"
    return f"{_scored(row)} ({row['epochs']})" if "epochs" in row else f"{row['score']:.1f}"


def later() -> Iterator[str]:
    """Yield the scores on tenants without texts in training by their number of labels, for each task of training."""
    scored = {place: row["unseen"] for place, row in _results_so_far().items() if "unseen" in row}
    if not scored:
        return iter(["No model has been scored on them yet."])
    counts = sorted({int(count) for unseen in scored.values() for count in unseen})
    rows = []
    for (task, method), unseen in scored.items():
        cells = [_scored(unseen[str(count)]) for count in counts]
        rows.append([task, method, *cells])
    for task, by_seed in _read_setfit().items():
        without_labels = _mean_of_samples(mean(one["unseen"].values()) for one in by_seed.values())
        rows.append([task, SETFIT_NAME, without_labels, *("–" for _ in counts[1:])])
    return table(("trained on", "method", *(f"{count} labels" for count in counts)), rows)


def unseen_domains() -> Iterator[str]:
    """Yield the accuracies on domains without texts in training, by their number of labels."""
    path = ROOT / UNSEEN_DOMAINS
    if not path.exists():
        return iter(["No pair of domains has been scored yet."])
    by_head = json.loads(path.read_text(encoding="utf-8"))
    counts = sorted(by_head["auto"]["0"]["unseen-0"]["model"], key=int)
    rows = []
    for head, name in NAMES_OF_HEADS.items():
        rows.append([name, *_cells_of_pairs(by_head[head], "model", counts)])
    rows.append(["regression, own", *_cells_of_pairs(by_head["auto"], "regression", counts)])
    return table(("method", *(f"{count} labels" for count in counts)), rows)


def _cells_of_pairs(by_seed: Mapping[str, Any], method: str, counts: Iterable[str]) -> Iterator[str]:
    """Yield a cell per number of labels: the mean over pairs of domains, whose scores are means over seeds."""
    for count in counts:
        by_pair = defaultdict[str, list[float]](list)
        for scores_of_pairs in by_seed.values():
            for pair, by_method in scores_of_pairs.items():
                if count in by_method[method]:
                    by_pair[pair].append(by_method[method][count])
        yield _mean_of_samples(map(mean, by_pair.values())) if by_pair else "–"


def completions() -> Iterator[str]:
    """Yield scores in percent, and losses per token, of methods of the preset `generate` that have some, by task."""
    by_task = results("generate")
    tasks = [task for task in dict.fromkeys(task for task, _ in by_task) if "loss" in by_task[task, "base alone"]]
    header = ("method", "trained", *(name for task in tasks for name in (task, "loss")))
    rows = []
    for method in dict.fromkeys(method for _, method in by_task):
        its = [by_task[task, method] for task in tasks]
        if any("loss" in row for row in its):
            cells = [cell for row in its for cell in (_mean_score(row), f"{row['loss']:.2f}" if "loss" in row else "–")]
            rows.append([method, f"{max(row['trained'] or 0 for row in its):,}", *cells])
    return table(header, rows)


def _by_size(tasks: Iterable[str]) -> list[str]:
    return sorted({*tasks}, key=lambda task: (len(task), task))


def _mean_score(row: Result) -> str:
    return "–" if row["score"] is None else f"{row['score']:.1f}"


def scores(preset: str) -> Iterator[str]:
    """Yield the scores of all methods of a preset by task, in percent."""
    by_task, mean = results(preset), _mean(preset)
    columns = list(dict.fromkeys(task for task, _ in by_task))
    rows = [
        [method, _sizes(by_task[mean, method])[0], *(_scored(by_task[task, method]) for task in columns)]
        for method in dict.fromkeys(method for _, method in by_task)
    ]
    return table(("method", "trained", *("mean" if task == mean else task for task in columns)), rows)


def _mean(preset: str) -> str:
    return list(results(preset))[-1][0]  # the main average is the last


def results(preset: str) -> dict[tuple[str, str], Result]:
    """Return the committed comparison of a preset by task and method, smallest method first."""
    return {(row["task"], row["method"]): row for row in _comparison(preset)["results"]}


def _comparison(preset: str) -> dict[str, Any]:
    return json.loads(read(f"reports/compare/{preset}/comparison.json"))


def read(path: str) -> str:
    """Return the text of a report, or of another file that a table is made from."""
    return (ROOT / path).read_text(encoding="utf-8")


def of_text(make: Callable[[str], Iterator[str]], path: str) -> Callable[[], Iterator[str]]:
    """Return a function that makes a table of the text that a file has when it is called."""
    return lambda: make(read(path))


def _sizes(row: Result) -> tuple[str, str]:
    return f"{row['trained']:,}", f"{row['stored']:,}"


def _kilobytes(row: Result) -> float:
    return row["bytes"] / 1000


def _scored(row: Result) -> str:
    """Return the mean with half of its 95 % interval; a dash if fewer than two seeds have run."""
    return "–" if row["score_high"] is None else f"{row['score']:.1f} ± {row['score_high'] - row['score']:.1f}"


INSIDE_DATASET_ENTRY: Mapping[str, type[BaseModel]] = {
    "`source`: files or the Hub": sources.TableSource,
    "`source`: a package": sources.PackageSource,
    "`label`: classes": labels.Classes,
    "`label`: classes by a threshold": labels.Threshold,
    "`label`: multi-label": labels.MultiLabel,
    "`label`: a number": labels.Number,
    "`label`: a completion": labels.Completion,
    "`label`: a conversation": labels.Conversation,
    "`span`, each": sources.MarkedSpan,
    "`pairs`": labels.Pairs,
}
INSIDE_MODEL_ENTRY: Mapping[str, type[BaseModel]] = {
    "`source`: the Hub": sources.HubModel,
    "`source`: a package": sources.PackageModel,
    "`archive` of a package": sources.Archive,
    "`source`: a GGUF file": sources.GgufModel,
}
TABLES: Mapping[str, Callable[[], Iterator[str]]] = {
    "default run": default_run,
    "LoRA steps": lora_steps,
    "many": many,
    "load": load,
    "serve": serve,
    "writing": writing,
    "tenants": tenants,
    "differences of tenants": differences,
    "hypotheses of tenants": partial(hypotheses, "tenants"),
    "heads": heads,
    "later tenants": later,
    "unseen domains": unseen_domains,
    "completions": completions,
    "hypotheses of completions": partial(hypotheses, "generate"),
    "first screen": first_screen,
    "leaders": leaders,
    **{
        f"{name} of {preset}": partial(table_of, preset)
        for preset in ("offline", "kinds", "base")
        for name, table_of in {"verdicts": verdicts, "hypotheses": hypotheses, "scores": scores}.items()
    },
    "configuration": definitions.configuration,
    "params": of_text(definitions.params, "params.yaml"),
    "dataset_entry": partial(definitions.keys_of, DatasetEntry, DatasetEntry.model_fields),
    "inside dataset_entry": partial(definitions.keys_inside, INSIDE_DATASET_ENTRY),
    "model_row": partial(definitions.keys_of, ModelEntry, ModelEntry.model_fields),
    "inside model_row": partial(definitions.keys_inside, INSIDE_MODEL_ENTRY),
    "commands": of_text(commands.commands, "Makefile"),
    "messages": messages.messages,
    "routes": of_text(definitions.routes, "lsr_server/openapi.json"),
}


if __name__ == "__main__":
    about = (
        "Fill the tables of README.md and docs/ from the committed reports and from the code, and draw the figure "
        "of methods. Run it after changes of parameters, options or reports."
    )
    with Parser("python -m docs.tables", about).parse():
        main()
