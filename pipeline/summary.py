"""`python -m pipeline.summary`: the run in the workspace on one screen, and what can be done next.

The stage evaluate prints it at its end. It reads reports/, which are the same after a run and after DVC has restored
one.
"""

import json
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import tasks
from pipeline.core import artifacts, console, git
from pipeline.core.console import Parser, warn_without_identity
from pipeline.core.errors import UserError
from pipeline.params import PARAMS, LsrParams, Params, load_params, load_row
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.reading import by_dotted_key, parsed, read_yaml
from pipeline.tasks import CompletionTask, facts
from pipeline.tasks.classes import whose

WIDTH, INDENT = 88, 12  # characters
FEW = 3  # tenants at each end, or texts that were written
SHOWN = 80  # characters of these
MOST_CLASSES = 10  # whose scores are shown one by one
SHORT = 200  # optimizer steps
MOST_EDITS = 6  # of params.yaml that are shown
TEXTS = ("class", "tenant", "prompt", "said", "expected")  # columns of reports that are no numbers


def main(words: Sequence[str] | None = None) -> None:
    """Print the summary."""
    with Parser("python -m pipeline.summary", __doc__).parsed(words):
        params = load_params()
        row = load_row("data", params.data)
        results = list(_results(params, row))
        console.line(f"\n{params.adapter} on {params.model}, {params.data}, seed {params.seed}\n")
        for word, said in results:
            console.line(textwrap.fill(f"{word:{INDENT}}{said}", WIDTH, subsequent_indent=" " * INDENT))
        if 0 < len(classes := _table(artifacts.EVALUATE_CLASSES)) <= MOST_CLASSES:
            console.table("the test split by class", list(classes), classes.itertuples(index=False))
        if not artifacts.is_temporary_copy():  # which is gone when this is read
            if edits := _edits():
                more = f", and {len(edits) - MOST_EDITS} more" if len(edits) > MOST_EDITS else ""
                said = f"{', '.join(edits[:MOST_EDITS])}{more}; these stay in {PARAMS}, and later runs use them"
                lines = textwrap.fill(f"{'edited':{INDENT}}{said}", WIDTH, subsequent_indent=" " * INDENT)
                console.line(f"\n{lines}\n{'to undo':{INDENT}}git checkout HEAD {PARAMS}")
            for word, command in _next(params, row):
                console.line(f"{word:{INDENT}}{command}".rstrip())
            warn_without_identity()


def _results(params: Params, row: DatasetRow) -> Iterator[tuple[str, str]]:
    found = dict[str, Any]()
    for path in (artifacts.FACTORIZE_METRICS, artifacts.TRAIN_METRICS, artifacts.EVALUATE_METRICS):
        try:
            found |= artifacts.read_metrics(path)
        except FileNotFoundError:
            raise UserError(f"{path}: not found; run dvc repro first") from None
    if found["data"] != params.data:
        raise UserError(f"{PARAMS}: data is {params.data}, but the last run read {found['data']}; run dvc repro first")
    task = tasks.of(row, facts.read(artifacts.TOKENS))
    for name in row.metrics:
        constant = f"{found[f'{name}_baseline']:.4g} {task.baseline}"
        low, high = found[f"{name}_low"], found[f"{name}_high"]
        ends = f"95 % interval {low:.4g} to {high:.4g}" if low < high else "no interval: every resample scores the same"
        yield name, f"{found[name]:.4g}{whose(name, task)}, {ends}; {constant}"
    if isinstance(task, CompletionTask):
        yield "loss", f"{found['loss']:.4g} per token of a completion; {found['loss_baseline']:.4g} {task.baseline}"
        for one in _table(artifacts.EVALUATE_PREDICTIONS)[:FEW].itertuples():
            prompt, said, expected = (textwrap.shorten(text, SHOWN) for text in (one.prompt, one.said, one.expected))
            yield "e.g.", f"{prompt} -> {said}" + (f" (expected: {expected})" if one.right == "no" else "")
    if row.tenant is not None:
        scored = sorted(_table(artifacts.EVALUATE_TENANTS)[["score", "tenant"]].itertuples(index=False))
        few = max(1, min(FEW, len(scored) // 2))
        for word, its in {"best": scored[: -few - 1 : -1], "worst": scored[:few]}.items():
            yield word, ", ".join(f"{name} {score:.4g}" for score, name in its)
        each = found["bank_bytes"] / found["tenants"]
        yield "tenants", f"{found['tenants']:,}, {each:,.0f} bytes each in {artifacts.BANK}"
    classes = _table(artifacts.EVALUATE_CLASSES)
    if silent := list(classes["class"][(classes["texts"] > 0) & (classes["answers"] == 0)]):
        yield "never said", f"{', '.join(silent[:FEW])}{' and others' * (len(silent) > FEW)}, but test has such texts"
    trained = f"{found['adapter_trained']:,} of the adapter and {found['head_parameters']:,} of the head trained"
    yield "parameters", f"{trained}, {found['base_parameters']:,} frozen"
    yield "bytes", f"{found['adapter_bytes']:,} in {artifacts.ADAPTER}, with the head"
    yield "training", f"{found['steps']:,} optimizer steps, {found['read']:,} examples read"
    if found["start_batches"]:
        yield "its start", f"{found['start_batches']:,} batches, {found['start_read']:,} examples read"
    if found["steps"] < SHORT:
        more = ", or train.steps: auto," if params.train.steps == "epochs" else ""
        ended = ", unless train.patience ended it" * (params.train.patience != "none")
        said = f"below {SHORT} steps{ended}, more of train.epochs{more} often changes which method is best."
        yield "", f"This is a short run: {said}"


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str), keep_default_na=False)


def _next(params: Params, row: DatasetRow) -> Iterator[tuple[str, str]]:
    texts = " ".join(['"A text of yours."', '"Another one."'][: len(tasks.of(row).columns)])
    other = "lsr" if params.adapter == "lora" else "lora"
    yield "", ""
    if row.tenant is not None:
        name = shlex.quote(_table(artifacts.EVALUATE_TENANTS)["tenant"][0])
        yield "predict", f"python -m pipeline.predict --tenant {name} {texts}"
        yield "serve", f"lsr serve {artifacts.BANK}"
    else:
        yield "predict", f"python -m pipeline.predict {texts}"
    if isinstance(params.sections[params.adapter], LsrParams):  # the others are PEFT's own as they are
        yield "export", f"lsr export {artifacts.ADAPTER} --to lora -o build/lora"
    yield "compare", f"dvc exp run -S adapter={other} && make experiments"
    yield "", ""
    yield "Git", "shows dvc.lock and reports/ as modified, because they are now those of this run."
    yield "to keep", f'git commit -am "Train {params.adapter} on {params.data}"'
    yield "to go back", "make undo"


def _edits() -> list[str]:
    """Return the values of params.yaml that differ from those of the last commit, each with both."""
    committed = git.committed(PARAMS)
    if committed is None:
        return []
    before = _by_key(parsed(committed, PARAMS))
    after = _by_key(read_yaml(PARAMS))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [f"{key} {_value(before, key)} -> {_value(after, key)}" for key in keys]


def _by_key(params: dict[str, Any]) -> dict[str, Any]:
    values = dict[str, Any]()
    for key, value in params.items():
        values |= by_dotted_key(value, key)
    return values


def _value(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key], default=str).strip('"') if key in values else "none"


if __name__ == "__main__":
    main()
