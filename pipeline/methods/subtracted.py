"""Initial LoRA updates that are subtracted from the base weight, as in PiSSA and OLoRA, kept in the adapter's file.

PEFT would decompose the base weight again whenever such an adapter is loaded. That gives different bits on another
machine, and fails without enough memory. So the file also holds the initial factors, as `lora_start`, and their product
is subtracted from the base weight in memory.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.other import transpose
from safetensors import safe_open
from torch import Tensor, nn

from pipeline.params.methods import SUBTRACTED

NAME = "default"


class Start(nn.Module):
    """The initial factors of a LoRA layer."""

    A: Tensor  # (r, in_features)
    B: Tensor  # (out_features, r)

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.register_buffer("A", a.detach().clone())
        self.register_buffer("B", b.detach().clone())


def remember(model: PeftModel) -> None:
    """Store in a fresh adapter what has been subtracted: a copy of its initial factors."""
    for _, layer in _layers(model):
        layer.add_module("lora_start", nn.ModuleDict({NAME: Start(*_factors(layer))}))


def starts(config: PeftConfig) -> bool:
    """Return whether an adapter's initial update is subtracted from the base weight."""
    return isinstance(config, LoraConfig) and config.init_lora_weights in SUBTRACTED


def configuration(path: Path) -> LoraConfig | None:
    """Return the configuration in a file if it is such an adapter's; None if it is another one's, or broken."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields["peft_type"] != "LORA" or fields["init_lora_weights"] not in SUBTRACTED:
            return None
        return LoraConfig.from_pretrained(str(path.parent))
    except (OSError, ValueError, TypeError, KeyError):
        return None  # PEFT will report what is wrong


def without_start(config: LoraConfig) -> LoraConfig:
    """Return a copy of the configuration that leaves the base weight unchanged."""
    plain = copy.copy(config)
    plain.init_lora_weights = False
    return plain


def subtract(model: PeftModel, path: Path, config: LoraConfig) -> None:
    """Subtract an adapter's initial update from the base weights, after it was loaded without doing so.

    `path` is the adapter's file, and `config` its configuration.

    Raises:
        ValueError: if the file lacks the initial factors of a layer, or they have the wrong shape.
    """
    with safe_open(path, "pt") as file:
        for name, layer in _layers(model):
            keys = [f"{name}.lora_start.{side}" for side in ("A", "B")]
            missing = [key for key in keys if key not in file.keys()]  # noqa: SIM118 it is no dict
            if missing:
                raise ValueError(f"{missing[0]} is missing")
            start = Start(*map(file.get_tensor, keys)).to(layer.get_base_layer().weight.device)
            for key, own, found in zip(keys, _factors(layer), (start.A, start.B), strict=True):
                if own.shape != found.shape:
                    raise ValueError(f"{key} is {tuple(found.shape)}, but the adapter says {tuple(own.shape)}")
            layer.add_module("lora_start", nn.ModuleDict({NAME: start}))
            weight = layer.get_base_layer().weight
            product = transpose(layer.scaling[NAME] * start.B.float() @ start.A.float(), layer.fan_in_fan_out)
            weight.data = (weight.data.float() - product).to(weight.dtype)
    cast(
        "LoraConfig", model.peft_config[NAME]
    ).init_lora_weights = config.init_lora_weights  # so that a copy of it is correct


def _layers(model: PeftModel) -> Iterator[tuple[str, Any]]:  # of LoraLayer, whose attributes PEFT does not annotate
    yield from ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def _factors(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
