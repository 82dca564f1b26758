"""Multi-tenant tasks: one model for all tenants, whose head concatenates the tenants' labels.

A label is one of the classes in the tenant's own rows, or a number, depending on the form of `label`. Scores and the
loss are means over tenants: a tenant with few texts counts as much as one with many.
"""

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lsr_onnx.errors import some_of
from lsr_onnx.task import check_label_names
from pipeline.core import artifacts
from pipeline.core.errors import UserError, nearest
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.tasks.calibration import Classified
from pipeline.tasks.cells import Cells, Names, Record, is_missing, place_of, plain_text
from pipeline.tasks.classes import ClassificationDescription, ClassificationScoring, names_of, positive_of
from pipeline.tasks.description import Description, Line, ReadTable
from pipeline.tasks.facts import Facts, Tenant, missing
from pipeline.tasks.head import Head
from pipeline.tasks.held_out import choose_tenants, describe_scores, name_metric
from pipeline.tasks.number import RegressionScoring, compute_squared_errors, number_in
from pipeline.tasks.preprocessing import Preprocessor
from pipeline.tasks.scoring import Answering, Answers_co, OfPart, Scoring
from pipeline.tasks.task import TENANT, Columns, Numbers, Outcome, Scores, interval_of, name_interval

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

MIN_TEXTS = 5  # minimum per tenant
MIN_LABELS = 2  # minimum per tenant
# A tenant's name becomes a folder's name, and part of a URL.
RESERVED = r"\.{1,2}|__base__|__group_.*"
FORBIDDEN = re.compile(rf"{RESERVED}|.*[/\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff].*|.{{101,}}", re.DOTALL)
NAMES = (
    "a name of at most 100 characters is needed, without slashes and without __group_ at its beginning: folders and "
    "addresses contain it"
)
FEW = 10  # rows of a label
SHOWN = 3  # tenants in a message, or at each end of a list


def tenants_of(facts: Facts) -> Mapping[str, Tenant]:
    """Return the tenants by name, in the order of their outputs.

    Raises:
        UserError: if the data were not read.
    """
    if not facts.tenants:
        raise UserError(missing("who the tenants are"))
    return facts.tenants


def widths_of(facts: Facts) -> Numbers:
    """Return the number of outputs of each tenant."""
    tenants = tenants_of(facts).values()
    return np.array([Head.width(tenant.labels) for tenant in tenants])


class TenantsPreprocessor(Preprocessor):
    """Rows that each belong to a tenant and have one of this tenant's labels."""

    shares_texts = True

    def __init__(self, entry: DatasetEntry, facts: Facts) -> None:
        super().__init__(entry, facts)
        self.column = str(entry.tenant)
        self.target = "float64" if entry.predicts_number else "int64"
        self.known = {**facts.tenants, **facts.held_out}
        self.tenants = list(self.known)
        numbers = range(len(self.tenants))
        self.numbers = dict(zip(self.tenants, numbers, strict=True))

    @property
    def reads(self) -> tuple[str, ...]:
        *names, label = super().reads
        columns = [*names, self.column, label]
        return tuple(dict.fromkeys(columns))

    @property
    def strata(self) -> list[str]:
        return [TENANT] if self.entry.predicts_number else [TENANT, "label"]

    def offset(self, stratum: Any, rows: int) -> float:
        # Drawn where shares are below a row, so that each split has its share of many tenants; an only row is in train.
        if not 1 < rows < FEW:
            return 0.5
        number, *labels = stratum
        label = str(labels[0]) if labels else ""  # none if it is a number
        tenant = self.tenants[number]
        return place_of(f"{tenant}\n{label}")

    def unit_of(self, cells: Cells, number: int) -> int:
        name = plain_text(cells[self.column])
        return self.numbers[name]

    def extend_dedup_key(self, cells: Cells, alike: str) -> str:
        """Add the tenant: several tenants may have the same text."""
        name = plain_text(cells[self.column])
        return f"{alike}\n{name}"

    def facts_of_rows(self, train: Iterable[Record]) -> Facts:
        """Find the tenants and their labels.

        Raises:
            ValueError: if a tenant's name is not a valid folder name, or it has too few texts or labels, or too long
                labels; if the share of held-out tenants leaves too few.
        """
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for where, cells in train:
            if any(map(is_missing, cells.values())):
                continue
            tenant, label = _tenant_and_label(cells, self.entry)
            if FORBIDDEN.fullmatch(tenant):
                raise ValueError(f"{where}: tenant {tenant!r}: {NAMES}")
            counts[tenant][label] += 1
        least = 0 if self.entry.predicts_number else MIN_LABELS
        _check_enough(counts, least)
        tenants = _make_tenants(self.entry, counts)
        held_out = dict[str, Tenant]()
        wanted = self.entry.held_out_tenants
        if wanted is not None:
            chosen = choose_tenants(tenants, wanted)
            for name in sorted(chosen):
                held_out[name] = tenants.pop(name)
        return Facts(tenants=tenants, held_out=held_out)

    def facts_of_examples(self, train: pd.DataFrame) -> Facts:
        """Count the examples of each tenant, and find the scale of numbers, which is one for all tenants."""
        tenants = train[TENANT].to_numpy()
        facts = self.facts.with_counts(tenants)
        if not self.entry.predicts_number:
            return facts
        numbers = train["label"].to_numpy()
        return facts.with_label_scale(numbers)

    def names_in(self, cells: Cells) -> Names:
        columns = [self.column]
        if not self.entry.predicts_number:
            columns.append(self.label.column)
        return [(column, cells[column]) for column in columns]

    def label_of(self, cells: Cells) -> Any:
        tenant, label = _tenant_and_label(cells, self.entry)
        if tenant not in self.known:
            raise ValueError(f"tenant {tenant!r} has no rows in train")
        if self.entry.predicts_number:
            return number_in(cells, self.label)
        labels = self.known[tenant].labels or ()
        if label in labels:
            return labels.index(label)
        value = cells[self.label.column]
        allowed = f"{', '.join(labels)}{nearest(value, labels)}"
        raise ValueError(f"label {value!r} is not a class of tenant {tenant}: {allowed}")

    def find_train_problem(self, train: pd.DataFrame) -> str:
        there = train.groupby(TENANT)["label"].unique()
        reason = "but for texts that another row or split has, too"
        tenants = tenants_of(self.facts).items()
        for number, (name, tenant) in enumerate(tenants):
            if number not in there:
                return f"no row of tenant {name}, {reason}"
            if tenant.labels is None or self.label.names:
                continue
            for label, label_name in enumerate(tenant.labels):
                if label not in there[number]:
                    return f"no row of tenant {name} labelled {label_name}, {reason}"
        return ""


