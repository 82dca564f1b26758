"""Bounds on the size of a base model: its configuration can ask for anything, and only its weights are proof."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import PreTrainedModel

from lsr.convert.files import InputError

MOST_MODULES = 100_000  # the largest mixtures of experts have some 70,000
PER_BYTE = 4  # entries that a byte of weights can hold: two bits each
FRESH = 10_000_000  # entries that may be missing from the weights, such as a head's


@contextmanager
def few_modules(name: str) -> Iterator[None]:
    """Stop the construction of a model with more modules than any real one.

    Raises:
        InputError: as soon as there are too many.
    """
    count = 0

    def look(module: nn.Module, attribute: str, submodule: nn.Module | None) -> None:
        nonlocal count
        count += 1
        if count > MOST_MODULES:
            raise InputError(f"base model {name}: config.json asks for more than {MOST_MODULES:,} modules, the limit")

    hook = register_module_module_registration_hook(look)
    try:
        yield
    finally:
        hook.remove()


def check_weights(name: str, model: PreTrainedModel, own: Mapping[str, Tensor]) -> None:
    """Check that a model on the meta device is not far larger than the weights in its folder and the adapter's tensors.

    Raises:
        InputError: if it is: the missing weights would be drawn at random.
    """
    if not Path(name).is_dir():
        return  # weights on the hub are not downloaded yet
    size = sum(path.stat().st_size for path in Path(name).glob("*.safetensors"))
    needed = sum(parameter.numel() for parameter in model.parameters())
    if needed > PER_BYTE * size + sum(value.numel() for value in own.values()) + FRESH:
        raise InputError(
            f"base model {name}: config.json asks for {needed:,} parameters, but its weights are {size:,} bytes"
        )
