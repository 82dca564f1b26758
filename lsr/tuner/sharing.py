"""Group the layers that share A and B: names differ only in their index, and shapes are equal."""

import re
from typing import NamedTuple

from lsr.algebra.separable import FactorShapes

INDEX = re.compile(r"(?<![^.])\d+(?![^.])")  # the index of a layer in its name


class LayerGroup(NamedTuple):
    """A group of layers that may share A and B: their common name, with * for the index, and their shapes."""

    pattern: str
    form: FactorShapes

    def __str__(self) -> str:
        """Format the pattern and the widths."""
        return f"{self.pattern} ({self.form.out_features} x {self.form.in_features})"


def layer_group_of(layer_name: str, form: FactorShapes, share: str = "layers") -> LayerGroup:
    """Return the group of a layer: `encoder.layer.*.attention.self.query` of `encoder.layer.3.attention.self.query`.

    With `share="none"` each layer is a group of its own.
    """
    return LayerGroup(INDEX.sub("*", layer_name) if share == "layers" else layer_name, form)
