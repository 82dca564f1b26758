"""Facts about a task that come from its data, not from its data set entry.

The stage tokenize finds them and writes them next to the tokens, once; later stages read them once and pass them on.
Only thresholds and temperatures come later, from the stage train.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from lsr_onnx.answers import Labels
from pipeline.core import artifacts
from pipeline.params.sources import StrictModel

Numbers = np.ndarray[Any, Any]
FILE = "facts.json"  # next to the tokens; there is none where nothing was found


class Tenant(StrictModel):
    """The facts about a tenant."""

    labels: Labels
    train: int  # examples


class LabelScale(StrictModel):
    """The mean and the standard deviation of the numbers in train."""

    mean: float
    deviation: float  # above 0

    @classmethod
    def of(cls, labels: Numbers) -> Self:
        """Return the scale of these numbers; that of equal ones has a deviation of 1, which changes nothing."""
        mean = np.mean(labels, dtype=np.float64)
        deviation = np.std(labels, dtype=np.float64)
        are_equal = np.min(labels) == np.max(labels)  # their deviation may be above 0 by rounding
        return cls(mean=float(mean), deviation=1.0 if are_equal else float(deviation))


class Facts(StrictModel):
    """The facts that a task depends on."""

    positive: str | None = None  # the class of f1: the rarer one of two
    label_scale: LabelScale | None = None  # of numbers, if training standardizes them
    tenants: Mapping[str, Tenant] = {}
    held_out: Mapping[str, Tenant] = {}  # tenants of which training reads no text
    # Probability from which each label applies; the stage train chooses them.
    thresholds: tuple[float, ...] | None = None
    # Temperature of all outputs, or of each label or tenant; the stage train fits them.
    temperatures: tuple[float, ...] | None = None

    def rows_of_parts(self, count: int, tenants: Numbers | None) -> dict[str, Numbers]:
        """Return the positions of the examples of each separately scored part: a tenant that has some, or all.

        `count` is the number of examples, and `tenants` has the tenant's number for each, if there are tenants.
        """
        if not self.tenants:
            return {"all": np.arange(count)}
        assert tenants is not None
        names = list(self.tenants)
        order = np.argsort(tenants, kind="stable")
        changes = np.diff(tenants[order])
        first = 1 + np.flatnonzero(changes)
        parts = dict[str, Numbers]()
        for rows in np.split(order, first):
            tenant = tenants[rows[0]]
            name = names[int(tenant)]
            parts[name] = rows
        return parts

    def with_counts(self, tenants: Sequence[int]) -> Self:
        """Return a copy with the number of examples per tenant; `tenants` has the tenant's number for each example."""
        counts = np.bincount(tenants, minlength=len(self.tenants))
        known = dict[str, Tenant]()
        for name, count in zip(self.tenants, counts.tolist(), strict=True):
            tenant = self.tenants[name]
            known[name] = tenant.model_copy(update={"train": count})
        return self.model_copy(update={"tenants": known})

    def with_label_scale(self, labels: Numbers) -> Self:
        """Return a copy with the scale of these numbers."""
        return self.model_copy(update={"label_scale": LabelScale.of(labels)})

    def without_label_scale(self) -> Self:
        """Return a copy with which training leaves numbers in their own units."""
        return self.model_copy(update={"label_scale": None})

    def write(self, folder: Path) -> None:
        """Write the facts next to the tokens, if there are any."""
        if self != Facts():
            text = self.model_dump_json(indent=1, exclude_defaults=True)
            path = folder / FILE
            path.write_text(f"{text}\n", encoding="utf-8")


def read(folder: Path) -> Facts:
    """Read the facts next to tokens; they are empty if there is no file, since then none were found."""
    path = folder / FILE
    if not path.exists():
        return Facts()
    text = path.read_text(encoding="utf-8")
    return Facts.model_validate_json(text)


def missing(what: str) -> str:
    """Return the message for a missing fact."""
    return f"{artifacts.TOKENS / FILE}: not found, which says {what}; run dvc repro"
