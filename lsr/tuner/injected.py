"""The record of an adapter that was injected into a model: shapes of layers, initialization and labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lsr.algebra.separable import FactorShapes, Shape
from lsr.tuner.options import Fields, usual_and_others


@dataclass(frozen=True)
class LayerShapes:
    """The widths of a layer and their Kronecker factors."""

    out_features: int
    in_features: int
    out_shape: Shape
    in_shape: Shape


@dataclass(frozen=True)
class Resolved:
    """The most common shapes of layers, and the exceptions by name, which a saved adapter keeps."""

    usual: LayerShapes
    others: dict[str, LayerShapes] = field(default_factory=dict)

    @classmethod
    def of(cls, forms: Mapping[str, FactorShapes]) -> "Resolved":
        """Build it from the forms by layer."""
        shapes = {
            name: LayerShapes(form.out_features, form.in_features, form.out_shape, form.in_shape)
            for name, form in forms.items()
        }
        return cls(*usual_and_others(shapes))

    @classmethod
    def from_fields(cls, fields: Any) -> "Resolved":
        """Build it from the fields of a JSON file.

        Raises:
            ValueError: if a field is missing or has a wrong type.
        """
        try:
            return cls(_shapes(fields["usual"]), {name: _shapes(shapes) for name, shapes in fields["others"].items()})
        except (KeyError, TypeError, AttributeError, ValueError):
            raise ValueError(f"resolved: not the layer shapes of a saved adapter: {repr(fields)[:80]}") from None

    def layer(self, name: str) -> LayerShapes:
        """Return the shapes of a layer."""
        return self.others.get(name, self.usual)


def _shapes(fields: Fields) -> LayerShapes:
    return LayerShapes(
        int(fields["out_features"]),
        int(fields["in_features"]),
        tuple(map(int, fields["out_shape"])),
        tuple(map(int, fields["in_shape"])),
    )


@dataclass
class Injected:
    """The record of an adapter in a model, stored there by the adapter's name.

    PEFT writes the files of an adapter from its configuration alone, which therefore refers to the record.
    """

    resolved: Resolved
    init_weights: bool | str  # the initialization of the factors
    labels: tuple[str, ...]  # labels of the base model's head
    awaits_examples: bool  # whether it is to be initialized from examples, and is not yet
