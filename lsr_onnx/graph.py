"""Run the graph of a classifier or a regression with ONNX Runtime on the CPU."""

import inspect
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lsr_onnx.errors import InputError, wrap_errors

LOGITS = "logits"
REMEDY = "in a clone of lsr-adapt: pip install -c constraints.txt -e '.[onnx]'"  # advice where a package is missing
KINDS_OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids")
# Fuse additions into layer normalization and GELU, by kernels that take longer than the two operators: without them, a
# graph in 8 bits of MiniLM takes .75 to .85 of the time, and one in float32 .9 to .95.
SLOW_OPTIMIZERS = ["SkipLayerNormFusion", "BiasGeluFusion"]


class Graph:
    """A graph that maps tokens to logits.

    `threads` is the number of threads per operator; 0 stands for all cores.

    Raises:
        InputError: if ONNX Runtime is not installed, the file is broken or needs an operator that the runtime lacks, or
            the graph has other inputs or outputs.
    """

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        try:
            import onnxruntime
            from onnxruntime.capi import onnxruntime_pybind11_state as state
        except ImportError:
            raise InputError(f"{path}: needs onnxruntime, which is not installed; {REMEDY}") from None
        self.path = path
        kinds = [kind for _, kind in inspect.getmembers(state, inspect.isclass) if issubclass(kind, Exception)]
        self._failures = (*kinds, UnicodeDecodeError)  # the runtime's messages quote names, which may not be UTF-8
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.log_severity_level = 4  # the logged message is in the error, too
        with wrap_errors(path, *self._failures):
            self._session = onnxruntime.InferenceSession(
                path,
                settings,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=SLOW_OPTIMIZERS,
                enable_fallback=0,  # it would print errors, and try the same again
            )
            self.inputs = [graph_input.name for graph_input in self._session.get_inputs()]
            outputs = [graph_output.name for graph_output in self._session.get_outputs()]
        self._check_names(outputs)
        probe = np.ones((1, 2), dtype=np.int64)
        self.width = self.run(dict.fromkeys(self.inputs, probe)).shape[1]  # outputs

    def run(self, tokens: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the logits (texts, outputs) for int64 token inputs (texts, length); inputs unknown to it are ignored.

        Raises:
            InputError: if the runtime fails, or the logits have another shape.
        """
        with wrap_errors(self.path, *self._failures):
            (logits,) = self._session.run([LOGITS], {name: tokens[name] for name in self.inputs})
        values = np.asarray(logits)
        if values.ndim != 2:
            raise InputError(f"{self.path}: {LOGITS} have {values.ndim} axes; needed: texts and labels")
        return values

    def _check_names(self, outputs: list[str]) -> None:
        if set(self.inputs) <= set(KINDS_OF_TOKENS) and outputs == [LOGITS]:
            return
        actual = f"takes {', '.join(self.inputs)} and returns {', '.join(outputs)}"
        needed = f"takes some of {', '.join(KINDS_OF_TOKENS)} and returns {LOGITS}"
        raise InputError(f"{self.path}: {actual}; needed: {needed}")
