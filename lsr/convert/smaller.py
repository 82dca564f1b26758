"""Adapters in fewer bits or fewer directions, and how far what is written is from its original."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import hypot
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lsr.algebra.rounding import BITS
from lsr.algebra.separable import Form
from lsr.algebra.spectrum import Matrix, norm_of, shape_of
from lsr.convert.writing import check_output, copy_files, write, write_files, write_task, writing
from lsr.init.budget import MOST, allocate
from lsr.init.directions import directed_frames
from lsr.init.source import Source
from lsr.init.warm import warm_core, warm_start
from lsr.loading.contents import read_contents, read_task
from lsr.loading.updates import LSR, Frames, Update, updates_in
from lsr.tuner.config import DIAGONAL, LsrConfig
from lsr.tuner.files import adapter_folder, read_files, tokenizer_files
from lsr.tuner.mistakes import InputError, explained
from lsr.tuner.sharing import Kind, kind_of

FORM = re.compile(r"(rank|shared|directions):([1-9]\d{0,5})")
ALPHA = LsrConfig.alpha  # the usual one


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
        name: _distance(written[name].product(), product) if name in written else lengths[name]
        for name, product in products.items()
    }
    return relative(absolute, lengths)


def _distance(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:  # of products, neither is formed
    if all(map(torch.equal, one, other)):
        return 0.0  # rather than roundoff
    return norm_of((torch.cat([one[0], -other[0]], dim=1), torch.cat([one[1], other[1]])))


def relative(absolute: Mapping[str, float], lengths: Mapping[str, float]) -> Errors:
    """Divide errors by the norms of the originals; a zero that stays zero has error 0."""
    layers = {name: absolute[name] / lengths[name] if lengths[name] else 0.0 for name in absolute}
    length = hypot(*lengths.values())
    return Errors(layers, hypot(*absolute.values()) / length if length else 0.0)


class RoundingErrors(NamedTuple):
    """What rounding has changed."""

    tensors: Errors  # by tensor
    update: Errors | None  # by layer; None for methods other than LSR and plain LoRA


def round_adapter(folder: str | Path, output: str | Path, precision: str, *, force: bool = False) -> RoundingErrors:
    """Write an adapter of any method in a precision: float32, bfloat16, 8bit, 4bit, 3bit or 2bit.

    In float32 the folder is one for PEFT. In the others, the tensors are in a file of their own, laid out as
    `lsr.tuner.packing` says, which all functions and commands of this package take in place of PEFT's.

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
        copy_files(tokenizer_files(folder), new)
        written, of_updates = read_files(new), None
        absolute = {name: float((written.tensors[name] - tensor).norm()) for name, tensor in exact.items()}
        of_tensors = relative(absolute, {name: float(tensor.norm()) for name, tensor in exact.items()})
        with suppress(*([] if files.method == LSR else [InputError])):  # other methods may do more than add an update
            of_updates = errors_of(updates_in(written), updates_in(files))
        return RoundingErrors(of_tensors, of_updates)


def squeeze_adapter(
    folder: str | Path, output: str | Path, to: str = "rank:1", *, bits: int | None = None, force: bool = False
) -> Errors:
    """Write a small LSR adapter whose update is close to that of an adapter, in a folder or a hub repository.

    Returns the relative errors of the update.

        rank:R        R directions in each layer, as a LoRA has them: the nearest such update in the Frobenius norm
        directions:N  N in all, where the singular values of all layers are largest, with diagonal cores: the nearest,
                      too, but with at most 64 a layer
        shared:R      a core of R x R in each layer, between frames that all layers of a kind share

    It begins as `init_weights="warm"` does with the update of a short training run, so it may be trained on. A layer
    gets no more directions than its update has, and one without an update is left out. The head is kept. With `bits` of
    8, 4, 3 or 2, all is rounded as by `lsr.round_adapter`.

    Raises:
        InputError: if the folder is no adapter of LSR or LoRA, or does more than add an update to linear layers; if its
            update is zero, or no such form of it is possible; or if the output exists and `force` is false.
    """
    folder, output = adapter_folder(folder), Path(output)
    check_output(output, (folder,), replace=force)
    form = FORM.fullmatch(to)
    if form is None or bits not in (None, *BITS.values()):
        wrong = f"--to must be rank:R, directions:N or shared:R, got {to!r}" if form is None else f"--bits {bits}"
        raise InputError(f"{wrong}; needed: numbers from 1 on, and --bits of {', '.join(map(str, BITS.values()))}")
    contents = read_contents(folder)
    before = {name: update.product() for name, update in contents.updates.items()}
    updates = {name: product for name, product in before.items() if norm_of(product)}
    if not updates:
        raise InputError(f"{folder}: its update is zero: there is nothing to squeeze")
    with explained(f"{folder}: --to {to}", ValueError):
        small = _small(updates, form[1], int(form[2]))
    with writing(output) as new:  # which is there when it has been read
        new.rmdir()
        precision = None if bits is None else f"{bits}bit"
        write(replace(contents, updates=small), new, precision=precision, with_tokenizer_of=folder)
        return errors_of(read_contents(new).updates, contents.updates)


def _small(updates: Mapping[str, Matrix], form: str, number: int) -> dict[str, Update]:
    # The small updates by layer: each of its own rank, or cores between the frames of a layer or of a kind.
    most = {name: min(len(right), *shape_of((left, right))) for name, (left, right) in updates.items()}
    paired = form == "directions"
    if paired:
        ranks = allocate(updates, min(number, sum(min(MOST, rank) for rank in most.values())))
    else:
        ranks = {name: min(number, rank) if form == "rank" else number for name, rank in most.items()}
    share = "layers" if form == "shared" else "none"
    sources: dict[str, Source] = {}
    kinds: dict[Kind, list[str]] = {}
    for name, rank in ranks.items():
        m, n = shape_of(updates[name])
        shapes = Form.dense(rank, n, m)
        scaling = ALPHA / (DIAGONAL if paired else rank)
        sources[name] = Source(shapes, partial(updates.__getitem__, name), scaling=scaling, paired=paired)
        kinds.setdefault(kind_of(name, shapes, share), []).append(name)
    small: dict[str, Update] = {}
    for names in kinds.values():
        own = [sources[name] for name in names]
        start = warm_start(own[0]) if form == "rank" else directed_frames(own)
        frames = Frames(a=start.a[0][0].float(), b=start.b[0][0].float())
        for name, source in zip(names, own, strict=True):
            core = None if form == "rank" else warm_core(source, frames.b, frames.a).float()
            small[name] = Update(frames, ALPHA, core)
    return {name: small[name] for name in ranks}  # in the order of the model
