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
from pipeline.tasks.cells import Cells, Record, hash_of, is_missing, plain_text
from pipeline.tasks.classes import ClassesTask
from pipeline.tasks.facts import Facts, Tenant, missing
from pipeline.tasks.number import NumberTask
from pipeline.tasks.task import TENANT, Columns, Numbers, Outcome, Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

LEAST_TEXTS, LEAST_LABELS = 5, 2  # of a tenant
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
        self.kind, self.target = self._kind.kind, self._kind.target

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
    def _one(self) -> Task:
        """The task of a tenant for itself, but for the names of its labels."""
        return self._kind(self.row, Facts())

    @cached_property
    def _names(self) -> list[str]:
        return list(self.tenants)

    @property
    def has_one_class_each(self) -> bool:
        return not self.is_number

    @property
    def strata(self) -> list[str]:
        return [TENANT] if self.is_number else [TENANT, "label"]

    def offset(self, stratum: Any, rows: int) -> float:
        # Drawn where shares are below a row, so that each split has its share of many tenants; an only row is in train.
        number, label = (stratum[0], "") if self.is_number else stratum
        return (hash_of(f"{self._names[number]}\n{label}") >> 12) / 2.0**52 if 1 < rows < FEW else 0.5

    def facts_of_rows(self, train: Iterable[Record]) -> Facts:
        """Find who the tenants are.

        Raises:
            ValueError: if one has a name that no folder can have, too few texts or labels, or labels that are too long.
        """
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for where, cells in train:
            if not any(map(is_missing, cells.values())):
                tenant, label = self._plain(cells)
                if FORBIDDEN.fullmatch(tenant):
                    raise ValueError(f"{where}: tenant {tenant!r}: no name of a folder, which a tenant's must be")
                found[tenant][label] += 1
        sizes = {name: found[name].total() for name in sorted(found)}
        least = 0 if self.is_number else LEAST_LABELS
        few = [name for name, size in sizes.items() if size < LEAST_TEXTS or len(found[name]) < least]
        if few:
            each = ", ".join(f"{name} has {sizes[name]} and {len(found[name])}" for name in few[:SHOWN])
            more = f" and {len(few) - SHOWN} more tenants" if len(few) > SHOWN else ""
            raise ValueError(f"a tenant needs {LEAST_TEXTS} texts and {least} different labels; {each}{more}")
        tenants = dict[str, Tenant]()
        for name, size in sizes.items():
            names = None if self.is_number else self._one.names or in_order(found[name])
            try:
                check_names(names or ())
            except ValueError as error:
                raise ValueError(f"tenant {name}: {error}") from None
            tenants[name] = Tenant(labels=names, train=size)
        return Facts(tenants=tenants)

    def facts_of_examples(self, train: pd.DataFrame) -> Facts:
        """Count the examples of each tenant."""
        return self.facts.counted(train[TENANT].to_numpy())

    def names_in(self, cells: Cells) -> Iterable[tuple[str, object]]:
        columns = [str(self.row.tenant)] if self.is_number else [str(self.row.tenant), self.label.column]
        return [(column, cells[column]) for column in columns]

    def _plain(self, cells: Cells) -> tuple[str, str]:
        return plain_text(cells[str(self.row.tenant)]), plain_text(cells[self.label.column])

    def label_of(self, cells: Cells) -> Any:
        tenant, label = self._plain(cells)
        if tenant not in self.tenants:
            raise ValueError(f"tenant {tenant!r} has no rows in train")
        if self.is_number:
            return self._one.label_of(cells)
        labels, value = self.tenants[tenant].labels or (), cells[self.label.column]
        if label not in labels:
            near = nearest(value, labels)
            raise ValueError(f"label {value!r} is not a class of tenant {tenant}: {', '.join(labels)}{near}")
        return labels.index(label)

    def lacks(self, train: pd.DataFrame) -> str:
        there = train.groupby(TENANT)["label"].unique()
        for number, (name, its) in enumerate(self.tenants.items()):
            labels = set(there.get(number, ()))
            needed = its.labels if its.labels and not self.label.names else ()
            lost = [f" labelled {label}" for at, label in enumerate(needed) if at not in labels] if labels else [""]
            if lost:
                return f"no row of tenant {name}{lost[0]}, but for texts that another row or split has, too"
        return ""

    @cached_property
    def widths(self) -> Numbers:
        """The number of outputs of each tenant."""
        return np.array([self.width(its.labels) for its in self.tenants.values()])

    def head(self) -> dict[str, Any]:
        kind = "regression" if self.is_number else "single_label_classification"
        return {"num_labels": int(self.widths.sum()), "problem_type": kind}

    def own(self, logits: "Tensor", **beside: "Tensor") -> "Tensor":  # (n, outputs) -> (n, most)
        """Return of each row the outputs of its tenant alone, and after its last the least number."""
        import torch

        widths = torch.from_numpy(self.widths).to(logits.device)
        first, places = widths.cumsum(0) - widths, torch.arange(int(widths.max()), device=logits.device)
        tenant = beside[TENANT]
        found = logits.gather(1, (first[tenant][:, None] + places).clamp(max=logits.shape[1] - 1))
        return found.masked_fill(places >= widths[tenant][:, None], torch.finfo(logits.dtype).min)

    def loss(self) -> "Callable[..., Tensor]":
        import torch

        rows = np.array([its.train for its in self.tenants.values()])
        weights = torch.from_numpy(rows.sum() / (len(rows) * rows)).float()

        def loss(logits: "Tensor", labels: "Tensor", tenant: "Tensor") -> "Tensor":
            if self.is_number:
                each = torch.nn.functional.mse_loss(logits[:, 0], labels.to(logits), reduction="none")
            else:
                each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            return (weights.to(each)[tenant] * each).mean()

        return loss

    def predicted(self, outcome: Outcome) -> Numbers:
        return self._one.predicted(outcome)

    def losses(self, outcome: Outcome) -> tuple[float, float]:
        each = np.array([task.losses(its) for _, task, _, its in self._apart(outcome)])
        return float(each[:, 0].mean()), float(each[:, 1].mean())

    def scores(self, outcome: Outcome) -> dict[str, float]:
        each = [task.scores(its) for _, task, _, its in self._apart(outcome)]
        return {name: float(np.mean([its[name] for its in each])) for name in self.row.metrics}

    def metrics(self, outcome: Outcome, resamples: int) -> dict[str, float]:
        return self.parts(outcome, resamples)[0]

    def parts(self, outcome: Outcome, resamples: int) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Return the mean over tenants, with an interval for that of other such tenants and texts; and each.

        Scores of tenants vary because tenants differ and because their examples do: the interval of Student's t has
        both. Scores of a few tenants can be closer to each other, by chance, than their examples allow, such as if all
        are 1. So no end of the interval is nearer than with these tenants and other texts: squares of the distances of
        the ends of means of independent scores add (Zou and Donner, "Construction of confidence limits about effect
        measures: A general approach", 2008). Of a single tenant it is the tenant's own.
        """
        parts = {name: task.metrics(its, resamples) for name, task, _, its in self._apart(outcome)}
        each = list(parts.values())
        metrics = {name: float(np.mean([its[name] for its in each])) for name in each[0]}
        for name in self.row.metrics if len(each) > 1 else ():
            metrics |= _interval_of_mean(name, each)
        counts = {"examples": sum(int(its["examples"]) for its in each), "tenants": len(self.tenants)}
        return metrics | counts, parts

    def table(self, outcome: Outcome) -> Columns:
        columns: dict[str, Any] = {TENANT: np.empty(len(outcome.labels), object)}
        for name, task, rows, its in self._apart(outcome):
            columns[TENANT][rows] = name
            for column, values in task.table(its).items():
                whole = columns.setdefault(column, np.empty(len(outcome.labels), object))
                whole[rows] = np.array(values, object)
        return columns

    def _apart(self, outcome: Outcome) -> Iterator[tuple[str, Task, Numbers, Outcome]]:
        """Yield the tenants that have examples: name, task, the positions of its examples, and their outcome."""
        assert outcome.groups is not None
        order = np.argsort(outcome.groups, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(outcome.groups[order])) + 1)
        for rows in parts:
            number = int(outcome.groups[rows[0]])
            name = self._names[number]
            outputs = outcome.outputs[rows][:, : self.widths[number]]
            yield name, self._of_tenant(name), rows, Outcome(outputs, outcome.labels[rows])

    def _of_tenant(self, name: str) -> Task:
        """Return the task of a tenant for itself."""
        labels = self.tenants[name].labels
        if labels is None:
            return self._one
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
        ends = " to ".join(map(str, sorted({self.widths.min(), self.widths.max()})))
        return self.says() if self.is_number else f"{self.says()}, {ends} labels each"


def _interval_of_mean(name: str, each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the ends of the interval of a metric's mean over tenants, within what the metric can be."""
    from scipy import stats

    from pipeline.tasks import scores

    values, lows, highs = (np.array([metrics[f"{name}{end}"] for metrics in each]) for end in ("", "_low", "_high"))
    with_tenants = stats.sem(values) * stats.t.ppf((1 + scores.CONFIDENCE) / 2, len(values) - 1)
    below, above = (np.linalg.norm(ends - values) / len(values) for ends in (lows, highs))
    least = -1.0 if name in scores.SIGNED else 0.0
    low = max(least, values.mean() - max(with_tenants, below))
    high = min(1.0, values.mean() + max(with_tenants, above))
    return {f"{name}_low": float(low), f"{name}_high": float(high)}


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Return labels in their order: that of numbers, if all are."""
    are_numbers = pd.to_numeric(pd.Series([*labels]), errors="coerce").notna().all()
    return tuple(sorted(labels, key=float if are_numbers else None))
