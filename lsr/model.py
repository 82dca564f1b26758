"""LsrModel: puts LSR layers into a model, the way PEFT's own methods do."""

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, ModulesToSaveWrapper
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key
from torch import nn

from lsr.config import PATTERNS, LsrConfig
from lsr.layer import LsrLayer, LsrLinear

Value = TypeVar("Value")


def adapted_layers(model: nn.Module) -> dict[str, LsrLayer]:
    """Return the LSR layers of a model by their names in the base model, in the model's order."""
    return {module.layer_name: module for module in model.modules() if isinstance(module, LsrLayer)}


def start_factors(model: nn.Module, adapter_name: str = "default") -> Iterator[tuple[str, LsrLayer]]:
    """Give each layer's factors the start that the adapter's `init_weights` names; yield each layer when it is done.

    `get_peft_model` does this by itself. It is a generator for callers that show progress: then build the model from a
    config with `init_weights=True`, set the name on `model.peft_config[adapter_name]`, and exhaust this.

    Raises:
        ValueError: if a base weight does not allow the start; names the layer.
    """
    config = _config(model, adapter_name)
    for name, layer in adapted_layers(model).items():
        if adapter_name in layer.scaling:
            if config.init_weights == "row_space":
                layer.start_from_row_space(adapter_name, config.seed)
            yield name, layer
    config.mark_started()


class LsrModel(BaseTuner):
    """A base model with LSR adapters; use it through `peft.get_peft_model(model, LsrConfig(...))`."""

    prefix = "lsr_"
    tuner_layer_cls = LsrLayer
    target_module_mapping = cast("dict[str, list[str]]", TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING) | {
        "distilbert": ["q_lin", "v_lin"]  # PEFT's table has no entry for it
    }

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Put the adapter's layers in place and start their factors.

        Raises:
            ValueError: if an entry of the configuration matches no layer; names the nearest.
        """
        config = _config(self, adapter_name)
        inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, LsrLayer))
        names = [name for name, _ in model.named_modules() if name and not name.startswith(inside)]
        check_names(config, names)
        # PEFT fills in default and all-linear targets later; a wrong pattern should leave the model as it was.
        config = cast("LsrConfig", self._prepare_adapter_config(config, self.get_model_config(model)))
        is_open = config.target_modules == "all-linear"
        config = cast("LsrConfig", _maybe_include_all_linear_layers(config, model))
        adapted = [name for name in names if self._check_target_module_exists(config, name)]
        if is_open:  # PEFT lists excluded layers and parts of wrapped heads too, which a fresh model may not have
            config.target_modules = sorted(adapted)
        _check_patterns(config, adapted)
        super().inject_adapter(
            model,
            adapter_name,
            autocast_adapter_dtype=autocast_adapter_dtype,
            low_cpu_mem_usage=low_cpu_mem_usage,
            state_dict=state_dict,
        )
        if isinstance(config.init_weights, str):
            for _ in start_factors(self, adapter_name):
                pass

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: object, **kwargs: object) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:  # PEFT would drop it without a word
            raise ValueError("adapter_names: LSR adapters cannot differ within one batch; use set_adapter")
        yield

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        config = cast("LsrConfig", peft_config)
        layer = target if isinstance(target, LsrLinear) else LsrLinear(target, adapter_name, current_key)
        rank_shape = _override(config.rank_pattern, current_key, config.rank_shape)
        separation_rank = _override(config.separation_rank_pattern, current_key, config.separation_rank)
        alpha = _override(config.alpha_pattern, current_key, config.alpha)
        layer.update_layer(adapter_name, config, rank_shape, separation_rank, alpha)
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)  # an additional adapter is not active yet
            self._replace_module(parent, target_name, layer, target)
        if isinstance(parent, nn.TransformerEncoderLayer):
            # Its fast path in evaluation reads the base weights, past the adapters; zero keeps it from being taken.
            parent.activation_relu_or_gelu = 0

    @classmethod
    def _get_learnable_bias_state_dict(
        cls, model: nn.Module, state_dict: dict[str, torch.Tensor], config: PeftConfig
    ) -> dict[str, torch.Tensor]:
        # With bias="all" PEFT would also write the biases of a replaced head, and those of the new head a second time.
        wrapped = tuple(
            f"{name}." for name, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)
        )
        biases = super()._get_learnable_bias_state_dict(model, state_dict, config)
        return {name: value for name, value in biases.items() if not name.startswith(wrapped)}

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's version reads the weight of the child, which a head of several layers (RoBERTa's) does not have.
        if isinstance(child, ModulesToSaveWrapper):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)


def check_names(config: PeftConfig, names: list[str]) -> None:
    """Refuse target_modules or exclude_modules of which an entry is no layer: PEFT skips it without a word.

    Raises:
        ValueError: names the entry and the nearest layer.
    """
    for field in ("target_modules", "exclude_modules"):
        value = getattr(config, field)
        for entry in sorted(value) if isinstance(value, set) else []:
            if not any(f".{name}".endswith(f".{entry}") for name in names):
                raise ValueError(f"{field}: no layer is named {entry!r}{_nearest(entry, names)}")
        if isinstance(value, str) and value != "all-linear" and not any(re.fullmatch(value, name) for name in names):
            raise ValueError(f"{field}: {value!r} matches no layer{_nearest(value, names)}")


def _override(pattern: dict[str, Value], layer_name: str, usual: Value) -> Value:
    return pattern.get(get_pattern_key(list(pattern), layer_name), usual)


def _config(model: nn.Module, adapter_name: str) -> LsrConfig:
    return cast("dict[str, LsrConfig]", model.peft_config)[adapter_name]


def _check_patterns(config: LsrConfig, adapted: list[str]) -> None:
    for field in PATTERNS:
        for pattern in getattr(config, field):
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in adapted):
                raise ValueError(f"{field}: {pattern!r} matches no adapted layer{_nearest(pattern, adapted)}")
    indices = config.layers_to_transform
    for index in [indices] if isinstance(indices, int) else indices or []:
        if not any(f".{index}." in name for name in adapted):
            raise ValueError(f"layers_to_transform: no adapted layer has the index {index}")


def _nearest(word: str, names: list[str]) -> str:
    endings = dict.fromkeys(name.rpartition(".")[2] for name in names)
    near = difflib.get_close_matches(word, [ending for ending in endings if not ending.isdigit()], n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
