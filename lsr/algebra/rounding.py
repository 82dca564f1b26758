"""An adapter's tensors rounded to a precision, in a few one-dimensional tensors of a safetensors file.

    values        float32, bfloat16, or codes of 8, 4, 3 or 2 bits in uint8
    scales        bfloat16, one a group of codes
    small         bfloat16: tensors of fewer than 64 entries, beside codes; cores and biases lose more than they cost
    int64         what is not floating-point and stays as it is: counters of modules saved whole
    index         uint8, deflated JSON: the precision, and in a tree of names where each tensor is, and its shape

Tensors follow one another in the order of their names, each with its longest axis last. That axis is cut evenly into
groups of about 64, so that a group lies in a row of A or a column of B; a tensor without an axis of 64 is cut as a
whole. A code c of b bits stands for scale * (c - (2^b - 1) / 2): 2^b levels, as many on either side of zero.
"""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from math import ceil, gcd, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WHOLE = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BITS = {"8bit": 8, "4bit": 4, "3bit": 3, "2bit": 2}
PRECISIONS = (*WHOLE, *BITS)
PARTS = ("values", "small", "int64")  # with the entries of tensors
GROUP = 64  # entries
LARGEST = 2.0**127  # from here on a rounded value may overflow
MOST_BYTES = 8_000_000  # of the index: enough for 100,000 tensors
MOST_AXES = 8
# If a few entries are much larger than the others, it costs least to clip them: tried are factors down to an eighth.
CLIPPINGS = tuple(0.9**power for power in range(21))
SMALLEST = torch.finfo(torch.bfloat16).tiny  # of scales

Room = tuple[str, Sequence[int]]  # the part that has a tensor's entries, and the tensor's shape


