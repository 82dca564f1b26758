"""Which texts are paired, which comes first, and which pairs are left out."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from pipeline import tasks
from pipeline.tasks.task import HASHES
from tests.pipeline.data.rows import NUMBER, row_of

MARGIN = 0.75
FILES = dict.fromkeys(("train", "validation", "test"), "a.jsonl")
TASK = tasks.of(row_of(FILES, NUMBER, metrics=["accuracy"], pairs={"margin": MARGIN}))


def rows(count, seed=0):
    draw = np.random.default_rng(seed)
    hashes = pd.DataFrame(draw.integers(0, 2**64, (count, 2), dtype=np.uint64), columns=HASHES)
    return hashes.assign(text=[f"text {number}" for number in range(count)], label=draw.uniform(0, 5, count))


def reference(examples, step):
    """The same in plain Python: the texts and the label of each pair, and how many are too close."""
    met = list(pairwise(sorted(examples.itertuples(index=False))))[::step]
    found = [(a.text, b.text, int(b.label > a.label)) for a, b in met if abs(a.label - b.label) >= MARGIN]
    return found, len(met) - len(found)


@pytest.mark.parametrize(("split", "step"), [("train", 1), ("test", 2)])
@pytest.mark.parametrize("count", [0, 1, 2, 501])
def test_pairs_are_those_of_a_plain_loop(count, split, step):
    made, dropped = TASK.after_cut(rows(count), split)
    found = list(made.itertuples(index=False, name=None))
    assert (found, dropped["within_margin"]) == reference(rows(count), step)


def test_the_first_of_equal_texts_stands_for_all():
    once = rows(100)
    twice = pd.concat([once, once[:40].assign(label=1.5)])
    made, dropped = TASK.after_cut(twice, "train")
    assert dropped["duplicate"] == 40
    pd.testing.assert_frame_equal(made, TASK.after_cut(once, "train")[0])
