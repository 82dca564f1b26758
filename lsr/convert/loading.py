"""An LSR adapter's folder becomes a PEFT model on its base model, or, without a base model, its layers alone."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from lsr.convert.files import (
    CONFIG,
    FACTOR,
    PREFIX,
    WEIGHTS,
    InputError,
    NoBaseError,
    first_line,
    read_config,
    read_tensors,
)
from lsr.tuner.config import LsrConfig
from lsr.tuner.linear import LsrLinear, adapted_layers

METHOD = "LSR"
ADAPTER = "default"
CLASSES = {  # by PEFT's task_type
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": transformers.AutoModel,
}
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
EXPLAINED = (
    *(OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, ImportError, AssertionError),
    SafetensorError,
)


def load_adapter(folder: Path, base: str | None = None) -> PeftModel:
    """Return an adapter beside its base model, in evaluation mode and float32.

    The base is the one that the adapter names, or `base`, a folder or a hub repository. It gets as many labels as the
    adapter's head has.

    Raises:
        InputError: if the folder is no LSR adapter, or the base model is not there or does not fit it.
    """
    fields, tensors, config = read_config(folder, METHOD), read_tensors(folder), _config(folder)
    name, revision = _named_base(fields, base)
    with _explained(name):
        skeleton = _skeleton(_model_class(fields), AutoConfig.from_pretrained(name, revision=revision))
    _check_layers(folder, skeleton, config, tensors)
    model = load_base(fields, tensors, base)
    try:
        # The factors are in the file: drawing or decomposing them first would be for nothing.
        adapted = PeftModel.from_pretrained(model, str(folder), low_cpu_mem_usage=True, torch_device="cpu")
    except EXPLAINED as error:
        raise InputError(f"{folder}: does not fit the base model: {first_line(error)}") from None
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    for name in sorted(expected ^ tensors.keys()):  # PEFT says nothing of the first kind and warns of the second
        problem = "is no part of this adapter on this base model" if name in tensors else "is missing"
        raise InputError(f"{folder / WEIGHTS}: {name} {problem}")
    adapted.float().eval()
    for layer in adapted_layers(adapted).values():
        layer.settle()  # a folded start was rounded to the dtype of the base
    return adapted


def load_base(fields: Mapping[str, Any], tensors: Mapping[str, Tensor], base: str | None = None) -> PreTrainedModel:
    """Return the base model that an adapter's fields name, or `base`, with a head like that of the adapter's tensors.

    Raises:
        InputError: if it is not there, cannot be loaded, or has weights for another number of labels.
    """
    name, revision = _named_base(fields, base)
    kind = _model_class(fields)
    own = {key.removeprefix(PREFIX): value for key, value in tensors.items()}
    with _explained(name):
        config = AutoConfig.from_pretrained(name, revision=revision)
        _set_labels(config, kind, own, name)
        model, info = kind.from_pretrained(
            name,
            config=config,
            revision=revision,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # an own error is clearer
        )
    for key, found, wanted in sorted(info["mismatched_keys"]):
        raise InputError(f"base model {name}: {key} is {_by(found)}, the adapter is for {_by(wanted)}")
    for key in sorted(info["missing_keys"] - own.keys()):
        raise InputError(f"base model {name}: {key} is missing, and the adapter does not hold it either")
    return model


def load_lora(folder: Path, base: str | None = None) -> PeftModel:
    """Return an exported LoRA beside its base model, as plain PEFT loads it, in evaluation mode and float32.

    Raises:
        InputError: if the folder is no LoRA adapter, or the base model is not there or does not fit it.
    """
    model = load_base(read_config(folder, "LORA"), read_tensors(folder), base).float()
    try:
        return PeftModel.from_pretrained(model, str(folder), torch_device="cpu").float().eval()
    except EXPLAINED as error:
        raise InputError(f"{folder}: does not fit the base model: {first_line(error)}") from None


def load_plain(folder: Path, adapter: Path) -> PreTrainedModel:
    """Return a merged checkpoint, in evaluation mode and float32, as a model of the adapter's task.

    Raises:
        InputError: if it cannot be loaded.
    """
    with _explained(str(folder)):
        return _model_class(read_config(adapter)).from_pretrained(str(folder)).float().eval()


def load_tokenizer(folder: Path, base: str | None = None) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer in the adapter's folder, or else that of its base model; None if neither has one.

    Raises:
        InputError: if its files cannot be read.
    """
    named, revision = _named_base(read_config(folder), base)
    for name, version in ((str(folder), None), (named, revision)):
        # Without these files transformers makes up a tokenizer of five words.
        if any(_has_file(name, version, file) for file in VOCABULARIES):
            with _explained(name):
                return AutoTokenizer.from_pretrained(name, revision=version)
    return None


def _has_file(name: str, revision: str | None, file: str) -> bool:
    try:
        return cached_file(name, file, revision=revision) is not None
    except (OSError, ValueError):
        return False


