"""A report on a trained adapter by layer: sizes, the update's spectrum, the equivalent LoRA."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lsr.algebra.spectrum import singular_values_of_pair
from lsr.loading.adapters import ADAPTER, load_adapter, load_layers
from lsr.loading.files import PREFIX, NoBaseError, read_config, read_tensors
from lsr.tuner.linear import LsrLinear, adapted_layers


@dataclass(frozen=True)
class LayerReport:
    """One adapted layer. Norms are Frobenius norms."""

    out_features: int
    in_features: int
    rank: int
    separation_rank: int
    trained: int
    stored: int
    effective: int
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
    weight = float(layer.pretrained_weight().double().norm()) if has_base else None
    return LayerReport(
        out_features=layer.out_features,
        in_features=layer.in_features,
        rank=form.rank,
        separation_rank=form.separation_rank,
        trained=sizes.trained,
        stored=sizes.stored,
        effective=sizes.effective,
        norm=norm,
        relative_norm=norm / weight if weight else None,
        singular_values=tuple(values.tolist()),
        lora_rank=len(right),
        lora_parameters=len(right) * (layer.in_features + layer.out_features),
    )


def shared_prefix(names: Mapping[str, object]) -> str:
    """Return the leading parts that all names share, with a trailing dot, without the last part of any name."""
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return "".join(f"{part}." for part in shared)