def _tenant_and_label(cells: Cells, entry: DatasetEntry) -> tuple[str, str]:
    tenant = cells[str(entry.tenant)]
    label = cells[entry.label.column]
    return plain_text(tenant), plain_text(label)


def _make_tenants(entry: DatasetEntry, counts: Mapping[str, Counter[str]]) -> dict[str, Tenant]:
    """Return the tenants by name, given the number of their texts with each label.

    Raises:
        ValueError: if labels are too long or too many.
    """
    has_labels = not entry.predicts_number
    given = names_of(entry, Facts()) if has_labels else ()
    tenants = dict[str, Tenant]()
    for name, labels in sorted(counts.items()):
        names = None
        if has_labels:
            names = given or in_order(labels)
        try:
            check_label_names(names or ())
        except ValueError as error:
            raise ValueError(f"tenant {name}: the list of its labels {error}") from None
        tenants[name] = Tenant(labels=names, train=labels.total())
    return tenants


def _check_enough(counts: Mapping[str, Counter[str]], least: int) -> None:  # texts by tenant and label; labels
    few = list[str]()
    for name, labels in sorted(counts.items()):
        texts = labels.total()
        different = len(labels)
        if texts < MIN_TEXTS or different < least:
            few.append(f"{name} has {texts} and {different}")
    if few:
        tenants = " tenants" if len(few) > SHOWN else ""
        needed = f"{MIN_TEXTS} texts and {least} different labels"
        raise ValueError(f"a tenant needs {needed}; {some_of(few, SHOWN)}{tenants}")


