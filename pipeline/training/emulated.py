"""bf16 on processors without instructions for it: products in fp32 of the same operands, rounded to bf16.

Up to the order of summation that is what torch computes, for it sums bf16 products in fp32, too. But without such
instructions it multiplies some layouts one number at a time: a step of MiniLM takes up to 20 times as long as in fp32.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default}
IN_PLACE = {aten.addmm_.default: aten.addmm.default, aten.baddbmm_.default: aten.baddbmm.default}


def is_needed() -> bool:
    """Return whether torch has no fast bf16 products on this processor."""
    return not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class EmulatedBf16(TorchDispatchMode):
    """Computes the bf16 products of a CPU in fp32, in forward and backward passes."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, a product by way of fp32."""
        named = kwargs or {}
        if func in PRODUCTS and args[0].dtype is torch.bfloat16:
            return _product(func, args, named)
        if func in IN_PLACE and args[0].dtype is torch.bfloat16:
            return args[0].copy_(_product(IN_PLACE[func], args, named))
        return func(*args, **named)


def _product(product: Callable[..., Tensor], operands: Iterable[Tensor], named: Mapping[str, Any]) -> Tensor:
    return product(*(operand.float() for operand in operands), **named).to(torch.bfloat16)
