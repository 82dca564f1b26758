"""Serve a folder of graphs in ONNX, of a bank of tenants or a single adapter, without torch.

Requests have the same limits and answers as with a bank in torch (`lsr.serve.passes`).
"""

import os
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lsr_onnx import folder as layout
from lsr_onnx.answers import make_answer
from lsr_onnx.errors import InputError, wrap_errors
from lsr_onnx.folder import GRAPHS, INT8, TASK, TENANTS, TOKENIZER, Tenant
from lsr_onnx.graph import KINDS_OF_TOKENS, Graph
from lsr_onnx.names import check_labels, check_name
from lsr_onnx.rows import Result, TokenizedText, Version
from lsr_onnx.runner import Encoded, Runner, form_of
from lsr_onnx.task import TENANTS as TENANTS_OF_ADAPTER
from lsr_onnx.task import read_task_of_graphs, validate_task_info
from lsr_onnx.tokenizer import open_tokenizer
from lsr_onnx.truncation import Inputs, cut

IDS, MASK, KINDS = KINDS_OF_TOKENS
Tokens = dict[str, np.ndarray]  # arrays (texts, length) by input of a graph


class GraphVersion(NamedTuple):
    """The metadata of an adapter in a graph, which is never replaced."""

    task_info: dict[str, Any]
    size: int  # number of labels, rounded up to a power of two as in a bank


class GraphBank:
    """A graph with the outputs of several adapters.

    In float32, a batch runs at once. In 8 bits each text runs alone, because the scale of activations is computed per
    batch, so that an answer would depend on other tenants' texts; `threads` texts run in parallel.

    Raises:
        InputError: if a file is missing or invalid, or the outputs do not match the adapters' labels.
    """

    def __init__(
        self,
        folder: Path,
        runtime: str,
        threads: int,
    ) -> None:
        layout.check_files(folder, runtime)
        path = folder / GRAPHS[runtime]
        self._is_quantized = GRAPHS[runtime] == INT8
        self._graph = Graph(path, threads=1 if self._is_quantized else threads)
        self._threads = ThreadPoolExecutor(threads)
        tenants = layout.read_tenants(folder) if layout.has_tenants(folder) else {}
        self._tenants = tenants or _read_single_tenant(folder, self._graph.width)
        self.versions: dict[str, Version] = {}
        for name, tenant in self._tenants.items():
            _check_tenant(name, tenant, self._graph.width, folder)
            outputs = tenant.end - tenant.first
            self.versions[name] = GraphVersion(tenant.task, 1 << (outputs - 1).bit_length())

    @property
    def names(self) -> list[str]:
        """The names of the adapters."""
        return list(self._tenants)

    def run(self, texts: Sequence[dict[str, list[int]]], padding: dict[str, Any]) -> list[np.ndarray]:
        """Return the outputs of all adapters, (outputs,), for each text; `padding` describes that of the tokenizer.

        Raises:
            InputError: if the runtime fails.
        """
        if self._is_quantized:
            single = [pad([text], padding) for text in texts]
            return [logits[0] for logits in self._threads.map(self._graph.run, single)]
        return [*self._graph.run(pad(texts, padding))]

    def select(self, name: str, logits: np.ndarray) -> np.ndarray:  # (outputs,) -> (labels,)
        """Return the outputs of an adapter."""
        first, end, _ = self._tenants[name]
        return logits[first:end]


