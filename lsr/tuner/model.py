"""LsrModel: puts LSR layers into a model, the way PEFT's own methods do."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, ModulesToSaveWrapper
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key
from torch import nn

from lsr.algebra.separable import pad_columns
from lsr.algebra.spectrum import leading_row_space
from lsr.init.budget import captured_shares, spread_terms
from lsr.init.examples import input_covariances, weight_gradients
from lsr.init.factorize import Start
from lsr.tuner import recipes
from lsr.tuner.config import DATA_STARTS, PATTERNS, LsrConfig
from lsr.tuner.layer import LsrLayer, LsrLinear
from lsr.tuner.mixed_batch import copies_of_a_row, rows_choose
from lsr.tuner.weighted_sum import EXACT, check_request, sum_adapters

Value = TypeVar("Value")
MOST_TERMS_BY_SEARCH = 16


def adapted_layers(model: nn.Module) -> dict[str, LsrLayer]:
    """Return the LSR layers of a model by their names in the base model, in the model's order."""
    return {module.layer_name: module for module in model.modules() if isinstance(module, LsrLayer)}


def start_factors(
    model: nn.Module, adapter_name: str = "default", statistics: Mapping[str, torch.Tensor] | None = None
) -> Iterator[tuple[str, LsrLayer, Start]]:
    """Give each layer's factors the start that the adapter's `init_weights` names; yield each layer when it is done.

    `get_peft_model` does this by itself. It is a generator for callers that show progress: then build the model from a
    config with `deferred=True` and exhaust this. `statistics` holds what `gradient` and `activation` decompose, by
    layer name; see `start_from_examples`.

    Raises:
        ValueError: if a base weight or statistic does not allow the start; names the layer.
    """
    config = _config(model, adapter_name)
    recipe: dict[str, recipes.Entry] = {}
    for name, layer in adapted_layers(model).items():
        if adapter_name in layer.scaling:
            start = layer.start(adapter_name, config, (statistics or {}).get(name))
            if start is None:
                return  # the factors are about to be loaded
            if config.needs_start_again:
                recipe[name] = recipes.entry(layer, start, config)
            yield name, layer, start
    config.deferred = False
    config.remember(recipes.describe(recipe))


def start_from_examples(
    model: nn.Module, batches: Iterable[Mapping[str, torch.Tensor]], adapter_name: str = "default"
) -> None:
    """Start an adapter whose `init_weights` is `gradient` or `activation` from a few hundred examples, before training.

    Each batch goes into `model(**batch)` on the model's device; `gradient` needs labels in it, so that there is a loss.
    `get_peft_model` alone leaves such an adapter at a random start.

    Raises:
        ValueError: if the adapter starts otherwise, or the examples do not allow it; names the layer.
    """
    statistics = collect_statistics(model, batches, adapter_name)
    for _ in start_factors(model, adapter_name, statistics):
        pass


