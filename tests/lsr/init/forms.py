"""Layers to initialize: forms, sources and random factors of them."""

import torch

from lsr.algebra.shapes import Form, split_width
from lsr.init.initialization import Source
from lsr.init.random import random_factors

RANKS = {2: (2, 2), 3: (2, 2, 2)}


def form_of(rows, columns, rank_shape=(2, 2), terms=4, in_shape=None, out_shape=None):
    shapes = in_shape or split_width(columns, rank_shape), out_shape or split_width(rows, rank_shape)
    return Form(rank_shape, *shapes, terms, columns, rows)


def source_of(weight, rank_shape=(2, 2), terms=4, in_shape=None, out_shape=None, **fields):
    return Source(form_of(*weight.shape, rank_shape, terms, in_shape, out_shape), lambda: weight, **fields)


def draw(terms=4, width=768, rank_shape=(2, 2), *, zero=True, seed=0):
    return random_factors(form_of(width, width, rank_shape, terms), zero, torch.Generator().manual_seed(seed))


def as_bytes(start):
    """All factors of a start, to compare two of them."""
    return [factor.numpy().tobytes() for factor in (*start.a, *start.b)]
