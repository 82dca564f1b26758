"""Matrices to decompose, always the same."""

import torch
from hypothesis import strategies as st

SEEDS = st.integers(0, 999)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def decaying(rows, columns, seed=0):
    """A weight with well separated singular values 1, 1/2, 1/3, ..."""
    count = min(rows, columns)
    left = torch.linalg.qr(normal(rows, count, seed=seed)).Q
    right = torch.linalg.qr(normal(columns, count, seed=seed + 1)).Q
    return (left / torch.arange(1, count + 1)) @ right.T
