"""Initialize an adapter's factors and cores from the seed, the weights or examples."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

from lsr.errors import wrap_errors
from lsr.init import INITIALIZATIONS, read_examples
from lsr.init.context import InitContext, Matrices
from lsr.init.passes import STEPS, Batch
from lsr.tuner.config import LsrConfig
from lsr.tuner.layer import LsrLinear
from lsr.tuner.lookup import config_of, find_injected, groups_of, layers_of


def initialize_factors(
    model: nn.Module,
    adapter_name: str = "default",
    init_weights: bool | str | None = None,
    statistics: Matrices | None = None,
    done: Callable[[str], object] = lambda name: None,
) -> None:
    """Initialize the factors of each layer or layer group, and call `done` with its name.

    `get_peft_model` calls it; callers that show progress build the model with random factors, and name the
    initialization here. `statistics` has an (m, n) matrix per layer name if the initialization reads examples: see
    `initialize_from_data`.

    Raises:
        ValueError: if the initialization is unknown, or fails on a base weight or gradient; names the layer.
    """
    groups = groups_of(model, adapter_name)
    config = config_of(model, adapter_name)
    chosen = config if init_weights is None else replace(config, init_weights=init_weights)  # `replace` checks the name
    if not chosen.needs_examples:
        statistics = None
    elif not layers_of(model, adapter_name).keys() <= (statistics or {}).keys():
        raise ValueError("this initialization needs examples: see lsr.initialize_from_data")
    for name, layers in groups.items():
        initialize_group(layers, adapter_name, chosen, chosen.initialization, statistics)
        done(name)
    injected = find_injected(model)[adapter_name]
    injected.init_weights = chosen.init_weights
    injected.awaits_examples = False


def initialize_group(
    layers: Sequence[LsrLinear],
    adapter_name: str,
    config: LsrConfig,
    name: str,
    statistics: Matrices | None = None,
) -> None:
    """Initialize layers that share factors by a named initialization: the first one's factors, and all cores.

    `statistics` replaces the weights, with an (m, n) matrix per layer name.

    Raises:
        ValueError: if a base weight or statistic is not suitable; names the layer.
    """
    owner = layers[0].adapter(adapter_name)
    if owner.is_meta:
        return
    initialization = INITIALIZATIONS[name]
    contexts = [_context(layer, adapter_name, config, statistics) for layer in layers]
    with wrap_errors(f"layer {layers[0].layer_name!r}", ValueError):
        initial = initialization.bases(contexts) if owner.has_core else initialization.factors(contexts[0])
    owner.set_factors([*initial.a, *initial.b])
    if owner.has_core:
        # The stored factors, without the scaling.
        a, b = (side.detach().to("cpu", torch.float64) for side in owner.matrices())
        for layer, context in zip(layers, contexts, strict=True):
            layer.adapter(adapter_name).core.data.copy_(initialization.core(context, b, a))


def _context(layer: LsrLinear, adapter_name: str, config: LsrConfig, statistics: Matrices | None) -> InitContext:
    adapter = layer.adapter(adapter_name)
    return InitContext(
        adapter.form,
        partial(statistics.__getitem__, layer.layer_name) if statistics else layer.base_matrix,
        scaling=adapter.scaling,
        seed=config.seed or 0,
        generator=_generator(config, layer.layer_name),
        core_generator=_generator(config, f"{layer.layer_name}core"),
        zero=config.init_weights is not False,
        is_diagonal=config.core == "diagonal",
    )


def _generator(config: LsrConfig, name: str) -> torch.Generator | None:
    """Seed a generator by the seed and a layer's name, so that values do not depend on other adapted layers."""
    if config.seed is None:
        return None
    digest = hashlib.sha256(f"{config.seed}:{name}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little"))


def initialize_from_data(
    model: nn.Module,
    batches: Iterable[Batch],
    adapter_name: str = "default",
    *,
    head_steps: int = STEPS,
    seed: int = 0,
) -> None:
    """Initialize an adapter with `init_weights` `gradient`, `lora_update` or `warm_start` from a few hundred examples.

    Each batch, including labels, is passed to `model(**batch)` and must be on the model's device. A head that is
    trained with the adapter (`modules_to_save`) is first fitted to the examples for `head_steps` steps, because the
    gradient through a fresh head carries little information about the task. Training then starts from the fresh
    head, with `warm_start` from the head of the short LoRA run. `lora_update` and `warm_start` take one training step
    per batch, so give them many small batches, for example of eight. Call this before training; without it, the
    adapter keeps the random factors that `get_peft_model` gives it.

    Raises:
        ValueError: if the adapter has another initialization, is not active or does not exist, or the examples are not
            suitable; names the layer.
    """
    layers = layers_of(model, adapter_name)
    config = config_of(model, adapter_name)
    active = next(iter(layers.values())).active_adapters
    if active != [adapter_name]:  # the examples pass through the active ones, and their heads would be fitted
        raise ValueError(
            f"adapter {adapter_name!r} must be the active one, and {', '.join(map(repr, active)) or 'none'} is: "
            f"call model.set_adapter({adapter_name!r}) first"
        )
    bases = {name: layer.get_base_layer() for name, layer in layers.items()}
    heads = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    statistics = read_examples(config.initialization, model, bases, batches, heads, steps=head_steps, seed=seed)
    initialize_factors(model, adapter_name, statistics=statistics)
