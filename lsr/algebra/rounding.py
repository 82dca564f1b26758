"""Values quantized to codes of a few bits with one scale per group, and codes as bytes: tensors to tensors.

A code c of b bits stands for scale * (c - (2^b - 1) / 2): 2^b levels, as many on either side of zero. A group has about
64 codes.
"""

from math import gcd

import numpy as np
import torch
from torch import Tensor

WHOLE = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}
BITS = {
    "8bit": 8,
    "4bit": 4,
    "3bit": 3,
    "2bit": 2,
}
PRECISIONS = (*WHOLE, *BITS)
GROUP = 64  # entries
# If a few entries are much larger than the others, it costs least to clip them: tried are factors down to an eighth.
CLIPPINGS = tuple(0.9**power for power in range(21))
SMALLEST = torch.finfo(torch.bfloat16).tiny  # smallest scale of a group


def group_lengths(width: int) -> list[int]:
    """Divide an axis of this width into groups of about GROUP entries, and return the number of entries of each."""
    groups = max(1, round(width / GROUP))
    length, longer = divmod(width, groups)
    return [length + 1] * longer + [length] * (groups - longer)


def to_codes(
    values: Tensor,  # (n,), float32
    lengths: Tensor,  # (groups,), which sum to n
    bits: int,
) -> tuple[Tensor, Tensor]:  # (n,), uint8; (groups,), bfloat16
    """Return the codes of values and the scale of each group, chosen for the least sum of squared errors.

    The outermost level is at one of CLIPPINGS times the largest magnitude, so that quantizing quantized values finds
    the same scale. A scale below SMALLEST becomes 0, and its group zeros.
    """
    group = torch.arange(len(lengths)).repeat_interleave(lengths)
    zeros = values.new_zeros(len(lengths))
    largest = zeros.scatter_reduce(0, group, values.abs(), "amax")
    outermost = largest / largest_level(bits)
    unit = outermost.clamp(min=SMALLEST)[group]  # divided by this unit, squares neither overflow nor vanish
    scales = zeros
    least = zeros + torch.inf
    for clipping in CLIPPINGS:
        stored = (clipping * outermost).bfloat16()
        tried = stored.float()
        tried = torch.where(tried < SMALLEST, 0, tried)
        own = tried[group]
        levels = _levels(values, own, bits)
        errors = levels.mul_(own).sub_(values).div_(unit)
        loss = zeros.index_add(0, group, errors.square_())
        scales = torch.where(loss < least, tried, scales)
        least = torch.minimum(loss, least)
    codes = _levels(values, scales[group], bits)
    codes += largest_level(bits)
    return codes.to(torch.uint8), scales.bfloat16()


def from_codes(
    codes: Tensor,  # (n,)
    scales: Tensor,  # (n,), the scale of each code's group
    bits: int,
) -> Tensor:  # (n,), float32
    """Return the values that codes encode."""
    return scales.float() * (codes.float() - largest_level(bits))


def _levels(values: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Return the nearest level of each value, in steps of its scale; any level if the scale is 0."""
    steps = values / scales.clamp(min=SMALLEST)
    largest = largest_level(bits)
    return steps.floor_().add_(0.5).clamp_(-largest, largest)


def largest_level(bits: int) -> float:
    """Return the level of the largest code, in steps of the scale."""
    return (2**bits - 1) / 2


def to_bytes(
    codes: Tensor,  # (..., n)
    bits: int,
) -> Tensor:  # (..., ceil(n * bits / 8)), uint8
    """Pack codes into bytes without gaps, lowest bit first."""
    apart = codes.numpy()[..., None]
    single = np.unpackbits(apart, axis=-1, count=bits, bitorder="little")
    rows = single.reshape(*codes.shape[:-1], -1)
    packed = np.packbits(rows, axis=-1, bitorder="little")
    return torch.from_numpy(packed)


def from_bytes(
    packed: Tensor,  # (..., bytes)
    bits: int,
    count: int,
) -> Tensor:  # (..., count), uint8
    """Unpack the first codes from bytes: the inverse of `to_bytes`, on any device and under torch.compile."""
    step = gcd(8, bits)  # codes of three bits may lie in two bytes, but their single bits do not
    each = bits // step  # pieces of a code
    of_byte = torch.arange(0, 8, step, dtype=torch.uint8, device=packed.device)
    pieces = packed[..., None] >> of_byte
    pieces &= 2**step - 1
    pieces = pieces.flatten(-2)[..., : count * each]
    if each == 1:
        return pieces
    of_code = pieces.unflatten(-1, (count, each)) << of_byte[:each]
    return of_code.sum(dim=-1, dtype=torch.uint8)
