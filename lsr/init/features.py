"""Cache and replay the outputs of a model's backbone, so that a forward pass costs no more than the head.

The model's own forward computes the head and the loss from them, so any head and any loss will do.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lsr.init.passes import Batch, loss_of

Calls = list[Any]  # the output of each call of the backbone in one forward pass of the model


def backbone_of(model: nn.Module) -> nn.Module:
    """Return the headless module inside a transformers model, wrapped by PEFT or not.

    transformers names it in the class attribute `base_model_prefix`; any other model may do the same.

    Raises:
        ValueError: if there is no such module.
    """
    for module in model.modules():  # outermost first
        children, prefix = dict(module.named_children()), getattr(type(module), "base_model_prefix", "")
        if prefix in children:
            return children[prefix]
    raise ValueError(f"{type(model).__name__} has no backbone: the base_model_prefix of its class names no module")


def features(model: nn.Module, backbone: nn.Module, batch: Batch) -> Calls:
    """Return the backbone's outputs for a batch: tensors, and tuples, lists and mappings of them.

    Anything else in the outputs, such as a KV cache, is left out.

    Raises:
        ValueError: if the backbone is not called, or its outputs hold no tensors or are not finite.
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
        raise ValueError(f"the outputs of the backbone {type(backbone).__name__} for these examples are not finite")
    return calls


@contextmanager
def given_back(backbone: nn.Module, calls: Calls) -> Iterator[None]:
    """Have the backbone return the cached outputs, call by call, instead of computing them."""
    outputs = iter(calls)
    with _forward_of(backbone, lambda *_, **__: next(outputs)):
        yield


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


def _only_tensors(value: Any) -> Any:
    if isinstance(value, Mapping):  # a ModelOutput takes its fields as keywords
        return type(value)(**{name: _only_tensors(item) for name, item in value.items()})
    if isinstance(value, tuple | list):
        return getattr(type(value), "_make", type(value))([_only_tensors(item) for item in value])
    return value if isinstance(value, Tensor) else None


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's forward, which may already be an instance attribute, as with accelerate's hooks."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
