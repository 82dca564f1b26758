"""Kinds of layers: those that differ in their index alone, and in nothing that shapes an adapter."""

import re
from typing import NamedTuple

from lsr.algebra.shapes import Form

INDEX = re.compile(r"(?<![^.])\d+(?![^.])")


class Kind(NamedTuple):
    """A name with its indices left out, and the shapes: what layers have in common that share factors."""

    pattern: str
    form: Form

    def __str__(self) -> str:
        """Return the pattern and the widths."""
        return f"{self.pattern} ({self.form.out_features} x {self.form.in_features})"


def kind_of(layer_name: str, form: Form) -> Kind:
    """Return the kind of a layer: `encoder.layer.*.attention.self.query` of `encoder.layer.3.attention.self.query`."""
    return Kind(INDEX.sub("*", layer_name), form)
