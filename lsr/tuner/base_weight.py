"""Base layers: which of them can be adapted, and the weights of quantized ones."""

from typing import cast

from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

ADAPTABLE = (nn.Linear, Conv1D)


def check_adaptable(base: nn.Module, layer_name: str) -> None:
    """Check that a layer can be adapted.

    Raises:
        TypeError: if it cannot; names the layer and the reason.
    """
    problem = f"layer {layer_name!r} cannot be adapted"
    if not isinstance(base, ADAPTABLE):
        kinds = " or ".join(kind.__name__ for kind in ADAPTABLE)
        raise TypeError(f"{problem}: it must be {kinds}, got {type(base).__name__}")
    if isinstance(base, NonDynamicallyQuantizableLinear):  # an adapter would have no effect, silently
        raise TypeError(
            f"{problem}: nn.MultiheadAttention reads its weight but never calls it; leave it out with exclude_modules"
        )
    if not base.weight.is_floating_point() and not is_quantized(base):
        raise TypeError(
            f"{problem}: its weight is quantized, got the dtype {base.weight.dtype}; "
            "only the 8- and 4-bit layers of bitsandbytes are supported"
        )


def is_plain(layer: nn.Module) -> bool:
    """Return whether a layer's forward is exactly that of its class: no subclass, hook or patch."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return type(layer) in ADAPTABLE and not hooks and "forward" not in layer.__dict__


def is_quantized(layer: nn.Module) -> bool:
    """Return whether a layer is an 8- or 4-bit layer of bitsandbytes."""
    return type(layer.weight).__name__ in ("Int8Params", "Params4bit")


def dequantized(base: nn.Module, layer_name: str) -> Tensor:
    """Return the dequantized weight of a bitsandbytes layer.

    Raises:
        ValueError: if it was packed for this CPU; names the layer.
    """
    if getattr(getattr(base.weight, "quant_state", None), "packing_format_for_cpu", False):
        # bitsandbytes would silently unpack it as if it were in the usual order.
        raise ValueError(
            f"layer {layer_name!r}: its 4-bit weight was packed for this CPU when the model was first used; "
            "initialize or load adapters before that"
        )
    return cast("Tensor", dequantize_module_weight(base)).detach()
