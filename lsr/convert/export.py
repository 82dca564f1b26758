"""Export a trained LSR adapter for other software: as a plain PEFT LoRA folder or a plain transformers checkpoint.

The LoRA is exact, because A and B of LSR are LoRA factors: no SVD is taken, and the scaling is folded into B, or alpha
is kept where the adapter's own factors are those of a LoRA.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from torch import Tensor

from lsr.algebra.rounding import dtype_name
from lsr.convert import errors
from lsr.convert.errors import Errors
from lsr.convert.writing import check_output, copy_task, write_adapter, writing
from lsr.loading.adapters import ADAPTER, load_layers
from lsr.loading.lora import Part, pairs_of
from lsr.loading.task_note import labels_of, read_task
from lsr.tuner.card import Card
from lsr.tuner.config import LsrConfig
from lsr.tuner.files import FACTOR, PREFIX, read_tensors
from lsr.tuner.linear import LsrLinear
from lsr.tuner.mistakes import InputError
from lsr.tuner.patterns import exactly
from lsr.tuner.start import layers_of

TOLERATED_LOSS = 0.05  # relative error of the update from which on an export in a dtype is refused
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LONG = 2  # dots in the name of a layer that no other layer's name ends in, as in transformers
BIASES = {"none": "none", "all": "all", "lsr_only": "lora_only"}


@dataclass(frozen=True)
class _Source:
    """All that a LoRA needs of an adapter, from a model or from its folder."""

    config: LsrConfig
    pairs: Mapping[str, Part]  # by layer, without cores
    others: Mapping[str, Tensor]  # the head and the trained biases, by their names in the file
    whole: Sequence[str]  # modules with a tensor in `others`
    targets: Sequence[str] | str
    auto_mapping: Mapping[str, str] | None
    is_transposed: bool


def export_lora(
    adapter: PeftModel | str | Path,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    adapter_name: str = "default",
    force: bool = False,
) -> Errors:
    """Write an LSR adapter as a LoRA folder, which PEFT loads without this package: the same update, head and biases.

    `adapter` is a model with the adapter, or the adapter's folder, which needs no base model, only its frames if they
    are elsewhere. Each layer has its true rank and scaling 1. Where the
    adapter is a LoRA (one rank in `rank_shape`, no core), it has the adapter's own A, B and alpha, bit for bit. The
    bytes are the same every time.

    Raises:
        InputError: if the folder exists and `force` is false, or the dtype loses more of the update than
            `TOLERATED_LOSS` and `force` is false, or overflows; or the adapter's folder is none.
    """
    folder = Path(folder)
    check_output(folder, () if isinstance(adapter, PeftModel) else (Path(adapter),), replace=force)
    source = _of_model(adapter, adapter_name) if isinstance(adapter, PeftModel) else _of_folder(Path(adapter))
    exact = {name: (pair.b, pair.a) for name, pair in source.pairs.items()}
    written = {name: (rounded(name, b, dtype), rounded(name, a, dtype)) for name, (b, a) in exact.items()}
    lost = errors.of_updates(written, exact)
    _check(lost, dtype, force)
    tensors = dict(source.others)
    for name, pair in source.pairs.items():
        tensors |= {f"{PREFIX}{name}.lora_A.weight": pair.a, f"{PREFIX}{name}.lora_B.weight": pair.b}
    with writing(folder) as new:
        write_adapter(new, _lora_fields(source), {n: rounded(n, tensor, dtype) for n, tensor in tensors.items()})
        _card(source.config).write(new)
        _keep_task(source.config, new)
    return lost


def export_merged(
    model: PeftModel,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    adapter_name: str = "default",
    tokenizer: Any = None,
    force: bool = False,
) -> Errors:
    """Write the base model with the update merged into its weights, and the tokenizer if given; modifies `model`.

    Raises:
        InputError: as `export_lora`.
    """
    folder = Path(folder)
    check_output(folder, (), replace=force)
    lost = _lost_by_merging(_layers_of(model, adapter_name), adapter_name, dtype)
    _check(lost, dtype, force)
    config = cast("LsrConfig", model.peft_config[adapter_name])
    model.set_adapter(adapter_name)
    plain = cast("Any", model.merge_and_unload())
    for name, parameter in plain.named_parameters():
        parameter.data = rounded(name, parameter.data, dtype)
    plain.to(dtype)  # buffers, and the dtype in the configuration
    with writing(folder) as new:
        plain.save_pretrained(str(new))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(new))
        _keep_task(config, new)
    return lost


def _layers_of(model: PeftModel, adapter_name: str) -> dict[str, LsrLinear]:
    layers = layers_of(model, adapter_name)
    if not layers:
        raise InputError(f"the model has no LSR adapter {adapter_name!r}")
    return layers


def _of_model(model: PeftModel, adapter_name: str) -> _Source:
    layers, base = _layers_of(model, adapter_name), model.get_base_model()
    config = cast("LsrConfig", model.peft_config[adapter_name])
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    return _Source(
        config=config,
        pairs=pairs_of(config, layers, adapter_name),
        others={key: value for key, value in state.items() if not FACTOR.fullmatch(key)},
        whole=[name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)],
        targets=_targets(list(layers), [key.removeprefix(PREFIX) for key, _ in model.named_modules()]),
        auto_mapping={"base_model_class": type(base).__name__, "parent_library": type(base).__module__},
        is_transposed=any(layer.is_transposed for layer in layers.values()),
    )


def _of_folder(folder: Path) -> _Source:
    config, layers = load_layers(folder)
    others = {key: value for key, value in read_tensors(folder).items() if not FACTOR.fullmatch(key)}
    parts = [key.removeprefix(PREFIX).split(".")[:-1] for key in others]
    return _Source(
        config=config,
        pairs=pairs_of(config, layers, ADAPTER),
        others=others,
        whole=[".".join(path[:length]) for path in parts for length in range(1, len(path) + 1)],
        # Other layers may end in a short name, and without the base nobody knows.
        targets=_targets(list(layers), [f"a.{name}" for name in layers if name.count(".") < LONG]),
        auto_mapping=config.auto_mapping,
        is_transposed=False,  # unknown without the base; PEFT sets it for the layers that need it
    )


def _lora_fields(source: _Source) -> dict[str, Any]:
    """Return the fields of adapter_config.json: only those that old versions of PEFT and other readers know."""
    config = source.config
    rank, ranks = _usual({name: len(pair.a) for name, pair in source.pairs.items()})
    alpha, alphas = _usual({name: pair.alpha for name, pair in source.pairs.items()})
    return {
        **({} if config.task_type else {"auto_mapping": source.auto_mapping}),
        "peft_type": "LORA",
        "task_type": config.task_type,
        "base_model_name_or_path": config.base_model_name_or_path,
        "revision": config.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": source.targets,
        "modules_to_save": _saved_whole(source),
        "layers_to_transform": None,
        "layers_pattern": None,
        "bias": BIASES[config.bias],
        "fan_in_fan_out": source.is_transposed,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }


def _usual(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Return the most common value of layers, and the others by patterns, which PEFT matches as regular expressions."""
    usual = min(Counter(values.values()).items(), key=lambda item: (-item[1], item[0]))[0]
    others = {name: value for name, value in values.items() if value != usual}
    clash = {name: its for name, its in others.items() if any(one.endswith(f".{name}") for one in values)}
    return usual, {re.escape(name): its for name, its in others.items() if name not in clash} | exactly(clash)


