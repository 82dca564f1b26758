"""Export an adapter with its base model and head as an ONNX graph, in float32 and in 8 bits.

The folder has the layout that transformers.js and optimum read: config.json, the tokenizer's files, onnx/model.onnx and
onnx/model_quantized.onnx; and task.json. The extra `onnx` installs the packages that this module needs.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lsr.convert.export import describe_labels, describe_problem
from lsr.convert.graph_quantization import quantize_graph
from lsr.convert.writing import GRAPHS, check_output, replace_folder, write_task
from lsr.errors import InputError
from lsr.loading.adapters import load_adapter, merge_adapter
from lsr.loading.base_models import load_tokenizer
from lsr.loading.contents import read_task
from lsr.loading.padding import prepare_batches
from lsr.tuner.files import read_files
from lsr.tuner.options import Fields
from lsr_onnx.folder import FLOAT32, INT8
from lsr_onnx.graph import LOGITS, REMEDY, Graph
from lsr_onnx.task import MULTI_LABEL, REGRESSION

NEEDED = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20
MAX_BYTES = 2 * 10**9  # limit for the weights: a protobuf file cannot be larger
UNLIMITED = 10**9  # tokens, from which on transformers means that a tokenizer has no limit
MAX_LENGTH = 128  # tokens of a text that is compared
MAX_DIFFERENCE = 1e-4  # largest accepted difference of a logit, relative to the largest logit if that is above 1
# Of different lengths, so that shorter ones are padded where they are in one batch.
TEXTS = (
    "Yes.",
    "A warm, funny and generous film about two sisters who have not spoken for years.",
    "It broke after two days, and nobody answered my letters.",
    "The first half takes its time. " * 12,
)


class Differences(NamedTuple):
    """The largest differences between the outputs of graphs and torch on TEXTS, in one batch."""

    logits: float  # largest difference between the logits of the float32 graph and the model's
    quantized_logits: float
    quantized_probability: float | None  # None for a regression, which has no probabilities


class Comparison(NamedTuple):
    """The inputs and expected outputs with which graphs are compared."""

    inputs: dict[str, Tensor]  # the tokens of TEXTS in one batch, in the order of the graph's inputs
    logits: np.ndarray  # (texts, outputs), by torch
    # Maps the logits of TEXTS to probabilities; None for regression.
    probabilities: Callable[[np.ndarray], np.ndarray | None]


def export_graphs(
    adapter: str | Path, folder: str | Path, *, base: str | None = None, force: bool = False
) -> Differences:
    """Write a classification or regression adapter, of any method that PEFT merges, as graphs, and verify them.

    `base` is the folder or hub repository of the base model; by default the one that the adapter names. The graphs take
    input_ids and attention_mask, and token_type_ids if the tokenizer makes them, each (batch, length) of int64; they
    return logits (batch, labels) of float32. The tokenizer truncates to the length that task.json names, and pads a
    batch. The same adapter gives the same bytes.

    Raises:
        InputError: if a package is missing, the adapter is not a classifier, has tenants or no fast tokenizer, the
            model is too large or cannot be traced, or the outputs of the float32 graph differ from torch's; if the
            folder exists and `force` is false.
    """
    folder = Path(folder)
    adapter = Path(adapter)
    check_output(folder, (adapter, base), replace=force)
    check_installed()
    files = read_files(adapter, None)
    task = read_task(files.folder) or {}
    check_exportable(files.fields.get("task_type"), task, files.folder)
    tokenizer = fast_tokenizer(files.fields, files.folder, base)
    model = load_adapter(files, base, None)
    _check_is_traceable(model.config)
    prepare_batches(tokenizer, model.config, files.folder)
    check_size(model, files.folder)
    limit_length(tokenizer, task.get("max_length"))
    inputs = encode_texts(tokenizer)
    expected = run_model(model, inputs)
    plain = merge_adapter(model, files)
    _describe(plain.config, task, files.folder)
    problem_type = plain.config.problem_type
    comparison = Comparison(inputs, expected, lambda logits: _probabilities(logits, problem_type))
    with replace_folder(folder) as new:
        write_task(new, task or None)
        return write_graphs(new, plain, tokenizer, comparison)


def write_graphs(folder: Path, model: Any, tokenizer: Any, comparison: Comparison) -> Differences:
    """Write a classifier as graphs into a folder, with its tokenizer and configuration, and verify its outputs.

    Raises:
        InputError: if it cannot be traced, or the outputs of the float32 graph differ from torch's.
    """
    (folder / GRAPHS).mkdir()
    _fix_length_and_padding(tokenizer)
    tokenizer.save_pretrained(str(folder))
    model.config.save_pretrained(str(folder))
    with _quiet():
        _trace(model, comparison.inputs, folder / FLOAT32)
        quantize_graph(folder / FLOAT32, folder / INT8)
    exact = run_graph(folder / FLOAT32, comparison.inputs)
    quantized = run_graph(folder / INT8, comparison.inputs)
    return _compare(comparison, exact, quantized)


def check_installed() -> None:
    """Check that the packages of the extra `onnx` are installed.

    Raises:
        InputError: if one is missing; names the extra.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)}: not installed; {REMEDY}")


