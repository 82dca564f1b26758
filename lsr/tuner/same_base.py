"""Whether frames from another adapter are for this base model: by a sketch of one of its weights in their file."""

from typing import cast

from torch import Tensor, nn

from lsr.tuner.base_weight import is_quantized
from lsr.tuner.family import Family
from lsr.tuner.fingerprint import are_alike, weight_sketch
from lsr.tuner.layer import LsrLayer


def check_base(model: nn.Module, family: Family) -> None:
    """Check that frames are of this base model, as far as its dtype and theirs allow.

    Raises:
        ValueError: names a layer whose weight is unlike that of the frames' model.
    """
    modules = dict(model.named_modules())
    for name, sketch in family.base_sketch.items():
        if name in modules and not are_alike(sketch, base_sketch(modules[name])):
            raise ValueError(
                f"frames: those in {family.source!r} are of another base model: the weights of layer {name!r} differ"
            )


def base_sketch(layer: nn.Module) -> tuple[float, ...]:
    """Return the sketch of a layer's pretrained weight; empty if it has no values, or packed ones."""
    base = layer.get_base_layer() if isinstance(layer, LsrLayer) else layer
    if is_quantized(base):
        return ()
    return weight_sketch(layer.pretrained_weight() if isinstance(layer, LsrLayer) else cast("Tensor", base.weight))
