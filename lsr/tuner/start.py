"""Initialize the factors of an adapter, layer by layer, from the seed, the weights or examples."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from lsr.algebra.shapes import Form
from lsr.init import INITIALIZATIONS
from lsr.init.examples import weight_gradients
from lsr.init.initialization import Start
from lsr.tuner.config import LsrConfig
from lsr.tuner.fingerprint import weight_hash
from lsr.tuner.layer import LsrLayer
from lsr.tuner.linear import LsrLinear, adapted_layers


def layers_of(model: nn.Module, adapter_name: str) -> dict[str, LsrLinear]:
    """Return those of `adapted_layers` that an adapter is on."""
    return {name: layer for name, layer in adapted_layers(model).items() if adapter_name in layer.lsr_adapters}


def forms_of(model: nn.Module, adapter_name: str) -> dict[str, Form]:
    """Return the shapes of an adapter by layer."""
    return {name: layer.adapter(adapter_name).form for name, layer in layers_of(model, adapter_name).items()}


def config_of(model: nn.Module, adapter_name: str) -> LsrConfig:
    """Return the configuration of an adapter of a model."""
    return cast("dict[str, LsrConfig]", model.peft_config)[adapter_name]


def initialize_factors(
    model: nn.Module,
    adapter_name: str = "default",
    init_weights: bool | str | None = None,
    gradients: Mapping[str, Tensor] | None = None,
) -> Iterator[tuple[str, LsrLayer, Start]]:
    """Initialize each layer's factors; yield each layer when it is done, with what it starts at.

    `get_peft_model` does this by itself. It is a generator for callers that show progress: they build the model with
    random factors, and name the initialization here. `gradients` holds what `gradient` reads, (m, n) by layer name; see
    `start_from_examples`.

    Raises:
        ValueError: if there is no such initialization, or a base weight or gradient does not allow it; names the layer.
    """
    config = config_of(model, adapter_name)
    chosen = config if init_weights is None else replace(config, init_weights=init_weights)  # which checks the name
    hashes: dict[str, str] = {}
    for name, layer in layers_of(model, adapter_name).items():
        start = layer.initialize(adapter_name, chosen, (gradients or {}).get(name))
        if start is None:
            return  # the factors are about to be loaded
        if INITIALIZATIONS[chosen.start].folds:
            hashes[name] = weight_hash(layer.pretrained_weight())
        yield name, layer, start
    config.init_weights = chosen.init_weights
    config.remember(forms_of(model, adapter_name), hashes)


def start_from_examples(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], adapter_name: str = "default"
) -> None:
    """Start an adapter whose `init_weights` is `gradient` from a few hundred examples, before training.

    Each batch, with labels, goes into `model(**batch)` on the model's device. `get_peft_model` alone leaves such an
    adapter with random factors.

    Raises:
        ValueError: if the adapter starts otherwise, or the examples do not allow it; names the layer.
    """
    config = config_of(model, adapter_name)
    if INITIALIZATIONS[config.start].reads != "gradient":
        raise ValueError(f"init_weights must be 'gradient' to start from examples, got {config.start!r}")
    gradients = collect_gradients(model, batches, adapter_name)
    for _ in initialize_factors(model, adapter_name, gradients=gradients):
        pass


def collect_gradients(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], adapter_name: str = "default"
) -> dict[str, Tensor]:
    """Return the mean gradient (m, n) over examples of each layer that an adapter is on, by layer name.

    Raises:
        ValueError: as `lsr.init.examples.weight_gradients`.
    """
    bases = {name: layer.get_base_layer() for name, layer in layers_of(model, adapter_name).items()}
    return weight_gradients(model, bases, batches)
