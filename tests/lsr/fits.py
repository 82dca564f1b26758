"""The fits of tiny adapters, each made once a process: many tests begin with the same one, and few are about it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from lsr.algebra.fit import fit_product

_made: dict[Any, Any] = {}


@contextmanager
def remembered() -> Iterator[None]:
    """Return what a fit of the very same numbers has given before, wherever the library asks for one."""
    with patch("lsr.init.principal.fit_product", _remembered):
        yield


def _remembered(*values: Any, **options: Any) -> Any:
    key = _key(values), _key(sorted(options.items()))
    if key not in _made:
        _made[key] = fit_product(*values, **options)
    return copy.deepcopy(_made[key])


def _key(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.detach().contiguous().numpy().tobytes()
    return tuple(map(_key, value)) if isinstance(value, list | tuple) else value
