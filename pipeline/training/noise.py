"""Dropout for a share of a batch's rows, equal to that of the whole batch: each process draws for all rows.

So several processes on CPUs drop out the same values as a single one. How an accelerator draws is not reproduced.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class NoiseOfWholeBatch(TorchFunctionMode):
    """Draws dropout for `count` rows if a tensor has only the rows `own` of them.

    The first axis of a tensor consists of rows, or of rows and tokens flattened together.
    """

    def __init__(self, count: int, own: Tensor) -> None:
        super().__init__()
        self.count, self.own = count, own

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is F.dropout:
            function = self._dropout
        elif function is F.scaled_dot_product_attention:
            function = self._attention
        elif function is Tensor.bernoulli_ and not kwargs:
            function = self._draw
        return function(*args, **(kwargs or {}))

    def _dropout(self, values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not (training and 0 < p < 1) or inplace:
            return F.dropout(values, p, training, inplace)
        return values * self._draw(torch.empty_like(values), 1 - p).div_(1 - p)

    def _draw(self, values: Tensor, p: Any = 0.5) -> Tensor:
        """Fill the values with those that their rows get when the whole batch is filled."""
        each, rest = divmod(len(values), len(self.own))
        if rest or isinstance(p, Tensor):
            return values.bernoulli_(p)
        whole = values.new_empty((self.count, each, *values.shape[1:])).bernoulli_(p)
        return values.copy_(whole[self.own].flatten(0, 1))

    def _attention(
        self,
        query: Tensor,  # (rows, heads, tokens, width); key and value alike
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **others: Any,
    ) -> Tensor:
        if not dropout_p or is_causal or others.get("enable_gqa"):
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **others
            )
        weights = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            is_bool = attn_mask.dtype == torch.bool
            weights = weights.masked_fill(~attn_mask, -torch.inf) if is_bool else weights + attn_mask
        return self._dropout(weights.softmax(dim=-1), dropout_p) @ value
