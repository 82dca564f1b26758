"""`python -m pipeline.summary`: summarize the last run on one screen, with the next commands.

The stage evaluate prints it at its end. It reads reports/ and the facts next to the tokens, which are the
same after a run and after DVC has restored one.
"""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import tasks
from pipeline.core import artifacts, console, git
from pipeline.core.console import Parser, warn_without_identity
from pipeline.core.errors import UserError
from pipeline.hints import SHORT, hints
from pipeline.params import PARAMS, LsrParams, Params, load_entry, load_params
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.params.sections import TrainParams
from pipeline.params.yaml_file import by_dotted_key, parse_yaml, read_yaml
from pipeline.tasks import facts, reported
from pipeline.tasks.description import Description, Line
from pipeline.tasks.task import interval_of
from pipeline.tasks.verdicts import verdicts

WIDTH = 100  # characters
INDENT = 12  # characters
FEW = 3  # classes
MAX_CLASSES = 10  # limit to the classes whose scores are shown one by one
MAX_EDITS = 6  # limit to the changed keys of params.yaml that are shown
TEXTS = ("class", "tenant", "prompt", "said", "expected")  # columns of reports that are not numbers


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the summary."""
    parser = Parser(
        "python -m pipeline.summary",
        "Print the last run on one screen: scores with 95 % confidence intervals, sizes, warnings, and what to do "
        "next. The stage evaluate prints it as well.",
    )
    with parser.parse(arguments):
        params = load_params()
        entry = load_entry("data", params.data)
        metrics = _metrics(params)
        results = list(_results(params, entry, metrics))
        chosen = f"{params.adapter} on {params.model}, {params.data}, seed {params.seed}"
        console.line(f"\n{chosen}\n")
        for heading, result in results:
            console.line(_wrap_line(heading, result))
        for hint in hints(params, entry, metrics["steps"]):
            console.line(_wrap_line("hint", hint))
        classes = _table(artifacts.EVALUATE_CLASSES)
        if 0 < len(classes) <= MAX_CLASSES:
            console.table("the test split by class", list(classes), classes.itertuples(index=False))
        if artifacts.is_temporary_copy():
            return  # the next steps are about files that are gone when it is read
        _print_edits(_edits())
        for heading, command in _next(params, entry):
            console.line(f"{heading:{INDENT}}{command}".rstrip())
        warn_without_identity()


def _wrap_line(heading: str, text: str) -> str:
    return textwrap.fill(f"{heading:{INDENT}}{text}", WIDTH, subsequent_indent=" " * INDENT)


def _print_edits(edits: Sequence[str]) -> None:
    if not edits:
        return
    shown = ", ".join(edits[:MAX_EDITS])
    if len(edits) > MAX_EDITS:
        shown += f", and {len(edits) - MAX_EDITS} more"
    shown += f"; these stay in {PARAMS}, and later runs use them"
    console.line("\n" + _wrap_line("edited", shown))
    console.line(f"{'to undo':{INDENT}}git checkout HEAD {PARAMS}")


def _metrics(params: Params) -> dict[str, Any]:
    # Returns what the stages of the last run have measured.
    metrics = dict[str, Any]()
    for path in (artifacts.FACTORIZE_METRICS, artifacts.TRAIN_METRICS, artifacts.EVALUATE_METRICS):
        try:
            metrics |= artifacts.read_metrics(path)
        except FileNotFoundError:
            raise UserError(f"{path}: not found; run dvc repro first") from None
    data = metrics["data"]
    if data != params.data:
        raise UserError(f"{PARAMS}: data is {params.data}, but the last run read {data}; run dvc repro first")
    return metrics


def _results(params: Params, entry: DatasetEntry, metrics: Mapping[str, Any]) -> Iterator[Line]:
    description = _load_description(entry)
    for name in entry.metrics:
        low, high = interval_of(name, metrics)
        ends = "no interval: every resample scores the same"
        if low < high:
            ends = f"95 %: {low:.4g} to {high:.4g}"
        score = f"{metrics[name]:.4g}{description.of_class(name)}"
        baseline = metrics[f"{name}_baseline"]
        yield name, f"{score} ({ends}); {baseline:.4g} {description.baseline}"
    yield from verdicts(entry.metrics[0], metrics, description)
    yield from reported.describe(metrics, description.unit)
    yield from description.results(metrics, _table)
    classes = _table(artifacts.EVALUATE_CLASSES)
    is_silent = (classes["texts"] > 0) & (classes["answers"] == 0)
    silent = list(classes["class"][is_silent])
    if silent:
        more = " and others" if len(silent) > FEW else ""
        yield "unpredicted", f"{', '.join(silent[:FEW])}{more}, but test has such texts"
    adapter = f"{metrics['adapter_trained']:,} of the adapter"
    stored = f"{metrics['adapter_bytes']:,} in {artifacts.ADAPTER}"
    if metrics["head_parameters"]:  # a language model has none
        adapter += f" and {metrics['head_parameters']:,} of the head"
        stored += ", with the head"
    yield "parameters", f"{adapter} trained, {metrics['base_parameters']:,} frozen"
    yield "bytes", stored
    steps = f"{metrics['steps']:,} optimizer steps" if metrics["steps"] else "a regression"
    yield "training", f"{steps}, {metrics['read']:,} examples read"
    if metrics["start_batches"]:
        batches = f"{metrics['start_batches']:,} batches"
        yield "init", f"{batches}, {metrics['start_read']:,} examples read"
    if 0 < metrics["steps"] < SHORT:
        yield "short run", _advice(params.train)


def _load_description(entry: DatasetEntry) -> Description:
    return tasks.of(entry, facts.read(artifacts.TOKENS)).description


def _advice(train: TrainParams) -> str:
    more = "; try train.extend_epochs=auto" if train.extend_epochs == "none" else ""
    ended = ", unless train.patience ended it" if train.patience != "none" else ""
    return f"below {SHORT} steps{ended}, more epochs often change the ranking{more}"


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str), keep_default_na=False)


def _next(params: Params, entry: DatasetEntry) -> Iterator[Line]:
    other = "lsr" if params.adapter == "lora" else "lora"
    yield "", ""
    yield from _load_description(entry).commands(_table)
    if isinstance(params.sections[params.adapter], LsrParams):  # the others are PEFT's own as they are
        yield "export", f"lsr export {artifacts.ADAPTER} --to lora -o build/lora"
    yield "compare", f"dvc exp run -S adapter={other} && make experiments"
    yield "", ""
    yield "Git", "shows dvc.lock and reports/ as modified, because they are now those of this run."
    yield "to keep", f'git commit -am "Train {params.adapter} on {params.data}"'
    yield "to discard", "make undo"


def _edits() -> list[str]:
    """Return the values of params.yaml that differ from the last commit, each with both values."""
    committed = git.read_committed(PARAMS)
    if committed is None:
        return []
    before = _by_key(parse_yaml(committed, PARAMS))
    after = _by_key(read_yaml(PARAMS))
    edits = list[str]()
    for key in {**before, **after}:
        if before.get(key) != after.get(key):
            old = _value(before, key)
            new = _value(after, key)
            edits.append(f"{key} {old} -> {new}")
    return edits


def _by_key(params: dict[str, Any]) -> dict[str, Any]:
    values = dict[str, Any]()
    for key, value in params.items():
        values |= by_dotted_key(value, key)
    return values


def _value(values: dict[str, Any], key: str) -> str:
    if key not in values:
        return "none"
    return json.dumps(values[key], default=str).strip('"')


if __name__ == "__main__":
    main()
