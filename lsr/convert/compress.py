"""Compress adapters into small LSR adapters of lower rank."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from lsr.algebra.rounding import BITS
from lsr.algebra.separable import FactorShapes
from lsr.algebra.spectrum import Pair, norm_of, shape_of
from lsr.convert.relative_errors import RelativeErrors, errors_of
from lsr.convert.writing import check_output, replace_folder, write
from lsr.errors import InputError, wrap_errors
from lsr.init.allocation import MAX_DIRECTIONS, allocate
from lsr.init.context import InitContext
from lsr.init.directions import singular_bases
from lsr.init.warm import warm_core, warm_factors
from lsr.loading.contents import read_contents
from lsr.loading.updates import Bases, Update, Updates
from lsr.tuner.config import DIAGONAL, LsrConfig
from lsr.tuner.files import adapter_folder
from lsr.tuner.sharing import LayerGroup, layer_group_of

FORM = re.compile(r"(rank|shared|directions):([1-9]\d{0,5})")
ALPHA = LsrConfig.alpha  # the default


def compress_adapter(
    folder: str | Path,
    output: str | Path,
    to: str = "rank:1",
    *,
    bits: int | None = None,
    force: bool = False,
) -> RelativeErrors:
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
    return allocate(updates, min(number, sum(min(MAX_DIRECTIONS, rank) for rank in most.values())))


def _small(updates: Mapping[str, Pair], form: str, number: int) -> Updates:
    # The small updates by layer: each of its own rank, or cores between the bases of a layer or of a group.
    ranks = _ranks(updates, form, number)
    is_diagonal = form == "directions"
    share = "layers" if form == "shared" else "none"
    layer_groups = defaultdict[LayerGroup, dict[str, InitContext]](dict)
    for name, rank in ranks.items():
        m, n = shape_of(updates[name])
        shapes = FactorShapes.dense(rank, n, m)
        scaling = ALPHA / (DIAGONAL if is_diagonal else rank)
        layer_group = layer_group_of(name, shapes, share)
        read = partial(updates.__getitem__, name)
        layer_groups[layer_group][name] = InitContext(shapes, read, scaling=scaling, is_diagonal=is_diagonal)
    small = {}
    for contexts in layer_groups.values():
        every = list(contexts.values())
        initial = warm_factors(every[0]) if form == "rank" else singular_bases(every)
        (a,) = initial.a
        (b,) = initial.b
        bases = Bases(a=a[0].float(), b=b[0].float())
        for name, context in contexts.items():
            core = None
            if form != "rank":
                core = warm_core(context, bases.b, bases.a).float()
            small[name] = Update(bases, ALPHA, core)
    return {name: small[name] for name in ranks}  # keeps the model's order of layers
