"""Frames in common for several trained adapters, written as a folder from which new adapters take them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from lsr.algebra.frames import bases_of, captured_energies, leading_frames
from lsr.algebra.shapes import Form
from lsr.convert.composed import Part, composed
from lsr.convert.writing import check_output, write_adapter, writing
from lsr.init.initialization import Start
from lsr.loading.base_models import by
from lsr.loading.contents import updates_in
from lsr.loading.files import PREFIX, InputError, read_config
from lsr.tuner.config import LsrConfig
from lsr.tuner.factors import LsrFactors, entries
from lsr.tuner.saved import CONFIG
from lsr.tuner.sharing import kind_of

Pair = tuple[Tensor, Tensor]  # (m, k), (k, n): an update is their product


@dataclass(frozen=True)
class PooledFrames:
    """Frames of one layer or kind; they capture 1 - ||ΔW - P ΔW Q||^2 / ||ΔW||^2 of an update's energy."""

    layers: int
    rank: int
    parameters: int
    energy: dict[str, float]  # by adapter folder: the share captured of its updates, mean over the layers


def pool_frames(
    adapters: Sequence[str | Path],
    output: str | Path,
    *,
    rank: int | None = None,
    share: str = "none",
    dtype: str = "float32",
    force: bool = False,
) -> dict[str, PooledFrames]:
    """Write the frames that capture most of the updates of several adapters, of LSR or LoRA, in each layer.

    The updates of all adapters, each normalized, are decomposed jointly, as in `lsr.algebra.frames`; zero ones do not
    count. The folder is an adapter with zero cores, which `frames` of LsrConfig may name. Without `rank`, the frames
    have the largest rank of the adapters.

    Raises:
        InputError: if a folder is not an adapter of LSR or LoRA, they adapt different layers or base models, or the
            rank is not that of a layer.
    """
    folders, output = [Path(folder) for folder in adapters], Path(output)
    check_output(output, tuple(folders), replace=force)
    fields = [read_config(folder) for folder in folders]
    updates = {str(folder): updates_in(folder, its) for folder, its in zip(folders, fields, strict=True)}
    shapes = _common_shapes(updates)
    largest = max(len(right) for pairs in updates.values() for _, right in pairs.values())
    chosen = largest if rank is None else rank
    groups = _groups(shapes, chosen, share)
    parts: dict[str, Part] = {}
    rounded: dict[str, Tensor] = {}
    reports: dict[str, PooledFrames] = {}
    for name, layers in groups.items():
        frames, reports[name] = _pooled(name, layers, updates, shapes[layers[0]], chosen, dtype)
        part = Part(*frames.matrices(*frames.factors()), LsrConfig.alpha, torch.zeros(chosen, chosen))
        parts |= dict.fromkeys(layers, part)
        rounded |= {f"{PREFIX}{layers[0]}.lsr_adapters.{key}": value for key, value in frames.state_dict().items()}
    config, tensors = composed(_base(fields), parts, frames_dtype=dtype)
    with writing(output) as new:
        write_adapter(new, config.to_dict(), tensors | rounded)
    return reports


def _common_shapes(updates: Mapping[str, Mapping[str, Pair]]) -> dict[str, tuple[int, int]]:
    shapes = {
        folder: {name: (len(left), right.shape[1]) for name, (left, right) in pairs.items()}
        for folder, pairs in updates.items()
    }
    (first, expected), *others = shapes.items()
    for folder, found in others:
        for name in sorted(found.keys() ^ expected.keys()):
            raise InputError(f"{folder if name in found else first}: adapts {name!r}, which not all adapters do")
        for name, shape in found.items():
            if shape != expected[name]:
                raise InputError(f"{folder}: layer {name!r} is {by(shape)}, but {by(expected[name])} in {first}")
    return expected


def _groups(shapes: Mapping[str, tuple[int, int]], rank: int, share: str) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        if not 1 <= rank <= min(shape):
            raise InputError(f"--rank must be in [1, {min(shape)}] for layer {name!r}, got {rank}")
        key = str(kind_of(name, _form(shape, rank))) if share == "layers" else name
        groups.setdefault(key, []).append(name)
    return groups


def _pooled(
    name: str,
    layers: Sequence[str],
    updates: Mapping[str, Mapping[str, Pair]],
    shape: tuple[int, int],
    rank: int,
    dtype: str,
) -> tuple[LsrFactors, PooledFrames]:
    try:
        left, right = leading_frames([pairs[layer] for pairs in updates.values() for layer in layers], rank)
    except ValueError as error:
        raise InputError(f"layer {name!r}: {error}") from None
    frames = LsrFactors(_form(shape, rank), "core", dtype)
    frames.set_factors(Start([right[None]], [left[None]]), torch.empty(0))
    kept = bases_of(*frames.matrices(*frames.factors()))  # as rounded
    energy = {
        folder: fmean(captured_energies([pairs[layer] for layer in layers], *kept)) for folder, pairs in updates.items()
    }
    return frames, PooledFrames(len(layers), rank, sum(map(entries, frames.state_dict().values())), energy)


def _base(given: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    bases = {str(fields.get("base_model_name_or_path")) for fields in given}
    if len(bases) > 1:
        raise InputError(f"{CONFIG}: the adapters are of different base models: {', '.join(sorted(bases))}")
    return {name: given[0].get(name) for name in ("base_model_name_or_path", "revision")}


def _form(shape: tuple[int, int], rank: int) -> Form:
    rows, columns = shape
    return Form.dense(rank, columns, rows)
