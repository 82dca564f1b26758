"""LsrModel: inserts LSR layers into a model, as PEFT's own methods do."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import GenerationConfig

from lsr.algebra.separable import FactorShapes
from lsr.errors import check_held, wrap_errors
from lsr.tuner.adapter import LsrAdapter
from lsr.tuner.config import LsrConfig
from lsr.tuner.forms import check_forms
from lsr.tuner.initialize import initialize_group
from lsr.tuner.injected import Injected, Resolved
from lsr.tuner.layer import LsrLinear, find_lsr_layers
from lsr.tuner.lookup import RECORDS, config_of, find_injected, groups_of, layers_of
from lsr.tuner.options import Fields
from lsr.tuner.sharing import LayerGroup, layer_group_of
from lsr.tuner.targets import DEFAULTS, check_names, is_quantized, select_layers
from lsr_onnx.names import BASE


@dataclass
class Injection:
    """State of an injection in progress for `_create_and_replace`, whose arguments PEFT determines."""

    forms: dict[str, FactorShapes]  # forms by name of the layer
    # The adapter that owns the shared factors of each layer group.
    owners: dict[LayerGroup, LsrAdapter] = field(default_factory=dict)


class MultiLayerHeadTuner(BaseTuner):
    """A tuner that can be unloaded from models whose head has several layers, such as RoBERTa's."""

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's version reads the weight of the child, which such a head does not have.
        if isinstance(child, ModulesToSaveWrapper):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)


def _disable_fast_path(model: nn.Module, layer: nn.TransformerEncoderLayer) -> None:
    """Disable PyTorch's fast path in evaluation mode, which reads the base weights and bypasses the adapters.

    An encoder with such a layer must not pack padded texts into nested tensors, which only the fast path reads.
    """
    layer.activation_relu_or_gelu = 0
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and layer in module.layers:
            module.use_nested_tensor = False


