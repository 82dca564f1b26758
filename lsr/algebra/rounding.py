"""An adapter's tensors rounded to a precision, in a few one-dimensional tensors, as a file would hold them.

    values        float32, bfloat16, or codes of 8, 4, 3, 2 or 1 bits in uint8 (`lsr.algebra.levels`)
    scales        bfloat16, one a group of codes
    small         bfloat16: tensors of fewer than 64 entries, beside codes; cores and biases lose more than they cost
    uint8, int64  what is not floating-point and stays as it is: signs of frames, counters of modules saved whole
    index         uint8, deflated JSON: the precision, and in a tree of names where each tensor is, and its shape

Tensors follow one another in the order of their names, each with its longest axis last. That axis is cut evenly into
groups of about 64, so that a group lies in a row of A or a column of B; a tensor without an axis of 64 is cut as a
whole.
"""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from math import prod
from typing import Any

import torch
from torch import Tensor

from lsr.algebra.levels import from_bytes, from_codes, to_bytes, to_codes
from lsr.algebra.precision import dtype_name

WHOLE = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BITS = {"8bit": 8, "4bit": 4, "3bit": 3, "2bit": 2, "sign": 1}
PRECISIONS = (*WHOLE, *BITS)
PARTS = ("values", "small", "uint8", "int64")  # with the entries of tensors
GROUP = 64  # entries

Room = tuple[str, Sequence[int]]  # the part that has a tensor's entries, and the tensor's shape


def pack(tensors: Mapping[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Return tensors that stand for an adapter's, rounded to one of PRECISIONS.

    Packing what `unpack` returns, in the same precision, gives the same bytes again.
    """
    rooms: dict[str, Room] = {}
    pieces: dict[str, list[Tensor]] = {}
    for name, tensor in sorted(tensors.items()):
        floating = "small" if precision in BITS and tensor.numel() < GROUP else "values"
        part = floating if tensor.is_floating_point() else dtype_name(tensor.dtype)
        rooms[name] = part, tensor.shape
        pieces.setdefault(part, []).append(tensor.detach().cpu().movedim(_longest(tensor.shape), -1).flatten())
    stored = {part: torch.cat(its) for part, its in pieces.items()}
    if "values" in stored and precision in WHOLE:
        stored["values"] = stored["values"].to(WHOLE[precision])
    elif "values" in stored:
        codes, stored["scales"] = to_codes(stored["values"].float(), _groups(rooms), BITS[precision])
        stored["values"] = to_bytes(codes, BITS[precision])
    if "small" in stored:
        stored["small"] = stored["small"].bfloat16()
    return stored | {"index": _index(precision, rooms)}


def unpack(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by name that `pack` has rounded, floating-point ones in float32."""
    precision, tree = json.loads(zlib.decompress(stored["index"].numpy().tobytes()))
    rooms = dict(sorted(_leaves(tree, "")))
    left = {part: stored[part].float() if part == "small" else stored[part] for part in PARTS if part in stored}
    if "values" in left and precision in WHOLE:
        left["values"] = left["values"].float()
    elif "values" in left:
        bits, groups = BITS[precision], _groups(rooms)
        codes = from_bytes(left["values"], bits, int(groups.sum()))
        left["values"] = from_codes(codes, stored["scales"].repeat_interleave(groups), bits)
    found = {}
    for name, (part, shape) in rooms.items():
        entries, left[part] = left[part].tensor_split([prod(shape)])
        axis = _longest(shape)
        moved = *shape[:axis], *shape[axis + 1 :], *shape[axis : axis + 1]
        found[name] = entries.reshape(moved).movedim(-1, axis).clone(memory_format=torch.contiguous_format)
    return found


def _longest(shape: Sequence[int]) -> int:
    return shape.index(max(shape)) if shape else 0


def _groups(rooms: Mapping[str, Room]) -> Tensor:
    """Return the number of entries in each group of codes."""
    lengths: list[int] = []
    for part, shape in rooms.values():
        if part == "values":
            longest, size = max(shape, default=1), prod(shape)
            width = longest if longest >= GROUP else size
            groups = max(1, round(width / GROUP))
            lengths += size // width * [width // groups + (group < width % groups) for group in range(groups)]
    return torch.tensor(lengths, dtype=torch.int64)


def _index(precision: str, rooms: Mapping[str, Room]) -> Tensor:
    tree: dict[str, Any] = {}
    for name, (part, shape) in rooms.items():
        *path, last = name.split(".")  # equal layers are equal branches, which deflate well
        reduce(lambda node, key: node.setdefault(key, {}), path, tree)[last] = [part, *shape]
    text = json.dumps([precision, tree], separators=(",", ":"))
    return torch.frombuffer(bytearray(zlib.compress(text.encode(), level=9)), dtype=torch.uint8)


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Room]]:
    for key, value in tree.items():
        if isinstance(value, list):
            yield f"{prefix}{key}", (value[0], tuple(value[1:]))
        else:
            yield from _leaves(value, f"{prefix}{key}.")
