"""The shapes of a saved adapter's layers, stored in its file so that it does not depend on how widths are split."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lsr.algebra.shapes import Form

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerShapes:
    """The widths of a layer and their Kronecker factors."""

    out_features: int
    in_features: int
    out_shape: Shape
    in_shape: Shape


@dataclass(frozen=True)
class Resolved:
    """The most common shapes, and the exceptions by layer name."""

    usual: LayerShapes
    others: dict[str, LayerShapes] = field(default_factory=dict)

    @classmethod
    def of(cls, forms: Mapping[str, Form]) -> "Resolved":
        """Build it from the forms by layer."""
        shapes = {
            name: LayerShapes(form.out_features, form.in_features, form.out_shape, form.in_shape)
            for name, form in forms.items()
        }
        usual = Counter(shapes.values()).most_common(1)[0][0]
        return cls(usual, {name: its for name, its in shapes.items() if its != usual})

    @classmethod
    def from_fields(cls, fields: Any) -> "Resolved":
        """Build it from JSON.

        Raises:
            ValueError: if the JSON is something else.
        """
        try:
            others = {str(name): _shapes(value) for name, value in fields["others"].items()}
            return cls(_shapes(fields["usual"]), others)
        except (KeyError, TypeError, AttributeError, ValueError):
            raise ValueError(f"resolved: not what a saved adapter says of its layers: {repr(fields)[:80]}") from None

    def layer(self, name: str) -> LayerShapes:
        """Return the shapes of a layer."""
        return self.others.get(name, self.usual)


class Record(NamedTuple):
    """What the injection of an adapter has made of its configuration: what its files say, and its card."""

    resolved: Resolved
    init_weights: bool | str
    labels: tuple[str, ...]  # of the base model's head


def _shapes(fields: Mapping[str, Any]) -> LayerShapes:
    out_shape, in_shape = (tuple(int(size) for size in fields[side]) for side in ("out_shape", "in_shape"))
    return LayerShapes(int(fields["out_features"]), int(fields["in_features"]), out_shape, in_shape)
