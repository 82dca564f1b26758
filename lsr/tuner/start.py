"""Initialize the factors of an adapter, layer by layer or kind by kind, from the seed, the weights or examples."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from lsr.algebra.shapes import Form
from lsr.algebra.spectrum import Matrix
from lsr.init import INITIALIZATIONS, READERS
from lsr.init.allocation import allocate
from lsr.init.head import STEPS
from lsr.init.initialization import Start
from lsr.tuner.config import OWN, LsrConfig
from lsr.tuner.fingerprint import weight_hash
from lsr.tuner.kinds import Kind, kind_of
from lsr.tuner.linear import LsrLinear, adapted_layers
from lsr.tuner.targets import target_names


class Started(NamedTuple):
    """A layer that has been initialized, or all layers that share its factors, the owner first."""

    name: str  # of the layer, or of the kind, with its indices left out
    layers: tuple[LsrLinear, ...]
    start: Start


def layers_of(model: nn.Module, adapter_name: str) -> dict[str, LsrLinear]:
    """Return those of `adapted_layers` that an adapter is on."""
    return {name: layer for name, layer in adapted_layers(model).items() if adapter_name in layer.lsr_adapters}


def groups_of(model: nn.Module, adapter_name: str) -> dict[str, list[LsrLinear]]:
    """Return the layers of an adapter by what has factors of its own: a layer, or a kind whose layers share them."""
    layers = layers_of(model, adapter_name)
    if config_of(model, adapter_name).share == "none":
        return {name: [layer] for name, layer in layers.items()}
    kinds: dict[Kind, list[LsrLinear]] = {}
    for name, layer in layers.items():
        kinds.setdefault(kind_of(name, layer.adapter(adapter_name).form), []).append(layer)
    patterns = Counter(kind.pattern for kind in kinds)
    return {str(kind) if patterns[kind.pattern] > 1 else kind.pattern: group for kind, group in kinds.items()}


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
    gradients: Sequence[Mapping[str, Matrix]] = (),
) -> Iterator[Started]:
    """Initialize the factors of each layer, or of each kind that shares them; yield it when it is done.

    `get_peft_model` does this by itself. It is a generator for callers that show progress: they build the model with
    random factors, and name the initialization here. `gradients` holds what `gradient` or `update` reads, (m, n) by
    layer name, of one data set or of several, whose frames are pooled; see `start_from_examples`. Where frames come
    from elsewhere, nothing is initialized.

    Raises:
        ValueError: if there is no such initialization, or a base weight or gradient does not allow it; names the layer.
    """
    config = config_of(model, adapter_name)
    if config.frames != OWN:
        return  # they are what they are
    chosen = config if init_weights is None else replace(config, init_weights=init_weights)  # which checks the name
    by_layer = {name: [found[name] for found in gradients] for name in layers_of(model, adapter_name)}
    hashes: dict[str, str] = {}
    for name, (owner, *sharing) in groups_of(model, adapter_name).items():
        start = owner.initialize(adapter_name, chosen, by_layer, sharing)
        if start is None:
            return  # the factors are about to be loaded
        if chosen.folds:
            hashes[owner.layer_name] = weight_hash(owner.pretrained_weight())
        yield Started(name, (owner, *sharing), start)
    config.init_weights, config.awaits_examples = chosen.init_weights, False
    config.remember(forms_of(model, adapter_name), hashes)


def start_from_examples(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    adapter_name: str = "default",
    *,
    head_steps: int = STEPS,
    seed: int = 0,
) -> None:
    """Start an adapter whose `init_weights` is `gradient` or `update` from a few hundred examples, before training.

    Each batch, with labels, goes into `model(**batch)` on the model's device. A head that is trained beside the adapter
    (`modules_to_save`) is first fitted to the examples by so many steps, for the gradient through a fresh one says
    little; training starts from the fresh one all the same. `update` takes a step of training for each batch, so give
    it many small ones, as of eight examples. `get_peft_model` alone leaves such an adapter with random factors.

    Raises:
        ValueError: if the adapter starts otherwise, or the examples do not allow it; names the layer.
    """
    config = config_of(model, adapter_name)
    if config.frames != OWN:
        raise ValueError(f"frames: those of {config.frames!r} do not start again, from examples neither")
    if not config.needs_examples:
        words = " or ".join(repr(word) for word, one in INITIALIZATIONS.items() if one.reads in READERS)
        raise ValueError(f"init_weights must be {words} to start from examples, got {config.start!r}")
    gradients = collect_gradients(model, batches, adapter_name, head_steps=head_steps, seed=seed)
    for _ in initialize_factors(model, adapter_name, gradients=[gradients]):
        pass


def collect_gradients(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    adapter_name: str = "default",
    *,
    head_steps: int = STEPS,
    seed: int = 0,
) -> Mapping[str, Matrix]:
    """Return what the initialization of an adapter reads of examples, (m, n) by layer name for the layers it is on.

    That is the update of a short training for `update`, else the mean gradient.

    Raises:
        ValueError: as `lsr.init.head.examples_gradients` and `lsr.init.update.examples_updates`.
    """
    config_of(model, adapter_name).awaits_examples = False  # they are here
    bases = {name: layer.get_base_layer() for name, layer in layers_of(model, adapter_name).items()}
    heads = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    return _reader(config_of(model, adapter_name))(model, bases, batches, heads, steps=head_steps, seed=seed)


def allocate_ranks(
    config: LsrConfig,
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    budget: int,
    *,
    head_steps: int = STEPS,
    seed: int = 0,
) -> LsrConfig:
    """Return the configuration with `budget` directions, each in the layer of a base model where it counts most.

    Those are the largest singular values of the gradients of all layers that the configuration names, or of their
    updates for `update`, with a head (`modules_to_save`) that is fitted first, as in `start_from_examples`, which comes
    after `get_peft_model`.

    Raises:
        ValueError: if the examples do not allow it, or the budget is out of bounds.
    """
    layers = {name: model.get_submodule(name) for name in target_names(model, config)}
    heads = [model.get_submodule(name) for name in config.modules_to_save or ()]
    found = _reader(config)(model, layers, batches, heads, steps=head_steps, seed=seed)
    return config.with_ranks(allocate([found], budget, seed))


def _reader(config: LsrConfig) -> Callable[..., dict[str, Matrix]]:
    return READERS.get(INITIALIZATIONS[config.start].reads, READERS["gradient"])
