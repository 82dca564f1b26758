"""The base model of an adapter, looked up by name and loaded with a matching head; its tokenizer and label names."""

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from lsr.convert.bounds import check_weights, few_modules
from lsr.convert.files import PREFIX, InputError, NoBaseError, read_config
from lsr.convert.installed import installed_folder, missing_package
from lsr.tuner.saved import CONFIG, first_line

CLASSES = {  # by PEFT's task_type
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": transformers.AutoModel,
}
VOCABULARIES = (
    *("tokenizer.json", "vocab.txt", "vocab.json"),
    *("spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
TASK = "task.json"  # written by the pipeline's train stage
NO_CODE = {"trust_remote_code": False}  # otherwise transformers asks on the terminal whether to run a folder's code
EXPLAINED = (
    *(OSError, ValueError, LookupError, TypeError, RuntimeError, AttributeError, ImportError, AssertionError),
    SafetensorError,
)


def empty_base(fields: Mapping[str, Any], base: str | None = None) -> PreTrainedModel:
    """Return the base model named in an adapter's configuration, or `base`, on the meta device.

    Raises:
        InputError: if it does not exist or cannot be loaded.
    """
    name, revision = _named_base(fields, base)
    with _explained(name, revision):
        config = AutoConfig.from_pretrained(name, revision=revision, **NO_CODE)
        return _skeleton(_model_class(fields), config, name)


def load_base(fields: Mapping[str, Any], tensors: Mapping[str, Tensor], base: str | None = None) -> PreTrainedModel:
    """Return the base model named in an adapter's configuration, or `base`, with a head that fits the tensors.

    Raises:
        InputError: if it does not exist, cannot be loaded, or has weights for another number of labels.
    """
    name, revision = _named_base(fields, base)
    kind = _model_class(fields)
    own = {key.removeprefix(PREFIX): value for key, value in tensors.items()}
    with _explained(name, revision):
        config = AutoConfig.from_pretrained(name, revision=revision, **NO_CODE)
        _set_labels(config, kind, own, name)
        model, info = kind.from_pretrained(
            name,
            config=config,
            revision=revision,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # our own error is clearer
            **NO_CODE,
        )
    for key, found, wanted in sorted(info["mismatched_keys"]):
        if key not in own:  # a head that the adapter replaces may have any size
            raise InputError(f"base model {name}: {key} is {by(found)}, but the adapter is for {by(wanted)}")
    for key in sorted(info["missing_keys"] - own.keys()):
        raise InputError(f"base model {name}: {key} is missing, and the adapter does not hold it either")
    if fields.get("task_type") == "SEQ_CLS":
        _name_padding(model.config.get_text_config())
    return model


def _name_padding(config: PretrainedConfig) -> None:
    """Pad with the end-of-text token if there is no padding token, as in GPT-2: a decoder's head needs one."""
    if getattr(config, "pad_token_id", None) is None:
        ends = getattr(config, "eos_token_id", None)
        config.pad_token_id = ends[0] if isinstance(ends, list) else ends


def load_plain(folder: Path, adapter: Path) -> PreTrainedModel:
    """Return a merged checkpoint, in evaluation mode and float32, as a model of the adapter's task.

    Raises:
        InputError: if it cannot be loaded.
    """
    with _explained(str(folder)):
        return _model_class(read_config(adapter)).from_pretrained(str(folder), **NO_CODE).float().eval()


def load_tokenizer(folder: Path, base: str | None = None) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer in the adapter's folder, or else that of its base model; None if neither has one.

    Raises:
        InputError: if its files cannot be read.
    """
    return tokenizer_of(read_config(folder), folder, base)


def tokenizer_of(fields: Mapping[str, Any], folder: Path, base: str | None = None) -> PreTrainedTokenizerBase | None:
    """Return the same as `load_tokenizer`, given the fields of the configuration.

    Raises:
        InputError: if its files cannot be read.
    """
    named, revision = _named_base(fields, base)
    for name, version in ((str(folder), None), (named, revision)):
        # Without these files transformers makes up a tokenizer of five words.
        if any(_has_file(name, version, file) for file in VOCABULARIES):
            with _explained(name, version):
                return AutoTokenizer.from_pretrained(name, revision=version, **NO_CODE)
    return None


def _has_file(name: str, revision: str | None, file: str) -> bool:
    try:
        return cached_file(name, file, revision=revision) is not None
    except (OSError, ValueError):
        return False


def read_labels(folder: Path) -> list[str] | None:
    """Return the label names in the pipeline's task.json next to an adapter; None if there are none.

    Raises:
        InputError: if the file is not a JSON object, or its labels are not a list of strings.
    """
    path = folder / TASK
    if not path.is_file():
        return None
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON object with labels: {first_line(error)}") from None
    if not (labels is None or (isinstance(labels, list) and all(isinstance(name, str) for name in labels))):
        raise InputError(f"{path}: labels must be a list of names or null")
    return labels


def name_labels(model: PeftModel, names: Sequence[str], where: str = "--labels") -> None:
    """Set the label names in the base model's configuration; `where` names their source in messages.

    Raises:
        InputError: unless there is one name per label, all different.
    """
    count = model.config.num_labels
    if len(names) != count or len(set(names)) != count:
        raise InputError(f"{where}: needs {count} different names, one per label of the head, got {' '.join(names)}")
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}


def _named_base(fields: Mapping[str, Any], base: str | None) -> tuple[str, str | None]:
    """Return the folder or hub repository to pass to `from_pretrained`, and its revision.

    Raises:
        NoBaseError: if none is named, or the folder does not exist.
    """
    name = base if base is not None else fields.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise NoBaseError(f"{CONFIG}: base_model_name_or_path names no base model; name it with --base")
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():  # no hub repository's name starts like this
        raise NoBaseError(f"base model {name}: no such folder")
    if base is not None:
        return name, None
    revision = fields.get("revision")
    folder = None if Path(name).is_dir() else installed_folder(name, revision)
    return (name, revision) if folder is None else (str(folder), None)


def _model_class(fields: Mapping[str, Any]) -> Any:
    task = fields.get("task_type")
    if task in CLASSES:
        return CLASSES[task]
    # Without a task PEFT writes the class instead; only classes of transformers are looked up.
    mapping = fields.get("auto_mapping") or {}
    module, name = str(mapping.get("parent_library", "")), str(mapping.get("base_model_class", ""))
    if not module.startswith("transformers."):
        return transformers.AutoModel
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise InputError(f"{CONFIG}: auto_mapping names a class {module}.{name} that does not exist") from None
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise InputError(f"{CONFIG}: auto_mapping names {module}.{name}, which is not a model class")
    return kind


def _skeleton(kind: Any, config: PretrainedConfig, name: str) -> PreTrainedModel:
    """Return a model on the meta device.

    Raises:
        InputError: if it would have too many modules.
    """
    with torch.device("meta"), few_modules(name):
        return kind.from_config(config, **NO_CODE) if hasattr(kind, "from_config") else kind(config)


@contextmanager
def _explained(name: str, revision: str | None = None) -> Iterator[None]:
    """Turn exceptions raised while loading a model into one line.

    Raises:
        NoBaseError: for any of them.
    """
    try:
        yield
    except EXPLAINED as error:
        if isinstance(error, InputError):  # it is one line already
            raise
        package = missing_package(name, revision)
        raise NoBaseError(
            f"base model {name}: cannot be loaded: {first_line(error)} (needed: "
            f"{f'the package {package}, or ' if package else ''}a folder or hub repository with config.json and "
            "model.safetensors, see --base)"
        ) from None


def _set_labels(config: PretrainedConfig, kind: Any, own: Mapping[str, Tensor], name: str) -> None:
    """Set the number of labels with which the head has the shapes of the adapter's tensors.

    Raises:
        InputError: if there is no such number, or the model would be far larger than its weights.
    """
    candidates = sorted({len(value) for key, value in own.items() if value.dim() == 2 and ".lsr_" not in key})
    for count in dict.fromkeys([int(config.num_labels or 0), *candidates]):
        if count != config.num_labels:
            config.num_labels = count
        model = _skeleton(kind, config, name)
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        differing = [key for key, value in own.items() if shapes.get(key, value.shape) != value.shape]
        if not differing:
            check_weights(name, model, own)
            return
    key = differing[0]
    raise InputError(f"base model {name}: {key} is {by(own[key].shape)} in the adapter, but {by(shapes[key])} here")


def by(shape: Sequence[int]) -> str:
    """Return a shape as shown in messages: 24 x 3."""
    return " x ".join(map(str, shape))
