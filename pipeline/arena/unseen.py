"""Score tenants that are added later: none of their texts is in training, and few or none have a label.

Without labels, a tenant is answered by its group, which are the tenants of training with the same labels. With a few,
the rows of the head are fitted as by `lsr bank --fit`. Regressions on the frozen encoder answer by the mean of the
group's log-probabilities, or are fitted to the labeled texts alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lsr.serve.bank import AdapterBank
from lsr.serve.fitting import compute_logits, fit_if_better, rows_of
from lsr.serve.groups import make_member
from pipeline import regression
from pipeline.arena import task_tokens
from pipeline.arena.plan import TrainingRun, find_unshuffled_splits
from pipeline.arena.preset import SampleSizes
from pipeline.arena.record import DIGITS
from pipeline.arena.task_tokens import AT_ONCE
from pipeline.core.errors import UserError
from pipeline.methods.banks import HeadInputs
from pipeline.methods.batches import tokenizer_of
from pipeline.regression import Part, Values
from pipeline.tasks import Outcome, Task
from pipeline.tasks.cells import round_significant

COUNTS = (0, 20, 60)  # labeled texts of a tenant
DRAWN_FROM = 240  # training texts of a tenant, from which each seed draws the labeled ones
SPLITS = ("train", "test")
Scores = dict[str, dict[int, float]]  # scores by tenant and number of labeled texts
Answer = Callable[[Values, Values, Values], Values]  # (features, labels) of labeled texts, features -> logits


class Reading(NamedTuple):
    """A tenant without any text in training, and its texts."""

    task: Task
    labels: Sequence[str]  # names that the tenants of training have for the classes in its tokens, in their order
    parts: Mapping[str, Part]


def score_bank(training: TrainingRun, bank: AdapterBank) -> Scores:
    """Return the scores of tenants that a bank answers by its groups, or by rows that are fitted."""
    tokenizer = tokenizer_of(bank.model, training.view.base_model)
    model = HeadInputs(bank)
    scored = Scores()
    for name in training.unseen_tenants:
        group = make_member(bank, name, tuple(labels_of(training, name)))
        reading = _read(training, name, model, tokenizer)
        start = rows_of(group, reading.parts["test"].features.shape[1])
        scored[name] = _score_counts(training, reading, answer_by_rows(start))
    return scored


def score_regressions(
    training: TrainingRun,
    task: Task,
    outputs: Callable[[str, Values], Tensor],
    model: regression.Pooled,
    tokenizer: PreTrainedTokenizerBase,
) -> Scores:
    """Return the scores of tenants that the tenants' regressions answer, or one of their own.

    `outputs` returns the log-probabilities (n, labels) of a tenant's regression for features (n, width).
    """
    scored = Scores()
    for name in training.unseen_tenants:
        reading = _read(training, name, model, tokenizer)
        group = {
            member: tenant.labels
            for member, tenant in task.facts.tenants.items()
            if {*(tenant.labels or ())} == {*reading.labels}
        }
        scored[name] = _score_counts(training, reading, _answer_by_regression(reading, group, outputs))
    return scored


def check(training: TrainingRun, task: Task) -> None:
    """Check that each tenant has a group among the tenants of a task.

    Raises:
        UserError: if none of them has its labels.
    """
    groups = {tuple(sorted(tenant.labels or ())) for tenant in task.facts.tenants.values()}
    for name in training.unseen_tenants:
        labels = labels_of(training, name)
        if tuple(sorted(labels)) not in groups:
            listed = "; ".join(", ".join(group) for group in sorted(groups))
            given = f"{training.task}: unseen: {name}: no tenant has the labels {', '.join(labels)}"
            raise UserError(f"{given}; tenants have {listed}")


def labels_of(training: TrainingRun, name: str) -> list[str]:
    """Return the labels of a tenant in the order of the classes in its tokens, which are made if they are not there."""
    tenant = training.unseen_tenants[name]
    own = task_tokens.task_of(training_of(training, name))
    classes: Any = tenant.entry.label  # the preset checks that they have names
    called = dict(zip(classes.names, tenant.labels, strict=True))
    return [called[class_name] for class_name in own.head.names]


def training_of(training: TrainingRun, name: str) -> TrainingRun:
    """Return the training run whose tokens are those of a tenant without any text in training."""
    entry = training.unseen_tenants[name].entry
    usual = training.sample_sizes
    sample_sizes = SampleSizes(
        train=DRAWN_FROM,
        validation=1,  # nothing reads it
        test=usual.test,
        max_tokens=usual.max_tokens,
        max_new_tokens=None,
    )
    return replace(
        training,
        task=name,
        view=training.view.model_copy(update={"dataset": entry}),
        sample_sizes=sample_sizes,
        by_hash=find_unshuffled_splits(entry, sample_sizes),
        unseen_tenants={},
    )


def _read(training: TrainingRun, name: str, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Reading:
    own = training_of(training, name)
    task = task_tokens.task_of(own)
    splits = task_tokens.splits(own)
    read = {split: splits[split] for split in SPLITS}
    collate = task.head.collator(tokenizer)
    parts = regression.read_parts(task, model, read, collate, AT_ONCE)
    return Reading(task, labels_of(training, name), parts)


def _score_counts(training: TrainingRun, reading: Reading, answer: Answer) -> dict[int, float]:
    """Return the score on the test split for each number of labeled texts that there are, which the seed draws."""
    train = reading.parts["train"]
    test = reading.parts["test"]
    order = np.random.default_rng(training.seed).permutation(len(train.labels))
    scored = dict[int, float]()
    for count in COUNTS:
        if count > len(order):
            break
        drawn = order[:count]
        logits = answer(train.features[drawn], train.labels[drawn], test.features)
        outcome = Outcome(torch.from_numpy(logits), test.labels)
        metrics = reading.task.scoring.scores(outcome)
        scored[count] = round_significant(metrics[reading.task.entry.metrics[0]], DIGITS)
    return scored


def answer_by_rows(start: Values) -> Answer:
    """Answer by a group's rows, as of `rows_of`, plus a deviation fitted to labeled texts where it helps."""

    def answer(features: Values, labels: Values, asked: Values) -> Values:
        rows = start
        if len(np.unique(labels)) > 1:
            known = features.astype(np.float64)
            rows, _ = fit_if_better(known, labels, start)
        return compute_logits(asked, rows)

    return answer


def _answer_by_regression(
    reading: Reading,
    group: Mapping[str, Sequence[str] | None],
    outputs: Callable[[str, Values], Tensor],
) -> Answer:
    """Answer by the mean of a group's log-probabilities, or by a regression on labeled texts alone."""
    estimator = regression.estimator_of(reading.task)

    def answer(features: Values, labels: Values, asked: Values) -> Values:
        if len(labels):
            validation = (features[:0], labels[:0])
            own = regression.fit(estimator, len(reading.labels), (features, labels), validation)
            return own.outputs(asked).numpy()
        each = list[Values]()
        for member, known in group.items():
            columns = [list(known or ()).index(label) for label in reading.labels]
            each.append(outputs(member, asked).numpy()[:, columns])
        logs = np.array(each, np.float64)  # of classes that a member lacks, float32 has the least number
        return logs.mean(axis=0)

    return answer
