"""Tenants: one model for all, in whose head the labels of one tenant follow those of another.

A label is one of the classes that the tenant's own rows have, or a number, as the form of `label` says. A score is the
mean of the tenants' scores, and so is the loss: a tenant with few texts counts as much as one with many.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.core.errors import UserError, nearest
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.labels import Number, check_names
from pipeline.tasks.cells import Cells, Record, is_missing, place_of, plain_text
from pipeline.tasks.classes import ClassesTask, some_of
from pipeline.tasks.facts import Facts, Tenant, missing
from pipeline.tasks.number import NumberTask
from pipeline.tasks.task import TENANT, Columns, Numbers, Outcome, Scores, Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

LEAST_TEXTS = 5  # of a tenant
LEAST_LABELS = 2  # of a tenant
# A tenant's name is that of a folder, and part of an address.
FORBIDDEN = re.compile(r"\.{1,2}|__base__|.*[/\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff].*|.{101,}", re.DOTALL)
FEW = 10  # rows of a label
SHOWN = 3  # tenants in a message


class TenantsTask(Task):
    """A kind of task that each tenant has for itself; only what says so is about all of them."""

    beside = (TENANT,)
    names = ()  # each tenant has its own

    def __init__(self, row: DatasetRow, facts: Facts) -> None:
        super().__init__(row, facts)
        self.is_number = isinstance(row.label, Number)
        self._kind: type[Task] = NumberTask if self.is_number else ClassesTask
        self.kind = self._kind.kind
        self.target = self._kind.target
        self.has_one_class_each = not self.is_number

    @property
    def tenants(self) -> Mapping[str, Tenant]:
        """The tenants by name, in the order of their outputs.

        Raises:
            UserError: if the data were not read.
        """
        if not self.facts.tenants:
            raise UserError(missing("who the tenants are"))
        return self.facts.tenants

    @cached_property
    def _single(self) -> Task:
        """The task of a tenant for itself, but for the names of its labels."""
        return self._kind(self.row, Facts())

    @cached_property
    def _names(self) -> list[str]:
        return list(self.tenants)

    @property
    def strata(self) -> list[str]:
        return [TENANT] if self.is_number else [TENANT, "label"]

    def offset(self, stratum: Any, rows: int) -> float:
        # Drawn where shares are below a row, so that each split has its share of many tenants; an only row is in train.
        if not 1 < rows < FEW:
            return 0.5
        number, *labels = stratum  # no label if it is a number
        named = [self._names[number], *map(str, labels or [""])]
        return place_of("\n".join(named))

    def facts_of_rows(self, train: Iterable[Record]) -> Facts:
        """Find who the tenants are.

        Raises:
            ValueError: if one has a name that no folder can have, too few texts or labels, or labels that are too long.
        """
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for where, cells in train:
            if any(map(is_missing, cells.values())):
                continue
            tenant, label = self._plain(cells)
            if FORBIDDEN.fullmatch(tenant):
                raise ValueError(f"{where}: tenant {tenant!r}: no name of a folder, which a tenant's must be")
            counts[tenant][label] += 1
        counts = dict(sorted(counts.items()))
        self._check_enough(counts)
        tenants = dict[str, Tenant]()
        for name, labels in counts.items():
            names = None if self.is_number else self._single.names or in_order(labels)
            try:
                check_names(names or ())
            except ValueError as error:
                raise ValueError(f"tenant {name}: {error}") from None
            tenants[name] = Tenant(labels=names, train=labels.total())
        return Facts(tenants=tenants)

    def _check_enough(self, counts: Mapping[str, Counter[str]]) -> None:  # texts by tenant and label
        least = 0 if self.is_number else LEAST_LABELS
        few = list[str]()
        for name, labels in counts.items():
            if labels.total() < LEAST_TEXTS or len(labels) < least:
                few.append(f"{name} has {labels.total()} and {len(labels)}")
        if few:
            tenants = " tenants" if len(few) > SHOWN else ""
            needed = f"{LEAST_TEXTS} texts and {least} different labels"
            raise ValueError(f"a tenant needs {needed}; {some_of(few, SHOWN)}{tenants}")

    def facts_of_examples(self, train: pd.DataFrame) -> Facts:
        """Count the examples of each tenant."""
        return self.facts.counted(train[TENANT].to_numpy())

    def names_in(self, cells: Cells) -> Iterable[tuple[str, object]]:
        columns = [str(self.row.tenant)] if self.is_number else [str(self.row.tenant), self.label.column]
        return [(column, cells[column]) for column in columns]

    def _plain(self, cells: Cells) -> tuple[str, str]:
        tenant = cells[str(self.row.tenant)]
        label = cells[self.label.column]
        return plain_text(tenant), plain_text(label)

    def label_of(self, cells: Cells) -> Any:
        tenant, label = self._plain(cells)
        if tenant not in self.tenants:
            raise ValueError(f"tenant {tenant!r} has no rows in train")
        if self.is_number:
            return self._single.label_of(cells)
        labels = self.tenants[tenant].labels or ()
        if label in labels:
            return labels.index(label)
        value = cells[self.label.column]
        near = nearest(value, labels)
        raise ValueError(f"label {value!r} is not a class of tenant {tenant}: {', '.join(labels)}{near}")

    def lacks(self, train: pd.DataFrame) -> str:
        there = train.groupby(TENANT)["label"].unique()
        reason = "but for texts that another row or split has, too"
        for number, (name, tenant) in enumerate(self.tenants.items()):
            if number not in there:
                return f"no row of tenant {name}, {reason}"
            if tenant.labels is None or self.label.names:
                continue
            for label, label_name in enumerate(tenant.labels):
                if label not in there[number]:
                    return f"no row of tenant {name} labelled {label_name}, {reason}"
        return ""

    @cached_property
    def widths(self) -> Numbers:
        """The number of outputs of each tenant."""
        return np.array([self.width(tenant.labels) for tenant in self.tenants.values()])

    def head(self) -> dict[str, Any]:
        kind = "regression" if self.is_number else "single_label_classification"
        return {"num_labels": int(self.widths.sum()), "problem_type": kind}

    def own(self, logits: "Tensor", **beside: "Tensor") -> "Tensor":  # (n, outputs) -> (n, most)
        """Return of each row the outputs of its tenant alone, and after its last the least number."""
        import torch

        widths = torch.from_numpy(self.widths).to(logits.device)
        first = widths.cumsum(0) - widths
        places = torch.arange(int(widths.max()), device=logits.device)
        tenant = beside[TENANT][:, None]
        columns = first[tenant] + places
        own = logits.gather(1, columns.clamp(max=logits.shape[1] - 1))
        return own.masked_fill(places >= widths[tenant], torch.finfo(logits.dtype).min)

    def loss(self) -> "Callable[..., Tensor]":
        import torch

        rows = np.array([tenant.train for tenant in self.tenants.values()])
        weights = torch.from_numpy(rows.sum() / (len(rows) * rows)).float()

        def loss(logits: "Tensor", labels: "Tensor", tenant: "Tensor") -> "Tensor":
            if self.is_number:
                each = torch.nn.functional.mse_loss(logits[:, 0], labels.to(logits), reduction="none")
            else:
                each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            return (weights.to(each)[tenant] * each).mean()

        return loss

    def predicted(self, outcome: Outcome) -> Numbers:
        return self._single.predicted(outcome)

    def losses(self, outcome: Outcome) -> tuple[float, float]:
        each = [task.losses(own) for _, task, _, own in self._apart(outcome)]
        losses, baselines = np.array(each).T
        return float(losses.mean()), float(baselines.mean())

    def scores(self, outcome: Outcome) -> Scores:
        each = [task.scores(own) for _, task, _, own in self._apart(outcome)]
        return {name: _mean_of(name, each) for name in self.row.metrics}

    def metrics(self, outcome: Outcome, resamples: int) -> Scores:
        return self.parts(outcome, resamples)[0]

    def parts(self, outcome: Outcome, resamples: int) -> tuple[Scores, dict[str, Scores]]:
        """Return the mean over tenants, with an interval for that of other such tenants and texts; and each.

        Scores of tenants vary because tenants differ and because their examples do: the interval of Student's t has
        both. Scores of a few tenants can be closer to each other, by chance, than their examples allow, such as if all
        are 1. So no end of the interval is nearer than with these tenants and other texts: squares of the distances of
        the ends of means of independent scores add (Zou and Donner, "Construction of confidence limits about effect
        measures: A general approach", 2008). Of a single tenant it is the tenant's own.
        """
        parts = {name: task.metrics(own, resamples) for name, task, _, own in self._apart(outcome)}
        each = list(parts.values())
        metrics = {name: _mean_of(name, each) for name in each[0]}
        if len(each) > 1:
            for name in self.row.metrics:
                metrics |= _interval_of_mean(name, each)
        metrics["examples"] = sum(int(own["examples"]) for own in each)
        metrics["tenants"] = len(self.tenants)
        return metrics, parts

    def table(self, outcome: Outcome) -> Columns:
        columns: dict[str, Any] = {TENANT: np.empty(len(outcome.labels), object)}
        for name, task, rows, own in self._apart(outcome):
            columns[TENANT][rows] = name
            for column, values in task.table(own).items():
                whole = columns.setdefault(column, np.empty(len(outcome.labels), object))
                whole[rows] = np.array(values, object)
        return columns

    def _apart(self, outcome: Outcome) -> Iterator[tuple[str, Task, Numbers, Outcome]]:
        """Yield the tenants that have examples: name, task, the positions of its examples, and their outcome."""
        assert outcome.groups is not None
        order = np.argsort(outcome.groups, kind="stable")
        first = np.flatnonzero(np.diff(outcome.groups[order])) + 1
        for rows in np.split(order, first):
            number = int(outcome.groups[rows[0]])
            name = self._names[number]
            outputs = outcome.outputs[rows][:, : self.widths[number]]
            yield name, self._of_tenant(name), rows, Outcome(outputs, outcome.labels[rows])

    def _of_tenant(self, name: str) -> Task:
        """Return the task of a tenant for itself."""
        labels = self.tenants[name].labels
        if labels is None:
            return self._single
        label = self.row.label.model_copy(update={"names": labels})
        return self._kind(self.row.model_copy(update={"label": label}), Facts())

    def note(self, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, Any]:
        labels = {name: tenant.labels for name, tenant in self.tenants.items()}
        return super().note(tokenizer) | {"tenants": labels, "tenant": self.row.tenant}

    printed = ClassesTask.printed  # of one tenant; of a number, its kind prints

    def says(self) -> str:
        what = "a number" if self.is_number else "one of its labels"
        return f"for each of {len(self.tenants):,} tenants {what}"

    def shown(self, labels: Numbers) -> str:
        if self.is_number:
            return self.says()
        ends = sorted({self.widths.min(), self.widths.max()})
        return f"{self.says()}, {' to '.join(map(str, ends))} labels each"


def _interval_of_mean(name: str, each: Sequence[Mapping[str, float]]) -> Scores:
    """Return the ends of the interval of a metric's mean over tenants, within what the metric can be."""
    from scipy import stats

    from pipeline.tasks import scores

    values = _values_of(name, each)
    count = len(values)
    quantile = stats.t.ppf((1 + scores.CONFIDENCE) / 2, count - 1)
    with_tenants = stats.sem(values) * quantile
    below = np.linalg.norm(_values_of(f"{name}_low", each) - values) / count
    above = np.linalg.norm(_values_of(f"{name}_high", each) - values) / count
    least = -1.0 if name in scores.SIGNED else 0.0
    low = max(least, values.mean() - max(with_tenants, below))
    high = min(1.0, values.mean() + max(with_tenants, above))
    return {
        f"{name}_low": float(low),
        f"{name}_high": float(high),
    }


def _values_of(name: str, each: Sequence[Mapping[str, float]]) -> Numbers:
    return np.array([metrics[name] for metrics in each])


def _mean_of(name: str, each: Sequence[Mapping[str, float]]) -> float:
    return float(_values_of(name, each).mean())


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Return labels in their order: that of numbers, if all are."""
    are_numbers = pd.to_numeric(pd.Series([*labels]), errors="coerce").notna().all()
    return tuple(sorted(labels, key=float if are_numbers else None))
