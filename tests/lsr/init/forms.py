"""Layers to initialize: forms and sources."""

import torch

from lsr.algebra.shapes import Form, split_width
from lsr.init.initialization import Source


def form_of(rows, columns, rank_shape=(2, 2), terms=4, in_shape=None, out_shape=None):
    shapes = in_shape or split_width(columns, rank_shape), out_shape or split_width(rows, rank_shape)
    return Form(rank_shape, *shapes, 1 if len(rank_shape) == 1 else terms, columns, rows)


def source_of(weight, rank_shape=(2, 2), terms=4, in_shape=None, out_shape=None, **fields):
    return Source(form_of(*weight.shape, rank_shape, terms, in_shape, out_shape), lambda: weight, **fields)


def as_bytes(start):
    """All factors of a start, to compare two of them."""
    return [factor.detach().numpy().tobytes() for factor in (*start.a, *start.b)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)
