"""`python -m pipeline.score mrpc artifacts/adapter build/small`: score adapters on the test split of a data set.

It measures the cost of quantizing or compressing an adapter, or of ONNX graphs in float32 and 8 bits. Adapters may be
of any method, on any base model.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lsr.tuner.files import weights_of
from lsr_onnx.folder import GRAPHS, has_graphs
from pipeline import evaluation, previous, tasks
from pipeline.core import artifacts, console
from pipeline.core.console import Parser, whole_number
from pipeline.core.errors import UserError
from pipeline.data.datasets import Examples, load
from pipeline.methods import adapter_task
from pipeline.methods.adapter_task import AdapterTask
from pipeline.params import load_entry, load_params
from pipeline.predict import graphs
from pipeline.predict.answering import Opened
from pipeline.tasks import Task
from pipeline.tasks.encoding import BATCH
from pipeline.tasks.task import interval_of


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table with one row per adapter.

    Raises:
        UserError: if the task type cannot be scored this way.
    """
    parser = _parser()
    with parser.parse(arguments, before=f"{parser.prog}: ") as options:
        entry = load_entry("data", options.data)
        elsewhere = tasks.of(entry).description.scored_by
        if elsewhere:
            raise UserError(f"{entry.where}: {options.data}: {elsewhere}")
        loaded = load(entry, options.data)
        test = loaded.splits["test"]
        rows = []
        for folder in options.adapters:
            if has_graphs(folder):
                rows += _scores_of_graphs(folder, loaded.task, test, options)
            else:
                scores = _scores(folder, loaded.task, test, options)
                rows.append([str(folder), *scores])
        columns = ("adapter", "bytes", *entry.metrics, "95 % interval", "examples")
        console.table(f"{options.data}, test split", columns, rows)


def _parser() -> Parser:
    parser = Parser(
        "python -m pipeline.score",
        "Print the scores of adapters on the test split of a data set, with 95 % confidence intervals, for example to "
        "see the cost of quantization, compression or ONNX. The adapters may use any PEFT method and any base model.",
    )
    add = parser.add_argument
    add("data", metavar="DATA", help="name of a data set, as in params.yaml")
    add(
        "adapters",
        nargs="+",
        type=Path,
        metavar="ADAPTER",
        help="folders of adapters, or of ONNX graphs from `lsr export --to onnx`",
    )
    add("--base", metavar="FOLDER_OR_HUB_ID", help="base model (default: the one that each adapter names)")
    size = "texts per batch (default: %(default)s)"
    add("--batch-size", type=whole_number(1, 10**6), default=32, metavar="N", help=size)
    return parser


def _scores(
    folder: Path,
    task: Task,
    texts: Examples,
    options: argparse.Namespace,
) -> list[str]:
    """Return an adapter's size, its metrics on texts, the interval of the first one, and the number of examples.

    Raises:
        UserError: if the adapter is for other labels or texts.
    """
    identity = artifacts.identity(folder)
    previous.print_note_of(folder)
    own = adapter_task.read(folder)
    _check_answers(folder, own, task, options.data)
    opened = Opened(folder, options.base, own, options.batch_size)
    artifacts.check_not_replaced(folder, identity)
    outputs = _outputs(str(folder), opened.outputs, texts)
    size = weights_of(folder).stat().st_size
    return [f"{size:,}", *_metrics(outputs, task.with_fitted(thresholds=own.tuned_thresholds), texts)]


def _scores_of_graphs(
    folder: Path,
    task: Task,
    texts: Examples,
    options: argparse.Namespace,
) -> list[list[str]]:
    """Yield the path of each graph in a folder, with its results as from `_scores`.

    Raises:
        UserError: if --base is given, or the graphs are for other labels or texts.
    """
    if options.base is not None:
        raise UserError(f"--base: has no effect on {folder}, which holds graphs")
    for runtime in GRAPHS:
        graphs.check_runtime(folder, runtime)
    own = graphs.read_task(folder)
    _check_answers(folder, own, task, options.data)
    task = task.with_fitted(thresholds=own.tuned_thresholds)
    rows = []
    for runtime, name in GRAPHS.items():
        opened = graphs.OpenedGraph(folder, own, runtime, options.batch_size)
        path = folder / name
        outputs = _outputs(str(path), opened.outputs, texts)
        metrics = _metrics(outputs, task, texts)
        rows.append([str(path), f"{path.stat().st_size:,}", *metrics])
    return rows


def _check_answers(folder: Path, own: AdapterTask, task: Task, data: str) -> None:
    """Check that an adapter has the task of a data set.

    Raises:
        UserError: if not; names both tasks.
    """
    wanted = AdapterTask.of(task, own.max_length)
    if _answers(own) != _answers(wanted):
        answer = f"{_labels(own)} of {' and '.join(own.columns)}"
        raise UserError(f"{folder}: predicts {answer}, but {data} has {_labels(wanted)}")


def _metrics(outputs: Tensor, task: Task, texts: Examples) -> list[str]:
    """Return the metrics of outputs, the interval of the first, and the number of examples."""
    outcome = evaluation.outcome(outputs, texts)
    metrics = task.scoring.metrics(outcome, load_params().evaluate.resamples)
    names = task.entry.metrics
    scores = [f"{metrics[name]:.4f}" for name in names]
    low, high = interval_of(names[0], metrics)
    examples = int(metrics["examples"])
    return [*scores, f"{low:.4f} to {high:.4f}", f"{examples:,}"]


def _outputs(name: str, answer: Callable[..., tuple[Any, int]], texts: Examples) -> Tensor:
    """Collect a function's outputs for all texts, batch by batch, and the number of truncated ones."""
    parts = []
    first = 1
    with console.progress(name, len(texts), "texts", console.errors) as advance:
        for batch in texts.batches(BATCH):
            rows = range(first, first + len(batch))
            outputs, _ = answer(batch, rows, advance)
            parts.append(torch.as_tensor(outputs))
            first += len(batch)
    return torch.cat(parts)


def _answers(task: AdapterTask) -> tuple[object, ...]:  # equal where adapters answer the same question
    return task.kind, task.labels, len(task.columns)


def _labels(task: AdapterTask) -> str:
    if task.tenants is not None:
        return f"the labels of {len(task.tenants):,} tenants"
    return " ".join(task.labels or [f"a {task.kind}"])


if __name__ == "__main__":
    main()
