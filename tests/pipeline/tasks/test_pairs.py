"""Which texts are paired, which comes first, and which pairs are left out."""

from itertools import pairwise

import numpy as np
import pytest

from pipeline.tasks import pairs

MARGIN = 0.75


def rows(count, seed=0):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 2**64, (count, 2), dtype=np.uint64), draw.uniform(-4, 4, count)


def reference(digests, numbers, *, disjoint):
    """The same in plain Python: (first, second, label) of each pair, and how many are too close."""
    order = sorted(range(len(numbers)), key=lambda row: tuple(map(int, digests[row])))
    met = list(pairwise(order))[:: 2 if disjoint else 1]
    found = [(a, b, int(numbers[b] > numbers[a])) for a, b in met if abs(numbers[a] - numbers[b]) >= MARGIN]
    return found, len(met) - len(found)


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 501])
def test_pairs_are_those_of_a_plain_loop(count, disjoint):
    digests, numbers = rows(count)
    made = pairs.pair(digests, numbers, MARGIN, disjoint=disjoint)
    found = [(*both, label) for both, label in zip(made.rows.tolist(), made.labels.tolist(), strict=True)]
    assert (found, made.within_margin) == reference(digests, numbers, disjoint=disjoint)


def test_the_first_of_equal_texts_stands_for_all():
    digests, numbers = rows(100)
    twice = np.concatenate([digests, digests[:40]]), np.concatenate([numbers, numbers[:40] + 3])
    made, alone = pairs.pair(*twice, MARGIN, disjoint=False), pairs.pair(digests, numbers, MARGIN, disjoint=False)
    assert made.duplicate == 40
    assert made.rows.tolist() == alone.rows.tolist()