def check_exportable(task_type: str | None, task: Mapping[str, Any], folder: Path) -> None:
    """Check the type of an adapter's task before anything is computed.

    Raises:
        InputError: if the task is neither classification nor regression of texts, or the adapter is multi-tenant.
    """
    if task_type != "SEQ_CLS":
        remedy = "write it with --to merged, which llama.cpp, optimum and others convert"
        raise InputError(
            f"{folder}: only classifiers and regressors can be exported to ONNX, not {task_type}; {remedy}"
        )
    if task.get("tenants"):
        raise InputError(f"{folder}: has tenants; make a bank of it by `lsr bank`, and export that")


def fast_tokenizer(fields: Fields, folder: Path, base: str | None) -> Any:
    """Load the fast tokenizer in the folder of an adapter or a bank, or else its base model's.

    Raises:
        InputError: if there is none, or it is not a fast tokenizer (package tokenizers).
    """
    tokenizer = load_tokenizer(fields, folder, base)
    if tokenizer is None:
        raise InputError(f"{folder}: neither it nor its base model has a tokenizer, which readers of ONNX need")
    if not tokenizer.is_fast:
        raise InputError(f"{folder}: its tokenizer has no tokenizer.json, which readers of ONNX need")
    return tokenizer


def limit_length(tokenizer: Any, max_length: int | None) -> None:
    """Lower a tokenizer's limit of tokens per text to this one; None keeps its limit."""
    if max_length:
        tokenizer.model_max_length = min(tokenizer.model_max_length, max_length)


def check_size(model: Any, folder: Path) -> None:
    """Check that a model fits into an ONNX file; errors name the folder of its adapter or bank.

    Raises:
        InputError: if it does not.
    """
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if size > MAX_BYTES:
        limit = f"a file of ONNX holds at most {MAX_BYTES / 1e9:.0f} GB; --to merged writes a single adapter"
        raise InputError(f"{folder}: base model and adapter have {size / 1e9:.1f} GB in float32, and {limit}")


def _describe(config: Any, task: Mapping[str, Any], folder: Path) -> None:
    """Set labels and problem type in a model's configuration for transformers.js."""
    describe_labels(config, task, folder)
    if task or config.problem_type != MULTI_LABEL:  # without task.json, the base model says whether it is multi-label
        describe_problem(config, task)


def _fix_length_and_padding(tokenizer: Any) -> None:
    """Store truncation and padding in tokenizer.json, for readers that only use the package tokenizers."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    if tokenizer.model_max_length < UNLIMITED:
        backend.enable_truncation(tokenizer.model_max_length, direction=tokenizer.truncation_side)
    backend.enable_padding(
        direction=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id,
        pad_type_id=tokenizer.pad_token_type_id,
        pad_token=tokenizer.pad_token,
    )


def encode_texts(tokenizer: Any) -> dict[str, Tensor]:
    """Tokenize TEXTS as one batch, in the order of the graph's inputs."""
    longest = min(tokenizer.model_max_length, MAX_LENGTH)
    encoded = tokenizer(list(TEXTS), padding=True, truncation=True, max_length=longest, return_tensors="pt")
    return {name: encoded[name] for name in tokenizer.model_input_names if name in encoded}


