"""A bank in the form of an ONNX graph, of tenants or a single adapter, for `lsr serve --runtime onnx`.

It replaces an `AdapterBank` in `lsr.serve.passes`, so requests have the same limits and answers.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig

from lsr.errors import InputError, wrap_errors
from lsr.loading.base_models import tokenizer_in, wrap_base_errors
from lsr.loading.contents import check_labels, read_task
from lsr.loading.padding import MASK
from lsr.loading.task import TENANTS as TENANTS_OF_ADAPTER
from lsr.loading.task import validate_task_info
from lsr.serve.admission import check_name
from lsr.serve.bank import Answer, make_answer
from lsr.serve.modules import Version
from lsr.serve.row_pool import round_up
from lsr_onnx import folder as layout
from lsr_onnx.errors import GraphError
from lsr_onnx.folder import GRAPHS, INT8, TASK, TENANTS, Tenant
from lsr_onnx.graph import KINDS_OF_TOKENS, Graph

*_, KINDS = KINDS_OF_TOKENS  # token types: of the first or the second text of a pair


class Outputs(NamedTuple):
    """The outputs of a graph, in the form of a transformers model."""

    logits: Tensor  # (texts, outputs of all adapters)


@dataclass
class GraphModel:
    """A stand-in for the base model of a graph."""

    config: Any  # configuration of transformers

    @staticmethod
    def can_generate() -> bool:
        """Return False: a graph only classifies."""
        return False


@dataclass
class Turns:
    """The locks of threads that run a graph."""

    one_thread: Any = field(default_factory=RLock)


class GraphBank:
    """A graph with the outputs of several adapters.

    In float32, a batch runs at once. In 8 bits each text runs alone, because the scale of activations is computed per
    batch, so that an answer would depend on other tenants' texts; `threads` texts run in parallel.

    Raises:
        InputError: if a file is missing or invalid, or the outputs do not match the adapters' labels.
    """

    def __init__(self, folder: Path, runtime: str, threads: int) -> None:
        with wrap_graph_errors():
            layout.check_files(folder, runtime)
        path = folder / GRAPHS[runtime]
        self._is_quantized = GRAPHS[runtime] == INT8
        with wrap_graph_errors():
            self._graph = Graph(path, threads=1 if self._is_quantized else threads)
            tenants = layout.read_tenants(folder) if layout.has_tenants(folder) else {}
        self._threads = ThreadPoolExecutor(threads)
        self._tenants = tenants or _single_tenant(folder, self._graph.width)
        self.versions: dict[str, Version] = {}
        for name, tenant in self._tenants.items():
            _check_tenant(name, tenant, self._graph.width, folder)
            outputs = tenant.end - tenant.first
            self.versions[name] = Version(tenant.task, {}, round_up(outputs))
        self.shared = Turns()
        with wrap_base_errors(str(folder)):
            config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
        self.model = GraphModel(config)

    @property
    def names(self) -> list[str]:
        """The names of the adapters."""
        return list(self._tenants)

    def __call__(self, *, adapter_names: Sequence[str], **tokens: Tensor) -> Outputs:
        """Return the logits of texts with the outputs of all adapters; `answers` selects those of each row's adapter.

        Raises:
            RuntimeError: if the runtime fails.
        """
        ids = tokens["input_ids"].numpy()
        given = {name: value.numpy() for name, value in tokens.items()}
        given.setdefault(MASK, np.ones_like(ids))
        given.setdefault(KINDS, np.zeros_like(ids))
        try:
            logits = self._run_each(given) if self._is_quantized else self._graph.run(given)
        except GraphError as error:
            raise RuntimeError(str(error)) from None
        return Outputs(torch.from_numpy(logits))

    def _run_each(self, tokens: dict[str, np.ndarray]) -> np.ndarray:
        """Return the logits of texts, each run alone without padding."""
        are_read = tokens[MASK].astype(bool)
        texts = []
        for row, is_read in enumerate(are_read):
            texts.append({name: values[row : row + 1, is_read] for name, values in tokens.items()})
        return np.concatenate([*self._threads.map(self._graph.run, texts)])

    def answers(self, logits: Tensor, adapter_names: Sequence[str]) -> list[Answer]:
        """Return for each row its adapter, the names of its labels, and its own logits."""
        answers = []
        for name, row in zip(adapter_names, logits, strict=True):
            first, end, task_info = self._tenants[name]
            answers.append(make_answer(name, task_info, row[first:end]))
        return answers


def open_graphs(folder: Path, runtime: str, threads: int) -> tuple[GraphBank, Any]:
    """Open the bank of graphs in a folder, with its tokenizer.

    Raises:
        InputError: as `GraphBank`; if the tokenizer is invalid.
    """
    bank = GraphBank(folder, runtime, threads)
    with wrap_base_errors(str(folder)):
        tokenizer = tokenizer_in(str(folder), None)
    if tokenizer is None:
        raise InputError(f"{folder}: has no tokenizer")
    return bank, tokenizer


@contextmanager
def wrap_graph_errors() -> Iterator[None]:
    """Convert errors about a folder of graphs to a user's mistake.

    Raises:
        InputError: in place of them, with the same line.
    """
    try:
        yield
    except GraphError as error:
        raise InputError(str(error)) from None


def check_torch_serves(folder: Path) -> None:
    """Check that a folder does not have graphs, which torch cannot run.

    Raises:
        InputError: if it has; names the runtimes for graphs.
    """
    with wrap_graph_errors():
        layout.check_no_graphs(folder)


def _single_tenant(folder: Path, width: int) -> dict[str, Tenant]:
    """Return the single adapter of a graph without tenants, named after the folder as in `lsr bank`.

    Raises:
        InputError: if task.json is invalid, or has tenants.
    """
    task = read_task(folder) or {}
    if TENANTS_OF_ADAPTER in task:
        raise InputError(f"{folder / TASK}: has tenants; needed: that of one task, or {TENANTS}")
    return {folder.absolute().name: Tenant(0, width, task)}


def _check_tenant(name: str, tenant: Tenant, width: int, folder: Path) -> None:
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
