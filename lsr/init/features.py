"""What the backbone of a model returns, kept and given back: the rest of the model then runs at the cost of its head.

The model's own forward computes head and loss from it, whatever they are.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lsr.init.passes import Batch, loss_of

Calls = list[Any]  # what each call of the backbone returned in one pass of the model


def backbone_of(model: nn.Module) -> nn.Module:
    """Return the module without a head inside a model of transformers, wrapped by PEFT or not.

    transformers names it in the class attribute `base_model_prefix`; any other model may do the same.

    Raises:
        ValueError: if there is no such module.
    """
    for module in model.modules():  # outermost first
        children, prefix = dict(module.named_children()), getattr(type(module), "base_model_prefix", "")
        if prefix in children:
            return children[prefix]
    raise ValueError(f"{type(model).__name__} has no backbone: base_model_prefix of its class names no module")


def features(model: nn.Module, backbone: nn.Module, batch: Batch) -> Calls:
    """Return what the backbone returns for a batch: tensors, and tuples, lists and mappings of them.

    Anything else in there, such as a cache of keys and values, is left out.

    Raises:
        ValueError: if the backbone is not called, or what it returns is not finite or nothing of that kind.
    """
    calls: Calls = []
    forward = backbone.forward

    def recorded(*args: Any, **fields: Any) -> Any:
        output = forward(*args, **fields)
        calls.append(_only_tensors(output))
        return output

    with _forward_of(backbone, recorded), torch.no_grad():
        loss_of(model, batch)
    if not calls:
        raise ValueError(f"the backbone {type(backbone).__name__} is never called by {type(model).__name__}")
    if not any(True for _ in tensors_in(calls)):
        raise ValueError(f"the backbone {type(backbone).__name__} returns no tensors, nor a tuple or mapping of them")
    if not all(bool(value.isfinite().all()) for value in tensors_in(calls)):
        raise ValueError(f"what the backbone {type(backbone).__name__} returns for these examples is not finite")
    return calls


@contextmanager
def given_back(backbone: nn.Module, calls: Calls) -> Iterator[None]:
    """Let the backbone return what was kept, call by call, without computing it."""
    outputs = iter(calls)
    with _forward_of(backbone, lambda *_, **__: next(outputs)):
        yield


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Return the tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


def _only_tensors(value: Any) -> Any:
    if isinstance(value, Mapping):  # a ModelOutput takes its fields by name
        return type(value)(**{name: _only_tensors(item) for name, item in value.items()})
    if isinstance(value, tuple | list):
        return getattr(type(value), "_make", type(value))([_only_tensors(item) for item in value])
    return value if isinstance(value, Tensor) else None


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's forward, which may already be one of its own rather than its class's (accelerate's hooks)."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
