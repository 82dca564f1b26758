"""Kinds of layers: layers that differ only in their index, and in nothing that shapes an adapter."""

import re
from typing import NamedTuple

from lsr.algebra.shapes import Form

INDEX = re.compile(r"(?<![^.])\d+(?![^.])")


class Kind(NamedTuple):
    """What layers that share factors have in common: the name without indices, and the shapes."""

    pattern: str
    form: Form

    def __str__(self) -> str:
        """Return the pattern and the widths."""
        return f"{self.pattern} ({self.form.out_features} x {self.form.in_features})"


def kind_of(layer_name: str, form: Form) -> Kind:
    """Return the kind of a layer: `encoder.layer.*.attention.self.query` of `encoder.layer.3.attention.self.query`."""
    return Kind(INDEX.sub("*", layer_name), form)