def _keep_task(config: LsrConfig, folder: Path) -> None:
    if config.folder is not None:
        copy_task(config.folder, folder)


def _card(config: LsrConfig) -> Card:
    labels = labels_of(read_task(config.folder), {}) if config.folder else None
    return Card(
        method="LORA",
        called="LoRA adapter",
        base=config.base_model_name_or_path,
        revision=config.revision,
        task_type=config.task_type,
        labels=config.labels if labels is None else labels,
        summary="It equals an LSR adapter, and loads without `lsr`.",
    )


def _targets(names: list[str], modules: Sequence[str]) -> list[str] | str:
    """Return full names, or one regular expression if other modules end in one of them: PEFT matches endings."""
    endings = tuple(f".{name}" for name in names)
    if any(module.endswith(endings) for module in modules if module not in names):
        return "|".join(re.escape(name) for name in sorted(names))
    return sorted(names)


def _saved_whole(source: _Source) -> list[str] | None:
    """Return the entries of modules_to_save that the model has: PEFT adds the names of all common heads."""
    listed = source.config.modules_to_save or []
    entries = [entry for entry in listed if any(name.endswith(entry) for name in source.whole)]
    return sorted(set(entries)) or None


def _lost_by_merging(layers: Mapping[str, LsrLinear], adapter_name: str, dtype: torch.dtype) -> Errors:
    """Measure ||round(W + ΔW) - W - ΔW||: an entry of ΔW below half a rounding step of W's entry vanishes."""
    absolute, lengths = {}, {}
    for name, layer in layers.items():
        weight, update = layer.pretrained_weight().float(), layer.get_delta_weight(adapter_name).detach()
        written = rounded(name, weight + update, dtype).double()
        absolute[name] = float((written - weight.double() - update.double()).norm())
        lengths[name] = float(update.double().norm())
    return errors.relative(absolute, lengths)


def rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in a dtype.

    Raises:
        InputError: if it overflows; names it.
    """
    written = tensor.to(dtype)
    if not torch.isfinite(written).all():
        raise InputError(f"{dtype_name(dtype)} cannot hold the weights of {name}: they overflow; use float32")
    return written


def _check(lost: Errors, dtype: torch.dtype, force: bool) -> None:
    if lost.total > TOLERATED_LOSS and not force:
        raise InputError(
            f"{dtype_name(dtype)} would lose {lost.total:.1%} of the update, "
            f"{lost.layers[lost.worst]:.1%} of that in {lost.worst}; "
            f"at most {TOLERATED_LOSS:.0%} is allowed; use float32, or --force"
        )
