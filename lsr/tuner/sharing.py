"""Which layers share A and B: those of one kind, whose names differ only in their index and whose shapes are equal."""

import re
from typing import NamedTuple

from lsr.algebra.separable import Form

INDEX = re.compile(r"(?<![^.])\d+(?![^.])")  # the index of a layer in its name


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