@torch.no_grad()
def run_model(model: Any, inputs: Mapping[str, Tensor]) -> np.ndarray:
    """Return the logits (texts, outputs) of a model in torch."""
    return np.asarray(model(**inputs).logits.numpy())


class _ByPosition(nn.Module):
    """Wraps a classifier to take inputs by position and return a tensor, like a graph."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        named = dict(zip(self.names, inputs, strict=True))
        return self.model(**named, return_dict=True).logits


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide advice of packages to authors of exporters: torchvision's operators, other ways to quantize."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _check_is_traceable(config: Any) -> None:
    """Check that a model has no decoder besides its encoder: such classifiers look up end tokens in Python.

    Raises:
        InputError: if it has.
    """
    if config.is_encoder_decoder:
        reason = f"{config.model_type} is an encoder-decoder"
        raise InputError(f"{reason}, so it cannot be exported to ONNX; --to merged writes a single adapter")


@torch.no_grad()
def _trace(model: Any, inputs: Mapping[str, Tensor], path: Path) -> None:
    """Trace a model into a graph with dynamic batch size and length.

    Raises:
        InputError: if torch cannot trace its architecture.
    """
    names = list(inputs)
    # Fewer operators with the same result: the 8-bit graph is a tenth faster on one text.
    model.set_attn_implementation("eager")
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    try:
        program = torch.onnx.export(
            _ByPosition(model, names).eval(),
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=[LOGITS],
            dynamic_shapes=(tuple(free for _ in names),),
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError:
        reason = f"torch cannot trace the architecture {model.config.model_type}"
        raise InputError(f"{reason}, so it cannot be exported to ONNX; --to merged writes a single adapter") from None
    assert program is not None
    graph = program.model_proto
    _remove_places(graph)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def _remove_places(graph: Any) -> None:
    """Remove the names of source files from a graph, since they depend on where packages are installed."""
    del graph.metadata_props[:]
    nodes = list(graph.graph.node)
    for function in graph.functions:
        del function.metadata_props[:]
        nodes += function.node
    for node in nodes:
        del node.metadata_props[:]
        node.doc_string = ""


def _compare(comparison: Comparison, exact: np.ndarray, quantized: np.ndarray) -> Differences:
    """Return the largest differences between torch's logits and those of the float32 and 8-bit graphs.

    Raises:
        InputError: if the float32 graph differs by more than rounding.
    """
    expected = comparison.logits
    difference = _largest(exact - expected)
    allowed = MAX_DIFFERENCE * max(1.0, _largest(expected))
    if not difference <= allowed:  # it may be nan
        raise InputError(f"the graph differs by {difference:.2g} from torch in its logits; {allowed:.1g} is allowed")
    probability = None
    shares = comparison.probabilities(expected)
    if shares is not None:
        quantized_shares = comparison.probabilities(quantized)
        probability = _largest(quantized_shares - shares)
    return Differences(difference, _largest(quantized - expected), probability)


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max())


def _probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray | None:
    if problem_type == REGRESSION:
        return None
    tensor = torch.from_numpy(logits)
    probabilities = tensor.sigmoid() if problem_type == MULTI_LABEL else tensor.softmax(-1)
    return probabilities.numpy()


def run_graph(path: Path, inputs: Mapping[str, Tensor]) -> np.ndarray:
    """Return the logits (batch, labels) of a graph, computed by ONNX Runtime on the CPU.

    Raises:
        InputError: if the runtime cannot run it.
    """
    return Graph(path).run({name: value.numpy() for name, value in inputs.items()})
