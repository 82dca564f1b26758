"""A report on a trained adapter by layer: sizes, the update's spectrum, conditioning, the equivalent LoRA."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lsr.algebra.precision import update_condition_number
from lsr.algebra.separable import condition_number, kron_sum
from lsr.algebra.spectrum import norm_of_pair, singular_values_of_pair
from lsr.loading.adapters import ADAPTER, load_adapter, load_layers
from lsr.loading.files import PREFIX, NoBaseError, read_config, read_tensors
from lsr.tuner.adapter import LsrAdapter
from lsr.tuner.linear import LsrLinear, adapted_layers


@dataclass(frozen=True)
class LayerReport:
    """One adapted layer. Norms are Frobenius norms; log10 of a condition number is the number of digits lost."""

    out_features: int
    in_features: int
    out_shape: tuple[int, ...]
    in_shape: tuple[int, ...]
    rank_shape: tuple[int, ...]
    rank: int
    separation_rank: int
    trained: int
    stored: int
    effective: int
    condition_a: float
    condition_b: float
    condition_update: float
    norm: float  # ||ΔW||
    relative_norm: float | None  # ||ΔW|| / ||W||; None without the base model
    singular_values: tuple[float, ...]  # of ΔW, all that can differ from zero
    lora_rank: int  # of the LoRA with the same update
    lora_parameters: int


@dataclass(frozen=True)
class AdapterReport:
    """All layers by name, the number of other parameters, and why the base model is missing, if it is."""

    layers: dict[str, LayerReport]
    other_parameters: int  # in the file: heads and biases
    base: str | None
    base_problem: str | None


def inspect_adapter(folder: str | Path, base: str | None = None) -> AdapterReport:
    """Return a report on an LSR adapter's folder.

    Without `base`, the base model that the adapter names is loaded if it exists. If it does not, ||W|| is unknown, and
    all else is the same.

    Raises:
        InputError: if the folder is not an LSR adapter, or does not fit its base model.
        NoBaseError: if `base` does not exist or cannot be loaded.
    """
    folder = Path(folder)
    fields, tensors = read_config(folder, "LSR"), read_tensors(folder)
    problem = None
    try:
        layers = adapted_layers(load_adapter(folder, base))
    except NoBaseError as error:
        if base is not None:
            raise
        layers, problem = load_layers(folder).layers, str(error)
    others = sum(t.numel() for name, t in tensors.items() if ".lsr_" not in name.removeprefix(PREFIX))
    reports = {name: inspect_layer(layer, has_base=problem is None) for name, layer in layers.items()}
    return AdapterReport(reports, others, base or fields.get("base_model_name_or_path"), problem)


def inspect_layer(layer: LsrLinear, *, has_base: bool = True, adapter_name: str = ADAPTER) -> LayerReport:
    """Measure one adapted layer, without forming its update."""
    adapter = layer.adapter(adapter_name)
    form, sizes = adapter.form, layer.sizes(adapter_name)
    right, left = (side.detach() for side in adapter.as_lora())
    values = adapter.scaling * singular_values_of_pair(left, right)
    norm = float(values.norm())
    condition_a, condition_b, condition_update = _condition_numbers(adapter, norm)
    weight = float(layer.pretrained_weight().double().norm()) if has_base else None
    return LayerReport(
        out_features=layer.out_features,
        in_features=layer.in_features,
        out_shape=form.out_shape,
        in_shape=form.in_shape,
        rank_shape=form.rank_shape,
        rank=form.rank,
        separation_rank=form.separation_rank,
        trained=sizes.trained,
        stored=sizes.stored,
        effective=sizes.effective,
        condition_a=condition_a,
        condition_b=condition_b,
        condition_update=condition_update,
        norm=norm,
        relative_norm=norm / weight if weight else None,
        singular_values=tuple(values.tolist()),
        lora_rank=len(right),
        lora_parameters=len(right) * (layer.in_features + layer.out_features),
    )


def _condition_numbers(adapter: LsrAdapter, norm: float) -> tuple[float, float, float]:
    """Return the condition numbers of A, B and ΔW, whose norm is given; subtracting an initial update cancels, too."""
    a, b = ([factor.detach().double() for factor in side] for side in adapter.factors())
    if adapter.has_core:
        right, left = (side.detach().double() for side in adapter.collapse())
        update = update_condition_number([right[None]], [left[None]])
    else:
        update = update_condition_number(a, b)
        if adapter.is_folded and norm:
            update *= abs(adapter.scaling) * norm_of_pair(kron_sum(*b), kron_sum(*a)) / norm
    return condition_number(*a), condition_number(*b), update


def shared_prefix(names: Mapping[str, object]) -> str:
    """Return the leading parts that all names share, with a trailing dot, without the last part of any name."""
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return "".join(f"{part}." for part in shared)
