"""Compress adapters (quantization, rank reduction) and measure the approximation error."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import hypot
from pathlib import Path
from typing import NamedTuple

import torch

from lsr.algebra.rounding import BITS
from lsr.algebra.separable import FactorShapes
from lsr.algebra.spectrum import Pair, norm_of, shape_of
from lsr.convert.writing import check_output, copy_files, replace_folder, write, write_files, write_task
from lsr.errors import InputError, wrap_errors
from lsr.init.budget import MOST, allocate
from lsr.init.directions import singular_bases
from lsr.init.source import Source
from lsr.init.warm import warm_core, warm_start
from lsr.loading.contents import read_contents, read_task
from lsr.loading.updates import LSR, Bases, Update, Updates, updates_in
from lsr.tuner.config import DIAGONAL, LsrConfig
from lsr.tuner.files import Files, adapter_folder, read_files, tokenizer_files
from lsr.tuner.sharing import LayerGroup, layer_group_of

FORM = re.compile(r"(rank|shared|directions):([1-9]\d{0,5})")
ALPHA = LsrConfig.alpha  # the usual one


@dataclass(frozen=True)
class Errors:
    """Relative errors, ||written - exact||_F / ||exact||_F."""

    layers: dict[str, float]
    total: float  # relative error of all layers as one long vector

    @property
    def worst(self) -> str:
        """The layer with the largest error."""
        return max(self.layers, key=lambda name: self.layers[name])

    def __str__(self) -> str:
        """Format the total error and the largest one with its layer."""
        worst = self.worst
        return f"{self.total:.2g} in total, {self.layers[worst]:.2g} at most, in {worst}"


def errors_of(written: Updates, exact: Updates) -> Errors:
    """Return the relative errors of updates by layer; a missing update counts as zero."""
    sizes = {}
    for name, update in exact.items():
        product = update.product()
        length = norm_of(product)
        error = _distance(written[name].product(), product) if name in written else length
        sizes[name] = error, length
    return relative(sizes)


def _distance(written: Pair, exact: Pair) -> float:  # the distance of the products B A, neither of which is formed
    if all(map(torch.equal, written, exact)):
        return 0.0  # rather than roundoff
    left = torch.cat([written[0], -exact[0]], dim=1)
    right = torch.cat([written[1], exact[1]])
    return norm_of((left, right))


def relative(sizes: Mapping[str, tuple[float, float]]) -> Errors:
    """Divide the norms of errors by the norms of the originals, by name; 0 / 0 is 0."""
    layers = {name: _share(error, length) for name, (error, length) in sizes.items()}
    errors, lengths = zip(*sizes.values(), strict=True)
    return Errors(layers, _share(hypot(*errors), hypot(*lengths)))


def _share(error: float, length: float) -> float:
    return error / length if length else 0.0


class RoundingErrors(NamedTuple):
    """The relative errors of quantization."""

    tensors: Errors  # relative errors by name of the tensor
    update: Errors | None  # relative errors by layer; None for methods other than LSR and plain LoRA


def quantize_adapter(
    folder: str | Path,
    output: str | Path,
    precision: str,
    *,
    force: bool = False,
) -> RoundingErrors:
    """Write an adapter of any PEFT method in float32, bfloat16, 8bit, 4bit, 3bit or 2bit.

    In float32, PEFT can load the folder. In other precisions the tensors are in a file with the layout of
    `lsr.tuner.packing`, which all functions and commands of this package accept.

    Raises:
        InputError: if the folder is not an adapter, the precision is unknown, or `output` exists and `force` is false.
    """
    folder = Path(folder)
    output = Path(output)
    check_output(output, (folder,), replace=force)
    files = read_files(folder)
    exact = {name: tensor.double() for name, tensor in files.tensors.items() if tensor.is_floating_point()}
    if not exact:
        raise InputError(f"{folder}: there is no floating-point tensor to quantize")
    with replace_folder(output) as new:
        write_files(new, str(folder), files.fields, files.tensors, precision)
        write_task(new, read_task(folder))
        copy_files(tokenizer_files(folder), new)
        written = read_files(new)
        sizes = {}
        for name, tensor in exact.items():
            difference = written.tensors[name] - tensor
            sizes[name] = float(difference.norm()), float(tensor.norm())
        return RoundingErrors(relative(sizes), _errors_of_updates(written, files))


def _errors_of_updates(written: Files, exact: Files) -> Errors | None:
    try:
        return errors_of(updates_in(written), updates_in(exact))
    except InputError:
        if exact.method == LSR:
            raise
        return None  # other methods may do more than add an update


def compress_adapter(
    folder: str | Path,
    output: str | Path,
    to: str = "rank:1",
    *,
    bits: int | None = None,
    force: bool = False,
) -> Errors:
    """Compress an LSR or LoRA adapter, in a folder or a hub repository, into a small LSR adapter.

    Returns the relative errors of the update.

        rank:R        R directions in each layer, as a LoRA has them: the nearest such update in the Frobenius norm
        directions:N  N in all, where the singular values of all layers are largest, with diagonal cores: the nearest,
                      too, but with at most 64 a layer
        shared:R      a core of R x R in each layer, between bases that all layers of a group share

    Its factors are those of `init_weights="warm_start"` for this update, so training can continue from it. A layer gets
    at most as many directions as its update has; layers without an update are left out. The head is kept. With `bits`
    of 8, 4, 3 or 2, the result is quantized as by `lsr.quantize_adapter`.

    Raises:
        InputError: if the folder is not an LSR or LoRA adapter, or does more than add an update to linear layers; if
            its update is zero, or the form is not possible for it; or if the output exists and `force` is false.
    """
    folder = adapter_folder(folder)
    output = Path(output)
    check_output(output, (folder,), replace=force)
    form, number = _form_of(to, bits)
    contents = read_contents(folder)
    updates = {}
    for name, update in contents.updates.items():
        product = update.product()
        if norm_of(product):
            updates[name] = product
    if not updates:
        raise InputError(f"{folder}: its update is zero: there is nothing to compress")
    with wrap_errors(f"{folder}: --to {to}", ValueError):
        small = _small(updates, form, number)
    with replace_folder(output) as new:  # the folder appears after it has been read back
        new.rmdir()
        precision = None if bits is None else f"{bits}bit"
        write(replace(contents, updates=small), new, precision=precision, with_tokenizer_of=folder)
        return errors_of(read_contents(new).updates, contents.updates)


def _form_of(to: str, bits: int | None) -> tuple[str, int]:
    match = FORM.fullmatch(to)
    needed = f"needed: numbers from 1 on, and --bits of {', '.join(map(str, BITS.values()))}"
    if match is None:
        raise InputError(f"--to must be rank:R, directions:N or shared:R, got {to!r}; {needed}")
    if bits not in (None, *BITS.values()):
        raise InputError(f"--bits {bits}; {needed}")
    return match[1], int(match[2])


def _ranks(updates: Mapping[str, Pair], form: str, number: int) -> dict[str, int]:
    # The rank of each layer that has one.
    if form == "shared":
        return dict.fromkeys(updates, number)
    most = {name: min(len(update[1]), *shape_of(update)) for name, update in updates.items()}
    if form == "rank":
        return {name: min(number, rank) for name, rank in most.items()}
    return allocate(updates, min(number, sum(min(MOST, rank) for rank in most.values())))


def _small(updates: Mapping[str, Pair], form: str, number: int) -> Updates:
    # The small updates by layer: each of its own rank, or cores between the bases of a layer or of a group.
    ranks = _ranks(updates, form, number)
    paired = form == "directions"
    share = "layers" if form == "shared" else "none"
    layer_groups = defaultdict[LayerGroup, dict[str, Source]](dict)
    for name, rank in ranks.items():
        m, n = shape_of(updates[name])
        shapes = FactorShapes.dense(rank, n, m)
        scaling = ALPHA / (DIAGONAL if paired else rank)
        layer_group = layer_group_of(name, shapes, share)
        read = partial(updates.__getitem__, name)
        layer_groups[layer_group][name] = Source(shapes, read, scaling=scaling, paired=paired)
    small = {}
    for sources in layer_groups.values():
        every = list(sources.values())
        start = warm_start(every[0]) if form == "rank" else singular_bases(every)
        (a,) = start.a
        (b,) = start.b
        bases = Bases(a=a[0].float(), b=b[0].float())
        for name, source in sources.items():
            core = None
            if form != "rank":
                core = warm_core(source, bases.b, bases.a).float()
            small[name] = Update(bases, ALPHA, core)
    return {name: small[name] for name in ranks}  # keeps the model's order of layers