class LsrModel(MultiLayerHeadTuner):
    """A base model with LSR adapters; use it through `peft.get_peft_model(model, LsrConfig(...))`."""

    prefix = "lsr_"
    tuner_layer_cls = LsrLinear
    target_module_mapping = DEFAULTS

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Insert the adapter's layers and initialize their factors; further arguments are as in PEFT.

        Raises:
            ValueError: if an entry of the configuration matches no layer; names the model's layers.
        """
        config = config_of(self, adapter_name)
        if config.injected is not None:  # has the record of another adapter, by which that one is saved
            config = copy(config)
            self.peft_config[adapter_name] = config
        names = check_names(config, model)
        # PEFT resolves default and all-linear targets only later; a wrong pattern should leave the model unchanged.
        config = cast("LsrConfig", self._prepare_adapter_config(config, self.get_model_config(model)))
        adapted = select_layers(model, config, names)
        state = kwargs.get("state_dict")
        if state is not None:  # PEFT then adapts its layers, whatever the configuration names
            held = {key.rsplit(f".{self.prefix}", 1)[0] for key in state}
            adapted = [name for name in names if name in held]
        if config.target_modules == "all-linear":
            config.target_modules = sorted(adapted)
        _check_not_nested(model, adapted)
        forms = check_forms(model, adapted, config)
        self._injection = Injection(forms)
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        finally:
            del self._injection  # otherwise the factors would outlive their adapter here
        is_saved = config.resolved is not None
        injected = Injected(
            resolved=config.resolved or Resolved.of(forms),
            init_weights=config.init_weights,
            labels=_labels_of(model),
            awaits_examples=config.needs_examples and not is_saved,
        )
        # Those of a file are about to be loaded, and examples are read later.
        initialization = "random" if is_saved or injected.awaits_examples else config.initialization
        for layers in groups_of(self, adapter_name).values():
            initialize_group(layers, adapter_name, config, initialization)
        config.injected = injected
        setattr(model, RECORDS, find_injected(model) | {adapter_name: injected})

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter, as PEFT does, and its record."""
        super().delete_adapter(adapter_name)
        del find_injected(self)[adapter_name]

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: object, **kwargs: object) -> Iterator[None]:
        for injected in find_injected(self).values() if self.training else ():
            if injected.awaits_examples:
                injected.awaits_examples = False
                warnings.warn(
                    f"LSR: init_weights={injected.init_weights!r} reads examples, and has been given none: training "
                    "begins from random factors; call lsr.initialize_from_data(model, batches) first",
                    stacklevel=2,
                )
        names = cast("list[str] | None", kwargs.get("adapter_names"))
        if names is None:
            yield
            return
        self._check_known(names, BASE)
        if self.training:
            raise ValueError("adapter_names is for evaluation only: call eval() on the model first")
        if any(layer.merged for layer in find_lsr_layers(self).values()):
            raise ValueError("adapter_names: adapters are merged into the base weights; call unmerge_adapter() first")
        choose = partial(_choose, names, copies_of_a_row(self.model, [*args, *kwargs.values()], kwargs))
        with ExitStack() as hooks:
            for module in self.modules():
                if isinstance(module, LsrLinear | AuxiliaryTrainingWrapper):
                    hooks.enter_context(module.register_forward_pre_hook(choose, with_kwargs=True))
            yield

    def _check_known(self, names: Sequence[str], *others: str) -> None:
        known = [*self.peft_config, *others]
        for name in names:
            if name not in known:
                raise ValueError(f"adapter_names: no adapter is named {name!r}; there are {known}")

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
        layer = target if isinstance(target, LsrLinear) else LsrLinear(target, adapter_name, current_key)
        config = cast("LsrConfig", peft_config)
        form = self._injection.forms[layer.layer_name]
        layer_group = layer_group_of(layer.layer_name, form, config.share)
        layer.update_layer(adapter_name, config, form, self._injection.owners.get(layer_group))
        self._injection.owners.setdefault(layer_group, layer.adapter(adapter_name))
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)  # an additional adapter is not active yet
            self._replace_module(parent, target_name, layer, target)
        if isinstance(parent, nn.TransformerEncoderLayer):
            _disable_fast_path(cast("nn.Module", self.model), parent)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # Our factors are float32 already, whatever the base model is, unless its dtype is requested.
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype=autocast_adapter_dtype)
        for layer in () if autocast_adapter_dtype else layers_of(self, adapter_name).values():
            if not is_quantized(layer.get_base_layer()):
                layer.adapter(adapter_name).to(layer.weight.dtype)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        # PEFT ignores missing tensors and only warns of others, but a core without its bases is not an adapter.
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        expected = []
        for name, layer in model.named_modules():
            if isinstance(layer, LsrLinear) and adapter_name in layer.lsr_adapters:
                expected.extend([f"{name}.lsr_adapters.{key}" for key in layer.adapter(adapter_name).state_dict()])
        own = f".lsr_adapters.{adapter_name}."
        held = [key.replace(own, ".lsr_adapters.") for key in remapped if ".lsr_adapters." in key]
        with wrap_errors("the adapter's file", ValueError):
            check_held(held, expected, "this adapter on this base model")
        find_injected(model)[adapter_name].awaits_examples = False
        return remapped

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters into the base weights: those with these names, or the active ones.

        Raises:
            ValueError: if a name is unknown, a base weight is quantized, or, with `safe_merge`, a merged weight would
                not be finite. All base weights are then unchanged.
        """
        self._check_merge(adapter_names, safe_merge)
        super().merge_adapter(adapter_names, safe_merge=safe_merge)

    def _check_merge(self, adapter_names: list[str] | None, safe_merge: bool) -> None:
        self._check_known(adapter_names if isinstance(adapter_names, list) else [])  # PEFT itself rejects other types
        for layer in find_lsr_layers(self).values():
            layer.check_merge(safe_merge, adapter_names)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:  # the model, though PEFT's annotation says None
        if merge:
            self._check_merge(adapter_names, safe_merge)
        else:
            for layer in find_lsr_layers(self).values():
                layer.restore_base_weight()
        plain = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        vars(plain).pop(RECORDS, None)  # PEFT removes its configurations likewise
        return plain

    @classmethod
    def _get_learnable_bias_state_dict(
        cls, model: nn.Module, state_dict: dict[str, torch.Tensor], config: PeftConfig
    ) -> dict[str, torch.Tensor]:
        # With bias="all" PEFT would also write the biases of the replaced head, and those of the new head twice.
        wrapped = tuple(
            f"{name}." for name, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)
        )
        biases = super()._get_learnable_bias_state_dict(model, state_dict, config)
        return {name: value for name, value in biases.items() if not name.startswith(wrapped)}


def _check_not_nested(model: nn.Module, names: Sequence[str]) -> None:
    # In a second wrapper around a model with adapters, its layers would have a second name.
    for name in names:
        layer = model.get_submodule(name)
        if isinstance(layer, LsrLinear) and layer.layer_name != name:
            raise ValueError(
                f"layer {layer.layer_name!r} is adapted by a PEFT model within this one: call add_adapter() on that, "
                "or unload() it first"
            )


def _labels_of(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the labels of a model's head, in order; empty for regression."""
    labels = getattr(getattr(model, "config", None), "id2label", None) or {}
    return tuple(str(labels[index]) for index in sorted(labels)) if len(labels) > 1 else ()


def _choose(
    names: Sequence[str], copies: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # Tell a module the adapter of each row; in generation, `copies` consecutive rows are of one prompt.
    rows = len(args[0])
    if rows not in (len(names), copies * len(names)):
        raise ValueError(f"adapter_names must hold one name per row of the batch, {rows}, got {len(names)}")
    return args, {**kwargs, "adapter_names": [name for name in names for _ in range(rows // len(names))]}


def copies_of_a_row(model: nn.Module, arguments: Iterable[Any], options: Fields) -> int:
    """Return how many rows a model's `generate` makes of each input row: one per beam or returned sequence.

    `arguments` are all arguments of the call, and `options` those given by name. As in transformers, these precede a
    configuration among the arguments, and that precedes the model's own.
    """
    given = [value for value in arguments if isinstance(value, GenerationConfig)]
    configurations = [*given, getattr(model, "generation_config", None)]
    counts = []
    for name in ("num_beams", "num_return_sequences"):
        values = [options.get(name), *(getattr(own, name, None) for own in configurations)]
        counts.append(next(filter(None, values), 1))
    return max(counts)