def name_labels(model: PeftModel, names: Sequence[str]) -> None:
    """Name the labels in the configuration of the base model.

    Raises:
        InputError: if there are more or fewer names than labels, or a name comes twice.
    """
    count = model.config.num_labels
    if len(names) != count or len(set(names)) != count:
        raise InputError(f"--labels: needs {count} different names, one a label of the head, got {' '.join(names)}")
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}


def load_layers(folder: Path) -> dict[str, LsrLinear]:
    """Return an adapter's layers by name without a base model: their base weights have no values.

    Raises:
        InputError: if the folder is no LSR adapter, or its file does not hold all of it.
    """
    read_config(folder, METHOD)
    tensors, config = read_tensors(folder), _config(folder)
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if found := FACTOR.fullmatch(key):
            layers.setdefault(found[1], {})[f"lsr_adapters.{ADAPTER}.{found[2]}"] = tensor
    if not layers:
        raise InputError(f"{folder / WEIGHTS}: holds no LSR factors")
    try:
        return {name: _layer(name, config, state) for name, state in layers.items()}
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(f"{folder}: {WEIGHTS} and {CONFIG} do not fit together: {first_line(error)}") from None


def _layer(name: str, config: LsrConfig, state: Mapping[str, Tensor]) -> LsrLinear:
    if config.resolved is None:
        raise ValueError("resolved: the configuration does not say the shapes of the layers")
    shapes = config.resolved.layer(name)
    base = torch.nn.utils.skip_init(nn.Linear, shapes.in_features, shapes.out_features, bias=False)
    layer = LsrLinear(base, ADAPTER, name)
    layer.update_layer(ADAPTER, config)
    layer.base_hashes.clear()  # there is no weight to compare with
    missing, unexpected = layer.load_state_dict(state, strict=False)
    for key in [*unexpected, *(key for key in missing if not key.startswith("base_layer."))]:
        raise ValueError(f"layer {name!r}: {key} is {'unexpected' if key in unexpected else 'missing'}")
    return layer


def _config(folder: Path) -> LsrConfig:
    try:
        config = LsrConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{folder / CONFIG}: {first_line(error)}") from None
    assert isinstance(config, LsrConfig)
    return config


def _named_base(fields: Mapping[str, Any], base: str | None) -> tuple[str, str | None]:
    name = base if base is not None else fields.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise NoBaseError(f"{CONFIG}: base_model_name_or_path names no base model; name it with --base")
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():  # a hub repository's name does not look so
        raise NoBaseError(f"base model {name}: no such folder")
    return name, None if base is not None else fields.get("revision")


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
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise InputError(f"{CONFIG}: auto_mapping names a class {module}.{name} that is not there") from None


def _skeleton(kind: Any, config: PretrainedConfig) -> PreTrainedModel:
    """Return a model without values."""
    with torch.device("meta"):
        return kind.from_config(config) if hasattr(kind, "from_config") else kind(config)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what loading a model raises into one line.

    Raises:
        NoBaseError: for whatever went wrong.
    """
    try:
        yield
    except EXPLAINED as error:
        if isinstance(error, InputError):  # it is one line already
            raise
        raise NoBaseError(
            f"base model {name}: cannot be loaded: {first_line(error)} (needed: a folder or hub repository with "
            "config.json and model.safetensors, see --base)"
        ) from None


def _set_labels(config: PretrainedConfig, kind: Any, own: Mapping[str, Tensor], name: str) -> None:
    """Give the configuration the number of labels with which the head has the shapes of the adapter's tensors.

    Raises:
        InputError: if there is no such number.
    """
    candidates = sorted({len(value) for key, value in own.items() if value.dim() == 2 and ".lsr_" not in key})
    for count in dict.fromkeys([int(config.num_labels or 0), *candidates]):
        if count != config.num_labels:
            config.num_labels = count
        shapes = {key: value.shape for key, value in _skeleton(kind, config).state_dict().items()}
        differing = [key for key, value in own.items() if shapes.get(key, value.shape) != value.shape]
        if not differing:
            return
    key = differing[0]
    raise InputError(f"base model {name}: {key} is {_by(own[key].shape)} in the adapter and {_by(shapes[key])} here")


def _check_layers(folder: Path, model: nn.Module, config: LsrConfig, tensors: Mapping[str, Tensor]) -> None:
    """Compare names and widths of the adapted layers with the base: PEFT's messages show shapes of factors.

    Raises:
        InputError: names the first layer that does not fit.
    """
    modules = dict(model.named_modules())
    for name in sorted({found[1] for found in map(FACTOR.fullmatch, tensors) if found}):
        if name not in modules:
            raise InputError(f"{folder}: adapts a layer {name!r}, which the base model does not have")
        try:
            LsrLinear(modules[name], ADAPTER, name).make_form(config)
        except (TypeError, ValueError) as error:
            raise InputError(f"{folder}: {error}") from None


def _by(shape: Any) -> str:
    return " x ".join(map(str, shape))