class TenantsHead(Head):
    """A head with the outputs of all tenants; each row uses its own tenant's."""

    loss_columns = (TENANT,)

    def __init__(self, entry: DatasetEntry, facts: Facts) -> None:
        super().__init__(entry, facts)
        self.has_probabilities = not entry.predicts_number

    @cached_property
    def widths(self) -> Numbers:
        """The number of outputs of each tenant."""
        return widths_of(self.facts)

    def fields(self) -> dict[str, Any]:
        kind = "regression" if self.entry.predicts_number else "single_label_classification"
        count = int(self.widths.sum())
        return {"num_labels": count, "problem_type": kind}

    def collect_logits(self, outcome: Outcome) -> Sequence[Classified]:
        """Return the examples of each tenant; none of one that has no text in the split."""
        logits = outcome.outputs.numpy()
        positions = pd.Series(outcome.groups).groupby(outcome.groups).indices
        nobody = np.empty(0, np.int64)
        parts = list[Classified]()
        for number, width in enumerate(self.widths):
            rows = positions.get(number, nobody)
            own = logits[rows, :width]
            part = Classified(own, outcome.labels[rows])
            parts.append(part)
        return parts

    def select_logits(self, logits: "Tensor", **loss_columns: "Tensor") -> "Tensor":  # (n, outputs) -> (n, most)
        """Select the outputs of each row's tenant, padded with the smallest number."""
        import torch

        widths = torch.from_numpy(self.widths).to(logits.device)
        first = widths.cumsum(0) - widths
        most = int(widths.max())
        places = torch.arange(most, device=logits.device)
        tenant = loss_columns[TENANT][:, None]
        columns = first[tenant] + places
        last = logits.shape[1] - 1
        own = logits.gather(1, columns.clamp(max=last))
        is_beyond = places >= widths[tenant]
        least = torch.finfo(logits.dtype).min
        return own.masked_fill(is_beyond, least)

    def loss(self) -> "Callable[..., Tensor]":
        import torch

        tenants = tenants_of(self.facts).values()
        rows = np.array([tenant.train for tenant in tenants])
        of_rows = rows.sum() / (len(rows) * rows)
        weights = torch.from_numpy(of_rows).float()

        def loss(logits: "Tensor", labels: "Tensor", tenant: "Tensor") -> "Tensor":
            each = self.losses(logits, labels)
            own = weights.to(each)[tenant]
            return (own * each).mean()

        return loss

    def losses(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Return the loss of each example, given the logits of its tenant: (examples,)."""
        from torch.nn import functional

        if self.entry.predicts_number:
            return compute_squared_errors(logits, labels, self.facts.label_scale)
        return functional.cross_entropy(logits, labels, reduction="none")


class TenantsScoring(Scoring):
    """Scores each tenant like a data set of its own; overall scores are means over tenants."""

    def __init__(self, entry: DatasetEntry, facts: Facts) -> None:
        super().__init__(entry, facts)
        self.single: type[Scoring] = RegressionScoring if entry.predicts_number else ClassificationScoring
        self.has_one_class_each = self.single.has_one_class_each

    @staticmethod
    def answers(model: Answering[Answers_co]) -> Answers_co:
        return model.by_bank()  # scores are of the bank, which is served

    def predict(self, outcome: Outcome) -> Numbers:
        return self.single(self.entry, Facts()).predict(outcome)

    def scores(self, outcome: Outcome) -> Scores:
        each = list[Scores]()
        for part in self.of_parts(outcome):
            scores = part.scoring.scores(part.outcome)
            each.append(scores)
        return {name: _mean_of(name, each) for name in self.entry.metrics}

    def metrics(self, outcome: Outcome, resamples: int) -> Scores:
        whole, _ = self.parts(outcome, resamples)
        return whole

    def of_parts(self, outcome: Outcome) -> list[OfPart]:
        """Return each tenant's examples as a data set of its own; tenants without any are left out."""
        parts = list[OfPart]()
        count = len(outcome.labels)
        rows_of_parts = self.facts.rows_of_parts(count, outcome.groups)
        for name, rows in rows_of_parts.items():
            tenant = self.facts.tenants[name]
            width = Head.width(tenant.labels)
            outputs = outcome.outputs[rows][:, :width]
            own = Outcome(outputs, outcome.labels[rows])
            entry = entry_of_tenant(self.entry, tenant)
            scoring = self.single(entry, Facts())
            part = OfPart(name, scoring, rows, own)
            parts.append(part)
        return parts

    def parts(self, outcome: Outcome, resamples: int) -> tuple[Scores, dict[str, Scores]]:
        """Return the mean over tenants, with an interval for other such tenants and texts; and each tenant's metrics.

        Scores vary between tenants because tenants and their examples differ: Student's t interval covers both. By
        chance, a few tenants' scores can be closer to each other than their examples allow, for example if all are 1.
        So the interval is at least as wide as the one for these tenants with other texts, in which the squared
        distances to the ends of independent intervals add up (Zou and Donner, "Construction of confidence limits about
        effect measures: A general approach", 2008). For a single tenant it is the tenant's own interval.
        """
        parts = dict[str, Scores]()
        for part in self.of_parts(outcome):
            parts[part.name] = part.scoring.metrics(part.outcome, resamples)
        each = list(parts.values())
        metrics = {name: _mean_of(name, each) for name in each[0]}
        for name in self.entry.metrics:
            metrics |= _interval_of_mean(name, each)
        counts = [int(own["examples"]) for own in each]
        tenants = tenants_of(self.facts)
        metrics["examples"] = sum(counts)
        metrics["tenants"] = len(tenants)
        return metrics, parts

    def table(self, outcome: Outcome) -> Columns:
        columns = dict[str, Any]()
        count = len(outcome.labels)
        for part in self.of_parts(outcome):
            names = [part.name] * len(part.rows)
            own = part.scoring.table(part.outcome)
            table = {TENANT: names, **own}
            for column, values in table.items():
                whole = columns.setdefault(column, np.empty(count, object))
                whole[part.rows] = np.array(values, object)
        return columns


def entry_of_tenant(entry: DatasetEntry, tenant: Tenant) -> DatasetEntry:
    """Return a data set entry with the labels of one tenant."""
    if tenant.labels is None:
        return entry
    label = entry.label.model_copy(update={"names": tenant.labels})
    return entry.model_copy(update={"label": label})


class TenantsDescription(Description):
    """Describes tenants by name, each with its labels."""

    sections = ("tenants",)
    scored_by = f"{artifacts.EVALUATE_TENANTS} has the score of each tenant"

    def task_info(self, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, Any]:
        tenants = tenants_of(self.facts)
        labels = {name: tenant.labels for name, tenant in tenants.items()}
        info = super().task_info(tokenizer)
        return {
            **info,
            "tenants": labels,
            "tenant": self.entry.tenant,
        }

    def card(self) -> dict[str, Any]:
        return {"tenant": next(iter(self.facts.tenants))}

    to_columns = (
        ClassificationDescription.to_columns
    )  # outputs of one tenant; tenants with numbers use their own task type

    def predicts(self) -> str:
        what = "a number" if self.entry.predicts_number else "one of its labels"
        tenants = tenants_of(self.facts)
        count = len(tenants)
        return f"for each of {count:,} tenants {what}"

    def of_data(self, labels: Numbers) -> str:
        if self.entry.predicts_number:
            return self.predicts()
        widths = widths_of(self.facts)
        least = widths.min()
        most = widths.max()
        ends = sorted({least, most})
        shown = " to ".join(map(str, ends))
        return f"{self.predicts()}, {shown} labels each"

    def of_class(self, metric: str) -> str:
        return positive_of(metric, self.entry, self.facts)

    def results(self, metrics: Mapping[str, float], table: ReadTable) -> Iterable[Line]:
        scores = table(artifacts.EVALUATE_TENANTS)
        scored = sorted(zip(scores["score"], scores["tenant"], strict=True))
        worst = list[str]()
        for score, name in scored:
            shown = f"{name} {score:.4g}"
            worst.append(shown)
        best = worst[::-1]
        few = min(SHOWN, len(scored) // 2)  # so that none is among both; a single tenant is in the first line already
        count = metrics["tenants"]
        each = metrics["bank_bytes"] / count
        if few:
            yield "best", ", ".join(best[:few])
            yield "worst", ", ".join(worst[:few])
        yield "tenants", f"{count:,} of {each:,.0f} bytes each in {artifacts.BANK}"
        if name_metric(0) in metrics:
            yield "held out", describe_scores(metrics)

    def commands(self, table: ReadTable) -> Iterable[Line]:
        tenants = table(artifacts.EVALUATE_TENANTS)["tenant"]
        name = shlex.quote(tenants[0])
        texts = self.format_texts()
        yield "predict", f"python -m pipeline.predict --tenant {name} {texts}"
        yield "serve", f"lsr serve {artifacts.BANK}"


def _interval_of_mean(name: str, each: Sequence[Mapping[str, float]]) -> Scores:
    """Return the interval of a metric's mean over tenants, clipped to the range of the metric."""
    from pipeline.tasks import scores

    values = _values_of(name, each)
    intervals = [interval_of(name, metrics) for metrics in each]
    lows, highs = np.array(intervals).T
    low, high = scores.interval_of_mean(values, lows, highs)
    least = -1.0 if name in scores.SIGNED else 0.0
    low = max(least, low)
    high = min(1.0, high)
    return name_interval(name, (low, high))


def _values_of(name: str, each: Sequence[Mapping[str, float]]) -> Numbers:
    return np.array([metrics[name] for metrics in each])


def _mean_of(name: str, each: Sequence[Mapping[str, float]]) -> float:
    return float(_values_of(name, each).mean())


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Sort labels, by value if all are numbers."""
    column = pd.Series([*labels])
    numbers = pd.to_numeric(column, errors="coerce")
    are_numbers = numbers.notna().all()
    key = float if are_numbers else None
    return tuple(sorted(labels, key=key))
