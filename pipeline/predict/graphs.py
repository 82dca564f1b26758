"""Answer with a graph in ONNX, as `lsr export --to onnx` writes it, without torch and transformers.

ONNX Runtime, tokenizers and numpy start in a tenth of the time of torch.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.core.batches import batched
from pipeline.core.console import Advance
from pipeline.core.errors import UserError, as_user_error
from pipeline.methods.adapter_task import FILE, AdapterTask
from pipeline.params.mistakes import validated
from pipeline.predict.texts import check_finite
from pipeline.tasks.cells import TEXT_COLUMNS
from pipeline.tasks.encoding import SHOWN
from pipeline.tasks.task import Columns

TORCH = "torch"
INT8 = "onnx-int8"
GRAPHS = {"onnx": "onnx/model.onnx", INT8: "onnx/model_quantized.onnx"}  # by runtime
TOKENIZER = "tokenizer.json"
LOGITS = "logits"
MAX_NOTE_BYTES = 2**20
MAX_LENGTH = 2**31  # tokens
KINDS_OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids")


def is_folder_of_graphs(folder: Path) -> bool:
    """Return whether a folder holds graphs in place of an adapter."""
    return any((folder / graph).is_file() for graph in GRAPHS.values())


def check_runtime(folder: Path, runtime: str) -> None:
    """Check that a folder holds what a runtime runs.

    Raises:
        UserError: names the runtime that fits, or what is missing.
    """
    if runtime == TORCH:
        if is_folder_of_graphs(folder):
            raise UserError(f"{folder}: holds graphs in ONNX; needed: --runtime {' or '.join(GRAPHS)}")
        return
    for name in (GRAPHS[runtime], TOKENIZER, FILE):
        if not (folder / name).is_file():
            needed = "a folder that `lsr export --to onnx` has written"
            raise UserError(f"--runtime {runtime}: {folder} has no {name}; needed: {needed}")


def read_task(folder: Path) -> AdapterTask:
    """Return the task of the adapter whose graphs a folder holds.

    Raises:
        UserError: if its file is broken, one line per mistake.
    """
    path = folder / FILE
    if path.stat().st_size > MAX_NOTE_BYTES:
        raise UserError(f"{path}: has over {MAX_NOTE_BYTES:,} bytes")
    with as_user_error(OSError, ValueError, RecursionError, before=f"{path}: "):
        content = json.loads(path.read_text(encoding="utf-8"))
    task = validated(AdapterTask, content, path, ())
    reason = _misfit(task)
    if reason:
        raise UserError(f"{path}: {reason}")
    return task


def _misfit(task: AdapterTask) -> str:
    """Return why a graph cannot answer for a task; an empty text if it can.

    `lsr.loading.task`, which checks the files of adapters, imports torch.
    """
    if task.task.head.generates or task.tenants is not None:
        return "is for completions or tenants; needed: that of a classifier or a regression"
    if not 0 < task.max_length < MAX_LENGTH:
        return f"max_length must be from 1 to {MAX_LENGTH - 1:,}, got {task.max_length}"
    if not 0 < len(task.columns) <= len(TEXT_COLUMNS):
        return f"columns must be one or two, got {len(task.columns)}"
    if task.thresholds is not None and len(task.thresholds) != len(task.labels or ()):
        return f"thresholds must be one for each label, got {len(task.thresholds)}"
    return ""


class OpenedGraph:
    """A graph and its tokenizer, which answer some texts at a time.

    Raises:
        UserError: if a package is missing, or a file is broken or needs a newer runtime.
    """

    def __init__(self, folder: Path, task: AdapterTask, runtime: str, batch_size: int) -> None:
        try:
            import onnxruntime
            from onnxruntime.capi import onnxruntime_pybind11_state as state
        except ImportError:
            remedy = "pip install -c constraints.txt -e '.[onnx]'"
            raise UserError(f"--runtime {runtime}: onnxruntime is not installed; {remedy}") from None
        self.folder = folder
        self.task = task
        # In 8 bits, the scale of activations is that of a batch: an answer would depend on the other texts in it.
        self.batch_size = 1 if runtime == INT8 else batch_size
        self.path = folder / GRAPHS[runtime]
        self.failures = [kind for _, kind in inspect.getmembers(state, inspect.isclass) if issubclass(kind, Exception)]
        with as_user_error(*self.failures, before=f"{self.path}: "):
            self.session = onnxruntime.InferenceSession(self.path, providers=["CPUExecutionProvider"])
        self.inputs = [graph_input.name for graph_input in self.session.get_inputs()]
        self._check_names()
        self.tokenizer = _opened_tokenizer(folder / TOKENIZER, task.max_length)

    def outputs(
        self,
        texts: pa.Table,
        rows: Sequence[int],
        advance: Advance,
    ) -> tuple[Any, int]:
        """Return the outputs (texts, labels) for texts (text, perhaps text_pair), and how many it truncated.

        `rows` are the numbers of the texts, for messages.

        Raises:
            FloatingPointError: if an answer is not finite; names the first row.
            UserError: if a text has no token, or the graph does not have an output for each label.
        """
        columns = [texts[name].to_pylist() for name in TEXT_COLUMNS if name in texts.column_names]
        asked = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
        parts = []
        truncated = 0
        for batch in batched(asked, self.batch_size):
            encoded = self.tokenizer.encode_batch(batch)
            for text, tokens in zip(batch, encoded, strict=True):
                if not any(tokens.attention_mask):
                    raise UserError(f"the tokenizer makes no token of the text {str(text)[:SHOWN]!r}")
                truncated += bool(tokens.overflowing)
            parts.append(self._run(encoded))
            advance(len(batch))
        outputs = np.concatenate(parts)
        self._check_width(outputs.shape[1])
        check_finite(outputs, rows, self.folder)
        return outputs, truncated

    def answers(
        self,
        asked: Mapping[str, Sequence[str]],
        rows: Sequence[int],
        advance: Advance,
    ) -> tuple[Columns, int]:
        """Return the columns to print for texts, and how many it truncated."""
        outputs, truncated = self.outputs(pa.table(asked), rows, advance)
        task = self.task
        return task.task.description.printed(outputs, task.labels, task.thresholds or ()), truncated

    def _check_names(self) -> None:
        outputs = [graph_output.name for graph_output in self.session.get_outputs()]
        if set(self.inputs) <= set(KINDS_OF_TOKENS) and outputs == [LOGITS]:
            return
        actual = f"takes {', '.join(self.inputs)} and returns {', '.join(outputs)}"
        needed = f"takes some of {', '.join(KINDS_OF_TOKENS)} and returns {LOGITS}"
        raise UserError(f"{self.path}: {actual}; needed: {needed}")

    def _run(self, encoded: Sequence[Any]) -> Any:
        tokens = {
            "input_ids": [text.ids for text in encoded],
            "attention_mask": [text.attention_mask for text in encoded],
            "token_type_ids": [text.type_ids for text in encoded],
        }
        given = {name: np.array(tokens[name], dtype=np.int64) for name in self.inputs}
        with as_user_error(*self.failures, before=f"{self.path}: "):
            (logits,) = self.session.run([LOGITS], given)
        if logits.ndim != 2:
            raise UserError(f"{self.path}: {LOGITS} have {logits.ndim} axes; needed: texts and labels")
        return logits

    def _check_width(self, width: int) -> None:
        wanted = self.task.task.head.width(self.task.labels)
        if width != wanted:
            raise UserError(f"{self.folder}: the graph has {width} outputs, but {FILE} names {wanted} labels")


def _opened_tokenizer(path: Path, max_length: int) -> Any:
    """Return the tokenizer in a file, which pads batches and truncates texts to so many tokens.

    Raises:
        UserError: if the file is broken, or does not pad.
    """
    from tokenizers import Tokenizer

    with as_user_error(Exception, before=f"{path}: "):  # what the package raises has no class of its own
        tokenizer = Tokenizer.from_file(str(path))
    if tokenizer.padding is None:
        raise UserError(f"{path}: does not pad; export the adapter again: lsr export --to onnx")
    direction = (tokenizer.truncation or {}).get("direction", "right")
    tokenizer.enable_truncation(max_length, direction=direction)
    return tokenizer
