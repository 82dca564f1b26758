"""What a bank admits: only heads and adapted linear layers, with finite answers; untrusted adapters can hold more."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lsr.convert.parity import outputs, probe_ids
from lsr.loading.update import Update
from lsr.tuner.targets import heads_of


def check_heads(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse modules trained in full that are no heads: a head has weights, and stands beside the model's backbone.

    In any other module a row of a batch could reach those of others, or the module would be called with more than the
    rows.

    Raises:
        ValueError: names the module, and the heads that there are.
    """
    has_backbone = getattr(model, "base_model_prefix", "") in dict(model.named_children())
    heads = heads_of(model) if has_backbone else []
    for name in names:
        if name not in heads:
            there_are = f"the heads of this model: {', '.join(heads)}" if heads else "this model has no head"
            raise ValueError(
                f"trains {name!r} in full; a bank takes heads and adapted linear layers alone; {there_are}"
            )


@torch.no_grad()
def check_answers(
    model: Any,
    modules: Mapping[str, nn.Module],  # of the base model, which a bank may have wrapped
    updates: Mapping[str, Update],
    heads: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Pass one short text through a model with an adapter's updates and heads; it is not changed.

    Raises:
        ValueError: if the output is not finite, or a head is called with more than one tensor.
    """
    ids = probe_ids(model)
    if ids is None:
        return
    with torch.compiler.set_stance("force_eager"), ExitStack() as hooks:  # a compiled model would be compiled for hooks
        for name, update in updates.items():
            hooks.callback(modules[name].register_forward_hook(_adding(update)).remove)
        for name, state in heads.items():
            hooks.callback(modules[name].register_forward_hook(_replacing(name, state), with_kwargs=True).remove)
        found = outputs(model, ids[:1])
    if not torch.isfinite(found).all():
        raise ValueError("its answers are not finite: its weights overflow in this base model")


def _adding(update: Update) -> Callable[..., Tensor]:
    plain = update.plain()
    frames, scaling = plain.frames, plain.scaling

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        hidden = scaling * F.linear(x, frames.a.to(x))
        return output + F.linear(hidden, frames.b.to(x)).to(output.dtype)

    return add


def _replacing(name: str, state: Mapping[str, Tensor]) -> Callable[..., Any]:
    is_replaced = False

    def replace(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        nonlocal is_replaced
        if is_replaced:  # the call below comes here, too
            return output
        if len(inputs) != 1 or named or not isinstance(inputs[0], Tensor):
            raise ValueError(f"trains {name!r} in full, which is no head: the model calls it with more than one tensor")
        is_replaced = True
        try:
            return functional_call(module, {key: value.to(inputs[0]) for key, value in state.items()}, inputs)
        finally:
            is_replaced = False

    return replace
