"""Different adapters for the rows of one batch: PEFT's argument `adapter_names`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from lsr.tuner.layer import adapted_layers

BASE = "__base__"  # PEFT's name for a row without an adapter


@contextmanager
def rows_choose(
    model: nn.Module,
    names: Sequence[str],  # an adapter's name or BASE for each row
    copies: int = 1,
) -> Iterator[None]:
    """Pass row i of each batch through adapter `names[i]` and its trained head only, whichever adapters are active.

    In generation, the beams or several answers of one prompt are `copies` consecutive rows that share a name.

    Raises:
        ValueError: if a name is unknown, the model is in training mode, or adapters are merged; inside the context, if
            a batch does not have one row per name.
    """
    layers = list(adapted_layers(model).values())
    known = sorted({name for layer in layers for name in layer.lsr_adapters})
    for name in names:
        if name not in known and name != BASE:
            raise ValueError(f"adapter_names: no adapter is named {name!r}; there are {known} and {BASE!r}")
    if model.training:
        raise ValueError("adapter_names is for evaluation only: call eval() on the model first")
    if any(layer.merged for layer in layers):
        raise ValueError("adapter_names: adapters are merged into the base weights; call unmerge_adapter() first")

    def choose(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        rows = len(args[0])
        if rows not in (len(names), copies * len(names)):
            raise ValueError(f"adapter_names must hold one name per row of the batch, {rows}, got {len(names)}")
        return args, {**kwargs, "adapter_names": [name for name in names for _ in range(rows // len(names))]}

    choosing = [*layers, *(module for module in model.modules() if isinstance(module, AuxiliaryTrainingWrapper))]
    with ExitStack() as hooks:
        for module in choosing:
            hooks.enter_context(module.register_forward_pre_hook(choose, with_kwargs=True))
        yield


def copies_of_a_row(arguments: Mapping[str, Any]) -> int:
    """Return how many rows `generate` makes of each input row, given its arguments."""
    given = arguments.get("generation_config")
    counts = [arguments.get(name) or getattr(given, name, None) or 1 for name in ("num_beams", "num_return_sequences")]
    return max(counts)
