"""The adapter of a single layer: its own or shared factors, its core, and the resulting update."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lsr.algebra.separable import Form, kron_sum
from lsr.tuner.config import LsrConfig


class LsrAdapter(nn.Module):
    """The update ΔW = scaling * B R A.

    A and B are of `factor_A1` (s, r_1, n_1), ..., `factor_B1` (s, m_1, r_1), ...: parameters if they are trained, else
    buffers, the frozen frames around a core. With `train` set to `core` or `all`, R is the parameter `core`: (r, r), or
    (r,) for a diagonal. Otherwise R is the identity.

    All begin as zeros on the device of a base weight, in its dtype or float32, whichever is more precise. The factors
    know their shapes but not their layer: those of `owner`, an adapter of another layer of equal shape, may be shared.
    """

    core: nn.Parameter
    owner: "LsrAdapter | None"  # the adapter that holds the factors, of the first layer of a kind, if it is another one

    def __init__(
        self, form: Form, config: LsrConfig, scaling: float, like: Tensor, owner: "LsrAdapter | None" = None
    ) -> None:
        super().__init__()
        self.form = form
        self.scaling = scaling
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.has_core = config.has_core
        object.__setattr__(self, "owner", owner)  # past nn.Module, which would register it as a part of this one
        zeros = partial(torch.zeros, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
        for name, shape in form.factor_shapes.items() if owner is None else ():
            if config.train == "core":
                self.register_buffer(name, zeros(shape))
            else:
                self.register_parameter(name, nn.Parameter(zeros(shape)))
        if self.has_core:
            self.core = nn.Parameter(zeros([form.rank] * (2 if config.core == "full" else 1)))

    @property
    def is_meta(self) -> bool:
        """Whether parameters are on the meta device, about to be loaded."""
        return next(self.parameters()).is_meta

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return the matrices A (r, in_features) and B (out_features, r), without padding."""
        factors = [getattr(self.owner or self, name) for name in self.form.factor_shapes]
        if self.owner is not None:  # whose layer may be on another device
            factors = [factor.to(self.core.device) for factor in factors]
        return _cropped(self.form, factors)

    def collapse(self) -> tuple[Tensor, Tensor]:  # (r, in_features), (out_features, r)
        """Return the LoRA that is the same update: R A and B, without the scaling."""
        a, b = self.matrices()
        return (times_core(self.core, a) if self.has_core else a), b

    def update(self) -> Tensor:  # (out_features, in_features)
        """Return the update, in at least float32."""
        a, b = self.collapse()
        precise = torch.promote_types(a.dtype, torch.float32)
        return self.scaling * (b.to(precise) @ a.to(precise))


def times_core(
    core: Tensor,  # (r, r), or (r,) for a diagonal
    a: Tensor,  # (r, n)
) -> Tensor:  # (r, n)
    """Return R A in the more precise dtype of both: a file may hold frames that are more precise than a core."""
    precise = torch.promote_types(core.dtype, a.dtype)
    core, a = core.to(precise), a.to(precise)
    return core @ a if core.dim() == 2 else core[:, None] * a


def stored_matrices(form: Form, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the matrices A (r, in_features) and B (out_features, r) of stored factors, in at least float32.

    Raises:
        ValueError: if one is missing or unexpected, or has the wrong shape; names it.
    """
    for name in sorted(form.factor_shapes.keys() ^ tensors.keys()):
        raise ValueError(f"{name} is {'missing' if name in form.factor_shapes else 'no part of these frames'}")
    for name, shape in form.factor_shapes.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{name} is {tuple(tensors[name].shape)}, needed: {shape}")
    factors = [tensors[name].to(torch.promote_types(tensors[name].dtype, torch.float32)) for name in form.factor_shapes]
    return _cropped(form, factors)


def _cropped(form: Form, factors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:  # those of A, then those of B
    a, b = factors[: len(form.rank_shape)], factors[len(form.rank_shape) :]
    return kron_sum(*a)[:, : form.in_features], kron_sum(*b)[: form.out_features]
