"""What a base model's configuration may ask for: its author can write any number, and only its weights are proof."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import PreTrainedModel

from lsr.convert.files import InputError

MOST_MODULES = 100_000  # the largest mixtures of experts have some 70,000
PER_BYTE = 4  # entries that a byte of weights can hold: two bits each
FRESH = 10_000_000  # entries that need not be in the weights, such as a head's


@contextmanager
def few_modules(name: str) -> Iterator[None]:
    """Stop the making of a model that has more modules than any has.

    Raises:
        InputError: as soon as there are too many.
    """
    count = 0

    def look(module: nn.Module, attribute: str, submodule: nn.Module | None) -> None:
        nonlocal count
        count += 1
        if count > MOST_MODULES:
            raise InputError(f"base model {name}: config.json asks for over {MOST_MODULES:,} modules; at most so many")

    hook = register_module_module_registration_hook(look)
    try:
        yield
    finally:
        hook.remove()


def check_weights(name: str, model: PreTrainedModel, own: Mapping[str, Tensor]) -> None:
    """Compare a model without values with the weights of a folder that it would be loaded from, and with the adapter's.

    Raises:
        InputError: if it is far larger: what is not in the weights would be drawn.
    """
    if not Path(name).is_dir():
        return  # weights of the hub are not here yet
    size = sum(path.stat().st_size for path in Path(name).glob("*.safetensors"))
    needed = sum(parameter.numel() for parameter in model.parameters())
    if needed > PER_BYTE * size + sum(value.numel() for value in own.values()) + FRESH:
        raise InputError(
            f"base model {name}: config.json asks for {needed:,} parameters, and its weights are {size:,} bytes"
        )
