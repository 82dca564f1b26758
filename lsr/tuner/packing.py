"""An adapter's tensors quantized to a precision, in a few one-dimensional tensors of a safetensors file.

    values        float32, bfloat16, or codes of 8, 4, 3 or 2 bits in uint8
    scales        bfloat16, one per group of codes
    small         bfloat16: tensors of fewer than 64 entries, next to codes; cores and biases lose more than they cost
    int64         tensors that are not floating-point, unchanged: counters of fully saved modules
    index         uint8, deflated JSON: the precision, and in a tree of names where each tensor is, and its shape

Tensors are concatenated in the order of their names, each with its longest axis last. That axis is divided evenly into
groups of about 64, so that a group lies in a row of A or a column of B; a tensor without an axis of 64 is divided as a
whole. `lsr.algebra.rounding` defines codes and scales.
"""

import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from lsr.algebra.rounding import (
    BITS,
    GROUP,
    PRECISIONS,
    WHOLE,
    from_bytes,
    from_codes,
    group_lengths,
    to_bytes,
    to_codes,
)

PARTS = ("values", "small", "int64")  # keys of the tensors that hold packed entries
LARGEST = 2.0**127  # from this magnitude on a quantized value may overflow
MAX_BYTES = 1_000_000  # limit to the index: enough for 20,000 tensors of a LoRA
MAX_AXES = 8

Tensors = Mapping[str, Tensor]  # tensors by name
Room = tuple[str, Sequence[int]]  # the part that has a tensor's entries, and the tensor's shape
Rooms = dict[str, Room]  # places of packed tensors by name


def pack(tensors: Tensors, precision: str) -> dict[str, Tensor]:
    """Quantize an adapter's tensors to one of PRECISIONS, and return the tensors of the file.

    Packing the result of `unpack` in the same precision gives the same bytes again.

    Raises:
        ValueError: if the precision is unknown, a value is not finite, or a tensor has an unsupported dtype.
    """
    check_precision(precision)
    rooms: Rooms = {}
    pieces = defaultdict(list)
    for name, tensor in sorted(tensors.items()):
        part = _part_of(tensor, precision)
        if part not in PARTS:
            raise ValueError(f"{name} holds values of {part}; needed: a floating-point dtype or int64")
        if not (tensor.abs() < LARGEST).all():
            raise ValueError(f"{name} holds values that are not finite, or of 2^127 and more")
        rooms[name] = part, tensor.shape
        moved = tensor.detach().cpu().movedim(_longest(tensor.shape), -1)
        pieces[part].append(moved.flatten())
    stored = {part: torch.cat(entries) for part, entries in pieces.items()}
    if "values" in stored:
        values = stored["values"]
        if precision in WHOLE:
            stored["values"] = values.to(WHOLE[precision])
        else:
            bits = BITS[precision]
            codes, stored["scales"] = to_codes(values.float(), _groups(rooms), bits)
            stored["values"] = to_bytes(codes, bits)
    if "small" in stored:
        stored["small"] = stored["small"].bfloat16()
    stored["index"] = _index(precision, rooms)
    return stored


def check_precision(precision: object) -> None:
    """Check that a precision exists.

    Raises:
        ValueError: if not.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"the precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")


def _part_of(tensor: Tensor, precision: str) -> str:
    """Return the part for the entries of a tensor, or the name of its dtype if there is none."""
    if not tensor.is_floating_point():
        return dtype_name(tensor.dtype)
    if precision in BITS and tensor.numel() < GROUP:
        return "small"
    return "values"


def unpack(stored: Tensors) -> dict[str, Tensor]:
    """Return the tensors that `pack` stored, by name; floating-point ones in float32.

    Raises:
        ValueError: if the index is invalid, or the other tensors do not match it.
    """
    precision, rooms = _read_index(stored)
    sizes = Counter[str]()
    for part, shape in rooms.values():
        sizes[part] += prod(shape)
    small = _part(stored, "small", sizes["small"], torch.bfloat16)
    left = {
        "int64": _part(stored, "int64", sizes["int64"], torch.int64),
        "small": small.float(),
    }
    count = sizes["values"]
    if precision in WHOLE:
        left["values"] = _part(stored, "values", count, WHOLE[precision]).float()
    else:
        bits = BITS[precision]
        packed = _part(stored, "values", -(-count * bits // 8), torch.uint8)
        groups = _groups(rooms)  # there are at most as many as codes, whose number is checked
        scales = _part(stored, "scales", len(groups), torch.bfloat16)
        codes = from_bytes(packed, bits, count)
        left["values"] = from_codes(codes, scales.repeat_interleave(groups), bits)
    tensors = {}
    for name, (part, shape) in rooms.items():
        entries, left[part] = left[part].tensor_split([prod(shape)])
        axis = _longest(shape)
        moved = torch.empty(shape, device="meta").movedim(axis, -1)
        tensor = entries.reshape(moved.shape).movedim(-1, axis)
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
    return tensors


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without its module, for example bfloat16."""
    return str(dtype).removeprefix("torch.")


def _longest(shape: Sequence[int]) -> int:
    if not shape:
        return 0
    return shape.index(max(shape))


def _groups(rooms: Rooms) -> Tensor:
    """Return the number of entries in each group of codes."""
    lengths: list[int] = []
    for part, shape in rooms.values():
        if part == "values":
            size = prod(shape)
            width = max(shape, default=1)
            if width < GROUP:
                width = size
            lengths += size // width * group_lengths(width)
    return torch.tensor(lengths, dtype=torch.int64)


def _index(precision: str, rooms: Rooms) -> Tensor:
    tree: dict[str, Any] = {}
    for name, (part, shape) in rooms.items():
        *path, last = name.split(".")  # equal layers are equal branches, which deflate well
        branch = tree
        for key in path:
            branch = branch.setdefault(key, {})
        branch[last] = [part, *shape]
    text = json.dumps([precision, tree], separators=(",", ":"))
    deflated = zlib.compress(text.encode(), level=9)
    return torch.frombuffer(bytearray(deflated), dtype=torch.uint8)


def _read_index(stored: Tensors) -> tuple[str, Rooms]:
    index = stored.get("index")
    if index is None or index.dtype is not torch.uint8:
        raise ValueError("not a quantized adapter: it has no uint8 index")
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(index.numpy().tobytes(), MAX_BYTES)
        if not inflate.eof:
            raise ValueError(f"cut off, or over {MAX_BYTES:,} bytes")
        precision, tree = json.loads(text)
        check_precision(precision)
        return precision, dict(sorted(_leaves(tree, "")))
    except (zlib.error, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its index is broken: {error}") from None


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Room]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if not isinstance(value, list):
            yield from _leaves(value, f"{name}.")
            continue
        part, *shape = value
        are_sizes = all(type(size) is int and size > 0 for size in shape)
        if part not in PARTS or len(shape) > MAX_AXES or not are_sizes:
            raise ValueError(f"{name}: {value} is not one of {', '.join(PARTS)} and a shape")
        yield name, (part, tuple(shape))


def _part(
    stored: Tensors,
    name: str,
    size: int,
    dtype: torch.dtype,
) -> Tensor:  # (size,)
    # Checked before any memory of its size is taken.
    part = stored.get(name, torch.empty(0, dtype=dtype))
    if part.shape != (size,) or part.dtype is not dtype:
        held = f"{tuple(part.shape)} of {dtype_name(part.dtype)}"
        raise ValueError(f"{name} is {held}, but the index has ({size},) of {dtype_name(dtype)}")
    return part
