"""Predict with an ONNX graph of `lsr export --to onnx`, without torch and transformers.

ONNX Runtime, tokenizers and numpy start in a tenth of the time of torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lsr_onnx import folder as layout
from lsr_onnx.folder import GRAPHS, TASK, TENANTS, TOKENIZER
from lsr_onnx.graph import Graph
from lsr_onnx.task import read_task_of_graphs, validate_task_info
from lsr_onnx.tokenizer import open_tokenizer
from pipeline.core.batches import iter_batches
from pipeline.core.console import Advance
from pipeline.core.errors import UserError
from pipeline.methods.adapter_task import AdapterTask, tasks_of_infos
from pipeline.params.validation import validate
from pipeline.predict.texts import check_finite, refuse_long_text
from pipeline.tasks.cells import TEXT_COLUMNS
from pipeline.tasks.encoding import SHOWN
from pipeline.tasks.task import TENANT

TORCH = "torch"
INT8 = "onnx-int8"


def check_runtime(folder: Path, runtime: str) -> None:
    """Check that a folder has the files that a runtime needs.

    Raises:
        InputError: if not; names the suitable runtime, or the missing file.
    """
    if runtime == TORCH:
        layout.check_no_graphs(folder)
    else:
        layout.check_files(folder, runtime)


def read_task(folder: Path) -> AdapterTask:
    """Read the task of the graphs of a single adapter.

    Raises:
        UserError: if the graphs have tenants, or the file is invalid; one line per mistake.
    """
    if layout.has_tenants(folder):
        raise UserError(f"{folder}: the graphs have tenants; needed: those of an adapter of one task")
    path = folder / TASK
    task = validate(AdapterTask, read_task_of_graphs(folder), path, ())
    _check_type(task, str(path))
    return task


def read_tenants(folder: Path) -> dict[str, AdapterTask]:
    """Read the task of each tenant of the graphs in a folder; empty for a single task.

    Raises:
        UserError: if the file is invalid, or the outputs of a tenant do not match its labels.
    """
    if not layout.has_tenants(folder):
        return {}
    tenants = layout.read_tenants(folder)
    path = folder / TENANTS
    for name, tenant in tenants.items():
        validate_task_info(tenant.task, f"{path}: {name}")
    tasks = tasks_of_infos({name: tenant.task for name, tenant in tenants.items()}, path)
    for name, task in tasks.items():
        _check_type(task, f"{path}: {name}")
        outputs = tenants[name].end - tenants[name].first
        labels = task.task.head.width(task.labels)
        if outputs != labels:
            raise UserError(f"{path}: {name}: has {outputs} outputs, but {labels} labels")
    return tasks


def _check_type(task: AdapterTask, where: str) -> None:
    if task.task.head.generates or task.tenants is not None:
        raise UserError(f"{where}: is for completions or tenants; needed: that of a classifier or a regression")


class OpenedGraph:
    """An opened graph with its tokenizer, which answers batches of texts, in a bank of several tenants.

    Raises:
        UserError: if a package is missing, a file is invalid or needs a newer runtime, or the graph does not have one
            output per label.
    """

    def __init__(
        self,
        folder: Path,
        task: AdapterTask,
        runtime: str,
        batch_size: int,
        *,
        is_strict: bool = False,
    ) -> None:
        self.folder = folder
        self.task = task
        self.is_strict = is_strict  # texts that are longer than the adapter reads are refused
        # In 8 bits, the scale of activations is computed per batch: an answer would depend on the batch's other texts.
        self.batch_size = 1 if runtime == INT8 else batch_size
        self.graph = Graph(folder / GRAPHS[runtime])
        tenants = layout.read_tenants(folder) if layout.has_tenants(folder) else {}
        self.tenants = list(tenants.values())
        self._check_width()
        self.tokenizer = open_tokenizer(folder / TOKENIZER)
        direction = (self.tokenizer.truncation or {}).get("direction", "right")
        self.tokenizer.enable_truncation(task.max_length, direction=direction)

    def outputs(
        self,
        texts: pa.Table,
        rows: Sequence[int],
        advance: Advance,
    ) -> tuple[Any, int]:
        """Return the outputs for a batch of texts (text, perhaps text_pair and tenant), and how many were truncated.

        Outputs are (texts, labels); in a bank, padded with zeros to the largest number of labels. `rows` are the
        numbers of the texts, for messages.

        Raises:
            FloatingPointError: if an answer is not finite; names the first row.
            UserError: if a text has no token, or has too many and `is_strict`.
        """
        columns = [texts[name].to_pylist() for name in TEXT_COLUMNS if name in texts.column_names]
        asked = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
        numbers = texts[TENANT].to_pylist() if self.tenants else [0] * len(asked)
        parts = []
        long_rows = []
        order = np.argsort([-_count_characters(text) for text in asked], kind="stable")
        for indices in iter_batches(order.tolist(), self.batch_size):
            batch = [asked[index] for index in indices]
            owners = [numbers[index] for index in indices]
            row_numbers = [rows[index] for index in indices]
            encoded = self.tokenizer.encode_batch(batch)
            for text, tokens, row in zip(batch, encoded, row_numbers, strict=True):
                if not any(tokens.attention_mask):
                    raise UserError(f"the tokenizer makes no token of the text {str(text)[:SHOWN]!r}")
                if tokens.overflowing:
                    long_rows.append(row)
            logits = self._run(encoded)
            parts.append(self._of_tenants(logits, owners) if self.tenants else logits)
            advance(len(batch))
        if long_rows and self.is_strict:
            refuse_long_text(min(long_rows), self.task.max_length)
        outputs = np.concatenate(parts)[order.argsort()]
        check_finite(outputs, rows, self.folder)
        return outputs, len(long_rows)

    def _run(self, encoded: Sequence[Any]) -> np.ndarray:
        tokens = {
            "input_ids": [text.ids for text in encoded],
            "attention_mask": [text.attention_mask for text in encoded],
            "token_type_ids": [text.type_ids for text in encoded],
        }
        return self.graph.run({name: np.array(ids, dtype=np.int64) for name, ids in tokens.items()})

    def _of_tenants(self, outputs: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
        """Select the outputs of each row's tenant."""
        longest = max(tenant.end - tenant.first for tenant in self.tenants)
        own = np.zeros((len(outputs), longest), outputs.dtype)
        for row, number in enumerate(numbers):
            first, end, _ = self.tenants[number]
            own[row, : end - first] = outputs[row, first:end]
        return own

    def _check_width(self) -> None:
        width = self.graph.width
        if self.tenants:
            largest = max(tenant.end for tenant in self.tenants)
            if largest > width:
                raise UserError(f"{self.folder}: the graph has {width} outputs, but {TENANTS} names {largest}")
            return
        wanted = self.task.task.head.width(self.task.labels)
        if width != wanted:
            raise UserError(f"{self.folder}: the graph has {width} outputs, but {TASK} names {wanted} labels")


def _count_characters(text: str | tuple[str, str]) -> int:
    """Return the length of a text or of a pair: texts of similar length share batches, which need less padding."""
    return len(text) if isinstance(text, str) else sum(map(len, text))
