"""Which layers can be adapted, and in what shapes, checked before anything is allocated; which layers share theirs."""

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from lsr.algebra.separable import Form, split_width
from lsr.algebra.spectrum import check_rank
from lsr.init.passes import widths
from lsr.tuner.config import LsrConfig
from lsr.tuner.mistakes import explained

ADAPTABLE = (nn.Linear, Conv1D)
MOST_PADDED = 2  # times a layer's width, which the factors of a shape may span: the next power of two is below
MOST_ENTRIES = 2**30  # of A and B together: as many as a 23,000 x 23,000 layer has at full rank
SMALL = 64  # a rank that sums may have on a layer that is narrower
INDEX = re.compile(r"(?<![^.])\d+(?![^.])")  # of a layer, in its name


class Kind(NamedTuple):
    """What layers that share A and B have in common: the name, of several layers without indices, and the shapes."""

    pattern: str
    form: Form

    def __str__(self) -> str:
        """Return the pattern and the widths."""
        return f"{self.pattern} ({self.form.out_features} x {self.form.in_features})"


def kind_of(layer_name: str, form: Form, share: str = "layers") -> Kind:
    """Return the kind of a layer: `encoder.layer.*.attention.self.query` of `encoder.layer.3.attention.self.query`.

    With `share="none"` each layer is a kind.
    """
    return Kind(INDEX.sub("*", layer_name) if share == "layers" else layer_name, form)


def form_of(config: LsrConfig, layer_name: str, in_features: int, out_features: int) -> Form:
    """Return the shapes of an adapter of a layer: those of its file, or the smallest ones.

    Raises:
        ValueError: if they do not fit the layer; names the layer and what would fit.
    """
    ranks, terms = config.ranks(layer_name), config.terms(layer_name)
    with explained(f"layer {layer_name!r}", ValueError):
        if config.resolved is None:
            in_shape, out_shape = split_width(in_features, ranks), split_width(out_features, ranks)
        else:
            saved = config.resolved.layer(layer_name)
            theirs, ours = (saved.out_features, saved.in_features), (out_features, in_features)
            if theirs != ours:
                raise ValueError(
                    "the adapter is for a layer of {} x {}, and this one is {} x {}".format(*theirs, *ours)
                )
            in_shape, out_shape = saved.in_shape, saved.out_shape
            _check_split("in_shape", in_shape, in_features, len(ranks))
            _check_split("out_shape", out_shape, out_features, len(ranks))
        if len(ranks) == 1:
            check_rank(*ranks, out_features, in_features)
        form = Form(ranks, in_shape, out_shape, terms, in_features, out_features)
        if terms > form.max_separation_rank:
            raise ValueError(
                f"separation_rank must be in [1, {form.max_separation_rank}] for {out_features} x {in_features} as "
                f"{list(out_shape)} x {list(in_shape)} and rank_shape {list(ranks)}, got {terms}"
            )
    return form


def _check_split(field: str, shape: tuple[int, ...], width: int, count: int) -> None:
    most = width if count == 1 else MOST_PADDED * width
    if len(shape) != count or not width <= prod(shape) <= most:
        needed = f"as many sizes as rank_shape, with a product from {width} to {most}"
        raise ValueError(f"{field} must hold {needed}, got {list(shape)}")


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


def is_quantized(layer: nn.Module) -> bool:
    """Return whether a layer is an 8- or 4-bit layer of bitsandbytes."""
    return type(layer.weight).__name__ in ("Int8Params", "Params4bit")


def check_forms(model: nn.Module, names: Sequence[str], config: LsrConfig) -> dict[str, Form]:
    """Check that all layers can be adapted, before the model is changed, and return the shapes of their adapters.

    Raises:
        ValueError: if the shapes do not fit a layer; TypeError if its class cannot be adapted. Names the layer.
    """
    forms = {}
    for name in names:
        module = model.get_submodule(name)
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        check_adaptable(base, name)
        forms[name] = form_of(config, name, *widths(base))
    return forms


def form_in_file(config: LsrConfig, layer_name: str) -> Form:
    """Return the form of a layer of a saved adapter, as its file says."""
    assert config.resolved is not None
    shapes = config.resolved.layer(layer_name)
    return form_of(config, layer_name, shapes.in_features, shapes.out_features)


def check_room(config: LsrConfig, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse, before allocating memory, shapes that need more than the file holds: its author can write any number.

    `tensors` holds the tensors of each layer.

    Raises:
        ValueError: names the layer.
    """
    held = sum(tensor.numel() for its in tensors.values() for tensor in its.values())
    for name in tensors:
        form = form_in_file(config, name)
        used = form.rank * (form.in_width + form.out_width)
        with explained(f"layer {name!r}", ValueError):
            if form.parameters > held:
                raise ValueError(f"its configuration says {form.parameters:,} entries, but the file holds {held:,}")
            if form.rank > SMALL:
                check_rank(form.rank, form.out_features, form.in_features)
            if used > MOST_ENTRIES:
                raise ValueError(f"its A and B have {used:,} entries; at most {MOST_ENTRIES:,} are allowed")