def pack(tensors: Mapping[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Return the tensors of a file that holds an adapter's tensors, rounded to one of PRECISIONS.

    Packing what `unpack` returns, in the same precision, gives the same bytes again.

    Raises:
        ValueError: if there is no such precision, a value is not finite, or a tensor is of a dtype that no adapter has.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    rooms: dict[str, Room] = {}
    pieces: dict[str, list[Tensor]] = {}
    for name, tensor in sorted(tensors.items()):
        floating = "small" if precision in BITS and tensor.numel() < GROUP else "values"
        part = floating if tensor.is_floating_point() else dtype_name(tensor.dtype)
        if part not in PARTS:
            raise ValueError(f"{name} holds values of {part}; needed: a floating-point dtype or int64")
        if not (tensor.abs() < LARGEST).all():
            raise ValueError(f"{name} holds values that are not finite, or of 2^127 and more")
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
    """Return the tensors that `pack` stored, by name; floating-point ones in float32.

    Raises:
        ValueError: if the index is broken, or the other tensors are not what it says.
    """
    precision, rooms = _read_index(stored)
    sizes = {part: sum(prod(shape) for its, shape in rooms.values() if its == part) for part in PARTS}
    left = {"int64": _part(stored, "int64", sizes["int64"], torch.int64)}
    left["small"] = _part(stored, "small", sizes["small"], torch.bfloat16).float()
    if precision in WHOLE:
        left["values"] = _part(stored, "values", sizes["values"], WHOLE[precision]).float()
    else:
        bits = BITS[precision]
        packed = _part(stored, "values", ceil(sizes["values"] * bits / 8), torch.uint8)
        groups = _groups(rooms)  # there are no more than codes, whose number has been checked
        scales = _part(stored, "scales", len(groups), torch.bfloat16).repeat_interleave(groups)
        left["values"] = from_codes(from_bytes(packed, bits, sizes["values"]), scales, bits)
    found = {}
    for name, (part, shape) in rooms.items():
        entries, left[part] = left[part].tensor_split([prod(shape)])
        axis = _longest(shape)
        moved = *shape[:axis], *shape[axis + 1 :], *shape[axis : axis + 1]
        found[name] = entries.reshape(moved).movedim(-1, axis).clone(memory_format=torch.contiguous_format)
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without its module, for example bfloat16."""
    return str(dtype).removeprefix("torch.")


def _longest(shape: Sequence[int]) -> int:
    return shape.index(max(shape)) if shape else 0


def _groups(rooms: Mapping[str, Room]) -> Tensor:
    """Return the number of entries in each group of codes."""
    lengths: list[int] = []
    for part, shape in rooms.values():
        if part == "values":
            longest, size = max(shape, default=1), prod(shape)
            width = longest if longest >= GROUP else size
            lengths += size // width * group_lengths(width)
    return torch.tensor(lengths, dtype=torch.int64)


def group_lengths(width: int) -> list[int]:
    """Return the number of entries in each of the groups into which an axis is cut."""
    groups = max(1, round(width / GROUP))
    return [width // groups + (group < width % groups) for group in range(groups)]


def to_codes(
    values: Tensor,  # (n,), float32
    lengths: Tensor,  # (groups,), which sum to n
    bits: int,
) -> tuple[Tensor, Tensor]:  # (n,), uint8; (groups,), bfloat16
    """Return the codes of values and the scale of each group, chosen for the least sum of squared errors.

    The outermost level is at one of CLIPPINGS times the largest magnitude, and so in use: from values that have been
    rounded, the same scale is found. A scale below SMALLEST is 0, and its group comes back as zeros.
    """
    group = torch.arange(len(lengths)).repeat_interleave(lengths)
    zeros = values.new_zeros(len(lengths))
    outermost = zeros.scatter_reduce(0, group, values.abs(), "amax") / _outermost(bits)
    unit = outermost.clamp(min=SMALLEST)[group]  # in units of it, squares neither overflow nor vanish
    scales, least = zeros, zeros + torch.inf
    for clipping in CLIPPINGS:
        tried = (clipping * outermost).bfloat16().float()  # as it is stored
        tried = torch.where(tried < SMALLEST, 0, tried)
        own = tried[group]
        errors = _levels(values, own, bits).mul_(own).sub_(values).div_(unit).square_()
        loss = zeros.index_add(0, group, errors)
        scales, least = torch.where(loss < least, tried, scales), torch.minimum(loss, least)
    codes = _levels(values, scales[group], bits) + _outermost(bits)
    return codes.to(torch.uint8), scales.bfloat16()


def from_codes(
    codes: Tensor,  # (n,)
    scales: Tensor,  # (n,), that of each code's group
    bits: int,
) -> Tensor:  # (n,), float32
    """Return the values for which codes stand."""
    return scales.float() * (codes.float() - _outermost(bits))


def _levels(values: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Return the nearest level of each value, in steps of its scale; any level if the scale is 0."""
    steps = values / scales.clamp(min=SMALLEST)
    return steps.floor_().add_(0.5).clamp_(-_outermost(bits), _outermost(bits))


def _outermost(bits: int) -> float:
    return (2**bits - 1) / 2


def to_bytes(codes: Tensor, bits: int) -> Tensor:  # (..., n) -> (..., ceil(n * bits / 8)), uint8
    """Return codes one after the other without a gap, the lowest bit first, in bytes filled from their lowest bit."""
    each = np.unpackbits(codes.numpy()[..., None], axis=-1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(each.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little"))


def from_bytes(packed: Tensor, bits: int, count: int) -> Tensor:  # (..., bytes) -> (..., count), uint8
    """Return the first codes in bytes: the inverse of `to_bytes`, on any device and under torch's compiler."""
    step = gcd(8, bits)  # codes of three bits may lie in two bytes, but their single bits do not
    of_byte, of_code = (torch.arange(0, end, step, dtype=torch.uint8, device=packed.device) for end in (8, bits))
    pieces = (packed[..., None] >> of_byte) & (2**step - 1)
    pieces = pieces.flatten(-2)[..., : count * len(of_code)].unflatten(-1, (count, len(of_code)))
    return pieces[..., 0] if len(of_code) == 1 else (pieces << of_code).sum(dim=-1, dtype=torch.uint8)


class RowCodes(nn.Module):
    """Rows of equal width as bytes, each on its own: codes of a few bits, then the scales of their groups in bfloat16.

    Each part of a row is cut into groups as an axis is.
    """

    lengths: Tensor  # of the groups

    def __init__(self, parts: Sequence[int], bits: int) -> None:
        super().__init__()
        lengths = [length for part in parts for length in group_lengths(part)]
        self.register_buffer("lengths", torch.tensor(lengths))
        self.bits, self.width = bits, sum(parts)
        self.codes = ceil(self.width * bits / 8)  # bytes
        self.columns = self.codes + 2 * len(lengths)

    def pack(self, rows: Tensor) -> Tensor:  # (n, width) -> (n, columns), uint8
        """Return rows as bytes."""
        codes, scales = to_codes(rows.cpu().float().flatten(), self.lengths.cpu().repeat(len(rows)), self.bits)
        each = to_bytes(codes.view(rows.shape), self.bits), scales.view(len(rows), -1).view(torch.uint8)
        return torch.cat(each, dim=1)

    def unpack(self, stored: Tensor) -> Tensor:  # (n, columns), uint8 -> (n, width), float32
        """Return the rows for which bytes stand, on any device and under torch's compiler."""
        scales = self._scales(stored).repeat_interleave(self.lengths, dim=1, output_size=self.width)
        return from_codes(from_bytes(stored[:, : self.codes], self.bits, self.width), scales, self.bits)

    def are_bounded(self, stored: Tensor) -> bool:  # (n, columns), uint8
        """Return whether the scales in rows of bytes are 0 or more, and all values for which they may stand finite."""
        outermost = self._scales(stored).float() * _outermost(self.bits)
        return bool(((outermost >= 0) & outermost.isfinite()).all())

    def _scales(self, stored: Tensor) -> Tensor:  # (n, columns), uint8 -> (n, groups), bfloat16
        return stored[:, self.codes :].contiguous().view(torch.bfloat16)


def _index(precision: str, rooms: Mapping[str, Room]) -> Tensor:
    tree: dict[str, Any] = {}
    for name, (part, shape) in rooms.items():
        *path, last = name.split(".")  # equal layers are equal branches, which deflate well
        reduce(lambda node, key: node.setdefault(key, {}), path, tree)[last] = [part, *shape]
    text = json.dumps([precision, tree], separators=(",", ":"))
    return torch.frombuffer(bytearray(zlib.compress(text.encode(), level=9)), dtype=torch.uint8)


def _read_index(stored: Mapping[str, Tensor]) -> tuple[str, dict[str, Room]]:
    if "index" not in stored or stored["index"].dtype is not torch.uint8:
        raise ValueError("no rounded adapter: it has no index of uint8")
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(stored["index"].numpy().tobytes(), MOST_BYTES)
        if not inflate.eof:
            raise ValueError(f"cut off, or over {MOST_BYTES:,} bytes")
        precision, tree = json.loads(text)
        if precision not in PRECISIONS:
            raise ValueError(f"the precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        return precision, dict(sorted(_leaves(tree, "")))
    except (zlib.error, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its index is broken: {error}") from None


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Room]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, list):
            part, *shape = value
            if part not in PARTS or len(shape) > MOST_AXES or not all(type(n) is int and n > 0 for n in shape):
                raise ValueError(f"{name}: {value} is not one of {', '.join(PARTS)} and a shape")
            yield name, (part, tuple(shape))
        else:
            yield from _leaves(value, f"{name}.")


def _part(stored: Mapping[str, Tensor], name: str, size: int, dtype: torch.dtype) -> Tensor:  # (size,)
    # Checked before any memory of its size is taken.
    part = stored.get(name, torch.empty(0, dtype=dtype))
    if part.shape != (size,) or part.dtype is not dtype:
        found, needed = (
            f"{tuple(of)} of {dtype_name(its)}" for of, its in ((part.shape, part.dtype), ((size,), dtype))
        )
        raise ValueError(f"{name} is {found}, but the index says {needed}")
    return part
