"""Serve a bank in torch to which tenants are added by their labels, or by a few labeled texts."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lsr.loading.base_models import load_tokenizer
from lsr.serve.bank import AdapterBank
from lsr.serve.features import read_batch
from lsr.serve.group_names import name_group
from lsr.serve.groups import join_group
from lsr.serve.labeled import Fit, Prepared, finish, prepare
from lsr.serve.passes import BatchRunner
from lsr_onnx.answers import Labels
from lsr_onnx.errors import InputError
from lsr_onnx.examples import Example
from lsr_onnx.runner import PreparedFit


class BankFit(PreparedFit):
    """A fit of the rows of a tenant of a bank."""

    def __init__(self, passes: BatchRunner, name: str, prepared: Prepared) -> None:
        self._passes = passes
        self._name = name
        self._prepared = prepared
        self._fit: Fit | None = None
        self.batches = prepared.batches
        self.tokens = sum(len(row.inputs["input_ids"]) for row in prepared.rows)
        self.outputs = len(next(iter(prepared.group.heads.values())))

    def read(self, batch: Sequence[int]) -> np.ndarray:
        """Return the features of these texts: (texts, width)."""
        return read_batch(self._passes, self._prepared.rows, batch)

    def finish(self, parts: Sequence[np.ndarray], check_time: Callable[[], None]) -> dict[str, Any]:
        """Fit the rows, and return the content of a response about the fit."""
        fit = finish(self._prepared, parts, check_time)
        self._fit = fit
        chosen = fit.chosen
        return {
            "adapter": self._name,
            "texts": len(self._prepared.rows),
            "contradictory": fit.contradictory,
            "truncated": fit.truncated,
            "metric": fit.metric,
            "score": chosen.score,
            "interval": chosen.interval,
            "group_score": fit.group_score,
        }

    def add(self) -> str:
        """Add or replace the tenant in the bank, and return what answers: "fit", or "group" for the rows of its group.

        "before" stands for the rows of a tenant that is in the bank now, which stay where the fit is not better.
        """
        assert self._fit is not None
        is_better = self._fit.chosen.is_better
        if not is_better and self._name in self._passes.bank.versions:
            return "before"
        self._passes.bank.add(self._name, self._fit.contents, replace=True)
        return "fit" if is_better else "group"


class TenantRunner(BatchRunner):
    """Runs batches of a bank, and adds tenants to it that have no adapter of their own."""

    def name_entry(self, labels: Labels) -> str:
        """Return the name of the entry for tenants with these labels, in any order; None is for numbers."""
        return name_group(labels)

    def add_tenant(self, name: str, labels: Labels) -> int:
        """Add or replace a tenant with the rows of its group, and return the number of other tenants in it.

        Raises:
            InputError: as `join_group` and `AdapterBank.add`.
        """
        with self.bank.shared.one_thread:
            contents, tenants = join_group(self.bank, name, labels)
            self.bank.add(name, contents, replace=True)
        return tenants

    def prepare_fit(self, name: str, examples: Sequence[Example]) -> BankFit:
        """Check and tokenize labeled texts for a fit of a tenant's rows.

        Raises:
            InputError: as `prepare`.
        """
        return BankFit(self, name, prepare(self, name, examples))


def open_bank(options: Namespace) -> TenantRunner:
    """Open the bank that the options of `lsr serve` name, with its tokenizer.

    Raises:
        InputError: as `AdapterBank.load` and `BatchRunner`; if it shall answer by groups and has none.
    """
    bank = AdapterBank.load(options.base, options.bank)
    if options.answer_by_group and not bank.groups:
        needed = "needed: a bank of a training run with tenants.head: auto or shared"
        raise InputError(f"{options.bank}: --answer-by-group: it has no rows of groups; {needed}")
    tokenizer = load_tokenizer(bank.base_fields, options.bank, options.base)
    if tokenizer is None:
        raise InputError(f"{options.bank}: the base model has no tokenizer")
    return TenantRunner(
        bank,
        tokenizer,
        options.max_length,
        options.max_new_tokens,
        is_strict=options.strict,
    )