def collect_statistics(
    model: nn.Module, batches: Iterable[Mapping[str, torch.Tensor]], adapter_name: str = "default"
) -> dict[str, torch.Tensor]:
    """Return what the start of an adapter decomposes, by layer name: gradients (m, n) or input covariances (n, n).

    Raises:
        ValueError: if the adapter starts from something else, or there are no examples.
    """
    config = _config(model, adapter_name)
    if config.start not in DATA_STARTS:
        raise ValueError(
            f"init_weights must be one of {list(DATA_STARTS)} to start from examples, got {config.start!r}"
        )
    bases = {
        name: layer.get_base_layer() for name, layer in adapted_layers(model).items() if adapter_name in layer.scaling
    }
    collect = weight_gradients if config.start == "gradient" else input_covariances
    return collect(model, bases, batches)


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
        if is_open:  # PEFT lists excluded layers too, and heads that train whole, DistilBERT's first for one
            adapted = [name for name in adapted if not _is_trained_whole(config, name)]
            config.target_modules = sorted(adapted)
        _check_patterns(config, adapted)
        if config.separation_rank == "auto" and config.recipe is None:
            config.separation_rank_pattern = spread_budget(model, config, adapted)
        super().inject_adapter(
            model,
            adapter_name,
            autocast_adapter_dtype=autocast_adapter_dtype,
            low_cpu_mem_usage=low_cpu_mem_usage,
            state_dict=state_dict,
        )
        if config.recipe is not None:
            recipes.start_again(adapted_layers(model), adapter_name, config)
        elif not (config.deferred or config.start in DATA_STARTS):
            for _ in start_factors(self, adapter_name):
                pass

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: object, **kwargs: object) -> Iterator[None]:
        names = cast("list[str] | None", kwargs.get("adapter_names"))
        with nullcontext() if names is None else rows_choose(self, names, copies_of_a_row(kwargs)):
            yield

    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = EXACT
    ) -> None:
        """Add the weighted sum of adapters as an adapter of its own, not active yet: exact, with ranks that add up.

        Its rank shape is (sum of all r1, r2, ...), and its terms are those of all adapters. A module that one of them
        has trained whole is copied.

        Raises:
            ValueError: if the sum has no exact form as an LSR adapter; says why, and leaves the model as it was.
        """
        configs = cast("dict[str, LsrConfig]", self.peft_config)
        check_request(configs, adapters, weights, adapter_name, combination_type)
        owners = self._owners_of_heads(adapters)
        config, starts = sum_adapters(adapted_layers(self), configs, adapters, weights)
        self.peft_config[adapter_name] = config
        self.inject_adapter(self.model, adapter_name)
        for name, layer in adapted_layers(self).items():
            if name in starts:
                layer.set_start(adapter_name, starts[name], config)
        for wrapper, owner in owners:
            wrapper.modules_to_save[adapter_name].load_state_dict(wrapper.modules_to_save[owner].state_dict())

    def _owners_of_heads(self, adapters: list[str]) -> list[tuple[ModulesToSaveWrapper, str]]:
        found = []
        for name, module in self.model.named_modules():
            if isinstance(module, ModulesToSaveWrapper):
                owners = [owner for owner in dict.fromkeys(adapters) if owner in module.modules_to_save]
                if len(owners) > 1:
                    raise ValueError(f"modules_to_save: {owners} have each trained {name!r} whole: they have no sum")
                found += [(module, owner) for owner in owners]
        return found

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
        rank_shape = override(config.rank_pattern, current_key, config.rank_shape)
        terms = cast("int", config.separation_rank)  # 'auto' has filled the pattern
        separation_rank = override(config.separation_rank_pattern, current_key, terms)
        alpha = override(config.alpha_pattern, current_key, config.alpha)
        layer.update_layer(adapter_name, config, rank_shape, separation_rank, alpha)
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)  # an additional adapter is not active yet
            self._replace_module(parent, target_name, layer, target)
        if isinstance(parent, nn.TransformerEncoderLayer):
            # Its fast path in evaluation reads the base weights, past the adapters; zero keeps it from being taken.
            parent.activation_relu_or_gelu = 0

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # Our factors are float32 from the start, whatever the base model is. Who asks for no such care gets its dtype.
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype=autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            for layer in adapted_layers(self).values():
                layer.use_base_dtype(adapter_name)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Add adapters to the base weights: those with these names, or the active ones.

        Raises:
            ValueError: if there is no adapter of such a name, a base weight is quantised, or, with `safe_merge`, a
                merged weight would not be finite; all base weights are then unchanged.
        """
        self._check_merge(adapter_names, safe_merge)
        super().merge_adapter(adapter_names, safe_merge=safe_merge)

    def _check_merge(self, adapter_names: list[str] | None, safe_merge: bool) -> None:
        known = list(self.peft_config)
        for name in adapter_names if isinstance(adapter_names, list) else []:  # PEFT explains what is no list
            if name not in known:
                raise ValueError(f"adapter_names: no adapter is named {name!r}; there are {known}")
        for layer in adapted_layers(self).values():
            layer.check_mergeable()
            if safe_merge:
                layer.check_merge(adapter_names)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:  # the model, though PEFT's annotation says None
        if merge:
            self._check_merge(adapter_names, safe_merge)
        for layer in adapted_layers(self).values():
            layer.release()  # a folded start belongs to the adapter, not to the model that remains
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

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


def spread_budget(model: nn.Module, config: LsrConfig, names: list[str]) -> dict[str, int]:
    """Return the separation rank of each layer: together at most `config.budget` trained numbers.

    What a layer gains by one more term is the share of its leading row space, whatever the size of its weight.

    Raises:
        ValueError: if a weight has no row space (names the layer), or the budget cannot hold one term a layer.
    """
    budget = cast("int", config.budget)
    gains, costs = {}, {}
    for name in names:
        module = model.get_submodule(name)
        layer = module if isinstance(module, LsrLayer) else LsrLinear(module, "budget", name)
        form = layer.make_form(config, override(config.rank_pattern, name, config.rank_shape), separation_rank=1)
        costs[name] = form.first_parameters if config.frames == "frozen" else form.parameters
        most = min(form.max_separation_rank, max(1, budget // costs[name]))
        if len(form.rank_shape) > 2:  # each point of the curve is a search of its own
            most = min(most, MOST_TERMS_BY_SEARCH)
        try:
            rows = pad_columns(leading_row_space(layer.base_matrix(), form.rank), form.in_width)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
        gains[name] = captured_shares(rows, form.rank_shape, form.in_shape, most)
    return spread_terms(gains, costs, budget)


def override(pattern: dict[str, Value], layer_name: str, usual: Value) -> Value:
    """Return what a pattern of the configuration says of a layer, or what is usual."""
    return pattern.get(get_pattern_key(list(pattern), layer_name), usual)


def _config(model: nn.Module, adapter_name: str) -> LsrConfig:
    return cast("dict[str, LsrConfig]", model.peft_config)[adapter_name]


def _is_trained_whole(config: LsrConfig, name: str) -> bool:
    """Return whether a layer is one of modules_to_save or inside one, by PEFT's rule: a name's ending, dot or not."""
    parts = name.split(".")
    paths = (".".join(parts[: i + 1]) for i in range(len(parts)))
    return any(path.endswith(tuple(config.modules_to_save or ())) for path in paths)


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
