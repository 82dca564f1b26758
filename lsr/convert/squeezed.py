"""Squeeze a trained LSR or LoRA adapter into a small one: few directions, or cores between shared frames."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from lsr.algebra.rounding import BITS
from lsr.algebra.shapes import Form
from lsr.algebra.spectrum import Matrix, norm_of, shape_of
from lsr.convert.rounded import Errors, errors_of
from lsr.convert.writing import check_output, write, writing
from lsr.init import directions
from lsr.init.initialization import Source
from lsr.loading.contents import read_contents
from lsr.loading.updates import Frames, Update
from lsr.tuner.config import DIAGONAL, LsrConfig
from lsr.tuner.files import adapter_folder
from lsr.tuner.forms import Kind, kind_of
from lsr.tuner.mistakes import InputError, explained

FORM = re.compile(r"(rank|shared|directions):([1-9]\d{0,5})")
ALPHA = LsrConfig.alpha  # the usual one


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
        write(replace(contents, updates=small), new, precision=bits and f"{bits}bit")
        return errors_of(read_contents(new).updates, contents.updates)


def _small(updates: Mapping[str, Matrix], form: str, number: int) -> dict[str, Update]:
    # The small updates by layer: each of its own rank, or cores between the frames of a layer or of a kind.
    most = {name: min(len(right), *shape_of((left, right))) for name, (left, right) in updates.items()}
    if form == "directions":
        ranks = directions.allocate(updates, min(number, sum(min(directions.MOST, its) for its in most.values())))
    else:
        ranks = {name: min(number, its) if form == "rank" else number for name, its in most.items()}
    sources, groups = dict[str, Source](), dict[Kind | str, list[str]]()
    for name, rank in ranks.items():
        m, n = shape_of(updates[name])
        paired, its = form == "directions", Form.dense(rank, n, m)
        scaling = ALPHA / (DIAGONAL if paired else rank)
        sources[name] = Source(its, torch.empty, scaling=scaling, statistic=updates[name], paired=paired)
        groups.setdefault(kind_of(name, its) if form == "shared" else name, []).append(name)
    small = dict[str, Update]()
    for names in groups.values():
        own = [sources[name] for name in names]
        start = directions.warm_start(own[0]) if form == "rank" else directions.frames(own)
        frames = Frames(a=start.a[0][0].float(), b=start.b[0][0].float())
        for name, source in zip(names, own, strict=True):
            core = None if form == "rank" else directions.warm_core(source, frames.b, frames.a).float()
            small[name] = Update(frames, ALPHA, core)
    return {name: small[name] for name in ranks}  # in the order of the model
