"""A different adapter for each row of a batch: the small parameters are stacked, gathered by row, and multiplied."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lsr.tuner.adapter import LsrAdapter


def add_rows(
    result: Tensor,  # (rows, ..., m): W x + b
    x: Tensor,  # (rows, ..., n)
    adapters: Mapping[str, LsrAdapter],
    names: Sequence[str],  # one per row; a name that is not in `adapters` adds nothing
) -> Tensor:  # (rows, ..., m)
    """Return `result` plus, in row i, the whole update of adapter `names[i]` times x."""
    used = [name for name in dict.fromkeys(names) if name in adapters]
    if not used:
        return result
    place_of = {name: place for place, name in enumerate(used, start=1)}
    places = torch.tensor([place_of.get(name, 0) for name in names], device=x.device)
    flat, flat_x = (value.reshape(len(x), -1, value.shape[-1]) for value in (result, x))
    chosen = [adapters[name] for name in used]
    sides = [adapter.as_lora() for adapter in chosen]
    a = _stack([side for side, _ in sides])
    b = _stack([adapter.scaling * side.T for adapter, (_, side) in zip(chosen, sides, strict=True)])
    return add_by_factors(flat, flat_x, a, b, places).view(result.shape)


def add_by_cores(
    result: Tensor,  # (rows, tokens, m)
    x: Tensor,  # (rows, tokens, n)
    a: Tensor,  # (r, n)
    b: Tensor,  # (m, r)
    cores: Tensor,  # (places, r, r) or (places, r), with their scaling
    places: Tensor,  # (rows,)
) -> Tensor:  # (rows, tokens, m)
    """Return `result + B R_i A x`, with the core R_i of each row between the same A and B."""
    cores = cores.index_select(0, places).to(x.dtype)
    hidden = F.linear(x, a.to(x.dtype))  # (rows, tokens, r)
    hidden = torch.bmm(hidden, cores.mT) if cores.dim() == 3 else hidden * cores[:, None]
    hidden = hidden.flatten(0, 1).to(result.dtype)
    return torch.addmm(result.flatten(0, 1), hidden, b.to(result.dtype).T).view(result.shape)


def add_by_factors(
    result: Tensor,  # (rows, tokens, m)
    x: Tensor,  # (rows, tokens, n)
    a: Tensor,  # (places, r, n)
    b: Tensor,  # (places, r, m): B^T, with its scaling
    places: Tensor,  # (rows,)
) -> Tensor:  # (rows, tokens, m)
    """Return `result + B_i A_i x`, with the A and B of each row."""
    a, b = (stack.index_select(0, places) for stack in (a, b))
    hidden = torch.bmm(x, a.to(x.dtype).mT)  # (rows, tokens, r)
    return torch.baddbmm(result, hidden.to(result.dtype), b.to(result.dtype))


def _stack(parts: Sequence[Tensor]) -> Tensor:  # (1 + parts, ...), zeros first and beyond smaller parts
    shape = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    stack = parts[0].new_zeros(1 + len(parts), *shape)
    for place, part in enumerate(parts, start=1):
        stack[place][tuple(map(slice, part.shape))] = part
    return stack