class GraphRunner(Runner):
    """Answers the rows of a bank of graphs, with the tokenizer in its folder.

    Raises:
        InputError: if the tokenizer does not pad, or the graph takes fewer than `max_length` tokens.
    """

    def __init__(
        self,
        bank: GraphBank,
        tokenizer: Any,
        max_length: int,
        *,
        is_strict: bool = False,
    ) -> None:
        limits = tokenizer.truncation or {}
        super().__init__(
            bank,
            tokenizer,
            min(max_length, limits.get("max_length", max_length)),
            0,
            is_strict=is_strict,
        )
        self._side = limits.get("direction", "right")
        self._padding = tokenizer.padding
        tokenizer.no_padding()  # rows are padded when their batch is complete, and cut here
        tokenizer.no_truncation()
        probe = dict.fromkeys(KINDS_OF_TOKENS, [1] * self.tokens)
        try:
            bank.run([probe], self._padding)
        except InputError:
            raise InputError(f"--max-length: the base model does not take {self.tokens}") from None

    def encode(
        self,
        version: Version,
        texts: Sequence[Any],
        names: Sequence[str],
        longest: int | None,
        template: str,
    ) -> list[Encoded]:
        """Check and tokenize texts, or pairs of texts; `template` is for prompts, which graphs do not take."""
        parts = self.read_texts(form_of(version), texts, names, longest)
        encoded = self.tokenizer.encode_batch([own[0] if len(own) == 1 else tuple(own) for own in parts])
        return [Encoded(text.ids, partial(self._cut, text)) for text in encoded]

    def _cut(self, text: Any, length: int) -> Inputs:
        """Return the inputs of a tokenized text, truncated to `length` tokens."""
        inputs = {IDS: text.ids, MASK: text.attention_mask, KINDS: text.type_ids}
        return inputs if len(text.ids) <= length else cut(inputs, text.sequence_ids, length, self._side)

    def run(self, rows: Sequence[TokenizedText]) -> list[Result]:
        """Return the result of each row of a batch."""
        try:
            outputs = self.bank.run([row.inputs for row in rows], self._padding)
        except InputError as error:  # it is not a mistake of the client
            raise RuntimeError(str(error)) from None
        results = list[Result]()
        for row, logits in zip(rows, outputs, strict=True):
            own = self.bank.select(row.adapter, logits)
            is_finite = bool(np.isfinite(own).all())
            results.append(make_answer(row.adapter, row.version.task_info, own) if is_finite else None)
        return results


def pad(texts: Sequence[dict[str, list[int]]], padding: dict[str, Any]) -> Tokens:
    """Return texts as one batch, padded on the side and with the tokens of a tokenizer's `padding`."""
    fillers = {IDS: padding["pad_id"], MASK: 0, KINDS: padding["pad_type_id"]}
    lengths = [len(text[IDS]) for text in texts]
    longest = max(lengths)
    batch = {name: np.full((len(texts), longest), filler, dtype=np.int64) for name, filler in fillers.items()}
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        first = longest - length if padding["direction"] == "left" else 0
        for name, values in batch.items():
            values[row, first : first + length] = text[name]
    return batch


def open_graphs(options: Namespace) -> GraphRunner:
    """Open the graphs in the folder that the options of `lsr serve` name.

    Raises:
        InputError: as `GraphBank` and `GraphRunner`; if a package or the tokenizer is missing.
    """
    if options.base is not None:
        raise InputError(f"--base: has no effect with --runtime {options.runtime}")
    if options.answer_by_group:
        raise InputError("--answer-by-group: needs --runtime torch; graphs have no rows of groups")
    bank = GraphBank(options.bank, options.runtime, count_threads())
    return GraphRunner(bank, open_tokenizer(options.bank / TOKENIZER), options.max_length, is_strict=options.strict)


def count_threads() -> int:
    """Return the number of threads: OMP_NUM_THREADS, as for torch, or that of the processors that may be used."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_single_tenant(folder: Path, width: int) -> dict[str, Tenant]:
    """Return the single adapter of a graph without tenants, named after the folder as in `lsr bank`.

    Raises:
        InputError: if task.json is invalid, or has tenants.
    """
    task = read_task_of_graphs(folder)
    if TENANTS_OF_ADAPTER in task:
        raise InputError(f"{folder / TASK}: has tenants; needed: that of one task, or {TENANTS}")
    return {folder.absolute().name: Tenant(0, width, task)}


def _check_tenant(
    name: str,
    tenant: Tenant,
    width: int,
    folder: Path,
) -> None:
    """Check the name, the task info and the outputs of an adapter.

    Raises:
        InputError: if one is invalid; names the adapter and the reason.
    """
    with wrap_errors(folder, ValueError):
        check_name(name)
    where = f"{folder}: {name}"
    if tenant.end > width:
        raise InputError(f"{where}: the graph has {width} outputs, but {TENANTS} names {tenant.end}")
    with wrap_errors(where, ValueError):
        validate_task_info(tenant.task, TENANTS)
        check_labels(tenant.task.get("labels"), tenant.end - tenant.first)
