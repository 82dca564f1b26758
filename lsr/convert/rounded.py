"""Round an adapter of any method, and measure how far a written adapter is from its original."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from lsr.algebra.spectrum import distance_of_pairs, norm_of
from lsr.convert.writing import check_output, write_files, write_task, writing
from lsr.loading.contents import read_task
from lsr.loading.updates import LSR, Update, updates_in
from lsr.tuner.files import Files, read_files
from lsr.tuner.mistakes import InputError


@dataclass(frozen=True)
class Errors:
    """Relative errors, ||written - exact||_F / ||exact||_F."""

    layers: dict[str, float]
    total: float  # of all layers as one long vector

    @property
    def worst(self) -> str:
        """The layer with the largest error."""
        return max(self.layers, key=lambda name: self.layers[name])

    def __str__(self) -> str:
        """Return the total error, and the largest with its layer."""
        return f"{self.total:.2g} in total, {self.layers[self.worst]:.2g} at most, in {self.worst}"


def errors_of(written: Mapping[str, Update], exact: Mapping[str, Update]) -> Errors:
    """Return the errors of updates by layer; a missing update counts as zero."""
    products = {name: update.product() for name, update in exact.items()}
    lengths = {name: norm_of(product) for name, product in products.items()}
    absolute = {
        name: distance_of_pairs(written[name].product(), product) if name in written else lengths[name]
        for name, product in products.items()
    }
    return relative(absolute, lengths)


def relative(absolute: Mapping[str, float], lengths: Mapping[str, float]) -> Errors:
    """Divide errors by the norms of the originals; a zero that stays zero has error 0."""
    layers = {name: absolute[name] / lengths[name] if lengths[name] else 0.0 for name in absolute}
    total, length = (float(torch.tensor(list(v.values()), dtype=torch.float64).norm()) for v in (absolute, lengths))
    return Errors(layers, total / length if length else 0.0)


class RoundingErrors(NamedTuple):
    """What rounding has changed."""

    tensors: Errors  # by tensor
    update: Errors | None  # by layer; None for methods other than LSR and plain LoRA


def round_adapter(folder: str | Path, output: str | Path, precision: str, *, force: bool = False) -> RoundingErrors:
    """Write an adapter of any method in a precision: float32, bfloat16, 8bit, 4bit, 3bit or 2bit.

    In float32 the folder is one for PEFT. In the others, the tensors are in a file of their own, laid out as
    `lsr.algebra.rounding` says, which all functions and commands of this package take in place of PEFT's.

    Raises:
        InputError: if the folder is no adapter, there is no such precision, or `output` exists and `force` is false.
    """
    folder, output = Path(folder), Path(output)
    check_output(output, (folder,), replace=force)
    files = read_files(folder)
    exact = {name: tensor.double() for name, tensor in files.tensors.items() if tensor.is_floating_point()}
    if not exact:
        raise InputError(f"{folder}: there is no floating-point tensor to round")
    with writing(output) as new:
        write_files(new, str(folder), files.fields, files.tensors, precision)
        write_task(new, read_task(folder))
        written = read_files(new)
        before, after = _updates(files), _updates(written)
        absolute = {name: float((written.tensors[name] - tensor).norm()) for name, tensor in exact.items()}
        of_tensors = relative(absolute, {name: float(tensor.norm()) for name, tensor in exact.items()})
        return RoundingErrors(of_tensors, errors_of(after, before) if before else None)


def _updates(files: Files) -> Mapping[str, Update]:
    """Return the update of each layer; none if the method does more than add one."""
    if files.method == LSR:
        return updates_in(files)
    with suppress(InputError):
        return updates_in(files)
    return {}
