"""The arithmetic of an adapted layer."""

import torch
from torch import Tensor
from torch.nn import functional as F


def add_low_rank(
    result: Tensor,  # (..., m): W x + b
    x: Tensor,  # (..., n)
    a: Tensor,  # (r, n)
    b: Tensor,  # (m, r)
    scaling: float,
) -> Tensor:  # (..., m)
    """Return `result + scaling * B A x`; the m x n update itself is never formed.

    The small factors are cast to the dtype of x, never x to theirs: a copy of the activations would cost more than the
    adapter. Scaling and addition happen inside the second product.
    """
    hidden = F.linear(x, a.to(x.dtype)).reshape(-1, len(a))
    total = torch.addmm(result.reshape(-1, len(b)), hidden.to(result.dtype), b.to(result.dtype).T, alpha=scaling)
    return total.view(result.shape)
