"""What training begins with: an adapter's factors, from the seed, the weights or examples, and learning rates."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from lsr.algebra.spectrum import Matrix
from lsr.init import INITIALIZATIONS, READERS
from lsr.init.passes import STEPS
from lsr.tuner.config import LsrConfig
from lsr.tuner.layer import LsrLinear, adapted_layers
from lsr.tuner.mistakes import InputError
from lsr.tuner.targets import Kind, kind_of


def layers_of(model: nn.Module, adapter_name: str) -> dict[str, LsrLinear]:
    """Return the layers that have this adapter, by name.

    Raises:
        InputError: if there is none.
    """
    layers = adapted_layers(model)
    found = {name: layer for name, layer in layers.items() if adapter_name in layer.lsr_adapters}
    if not found:
        known = sorted({name for layer in layers.values() for name in layer.lsr_adapters})
        raise InputError(f"the model has no LSR adapter {adapter_name!r}; it has {', '.join(known) or 'none'}")
    return found


def groups_of(model: nn.Module, adapter_name: str) -> dict[str, list[LsrLinear]]:
    """Return the layers that share factors, first the one that holds them, by name: of a layer, or of a kind."""
    kinds, share = dict[Kind, list[LsrLinear]](), config_of(model, adapter_name).share
    for name, layer in layers_of(model, adapter_name).items():
        kinds.setdefault(kind_of(name, layer.adapter(adapter_name).form, share), []).append(layer)
    patterns = Counter(kind.pattern for kind in kinds)
    return {str(kind) if patterns[kind.pattern] > 1 else kind.pattern: group for kind, group in kinds.items()}


def config_of(model: nn.Module, adapter_name: str) -> LsrConfig:
    """Return the configuration of an adapter that a model has."""
    return cast("dict[str, LsrConfig]", model.peft_config)[adapter_name]


def initialize_factors(
    model: nn.Module,
    adapter_name: str = "default",
    init_weights: bool | str | None = None,
    statistics: Mapping[str, Matrix] | None = None,
) -> Iterator[str]:
    """Initialize the factors of each layer, or of each kind that shares them, and yield its name when done.

    `get_peft_model` does this by itself. This is a generator for callers that show progress: they build the model with
    random factors and name the initialization here. `statistics` holds what it reads of examples, an (m, n) matrix by
    layer name: see `start_from_examples`.

    Raises:
        ValueError: if there is no such initialization, or it fails on a base weight or gradient; names the layer.
    """
    groups, config = groups_of(model, adapter_name), config_of(model, adapter_name)
    chosen = config if init_weights is None else replace(config, init_weights=init_weights)  # which checks the name
    if not chosen.needs_examples:
        statistics = None
    elif not layers_of(model, adapter_name).keys() <= (statistics or {}).keys():
        raise ValueError("this initialization needs examples: see lsr.start_from_examples")
    for name, (first, *sharing) in groups.items():
        if next(first.adapter(adapter_name).parameters()).is_meta:
            return  # the factors are about to be loaded
        first.initialize(adapter_name, chosen, chosen.start, statistics, sharing)
        yield name
    config.made["init_weights"] = chosen.init_weights
    config.awaits_examples = False


def start_from_examples(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    adapter_name: str = "default",
    *,
    head_steps: int = STEPS,
    seed: int = 0,
) -> None:
    """Initialize an adapter with `init_weights` `gradient`, `update` or `warm` from a few hundred examples.

    Each batch, including labels, is passed to `model(**batch)` and must be on the model's device. A head that is
    trained with the adapter (`modules_to_save`) is first fitted to the examples for `head_steps` steps, because the
    gradient through a fresh head says little about the task; training still starts from the fresh head. `update` and
    `warm` take one training step per batch, so give them many small batches, for example of eight. With `warm` the
    model then predicts what it has learned: adapter and head hold it. Call this before training; without it, the
    adapter keeps the random factors that `get_peft_model` gives it.

    Raises:
        ValueError: if the adapter has another initialization, is not the active one or does not exist, or the examples
            are not suitable; names the layer.
    """
    layers, config = layers_of(model, adapter_name), config_of(model, adapter_name)
    if not config.needs_examples:
        words = " or ".join(repr(word) for word, one in INITIALIZATIONS.items() if one.reads in READERS)
        raise ValueError(f"init_weights must be {words} to start from examples, got {config.start!r}")
    active = getattr(model, "active_adapters", [adapter_name])
    if list(active) != [adapter_name]:  # the examples pass through the active ones, and their heads would be fitted
        raise ValueError(
            f"adapter {adapter_name!r} must be the active one, and {', '.join(map(repr, active)) or 'none'} is: "
            f"call model.set_adapter({adapter_name!r}) first"
        )
    bases = {name: layer.get_base_layer() for name, layer in layers.items()}
    heads = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    initialization = INITIALIZATIONS[config.start]
    kept = {"keep_head": True} if initialization.goes_on else {}
    statistics = READERS[initialization.reads](model, bases, batches, heads, steps=head_steps, seed=seed, **kept)
    for _ in initialize_factors(model, adapter_name, statistics=statistics):
        pass


def parameter_groups(
    model: nn.Module,
    learning_rate: float = 0.006,
    head_learning_rate: float = 0.002,
    adapter_name: str = "default",
) -> list[dict[str, Any]]:
    """Return the trainable parameters of a model as groups for a `torch.optim` optimizer, each with its `lr`.

    `learning_rate` is for the adapter; the defaults suit `alpha=24`, and `alpha=16` with 0.004 suits Kronecker factors
    without a core. Among those, A2 and B2 get `learning_rate` / sqrt(separation rank), see `rate_factor`. Everything
    else that is trained, such as a classification head, gets `head_learning_rate`.

    Raises:
        ValueError: if there is no such adapter, or nothing of it is trainable.
    """
    adapters = [layer.adapter(adapter_name) for layer in layers_of(model, adapter_name).values()]
    rates = {
        parameter: learning_rate * rate_factor(name, adapter.form.separation_rank)
        for adapter in adapters
        for name, parameter in adapter.named_parameters()
    }
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if rates.keys().isdisjoint(trainable):
        raise ValueError(f"no parameter of the adapter {adapter_name!r} is trainable: is another one active?")
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in trainable:
        groups.setdefault(rates.get(parameter, head_learning_rate), []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


def rate_factor(name: str, terms: int) -> float:
    """Return the learning rate of a parameter by its name, relative to the adapter's: 1 / sqrt(terms) for A2 and B2.

    A2 and B2 have entries of the size 1 / sqrt(terms), and a step of Adam has the same size for every entry, so at one
    rate they would turn sqrt(terms) times faster than A1.
    """
    return 1 / terms**0.5 if name.endswith(("factor_A2", "factor_B2")) else 1.0
