"""Compute and check the shapes of adapters, for each layer of a configuration and for saved adapters."""

from collections.abc import Mapping, Sequence
from math import prod

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lsr.algebra.separable import FactorShapes, Shape, split_width
from lsr.algebra.spectrum import check_rank
from lsr.errors import wrap_errors
from lsr.init.passes import widths
from lsr.tuner.config import LsrConfig
from lsr.tuner.packing import Tensors
from lsr.tuner.targets import check_adaptable, check_called

MAX_PADDED = 2  # times a layer's width, which the factors of a shape may span: the next power of two is below
MAX_ENTRIES = 2**30  # limit to the entries of A and B together: a 23,000 x 23,000 layer has as many at full rank
SMALL = 64  # a rank that sums may have on a layer that is narrower


def form_of(config: LsrConfig, layer_name: str, in_features: int, out_features: int) -> FactorShapes:
    """Return the shapes of a layer's adapter: those in its file, or those with the fewest parameters.

    Raises:
        ValueError: if the shapes do not fit the layer; names the layer and what would fit.
    """
    ranks = config.ranks(layer_name)
    terms = config.terms(layer_name)
    with wrap_errors(f"layer {layer_name!r}", ValueError):
        if config.resolved is None:
            in_shape = split_width(in_features, ranks)
            out_shape = split_width(out_features, ranks)
        else:
            saved = config.resolved.layer(layer_name)
            saved_for = f"{saved.out_features} x {saved.in_features}"
            own = f"{out_features} x {in_features}"
            if saved_for != own:
                raise ValueError(f"the adapter is for a layer of {saved_for}, and this one is {own}")
            in_shape = saved.in_shape
            out_shape = saved.out_shape
            _check_split("in_shape", in_shape, in_features, len(ranks))
            _check_split("out_shape", out_shape, out_features, len(ranks))
        if len(ranks) == 1:
            check_rank(*ranks, out_features, in_features)
        form = FactorShapes(ranks, in_shape, out_shape, terms, in_features, out_features)
        if terms > form.max_separation_rank:
            raise ValueError(
                f"separation_rank must be in [1, {form.max_separation_rank}] for {out_features} x {in_features} as "
                f"{list(out_shape)} x {list(in_shape)} and rank_shape {list(ranks)}, got {terms}"
            )
    return form


def _check_split(field: str, shape: Shape, width: int, count: int) -> None:
    most = width
    if count > 1:
        most *= MAX_PADDED
    if len(shape) != count or not width <= prod(shape) <= most:
        needed = f"as many sizes as rank_shape, with a product from {width} to {most}"
        raise ValueError(f"{field} must hold {needed}, got {list(shape)}")


def check_forms(model: nn.Module, names: Sequence[str], config: LsrConfig) -> dict[str, FactorShapes]:
    """Check that all layers can be adapted, before the model is changed, and return the shapes of their adapters.

    Raises:
        ValueError: if the shapes do not fit a layer; TypeError if its class cannot be adapted. Names the layer.
    """
    forms = {}
    for name in names:
        module = model.get_submodule(name)
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        check_adaptable(base, name)
        check_called(model, name)
        forms[name] = form_of(config, name, *widths(base))
    return forms


def form_in_file(config: LsrConfig, layer_name: str) -> FactorShapes:
    """Return the form of a layer of a saved adapter, as its file states it."""
    assert config.resolved is not None
    shapes = config.resolved.layer(layer_name)
    return form_of(config, layer_name, shapes.in_features, shapes.out_features)


def check_room(config: LsrConfig, tensors: Mapping[str, Tensors]) -> None:
    """Reject shapes that need more entries than the file has, before memory is allocated: files are untrusted.

    `tensors` has the tensors by layer.

    Raises:
        ValueError: names the layer, and what is allowed.
    """
    held = sum(tensor.numel() for factors in tensors.values() for tensor in factors.values())
    for name in tensors:
        form = form_in_file(config, name)
        used = form.rank * (form.in_width + form.out_width)
        with wrap_errors(f"layer {name!r}", ValueError):
            if form.parameters > held:
                raise ValueError(f"its configuration has {form.parameters:,} entries, but the file holds {held:,}")
            if form.rank > SMALL:
                check_rank(form.rank, form.out_features, form.in_features)
            if used > MAX_ENTRIES:
                raise ValueError(f"its A and B have {used:,} entries; at most {MAX_ENTRIES:,} are allowed")
