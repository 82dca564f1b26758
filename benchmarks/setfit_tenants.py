"""SetFit (Tunstall et al. 2022) on the texts of the benchmark `tenant-heads`, with one model for all tenants.

It reads the texts that the methods of the benchmark read, and trains as the paper does (arXiv 2209.11055): one epoch
over pairs of texts, 20 of equal and 20 of different labels for each, then a logistic regression on the embeddings.
SetFit is installed by hand, since nothing else needs it.
"""

import importlib.util
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from pipeline.arena import plan, preset, task_tokens, unseen
from pipeline.arena.plan import TrainingRun
from pipeline.core import console
from pipeline.core.console import Parser, whole_number
from pipeline.core.errors import UserError, nearest
from pipeline.data import base_models
from pipeline.tasks.facts import Tenant
from pipeline.tasks.task import TENANT

PRESET = "tenant-heads"
METHOD = "tenants ignored"  # the method whose texts are read
RESULTS = Path("benchmarks/results/setfit.json")
PAIRS_PER_TEXT = 20  # of equal and of different labels, each: R in the paper
BATCH = 16  # pairs
SHOWN = 64  # texts at once, where only answers are asked for
DIGITS = 4


def main(arguments: Sequence[str] | None = None) -> None:
    """Train SetFit on a task with each seed, and write its accuracies.

    Raises:
        UserError: if SetFit is not installed, or there is no such task.
    """
    with _parser().parse(arguments, "stopped; seeds that are done are kept") as options:
        if importlib.util.find_spec("setfit") is None:
            raise UserError("setfit is needed: pip install setfit==1.2.0")
        cells = {cell.task: cell for cell in plan.cells(PRESET, preset.load(PRESET), [f": {METHOD}"])}
        if options.task not in cells:
            near = nearest(options.task, cells)
            raise UserError(f"{options.task}: no task of {PRESET}{near}; tasks: {', '.join(cells)}")
        cell = cells[options.task]
        for seed in options.seeds or cell.seeds:
            measured = measure(cell.training(plan.Multipliers(), seed))
            _keep(options.task, seed, measured)
            console.line(f"{options.task}, seed {seed}: accuracy {measured['accuracy']}")


def _keep(task: str, seed: int, measured: Mapping[str, Any]) -> None:
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    known.setdefault(task, {})[str(seed)] = measured
    RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _parser() -> Parser:
    parser = Parser(
        "python -m benchmarks.setfit_tenants",
        f"Train SetFit on the texts of a task of the benchmark {PRESET}, and write its accuracies to {RESULTS}. It "
        "needs setfit 1.2.0, which pip installs, and the files of the benchmark.",
    )
    parser.add_argument("task", metavar="TASK", help=f"task of {PRESET}, such as alike-20")
    seeds = "seeds of the training runs (default: those of the benchmark)"
    parser.add_argument("--seeds", type=whole_number(0, 2**32 - 1), nargs="+", metavar="N", help=seeds)
    return parser


def measure(training: TrainingRun) -> dict[str, Any]:
    """Return the accuracy of one seed: the mean over the tenants in training, and of each other tenant."""
    known = task_tokens.task_of(training).facts.tenants
    splits = task_tokens.splits(training)
    train = splits["train"]
    test = splits["test"]
    model = _train(training, texts_of(training, train), _labels_of(train, known))
    is_right = _find_right(model, training, test, _labels_of(test, known))
    by_tenant = pd.Series(is_right).groupby(np.array(test[TENANT])).mean()
    later = {}
    for name in training.unseen_tenants:
        own = task_tokens.splits(unseen.training_of(training, name))["test"]
        labels = unseen.labels_of(training, name)
        wanted = [labels[label] for label in own["label"]]
        accuracy = _find_right(model, training, own, wanted).mean()
        later[name] = round(float(accuracy), DIGITS)
    accuracy = float(by_tenant.mean())
    return {"accuracy": round(accuracy, DIGITS), "unseen": later}


def _labels_of(split: Dataset, known: Mapping[str, Tenant]) -> list[str]:
    """Return the label of each example by its name."""
    tenants = [tenant.labels or () for tenant in known.values()]
    pairs = zip(split[TENANT], split["label"], strict=True)
    return [tenants[tenant][label] for tenant, label in pairs]


def _find_right(model: Any, training: TrainingRun, split: Dataset, labels: list[str]) -> Any:
    """Return whether the answer to each example is its label."""
    answers = _answers(model, texts_of(training, split))
    return answers == np.array(labels)


def texts_of(training: TrainingRun, split: Dataset) -> list[str]:
    """Return the texts of a split as far as the methods of the benchmark read them."""
    tokenizer = base_models.load_tokenizer(training.view.base_model)
    return list(tokenizer.batch_decode([*split["input_ids"]], skip_special_tokens=True))


def _train(training: TrainingRun, texts: list[str], labels: list[str]) -> Any:
    from setfit import SetFitModel, Trainer, TrainingArguments

    folder, _ = base_models.source(training.view.base_model)
    model = SetFitModel.from_pretrained(folder, labels=sorted({*labels}))
    model.model_body.max_seq_length = training.view.tokenize.max_length
    with tempfile.TemporaryDirectory() as outputs:
        arguments = TrainingArguments(
            output_dir=outputs,
            batch_size=BATCH,
            num_epochs=1,
            num_iterations=PAIRS_PER_TEXT,
            seed=training.seed,
            report_to="none",
            save_strategy="no",
        )
        data = Dataset.from_dict({"text": texts, "label": labels})
        Trainer(model=model, args=arguments, train_dataset=data).train()
    return model


def _answers(model: Any, texts: list[str]) -> Any:
    return np.array(model.predict(texts, batch_size=SHOWN))


if __name__ == "__main__":
    main()
