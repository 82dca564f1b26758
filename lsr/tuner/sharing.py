"""Group the layers that share A and B: names differ only in their index, and shapes are equal."""

import re
from typing import NamedTuple

from lsr.algebra.separable import Form

INDEX = re.compile(r"(?<![^.])\d+(?![^.])")  # the index of a layer in its name


class Kind(NamedTuple):
    """A kind of layers, which may share A and B: their common name, with * for the index, and their shapes."""

    pattern: str
    form: Form

    def __str__(self) -> str:
        """Format the pattern and the widths."""
        return f"{self.pattern} ({self.form.out_features} x {self.form.in_features})"


def kind_of(layer_name: str, form: Form, share: str = "layers") -> Kind:
    """Return the kind of a layer: `encoder.layer.*.attention.self.query` of `encoder.layer.3.attention.self.query`.

    With `share="none"` each layer is a kind of its own.
    """
    return Kind(INDEX.sub("*", layer_name) if share == "layers" else layer_name, form)
